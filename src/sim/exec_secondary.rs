//! Carries out what a secondary shard wants done with its journal and its volumes.

use super::cluster::{Cluster, Event};
use super::disk::DiskOp;
use super::journal::{Content, JournalDevice};
use super::observe_secondary::Journals;
use super::observer::{Verdict, Violation, ensure};
use super::profile::block_values;
use crate::proto::command::{JournalEntry, JournalPos, PayloadAt, Token};
use crate::proto::types::{Extent, NvmeStatus, Seq, SetId, UpdateKind, VolumeId};
use crate::wire::update::UpdateInfo;

/// The observer's eye on all journals.
struct Eye<'a> {
    journals: &'a [JournalDevice],
    block_bytes: u32,
}

impl Journals for Eye<'_> {
    fn durable(&self, shard: usize, volume: usize, seq: Seq) -> Option<(UpdateInfo, Vec<u64>)> {
        match self.journals[shard].durable_record(volume as u32, seq)? {
            Content::Record { bytes, info, .. } => {
                Some((*info, block_values(bytes, self.block_bytes)))
            }
            _ => None,
        }
    }
}

impl Cluster {
    /// Appends to a shard's journal; the position is told later, in order.
    pub(super) fn journal(&mut self, node: usize, entry: JournalEntry, token: Token) -> Verdict {
        let now = self.queue.now();
        let id = self.pollers[node].id;
        let content = match entry {
            JournalEntry::Record { buf, role } => {
                let Some(record) = self.pollers[node].arena.get(buf) else {
                    ensure!(0, false, "{id} journals a record that it has freed");
                    return Ok(());
                };
                Content::Record { bytes: record.bytes.clone(), info: record.info, role }
            }
            JournalEntry::Manifest { message } => Content::Manifest(message),
            JournalEntry::Commit { group, set, cut_time_ns } => {
                // From here on a loss of power may leave the commit behind.
                let eye = Eye { journals: &self.journals, block_bytes: self.profile.block_bytes };
                self.observer.may_commit(set, &eye)?;
                self.stats.cuts_checked += 1;
                Content::Commit { group, set, cut_time_ns }
            }
            JournalEntry::Applied { group, set } => {
                self.claims_applied(node, set)?;
                Content::Applied { group, set }
            }
        };
        self.trace.note(now, b'J', [node as u64, content.kind()], |out| match &content {
            Content::Record { info, role, .. } => {
                write!(out, "{id} journals {role:?} {} of {}", info.seq, info.volume)
            }
            content => write!(out, "{id} journals {content:?}"),
        });
        let position = self.journals[node].append(content);
        let at = now.after(self.disk_rng.delay(self.profile.write_ns));
        let busy = &mut self.pollers[node].journal_busy;
        busy.0 = busy.0.max(at);
        let (at, life) = (busy.0, self.pollers[node].life);
        self.queue.at(at, Event::Journaled { node, life, token, position });
        Ok(())
    }

    fn claims_applied(&mut self, node: usize, set: SetId) -> Verdict {
        let target = &self.target;
        self.observer.applied(node, set, |volume| target[volume].durable())?;
        self.stats.sets_applied += 1;
        Ok(())
    }

    /// Flushes a shard's journal.
    pub(super) fn journal_flush(&mut self, node: usize, token: Token) {
        let at = self.queue.now().after(self.disk_rng.delay(self.profile.flush_ns));
        let end = self.journals[node].end();
        let busy = &mut self.pollers[node].journal_busy;
        busy.1 = busy.1.max(at).max(busy.0);
        let (at, life) = (busy.1, self.pollers[node].life);
        self.queue.at(at, Event::Durable { node, life, token, end });
    }

