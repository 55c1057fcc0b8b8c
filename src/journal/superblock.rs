//! The superblock: what recovery starts from. Two copies, written in turn, so that
//! a torn one leaves the other.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Entry;
use super::format::{BLOCK_BYTES, FORMAT_VERSION};
use super::geometry::Shape;
use crate::mem::Copier;
use crate::proto::types::{GroupId, MoverId, SetId, ShardId};

/// First bytes of a superblock.
const MAGIC: [u8; 8] = *b"SLJOURNL";
/// Most groups whose marks a journal keeps.
pub const GROUPS_MAX: usize = 120;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u8,
    poller: u8,
    mover: U16,
    /// CRC-32C of the whole block, with this field zero.
    crc: U32,
    journal: [u8; 16],
    counter: U64,
    device_blocks: U64,
    payload_blocks_max: U32,
    meta_blocks: U16,
    groups: U16,
    tail: U64,
    generation: U64,
    generation_start: U64,
    floor: U64,
    reserved: [u8; 40],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
struct Group {
    group: U16,
    reserved: [u8; 6],
    applied: U64,
    committed: U64,
    cut_time_ns: U64,
}

const HEADER_BYTES: usize = size_of::<Header>();
const GROUP_BYTES: usize = size_of::<Group>();
const _: () = assert!(HEADER_BYTES == 128 && GROUP_BYTES == 32);
const _: () = assert!(HEADER_BYTES + GROUPS_MAX * GROUP_BYTES <= BLOCK_BYTES);

/// Whose journal it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Drawn anew at each format (the caller brings randomness); also in every unit,
    /// so that what an earlier journal left on the device is not taken for its own.
    pub journal: [u8; 16],
    /// The poller that writes it.
    pub owner: ShardId,
}

/// How far a group's sets have come, by the marks in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupMarks {
    /// The group.
    pub group: GroupId,
    /// The last set marked as applied.
    pub applied: SetId,
    /// The last set marked as committed.
    pub committed: SetId,
    /// When that set was cut, nanoseconds since the Unix epoch.
    pub cut_time_ns: u64,
}

/// What a superblock says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Superblock {
    pub(super) identity: Identity,
    pub(super) shape: Shape,
    pub(super) device_blocks: u64,
    /// Grows with each write; its lowest bit is the copy it goes to.
    pub(super) counter: u64,
    /// Logical block of the first unit still needed.
    pub(super) tail: u64,
    /// Grows with each opening of the journal.
    pub(super) generation: u64,
    /// Logical block of the first unit of this generation.
    pub(super) generation_start: u64,
    /// Every unit before this logical block was durable when this was written.
    pub(super) floor: u64,
    pub(super) groups: Groups,
}

