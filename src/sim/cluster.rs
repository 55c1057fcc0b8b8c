//! A simulated cluster and the loop that drives it: takes the next event, hands it to the poller
//! it belongs to, carries out what the machines want done, checks.

use super::cost::Cost;
use super::coverage::Coverage;
use super::disk::{DiskOp, VolumeDisk};
use super::exec_secondary::TargetWrite;
use super::faults::Fault;
use super::hosts::Host;
use super::journal::JournalDevice;
use super::membership::Site;
use super::network::Network;
use super::node::Poller;
use super::observer::{Observer, Verdict, Violation, WriteId, ensure};
use super::prng::Rng;
use super::profile::{Knobs, Profile};
use super::queue::EventQueue;
use super::recall::Recall;
use super::stats::Stats;
use super::times::Times;
use super::trace::Trace;
use crate::journal::{IoId, Located};
use crate::proto::command::{JournalPos, Token};
use crate::proto::types::{Epoch, Extent, ForwardId, GroupId, Nanos};
use std::collections::BTreeMap;

/// The epoch in which a history begins, at both sites.
pub(super) const EPOCH: Epoch = Epoch(7);
/// The group.
pub(super) const GROUP: GroupId = GroupId(3);
/// No history takes more events.
const EVENTS_MAX: u64 = 3_000_000;

/// Something that happens at an instant.
#[derive(Debug)]
pub(super) enum Event {
    /// A packet arrives.
    Packet { from: usize, to: usize, bytes: Vec<u8> },
    /// A message arrives through a ring, if the receiver still lives the same life.
    Ring { from: usize, to: usize, life: u32, bytes: Vec<u8> },
    /// A poller's timer.
    Wake { node: usize },
    /// The end of a poller's turn, if it still lives the same life.
    Turn { node: usize, life: u32 },
    /// A command at a base ends.
    Base { node: usize, life: u32, op: DiskOp, write: WriteId, at: BaseOp, token: Token },
    /// A base is fenced.
    Fenced { node: usize, life: u32, volume: usize, token: Token },
    /// What a base has in a recovered update's place was read for its description (G12).
    Recall(Recall),
    /// A poller learns of an epoch.
    Enter { node: usize, life: u32, record: usize },
    /// A command at a target volume ends.
    Target { node: usize, life: u32, volume: usize, op: DiskOp, done: (Token, bool) },
    /// An operation of a journal ends.
    Journal { node: usize, life: u32, op: DiskOp, id: IoId, flush: bool },
    /// A payload is read back from a journal.
    ReadBack { node: usize, life: u32, position: JournalPos, place: Located, write: TargetWrite },
    /// A host issues its next command.
    Host { host: usize },
    /// A fault, or the end of one.
    Fault(Fault),
    /// Time to see whether the history is over.
    Check,
}

/// What a command at a base is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BaseOp {
    /// An update's write.
    Write,
    /// These blocks of a recovered update are brought there after a take-over.
    Restore(Extent),
}

impl Event {
    /// The poller that takes the event, if it is one's.
    fn node(&self) -> Option<usize> {
        match self {
            Self::Packet { to, .. } | Self::Ring { to, .. } => Some(*to),
            Self::Recall(recall) => Some(recall.node),
            Self::Wake { node }
            | Self::Turn { node, .. }
            | Self::Base { node, .. }
            | Self::Fenced { node, .. }
            | Self::Enter { node, .. }
            | Self::Target { node, .. }
            | Self::Journal { node, .. }
            | Self::ReadBack { node, .. } => Some(*node),
            Self::Host { .. } | Self::Fault(_) | Self::Check => None,
        }
    }
}

/// The cluster.
pub struct Cluster {
    pub(super) profile: Profile,
    pub(super) queue: EventQueue<Event>,
    pub(super) pollers: Vec<Poller>,
    /// Pollers of the primary site; they come first.
    pub(super) primaries: usize,
    pub(super) observer: Observer,
    pub(super) base: Vec<VolumeDisk>,
    pub(super) target: Vec<VolumeDisk>,
    pub(super) journals: Vec<JournalDevice>,
    /// Responsible shard of each volume, and the volume's index in its lane: at every shard with
    /// the same number within its mover.
    pub(super) owners: Vec<(usize, u32)>,
    /// Updates that were forwarded, by who took them.
    pub(super) forwards: BTreeMap<(usize, ForwardId), WriteId>,
    /// The primary site's membership.
    pub(super) site: Site,
    /// By base, bit i: mover i may not write it any more.
    pub(super) barred: Vec<u64>,
    pub(super) hosts: Vec<Host>,
    pub(super) host_of: Vec<usize>,
    pub(super) network: Network,
    pub(super) disk_ops: u64,
    pub(super) net_rng: Rng,
    pub(super) disk_rng: Rng,
    pub(super) host_rng: Rng,
    pub(super) fault_rng: Rng,
    pub(super) trace: Trace,
    pub(super) stats: Stats,
    pub(super) coverage: Coverage,
    /// Kept only where it is asked for.
    pub(super) cost: Option<Cost>,
    pub(super) healed_at: Option<Nanos>,
    pub(super) times: Times,
}

