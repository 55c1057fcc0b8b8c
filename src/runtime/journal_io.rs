//! The set journal of a secondary poller over its block device.
//!
//! `crate::journal` runs the journal (`Driver`) and says what to read, write and flush; here that is
//! done through SPDK, in the poller's turns, and the state machines are told. While the journal is
//! full the poller takes no records in, so that nobody believes them stored.

use super::contexts::{IoContext, IoContexts};
use super::effects::BlockWrite;
use super::parts::JournalParts;
use super::poller::{Poller, PollerError};
use crate::journal::{
    AppendError, BLOCK_BYTES, Config, Driver, Entry, Identity, Io, IoId, OpenError, Piece, Records,
    Recovery, Setting, Shape, Step,
};
use crate::mem::arena::Arena;
use crate::proto::command::{JournalEntry, JournalPos, PayloadAt, Token};
use crate::proto::secondary::{Recovered, Secondary};
use crate::proto::types::{BufRef, Epoch, NvmeStatus, ShardId};
use crate::spdk::bdev::{Bdev, Channel};
use crate::spdk::env::{DmaBuf, IoBuf, tsc_now};
use crate::spdk::error::Submit;
use crate::spdk::payload::Gather;
use crate::spdk::queue::LocalQueues;
use crate::spdk::thread::Thread;
use crate::wire::message::decode;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader};
use std::collections::VecDeque;

/// Units of the journal being filled or written at once.
const UNITS_IN_FLIGHT: usize = 16;
/// See [`Setting::unit_bytes_min`].
const UNIT_BYTES_MIN: u64 = 256 << 10;
/// Pieces of a unit that are gathered without an allocation.
const PIECES: usize = 128;

impl Records for Arena {
    fn record(&self, buf: BufRef) -> Option<(&[u8; UPDATE_HEADER_BYTES], &[u8])> {
        Some((self.header(buf), self.payload(buf)))
    }
}

/// The journal and its device. Owned by one poller.
#[derive(Debug)]
pub(super) struct JournalIo {
    pub(super) driver: Driver<DmaBuf, BlockWrite>,
    stage: IoBuf,
    channel: Channel,
    /// Where this journal begins on the device, in bytes.
    base: u64,
    /// Operations that found no request object.
    unsubmitted: VecDeque<Io>,
    /// What each operation under way writes, by its index.
    gathers: Vec<Gather>,
}

impl JournalIo {
    /// Opens the journal, or formats a device that holds nothing, and feeds what it kept into
    /// `machines`. Blocks the poller's thread: nothing else runs yet.
    pub(super) fn open(
        shard: ShardId,
        epoch: Epoch,
        parts: &JournalParts,
        queues: &LocalQueues,
        thread: &Thread,
        machines: &mut Secondary,
    ) -> Result<Self, PollerError> {
        let fail =
            |reason: String| PollerError::Journal { shard, bdev: parts.bdev.clone(), reason };
        let bdev = Bdev::open(&parts.bdev, true).map_err(|e| fail(e.to_string()))?;
        let block = u64::from(bdev.geometry().block_bytes);
        let channel = bdev.channel().map_err(|e| fail(e.to_string()))?;
        let config = Config {
            device_bytes: parts.blocks * block,
            shape: Shape::LARGE,
            units_in_flight: UNITS_IN_FLIGHT,
        };
        let base = parts.first_block * block;
        let device = Device { channel: &channel, base, block, queues, thread };
        let memory = || {
            DmaBuf::new(Config::stage_bytes_min(config.shape), BLOCK_BYTES)
                .map_err(|e| fail(e.to_string()))
        };
        let mut recovery =
            Recovery::open(config, shard, memory()?).map_err(|e| fail(e.to_string()))?;
        match device.recover(&mut recovery, machines) {
            Ok(()) => {}
            Err(OpenError::Blank) => {
                if recovery.stage()[..2 * BLOCK_BYTES].iter().any(|byte| *byte != 0) {
                    return Err(fail(
                        "it holds something that is not a journal; to use the device, overwrite \
                         its first 8 KiB with zeroes"
                            .into(),
                    ));
                }
                let identity = Identity { journal: parts.identity, owner: shard };
                recovery = Recovery::format(config, identity, memory()?)
                    .map_err(|e| fail(e.to_string()))?;
                device.recover(&mut recovery, machines).map_err(|e| fail(e.to_string()))?;
                tracing::info!(%shard, device = parts.bdev, "formatted the set journal");
            }
            Err(error) => return Err(fail(error.to_string())),
        }
        let journal = recovery.into_journal();
        let io_max = journal.io_max();
        Ok(Self {
            stage: IoBuf::of_stage(journal.stage()),
            driver: Driver::new(journal, Setting { epoch, unit_bytes_min: UNIT_BYTES_MIN }),
            channel,
            base,
            unsubmitted: VecDeque::with_capacity(io_max),
            gathers: (0..io_max).map(|_| Gather::with_capacity(PIECES)).collect(),
        })
    }

