//! The observer's checks of the secondary site: the consistent cut, and applying as a whole.
//!
//! The cut is checked at every instant at which a failover would show another one: when a commit
//! is appended. It is decided from the records in the secondary's journals and from what
//! hosts saw, without regard to set numbers: if the cut shows an update, it must show every
//! update that anybody could know of before that one was issued. Each update has to be looked
//! once, since what a cut shows only grows.

use super::observer::{Observer, UNRECORDED, Verdict, WriteId, blocks, ensure};
use crate::proto::types::{Seq, SetId};
use crate::wire::update::UpdateInfo;

/// What the observer finds when it looks for a record in a shard's journal.
pub trait Journals {
    /// The record of `seq` of the volume with this index, if it is durable in the journal of the
    /// shard with this index: its header, and the block values of its payload.
    fn durable(&self, shard: usize, volume: usize, seq: Seq) -> Option<(UpdateInfo, Vec<u64>)>;
}

impl Observer {
    /// The secondary coordinator appends a commit of all sets up to `set` to its journal: from now
    /// on a failover may show them.
    ///
    /// # Errors
    /// Invariants 5, 6 and 7.
    pub fn may_commit(&mut self, set: SetId, journals: &impl Journals) -> Verdict {
        self.tick();
        self.commits.insert(set);
        for index in 0..self.volumes.len() {
            self.extend_cut(index, set, journals)?;
        }
        while let Some(id) = self.visible.get(self.visible_checked) {
            let write = &self.writes[*id as usize];
            if write.visible >= self.cut_issued {
                break;
            }
            let volume = &self.volumes[write.volume];
            let stale = blocks(write.extent).find(|block| volume.cut_seq[*block] < write.seq.0);
            ensure!(
                5,
                stale.is_none() || write.base.is_void(),
                "the cut at {set} shows an update issued after write {id} ({} of v{}, {}) was \
                 visible, but not that write",
                write.seq,
                write.volume,
                write.set
            );
            self.visible_checked += 1;
        }
        Ok(())
    }

    fn extend_cut(&mut self, index: usize, set: SetId, journals: &impl Journals) -> Verdict {
        let volume = &self.volumes[index];
        let mut last = volume.cut_last;
        while let Some(id) = volume.by_seq.get(last).copied() {
            let write = &self.writes[id as usize];
            if write.set > set {
                break;
            }
            last += 1;
            ensure!(
                6,
                write.base.is_certain() || write.base.is_void(),
                "{set} was committed while {} of v{index} has no fate",
                write.seq
            );
            if write.base.is_void() {
                continue;
            }
            let found = journals.durable(volume.target, index, write.seq);
            ensure!(
                7,
                found.is_some(),
                "{set} was committed, {} of v{index} is not durable in the journal of shard {}",
                write.seq,
                volume.target
            );
            if let Some((info, values)) = found {
                ensure!(
                    6,
                    self.describes(id, &info) && self.carries(id, &values, set),
                    "{} of v{index} differs in the journal: {info:?}",
                    write.seq
                );
            }
        }
        let volume = &mut self.volumes[index];
        for id in &volume.by_seq[volume.cut_last..last] {
            let write = &self.writes[*id as usize];
            if write.base.is_void() {
                continue;
            }
            self.cut_issued = self.cut_issued.max(write.issued);
            for block in blocks(write.extent) {
                volume.cut_seq[block] = write.seq.0;
            }
        }
        volume.cut_last = last;
        Ok(())
    }

    /// Whether a payload's block values are those of the update; where that was read back from the base, also
    /// others in blocks that a later update up to `set` is applied to after it (G12).
    fn carries(&self, id: WriteId, values: &[u64], set: SetId) -> bool {
        let write = &self.writes[id as usize];
        let later = || {
            let all = &self.volumes[write.volume].by_seq[write.seq.0 as usize..];
            let all = all.iter().map(|id| &self.writes[*id as usize]);
            all.take_while(|other| other.set <= set).filter(|other| !other.base.is_void())
        };
        values.iter().zip(write.extent.lba..).all(|(value, lba)| {
            *value == write.value_at(id, lba)
                || write.unsure.contains(&lba)
                || self.described
                    && later().any(|other| blocks(other.extent).contains(&(lba as usize)))
        })
    }

