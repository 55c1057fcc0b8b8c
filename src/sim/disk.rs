//! A volume's medium behind a volatile write cache.
//!
//! A block is the unit that never tears; its value is one number ([`super::world`] says which),
//! so volumes of a few dozen blocks make collisions frequent and comparisons cheap. A write that
//! completed is read back at once, but survives a loss of power only after a flush that was
//! submitted after its completion. Until then each block shows, after a loss of power, any of the
//! values it had since the last flush: caches write back in any order. A write in flight at a
//! loss of power, or one that failed, may have reached any subset of its blocks.

use super::prng::Rng;
use crate::proto::types::Extent;
use std::collections::{BTreeMap, VecDeque};

/// Names a command in flight at a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DiskOp(pub u64);

#[derive(Clone, Debug)]
enum Pending {
    Write { lba: u64, values: Vec<u64>, fua: bool },
    Flush { up_to: u64 },
}

/// A volume's medium.
#[derive(Debug)]
pub struct VolumeDisk {
    current: Vec<u64>,
    durable: Vec<u64>,
    /// Writes completed and not flushed, oldest first: block and value.
    dirty: VecDeque<(u32, u64)>,
    /// Dirty entries that ever were; those before `written - dirty.len()` are durable.
    written: u64,
    pending: BTreeMap<DiskOp, Pending>,
}

