//! Taking over volumes whose owner failed (F5): gathering what the members hold, finding the
//! numbers that nobody has, copying what has too few copies, and bringing the base up to date.
//!
//! 1. *Gathering.* Every member says how many copies it has of the volume, which it sends, and what
//!    it knows of the numbers. When all have come, nothing that was ever acknowledged is missing,
//!    as long as no more movers failed at once than there are spare copies.
//! 2. *Recovering.* Copies of sets that any member knows to be confirmed are dropped. The others
//!    enter this shard's books in the order of their numbers, as if it had numbered them, in the
//!    sets that they were in; numbers that nobody has are void (invariant 3), in the set of the next
//!    number that somebody has. Numbers go on after the last one that any member has heard of.
//! 3. *Restoring.* Once all of them are held as often as they should be, their sets are released
//!    (invariants 2, 5) and the base is fenced (invariant 4), the base gets the newest version of
//!    each block, and only that: no reader sees a block go back. Then all have their fate, and the
//!    volume takes updates again.
//!
//! A further failure on the way begins the gathering anew for what was not recovered yet; what was
//! stays with this shard.

use super::forward::Forward;
use super::mirror_store::Mirrored;
use super::peers::Mirror;
use super::read_back::TAG_READ;
use super::restore::Restore;
use super::shard::{PrimaryShard, RecordVerdict, Volume};
use super::slab::{DESCRIBED, HERE, NIL, NOBODY, RECOVERED, SAFE, UNREAD, Update};
use crate::proto::command::{Command, HostTag, RecordRole, Report, Token};
use crate::proto::limits::{FACTS_PER_PART, RETAINED_UPDATES_MAX};
use crate::proto::message::{Held, Kept, Message};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{
    BufRef, ForwardId, GroupId, MapVersion, Nanos, NvmeStatus, Seq, SetId, ShardId,
};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateInfo};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Token tag of the fencing of a volume; the slot is the volume's index.
pub(super) const TAG_FENCE: u8 = 0xfb;
/// Token tag of a part of a recovered update on its way to the base.
pub(super) const TAG_RESTORE: u8 = 0xfa;

/// How far the take-over of a volume is.
#[derive(Debug)]
pub(super) enum Standing {
    /// There is none: another shard is responsible, or this one is up to date.
    Ready,
    /// Not everything that the members have is here.
    Gathering,
    /// Everything is here and numbered; the base is not up to date.
    Restoring(Restore),
    /// A living shard hands it over by the map of this version, and its word has not come (F3).
    Arriving {
        /// The former owner.
        from: ShardId,
        /// The version.
        map: MapVersion,
    },
}

/// What members hold of volumes that this shard takes over.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// About now: when something was last heard.
    now: Nanos,
    /// By mirror peer, group and part of its survey: copies that it sends.
    sent: BTreeMap<(u8, GroupId, u16), u64>,
    /// By mirror peer and group: the last set that it knew to be confirmed when it said so; it promised
    /// copies of later sets only.
    dropped: BTreeMap<(u8, GroupId), SetId>,
    /// By mirror peer, group and set: copies that came, also such that an epoch before had promised.
    came: BTreeMap<(u8, GroupId, SetId), u64>,
    /// By mirror peer: copies that came of what this shard has in its books already.
    again: BTreeSet<(u8, u32, Seq)>,
    /// By volume: the numbers that members keep in books of their own.
    kept: BTreeMap<u32, Vec<Kept>>,
    /// The last set that any member knows to be confirmed.
    confirmed: BTreeMap<GroupId, SetId>,
    records: BTreeMap<(u32, Seq), Gathered>,
}

#[derive(Clone, Copy, Debug)]
struct Gathered {
    info: UpdateInfo,
    buf: BufRef,
    /// Bit i: `mirrors[i]` holds a copy.
    holders: u64,
    /// Its base write failed, as the shard that failed had said: there may be no payload.
    void: bool,
    /// It is a description: the payload is to be read back from the base (G12).
    described: bool,
}

impl PrimaryShard {
    /// Whether a [`Command::Fence`] with this token is for a take-over, and not for a volume that a living
    /// shard hands over, which may still be writing.
    #[must_use]
    pub fn takes_over(token: Token) -> bool {
        (token.0 >> 32) as u8 == TAG_FENCE
    }

