//! NVMe namespaces as a target, through setline's initiator on SPDK.
//!
//! Several controllers may be paths to the same namespaces (a multipath subsystem
//! whose movers each offer every volume), or each offer some of them. A command takes
//! its slot's path, or the next that has its namespace; a path that fails, or says
//! that it is not the one to take, makes its slots move on to the next. A lost
//! connection is made again, at most once a second, by the thread that polls;
//! connecting blocks it for as long as the transport takes. A command that takes
//! longer than the timeout makes its path lost, too: over shared memory (vfio-user) a
//! dead target shows in no other way.
//!
//! Nothing is retried here: a command that was on a lost path ends as aborted, and
//! whether to send it again is the caller's decision.

use super::trid::{Transport, Trid};
use super::{Completion, Full, Geometry, NoMemory, Op, Request, Status, Target};
use crate::spdk::address::Address;
use crate::spdk::env::{DmaBuf, Env, EnvConfig, IoBuf};
use crate::spdk::error::{Error, NvmeStatus, Submit};
use crate::spdk::nvme::{Controller, Flags, Identity, Namespace, QueuePair};
use crate::spdk::nvmf::AnaState;
use crate::spdk::queue::LocalQueues;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest command, whatever a controller allows: bounds the buffers.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// How often the admin queues are served (keep-alive, events).
const ADMIN_INTERVAL: Duration = Duration::from_millis(50);
/// Pause between attempts to connect a lost path again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Alignment of the buffers: a memory page, so that a transfer needs the fewest entries.
const ALIGNMENT: usize = 4096;
/// Deepest queue pair asked for: what SPDK's own target allows by default.
const QUEUE_DEPTH_MAX: u32 = 127;
/// Shallowest one that is tried.
const QUEUE_DEPTH_MIN: u32 = 8;
/// Set in the context of the second half of a fused pair.
const SECOND: u64 = 1 << 32;

/// How to connect.
#[derive(Clone, Debug)]
pub struct NvmeTargetOptions {
    /// Controllers; several are paths to the same namespaces.
    pub paths: Vec<Trid>,
    /// Namespaces in this order; empty for all active ones.
    pub nsids: Vec<u32>,
    /// Host NQN; SPDK's own by default.
    pub hostnqn: Option<String>,
    /// Which path a command takes.
    pub policy: PathPolicy,
    /// A path is lost when a command takes longer than this.
    pub command_timeout: Duration,
    /// Core to pin the thread to; by default it stays where it may run now.
    pub core: Option<usize>,
}

/// Which of several paths a command takes; another one when that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathPolicy {
    /// The one that its target calls the best for the volume now (ANA), like a multipath host; slots
    /// are spread over equal ones.
    Best,
    /// Each slot has its own, whatever their targets say.
    Spread,
    /// The one before the best: that of a mover which is not responsible for the volume.
    Detour,
    /// The first.
    First,
}

/// Why namespaces cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum NvmeTargetError {
    /// SPDK's environment does not start.
    #[error("SPDK: {0} (are hugepages reserved? see scripts/setup)")]
    Environment(Error),
    /// A controller cannot be connected to.
    #[error("{path}: {error}")]
    Connect {
        /// The controller.
        path: String,
        /// What happened.
        error: Error,
    },
    /// No controller has a namespace.
    #[error("namespace {nsid} is on no path: {paths}")]
    NoNamespace {
        /// The controllers.
        paths: String,
        /// The namespace.
        nsid: u32,
    },
    /// No active namespace at all.
    #[error("{path} has no namespace")]
    Empty {
        /// The controller.
        path: String,
    },
    /// Two paths have different namespaces under one id.
    #[error(
        "namespace {nsid} of {path} is not that of the first path (identifiers or size differ)"
    )]
    Different {
        /// The controller.
        path: String,
        /// The namespace.
        nsid: u32,
    },
    /// The volumes' block sizes are not one.
    #[error("namespace {nsid} has blocks of {found} bytes, the first has {wanted}")]
    BlockSize {
        /// The namespace.
        nsid: u32,
        /// Its block size.
        found: u32,
        /// The first one's.
        wanted: u32,
    },
}

