//! Builds the cluster that a profile describes, and starts its movers.

use super::arena::Arena;
use super::cluster::{Cluster, EPOCH, Event, GROUP};
use super::coverage::Coverage;
use super::disk::VolumeDisk;
use super::hosts::Host;
use super::journal::{Content, JournalDevice};
use super::journal_io::JournalIo;
use super::membership;
use super::network::Network;
use super::node::{Poller, Port};
use super::observer::{Observer, Verdict, Violation};
use super::prng::Rng;
use super::profile::{MS, Profile, US};
use super::queue::EventQueue;
use super::stats::Stats;
use super::times::Times;
use super::trace::Trace;
use crate::proto::boundary::Boundary;
use crate::proto::link::{Link, LinkConfig, PeerEpoch};
use crate::proto::node::{Machines, Node};
use crate::proto::primary::{
    GroupConfig, MirrorPeer, MirrorPolicy, Numbering, PrimaryConfig, PrimaryShard, VolumeConfig,
};
use crate::proto::secondary::{
    CoordinatorConfig, Recovered, Secondary, ShardConfig, VolumeConfig as TargetConfig,
};
use crate::proto::types::{Epoch, MoverId, Nanos, Seq, ShardId, VolumeId};
use crate::wire::packet::{Incarnation, Site};
use std::collections::{BTreeMap, VecDeque};

impl Cluster {
    pub(super) fn new(profile: Profile, rng: &mut Rng, trace: Trace) -> Self {
        let mut layout = rng.fork();
        let pollers = usize::from(profile.pollers);
        let primaries = usize::from(profile.primaries) * pollers;
        let secondaries = usize::from(profile.secondaries) * pollers;
        let shards = primaries + secondaries;
        let mut owners = Vec::new();
        let mut targets = Vec::new();
        let mut counts = vec![0; pollers];
        for _ in 0..profile.volumes {
            let owner = layout.below(primaries as u64) as usize;
            let lane = owner % pollers;
            owners.push((owner, counts[lane]));
            counts[lane] += 1;
            targets.push(primaries + layout.below(secondaries as u64) as usize);
        }
        let blocks = profile.blocks as usize;
        let disks = || (0..profile.volumes).map(|_| VolumeDisk::new(blocks)).collect();
        let mut cluster = Self {
            queue: EventQueue::new(Nanos(MS)),
            pollers: Vec::new(),
            primaries,
            observer: Observer::new(u32::from(profile.copies), shards, primaries, &targets, blocks)
                .with_descriptions(profile.described),
            base: disks(),
            target: disks(),
            journals: Vec::new(),
            owners,
            forwards: BTreeMap::new(),
            site: membership::Site::new(profile.primaries, Vec::new()),
            barred: vec![0; profile.volumes as usize],
            hosts: (0..profile.hosts).map(|_| Host::default()).collect(),
            host_of: Vec::new(),
            network: Network::new(
                rng.fork(),
                profile.network,
                usize::from(profile.primaries + profile.secondaries),
                usize::from(profile.primaries),
            ),
            disk_ops: 0,
            net_rng: rng.fork(),
            disk_rng: rng.fork(),
            host_rng: rng.fork(),
            fault_rng: rng.fork(),
            times: Times::new(
                rng.fork(),
                profile.timestamps,
                (profile.primaries, profile.pollers),
                profile.sabotage,
            ),
            trace,
            stats: Stats::default(),
            coverage: Coverage::default(),
            cost: None,
            healed_at: None,
            profile,
        };
        for index in 0..shards {
            let poller = Poller::new(cluster.shard_id(index), cluster.new_arena(), shards);
            cluster.pollers.push(poller);
            let (config, stage_bytes) = cluster.profile.journal();
            cluster.journals.push(JournalDevice::new(cluster.shard_id(index), config, stage_bytes));
        }
        let owners = (0..).zip(&cluster.owners);
        let owners = owners.map(|(v, (owner, _))| (VolumeId(v), cluster.shard_id(*owner)));
        cluster.site = membership::Site::new(cluster.profile.primaries, owners.collect());
        cluster
    }

    /// Starts all movers and hosts.
    ///
    /// # Errors
    /// What the observer finds.
    pub(super) fn start(&mut self) -> Verdict {
        for mover in 0..self.profile.primaries + self.profile.secondaries {
            self.launch(MoverId(mover))?;
        }
        for host in 0..self.hosts.len() {
            let think = self.host_rng.below(MS);
            self.queue.after(think, Event::Host { host });
        }
        self.schedule_faults();
        self.queue.after(MS, Event::Check);
        Ok(())
    }

    /// The address of the poller with this index.
    pub(super) fn shard_id(&self, index: usize) -> ShardId {
        let pollers = usize::from(self.profile.pollers);
        ShardId::new((index / pollers) as u16, (index % pollers) as u8)
    }

