//! Carries out what the machines want done.

use super::arena::{Record, Room};
use super::cluster::{BaseOp, Cluster, Event};
use super::disk::DiskOp;
use super::exec_secondary::TargetWrite;
use super::node::Poller;
use super::observer::{Verdict, WriteId, ensure};
use super::profile::block_values;
use crate::mem::crc32c::crc32c;
use crate::proto::command::{Command, HostTag, PayloadAt, Report, Token};
use crate::proto::message::{BrokenReason, Message};
use crate::proto::primary::{HostUpdate, PrimaryShard};
use crate::proto::sabotage::Sabotage;
use crate::proto::time::TimeStamp;
use crate::proto::types::{
    BufRef, Epoch, Extent, MoverId, NvmeStatus, ShardId, UpdateKind, VolumeId,
};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateInfo};

impl Cluster {
    /// Carries out one command of a poller's machines.
    pub(super) fn execute(&mut self, node: usize, command: Command) -> Verdict {
        match command {
            Command::Send { to, message } => {
                let to = self.shard_index(to);
                self.check_message(node, to, &message)?;
                if self.cost.is_some() && node == self.coordinator() {
                    self.cost.iter_mut().for_each(|cost| cost.sent += 1);
                }
                self.send_message(node, to, &message);
                Ok(())
            }
            Command::SendRecord { to, role, buf, token } => {
                let to = self.shard_index(to);
                self.send_record(node, to, role, buf, token)
            }
            Command::Write { volume, kind, extent, fua, payload, token } => {
                if node < self.primaries {
                    self.base_write(node, volume, kind, extent, fua, payload, token)
                } else {
                    let read_back = false;
                    let write =
                        TargetWrite { volume, kind, extent, fua, payload, token, read_back };
                    self.target_write(node, write)
                }
            }
            Command::Restore { volume, kind, extent, buf, skip, token } => {
                self.restore(node, volume, kind, extent, buf, skip, token)
            }
            Command::ReadBack { volume, extent, buf, token } => {
                self.recall(node, volume, extent, buf, token)
            }
            Command::Fence { volume, token } => {
                let life = self.pollers[node].life;
                let after = self.disk_rng.delay(self.profile.write_ns);
                let volume = volume.0 as usize;
                self.queue.after(after, Event::Fenced { node, life, volume, token });
                Ok(())
            }
            Command::CompleteHost { tag, status } => self.complete_host(tag, status),
            Command::Free { buf } => self.free(node, buf),
            Command::Report(report) => self.report(node, &report),
            Command::Journal { entry, token } => self.journal(node, entry, token),
            Command::JournalFlush { token } => self.journal_flush(node, token),
            Command::JournalRetire { before } => {
                self.journal_retire(node, before);
                Ok(())
            }
            Command::Flush { volume, token } => {
                self.target_flush(node, volume, token);
                Ok(())
            }
        }
    }

