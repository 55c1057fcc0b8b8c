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
    BufRef, Extent, GroupId, MoverId, Nanos, NvmeStatus, Seq, SetId, ShardId, VolumeId,
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

    fn machine(&self, me: ShardId) -> Secondary {
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
            primary_coordinator: PRIMARY,
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
        self.faults = false;
        for group in self.history.groups.clone() {
            while self.cut.get(&group).is_none_or(|cut| *cut < self.history.last) {
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
    fn step(&mut self) -> Result<bool, String> {
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

    fn node(&mut self, shard: ShardId) -> &mut Node {
        self.nodes.get_mut(&shard).unwrap()
    }

    fn control(&mut self, message: Message) {
        let now = self.now;
        self.node(COORDINATOR).machine.handle_message(now, COORDINATOR, EPOCH, message);
    }

    /// The primary cuts a set: its updates and its manifest go out.
    fn cut_next(&mut self, group: GroupId) {
        let set = self.cut.get(&group).copied().unwrap_or_default().next();
        if set > self.history.last {
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

    fn send_manifest(&mut self, group: GroupId, set: SetId) {
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

    /// Each block of an unflushed write reaches the medium or not, in the order of writing.
    fn lose_cached(&mut self, shard: ShardId, volume: Option<VolumeId>) {
        let mut cached = core::mem::take(&mut self.node(shard).cached);
        let mut kept = Vec::new();
        for info in cached.drain(..) {
            if volume.is_some_and(|volume| volume != info.volume) {
                kept.push(info);
                continue;
            }
            for block in info.extent.lba..info.extent.end() {
                if self.random.chance(50) {
                    let one = UpdateInfo { extent: Extent { lba: block, blocks: 1 }, ..info };
                    apply_to(&mut self.node(shard).medium, &one);
                }
            }
        }
        self.node(shard).cached = kept;
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
                    JournalEntry::Commit { group, set, cut_time_ns } => {
                        Recovered::Commit { group, set, cut_time_ns }
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
            Command::CompleteHost { .. } => return Err("there is no host here".into()),
            Command::Report(report) => {
                use crate::proto::command::Report;
                if let Report::Broken { .. } = report {
                    return Err(format!("{at}: {report:?}"));
                }
            }
        }
        Ok(())
    }

    fn held(&self, at: ShardId, buf: BufRef) -> Result<&UpdateInfo, String> {
        self.nodes[&at].arena.get(&buf).ok_or_else(|| format!("{buf} is not held at {at}"))
    }

    /// The movers lose their memory, what their journals had not flushed but for a prefix, and
    /// some of what their volumes had not flushed; then they start again.
    fn crash(&mut self, movers: &[MoverId]) {
        self.crashes += 1;
        let dead: BTreeSet<ShardId> =
            SHARDS.into_iter().filter(|shard| movers.contains(&shard.mover)).collect();
        // Writes in flight reach the volumes or not.
        for event in core::mem::take(&mut self.pool) {
            match event {
                Event::Write { at, info, .. } if dead.contains(&at) => {
                    if self.random.chance(50) {
                        self.node(at).cached.push(info);
                    }
                }
                Event::Flush { at, .. } | Event::Delivered { at, .. } if dead.contains(&at) => {}
                Event::Message { from, to, .. } | Event::Record { from, to, .. }
                    if dead.contains(&from) || dead.contains(&to) => {}
                // Its delivery was reported to a life that is over, or never will be.
                event => self.pool.push(event),
            }
        }
        for shard in &dead {
            self.lose_cached(*shard, None);
            let now = self.now;
            let mut machine = self.machine(*shard);
            let extra = {
                let node = &self.nodes[shard];
                (node.journal.len() - node.durable) as u64
            };
            let extra = self.random.below(extra + 1) as usize;
            let node = self.node(*shard);
            node.journal.truncate(node.durable + extra);
            node.durable = node.journal.len();
            node.arena.clear();
            node.steps.clear();
            for (position, entry) in &node.journal {
                if *position >= node.retired {
                    machine.recover(*position, entry.clone());
                }
            }
            machine.recovered(now);
            node.machine = machine;
        }
        for shard in &dead {
            for peer in SHARDS.into_iter().chain([PRIMARY]) {
                if peer.mover != shard.mover {
                    let both = !dead.contains(&peer);
                    self.peer_up(*shard, peer);
                    if both {
                        self.peer_up(peer, *shard);
                    }
                }
            }
        }
    }

    /// A link loses what it carries, without anybody dying.
    fn reset_link(&mut self) {
        let a = SHARDS[self.random.below(3) as usize];
        let b =
            if self.random.chance(50) { PRIMARY } else { SHARDS[self.random.below(3) as usize] };
        if a.mover == b.mover {
            return;
        }
        self.pool.retain(|event| match event {
            Event::Message { from, to, .. } | Event::Record { from, to, .. } => {
                (*from, *to) != (a, b) && (*from, *to) != (b, a)
            }
            _ => true,
        });
        self.peer_up(a, b);
        self.peer_up(b, a);
    }

    fn peer_up(&mut self, at: ShardId, peer: ShardId) {
        let now = self.now;
        if at != PRIMARY {
            self.node(at).machine.handle_peer_up(now, peer);
        } else if peer == COORDINATOR {
            for group in self.history.groups.clone() {
                let cut = self.cut.get(&group).copied().unwrap_or_default();
                let confirmed = self.confirmed.get(&group).copied().unwrap_or_default();
                for set in confirmed.0 + 1..=cut.0 {
                    self.send_manifest(group, SetId(set));
                }
            }
        }
    }
}