    /// Begins to gather, or begins anew: every member tells in each epoch.
    pub(super) fn begin_recovery(&mut self, now: Nanos) {
        if !self.volumes.iter().any(Volume::is_gathering) {
            return;
        }
        let mut recovery = self.recovery.take().unwrap_or_default();
        recovery.now = now;
        recovery.sent.clear();
        recovery.dropped.clear();
        recovery.came.clear();
        recovery.again.clear();
        recovery.kept.clear();
        for gathered in recovery.records.values_mut() {
            gathered.holders = 0;
        }
        let (store, volumes, me) = (&mut self.store, &self.volumes, self.me);
        let own = store.take_out(|copy: &Mirrored| {
            let volume = volumes.get(copy.volume as usize);
            let mine = copy.orphan && copy.from == me && copy.resent_to.is_none();
            mine && volume.is_some_and(Volume::is_gathering)
        });
        for copy in own {
            let Mirrored { info, buf, void, described, .. } = copy;
            let gathered = Gathered { info, buf, holders: 0, void, described };
            recovery.records.insert((copy.volume, copy.info.seq), gathered);
        }
        self.recovery = Some(recovery);
    }

    /// A member's survey has come.
    pub(super) fn survey_arrived(
        &mut self,
        now: Nanos,
        from: ShardId,
        group: GroupId,
        (confirmed, open): (SetId, SetId),
        (part, parts): (u16, u16),
        volumes: &[Held],
    ) {
        let Some(peer) = self.mirrors.iter().position(|m| m.shard == from && m.member) else {
            self.counters.unexpected += 1;
            return;
        };
        self.marks_arrived(from, volumes);
        let mirror = &mut self.mirrors[peer];
        mirror.surveys.entry(group).or_insert_with(|| alloc::vec![false; usize::from(parts)]);
        if let Some(came) =
            mirror.surveys.get_mut(&group).and_then(|s| s.get_mut(usize::from(part)))
        {
            *came = true;
        }
        mirror.surveyed = mirror.surveys.len() == self.groups.len()
            && mirror.surveys.values().flatten().all(|came| *came);
        let kept: Vec<(u32, Kept)> = volumes
            .iter()
            .filter_map(|held| Some((self.volume_index(held.volume)?, held.kept?)))
            .collect();
        for (volume, kept) in &kept {
            self.kept_elsewhere(*volume, *kept);
        }
        // Whoever forms sets later may be one that took part only after these were confirmed or opened.
        self.confirm(group, confirmed);
        if let Some(index) = self.group_index(group) {
            let group = &mut self.groups[index];
            group.opened_elsewhere = group.opened_elsewhere.max(open);
        }
        // Of what was recovered in an epoch before, nothing is counted.
        let gathering = |held: &&Held| {
            let index = self.volume_index(held.volume);
            index.is_some_and(|index| self.volumes[index as usize].is_gathering())
        };
        let copies: u64 = volumes.iter().filter(gathering).map(|held| u64::from(held.copies)).sum();
        let Some(recovery) = &mut self.recovery else { return };
        for (volume, kept) in kept {
            recovery.kept.entry(volume).or_default().push(kept);
        }
        let last = recovery.confirmed.entry(group).or_default();
        *last = (*last).max(confirmed);
        recovery.sent.insert((peer as u8, group, part), copies);
        recovery.dropped.insert((peer as u8, group), confirmed);
        recovery.now = now;
        self.advance_recovery();
    }

    /// A number of the volume at this index, if there is one, is in a confirmed set.
    pub(super) fn mark_confirmed(&mut self, volume: u32, seq: Seq) {
        if let Some(volume) = self.volumes.get_mut(volume as usize) {
            volume.confirmed = volume.confirmed.max(seq);
        }
    }

    /// There is a number of the volume at this index, if there is one, which this shard did not give out.
    #[inline]
    pub(super) fn mark_heard(&mut self, volume: u32, seq: Seq) {
        if let Some(volume) = self.volumes.get_mut(volume as usize) {
            volume.heard = volume.heard.max(seq);
        }
    }

