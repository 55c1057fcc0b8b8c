//! The observer's checks of failures and take-overs at the primary site (invariants 1 to 4, F5):
//! nothing acknowledged is lost, what nobody has is void, and a base that was taken over shows the
//! newest version of each block.

use super::observer::{Base, HostWrite, NEVER, Observer, Verdict, WriteId, blocks, ensure};
use crate::proto::membership::SiteRecord;
use crate::proto::types::{Epoch, Extent, MoverId, Seq, SetId};

impl Observer {
    /// So many movers hold an update from now on before it counts as safe. More than before only
    /// when all members know.
    pub fn copies_needed(&mut self, copies: u32, all_know: bool) {
        if copies > self.copies && !all_know {
            return;
        }
        self.copies = copies;
        for write in &mut self.writes {
            write.safe |= write.copies_counted() >= copies;
        }
    }

    /// A primary shard is gone with its memory.
    pub fn primary_down(&mut self, shard: usize) {
        self.open[shard] = SetId(u64::MAX);
    }

    /// The updates that hosts had sent to a poller that is gone: no answer will come.
    pub fn abandon(&mut self, shard: usize) -> Vec<WriteId> {
        let mut left = Vec::new();
        for (id, write) in self.writes.iter_mut().enumerate() {
            if write.path == shard && !write.completed {
                write.completed = true;
                left.push(id as WriteId);
            }
        }
        left
    }

    /// A mover was excluded, or takes part again with its memory lost.
    pub fn member(&mut self, mover: u16, shards: std::ops::Range<usize>, takes_part: bool) {
        if takes_part {
            self.excluded &= !(1 << mover);
        }
        for shard in shards {
            self.left[shard] = !takes_part;
            self.open[shard] = SetId(u64::MAX);
        }
    }

    /// A mover was excluded: what it holds does not count any more.
    pub fn excluded(&mut self, mover: u16) {
        self.excluded |= 1 << mover;
        for write in &mut self.writes {
            write.held_by &= !(1 << mover);
        }
    }

    /// The store has a new epoch.
    pub fn epoch_begins(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// The shard responsible for a volume has entered the epoch of `record`: what movers stored that
    /// have left since does not count any more, also if they are back.
    pub fn owner_entered(&mut self, volume: usize, record: &SiteRecord) {
        for write in self.writes.iter_mut().filter(|write| write.volume == volume) {
            for (mover, stored) in write.counted.iter_mut().enumerate() {
                if record.left_since(MoverId(mover as u16), Epoch(*stored)) {
                    *stored = 0;
                }
            }
        }
    }

    /// Whether a number that `mover` gives out for a volume is heard by nobody: the volume was taken
    /// over by another.
    #[must_use]
    pub fn is_of_the_past(&self, volume: usize, mover: u16) -> bool {
        self.taken_by[volume].is_some_and(|owner| owner != mover)
    }

    /// A shard has taken a volume over in the epoch of `record`: it goes on with `next`. Updates that no member holds are
    /// gone; their numbers are void, or are given out again.
    ///
    /// # Errors
    /// Invariant 1: an update that somebody knew of is lost.
    pub fn taken_over(
        &mut self,
        index: usize,
        mover: u16,
        next: Seq,
        record: &SiteRecord,
    ) -> Verdict {
        self.tick();
        self.owner_entered(index, record);
        self.taken_by[index] = Some(mover);
        let committed = self.committed;
        for at in 0..self.volumes[index].by_seq.len() {
            let id = self.volumes[index].by_seq[at];
            let write = &self.writes[id as usize];
            if write.base == Base::Failed || write.set <= committed {
                continue;
            }
            let seq = Seq(at as u64 + 1);
            ensure!(
                1,
                write.held_by == 0 || seq < next,
                "{seq} of v{index} is held by {:#b}, the shard that takes over goes on with {next}",
                write.held_by
            );
            if write.held_by != 0 {
                continue;
            }
            ensure!(
                1,
                write.visible == NEVER,
                "write {id} ({seq} of v{index}, {}) was visible and is lost",
                write.set
            );
            let ghost = HostWrite { base: Base::Failed, completed: true, ..write.clone() };
            let write = &mut self.writes[id as usize];
            write.seq = Seq(0);
            write.set = SetId(0);
            write.base = Base::Waiting;
            write.safe = false;
            self.writes.push(ghost);
            self.volumes[index].by_seq[at] = self.writes.len() as WriteId - 1;
        }
        let last = self.volumes[index].by_seq.len() as u64;
        ensure!(3, next.0 <= last + 1, "v{index} goes on with {next}, the last number was {last}");
        for id in self.volumes[index].by_seq.split_off(next.0 as usize - 1) {
            let write = &self.writes[id as usize];
            ensure!(
                3,
                write.base == Base::Failed,
                "{} of v{index} is used, and is given out again",
                write.seq
            );
        }
        Ok(())
    }

    /// A base is fenced: nothing that was under way is any more.
    pub fn fenced(&mut self, index: usize) {
        self.tick();
        self.volumes[index].at_base.clear();
    }

    /// A part of a recovered update goes to the base.
    ///
    /// # Errors
    /// Invariants 2, 3 and 5.
    pub fn restore_submitted(&mut self, id: WriteId, extent: Extent) -> Verdict {
        self.ensure_safe(2, id, "is restored to the base")?;
        let write = &self.writes[id as usize];
        let (index, seq) = (write.volume, write.seq);
        let volume = &mut self.volumes[index];
        for block in blocks(extent) {
            ensure!(
                2,
                volume.base_seq[block] <= seq.0,
                "block {block} of v{index} goes back from #{} to {seq}",
                volume.base_seq[block]
            );
            volume.base_seq[block] = seq.0;
        }
        self.seen(id);
        Ok(())
    }

    /// A volume that was taken over is open again: its base must show the newest version of every
    /// block.
    ///
    /// # Errors
    /// Invariant 2.
    pub fn restored(&mut self, index: usize, media: &[u64]) -> Verdict {
        self.tick();
        let mut newest: Vec<Option<WriteId>> = vec![None; media.len()];
        for at in 0..self.volumes[index].by_seq.len() {
            let id = self.volumes[index].by_seq[at];
            let write = &mut self.writes[id as usize];
            if write.base == Base::Failed {
                continue;
            }
            write.base = Base::Done;
            for block in blocks(write.extent) {
                newest[block] = Some(id);
            }
            self.seen(id);
        }
        for (block, id) in newest.iter().enumerate() {
            let volume = &mut self.volumes[index];
            let Some(id) = id else { continue };
            let write = &self.writes[*id as usize];
            volume.base_seq[block] = write.seq.0;
            ensure!(
                2,
                volume.unknown[block] || media[block] == write.value_at(*id, block as u64),
                "v{index} is opened after a take-over, block {block} holds {}, not {}",
                self.name_value(media[block]),
                self.name_value(write.value_at(*id, block as u64))
            );
        }
        Ok(())
    }
}
