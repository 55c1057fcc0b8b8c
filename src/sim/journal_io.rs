//! A secondary poller's journal in operation, as `runtime::journal_io` drives it: what is wanted
//! waits in order for room, operations go to the device and come back, records are kept from being
//! used again while the device may read them, payloads are read back to be applied.

use super::arena::Arena;
use super::cluster::{Cluster, Event};
use super::disk::DiskOp;
use super::exec_secondary::TargetWrite;
use super::journal::{Content, JournalDevice, NO_HEADER};
use super::node::Poller;
use super::observe_secondary::Journals;
use super::observer::{Verdict, Violation, ensure};
use super::profile::block_values;
use crate::journal::{
    AppendError, BLOCK_BYTES, ENTRY_BYTES, Io, IoId, Journal, Located, Piece, Room as LogRoom,
};
use crate::proto::command::{JournalEntry, JournalPos, RecordRole, Token};
use crate::proto::types::{BufRef, Seq, SetId};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateInfo};
use std::collections::{BTreeSet, VecDeque};

/// Waiting appends above which the poller takes no records in.
const BACKLOG_MAX: usize = 256;
/// A unit of so many bytes goes to the device when nothing else is on its way there; in scale with
/// the small shape.
const UNIT_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;
/// Payloads that are read back at once.
const READS_MAX: usize = 2;
/// What a record's headers take in a unit.
const RECORD_BYTES: u64 = (ENTRY_BYTES + UPDATE_HEADER_BYTES) as u64;

/// What the machines asked for, in order.
#[derive(Debug)]
enum Wanted {
    Append { entry: JournalEntry, token: Token },
    Flush { token: Token },
}

/// The journal of a poller that lives.
pub(super) struct JournalIo {
    journal: Journal<Vec<u8>>,
    wanted: VecDeque<Wanted>,
    /// Bytes of the records among them, as the journal will hold them.
    wanted_bytes: u64,
    room: LogRoom,
    /// Flushes that were asked of the journal, and up to where each makes durable.
    flushes: VecDeque<(JournalPos, Token)>,
    /// Records whose memory the journal may still write from, in order of position.
    held: VecDeque<(JournalPos, BufRef)>,
    held_set: BTreeSet<BufRef>,
    /// Of these, records that the machines have freed meanwhile.
    freed: BTreeSet<BufRef>,
    /// Payload reads that wait for memory, or for the write of their unit.
    waiting_reads: VecDeque<(JournalPos, TargetWrite)>,
    in_flight: usize,
    /// Buffers for payloads that are read back in use.
    reads: usize,
}

impl JournalIo {
    pub(super) fn new(journal: Journal<Vec<u8>>) -> Self {
        Self {
            journal,
            wanted: VecDeque::new(),
            wanted_bytes: 0,
            room: LogRoom::default(),
            flushes: VecDeque::new(),
            held: VecDeque::new(),
            held_set: BTreeSet::new(),
            freed: BTreeSet::new(),
            waiting_reads: VecDeque::new(),
            in_flight: 0,
            reads: 0,
        }
    }

    /// Whether no record can be taken in now. Entries are appended in order, so a record that finds
    /// no room would hold up the marks that make room.
    pub(super) fn is_full(&self) -> bool {
        let (capacity, used) = self.capacity_bytes();
        self.wanted.len() > BACKLOG_MAX || self.journal.failed() || LogRoom::is_full(capacity, used)
    }

    /// Bytes of the log, and bytes in use or spoken for.
    fn capacity_bytes(&self) -> (u64, u64) {
        let (capacity, used) = self.journal.capacity_bytes();
        (capacity, used + self.wanted_bytes)
    }

    /// What the machines should know about the room, if that has changed.
    fn news_of_room(&mut self) -> Option<Option<JournalPos>> {
        let (capacity, used) = self.capacity_bytes();
        self.room.look(capacity, used, self.journal.appended_before())
    }

    /// Whether the record may be used again now; if not, it is freed once it is written.
    pub(super) fn may_reuse(&mut self, buf: BufRef) -> bool {
        let held = self.held_set.contains(&buf);
        if held {
            self.freed.insert(buf);
        }
        !held
    }

    /// A payload that was read back is on its volume.
    pub(super) fn give_back(&mut self) {
        self.reads -= 1;
    }

