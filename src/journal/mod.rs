//! The set journal of a secondary poller: what it received and may have to apply
//! again after a crash (invariant 7, T4).
//!
//! A circular log on one block device. Entries are update records with their
//! payload, manifests, and the marks `commit` and `applied`. They are gathered into
//! *units*, large aligned writes with their own checksum, of which several are in
//! flight; payloads go to the device from where they lie in the arena.
//! docs/journal-format.md draws the bytes and argues why recovery is right.
//!
//! Like the protocol this is without IO: [`Journal`] says what to read, write and
//! flush ([`Journal::poll_io`]) and is told what came of it
//! ([`Journal::complete`]). The pollers run it over SPDK block devices, the
//! simulator and the crash tests over a disk that loses and tears unflushed writes.
//! No clock, no thread, no allocation after construction.
//!
//! ```text
//!   Recovery::open / ::format ──poll, complete──► Done ──into_journal──► Journal
//!
//!   Journal:  append* ─► unit ─► Write ─► written ─► Flush ─► durable ─► retire ─► room
//! ```
//!
//! [`Driver`] runs an open journal for a poller's state machines: the pollers and the simulator
//! share it, and keep only the way to their device.
//!
//! # Media
//!
//! Assumed: a completed flush makes all writes durable that completed before it was
//! issued; 4 KiB blocks are written whole or not at all; unflushed writes may be
//! lost in any combination. Not assumed: any order among unflushed writes.
//!
//! # Not done here
//!
//! No retry of failed writes: the journal is then failed and says so
//! ([`Journal::failed`]); what to do is policy. No knowledge of what a set needs:
//! who appends decides what to retire.

mod driver;
mod format;
mod geometry;
mod marks;
mod owed;
mod recovery;
mod room;
mod stage;
mod superblock;
mod unit;
mod writer;

#[cfg(test)]
mod tests;

pub use driver::{Appended, Driver, Flushed, Records, Setting};
pub use format::{BLOCK_BYTES, ENTRY_BYTES, UNIT_HEADER_BYTES};
pub use geometry::{Config, ConfigError, Located, Shape};
pub use recovery::{OpenError, Recovery, Step};
pub use room::Room;
pub use superblock::{GROUPS_MAX, GroupMarks, Identity};
pub use writer::{AppendError, Journal};

use crate::proto::command::RecordRole;
use crate::proto::types::{BufRef, Epoch, GroupId, SetId};
use crate::wire::update::UPDATE_HEADER_BYTES;

pub use crate::proto::command::JournalPos;

/// One entry, as appended and as found again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// An update, its own or a partner's.
    Record {
        /// Whether this shard is to apply it (`Transfer`) or keeps it for its partner.
        role: RecordRole,
        /// The group of the volume.
        group: GroupId,
        /// The set of the update.
        set: SetId,
        /// The update header, as on the wire.
        header: &'a [u8; UPDATE_HEADER_BYTES],
        /// CRC-32C of the payload, as in the header; checked at recovery.
        payload_crc: u32,
        /// The payload, [`Shape::payload_bytes_max`] at most; may be empty.
        payload: &'a [u8],
    },
    /// This shard's facts of a set.
    Manifest {
        /// The group.
        group: GroupId,
        /// The set.
        set: SetId,
        /// The facts, opaque here; [`Shape::payload_bytes_max`] at most.
        bytes: &'a [u8],
    },
    /// The coordinator's decision that all sets up to this are stored everywhere.
    Commit {
        /// The group.
        group: GroupId,
        /// The last committed set.
        set: SetId,
        /// When that set was cut, nanoseconds since the Unix epoch.
        cut_time_ns: u64,
        /// The latest epoch of the primary site that was known then; 0 for none.
        primary_epoch: Epoch,
    },
    /// All sets up to this are on the volumes, flushed.
    Applied {
        /// The group.
        group: GroupId,
        /// The last applied set.
        set: SetId,
    },
}

impl<'a> Entry<'a> {
    /// The payload area's bytes of the entry.
    fn payload(&self) -> &'a [u8] {
        match *self {
            Self::Record { payload, .. } => payload,
            Self::Manifest { bytes, .. } => bytes,
            Self::Commit { .. } | Self::Applied { .. } => &[],
        }
    }

    /// Bytes of the entry in the unit's meta area.
    fn meta_bytes(&self) -> usize {
        match self {
            Self::Record { .. } => ENTRY_BYTES + UPDATE_HEADER_BYTES,
            _ => ENTRY_BYTES,
        }
    }

    fn is_record(&self) -> bool {
        matches!(self, Self::Record { .. })
    }
}

/// Names an operation until it is completed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IoId(u32);

impl IoId {
    /// Below [`Journal::io_max`], and of no other operation under way: for tables of what they
    /// need.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An operation for the block device. Offsets and lengths are in bytes and
/// multiples of [`BLOCK_BYTES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Io {
    /// Read into the start of the stage memory.
    Read {
        /// To be completed with.
        id: IoId,
        /// Where on the device.
        offset: u64,
        /// How much.
        len: usize,
    },
    /// Write the concatenation of `pieces(id)`.
    Write {
        /// To be completed with.
        id: IoId,
        /// Where on the device.
        offset: u64,
        /// How much.
        len: usize,
    },
    /// Make all completed writes durable.
    Flush {
        /// To be completed with.
        id: IoId,
    },
}

impl Io {
    /// What it is to be completed with.
    pub fn id(&self) -> IoId {
        match *self {
            Self::Read { id, .. } | Self::Write { id, .. } | Self::Flush { id } => id,
        }
    }
}

/// A piece of memory to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Of the stage memory, at this offset.
    Stage {
        /// Offset in the stage memory, in bytes.
        at: usize,
        /// Length in bytes.
        len: usize,
    },
    /// The start of a record's payload in the arena.
    Payload {
        /// The record.
        buf: BufRef,
        /// Length in bytes.
        len: usize,
    },
}

impl Piece {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        match *self {
            Self::Stage { len, .. } | Self::Payload { len, .. } => len,
        }
    }

    /// Never: every piece has bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
