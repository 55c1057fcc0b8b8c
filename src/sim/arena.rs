//! The arena of a simulated poller: records behind handles with generations, a bounded number
//! of bytes per role, and a count that must come back to zero.
//!
//! A handle used after its record was freed is a violation, not a panic: the protocol under test
//! may be broken on purpose.

use crate::proto::types::{
    BufRef, Epoch, Extent, ForwardId, GroupId, MapVersion, MoverId, Seq, SetId, ShardId,
    UpdateKind, VolumeId,
};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader, UpdateInfo};
use zerocopy::IntoBytes;

/// Whose room a record takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Taken from a host, or arrived from a primary shard at its secondary shard.
    Own = 0,
    /// A copy for another shard.
    Mirror = 1,
}

/// A record: its header and payload as on the wire, and what the header says.
#[derive(Clone, Debug)]
pub struct Record {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// The header's contents.
    pub info: UpdateInfo,
    /// Whose room it takes.
    pub room: Room,
}

impl Record {
    /// Writes the header that says `info`.
    pub fn number(&mut self, info: &UpdateInfo) {
        self.bytes[..UPDATE_HEADER_BYTES].copy_from_slice(UpdateHeader::seal(info).as_bytes());
        self.info = *info;
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    record: Option<Record>,
}

/// The arena.
#[derive(Debug)]
pub struct Arena {
    slots: Vec<Slot>,
    free: Vec<u32>,
    used_bytes: [u64; 2],
    limit_bytes: [u64; 2],
    live: usize,
}

impl Arena {
    /// An arena with so many bytes for each [`Room`].
    #[must_use]
    pub fn new(own_bytes: u64, mirror_bytes: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            used_bytes: [0; 2],
            limit_bytes: [own_bytes, mirror_bytes],
            live: 0,
        }
    }

    /// Whether a record of so many bytes finds room.
    #[must_use]
    pub fn has_room(&self, room: Room, bytes: usize) -> bool {
        self.used_bytes[room as usize] + bytes as u64 <= self.limit_bytes[room as usize]
    }

    /// Whether more than half of the room is taken.
    #[must_use]
    pub fn is_pressed(&self, room: Room) -> bool {
        self.used_bytes[room as usize] * 2 > self.limit_bytes[room as usize]
    }

    /// Stores a record; the caller asked [`Self::has_room`] where that matters.
    pub fn insert(&mut self, record: Record) -> BufRef {
        self.used_bytes[record.room as usize] += record.bytes.len() as u64;
        self.live += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.record = Some(record);
        BufRef(u64::from(slot.generation) << 32 | u64::from(index))
    }

    fn slot(&self, buf: BufRef) -> Option<&Slot> {
        let slot = self.slots.get(buf.0 as u32 as usize)?;
        (u64::from(slot.generation) == buf.0 >> 32).then_some(slot)
    }

    /// The record, unless the handle is stale.
    #[must_use]
    pub fn get(&self, buf: BufRef) -> Option<&Record> {
        self.slot(buf)?.record.as_ref()
    }

    /// The record, to write its header.
    pub fn get_mut(&mut self, buf: BufRef) -> Option<&mut Record> {
        self.slot(buf)?;
        self.slots[buf.0 as u32 as usize].record.as_mut()
    }

    /// Takes the record out, unless the handle is stale.
    pub fn remove(&mut self, buf: BufRef) -> Option<Record> {
        self.slot(buf)?;
        let index = buf.0 as u32;
        let slot = &mut self.slots[index as usize];
        let record = slot.record.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.used_bytes[record.room as usize] -= record.bytes.len() as u64;
        self.live -= 1;
        self.free.push(index);
        Some(record)
    }

    /// Records held.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// The held records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.slots.iter().filter_map(|slot| slot.record.as_ref())
    }
}

/// What a record says before it has its number.
#[must_use]
pub fn blank_info() -> UpdateInfo {
    UpdateInfo {
        kind: UpdateKind::Write,
        fua: false,
        payload_crc: 0,
        payload_len: 0,
        volume: VolumeId(u32::MAX),
        group: GroupId(0),
        origin: MoverId(0),
        owner: ShardId::new(0, 0),
        epoch: Epoch(0),
        map_version: MapVersion(0),
        set: SetId(0),
        seq: Seq(0),
        extent: Extent { lba: 0, blocks: 1 },
        block_bytes: 0,
        list_seq: 0,
        time_ns: 0,
        time_error_ns: 0,
        forward: ForwardId(0),
        described: false,
        not_before: SetId(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> Record {
        Record { bytes: vec![0; bytes], info: blank_info(), room: Room::Own }
    }

    #[test]
    fn a_freed_handle_finds_nothing_even_when_its_slot_is_used_again() {
        let mut arena = Arena::new(100, 0);
        let first = arena.insert(record(60));
        assert!(!arena.has_room(Room::Own, 60) && arena.is_pressed(Room::Own));
        assert!(arena.remove(first).is_some());
        let second = arena.insert(record(10));
        assert_ne!(first, second);
        assert!(arena.get(first).is_none() && arena.remove(first).is_none());
        assert_eq!((arena.live(), arena.records().count()), (1, 1));
        assert!(arena.has_room(Room::Own, 90) && !arena.has_room(Room::Mirror, 1));
    }
}
