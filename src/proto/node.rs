//! One poller's machines behind one set of inputs and outputs.
//!
//! Pollers and the simulator drive a [`Node`]; it hands each message to the machine that it is for,
//! and brings back at once what a machine sends to a machine of the same poller. It decides
//! nothing.

use super::boundary::{Boundary, BoundaryConfig};
use super::command::{Command, JournalPos, RecordRole, Token};
use super::membership::SiteRecord;
use super::message::{BrokenReason, Message};
use super::primary::{PrimaryShard, ReadBack, RecordVerdict};
use super::sabotage::Sabotage;
use super::secondary::{Receipt, Refusal, Secondary};
use super::time::Line;
use super::timer::Timer;
use super::types::{BufRef, Epoch, GroupId, MoverId, Nanos, NvmeStatus, ShardId};
use crate::wire::update::UpdateInfo;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// The machines of a poller.
#[derive(Debug)]
pub enum Machines {
    /// At the primary site: a shard, and the boundary engine on the coordinator's poller 0.
    Primary {
        /// The shard.
        shard: PrimaryShard,
        /// The engine.
        boundary: Option<Boundary>,
    },
    /// At the secondary site: a shard, and the coordinator on its poller 0. It has its own
    /// dispatch.
    Secondary(Secondary),
}

/// A poller's part of the protocol. Owned by the poller.
#[derive(Debug)]
pub struct Node {
    me: ShardId,
    epoch: Epoch,
    /// Movers of the other site: tells the two senders of the same message apart.
    other_site: Vec<MoverId>,
    /// The latest epoch of the other site that was heard of; what is older is refused.
    other_epoch: Epoch,
    /// Messages of the other site refused because of their epoch.
    stale_other: u64,
    /// The machines.
    pub machines: Machines,
    /// What machines of this poller say to one another.
    loopback: VecDeque<Message>,
    /// What pollers of the same mover said that have entered an epoch before this one: through
    /// rings, which do not refuse anything.
    early: Vec<(ShardId, Epoch, Message)>,
    /// The mover's part in the common timer, at its poller 0 where a group is stamped by it (G8).
    timer: Option<Timer>,
}

impl Node {
    /// A node with its machines at launch; secondary ones have recovered from their journal. The
    /// loop-back link is up at once.
    #[must_use]
    pub fn new(
        me: ShardId,
        epoch: Epoch,
        other_site: Vec<MoverId>,
        machines: Machines,
        now: Nanos,
    ) -> Self {
        let other_epoch = match &machines {
            Machines::Primary { .. } => Epoch(0),
            Machines::Secondary(machines) => machines.primary_epoch(),
        };
        let mut node = Self {
            me,
            epoch,
            other_site,
            other_epoch,
            stale_other: 0,
            machines,
            loopback: VecDeque::with_capacity(16),
            early: Vec::new(),
            timer: None,
        };
        node.handle_peer_up(now, me);
        node
    }

    /// Gives the node the mover's part in the common timer. Before anything else is done with it.
    pub fn keep_time(&mut self, timer: Timer) {
        self.timer = Some(timer);
    }

    /// The mover's part in the common timer, where it is.
    #[must_use]
    pub fn timer(&self) -> Option<&Timer> {
        self.timer.as_ref()
    }

    /// The line of the common timer, if it is another one than at the last call. Whoever stamps has to have
    /// it before commands are carried out.
    #[inline]
    pub fn take_line(&mut self) -> Option<Line> {
        self.timer.as_mut()?.take_line()
    }

    /// Refuses what the other site says in epochs before this one.
    pub fn expect_other_site(&mut self, epoch: Epoch) {
        self.other_epoch = self.other_epoch.max(epoch);
    }

    /// Messages of the other site refused because of their epoch.
    #[must_use]
    pub fn refused_of_other_site(&self) -> u64 {
        self.stale_other
    }

