//! What a primary shard tells people: counts, state, and the update ledger (G5).

use super::config::{Numbering, PrimaryConfig};
use super::mirror_store::Mirrored;
use super::shard::{PrimaryShard, Volume};
use super::slab::{DONE, HERE, NOBODY, TRANSFERRED, VOID};
use super::takeover::Standing;
use crate::proto::command::Token;
use crate::proto::message::BrokenReason;
use crate::proto::types::{Extent, GroupId, Seq, SetId, ShardId, UpdateKind, VolumeId};
use alloc::vec::Vec;

/// What a shard is busy with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing but taking updates into an open set.
    Open,
    /// It has switched to a set that is not released.
    Holding,
    /// It takes part, and has no set open.
    Joining,
    /// A volume leaves it.
    Leaving,
    /// A volume is on its way to it.
    Arriving,
    /// The base of a volume that it takes over is brought up to date.
    Restoring,
    /// It gathers what members hold of a volume that it takes over.
    Gathering,
    /// A group forms no sets.
    Lost,
}

/// Counts since launch.
#[derive(Clone, Copy, Default, Debug)]
pub struct PrimaryCounters {
    /// Updates numbered.
    pub updates: u64,
    /// Payload bytes of these.
    pub bytes: u64,
    /// Updates completed to the host with success.
    pub acknowledged: u64,
    /// Recovered updates whose payload the base was asked for (G12).
    pub read_back: u64,
    /// Of these, those for which it has something else.
    pub overtaken: u64,
    /// Copies of other shards' updates taken in.
    pub mirrored: u64,
    /// Updates of volumes of others, forwarded to them (G3).
    pub forwarded: u64,
    /// Of these, rejected by a shard that was not responsible (G4).
    pub rejected: u64,
    /// Updates of own volumes that other movers took, numbered here (G3).
    pub taken: u64,
    /// Updates rejected because this shard is not responsible (G4).
    pub misdirected: u64,
    /// Numbers that became void.
    pub voids: u64,
    /// Updates that waited for an earlier overlapping one.
    pub overlaps: u64,
    /// Records sent to the secondary, again after a restart included.
    pub transfers: u64,
    /// Copies sent to shards that took volumes over (F5).
    pub resent: u64,
    /// Messages and records refused because of their epoch.
    pub stale_epoch: u64,
    /// Messages that named something unknown.
    pub unexpected: u64,
}

/// A group's state at this shard, for status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupView {
    /// The group.
    pub id: GroupId,
    /// Its open set; 0 before the first boundary.
    pub open: SetId,
    /// The last confirmed set.
    pub confirmed: SetId,
    /// Whether it can form no sets.
    pub broken: Option<BrokenReason>,
}

/// One line of the update ledger (G5).
#[derive(Clone, Debug)]
pub struct LedgerView {
    /// The volume.
    pub volume: VolumeId,
    /// Its number.
    pub seq: Seq,
    /// Its set.
    pub set: SetId,
    /// What it does.
    pub kind: UpdateKind,
    /// Where.
    pub extent: Extent,
    /// The shard that took it from its source, when not this one and not restarted since (G3).
    pub taken_by: Option<ShardId>,
    /// The shards that were sent a copy, and whether they have stored it.
    pub mirrored_to: Vec<(ShardId, bool)>,
    /// The secondary shard, and whether it has stored the record.
    pub target: Option<(ShardId, bool)>,
    /// Whether the host was acknowledged.
    pub acknowledged: bool,
    /// Whether the number is void.
    pub void: bool,
}

impl PrimaryShard {
    /// The volumes that this shard is responsible for, with their indices.
    fn own(&self) -> impl Iterator<Item = (usize, &Volume)> {
        self.volumes.iter().enumerate().filter(|(_, volume)| volume.owner == HERE)
    }

    /// Counts since launch.
    #[must_use]
    pub fn counters(&self) -> PrimaryCounters {
        self.counters
    }

    /// Updates retained now, and copies held for others.
    #[must_use]
    pub fn retained(&self) -> (u32, u32) {
        (self.slab.used(), self.store.len())
    }

