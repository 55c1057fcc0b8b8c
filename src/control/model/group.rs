//! Groups and volumes.

use serde::{Deserialize, Serialize};

use super::{MarksInfo, Summary};
use crate::config::Timestamps;

/// The state of a group; each transition is an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupState {
    /// The first copy of the volumes is under way; there is no consistent point yet.
    InitialCopy,
    /// Sets are formed, transferred and applied.
    Consistent,
    /// The secondary is not reached; data is kept.
    Buffering,
    /// The buffer is full; changed blocks are recorded only.
    Tracking,
    /// The secondary is brought up to date; its last consistent point stays usable.
    Resyncing,
    /// The secondary serves hosts.
    FailedOver,
    /// Replication runs the other way.
    Reversed,
}

impl GroupState {
    /// The name on the wire and on the screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InitialCopy => "initial-copy",
            Self::Consistent => "consistent",
            Self::Buffering => "buffering",
            Self::Tracking => "tracking",
            Self::Resyncing => "resyncing",
            Self::FailedOver => "failed-over",
            Self::Reversed => "reversed",
        }
    }
}

/// A group, as one mover sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u16,
    /// NQN of the subsystem that hosts see.
    pub nqn: String,
    /// Its state.
    pub state: GroupState,
    /// Since when.
    pub since_unix_ms: u64,
    /// Why.
    pub reason: String,
    /// Whether every acknowledged update is held by at least two movers (or is at the secondary)
    /// at this moment. Never with `copies = 1`.
    pub protected: bool,
    /// Set when the secondary cannot be brought to the primary's state by sets alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub needs_resync: Option<NeedsResync>,
    /// Movers of the primary site that hold an update before it is acknowledged.
    pub copies: u8,
    /// Formation period, milliseconds.
    pub period_ms: u64,
    /// The time stamps of updates that are taken here (G8); none at the secondary site, and where
    /// updates have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timestamps: Option<TimestampInfo>,
    /// Whether sets are applied (at the secondary).
    pub apply: ApplyState,
    /// The newest set in each state.
    pub sets: MarksInfo,
    /// The last set that the secondary has wholly applied; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub consistency_point: Option<ConsistencyPoint>,
    /// Age of the last set that the secondary could fail over to, milliseconds; absent before
    /// the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recovery_point_ms: Option<f64>,
    /// Bytes of updates not yet confirmed (primary) or not yet applied (secondary), at this mover.
    pub backlog_bytes: u64,
    /// Sets not yet confirmed (primary) or not yet applied (secondary).
    pub backlog_sets: u64,
    /// Names of volumes in its subsystem that are not replicated (G11): nothing here is about them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unreplicated: Vec<String>,
    /// What was done since this mover started.
    pub totals: GroupTotals,
    /// Hold of acknowledgements at boundaries, nanoseconds.
    pub boundary_hold_ns: Summary,
    /// Time from a host's write arriving to its completion, nanoseconds.
    pub write_latency_ns: Summary,
    /// Recovery point, sampled whenever a set was applied, microseconds.
    pub recovery_point_us: Summary,
}

/// The time stamps that a mover gives to updates (G8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimestampInfo {
    /// Where they come from.
    pub source: Timestamps,
    /// The bound of their error at this moment, nanoseconds; none when it is not known.
    pub error_ns: Option<u32>,
    /// Whether the source is synchronised: the system clock as the kernel says; of the common timer,
    /// whether it is known here.
    pub synchronised: bool,
    /// The bound of the clock's error is the configuration's.
    #[serde(default)]
    pub configured: bool,
}

/// Why a group must be resynchronised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeedsResync {
    /// Since when.
    pub since_unix_ms: u64,
    /// Why, and what is missing.
    pub reason: String,
}

/// Whether sets are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplyState {
    /// They are.
    Running,
    /// On request, after the set under way.
    Pausing,
    /// No: the volumes stand at the boundary after this set.
    Paused {
        /// The last set applied.
        set: u64,
    },
    /// This mover applies none (primary site).
    NotHere,
}

/// A point in time of all volumes of a group (T6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyPoint {
    /// The set.
    pub set: u64,
    /// When it was closed at the primary site.
    pub time_unix_ms: u64,
}

