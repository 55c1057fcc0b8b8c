//! The movers of a case, in this process: pollers on two cores, with ports between them.

use super::case::Case;
use crossbeam::channel::{Receiver, Sender, bounded};
use setline::config::Timestamps;
use setline::dpdk::{Kind, MemifRole, Network, NextHop, Port, PortSpec};
use setline::mem::arena::{LogLimits, SEGMENT_BYTES};
use setline::proto::boundary::{BoundaryConfig, BoundaryGroup};
use setline::proto::link::{LinkConfig, PeerEpoch};
use setline::proto::primary::{
    GroupConfig, MirrorPeer, MirrorPolicy, Numbering, PrimaryConfig, VolumeConfig,
};
use setline::proto::sabotage::Sabotage;
use setline::proto::types::{Epoch, GroupId, MapVersion, Seq, SetId, ShardId, VolumeId};
use setline::runtime::clock::Clock;
use setline::runtime::idle::IdlePolicy;
use setline::runtime::messages::{FromPoller, PollerSnapshot, ToPoller};
use setline::runtime::parts::{
    ArenaParts, LinkParts, MachineConfigs, PollerParts, TapOwner, VolumeParts,
};
use setline::runtime::poller::{Poller, RunningPoller};
use setline::runtime::siblings::SiblingEnds;
use setline::runtime::stamps::Sources;
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::wire::packet::Incarnation;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Memory of each poller.
const ARENA_BYTES: usize = 256 << 20;
/// The group.
const GROUP: GroupId = GroupId(1);
const EPOCH: Epoch = Epoch(1);
const MTU: u16 = 9000;

/// Memory that is used by one case after another.
pub(crate) struct Memory {
    arenas: Vec<IoBuf>,
    lives: u64,
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self { arenas: Vec::new(), lives: 0 }
    }

    /// The memory of so many movers.
    fn arenas(&mut self, movers: usize) -> Result<&[IoBuf], String> {
        while self.arenas.len() < movers {
            let arena = DmaBuf::new(ARENA_BYTES, SEGMENT_BYTES).map_err(|error| {
                format!("{error}: {} MiB of hugepages for an arena", ARENA_BYTES >> 20)
            })?;
            self.arenas.push(arena.leak());
        }
        Ok(&self.arenas)
    }
}

/// A volume: the index of its tap, and its base block device.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) tap: u32,
    pub(crate) base: String,
}

/// What is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// The way between the movers, the period, and who is responsible.
    pub(crate) case: Case,
    /// Movers: hosts write at the first; each update has two copies, or as many as there are movers.
    pub(crate) movers: usize,
    /// Core of the first mover's poller, and of all others'.
    pub(crate) cores: [usize; 2],
    pub(crate) volumes: &'a [Volume],
}

/// One running poller and the channels to it.
struct Member {
    poller: RunningPoller,
    requests: Sender<ToPoller>,
    reports: Receiver<FromPoller>,
}

/// The movers of one case.
pub(crate) struct Cluster {
    members: Vec<Member>,
    ports: Vec<Port>,
    clock: Clock,
}

impl Cluster {
    /// Starts the movers.
    pub(crate) fn start(
        setup: Setup<'_>,
        clock: Clock,
        memory: &mut Memory,
    ) -> Result<Self, String> {
        let Setup { case, movers, cores, volumes } = setup;
        memory.lives += 1;
        let lives = memory.lives;
        let mut ports = ports(case, movers, lives)?;
        let mut members = Vec::new();
        for index in 0..movers {
            let (to_poller, requests) = bounded(64);
            let (reports, from_poller) = bounded(4096);
            let mut queues = Vec::new();
            let mut links = Vec::new();
            for (place, (_, at, peer)) in
                ends(movers).enumerate().filter(|(_, (of, _, _))| *of == index)
            {
                let queue =
                    ports[place].queue(0, 0).ok_or("the port has no queue for the poller")?;
                let config = LinkConfig {
                    payload_bytes_max: queue.payload_bytes_max(),
                    ..LinkConfig::default()
                };
                queues.push(Some(Box::new(queue)));
                links.push(LinkParts {
                    peer: shard(peer),
                    config,
                    peer_epoch: PeerEpoch::Exactly(EPOCH),
                    port: at,
                    address: address(peer),
                });
            }
            let has_volumes = index == 0 || index == case.owner();
            let here = index == case.owner();
            let parts = PollerParts {
                shard: shard(index),
                epoch: EPOCH,
                enters: None,
                other_site: Vec::new(),
                core: Some(cores[index.min(1)]),
                // Movers that share a core let one another have it.
                idle: match movers {
                    0..=2 => IdlePolicy::Spin,
                    _ if index == 0 => IdlePolicy::Spin,
                    _ => IdlePolicy::Yield { rounds: 0 },
                },
                clock,
                machines: machines(setup, index),
                arena: arena(memory.arenas(movers)?[index], index, movers),
                volumes: volumes
                    .iter()
                    .zip(1..)
                    .filter(|_| has_volumes)
                    .map(|(volume, id)| VolumeParts {
                        id: VolumeId(id),
                        block_bytes: 4096,
                        timestamps: Timestamps::None,
                        owner: (!here).then(|| shard(case.owner())),
                        bdev: here.then(|| volume.base.clone()),
                    })
                    .collect(),
                taps: taps(volumes),
                queues,
                links,
                // Hosts only write.
                remote: Vec::new(),
                incarnation: Incarnation::new(lives).ok_or("too many cases")?,
                hosts: None,
                list: None,
                times: Sources::default(),
                timer: None,
                siblings: SiblingEnds::default(),
                journal: None,
                requests,
                reports,
                ios_max: 8192,
            };
            let poller = Poller::spawn(parts).map_err(|e| e.to_string())?;
            members.push(Member { poller, requests: to_poller, reports: from_poller });
        }
        Ok(Self { members, ports, clock })
    }

