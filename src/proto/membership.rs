//! Who belongs to the primary site, and who is responsible for what: the record that is agreed
//! upon once per epoch (invariants 4 and 9), and how the next one follows from it (F3, F4, F5).
//!
//! The record lives in the cluster's store, where a compare-and-swap on the epoch decides between
//! movers that want different ones; every mover acts only upon what the store has. This module
//! computes; it does not decide when.

use super::losses::Spell;
use super::types::{Epoch, GroupId, MapVersion, MoverId, ShardId, VolumeId};
use alloc::vec::Vec;

/// What all members of a site agree upon in one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteRecord {
    /// The epoch.
    pub epoch: Epoch,
    /// The version of the map below.
    pub map_version: MapVersion,
    /// The members, ascending.
    pub members: Vec<MoverId>,
    /// The epoch since which each of them takes part without interruption, in the same order: what is
    /// older than that its memory does not know of.
    pub since: Vec<Epoch>,
    /// The shard whose poller runs the boundaries.
    pub coordinator: ShardId,
    /// The responsible shard of every volume, ascending by volume.
    pub owners: Vec<(VolumeId, ShardId)>,
    /// Volumes whose former owner failed and whose new one may not have brought them up to date
    /// yet, ascending.
    pub moved: Vec<VolumeId>,
    /// The epochs since which not everything has been held by as many movers as it should be, ascending,
    /// the present one included.
    pub spells: Vec<Spell>,
    /// Groups of which more movers have failed at once than they have spare copies, ascending: until they
    /// are resynchronised.
    pub lost: Vec<GroupId>,
    /// Moves between living members that are to be carried out at a boundary, or are being so.
    pub plan: Option<Plan>,
}

/// Planned moves of responsibility (F3, F6). Every member knows of them before the boundary at which
/// they are carried out; each group carries out its own at one boundary of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The version of the map once they are carried out; later than the record's.
    pub version: MapVersion,
    /// The volumes that move, ascending, and who is responsible for each then.
    pub moves: Vec<(VolumeId, ShardId)>,
}

impl Plan {
    /// Where a volume moves to, if it does.
    #[must_use]
    pub fn target(&self, volume: VolumeId) -> Option<ShardId> {
        let at = self.moves.binary_search_by_key(&volume, |(id, _)| *id).ok()?;
        Some(self.moves[at].1)
    }
}

/// What makes the next epoch.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Members that are excluded.
    pub failed: &'a [MoverId],
    /// Movers that take part from now on, with empty memories.
    pub joined: &'a [MoverId],
    /// In the present epoch every volume is up to date at its owner, and every update is held by as
    /// many members as it should be.
    pub whole: bool,
    /// The one that takes everything over (F5); all others share when it is none, or not there.
    pub spare: Option<MoverId>,
    /// Groups, and how many copies each should have of an update.
    pub copies: &'a [(GroupId, u8)],
}

impl SiteRecord {
    /// The shard responsible for a volume.
    #[must_use]
    pub fn owner(&self, volume: VolumeId) -> Option<ShardId> {
        let at = self.owners.binary_search_by_key(&volume, |(id, _)| *id).ok()?;
        Some(self.owners[at].1)
    }

    /// The shard responsible for a volume at one that has carried out the moves up to the map `version`.
    #[must_use]
    pub fn owner_in(&self, version: MapVersion, volume: VolumeId) -> Option<ShardId> {
        let planned = self.plan.as_ref().filter(|plan| plan.version <= version);
        planned.and_then(|plan| plan.target(volume)).or_else(|| self.owner(volume))
    }

    /// The same epoch with moves to carry out, in any order: volumes that are where they should be are
    /// left out. None when nothing is left, when moves are under way, or when one goes to a mover
    /// that is no member or to a volume's other lane, which its new shard would know nothing of.
    /// The caller made sure that the epoch is whole: a volume that is being taken over cannot move.
    #[must_use]
    pub fn planned(&self, moves: &[(VolumeId, ShardId)]) -> Option<Self> {
        let mut moves: Vec<(VolumeId, ShardId)> =
            moves.iter().copied().filter(|(volume, to)| self.owner(*volume) != Some(*to)).collect();
        moves.sort_unstable();
        moves.dedup_by_key(|(volume, _)| *volume);
        let possible = |(volume, to): &(VolumeId, ShardId)| {
            self.members.contains(&to.mover)
                && self.owner(*volume).is_some_and(|owner| owner.poller == to.poller)
        };
        if self.plan.is_some() || moves.is_empty() || !moves.iter().all(possible) {
            return None;
        }
        let plan = Plan { version: self.later_map(), moves };
        Some(Self { plan: Some(plan), ..self.clone() })
    }

    /// The same epoch once its moves are carried out everywhere; none when there are none.
    #[must_use]
    pub fn carried_out(&self) -> Option<Self> {
        let plan = self.plan.as_ref()?;
        let map_version = self.map_version.max(plan.version);
        let mut next = Self { plan: None, map_version, ..self.clone() };
        for (volume, owner) in &mut next.owners {
            *owner = plan.target(*volume).unwrap_or(*owner);
        }
        Some(next)
    }

