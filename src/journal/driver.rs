//! A journal in operation, as every owner runs it: what its state machines want waits in order for
//! room, records stay in memory while the device may read them, and the machines hear of places,
//! durability and scarcity.
//!
//! Without IO, like the journal. The pollers run it over SPDK, the simulator over its disk; theirs
//! is only how an operation reaches the device and where a record's bytes are ([`Records`]).
//!
//! ```text
//!   append, flush ─► wanted ─► append_next* ─► Journal ─► poll_io* ─► device ─► complete
//!                                  │                          poll_durable*, poll_reusable*
//!                                  ▼ places                   poll_room, next_waiting_read*
//! ```
//!
//! `append_next` after every `append` and `flush`; then, once per turn of the owner, all of them
//! until they return nothing.
//!
//! # Not done here
//!
//! No second try of an entry that the journal can never take, or of anything after the device
//! failed: [`Driver::failed`] says so, and what to do is policy.

use super::{AppendError, BLOCK_BYTES, ENTRY_BYTES, Entry, Io, IoId, Journal, Room};
use crate::proto::command::{JournalEntry, JournalPos, RecordRole, Token};
use crate::proto::message::Message;
use crate::proto::types::{BufRef, Epoch};
use crate::wire::message::encode;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader};
use std::collections::{HashMap, VecDeque};
use std::fmt;

/// Waiting appends and flushes above which no records are taken in.
const BACKLOG_MAX: usize = 256;
/// What a record's headers take in a unit, in bytes.
const RECORD_BYTES: u64 = (ENTRY_BYTES + UPDATE_HEADER_BYTES) as u64;
/// Entries, held records and the like that find room without an allocation.
const EXPECTED: usize = 1024;

/// Where the owner's records lie.
pub trait Records {
    /// A record's header and payload; `None` when there is no such record. Zeroes may follow what
    /// the header calls the payload.
    fn record(&self, buf: BufRef) -> Option<(&[u8; UPDATE_HEADER_BYTES], &[u8])>;
}

/// How an owner wants its journal run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Written into manifests.
    pub epoch: Epoch,
    /// A unit of so many bytes goes to the device when nothing else is on its way there. Smaller
    /// ones wait for a flush, as each costs a header.
    pub unit_bytes_min: u64,
}

/// An entry that has its place.
#[derive(Debug)]
pub struct Appended {
    /// The entry.
    pub entry: JournalEntry,
    /// As it came with the entry.
    pub token: Token,
    /// Its place, final.
    pub position: JournalPos,
}

/// A flush that is done.
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    /// Everything before this position survives a loss of power.
    pub before: JournalPos,
    /// As it came with the flush.
    pub token: Token,
}

/// What the machines asked for.
#[derive(Debug)]
enum Wanted {
    /// With the bytes that it is counted with while it waits.
    Append(JournalEntry, Token, u64),
    Flush(Token),
}

/// A record whose memory the journal may still write from.
#[derive(Debug)]
struct Held {
    /// The last place where it was appended.
    position: JournalPos,
    /// The machines need it no more.
    freed: bool,
}

/// The journal and all that waits for it. Owned by one poller. `M` is the stage memory, `R` what a
/// payload is read back for.
#[derive(Debug)]
pub struct Driver<M, R> {
    journal: Journal<M>,
    setting: Setting,
    wanted: VecDeque<Wanted>,
    /// Bytes of the records among them, as the journal will hold them.
    wanted_bytes: u64,
    /// The oldest of them can never be appended.
    stuck: bool,
    /// A manifest's bytes while it is appended.
    manifest: Vec<u8>,
    room: Room,
    /// Flushes asked of the journal.
    flushes: VecDeque<Flushed>,
    /// The places of held records, ascending.
    places: VecDeque<(JournalPos, BufRef)>,
    held: HashMap<BufRef, Held>,
    reads: VecDeque<(JournalPos, R)>,
    /// Operations given out and not completed.
    under_way: usize,
}

impl<M: AsRef<[u8]> + AsMut<[u8]>, R> Driver<M, R> {
    /// Runs an open journal.
    pub fn new(journal: Journal<M>, setting: Setting) -> Self {
        Self {
            journal,
            setting,
            wanted: VecDeque::with_capacity(EXPECTED),
            wanted_bytes: 0,
            stuck: false,
            manifest: Vec::with_capacity(BLOCK_BYTES),
            room: Room::default(),
            flushes: VecDeque::with_capacity(EXPECTED),
            places: VecDeque::with_capacity(EXPECTED),
            held: HashMap::with_capacity(EXPECTED),
            reads: VecDeque::new(),
            under_way: 0,
        }
    }

