//! What a poller does when a turn of its loop finds nothing, and how busy it was.
//!
//! A spinning poller on a core of its own has the least latency. Where movers share cores, one idle
//! neighbour that spins costs milliseconds, so there it yields or sleeps after some empty turns.

use super::clock::cycles;
use std::time::Duration;

/// What to do after empty turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdlePolicy {
    /// Go on at once.
    Spin,
    /// Give the core to others after so many empty turns in a row.
    Yield {
        /// Empty turns before the first yield.
        rounds: u32,
    },
    /// Sleep after so many empty turns in a row.
    Sleep {
        /// Empty turns before the first sleep.
        rounds: u32,
        /// How long.
        sleep: Duration,
    },
}

/// Accounts a poller's turns and idles between them.
#[derive(Debug)]
pub struct Idler {
    policy: IdlePolicy,
    empty: u32,
    last: u64,
    busy: u64,
    idle: u64,
    turns: u64,
}

impl Idler {
    /// Begins to account now.
    #[must_use]
    pub fn new(policy: IdlePolicy) -> Self {
        Self { policy, empty: 0, last: cycles(), busy: 0, idle: 0, turns: 0 }
    }

    /// Ends a turn that did `work` pieces of work; may yield or sleep.
    #[inline]
    pub fn turn(&mut self, work: u64) {
        self.turns += 1;
        let now = cycles();
        let took = now.wrapping_sub(self.last);
        self.last = now;
        if work > 0 {
            self.busy += took;
            self.empty = 0;
            return;
        }
        self.idle += took;
        self.empty = self.empty.saturating_add(1);
        self.rest();
    }

    #[inline]
    fn rest(&mut self) {
        match self.policy {
            IdlePolicy::Spin => std::hint::spin_loop(),
            IdlePolicy::Yield { rounds } if self.empty > rounds => std::thread::yield_now(),
            IdlePolicy::Sleep { rounds, sleep } if self.empty > rounds => std::thread::sleep(sleep),
            IdlePolicy::Yield { .. } | IdlePolicy::Sleep { .. } => std::hint::spin_loop(),
        }
    }

    /// Cycles in turns with work, cycles in turns without and at rest, and turns.
    #[must_use]
    pub fn account(&self) -> (u64, u64, u64) {
        (self.busy, self.idle, self.turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_with_work_are_busy_and_others_idle() {
        let mut idler = Idler::new(IdlePolicy::Spin);
        for work in [1, 0, 5, 0] {
            idler.turn(work);
        }
        let (busy, idle, turns) = idler.account();
        assert_eq!(turns, 4);
        assert!(busy > 0 && idle > 0);
    }
}