    /// The pollers of a mover.
    pub(super) fn shards_of(&self, mover: MoverId) -> std::ops::Range<usize> {
        let pollers = usize::from(self.profile.pollers);
        usize::from(mover.0) * pollers..(usize::from(mover.0) + 1) * pollers
    }

    /// The index of the poller with this address.
    pub(super) fn shard_index(&self, id: ShardId) -> usize {
        usize::from(id.mover.0) * usize::from(self.profile.pollers) + usize::from(id.poller)
    }

    /// The arena of a poller that starts.
    pub(super) fn new_arena(&self) -> Arena {
        // Every other mover may use all that it was granted.
        let shares = if self.profile.epochs { 2 } else { 1 };
        let mirror_bytes = self.profile.grant_bytes * u64::from(self.profile.primaries) * shares;
        Arena::new(self.profile.own_bytes, mirror_bytes)
    }

    /// Starts a mover's pollers.
    ///
    /// # Errors
    /// What the observer finds in their first turn.
    pub(super) fn launch(&mut self, mover: MoverId) -> Verdict {
        let shards = self.shards_of(mover);
        for index in shards.clone() {
            self.launch_poller(index)?;
        }
        // The rings to the other pollers of the same mover need no session.
        for index in shards.clone() {
            let here = self.here(index);
            for peer in shards.clone().filter(|peer| *peer != index) {
                let peer = self.shard_id(peer);
                if let Some(node) = &mut self.pollers[index].node {
                    node.handle_peer_up(here, peer);
                }
            }
        }
        for index in shards {
            self.settle(index)?;
        }
        Ok(())
    }

    fn launch_poller(&mut self, index: usize) -> Verdict {
        let (now, here) = (self.queue.now(), self.here(index));
        self.pollers[index].life += 1;
        let (machines, other) = if index < self.primaries {
            (self.primary_machines(index), self.primaries..self.pollers.len())
        } else {
            (self.secondary_machines(index)?, 0..self.primaries)
        };
        let mut other: Vec<MoverId> = other.map(|i| self.shard_id(i).mover).collect();
        other.dedup();
        // A mover that joins enters its first epoch like the others.
        let record = self.site.latest().clone();
        self.pollers[index].record = self.site.records.len() - 1;
        let joins = index < self.primaries && record.epoch > EPOCH;
        let epoch = if joins { Epoch(record.epoch.0 - 1) } else { EPOCH };
        let mut node = Node::new(self.shard_id(index), epoch, other, machines, here);
        node.expect_other_site(EPOCH);
        if let Some(timer) = self.timer(index, epoch) {
            node.keep_time(timer);
        }
        if joins {
            node.enter(here, &record, &self.engine(&record));
        }
        self.pollers[index].node = Some(Box::new(node));
        self.pollers[index].ports.clear();
        for peer in 0..self.pollers.len() {
            let place = self.need_link(index, peer).then_some(self.pollers[index].ports.len());
            self.pollers[index].port_of[peer] = place;
            if place.is_some() {
                let link = self.new_link(index, peer, now);
                let port = Port { link, peer, unsent: VecDeque::new(), touched: true };
                self.pollers[index].ports.push(port);
            }
        }
        Ok(())
    }

    /// Whether two pollers have anything to say to one another.
    fn need_link(&self, a: usize, b: usize) -> bool {
        let (a, b) = (a.min(b), a.max(b));
        let (one, other) = (self.shard_id(a), self.shard_id(b));
        if one.mover == other.mover {
            return false;
        }
        if self.profile.epochs {
            return a < self.primaries || one.poller == other.poller || a == self.primaries;
        }
        let coordinates = |index: usize| index == 0 || index == self.primaries;
        let same_site = (a < self.primaries) == (b < self.primaries);
        if same_site {
            one.poller == other.poller || coordinates(a) || coordinates(b)
        } else {
            let transfers =
                |v: usize| self.owners[v].0 == a && self.observer.volumes[v].target == b;
            coordinates(a) && coordinates(b) || (0..self.owners.len()).any(transfers)
        }
    }

    fn new_link(&self, index: usize, peer: usize, now: Nanos) -> Link {
        let node = &self.pollers[index];
        let config = LinkConfig {
            site: if index < self.primaries { Site::Primary } else { Site::Secondary },
            payload_bytes_max: if self.profile.block_bytes > 64 { 1024 } else { 256 },
            data_window: 64,
            control_window: 64,
            records_max: 256,
            messages_max: 64,
            message_store_bytes: 128 * 1024,
            assemblies_max: 16,
            rto_initial_ns: 4 * MS,
            rto_min_ns: 200 * US,
            rto_max_ns: 20 * MS,
            reorder_ns: 20 * US,
            heartbeat_ns: self.profile.heartbeat_ns,
            silent_ns: 20 * self.profile.heartbeat_ns,
        };
        // A life is a new incarnation; any growing number does.
        let me = Incarnation::new(u64::from(node.life)).unwrap_or(Incarnation::MAX);
        let mut link = Link::new(config, node.id, self.shard_id(peer), me, now);
        let same_site = (index < self.primaries) == (peer < self.primaries);
        let own = node.node.as_ref().map_or(EPOCH, |node| node.epoch());
        let accepted = if same_site { PeerEpoch::Exactly(own) } else { PeerEpoch::AtLeast(EPOCH) };
        link.set_epoch(own, accepted);
        link
    }

