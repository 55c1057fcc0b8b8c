//! The secondary site's coordinator: when a set is there, and when it may be applied.
//!
//! It hands each shard its part of every manifest. A set that all shards have stored is committed
//! in the journal, in order, then confirmed to the primary (invariant 8) and applied: all shards
//! are told to apply a set only when all have applied the one before (invariant 7, T3).
//!
//! Nothing is repeated by timer. A shard says how far it is whenever its link comes up (`Resume`)
//! and gets what it lacks; the primary coordinator says that it leads whenever its link comes up or
//! it enters an epoch (`Lead`), gets the confirmation again, and sends again the manifests that it
//! misses one for. Commits carry the epoch of the primary site, so that a restart does not forget it.
//!
//! A group that forms no sets any more, whoever found that out, is called broken by every shard of
//! the site (invariant 10). What is whole is committed and applied all the same, and nothing else.
//!
//! After a restart the coordinator does not know whether a shard was told to apply the set after
//! the last one that all have applied. It takes it that one was: that set is finished before a
//! boundary is claimed, also when apply is paused (T4).

use crate::proto::command::{Command, JournalPos, Report, SetState};
use crate::proto::limits::SETS_AHEAD_MAX;
use crate::proto::message::{BrokenReason, FactsAssembly, FactsPart, Message, VolumeFacts};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Epoch, GroupId, Nanos, SetId, ShardId, VolumeId};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

mod commits;

use commits::Commit;
pub(super) use commits::owns;

/// What a secondary coordinator has to know; fixed while it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoordinatorConfig {
    /// The shard it runs beside.
    pub me: ShardId,
    /// All shards of this site, its own included.
    pub shards: Vec<ShardId>,
    /// All groups.
    pub groups: Vec<GroupId>,
    /// Which shard writes which volume.
    pub volumes: Vec<(VolumeId, ShardId)>,
    /// A rule to break on purpose, in tests.
    pub sabotage: Sabotage,
}

/// How far a group is at the site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoordinatorStatus {
    /// The group.
    pub group: GroupId,
    /// The last set that the site could fail over to: all of it is here, durably.
    pub committed: SetId,
    /// When that set was cut, nanoseconds since the Unix epoch; 0 when there is none.
    pub committed_cut_time_ns: u64,
    /// The last set that is on all volumes.
    pub applied: SetId,
    /// When that set was cut; 0 when there is none.
    pub applied_cut_time_ns: u64,
    /// The volumes stand at `applied` exactly: no shard is applying the set after it.
    pub at_boundary: bool,
    /// Apply is to stop at the next boundary.
    pub paused: bool,
    /// Why no further sets are formed before a resynchronisation, if so.
    pub broken: Option<BrokenReason>,
    /// Shards that have not said how far they are.
    pub missing_shards: usize,
}

/// A shard's line.
#[derive(Clone, Copy, Default, Debug)]
struct Row {
    /// The shard has spoken since this coordinator started.
    known: bool,
    stored: SetId,
    applied: SetId,
    /// What is stored there is no point in time before all up to this set is everywhere (G12).
    not_before: SetId,
}

/// A set that is not yet committed.
#[derive(Clone, Default, Debug)]
struct Pending {
    assembly: FactsAssembly,
    cut_time_ns: u64,
    /// Per shard, in the order of the configuration.
    facts: Option<Vec<Vec<VolumeFacts>>>,
}

#[derive(Clone, Debug)]
struct Group {
    id: GroupId,
    rows: Vec<Row>,
    /// The sets after `appended`, without holes.
    pending: VecDeque<Pending>,
    /// From the last set applied everywhere to the last one appended.
    commits: VecDeque<Commit>,
    /// All sets up to here have their commit in the journal.
    appended: SetId,
    /// All sets up to here are committed: durable, and confirmed.
    committed: SetId,
    /// The last set that a shard may have begun to apply; none before all rows are known.
    started: Option<SetId>,
    /// What was last reported as applied.
    applied: SetId,
    paused: bool,
    /// The boundary at which the pause was reported.
    paused_at: Option<SetId>,
    /// Why no further sets are formed before a resynchronisation, if so.
    broken: Option<BrokenReason>,
}