/// What a mover did for a group since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GroupTotals {
    /// Writes (and other updates) acknowledged to hosts.
    pub acked_writes: u64,
    /// Their payload.
    pub acked_bytes: u64,
    /// Reads completed.
    pub reads: u64,
    /// Commands that hosts saw fail.
    pub host_errors: u64,
    /// Updates received as another mover's mirror.
    pub mirrored_updates: u64,
    /// Payload sent to the secondary (primary), or applied (secondary).
    pub bytes_replicated: u64,
    /// Sets closed (at the coordinator of the primary site).
    pub sets_formed: u64,
    /// Sets confirmed by the secondary (primary), or applied (secondary).
    pub sets_applied: u64,
}

/// A volume pair, or a volume that is not replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Whether it is replicated (G11). What follows of numbers, updates and targets is 0 or empty
    /// otherwise.
    #[serde(default = "yes")]
    pub replicated: bool,
    /// Its number; 0 when it is not replicated.
    pub id: u32,
    /// Namespace id.
    pub nsid: u32,
    /// Block size, bytes; 0 while this mover does not know it: the base of a volume that is not replicated
    /// is not open here.
    pub block_bytes: u32,
    /// Size, MiB; the same.
    pub size_mib: u64,
    /// Namespace UUID.
    pub uuid: String,
    /// Namespace NGUID.
    pub nguid: String,
    /// Where the primary's data lies, in words.
    pub base: String,
    /// Responsible mover. When it is not replicated: the only mover that offers it, empty when all do.
    pub mover: String,
    /// Its poller.
    pub poller: u8,
    /// Mover of the secondary site.
    pub target_mover: String,
    /// Its poller.
    pub target_poller: u8,
    /// Where the copy lies, in words.
    pub target_base: String,
    /// Last sequence number given (responsible mover), applied (target mover) or seen.
    pub last_seq: u64,
    /// Updates acknowledged (responsible mover) or applied (target mover) since start.
    pub updates: u64,
    /// Bytes of retained updates at this mover.
    pub retained_bytes: u64,
    /// How `base` is kept from other movers; none from a mover that does not have it open.
    #[serde(default)]
    pub fencing: Option<Fencing>,
    /// The same of `target_base`.
    #[serde(default)]
    pub target_fencing: Option<Fencing>,
}

/// What volumes were before some were not replicated.
const fn yes() -> bool {
    true
}

/// How a base is kept from other movers (G13).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fencing {
    /// The state.
    pub state: FencingState,
    /// The kind of reservation, or why there is none, in words.
    pub reason: String,
    /// This mover's key there, hexadecimal.
    pub key: Option<String>,
    /// Since when it is waited for ([`FencingState::Waiting`]).
    #[serde(default)]
    pub since_unix_ms: Option<u64>,
}

impl std::fmt::Display for FencingState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fenced => "fenced",
            Self::Bound => "bound",
            Self::Excluded => "excluded",
            Self::Waiting => "waiting",
        })
    }
}

/// Whether a base is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FencingState {
    /// Only movers that are registered there can write, and this one is.
    Fenced,
    /// It cannot be fenced; the volume stays with the one mover that writes it.
    Bound,
    /// Another mover shut this one out: it writes nothing any more.
    Excluded,
    /// This mover takes the volume over, and waits until nobody else can write.
    Waiting,
}

/// The map volume → responsible mover (G1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMap {
    /// Its version.
    pub version: u32,
    /// The epoch it belongs to.
    pub epoch: u32,
    /// One entry per volume, by group and name.
    pub entries: Vec<VolumeMapEntry>,
}

/// One volume's entry in the map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMapEntry {
    /// Group.
    pub group: String,
    /// Volume.
    pub volume: String,
    /// Responsible mover.
    pub mover: String,
    /// Its poller.
    pub poller: u8,
    /// The core of that poller, where this mover knows it (its own).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub core: Option<u16>,
    /// Where its updates are mirrored at present.
    pub mirrors: Vec<String>,
    /// Mover of the secondary site.
    pub target_mover: String,
    /// Its poller.
    pub target_poller: u8,
}
