//! The primary shard: from a host update to its acknowledgement.

use super::config::{MirrorPolicy, PrimaryConfig, VolumeConfig};
use super::forward::{Forwards, TAG_FORWARD};
use super::handoff::{Moves, TAG_OPEN};
use super::mirror_store::{MirrorStore, TAG_RESEND, UNKNOWN};
use super::number::owner_index;
use super::peers::{Mirror, Target, target_index};
use super::sets::OwnSets;
use super::slab::{
    AT_BASE, CONFIRMED, DESCRIBED, DONE, FIRST_IN_RANGE, HERE, NOBODY, RECOVERED, RELEASED, SAFE,
    Slab, TRAVELS, VOID,
};
use super::take::Arrived;
use super::takeover::{Recovery, Standing, TAG_FENCE, TAG_RESTORE};
use super::view::PrimaryCounters;
use super::void::Voided;
use crate::proto::command::{Command, PayloadAt, RecordRole, Report, Token};
use crate::proto::message::{BrokenReason, Message};
use crate::proto::ranges::RangeOrder;
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{
    BufRef, Epoch, ForwardId, GroupId, MapVersion, Nanos, NvmeStatus, Seq, SetId, ShardId,
    UpdateKind, VolumeId,
};
use crate::wire::update::UpdateInfo;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// Token tag of a base write; below it are mirror indices, from [`TAG_TARGET`] on target indices.
const TAG_BASE: u8 = 0xff;
/// First token tag of a transfer.
pub(super) const TAG_TARGET: u8 = 0x80;

/// What became of a record that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordVerdict {
    /// It is kept; the caller frees its buffer on [`Command::Free`].
    Kept,
    /// It is not needed (its set is confirmed); the caller frees it and acknowledges it.
    NotNeeded,
    /// It is of another epoch; the caller frees it and acknowledges it. Counted.
    StaleEpoch,
    /// There is no room; the caller frees it and does not acknowledge it.
    Full,
    /// It is the numbered header of a record that is here: the caller copies it over that of
    /// `buf`, frees what arrived and acknowledges it.
    Numbered {
        /// The record that has its number now.
        buf: BufRef,
    },
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) config: VolumeConfig,
    /// [`HERE`], the index of the mirror peer that is responsible, or [`super::slab::ELSEWHERE`].
    pub(super) owner: u8,
    /// The responsible shard itself.
    pub(super) responsible: ShardId,
    /// Who enters what movers leave behind that fail: the one that the epoch's record calls responsible,
    /// so that all members agree while the volume moves. As `owner` and `responsible`.
    pub(super) heir: (u8, ShardId),
    /// Whether updates are numbered: not while it is being taken over.
    pub(super) ready: bool,
    /// How far its take-over or hand-over is.
    pub(super) standing: Standing,
    /// A mover that failed may have kept numbers of it that it gave out before it handed the volume
    /// over: members are asked for copies.
    pub(super) history: bool,
    /// The last number known to be in a confirmed set. Of those that come after, any that was ever held
    /// by as many members as it should have been is held by one.
    pub(super) confirmed: Seq,
    /// The epoch in which the responsible shard has told its numbers.
    pub(super) told: Epoch,
    /// The last number that this shard has heard of, its own aside.
    pub(super) heard: Seq,
    /// Numbers from here on and before `next_seq` went with a mover that failed: they are void, in the set
    /// of the next number. 0 when there are none.
    pub(super) lost_from: Seq,
    pub(super) group: usize,
    pub(super) target: Option<u8>,
    pub(super) next_seq: Seq,
}

impl Volume {
    /// Whether members are to send what they hold of it: it is taken over, or a mover that failed may
    /// have kept numbers of it.
    pub(super) fn is_gathering(&self) -> bool {
        self.history || matches!(self.standing, Standing::Gathering)
    }

