//! Host commands: from the tap to the shard or the base, and back.
//!
//! Write-nature commands become updates: admitted, copied once into the arena with their checksum,
//! numbered. What finds no room waits in its volume's queue. Reads and flushes go to the base. For a
//! volume of another mover, updates are forwarded by the shard instead of numbered (G3), and the rest
//! is asked of that mover (`remote`).

use super::excluded::PATH_INACCESSIBLE;
use super::inflight::InFlight;
use super::poller::{IoContext, Poller};
use super::siblings::{ForeignCommand, SiblingMessage};
use crate::config::Timestamps;
use crate::mem::arena::HEADER_BYTES;
use crate::proto::command::HostTag;
use crate::proto::primary::HostUpdate;
use crate::proto::time::TimeStamp;
use crate::proto::types::{Extent, NvmeStatus, ShardId, UpdateKind};
use crate::spdk::error::Submit;
use crate::spdk::payload::ForeignIovs;
use crate::spdk::tap::{HostIo, IoKind};
use crate::wire::update::UpdateHeader;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

/// Read of a volume without base: generic status, "Operation Denied" (NVM Express Base
/// Specification 2.0, figure "Generic Command Status Values").
pub(super) const READ_OF_WRITE_ONLY_LEG: NvmeStatus = NvmeStatus { sct: 0, sc: 0x15 };

/// Generic status, "Command Aborted due to SQ Deletion": the mover goes, hosts take another path.
const ABORTED: NvmeStatus = NvmeStatus { sct: 0, sc: 0x08 };

/// Where a command waits for its completion.
#[derive(Debug)]
pub(super) enum Origin {
    /// At this poller.
    Here(HostIo),
    /// At a sibling, under its tag.
    Sibling { poller: u8, tag: HostTag },
}

/// A host command at the poller that serves its volume.
#[derive(Debug)]
pub(super) struct HostCommand {
    pub(super) origin: Origin,
    /// Index into the poller's volumes.
    pub(super) volume: u32,
    pub(super) kind: IoKind,
    pub(super) extent: Extent,
    pub(super) fua: bool,
    pub(super) iovs: ForeignIovs,
    /// Counter value on arrival.
    pub(super) started: u64,
}

/// What became of an attempt to number an update.
enum Attempt {
    Numbered,
    NoRoom(HostCommand),
}

impl Poller {
    /// A command that a host sent to one of the mover's taps, arriving at this poller.
    #[inline]
    pub(super) fn host_arrived(&mut self, tap: u32, io: HostIo, cycles: u64) {
        use super::parts::TapOwner;
        let (kind, fua) = (io.kind(), io.force_unit_access());
        let extent = Extent { lba: io.offset_blocks(), blocks: io.blocks() as u32 };
        let iovs = io.foreign_iovs();
        match self.taps.get(tap as usize).copied() {
            Some(TapOwner::Here(volume)) => {
                let origin = Origin::Here(io);
                self.serve(HostCommand {
                    origin,
                    volume,
                    kind,
                    extent,
                    fua,
                    iovs,
                    started: cycles,
                });
            }
            Some(TapOwner::Sibling { poller, volume }) => {
                let tag = self.handed_over.insert(io);
                let me = self.me.poller;
                let command = ForeignCommand { poller: me, tag, volume, kind, extent, fua, iovs };
                self.siblings.send(poller, SiblingMessage::Command(command));
            }
            None => io.complete(NvmeStatus::INTERNAL.into()),
        }
    }

    /// A command that waits at a sibling.
    pub(super) fn sibling_command(&mut self, command: ForeignCommand, cycles: u64) {
        let ForeignCommand { poller, tag, volume, kind, extent, fua, iovs } = command;
        let origin = Origin::Sibling { poller, tag };
        self.serve(HostCommand { origin, volume, kind, extent, fua, iovs, started: cycles });
    }

    /// Begins with a command: here, or at the shard that is responsible.
    #[inline]
    pub(super) fn serve(&mut self, command: HostCommand) {
        if self.volumes[command.volume as usize].excluded {
            return self.complete(command, PATH_INACCESSIBLE);
        }
        match command.kind {
            IoKind::Write | IoKind::WriteZeroes | IoKind::Unmap => {
                let volume = command.volume;
                let owner = self.volumes[volume as usize].owner;
                if self.refusing {
                    self.complete(command, ABORTED);
                } else if owner.is_some_and(|owner| self.net.is_lost(owner, self.now)) {
                    self.remote.counters.given_up += 1;
                    self.complete(command, NvmeStatus::ANA_TRANSITION);
                } else if self.quiesced || self.hosts.must_wait(volume) {
                    self.hosts.wait(volume, command);
                } else if let Attempt::NoRoom(command) = self.attempt(command) {
                    self.hosts.wait(volume, command);
                }
            }
            IoKind::Read | IoKind::Compare | IoKind::Flush => {
                let volume = &self.volumes[command.volume as usize];
                match (volume.owner, command.kind) {
                    (Some(owner), _) => self.ask(owner, command),
                    (None, _) if !volume.ready => self.wait_until_ready(command),
                    (None, IoKind::Flush) => self.flush(command),
                    (None, _) => self.read(command),
                }
            }
        }
    }