/// Namespaces of one or more controllers. Bound to the thread that made it, and, as
/// SPDK's environment starts once, to be made once per process.
#[derive(Debug)]
pub struct NvmeTarget {
    // Fields are dropped in this order: paths complete what is under way into the
    // queues, and the environment ends last.
    paths: Vec<Path>,
    queues: LocalQueues,
    slots: Vec<Slot>,
    geometry: Geometry,
    options: NvmeTargetOptions,
    identity: Identity,
    nsids: Vec<u32>,
    /// Commands that end without having been sent.
    refused: VecDeque<Completion>,
    /// A fused pair whose second half found no room; nothing else goes to its path.
    half_sent: Option<u32>,
    serve_at: Instant,
    depth: u32,
    _env: Env,
}

#[derive(Debug)]
struct Path {
    trid: Trid,
    /// `None` while the path is lost.
    link: Option<Link>,
    connect_at: Instant,
}

#[derive(Debug)]
struct Link {
    // The queue pair goes before its controller.
    qpair: Option<QueuePair>,
    /// By volume; `None` where this controller does not offer it.
    namespaces: Vec<Option<Namespace>>,
    controller: Controller,
}

#[derive(Debug)]
struct Slot {
    buffer: Vec<u8>,
    /// The memory that the device reads and writes; the buffer is copied to and from it,
    /// so that the caller's is plain memory.
    io: IoBuf,
    path: usize,
    flight: Option<Flight>,
}

#[derive(Debug)]
struct Flight {
    request: Request,
    since: Instant,
    /// Completions that are still to come: two for a fused pair.
    parts: u8,
    status: NvmeStatus,
}

impl NvmeTarget {
    /// Starts SPDK's environment and connects to every path.
    pub fn connect(options: NvmeTargetOptions) -> Result<Self, NvmeTargetError> {
        let no_pci = !options.paths.iter().any(|path| matches!(path.transport, Transport::Pcie(_)));
        let env = start_environment(options.core, no_pci)?;
        let queues = LocalQueues::install(4096).map_err(NvmeTargetError::Environment)?;
        let mut paths: Vec<Path> = Vec::new();
        let mut nsids = options.nsids.clone();
        // Of each volume its block size and length, from the first path that has it.
        let mut shapes: Vec<Option<(u32, u64)>> = Vec::new();
        for trid in &options.paths {
            let link = Link::connect(trid, options.hostnqn.as_deref(), &mut nsids)?;
            shapes.resize(nsids.len(), None);
            for (volume, namespace) in link.namespaces.iter().enumerate() {
                let Some(namespace) = namespace else { continue };
                let mut before = paths.iter().filter_map(|path| path.link.as_ref());
                let first = before.find_map(|link| link.namespaces[volume].as_ref());
                if first.is_some_and(|first| !is_same(namespace, first)) {
                    let (path, nsid) = (trid.to_string(), namespace.nsid);
                    return Err(NvmeTargetError::Different { path, nsid });
                }
                shapes[volume] = Some((namespace.block_bytes, namespace.blocks));
            }
            paths.push(Path { trid: trid.clone(), link: Some(link), connect_at: Instant::now() });
        }
        let links = || paths.iter().filter_map(|path| path.link.as_ref());
        let Some(link) = links().next() else {
            return Err(NvmeTargetError::Empty { path: "an empty list".to_owned() });
        };
        let (mut block_bytes, mut volume_blocks) = (0, Vec::new());
        for (&nsid, shape) in nsids.iter().zip(&shapes) {
            let Some((found, blocks)) = *shape else {
                let all: Vec<String> = options.paths.iter().map(Trid::to_string).collect();
                return Err(NvmeTargetError::NoNamespace { paths: all.join(", "), nsid });
            };
            let wanted = if block_bytes == 0 { found } else { block_bytes };
            if found != wanted {
                return Err(NvmeTargetError::BlockSize { nsid, found, wanted });
            }
            block_bytes = found;
            volume_blocks.push(blocks);
        }
        let transfer_bytes = links()
            .map(|link| link.controller.identity().max_transfer_bytes)
            .min()
            .unwrap_or(0)
            .min(TRANSFER_BYTES_MAX);
        let geometry = Geometry {
            block_bytes,
            volume_blocks,
            transfer_blocks_max: (transfer_bytes / block_bytes).max(1),
        };
        Ok(Self {
            identity: link.controller.identity(),
            paths,
            queues,
            slots: Vec::new(),
            geometry,
            options,
            nsids,
            refused: VecDeque::new(),
            half_sent: None,
            serve_at: Instant::now(),
            depth: 0,
            _env: env,
        })
    }