    /// A journal position is known.
    pub(super) fn journaled(
        &mut self,
        node: usize,
        life: u32,
        token: Token,
        position: JournalPos,
    ) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let now = self.queue.now();
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_journaled(now, token, position);
        }
        self.settle(node)
    }

    /// A journal flush is complete.
    pub(super) fn durable(&mut self, node: usize, life: u32, token: Token, end: u64) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let now = self.queue.now();
        let id = self.pollers[node].id;
        self.trace.note(now, b'F', [node as u64, end], |out| {
            write!(out, "{id}: the journal is durable up to {end}")
        });
        self.journals[node].flushed(end);
        self.note_commits(node);
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_journal_durable(now, token);
        }
        self.settle(node)
    }

    /// Tells the observer of commits that are durable by now.
    pub(super) fn note_commits(&mut self, node: usize) {
        let committed = self.journals[node].committed();
        if committed > self.observer.committed {
            self.stats.sets_committed += committed.0 - self.observer.committed.0;
            self.observer.committed = committed;
        }
    }

    /// Writes to a target volume.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn target_write(
        &mut self,
        node: usize,
        volume: VolumeId,
        kind: UpdateKind,
        extent: Extent,
        fua: bool,
        payload: PayloadAt,
        token: Token,
    ) -> Verdict {
        let index = volume.0 as usize;
        let values = match payload {
            PayloadAt::None => {
                ensure!(0, kind != UpdateKind::Write, "a write to {volume} has no payload");
                self.observer.target_zero(index, extent)?;
                vec![0; extent.blocks as usize]
            }
            PayloadAt::Buf(_) | PayloadAt::Journal(_) => {
                let (info, values) = self.payload(node, payload)?;
                ensure!(
                    3,
                    info.volume == volume && info.extent == extent && info.kind == kind,
                    "{} of {} is applied to {volume} at {extent:?}",
                    info.seq,
                    info.volume
                );
                self.observer.target_write(index, info.seq)?;
                values
            }
        };
        let now = self.queue.now();
        self.trace.note(now, b'T', [index as u64, extent.lba, extent.blocks.into()], |out| {
            write!(out, "{volume}'s target is written at {extent:?}, {payload:?}")
        });
        let op = self.disk_op();
        self.target[index].submit_write(op, extent.lba, values, fua);
        self.target_command(node, index, op, token, self.profile.write_ns);
        Ok(())
    }

    fn payload(
        &mut self,
        node: usize,
        payload: PayloadAt,
    ) -> Result<(UpdateInfo, Vec<u64>), Violation> {
        let found = match payload {
            PayloadAt::Buf(buf) => {
                self.pollers[node].arena.get(buf).map(|record| (record.info, &record.bytes))
            }
            PayloadAt::Journal(position) => {
                self.stats.journal_reads += 1;
                match self.journals[node].read(position) {
                    Some(Content::Record { bytes, info, .. }) => Some((*info, bytes)),
                    _ => None,
                }
            }
            PayloadAt::None => None,
        };
        match found {
            Some((info, bytes)) => Ok((info, block_values(bytes, self.profile.block_bytes))),
            None => Err(Violation {
                invariant: 0,
                text: format!("shard {node} applies {payload:?}, which it has given back"),
            }),
        }
    }

    /// Flushes a target volume.
    pub(super) fn target_flush(&mut self, node: usize, volume: VolumeId, token: Token) {
        let index = volume.0 as usize;
        let op = self.disk_op();
        self.target[index].submit_flush(op);
        self.target_command(node, index, op, token, self.profile.flush_ns);
    }

    fn target_command(&mut self, node: usize, volume: usize, op: DiskOp, token: Token, mean: u64) {
        let life = self.pollers[node].life;
        let after = self.disk_rng.delay(mean);
        self.queue.after(after, Event::Target { node, life, volume, op, token });
    }

    /// A command at a target volume ends.
    pub(super) fn target_ends(
        &mut self,
        node: usize,
        life: u32,
        volume: usize,
        op: DiskOp,
        token: Token,
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
        let status = if ok { NvmeStatus::SUCCESS } else { NvmeStatus::WRITE_FAULT };
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_written(now, token, status);
        }
        self.settle(node)
    }
}