    /// What a member knows of the numbers of volumes.
    pub(super) fn marks_arrived(&mut self, from: ShardId, volumes: &[Held]) {
        for held in volumes {
            if let Some(index) = self.volume_index(held.volume) {
                let volume = &mut self.volumes[index as usize];
                volume.confirmed = volume.confirmed.max(held.confirmed);
                volume.heard = volume.heard.max(held.heard);
                if volume.responsible == from {
                    volume.told = self.epoch;
                }
            }
        }
    }

    /// A copy that a member holds of a volume that this shard takes over: the update, its description, or of a
    /// void number the header alone, as `role` says.
    pub(super) fn recovered(
        &mut self,
        from: ShardId,
        info: &UpdateInfo,
        buf: BufRef,
        role: RecordRole,
    ) -> RecordVerdict {
        let peer = self.mirrors.iter().position(|m| m.shard == from && m.member);
        let volume = self.volume_index(info.volume);
        let in_books = volume.is_some_and(|volume| {
            let kept = self.kept(volume as usize);
            kept.iter().any(|kept| kept.has(info.seq))
        });
        let (Some(peer), Some(volume), Some(recovery)) = (peer, volume, &mut self.recovery) else {
            return RecordVerdict::NotNeeded;
        };
        if !self.volumes[volume as usize].is_gathering() {
            return RecordVerdict::NotNeeded;
        }
        let came = recovery.came.entry((peer as u8, info.group, info.set)).or_default();
        if in_books {
            // It was recovered in an epoch before, and its holder does not know. It may come twice: what
            // was under way when the epoch began is sent again.
            *came += u64::from(recovery.again.insert((peer as u8, volume, info.seq)));
            self.advance_recovery();
            return RecordVerdict::NotNeeded;
        }
        let described = role == RecordRole::ResendDescription;
        let fresh = Gathered { info: *info, buf, holders: 0, void: false, described };
        let mut known = recovery.records.contains_key(&(volume, info.seq));
        let gathered = recovery.records.entry((volume, info.seq)).or_insert(fresh);
        if known && gathered.described && role == RecordRole::Resend {
            // Who took it for the shard that failed has all of it.
            (gathered.described, known) = (false, false);
            let description = core::mem::replace(&mut gathered.buf, buf);
            self.commands.push_back(Command::Free { buf: description });
        }
        gathered.void |= role == RecordRole::ResendVoid;
        if gathered.holders & 1 << peer == 0 {
            gathered.holders |= 1 << peer;
            *came += 1;
        }
        self.advance_recovery();
        if known { RecordVerdict::NotNeeded } else { RecordVerdict::Kept }
    }

    /// Sends a copy to the shard that takes its volume over.
    pub(super) fn resend(&mut self, to: u8, token: Token) {
        let Some(slot) = self.store.resolve(token) else { return };
        let copy = self.store.get_mut(slot);
        if copy.owed_to != Some(to) {
            // An epoch since has it go elsewhere, or it went twice in a row.
            return;
        }
        if copy.resent_to.is_some() {
            // It was sent in an epoch before: once that is over.
            copy.waits = true;
            return;
        }
        copy.owed_to = None;
        copy.resent_to = Some(to);
        let buf = copy.buf;
        let role = match (copy.void, copy.described) {
            (true, _) => RecordRole::ResendVoid,
            (false, true) => RecordRole::ResendDescription,
            (false, false) => RecordRole::Resend,
        };
        let mirror = &mut self.mirrors[usize::from(to)];
        mirror.in_flight += 1;
        let to = mirror.shard;
        self.commands.push_back(Command::SendRecord { to, role, buf, token });
        self.counters.resent += 1;
    }

    /// The shard that takes a volume over has stored a copy.
    pub(super) fn resend_delivered(&mut self, token: Token) {
        let Some((to, next, buf)) = self.store.arrived(token) else {
            self.counters.unexpected += 1;
            return;
        };
        if let Some(buf) = buf {
            self.commands.push_back(Command::Free { buf });
        }
        self.mirrors[usize::from(to)].in_flight -= 1;
        if let Some(next) = next {
            self.mirrors[usize::from(next)].backlog.push_back(token);
            self.send_again(usize::from(next));
        }
        self.send_again(usize::from(to));
    }

