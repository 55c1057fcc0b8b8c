//! A unit from its opening to the completion of its write.
//!
//! ```text
//!   |<------- meta blocks ------->|<----------- payload blocks ----------->|
//!   | unit header | entry | entry | payload | pad | payload payload ...    |
//!        stage                      arena    zeros   stage (small ones)
//! ```

use super::format::{
    self, BLOCK_BYTES, KIND_ENTRIES, KIND_PAD, SMALL_ALIGN, UNIT_HEADER_BYTES, UnitInfo,
};
use super::geometry::{Shape, position_of};
use super::stage::{Stage, ZEROS_AT};
use super::{Entry, JournalPos, Piece};
use crate::mem::Copier;
use crate::proto::types::BufRef;

/// Where a unit stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not in use.
    Empty,
    /// Takes entries.
    Open,
    /// Complete; its write is not issued yet.
    Sealed,
    /// Its write is on the way.
    Writing,
    /// Its write is completed; units before it may not be.
    Written,
}

/// How large an open unit may become, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Room {
    /// With records in it.
    pub(super) records: u64,
    /// With manifests and marks, for which space is kept.
    pub(super) control: u64,
}

/// One unit. Its memory is used again for later units.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) state: State,
    /// Logical block of its start.
    pub(super) start: u64,
    /// Its length in blocks; final when sealed.
    pub(super) blocks: u64,
    pub(super) pieces: Vec<Piece>,
    /// Stage blocks to give back.
    pub(super) staged: usize,
    room: Room,
    /// Where the meta area is in the stage.
    meta_at: usize,
    meta_len: usize,
    meta_max: usize,
    entries: u16,
    /// Distance from the start to the least position of the next entry; never beyond
    /// `covered`.
    next: usize,
    /// Distance from the start to the end of the last payload.
    end: usize,
    /// Distance from the start up to where pieces reach; whole blocks.
    covered: usize,
    /// Where the last covered block is in the stage, if it is there and may be
    /// filled further.
    tail_at: Option<usize>,
}

/// Why an entry does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Misfit {
    /// The unit is as large as it may become.
    Unit,
    /// The stage is taken.
    Stage,
}

/// Where an entry would go.
struct Plan {
    /// Distance of its position from the start of the unit.
    at: usize,
    /// Blocks to be added to the unit.
    blocks: usize,
}

impl Unit {
    /// Most pieces: the meta area, and per entry its payload and the padding behind.
    pub(super) fn new(shape: Shape) -> Self {
        let entries = (shape.meta_bytes() - UNIT_HEADER_BYTES) / format::ENTRY_BYTES;
        Self {
            state: State::Empty,
            start: 0,
            blocks: 0,
            pieces: Vec::with_capacity(1 + 2 * entries),
            staged: 0,
            room: Room { records: 0, control: 0 },
            meta_at: 0,
            meta_len: 0,
            meta_max: 0,
            entries: 0,
            next: 0,
            end: 0,
            covered: 0,
            tail_at: None,
        }
    }