    /// Numbers an update if there is room everywhere it needs room.
    #[inline]
    fn attempt(&mut self, command: HostCommand) -> Attempt {
        let Some(shard) = self.node.primary() else {
            self.complete(command, NvmeStatus::INTERNAL);
            return Attempt::Numbered;
        };
        let volume = &self.volumes[command.volume as usize];
        let (kind, payload_len) = match command.kind {
            IoKind::Write => (UpdateKind::Write, command.extent.blocks * volume.block_bytes),
            IoKind::WriteZeroes => (UpdateKind::WriteZeroes, 0),
            _ => (UpdateKind::Deallocate, 0),
        };
        let record_bytes = HEADER_BYTES as u32 + payload_len.next_multiple_of(64);
        let admitted = match shard.admit(command.volume, record_bytes) {
            Ok(admitted) => admitted,
            Err(_) => {
                shard.handle_refused();
                return Attempt::NoRoom(command);
            }
        };
        let Some(buf) = self.arena.append(self.own_log, payload_len as usize, volume.align) else {
            self.arena_full = true;
            return Attempt::NoRoom(command);
        };
        let payload_crc =
            if payload_len == 0 { 0 } else { command.iovs.copy_into(&mut self.arena, buf) };
        let list_seq = match &self.list {
            Some(next) if volume.numbered_by_mover => next.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let (extent, fua, index) = (command.extent, command.fua, command.volume);
        let volume = &mut self.volumes[index as usize];
        let time = match volume.timestamps {
            Timestamps::None => TimeStamp::NONE,
            source => self.stamps.stamp(source),
        };
        if volume.owner.is_none() {
            // What is forwarded counts where it is numbered.
            volume.counters.writes += 1;
            volume.counters.bytes_written += u64::from(payload_len);
        }
        let tag = self.hosts.insert(command);
        let update = HostUpdate {
            tag,
            volume: index,
            kind,
            extent,
            fua,
            payload_len,
            payload_crc,
            buf,
            record_bytes,
            list_seq,
            time,
        };
        let Some(shard) = self.node.primary() else { return Attempt::Numbered };
        let info = shard.host_update(admitted, &update);
        let header = UpdateHeader::seal(&info);
        self.arena.header_mut(buf).copy_from_slice(header.as_bytes());
        Attempt::Numbered
    }

    /// Numbers what other movers took for volumes of this poller (G3).
    #[inline]
    pub(super) fn number_arrived(&mut self) -> u64 {
        let mut done = 0;
        while self.quiesced
            && self.node.primary().is_some_and(|s| s.refuse_arrived(NvmeStatus::ANA_TRANSITION))
        {
            done += 1;
        }
        while let Some(shard) = self.node.primary()
            && let Some(arrived) = shard.next_arrived()
        {
            let (payload_len, volume) = (arrived.info.payload_len, arrived.volume as usize);
            if self.volumes[volume].excluded {
                shard.refuse_arrived(PATH_INACCESSIBLE);
                done += 1;
                continue;
            }
            let list = self.list.as_ref().filter(|_| self.volumes[volume].numbered_by_mover);
            let record_bytes = HEADER_BYTES as u32 + payload_len.next_multiple_of(64);
            let next = || list.map_or(0, |list| list.fetch_add(1, Ordering::Relaxed));
            let Some((buf, info)) = shard.number_arrived(record_bytes, next) else { break };
            let header = UpdateHeader::seal(&info);
            self.arena.header_mut(buf).copy_from_slice(header.as_bytes());
            let counters = &mut self.volumes[volume].counters;
            counters.writes += 1;
            counters.bytes_written += u64::from(payload_len);
            done += 1;
        }
        done
    }

    /// Ends the updates that wait for room to be forwarded to `owner`, which is lost: they have not
    /// left.
    pub(super) fn end_waiting_for(&mut self, owner: ShardId) -> u64 {
        let mut done = 0;
        for volume in 0..self.volumes.len() {
            if self.volumes[volume].owner != Some(owner) {
                continue;
            }
            while let Some(command) = self.hosts.next_waiting(volume as u32) {
                self.complete(command, NvmeStatus::ANA_TRANSITION);
                done += 1;
            }
        }
        done
    }

    /// Tries the commands that wait for room, volume by volume.
    pub(super) fn retry_waiting(&mut self) -> u64 {
        if self.quiesced || self.hosts.waiting().0 == 0 {
            return 0;
        }
        let mut done = 0;
        for volume in self.hosts.volumes_in_turn() {
            while let Some(command) = self.hosts.next_waiting(volume) {
                if let Attempt::NoRoom(command) = self.attempt(command) {
                    self.hosts.wait_first(volume, command);
                    break;
                }
                done += 1;
            }
        }
        done
    }

    /// Reads or compares: the base answers.
    fn read(&mut self, command: HostCommand) {
        let volume = &mut self.volumes[command.volume as usize];
        volume.counters.reads += 1;
        volume.counters.bytes_read +=
            u64::from(command.extent.blocks) * u64::from(volume.block_bytes);
        let Some(channel) = &volume.channel else {
            self.complete(command, READ_OF_WRITE_ONLY_LEG);
            return;
        };
        let (kind, extent, iovs) = (command.kind, command.extent, command.iovs);
        let tag = self.hosts.insert(command);
        let context = self.contexts.insert(IoContext::Host(tag));
        let blocks = u64::from(extent.blocks);
        let result = match kind {
            IoKind::Compare => channel.compare_foreign(iovs, extent.lba, blocks, context),
            _ => channel.read_foreign(iovs, extent.lba, blocks, context),
        };
        self.submitted_host(tag, context, result);
    }

    fn flush(&mut self, command: HostCommand) {
        let volume = &self.volumes[command.volume as usize];
        match &volume.channel {
            Some(channel) if volume.geometry_flush => {
                let tag = self.hosts.insert(command);
                let context = self.contexts.insert(IoContext::Host(tag));
                let result = channel.flush(context);
                self.submitted_host(tag, context, result);
            }
            _ => self.complete(command, NvmeStatus::SUCCESS),
        }
    }

    /// A read or flush of a host was handed to the base, or not.
    fn submitted_host(&mut self, tag: HostTag, context: u64, result: Result<(), Submit>) {
        let Err(why) = result else { return };
        self.contexts.remove(context);
        let Some(command) = self.hosts.remove(tag) else { return };
        match why {
            Submit::Busy => self.busy.push_back(command),
            Submit::Refused(_) => self.complete(command, NvmeStatus::INTERNAL),
        }
    }

    /// Submits again what the base had no request object for.
    pub(super) fn retry_busy(&mut self) -> u64 {
        let count = self.busy.len();
        for _ in 0..count {
            let Some(command) = self.busy.pop_front() else { break };
            match command.kind {
                IoKind::Read | IoKind::Compare => self.read(command),
                _ => self.flush(command),
            }
        }
        count as u64
    }

    /// The command named by `tag` has its fate.
    #[inline]
    pub(super) fn complete_tag(&mut self, tag: HostTag, status: NvmeStatus) {
        let Some(command) = self.hosts.remove(tag) else {
            let given_up = self.refusing || self.volumes.iter().any(|volume| volume.excluded);
            debug_assert!(given_up, "a command completes once");
            return;
        };
        self.complete(command, status);
    }

    #[inline]
    pub(super) fn complete(&mut self, command: HostCommand, status: NvmeStatus) {
        if !status.is_ok() {
            self.volumes[command.volume as usize].counters.errors += 1;
        } else if matches!(command.kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Unmap) {
            self.stats.write_latency(self.cycles.wrapping_sub(command.started));
        }
        match command.origin {
            Origin::Here(io) => io.complete(status.into()),
            Origin::Sibling { poller, tag } => {
                self.siblings.send(poller, SiblingMessage::Done { tag, status });
            }
        }
    }

    /// Lets hosts go. Updates under way are completed to them though they go on here: their data
    /// is in the arena. Reads are left to end by themselves, as the base writes to hosts' memory.
    pub(super) fn refuse_hosts(&mut self) {
        self.quiesced = true;
        self.refusing = true;
        self.abandon_hosts();
        let update = |command: &HostCommand| {
            matches!(command.kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Unmap)
        };
        for command in self.hosts.abandon(update) {
            self.complete(command, ABORTED);
        }
    }

    /// Fails everything that still waits: the poller ends.
    pub(super) fn abandon_hosts(&mut self) {
        let volumes: Vec<u32> = self.hosts.volumes_in_turn().collect();
        for volume in volumes {
            while let Some(command) = self.hosts.next_waiting(volume) {
                self.complete(command, ABORTED);
            }
        }
        self.end_all_asks();
        for command in self.take_unready() {
            self.complete(command, ABORTED);
        }
        while let Some(command) = self.busy.pop_front() {
            self.complete(command, ABORTED);
        }
    }
}

impl Poller {
    /// Fails everything that is still under way: nobody is left to finish it.
    pub(super) fn abort_hosts(&mut self) {
        self.end_all_asks();
        for command in self.hosts.drain() {
            self.complete(command, ABORTED);
        }
        for io in self.handed_over.drain() {
            io.complete(ABORTED.into());
        }
    }
}

/// Commands of hosts that this poller holds for siblings.
pub(super) type HandedOver = InFlight<HostIo>;