    /// The last number that this shard has heard of, or has given out.
    pub(super) fn last_number(&self) -> Seq {
        self.heard.max(Seq(self.next_seq.0.saturating_sub(1)))
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) copies: u32,
    /// Copies beside this shard's, as far as there are members.
    pub(super) wanted_mirrors: u32,
    pub(super) policy: MirrorPolicy,
    /// Copies are descriptions (G12).
    pub(super) described: bool,
    /// What was read back for recovered updates may be of sets up to this one.
    pub(super) merged_until: SetId,
    pub(super) sets: OwnSets,
    pub(super) confirmed: SetId,
    /// The map by which the open set is numbered.
    pub(super) map: MapVersion,
    /// The last set that other members know to have been opened.
    pub(super) opened_elsewhere: SetId,
    /// The coordinator knows that sets before this one that are not here hold nothing of this shard.
    pub(super) empty_before: SetId,
    /// This shard had no set open when it entered the epoch: what it recovers lies in sets of others,
    /// and it numbers nothing before the next boundary.
    pub(super) joins: bool,
    /// More movers failed at once than it has spare copies. It goes on as it was until the coordinator says,
    /// once it has heard all members, that it forms no sets: before, one of an epoch before could still form
    /// the one that this shard has left.
    pub(super) lost: bool,
    pub(super) broken: Option<BrokenReason>,
}

impl Group {
    /// The last set that is known to have been opened, here or at another member; 0 for none. A member
    /// that came back, and whose link was not up at the last boundary, has none open itself.
    pub(super) fn last_opened(&self) -> SetId {
        self.sets.open().map_or(SetId(0), |open| open.id).max(self.opened_elsewhere)
    }
}

/// The state machine. Owned by one poller.
#[derive(Debug)]
pub struct PrimaryShard {
    pub(super) me: ShardId,
    pub(super) coordinator: ShardId,
    pub(super) epoch: Epoch,
    /// The epoch since which this shard's memory is whole.
    pub(super) since: Epoch,
    pub(super) map_version: MapVersion,
    pub(in crate::proto) sabotage: Sabotage,
    pub(super) in_flight_max: u32,
    /// Records take multiples of so many bytes in an arena.
    pub(super) record_align: u32,
    pub(super) slab: Slab,
    pub(super) volumes: Vec<Volume>,
    /// Volume → its index in `volumes`, in order.
    pub(super) by_id: Vec<(VolumeId, u32)>,
    pub(super) groups: Vec<Group>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) targets: Vec<Target>,
    /// When something that a base refused is restored again.
    pub(super) retry_at: Nanos,
    /// By slot: the retained updates whose numbers are void.
    pub(super) voids: BTreeMap<u32, Voided>,
    /// By slot: descriptions of updates whose payload was read back since. They may still travel.
    pub(super) descriptions: BTreeMap<u32, BufRef>,
    /// Payloads that bases were asked for and have not answered.
    pub(super) reading: u32,
    /// So often in a row one has refused.
    pub(super) read_attempts: u32,
    /// What a base would not read back, until [`Self::retry_at`].
    pub(super) unreadable: Vec<Token>,
    pub(super) store: MirrorStore,
    pub(super) forwards: Forwards,
    /// Forwarded updates without a number, oldest first.
    pub(super) arrived: VecDeque<Arrived>,
    pub(super) order: RangeOrder,
    /// What members hold of volumes that this shard takes over; none when that is known.
    pub(super) recovery: Option<Recovery>,
    /// Forwarded updates that were recovered with a number: who took them, and their names there.
    pub(super) recovered_forwards: Vec<(u8, ForwardId)>,
    /// Copies here may have to be sent to who is responsible now: their bookkeeper failed.
    pub(super) orphans: bool,
    /// Updates lack copies for want of room.
    pub(super) lone: bool,
    /// Volumes that change hands in this epoch because their owner failed, ascending.
    pub(super) moved: Vec<VolumeId>,
    /// Volumes that change hands at boundaries.
    pub(super) moves: Moves,
    /// Slots that became first in their range, drained at once; kept for its memory.
    woken: Vec<u32>,
    pub(super) commands: VecDeque<Command>,
    pub(super) counters: PrimaryCounters,
}

