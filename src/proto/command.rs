//! What the state machines want done: effects as values.
//!
//! The caller takes commands in order and carries them out; the result of each comes back as an
//! input. Nothing here blocks and nothing is waited for.

use super::message::{BrokenReason, Message, VolumeFacts};
use super::types::{
    BufRef, Epoch, Extent, GroupId, MapVersion, NvmeStatus, Seq, SetId, ShardId, UpdateKind,
    VolumeId,
};
use crate::wire::update::UPDATE_HEADER_BYTES;
use alloc::vec::Vec;

/// Names one update inside the state machine that issued a command; goes back with the result.
/// The upper half is a generation, so that a late result of a slot's former user is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Names a host command inside the front end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostTag(pub u64);

/// Where an entry lies in the set journal; opaque to the protocol, ascending in order of appending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct JournalPos(pub u64);

/// Why a record travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RecordRole {
    /// Responsible shard → mirror target, before the host is acknowledged (G2).
    Mirror = 1,
    /// Responsible shard → secondary shard (T1).
    Transfer = 2,
    /// Secondary shard → its partner at the secondary site (T2).
    SecondaryMirror = 3,
    /// The shard that took an update → the responsible one; it has no number yet (G3).
    Forward = 4,
    /// Responsible shard → the one that forwarded the update: the record's header alone, with its
    /// number and set. Once it is stored there, the copy there is a mirror copy.
    Numbered = 5,
    /// Responsible shard → the one that asked: data that was read from the base (G3). It is no
    /// update: its header names the [`AskId`](super::types::AskId) where a forwarded one has its
    /// name, and has neither number nor set.
    Answer = 6,
    /// A copy's holder → the shard that takes the volume over from a mover that failed (F5).
    Resend = 7,
    /// Responsible shard → who holds a copy: the record's header alone; its number is void (invariant 3).
    Voided = 8,
    /// As `Resend`, the header alone: its number is void.
    ResendVoid = 9,
    /// As `Mirror`, the header alone, in groups whose copies are descriptions (G12).
    Description = 10,
    /// As `Resend`, the header alone: the holder has a description.
    ResendDescription = 11,
}

impl RecordRole {
    /// The role with this wire value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Mirror),
            2 => Some(Self::Transfer),
            3 => Some(Self::SecondaryMirror),
            4 => Some(Self::Forward),
            5 => Some(Self::Numbered),
            6 => Some(Self::Answer),
            7 => Some(Self::Resend),
            8 => Some(Self::Voided),
            9 => Some(Self::ResendVoid),
            10 => Some(Self::Description),
            11 => Some(Self::ResendDescription),
            _ => None,
        }
    }

    /// Whether a record travels without its payload.
    #[inline]
    #[must_use]
    pub const fn is_header_alone(self) -> bool {
        matches!(
            self,
            Self::Numbered
                | Self::Voided
                | Self::ResendVoid
                | Self::Description
                | Self::ResendDescription
        )
    }
}

/// The bytes of a record of `len` bytes, header included, that travel in a role.
#[must_use]
#[inline]
pub const fn bytes_to_send(role: RecordRole, len: u32) -> u32 {
    if role.is_header_alone() { UPDATE_HEADER_BYTES as u32 } else { len }
}

/// Where the payload of a write to a secondary volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadAt {
    /// In the arena.
    Buf(BufRef),
    /// Only in the journal any more; read it back first.
    Journal(JournalPos),
    /// There is none (write zeroes, deallocate).
    None,
}

