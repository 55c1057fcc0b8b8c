//! A secondary site in a bottle: machines, journals, volumes and links that delay, reorder, fail
//! and crash as a seed says, and the rules of the protocol checked after every event.
//!
//! The primary is a script: a history of sets made beforehand, sent in any order and as often as
//! the machines ask for. Shard m10.0 runs the coordinator; m10.1 is its sibling and crashes with
//! it; m11.0 is another mover. m10.x and m11.0 are partners.

use super::script::{
    BLOCKS, COORDINATOR, EPOCH, History, Image, PRIMARY, Random, SHARDS, apply_to, update,
};
use crate::proto::command::{Command, JournalEntry, JournalPos, PayloadAt, RecordRole, Token};
use crate::proto::message::{FactsPart, Message};
use crate::proto::sabotage::Sabotage;
use crate::proto::secondary::{
    CoordinatorConfig, Receipt, Recovered, Refusal, Secondary, ShardConfig, VolumeConfig,
};
use crate::proto::types::{
    BufRef, GroupId, MoverId, Nanos, NvmeStatus, Seq, SetId, ShardId, VolumeId,
};
use crate::wire::update::UpdateInfo;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// What is under way somewhere.
pub(super) enum Event {
    Message { from: ShardId, to: ShardId, message: Message },
    Record { from: ShardId, to: ShardId, role: RecordRole, info: UpdateInfo, sent: Option<Token> },
    Delivered { at: ShardId, token: Token },
    Write { at: ShardId, token: Token, info: UpdateInfo, buf: Option<BufRef> },
    Flush { at: ShardId, token: Token, volume: VolumeId },
}

pub(super) enum JournalStep {
    Appended(Token, JournalPos),
    Flushed(Token, usize),
}

/// One poller with its journal and volumes. Journal and volumes outlive the machine.
pub(super) struct Node {
    pub(super) machine: Secondary,
    /// What the arena holds.
    pub(super) arena: BTreeMap<BufRef, UpdateInfo>,
    pub(super) steps: VecDeque<JournalStep>,
    pub(super) journal: Vec<(JournalPos, Recovered)>,
    /// Entries that a crash cannot take.
    pub(super) durable: usize,
    pub(super) retired: JournalPos,
    pub(super) next_position: u64,
    /// Volumes as on the medium, and the writes that only their caches have.
    pub(super) medium: Image,
    pub(super) cached: Vec<UpdateInfo>,
}

/// The whole site, and the primary's view of it.
pub(super) struct Site {
    pub(super) random: Random,
    pub(super) history: History,
    pub(super) nodes: BTreeMap<ShardId, Node>,
    pub(super) pool: Vec<Event>,
    pub(super) now: Nanos,
    pub(super) next_buf: u64,
    /// How far the primary has sent each group.
    pub(super) cut: BTreeMap<GroupId, SetId>,
    pub(super) confirmed: BTreeMap<GroupId, SetId>,
    pub(super) applied: BTreeMap<GroupId, SetId>,
    pub(super) sabotage: Sabotage,
    /// Whether things fail and crash.
    pub(super) faults: bool,
    pub(super) boundaries_seen: u64,
    pub(super) crashes: u64,
    /// Groups that the primary has broken.
    pub(super) broken: BTreeSet<GroupId>,
    /// What each mover's present life has said to be broken.
    pub(super) told: BTreeSet<(ShardId, GroupId)>,
}

pub(super) type Checked = Result<(), String>;