    /// Whether nothing is retained: a clean stop loses nothing.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.slab.used() == 0 && self.forwards.used() == 0 && self.arrived.is_empty()
    }

    /// The number of each volume's next update, for the store.
    pub fn next_seqs(&self) -> impl Iterator<Item = (VolumeId, Seq)> {
        self.own().map(|(_, volume)| (volume.config.id, volume.next_seq))
    }

    /// Payload bytes of each volume's updates that the secondary has not confirmed.
    pub fn retained_bytes(&self) -> impl Iterator<Item = (VolumeId, u64)> {
        self.own().map(|(index, volume)| {
            let sets = self.groups[volume.group].sets.iter();
            (volume.config.id, sets.map(|set| set.bytes(index)).sum())
        })
    }

    /// The groups, for status.
    pub fn groups(&self) -> impl Iterator<Item = GroupView> {
        self.groups.iter().map(|group| GroupView {
            id: group.id,
            open: group.sets.open().map_or(SetId(0), |s| s.id),
            confirmed: group.confirmed,
            broken: group.broken,
        })
    }

    /// What the shard is busy with: the most out of the ordinary.
    #[must_use]
    pub fn stage(&self) -> Stage {
        if self.groups.iter().any(|group| group.lost || group.broken.is_some()) {
            return Stage::Lost;
        }
        if self.recovery.is_some() {
            return Stage::Gathering;
        }
        let mut standing = self.volumes.iter().map(|volume| &volume.standing);
        match standing.find(|standing| !matches!(standing, Standing::Ready)) {
            Some(Standing::Arriving { .. }) => Stage::Arriving,
            Some(Standing::Restoring(_)) => Stage::Restoring,
            Some(Standing::Gathering) => Stage::Gathering,
            Some(Standing::Ready) | None if self.is_leaving() => Stage::Leaving,
            Some(Standing::Ready) | None if self.is_holding() => Stage::Holding,
            Some(Standing::Ready) | None => {
                let joining = self.groups.iter().any(|group| group.sets.open().is_none());
                if joining { Stage::Joining } else { Stage::Open }
            }
        }
    }

    /// The number of the update that a base write's token names, while it is in the books.
    #[must_use]
    pub fn number_of(&self, token: Token) -> Option<Seq> {
        self.slab.resolve(token).map(|(slot, _)| self.slab.get(slot).seq)
    }

    /// Up to `max` retained updates, newest sets last (G5).
    #[must_use]
    pub fn ledger(&self, volume: Option<VolumeId>, max: usize) -> Vec<LedgerView> {
        let wanted = |slot: &u32| {
            let index = self.slab.get(*slot).volume as usize;
            volume.is_none_or(|v| self.volumes[index].config.id == v)
        };
        self.retained_slots().into_iter().filter(wanted).take(max).map(|s| self.view(s)).collect()
    }

    fn view(&self, slot: u32) -> LedgerView {
        let update = self.slab.get(slot);
        let volume = &self.volumes[update.volume as usize];
        let mirrored_to = self
            .mirrors
            .iter()
            .enumerate()
            .filter(|(bit, _)| update.mirrors & 1 << bit != 0)
            .map(|(bit, mirror)| (mirror.shard, update.mirrors_pending & 1 << bit == 0))
            .collect();
        LedgerView {
            volume: volume.config.id,
            seq: update.seq,
            set: update.set,
            kind: update.kind,
            extent: update.extent,
            taken_by: match update.origin {
                HERE | NOBODY => None,
                peer => Some(self.mirrors[usize::from(peer)].shard),
            },
            mirrored_to,
            target: volume.config.target.map(|shard| (shard, update.has(TRANSFERRED))),
            acknowledged: update.has(DONE) && !update.has(VOID),
            void: update.has(VOID),
        }
    }

    /// The copies held for others (G5).
    pub fn mirrored(&self) -> impl Iterator<Item = &Mirrored> {
        self.store.iter()
    }

    /// Whether the group at the volume's index also numbers over all volumes of the mover (G7).
    #[must_use]
    pub fn numbers_by_mover(config: &PrimaryConfig, volume: u32) -> bool {
        let group = config.volumes[volume as usize].group;
        config.groups.iter().any(|g| g.id == group && g.numbering == Numbering::Mover)
    }
}
