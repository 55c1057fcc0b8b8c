//! A device of bytes behind a volatile write cache, for the journals.
//!
//! 4 KiB are the unit that never tears. A write that completed is read back at once, but survives a
//! loss of power only after a flush that was submitted after its completion. Until then a loss of
//! power keeps any of its blocks, and any of those of writes in flight. Blocks are shared between
//! what is read and what is durable, so a flush moves references.

use super::disk::DiskOp;
use super::prng::Rng;
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes that are written whole or not at all.
pub const BLOCK: usize = 4096;

type Block = Option<Rc<[u8]>>;

/// A write that a loss of power may undo.
#[derive(Clone, Debug)]
struct Unflushed {
    op: DiskOp,
    /// Where, in blocks, and what.
    blocks: Vec<(usize, Rc<[u8]>)>,
    completed: bool,
    /// The flush that will make it durable.
    flush: Option<DiskOp>,
}

impl Unflushed {
    /// Leaves any selection of its blocks on the device.
    fn arrive_in_part(&mut self, rng: &mut Rng, current: &mut [Block]) {
        self.completed = true;
        let ppm = rng.pick(&[0, 500_000, 1_000_000]);
        self.blocks.retain(|_| rng.chance(ppm));
        for (at, block) in &self.blocks {
            current[*at] = Some(block.clone());
        }
    }
}

/// The device. It belongs to the mover's machine and outlives the mover's process.
#[derive(Clone, Debug)]
pub struct ByteDisk {
    current: Vec<Block>,
    durable: Vec<Block>,
    /// In the order of submission.
    unflushed: VecDeque<Unflushed>,
}

