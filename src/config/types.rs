//! The configuration's types: plain, complete values. Field names are the file's keys.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::address::Mac;
use super::identity::{Nguid, Uuid};
use super::mirror::Mirror;
use super::timestamps::Timestamps;
use super::unreplicated::Unreplicated;

pub use super::port::{MemifRole, Port, PortKind};

/// Everything one mover is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mover {
    /// The mover itself.
    pub mover: Identity,
    /// Where it answers operators.
    pub api: Api,
    /// `[cluster]`.
    pub cluster: Cluster,
    /// How its links to other movers behave.
    pub link: Link,
    /// Where received sets are kept before they are applied; there at the secondary site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// Its network ports.
    #[serde(rename = "port")]
    pub ports: Vec<Port>,
    /// All other movers of both sites.
    #[serde(rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Where hosts reach it.
    #[serde(rename = "listener", skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
    /// All groups; the same in every mover's file.
    #[serde(rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// `[mover]`: who it is and what of the machine it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Name, unique over both sites.
    pub name: String,
    /// Number, unique over both sites, 1 or more.
    pub id: u16,
    /// Name of its site.
    pub site: String,
    /// What its site does.
    pub role: Role,
    /// Whether the site, when it begins, waits for this mover. One that is no founder joins later.
    #[serde(skip_serializing_if = "is_true")]
    pub founder: bool,
    /// One pinned poller per core; the position is the poller's index.
    pub cores: Vec<u16>,
    /// Core of the control thread; not pinned when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_core: Option<u16>,
    /// Update arena of each poller, MiB of hugepage memory.
    pub arena_mib: u32,
    /// Share of each arena that other movers' mirrors may take, percent.
    pub arena_mirror_percent: u8,
    /// What a poller does when it finds no work.
    pub idle: Idle,
    /// Empty loop turns before the poller yields or sleeps.
    pub idle_rounds: u32,
    /// Length of one sleep, microseconds.
    pub sleep_us: u32,
    /// Longest time that a stop waits until what is here is safe elsewhere, milliseconds.
    pub drain_ms_max: u32,
    /// Bound of the system clock's error, microseconds, instead of what the kernel says (G8).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_error_us: Option<u32>,
    /// Directory for the run time's sockets and pid file.
    pub run_dir: PathBuf,
    /// The embedded store's file.
    pub store: PathBuf,
    /// Hugepage memory the process takes at start, MiB.
    pub hugepage_mib: u32,
    /// Least severe level that is logged.
    pub log: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// What a site does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Takes hosts' updates.
    Primary,
    /// Receives and applies sets.
    Secondary,
}

/// What a poller does when it finds no work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// Looks again at once: for cores of its own.
    Spin,
    /// Gives the core away after `idle_rounds` empty turns: for shared cores.
    Yield,
    /// Sleeps `sleep_us` after `idle_rounds` empty turns: for laptops and labs.
    Sleep,
}

/// Least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// Faults that need somebody.
    Error,
    /// Things that promise less than they should.
    Warn,
    /// State transitions.
    Info,
    /// Control messages.
    Debug,
    /// Everything that is not on the data path.
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[api]`: where the mover answers operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Api {
    /// Unix socket.
    pub socket: PathBuf,
    /// TCP address, `ADDRESS:PORT`; none when absent. There is no access control on it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// `[link]`: how links between movers behave. The same at all movers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Poller `i` listens at UDP port `udp_port + i`.
    pub udp_port: u16,
    /// Shortest time to a retransmission, microseconds.
    pub rto_us_min: u32,
    /// Longest time to a retransmission, milliseconds.
    pub rto_ms_max: u32,
    /// Packets in flight per channel of a link.
    pub window_packets: u16,
    /// Longest time an acknowledgement waits for company, microseconds.
    pub ack_delay_us: u32,
    /// Time between signs of life on an idle link, milliseconds.
    pub heartbeat_ms: u32,
    /// Silence after which a peer counts as gone, milliseconds.
    pub silence_ms_max: u32,
}

/// `[cluster]`: where the movers of a site agree who is a member and who is responsible. The same
/// at all movers of a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// What kind of store it is.
    pub store: ClusterStoreKind,
    /// Where etcd's servers answer clients, `http://HOST:PORT`; none without etcd.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// How long a mover that is not heard by etcd counts as alive, milliseconds; whole seconds.
    pub lease_ms: u32,
    /// How long one request to etcd may take, milliseconds.
    pub request_ms_max: u32,
    /// Name of the primary mover that is responsible for nothing as long as the others are there, and takes
    /// over all that one of them had when it fails (F5); they share it where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spare: Option<String>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            store: ClusterStoreKind::Embedded,
            endpoints: Vec::new(),
            lease_ms: 3_000,
            request_ms_max: 800,
            spare: None,
        }
    }
}

