//! The command line of `setline lab`.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::faults::{FaultError, KillOf, KillSpec, StopSpec};
use crate::cli::parse_duration;
use crate::config::{Mirror, Timestamps};

/// `setline lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Starts both sites on this machine, writes, watches, checks, and cleans up.
    Run(Box<RunOptions>),
    /// Starts both sites on this machine and leaves them running.
    Up(Box<UpOptions>),
    /// Stops a lab that was left running, and removes it.
    Down(DownOptions),
}

/// What a lab consists of.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize)]
pub struct Shape {
    /// Movers of the primary site.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub primary: u16,
    /// Further movers of the primary site, which join while the lab runs.
    #[arg(skip)]
    pub joining: u16,
    /// Movers of the secondary site.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub secondary: u16,
    /// Volume pairs.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub volumes: u16,
    /// Further volumes, which are not replicated.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    pub unreplicated: u16,
    /// Size of each volume, MiB.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub volume_mib: u64,
    /// Block size, bytes: 512 or 4096.
    #[arg(long, default_value_t = 4096, value_parser = block_bytes)]
    pub block_bytes: u32,
    /// Formation period.
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    #[serde(serialize_with = "as_ms", rename = "period_ms")]
    pub period: Duration,
    /// Primary movers that hold an update before it is acknowledged; 2, or 1 with one mover, when
    /// left out.
    #[arg(long)]
    pub copies: Option<u8>,
    /// What mirror copies hold; metadata means --base array and --store etcd.
    #[arg(long, value_enum, default_value_t = Mirror::Data)]
    pub mirror: Mirror,
    /// Where the time stamps of updates come from: none, clock or common.
    #[arg(long, value_name = "SOURCE", default_value = "none")]
    pub timestamps: Timestamps,
    /// What joins the movers; memif when left out, veth where a mover is cut off.
    #[arg(long, value_enum)]
    pub network: Option<Network>,
    /// How DPDK reaches the interfaces of `--network veth`.
    #[arg(long, value_enum, default_value_t = VethDriver::AfXdp)]
    pub veth_driver: VethDriver,
    /// Whether hosts and movers have interfaces of their own; shared means --network veth --transport tcp.
    #[arg(long, value_enum, default_value_t = Traffic::Separate)]
    pub traffic: Traffic,
    /// Where volumes lie; file when left out, array where primary movers fail, join or leave.
    #[arg(long, value_enum)]
    pub base: Option<Base>,
    /// Where the movers of a site agree; embedded when left out, etcd where primary movers fail, join or
    /// leave.
    #[arg(long, value_enum)]
    pub store: Option<Store>,
    /// The primary mover that takes over everything which another had that fails, and has nothing before.
    #[arg(long, value_name = "NAME")]
    pub spare: Option<String>,
    /// How long a mover may be silent before the others count it as failed.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_ms", rename = "silence_ms")]
    pub silence: Duration,
    /// How files are read and written.
    #[arg(long, value_enum, default_value_t = Engine::Aio)]
    pub engine: Engine,
    /// How hosts reach the movers; vfio-user when left out, tcp where a mover is paused or cut off.
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,
    /// What idle pollers do.
    #[arg(long, value_enum, default_value_t = IdlePolicy::Sleep)]
    pub idle: IdlePolicy,
    /// Pollers of each mover.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub pollers: u8,
    /// Update arena of each poller, MiB of hugepage memory.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(16..=65536))]
    pub arena_mib: u32,
    /// Journal of each secondary mover, MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    pub journal_mib: u64,
    /// Directory of the lab; a fresh one where there is room when left out.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Log level of the movers.
    #[arg(long, default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"])]
    #[serde(skip)]
    pub log: String,
}

impl Shape {
    /// Movers of the primary site, those that join later among them.
    #[must_use]
    pub const fn primaries(&self) -> u16 {
        self.primary + self.joining
    }

    /// Where volumes lie.
    #[must_use]
    pub fn base(&self) -> Base {
        self.base.unwrap_or(Base::File)
    }

    /// Where the movers of a site agree.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store.unwrap_or(Store::Embedded)
    }

    /// How hosts reach the movers.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport.unwrap_or(match self.traffic {
            Traffic::Separate => Transport::VfioUser,
            Traffic::Shared => Transport::Tcp,
        })
    }

    /// What joins the movers.
    #[must_use]
    pub fn network(&self) -> Network {
        self.network.unwrap_or(match self.traffic {
            Traffic::Separate => Network::Memif,
            Traffic::Shared => Network::Veth,
        })
    }

    /// Whether a mover can be cut off others while hosts still reach it.
    #[must_use]
    pub fn can_cut(&self) -> bool {
        self.network() == Network::Veth && self.traffic == Traffic::Separate
    }
}

