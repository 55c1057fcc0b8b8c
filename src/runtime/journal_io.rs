//! The set journal of a secondary poller over its block device.
//!
//! `crate::journal` says what to read, write and flush; here it is done through SPDK, in the
//! poller's turns, and the state machines hear of places and durability. Appends that find no room
//! wait in order; meanwhile the poller takes no records in, so that nobody believes them stored.

use super::contexts::{IoContext, IoContexts};
use super::effects::BlockWrite;
use super::parts::JournalParts;
use super::poller::{Poller, PollerError};
use crate::journal::{
    AppendError, BLOCK_BYTES, Config, ENTRY_BYTES, Entry, Identity, Io, IoId, Journal, OpenError,
    Piece, Recovery, Room, Shape, Step,
};
use crate::mem::arena::Arena;
use crate::proto::command::{JournalEntry, JournalPos, PayloadAt, RecordRole, Token};
use crate::proto::message::Message;
use crate::proto::secondary::{Recovered, Secondary};
use crate::proto::types::{BufRef, Epoch, NvmeStatus, ShardId};
use crate::spdk::bdev::{Bdev, Channel};
use crate::spdk::env::{DmaBuf, IoBuf, tsc_now};
use crate::spdk::error::Submit;
use crate::spdk::payload::Gather;
use crate::spdk::queue::LocalQueues;
use crate::spdk::thread::Thread;
use crate::wire::message::{decode, encode};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader};
use std::collections::{HashSet, VecDeque};

/// Units of the journal being filled or written at once.
const UNITS_IN_FLIGHT: usize = 16;
/// Waiting appends above which the poller takes no records in.
const BACKLOG_MAX: usize = 256;
/// A unit of so many bytes goes to the device when nothing else is on its way there. Smaller ones
/// wait for a flush, as each costs a header.
const UNIT_BYTES_MIN: u64 = 256 << 10;
/// What a record's headers take in a unit.
const RECORD_BYTES: u64 = (ENTRY_BYTES + UPDATE_HEADER_BYTES) as u64;
/// Contexts of payload reads, apart from those of the journal's own operations.
const READ_MARK: u64 = 1 << 63;

/// What the machines asked for, in order.
#[derive(Debug)]
enum Wanted {
    Append { entry: JournalEntry, token: Token },
    Flush { token: Token },
}

/// The journal and its device. Owned by one poller.
#[derive(Debug)]
pub(super) struct JournalIo {
    journal: Journal<DmaBuf>,
    stage: IoBuf,
    channel: Channel,
    /// Where this journal begins on the device, in bytes.
    base: u64,
    wanted: VecDeque<Wanted>,
    /// Bytes of the records among them, as the journal will hold them.
    wanted_bytes: u64,
    room: Room,
    /// Flushes that were asked of the journal, and up to where each makes durable.
    flushes: VecDeque<(JournalPos, Token)>,
    /// Records whose memory the journal may still write from, in order of position.
    held: VecDeque<(JournalPos, BufRef)>,
    held_set: HashSet<BufRef>,
    /// Of these, records that the machines have freed meanwhile.
    freed: HashSet<BufRef>,
    /// Operations that found no request object.
    unsubmitted: VecDeque<Io>,
    gathers: Vec<Gather>,
    /// Operations under way, by the index in their context.
    operations: Vec<Option<(IoId, usize)>>,
    /// Payload reads that wait: for memory, a request object, or the write of their unit.
    waiting_reads: VecDeque<(JournalPos, BlockWrite)>,
    in_flight: usize,
}

impl JournalIo {
    /// Opens the journal, or formats a device that holds nothing, and feeds what it kept into
    /// `machines`. Blocks the poller's thread: nothing else runs yet.
    pub(super) fn open(
        shard: ShardId,
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
        let stage = IoBuf::of_stage(journal.stage());
        Ok(Self {
            journal,
            stage,
            channel,
            base,
            wanted: VecDeque::with_capacity(1024),
            wanted_bytes: 0,
            room: Room::default(),
            flushes: VecDeque::with_capacity(64),
            held: VecDeque::with_capacity(1024),
            held_set: HashSet::with_capacity(1024),
            freed: HashSet::with_capacity(256),
            unsubmitted: VecDeque::new(),
            gathers: (0..UNITS_IN_FLIGHT + 4).map(|_| Gather::with_capacity(128)).collect(),
            operations: (0..UNITS_IN_FLIGHT + 4).map(|_| None).collect(),
            waiting_reads: VecDeque::new(),
            in_flight: 0,
        })
    }