    /// For a history that does not come to rest.
    pub(super) fn describe(&self) -> String {
        let (capacity, used) = self.journal.capacity_bytes();
        format!(
            "{} of {} blocks used{}, {} wanted, {} flushes, {} reads waiting, {} in flight",
            used / BLOCK_BYTES as u64,
            capacity / BLOCK_BYTES as u64,
            if self.room.is_scarce() { ", scarce" } else { "" },
            self.wanted.len(),
            self.flushes.len(),
            self.waiting_reads.len(),
            self.in_flight
        )
    }

    fn gather(&self, id: IoId, arena: &Arena) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in self.journal.pieces(id) {
            match *piece {
                Piece::Stage { at, len } => {
                    bytes.extend_from_slice(&self.journal.stage()[at..][..len]);
                }
                Piece::Payload { buf, len } => {
                    let payload = &arena.get(buf)?.bytes[UPDATE_HEADER_BYTES..];
                    bytes.extend_from_slice(&payload[..len]);
                }
            }
        }
        Some(bytes)
    }
}

/// Bytes that an entry is counted with while it waits: a record's own.
fn wanted_bytes_of(arena: &Arena, entry: &JournalEntry) -> u64 {
    match entry {
        JournalEntry::Record { buf, .. } => arena
            .get(*buf)
            .map_or(0, |record| (record.bytes.len() - UPDATE_HEADER_BYTES) as u64 + RECORD_BYTES),
        _ => 0,
    }
}

/// The observer's eye on all journals.
struct Eye<'a> {
    journals: &'a [JournalDevice],
    block_bytes: u32,
}

impl Journals for Eye<'_> {
    fn durable(&self, shard: usize, volume: usize, seq: Seq) -> Option<(UpdateInfo, Vec<u64>)> {
        match self.journals[shard].durable_record(volume as u32, seq)? {
            Content::Record { bytes, info, .. } => {
                Some((*info, block_values(bytes, self.block_bytes)))
            }
            _ => None,
        }
    }
}

impl Cluster {
    /// The machines want an entry appended.
    pub(super) fn journal(&mut self, node: usize, entry: JournalEntry, token: Token) -> Verdict {
        match entry {
            JournalEntry::Commit { set, .. } => {
                // From here on a loss of power may leave the commit behind.
                let eye = Eye { journals: &self.journals, block_bytes: self.profile.block_bytes };
                self.observer.may_commit(set, &eye)?;
                self.stats.cuts_checked += 1;
            }
            JournalEntry::Applied { set, .. } => self.claims_applied(node, set)?,
            JournalEntry::Record { .. } | JournalEntry::Manifest { .. } => {}
        }
        let Poller { journal, arena, .. } = &mut self.pollers[node];
        if let Some(io) = journal {
            io.wanted_bytes += wanted_bytes_of(arena, &entry);
            io.wanted.push_back(Wanted::Append { entry, token });
        }
        self.journal_drain(node)
    }

    fn claims_applied(&mut self, node: usize, set: SetId) -> Verdict {
        let target = &self.target;
        self.observer.applied(node, set, |volume| target[volume].durable())?;
        self.stats.sets_applied += 1;
        Ok(())
    }

    /// The machines want everything so far durable.
    pub(super) fn journal_flush(&mut self, node: usize, token: Token) -> Verdict {
        if let Some(io) = &mut self.pollers[node].journal {
            io.wanted.push_back(Wanted::Flush { token });
        }
        self.journal_drain(node)
    }

    /// The machines need nothing before `before` any more.
    pub(super) fn journal_retire(&mut self, node: usize, before: JournalPos) {
        let Some(io) = &mut self.pollers[node].journal else { return };
        io.journal.retire(before.min(io.journal.appended_before()));
        self.journals[node].retire(before);
    }

