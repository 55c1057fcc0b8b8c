//! A poller's latency histograms, handed to the control thread in intervals.

use super::clock::Clock;
use hdrhistogram::Histogram;

/// Longest latency that is told apart: a minute.
const HIGHEST_NS: u64 = 60_000_000_000;

/// The histograms of one interval.
#[derive(Debug)]
pub(super) struct Stats {
    /// Nanoseconds per cycle, in 2^-32.
    scale: u64,
    write: Histogram<u64>,
    hold: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_NS, 2)
        .expect("bounds of a histogram are constants that fit one another")
}

impl Stats {
    pub(super) fn new(clock: &Clock) -> Self {
        let scale = ((1_000_000_000_u128 << 32) / u128::from(clock.hz())) as u64;
        Self { scale, write: histogram(), hold: histogram() }
    }

    /// A write-nature host command completed after so many cycles.
    #[inline]
    pub(super) fn write_latency(&mut self, cycles: u64) {
        let ns = ((u128::from(cycles) * u128::from(self.scale)) >> 32) as u64;
        self.write.saturating_record(ns.max(1));
    }

    /// Acknowledgements were held for so long at a boundary.
    pub(super) fn hold(&mut self, ns: u64) {
        self.hold.saturating_record(ns.max(1));
    }

    /// Hands over the interval's write latencies and holds; the next interval begins.
    pub(super) fn take(&mut self) -> (Histogram<u64>, Histogram<u64>) {
        (
            std::mem::replace(&mut self.write, histogram()),
            std::mem::replace(&mut self.hold, histogram()),
        )
    }
}
