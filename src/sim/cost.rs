//! What a boundary costs the coordinator, by the number of movers and volumes (F1, G10): a calm history
//! of the real machines, with a clock beside it.
//!
//! Virtual time has no cost of computing, so the hold that it shows is that of the messages' way alone.
//! The time that the coordinator's poller spends is measured in real time, around the
//! machines' own code and nothing else.

use super::cluster::Cluster;
use super::network::NetworkFaults;
use super::observer::{Violation, ensure};
use super::prng::Rng;
use super::profile::{DiskFaults, Knobs, MS, MoverFaults, Operator, Profile, US};
use super::trace::Trace;
use crate::config::Timestamps;
use crate::proto::command::Report;
use std::time::{Duration, Instant};

/// One way of a message.
const ONE_WAY_NS: u64 = 5 * US;

/// What boundaries cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    /// Boundaries that were carried out.
    pub boundaries: u64,
    /// Messages that came to the coordinator's poller.
    pub received: u64,
    /// Messages that it sent.
    pub sent: u64,
    /// Time that its machines took for messages.
    pub spent: Duration,
    /// By boundary and shard: how long acknowledgements were held, nanoseconds of virtual time.
    pub held_ns: Vec<u64>,
}

impl Cost {
    /// Per boundary: messages received, messages sent, and microseconds spent.
    #[must_use]
    pub fn per_boundary(&self) -> (f64, f64, f64) {
        let count = self.boundaries.max(1) as f64;
        let spent_us = self.spent.as_secs_f64() * 1e6;
        (self.received as f64 / count, self.sent as f64 / count, spent_us / count)
    }

    /// The longest hold, nanoseconds of virtual time.
    #[must_use]
    pub fn held_ns_max(&self) -> u64 {
        self.held_ns.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn report(&mut self, report: &Report) {
        match report {
            Report::SetFormed { .. } => self.boundaries += 1,
            Report::Held { held_ns, .. } => self.held_ns.push(*held_ns),
            _ => {}
        }
    }
}

/// Runs so many movers with so many volumes, and a set each millisecond, without faults.
///
/// # Errors
/// An invariant that was broken.
pub fn boundary_cost(movers: u16, volumes: u32) -> Result<Cost, Violation> {
    let mut rng = Rng::new(1);
    let knobs = Knobs {
        primaries: Some(movers),
        secondaries: Some(1),
        pollers: Some(1),
        volumes: Some(volumes),
        copies: Some(2),
        updates: Some(4000),
        period_ns: Some(MS),
        journal_percent: Some(1000),
        forward_ppm: Some(0),
        fail: Some(false),
        moves: Some(false),
        timestamps: Some(Timestamps::None),
        ..Knobs::default()
    };
    let profile = Profile {
        blocks: 16,
        hot_blocks: 16,
        block_bytes: 8,
        hosts: 4,
        queue_depth: 4,
        think_ns: 50 * US,
        own_bytes: 64 << 10,
        grant_bytes: 16 << 10,
        in_flight: 64,
        apply_depth: 32,
        network: NetworkFaults {
            delay_ns: ONE_WAY_NS,
            site_delay_ns: ONE_WAY_NS,
            ..NetworkFaults::default()
        },
        disks: DiskFaults::default(),
        movers: MoverFaults::default(),
        operator: Operator::default(),
        ..Profile::draw(&mut rng.fork(), &knobs)
    };
    let mut cluster = Cluster::new(profile, &mut rng, Trace::new(0));
    cluster.cost = Some(Cost::default());
    cluster.drive()?;
    let cost = cluster.cost.take().unwrap_or_default();
    ensure!(0, cost.boundaries > 0, "there was no boundary");
    Ok(cost)
}

impl Cluster {
    /// Runs `handle`, a message of the coordinator's poller if `node` is that, under the clock.
    pub(super) fn timed(&mut self, node: usize, handle: impl FnOnce(&mut Self)) {
        if self.cost.is_none() || node != self.coordinator() {
            return handle(self);
        }
        let start = Instant::now();
        handle(self);
        let spent = start.elapsed();
        if let Some(cost) = &mut self.cost {
            cost.received += 1;
            cost.spent += spent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_per_boundary_grow_with_the_movers_and_the_hold_does_not() {
        let [few, many] = [2, 8].map(|movers| boundary_cost(movers, 4).expect("a calm history"));
        let [(received, sent, _), (more_received, more_sent, _)] =
            [few.per_boundary(), many.per_boundary()];
        assert!(more_received > received && more_sent > sent);
        assert!(few.held_ns_max() > 0 && many.held_ns_max() < 20 * few.held_ns_max());
    }
}
