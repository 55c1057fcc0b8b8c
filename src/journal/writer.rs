//! The journal in operation: appending, writing, flushing, retiring.

use super::format::{BLOCK_BYTES, SMALL_ALIGN};
use super::geometry::{Geometry, Located, position_of};
use super::marks::Marks;
use super::owed::Owed;
use super::stage::{SUPERBLOCK_AT, Stage};
use super::superblock::{GroupMarks, Identity, Superblock};
use super::unit::{Misfit, Room, State, Unit};
use super::{Config, Entry, Io, IoId, JournalPos, Piece};
use crate::mem::Copier;
use crate::proto::types::BufRef;

const FLUSH: IoId = IoId(0);
const SUPERBLOCK: IoId = IoId(1);
const UNITS: u32 = 2;
const SUPERBLOCK_PIECE: [Piece; 1] = [Piece::Stage { at: SUPERBLOCK_AT, len: BLOCK_BYTES }];

/// Why an entry was not appended. Nothing of it was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// The log is full: something must be retired first. Records meet this a little
    /// earlier than manifests and marks.
    #[error("the journal is full")]
    Full,
    /// All units or all stage memory are being written: complete something first.
    #[error("the journal has as much in flight as it can")]
    Busy,
    /// The payload exceeds what a unit can hold.
    #[error("{len} bytes of payload, an entry holds {max}")]
    TooLarge {
        /// Its length in bytes.
        len: usize,
        /// The most, in bytes.
        max: usize,
    },
    /// Marks of too many groups.
    #[error("a journal keeps marks of {} groups", super::GROUPS_MAX)]
    Groups,
    /// A write or flush failed before.
    #[error("the journal failed")]
    Failed,
    /// What a [`super::Driver`] should append is not in memory or not what it is called: an error
    /// of the caller.
    #[error("what is to be appended cannot be read")]
    Unreadable,
}

/// What the superblock on the device needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Super {
    Idle,
    /// To be written as soon as possible.
    Wanted,
    /// Being written, with this tail.
    Writing(u64),
    /// Written and not flushed.
    Written(u64),
}

/// A flush on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flush {
    issued: bool,
    /// What is durable once it completes.
    block: u64,
    /// The tail in the superblock that it makes durable.
    tail: Option<u64>,
}

/// A journal open for appending. Made by [`super::Recovery`]; owned by one poller.
///
/// Call [`poll_io`](Self::poll_io) until `None` after every input.
#[derive(Debug)]
pub struct Journal<M> {
    geometry: Geometry,
    identity: Identity,
    stage: Stage<M>,
    copier: Copier,
    /// Ordinal n is in slot n % len. In use: `oldest..next`.
    units: Box<[Unit]>,
    oldest: u64,
    /// The first whose write was not issued.
    unissued: u64,
    next: u64,
    /// Logical block of the next unit to be opened.
    head: u64,
    /// Everything before is written.
    written: u64,
    /// Everything before is durable.
    durable: u64,
    /// Nothing before is needed.
    tail: u64,
    /// The tail in the durable superblock: nothing at or behind it is overwritten.
    durable_tail: u64,
    marks: Marks,
    owed: Owed,
    /// Least and largest block that a flush was asked for.
    wanted: (u64, u64),
    flush: Option<Flush>,
    superblock: Super,
    /// Another superblock was asked for while one was on its way.
    superblock_again: bool,
    /// As it was written last.
    image: Superblock,
    failed: bool,
}

impl<M: AsRef<[u8]> + AsMut<[u8]>> Journal<M> {
    /// A journal whose log ends at `head`, all of it durable, as `image` says.
    pub(super) fn new(
        config: &Config,
        geometry: Geometry,
        image: Superblock,
        head: u64,
        (marks, owed): (Marks, Owed),
        memory: M,
    ) -> Self {
        Self {
            geometry,
            identity: image.identity,
            stage: Stage::new(memory),
            copier: Copier::detect(),
            units: (0..config.units_in_flight).map(|_| Unit::new(geometry.shape)).collect(),
            oldest: 0,
            unissued: 0,
            next: 0,
            head,
            written: head,
            durable: head,
            tail: image.tail,
            durable_tail: image.tail,
            marks,
            owed,
            wanted: (head, head),
            flush: None,
            superblock: Super::Idle,
            superblock_again: false,
            image,
            failed: false,
        }
    }