    /// The machines want an entry appended, behind all that they wanted before. A record must stay
    /// in memory until [`may_reuse`](Self::may_reuse) allows otherwise.
    pub fn append(&mut self, entry: JournalEntry, token: Token, records: &impl Records) {
        let bytes = match entry {
            JournalEntry::Record { buf, .. } => records.record(buf).map_or(0, |(header, _)| {
                RECORD_BYTES + u64::from(UpdateHeader::payload_len(header))
            }),
            _ => 0,
        };
        self.wanted_bytes += bytes;
        self.wanted.push_back(Wanted::Append(entry, token, bytes));
    }

    /// The machines want all that they wanted before made durable;
    /// [`poll_durable`](Self::poll_durable) then returns `token`.
    pub fn flush(&mut self, token: Token) {
        self.wanted.push_back(Wanted::Flush(token));
    }

    /// The machines need no entry before `before` any more.
    pub fn retire(&mut self, before: JournalPos) {
        self.journal.retire(before.min(self.journal.appended_before()));
    }

    /// Appends the oldest entry that waits, and asks the journal for the flushes before it. `None`
    /// when no entry waits, or none ever will be appended.
    ///
    /// # Errors
    ///
    /// Why the entry was not appended. `Full` and `Busy` pass: it waits on. Any other is returned
    /// once, and the driver has [`failed`](Self::failed).
    pub fn append_next(&mut self, records: &impl Records) -> Result<Option<Appended>, AppendError> {
        while let Some(Wanted::Flush(token)) = self.wanted.front()
            && !self.stuck
        {
            self.flushes.push_back(Flushed { before: self.journal.flush(), token: *token });
            self.wanted.pop_front();
        }
        let Some(Wanted::Append(entry, ..)) = self.wanted.front().filter(|_| !self.stuck) else {
            return Ok(None);
        };
        let placed =
            place(&mut self.journal, self.setting.epoch, &mut self.manifest, records, entry);
        let (position, held) = placed.inspect_err(|error| {
            self.stuck = !matches!(error, AppendError::Full | AppendError::Busy);
        })?;
        if let Some(buf) = held {
            self.places.push_back((position, buf));
            self.held.insert(buf, Held { position, freed: false });
        }
        let Some(Wanted::Append(entry, token, bytes)) = self.wanted.pop_front() else {
            return Ok(None);
        };
        self.wanted_bytes -= bytes;
        Ok(Some(Appended { entry, token, position }))
    }

    /// The next operation for the device, to be [`complete`](Self::complete)d.
    pub fn poll_io(&mut self) -> Option<Io> {
        if self.under_way == 0 && self.journal.open_bytes() >= self.setting.unit_bytes_min {
            self.journal.seal();
        }
        let io = self.journal.poll_io()?;
        self.under_way += 1;
        Some(io)
    }

    /// What came of an operation.
    pub fn complete(&mut self, id: IoId, ok: bool) {
        self.under_way -= 1;
        self.journal.complete(id, ok);
    }

    /// The next flush that is done, in the order of [`flush`](Self::flush).
    pub fn poll_durable(&mut self) -> Option<Flushed> {
        let durable = self.journal.durable_before();
        self.flushes.pop_front_if(|flushed| flushed.before <= durable)
    }

    /// Whether the record, which the machines have freed, may be used again now. If not,
    /// [`poll_reusable`](Self::poll_reusable) returns it once it may.
    #[inline]
    pub fn may_reuse(&mut self, buf: BufRef) -> bool {
        match self.held.get_mut(&buf) {
            Some(held) => {
                held.freed = true;
                false
            }
            None => true,
        }
    }

    /// The next freed record that the journal does not write from any more.
    pub fn poll_reusable(&mut self) -> Option<BufRef> {
        let written = self.journal.written_before();
        while let Some((position, buf)) = self.places.pop_front_if(|(at, _)| *at < written) {
            // A record that was appended again is held for its last place.
            let last = self.held.get(&buf).is_some_and(|held| held.position == position);
            if last && self.held.remove(&buf).is_some_and(|held| held.freed) {
                return Some(buf);
            }
        }
        None
    }

