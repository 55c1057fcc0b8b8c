//! A secondary shard's journal device: the bytes, and what the observer knows to be in them.
//!
//! The shard runs the real journal (`crate::journal`) over a [`ByteDisk`]. Beside the bytes there is
//! the *shadow*: every entry as it was appended, by position, and the device's write that carries it.
//! So what is durable is known from the device, not from the journal, and what a recovery finds is
//! held against what was appended: all that was durable and is still needed, without a gap, and
//! nothing else.

use super::arena::Arena;
use super::byte_disk::{BLOCK, ByteDisk};
use super::disk::DiskOp;
use super::observer::{Verdict, Violation, ensure};
use super::prng::Rng;
use crate::journal::{Config, Entry, Identity, Io, Journal, Piece, Recovery, Step};
use crate::proto::command::{JournalEntry, JournalPos, RecordRole};
use crate::proto::message::Message;
use crate::proto::types::{Epoch, GroupId, Seq, SetId, ShardId};
use crate::wire::message::decode;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader, UpdateInfo};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One entry as it was appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// An update record.
    Record {
        /// Header and payload.
        bytes: Vec<u8>,
        /// What the header says.
        info: UpdateInfo,
        /// Own or mirrored.
        role: RecordRole,
    },
    /// A shard's part of a manifest.
    Manifest(Message),
    /// A commit.
    Commit {
        /// The group.
        group: GroupId,
        /// The last committed set.
        set: SetId,
        /// When the set was cut, nanoseconds since the Unix epoch.
        cut_time_ns: u64,
        /// The primary site's epoch that was known.
        primary_epoch: Epoch,
    },
    /// Sets on the volumes.
    Applied {
        /// The group.
        group: GroupId,
        /// The last applied set.
        set: SetId,
    },
}

impl Content {
    /// A number per kind, for the trace.
    pub(super) fn kind(&self) -> u64 {
        match self {
            Self::Record { info, .. } => info.seq.0 << 8,
            Self::Manifest(_) => 1,
            Self::Commit { set, .. } => set.0 << 8 | 2,
            Self::Applied { set, .. } => set.0 << 8 | 3,
        }
    }

    /// What the machines had appended; none when the record is not in their arena.
    pub(super) fn appended(entry: JournalEntry, arena: &Arena) -> Option<Self> {
        Some(match entry {
            JournalEntry::Record { buf, role } => {
                let record = arena.get(buf)?;
                Self::Record { bytes: record.bytes.clone(), info: record.info, role }
            }
            JournalEntry::Manifest { message } => Self::Manifest(message),
            JournalEntry::Commit { group, set, cut_time_ns, primary_epoch } => {
                Self::Commit { group, set, cut_time_ns, primary_epoch }
            }
            JournalEntry::Applied { group, set } => Self::Applied { group, set },
        })
    }

    /// What a recovery found; none when it cannot be read.
    fn of(entry: &Entry<'_>) -> Option<Self> {
        Some(match *entry {
            Entry::Record { role, header, payload, .. } => {
                let info = UpdateHeader::check(header).ok()?;
                Self::Record { bytes: [&header[..], payload].concat(), info, role }
            }
            Entry::Manifest { bytes, .. } => Self::Manifest(decode(bytes).ok()?.1),
            Entry::Commit { group, set, cut_time_ns, primary_epoch } => {
                Self::Commit { group, set, cut_time_ns, primary_epoch }
            }
            Entry::Applied { group, set } => Self::Applied { group, set },
        })
    }
}

/// Stands for a header that is not there.
pub(super) const NO_HEADER: [u8; UPDATE_HEADER_BYTES] = [0; UPDATE_HEADER_BYTES];

/// An entry of the shadow.
#[derive(Debug)]
struct Shadow {
    content: Content,
    /// A loss of power leaves it on the device. It is found again if all before it is too.
    on_medium: bool,
}

/// What a recovery yields: the journal, and its entries.
type Recovered = (Journal<Vec<u8>>, Vec<(JournalPos, Content)>);

/// The device of one shard. It outlives the shard's process.
#[derive(Debug)]
pub struct JournalDevice {
    /// The bytes.
    pub(super) disk: ByteDisk,
    config: Config,
    stage_bytes: usize,
    owner: ShardId,
    formatted: bool,
    shadow: BTreeMap<u64, Shadow>,
    /// Position of the newest own record of each number, by volume index.
    own: BTreeMap<(u32, Seq), u64>,
    /// Positions that no write carries yet.
    unwritten: VecDeque<u64>,
    /// Positions that each write carries.
    carried: BTreeMap<DiskOp, Vec<u64>>,
    /// All entries before this position are on the medium: these are durable.
    durable: u64,
    /// The shard needs nothing before this position.
    retired: u64,
    /// The last set with a durable commit.
    committed: SetId,
}

