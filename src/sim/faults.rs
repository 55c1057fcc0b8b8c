//! Faults and what the operator does; the end of both, and the end of a history.

use super::cluster::{Cluster, EPOCH, Event, GROUP};
use super::observer::{Verdict, Violation, ensure};
use super::profile::{DiskFaults, MS, MoverFaults, Operator};
use crate::proto::message::{BrokenReason, Message};
use crate::proto::types::{Epoch, MapVersion, MoverId, SetId};

/// A fault, an act of the operator, or the end of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// A secondary mover is killed.
    Kill,
    /// A secondary mover loses power.
    Power,
    /// All secondary movers lose power.
    Site,
    /// A mover that was down starts.
    Restart(MoverId),
    /// The operator restarts a mover whose journal failed.
    Replace(MoverId),
    /// Movers are cut off from one another.
    Partition,
    /// A cut ends.
    Join(MoverId, MoverId),
    /// A poller stands still.
    Stall,
    /// A message of an old epoch arrives somewhere.
    Stale,
    /// The open set is closed on demand.
    Close,
    /// The period changes.
    Period,
    /// Apply stops at a set boundary.
    Pause,
    /// Apply goes on.
    Resume,
    /// A primary mover fails, or is taken for failed.
    Fail,
    /// The store answers nobody for a while.
    Outage,
    /// The store excludes a primary mover.
    Exclude(MoverId),
    /// An excluded mover that lived on learns of it.
    Learn(MoverId),
    /// An excluded mover takes part again.
    Rejoin(MoverId),
    /// Moves of volumes are planned.
    Move,
    /// The store has it that the moves up to a map are carried out.
    CarriedOut(Epoch, MapVersion),
    /// All faults end.
    Heal,
}

/// Hosts stop and faults end at this instant at the latest.
const FAULTS_NS_MAX: u64 = 300 * MS;
/// So long after that, everything has come to rest.
const REST_NS_MAX: u64 = 4_000 * MS;

impl Cluster {
    fn mean_of(&self, fault: Fault) -> u64 {
        let MoverFaults {
            kill_ns,
            power_ns,
            site_ns,
            partition_ns,
            stall_ns,
            stale_ns,
            fail_ns,
            outage_ns,
            move_ns,
            move_ppm: _,
        } = self.profile.movers;
        let Operator { close_ns, period_ns, pause_ns } = self.profile.operator;
        match fault {
            Fault::Kill => kill_ns,
            Fault::Power => power_ns,
            Fault::Site => site_ns,
            Fault::Partition => partition_ns,
            Fault::Stall => stall_ns,
            Fault::Stale => stale_ns,
            Fault::Fail => fail_ns,
            Fault::Outage => outage_ns,
            Fault::Move => move_ns,
            Fault::Close => close_ns,
            Fault::Period => period_ns,
            Fault::Pause => pause_ns,
            Fault::Restart(_)
            | Fault::Replace(_)
            | Fault::Join(..)
            | Fault::Resume
            | Fault::Exclude(_)
            | Fault::Learn(_)
            | Fault::Rejoin(_)
            | Fault::CarriedOut(..)
            | Fault::Heal => 0,
        }
    }

    /// Schedules the first of each kind.
    pub(super) fn schedule_faults(&mut self) {
        self.queue.after(FAULTS_NS_MAX, Event::Fault(Fault::Heal));
        for fault in [
            Fault::Kill,
            Fault::Power,
            Fault::Site,
            Fault::Partition,
            Fault::Stall,
            Fault::Stale,
            Fault::Close,
            Fault::Period,
            Fault::Pause,
            Fault::Fail,
            Fault::Outage,
            Fault::Move,
        ] {
            self.schedule(fault);
        }
    }

    fn schedule(&mut self, fault: Fault) {
        let mean = self.mean_of(fault);
        if mean > 0 && self.healed_at.is_none() {
            let after = self.fault_rng.below(2 * mean);
            self.queue.after(after, Event::Fault(fault));
        }
    }

