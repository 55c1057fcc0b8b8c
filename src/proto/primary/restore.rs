//! Bringing a base up to date after a take-over (F5): the last part of what
//! [`super::takeover`] describes.
//!
//! The base gets the newest version of each block and nothing else, so the parts that are written do
//! not overlap and need no order among one another. All recovered updates of a volume have their fate
//! together, when the last part is on the base.

use super::shard::PrimaryShard;
use super::slab::{DONE, NOBODY, UNREAD, VOID};
use super::takeover::{Standing, TAG_RESTORE};
use crate::proto::command::{Command, Report, Token};
use crate::proto::limits::{APPLY_RETRY_NS_MAX, APPLY_RETRY_NS_MIN};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Extent, Nanos, NvmeStatus, SetId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// The bringing up to date of a base.
#[derive(Debug)]
pub(super) struct Restore {
    /// The recovered updates, ascending by number.
    slots: Vec<u32>,
    /// What the base gets: parts that do not overlap.
    parts: Vec<Part>,
    /// The updates before this one are known to be held as often as they should be.
    safe: usize,
    fenced: bool,
    /// Updates of which only descriptions were left, until their payload was read back from the base (G12).
    unread: BTreeSet<u32>,
    /// The same of updates that have their fate: these are not waited for.
    unread_too: Vec<Token>,
    reading: bool,
    /// The last set of which the base can have anything.
    until: SetId,
    /// Of these, those whose payload is not what the description says.
    overtaken: Vec<u32>,
    issued: bool,
    /// Parts under way.
    outstanding: usize,
    /// Updates that the base refused a part of.
    failed: Vec<u32>,
    /// So often in a row it refused any.
    attempts: u32,
    /// When these are written again.
    retry_at: Nanos,
}

impl Restore {
    /// Of the recovered updates in `slots`, of which `parts` go to the base, once the payload of those in
    /// `unread` was read back from there; of updates that have their fate that need not be waited for. It can have
    /// nothing of a set after `until`.
    pub(super) fn new(
        slots: Vec<u32>,
        parts: Vec<Part>,
        (unread, unread_too): (BTreeSet<u32>, Vec<Token>),
        until: SetId,
    ) -> Self {
        Self {
            slots,
            parts,
            safe: 0,
            fenced: false,
            unread,
            unread_too,
            reading: false,
            until,
            overtaken: Vec::new(),
            issued: false,
            outstanding: 0,
            failed: Vec::new(),
            attempts: 0,
            retry_at: Nanos::NEVER,
        }
    }

    /// The last set of which the base can have anything.
    pub(super) fn until(&self) -> SetId {
        self.until
    }
}

/// Blocks of one recovered update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    slot: u32,
    extent: Extent,
}

impl PrimaryShard {
    /// Of all recovered updates the blocks that no later one covers.
    pub(super) fn newest_parts(&self, slots: &[u32]) -> Vec<Part> {
        let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
        let mut parts = Vec::new();
        for slot in slots.iter().rev() {
            let update = self.slab.get(*slot);
            let extent = update.extent;
            if update.has(VOID) {
                continue;
            }
            if self.sabotage.is(Sabotage::RestoreOld) && !update.has(UNREAD) {
                parts.push(Part { slot: *slot, extent });
                continue;
            }
            let mut at = extent.lba;
            while at < extent.end() {
                // The covered range that reaches beyond `at` first.
                let next = covered
                    .range(..=at)
                    .next_back()
                    .filter(|(_, end)| **end > at)
                    .or_else(|| covered.range(at..extent.end()).next());
                let (from, to) = next.map_or((u64::MAX, u64::MAX), |(from, to)| (*from, *to));
                let end = from.min(extent.end());
                if end > at && !update.has(UNREAD) {
                    let extent = Extent { lba: at, blocks: (end - at) as u32 };
                    parts.push(Part { slot: *slot, extent });
                }
                at = to.max(end);
            }
            let (mut from, mut to) = (extent.lba, extent.end());
            let merged: Vec<u64> = covered
                .range(..=to)
                .rev()
                .take_while(|(_, end)| **end >= from)
                .map(|(start, _)| *start)
                .collect();
            for start in merged {
                if let Some(end) = covered.remove(&start) {
                    (from, to) = (from.min(start), to.max(end));
                }
            }
            covered.insert(from, to);
        }
        parts
    }

