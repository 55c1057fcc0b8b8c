//! What a poller tells the control thread of itself.

use super::messages::{
    JournalView, LedgerAnswer, PollerSnapshot, PrimarySnapshot, SecondaryCoordinatorView,
    SecondaryGroupView,
};
use super::poller::Poller;
use crate::proto::node::Machines;
use crate::proto::secondary::Secondary;
use crate::proto::types::VolumeId;

impl Poller {
    /// Everything for status. The interval's histograms are handed over and begin anew.
    pub(super) fn snapshot(&mut self) -> PollerSnapshot {
        let (busy_cycles, idle_cycles, turns) = self.idler.account();
        let (write_latency_ns, hold_ns) = self.stats.take();
        let (waiting, waited) = self.hosts.waiting();
        let (own, mirror) = (self.arena.usage(self.own_log), self.arena.usage(self.mirror_log));
        let mut snapshot = PollerSnapshot {
            shard: self.me,
            at: self.now,
            busy_cycles,
            idle_cycles,
            turns,
            volumes: self.volumes.iter().map(|volume| volume.counters).collect(),
            waiting,
            waited,
            remote: self.remote.counters,
            arena_bytes: (own.held_bytes + mirror.held_bytes, self.arena.capacity_bytes().0),
            primary: None,
            coordinator: None,
            secondary: None,
            secondary_coordinator: None,
            journal: self.journal.as_ref().map(|journal| {
                let (capacity_bytes, used_bytes) = journal.driver.capacity_bytes();
                JournalView { capacity_bytes, used_bytes, failed: journal.driver.failed() }
            }),
            refused_packets: self.net.refused(),
            links: self.net.views(),
            write_latency_ns,
            hold_ns,
        };
        match &self.node.machines {
            Machines::Primary { shard, boundary } => {
                snapshot.primary = Some(PrimarySnapshot {
                    counters: shard.counters(),
                    retained: shard.retained(),
                    groups: shard.groups().collect(),
                    next_seqs: shard.next_seqs().collect(),
                    retained_bytes: shard.retained_bytes().collect(),
                });
                snapshot.coordinator = boundary.as_ref().map(|engine| engine.view());
            }
            Machines::Secondary(machines) => {
                snapshot.secondary = Some(secondary_groups(machines));
                snapshot.secondary_coordinator = secondary_coordinator(machines);
            }
        }
        snapshot
    }

    /// Ledger lines of this shard (G5).
    pub(super) fn ledger(&mut self, volume: Option<VolumeId>, max: usize) -> LedgerAnswer {
        let shard = self.me;
        match self.node.primary() {
            Some(primary) => LedgerAnswer {
                shard,
                own: primary.ledger(volume, max),
                held: primary
                    .mirrored()
                    .filter(|copy| volume.is_none_or(|v| v == copy.info.volume))
                    .take(max)
                    .copied()
                    .collect(),
            },
            None => LedgerAnswer { shard, own: Vec::new(), held: Vec::new() },
        }
    }
}

fn secondary_groups(machines: &Secondary) -> Vec<SecondaryGroupView> {
    let backlog = machines.shard().backlog();
    machines
        .shard()
        .status()
        .map(|group| {
            let (updates, bytes) = backlog
                .iter()
                .find(|(id, ..)| *id == group.group)
                .map_or((0, 0), |(_, updates, bytes)| (*updates, *bytes));
            SecondaryGroupView {
                id: group.group,
                stored: group.stored,
                applied: group.applied,
                backlog_updates: updates,
                backlog_bytes: bytes,
            }
        })
        .collect()
}

fn secondary_coordinator(machines: &Secondary) -> Option<Vec<SecondaryCoordinatorView>> {
    let coordinator = machines.coordinator()?;
    let views = coordinator.status().map(|group| SecondaryCoordinatorView {
        id: group.group,
        committed: group.committed,
        committed_cut_time_ns: group.committed_cut_time_ns,
        applied: group.applied,
        applied_cut_time_ns: group.applied_cut_time_ns,
        paused: group.paused,
        at_boundary: group.at_boundary,
    });
    Some(views.collect())
}