    /// Messages whose sending is an act that an invariant speaks of.
    fn check_message(&mut self, node: usize, to: usize, message: &Message) -> Verdict {
        match message {
            Message::Manifest { set, .. } if node < self.primaries && to >= self.primaries => {
                self.observer.manifest_sent(*set)
            }
            Message::Confirmed { set, .. } if node >= self.primaries => {
                let committed = self.observer.committed;
                ensure!(
                    7,
                    *set <= committed,
                    "{set} was confirmed, the last durable commit is {committed}"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn free(&mut self, node: usize, buf: BufRef) -> Verdict {
        let poller = &mut self.pollers[node];
        if let Some(journal) = &mut poller.journal
            && !journal.driver.may_reuse(buf)
        {
            return Ok(());
        }
        let Some(record) = poller.arena.remove(buf) else {
            ensure!(0, false, "{} frees a record twice", self.pollers[node].id);
            return Ok(());
        };
        if node < self.primaries {
            let is_description =
                record.bytes.len() == UPDATE_HEADER_BYTES && record.info.payload_len > 0;
            let of = |info: &UpdateInfo| (info.volume, info.seq);
            let mut others = self.pollers[node].arena.records();
            if is_description && others.any(|other| of(&other.info) == of(&record.info)) {
                // Its payload has come since.
                return Ok(());
            }
            let mover = self.pollers[node].id.mover.0;
            self.observer.freed(mover, &record.info)?;
        }
        Ok(())
    }

    fn report(&mut self, node: usize, report: &Report) -> Verdict {
        if let Some(cost) = self.cost.as_mut().filter(|_| node < self.primaries) {
            cost.report(report);
        }
        let now = self.queue.now();
        let id = self.pollers[node].id;
        self.trace.note(now, b'P', [node as u64], |out| write!(out, "{id} reports {report:?}"));
        match report {
            Report::SetOpened { set, .. } => {
                self.observer.opened(node, *set);
                Ok(())
            }
            Report::SetFormed { set, updates, facts, .. } => {
                self.stats.sets_empty += u64::from(*updates == 0);
                let epoch = self.pollers[node].node.as_ref().map_or(Epoch(0), |node| node.epoch());
                self.observer.formed(epoch, *set, facts)
            }
            Report::Void { volume, .. }
                if self.observer.is_of_the_past(volume.0 as usize, id.mover.0) =>
            {
                Ok(())
            }
            Report::Void { volume, seq, .. } => {
                self.observer.void_reported(volume.0 as usize, id.mover.0, *seq)
            }
            // An excluded mover that does not know it yet: nobody hears of what it takes over.
            Report::TakenOver { .. } if !self.site.latest().members.contains(&id.mover) => Ok(()),
            Report::TakenOver { volume, updates, voids, next } => {
                self.stats.take_overs += 1;
                self.stats.recovered_updates += u64::from(*updates);
                self.stats.lost_numbers += u64::from(*voids);
                let epoch = self.pollers[node].node.as_ref().map_or(Epoch(0), |node| node.epoch());
                let record = self.site.records.iter().find(|record| record.epoch == epoch);
                ensure!(9, record.is_some(), "{id} takes {volume} over in {epoch}");
                let Some(record) = record else { return Ok(()) };
                self.observer.taken_over(volume.0 as usize, id.mover.0, *next, record)
            }
            Report::Restored { volume } => {
                let index = volume.0 as usize;
                self.observer.restored(index, id.mover.0, self.base[index].current())
            }
            Report::ApplyPaused { at, paused: true, .. } => self.observer.paused(*at),
            Report::HandedOver { volume, next, .. } => self.handed_over(node, *volume, *next),
            Report::MapInForce { map_version, .. } => self.map_in_force(node, *map_version),
            // A mover that was excluded and does not know it may hear of sets that it has no part in.
            Report::Broken { .. }
                if !self.site.latest().members.contains(&id.mover) && node < self.primaries =>
            {
                Ok(())
            }
            Report::Broken { reason, .. } => {
                let needed = self.observer.lost.is_some() && *reason == BrokenReason::MoversLost;
                ensure!(10, needed, "{id} calls the group broken ({reason:?}) without need");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Tries to hand a host update to a shard of its volume's lane. False when there is no room.
    pub(super) fn admit(
        &mut self,
        node: usize,
        write: WriteId,
    ) -> Result<bool, super::observer::Violation> {
        let host_write = &self.observer.writes[write as usize];
        let (volume, kind, extent) = (host_write.volume, host_write.kind, host_write.extent);
        let index = self.owners[volume].1;
        let payload_len = match kind {
            UpdateKind::Write => extent.blocks * self.profile.block_bytes,
            UpdateKind::WriteZeroes | UpdateKind::Deallocate => 0,
        };
        let record_bytes = UPDATE_HEADER_BYTES + payload_len as usize;
        let has_room = self.pollers[node].arena.has_room(Room::Own, record_bytes);
        let (now, here) = (self.queue.now(), self.here(node));
        let Some(machines) = self.pollers[node].node.as_mut() else { return Ok(false) };
        if !has_room {
            machines.handle_pressure(here);
            return Ok(false);
        }
        let Some(shard) = machines.primary() else { return Ok(false) };
        let Ok(admitted) = shard.admit(index, record_bytes as u32) else {
            shard.handle_refused();
            return Ok(false);
        };
        let mut bytes = vec![0; UPDATE_HEADER_BYTES];
        if kind == UpdateKind::Write {
            for lba in extent.lba..extent.end() {
                let value = host_write.value_at(write, lba).to_le_bytes();
                for _ in 0..self.profile.block_bytes / 8 {
                    bytes.extend_from_slice(&value);
                }
            }
        }
        let payload_crc = crc32c(&bytes[UPDATE_HEADER_BYTES..]);
        // The record's place is known before its number is.
        let fua = self.host_rng.chance(self.profile.fua_ppm);
        let placeholder = Record { bytes, info: super::arena::blank_info(), room: Room::Own };
        let buf = self.pollers[node].arena.insert(placeholder);
        let taken = self.stamp(node);
        if let Some(taken) = taken {
            let Poller { id, life, .. } = self.pollers[node];
            self.observer.stamped(write, id, life, taken)?;
        }
        let update = HostUpdate {
            tag: HostTag(u64::from(write)),
            volume: index,
            kind,
            extent,
            fua,
            payload_len,
            payload_crc: if kind == UpdateKind::Write { payload_crc } else { 0 },
            buf,
            record_bytes: record_bytes as u32,
            list_seq: 0,
            time: taken.map_or(TimeStamp::NONE, |taken| taken.stamp),
        };
        let machines = self.pollers[node].node.as_mut();
        let Some(shard) = machines.and_then(|m| m.primary()) else { return Ok(false) };
        let responsible = shard.is_responsible(index);
        let info = shard.host_update(admitted, &update);
        if let Some(record) = self.pollers[node].arena.get_mut(buf) {
            record.number(&info);
        }
        if responsible {
            self.is_numbered(node, write, &info)?;
        } else {
            self.trace.note(now, b'W', [write.into(), node as u64], |out| {
                write!(out, "write {write} is forwarded as {}", info.forward)
            });
            self.stats.forwarded += 1;
            self.forwards.insert((node, info.forward), write);
        }
        Ok(true)
    }

    fn is_numbered(&mut self, node: usize, write: WriteId, info: &UpdateInfo) -> Verdict {
        let now = self.queue.now();
        self.trace.note(now, b'N', [write.into(), info.seq.0, info.set.0], |out| {
            write!(out, "write {write} is {} of {} in {}", info.seq, info.volume, info.set)
        });
        let mover = self.pollers[node].id.mover.0;
        if self.observer.is_of_the_past(info.volume.0 as usize, mover)
            && !self.observer.is_untracked(info.epoch)
        {
            return Ok(());
        }
        self.observer.numbered(write, info)?;
        self.observer.stored(self.pollers[node].id.mover.0, info)
    }

    /// Numbers the updates that others took, oldest first, while there is room.
    pub(super) fn number_arrived(
        &mut self,
        node: usize,
    ) -> Result<bool, super::observer::Violation> {
        let mut any = false;
        loop {
            let Poller { node: machines, arena, .. } = &mut self.pollers[node];
            let Some(shard) = machines.as_mut().and_then(|m| m.primary()) else { return Ok(any) };
            let Some(arrived) = shard.next_arrived() else { return Ok(any) };
            let record_bytes = UPDATE_HEADER_BYTES as u32 + arrived.info.payload_len;
            let (origin, forward) = (arrived.info.origin, arrived.info.forward);
            let Some((buf, info)) = shard.number_arrived(record_bytes, || 0) else {
                return Ok(any);
            };
            if let Some(record) = arena.get_mut(buf) {
                record.number(&info);
            }
            let taker = self.shard_index(ShardId::new(origin.0, self.pollers[node].id.poller));
            let write = self.forwards.get(&(taker, forward)).copied();
            ensure!(3, write.is_some(), "{} of {} was forwarded by nobody", info.seq, info.volume);
            self.is_numbered(node, write.unwrap_or_default(), &info)?;
            any = true;
        }
    }

    /// Takes updates that wait for room, oldest first, while there is room.
    pub(super) fn admit_waiting(
        &mut self,
        node: usize,
    ) -> Result<bool, super::observer::Violation> {
        let mut any = false;
        while let Some(write) = self.pollers[node].waiting.front().copied() {
            if !self.admit(node, write)? {
                break;
            }
            self.pollers[node].waiting.pop_front();
            any = true;
        }
        Ok(any)
    }

    /// Whether the fence of a base refuses the writes of a mover, which was excluded. It learns of it by that.
    fn is_shut_out(&mut self, node: usize, volume: usize) -> bool {
        let mover = self.pollers[node].id.mover;
        let barred = self.barred[volume] & 1 << mover.0 != 0;
        if barred {
            self.stats.late_writes += 1;
            self.queue.after(0, Event::Fault(super::faults::Fault::Learn(mover)));
        }
        barred
    }

    #[allow(clippy::too_many_arguments)]
    fn base_write(
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
        if self.is_shut_out(node, index) {
            return Ok(());
        }
        let (write, values) = match payload {
            PayloadAt::Buf(buf) => {
                let record = self.pollers[node].arena.get(buf);
                ensure!(0, record.is_some(), "a freed record is written to {volume}");
                let Some(record) = record else { return Ok(()) };
                let values = block_values(&record.bytes, self.profile.block_bytes);
                (self.observer.find(index, record.info.seq), values)
            }
            PayloadAt::None => (
                self.observer.waiting_at_base(index, kind, extent),
                vec![0; extent.blocks as usize],
            ),
            PayloadAt::Journal(_) => (None, Vec::new()),
        };
        let write = if self.observer.lost.is_some() {
            let Poller { node: machines, id, .. } = &mut self.pollers[node];
            let shard = machines.as_mut().and_then(|machines| machines.primary());
            let seq = shard.and_then(|shard| shard.number_of(token));
            seq.and_then(|seq| self.observer.called(*id, volume, seq))
        } else {
            write
        };
        let Some(write) = write else {
            ensure!(3, false, "a base write of {volume} at {extent:?} belongs to no update");
            return Ok(());
        };
        self.observer.base_submitted(write)?;
        let now = self.queue.now();
        self.trace.note(now, b'B', [write.into()], |out| {
            write!(out, "write {write} goes to the base of {volume} at {extent:?}")
        });
        let op = self.disk_op();
        self.base[index].submit_write(op, extent.lba, values, fua);
        let after = self.disk_rng.delay(self.profile.write_ns);
        let (life, at) = (self.pollers[node].life, BaseOp::Write);
        self.queue.after(after, Event::Base { node, life, op, write, at, token });
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn restore(
        &mut self,
        node: usize,
        volume: VolumeId,
        kind: UpdateKind,
        extent: Extent,
        buf: BufRef,
        skip: u32,
        token: Token,
    ) -> Verdict {
        let index = volume.0 as usize;
        if self.is_shut_out(node, index) {
            return Ok(());
        }
        let record = self.pollers[node].arena.get(buf);
        ensure!(0, record.is_some(), "a freed record is restored to {volume}");
        let Some(record) = record else { return Ok(()) };
        let write = self.observer.find(index, record.info.seq);
        let values = match kind {
            UpdateKind::Write => block_values(&record.bytes, self.profile.block_bytes)
                [skip as usize..][..extent.blocks as usize]
                .to_vec(),
            UpdateKind::WriteZeroes | UpdateKind::Deallocate => vec![0; extent.blocks as usize],
        };
        let Some(write) = write else {
            ensure!(3, false, "a restore of {volume} at {extent:?} belongs to no update");
            return Ok(());
        };
        let now = self.queue.now();
        self.trace.note(now, b'B', [write.into(), extent.lba], |out| {
            write!(out, "write {write} is restored to the base of {volume} at {extent:?}")
        });
        self.observer.restore_submitted(write, extent)?;
        let op = self.disk_op();
        self.base[index].submit_write(op, extent.lba, values, true);
        let after = self.disk_rng.delay(self.profile.write_ns);
        let (life, at) = (self.pollers[node].life, BaseOp::Restore(extent));
        self.queue.after(after, Event::Base { node, life, op, write, at, token });
        Ok(())
    }

    /// A base takes writes of this mover only from now on; what others had under way has arrived or
    /// never will.
    pub(super) fn base_fenced(
        &mut self,
        node: usize,
        life: u32,
        volume: usize,
        token: Token,
    ) -> Verdict {
        if self.pollers[node].life != life {
            return Ok(());
        }
        let mover = self.pollers[node].id.mover;
        if !self.site.latest().members.contains(&mover) {
            // Its key was preempted: it cannot preempt anybody, and learns of it by that.
            return self.crash_primary(mover);
        }
        let now = self.queue.now();
        let id = self.pollers[node].id;
        self.trace.note(now, b'F', [volume as u64, node as u64], |out| {
            write!(out, "the base of v{volume} is fenced for {id}")
        });
        if PrimaryShard::takes_over(token) {
            // Nothing of its own can be under way there.
            self.base[volume].user_died(&mut self.disk_rng);
            self.observer.fenced(volume);
        }
        let members = &self.site.latest().members;
        let barred = (0..self.profile.primaries).filter(|m| !members.contains(&MoverId(*m)));
        self.barred[volume] = barred.map(|mover| 1_u64 << mover).sum();
        let here = self.here(node);
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_written(here, token, NvmeStatus::SUCCESS);
        }
        self.settle(node)
    }

    pub(super) fn disk_op(&mut self) -> DiskOp {
        self.disk_ops += 1;
        DiskOp(self.disk_ops)
    }

    pub(super) fn base_ends(
        &mut self,
        node: usize,
        life: u32,
        op: DiskOp,
        write: WriteId,
        at: BaseOp,
        token: Token,
    ) -> Verdict {
        let volume = self.observer.writes[write as usize].volume;
        if !self.base[volume].is_pending(op) {
            // A fence was faster. The mover that is kept out learns of it by that.
            self.stats.late_writes += 1;
            let mover = self.pollers[node].id.mover;
            return if self.pollers[node].life == life {
                if self.profile.sabotage.is(Sabotage::AckExcluded) {
                    let here = self.here(node);
                    if let Some(machines) = &mut self.pollers[node].node {
                        machines.handle_written(here, token, NvmeStatus::SUCCESS);
                    }
                    return self.turn_ends(node);
                }
                self.crash_primary(mover)
            } else {
                Ok(())
            };
        }
        if self.pollers[node].life != life {
            if self.disk_rng.chance(300_000) {
                let after = self.disk_rng.delay(self.profile.late_ns);
                self.queue.after(after, Event::Base { node, life, op, write, at, token });
                return Ok(());
            }
            self.stats.late_writes += 1;
            self.base[volume].complete(op);
            return Ok(());
        }
        let ok = !self.disk_rng.chance(self.profile.disks.base_ppm);
        if ok {
            self.base[volume].complete(op);
        } else {
            self.stats.base_errors += 1;
            self.base[volume].fail(op, &mut self.disk_rng);
        }
        match at {
            BaseOp::Write => {
                self.observer.base_ended(write, self.pollers[node].id.mover.0, ok);
            }
            BaseOp::Restore(extent) => self.observer.restore_ended(write, extent, ok),
        }
        let now = self.queue.now();
        self.trace.note(now, b'D', [write.into(), u64::from(ok)], |out| {
            write!(out, "the base {} write {write}", if ok { "has" } else { "failed" })
        });
        let status = if ok { NvmeStatus::SUCCESS } else { NvmeStatus::WRITE_FAULT };
        let here = self.here(node);
        if let Some(machines) = &mut self.pollers[node].node {
            machines.handle_written(here, token, status);
        }
        self.turn_ends(node)
    }
}
