//! Writes a set to the volumes, wholly, before the next (invariant 7).
//!
//! Updates go out in the order of their numbers, all volumes in turn; overlapping ones are never
//! in flight together (invariant 3). The set counts as a whole and is written again as a whole
//! after a crash, so an update that still waits when a later one of its set covers it is not
//! written: a block that the set writes a thousand times costs a few writes. After the last write
//! every touched volume is flushed, then the applied mark is made durable, and only then is the
//! set reported applied: so a shard never falls back behind what it has reported, and after a
//! crash at most one set is in doubt.
//!
//! A write that fails is tried again for ever, with growing pauses; a failed flush means that
//! writes may be lost, so the whole set is written again.

use super::shard::SecondaryShard;
use super::store::{NIL, Tag, halves};
use crate::proto::command::{Command, PayloadAt, Report, Token};
use crate::proto::limits::{APPLY_RETRY_NS_MAX, APPLY_RETRY_NS_MIN};
use crate::proto::message::Message;
use crate::proto::ranges::{Admission, RangeOrder};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Nanos, NvmeStatus, Seq, SetId, VolumeId};
use alloc::vec;
use alloc::vec::Vec;

/// The writes of all groups of a shard.
#[derive(Clone, Debug)]
pub(super) struct Applier {
    writes: Vec<Write>,
    unused: Vec<u32>,
    order: RangeOrder,
    /// Groups take turns.
    turn: usize,
    /// Writes that wait to be tried again.
    failed: u32,
    /// Scratch: writes that a later one covers, writes that may start.
    covered: Vec<u32>,
    ready: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Write {
    /// The update; NIL: the slot is free.
    entry: u32,
    generation: u32,
    attempts: u32,
    retry_at: Nanos,
}

impl Applier {
    pub(super) fn new(depth: u32) -> Self {
        let write = Write { entry: NIL, generation: 0, attempts: 0, retry_at: Nanos::NEVER };
        Self {
            writes: vec![write; depth as usize],
            unused: (0..depth).rev().collect(),
            order: RangeOrder::with_capacity(depth as usize),
            turn: 0,
            failed: 0,
            covered: Vec::with_capacity(depth as usize),
            ready: Vec::with_capacity(depth as usize),
        }
    }
}

/// A group's set on its way to the volumes.
#[derive(Clone, Default, Debug)]
pub(super) struct Run {
    set: SetId,
    phase: Phase,
    /// What is not yet admitted, per volume.
    cursors: Vec<Cursor>,
    turn: usize,
    /// Admitted writes.
    open: u32,
    /// Tells this run's flushes from those of an earlier one.
    generation: u32,
    attempts: u32,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum Phase {
    #[default]
    Idle,
    Writing,
    /// Flushes under way, and whether one failed.
    Flushing {
        left: u32,
        failed: bool,
    },
    /// After a failed flush.
    Pausing {
        until: Nanos,
    },
    /// The applied mark has this turn in the journal.
    Marking {
        ordinal: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    volume: u32,
    next: u64,
    last: u64,
}

impl Run {
    pub(super) fn applying(&self) -> Option<SetId> {
        (self.phase != Phase::Idle).then_some(self.set)
    }
}

/// The pause before attempt number `attempts`, from 1: doubling between bounds.
fn backoff(attempts: u32) -> u64 {
    (APPLY_RETRY_NS_MIN << attempts.saturating_sub(1).min(20)).min(APPLY_RETRY_NS_MAX)
}

impl SecondaryShard {
    /// The coordinator wants `set` applied; everything before is applied at every shard.
    pub(super) fn handle_apply(&mut self, now: Nanos, group: usize, set: SetId) {
        self.drop_kept(now, group, set.prev());
        let state = &self.groups[group];
        if set <= state.applied {
            let applied = state.applied;
            self.send_applied(group, applied);
        } else if set == state.applied.next() && set <= state.stored {
            if state.run.phase == Phase::Idle {
                self.begin(group, set);
                self.pump(now);
            }
        } else {
            self.counters.refused_messages += 1;
        }
    }

    fn begin(&mut self, group: usize, set: SetId) {
        let state = &mut self.groups[group];
        state.run.set = set;
        state.run.attempts = 0;
        self.rewind(group);
    }

    /// Starts the run's set from its first update.
    fn rewind(&mut self, group: usize) {
        let mut cursors = core::mem::take(&mut self.groups[group].run.cursors);
        cursors.clear();
        let state = &self.groups[group];
        if let Some(manifest) = state.set(state.run.set).and_then(|s| s.manifest.as_ref()) {
            for fact in &manifest.facts {
                if let Some(volume) = self.own_volume(group, fact.volume) {
                    let volume = volume as u32;
                    cursors.push(Cursor { volume, next: fact.first.0, last: fact.last.0 });
                }
            }
        }
        let run = &mut self.groups[group].run;
        run.cursors = cursors;
        run.turn = 0;
        run.generation += 1;
        run.phase = Phase::Writing;
    }

    /// Admits writes while there is room, and moves runs on that have none left.
    fn pump(&mut self, now: Nanos) {
        let groups = self.groups.len();
        let mut idle = 0;
        while idle < groups {
            self.applier.turn = (self.applier.turn + 1) % groups;
            let group = self.applier.turn;
            if self.groups[group].run.phase != Phase::Writing {
                idle += 1;
            } else if self.applier.unused.is_empty() {
                // Full. A group whose last write is done needs no slot to move on.
                if self.groups[group].run.open == 0 && self.groups[group].run.cursors.is_empty() {
                    self.flush_volumes(group);
                }
                idle += 1;
            } else if let Some(entry) = self.next_update(group) {
                self.admit(entry);
                idle = 0;
            } else {
                if self.groups[group].run.open == 0 {
                    self.flush_volumes(group);
                }
                idle += 1;
            }
        }
        let _ = now;
    }

    /// The run's next update, volumes in turn.
    fn next_update(&mut self, group: usize) -> Option<u32> {
        let run = &mut self.groups[group].run;
        while !run.cursors.is_empty() {
            run.turn %= run.cursors.len();
            let cursor = &mut run.cursors[run.turn];
            if cursor.next > cursor.last {
                run.cursors.swap_remove(run.turn);
                continue;
            }
            let seq = Seq(cursor.next);
            cursor.next += 1;
            // Void numbers have no update here.
            if let Some(slot) = self.volumes[cursor.volume as usize].window.get(seq)
                && self.slab.at(slot).set == run.set
            {
                run.turn += 1;
                return Some(slot);
            }
        }
        None
    }

    fn admit(&mut self, entry: u32) {
        let Some(slot) = self.applier.unused.pop() else { return };
        let write = &mut self.applier.writes[slot as usize];
        (write.entry, write.attempts, write.retry_at) = (entry, 0, Nanos::NEVER);
        let update = self.slab.at(entry);
        let volume = self.volumes[update.volume as usize].config.id;
        self.groups[usize::from(update.group)].run.open += 1;
        match self.applier.order.admit(slot, volume, update.extent) {
            Admission::Ready => self.issue(slot),
            Admission::Waits => {
                let mut covered = core::mem::take(&mut self.applier.covered);
                self.applier.order.superseded_by(slot, |older| covered.push(older));
                self.counters.superseded += covered.len() as u64;
                for older in covered.drain(..) {
                    self.finish(older);
                }
                self.applier.covered = covered;
            }
        }
    }

    /// Hands the write to the volume.
    fn issue(&mut self, slot: u32) {
        let write = &self.applier.writes[slot as usize];
        let token = Tag::Write.token(write.generation, slot);
        let entry = self.slab.at_mut(write.entry);
        let payload = match (Self::has_payload(entry.kind), entry.buf, entry.position) {
            (false, _, _) => PayloadAt::None,
            (true, Some(buf), _) => {
                entry.writing = true;
                PayloadAt::Buf(buf)
            }
            (true, None, position) => {
                PayloadAt::Journal(position.expect("only journaled records are evicted"))
            }
        };
        let (kind, extent) = (entry.kind, entry.extent);
        let volume = self.volumes[entry.volume as usize].config.id;
        self.counters.writes += 1;
        self.commands.push_back(Command::Write {
            volume,
            kind,
            extent,
            fua: false,
            payload,
            token,
        });
    }

    /// The write is done, or need not be done: whatever waited for it goes on.
    fn finish(&mut self, slot: u32) {
        let write = &mut self.applier.writes[slot as usize];
        let entry = core::mem::replace(&mut write.entry, NIL);
        write.generation += 1;
        self.applier.unused.push(slot);
        let mut ready = core::mem::take(&mut self.applier.ready);
        self.applier.order.finish(slot, |slot| ready.push(slot));
        self.groups[usize::from(self.slab.at(entry).group)].run.open -= 1;
        self.free_if_idle(entry);
        for slot in ready.drain(..) {
            self.issue(slot);
        }
        self.applier.ready = ready;
    }

    /// See [`super::Secondary::handle_written`].
    pub fn handle_written(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        let (high, low) = halves(token);
        if Tag::Write.marks(token) {
            self.write_done(now, high, low, status);
        } else if Tag::VolumeFlush.marks(token) {
            self.flush_done(now, high, low, status);
        } else {
            self.counters.stale_results += 1;
        }
    }

    fn write_done(&mut self, now: Nanos, generation: u32, slot: u32, status: NvmeStatus) {
        let live = self
            .applier
            .writes
            .get_mut(slot as usize)
            .filter(|write| write.entry != NIL && write.generation & 0x00ff_ffff == generation);
        let Some(write) = live else {
            self.counters.stale_results += 1;
            return;
        };
        let entry = self.slab.at_mut(write.entry);
        entry.writing = false;
        if status.is_ok() {
            self.finish(slot);
            self.pump(now);
            return;
        }
        write.attempts = write.attempts.saturating_add(1);
        write.retry_at = now.after(backoff(write.attempts));
        self.applier.failed += 1;
        self.counters.failed_writes += 1;
        let (volume, set) = (self.volumes[entry.volume as usize].config.id, entry.set);
        self.commands.push_back(Command::Report(Report::ApplyFailed { volume, set, status }));
    }

    /// All writes of the run are done; the data must be on the medium before that is said.
    fn flush_volumes(&mut self, group: usize) {
        let state = &self.groups[group];
        let generation = state.run.generation;
        let mut left = 0;
        if let Some(manifest) = state.set(state.run.set).and_then(|s| s.manifest.as_ref())
            && !self.config.sabotage.is(Sabotage::AppliedBeforeFlush)
        {
            for fact in manifest.facts.iter().filter(|fact| fact.count() > 0) {
                if let Some(index) = self.own_volume(group, fact.volume) {
                    let token = Tag::VolumeFlush.token(generation, index as u32);
                    self.commands.push_back(Command::Flush { volume: fact.volume, token });
                    left += 1;
                }
            }
        }
        if left == 0 {
            self.mark(group);
        } else {
            self.groups[group].run.phase = Phase::Flushing { left, failed: false };
        }
    }

    fn flush_done(&mut self, now: Nanos, generation: u32, volume: u32, status: NvmeStatus) {
        let Some(volume) = self.volumes.get(volume as usize) else {
            self.counters.stale_results += 1;
            return;
        };
        let (id, group) = (volume.config.id, usize::from(volume.group));
        let run = &mut self.groups[group].run;
        let Phase::Flushing { left, failed } = run.phase else {
            self.counters.stale_results += 1;
            return;
        };
        if run.generation & 0x00ff_ffff != generation {
            self.counters.stale_results += 1;
            return;
        }
        let failed = failed || !status.is_ok();
        run.phase = Phase::Flushing { left: left - 1, failed };
        if !status.is_ok() {
            self.counters.failed_writes += 1;
            let report = Report::ApplyFailed { volume: id, set: run.set, status };
            self.commands.push_back(Command::Report(report));
        }
        if left > 1 {
            return;
        }
        if failed {
            run.attempts = run.attempts.saturating_add(1);
            run.phase = Phase::Pausing { until: now.after(backoff(run.attempts)) };
        } else {
            self.mark(group);
        }
    }

    fn mark(&mut self, group: usize) {
        let set = self.groups[group].run.set;
        let ordinal = self.append_mark(group, set);
        self.groups[group].run.phase = Phase::Marking { ordinal };
        self.flush_journal();
    }

    /// The journal is durable up to `self.durable`: is the run's set applied by that?
    pub(super) fn settle_applied(&mut self, now: Nanos, group: usize) {
        let state = &mut self.groups[group];
        let Phase::Marking { ordinal } = state.run.phase else { return };
        if ordinal > self.durable {
            return;
        }
        state.run.phase = Phase::Idle;
        let Some(done) = state.sets.pop_front() else { return };
        state.applied = state.run.set;
        let applied = state.applied;
        for fact in done.manifest.iter().flat_map(|manifest| &manifest.facts) {
            if let Some(volume) = self.own_volume(group, fact.volume) {
                self.room.drop_applied(now, volume as u32, fact.first, fact.last);
            }
        }
        self.send_applied(group, applied);
    }

    fn send_applied(&mut self, group: usize, set: SetId) {
        let message = Message::Applied { group: self.groups[group].id, set };
        self.commands.push_back(Command::Send { to: self.config.coordinator, message });
    }

    /// See [`super::Secondary::handle_timeout`].
    pub fn handle_timeout(&mut self, now: Nanos) {
        self.housekeeping(now);
        if self.applier.failed > 0 {
            for slot in 0..self.applier.writes.len() {
                let write = &mut self.applier.writes[slot];
                if write.retry_at <= now {
                    write.retry_at = Nanos::NEVER;
                    write.generation += 1;
                    self.applier.failed -= 1;
                    self.issue(slot as u32);
                }
            }
        }
        for group in 0..self.groups.len() {
            if let Phase::Pausing { until } = self.groups[group].run.phase
                && until <= now
            {
                self.rewind(group);
                self.pump(now);
            }
        }
    }

    /// See [`super::Secondary::next_timeout`].
    #[must_use]
    pub fn next_timeout(&self) -> Nanos {
        let mut next = self.room.next_timeout();
        if self.applier.failed > 0 {
            for write in &self.applier.writes {
                next = next.min(write.retry_at);
            }
        }
        for group in &self.groups {
            if let Phase::Pausing { until } = group.run.phase {
                next = next.min(until);
            }
        }
        next
    }

    /// Writes what happens to be there of a set that nobody asked to apply; the results are stale.
    pub(super) fn sabotage_apply(&mut self, group: usize, set: SetId) {
        for volume in self.groups[group].volumes.clone() {
            let volume = volume as usize;
            for slot in self.volumes[volume].window.present() {
                let entry = self.slab.at(slot);
                if let (true, Some(buf)) = (entry.set == set, entry.buf) {
                    self.commands.push_back(Command::Write {
                        volume: self.volumes[volume].config.id,
                        kind: entry.kind,
                        extent: entry.extent,
                        fua: false,
                        payload: PayloadAt::Buf(buf),
                        token: Tag::Write.token(0, NIL),
                    });
                }
            }
        }
    }

    /// The group's volume with this id.
    pub(super) fn own_volume(&self, group: usize, id: VolumeId) -> Option<usize> {
        self.volume_index(id).filter(|index| usize::from(self.volumes[*index].group) == group)
    }
}
