//! What each poller of this mover has to do, worked out from the configuration.
//!
//! Every mover computes the same picture from its own file: who may be responsible for which volume,
//! who mirrors for whom and with what budget, which pollers talk to each other. The tests hold the
//! plans of all movers of a site pair against one another. Who is a member, is responsible, and
//! coordinates at the moment is said by the primary site's record; where there is none, by these rules
//! too.
//!
//! The rules:
//! - The coordinator of a site is at first poller 0 of its mover with the lowest number.
//! - Poller `i` mirrors to poller `i mod n` of every other primary mover, `n` being that mover's
//!   pollers. Where numbers of pollers differ, a poller may so receive copies from one that it
//!   does not mirror to; both still know each other as mirror peers.
//! - Every primary mover takes updates for every volume (G3): for a volume of poller `i` of another
//!   mover its taker is poller `i mod n`, which is where that one mirrors to. So a taker's record is
//!   a copy where a copy may be, and no mover ever holds two copies of an update.
//! - What a poller sets aside for others is divided evenly among all its mirror peers: those that
//!   mirror to it, and those that forward to it.
//! - The partner of a secondary poller is poller `i mod n` of the next mover of its site, by
//!   number, the last one's being the first.
//! - A link runs between two pollers of different movers if and only if they have anything to say
//!   to each other.
//!
//! Pure: it looks at nothing but its arguments. It does not build anything; `launch` does.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{self, Mover, Role};
use crate::proto::boundary::{BoundaryConfig, BoundaryGroup};
use crate::proto::limits::RETAINED_UPDATES_MAX;
use crate::proto::membership::SiteRecord;
use crate::proto::primary::{
    GroupConfig, MirrorPeer, MirrorPolicy, Numbering, PrimaryConfig, VolumeConfig,
};
use crate::proto::sabotage::Sabotage;
use crate::proto::timer::TimerConfig;
use crate::proto::types::{Epoch, GroupId, MapVersion, MoverId, Seq, SetId, ShardId, VolumeId};

mod budget;
#[cfg(test)]
mod tests;
mod topology;

pub use budget::{ArenaBudget, REMOTE_POOL_BYTES};
pub use topology::{Topology, fixed_because};

/// The first epoch of both sites; the only one where membership is fixed.
pub const FIRST_EPOCH: Epoch = Epoch(1);
/// The first map version.
pub const FIRST_MAP: MapVersion = MapVersion(1);
/// Payload bytes of the largest command that hosts are offered: what SPDK's transports split
/// larger ones to, and a value that keeps several records in each arena segment.
pub const HOST_PAYLOAD_BYTES_MAX: usize = 128 << 10;
/// Records under way to one receiver at once: the link's `records_max` may not be below it.
pub const IN_FLIGHT_MAX: u32 = 4096;
/// Records take multiples of so many bytes in an arena: a cache line.
const RECORD_ALIGN: u32 = 64;
/// Updates that a shard forwards to responsible shards at once (G3).
const FORWARDS_MAX: u32 = 4096;

/// How often a mover asks for the common timer, nanoseconds.
const TIMER_ASK_NS: u64 = 10_000_000;
/// A line of the common timer is there for all pollers well before so much time has gone by.
const TIMER_BEND_NS: u64 = 1_000_000_000;

/// Why a configuration that is sound by itself cannot be carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// The protocol keeps a received update at two secondary movers at most.
    #[error(
        "group {group:?}: copies_secondary = {copies}; at most 2 can be kept at the secondary site"
    )]
    SecondaryCopies {
        /// The group.
        group: String,
        /// What was asked for.
        copies: u8,
    },
    /// Groups at one secondary shard want different numbers of copies.
    #[error(
        "groups {one:?} and {other:?} differ in copies_secondary; all groups of a pair of sites \
         must have the same"
    )]
    SecondaryCopiesDiffer {
        /// A group.
        one: String,
        /// Another group.
        other: String,
    },
    /// The arena leaves no room for a largest update of some source.
    #[error(
        "mover.arena_mib = {arena_mib}: the share of each of {sources} pollers that mirror or \
         forward to poller {poller} is too small; at least {needed_mib} MiB are needed at \
         arena_mirror_percent = {percent}"
    )]
    Arena {
        /// What is configured.
        arena_mib: u32,
        /// The share for mirrors in percent.
        percent: u8,
        /// The poller.
        poller: u8,
        /// Pollers that mirror or forward to it.
        sources: usize,
        /// What would do.
        needed_mib: u32,
    },
}

