//! One segment's cursors, and where a record lies, packed into a [`BufRef`].

use super::{HEADER_BYTES, LINE, SEGMENT_BYTES};
use crate::proto::types::BufRef;

/// The end of the free list, and the current segment of a log that has none.
pub(super) const NO_SEGMENT: u32 = u32::MAX;

const LINES: usize = SEGMENT_BYTES / LINE;
const SLOTS: usize = SEGMENT_BYTES / HEADER_BYTES;

/// Book-keeping of a segment. In ordinary memory, so that devices that write into
/// the arena cannot damage it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Records that are not freed.
    pub(super) live: u32,
    /// Headers handed out since it was empty, counted from the back.
    slots: u16,
    /// Lines of payload handed out since it was empty, counted from the front.
    lines: u16,
    /// The log that holds it; meaningless while free.
    pub(super) log: u16,
    /// The next free segment; meaningless while held.
    pub(super) next_free: u32,
}

impl Default for Segment {
    fn default() -> Self {
        Self { live: 0, slots: 0, lines: 0, log: 0, next_free: NO_SEGMENT }
    }
}

impl Segment {
    /// Takes room for a record: the payload's first line and the header's slot.
    #[inline]
    pub(super) fn take(&mut self, payload_len: usize, align: usize) -> Option<(u32, u32)> {
        // Without a payload nothing needs aligning.
        let align = if payload_len == 0 { 1 } else { (align / LINE).max(1) };
        let first = usize::from(self.lines).next_multiple_of(align);
        let end = first + payload_len.div_ceil(LINE);
        let slot = usize::from(self.slots);
        if end * LINE + (slot + 1) * HEADER_BYTES > SEGMENT_BYTES {
            return None;
        }
        self.lines = end as u16;
        self.slots = slot as u16 + 1;
        self.live += 1;
        Some((first as u32, slot as u32))
    }

    /// Starts over, with no record live.
    #[inline]
    pub(super) fn rewind(&mut self) {
        self.slots = 0;
        self.lines = 0;
    }

    pub(super) fn is_unused(&self) -> bool {
        self.slots == 0 && self.lines == 0
    }
}

/// Where a record lies. Packed, from the high bits:
///
/// ```text
///   20 bits segment | 15 bits first payload line | 14 bits header slot | 15 bits payload lines
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u32,
    /// First line of the payload, from the front of the segment.
    pub(super) payload: u32,
    /// Number of the header, from the back of the segment.
    pub(super) slot: u32,
    /// Lines of the payload.
    pub(super) len: u32,
}

const LEN_BITS: u32 = 15;
const SLOT_BITS: u32 = 14;
const PAYLOAD_BITS: u32 = 15;
const SEGMENT_BITS: u32 = 20;

const _: () = assert!(LEN_BITS + SLOT_BITS + PAYLOAD_BITS + SEGMENT_BITS == 64);
const _: () = assert!(super::SEGMENTS_MAX == 1 << SEGMENT_BITS);
const _: () = assert!(LINES == 1 << PAYLOAD_BITS && SLOTS == 1 << SLOT_BITS);
const _: () = assert!(super::PAYLOAD_BYTES_MAX / LINE < 1 << LEN_BITS);

impl Place {
    #[inline]
    pub(super) fn pack(self) -> BufRef {
        let mut bits = u64::from(self.segment);
        bits = bits << PAYLOAD_BITS | u64::from(self.payload);
        bits = bits << SLOT_BITS | u64::from(self.slot);
        BufRef(bits << LEN_BITS | u64::from(self.len))
    }

    #[inline]
    pub(super) fn unpack(buf: BufRef) -> Self {
        let field = |shift: u32, bits: u32| (buf.0 >> shift) as u32 & ((1 << bits) - 1);
        Self {
            segment: field(LEN_BITS + SLOT_BITS + PAYLOAD_BITS, SEGMENT_BITS),
            payload: field(LEN_BITS + SLOT_BITS, PAYLOAD_BITS),
            slot: field(LEN_BITS, SLOT_BITS),
            len: field(0, LEN_BITS),
        }
    }

    /// Bytes of the payload, filled up to a line.
    #[inline]
    pub(super) fn payload_bytes(self) -> usize {
        self.len as usize * LINE
    }

    #[inline]
    pub(super) fn payload_offset(self) -> usize {
        self.payload as usize * LINE
    }

    /// One past the payload, from the front of the segment. May lie beyond the
    /// segment in a reference that no arena gave.
    #[inline]
    pub(super) fn payload_end(self) -> usize {
        self.payload_offset() + self.payload_bytes()
    }

    /// Always inside the segment: a slot has no more values than fit.
    #[inline]
    pub(super) fn header_offset(self) -> usize {
        SEGMENT_BYTES - (self.slot as usize + 1) * HEADER_BYTES
    }

    #[inline]
    pub(super) fn record_bytes(self) -> u64 {
        (HEADER_BYTES + self.payload_bytes()) as u64
    }
}

/// Which header slots are live, to catch a record freed twice in debug builds.
#[cfg(debug_assertions)]
pub(super) struct LiveMap {
    words: Box<[u64]>,
}

#[cfg(debug_assertions)]
impl LiveMap {
    pub(super) fn new(segments: usize) -> Self {
        Self { words: vec![0; segments * SLOTS / 64].into_boxed_slice() }
    }

    fn bit(place: Place) -> (usize, u64) {
        let slot = place.segment as usize * SLOTS + place.slot as usize;
        (slot / 64, 1 << (slot % 64))
    }

    pub(super) fn set(&mut self, place: Place) {
        let (word, bit) = Self::bit(place);
        assert!(self.words[word] & bit == 0, "slot handed out twice: {place:?}");
        self.words[word] |= bit;
    }

    pub(super) fn clear(&mut self, place: Place) {
        let (word, bit) = Self::bit(place);
        assert!(self.words[word] & bit != 0, "record freed twice: {place:?}");
        self.words[word] &= !bit;
    }
}
