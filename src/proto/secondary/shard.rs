//! A poller's shard at the secondary: takes records in, has them journaled and mirrored.
//!
//! The volumes mapped to the shard are its own; for partners it keeps copies of theirs. `sets`
//! decides when a set is complete, `apply` writes it, `room` gives memory and journal back.

use super::apply::Applier;
use super::sets::{Group, KeptSet, Volume};
use super::store::{Entry, NIL, SeqWindow, Slab, Tag, halves};
use super::{Counters, Receipt, Refusal};
use crate::proto::command::{Command, JournalEntry, JournalPos, RecordRole, Token};
use crate::proto::limits::{RETAINED_UPDATES_MAX, SETS_AHEAD_MAX};
use crate::proto::message::Message;
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{BufRef, Epoch, GroupId, Nanos, SetId, ShardId, UpdateKind, VolumeId};
use crate::wire::update::{UpdateInfo, digest_of};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// One volume of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeConfig {
    /// The volume.
    pub id: VolumeId,
    /// Its group.
    pub group: GroupId,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks of the volume.
    pub blocks: u64,
}

/// What a shard has to know; fixed while it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardConfig {
    /// This shard.
    pub me: ShardId,
    /// The epoch that both sites are in.
    pub epoch: Epoch,
    /// Where the site's coordinator runs.
    pub coordinator: ShardId,
    /// Who keeps a second copy of what this shard receives; none at a site of one mover.
    pub partner: Option<ShardId>,
    /// The shards of the primary site, who hear how far this shard is.
    pub primaries: Vec<ShardId>,
    /// All groups of the site, also those without a volume here.
    pub groups: Vec<GroupId>,
    /// The volumes that this shard writes.
    pub volumes: Vec<VolumeConfig>,
    /// Writes to volumes in flight or waiting for overlapping ones, over all groups. At least 1.
    pub apply_depth: u32,
    /// A rule to break on purpose, in tests.
    pub sabotage: Sabotage,
}

/// How far a group is at this shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// All sets up to here are durable in the journal.
    pub stored: SetId,
    /// All sets up to here are on the volumes.
    pub applied: SetId,
    /// The set that is being applied.
    pub applying: Option<SetId>,
    /// Sets that are known and not applied, forming ones included.
    pub sets: usize,
    /// Facts and updates did not agree.
    pub broken: bool,
}

/// The state machine of one shard. Owner: its poller. [`super::Secondary`] documents the inputs.
#[derive(Clone, Debug)]
pub struct SecondaryShard {
    pub(super) config: ShardConfig,
    /// Ascending by id.
    pub(super) volumes: Vec<Volume>,
    /// Ascending by id.
    pub(super) groups: Vec<Group>,
    /// Numbers of partners' volumes that are kept here.
    pub(super) kept: Vec<SeqWindow>,
    pub(super) kept_index: BTreeMap<VolumeId, u32>,
    pub(super) slab: Slab,
    pub(super) applier: Applier,
    pub(super) commands: VecDeque<Command>,
    /// Journal entries appended so far; each has its turn.
    pub(super) ordinal: u64,
    /// The last turn that a flush was asked for.
    pub(super) flushing: u64,
    /// The last turn that is durable.
    pub(super) durable: u64,
    /// Counts the partner's lives, so that an old delivery is not taken for a new one.
    incarnation: u8,
    /// The journal is scarce, and ample from there on.
    pub(super) scarce: Option<JournalPos>,
    pub(super) room: super::room::Room,
    pub(super) recovery: super::recovery::Recovery,
    pub(super) counters: Counters,
}

