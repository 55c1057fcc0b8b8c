//! Who is responsible for what (F3, F4, F6), as the control thread arranges it: what an operator
//! wants is noted in the site's record, the mover that runs the boundaries plans the moves that follow
//! from that and from the policy, and notes when the pollers have carried them out.
//!
//! Whoever plans makes sure that the site is whole: a move between living movers then has nothing to do
//! with any failure.

use std::collections::BTreeMap;

use super::Driver;
use crate::config::Role;
use crate::control::cluster::{SiteRecord, part};
use crate::control::model::{ApiError, ErrorCode, EventLevel, MemberLoad, Move, PinInfo};
use crate::control::model::{AssignmentInfo, Wish};
use crate::control::stop::Stopping;
use crate::control::unreplicated;
use crate::proto::assignment::{Assignment, Policy};
use crate::proto::membership::Change;
use crate::proto::message::VolumeFacts;
use crate::proto::types::{Epoch, GroupId, MapVersion, MoverId, Nanos, ShardId, VolumeId};

/// Between looks whether anything should move, in nanoseconds.
const LOOK_EVERY_NS: u64 = 100_000_000;
/// After moves for balance, until there are more, in nanoseconds: the loads have to show what they did.
const BALANCE_EVERY_NS: u64 = 5_000_000_000;
/// In this time what a load is made of counts half, in nanoseconds.
const HALF_LIFE_NS: u64 = 5_000_000_000;
/// By how much of the mean a move for balance must bring members nearer, in percent.
const HYSTERESIS_PERCENT: u64 = 25;
/// What a command counts beside its bytes, in bytes.
const COMMAND_BYTES: u64 = 4096;
/// Load of a volume that does nothing: it counts little beside others that do, and equal among its like.
const IDLE_LOAD: u64 = 64 << 10;
/// Why a mover leaves that was drained.
pub(super) const DRAINED: &str = "it was drained";
/// Why a mover leaves that was removed.
pub(super) const REMOVED: &str = "it was removed by an operator";

/// What the control thread knows of loads and moves.
#[derive(Debug, Default)]
pub(in crate::control) struct Balance {
    /// Bytes and commands of each volume's updates, the older the less.
    loads: BTreeMap<VolumeId, u64>,
    decayed_at: Nanos,
    look_at: Nanos,
    balance_at: Nanos,
    /// The map whose moves are under way, and since when.
    under_way: Option<(MapVersion, Nanos)>,
    /// By group: the map whose moves it has carried out, as the engine of an epoch said.
    in_force: BTreeMap<GroupId, (Epoch, MapVersion)>,
}

impl Driver {
    /// A set was formed: what it holds is load.
    pub(super) fn note_load(&mut self, facts: &[VolumeFacts]) {
        for facts in facts {
            let load = self.balance.loads.entry(facts.volume).or_default();
            *load = load.saturating_add(facts.bytes + facts.count() * COMMAND_BYTES);
        }
    }

    /// All shards have carried a group's moves out.
    pub(super) fn map_in_force(&mut self, epoch: Epoch, group: GroupId, map: MapVersion) {
        self.balance.in_force.insert(group, (epoch, map));
    }

