//! A secondary shard's journal device as a list of entries with a durable prefix.
//!
//! What was appended is readable at once; what was flushed survives a loss of power. Of the rest
//! a prefix of any length survives: recovery reads until the first entry that is not whole.

use super::prng::Rng;
use crate::proto::command::{JournalPos, RecordRole};
use crate::proto::message::Message;
use crate::proto::types::{GroupId, Seq, SetId};
use crate::wire::update::UpdateInfo;
use std::collections::BTreeMap;

/// One entry as the device holds it.
#[derive(Clone, Debug)]
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
}

/// The device.
#[derive(Debug)]
pub struct JournalDevice {
    entries: BTreeMap<u64, Content>,
    /// Position of each own record, by volume index and number.
    own: BTreeMap<(u32, Seq), u64>,
    next: u64,
    durable: u64,
    /// The last commit among the durable entries.
    committed: SetId,
}

impl Default for JournalDevice {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            own: BTreeMap::new(),
            next: 1,
            durable: 1,
            committed: SetId(0),
        }
    }
}

impl JournalDevice {
    /// Appends an entry.
    pub fn append(&mut self, content: Content) -> JournalPos {
        let pos = self.next;
        self.next += 1;
        if let Content::Record { info, role: RecordRole::Transfer, .. } = &content {
            self.own.insert((info.volume.0, info.seq), pos);
        }
        self.entries.insert(pos, content);
        JournalPos(pos)
    }

    /// One past the last position.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.next
    }

    /// A flush submitted when the journal ended at `end` is complete.
    pub fn flushed(&mut self, end: u64) {
        self.durable = self.durable.max(end);
        self.note_commits();
    }

    fn note_commits(&mut self) {
        for content in self.entries.range(..self.durable).map(|(_, content)| content) {
            if let Content::Commit { set, .. } = content {
                self.committed = self.committed.max(*set);
            }
        }
    }

    /// The last set with a durable commit.
    #[must_use]
    pub fn committed(&self) -> SetId {
        self.committed
    }

    /// The last set that it says is applied.
    #[must_use]
    pub fn applied_mark(&self) -> SetId {
        let marks = self.entries.values().map(|content| match content {
            Content::Applied { set, .. } => *set,
            _ => SetId(0),
        });
        marks.max().unwrap_or(SetId(0))
    }

    /// Reads an entry.
    #[must_use]
    pub fn read(&self, pos: JournalPos) -> Option<&Content> {
        self.entries.get(&pos.0)
    }

    /// The own record of a number, if it is durable.
    #[must_use]
    pub fn durable_record(&self, volume: u32, seq: Seq) -> Option<&Content> {
        let pos = *self.own.get(&(volume, seq))?;
        (pos < self.durable).then(|| self.entries.get(&pos)).flatten()
    }

    /// Entries before `before` are not needed any more. Now and then they stay until the next
    /// such word, as a device that retires whole segments does.
    pub fn retire(&mut self, before: JournalPos, rng: &mut Rng) {
        if rng.chance(300_000) {
            return;
        }
        let kept = self.entries.split_off(&before.0);
        self.entries = kept;
        let entries = &self.entries;
        self.own.retain(|_, pos| entries.contains_key(pos));
    }

    /// The shard is gone: of what was not durable a prefix survives, all of it unless `power` is
    /// lost too. Returns how many entries were lost.
    pub fn user_died(&mut self, power: bool, rng: &mut Rng) -> u64 {
        let end = if power { rng.between(self.durable, self.next) } else { self.next };
        let lost = self.entries.split_off(&end).len();
        let entries = &self.entries;
        self.own.retain(|_, pos| entries.contains_key(pos));
        self.next = end;
        if power {
            self.durable = end;
            self.note_commits();
        }
        lost as u64
    }

    /// Update records that are kept.
    #[must_use]
    pub fn records(&self) -> usize {
        self.entries.values().filter(|content| matches!(content, Content::Record { .. })).count()
    }

    /// All entries, oldest first, as recovery reads them.
    pub fn recover(&self) -> impl Iterator<Item = (JournalPos, &Content)> {
        self.entries.iter().map(|(pos, content)| (JournalPos(*pos), content))
    }
}
