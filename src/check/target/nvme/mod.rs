//! NVMe namespaces as a target, through setline's initiator on SPDK.
//!
//! Several controllers may be paths to the same namespaces (a multipath subsystem
//! whose movers each offer every volume), or each offer some of them. A command takes
//! its slot's path, or the one that is best for its volume; paths that their target
//! calls inaccessible are left out.
//!
//! It is a multipath host, as a kernel's is. A command whose path was lost, or whose path
//! refused it as not the one to take, is kept and sent by another path; when none
//! works it waits for one, up to a limit, and only then ends with the error. Its user
//! sees one completion. It is sent again when its path has surely been let go (see
//! [`path`]), and its user sends nothing that overlaps it before its end; so an earlier copy
//! of a write never lands on top of a later write. Compare-and-write, which must not
//! be done twice, is not sent again.
//!
//! A lost path is connected again, at most once a second, by a thread of its own.

mod error;
mod path;
mod policy;

pub use error::NvmeTargetError;
pub use policy::PathPolicy;

use super::trid::{Transport, Trid};
use super::{Completion, Full, Geometry, NoMemory, Op, PathCounts, Request, Status, Target};
use crate::spdk::env::{DmaBuf, Env, EnvConfig, IoBuf};
use crate::spdk::error::{NvmeStatus, Submit};
use crate::spdk::nvme::{Flags, Identity, Namespace};
use crate::spdk::queue::LocalQueues;
use path::{Link, Path};
use policy::may_go_elsewhere;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest command, whatever a controller allows: bounds the buffers.
const TRANSFER_BYTES_MAX: u32 = 1 << 20;
/// How often the paths are looked after: lost or not, events, Keep Alive.
const SERVE_INTERVAL: Duration = Duration::from_millis(10);
/// Pause of a command that no path takes, or that all have refused.
const PAUSE: Duration = Duration::from_millis(10);
/// Alignment of the buffers: a memory page, so that a transfer needs the fewest entries.
const ALIGNMENT: usize = 4096;
/// More paths than this make no sense, and a set of them is a word.
const PATHS_MAX: usize = 64;
/// What SPDK says of a queue pair without a connection.
const ENXIO: i32 = 6;
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
    /// A path over TCP is lost when a Keep Alive takes longer than this. Longer than the target needs to
    /// shut out a part of it that is silent.
    pub keep_alive: Duration,
    /// A command ends with an error when no path has carried it out for so long.
    pub no_path_timeout: Duration,
    /// Core to pin the thread to; by default it stays where it may run now.
    pub core: Option<usize>,
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
    /// Slots of commands that are on no path, to be sent when one takes them.
    waiting: VecDeque<u32>,
    counts: PathCounts,
    /// A fused pair whose second half found no room; nothing else goes to its path.
    half_sent: Option<u32>,
    serve_at: Instant,
    depth: u32,
    _env: Env,
}

#[derive(Debug)]
struct Slot {
    buffer: Vec<u8>,
    /// The memory that the device reads and writes; the buffer is copied to and from it,
    /// so that the caller's is plain memory.
    io: IoBuf,
    /// The path that it takes first, as far as the policy leaves that open.
    home: usize,
    flight: Option<Flight>,
}

#[derive(Debug)]
struct Flight {
    request: Request,
    /// The path that it took last.
    path: usize,
    /// When.
    since: Instant,
    /// Completions that are still to come: two for a fused pair, none while it waits.
    parts: u8,
    status: NvmeStatus,
    /// Paths that have refused it since its last pause.
    refused_by: u64,
    /// Since when no path has carried it out, for a command that one failed or that found none.
    stranded: Option<Instant>,
    /// While it waits: it does so at least until then.
    pause_until: Instant,
    /// How often it was sent.
    sent: u32,
}

/// What came of an attempt to send.
enum Sent {
    Yes,
    /// The queue pair takes nothing just now.
    Busy,
    /// No path that may be tried.
    NoPath,
    /// The command itself cannot be.
    Refused(Status),
}

