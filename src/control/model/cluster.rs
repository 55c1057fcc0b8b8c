//! What a mover says of its site's cluster store.

use serde::{Deserialize, Serialize};

/// The site's store as this mover sees it (P4).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Its kind: `embedded` or `etcd`.
    pub store: String,
    /// Where it is; empty for a file.
    pub endpoints: Vec<String>,
    /// Whether it answers.
    pub available: bool,
    /// Since when it does not.
    pub unavailable_since_unix_ms: Option<u64>,
    /// Why it does not, or why its record cannot be used.
    pub reason: Option<String>,
    /// Name of the mover that leads the site.
    pub leader: Option<String>,
    /// This mover leads, and its lease holds.
    pub leads: bool,
    /// How long this mover counts as alive if it is not heard any more; 0 without a lease, none where
    /// there is nothing to run out.
    pub lease_remaining_ms: Option<u64>,
    /// Names of the movers that the store counts as alive.
    pub alive: Vec<String>,
    /// Why the membership never changes; none where it follows the record.
    pub fixed: Option<String>,
    /// Whether every member is whole in the record's epoch: as many may fail as there are spare copies.
    pub whole: bool,
    /// The record; none while it is not known.
    pub record: Option<ClusterRecord>,
}

/// What the site has agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Its version in the store.
    pub revision: u64,
    /// The membership epoch.
    pub epoch: u32,
    /// Version of the volume map.
    pub map_version: u32,
    /// Names of the members.
    pub members: Vec<String>,
    /// Of each of them, the epoch since which it is one without interruption.
    pub since: Vec<u32>,
    /// Most movers of one epoch that failed since every member was whole.
    pub failures: u16,
    /// Groups of which more movers have failed at once than they have spare copies: they form no sets
    /// before they are resynchronised.
    pub lost: Vec<u16>,
    /// Movers that were excluded.
    pub excluded: Vec<ExcludedInfo>,
}

/// An excluded mover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcludedInfo {
    /// Its name.
    pub mover: String,
    /// The epoch that began with it.
    pub epoch: u32,
    /// Since when.
    pub since_unix_ms: u64,
    /// Why.
    pub reason: String,
}
