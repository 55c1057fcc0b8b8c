//! What a lab will consist of: configurations, files, namespaces, addresses. Nothing is made yet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::{Base, Engine, IdlePolicy, Network, Shape, Traffic, Transport};
use super::service::PlannedService;
use crate::config::*;

mod ports;
mod services;

/// Name of the lab's only group.
pub const GROUP: &str = "lab";
/// NQN of its subsystem.
pub const NQN: &str = "nqn.2026-11.io.setline:lab";
/// Where a mover in a namespace of its own listens for NVMe/TCP.
const NVME_TCP_PORT: u16 = 4420;

/// What the machine offers to a lab.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores this process may run on.
    pub cores: Vec<u16>,
    /// A TCP port for each primary mover, free on the loopback address.
    pub tcp_ports: Vec<u16>,
    /// More such ports, for what movers need.
    pub lab_ports: Vec<u16>,
    /// Distinguishes this lab from others on the machine, six hexadecimal digits.
    pub tag: String,
}

/// What a lab will consist of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it will live.
    pub directory: PathBuf,
    /// Its movers, primary movers first, each site in the order of numbers.
    pub movers: Vec<PlannedMover>,
    /// Its volume pairs, in the order of namespace ids.
    pub volumes: Vec<PlannedVolume>,
    /// Its volumes that are not replicated.
    pub unreplicated: Vec<PlannedUnreplicated>,
    /// Files to make, with their length in bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Directories to make.
    pub directories: Vec<PathBuf>,
    /// Programs of others to start before the movers.
    pub services: Vec<PlannedService>,
    /// Namespaces to make, for `--network veth`.
    pub veth: Option<VethPlan>,
}

/// A mover to be started.
#[derive(Debug, Clone)]
pub struct PlannedMover {
    /// Its configuration.
    pub config: Mover,
    /// Where its configuration will lie.
    pub file: PathBuf,
    /// Where its log will lie.
    pub log: PathBuf,
    /// The namespace it will run in.
    pub namespace: Option<String>,
}

/// A volume pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedVolume {
    /// Its name.
    pub name: String,
    /// Its namespace id.
    pub nsid: u32,
    /// Name of the responsible mover.
    pub mover: String,
    /// The primary's file, with `--base array` the storage server's; none with `--base malloc`.
    pub primary: Option<PathBuf>,
    /// The secondary's file.
    pub secondary: PathBuf,
}

/// A volume that is not replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedUnreplicated {
    /// Its name.
    pub name: String,
    /// Its namespace id.
    pub nsid: u32,
    /// Its file, with `--base array` the storage server's; none with `--base malloc`.
    pub file: Option<PathBuf>,
}

/// Network namespaces and what joins them: a hub with one bridge for the movers' own traffic and
/// one for hosts, and for each mover a namespace with a leg in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethPlan {
    /// The hub's namespace. Hosts run in it.
    pub hub: String,
    /// One namespace per mover.
    pub legs: Vec<VethLeg>,
    /// Hosts come by the movers' first interface and bridge; there are no others.
    pub shared: bool,
}

/// A mover's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VethLeg {
    /// Its name.
    pub namespace: String,
    /// Interfaces for DPDK, one per poller; no addresses, the mover speaks for itself.
    pub interfaces: Vec<String>,
    /// Address of the interface for hosts.
    pub host_ip: Ipv4Addr,
}

/// Address of the hub towards the movers' host legs.
pub const HUB_HOST_IP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);