/// What the plan takes from the store and the clock beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The next number of each volume; 1 where there is none.
    pub next_seqs: BTreeMap<VolumeId, Seq>,
    /// The first set of each group; 1 where there is none.
    pub first_sets: BTreeMap<GroupId, SetId>,
    /// Memory was lost with updates that were not confirmed, or a group must be resynchronised.
    pub unclean: bool,
    /// Nanoseconds since the Unix epoch at time 0 of the monotonic clock.
    pub unix_offset_ns: u64,
    /// What the primary site has agreed on; none where the configuration says it, at the secondary
    /// site, and before it is known.
    pub record: Option<SiteRecord>,
    /// This mover takes part from `record`'s epoch on, with an empty memory, in a site that goes on.
    pub joins: bool,
}

impl Start {
    /// What the primary site has agreed on.
    #[must_use]
    pub fn record(&self, mover: &Mover, topology: &Topology) -> SiteRecord {
        self.record.clone().unwrap_or_else(|| topology.record(mover))
    }

    /// The epoch that the machines of a poller begin in. Where the site agrees on a record its epoch is
    /// *entered* by all, also by those that found the site: so each learns what the others know of
    /// numbers.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.record.as_ref().map_or(FIRST_EPOCH, |record| Epoch(record.epoch.0 - 1))
    }
}

/// Everything this mover's pollers are to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who is where.
    pub topology: Topology,
    /// One per poller, in order.
    pub pollers: Vec<PollerPlan>,
}

/// One poller.
#[derive(Clone, Debug)]
pub struct PollerPlan {
    /// Its shard.
    pub shard: ShardId,
    /// The core it is pinned to.
    pub core: u16,
    /// Its siblings' shards, reached through rings.
    pub siblings: Vec<ShardId>,
    /// The shards of other movers that it has a link with, ascending.
    pub links: Vec<LinkPlan>,
    /// How its arena is divided.
    pub arena: ArenaBudget,
    /// The volumes that the configuration gives it, by index of group and volume there: their bases
    /// at the primary site, targets at the secondary.
    pub volumes: Vec<(usize, usize)>,
    /// The volumes that the configuration gives to other primary movers and that it takes updates for
    /// (G3), or takes over (F5), in the same way. A primary shard's configuration has them after
    /// `volumes`.
    pub foreign: Vec<(usize, usize)>,
    /// Its state machines.
    pub machines: Machines,
}

/// A link to a shard of another mover.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkPlan {
    /// The other end.
    pub peer: ShardId,
    /// Index of the peer in [`Mover::peers`].
    pub mover: usize,
    /// Index in [`Mover::ports`] of the port that leads there.
    pub port: usize,
    /// Index in the peer's paths.
    pub path: usize,
    /// Whether the other end belongs to this site.
    pub same_site: bool,
}

/// The state machines of one poller.
#[derive(Clone, Debug)]
pub enum Machines {
    /// At the primary site.
    Primary {
        /// The shard.
        shard: PrimaryConfig,
        /// The coordinator's engine, where it runs.
        boundary: Option<BoundaryConfig>,
    },
    /// At the secondary site.
    Secondary(SecondaryPlan),
}

/// A secondary shard's place among the movers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecondaryPlan {
    /// This shard.
    pub me: ShardId,
    /// The site's coordinator.
    pub coordinator: ShardId,
    /// Where received updates are mirrored; none with one copy.
    pub partner: Option<ShardId>,
    /// The primary shards that may send to it.
    pub sources: Vec<ShardId>,
    /// The groups, all of them.
    pub groups: Vec<GroupId>,
    /// Its volumes.
    pub volumes: Vec<SecondaryVolume>,
    /// What the coordinator needs to know, where it runs.
    pub coordination: Option<Coordination>,
}

/// A volume at its secondary shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondaryVolume {
    /// The volume.
    pub id: VolumeId,
    /// Its group.
    pub group: GroupId,
    /// Its block size in bytes.
    pub block_bytes: u32,
    /// Its size in blocks.
    pub blocks: u64,
}

/// What the secondary's coordinator needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coordination {
    /// All shards of the site, ascending.
    pub shards: Vec<ShardId>,
    /// The shard of each volume.
    pub owners: Vec<(VolumeId, ShardId)>,
}

