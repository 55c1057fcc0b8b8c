//! Handing volumes over between living movers at a boundary (F3, F6): as many as one likes, and
//! nothing stands still but what a volume has under way to its base.
//!
//! 1. The moves are agreed upon in the site's record ([`Plan`]), and every shard says that it knows
//!    them before the boundary that carries them out is begun. Who is to be responsible makes sure
//!    first that it can write the bases: it joins their reservations, as at a take-over.
//! 2. Each shard carries them out as it switches to the new set: from then on the former owner numbers
//!    nothing of the volume, and every other shard sends its updates to the new one. So a volume's
//!    numbers in one set are all of one shard.
//! 3. The former owner brings what it numbered to the base, and hands over: the next number, and what
//!    it knows to be confirmed. The new one numbers nothing before that (invariants 3, 4). Others'
//!    updates wait at the new owner; those that came to the former one too late are sent on.
//!
//! What the former owner numbered stays in its books until it is confirmed. If it fails before that,
//! the new owner enters it into its own, from the copies of the others ([`super::takeover`]): that it
//! was handed over says that all of it is on the base.
//!
//! A failure on the way: shards that have carried the moves out stay so, and the next coordinator's
//! first boundary has the others follow ([`Message::Greet`] says who has). A volume whose former or
//! new owner failed is settled by the record of the next epoch.

use super::number::owner_index;
use super::shard::PrimaryShard;
use super::slab::{DONE, HERE};
use super::takeover::Standing;
use crate::proto::command::{Command, Report, Token};
use crate::proto::membership::{Plan, SiteRecord};
use crate::proto::message::{Held, Kept, Message};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{MapVersion, Seq, SetId, ShardId, VolumeId};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Token tag of a base that is opened for writing; the slot is the volume's index.
pub(super) const TAG_OPEN: u8 = 0xf9;

/// A volume that leaves this shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving {
    /// Index of the volume at the shard.
    volume: u32,
    to: ShardId,
    map: MapVersion,
    /// Its updates without a fate.
    unfinished: u32,
}

/// What a former owner said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Handed {
    from: ShardId,
    map: MapVersion,
    volume: u32,
    next: Seq,
    lost_from: Seq,
    confirmed: Seq,
    lasts: Vec<(SetId, Seq)>,
}

/// Moves of volumes, as one shard has them.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Those of the site's record that are not known to be carried out everywhere.
    pub(super) plan: Option<Plan>,
    /// Volumes that leave, and have updates under way.
    leaving: Vec<Leaving>,
    /// What was said of those that have left, and to whom, while the moves are not known to be carried
    /// out everywhere: said again when the link comes up.
    left: Vec<(VolumeId, ShardId, Message)>,
    /// Volumes that are to come here, and whether this mover can write their bases.
    opening: Vec<(u32, bool)>,
    /// Words of former owners that came before this shard switched.
    early: Vec<Handed>,
    /// The last number that a former owner gave a volume, by set that is not known to be confirmed.
    lasts: Vec<(u32, SetId, Seq)>,
}

impl PrimaryShard {
    /// The record of the present epoch has moves to carry out, or has them no more since they are.
    pub fn planned(&mut self, record: &SiteRecord) {
        if record.epoch != self.epoch || self.moves.plan == record.plan {
            return;
        }
        self.moves.plan.clone_from(&record.plan);
        self.moves.left.retain(|(id, _, _)| is_planned(record, *id));
        self.map_version = self.map_version.max(record.map_version);
        self.open_bases();
        self.tell_planned();
    }

    /// Has the bases of the volumes that are to come here opened for writing.
    pub(super) fn open_bases(&mut self) {
        let moves = self.moves.plan.as_ref().map_or_else(Vec::new, |plan| plan.moves.clone());
        let coming = moves.into_iter().filter_map(|(id, _)| self.volume_index(id));
        let coming: Vec<u32> = coming.filter(|index| self.is_coming(*index)).collect();
        self.moves.opening.retain(|(index, _)| coming.contains(index));
        for index in coming {
            let config = &self.volumes[index as usize].config;
            if self.moves.opening.iter().any(|(opening, _)| *opening == index) {
                continue;
            }
            self.moves.opening.push((index, !config.has_base));
            if config.has_base {
                let token = Token(u64::from(TAG_OPEN) << 32 | u64::from(index));
                self.commands.push_back(Command::Fence { volume: config.id, token });
            }
        }
    }