impl VolumeDisk {
    /// A medium of `blocks` blocks of zeroes.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self {
            current: vec![0; blocks],
            durable: vec![0; blocks],
            dirty: VecDeque::new(),
            written: 0,
            pending: BTreeMap::new(),
        }
    }

    /// What a read returns now, block by block.
    #[must_use]
    pub fn current(&self) -> &[u64] {
        &self.current
    }

    /// What is certain to survive a loss of power; a block may show a newer value then.
    #[must_use]
    pub fn durable(&self) -> &[u64] {
        &self.durable
    }

    /// Submits a write of one value per block.
    pub fn submit_write(&mut self, op: DiskOp, lba: u64, values: Vec<u64>, fua: bool) {
        self.pending.insert(op, Pending::Write { lba, values, fua });
    }

    /// Submits a flush of all writes completed by now.
    pub fn submit_flush(&mut self, op: DiskOp) {
        self.pending.insert(op, Pending::Flush { up_to: self.written });
    }

    /// Carries out a command that succeeds.
    pub fn complete(&mut self, op: DiskOp) {
        match self.pending.remove(&op) {
            None => {}
            Some(Pending::Write { lba, values, fua }) => {
                for (block, value) in (lba as u32..).zip(values) {
                    self.put(block, value);
                    if fua {
                        self.durable[block as usize] = value;
                        self.forget(block);
                    }
                }
            }
            Some(Pending::Flush { up_to }) => {
                while self.written - (self.dirty.len() as u64) < up_to {
                    let Some((block, value)) = self.dirty.pop_front() else { break };
                    self.durable[block as usize] = value;
                }
            }
        }
    }

    /// Ends a command that fails. Returns the extent of a write, whose contents are unknown now:
    /// nothing, some or all of it reached the medium.
    pub fn fail(&mut self, op: DiskOp, rng: &mut Rng) -> Option<Extent> {
        match self.pending.remove(&op)? {
            Pending::Flush { .. } => None,
            Pending::Write { lba, values, .. } => {
                let blocks = values.len() as u32;
                self.partly(lba, values, rng);
                Some(Extent { lba, blocks })
            }
        }
    }

    /// The process that used the disk is gone. What was in flight arrives in any order, or not;
    /// the cache stays.
    pub fn user_died(&mut self, rng: &mut Rng) {
        let mut pending: Vec<_> = std::mem::take(&mut self.pending).into_values().collect();
        rng.shuffle(&mut pending);
        for op in pending {
            if let Pending::Write { lba, values, .. } = op {
                self.partly(lba, values, rng);
            }
        }
    }

    /// Power is lost. Returns how many blocks show an older value than before.
    pub fn power_lost(&mut self, rng: &mut Rng) -> u64 {
        self.user_died(rng);
        // Each block stops at one of its unflushed values, or at none of them. Drawing per
        // entry favours none and the oldest for blocks written often; the mode evens that out.
        let keep_ppm = rng.pick(&[0, 200_000, 500_000, 900_000]);
        let mut stopped = vec![false; self.durable.len()];
        for (block, value) in std::mem::take(&mut self.dirty) {
            let block = block as usize;
            stopped[block] |= !rng.chance(keep_ppm);
            if !stopped[block] {
                self.durable[block] = value;
            }
        }
        let lost = self.durable.iter().zip(&self.current).filter(|(d, c)| d != c).count();
        self.current.copy_from_slice(&self.durable);
        lost as u64
    }

    /// Whether a command is in flight.
    #[must_use]
    pub fn is_pending(&self, op: DiskOp) -> bool {
        self.pending.contains_key(&op)
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn put(&mut self, block: u32, value: u64) {
        self.current[block as usize] = value;
        self.dirty.push_back((block, value));
        self.written += 1;
    }

    /// Drops the unflushed values of a block that is durable, keeping the count of entries.
    fn forget(&mut self, block: u32) {
        let durable = self.durable[block as usize];
        for entry in self.dirty.iter_mut().filter(|entry| entry.0 == block) {
            entry.1 = durable;
        }
    }

    fn partly(&mut self, lba: u64, values: Vec<u64>, rng: &mut Rng) {
        let ppm = rng.pick(&[0, 500_000, 1_000_000]);
        for (block, value) in (lba as u32..).zip(values) {
            if rng.chance(ppm) {
                self.put(block, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &mut VolumeDisk, lba: u64, value: u64) {
        disk.submit_write(DiskOp(1), lba, vec![value, value], false);
        disk.complete(DiskOp(1));
    }

    #[test]
    fn only_flushed_writes_are_certain_to_survive() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = VolumeDisk::new(4);
            write(&mut disk, 0, 7);
            disk.submit_flush(DiskOp(2));
            write(&mut disk, 1, 8);
            disk.complete(DiskOp(2));
            assert_eq!(disk.current(), [7, 8, 8, 0]);
            assert_eq!(disk.durable(), [7, 7, 0, 0], "a flush covers what was complete before it");
            disk.power_lost(&mut Rng::new(seed));
            assert_eq!(disk.current(), disk.durable());
            assert_eq!((disk.current()[0], disk.current()[3]), (7, 0));
            outcomes.insert((disk.current()[1], disk.current()[2]));
        }
        assert_eq!(outcomes.len(), 4, "each block is kept or lost by itself: {outcomes:?}");
    }

    #[test]
    fn a_write_in_flight_may_tear_between_blocks() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = VolumeDisk::new(2);
            disk.submit_write(DiskOp(1), 0, vec![1, 2], false);
            disk.user_died(&mut Rng::new(seed));
            assert_eq!(disk.in_flight(), 0);
            outcomes.insert(disk.current().to_vec());
        }
        assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    }

    #[test]
    fn forced_unit_access_survives_and_is_not_undone_by_a_later_flush() {
        let mut disk = VolumeDisk::new(2);
        write(&mut disk, 0, 5);
        disk.submit_write(DiskOp(2), 0, vec![6], true);
        disk.complete(DiskOp(2));
        assert_eq!(disk.durable()[0], 6);
        disk.submit_flush(DiskOp(3));
        disk.complete(DiskOp(3));
        assert_eq!(disk.durable(), [6, 5]);
    }

    #[test]
    fn a_failed_write_says_where_the_medium_is_unknown() {
        let mut disk = VolumeDisk::new(4);
        disk.submit_write(DiskOp(1), 2, vec![9], false);
        assert_eq!(disk.fail(DiskOp(1), &mut Rng::new(1)), Some(Extent { lba: 2, blocks: 1 }));
    }
}