impl Group {
    fn stored_everywhere(&self) -> Option<SetId> {
        self.rows.iter().map(|row| row.known.then_some(row.stored)).min()?
    }
    fn applied_everywhere(&self) -> Option<SetId> {
        self.rows.iter().map(|row| row.known.then_some(row.applied)).min()?
    }
    /// Whether a set that is applied everywhere is a point in time: it has a commit of its own. One that a commit
    /// of a later set covers is only a part of that (G12).
    fn is_boundary(&self, applied: SetId) -> bool {
        let mut later = self.commits.iter().filter(|commit| commit.set >= applied);
        later.next().is_none_or(|commit| commit.set == applied) || applied == SetId(0)
    }
    /// Sets up to this one are committed with those before, not alone; 0 for none.
    fn not_before(&self) -> SetId {
        self.rows.iter().map(|row| row.not_before).max().unwrap_or_default()
    }
    fn cut_time_ns(&self, set: SetId) -> u64 {
        self.commits.iter().find(|commit| commit.set == set).map_or(0, |commit| commit.cut_time_ns)
    }
}

/// The state machine. Owner: the poller it runs on. [`super::Secondary`] documents the inputs.
#[derive(Clone, Debug)]
pub struct SecondaryCoordinator {
    config: CoordinatorConfig,
    /// The latest epoch of the primary site that was heard of, in this life or before; what was said
    /// in earlier ones is not believed.
    primary_epoch: Epoch,
    /// Who forms the sets in it. Unknown after a start, until it says so: a mover that coordinated
    /// before and was excluded must not be told how far this site is, or it would call the group broken.
    leader: Option<ShardId>,
    /// Index of a volume's shard.
    owners: BTreeMap<VolumeId, usize>,
    groups: BTreeMap<GroupId, Group>,
    commands: VecDeque<Command>,
    /// Commits appended so far.
    ordinal: u64,
    durable: u64,
    retired: JournalPos,
    /// By index of the shard: its journal is scarce.
    scarce_shards: Vec<bool>,
    /// The journal here is scarce, and ample from there on.
    scarce: Option<JournalPos>,
    refused_messages: u64,
}

impl SecondaryCoordinator {
    /// A coordinator that knows nothing yet.
    ///
    /// # Panics
    /// When a volume's shard is not among the shards: the configuration is checked before.
    #[must_use]
    pub fn new(config: CoordinatorConfig) -> Self {
        let index = |shard: &ShardId| {
            config.shards.iter().position(|s| s == shard).expect("every volume's shard is known")
        };
        let owners = config.volumes.iter().map(|(volume, shard)| (*volume, index(shard))).collect();
        let group = |id: &GroupId| {
            let group = Group {
                id: *id,
                rows: vec![Row::default(); config.shards.len()],
                pending: VecDeque::new(),
                commits: VecDeque::new(),
                appended: SetId(0),
                committed: SetId(0),
                started: None,
                applied: SetId(0),
                paused: false,
                paused_at: None,
                broken: None,
            };
            (*id, group)
        };
        let groups = config.groups.iter().map(group).collect();
        let scarce_shards = vec![false; config.shards.len()];
        Self {
            config,
            primary_epoch: Epoch(0),
            leader: None,
            owners,
            groups,
            commands: VecDeque::new(),
            ordinal: 0,
            durable: 0,
            retired: JournalPos::default(),
            scarce_shards,
            scarce: None,
            refused_messages: 0,
        }
    }

    /// The journal is read; the shards will say how far they are.
    pub fn recovered(&mut self, _now: Nanos) {}