    /// The SPDK thread of the poller that has the volume.
    pub(crate) fn thread(&self) -> &setline::spdk::thread::ThreadHandle {
        &self.members[0].poller.thread
    }

    /// How the poller that has the volume stands. `pump` polls the app thread.
    pub(crate) fn snapshot(
        &mut self,
        pump: &mut dyn FnMut(),
    ) -> Result<Box<PollerSnapshot>, String> {
        self.snapshot_of(0, pump)
    }

    /// What the poller of the member at `index` knows of itself; 0 is the primary's.
    fn snapshot_of(
        &mut self,
        index: usize,
        pump: &mut dyn FnMut(),
    ) -> Result<Box<PollerSnapshot>, String> {
        let (reply, answer) = bounded(1);
        let Self { members, ports, clock } = self;
        let member = &members[index];
        member
            .requests
            .send_timeout(ToPoller::Snapshot { reply }, Duration::from_secs(2))
            .map_err(|_| "the poller takes no requests")?;
        let start = Instant::now();
        loop {
            pump();
            for port in ports.iter_mut() {
                port.maintain(clock.now());
            }
            while member.reports.try_recv().is_ok() {}
            match answer.recv_timeout(Duration::from_millis(1)) {
                Ok(snapshot) => return Ok(snapshot),
                Err(_) if start.elapsed() > Duration::from_secs(5) => {
                    return Err("the poller does not answer".into());
                }
                Err(_) => {}
            }
        }
    }

    /// p50, p99 and the longest hold at boundaries since the last question, in nanoseconds, at the
    /// mover that held longest: the coordinator's own shard switches last and hardly holds.
    pub(crate) fn holds(&mut self, pump: &mut dyn FnMut()) -> Result<Option<[f64; 3]>, String> {
        let mut worst: Option<[f64; 3]> = None;
        for index in 0..self.members.len() {
            let hold = self.snapshot_of(index, pump)?.hold_ns;
            if !hold.is_empty() {
                let at = |q| hold.value_at_quantile(q) as f64;
                let here = [at(0.5), at(0.99), hold.max() as f64];
                worst = Some(match worst {
                    Some(worst) if worst[1] >= here[1] => worst,
                    _ => here,
                });
            }
        }
        Ok(worst)
    }

    /// Waits until the volume takes writes: the first set is open.
    pub(crate) fn wait_ready(&mut self, pump: &mut dyn FnMut()) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let snapshot = self.snapshot(pump)?;
            let open = snapshot
                .coordinator
                .iter()
                .flatten()
                .any(|g| g.open > SetId(0) && g.preparing_since.is_none());
            if open {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(10) {
                return Err(format!(
                    "no set was opened within 10 s; waiting for {:?}, links {:?}",
                    snapshot.coordinator, snapshot.links
                ));
            }
        }
    }

    /// Stops the movers. `pump` polls the app thread.
    pub(crate) fn stop(self, pump: &mut dyn FnMut()) {
        for member in &self.members {
            let _ = member.requests.send_timeout(ToPoller::Stop, Duration::from_secs(2));
        }
        for member in self.members {
            while !member.poller.is_finished() {
                pump();
                while member.reports.try_recv().is_ok() {}
                std::thread::sleep(Duration::from_micros(200));
            }
            member.poller.join();
        }
    }
}

