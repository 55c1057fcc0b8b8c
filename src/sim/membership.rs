//! Primary movers that fail, are excluded, and come back: the cluster's store as it decides, and
//! the movers as they learn of it.
//!
//! The store is modelled by its decisions: one record per epoch, in order. Members learn of a record
//! after a delay of their own, each poller by itself; a mover that was excluded although it lives
//! learns of that later still, and goes down then. Where the history goes beyond what the group's copies
//! bear, [`super::observe_losses`] has what must hold then.

use super::cluster::{Cluster, EPOCH, Event, GROUP};
use super::coverage::Act;
use super::faults::Fault;
use super::observer::Verdict;
use super::profile::MS;
use crate::proto::boundary::{BoundaryConfig, BoundaryGroup};
use crate::proto::link::PeerEpoch;
use crate::proto::membership::{Change, SiteRecord};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Epoch, MapVersion, MoverId, Nanos, SetId, ShardId, VolumeId};

/// The primary site's membership.
#[derive(Debug)]
pub(super) struct Site {
    /// One per epoch, from [`EPOCH`] on, and one per change of what is planned in it.
    pub(super) records: Vec<SiteRecord>,
    /// Members that are down or taken for it, and not excluded yet.
    failing: Vec<MoverId>,
    /// Excluded movers that have not come back.
    away: Vec<MoverId>,
    /// The store answers nobody until then.
    pub(super) out_until: Nanos,
    /// Everything was whole when the first of `failing` failed.
    was_whole: bool,
}

impl Site {
    /// The site at the start.
    pub(super) fn new(primaries: u16, owners: Vec<(VolumeId, ShardId)>) -> Self {
        let first = SiteRecord {
            epoch: EPOCH,
            map_version: MapVersion(1),
            members: (0..primaries).map(MoverId).collect(),
            since: vec![EPOCH; usize::from(primaries)],
            coordinator: ShardId::new(0, 0),
            owners,
            moved: Vec::new(),
            spells: SiteRecord::first_spell(EPOCH, primaries.into()),
            lost: Vec::new(),
            plan: None,
        };
        Self {
            records: vec![first],
            failing: Vec::new(),
            away: Vec::new(),
            out_until: Nanos(0),
            was_whole: false,
        }
    }

    /// Whether a member is down, or taken for it, and not excluded.
    pub(super) fn is_failing(&self) -> bool {
        !self.failing.is_empty()
    }

    /// The record of the latest epoch.
    pub(super) fn latest(&self) -> &SiteRecord {
        &self.records[self.records.len() - 1]
    }
}

impl Cluster {
    /// The index of the shard that runs the boundaries.
    pub(super) fn coordinator(&self) -> usize {
        self.shard_index(self.site.latest().coordinator)
    }

    /// The configuration of the boundary engine in the epoch of `record`.
    pub(super) fn engine(&self, record: &SiteRecord) -> BoundaryConfig {
        let members = record.members.iter().flat_map(|mover| self.shards_of(*mover));
        let shards: Vec<ShardId> = members.map(|index| self.shard_id(index)).collect();
        BoundaryConfig {
            me: record.coordinator,
            secondary: Some(ShardId::new(self.profile.primaries, 0)),
            backup: shards.iter().copied().find(|s| s.mover != record.coordinator.mover),
            shards,
            epoch: record.epoch,
            unix_offset_ns: 1_000_000_000_000,
            groups: vec![BoundaryGroup {
                id: GROUP,
                period_ns: self.profile.period_ns,
                first_set: SetId(1),
            }],
            sabotage: self.profile.sabotage,
        }
    }

    /// Whether every member has entered the latest epoch, is up to date, and has its copies.
    pub(super) fn site_is_whole(&self) -> bool {
        let record = self.site.latest();
        record.members.iter().flat_map(|mover| self.shards_of(*mover)).all(|index| {
            self.pollers[index]
                .node
                .as_ref()
                .is_some_and(|node| node.epoch() == record.epoch && node.is_whole())
        })
    }