/// What keeps a site's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterStoreKind {
    /// A file of the mover's own: a site of one mover, or one whose membership never changes.
    Embedded,
    /// etcd.
    Etcd,
}

/// `[journal]`: where the secondary keeps sets before it applies them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Journal {
    /// The device or file. Never [`Disk::None`].
    #[serde(flatten)]
    pub disk: Disk,
    /// Its size, MiB.
    pub size_mib: u64,
}

/// `[[peer]]`: another mover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: String,
    /// Its site.
    pub site: String,
    /// What its site does.
    pub role: Role,
    /// Number of its pollers.
    pub pollers: u8,
    /// Whether its site, when it begins, waits for it.
    #[serde(skip_serializing_if = "is_true")]
    pub founder: bool,
    /// How its pollers are reached.
    #[serde(rename = "path")]
    pub paths: Vec<PeerPath>,
}

/// How pollers here reach pollers of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerPath {
    /// The poller here; any when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poller: Option<u8>,
    /// The poller there; any when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_poller: Option<u8>,
    /// Name of the port here that leads there.
    pub port: String,
    /// Address there.
    pub ip: Ipv4Addr,
    /// MAC address there; asked for by ARP when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// `[[listener]]`: where hosts reach the mover's volumes as NVMe-oF namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Listener {
    /// Hosts on this machine.
    VfioUser {
        /// One directory per group is made below it; see [`Group::vfio_user_directory`].
        directory: PathBuf,
    },
    /// NVMe/TCP.
    Tcp {
        /// Address to listen at.
        address: IpAddr,
        /// Port to listen at.
        port: u16,
    },
}

/// `[[group]]`: volumes that are cut together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Name, unique.
    pub name: String,
    /// Number, unique, 1 or more.
    pub id: u16,
    /// NQN of the subsystem that hosts see.
    pub nqn: String,
    /// Its serial number; derived from the NQN when the file has none.
    pub serial: String,
    /// Formation period, milliseconds (F2).
    pub period_ms: u64,
    /// Movers of the primary site that hold an update before it is acknowledged (G6).
    pub copies: u8,
    /// Movers of the secondary site that hold an update before it counts as received (T2).
    pub copies_secondary: u8,
    /// Scope of sequence numbers (G7).
    pub numbering: Numbering,
    /// Where the time stamps of its updates come from (G8).
    pub timestamps: Timestamps,
    /// What the other copies hold of an update (G12).
    pub mirror: Mirror,
    /// How the mirror target is chosen (G6).
    pub mirror_policy: MirrorPolicy,
    /// With [`MirrorPolicy::Partner`]: each mover's fixed partner, by name; complete.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub partners: BTreeMap<String, String>,
    /// Its volume pairs.
    #[serde(rename = "volume")]
    pub volumes: Vec<Volume>,
    /// Volumes that hosts see beside them and that are not replicated (G11).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreplicated: Vec<Unreplicated>,
}

/// Scope of sequence numbers (G7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numbering {
    /// Per volume.
    Volume,
    /// Beside that, one list over all volumes of a mover.
    Mover,
}

