//! Copies that this shard holds for others (G2): kept until their set is confirmed (invariant 8).
//!
//! Nothing is decided here; the responsible shard numbers, and the coordinator confirms.

use crate::proto::types::{BufRef, GroupId, Seq, SetId, ShardId, VolumeId};
use crate::wire::update::UpdateInfo;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

const NIL: u32 = u32::MAX;

/// One held copy.
#[derive(Clone, Copy, Debug)]
pub struct Mirrored {
    /// What the record says.
    pub info: UpdateInfo,
    /// The record.
    pub buf: BufRef,
    /// The responsible shard that sent it.
    pub from: ShardId,
    /// Its number turned out void.
    pub void: bool,
    /// This shard took it itself (G3): the peer whose grant it is charged against, and the bytes.
    pub(super) charge: Option<(u8, u32)>,
    next: u32,
}

#[derive(Debug)]
struct HeldSet {
    group: GroupId,
    set: SetId,
    head: u32,
}

/// All held copies, in lists per set.
#[derive(Debug)]
pub(super) struct MirrorStore {
    slots: Vec<Mirrored>,
    free: u32,
    used: u32,
    max: u32,
    sets: VecDeque<HeldSet>,
    /// The last confirmed set per group; copies of these are not kept.
    confirmed: Vec<(GroupId, SetId)>,
}

impl MirrorStore {
    /// A store of up to `max` copies for others, and `own` of forwarded updates.
    pub(super) fn new(max: u32, own: u32) -> Self {
        Self {
            slots: Vec::with_capacity((max + own) as usize),
            free: NIL,
            used: 0,
            max,
            sets: VecDeque::with_capacity(16),
            confirmed: Vec::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= self.max
    }

    pub(super) fn len(&self) -> u32 {
        self.used
    }

    pub(super) fn is_confirmed(&self, group: GroupId, set: SetId) -> bool {
        self.confirmed.iter().any(|(g, s)| *g == group && *s >= set)
    }

    /// Keeps a copy. The caller asked [`Self::is_full`], except for a record that is here anyway.
    pub(super) fn insert(
        &mut self,
        from: ShardId,
        info: UpdateInfo,
        buf: BufRef,
        charge: Option<(u8, u32)>,
    ) {
        let known =
            self.sets.iter().rposition(|held| held.group == info.group && held.set == info.set);
        let index = known.unwrap_or_else(|| {
            self.sets.push_back(HeldSet { group: info.group, set: info.set, head: NIL });
            self.sets.len() - 1
        });
        let held = &mut self.sets[index];
        let copy = Mirrored { info, buf, from, void: false, charge, next: held.head };
        self.used += 1;
        held.head = if self.free == NIL {
            self.slots.push(copy);
            (self.slots.len() - 1) as u32
        } else {
            let slot = self.free;
            self.free = self.slots[slot as usize].next;
            self.slots[slot as usize] = copy;
            slot
        };
    }

    /// Marks a number void; its copy stays until the set is confirmed.
    pub(super) fn void(&mut self, group: GroupId, set: SetId, volume: VolumeId, seq: Seq) {
        let Some(held) = self.sets.iter().find(|h| h.group == group && h.set == set) else {
            return;
        };
        let mut slot = held.head;
        while slot != NIL {
            let copy = &mut self.slots[slot as usize];
            if copy.info.volume == volume && copy.info.seq == seq {
                copy.void = true;
                return;
            }
            slot = copy.next;
        }
    }

    /// Drops every copy of the group's sets up to `set`, handing each to `free`.
    pub(super) fn confirm(&mut self, group: GroupId, set: SetId, mut free: impl FnMut(&Mirrored)) {
        match self.confirmed.iter_mut().find(|(g, _)| *g == group) {
            Some((_, last)) => *last = (*last).max(set),
            None => self.confirmed.push((group, set)),
        }
        let mut index = 0;
        while index < self.sets.len() {
            if self.sets[index].group != group || self.sets[index].set > set {
                index += 1;
                continue;
            }
            let Some(held) = self.sets.remove(index) else { break };
            let mut slot = held.head;
            while slot != NIL {
                let copy = &mut self.slots[slot as usize];
                free(copy);
                let next = copy.next;
                copy.next = self.free;
                self.free = slot;
                self.used -= 1;
                slot = next;
            }
        }
    }

    /// All held copies, set by set, newest first within a set.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Mirrored> {
        self.sets.iter().flat_map(move |held| {
            let first = (held.head != NIL).then(|| &self.slots[held.head as usize]);
            core::iter::successors(first, move |copy| {
                (copy.next != NIL).then(|| &self.slots[copy.next as usize])
            })
        })
    }
}
