//! The history of a run: a hash over everything that happened, and, when a run is replayed to be
//! read, its last lines.
//!
//! Hashing numbers costs nanoseconds, formatting costs microseconds; a history replays exactly,
//! so text is made only in the second run of a seed that failed.

use crate::proto::types::Nanos;
use std::collections::VecDeque;
use std::fmt;

/// Collects the history.
pub struct Trace {
    hash: u64,
    notes: u64,
    tail: Option<(usize, VecDeque<String>)>,
}

impl Trace {
    /// A trace that keeps the last `tail` lines as text; none when 0.
    #[must_use]
    pub fn new(tail: usize) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            notes: 0,
            tail: (tail > 0).then(|| (tail, VecDeque::new())),
        }
    }

    /// Notes what happened: `kind` and `values` go into the hash, `text` is made only when lines
    /// are kept.
    #[inline]
    pub fn note<const N: usize>(
        &mut self,
        now: Nanos,
        kind: u8,
        values: [u64; N],
        text: impl FnOnce(&mut dyn fmt::Write) -> fmt::Result,
    ) {
        self.notes += 1;
        let mut hash = mix(self.hash ^ now.0 ^ (u64::from(kind) << 56));
        for value in values {
            hash = mix(hash ^ value);
        }
        self.hash = hash;
        if let Some((limit, lines)) = &mut self.tail {
            let mut line = format!("{:>13.3} us  ", now.0 as f64 / 1000.0);
            // Writing to a string does not fail.
            let _ = text(&mut line);
            if lines.len() == *limit {
                lines.pop_front();
            }
            lines.push_back(line);
        }
    }

    /// The hash of everything noted so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many notes were taken.
    #[must_use]
    pub fn notes(&self) -> u64 {
        self.notes
    }

    /// The kept lines, oldest first.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.tail.map(|(_, lines)| lines.into()).unwrap_or_default()
    }
}

#[inline]
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_time_kind_values_and_order_not_on_text() {
        let hash = |notes: &[(u64, u8, u64)], tail| {
            let mut trace = Trace::new(tail);
            for (at, kind, value) in notes {
                trace.note(Nanos(*at), *kind, [*value], |out| write!(out, "{value}"));
            }
            trace.hash()
        };
        let base = hash(&[(1, 1, 1), (2, 2, 2)], 0);
        assert_eq!(base, hash(&[(1, 1, 1), (2, 2, 2)], 9));
        for other in [[(1, 1, 1), (2, 2, 3)], [(1, 1, 1), (3, 2, 2)], [(1, 2, 1), (2, 1, 2)]] {
            assert_ne!(base, hash(&other, 0));
        }
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut trace = Trace::new(2);
        for i in 0..5_u64 {
            trace.note(Nanos(i), 0, [i], |out| write!(out, "line {i}"));
        }
        let lines = trace.into_lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("line 3") && lines[1].ends_with("line 4"));
    }
}
