//! What the control thread and the pollers of one mover say to one another.
//!
//! Requests go to a poller through a bounded queue that it looks at once per turn; reports come
//! back the same way. Neither is on the path of an update. A full queue is a value: the sender
//! keeps what it has and tries again.

use crate::proto::boundary::{BoundaryConfig, CoordinatorView};
use crate::proto::command::{Report, Token};
use crate::proto::membership::SiteRecord;
use crate::proto::primary::{GroupView, LedgerView, Mirrored, PrimaryCounters};
use crate::proto::types::{Epoch, GroupId, Nanos, Seq, SetId, ShardId, VolumeId};
use crossbeam::channel::Sender;
use hdrhistogram::Histogram;
use std::sync::Arc;

/// Control thread → poller.
#[derive(Debug)]
pub enum ToPoller {
    /// Change a group's period; only the coordinator's poller 0 acts on it (F2).
    SetPeriod {
        /// The group.
        group: GroupId,
        /// The new period in nanoseconds.
        period_ns: u64,
    },
    /// Close the open set now; answered with its number (F2). Coordinator's poller 0 only.
    CloseNow {
        /// The group.
        group: GroupId,
        /// Where the answer goes; none when there is no open set.
        reply: Sender<Option<SetId>>,
    },
    /// Stop or go on applying at a set boundary. Secondary coordinator's poller 0 only.
    PauseApply {
        /// The group.
        group: GroupId,
        /// Stop or go on.
        paused: bool,
    },
    /// Up to `max` ledger lines (G5).
    Ledger {
        /// Only this volume.
        volume: Option<VolumeId>,
        /// How many at most.
        max: usize,
        /// Where the answer goes.
        reply: Sender<LedgerAnswer>,
    },
    /// Everything for status; interval histograms are handed over and begin anew.
    Snapshot {
        /// Where the answer goes.
        reply: Sender<Box<PollerSnapshot>>,
    },
    /// Take no more host updates (they wait, unanswered) or take them again. Before a clean stop:
    /// as long as updates are retained, the shard's pressure input is given so that the sets they
    /// are in are closed without waiting for the period. A primary shard tells the secondary.
    Quiesce {
        /// Stop or go on.
        quiesced: bool,
    },
    /// The mover lets its hosts go: complete the commands that wait, and those that still come,
    /// with an abort status, and also updates that are under way, whose data is here already.
    /// After a quiesce. A primary shard tells the secondary that it needs nothing any more.
    Refuse,
    /// Enter the epoch that the primary site has agreed on. Primary movers only.
    Enter {
        /// What was agreed.
        record: Arc<SiteRecord>,
        /// The boundary engine's configuration in it.
        engine: Box<BoundaryConfig>,
    },
    /// The record of the present epoch has moves of volumes to carry out, or has them no more.
    Planned {
        /// What was agreed.
        record: Arc<SiteRecord>,
    },
    /// No mover that is not a member can change the base any more that [`FromPoller::Fence`] named.
    Fenced {
        /// What the protocol knows it by.
        token: Token,
    },
    /// Finish what is under way at the base and the journal, close channels, and end the thread.
    /// Host commands that still wait are completed with an abort status.
    Stop,
}

/// Poller → control thread.
#[derive(Debug)]
pub enum FromPoller {
    /// The poller runs.
    Started {
        /// Its shard.
        shard: ShardId,
    },
    /// Something happened that people want to know.
    Report {
        /// The shard that reports.
        shard: ShardId,
        /// When, by the mover's monotonic clock.
        at: Nanos,
        /// What.
        report: Report,
    },
    /// A peer's link came up, fell silent, or is heard again.
    Peer {
        /// The shard that noticed.
        shard: ShardId,
        /// The peer.
        peer: ShardId,
        /// What was noticed.
        state: PeerState,
    },
    /// A shard that is responsible for volumes which hosts reach here has not been heard for so long
    /// that their commands are refused; or it is heard again.
    Lost {
        /// The shard that noticed.
        shard: ShardId,
        /// The responsible one.
        peer: ShardId,
        /// Lost, or heard again.
        lost: bool,
    },
    /// The shard is whole in an epoch: it has heard every member, its volumes are up to date, and there
    /// are as many copies of everything as there should be.
    Whole {
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: Epoch,
    },
    /// A volume is taken over: whoever is not a member is to be kept from its base. Answered with
    /// [`ToPoller::Fenced`] once that is so, and never before.
    Fence {
        /// The shard that takes it over.
        shard: ShardId,
        /// The volume.
        volume: VolumeId,
        /// What the protocol knows it by.
        token: Token,
    },
    /// A base refused a write because of another mover's reservation: this mover was excluded from
    /// it. The poller has stopped everything about the volume.
    Excluded {
        /// The volume.
        volume: VolumeId,
        /// When, by the mover's monotonic clock.
        at: Nanos,
    },
    /// The poller could not go on and ends; the mover must stop.
    Failed {
        /// The shard.
        shard: ShardId,
        /// Why, for people.
        reason: String,
    },
    /// The poller has ended as asked.
    Stopped {
        /// Its shard.
        shard: ShardId,
        /// How everything stood when nothing changed any more: the exact numbers and sets that a
        /// clean stop is recorded with. None when it ended before it ran.
        last: Option<Box<PollerSnapshot>>,
    },
}

/// How a peer's link stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Not heard of since this mover started, or since the peer was excluded.
    Unknown,
    /// Heard of within the heartbeat limit.
    Up,
    /// Was up, and is silent for longer than the heartbeat limit.
    Silent,
}

