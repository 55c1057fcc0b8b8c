//! What becomes of a packet: lost, doubled, delayed, overtaken, damaged, or cut off by a partition.
//!
//! Reordering needs no knob of its own: every packet draws its own delay, so later ones overtake
//! earlier ones. Partitions are between movers and one-way; the cluster makes them symmetric or
//! not, and heals them.

use super::prng::Rng;
use super::stats::Stats;
use crate::proto::types::MoverId;

/// How a network behaves. Rates are per million packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkFaults {
    /// Mean delay between movers of one site, nanoseconds.
    pub delay_ns: u64,
    /// Mean delay between the sites, nanoseconds.
    pub site_delay_ns: u64,
    /// Packets that never arrive.
    pub loss_ppm: u32,
    /// Packets that arrive twice.
    pub duplicate_ppm: u32,
    /// Packets that arrive with a flipped bit.
    pub corrupt_ppm: u32,
    /// Packets held up for about a hundred times the mean delay.
    pub straggle_ppm: u32,
}

/// One arrival of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Nanoseconds after sending.
    pub after_ns: u64,
    /// The bit that flips on the way.
    pub flip_bit: Option<u64>,
}

/// The network between all movers of both sites.
#[derive(Debug)]
pub struct Network {
    rng: Rng,
    faults: NetworkFaults,
    movers: usize,
    primary_movers: usize,
    cut: Vec<bool>,
}

impl Network {
    /// A network between `movers` movers, the first `primary_movers` of which are one site.
    #[must_use]
    pub fn new(rng: Rng, faults: NetworkFaults, movers: usize, primary_movers: usize) -> Self {
        Self { rng, faults, movers, primary_movers, cut: vec![false; movers * movers] }
    }

    /// Cuts or joins the direction `from` → `to`.
    pub fn set_cut(&mut self, from: MoverId, to: MoverId, cut: bool) {
        let index = usize::from(from.0) * self.movers + usize::from(to.0);
        self.cut[index] = cut;
    }

    /// Ends all faults and partitions; delays stay.
    pub fn heal(&mut self) {
        self.cut.fill(false);
        self.faults = NetworkFaults {
            delay_ns: self.faults.delay_ns,
            site_delay_ns: self.faults.site_delay_ns,
            ..NetworkFaults::default()
        };
    }

    /// The fate of a packet of `len` bytes: when it arrives, at most twice.
    pub fn fate(
        &mut self,
        from: MoverId,
        to: MoverId,
        len: usize,
        stats: &mut Stats,
    ) -> [Option<Arrival>; 2] {
        stats.packets += 1;
        let (from, to) = (usize::from(from.0), usize::from(to.0));
        if self.cut[from * self.movers + to] {
            stats.packets_cut += 1;
            return [None, None];
        }
        if self.rng.chance(self.faults.loss_ppm) {
            stats.packets_lost += 1;
            return [None, None];
        }
        let one_site = (from < self.primary_movers) == (to < self.primary_movers);
        let mean = if one_site { self.faults.delay_ns } else { self.faults.site_delay_ns };
        let first = self.arrival(mean, len, stats);
        let second = self.rng.chance(self.faults.duplicate_ppm).then(|| {
            stats.packets_doubled += 1;
            self.arrival(mean, len, stats)
        });
        [Some(first), second]
    }

    fn arrival(&mut self, mean: u64, len: usize, stats: &mut Stats) -> Arrival {
        let mut after_ns = self.rng.delay(mean);
        if self.rng.chance(self.faults.straggle_ppm) {
            stats.packets_straggled += 1;
            after_ns += self.rng.delay(mean * 100);
        }
        let flip_bit = self.rng.chance(self.faults.corrupt_ppm).then(|| {
            stats.packets_damaged += 1;
            self.rng.below(len as u64 * 8)
        });
        Arrival { after_ns, flip_bit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(faults: NetworkFaults) -> Network {
        Network::new(Rng::new(1), faults, 3, 2)
    }

    #[test]
    fn a_cut_is_one_way_and_heals() {
        let mut net = network(NetworkFaults { delay_ns: 10, ..NetworkFaults::default() });
        let stats = &mut Stats::default();
        net.set_cut(MoverId(0), MoverId(1), true);
        assert_eq!(net.fate(MoverId(0), MoverId(1), 64, stats), [None, None]);
        assert!(net.fate(MoverId(1), MoverId(0), 64, stats)[0].is_some());
        net.heal();
        assert!(net.fate(MoverId(0), MoverId(1), 64, stats)[0].is_some());
        assert_eq!(stats.packets_cut, 1);
    }

    #[test]
    fn each_fault_occurs_near_its_rate_and_is_counted() {
        let mut net = network(NetworkFaults {
            delay_ns: 100,
            site_delay_ns: 1000,
            loss_ppm: 100_000,
            duplicate_ppm: 100_000,
            corrupt_ppm: 100_000,
            straggle_ppm: 10_000,
        });
        let stats = &mut Stats::default();
        for _ in 0..10_000 {
            for arrival in net.fate(MoverId(0), MoverId(2), 64, stats).into_iter().flatten() {
                assert!(arrival.flip_bit.is_none_or(|bit| bit < 512));
                assert!(arrival.after_ns >= 500);
            }
        }
        for count in [stats.packets_lost, stats.packets_doubled, stats.packets_damaged] {
            assert!((700..1300).contains(&count), "{stats:?}");
        }
        assert!(stats.packets_straggled > 0);
    }
}
