//! The bytes of a unit. docs/journal-format.md draws them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::geometry::Geometry;
use super::{Entry, JournalPos};
use crate::mem::Copier;
use crate::proto::command::RecordRole;
use crate::proto::types::{Epoch, GroupId, SetId};
use crate::wire::update::UPDATE_HEADER_BYTES;

/// The block of the format, whatever the device's own is: the unit of alignment and
/// of tearing.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a unit's header.
pub const UNIT_HEADER_BYTES: usize = 64;
/// Bytes of an entry's header; a record's update header follows it.
pub const ENTRY_BYTES: usize = 32;
/// The version of units and superblocks that this build writes and reads.
pub(super) const FORMAT_VERSION: u8 = 2;

const UNIT_MAGIC: u32 = u32::from_le_bytes(*b"SLJU");
/// A unit with entries.
pub(super) const KIND_ENTRIES: u8 = 1;
/// A unit that fills the log up to where it turns round.
pub(super) const KIND_PAD: u8 = 2;

const RECORD: u8 = 1;
const MANIFEST: u8 = 2;
const COMMIT: u8 = 3;
const APPLIED: u8 = 4;

/// Payloads below a block start at multiples of this.
pub(super) const SMALL_ALIGN: usize = 64;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub(super) struct UnitHeader {
    magic: U32,
    version: u8,
    kind: u8,
    meta_blocks: U16,
    /// CRC-32C of the first `meta_len` bytes of the unit, with this field zero.
    crc: U32,
    /// Length of the unit in blocks.
    blocks: U32,
    /// Logical block at which the unit starts.
    position: U64,
    generation: U64,
    entries: U16,
    reserved0: [u8; 2],
    /// Bytes used of the meta blocks, this header included.
    meta_len: U32,
    journal: [u8; 16],
    reserved1: [u8; 8],
}

const _: () = assert!(size_of::<UnitHeader>() == UNIT_HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub(super) struct EntryHeader {
    kind: u8,
    role: u8,
    group: U16,
    /// Checksum of the payload; a commit has none, and the primary site's epoch here.
    payload_crc: U32,
    set: U64,
    /// Bytes from the start of the unit to the payload; for an entry without payload,
    /// its position's distance from there.
    at: U32,
    payload_len: U32,
    cut_time_ns: U64,
}

const _: () = assert!(size_of::<EntryHeader>() == ENTRY_BYTES);

/// What a unit's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct UnitInfo {
    pub(super) journal: [u8; 16],
    pub(super) kind: u8,
    pub(super) position: u64,
    pub(super) generation: u64,
    pub(super) blocks: u32,
    pub(super) meta_blocks: u16,
    pub(super) entries: u16,
    pub(super) meta_len: u32,
}

impl UnitInfo {
    /// Puts the header in front of the entries that are in `meta` already.
    pub(super) fn seal(&self, meta: &mut [u8], copier: Copier) {
        let mut header = UnitHeader {
            magic: U32::new(UNIT_MAGIC),
            version: FORMAT_VERSION,
            kind: self.kind,
            meta_blocks: U16::new(self.meta_blocks),
            crc: U32::ZERO,
            blocks: U32::new(self.blocks),
            position: U64::new(self.position),
            generation: U64::new(self.generation),
            entries: U16::new(self.entries),
            reserved0: [0; 2],
            meta_len: U32::new(self.meta_len),
            journal: self.journal,
            reserved1: [0; 8],
        };
        let meta = &mut meta[..self.meta_len as usize];
        meta[..UNIT_HEADER_BYTES].copy_from_slice(header.as_bytes());
        header.crc = U32::new(copier.crc32c(meta));
        meta[..UNIT_HEADER_BYTES].copy_from_slice(header.as_bytes());
    }

    /// Reads a unit's header and checks its meta area against its checksum. `None`
    /// when this is not a whole header of this journal, whatever else it is.
    pub(super) fn check(bytes: &[u8], journal: &[u8; 16], copier: Copier) -> Option<Self> {
        let (header, _) = UnitHeader::read_from_prefix(bytes).ok()?;
        if header.magic.get() != UNIT_MAGIC
            || header.version != FORMAT_VERSION
            || header.journal != *journal
        {
            return None;
        }
        let info = Self {
            journal: header.journal,
            kind: header.kind,
            position: header.position.get(),
            generation: header.generation.get(),
            blocks: header.blocks.get(),
            meta_blocks: header.meta_blocks.get(),
            entries: header.entries.get(),
            meta_len: header.meta_len.get(),
        };
        let meta_len = info.meta_len as usize;
        if meta_len < UNIT_HEADER_BYTES || meta_len > usize::from(info.meta_blocks) * BLOCK_BYTES {
            return None;
        }
        let rest = bytes.get(UNIT_HEADER_BYTES..meta_len)?;
        let mut zeroed = header;
        zeroed.crc = U32::ZERO;
        let crc = copier.crc32c_append(copier.crc32c(zeroed.as_bytes()), rest);
        (crc == header.crc.get()).then_some(info)
    }