/// Why a lab cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// More copies than movers.
    #[error("--copies {copies}: the primary site has {primary} movers")]
    Copies {
        /// Asked for.
        copies: u8,
        /// Movers there are.
        primary: u16,
    },
    /// Pollers of one mover need cores of their own.
    #[error("--pollers {pollers}: this machine lets the lab use {cores} cores")]
    Pollers {
        /// Asked for.
        pollers: u8,
        /// Cores there are.
        cores: usize,
    },
    /// The configuration made is not valid; the options ask for something out of bounds.
    #[error("these options make no valid configuration:\n{0}")]
    Config(#[from] ConfigError),
    /// Hosts share an interface only where there are interfaces, and through the kernel.
    #[error("--traffic shared: use --network veth --transport tcp")]
    Traffic,
    /// A path is not UTF-8.
    #[error("the lab's directory cannot be written into TOML: {0}")]
    Render(#[from] toml::ser::Error),
}

/// Primary movers that hold an update before it is acknowledged.
#[must_use]
pub fn copies(shape: &Shape) -> u8 {
    shape.copies.unwrap_or(if shape.primary > 1 { 2 } else { 1 })
}

/// Plans a lab of `shape` in `directory`.
///
/// # Errors
/// [`PlanError`]: every configuration made is read back and judged like one written by hand.
pub fn plan(shape: &Shape, directory: &Path, machine: &Machine) -> Result<Plan, PlanError> {
    let copies = copies(shape);
    if u16::from(copies) > shape.primary {
        return Err(PlanError::Copies { copies, primary: shape.primary });
    }
    if usize::from(shape.pollers) > machine.cores.len() {
        return Err(PlanError::Pollers { pollers: shape.pollers, cores: machine.cores.len() });
    }
    let through_kernel = shape.network() == Network::Veth && shape.transport() == Transport::Tcp;
    if shape.traffic == Traffic::Shared && !through_kernel {
        return Err(PlanError::Traffic);
    }
    let builder = Builder { shape, directory, machine, copies };
    let identities = builder.identities();
    let mut movers = Vec::new();
    for at in 0..identities.len() {
        let config = builder.mover(&identities, at);
        let name = &config.mover.name;
        let file = directory.join("conf").join(format!("{name}.toml"));
        // What a person would be told, a lab is told, too.
        let text = config.render()?;
        let config = Mover::parse(&file.display().to_string(), &text)?.mover;
        let log = directory.join("log").join(format!("{}.log", config.mover.name));
        movers.push(PlannedMover { file, log, namespace: builder.namespace(at), config });
    }
    let volumes: Vec<PlannedVolume> = movers[0].config.groups[0]
        .volumes
        .iter()
        .map(|volume| PlannedVolume {
            name: volume.name.clone(),
            nsid: volume.nsid,
            mover: volume.mover.clone(),
            primary: match shape.base() {
                Base::File | Base::Array => Some(builder.image("primary", &volume.name)),
                Base::Malloc => None,
            },
            secondary: builder.image("secondary", &volume.name),
        })
        .collect();
    let unreplicated: Vec<PlannedUnreplicated> = movers[0].config.groups[0]
        .unreplicated
        .iter()
        .map(|volume| PlannedUnreplicated {
            name: volume.name.clone(),
            nsid: volume.nsid,
            file: (shape.base() != Base::Malloc)
                .then(|| builder.image("unreplicated", &volume.name)),
        })
        .collect();
    let bytes = shape.volume_mib << 20;
    let others = unreplicated.iter().filter_map(|volume| Some((volume.file.clone()?, bytes)));
    let images = volumes.iter().flat_map(|volume| {
        volume.primary.iter().chain([&volume.secondary]).map(|path| (path.clone(), bytes))
    });
    let journals = movers.iter().filter_map(|mover| match &mover.config.journal {
        Some(Journal { disk: Disk::File { path, .. }, size_mib }) => {
            Some((path.clone(), size_mib << 20))
        }
        _ => None,
    });
    let files = images.chain(others).chain(journals).collect();
    let mut directories: Vec<PathBuf> =
        ["conf", "log", "net", "img"].iter().map(|name| directory.join(name)).collect();
    let services = builder.services(&volumes, &unreplicated);
    directories.extend(services.iter().filter_map(|service| {
        service.file().and_then(|(file, _)| file.parent()).map(Path::to_owned)
    }));
    directories.extend(movers.iter().map(|mover| mover.config.mover.run_dir.clone()));
    let veth = (shape.network() == Network::Veth).then(|| builder.veth(identities.len()));
    Ok(Plan {
        directory: directory.to_owned(),
        movers,
        volumes,
        unreplicated,
        files,
        directories,
        services,
        veth,
    })
}

/// Bytes that a lab of `shape` may come to fill, with one copy of the secondary's images.
#[must_use]
pub fn bytes_needed(shape: &Shape) -> u64 {
    let volumes = u64::from(shape.volumes) * (shape.volume_mib << 20);
    let primary = if shape.base() == Base::Malloc { 0 } else { volumes };
    let journals = u64::from(shape.secondary) * (shape.journal_mib << 20);
    let others = match shape.base() {
        Base::Malloc => 0,
        Base::File | Base::Array => u64::from(shape.unreplicated) * (shape.volume_mib << 20),
    };
    primary + 2 * volumes + others + journals + (64 << 20)
}

struct Builder<'a> {
    shape: &'a Shape,
    directory: &'a Path,
    machine: &'a Machine,
    copies: u8,
}

