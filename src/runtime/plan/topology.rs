//! Who is where: the shards of both sites, what each is for, and who talks to whom.

use std::collections::{BTreeMap, BTreeSet};

use super::{FIRST_EPOCH, FIRST_MAP};
use crate::config::{ClusterStoreKind, Disk, Mover, Role, Volume};
use crate::proto::membership::SiteRecord;
use crate::proto::types::{MoverId, ShardId, VolumeId};

/// A mover of either site.
#[derive(Clone, Debug)]
struct Place {
    id: MoverId,
    role: Role,
    pollers: u8,
    founder: bool,
}

/// The movers of both sites and the rules that bind them; the same at every mover.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The shard that runs the primary site's boundaries.
    pub primary_coordinator: ShardId,
    /// The shard that coordinates the secondary site; none without one.
    pub secondary_coordinator: Option<ShardId>,
    /// Ascending by number.
    places: Vec<Place>,
    names: BTreeMap<String, MoverId>,
    /// Every pair of shards that may have a volume between them: one that is responsible for it, now
    /// or after a failure, and its target shard.
    transfers: BTreeSet<(ShardId, ShardId)>,
    /// Whether secondary shards mirror to one another.
    mirrored_there: bool,
}

impl Topology {
    /// The picture that `mover`'s configuration gives.
    #[must_use]
    pub fn new(mover: &Mover) -> Self {
        let places: Vec<Place> = mover
            .members()
            .into_iter()
            .map(|m| Place {
                id: MoverId(m.id),
                role: m.role,
                pollers: m.pollers.max(1),
                founder: m.founder,
            })
            .collect();
        let names = mover.members().into_iter().map(|m| (m.name.to_owned(), MoverId(m.id)));
        let first = |role| {
            let place = places.iter().find(|place| place.role == role && place.founder)?;
            Some(ShardId { mover: place.id, poller: 0 })
        };
        let me = ShardId { mover: MoverId(mover.mover.id), poller: 0 };
        let mut topology = Self {
            primary_coordinator: first(Role::Primary).unwrap_or(me),
            secondary_coordinator: first(Role::Secondary),
            names: names.collect(),
            places,
            transfers: BTreeSet::new(),
            mirrored_there: mover.groups.iter().any(|group| group.copies_secondary > 1),
        };
        let volumes = mover.groups.iter().flat_map(|group| &group.volumes);
        topology.transfers = volumes
            .filter_map(|volume| Some((topology.owners_of(volume), topology.target_of(volume)?)))
            .flat_map(|(owners, target)| owners.into_iter().map(move |owner| (owner, target)))
            .collect();
        topology
    }

    /// What the configuration says of the primary site, as a record of the first epoch.
    #[must_use]
    pub fn record(&self, mover: &Mover) -> SiteRecord {
        let members: Vec<MoverId> = self
            .places
            .iter()
            .filter(|p| p.role == Role::Primary && p.founder)
            .map(|p| p.id)
            .collect();
        let volumes = mover.groups.iter().flat_map(|group| &group.volumes);
        let mut owners: Vec<(VolumeId, ShardId)> = volumes
            .filter_map(|volume| Some((VolumeId(volume.id), self.owner_of(volume)?)))
            .collect();
        owners.sort_unstable();
        let spells = SiteRecord::first_spell(FIRST_EPOCH, members.len());
        SiteRecord {
            epoch: FIRST_EPOCH,
            map_version: FIRST_MAP,
            since: vec![FIRST_EPOCH; members.len()],
            members,
            coordinator: self.primary_coordinator,
            owners,
            moved: Vec::new(),
            spells,
            lost: Vec::new(),
            plan: None,
        }
    }

    /// Pollers of a mover.
    #[must_use]
    pub fn pollers_of(&self, mover: MoverId) -> u8 {
        self.places.iter().find(|place| place.id == mover).map_or(1, |place| place.pollers)
    }

    /// Whether a mover is there when its site begins.
    #[must_use]
    pub fn is_founder(&self, mover: MoverId) -> bool {
        self.places.iter().any(|place| place.id == mover && place.founder)
    }

