//! The update arena: record space cut from one hugepage region per poller.
//!
//! A record is a 128-byte header and a payload. Records of one purpose (a group
//! in a role: own updates, mirrors of others, ...) are appended to a [`LogId`]'s
//! current *segment*, 2 MiB of the region, and freed in about the order they
//! came, because sets are confirmed in order. A segment whose last record is
//! freed goes back to the pool and is the first to be handed out again, so that
//! a lightly loaded poller keeps working in memory that is still in its cache.
//!
//! ```text
//!  segment   0                                                        2 MiB
//!            | payload 0 | payload 1 | ...  ->      <- ... | head 1 | head 0 |
//! ```
//!
//! Payloads grow from the front and headers from the back. So a payload can lie
//! on any alignment that a block device asks for (SPDK's file devices want their
//! block size, and the bdev layer would otherwise bounce every write through a
//! copy) without padding in front of it: 4 KiB payloads aligned to 4 KiB waste
//! nothing, where a header before each payload would waste 3968 bytes per record
//! or cost that copy. Sending gathers header and payload from two places, which
//! a frame does anyhow: its own headers go in front. What does not fit the rest
//! of a segment leaves that rest unused, at most one largest payload.
//!
//! Every operation is O(1); nothing is allocated after construction. "Full" is
//! `None`.
//!
//! # Limits per log
//!
//! A log is promised [`LogLimits::reserved_bytes`] and may grow to
//! [`LogLimits::limit_bytes`] while the pool has segments that nobody else was
//! promised. Both are counted in whole segments, because a segment with one live
//! record cannot be used for another. [`LogLimits::budget_bytes`] says how many
//! bytes of records surely fit.
//!
//! # Not done here
//!
//! No hugepage allocation, no record format, no reference counts: whoever frees
//! a record knows that no device and no peer still reads it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use super::copy::{Copier, IoVec, LINE, Store};
use crate::proto::types::BufRef;

mod segment;
#[cfg(test)]
mod tests;

use segment::{NO_SEGMENT, Place, Segment};

/// Bytes of a segment: one hugepage of x86-64, so that a record is contiguous for
/// devices whatever the order of pages in physical memory.
pub const SEGMENT_BYTES: usize = 2 << 20;
/// Bytes of a record's header.
pub const HEADER_BYTES: usize = 128;
/// Largest payload of a record in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Largest alignment that a payload can be asked to have, in bytes.
pub const ALIGN_MAX: usize = 4096;
/// Most segments that a [`BufRef`] can tell apart: 2 TiB.
pub const SEGMENTS_MAX: usize = 1 << 20;

const _: () = assert!(PAYLOAD_BYTES_MAX == crate::proto::limits::PAYLOAD_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_MAX + HEADER_BYTES <= SEGMENT_BYTES);
const _: () = assert!(HEADER_BYTES == crate::wire::update::UPDATE_HEADER_BYTES);

/// Why an arena or a log could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    /// The region is not aligned to a segment.
    #[error("arena at {address:#x} is not aligned to {SEGMENT_BYTES} bytes")]
    Misaligned {
        /// Its address.
        address: usize,
    },
    /// The region has no whole segment, or more than can be named.
    #[error("arena of {len} bytes; it must have 1 to {SEGMENTS_MAX} segments of {SEGMENT_BYTES}")]
    Size {
        /// Its length in bytes.
        len: usize,
    },
    /// All logs that were planned for at construction are open.
    #[error("all {max} logs of the arena are open")]
    LogsFull {
        /// How many logs the arena was made for.
        max: usize,
    },
    /// More is promised than there is.
    #[error("{wanted} segments to be reserved, {available} are not promised yet")]
    Reservation {
        /// Segments asked for.
        wanted: u32,
        /// Segments that are neither reserved nor in use beyond a reservation.
        available: u32,
    },
    /// The log's limit is below its reservation or below one segment.
    #[error("limit of {limit} segments is below the {reserved} reserved, or none")]
    Limit {
        /// The limit in segments.
        limit: u32,
        /// The reservation in segments.
        reserved: u32,
    },
}

/// A log of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(u16);