impl SecondaryShard {
    /// A shard with nothing in it.
    ///
    /// # Panics
    /// When a volume's group is not among the groups, or there are more groups than numbers: the
    /// configuration is checked before it comes here.
    #[must_use]
    pub fn new(config: ShardConfig) -> Self {
        let mut ids = config.groups.clone();
        ids.sort_unstable();
        ids.dedup();
        let mut groups: Vec<Group> = ids.into_iter().map(Group::new).collect();
        let mut list = config.volumes.clone();
        list.sort_unstable_by_key(|volume| volume.id);
        let mut volumes = Vec::with_capacity(list.len());
        for config in list {
            let group = groups
                .binary_search_by_key(&config.group, |group| group.id)
                .expect("every volume's group is configured");
            groups[group].volumes.push(volumes.len() as u32);
            volumes.push(Volume {
                config,
                group: group as u16,
                window: SeqWindow::default(),
                tallies: VecDeque::new(),
                next: None,
            });
        }
        Self {
            applier: Applier::new(config.apply_depth.max(1)),
            config,
            volumes,
            groups,
            kept: Vec::new(),
            kept_index: BTreeMap::new(),
            slab: Slab::new(),
            commands: VecDeque::new(),
            ordinal: 0,
            flushing: 0,
            durable: 0,
            incarnation: 0,
            scarce: None,
            room: super::room::Room::default(),
            recovery: super::recovery::Recovery::default(),
            counters: Counters::default(),
        }
    }

    pub(super) fn group_of(&self, id: GroupId) -> Option<usize> {
        self.groups.binary_search_by_key(&id, |group| group.id).ok()
    }

    pub(super) fn volume_index(&self, id: VolumeId) -> Option<usize> {
        self.volumes.binary_search_by_key(&id, |volume| volume.config.id).ok()
    }

    /// See [`super::Secondary::handle_record`].
    pub fn handle_record(
        &mut self,
        now: Nanos,
        _from: ShardId,
        role: RecordRole,
        info: &UpdateInfo,
        buf: BufRef,
    ) -> Receipt {
        // The epoch in which it was numbered says nothing: what its owner has not sent, the one who
        // took its volume over does. Packets of movers left behind do not get here.
        let result = match role {
            RecordRole::Transfer => self.take_own(now, info, buf),
            RecordRole::SecondaryMirror => self.take_kept(info, buf),
            RecordRole::Mirror
            | RecordRole::Forward
            | RecordRole::Numbered
            | RecordRole::Answer
            | RecordRole::Resend
            | RecordRole::Voided
            | RecordRole::ResendVoid
            | RecordRole::Description
            | RecordRole::ResendDescription => Err(Refusal::Role),
        };
        match result {
            Ok(true) => Receipt::Accepted,
            Ok(false) => {
                self.counters.duplicate_records += 1;
                Receipt::Duplicate
            }
            Err(refusal) => {
                self.counters.refused_records += 1;
                Receipt::Refused(refusal)
            }
        }
    }

    /// False when it is here already.
    fn take_own(&mut self, now: Nanos, info: &UpdateInfo, buf: BufRef) -> Result<bool, Refusal> {
        let index = self.volume_index(info.volume).ok_or(Refusal::UnknownVolume)?;
        let volume = &self.volumes[index];
        if volume.config.group != info.group {
            return Err(Refusal::UnknownVolume);
        }
        if volume.config.block_bytes != info.block_bytes
            || info.extent.end() > volume.config.blocks
            || info.seq.0 == 0
            || info.set.0 == 0
        {
            return Err(Refusal::Range);
        }
        let group = &self.groups[usize::from(volume.group)];
        if info.set <= group.appended {
            return Ok(false);
        }
        if let Some(slot) = volume.window.get(info.seq) {
            let entry = self.slab.at(slot);
            if entry.set != info.set {
                return Err(Refusal::Conflict);
            }
            let Some(to) = self.config.partner.filter(|_| entry.mirroring && entry.buf.is_none())
            else {
                return Ok(false);
            };
            // Journaled before a restart; it comes again for the partner's copy, perhaps with a payload that was
            // read back since (G12).
            let group = usize::from(volume.group);
            if let Some(received) = self.groups[group].set_mut(info.set) {
                received.not_before = received.not_before.max(info.not_before);
            }
            self.slab.give_buf(slot, buf);
            self.send_to_partner(to, slot, buf);
            return Ok(true);
        }
        if info.set.0 > group.stored.0 + SETS_AHEAD_MAX
            || !volume.window.reaches(info.seq, RETAINED_UPDATES_MAX as u64)
        {
            return Err(Refusal::TooFarAhead);
        }
        let group = volume.group;
        let tally = self.volumes[index].tally(info.set);
        let received = self.groups[usize::from(group)].set(info.set);
        let manifest = received.and_then(|set| set.manifest.as_ref());
        if let Some(manifest) = manifest
            && let Some(fact) = tally.fact.and_then(|fact| manifest.facts.get(fact as usize))
            && fact.voids.binary_search(&info.seq).is_ok()
        {
            self.counters.void_records += 1;
            return Err(Refusal::Void);
        }
        let manifest_known = manifest.is_some();
        let partner = self.config.partner;
        let slot = self.insert(RecordRole::Transfer, info, group, index as u32, buf);
        self.slab.at_mut(slot).mirroring = partner.is_some();
        self.volumes[index].window.insert(info.seq, slot);
        self.volumes[index].tally(info.set).add(info.seq, info.payload_len, digest_of(info));
        if let Some(received) = self.groups[usize::from(group)].set_mut(info.set) {
            received.not_before = received.not_before.max(info.not_before);
        }
        self.counters.records += 1;
        if let Some(to) = partner {
            self.send_to_partner(to, slot, buf);
        }
        if manifest_known {
            self.evaluate(now, index, info.set);
        }
        Ok(true)
    }

