//! Streaming updates to the secondary as their set forms (T1): only what enough movers hold.
//!
//! What the link loses with a restarted secondary mover is sent again after that mover said what
//! it still has.

use super::shard::{PrimaryShard, TAG_TARGET};
use super::slab::{SAFE, TRANSFERRED, TRAVELS, VOID};
use crate::proto::command::{Command, RecordRole};
use crate::proto::types::{GroupId, SetId, ShardId};
use alloc::vec::Vec;

impl PrimaryShard {
    /// Queues a safe update for its secondary shard.
    #[inline]
    pub(super) fn queue_transfer(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        let volume = &self.volumes[update.volume as usize];
        let Some(target) = volume.target else { return };
        if update.set == SetId(0) || update.has(VOID) || update.awaits_base() {
            return;
        }
        let group = volume.group;
        let token = self.slab.token(slot, TAG_TARGET + target);
        let target_state = &mut self.targets[usize::from(target)];
        if target_state.resumed & 1 << group == 0 {
            // It will be found when the secondary says what it has.
            return;
        }
        target_state.backlog.push_back(token);
        self.pump(usize::from(target));
    }

    /// Sends what waits while the link has room.
    #[inline]
    fn pump(&mut self, index: usize) {
        while self.targets[index].in_flight < self.in_flight_max {
            let Some(token) = self.targets[index].backlog.pop_front() else { return };
            let Some((slot, _)) = self.slab.resolve(token) else { continue };
            let update = self.slab.get_mut(slot);
            update.flags |= TRAVELS;
            let (to, buf) = (self.targets[index].shard, update.buf);
            self.targets[index].in_flight += 1;
            self.counters.transfers += 1;
            self.commands.push_back(Command::SendRecord {
                to,
                role: RecordRole::Transfer,
                buf,
                token,
            });
        }
    }

    /// The secondary shard has stored a record.
    #[inline]
    pub(super) fn transferred(&mut self, slot: u32, target: u8) {
        let update = self.slab.get_mut(slot);
        update.flags = update.flags & !TRAVELS | TRANSFERRED;
        self.targets[usize::from(target)].in_flight -= 1;
        self.free_if_unused(slot);
        self.pump(usize::from(target));
    }

    /// The secondary shard has a new memory; nothing goes there until it says what it has.
    pub(super) fn target_restarted(&mut self, index: usize) {
        let target = &mut self.targets[index];
        target.resumed = 0;
        target.in_flight = 0;
        target.backlog.clear();
        for slot in self.travelling_slots(index) {
            let update = self.slab.get_mut(slot);
            update.flags &= !TRAVELS;
            self.free_if_unused(slot);
        }
    }

    /// Every update whose record travels to the target, confirmed ones included: these are in no
    /// set any more, so the slab itself is walked.
    fn travelling_slots(&self, index: usize) -> Vec<u32> {
        self.slab
            .used_slots()
            .filter(|slot| {
                let update = self.slab.get(*slot);
                update.has(TRAVELS)
                    && self.volumes[update.volume as usize].target == Some(index as u8)
            })
            .collect()
    }

    /// The secondary shard `from` has everything of `group` up to the set `stored`: sends the rest.
    pub(super) fn resume_transfer(&mut self, from: ShardId, group: GroupId, stored: SetId) {
        let Some(group) = self.group_index(group) else { return };
        let Some(index) = self.targets.iter().position(|t| t.shard == from) else {
            self.counters.unexpected += 1;
            return;
        };
        if self.targets[index].resumed & 1 << group != 0 {
            return;
        }
        self.targets[index].resumed |= 1 << group;
        for slot in self.retained_slots() {
            let update = self.slab.get_mut(slot);
            let volume = &self.volumes[update.volume as usize];
            if volume.group != group || volume.target != Some(index as u8) {
                continue;
            }
            if update.set <= stored {
                update.flags |= TRANSFERRED;
            } else if update.has(SAFE) && !update.has(VOID) && !update.awaits_base() {
                update.flags &= !TRANSFERRED;
                let token = self.slab.token(slot, TAG_TARGET + index as u8);
                self.targets[index].backlog.push_back(token);
            }
        }
        self.pump(index);
    }
}
