//! When a set is complete at a shard: facts against what has arrived (invariant 6).
//!
//! Per volume and set a tally runs along with the records. Once the manifest is known, a volume is
//! satisfied when as many updates are present as the facts say, all of them in the journal and at
//! the partner, and bytes and digest agree. When all volumes are, the manifest goes into the
//! journal, in the order of sets, and a flush makes the set stored (invariant 7).

use super::shard::{SecondaryShard, VolumeConfig};
use super::store::{SeqWindow, Tag};
use crate::proto::command::{Command, JournalEntry, JournalPos, Report};
use crate::proto::limits::SETS_AHEAD_MAX;
use crate::proto::message::{BrokenReason, FactsAssembly, FactsPart, Message, VolumeFacts};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{GroupId, Nanos, Seq, SetId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::apply::Run;

/// A volume of the shard.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) config: VolumeConfig,
    /// Index of its group.
    pub(super) group: u16,
    /// Its updates that are not yet applied.
    pub(super) window: SeqWindow,
    /// Sets whose manifest is not yet in the journal, ascending.
    pub(super) tallies: VecDeque<Tally>,
    /// Its first number after the last set in the journal, once a manifest named the volume.
    pub(super) next: Option<Seq>,
}

/// What has arrived of one volume in one set, voids excluded once they are known.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    set: SetId,
    present: u64,
    bytes: u64,
    digest: u64,
    /// Present ones that journal or partner do not have yet.
    pub(super) unsafe_updates: u64,
    low: Seq,
    high: Seq,
    /// Index of the volume's facts in the manifest, once known.
    pub(super) fact: Option<u32>,
    pub(super) satisfied: bool,
}

impl Volume {
    /// The tally of `set`; a new one if there is none.
    pub(super) fn tally(&mut self, set: SetId) -> &mut Tally {
        let mut at = self.tallies.len();
        while at > 0 && self.tallies[at - 1].set > set {
            at -= 1;
        }
        if at == 0 || self.tallies[at - 1].set != set {
            let tally = Tally {
                set,
                present: 0,
                bytes: 0,
                digest: 0,
                unsafe_updates: 0,
                low: Seq(u64::MAX),
                high: Seq(0),
                fact: None,
                satisfied: false,
            };
            self.tallies.insert(at, tally);
            at += 1;
        }
        &mut self.tallies[at - 1]
    }
}

impl Tally {
    pub(super) fn add(&mut self, seq: Seq, bytes: u32, digest: u64) {
        self.present += 1;
        self.bytes += u64::from(bytes);
        self.digest = self.digest.wrapping_add(digest);
        self.low = self.low.min(seq);
        self.high = self.high.max(seq);
        self.unsafe_updates += 1;
    }
    fn subtract_void(&mut self, bytes: u32, digest: u64, safe: bool) {
        self.present -= 1;
        self.bytes -= u64::from(bytes);
        self.digest = self.digest.wrapping_sub(digest);
        self.unsafe_updates -= u64::from(!safe);
    }
}

/// A set of a group, from its first record or manifest part until it is applied.
#[derive(Clone, Default, Debug)]
pub(super) struct ReceivedSet {
    pub(super) assembly: FactsAssembly,
    pub(super) manifest: Option<Manifest>,
    /// Volumes of the manifest that are not satisfied.
    pub(super) open: u32,
    /// The manifest's turn in the journal, once appended.
    pub(super) ordinal: Option<u64>,
    /// The first position in the journal that the set needs.
    pub(super) first_position: Option<JournalPos>,
    /// It holds payloads of updates up to this set (G12); 0 when it does not.
    pub(super) not_before: SetId,
}

impl ReceivedSet {
    pub(super) fn needs(&mut self, position: JournalPos) {
        self.first_position = Some(self.first_position.map_or(position, |p| p.min(position)));
    }
}

/// This shard's part of a manifest.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) cut_time_ns: u64,
    pub(super) facts: Vec<VolumeFacts>,
}

/// Updates of one set kept for partners: a list through the entries.
#[derive(Clone, Debug)]
pub(super) struct KeptSet {
    pub(super) set: SetId,
    pub(super) head: u32,
    pub(super) first_position: Option<JournalPos>,
}

/// An applied mark that is not yet durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreshMark {
    pub(super) set: SetId,
    /// Its turn in the journal.
    pub(super) ordinal: u64,
    pub(super) position: Option<JournalPos>,
}

/// A group as this shard sees it. `applied ≤ stored ≤ appended`.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    /// Indices of its volumes in the shard.
    pub(super) volumes: Vec<u32>,
    /// All sets up to here are on the volumes.
    pub(super) applied: SetId,
    /// All sets up to here are durable in the journal.
    pub(super) stored: SetId,
    /// All sets up to here have their manifest in the journal.
    pub(super) appended: SetId,
    /// All sets up to here are applied at every shard of the site.
    pub(super) everywhere: SetId,
    /// The sets after `applied`, without holes.
    pub(super) sets: VecDeque<ReceivedSet>,
    /// Ascending by set.
    pub(super) kept: VecDeque<KeptSet>,
    pub(super) run: Run,
    /// The durable applied mark, without which a restart would start over.
    pub(super) mark: Option<JournalPos>,
    /// A newer one on its way.
    pub(super) fresh_mark: Option<FreshMark>,
    /// The turn of the newest mark.
    pub(super) mark_ordinal: u64,
    pub(super) broken: bool,
}

