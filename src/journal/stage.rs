//! The stage: memory that a device can reach, in which unit headers, small payloads
//! and superblocks are put together before they are written, and into which
//! recovery reads.
//!
//! ```text
//!   block 0      zeros, the padding behind payloads
//!   block 1      the superblock being written
//!   block 2 ...  taken round and round by units, given back in the same order
//! ```

use super::format::BLOCK_BYTES;

/// Blocks that units do not take.
pub(super) const RESERVED_BLOCKS: usize = 2;
/// Where zeros are.
pub(super) const ZEROS_AT: usize = 0;
/// Where the superblock is put together.
pub(super) const SUPERBLOCK_AT: usize = BLOCK_BYTES;

#[derive(Debug)]
pub(super) struct Stage<M> {
    memory: M,
    /// Blocks that units share.
    blocks: usize,
    /// Next block to be taken, in 0..blocks.
    next: usize,
    /// Blocks taken and not given back, the skipped ones included.
    taken: usize,
}

impl<M: AsRef<[u8]> + AsMut<[u8]>> Stage<M> {
    pub(super) fn new(mut memory: M) -> Self {
        let blocks = (memory.as_ref().len() / BLOCK_BYTES).saturating_sub(RESERVED_BLOCKS);
        memory.as_mut()[..RESERVED_BLOCKS * BLOCK_BYTES].fill(0);
        Self { memory, blocks, next: 0, taken: 0 }
    }

    pub(super) fn memory(&self) -> &[u8] {
        self.memory.as_ref()
    }

    pub(super) fn memory_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut()
    }

    pub(super) fn into_memory(self) -> M {
        self.memory
    }

    pub(super) fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        &mut self.memory.as_mut()[at..][..len]
    }

    /// Blocks to skip from `next` so that `count` lie together.
    fn skip(&self, next: usize, count: usize) -> usize {
        if next + count <= self.blocks { 0 } else { self.blocks - next }
    }

    /// Whether these many neighbouring blocks could be taken, one run after another.
    pub(super) fn fits(&self, runs: &[usize]) -> bool {
        let (mut next, mut taken) = (self.next, self.taken);
        for count in runs {
            let skip = self.skip(next, *count);
            taken += skip + count;
            if *count > self.blocks || taken > self.blocks {
                return false;
            }
            next = if skip > 0 { *count } else { next + count } % self.blocks;
        }
        true
    }

    /// Takes `count` neighbouring blocks, zeroed; returns their offset and how many
    /// to give back later. There must be room ([`fits`](Self::fits)).
    pub(super) fn take(&mut self, count: usize) -> (usize, usize) {
        debug_assert!(self.fits(&[count]));
        let skip = self.skip(self.next, count);
        if skip > 0 {
            self.next = 0;
        }
        let at = (RESERVED_BLOCKS + self.next) * BLOCK_BYTES;
        self.next = (self.next + count) % self.blocks;
        self.taken += skip + count;
        self.bytes_mut(at, count * BLOCK_BYTES).fill(0);
        (at, skip + count)
    }

    /// Gives back the oldest `count` blocks.
    pub(super) fn give_back(&mut self, count: usize) {
        self.taken -= count;
        if self.taken == 0 {
            self.next = 0;
        }
    }
}