    /// Starts an empty unit at the logical block `start`. The stage has room for its
    /// `meta_blocks`.
    pub(super) fn open<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        start: u64,
        meta_blocks: u16,
        room: Room,
        stage: &mut Stage<M>,
    ) {
        let blocks = usize::from(meta_blocks);
        let (meta_at, staged) = stage.take(blocks);
        self.state = State::Open;
        self.start = start;
        self.blocks = 0;
        self.pieces.clear();
        self.pieces.push(Piece::Stage { at: meta_at, len: blocks * BLOCK_BYTES });
        self.staged = staged;
        self.room = room;
        self.meta_at = meta_at;
        self.meta_len = UNIT_HEADER_BYTES;
        self.meta_max = blocks * BLOCK_BYTES;
        self.entries = 0;
        self.next = 0;
        self.end = self.meta_max;
        self.covered = self.meta_max;
        self.tail_at = None;
    }

    /// What it takes on the device so far, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.covered as u64
    }

    /// One past the last position given out.
    pub(super) fn next_position(&self) -> JournalPos {
        JournalPos(position_of(self.start).0 + self.next as u64)
    }

    fn plan(&self, len: usize, by_reference: bool) -> Plan {
        let at = if len == 0 {
            // Positions must ascend and be different. One inside the range of the last
            // payload, or of the meta area, serves.
            self.next
        } else if len < BLOCK_BYTES && self.tail_at.is_some() {
            self.next.max(self.end).next_multiple_of(SMALL_ALIGN)
        } else {
            // At a block of its own, so that it can be read back straight into place.
            self.covered
        };
        // An entry without payload needs a byte to stand on all the same.
        let end = at + len.max(1);
        debug_assert!(!by_reference || at == self.covered);
        Plan { at, blocks: end.saturating_sub(self.covered).div_ceil(BLOCK_BYTES) }
    }

    /// Adds an entry and returns its position, or says why it cannot and changes
    /// nothing. With `buf`, the payload (of a block or more) is written from there.
    pub(super) fn add<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        entry: &Entry<'_>,
        buf: Option<BufRef>,
        stage: &mut Stage<M>,
        copier: Copier,
    ) -> Result<JournalPos, Misfit> {
        let payload = entry.payload();
        let Plan { at, blocks } = self.plan(payload.len(), buf.is_some());
        let room = if entry.is_record() { self.room.records } else { self.room.control };
        if self.meta_len + entry.meta_bytes() > self.meta_max
            || (self.covered / BLOCK_BYTES + blocks) as u64 > room
        {
            return Err(Misfit::Unit);
        }
        match buf {
            Some(buf) => self.add_reference(buf, payload.len()),
            None if payload.is_empty() => self.add_zeros(blocks),
            None if blocks > 0 && !stage.fits(&[blocks]) => return Err(Misfit::Stage),
            None => self.add_copy(payload, at, blocks, stage),
        }
        let payload_crc = match *entry {
            Entry::Record { payload_crc, .. } => payload_crc,
            _ => copier.crc32c(payload),
        };
        let meta = stage.bytes_mut(self.meta_at + self.meta_len, entry.meta_bytes());
        format::put_entry(meta, entry, at as u32, payload_crc);
        self.meta_len += entry.meta_bytes();
        self.entries += 1;
        self.next = at + 1;
        if !payload.is_empty() {
            self.end = at + payload.len();
        }
        debug_assert!(self.next <= self.covered && self.end <= self.covered);
        Ok(JournalPos(position_of(self.start).0 + at as u64))
    }

    fn add_zeros(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.pieces.push(Piece::Stage { at: ZEROS_AT, len: BLOCK_BYTES });
            self.covered += BLOCK_BYTES;
            self.tail_at = None;
        }
    }

    fn add_reference(&mut self, buf: BufRef, len: usize) {
        self.pieces.push(Piece::Payload { buf, len });
        let pad = len.next_multiple_of(BLOCK_BYTES) - len;
        if pad > 0 {
            self.pieces.push(Piece::Stage { at: ZEROS_AT, len: pad });
        }
        self.covered += len + pad;
        self.tail_at = None;
    }

    fn add_copy<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        payload: &[u8],
        at: usize,
        stage_blocks: usize,
        stage: &mut Stage<M>,
    ) {
        // What fits goes behind the last payload, the rest to new blocks.
        let (first, rest) = payload.split_at(payload.len().min(self.covered - at));
        if let Some(tail_at) = self.tail_at {
            let inside = at - (self.covered - BLOCK_BYTES).min(at);
            stage.bytes_mut(tail_at + inside, first.len()).copy_from_slice(first);
        }
        if stage_blocks == 0 {
            return;
        }
        let (stage_at, staged) = stage.take(stage_blocks);
        let len = stage_blocks * BLOCK_BYTES;
        stage.bytes_mut(stage_at, rest.len()).copy_from_slice(rest);
        match self.pieces.last_mut() {
            Some(Piece::Stage { at, len: before })
                if *at + *before == stage_at && self.tail_at.is_some() =>
            {
                *before += len;
            }
            _ => self.pieces.push(Piece::Stage { at: stage_at, len }),
        }
        self.staged += staged;
        self.covered += len;
        self.tail_at = Some(stage_at + len - BLOCK_BYTES);
    }

    /// Ends the unit: its header is written and its length is final.
    pub(super) fn seal<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        journal: [u8; 16],
        generation: u64,
        stage: &mut Stage<M>,
        copier: Copier,
    ) {
        self.blocks = (self.covered / BLOCK_BYTES) as u64;
        self.seal_as(KIND_ENTRIES, journal, generation, stage, copier);
    }

    /// Ends a unit without entries that stands for `blocks` blocks of nothing. Only
    /// its header is written.
    pub(super) fn seal_pad<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        blocks: u64,
        journal: [u8; 16],
        generation: u64,
        stage: &mut Stage<M>,
        copier: Copier,
    ) {
        self.blocks = blocks;
        self.seal_as(KIND_PAD, journal, generation, stage, copier);
    }

    fn seal_as<M: AsRef<[u8]> + AsMut<[u8]>>(
        &mut self,
        kind: u8,
        journal: [u8; 16],
        generation: u64,
        stage: &mut Stage<M>,
        copier: Copier,
    ) {
        let info = UnitInfo {
            journal,
            kind,
            position: self.start,
            generation,
            blocks: self.blocks as u32,
            meta_blocks: (self.meta_max / BLOCK_BYTES) as u16,
            entries: self.entries,
            meta_len: self.meta_len as u32,
        };
        info.seal(stage.bytes_mut(self.meta_at, self.meta_max), copier);
        self.state = State::Sealed;
    }

    /// Bytes to be written: all pieces.
    pub(super) fn write_bytes(&self) -> usize {
        self.pieces.iter().map(Piece::len).sum()
    }
}
