//! Updates that this shard took for volumes that others are responsible for (G3), from their
//! source's command to its answer.
//!
//! The record goes to the responsible shard, and comes back as a header with a number. From then
//! on the record here is a mirror copy (invariant 1 b) in [`super::mirror_store`]. The source is
//! answered when the responsible shard says that the update has its fate. A record is charged
//! against what the responsible shard granted, as a mirror copy there would be.

use super::number::HostUpdate;
use super::peers::Mirror;
use super::room::Full;
use super::shard::{PrimaryShard, RecordVerdict};
use super::slab::{ELSEWHERE, HERE};
use crate::proto::command::{Command, HostTag, RecordRole, Token};
use crate::proto::message::Message;
use crate::proto::time::TimeStamp;
use crate::proto::types::{
    BufRef, Extent, ForwardId, GroupId, MapVersion, NvmeStatus, Seq, SetId, ShardId, UpdateKind,
};
use crate::wire::update::UpdateInfo;
use alloc::vec::Vec;

/// Token tag of a forwarded record.
pub(super) const TAG_FORWARD: u8 = 0xfe;
const NIL: u32 = u32::MAX;

/// One forwarded update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward {
    pub(super) tag: HostTag,
    pub(super) buf: BufRef,
    pub(super) record_bytes: u32,
    /// Index into the shard's volumes.
    pub(super) volume: u32,
    pub(super) kind: UpdateKind,
    pub(super) fua: bool,
    pub(super) extent: Extent,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
    /// When this shard took it (G8).
    pub(super) time: TimeStamp,
    /// Index of the mirror peer that it went to, or that answers it now; or [`HERE`].
    pub(super) to: u8,
    /// The link refers to the record.
    pub(super) travels: bool,
    /// It has its number: the record is in the mirror store, too.
    pub(super) numbered: bool,
    /// The source was told.
    pub(super) answered: bool,
    /// The mirror store needs the record no more.
    pub(super) dropped: bool,
    /// So much so that the record is the mirror store's: it still travels to a shard that takes the
    /// volume over, and goes when it does not any more.
    pub(super) lent: bool,
    /// It was numbered by a mover that failed.
    pub(super) stranded: bool,
    /// It is for this mirror peer; sent once the link does not refer to the record any more.
    pub(super) redirect: Option<u8>,
    generation: u32,
    next: u32,
}

/// The forwarded updates: a slab with generations, like [`super::slab`].
#[derive(Debug)]
pub(super) struct Forwards {
    slots: Vec<Forward>,
    free: u32,
    used: u32,
    max: u32,
}

impl Forwards {
    pub(super) fn new(max: u32) -> Self {
        Self { slots: Vec::with_capacity(max as usize), free: NIL, used: 0, max }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    fn insert(&mut self, mut forward: Forward) -> u32 {
        debug_assert!(self.used < self.max);
        self.used += 1;
        if self.free == NIL {
            forward.generation = 1;
            self.slots.push(forward);
            return (self.slots.len() - 1) as u32;
        }
        let slot = self.free;
        let place = &mut self.slots[slot as usize];
        self.free = place.next;
        forward.generation = place.generation.wrapping_add(1) & 0x00ff_ffff;
        *place = forward;
        slot
    }

    pub(super) fn at(&self, slot: u32) -> &Forward {
        &self.slots[slot as usize]
    }

    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Forward {
        &mut self.slots[slot as usize]
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1) & 0x00ff_ffff;
        place.next = self.free;
        self.free = slot;
        self.used -= 1;
    }

    fn token(&self, slot: u32) -> Token {
        let generation = u64::from(self.slots[slot as usize].generation);
        Token(generation << 40 | u64::from(TAG_FORWARD) << 32 | u64::from(slot))
    }

    pub(super) fn id(&self, slot: u32) -> ForwardId {
        // Never 0: a slot in use has an odd generation.
        ForwardId(u64::from(self.slots[slot as usize].generation) << 32 | u64::from(slot))
    }

    pub(super) fn find(&self, id: ForwardId) -> Option<u32> {
        self.alive(id.0 as u32, id.0 >> 32)
    }

    fn resolve(&self, token: Token) -> Option<u32> {
        self.alive(token.0 as u32, token.0 >> 40)
    }

