//! The clocks of simulated movers, and the time stamps that updates get from them (G8).
//!
//! Virtual time is the truth, for groups that are stamped by the clock. A mover has a counter of its own, which runs fast or slow, and a system
//! clock that is off: by as much as it claims to be at most, as often as not. It is put right, put
//! back, or left alone for a while, and now and then the kernel does not answer for it. All choices come
//! from a stream of their own, so a history is the same one with these stamps and without.
//!
//! For groups that are stamped by the common timer the truth is what that shows, wherever it is. Its messages
//! are part of the history; and since it is all about what movers' counters make of the time between two
//! messages, the machines of primary movers live by these counters then.

use super::cluster::Cluster;
use super::prng::Rng;
use super::profile::{MS, US};
use crate::config::Timestamps;
use crate::proto::sabotage::Sabotage;
use crate::proto::time::{Bounds, Course, ERROR_UNKNOWN, Line, Stamper, TimeStamp};
use crate::proto::timer::{Timer, TimerConfig};
use crate::proto::types::{Epoch, Nanos};

/// The Unix time at which histories begin, nanoseconds.
const UNIX_NS: u64 = 1_795_000_000_000_000_000;
/// Counters are off by so many parts in a million at most.
const COUNTER_PPM: u64 = 110;
/// Two stamps of a mover are not taken nearer together than this, by its counter.
const TAKING_NS: u64 = 4;
/// Between an answer of the common timer and the next ask.
const ASK_NS: u64 = 300 * US;
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
    /// The Unix time at 0 of the counter, as the mover had it from its system clock.
    unix_offset_ns: u64,
}

/// Where the common timer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reign {
    epoch: Epoch,
    mover: usize,
    /// When it began there, by the counter, and what it showed.
    began: (Nanos, u64),
}

/// All movers' clocks.
#[derive(Debug)]
pub(super) struct Times {
    rng: Rng,
    source: Timestamps,
    clocks: Vec<MoverClock>,
    reign: Option<Reign>,
    sabotage: Sabotage,
}

/// An update's time stamp, and when it was really taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// What the record says.
    pub(super) stamp: TimeStamp,
    /// The truth, Unix nanoseconds; none of a mover that was excluded, whose stamps nobody gets to see.
    pub(super) truth_ns: Option<u64>,
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
            let start_ns = rng.below(1 << 40);
            MoverClock {
                start_ns,
                ppm: rng.between(0, 2 * COUNTER_PPM) as i64 - COUNTER_PPM as i64,
                off_ns: 0,
                bound_ns,
                life: 0,
                course: Course::new(BEND_NS, sabotage),
                read_at: Nanos(0),
                taken_at: Nanos(0),
                stampers: vec![Stamper::default(); usize::from(pollers)],
                unix_offset_ns: UNIX_NS - start_ns + rng.below(10 * MS),
            }
        });
        let clocks = clocks.collect();
        Self { rng, source, clocks, reign: None, sabotage }
    }

    /// The stamp of an update that a poller of a mover, in its present life, takes now, by `common` if that
    /// is not none, and otherwise by the clock.
    fn take(
        &mut self,
        now: Nanos,
        (mover, poller): (usize, usize),
        life: u32,
        common: Option<Option<Line>>,
    ) -> Taken {
        let Self { rng, clocks, .. } = self;
        let clock = &mut clocks[mover];
        if clock.life != life {
            clock.life = life;
            clock.course = clock.course.anew();
            clock.stampers.fill(Stamper::default());
            clock.read_at = now;
        }
        if common.is_none() && clock.read_at <= now {
            clock.read(rng, now);
        }
        // Time goes on while a poller takes one update after the other.
        let here = clock.counter(now).0.max(clock.taken_at.0 + TAKING_NS);
        clock.taken_at = Nanos(here);
        let later = here - clock.counter(now).0;
        let line = common.unwrap_or(clock.course.line());
        let stamp =
            line.map_or(TimeStamp::NONE, |line| clock.stampers[poller].stamp(&line, Nanos(here)));
        let truth_ns = match common {
            Some(_) => self.common_ns(now).map(|shown| shown + later),
            None => Some(UNIX_NS + now.0 + later),
        };
        Taken { stamp, truth_ns }
    }
}