    /// Appends an entry. The position is final; the entry is durable once
    /// [`durable_before`](Self::durable_before) is beyond it, which needs a
    /// [`flush`](Self::flush).
    ///
    /// With `buf`, a record's payload of a block or more is written from the arena:
    /// `payload` is then only looked at for its length, and the record must stay until
    /// [`written_before`](Self::written_before) is beyond the position. Its memory
    /// should be aligned as the device asks. Other payloads are copied here.
    ///
    /// # Errors
    ///
    /// Says why nothing was appended. `Full` and `Busy` pass.
    pub fn append(
        &mut self,
        entry: &Entry<'_>,
        buf: Option<BufRef>,
    ) -> Result<JournalPos, AppendError> {
        let max = self.geometry.shape.payload_bytes_max();
        let len = entry.payload().len();
        if self.failed {
            return Err(AppendError::Failed);
        }
        if len > max {
            return Err(AppendError::TooLarge { len, max });
        }
        if !self.image.groups.has_room_for(entry) {
            return Err(AppendError::Groups);
        }
        if let Entry::Record { payload, payload_crc, .. } = *entry {
            debug_assert_eq!(self.copier.crc32c(payload), payload_crc, "checksum of the payload");
        }
        let buf = buf.filter(|_| entry.is_record() && len >= BLOCK_BYTES);
        loop {
            if self.open_unit().is_none() {
                self.begin_unit(entry, buf.is_some())?;
            }
            let index = self.slot(self.next - 1);
            let unit = &mut self.units[index];
            match unit.add(entry, buf, &mut self.stage, self.copier) {
                Ok(position) => {
                    self.image.groups.note(entry);
                    self.owed.note(entry);
                    return Ok(position);
                }
                Err(Misfit::Unit) => self.seal(),
                Err(Misfit::Stage) => {
                    self.seal();
                    return Err(AppendError::Busy);
                }
            }
        }
    }

    /// Asks that everything appended so far be made durable: it is, when
    /// [`durable_before`](Self::durable_before) has reached the position returned.
    pub fn flush(&mut self) -> JournalPos {
        self.seal();
        if self.head > self.durable {
            if self.wanted.1 <= self.durable {
                self.wanted.0 = self.head;
            }
            self.wanted.1 = self.head;
        }
        position_of(self.head)
    }

    /// Sends off the open unit although it is not full, without a flush. For idle
    /// turns, and to have payload written that shall leave the arena.
    pub fn seal(&mut self) {
        let Some(index) = self.open_unit() else { return };
        let unit = &mut self.units[index];
        let (journal, generation) = (self.identity.journal, self.image.generation);
        unit.seal(journal, generation, &mut self.stage, self.copier);
        self.head = unit.start + unit.blocks;
    }

    /// Says that no entry before `before` is needed any more. Room is made in whole
    /// units, and only after a superblock that says so is durable, which happens from
    /// time to time and when room runs short.
    ///
    /// # Panics
    ///
    /// When `before` was never reached: an error of the caller.
    pub fn retire(&mut self, before: JournalPos) {
        assert!(before <= self.appended_before(), "retired {before:?}, which is not written");
        // Not beyond what is durable: recovery has to find the log's end.
        let block = (before.0 / BLOCK_BYTES as u64).min(self.durable);
        let start = if block == self.head { Some(block) } else { self.marks.retire(block) };
        self.tail = self.tail.max(start.unwrap_or(self.tail));
        if self.tail - self.durable_tail >= self.geometry.ring_blocks / 16 {
            self.checkpoint();
        }
    }

    /// Asks for a superblock with the present tail and marks. At a clean stop, so
    /// that the next start has less to read.
    pub fn checkpoint(&mut self) {
        match self.superblock {
            Super::Idle | Super::Wanted => self.superblock = Super::Wanted,
            Super::Writing(_) | Super::Written(_) => self.superblock_again = true,
        }
    }

    /// The next operation for the device.
    pub fn poll_io(&mut self) -> Option<Io> {
        if self.failed {
            return None;
        }
        if self.unissued < self.next {
            let index = self.slot(self.unissued);
            let unit = &mut self.units[index];
            if unit.state == State::Sealed {
                unit.state = State::Writing;
                self.unissued += 1;
                let offset = self.geometry.offset_of(unit.start);
                return Some(Io::Write {
                    id: IoId(UNITS + index as u32),
                    offset,
                    len: unit.write_bytes(),
                });
            }
        }
        if self.superblock == Super::Wanted {
            return Some(self.write_superblock());
        }
        self.begin_flush();
        match &mut self.flush {
            Some(flush) if !flush.issued => {
                flush.issued = true;
                Some(Io::Flush { id: FLUSH })
            }
            _ => None,
        }
    }

