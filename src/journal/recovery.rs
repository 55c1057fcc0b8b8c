//! Opening a journal: which entries are there, and where it goes on.
//!
//! The scan starts at the superblock's tail and takes unit after unit as long as
//! each is whole, lies where the one before ends, and is of the right generation.
//! The first that is not ends the log: nothing behind it was ever reported durable,
//! because a flush is reported only when every earlier write had completed before
//! it. What lies there, whole or torn, belongs to an older generation from then on,
//! and a later scan refuses it even when it continues the log at the right place.

use super::format::{BLOCK_BYTES, Cursor, KIND_PAD, UnitInfo};
use super::geometry::{ConfigError, Geometry, Located, Shape, position_of};
use super::marks::Marks;
use super::owed::Owed;
use super::stage::{SUPERBLOCK_AT, Stage};
use super::superblock::{GroupMarks, Groups, Identity, Superblock};
use super::writer::{Journal, locate};
use super::{Config, Entry, Io, IoId, JournalPos, Piece};
use crate::mem::Copier;
use crate::proto::types::ShardId;

const READ: IoId = IoId(0);
const WRITE: IoId = IoId(1);
const FLUSH: IoId = IoId(2);

/// Why a journal cannot be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is not possible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Neither superblock carries the mark of a journal: the device was never
    /// formatted.
    #[error("the device holds no journal; it must be formatted first")]
    Blank,
    /// Both superblocks are damaged, or of a version this build does not read.
    #[error("no superblock can be read (version {version} found)")]
    Superblocks {
        /// The version that one of them names.
        version: u8,
    },
    /// The journal of another poller.
    #[error("the journal belongs to shard {found}")]
    Owner {
        /// Whose it is.
        found: ShardId,
    },
    /// The device or the shape are not what they were when it was formatted.
    #[error("formatted for {blocks} blocks of device and {shape:?}")]
    Geometry {
        /// Blocks of the device at formatting.
        blocks: u64,
        /// The shape at formatting.
        shape: Shape,
    },
    /// Entries that were durable are not there: the device lost what it had promised
    /// to keep.
    #[error("the log ends at block {end}, but was durable up to block {floor}")]
    Lost {
        /// The logical block where the scan ended.
        end: u64,
        /// The logical block that must be reached.
        floor: u64,
    },
    /// An operation of the device failed.
    #[error("the journal device failed")]
    Device,
}

/// What [`Recovery::poll`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Carry out and [`Recovery::complete`].
    Io(Io),
    /// Take entries with [`Recovery::next_entry`] until it has none.
    Entries,
    /// [`Recovery::into_journal`].
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Both superblocks are to be read.
    Superblocks,
    /// The log is to be read from `at` on.
    Read,
    /// `window` bytes are in memory, of which the unit at `at` starts at `from`.
    Scan {
        from: usize,
        window: usize,
    },
    /// The unit at `from` is whole; its entries are being taken.
    Entries {
        from: usize,
        window: usize,
        info: UnitInfo,
        cursor: Cursor,
    },
    /// What was found is to be made durable.
    FlushFound,
    /// A superblock of the new generation is to be written.
    Write,
    FlushSuperblock,
    Done,
}

/// A journal being opened or formatted. See [`super`] for the sequence of calls.
#[derive(Debug)]
pub struct Recovery<M> {
    config: Config,
    geometry: Geometry,
    owner: ShardId,
    stage: Stage<M>,
    copier: Copier,
    phase: Phase,
    /// An operation is on its way.
    waiting: bool,
    image: Superblock,
    /// Blocks of superblock to be written at the end: one, or both by `format`.
    copies: usize,
    /// Logical block of the next unit.
    at: u64,
    /// Generation of the last unit.
    generation_seen: u64,
    marks: Marks,
    owed: Owed,
}

impl<M: AsRef<[u8]> + AsMut<[u8]>> Recovery<M> {
    /// Opens the journal of `owner`. `stage` is memory that the device can reach,
    /// aligned as it asks, of at least [`Config::stage_bytes_min`].
    ///
    /// # Errors
    ///
    /// When the configuration is not possible.
    pub fn open(config: Config, owner: ShardId, stage: M) -> Result<Self, OpenError> {
        let identity = Identity { journal: [0; 16], owner };
        Self::new(config, identity, stage, Phase::Superblocks)
    }

    /// Makes an empty journal. What was on the device is lost.
    ///
    /// # Errors
    ///
    /// When the configuration is not possible.
    pub fn format(config: Config, identity: Identity, stage: M) -> Result<Self, OpenError> {
        let mut recovery = Self::new(config, identity, stage, Phase::Write)?;
        recovery.image.generation = 1;
        recovery.copies = 2;
        Ok(recovery)
    }

