//! The sets of one group at one shard: open, closing, closed and not yet confirmed.
//!
//! Counts what has no fate yet, gathers the facts for the manifest (invariant 6) and remembers
//! which updates belong where. When to switch is the coordinator's word, not decided here.

use super::slab::NIL;
use crate::proto::message::VolumeFacts;
use crate::proto::types::{Nanos, Seq, SetId, VolumeId};
use crate::wire::update::{UpdateInfo, digest_of};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// One set at this shard.
#[derive(Debug)]
pub(super) struct OwnSet {
    pub id: SetId,
    /// Newest member in the slab; the list runs to older ones.
    pub head: u32,
    /// Members without a fate.
    pub unfinished: u32,
    /// The coordinator released it: base writes and acknowledgements may go (invariant 5).
    pub released: bool,
    /// New updates no longer go into it.
    pub switched: bool,
    /// The coordinator was told that it is closed.
    pub reported: bool,
    /// When this shard switched to it.
    pub opened_at: Nanos,
    /// The coordinator was asked to close it early.
    pub close_asked: bool,
    /// Bytes of its records, voids included.
    record_bytes: u64,
    /// By index of the volume at the shard; `last` 0 where there is nothing.
    facts: Vec<VolumeFacts>,
}

impl OwnSet {
    /// Counts a newly numbered update in.
    #[inline]
    fn add(&mut self, volume: usize, info: &UpdateInfo) {
        self.unfinished += 1;
        let facts = &mut self.facts[volume];
        if facts.last == Seq(0) {
            facts.first = info.seq;
        }
        facts.last = info.seq;
        facts.bytes += u64::from(info.payload_len);
        facts.digest = facts.digest.wrapping_add(digest_of(info));
    }

    /// Counts a number whose update nobody has.
    pub(super) fn gap(&mut self, volume: usize, seq: Seq) {
        let facts = &mut self.facts[volume];
        if facts.last == Seq(0) {
            facts.first = seq;
        }
        facts.last = seq;
        facts.voids.push(seq);
    }

    /// The last number of each volume that has any, by the volume's index.
    pub(super) fn lasts(&self) -> impl Iterator<Item = (usize, Seq)> {
        let all = self.facts.iter().enumerate();
        all.filter(|(_, facts)| facts.last != Seq(0)).map(|(index, facts)| (index, facts.last))
    }

    /// The first and the last number of the volume at this index, if it has any.
    pub(super) fn range(&self, volume: usize) -> Option<(Seq, Seq)> {
        let facts = &self.facts[volume];
        (facts.last != Seq(0)).then_some((facts.first, facts.last))
    }

    /// Takes the effect of an update out again: its number is void.
    pub(super) fn void(&mut self, volume: usize, info: &UpdateInfo) {
        let facts = &mut self.facts[volume];
        facts.bytes -= u64::from(info.payload_len);
        facts.digest = facts.digest.wrapping_sub(digest_of(info));
        if let Err(place) = facts.voids.binary_search(&info.seq) {
            facts.voids.insert(place, info.seq);
        }
    }

    /// Payload bytes of the volume at this index, voids excluded.
    pub(super) fn bytes(&self, volume: usize) -> u64 {
        self.facts[volume].bytes
    }

    /// The facts of the volumes that have numbers in the set.
    pub(super) fn facts(&self) -> Vec<VolumeFacts> {
        self.facts.iter().filter(|f| f.last != Seq(0)).cloned().collect()
    }
}

/// The sets of one group, oldest first; ids ascend.
#[derive(Debug)]
pub(super) struct OwnSets {
    sets: VecDeque<OwnSet>,
    /// Spent sets, kept for their memory.
    spare: Vec<OwnSet>,
    volumes: Vec<VolumeId>,
    /// Bytes of the records of all sets.
    record_bytes: u64,
}

impl OwnSets {
    pub(super) fn new(volumes: Vec<VolumeId>) -> Self {
        Self {
            sets: VecDeque::with_capacity(8),
            spare: Vec::with_capacity(8),
            volumes,
            record_bytes: 0,
        }
    }

    /// Counts a newly numbered update, whose record takes `record_bytes`, into the open set and
    /// returns that.
    #[inline]
    pub(super) fn add(
        &mut self,
        volume: usize,
        info: &UpdateInfo,
        record_bytes: u32,
    ) -> Option<&mut OwnSet> {
        let open = self.sets.back_mut()?;
        open.add(volume, info);
        open.record_bytes += u64::from(record_bytes);
        self.record_bytes += u64::from(record_bytes);
        Some(open)
    }