    /// Most operations that are under way at once.
    pub fn io_max(&self) -> usize {
        UNITS as usize + self.units.len()
    }

    /// The memory that a write consists of, in order.
    pub fn pieces(&self, id: IoId) -> &[Piece] {
        match id {
            FLUSH => &[],
            SUPERBLOCK => &SUPERBLOCK_PIECE,
            IoId(unit) => &self.units[(unit - UNITS) as usize].pieces,
        }
    }

    /// What came of an operation.
    pub fn complete(&mut self, id: IoId, ok: bool) {
        if !ok {
            self.failed = true;
        }
        if self.failed {
            return;
        }
        match id {
            FLUSH => {
                if let Some(Flush { block, tail, .. }) = self.flush.take() {
                    self.durable = block;
                    if let Some(tail) = tail {
                        self.durable_tail = tail;
                        let again = std::mem::take(&mut self.superblock_again);
                        self.superblock = if again { Super::Wanted } else { Super::Idle };
                    }
                }
            }
            SUPERBLOCK => {
                if let Super::Writing(tail) = self.superblock {
                    self.superblock = Super::Written(tail);
                }
            }
            IoId(unit) => {
                self.units[(unit - UNITS) as usize].state = State::Written;
                self.release_units();
            }
        }
    }

    /// Everything before this position is on the device, though perhaps in its cache:
    /// its payload can be read back, and its memory is no longer used.
    pub fn written_before(&self) -> JournalPos {
        position_of(self.written)
    }

    /// Everything before this position survives a loss of power.
    pub fn durable_before(&self) -> JournalPos {
        position_of(self.durable)
    }

    /// Nothing before this position is kept.
    pub fn tail(&self) -> JournalPos {
        position_of(self.tail)
    }

    /// One past the last entry appended.
    pub fn appended_before(&self) -> JournalPos {
        match self.open_unit() {
            Some(index) => self.units[index].next_position().max(position_of(self.head)),
            None => position_of(self.head),
        }
    }

    /// Bytes of the log, and of these the ones in use until the next superblock, those included that
    /// the marks of the sets will take that are stored and not applied: a unit each, as a rule.
    pub fn capacity_bytes(&self) -> (u64, u64) {
        let bytes = BLOCK_BYTES as u64;
        let marks = self.owed.marks() * u64::from(self.geometry.shape.meta_blocks);
        let used = (self.head - self.durable_tail + marks) * bytes + self.open_bytes();
        let capacity = self.geometry.ring_blocks * bytes;
        (capacity, used.min(capacity))
    }

    /// Bytes of the unit that still takes entries; 0 when there is none.
    pub fn open_bytes(&self) -> u64 {
        self.open_unit().map_or(0, |index| self.units[index].bytes())
    }

    /// How far each group has come, by the marks appended and found.
    pub fn groups(&self) -> &[GroupMarks] {
        self.image.groups.all()
    }

    /// Whose journal it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether a write or a flush failed. Nothing is durable any more that was not
    /// before, and nothing is appended: what the device has now is unknown.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whether nothing is on the way to the device or waits for it.
    pub fn is_idle(&self) -> bool {
        self.oldest == self.next
            && self.flush.is_none()
            && self.superblock == Super::Idle
            && self.durable >= self.wanted.1
    }

    /// Where the payload of the record at `position` is on the device; `None` when it
    /// was retired or is not written yet (it is in memory then).
    pub fn locate(&self, position: JournalPos, payload_len: usize) -> Option<Located> {
        locate(self.geometry, self.tail, self.written, position, payload_len)
    }

    /// The stage memory, for the addresses of its pieces.
    pub fn stage(&self) -> &[u8] {
        self.stage.memory()
    }

    fn slot(&self, ordinal: u64) -> usize {
        (ordinal % self.units.len() as u64) as usize
    }

    /// The slot of the unit that takes entries.
    fn open_unit(&self) -> Option<usize> {
        let index = self.slot(self.next.checked_sub(1)?);
        (self.oldest < self.next && self.units[index].state == State::Open).then_some(index)
    }

