//! Where received updates are kept: a slab of entries, and per volume a window of numbers.
//!
//! An entry describes one update that this shard owns (transferred to it) or keeps for a partner
//! (mirrored to it); the payload stays in the arena or the journal. Slab and windows keep their
//! memory, so that nothing is allocated per update once they have grown to the working size.
//! Entries with a record in the arena are linked in order of arrival: the arena gives memory back
//! in runs, so under pressure the oldest go first.
//!
//! It does not know about sets being complete (`sets`) nor about writing to volumes (`apply`).

use crate::proto::command::{JournalPos, RecordRole, Token};
use crate::proto::types::{BufRef, Extent, Seq, SetId, UpdateKind};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// No slot.
pub(super) const NIL: u32 = u32::MAX;
/// Generations are this wide in tokens.
const GENERATION_MASK: u32 = 0x00ff_ffff;

/// What a token is about; its upper byte. Bit 7 marks the coordinator's tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Tag {
    /// A record in the journal.
    Record = 1,
    /// A manifest in the journal.
    Manifest = 2,
    /// An applied mark in the journal.
    Applied = 3,
    /// A journal flush; the rest is the ordinal up to which it reaches.
    JournalFlush = 4,
    /// A write to a volume.
    Write = 5,
    /// A flush of a volume.
    VolumeFlush = 6,
}

impl Tag {
    /// A token of this tag; `high` has 24 bits.
    pub(super) const fn token(self, high: u32, low: u32) -> Token {
        Token((self as u64) << 56 | ((high & GENERATION_MASK) as u64) << 32 | low as u64)
    }
    /// A token of this tag with a value of 56 bits.
    pub(super) const fn wide(self, value: u64) -> Token {
        Token((self as u64) << 56 | (value & (u64::MAX >> 8)))
    }
    /// Whether `token` has this tag.
    pub(super) const fn marks(self, token: Token) -> bool {
        token.0 >> 56 == self as u64
    }
}

/// The upper 24 bits below the tag, and the lower 32.
pub(super) const fn halves(token: Token) -> (u32, u32) {
    ((token.0 >> 32) as u32 & GENERATION_MASK, token.0 as u32)
}

/// One received update.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `Transfer`: an own one; `SecondaryMirror`: kept for a partner.
    pub(super) role: RecordRole,
    pub(super) kind: UpdateKind,
    /// Own: index of the volume in the shard. Kept for a partner: index among the kept volumes.
    pub(super) volume: u32,
    /// Index of the group in the shard.
    pub(super) group: u16,
    pub(super) seq: Seq,
    pub(super) set: SetId,
    pub(super) extent: Extent,
    pub(super) payload_bytes: u32,
    /// Its contribution to the facts.
    pub(super) digest: u64,
    /// The record in the arena, until evicted.
    pub(super) buf: Option<BufRef>,
    /// Where it lies in the journal, once known.
    pub(super) position: Option<JournalPos>,
    /// Its turn among all that was appended to the journal; 0: durable since before the start.
    pub(super) ordinal: u64,
    /// Handed to the link for the partner, which has not stored it yet.
    pub(super) mirroring: bool,
    /// A write of its payload to the volume is under way.
    pub(super) writing: bool,
    /// No longer known; waits only for its buffer to be unused.
    pub(super) released: bool,
    /// The next entry kept for a partner of the same set.
    pub(super) next_kept: u32,
}

impl Entry {
    /// Whether journal and mirror have it, as far as a set's completeness asks.
    pub(super) fn is_safe(&self) -> bool {
        self.position.is_some() && !self.mirroring
    }
}

#[derive(Clone, Debug)]
struct Cell {
    entry: Option<Entry>,
    generation: u32,
    older: u32,
    newer: u32,
    /// In the list of entries that hold a buffer.
    listed: bool,
}

/// All entries of a shard.
#[derive(Clone, Debug)]
pub(super) struct Slab {
    cells: Vec<Cell>,
    unused: Vec<u32>,
    oldest: u32,
    newest: u32,
}

impl Slab {
    pub(super) fn new() -> Self {
        Self { cells: Vec::new(), unused: Vec::new(), oldest: NIL, newest: NIL }
    }
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.cells.len() - self.unused.len()
    }
    /// All entries, in no order. For status.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.cells.iter().filter_map(|cell| cell.entry.as_ref())
    }
    pub(super) fn insert(&mut self, entry: Entry) -> u32 {
        let slot = self.unused.pop().unwrap_or_else(|| {
            self.cells.push(Cell {
                entry: None,
                generation: 0,
                older: NIL,
                newer: NIL,
                listed: false,
            });
            (self.cells.len() - 1) as u32
        });
        let list = entry.buf.is_some();
        self.cells[slot as usize].entry = Some(entry);
        if list {
            self.append(slot);
        }
        slot
    }
    pub(super) fn remove(&mut self, slot: u32) {
        self.unlist(slot);
        let cell = &mut self.cells[slot as usize];
        cell.entry = None;
        cell.generation = (cell.generation + 1) & GENERATION_MASK;
        self.unused.push(slot);
    }
    /// # Panics
    /// When the slot is empty: an error of this module's users.
    pub(super) fn at(&self, slot: u32) -> &Entry {
        self.cells[slot as usize].entry.as_ref().expect("the slot is in use")
    }
    /// # Panics
    /// When the slot is empty: an error of this module's users.
    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Entry {
        self.cells[slot as usize].entry.as_mut().expect("the slot is in use")
    }
    pub(super) fn generation(&self, slot: u32) -> u32 {
        self.cells[slot as usize].generation
    }
    /// The entry that the lower part of a token names, unless the slot has had another user since.
    pub(super) fn named(&self, token: Token) -> Option<u32> {
        let (generation, slot) = halves(token);
        let cell = self.cells.get(slot as usize)?;
        (cell.entry.is_some() && cell.generation == generation).then_some(slot)
    }
    /// Forgets the entry's buffer and gives it back to be freed.
    pub(super) fn take_buf(&mut self, slot: u32) -> Option<BufRef> {
        self.unlist(slot);
        self.at_mut(slot).buf.take()
    }
    /// The entry, which has no buffer, has one again.
    pub(super) fn give_buf(&mut self, slot: u32, buf: BufRef) {
        self.at_mut(slot).buf = Some(buf);
        self.append(slot);
    }
    /// The entry with a buffer that arrived first.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NIL).then_some(self.oldest)
    }
    /// The entry with a buffer that arrived after `slot`.
    pub(super) fn newer(&self, slot: u32) -> Option<u32> {
        let newer = self.cells[slot as usize].newer;
        (newer != NIL).then_some(newer)
    }

    fn append(&mut self, slot: u32) {
        let older = self.newest;
        let cell = &mut self.cells[slot as usize];
        (cell.older, cell.newer, cell.listed) = (older, NIL, true);
        match self.cells.get_mut(older as usize) {
            Some(before) => before.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }
    fn unlist(&mut self, slot: u32) {
        let cell = &mut self.cells[slot as usize];
        if !cell.listed {
            return;
        }
        cell.listed = false;
        let (older, newer) = (cell.older, cell.newer);
        match self.cells.get_mut(older as usize) {
            Some(before) => before.newer = newer,
            None => self.oldest = newer,
        }
        match self.cells.get_mut(newer as usize) {
            Some(after) => after.older = older,
            None => self.newest = older,
        }
    }
}

