//! The clocks of simulated movers, and the time stamps that updates get from them (G8).
//!
//! Virtual time is the truth. A mover has a counter of its own, which runs fast or slow, and a system
//! clock that is off: by as much as it claims to be at most, as often as not. It is put right, put
//! back, or left alone for a while, and now and then the kernel does not answer for it. All choices come
//! from a stream of their own, so a history is the same one with stamps and without.

use super::cluster::Cluster;
use super::prng::Rng;
use super::profile::{MS, US};
use crate::config::Timestamps;
use crate::proto::sabotage::Sabotage;
use crate::proto::time::{Bounds, Course, ERROR_UNKNOWN, Stamper, TimeStamp};
use crate::proto::types::Nanos;

/// The Unix time at which histories begin, nanoseconds.
const UNIX_NS: u64 = 1_795_000_000_000_000_000;
/// Counters are off by so many parts in a million at most.
const COUNTER_PPM: u64 = 110;
/// Two stamps of a mover are not taken nearer together than this, by its counter.
const TAKING_NS: u64 = 4;
/// Until all pollers have a new line.
const BEND_NS: u64 = 200 * US;

/// One mover's clocks.
#[derive(Debug)]
struct MoverClock {
    /// The counter at virtual time 0, and how much faster it runs than that, parts in a million.
    start_ns: u64,
    ppm: i64,
    /// The system clock: how far it is off, and may be.
    off_ns: i64,
    bound_ns: u64,
    /// The life of the mover that all of the below is of.
    life: u32,
    course: Course,
    /// When the system clock is read again, at the earliest.
    read_at: Nanos,
    /// The counter at the last taking.
    taken_at: Nanos,
    /// By poller.
    stampers: Vec<Stamper>,
}

/// All movers' clocks.
#[derive(Debug)]
pub(super) struct Times {
    rng: Rng,
    source: Timestamps,
    clocks: Vec<MoverClock>,
}

/// An update's time stamp, and when it was really taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// What the record says.
    pub(super) stamp: TimeStamp,
    /// The truth, Unix nanoseconds.
    pub(super) truth_ns: u64,
}

impl Times {
    pub(super) fn new(
        mut rng: Rng,
        source: Timestamps,
        (movers, pollers): (u16, u8),
        sabotage: Sabotage,
    ) -> Self {
        let clocks = (0..movers).map(|_| {
            let bound_ns = rng.pick(&[2 * US, 50 * US, 5 * MS]);
            MoverClock {
                start_ns: rng.below(1 << 40),
                ppm: rng.between(0, 2 * COUNTER_PPM) as i64 - COUNTER_PPM as i64,
                off_ns: 0,
                bound_ns,
                life: 0,
                course: Course::new(BEND_NS, sabotage),
                read_at: Nanos(0),
                taken_at: Nanos(0),
                stampers: vec![Stamper::default(); usize::from(pollers)],
            }
        });
        let clocks = clocks.collect();
        Self { rng, source, clocks }
    }

    /// The stamp of an update that a poller of a mover, in its present life, takes now.
    fn take(&mut self, now: Nanos, mover: usize, poller: usize, life: u32) -> Taken {
        let Self { rng, clocks, .. } = self;
        let clock = &mut clocks[mover];
        if clock.life != life {
            clock.life = life;
            clock.course = clock.course.anew();
            clock.stampers.fill(Stamper::default());
            clock.read_at = now;
        }
        if clock.read_at <= now {
            clock.read(rng, now);
        }
        // Time goes on while a poller takes one update after the other.
        let here = clock.counter(now).0.max(clock.taken_at.0 + TAKING_NS);
        clock.taken_at = Nanos(here);
        let truth_ns = UNIX_NS + now.0 + (here - clock.counter(now).0);
        let line = clock.course.line();
        let stamp =
            line.map_or(TimeStamp::NONE, |line| clock.stampers[poller].stamp(&line, Nanos(here)));
        Taken { stamp, truth_ns }
    }
}

impl MoverClock {
    /// The mover's counter at virtual time `now`.
    fn counter(&self, now: Nanos) -> Nanos {
        let skew = now.0 as i64 / 1_000 * self.ppm / 1_000;
        Nanos((self.start_ns + now.0).saturating_add_signed(skew))
    }

    /// Reads the system clock.
    fn read(&mut self, rng: &mut Rng, now: Nanos) {
        self.read_at = now.after(rng.pick(&[50 * US, 500 * US, 5 * MS]));
        let bound = self.bound_ns as i64;
        if rng.chance(300_000) {
            self.off_ns = match rng.chance(500_000) {
                true => rng.pick(&[-bound, bound]),
                false => rng.between(0, 2 * self.bound_ns) as i64 - bound,
            };
        }
        // A reading takes its time, and was true at some moment of it.
        let took = rng.below(2 * US);
        let read = (UNIX_NS + now.0 - rng.below(took + 1)).saturating_add_signed(self.off_ns);
        let here = self.counter(now).max(self.taken_at);
        if rng.chance(100_000) {
            // Nobody answers for it, and rightly.
            let wild = read.saturating_add_signed(rng.between(0, 4 * MS) as i64 - 2 * MS as i64);
            self.course.follow(here, wild, None);
        } else {
            let Bounds { earliest_ns, latest_ns } = Bounds::around(read, self.bound_ns);
            let drifted = here.since(self.counter(now));
            let bounds = Bounds { earliest_ns, latest_ns: latest_ns + took + drifted };
            self.course.follow(here, read, Some(bounds));
        }
    }
}

impl Cluster {
    /// The time stamp of an update that a poller takes now.
    pub(super) fn stamp(&mut self, node: usize) -> Option<Taken> {
        if self.times.source == Timestamps::None {
            return None;
        }
        let (id, life) = (self.pollers[node].id, self.pollers[node].life);
        let (mover, poller) = (usize::from(id.mover.0), usize::from(id.poller));
        let taken = self.times.take(self.queue.now(), mover, poller, life);
        self.stats.stamped += u64::from(taken.stamp.time_ns != 0);
        self.stats.stamped_unknown += u64::from(taken.stamp.error_ns == ERROR_UNKNOWN);
        Some(taken)
    }
}