    fn sabotage(&self) -> Sabotage {
        match &self.machines {
            Machines::Primary { shard, .. } => shard.sabotage,
            Machines::Secondary(machines) => machines.sabotage(),
        }
    }

    /// The shard that the node is.
    #[must_use]
    pub fn me(&self) -> ShardId {
        self.me
    }

    /// Whether `shard` is a shard of the other site.
    #[must_use]
    pub fn is_of_other_site(&self, shard: ShardId) -> bool {
        self.other_site.contains(&shard.mover)
    }

    /// The primary shard, at a primary mover.
    #[inline]
    pub fn primary(&mut self) -> Option<&mut PrimaryShard> {
        match &mut self.machines {
            Machines::Primary { shard, .. } => Some(shard),
            Machines::Secondary(_) => None,
        }
    }

    /// The secondary machines, at a secondary mover.
    #[inline]
    pub fn secondary(&mut self) -> Option<&mut Secondary> {
        match &mut self.machines {
            Machines::Secondary(machines) => Some(machines),
            Machines::Primary { .. } => None,
        }
    }

    /// The boundary engine, where it runs.
    pub fn boundary(&mut self) -> Option<&mut Boundary> {
        match &mut self.machines {
            Machines::Primary { boundary, .. } => boundary.as_mut(),
            Machines::Secondary(_) => None,
        }
    }

