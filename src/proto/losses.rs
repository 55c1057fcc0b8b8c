//! What failures may have cost (F5): whether a group may have lost updates is a question of how many
//! of the movers that hold them have failed since, and nothing else. One that falls again and again,
//! and had no time to take copies in between, costs nothing.

use super::membership::{Change, SiteRecord};
use super::types::{Epoch, GroupId, MoverId};
use alloc::vec::Vec;

/// An epoch since which not everything has been held by as many movers as it should be. What was
/// acknowledged in it, or copied again, is held by as many of its members as there should be
/// copies, or by all of them where there were fewer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spell {
    /// The epoch.
    pub epoch: Epoch,
    /// How many members it had.
    pub members: u16,
    /// How many of those have failed since.
    pub failures: u16,
}

impl Spell {
    /// Whether a group with so many copies may have lost updates of this epoch.
    #[must_use]
    pub fn may_lose(&self, copies: u8) -> bool {
        self.failures >= u16::from(copies).min(self.members)
    }
}

/// So many spells are kept apart; older ones are taken together.
const SPELLS_MAX: usize = 32;

impl SiteRecord {
    /// A spell of which nobody has failed yet: that of a site's first epoch.
    #[must_use]
    pub fn first_spell(epoch: Epoch, members: usize) -> Vec<Spell> {
        alloc::vec![Spell {
            epoch,
            members: members.min(usize::from(u16::MAX)) as u16,
            failures: 0
        }]
    }

    /// Most movers of one epoch that failed since everything was last held as it should be.
    #[must_use]
    pub fn failures(&self) -> u16 {
        self.spells.iter().map(|spell| spell.failures).max().unwrap_or(0)
    }

    /// The spells before the next epoch, were `failed` excluded in it.
    fn spells_without(&self, failed: &[MoverId], whole: bool) -> Vec<Spell> {
        let mut spells = if whole {
            Self::first_spell(self.epoch, self.members.len())
        } else {
            self.spells.clone()
        };
        for since in failed.iter().filter_map(|mover| self.since(*mover)) {
            for spell in spells.iter_mut().filter(|spell| spell.epoch >= since) {
                spell.failures += 1;
            }
        }
        spells
    }

    /// Whether a group of so many copies may lose updates when `failed` are excluded. `whole` as in
    /// [`Change`].
    #[must_use]
    pub fn may_lose(&self, failed: &[MoverId], whole: bool, copies: u8) -> bool {
        self.spells_without(failed, whole).iter().any(|spell| spell.may_lose(copies))
    }

    /// The spells of the next epoch, which has so many members, and the groups that may have lost
    /// updates by then, ascending.
    pub(super) fn after(
        &self,
        change: &Change<'_>,
        epoch: Epoch,
        members: usize,
    ) -> (Vec<Spell>, Vec<GroupId>) {
        let mut spells = self.spells_without(change.failed, change.whole);
        let mut lost = self.lost.clone();
        for (group, copies) in change.copies {
            if spells.iter().any(|spell| spell.may_lose(*copies)) {
                lost.push(*group);
            }
        }
        lost.sort_unstable();
        lost.dedup();
        spells.extend(Self::first_spell(epoch, members));
        if spells.len() > SPELLS_MAX {
            // As bad as either of them, at least.
            let (a, b) = (spells[0], spells[1]);
            spells[1] = Spell {
                epoch: a.epoch.max(b.epoch),
                members: a.members.min(b.members),
                failures: a.failures.max(b.failures),
            };
            spells.remove(0);
        }
        (spells, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::{MapVersion, ShardId};
    use super::*;
    use alloc::vec;

    const GROUP: GroupId = GroupId(1);

    fn site(members: u16) -> SiteRecord {
        SiteRecord {
            epoch: Epoch(1),
            map_version: MapVersion(1),
            members: (0..members).map(MoverId).collect(),
            since: vec![Epoch(1); usize::from(members)],
            coordinator: ShardId::new(0, 0),
            owners: Vec::new(),
            moved: Vec::new(),
            spells: SiteRecord::first_spell(Epoch(1), members.into()),
            lost: Vec::new(),
            plan: None,
        }
    }

    fn next(record: &SiteRecord, failed: &[u16], joined: &[u16], whole: bool) -> SiteRecord {
        let ids = |list: &[u16]| list.iter().copied().map(MoverId).collect::<Vec<_>>();
        let (failed, joined) = (ids(failed), ids(joined));
        let copies = &[(GROUP, 2)];
        let change = Change { failed: &failed, joined: &joined, whole, spare: None, copies };
        record.next(&change, |_| 1, |_| 1).expect("somebody is left")
    }

    #[test]
    fn two_of_three_at_once_are_one_too_many() {
        let one = next(&site(3), &[0], &[], true);
        assert!(one.lost.is_empty() && one.failures() == 1);
        assert!(next(&one, &[1], &[], true).lost.is_empty(), "everything was copied in between");
        assert!(one.may_lose(&[MoverId(1)], false, 2) && !one.may_lose(&[MoverId(1)], false, 3));
        assert_eq!(next(&one, &[1], &[], false).lost, [GROUP]);
        assert_eq!(next(&site(3), &[0, 1], &[], true).lost, [GROUP]);
    }

    #[test]
    fn one_that_falls_again_and_again_costs_nothing() {
        let mut record = site(3);
        for _ in 0..100 {
            record = next(&record, &[1], &[], false);
            record = next(&record, &[], &[1], false);
        }
        assert_eq!((record.lost.len(), record.failures()), (0, 1));
        assert!(record.spells.len() <= SPELLS_MAX);
        assert_eq!(next(&record, &[0], &[], false).lost, [GROUP], "mover 2 alone has less");
        assert!(next(&record, &[0], &[], true).lost.is_empty(), "mover 1 has its copies by now");
    }

    #[test]
    fn a_lone_mover_has_the_only_copy_until_another_has_taken_them() {
        let alone = next(&site(2), &[1], &[], true);
        let joined = next(&alone, &[], &[1], true);
        assert_eq!(next(&joined, &[0], &[], false).lost, [GROUP], "mover 1 had no time");
        assert!(next(&joined, &[0], &[], true).lost.is_empty());
        assert!(next(&joined, &[1], &[], false).lost.is_empty(), "mover 0 has everything");
    }

    #[test]
    fn what_was_lost_stays_so() {
        let lost = next(&site(3), &[0, 1], &[], true);
        let healed = next(&next(&lost, &[], &[0], true), &[], &[1], true);
        assert_eq!((healed.lost, healed.spells.len()), (vec![GROUP], 2));
    }
}
