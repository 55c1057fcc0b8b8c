//! What is seen of a lab while it runs: the recovery point over time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::cluster::Cluster;
use super::writer::Progress;
use crate::config::Role;
use crate::control::model::GroupStatus;

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_millis(100);
/// Longest recovery point that is told apart, microseconds: one day.
const RECOVERY_POINT_US_MAX: u64 = 86_400_000_000;

/// The lab at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// When, from the start of writing.
    pub at_ms: u64,
    /// Writes acknowledged.
    pub acked_writes: u64,
    /// Age of the last set that the secondary could fail over to.
    pub recovery_point_ms: f64,
    /// Newest set applied.
    pub applied_set: u64,
}

/// Takes samples.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    samples: Vec<Sample>,
    recovery_points_us: Histogram<u64>,
    /// The last recovery point that was heard, and when.
    heard: Option<(f64, Instant)>,
    applied_set: u64,
}

impl Watch {
    /// Starts the clock.
    #[must_use]
    pub fn start(now: Instant) -> Self {
        Self {
            start: now,
            samples: Vec::new(),
            recovery_points_us: Histogram::new_with_bounds(1, RECOVERY_POINT_US_MAX, 3)
                .expect("constant bounds that the histogram allows"),
            heard: None,
            applied_set: 0,
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Takes a sample: asks the secondary movers until one knows its consistency point.
    pub fn sample(&mut self, cluster: &Cluster, progress: &Progress) {
        let names = cluster.names(Role::Secondary);
        let group = names.iter().find_map(|name| {
            let status = cluster.status(name).ok()?;
            status.groups.into_iter().find(|group| group.recovery_point_ms.is_some())
        });
        self.record(Instant::now(), group.as_ref(), progress.acked_writes);
    }

    /// Records what was heard. A secondary that does not answer (it was killed) has the point it
    /// had, and that grows older.
    fn record(&mut self, now: Instant, group: Option<&GroupStatus>, acked_writes: u64) {
        if let Some(group) = group
            && let Some(point_ms) = group.recovery_point_ms
        {
            self.heard = Some((point_ms, now));
            self.applied_set = self.applied_set.max(group.sets.applied);
        }
        let Some((point_ms, heard_at)) = self.heard else { return };
        let recovery_point_ms = point_ms + (now - heard_at).as_secs_f64() * 1e3;
        self.recovery_points_us.saturating_record(((recovery_point_ms * 1e3) as u64).max(1));
        self.samples.push(Sample {
            at_ms: self.elapsed(now).as_millis() as u64,
            acked_writes,
            recovery_point_ms,
            applied_set: self.applied_set,
        });
    }

    /// The last sample.
    #[must_use]
    pub fn last(&self) -> Option<&Sample> {
        self.samples.last()
    }

    /// All samples, in order.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The distribution of recovery points over time, microseconds.
    #[must_use]
    pub fn recovery_points_us(&self) -> &Histogram<u64> {
        &self.recovery_points_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_secondary_grows_older() {
        let start = Instant::now();
        let mut watch = Watch::start(start);
        watch.record(start, None, 0);
        assert!(watch.last().is_none(), "nothing is known before the first point");
        watch.heard = Some((30.0, start));
        watch.record(start + Duration::from_millis(500), None, 9);
        let last = *watch.last().unwrap();
        assert_eq!((last.at_ms, last.recovery_point_ms, last.acked_writes), (500, 530.0, 9));
    }
}
