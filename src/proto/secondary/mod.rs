//! The secondary site: receive, mirror, journal and apply sets; decide that they are there.
//!
//! [`Secondary`] is what one poller of a secondary mover runs: a [`SecondaryShard`], and on the
//! coordinator's poller (poller 0 of the site's lowest-numbered mover) a [`SecondaryCoordinator`]
//! too. A set goes through these steps:
//!
//! ```text
//!  shard        record ─► journal + partner ─┐
//!               manifest ────────────────────┴► all there, facts agree ─► journal manifest, flush
//!                                                                              │ Stored
//!  coordinator  all shards stored ─► journal commit, flush ─► Confirmed, Apply to all shards
//!                                                                              │ Apply
//!  shard        writes, overlapping ones in order ─► flush volumes ─► journal applied, flush
//!                                                                              │ Applied
//!  coordinator  all shards applied ─► Applied to the primary ─► Apply of the next set
//! ```
//!
//! # Calling order
//!
//! 1. [`Secondary::new`]; [`Secondary::recover`] for every entry of the journal, oldest first;
//!    [`Secondary::recovered`] once, also when the journal is empty.
//! 2. From then on any `handle_*` in any order. After each, [`Secondary::poll_command`] until
//!    `None`, and carry the commands out in that order.
//! 3. [`Secondary::handle_timeout`] whenever [`Secondary::next_timeout`] is not in the future.
//!
//! [`Secondary::handle_journaled`] comes in the order of the `Journal` commands, and before the
//! [`Secondary::handle_journal_durable`] of a later flush. A flush covers all `Journal` commands
//! before it. After a restart a `JournalRetire` may name a position that an earlier life has named.
//! A record handed to [`Secondary::handle_record`] and accepted belongs to the machine until its
//! `Free`; refused and duplicate ones stay with the caller.
//!
//! # When the journal fills
//!
//! Apply may lag: sets that are committed wait in the journal. Room is made only by applying, and
//! that takes room itself, for a mark. So when one shard's caller says that its journal is scarce
//! ([`Secondary::handle_journal_room`]), the coordinator commits no set any more but, of each group,
//! the one that is applied next. What is not committed the primary keeps, and so the journals grow
//! by at most what the primary's arenas hold, and its hosts wait when those are full. Nothing that
//! was taken in is ever given back, and nothing is refused: a shard that refused records of later
//! sets would have its partners wait for their copies with their memory full, and apply with them.
//!
//! # What it does not do
//!
//! It never sees payload, and it does not check payload checksums: a record that it is handed is
//! stored and verified. It does not choose what a set holds: sets are applied as the primary cut
//! them. It has no membership: movers of the site come and go with a restart of the machine.

mod apply;
pub mod coordinator;
mod recovery;
mod room;
mod sets;
pub mod shard;
mod store;
#[cfg(test)]
mod tests;

pub use coordinator::{CoordinatorConfig, CoordinatorStatus, SecondaryCoordinator};
pub use recovery::Recovered;
pub use shard::{GroupStatus, SecondaryShard, ShardConfig, VolumeConfig};

use super::command::{Command, JournalPos, RecordRole, Report, Token};
use super::message::Message;
use super::sabotage::Sabotage;
use super::types::{BufRef, Epoch, Nanos, NvmeStatus, ShardId};
use crate::wire::update::UpdateInfo;
use alloc::collections::VecDeque;

/// What became of a record that was handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Receipt {
    /// Taken; `Free` gives the buffer back.
    Accepted,
    /// It is here already, or its set is stored; the caller frees the buffer.
    Duplicate,
    /// Counted and dropped; the caller frees the buffer.
    Refused(Refusal),
}

/// Why a record was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The volume is not this shard's, or not the group's.
    UnknownVolume,
    /// Records do not come here in this role.
    Role,
    /// Its range or block size does not fit the volume, or it has no number.
    Range,
    /// Its set or number is farther ahead than a primary shard can be.
    TooFarAhead,
    /// Its number is void (invariant 3).
    Void,
    /// Another set has an update under this number.
    Conflict,
}