    /// This mover can write the base of a volume that is to come here.
    pub(super) fn base_opened(&mut self, index: u32) {
        for (opening, done) in &mut self.moves.opening {
            *done |= *opening == index;
        }
        self.tell_planned();
    }

    /// The link to a peer is up: what it was handed over while it was not.
    pub(super) fn hand_off_again(&mut self, peer: ShardId) {
        for (_, to, message) in self.moves.left.iter().filter(|(_, to, _)| *to == peer) {
            self.commands.push_back(Command::Send { to: *to, message: message.clone() });
        }
    }

    /// Tells the coordinator which moves are known here, and what of them is settled.
    pub(super) fn tell_planned(&mut self) {
        let Some(plan) = &self.moves.plan else { return };
        if !self.moves.opening.iter().all(|(_, done)| *done) {
            return;
        }
        let message = Message::Planned { map_version: plan.version };
        self.commands.push_back(Command::Send { to: self.coordinator, message });
        for group in 0..self.groups.len() {
            self.tell_settled(group);
        }
    }

    /// Tells the coordinator that what was to come here by the group's map is here.
    fn tell_settled(&mut self, index: usize) {
        let group = &self.groups[index];
        let carried_out = self.moves.plan.as_ref().is_some_and(|plan| plan.version <= group.map);
        let comes = |v: &super::shard::Volume| {
            v.group == index && matches!(v.standing, Standing::Arriving { .. })
        };
        if carried_out && !self.volumes.iter().any(comes) {
            let message = Message::Settled { group: group.id, map_version: group.map };
            self.commands.push_back(Command::Send { to: self.coordinator, message });
        }
    }

    /// Whether this shard is to be responsible for the volume at this index once it switches.
    pub(super) fn is_coming(&self, volume: u32) -> bool {
        let volume = &self.volumes[volume as usize];
        let plan = self.moves.plan.as_ref();
        plan.is_some_and(|plan| {
            plan.version > self.groups[volume.group].map
                && plan.target(volume.config.id) == Some(self.me)
        })
    }

    /// Carries out a group's moves up to the map `version`, on switching to a set by that map.
    pub(super) fn carry_out(&mut self, index: usize, version: MapVersion) {
        let group = &mut self.groups[index];
        if version <= group.map {
            return;
        }
        group.map = version;
        self.map_version = self.map_version.max(version);
        let Some(plan) = self.moves.plan.take() else { return };
        if plan.version <= version {
            let unfinished = self.unfinished();
            for (id, to) in &plan.moves {
                match self.volume_index(*id) {
                    Some(volume) if self.volumes[volume as usize].group == index => {
                        let under_way = unfinished[volume as usize];
                        self.move_volume(volume, *to, plan.version, under_way);
                    }
                    _ => {}
                }
            }
        }
        self.moves.plan = Some(plan);
        self.tell_settled(index);
    }

    /// By volume: its updates without a fate. One pass over all that is retained.
    fn unfinished(&self) -> Vec<u32> {
        let mut unfinished = alloc::vec![0; self.volumes.len()];
        for slot in self.slab.used_slots() {
            let update = self.slab.get(slot);
            unfinished[update.volume as usize] += u32::from(!update.has(DONE));
        }
        unfinished
    }

    fn move_volume(&mut self, index: u32, to: ShardId, map: MapVersion, unfinished: u32) {
        let volume = &mut self.volumes[index as usize];
        let before = (volume.owner, volume.responsible);
        if before.1 == to {
            return;
        }
        if before.0 == HERE && self.sabotage.is(Sabotage::KeepMoved) {
            let next = Seq(volume.next_seq.0 + 8);
            let kept = core::mem::replace(&mut volume.next_seq, next);
            self.moves.leaving.push(Leaving { volume: index, to, map, unfinished: 0 });
            self.hand_off_if(|leaving| leaving.volume == index);
            self.volumes[index as usize].next_seq = kept;
            return;
        }
        volume.owner = owner_index(self.me, self.mirrors.iter().map(|m| m.shard), to);
        volume.responsible = to;
        let (id, owner) = (volume.config.id, volume.owner);
        self.share_budgets();
        let report = Report::Moved { volume: id, from: before.1, to };
        self.commands.push_back(Command::Report(report));
        if before.0 == HERE {
            self.moves.leaving.push(Leaving { volume: index, to, map, unfinished });
            self.send_on(index);
            let early = self.sabotage.is(Sabotage::HandOffUndrained);
            self.hand_off_if(|leaving| leaving.volume == index && (unfinished == 0 || early));
        } else if owner == HERE {
            let volume = &mut self.volumes[index as usize];
            volume.ready = false;
            volume.standing = Standing::Arriving { from: before.1, map };
            if let Some(at) = self.moves.early.iter().position(|handed| handed.volume == index) {
                let handed = self.moves.early.swap_remove(at);
                self.handed(handed);
            }
        }
    }