    /// Plans what should move, and notes what has.
    pub(super) fn turn_assignment(&mut self, now: Nanos) {
        let fixed = self.cluster.fixed().is_some();
        if fixed || self.stopping != Stopping::No || now < self.balance.look_at {
            return;
        }
        self.balance.look_at = now.after(LOOK_EVERY_NS);
        if now.since(self.balance.decayed_at) >= HALF_LIFE_NS {
            self.balance.decayed_at = now;
            self.balance.loads.values_mut().for_each(|load| *load /= 2);
        }
        let me = MoverId(self.mover.mover.id);
        match (&self.site.record.plan, &self.balance.under_way) {
            (None, _) => self.balance.under_way = None,
            (Some(plan), Some((version, _))) if plan.version == *version => {}
            (Some(plan), _) => self.balance.under_way = Some((plan.version, now)),
        }
        if self.site.record.coordinator.mover == me {
            if let Some((version, _)) = self.balance.under_way {
                // Somebody who joined later may not have carried them out.
                let now = (self.site.record.epoch, version);
                let done = |group| self.balance.in_force.get(&group) == Some(&now);
                if self.board.groups.iter().all(|group| done(group.id)) {
                    self.cluster.carried_out(version);
                }
                return;
            }
            let moves = self.wanted_moves();
            let forced = moves.iter().any(|(volume, to)| self.is_asked_for(*volume, *to));
            if !moves.is_empty() && (forced || now >= self.balance.balance_at) {
                let lane = |volume| self.site.record.owner(volume).map_or(0, |shard| shard.poller);
                let moves: Vec<(VolumeId, ShardId)> = moves
                    .iter()
                    .map(|(v, mover)| (*v, ShardId { mover: *mover, poller: lane(*v) }))
                    .collect();
                if self.cluster.plan(&moves) {
                    self.balance.balance_at = now.after(BALANCE_EVERY_NS);
                }
            }
        }
        self.let_drained_leave(now);
    }

    /// Whether a move follows from what an operator wants, and is not for balance.
    fn is_asked_for(&self, volume: VolumeId, to: MoverId) -> bool {
        let Some(record) = self.cluster.record() else { return false };
        let owner = record.owners.get(&volume).map(|shard| shard.mover);
        owner.is_some_and(|owner| record.draining.contains(&owner))
            || record.pinned.get(&volume) == Some(&to)
            || record.policy == Policy::RoundRobin
    }

    /// The moves that should be made now; none of volumes whose group can have no boundary.
    fn wanted_moves(&self) -> Vec<(VolumeId, MoverId)> {
        self.cluster.record().map_or_else(Vec::new, |record| self.moves_by(record))
    }

    /// The moves that would follow if `wish` were granted; of volumes of a removed mover where they would
    /// be taken over.
    fn moves_after(&self, wish: &Wish) -> Vec<(VolumeId, MoverId)> {
        let Some(mut record) = self.cluster.record().cloned() else { return Vec::new() };
        let Wish::Remove { mover } = wish else {
            self.note(wish, &mut record);
            return self.moves_by(&record);
        };
        let removed: Vec<MoverId> = self.mover_id(mover).into_iter().collect();
        let pollers = |mover| self.plan.topology.pollers_of(mover);
        let whole = self.cluster.is_whole();
        let spare = part::spare(&self.mover);
        let change = Change { failed: &removed, joined: &[], whole, spare, copies: &[] };
        let next = record.agreed().next(&change, pollers, |_| 1);
        let owners = next.map_or_else(Vec::new, |next| next.owners);
        let owners = owners.into_iter().map(|(volume, shard)| (volume, shard.mover));
        let stays = |(volume, to): &(VolumeId, MoverId)| {
            record.owners.get(volume).map(|shard| shard.mover) != Some(*to)
        };
        owners.filter(stays).collect()
    }

    fn moves_by(&self, record: &SiteRecord) -> Vec<(VolumeId, MoverId)> {
        let mut owners: Vec<(VolumeId, MoverId)> =
            record.owners.iter().map(|(volume, shard)| (*volume, shard.mover)).collect();
        let mut members: Vec<MoverId> = record.members.keys().copied().collect();
        let mut draining = record.draining.clone();
        if let Some(spare) = part::spare(&self.mover) {
            let founders = self.mover.founders_of(Role::Primary);
            let all = founders.iter().all(|f| record.members.contains_key(&MoverId(f.id)));
            if all && members.iter().any(|mover| *mover != spare && !draining.contains(mover)) {
                // It stands in for nobody.
                draining.insert(spare);
            } else if !draining.contains(&spare) {
                // What it took over stays there until that mover is back.
                owners.retain(|(_, owner)| *owner != spare);
                members.retain(|mover| *mover != spare);
            }
        }
        let assignment = Assignment {
            owners: &owners,
            members: &members,
            draining: &draining,
            pinned: &record.pinned,
            policy: record.policy,
            hysteresis_percent: HYSTERESIS_PERCENT,
        };
        assignment.moves(|volume| self.load_of(volume))
    }