impl PrimaryShard {
    /// A shard at launch; nothing is numbered before the first boundary.
    ///
    /// # Panics
    /// When the configuration contradicts itself: the caller validates it.
    #[must_use]
    pub fn new(config: &PrimaryConfig) -> Self {
        assert!(config.mirrors.len() <= 64, "at most 64 mirror peers");
        assert!(config.groups.len() <= 64, "at most 64 groups");
        let group_index = |id| {
            config.groups.iter().position(|g| g.id == id).expect("a volume's group is configured")
        };
        let mut targets = Vec::new();
        let volumes: Vec<Volume> = config
            .volumes
            .iter()
            .map(|volume| {
                let next_seq = if volume.owner == config.me { volume.next_seq } else { Seq(1) };
                let mirrors = config.mirrors.iter().map(|m| m.shard);
                let owner = owner_index(config.me, mirrors, volume.owner);
                Volume {
                    config: *volume,
                    owner,
                    responsible: volume.owner,
                    heir: (owner, volume.owner),
                    ready: true,
                    standing: Standing::Ready,
                    history: false,
                    confirmed: Seq(next_seq.0.saturating_sub(1)),
                    told: config.epoch,
                    heard: Seq(0),
                    lost_from: Seq(0),
                    group: group_index(volume.group),
                    target: volume.target.map(|shard| {
                        target_index(&mut targets, shard, config.retained_max as usize)
                    }),
                    next_seq,
                }
            })
            .collect();
        let mut by_id: Vec<(VolumeId, u32)> =
            config.volumes.iter().zip(0..).map(|(volume, index)| (volume.id, index)).collect();
        by_id.sort_unstable();
        let ids: Vec<VolumeId> = config.volumes.iter().map(|v| v.id).collect();
        let groups = config
            .groups
            .iter()
            .map(|group| Group {
                id: group.id,
                copies: u32::from(group.copies.max(1)),
                wanted_mirrors: u32::from(group.copies.max(1)) - 1,
                policy: group.policy,
                described: group.described,
                merged_until: SetId(0),
                sets: OwnSets::new(ids.clone()),
                confirmed: SetId(0),
                map: config.map_version,
                opened_elsewhere: SetId(0),
                empty_before: SetId(0),
                joins: false,
                lost: false,
                broken: config.unclean.then_some(BrokenReason::MoverRestarted),
            })
            .collect();
        let mirrors = config
            .mirrors
            .iter()
            .map(|peer| Mirror {
                shard: peer.shard,
                grant_bytes: peer.grant_bytes,
                granted_bytes: 0,
                is_target: peer.is_target,
                budget_bytes: 0,
                used_bytes: 0,
                forward_budget_bytes: 0,
                forwarded_bytes: 0,
                in_flight: 0,
                backlog: VecDeque::new(),
                up: false,
                member: true,
                since: config.epoch,
                surveyed: true,
                surveys: BTreeMap::new(),
            })
            .collect();
        Self {
            me: config.me,
            coordinator: config.coordinator,
            epoch: config.epoch,
            since: Epoch(0),
            map_version: config.map_version,
            sabotage: config.sabotage,
            in_flight_max: config.in_flight_max,
            record_align: config.record_align.max(1),
            slab: Slab::new(config.retained_max),
            volumes,
            by_id,
            groups,
            mirrors,
            targets,
            retry_at: Nanos::NEVER,
            voids: BTreeMap::new(),
            descriptions: BTreeMap::new(),
            reading: 0,
            read_attempts: 0,
            unreadable: Vec::new(),
            store: MirrorStore::new(config.mirrored_max, config.forwards_max),
            forwards: Forwards::new(config.forwards_max),
            arrived: VecDeque::with_capacity(config.forwards_max as usize),
            order: RangeOrder::with_capacity(1024),
            recovery: None,
            recovered_forwards: Vec::new(),
            orphans: false,
            lone: false,
            moved: Vec::new(),
            moves: Moves::default(),
            woken: Vec::with_capacity(64),
            commands: VecDeque::with_capacity(1024),
            counters: PrimaryCounters::default(),
        }
    }

