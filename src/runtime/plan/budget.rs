//! How the arena of one poller is divided, and the limits that follow.

use super::{HOST_PAYLOAD_BYTES_MAX, PlanError, Topology, records_in};
use crate::config::{Mover, Role, SEGMENT_MIB};
use crate::mem::arena::{HEADER_BYTES, LogLimits, SEGMENT_BYTES};
use crate::proto::types::ShardId;

/// Memory of each direction in which data that are read for hosts pass between movers (G3): a segment
/// of small records, and one of large ones.
pub const REMOTE_POOL_BYTES: u64 = 2 * SEGMENT_BYTES as u64;

/// The least that a source can do with: room for a largest update of its own, and for one that it
/// forwards.
const GRANT_BYTES_MIN: u64 = 2 * (HOST_PAYLOAD_BYTES_MAX + HEADER_BYTES) as u64;

/// The arena of one poller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArenaBudget {
    /// All of it, in bytes.
    pub bytes: u64,
    /// What copies for others may take, all sources together, in bytes of segments. At a secondary
    /// shard: what its partner's copies may take.
    pub mirror_bytes: u64,
    /// What data that are read for hosts of other movers, or from them, take: both directions.
    pub remote_bytes: u64,
    /// What each source may keep here, in bytes of records: copies, and updates that it forwarded.
    /// The same for all.
    pub grant_bytes: u64,
    /// Updates retained at once.
    pub retained_max: u32,
    /// Copies held for others at once.
    pub mirrored_max: u32,
}

impl ArenaBudget {
    /// The arena of `shard`, a poller of `mover`.
    ///
    /// A grant must be keepable: its bytes are records, while the arena hands out segments, of
    /// which the oldest and the newest set of every group may pin one each.
    pub(super) fn of(
        mover: &Mover,
        topology: &Topology,
        shard: ShardId,
    ) -> Result<Self, PlanError> {
        let (arena_mib, percent) = (mover.mover.arena_mib, mover.mover.arena_mirror_percent);
        let sources = match mover.mover.role {
            Role::Primary => topology.mirror_peers(shard).len(),
            Role::Secondary => usize::from(topology.partner_of(shard).is_some()),
        };
        let shared = mover.mover.role == Role::Primary && sources > 0;
        let budget = Self::divide(arena_mib, percent, sources, mover.groups.len(), shared);
        if sources > 0 && budget.grant_bytes < GRANT_BYTES_MIN {
            let enough = |mib: &u32| {
                let budget = Self::divide(*mib, percent, sources, mover.groups.len(), shared);
                budget.grant_bytes >= GRANT_BYTES_MIN
            };
            let needed_mib = (arena_mib..).step_by(SEGMENT_MIB as usize).find(enough);
            return Err(PlanError::Arena {
                arena_mib,
                percent,
                poller: shard.poller,
                sources,
                needed_mib: needed_mib.unwrap_or(u32::MAX),
            });
        }
        Ok(budget)
    }

    /// `shared`: other movers of the site take updates for the same volumes.
    fn divide(arena_mib: u32, percent: u8, sources: usize, groups: usize, shared: bool) -> Self {
        let segments = u64::from(arena_mib / SEGMENT_MIB);
        let mirror_segments = match sources {
            0 => 0,
            _ => segments * u64::from(percent) / 100,
        };
        let segment = SEGMENT_BYTES as u64;
        let share = mirror_segments / sources.max(1) as u64;
        // `budget_bytes` allows for one group's pair of pinned segments.
        let further_pinned = 2 * (groups.max(1) as u64 - 1);
        let keepable = LogLimits::exactly(share.saturating_sub(further_pinned) * segment);
        let remote_bytes = if shared { 2 * REMOTE_POOL_BYTES } else { 0 };
        let own = ((segments - mirror_segments) * segment).saturating_sub(remote_bytes);
        Self {
            bytes: segments * segment,
            mirror_bytes: mirror_segments * segment,
            remote_bytes,
            grant_bytes: keepable.budget_bytes(HOST_PAYLOAD_BYTES_MAX),
            retained_max: records_in(own),
            mirrored_max: records_in(mirror_segments * segment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_grants_together_fit_the_mirror_share() {
        for sources in 1..6 {
            for groups in 1..4 {
                let budget = ArenaBudget::divide(256, 50, sources, groups, true);
                assert_eq!(budget.bytes, 256 << 20);
                assert!(budget.grant_bytes * sources as u64 <= budget.mirror_bytes);
            }
        }
    }

    #[test]
    fn a_mover_alone_keeps_its_arena_for_itself() {
        let budget = ArenaBudget::divide(256, 50, 0, 1, false);
        assert_eq!((budget.mirror_bytes, budget.grant_bytes, budget.remote_bytes), (0, 0, 0));
    }
}