    /// The secondary coordinator says that its volumes stand at the boundary of a set.
    ///
    /// # Errors
    /// Invariant 7: the set is only a part of what one commit covers.
    pub fn paused(&self, at: SetId) -> Verdict {
        let fine = at == SetId(0) || self.commits.contains(&at);
        ensure!(7, fine, "apply pauses at {at}, which has no commit of its own");
        Ok(())
    }

    /// A secondary shard writes to a target volume. `seq` is the number of the record whose
    /// payload it writes; none for kinds without payload.
    ///
    /// # Errors
    /// Invariant 7: the set is not committed, or another shard has not applied the one before.
    pub fn target_write(&self, volume: usize, seq: Seq) -> Verdict {
        let Some(id) = self.find(volume, seq) else {
            ensure!(7, false, "{seq} of v{volume} is applied, but was never given out");
            return Ok(());
        };
        let write = &self.writes[id as usize];
        ensure!(3, !write.base.is_void(), "{seq} of v{volume} is void and is applied");
        let mark = self.redo[self.volumes[volume].target].0;
        ensure!(7, write.set > mark, "{seq} of v{volume} is applied again after the mark {mark}");
        self.may_apply(volume, write.set)
    }

    /// As [`Self::target_write`] for kinds without payload, of which the number is not seen: some
    /// update of this shape must be due.
    ///
    /// # Errors
    /// Invariant 7.
    pub fn target_zero(&self, volume: usize, extent: crate::proto::types::Extent) -> Verdict {
        let truth = &self.volumes[volume];
        let next = self.redo[truth.target].1.next();
        let due = self.range(truth, next).iter().any(|id| {
            let write = &self.writes[*id as usize];
            !write.base.is_void()
                && write.value_at(*id, write.extent.lba) == 0
                && write.extent.lba <= extent.lba
                && extent.end() <= write.extent.end()
        });
        ensure!(7, due, "zeroes are applied to v{volume} at {extent:?}, none are due in {next}");
        self.may_apply(volume, next)
    }

    fn may_apply(&self, volume: usize, set: SetId) -> Verdict {
        ensure!(
            7,
            set <= self.committed,
            "{set} is applied to v{volume}, {} is committed",
            self.committed
        );
        for (shard, applied) in self.applied.iter().enumerate().skip(self.open.len()) {
            ensure!(
                7,
                applied.next() >= set,
                "{set} is applied to v{volume} while shard {shard} is at {applied}"
            );
        }
        Ok(())
    }