impl Plan {
    /// Works out the plan of the mover that `mover` configures.
    ///
    /// # Errors
    /// [`PlanError`] when the configuration asks for what cannot be done.
    pub fn new(mover: &Mover, start: &Start) -> Result<Self, PlanError> {
        secondary_copies(mover)?;
        let topology = Topology::new(mover);
        let me = MoverId(mover.mover.id);
        let mut pollers = Vec::new();
        for shard in topology.shards_of(me) {
            let index = usize::from(shard.poller);
            let arena = ArenaBudget::of(mover, &topology, shard)?;
            let links = topology.peers_of(shard);
            let machines = match mover.mover.role {
                Role::Primary => primary(mover, &topology, shard, &arena, start),
                Role::Secondary => Machines::Secondary(secondary(mover, &topology, shard)),
            };
            pollers.push(PollerPlan {
                shard,
                core: mover.mover.cores[index],
                siblings: topology.shards_of(me).filter(|s| *s != shard).collect(),
                links: links.into_iter().filter_map(|to| link(mover, shard, to)).collect(),
                arena,
                volumes: topology.volumes_at(mover, shard),
                foreign: topology.taken_at(mover, shard),
                machines,
            });
        }
        Ok(Self { topology, pollers })
    }

    /// The poller that writes the blocks of `volume`, if it is this mover's.
    #[must_use]
    pub fn poller_of(&self, mover: &Mover, volume: VolumeId) -> Option<&PollerPlan> {
        self.pollers.iter().find(|poller| {
            let mut volumes = poller.volumes.iter();
            volumes.any(|(group, index)| mover.groups[*group].volumes[*index].id == volume.0)
        })
    }
}

fn secondary_copies(mover: &Mover) -> Result<(), PlanError> {
    for group in &mover.groups {
        let copies = group.copies_secondary;
        if copies > 2 {
            return Err(PlanError::SecondaryCopies { group: group.name.clone(), copies });
        }
        let first = &mover.groups[0];
        if first.copies_secondary != copies {
            let (one, other) = (first.name.clone(), group.name.clone());
            return Err(PlanError::SecondaryCopiesDiffer { one, other });
        }
    }
    Ok(())
}

/// The way from `shard` to `to`. Validation has seen to it that there is one.
fn link(mover: &Mover, shard: ShardId, to: ShardId) -> Option<LinkPlan> {
    let at = mover.peers.iter().position(|peer| peer.id == to.mover.0)?;
    let peer = &mover.peers[at];
    let way = peer.path(shard.poller, to.poller)?;
    let path = peer.paths.iter().position(|p| std::ptr::eq(p, way))?;
    let port = mover.ports.iter().position(|port| port.name == way.port)?;
    let same_site = peer.role == mover.mover.role;
    Some(LinkPlan { peer: to, mover: at, port, path, same_site })
}

fn primary(
    mover: &Mover,
    topology: &Topology,
    me: ShardId,
    arena: &ArenaBudget,
    start: &Start,
) -> Machines {
    let targets = topology.mirror_targets(me);
    let mirrors: Vec<MirrorPeer> = topology
        .mirror_peers(me)
        .into_iter()
        .map(|shard| MirrorPeer {
            shard,
            grant_bytes: arena.grant_bytes,
            is_target: targets.contains(&shard),
        })
        .collect();
    let record = start.record(mover, topology);
    let is_idle = !record.owners.iter().any(|(_, owner)| *owner == me);
    let all = topology.volumes_at(mover, me).into_iter().chain(topology.taken_at(mover, me));
    let volumes: Vec<VolumeConfig> =
        all.map(|place| volume(mover, topology, start, me, &record, place)).collect();
    let groups = mover.groups.iter().map(|group| GroupConfig {
        id: GroupId(group.id),
        copies: group.copies,
        policy: policy(mover, topology, group, &mirrors, &targets),
        numbering: match group.numbering {
            config::Numbering::Volume => Numbering::Volume,
            config::Numbering::Mover => Numbering::Mover,
        },
        described: group.mirror == config::Mirror::Metadata,
    });
    let shard = PrimaryConfig {
        me,
        coordinator: record.coordinator,
        epoch: start.epoch(),
        map_version: record.map_version,
        groups: groups.collect(),
        // A shard without volumes has numbered nothing, whatever became of its memory; but the
        // coordinator's memory also had the numbers of sets.
        unclean: start.unclean && (!is_idle || me == record.coordinator),
        volumes,
        mirrors,
        retained_max: arena.retained_max,
        mirrored_max: arena.mirrored_max,
        forwards_max: FORWARDS_MAX,
        in_flight_max: IN_FLIGHT_MAX,
        record_align: RECORD_ALIGN,
        sabotage: Sabotage::None,
    };
    let boundary = (me == record.coordinator).then(|| engine(mover, topology, start, &record));
    Machines::Primary { shard, boundary }
}

/// The mover's part in the common timer, at the poller `me`: at the first one, where a group is stamped by
/// it (G8).
#[must_use]
pub fn timer(
    mover: &Mover,
    me: ShardId,
    start: &Start,
    record: &SiteRecord,
) -> Option<TimerConfig> {
    let used = mover.groups.iter().any(|group| group.timestamps == config::Timestamps::Common);
    let here = mover.mover.role == Role::Primary && me.poller == 0;
    (used && here).then(|| TimerConfig {
        me,
        coordinator: record.coordinator,
        epoch: start.epoch(),
        members: record.members.clone(),
        unix_offset_ns: start.unix_offset_ns,
        ask_ns: TIMER_ASK_NS,
        bend_ns: TIMER_BEND_NS,
        sabotage: Sabotage::None,
    })
}