fn shard(index: usize) -> ShardId {
    ShardId::new(index as u16 + 1, 0)
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, index as u8 + 1)
}

/// The ends of the ways between the first mover and each other one: whose end, the index of the port
/// there, and who is at the other end.
fn ends(movers: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (1..movers).flat_map(|other| [(0, other - 1, other), (other, 0, 0)])
}

/// Serving each volume's tap. Taps of volumes that are not there get no commands.
fn taps(volumes: &[Volume]) -> Vec<TapOwner> {
    let count = volumes.iter().map(|volume| volume.tap + 1).max().unwrap_or(0);
    let mut taps = vec![TapOwner::Here(0); count as usize];
    for (volume, index) in volumes.iter().zip(0..) {
        taps[volume.tap as usize] = TapOwner::Here(index);
    }
    taps
}

fn ports(case: Case, movers: usize, life: u64) -> Result<Vec<Port>, String> {
    let end = |(of, _, peer): (usize, usize, usize)| {
        let way = of.max(peer);
        let kind = if case == Case::MirrorMemif {
            let name = format!("setline-bench-{}-{life}", std::process::id());
            let socket = std::env::temp_dir().join(name);
            let role = if of == 0 { MemifRole::Server } else { MemifRole::Client };
            Kind::Memif { socket, role, id: 0 }
        } else {
            Kind::Ring(format!("bench{life}-{way}"))
        };
        let name = format!("bench{life}-{way}-{}", usize::from(of > 0));
        let spec = PortSpec { name, kind, queues: 1, mtu_bytes: MTU, mac: None };
        let network = Network {
            ip: address(of),
            prefix_len: 24,
            gateway: None,
            vlan: None,
            udp_port: 4420,
            peers: vec![NextHop { ip: address(peer), mac: None }],
        };
        Port::open(&spec, &network).map_err(|e| e.to_string())
    };
    ends(movers).map(end).collect()
}

fn arena(memory: IoBuf, index: usize, movers: usize) -> ArenaParts {
    let all = LogLimits::exactly(ARENA_BYTES as u64);
    let none = LogLimits { reserved_bytes: 0, limit_bytes: SEGMENT_BYTES as u64 };
    let one = LogLimits::exactly((ARENA_BYTES - SEGMENT_BYTES) as u64);
    match (index, movers) {
        (_, 1) => ArenaParts { memory, own: all, mirror: none },
        (0, _) => ArenaParts { memory, own: one, mirror: LogLimits::exactly(SEGMENT_BYTES as u64) },
        _ => ArenaParts { memory, own: LogLimits::exactly(SEGMENT_BYTES as u64), mirror: one },
    }
}

fn machines(setup: Setup<'_>, index: usize) -> MachineConfigs {
    let Setup { case, movers, volumes, .. } = setup;
    let (me, coordinator) = (shard(index), shard(0));
    let group = GroupConfig {
        described: false,
        id: GROUP,
        copies: movers.min(2) as u8,
        policy: MirrorPolicy::Load,
        numbering: Numbering::Volume,
    };
    let grant_bytes = (ARENA_BYTES - 8 * SEGMENT_BYTES) as u64;
    let volume = |id| VolumeConfig {
        id: VolumeId(id),
        owner: shard(case.owner()),
        group: GROUP,
        block_bytes: 4096,
        has_base: true,
        target: None,
        next_seq: Seq(1),
    };
    let has_volumes = index == 0 || index == case.owner();
    let config = PrimaryConfig {
        me,
        coordinator,
        epoch: EPOCH,
        map_version: MapVersion(1),
        mirrors: ends(movers)
            .filter(|(of, _, _)| *of == index)
            .map(|(_, _, peer)| MirrorPeer { shard: shard(peer), grant_bytes, is_target: true })
            .collect(),
        groups: vec![group],
        volumes: (1..).take(volumes.len()).filter(|_| has_volumes).map(volume).collect(),
        retained_max: 1 << 16,
        mirrored_max: 1 << 16,
        forwards_max: 1 << 10,
        record_align: 64,
        in_flight_max: 1024,
        unclean: false,
        sabotage: Sabotage::None,
    };
    let boundary = (index == 0).then(|| BoundaryConfig {
        me,
        shards: (0..movers).map(shard).collect(),
        secondary: None,
        backup: None,
        epoch: EPOCH,
        unix_offset_ns: 0,
        groups: vec![BoundaryGroup { id: GROUP, period_ns: case.period_ns(), first_set: SetId(1) }],
        sabotage: Sabotage::None,
    });
    MachineConfigs::Primary { shard: config, boundary }
}
