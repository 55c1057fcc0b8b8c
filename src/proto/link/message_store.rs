//! The bytes of control messages until they are acknowledged: a ring, each message unbroken.

use alloc::boxed::Box;
use alloc::vec;

/// A byte ring. Positions ascend for ever and are taken modulo the size.
pub(super) struct MessageStore {
    bytes: Box<[u8]>,
    start: u64,
    end: u64,
}

impl MessageStore {
    pub(super) fn new(bytes: u32) -> Self {
        Self { bytes: vec![0; bytes as usize].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Copies `message` in and says where it lies; none when there is no room.
    pub(super) fn push(&mut self, message: &[u8]) -> Option<u64> {
        let size = self.bytes.len() as u64;
        let len = message.len() as u64;
        let to_edge = size - self.end % size;
        let at = if len <= to_edge { self.end } else { self.end + to_edge };
        if at + len - self.start > size {
            return None;
        }
        let index = (at % size) as usize;
        self.bytes[index..index + message.len()].copy_from_slice(message);
        self.end = at + len;
        Some(at)
    }

    /// `len` bytes from position `at`.
    #[inline]
    pub(super) fn get(&self, at: u64, len: usize) -> &[u8] {
        let index = (at % self.bytes.len() as u64) as usize;
        &self.bytes[index..index + len]
    }

    /// Nothing before position `at` is needed any more.
    pub(super) fn release(&mut self, at: u64) {
        debug_assert!(at >= self.start && at <= self.end);
        self.start = at;
    }

    /// Nothing is needed any more.
    pub(super) fn clear(&mut self) {
        self.start = self.end;
    }
}
