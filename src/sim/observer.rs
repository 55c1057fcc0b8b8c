//! The omniscient observer: sees every host command, record, medium and journal, and decides
//! whether an invariant of `docs/protocol.md` is broken. It never asks a state machine what it
//! believes, except which set it has open, which has no outside sign while nothing is written.
//!
//! This file holds the truth and the checks of the primary site; [`super::observe_secondary`]
//! has those of the secondary.
//!
//! Order of events is counted in ticks: every observation has its own, so "before" is exact even
//! within one instant of virtual time.

use super::cluster::EPOCH;
use super::observe_times::LastStamp;
use crate::proto::message::VolumeFacts;
use crate::proto::time::TimeStamp;
use crate::proto::types::{Epoch, Extent, NvmeStatus, Seq, SetId, ShardId, UpdateKind, VolumeId};
use crate::wire::update::UpdateInfo;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its number in `docs/protocol.md`; 0 for liveness, leaks and misuse of interfaces.
    pub invariant: u8,
    /// What was seen.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.invariant {
            0 => write!(f, "{}", self.text),
            n => write!(f, "invariant {n}: {}", self.text),
        }
    }
}

/// What a check returns.
pub type Verdict = Result<(), Violation>;

macro_rules! ensure {
    ($invariant:expr, $condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::sim::observer::Violation {
                invariant: $invariant,
                text: format!($($text)*),
            });
        }
    };
}
pub(super) use ensure;

/// Index of a host update in the order of issue; its host tag too.
pub type WriteId = u32;

/// A tick that never came.
pub const NEVER: u64 = u64::MAX;

/// What became of an update at the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Not written yet.
    Waiting,
    /// Submitted to the medium.
    InFlight,
    /// On the medium.
    Done,
    /// Recovered from its description alone, and the medium has something older in its place, or some of it:
    /// that is what the update stands for from now on (G12).
    Settled,
    /// The medium failed it.
    Failed,
    /// Its number went with a mover that failed: nobody has the update.
    Lost,
}

impl Base {
    /// Whether the number is void.
    pub(super) const fn is_void(self) -> bool {
        matches!(self, Self::Failed | Self::Lost)
    }

    /// Whether it is known what the medium has of it.
    pub(super) const fn is_certain(self) -> bool {
        matches!(self, Self::Done | Self::Settled)
    }
}

/// The set of a lost number that is not recorded anywhere yet: it will be that of the next number.
pub(super) const UNRECORDED: SetId = SetId(u64::MAX);

/// The number of an update that is in no set.
pub(super) const UNTRACKED: Seq = Seq(u64::MAX);

/// [`VolumeTruth::heard`]: a mover of the secondary site.
pub(super) const SECONDARY: u16 = 127;

/// A host update and all that is known of it.
#[derive(Clone, Debug)]
pub struct HostWrite {
    /// Index of the volume.
    pub volume: usize,
    /// What it does.
    pub kind: UpdateKind,
    /// Where.
    pub extent: Extent,
    /// When the host issued it.
    pub issued: u64,
    /// When somebody could first know of it: its base write was submitted, or it was acknowledged.
    pub visible: u64,
    /// When its host was told what became of it; [`NEVER`] when its path is gone, which tells it nothing.
    pub done: u64,
    /// It was acknowledged.
    pub acknowledged: bool,
    /// The newest set of which anything was visible when it was issued.
    pub floor: SetId,
    /// Its number, once it has one.
    pub seq: Seq,
    /// Its set, once it has one.
    pub set: SetId,
    /// At the base.
    pub base: Base,
    /// The host was told.
    pub completed: bool,
    /// Bit m: primary mover m holds a record of it; not counting those that were excluded.
    pub held_by: u64,
    /// By primary mover: the epoch in which it stored a record, as far as the responsible shard may
    /// count it; 0 where it may not. Those excluded count until that shard has entered the epoch.
    pub counted: Vec<u32>,
    /// Bit m: primary mover m, which was not excluded since, was told that its number is void.
    pub void_known: u64,
    /// As many movers as should have held it at once.
    pub safe: bool,
    /// Index of the poller that its host sent it to.
    pub path: usize,
    /// Its time stamp, once it was taken.
    pub time: TimeStamp,
    /// No update that was acknowledged when it was issued was taken before, by their stamps.
    pub told_ns: u64,
    /// By block, where that is not the update's own: what it stands for ([`Base::Settled`]).
    pub settled: BTreeMap<u64, u64>,
    /// Blocks of it that a base write which failed may have overwritten before they were read back: what they hold
    /// is unknown.
    pub unsure: BTreeSet<u64>,
}

