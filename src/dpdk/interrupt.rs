//! Running something on EAL's interrupt thread.
//!
//! There memif handles what its peers say. Whatever takes a device with a connection down has to
//! take turns with that, and the driver has no lock for it.

use super::sys;
use std::ffi::c_void;
use std::sync::mpsc::channel;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// How long a job may take to begin and end.
const JOB_TIME: Duration = Duration::from_secs(5);

/// Runs `job` on the interrupt thread, some time from now, and returns when it is done; here, where
/// EAL has no such thread.
pub(super) fn on_interrupt_thread(after: Duration, job: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let job: Job = Box::new(move || {
        job();
        let _ = done.send(());
    });
    let raw = Box::into_raw(Box::new(job)).cast::<c_void>();
    let delay_us = after.as_micros().max(1) as u64;
    // SAFETY: `run` gets the pointer once, and nobody has it besides.
    if unsafe { sys::rte_eal_alarm_set(delay_us, Some(run), raw) } != 0 {
        // SAFETY: no alarm was set, so the pointer is still this function's alone.
        unsafe { run(raw) };
    }
    if wait.recv_timeout(after + JOB_TIME).is_err() {
        tracing::warn!("EAL's interrupt thread does not come to its work");
    }
}

/// # Safety
/// `job` comes from [`on_interrupt_thread`], and is passed once.
unsafe extern "C" fn run(job: *mut c_void) {
    // SAFETY: made of such a box, by the caller's promise.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    job();
}
