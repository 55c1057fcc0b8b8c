//! Numbering: an admitted update gets its place in its volume's order and in the open set, and its
//! copies leave (G1, G2); which shard is responsible for it (G3).

use super::room::Admitted;
use super::shard::PrimaryShard;
use super::slab::{DESCRIBED, ELSEWHERE, FIRST_IN_RANGE, HERE, NIL, NOBODY, RELEASED, Update};
use crate::proto::command::{Command, HostTag, RecordRole};
use crate::proto::ranges::Admission as RangeAdmission;
use crate::proto::sabotage::Sabotage;
use crate::proto::time::TimeStamp;
use crate::proto::types::{
    BufRef, Extent, ForwardId, NvmeStatus, Seq, SetId, ShardId, UpdateKind, VolumeId,
};
use crate::wire::update::UpdateInfo;

/// A write-nature host command whose record is in the arena.
#[derive(Clone, Copy, Debug)]
pub struct HostUpdate {
    /// Names the host command.
    pub tag: HostTag,
    /// Index of the volume in [`super::PrimaryConfig::volumes`].
    pub volume: u32,
    /// What it does.
    pub kind: UpdateKind,
    /// Where.
    pub extent: Extent,
    /// Force unit access.
    pub fua: bool,
    /// Payload bytes.
    pub payload_len: u32,
    /// CRC-32C of the payload.
    pub payload_crc: u32,
    /// The record.
    pub buf: BufRef,
    /// What the record takes in an arena, header and padding included.
    pub record_bytes: u32,
    /// The next number of the mover's list; 0 unless the group numbers so (G7).
    pub list_seq: u64,
    /// When it was taken from its source (G8).
    pub time: TimeStamp,
}

impl PrimaryShard {
    /// Numbers an admitted update and sends its copies (G1, G2), or forwards it to the responsible
    /// shard (G3). The caller writes the header that says what is returned before it carries out
    /// any command.
    #[inline]
    pub fn host_update(&mut self, admitted: Admitted, update: &HostUpdate) -> UpdateInfo {
        match self.volumes[update.volume as usize].owner {
            HERE => self.number(admitted.mirrors, update, HERE),
            owner => self.forward(owner, update),
        }
    }

    /// Numbers an update that this shard took, or that the mirror peer at `origin` did.
    #[inline]
    pub(super) fn number(&mut self, mirrors: u64, update: &HostUpdate, origin: u8) -> UpdateInfo {
        let volume_index = update.volume as usize;
        let volume = &mut self.volumes[volume_index];
        let group = &mut self.groups[volume.group];
        let seq = volume.next_seq;
        volume.next_seq = seq.next();
        let tracking = group.broken.is_some();
        let set = if tracking { SetId(0) } else { group.sets.open().map_or(SetId(0), |s| s.id) };
        // What has no payload is described in full by its header.
        let described = group.described && update.payload_len > 0;
        let info = UpdateInfo {
            kind: update.kind,
            fua: update.fua,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            volume: volume.config.id,
            group: group.id,
            origin: match origin {
                HERE => self.me.mover,
                peer => self.mirrors[usize::from(peer)].shard.mover,
            },
            owner: self.me,
            epoch: self.epoch,
            map_version: group.map,
            set,
            seq,
            extent: update.extent,
            block_bytes: volume.config.block_bytes,
            list_seq: update.list_seq,
            time_ns: update.time.time_ns,
            time_error_ns: update.time.error_ns,
            forward: if origin == HERE { ForwardId(0) } else { ForwardId(update.tag.0) },
            described,
            not_before: SetId(0),
        };
        let unheard = origin != HERE && self.sabotage.is(Sabotage::NumberUnheard);
        let slot = self.slab.insert(Update {
            seq,
            set,
            extent: update.extent,
            buf: update.buf,
            tag: update.tag,
            origin,
            mirrors,
            mirrors_pending: if unheard { mirrors & !(1 << origin) } else { mirrors },
            mirrors_travelling: mirrors,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            record_bytes: update.record_bytes,
            volume: update.volume,
            next: NIL,
            generation: 0,
            kind: update.kind,
            fua: update.fua,
            flags: if tracking { RELEASED } else { 0 } | if described { DESCRIBED } else { 0 },
        });
        let mut crowded = self.slab.used() > self.slab.max() / 2;
        if volume.lost_from != Seq(0)
            && let Some(open) = group.sets.open_mut()
        {
            let lost = core::mem::take(&mut volume.lost_from);
            (lost.0..seq.0).for_each(|lost| open.gap(volume_index, Seq(lost)));
        }
        if !tracking && let Some(open) = group.sets.add(volume_index, &info, update.record_bytes) {
            self.slab.get_mut(slot).next = core::mem::replace(&mut open.head, slot);
        }
        match self.order.admit(slot, info.volume, update.extent) {
            RangeAdmission::Ready => self.slab.get_mut(slot).flags |= FIRST_IN_RANGE,
            RangeAdmission::Waits if self.sabotage.is(Sabotage::OverlapAtBase) => {
                self.slab.get_mut(slot).flags |= FIRST_IN_RANGE;
            }
            RangeAdmission::Waits => self.counters.overlaps += 1,
        }
        let mut rest = mirrors;
        while rest != 0 {
            let index = rest.trailing_zeros();
            rest &= rest - 1;
            let mirror = &mut self.mirrors[index as usize];
            mirror.in_flight += 1;
            let role = if index == u32::from(origin) {
                // It has the record in memory of its own, and lacks the number.
                RecordRole::Numbered
            } else {
                mirror.used_bytes += u64::from(update.record_bytes);
                crowded |= mirror.is_crowded();
                if described { RecordRole::Description } else { RecordRole::Mirror }
            };
            let token = self.slab.token(slot, index as u8);
            let (to, buf) = (mirror.shard, update.buf);
            self.commands.push_back(Command::SendRecord { to, role, buf, token });
        }
        self.counters.updates += 1;
        self.counters.bytes += u64::from(update.payload_len);
        if crowded && !tracking {
            self.ask_for_early_close(self.volumes[volume_index].group);
        }
        if self.slab.get(slot).mirrors_pending == 0 {
            self.became_safe(slot);
        }
        if self.sabotage.is(Sabotage::BaseBeforeMirror) {
            self.try_base(slot);
        }
        if origin == HERE && self.sabotage.is(Sabotage::AckBeforeMirror) {
            let (tag, status) = (update.tag, NvmeStatus::SUCCESS);
            self.commands.push_back(Command::CompleteHost { tag, status });
        }
        info
    }