/// One effect.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// Send on the control channel of the link to `to`. To the shard itself or a sibling poller:
    /// deliver through the ring.
    Send {
        /// The receiver.
        to: ShardId,
        /// The message.
        message: Message,
    },
    /// Send the record on the data channel; `handle_delivered(token)` when the receiver has
    /// stored it. The buffer stays valid until `Free`.
    SendRecord {
        /// The receiver.
        to: ShardId,
        /// Why it travels.
        role: RecordRole,
        /// The record.
        buf: BufRef,
        /// Comes back on delivery.
        token: Token,
    },
    /// Write to the base (primary) or the target volume (secondary); the result comes back with
    /// `token`.
    Write {
        /// The volume.
        volume: VolumeId,
        /// What to do.
        kind: UpdateKind,
        /// Where.
        extent: Extent,
        /// Whether the data must be on the medium at completion.
        fua: bool,
        /// The payload.
        payload: PayloadAt,
        /// Comes back with the result.
        token: Token,
    },
    /// Write a part of a recovered update to the base again (F5): the blocks of it that no later
    /// update covers. The result comes back with `token`, once per part.
    Restore {
        /// The volume.
        volume: VolumeId,
        /// What to do.
        kind: UpdateKind,
        /// Where: within the update's extent.
        extent: Extent,
        /// The record; its payload is written from block `skip` on.
        buf: BufRef,
        /// Blocks of the update before `extent`.
        skip: u32,
        /// Comes back with the result.
        token: Token,
    },
    /// Read what the base has in a recovered update's place into a new record, behind the header of `buf`,
    /// which may be freed at once: [`super::node::Node::handle_read_back`] when it is there. Room for the
    /// record is waited for.
    ReadBack {
        /// The volume.
        volume: VolumeId,
        /// Where.
        extent: Extent,
        /// The description; its header goes before what is read.
        buf: BufRef,
        /// Comes back with the record.
        token: Token,
    },
    /// Make sure that this mover can write the volume's base, and no mover outside the epoch any more, and that
    /// nothing such a mover had under way arrives late (invariant 4). That it is so comes back with
    /// `token`, as of a write; until then it is tried again, and the volume stays closed.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// Comes back with the result.
        token: Token,
    },
    /// Complete a host command.
    CompleteHost {
        /// The command.
        tag: HostTag,
        /// Its status.
        status: NvmeStatus,
    },
    /// The record is no longer needed by the protocol.
    Free {
        /// The record.
        buf: BufRef,
    },
    /// Append to the journal; `handle_journaled(token, position)` when the position is known,
    /// which does not mean that it is durable.
    Journal {
        /// What.
        entry: JournalEntry,
        /// Comes back with the position.
        token: Token,
    },
    /// Make everything appended to the journal so far durable; `handle_journal_durable(token)`.
    JournalFlush {
        /// Comes back with the result.
        token: Token,
    },
    /// Entries before `before` are not needed any more.
    JournalRetire {
        /// The first position still needed.
        before: JournalPos,
    },
    /// Flush the volume's write cache; the result comes back with `token`.
    Flush {
        /// The volume.
        volume: VolumeId,
        /// Comes back with the result.
        token: Token,
    },
    /// Something that the control thread reports to people.
    Report(Report),
}

/// What goes into the set journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JournalEntry {
    /// An update record, as owner or as mirror.
    Record {
        /// The record.
        buf: BufRef,
        /// `Transfer` (own) or `SecondaryMirror`.
        role: RecordRole,
    },
    /// This shard's part of a set's manifest: the set is stored once this is durable.
    Manifest {
        /// `Message::Manifest` with all facts in one part.
        message: Message,
    },
    /// The secondary coordinator's decision that all sets up to `set` are everywhere.
    Commit {
        /// The group.
        group: GroupId,
        /// The last committed set.
        set: SetId,
        /// When the set was cut, nanoseconds since the Unix epoch.
        cut_time_ns: u64,
        /// The latest epoch of the primary site that was known then; 0 for none.
        primary_epoch: Epoch,
    },
    /// All sets up to `set` are on the volumes, flushed.
    Applied {
        /// The group.
        group: GroupId,
        /// The last applied set.
        set: SetId,
    },
}