/// What all movers know of one.
struct Who {
    name: String,
    id: u16,
    role: Role,
    /// It is there from the start.
    founder: bool,
}

impl Who {
    fn site(&self) -> String {
        site_name(self.role).to_owned()
    }
}

impl Builder<'_> {
    fn identities(&self) -> Vec<Who> {
        let primary = (1..=self.shape.primaries()).map(|n| Who {
            name: format!("p{n}"),
            id: n,
            role: Role::Primary,
            founder: n <= self.shape.primary,
        });
        let secondary = (1..=self.shape.secondary).map(|n| Who {
            name: format!("s{n}"),
            id: 100 + n,
            role: Role::Secondary,
            founder: true,
        });
        primary.chain(secondary).collect()
    }

    fn image(&self, site: &str, volume: &str) -> PathBuf {
        self.directory.join("img").join(format!("{site}-{volume}.img"))
    }

    fn engine(&self) -> FileEngine {
        match self.shape.engine {
            Engine::Aio => FileEngine::Aio,
            Engine::Uring => FileEngine::Uring,
        }
    }

    fn file(&self, path: PathBuf) -> Disk {
        Disk::File { path, engine: self.engine(), shared: false }
    }

    fn hub(&self) -> String {
        format!("sl{}-hub", self.machine.tag)
    }

    fn namespace(&self, at: usize) -> Option<String> {
        let name = &self.identities()[at].name;
        (self.shape.network() == Network::Veth).then(|| format!("sl{}-{name}", self.machine.tag))
    }

    fn veth(&self, movers: usize) -> VethPlan {
        let legs = (0..movers).map(|at| VethLeg {
            namespace: self.namespace(at).unwrap_or_default(),
            interfaces: (0..self.shape.pollers).map(|poller| format!("net{poller}")).collect(),
            host_ip: host_ip(at),
        });
        let shared = self.shape.traffic == Traffic::Shared;
        VethPlan { hub: self.hub(), legs: legs.collect(), shared }
    }

    fn mover(&self, all: &[Who], at: usize) -> Mover {
        let me = &all[at];
        let run_dir = self.directory.join(&me.name);
        let (ports, peers) = match self.shape.network() {
            Network::Memif => self.memif(all, at),
            Network::Veth => self.bridged(all, at),
        };
        let cores = &self.machine.cores;
        let first = at * usize::from(self.shape.pollers);
        let core = |poller: u8| cores[(first + usize::from(poller)) % cores.len()];
        let silence_ms = (self.shape.silence.as_millis() as u32).clamp(2, 600_000);
        Mover {
            mover: Identity {
                name: me.name.clone(),
                id: me.id,
                site: me.site(),
                role: me.role,
                founder: me.founder,
                cores: (0..self.shape.pollers).map(core).collect(),
                control_core: None,
                arena_mib: self.shape.arena_mib,
                arena_mirror_percent: 50,
                idle: match self.shape.idle {
                    IdlePolicy::Spin => Idle::Spin,
                    IdlePolicy::Yield => Idle::Yield,
                    IdlePolicy::Sleep => Idle::Sleep,
                },
                idle_rounds: 200,
                sleep_us: 50,
                drain_ms_max: 20_000,
                clock_error_us: None,
                store: run_dir.join("store.redb"),
                hugepage_mib: hugepage_mib_needed(
                    usize::from(self.shape.pollers),
                    self.shape.arena_mib,
                ),
                log: match self.shape.log.as_str() {
                    "error" => LogLevel::Error,
                    "warn" => LogLevel::Warn,
                    "debug" => LogLevel::Debug,
                    "trace" => LogLevel::Trace,
                    _ => LogLevel::Info,
                },
                log_format: LogFormat::Text,
                run_dir: run_dir.clone(),
            },
            api: Api { socket: run_dir.join("api.sock"), listen: None },
            cluster: self.cluster(me.role),
            link: Link {
                udp_port: 4821,
                // Movers that share cores are late by scheduler slices, not by loss.
                rto_us_min: 10_000,
                rto_ms_max: 1_000,
                window_packets: 1024,
                ack_delay_us: 50,
                heartbeat_ms: (silence_ms / 8).clamp(1, 200),
                silence_ms_max: silence_ms,
            },
            journal: (me.role == Role::Secondary).then(|| Journal {
                disk: self.file(self.directory.join("img").join(format!("{}.journal", me.name))),
                size_mib: self.shape.journal_mib,
            }),
            ports,
            peers,
            listeners: match me.role {
                Role::Primary => vec![self.listener(at, &run_dir)],
                Role::Secondary => Vec::new(),
            },
            groups: vec![self.group(all)],
        }
    }

    fn listener(&self, at: usize, run_dir: &Path) -> Listener {
        match (self.shape.transport(), self.shape.network()) {
            (Transport::VfioUser, _) => Listener::VfioUser { directory: run_dir.to_owned() },
            (Transport::Tcp, Network::Veth) => {
                Listener::Tcp { address: IpAddr::V4(host_ip(at)), port: NVME_TCP_PORT }
            }
            (Transport::Tcp, Network::Memif) => Listener::Tcp {
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: self.machine.tcp_ports[at],
            },
        }
    }

    fn group(&self, all: &[Who]) -> Group {
        let names = |role: Role| {
            let there = all.iter().filter(|who| who.role == role && who.founder);
            there.map(|who| &who.name).collect::<Vec<_>>()
        };
        let (primaries, secondaries) = (names(Role::Primary), names(Role::Secondary));
        let volumes = (0..usize::from(self.shape.volumes)).map(|index| {
            let name = format!("v{}", index + 1);
            let uuid = Uuid::derive(NQN, &name);
            // First over movers, then over their pollers.
            let place = |movers: &[&String]| {
                let poller = index / movers.len() % usize::from(self.shape.pollers);
                (movers[index % movers.len()].clone(), poller as u8)
            };
            let (mover, poller) = place(&primaries);
            let (target_mover, target_poller) = place(&secondaries);
            Volume {
                id: index as u32 + 1,
                nsid: index as u32 + 1,
                block_bytes: self.shape.block_bytes,
                size_mib: self.shape.volume_mib,
                nguid: Nguid::from(uuid),
                mover,
                poller,
                base: match self.shape.base() {
                    Base::File => self.file(self.image("primary", &name)),
                    Base::Malloc => Disk::Malloc,
                    Base::Array => self.remote(Role::Primary, index),
                },
                target: Target {
                    mover: target_mover,
                    poller: target_poller,
                    base: match self.shape.base() {
                        Base::File | Base::Malloc => self.file(self.image("secondary", &name)),
                        Base::Array => self.remote(Role::Secondary, index),
                    },
                },
                uuid,
                name,
            }
        });
        Group {
            name: GROUP.to_owned(),
            id: 1,
            nqn: NQN.to_owned(),
            serial: "SETLINELAB".to_owned(),
            period_ms: period_ms(self.shape.period),
            copies: self.copies,
            copies_secondary: self.copies.min(self.shape.secondary as u8),
            numbering: Numbering::Volume,
            timestamps: self.shape.timestamps,
            mirror: self.shape.mirror,
            mirror_policy: MirrorPolicy::Load,
            partners: BTreeMap::new(),
            volumes: volumes.collect(),
            unreplicated: (0..self.shape.unreplicated)
                .map(|index| self.unreplicated(usize::from(index), &primaries))
                .collect(),
        }
    }

    /// A volume that all primary movers offer where all reach it, and the next of them otherwise.
    fn unreplicated(&self, index: usize, primaries: &[&String]) -> Unreplicated {
        let name = format!("u{}", index + 1);
        let uuid = Uuid::derive(NQN, &name);
        let shape = self.shape;
        let place = usize::from(shape.volumes) + index;
        let only = || Some(primaries[index % primaries.len()].clone());
        let (base, mover) = match shape.base() {
            Base::File => (self.file(self.image("unreplicated", &name)), only()),
            Base::Malloc => (Disk::Malloc, only()),
            Base::Array => (self.remote(Role::Primary, place), None),
        };
        Unreplicated {
            nsid: place as u32 + 1,
            nguid: Nguid::from(uuid),
            block_bytes: mover.is_some().then_some(shape.block_bytes),
            size_mib: (base == Disk::Malloc).then_some(shape.volume_mib),
            mover,
            base,
            uuid,
            name,
        }
    }
}

fn site_name(site: Role) -> &'static str {
    match site {
        Role::Primary => "here",
        Role::Secondary => "there",
    }
}

/// Address of mover `at` towards hosts, in a lab of namespaces.
fn host_ip(at: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, at as u8 + 1)
}

fn period_ms(period: Duration) -> u64 {
    period.as_millis() as u64
}

#[cfg(test)]
mod tests;