    fn new(config: Config, identity: Identity, stage: M, phase: Phase) -> Result<Self, OpenError> {
        let geometry = config.check(stage.as_ref().len())?;
        Ok(Self {
            config,
            geometry,
            owner: identity.owner,
            stage: Stage::new(stage),
            copier: Copier::detect(),
            phase,
            waiting: false,
            image: Superblock {
                identity,
                shape: config.shape,
                device_blocks: geometry.device_blocks(),
                counter: 1,
                tail: 0,
                generation: 0,
                generation_start: 0,
                floor: 0,
                groups: Groups::new(),
            },
            copies: 1,
            at: 0,
            generation_seen: 0,
            marks: Marks::new(),
            owed: Owed::new(),
        })
    }

    /// What is to be done next.
    ///
    /// # Errors
    ///
    /// When the journal cannot be opened. That is final.
    ///
    /// # Panics
    ///
    /// When an operation is on its way: complete it first.
    pub fn poll(&mut self) -> Result<Step, OpenError> {
        assert!(!self.waiting, "an operation is on its way");
        loop {
            let io = match self.phase {
                Phase::Superblocks => Io::Read { id: READ, offset: 0, len: 2 * BLOCK_BYTES },
                Phase::Read => {
                    let blocks = self.geometry.shape.unit_blocks_max();
                    let blocks = blocks.min(self.geometry.contiguous(self.at)) as usize;
                    let offset = self.geometry.offset_of(self.at);
                    Io::Read { id: READ, offset, len: blocks * BLOCK_BYTES }
                }
                Phase::Scan { from, window } => {
                    self.phase = self.scan(from, window)?;
                    continue;
                }
                Phase::Entries { .. } => return Ok(Step::Entries),
                Phase::Write => self.write_superblocks(),
                Phase::FlushFound | Phase::FlushSuperblock => Io::Flush { id: FLUSH },
                Phase::Done => return Ok(Step::Done),
            };
            self.waiting = true;
            return Ok(Step::Io(io));
        }
    }

    /// What came of the operation.
    ///
    /// # Errors
    ///
    /// When it failed, or when what was read is not a journal that can be opened.
    pub fn complete(&mut self, id: IoId, ok: bool) -> Result<(), OpenError> {
        self.waiting = false;
        if !ok {
            return Err(OpenError::Device);
        }
        self.phase = match (id, self.phase) {
            (READ, Phase::Superblocks) => {
                self.choose_superblock()?;
                Phase::Read
            }
            (READ, Phase::Read) => {
                let blocks = self.geometry.shape.unit_blocks_max();
                let blocks = blocks.min(self.geometry.contiguous(self.at)) as usize;
                Phase::Scan { from: 0, window: blocks * BLOCK_BYTES }
            }
            (FLUSH, Phase::FlushFound) => Phase::Write,
            (WRITE, Phase::Write) => Phase::FlushSuperblock,
            (FLUSH, Phase::FlushSuperblock) => Phase::Done,
            (_, phase) => phase,
        };
        Ok(())
    }

    /// The memory that a write consists of.
    pub fn pieces(&self, _id: IoId) -> [Piece; 1] {
        [Piece::Stage { at: SUPERBLOCK_AT, len: self.copies * BLOCK_BYTES }]
    }

    /// The stage memory, for the addresses of pieces.
    pub fn stage(&self) -> &[u8] {
        self.stage.memory()
    }

    /// The stage memory, for a device that is no device but a program.
    pub fn stage_mut(&mut self) -> &mut [u8] {
        self.stage.memory_mut()
    }

    /// The next entry of the unit that was found whole; `None` when there are no more
    /// in it.
    pub fn next_entry(&mut self) -> Option<(JournalPos, Entry<'_>)> {
        let Phase::Entries { from, window, info, cursor } = &mut self.phase else { return None };
        let (from, window) = (*from, *window);
        // Checked when the unit was found, so this ends by `None` and not by an error.
        if let Ok(Some((position, entry, _))) = cursor.next(&self.stage.memory()[from..window]) {
            return Some((position, entry));
        }
        let next = from + info.blocks as usize * BLOCK_BYTES;
        self.at += u64::from(info.blocks);
        // A unit that starts in the window may end outside: then it is read again.
        let turned = self.geometry.contiguous(self.at) == self.geometry.ring_blocks;
        let rest = next + self.geometry.shape.meta_bytes() <= window && !turned;
        self.phase = if rest { Phase::Scan { from: next, window } } else { Phase::Read };
        None
    }

    /// Where the payload of an entry that was found is on the device.
    pub fn locate(&self, position: JournalPos, payload_len: usize) -> Option<Located> {
        let end = match self.phase {
            Phase::Entries { info, .. } => self.at + u64::from(info.blocks),
            _ => self.at,
        };
        locate(self.geometry, self.image.tail, end, position, payload_len)
    }

    /// How far each group has come, by the marks found so far.
    pub fn groups(&self) -> &[GroupMarks] {
        self.image.groups.all()
    }

    /// Where the log ends, so far.
    pub fn end(&self) -> JournalPos {
        position_of(self.at)
    }

