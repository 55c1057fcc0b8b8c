//! Copies that this shard holds for others (G2): kept until their set is confirmed (invariant 8).
//!
//! Nothing is decided here; the responsible shard numbers, and the coordinator confirms.

use crate::proto::command::Token;
use crate::proto::types::{BufRef, GroupId, SetId, ShardId};
use crate::wire::update::UpdateInfo;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

const NIL: u32 = u32::MAX;
/// [`Mirrored::volume`] of a volume that the shard only holds copies of.
pub(super) const UNKNOWN: u32 = u32::MAX;

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
    /// It is a description: the header alone (G12).
    pub described: bool,
    /// This shard took it itself (G3): the peer whose grant it is charged against, and the bytes.
    pub(super) charge: Option<(u8, u32)>,
    /// Index of the volume at the shard; [`UNKNOWN`] when it takes no updates for it.
    pub(super) volume: u32,
    /// The mover that had it in its books failed, and whoever is responsible now may not have it yet.
    pub(super) orphan: bool,
    /// It is on its way to the mirror peer at this index, which takes its volume over (F5).
    pub(super) resent_to: Option<u8>,
    /// It was promised to the mirror peer at this index and was not sent yet.
    pub(super) owed_to: Option<u8>,
    /// It was its turn to go there while it still travelled, as an epoch before had it: then after that.
    pub(super) waits: bool,
    /// Needed no more; its record goes when it does not travel any more.
    dropped: bool,
    generation: u32,
    next: u32,
}

