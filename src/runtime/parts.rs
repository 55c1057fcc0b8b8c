//! What a poller is made of, put together by `launch` and handed to its thread.

use super::clock::Clock;
use super::idle::IdlePolicy;
use super::messages::{FromPoller, ToPoller};
use super::siblings::SiblingEnds;
use super::stamps::{LineSetter, Sources};
use crate::config::Timestamps;
use crate::dpdk::Queue;
use crate::mem::arena::LogLimits;
use crate::proto::boundary::BoundaryConfig;
use crate::proto::link::{LinkConfig, PeerEpoch};
use crate::proto::membership::SiteRecord;
use crate::proto::primary::PrimaryConfig;
use crate::proto::secondary::{CoordinatorConfig, ShardConfig};
use crate::proto::timer::TimerConfig;
use crate::proto::types::{Epoch, MoverId, ShardId, VolumeId};
use crate::spdk::env::IoBuf;
use crate::spdk::nvmf::GroupFactory;
use crate::wire::packet::Incarnation;
use crossbeam::channel::{Receiver, Sender};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Everything one poller needs. Made on the control thread, consumed on the poller's.
pub struct PollerParts {
    /// Its shard.
    pub shard: ShardId,
    /// The membership epoch.
    pub epoch: Epoch,
    /// What is agreed in it, where the machines are to *enter* it from the one before, and the boundary
    /// engine's configuration; none where the membership is fixed.
    pub enters: Option<(SiteRecord, BoundaryConfig)>,
    /// The movers of the other site.
    pub other_site: Vec<MoverId>,
    /// The core to pin to; none leaves that to the operating system (tests).
    pub core: Option<usize>,
    /// What it does when there is nothing to do.
    pub idle: IdlePolicy,
    /// The mover's clock.
    pub clock: Clock,
    /// Its state machines.
    pub machines: MachineConfigs,
    /// Its memory.
    pub arena: ArenaParts,
    /// Its volumes, in the order of the state machine's configuration.
    pub volumes: Vec<VolumeParts>,
    /// Taps of the mover, by the index that their commands carry: who serves them.
    pub taps: Vec<TapOwner>,
    /// Its DPDK queues, by index of the mover's port; none of ports that it has no queue of.
    pub queues: Vec<Option<Box<Queue>>>,
    /// Its links.
    pub links: Vec<LinkParts>,
    /// The linked shards with which it exchanges what hosts read at movers that are not responsible
    /// for the volume (G3); [`super::plan::REMOTE_POOL_BYTES`] are set aside in each direction
    /// when there are any.
    pub remote: Vec<ShardId>,
    /// This life of the mover; greater than any before.
    pub incarnation: Incarnation,
    /// The NVMe-oF target's factory of poll groups; none where there are no hosts.
    pub hosts: Option<GroupFactory>,
    /// The mover's one list of numbers, where a group numbers so (G7).
    pub list: Option<Arc<AtomicU64>>,
    /// The mover's sources of time (G8).
    pub times: Sources,
    /// The mover's part in the common timer, and what sets its line, where this poller has it.
    pub timer: Option<(TimerConfig, LineSetter)>,
    /// The rings to the mover's other pollers.
    pub siblings: SiblingEnds,
    /// The set journal, at a secondary mover.
    pub journal: Option<JournalParts>,
    /// Requests of the control thread.
    pub requests: Receiver<ToPoller>,
    /// Reports to the control thread.
    pub reports: Sender<FromPoller>,
    /// Most block device requests of this poller at once.
    pub ios_max: usize,
}

/// The state machines' configurations.
#[derive(Clone, Debug)]
pub enum MachineConfigs {
    /// At a primary mover.
    Primary {
        /// The shard.
        shard: PrimaryConfig,
        /// The boundary engine, where it runs.
        boundary: Option<BoundaryConfig>,
    },
    /// At a secondary mover.
    Secondary {
        /// The shard.
        shard: ShardConfig,
        /// The coordinator, where it runs.
        coordinator: Option<CoordinatorConfig>,
    },
}

/// A poller's memory for records.
#[derive(Clone, Copy, Debug)]
pub struct ArenaParts {
    /// Hugepage memory, aligned to a segment.
    pub memory: IoBuf,
    /// For what this shard is responsible for: host updates, or transferred records.
    pub own: LogLimits,
    /// For copies that others keep here.
    pub mirror: LogLimits,
}

/// A volume of the poller.
#[derive(Clone, Debug)]
pub struct VolumeParts {
    /// The volume.
    pub id: VolumeId,
    /// Its block size in bytes.
    pub block_bytes: u32,
    /// Where the time stamps of updates come from that are taken here (G8).
    pub timestamps: Timestamps,
    /// The shard of another mover that is responsible for it; none when this poller is.
    pub owner: Option<ShardId>,
    /// The block device under it: the base at a primary mover, the target at a secondary one.
    /// None for a write-only leg, and for a volume that cannot change its mover and is another one's.
    pub bdev: Option<String>,
}

/// Who serves a tap's commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TapOwner {
    /// This poller: index into [`PollerParts::volumes`].
    Here(u32),
    /// The sibling poller with this index; index into its volumes.
    Sibling {
        /// The sibling's poller index.
        poller: u8,
        /// Index into its volumes.
        volume: u32,
    },
}

/// A link to a shard of another mover.
#[derive(Clone, Debug)]
pub struct LinkParts {
    /// The other end.
    pub peer: ShardId,
    /// Settings.
    pub config: LinkConfig,
    /// Which epochs the peer may be in.
    pub peer_epoch: PeerEpoch,
    /// Index into [`PollerParts::queues`].
    pub port: usize,
    /// The peer's address on that port.
    pub address: Ipv4Addr,
}

/// The set journal's device.
#[derive(Clone, Debug)]
pub struct JournalParts {
    /// The block device.
    pub bdev: String,
    /// First block of this poller's part.
    pub first_block: u64,
    /// Blocks of this poller's part.
    pub blocks: u64,
    /// Identity written into the journal: a journal of another mover or poller is refused.
    pub identity: [u8; 16],
}
