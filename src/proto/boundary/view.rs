//! What the coordinator tells people of its groups.

use super::{Boundary, Group, Phase};
use crate::proto::command::SetState;
use crate::proto::message::BrokenReason;
use crate::proto::types::{GroupId, Nanos, SetId, ShardId};
use alloc::vec::Vec;

/// A group as the coordinator sees it, for status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoordinatorView {
    /// The group.
    pub id: GroupId,
    /// Its period in nanoseconds.
    pub period_ns: u64,
    /// The open set; 0 before the first boundary.
    pub open: SetId,
    /// Whether a boundary is under way, and since when.
    pub preparing_since: Option<Nanos>,
    /// Shards that have not answered what the engine waits for.
    pub waiting_for: Vec<ShardId>,
    /// The last set the secondary confirmed.
    pub confirmed: SetId,
    /// The last set the secondary applied.
    pub applied: SetId,
    /// Sets between open and confirmed: id, state, when cut (0: not yet).
    pub sets: Vec<(SetId, SetState, u64)>,
    /// Whether it can form no sets.
    pub broken: Option<BrokenReason>,
    /// Boundaries done since launch.
    pub boundaries: u64,
    /// Boundaries put off because too many sets were not confirmed.
    pub delayed: u64,
}

impl Boundary {
    /// The groups, for status.
    #[must_use]
    pub fn view(&self) -> Vec<CoordinatorView> {
        self.groups.iter().map(|group| self.view_of(group)).collect()
    }

    fn view_of(&self, group: &Group) -> CoordinatorView {
        let missing = |index: usize| match group.phase {
            Phase::Gathering => group.greeted[index].is_none(),
            Phase::Preparing => !group.prepared[index],
            Phase::Open => false,
        };
        let all = self.shards.iter().enumerate();
        CoordinatorView {
            id: group.id,
            period_ns: group.period_ns,
            open: group.open,
            preparing_since: (group.phase == Phase::Preparing).then_some(group.began_at),
            waiting_for: all.filter(|(index, _)| missing(*index)).map(|(_, s)| *s).collect(),
            confirmed: group.confirmed,
            applied: group.applied,
            sets: group.sets.iter().map(|s| (s.id, s.state, s.cut_time_ns)).collect(),
            broken: group.broken,
            boundaries: group.boundaries,
            delayed: group.delayed,
        }
    }
}
