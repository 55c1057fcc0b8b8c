//! Where pollers have the time stamps of updates from (G8).
//!
//! A mover has one line ([`Line`]) for each source of time that its groups use, in a latch
//! ([`crate::ring::latch`]): whoever reads the source sets it, pollers look at it. A stamp is that
//! line at the counter's present value, read for that purpose: the value of the poller's turn is of
//! before what the turn brought. Since all pollers read one counter and use one line, a stamp is
//! later than any that another poller gave out before.
//!
//! Groups without time stamps do not come here.

use super::clock::Clock;
use crate::config::Timestamps;
use crate::mem::tsc;
use crate::proto::time::{Line, Stamper, TimeStamp};
use crate::ring::latch::{Getter, Setter, latch};

/// Sets a source's line.
pub type LineSetter = Setter<{ Line::WORDS }>;
type LineGetter = Getter<{ Line::WORDS }>;

/// The mover's sources of time, for all who look at them.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    clock: Option<LineGetter>,
    common: Option<LineGetter>,
}

impl Sources {
    /// Adds the system clock; what sets its line.
    pub fn add_clock(&mut self) -> LineSetter {
        let (setter, getter) = latch();
        self.clock = Some(getter);
        setter
    }

    /// Adds the common timer; what sets its line.
    pub fn add_common(&mut self) -> LineSetter {
        let (setter, getter) = latch();
        self.common = Some(getter);
        setter
    }

    fn getter(&self, source: Timestamps) -> Option<&LineGetter> {
        match source {
            Timestamps::None => None,
            Timestamps::Clock => self.clock.as_ref(),
            Timestamps::Common => self.common.as_ref(),
        }
    }

    /// The present line of a source; none when it is not used, or nothing is known of it yet.
    #[must_use]
    pub fn line(&self, source: Timestamps) -> Option<Line> {
        self.getter(source)?.get(Line::decode)
    }
}

/// A poller's stamps.
#[derive(Debug)]
pub struct Stamps {
    clock: Clock,
    sources: Sources,
    /// By source: what it gave out last.
    stampers: [Stamper; 2],
}

impl Stamps {
    /// The stamps of one poller.
    #[must_use]
    pub fn new(clock: Clock, sources: Sources) -> Self {
        Self { clock, sources, stampers: Default::default() }
    }

    /// The stamp for an update that is taken now; none when nothing is known of the time yet.
    #[inline]
    pub fn stamp(&mut self, source: Timestamps) -> TimeStamp {
        let stamper = match source {
            Timestamps::None => return TimeStamp::NONE,
            Timestamps::Clock => &mut self.stampers[0],
            Timestamps::Common => &mut self.stampers[1],
        };
        let Some(getter) = self.sources.getter(source) else { return TimeStamp::NONE };
        let read = |words| (Line::decode(words), self.clock.at(tsc::read_ordered()));
        let Some((line, now)) = getter.get(read) else { return TimeStamp::NONE };
        stamper.stamp(&line, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sabotage::Sabotage;
    use crate::proto::time::{Bounds, Course};
    use std::sync::atomic::{AtomicU64, Ordering};

    const DAY: u64 = 1_795_000_000_000_000_000;

    #[test]
    fn without_a_source_or_a_reading_there_is_no_stamp() {
        let clock = Clock::with_hz(2_000_000_000);
        assert_eq!(
            Stamps::new(clock, Sources::default()).stamp(Timestamps::Clock),
            TimeStamp::NONE
        );
        let mut sources = Sources::default();
        let _setter = sources.add_clock();
        let mut stamps = Stamps::new(clock, sources);
        assert_eq!(stamps.stamp(Timestamps::Clock), TimeStamp::NONE);
        assert_eq!(stamps.stamp(Timestamps::None), TimeStamp::NONE);
    }

    /// Two threads that stamp by turns of the scheduler, while the line is moved forward, doubted and
    /// put back: what one gives out is later than all that were given out before it began.
    #[test]
    fn stamps_of_several_pollers_are_in_the_order_of_their_taking() {
        let clock = Clock::measured();
        let mut sources = Sources::default();
        let mut setter = sources.add_clock();
        let mut course = Course::new(1_000_000_000, Sabotage::None);
        let mut set = |offset: u64| {
            let now = clock.now();
            let time = DAY + now.0 + offset;
            course.follow(now, time, Some(Bounds::around(time, 1_000)));
            setter.set(course.line().map_or([0; Line::WORDS], |line| line.encode()));
        };
        set(0);
        let latest = &AtomicU64::new(0);
        std::thread::scope(|scope| {
            let pollers = [(); 2].map(|()| {
                let mut stamps = Stamps::new(clock, sources.clone());
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        let before = latest.load(Ordering::SeqCst);
                        let stamp = stamps.stamp(Timestamps::Clock);
                        // Two cores may read the counter at the same value.
                        assert!(stamp.time_ns >= before, "{} after {before}", stamp.time_ns);
                        latest.fetch_max(stamp.time_ns, Ordering::SeqCst);
                    }
                })
            });
            let mut offset = 0;
            while pollers.iter().any(|poller| !poller.is_finished()) {
                // To and fro by up to a second.
                offset = (offset + 7_919) % 1_000_000_000;
                set(offset);
            }
        });
        assert!(latest.load(Ordering::SeqCst) > DAY);
    }
}
