//! Carrying out what the state machines want done.

use super::contexts::IoContext;
use super::excluded::{PATH_INACCESSIBLE, says_excluded};
use super::messages::FromPoller;
use super::poller::Poller;
use super::recall::Recall;
use super::siblings::SiblingMessage;
use crate::proto::command::{Command, PayloadAt, Report, Token, bytes_to_send};
use crate::proto::types::{Extent, NvmeStatus, ShardId, UpdateKind, VolumeId};
use crate::spdk::env::IoBuf;
use crate::spdk::error::Submit;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader};

/// A block device write that waits for a request object, or for its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockWrite {
    pub(super) volume: VolumeId,
    pub(super) kind: UpdateKind,
    pub(super) extent: Extent,
    pub(super) fua: bool,
    pub(super) payload: PayloadAt,
    /// Blocks of the payload before those that are written.
    pub(super) skip: u32,
    pub(super) token: Token,
    /// The payload was read back from the journal: where it is in the pool.
    pub(super) read_back: Option<u32>,
}

impl BlockWrite {
    /// A write of a payload from its beginning that need not be on the medium at completion.
    const fn new(
        volume: VolumeId,
        kind: UpdateKind,
        extent: Extent,
        payload: PayloadAt,
        token: Token,
    ) -> Self {
        Self { volume, kind, extent, fua: false, payload, skip: 0, token, read_back: None }
    }
}

/// What waits for a request object, or for room.
#[derive(Clone, Copy, Debug)]
pub(super) enum Deferred {
    Write(BlockWrite),
    Flush { volume: VolumeId, token: Token },
    Recall(Recall),
}

/// Bytes of a record on the wire, by its own header.
#[inline]
fn record_len(header: &[u8; UPDATE_HEADER_BYTES]) -> u32 {
    UPDATE_HEADER_BYTES as u32 + UpdateHeader::payload_len(header)
}

impl Poller {
    /// Carries out everything that the machines want now. Returns how much that was.
    #[inline]
    pub(super) fn run_commands(&mut self) -> u64 {
        let mut count = 0;
        while let Some(command) = self.node.poll_command(self.now) {
            count += 1;
            match command {
                Command::SendRecord { to, role, buf, token } => {
                    let len = bytes_to_send(role, record_len(self.arena.header(buf)));
                    self.net.send_record(to, role, buf, len, token);
                }
                Command::Write { volume, kind, extent, fua, payload, token } => {
                    let write = BlockWrite::new(volume, kind, extent, payload, token);
                    self.write(BlockWrite { fua, ..write });
                }
                Command::Restore { volume, kind, extent, buf, skip, token } => {
                    let write = BlockWrite::new(volume, kind, extent, PayloadAt::Buf(buf), token);
                    self.write(BlockWrite { fua: true, skip, ..write });
                }
                Command::ReadBack { volume, extent, buf, token } => {
                    self.recall_for(volume, extent, buf, token);
                }
                Command::Fence { volume, token } => self.fence(volume, token),
                Command::CompleteHost { tag, status } => self.complete_tag(tag, status),
                Command::Free { buf } => self.free(buf),
                Command::Send { to, message } => {
                    let urgent = message.is_of_boundary();
                    self.send(to, message);
                    if urgent {
                        // Acknowledgements are held until it is answered: it does not wait for
                        // the end of the turn.
                        count += self.transmit();
                    }
                }
                Command::Flush { volume, token } => self.flush_volume(volume, token),
                Command::Journal { entry, token } => self.journal_append(entry, token),
                Command::JournalFlush { token } => self.journal_flush(token),
                Command::JournalRetire { before } => self.journal_retire(before),
                Command::Report(report) => self.report(report),
            }
        }
        count
    }

    fn send(&mut self, to: ShardId, message: crate::proto::message::Message) {
        if to.mover == self.me.mover {
            let (from, epoch) = (self.me, self.epoch);
            let message = SiblingMessage::Control { from, epoch, message };
            self.siblings.send(to.poller, message);
        } else {
            self.net.send_message(to, &message);
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Held { held_ns, .. } => self.stats.hold(held_ns),
            Report::Restored { volume } | Report::HandedOver { volume, .. } => {
                self.volume_ready(volume);
            }
            Report::Moved { volume, from, to } => self.volume_moved(volume, from, to),
            _ => {}
        }
        let (shard, at) = (self.me, self.now);
        self.tell(FromPoller::Report { shard, at, report });
    }

    /// The index of a volume among the poller's.
    #[inline]
    pub(super) fn volume_index(&self, volume: VolumeId) -> Option<usize> {
        match self.volume_table.get(volume.0 as usize) {
            Some(index) if *index != u32::MAX => Some(*index as usize),
            _ => None,
        }
    }

