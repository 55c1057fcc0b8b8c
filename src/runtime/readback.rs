//! Memory for payloads that are read back from the set journal to be applied.
//!
//! Apart from the arena: applying is what makes room there and in the journal, so it must not wait
//! for room there. A payload is read into a buffer of this pool and written to its volume from it.

use super::effects::BlockWrite;
use crate::spdk::env::{DmaBuf, IoBuf};

/// Bytes of all buffers, unless a single one needs more.
const POOL_BYTES_MAX: usize = 8 << 20;
/// The smallest buffer; others are powers of two of it.
const BUFFER_BYTES_MIN: usize = 4096;
/// What devices want a buffer aligned to.
const ALIGN: usize = 4096;

/// One payload on its way from the journal to its volume.
#[derive(Debug)]
struct Slot {
    memory: Option<DmaBuf>,
    /// What it is for, while it is read.
    write: Option<BlockWrite>,
    /// Where in what is read the payload begins.
    skip: usize,
}

/// The pool. Owned by one poller.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    /// Unused buffers.
    idle: Vec<DmaBuf>,
    bytes: usize,
}

impl ReadBack {
    /// A buffer of at least `bytes` bytes for `write`; none while others must be given back first.
    pub(super) fn take(&mut self, bytes: usize, skip: usize, write: BlockWrite) -> Option<u32> {
        let bytes = bytes.next_power_of_two().max(BUFFER_BYTES_MIN);
        let fits = self.idle.iter().position(|memory| memory.len() == bytes);
        let memory = match fits {
            Some(index) => self.idle.swap_remove(index),
            None => self.allocate(bytes)?,
        };
        let slot = Slot { memory: Some(memory), write: Some(write), skip };
        Some(match self.free_slots.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        })
    }

    fn allocate(&mut self, bytes: usize) -> Option<DmaBuf> {
        while self.bytes + bytes > POOL_BYTES_MAX
            && let Some(memory) = self.idle.pop()
        {
            self.bytes -= memory.len();
        }
        if self.bytes > 0 && self.bytes + bytes > POOL_BYTES_MAX {
            return None;
        }
        let memory = DmaBuf::new(bytes, ALIGN).ok()?;
        self.bytes += bytes;
        Some(memory)
    }

    /// The first `len` bytes of the slot's buffer.
    pub(super) fn memory(&self, slot: u32, len: usize) -> Option<IoBuf> {
        Some(self.slots.get(slot as usize)?.memory.as_ref()?.io_buf().slice(0, len))
    }

    /// The payload of `bytes` bytes is read: moves it to the start of the buffer, where a device
    /// can write it from. What it is for.
    pub(super) fn arrived(&mut self, slot: u32, bytes: usize) -> Option<BlockWrite> {
        let slot = self.slots.get_mut(slot as usize)?;
        let memory = slot.memory.as_mut()?;
        if slot.skip > 0 {
            memory.copy_within(slot.skip..slot.skip + bytes, 0);
        }
        slot.write.take()
    }

    /// What the slot's read is for.
    pub(super) fn write_of(&self, slot: u32) -> Option<&BlockWrite> {
        self.slots.get(slot as usize)?.write.as_ref()
    }

    /// Nobody uses the slot's buffer any more.
    pub(super) fn give_back(&mut self, slot: u32) {
        if let Some(memory) = self.slots.get_mut(slot as usize).and_then(|slot| slot.memory.take())
        {
            self.idle.push(memory);
            self.free_slots.push(slot);
        }
    }

    /// Whether no payload is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.free_slots.len() == self.slots.len()
    }
}