    /// No mover outside the epoch can write the volume's base any more.
    pub(super) fn fenced(&mut self, index: u32, status: NvmeStatus) {
        let Some(volume) = self.volumes.get_mut(index as usize) else { return };
        let Standing::Restoring(restore) = &mut volume.standing else {
            self.counters.unexpected += 1;
            return;
        };
        if !status.is_ok() {
            // Without a fence a mover that is only slow could still write: the volume stays closed.
            return;
        }
        restore.fenced = true;
        self.try_restore(index as usize);
    }

    /// Issues the base writes once nothing stands against them (invariants 2, 4, 5).
    pub(super) fn try_restore(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        let (has_base, group) = (volume.config.has_base, volume.group);
        let Standing::Restoring(restore) = &mut volume.standing else { return };
        if restore.issued {
            return self.finish_restore(index);
        }
        if !restore.fenced {
            return;
        }
        if !core::mem::replace(&mut restore.reading, true) {
            // Before anything is written: what is there is what the mover that failed has left.
            let (unread, mut again) = (restore.unread.clone(), restore.unread_too.clone());
            for slot in unread {
                self.read_back(slot);
            }
            self.unreadable.append(&mut again);
            self.read_back_again();
        }
        let Standing::Restoring(restore) = &mut self.volumes[index].standing else { return };
        if !restore.unread.is_empty() {
            return;
        }
        let broken = self.groups[group].broken.is_some();
        while let Some(slot) = restore.slots.get(restore.safe) {
            let update = self.slab.get(*slot);
            let released =
                self.groups[group].sets.get_mut(update.set).is_none_or(|set| set.released);
            if !broken && (update.mirrors_pending != 0 || !released) {
                return;
            }
            restore.safe += 1;
        }
        restore.issued = true;
        if !has_base || self.sabotage.is(Sabotage::TakeOverWithoutRestore) {
            restore.parts.clear();
        }
        self.issue_parts(index);
        self.finish_restore(index);
    }

    fn issue_parts(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        let Standing::Restoring(restore) = &mut volume.standing else { return };
        restore.outstanding = restore.parts.len();
        for part in &restore.parts {
            let update = self.slab.get(part.slot);
            self.commands.push_back(Command::Restore {
                volume: volume.config.id,
                kind: update.kind,
                extent: part.extent,
                buf: update.buf,
                skip: (part.extent.lba - update.extent.lba) as u32,
                token: self.slab.token(part.slot, TAG_RESTORE),
            });
        }
    }

    /// Further copies are to be made: what was safe is looked at again.
    pub(super) fn recheck_restores(&mut self) {
        for volume in &mut self.volumes {
            if let Standing::Restoring(restore) = &mut volume.standing {
                restore.safe = 0;
            }
        }
        for index in 0..self.volumes.len() {
            self.try_restore(index);
        }
    }

    /// The base has a part of a recovered update, or refused it. Then it is written again, and the volume stays
    /// closed: what is recovered may have been acknowledged, and be in a set that the secondary has.
    pub(super) fn part_restored(&mut self, now: Nanos, slot: u32, status: NvmeStatus) {
        let index = self.slab.get(slot).volume as usize;
        let volume = &mut self.volumes[index];
        let Standing::Restoring(restore) = &mut volume.standing else { return };
        restore.outstanding -= 1;
        if !status.is_ok() {
            if restore.failed.is_empty() {
                let report = Report::RestoreFailed { volume: volume.config.id, status };
                self.commands.push_back(Command::Report(report));
            }
            if !restore.failed.contains(&slot) {
                restore.failed.push(slot);
            }
        }
        if restore.outstanding > 0 {
            return;
        }
        if restore.failed.is_empty() {
            self.finish_restore(index);
        } else {
            restore.attempts += 1;
            let pause = APPLY_RETRY_NS_MIN << (restore.attempts - 1).min(20);
            restore.retry_at = now.after(pause.min(APPLY_RETRY_NS_MAX));
            self.retry_at = self.retry_at.min(restore.retry_at);
        }
    }