    /// Opens a unit that has room for `entry`, behind padding where the log turns.
    fn begin_unit(&mut self, entry: &Entry<'_>, by_reference: bool) -> Result<(), AppendError> {
        let shape = self.geometry.shape;
        let meta = u64::from(shape.meta_blocks);
        let need = meta + entry.payload().len().div_ceil(BLOCK_BYTES) as u64;
        let left = self.geometry.contiguous(self.head);
        let pad = if left < need { left } else { 0 };
        let free = self.geometry.ring_blocks - (self.head - self.durable_tail);
        let reserve = self.geometry.reserve_blocks();
        if free < pad + need + if entry.is_record() { reserve } else { 0 } {
            if self.tail > self.durable_tail {
                self.checkpoint();
            }
            return Err(AppendError::Full);
        }
        // The first entry then surely fits: no unit stays open and empty.
        let pads = usize::from(pad > 0);
        let copied = if by_reference { 0 } else { entry.payload().len().div_ceil(BLOCK_BYTES) };
        if self.next + pads as u64 + 1 - self.oldest > self.units.len() as u64
            || !self.stage.fits(&[pads, usize::from(shape.meta_blocks), copied])
        {
            return Err(AppendError::Busy);
        }
        if pad > 0 {
            let index = self.take_slot();
            let unit = &mut self.units[index];
            unit.open(self.head, 1, Room { records: 1, control: 1 }, &mut self.stage);
            let (journal, generation) = (self.identity.journal, self.image.generation);
            unit.seal_pad(pad, journal, generation, &mut self.stage, self.copier);
            self.head += pad;
        }
        let most = shape.unit_blocks_max().min(self.geometry.contiguous(self.head));
        let room = Room {
            records: most.min((free - pad).saturating_sub(reserve)),
            control: most.min(free - pad),
        };
        let index = self.take_slot();
        self.units[index].open(self.head, shape.meta_blocks, room, &mut self.stage);
        Ok(())
    }

    fn take_slot(&mut self) -> usize {
        let index = self.slot(self.next);
        self.next += 1;
        self.marks.push(self.head);
        index
    }

    /// Moves `written` over the units whose writes are done, oldest first.
    fn release_units(&mut self) {
        while self.oldest < self.unissued {
            let index = self.slot(self.oldest);
            let unit = &mut self.units[index];
            if unit.state != State::Written {
                return;
            }
            self.written = unit.start + unit.blocks;
            self.stage.give_back(unit.staged);
            unit.state = State::Empty;
            self.oldest += 1;
        }
    }

    fn write_superblock(&mut self) -> Io {
        self.image.counter += 1;
        self.image.tail = self.tail;
        self.image.floor = self.durable;
        self.superblock = Super::Writing(self.tail);
        let block = self.stage.bytes_mut(SUPERBLOCK_AT, BLOCK_BYTES);
        self.image.write(block, self.copier);
        let offset = (self.image.counter & 1) * BLOCK_BYTES as u64;
        Io::Write { id: SUPERBLOCK, offset, len: BLOCK_BYTES }
    }

    /// Decides on a flush when none is on its way: as soon as it can make the oldest
    /// request, or a superblock, durable.
    fn begin_flush(&mut self) {
        if self.flush.is_some() {
            return;
        }
        if self.wanted.0 <= self.durable {
            // Later requests of the same run are at most at the largest one.
            self.wanted.0 = self.wanted.1;
        }
        let asked = self.wanted.0 > self.durable && self.written >= self.wanted.0;
        let tail = if let Super::Written(tail) = self.superblock { Some(tail) } else { None };
        if asked || tail.is_some() {
            self.flush = Some(Flush { issued: false, block: self.written, tail });
        }
    }
}

/// See [`Journal::locate`].
pub(super) fn locate(
    geometry: Geometry,
    tail: u64,
    written: u64,
    position: JournalPos,
    payload_len: usize,
) -> Option<Located> {
    if position < position_of(tail) || payload_len == 0 {
        return None;
    }
    let end = position.0.checked_add(payload_len as u64)?;
    if end > position_of(written).0 {
        return None;
    }
    let skip = (position.0 % BLOCK_BYTES as u64) as usize;
    debug_assert_eq!(skip % SMALL_ALIGN, 0, "not the position of a payload");
    let offset = geometry.offset_of(position.0 / BLOCK_BYTES as u64);
    Some(Located { offset, len: (skip + payload_len).next_multiple_of(BLOCK_BYTES), skip })
}
