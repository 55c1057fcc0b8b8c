//! What the primary of a [`super::site::Site`] did, made beforehand from a seed.

use crate::proto::message::VolumeFacts;
use crate::proto::types::{
    Epoch, Extent, GroupId, MapVersion, MoverId, Seq, SetId, ShardId, UpdateKind, VolumeId,
};
use crate::wire::update::{UpdateInfo, digest_of};
use alloc::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

pub(super) const EPOCH: Epoch = Epoch(1);
pub(super) const BLOCKS: u64 = 12;
pub(super) const PRIMARY: ShardId = ShardId::new(1, 0);
pub(super) const COORDINATOR: ShardId = ShardId::new(10, 0);
pub(super) const SHARDS: [ShardId; 3] = [COORDINATOR, ShardId::new(10, 1), ShardId::new(11, 0)];

/// Numbers from a seed (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What a block holds: the number of the update that wrote it, 0 for zeroes.
pub(super) type Image = BTreeMap<VolumeId, Vec<u64>>;

pub(super) fn apply_to(image: &mut Image, info: &UpdateInfo) {
    let blocks = image.entry(info.volume).or_insert_with(|| vec![0; BLOCKS as usize]);
    for block in info.extent.lba..info.extent.end() {
        blocks[block as usize] = if info.kind == UpdateKind::Write { info.seq.0 } else { 0 };
    }
}

/// What the primary did, set by set.
pub(super) struct History {
    pub(super) groups: Vec<GroupId>,
    pub(super) owners: BTreeMap<VolumeId, (GroupId, ShardId)>,
    /// Per group and set: updates, void ones included, and facts.
    pub(super) sets: BTreeMap<(GroupId, SetId), (Vec<UpdateInfo>, Vec<VolumeFacts>)>,
    /// Per group and set: the volumes at that boundary.
    pub(super) images: BTreeMap<(GroupId, SetId), Image>,
    pub(super) last: SetId,
}

impl History {
    pub(super) fn new(random: &mut Random) -> Self {
        let groups = vec![GroupId(1), GroupId(2)];
        let mut owners = BTreeMap::new();
        for volume in 0..6_u32 {
            let group = groups[usize::from(volume >= 4)];
            owners.insert(VolumeId(volume), (group, SHARDS[volume as usize % 3]));
        }
        let last = SetId(3 + random.below(5));
        let (mut sets, mut images) = (BTreeMap::new(), BTreeMap::new());
        for group in &groups {
            let mut image = Image::new();
            let mut next: BTreeMap<VolumeId, u64> = BTreeMap::new();
            for (volume, (of, _)) in &owners {
                if of == group {
                    image.insert(*volume, vec![0; BLOCKS as usize]);
                    next.insert(*volume, 1);
                }
            }
            images.insert((*group, SetId(0)), image.clone());
            for set in 1..=last.0 {
                let (mut updates, mut facts) = (Vec::new(), Vec::new());
                for (volume, next) in &mut next {
                    let count = if random.chance(20) { 0 } else { random.below(10) };
                    if count == 0 {
                        continue;
                    }
                    let first = Seq(*next);
                    let mut fact = VolumeFacts {
                        volume: *volume,
                        first,
                        last: Seq(*next + count - 1),
                        bytes: 0,
                        digest: 0,
                        voids: Vec::new(),
                    };
                    for seq in *next..*next + count {
                        let info = update(random, *group, *volume, SetId(set), Seq(seq));
                        if random.chance(12) {
                            fact.voids.push(Seq(seq));
                        } else {
                            fact.bytes += u64::from(info.payload_len);
                            fact.digest = fact.digest.wrapping_add(digest_of(&info));
                            apply_to(&mut image, &info);
                        }
                        updates.push(info);
                    }
                    *next += count;
                    facts.push(fact);
                }
                sets.insert((*group, SetId(set)), (updates, facts));
                images.insert((*group, SetId(set)), image.clone());
            }
        }
        Self { groups, owners, sets, images, last }
    }
}

pub(super) fn update(
    random: &mut Random,
    group: GroupId,
    volume: VolumeId,
    set: SetId,
    seq: Seq,
) -> UpdateInfo {
    let blocks = 1 + random.below(4) as u32;
    let lba = random.below(BLOCKS - u64::from(blocks) + 1);
    let kind = [UpdateKind::Write, UpdateKind::Write, UpdateKind::WriteZeroes, UpdateKind::Write]
        [random.below(4) as usize];
    UpdateInfo {
        kind,
        fua: false,
        payload_crc: random.below(1 << 30) as u32,
        payload_len: if kind == UpdateKind::Write { blocks * 4096 } else { 0 },
        volume,
        group,
        origin: MoverId(1),
        owner: PRIMARY,
        epoch: EPOCH,
        map_version: MapVersion(1),
        set,
        seq,
        extent: Extent { lba, blocks },
        block_bytes: 4096,
        list_seq: 0,
        time_ns: 0,
        time_error_ns: 0,
        forward: crate::proto::types::ForwardId(0),
        described: false,
        not_before: SetId(0),
    }
}