    /// False when it is here already or not needed any more.
    fn take_kept(&mut self, info: &UpdateInfo, buf: BufRef) -> Result<bool, Refusal> {
        let group = self.group_of(info.group).ok_or(Refusal::UnknownVolume)?;
        if self.volume_index(info.volume).is_some() {
            return Err(Refusal::UnknownVolume);
        }
        if info.seq.0 == 0 {
            return Err(Refusal::Range);
        }
        if info.set <= self.groups[group].everywhere {
            return Ok(false);
        }
        let index = self.kept_volume(info.volume);
        if self.kept[index].get(info.seq).is_some() {
            return Ok(false);
        }
        if !self.kept[index].reaches(info.seq, RETAINED_UPDATES_MAX as u64) {
            return Err(Refusal::TooFarAhead);
        }
        let slot = self.insert(RecordRole::SecondaryMirror, info, group as u16, index as u32, buf);
        self.link_kept(slot);
        self.counters.kept_records += 1;
        Ok(true)
    }

    /// The window of a partner's volume; a new one if need be.
    pub(super) fn kept_volume(&mut self, volume: VolumeId) -> usize {
        let fresh = self.kept.len() as u32;
        let index = *self.kept_index.entry(volume).or_insert(fresh);
        if index == fresh {
            self.kept.push(SeqWindow::default());
        }
        index as usize
    }

    /// Puts a kept entry into its window and its set's list.
    pub(super) fn link_kept(&mut self, slot: u32) {
        let entry = self.slab.at(slot);
        let (volume, group, seq, set) = (entry.volume, entry.group, entry.seq, entry.set);
        let position = entry.position;
        self.kept[volume as usize].insert(seq, slot);
        let list = &mut self.groups[usize::from(group)].kept;
        let mut at = list.len();
        while at > 0 && list[at - 1].set > set {
            at -= 1;
        }
        if at == 0 || list[at - 1].set != set {
            list.insert(at, KeptSet { set, head: NIL, first_position: None });
            at += 1;
        }
        let kept = &mut list[at - 1];
        let next = core::mem::replace(&mut kept.head, slot);
        if let Some(position) = position {
            kept.first_position = Some(kept.first_position.map_or(position, |p| p.min(position)));
        }
        self.slab.at_mut(slot).next_kept = next;
    }

    /// A new entry, on its way into the journal.
    fn insert(
        &mut self,
        role: RecordRole,
        info: &UpdateInfo,
        group: u16,
        volume: u32,
        buf: BufRef,
    ) -> u32 {
        let slot = self.slab.insert(Entry {
            role,
            kind: info.kind,
            volume,
            group,
            seq: info.seq,
            set: info.set,
            extent: info.extent,
            payload_bytes: info.payload_len,
            digest: digest_of(info),
            buf: Some(buf),
            position: None,
            ordinal: 0,
            mirroring: false,
            writing: false,
            released: false,
            next_kept: NIL,
        });
        let token = Tag::Record.token(self.slab.generation(slot), slot);
        let ordinal = self.append(JournalEntry::Record { buf, role }, token);
        self.slab.at_mut(slot).ordinal = ordinal;
        slot
    }

    fn send_to_partner(&mut self, to: ShardId, slot: u32, buf: BufRef) {
        let low = Tag::Record.token(self.slab.generation(slot), slot).0 & (u64::MAX >> 8);
        let token = Token(low | u64::from(self.incarnation & 0x7f) << 56);
        let role = RecordRole::SecondaryMirror;
        self.commands.push_back(Command::SendRecord { to, role, buf, token });
    }

