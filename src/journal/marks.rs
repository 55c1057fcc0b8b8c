//! Where units start: what the tail may be moved to.

use std::collections::VecDeque;

/// Unit starts, ascending, in bounded memory. When there are too many, only every
/// second is kept, then every fourth, and so on: room is then given back a little
/// later.
#[derive(Debug)]
pub(super) struct Marks {
    /// Ordinal of the unit, and where it starts.
    starts: VecDeque<(u64, u64)>,
    units: u64,
    /// Of so many units one is noted; a power of two.
    stride: u64,
}

/// Enough for 6 GiB of full units before any is left out, in 256 KiB.
const MARKS_MAX: usize = 1 << 14;

impl Marks {
    pub(super) fn new() -> Self {
        Self { starts: VecDeque::with_capacity(MARKS_MAX), units: 0, stride: 1 }
    }

    /// Notes that a unit starts at this logical block, after all noted before.
    pub(super) fn push(&mut self, start: u64) {
        debug_assert!(self.starts.back().is_none_or(|(_, last)| *last < start));
        if self.starts.len() == MARKS_MAX {
            self.stride *= 2;
            let stride = self.stride;
            self.starts.retain(|(unit, _)| unit.is_multiple_of(stride));
        }
        if self.units.is_multiple_of(self.stride) {
            self.starts.push_back((self.units, start));
        }
        self.units += 1;
    }

    /// The last start noted that is not after `block`; forgets all before it.
    pub(super) fn retire(&mut self, block: u64) -> Option<u64> {
        while self.starts.get(1).is_some_and(|(_, next)| *next <= block) {
            self.starts.pop_front();
        }
        if self.starts.len() < MARKS_MAX / 4 {
            self.stride = (self.stride / 2).max(1);
        }
        self.starts.front().map(|(_, start)| *start).filter(|start| *start <= block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_start_not_after_a_block_is_found() {
        let mut marks = Marks::new();
        [10, 20, 30].into_iter().for_each(|start| marks.push(start));
        assert_eq!(marks.retire(9), None);
        assert_eq!(marks.retire(29), Some(20));
        assert_eq!(marks.retire(29), Some(20));
        assert_eq!(marks.retire(1000), Some(30));
    }

    #[test]
    fn many_starts_are_thinned_evenly_and_never_overshoot() {
        let mut marks = Marks::new();
        let count = 5 * MARKS_MAX as u64;
        (0..count).for_each(|unit| marks.push(unit * 7));
        assert!(marks.starts.len() <= MARKS_MAX);
        let mut last = 0;
        for block in (0..count * 7).step_by(701) {
            let start = marks.retire(block).unwrap();
            assert!(start <= block && start >= last && start.is_multiple_of(7));
            assert!(block - start <= 7 * 8, "coarse by few units");
            last = start;
        }
        assert_eq!(marks.stride, 1, "fine again when few are left");
    }
}
