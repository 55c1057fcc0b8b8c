//! Carries out what a secondary shard wants done with its volumes.

use super::cluster::{Cluster, Event};
use super::disk::DiskOp;
use super::observer::{Verdict, ensure};
use super::profile::block_values;
use crate::proto::command::{PayloadAt, Token};
use crate::proto::types::{Extent, NvmeStatus, UpdateKind, VolumeId};
use crate::wire::update::UpdateInfo;

/// A write to a target volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct TargetWrite {
    pub(super) volume: VolumeId,
    pub(super) kind: UpdateKind,
    pub(super) extent: Extent,
    pub(super) fua: bool,
    pub(super) payload: PayloadAt,
    pub(super) token: Token,
    /// Its payload was read back from the journal, into memory of the pool.
    pub(super) read_back: bool,
}

impl Cluster {
    /// Writes to a target volume.
    pub(super) fn target_write(&mut self, node: usize, write: TargetWrite) -> Verdict {
        let TargetWrite { volume, kind, extent, payload, .. } = write;
        match payload {
            PayloadAt::Journal(position) => self.journal_read(node, position, write),
            PayloadAt::Buf(buf) => {
                let Some(record) = self.pollers[node].arena.get(buf) else {
                    ensure!(0, false, "shard {node} applies {payload:?}, which it has given back");
                    return Ok(());
                };
                let values = block_values(&record.bytes, self.profile.block_bytes);
                let info = record.info;
                self.target_write_values(node, write, &info, values)
            }
            PayloadAt::None => {
                ensure!(0, kind != UpdateKind::Write, "a write to {volume} has no payload");
                self.observer.target_zero(volume.0 as usize, extent)?;
                self.target_submit(node, write, vec![0; extent.blocks as usize]);
                Ok(())
            }
        }
    }

    /// Writes the payload of the record that `info` describes.
    pub(super) fn target_write_values(
        &mut self,
        node: usize,
        write: TargetWrite,
        info: &UpdateInfo,
        values: Vec<u64>,
    ) -> Verdict {
        let TargetWrite { volume, kind, extent, .. } = write;
        ensure!(
            3,
            info.volume == volume && info.extent == extent && info.kind == kind,
            "{} of {} is applied to {volume} at {extent:?}",
            info.seq,
            info.volume
        );
        self.observer.target_write(volume.0 as usize, info.seq)?;
        self.target_submit(node, write, values);
        Ok(())
    }

    fn target_submit(&mut self, node: usize, write: TargetWrite, values: Vec<u64>) {
        let TargetWrite { volume, extent, fua, payload, .. } = write;
        let (now, index) = (self.queue.now(), volume.0 as usize);
        self.trace.note(now, b'T', [index as u64, extent.lba, extent.blocks.into()], |out| {
            write!(out, "{volume}'s target is written at {extent:?}, {payload:?}")
        });
        let op = self.disk_op();
        self.target[index].submit_write(op, extent.lba, values, fua);
        let done = (write.token, write.read_back);
        self.target_command(node, index, op, done, self.profile.write_ns);
    }

    /// Flushes a target volume.
    pub(super) fn target_flush(&mut self, node: usize, volume: VolumeId, token: Token) {
        let index = volume.0 as usize;
        let op = self.disk_op();
        self.target[index].submit_flush(op);
        self.target_command(node, index, op, (token, false), self.profile.flush_ns);
    }

    fn target_command(
        &mut self,
        node: usize,
        volume: usize,
        op: DiskOp,
        done: (Token, bool),
        mean: u64,
    ) {
        let life = self.pollers[node].life;
        let after = self.disk_rng.delay(mean);
        self.queue.after(after, Event::Target { node, life, volume, op, done });
    }

    /// A command at a target volume ends.
    pub(super) fn target_ends(
        &mut self,
        node: usize,
        life: u32,
        volume: usize,
        op: DiskOp,
        (token, read_back): (Token, bool),
    ) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let ok = !self.disk_rng.chance(self.profile.disks.target_ppm);
        if ok {
            self.target[volume].complete(op);
        } else {
            self.stats.target_errors += 1;
            self.target[volume].fail(op, &mut self.disk_rng);
        }
        let now = self.queue.now();
        self.trace.note(now, b'E', [volume as u64, u64::from(ok)], |out| {
            write!(out, "v{volume}'s target ends a command, success: {ok}")
        });
        if read_back && let Some(journal) = &mut self.pollers[node].journal {
            journal.give_back();
        }
        let status = if ok { NvmeStatus::SUCCESS } else { NvmeStatus::WRITE_FAULT };
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_written(now, token, status);
        }
        self.turn_ends(node)
    }
}