impl Group {
    pub(super) fn new(id: GroupId) -> Self {
        Self {
            id,
            volumes: Vec::new(),
            applied: SetId(0),
            stored: SetId(0),
            appended: SetId(0),
            everywhere: SetId(0),
            sets: VecDeque::new(),
            kept: VecDeque::new(),
            run: Run::default(),
            mark: None,
            fresh_mark: None,
            mark_ordinal: 0,
            broken: false,
        }
    }
    pub(super) fn set(&self, set: SetId) -> Option<&ReceivedSet> {
        self.sets.get(usize::try_from(set.0.checked_sub(self.applied.0 + 1)?).ok()?)
    }
    /// Up to which set the stored ones hold payloads of updates (G12).
    pub(super) fn not_before(&self) -> SetId {
        let stored = self.stored.0.saturating_sub(self.applied.0) as usize;
        self.sets.iter().take(stored).map(|set| set.not_before).max().unwrap_or_default()
    }
    /// The set, a new one if need be; none for applied ones.
    pub(super) fn set_mut(&mut self, set: SetId) -> Option<&mut ReceivedSet> {
        let at = usize::try_from(set.0.checked_sub(self.applied.0 + 1)?).ok()?;
        while self.sets.len() <= at {
            self.sets.push_back(ReceivedSet::default());
        }
        self.sets.get_mut(at)
    }
}

impl SecondaryShard {
    /// A part of this shard's manifest of a set.
    pub(super) fn handle_manifest(
        &mut self,
        now: Nanos,
        group: usize,
        set: SetId,
        cut_time_ns: u64,
        part: FactsPart,
    ) {
        let state = &mut self.groups[group];
        if set <= state.appended {
            // The coordinator has restarted and does not know how far this shard is.
            if set <= state.stored {
                let stored = state.stored;
                self.send_stored(group, stored);
            }
            return;
        }
        if set.0 > state.stored.0 + SETS_AHEAD_MAX {
            self.counters.refused_messages += 1;
            return;
        }
        let Some(received) = state.set_mut(set) else { return };
        if received.manifest.is_some() || !received.assembly.add(part) {
            return;
        }
        let facts = core::mem::take(&mut received.assembly).into_facts();
        received.open = facts.len() as u32;
        received.manifest = Some(Manifest { cut_time_ns, facts: facts.clone() });
        for (index, fact) in facts.iter().enumerate() {
            let Some(volume) = self.own_volume(group, fact.volume) else {
                self.break_group(group);
                return;
            };
            for seq in &fact.voids {
                self.drop_void(volume, set, *seq);
            }
            self.volumes[volume].tally(set).fact = Some(index as u32);
        }
        let stray = |volume: &u32| {
            let tallies = &self.volumes[*volume as usize].tallies;
            tallies.iter().any(|t| t.set == set && t.fact.is_none() && t.present > 0)
        };
        if self.groups[group].volumes.iter().any(stray) {
            self.break_group(group);
            return;
        }
        if self.config.sabotage.is(Sabotage::ApplyBeforeComplete) {
            self.sabotage_apply(group, set);
        }
        if facts.is_empty() {
            self.advance(now, group);
        }
        for fact in &facts {
            if let Some(volume) = self.own_volume(group, fact.volume) {
                self.evaluate(now, volume, set);
            }
        }
    }

    /// What has arrived under a number that turned out void never took effect (invariant 3).
    fn drop_void(&mut self, volume: usize, set: SetId, seq: Seq) {
        let Some(slot) = self.volumes[volume].window.get(seq) else { return };
        let entry = self.slab.at(slot);
        if entry.set != set {
            return;
        }
        let (bytes, digest, safe) = (entry.payload_bytes, entry.digest, entry.is_safe());
        self.volumes[volume].window.take(seq);
        self.volumes[volume].tally(set).subtract_void(bytes, digest, safe);
        self.counters.void_records += 1;
        self.release(slot);
    }