    /// Whether the shape is one that this journal writes at this place.
    pub(super) fn fits(&self, geometry: Geometry) -> bool {
        let shape = geometry.shape;
        let blocks = u64::from(self.blocks);
        let left = geometry.contiguous(self.position);
        match self.kind {
            KIND_ENTRIES => {
                self.meta_blocks == shape.meta_blocks
                    && blocks >= u64::from(shape.meta_blocks)
                    && blocks <= shape.unit_blocks_max().min(left)
            }
            KIND_PAD => self.meta_blocks == 1 && self.entries == 0 && blocks == left,
            _ => false,
        }
    }
}

/// Writes an entry's header, and a record's update header, to the start of `meta`.
/// `at` is the distance of its position from the start of the unit.
pub(super) fn put_entry(meta: &mut [u8], entry: &Entry<'_>, at: u32, payload_crc: u32) {
    let mut word = payload_crc;
    let (kind, role, group, set, cut_time_ns) = match *entry {
        Entry::Record { role, group, set, .. } => (RECORD, role as u8, group, set, 0),
        Entry::Manifest { group, set, .. } => (MANIFEST, 0, group, set, 0),
        Entry::Commit { group, set, cut_time_ns, primary_epoch } => {
            word = primary_epoch.0;
            (COMMIT, 0, group, set, cut_time_ns)
        }
        Entry::Applied { group, set } => (APPLIED, 0, group, set, 0),
    };
    let header = EntryHeader {
        kind,
        role,
        group: U16::new(group.0),
        payload_crc: U32::new(word),
        set: U64::new(set.0),
        at: U32::new(at),
        payload_len: U32::new(entry.payload().len() as u32),
        cut_time_ns: U64::new(cut_time_ns),
    };
    meta[..ENTRY_BYTES].copy_from_slice(header.as_bytes());
    if let Entry::Record { header, .. } = entry {
        meta[ENTRY_BYTES..][..UPDATE_HEADER_BYTES].copy_from_slice(*header);
    }
}

/// A walk over the entries of a unit whose header was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    info: UnitInfo,
    /// Bytes from the start of the unit to the next entry header.
    meta_at: usize,
    left: u16,
}

impl Cursor {
    pub(super) fn new(info: UnitInfo) -> Self {
        Self { info, meta_at: UNIT_HEADER_BYTES, left: info.entries }
    }

    /// The next entry of the unit whose bytes start at `unit`; `None` at the end.
    ///
    /// # Errors
    ///
    /// When the entry is not one that a journal writes, or lies beyond `unit`.
    pub(super) fn next<'a>(
        &mut self,
        unit: &'a [u8],
    ) -> Result<Option<(JournalPos, Entry<'a>, u32)>, Malformed> {
        if self.left == 0 {
            // Nothing may follow the last entry.
            let whole = self.meta_at == self.info.meta_len as usize;
            return if whole { Ok(None) } else { Err(Malformed) };
        }
        let meta = unit.get(self.meta_at..self.info.meta_len as usize).ok_or(Malformed)?;
        let (header, rest) = EntryHeader::read_from_prefix(meta).map_err(|_| Malformed)?;
        let (at, len) = (header.at.get() as usize, header.payload_len.get() as usize);
        let payload = if len == 0 {
            &[]
        } else {
            let meta_bytes = usize::from(self.info.meta_blocks) * BLOCK_BYTES;
            let end = at.checked_add(len).ok_or(Malformed)?;
            if at < meta_bytes || end > self.info.blocks as usize * BLOCK_BYTES {
                return Err(Malformed);
            }
            unit.get(at..end).ok_or(Malformed)?
        };
        let (group, set) = (GroupId(header.group.get()), SetId(header.set.get()));
        let mut payload_crc = header.payload_crc.get();
        let mut meta_bytes = ENTRY_BYTES;
        let entry = match header.kind {
            RECORD => {
                meta_bytes += UPDATE_HEADER_BYTES;
                let (update, _) = rest.split_first_chunk().ok_or(Malformed)?;
                let role = RecordRole::from_wire(header.role).ok_or(Malformed)?;
                Entry::Record { role, group, set, header: update, payload_crc, payload }
            }
            MANIFEST => Entry::Manifest { group, set, bytes: payload },
            COMMIT => {
                let primary_epoch = Epoch(core::mem::take(&mut payload_crc));
                let cut_time_ns = header.cut_time_ns.get();
                Entry::Commit { group, set, cut_time_ns, primary_epoch }
            }
            APPLIED => Entry::Applied { group, set },
            _ => return Err(Malformed),
        };
        self.meta_at += meta_bytes;
        self.left -= 1;
        let position = self.info.position * BLOCK_BYTES as u64 + at as u64;
        Ok(Some((JournalPos(position), entry, payload_crc)))
    }
}

/// The unit's checksum is right and its contents are not: never written by this
/// code, and treated as the end of the log all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed;