    /// Whether a message that arrived at the poller is the coordinator's; the others are the
    /// shard's.
    #[must_use]
    pub fn wants(&self, from: ShardId, message: &Message) -> bool {
        match message {
            Message::Manifest { .. } => from != self.config.me,
            Message::Lead => !self.config.shards.contains(&from),
            Message::Stored { .. }
            | Message::Applied { .. }
            | Message::Resume { .. }
            | Message::PauseApply { .. }
            | Message::JournalRoom { .. }
            | Message::Broken { .. } => true,
            _ => false,
        }
    }

    /// A message that [`SecondaryCoordinator::wants`] accepts.
    pub fn handle_message(&mut self, _now: Nanos, from: ShardId, message: Message) {
        let shard = self.config.shards.iter().position(|shard| *shard == from);
        if shard.is_none()
            && (message == Message::Lead
                || matches!(message, Message::Manifest { .. } | Message::Broken { .. })
                    && self.leader != Some(from))
        {
            // This shard of the primary site forms the sets from now on: those of an epoch that is
            // over are not heard any more. Its messages come in any order.
            self.leader = Some(from);
            self.greet(from);
        }
        let from_primary = self.leader == Some(from);
        let known = |group: &GroupId| self.groups.contains_key(group);
        match (message, shard) {
            (Message::Manifest { group, set, cut_time_ns, facts }, _)
                if from_primary && known(&group) =>
            {
                self.handle_manifest(group, set, cut_time_ns, facts);
            }
            (Message::Lead, None) => {}
            (Message::Stored { group, set, not_before }, Some(shard)) if known(&group) => {
                self.update(group, shard, |row| {
                    row.stored = row.stored.max(set);
                    row.not_before = row.not_before.max(not_before);
                });
            }
            (Message::Applied { group, set }, Some(shard)) if known(&group) => {
                self.update(group, shard, |row| row.applied = row.applied.max(set));
            }
            (Message::Resume { group, stored, applied, not_before }, Some(shard))
                if known(&group) =>
            {
                self.resume(group, shard, Row { known: true, stored, applied, not_before });
            }
            (Message::PauseApply { group, paused }, _)
                if from == self.config.me && known(&group) =>
            {
                self.pause(group, paused);
            }
            (Message::JournalRoom { scarce }, Some(shard)) => {
                self.scarce_shards[shard] = scarce;
                self.commit_all();
            }
            (Message::Broken { group, reason }, shard)
                if (from_primary || shard.is_some()) && known(&group) =>
            {
                self.broken(group, reason, shard.is_some());
            }
            _ => self.refused_messages += 1,
        }
    }

    fn update(&mut self, group: GroupId, shard: usize, change: impl FnOnce(&mut Row)) {
        if let Some(group) = self.groups.get_mut(&group) {
            change(&mut group.rows[shard]);
        }
        self.commit(group);
        self.apply(group);
        // What is applied everywhere needs no commit any more, whether or not another follows.
        self.retire();
    }