    /// Appends to the journal; returns the entry's turn.
    pub(super) fn append(&mut self, entry: JournalEntry, token: Token) -> u64 {
        self.ordinal += 1;
        self.commands.push_back(Command::Journal { entry, token });
        self.ordinal
    }

    /// Asks for everything appended to be made durable, unless that is under way.
    pub(super) fn flush_journal(&mut self) {
        if self.flushing < self.ordinal {
            self.flushing = self.ordinal;
            let token = Tag::JournalFlush.wide(self.ordinal);
            self.commands.push_back(Command::JournalFlush { token });
        }
    }

    /// See [`super::Secondary::handle_journaled`].
    pub fn handle_journaled(&mut self, now: Nanos, token: Token, position: JournalPos) {
        let (high, low) = halves(token);
        if Tag::Record.marks(token) {
            let Some(slot) = self.slab.named(token) else {
                self.counters.stale_results += 1;
                return;
            };
            let entry = self.slab.at_mut(slot);
            entry.position = Some(position);
            let (role, set, volume) = (entry.role, entry.set, entry.volume as usize);
            let group = &mut self.groups[usize::from(entry.group)];
            if entry.released {
                self.settle_release(slot);
            } else if role == RecordRole::SecondaryMirror {
                if let Some(kept) = group.kept.iter_mut().rev().find(|kept| kept.set == set) {
                    let first = kept.first_position.map_or(position, |p| p.min(position));
                    kept.first_position = Some(first);
                }
            } else {
                if let Some(received) = group.set_mut(set) {
                    received.needs(position);
                }
                self.became_safe(now, slot, volume, set);
            }
        } else if Tag::Manifest.marks(token) {
            if let Some(group) = self.groups.get_mut(high as usize) {
                let ahead = low.wrapping_sub(group.applied.0 as u32);
                let set = SetId(group.applied.0 + u64::from(ahead));
                if set <= group.appended
                    && let Some(received) = group.set_mut(set)
                {
                    received.needs(position);
                }
            }
        } else if Tag::Applied.marks(token)
            && let Some(group) = self.groups.get_mut(high as usize)
            && let Some(mark) = &mut group.fresh_mark
            && mark.set.0 as u32 == low
        {
            mark.position = Some(position);
        }
    }

    /// An own entry has come a step nearer: in the journal, or at the partner.
    fn became_safe(&mut self, now: Nanos, slot: u32, volume: usize, set: SetId) {
        if !self.slab.at(slot).is_safe() {
            return;
        }
        let group = usize::from(self.volumes[volume].group);
        if set > self.groups[group].appended {
            let tally = self.volumes[volume].tally(set);
            tally.unsafe_updates -= 1;
            if tally.unsafe_updates == 0 {
                self.evaluate(now, volume, set);
            }
        }
    }

    /// See [`super::Secondary::handle_journal_durable`].
    pub fn handle_journal_durable(&mut self, now: Nanos, token: Token) {
        let ordinal = token.0 & (u64::MAX >> 8);
        if !Tag::JournalFlush.marks(token) || ordinal <= self.durable {
            self.counters.stale_results += 1;
            return;
        }
        self.durable = ordinal;
        for group in 0..self.groups.len() {
            self.settle_stored(group);
            self.settle_mark(group);
            self.settle_applied(now, group);
        }
        self.durable_frees_room();
    }

    /// See [`super::Secondary::handle_delivered`].
    pub fn handle_delivered(&mut self, now: Nanos, token: Token) {
        let named = self.slab.named(token);
        let Some(slot) = named.filter(|slot| {
            token.0 >> 56 == u64::from(self.incarnation & 0x7f) && self.slab.at(*slot).mirroring
        }) else {
            self.counters.stale_results += 1;
            return;
        };
        let entry = self.slab.at_mut(slot);
        entry.mirroring = false;
        let (volume, set, released) = (entry.volume as usize, entry.set, entry.released);
        if released {
            self.settle_release(slot);
        } else {
            self.became_safe(now, slot, volume, set);
        }
    }