    fn alive(&self, slot: u32, generation: u64) -> Option<u32> {
        let place = self.slots.get(slot as usize)?;
        (generation & 1 == 1 && u64::from(place.generation) == generation).then_some(slot)
    }

    /// The slots in use that went to the peer at `to`. Walks the slab: for restarts.
    pub(super) fn sent_to(&self, to: u8) -> Vec<u32> {
        let all = self.slots.iter().enumerate();
        all.filter(|(_, f)| f.generation & 1 == 1 && f.to == to).map(|(s, _)| s as u32).collect()
    }

    /// The mirror store drops the copy that `info` describes. The slot, when its record is still
    /// needed here.
    pub(super) fn keeps(&mut self, info: &UpdateInfo, buf: BufRef) -> Option<u32> {
        let slot = self.find(info.forward)?;
        let forward = &mut self.slots[slot as usize];
        let same = forward.buf == buf && forward.numbered;
        forward.dropped |= same;
        same.then_some(slot)
    }
}

impl PrimaryShard {
    /// Whether an update for a volume of the peer at `owner` can be forwarded now.
    pub(super) fn admit_forward(&self, owner: u8, record_bytes: u32) -> Result<(), Full> {
        let peer: &Mirror = &self.mirrors[usize::from(owner)];
        if self.forwards.used == self.forwards.max {
            Err(Full::Forwards)
        } else if peer.takes_forward(record_bytes, self.in_flight_max) {
            Ok(())
        } else {
            Err(Full::Mirrors)
        }
    }

    /// Sends an update to the responsible shard.
    #[inline(never)]
    pub(super) fn forward(&mut self, owner: u8, update: &HostUpdate) -> UpdateInfo {
        let slot = self.forwards.insert(Forward {
            tag: update.tag,
            buf: update.buf,
            record_bytes: update.record_bytes,
            volume: update.volume,
            kind: update.kind,
            fua: update.fua,
            extent: update.extent,
            payload_len: update.payload_len,
            payload_crc: update.payload_crc,
            time: update.time,
            to: owner,
            travels: true,
            numbered: false,
            answered: false,
            dropped: false,
            lent: false,
            stranded: false,
            redirect: None,
            generation: 0,
            next: NIL,
        });
        let (id, token) = (self.forwards.id(slot), self.forwards.token(slot));
        let peer = &mut self.mirrors[usize::from(owner)];
        peer.in_flight += 1;
        peer.forwarded_bytes += u64::from(update.record_bytes);
        let (to, crowded) = (peer.shard, peer.is_crowded());
        let (role, buf) = (RecordRole::Forward, update.buf);
        self.commands.push_back(Command::SendRecord { to, role, buf, token });
        self.counters.forwarded += 1;
        let volume = &self.volumes[update.volume as usize];
        let group = volume.group;
        let info = UpdateInfo {
            kind: update.kind,
            fua: update.fua,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            volume: volume.config.id,
            group: volume.config.group,
            origin: self.me.mover,
            owner: to,
            epoch: self.epoch,
            map_version: self.map_version,
            set: SetId(0),
            seq: Seq(0),
            extent: update.extent,
            block_bytes: volume.config.block_bytes,
            list_seq: 0,
            time_ns: update.time.time_ns,
            time_error_ns: update.time.error_ns,
            forward: id,
            described: false,
            not_before: SetId(0),
        };
        if crowded && self.groups[group].broken.is_none() {
            self.ask_for_early_close(group);
        }
        info
    }

    /// The responsible shard has stored a forwarded record.
    pub(super) fn forward_delivered(&mut self, token: Token) {
        let Some(slot) = self.forwards.resolve(token) else {
            debug_assert!(false, "a forwarded record is kept while it travels");
            self.counters.unexpected += 1;
            return;
        };
        let forward = &mut self.forwards.slots[slot as usize];
        forward.travels = false;
        let to = usize::from(forward.to);
        self.mirrors[to].in_flight -= 1;
        if self.forwards.at(slot).answered {
            self.settle_forward(slot);
        } else {
            self.redirect(slot);
        }
        if !self.mirrors[to].backlog.is_empty() {
            self.send_again(to);
        }
    }