    fn load_of(&self, volume: VolumeId) -> u64 {
        self.balance.loads.get(&volume).copied().unwrap_or(0) + IDLE_LOAD
    }

    /// A drained mover that is responsible for nothing any more leaves the site; the first of the others
    /// sees to it.
    fn let_drained_leave(&mut self, now: Nanos) {
        let me = MoverId(self.mover.mover.id);
        let Some(record) = self.cluster.record() else { return };
        let mut others = record.members.keys().filter(|id| !record.draining.contains(id));
        if others.next() != Some(&me) || record.plan.is_some() || !self.cluster.is_whole() {
            return;
        }
        let owns = |mover: MoverId| record.owners.values().any(|shard| shard.mover == mover);
        let Some(drained) = record.draining.iter().copied().find(|mover| !owns(*mover)) else {
            return;
        };
        self.exclude_for(now, drained, DRAINED);
    }

    fn exclude_for(&mut self, now: Nanos, mover: MoverId, reason: &str) {
        let unix_ms = self.board.unix_ms(now);
        let topology = &self.plan.topology;
        self.cluster.exclude(&[mover], reason, |mover| topology.pollers_of(mover), unix_ms);
    }

    /// Whether what an operator wants is noted, or has happened.
    pub(in crate::control) fn is_granted(&self, wish: &Wish) -> bool {
        let Some(record) = self.cluster.record() else { return false };
        let id = |name: &str| self.mover_id(name);
        match wish {
            Wish::Drain { mover, on } => {
                let Some(id) = id(mover) else { return false };
                let drains = record.draining.contains(&id);
                drains == *on || *on && !record.members.contains_key(&id)
            }
            Wish::Remove { mover } => id(mover).is_some_and(|id| !record.members.contains_key(&id)),
            Wish::Place { volume, mover } => {
                let place = self.volume_id(volume).and_then(|id| record.pinned.get(&id).copied());
                place == mover.as_deref().and_then(id)
            }
            Wish::Policy { policy } => record.policy.name() == policy,
        }
    }

    /// Asks the store to note what an operator wants. Nothing happens when it cannot be asked now.
    pub(in crate::control) fn grant(&mut self, now: Nanos, wish: &Wish) {
        if let Wish::Remove { mover } = wish {
            if let Some(id) = self.mover_id(mover) {
                self.exclude_for(now, id, REMOVED);
            }
            return;
        }
        let Some(mut next) = self.cluster.record().cloned() else { return };
        self.note(wish, &mut next);
        self.cluster.wish(self.words_of(wish), |record| *record = next);
    }

    /// Notes in a record what an operator wants of the assignment.
    fn note(&self, wish: &Wish, record: &mut SiteRecord) {
        match wish {
            Wish::Drain { mover, on } => match self.mover_id(mover) {
                Some(id) if *on => drop(record.draining.insert(id)),
                Some(id) => drop(record.draining.remove(&id)),
                None => {}
            },
            Wish::Place { volume, mover } => {
                let place = mover.as_deref().map(|name| self.mover_id(name));
                let Some(id) = self.volume_id(volume) else { return };
                match place {
                    Some(Some(mover)) => drop(record.pinned.insert(id, mover)),
                    _ => drop(record.pinned.remove(&id)),
                }
            }
            Wish::Policy { policy } => {
                record.policy = Policy::from_name(policy).unwrap_or(record.policy);
            }
            // Not a matter of the assignment.
            Wish::Remove { .. } => {}
        }
    }

    fn words_of(&self, wish: &Wish) -> String {
        match wish {
            Wish::Drain { mover, on: true } => format!("{mover} is drained"),
            Wish::Drain { mover, on: false } => format!("{mover} is not drained any more"),
            Wish::Remove { mover } => format!("{mover} is removed"),
            Wish::Place { volume, mover: Some(mover) } => format!("{volume} is placed at {mover}"),
            Wish::Place { volume, mover: None } => format!("{volume} is not placed any more"),
            Wish::Policy { policy } => format!("volumes are shared by {policy}"),
        }
    }