    /// What the record of `slot` says, as far as its set needs it: the time stamp and the number in the
    /// mover's list are in the record alone.
    pub(super) fn info(&self, slot: u32) -> UpdateInfo {
        let update = self.slab.get(slot);
        let volume = &self.volumes[update.volume as usize].config;
        UpdateInfo {
            kind: update.kind,
            fua: update.fua,
            payload_crc: update.payload_crc,
            payload_len: update.payload_len,
            volume: volume.id,
            group: volume.group,
            origin: match update.origin {
                HERE | NOBODY => self.me.mover,
                peer => self.mirrors[usize::from(peer)].shard.mover,
            },
            owner: self.me,
            epoch: self.epoch,
            map_version: self.groups[self.volumes[update.volume as usize].group].map,
            set: update.set,
            seq: update.seq,
            extent: update.extent,
            block_bytes: volume.block_bytes,
            list_seq: 0,
            time_ns: 0,
            time_error_ns: 0,
            forward: match update.origin {
                HERE | NOBODY => ForwardId(0),
                _ => ForwardId(update.tag.0),
            },
            described: update.has(DESCRIBED),
            not_before: SetId(0),
        }
    }

    /// The index of a volume whose updates this shard may take.
    pub(super) fn volume_index(&self, id: VolumeId) -> Option<u32> {
        let found = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[found].1)
    }

    /// Whether what movers left behind of the volume at this index is not recovered: its group has lost
    /// updates, or forms no sets. What is known of may be older than what is on the base, where everything
    /// is that was ever acknowledged.
    pub(super) fn has_lost(&self, volume: u32) -> bool {
        let group = &self.groups[self.volumes[volume as usize].group];
        group.lost || group.broken.is_some()
    }

    /// Whether this shard is responsible for the volume at this index.
    #[inline]
    #[must_use]
    pub fn is_responsible(&self, volume: u32) -> bool {
        self.volumes[volume as usize].owner == HERE
    }

    /// Whether this shard is responsible for the volume at this index and takes its updates: it is not
    /// being taken over, nor on its way here.
    #[must_use]
    pub fn is_ready(&self, volume: u32) -> bool {
        let volume = &self.volumes[volume as usize];
        volume.owner == HERE && volume.ready
    }

    /// The shard that is responsible for the volume at this index.
    #[must_use]
    pub fn owner_of(&self, volume: u32) -> ShardId {
        self.volumes[volume as usize].responsible
    }
}

/// [`HERE`], the index among `mirrors` of the peer that `owner` is, or [`ELSEWHERE`].
pub(super) fn owner_index(
    me: ShardId,
    mut mirrors: impl Iterator<Item = ShardId>,
    owner: ShardId,
) -> u8 {
    if owner == me {
        return HERE;
    }
    mirrors.position(|mirror| mirror == owner).map_or(ELSEWHERE, |peer| peer as u8)
}
