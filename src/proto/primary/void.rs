//! Base writes that fail: the number is void, and that is known to all who hold the update before it has
//! its fate (invariants 3 and 6).
//!
//! Its set is not closed earlier, and no manifest with it is made. So whoever takes the volume over counts
//! the same numbers void in a set that was closed; where it was not, the update takes effect
//! after all if nobody who lives has heard that it should not.
//!
//! Who holds it is sent the record's header once more, as [`RecordRole::Voided`]; further copies travel as the
//! header alone, too.

use super::shard::{PrimaryShard, RecordVerdict};
use super::slab::{DESCRIBED, DONE, RECOVERED, VOID};
use crate::proto::command::{Command, RecordRole, Report};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{BufRef, NvmeStatus, ShardId};
use crate::wire::update::UpdateInfo;

/// A void number that is retained.
#[derive(Debug)]
pub(super) struct Voided {
    /// What the base said.
    status: NvmeStatus,
    /// Bit i: `mirrors[i]` was sent the word, and not the update, the last time that anything was sent.
    told: u64,
}

impl PrimaryShard {
    /// The base refused the write: its number is void, and what the medium holds is unknown.
    #[cold]
    pub(super) fn void(&mut self, slot: u32, status: NvmeStatus) {
        let info = self.info(slot);
        let index = self.slab.get(slot).volume as usize;
        self.counters.voids += 1;
        if self.sabotage.is(Sabotage::ReuseNumber) {
            self.volumes[index].next_seq = info.seq;
        }
        self.set_void(slot, &info, status);
        let (volume, seq, extent) = (info.volume, info.seq, info.extent);
        self.commands.push_back(Command::Report(Report::Void { volume, seq, extent, status }));
    }

    /// Takes an update out of its set, and has all who hold it told.
    #[cold]
    pub(super) fn set_void(&mut self, slot: u32, info: &UpdateInfo, status: NvmeStatus) {
        let update = self.slab.get_mut(slot);
        update.flags |= VOID;
        let index = update.volume as usize;
        let group = &mut self.groups[self.volumes[index].group];
        if let Some(set) = group.sets.get_mut(info.set)
            && !self.sabotage.is(Sabotage::DropVoid)
        {
            set.void(index, info);
        }
        self.voids.insert(slot, Voided { status, told: 0 });
        if self.sabotage.is(Sabotage::VoidUntold) {
            return;
        }
        // Where a copy is on its way it is told once that has arrived.
        let update = self.slab.get_mut(slot);
        let mut rest = update.mirrors & !update.mirrors_pending;
        update.mirrors_pending |= rest;
        while rest != 0 {
            let index = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let token = self.slab.token(slot, index as u8);
            self.mirrors[index].backlog.push_back(token);
            self.send_again(index);
        }
    }

    /// In which role a retained update goes to the mirror peer at `index`.
    pub(super) fn role_to(&mut self, slot: u32, index: usize) -> RecordRole {
        match self.voids.get_mut(&slot) {
            Some(voided) if !self.sabotage.is(Sabotage::VoidUntold) => {
                voided.told |= 1 << index;
                RecordRole::Voided
            }
            _ if self.slab.get(slot).has(DESCRIBED) => RecordRole::Description,
            _ => RecordRole::Mirror,
        }
    }

    /// What was sent of a void number has arrived at the mirror peer at `index`. True when that was the
    /// update, and the word follows.
    #[cold]
    pub(super) fn word_follows(&mut self, slot: u32, index: u8) -> bool {
        let told = self.voids.get(&slot).is_none_or(|voided| voided.told & 1 << index != 0);
        if told || self.sabotage.is(Sabotage::VoidUntold) {
            return false;
        }
        let token = self.slab.token(slot, index);
        self.mirrors[usize::from(index)].backlog.push_back(token);
        self.send_again(usize::from(index));
        true
    }

    /// The mirror peers in `gone` have lost their memory, or left.
    pub(super) fn words_lost(&mut self, gone: u64) {
        for voided in self.voids.values_mut() {
            voided.told &= !gone;
        }
    }

    /// Whether a number is void and waits for nothing but that all who hold it know.
    pub(super) fn is_void_and_waits(&self, slot: u32) -> bool {
        let update = self.slab.get(slot);
        update.has(VOID) && !update.has(DONE) && !update.has(RECOVERED)
    }

    /// All who hold the update know that its number is void, or need not know: it has its fate.
    #[cold]
    pub(super) fn void_known(&mut self, slot: u32) {
        let status = self.void_status(slot).unwrap_or(NvmeStatus::WRITE_FAULT);
        self.fate(slot, status);
    }

    /// What the base said of a number that is void.
    pub(super) fn void_status(&self, slot: u32) -> Option<NvmeStatus> {
        self.voids.get(&slot).map(|voided| voided.status)
    }

    /// Word from the responsible shard that a number is void.
    pub(super) fn void_arrived(
        &mut self,
        from: ShardId,
        volume: u32,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> RecordVerdict {
        if self.store.is_confirmed(info.group, info.set) {
            self.mark_confirmed(volume, info.seq);
            return RecordVerdict::NotNeeded;
        }
        if self.store.void(info) {
            return RecordVerdict::NotNeeded;
        }
        if self.store.is_full() {
            return RecordVerdict::Full;
        }
        self.store.insert(from, volume, *info, buf, None, false);
        self.store.void(info);
        self.counters.mirrored += 1;
        RecordVerdict::Kept
    }
}