    /// A map version that was never used.
    fn later_map(&self) -> MapVersion {
        let planned = self.plan.as_ref().map_or(0, |plan| plan.version.0);
        MapVersion(self.map_version.0.max(planned) + 1)
    }

    /// The epoch since which a member takes part without interruption.
    #[must_use]
    pub fn since(&self, mover: MoverId) -> Option<Epoch> {
        let at = self.members.binary_search(&mover).ok()?;
        self.since.get(at).copied()
    }

    /// Whether a mover that took part in the epoch `before` has left since: it is no member, or is one
    /// again with an empty memory. A mover may hear of several epochs at once.
    #[must_use]
    pub fn left_since(&self, mover: MoverId, before: Epoch) -> bool {
        self.since(mover).is_none_or(|since| since > before)
    }

    /// The record of the next epoch; none when nobody would be left. Volumes of movers that failed
    /// go to the same lane (poller index modulo pollers) of the member with the least `load`
    /// including what it is given here, which is counted in the unit that `weight` is in.
    ///
    /// What was to move, or is moving, between members that stay does so further on. A volume whose
    /// present owner failed goes where it was to move, since it may be there. One that was to move to
    /// a mover that failed is taken over by its present owner: whoever failed may have had it.
    #[must_use]
    pub fn next(
        &self,
        change: &Change<'_>,
        pollers: impl Fn(MoverId) -> u8,
        weight: impl Fn(VolumeId) -> u64,
    ) -> Option<Self> {
        let failed = |mover: &MoverId| change.failed.contains(mover);
        let mut members: Vec<MoverId> =
            self.members.iter().copied().filter(|mover| !failed(mover)).collect();
        let stayed = members.clone();
        members.extend(change.joined.iter().filter(|mover| !self.members.contains(mover)));
        members.sort_unstable();
        members.dedup();
        let epoch = Epoch(self.epoch.0 + 1);
        let since = members.iter().map(|mover| self.since(*mover).unwrap_or(epoch)).collect();
        let first = *stayed.first()?;
        let mut loads: Vec<(MoverId, u64)> = stayed.iter().map(|mover| (*mover, 0)).collect();
        for (volume, owner) in &self.owners {
            if let Some(load) = loads.iter_mut().find(|(mover, _)| *mover == owner.mover) {
                load.1 += weight(*volume);
            }
        }
        let spare = change.spare.filter(|spare| stayed.contains(spare));
        let mut moved = if change.whole { Vec::new() } else { self.moved.clone() };
        let mut owners = self.owners.clone();
        let mut moves = self.plan.as_ref().map_or_else(Vec::new, |plan| plan.moves.clone());
        for (volume, owner) in &mut owners {
            let planned = self.plan.as_ref().and_then(|plan| plan.target(*volume));
            let lost = planned.is_some_and(|to| !stayed.contains(&to.mover));
            if !lost && !failed(&owner.mover) {
                continue;
            }
            moves.retain(|(moving, _)| moving != volume);
            moved.push(*volume);
            if !failed(&owner.mover) {
                continue;
            }
            if let Some(to) = planned.filter(|_| !lost) {
                *owner = to;
                continue;
            }
            let least = loads.iter_mut().min_by_key(|(mover, load)| (*load, *mover));
            let to = match (spare, least) {
                (Some(spare), _) => spare,
                (None, Some((mover, load))) => {
                    *load += weight(*volume);
                    *mover
                }
                (None, None) => return None,
            };
            *owner = ShardId { mover: to, poller: owner.poller % pollers(to).max(1) };
        }
        moved.sort_unstable();
        moved.dedup();
        let (spells, lost) = self.after(change, epoch, members.len());
        let coordinator = if failed(&self.coordinator.mover) {
            ShardId { mover: first, poller: 0 }
        } else {
            self.coordinator
        };
        let plan = self.plan.as_ref().map(|plan| Plan { version: plan.version, moves });
        let plan = plan.filter(|plan| !plan.moves.is_empty());
        let map_version = if owners == self.owners && plan == self.plan {
            self.map_version
        } else {
            self.later_map()
        };
        Some(Self {
            epoch,
            map_version,
            members,
            since,
            coordinator,
            owners,
            moved,
            spells,
            lost,
            plan,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn record() -> SiteRecord {
        let owner = |volume: u32| (VolumeId(volume), ShardId::new((volume % 3) as u16, 1));
        SiteRecord {
            epoch: Epoch(7),
            map_version: MapVersion(3),
            members: vec![MoverId(0), MoverId(1), MoverId(2)],
            since: vec![Epoch(7); 3],
            coordinator: ShardId::new(0, 0),
            owners: (0..6).map(owner).collect(),
            moved: Vec::new(),
            spells: SiteRecord::first_spell(Epoch(7), 3),
            lost: Vec::new(),
            plan: None,
        }
    }

    fn next(record: &SiteRecord, change: &Change<'_>) -> SiteRecord {
        record.next(change, |_| 2, |_| 1).expect("somebody is left")
    }

    const NONE: Change<'static> =
        Change { failed: &[], joined: &[], whole: true, spare: None, copies: &[] };

    #[test]
    fn what_a_failed_mover_had_is_shared_by_the_others() {
        let after = next(&record(), &Change { failed: &[MoverId(0)], ..NONE });
        assert_eq!(
            (after.epoch, after.map_version, after.failures()),
            (Epoch(8), MapVersion(4), 1)
        );
        assert_eq!(after.coordinator, ShardId::new(1, 0));
        assert_eq!(after.moved, [VolumeId(0), VolumeId(3)]);
        assert_eq!(after.owner(VolumeId(0)), Some(ShardId::new(1, 1)));
        assert_eq!(after.owner(VolumeId(3)), Some(ShardId::new(2, 1)));
        let spare = Change { failed: &[MoverId(0)], spare: Some(MoverId(2)), ..NONE };
        let after = next(&record(), &spare);
        assert!([0, 3].iter().all(|v| after.owner(VolumeId(*v)) == Some(ShardId::new(2, 1))));
    }

    #[test]
    fn moves_are_planned_and_carried_out() {
        let to = |mover: u16| ShardId::new(mover, 1);
        let plan = record().planned(&[(VolumeId(3), to(1)), (VolumeId(1), to(1))]).unwrap();
        assert_eq!(plan.plan.as_ref().map(|p| p.moves.clone()), Some(vec![(VolumeId(3), to(1))]));
        assert_eq!((plan.map_version, plan.epoch), (MapVersion(3), Epoch(7)));
        assert_eq!(plan.owner_in(MapVersion(3), VolumeId(3)), Some(to(0)));
        assert_eq!(plan.owner_in(MapVersion(4), VolumeId(3)), Some(to(1)));
        assert!(plan.planned(&[(VolumeId(4), to(0))]).is_none(), "one plan at a time");
        let done = plan.carried_out().unwrap();
        assert_eq!((done.owner(VolumeId(3)), done.map_version), (Some(to(1)), MapVersion(4)));
        assert!(done.carried_out().is_none() && done.plan.is_none());
        for bad in [ShardId::new(9, 1), ShardId::new(1, 0)] {
            assert!(record().planned(&[(VolumeId(3), bad)]).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_failure_settles_the_moves_it_concerns() {
        let to = |mover: u16| ShardId::new(mover, 1);
        let moves = [(VolumeId(0), to(1)), (VolumeId(2), to(1)), (VolumeId(4), to(2))];
        let plan = record().planned(&moves).unwrap();
        let source = next(&plan, &Change { failed: &[MoverId(0)], ..NONE });
        assert_eq!(source.owner(VolumeId(0)), Some(to(1)), "where it was to move");
        assert_eq!(source.moved, [VolumeId(0), VolumeId(3)]);
        assert_eq!(source.plan.as_ref().map(|p| p.moves.len()), Some(2), "the rest goes on");
        assert_eq!(source.plan.as_ref().map(|p| p.version), plan.plan.as_ref().map(|p| p.version));
        assert!(source.map_version > MapVersion(4));
        let carried = source.carried_out().unwrap();
        assert_eq!(carried.map_version, source.map_version);
        let target = next(&plan, &Change { failed: &[MoverId(1)], ..NONE });
        assert_eq!(target.owner(VolumeId(0)), Some(to(0)), "taken over by who had it");
        assert_eq!(target.moved, [VolumeId(0), VolumeId(1), VolumeId(2), VolumeId(4)]);
        assert_eq!(target.plan, None);
        let third = next(&plan, &Change { joined: &[MoverId(5)], ..NONE });
        assert_eq!((&third.plan, third.map_version), (&plan.plan, plan.map_version));
    }

    #[test]
    fn failures_add_up_until_everything_is_whole_again() {
        let one = next(&record(), &Change { failed: &[MoverId(0)], ..NONE });
        let again = next(&one, &Change { failed: &[MoverId(1)], whole: false, ..NONE });
        assert_eq!(again.failures(), 2);
        assert_eq!(again.moved.len(), 4, "also what was under way: {:?}", again.moved);
        let healed = next(&one, &Change { joined: &[MoverId(0)], ..NONE });
        assert_eq!((healed.failures(), healed.moved.len(), healed.members.len()), (0, 0, 3));
        assert_eq!(healed.since, [Epoch(9), Epoch(7), Epoch(7)]);
        assert!(one.left_since(MoverId(0), Epoch(7)) && !one.left_since(MoverId(1), Epoch(7)));
        assert!(healed.left_since(MoverId(0), Epoch(7)), "it came back with an empty memory");
        assert!(!healed.left_since(MoverId(0), Epoch(9)));
        assert_eq!(healed.map_version, one.map_version, "nothing moves by joining");
        assert!(again.next(&Change { failed: &[MoverId(2)], ..NONE }, |_| 1, |_| 1).is_none());
    }
}