    /// Looks whether the volume has now all of the set.
    pub(super) fn evaluate(&mut self, now: Nanos, volume: usize, set: SetId) {
        let group = usize::from(self.volumes[volume].group);
        let Some(manifest) = self.groups[group].set(set).and_then(|s| s.manifest.as_ref()) else {
            return;
        };
        let tally = self.volumes[volume].tally(set);
        let Some(fact) = tally.fact.and_then(|index| manifest.facts.get(index as usize)) else {
            // An update of a volume that has none in this set.
            self.break_group(group);
            return;
        };
        let count = fact.count();
        if tally.present > count
            || (tally.present > 0 && (tally.low < fact.first || tally.high > fact.last))
        {
            self.break_group(group);
            return;
        }
        let skip = self.config.sabotage.is(Sabotage::StoredBeforeComplete);
        let complete = tally.present == count && tally.unsafe_updates == 0;
        if tally.satisfied || !(complete || skip) {
            return;
        }
        if !skip && (tally.bytes != fact.bytes || tally.digest != fact.digest) {
            self.break_group(group);
            return;
        }
        tally.satisfied = true;
        if let Some(received) = self.groups[group].set_mut(set) {
            received.open -= 1;
            if received.open == 0 {
                self.advance(now, group);
            }
        }
    }

    /// Puts the manifests of complete sets into the journal, in order.
    pub(super) fn advance(&mut self, _now: Nanos, group: usize) {
        let before = self.groups[group].appended;
        loop {
            let state = &self.groups[group];
            let set = state.appended.next();
            let Some(received) = state.set(set) else { break };
            let Some(manifest) = &received.manifest else { break };
            if received.open != 0 || state.broken {
                break;
            }
            // Numbers have no gaps between sets either (invariant 3).
            let gap = |fact: &VolumeFacts| {
                self.own_volume(group, fact.volume)
                    .is_some_and(|v| self.volumes[v].next.is_some_and(|next| next != fact.first))
            };
            if manifest.facts.iter().any(gap) {
                self.break_group(group);
                break;
            }
            let (id, cut_time_ns, facts) = (state.id, manifest.cut_time_ns, manifest.facts.clone());
            for fact in &facts {
                if let Some(volume) = self.own_volume(group, fact.volume) {
                    self.volumes[volume].next = Some(fact.last.next());
                }
            }
            for index in 0..self.groups[group].volumes.len() {
                let volume = self.groups[group].volumes[index] as usize;
                let tallies = &mut self.volumes[volume].tallies;
                while tallies.front().is_some_and(|tally| tally.set <= set) {
                    tallies.pop_front();
                }
            }
            let facts = FactsPart { part: 0, parts: 1, facts };
            let message = Message::Manifest { group: id, set, cut_time_ns, facts };
            let token = Tag::Manifest.token(group as u32, set.0 as u32);
            let ordinal = self.append(JournalEntry::Manifest { message }, token);
            let state = &mut self.groups[group];
            state.appended = set;
            if let Some(received) = state.set_mut(set) {
                received.ordinal = Some(ordinal);
            }
        }
        let appended = self.groups[group].appended;
        if appended > before {
            self.flush_journal();
            if self.config.sabotage.is(Sabotage::StoredBeforeDurable) {
                self.groups[group].stored = appended;
                self.send_stored(group, appended);
            }
        }
    }

    /// Everything up to `self.durable` is durable: which sets are stored by that?
    pub(super) fn settle_stored(&mut self, group: usize) {
        let durable = self.durable;
        let state = &mut self.groups[group];
        let before = state.stored;
        while let Some(received) = state.set(state.stored.next())
            && received.ordinal.is_some_and(|ordinal| ordinal <= durable)
        {
            state.stored = state.stored.next();
        }
        let stored = state.stored;
        if stored > before {
            self.send_stored(group, stored);
        }
    }

    fn send_stored(&mut self, group: usize, set: SetId) {
        let (group, not_before) = (self.groups[group].id, self.groups[group].not_before());
        let message = Message::Stored { group, set, not_before };
        self.commands.push_back(Command::Send { to: self.config.coordinator, message });
    }

    /// The coordinator knows that the group forms no sets any more. This mover says so too
    /// (invariant 10); what is whole is stored and applied all the same.
    pub(super) fn handle_broken(&mut self, group: GroupId, reason: BrokenReason) {
        match self.group_of(group) {
            Some(_) => self.commands.push_back(Command::Report(Report::Broken { group, reason })),
            None => self.counters.refused_messages += 1,
        }
    }

    /// The facts and what arrived do not agree: the group forms no sets any more until it is
    /// resynchronised, and says so (invariant 10). What is stored is still applied.
    pub(super) fn break_group(&mut self, group: usize) {
        let state = &mut self.groups[group];
        if state.broken {
            return;
        }
        state.broken = true;
        let (group, reason) = (state.id, BrokenReason::DigestMismatch);
        self.commands.push_back(Command::Report(Report::Broken { group, reason }));
        let message = Message::Broken { group, reason };
        self.commands.push_back(Command::Send { to: self.config.coordinator, message });
    }

    /// Tells a coordinator with a new memory which groups are broken here.
    pub(super) fn send_broken(&mut self) {
        for group in self.groups.iter().filter(|group| group.broken) {
            let (group, reason) = (group.id, BrokenReason::DigestMismatch);
            let message = Message::Broken { group, reason };
            self.commands.push_back(Command::Send { to: self.config.coordinator, message });
        }
    }
}
