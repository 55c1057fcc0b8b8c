//! A new epoch at a primary shard (invariant 9): who left, who is responsible now, which updates
//! lack copies, and what others are told of it (F5).
//!
//! Links between members outlast an epoch, and with them every update that only members have to do
//! with. What was under way to or from a mover that left is settled here at once: its copies are
//! made again elsewhere, what it forwarded has nobody waiting, what was forwarded to it goes to
//! whoever is responsible now. Its volumes are taken over in [`super::takeover`].

use super::mirror_store::Mirrored;
use super::number::owner_index;
use super::shard::PrimaryShard;
use super::slab::{CONFIRMED, ELSEWHERE, HERE, NOBODY, RELEASED, SAFE};
use super::take::Arrived;
use super::takeover::Standing;
use crate::proto::command::Command;
use crate::proto::limits::FACTS_PER_PART;
use crate::proto::membership::SiteRecord;
use crate::proto::message::{Held, Kept, Message};
use crate::proto::types::{Nanos, NvmeStatus, Seq, SetId, ShardId, VolumeId};
use crate::wire::update::UpdateInfo;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

impl PrimaryShard {
    /// Enters the epoch that `record` describes, if it is later than the present one. The caller
    /// has closed the links to movers that have left since the present one
    /// ([`SiteRecord::left_since`]), also if they are members again, and lets the links to members
    /// carry the new epoch from now on.
    pub fn enter(&mut self, now: Nanos, record: &SiteRecord) {
        if record.epoch <= self.epoch {
            return;
        }
        let before = core::mem::replace(&mut self.epoch, record.epoch);
        self.map_version = record.map_version;
        self.coordinator = record.coordinator;
        self.since = record.since(self.me.mover).unwrap_or(record.epoch);
        self.moved.clone_from(&record.moved);
        self.recovered_forwards.clear();
        let mut gone = 0_u64;
        let mut members = 1;
        for (index, mirror) in self.mirrors.iter_mut().enumerate() {
            if record.left_since(mirror.shard.mover, before) {
                gone |= u64::from(mirror.member) << index;
                mirror.leave();
            }
            if let Some(since) = record.since(mirror.shard.mover) {
                mirror.member = true;
                mirror.since = since;
                members += 1;
            }
            mirror.surveyed = !mirror.member;
            mirror.surveys.clear();
        }
        for group in &mut self.groups {
            group.joins |= group.sets.open().is_none();
            group.wanted_mirrors = group.copies.min(members) - 1;
            group.lost |= record.lost.contains(&group.id);
        }
        self.moves_settled(record);
        self.map_changed(record, gone);
        self.takers_left(gone);
        self.lone = false;
        self.copies_left(gone);
        self.copies_stopped(gone);
        self.recharge_copies(gone);
        self.forwards_stranded(gone);
        self.recheck_restores();
        self.begin_recovery(now);
        for index in 0..self.mirrors.len() {
            if self.mirrors[index].up {
                self.survey(index);
            }
        }
        for index in 0..self.mirrors.len() {
            self.send_again(index);
        }
        if self.recovery.is_some() {
            // What is known here is told when all is.
            self.advance_recovery();
        } else {
            self.greet_coordinator();
        }
    }