impl HostWrite {
    /// How many movers hold it as far as the responsible shard may know.
    pub(super) fn copies_counted(&self) -> u32 {
        self.counted.iter().filter(|epoch| **epoch != 0).count() as u32
    }

    /// The value that block `lba` of its extent has once written, or that it stands for.
    #[must_use]
    pub fn value_at(&self, id: WriteId, lba: u64) -> u64 {
        let settled = self.settled.get(&lba).copied();
        settled.unwrap_or_else(|| self.own_value_at(id, lba))
    }

    /// The value that its host gave to block `lba` of its extent. Different for every block of every write
    /// with a payload, zero for those without.
    #[must_use]
    pub fn own_value_at(&self, id: WriteId, lba: u64) -> u64 {
        match self.kind {
            UpdateKind::Write => (u64::from(id) + 1) << 8 | (lba - self.extent.lba),
            UpdateKind::WriteZeroes | UpdateKind::Deallocate => 0,
        }
    }
}

/// The truth about one volume pair.
#[derive(Debug)]
pub struct VolumeTruth {
    /// Index of its secondary shard among all shards.
    pub target: usize,
    /// The update of each number, from 1.
    pub by_seq: Vec<WriteId>,
    /// For each of them, bit m: primary mover m, which was not excluded since, or a mover of the secondary
    /// site ([`SECONDARY`]) has heard of the number.
    pub heard: Vec<u128>,
    /// Per block: the number submitted to the base last.
    pub base_seq: Vec<u64>,
    /// Per block: a base write failed there and none has succeeded since.
    pub unknown: Vec<bool>,
    /// Updates in flight to the base.
    pub at_base: Vec<WriteId>,
    /// Numbers up to this one are in the cut that the secondary could fail over to.
    pub cut_last: usize,
    /// Per block: the number that the cut shows.
    pub cut_seq: Vec<u64>,
    /// Numbers up to this one are in the set that was applied last.
    pub applied_last: usize,
    /// Per block: the number that was applied last.
    pub applied_seq: Vec<u64>,
    /// Per block: the value that belongs to it.
    pub applied_value: Vec<u64>,
}

impl VolumeTruth {
    fn new(target: usize, blocks: usize) -> Self {
        Self {
            target,
            by_seq: Vec::new(),
            heard: Vec::new(),
            base_seq: vec![0; blocks],
            unknown: vec![false; blocks],
            at_base: Vec::new(),
            cut_last: 0,
            cut_seq: vec![0; blocks],
            applied_last: 0,
            applied_seq: vec![0; blocks],
            applied_value: vec![0; blocks],
        }
    }
}

