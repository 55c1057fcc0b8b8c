//! Reads the system clock for groups that are stamped by it (G8).
//!
//! On the control thread, a hundred times a second: pollers make no system calls. Between two
//! readings they go on by the counter.

use super::clock::Clock;
use super::stamps::{LineSetter, Sources};
use crate::config::{Mover, Role, Timestamps};
use crate::mem::discipline::SystemClock;
use crate::proto::sabotage::Sabotage;
use crate::proto::time::{Bounds, Course};
use crate::proto::types::Nanos;

/// How often the clock is read, nanoseconds.
const READ_EVERY_NS: u64 = 10_000_000;
/// A reading that took longer was interrupted, and is made again.
const READING_NS_MAX: u64 = 20_000;
/// Readings made at once until one was not interrupted.
const ATTEMPTS: usize = 3;
/// A line is there for all pollers well before so much time has gone by.
const BEND_NS: u64 = 1_000_000_000;

/// What is known of the system clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockState {
    /// Somebody keeps it right; none when the kernel cannot say.
    pub synchronised: Option<bool>,
    /// The bound of its error is the configuration's.
    pub configured: bool,
}

impl ClockState {
    /// Whether stamps have a bound.
    #[must_use]
    pub fn is_bounded(self) -> bool {
        self.configured || self.synchronised == Some(true)
    }
}

/// Reads the clock. Owned by the control thread.
pub struct Timekeeper {
    read: fn() -> Option<SystemClock>,
    bound_ns: Option<u64>,
    course: Course,
    setter: LineSetter,
    next_at: Nanos,
    state: Option<ClockState>,
}

impl Timekeeper {
    /// A timekeeper for the groups of `mover` with the first reading made; none when no update is
    /// stamped by the clock here. `read` is [`crate::mem::discipline::read`].
    pub fn new(
        mover: &Mover,
        sources: &mut Sources,
        clock: &Clock,
        read: fn() -> Option<SystemClock>,
    ) -> Option<Self> {
        let by_clock = mover.groups.iter().any(|group| group.timestamps == Timestamps::Clock);
        if !by_clock || mover.mover.role != Role::Primary {
            return None;
        }
        let mut keeper = Self {
            read,
            bound_ns: mover.mover.clock_error_us.map(|us| u64::from(us) * 1_000),
            course: Course::new(BEND_NS, Sabotage::None),
            setter: sources.add_clock(),
            next_at: Nanos(0),
            state: None,
        };
        keeper.reading(clock);
        Some(keeper)
    }

    /// Reads the clock if that is due; the state, when it is another one than was last said.
    pub fn turn(&mut self, clock: &Clock) -> Option<ClockState> {
        if clock.now() >= self.next_at {
            let state = self.reading(clock);
            if self.state != Some(state) {
                self.state = Some(state);
                return self.state;
            }
        }
        None
    }

    fn reading(&mut self, clock: &Clock) -> ClockState {
        let (mut now, mut took, mut read) = (Nanos(0), 0, None);
        for _ in 0..ATTEMPTS {
            let before = clock.now();
            read = (self.read)();
            now = clock.now();
            took = now.since(before);
            if took <= READING_NS_MAX {
                break;
            }
        }
        self.next_at = now.after(READ_EVERY_NS);
        let synchronised = read.map(|read| read.synchronised);
        // Without the kernel's word on its clock the time is still the system's.
        let unix_ns = read.map_or_else(system_ns, |read| read.unix_ns);
        let kernel_s = read.filter(|read| read.synchronised).map(|read| read.error_ns);
        let bounds = self.bound_ns.or(kernel_s).map(|error| {
            // It was true at some moment of the reading.
            let Bounds { earliest_ns, latest_ns } = Bounds::around(unix_ns, error);
            Bounds { earliest_ns, latest_ns: latest_ns.saturating_add(took) }
        });
        self.course.follow(now, unix_ns, bounds);
        if let Some(line) = self.course.line() {
            self.setter.set(line.encode());
        }
        ClockState { synchronised, configured: self.bound_ns.is_some() }
    }
}

fn system_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::time::ERROR_UNKNOWN;
    use crate::runtime::stamps::Stamps;

    fn mover(timestamps: &str, more: &str) -> Mover {
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("examples/lab/p1.toml")).unwrap();
        let text = text
            .replacen("copies = 2 ", &format!("timestamps = \"{timestamps}\"\ncopies = 2 "), 1)
            .replacen("arena_mib = 64", &format!("arena_mib = 64\n{more}"), 1);
        Mover::parse("p1.toml", &text).unwrap_or_else(|error| panic!("{error}")).mover
    }

    fn keeper(mover: &Mover, read: fn() -> Option<SystemClock>) -> Option<(Timekeeper, Stamps)> {
        let (clock, mut sources) = (Clock::measured(), Sources::default());
        let keeper = Timekeeper::new(mover, &mut sources, &clock, read)?;
        Some((keeper, Stamps::new(clock, sources)))
    }

    fn good() -> Option<SystemClock> {
        Some(SystemClock { unix_ns: system_ns(), error_ns: 300_000, synchronised: true })
    }

    fn unsynchronised() -> Option<SystemClock> {
        Some(SystemClock { unix_ns: system_ns(), error_ns: 16_000_000_000, synchronised: false })
    }

    #[test]
    fn stamps_are_the_system_s_time_with_the_kernel_s_bound() {
        let (_keeper, mut stamps) = keeper(&mover("clock", ""), good).unwrap();
        let before = system_ns();
        let stamp = stamps.stamp(Timestamps::Clock);
        let after = system_ns();
        let error = u64::from(stamp.error_ns);
        assert!(error >= 300_000 && stamp.error_ns != ERROR_UNKNOWN, "{stamp:?}");
        assert!(stamp.time_ns + error >= before && stamp.time_ns - error <= after, "{stamp:?}");
    }

    #[test]
    fn a_clock_that_nobody_keeps_right_has_no_bound_but_a_configured_one() {
        let clock = Clock::measured();
        for read in [unsynchronised, || None] {
            let (mut keeper, mut stamps) = keeper(&mover("clock", ""), read).unwrap();
            assert_eq!(stamps.stamp(Timestamps::Clock).error_ns, ERROR_UNKNOWN);
            keeper.next_at = Nanos(0);
            let state = keeper.turn(&clock).unwrap();
            assert!(!state.is_bounded(), "{state:?}");
            keeper.next_at = Nanos(0);
            assert_eq!(keeper.turn(&clock), None, "it is said once");
            let (mut keeper, mut stamps) =
                self::keeper(&mover("clock", "clock_error_us = 2000"), read).unwrap();
            let error = stamps.stamp(Timestamps::Clock).error_ns;
            assert!((2_000_000..ERROR_UNKNOWN).contains(&error), "{error}");
            keeper.next_at = Nanos(0);
            assert!(keeper.turn(&clock).unwrap().is_bounded());
        }
    }

    #[test]
    fn without_a_group_that_wants_it_the_clock_is_not_read() {
        assert!(keeper(&mover("none", ""), good).is_none());
    }
}