    /// An update of a volume that leaves has its fate.
    #[cold]
    pub(super) fn left_behind(&mut self, volume: u32) {
        for leaving in &mut self.moves.leaving {
            if leaving.volume == volume {
                leaving.unfinished = leaving.unfinished.saturating_sub(1);
            }
        }
        self.hand_off_if(|leaving| leaving.volume == volume && leaving.unfinished == 0);
    }

    /// Whether any volume leaves and is not handed over.
    #[inline]
    pub(super) fn is_leaving(&self) -> bool {
        !self.moves.leaving.is_empty()
    }

    fn hand_off_if(&mut self, wanted: impl Fn(&Leaving) -> bool) {
        let Some(at) = self.moves.leaving.iter().position(wanted) else { return };
        let Leaving { volume: index, to, map, .. } = self.moves.leaving.swap_remove(at);
        let volume = &self.volumes[index as usize];
        let group = &self.groups[volume.group];
        let before = self.moves.lasts.iter().filter(|(volume, _, _)| *volume == index);
        let mut lasts: BTreeMap<SetId, Seq> = before.map(|(_, set, seq)| (*set, *seq)).collect();
        for set in group.sets.iter() {
            if let Some((_, last)) = set.range(index as usize) {
                let known = lasts.entry(set.id).or_default();
                *known = last.max(*known);
            }
        }
        let message = Message::HandOff {
            group: group.id,
            map_version: map,
            volume: volume.config.id,
            next: volume.next_seq,
            lost_from: volume.lost_from,
            confirmed: volume.confirmed,
            lasts: lasts.into_iter().collect(),
        };
        self.moves.left.push((volume.config.id, to, message.clone()));
        self.commands.push_back(Command::Send { to, message });
    }

    /// A former owner hands a volume over.
    pub(super) fn hand_off_arrived(&mut self, from: ShardId, message: Message) {
        let Message::HandOff {
            map_version: map, volume, next, lost_from, confirmed, lasts, ..
        } = message
        else {
            return;
        };
        let Some(volume) = self.volume_index(volume) else {
            self.counters.unexpected += 1;
            return;
        };
        let handed = Handed { from, map, volume, next, lost_from, confirmed, lasts };
        match self.volumes[volume as usize].standing {
            Standing::Arriving { .. } => self.handed(handed),
            Standing::Ready if self.is_coming(volume) && !self.moves.early.contains(&handed) => {
                self.moves.early.push(handed);
            }
            // It came before.
            _ => {}
        }
    }

    fn handed(&mut self, handed: Handed) {
        let volume = &mut self.volumes[handed.volume as usize];
        let comes = |standing: &Standing| match standing {
            Standing::Arriving { from, map } => (*from, *map) == (handed.from, handed.map),
            _ => false,
        };
        if !comes(&volume.standing) {
            self.counters.unexpected += 1;
            return;
        }
        volume.standing = Standing::Ready;
        volume.ready = true;
        volume.next_seq = handed.next;
        volume.lost_from = handed.lost_from;
        volume.confirmed = volume.confirmed.max(handed.confirmed);
        let (id, group) = (volume.config.id, volume.group);
        for (set, seq) in handed.lasts {
            self.remember_last(handed.volume, set, seq);
        }
        self.known_to_be_confirmed(group);
        let report = Report::HandedOver { volume: id, from: handed.from, next: handed.next };
        self.commands.push_back(Command::Report(report));
        // Others count on the responsible shard to tell them.
        let known: Vec<Held> = self.own_marks(|volume| volume.config.id == id).collect();
        self.tell_marks(&known);
        self.tell_settled(group);
    }

    /// Sets of a group are confirmed: so are the numbers in them that former owners gave.
    pub(super) fn known_to_be_confirmed(&mut self, group: usize) {
        if self.moves.lasts.is_empty() {
            return;
        }
        let confirmed = self.groups[group].confirmed;
        let volumes = &mut self.volumes;
        self.moves.lasts.retain(|(index, set, seq)| {
            let volume = &mut volumes[*index as usize];
            let known = volume.group == group && *set <= confirmed;
            if known {
                volume.confirmed = volume.confirmed.max(*seq);
            }
            !known
        });
    }