    /// Does what was wanted, in order, as far as there is room.
    fn journal_drain(&mut self, node: usize) -> Verdict {
        let now = self.queue.now();
        let poller = &mut self.pollers[node];
        let id = poller.id;
        let Some(io) = &mut poller.journal else { return Ok(()) };
        while let Some(wanted) = io.wanted.front() {
            let (entry, token) = match wanted {
                Wanted::Flush { token } => {
                    io.flushes.push_back((io.journal.flush(), *token));
                    io.wanted.pop_front();
                    continue;
                }
                Wanted::Append { entry, token } => (entry, *token),
            };
            let (content, buf) = match entry {
                JournalEntry::Record { buf, role } => {
                    let Some(record) = poller.arena.get(*buf) else {
                        ensure!(0, false, "{id} journals a record that it has freed");
                        return Ok(());
                    };
                    let (bytes, info, role) = (record.bytes.clone(), record.info, *role);
                    (Content::Record { bytes, info, role }, Some(*buf))
                }
                JournalEntry::Manifest { message } => (Content::Manifest(message.clone()), None),
                JournalEntry::Commit { group, set, cut_time_ns } => {
                    let (group, set, cut_time_ns) = (*group, *set, *cut_time_ns);
                    (Content::Commit { group, set, cut_time_ns }, None)
                }
                JournalEntry::Applied { group, set } => {
                    (Content::Applied { group: *group, set: *set }, None)
                }
            };
            let position = match content.with_entry(|entry| io.journal.append(entry, buf)) {
                Ok(position) => position,
                Err(error @ (AppendError::Full | AppendError::Busy)) => {
                    let full = error == AppendError::Full;
                    *(if full {
                        &mut self.stats.journal_full
                    } else {
                        &mut self.stats.journal_busy
                    }) += 1;
                    self.trace.note(now, b'f', [node as u64, u64::from(full)], |out| {
                        write!(out, "{id} cannot append {content:?}: {error}")
                    });
                    return Ok(());
                }
                Err(error) => {
                    ensure!(0, false, "{id} cannot journal {content:?}: {error}");
                    return Ok(());
                }
            };
            self.trace.note(now, b'J', [node as u64, content.kind()], |out| match &content {
                Content::Record { info, role, .. } => write!(
                    out,
                    "{id} journals {role:?} {} of {} in {} at {position:?}",
                    info.seq, info.volume, info.set
                ),
                content => write!(out, "{id} journals {content:?} at {position:?}"),
            });
            if let (Some(buf), Content::Record { bytes, .. }) = (buf, &content)
                && bytes.len() - UPDATE_HEADER_BYTES >= BLOCK_BYTES
            {
                io.held.push_back((position, buf));
                io.held_set.insert(buf);
            }
            self.journals[node].appended(position, content)?;
            io.wanted_bytes -= wanted_bytes_of(&poller.arena, entry);
            io.wanted.pop_front();
            if let Some(machines) = &mut poller.node {
                machines.handle_journaled(now, token, position);
            }
        }
        Ok(())
    }

    /// Once per turn: operations out, results in, memory back. True when the machines may have
    /// something new to do.
    pub(super) fn journal_turn(&mut self, node: usize) -> Result<bool, Violation> {
        if self.pollers[node].journal.is_none() {
            return Ok(false);
        }
        self.journal_drain(node)?;
        let now = self.queue.now();
        let mut worked = false;
        let Some(io) = &mut self.pollers[node].journal else { return Ok(false) };
        if io.in_flight == 0 && io.journal.open_bytes() >= UNIT_BYTES_MIN {
            io.journal.seal();
        }
        if let Some(news) = io.news_of_room() {
            self.stats.journal_scarce += u64::from(news.is_some());
            let poller = &mut self.pollers[node];
            self.trace.note(now, b'G', [node as u64, u64::from(news.is_some())], |out| {
                write!(out, "{}: the journal is scarce before {news:?}", poller.id)
            });
            if let Some(machines) = &mut poller.node {
                machines.handle_journal_room(now, news);
            }
            worked = true;
        }
        while let Some(operation) = self.poll_journal(node) {
            self.submit_journal(node, operation)?;
        }
        let poller = &mut self.pollers[node];
        let Some(io) = &mut poller.journal else { return Ok(false) };
        let durable = io.journal.durable_before();
        while io.flushes.front().is_some_and(|(upto, _)| *upto <= durable) {
            let Some((upto, token)) = io.flushes.pop_front() else { break };
            self.journals[node].called_durable(upto)?;
            if let Some(machines) = &mut poller.node {
                machines.handle_journal_durable(now, token);
            }
            worked = true;
        }
        let written = io.journal.written_before();
        while io.held.front().is_some_and(|(position, _)| *position < written) {
            if let Some((_, buf)) = io.held.pop_front() {
                io.held_set.remove(&buf);
                if io.freed.remove(&buf) {
                    poller.arena.remove(buf);
                }
            }
        }
        for (position, write) in std::mem::take(&mut io.waiting_reads) {
            self.journal_read(node, position, write)?;
        }
        Ok(worked)
    }

    fn poll_journal(&mut self, node: usize) -> Option<Io> {
        self.pollers[node].journal.as_mut()?.journal.poll_io()
    }

