//! Reading back from a base what a description says was written there (G12): a mover that took a volume over
//! gets the data of recovered updates, of which it has the headers alone.
//!
//! The record is made in the share of the arena that is for copies. There a description takes its header, while
//! its source counted the whole record against what was granted; so there is room, or will be when
//! older sets are confirmed. Until then a read waits.

use super::contexts::IoContext;
use super::effects::Deferred;
use super::poller::Poller;
use crate::proto::command::Token;
use crate::proto::primary::ReadBack;
use crate::proto::types::{BufRef, Extent, NvmeStatus, VolumeId};
use crate::spdk::env::IoBuf;
use crate::spdk::error::Submit;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader};
use zerocopy::IntoBytes;

/// A payload to be read back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recall {
    volume: VolumeId,
    extent: Extent,
    token: Token,
    /// The description's header.
    header: [u8; UPDATE_HEADER_BYTES],
}

/// One that is under way, and the record that it is read into.
#[derive(Clone, Copy, Debug)]
struct Reading {
    recall: Recall,
    buf: BufRef,
}

/// The reads under way, by slot. Take-overs are rare: it grows with the first large one.
#[derive(Debug, Default)]
pub(super) struct Recalls {
    slots: Vec<Option<Reading>>,
    free: Vec<u32>,
}

impl Recalls {
    fn insert(&mut self, reading: Reading) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(reading);
        slot
    }

    fn remove(&mut self, slot: u32) -> Option<Reading> {
        let reading = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(reading)
    }
}

impl Poller {
    /// Begins to read a range of a base for the description in `buf`, which may be freed after that.
    pub(super) fn recall_for(
        &mut self,
        volume: VolumeId,
        extent: Extent,
        buf: BufRef,
        token: Token,
    ) {
        let header = *self.arena.header(buf);
        self.recall(Recall { volume, extent, token, header });
    }

    /// Reads, or waits for room or a request object.
    #[cold]
    pub(super) fn recall(&mut self, recall: Recall) {
        let Recall { volume, extent, token, .. } = recall;
        let volume = self.volume_index(volume).map(|index| &self.volumes[index]);
        let Some((volume, channel)) = volume.and_then(|v| Some((v, v.channel.as_ref()?))) else {
            return self.node.handle_read_failed(self.now, token, NvmeStatus::INTERNAL);
        };
        if volume.excluded {
            // Another mover's by now.
            return;
        }
        let bytes = extent.blocks as usize * volume.block_bytes as usize;
        let Some(buf) = self.arena.append(self.mirror_log, bytes, self.record_align) else {
            self.arena_full = true;
            return self.deferred.push_back(Deferred::Recall(recall));
        };
        let slot = self.recalls.insert(Reading { recall, buf });
        let context = self.contexts.insert(IoContext::Recall(slot));
        let memory = IoBuf::of_payload(&self.arena, buf, bytes);
        let Err(why) = channel.read(memory, extent.lba, context) else { return };
        self.contexts.remove(context);
        self.recalls.remove(slot);
        self.arena.free(buf);
        match why {
            Submit::Busy => self.deferred.push_back(Deferred::Recall(recall)),
            Submit::Refused(_) => {
                self.node.handle_read_failed(self.now, token, NvmeStatus::INTERNAL);
            }
        }
    }

    /// The base has answered.
    #[cold]
    pub(super) fn recalled(&mut self, slot: u32, status: NvmeStatus) {
        let Some(Reading { recall, buf }) = self.recalls.remove(slot) else {
            debug_assert!(false, "a payload is read back once");
            return;
        };
        if !status.is_ok() {
            self.arena.free(buf);
            return self.node.handle_read_failed(self.now, recall.token, status);
        }
        self.arena.header_mut(buf).copy_from_slice(&recall.header);
        let bytes = UpdateHeader::payload_len(&recall.header) as usize;
        let payload_crc = self.arena.copier().crc32c(&self.arena.payload(buf)[..bytes]);
        match self.node.handle_read_back(recall.token, buf, payload_crc) {
            ReadBack::NotNeeded => self.arena.free(buf),
            ReadBack::Own => {}
            ReadBack::Overtaken { not_before } => {
                let Ok(mut info) = UpdateHeader::check(&recall.header) else {
                    debug_assert!(false, "a description was verified when it came");
                    return;
                };
                info.payload_crc = payload_crc;
                info.not_before = info.not_before.max(not_before);
                let header = UpdateHeader::seal(&info);
                self.arena.header_mut(buf).copy_from_slice(header.as_bytes());
            }
        }
    }
}
