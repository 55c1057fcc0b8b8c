//! Knowing that no poller is inside a driver.
//!
//! memif's memory is unmapped by a thread of the driver's when the peer goes away, and a memif
//! client is stopped and started by the control thread to connect again. Both wait until every
//! poller that was inside a burst has left it (`ffi/memif_gate.c`); pollers never wait.
//!
//! And knowing when the driver's thread is done with a connection ([`Ended`]): before that, nobody
//! else may touch the device.

use super::sys;
use std::ffi::CStr;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

const GATES: usize = sys::SETLINE_MEMIF_GATES as usize;

static TAKEN: Mutex<[bool; GATES]> = Mutex::new([false; GATES]);

/// One queue's way into its driver: a count that is odd while the poller is inside.
pub(super) struct Gate {
    turns: Option<&'static AtomicU32>,
    index: usize,
}

impl Gate {
    /// For drivers that need none.
    pub(super) const OPEN: Self = Self { turns: None, index: GATES };

    /// A gate of its own; none when all are taken.
    pub(super) fn new() -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let index = taken.iter().position(|taken| !taken)?;
        // SAFETY: returns the address of a static variable, or null.
        let turns = NonNull::new(unsafe { sys::setline_memif_gate(index as u32) })?;
        // SAFETY: aligned, lives for ever, and reached by atomic operations only.
        let turns = unsafe { AtomicU32::from_ptr(turns.as_ptr()) };
        taken[index] = true;
        Some(Self { turns: Some(turns), index })
    }

    /// Goes in, unless `running` says that the port is stopped.
    #[inline]
    pub(super) fn enter(&self, running: &AtomicBool) -> bool {
        let Some(turns) = self.turns else { return true };
        // Before anything of the driver is read, the driver's thread and the control thread see
        // that this poller is inside.
        turns.store(turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::SeqCst);
        if running.load(Ordering::SeqCst) {
            return true;
        }
        self.leave();
        false
    }

    /// Comes out again.
    #[inline]
    pub(super) fn leave(&self) {
        if let Some(turns) = self.turns {
            turns.store(turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if self.turns.is_some() {
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            taken[self.index] = false;
        }
    }
}

/// Counts the connections of a memif device that have ended, whichever side ended them.
#[derive(Clone, Copy)]
pub(super) struct Ended(&'static AtomicU32);

impl Ended {
    /// The count of the device `name`; none when there is no such device.
    pub(super) fn of(name: &CStr) -> Option<Self> {
        // SAFETY: a NUL-terminated string; returns the address of a static variable, or null.
        let count = NonNull::new(unsafe { sys::setline_memif_ended(name.as_ptr()) })?;
        // SAFETY: aligned, lives for ever, and reached by atomic operations only.
        Some(Self(unsafe { AtomicU32::from_ptr(count.as_ptr()) }))
    }

    pub(super) fn count(self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Returns when every poller that was inside a gate has left it.
pub(super) fn wait_for_pollers() {
    // SAFETY: reads static variables; the caller is inside no gate.
    unsafe { sys::setline_memif_wait() };
}