    /// Submits an operation of the journal.
    fn submit(&mut self, io: Io, arena: &Arena, contexts: &mut IoContexts) {
        let id = io.id();
        let geometry = self.channel.geometry();
        if matches!(io, Io::Flush { .. }) && !geometry.flush {
            // Without a cache a completed write is durable.
            self.driver.complete(id, true);
            return;
        }
        let block = u64::from(geometry.block_bytes);
        let context = contexts.insert(IoContext::Journal(id));
        let result = match io {
            Io::Read { offset, len, .. } => {
                let at = (self.base + offset) / block;
                self.channel.read(self.stage.slice(0, len), at, context)
            }
            Io::Write { offset, .. } => {
                let gather = &mut self.gathers[id.index()];
                gather.clear();
                for piece in self.driver.journal().pieces(id) {
                    gather.push(match *piece {
                        Piece::Stage { at, len } => self.stage.slice(at, len),
                        Piece::Payload { buf, len } => IoBuf::of_payload(arena, buf, len),
                    });
                }
                let at = (self.base + offset) / block;
                self.channel.write_gather(gather, at, context)
            }
            Io::Flush { .. } => self.channel.flush(context),
        };
        match result {
            Ok(()) => {}
            Err(Submit::Busy) => {
                contexts.remove(context);
                self.unsubmitted.push_back(io);
            }
            Err(Submit::Refused(why)) => {
                contexts.remove(context);
                tracing::error!(?why, "the set journal's device refused an operation");
                self.driver.complete(id, false);
            }
        }
    }
}

/// The device while nothing else runs.
struct Device<'a> {
    channel: &'a Channel,
    base: u64,
    block: u64,
    queues: &'a LocalQueues,
    thread: &'a Thread,
}

impl Device<'_> {
    fn recover(
        &self,
        recovery: &mut Recovery<DmaBuf>,
        machines: &mut Secondary,
    ) -> Result<(), OpenError> {
        loop {
            match recovery.poll()? {
                Step::Done => return Ok(()),
                Step::Entries => {
                    while let Some((position, entry)) = recovery.next_entry() {
                        if let Some(entry) = recovered(&entry) {
                            machines.recover(position, entry);
                        }
                    }
                }
                Step::Io(io) => {
                    let (id, ok) = self.carry_out(io, recovery);
                    recovery.complete(id, ok)?;
                }
            }
        }
    }

    fn carry_out(&self, io: Io, recovery: &Recovery<DmaBuf>) -> (IoId, bool) {
        let stage = IoBuf::of_stage(recovery.stage());
        let mut gather = Gather::with_capacity(1);
        loop {
            let (id, result) = match io {
                Io::Read { id, offset, len } => {
                    let at = (self.base + offset) / self.block;
                    (id, self.channel.read(stage.slice(0, len), at, 0))
                }
                Io::Write { id, offset, .. } => {
                    gather.clear();
                    for piece in recovery.pieces(id) {
                        if let Piece::Stage { at, len } = piece {
                            gather.push(stage.slice(at, len));
                        }
                    }
                    let at = (self.base + offset) / self.block;
                    (id, self.channel.write_gather(&mut gather, at, 0))
                }
                Io::Flush { id } if !self.channel.geometry().flush => return (id, true),
                Io::Flush { id } => (id, self.channel.flush(0)),
            };
            match result {
                Err(Submit::Refused(_)) => return (id, false),
                Err(Submit::Busy) => {
                    self.thread.poll(tsc_now());
                }
                Ok(()) => loop {
                    self.thread.poll(tsc_now());
                    if let Some(done) = self.queues.pop_done() {
                        return (id, done.status.is_ok());
                    }
                },
            }
        }
    }
}

/// An entry as the state machines know it. Entries were checked when their unit was found whole;
/// one that cannot be read all the same is of another version and says so.
fn recovered(entry: &Entry<'_>) -> Option<Recovered> {
    match *entry {
        Entry::Record { role, header, .. } => match UpdateHeader::check(header) {
            Ok(info) => Some(Recovered::Record { role, info }),
            Err(error) => {
                tracing::error!(%error, "a journaled record cannot be read and is left out");
                None
            }
        },
        Entry::Manifest { bytes, .. } => match decode(bytes) {
            Ok((_, message)) => Some(Recovered::Manifest { message }),
            Err(error) => {
                tracing::error!(%error, "a journaled manifest cannot be read and is left out");
                None
            }
        },
        Entry::Commit { group, set, cut_time_ns, primary_epoch } => {
            Some(Recovered::Commit { group, set, cut_time_ns, primary_epoch })
        }
        Entry::Applied { group, set } => Some(Recovered::Applied { group, set }),
    }
}