    /// The peer at this index lost its memory, or left: no copy travels there any more.
    pub(super) fn stop_resending(&mut self, index: u8) {
        let Self { store, commands, mirrors, .. } = self;
        store.stop_resending(
            index,
            |buf| commands.push_back(Command::Free { buf }),
            |next, token| mirrors[usize::from(next)].backlog.push_back(token),
        );
    }

    /// While copies are gathered, by member of which not all has come: whether it has spoken, and how
    /// many copies it promised and sent.
    pub fn awaited(&self) -> impl Iterator<Item = (ShardId, bool, u64, u64)> {
        let peers = (0_u8..).zip(&self.mirrors).filter(|(_, mirror)| mirror.member);
        self.recovery.iter().flat_map(move |recovery| {
            peers.clone().filter_map(|(peer, mirror)| {
                let of_peer = recovery.sent.iter().filter(|((p, _, _), _)| *p == peer);
                let sent: u64 = of_peer.map(|(_, sent)| *sent).sum();
                let promised = |((p, group, set), _): &(&(u8, GroupId, SetId), &u64)| {
                    *p == peer && recovery.dropped.get(&(peer, *group)).is_some_and(|s| set > s)
                };
                let came: u64 =
                    recovery.came.iter().filter(promised).map(|(_, count)| *count).sum();
                let heard = mirror.surveyed && came >= sent;
                (!heard).then_some((mirror.shard, mirror.surveyed, sent, came))
            })
        })
    }

    /// Recovers the volumes once all that members have of them is here.
    pub(super) fn advance_recovery(&mut self) {
        if self.recovery.is_none() {
            return;
        }
        let hasty = self.sabotage.is(Sabotage::RecoverUnheard);
        if !hasty && self.awaited().next().is_some() {
            return;
        }
        let Some(recovery) = self.recovery.take() else { return };
        let now = recovery.now;
        for (group, set) in &recovery.confirmed {
            self.confirm(*group, *set);
        }
        let members = (0..).zip(&self.mirrors).filter(|(_, mirror)| mirror.member);
        let members: u64 = members.map(|(bit, _): (u32, _)| 1_u64 << bit).sum();
        let mut records = recovery.records.into_iter().peekable();
        let (mut entered, mut histories) = (Vec::new(), Vec::new());
        for volume in 0..self.volumes.len() as u32 {
            let mut list = Vec::new();
            while let Some((_, mut gathered)) = records.next_if(|((v, _), _)| *v <= volume) {
                gathered.holders &= members;
                list.push(gathered);
            }
            if !self.volumes[volume as usize].is_gathering() {
                list.iter().for_each(|gathered| self.recovered_confirmed(gathered));
                continue;
            }
            self.volumes[volume as usize].history = false;
            if self.has_lost(volume) {
                list.drain(..).for_each(|gathered| self.not_recovered(&gathered));
            }
            let mut kept = self.kept(volume as usize);
            kept.extend(recovery.kept.get(&volume).into_iter().flatten());
            let live = self.without_confirmed(volume, list);
            if matches!(self.volumes[volume as usize].standing, Standing::Gathering) {
                self.recover_volume(now, volume, &live, &kept, &mut entered);
            } else {
                self.recover_history(now, volume, &live, &kept, &mut entered);
                histories.extend(Some(volume).filter(|v| !self.is_responsible(*v)));
            }
        }
        self.greet_coordinator();
        for slot in entered {
            // It was on the base when the volume was handed over.
            let status = self.void_status(slot).unwrap_or(NvmeStatus::SUCCESS);
            self.fate(slot, status);
        }
        for group in 0..self.groups.len() {
            self.report_closed(group);
        }
        let mut known: Vec<Held> = self.own_marks(|_| true).collect();
        known.extend(histories.into_iter().map(|volume| self.marks_of(volume)));
        self.tell_marks(&known);
        for index in 0..self.mirrors.len() {
            self.send_again(index);
        }
    }

    /// Tells the other members what this shard knows of the numbers of volumes in its books.
    pub(super) fn tell_marks(&mut self, known: &[Held]) {
        for Mirror { shard: to, .. } in self.mirrors.iter().filter(|mirror| mirror.up) {
            for volumes in known.chunks(FACTS_PER_PART) {
                let message = Message::Marks { volumes: volumes.to_vec() };
                self.commands.push_back(Command::Send { to: *to, message });
            }
        }
    }

