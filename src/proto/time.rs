//! Time stamps of updates (G8): what a mover knows of the time, as a line over its own counter.
//!
//! A mover reads the time now and then: from its kernel, or from the common timer
//! ([`super::timer`]). In between it stamps by a [`Line`]: a time that goes on with the mover's own
//! monotonic clock, and bounds within which the true time is. The [`Course`] makes the lines out of
//! the readings. All pollers of a mover stamp by the same line, so stamps are ordered among them as the
//! updates were taken, without a word between pollers.
//!
//! A line shows a time that is never before the one that the line before it shows, at any moment from
//! then on. So it does not matter which poller learns of a new line first, as long as no poller uses the
//! older one after another has used the newer ([`crate::ring::latch`] sees to that):
//! - A line runs a little slow ([`SLOW_SHIFT`]), so that corrections are forward, as a rule.
//! - One that is ahead is not put back. It goes on, says how far it may be off, and is overtaken by the
//!   time.
//! - One that is ahead by more than [`STEP_NS`], since the clock was put back, goes on at half speed.
//!   That begins late enough ([`Course::new`]) for every poller to have the line by then.
//!
//! There is no clock here: times come in with every call, as everywhere in the protocol.

use super::sabotage::Sabotage;
use super::types::Nanos;

/// The error bound of a stamp of which nothing is known, as it is of errors that do not fit:
/// 4.29 s and more.
pub const ERROR_UNKNOWN: u32 = u32::MAX;
/// A line runs slow by a part in 2^11, 488 ppm: more than counters and the kernel's own corrections
/// (500 ppm at most, a tenth of that as a rule) make up for within the next readings.
const SLOW_SHIFT: u32 = 11;
/// Two movers' monotonic clocks go apart by less than a part in 2^12, 244 ppm: crystals are good for 100
/// each, and the counter's frequency is measured to a few (`runtime::clock`).
const DRIFT_SHIFT: u32 = 12;
/// What is ahead by more than this was not drift: the clock was put back.
const STEP_NS: u64 = 1_000_000;

/// By how much a mover's clock, or two movers' clocks against each other, can be off after a time, nanoseconds.
#[inline]
#[must_use]
pub const fn drift_ns(run_ns: u64) -> u64 {
    (run_ns >> DRIFT_SHIFT) + (run_ns > 0) as u64
}

/// The time stamp of an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimeStamp {
    /// Nanoseconds since the Unix epoch; 0 for none.
    pub time_ns: u64,
    /// The true time is not farther away than this, nanoseconds; [`ERROR_UNKNOWN`] when nobody knows.
    pub error_ns: u32,
}

impl TimeStamp {
    /// None.
    pub const NONE: Self = Self { time_ns: 0, error_ns: 0 };
}

/// Between which moments the true time lies, nanoseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Not before this.
    pub earliest_ns: u64,
    /// Not after this.
    pub latest_ns: u64,
}

impl Bounds {
    /// So much to both sides of a time.
    #[must_use]
    pub const fn around(time_ns: u64, error_ns: u64) -> Self {
        let earliest_ns = time_ns.saturating_sub(error_ns);
        Self { earliest_ns, latest_ns: time_ns.saturating_add(error_ns) }
    }

    const fn middle_ns(self) -> u64 {
        self.earliest_ns + (self.latest_ns - self.earliest_ns) / 2
    }

    /// What both allow; none when they contradict each other.
    fn and(self, other: Self) -> Option<Self> {
        let earliest_ns = self.earliest_ns.max(other.earliest_ns);
        let latest_ns = self.latest_ns.min(other.latest_ns);
        (earliest_ns <= latest_ns).then_some(Self { earliest_ns, latest_ns })
    }
}

/// The time as a mover has it from one reading to the next. A plain value, copied to all pollers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    /// Where it begins, by the mover's monotonic clock.
    at: Nanos,
    /// What it shows there.
    time_ns: u64,
    /// Where the true time lies there; none when nobody knows.
    bounds: Option<Bounds>,
    /// From here on it runs at half speed.
    bend: Nanos,
}

impl Line {
    /// Words of an encoded line.
    pub const WORDS: usize = 5;

    /// What it shows. Never decreases.
    #[inline]
    #[must_use]
    pub fn shows(&self, now: Nanos) -> u64 {
        let bent = now.since(self.bend.max(self.at));
        let straight = now.since(self.at) - bent;
        self.time_ns + straight - (straight >> SLOW_SHIFT) + bent - (bent >> 1)
    }