/// The observer.
#[derive(Debug)]
pub struct Observer {
    pub(super) copies: u32,
    pub(super) tick: u64,
    /// Host updates by id.
    pub writes: Vec<HostWrite>,
    /// The volumes by index.
    pub volumes: Vec<VolumeTruth>,
    /// The open set of every primary shard, by index among all shards.
    pub(super) open: Vec<SetId>,
    /// The latest epoch of the primary site.
    pub(super) epoch: Epoch,
    /// Mirror copies are descriptions (G12).
    pub(super) described: bool,
    /// The sets with a commit of their own.
    pub(super) commits: BTreeSet<SetId>,
    /// Primary movers.
    pub(super) movers: usize,
    /// The first epoch in which the group may have lost updates.
    pub(super) lost: Option<Epoch>,
    /// What was numbered from then on: it is in no set.
    /// By shard, volume and number there.
    pub(super) untracked: BTreeMap<(ShardId, VolumeId, Seq), WriteId>,
    /// Bit m: primary mover m was excluded and has not come back.
    pub(super) excluded: u128,
    /// Per volume: the mover that took it over last; what others number is of no importance.
    pub(super) taken_by: Vec<Option<u16>>,
    /// By volume: the epoch in which it was last taken over from a mover that failed.
    pub(super) taken_in: Vec<Epoch>,
    /// Primary shards whose mover was excluded: what they believe to be open is of no importance.
    pub(super) left: Vec<bool>,
    /// The newest set of which anything is visible.
    pub(super) visible_set: SetId,
    /// Updates in order of becoming visible.
    pub(super) visible: Vec<WriteId>,
    /// So many of `visible` are known to be in the cut.
    pub(super) visible_checked: usize,
    /// The newest issue tick of an update in the cut.
    pub(super) cut_issued: u64,
    /// The last set with a durable commit.
    pub committed: SetId,
    /// Per shard: the last set that was ever verified on its volumes' durable media.
    pub(super) applied: Vec<SetId>,
    /// Per shard: the last set in its journal that redo does not repeat, as of its last crash;
    /// and the set that `applied_value` of its volumes shows.
    pub(super) redo: Vec<(SetId, SetId)>,
    /// Updates whose base write failed and of which no report was seen.
    pub(super) unreported_voids: Vec<(usize, Seq)>,
    /// By primary mover: what it stamped last.
    pub(super) last_stamps: Vec<LastStamp>,
    /// The latest of the earliest moments at which acknowledged updates can have been taken, by their stamps.
    pub(super) told_ns: u64,
}

impl Observer {
    /// An observer of volumes with these secondary shards, of `blocks` blocks each.
    #[must_use]
    pub fn new(
        copies: u32,
        shards: usize,
        primaries: usize,
        targets: &[usize],
        blocks: usize,
    ) -> Self {
        Self {
            copies,
            tick: 0,
            writes: Vec::new(),
            volumes: targets.iter().map(|target| VolumeTruth::new(*target, blocks)).collect(),
            open: vec![SetId(0); primaries],
            epoch: EPOCH,
            described: false,
            commits: BTreeSet::new(),
            movers: primaries,
            lost: None,
            untracked: BTreeMap::new(),
            excluded: 0,
            taken_by: vec![None; targets.len()],
            taken_in: vec![Epoch(0); targets.len()],
            left: vec![false; primaries],
            visible_set: SetId(0),
            visible: Vec::new(),
            visible_checked: 0,
            cut_issued: 0,
            committed: SetId(0),
            applied: vec![SetId(0); shards],
            redo: vec![(SetId(0), SetId(0)); shards],
            unreported_voids: Vec::new(),
            last_stamps: vec![LastStamp::default(); primaries],
            told_ns: 0,
        }
    }