    /// Which numbers of its own volumes this shard knows to be confirmed, as far as they are recovered.
    pub(super) fn own_marks(&self, wanted: impl Fn(&Volume) -> bool) -> impl Iterator<Item = Held> {
        let known = move |volume: &&Volume| {
            let arrives = matches!(volume.standing, Standing::Arriving { .. });
            volume.owner == HERE && !volume.is_gathering() && !arrives && wanted(volume)
        };
        let all = (0..).zip(&self.volumes).filter(move |(_, volume)| known(volume));
        all.map(|(index, _)| self.marks_of(index))
    }

    fn marks_of(&self, index: u32) -> Held {
        let Volume { config, confirmed, .. } = &self.volumes[index as usize];
        let heard = self.volumes[index as usize].last_number();
        Held { volume: config.id, copies: 0, confirmed: *confirmed, heard, kept: None }
    }

    /// Enters what is left of a volume into the books, in the order of its numbers.
    fn recover_volume(
        &mut self,
        now: Nanos,
        index: u32,
        live: &[Gathered],
        kept: &[Kept],
        entered: &mut Vec<u32>,
    ) {
        let last_kept = kept.iter().map(|kept| kept.last).max().unwrap_or(Seq(0));
        let mut slots = Vec::new();
        let (mut voids, first_entered) = (0, entered.len());
        // Only what comes after this can be missing.
        let mut before = self.volumes[index as usize].confirmed;
        for gathered in live {
            voids += self.lost_numbers(now, index, before, &gathered.info, kept);
            before = gathered.info.seq;
            if before < last_kept {
                // A living member was handed the volume after that: it is on the base, and what came after
                // it may be, too.
                entered.push(self.recover_update(index, gathered, true));
            } else {
                slots.push(self.recover_update(index, gathered, false));
            }
        }
        before = before.max(last_kept);
        let forget = self.sabotage.is(Sabotage::ForgetHeard);
        let volume = &mut self.volumes[index as usize];
        volume.next_seq = if forget { before } else { before.max(volume.last_number()) }.next();
        // Numbers in between went with the shard that failed. As all voids whose updates nobody has they
        // are in the set of the next number that has one, which any member finds again.
        let lost = volume.next_seq.0 - before.next().0;
        let counted = lost > 0 && lost <= RETAINED_UPDATES_MAX as u64;
        volume.lost_from = if counted { before.next() } else { Seq(0) };
        voids += if counted { lost as u32 } else { 0 };
        let (id, next, updates) = (volume.config.id, volume.next_seq, slots.len() as u32);
        let report = Report::TakenOver { volume: id, updates, voids, next };
        self.commands.push_back(Command::Report(report));
        let is_unread = |slot: &u32| self.slab.get(*slot).has(UNREAD);
        let unread = slots.iter().copied().filter(is_unread).collect();
        let entered = entered[first_entered..].iter().copied().filter(is_unread);
        let entered = entered.map(|slot| self.slab.token(slot, TAG_READ)).collect();
        let parts = self.newest_parts(&slots);
        let sets = live.iter().map(|gathered| gathered.info.set);
        let until = sets.chain(kept.iter().map(|kept| kept.set)).max().unwrap_or_default();
        let restore = Restore::new(slots, parts, (unread, entered), until);
        self.volumes[index as usize].standing = Standing::Restoring(restore);
        let token = Token(u64::from(TAG_FENCE) << 32 | u64::from(index));
        if self.sabotage.is(Sabotage::TakeOverUnfenced) {
            return self.fenced(index, NvmeStatus::SUCCESS);
        }
        self.commands.push_back(Command::Fence { volume: id, token });
    }

    /// Enters what a mover that failed kept of a volume that it had handed over, directly or not, to this
    /// shard. Nothing of that can be missing but voids, as it was on the base then. The slots entered
    /// go to `entered`; they get their fate once all of the recovery is in the books.
    fn recover_history(
        &mut self,
        now: Nanos,
        index: u32,
        live: &[Gathered],
        kept: &[Kept],
        entered: &mut Vec<u32>,
    ) {
        let mut before = self.volumes[index as usize].confirmed;
        for gathered in live {
            self.lost_numbers(now, index, before, &gathered.info, kept);
            before = gathered.info.seq;
            let slot = self.recover_update(index, gathered, true);
            if self.slab.get(slot).has(UNREAD) {
                // Who failed had no part in the volume any more: nothing of it is to be fenced.
                self.read_back(slot);
            }
            entered.push(slot);
        }
    }

