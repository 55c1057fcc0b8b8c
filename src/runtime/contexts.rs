//! What the completions of block device requests mean: a slab of contexts.

use crate::journal::IoId;
use crate::proto::command::{HostTag, Token};
use crate::proto::types::VolumeId;

/// Why a request was submitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IoContext {
    /// For a host: a read or a flush; its completion is the host's.
    Host(HostTag),
    /// A write or flush that the protocol ordered.
    Protocol {
        /// What it was.
        token: Token,
        /// The volume.
        volume: VolumeId,
    },
    /// A write with force unit access on a volume with a write cache: a flush follows.
    FlushAfter {
        /// The write.
        token: Token,
        /// The volume.
        volume: VolumeId,
    },
    /// A write of a payload that was read back from the journal.
    ReadBack {
        /// The write.
        token: Token,
        /// The volume.
        volume: VolumeId,
        /// Its memory in the pool.
        slot: u32,
    },
    /// A base is read for a description, under this number (G12).
    Recall(u32),
    /// An operation of the journal.
    Journal(IoId),
    /// What another mover's poller asked for, under this number.
    Answer(u32),
    /// A payload is read back from the journal into this slot of the pool.
    JournalRead(u32),
}

/// The slab. Owned by one poller; its indices go to SPDK as context.
#[derive(Debug)]
pub(super) struct IoContexts {
    slots: Vec<Option<IoContext>>,
    free: Vec<u32>,
}

impl IoContexts {
    pub(super) fn new(expected: usize) -> Self {
        Self { slots: Vec::with_capacity(expected), free: Vec::with_capacity(expected) }
    }

    #[inline]
    pub(super) fn insert(&mut self, context: IoContext) -> u64 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(context);
                u64::from(slot)
            }
            None => {
                self.slots.push(Some(context));
                (self.slots.len() - 1) as u64
            }
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: u64) -> Option<IoContext> {
        let context = self.slots.get_mut(slot as usize)?.take();
        if context.is_some() {
            self.free.push(slot as u32);
        }
        context
    }

    /// Requests under way.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_taken_once() {
        let mut contexts = IoContexts::new(2);
        let slot = contexts.insert(IoContext::JournalRead(7));
        assert_eq!(contexts.len(), 1);
        assert_eq!(contexts.remove(slot), Some(IoContext::JournalRead(7)));
        assert_eq!(contexts.remove(slot), None);
        assert_eq!(contexts.len(), 0);
    }
}
