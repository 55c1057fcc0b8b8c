//! The observer's checks of failures and take-overs at the primary site (invariants 1 to 4, F5):
//! nothing acknowledged is lost, what nobody has is void, and a base that was taken over shows the
//! newest version of each block.

use super::observer::{
    Base, HostWrite, NEVER, Observer, UNRECORDED, Verdict, WriteId, blocks, ensure,
};
use crate::proto::membership::SiteRecord;
use crate::proto::types::{Epoch, Extent, MoverId, Seq, SetId};
use crate::wire::update::UpdateInfo;

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
                // Its mover may live on for a while, and hand it on.
                (write.completed, write.done) = (true, NEVER);
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
            write.void_known &= !(1 << mover);
        }
        for heard in self.volumes.iter_mut().flat_map(|volume| &mut volume.heard) {
            *heard &= !(1 << mover);
        }
    }

    /// The store has a new epoch.
    pub fn epoch_begins(&mut self, epoch: Epoch, lost: bool) {
        self.epoch = epoch;
        if lost {
            self.lost.get_or_insert(epoch);
        }
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
        let excluded = self.excluded & 1 << mover != 0;
        excluded && self.taken_by[volume].is_some_and(|owner| owner != mover)
    }

    /// A shard has taken a volume over in the epoch of `record`: it goes on with `next`. Updates that no member holds are
    /// gone; their numbers are void, or nobody has heard of them.
    ///
    /// # Errors
    /// Invariant 1: an update that somebody knew of is lost. Invariant 3: a number that somebody has heard
    /// of is given out again.
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
        self.taken_in[index] = record.epoch;
        if self.is_untracked(record.epoch) {
            return Ok(());
        }
        let committed = self.committed;
        for at in 0..self.volumes[index].by_seq.len() {
            let id = self.volumes[index].by_seq[at];
            let write = &mut self.writes[id as usize];
            let untold = write.base == Base::Failed && write.void_known == 0;
            if untold && write.set > committed && write.held_by != 0 {
                // Nobody who lives knows that the base refused it: it takes effect after all.
                write.base = Base::Waiting;
            }
            let write = &self.writes[id as usize];
            if write.base.is_void() || write.set <= committed {
                continue;
            }
            let seq = Seq(at as u64 + 1);
            ensure!(
                1,
                write.held_by == 0 || seq < next,
                "{seq} of v{index} is held by {:#b}, the shard that takes over goes on with {next}",
                write.held_by
            );
            // In an epoch before the one in which it is said that updates are lost, those who had them may not
            // know yet that they were excluded.
            if write.held_by != 0 || self.lost.is_some() && write.visible != NEVER {
                continue;
            }
            ensure!(
                1,
                write.visible == NEVER,
                "write {id} ({seq} of v{index}, {}) was visible and is lost",
                write.set
            );
            let ghost = HostWrite { base: Base::Lost, completed: true, ..write.clone() };
            let write = &mut self.writes[id as usize];
            write.seq = Seq(0);
            write.set = SetId(0);
            write.base = Base::Waiting;
            write.safe = false;
            self.writes.push(ghost);
            self.volumes[index].by_seq[at] = self.writes.len() as WriteId - 1;
        }
        let volume = &mut self.volumes[index];
        let last = volume.by_seq.len() as u64;
        ensure!(3, next.0 <= last + 1, "v{index} goes on with {next}, the last number was {last}");
        let again = next.0 as usize - 1..volume.by_seq.len();
        for (id, heard) in volume.by_seq[again.clone()].iter().zip(&volume.heard[again.clone()]) {
            let write = &self.writes[*id as usize];
            ensure!(
                3,
                write.base == Base::Lost && *heard == 0,
                "{} of v{index} is given out again, movers {heard:#b} have heard of it",
                write.seq
            );
        }
        volume.by_seq.truncate(again.start);
        volume.heard.truncate(again.start);
        // Voids that are not in the secondary's hands are found anew.
        let mut set = UNRECORDED;
        for id in volume.by_seq.iter().rev() {
            let write = &mut self.writes[*id as usize];
            if write.base == Base::Lost && write.set > committed {
                write.set = set;
            } else {
                set = write.set;
            }
        }
        self.told(mover, index, Seq(next.0 - 1));
        Ok(())
    }

    /// A record with a number came to a mover.
    pub fn heard(&mut self, mover: u16, info: &UpdateInfo) {
        let index = info.volume.0 as usize;
        if let Some(id) = self.find(index, info.seq)
            && self.describes(id, info)
            && self.excluded & 1 << mover == 0
        {
            self.volumes[index].heard[info.seq.0 as usize - 1] |= 1 << mover;
        }
    }

    /// A primary mover was told that the numbers of a volume up to `last` were given out.
    pub fn told(&mut self, mover: u16, index: usize, last: Seq) {
        if self.excluded & 1 << mover == 0 {
            for heard in self.volumes[index].heard.iter_mut().take(last.0 as usize) {
                *heard |= 1 << mover;
            }
        }
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
            // Of a write that failed, what is there is unknown, and what was there before it belongs there.
            let last = (volume.base_seq[block] as usize).checked_sub(1);
            let failed =
                last.is_some_and(|at| self.writes[volume.by_seq[at] as usize].base == Base::Failed);
            ensure!(
                2,
                failed || volume.base_seq[block] <= seq.0,
                "block {block} of v{index} goes back from #{} to {seq}",
                volume.base_seq[block]
            );
            volume.base_seq[block] = seq.0;
        }
        self.seen(id);
        Ok(())
    }

    /// The medium ended the writing of a part of a recovered update.
    pub fn restore_ended(&mut self, id: WriteId, extent: Extent, ok: bool) {
        self.tick();
        let volume = &mut self.volumes[self.writes[id as usize].volume];
        volume.unknown[blocks(extent)].fill(!ok);
    }

    /// A mover was told that a number is void.
    pub fn void_heard(&mut self, mover: u16, info: &UpdateInfo) {
        if let Some(id) = self.find(info.volume.0 as usize, info.seq)
            && self.describes(id, info)
            && self.excluded & 1 << mover == 0
        {
            self.writes[id as usize].void_known |= 1 << mover;
        }
    }

    /// A volume that `mover` took over is open again: its base must show the newest version of every
    /// block. That holds also where the mover was excluded since, until another takes the volume over.
    ///
    /// # Errors
    /// Invariant 2.
    pub fn restored(&mut self, index: usize, mover: u16, media: &[u64]) -> Verdict {
        self.tick();
        if self.is_of_the_past(index, mover) || self.is_untracked(self.taken_in[index]) {
            return Ok(());
        }
        if self.described {
            self.settle(index, media)?;
        }
        let mut newest: Vec<Option<WriteId>> = vec![None; media.len()];
        for at in 0..self.volumes[index].by_seq.len() {
            let id = self.volumes[index].by_seq[at];
            let write = &mut self.writes[id as usize];
            if write.base.is_void() {
                continue;
            }
            if write.base != Base::Settled {
                write.base = Base::Done;
            }
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

impl Observer {
    /// Mirror copies are descriptions: finds out which updates that were under way to the base when its volume was
    /// taken over have reached it. The others stand for what it has instead, which must not be older than
    /// what it certainly had.
    fn settle(&mut self, index: usize, media: &[u64]) -> Verdict {
        let ids = self.volumes[index].by_seq.clone();
        // By block: the place in `ids`, from 1, of the update that the medium shows; 0 for none.
        let mut shown = vec![0; media.len()];
        let mut newest = vec![0; media.len()];
        for (block, value) in media.iter().enumerate() {
            for (at, id) in ids.iter().enumerate().rev() {
                let write = &self.writes[*id as usize];
                if write.base.is_void() || !blocks(write.extent).contains(&block) {
                    continue;
                }
                newest[block] = newest[block].max(at + 1);
                if write.value_at(*id, block as u64) == *value {
                    shown[block] = at + 1;
                    break;
                }
                ensure!(
                    2,
                    !write.base.is_certain() || self.volumes[index].unknown[block],
                    "v{index} is opened after a take-over, block {block} holds {}, which is older than {}",
                    self.name_value(*value),
                    write.seq
                );
            }
        }
        for (block, at) in newest.iter().enumerate() {
            if self.volumes[index].unknown[block]
                && let Some(id) = at.checked_sub(1).map(|at: usize| ids[at])
            {
                self.writes[id as usize].unsure.insert(block as u64);
            }
        }
        for (at, id) in ids.iter().enumerate() {
            let write = &mut self.writes[*id as usize];
            if write.base.is_void() || write.base.is_certain() {
                continue;
            }
            if blocks(write.extent).all(|block| shown[block] > at) {
                continue;
            }
            write.base = Base::Settled;
            for block in blocks(write.extent).filter(|block| newest[*block] == at + 1) {
                write.settled.insert(block as u64, media[block]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::EPOCH;
    use super::super::observer::SECONDARY;
    use super::*;
    use crate::proto::message::VolumeFacts;
    use crate::proto::types::{MapVersion, ShardId, UpdateKind, VolumeId};

    /// Mover 1 of three takes the volume over from mover 0; mover 2 holds a copy of #1.
    fn observer() -> (Observer, WriteId) {
        let mut observer = Observer::new(2, 4, 3, &[3], 8);
        let extent = Extent { lba: 2, blocks: 1 };
        let id = observer.issued(0, UpdateKind::Write, extent);
        let info = info(1, 1, extent);
        observer.numbered(id, &info).expect("the first number");
        for mover in [0, 2] {
            observer.stored(mover, &info).expect("its record");
            observer.heard(mover, &info);
        }
        observer.excluded(0);
        observer.taken_over(0, 1, Seq(2), &record()).expect("#1 is held");
        (observer, id)
    }

    fn info(seq: u64, set: u64, extent: Extent) -> UpdateInfo {
        let (volume, seq, set) = (VolumeId(0), Seq(seq), SetId(set));
        UpdateInfo { volume, seq, set, extent, ..crate::sim::arena::blank_info() }
    }

    fn record() -> SiteRecord {
        SiteRecord {
            epoch: Epoch(8),
            map_version: MapVersion(2),
            members: vec![MoverId(1), MoverId(2)],
            since: vec![Epoch(7); 2],
            coordinator: ShardId::new(1, 0),
            owners: vec![(VolumeId(0), ShardId::new(1, 0))],
            moved: vec![VolumeId(0)],
            spells: Vec::new(),
            lost: Vec::new(),
            plan: None,
        }
    }

    #[test]
    fn what_a_mover_restored_counts_also_when_it_was_excluded_since() {
        let (mut observer, id) = observer();
        let mut media = [0; 8];
        media[2] = observer.writes[id as usize].value_at(id, 2);
        observer.excluded(1);
        observer.restored(0, 1, &media).expect("the base is up to date");
        assert_eq!(observer.writes[id as usize].base, Base::Done);
    }

    #[test]
    fn a_number_is_reused_only_if_no_member_has_heard_of_it() {
        for (mover, ok) in [(1, true), (2, false), (SECONDARY, false)] {
            let (mut observer, _) = observer();
            let extent = Extent { lba: 0, blocks: 1 };
            let id = observer.issued(0, UpdateKind::Write, extent);
            let info = info(2, 1, extent);
            observer.numbered(id, &info).expect("the next number");
            observer.heard(mover, &info);
            observer.excluded(1);
            let again = observer.taken_over(0, 2, Seq(2), &record());
            assert_eq!(again.is_ok(), ok, "heard by m{mover}: {again:?}");
        }
    }

    #[test]
    fn a_lost_number_is_in_the_set_of_the_next_one() {
        let (mut observer, _) = observer();
        let extent = Extent { lba: 0, blocks: 1 };
        let lost = observer.issued(0, UpdateKind::Write, extent);
        observer.numbered(lost, &info(2, 1, extent)).expect("the next number");
        observer.excluded(1);
        observer.taken_over(0, 2, Seq(3), &record()).expect("#2 is void");
        let next = observer.issued(0, UpdateKind::Write, extent);
        observer.numbered(next, &info(3, 2, extent)).expect("the number after it");
        let fact = |first, last, voids| VolumeFacts {
            volume: VolumeId(0),
            first: Seq(first),
            last: Seq(last),
            bytes: 0,
            digest: 0,
            voids,
        };
        assert!(observer.formed(EPOCH, SetId(1), &[fact(1, 2, vec![Seq(2)])]).is_err());
        observer.formed(EPOCH, SetId(1), &[fact(1, 1, vec![])]).expect("only #1");
        observer
            .formed(EPOCH, SetId(2), &[fact(2, 3, vec![Seq(2)])])
            .expect("#2 is recorded with #3");
    }

    #[test]
    fn what_excluded_movers_say_to_one_another_is_of_no_importance() {
        let (mut observer, _) = observer();
        let other = info(1, 1, Extent { lba: 7, blocks: 1 });
        observer.stored(0, &other).expect("mover 0 was excluded");
        assert!(observer.stored(1, &other).is_err(), "mover 1 was not");
    }
}
