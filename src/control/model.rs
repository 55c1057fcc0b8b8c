//! The words of the API: what can be asked, what is answered, what can go wrong.
//!
//! All types are plain values that serialise to JSON. Fields may be added; a field, once there,
//! keeps its name, unit and meaning within `/v1`. Times of day are milliseconds since the Unix
//! epoch (`_unix_ms`); everything else names its unit.

use serde::{Deserialize, Serialize};

use crate::config::{Role, Traffic};

mod assignment;
mod cluster;
mod error;
mod group;
mod movers;
mod sets;

pub use assignment::*;
pub use cluster::*;
pub use error::{ApiError, ErrorCode, ExitCode};
pub use group::*;
pub use movers::*;
pub use sets::*;

/// What answers the API. Calls may come from several threads at once, each may block for as long
/// as its request takes, and none runs on a poller.
pub trait ControlPlane: Send + Sync {
    /// Answers one request.
    ///
    /// # Errors
    /// [`ApiError`] with a code for programs, and for people what happened and what to do.
    fn call(&self, request: Request) -> Result<Response, ApiError>;
}

/// What can be asked of a mover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How the mover is.
    Status,
    /// All groups.
    GroupList,
    /// One group, by name.
    GroupShow {
        /// Its name.
        group: String,
    },
    /// Changes the formation period from the next set on (F2). At the coordinator.
    GroupSetPeriod {
        /// The group's name.
        group: String,
        /// The period, milliseconds.
        period_ms: u64,
    },
    /// Stops applying sets at a boundary, on all movers of the secondary site, while receiving
    /// goes on. Answered once all have stopped. At the secondary's coordinator.
    ApplyPause {
        /// The group's name.
        group: String,
    },
    /// Goes on applying. At the secondary's coordinator.
    ApplyResume {
        /// The group's name.
        group: String,
    },
    /// All volumes.
    VolumeList,
    /// The map volume → responsible mover (G1).
    VolumeMap,
    /// The pollers and their load.
    CoreList,
    /// Which volume is served by which core.
    CoreMap,
    /// The movers of both sites, as this one sees them.
    MoverList,
    /// Who is responsible for what, and what moves (F3).
    Assignment,
    /// Changes that. Answered once it is noted; what follows from it is done after that. Any member
    /// can be asked.
    Wish {
        /// What is wanted.
        wish: Wish,
        /// Only says what would follow, or why not.
        dry_run: bool,
    },
    /// The sets in existence, newest first (F7).
    SetList {
        /// The group's name.
        group: String,
        /// How many at most.
        limit: usize,
    },
    /// One set.
    SetShow {
        /// The group's name.
        group: String,
        /// Its number.
        set: u64,
    },
    /// Closes the open set now (F2). Answered with that set once it is closed. At the coordinator.
    SetClose {
        /// The group's name.
        group: String,
    },
    /// What is retained of a volume's updates (G5), newest first.
    Ledger {
        /// The volume, as `GROUP/VOLUME`, or its name where that is unique.
        volume: String,
        /// How many at most.
        limit: usize,
    },
    /// Events with a number above `since`, oldest first; at once, even when there is none.
    Events {
        /// Number of the last event known; 0 for all that are retained.
        since: u64,
        /// How many at most.
        limit: usize,
    },
    /// All counters.
    Metrics,
    /// Stops the mover. Answered before it stops.
    Shutdown {
        /// Whether it first takes no more updates and waits until those it has are safe elsewhere.
        drain: bool,
    },
}

/// The answers. On the wire each is the bare value within.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::GroupList`].
    Groups(Vec<GroupStatus>),
    /// To [`Request::GroupShow`], [`Request::GroupSetPeriod`], [`Request::ApplyPause`] and
    /// [`Request::ApplyResume`].
    Group(GroupStatus),
    /// To [`Request::VolumeList`].
    Volumes(Vec<VolumeInfo>),
    /// To [`Request::VolumeMap`] and [`Request::CoreMap`].
    Map(VolumeMap),
    /// To [`Request::CoreList`].
    Cores(Vec<CoreInfo>),
    /// To [`Request::MoverList`].
    Movers(Vec<MoverInfo>),
    /// To [`Request::Assignment`] and [`Request::Wish`].
    Assignment(AssignmentInfo),
    /// To [`Request::SetList`].
    Sets(Vec<SetInfo>),
    /// To [`Request::SetShow`] and [`Request::SetClose`].
    Set(SetInfo),
    /// To [`Request::Ledger`].
    Ledger(Vec<LedgerEntry>),
    /// To [`Request::Events`].
    Events(Vec<Event>),
    /// To [`Request::Metrics`].
    Metrics(Vec<Metric>),
    /// To [`Request::Shutdown`].
    Done,
}

/// How a mover is, and its groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub mover: String,
    /// Its number.
    pub id: u16,
    /// Its site.
    pub site: String,
    /// What its site does.
    pub role: Role,
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Since when it runs.
    pub uptime_ms: u64,
    /// Whether it is ready for hosts (primary) or sets (secondary): devices opened, peers met.
    pub ready: bool,
    /// Membership epoch of its site.
    pub epoch: u32,
    /// Version of the volume map.
    pub map_version: u32,
    /// Name of its site's coordinator, if it knows one.
    pub coordinator: Option<String>,
    /// Everything that is not as it should be; empty when all is well. Sentences for people.
    pub degraded: Vec<String>,
    /// What the configuration promises less than one may think.
    pub warnings: Vec<String>,
    /// Whether hosts come by paths of their own (G9).
    #[serde(default)]
    pub traffic: Traffic,
    /// Its site's store.
    #[serde(default)]
    pub cluster: ClusterInfo,
    /// Its groups.
    pub groups: Vec<GroupStatus>,
}

/// Something that happened: every transition of a state is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number at this mover, ascending by one since the process started.
    pub id: u64,
    /// When.
    pub time_unix_ms: u64,
    /// How much it matters.
    pub level: EventLevel,
    /// What kind it is, a stable name such as `group-state`.
    pub kind: String,
    /// The group it concerns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub group: Option<String>,
    /// What happened, for people.
    pub message: String,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventLevel {
    /// The expected course.
    Info,
    /// Less is promised than should be.
    Warning,
    /// Somebody is needed.
    Error,
}

/// One counter or gauge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Name in Prometheus' style, without the prefix `setline_`; counters end in `_total`.
    pub name: String,
    /// Labels, in a fixed order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

/// A distribution, in the unit that the field holding it names.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values; the rest is 0 when there are none.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

impl From<&hdrhistogram::Histogram<u64>> for Summary {
    fn from(histogram: &hdrhistogram::Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_distribution_is_all_zeros() {
        let histogram = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        assert_eq!(Summary::from(&histogram), Summary::default());
    }

    #[test]
    fn answers_are_bare_values_on_the_wire() {
        let response = Response::Ledger(Vec::new());
        assert_eq!(serde_json::to_string(&response).unwrap(), "[]");
        assert_eq!(serde_json::to_string(&Response::Done).unwrap(), "null");
    }
}