/// How a history ended.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The hash of its trace.
    pub hash: u64,
    /// What it did.
    pub stats: Stats,
    /// What met what.
    pub coverage: Coverage,
    /// The invariant that was broken, if any.
    pub violation: Option<Violation>,
    /// The end of the trace, when it was asked for.
    pub tail: Vec<String>,
    /// What it was made of.
    pub profile: Profile,
}

/// Runs the history of a seed, keeping the last `tail` lines of its trace.
#[must_use]
pub fn run(seed: u64, knobs: &Knobs, tail: usize) -> Outcome {
    let mut rng = Rng::new(seed);
    let profile = Profile::draw(&mut rng.fork(), knobs);
    let mut cluster = Cluster::new(profile, &mut rng, Trace::new(tail));
    let violation = cluster.drive().err();
    cluster.stats.virtual_ns = cluster.queue.now().0;
    cluster.stats.updates = cluster.observer.writes.len() as u64;
    Outcome {
        seed,
        hash: cluster.trace.hash(),
        stats: cluster.stats,
        coverage: cluster.coverage,
        violation,
        tail: cluster.trace.into_lines(),
        profile: cluster.profile,
    }
}

impl Cluster {
    /// Runs to the end of the history.
    pub(super) fn drive(&mut self) -> Verdict {
        self.start()?;
        while let Some(event) = self.queue.pop() {
            self.stats.events += 1;
            ensure!(0, self.stats.events < EVENTS_MAX, "the history does not come to an end");
            if let Some(node) = event.node() {
                let until = self.pollers[node].stalled_until;
                if until > self.queue.now() {
                    self.queue.at(until, event);
                    continue;
                }
            }
            if matches!(event, Event::Check) {
                if self.is_over()? {
                    return Ok(());
                }
                continue;
            }
            self.handle(event)?;
        }
        ensure!(0, false, "nothing is left to happen, and the history is not over");
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Verdict {
        match event {
            Event::Packet { from, to, bytes } => self.packet(from, to, &bytes),
            Event::Ring { from, to, life, bytes } => self.ring(from, to, life, &bytes),
            Event::Wake { node } => {
                let now = self.queue.now();
                if self.pollers[node].wake_at > now {
                    return Ok(());
                }
                self.pollers[node].wake_at = Nanos::NEVER;
                let here = self.here(node);
                self.pollers[node].handle_timeout(now, here);
                self.settle(node)
            }
            Event::Base { node, life, op, write, at, token } => {
                self.base_ends(node, life, op, write, at, token)
            }
            Event::Fenced { node, life, volume, token } => {
                self.base_fenced(node, life, volume, token)
            }
            Event::Turn { node, life } if self.pollers[node].life == life => self.settle(node),
            Event::Turn { .. } => Ok(()),
            Event::Recall(recall) => self.recalled(recall),
            Event::Enter { node, life, record } => self.enter(node, life, record),
            Event::Target { node, life, volume, op, done } => {
                self.target_ends(node, life, volume, op, done)
            }
            Event::Journal { node, life, op, id, flush } => {
                self.journal_ends(node, life, op, id, flush)
            }
            Event::ReadBack { node, life, position, place, write } => {
                self.read_back(node, life, position, place, write)
            }
            Event::Host { host } => self.host_turn(host),
            Event::Fault(fault) => self.fault(fault),
            Event::Check => Ok(()),
        }
    }

    /// A device has answered a poller: what its machines want done is carried out now, or as in a real turn only
    /// after more has come in.
    pub(super) fn turn_ends(&mut self, node: usize) -> Verdict {
        if !self.disk_rng.chance(self.profile.lazy_ppm) {
            return self.settle(node);
        }
        let after = self.disk_rng.delay(self.profile.network.delay_ns);
        let life = self.pollers[node].life;
        self.queue.after(after, Event::Turn { node, life });
        Ok(())
    }

    /// Carries out everything that a poller's machines want done, and schedules its next wake-up.
    pub(super) fn settle(&mut self, node: usize) -> Verdict {
        for port in 0..self.pollers[node].ports.len() {
            if self.pollers[node].ports[port].touched {
                self.link_events(node, port)?;
            }
        }
        loop {
            let here = self.here(node);
            while let Some(command) =
                self.pollers[node].node.as_mut().and_then(|node| node.poll_command(here))
            {
                self.execute(node, command)?;
            }
            let admitted = self.number_arrived(node)? | self.admit_waiting(node)?;
            if !self.journal_turn(node)? && !admitted {
                break;
            }
        }
        self.transmit(node)?;
        self.timer_of(node);
        let at = self.next_timeout(node);
        if at < self.pollers[node].wake_at {
            self.pollers[node].wake_at = at;
            self.queue.at(at, Event::Wake { node });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_history() {
        for seed in 1..20 {
            let [one, two] = [0, 50].map(|tail| run(seed, &Knobs::default(), tail));
            assert_eq!(one.hash, two.hash, "seed {seed}");
            assert_eq!(one.stats.list(), two.stats.list());
            assert_eq!((one.tail.len(), two.tail.len()), (0, 50));
        }
    }

    #[test]
    fn another_seed_gives_another_history() {
        let hashes: std::collections::BTreeSet<u64> =
            (1..20).map(|seed| run(seed, &Knobs::default(), 0).hash).collect();
        assert_eq!(hashes.len(), 19);
    }
}
