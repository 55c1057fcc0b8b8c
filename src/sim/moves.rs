//! Planned moves of volumes between living primary movers (F3, F6): whoever runs the site plans
//! some now and then, the store has them, and says so when they are carried out.

use super::cluster::{Cluster, Event};
use super::faults::Fault;
use super::observer::{Observer, Verdict, ensure};
use crate::proto::types::{Epoch, MapVersion, Seq, ShardId, VolumeId};

impl Cluster {
    /// Somebody plans moves, if none are under way and no mover has failed.
    pub(super) fn plan_moves(&mut self) -> Verdict {
        let record = self.site.latest().clone();
        if record.plan.is_some()
            || self.queue.now() < self.site.out_until
            || !self.site_is_whole()
            || self.site.is_failing()
        {
            return Ok(());
        }
        let mut moves = Vec::new();
        for (volume, owner) in &record.owners {
            if self.fault_rng.chance(self.profile.movers.move_ppm) {
                let to = record.members[self.fault_rng.below(record.members.len() as u64) as usize];
                moves.push((*volume, ShardId { mover: to, poller: owner.poller }));
            }
        }
        let Some(next) = record.planned(&moves) else { return Ok(()) };
        let now = self.queue.now();
        self.trace
            .note(now, b'M', [moves.len() as u64], |out| write!(out, "planned: {:?}", next.plan));
        self.stats.plans += 1;
        self.publish(next, &[]);
        Ok(())
    }

    /// A coordinator says that all shards act by a map.
    pub(super) fn map_in_force(&mut self, node: usize, version: MapVersion) -> Verdict {
        let latest = self.site.latest().clone();
        let planned = latest.plan.as_ref().is_some_and(|plan| plan.version == version);
        let epoch = self.pollers[node].node.as_ref().map(|node| node.epoch());
        if planned && epoch == Some(latest.epoch) {
            let after = self.fault_rng.delay(self.profile.learn_ns);
            self.queue.after(after, Event::Fault(Fault::CarriedOut(latest.epoch, version)));
        }
        Ok(())
    }

    /// The store has it that moves are carried out, unless it has a later epoch by now: then its
    /// coordinator says so again.
    pub(super) fn carried_out(&mut self, epoch: Epoch, version: MapVersion) -> Verdict {
        let latest = self.site.latest();
        if latest.epoch == epoch
            && latest.plan.as_ref().is_some_and(|plan| plan.version == version)
            && let Some(next) = latest.carried_out()
        {
            self.publish(next, &[]);
        }
        Ok(())
    }

    /// A volume has arrived at a shard.
    pub(super) fn handed_over(&mut self, node: usize, volume: VolumeId, next: Seq) -> Verdict {
        let (mover, index) = (self.pollers[node].id.mover, volume.0 as usize);
        let epoch = self.pollers[node].node.as_ref().map_or(Epoch(0), |node| node.epoch());
        if self.observer.taken_in[index] > epoch {
            // It was excluded and does not know it: what it numbers is heard by nobody.
            return Ok(());
        }
        self.stats.hand_overs += 1;
        if self.site.latest().members.contains(&mover) {
            self.owners[index].0 = node;
        }
        self.observer.handed_over(index, mover.0, next)
    }
}

impl Observer {
    /// A volume was handed over to a mover, which goes on with `next`.
    ///
    /// # Errors
    /// Invariants 3 and 4: the numbers do not go on, or something is under way to the base.
    pub(super) fn handed_over(&mut self, index: usize, mover: u16, next: Seq) -> Verdict {
        if let Some(taker) = &mut self.taken_by[index] {
            *taker = mover;
        }
        if self.lost.is_some() {
            return Ok(());
        }
        let volume = &self.volumes[index];
        let last = volume.by_seq.len() as u64;
        ensure!(3, next.0 == last + 1, "v{index} goes on with {next}, the last number was {last}");
        for id in &volume.by_seq {
            let write = &self.writes[*id as usize];
            ensure!(
                4,
                write.base.is_certain() || write.base.is_void(),
                "v{index} is handed over while {} is not on the base: {write:?}",
                write.seq
            );
        }
        Ok(())
    }
}