    /// Lets a fault happen.
    pub(super) fn fault(&mut self, fault: Fault) -> Verdict {
        let lasting = matches!(
            fault,
            Fault::Restart(_)
                | Fault::Replace(_)
                | Fault::Join(..)
                | Fault::Resume
                | Fault::Exclude(_)
                | Fault::Learn(_)
                | Fault::Rejoin(_)
                | Fault::CarriedOut(..)
        );
        if self.healed_at.is_some() && !lasting {
            return Ok(());
        }
        let now = self.queue.now();
        let store = matches!(fault, Fault::Exclude(_) | Fault::Rejoin(_) | Fault::CarriedOut(..));
        if store && now < self.site.out_until {
            let after = self.fault_rng.delay(MS);
            self.queue.at(self.site.out_until.after(after), Event::Fault(fault));
            return Ok(());
        }
        let kind = self.mean_of(fault);
        self.trace.note(now, b'X', [kind], |out| write!(out, "fault: {fault:?}"));
        self.schedule(fault);
        match fault {
            Fault::Kill | Fault::Power => {
                let mover = self.any_secondary();
                self.crash(mover, fault == Fault::Power)
            }
            Fault::Site => {
                self.stats.site_losses += 1;
                for mover in
                    self.profile.primaries..self.profile.primaries + self.profile.secondaries
                {
                    self.crash(MoverId(mover), true)?;
                }
                Ok(())
            }
            Fault::Restart(mover) => self.launch(mover),
            Fault::Replace(mover) => {
                let journals = self.pollers[self.shards_of(mover)].iter().map(|p| &p.journal);
                let failed = journals.flatten().any(|io| io.driver.failed());
                if failed { self.crash(mover, false) } else { Ok(()) }
            }
            Fault::Partition => {
                self.partition();
                Ok(())
            }
            Fault::Join(from, to) => {
                self.network.set_cut(from, to, false);
                Ok(())
            }
            Fault::Stall => {
                self.stats.stalls += 1;
                let node = self.fault_rng.below(self.pollers.len() as u64) as usize;
                let ns = self.fault_rng.delay(self.profile.down_ns);
                self.pollers[node].stalled_until = now.after(ns);
                Ok(())
            }
            Fault::Stale => self.stale_message(),
            Fault::Close => {
                self.stats.closes += 1;
                self.with_boundary(|boundary, now| {
                    let _ = boundary.close_now(now, GROUP);
                })
            }
            Fault::Period => {
                self.stats.period_changes += 1;
                let period = self.fault_rng.pick(&[MS / 4, MS, 10 * MS]);
                self.with_boundary(|boundary, now| {
                    let _ = boundary.set_period(now, GROUP, period);
                })
            }
            Fault::Pause => {
                self.stats.pauses += 1;
                let after = self.fault_rng.delay(self.profile.operator.pause_ns);
                self.queue.after(after, Event::Fault(Fault::Resume));
                self.pause_apply(true)
            }
            Fault::Resume => self.pause_apply(false),
            Fault::Fail => self.fail(),
            Fault::Outage => {
                self.stats.outages += 1;
                let ns = self.fault_rng.delay(3 * self.profile.down_ns);
                self.site.out_until = self.site.out_until.max(now.after(ns));
                Ok(())
            }
            Fault::Exclude(mover) => self.exclude(mover),
            Fault::Learn(mover) => self.crash_primary(mover),
            Fault::Rejoin(mover) => self.rejoin(mover),
            Fault::Move => self.plan_moves(),
            Fault::CarriedOut(epoch, version) => self.carried_out(epoch, version),
            Fault::Heal => self.heal(),
        }
    }

    fn any_secondary(&mut self) -> MoverId {
        let which = self.fault_rng.below(self.profile.secondaries.into());
        MoverId(self.profile.primaries + which as u16)
    }

    /// A secondary mover goes down; its disks keep what their rules say.
    fn crash(&mut self, mover: MoverId, power: bool) -> Verdict {
        let shards = self.shards_of(mover);
        if shards.clone().any(|shard| self.is_down(shard)) {
            return Ok(());
        }
        *(if power { &mut self.stats.power_losses } else { &mut self.stats.kills }) += 1;
        for shard in shards {
            let empty = self.new_arena();
            self.pollers[shard].crash(empty);
            let lost = self.journals[shard].user_died(power, &mut self.disk_rng)?;
            self.stats.journal_cuts += u64::from(lost > 0);
            self.note_commits(shard);
            self.observer.crashed(shard, self.journals[shard].applied_mark());
            for volume in 0..self.target.len() {
                if self.observer.volumes[volume].target != shard {
                    continue;
                }
                if power {
                    self.stats.blocks_lost += self.target[volume].power_lost(&mut self.disk_rng);
                } else {
                    self.target[volume].user_died(&mut self.disk_rng);
                }
                self.observer.after_crash(volume, self.target[volume].current())?;
            }
        }
        let down = self.fault_rng.delay(self.profile.down_ns);
        self.queue.after(down, Event::Fault(Fault::Restart(mover)));
        Ok(())
    }

