//! Received packets, as a queue hands them out.

use super::mbuf;
use super::sys;
use crate::wire::packet::PacketInfo;
use std::ptr::NonNull;

/// A packet for this mover whose headers have been checked. It lives until the closure that got
/// it returns, unless it is kept.
#[derive(Debug)]
pub struct Received<'q> {
    pub(super) info: PacketInfo,
    pub(super) frame: &'q mut *mut sys::rte_mbuf,
    pub(super) head: &'q [u8],
    pub(super) tail: &'q [u8],
    pub(super) offset: usize,
}

impl Received<'_> {
    /// What its header says.
    #[inline]
    #[must_use]
    pub const fn info(&self) -> &PacketInfo {
        &self.info
    }

    /// The payload, `payload_len` bytes in one or two pieces: the second has bytes only where the
    /// frame came through memory that the sender referred to.
    #[inline]
    #[must_use]
    pub const fn payload(&self) -> (&[u8], &[u8]) {
        (self.head, self.tail)
    }

    /// Keeps the packet, to be passed to a sibling poller. None when it was kept before.
    #[must_use]
    pub fn keep(&mut self) -> Option<OwnedFrame> {
        let mbuf = NonNull::new(std::mem::replace(self.frame, std::ptr::null_mut()))?;
        Some(OwnedFrame { mbuf, info: self.info, offset: self.offset })
    }
}

/// A packet on its way between pollers. Holds a packet buffer of the port's until dropped.
#[derive(Debug)]
pub struct OwnedFrame {
    mbuf: NonNull<sys::rte_mbuf>,
    info: PacketInfo,
    /// Where the payload begins in the frame.
    offset: usize,
}

// SAFETY: the only owner of its buffer; pools may be given back to by any thread.
unsafe impl Send for OwnedFrame {}

impl OwnedFrame {
    /// What its header says.
    #[must_use]
    pub const fn info(&self) -> &PacketInfo {
        &self.info
    }

    /// The payload, as [`Received::payload`].
    #[must_use]
    pub fn payload(&self) -> (&[u8], &[u8]) {
        // SAFETY: a received frame, owned, and borrowed for as long as the result.
        let pieces = unsafe { mbuf::pieces(self.mbuf) };
        let (first, second, _) = pieces.unwrap_or_default();
        split(first, second, self.offset, usize::from(self.info.payload_len))
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        mbuf::free(&mut [self.mbuf.as_ptr()]);
    }
}

/// `len` bytes from `offset` on of a frame in two pieces; `offset` lies in the first.
#[inline]
pub(super) fn split<'a>(
    first: &'a [u8],
    second: &'a [u8],
    offset: usize,
    len: usize,
) -> (&'a [u8], &'a [u8]) {
    let head = first.get(offset..).unwrap_or_default();
    if len <= head.len() {
        return (&head[..len], &[]);
    }
    let tail = second.get(..len - head.len()).unwrap_or_default();
    (head, tail)
}
