//! What shards say to one another on the control channel.
//!
//! Small messages only: payload travels as update records on the data channel.
//! Both coordinators are shards too (poller 0 of a site's lowest-numbered mover).
//! Messages are delivered once, in any order, and are lost when the peer restarts;
//! whoever sent one sends it again when the peer is up again. `wire::message` has the bytes.

use super::types::{
    AskId, Extent, ForwardId, GroupId, MapVersion, NvmeStatus, Seq, SetId, ShardId, VolumeId,
};
use alloc::vec::Vec;

/// One message. `group` is always the sender's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Mirror target → source: so many bytes of records the source may keep here at once.
    Budget {
        /// Bytes, headers and padding included.
        bytes: u64,
    },
    /// Coordinator → primary shards: switch to `set`, hold its base writes and acknowledgements
    /// (invariant 5).
    Prepare {
        /// The group.
        group: GroupId,
        /// The set to switch to.
        set: SetId,
        /// The map version that holds from `set` on (F3).
        map_version: MapVersion,
    },
    /// Primary shard → coordinator: switched.
    Prepared {
        /// The group.
        group: GroupId,
        /// The set switched to.
        set: SetId,
    },
    /// Coordinator → primary shards: all have switched; `set` is no longer held.
    Release {
        /// The group.
        group: GroupId,
        /// The set released.
        set: SetId,
    },
    /// Primary shard → coordinator: every update of `set` here has its fate.
    Closed {
        /// The group.
        group: GroupId,
        /// The closed set.
        set: SetId,
        /// This part of the facts.
        facts: FactsPart,
    },
    /// The set as a whole: coordinator → another primary shard (kept as a copy, invariant 6) and
    /// → secondary coordinator → secondary shards (each its own volumes).
    Manifest {
        /// The group.
        group: GroupId,
        /// The set.
        set: SetId,
        /// When the set was cut: nanoseconds since the Unix epoch by the coordinator's clock.
        cut_time_ns: u64,
        /// This part of the facts.
        facts: FactsPart,
    },
    /// Secondary coordinator → primary coordinator → primary shards: all sets up to and including
    /// `set` are stored at the secondary (invariant 8).
    Confirmed {
        /// The group.
        group: GroupId,
        /// The last confirmed set.
        set: SetId,
    },
    /// Any primary shard → coordinator: close the open set early; room runs short.
    CloseNow {
        /// The group.
        group: GroupId,
        /// The set to close; ignored when it is no longer the open one.
        set: SetId,
        /// The secondary can commit nothing before that (G12): also where no more sets should be open.
        needed: bool,
    },
    /// Secondary shard → secondary coordinator: all sets up to and including `set` are journaled
    /// durably and mirrored here.
    Stored {
        /// The group.
        group: GroupId,
        /// The last stored set.
        set: SetId,
        /// The stored sets are no point in time before all up to this one are, since they hold payloads of later
        /// updates (G12); 0, or a set that is committed, when they are.
        not_before: SetId,
    },
    /// Secondary coordinator → secondary shards: `set` is committed and everything before it is
    /// applied everywhere; apply it (T3).
    Apply {
        /// The group.
        group: GroupId,
        /// The set to apply.
        set: SetId,
    },
    /// Secondary shard → secondary coordinator → primary coordinator: applied up to and
    /// including `set`.
    Applied {
        /// The group.
        group: GroupId,
        /// The last applied set.
        set: SetId,
    },
    /// Secondary shard → primary shards and secondary coordinator, whenever the link comes up:
    /// what it has. Transfer resumes after `stored`.
    Resume {
        /// The group.
        group: GroupId,
        /// The last set stored here.
        stored: SetId,
        /// The last set applied here.
        applied: SetId,
        /// As in `Stored`.
        not_before: SetId,
    },
    /// A shard of either site → its coordinator → the other coordinator; and each coordinator →
    /// its shards: sets cannot be formed any more until a resynchronisation; the group tracks
    /// (invariant 10). Whoever knows it says it again when a link comes up.
    Broken {
        /// The group.
        group: GroupId,
        /// Why.
        reason: BrokenReason,
    },
    /// Secondary coordinator → itself or its shards: stop (or go on) applying at a set boundary.
    PauseApply {
        /// The group.
        group: GroupId,
        /// Stop or go on.
        paused: bool,
    },
    /// Secondary shard → secondary coordinator, after each `Resume` and whenever it changes:
    /// whether its journal is scarce. While one is, no set is committed but the next to be applied,
    /// so that the primary keeps the others and its hosts wait (F7).
    JournalRoom {
        /// Scarce or ample.
        scarce: bool,
    },
    /// Responsible shard → the shard that forwarded an update: it has its fate (G3).
    Forwarded {
        /// Which.
        forward: ForwardId,
        /// What the source is to be told.
        status: NvmeStatus,
    },
    /// A shard that was forwarded an update of a volume that it is not responsible for → the one
    /// that forwarded it (G4).
    NotResponsible {
        /// Which.
        forward: ForwardId,
        /// The shard that is, by the map of this version.
        owner: ShardId,
        /// The version.
        map_version: MapVersion,
    },
    /// Primary mover's shards → all other shards: the mover is being stopped. Until it is drained
    /// it needs the secondary to confirm its sets and, if it runs the boundaries, the others to take
    /// part in them; then it needs nothing any more. Said again when the link comes up.
    Stopping {
        /// Everything is safe elsewhere, or is given up.
        drained: bool,
    },
    /// A shard that a host's read or flush came to → the responsible one: carry it out (G3). Pollers
    /// exchange it and its answers outside the state machines; asked again when the link comes up.
    Ask {
        /// Which.
        ask: AskId,
        /// What to do.
        kind: AskKind,
        /// The volume.
        volume: VolumeId,
        /// What to read; for a flush, anything.
        extent: Extent,
    },
    /// Responsible shard → the one that asked: it is done, and there are no data to send: it was a
    /// flush, or it failed.
    Answered {
        /// Which.
        ask: AskId,
        /// What the host is to be told.
        status: NvmeStatus,
    },
    /// Primary coordinator → secondary coordinator, on entering an epoch and whenever the link comes
    /// up: from now on this shard forms the sets.
    Lead,
    /// Primary shard → the shards of its lane at other members, on entering an epoch: what it knows
    /// of the numbers of its own volumes, and what it holds of volumes that the receiver takes over
    /// from a mover that failed (F5).
    Survey {
        /// The group.
        group: GroupId,
        /// The last set that the sender knows to be confirmed.
        confirmed: SetId,
        /// The last set that it knows to have been opened; 0 for none.
        open: SetId,
        /// This part's index, from 0.
        part: u16,
        /// How many parts there are, at least 1.
        parts: u16,
        /// The volumes.
        volumes: Vec<Held>,
    },
    /// As `Survey`, when the sender has taken volumes over or was handed one: what it knows of their
    /// numbers now, and that their updates are in its books.
    Marks {
        /// The volumes; no copies.
        volumes: Vec<Held>,
    },
    /// Primary shard → coordinator, on entering an epoch and whenever the link comes up: what it knows
    /// of the group's sets and map.
    Greet {
        /// The group.
        group: GroupId,
        /// The last set that it knows to be confirmed.
        confirmed: SetId,
        /// The last set that it knows to have been opened; 0 for none.
        open: SetId,
        /// The map that it acts upon.
        map_version: MapVersion,
    },
    /// Primary shard → coordinator: it knows the moves that lead to the map of this version (F3).
    Planned {
        /// The version.
        map_version: MapVersion,
    },
    /// Former owner → new owner of a volume that moved at a boundary: every update that it numbered
    /// is on the base (invariant 4).
    HandOff {
        /// The group.
        group: GroupId,
        /// The map by which the volume moves.
        map_version: MapVersion,
        /// The volume.
        volume: VolumeId,
        /// Its next number (invariant 3).
        next: Seq,
        /// Numbers from here on and before `next` are void, in the set of the next number; 0 for none.
        lost_from: Seq,
        /// The last number that the sender knows to be in a confirmed set.
        confirmed: Seq,
        /// By set that the sender does not know to be confirmed: the volume's last number in it.
        lasts: Vec<(SetId, Seq)>,
    },
    /// Primary shard → coordinator: what was to come to it by the map of this version is here.
    Settled {
        /// The group.
        group: GroupId,
        /// The version.
        map_version: MapVersion,
    },
    /// A mover's poller 0 → coordinator: what the common timer shows (G8). Asked again when it is answered,
    /// and when the link comes up.
    TimeAsk {
        /// When, by the sender's monotonic clock: names the ask, and means nothing to the receiver.
        asked: u64,
        /// The latest that the timer can be as far as the sender knows, nanoseconds since the Unix epoch;
        /// 0 when it knows nothing.
        latest_ns: u64,
    },
    /// Coordinator → who asked.
    TimeAnswer {
        /// Which ask.
        asked: u64,
        /// What the timer showed since that was asked, nanoseconds since the Unix epoch.
        time_ns: u64,
        /// All members know the timer.
        firm: bool,
    },
}