    /// The same with mirror copies that are descriptions, or not.
    #[must_use]
    pub fn with_descriptions(self, described: bool) -> Self {
        Self { described, ..self }
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// A host issues an update.
    pub fn issued(&mut self, volume: usize, kind: UpdateKind, extent: Extent) -> WriteId {
        let issued = self.tick();
        self.writes.push(HostWrite {
            volume,
            kind,
            extent,
            issued,
            visible: NEVER,
            done: NEVER,
            acknowledged: false,
            floor: self.visible_set,
            seq: Seq(0),
            set: SetId(0),
            base: Base::Waiting,
            completed: false,
            held_by: 0,
            counted: vec![0; self.movers],
            void_known: 0,
            safe: false,
            path: usize::MAX,
            time: TimeStamp::NONE,
            told_ns: self.told_ns,
            settled: BTreeMap::new(),
            unsure: BTreeSet::new(),
        });
        self.writes.len() as WriteId - 1
    }

    /// The responsible shard numbered an update.
    ///
    /// # Errors
    /// Invariants 3 and 5.
    pub fn numbered(&mut self, id: WriteId, info: &UpdateInfo) -> Verdict {
        if self.is_untracked(info.epoch) {
            self.number_untracked(info.owner, id, info);
            return Ok(());
        }
        let write = &mut self.writes[id as usize];
        let volume = &mut self.volumes[write.volume];
        let next = Seq(volume.by_seq.len() as u64 + 1);
        ensure!(3, write.seq == Seq(0), "write {id} was numbered twice");
        ensure!(3, info.seq == next, "{} of {} follows {}", info.seq, info.volume, next.0 - 1);
        ensure!(
            5,
            info.set >= write.floor,
            "write {id} is in {}, but {} was visible when it was issued",
            info.set,
            write.floor
        );
        // Lost numbers before it are recorded with it.
        for id in volume.by_seq.iter().rev() {
            let lost = &mut self.writes[*id as usize];
            if lost.set != UNRECORDED {
                break;
            }
            lost.set = info.set;
        }
        let before = volume.by_seq.last().map_or(SetId(0), |w| self.writes[*w as usize].set);
        ensure!(5, info.set >= before, "{} of {} goes back to {}", info.seq, info.volume, info.set);
        volume.by_seq.push(id);
        volume.heard.push(0);
        let write = &mut self.writes[id as usize];
        write.seq = info.seq;
        write.set = info.set;
        Ok(())
    }

    /// The update of a number, if it was given out.
    #[must_use]
    pub fn find(&self, volume: usize, seq: Seq) -> Option<WriteId> {
        self.volumes.get(volume)?.by_seq.get(seq.0.checked_sub(1)? as usize).copied()
    }

    /// A primary mover stored a record, its own or a copy. What excluded movers say to one another before
    /// they know is of no importance.
    ///
    /// # Errors
    /// Invariant 3: a record whose number belongs to another update.
    pub fn stored(&mut self, mover: u16, info: &UpdateInfo) -> Verdict {
        if self.is_untracked(info.epoch) {
            return Ok(());
        }
        let found = self.find(info.volume.0 as usize, info.seq);
        let same = found.is_some_and(|id| self.describes(id, info));
        if !same && self.excluded & 1 << mover != 0 {
            return Ok(());
        }
        ensure!(3, same, "{} of {} was given to two updates", info.seq, info.volume);
        if let Some(id) = found {
            let write = &mut self.writes[id as usize];
            if self.excluded & 1 << mover == 0 {
                write.held_by |= 1 << mover;
            }
            write.counted[usize::from(mover)] = self.epoch.0;
            write.safe |= write.copies_counted() >= self.copies;
        }
        Ok(())
    }

    /// Whether a record's header says what is known of the update.
    pub(super) fn describes(&self, id: WriteId, info: &UpdateInfo) -> bool {
        let write = &self.writes[id as usize];
        let time = TimeStamp { time_ns: info.time_ns, error_ns: info.time_error_ns };
        (write.kind, write.extent, write.seq, write.set, write.time)
            == (info.kind, info.extent, info.seq, info.set, time)
    }

    /// A primary mover dropped a record.
    ///
    /// # Errors
    /// Invariant 8.
    pub fn freed(&mut self, mover: u16, info: &UpdateInfo) -> Verdict {
        let Some(id) = self.find(info.volume.0 as usize, info.seq) else { return Ok(()) };
        let write = &mut self.writes[id as usize];
        write.held_by &= !(1 << mover);
        ensure!(
            8,
            write.set <= self.committed || write.base.is_void() || self.lost.is_some(),
            "m{mover} dropped {} of {} in {}, the secondary has committed {}",
            info.seq,
            info.volume,
            write.set,
            self.committed
        );
        Ok(())
    }

    /// A primary shard switched to a set.
    pub fn opened(&mut self, shard: usize, set: SetId) {
        if self.left[shard] {
            return;
        }
        self.open[shard] = set;
    }

    /// The newest set that any primary shard has open.
    #[must_use]
    pub fn newest_open(&self) -> SetId {
        let up = self.open.iter().copied().filter(|open| *open != SetId(u64::MAX));
        up.max().unwrap_or(SetId(0))
    }

    pub(super) fn ensure_safe(&self, invariant: u8, id: WriteId, what: &str) -> Verdict {
        if self.lost.is_some() {
            // A group that has lost updates has no sets to form.
            return Ok(());
        }
        let write = &self.writes[id as usize];
        let held = write.held_by.count_ones();
        ensure!(
            invariant,
            write.safe,
            "write {id} ({} of v{}) {what} with {held} of {} copies",
            write.seq,
            write.volume,
            self.copies
        );
        let behind = self.open.iter().position(|open| *open < write.set);
        ensure!(
            5,
            behind.is_none(),
            "write {id} of {} {what}, primary shard {} has not switched yet",
            write.set,
            behind.unwrap_or(0)
        );
        Ok(())
    }

    pub(super) fn seen(&mut self, id: WriteId) {
        let tick = self.tick();
        let write = &mut self.writes[id as usize];
        if write.visible == NEVER {
            write.visible = tick;
            self.visible_set = self.visible_set.max(write.set);
            self.visible.push(id);
        }
    }

    /// The update that a base write without payload carries out: the oldest waiting one of this
    /// shape. Overlapping ones go in order, so the oldest it is.
    #[must_use]
    pub fn waiting_at_base(
        &self,
        volume: usize,
        kind: UpdateKind,
        extent: Extent,
    ) -> Option<WriteId> {
        self.volumes[volume].by_seq.iter().copied().find(|id| {
            let write = &self.writes[*id as usize];
            write.base == Base::Waiting && write.kind == kind && write.extent == extent
        })
    }

    /// An update's base write was submitted.
    ///
    /// # Errors
    /// Invariants 2, 3 and 5.
    pub fn base_submitted(&mut self, id: WriteId) -> Verdict {
        let write = &self.writes[id as usize];
        let lost = self.lost.is_some();
        ensure!(3, lost || write.base == Base::Waiting, "write {id} goes to the base twice");
        self.ensure_safe(2, id, "goes to the base")?;
        let (extent, seq) = (write.extent, write.seq);
        let volume = &self.volumes[write.volume];
        for other in &volume.at_base {
            let other = &self.writes[*other as usize];
            ensure!(
                3,
                !other.extent.overlaps(extent),
                "{seq} and {} of v{} overlap and are at the base together",
                other.seq,
                write.volume
            );
        }
        if lost {
            self.submitted_with_losses(id);
            return Ok(());
        }
        let newest = blocks(extent).map(|b| volume.base_seq[b]).max().unwrap_or(0);
        ensure!(
            3,
            newest < seq.0,
            "{seq} of v{} goes to the base after #{newest}, which overlaps it",
            write.volume
        );
        let index = write.volume;
        let volume = &mut self.volumes[index];
        volume.at_base.push(id);
        for block in blocks(extent) {
            volume.base_seq[block] = seq.0;
        }
        self.writes[id as usize].base = Base::InFlight;
        self.seen(id);
        Ok(())
    }

    /// The medium ended an update's base write, which `mover` had sent. What fails at a mover when another has
    /// taken the volume over is brought to the base by that one.
    pub fn base_ended(&mut self, id: WriteId, mover: u16, ok: bool) {
        self.tick();
        let past = self.is_of_the_past(self.writes[id as usize].volume, mover);
        let write = &mut self.writes[id as usize];
        write.base = match (ok, past) {
            (true, _) => Base::Done,
            (false, false) => Base::Failed,
            (false, true) => Base::Waiting,
        };
        let volume = &mut self.volumes[write.volume];
        volume.at_base.retain(|other| *other != id);
        for block in blocks(write.extent) {
            volume.unknown[block] = !ok;
        }
        if !ok && !past && write.seq != UNTRACKED {
            self.unreported_voids.push((write.volume, write.seq));
        }
    }

    /// A number was reported void.
    ///
    /// # Errors
    /// Invariant 3: its base write did not fail.
    pub fn void_reported(&mut self, volume: usize, mover: u16, seq: Seq) -> Verdict {
        if let Some(id) = self.find(volume, seq)
            && self.excluded & 1 << mover == 0
        {
            // Who found it may hand the volume over, and live when the next owner falls.
            self.writes[id as usize].void_known |= 1 << mover;
        }
        let before = self.unreported_voids.len();
        if self.lost.is_some() {
            return Ok(());
        }
        self.unreported_voids.retain(|void| *void != (volume, seq));
        ensure!(
            3,
            self.unreported_voids.len() < before,
            "{seq} of v{volume} was called void, but its base write did not fail"
        );
        Ok(())
    }

    /// The host was told the outcome of an update.
    ///
    /// # Errors
    /// Invariant 1.
    pub fn completed(&mut self, id: WriteId, status: NvmeStatus) -> Verdict {
        let write = &self.writes[id as usize];
        ensure!(1, !write.completed, "write {id} was completed twice");
        ensure!(1, write.seq != Seq(0), "write {id} was completed without a number");
        if status.is_ok() {
            ensure!(
                1,
                write.base == Base::Done,
                "write {id} was acknowledged, at the base it is {:?}",
                write.base
            );
            // Once the secondary has committed the set the copies may be gone.
            if write.set > self.committed {
                self.ensure_safe(1, id, "was acknowledged")?;
            }
            self.seen(id);
            self.told_time(id);
        } else {
            ensure!(
                10,
                write.base == Base::Failed || self.lost.is_some(),
                "write {id} was failed ({status:?}) although its base write did not fail"
            );
        }
        let tick = self.tick();
        let write = &mut self.writes[id as usize];
        (write.completed, write.done, write.acknowledged) = (true, tick, status.is_ok());
        Ok(())
    }

    /// The coordinator has put the manifest of a set together: numbers and voids must be those that there
    /// were, whoever found them.
    ///
    /// # Errors
    /// Invariants 3 and 6.
    pub fn formed(&self, epoch: Epoch, set: SetId, facts: &[VolumeFacts]) -> Verdict {
        ensure!(10, !self.is_untracked(epoch), "{set} is formed in {epoch}, updates are lost");
        for (index, volume) in self.volumes.iter().enumerate() {
            let ids = self.range(volume, set);
            let write = |id: &WriteId| &self.writes[*id as usize];
            let voids = ids.iter().map(write).filter(|write| write.base.is_void());
            let voids: Vec<Seq> = voids.map(|write| write.seq).collect();
            let span = ids.first().zip(ids.last()).map(|(a, b)| (write(a).seq, write(b).seq));
            let fact = facts.iter().find(|fact| fact.volume.0 as usize == index);
            ensure!(
                6,
                fact.map(|fact| (fact.first, fact.last)) == span,
                "the manifest of {set} has {fact:?} of v{index}, not {span:?}"
            );
            ensure!(
                3,
                fact.is_none_or(|fact| fact.voids == voids),
                "the manifest of {set} has {fact:?} of v{index}, void are {voids:?}"
            );
        }
        Ok(())
    }

    /// The manifest of a set is sent to the secondary: every update of it must have its fate, and
    /// those that are not void their copies.
    ///
    /// # Errors
    /// Invariant 6.
    pub fn manifest_sent(&self, set: SetId) -> Verdict {
        for (index, volume) in self.volumes.iter().enumerate() {
            for id in self.range(volume, set) {
                let write = &self.writes[*id as usize];
                ensure!(
                    6,
                    write.base.is_certain() || write.base.is_void(),
                    "the manifest of {set} left while {} of v{index} is {:?} at the base",
                    write.seq,
                    write.base
                );
                ensure!(
                    6,
                    write.base.is_void() || set <= self.committed || write.safe,
                    "the manifest of {set} left while {} of v{index} has {} copies",
                    write.seq,
                    write.held_by.count_ones()
                );
            }
        }
        Ok(())
    }

    /// The updates of a volume in a set.
    pub(super) fn range<'a>(&self, volume: &'a VolumeTruth, set: SetId) -> &'a [WriteId] {
        let set_of = |id: &WriteId| self.writes[*id as usize].set;
        let first = volume.by_seq.partition_point(|id| set_of(id) < set);
        let last = volume.by_seq.partition_point(|id| set_of(id) <= set);
        &volume.by_seq[first..last]
    }
}

/// The blocks of an extent as indices.
pub(super) fn blocks(extent: Extent) -> std::ops::Range<usize> {
    extent.lba as usize..extent.end() as usize
}