/// One update that a shard keeps, with what it knows of it.
#[derive(Clone, Debug)]
pub struct LedgerAnswer {
    /// The shard that answers.
    pub shard: ShardId,
    /// Updates it is responsible for.
    pub own: Vec<LedgerView>,
    /// Copies it holds for others.
    pub held: Vec<Mirrored>,
}

/// Everything a poller knows that people or the control thread want.
#[derive(Clone, Debug)]
pub struct PollerSnapshot {
    /// The poller.
    pub shard: ShardId,
    /// When it was taken, by the mover's monotonic clock.
    pub at: Nanos,
    /// TSC cycles spent in turns that found work, since launch.
    pub busy_cycles: u64,
    /// TSC cycles spent in turns that found none, and asleep.
    pub idle_cycles: u64,
    /// Turns of the loop since launch.
    pub turns: u64,
    /// Host reads, writes (all write-nature commands), bytes and errors per volume.
    pub volumes: Vec<VolumeCounters>,
    /// Host commands that wait for room now.
    pub waiting: u32,
    /// Host commands that had to wait for room, since launch.
    pub waited: u64,
    /// Reads, comparisons and flushes that pass between movers (G3).
    pub remote: RemoteCounters,
    /// Arena bytes in use and in all.
    pub arena_bytes: (u64, u64),
    /// The primary shard's counts; none at a secondary mover.
    pub primary: Option<PrimarySnapshot>,
    /// The coordinator's view, where this poller runs the engine.
    pub coordinator: Option<Vec<CoordinatorView>>,
    /// The secondary shard's state; none at a primary mover.
    pub secondary: Option<Vec<SecondaryGroupView>>,
    /// The secondary coordinator's view, where this poller runs it.
    pub secondary_coordinator: Option<Vec<SecondaryCoordinatorView>>,
    /// The set journal; none at a primary mover.
    pub journal: Option<JournalView>,
    /// Packets that belonged to no link, and control messages that could not be read.
    pub refused_packets: u64,
    /// The links.
    pub links: Vec<LinkView>,
    /// Host write latency since the last snapshot, nanoseconds.
    pub write_latency_ns: Histogram<u64>,
    /// How long acknowledgements were held at boundaries since the last snapshot, nanoseconds.
    pub hold_ns: Histogram<u64>,
}

/// The primary shard's part of a snapshot.
#[derive(Clone, Debug)]
pub struct PrimarySnapshot {
    /// Counts since launch.
    pub counters: PrimaryCounters,
    /// Updates retained, and copies held for others.
    pub retained: (u32, u32),
    /// The groups.
    pub groups: Vec<GroupView>,
    /// The next number of each volume.
    pub next_seqs: Vec<(VolumeId, Seq)>,
    /// Payload bytes of each volume's updates that the secondary has not confirmed.
    pub retained_bytes: Vec<(VolumeId, u64)>,
}

/// Counts of one volume at its poller since launch.
#[derive(Clone, Copy, Default, Debug)]
pub struct VolumeCounters {
    /// The volume.
    pub volume: VolumeId,
    /// Host reads.
    pub reads: u64,
    /// Host writes, write zeroes and deallocates.
    pub writes: u64,
    /// Payload bytes of these.
    pub bytes_written: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Commands completed with an error status.
    pub errors: u64,
}

/// Counts of what hosts want read or flushed at a mover that is not responsible for the volume, since
/// launch.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RemoteCounters {
    /// Commands of hosts here that a responsible shard elsewhere was asked to carry out.
    pub asked: u64,
    /// Asks of other shards that were carried out here.
    pub answered: u64,
    /// Commands of hosts here that ended because the responsible shard was not heard.
    pub given_up: u64,
}

/// A group at a secondary shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondaryGroupView {
    /// The group.
    pub id: GroupId,
    /// The last set stored here.
    pub stored: SetId,
    /// The last set applied here.
    pub applied: SetId,
    /// Updates received and not applied.
    pub backlog_updates: u64,
    /// Payload bytes of these.
    pub backlog_bytes: u64,
}

/// A group at the secondary coordinator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecondaryCoordinatorView {
    /// The group.
    pub id: GroupId,
    /// The last set that is committed: the secondary could fail over to it (T6).
    pub committed: SetId,
    /// When that set was cut, nanoseconds since the Unix epoch; 0 when none.
    pub committed_cut_time_ns: u64,
    /// The last set that all shards have applied: the consistency point.
    pub applied: SetId,
    /// When that set was cut, nanoseconds since the Unix epoch; 0 when not known.
    pub applied_cut_time_ns: u64,
    /// Whether apply is stopped on request.
    pub paused: bool,
    /// Whether the volumes stand exactly at `applied`: nothing of a later set is being written.
    pub at_boundary: bool,
}

/// The set journal of a poller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalView {
    /// Bytes of the log.
    pub capacity_bytes: u64,
    /// Bytes of it in use.
    pub used_bytes: u64,
    /// A write or flush failed: nothing is stored any more.
    pub failed: bool,
}

/// One link of a poller.
#[derive(Clone, Copy, Debug)]
pub struct LinkView {
    /// The peer.
    pub peer: ShardId,
    /// How it stands.
    pub state: PeerState,
    /// Packets sent, again included.
    pub sent: u64,
    /// Packets sent again.
    pub retransmitted: u64,
    /// Packets received.
    pub received: u64,
    /// Packets refused: malformed, stale, foreign.
    pub refused: u64,
    /// Packets received twice.
    pub duplicates: u64,
    /// Smoothed round trip in nanoseconds.
    pub rtt_ns: u64,
}
