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
/// The group, and its one volume.
const GROUP: GroupId = GroupId(1);
const VOLUME: VolumeId = VolumeId(1);
const EPOCH: Epoch = Epoch(1);
const MTU: u16 = 9000;

/// Memory that is used by one case after another.
pub(crate) struct Memory {
    arenas: [IoBuf; 2],
    lives: u64,
}

impl Memory {
    pub(crate) fn new() -> Result<Self, String> {
        let arena = || {
            DmaBuf::new(ARENA_BYTES, SEGMENT_BYTES)
                .map(DmaBuf::leak)
                .map_err(|e| format!("{e}: {} MiB of hugepages for an arena", ARENA_BYTES >> 20))
        };
        Ok(Self { arenas: [arena()?, arena()?], lives: 0 })
    }
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
    /// Starts the case's movers on `cores`; `base` is the base block device of the one volume,
    /// whose tap has index 0.
    pub(crate) fn start(
        case: Case,
        cores: [usize; 2],
        base: &str,
        clock: Clock,
        memory: &mut Memory,
    ) -> Result<Self, String> {
        let copies = if case == Case::Tap { 1 } else { 2 };
        let movers: usize = copies;
        memory.lives += 1;
        let mut ports = ports(case, memory.lives)?;
        let mut members = Vec::new();
        for index in 0..movers {
            let (to_poller, requests) = bounded(64);
            let (reports, from_poller) = bounded(4096);
            let me = shard(index);
            let mut queues = Vec::new();
            let mut links = Vec::new();
            if movers > 1 {
                let queue =
                    ports[index].queue(0, 0).ok_or("the port has no queue for the poller")?;
                let config = LinkConfig {
                    payload_bytes_max: queue.payload_bytes_max(),
                    ..LinkConfig::default()
                };
                let peer = shard(1 - index);
                let address = address(1 - index);
                queues.push(Some(Box::new(queue)));
                let peer_epoch = PeerEpoch::Exactly(EPOCH);
                links.push(LinkParts { peer, config, peer_epoch, port: 0, address });
            }
            let parts = PollerParts {
                shard: me,
                epoch: EPOCH,
                enters: None,
                other_site: Vec::new(),
                core: Some(cores[index]),
                idle: IdlePolicy::Spin,
                clock,
                machines: machines(case, index, copies as u8, movers),
                arena: arena(memory.arenas[index], index, movers),
                volumes: if index == 0 || index == case.owner() {
                    let here = index == case.owner();
                    let owner = (!here).then(|| shard(case.owner()));
                    let bdev = here.then(|| base.into());
                    vec![VolumeParts {
                        id: VOLUME,
                        block_bytes: 4096,
                        timestamps: Timestamps::None,
                        owner,
                        bdev,
                    }]
                } else {
                    Vec::new()
                },
                taps: vec![TapOwner::Here(0)],
                queues,
                links,
                // Hosts only write.
                remote: Vec::new(),
                incarnation: Incarnation::new(memory.lives).ok_or("too many cases")?,
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

fn ports(case: Case, life: u64) -> Result<Vec<Port>, String> {
    if case == Case::Tap {
        return Ok(Vec::new());
    }
    let kinds = if case == Case::MirrorMemif {
        let name = format!("setline-bench-{}-{life}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let end = |role| Kind::Memif { socket: socket.clone(), role, id: 0 };
        [end(MemifRole::Server), end(MemifRole::Client)]
    } else {
        let end = || Kind::Ring(format!("bench{life}"));
        [end(), end()]
    };
    kinds
        .into_iter()
        .enumerate()
        .map(|(index, kind)| {
            let name = format!("bench{life}-{index}");
            let spec = PortSpec { name, kind, queues: 1, mtu_bytes: MTU, mac: None };
            let peer = NextHop { ip: address(1 - index), mac: None };
            let network = Network {
                ip: address(index),
                prefix_len: 24,
                gateway: None,
                vlan: None,
                udp_port: 4420,
                peers: vec![peer],
            };
            Port::open(&spec, &network).map_err(|e| e.to_string())
        })
        .collect()
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

fn machines(case: Case, index: usize, copies: u8, movers: usize) -> MachineConfigs {
    let (me, coordinator) = (shard(index), shard(0));
    let group =
        GroupConfig { id: GROUP, copies, policy: MirrorPolicy::Load, numbering: Numbering::Volume };
    let grant_bytes = (ARENA_BYTES - 8 * SEGMENT_BYTES) as u64;
    let volume = VolumeConfig {
        id: VOLUME,
        owner: shard(case.owner()),
        group: GROUP,
        block_bytes: 4096,
        has_base: true,
        target: None,
        next_seq: Seq(1),
    };
    let config = PrimaryConfig {
        me,
        coordinator,
        epoch: EPOCH,
        map_version: MapVersion(1),
        mirrors: (0..movers)
            .filter(|other| *other != index)
            .map(|other| MirrorPeer { shard: shard(other), grant_bytes, is_target: true })
            .collect(),
        groups: vec![group],
        volumes: if index == 0 || index == case.owner() { vec![volume] } else { Vec::new() },
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
