//! Memory that frames refer to instead of copying it: the arena's records.
//!
//! A device (or, with a ring port, the receiving poller) reads the memory some time after the
//! frame was handed over. Every reference has a reference count of DPDK's; the counts lie in a
//! ring in order of use, so "everything handed over before this moment has been released" is one
//! number to compare: no callback, no table of records.

use super::sys;
use crate::spdk::env::IoBuf;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU16, Ordering};

const HUGEPAGE: usize = 2 << 20;

/// Memory that records lie in, with the addresses by which devices reach it.
#[derive(Clone, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    /// One per 2 MiB from the page of `base` on.
    iovas: Box<[u64]>,
}

// SAFETY: addresses only; the memory stays mapped (the contract of `IoBuf`).
unsafe impl Send for Region {}

/// A piece of a region, as a frame refers to it.
#[derive(Clone, Copy, Debug)]
pub struct External {
    pub(super) ptr: NonNull<u8>,
    pub(super) iova: u64,
    pub(super) len: u16,
}

impl External {
    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Region {
    /// The region `memory`. What lies in it must not change from the moment a frame refers to it
    /// until [`super::Queue::completed`] has reached that frame's ticket.
    #[must_use]
    pub fn new(memory: IoBuf) -> Self {
        let base = memory.as_ptr();
        let first = base.addr().get() & !(HUGEPAGE - 1);
        let end = base.addr().get() + memory.len();
        let iovas = (first..end)
            .step_by(HUGEPAGE)
            .map(|page| {
                let at = page.max(base.addr().get());
                // SAFETY: looks the address up; reads nothing there.
                let iova = unsafe { sys::rte_mem_virt2iova(base.as_ptr().with_addr(at).cast()) };
                iova.wrapping_sub((at - page) as u64)
            })
            .collect();
        Self { base, len: memory.len(), iovas }
    }

    /// The `len` bytes from `at` on, an address within the region.
    ///
    /// # Panics
    /// When they are not all within the region, or cross from one hugepage into the next: records
    /// do not.
    #[must_use]
    #[inline]
    pub fn external(&self, at: *const u8, len: u16) -> External {
        let offset = at.addr().wrapping_sub(self.base.addr().get());
        assert!(
            offset <= self.len && usize::from(len) <= self.len - offset,
            "bytes outside the region"
        );
        let first = self.base.addr().get() & !(HUGEPAGE - 1);
        let from_first = at.addr() - first;
        debug_assert!(from_first % HUGEPAGE + usize::from(len) <= HUGEPAGE);
        let iova = self.iovas[from_first / HUGEPAGE] + (from_first % HUGEPAGE) as u64;
        // SAFETY: within the region, by the assertion.
        let ptr = unsafe { self.base.add(offset) };
        External { ptr, iova, len }
    }
}

/// A moment in the life of a queue: how many references it had handed over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticket(pub(super) u64);

/// The reference counts of one queue, in order of use.
pub(super) struct Counts {
    ring: Box<[UnsafeCell<sys::rte_mbuf_ext_shared_info>]>,
    issued: u64,
    completed: u64,
}

// SAFETY: the cells are written by the owner while nobody refers to them, and otherwise only by
// DPDK's atomic operations on the count.
unsafe impl Send for Counts {}

/// DPDK calls this when a count reaches zero; the owner looks at the count instead.
unsafe extern "C" fn released(_address: *mut c_void, _opaque: *mut c_void) {}

impl Counts {
    /// `size` is a power of two.
    pub(super) fn new(size: usize) -> Self {
        let unused = || {
            UnsafeCell::new(sys::rte_mbuf_ext_shared_info {
                free_cb: Some(released),
                fcb_opaque: null_mut(),
                refcnt: 0,
            })
        };
        Self { ring: (0..size).map(|_| unused()).collect(), issued: 0, completed: 0 }
    }

    #[inline]
    fn cell(&self, number: u64) -> *mut sys::rte_mbuf_ext_shared_info {
        self.ring[(number & (self.ring.len() as u64 - 1)) as usize].get()
    }

    #[inline]
    fn count(&self, number: u64) -> &AtomicU16 {
        // SAFETY: the cell lives as long as `self`.
        let count = unsafe { &raw mut (*self.cell(number)).refcnt };
        // SAFETY: aligned, valid, and from now on reached by atomic operations only.
        unsafe { AtomicU16::from_ptr(count) }
    }

    /// Takes the next count, at one reference; none when all are in use.
    #[inline]
    pub(super) fn issue(&mut self) -> Option<*mut sys::rte_mbuf_ext_shared_info> {
        if self.issued - self.completed == self.ring.len() as u64 {
            self.advance();
            if self.issued - self.completed == self.ring.len() as u64 {
                return None;
            }
        }
        let cell = self.cell(self.issued);
        self.count(self.issued).store(1, Ordering::Relaxed);
        self.issued += 1;
        Some(cell)
    }

    #[inline]
    fn advance(&mut self) {
        // Acquire: whoever released a reference has read the memory before.
        while self.completed < self.issued
            && self.count(self.completed).load(Ordering::Acquire) == 0
        {
            self.completed += 1;
        }
    }

    #[inline]
    pub(super) fn issued(&self) -> Ticket {
        Ticket(self.issued)
    }

    #[inline]
    pub(super) fn completed(&mut self) -> Ticket {
        self.advance();
        Ticket(self.completed)
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.advance();
        if self.completed < self.issued {
            // Somebody still counts down in this memory.
            Box::leak(std::mem::take(&mut self.ring));
        }
    }
}