/// Token tag of a copy that is sent to the shard that takes its volume over.
pub(super) const TAG_RESEND: u8 = 0xfc;

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
        volume: u32,
        info: UpdateInfo,
        buf: BufRef,
        charge: Option<(u8, u32)>,
        described: bool,
    ) {
        let known =
            self.sets.iter().rposition(|held| held.group == info.group && held.set == info.set);
        let index = known.unwrap_or_else(|| {
            self.sets.push_back(HeldSet { group: info.group, set: info.set, head: NIL });
            self.sets.len() - 1
        });
        let held = &mut self.sets[index];
        let mut copy = Mirrored {
            info,
            buf,
            from,
            void: false,
            described,
            charge,
            volume,
            orphan: false,
            resent_to: None,
            owed_to: None,
            waits: false,
            dropped: false,
            generation: 1,
            next: held.head,
        };
        self.used += 1;
        held.head = if self.free == NIL {
            self.slots.push(copy);
            (self.slots.len() - 1) as u32
        } else {
            let slot = self.free;
            let place = &mut self.slots[slot as usize];
            self.free = place.next;
            copy.generation = place.generation.wrapping_add(1) & 0x00ff_ffff;
            *place = copy;
            slot
        };
    }

    /// The copies that `wanted` names, oldest sets first.
    pub(super) fn find(&self, wanted: impl Fn(&Mirrored) -> bool) -> Vec<u32> {
        let mut found = Vec::new();
        for held in &self.sets {
            let mut slot = held.head;
            while slot != NIL {
                let copy = &self.slots[slot as usize];
                if wanted(copy) {
                    found.push(slot);
                }
                slot = copy.next;
            }
        }
        found
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Mirrored {
        &mut self.slots[slot as usize]
    }

    /// The token of a copy's way to the shard that takes its volume over.
    pub(super) fn token(&self, slot: u32) -> Token {
        let generation = u64::from(self.slots[slot as usize].generation);
        Token(generation << 40 | u64::from(TAG_RESEND) << 32 | u64::from(slot))
    }

    /// The copy that such a token names, unless the slot has another use by now.
    pub(super) fn resolve(&self, token: Token) -> Option<u32> {
        let slot = token.0 as u32;
        let place = self.slots.get(slot as usize)?;
        let needed = !place.dropped || place.owed_to.is_some() || place.resent_to.is_some();
        (u64::from(place.generation) == token.0 >> 40 && needed).then_some(slot)
    }

    /// A copy does not travel any more: where it went, where it goes next if it waited for that, and
    /// its record if that may go now.
    pub(super) fn arrived(&mut self, token: Token) -> Option<(u8, Option<u8>, Option<BufRef>)> {
        let slot = token.0 as u32;
        let place = self.slots.get_mut(slot as usize)?;
        if u64::from(place.generation) != token.0 >> 40 {
            return None;
        }
        let to = place.resent_to.take()?;
        let next = if core::mem::take(&mut place.waits) { place.owed_to } else { None };
        Some((to, next, self.settle(slot)))
    }

    /// No copy travels to the peer at this index any more, and none is owed to it; hands out the
    /// records that may go now, and the copies that waited, with where they go next.
    pub(super) fn stop_resending(
        &mut self,
        to: u8,
        mut free: impl FnMut(BufRef),
        mut next: impl FnMut(u8, Token),
    ) {
        for slot in 0..self.slots.len() as u32 {
            let place = &mut self.slots[slot as usize];
            let concerned = place.owed_to == Some(to) || place.resent_to == Some(to);
            if place.owed_to == Some(to) {
                place.owed_to = None;
                place.waits = false;
            }
            if place.resent_to == Some(to) {
                place.resent_to = None;
                if core::mem::take(&mut place.waits)
                    && let Some(other) = place.owed_to
                {
                    next(other, self.token(slot));
                }
            }
            if concerned && let Some(buf) = self.settle(slot) {
                free(buf);
            }
        }
    }

    fn settle(&mut self, slot: u32) -> Option<BufRef> {
        let place = &mut self.slots[slot as usize];
        if !place.dropped || place.owed_to.is_some() || place.resent_to.is_some() {
            return None;
        }
        place.dropped = false;
        place.generation = place.generation.wrapping_add(1) & 0x00ff_ffff;
        place.next = self.free;
        let buf = place.buf;
        self.free = slot;
        self.used -= 1;
        Some(buf)
    }

    /// Takes the copies out that `wanted` names.
    pub(super) fn take_out(&mut self, wanted: impl Fn(&Mirrored) -> bool) -> Vec<Mirrored> {
        let mut out = Vec::new();
        for index in 0..self.sets.len() {
            let mut slot = core::mem::replace(&mut self.sets[index].head, NIL);
            while slot != NIL {
                let copy = &mut self.slots[slot as usize];
                let next = copy.next;
                if wanted(copy) {
                    out.push(*copy);
                    copy.generation = copy.generation.wrapping_add(1) & 0x00ff_ffff;
                    copy.next = self.free;
                    self.free = slot;
                    self.used -= 1;
                } else {
                    copy.next = core::mem::replace(&mut self.sets[index].head, slot);
                }
                slot = next;
            }
        }
        out
    }

    /// Marks a number void; its copy stays until the set is confirmed. False when there is none.
    pub(super) fn void(&mut self, info: &UpdateInfo) -> bool {
        let held = self.sets.iter().find(|h| h.group == info.group && h.set == info.set);
        let mut slot = held.map_or(NIL, |held| held.head);
        while slot != NIL {
            let copy = &mut self.slots[slot as usize];
            if (copy.info.volume, copy.info.seq) == (info.volume, info.seq) {
                copy.void = true;
                return true;
            }
            slot = copy.next;
        }
        false
    }

    /// Drops every copy of the group's sets up to `set`, handing each to `free`, with whether its
    /// record still travels: then it is given out later.
    pub(super) fn confirm(
        &mut self,
        group: GroupId,
        set: SetId,
        mut free: impl FnMut(&Mirrored, bool),
    ) {
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
                let next = copy.next;
                let travels = copy.resent_to.is_some() || copy.owed_to.is_some();
                free(copy, travels);
                if travels {
                    copy.dropped = true;
                } else {
                    copy.generation = copy.generation.wrapping_add(1) & 0x00ff_ffff;
                    copy.next = self.free;
                    self.free = slot;
                    self.used -= 1;
                }
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
