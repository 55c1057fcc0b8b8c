//! The two queues between SPDK's callbacks and a poller's loop: host commands
//! that arrived at taps, and completions of base I/O.
//!
//! A callback only appends; the loop takes entries out after it polled. So no
//! callback ever runs inside the poller's own code, and work is done in
//! batches. One pair per OS thread, found through a thread-local pointer; no
//! locks, no allocation after launch.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::rc::Rc;

use super::error::{Error, NvmeStatus};
use super::tap::HostIo;

/// A finished I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// What the submitter gave as context: a slot index, as a rule.
    pub ctx: u64,
    /// How it ended.
    pub status: NvmeStatus,
}

/// A host command and the volume (by the index given at creation) it is for.
#[derive(Debug)]
pub struct Arrival {
    /// Index of the volume.
    pub volume: u32,
    /// The command.
    pub io: HostIo,
}

#[derive(Debug)]
pub(super) struct Queues {
    capacity: usize,
    arrivals: RefCell<VecDeque<Arrival>>,
    done: RefCell<VecDeque<Done>>,
}

thread_local! {
    static LOCAL: Cell<*const Queues> = const { Cell::new(std::ptr::null()) };
}

/// This OS thread's queues; the thread owns them for as long as it polls.
#[derive(Debug)]
pub struct LocalQueues {
    queues: Rc<Queues>,
    _not_send: PhantomData<*mut ()>,
}

impl LocalQueues {
    /// Makes the queues of the calling OS thread, each with room for
    /// `capacity` entries. With [`super::subsystem::Config::bdev_ios`] as the
    /// capacity they cannot overflow: each entry holds one of those.
    ///
    /// # Errors
    /// [`Error::Misuse`] when the thread has queues already.
    pub fn install(capacity: usize) -> Result<Self, Error> {
        if !LOCAL.get().is_null() {
            return Err(Error::Misuse("this thread has I/O queues already"));
        }
        let queues = Rc::new(Queues {
            capacity,
            arrivals: RefCell::new(VecDeque::with_capacity(capacity)),
            done: RefCell::new(VecDeque::with_capacity(capacity)),
        });
        LOCAL.set(Rc::as_ptr(&queues));
        Ok(Self { queues, _not_send: PhantomData })
    }

    /// The next host command, oldest first.
    #[inline]
    pub fn pop_arrival(&self) -> Option<Arrival> {
        self.queues.arrivals.borrow_mut().pop_front()
    }

    /// The next completion, oldest first.
    #[inline]
    pub fn pop_done(&self) -> Option<Done> {
        self.queues.done.borrow_mut().pop_front()
    }

    /// Host commands and completions that wait.
    pub fn pending(&self) -> (usize, usize) {
        (self.queues.arrivals.borrow().len(), self.queues.done.borrow().len())
    }
}

impl Drop for LocalQueues {
    fn drop(&mut self) {
        LOCAL.set(std::ptr::null());
    }
}

/// Appends a completion; called by I/O callbacks.
#[inline]
pub(super) fn push_done(done: Done) {
    let local = LOCAL.get();
    // SAFETY: null, or the queues of the `LocalQueues` that this thread holds.
    if let Some(queues) = unsafe { local.as_ref() } {
        queues.done.borrow_mut().push_back(done);
    } else {
        debug_assert!(false, "an I/O completed on a thread without queues");
    }
}

/// Appends a host command, or gives it back when there is no room or no queue.
#[inline]
pub(super) fn push_arrival(arrival: Arrival) -> Result<(), Arrival> {
    let local = LOCAL.get();
    // SAFETY: as in `push_done`.
    let Some(queues) = (unsafe { local.as_ref() }) else { return Err(arrival) };
    let mut arrivals = queues.arrivals.borrow_mut();
    if arrivals.len() == queues.capacity {
        return Err(arrival);
    }
    arrivals.push_back(arrival);
    Ok(())
}
