//! Between host buffers, the arena and block devices: the places where bytes pass from one to the
//! other without Rust looking at them.

use std::ptr::NonNull;

use super::bdev::Channel;
#[allow(unused_imports)] // named in documentation
use super::env::DmaBuf;
use super::env::IoBuf;
use super::error::Submit;
use super::sys;
use super::tap::{HostIo, IoVec};
use crate::mem::arena::{Arena, ArenaError};
use crate::mem::copy;
use crate::proto::types::BufRef;

const _: () = assert!(size_of::<copy::IoVec>() == size_of::<sys::iovec>());
const _: () = assert!(align_of::<copy::IoVec>() == align_of::<sys::iovec>());

/// A host command's buffers, for the poller that works on the command: perhaps another one than
/// that which holds the [`HostIo`]. Valid until that command is completed; whoever holds it
/// completes it only when the other said that it is done.
#[derive(Clone, Copy, Debug)]
pub struct ForeignIovs {
    first: *mut IoVec,
    count: i32,
}

// SAFETY: an address and a count. The iovecs and the buffers that they name belong to a host
// command that stays as it is until it is completed (the type's contract), whichever thread reads
// them.
unsafe impl Send for ForeignIovs {}

impl HostIo {
    /// The command's buffers, for whoever works on it.
    #[inline]
    #[must_use]
    pub fn foreign_iovs(&self) -> ForeignIovs {
        let (first, count) = self.raw_iovs();
        ForeignIovs { first, count }
    }
}

impl ForeignIovs {
    /// Copies the buffers into a record's payload and returns the CRC-32C of what was copied.
    #[inline]
    pub fn copy_into(self, arena: &mut Arena, buf: BufRef) -> u32 {
        if self.first.is_null() || self.count <= 0 {
            return 0;
        }
        // SAFETY: the host command is not completed, so its iovecs are there; the two structures
        // are C's `struct iovec` (asserted above).
        let pieces = unsafe {
            std::slice::from_raw_parts(self.first.cast::<copy::IoVec>(), self.count as usize)
        };
        // SAFETY: buffers of a command that is not completed are readable; they are not in the
        // arena, which hosts do not know.
        unsafe { arena.fill(buf, pieces) }
    }

    /// Copies the first `bytes` bytes of a record's payload into the buffers. False, and nothing is
    /// copied, when they are not just as long.
    pub fn fill_from(self, arena: &Arena, buf: BufRef, bytes: usize) -> bool {
        self.each_piece(arena, buf, bytes, |host, payload| {
            // SAFETY: a piece of a command that is not completed, as long as `payload`; it is not in
            // the arena.
            unsafe { host.copy_from_nonoverlapping(payload.as_ptr(), payload.len()) };
            true
        })
    }

    /// Whether the buffers hold just the first `bytes` bytes of a record's payload.
    pub fn equal(self, arena: &Arena, buf: BufRef, bytes: usize) -> bool {
        self.each_piece(arena, buf, bytes, |host, payload| {
            // SAFETY: as in `fill_from`; it is only read.
            let host = unsafe { std::slice::from_raw_parts(host, payload.len()) };
            host == payload
        })
    }

    /// Goes through buffers and payload together until `f` says false. False also when their lengths
    /// differ.
    fn each_piece(
        self,
        arena: &Arena,
        buf: BufRef,
        bytes: usize,
        mut f: impl FnMut(*mut u8, &[u8]) -> bool,
    ) -> bool {
        if self.first.is_null() || self.count <= 0 {
            return false;
        }
        // SAFETY: the host command is not completed, so its iovecs are there.
        let pieces = unsafe { std::slice::from_raw_parts(self.first, self.count as usize) };
        let Some(mut payload) = arena.payload(buf).get(..bytes) else { return false };
        if pieces.iter().map(|piece| piece.iov_len).sum::<usize>() != bytes {
            return false;
        }
        pieces.iter().all(|piece| {
            let (now, rest) = payload.split_at(piece.iov_len);
            payload = rest;
            f(piece.iov_base.cast(), now)
        })
    }
}