    /// The number of the mover called `name`.
    #[must_use]
    pub fn mover(&self, name: &str) -> Option<MoverId> {
        self.names.get(name).copied()
    }

    /// The name of mover `id`.
    #[must_use]
    pub fn name(&self, id: MoverId) -> Option<&str> {
        self.names.iter().find(|(_, known)| **known == id).map(|(name, _)| name.as_str())
    }

    /// The mover with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<MoverId> {
        self.names.get(name).copied()
    }

    /// The shards of one mover, ascending.
    pub fn shards_of(&self, mover: MoverId) -> impl Iterator<Item = ShardId> + use<> {
        let pollers = self.places.iter().find(|p| p.id == mover).map_or(0, |p| p.pollers);
        (0..pollers).map(move |poller| ShardId { mover, poller })
    }

    /// The shards of one site, ascending.
    pub fn shards(&self, role: Role) -> impl Iterator<Item = ShardId> {
        let places = self.places.iter().filter(move |place| place.role == role);
        places.flat_map(|place| self.shards_of(place.id))
    }

    /// What the site of `mover` does.
    #[must_use]
    pub fn role_of(&self, mover: MoverId) -> Option<Role> {
        self.places.iter().find(|place| place.id == mover).map(|place| place.role)
    }

    /// The shard responsible for `volume` (G1).
    #[must_use]
    pub fn owner_of(&self, volume: &Volume) -> Option<ShardId> {
        Some(ShardId { mover: self.mover(&volume.mover)?, poller: volume.poller })
    }

    /// The shards that may become responsible for `volume`: one of every primary mover (F5).
    #[must_use]
    pub fn owners_of(&self, volume: &Volume) -> Vec<ShardId> {
        let primaries = self.places.iter().filter(|place| place.role == Role::Primary);
        let lane =
            |place: &Place| ShardId { mover: place.id, poller: volume.poller % place.pollers };
        primaries.map(lane).collect()
    }

    /// The secondary shard that receives `volume` (T1).
    #[must_use]
    pub fn target_of(&self, volume: &Volume) -> Option<ShardId> {
        let target = &volume.target;
        Some(ShardId { mover: self.mover(&target.mover)?, poller: target.poller })
    }

    /// The volumes whose blocks `shard` writes: indices of group and volume.
    #[must_use]
    pub fn volumes_at(&self, mover: &Mover, shard: ShardId) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        for (group_index, group) in mover.groups.iter().enumerate() {
            for (index, volume) in group.volumes.iter().enumerate() {
                if self.owner_of(volume) == Some(shard) || self.target_of(volume) == Some(shard) {
                    found.push((group_index, index));
                }
            }
        }
        found
    }

    /// The shards that primary shard `me` mirrors to: one of every other mover of its site.
    #[must_use]
    pub fn mirror_targets(&self, me: ShardId) -> BTreeSet<ShardId> {
        self.places
            .iter()
            .filter(|place| place.role == Role::Primary && place.id != me.mover)
            .map(|place| ShardId { mover: place.id, poller: me.poller % place.pollers })
            .collect()
    }

    /// The shards that mirror to primary shard `me`.
    #[must_use]
    pub fn mirror_sources(&self, me: ShardId) -> BTreeSet<ShardId> {
        let others = self.shards(Role::Primary).filter(|shard| shard.mover != me.mover);
        others.filter(|shard| self.mirror_targets(*shard).contains(&me)).collect()
    }

    /// The primary shards that `me` exchanges records with: those it mirrors to, of which it also
    /// takes the numbers of what it forwarded, and those that mirror to it.
    #[must_use]
    pub fn mirror_peers(&self, me: ShardId) -> BTreeSet<ShardId> {
        &self.mirror_targets(me) | &self.mirror_sources(me)
    }

    /// The volumes of other primary movers that primary shard `me` takes updates for (G3): those
    /// whose responsible shards mirror to it. Indices of group and volume.
    #[must_use]
    pub fn taken_at(&self, mover: &Mover, me: ShardId) -> Vec<(usize, usize)> {
        let sources = match self.role_of(me.mover) {
            Some(Role::Primary) => self.mirror_sources(me),
            _ => BTreeSet::new(),
        };
        let taken = |volume: &Volume| self.owner_of(volume).is_some_and(|o| sources.contains(&o));
        let groups = mover.groups.iter().enumerate();
        groups
            .flat_map(|(group, config)| {
                let volumes = config.volumes.iter().enumerate();
                volumes.filter(|(_, volume)| taken(volume)).map(move |(index, _)| (group, index))
            })
            .collect()
    }

    /// Where secondary shard `me` mirrors what it receives; none when the site keeps one copy or
    /// has one mover.
    #[must_use]
    pub fn partner_of(&self, me: ShardId) -> Option<ShardId> {
        let site: Vec<&Place> =
            self.places.iter().filter(|place| place.role == Role::Secondary).collect();
        let at = site.iter().position(|place| place.id == me.mover)?;
        if !self.mirrored_there || site.len() < 2 {
            return None;
        }
        let next = site[(at + 1) % site.len()];
        Some(ShardId { mover: next.id, poller: me.poller % next.pollers })
    }

    /// The shards of other movers that `me` has a link with, ascending.
    #[must_use]
    pub fn peers_of(&self, me: ShardId) -> BTreeSet<ShardId> {
        let everyone = self.places.iter().flat_map(|place| self.shards_of(place.id));
        everyone.filter(|other| other.mover != me.mover && self.talk(me, *other)).collect()
    }

    /// Whether two shards of different movers ever say anything to each other. Symmetric.
    fn talk(&self, a: ShardId, b: ShardId) -> bool {
        self.tells(a, b) || self.tells(b, a)
    }

    /// The reasons for a link, seen from one end.
    fn tells(&self, from: ShardId, to: ShardId) -> bool {
        let roles = (self.role_of(from.mover), self.role_of(to.mover));
        match roles {
            // Poller 0 of any mover may come to run the boundaries.
            (Some(Role::Primary), Some(Role::Primary)) => {
                to.poller == 0 || self.mirror_targets(from).contains(&to)
            }
            (Some(Role::Primary), Some(Role::Secondary)) => {
                self.transfers.contains(&(from, to))
                    || (from.poller == 0 && Some(to) == self.secondary_coordinator)
            }
            (Some(Role::Secondary), Some(Role::Secondary)) => {
                Some(to) == self.secondary_coordinator || self.partner_of(from) == Some(to)
            }
            _ => false,
        }
    }
}