    /// The number of a forwarded update arrived.
    pub(super) fn forward_numbered(&mut self, from: ShardId, info: &UpdateInfo) -> RecordVerdict {
        let Some(slot) = self.forwards.find(info.forward) else { return RecordVerdict::NotNeeded };
        let forward = &mut self.forwards.slots[slot as usize];
        let expected = self.mirrors.get(usize::from(forward.to)).is_some_and(|m| m.shard == from)
            && self.volumes[forward.volume as usize].config.id == info.volume;
        if !expected || forward.numbered {
            return RecordVerdict::NotNeeded;
        }
        if info.set == SetId(0) {
            // Its group forms no sets, so no copy is kept: if its owner falls, it goes to the next one.
            return RecordVerdict::NotNeeded;
        }
        if self.store.is_confirmed(info.group, info.set) {
            let volume = forward.volume;
            self.mark_confirmed(volume, info.seq);
            return RecordVerdict::NotNeeded;
        }
        forward.numbered = true;
        let (buf, charge) = (forward.buf, Some((forward.to, forward.record_bytes)));
        let (group, bytes) = (self.volumes[forward.volume as usize].group, forward.record_bytes);
        let volume = forward.volume;
        self.store.insert(from, volume, *info, buf, charge, false);
        self.groups[group].sets.count_forward(info.set, bytes);
        RecordVerdict::Numbered { buf }
    }

    /// A forwarded update has its fate: the source is told.
    pub(super) fn forward_answered(&mut self, from: ShardId, id: ForwardId, status: NvmeStatus) {
        match self.forwards.find(id) {
            Some(slot) if self.went_to(slot, from) => self.answer(slot, status),
            _ => self.counters.unexpected += 1,
        }
    }

    fn went_to(&self, slot: u32, shard: ShardId) -> bool {
        let forward = &self.forwards.slots[slot as usize];
        !forward.answered
            && self.mirrors.get(usize::from(forward.to)).is_some_and(|m| m.shard == shard)
    }

    pub(super) fn answer(&mut self, slot: u32, status: NvmeStatus) {
        let forward = &mut self.forwards.slots[slot as usize];
        forward.answered = true;
        let tag = forward.tag;
        self.counters.acknowledged += u64::from(status.is_ok());
        self.commands.push_back(Command::CompleteHost { tag, status });
        self.settle_forward(slot);
    }

    /// Lets go of a forward that was answered and whose record does not travel.
    pub(super) fn settle_forward(&mut self, slot: u32) {
        let forward = self.forwards.slots[slot as usize];
        if !forward.answered || forward.travels {
            return;
        }
        self.forwards.remove(slot);
        if !forward.numbered || forward.dropped {
            // The mirror store has none, or has none any more.
            if let Some(peer) = self.mirrors.get_mut(usize::from(forward.to)) {
                peer.forwarded_bytes -= u64::from(forward.record_bytes);
            }
            if !forward.lent {
                self.commands.push_back(Command::Free { buf: forward.buf });
            }
        }
    }

    /// The shard that an update was forwarded to is not responsible (G4): it goes to the one that
    /// is, or its source tries again.
    pub(super) fn forward_rejected(
        &mut self,
        from: ShardId,
        id: ForwardId,
        owner: ShardId,
        map_version: MapVersion,
    ) {
        let slot = self.forwards.find(id).filter(|slot| self.went_to(*slot, from));
        let Some(slot) = slot else {
            self.counters.unexpected += 1;
            return;
        };
        self.counters.rejected += 1;
        let volume = self.forwards.at(slot).volume;
        if self.is_responsible(volume) || owner == self.me && self.is_coming(volume) {
            // The volume has come here since, or is on its way. If it is to go on, to the one that was
            // named, this shard has not switched, and hands it over when it does.
            self.forwards.at_mut(slot).redirect = Some(HERE);
            return self.redirect(slot);
        }
        let known = self.mirrors.iter().position(|m| m.shard == owner && m.shard != from);
        let forward = &mut self.forwards.slots[slot as usize];
        match known {
            Some(index) if map_version >= self.map_version => {
                let volume = &mut self.volumes[forward.volume as usize];
                (volume.owner, volume.responsible) = (index as u8, owner);
                forward.redirect = Some(index as u8);
                self.redirect(slot);
            }
            _ => self.answer(slot, NvmeStatus::ANA_TRANSITION),
        }
    }

