//! The next record of a site, as a member or a mover that wants to be one proposes it (F5, P2).
//!
//! Anyone may propose; the store's compare-and-swap decides. So what is proposed needs to be sound, not
//! to come from one place. The rules:
//! - A member that is silent may be excluded by any other, as long as no more have failed since the
//!   group was whole than there are spare copies. What goes beyond that could be a partition, seen from
//!   its smaller side: then those to be excluded must have lost their leases first.
//! - A life that has ended is excluded like one that is silent, by its mover's next life too.
//! - A mover joins with an empty memory, and only a site of which a member lives.
//! - When none does, there is nothing to take over: the site is founded again, in the next epoch, by
//!   all members of the last one, since each may know numbers that no other does.

use std::collections::BTreeMap;

use super::part::Part;
use super::{Member, SiteRecord};
use crate::proto::membership::{self, Change};
use crate::proto::types::{Epoch, MapVersion, MoverId, ShardId, VolumeId};

/// How a mover stands to the site's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing can be said: the store has not answered, or its record cannot be used.
    Unknown,
    /// There is no record, or no life that it names is alive, and this one is not among them.
    Dormant,
    /// A former life of this mover is a member.
    Former,
    /// Others are members, this mover is not.
    Outside,
    /// This life is a member.
    Member,
}

/// Why a member was excluded that others never heard after it had joined.
pub const NEVER_MET: &str = "it joined and was not heard";
/// How long such a mover waits before it joins again, milliseconds.
const JOIN_AGAIN_MS: u64 = 10_000;

impl Part {
    /// The record, when it is one to act upon.
    #[must_use]
    pub fn record(&self) -> Option<&SiteRecord> {
        self.known.record.as_ref().filter(|_| self.known.heard)
    }

    /// How this life stands to the record.
    #[must_use]
    pub fn standing(&self) -> Standing {
        if !self.known.heard || self.known.bad.is_some() {
            return Standing::Unknown;
        }
        let Some(record) = self.record() else { return Standing::Dormant };
        match record.members.get(&self.me.mover) {
            Some(member) if member.incarnation == Some(self.me.alive.incarnation) => {
                Standing::Member
            }
            _ if !record.members.keys().any(|id| self.is_alive(*id)) => Standing::Dormant,
            Some(_) => Standing::Former,
            None => Standing::Outside,
        }
    }

    /// Whether the store counts the life of a mover that is a member as alive.
    #[must_use]
    pub fn is_alive(&self, mover: MoverId) -> bool {
        let life = self.record().and_then(|record| record.life(mover));
        self.known.alive.get(&mover).is_some_and(|alive| Some(alive.incarnation) == life)
    }

    /// Whether another life of a member has begun: the one that is a member has ended.
    #[must_use]
    pub fn has_ended(&self, mover: MoverId) -> bool {
        let life = self.record().and_then(|record| record.life(mover));
        self.known.alive.get(&mover).is_some_and(|alive| Some(alive.incarnation) > life)
    }

    /// Whether the life of a member has said that it is over.
    #[must_use]
    pub fn has_left(&self, mover: MoverId) -> bool {
        let life = self.record().and_then(|record| record.life(mover));
        life.is_some_and(|life| self.left.contains(&(mover, life)))
    }

    /// Whether a change may be asked for now.
    #[must_use]
    pub fn may_change(&self) -> bool {
        let answers = self.known.heard && self.known.unavailable.is_none();
        answers && self.changing.is_none() && self.store.lease().holds(std::time::Instant::now())
    }