impl NvmeTarget {
    /// Starts SPDK's environment and connects to every path. Paths that are not there yet are tried again
    /// and again, as lost ones are; one must be there, and each volume must have one.
    pub fn connect(options: NvmeTargetOptions) -> Result<Self, NvmeTargetError> {
        if options.paths.len() > PATHS_MAX {
            return Err(NvmeTargetError::TooMany(options.paths.len()));
        }
        let no_pci = !options.paths.iter().any(|path| matches!(path.transport, Transport::Pcie(_)));
        let env = start_environment(options.core, no_pci)?;
        let queues = LocalQueues::install(4096).map_err(NvmeTargetError::Environment)?;
        let mut paths: Vec<Path> = Vec::new();
        let mut nsids = options.nsids.clone();
        // Of each volume its block size and length, from the first path that has it.
        let mut shapes: Vec<Option<(u32, u64)>> = Vec::new();
        let mut absent = None;
        for trid in &options.paths {
            let link = match Link::connect(trid, options.hostnqn.as_deref(), &mut nsids) {
                Ok(link) => link,
                Err(error @ NvmeTargetError::Connect { .. }) if options.paths.len() > 1 => {
                    tracing::warn!(path = %trid, %error, "path not there yet");
                    paths.push(Path::absent(trid.clone()));
                    absent = absent.or(Some(error));
                    continue;
                }
                Err(error) => return Err(error),
            };
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
            paths.push(Path::new(trid.clone(), link));
        }
        let links = || paths.iter().filter_map(|path| path.link.as_ref());
        let Some(link) = links().next() else {
            let none = NvmeTargetError::Empty { path: "an empty list".to_owned() };
            return Err(absent.unwrap_or(none));
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
            waiting: VecDeque::new(),
            counts: PathCounts::default(),
            half_sent: None,
            serve_at: Instant::now(),
            depth: 0,
            _env: env,
        })
    }

    /// Sends a slot's command by a path that may take it.
    fn send(&mut self, number: u32, now: Instant) -> Sent {
        let slot = &mut self.slots[number as usize];
        let Some(flight) = &mut slot.flight else { return Sent::NoPath };
        let request = flight.request;
        let volume = usize::from(request.volume);
        let count = self.paths.len();
        let in_turn = (0..count)
            .map(|step| (slot.home + step) % count)
            .filter(|&path| flight.refused_by & 1 << path == 0)
            .filter_map(|path| {
                let (_, namespace) = self.paths[path].link.as_ref()?.usable(volume)?;
                Some((path, namespace.path_state()))
            });
        let Some(path) = self.options.policy.choose(in_turn) else { return Sent::NoPath };
        let link = self.paths[path].link.as_ref();
        let Some((qpair, namespace)) = link.and_then(|link| link.usable(volume)) else {
            return Sent::NoPath;
        };
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
            Err(Submit::Busy) => return Sent::Busy,
            // The connection is gone; the next look at the path finds that.
            Err(Submit::Refused(ENXIO)) => return Sent::NoPath,
            Err(Submit::Refused(errno)) => return Sent::Refused(Status::Os(errno)),
        }
        self.counts.retries += u64::from(flight.sent > 0);
        flight.sent += 1;
        (flight.path, flight.since) = (path, now);
        (flight.parts, flight.status) = (parts, NvmeStatus::SUCCESS);
        if parts == 2 {
            self.half_sent = Some(number);
            self.send_second_half();
        }
        Sent::Yes
    }

    /// Sends what waits for a path, and ends what has waited too long.
    fn send_waiting(&mut self, now: Instant) {
        for _ in 0..self.waiting.len() {
            // Nothing may come between the halves of a fused pair.
            if self.half_sent.is_some() {
                return;
            }
            let Some(number) = self.waiting.pop_front() else { return };
            let slot = &mut self.slots[number as usize];
            let Some(flight) = &mut slot.flight else { continue };
            let since = *flight.stranded.get_or_insert(now);
            if now.saturating_duration_since(since) >= self.options.no_path_timeout {
                let status = match flight.status {
                    NvmeStatus::SUCCESS => Status::NO_PATH,
                    status => status_of(status),
                };
                slot.flight = None;
                self.refused.push_back(Completion { slot: number, status });
                continue;
            }
            if now < flight.pause_until {
                self.waiting.push_back(number);
                continue;
            }
            match self.send(number, now) {
                Sent::Yes => {}
                Sent::Busy => return self.waiting.push_front(number),
                Sent::NoPath => self.pause(number, now),
                Sent::Refused(status) => {
                    self.slots[number as usize].flight = None;
                    self.refused.push_back(Completion { slot: number, status });
                }
            }
        }
    }

    /// Has a command that no path takes wait; after the pause it may try all of them.
    fn pause(&mut self, number: u32, now: Instant) {
        if let Some(flight) = &mut self.slots[number as usize].flight {
            flight.refused_by = 0;
            flight.pause_until = now + PAUSE;
            self.waiting.push_back(number);
        }
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
        let link = self.paths[flight.path].link.as_ref();
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

    fn poll_paths(&mut self, now: Instant) {
        let serve = now >= self.serve_at;
        if serve {
            self.serve_at = now + SERVE_INTERVAL;
        }
        for index in 0..self.paths.len() {
            let late = serve && self.is_late(index, now);
            let path = &mut self.paths[index];
            let why = if !path.poll() {
                Some("its connection is gone")
            } else if late {
                Some("a command takes too long")
            } else if serve {
                path.why_lost(self.options.keep_alive, now)
            } else {
                None
            };
            if let Some(why) = why {
                path.lose(why, now);
                self.counts.lost += 1;
            } else if serve && self.depth > 0 {
                let back = path.reconnect(&self.options, &self.nsids, self.depth, now);
                if back && self.leads_elsewhere(index) {
                    let why = "its namespaces are not those of the other paths";
                    self.paths[index].lose(why, now);
                } else {
                    self.counts.connected_again += u64::from(back);
                }
            }
        }
    }

    /// Whether a path leads to other namespaces than the others do.
    fn leads_elsewhere(&self, path: usize) -> bool {
        let links = self.paths.iter().enumerate().filter(|(index, _)| *index != path);
        let Some(link) = &self.paths[path].link else { return false };
        links.filter_map(|(_, other)| other.link.as_ref()).any(|other| {
            let pairs = link.namespaces.iter().zip(&other.namespaces);
            pairs.flat_map(|(a, b)| a.as_ref().zip(b.as_ref())).any(|(a, b)| !is_same(a, b))
        })
    }

    /// Whether a command on a path takes longer than any may.
    fn is_late(&self, path: usize, now: Instant) -> bool {
        let limit = self.options.command_timeout;
        self.slots.iter().filter_map(|slot| slot.flight.as_ref()).any(|flight| {
            let under_way = flight.parts > 0 && flight.path == path;
            under_way && now.saturating_duration_since(flight.since) > limit
        })
    }

    fn finish_part(
        &mut self,
        context: u64,
        status: NvmeStatus,
        now: Instant,
        ended: &mut Vec<Completion>,
    ) {
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
        let (op, status) = (flight.request.op, status_of(flight.status));
        if may_go_elsewhere(op, status) {
            // A path that was lost may be taken again when it is back.
            flight.refused_by |= u64::from(status.is_path_related()) << flight.path;
            flight.stranded.get_or_insert(now);
            flight.pause_until = now;
            self.waiting.push_back(number);
            return;
        }
        if op == Op::Read && status == Status::Ok {
            let bytes = flight.request.blocks as usize * self.geometry.block_bytes as usize;
            slot.io.copy_out(0, &mut slot.buffer[..bytes]);
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
            let home = match self.options.policy {
                PathPolicy::First => 0,
                _ => number % self.paths.len(),
            };
            self.slots.push(Slot { buffer: vec![0; bytes], io, home, flight: None });
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
        if usize::from(request.volume) >= self.nsids.len() {
            let status = Status::Nvme { sct: 0, sc: 0x0b, dnr: true };
            self.refused.push_back(Completion { slot, status });
            return Ok(());
        }
        let now = Instant::now();
        self.slots[slot as usize].flight = Some(Flight::new(request, now));
        match self.send(slot, now) {
            Sent::Yes => {}
            Sent::Busy => {
                self.slots[slot as usize].flight = None;
                return Err(Full);
            }
            Sent::NoPath => self.pause(slot, now),
            Sent::Refused(status) => {
                self.slots[slot as usize].flight = None;
                self.refused.push_back(Completion { slot, status });
            }
        }
        Ok(())
    }

    fn poll(&mut self, ended: &mut Vec<Completion>) {
        let now = Instant::now();
        self.poll_paths(now);
        self.send_second_half();
        while let Some(done) = self.queues.pop_done() {
            self.finish_part(done.ctx, done.status, now, ended);
        }
        self.send_waiting(now);
        ended.extend(self.refused.drain(..));
    }

    fn path_counts(&self) -> PathCounts {
        self.counts
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

impl Flight {
    fn new(request: Request, now: Instant) -> Self {
        Self {
            request,
            path: 0,
            since: now,
            parts: 0,
            status: NvmeStatus::SUCCESS,
            refused_by: 0,
            stranded: None,
            pause_until: now,
            sent: 0,
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