impl Poller {
    /// The machines want an entry appended.
    pub(super) fn journal_append(&mut self, entry: JournalEntry, token: Token) {
        if let Some(io) = &mut self.journal {
            io.driver.append(entry, token, &self.arena);
            self.journal_drain();
        }
    }

    /// The machines want everything so far durable.
    pub(super) fn journal_flush(&mut self, token: Token) {
        if let Some(io) = &mut self.journal {
            io.driver.flush(token);
            self.journal_drain();
        }
    }

    /// The machines need nothing before `before` any more.
    pub(super) fn journal_retire(&mut self, before: JournalPos) {
        if let Some(io) = &mut self.journal {
            io.driver.retire(before);
        }
    }

    /// Does what was wanted, in order, as far as there is room.
    fn journal_drain(&mut self) {
        let Some(io) = &mut self.journal else { return };
        loop {
            match io.driver.append_next(&self.arena) {
                Ok(Some(appended)) => {
                    self.node.handle_journaled(self.now, appended.token, appended.position);
                }
                Ok(None) | Err(AppendError::Full | AppendError::Busy) => return,
                Err(error) => {
                    tracing::error!(%error, "the set journal takes nothing any more");
                    return;
                }
            }
        }
    }

    /// Once per turn: operations out, results in, memory back.
    pub(super) fn journal_turn(&mut self) -> u64 {
        self.journal_drain();
        let Some(io) = &mut self.journal else { return 0 };
        let mut work = 0;
        if let Some(news) = io.driver.poll_room() {
            self.node.handle_journal_room(self.now, news);
        }
        for _ in 0..io.unsubmitted.len() {
            if let Some(operation) = io.unsubmitted.pop_front() {
                io.submit(operation, &self.arena, &mut self.contexts);
            }
        }
        while let Some(operation) = io.driver.poll_io() {
            io.submit(operation, &self.arena, &mut self.contexts);
            work += 1;
        }
        while let Some(flushed) = io.driver.poll_durable() {
            self.node.handle_journal_durable(self.now, flushed.token);
            work += 1;
        }
        while let Some(buf) = io.driver.poll_reusable() {
            if self.net.may_reuse(buf) {
                self.arena.free(buf);
            }
        }
        for _ in 0..io.driver.waiting_reads() {
            let waiting = self.journal.as_mut().and_then(|io| io.driver.next_waiting_read());
            if let Some((position, write)) = waiting {
                self.journal_read(position, write);
            }
        }
        work
    }

    /// Reads a payload back from the journal, then writes it to its volume.
    pub(super) fn journal_read(&mut self, position: JournalPos, write: BlockWrite) {
        let Some(index) = self.volume_index(write.volume) else {
            self.node.handle_written(self.now, write.token, NvmeStatus::INTERNAL);
            return;
        };
        let bytes = write.extent.blocks as usize * self.volumes[index].block_bytes as usize;
        let Some(io) = &mut self.journal else { return };
        let Some(place) = io.driver.journal().locate(position, bytes) else {
            io.driver.wait_to_read(position, write);
            return;
        };
        let Some(slot) = self.read_back.take(place.len, place.skip, write) else {
            io.driver.wait_to_read(position, write);
            return;
        };
        let context = self.contexts.insert(IoContext::JournalRead(slot));
        let block = u64::from(io.channel.geometry().block_bytes);
        let at = (io.base + place.offset) / block;
        let result = match self.read_back.memory(slot, place.len) {
            Some(memory) => io.channel.read(memory, at, context),
            None => Err(Submit::Busy),
        };
        if let Err(why) = result {
            self.contexts.remove(context);
            self.read_back.give_back(slot);
            match why {
                Submit::Busy => io.driver.wait_to_read(position, write),
                Submit::Refused(_) => {
                    self.node.handle_written(self.now, write.token, NvmeStatus::INTERNAL);
                }
            }
        }
    }

    /// An operation on the journal's device has completed.
    pub(super) fn journal_done(&mut self, id: IoId, status: NvmeStatus) {
        let Some(io) = &mut self.journal else { return };
        if !status.is_ok() {
            tracing::error!(?status, "the set journal's device failed");
        }
        io.driver.complete(id, status.is_ok());
    }

    /// A payload was read back into memory: writes it to its volume.
    pub(super) fn journal_has_read(&mut self, slot: u32, status: NvmeStatus) {
        let Some(write) = self.read_back.write_of(slot) else { return };
        let (volume, blocks, token) = (write.volume, write.extent.blocks, write.token);
        let block_bytes = self.volume_index(volume).map_or(0, |i| self.volumes[i].block_bytes);
        let bytes = blocks as usize * block_bytes as usize;
        match self.read_back.arrived(slot, bytes) {
            Some(mut write) if status.is_ok() => {
                write.payload = PayloadAt::None;
                write.read_back = Some(slot);
                self.write(write);
            }
            _ => {
                self.read_back.give_back(slot);
                self.node.handle_written(self.now, token, status);
            }
        }
    }
}