    /// A control message from `from`, sent in `epoch`.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: Message) {
        let other_site = self.other_site.contains(&from.mover);
        if epoch > self.epoch && from.mover == self.me.mover {
            self.early.push((from, epoch, message));
            return;
        }
        let mut epoch = epoch;
        if other_site && !self.sabotage().is(Sabotage::IgnoreEpoch) {
            // Each site counts its own epochs. What the latest one has done must not be undone by
            // those who were left behind.
            if epoch < self.other_epoch {
                self.stale_other += 1;
                return;
            }
            self.other_epoch = epoch;
            if let Machines::Secondary(machines) = &mut self.machines {
                machines.heard_primary(epoch);
            }
            epoch = self.epoch;
        }
        match &mut self.machines {
            Machines::Primary { .. }
                if matches!(message, Message::TimeAsk { .. } | Message::TimeAnswer { .. }) =>
            {
                if let Some(timer) = &mut self.timer {
                    timer.handle_message(now, from, epoch, &message);
                }
            }
            Machines::Primary { shard, boundary } => {
                if let (Some(engine), Message::Broken { group, .. }) = (&mut *boundary, &message) {
                    // A shard tells the engine, and the engine tells all shards: where both are on this
                    // poller, each takes what it does not know yet, and the shard only what the engine
                    // goes by: before, sets can still be formed elsewhere.
                    let group = *group;
                    engine.handle_message(now, from, epoch, message.clone());
                    if engine.is_broken(group) {
                        shard.handle_message(now, from, epoch, message);
                    }
                    return;
                }
                let for_engine = match &message {
                    Message::Prepared { .. }
                    | Message::Closed { .. }
                    | Message::CloseNow { .. }
                    | Message::Applied { .. } => true,
                    Message::Confirmed { .. } => other_site,
                    Message::Greet { .. } | Message::Planned { .. } | Message::Settled { .. } => {
                        true
                    }
                    _ => false,
                };
                match boundary {
                    Some(engine) if for_engine => engine.handle_message(now, from, epoch, message),
                    _ => shard.handle_message(now, from, epoch, message),
                }
            }
            Machines::Secondary(machines) => machines.handle_message(now, from, epoch, message),
        }
    }

    /// Enters the epoch of `record` at a primary mover; `engine` is the configuration of the boundary
    /// engine, which runs here if the record says so. See [`PrimaryShard::enter`].
    pub fn enter(&mut self, now: Nanos, record: &SiteRecord, engine: &BoundaryConfig) {
        let Machines::Primary { shard, boundary } = &mut self.machines else { return };
        if record.epoch <= self.epoch {
            return;
        }
        self.epoch = record.epoch;
        // What machines of this poller said to one another is of the epoch that is over.
        self.loopback.clear();
        *boundary = (record.coordinator == self.me).then(|| Boundary::new(engine));
        if let Some(engine) = boundary {
            engine.lead();
            engine.plan(record.plan.as_ref().map(|plan| plan.version));
        }
        if let Some(timer) = &mut self.timer {
            timer.enter(record);
        }
        shard.enter(now, record);
        for (from, epoch, message) in core::mem::take(&mut self.early) {
            self.handle_message(now, from, epoch, message);
        }
    }

    /// Takes note of the moves in the record of the present epoch, see [`PrimaryShard::planned`].
    pub fn planned(&mut self, record: &SiteRecord) {
        let Machines::Primary { shard, boundary } = &mut self.machines else { return };
        if record.epoch != self.epoch {
            return;
        }
        if let Some(engine) = boundary {
            engine.plan(record.plan.as_ref().map(|plan| plan.version));
        }
        shard.planned(record);
    }

    /// Whether the primary shard here is whole, see [`PrimaryShard::is_whole`], and can go on with the common
    /// timer.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        match &self.machines {
            Machines::Primary { shard, .. } => {
                shard.is_whole() && self.timer.as_ref().is_none_or(Timer::is_settled)
            }
            Machines::Secondary(_) => true,
        }
    }

    /// The epoch that the node is in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The groups that form no sets, as the primary shard knows; none at a secondary mover.
    pub fn broken_groups(&self) -> impl Iterator<Item = (GroupId, BrokenReason)> {
        let shard = match &self.machines {
            Machines::Primary { shard, .. } => Some(shard),
            Machines::Secondary(_) => None,
        };
        let groups = shard.into_iter().flat_map(PrimaryShard::groups);
        groups.filter_map(|view| Some((view.id, view.broken?)))
    }

    /// The link to `peer` is up with a new memory at the other end.
    pub fn handle_peer_up(&mut self, now: Nanos, peer: ShardId) {
        if let Some(timer) = &mut self.timer {
            timer.handle_peer_up(peer);
        }
        match &mut self.machines {
            Machines::Primary { shard, boundary } => {
                shard.handle_peer_up(peer);
                if let Some(engine) = boundary {
                    engine.handle_peer_up(peer);
                }
            }
            Machines::Secondary(machines) => machines.handle_peer_up(now, peer),
        }
    }

    /// A record from a peer, stored and verified by the caller.
    #[inline]
    pub fn handle_record(
        &mut self,
        now: Nanos,
        from: ShardId,
        role: RecordRole,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> RecordVerdict {
        match (&mut self.machines, role) {
            (Machines::Primary { shard, .. }, _) => shard.handle_record(from, role, info, buf),
            (Machines::Secondary(machines), _) => {
                match machines.handle_record(now, from, role, info, buf) {
                    Receipt::Accepted => RecordVerdict::Kept,
                    Receipt::Refused(Refusal::TooFarAhead) => RecordVerdict::Full,
                    Receipt::Duplicate | Receipt::Refused(_) => RecordVerdict::NotNeeded,
                }
            }
        }
    }

    /// The receiver of a record has stored it.
    #[inline]
    pub fn handle_delivered(&mut self, now: Nanos, token: Token) {
        match &mut self.machines {
            Machines::Primary { shard, .. } => shard.handle_delivered(token),
            Machines::Secondary(machines) => machines.handle_delivered(now, token),
        }
    }

    /// A volume has completed a write or a flush.
    #[inline]
    pub fn handle_written(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        match &mut self.machines {
            Machines::Primary { shard, .. } => shard.handle_written(now, token, status),
            Machines::Secondary(machines) => machines.handle_written(now, token, status),
        }
    }

    /// What [`Command::ReadBack`] asked for: see [`PrimaryShard::handle_read_back`]. Primary movers only.
    pub fn handle_read_back(&mut self, token: Token, buf: BufRef, payload_crc: u32) -> ReadBack {
        match &mut self.machines {
            Machines::Primary { shard, .. } => shard.handle_read_back(token, buf, payload_crc),
            Machines::Secondary(_) => ReadBack::NotNeeded,
        }
    }

    /// A base would not read what [`Command::ReadBack`] asked for. Primary movers only.
    pub fn handle_read_failed(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        if let Machines::Primary { shard, .. } = &mut self.machines {
            shard.handle_read_failed(now, token, status);
        }
    }

    /// The journal has given an entry its place. Secondary movers only.
    pub fn handle_journaled(&mut self, now: Nanos, token: Token, position: JournalPos) {
        if let Machines::Secondary(machines) = &mut self.machines {
            machines.handle_journaled(now, token, position);
        }
    }

    /// The journal is durable up to the flush that `token` names. Secondary movers only.
    pub fn handle_journal_durable(&mut self, now: Nanos, token: Token) {
        if let Machines::Secondary(machines) = &mut self.machines {
            machines.handle_journal_durable(now, token);
        }
    }

    /// How much room the journal has; see [`Secondary::handle_journal_room`]. Secondary movers only.
    pub fn handle_journal_room(&mut self, now: Nanos, scarce: Option<JournalPos>) {
        if let Machines::Secondary(machines) = &mut self.machines {
            machines.handle_journal_room(now, scarce);
        }
    }

    /// Memory runs short.
    pub fn handle_pressure(&mut self, now: Nanos) {
        match &mut self.machines {
            Machines::Primary { shard, .. } => shard.handle_pressure(),
            Machines::Secondary(machines) => machines.handle_pressure(now),
        }
    }

    /// Whether a boundary is under way in which this poller holds acknowledgements or is waited
    /// for: a turn should be short.
    #[inline]
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        match &self.machines {
            Machines::Primary { shard, boundary } => {
                shard.is_holding() || boundary.as_ref().is_some_and(Boundary::is_preparing)
            }
            Machines::Secondary(_) => false,
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Nanos) {
        if let Some(timer) = &mut self.timer {
            timer.handle_timeout(now);
        }
        match &mut self.machines {
            Machines::Primary { shard, boundary } => {
                shard.handle_timeout(now);
                if let Some(engine) = boundary {
                    engine.handle_timeout(now);
                }
            }
            Machines::Secondary(machines) => machines.handle_timeout(now),
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        let timer = self.timer.as_ref().map_or(Nanos::NEVER, Timer::next_timeout);
        let machines = match &self.machines {
            Machines::Primary { shard, boundary } => {
                let engine = boundary.as_ref().map_or(Nanos::NEVER, Boundary::next_timeout);
                engine.min(shard.next_timeout())
            }
            Machines::Secondary(machines) => machines.next_timeout(),
        };
        machines.min(timer)
    }

    /// The next thing to do. What a machine says to one of the same poller is delivered here and
    /// never comes out.
    #[inline]
    pub fn poll_command(&mut self, now: Nanos) -> Option<Command> {
        loop {
            let command = match &mut self.machines {
                // A boundary does not wait for the writes that the shard wants done.
                Machines::Primary { shard, boundary } => {
                    let first = boundary.as_mut().and_then(Boundary::poll_command);
                    let timer = || self.timer.as_mut().and_then(Timer::poll_command);
                    first.or_else(timer).or_else(|| shard.poll_command())
                }
                Machines::Secondary(machines) => return machines.poll_command(),
            };
            match command {
                Some(Command::Send { to, message }) if to == self.me => {
                    self.loopback.push_back(message);
                }
                Some(command) => return Some(command),
                None => {
                    let message = self.loopback.pop_front()?;
                    self.handle_message(now, self.me, self.epoch, message);
                }
            }
        }
    }
}