    /// Whether this shard has heard every member of the epoch, is up to date with all its volumes,
    /// and has as many copies of everything as it should have: then as many movers may fail as the
    /// groups have spare copies.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.recovery.is_none()
            && self.mirrors.iter().all(|mirror| mirror.surveyed)
            && self.volumes.iter().all(|volume| match volume.owner {
                HERE => volume.ready,
                ELSEWHERE => true,
                _ => volume.told == self.epoch,
            })
            && self
                .slab
                .used_slots()
                .all(|slot| self.slab.get(slot).has(RELEASED) || !self.lacks_copies(slot))
    }

    /// The volumes that are being taken over here: those of which not everything is gathered, and
    /// those whose base is not up to date.
    pub fn not_ready(&self) -> impl Iterator<Item = (VolumeId, bool)> {
        let volumes = self.volumes.iter().filter(|volume| !volume.ready);
        volumes.map(|volume| (volume.config.id, matches!(volume.standing, Standing::Gathering)))
    }

    /// By mirror peer: records under way there, and records that wait.
    pub fn under_way(&self) -> impl Iterator<Item = (ShardId, bool, u32, usize)> {
        self.mirrors.iter().map(|m| (m.shard, m.up, m.in_flight, m.backlog.len()))
    }

    /// The shards of other members that this one has not heard in the epoch.
    pub fn unheard(&self) -> impl Iterator<Item = ShardId> {
        self.mirrors.iter().filter(|mirror| !mirror.surveyed).map(|mirror| mirror.shard)
    }

    fn map_changed(&mut self, record: &SiteRecord, gone: u64) {
        for volume in &mut self.volumes {
            let map = self.groups[volume.group].map;
            let Some(owner) = record.owner_in(map, volume.config.id) else { continue };
            let index = owner_index(self.me, self.mirrors.iter().map(|m| m.shard), owner);
            // Handed over here at a boundary, but for the word of a mover that failed.
            let waits = matches!(volume.standing, Standing::Arriving { .. })
                && record.owner(volume.config.id) == Some(owner);
            if index == HERE && (volume.owner != HERE || waits) {
                volume.ready = false;
                volume.standing = Standing::Gathering;
            }
            volume.owner = index;
            volume.responsible = owner;
            let heir = record.owner(volume.config.id).unwrap_or(owner);
            volume.heir = (owner_index(self.me, self.mirrors.iter().map(|m| m.shard), heir), heir);
            let recovers = matches!(volume.standing, Standing::Gathering);
            volume.history |= volume.heir.0 == HERE && gone != 0;
            volume.history &= !recovers;
        }
        self.share_budgets();
    }

    /// Who is responsible for what changed: what was granted is shared anew.
    pub(super) fn share_budgets(&mut self) {
        let forwards = self.volumes.iter().any(|volume| volume.owner != HERE);
        self.mirrors.iter_mut().for_each(|mirror| mirror.share_budget(forwards));
    }

    /// Nobody waits for what movers that left had forwarded.
    fn takers_left(&mut self, gone: u64) {
        let commands = &mut self.commands;
        self.arrived.retain(|arrived| {
            let left = is_in(gone, arrived.from);
            if left {
                commands.push_back(Command::Free { buf: arrived.buf });
            }
            !left
        });
        let slots: Vec<u32> = self.slab.used_slots().collect();
        for slot in slots {
            let update = self.slab.get_mut(slot);
            if is_in(gone, update.origin) {
                update.origin = NOBODY;
            }
        }
    }

    /// Copies at movers that left do not count any more: others get one instead.
    fn copies_left(&mut self, gone: u64) {
        self.words_lost(gone);
        let slots: Vec<u32> = self.slab.used_slots().collect();
        for slot in slots {
            let update = self.slab.get_mut(slot);
            update.mirrors &= !gone;
            update.mirrors_pending &= !gone;
            update.mirrors_travelling &= !gone;
            if update.has(RELEASED) {
                if update.mirrors_pending == 0 && self.is_void_and_waits(slot) {
                    self.void_known(slot);
                } else {
                    self.free_if_unused(slot);
                }
                continue;
            }
            self.mirror_again(slot);
            if self.slab.get(slot).has(CONFIRMED) {
                self.release_confirmed(slot);
                continue;
            }
            let update = self.slab.get(slot);
            if update.mirrors_pending != 0 {
                continue;
            }
            if !update.has(SAFE) {
                self.became_safe(slot);
            } else if self.is_void_and_waits(slot) {
                self.void_known(slot);
            }
        }
    }

    /// Whether an update that was safe is held by fewer members than it should be.
    #[inline]
    pub(super) fn lacks_copies(&self, slot: u32) -> bool {
        let update = self.slab.get(slot);
        let group = &self.groups[self.volumes[update.volume as usize].group];
        let few = update.mirrors_pending != 0 || update.mirrors.count_ones() < group.wanted_mirrors;
        few && update.has(SAFE) && group.broken.is_none()
    }

    /// Lets a confirmed update go once as many members as it should have copies at have taken one, or
    /// have said that they know it to be confirmed. If this shard fell before, one that holds an
    /// earlier update of the volume, and does not know that either, would bring back old blocks.
    pub(super) fn release_confirmed(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        if !update.has(CONFIRMED) || update.has(RELEASED) {
            return;
        }
        let group = &self.groups[self.volumes[update.volume as usize].group];
        let others = self.mirrors.iter().filter(|mirror| mirror.member && mirror.is_target);
        let wanted = group.wanted_mirrors.min(others.count() as u32);
        if update.mirrors_pending == 0 && update.mirrors.count_ones() >= wanted {
            self.slab.get_mut(slot).flags |= RELEASED;
            self.free_if_unused(slot);
        }
    }

    /// Queues further copies of an update, until there are as many as there should be. One that was
    /// safe already waits for room within what others granted, since its set is closed without that;
    /// one that was not gets its copies at once, or its set would never be.
    pub(super) fn mirror_again(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        let was_safe = update.has(SAFE) && !update.has(CONFIRMED);
        let group = &self.groups[self.volumes[update.volume as usize].group];
        if group.broken.is_some() {
            return;
        }
        let (wanted, bytes) = (group.wanted_mirrors, u64::from(update.record_bytes));
        while self.slab.get(slot).mirrors.count_ones() < wanted {
            let has = self.slab.get(slot).mirrors;
            let others = self.mirrors.iter().enumerate();
            let free = others.filter(|(index, mirror)| {
                let room = !was_safe || mirror.takes(bytes as u32, u32::MAX);
                mirror.member && mirror.is_target && room && has & 1 << index == 0
            });
            let least = free.min_by_key(|(_, mirror)| mirror.used_bytes).map(|(index, _)| index);
            let Some(index) = least else {
                self.lone = true;
                return;
            };
            self.mirrors[index].used_bytes += bytes;
            let update = self.slab.get_mut(slot);
            update.mirrors |= 1 << index;
            update.mirrors_pending |= 1 << index;
            let token = self.slab.token(slot, index as u8);
            self.mirrors[index].backlog.push_back(token);
        }
    }

    /// There may be room for copies that lacked it.
    #[cold]
    pub(super) fn mirror_lone(&mut self) {
        self.lone = false;
        let slots: Vec<u32> = self.slab.used_slots().collect();
        for slot in slots {
            if !self.slab.get(slot).has(RELEASED) {
                self.mirror_again(slot);
            }
        }
        for index in 0..self.mirrors.len() {
            self.send_again(index);
        }
    }

    fn copies_stopped(&mut self, gone: u64) {
        for index in 0..self.mirrors.len() as u8 {
            if is_in(gone, index) {
                self.stop_resending(index);
            }
        }
    }

    /// Copies that were in the books of a mover that left are of whoever is responsible now, who has
    /// to be sent them, and are charged against what that one granted.
    fn recharge_copies(&mut self, gone: u64) {
        let Self { store, volumes, mirrors, orphans: any, .. } = self;
        let left = |shard: ShardId| {
            let at = mirrors.iter().position(|mirror| mirror.shard == shard);
            at.is_some_and(|at| gone & 1 << at != 0)
        };
        let orphans = store
            .find(|copy: &Mirrored| volumes.get(copy.volume as usize).is_some() && left(copy.from));
        *any |= !orphans.is_empty();
        for slot in orphans {
            let copy = store.get_mut(slot);
            copy.orphan = true;
            let (heir, shard) = volumes[copy.volume as usize].heir;
            copy.from = shard;
            if let Some((peer, bytes)) = copy.charge {
                mirrors[usize::from(peer)].forwarded_bytes -= u64::from(bytes);
                let to = mirrors.get_mut(usize::from(heir));
                copy.charge = to.map(|mirror| {
                    mirror.forwarded_bytes += u64::from(bytes);
                    (heir, bytes)
                });
            }
        }
    }

    /// What was forwarded to movers that left goes to whoever is responsible now. What has a number
    /// is recovered there, and answered from there.
    fn forwards_stranded(&mut self, gone: u64) {
        let mut slots = Vec::new();
        for index in 0..self.mirrors.len() {
            if is_in(gone, index as u8) {
                slots.extend(self.forwards.sent_to(index as u8));
            }
        }
        for slot in slots {
            let lost = self.has_lost(self.forwards.at(slot).volume);
            let forward = self.forwards.at_mut(slot);
            forward.travels = false;
            let owner = self.volumes[forward.volume as usize].owner;
            if forward.answered {
                self.settle_forward(slot);
            } else if forward.numbered && lost {
                // Nobody recovers it: its source tries again.
                self.answer(slot, NvmeStatus::ANA_TRANSITION);
            } else if forward.numbered {
                forward.stranded = true;
                if forward.dropped {
                    // Its set is confirmed, so it has its fate.
                    self.answer(slot, NvmeStatus::SUCCESS);
                } else {
                    self.forwards.at_mut(slot).to = owner;
                }
            } else if owner == HERE {
                self.take_back(slot);
            } else if owner == ELSEWHERE {
                self.answer(slot, NvmeStatus::ANA_TRANSITION);
            } else {
                forward.redirect = Some(owner);
                self.redirect(slot);
            }
        }
    }

    /// An update that was forwarded and has no number: this shard is responsible for it now.
    pub(super) fn take_back(&mut self, slot: u32) {
        let id = self.forwards.id(slot);
        let forward = *self.forwards.at(slot);
        if let Some(peer) = self.mirrors.get_mut(usize::from(forward.to)) {
            peer.forwarded_bytes -= u64::from(forward.record_bytes);
        }
        let place = self.forwards.at_mut(slot);
        (place.to, place.redirect) = (HERE, None);
        let volume = &self.volumes[forward.volume as usize].config;
        let info = UpdateInfo {
            kind: forward.kind,
            fua: forward.fua,
            payload_crc: forward.payload_crc,
            payload_len: forward.payload_len,
            volume: volume.id,
            group: volume.group,
            origin: self.me.mover,
            owner: self.me,
            epoch: self.epoch,
            map_version: self.map_version,
            set: SetId(0),
            seq: Seq(0),
            extent: forward.extent,
            block_bytes: volume.block_bytes,
            list_seq: 0,
            time_ns: forward.time.time_ns,
            time_error_ns: forward.time.error_ns,
            forward: id,
            described: false,
            not_before: SetId(0),
        };
        let (buf, volume) = (forward.buf, forward.volume);
        self.arrived.push_back(Arrived { info, buf, volume, from: HERE });
    }

    /// Tells the peer at `index` which numbers of its own volumes this shard knows to be confirmed, and
    /// of the peer's volumes how many copies it sends and which numbers it keeps; queues the copies.
    pub(super) fn survey(&mut self, index: usize) {
        let to = self.mirrors[index].shard;
        let mut copies = alloc::vec![0_u32; self.volumes.len()];
        let kept: Vec<Vec<Kept>> = (0..self.volumes.len()).map(|v| self.kept_to_tell(v)).collect();
        for slot in self.copies_for(index as u8) {
            let copy = self.store.get_mut(slot);
            copy.owed_to = Some(index as u8);
            copies[copy.volume as usize] += 1;
            let token = self.store.token(slot);
            self.mirrors[index].backlog.push_back(token);
        }
        for (group_index, group) in self.groups.iter().enumerate() {
            let mut held: Vec<Held> = self.own_marks(|v| v.group == group_index).collect();
            let of_group = self.volumes.iter().zip(copies.iter().zip(&kept));
            for (volume, (copies, kept)) in of_group.filter(|(v, _)| v.group == group_index) {
                let (id, confirmed) = (volume.config.id, volume.confirmed);
                let heard = volume.last_number();
                let takes_over = usize::from(volume.heir.0) == index && self.is_moved(id);
                if takes_over || *copies > 0 {
                    held.push(Held { volume: id, copies: *copies, confirmed, heard, kept: None });
                }
                held.extend(kept.iter().map(|kept| {
                    let kept = Some(*kept);
                    Held { volume: id, copies: 0, confirmed, heard, kept }
                }));
            }
            let mut parts: Vec<Vec<Held>> =
                held.chunks(FACTS_PER_PART).map(<[Held]>::to_vec).collect();
            if parts.is_empty() {
                parts.push(Vec::new());
            }
            let count = parts.len() as u16;
            for (part, volumes) in parts.into_iter().enumerate() {
                let message = Message::Survey {
                    group: group.id,
                    confirmed: group.confirmed,
                    open: group.last_opened(),
                    part: part as u16,
                    parts: count,
                    volumes,
                };
                self.commands.push_back(Command::Send { to, message });
            }
        }
    }

    /// The copies here that the peer at `index` has to be sent.
    fn copies_for(&self, index: u8) -> Vec<u32> {
        let heir = self.mirrors[usize::from(index)].shard;
        self.store.find(|copy: &Mirrored| copy.orphan && copy.from == heir)
    }

    /// The responsible shard has what members have of these volumes in its books: nobody has to be sent
    /// copies any more, until it leaves, too.
    pub(super) fn copies_in_books(&mut self, from: ShardId, volumes: &[Held]) {
        if !self.orphans {
            return;
        }
        let listed: BTreeSet<u32> =
            volumes.iter().filter_map(|held| self.volume_index(held.volume)).collect();
        for slot in self.store.find(|c| c.orphan && c.from == from && listed.contains(&c.volume)) {
            self.store.get_mut(slot).orphan = false;
        }
        self.orphans = self.store.iter().any(|copy| copy.orphan);
    }

    pub(super) fn is_moved(&self, volume: VolumeId) -> bool {
        self.moved.binary_search(&volume).is_ok()
    }
}

fn is_in(mask: u64, index: u8) -> bool {
    index < 64 && mask & 1 << index != 0
}