    /// A secondary shard says that it has applied all sets up to `set`: its volumes' durable media
    /// (`media`, by volume index) must be at exactly that boundary.
    ///
    /// # Errors
    /// Invariant 7.
    pub fn applied<'a>(
        &mut self,
        shard: usize,
        set: SetId,
        media: impl Fn(usize) -> &'a [u64],
    ) -> Verdict {
        self.tick();
        ensure!(7, set <= self.committed, "shard {shard} applied {set} before it was committed");
        if set <= self.redo[shard].1 {
            return Ok(());
        }
        self.redo[shard].1 = set;
        self.applied[shard] = self.applied[shard].max(set);
        for index in 0..self.volumes.len() {
            if self.volumes[index].target != shard {
                continue;
            }
            self.advance_applied(index, set);
            if !self.commits.contains(&set) {
                // A part of the set that the next commit covers: nobody is shown it.
                continue;
            }
            let volume = &self.volumes[index];
            let media = media(index);
            let wrong = (0..media.len()).find(|block| {
                media[*block] != volume.applied_value[*block] && !self.is_unsure(index, *block)
            });
            ensure!(
                7,
                wrong.is_none(),
                "v{index} is not at the boundary of {set}: block {} holds {}, not {}",
                wrong.unwrap_or(0),
                self.name_value(media[wrong.unwrap_or(0)]),
                self.name_value(volume.applied_value[wrong.unwrap_or(0)])
            );
        }
        Ok(())
    }

    /// Whether it is unknown what the update holds that was applied last to a block.
    fn is_unsure(&self, index: usize, block: usize) -> bool {
        let last = self.find(index, Seq(self.volumes[index].applied_seq[block]));
        last.is_some_and(|id| self.writes[id as usize].unsure.contains(&(block as u64)))
    }

    fn advance_applied(&mut self, index: usize, set: SetId) {
        let volume = &mut self.volumes[index];
        while let Some(id) = volume.by_seq.get(volume.applied_last).copied() {
            let write = &self.writes[id as usize];
            if write.set > set {
                break;
            }
            volume.applied_last += 1;
            if write.base.is_void() {
                continue;
            }
            for block in blocks(write.extent) {
                volume.applied_seq[block] = write.seq.0;
                volume.applied_value[block] = write.value_at(id, block as u64);
            }
        }
    }

    /// A shard crashed; its journal still says that all sets up to `mark` are applied. Redo repeats
    /// what comes after, even what was once complete.
    pub fn crashed(&mut self, shard: usize, mark: SetId) {
        self.redo[shard] = (mark, mark);
        for index in 0..self.volumes.len() {
            let volume = &mut self.volumes[index];
            if volume.target == shard {
                volume.applied_last = 0;
                volume.applied_seq.fill(0);
                volume.applied_value.fill(0);
                self.advance_applied(index, mark);
            }
        }
    }

    /// After a crash of its shard, a volume's medium must hold, block by block, the applied
    /// boundary or something newer that is committed: then redo ends at a boundary.
    ///
    /// # Errors
    /// Invariant 7.
    pub fn after_crash(&self, index: usize, media: &[u64]) -> Verdict {
        let volume = &self.volumes[index];
        for (block, value) in media.iter().enumerate() {
            if *value == volume.applied_value[block] || self.is_unsure(index, block) {
                continue;
            }
            let explained = volume.by_seq[volume.applied_last..].iter().any(|id| {
                let write = &self.writes[*id as usize];
                write.set <= self.committed
                    && blocks(write.extent).contains(&block)
                    && (write.value_at(*id, block as u64) == *value
                        || write.unsure.contains(&(block as u64)))
            });
            ensure!(
                7,
                explained,
                "after a crash block {block} of v{index} holds {}, the applied boundary {} has {}",
                self.name_value(*value),
                self.redo[volume.target].0,
                self.name_value(volume.applied_value[block])
            );
        }
        Ok(())
    }

    /// At the end of a healed history: everything visible is in the cut, both sites are equal
    /// wherever the primary's contents are known, and nothing was kept silent.
    ///
    /// # Errors
    /// Liveness, invariant 10.
    pub fn finished<'a>(
        &self,
        base: impl Fn(usize) -> &'a [u64],
        target: impl Fn(usize) -> &'a [u64],
    ) -> Verdict {
        for (index, volume) in self.volumes.iter().enumerate() {
            let recorded = |id: &WriteId| self.writes[*id as usize].set != UNRECORDED;
            ensure!(
                0,
                volume.applied_last == volume.by_seq.partition_point(recorded),
                "v{index} has {} numbers, the secondary applied {}",
                volume.by_seq.len(),
                volume.applied_last
            );
            for (block, (base, target)) in base(index).iter().zip(target(index)).enumerate() {
                ensure!(
                    0,
                    base == target || volume.unknown[block],
                    "block {block} of v{index} is {} at the primary and {} at the secondary",
                    self.name_value(*base),
                    self.name_value(*target)
                );
            }
        }
        ensure!(
            10,
            self.unreported_voids.is_empty(),
            "base writes failed and nobody was told: {:?}",
            self.unreported_voids
        );
        Ok(())
    }

    /// A block's value as a reader of the trace knows it.
    #[must_use]
    pub fn name_value(&self, value: u64) -> String {
        let id = (value >> 8).wrapping_sub(1);
        match self.writes.get(id as usize) {
            None if value == 0 => "zeroes".to_owned(),
            None => format!("garbage ({value:#x})"),
            Some(w) => format!("write {id} ({} of v{}, {})", w.seq, w.volume, w.set),
        }
    }
}
