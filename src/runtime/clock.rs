//! Time for pollers: the time stamp counter, read once per turn, as nanoseconds.
//!
//! The counter is constant and synchronised over cores on every machine that setline supports.
//! Nothing here asks the operating system after start.

use crate::proto::types::Nanos;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

    /// A clock that starts now; measures the counter first.
    #[must_use]
    pub fn measured() -> Self {
        Measuring::begin().end()
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

/// The counter is measured for so long, nanoseconds.
const MEASURE_NS: u64 = 100_000_000;

/// A measurement of the counter's frequency against the kernel's raw monotonic clock. What firmware and
/// DPDK say of it may be rounded to 10 MHz, which is off by as much as 0.2 %; time stamps need better
/// ([`crate::proto::time`]).
#[derive(Clone, Copy, Debug)]
pub struct Measuring {
    raw_ns: u64,
    cycles: u64,
}

impl Measuring {
    /// Begins one.
    #[must_use]
    pub fn begin() -> Self {
        // The look that was interrupted least.
        let looks = (0..8).map(|_| {
            let before = cycles();
            let raw_ns = raw_ns();
            let after = cycles();
            (after - before, Self { raw_ns, cycles: before + (after - before) / 2 })
        });
        let best = looks.min_by_key(|(took, _)| *took);
        best.map_or(Self { raw_ns: raw_ns(), cycles: cycles() }, |(_, look)| look)
    }

    /// A clock that starts now, for the frequency that was measured: to a few ppm, since it waits until
    /// [`MEASURE_NS`] have gone by.
    #[must_use]
    pub fn end(self) -> Clock {
        let left = MEASURE_NS.saturating_sub(raw_ns() - self.raw_ns);
        std::thread::sleep(Duration::from_nanos(left));
        let end = Self::begin();
        let took = u128::from((end.raw_ns - self.raw_ns).max(1));
        let counted = u128::from(end.cycles - self.cycles);
        Clock::with_hz((counted * 1_000_000_000 / took).max(1) as u64)
    }
}

/// The kernel's clock that nobody disciplines.
#[cfg(target_os = "linux")]
fn raw_ns() -> u64 {
    let raw = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    raw.tv_sec as u64 * 1_000_000_000 + raw.tv_nsec as u64
}

/// The nearest that other systems have.
#[cfg(not(target_os = "linux"))]
fn raw_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
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
    fn a_measured_clock_goes_with_the_kernel_s() {
        let clock = Clock::measured();
        // Who interrupts a look once may not interrupt all of them.
        let agrees = (0..5).any(|_| {
            let (ours, theirs) = (clock.now(), raw_ns());
            std::thread::sleep(Duration::from_millis(50));
            let (ours, theirs) = (clock.now().since(ours), raw_ns() - theirs);
            ours.abs_diff(theirs) < theirs / 1_000
        });
        assert!(agrees, "{} Hz", clock.hz());
    }

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