/// `setline lab run`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct RunOptions {
    /// What the lab consists of.
    #[command(flatten)]
    #[serde(flatten)]
    pub shape: Shape,
    /// How long to write.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Logical writers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub writers: u16,
    /// Commands in flight per writer.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub queue_depth: u16,
    /// Writes per second over all writers; 0 for as many as possible.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Which of the movers' paths to a volume the client's commands take.
    #[arg(long, value_enum, default_value_t = Paths::Best)]
    pub paths: Paths,
    /// Kills a mover (-9) and starts it again: NAME@TIME or all-secondary@TIME.
    #[arg(long, value_name = "MOVER@TIME")]
    #[serde(serialize_with = "as_text")]
    pub kill: Vec<KillSpec>,
    /// Kills movers at so many random moments.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub kill_random: u16,
    /// Whom random kills hit.
    #[arg(long, value_enum, default_value_t = KillOf::Secondary)]
    pub kill_of: KillOf,
    /// Stops a primary mover (SIGSTOP) for a while: NAME@TIME:LENGTH. With --store etcd --base array
    /// --transport tcp.
    #[arg(long, value_name = "MOVER@TIME:LENGTH")]
    #[serde(serialize_with = "as_text")]
    pub pause: Vec<StopSpec>,
    /// Stops the etcd of a site (SIGSTOP) for a while: primary@TIME:LENGTH or secondary@TIME:LENGTH.
    #[arg(long, value_name = "SITE@TIME:LENGTH")]
    #[serde(serialize_with = "as_text")]
    pub stop_store: Vec<StopSpec>,
    /// Drains a primary mover, which leaves then, and starts it again after --down: NAME@TIME. With
    /// --store etcd --base array.
    #[arg(long, value_name = "MOVER@TIME")]
    #[serde(serialize_with = "as_text")]
    pub drain: Vec<KillSpec>,
    /// Starts a further primary mover, which joins the site: NAME@TIME, where the names go on after those
    /// of --primary.
    #[arg(long, value_name = "MOVER@TIME")]
    #[serde(serialize_with = "as_text")]
    pub join: Vec<KillSpec>,
    /// Cuts a primary mover off the others, both ways, for a while: NAME@TIME:LENGTH. Hosts, the store and
    /// the bases still reach it. With --network veth.
    #[arg(long, value_name = "MOVER@TIME:LENGTH")]
    #[serde(serialize_with = "as_text")]
    pub partition: Vec<StopSpec>,
    /// Cuts one way only: what a primary mover sends to other movers is lost.
    #[arg(long, value_name = "MOVER@TIME:LENGTH")]
    #[serde(serialize_with = "as_text")]
    pub mute: Vec<StopSpec>,
    /// Cuts one way only: what others send to a primary mover is lost.
    #[arg(long, value_name = "MOVER@TIME:LENGTH")]
    #[serde(serialize_with = "as_text")]
    pub deafen: Vec<StopSpec>,
    /// Does so many random things in a row, each a moment after the lab has got over the one before:
    /// movers killed, drained, paused, cut off, volumes moved, stores stopped, as far as the lab's shape
    /// lets hosts go on.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub events: u16,
    /// Moves volumes to other primary movers at so many random moments. With --store etcd --base array.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub move_random: u16,
    /// Drains primary movers at so many random moments.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub drain_random: u16,
    /// How long a killed or drained mover stays down.
    #[arg(long, default_value = "500ms", value_parser = parse_duration)]
    #[serde(serialize_with = "as_ms", rename = "down_ms")]
    pub down: Duration,
    /// Seed of what is random; drawn and reported when left out.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Pauses apply at a boundary and checks the secondary's images so often; 0s for never.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_ms", rename = "check_every_ms")]
    pub check_every: Duration,
    /// Keeps the directory even when all is well.
    #[arg(long)]
    #[serde(skip)]
    pub keep: bool,
    /// Writes a plot of the recovery point over time, as SVG.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub plot: Option<PathBuf>,
}