    /// Whether every member is whole in the record's epoch: as many may fail as there are spare copies.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.record().is_some_and(|record| {
            record.members.iter().all(|(id, member)| {
                let life = member.incarnation.unwrap_or(0);
                self.whole.get(&(*id, life)) == Some(&record.epoch.0)
            })
        })
    }

    /// Tells the others that this mover is whole in `epoch`.
    pub fn tell_whole(&mut self, epoch: Epoch) {
        self.store.tell_whole(epoch);
    }

    /// Of the members in `failed`, those that must lose their leases before all of them may be
    /// excluded, since a group may lose updates by it.
    #[must_use]
    pub fn to_wait_for(&self, failed: &[MoverId]) -> Vec<MoverId> {
        let Some(record) = self.record().map(SiteRecord::agreed) else { return Vec::new() };
        let whole = self.is_whole();
        let fewest = self.copies.iter().map(|(_, copies)| *copies).min();
        if !fewest.is_some_and(|copies| record.may_lose(failed, whole, copies)) {
            return Vec::new();
        }
        failed.iter().copied().filter(|id| self.is_alive(*id)).collect()
    }

    /// Proposes to exclude `failed`, for `reason`. False when nobody would be left, or nothing can be
    /// proposed now.
    pub fn exclude(
        &mut self,
        failed: &[MoverId],
        reason: &str,
        pollers: impl Fn(MoverId) -> u8,
        unix_ms: u64,
    ) -> bool {
        let (whole, copies) = (self.is_whole(), &self.copies[..]);
        let change = Change { failed, joined: &[], whole, spare: self.spare, copies };
        let Some(record) = self.record().filter(|_| self.may_change()) else { return false };
        let Some(next) = record.agreed().next(&change, pollers, |_| 1) else { return false };
        let names: Vec<String> = failed.iter().map(|id| self.name(*id)).collect();
        let what = format!("excluded {} in epoch {}: {reason}", names.join(", "), next.epoch.0);
        let next = record.followed_by(&next, &BTreeMap::new(), unix_ms, reason);
        self.change(next, false, what);
        true
    }

    /// How long this mover waits before it joins again, milliseconds: had it joined although others did
    /// not hear it, its site stood still until it was excluded.
    #[must_use]
    pub fn join_after_ms(&self, unix_ms: u64) -> u64 {
        let why = self.record().and_then(|record| record.excluded.get(&self.me.mover));
        let unmet = why.filter(|why| why.reason == NEVER_MET);
        let until = unmet.map_or(0, |why| why.since_unix_ms + JOIN_AGAIN_MS);
        // A clock that was set back is no reason to wait for long.
        until.saturating_sub(unix_ms).min(JOIN_AGAIN_MS)
    }

    /// Proposes that this life takes part from the next epoch on.
    pub fn join(&mut self, pollers: impl Fn(MoverId) -> u8, unix_ms: u64) {
        let me = self.me.mover;
        let (whole, copies) = (self.is_whole(), &self.copies[..]);
        let change = Change { failed: &[], joined: &[me], whole, spare: None, copies };
        let Some(record) = self.record().filter(|_| self.may_change()) else { return };
        let Some(next) = record.agreed().next(&change, pollers, |_| 1) else { return };
        let alive = &self.me.alive;
        let member =
            Member { name: alive.name.clone(), incarnation: Some(alive.incarnation), since: 0 };
        let what = format!("{} takes part from epoch {} on", alive.name, next.epoch.0);
        let next = record.followed_by(&next, &BTreeMap::from([(me, member)]), unix_ms, "");
        self.change(next, false, what);
    }

    /// Proposes moves of volumes between members, to be carried out at a boundary (F3, F6). False when
    /// nothing can be proposed now, or a move is not possible.
    pub fn plan(&mut self, moves: &[(VolumeId, ShardId)]) -> bool {
        let whole = self.is_whole();
        let Some(record) = self.record().filter(|_| self.may_change() && whole) else {
            return false;
        };
        let Some(next) = record.agreed().planned(moves) else { return false };
        let what = format!(
            "{} volumes are to move at the next boundary",
            next.plan.as_ref().map_or(0, |plan| plan.moves.len())
        );
        let next = SiteRecord { plan: next.plan, ..record.clone() };
        self.change(next, false, what);
        true
    }

    /// Proposes to note that the moves up to the map `version` are carried out.
    pub fn carried_out(&mut self, version: MapVersion) {
        let Some(record) = self.record().filter(|_| self.may_change()) else { return };
        if record.plan.as_ref().is_none_or(|plan| plan.version != version) {
            return;
        }
        let Some(next) = record.agreed().carried_out() else { return };
        let next = SiteRecord {
            plan: None,
            map_version: next.map_version.0,
            owners: next.owners.iter().copied().collect(),
            ..record.clone()
        };
        self.change(next, false, format!("map {} is in force", version.0));
    }

    /// Proposes to note what an operator wants. False when nothing can be proposed now.
    pub fn wish(&mut self, what: String, wish: impl FnOnce(&mut SiteRecord)) -> bool {
        let Some(record) = self.record().filter(|_| self.may_change()) else { return false };
        let mut next = record.clone();
        wish(&mut next);
        self.change(next, false, what);
        true
    }

    /// Proposes to found the site, again or for the first time, when all who belong to it are alive.
    /// The names of those that are not.
    pub fn found(&mut self) -> Vec<String> {
        let mut next = match self.record() {
            Some(record) => SiteRecord { epoch: Epoch(record.epoch.0 + 1), ..record.clone() },
            None => self.configured.clone(),
        };
        let missing: Vec<MoverId> =
            next.members.keys().copied().filter(|id| !self.known.alive.contains_key(id)).collect();
        if !missing.is_empty() {
            return missing.into_iter().map(|id| self.name(id)).collect();
        }
        if !next.members.contains_key(&self.me.mover) || !self.may_change() {
            return Vec::new();
        }
        for (id, member) in &mut next.members {
            member.incarnation = self.known.alive.get(id).map(|alive| alive.incarnation);
            member.since = next.epoch.0;
        }
        next.moved.clear();
        next.plan = None;
        next.spells = membership::SiteRecord::first_spell(next.epoch, next.members.len());
        // What the configuration has now: further volumes, or fewer.
        let configured = &self.configured.owners;
        next.owners.retain(|volume, _| configured.contains_key(volume));
        for (volume, owner) in configured {
            let owner =
                if next.members.contains_key(&owner.mover) { *owner } else { next.coordinator };
            next.owners.entry(*volume).or_insert(owner);
        }
        let what = format!("the site begins in epoch {}", next.epoch.0);
        self.change(next, false, what);
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, alive, configured, happens, part};
    use super::super::{ClusterError, Event, Revision};
    use super::*;
    use crate::proto::losses::Spell;
    use crate::proto::types::{GroupId, ShardId};

    /// All members are alive in the lives 4, 5 and 6 and belong to a record of epoch 3.
    /// Before it had one more, of which so many have failed.
    fn site(script: &Script, whole: [Option<u32>; 3], failures: u16) -> Part {
        let mut record = configured();
        record.epoch = Epoch(3);
        record.spells = vec![
            Spell { epoch: Epoch(2), members: 4, failures },
            Spell { epoch: Epoch(3), members: 3, failures: 0 },
        ];
        for (id, member) in &mut record.members {
            member.incarnation = Some(3 + u64::from(id.0));
        }
        let lives = alive(&[(1, 4, whole[0]), (2, 5, whole[1]), (3, 6, whole[2])]);
        let record = Event::Record(Revision(9), Some(record));
        happens(script, [record, Event::Alive(lives), Event::Available]);
        let mut part = part(script, None);
        part.copies = vec![(GroupId(1), 2)];
        part.turn(1);
        part
    }

    fn asked(script: &Script) -> Vec<SiteRecord> {
        script.asked.lock().unwrap().drain(..).map(|swap| swap.record).collect()
    }

    fn ids(record: &SiteRecord) -> Vec<u16> {
        record.members.keys().map(|id| id.0).collect()
    }

    #[test]
    fn a_silent_member_is_excluded_by_compare_and_swap_and_once() {
        let script = Script::default();
        let mut part = site(&script, [Some(3); 3], 0);
        assert_eq!(part.standing(), Standing::Member);
        assert!(part.is_whole() && part.to_wait_for(&[MoverId(2)]).is_empty());
        assert!(part.exclude(&[MoverId(2)], "it is not heard", |_| 1, 77));
        assert!(!part.exclude(&[MoverId(2)], "it is not heard", |_| 1, 78), "one at a time");
        let swap = script.asked.lock().unwrap()[0].clone();
        assert!(swap.expected == Revision(9) && !swap.as_leader);
        assert_eq!((swap.record.epoch, swap.record.agreed().failures()), (Epoch(4), 1));
        assert_eq!(swap.record.moved.iter().map(|v| v.0).collect::<Vec<_>>(), [2]);
        assert_eq!(swap.record.excluded[&MoverId(2)].incarnation, Some(5));
        // Another one was faster: what it says counts.
        happens(&script, [Event::Swapped(swap.ticket, Err(ClusterError::Conflict))]);
        part.turn(79);
        assert!(part.may_change());
    }

    #[test]
    fn more_failures_than_spare_copies_wait_for_the_leases() {
        let script = Script::default();
        let mut part = site(&script, [Some(3), Some(3), None], 1);
        assert!(!part.is_whole());
        let wait = part.to_wait_for(&[MoverId(2)]);
        assert_eq!(wait, [MoverId(2)], "one has failed before");
        part.copies = vec![(GroupId(1), 3)];
        assert!(part.to_wait_for(&[MoverId(2)]).is_empty(), "with three copies");
        part.copies = vec![(GroupId(1), 3), (GroupId(2), 2)];
        happens(&script, [Event::Alive(alive(&[(1, 4, None), (3, 6, None)]))]);
        part.turn(2);
        assert!(part.to_wait_for(&[MoverId(2)]).is_empty(), "its lease has run out");
        assert!(part.exclude(&[MoverId(2)], "it is not heard", |_| 1, 77));
        let record = asked(&script).remove(0);
        assert_eq!(record.lost.into_iter().collect::<Vec<_>>(), [GroupId(2)]);
        happens(&script, [Event::Swapped(1, Err(ClusterError::Conflict))]);
        // It said that it was whole before it fell; when the last one says so, all were.
        happens(&script, [Event::Alive(alive(&[(1, 4, None), (3, 6, Some(3))]))]);
        part.turn(3);
        assert!(part.is_whole());
        assert_eq!(part.to_wait_for(&[MoverId(2), MoverId(3)]), [MoverId(3)]);
    }

    #[test]
    fn a_spare_takes_everything_over() {
        let script = Script::default();
        let mut part = site(&script, [Some(3); 3], 0);
        for (spare, owner) in [(3, 3), (1, 1), (2, 3)] {
            // One that fails itself stands in for nobody.
            part.spare = Some(MoverId(spare));
            assert!(part.exclude(&[MoverId(2)], "it is not heard", |_| 1, 77));
            let swap = script.asked.lock().unwrap().remove(0);
            assert_eq!(swap.record.owners[&VolumeId(2)].mover, MoverId(owner), "spare {spare}");
            happens(&script, [Event::Swapped(swap.ticket, Err(ClusterError::Conflict))]);
            part.turn(79);
        }
    }

    #[test]
    fn a_new_life_ends_the_former_one_and_then_joins() {
        let script = Script::default();
        let mut part = site(&script, [Some(3); 3], 0);
        part.me.alive.incarnation = 8;
        happens(&script, [Event::Alive(alive(&[(1, 8, None), (2, 5, Some(3)), (3, 6, Some(3))]))]);
        part.turn(2);
        assert_eq!(part.standing(), Standing::Former);
        assert!(part.has_ended(MoverId(1)) && !part.has_ended(MoverId(2)));
        part.exclude(&[MoverId(1)], "it has started again", |_| 1, 5);
        let record = asked(&script).remove(0);
        assert_eq!((ids(&record), record.coordinator), (vec![2, 3], ShardId::new(2, 0)));
        happens(
            &script,
            [Event::Swapped(1, Ok(Revision(10))), Event::Record(Revision(10), Some(record))],
        );
        part.turn(6);
        assert_eq!(part.standing(), Standing::Outside);
        part.join(|_| 1, 7);
        let record = asked(&script).remove(0);
        assert_eq!((record.epoch, ids(&record)), (Epoch(5), vec![1, 2, 3]));
        assert_eq!((record.life(MoverId(1)), record.members[&MoverId(1)].since), (Some(8), 5));
        assert_eq!(record.agreed().failures(), 1, "not whole since");
        happens(&script, [Event::Record(Revision(11), Some(record))]);
        part.turn(8);
        assert_eq!(part.standing(), Standing::Member);
    }

    #[test]
    fn a_site_of_which_nobody_lives_begins_again_when_all_are_there() {
        let script = Script::default();
        let mut part = site(&script, [Some(3); 3], 1);
        part.me.alive.incarnation = 8;
        happens(&script, [Event::Alive(alive(&[(1, 8, None), (3, 9, None)]))]);
        part.turn(2);
        assert_eq!(part.standing(), Standing::Dormant);
        assert_eq!(part.found(), ["p2"]);
        assert!(asked(&script).is_empty());
        happens(&script, [Event::Alive(alive(&[(1, 8, None), (2, 7, None), (3, 9, None)]))]);
        part.turn(3);
        assert!(part.found().is_empty());
        let record = asked(&script).remove(0);
        assert_eq!((record.epoch, record.agreed().failures()), (Epoch(4), 0));
        let lives: Vec<_> = record.members.values().map(|m| (m.incarnation, m.since)).collect();
        assert_eq!(lives, [(Some(8), 4), (Some(7), 4), (Some(9), 4)]);
        assert_eq!(record.owners, configured().owners);
    }

    #[test]
    fn nothing_is_asked_of_a_store_that_does_not_answer() {
        let script = Script::default();
        let mut part = site(&script, [Some(3); 3], 0);
        happens(&script, [Event::Unavailable("gone".into())]);
        part.turn(2);
        assert!(!part.exclude(&[MoverId(2)], "it is not heard", |_| 1, 5));
        part.join(|_| 1, 5);
        assert!(asked(&script).is_empty());
        assert_eq!(part.standing(), Standing::Member, "what was agreed still holds");
    }
}