    /// Sends a rejected update to the shard that is responsible, once its record does not travel: the
    /// one that is so by then.
    pub(super) fn redirect(&mut self, slot: u32) {
        let forward = &mut self.forwards.slots[slot as usize];
        if forward.travels {
            return;
        }
        let Some(named) = forward.redirect.take() else { return };
        let volume = forward.volume;
        let to = match self.volumes[volume as usize].owner {
            _ if named == HERE && self.is_coming(volume) => HERE,
            owner => owner,
        };
        match to {
            HERE => return self.take_back(slot),
            ELSEWHERE => return self.answer(slot, NvmeStatus::ANA_TRANSITION),
            _ => {}
        }
        let forward = &mut self.forwards.slots[slot as usize];
        let bytes = u64::from(forward.record_bytes);
        if let Some(peer) = self.mirrors.get_mut(usize::from(forward.to)) {
            peer.forwarded_bytes -= bytes;
        }
        self.mirrors[usize::from(to)].forwarded_bytes += bytes;
        forward.to = to;
        let token = self.forwards.token(slot);
        self.mirrors[usize::from(to)].backlog.push_back(token);
        self.send_again(usize::from(to));
    }

    /// An update that had come back here goes to the mirror peer that is responsible now.
    pub(super) fn forward_anew(&mut self, id: ForwardId, owner: u8) {
        let Some(slot) = self.forwards.find(id) else { return };
        if usize::from(owner) >= self.mirrors.len() {
            return self.answer(slot, NvmeStatus::ANA_TRANSITION);
        }
        self.forwards.at_mut(slot).redirect = Some(owner);
        self.redirect(slot);
    }

    /// Sends a forwarded record again. False when nobody waits for it any more.
    pub(super) fn send_forward_again(&mut self, token: Token) -> bool {
        let Some(slot) = self.forwards.resolve(token) else { return false };
        let forward = &mut self.forwards.slots[slot as usize];
        forward.travels = true;
        let (to, buf) = (self.mirrors[usize::from(forward.to)].shard, forward.buf);
        let role = RecordRole::Forward;
        self.commands.push_back(Command::SendRecord { to, role, buf, token });
        true
    }

    /// The responsible shard at `index` lost its memory. What it had numbered is in nobody's hands
    /// and its source tries again; the rest is sent again.
    pub(super) fn forwards_lost(&mut self, index: u8) {
        for slot in self.forwards.sent_to(index) {
            let forward = &mut self.forwards.slots[slot as usize];
            forward.travels = false;
            if forward.answered {
                self.settle_forward(slot);
            } else if forward.numbered {
                self.answer(slot, NvmeStatus::ANA_TRANSITION);
            } else if forward.redirect.is_some() {
                self.redirect(slot);
            } else {
                let token = self.forwards.token(slot);
                self.mirrors[usize::from(index)].backlog.push_back(token);
            }
        }
    }

    /// Copies here of the group's sets up to `set` are needed no more (invariant 8). What this shard took
    /// of these, and whose mover failed, is answered with `status`.
    pub(super) fn drop_copies(&mut self, group: GroupId, set: SetId, status: NvmeStatus) {
        let mut settled: Vec<u32> = Vec::new();
        let Self { store, forwards, mirrors, commands, volumes, .. } = self;
        store.confirm(group, set, |copy, travels| {
            if let Some(volume) = volumes.get_mut(copy.volume as usize) {
                volume.confirmed = volume.confirmed.max(copy.info.seq);
            }
            if copy.info.forward != ForwardId(0)
                && let Some(slot) = forwards.keeps(&copy.info, copy.buf)
            {
                let forward = forwards.at_mut(slot);
                forward.lent = travels;
                if forward.stranded {
                    settled.push(slot);
                }
                return;
            }
            if let Some((peer, bytes)) = copy.charge {
                mirrors[usize::from(peer)].forwarded_bytes -= u64::from(bytes);
            }
            if !travels {
                commands.push_back(Command::Free { buf: copy.buf });
            }
        });
        for slot in settled {
            // The mover that would say so has failed; if its set is confirmed, it has its fate.
            if !self.forwards.at_mut(slot).answered {
                self.answer(slot, status);
            }
        }
    }

    /// The messages of forwarding.
    pub(super) fn handle_forwarding(&mut self, from: ShardId, message: &Message) {
        match *message {
            Message::Forwarded { forward, status } => self.forward_answered(from, forward, status),
            Message::NotResponsible { forward, owner, map_version } => {
                self.forward_rejected(from, forward, owner, map_version);
            }
            _ => self.counters.unexpected += 1,
        }
    }
}
