//! Movers and their cores.

use serde::{Deserialize, Serialize};

use crate::config::{Role, Traffic};

/// A mover, as another sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MoverInfo {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u16,
    /// Its site.
    pub site: String,
    /// What its site does.
    pub role: Role,
    /// Number of its pollers.
    pub pollers: u8,
    /// Whether it is the mover that answers.
    pub this: bool,
    /// Whether hosts come to it by paths of their own (G9), of the mover that answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic: Option<Traffic>,
    /// Whether it coordinates its site.
    pub coordinator: bool,
    /// Whether all links to it are up.
    pub reachable: bool,
    /// Milliseconds since it was last heard; absent when never, or for the mover that answers.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub silence_ms: Option<u64>,
    /// Smoothed round-trip time of the slowest link, microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
    /// Packets sent again, over all links to it.
    pub retransmissions: u64,
}

/// A poller and its core.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoreInfo {
    /// The poller's index.
    pub poller: u8,
    /// The core it is pinned to.
    pub core: u16,
    /// Share of TSC cycles with work to do, over the last second, percent.
    pub busy_percent: f64,
    /// Cycles with work since start.
    pub busy_cycles: u64,
    /// Cycles without since start.
    pub idle_cycles: u64,
    /// Loop turns since start.
    pub turns: u64,
    /// Volumes it serves, as `GROUP/VOLUME`.
    pub volumes: Vec<String>,
    /// Updates taken per second, over the last second.
    pub updates_per_second: f64,
    /// Busy cycles per update, over the last second; 0 without updates.
    pub cycles_per_update: f64,
    /// Arena in use, bytes.
    pub arena_used_bytes: u64,
    /// Arena in all, bytes.
    pub arena_bytes: u64,
}