    /// The journal, open for appending.
    ///
    /// # Panics
    ///
    /// Before [`Step::Done`].
    pub fn into_journal(self) -> Journal<M> {
        assert_eq!(self.phase, Phase::Done, "the journal is not open yet");
        let memory = self.stage.into_memory();
        Journal::new(
            &self.config,
            self.geometry,
            self.image,
            self.at,
            (self.marks, self.owed),
            memory,
        )
    }

    fn choose_superblock(&mut self) -> Result<(), OpenError> {
        let memory = &self.stage.memory()[..2 * BLOCK_BYTES];
        let copies = memory.chunks_exact(BLOCK_BYTES);
        let newest = copies
            .clone()
            .filter_map(|copy| Superblock::read(copy, self.copier))
            .max_by_key(|copy| copy.counter);
        let Some(newest) = newest else {
            return Err(match copies.filter_map(Superblock::version_of).next() {
                Some(version) => OpenError::Superblocks { version },
                None => OpenError::Blank,
            });
        };
        if newest.identity.owner != self.owner {
            return Err(OpenError::Owner { found: newest.identity.owner });
        }
        if newest.shape != self.config.shape
            || newest.device_blocks != self.geometry.device_blocks()
        {
            let (blocks, shape) = (newest.device_blocks, newest.shape);
            return Err(OpenError::Geometry { blocks, shape });
        }
        self.at = newest.tail;
        self.image = newest;
        Ok(())
    }

    /// Looks at the unit at `from`.
    fn scan(&mut self, from: usize, window: usize) -> Result<Phase, OpenError> {
        let unit = &self.stage.memory()[from..window];
        let found = UnitInfo::check(unit, &self.image.identity.journal, self.copier);
        let Some(info) = found.filter(|info| self.continues(info)) else {
            return match found {
                // What should be here was overwritten a turn later: the superblock is not
                // the newest there was.
                Some(UnitInfo { position, .. }) if position > self.at => {
                    Err(OpenError::Lost { end: self.at, floor: position })
                }
                _ => self.end_of_log(),
            };
        };
        if info.kind == KIND_PAD {
            self.marks.push(self.at);
            self.generation_seen = info.generation;
            self.at += u64::from(info.blocks);
            return Ok(Phase::Read);
        }
        if info.blocks as usize * BLOCK_BYTES > unit.len() {
            // Whole, as far as can be seen, and not all in memory.
            return if from > 0 { Ok(Phase::Read) } else { self.end_of_log() };
        }
        // All payloads are checked before the first entry is given out: a torn unit
        // counts as a whole.
        let mut cursor = Cursor::new(info);
        let (mut groups, mut owed) = (self.image.groups.clone(), self.owed.clone());
        loop {
            match cursor.next(unit) {
                Ok(Some((_, entry, crc))) => {
                    let whole = self.copier.crc32c(entry.payload()) == crc;
                    if !(whole && groups.has_room_for(&entry)) {
                        return self.end_of_log();
                    }
                    groups.note(&entry);
                    owed.note(&entry);
                }
                Ok(None) => break,
                Err(_) => return self.end_of_log(),
            }
        }
        (self.image.groups, self.owed) = (groups, owed);
        self.marks.push(self.at);
        self.generation_seen = info.generation;
        Ok(Phase::Entries { from, window, info, cursor: Cursor::new(info) })
    }

    /// Whether a unit belongs here: see the module.
    fn continues(&self, info: &UnitInfo) -> bool {
        let generation = if self.at < self.image.generation_start {
            info.generation < self.image.generation && info.generation >= self.generation_seen
        } else {
            info.generation == self.image.generation
        };
        // A whole turn behind the tail there is the tail again.
        let blocks = self.at - self.image.tail + u64::from(info.blocks);
        info.position == self.at
            && generation
            && blocks <= self.geometry.ring_blocks
            && info.fits(self.geometry)
    }

    /// The log ends at `at`: a new generation starts there.
    fn end_of_log(&mut self) -> Result<Phase, OpenError> {
        let floor = self.image.floor.max(self.image.generation_start);
        if self.at < floor {
            return Err(OpenError::Lost { end: self.at, floor });
        }
        self.image.counter += 1;
        self.image.generation += 1;
        self.image.generation_start = self.at;
        // After a mere crash of the process, some of what was found may be in the
        // device's cache only. The superblock must not say more than the medium has.
        self.image.floor = self.at;
        Ok(Phase::FlushFound)
    }

    fn write_superblocks(&mut self) -> Io {
        // The lowest bit of the counter is the copy: formatting writes both, in the
        // order in which they lie.
        let slot = if self.copies == 2 { 0 } else { self.image.counter & 1 };
        for copy in (0..self.copies).rev() {
            if self.copies == 2 {
                self.image.counter = 2 - copy as u64;
            }
            let block = self.stage.bytes_mut(SUPERBLOCK_AT + copy * BLOCK_BYTES, BLOCK_BYTES);
            self.image.write(block, self.copier);
        }
        Io::Write { id: WRITE, offset: slot * BLOCK_BYTES as u64, len: self.copies * BLOCK_BYTES }
    }
}
