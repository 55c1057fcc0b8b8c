//! Between the pollers of one mover: rings in both directions for every pair.
//!
//! A host's queue belongs to the poller that its connection was given to; a volume belongs to the
//! poller of its shard. Where the two differ, the command stays with the first, and the second gets
//! a description of it, works on the host's buffers, and says when it is done.

use crate::dpdk::OwnedFrame;
use crate::proto::command::HostTag;
use crate::proto::message::Message;
use crate::proto::types::{Epoch, Extent, NvmeStatus, ShardId};
use crate::ring::{Consumer, Producer, ring};
use crate::spdk::payload::ForeignIovs;
use crate::spdk::tap::IoKind;
use std::collections::VecDeque;

/// Messages under way in one direction at once.
const RING_SLOTS: usize = 1024;

/// What one poller says to another of the same mover.
pub enum SiblingMessage {
    /// A protocol message between their shards.
    Control {
        /// The sender.
        from: ShardId,
        /// The epoch it was sent in.
        epoch: Epoch,
        /// The message.
        message: Message,
    },
    /// A frame that the sender's queue received for the receiver.
    Frame(OwnedFrame),
    /// A host command for a volume of the receiver.
    Command(ForeignCommand),
    /// A command that the receiver handed over is done.
    Done {
        /// The receiver's tag.
        tag: HostTag,
        /// Its status.
        status: NvmeStatus,
    },
}

/// A host command that waits at another poller.
#[derive(Debug)]
pub struct ForeignCommand {
    /// The poller that it waits at.
    pub poller: u8,
    /// That poller's tag.
    pub tag: HostTag,
    /// Index into the receiver's volumes.
    pub volume: u32,
    /// What to do.
    pub kind: IoKind,
    /// Where; for a flush, any.
    pub extent: Extent,
    /// Force unit access.
    pub fua: bool,
    /// The host's buffers, valid until [`SiblingMessage::Done`].
    pub iovs: ForeignIovs,
}

/// One poller's ends of its rings.
#[derive(Default)]
pub struct SiblingEnds {
    ends: Vec<End>,
}

struct End {
    poller: u8,
    out: Producer<SiblingMessage>,
    /// What did not fit the ring, in order.
    overflow: VecDeque<SiblingMessage>,
    inward: Consumer<SiblingMessage>,
}

impl std::fmt::Debug for SiblingEnds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiblingEnds").field("ends", &self.ends.len()).finish()
    }
}

impl SiblingEnds {
    /// The ends of all pollers of a mover, by poller index.
    #[must_use]
    pub fn mesh(pollers: u8) -> Vec<Self> {
        let mut all: Vec<Self> = (0..pollers).map(|_| Self::default()).collect();
        for low in 0..pollers {
            for high in low + 1..pollers {
                let (up, up_end) = ring(RING_SLOTS);
                let (down, down_end) = ring(RING_SLOTS);
                let end =
                    |poller, out, inward| End { poller, out, overflow: VecDeque::new(), inward };
                all[usize::from(low)].ends.push(end(high, up, down_end));
                all[usize::from(high)].ends.push(end(low, down, up_end));
            }
        }
        all
    }

    /// Sends to the poller with index `poller`, in order; nothing is lost while it is there.
    pub fn send(&mut self, poller: u8, message: SiblingMessage) {
        let Some(end) = self.ends.iter_mut().find(|end| end.poller == poller) else {
            debug_assert!(false, "poller {poller} is no sibling");
            return;
        };
        end.overflow.push_back(message);
        end.drain();
    }

    /// The siblings' poller indices.
    pub fn pollers(&self) -> impl Iterator<Item = u8> + use<> {
        self.ends.iter().map(|end| end.poller).collect::<Vec<_>>().into_iter()
    }

    /// The next message of any sibling.
    #[inline]
    pub fn receive(&mut self) -> Option<SiblingMessage> {
        self.ends.iter_mut().find_map(|end| end.inward.pop())
    }

    /// Tries again what did not fit.
    #[inline]
    pub fn flush(&mut self) {
        for end in &mut self.ends {
            end.drain();
        }
    }
}

impl End {
    #[inline]
    fn drain(&mut self) {
        while let Some(message) = self.overflow.pop_front() {
            if let Err(message) = self.out.push(message) {
                self.overflow.push_front(message);
                return;
            }
        }
    }
}
