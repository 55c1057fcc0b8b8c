//! Asynchronous control calls: a callback fills a slot, the caller polls for it.
//!
//! Control path only: each call allocates one slot. A call that timed out keeps
//! its slot alive until the callback comes, however late.

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::error::Error;

/// Polls, once, everything that must run for an operation to complete: the
/// app thread, and whatever other SPDK threads live on the calling OS thread.
pub type Pump<'a> = &'a mut dyn FnMut();

/// How long a control operation may take before it is reported as stuck.
const OP_TIMEOUT: Duration = Duration::from_secs(30);

/// The slot of one operation.
pub(super) struct Op<T>(Rc<Cell<Option<T>>>);

impl<T> std::fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Op")
    }
}

impl<T> Op<T> {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(None)))
    }

    /// The context to hand to C; each must reach `finish` at most once.
    pub(super) fn context(&self) -> *mut c_void {
        Rc::into_raw(Rc::clone(&self.0)).cast_mut().cast()
    }

    /// Gives a context back whose callback will never come.
    ///
    /// # Safety
    /// `context` is from `context()` of an `Op<T>` and is not used again.
    pub(super) unsafe fn disown(context: *mut c_void) {
        // SAFETY: by the contract this is the strong count that `context` took.
        drop(unsafe { Rc::from_raw(context.cast_const().cast::<Cell<Option<T>>>()) });
    }

    /// Called by the callback, on the thread that started the operation.
    ///
    /// # Safety
    /// As `disown`; `T` is the type the context was made with.
    pub(super) unsafe fn finish(context: *mut c_void, value: T) {
        // SAFETY: by the contract this is the strong count that `context` took.
        let slot = unsafe { Rc::from_raw(context.cast_const().cast::<Cell<Option<T>>>()) };
        slot.set(Some(value));
    }

    /// What the callback brought, once.
    pub(super) fn take(&self) -> Option<T> {
        self.0.take()
    }

    /// What [`Self::context`] has handed out, to compare with; it must not be followed.
    pub(super) fn name(&self) -> *mut c_void {
        Rc::as_ptr(&self.0).cast_mut().cast()
    }

    /// Pumps until the callback has come.
    pub(super) fn wait(self, call: &'static str, pump: Pump<'_>) -> Result<T, Error> {
        let mut found = None;
        poll_until(call, pump, || {
            found = self.0.take();
            found.is_some()
        })?;
        found.ok_or(Error::Misuse("operation slot taken twice"))
    }
}

/// Pumps until `done` says so.
///
/// # Errors
/// [`Error::Timeout`] after 30 s.
pub fn poll_until(
    call: &'static str,
    pump: Pump<'_>,
    mut done: impl FnMut() -> bool,
) -> Result<(), Error> {
    let start = Instant::now();
    let mut turns = 0_u32;
    while !done() {
        pump();
        turns += 1;
        if turns.is_multiple_of(256) {
            if start.elapsed() > OP_TIMEOUT {
                return Err(Error::Timeout { call, seconds: OP_TIMEOUT.as_secs() });
            }
            // Pollers may share this core and have to make progress too.
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Callback `fn(ctx, status)`: the most frequent form.
pub(super) unsafe extern "C" fn done_status(ctx: *mut c_void, status: i32) {
    // SAFETY: every user of this callback passes `Op::<i32>::context()`.
    unsafe { Op::finish(ctx, status) }
}

/// Callback `fn(ctx)`.
pub(super) unsafe extern "C" fn done_plain(ctx: *mut c_void) {
    // SAFETY: every user of this callback passes `Op::<()>::context()`.
    unsafe { Op::finish(ctx, ()) }
}