/// Facts for status, events and histograms. Never on the path of an update, except `Held`.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// A set was opened: new updates are numbered into it.
    SetOpened {
        /// The group.
        group: GroupId,
        /// The set.
        set: SetId,
    },
    /// This shard's acknowledgements of the new set were held for so long (invariant 5).
    Held {
        /// The group.
        group: GroupId,
        /// The set that was held.
        set: SetId,
        /// Nanoseconds from the switch to the release.
        held_ns: u64,
    },
    /// The coordinator's view of a set changed.
    SetState {
        /// The group.
        group: GroupId,
        /// The set.
        set: SetId,
        /// The new state.
        state: SetState,
    },
    /// A set has its manifest: formed at the primary's coordinator, known at the secondary's.
    SetFormed {
        /// The group.
        group: GroupId,
        /// The set.
        set: SetId,
        /// When it was cut, nanoseconds since the Unix epoch.
        cut_time_ns: u64,
        /// Updates, voids excluded.
        updates: u64,
        /// Payload bytes.
        bytes: u64,
        /// What it holds, by volume.
        facts: Vec<VolumeFacts>,
    },
    /// A base write failed; the number is void and the extent's contents are unknown.
    Void {
        /// The volume.
        volume: VolumeId,
        /// The number.
        seq: Seq,
        /// The extent to copy afresh.
        extent: Extent,
        /// What the base said.
        status: NvmeStatus,
    },
    /// The group can form no sets any more until resynchronised (invariant 10).
    Broken {
        /// The group.
        group: GroupId,
        /// Why.
        reason: BrokenReason,
    },
    /// A write to a secondary volume failed and is tried again.
    ApplyFailed {
        /// The volume.
        volume: VolumeId,
        /// The set being applied.
        set: SetId,
        /// What the volume said.
        status: NvmeStatus,
    },
    /// Apply stands at a set boundary on request, or goes on.
    ApplyPaused {
        /// The group.
        group: GroupId,
        /// The last applied set.
        at: SetId,
        /// Stopped or going on.
        paused: bool,
    },
    /// This shard has taken a volume over from a mover that failed: what the members hold of it is
    /// in its hands (F5).
    TakenOver {
        /// The volume.
        volume: VolumeId,
        /// Updates recovered.
        updates: u32,
        /// Numbers found void, since nobody has their updates.
        voids: u32,
        /// The next number.
        next: Seq,
    },
    /// The shard that reports has carried out a move at a boundary: from now on the other one is
    /// responsible (F3).
    Moved {
        /// The volume.
        volume: VolumeId,
        /// The former owner.
        from: ShardId,
        /// The new one.
        to: ShardId,
    },
    /// A volume has arrived at this shard, which numbers its updates from now on (F3, F6).
    HandedOver {
        /// The volume.
        volume: VolumeId,
        /// The former owner.
        from: ShardId,
        /// The next number.
        next: Seq,
    },
    /// All shards have carried out a group's moves, and everything has arrived. At the coordinator.
    MapInForce {
        /// The epoch in which that is so.
        epoch: Epoch,
        /// The group.
        group: GroupId,
        /// The version of the map.
        map_version: MapVersion,
    },
    /// A volume that was taken over is up to date at its base and takes updates again.
    Restored {
        /// The volume.
        volume: VolumeId,
    },
    /// A base refused a part of what was recovered; it is tried again, and the volume stays closed.
    RestoreFailed {
        /// The volume.
        volume: VolumeId,
        /// What the base said.
        status: NvmeStatus,
    },
    /// What was read back for an update that was recovered from its description is not the update's own payload:
    /// sets from its own on are consistent only together with all up to `until` (G12).
    Merged {
        /// The group.
        group: GroupId,
        /// The first such set.
        set: SetId,
        /// The set that the secondary presents next.
        until: SetId,
    },
    /// A peer's memory is new: it started or restarted.
    PeerUp {
        /// The peer.
        peer: ShardId,
    },
    /// A primary mover is being stopped.
    PeerStopping {
        /// Who said so.
        peer: ShardId,
        /// It needs no more sets confirmed.
        drained: bool,
    },
}

/// The life of a set (F7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SetState {
    /// New updates go into it.
    Forming,
    /// Cut; some of its updates have no fate yet.
    Closing,
    /// It has a manifest; the secondary has not confirmed it.
    InTransfer,
    /// The secondary has all of it, durably.
    Received,
    /// The secondary is writing it to its volumes.
    Applying,
    /// It is on the secondary volumes.
    Applied,
}