    /// The receiver of a record has stored it.
    #[inline]
    pub fn handle_delivered(&mut self, token: Token) {
        match (token.0 >> 32) as u8 {
            TAG_FORWARD => return self.forward_delivered(token),
            TAG_RESEND => return self.resend_delivered(token),
            _ => {}
        }
        let Some((slot, tag)) = self.slab.resolve(token) else {
            debug_assert!(false, "a record is kept while it travels");
            self.counters.unexpected += 1;
            return;
        };
        if tag >= TAG_TARGET {
            self.transferred(slot, tag - TAG_TARGET);
            return;
        }
        let mirror = &mut self.mirrors[usize::from(tag)];
        mirror.in_flight -= 1;
        let more = !mirror.backlog.is_empty();
        let update = self.slab.get_mut(slot);
        update.mirrors_travelling &= !(1 << tag);
        if update.has(VOID) && self.word_follows(slot, tag) {
            return;
        }
        let update = self.slab.get_mut(slot);
        update.mirrors_pending &= !(1 << tag);
        let held = update.mirrors_pending == 0;
        if held && !update.has(SAFE) {
            self.became_safe(slot);
        } else if held && update.has(RECOVERED | SAFE) {
            self.try_base(slot);
        } else if held && update.has(VOID) && self.is_void_and_waits(slot) {
            self.void_known(slot);
        }
        self.release_confirmed_or_free(slot);
        if more {
            self.send_again(usize::from(tag));
        }
    }

    #[inline]
    fn release_confirmed_or_free(&mut self, slot: u32) {
        if self.slab.get(slot).has(CONFIRMED) {
            self.release_confirmed(slot);
        } else {
            self.free_if_unused(slot);
        }
    }

    /// As many movers as configured hold the update: it may go to the base (when its set is
    /// released) and to the secondary.
    #[inline]
    pub(super) fn became_safe(&mut self, slot: u32) {
        self.slab.get_mut(slot).flags |= SAFE;
        self.try_base(slot);
        if !self.slab.get(slot).has(DESCRIBED) {
            self.queue_transfer(slot);
        }
    }

    /// Issues the base write if nothing stands against it (invariants 1, 2, 3, 5).
    #[inline]
    pub(super) fn try_base(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        if update.has(RECOVERED) {
            return self.try_restore(update.volume as usize);
        }
        let safe = update.has(SAFE) || self.sabotage.is(Sabotage::BaseBeforeMirror);
        if !safe || !update.has(FIRST_IN_RANGE) || update.has(AT_BASE) {
            return;
        }
        let volume = &self.volumes[update.volume as usize];
        let set = update.set;
        if set != SetId(0)
            && !self.groups[volume.group].sets.get_mut(set).is_none_or(|set| set.released)
        {
            return;
        }
        let has_base = volume.config.has_base;
        let command = Command::Write {
            volume: volume.config.id,
            kind: update.kind,
            extent: update.extent,
            fua: update.fua,
            payload: match update.kind {
                UpdateKind::Write => PayloadAt::Buf(update.buf),
                UpdateKind::WriteZeroes | UpdateKind::Deallocate => PayloadAt::None,
            },
            token: self.slab.token(slot, TAG_BASE),
        };
        self.slab.get_mut(slot).flags |= AT_BASE;
        if has_base {
            self.commands.push_back(command);
        } else {
            self.fate(slot, NvmeStatus::SUCCESS);
        }
    }

    /// The base has completed a write.
    #[inline]
    pub fn handle_written(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        if (token.0 >> 32) as u8 == TAG_FENCE {
            return self.fenced(token.0 as u32, status);
        }
        if (token.0 >> 32) as u8 == TAG_OPEN {
            return self.base_opened(token.0 as u32);
        }
        let slot = match self.slab.resolve(token) {
            Some((slot, TAG_BASE)) => slot,
            Some((slot, TAG_RESTORE)) => return self.part_restored(now, slot, status),
            _ => {
                debug_assert!(false, "an update is kept until the base has completed it");
                self.counters.unexpected += 1;
                return;
            }
        };
        if !status.is_ok() {
            self.void(slot, status);
            if self.slab.get(slot).mirrors_pending != 0 {
                return;
            }
        }
        self.fate(slot, status);
    }