    /// A shard says how far it is, and gets what it lacks. What it ever said is durable there, so
    /// a message that overtook this one still holds.
    fn resume(&mut self, id: GroupId, shard: usize, said: Row) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let row = &mut group.rows[shard];
        row.known = true;
        row.stored = row.stored.max(said.stored);
        row.applied = row.applied.max(said.applied);
        row.not_before = row.not_before.max(said.not_before);
        let row = *row;
        let first = group.appended.next();
        let apply = group.started.filter(|started| *started > row.applied);
        for at in 0..group.pending.len() {
            let set = SetId(first.0 + at as u64);
            if set > row.stored {
                self.send_share(id, set, at, shard);
            }
        }
        if let Some(set) = apply {
            let message = Message::Apply { group: id, set };
            self.commands.push_back(Command::Send { to: self.config.shards[shard], message });
        }
        self.commit(id);
        self.apply(id);
    }

    fn handle_manifest(&mut self, id: GroupId, set: SetId, cut_time_ns: u64, part: FactsPart) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if set <= group.committed {
            let message = Message::Confirmed { group: id, set: group.committed };
            return self.tell_primary(message);
        }
        if set <= group.appended {
            return;
        }
        if set.0 > group.committed.0 + SETS_AHEAD_MAX {
            self.refused_messages += 1;
            return;
        }
        let at = (set.0 - group.appended.0 - 1) as usize;
        while group.pending.len() <= at {
            group.pending.push_back(Pending::default());
        }
        let pending = &mut group.pending[at];
        if pending.facts.is_some() || !pending.assembly.add(part) {
            return;
        }
        let facts = core::mem::take(&mut pending.assembly).into_facts();
        let report = Report::SetFormed {
            group: id,
            set,
            cut_time_ns,
            updates: facts.iter().map(VolumeFacts::count).sum(),
            bytes: facts.iter().map(|fact| fact.bytes).sum(),
            facts: facts.clone(),
        };
        let mut shares = vec![Vec::new(); self.config.shards.len()];
        let mut stray = false;
        for fact in facts {
            match self.owners.get(&fact.volume) {
                Some(owner) => shares[*owner].push(fact),
                None => stray = true,
            }
        }
        if stray {
            // A set that this site cannot hold wholly must never look complete.
            self.broken(id, BrokenReason::DigestMismatch, true);
            return;
        }
        self.commands.push_back(Command::Report(report));
        pending.cut_time_ns = cut_time_ns;
        pending.facts = Some(shares);
        let lacking: Vec<usize> = (0..group.rows.len())
            .filter(|shard| group.rows[*shard].known && group.rows[*shard].stored < set)
            .collect();
        for shard in lacking {
            self.send_share(id, set, at, shard);
        }
        self.commit(id);
    }

    fn send_share(&mut self, id: GroupId, set: SetId, at: usize, shard: usize) {
        let Some(pending) = self.groups.get(&id).and_then(|group| group.pending.get(at)) else {
            return;
        };
        let Some(facts) = &pending.facts else { return };
        let (to, cut_time_ns) = (self.config.shards[shard], pending.cut_time_ns);
        for facts in FactsPart::split(&facts[shard]) {
            let message = Message::Manifest { group: id, set, cut_time_ns, facts };
            self.commands.push_back(Command::Send { to, message });
        }
    }

    /// Moves apply on: claims a boundary that is reached, starts the next set.
    fn apply(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(applied) = group.applied_everywhere() else { return };
        let Some(started) = group.started else {
            // All have spoken for the first time. A shard may have begun the set after.
            let started = applied.next().min(group.committed.max(applied));
            group.started = Some(started);
            if started > applied {
                self.start(id, started);
            } else {
                self.apply(id);
            }
            return;
        };
        if self.config.sabotage.is(Sabotage::ApplyOutOfLockstep) {
            self.apply_out_of_lockstep(id);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        if applied < started {
            return;
        }
        let boundary = group.is_boundary(applied);
        if boundary && group.applied < applied {
            // Sets that one commit covers are applied together, too.
            let first = if group.applied == SetId(0) { applied } else { group.applied.next() };
            group.applied = applied;
            let state = SetState::Applied;
            for set in (first.0..=applied.0).map(SetId) {
                let report = Report::SetState { group: id, set, state };
                self.commands.push_back(Command::Report(report));
            }
            let set = applied;
            if let Some(to) = self.leader {
                let message = Message::Applied { group: id, set };
                self.commands.push_back(Command::Send { to, message });
            }
        }
        while group.commits.front().is_some_and(|commit| commit.set < applied) {
            group.commits.pop_front();
        }
        if group.paused && boundary {
            if group.paused_at != Some(applied) {
                group.paused_at = Some(applied);
                let report = Report::ApplyPaused { group: id, at: applied, paused: true };
                self.commands.push_back(Command::Report(report));
            }
        } else if group.committed > applied {
            let next = applied.next();
            group.started = Some(next);
            self.start(id, next);
        }
    }

    fn start(&mut self, id: GroupId, set: SetId) {
        let state = SetState::Applying;
        self.commands.push_back(Command::Report(Report::SetState { group: id, set, state }));
        for to in self.config.shards.clone() {
            let message = Message::Apply { group: id, set };
            self.commands.push_back(Command::Send { to, message });
        }
    }

    /// Tells every shard to go on as soon as it can, whatever the others do.
    fn apply_out_of_lockstep(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        for (row, to) in group.rows.iter().zip(&self.config.shards) {
            if row.applied < group.committed {
                let message = Message::Apply { group: id, set: row.applied.next() };
                self.commands.push_back(Command::Send { to: *to, message });
            }
        }
    }

    fn pause(&mut self, id: GroupId, paused: bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.paused
            && !paused
            && let Some(at) = group.paused_at
        {
            let report = Report::ApplyPaused { group: id, at, paused: false };
            self.commands.push_back(Command::Report(report));
        }
        group.paused = paused;
        group.paused_at = None;
        self.apply(id);
    }

    /// The group forms no sets any more: tells the other shards, and the primary unless that is who
    /// said so.
    fn broken(&mut self, id: GroupId, reason: BrokenReason, tell_primary: bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.broken.is_some() {
            return;
        }
        group.broken = Some(reason);
        self.commands.push_back(Command::Report(Report::Broken { group: id, reason }));
        if let Some(leader) = self.leader.filter(|_| tell_primary) {
            self.tell_broken(leader, id, reason);
        }
        for to in self.config.shards.clone() {
            if to != self.config.me {
                self.tell_broken(to, id, reason);
            }
        }
    }

    fn tell_broken(&mut self, to: ShardId, group: GroupId, reason: BrokenReason) {
        let message = Message::Broken { group, reason };
        self.commands.push_back(Command::Send { to, message });
    }

    fn tell_primary(&mut self, message: Message) {
        if let Some(to) = self.leader {
            self.commands.push_back(Command::Send { to, message });
        }
    }

    /// Tells the primary coordinator how far this site is.
    fn greet(&mut self, leader: ShardId) {
        for group in self.groups.values() {
            let id = group.id;
            let mut messages = Vec::new();
            if group.committed > SetId(0) {
                messages.push(Message::Confirmed { group: id, set: group.committed });
            }
            if group.applied > SetId(0) {
                messages.push(Message::Applied { group: id, set: group.applied });
            }
            if let Some(reason) = group.broken {
                messages.push(Message::Broken { group: id, reason });
            }
            for message in messages {
                self.commands.push_back(Command::Send { to: leader, message });
            }
        }
    }

    /// See [`super::Secondary::handle_peer_up`]. Shards say themselves how far they are, and so does
    /// the primary coordinator ([`Message::Lead`]).
    pub fn handle_peer_up(&mut self, _now: Nanos, peer: ShardId) {
        if peer == self.config.me || !self.config.shards.contains(&peer) {
            return;
        }
        for group in self.groups.values() {
            if let Some(reason) = group.broken {
                let message = Message::Broken { group: group.id, reason };
                self.commands.push_back(Command::Send { to: peer, message });
            }
        }
    }

    /// The primary site speaks in this epoch.
    pub(super) fn heard_primary(&mut self, epoch: Epoch) {
        self.primary_epoch = self.primary_epoch.max(epoch);
    }

    pub(super) fn primary_epoch(&self) -> Epoch {
        self.primary_epoch
    }

    /// The next effect.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// How far the groups are (T6).
    pub fn status(&self) -> impl Iterator<Item = CoordinatorStatus> + '_ {
        self.groups.values().map(|group| CoordinatorStatus {
            group: group.id,
            committed: group.committed,
            committed_cut_time_ns: group.cut_time_ns(group.committed),
            applied: group.applied,
            applied_cut_time_ns: group.cut_time_ns(group.applied),
            at_boundary: group.started == Some(group.applied),
            paused: group.paused,
            broken: group.broken,
            missing_shards: group.rows.iter().filter(|row| !row.known).count(),
        })
    }

    pub(super) fn refused_messages(&self) -> u64 {
        self.refused_messages
    }
}