impl Times {
    /// What the common timer shows.
    fn common_ns(&self, now: Nanos) -> Option<u64> {
        let Reign { mover, began: (at, shown), .. } = self.reign?;
        Some(shown + self.clocks[mover].counter(now).since(at))
    }
}

impl MoverClock {
    /// The first moment of virtual time at which the counter is at `here`.
    fn virtual_time(&self, here: Nanos) -> Nanos {
        let run = i128::from(here.since(Nanos(self.start_ns)));
        let about = run - run * i128::from(self.ppm) / (1_000_000 + i128::from(self.ppm)) - 4;
        let mut now = Nanos(about.max(0) as u64);
        while self.counter(now) < here {
            now = now.after(1);
        }
        now
    }

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
    /// The time as a poller has it.
    pub(super) fn here(&self, node: usize) -> Nanos {
        let now = self.queue.now();
        match self.clock_of(node) {
            Some(clock) => clock.counter(now),
            None => now,
        }
    }

    /// When a poller wants to be woken.
    pub(super) fn next_timeout(&self, node: usize) -> Nanos {
        let (machines, links) = self.pollers[node].next_timeouts();
        let machines = match self.clock_of(node) {
            Some(clock) if machines != Nanos::NEVER => clock.virtual_time(machines),
            _ => machines,
        };
        machines.min(links)
    }

    /// The clock that a poller's machines live by; none for virtual time.
    fn clock_of(&self, node: usize) -> Option<&MoverClock> {
        let common = self.times.source == Timestamps::Common && node < self.primaries;
        common.then(|| &self.times.clocks[usize::from(self.pollers[node].id.mover.0)])
    }

    /// The part in the common timer of a poller that starts in an epoch.
    pub(super) fn timer(&self, node: usize, epoch: Epoch) -> Option<Timer> {
        let me = self.pollers[node].id;
        let clock = self.clock_of(node).filter(|_| me.poller == 0)?;
        let record = self.site.latest();
        Some(Timer::new(&TimerConfig {
            me,
            coordinator: record.coordinator,
            epoch,
            members: record.members.clone(),
            unix_offset_ns: clock.unix_offset_ns,
            ask_ns: ASK_NS,
            bend_ns: BEND_NS,
            sabotage: self.times.sabotage,
        }))
    }

    /// Notes when the common timer begins at a poller.
    pub(super) fn timer_of(&mut self, node: usize) {
        let Some(machines) = &self.pollers[node].node else { return };
        let Some(began) = machines.timer().and_then(Timer::serves) else { return };
        let (epoch, mover) = (machines.epoch(), usize::from(self.pollers[node].id.mover.0));
        let known = self.times.reign;
        if known.is_some_and(|known| (known.mover, known.began) == (mover, began))
            || known.is_some_and(|known| known.epoch >= epoch)
        {
            // The same; or one that has been left behind.
            return;
        }
        self.stats.timers += 1;
        self.times.reign = Some(Reign { epoch, mover, began });
    }

    /// The time stamp of an update that a poller takes now.
    pub(super) fn stamp(&mut self, node: usize) -> Option<Taken> {
        if self.times.source == Timestamps::None {
            return None;
        }
        let (id, life) = (self.pollers[node].id, self.pollers[node].life);
        let (mover, poller) = (usize::from(id.mover.0), usize::from(id.poller));
        let common = (self.times.source == Timestamps::Common).then(|| {
            // The pollers of a mover share what the first one knows.
            let first = self.shards_of(id.mover).start;
            let timer = self.pollers[first].node.as_ref().and_then(|machines| machines.timer());
            timer.and_then(Timer::line)
        });
        let mut taken = self.times.take(self.queue.now(), (mover, poller), life, common);
        if !self.site.latest().members.contains(&id.mover) {
            taken.truth_ns = None;
        }
        self.stats.stamped += u64::from(taken.stamp.time_ns != 0);
        self.stats.stamped_unknown += u64::from(taken.stamp.error_ns == ERROR_UNKNOWN);
        Some(taken)
    }
}