    /// Lets go of gathered copies whose sets are confirmed.
    fn without_confirmed(&mut self, index: u32, records: Vec<Gathered>) -> Vec<Gathered> {
        let volume = &self.volumes[index as usize];
        let (set, known) = (self.groups[volume.group].confirmed, volume.confirmed);
        let (confirmed, live): (Vec<Gathered>, Vec<Gathered>) = records
            .into_iter()
            .partition(|gathered| gathered.info.set <= set || gathered.info.seq <= known);
        for gathered in confirmed {
            self.mark_confirmed(index, gathered.info.seq);
            self.recovered_confirmed(&gathered);
        }
        live
    }

    /// Makes sure that the set of the update `next` is there, and counts the numbers between `before` and
    /// that one into it as void, but for those that somebody has kept: nobody has them. How many.
    fn lost_numbers(
        &mut self,
        now: Nanos,
        index: u32,
        before: Seq,
        next: &UpdateInfo,
        kept: &[Kept],
    ) -> u32 {
        let volume = index as usize;
        let group = self.volumes[volume].group;
        self.open_for(now, group, next.set, next.map_version);
        if next.seq.0.saturating_sub(before.0 + 1) > RETAINED_UPDATES_MAX as u64 {
            // More than a shard ever has under way: somebody's word is wrong, and the set says so.
            return 0;
        }
        let mut lost = 0;
        if let Some(set) = self.groups[group].sets.get_mut(next.set) {
            for seq in (before.0 + 1..next.seq.0).map(Seq) {
                if !kept.iter().any(|kept| kept.has(seq)) {
                    set.gap(volume, seq);
                    lost += 1;
                }
            }
        }
        lost
    }

    /// A copy whose set is confirmed: it has its fate.
    fn recovered_confirmed(&mut self, gathered: &Gathered) {
        if let Some(forward) = self.own_forward(gathered)
            && !forward.answered
        {
            self.counters.acknowledged += 1;
            let (tag, status) = (forward.tag, NvmeStatus::SUCCESS);
            self.commands.push_back(Command::CompleteHost { tag, status });
        }
        self.commands.push_back(Command::Free { buf: gathered.buf });
    }

    /// A copy in a group of which updates are lost: its source tries again.
    fn not_recovered(&mut self, gathered: &Gathered) {
        if let Some(forward) = self.own_forward(gathered)
            && !forward.answered
        {
            let (tag, status) = (forward.tag, NvmeStatus::ANA_TRANSITION);
            self.commands.push_back(Command::CompleteHost { tag, status });
        }
        self.commands.push_back(Command::Free { buf: gathered.buf });
    }

    /// Ends the forwarding of an update that this shard took itself, if it did and the source may
    /// wait. It may not have heard the number: then its own record is not needed.
    fn own_forward(&mut self, gathered: &Gathered) -> Option<Forward> {
        let info = &gathered.info;
        if info.origin != self.me.mover || info.forward == ForwardId(0) || info.epoch < self.since {
            return None;
        }
        let slot = self.forwards.find(info.forward)?;
        let forward = *self.forwards.at(slot);
        if forward.buf != gathered.buf {
            if !forward.lent {
                self.commands.push_back(Command::Free { buf: forward.buf });
            }
            let before = self.arrived.len();
            self.arrived
                .retain(|arrived| arrived.from != HERE || arrived.info.forward != info.forward);
            if self.arrived.len() == before
                && let Some(peer) = self.mirrors.get_mut(usize::from(forward.to))
            {
                peer.forwarded_bytes -= u64::from(forward.record_bytes);
            }
        }
        self.forwards.remove(slot);
        Some(forward)
    }

    /// Makes sure that a set is there, as the set that it is or was.
    fn open_for(&mut self, now: Nanos, group: usize, set: SetId, map: MapVersion) {
        let open = self.groups[group].sets.open().map_or(SetId(0), |s| s.id);
        if set > open {
            self.switch_to(now, group, set, map);
        } else {
            self.groups[group].sets.ensure(set, now);
        }
    }

