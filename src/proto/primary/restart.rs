//! What a primary shard does when a peer, or a whole group, loses its memory.

use super::forward::TAG_FORWARD;
use super::mirror_store::TAG_RESEND;
use super::shard::PrimaryShard;
use super::slab::{CONFIRMED, NIL, RELEASED, SAFE};
use crate::proto::command::{Command, Report};
use crate::proto::limits::OPEN_SETS_MAX;
use crate::proto::message::{BrokenReason, FactsPart, Message};
use crate::proto::types::{GroupId, NvmeStatus, SetId, ShardId};
use alloc::vec::Vec;

impl PrimaryShard {
    /// The group can form no sets before a resynchronisation: what is under way is finished
    /// without them, and nothing is retained any more (invariant 10).
    pub(super) fn track(&mut self, id: GroupId, reason: BrokenReason) {
        let Some(index) = self.group_index(id) else { return };
        if self.groups[index].broken.is_some() {
            return;
        }
        self.groups[index].broken = Some(reason);
        self.commands.push_back(Command::Report(Report::Broken { group: id, reason }));
        // What waits for a take-over will not be recovered.
        self.drop_copies(id, SetId(u64::MAX), NvmeStatus::ANA_TRANSITION);
        for set in self.groups[index].sets.iter_mut() {
            set.released = true;
            set.reported = true;
        }
        let heads: Vec<u32> = self.groups[index].sets.iter().map(|s| s.head).collect();
        for head in heads.iter().copied() {
            let mut slot = head;
            while slot != NIL {
                let next = self.slab.get(slot).next;
                if !self.slab.get(slot).has(SAFE) {
                    self.slab.get_mut(slot).flags |= SAFE;
                }
                self.try_base(slot);
                if self.is_void_and_waits(slot) {
                    self.void_known(slot);
                }
                slot = next;
            }
        }
        while let Some(own) = self.groups[index].sets.pop_through(SetId(u64::MAX)) {
            self.let_go(own.head);
            self.groups[index].sets.recycle(own);
        }
    }

    /// The link to `peer` is up with a new memory at the other end: what was queued there is lost, commands that
    /// were not carried out yet included.
    pub fn handle_peer_up(&mut self, peer: ShardId) {
        // What is to be sent there and was not yet is as lost as what was: it would reach another life of the
        // peer than the one that it is counted for.
        self.commands.retain(|command| match command {
            Command::Send { to, .. } | Command::SendRecord { to, .. } => *to != peer,
            _ => true,
        });
        if peer == self.coordinator && self.recovery.is_none() {
            self.greet_coordinator();
        }
        if let Some(index) = self.mirrors.iter().position(|m| m.shard == peer) {
            self.mirror_restarted(index);
        }
        if let Some(index) = self.targets.iter().position(|t| t.shard == peer) {
            self.target_restarted(index);
        }
    }

    /// Tells a new coordinator what this shard knows of each group, so that it goes on where the
    /// last one stood.
    pub(super) fn greet_coordinator(&mut self) {
        let to = self.coordinator;
        self.tell_planned();
        self.ask_to_close_merged();
        for index in 0..self.groups.len() {
            let group = &self.groups[index];
            let lost = group.lost.then_some(BrokenReason::MoversLost);
            let broken = group.broken.or(lost);
            let message = match broken {
                Some(reason) => Message::Broken { group: group.id, reason },
                None => Message::Greet {
                    group: group.id,
                    confirmed: group.confirmed,
                    open: group.last_opened(),
                    map_version: group.map,
                },
            };
            self.commands.push_back(Command::Send { to, message });
            // A shard that took part later than others has nothing in the sets before.
            let open = group.last_opened();
            let oldest = group.confirmed.0.max(open.0.saturating_sub(2 * OPEN_SETS_MAX as u64));
            if broken.is_none() {
                self.report_empty(index, SetId(oldest + 1), open);
            }
            self.groups[index].empty_before = open;
            let group = &self.groups[index];
            for set in group.sets.iter().filter(|set| set.reported && broken.is_none()) {
                for facts in FactsPart::split(&set.facts()) {
                    let message = Message::Closed { group: group.id, set: set.id, facts };
                    self.commands.push_back(Command::Send { to, message });
                }
            }
        }
    }

    /// Tells the coordinator that sets from `first` on and before `end` that are not here hold nothing of
    /// this shard.
    pub(super) fn report_empty(&mut self, group: usize, first: SetId, end: SetId) {
        let group = &self.groups[group];
        for set in (first.0..end.0).map(SetId) {
            if !group.sets.iter().any(|own| own.id == set) {
                let facts = FactsPart { part: 0, parts: 1, facts: Vec::new() };
                let message = Message::Closed { group: group.id, set, facts };
                self.commands.push_back(Command::Send { to: self.coordinator, message });
            }
        }
    }

    /// A mirror target lost its copies, or is there for the first time: grants it its budget and
    /// sends again what it held.
    fn mirror_restarted(&mut self, index: usize) {
        let bit = 1_u64 << index;
        self.taker_restarted(index as u8);
        self.words_lost(bit);
        let mirror = &mut self.mirrors[index];
        if !mirror.member {
            return;
        }
        mirror.up = true;
        mirror.in_flight = 0;
        mirror.backlog.clear();
        let message = Message::Budget { bytes: mirror.grant_bytes };
        self.commands.push_back(Command::Send { to: mirror.shard, message });
        let confirmed: Vec<u32> =
            self.slab.used_slots().filter(|s| self.slab.get(*s).has(RELEASED)).collect();
        for slot in confirmed {
            self.slab.get_mut(slot).mirrors_travelling &= !bit;
            self.free_if_unused(slot);
        }
        let mut slots = self.retained_slots();
        let told = |slot: &u32| {
            let update = self.slab.get(*slot);
            update.has(CONFIRMED) && !update.has(RELEASED)
        };
        slots.extend(self.slab.used_slots().filter(told).collect::<Vec<u32>>());
        for slot in slots {
            let update = self.slab.get_mut(slot);
            if update.mirrors & bit != 0 {
                update.mirrors_pending |= bit;
                update.mirrors_travelling &= !bit;
                let token = self.slab.token(slot, index as u8);
                self.mirrors[index].backlog.push_back(token);
            }
        }
        self.forwards_lost(index as u8);
        self.stop_resending(index as u8);
        self.survey(index);
        let peer = self.mirrors[index].shard;
        self.hand_off_again(peer);
        self.send_again(index);
    }

    pub(super) fn send_again(&mut self, index: usize) {
        while self.mirrors[index].up && self.mirrors[index].in_flight < self.in_flight_max {
            let Some(token) = self.mirrors[index].backlog.pop_front() else { return };
            if (token.0 >> 32) as u8 == TAG_RESEND {
                self.resend(index as u8, token);
                continue;
            }
            if (token.0 >> 32) as u8 == TAG_FORWARD {
                self.mirrors[index].in_flight += u32::from(self.send_forward_again(token));
                continue;
            }
            let Some((slot, _)) = self.slab.resolve(token) else { continue };
            let role = self.role_to(slot, index);
            let update = self.slab.get_mut(slot);
            update.mirrors_travelling |= 1 << index;
            let (to, buf) = (self.mirrors[index].shard, update.buf);
            self.mirrors[index].in_flight += 1;
            self.commands.push_back(Command::SendRecord { to, role, buf, token });
        }
    }
}
