//! The coordinator's engine: when sets end, what they hold, and who has them (F1, F2, F7).
//!
//! Runs on poller 0 of the coordinating mover, so that acknowledgements are held for a round trip
//! between pollers and not for the wake-up of a control thread. A boundary has two phases
//! (invariant 5): `Prepare(c+1)` makes every shard switch and hold; when all have answered,
//! `Release(c+1)` ends the hold. Shards then close c by and by; when all have, c has its manifest,
//! which goes to the secondary coordinator and to another primary mover (invariant 6), and when the
//! secondary confirmed it, every shard may drop its copies (invariant 8).
//!
//! Periods are policy and come from the control thread. Membership is fixed for an epoch.

mod set;
mod view;

pub use view::CoordinatorView;

use super::command::{Command, Report, SetState};
use super::limits::{OPEN_SETS_MAX, OPEN_SETS_SPARE};
use super::message::{BrokenReason, FactsPart, Message, VolumeFacts};
use super::sabotage::Sabotage;
use super::types::{Epoch, GroupId, MapVersion, Nanos, SetId, ShardId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use set::Set;

/// What the engine is told at launch.
#[derive(Clone, Debug)]
pub struct BoundaryConfig {
    /// The shard on whose poller it runs.
    pub me: ShardId,
    /// All primary shards, `me` included.
    pub shards: Vec<ShardId>,
    /// The secondary coordinator; none when nothing is transferred.
    pub secondary: Option<ShardId>,
    /// A shard of another primary mover, to keep copies of manifests.
    pub backup: Option<ShardId>,
    /// The membership epoch.
    pub epoch: Epoch,
    /// Nanoseconds since the Unix epoch at time 0 of the caller's monotonic clock.
    pub unix_offset_ns: u64,
    /// The groups.
    pub groups: Vec<BoundaryGroup>,
    /// A rule to break on purpose, in tests.
    pub sabotage: Sabotage,
}

/// A group as the engine sees it.
#[derive(Clone, Copy, Debug)]
pub struct BoundaryGroup {
    /// The group.
    pub id: GroupId,
    /// Nanoseconds between boundaries.
    pub period_ns: u64,
    /// The first set to form when no shard knows of any: 1, or what the last clean stop left.
    pub first_set: SetId,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Not all shards have said what they know.
    Gathering,
    /// A set is open everywhere.
    Open,
    /// Shards are switching.
    Preparing,
}

#[derive(Debug)]
struct Group {
    id: GroupId,
    period_ns: u64,
    next_at: Nanos,
    /// When the boundary under way began.
    began_at: Nanos,
    phase: Phase,
    /// The set being switched to, or the open one.
    open: SetId,
    /// By index of the shard: it said what it knows, with the open set it has.
    greeted: Vec<Option<SetId>>,
    /// By index of the shard: it has switched.
    prepared: Vec<bool>,
    /// The map that the open set is numbered by, or will be; its moves are carried out by switching.
    map: MapVersion,
    /// By index of the shard: the map by which everything that was to come to it has.
    settled: Vec<MapVersion>,
    /// While it forms no sets: the map whose moves all shards were last told to carry out.
    moved_to: MapVersion,
    /// The map whose moves were last reported to be carried out everywhere.
    in_force: MapVersion,
    first_set: SetId,
    sets: VecDeque<Set>,
    confirmed: SetId,
    /// The last set that the secondary claims to have, heard while gathering.
    claimed: SetId,
    applied: SetId,
    /// Heard while gathering: it can form no sets, which it is told when all shards have spoken.
    doomed: Option<BrokenReason>,
    broken: Option<BrokenReason>,
    /// The last set that the secondary needs to commit any.
    needed: SetId,
    boundaries: u64,
    delayed: u64,
}

/// The engine. Owned by one poller.
#[derive(Debug)]
pub struct Boundary {
    me: ShardId,
    shards: Vec<ShardId>,
    secondary: Option<ShardId>,
    backup: Option<ShardId>,
    epoch: Epoch,
    /// The map that planned moves lead to, and by index of the shard: the one it knows the moves to.
    plan: Option<MapVersion>,
    planned: Vec<MapVersion>,
    unix_offset_ns: u64,
    sabotage: Sabotage,
    groups: Vec<Group>,
    commands: VecDeque<Command>,
    stale_epoch: u64,
    unexpected: u64,
}

impl Boundary {
    /// An engine at launch: waits until every shard has greeted it.
    #[must_use]
    pub fn new(config: &BoundaryConfig) -> Self {
        let count = config.shards.len();
        let groups = config
            .groups
            .iter()
            .map(|group| Group {
                id: group.id,
                period_ns: group.period_ns,
                next_at: Nanos::NEVER,
                began_at: Nanos(0),
                phase: Phase::Gathering,
                open: SetId(0),
                greeted: alloc::vec![None; count],
                prepared: alloc::vec![false; count],
                map: MapVersion(0),
                settled: alloc::vec![MapVersion(0); count],
                moved_to: MapVersion(0),
                in_force: MapVersion(0),
                first_set: group.first_set,
                sets: VecDeque::new(),
                confirmed: group.first_set.prev(),
                claimed: SetId(0),
                applied: SetId(0),
                doomed: None,
                broken: None,
                boundaries: 0,
                delayed: 0,
                needed: SetId(0),
            })
            .collect();
        Self {
            me: config.me,
            shards: config.shards.clone(),
            secondary: config.secondary,
            backup: config.backup,
            epoch: config.epoch,
            plan: None,
            planned: alloc::vec![MapVersion(0); count],
            unix_offset_ns: config.unix_offset_ns,
            sabotage: config.sabotage,
            groups,
            commands: VecDeque::with_capacity(256),
            stale_epoch: 0,
            unexpected: 0,
        }
    }

    /// Tells the secondary that this engine forms the sets from now on.
    pub(super) fn lead(&mut self) {
        if let Some(to) = self.secondary {
            self.commands.push_back(Command::Send { to, message: Message::Lead });
        }
    }

    /// Messages refused because of their epoch, and messages that named something unknown.
    #[must_use]
    pub fn refused(&self) -> (u64, u64) {
        (self.stale_epoch, self.unexpected)
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        self.groups
            .iter()
            .filter(|g| g.phase == Phase::Open && g.broken.is_none())
            .map(|g| g.next_at)
            .min()
            .unwrap_or(Nanos::NEVER)
    }

    /// Begins the boundaries that are due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            if group.phase == Phase::Open && group.broken.is_none() && group.next_at <= now {
                self.begin(now, index);
            }
        }
    }

    /// Whether shards of any group are switching: an answer to this engine should not wait.
    #[inline]
    #[must_use]
    pub fn is_preparing(&self) -> bool {
        self.groups.iter().any(|group| group.phase == Phase::Preparing)
    }

    /// Whether a group forms no sets, as all shards have been told.
    #[must_use]
    pub fn is_broken(&self, id: GroupId) -> bool {
        self.groups.iter().any(|group| group.id == id && group.broken.is_some())
    }

    /// Sets the period of a group (F2); the open set ends one period after it began, or at once
    /// when that is past. False when the group is unknown.
    pub fn set_period(&mut self, now: Nanos, id: GroupId, period_ns: u64) -> bool {
        let Some(group) = self.groups.iter_mut().find(|g| g.id == id) else { return false };
        group.period_ns = period_ns;
        if group.phase == Phase::Open {
            group.next_at = group.began_at.after(period_ns).max(now);
        }
        true
    }

    /// Closes the open set now (F2); its number, or none when there is no open set.
    pub fn close_now(&mut self, now: Nanos, id: GroupId) -> Option<SetId> {
        let index = self.groups.iter().position(|g| g.id == id)?;
        let group = &mut self.groups[index];
        if group.broken.is_some() {
            return None;
        }
        match group.phase {
            Phase::Gathering => None,
            // The set that is being opened is empty of acknowledged updates: the one before ends.
            Phase::Preparing => Some(group.open.prev()),
            Phase::Open => {
                let closing = group.open;
                group.next_at = now;
                self.begin(now, index);
                Some(closing)
            }
        }
    }

    fn begin(&mut self, now: Nanos, index: usize) {
        let group = &mut self.groups[index];
        let spare = if group.needed == group.open { OPEN_SETS_SPARE } else { 0 };
        if group.sets.len() >= OPEN_SETS_MAX + spare {
            group.delayed += 1;
            group.next_at = now.after(group.period_ns.min(1_000_000));
            return;
        }
        let closing = group.open;
        let cut_time_ns = self.unix_offset_ns + now.0;
        if let Some(set) = group.sets.iter_mut().find(|s| s.id == closing) {
            set.cut_time_ns = cut_time_ns;
            set.state = SetState::Closing;
            let report =
                Report::SetState { group: group.id, set: closing, state: SetState::Closing };
            self.commands.push_back(Command::Report(report));
        }
        let set = closing.next();
        if let Some(plan) = self.map_to_carry_out() {
            self.groups[index].map = self.groups[index].map.max(plan);
        }
        self.prepare(now, index, set);
    }

    /// The site's record has moves that lead to the map of this version, or none any more. They are
    /// carried out at a boundary that each group begins as soon as all shards know them: a period may
    /// last for days (F3).
    pub fn plan(&mut self, version: Option<MapVersion>) {
        self.plan = version;
    }

    /// The map that planned moves lead to, once all shards know them.
    fn map_to_carry_out(&self) -> Option<MapVersion> {
        self.plan.filter(|plan| self.planned.iter().all(|known| known >= plan))
    }

    /// Has a group's open set end now if it has moves to carry out.
    fn hasten(&mut self, now: Nanos, index: usize) {
        let plan = self.map_to_carry_out();
        if self.groups[index].broken.is_some() {
            return self.move_without_sets(index);
        }
        let group = &mut self.groups[index];
        if group.phase == Phase::Open && plan.is_some_and(|plan| group.map < plan) {
            group.next_at = now;
        }
    }

    /// A group that forms no sets has no boundaries: its moves are carried out as soon as all know them,
    /// and also those that a boundary left half done.
    fn move_without_sets(&mut self, index: usize) {
        let Some(map_version) = self.map_to_carry_out() else { return };
        let group = &mut self.groups[index];
        if group.moved_to < map_version {
            (group.moved_to, group.map) = (map_version, map_version);
            let message = Message::Prepare { group: group.id, set: group.open, map_version };
            self.tell_shards(&message);
        }
    }

    /// A shard has everything that was to come to it.
    fn settled(&mut self, index: usize, shard: usize, map: MapVersion) {
        let (plan, epoch) = (self.plan, self.epoch);
        let group = &mut self.groups[index];
        group.settled[shard] = group.settled[shard].max(map);
        let all = group.settled.iter().all(|settled| *settled >= group.map);
        if plan == Some(group.map) && group.in_force < group.map && all {
            group.in_force = group.map;
            let report = Report::MapInForce { epoch, group: group.id, map_version: group.map };
            self.commands.push_back(Command::Report(report));
        }
    }

    fn prepare(&mut self, now: Nanos, index: usize, set: SetId) {
        let shards = self.shards.len();
        let group = &mut self.groups[index];
        group.phase = Phase::Preparing;
        group.began_at = now;
        group.open = set;
        group.prepared.fill(false);
        if !group.sets.iter().any(|s| s.id == set) {
            group.sets.push_back(Set::new(set, shards));
            let report = Report::SetState { group: group.id, set, state: SetState::Forming };
            self.commands.push_back(Command::Report(report));
        }
        let map_version = group.map;
        let message = Message::Prepare { group: group.id, set, map_version };
        // The shard beside this engine needs no round trip: it switches last, and holds nothing
        // while the others are asked.
        for to in self.shards.iter().filter(|shard| **shard != self.me) {
            self.commands.push_back(Command::Send { to: *to, message: message.clone() });
        }
        self.prepare_here(index);
    }

    /// Has the shard of this poller switch once all the others have.
    fn prepare_here(&mut self, index: usize) {
        let group = &self.groups[index];
        let mut others =
            self.shards.iter().zip(&group.prepared).filter(|(shard, _)| **shard != self.me);
        if others.clone().count() < self.shards.len() && others.all(|(_, prepared)| *prepared) {
            let message =
                Message::Prepare { group: group.id, set: group.open, map_version: group.map };
            self.commands.push_back(Command::Send { to: self.me, message });
        }
    }

    fn tell_shards(&mut self, message: &Message) {
        for to in &self.shards {
            self.commands.push_back(Command::Send { to: *to, message: message.clone() });
        }
    }

    /// A control message from `from`, sent in `epoch`.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: Message) {
        if epoch != self.epoch && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.stale_epoch += 1;
            return;
        }
        let shard = self.shards.iter().position(|s| *s == from);
        let group = match &message {
            Message::Prepared { group, .. }
            | Message::Closed { group, .. }
            | Message::CloseNow { group, .. }
            | Message::Confirmed { group, .. }
            | Message::Applied { group, .. }
            | Message::Greet { group, .. }
            | Message::Settled { group, .. }
            | Message::Broken { group, .. } => *group,
            Message::Planned { map_version } if shard.is_some() => {
                let known = shard.map(|shard| &mut self.planned[shard]);
                known.into_iter().for_each(|known| *known = (*map_version).max(*known));
                (0..self.groups.len()).for_each(|index| self.hasten(now, index));
                return;
            }
            _ => {
                self.unexpected += 1;
                return;
            }
        };
        let Some(index) = self.groups.iter().position(|g| g.id == group) else {
            self.unexpected += 1;
            return;
        };
        match (message, shard) {
            (Message::Prepared { set, .. }, Some(shard)) => self.prepared(now, index, shard, set),
            (Message::Closed { set, facts, .. }, Some(shard)) => {
                self.closed(index, shard, set, facts);
            }
            (Message::CloseNow { set, needed, .. }, Some(_)) => {
                if needed {
                    self.groups[index].needed = set.max(self.groups[index].needed);
                }
                if self.groups[index].phase == Phase::Open && self.groups[index].open == set {
                    self.begin(now, index);
                }
            }
            (Message::Greet { confirmed, open, map_version, .. }, Some(shard)) => {
                let group = &mut self.groups[index];
                if group.phase == Phase::Gathering {
                    // What some have carried out, the others do at the first boundary.
                    group.map = group.map.max(map_version);
                }
                self.greeted(now, index, shard, confirmed, open);
            }
            (Message::Settled { map_version, .. }, Some(shard)) => {
                self.settled(index, shard, map_version);
            }
            (Message::Broken { reason: reason @ BrokenReason::MoversLost, .. }, Some(shard))
                if self.groups[index].phase == Phase::Gathering =>
            {
                // What one lets go because of it must not be seen while another may still form the set
                // that it has left: all are in this epoch first.
                self.groups[index].doomed.get_or_insert(reason);
                self.greeted(now, index, shard, SetId(0), SetId(0));
            }
            (Message::Broken { reason, .. }, _) => self.broke(index, reason),
            (Message::Confirmed { set, .. }, None) => self.confirmed(index, set),
            (Message::Applied { set, .. }, None) => self.applied(index, set),
            _ => self.unexpected += 1,
        }
    }

    /// A shard says which sets it knows. When all have, the highest open one is prepared anew: a
    /// boundary that an earlier coordinator left half done is finished by that.
    fn greeted(&mut self, now: Nanos, index: usize, shard: usize, confirmed: SetId, open: SetId) {
        let shards = self.shards.len();
        let group = &mut self.groups[index];
        group.greeted[shard] = Some(open);
        group.confirmed = group.confirmed.max(confirmed);
        if group.phase != Phase::Gathering {
            // It restarted after a clean stop: it has nothing in the sets before the open one.
            let open_here = open;
            let (set, id) = (group.open, group.id);
            for closed in group.sets.iter_mut().filter(|s| s.id < set && s.id > open_here) {
                closed.without(shard);
            }
            let message = Message::Prepare { group: id, set, map_version: group.map };
            let release = Message::Release { group: id, set };
            let released = group.phase == Phase::Open;
            let to = self.shards[shard];
            self.commands.push_back(Command::Send { to, message });
            if released {
                self.commands.push_back(Command::Send { to, message: release });
            }
            self.form(index);
            return;
        }
        if group.greeted.iter().any(Option::is_none) || group.broken.is_some() {
            return;
        }
        if let Some(reason) = group.doomed {
            return self.broke(index, reason);
        }
        let highest = group.greeted.iter().flatten().copied().max().unwrap_or(SetId(0));
        let first = if highest == SetId(0) { group.first_set } else { highest };
        let now_unix = self.unix_offset_ns + now.0;
        let (claimed, id) = (group.claimed, group.id);
        if claimed >= first {
            return self.broke(index, BrokenReason::MoverRestarted);
        }
        // Of what some shard, or all, did not know to be confirmed nothing is formed anew.
        group.confirmed = group.confirmed.max(claimed);
        let confirmed = group.confirmed;
        group.sets.retain(|set| set.id > confirmed);
        for id in group.confirmed.0 + 1..first.0 {
            if !group.sets.iter().any(|s| s.id.0 == id) {
                group.sets.push_back(Set::new(SetId(id), shards));
            }
        }
        group.sets.make_contiguous().sort_by_key(|s| s.id);
        for set in group.sets.iter_mut().filter(|s| s.id < first) {
            set.cut_time_ns = now_unix;
            set.state = SetState::Closing;
            for (index, open) in group.greeted.iter().enumerate() {
                // A shard that had not opened a later set has nothing in it.
                if open.is_some_and(|open| open < set.id) {
                    set.without(index);
                }
            }
        }
        if confirmed > SetId(0) {
            // Some may not have heard it from a coordinator before this one.
            self.tell_shards(&Message::Confirmed { group: id, set: confirmed });
        }
        self.prepare(now, index, first);
        self.form(index);
    }

    fn prepared(&mut self, now: Nanos, index: usize, shard: usize, set: SetId) {
        let group = &mut self.groups[index];
        if group.phase != Phase::Preparing || group.open != set {
            return;
        }
        group.prepared[shard] = true;
        let hasty = self.sabotage.is(Sabotage::ReleaseOnFirstPrepared);
        if !hasty && !group.prepared.iter().all(|p| *p) {
            self.prepare_here(index);
            return;
        }
        group.phase = Phase::Open;
        group.boundaries += 1;
        group.next_at = group.began_at.after(group.period_ns).max(now);
        let message = Message::Release { group: group.id, set };
        self.tell_shards(&message);
        self.hasten(now, index);
    }

    fn closed(&mut self, index: usize, shard: usize, set: SetId, facts: FactsPart) {
        let shards = self.shards.len();
        let group = &mut self.groups[index];
        if set <= group.confirmed {
            return;
        }
        if group.phase == Phase::Gathering && !group.sets.iter().any(|s| s.id == set) {
            group.sets.push_back(Set::new(set, shards));
        }
        let Some(known) = group.sets.iter_mut().find(|s| s.id == set) else {
            self.unexpected += 1;
            return;
        };
        known.add(shard, facts);
        self.form(index);
    }

    /// Makes the manifests of the sets that all shards have closed.
    fn form(&mut self, index: usize) {
        let group = &mut self.groups[index];
        if group.phase == Phase::Gathering || group.broken.is_some() {
            return;
        }
        let id = group.id;
        let mut formed: Vec<SetId> = Vec::new();
        for set in group.sets.iter_mut() {
            if set.state >= SetState::InTransfer {
                continue;
            }
            // In order: while a number of a set has no fate, no later set has its manifest. So a
            // take-over may still count it there.
            if set.waiting != 0 || set.state != SetState::Closing {
                break;
            }
            set.state = SetState::InTransfer;
            set.facts.sort_by_key(|f| f.volume);
            formed.push(set.id);
            self.commands.push_back(Command::Report(Report::SetFormed {
                group: id,
                set: set.id,
                cut_time_ns: set.cut_time_ns,
                updates: set.facts.iter().map(VolumeFacts::count).sum(),
                bytes: set.facts.iter().map(|f| f.bytes).sum(),
                facts: set.facts.clone(),
            }));
        }
        for set in formed {
            for to in self.backup.iter().chain(self.secondary.iter()).copied().collect::<Vec<_>>() {
                self.send_manifest(index, set, to);
            }
            if self.secondary.is_none() || self.sabotage.is(Sabotage::FreeBeforeConfirm) {
                self.confirm_without_secondary(index);
            }
        }
    }

    fn send_manifest(&mut self, index: usize, set: SetId, to: ShardId) {
        let group = &self.groups[index];
        let Some(set) = group.sets.iter().find(|s| s.id == set) else { return };
        for facts in FactsPart::split(&set.facts) {
            let message = Message::Manifest {
                group: group.id,
                set: set.id,
                cut_time_ns: set.cut_time_ns,
                facts,
            };
            self.commands.push_back(Command::Send { to, message });
        }
    }

    /// With no secondary there is nobody to wait for: a formed set is done.
    fn confirm_without_secondary(&mut self, index: usize) {
        let mut last = None;
        for set in &self.groups[index].sets {
            if set.state < SetState::InTransfer {
                break;
            }
            last = Some(set.id);
        }
        if let Some(set) = last {
            self.confirmed(index, set);
        }
    }

    /// The secondary has every set up to `set`: copies may go (invariant 8).
    fn confirmed(&mut self, index: usize, set: SetId) {
        let group = &mut self.groups[index];
        match group.phase {
            // Which sets there were is not known yet.
            Phase::Gathering => group.claimed = group.claimed.max(set),
            // The secondary has sets that this site would form anew, and would take them for those
            // it has: the numbers of an earlier life were lost.
            Phase::Open | Phase::Preparing if set >= group.open => {
                return self.broke(index, BrokenReason::MoverRestarted);
            }
            Phase::Open | Phase::Preparing => {}
        }
        // What was never formed cannot have been confirmed: an answer to an earlier life.
        let formed =
            group.sets.iter().filter(|s| s.state >= SetState::InTransfer).map(|s| s.id).max();
        let set = set.min(formed.unwrap_or(group.confirmed));
        if set <= group.confirmed {
            return;
        }
        group.confirmed = set;
        while group.sets.front().is_some_and(|s| s.id <= set) {
            if let Some(done) = group.sets.pop_front() {
                let report =
                    Report::SetState { group: group.id, set: done.id, state: SetState::Received };
                self.commands.push_back(Command::Report(report));
            }
        }
        let message = Message::Confirmed { group: group.id, set };
        self.tell_shards(&message);
    }

    fn applied(&mut self, index: usize, set: SetId) {
        let group = &mut self.groups[index];
        if set > group.applied {
            group.applied = set;
            let report = Report::SetState { group: group.id, set, state: SetState::Applied };
            self.commands.push_back(Command::Report(report));
        }
    }

    fn broke(&mut self, index: usize, reason: BrokenReason) {
        let group = &mut self.groups[index];
        if group.broken.is_some() {
            return;
        }
        group.broken = Some(reason);
        group.sets.clear();
        let id = group.id;
        self.commands.push_back(Command::Report(Report::Broken { group: id, reason }));
        let message = Message::Broken { group: id, reason };
        self.tell_shards(&message);
        // The secondary would see only that no further set comes (invariant 10).
        if let Some(to) = self.secondary {
            self.commands.push_back(Command::Send { to, message });
        }
        self.move_without_sets(index);
    }

    /// The link to `peer` is up with a new memory at the other end: what was queued there is lost.
    pub fn handle_peer_up(&mut self, peer: ShardId) {
        let is_secondary = self.secondary == Some(peer);
        if is_secondary {
            self.commands.push_back(Command::Send { to: peer, message: Message::Lead });
        }
        for index in 0..self.groups.len() {
            if let Some(reason) = self.groups[index].broken {
                let message = Message::Broken { group: self.groups[index].id, reason };
                let other_shard = peer != self.me && self.shards.contains(&peer);
                if other_shard || is_secondary {
                    self.commands.push_back(Command::Send { to: peer, message });
                }
                let Group { id: group, open: set, moved_to: map_version, .. } = self.groups[index];
                if other_shard && map_version > MapVersion(0) {
                    let message = Message::Prepare { group, set, map_version };
                    self.commands.push_back(Command::Send { to: peer, message });
                }
                continue;
            }
            if is_secondary || self.backup == Some(peer) {
                let formed: Vec<SetId> = self.groups[index]
                    .sets
                    .iter()
                    .filter(|s| s.state >= SetState::InTransfer)
                    .map(|s| s.id)
                    .collect();
                for set in formed {
                    self.send_manifest(index, set, peer);
                }
            }
        }
    }

    /// The next thing to do, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }
}