    /// Enters a copy into the books; of an update that is on the base, and was `safe`, what is left to
    /// do is to have as many copies of it as there should be.
    fn recover_update(&mut self, volume: u32, gathered: &Gathered, safe: bool) -> u32 {
        let info = gathered.info;
        let record_bytes = UPDATE_HEADER_BYTES as u32 + info.payload_len;
        let record_bytes = record_bytes.next_multiple_of(self.record_align);
        let (origin, tag) = if let Some(forward) = self.own_forward(gathered) {
            let origin = if forward.answered { NOBODY } else { HERE };
            (origin, forward.tag)
        } else {
            let taker = self.mirrors.iter().position(|mirror| {
                mirror.member
                    && mirror.since <= info.epoch
                    && mirror.shard.mover == info.origin
                    && info.forward != ForwardId(0)
            });
            (taker.map_or(NOBODY, |taker| taker as u8), HostTag(info.forward.0))
        };
        let slot = self.slab.insert(Update {
            seq: info.seq,
            set: info.set,
            extent: info.extent,
            buf: gathered.buf,
            tag,
            origin,
            mirrors: gathered.holders,
            mirrors_pending: 0,
            mirrors_travelling: 0,
            payload_crc: info.payload_crc,
            payload_len: info.payload_len,
            record_bytes,
            volume,
            next: NIL,
            generation: 0,
            kind: info.kind,
            fua: info.fua,
            flags: RECOVERED
                | if safe { SAFE } else { 0 }
                | if info.described { DESCRIBED } else { 0 }
                | if gathered.described && !gathered.void { UNREAD } else { 0 },
        });
        for index in 0..self.mirrors.len() as u8 {
            if gathered.holders & 1 << index != 0 && index != origin {
                self.mirrors[usize::from(index)].used_bytes += u64::from(record_bytes);
            }
        }
        let group = self.volumes[volume as usize].group;
        if let Some(set) = self.groups[group].sets.recover(volume as usize, &info, record_bytes) {
            self.slab.get_mut(slot).next = core::mem::replace(&mut set.head, slot);
        }
        if origin < 64 {
            self.number_known(slot, origin);
        }
        if gathered.void {
            // The shard that failed had said so, if not to all: its update is in no set.
            self.set_void(slot, &info, NvmeStatus::WRITE_FAULT);
        }
        self.mirror_again(slot);
        if safe || self.slab.get(slot).mirrors_pending == 0 {
            self.slab.get_mut(slot).flags |= SAFE;
            self.queue_transfer(slot);
        }
        slot
    }

    /// The peer at `taker` forwarded a recovered update. It waits for the answer; if it does not
    /// know the number yet, it is told, and what it sends again is not taken for another update.
    fn number_known(&mut self, slot: u32, taker: u8) {
        let update = self.slab.get_mut(slot);
        let id = ForwardId(update.tag.0);
        if update.mirrors & 1 << taker != 0 {
            return;
        }
        if update.has(UNREAD) {
            // What the base has counts. If the taker had all of it under its number, who takes the volume over
            // next would bring it to the base after all.
            self.recovered_forwards.push((taker, id));
            return self.drop_arrived(taker, id);
        }
        let update = self.slab.get_mut(slot);
        update.mirrors |= 1 << taker;
        update.mirrors_pending |= 1 << taker;
        update.mirrors_travelling |= 1 << taker;
        let buf = update.buf;
        self.recovered_forwards.push((taker, id));
        self.drop_arrived(taker, id);
        let token = self.slab.token(slot, taker);
        let mirror = &mut self.mirrors[usize::from(taker)];
        if !mirror.up {
            self.slab.get_mut(slot).mirrors_travelling &= !(1 << taker);
            return;
        }
        mirror.in_flight += 1;
        let (to, role) = (mirror.shard, RecordRole::Numbered);
        self.commands.push_back(Command::SendRecord { to, role, buf, token });
    }

    /// What the peer at `taker` calls `id` has its number, and has come again without.
    fn drop_arrived(&mut self, taker: u8, id: ForwardId) {
        let commands = &mut self.commands;
        self.arrived.retain(|arrived| {
            let same = arrived.from == taker && arrived.info.forward == id;
            if same {
                commands.push_back(Command::Free { buf: arrived.buf });
            }
            !same
        });
    }
}