    /// Completes the host command and lets go those that waited behind it.
    #[inline]
    pub(super) fn fate(&mut self, slot: u32, status: NvmeStatus) {
        let update = self.slab.get_mut(slot);
        update.flags |= DONE;
        let was_recovered = update.has(RECOVERED);
        update.flags &= !RECOVERED;
        let (tag, set, volume) = (update.tag, update.set, update.volume as usize);
        match update.origin {
            HERE => {
                self.counters.acknowledged += u64::from(status.is_ok());
                self.commands.push_back(Command::CompleteHost { tag, status });
            }
            NOBODY => {}
            peer => {
                let to = self.mirrors[usize::from(peer)].shard;
                let message = Message::Forwarded { forward: ForwardId(tag.0), status };
                self.commands.push_back(Command::Send { to, message });
            }
        }
        let mut woken = core::mem::take(&mut self.woken);
        if !was_recovered {
            self.order.finish(slot, |ready| woken.push(ready));
        }
        for ready in &woken {
            self.slab.get_mut(*ready).flags |= FIRST_IN_RANGE;
        }
        for ready in woken.drain(..) {
            self.try_base(ready);
        }
        // A nested call may have left a smaller buffer; either serves.
        self.woken = woken;
        let group = self.volumes[volume].group;
        if let Some(set) = self.groups[group].sets.get_mut(set) {
            set.unfinished -= 1;
            if set.switched && set.unfinished == 0 {
                self.report_closed(group);
            }
        }
        if self.slab.get(slot).has(DESCRIBED) {
            self.queue_transfer(slot);
        }
        if self.is_leaving() && !was_recovered {
            self.left_behind(volume as u32);
        }
        self.free_if_unused(slot);
    }

    /// Frees the slot and its record when its set is confirmed, the host was told, and no send
    /// refers to the record any more (invariant 8).
    #[inline]
    pub(super) fn free_if_unused(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        if !update.has(RELEASED | DONE) || update.mirrors_travelling != 0 || update.has(TRAVELS) {
            return;
        }
        let (buf, bytes, mut rest) = (update.buf, update.record_bytes, update.mirrors);
        if let Some(bit) = 1_u64.checked_shl(u32::from(update.origin)) {
            // What was forwarded lies in memory of the taker's own.
            rest &= !bit;
        }
        while rest != 0 {
            self.mirrors[rest.trailing_zeros() as usize].used_bytes -= u64::from(bytes);
            rest &= rest - 1;
        }
        if self.slab.get(slot).has(VOID) {
            self.voids.remove(&slot);
        }
        if self.slab.get(slot).has(DESCRIBED)
            && let Some(buf) = self.descriptions.remove(&slot)
        {
            self.commands.push_back(Command::Free { buf });
        }
        self.slab.remove(slot);
        self.commands.push_back(Command::Free { buf });
    }

