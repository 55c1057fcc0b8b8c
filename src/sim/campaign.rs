//! Many seeds: runs them on some threads, adds up what they did, keeps what failed.

use super::cluster::{Outcome, run};
use super::coverage::Coverage;
use super::profile::Knobs;
use super::stats::Stats;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The first seed; the others follow it.
    pub first: u64,
    /// How many; `u64::MAX` with only a time limit.
    pub seeds: u64,
    /// No new seed is begun after so long.
    pub time: Option<Duration>,
    /// Threads.
    pub jobs: usize,
    /// Stop after so many failed seeds.
    pub failures_max: usize,
    /// What the command line fixes.
    pub knobs: Knobs,
}

/// What a campaign found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Seeds that ran to their end.
    pub seeds: u64,
    /// What they did in all.
    pub stats: Stats,
    /// What met what.
    pub coverage: Coverage,
    /// Wrapping sum of their trace hashes: two runs of the same seeds agree in it.
    pub hash: u64,
    /// Those that broke an invariant, by seed.
    pub failures: Vec<Outcome>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Campaign {
    /// Runs the seeds; `progress` is told the number of seeds done so far, now and then.
    #[must_use]
    pub fn run(&self, progress: impl Fn(u64) + Sync) -> Findings {
        let start = Instant::now();
        let next = AtomicU64::new(0);
        let done = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let findings = Mutex::new(Findings::default());
        let work = || {
            let mut own = Findings::default();
            while !stop.load(Ordering::Relaxed)
                && self.time.is_none_or(|limit| start.elapsed() < limit)
            {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.seeds {
                    break;
                }
                let outcome = run(self.first.wrapping_add(index), &self.knobs, 0);
                own.seeds += 1;
                own.stats.add(&outcome.stats);
                own.coverage.add(&outcome.coverage);
                own.hash = own.hash.wrapping_add(outcome.hash);
                if outcome.violation.is_some() {
                    own.failures.push(outcome);
                    if own.failures.len() >= self.failures_max {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done.is_multiple_of(16) {
                    progress(done);
                }
            }
            let mut all = findings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            all.seeds += own.seeds;
            all.stats.add(&own.stats);
            all.coverage.add(&own.coverage);
            all.hash = all.hash.wrapping_add(own.hash);
            all.failures.append(&mut own.failures);
        };
        std::thread::scope(|scope| {
            for _ in 1..self.jobs.max(1) {
                scope.spawn(work);
            }
            work();
        });
        let mut findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        findings.failures.sort_by_key(|outcome| outcome.seed);
        findings.elapsed = start.elapsed();
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_find_what_one_finds() {
        let campaign = |jobs| Campaign {
            first: 100,
            seeds: 12,
            time: None,
            jobs,
            failures_max: 1,
            knobs: Knobs { updates: Some(30), ..Knobs::default() },
        };
        let (one, two) = (campaign(1).run(|_| {}), campaign(2).run(|_| {}));
        assert_eq!((one.seeds, one.hash), (12, two.hash));
        assert_eq!(one.stats.list(), two.stats.list());
        assert!(one.failures.is_empty());
    }
}