/// What a shard that is not responsible for a volume asks of the one that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum AskKind {
    /// Read from the base; data come as a record, [`super::command::RecordRole::Answer`].
    Read = 1,
    /// Make completed writes durable.
    Flush = 2,
}

impl AskKind {
    /// The kind with this wire value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Read),
            2 => Some(Self::Flush),
            _ => None,
        }
    }
}

impl Message {
    /// Whether acknowledgements are held until it arrives (invariant 5).
    #[inline]
    #[must_use]
    pub const fn is_of_boundary(&self) -> bool {
        matches!(self, Self::Prepare { .. } | Self::Prepared { .. } | Self::Release { .. })
    }
}

/// What a shard knows of a volume when an epoch begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The volume.
    pub volume: VolumeId,
    /// Copies that the sender holds and sends to the receiver, which takes the volume over.
    pub copies: u32,
    /// The last number that the sender knows to be in a confirmed set.
    pub confirmed: Seq,
    /// The last number that the sender has heard of, or has given out itself: none up to there is
    /// given out again (invariant 3).
    pub heard: Seq,
    /// Numbers that the sender gave out while it was responsible and keeps itself; one entry for each
    /// such range.
    pub kept: Option<Kept>,
}

/// Numbers that a shard gave out of a volume before it handed it over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// The set of the last one.
    pub set: SetId,
    /// The first one.
    pub first: Seq,
    /// The last one; none in between is in anybody else's books.
    pub last: Seq,
}