/// How the mirror target is chosen (G6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorPolicy {
    /// Any mover, the least loaded first.
    Load,
    /// A fixed partner.
    Partner,
}

/// `[[group.volume]]`: a volume pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Name, unique within the group.
    pub name: String,
    /// Number, unique over all groups, 1 or more.
    pub id: u32,
    /// NVMe namespace id within the group's subsystem.
    pub nsid: u32,
    /// Block size, bytes: 512 or 4096.
    pub block_bytes: u32,
    /// Size, MiB.
    pub size_mib: u64,
    /// Namespace UUID; derived from names when the file has none.
    pub uuid: Uuid,
    /// Namespace NGUID; the UUID's bytes when the file has none.
    pub nguid: Nguid,
    /// Name of the responsible mover of the primary site; spread evenly when the file has none.
    pub mover: String,
    /// Its poller; spread evenly when the file has none.
    pub poller: u8,
    /// Where the primary's data lies.
    pub base: Disk,
    /// Where the copy goes.
    pub target: Target,
}

/// `target` of a volume: its copy at the secondary site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Name of the mover of the secondary site; spread evenly when the file has none.
    pub mover: String,
    /// Its poller; spread evenly when the file has none.
    pub poller: u8,
    /// Where the copy lies.
    pub base: Disk,
}

/// Where blocks lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Disk {
    /// A local NVMe namespace through SPDK's own driver.
    NvmePci {
        /// `DDDD:BB:DD.F`.
        address: String,
        /// Namespace id there.
        nsid: u32,
        /// Other movers reach it, too.
        shared: bool,
    },
    /// A remote namespace over NVMe/TCP.
    NvmeTcp {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
        /// NQN of the remote subsystem.
        nqn: String,
        /// Namespace id there.
        nsid: u32,
    },
    /// A namespace that another process of this machine offers.
    VfioUser {
        /// Directory with the socket `cntrl`.
        directory: PathBuf,
        /// NQN of the subsystem there.
        nqn: String,
        /// Namespace id there.
        nsid: u32,
        /// Other movers reach it, too.
        shared: bool,
    },
    /// A file, opened with O_DIRECT; it must exist and have the size.
    File {
        /// The file.
        path: PathBuf,
        /// How it is read and written.
        engine: FileEngine,
        /// Other movers reach it, too.
        shared: bool,
    },
    /// Memory, lost with the process.
    Malloc,
    /// Nothing: a write-only leg; its reads are refused.
    None,
}

/// How a file is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileEngine {
    /// Linux asynchronous I/O.
    Aio,
    /// io_uring.
    Uring,
}

/// A mover as its peers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its number.
    pub id: u16,
    /// Its name.
    pub name: &'a str,
    /// Its site.
    pub site: &'a str,
    /// What its site does.
    pub role: Role,
    /// Number of its pollers.
    pub pollers: u8,
    /// Whether its site, when it begins, waits for it.
    pub founder: bool,
}

/// For serde, which asks by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