impl Site {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut random = Random::new(seed);
        let history = History::new(&mut random);
        let mut site = Self {
            random,
            history,
            nodes: BTreeMap::new(),
            pool: Vec::new(),
            now: Nanos(1),
            next_buf: 0,
            cut: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            applied: BTreeMap::new(),
            sabotage,
            faults: true,
            boundaries_seen: 0,
            crashes: 0,
            broken: BTreeSet::new(),
            told: BTreeSet::new(),
        };
        for shard in SHARDS {
            let medium = site
                .history
                .owners
                .iter()
                .filter(|(_, (_, owner))| *owner == shard)
                .map(|(volume, _)| (*volume, vec![0; BLOCKS as usize]))
                .collect();
            let mut node = Node {
                machine: site.machine(shard),
                arena: BTreeMap::new(),
                steps: VecDeque::new(),
                journal: Vec::new(),
                durable: 0,
                retired: JournalPos(0),
                next_position: 1,
                medium,
                cached: Vec::new(),
            };
            node.machine.recovered(site.now);
            site.nodes.insert(shard, node);
        }
        site
    }

    pub(super) fn machine(&self, me: ShardId) -> Secondary {
        let owners = &self.history.owners;
        let volumes = owners
            .iter()
            .filter(|(_, (_, owner))| *owner == me)
            .map(|(id, (group, _))| VolumeConfig {
                id: *id,
                group: *group,
                block_bytes: 4096,
                blocks: BLOCKS,
            })
            .collect();
        let shard = ShardConfig {
            me,
            epoch: EPOCH,
            coordinator: COORDINATOR,
            partner: Some(if me.mover == MoverId(10) { SHARDS[2] } else { SHARDS[0] }),
            primaries: vec![PRIMARY],
            groups: self.history.groups.clone(),
            volumes,
            apply_depth: 4,
            sabotage: self.sabotage,
        };
        let coordinator = (me == COORDINATOR).then(|| CoordinatorConfig {
            me,
            shards: SHARDS.to_vec(),
            groups: self.history.groups.clone(),
            volumes: owners.iter().map(|(volume, (_, owner))| (*volume, *owner)).collect(),
            sabotage: self.sabotage,
        });
        Secondary::new(shard, coordinator)
    }

    /// Runs `steps` events with faults, then heals and runs until everything is applied.
    pub(super) fn run(&mut self, steps: u64) -> Checked {
        for _ in 0..steps {
            self.step()?;
        }
        self.heal()
    }

    /// All faults end; runs until everything is applied that can be.
    pub(super) fn heal(&mut self) -> Checked {
        self.faults = false;
        for group in self.history.groups.clone() {
            while !self.broken.contains(&group)
                && self.cut.get(&group).is_none_or(|cut| *cut < self.history.last)
            {
                self.cut_next(group);
            }
            self.control(Message::PauseApply { group, paused: false });
        }
        for _ in 0..200_000 {
            if !self.step()? {
                return self.check_end();
            }
        }
        Err("the site does not come to rest".into())
    }

    /// One thing happens; false when nothing is under way.
    pub(super) fn step(&mut self) -> Result<bool, String> {
        self.now = self.now.after(1000);
        self.drain_commands()?;
        if self.faults {
            match self.random.below(400) {
                0..=11 => {
                    let group = self.history.groups[self.random.below(2) as usize];
                    self.cut_next(group);
                }
                12..=13 => {
                    let group = self.history.groups[self.random.below(2) as usize];
                    let paused = self.random.chance(50);
                    self.control(Message::PauseApply { group, paused });
                }
                14..=15 => {
                    let mover = if self.random.chance(50) { 10 } else { 11 };
                    self.crash(&[MoverId(mover)]);
                }
                16 => self.crash(&[MoverId(10), MoverId(11)]),
                17..=18 => self.reset_link(),
                19..=24 => {
                    let shard = SHARDS[self.random.below(3) as usize];
                    let now = self.now;
                    self.node(shard).machine.handle_pressure(now);
                }
                25..=30 => {
                    let shard = SHARDS[self.random.below(3) as usize];
                    self.journal_room(shard);
                }
                _ => {}
            }
            self.drain_commands()?;
        }
        let moved = self.advance()?;
        self.drain_commands()?;
        self.check()?;
        Ok(moved)
    }

    /// The shard's journal becomes scarce, or ample again. It may stay scarce to the end: everything
    /// must be applied all the same.
    fn journal_room(&mut self, shard: ShardId) {
        let (now, scarce) = (self.now, self.random.chance(60));
        let end = self.nodes[&shard].next_position;
        let before = JournalPos(end - self.random.below(end + 1).min(40));
        self.node(shard).machine.handle_journal_room(now, scarce.then_some(before));
    }

    pub(super) fn node(&mut self, shard: ShardId) -> &mut Node {
        self.nodes.get_mut(&shard).unwrap()
    }

    fn control(&mut self, message: Message) {
        let now = self.now;
        self.node(COORDINATOR).machine.handle_message(now, COORDINATOR, EPOCH, message);
    }

    /// The primary cuts a set: its updates and its manifest go out.
    fn cut_next(&mut self, group: GroupId) {
        let set = self.cut.get(&group).copied().unwrap_or_default().next();
        if set > self.history.last || self.broken.contains(&group) {
            return;
        }
        self.cut.insert(group, set);
        for shard in SHARDS {
            self.send_records(group, set, shard);
        }
        self.send_manifest(group, set);
    }

    fn send_records(&mut self, group: GroupId, set: SetId, to: ShardId) {
        for info in self.history.sets[&(group, set)].0.clone() {
            if self.history.owners[&info.volume].1 != to {
                continue;
            }
            let fact = self.history.sets[&(group, set)].1.iter().find(|f| f.volume == info.volume);
            let void = fact.is_some_and(|fact| fact.voids.contains(&info.seq));
            // A void update was perhaps never sent.
            if !void || self.random.chance(50) {
                let role = RecordRole::Transfer;
                self.pool.push(Event::Record { from: PRIMARY, to, role, info, sent: None });
            }
        }
    }

    pub(super) fn send_manifest(&mut self, group: GroupId, set: SetId) {
        let facts = self.history.sets[&(group, set)].1.clone();
        let parts = facts.len().max(1) as u16;
        for part in 0..parts {
            let facts = facts.get(usize::from(part)).cloned().into_iter().collect();
            let facts = FactsPart { part, parts, facts };
            let message = Message::Manifest { group, set, cut_time_ns: set.0 * 1000, facts };
            self.pool.push(Event::Message { from: PRIMARY, to: COORDINATOR, message });
        }
    }

    /// Something that is under way comes to pass.
    fn advance(&mut self) -> Result<bool, String> {
        let now = self.now;
        for node in self.nodes.values_mut() {
            if node.machine.next_timeout() <= now {
                node.machine.handle_timeout(now);
            }
        }
        self.drain_commands()?;
        let journals: Vec<ShardId> =
            self.nodes.iter().filter(|(_, n)| !n.steps.is_empty()).map(|(s, _)| *s).collect();
        let choices = (self.pool.len() + journals.len()) as u64;
        if choices == 0 {
            let next = self.nodes.values().map(|node| node.machine.next_timeout()).min();
            let next = next.filter(|next| *next != Nanos::NEVER);
            self.now = self.now.max(next.unwrap_or(self.now));
            return Ok(next.is_some());
        }
        let pick = self.random.below(choices) as usize;
        if pick < self.pool.len() {
            let event = self.pool.swap_remove(pick);
            self.happen(event)?;
        } else {
            self.journal_step(journals[pick - self.pool.len()]);
        }
        Ok(true)
    }

    fn journal_step(&mut self, shard: ShardId) {
        let now = self.now;
        let node = self.node(shard);
        match node.steps.pop_front() {
            Some(JournalStep::Appended(token, position)) => {
                node.machine.handle_journaled(now, token, position);
            }
            Some(JournalStep::Flushed(token, length)) => {
                node.durable = node.durable.max(length);
                node.machine.handle_journal_durable(now, token);
            }
            None => {}
        }
    }

    fn happen(&mut self, event: Event) -> Checked {
        let now = self.now;
        match event {
            Event::Message { from, to: PRIMARY, message } => return self.primary(from, message),
            Event::Message { from, to, message } => {
                self.node(to).machine.handle_message(now, from, EPOCH, message);
            }
            Event::Record { from, to, role, info, sent } => {
                if sent.is_none() && self.faults && self.random.chance(10) {
                    self.pool.push(Event::Record { from, to, role, info, sent });
                }
                self.next_buf += 1;
                let buf = BufRef(self.next_buf);
                let node = self.node(to);
                match node.machine.handle_record(now, from, role, &info, buf) {
                    Receipt::Accepted => {
                        node.arena.insert(buf, info);
                    }
                    Receipt::Duplicate => {}
                    Receipt::Refused(Refusal::Void) => {}
                    Receipt::Refused(why) => return Err(format!("{info:?} refused: {why:?}")),
                }
                if let Some(token) = sent {
                    self.pool.push(Event::Delivered { at: from, token });
                }
            }
            Event::Delivered { at, token } => self.node(at).machine.handle_delivered(now, token),
            Event::Write { at, token, info, buf } => {
                let failed = self.faults && self.random.chance(5);
                let node = self.node(at);
                if let Some(buf) = buf
                    && node.arena.get(&buf) != Some(&info)
                {
                    return Err(format!("{buf} freed while it was written"));
                }
                // A failed write may have reached the volume or not.
                node.cached.push(info);
                let status = if failed { NvmeStatus::WRITE_FAULT } else { NvmeStatus::SUCCESS };
                node.machine.handle_written(now, token, status);
            }
            Event::Flush { at, token, volume } => {
                let failed = self.faults && self.random.chance(5);
                if failed {
                    self.lose_cached(at, Some(volume));
                }
                let node = self.node(at);
                let status = if failed { NvmeStatus::INTERNAL } else { NvmeStatus::SUCCESS };
                for info in core::mem::take(&mut node.cached) {
                    if info.volume == volume {
                        apply_to(&mut node.medium, &info);
                    } else {
                        node.cached.push(info);
                    }
                }
                node.machine.handle_written(now, token, status);
            }
        }
        Ok(())
    }

    fn primary(&mut self, from: ShardId, message: Message) -> Checked {
        match message {
            Message::Confirmed { group, set } => {
                self.check_confirmed(group, set)?;
                let confirmed = self.confirmed.entry(group).or_default();
                *confirmed = (*confirmed).max(set);
            }
            Message::Applied { group, set } => {
                let applied = self.applied.entry(group).or_default();
                *applied = (*applied).max(set);
            }
            // It forgot what it kept.
            Message::Resume { group, .. } if self.broken.contains(&group) => {}
            Message::Broken { group, .. } if self.broken.contains(&group) => {}
            Message::Resume { group, stored, .. } => {
                let cut = self.cut.get(&group).copied().unwrap_or_default();
                // The primary keeps what is not confirmed, and only that (invariant 8). An old
                // message may come late.
                let confirmed = self.confirmed.get(&group).copied().unwrap_or_default();
                for set in stored.max(confirmed).0 + 1..=cut.0 {
                    self.send_records(group, SetId(set), from);
                }
            }
            other => return Err(format!("the primary got {other:?}")),
        }
        Ok(())
    }

    fn drain_commands(&mut self) -> Checked {
        for shard in SHARDS {
            while let Some(command) = self.node(shard).machine.poll_command() {
                self.carry_out(shard, command)?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, at: ShardId, command: Command) -> Checked {
        match command {
            Command::Send { to, message } => {
                if to == at {
                    return Err(format!("{message:?} to itself came out of {at}"));
                }
                self.pool.push(Event::Message { from: at, to, message });
            }
            Command::SendRecord { to, role, buf, token } => {
                let info = *self.held(at, buf)?;
                self.pool.push(Event::Record { from: at, to, role, info, sent: Some(token) });
            }
            Command::Write { volume, kind, extent, payload, token, .. } => {
                self.check_write(at, volume, extent, token)?;
                let (info, buf) = match payload {
                    PayloadAt::Buf(buf) => (*self.held(at, buf)?, Some(buf)),
                    PayloadAt::Journal(position) => {
                        let node = &self.nodes[&at];
                        let found = node.journal.iter().find(|(at, _)| *at == position);
                        match found {
                            Some((_, Recovered::Record { info, .. }))
                                if position >= node.retired =>
                            {
                                (*info, None)
                            }
                            _ => return Err(format!("{position:?} is retired or no record")),
                        }
                    }
                    PayloadAt::None => {
                        let mut random = Random::new(1);
                        let any = update(&mut random, GroupId(0), volume, SetId(0), Seq(0));
                        (UpdateInfo { kind, extent, ..any }, None)
                    }
                };
                if (info.volume, info.kind, info.extent) != (volume, kind, extent) {
                    return Err(format!("a write of {volume} {extent:?} has the data of {info:?}"));
                }
                self.pool.push(Event::Write { at, token, info, buf });
            }
            Command::Flush { volume, token } => self.pool.push(Event::Flush { at, token, volume }),
            Command::Free { buf } => {
                self.held(at, buf)?;
                self.node(at).arena.remove(&buf);
            }
            Command::Journal { entry, token } => {
                let entry = match entry {
                    JournalEntry::Record { buf, role } => {
                        Recovered::Record { role, info: *self.held(at, buf)? }
                    }
                    JournalEntry::Manifest { message } => Recovered::Manifest { message },
                    JournalEntry::Commit { group, set, cut_time_ns, primary_epoch } => {
                        Recovered::Commit { group, set, cut_time_ns, primary_epoch }
                    }
                    JournalEntry::Applied { group, set } => Recovered::Applied { group, set },
                };
                let node = self.node(at);
                let position = JournalPos(node.next_position);
                node.next_position += 1 + u64::from(token.0 % 3 == 0);
                node.journal.push((position, entry));
                node.steps.push_back(JournalStep::Appended(token, position));
            }
            Command::JournalFlush { token } => {
                let node = self.node(at);
                let length = node.journal.len();
                node.steps.push_back(JournalStep::Flushed(token, length));
            }
            Command::JournalRetire { before } => {
                // A machine that has restarted may say again what an earlier life has said.
                let node = self.node(at);
                node.retired = node.retired.max(before);
            }
            Command::CompleteHost { .. }
            | Command::Restore { .. }
            | Command::ReadBack { .. }
            | Command::Fence { .. } => {
                return Err("there is no host here, and nothing is taken over".into());
            }
            Command::Report(report) => {
                use crate::proto::command::Report;
                if let Report::Broken { group, .. } = report {
                    if !self.broken.contains(&group) {
                        return Err(format!("{at}: {report:?}"));
                    }
                    self.told.insert((at, group));
                }
            }
        }
        Ok(())
    }

    fn held(&self, at: ShardId, buf: BufRef) -> Result<&UpdateInfo, String> {
        self.nodes[&at].arena.get(&buf).ok_or_else(|| format!("{buf} is not held at {at}"))
    }
}