    /// What the machines should know about the room, if that has changed; see [`Room::look`].
    pub fn poll_room(&mut self) -> Option<Option<JournalPos>> {
        let (capacity, used) = self.capacity_bytes();
        self.room.look(capacity, used, self.journal.appended_before())
    }

    /// Keeps a payload read that cannot be begun: its unit is not written, or the owner has no
    /// memory for it.
    pub fn wait_to_read(&mut self, position: JournalPos, read: R) {
        self.reads.push_back((position, read));
    }

    /// How many payload reads wait; as many are to be tried in a turn.
    pub fn waiting_reads(&self) -> usize {
        self.reads.len()
    }

    /// Takes out the payload read that has waited longest.
    pub fn next_waiting_read(&mut self) -> Option<(JournalPos, R)> {
        self.reads.pop_front()
    }

    /// Whether no record can be taken in now. Entries are appended in order, so a record that finds
    /// no room would hold up the marks that make room.
    pub fn is_full(&self) -> bool {
        let (capacity, used) = self.capacity_bytes();
        self.wanted.len() > BACKLOG_MAX || self.failed() || Room::is_full(capacity, used)
    }

    /// Bytes of the log, and bytes in use or spoken for.
    pub fn capacity_bytes(&self) -> (u64, u64) {
        let (capacity, used) = self.journal.capacity_bytes();
        (capacity, used + self.wanted_bytes)
    }

    /// Whether nothing is appended any more: a write or flush failed, or an entry was refused for
    /// good.
    pub fn failed(&self) -> bool {
        self.journal.failed() || self.stuck
    }

    /// Whether nothing is under way, and nothing waits that could still be done.
    pub fn is_idle(&self) -> bool {
        let done = (self.wanted.is_empty() || self.stuck) && self.journal.is_idle();
        self.under_way == 0 && (self.journal.failed() || done)
    }

    /// The journal, for its pieces, its stage memory and where payloads are.
    pub fn journal(&self) -> &Journal<M> {
        &self.journal
    }
}

/// For people: how full it is, and what waits.
impl<M: AsRef<[u8]> + AsMut<[u8]>, R> fmt::Display for Driver<M, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (capacity, used) = self.journal.capacity_bytes();
        write!(
            out,
            "{} of {} blocks used{}{}, {} wanted, {} flushes, {} reads waiting, {} in flight",
            used / BLOCK_BYTES as u64,
            capacity / BLOCK_BYTES as u64,
            if self.room.is_scarce() { ", scarce" } else { "" },
            if self.failed() { ", failed" } else { "" },
            self.wanted.len(),
            self.flushes.len(),
            self.reads.len(),
            self.under_way
        )
    }
}

/// Appends one entry; with its place, the record that the journal writes from, if any.
fn place<M: AsRef<[u8]> + AsMut<[u8]>>(
    journal: &mut Journal<M>,
    epoch: Epoch,
    manifest: &mut Vec<u8>,
    records: &impl Records,
    entry: &JournalEntry,
) -> Result<(JournalPos, Option<BufRef>), AppendError> {
    let entry = match entry {
        JournalEntry::Record { buf, role } => {
            let entry = entry_of(records, *buf, *role).ok_or(AppendError::Unreadable)?;
            let position = journal.append(&entry, Some(*buf))?;
            return Ok((position, (entry.payload().len() >= BLOCK_BYTES).then_some(*buf)));
        }
        JournalEntry::Manifest { message } => {
            let Message::Manifest { group, set, .. } = message else {
                return Err(AppendError::Unreadable);
            };
            manifest.clear();
            encode(epoch, message, manifest);
            Entry::Manifest { group: *group, set: *set, bytes: manifest }
        }
        JournalEntry::Commit { group, set, cut_time_ns, primary_epoch } => Entry::Commit {
            group: *group,
            set: *set,
            cut_time_ns: *cut_time_ns,
            primary_epoch: *primary_epoch,
        },
        JournalEntry::Applied { group, set } => Entry::Applied { group: *group, set: *set },
    };
    journal.append(&entry, None).map(|position| (position, None))
}

/// A record as the journal takes it.
fn entry_of(records: &impl Records, buf: BufRef, role: RecordRole) -> Option<Entry<'_>> {
    let (header, payload) = records.record(buf)?;
    let info = UpdateHeader::check(header).ok()?;
    Some(Entry::Record {
        role,
        group: info.group,
        set: info.set,
        header,
        payload_crc: info.payload_crc,
        payload: payload.get(..info.payload_len as usize)?,
    })
}