/// What was seen and not acted upon, or worth watching. They only grow.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Records accepted as owner.
    pub records: u64,
    /// Records accepted for a partner.
    pub kept_records: u64,
    /// Records that were here already.
    pub duplicate_records: u64,
    /// Records refused, for whatever reason.
    pub refused_records: u64,
    /// Records under void numbers dropped (invariant 3).
    pub void_records: u64,
    /// Messages of another epoch refused (invariant 9).
    pub refused_epoch: u64,
    /// Messages that do not fit the state or the sender.
    pub refused_messages: u64,
    /// Results of commands that are no longer of interest.
    pub stale_results: u64,
    /// Writes to volumes issued, retries included.
    pub writes: u64,
    /// Updates not written, as a later one of the same set covers them.
    pub superseded: u64,
    /// Writes and flushes of volumes that failed.
    pub failed_writes: u64,
    /// Buffers given back early under memory pressure.
    pub evicted: u64,
}

/// One poller's part of the secondary site. Owner: that poller. See the module for the calling
/// order.
#[derive(Clone, Debug)]
pub struct Secondary {
    me: ShardId,
    epoch: Epoch,
    sabotage: Sabotage,
    shard: SecondaryShard,
    coordinator: Option<SecondaryCoordinator>,
    /// Commands of the wrapper itself.
    own: VecDeque<Command>,
    now: Nanos,
    /// What the shard has said it does not need any more.
    floor: JournalPos,
    retired: JournalPos,
    refused_epoch: u64,
}

impl Secondary {
    /// A shard, and the site's coordinator if this is its poller.
    ///
    /// # Panics
    /// When the two configurations disagree about the site; they come from one place.
    #[must_use]
    pub fn new(shard: ShardConfig, coordinator: Option<CoordinatorConfig>) -> Self {
        assert_eq!(
            shard.coordinator == shard.me,
            coordinator.is_some(),
            "the coordinator runs exactly where the shard looks for it"
        );
        Self {
            me: shard.me,
            epoch: shard.epoch,
            sabotage: shard.sabotage,
            shard: SecondaryShard::new(shard),
            coordinator: coordinator.map(SecondaryCoordinator::new),
            own: VecDeque::new(),
            now: Nanos::default(),
            floor: JournalPos::default(),
            retired: JournalPos::default(),
            refused_epoch: 0,
        }
    }

    /// Takes one entry of the journal, at `position`; entries come in the order of positions.
    pub fn recover(&mut self, position: JournalPos, entry: Recovered) {
        if let Recovered::Commit { group, set, cut_time_ns, primary_epoch } = entry {
            if let Some(coordinator) = &mut self.coordinator {
                coordinator.recover_commit(position, group, set, cut_time_ns, primary_epoch);
            }
        } else {
            self.shard.recover(position, entry);
        }
    }

