//! Gives memory and journal back: release, eviction under pressure, retirement.
//!
//! A buffer is freed only when the journal has its record durably and neither the link to the
//! partner nor a write to a volume reads it. What must go and cannot yet waits in a short list.
//! Entries of applied sets are dropped in bounded batches, from `handle_timeout`.
//!
//! The journal is needed from the first record of the first set that is not applied, and never
//! beyond the newest durable applied mark of each group. When it becomes scarce, the coordinator is
//! told: see [`super`].

use super::sets::{FreshMark, Group};
use super::shard::SecondaryShard;
use super::store::{NIL, Tag};
use crate::proto::command::{Command, JournalEntry, JournalPos, RecordRole};
use crate::proto::limits::HOUSEKEEPING_BATCH;
use crate::proto::types::{Nanos, Seq, SetId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A mark that lies so many entries behind the end is written anew, so that an idle group does
/// not hold the journal.
const MARK_AGE_MAX: u64 = 4096;

/// What is to be given back.
#[derive(Clone, Default, Debug)]
pub(super) struct Room {
    /// Released entries whose record is not yet durable in the journal.
    waiting: Vec<u32>,
    /// Numbers of applied sets: volume, next, last.
    applied: VecDeque<(u32, u64, u64)>,
    /// Lists of entries kept for partners whose sets are applied everywhere.
    kept: VecDeque<u32>,
    /// Memory ran short and a journal flush is awaited.
    pressed: bool,
    /// An applied mark has moved: the journal may be needed from later on.
    moved: bool,
    retired: JournalPos,
    /// When housekeeping was last put off.
    now: Nanos,
}

impl Room {
    pub(super) fn drop_applied(&mut self, now: Nanos, volume: u32, first: Seq, last: Seq) {
        self.now = now;
        self.applied.push_back((volume, first.0, last.0));
    }
    fn has_work(&self) -> bool {
        !self.applied.is_empty() || !self.kept.is_empty()
    }
    /// Now, if housekeeping is due.
    pub(super) fn next_timeout(&self) -> Nanos {
        if self.has_work() { self.now } else { Nanos::NEVER }
    }
}

impl SecondaryShard {
    /// Forgets the entry, which is in no window and no list of kept ones any more; its buffer is
    /// freed as soon as nobody reads it.
    pub(super) fn release(&mut self, slot: u32) {
        self.slab.at_mut(slot).released = true;
        self.settle_release(slot);
    }

    /// Drops a released entry unless its buffer is in use: then the result that is awaited names
    /// the entry and comes here again, or the next journal flush does.
    pub(super) fn settle_release(&mut self, slot: u32) {
        let entry = self.slab.at(slot);
        if entry.buf.is_some() {
            if entry.mirroring || entry.writing || entry.position.is_none() {
                return;
            }
            if entry.ordinal > self.durable {
                self.room.waiting.push(slot);
                return;
            }
            self.free_buf(slot);
        }
        self.slab.remove(slot);
    }

    fn is_idle(&self, slot: u32) -> bool {
        let entry = self.slab.at(slot);
        !entry.mirroring
            && !entry.writing
            && entry.position.is_some()
            && entry.ordinal <= self.durable
    }

    fn free_buf(&mut self, slot: u32) {
        if let Some(buf) = self.slab.take_buf(slot) {
            self.commands.push_back(Command::Free { buf });
        }
    }

    /// A write from the buffer is done, and so is the entry's need of memory.
    pub(super) fn free_if_idle(&mut self, slot: u32) {
        if self.is_idle(slot) {
            self.free_buf(slot);
        }
    }

    /// See [`super::Secondary::handle_pressure`].
    pub fn handle_pressure(&mut self, _now: Nanos) {
        // A flush ends a unit of the journal, however small. So none while there is something to
        // evict without: each then covers about as much as the arena holds.
        if self.evict() == 0 {
            self.room.pressed = true;
            if self.durable == self.flushing {
                self.flush_journal();
            }
        }
    }

    /// See [`super::Secondary::handle_journal_room`].
    pub fn handle_journal_room(&mut self, scarce: Option<JournalPos>) {
        let before = core::mem::replace(&mut self.scarce, scarce);
        if before.is_some() != scarce.is_some() {
            self.send_journal_room();
        }
        if scarce.is_some() {
            self.retire();
        }
    }

    /// Frees buffers of records that the journal has, oldest first: the arena gives memory back
    /// in the order in which it was filled. Returns how many.
    fn evict(&mut self) -> usize {
        let before = self.counters.evicted;
        let mut next = self.slab.oldest();
        for _ in 0..HOUSEKEEPING_BATCH {
            let Some(slot) = next else { break };
            next = self.slab.newer(slot);
            if self.is_idle(slot) && !self.slab.at(slot).released {
                self.counters.evicted += 1;
                self.free_buf(slot);
            }
        }
        (self.counters.evicted - before) as usize
    }

    /// All sets up to `set` are applied everywhere: what is kept of them for partners may go.
    pub(super) fn drop_kept(&mut self, now: Nanos, group: usize, set: SetId) {
        let state = &mut self.groups[group];
        state.everywhere = state.everywhere.max(set);
        while let Some(kept) = state.kept.front()
            && kept.set <= set
        {
            self.room.now = now;
            self.room.kept.push_back(kept.head);
            state.kept.pop_front();
        }
    }

    /// Drops a bounded number of entries that are not needed any more.
    pub(super) fn housekeeping(&mut self, now: Nanos) {
        self.room.now = now;
        let mut left = HOUSEKEEPING_BATCH;
        while left > 0
            && let Some((volume, next, last)) = self.room.applied.pop_front()
        {
            let end = last.min(next.saturating_add(left as u64 - 1));
            for seq in next..=end {
                if let Some(slot) = self.volumes[volume as usize].window.take(Seq(seq)) {
                    self.release(slot);
                }
            }
            left -= (end - next + 1) as usize;
            if end < last {
                self.room.applied.push_front((volume, end + 1, last));
            }
        }
        while left > 0
            && let Some(slot) = self.room.kept.pop_front()
        {
            left -= 1;
            let entry = self.slab.at(slot);
            let (volume, seq, next) = (entry.volume as usize, entry.seq, entry.next_kept);
            debug_assert_eq!(entry.role, RecordRole::SecondaryMirror);
            self.kept[volume].take(seq);
            self.release(slot);
            if next != NIL {
                self.room.kept.push_front(next);
            }
        }
    }

    /// A journal flush is done: buffers, entries and journal that waited for it.
    pub(super) fn durable_frees_room(&mut self) {
        for slot in core::mem::take(&mut self.room.waiting) {
            self.settle_release(slot);
        }
        if core::mem::take(&mut self.room.pressed) {
            self.evict();
        }
        if core::mem::take(&mut self.room.moved) {
            self.retire();
        }
    }

    /// A newer applied mark is durable.
    pub(super) fn settle_mark(&mut self, group: usize) {
        let durable = self.durable;
        let state = &mut self.groups[group];
        if let Some(FreshMark { ordinal, position: Some(position), .. }) = state.fresh_mark
            && ordinal <= durable
        {
            state.mark = Some(position);
            state.fresh_mark = None;
            self.room.moved = true;
        }
    }

    /// Appends an applied mark; returns its turn in the journal.
    pub(super) fn append_mark(&mut self, group: usize, set: SetId) -> u64 {
        let entry = JournalEntry::Applied { group: self.groups[group].id, set };
        let ordinal = self.append(entry, Tag::Applied.token(group as u32, set.0 as u32));
        let state = &mut self.groups[group];
        state.fresh_mark = Some(FreshMark { set, ordinal, position: None });
        state.mark_ordinal = ordinal;
        ordinal
    }

    /// Says from where the journal is still needed, and moves marks that hold it.
    fn retire(&mut self) {
        let mut floor: Option<JournalPos> = None;
        let mut moving = false;
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let sets = group.sets.iter().filter_map(|set| set.first_position);
            let kept = group.kept.iter().filter_map(|kept| kept.first_position);
            let needed = sets.chain(kept).chain(group.mark).min();
            floor = match (floor, needed) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let old = self.ordinal - group.mark_ordinal > MARK_AGE_MAX
                || (group.mark < self.scarce && group.mark.is_some());
            if old && needed.is_some() && needed == group.mark && group.fresh_mark.is_none() {
                let applied = group.applied;
                self.append_mark(index, applied);
                moving |= self.scarce.is_some();
            }
        }
        if floor.is_none()
            && self.scarce.is_some()
            && let Some(Group { applied, fresh_mark: None, .. }) = self.groups.first()
        {
            // Nothing in the journal is needed, not even a mark: what is there was forgotten by a
            // restart. A mark shows where that ends.
            let applied = *applied;
            self.append_mark(0, applied);
            moving = true;
        }
        if moving {
            self.flush_journal();
        }
        if let Some(before) = floor
            && before > self.room.retired
        {
            self.room.retired = before;
            self.commands.push_back(Command::JournalRetire { before });
        }
    }
}