impl IoBuf {
    /// Makes the memory an arena. It is nobody else's from then on.
    ///
    /// # Errors
    /// When it is not aligned to a segment or too small.
    pub fn into_arena(self, logs_max: usize) -> Result<Arena, ArenaError> {
        // SAFETY: memory that stays mapped (the type's contract), zeroed by SPDK when it was
        // allocated, and given up by the caller.
        unsafe { Arena::from_raw(self.as_ptr(), self.len(), logs_max) }
    }

    /// The first `len` bytes of a record's payload.
    ///
    /// # Panics
    /// When the record's payload is shorter.
    #[inline]
    #[must_use]
    pub fn of_payload(arena: &Arena, buf: BufRef, len: usize) -> Self {
        assert!(len <= arena.payload(buf).len(), "a payload of {len} bytes");
        let payload = NonNull::new(arena.payload_ptr(buf)).expect("an arena is not at address 0");
        // SAFETY: arena memory of a poller is SPDK's (`into_arena`).
        unsafe { Self::from_raw(payload, len) }
    }

    /// A journal's stage memory, which is a [`DmaBuf`] that lives as long as the journal.
    #[must_use]
    pub fn of_stage(stage: &[u8]) -> Self {
        // SAFETY: SPDK's memory; the journal keeps it until its last I/O has completed.
        unsafe { Self::from_raw(NonNull::from(stage).cast(), stage.len()) }
    }

    /// A record's header.
    #[must_use]
    pub fn of_header(arena: &Arena, buf: BufRef) -> Self {
        let header = NonNull::new(arena.header_ptr(buf)).expect("an arena is not at address 0");
        // SAFETY: as in `of_payload`.
        unsafe { Self::from_raw(header, crate::mem::arena::HEADER_BYTES) }
    }
}

/// A list of pieces that a device writes as one: must stay as it is until the write completed.
#[derive(Default)]
pub struct Gather {
    pieces: Vec<IoVec>,
    bytes: usize,
}

// SAFETY: addresses and lengths of memory that is not bound to a thread.
unsafe impl Send for Gather {}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gather({} pieces, {} bytes)", self.pieces.len(), self.bytes)
    }
}

impl Gather {
    /// Room for `pieces` without another allocation.
    #[must_use]
    pub fn with_capacity(pieces: usize) -> Self {
        Self { pieces: Vec::with_capacity(pieces), bytes: 0 }
    }

    /// Empties the list.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Appends a piece.
    pub fn push(&mut self, piece: IoBuf) {
        self.bytes += piece.len();
        let iov_base = piece.as_ptr().as_ptr().cast();
        self.pieces.push(IoVec { iov_base, iov_len: piece.len() });
    }
}

impl Channel {
    /// Writes the pieces of `gather`, one after another, at `offset_blocks`. The list stays where
    /// and as it is until the completion was seen.
    ///
    /// # Errors
    /// [`Submit`]; then no completion comes.
    pub fn write_gather(
        &self,
        gather: &mut Gather,
        offset_blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        let blocks = gather.bytes as u64 / u64::from(self.geometry().block_bytes);
        let (first, count) = (gather.pieces.as_mut_ptr(), gather.pieces.len() as i32);
        self.writev_raw(first, count, offset_blocks, blocks, ctx)
    }

    /// Compares `blocks` blocks with a host's buffers.
    ///
    /// # Errors
    /// [`Submit`]; then no completion comes.
    pub fn compare_foreign(
        &self,
        iovs: ForeignIovs,
        offset_blocks: u64,
        blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        self.comparev_raw(iovs.first, iovs.count, offset_blocks, blocks, ctx)
    }

    /// Reads `blocks` blocks into a host's buffers.
    ///
    /// # Errors
    /// [`Submit`]; then no completion comes.
    pub fn read_foreign(
        &self,
        iovs: ForeignIovs,
        offset_blocks: u64,
        blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        self.readv_raw(iovs.first, iovs.count, offset_blocks, blocks, ctx)
    }
}