    /// Why what an operator wants cannot be, or would lose something.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(in crate::control) fn refuse(&self, wish: &Wish) -> Result<(), ApiError> {
        let refused = |message: String, advice: &str| {
            Err(ApiError::new(ErrorCode::Refused, message, advice.to_owned()))
        };
        if let Wish::Place { volume, .. } = wish
            && let Some(error) = unreplicated::refusal(&self.mover, volume)
        {
            return Err(error);
        }
        if let Some(fixed) = self.cluster.fixed() {
            let message = format!("responsibility never moves at this site: {fixed}");
            return refused(message, "see docs/operations.md, Membership");
        }
        let Some(record) = self.cluster.record() else {
            let message = "what the site has agreed on is not known now".to_owned();
            return Err(ApiError::new(ErrorCode::Unavailable, message, "see `setline status`"));
        };
        let member = |name: &str| match self.mover_id(name) {
            Some(id) if record.members.contains_key(&id) => Ok(id),
            known => {
                let names: Vec<&str> = record.members.values().map(|m| m.name.as_str()).collect();
                let what = if known.is_some() { "no member now" } else { "unknown" };
                let message =
                    format!("mover {name} is {what}; the members are {}", names.join(", "));
                Err(ApiError::new(ErrorCode::NotFound, message, "see `setline mover list`"))
            }
        };
        match wish {
            Wish::Drain { on: false, mover } => member(mover).map(|_| ()),
            // Whoever asks again, after an answer that was lost, is told so: the mover is no member now.
            Wish::Drain { on: true, .. } | Wish::Remove { .. } if self.is_granted(wish) => Ok(()),
            Wish::Drain { mover, on: true } | Wish::Remove { mover } => {
                let id = member(mover)?;
                if let Some(error) = self.keeps_unreplicated(mover) {
                    return Err(error);
                }
                let stay =
                    record.members.keys().filter(|m| **m != id && !record.draining.contains(m));
                if stay.count() == 0 {
                    let message = format!("nobody else could take over what {mover} has");
                    return refused(message, "start another mover of the site first");
                }
                let copies = self.mover.groups.iter().map(|group| group.copies).max().unwrap_or(1);
                if matches!(wish, Wish::Remove { .. }) && (copies < 2 || !self.cluster.is_whole()) {
                    let message = format!(
                        "what {mover} holds is not held by enough others now: updates would be lost"
                    );
                    return refused(
                        message,
                        "wait until `setline assignment show` says whole, or drain",
                    );
                }
                Ok(())
            }
            Wish::Place { volume, mover } => {
                if self.volume_id(volume).is_none() {
                    let message = format!("there is no volume {volume}");
                    let advice = "see `setline volume list`; a name is GROUP/VOLUME";
                    return Err(ApiError::new(ErrorCode::NotFound, message, advice));
                }
                let Some(name) = mover else { return Ok(()) };
                let id = member(name)?;
                if record.draining.contains(&id) {
                    return refused(format!("{name} is being drained"), "choose another mover");
                }
                Ok(())
            }
            Wish::Policy { policy } => match Policy::from_name(policy) {
                Some(_) => Ok(()),
                None => {
                    let names: Vec<&str> = Policy::ALL.iter().map(|policy| policy.name()).collect();
                    let message =
                        format!("there is no policy {policy}; there are {}", names.join(", "));
                    Err(ApiError::new(ErrorCode::BadRequest, message, ""))
                }
            },
        }
    }

    fn mover_id(&self, name: &str) -> Option<MoverId> {
        let record = self.cluster.record()?;
        let mut members = record.members.iter();
        let known = members.find(|(_, member)| member.name == name).map(|(id, _)| *id);
        known.or_else(|| self.plan.topology.find(name))
    }

    fn volume_id(&self, name: &str) -> Option<VolumeId> {
        let faults = self.fault_texts();
        let view = self.view(Nanos(0), &faults);
        view.find_volume(name).ok().map(|(_, volume)| VolumeId(volume.id))
    }

    /// What would follow from `wish`, in place of what would move without.
    ///
    /// # Errors
    /// This mover does not run the boundaries: it does not know the loads.
    pub(in crate::control) fn try_out(
        &self,
        now: Nanos,
        wish: &Wish,
    ) -> Result<AssignmentInfo, ApiError> {
        let coordinator = self.site.record.coordinator.mover;
        if coordinator.0 != self.mover.mover.id {
            let name = self.mover_name(coordinator);
            let message = format!("what would move is known to {name}, which runs the boundaries");
            return Err(ApiError::new(ErrorCode::NotCoordinator, message, format!("ask {name}")));
        }
        let wanted = self.moves_after(wish);
        Ok(AssignmentInfo { wanted: self.moves_in_words(wanted), ..self.assignment(now) })
    }

    fn moves_in_words(&self, moves: Vec<(VolumeId, MoverId)>) -> Vec<Move> {
        let owner = |volume| self.site.record.owner(volume).map(|shard| shard.mover);
        let words = moves.into_iter().map(|(volume, to)| Move {
            volume: self.volume_name(volume).1,
            from: owner(volume).map(|from| self.mover_name(from)).unwrap_or_default(),
            to: self.mover_name(to),
        });
        words.collect()
    }

    /// Who has what, what moves, and what would.
    pub(in crate::control) fn assignment(&self, now: Nanos) -> AssignmentInfo {
        let record = self.cluster.record();
        let name = |volume: VolumeId| self.volume_name(volume).1;
        let plan = self.site.record.plan.iter().flat_map(|plan| &plan.moves);
        let plan: Vec<(VolumeId, MoverId)> = plan.map(|(v, shard)| (*v, shard.mover)).collect();
        let since = self.balance.under_way.map(|(_, since)| since);
        AssignmentInfo {
            epoch: self.site.record.epoch.0,
            map_version: self.site.record.map_version.0,
            fixed: self.cluster.fixed().map(str::to_owned),
            policy: record.map_or(Policy::Pinned, |record| record.policy).name().to_owned(),
            whole: self.cluster.is_whole(),
            members: self
                .site
                .record
                .members
                .iter()
                .map(|id| {
                    let owned = self.site.record.owners.iter().filter(|(_, s)| s.mover == *id);
                    MemberLoad {
                        mover: self.mover_name(*id),
                        draining: record.is_some_and(|record| record.draining.contains(id)),
                        volumes: owned.clone().count(),
                        load: owned.map(|(volume, _)| self.load_of(*volume) - IDLE_LOAD).sum(),
                    }
                })
                .collect(),
            pinned: record.map_or_else(Vec::new, |record| {
                let pinned = record.pinned.iter();
                pinned
                    .map(|(volume, mover)| PinInfo {
                        volume: name(*volume),
                        mover: self.mover_name(*mover),
                    })
                    .collect()
            }),
            under_way: self.moves_in_words(plan),
            under_way_ms: since.map(|since| now.since(since) / 1_000_000),
            wanted: match self.site.record.coordinator.mover.0 == self.mover.mover.id {
                true if self.cluster.fixed().is_none() => self.moves_in_words(self.wanted_moves()),
                // It does not know the loads.
                _ => Vec::new(),
            },
        }
    }

    /// The record has another map or plan in the same epoch.
    pub(super) fn tell_plan(&mut self, now: Nanos, next: &crate::proto::membership::SiteRecord) {
        if let Some(plan) = &next.plan {
            for (volume, to) in plan.moves.clone() {
                let (group, name) = self.volume_name(volume);
                let group = self.group_name(group);
                let message = format!("{name} moves to {}", self.mover_name(to.mover));
                self.event(now, EventLevel::Info, "assignment", group.as_deref(), message);
            }
        } else if self.site.record.plan.is_some() {
            let message = format!("map {} is in force", next.map_version.0);
            self.event(now, EventLevel::Info, "assignment", None, message);
        }
    }
}