/// Which slot holds which number of a volume: a deque over a range of numbers, holes included.
#[derive(Clone, Default, Debug)]
pub(super) struct SeqWindow {
    first: u64,
    slots: VecDeque<u32>,
}

impl SeqWindow {
    pub(super) fn get(&self, seq: Seq) -> Option<u32> {
        let slot = *self.slots.get(usize::try_from(seq.0.checked_sub(self.first)?).ok()?)?;
        (slot != NIL).then_some(slot)
    }
    /// All slots, in the order of numbers.
    pub(super) fn present(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().copied().filter(|slot| *slot != NIL)
    }
    /// Whether `seq` is within `reach` of the numbers here.
    pub(super) fn reaches(&self, seq: Seq, reach: u64) -> bool {
        self.slots.is_empty()
            || (seq.0.saturating_add(reach) >= self.first
                && seq.0 <= (self.first + self.slots.len() as u64).saturating_add(reach))
    }
    /// Puts `slot` under `seq`, which is free and within reach.
    pub(super) fn insert(&mut self, seq: Seq, slot: u32) {
        if self.slots.is_empty() {
            self.first = seq.0;
        }
        while seq.0 < self.first {
            self.slots.push_front(NIL);
            self.first -= 1;
        }
        let at = (seq.0 - self.first) as usize;
        while self.slots.len() <= at {
            self.slots.push_back(NIL);
        }
        self.slots[at] = slot;
    }
    /// Takes out what is under `seq`.
    pub(super) fn take(&mut self, seq: Seq) -> Option<u32> {
        let slot = self.get(seq)?;
        self.slots[(seq.0 - self.first) as usize] = NIL;
        while self.slots.front() == Some(&NIL) {
            self.slots.pop_front();
            self.first += 1;
        }
        while self.slots.back() == Some(&NIL) {
            self.slots.pop_back();
        }
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_window_is_a_map_of_numbers(
            steps in proptest::collection::vec((any::<bool>(), 1000..1100_u64), 0..300)
        ) {
            let mut window = SeqWindow::default();
            let mut oracle = BTreeMap::new();
            for (index, (put, seq)) in steps.into_iter().enumerate() {
                if put {
                    oracle.entry(seq).or_insert_with(|| {
                        window.insert(Seq(seq), index as u32);
                        index as u32
                    });
                } else {
                    prop_assert_eq!(window.take(Seq(seq)), oracle.remove(&seq));
                }
                for seq in 990..1110 {
                    prop_assert_eq!(window.get(Seq(seq)), oracle.get(&seq).copied());
                }
            }
        }
    }

    #[test]
    fn a_number_out_of_reach_is_seen_before_the_window_grows() {
        let mut window = SeqWindow::default();
        assert!(window.reaches(Seq(u64::MAX), 10));
        window.insert(Seq(100), 0);
        assert!(window.reaches(Seq(111), 10) && !window.reaches(Seq(112), 10));
        assert!(window.reaches(Seq(90), 10) && !window.reaches(Seq(89), 10));
    }

    #[test]
    fn a_token_of_a_slots_former_user_names_nothing() {
        let mut slab = Slab::new();
        let entry = Entry {
            role: RecordRole::Transfer,
            kind: UpdateKind::Write,
            volume: 0,
            group: 0,
            seq: Seq(1),
            set: SetId(1),
            extent: Extent { lba: 0, blocks: 1 },
            payload_bytes: 4096,
            digest: 0,
            buf: Some(BufRef(1)),
            position: None,
            ordinal: 1,
            mirroring: false,
            writing: false,
            released: false,
            next_kept: NIL,
        };
        let slot = slab.insert(entry.clone());
        let token = Tag::Record.token(slab.generation(slot), slot);
        assert_eq!(slab.named(token), Some(slot));
        slab.remove(slot);
        assert_eq!(slab.insert(entry), slot);
        assert_eq!(slab.named(token), None);
        assert_eq!((slab.oldest(), slab.newer(slot), slab.len()), (Some(slot), None, 1));
    }
}