    /// Whether a poller's mover is down.
    pub(super) fn is_down(&self, index: usize) -> bool {
        self.pollers[index].node.is_none()
    }

    fn primary_machines(&self, index: usize) -> Machines {
        let me = self.shard_id(index);
        let profile = &self.profile;
        let record = self.site.latest();
        let coordinator = record.coordinator;
        let mirrors: Vec<MirrorPeer> = (0..profile.primaries)
            .filter(|mover| *mover != me.mover.0)
            .map(|mover| MirrorPeer {
                shard: ShardId::new(mover, me.poller),
                grant_bytes: profile.grant_bytes,
                is_target: true,
            })
            .collect();
        let volumes = (0..profile.volumes)
            .map(|v| (v, self.shard_id(self.owners[v as usize].0)))
            .filter(|(_, owner)| owner.poller == me.poller)
            .map(|(v, owner)| VolumeConfig {
                id: VolumeId(v),
                owner,
                group: GROUP,
                block_bytes: profile.block_bytes,
                has_base: true,
                target: Some(self.shard_id(self.observer.volumes[v as usize].target)),
                // What a store may still have of a volume that is another shard's by now.
                next_seq: if owner == me { Seq(1) } else { Seq(1 << 40) },
            })
            .collect();
        let config = PrimaryConfig {
            me,
            coordinator,
            epoch: if record.epoch > EPOCH { Epoch(record.epoch.0 - 1) } else { EPOCH },
            map_version: record.map_version,
            mirrors,
            groups: vec![GroupConfig {
                id: GROUP,
                copies: profile.copies,
                policy: if profile.mirror_by_load {
                    MirrorPolicy::Load
                } else {
                    MirrorPolicy::Partner(0)
                },
                numbering: Numbering::Volume,
                described: profile.described,
            }],
            volumes,
            retained_max: 256,
            mirrored_max: 1024,
            forwards_max: profile.forwards_max,
            in_flight_max: profile.in_flight,
            record_align: 1,
            unclean: false,
            sabotage: profile.sabotage,
        };
        let boundary = (me == coordinator).then(|| Boundary::new(&self.engine(record)));
        Machines::Primary { shard: PrimaryShard::new(&config), boundary }
    }

    /// A secondary poller's machines, with what its journal has.
    fn secondary_machines(&mut self, index: usize) -> Result<Machines, Violation> {
        let me = self.shard_id(index);
        let profile = &self.profile;
        let coordinator = self.shard_id(self.primaries);
        let target = |volume: u32| self.observer.volumes[volume as usize].target;
        let next = profile.primaries + (me.mover.0 - profile.primaries + 1) % profile.secondaries;
        let shard = ShardConfig {
            me,
            epoch: EPOCH,
            coordinator,
            partner: (profile.secondaries > 1).then(|| ShardId::new(next, me.poller)),
            primaries: (0..self.primaries).map(|i| self.shard_id(i)).collect(),
            groups: vec![GROUP],
            volumes: (0..profile.volumes)
                .filter(|volume| target(*volume) == index)
                .map(|volume| TargetConfig {
                    id: VolumeId(volume),
                    group: GROUP,
                    block_bytes: profile.block_bytes,
                    blocks: u64::from(profile.blocks),
                })
                .collect(),
            apply_depth: profile.apply_depth,
            sabotage: profile.sabotage,
        };
        let coordinator = (me == coordinator).then(|| CoordinatorConfig {
            me,
            shards: (self.primaries..self.pollers.len()).map(|i| self.shard_id(i)).collect(),
            groups: vec![GROUP],
            volumes: (0..profile.volumes)
                .map(|volume| (VolumeId(volume), self.shard_id(target(volume))))
                .collect(),
            sabotage: profile.sabotage,
        });
        let mut secondary = Secondary::new(shard, coordinator);
        let (journal, found) = self.journals[index].open()?;
        self.note_commits(index);
        for (position, content) in found {
            let entry = match content {
                Content::Record { info, role, .. } => {
                    self.stats.recovered_records += 1;
                    Recovered::Record { role, info }
                }
                Content::Manifest(message) => Recovered::Manifest { message },
                Content::Commit { group, set, cut_time_ns, primary_epoch } => {
                    Recovered::Commit { group, set, cut_time_ns, primary_epoch }
                }
                Content::Applied { group, set } => Recovered::Applied { group, set },
            };
            secondary.recover(position, entry);
        }
        secondary.recovered(self.queue.now());
        self.pollers[index].journal = Some(Box::new(JournalIo::new(journal)));
        Ok(Machines::Secondary(secondary))
    }
}