    /// Whether anybody knows where the true time lies.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.bounds.is_some()
    }

    /// Where the true time lies; none when nobody knows.
    #[inline]
    #[must_use]
    pub fn bounds(&self, now: Nanos) -> Option<Bounds> {
        let bounds = self.bounds?;
        let run = now.since(self.at);
        let spread = drift_ns(run);
        Some(Bounds {
            earliest_ns: bounds.earliest_ns + run - spread,
            latest_ns: bounds.latest_ns.saturating_add(run + spread),
        })
    }

    /// How far the true time is from `time_ns` at most, nanoseconds.
    #[inline]
    #[must_use]
    pub fn error_ns(&self, now: Nanos, time_ns: u64) -> u32 {
        let Some(bounds) = self.bounds(now) else { return ERROR_UNKNOWN };
        let before = time_ns.saturating_sub(bounds.earliest_ns);
        let error = before.max(bounds.latest_ns.saturating_sub(time_ns));
        u32::try_from(error).unwrap_or(ERROR_UNKNOWN)
    }

    /// The stamp for an update that is taken now.
    #[inline]
    #[must_use]
    pub fn stamp(&self, now: Nanos) -> TimeStamp {
        let time_ns = self.shows(now);
        TimeStamp { time_ns, error_ns: self.error_ns(now, time_ns) }
    }

    /// The line as words, for those who share it.
    #[must_use]
    pub fn encode(&self) -> [u64; Self::WORDS] {
        // Bounds that contradict each other say that there are none.
        let none = Bounds { earliest_ns: u64::MAX, latest_ns: 0 };
        let Bounds { earliest_ns, latest_ns } = self.bounds.unwrap_or(none);
        [self.at.0, self.time_ns, earliest_ns, latest_ns, self.bend.0]
    }

    /// What [`Self::encode`] was given.
    #[inline]
    #[must_use]
    pub fn decode(words: [u64; Self::WORDS]) -> Self {
        let [at, time_ns, earliest_ns, latest_ns, bend] = words;
        let bounds = Bounds { earliest_ns, latest_ns };
        let bounds = (earliest_ns <= latest_ns).then_some(bounds);
        Self { at: Nanos(at), time_ns, bounds, bend: Nanos(bend) }
    }
}

/// Makes lines out of readings. One per mover and source of time; owned by the thread that reads.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    line: Option<Line>,
    bend_ns: u64,
    sabotage: Sabotage,
}

impl Course {
    /// A course without a reading. `bend_ns`: how long it takes at the very most until all who stamp have
    /// a new line.
    #[must_use]
    pub const fn new(bend_ns: u64, sabotage: Sabotage) -> Self {
        Self { line: None, bend_ns, sabotage }
    }

    /// A course like it without a reading: of a mover whose memory is gone.
    #[must_use]
    pub const fn anew(&self) -> Self {
        Self::new(self.bend_ns, self.sabotage)
    }

    /// The line to stamp by; none before the first reading.
    #[must_use]
    pub fn line(&self) -> Option<Line> {
        self.line
    }

    /// A clock that is kept right by somebody else shows `time_ns` now; the true time lies within
    /// `bounds`, or nobody knows where. What was known before does not count any more.
    pub fn follow(&mut self, now: Nanos, time_ns: u64, bounds: Option<Bounds>) {
        let latest = bounds.map_or(time_ns, |bounds| bounds.latest_ns);
        self.steer(now, time_ns, latest, bounds);
    }

    /// The true time lies within `bounds` now, and still lies where it was known to before.
    pub fn narrow(&mut self, now: Nanos, bounds: Bounds) {
        let known = self.line.and_then(|line| line.bounds(now));
        let bounds = known.and_then(|known| known.and(bounds)).unwrap_or(bounds);
        self.steer(now, bounds.middle_ns(), bounds.latest_ns, Some(bounds));
    }

    /// What was known of the true time does not hold any more.
    pub fn doubt(&mut self) {
        if let Some(line) = &mut self.line {
            line.bounds = None;
        }
    }

    /// The next line: at `aim` if that is not back, and slower if it is beyond `latest` by a step.
    fn steer(&mut self, now: Nanos, aim: u64, latest: u64, bounds: Option<Bounds>) {
        let (mut time_ns, mut bend) = (aim, Nanos::NEVER);
        if let Some(line) = &self.line
            && !self.sabotage.is(Sabotage::ClockBack)
        {
            let shown = line.shows(now);
            time_ns = shown.max(aim);
            if shown > latest.saturating_add(STEP_NS) {
                bend = line.bend.min(now.after(self.bend_ns));
            }
        }
        self.line = Some(Line { at: now, time_ns, bounds, bend });
    }
}

/// Gives out stamps, no two alike. One for each poller and source of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamper {
    last_ns: u64,
}