    /// The journal is read; the machine starts.
    pub fn recovered(&mut self, now: Nanos) {
        self.now = now;
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.recovered(now);
        }
        self.shard.recovered(now);
    }

    /// A record has arrived and is stored under `buf`, its checksums verified.
    pub fn handle_record(
        &mut self,
        now: Nanos,
        from: ShardId,
        role: RecordRole,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> Receipt {
        self.now = now;
        self.shard.handle_record(now, from, role, info, buf)
    }

    /// The primary site was heard in this epoch; the caller refuses what it says in earlier ones.
    pub fn heard_primary(&mut self, epoch: Epoch) {
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.heard_primary(epoch);
        }
    }

    /// The latest epoch of the primary site that was heard of, in this life or, as far as sets were
    /// committed in it, before; 0 for none, and where no coordinator runs.
    #[must_use]
    pub fn primary_epoch(&self) -> Epoch {
        self.coordinator.as_ref().map_or(Epoch(0), SecondaryCoordinator::primary_epoch)
    }

    /// A message has arrived, or control has one for the coordinator (`PauseApply`, with `from`
    /// this shard).
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: Message) {
        self.now = now;
        if epoch != self.epoch && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.refused_epoch += 1;
            return;
        }
        if let Message::Stopping { drained } = message {
            self.own.push_back(Command::Report(Report::PeerStopping { peer: from, drained }));
            return;
        }
        self.dispatch(from, message);
    }

    fn dispatch(&mut self, from: ShardId, message: Message) {
        let now = self.now;
        match &mut self.coordinator {
            Some(coordinator) if coordinator.wants(from, &message) => {
                coordinator.handle_message(now, from, message);
            }
            _ => self.shard.handle_message(now, from, message),
        }
    }

    /// The link to `peer` is up with a new incarnation: what was queued to it is lost.
    pub fn handle_peer_up(&mut self, now: Nanos, peer: ShardId) {
        self.now = now;
        self.own.push_back(Command::Report(Report::PeerUp { peer }));
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.handle_peer_up(now, peer);
        }
        self.shard.handle_peer_up(now, peer);
    }

    /// The receiver of a `SendRecord` has stored it.
    pub fn handle_delivered(&mut self, now: Nanos, token: Token) {
        self.now = now;
        self.shard.handle_delivered(now, token);
    }

    /// A `Write` or `Flush` is done.
    pub fn handle_written(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        self.now = now;
        self.shard.handle_written(now, token, status);
    }

    /// A `Journal` command's entry will be at `position`.
    pub fn handle_journaled(&mut self, now: Nanos, token: Token, position: JournalPos) {
        self.now = now;
        if coordinator::owns(token) {
            if let Some(coordinator) = &mut self.coordinator {
                coordinator.handle_journaled(now, token, position);
            }
        } else {
            self.shard.handle_journaled(now, token, position);
        }
    }

    /// A `JournalFlush` is done: all that was appended before it is durable.
    pub fn handle_journal_durable(&mut self, now: Nanos, token: Token) {
        self.now = now;
        if coordinator::owns(token) {
            if let Some(coordinator) = &mut self.coordinator {
                coordinator.handle_journal_durable(now, token);
            }
        } else {
            self.shard.handle_journal_durable(now, token);
        }
    }

    /// How much room the journal has: `Some(before)` when it is scarce, with the position from which
    /// on it would be ample; `None` when it is ample. Marks and commits that lie before `before`
    /// only because nothing newer took their place are written anew. To be called when it changes,
    /// and again when `before` has moved on.
    pub fn handle_journal_room(&mut self, now: Nanos, scarce: Option<JournalPos>) {
        self.now = now;
        self.shard.handle_journal_room(scarce);
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.handle_journal_room(scarce);
        }
    }

    /// The arena runs short: buffers whose records are durable in the journal are given back, some
    /// at once and more after a journal flush. Call again while it is short.
    pub fn handle_pressure(&mut self, now: Nanos) {
        self.now = now;
        self.shard.handle_pressure(now);
    }

    /// Time has come to [`Secondary::next_timeout`].
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.now = now;
        self.shard.handle_timeout(now);
    }

    /// When [`Secondary::handle_timeout`] wants to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        self.shard.next_timeout()
    }

    /// The next effect, in order. Messages between shard and coordinator of one poller do not
    /// come out: they are delivered here.
    pub fn poll_command(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = self.own.pop_front() {
                return Some(command);
            }
            let (command, which) = match self.shard.poll_command() {
                Some(command) => (command, 0),
                None => (self.coordinator.as_mut()?.poll_command()?, 1),
            };
            match command {
                Command::Send { to, message } if to == self.me => self.dispatch(to, message),
                Command::JournalRetire { before } => {
                    if which == 0 {
                        self.floor = before;
                    }
                    let commits = self.coordinator.as_ref().and_then(SecondaryCoordinator::needs);
                    let floor = commits.map_or(self.floor, |commits| commits.min(self.floor));
                    if floor > self.retired {
                        self.retired = floor;
                        return Some(Command::JournalRetire { before: floor });
                    }
                }
                command => return Some(command),
            }
        }
    }

    /// The rule that is broken on purpose.
    pub(super) fn sabotage(&self) -> Sabotage {
        self.sabotage
    }

    /// The shard, for status.
    #[must_use]
    pub fn shard(&self) -> &SecondaryShard {
        &self.shard
    }

    /// The coordinator, for status, where it runs.
    #[must_use]
    pub fn coordinator(&self) -> Option<&SecondaryCoordinator> {
        self.coordinator.as_ref()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.shard.counters();
        counters.refused_epoch += self.refused_epoch;
        if let Some(coordinator) = &self.coordinator {
            counters.refused_messages += coordinator.refused_messages();
        }
        counters
    }
}