/// The boundary engine of the shard that coordinates in the epoch of `record`.
#[must_use]
pub fn engine(
    mover: &Mover,
    topology: &Topology,
    start: &Start,
    record: &SiteRecord,
) -> BoundaryConfig {
    let me = record.coordinator;
    let shards: Vec<ShardId> =
        record.members.iter().flat_map(|member| topology.shards_of(*member)).collect();
    BoundaryConfig {
        me,
        secondary: topology.secondary_coordinator,
        backup: shards.iter().copied().find(|shard| shard.mover != me.mover),
        shards,
        epoch: record.epoch,
        unix_offset_ns: start.unix_offset_ns,
        groups: mover
            .groups
            .iter()
            .map(|group| BoundaryGroup {
                id: GroupId(group.id),
                period_ns: group.period_ms * 1_000_000,
                first_set: *start.first_sets.get(&GroupId(group.id)).unwrap_or(&SetId(1)),
            })
            .collect(),
        sabotage: Sabotage::None,
    }
}

/// Where the copies of `group` go: to the configured partner's shard first, or to the least loaded.
fn policy(
    mover: &Mover,
    topology: &Topology,
    group: &config::Group,
    mirrors: &[MirrorPeer],
    targets: &BTreeSet<ShardId>,
) -> MirrorPolicy {
    if group.mirror_policy == config::MirrorPolicy::Load {
        return MirrorPolicy::Load;
    }
    let partner = group.partners.get(&mover.mover.name).and_then(|name| topology.mover(name));
    let index = mirrors
        .iter()
        .position(|peer| Some(peer.shard.mover) == partner && targets.contains(&peer.shard));
    index.map_or(MirrorPolicy::Load, |index| MirrorPolicy::Partner(index as u8))
}

fn volume(
    mover: &Mover,
    topology: &Topology,
    start: &Start,
    me: ShardId,
    record: &SiteRecord,
    (group, index): (usize, usize),
) -> VolumeConfig {
    let (group, volume) = (&mover.groups[group], &mover.groups[group].volumes[index]);
    let id = VolumeId(volume.id);
    VolumeConfig {
        id,
        owner: record.owner(id).unwrap_or(me),
        group: GroupId(group.id),
        block_bytes: volume.block_bytes,
        has_base: volume.base != config::Disk::None,
        // Only the responsible shard sends updates there (T1); any may become it.
        target: topology.target_of(volume),
        next_seq: *start.next_seqs.get(&id).unwrap_or(&Seq(1)),
    }
}

fn secondary(mover: &Mover, topology: &Topology, me: ShardId) -> SecondaryPlan {
    let all = || {
        let groups = mover.groups.iter();
        groups.flat_map(|group| group.volumes.iter().map(move |volume| (group, volume)))
    };
    let here = |volume: &config::Volume| topology.target_of(volume) == Some(me);
    let volumes = all().filter(|(_, volume)| here(volume)).map(|(group, volume)| SecondaryVolume {
        id: VolumeId(volume.id),
        group: GroupId(group.id),
        block_bytes: volume.block_bytes,
        blocks: volume.blocks(),
    });
    let volumes: Vec<SecondaryVolume> = volumes.collect();
    let sources: BTreeSet<ShardId> = all()
        .filter(|(_, volume)| here(volume))
        .flat_map(|(_, volume)| topology.owners_of(volume))
        .collect();
    let coordinator = topology.secondary_coordinator.unwrap_or(me);
    let owners = all().filter_map(|(_, volume)| {
        topology.target_of(volume).map(|shard| (VolumeId(volume.id), shard))
    });
    SecondaryPlan {
        me,
        coordinator,
        partner: topology.partner_of(me),
        sources: sources.into_iter().collect(),
        groups: mover.groups.iter().map(|group| GroupId(group.id)).collect(),
        volumes,
        coordination: (me == coordinator).then(|| Coordination {
            shards: topology.shards(Role::Secondary).collect(),
            owners: owners.collect(),
        }),
    }
}

/// Updates that an arena share of `bytes` can hold at most, as records of one 512-byte block.
fn records_in(bytes: u64) -> u32 {
    let smallest = (crate::wire::update::UPDATE_HEADER_BYTES + 512) as u64;
    (bytes / smallest).clamp(64, RETAINED_UPDATES_MAX as u64) as u32
}