    /// Writes to a volume, or defers it when the device has no request object free.
    #[inline]
    pub(super) fn write(&mut self, write: BlockWrite) {
        if let PayloadAt::Journal(position) = write.payload {
            self.journal_read(position, write);
            return;
        }
        let Some(index) = self.volume_index(write.volume) else { return self.refuse(&write) };
        let volume = &self.volumes[index];
        if volume.excluded {
            return self.drop_write(&write);
        }
        let Some(channel) = &volume.channel else { return self.refuse(&write) };
        let bytes = write.extent.blocks as usize * volume.block_bytes as usize;
        let payload = match write.payload {
            PayloadAt::Buf(buf) => {
                let before = write.skip as usize * volume.block_bytes as usize;
                Some(IoBuf::of_payload(&self.arena, buf, before + bytes).slice(before, bytes))
            }
            _ => write.read_back.and_then(|slot| self.read_back.memory(slot, bytes)),
        };
        if write.kind == UpdateKind::Write && payload.is_none() {
            debug_assert!(false, "a write has its payload in memory");
            return self.refuse(&write);
        }
        let meaning = if let Some(slot) = write.read_back {
            IoContext::ReadBack { token: write.token, volume: write.volume, slot }
        } else if write.fua && volume.write_cache {
            IoContext::FlushAfter { token: write.token, volume: write.volume }
        } else {
            IoContext::Protocol { token: write.token, volume: write.volume }
        };
        let context = self.contexts.insert(meaning);
        let (lba, blocks) = (write.extent.lba, u64::from(write.extent.blocks));
        let result = match (write.kind, payload) {
            (UpdateKind::Write, Some(payload)) => channel.write(payload, lba, context),
            (UpdateKind::Deallocate, _) if volume.unmap => channel.unmap(lba, blocks, context),
            _ => channel.write_zeroes(lba, blocks, context),
        };
        match result {
            Ok(()) => {}
            Err(Submit::Busy) => {
                self.contexts.remove(context);
                self.deferred.push_back(Deferred::Write(write));
            }
            Err(Submit::Refused(_)) => {
                self.contexts.remove(context);
                self.refuse(&write);
            }
        }
    }

    /// The write cannot be handed to its volume.
    #[cold]
    fn refuse(&mut self, write: &BlockWrite) {
        if let Some(slot) = write.read_back {
            self.read_back.give_back(slot);
        }
        self.node.handle_written(self.now, write.token, NvmeStatus::INTERNAL);
    }

    /// The volume is another mover's by now (`excluded`): the write is forgotten.
    #[cold]
    fn drop_write(&mut self, write: &BlockWrite) {
        if let Some(slot) = write.read_back {
            self.read_back.give_back(slot);
        }
    }

    pub(super) fn flush_volume(&mut self, id: VolumeId, token: Token) {
        let volume = self.volume_index(id).map(|index| &self.volumes[index]);
        if volume.is_some_and(|volume| volume.excluded) {
            return;
        }
        let Some(channel) =
            volume.filter(|v| v.geometry_flush).and_then(|volume| volume.channel.as_ref())
        else {
            // Nothing is cached, so nothing is to be flushed.
            self.node.handle_written(self.now, token, NvmeStatus::SUCCESS);
            return;
        };
        let context = self.contexts.insert(IoContext::Protocol { token, volume: id });
        if let Err(why) = channel.flush(context) {
            self.contexts.remove(context);
            match why {
                Submit::Busy => self.deferred.push_back(Deferred::Flush { volume: id, token }),
                Submit::Refused(_) => {
                    self.node.handle_written(self.now, token, NvmeStatus::INTERNAL);
                }
            }
        }
    }

    /// Tries again what found no request object.
    pub(super) fn retry_deferred(&mut self) -> u64 {
        let count = self.deferred.len();
        for _ in 0..count {
            match self.deferred.pop_front() {
                Some(Deferred::Write(write)) => self.write(write),
                Some(Deferred::Flush { volume, token }) => self.flush_volume(volume, token),
                Some(Deferred::Recall(recall)) => self.recall(recall),
                None => break,
            }
        }
        count as u64
    }

    /// A block device request has completed.
    #[inline]
    pub(super) fn block_done(&mut self, context: u64, status: NvmeStatus) {
        let meaning = self.contexts.remove(context);
        if says_excluded(status) {
            return self.refused_by_base(meaning, status);
        }
        match meaning {
            Some(IoContext::Protocol { token, .. }) => {
                self.node.handle_written(self.now, token, status)
            }
            Some(IoContext::Host(tag)) => self.complete_tag(tag, status),
            Some(IoContext::FlushAfter { token, volume }) => {
                if status.is_ok() {
                    self.flush_volume(volume, token);
                } else {
                    self.node.handle_written(self.now, token, status);
                }
            }
            Some(IoContext::ReadBack { token, slot, .. }) => {
                self.read_back.give_back(slot);
                self.node.handle_written(self.now, token, status);
            }
            Some(IoContext::Answer(slot)) => {
                self.answer_done(slot, status);
            }
            Some(IoContext::Recall(slot)) => self.recalled(slot, status),
            Some(IoContext::Journal(id)) => self.journal_done(id, status),
            Some(IoContext::JournalRead(slot)) => self.journal_has_read(slot, status),
            None => debug_assert!(false, "a request completes once"),
        }
    }

    /// A request found another mover's reservation in its way.
    #[cold]
    fn refused_by_base(&mut self, meaning: Option<IoContext>, status: NvmeStatus) {
        let volume = match meaning {
            Some(IoContext::Protocol { volume, .. } | IoContext::FlushAfter { volume, .. }) => {
                self.volume_index(volume)
            }
            Some(IoContext::ReadBack { volume, slot, .. }) => {
                self.read_back.give_back(slot);
                self.volume_index(volume)
            }
            Some(IoContext::Host(tag)) => self.hosts.remove(tag).map(|command| {
                let volume = command.volume as usize;
                self.complete(command, PATH_INACCESSIBLE);
                volume
            }),
            Some(IoContext::Answer(slot)) => self.answer_done(slot, PATH_INACCESSIBLE),
            // Reads are nobody's to refuse; it is tried again.
            Some(IoContext::Recall(slot)) => return self.recalled(slot, status),
            // Journals are not shared: a failure like any other.
            Some(IoContext::Journal(id)) => return self.journal_done(id, status),
            Some(IoContext::JournalRead(slot)) => return self.journal_has_read(slot, status),
            None => None,
        };
        if let Some(index) = volume {
            self.exclude(index);
        }
    }
}