/// How much of the arena a log may hold. Bytes are rounded up to whole segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Memory that only this log may take.
    pub reserved_bytes: u64,
    /// Memory that it may hold at most, at least the reservation and one segment.
    pub limit_bytes: u64,
}

impl LogLimits {
    /// A log that has exactly `bytes`, and no more.
    pub const fn exactly(bytes: u64) -> Self {
        Self { reserved_bytes: bytes, limit_bytes: bytes }
    }

    /// How many bytes of records ([`record_bytes`], alignment padding included)
    /// the reservation surely holds when records of a set are freed together and
    /// sets in order: two segments may be pinned by the sets at both ends, and
    /// each other one loses at most a record of `payload_max` bytes at its end.
    pub const fn budget_bytes(self, payload_max: usize) -> u64 {
        let segments = segments_of(self.reserved_bytes) as u64;
        let usable = SEGMENT_BYTES - record_bytes(payload_max);
        segments.saturating_sub(2) * usable as u64
    }
}

/// What a log holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Records that are not freed.
    pub live_records: u64,
    /// Their bytes, headers and padding to a line included.
    pub live_bytes: u64,
    /// Memory taken from the pool: whole segments.
    pub held_bytes: u64,
    /// Records ever appended.
    pub appended: u64,
    /// Appends that found no room.
    pub refused: u64,
}

/// Bytes that a record takes: its header and its payload filled up to a line.
/// Alignment beyond a line may add up to one alignment less a line.
pub const fn record_bytes(payload_len: usize) -> usize {
    HEADER_BYTES + payload_len.next_multiple_of(LINE)
}

const fn segments_of(bytes: u64) -> u32 {
    let segments = bytes.div_ceil(SEGMENT_BYTES as u64);
    if segments > SEGMENTS_MAX as u64 { SEGMENTS_MAX as u32 } else { segments as u32 }
}

struct Log {
    /// The segment that appends go to, or none.
    current: u32,
    held: u32,
    reserved: u32,
    limit: u32,
    usage: LogUsage,
}

impl Log {
    /// Segments that the log was promised and has not taken.
    fn owed(&self) -> u32 {
        self.reserved.saturating_sub(self.held)
    }
}

/// The record memory of one poller. See the module for the layout.
///
/// Made on the control thread, then owned by one poller.
pub struct Arena {
    base: NonNull<u8>,
    segments: Box<[Segment]>,
    logs: Vec<Log>,
    /// Head of the list of free segments, newest first.
    free_head: u32,
    free: u32,
    /// Sum of [`Log::owed`] over all logs; never more than `free`.
    owed: u32,
    copier: Copier,
    store: Store,
    heap: Option<Layout>,
    #[cfg(debug_assertions)]
    live: segment::LiveMap,
}