    /// A record from another primary shard, stored and verified by the caller: a mirror copy, an
    /// update that it took for this shard, or the number of one that this shard took for it.
    #[inline]
    pub fn handle_record(
        &mut self,
        from: ShardId,
        role: RecordRole,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> RecordVerdict {
        // Its packets are of this epoch, or the link had refused them; what it says may be older.
        if info.epoch > self.epoch && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.counters.stale_epoch += 1;
            return RecordVerdict::StaleEpoch;
        }
        let volume = self.volume_index(info.volume).unwrap_or(UNKNOWN);
        self.mark_heard(volume, info.seq);
        match role {
            RecordRole::Mirror | RecordRole::Description => {}
            RecordRole::Forward => return self.take(from, info, buf),
            RecordRole::Numbered => return self.forward_numbered(from, info),
            RecordRole::Resend | RecordRole::ResendVoid | RecordRole::ResendDescription => {
                return self.recovered(from, info, buf, role);
            }
            RecordRole::Voided => return self.void_arrived(from, volume, info, buf),
            RecordRole::Transfer | RecordRole::SecondaryMirror | RecordRole::Answer => {
                return RecordVerdict::NotNeeded;
            }
        }
        if self.store.is_confirmed(info.group, info.set) {
            // The copy is not kept, and its number must not look like one that nobody has.
            self.mark_confirmed(volume, info.seq);
            return RecordVerdict::NotNeeded;
        }
        if self.store.is_full() {
            return RecordVerdict::Full;
        }
        let described = role == RecordRole::Description;
        self.store.insert(from, volume, *info, buf, None, described);
        self.counters.mirrored += 1;
        RecordVerdict::Kept
    }

    /// A control message from `from`, sent in `epoch`.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: Message) {
        // Boundaries and surveys are of one epoch; what concerns single updates holds on, since
        // links between members outlast it.
        let of_epoch = !matches!(
            message,
            Message::Budget { .. }
                | Message::Forwarded { .. }
                | Message::NotResponsible { .. }
                | Message::HandOff { .. }
        );
        let since = || self.mirrors.iter().find(|m| m.shard == from).map(|mirror| mirror.since);
        let stale = if of_epoch || epoch >= self.epoch {
            epoch != self.epoch
        } else {
            // Of a life of the sender that is over, or of nobody.
            since().is_none_or(|since| epoch < since)
        };
        if stale && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.counters.stale_epoch += 1;
            return;
        }
        match message {
            Message::Budget { bytes } => match self.mirrors.iter_mut().find(|m| m.shard == from) {
                Some(mirror) => {
                    mirror.granted_bytes = bytes;
                    self.share_budgets();
                    if self.lone {
                        self.mirror_lone();
                    }
                }
                None => self.counters.unexpected += 1,
            },
            Message::Prepare { group, set, map_version } => {
                self.prepare(now, group, set, map_version);
            }
            Message::Release { group, set } => {
                if let Some(group) = self.group_index(group) {
                    self.release(now, group, set);
                }
            }
            Message::Confirmed { group, set } => self.confirm(group, set),
            Message::Resume { group, stored, .. } => self.resume_transfer(from, group, stored),
            Message::Broken { group, reason } => self.track(group, reason),
            Message::Survey { group, confirmed, open, part, parts, ref volumes } => {
                self.survey_arrived(now, from, group, (confirmed, open), (part, parts), volumes);
            }
            Message::Marks { ref volumes } => {
                self.marks_arrived(from, volumes);
                self.copies_in_books(from, volumes);
            }
            Message::HandOff { .. } => self.hand_off_arrived(from, message),
            Message::Forwarded { .. } | Message::NotResponsible { .. } => {
                self.handle_forwarding(from, &message);
            }
            Message::Stopping { drained } => {
                let report = Report::PeerStopping { peer: from, drained };
                self.commands.push_back(Command::Report(report));
            }
            Message::Prepared { .. }
            | Message::Closed { .. }
            | Message::Manifest { .. }
            | Message::CloseNow { .. }
            | Message::Stored { .. }
            | Message::Apply { .. }
            | Message::Applied { .. }
            | Message::PauseApply { .. }
            | Message::JournalRoom { .. }
            | Message::Lead
            | Message::Greet { .. }
            | Message::Planned { .. }
            | Message::Settled { .. }
            | Message::Ask { .. }
            | Message::Answered { .. }
            | Message::TimeAsk { .. }
            | Message::TimeAnswer { .. } => self.counters.unexpected += 1,
        }
    }

    pub(super) fn group_index(&mut self, id: GroupId) -> Option<usize> {
        let index = self.groups.iter().position(|g| g.id == id);
        self.counters.unexpected += u64::from(index.is_none());
        index
    }

    /// The next thing to do, in order.
    #[inline]
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }
}