    /// Writes again what bases refused a while ago.
    #[inline]
    pub fn handle_timeout(&mut self, now: Nanos) {
        if self.retry_at <= now {
            self.retry_restores(now);
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[inline]
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        self.retry_at
    }

    #[cold]
    fn retry_restores(&mut self, now: Nanos) {
        self.retry_at = Nanos::NEVER;
        self.read_back_again();
        for index in 0..self.volumes.len() {
            let Standing::Restoring(restore) = &mut self.volumes[index].standing else { continue };
            if restore.retry_at > now {
                self.retry_at = self.retry_at.min(restore.retry_at);
                continue;
            }
            restore.retry_at = Nanos::NEVER;
            let failed = core::mem::take(&mut restore.failed);
            restore.parts.retain(|part| failed.contains(&part.slot));
            self.issue_parts(index);
        }
    }

    /// Ends the bringing up to date when all that should be is on the base, and all who hold a number that
    /// is void know it.
    fn finish_restore(&mut self, index: usize) {
        let broken = self.groups[self.volumes[index].group].broken.is_some();
        let Standing::Restoring(restore) = &self.volumes[index].standing else { return };
        if restore.outstanding > 0 || !restore.failed.is_empty() {
            return;
        }
        let unknown = |slot: &u32| {
            let update = self.slab.get(*slot);
            update.has(VOID) && update.mirrors_pending != 0
        };
        if broken || !restore.slots.iter().any(unknown) {
            self.restored(index);
        }
    }

    /// The base is up to date: the recovered updates have their fate, and new ones are taken.
    fn restored(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        let standing = core::mem::replace(&mut volume.standing, Standing::Ready);
        let Standing::Restoring(restore) = standing else { return };
        volume.ready = true;
        let report = Report::Restored { volume: volume.config.id };
        self.commands.push_back(Command::Report(report));
        for slot in restore.slots {
            debug_assert!(!self.slab.get(slot).has(DONE));
            let status = match self.void_status(slot) {
                Some(status) => status,
                // Whether the base has it, or had it, is not known: its source tries again.
                None if self.is_uncertain(slot, &restore.overtaken) => NvmeStatus::ANA_TRANSITION,
                None => NvmeStatus::SUCCESS,
            };
            self.fate(slot, status);
        }
    }

    /// The payload of a recovered update was read back, and is its own or not.
    pub(super) fn restore_has_read(&mut self, slot: u32, own: bool) {
        let index = self.slab.get(slot).volume as usize;
        let Standing::Restoring(restore) = &mut self.volumes[index].standing else { return };
        if restore.unread.remove(&slot) {
            restore.overtaken.extend((!own).then_some(slot));
            self.try_restore(index);
        }
    }

    /// Whether the base may have neither an update nor a later one in its place, of which somebody waits to hear:
    /// it, or a later one that it overlaps, was recovered from its description alone, and the base has
    /// something else there.
    fn is_uncertain(&self, slot: u32, overtaken: &[u32]) -> bool {
        let update = self.slab.get(slot);
        update.origin != NOBODY
            && !self.sabotage.is(Sabotage::AnswerOvertaken)
            && overtaken
                .iter()
                .map(|other| self.slab.get(*other))
                .any(|other| other.seq >= update.seq && other.extent.overlaps(update.extent))
    }
}