impl Kept {
    /// Whether a number is among them.
    #[must_use]
    pub fn has(&self, seq: Seq) -> bool {
        (self.first..=self.last).contains(&seq)
    }
}

/// Why a group can form no sets until it is resynchronised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BrokenReason {
    /// A primary mover lost its memory with updates that were not confirmed.
    MoverRestarted = 1,
    /// A base write failed: what the medium holds there is unknown.
    BaseWriteFailed = 2,
    /// A set's facts and the updates received for it do not agree.
    DigestMismatch = 3,
    /// More movers failed at once than the group has spare copies: what only they held is lost.
    MoversLost = 4,
}

impl BrokenReason {
    /// The reason with this wire value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::MoverRestarted),
            2 => Some(Self::BaseWriteFailed),
            3 => Some(Self::DigestMismatch),
            4 => Some(Self::MoversLost),
            _ => None,
        }
    }
}

/// A part of a list of facts; lists longer than [`super::limits::FACTS_PER_PART`] travel in parts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FactsPart {
    /// This part's index, from 0.
    pub part: u16,
    /// How many parts there are, at least 1.
    pub parts: u16,
    /// Facts of volumes that have numbers in the set; others are absent.
    pub facts: Vec<VolumeFacts>,
}

/// What one set holds of one volume (invariant 6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeFacts {
    /// The volume.
    pub volume: VolumeId,
    /// Its first number in the set.
    pub first: Seq,
    /// Its last number in the set, at least `first`.
    pub last: Seq,
    /// Payload bytes of the updates that are not void.
    pub bytes: u64,
    /// Wrapping sum of [`crate::wire::update::digest_of`] over the updates that are not void.
    pub digest: u64,
    /// Numbers between `first` and `last` that are void, ascending.
    pub voids: Vec<Seq>,
}

impl VolumeFacts {
    /// How many updates the volume has in the set, voids excluded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1 - self.voids.len() as u64
    }
}

impl FactsPart {
    /// Splits `facts` into parts that fit a message. At least one part, also for no facts.
    #[must_use]
    pub fn split(facts: &[VolumeFacts]) -> Vec<Self> {
        let mut chunks: Vec<Vec<VolumeFacts>> = Vec::new();
        let mut weight = 0;
        for fact in facts {
            let own = 1 + fact.voids.len() / 4;
            if chunks.is_empty() || weight + own > super::limits::FACTS_PER_PART {
                chunks.push(Vec::new());
                weight = 0;
            }
            weight += own;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(fact.clone());
            }
        }
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        let parts = chunks.len() as u16;
        chunks
            .into_iter()
            .enumerate()
            .map(|(part, facts)| Self { part: part as u16, parts, facts })
            .collect()
    }
}

/// Puts the parts of one list together again.
#[derive(Clone, Debug, Default)]
pub struct FactsAssembly {
    seen: Vec<bool>,
    facts: Vec<VolumeFacts>,
}

impl FactsAssembly {
    /// Takes a part; true once all parts are there. A part that came before, or that does not
    /// fit the others, changes nothing.
    pub fn add(&mut self, part: FactsPart) -> bool {
        if self.seen.is_empty() {
            self.seen.resize(usize::from(part.parts.max(1)), false);
        }
        if self.seen.len() == usize::from(part.parts)
            && let Some(seen) = self.seen.get_mut(usize::from(part.part))
            && !*seen
        {
            *seen = true;
            self.facts.extend(part.facts);
        }
        self.seen.iter().all(|seen| *seen)
    }
    /// The facts, once complete.
    #[must_use]
    pub fn into_facts(self) -> Vec<VolumeFacts> {
        self.facts
    }
}
