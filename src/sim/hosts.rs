//! The hosts: they write, read, and write again depending on what they were told or have read.
//!
//! A host's next command follows the completion of an earlier one, on any volume: that is what a
//! consistent cut has to respect. Most updates go to few blocks, so that they overlap.

use super::cluster::{Cluster, Event};
use super::observer::{Verdict, WriteId};
use super::profile::UPDATE_BLOCKS_MAX;
use crate::proto::command::HostTag;
use crate::proto::types::{Extent, NvmeStatus, UpdateKind};

/// A host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Host {
    /// Updates under way.
    pub(super) busy: u32,
}

impl Cluster {
    /// Whether hosts have issued all their updates.
    pub(super) fn hosts_are_done(&self) -> bool {
        self.observer.writes.len() >= self.profile.updates as usize
    }

    /// A host issues commands until its queue is full.
    pub(super) fn host_turn(&mut self, host: usize) -> Verdict {
        while self.hosts[host].busy < self.profile.queue_depth && !self.hosts_are_done() {
            if self.host_rng.chance(self.profile.read_ppm) {
                // What is read is what the base holds, and that others may now depend on it was
                // noted when its write was submitted: nothing more to do, except to count.
                self.stats.reads += 1;
            }
            self.issue(host)?;
        }
        Ok(())
    }

    fn issue(&mut self, host: usize) -> Verdict {
        let rng = &mut self.host_rng;
        let volume = rng.below(u64::from(self.profile.volumes)) as usize;
        let kind = if rng.chance(self.profile.zero_ppm) {
            rng.pick(&[UpdateKind::WriteZeroes, UpdateKind::Deallocate])
        } else {
            UpdateKind::Write
        };
        let all = u64::from(self.profile.blocks);
        let span = if rng.chance(800_000) { u64::from(self.profile.hot_blocks) } else { all };
        let lba = rng.below(span);
        let most = u64::from(UPDATE_BLOCKS_MAX).min(all - lba);
        let blocks = rng.between(1, rng.clone().between(1, most)) as u32;
        let write = self.observer.issued(volume, kind, Extent { lba, blocks });
        self.host_of.resize(write as usize, 0);
        self.host_of.push(host);
        self.hosts[host].busy += 1;
        let now = self.queue.now();
        self.trace.note(now, b'I', [write.into(), volume as u64, lba, blocks.into()], |out| {
            write!(out, "host {host} issues write {write}: {kind:?} v{volume} {lba}+{blocks}")
        });
        let node = self.path_to(volume);
        self.observer.writes[write as usize].path = node;
        // What was decided before is carried out before.
        self.settle(node)?;
        let full = !self.pollers[node].waiting.is_empty();
        if full || !self.admit(node, write)? {
            self.stats.back_pressure += 1;
            self.pollers[node].waiting.push_back(write);
        }
        self.settle(node)
    }

    /// The poller that a host sends a command for a volume to: the responsible one, or one of
    /// another mover (G3).
    fn path_to(&mut self, volume: usize) -> usize {
        let owner = self.owners[volume].0;
        if !self.host_rng.chance(self.profile.forward_ppm) && !self.is_down(owner) {
            return owner;
        }
        let pollers = usize::from(self.profile.pollers);
        let mover = self.host_rng.below(u64::from(self.profile.primaries)) as usize;
        // A path whose mover is down fails at once, and the next one is tried.
        (0..usize::from(self.profile.primaries))
            .map(|step| (mover + step) % usize::from(self.profile.primaries))
            .map(|mover| mover * pollers + owner % pollers)
            .find(|node| !self.is_down(*node))
            .unwrap_or(owner)
    }

    /// A host is told the outcome of an update.
    pub(super) fn complete_host(&mut self, tag: HostTag, status: NvmeStatus) -> Verdict {
        let write = tag.0 as WriteId;
        if status.sct == NvmeStatus::ANA_TRANSITION.sct {
            // The path says that it cannot answer; the host tries again, which is another command.
            self.stats.abandoned += 1;
            self.observer.abandoned(write);
        } else {
            self.observer.completed(write, status)?;
        }
        self.stats.acknowledged += u64::from(status.is_ok());
        let now = self.queue.now();
        self.trace.note(now, b'A', [tag.0, status.sc.into()], |out| {
            write!(out, "write {write} is completed with {status:?}")
        });
        let host = self.host_of[write as usize];
        self.hosts[host].busy -= 1;
        let think = self.host_rng.delay(self.profile.think_ns);
        self.queue.after(think, Event::Host { host });
        Ok(())
    }
}
