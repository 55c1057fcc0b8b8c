//! Time for pollers: the time stamp counter, read once per turn, as nanoseconds.
//!
//! The counter is constant and synchronised over cores on every machine that setline supports.
//! Nothing here asks the operating system after start.

use crate::proto::types::Nanos;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Converts counter values to nanoseconds since the mover started. One per process, copied to
/// every thread.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start_cycles: u64,
    /// Nanoseconds per cycle, in 2^-32.
    scale: u64,
    hz: u64,
    unix_offset_ns: u64,
}

impl Clock {
    /// A clock that starts now, for a counter of `hz`.
    ///
    /// # Panics
    /// When `hz` is zero.
    #[must_use]
    pub fn with_hz(hz: u64) -> Self {
        assert!(hz > 0, "the counter's frequency is known");
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            start_cycles: cycles(),
            scale: ((1_000_000_000_u128 << 32) / u128::from(hz)) as u64,
            hz,
            unix_offset_ns: unix.as_nanos() as u64,
        }
    }

    /// A clock that starts now; measures the counter against the system's clock for 20 ms.
    #[must_use]
    pub fn measured() -> Self {
        let (at, from) = (Instant::now(), cycles());
        std::thread::sleep(Duration::from_millis(20));
        let (took, counted) = (at.elapsed(), cycles() - from);
        Self::with_hz((u128::from(counted) * 1_000_000_000 / took.as_nanos()).max(1) as u64)
    }

    /// Now.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.at(cycles())
    }

    /// The time at a counter value.
    #[inline]
    #[must_use]
    pub fn at(&self, cycles: u64) -> Nanos {
        let since = cycles.wrapping_sub(self.start_cycles);
        Nanos(((u128::from(since) * u128::from(self.scale)) >> 32) as u64)
    }

    /// Counter cycles per second.
    #[must_use]
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// Nanoseconds since the Unix epoch at this clock's time 0.
    #[must_use]
    pub fn unix_offset_ns(&self) -> u64 {
        self.unix_offset_ns
    }
}

/// The counter.
#[inline]
#[must_use]
pub fn cycles() -> u64 {
    crate::mem::tsc::read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_cycles_is_a_second() {
        let clock = Clock::with_hz(2_450_000_000);
        let start = clock.start_cycles;
        let after = |cycles: u64| clock.at(start + cycles).0;
        assert!(after(2_450_000_000).abs_diff(1_000_000_000) < 10);
        assert!(
            after(2_450_000_000 * 86_400 * 365).abs_diff(31_536_000_000_000_000) < 1_000_000_000
        );
    }
}