    /// A primary mover fails, or is taken for failed; if the group can bear another failure.
    pub(super) fn fail(&mut self) -> Verdict {
        let members = self.site.latest().members.clone();
        let up: Vec<MoverId> =
            members.into_iter().filter(|mover| !self.site.failing.contains(mover)).collect();
        if up.len() < 2 {
            return Ok(());
        }
        let mover = up[self.fault_rng.below(up.len() as u64) as usize];
        let mut failing = self.site.failing.clone();
        failing.push(mover);
        // Until the first of them is excluded.
        let whole = self.site.was_whole || failing.len() == 1 && self.site_is_whole();
        let loses = self.site.latest().may_lose(&failing, whole, self.profile.copies);
        if loses && !self.profile.beyond {
            return Ok(());
        }
        (self.site.failing, self.site.was_whole) = (failing, whole);
        self.stats.beyond += u64::from(loses);
        self.stats.fails += 1;
        if self.fault_rng.chance(self.profile.suspect_ppm) {
            self.stats.suspects += 1;
            if self.fault_rng.chance(400_000) {
                self.pause(mover);
            }
        } else {
            self.crash_primary(mover)?;
        }
        let detection = self.fault_rng.delay(3 * self.profile.heartbeat_ns);
        self.queue.after(detection, Event::Fault(Fault::Exclude(mover)));
        Ok(())
    }

    /// All pollers of a mover stand still for so long that it is likely to be excluded meanwhile, and go on
    /// then as if nothing had happened.
    fn pause(&mut self, mover: MoverId) {
        self.stats.long_pauses += 1;
        let ns = self.fault_rng.delay(12 * self.profile.heartbeat_ns);
        let until = self.queue.now().after(ns);
        for shard in self.shards_of(mover) {
            self.pollers[shard].stalled_until = until;
        }
    }

    /// A primary mover is gone, with its memory. What it had under way to bases arrives late.
    pub(super) fn crash_primary(&mut self, mover: MoverId) -> Verdict {
        let shards = self.shards_of(mover);
        let member = self.site.latest().members.contains(&mover);
        if member && !self.site.failing.contains(&mover) {
            // It has come back since.
            return Ok(());
        }
        if shards.clone().all(|shard| self.is_down(shard)) {
            return Ok(());
        }
        for shard in shards {
            if let Some(busy) = self.busy(shard) {
                self.coverage.act(Act::Fail, busy);
            }
            let empty = self.new_arena();
            self.pollers[shard].crash(empty);
            self.pollers[shard].waiting.clear();
            self.observer.primary_down(shard);
            for write in self.observer.abandon(shard) {
                self.stats.abandoned += 1;
                let host = self.host_of[write as usize];
                self.hosts[host].busy -= 1;
                let think = self.host_rng.delay(self.profile.think_ns + MS / 10);
                self.queue.after(think, Event::Host { host });
            }
        }
        Ok(())
    }

    /// The store excludes a mover.
    pub(super) fn exclude(&mut self, mover: MoverId) -> Verdict {
        self.site.failing.retain(|other| *other != mover);
        self.commit(&[mover], &[]);
        self.observer.excluded(mover.0);
        self.observer.member(mover.0, self.shards_of(mover), false);
        let members = self.site.latest().members.len() as u32;
        self.observer.copies_needed(u32::from(self.profile.copies).min(members), false);
        self.site.away.push(mover);
        let down = self.fault_rng.delay(self.profile.down_ns) + MS;
        self.queue.after(down, Event::Fault(Fault::Rejoin(mover)));
        if self.shards_of(mover).any(|shard| !self.is_down(shard)) {
            // It lives, and learns of it at some time.
            let after = self.fault_rng.delay(self.profile.learn_ns * 3 + MS);
            let stands = self.shards_of(mover).map(|shard| self.pollers[shard].stalled_until).max();
            let from = self.queue.now().max(stands.unwrap_or(Nanos(0)));
            self.queue.at(from.after(after), Event::Fault(Fault::Learn(mover)));
        }
        Ok(())
    }

    /// The store lets a mover take part again, with an empty memory.
    pub(super) fn rejoin(&mut self, mover: MoverId) -> Verdict {
        let up = self.shards_of(mover).any(|shard| !self.is_down(shard));
        if up || !self.site.away.contains(&mover) {
            self.queue.after(MS, Event::Fault(Fault::Rejoin(mover)));
            return Ok(());
        }
        self.site.away.retain(|other| *other != mover);
        for barred in &mut self.barred {
            *barred &= !(1 << mover.0);
        }
        self.commit(&[], &[mover]);
        self.observer.member(mover.0, self.shards_of(mover), true);
        self.launch(mover)
    }