impl ByteDisk {
    /// A device of `bytes` zeroes; whole blocks.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let blocks = bytes as usize / BLOCK;
        Self {
            current: vec![None; blocks],
            durable: vec![None; blocks],
            unflushed: VecDeque::new(),
        }
    }

    /// Bytes of the device.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.current.len() * BLOCK) as u64
    }

    /// Reads into `to` from `offset` on, both multiples of [`BLOCK`].
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        let first = offset as usize / BLOCK;
        for (index, to) in to.chunks_exact_mut(BLOCK).enumerate() {
            match self.current.get(first + index) {
                Some(Some(block)) => to.copy_from_slice(block),
                _ => to.fill(0),
            }
        }
    }

    /// Submits a write of whole blocks. False when it reaches beyond the device.
    #[must_use]
    pub fn submit_write(&mut self, op: DiskOp, offset: u64, bytes: &[u8]) -> bool {
        let first = offset as usize / BLOCK;
        let blocks = bytes.chunks_exact(BLOCK).enumerate();
        let blocks: Vec<_> = blocks.map(|(i, block)| (first + i, Rc::from(block))).collect();
        let fits = first + blocks.len() <= self.current.len();
        if fits {
            self.unflushed.push_back(Unflushed { op, blocks, completed: false, flush: None });
        }
        fits
    }

    /// The write is complete: it is read back from now on. Returns what it wrote.
    pub fn complete_write(&mut self, op: DiskOp) {
        for write in self.unflushed.iter_mut().filter(|write| write.op == op) {
            write.completed = true;
            for (at, block) in &write.blocks {
                self.current[*at] = Some(block.clone());
            }
        }
    }

    /// What a write in flight carries, block by block.
    pub fn in_flight(&self, op: DiskOp) -> impl Iterator<Item = &[u8]> {
        let write = self.unflushed.iter().find(|write| write.op == op && !write.completed);
        write.into_iter().flat_map(|write| write.blocks.iter().map(|(_, block)| &block[..]))
    }

    /// Submits a flush of all writes completed by now.
    pub fn submit_flush(&mut self, op: DiskOp) {
        for write in self.unflushed.iter_mut().filter(|write| write.completed) {
            write.flush.get_or_insert(op);
        }
    }

    /// The flush is complete. Returns the writes that became durable.
    pub fn complete_flush(&mut self, op: DiskOp) -> Vec<DiskOp> {
        let mut flushed = Vec::new();
        let durable = &mut self.durable;
        self.unflushed.retain_mut(|write| {
            let done = write.flush == Some(op);
            if done {
                flushed.push(write.op);
                for (at, block) in write.blocks.drain(..) {
                    durable[at] = Some(block);
                }
            }
            !done
        });
        flushed
    }

    /// The process that used the device is gone. What was in flight arrives in part; the cache
    /// stays.
    pub fn user_died(&mut self, rng: &mut Rng) {
        for index in 0..self.unflushed.len() {
            let write = &mut self.unflushed[index];
            write.flush = None;
            if write.completed {
                continue;
            }
            write.arrive_in_part(rng, &mut self.current);
        }
    }

    /// The write fails: any of its blocks are there all the same.
    pub fn fail_write(&mut self, op: DiskOp, rng: &mut Rng) {
        for write in self.unflushed.iter_mut().filter(|write| write.op == op) {
            write.arrive_in_part(rng, &mut self.current);
        }
    }

    /// Power is lost. Returns how many unflushed blocks are lost.
    pub fn power_lost(&mut self, rng: &mut Rng) -> u64 {
        let keep_ppm = rng.pick(&[0, 200_000, 500_000, 900_000, 1_000_000]);
        let mut lost = 0;
        for write in std::mem::take(&mut self.unflushed) {
            for (at, block) in write.blocks {
                if rng.chance(keep_ppm) {
                    self.durable[at] = Some(block);
                } else {
                    lost += 1;
                }
            }
        }
        self.current.clone_from(&self.durable);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 2 * BLOCK;

    fn disk(writes: &[(u64, u8)]) -> ByteDisk {
        let mut disk = ByteDisk::new(4 * BLOCK as u64);
        for (op, value) in writes {
            assert!(disk.submit_write(DiskOp(*op), BLOCK as u64, &[*value; BYTES]));
        }
        disk
    }

    fn shown(disk: &ByteDisk) -> [u8; 4] {
        let mut bytes = vec![0xEE; 4 * BLOCK];
        disk.read(0, &mut bytes);
        std::array::from_fn(|block| {
            let block = &bytes[block * BLOCK..][..BLOCK];
            assert!(block.iter().all(|byte| *byte == block[0]), "a block is never torn");
            block[0]
        })
    }

    #[test]
    fn a_flush_covers_what_was_complete_when_it_was_submitted() {
        let mut disk = disk(&[(1, 7), (2, 8)]);
        assert_eq!(shown(&disk), [0; 4], "in flight");
        disk.complete_write(DiskOp(1));
        disk.submit_flush(DiskOp(3));
        disk.complete_write(DiskOp(2));
        assert_eq!(shown(&disk), [0, 8, 8, 0]);
        assert_eq!(disk.complete_flush(DiskOp(3)), [DiskOp(1)]);
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut crashed = disk.clone();
            crashed.power_lost(&mut Rng::new(seed));
            outcomes.insert(shown(&crashed));
        }
        let expected = [[0, 7, 7, 0], [0, 7, 8, 0], [0, 8, 7, 0], [0, 8, 8, 0]];
        assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_killed_user_leaves_the_cache_and_parts_of_what_was_in_flight() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = disk(&[(1, 7), (2, 8)]);
            disk.complete_write(DiskOp(1));
            disk.user_died(&mut Rng::new(seed));
            let before = shown(&disk);
            disk.submit_flush(DiskOp(3));
            disk.complete_flush(DiskOp(3));
            disk.power_lost(&mut Rng::new(seed));
            assert_eq!(shown(&disk), before, "flushed by the next user");
            outcomes.insert(before);
        }
        assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    }

    #[test]
    fn a_failed_write_leaves_any_of_its_blocks_and_no_more() {
        let mut outcomes = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut disk = disk(&[(1, 7), (2, 8)]);
            disk.fail_write(DiskOp(1), &mut Rng::new(seed));
            outcomes.insert(shown(&disk));
        }
        assert_eq!(outcomes.len(), 4, "{outcomes:?}");
        assert!(outcomes.iter().flatten().all(|value| [0, 7].contains(value)));
    }

    #[test]
    fn a_write_beyond_the_end_is_refused() {
        let mut disk = ByteDisk::new(4 * BLOCK as u64);
        assert!(!disk.submit_write(DiskOp(1), 3 * BLOCK as u64, &[1; BYTES]));
        assert_eq!(disk.bytes(), 4 * BLOCK as u64);
    }
}
