//! The updates that a primary shard retains: a slab with generations.
//!
//! Every retained update has a slot from its numbering until its set is confirmed and nobody
//! refers to its record any more. Slots never move, so they serve as tokens.

use crate::proto::command::{HostTag, Token};
use crate::proto::types::{BufRef, Extent, Seq, SetId, UpdateKind};
use alloc::vec::Vec;

/// No slot: the end of a list.
pub(super) const NIL: u32 = u32::MAX;

/// [`Update::origin`]: this shard took it from its source.
pub(super) const HERE: u8 = u8::MAX;
/// [`Update::origin`]: the shard that forwarded it has lost its memory; nobody waits.
pub(super) const NOBODY: u8 = u8::MAX - 1;
/// As the owner of a volume: neither this shard nor one of its mirror peers.
pub(super) const ELSEWHERE: u8 = u8::MAX - 2;

/// Enough copies hold the update.
pub(super) const SAFE: u16 = 1;
/// No earlier overlapping update is still on its way to the base.
pub(super) const FIRST_IN_RANGE: u16 = 2;
/// The base write was issued.
pub(super) const AT_BASE: u16 = 4;
/// The host was told; the update has its fate.
pub(super) const DONE: u16 = 8;
/// The base write failed: the number is void.
pub(super) const VOID: u16 = 16;
/// The set is confirmed, or the group tracks: the record goes as soon as nobody refers to it.
pub(super) const RELEASED: u16 = 32;
/// Its record travels to the secondary.
pub(super) const TRAVELS: u16 = 64;
/// The secondary shard has stored it.
pub(super) const TRANSFERRED: u16 = 128;
/// It was recovered from a mover that failed, and its volume is not up to date yet (F5).
pub(super) const RECOVERED: u16 = 256;
/// Its set is confirmed, but it lacks copies, so members may not know that: they are told by copies.
pub(super) const CONFIRMED: u16 = 512;

/// Its mirror copies are descriptions (G12): the secondary gets what the base has, once it has it.
pub(super) const DESCRIBED: u16 = 1024;
/// Its payload is not here: a description is all that the members had.
pub(super) const UNREAD: u16 = 2048;

/// One retained update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Update {
    pub seq: Seq,
    pub set: SetId,
    pub extent: Extent,
    pub buf: BufRef,
    /// Names the source's command: here, or a [`ForwardId`] where it waits.
    pub tag: HostTag,
    /// Index of the mirror that forwarded it, or [`HERE`], or [`NOBODY`].
    pub origin: u8,
    /// Bit i: `mirrors[i]` was sent a copy.
    pub mirrors: u64,
    /// Bit i: `mirrors[i]` has not yet stored it.
    pub mirrors_pending: u64,
    /// Bit i: the record travels to `mirrors[i]`, so that the link refers to it.
    pub mirrors_travelling: u64,
    pub payload_crc: u32,
    pub payload_len: u32,
    /// What the record takes in an arena.
    pub record_bytes: u32,
    /// Index into the shard's volumes.
    pub volume: u32,
    /// The next update of the same set, or of the free list.
    pub next: u32,
    pub generation: u32,
    pub kind: UpdateKind,
    pub fua: bool,
    pub flags: u16,
}

impl Update {
    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Whether it is not certain yet what the secondary gets: where copies are descriptions, that is what the base
    /// has once the update has its fate (G12).
    #[inline]
    pub(super) fn awaits_base(&self) -> bool {
        self.has(UNREAD) || self.has(DESCRIBED) && !self.has(DONE)
    }
}

/// The slab.
#[derive(Debug)]
pub(super) struct Slab {
    slots: Vec<Update>,
    free: u32,
    used: u32,
    max: u32,
}

impl Slab {
    pub(super) fn new(max: u32) -> Self {
        Self { slots: Vec::with_capacity(max as usize), free: NIL, used: 0, max }
    }

    pub(super) fn is_full(&self) -> bool {
        self.used >= self.max
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Slots there are.
    pub(super) fn max(&self) -> u32 {
        self.max
    }

    /// Takes a slot for `update`, whose generation is set here. The caller made sure of room, except
    /// for what is recovered from a mover that failed: then the slab grows.
    pub(super) fn insert(&mut self, mut update: Update) -> u32 {
        self.used += 1;
        if self.free == NIL {
            update.generation = 1;
            self.slots.push(update);
            return (self.slots.len() - 1) as u32;
        }
        let slot = self.free;
        let place = &mut self.slots[slot as usize];
        self.free = place.next;
        update.generation = place.generation.wrapping_add(1);
        *place = update;
        slot
    }

    /// Gives a slot back.
    pub(super) fn remove(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        place.flags = 0;
        place.generation = place.generation.wrapping_add(1);
        place.next = self.free;
        self.free = slot;
        self.used -= 1;
    }

    /// Every slot in use. Walks the whole slab: for restarts, not for the data path.
    pub(super) fn used_slots(&self) -> impl Iterator<Item = u32> {
        let mut is_free = alloc::vec![false; self.slots.len()];
        let mut slot = self.free;
        while slot != NIL {
            is_free[slot as usize] = true;
            slot = self.slots[slot as usize].next;
        }
        (0..self.slots.len() as u32).filter(move |slot| !is_free[*slot as usize])
    }

    pub(super) fn get(&self, slot: u32) -> &Update {
        &self.slots[slot as usize]
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> &mut Update {
        &mut self.slots[slot as usize]
    }

    /// The token that names the slot's present use, with `tag` (below 256) beside it.
    pub(super) fn token(&self, slot: u32, tag: u8) -> Token {
        let generation = u64::from(self.slots[slot as usize].generation & 0x00ff_ffff);
        Token(generation << 40 | u64::from(tag) << 32 | u64::from(slot))
    }

    /// The slot and tag that `token` names, unless the slot has another use by now.
    pub(super) fn resolve(&self, token: Token) -> Option<(u32, u8)> {
        let slot = token.0 as u32;
        let place = self.slots.get(slot as usize)?;
        (u64::from(place.generation & 0x00ff_ffff) == token.0 >> 40)
            .then_some((slot, (token.0 >> 32) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update() -> Update {
        Update {
            seq: Seq(1),
            set: SetId(1),
            extent: Extent { lba: 0, blocks: 1 },
            buf: BufRef(0),
            tag: HostTag(0),
            origin: HERE,
            mirrors: 0,
            mirrors_pending: 0,
            mirrors_travelling: 0,
            payload_crc: 0,
            payload_len: 0,
            record_bytes: 0,
            volume: 0,
            next: NIL,
            generation: 0,
            kind: UpdateKind::Write,
            fua: false,
            flags: 0,
        }
    }

    #[test]
    fn a_token_of_a_former_use_resolves_to_nothing() {
        let mut slab = Slab::new(2);
        let slot = slab.insert(update());
        let old = slab.token(slot, 7);
        assert_eq!(slab.resolve(old), Some((slot, 7)));
        slab.remove(slot);
        assert_eq!(slab.resolve(old), None);
        assert_eq!(slab.insert(update()), slot);
        assert_eq!(slab.resolve(old), None);
        assert_eq!(slab.resolve(slab.token(slot, 3)), Some((slot, 3)));
    }
}
