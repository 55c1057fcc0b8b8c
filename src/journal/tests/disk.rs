//! A disk with a volatile cache: it loses unflushed writes in any combination, block
//! by block. A flush promises only what was completed before the flush was issued.

use super::{BLOCK_BYTES, IoId};

#[derive(Clone)]
struct Cached {
    block: usize,
    data: Vec<u8>,
    write: IoId,
    completed: bool,
    flushing: bool,
}

#[derive(Clone)]
pub(super) struct Disk {
    stable: Vec<u8>,
    /// Unflushed blocks in the order of writing.
    cached: Vec<Cached>,
}

impl Disk {
    pub(super) fn new(bytes: u64) -> Self {
        Self { stable: vec![0; bytes as usize], cached: Vec::new() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.stable.len() as u64
    }

    /// Issues a write: from now on the medium may have any of its blocks.
    pub(super) fn write(&mut self, write: IoId, offset: u64, bytes: &[u8]) {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64));
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        let first = offset as usize / BLOCK_BYTES;
        self.cached.extend(bytes.chunks(BLOCK_BYTES).enumerate().map(|(index, data)| Cached {
            block: first + index,
            data: data.to_vec(),
            write,
            completed: false,
            flushing: false,
        }));
    }

    pub(super) fn complete_write(&mut self, write: IoId) {
        for cached in self.cached.iter_mut().filter(|cached| cached.write == write) {
            cached.completed = true;
        }
    }

    pub(super) fn begin_flush(&mut self) {
        for cached in &mut self.cached {
            cached.flushing = cached.completed;
        }
    }

    pub(super) fn complete_flush(&mut self) {
        let (flushed, rest) =
            std::mem::take(&mut self.cached).into_iter().partition(|c| c.flushing);
        self.cached = rest;
        self.keep(&flushed);
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.crash(|_| true).stable[offset as usize..][..len].to_vec()
    }

    /// How many block writes a crash may lose.
    pub(super) fn unflushed(&self) -> usize {
        self.cached.len()
    }

    /// The disk after a crash that kept the unflushed block writes that `keep` says.
    pub(super) fn crash(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut disk = Self { stable: self.stable.clone(), cached: Vec::new() };
        for (index, cached) in self.cached.iter().enumerate() {
            if keep(index) {
                disk.keep(std::slice::from_ref(cached));
            }
        }
        disk
    }

    /// The disk after a crash of the process alone: its cache is as it was.
    pub(super) fn process_crash(&self) -> Self {
        let mut disk = self.clone();
        for cached in &mut disk.cached {
            (cached.completed, cached.flushing) = (true, false);
        }
        disk
    }

    /// Damages a stable block.
    pub(super) fn spoil(&mut self, block: usize) {
        self.stable[block * BLOCK_BYTES + 100] ^= 1;
    }

    fn keep(&mut self, blocks: &[Cached]) {
        for Cached { block, data, .. } in blocks {
            self.stable[block * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(data);
        }
    }
}
