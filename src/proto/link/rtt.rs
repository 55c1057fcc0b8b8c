//! Round-trip times and the retransmission timeout drawn from them (RFC 6298).

use super::config::LinkConfig;

/// Smoothed round-trip time of one channel. All times in nanoseconds.
pub(super) struct Rtt {
    smoothed: u64,
    variation: u64,
    least: u64,
    sampled: bool,
    rto_initial: u64,
    rto_min: u64,
    rto_max: u64,
}

impl Rtt {
    pub(super) fn new(config: &LinkConfig) -> Self {
        Self {
            smoothed: 0,
            variation: 0,
            least: u64::MAX,
            sampled: false,
            rto_initial: config.rto_initial_ns,
            rto_min: config.rto_min_ns,
            rto_max: config.rto_max_ns,
        }
    }

    /// Takes a sample of a packet that was sent once only (Karn's rule).
    #[inline]
    pub(super) fn sample(&mut self, ns: u64) {
        if self.sampled {
            let off = self.smoothed.abs_diff(ns);
            self.variation = self.variation - self.variation / 4 + off / 4;
            self.smoothed = self.smoothed - self.smoothed / 8 + ns / 8;
        } else {
            self.sampled = true;
            self.smoothed = ns;
            self.variation = ns / 2;
        }
        self.least = self.least.min(ns);
    }

    /// The smoothed round-trip time; the initial timeout before the first sample.
    #[inline]
    pub(super) fn smoothed(&self) -> u64 {
        if self.sampled { self.smoothed } else { self.rto_initial }
    }

    /// The least round-trip time seen; 0 before the first sample.
    #[inline]
    pub(super) fn least(&self) -> u64 {
        if self.sampled { self.least } else { 0 }
    }

    /// The timeout after `backoff` timeouts in a row.
    #[inline]
    pub(super) fn timeout(&self, backoff: u32) -> u64 {
        let base = if self.sampled {
            (self.smoothed + 4 * self.variation).clamp(self.rto_min, self.rto_max)
        } else {
            self.rto_initial
        };
        base.saturating_mul(1 << backoff.min(20)).min(self.rto_max)
    }
}
