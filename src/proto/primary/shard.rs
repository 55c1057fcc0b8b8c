//! The primary shard: from a host update to its acknowledgement.

use super::config::{MirrorPolicy, PrimaryConfig, VolumeConfig};
use super::mirror_store::MirrorStore;
use super::peers::{Mirror, Target, target_index};
use super::room::Admitted;
use super::sets::OwnSets;
use super::slab::{
    AT_BASE, DONE, FIRST_IN_RANGE, NIL, RELEASED, SAFE, Slab, TRAVELS, Update, VOID,
};
use super::view::PrimaryCounters;
use crate::proto::command::{Command, HostTag, PayloadAt, RecordRole, Report, Token};
use crate::proto::message::{BrokenReason, FactsPart, Message};
use crate::proto::ranges::{Admission as RangeAdmission, RangeOrder};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{
    BufRef, Epoch, Extent, GroupId, MapVersion, Nanos, NvmeStatus, Seq, SetId, ShardId, UpdateKind,
    VolumeId,
};
use crate::wire::update::UpdateInfo;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Token tag of a base write; below it are mirror indices, from [`TAG_TARGET`] on target indices.
const TAG_BASE: u8 = 0xff;
/// First token tag of a transfer.
pub(super) const TAG_TARGET: u8 = 0x80;

/// A write-nature host command whose record is in the arena.
#[derive(Clone, Copy, Debug)]
pub struct HostUpdate {
    /// Names the host command.
    pub tag: HostTag,
    /// Index of the volume in [`PrimaryConfig::volumes`].
    pub volume: u32,
    /// What it does.
    pub kind: UpdateKind,
    /// Where.
    pub extent: Extent,
    /// Force unit access.
    pub fua: bool,
    /// Payload bytes.
    pub payload_len: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// The record.
    pub buf: BufRef,
    /// What the record takes in an arena, header and padding included.
    pub record_bytes: u32,
    /// The next number of the mover's list; 0 unless the group numbers so (G7).
    pub list_seq: u64,
    /// Time stamp in nanoseconds since the Unix epoch; 0 when none.
    pub time_ns: u64,
    /// Bound on its error in nanoseconds.
    pub time_error_ns: u32,
}

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
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) config: VolumeConfig,
    pub(super) group: usize,
    pub(super) target: Option<u8>,
    pub(super) next_seq: Seq,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) wanted_mirrors: u32,
    pub(super) policy: MirrorPolicy,
    pub(super) sets: OwnSets,
    pub(super) confirmed: SetId,
    pub(super) broken: Option<BrokenReason>,
}