    /// Forwarded updates of a volume that has left and that have no number go to its new owner.
    fn send_on(&mut self, index: u32) {
        let mut rest = core::mem::take(&mut self.arrived);
        let owner = self.volumes[index as usize].responsible;
        rest.retain(|arrived| {
            if arrived.volume != index {
                return true;
            }
            let forward = arrived.info.forward;
            if arrived.from == HERE {
                self.forward_anew(forward, self.volumes[index as usize].owner);
                return false;
            }
            let to = self.mirrors[usize::from(arrived.from)].shard;
            let message = Message::NotResponsible { forward, owner, map_version: self.map_version };
            self.commands.push_back(Command::Send { to, message });
            self.commands.push_back(Command::Free { buf: arrived.buf });
            false
        });
        self.arrived = rest;
    }

    /// The epoch's record says who is responsible: moves to or from movers that left are settled.
    pub(super) fn moves_settled(&mut self, record: &SiteRecord) {
        self.moves.plan.clone_from(&record.plan);
        let fresh = record.since(self.me.mover) == Some(record.epoch);
        for group in &mut self.groups {
            match &record.plan {
                None => group.map = group.map.max(record.map_version),
                // Whether others have carried it out, the coordinator says.
                Some(plan) if fresh => group.map = MapVersion(plan.version.0 - 1),
                Some(_) => {}
            }
        }
        self.open_bases();
        let still = |id| is_planned(record, id);
        self.moves.left.retain(|(id, _, _)| still(*id));
        let volumes = &self.volumes;
        self.moves.early.retain(|h| still(volumes[h.volume as usize].config.id));
        let (leaving, stayed): (Vec<Leaving>, Vec<Leaving>) =
            self.moves.leaving.iter().partition(|l| still(volumes[l.volume as usize].config.id));
        self.moves.leaving = leaving;
        for Leaving { volume, .. } in stayed {
            // It was not handed over yet: nobody else has numbered anything.
            let volume = &mut self.volumes[volume as usize];
            if record.owner(volume.config.id) == Some(self.me) {
                volume.owner = HERE;
                volume.responsible = self.me;
            }
        }
    }

    /// The numbers of a volume that are in this shard's books, by set.
    pub(super) fn kept(&self, index: usize) -> Vec<Kept> {
        let sets = self.groups[self.volumes[index].group].sets.iter();
        sets.filter_map(|set| {
            set.range(index).map(|(first, last)| Kept { set: set.id, first, last })
        })
        .collect()
    }

    /// Those of them that others may have to know: all, unless they are the latest of a volume that is open
    /// here, so that nobody can take them for lost ones between others.
    pub(super) fn kept_to_tell(&self, index: usize) -> Vec<Kept> {
        let kept = self.kept(index);
        let volume = &self.volumes[index];
        // The next number of one that is on its way here is of when it was here last.
        let open = matches!(volume.standing, Standing::Ready | Standing::Restoring(_));
        let latest = volume.owner == HERE
            && open
            && kept.windows(2).all(|pair| pair[0].last.next() == pair[1].first)
            && kept.last().is_none_or(|kept| kept.last.next() == volume.next_seq);
        if latest { Vec::new() } else { kept }
    }

    /// A member keeps numbers of a volume: they are confirmed when their set is.
    pub(super) fn kept_elsewhere(&mut self, index: u32, kept: Kept) {
        self.remember_last(index, kept.set, kept.last);
    }

    /// Kept until the set is confirmed, also when the volume has gone on since: its next owner may fail
    /// before it has heard of that.
    fn remember_last(&mut self, index: u32, set: SetId, last: Seq) {
        let known = (index, set, last);
        if !self.moves.lasts.contains(&known) {
            self.moves.lasts.push(known);
        }
    }

    /// Volumes on their way to this shard, and those on their way from it, with updates under way.
    pub fn moving(&self) -> impl Iterator<Item = (VolumeId, bool, u32)> {
        let comes = self.volumes.iter().filter_map(|volume| {
            let comes = matches!(volume.standing, Standing::Arriving { .. });
            comes.then_some((volume.config.id, true, 0))
        });
        let leaves = self.moves.leaving.iter();
        comes
            .chain(leaves.map(|l| (self.volumes[l.volume as usize].config.id, false, l.unfinished)))
    }
}

fn is_planned(record: &SiteRecord, volume: VolumeId) -> bool {
    record.plan.as_ref().is_some_and(|plan| plan.target(volume).is_some())
}