    /// One more epoch; its members learn of it by and by.
    fn commit(&mut self, failed: &[MoverId], joined: &[MoverId]) {
        let whole = std::mem::take(&mut self.site.was_whole) || self.site_is_whole();
        let copies = &[(GROUP, self.profile.copies)];
        let change = Change { failed, joined, whole, spare: None, copies };
        let pollers = self.profile.pollers;
        let Some(next) = self.site.latest().next(&change, |_| pollers, |_| 1) else { return };
        let now = self.queue.now();
        self.trace.note(now, b'E', [next.epoch.0.into()], |out| write!(out, "{next:?}"));
        for (volume, owner) in &next.owners {
            // Where a volume is that moves, is seen when it has arrived.
            if next.plan.as_ref().is_none_or(|plan| plan.target(*volume).is_none()) {
                self.owners[volume.0 as usize].0 = self.shard_index(*owner);
            }
        }
        self.observer.epoch_begins(next.epoch, !next.lost.is_empty());
        self.publish(next, joined);
    }

    /// The store has a new record; its members learn of it by and by.
    pub(super) fn publish(&mut self, next: SiteRecord, joined: &[MoverId]) {
        self.site.records.push(next);
        let members = self.site.latest().members.clone();
        for mover in members {
            if joined.contains(&mover) {
                continue;
            }
            let learn = self.fault_rng.delay(self.profile.learn_ns);
            for node in self.shards_of(mover) {
                let after = learn + self.fault_rng.delay(1000);
                let (life, record) = (self.pollers[node].life, self.site.records.len() - 1);
                self.queue.after(after, Event::Enter { node, life, record });
            }
        }
    }

    /// A poller enters an epoch.
    pub(super) fn enter(&mut self, node: usize, life: u32, record: usize) -> Verdict {
        if self.pollers[node].life != life || self.is_down(node) {
            return Ok(());
        }
        if record <= self.pollers[node].record {
            // It has learned of a later one.
            return Ok(());
        }
        self.pollers[node].record = record;
        let record = self.site.records[record].clone();
        let old = self.pollers[node].node.as_ref().map_or(Epoch(0), |node| node.epoch());
        let act = if record.epoch <= old { Act::Plan } else { Act::Epoch };
        if let Some(busy) = self.busy(node) {
            self.coverage.act(act, busy);
        }
        let now = self.queue.now();
        if record.epoch <= old {
            if let Some(machines) = &mut self.pollers[node].node {
                machines.planned(&record);
            }
            return self.settle(node);
        }
        let id = self.pollers[node].id;
        self.trace.note(now, b'e', [node as u64, record.epoch.0.into()], |out| {
            write!(out, "{id} enters {}", record.epoch)
        });
        self.stats.epochs += 1;
        for port in 0..self.pollers[node].ports.len() {
            let peer = self.pollers[node].ports[port].peer;
            let left = record.left_since(self.pollers[peer].id.mover, old);
            let port_ref = &mut self.pollers[node].ports[port];
            port_ref.touched = true;
            if peer >= self.primaries {
                port_ref.link.enter_epoch(record.epoch);
            } else {
                port_ref.link.set_epoch(record.epoch, PeerEpoch::Exactly(record.epoch));
                if left {
                    port_ref.link.close();
                    self.link_events(node, port)?;
                }
            }
        }
        let (engine, here) = (self.engine(&record), self.here(node));
        let mut taken: Vec<VolumeId> = Vec::new();
        let some = self.profile.sabotage.is(Sabotage::EnteredBySome) && node % 2 == 1;
        if let Some(machines) = self.pollers[node].node.as_mut().filter(|_| !some) {
            machines.enter(here, &record, &engine);
            let shard = machines.primary();
            taken
                .extend(shard.iter().flat_map(|shard| shard.not_ready()).map(|(volume, _)| volume));
        }
        for volume in 0..self.owners.len() {
            if self.owners[volume].0 == node && !taken.contains(&VolumeId(volume as u32)) {
                self.observer.owner_entered(volume, &record);
            }
        }
        let record = self.site.latest();
        let entered = record.members.iter().flat_map(|mover| self.shards_of(*mover)).all(|index| {
            self.pollers[index].node.as_ref().is_some_and(|node| node.epoch() == record.epoch)
        });
        if entered {
            let members = record.members.len() as u32;
            self.observer.copies_needed(u32::from(self.profile.copies).min(members), true);
        }
        self.settle(node)
    }
}