    /// Counts a record that this shard took for another one, and that has got its number, into the
    /// set that it is in, if that is known here yet: its memory is free when that is confirmed.
    pub(super) fn count_forward(&mut self, id: SetId, record_bytes: u32) {
        if let Some(set) = self.get_mut(id) {
            set.record_bytes += u64::from(record_bytes);
            self.record_bytes += u64::from(record_bytes);
        }
    }

    /// Whether closing the open set early would free much: a good part of what is retained is in
    /// it. Otherwise the sets before it are under way to be confirmed, which frees more.
    pub(super) fn is_open_set_worth_closing(&self) -> bool {
        self.open()
            .is_some_and(|open| open.record_bytes > 0 && 4 * open.record_bytes >= self.record_bytes)
    }

    /// The open set, if the first boundary has been.
    pub(super) fn open(&self) -> Option<&OwnSet> {
        self.sets.back()
    }

    pub(super) fn open_mut(&mut self) -> Option<&mut OwnSet> {
        self.sets.back_mut()
    }

    /// Counts a recovered update, whose record takes `record_bytes`, into its set, which is here.
    pub(super) fn recover(
        &mut self,
        volume: usize,
        info: &UpdateInfo,
        record_bytes: u32,
    ) -> Option<&mut OwnSet> {
        let set = self.sets.iter_mut().find(|set| set.id == info.set)?;
        set.add(volume, info);
        set.reported = false;
        set.record_bytes += u64::from(record_bytes);
        self.record_bytes += u64::from(record_bytes);
        Some(set)
    }

    /// Opens `id`, which is later than every other.
    pub(super) fn push(&mut self, id: SetId, now: Nanos) {
        let set = self.fresh(id, now);
        self.sets.push_back(set);
    }

    /// Makes sure that `id` is there, which is earlier than the open one: a set that this shard had
    /// no part in until it took a volume over.
    pub(super) fn ensure(&mut self, id: SetId, now: Nanos) {
        let at = self.sets.partition_point(|set| set.id < id);
        if self.sets.get(at).is_some_and(|set| set.id == id) {
            return;
        }
        let mut set = self.fresh(id, now);
        set.released = true;
        set.switched = true;
        self.sets.insert(at, set);
    }

    fn fresh(&mut self, id: SetId, now: Nanos) -> OwnSet {
        let mut set = self.spare.pop().unwrap_or_else(|| OwnSet {
            id,
            head: NIL,
            unfinished: 0,
            released: false,
            switched: false,
            reported: false,
            opened_at: now,
            close_asked: false,
            record_bytes: 0,
            facts: Vec::with_capacity(self.volumes.len()),
        });
        set.id = id;
        set.head = NIL;
        set.unfinished = 0;
        set.released = false;
        set.switched = false;
        set.reported = false;
        set.opened_at = now;
        set.close_asked = false;
        set.record_bytes = 0;
        set.facts.resize_with(self.volumes.len(), || VolumeFacts {
            volume: VolumeId(0),
            first: Seq(0),
            last: Seq(0),
            bytes: 0,
            digest: 0,
            voids: Vec::new(),
        });
        for (facts, volume) in set.facts.iter_mut().zip(&self.volumes) {
            facts.volume = *volume;
            facts.first = Seq(0);
            facts.last = Seq(0);
            facts.bytes = 0;
            facts.digest = 0;
            facts.voids.clear();
        }
        set
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: SetId) -> Option<&mut OwnSet> {
        self.sets.iter_mut().rev().find(|set| set.id == id)
    }

    /// Takes out the oldest set if it is at most `upto`; give it back with [`Self::recycle`].
    pub(super) fn pop_through(&mut self, upto: SetId) -> Option<OwnSet> {
        if self.sets.front().is_some_and(|set| set.id <= upto && set.reported) {
            let set = self.sets.pop_front()?;
            self.record_bytes -= set.record_bytes;
            Some(set)
        } else {
            None
        }
    }

    pub(super) fn recycle(&mut self, set: OwnSet) {
        self.spare.push(set);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &OwnSet> {
        self.sets.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut OwnSet> {
        self.sets.iter_mut()
    }
}