impl Mover {
    /// All movers of both sites, this one among them, by ascending number.
    #[must_use]
    pub fn members(&self) -> Vec<Member<'_>> {
        let me = &self.mover;
        let mut members = vec![Member {
            id: me.id,
            name: &me.name,
            site: &me.site,
            role: me.role,
            pollers: u8::try_from(me.cores.len()).unwrap_or(u8::MAX),
            founder: me.founder,
        }];
        members.extend(self.peers.iter().map(|peer| Member {
            id: peer.id,
            name: &peer.name,
            site: &peer.site,
            role: peer.role,
            pollers: peer.pollers,
            founder: peer.founder,
        }));
        members.sort_by_key(|member| member.id);
        members
    }

    /// The movers of one site, by ascending number.
    #[must_use]
    pub fn members_of(&self, role: Role) -> Vec<Member<'_>> {
        let mut members = self.members();
        members.retain(|member| member.role == role);
        members
    }

    /// Those of them that the site waits for when it begins.
    #[must_use]
    pub fn founders_of(&self, role: Role) -> Vec<Member<'_>> {
        let mut founders = self.members_of(role);
        founders.retain(|member| member.founder);
        founders
    }

    /// The mover called `name`.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Member<'_>> {
        self.members().into_iter().find(|member| member.name == name)
    }

    /// The port called `name`.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// The volumes that are not replicated and that this mover offers to hosts, with their groups.
    pub fn unreplicated_here(&self) -> impl Iterator<Item = (&Group, &Unreplicated)> {
        let groups = self.groups.iter().filter(|_| self.mover.role == Role::Primary);
        let all = groups.flat_map(|group| group.unreplicated.iter().map(move |v| (group, v)));
        all.filter(|(_, volume)| volume.is_offered_by(&self.mover.name))
    }

    /// Prefix of the process's files in hugetlbfs and of DPDK's run-time directory (EAL's
    /// `--file-prefix`): the mover's name, and a hash of its `run_dir`, so that movers of the same
    /// name in different places do not meet.
    #[must_use]
    pub fn file_prefix(&self) -> String {
        let run_dir = self.mover.run_dir.to_string_lossy();
        format!("setline-{}-{:08x}", self.mover.name, super::identity::short_hash(&run_dir))
    }

    /// Whether anything here sits on the PCI bus; without, EAL need not look at it.
    #[must_use]
    pub fn uses_pci(&self) -> bool {
        let disk = |disk: &Disk| matches!(disk, Disk::NvmePci { .. });
        self.ports.iter().any(|port| matches!(port.kind, PortKind::Pci { .. }))
            || self.journal.as_ref().is_some_and(|journal| disk(&journal.disk))
            || self.groups.iter().flat_map(|group| &group.volumes).any(|volume| {
                (volume.mover == self.mover.name && disk(&volume.base))
                    || (volume.target.mover == self.mover.name && disk(&volume.target.base))
            })
            || self.unreplicated_here().any(|(_, volume)| disk(&volume.base))
    }
}

impl Peer {
    /// How poller `poller` here reaches poller `peer_poller` there: the first path that fits.
    #[must_use]
    pub fn path(&self, poller: u8, peer_poller: u8) -> Option<&PeerPath> {
        self.paths.iter().find(|path| {
            path.poller.is_none_or(|p| p == poller)
                && path.peer_poller.is_none_or(|p| p == peer_poller)
        })
    }
}

impl Group {
    /// The directory of this group's vfio-user endpoint below a listener's `directory`; the socket
    /// in it is called `cntrl`.
    #[must_use]
    pub fn vfio_user_directory(&self, directory: &Path) -> PathBuf {
        directory.join(&self.name)
    }
}

impl Volume {
    /// Size in blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        (self.size_mib << 20) / u64::from(self.block_bytes.max(1))
    }
}

impl Disk {
    /// Whether several movers of the site can reach it: an NVMe/TCP namespace always, memory never,
    /// of the others the configuration says so (`shared`). Only such a base can change its mover.
    #[must_use]
    pub fn shared(&self) -> bool {
        match self {
            Self::NvmeTcp { .. } => true,
            Self::NvmePci { shared, .. }
            | Self::VfioUser { shared, .. }
            | Self::File { shared, .. } => *shared,
            Self::Malloc | Self::None => false,
        }
    }

    /// The namespace id, of an NVMe namespace.
    #[must_use]
    pub fn nsid(&self) -> Option<u32> {
        match self {
            Self::NvmePci { nsid, .. }
            | Self::NvmeTcp { nsid, .. }
            | Self::VfioUser { nsid, .. } => Some(*nsid),
            Self::File { .. } | Self::Malloc | Self::None => None,
        }
    }

    /// Whether what is written is lost when the process ends.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        matches!(self, Self::Malloc)
    }
}
