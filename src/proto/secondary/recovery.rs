//! From the journal back to a shard: what is stored, what is applied (invariant 7).
//!
//! The journal's prefix that survived is fed in, oldest entry first. Stored is what has a durable
//! manifest, in unbroken order after the last applied mark; updates of later sets are kept, and come
//! again from the primary for the partner's copy. A number may be there twice: the later one counts. A set whose apply was cut short is not told from one that was
//! never begun: the coordinator asks for it again and it is written as a whole.

use super::sets::Manifest;
use super::shard::SecondaryShard;
use super::store::{Entry, NIL};
use crate::proto::command::{JournalPos, RecordRole};
use crate::proto::limits::{RETAINED_UPDATES_MAX, SETS_AHEAD_MAX};
use crate::proto::message::{FactsPart, Message, VolumeFacts};
use crate::proto::types::{Epoch, GroupId, Nanos, Seq, SetId, VolumeId};
use crate::wire::update::{UpdateInfo, digest_of};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// One entry of the journal, as it was appended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recovered {
    /// From `JournalEntry::Record`.
    Record {
        /// As appended.
        role: RecordRole,
        /// What the record's header says.
        info: UpdateInfo,
    },
    /// From `JournalEntry::Manifest`.
    Manifest {
        /// As appended.
        message: Message,
    },
    /// From `JournalEntry::Commit`.
    Commit {
        /// The group.
        group: GroupId,
        /// The committed set.
        set: SetId,
        /// When the set was cut, nanoseconds since the Unix epoch.
        cut_time_ns: u64,
        /// As appended.
        primary_epoch: Epoch,
    },
    /// From `JournalEntry::Applied`.
    Applied {
        /// The group.
        group: GroupId,
        /// The last applied set.
        set: SetId,
    },
}

/// What was fed in so far.
#[derive(Clone, Default, Debug)]
pub(super) struct Recovery {
    /// By volume and number; kept ones apart from own ones.
    own: BTreeMap<(VolumeId, Seq), (UpdateInfo, JournalPos)>,
    kept: BTreeMap<(VolumeId, Seq), (UpdateInfo, JournalPos)>,
    manifests: BTreeMap<(GroupId, SetId), (Manifest, JournalPos)>,
    applied: BTreeMap<GroupId, (SetId, JournalPos)>,
}

impl SecondaryShard {
    /// See [`super::Secondary::recover`]; commits are not for a shard.
    pub fn recover(&mut self, position: JournalPos, entry: Recovered) {
        match entry {
            Recovered::Record { role: RecordRole::Transfer, info } => {
                self.recovery.own.insert((info.volume, info.seq), (info, position));
            }
            Recovered::Record { role: RecordRole::SecondaryMirror, info } => {
                self.recovery.kept.insert((info.volume, info.seq), (info, position));
            }
            Recovered::Manifest {
                message:
                    Message::Manifest { group, set, cut_time_ns, facts: FactsPart { facts, .. } },
            } => {
                let manifest = Manifest { cut_time_ns, facts };
                self.recovery.manifests.insert((group, set), (manifest, position));
            }
            Recovered::Applied { group, set } => {
                let applied = self.recovery.applied.entry(group).or_insert((set, position));
                if set >= applied.0 {
                    *applied = (set, position);
                }
            }
            Recovered::Record { .. } | Recovered::Manifest { .. } | Recovered::Commit { .. } => {}
        }
    }

    /// See [`super::Secondary::recovered`].
    pub fn recovered(&mut self, _now: Nanos) {
        let mut recovery = core::mem::take(&mut self.recovery);
        for group in 0..self.groups.len() {
            let state = &mut self.groups[group];
            let id = state.id;
            if let Some((set, position)) = recovery.applied.get(&id) {
                state.applied = *set;
                state.mark = Some(*position);
            }
            state.stored = state.applied;
            state.appended = state.applied;
            // Applied here, but perhaps not at every shard: only the set before surely is.
            state.everywhere = state.applied.prev();
            loop {
                let set = self.groups[group].stored.next();
                let Some((manifest, position)) = recovery.manifests.remove(&(id, set)) else {
                    break;
                };
                if !self.recover_set(group, set, manifest, position, &recovery.own) {
                    self.break_group(group);
                    break;
                }
            }
        }
        for ((volume, seq), (info, position)) in recovery.own {
            self.recover_unstored(volume, seq, &info, position);
        }
        for ((volume, _), (info, position)) in recovery.kept {
            if let Some(group) = self.group_of(info.group)
                && info.set > self.groups[group].everywhere
                && self.volume_index(volume).is_none()
            {
                let index = self.kept_volume(volume);
                let role = RecordRole::SecondaryMirror;
                let entry = durable_entry(role, &info, group as u16, index as u32, position);
                let slot = self.slab.insert(entry);
                self.link_kept(slot);
            }
        }
        self.send_resume(self.config.coordinator);
    }