    /// Tries to send; the completion of what cannot be sent is made here.
    fn send(&mut self, number: u32, request: Request) -> Result<(), Full> {
        let slot = &mut self.slots[number as usize];
        let volume = usize::from(request.volume);
        if volume >= self.nsids.len() {
            let status = Status::Nvme { sct: 0, sc: 0x0b, dnr: true };
            self.refused.push_back(Completion { slot: number, status });
            return Ok(());
        }
        let usable = |path: usize| {
            let link = self.paths[path].link.as_ref()?;
            Some((path, link, link.namespaces[volume].as_ref()?))
        };
        let mut in_turn = (0..self.paths.len())
            .map(|step| (slot.path + step) % self.paths.len())
            .filter_map(usable);
        let found = match self.options.policy {
            PathPolicy::Spread | PathPolicy::First => in_turn.next(),
            PathPolicy::Best => in_turn.min_by_key(|(_, _, namespace)| namespace.path_state()),
            PathPolicy::Detour => in_turn.min_by_key(|(_, _, namespace)| {
                let state = namespace.path_state();
                (state != AnaState::NonOptimized, state)
            }),
        };
        let Some((path, link, namespace)) = found else {
            self.refused.push_back(Completion { slot: number, status: Status::NO_PATH });
            return Ok(());
        };
        slot.path = path;
        let Some(qpair) = &link.qpair else { return Err(Full) };
        let bytes = request.blocks as usize * self.geometry.block_bytes as usize;
        let (context, first) = (u64::from(number), request.first);
        let mut parts = 1;
        let sent = match request.op {
            Op::Read => qpair.read(namespace, slot.io.slice(0, bytes), first, context),
            Op::Write | Op::WriteFua | Op::Compare => {
                slot.io.copy_in(0, &slot.buffer[..bytes]);
                let io = slot.io.slice(0, bytes);
                match request.op {
                    Op::Write => qpair.write(namespace, io, first, Flags::NONE, context),
                    Op::WriteFua => qpair.write(namespace, io, first, Flags::FUA, context),
                    _ => qpair.compare(namespace, io, first, Flags::NONE, context),
                }
            }
            Op::CompareAndWrite => {
                parts = 2;
                slot.io.copy_in(0, &slot.buffer[..2 * bytes]);
                let io = slot.io.slice(0, bytes);
                qpair.compare(namespace, io, first, Flags::FUSE_FIRST, context)
            }
            Op::WriteZeroes => qpair.write_zeroes(namespace, first, request.blocks, context),
            Op::Deallocate => {
                let ranges: Vec<(u64, u32)> = slot.buffer[..request.blocks as usize * 16]
                    .as_chunks::<16>()
                    .0
                    .iter()
                    .map(|range| {
                        let range = u128::from_le_bytes(*range);
                        ((range >> 64) as u64, (range >> 32) as u32)
                    })
                    .collect();
                qpair.deallocate(namespace, &ranges, context)
            }
            Op::Flush => qpair.flush(namespace, context),
        };
        match sent {
            Ok(()) => {}
            Err(Submit::Busy) => return Err(Full),
            Err(Submit::Refused(errno)) => {
                self.refused.push_back(Completion { slot: number, status: Status::Os(errno) });
                return Ok(());
            }
        }
        let (since, status) = (Instant::now(), NvmeStatus::SUCCESS);
        slot.flight = Some(Flight { request, since, parts, status });
        if parts == 2 {
            self.half_sent = Some(number);
            self.send_second_half();
        }
        Ok(())
    }

    /// Sends the write of a compare-and-write, which must be the very next command on
    /// its queue pair.
    fn send_second_half(&mut self) {
        let Some(number) = self.half_sent else { return };
        let slot = &mut self.slots[number as usize];
        let Some(flight) = &mut slot.flight else {
            self.half_sent = None;
            return;
        };
        let link = self.paths[slot.path].link.as_ref();
        let volume = usize::from(flight.request.volume);
        let sent = link.and_then(|link| link.usable(volume)).map(|(qpair, namespace)| {
            let bytes = flight.request.blocks as usize * self.geometry.block_bytes as usize;
            let io = slot.io.slice(bytes, bytes);
            let context = u64::from(number) | SECOND;
            qpair.write(namespace, io, flight.request.first, Flags::FUSE_SECOND, context)
        });
        match sent {
            Some(Err(Submit::Busy)) => return,
            Some(Ok(())) => {}
            // Only the first half's completion will come.
            Some(Err(Submit::Refused(_))) | None => {
                flight.parts -= 1;
                flight.status = NvmeStatus::ABORTED_SQ_DELETION;
            }
        }
        self.half_sent = None;
    }