/// The state machine. Owned by one poller.
#[derive(Debug)]
pub struct PrimaryShard {
    me: ShardId,
    pub(super) coordinator: ShardId,
    epoch: Epoch,
    map_version: MapVersion,
    sabotage: Sabotage,
    pub(super) in_flight_max: u32,
    pub(super) slab: Slab,
    pub(super) volumes: Vec<Volume>,
    pub(super) groups: Vec<Group>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) targets: Vec<Target>,
    pub(super) store: MirrorStore,
    order: RangeOrder,
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
            .map(|volume| Volume {
                config: *volume,
                group: group_index(volume.group),
                target: volume
                    .target
                    .map(|shard| target_index(&mut targets, shard, config.retained_max as usize)),
                next_seq: volume.next_seq,
            })
            .collect();
        let ids: Vec<VolumeId> = config.volumes.iter().map(|v| v.id).collect();
        let groups = config
            .groups
            .iter()
            .map(|group| Group {
                id: group.id,
                wanted_mirrors: u32::from(group.copies.max(1)) - 1,
                policy: group.policy,
                sets: OwnSets::new(ids.clone()),
                confirmed: SetId(0),
                broken: config.unclean.then_some(BrokenReason::MoverRestarted),
            })
            .collect();
        let mirrors = config
            .mirrors
            .iter()
            .map(|peer| Mirror {
                shard: peer.shard,
                grant_bytes: peer.grant_bytes,
                budget_bytes: 0,
                used_bytes: 0,
                in_flight: 0,
                backlog: VecDeque::new(),
                up: false,
            })
            .collect();
        Self {
            me: config.me,
            coordinator: config.coordinator,
            epoch: config.epoch,
            map_version: config.map_version,
            sabotage: config.sabotage,
            in_flight_max: config.in_flight_max,
            slab: Slab::new(config.retained_max),
            volumes,
            groups,
            mirrors,
            targets,
            store: MirrorStore::new(config.mirrored_max),
            order: RangeOrder::with_capacity(1024),
            woken: Vec::with_capacity(64),
            commands: VecDeque::with_capacity(1024),
            counters: PrimaryCounters::default(),
        }
    }

    /// Numbers an admitted update and sends its copies (G1, G2). The caller writes the header that
    /// says what is returned before it carries out any command.
    #[inline]
    pub fn host_update(&mut self, admitted: Admitted, update: &HostUpdate) -> UpdateInfo {
        let volume_index = update.volume as usize;
        let volume = &mut self.volumes[volume_index];
        let group = &mut self.groups[volume.group];
        let seq = volume.next_seq;
        volume.next_seq = seq.next();
        let tracking = group.broken.is_some();
        let set = if tracking { SetId(0) } else { group.sets.open().map_or(SetId(0), |s| s.id) };
        let info = UpdateInfo {
            kind: update.kind,
            fua: update.fua,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            volume: volume.config.id,
            group: group.id,
            origin: self.me.mover,
            owner: self.me,
            epoch: self.epoch,
            map_version: self.map_version,
            set,
            seq,
            extent: update.extent,
            block_bytes: volume.config.block_bytes,
            list_seq: update.list_seq,
            time_ns: update.time_ns,
            time_error_ns: update.time_error_ns,
        };
        let slot = self.slab.insert(Update {
            seq,
            set,
            extent: update.extent,
            buf: update.buf,
            tag: update.tag,
            mirrors: admitted.mirrors,
            mirrors_pending: admitted.mirrors,
            mirrors_travelling: admitted.mirrors,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            record_bytes: update.record_bytes,
            volume: update.volume,
            next: NIL,
            generation: 0,
            kind: update.kind,
            fua: update.fua,
            flags: if tracking { RELEASED } else { 0 },
        });
        let mut crowded = self.slab.used() > self.slab.max() / 2;
        if !tracking && let Some(open) = group.sets.add(volume_index, &info, update.record_bytes) {
            self.slab.get_mut(slot).next = core::mem::replace(&mut open.head, slot);
        }
        match self.order.admit(slot, info.volume, update.extent) {
            RangeAdmission::Ready => self.slab.get_mut(slot).flags |= FIRST_IN_RANGE,
            RangeAdmission::Waits if self.sabotage.is(Sabotage::OverlapAtBase) => {
                self.slab.get_mut(slot).flags |= FIRST_IN_RANGE;
            }
            RangeAdmission::Waits => self.counters.overlaps += 1,
        }
        let mut rest = admitted.mirrors;
        while rest != 0 {
            let index = rest.trailing_zeros();
            rest &= rest - 1;
            let mirror = &mut self.mirrors[index as usize];
            mirror.in_flight += 1;
            mirror.used_bytes += u64::from(update.record_bytes);
            crowded |= mirror.used_bytes > mirror.budget_bytes / 2;
            let token = self.slab.token(slot, index as u8);
            let (to, buf) = (mirror.shard, update.buf);
            self.commands.push_back(Command::SendRecord {
                to,
                role: RecordRole::Mirror,
                buf,
                token,
            });
        }
        self.counters.updates += 1;
        self.counters.bytes += u64::from(update.payload_len);
        if crowded && !tracking {
            self.ask_for_early_close(self.volumes[volume_index].group);
        }
        if admitted.mirrors == 0 {
            self.became_safe(slot);
        }
        if self.sabotage.is(Sabotage::BaseBeforeMirror) {
            self.try_base(slot);
        }
        if self.sabotage.is(Sabotage::AckBeforeMirror) {
            let (tag, status) = (update.tag, NvmeStatus::SUCCESS);
            self.commands.push_back(Command::CompleteHost { tag, status });
        }
        info
    }

    /// The receiver of a record has stored it.
    #[inline]
    pub fn handle_delivered(&mut self, token: Token) {
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
        update.mirrors_pending &= !(1 << tag);
        update.mirrors_travelling &= !(1 << tag);
        let safe = update.mirrors_pending == 0 && !update.has(SAFE);
        if safe {
            self.became_safe(slot);
        }
        self.free_if_unused(slot);
        if more {
            self.send_again(usize::from(tag));
        }
    }

    /// As many movers as configured hold the update: it may go to the base (when its set is
    /// released) and to the secondary.
    #[inline]
    fn became_safe(&mut self, slot: u32) {
        self.slab.get_mut(slot).flags |= SAFE;
        self.try_base(slot);
        self.queue_transfer(slot);
    }

    /// Issues the base write if nothing stands against it (invariants 1, 2, 3, 5).
    #[inline]
    pub(super) fn try_base(&mut self, slot: u32) {
        let update = self.slab.get(slot);
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
    pub fn handle_written(&mut self, token: Token, status: NvmeStatus) {
        let Some((slot, TAG_BASE)) = self.slab.resolve(token) else {
            debug_assert!(false, "an update is kept until the base has completed it");
            self.counters.unexpected += 1;
            return;
        };
        if !status.is_ok() {
            self.void(slot, status);
        }
        self.fate(slot, status);
    }

    /// The base refused the write: its number is void, and what the medium holds is unknown.
    #[cold]
    fn void(&mut self, slot: u32, status: NvmeStatus) {
        let info = self.info(slot);
        let update = self.slab.get_mut(slot);
        update.flags |= VOID;
        let (mirrors, index) = (update.mirrors, update.volume as usize);
        self.counters.voids += 1;
        if self.sabotage.is(Sabotage::ReuseNumber) {
            self.volumes[index].next_seq = info.seq;
        }
        let group = &mut self.groups[self.volumes[index].group];
        if let Some(set) = group.sets.get_mut(info.set)
            && !self.sabotage.is(Sabotage::DropVoid)
        {
            set.void(index, &info);
        }
        let message =
            Message::Void { group: info.group, volume: info.volume, set: info.set, seq: info.seq };
        for (bit, mirror) in self.mirrors.iter().enumerate() {
            if mirrors & 1 << bit != 0 {
                let message = message.clone();
                self.commands.push_back(Command::Send { to: mirror.shard, message });
            }
        }
        let (volume, seq, extent) = (info.volume, info.seq, info.extent);
        self.commands.push_back(Command::Report(Report::Void { volume, seq, extent, status }));
    }

    /// Completes the host command and lets go those that waited behind it.
    #[inline]
    fn fate(&mut self, slot: u32, status: NvmeStatus) {
        let update = self.slab.get_mut(slot);
        update.flags |= DONE;
        let (tag, set, volume) = (update.tag, update.set, update.volume as usize);
        self.counters.acknowledged += u64::from(status.is_ok());
        self.commands.push_back(Command::CompleteHost { tag, status });
        let mut woken = core::mem::take(&mut self.woken);
        self.order.finish(slot, |ready| woken.push(ready));
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
        self.free_if_unused(slot);
    }

    fn report_closed(&mut self, group: usize) {
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

    /// Frees the slot and its record when its set is confirmed, the host was told, and no send
    /// refers to the record any more (invariant 8).
    #[inline]
    pub(super) fn free_if_unused(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        if !update.has(RELEASED | DONE) || update.mirrors_travelling != 0 || update.has(TRAVELS) {
            return;
        }
        let (buf, bytes, mut rest) = (update.buf, update.record_bytes, update.mirrors);
        while rest != 0 {
            self.mirrors[rest.trailing_zeros() as usize].used_bytes -= u64::from(bytes);
            rest &= rest - 1;
        }
        self.slab.remove(slot);
        self.commands.push_back(Command::Free { buf });
    }

    /// What the record of `slot` says.
    fn info(&self, slot: u32) -> UpdateInfo {
        let update = self.slab.get(slot);
        let volume = &self.volumes[update.volume as usize].config;
        UpdateInfo {
            kind: update.kind,
            fua: update.fua,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            volume: volume.id,
            group: volume.group,
            origin: self.me.mover,
            owner: self.me,
            epoch: self.epoch,
            map_version: self.map_version,
            set: update.set,
            seq: update.seq,
            extent: update.extent,
            block_bytes: volume.block_bytes,
            list_seq: 0,
            time_ns: 0,
            time_error_ns: 0,
        }
    }

    /// A record from another primary shard, stored and verified by the caller: a mirror copy.
    #[inline]
    pub fn handle_record(
        &mut self,
        from: ShardId,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> RecordVerdict {
        if info.epoch != self.epoch && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.counters.stale_epoch += 1;
            return RecordVerdict::StaleEpoch;
        }
        if self.store.is_confirmed(info.group, info.set) {
            return RecordVerdict::NotNeeded;
        }
        if self.store.is_full() {
            return RecordVerdict::Full;
        }
        self.store.insert(from, *info, buf);
        self.counters.mirrored += 1;
        RecordVerdict::Kept
    }

    /// A control message from `from`, sent in `epoch`.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, epoch: Epoch, message: Message) {
        if epoch != self.epoch && !self.sabotage.is(Sabotage::IgnoreEpoch) {
            self.counters.stale_epoch += 1;
            return;
        }
        match message {
            Message::Budget { bytes } => match self.mirrors.iter_mut().find(|m| m.shard == from) {
                Some(mirror) => mirror.budget_bytes = bytes,
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
            Message::Void { group, volume, set, seq } => self.store.void(group, set, volume, seq),
            Message::Resume { group, stored, .. } => self.resume_transfer(from, group, stored),
            Message::Broken { group, reason } => self.track(group, reason),
            Message::Prepared { .. }
            | Message::Closed { .. }
            | Message::Manifest { .. }
            | Message::CloseNow { .. }
            | Message::Stored { .. }
            | Message::Apply { .. }
            | Message::Applied { .. }
            | Message::PauseApply { .. }
            | Message::JournalRoom { .. } => self.counters.unexpected += 1,
        }
    }

    pub(super) fn group_index(&mut self, id: GroupId) -> Option<usize> {
        let index = self.groups.iter().position(|g| g.id == id);
        self.counters.unexpected += u64::from(index.is_none());
        index
    }

    /// Whether acknowledgements of a group are held at a boundary.
    #[inline]
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.groups.iter().any(|group| group.sets.open().is_some_and(|open| !open.released))
    }

    /// Switches to `set` and holds it (invariant 5). A repeated word changes nothing but is
    /// answered, since the answer may have been lost with a restart.
    fn prepare(&mut self, now: Nanos, id: GroupId, set: SetId, map_version: MapVersion) {
        let Some(index) = self.group_index(id) else { return };
        if self.groups[index].broken.is_some() {
            return;
        }
        let open = self.groups[index].sets.open().map_or(SetId(0), |s| s.id);
        if set > open {
            // All have switched to the set before, or this word would not have been sent.
            self.release(now, index, open);
            let sets = &mut self.groups[index].sets;
            if let Some(open) = sets.open_mut() {
                open.switched = true;
            }
            sets.push(set, now);
            self.map_version = map_version;
            self.commands.push_back(Command::Report(Report::SetOpened { group: id, set }));
            if self.sabotage.is(Sabotage::ReleaseBeforeAllSwitched) {
                self.release(now, index, set);
            }
        }
        let message = Message::Prepared { group: id, set };
        self.commands.push_back(Command::Send { to: self.coordinator, message });
        self.report_closed(index);
    }

    fn release(&mut self, now: Nanos, index: usize, set: SetId) {
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

    /// The secondary has all sets up to `set`: their records may go here, the held copies too.
    fn confirm(&mut self, id: GroupId, set: SetId) {
        let commands = &mut self.commands;
        self.store.confirm(id, set, |buf| commands.push_back(Command::Free { buf }));
        let Some(index) = self.group_index(id) else { return };
        self.groups[index].confirmed = self.groups[index].confirmed.max(set);
        while let Some(own) = self.groups[index].sets.pop_through(set) {
            self.let_go(own.head);
            self.groups[index].sets.recycle(own);
        }
    }

    pub(super) fn let_go(&mut self, head: u32) {
        let mut slot = head;
        while slot != NIL {
            let update = self.slab.get_mut(slot);
            let next = core::mem::replace(&mut update.next, NIL);
            update.flags |= RELEASED;
            self.free_if_unused(slot);
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

    /// The next thing to do, in order.
    #[inline]
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }
}