    /// Cuts one direction, one pair, one mover from all, or the sites from one another.
    fn partition(&mut self) {
        let all = self.profile.primaries + self.profile.secondaries;
        let one = self.fault_rng.below(all.into()) as u16;
        let other = self.fault_rng.below(all.into()) as u16;
        let shape = self.fault_rng.below(4);
        let ns = self.fault_rng.delay(self.profile.down_ns);
        for from in 0..all {
            for to in 0..all {
                let sites = (from < self.profile.primaries) != (to < self.profile.primaries);
                let cut = match shape {
                    0 => (from, to) == (one, other),
                    1 => (from, to) == (one, other) || (to, from) == (one, other),
                    2 => from == one || to == one,
                    _ => sites,
                };
                if cut && from != to {
                    let (from, to) = (MoverId(from), MoverId(to));
                    self.stats.partitions += 1;
                    self.network.set_cut(from, to, true);
                    self.queue.after(ns, Event::Fault(Fault::Join(from, to)));
                }
            }
        }
    }

    /// Hands some machine a message that would do harm if its epoch were not looked at.
    fn stale_message(&mut self) -> Verdict {
        self.stats.stale_messages += 1;
        let rng = &mut self.fault_rng;
        let to = rng.below(self.pollers.len() as u64) as usize;
        let from = rng.below(self.pollers.len() as u64) as usize;
        let newest = self.observer.newest_open();
        let set = SetId(rng.between(1, newest.0 + 1));
        let group = GROUP;
        let message = match rng.below(11) {
            0 => Message::Prepare { group, set, map_version: MapVersion(1) },
            1 => Message::Prepared { group, set },
            2 => Message::Release { group, set },
            3 => Message::Confirmed { group, set },
            4 => Message::Lead,
            5 => Message::CloseNow { group, set, needed: false },
            6 => Message::Stored { group, set, not_before: SetId(0) },
            7 => Message::Apply { group, set },
            8 => Message::Applied { group, set },
            9 => Message::Resume { group, stored: set, applied: set, not_before: SetId(0) },
            _ => Message::Broken { group, reason: BrokenReason::MoverRestarted },
        };
        let epoch = Epoch(rng.pick(&[EPOCH.0 - 1, EPOCH.0 - 2, 0]));
        let (now, source) = (self.queue.now(), self.pollers[from].id);
        self.trace.note(now, b'O', [from as u64, to as u64], |out| {
            write!(out, "of {epoch}, {source} to shard {to}: {message:?}")
        });
        let here = self.here(to);
        if let Some(machines) = &mut self.pollers[to].node {
            machines.handle_message(here, source, epoch, message);
        }
        self.settle(to)
    }

    fn with_boundary(
        &mut self,
        act: impl FnOnce(&mut crate::proto::boundary::Boundary, crate::proto::types::Nanos),
    ) -> Verdict {
        let at = self.coordinator();
        let here = self.here(at);
        if let Some(boundary) = self.pollers[at].node.as_mut().and_then(|node| node.boundary()) {
            act(boundary, here);
            return self.settle(at);
        }
        Ok(())
    }