    /// Whether nothing is under way or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.wanted.is_empty() && self.journal.is_idle()
    }

    /// Whether no record can be taken in now. Entries are appended in order, so a record that finds
    /// no room would hold up the marks that make room.
    pub(super) fn is_full(&self) -> bool {
        let (capacity, used) = self.capacity_bytes();
        self.wanted.len() > BACKLOG_MAX || self.journal.failed() || Room::is_full(capacity, used)
    }

    /// Bytes of the log, and bytes in use or spoken for.
    pub(super) fn capacity_bytes(&self) -> (u64, u64) {
        let (capacity, used) = self.journal.capacity_bytes();
        (capacity, used + self.wanted_bytes)
    }

    /// What the machines should know about the room, if that has changed.
    fn news_of_room(&mut self) -> Option<Option<JournalPos>> {
        let (capacity, used) = self.capacity_bytes();
        self.room.look(capacity, used, self.journal.appended_before())
    }

    /// Bytes that an entry is counted with while it waits: a record's own.
    fn wanted_bytes_of(arena: &Arena, entry: &JournalEntry) -> u64 {
        match entry {
            JournalEntry::Record { buf, .. } => arena.payload(*buf).len() as u64 + RECORD_BYTES,
            _ => 0,
        }
    }

    /// Whether a write or flush failed: nothing is stored any more.
    pub(super) fn failed(&self) -> bool {
        self.journal.failed()
    }

    /// Whether the record may be used again now; if not, it will be handed out later by
    /// [`Poller::journal_turn`].
    pub(super) fn may_reuse(&mut self, buf: BufRef) -> bool {
        if self.held_set.contains(&buf) {
            self.freed.insert(buf);
            return false;
        }
        true
    }

    /// Submits an operation of the journal.
    fn submit(&mut self, io: Io, arena: &Arena, contexts: &mut IoContexts) {
        let Some(slot) = self.operations.iter().position(Option::is_none) else {
            self.unsubmitted.push_back(io);
            return;
        };
        let context = contexts.insert(IoContext::Journal(slot as u64));
        let block = u64::from(self.channel.geometry().block_bytes);
        let (id, result) = match io {
            Io::Read { id, offset, len } => {
                let at = (self.base + offset) / block;
                (id, self.channel.read(self.stage.slice(0, len), at, context))
            }
            Io::Write { id, offset, .. } => {
                let gather = &mut self.gathers[slot];
                gather.clear();
                for piece in self.journal.pieces(id) {
                    gather.push(match *piece {
                        Piece::Stage { at, len } => self.stage.slice(at, len),
                        Piece::Payload { buf, len } => IoBuf::of_payload(arena, buf, len),
                    });
                }
                let at = (self.base + offset) / block;
                (id, self.channel.write_gather(gather, at, context))
            }
            Io::Flush { id } if self.channel.geometry().flush => (id, self.channel.flush(context)),
            Io::Flush { id } => {
                // Without a cache a completed write is durable.
                contexts.remove(context);
                self.journal.complete(id, true);
                return;
            }
        };
        match result {
            Ok(()) => {
                self.operations[slot] = Some((id, slot));
                self.in_flight += 1;
            }
            Err(Submit::Busy) => {
                contexts.remove(context);
                self.unsubmitted.push_back(io);
            }
            Err(Submit::Refused(_)) => {
                contexts.remove(context);
                self.journal.complete(id, false);
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
        Entry::Commit { group, set, cut_time_ns } => {
            Some(Recovered::Commit { group, set, cut_time_ns })
        }
        Entry::Applied { group, set } => Some(Recovered::Applied { group, set }),
    }
}

impl Poller {
    /// The machines want an entry appended.
    pub(super) fn journal_append(&mut self, entry: JournalEntry, token: Token) {
        if let Some(journal) = &mut self.journal {
            journal.wanted_bytes += JournalIo::wanted_bytes_of(&self.arena, &entry);
            journal.wanted.push_back(Wanted::Append { entry, token });
            self.journal_drain();
        }
    }

    /// The machines want everything so far durable.
    pub(super) fn journal_flush(&mut self, token: Token) {
        if let Some(journal) = &mut self.journal {
            journal.wanted.push_back(Wanted::Flush { token });
            self.journal_drain();
        }
    }

    /// The machines need nothing before `before` any more.
    pub(super) fn journal_retire(&mut self, before: JournalPos) {
        if let Some(io) = &mut self.journal {
            io.journal.retire(before.min(io.journal.appended_before()));
        }
    }

    /// Does what was wanted, in order, as far as there is room.
    fn journal_drain(&mut self) {
        let Some(io) = &mut self.journal else { return };
        while let Some(wanted) = io.wanted.front() {
            match wanted {
                Wanted::Flush { token } => {
                    let token = *token;
                    let upto = io.journal.flush();
                    io.flushes.push_back((upto, token));
                    io.wanted.pop_front();
                }
                Wanted::Append { entry, token } => {
                    let token = *token;
                    match append(&mut io.journal, &self.arena, self.epoch, entry) {
                        Ok((position, held)) => {
                            io.wanted_bytes -= JournalIo::wanted_bytes_of(&self.arena, entry);
                            if let Some(buf) = held {
                                io.held.push_back((position, buf));
                                io.held_set.insert(buf);
                            }
                            io.wanted.pop_front();
                            self.node.handle_journaled(self.now, token, position);
                        }
                        Err(AppendError::Full | AppendError::Busy) => return,
                        Err(error) => {
                            tracing::error!(%error, "the set journal takes nothing any more");
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Once per turn: operations out, results in, memory back.
    pub(super) fn journal_turn(&mut self) -> u64 {
        if self.journal.is_none() {
            return 0;
        }
        self.journal_drain();
        let Some(io) = &mut self.journal else { return 0 };
        let mut work = 0;
        if io.in_flight == 0 && io.journal.open_bytes() >= UNIT_BYTES_MIN {
            io.journal.seal();
        }
        if let Some(news) = io.news_of_room() {
            self.node.handle_journal_room(self.now, news);
        }
        let Some(io) = &mut self.journal else { return 0 };
        for _ in 0..io.unsubmitted.len() {
            if let Some(operation) = io.unsubmitted.pop_front() {
                io.submit(operation, &self.arena, &mut self.contexts);
            }
        }
        while let Some(operation) = io.journal.poll_io() {
            io.submit(operation, &self.arena, &mut self.contexts);
            work += 1;
        }
        let durable = io.journal.durable_before();
        while io.flushes.front().is_some_and(|(upto, _)| *upto <= durable) {
            if let Some((_, token)) = io.flushes.pop_front() {
                self.node.handle_journal_durable(self.now, token);
                work += 1;
            }
        }
        let written = io.journal.written_before();
        while io.held.front().is_some_and(|(position, _)| *position < written) {
            if let Some((_, buf)) = io.held.pop_front() {
                io.held_set.remove(&buf);
                if io.freed.remove(&buf) && self.net.may_reuse(buf) {
                    self.arena.free(buf);
                }
            }
        }
        for _ in 0..io.waiting_reads.len() {
            let waiting = self.journal.as_mut().and_then(|io| io.waiting_reads.pop_front());
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
        let Some(place) = io.journal.locate(position, bytes) else {
            io.waiting_reads.push_back((position, write));
            return;
        };
        let Some(slot) = self.read_back.take(place.len, place.skip, write) else {
            io.waiting_reads.push_back((position, write));
            return;
        };
        let context = self.contexts.insert(IoContext::Journal(READ_MARK | u64::from(slot)));
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
                Submit::Busy => io.waiting_reads.push_back((position, write)),
                Submit::Refused(_) => {
                    self.node.handle_written(self.now, write.token, NvmeStatus::INTERNAL);
                }
            }
        }
    }

    /// An operation on the journal's device has completed.
    pub(super) fn journal_done(&mut self, id: u64, status: NvmeStatus) {
        let Some(io) = &mut self.journal else { return };
        if id & READ_MARK != 0 {
            self.has_read_back((id & !READ_MARK) as u32, status);
            return;
        }
        if let Some((operation, _)) = io.operations[id as usize].take() {
            io.in_flight -= 1;
            if !status.is_ok() {
                tracing::error!(?status, "the set journal's device failed");
            }
            io.journal.complete(operation, status.is_ok());
        }
    }

    /// A payload is back in memory: writes it to its volume.
    fn has_read_back(&mut self, slot: u32, status: NvmeStatus) {
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

/// Appends one entry; with the position, the record that the journal writes from, if any.
fn append(
    journal: &mut Journal<DmaBuf>,
    arena: &Arena,
    epoch: Epoch,
    entry: &JournalEntry,
) -> Result<(JournalPos, Option<BufRef>), AppendError> {
    match entry {
        JournalEntry::Record { buf, role } => append_record(journal, arena, *buf, *role),
        JournalEntry::Manifest { message } => {
            let mut bytes = Vec::with_capacity(256);
            encode(epoch, message, &mut bytes);
            let Message::Manifest { group, set, .. } = message else {
                debug_assert!(false, "a manifest entry holds a manifest");
                return Err(AppendError::Failed);
            };
            let entry = Entry::Manifest { group: *group, set: *set, bytes: &bytes };
            journal.append(&entry, None).map(|position| (position, None))
        }
        JournalEntry::Commit { group, set, cut_time_ns } => {
            let entry = Entry::Commit { group: *group, set: *set, cut_time_ns: *cut_time_ns };
            journal.append(&entry, None).map(|position| (position, None))
        }
        JournalEntry::Applied { group, set } => {
            let entry = Entry::Applied { group: *group, set: *set };
            journal.append(&entry, None).map(|position| (position, None))
        }
    }
}

fn append_record(
    journal: &mut Journal<DmaBuf>,
    arena: &Arena,
    buf: BufRef,
    role: RecordRole,
) -> Result<(JournalPos, Option<BufRef>), AppendError> {
    let header = arena.header(buf);
    let Ok(info) = UpdateHeader::check(header) else {
        debug_assert!(false, "a record in the arena was verified on arrival");
        return Err(AppendError::Failed);
    };
    let payload = &arena.payload(buf)[..info.payload_len as usize];
    let entry = Entry::Record {
        role,
        group: info.group,
        set: info.set,
        header,
        payload_crc: info.payload_crc,
        payload,
    };
    let from_arena = payload.len() >= BLOCK_BYTES;
    let position = journal.append(&entry, Some(buf))?;
    Ok((position, from_arena.then_some(buf)))
}
