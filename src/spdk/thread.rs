//! SPDK threads: the message queues, pollers and channels that one OS thread
//! polls. SPDK's reactors are not used; the owner calls [`Thread::poll`] in its
//! own loop.
//!
//! The first one created in a process is SPDK's *app thread*: subsystems, block
//! devices and NVMe-oF targets are created, changed and removed on it. It
//! belongs to the control thread.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::{NonNull, null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

use super::env::tsc_now;
use super::error::{Error, check, cstring};
use super::op::{Pump, poll_until};
use super::sys;

/// One SPDK thread, owned and polled by the OS thread that created it.
#[derive(Debug)]
pub struct Thread {
    raw: NonNull<sys::spdk_thread>,
    shared: Arc<Shared>,
    _not_send: PhantomData<*mut ()>,
}

#[derive(Debug)]
struct Shared {
    /// `None` once the thread has been destroyed.
    raw: Mutex<Option<RawThread>>,
}

#[derive(Debug)]
struct RawThread(NonNull<sys::spdk_thread>);

// SAFETY: only used for spdk_thread_send_msg, which any thread may call, while
// the mutex keeps the SPDK thread from being destroyed.
unsafe impl Send for RawThread {}

impl Thread {
    /// Creates an SPDK thread and makes it the current one of this OS thread.
    ///
    /// # Errors
    /// [`Error::Null`] when memory does not suffice.
    pub fn create(name: &str) -> Result<Self, Error> {
        let name = cstring("thread name", name)?;
        // SAFETY: the name is copied; a null mask means "any core".
        let raw = unsafe { sys::spdk_thread_create(name.as_ptr(), null()) };
        let raw = NonNull::new(raw).ok_or(Error::Null { call: "spdk_thread_create" })?;
        let shared = Arc::new(Shared { raw: Mutex::new(Some(RawThread(raw))) });
        let thread = Self { raw, shared, _not_send: PhantomData };
        thread.enter();
        Ok(thread)
    }

    /// Makes this the SPDK thread on whose behalf this OS thread calls SPDK.
    /// Needed only where one OS thread owns several.
    pub fn enter(&self) {
        // SAFETY: `raw` lives as long as `self`.
        unsafe { sys::spdk_set_thread(self.raw.as_ptr()) };
    }

    /// Runs messages and pollers once. `now_tsc` is the loop turn's clock.
    /// Returns whether anything was done.
    #[inline]
    pub fn poll(&self, now_tsc: u64) -> bool {
        // SAFETY: `raw` lives as long as `self`, and only its owner polls it.
        unsafe { sys::spdk_thread_poll(self.raw.as_ptr(), 0, now_tsc) > 0 }
    }

    /// A handle through which other threads send work here.
    pub fn handle(&self) -> ThreadHandle {
        ThreadHandle { shared: Arc::clone(&self.shared) }
    }

    /// Ends the thread: its channels must have been released. `pump` polls
    /// whatever else the release needs (the app thread); this thread is polled
    /// here.
    ///
    /// # Errors
    /// [`Error::Timeout`]; SPDK itself forces the exit after 5 s, so this says
    /// that the owner's loop is stuck.
    pub fn exit(self, pump: Pump<'_>) -> Result<(), Error> {
        self.enter();
        let raw = self.raw.as_ptr();
        // SAFETY: called on the thread itself.
        check("spdk_thread_exit", unsafe { sys::spdk_thread_exit(raw) })?;
        poll_until("exit of an SPDK thread", pump, || {
            self.poll(tsc_now());
            // SAFETY: `raw` is alive until spdk_thread_destroy below.
            unsafe { sys::spdk_thread_is_exited(raw) }
        })?;
        // No sender is inside spdk_thread_send_msg while the lock is held.
        *self.shared.raw.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // SAFETY: exited, and nobody refers to it any more. It must be current.
        unsafe { sys::spdk_thread_destroy(raw) };
        // SAFETY: clears this OS thread's current SPDK thread.
        unsafe { sys::spdk_set_thread(null_mut()) };
        Ok(())
    }
}

/// Sends work to a [`Thread`] from anywhere. Control path: each message
/// allocates; data goes through rings.
#[derive(Debug, Clone)]
pub struct ThreadHandle {
    shared: Arc<Shared>,
}

impl ThreadHandle {
    /// Has `work` run by the thread's next poll.
    ///
    /// # Errors
    /// [`Error::Misuse`] when the thread has ended; [`Error::Errno`] when its
    /// queue is full.
    pub fn send(&self, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let guard = self.shared.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(RawThread(raw)) = *guard else {
            return Err(Error::Misuse("the SPDK thread has ended"));
        };
        let work: Box<Work> = Box::new(Box::new(work));
        let ctx = Box::into_raw(work);
        // SAFETY: the lock keeps the thread alive; `run` takes the box back.
        let rc = unsafe { sys::spdk_thread_send_msg(raw.as_ptr(), Some(run), ctx.cast()) };
        if rc != 0 {
            // SAFETY: the message was not queued, so the box is still ours.
            drop(unsafe { Box::from_raw(ctx) });
        }
        check("spdk_thread_send_msg", rc)
    }
}

type Work = Box<dyn FnOnce() + Send>;

unsafe extern "C" fn run(ctx: *mut c_void) {
    // SAFETY: `ctx` is the box that `send` gave up, delivered once.
    let work = unsafe { Box::from_raw(ctx.cast::<Work>()) };
    work();
}
