//! Updates that other movers took for volumes this shard is responsible for (G3): they arrive,
//! are numbered like its own, and their takers are told.
//!
//! The taker's record counts as a mirror copy once the number is stored there, so the base is not
//! written before: otherwise a take-over could order the update anew (invariant 2).

use super::number::HostUpdate;
use super::room::Admitted;
use super::shard::{PrimaryShard, RecordVerdict};
use super::slab::{HERE, NOBODY};
use crate::proto::command::{Command, HostTag};
use crate::proto::message::Message;
use crate::proto::sabotage::Sabotage;
use crate::proto::time::TimeStamp;
use crate::proto::types::{BufRef, ForwardId, NvmeStatus, ShardId};
use crate::wire::update::UpdateInfo;
use alloc::vec::Vec;

/// A forwarded update that has no number yet.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// What its record says.
    pub info: UpdateInfo,
    /// The record.
    pub buf: BufRef,
    /// Index of the volume in [`super::PrimaryConfig::volumes`].
    pub volume: u32,
    /// Index of the mirror peer that took it; [`HERE`] when this shard did, before it was
    /// responsible.
    pub(super) from: u8,
}

impl PrimaryShard {
    /// A record that another shard took for one of this shard's volumes.
    pub(super) fn take(&mut self, from: ShardId, info: &UpdateInfo, buf: BufRef) -> RecordVerdict {
        let Some(peer) = self.mirrors.iter().position(|m| m.shard == from) else {
            self.counters.unexpected += 1;
            return RecordVerdict::NotNeeded;
        };
        match self.volume_index(info.volume) {
            Some(volume)
                if self.is_responsible(volume)
                    || self.is_coming(volume)
                    || self.sabotage.is(Sabotage::AcceptStaleMap) =>
            {
                let config = &self.volumes[volume as usize].config;
                if (config.block_bytes, config.group) != (info.block_bytes, info.group) {
                    // It would be written with another length than its payload has.
                    self.counters.unexpected += 1;
                    let (forward, status) = (info.forward, NvmeStatus::INTERNAL);
                    let message = Message::Forwarded { forward, status };
                    self.commands.push_back(Command::Send { to: from, message });
                    return RecordVerdict::NotNeeded;
                }
                let from = peer as u8;
                if self.recovered_forwards.contains(&(from, info.forward)) {
                    // It has a number from the shard that failed, which is told again.
                    return RecordVerdict::NotNeeded;
                }
                self.arrived.push_back(Arrived { info: *info, buf, volume, from });
                RecordVerdict::Kept
            }
            known => {
                let owner = known.map_or(self.me, |volume| self.owner_of(volume));
                let (forward, map_version) = (info.forward, self.map_version);
                let message = Message::NotResponsible { forward, owner, map_version };
                self.counters.misdirected += 1;
                self.commands.push_back(Command::Send { to: from, message });
                RecordVerdict::NotNeeded
            }
        }
    }

    /// The forwarded update that is numbered next, if any waits. Those of a volume that is on its way
    /// here do not keep others back.
    #[inline]
    #[must_use]
    pub fn next_arrived(&self) -> Option<&Arrived> {
        self.arrived.get(self.next_index()?)
    }

    #[inline]
    fn next_index(&self) -> Option<usize> {
        self.arrived.iter().position(|arrived| {
            let volume = &self.volumes[arrived.volume as usize];
            let stale = self.sabotage.is(Sabotage::AcceptStaleMap);
            (volume.owner == HERE || stale) && volume.ready
        })
    }

    /// Numbers [`Self::next_arrived`] if there is room for it. It takes `record_bytes` in an arena,
    /// header and padding included; `list_seq` draws the next number of the mover's list, or says 0 when
    /// the group does not number so (G7). Its time stamp is its taker's (G8). The caller writes the
    /// header that says what is returned into the record before it carries out any command.
    pub fn number_arrived(
        &mut self,
        record_bytes: u32,
        list_seq: impl FnOnce() -> u64,
    ) -> Option<(BufRef, UpdateInfo)> {
        let index = self.next_index()?;
        let Arrived { info, buf, volume, from } = self.arrived[index];
        let peer = Some(from).filter(|from| *from != HERE);
        let Ok(Admitted { mirrors }) = self.admit_own(volume, record_bytes, peer) else {
            self.handle_refused();
            return None;
        };
        self.arrived.remove(index);
        let tag = match peer {
            None => self.taken_back(info.forward)?,
            Some(_) => HostTag(info.forward.0),
        };
        let update = HostUpdate {
            tag,
            volume,
            kind: info.kind,
            extent: info.extent,
            fua: info.fua,
            payload_len: info.payload_len,
            payload_crc: info.payload_crc,
            buf,
            record_bytes,
            list_seq: list_seq(),
            time: TimeStamp { time_ns: info.time_ns, error_ns: info.time_error_ns },
        };
        self.counters.taken += 1;
        Some((buf, self.number(mirrors, &update, from)))
    }

    /// Refuses [`Self::next_arrived`] with `status`: its volume is not served here any more, or this
    /// mover is being stopped. What has no number has taken no effect, and will not.
    /// Where there is none, another one that waits for its volume; false when none is left.
    pub fn refuse_arrived(&mut self, status: NvmeStatus) -> bool {
        let arrived = self.arrived.remove(self.next_index().unwrap_or(0));
        if let Some(arrived) = &arrived {
            let forward = arrived.info.forward;
            if arrived.from == HERE {
                if let Some(slot) = self.forwards.find(forward) {
                    self.answer(slot, status);
                }
                return true;
            }
            let to = self.mirrors[usize::from(arrived.from)].shard;
            let message = Message::Forwarded { forward, status };
            self.commands.push_back(Command::Send { to, message });
            self.commands.push_back(Command::Free { buf: arrived.buf });
        }
        arrived.is_some()
    }

    /// Ends the forwarding of an update for which this shard is responsible by now; the source's
    /// command.
    fn taken_back(&mut self, id: ForwardId) -> Option<HostTag> {
        let slot = self.forwards.find(id)?;
        let forward = *self.forwards.at(slot);
        self.forwards.remove(slot);
        Some(forward.tag)
    }

    /// The peer at `index` lost its memory: nobody waits for what it forwarded. What has no number
    /// is dropped, the rest goes on; its copies there are gone like others.
    pub(super) fn taker_restarted(&mut self, index: u8) {
        let commands = &mut self.commands;
        self.arrived.retain(|arrived| {
            if arrived.from == index {
                commands.push_back(Command::Free { buf: arrived.buf });
            }
            arrived.from != index
        });
        let slots: Vec<u32> = self.slab.used_slots().collect();
        for slot in slots {
            let update = self.slab.get_mut(slot);
            if update.origin == index {
                update.origin = NOBODY;
                if update.mirrors & 1 << index != 0 {
                    // From now on a copy there takes of what that shard granted.
                    let bytes = u64::from(update.record_bytes);
                    self.mirrors[usize::from(index)].used_bytes += bytes;
                }
            }
        }
    }
}