/// Why the membership of the site of `mover` never changes; none where it follows the record in the
/// cluster's store. A volume can change its mover only if another one reaches its base and can keep the
/// former one from writing it (G13), and pollers that serve the same volumes must match.
#[must_use]
pub fn fixed_because(mover: &Mover) -> Option<String> {
    let members = mover.members_of(Role::Primary);
    if mover.mover.role == Role::Secondary {
        return Some("movers of a secondary site do not take each other's volumes over".to_owned());
    }
    if mover.cluster.store == ClusterStoreKind::Embedded {
        let reason = match members.len() {
            1 => "the site has one mover",
            _ => "cluster.store is \"embedded\"; movers can only agree in \"etcd\"",
        };
        return Some(reason.to_owned());
    }
    if members.len() < 2 {
        return Some("the site has one mover".to_owned());
    }
    if let Some(other) = members.iter().find(|m| m.pollers != members[0].pollers) {
        return Some(format!(
            "{} has {} pollers and {} has {}; all primary movers must have as many",
            members[0].name, members[0].pollers, other.name, other.pollers
        ));
    }
    let movable = |disk: &Disk| *disk == Disk::None || disk.shared() && disk.nsid().is_some();
    mover.groups.iter().find_map(|group| {
        let volume = group.volumes.iter().find(|volume| !movable(&volume.base))?;
        Some(format!(
            "the base of {}/{} is no NVMe namespace that all primary movers reach, so no other mover \
             could take the volume over",
            group.name, volume.name
        ))
    })
}
