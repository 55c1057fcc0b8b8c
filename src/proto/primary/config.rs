//! What a primary shard is told at launch. Fixed for an epoch.

use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Epoch, GroupId, MapVersion, Seq, ShardId, VolumeId};
use alloc::vec::Vec;

/// A primary shard's place in the group of movers.
#[derive(Clone, Debug)]
pub struct PrimaryConfig {
    /// This shard.
    pub me: ShardId,
    /// The shard whose poller runs the site's [`crate::proto::boundary::Boundary`].
    pub coordinator: ShardId,
    /// The membership epoch (invariant 9).
    pub epoch: Epoch,
    /// The map version that the volumes below come from.
    pub map_version: MapVersion,
    /// One shard of every other mover of the site: those that may mirror for this one.
    pub mirrors: Vec<MirrorPeer>,
    /// The groups.
    pub groups: Vec<GroupConfig>,
    /// The volumes whose updates this shard may take: those it is responsible for, and those of
    /// its mirror peers (G1, G3).
    pub volumes: Vec<VolumeConfig>,
    /// Updates retained at once, numbered and not confirmed; at most
    /// [`crate::proto::limits::RETAINED_UPDATES_MAX`].
    pub retained_max: u32,
    /// Mirror copies held at once for other shards.
    pub mirrored_max: u32,
    /// Updates under way at once from here to shards that are responsible for them (G3).
    pub forwards_max: u32,
    /// Records under way to one receiver at once; the link's own bound.
    pub in_flight_max: u32,
    /// Records take multiples of so many bytes in an arena.
    pub record_align: u32,
    /// A rule to break on purpose, in tests.
    pub sabotage: Sabotage,
    /// This mover's memory was lost with updates that were not confirmed: its groups cannot form
    /// sets before a resynchronisation.
    pub unclean: bool,
}

/// A shard that may hold copies for this one.
#[derive(Clone, Copy, Debug)]
pub struct MirrorPeer {
    /// The shard that receives the copies.
    pub shard: ShardId,
    /// Bytes of records that it may keep here, granted by this shard: copies, and updates that it
    /// took for volumes of this shard (G3).
    pub grant_bytes: u64,
    /// Whether it may hold copies for this shard. Of the shards of one mover one at most, as two
    /// copies there would be one when that mover fails; the others only forward to this shard, or
    /// are forwarded to.
    pub is_target: bool,
}

/// How mirror targets are chosen (G6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorPolicy {
    /// Those with the fewest bytes under way and held (the default).
    Load,
    /// The peer at this index of [`PrimaryConfig::mirrors`] first, then the following ones.
    Partner(u8),
}

/// How updates are numbered (G7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbering {
    /// Per volume only.
    Volume,
    /// Additionally one list over all volumes of the mover.
    Mover,
}

/// A group as a primary shard sees it.
#[derive(Clone, Copy, Debug)]
pub struct GroupConfig {
    /// The group.
    pub id: GroupId,
    /// Copies of each update before it is acknowledged, this shard's included; at least 1 (G6).
    pub copies: u8,
    /// Where the other copies go.
    pub policy: MirrorPolicy,
    /// How updates are numbered.
    pub numbering: Numbering,
    /// Whether the other copies are descriptions, headers without payload (G12). Who takes a volume over reads
    /// the payload back from its base, which every member must reach.
    pub described: bool,
}

/// A volume as the shards that take its updates see it.
#[derive(Clone, Copy, Debug)]
pub struct VolumeConfig {
    /// The volume.
    pub id: VolumeId,
    /// The shard that is responsible for it: this one, or one of its mirror peers.
    pub owner: ShardId,
    /// Its group.
    pub group: GroupId,
    /// Its block size in bytes.
    pub block_bytes: u32,
    /// Whether there is a base to write; without one this is the write-only leg of a forking
    /// source.
    pub has_base: bool,
    /// The secondary shard that receives it; none when the volume is only mirrored.
    pub target: Option<ShardId>,
    /// The number of its next update, if this shard is responsible for it; numbers below were used before
    /// (invariant 3). Of other volumes nothing is believed: it may date from long ago.
    pub next_seq: Seq,
}