// SAFETY: an arena is the only owner of its region (the promise of `from_raw`),
// and nothing in it is bound to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena over memory of the caller, for up to `logs_max` logs. What is left
    /// of `len` beyond whole segments is not used.
    ///
    /// # Errors
    ///
    /// When the region is not aligned to a segment or has no segment.
    ///
    /// # Safety
    ///
    /// The region is initialised, valid for reads and writes for the life of the
    /// arena, and nobody else writes to it except through pointers got from here.
    pub unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        logs_max: usize,
    ) -> Result<Self, ArenaError> {
        if !base.addr().get().is_multiple_of(SEGMENT_BYTES) {
            return Err(ArenaError::Misaligned { address: base.addr().get() });
        }
        let count = len / SEGMENT_BYTES;
        if !(1..=SEGMENTS_MAX).contains(&count) {
            return Err(ArenaError::Size { len });
        }
        let logs_max = logs_max.min(usize::from(u16::MAX));
        let mut arena = Self {
            base,
            segments: (0..count).map(|_| Segment::default()).collect(),
            logs: Vec::with_capacity(logs_max),
            free_head: NO_SEGMENT,
            free: 0,
            owed: 0,
            copier: Copier::detect(),
            store: Store::Streaming,
            heap: None,
            #[cfg(debug_assertions)]
            live: segment::LiveMap::new(count),
        };
        for index in (0..count as u32).rev() {
            arena.give_back(index);
        }
        Ok(arena)
    }

    /// An arena of `len` bytes of ordinary memory, for tests and for machines
    /// without hugepages. Devices cannot reach it.
    ///
    /// # Errors
    ///
    /// When `len` has no whole segment.
    pub fn heap(len: usize, logs_max: usize) -> Result<Self, ArenaError> {
        let len = len / SEGMENT_BYTES * SEGMENT_BYTES;
        let layout = Layout::from_size_align(len, SEGMENT_BYTES)
            .ok()
            .filter(|layout| layout.size() > 0)
            .ok_or(ArenaError::Size { len })?;
        // SAFETY: the size is not zero.
        let Some(base) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        // SAFETY: freshly allocated, zeroed, and owned by the arena, which frees it.
        match unsafe { Self::from_raw(base, len, logs_max) } {
            Ok(mut arena) => {
                arena.heap = Some(layout);
                Ok(arena)
            }
            Err(error) => {
                // SAFETY: allocated above with this layout.
                unsafe { dealloc(base.as_ptr(), layout) };
                Err(error)
            }
        }
    }

    /// How payloads are written from now on. [`Store::Streaming`] at first.
    pub fn set_store(&mut self, store: Store) {
        self.store = store;
    }

    /// The copy routines in use.
    pub fn copier(&self) -> Copier {
        self.copier
    }

    /// Opens a log.
    ///
    /// # Errors
    ///
    /// When no more logs were planned for, the limits contradict each other, or
    /// more is reserved than is left.
    pub fn open_log(&mut self, limits: LogLimits) -> Result<LogId, ArenaError> {
        if self.logs.len() == self.logs.capacity() {
            return Err(ArenaError::LogsFull { max: self.logs.capacity() });
        }
        let log = LogId(self.logs.len() as u16);
        let usage = LogUsage::default();
        self.logs.push(Log { current: NO_SEGMENT, held: 0, reserved: 0, limit: 1, usage });
        match self.set_limits(log, limits) {
            Ok(()) => Ok(log),
            Err(error) => {
                self.logs.pop();
                Err(error)
            }
        }
    }

    /// Changes the limits of a log. A lower limit takes effect as records are
    /// freed.
    ///
    /// # Errors
    ///
    /// As for [`open_log`](Self::open_log); the old limits then stay.
    pub fn set_limits(&mut self, log: LogId, limits: LogLimits) -> Result<(), ArenaError> {
        let reserved = segments_of(limits.reserved_bytes);
        let limit = segments_of(limits.limit_bytes);
        if limit == 0 || limit < reserved {
            return Err(ArenaError::Limit { limit, reserved });
        }
        let entry = &mut self.logs[usize::from(log.0)];
        let others = self.owed - entry.owed();
        let owed = reserved.saturating_sub(entry.held);
        let available = self.free - others;
        if owed > available {
            let available = available + entry.held.min(reserved);
            return Err(ArenaError::Reservation { wanted: reserved, available });
        }
        entry.reserved = reserved;
        entry.limit = limit;
        self.owed = others + owed;
        Ok(())
    }

    /// Reserves a record whose payload has `payload_len` bytes and starts at a
    /// multiple of `align`, a power of two of at most [`ALIGN_MAX`] (a line is the
    /// least). `None` when the log is at its limit or the pool is empty.
    ///
    /// The contents are whatever was there before.
    ///
    /// # Panics
    ///
    /// When the payload is larger than [`PAYLOAD_BYTES_MAX`] or `align` is not
    /// allowed: limits that the front end has checked.
    #[inline]
    pub fn append(&mut self, log: LogId, payload_len: usize, align: usize) -> Option<BufRef> {
        assert!(payload_len <= PAYLOAD_BYTES_MAX, "payload of {payload_len} bytes");
        assert!(align.is_power_of_two() && align <= ALIGN_MAX, "alignment {align}");
        let mut current = self.logs[usize::from(log.0)].current;
        let mut taken = match self.segments.get_mut(current as usize) {
            Some(segment) => segment.take(payload_len, align),
            None => None,
        };
        if taken.is_none() {
            current = self.next_segment(log)?;
            taken = self.segments[current as usize].take(payload_len, align);
        }
        let (payload, slot) = taken?; // the largest record fits an empty segment
        let place = Place { segment: current, slot, payload, len: lines_of(payload_len) };
        let usage = &mut self.logs[usize::from(log.0)].usage;
        usage.live_records += 1;
        usage.live_bytes += place.record_bytes();
        usage.appended += 1;
        #[cfg(debug_assertions)]
        self.live.set(place);
        Some(place.pack())
    }

    /// Gives a record back.
    ///
    /// # Panics
    ///
    /// When it is not a live record: always when nothing is live in its segment,
    /// and in debug builds for every record freed twice.
    #[inline]
    pub fn free(&mut self, buf: BufRef) {
        let place = Place::unpack(buf);
        #[cfg(debug_assertions)]
        self.live.clear(place);
        let segment = &mut self.segments[place.segment as usize];
        assert!(segment.live > 0, "record {buf} freed twice");
        segment.live -= 1;
        let emptied = segment.live == 0;
        let log = &mut self.logs[usize::from(segment.log)];
        log.usage.live_records -= 1;
        log.usage.live_bytes -= place.record_bytes();
        if !emptied {
            return;
        }
        segment.rewind();
        if log.current != place.segment || log.held > log.limit {
            if log.current == place.segment {
                log.current = NO_SEGMENT;
            }
            let owed = log.owed();
            log.held -= 1;
            self.owed += log.owed() - owed;
            self.give_back(place.segment);
        }
    }

    /// The log that a record is in.
    #[inline]
    pub fn log_of(&self, buf: BufRef) -> LogId {
        LogId(self.segments[Place::unpack(buf).segment as usize].log)
    }

    /// The header of a record.
    #[inline]
    pub fn header(&self, buf: BufRef) -> &[u8; HEADER_BYTES] {
        // SAFETY: `header_ptr` stays inside the region, which is initialised;
        // borrowing the arena keeps its own writers out.
        unsafe { &*self.header_ptr(buf).cast() }
    }

    /// The header of a record, to be written.
    #[inline]
    pub fn header_mut(&mut self, buf: BufRef) -> &mut [u8; HEADER_BYTES] {
        // SAFETY: as in `header`, with the arena borrowed exclusively.
        unsafe { &mut *self.header_ptr(buf).cast() }
    }

    /// The payload of a record, with the zeros that fill its last line.
    #[inline]
    pub fn payload(&self, buf: BufRef) -> &[u8] {
        let len = Place::unpack(buf).payload_bytes();
        // SAFETY: `payload_ptr` checks that the whole range is inside its segment;
        // the region is initialised.
        unsafe { std::slice::from_raw_parts(self.payload_ptr(buf), len) }
    }

    /// Where the header is, for devices. Valid until the record is freed.
    #[inline]
    pub fn header_ptr(&self, buf: BufRef) -> *mut u8 {
        let place = Place::unpack(buf);
        self.segment_base(place.segment).wrapping_add(place.header_offset())
    }

    /// Where the payload is, for devices: aligned as asked in
    /// [`append`](Self::append). Valid until the record is freed.
    #[inline]
    pub fn payload_ptr(&self, buf: BufRef) -> *mut u8 {
        let place = Place::unpack(buf);
        assert!(place.payload_end() <= SEGMENT_BYTES, "record {buf} is not of this arena");
        self.segment_base(place.segment).wrapping_add(place.payload_offset())
    }

    /// Copies the concatenation of `iovs` into the payload and returns its
    /// CRC-32C. See [`super::copy`] for when other cores may look.
    ///
    /// # Panics
    ///
    /// When the pieces are longer than the payload.
    ///
    /// # Safety
    ///
    /// Every piece is valid for reads of its length and overlaps no live record's
    /// payload that is being filled.
    #[inline]
    pub unsafe fn fill(&mut self, buf: BufRef, iovs: &[IoVec]) -> u32 {
        let len: usize = iovs.iter().map(|iov| iov.len).sum();
        assert!(len <= Place::unpack(buf).payload_bytes(), "{len} bytes into record {buf}");
        let dst = self.payload_ptr(buf);
        // SAFETY: the destination is aligned to a line, holds the length rounded up
        // to a line (checked above), and is ours; the pieces are the caller's promise.
        unsafe { self.copier.copy_crc32c(dst, iovs, self.store) }
    }

    /// As [`fill`](Self::fill), from one slice.
    #[inline]
    pub fn fill_from(&mut self, buf: BufRef, bytes: &[u8]) -> u32 {
        // SAFETY: a slice is readable, and no slice of the arena can be borrowed now.
        unsafe { self.fill(buf, &[IoVec::from(bytes)]) }
    }

    /// As [`fill`](Self::fill), from two slices, one after the other.
    #[inline]
    pub fn fill_from_two(&mut self, buf: BufRef, first: &[u8], second: &[u8]) -> u32 {
        let pieces = [IoVec::from(first), IoVec::from(second)];
        // SAFETY: slices are readable, and no slice of the arena can be borrowed now.
        unsafe { self.fill(buf, &pieces) }
    }

    /// The payload of a record, to be written piecemeal, with the zeros that fill its last line.
    #[inline]
    pub fn payload_mut(&mut self, buf: BufRef) -> &mut [u8] {
        let len = self.payload(buf).len();
        // SAFETY: as in `payload`, with the arena borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.payload_ptr(buf), len) }
    }

    /// What a log holds.
    pub fn usage(&self, log: LogId) -> LogUsage {
        let log = &self.logs[usize::from(log.0)];
        LogUsage { held_bytes: u64::from(log.held) * SEGMENT_BYTES as u64, ..log.usage }
    }

    /// Bytes of all segments, and of those that no log holds.
    pub fn capacity_bytes(&self) -> (u64, u64) {
        let bytes = SEGMENT_BYTES as u64;
        (self.segments.len() as u64 * bytes, u64::from(self.free) * bytes)
    }

    /// Takes a segment from the pool for `log`. The one before, full, is on its own
    /// from now on: it goes back when its last record is freed.
    #[cold]
    fn next_segment(&mut self, log: LogId) -> Option<u32> {
        let entry = &mut self.logs[usize::from(log.0)];
        let owed = entry.owed();
        let for_others = self.owed - owed;
        if entry.held >= entry.limit || self.free <= for_others {
            entry.usage.refused += 1;
            return None;
        }
        let index = self.free_head;
        let segment = &mut self.segments[index as usize];
        self.free_head = segment.next_free;
        self.free -= 1;
        segment.log = log.0;
        entry.current = index;
        entry.held += 1;
        self.owed = for_others + entry.owed();
        Some(index)
    }

    fn give_back(&mut self, index: u32) {
        self.segments[index as usize].next_free = self.free_head;
        self.free_head = index;
        self.free += 1;
    }

    #[inline]
    fn segment_base(&self, segment: u32) -> *mut u8 {
        let segment = segment as usize;
        assert!(segment < self.segments.len(), "segment {segment} is not of this arena");
        self.base.as_ptr().wrapping_add(segment * SEGMENT_BYTES)
    }

    /// Checks that every segment is counted once and every counter adds up. O(size);
    /// for tests.
    ///
    /// # Panics
    ///
    /// When something does not add up.
    pub fn invariants(&self) {
        let mut free = 0;
        let mut at = self.free_head;
        while at != NO_SEGMENT {
            let segment = &self.segments[at as usize];
            assert_eq!((segment.live, segment.is_unused()), (0, true), "free segment {at}");
            at = segment.next_free;
            free += 1;
        }
        assert_eq!(free, self.free, "free list");
        let held: u32 = self.logs.iter().map(|log| log.held).sum();
        assert_eq!(free + held, self.segments.len() as u32, "segments");
        let owed: u32 = self.logs.iter().map(Log::owed).sum();
        assert_eq!(owed, self.owed, "reservations");
        assert!(owed <= free, "{owed} segments promised, {free} free");
        let live: u64 = self.segments.iter().map(|segment| u64::from(segment.live)).sum();
        let counted: u64 = self.logs.iter().map(|log| log.usage.live_records).sum();
        assert_eq!(live, counted, "live records");
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(layout) = self.heap {
            // SAFETY: allocated with this layout in `heap`; the arena is its owner.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("segments", &self.segments.len())
            .field("free", &self.free)
            .field("logs", &self.logs.len())
            .finish_non_exhaustive()
    }
}

fn lines_of(bytes: usize) -> u32 {
    bytes.div_ceil(LINE) as u32
}