impl JournalDevice {
    /// A device of zeroes for the journal of `owner`, whose stage has so many bytes.
    #[must_use]
    pub fn new(owner: ShardId, config: Config, stage_bytes: usize) -> Self {
        Self {
            disk: ByteDisk::new(config.device_bytes),
            config,
            stage_bytes,
            owner,
            formatted: false,
            shadow: BTreeMap::new(),
            own: BTreeMap::new(),
            unwritten: VecDeque::new(),
            carried: BTreeMap::new(),
            durable: 0,
            retired: 0,
            committed: SetId(0),
        }
    }

    /// The shard's journal took an entry.
    pub(super) fn appended(&mut self, position: JournalPos, content: Content) -> Verdict {
        let last = self.shadow.last_key_value().map_or(0, |(last, _)| *last + 1);
        ensure!(7, position.0 >= last, "{position:?} is given out after {}", last - 1);
        if let Content::Record { info, role: RecordRole::Transfer, .. } = &content {
            self.own.insert((info.volume.0, info.seq), position.0);
        }
        self.shadow.insert(position.0, Shadow { content, on_medium: false });
        self.unwritten.push_back(position.0);
        // What lies a whole turn behind and was given back is surely overwritten.
        let turn = self.config.device_bytes;
        while let Some((first, _)) = self.shadow.first_key_value()
            && *first < self.retired
            && *first + turn < position.0
        {
            let first = *first;
            self.forget(first);
        }
        Ok(())
    }

    fn forget(&mut self, position: u64) {
        if let Some(Shadow { content: Content::Record { info, .. }, .. }) =
            self.shadow.remove(&position)
            && self.own.get(&(info.volume.0, info.seq)) == Some(&position)
        {
            self.own.remove(&(info.volume.0, info.seq));
        }
    }

    /// The journal submits a write: the positions inside it are carried by it.
    pub(super) fn submit_write(&mut self, op: DiskOp, offset: u64, bytes: &[u8]) -> Verdict {
        ensure!(
            7,
            self.disk.submit_write(op, offset, bytes),
            "the journal of {} writes beyond its device, at {offset}",
            self.owner
        );
        let ring = self.config.device_bytes / BLOCK as u64 - 2;
        let place = |position: u64| (2 + position / BLOCK as u64 % ring) * BLOCK as u64;
        let mut carried = Vec::new();
        while let Some(position) = self.unwritten.front()
            && (offset..offset + bytes.len() as u64).contains(&place(*position))
        {
            carried.push(*position);
            self.unwritten.pop_front();
        }
        self.carried.insert(op, carried);
        Ok(())
    }

    /// A flush of the device is complete.
    pub(super) fn flushed(&mut self, op: DiskOp) {
        for write in self.disk.complete_flush(op) {
            for position in self.carried.remove(&write).unwrap_or_default() {
                if let Some(shadow) = self.shadow.get_mut(&position) {
                    shadow.on_medium = true;
                }
            }
        }
        self.advance_durable();
    }

    fn advance_durable(&mut self) {
        for (position, shadow) in self.shadow.range(self.durable..) {
            if !shadow.on_medium {
                break;
            }
            self.durable = position + 1;
            if let Content::Commit { set, .. } = shadow.content {
                self.committed = self.committed.max(set);
            }
        }
    }

    /// The journal calls everything before `before` durable.
    pub(super) fn called_durable(&self, before: JournalPos) -> Verdict {
        let wrong = self.shadow.range(self.durable..).next().filter(|(at, _)| **at < before.0);
        ensure!(
            7,
            wrong.is_none(),
            "the journal of {} calls {before:?} durable, the device may lose {wrong:?}",
            self.owner
        );
        Ok(())
    }

    /// The last set with a durable commit.
    #[must_use]
    pub fn committed(&self) -> SetId {
        self.committed
    }

    /// The last set that it says is applied.
    #[must_use]
    pub fn applied_mark(&self) -> SetId {
        let marks = self.shadow.values().map(|shadow| match shadow.content {
            Content::Applied { set, .. } => set,
            _ => SetId(0),
        });
        marks.max().unwrap_or(SetId(0))
    }

    /// An entry.
    #[must_use]
    pub fn read(&self, pos: JournalPos) -> Option<&Content> {
        self.shadow.get(&pos.0).map(|shadow| &shadow.content)
    }

    /// The own record of a number, if it is durable.
    #[must_use]
    pub fn durable_record(&self, volume: u32, seq: Seq) -> Option<&Content> {
        let position = self.own.get(&(volume, seq)).filter(|at| **at < self.durable)?;
        self.shadow.get(position).map(|shadow| &shadow.content)
    }

    /// The shard needs no entries before `before` any more.
    pub(super) fn retire(&mut self, before: JournalPos) {
        self.retired = self.retired.max(before.0);
    }

    /// Update records that the shard may still need.
    #[must_use]
    pub fn records(&self) -> usize {
        let kept = self.shadow.range(self.retired..);
        kept.filter(|(_, shadow)| matches!(shadow.content, Content::Record { .. })).count()
    }

