//! What must hold when more movers have failed at once than there are spare copies (F5).
//!
//! From the epoch on in which that is so the group forms no sets, and the secondary stays at a
//! consistent point that it has. The hosts go on, and nothing that they were told is lost to them: all
//! that was acknowledged is on the base, where nothing may bring older blocks back.

use super::observer::{Base, Observer, UNTRACKED, Verdict, WriteId, blocks, ensure};
use crate::proto::types::{Epoch, Seq, ShardId, VolumeId};
use crate::wire::update::UpdateInfo;

impl Observer {
    /// Whether what is numbered in an epoch is in no set, since updates were lost before.
    pub(super) fn is_untracked(&self, epoch: Epoch) -> bool {
        self.lost.is_some_and(|lost| epoch >= lost)
    }

    /// An update was taken by a shard that knows that updates were lost. One that went with a mover, and whose
    /// host waits at another that lives, is taken once more.
    pub(super) fn number_untracked(&mut self, shard: ShardId, id: WriteId, info: &UpdateInfo) {
        let write = &mut self.writes[id as usize];
        if write.seq == Seq(0) {
            write.seq = UNTRACKED;
        }
        self.untracked.insert((shard, info.volume, info.seq), id);
    }

    /// The update that a shard calls by this number, when updates were lost.
    pub(super) fn called(&self, shard: ShardId, volume: VolumeId, seq: Seq) -> Option<WriteId> {
        let untracked = self.untracked.get(&(shard, volume, seq)).copied();
        untracked.or_else(|| self.find(volume.0 as usize, seq))
    }

    /// A base write was submitted when updates were lost. Only that none overlap is left to be asked.
    pub(super) fn submitted_with_losses(&mut self, id: WriteId) {
        self.writes[id as usize].base = Base::InFlight;
        let volume = self.writes[id as usize].volume;
        self.volumes[volume].at_base.push(id);
        self.seen(id);
    }

    /// A host was told that it has to try an update again, which is another one then.
    pub(super) fn abandoned(&mut self, id: WriteId) {
        let tick = self.tick();
        let write = &mut self.writes[id as usize];
        (write.completed, write.done) = (true, tick);
    }

    /// At the end of a healed history in which updates were lost: no block of a base is older than what
    /// was acknowledged, and the secondary is at its cut.
    ///
    /// # Errors
    /// Invariants 1 and 7.
    pub(super) fn finished_with_losses<'a>(
        &self,
        base: impl Fn(usize) -> &'a [u64],
        target: impl Fn(usize) -> &'a [u64],
    ) -> Verdict {
        for (index, volume) in self.volumes.iter().enumerate() {
            // What was complete there and had no durable commit when it fell needs the primary's word again.
            let committed = |id: &WriteId| self.writes[*id as usize].set <= self.committed;
            let last = volume.by_seq.partition_point(committed);
            ensure!(
                0,
                volume.applied_last == last,
                "v{index} has {last} numbers in {}, the secondary applied {}",
                self.committed,
                volume.applied_last
            );
            let wrong = target(index).iter().zip(&volume.applied_value).position(|(a, b)| a != b);
            ensure!(7, wrong.is_none(), "block {wrong:?} of v{index} is not what the cut has");
            for (block, value) in base(index).iter().enumerate() {
                if !volume.unknown[block] {
                    self.not_older(index, block, *value)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a block's value is at least as new as everything acknowledged.
    fn not_older(&self, index: usize, block: usize, value: u64) -> Verdict {
        let covers = |id: &WriteId| {
            let write = &self.writes[*id as usize];
            write.volume == index && blocks(write.extent).contains(&block)
        };
        let of_block = || (0..self.writes.len() as WriteId).filter(covers);
        let wrote =
            |id: &WriteId| self.writes[*id as usize].own_value_at(*id, block as u64) == value;
        let ends = of_block().filter(wrote).map(|id| self.writes[id as usize].done);
        let acknowledged = || of_block().filter(|id| self.writes[*id as usize].acknowledged);
        let issued = acknowledged().map(|id| self.writes[id as usize].issued).max();
        // A block that nothing was written to has zeroes, as one that was made so.
        let ends = ends.chain((value == 0).then_some(0)).max();
        let fine = issued.is_none() || ends >= issued;
        ensure!(
            1,
            fine,
            "block {block} of v{index} is {} at the primary, older than what was acknowledged",
            self.name_value(value)
        );
        Ok(())
    }
}