    fn poll_paths(&mut self) {
        let now = Instant::now();
        let serve = now >= self.serve_at;
        if serve {
            self.serve_at = now + ADMIN_INTERVAL;
        }
        for (index, path) in self.paths.iter_mut().enumerate() {
            if let Some(link) = &mut path.link {
                let lost = match &link.qpair {
                    Some(qpair) => qpair.poll(0).is_err(),
                    None => false,
                };
                let is_late = |slot: &Slot| {
                    slot.path == index
                        && slot.flight.as_ref().is_some_and(|flight| {
                            now.saturating_duration_since(flight.since)
                                > self.options.command_timeout
                        })
                };
                let late = serve && self.slots.iter().any(is_late);
                if lost || late || (serve && link.controller.poll_admin().is_err()) {
                    tracing::warn!(path = %path.trid, late, "path lost");
                    // What is under way on it ends as aborted when the queue pair goes. That would
                    // be deleted by a command, and a dead controller over shared memory takes
                    // commands as before, and answers none.
                    link.controller.give_up();
                    path.link = None;
                    path.connect_at = now + RECONNECT_INTERVAL;
                }
            } else if self.depth > 0 && now >= path.connect_at {
                path.connect_at = now + RECONNECT_INTERVAL;
                let hostnqn = self.options.hostnqn.as_deref();
                let link = Link::connect(&path.trid, hostnqn, &mut self.nsids);
                let link = link.and_then(|mut link| {
                    link.open_queue(&path.trid, self.depth)?;
                    Ok(link)
                });
                match link {
                    Ok(link) => {
                        tracing::warn!(path = %path.trid, "path is back");
                        path.link = Some(link);
                    }
                    Err(error) => tracing::debug!(path = %path.trid, %error, "path still lost"),
                }
            }
        }
    }

    fn finish_part(&mut self, context: u64, status: NvmeStatus, ended: &mut Vec<Completion>) {
        let number = context as u32;
        let slot = &mut self.slots[number as usize];
        let Some(flight) = &mut slot.flight else { return };
        // Of a fused pair, one status says why, the other only that this one was aborted with it.
        let says_why = status == NvmeStatus::COMPARE_FAILURE || status_of(status).is_path_related();
        if flight.status.is_ok() || says_why {
            flight.status = status;
        }
        flight.parts -= 1;
        if flight.parts > 0 {
            return;
        }
        let status = status_of(flight.status);
        if flight.request.op == Op::Read && status == Status::Ok {
            let bytes = flight.request.blocks as usize * self.geometry.block_bytes as usize;
            slot.io.copy_out(0, &mut slot.buffer[..bytes]);
        }
        if status.is_path_related() {
            slot.path = (slot.path + 1) % self.paths.len();
        }
        slot.flight = None;
        ended.push(Completion { slot: number, status });
    }
}

impl Target for NvmeTarget {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn make_slots(&mut self, count: u32, bytes: usize) -> Result<(), NoMemory> {
        let no_memory = NoMemory { count, bytes };
        for number in 0..count as usize {
            let io = DmaBuf::new(bytes.max(ALIGNMENT), ALIGNMENT).map_err(|_| no_memory)?.leak();
            let path = match self.options.policy {
                PathPolicy::First => 0,
                _ => number % self.paths.len(),
            };
            self.slots.push(Slot { buffer: vec![0; bytes], io, path, flight: None });
        }
        // A fused pair is two commands.
        self.depth = count * 2;
        for path in &mut self.paths {
            if let Some(link) = &mut path.link
                && let Err(error) = link.open_queue(&path.trid, self.depth)
            {
                tracing::error!(%error, "no queue pair");
                return Err(no_memory);
            }
        }
        Ok(())
    }

    fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        let slot = &mut self.slots[slot as usize];
        assert!(slot.flight.is_none(), "the slot is in flight");
        &mut slot.buffer
    }

    fn submit(&mut self, slot: u32, request: Request) -> Result<(), Full> {
        assert!(self.slots[slot as usize].flight.is_none(), "the slot is in flight");
        self.send_second_half();
        if self.half_sent.is_some() {
            return Err(Full);
        }
        self.send(slot, request)
    }

    fn poll(&mut self, ended: &mut Vec<Completion>) {
        self.poll_paths();
        self.send_second_half();
        while let Some(done) = self.queues.pop_done() {
            self.finish_part(done.ctx, done.status, ended);
        }
        ended.extend(self.refused.drain(..));
    }

    fn supports(&self, op: Op) -> bool {
        match op {
            Op::Read | Op::Write | Op::WriteFua | Op::Flush => true,
            Op::Compare => self.identity.compare,
            Op::CompareAndWrite => self.identity.compare_and_write,
            Op::WriteZeroes => self.identity.write_zeroes,
            Op::Deallocate => self.identity.deallocate,
        }
    }
}

impl Link {
    /// Connects; with no `nsids` yet, takes all active ones.
    fn connect(
        trid: &Trid,
        hostnqn: Option<&str>,
        nsids: &mut Vec<u32>,
    ) -> Result<Self, NvmeTargetError> {
        let address = match &trid.transport {
            Transport::Tcp(address) => Address::Tcp(*address),
            Transport::VfioUser(dir) => Address::VfioUser(dir.clone()),
            Transport::Pcie(address) => Address::Pcie(address.clone()),
        };
        let path = || trid.to_string();
        let controller = Controller::connect(&address, trid.subnqn.as_deref(), hostnqn)
            .map_err(|error| NvmeTargetError::Connect { path: path(), error })?;
        if nsids.is_empty() {
            *nsids = controller.namespaces().iter().map(|namespace| namespace.nsid).collect();
        }
        if nsids.is_empty() {
            return Err(NvmeTargetError::Empty { path: path() });
        }
        let namespaces = nsids.iter().map(|&nsid| controller.namespace(nsid)).collect();
        Ok(Self { qpair: None, namespaces, controller })
    }

    /// What a command to `volume` needs; `None` where this path cannot take it.
    fn usable(&self, volume: usize) -> Option<(&QueuePair, &Namespace)> {
        Some((self.qpair.as_ref()?, self.namespaces[volume].as_ref()?))
    }

    /// Makes the queue pair, as deep as the controller allows up to `depth`; what does
    /// not fit waits in SPDK's queue.
    fn open_queue(&mut self, trid: &Trid, depth: u32) -> Result<(), NvmeTargetError> {
        let mut depth = depth.min(QUEUE_DEPTH_MAX);
        loop {
            match self.controller.queue_pair(depth) {
                Ok(qpair) => {
                    self.qpair = Some(qpair);
                    return Ok(());
                }
                Err(_) if depth > QUEUE_DEPTH_MIN => depth /= 2,
                Err(error) => {
                    return Err(NvmeTargetError::Connect { path: trid.to_string(), error });
                }
            }
        }
    }
}

/// Whether two paths lead to one namespace, as far as it says who it is.
fn is_same(a: &Namespace, b: &Namespace) -> bool {
    let shape = |namespace: &Namespace| {
        (namespace.block_bytes, namespace.blocks, namespace.nguid, namespace.uuid)
    };
    shape(a) == shape(b)
}

/// Starts the environment. It pins the thread that starts it; that is undone unless a
/// core was asked for, as this is a host's program, not a mover's poller.
fn start_environment(core: Option<usize>, no_pci: bool) -> Result<Env, NvmeTargetError> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).ok();
    let last_allowed = allowed.and_then(|set| (0..CpuSet::MAX_CPU).rev().find(|&c| set.is_set(c)));
    let env = Env::init(&EnvConfig {
        name: "setline-check".to_owned(),
        core: core.or(last_allowed).unwrap_or(0),
        no_pci,
        ..EnvConfig::default()
    })
    .map_err(NvmeTargetError::Environment)?;
    if let (None, Some(allowed)) = (core, allowed) {
        // Pinned to one core it runs just as well, only perhaps in somebody's way.
        let _ = sched_setaffinity(None, &allowed);
    }
    Ok(env)
}

fn status_of(status: NvmeStatus) -> Status {
    if status.is_ok() {
        return Status::Ok;
    }
    // Trying again does not make these right: opcode, field, namespace, size, range, compare.
    let dnr =
        matches!((status.sct, status.sc), (0, 0x01 | 0x02 | 0x0b | 0x0c | 0x18 | 0x80) | (2, 0x85));
    Status::Nvme { sct: status.sct, sc: status.sc, dnr }
}
