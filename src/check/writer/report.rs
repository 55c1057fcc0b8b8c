//! What a run of the writer reports.

use super::super::block::RunId;
use super::super::images::Floor;
use super::super::target::{PathCounts, Status};
use super::super::workload::Workload;
use super::WriterOptions;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// Longest latency that is told apart, in nanoseconds: ten minutes.
const LATENCY_MAX_NS: u64 = 600_000_000_000;

/// Distribution of latencies, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub min: u64,
    pub mean: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            mean: histogram.mean() as u64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// What a run did, so far or in all.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The run.
    pub run: RunId,
    /// Its parameters.
    pub workload: Workload,
    /// Commands in flight per logical writer.
    pub queue_depth: u16,
    /// From the start to now, or to the last acknowledgement when stopped.
    pub seconds: f64,
    /// Writes issued.
    pub issued_writes: u64,
    /// Writes acknowledged.
    pub acked_writes: u64,
    /// Bytes acknowledged.
    pub bytes: u64,
    /// Acknowledged writes per second.
    pub writes_per_s: f64,
    /// From issue to acknowledgement, all that was sent again among it: the longest is the longest
    /// that a host's write stood still.
    pub write_latency_ns: Latency,
    /// Paths that were lost, and what was sent again, without an error.
    pub paths: PathCounts,
    /// Error completions received.
    pub host_errors: u64,
    /// The same by status.
    pub errors_by_status: BTreeMap<String, u64>,
    /// Commands without success at the end: in flight, or to be retried.
    pub unfinished_writes: u64,
    /// Logical writers that gave up after too many errors.
    pub writers_halted: u64,
    /// Reads of other writers' blocks.
    pub reads: u64,
    /// Of those, the ones that returned a write before its acknowledgement.
    pub observed_before_ack: u64,
    /// Of those, the ones that returned less than had been acknowledged or read before.
    pub stale_reads: u64,
    /// Of those, the ones that returned a damaged or foreign block.
    pub corrupt_reads: u64,
    /// What is acknowledged.
    pub floor: Floor,
}

/// Running counts.
#[derive(Debug)]
pub(super) struct Counters {
    start_ns: u64,
    last_ack_ns: u64,
    pub(super) issued: u64,
    acked: u64,
    bytes: u64,
    errors: BTreeMap<Status, u64>,
    pub(super) reads: u64,
    pub(super) observed: u64,
    pub(super) stale_reads: u64,
    pub(super) corrupt_reads: u64,
    pub(super) paths: PathCounts,
    latency: Histogram<u64>,
}

impl Counters {
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            start_ns: now_ns,
            last_ack_ns: now_ns,
            issued: 0,
            acked: 0,
            bytes: 0,
            errors: BTreeMap::new(),
            reads: 0,
            observed: 0,
            stale_reads: 0,
            corrupt_reads: 0,
            paths: PathCounts::default(),
            latency: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
                .expect("constant bounds that the histogram allows"),
        }
    }

    pub(super) fn acked(&mut self, bytes: u64, issue_ns: u64, now_ns: u64) {
        self.acked += 1;
        self.bytes += bytes;
        self.last_ack_ns = now_ns;
        self.latency.saturating_record(now_ns.saturating_sub(issue_ns).max(1));
    }

    pub(super) fn error(&mut self, status: Status) {
        *self.errors.entry(status).or_default() += 1;
    }

    pub(super) fn report(
        &self,
        options: &WriterOptions,
        floor: Floor,
        halted: usize,
        unfinished: usize,
    ) -> Report {
        let seconds = self.last_ack_ns.saturating_sub(self.start_ns) as f64 / 1e9;
        Report {
            run: options.run,
            workload: options.workload.clone(),
            queue_depth: options.queue_depth,
            seconds,
            issued_writes: self.issued,
            acked_writes: self.acked,
            bytes: self.bytes,
            writes_per_s: if seconds > 0.0 { self.acked as f64 / seconds } else { 0.0 },
            write_latency_ns: Latency::of(&self.latency),
            paths: self.paths,
            host_errors: self.errors.values().sum(),
            errors_by_status: self
                .errors
                .iter()
                .map(|(status, count)| (status.to_string(), *count))
                .collect(),
            unfinished_writes: unfinished as u64,
            writers_halted: halted as u64,
            reads: self.reads,
            observed_before_ack: self.observed,
            stale_reads: self.stale_reads,
            corrupt_reads: self.corrupt_reads,
            floor,
        }
    }
}
