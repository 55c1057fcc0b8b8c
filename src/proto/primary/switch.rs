//! A shard's part of a boundary: it switches, holds, lets go, and says when its part of a set is
//! closed (invariant 5); and it drops what the secondary has confirmed (invariant 8).

use super::shard::{PrimaryShard, Volume};
use super::slab::{CONFIRMED, NIL, RELEASED};
use crate::proto::command::{Command, Report};
use crate::proto::message::{FactsPart, Message};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{GroupId, MapVersion, Nanos, NvmeStatus, SetId};
use alloc::vec::Vec;

impl PrimaryShard {
    /// Whether acknowledgements of a group are held at a boundary.
    #[inline]
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.groups.iter().any(|group| group.sets.open().is_some_and(|open| !open.released))
    }

    /// Switches to `set` and holds it (invariant 5). A repeated word changes nothing but is
    /// answered, since the answer may have been lost with a restart.
    pub(super) fn prepare(&mut self, now: Nanos, id: GroupId, set: SetId, map_version: MapVersion) {
        let Some(index) = self.group_index(id) else { return };
        if self.groups[index].broken.is_some() {
            // There is no set to switch to, but moves may be carried out.
            return self.carry_out(index, map_version);
        }
        let open = self.groups[index].sets.open().map_or(SetId(0), |s| s.id);
        let joins = core::mem::take(&mut self.groups[index].joins);
        if set == open && joins {
            self.commands.push_back(Command::Report(Report::SetOpened { group: id, set }));
        }
        if set > open {
            let before = core::mem::replace(&mut self.groups[index].empty_before, set);
            if before > SetId(0) {
                // Only others had opened it, when this shard told the coordinator what it knows.
                self.report_empty(index, before, set);
            }
            self.switch_to(now, index, set, map_version);
            if self.sabotage.is(Sabotage::ReleaseBeforeAllSwitched) {
                self.release(now, index, set);
            }
        }
        // Where a recovered update opened the set, its moves may not have been known to be carried out.
        self.carry_out(index, map_version);
        let message = Message::Prepared { group: id, set };
        self.commands.push_back(Command::Send { to: self.coordinator, message });
        self.report_closed(index);
    }

    /// Opens `set`, which is later than the open one: numbers go into it from now on, by the map of
    /// this version.
    pub(super) fn switch_to(&mut self, now: Nanos, index: usize, set: SetId, map: MapVersion) {
        let group = &mut self.groups[index];
        let (id, open) = (group.id, group.sets.open().map_or(SetId(0), |s| s.id));
        // All have switched to the set before, or the word for this one would not have been sent.
        self.release(now, index, open);
        let sets = &mut self.groups[index].sets;
        if let Some(open) = sets.open_mut() {
            open.switched = true;
        }
        sets.push(set, now);
        self.carry_out(index, map);
        if !self.groups[index].joins {
            self.commands.push_back(Command::Report(Report::SetOpened { group: id, set }));
        }
    }

    pub(super) fn release(&mut self, now: Nanos, index: usize, set: SetId) {
        let group = &mut self.groups[index];
        let id = group.id;
        let Some(own) = group.sets.get_mut(set) else { return };
        if own.released {
            return;
        }
        own.released = true;
        let held_ns = now.since(own.opened_at);
        let mut slot = own.head;
        self.commands.push_back(Command::Report(Report::Held { group: id, set, held_ns }));
        // Oldest first is not needed: those that overlap wait for one another by themselves.
        while slot != NIL {
            let next = self.slab.get(slot).next;
            self.try_base(slot);
            slot = next;
        }
    }

    pub(super) fn report_closed(&mut self, group: usize) {
        if self.volumes.iter().any(Volume::is_gathering) {
            // More may belong to these sets: once that is known.
            return;
        }
        let group = &mut self.groups[group];
        for set in group.sets.iter_mut() {
            if set.switched && set.unfinished == 0 && !set.reported {
                set.reported = true;
                for facts in FactsPart::split(&set.facts()) {
                    let message = Message::Closed { group: group.id, set: set.id, facts };
                    self.commands.push_back(Command::Send { to: self.coordinator, message });
                }
            }
        }
    }

    /// The secondary has all sets up to `set`: their records may go here, the held copies too.
    pub(super) fn confirm(&mut self, id: GroupId, set: SetId) {
        self.drop_copies(id, set, NvmeStatus::SUCCESS);
        let Some(index) = self.group_index(id) else { return };
        self.groups[index].confirmed = self.groups[index].confirmed.max(set);
        self.known_to_be_confirmed(index);
        while let Some(own) = self.groups[index].sets.pop_through(set) {
            for (volume, last) in own.lasts() {
                self.mark_confirmed(volume as u32, last);
            }
            self.let_go(own.head);
            self.groups[index].sets.recycle(own);
        }
        if self.lone {
            self.mirror_lone();
        }
    }

    pub(super) fn let_go(&mut self, head: u32) {
        let mut slot = head;
        while slot != NIL {
            let update = self.slab.get_mut(slot);
            let next = core::mem::replace(&mut update.next, NIL);
            if self.lacks_copies(slot) {
                self.slab.get_mut(slot).flags |= CONFIRMED;
                self.mirror_again(slot);
                self.release_confirmed(slot);
                self.lone = true;
            } else {
                self.slab.get_mut(slot).flags |= RELEASED;
                self.free_if_unused(slot);
            }
            slot = next;
        }
    }

    /// The slots of all updates in sets, older sets first, older updates first.
    pub(super) fn retained_slots(&self) -> Vec<u32> {
        let mut slots = Vec::new();
        for set in self.groups.iter().flat_map(|g| g.sets.iter()) {
            let start = slots.len();
            let mut slot = set.head;
            while slot != NIL {
                slots.push(slot);
                slot = self.slab.get(slot).next;
            }
            slots[start..].reverse();
        }
        slots
    }
}