    fn submit_journal(&mut self, node: usize, operation: Io) -> Verdict {
        let op = self.disk_op();
        let poller = &mut self.pollers[node];
        let Some(io) = &mut poller.journal else { return Ok(()) };
        let (id, mean) = match operation {
            Io::Write { id, offset, len } => {
                let bytes = io.gather(id, &poller.arena);
                let sound = bytes.as_ref().is_some_and(|bytes| bytes.len() == len);
                ensure!(0, sound, "{}'s journal writes from freed memory", poller.id);
                self.journals[node].submit_write(op, offset, &bytes.unwrap_or_default())?;
                (id, self.profile.write_ns)
            }
            Io::Flush { id } => {
                self.journals[node].disk.submit_flush(op);
                (id, self.profile.flush_ns)
            }
            Io::Read { .. } => {
                ensure!(0, false, "an open journal reads by itself");
                return Ok(());
            }
        };
        io.in_flight += 1;
        let (life, flush) = (poller.life, matches!(operation, Io::Flush { .. }));
        let after = self.disk_rng.delay(mean);
        self.queue.after(after, Event::Journal { node, life, op, id, flush });
        Ok(())
    }

    /// An operation of a journal ends.
    pub(super) fn journal_ends(
        &mut self,
        node: usize,
        life: u32,
        op: DiskOp,
        id: IoId,
        flush: bool,
    ) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let now = self.queue.now();
        let poller = &mut self.pollers[node];
        self.trace.note(now, b'F', [node as u64, u64::from(flush)], |out| {
            let what = if flush { "flushed" } else { "written" };
            write!(out, "{}: the journal is {what}", poller.id)
        });
        let Some(io) = &mut poller.journal else { return Ok(()) };
        let device = &mut self.journals[node];
        if flush {
            device.flushed(op);
        } else {
            let bytes = io.gather(id, &poller.arena).unwrap_or_default();
            let same = device.disk.in_flight(op).eq(bytes.chunks(BLOCK_BYTES));
            ensure!(0, same, "{}'s memory changed while its journal was written", poller.id);
            device.disk.complete_write(op);
        }
        io.in_flight -= 1;
        io.journal.complete(id, true);
        self.note_commits(node);
        self.settle(node)
    }

    /// Tells the observer of commits that are durable by now.
    pub(super) fn note_commits(&mut self, node: usize) {
        let committed = self.journals[node].committed();
        if committed > self.observer.committed {
            self.stats.sets_committed += committed.0 - self.observer.committed.0;
            self.observer.committed = committed;
        }
    }

    /// Reads a payload back, then writes it to its volume.
    pub(super) fn journal_read(
        &mut self,
        node: usize,
        position: JournalPos,
        write: TargetWrite,
    ) -> Verdict {
        let bytes = (write.extent.blocks * self.profile.block_bytes) as usize;
        let poller = &mut self.pollers[node];
        let Some(io) = &mut poller.journal else { return Ok(()) };
        let Some(place) = io.journal.locate(position, bytes) else {
            io.waiting_reads.push_back((position, write));
            return Ok(());
        };
        if io.reads == READS_MAX {
            io.waiting_reads.push_back((position, write));
            return Ok(());
        }
        io.reads += 1;
        self.stats.journal_reads += 1;
        let life = poller.life;
        let after = self.disk_rng.delay(self.profile.write_ns);
        self.queue.after(after, Event::ReadBack { node, life, position, place, write });
        Ok(())
    }

    /// A payload is back in memory: writes it.
    pub(super) fn read_back(
        &mut self,
        node: usize,
        life: u32,
        position: JournalPos,
        place: Located,
        write: TargetWrite,
    ) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let id = self.pollers[node].id;
        let mut bytes = vec![0; place.len];
        self.journals[node].disk.read(place.offset, &mut bytes);
        let found = match self.journals[node].read(position) {
            Some(Content::Record { bytes, info, role: RecordRole::Transfer }) => {
                Some((*info, &bytes[UPDATE_HEADER_BYTES..]))
            }
            _ => None,
        };
        let Some((info, payload)) = found else {
            ensure!(7, false, "{id} reads back {position:?}, where no record of its own is");
            return Ok(());
        };
        let same = bytes[place.skip..].get(..payload.len()) == Some(payload);
        ensure!(7, same, "{id} reads back something else at {position:?} than it journaled");
        let values = block_values(&[&NO_HEADER, payload].concat(), self.profile.block_bytes);
        let write = TargetWrite { read_back: true, ..write };
        self.target_write_values(node, write, &info, values)?;
        self.settle(node)
    }
}
