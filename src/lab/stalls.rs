//! How long hosts stood still after something was done to the lab, by the client's log.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::faults::Kind;
use super::report::{FaultResult, Spread};
use crate::check::log::Log;

/// A write that was issued later than so long after a fault is not put down to it.
pub const WINDOW: Duration = Duration::from_secs(5);
/// Longest stall that is told apart, microseconds: one hour.
const STALL_US_MAX: u64 = 3_600_000_000;

/// For each fault, at these times: the longest time from issue to acknowledgement over the writes that are put down
/// to it. That is the nearest fault to the write's issue, within [`WINDOW`] before it or while it was under way: what
/// stands still does so from a fault on. A write that was never acknowledged counts up to the end of the log.
#[must_use]
pub fn longest_by_fault(log: &Log, at_unix_ns: &[u64]) -> Vec<Duration> {
    let mut faults: Vec<(u64, usize)> = at_unix_ns.iter().copied().zip(0..).collect();
    faults.sort_unstable();
    let mut longest = vec![0; faults.len()];
    for command in log.commands.iter().flatten() {
        let issue = command.issue_unix_ns;
        let end = if command.acknowledged() { command.ack_unix_ns } else { log.last_unix_ns };
        let next = faults.partition_point(|(at, _)| *at <= issue);
        let before = next.checked_sub(1).map(|at| faults[at]);
        let before = before.filter(|(at, _)| u128::from(issue - at) < WINDOW.as_nanos());
        let during = faults.get(next).copied().filter(|(at, _)| *at <= end);
        let nearest =
            [before, during].into_iter().flatten().min_by_key(|(at, _)| at.abs_diff(issue));
        if let Some((_, fault)) = nearest {
            longest[fault] = longest[fault].max(end.saturating_sub(issue));
        }
    }
    longest.into_iter().map(Duration::from_nanos).collect()
}

/// What came of all faults of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stalls {
    /// How many there were.
    pub faults: u64,
    /// The distribution of their longest stalls, milliseconds.
    pub longest_stall_ms: Spread,
    /// The longest time until the lab was whole again, milliseconds.
    pub ready_after_ms_max: u64,
}

/// Sums faults up by kind.
#[must_use]
pub fn by_kind(faults: &[FaultResult]) -> BTreeMap<Kind, Stalls> {
    let mut kinds: BTreeMap<Kind, Vec<&FaultResult>> = BTreeMap::new();
    for fault in faults {
        kinds.entry(fault.kind).or_default().push(fault);
    }
    let sum_up = |faults: Vec<&FaultResult>| {
        let mut stalls_us = Histogram::<u64>::new_with_bounds(1, STALL_US_MAX, 3)
            .expect("constant bounds that the histogram allows");
        for fault in &faults {
            stalls_us.saturating_record(((fault.longest_stall_ms * 1e3) as u64).max(1));
        }
        let at = |quantile| stalls_us.value_at_quantile(quantile) as f64 / 1e3;
        Stalls {
            faults: faults.len() as u64,
            longest_stall_ms: Spread { p50: at(0.5), p99: at(0.99), max: at(1.0) },
            ready_after_ms_max: faults.iter().map(|fault| fault.ready_after_ms).max().unwrap_or(0),
        }
    };
    kinds.into_iter().map(|(kind, faults)| (kind, sum_up(faults))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::block::RunId;
    use crate::check::log::{Event, LogWriter};
    use crate::check::workload::{SizeClass, Workload};

    const S: u64 = 1_000_000_000;

    /// Writes of one writer: issued and acknowledged at these seconds.
    fn log(writes: &[(u64, Option<u64>)], end: u64) -> Log {
        let workload = Workload {
            seed: 1,
            block_bytes: 4096,
            volumes: 1,
            writers: 1,
            span_blocks: 64,
            stripe_blocks: 8,
            hot_permille: 0,
            hot_stripes: 1,
            sizes: vec![SizeClass { blocks: 1, weight: 1 }],
        };
        let mut events: Vec<(u64, u64, Event)> = Vec::new();
        for (sequence, (issue, ack)) in (1..).zip(writes) {
            events.push((*issue, sequence, Event::Issue(workload.extent(0, sequence))));
            events.extend(ack.map(|ack| (ack, sequence, Event::Acknowledge)));
        }
        events.sort_by_key(|(at, _, _)| *at);
        let mut writer = LogWriter::create(Vec::new(), RunId([7; 16]), &workload, 0).unwrap();
        for (at, sequence, event) in events {
            writer.append(0, sequence, event, at * S).unwrap();
        }
        writer.append(0, 0, Event::End, end * S).unwrap();
        Log::read(writer.into_inner().as_slice()).unwrap()
    }

    fn longest(log: &Log, at: &[u64]) -> Vec<u64> {
        let at: Vec<u64> = at.iter().map(|at| at * S).collect();
        longest_by_fault(log, &at).iter().map(Duration::as_secs).collect()
    }

    #[test]
    fn a_stall_is_put_down_to_the_nearest_fault_up_to_5_s_before_it_or_during_it() {
        let log = log(&[(1, Some(2)), (9, Some(13)), (14, Some(16)), (20, Some(29))], 30);
        assert_eq!(longest(&log, &[10]), [4], "under way at that moment, or issued after it");
        assert_eq!(longest(&log, &[16]), [9]);
        assert_eq!(longest(&log, &[3]), [0], "nothing was near");
        assert_eq!(longest(&log, &[19, 16, 10]), [9, 2, 4], "each has its own");
        assert_eq!(longest(&log, &[28, 19]), [0, 9], "it began with the one before");
    }

    #[test]
    fn a_write_without_an_answer_stands_still_to_the_end() {
        let log = log(&[(1, Some(2)), (3, None)], 60);
        assert_eq!(longest(&log, &[2]), [57]);
    }

    #[test]
    fn faults_are_summed_up_by_kind() {
        let fault = |kind, longest_stall_ms, ready_after_ms| FaultResult {
            kind,
            at_ms: 0,
            movers: vec![],
            ready_after_ms,
            longest_stall_ms,
        };
        let kinds = by_kind(&[
            fault(Kind::KillPrimary, 100.0, 900),
            fault(Kind::StopStore, 1.0, 0),
            fault(Kind::KillPrimary, 300.0, 700),
        ]);
        assert_eq!(kinds.len(), 2);
        let kills = kinds[&Kind::KillPrimary];
        assert_eq!((kills.faults, kills.ready_after_ms_max), (2, 900));
        assert!((299.0..301.0).contains(&kills.longest_stall_ms.max), "{kills:?}");
        assert!((99.0..101.0).contains(&kills.longest_stall_ms.p50), "{kills:?}");
    }
}