    /// Takes an update of a set that is not stored back in. It counts as safe once the partner has
    /// it, and for that its record must come again: see `take_own`. It is not journaled again, or
    /// restarts in a row would fill the journal with copies.
    fn recover_unstored(
        &mut self,
        volume: VolumeId,
        seq: Seq,
        info: &UpdateInfo,
        position: JournalPos,
    ) {
        let Some(index) = self.volume_index(volume) else { return };
        let group = usize::from(self.volumes[index].group);
        let ahead = info.set.0.saturating_sub(self.groups[group].stored.0);
        if info.set <= self.groups[group].stored
            || ahead > SETS_AHEAD_MAX
            || self.groups[group].id != info.group
            || !self.volumes[index].window.reaches(seq, RETAINED_UPDATES_MAX as u64)
        {
            return;
        }
        let role = RecordRole::Transfer;
        let mut entry = durable_entry(role, info, group as u16, index as u32, position);
        entry.mirroring = self.config.partner.is_some();
        let safe = entry.is_safe();
        let slot = self.slab.insert(entry);
        self.volumes[index].window.insert(seq, slot);
        let tally = self.volumes[index].tally(info.set);
        tally.add(seq, info.payload_len, digest_of(info));
        tally.unsafe_updates -= u64::from(safe);
        if let Some(received) = self.groups[group].set_mut(info.set) {
            received.needs(position);
            received.not_before = received.not_before.max(info.not_before);
        }
    }

    /// Takes a set back in; false, and nothing changed, when the journal does not have all that
    /// its manifest names.
    fn recover_set(
        &mut self,
        group: usize,
        set: SetId,
        manifest: Manifest,
        position: JournalPos,
        records: &BTreeMap<(VolumeId, Seq), (UpdateInfo, JournalPos)>,
    ) -> bool {
        let mut found = Vec::new();
        for fact in &manifest.facts {
            let Some(volume) = self.own_volume(group, fact.volume) else { return false };
            let range = (fact.volume, fact.first)..=(fact.volume, fact.last);
            let before = found.len();
            for ((_, seq), (info, position)) in records.range(range) {
                if info.set == set && fact.voids.binary_search(seq).is_err() {
                    found.push((volume, *info, *position));
                }
            }
            if !agrees(fact, found[before..].iter().map(|(_, info, _)| info)) {
                return false;
            }
        }
        let (mut first_position, mut not_before) = (position, SetId(0));
        for (volume, info, position) in found {
            first_position = first_position.min(position);
            not_before = not_before.max(info.not_before);
            let role = RecordRole::Transfer;
            let entry = durable_entry(role, &info, group as u16, volume as u32, position);
            let slot = self.slab.insert(entry);
            self.volumes[volume].window.insert(info.seq, slot);
        }
        for fact in &manifest.facts {
            if let Some(volume) = self.own_volume(group, fact.volume) {
                self.volumes[volume].next = Some(fact.last.next());
            }
        }
        let state = &mut self.groups[group];
        if let Some(received) = state.set_mut(set) {
            received.ordinal = Some(0);
            received.manifest = Some(manifest);
            received.not_before = not_before;
            received.needs(first_position);
        }
        state.stored = set;
        state.appended = set;
        true
    }
}

fn agrees<'a>(fact: &VolumeFacts, found: impl Iterator<Item = &'a UpdateInfo>) -> bool {
    let (mut count, mut bytes, mut digest) = (0, 0_u64, 0_u64);
    for info in found {
        count += 1;
        bytes += u64::from(info.payload_len);
        digest = digest.wrapping_add(digest_of(info));
    }
    count == fact.count() && bytes == fact.bytes && digest == fact.digest
}

fn durable_entry(
    role: RecordRole,
    info: &UpdateInfo,
    group: u16,
    volume: u32,
    position: JournalPos,
) -> Entry {
    Entry {
        role,
        kind: info.kind,
        volume,
        group,
        seq: info.seq,
        set: info.set,
        extent: info.extent,
        payload_bytes: info.payload_len,
        digest: digest_of(info),
        buf: None,
        position: Some(position),
        ordinal: 0,
        mirroring: false,
        writing: false,
        released: false,
        next_kept: NIL,
    }
}