    /// The shard's process is gone; `power` too, perhaps. Returns how many entries are lost.
    ///
    /// # Errors
    /// Invariant 7: what is left cannot be opened, or lacks what was durable.
    pub(super) fn user_died(&mut self, power: bool, rng: &mut Rng) -> Result<u64, Violation> {
        self.disk.user_died(rng);
        if power {
            self.disk.power_lost(rng);
        }
        if !self.formatted {
            return Ok(0);
        }
        // What a recovery of this very device will find is what is left; the device itself stays
        // as it is.
        let mut image = self.disk.clone();
        let (_, found) = self.read_all(&mut image)?;
        let lost = self.keep_found(&found)?;
        if power {
            // Without a cache everything that is there is durable.
            self.all_durable();
        }
        Ok(lost)
    }

    /// Holds what was found against the shadow and cuts the shadow to it.
    fn keep_found(&mut self, found: &[(JournalPos, Content)]) -> Result<u64, Violation> {
        let owner = self.owner;
        let positions: BTreeSet<u64> = found.iter().map(|(position, _)| position.0).collect();
        let needed = self.retired..self.durable.max(self.retired);
        let missing =
            self.shadow.range(needed).map(|(at, _)| *at).find(|at| !positions.contains(at));
        ensure!(7, missing.is_none(), "the journal of {owner} lost {missing:?}, which was durable");
        let first = found.first().map_or(u64::MAX, |(position, _)| position.0);
        let mut shadow = self.shadow.range(first..);
        for (position, content) in found {
            let expected = shadow.next().map(|(at, shadow)| (*at, &shadow.content));
            ensure!(
                7,
                expected == Some((position.0, content)),
                "the journal of {owner} has {content:?} at {position:?}, appended was {expected:?}"
            );
        }
        let end = found.last().map_or(0, |(position, _)| position.0 + 1);
        let lost: Vec<u64> =
            self.shadow.range(end.max(self.retired)..).map(|(at, _)| *at).collect();
        for position in self.shadow.range(end..).map(|(at, _)| *at).collect::<Vec<_>>() {
            self.forget(position);
        }
        // An earlier copy of a number counts again when the later one is lost.
        for (position, shadow) in &self.shadow {
            if let Content::Record { info, role: RecordRole::Transfer, .. } = &shadow.content {
                self.own.insert((info.volume.0, info.seq), *position);
            }
        }
        self.unwritten.clear();
        self.carried.clear();
        self.durable = self.durable.min(end);
        Ok(lost.len() as u64)
    }

    fn all_durable(&mut self) {
        for shadow in self.shadow.values_mut() {
            shadow.on_medium = true;
        }
        self.advance_durable();
    }

    /// Opens the journal for a shard that starts; a new device is formatted first.
    ///
    /// # Errors
    /// Invariant 7, as at a crash.
    pub(super) fn open(&mut self) -> Result<Recovered, Violation> {
        let mut disk = std::mem::replace(&mut self.disk, ByteDisk::new(0));
        let opened = self.read_all(&mut disk);
        self.disk = disk;
        let (journal, found) = opened?;
        self.formatted = true;
        self.keep_found(&found)?;
        self.all_durable();
        Ok((journal, found))
    }

    fn read_all(&self, disk: &mut ByteDisk) -> Result<Recovered, Violation> {
        self.recover(disk).map_err(|error| Violation {
            invariant: 7,
            text: format!("the journal of {} does not open: {error}", self.owner),
        })
    }

    fn recover(&self, disk: &mut ByteDisk) -> Result<Recovered, crate::journal::OpenError> {
        // Whatever was in the memory before must not matter.
        let stage = vec![0xEE; self.stage_bytes];
        let mut recovery = if self.formatted {
            Recovery::open(self.config, self.owner, stage)?
        } else {
            let identity = Identity { journal: *b"simulated journ.", owner: self.owner };
            Recovery::format(self.config, identity, stage)?
        };
        let mut found = Vec::new();
        loop {
            match recovery.poll()? {
                Step::Done => return Ok((recovery.into_journal(), found)),
                Step::Entries => {
                    while let Some((position, entry)) = recovery.next_entry() {
                        found.extend(Content::of(&entry).map(|content| (position, content)));
                    }
                }
                Step::Io(Io::Read { id, offset, len }) => {
                    disk.read(offset, &mut recovery.stage_mut()[..len]);
                    recovery.complete(id, true)?;
                }
                Step::Io(Io::Write { id, offset, .. }) => {
                    let mut bytes = Vec::new();
                    for piece in recovery.pieces(id) {
                        if let Piece::Stage { at, len } = piece {
                            bytes.extend_from_slice(&recovery.stage()[at..][..len]);
                        }
                    }
                    let fits = disk.submit_write(OPENING, offset, &bytes);
                    disk.complete_write(OPENING);
                    recovery.complete(id, fits)?;
                }
                Step::Io(Io::Flush { id }) => {
                    disk.submit_flush(OPENING);
                    disk.complete_flush(OPENING);
                    recovery.complete(id, true)?;
                }
            }
        }
    }
}

/// Names the operations of a recovery, of which only one is under way at a time.
const OPENING: DiskOp = DiskOp(0);