impl RunOptions {
    /// The options with everything filled in that was left out: where hosts are to notice nothing of what
    /// happens to primary movers, these need a store to agree in, and bases that all of them reach.
    ///
    /// # Errors
    /// Names of movers that are to join and do not go on after those that are there; a second client
    /// where there is a path for one.
    pub fn settle(mut self) -> Result<Self, FaultError> {
        let cut = [&self.partition, &self.mute, &self.deafen].iter().any(|specs| !specs.is_empty());
        let random = self.kill_random > 0 && self.kill_of != KillOf::Secondary;
        let named = self.kill.iter().any(|spec| spec.who.starts_with('p'));
        let listed = [&self.drain, &self.join].iter().any(|specs| !specs.is_empty());
        let stopped = cut || !self.pause.is_empty() || self.events > 0;
        let moved = self.move_random > 0 || self.drain_random > 0;
        let shape = &mut self.shape;
        let described = shape.mirror == Mirror::Metadata;
        let fail =
            stopped || random || named || listed || moved || shape.spare.is_some() || described;
        shape.joining = self.join.len() as u16;
        shape.base.get_or_insert(if fail { Base::Array } else { Base::File });
        shape.store.get_or_insert(if fail { Store::Etcd } else { Store::Embedded });
        let tcp = stopped || shape.unreplicated > 0;
        let transport = if tcp { Transport::Tcp } else { shape.transport() };
        shape.transport.get_or_insert(transport);
        let network = if cut { Network::Veth } else { shape.network() };
        shape.network.get_or_insert(network);
        if shape.unreplicated > 0 && shape.transport() != Transport::Tcp {
            let spec = format!("--unreplicated {}", shape.unreplicated);
            return Err(FaultError::OneClient { spec });
        }
        let next: Vec<String> =
            (1..=shape.joining).map(|n| format!("p{}", shape.primary + n)).collect();
        let mut asked: Vec<&str> = self.join.iter().map(|spec| spec.who.as_str()).collect();
        asked.sort_unstable();
        asked.dedup();
        let odd = self.join.iter().find(|spec| !next.contains(&spec.who)).or(match asked.len() {
            n if n < self.join.len() => self.join.last(),
            _ => None,
        });
        match odd {
            None => Ok(self),
            Some(spec) => Err(FaultError::Unknown {
                spec: format!("--join {spec}"),
                who: spec.who.clone(),
                allowed: format!("each of {} once", next.join(", ")),
            }),
        }
    }
}

/// `setline lab up`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct UpOptions {
    /// What the lab consists of.
    #[command(flatten)]
    pub shape: Shape,
}

/// `setline lab down`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DownOptions {
    /// Directory of the lab.
    #[arg(long)]
    pub dir: PathBuf,
    /// Keeps the directory.
    #[arg(long)]
    pub keep: bool,
}

/// What joins the movers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Shared memory, one interface for each pair of movers.
    Memif,
    /// A network namespace for each mover, joined by veth pairs and a bridge.
    Veth,
}

/// How DPDK reaches a Linux interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VethDriver {
    /// AF_XDP sockets.
    AfXdp,
    /// Packet sockets.
    AfPacket,
}

/// Whether hosts and movers have interfaces of their own (G9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// One for movers' traffic, one for hosts'.
    Separate,
    /// One for both: the kernel and the mover share it.
    Shared,
}

/// Where volumes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// Files in the lab's directory.
    File,
    /// The primary's in memory of the movers, the secondary's in files.
    Malloc,
    /// At a storage server that all movers reach over NVMe/TCP, with reservations; files there.
    Array,
}

/// Where the movers of a site agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// A file of each mover's: the membership never changes.
    Embedded,
    /// An etcd for each site.
    Etcd,
}

/// How files are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Linux asynchronous I/O.
    Aio,
    /// io_uring.
    Uring,
}

/// How hosts reach the movers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// vfio-user: shared memory with the NVMe driver of another process.
    VfioUser,
    /// NVMe/TCP.
    Tcp,
}

/// Which of the movers' paths to a volume a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paths {
    /// That of the responsible mover, which calls itself the best (ANA), like a multipath host's.
    Best,
    /// All in turn, so that every mover takes commands for every volume.
    Any,
    /// Never that of the responsible mover where there is another.
    Detour,
}

/// What idle pollers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdlePolicy {
    /// Look again at once.
    Spin,
    /// Give the core away.
    Yield,
    /// Sleep for a moment.
    Sleep,
}

fn block_bytes(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 and 4096 are allowed".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let bare: Option<f64> = text.parse().ok();
    let seconds = match bare {
        Some(seconds) => seconds,
        None => parse_duration(text)?.as_secs_f64(),
    };
    match seconds {
        s if (0.1..=30.0 * 86_400.0).contains(&s) => Ok(s),
        _ => Err("0.1 s to 30 days are allowed".to_owned()),
    }
}

fn as_ms<S: serde::Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(span.as_millis() as u64)
}

fn as_text<T: Display, S: serde::Serializer>(
    specs: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(specs.iter().map(T::to_string))
}