    fn pause_apply(&mut self, paused: bool) -> Verdict {
        let (now, node) = (self.queue.now(), self.primaries);
        let id = self.pollers[node].id;
        let message = Message::PauseApply { group: GROUP, paused };
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_message(now, id, EPOCH, message);
        }
        self.settle(node)
    }

    /// All faults end; hosts issue nothing new.
    fn heal(&mut self) -> Verdict {
        if self.healed_at.is_some() {
            return Ok(());
        }
        let now = self.queue.now();
        self.trace.note(now, b'H', [], |out| write!(out, "all faults end"));
        self.healed_at = Some(now);
        self.network.heal();
        self.profile.updates = self.observer.writes.len() as u32;
        self.profile.disks = DiskFaults::default();
        self.profile.movers = MoverFaults::default();
        self.profile.operator = Operator::default();
        self.pause_apply(false)
    }

    /// Whether everything has come to rest after the faults ended; checks it then, and when it
    /// takes too long.
    pub(super) fn is_over(&mut self) -> Result<bool, Violation> {
        let now = self.queue.now();
        if self.hosts_are_done() && self.healed_at.is_none() && self.fault_rng.chance(300_000) {
            self.heal()?;
        }
        let late = self.healed_at.is_some_and(|at| now.since(at) > REST_NS_MAX);
        let rested = self.healed_at.is_some() && self.at_rest().is_ok();
        if !rested && !late {
            self.queue.after(MS, Event::Check);
            return Ok(false);
        }
        if !rested {
            self.describe();
        }
        self.at_rest()?;
        Ok(true)
    }

    /// Notes where everything stands, for a history that does not come to rest.
    fn describe(&mut self) {
        let now = self.queue.now();
        for index in 0..self.pollers.len() {
            let node = &mut self.pollers[index];
            let journal =
                node.journal.as_ref().map_or_else(String::new, |io| io.driver.to_string());
            let sets: Vec<_> = match node.node.as_mut().and_then(|node| node.secondary()) {
                Some(machines) => machines.shard().status().collect(),
                None => Vec::new(),
            };
            let mut primary = String::new();
            if let Some(machines) = &mut node.node {
                primary = format!("{}; ", machines.epoch());
                if let Some(shard) = machines.primary() {
                    let moving: Vec<_> = shard.moving().collect();
                    let not_ready: Vec<_> = shard.not_ready().collect();
                    let unheard: Vec<_> = shard.unheard().collect();
                    let awaited: Vec<_> = shard.awaited().collect();
                    let groups: Vec<_> = shard.groups().collect();
                    let counters = shard.counters();
                    let under_way: Vec<_> = shard.under_way().collect();
                    primary += &format!(
                        "moving {moving:?}, not ready {not_ready:?}, under way {under_way:?}, unheard {unheard:?}, awaited {awaited:?}, {groups:?}, {counters:?}; "
                    );
                }
                if let Some(engine) = machines.boundary() {
                    primary += &format!("{:?}; ", engine.view());
                }
            }
            let (id, live, waiting) = (node.id, node.arena.live(), node.waiting.len());
            let unsent: usize = node.ports.iter().map(|port| port.unsent.len()).sum();
            let retained = node.retained();
            self.trace.note(now, b'W', [index as u64], |out| {
                write!(
                    out,
                    "{id}: {primary}{live} records in memory, {retained} retained, {waiting} updates wait, \
                     {unsent} unsent; journal: {journal}; {sets:?}"
                )
            });
        }
    }

    /// Every mover of the primary site knows that the group has lost updates, and keeps nothing for sets.
    fn says_what_it_lost(&self) -> Verdict {
        for index in 0..self.primaries {
            let poller = &self.pollers[index];
            let Some(node) = &poller.node else {
                ensure!(0, false, "{} is down", poller.id);
                continue;
            };
            let broken = node.broken_groups().count();
            ensure!(10, broken == 1, "{} does not say that updates are lost", poller.id);
            let (live, retained) = (poller.arena.live(), poller.retained());
            ensure!(0, live == 0, "{} still holds {live} records", poller.id);
            ensure!(0, retained == 0, "{} retains {retained} updates", poller.id);
        }
        Ok(())
    }

    fn at_rest(&self) -> Verdict {
        for (id, write) in self.observer.writes.iter().enumerate() {
            ensure!(0, write.completed, "write {id} was never completed: {write:?}");
        }
        let base = |volume: usize| self.base[volume].current();
        let target = |volume: usize| self.target[volume].current();
        if self.observer.lost.is_some() {
            self.observer.finished_with_losses(base, target)?;
            return self.says_what_it_lost();
        }
        self.observer.finished(base, target)?;
        for (node, journal) in self.pollers.iter().zip(&self.journals) {
            ensure!(0, node.node.is_some(), "{} is down", node.id);
            let (live, records) = (node.arena.live(), journal.records());
            ensure!(0, live == 0, "{} still holds {live} records", node.id);
            ensure!(0, records == 0, "{} keeps {records} records in its journal", node.id);
            ensure!(0, node.retained() == 0, "{} retains {} updates", node.id, node.retained());
        }
        Ok(())
    }
}
