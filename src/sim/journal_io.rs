//! A secondary poller's journal in operation: the driver of `crate::journal`, as
//! `runtime::journal_io` runs it, over a simulated device. Operations go there and come back, payloads
//! are read back to be applied, and the observer is told.

use super::arena::Arena;
use super::cluster::{Cluster, EPOCH, Event};
use super::disk::DiskOp;
use super::exec_secondary::TargetWrite;
use super::faults::Fault;
use super::journal::{Content, JournalDevice, NO_HEADER};
use super::node::Poller;
use super::observe_secondary::Journals;
use super::observer::{Verdict, Violation, ensure};
use super::profile::block_values;
use crate::journal::{
    AppendError, Appended, BLOCK_BYTES, Driver, Io, IoId, Journal, Located, Piece, Records, Setting,
};
use crate::proto::command::{JournalEntry, JournalPos, RecordRole, Token};
use crate::proto::types::{BufRef, Seq, SetId};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateInfo};

/// See [`Setting::unit_bytes_min`]; in scale with the small shape.
const UNIT_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;
/// Payloads that are read back at once.
const READS_MAX: usize = 2;

impl Records for Arena {
    fn record(&self, buf: BufRef) -> Option<(&[u8; UPDATE_HEADER_BYTES], &[u8])> {
        self.get(buf)?.bytes.split_first_chunk()
    }
}

/// The journal of a poller that lives.
pub(super) struct JournalIo {
    pub(super) driver: Driver<Vec<u8>, TargetWrite>,
    /// Buffers for payloads that are read back in use.
    reads: usize,
}

impl JournalIo {
    pub(super) fn new(journal: Journal<Vec<u8>>) -> Self {
        let setting = Setting { epoch: EPOCH, unit_bytes_min: UNIT_BYTES_MIN };
        Self { driver: Driver::new(journal, setting), reads: 0 }
    }

    /// A payload that was read back is on its volume.
    pub(super) fn give_back(&mut self) {
        self.reads -= 1;
    }

    fn gather(&self, id: IoId, arena: &Arena) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for piece in self.driver.journal().pieces(id) {
            match *piece {
                Piece::Stage { at, len } => {
                    bytes.extend_from_slice(&self.driver.journal().stage()[at..][..len]);
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
            io.driver.append(entry, token, arena);
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
            io.driver.flush(token);
        }
        self.journal_drain(node)
    }

    /// The machines need nothing before `before` any more.
    pub(super) fn journal_retire(&mut self, node: usize, before: JournalPos) {
        let Some(io) = &mut self.pollers[node].journal else { return };
        io.driver.retire(before);
        self.journals[node].retire(before);
    }

    /// Does what was wanted, in order, as far as there is room.
    fn journal_drain(&mut self, node: usize) -> Verdict {
        let now = self.queue.now();
        let poller = &mut self.pollers[node];
        let id = poller.id;
        let Some(io) = &mut poller.journal else { return Ok(()) };
        loop {
            let Appended { entry, token, position } = match io.driver.append_next(&poller.arena) {
                Ok(Some(appended)) => appended,
                Ok(None) => return Ok(()),
                Err(error @ (AppendError::Full | AppendError::Busy)) => {
                    let full = error == AppendError::Full;
                    *(if full {
                        &mut self.stats.journal_full
                    } else {
                        &mut self.stats.journal_busy
                    }) += 1;
                    self.trace.note(now, b'f', [node as u64, u64::from(full)], |out| {
                        write!(out, "{id} cannot append: {error}")
                    });
                    return Ok(());
                }
                Err(AppendError::Failed) if io.driver.journal().failed() => return Ok(()),
                Err(error) => {
                    ensure!(0, false, "{id} cannot journal: {error}");
                    return Ok(());
                }
            };
            let Some(content) = Content::appended(entry, &poller.arena) else {
                ensure!(0, false, "{id} journals a record that it has freed");
                return Ok(());
            };
            self.trace.note(now, b'J', [node as u64, content.kind()], |out| match &content {
                Content::Record { info, role, .. } => write!(
                    out,
                    "{id} journals {role:?} {} of {} in {} at {position:?}",
                    info.seq, info.volume, info.set
                ),
                content => write!(out, "{id} journals {content:?} at {position:?}"),
            });
            self.journals[node].appended(position, content)?;
            if let Some(machines) = &mut poller.node {
                machines.handle_journaled(now, token, position);
            }
        }
    }

    /// Once per turn: operations out, results in, memory back. True when the machines may have
    /// something new to do.
    pub(super) fn journal_turn(&mut self, node: usize) -> Result<bool, Violation> {
        self.journal_drain(node)?;
        let now = self.queue.now();
        let mut worked = false;
        let poller = &mut self.pollers[node];
        let Some(io) = &mut poller.journal else { return Ok(false) };
        if let Some(news) = io.driver.poll_room() {
            self.stats.journal_scarce += u64::from(news.is_some());
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
        while let Some(flushed) = io.driver.poll_durable() {
            self.journals[node].called_durable(flushed.before)?;
            if let Some(machines) = &mut poller.node {
                machines.handle_journal_durable(now, flushed.token);
            }
            worked = true;
        }
        while let Some(buf) = io.driver.poll_reusable() {
            poller.arena.remove(buf);
        }
        for _ in 0..io.driver.waiting_reads() {
            let journal = self.pollers[node].journal.as_mut();
            if let Some((position, write)) = journal.and_then(|io| io.driver.next_waiting_read()) {
                self.journal_read(node, position, write)?;
            }
        }
        Ok(worked)
    }

    fn poll_journal(&mut self, node: usize) -> Option<Io> {
        self.pollers[node].journal.as_mut()?.driver.poll_io()
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
        let ok = !self.disk_rng.chance(self.profile.disks.journal_ppm);
        let kind = if ok { b'F' } else { b'e' };
        self.trace.note(now, kind, [node as u64, u64::from(flush)], |out| {
            let (not, what) =
                (if ok { "" } else { "not " }, if flush { "flushed" } else { "written" });
            write!(out, "{}: the journal is {not}{what}", poller.id)
        });
        if !ok {
            self.stats.journal_errors += 1;
            let after = self.fault_rng.delay(self.profile.down_ns);
            self.queue.after(after, Event::Fault(Fault::Replace(poller.id.mover)));
        }
        let Some(io) = &mut poller.journal else { return Ok(()) };
        let device = &mut self.journals[node];
        if flush && ok {
            device.flushed(op);
        } else if !flush {
            let bytes = io.gather(id, &poller.arena).unwrap_or_default();
            let same = device.disk.in_flight(op).eq(bytes.chunks(BLOCK_BYTES));
            ensure!(0, same, "{}'s memory changed while its journal was written", poller.id);
            if ok {
                device.disk.complete_write(op);
            } else {
                device.disk.fail_write(op, &mut self.disk_rng);
            }
        }
        io.driver.complete(id, ok);
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
        let Some(place) = io.driver.journal().locate(position, bytes) else {
            io.driver.wait_to_read(position, write);
            return Ok(());
        };
        if io.reads == READS_MAX {
            io.driver.wait_to_read(position, write);
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
