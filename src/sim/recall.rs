//! Reading back from a base what a description says was written there (G12).

use super::arena::{Record, Room};
use super::cluster::{Cluster, Event};
use super::observer::{Verdict, ensure};
use crate::mem::crc32c::crc32c;
use crate::proto::command::Token;
use crate::proto::primary::ReadBack;
use crate::proto::types::{BufRef, Extent, NvmeStatus, VolumeId};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateInfo};

/// A read that is under way.
#[derive(Debug)]
pub(super) struct Recall {
    pub(super) node: usize,
    life: u32,
    volume: usize,
    extent: Extent,
    /// What the description says.
    info: UpdateInfo,
    token: Token,
}

impl Cluster {
    /// Reads a range of a base for the description in `buf`.
    pub(super) fn recall(
        &mut self,
        node: usize,
        volume: VolumeId,
        extent: Extent,
        buf: BufRef,
        token: Token,
    ) -> Verdict {
        let record = self.pollers[node].arena.get(buf);
        ensure!(0, record.is_some(), "a description is read back for that was freed");
        let Some(info) = record.map(|record| record.info) else { return Ok(()) };
        ensure!(0, info.extent == extent, "{extent:?} is read back for {info:?}");
        let (life, volume) = (self.pollers[node].life, volume.0 as usize);
        let after = self.disk_rng.delay(self.profile.write_ns);
        let recall = Recall { node, life, volume, extent, info, token };
        self.queue.after(after, Event::Recall(recall));
        Ok(())
    }

    /// It is read, if there is room for it by now.
    pub(super) fn recalled(&mut self, recall: Recall) -> Verdict {
        let Recall { node, volume, extent, mut info, token, .. } = recall;
        if self.pollers[node].life != recall.life {
            return Ok(());
        }
        let here = self.here(node);
        if self.disk_rng.chance(self.profile.disks.base_ppm) {
            if let Some(machines) = &mut self.pollers[node].node {
                machines.handle_read_failed(here, token, NvmeStatus::WRITE_FAULT);
            }
            return self.turn_ends(node);
        }
        let len = UPDATE_HEADER_BYTES + info.payload_len as usize;
        if !self.pollers[node].arena.has_room(Room::Mirror, len) {
            if let Some(machines) = &mut self.pollers[node].node {
                machines.handle_pressure(here);
            }
            let after = self.disk_rng.delay(self.profile.write_ns);
            self.queue.after(after, Event::Recall(recall));
            return self.turn_ends(node);
        }
        let mut bytes = vec![0; UPDATE_HEADER_BYTES];
        for value in &self.base[volume].current()[extent.lba as usize..extent.end() as usize] {
            for _ in 0..self.profile.block_bytes / 8 {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        let payload_crc = crc32c(&bytes[UPDATE_HEADER_BYTES..]);
        let poller = &mut self.pollers[node];
        let mut record = Record { bytes, info, room: Room::Mirror };
        record.number(&info);
        let buf = poller.arena.insert(record);
        let Some(machines) = &mut poller.node else { return Ok(()) };
        let verdict = machines.handle_read_back(token, buf, payload_crc);
        match verdict {
            ReadBack::NotNeeded => drop(poller.arena.remove(buf)),
            ReadBack::Own => {}
            ReadBack::Overtaken { not_before } => {
                info.payload_crc = payload_crc;
                info.not_before = info.not_before.max(not_before);
                if let Some(record) = poller.arena.get_mut(buf) {
                    record.number(&info);
                }
                self.stats.overtaken += 1;
            }
        }
        self.stats.read_back += 1;
        let (id, now) = (self.pollers[node].id, self.queue.now());
        self.trace.note(now, b'b', [node as u64, volume as u64, info.seq.0], |out| {
            write!(out, "{id} has read {extent:?} of v{volume} for {}: {verdict:?}", info.seq)
        });
        self.turn_ends(node)
    }
}