impl Superblock {
    /// Fills one block.
    pub(super) fn write(&self, block: &mut [u8], copier: Copier) {
        let mut header = Header {
            magic: MAGIC,
            version: FORMAT_VERSION,
            poller: self.identity.owner.poller,
            mover: U16::new(self.identity.owner.mover.0),
            crc: U32::ZERO,
            journal: self.identity.journal,
            counter: U64::new(self.counter),
            device_blocks: U64::new(self.device_blocks),
            payload_blocks_max: U32::new(self.shape.payload_blocks_max),
            meta_blocks: U16::new(self.shape.meta_blocks),
            groups: U16::new(self.groups.0.len() as u16),
            tail: U64::new(self.tail),
            generation: U64::new(self.generation),
            generation_start: U64::new(self.generation_start),
            floor: U64::new(self.floor),
            reserved: [0; 40],
        };
        let block = &mut block[..BLOCK_BYTES];
        block.fill(0);
        block[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        let groups = block[HEADER_BYTES..].chunks_exact_mut(GROUP_BYTES);
        for (place, marks) in groups.zip(&self.groups.0) {
            let group = Group {
                group: U16::new(marks.group.0),
                reserved: [0; 6],
                applied: U64::new(marks.applied.0),
                committed: U64::new(marks.committed.0),
                cut_time_ns: U64::new(marks.cut_time_ns),
            };
            place.copy_from_slice(group.as_bytes());
        }
        header.crc = U32::new(copier.crc32c(block));
        block[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    }

    /// Reads one block. `None` when it is not a whole superblock of this version.
    pub(super) fn read(block: &[u8], copier: Copier) -> Option<Self> {
        let block = block.get(..BLOCK_BYTES)?;
        let (header, rest) = Header::read_from_prefix(block).ok()?;
        if header.magic != MAGIC || header.version != FORMAT_VERSION {
            return None;
        }
        let mut zeroed = header;
        zeroed.crc = U32::ZERO;
        let crc = copier.crc32c_append(copier.crc32c(zeroed.as_bytes()), rest);
        if crc != header.crc.get() || usize::from(header.groups.get()) > GROUPS_MAX {
            return None;
        }
        let mut groups = Groups::new();
        for place in rest.chunks_exact(GROUP_BYTES).take(usize::from(header.groups.get())) {
            let group = Group::read_from_bytes(place).ok()?;
            groups.0.push(GroupMarks {
                group: GroupId(group.group.get()),
                applied: SetId(group.applied.get()),
                committed: SetId(group.committed.get()),
                cut_time_ns: group.cut_time_ns.get(),
            });
        }
        let owner = ShardId { mover: MoverId(header.mover.get()), poller: header.poller };
        Some(Self {
            identity: Identity { journal: header.journal, owner },
            shape: Shape {
                meta_blocks: header.meta_blocks.get(),
                payload_blocks_max: header.payload_blocks_max.get(),
            },
            device_blocks: header.device_blocks.get(),
            counter: header.counter.get(),
            tail: header.tail.get(),
            generation: header.generation.get(),
            generation_start: header.generation_start.get(),
            floor: header.floor.get(),
            groups,
        })
    }

    /// The version of what looks like a superblock, whether or not it can be read.
    pub(super) fn version_of(block: &[u8]) -> Option<u8> {
        let (magic, rest) = block.split_first_chunk::<8>()?;
        if *magic == MAGIC { rest.first().copied() } else { None }
    }
}

/// The marks of all groups, in bounded memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Groups(Vec<GroupMarks>);

impl Groups {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(GROUPS_MAX))
    }

    pub(super) fn all(&self) -> &[GroupMarks] {
        &self.0
    }

    /// Whether the marks of `entry` can be kept.
    pub(super) fn has_room_for(&self, entry: &Entry<'_>) -> bool {
        match *entry {
            Entry::Commit { group, .. } | Entry::Applied { group, .. } => {
                self.0.len() < GROUPS_MAX || self.0.iter().any(|marks| marks.group == group)
            }
            Entry::Record { .. } | Entry::Manifest { .. } => true,
        }
    }

    /// Takes note of a mark. Marks only advance.
    ///
    /// A mark may reach the superblock before its entry is durable in the log. That
    /// is harmless: what it says is true already when it is appended.
    pub(super) fn note(&mut self, entry: &Entry<'_>) {
        match *entry {
            Entry::Commit { group, set, cut_time_ns, .. } => {
                let marks = self.of(group);
                if set > marks.committed {
                    marks.committed = set;
                    marks.cut_time_ns = cut_time_ns;
                }
            }
            Entry::Applied { group, set } => {
                let marks = self.of(group);
                marks.applied = marks.applied.max(set);
            }
            Entry::Record { .. } | Entry::Manifest { .. } => {}
        }
    }

    fn of(&mut self, group: GroupId) -> &mut GroupMarks {
        let index = match self.0.iter().position(|marks| marks.group == group) {
            Some(index) => index,
            None => {
                self.0.push(GroupMarks {
                    group,
                    applied: SetId(0),
                    committed: SetId(0),
                    cut_time_ns: 0,
                });
                self.0.len() - 1
            }
        };
        &mut self.0[index]
    }
}