    /// See [`super::Secondary::handle_peer_up`].
    pub fn handle_peer_up(&mut self, now: Nanos, peer: ShardId) {
        if Some(peer) == self.config.partner {
            self.mirror_again(peer);
        }
        if peer == self.config.coordinator || self.config.primaries.contains(&peer) {
            self.send_resume(peer);
        }
        let _ = now;
    }

    /// The partner's memory is new: it gets again whatever is in memory here. What was evicted is
    /// durable in the journal, which counts as safe (invariant 8).
    fn mirror_again(&mut self, partner: ShardId) {
        self.incarnation = self.incarnation.wrapping_add(1);
        let mut next = self.slab.oldest();
        while let Some(slot) = next {
            next = self.slab.newer(slot);
            let entry = self.slab.at_mut(slot);
            if entry.role != RecordRole::Transfer {
                continue;
            }
            if entry.released {
                if core::mem::take(&mut entry.mirroring) {
                    self.settle_release(slot);
                }
                continue;
            }
            let was_safe = entry.is_safe();
            entry.mirroring = true;
            let (volume, set, buf) = (entry.volume as usize, entry.set, entry.buf);
            let group = usize::from(entry.group);
            if was_safe && set > self.groups[group].appended {
                let tally = self.volumes[volume].tally(set);
                tally.unsafe_updates += 1;
                if core::mem::take(&mut tally.satisfied)
                    && let Some(received) = self.groups[group].set_mut(set)
                {
                    received.open += 1;
                }
            }
            if let Some(buf) = buf {
                self.send_to_partner(partner, slot, buf);
            }
        }
    }

    /// Tells `to` how far every group is.
    pub(super) fn send_resume(&mut self, to: ShardId) {
        for group in &self.groups {
            let (stored, applied, not_before) = (group.stored, group.applied, group.not_before());
            let message = Message::Resume { group: group.id, stored, applied, not_before };
            self.commands.push_back(Command::Send { to, message });
        }
        if to == self.config.coordinator {
            self.send_broken();
            self.send_journal_room();
        }
    }

    pub(super) fn send_journal_room(&mut self) {
        let message = Message::JournalRoom { scarce: self.scarce.is_some() };
        self.commands.push_back(Command::Send { to: self.config.coordinator, message });
    }

    /// A message to this shard; others are counted.
    pub fn handle_message(&mut self, now: Nanos, from: ShardId, message: Message) {
        let from_coordinator = from == self.config.coordinator;
        match message {
            Message::Manifest { group, set, cut_time_ns, facts } if from_coordinator => {
                if let Some(group) = self.group_of(group) {
                    self.handle_manifest(now, group, set, cut_time_ns, facts);
                    return;
                }
            }
            Message::Apply { group, set } if from_coordinator => {
                if let Some(group) = self.group_of(group) {
                    self.handle_apply(now, group, set);
                    return;
                }
            }
            Message::Broken { group, reason } if from_coordinator => {
                return self.handle_broken(group, reason);
            }
            _ => {}
        }
        self.counters.refused_messages += 1;
    }

    /// The next effect.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// How far the groups are.
    pub fn status(&self) -> impl Iterator<Item = GroupStatus> + '_ {
        self.groups.iter().map(|group| GroupStatus {
            group: group.id,
            stored: group.stored,
            applied: group.applied,
            applying: group.run.applying(),
            sets: group.sets.len(),
            broken: group.broken,
        })
    }

    /// Own updates received and not applied, per group: how many, and their payload bytes. Walks
    /// all of them: for status, not for the data path.
    #[must_use]
    pub fn backlog(&self) -> Vec<(GroupId, u64, u64)> {
        let mut backlog: Vec<_> = self.groups.iter().map(|group| (group.id, 0, 0)).collect();
        let own = |entry: &&Entry| entry.role == RecordRole::Transfer && !entry.released;
        for entry in self.slab.iter().filter(own) {
            let (_, updates, bytes) = &mut backlog[usize::from(entry.group)];
            *updates += 1;
            *bytes += u64::from(entry.payload_bytes);
        }
        backlog
    }

    /// Updates that are retained, copies for partners included.
    #[must_use]
    pub fn retained_updates(&self) -> usize {
        self.slab.len()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether the update has a payload that a write needs.
    pub(super) fn has_payload(kind: UpdateKind) -> bool {
        matches!(kind, UpdateKind::Write)
    }
}