impl Stamper {
    /// The stamp for an update that is taken now; later than all before.
    #[inline]
    pub fn stamp(&mut self, line: &Line, now: Nanos) -> TimeStamp {
        let mut stamp = line.stamp(now);
        if stamp.time_ns <= self.last_ns {
            stamp.time_ns = self.last_ns + 1;
            stamp.error_ns = line.error_ns(now, stamp.time_ns);
        }
        self.last_ns = stamp.time_ns;
        stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEND_NS: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;
    const S: u64 = 1_000_000_000;
    /// A day in 2026, by the Unix clock.
    const DAY: u64 = 1_795_000_000 * S;

    fn course() -> Course {
        Course::new(BEND_NS, Sabotage::None)
    }

    fn line(course: &Course) -> Line {
        course.line().unwrap()
    }

    #[test]
    fn between_readings_the_bound_grows_and_holds_for_clocks_off_by_200_ppm() {
        let mut course = course();
        course.follow(Nanos(0), DAY, Some(Bounds::around(DAY, 1_000)));
        let line = line(&course);
        assert_eq!(line.stamp(Nanos(0)), TimeStamp { time_ns: DAY, error_ns: 1_000 });
        for elapsed in [1, 77, 5_000, MS, 33 * MS, S, 60 * S] {
            for ppm in [-200_i64, 0, 200] {
                let truth = DAY + elapsed.saturating_add_signed(elapsed as i64 * ppm / 1_000_000);
                let stamp = line.stamp(Nanos(elapsed));
                let off = stamp.time_ns.abs_diff(truth);
                assert!(off <= u64::from(stamp.error_ns), "{elapsed} {ppm} {stamp:?}");
            }
        }
        let (soon, late) = (line.stamp(Nanos(MS)).error_ns, line.stamp(Nanos(S)).error_ns);
        assert!(soon < 2_000 && late > 500_000, "{soon} {late}");
    }

    #[test]
    fn what_is_not_known_is_not_claimed() {
        let mut course = course();
        course.follow(Nanos(0), DAY, None);
        assert_eq!(line(&course).stamp(Nanos(MS)).error_ns, ERROR_UNKNOWN);
        course.follow(Nanos(MS), DAY + MS, Some(Bounds::around(DAY + MS, 5 * S)));
        assert_eq!(line(&course).stamp(Nanos(MS)).error_ns, ERROR_UNKNOWN, "it does not fit");
        course.follow(Nanos(2 * MS), DAY + 2 * MS, Some(Bounds::around(DAY + 2 * MS, 500)));
        assert_eq!(line(&course).stamp(Nanos(2 * MS)).error_ns, 500);
        course.doubt();
        assert_eq!(line(&course).stamp(Nanos(2 * MS)).error_ns, ERROR_UNKNOWN);
    }

    #[test]
    fn a_clock_that_is_put_back_is_waited_for_at_half_speed() {
        let mut course = course();
        let around = |time| Some(Bounds::around(time, 1_000));
        course.follow(Nanos(0), DAY, around(DAY));
        // Ten seconds back at second 1.
        let back = |now: u64| DAY - 10 * S + now;
        let mut last = 0;
        let mut caught_up = None;
        for now in (S..40 * S).step_by(10 * MS as usize) {
            let before = line(&course);
            course.follow(Nanos(now), back(now), around(back(now)));
            let after = line(&course);
            for later in [0, 1, 999, MS, BEND_NS - 1] {
                let later = Nanos(now + later);
                assert!(after.shows(later) >= before.shows(later), "{now} {later:?}");
            }
            let stamp = after.stamp(Nanos(now));
            assert!(stamp.time_ns > last);
            last = stamp.time_ns;
            let ahead = stamp.time_ns.saturating_sub(back(now));
            assert!(stamp.error_ns == ERROR_UNKNOWN || u64::from(stamp.error_ns) >= ahead);
            if ahead < STEP_NS && caught_up.is_none() {
                caught_up = Some(now / S);
            }
        }
        // After the second until the bend, twice the ten seconds.
        assert!(matches!(caught_up, Some(21..=23)), "{caught_up:?}");
        assert!(line(&course).stamp(Nanos(40 * S)).error_ns < 2 * MS as u32, "and then forgotten");
    }

    #[test]
    fn a_better_reading_narrows_and_a_worse_one_does_no_harm() {
        let mut course = course();
        course.narrow(Nanos(0), Bounds::around(DAY, 50_000));
        course.narrow(Nanos(1_000), Bounds::around(DAY + 11_000, 20_000));
        let stamp = line(&course).stamp(Nanos(1_000));
        assert_eq!(stamp, TimeStamp { time_ns: DAY + 11_000, error_ns: 20_000 });
        course.narrow(Nanos(2_000), Bounds::around(DAY + 400_000, 2 * MS));
        let stamp = line(&course).stamp(Nanos(2_000));
        assert!(stamp.error_ns < 21_000, "{stamp:?}");
        // A contradiction: what is newer holds.
        course.narrow(Nanos(3_000), Bounds::around(DAY + 9 * MS, 1_000));
        assert_eq!(line(&course).stamp(Nanos(3_000)).time_ns, DAY + 9 * MS);
    }

    #[test]
    fn a_line_survives_being_shared() {
        let mut course = course();
        course.follow(Nanos(5), DAY, None);
        assert_eq!(Line::decode(line(&course).encode()), line(&course));
        course.follow(Nanos(6), DAY, Some(Bounds::around(DAY, 7)));
        assert_eq!(Line::decode(line(&course).encode()), line(&course));
    }

    #[test]
    fn stamps_of_one_moment_differ_and_say_so() {
        let mut course = course();
        course.follow(Nanos(0), DAY, Some(Bounds::around(DAY, 10)));
        let mut stamper = Stamper::default();
        let stamps: [TimeStamp; 3] =
            core::array::from_fn(|_| stamper.stamp(&line(&course), Nanos(0)));
        assert_eq!(stamps.map(|stamp| stamp.time_ns), [DAY, DAY + 1, DAY + 2]);
        assert_eq!(stamps.map(|stamp| stamp.error_ns), [10, 11, 12]);
    }
}
