//! The loop of a poller: everything on the path of an update, on one pinned thread.
//!
//! One turn: SPDK's thread, the host commands and completions it brought, packets, rings, timers,
//! the commands of the state machines, packets out. The clock is read once. Nothing blocks.

use super::clock::{Clock, cycles};
use super::effects::Deferred;
use super::epoch::Entered;
use super::host::{HandedOver, HostCommand};
use super::idle::Idler;
use super::inflight::InFlight;
use super::journal_io::JournalIo;
use super::messages::{FromPoller, ToPoller, VolumeCounters};
use super::net::Net;
use super::parts::{MachineConfigs, PollerParts, TapOwner, VolumeParts};
use super::readback::ReadBack;
use super::recall::Recalls;
use super::remote::Remote;
use super::siblings::{SiblingEnds, SiblingMessage};
use super::stamps::{LineSetter, Stamps};
use super::stats::Stats;
use crate::config::Timestamps;
use crate::dpdk::Region;
use crate::mem::arena::{Arena, LogId};
use crate::proto::boundary::Boundary;
use crate::proto::node::{Machines, Node};
use crate::proto::primary::PrimaryShard;
use crate::proto::secondary::Secondary;
use crate::proto::timer::Timer;
use crate::proto::types::{BufRef, Epoch, Nanos, ShardId};
use crate::spdk::bdev::{Bdev, Channel};
use crate::spdk::env::EalThread;
use crate::spdk::nvmf::PollGroup;
use crate::spdk::queue::LocalQueues;
use crate::spdk::thread::{Thread, ThreadHandle};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

pub(super) use super::contexts::{IoContext, IoContexts};

/// Turns between looks at the control thread's requests and at the siblings' overflow.
const CONTROL_TURNS: u64 = 16;
/// Host commands taken in per turn while a boundary is under way: a copy of 4 KiB takes most of a
/// microsecond, and the boundary's messages wait for the end of the turn.
const BOUNDARY_ARRIVALS: usize = 4;
/// How long a stopping poller waits for its block device requests, in nanoseconds.
const STOP_NS: u64 = 10_000_000_000;

/// Generic status, "Command Aborted due to SQ Deletion": hosts take another path.
const ABORTED: crate::spdk::NvmeStatus = crate::spdk::NvmeStatus::ABORTED_SQ_DELETION;

/// Why a poller could not start.
#[derive(Debug, thiserror::Error)]
pub enum PollerError {
    /// SPDK refused something.
    #[error("poller {shard}: {what}: {source}")]
    Spdk {
        /// The poller.
        shard: ShardId,
        /// What was tried.
        what: String,
        /// What SPDK said.
        source: crate::spdk::error::Error,
    },
    /// The arena cannot be set up.
    #[error("poller {shard}: arena: {source}")]
    Arena {
        /// The poller.
        shard: ShardId,
        /// Why.
        source: crate::mem::arena::ArenaError,
    },
    /// The journal cannot be used.
    #[error("poller {shard}: journal on {bdev}: {reason}")]
    Journal {
        /// The poller.
        shard: ShardId,
        /// The journal's block device.
        bdev: String,
        /// Why, and what to do.
        reason: String,
    },
    /// No port leads to a peer.
    #[error("poller {shard}: no queue of it leads to {peer}")]
    NoWay {
        /// The poller.
        shard: ShardId,
        /// The peer.
        peer: ShardId,
    },
    /// The operating system has no thread for it, or the thread ended early.
    #[error("poller {shard}: its thread did not start")]
    Thread {
        /// The poller.
        shard: ShardId,
    },
}

/// A running poller, as the control thread sees it.
#[derive(Debug)]
pub struct RunningPoller {
    /// Its shard.
    pub shard: ShardId,
    /// Its SPDK thread: where its NVMe-oF poll group is created.
    pub thread: ThreadHandle,
    join: JoinHandle<()>,
}

impl RunningPoller {
    /// Waits for the thread to end. It has been asked to.
    pub fn join(self) {
        if self.join.join().is_err() {
            tracing::error!(shard = %self.shard, "the poller's thread panicked");
        }
    }

    /// Whether the thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join.is_finished()
    }
}

/// A volume at its poller.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) block_bytes: u32,
    /// The shard of another mover that is responsible for it; none when this one is.
    pub(super) owner: Option<ShardId>,
    /// It was this shard's until a boundary of the present epoch: reads that others ask for, who do not
    /// know that yet, are answered.
    pub(super) left: bool,
    /// Alignment of payloads in the arena, so that the device need not copy.
    pub(super) align: usize,
    pub(super) channel: Option<Channel>,
    pub(super) write_cache: bool,
    pub(super) geometry_flush: bool,
    pub(super) unmap: bool,
    pub(super) numbered_by_mover: bool,
    pub(super) timestamps: Timestamps,
    /// It is not being taken over; true where another shard is responsible.
    pub(super) ready: bool,
    /// Another mover has taken it over: nothing goes to its base any more.
    pub(super) excluded: bool,
    pub(super) counters: VolumeCounters,
}

/// The poller. Lives on its thread.
#[derive(Debug)]
pub struct Poller {
    pub(super) me: ShardId,
    pub(super) epoch: Epoch,
    pub(super) entered: Entered,
    pub(super) clock: Clock,
    /// This turn's time.
    pub(super) now: Nanos,
    /// This turn's counter value.
    pub(super) cycles: u64,
    pub(super) node: Node,
    pub(super) arena: Arena,
    pub(super) own_log: LogId,
    pub(super) mirror_log: LogId,
    pub(super) arena_full: bool,
    pub(super) volumes: Vec<Volume>,
    /// Volume number → index, `u32::MAX` for others.
    pub(super) volume_table: Vec<u32>,
    pub(super) taps: Vec<TapOwner>,
    pub(super) hosts: InFlight<HostCommand>,
    pub(super) handed_over: HandedOver,
    pub(super) busy: VecDeque<HostCommand>,
    pub(super) deferred: VecDeque<Deferred>,
    pub(super) recalls: Recalls,
    pub(super) contexts: IoContexts,
    pub(super) net: Net,
    pub(super) journal: Option<JournalIo>,
    pub(super) read_back: ReadBack,
    pub(super) remote: Remote,
    pub(super) siblings: SiblingEnds,
    /// The mover's one list of numbers, shared with the siblings (G7); touched only by groups
    /// that number so.
    pub(super) list: Option<Arc<AtomicU64>>,
    pub(super) stamps: Stamps,
    /// Sets the line of the common timer, where the mover's part in that is here.
    common_time: Option<LineSetter>,
    /// Alignment of records that arrive: the strictest of the volumes.
    pub(super) record_align: usize,
    /// This thread's share of the hosts' connections.
    host_group: Option<PollGroup>,
    pub(super) quiesced: bool,
    /// Hosts get no update in any more, and those under way have been completed to them.
    pub(super) refusing: bool,
    pub(super) stats: Stats,
    pub(super) idler: Idler,
    requests: Receiver<ToPoller>,
    reports: Sender<FromPoller>,
    /// Reports that the control thread's queue had no room for.
    unsent: VecDeque<FromPoller>,
    turn: u64,
    stopping: Option<Nanos>,
}

impl Poller {
    /// Starts a poller on a thread of its own and waits until it runs.
    ///
    /// # Errors
    /// [`PollerError`] says what could not be had.
    pub fn spawn(parts: PollerParts) -> Result<RunningPoller, PollerError> {
        let shard = parts.shard;
        let (started, ready) = bounded(1);
        let name = format!("poller-{}", shard.poller);
        let join = std::thread::Builder::new()
            .name(name)
            .spawn(move || Self::main(parts, &started))
            .map_err(|_| PollerError::Thread { shard })?;
        match ready.recv() {
            Ok(Ok(thread)) => Ok(RunningPoller { shard, thread, join }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PollerError::Thread { shard }),
        }
    }

    fn main(parts: PollerParts, started: &Sender<Result<ThreadHandle, PollerError>>) {
        if let Some(core) = parts.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
        {
            tracing::warn!(shard = %parts.shard, core, "cannot pin the poller to its core");
        }
        let shard = parts.shard;
        let spdk = |what: &str, source| PollerError::Spdk { shard, what: what.into(), source };
        let resources =
            EalThread::register().map_err(|e| spdk("registering the thread", e)).and_then(|eal| {
                let queues = LocalQueues::install(parts.ios_max)
                    .map_err(|e| spdk("making the I/O queues", e))?;
                let thread = Thread::create(&format!("setline-{shard}"))
                    .map_err(|e| spdk("creating the SPDK thread", e))?;
                Ok((eal, queues, thread))
            });
        let (eal, queues, thread) = match resources {
            Ok(resources) => resources,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let handle = thread.handle();
        match Self::new(parts, &queues, &thread) {
            Ok(mut poller) => {
                let _ = started.send(Ok(handle));
                poller.tell(FromPoller::Started { shard });
                poller.run(&queues, &thread);
                let (reports, last) = (poller.reports.clone(), Some(Box::new(poller.snapshot())));
                drop(poller);
                end(thread);
                let _ = reports.send(FromPoller::Stopped { shard, last });
            }
            Err(error) => {
                end(thread);
                let _ = started.send(Err(error));
            }
        }
        drop(queues);
        drop(eal);
    }

    fn new(parts: PollerParts, queues: &LocalQueues, thread: &Thread) -> Result<Self, PollerError> {
        let shard = parts.shard;
        let now = parts.clock.now();
        let arena_error = |source| PollerError::Arena { shard, source };
        let mut arena = parts.arena.memory.into_arena(4).map_err(arena_error)?;
        let own_log = arena.open_log(parts.arena.own).map_err(arena_error)?;
        let mirror_log = arena.open_log(parts.arena.mirror).map_err(arena_error)?;
        let remote = Remote::new(&mut arena, parts.remote, now).map_err(arena_error)?;
        let mut volume_table = Vec::new();
        let mut volumes = Vec::with_capacity(parts.volumes.len());
        for (index, volume) in parts.volumes.iter().enumerate() {
            let place = volume.id.0 as usize;
            if volume_table.len() <= place {
                volume_table.resize(place + 1, u32::MAX);
            }
            volume_table[place] = index as u32;
            volumes.push(Volume::open(shard, volume, &parts.machines, index)?);
        }
        let mut journal = None;
        let machines = match &parts.machines {
            MachineConfigs::Primary { shard, boundary } => Machines::Primary {
                shard: PrimaryShard::new(shard),
                boundary: boundary.as_ref().map(Boundary::new),
            },
            MachineConfigs::Secondary { shard: config, coordinator } => {
                let mut machines = Secondary::new(config.clone(), coordinator.clone());
                if let Some(journal_parts) = &parts.journal {
                    let io = JournalIo::open(
                        shard,
                        parts.epoch,
                        journal_parts,
                        queues,
                        thread,
                        &mut machines,
                    )?;
                    journal = Some(io);
                }
                machines.recovered(now);
                Machines::Secondary(machines)
            }
        };
        let begins = parts.enters.as_ref().map_or(parts.epoch, |_| Epoch(parts.epoch.0 - 1));
        let mut node = Node::new(shard, begins, parts.other_site, machines, now);
        let mut common_time = None;
        if let Some((timer, setter)) = parts.timer {
            node.keep_time(Timer::new(&timer));
            common_time = Some(setter);
        }
        if let Some((record, engine)) = &parts.enters {
            // Before anything comes: a session of the epoch before would end with it.
            node.enter(now, record, engine);
        }
        let host_group = match &parts.hosts {
            Some(factory) => Some(factory.create().map_err(|source| PollerError::Spdk {
                shard,
                what: "creating the NVMe-oF poll group".into(),
                source,
            })?),
            None => None,
        };
        let net = Net::new(
            shard,
            parts.epoch,
            parts.incarnation,
            parts.queues,
            Region::new(parts.arena.memory),
            parts.links,
            now,
        )
        .map_err(|peer| PollerError::NoWay { shard, peer })?;
        let count = volumes.len();
        let record_align = volumes.iter().map(|volume| volume.align).max().unwrap_or(64);
        Ok(Self {
            record_align,
            host_group,
            me: shard,
            epoch: parts.epoch,
            entered: Entered::default(),
            clock: parts.clock,
            now,
            cycles: cycles(),
            node,
            arena,
            own_log,
            mirror_log,
            arena_full: false,
            volumes,
            volume_table,
            taps: parts.taps,
            hosts: InFlight::new(count, 1024),
            handed_over: InFlight::new(0, 256),
            busy: VecDeque::with_capacity(64),
            deferred: VecDeque::with_capacity(64),
            recalls: Recalls::default(),
            contexts: IoContexts::new(1024),
            net,
            journal,
            read_back: ReadBack::default(),
            remote,
            siblings: parts.siblings,
            list: parts.list,
            stamps: Stamps::new(parts.clock, parts.times),
            common_time,
            quiesced: false,
            refusing: false,
            stats: Stats::new(&parts.clock),
            idler: Idler::new(parts.idle),
            requests: parts.requests,
            reports: parts.reports,
            unsent: VecDeque::new(),
            turn: 0,
            stopping: None,
        })
    }

    fn run(&mut self, queues: &LocalQueues, thread: &Thread) {
        // Sibling shards of this mover are up from the start, like the shard itself.
        for sibling in self.siblings.pollers() {
            let peer = ShardId { mover: self.me.mover, poller: sibling };
            self.node.handle_peer_up(self.now, peer);
        }
        while !self.turn(queues, thread) {}
        self.abort_hosts();
        if let Some(group) = self.host_group.take() {
            let mut pump = || {
                thread.poll(cycles());
                while let Some(arrival) = queues.pop_arrival() {
                    arrival.io.complete(ABORTED);
                }
            };
            if let Err(error) = group.destroy(&mut pump) {
                tracing::error!(shard = %self.me, %error, "the hosts' poll group did not end");
            }
        }
    }

    /// One turn. True when the poller has ended.
    #[inline]
    fn turn(&mut self, queues: &LocalQueues, thread: &Thread) -> bool {
        self.cycles = cycles();
        self.now = self.clock.at(self.cycles);
        let mut work = u64::from(thread.poll(self.cycles));
        while let Some(done) = queues.pop_done() {
            self.block_done(done.ctx, done.status.into());
            work += 1;
        }
        work += self.receive();
        while let Some(message) = self.siblings.receive() {
            self.sibling_said(message);
            work += 1;
        }
        self.node.handle_timeout(self.now);
        if let Some(setter) = &mut self.common_time
            && let Some(line) = self.node.take_line()
        {
            // Before it is said to anybody that it holds.
            setter.set(line.encode());
        }
        work += self.run_commands();
        let mut arrivals = if self.node.is_at_boundary() { BOUNDARY_ARRIVALS } else { usize::MAX };
        while arrivals > 0
            && let Some(arrival) = queues.pop_arrival()
        {
            self.host_arrived(arrival.volume, arrival.io, self.cycles);
            arrivals -= 1;
            work += 1;
        }
        work += self.number_arrived();
        work += self.retry_waiting();
        work += self.remote_turn();
        if self.arena_full || self.quiesced {
            // What is retained must be confirmed before there is room, or before a clean stop.
            self.arena_full = false;
            self.node.handle_pressure(self.now);
        }
        work += self.run_commands();
        work += self.journal_turn();
        work += self.transmit();
        self.turn += 1;
        if self.turn.is_multiple_of(CONTROL_TURNS) || work == 0 {
            work += self.control_turn();
        }
        if let Some(since) = self.stopping
            && self.may_end(since)
        {
            return true;
        }
        self.idler.turn(work);
        false
    }

    fn sibling_said(&mut self, message: SiblingMessage) {
        match message {
            SiblingMessage::Control { from, epoch, message } => {
                self.node.handle_message(self.now, from, epoch, message);
            }
            SiblingMessage::Command(command) => self.sibling_command(command, self.cycles),
            SiblingMessage::Frame(frame) => self.sibling_frame(&frame),
            SiblingMessage::Done { tag, status } => {
                if let Some(io) = self.handed_over.remove(tag) {
                    io.complete(status.into());
                }
            }
        }
    }

    /// Requests, reports and retries that need not be looked at every turn.
    fn control_turn(&mut self) -> u64 {
        let mut work = 0;
        self.siblings.flush();
        if !self.busy.is_empty() {
            work += self.retry_busy();
        }
        if !self.deferred.is_empty() {
            work += self.retry_deferred();
        }
        while let Some(report) = self.unsent.pop_front() {
            if let Err(error) = self.reports.try_send(report) {
                if let crossbeam::channel::TrySendError::Full(report) = error {
                    self.unsent.push_front(report);
                }
                break;
            }
        }
        while let Ok(request) = self.requests.try_recv() {
            self.requested(request);
            work += 1;
        }
        self.look_whole();
        work
    }

    fn requested(&mut self, request: ToPoller) {
        match request {
            ToPoller::SetPeriod { group, period_ns } => {
                if let Some(engine) = self.node.boundary() {
                    engine.set_period(self.now, group, period_ns);
                }
            }
            ToPoller::CloseNow { group, reply } => {
                let now = self.now;
                let set = self.node.boundary().and_then(|engine| engine.close_now(now, group));
                let _ = reply.try_send(set);
            }
            ToPoller::PauseApply { group, paused } => {
                use crate::proto::message::Message;
                let message = Message::PauseApply { group, paused };
                self.node.handle_message(self.now, self.me, self.epoch, message);
            }
            ToPoller::Ledger { volume, max, reply } => {
                let _ = reply.try_send(self.ledger(volume, max));
            }
            ToPoller::Snapshot { reply } => {
                let _ = reply.try_send(Box::new(self.snapshot()));
            }
            ToPoller::Quiesce { quiesced } => {
                self.quiesced = quiesced;
                if quiesced {
                    self.say_stopping_to_all(false);
                }
            }
            ToPoller::Refuse => {
                self.say_stopping_to_all(true);
                self.refuse_hosts();
            }
            ToPoller::Enter { record, engine } => self.enter(&record, &engine),
            ToPoller::Planned { record } => self.planned(&record),
            ToPoller::Fenced { token } => self.fenced(token),
            ToPoller::Stop => {
                self.abandon_hosts();
                self.stopping = Some(self.now);
            }
        }
    }

    /// Whether a stopping poller has nothing under way at a device any more, or waited enough.
    fn may_end(&self, since: Nanos) -> bool {
        if self.contexts.len() == 0
            && self.journal.as_ref().is_none_or(|io| io.driver.is_idle())
            && self.read_back.is_idle()
        {
            return true;
        }
        let late = self.now.since(since) > STOP_NS;
        if late {
            let requests = self.contexts.len();
            tracing::error!(shard = %self.me, requests, "stopped with requests under way");
        }
        late
    }

    /// Tells the control thread; waits in a queue of its own when there is no room.
    pub(super) fn tell(&mut self, report: FromPoller) {
        if !self.unsent.is_empty() {
            self.unsent.push_back(report);
        } else if let Err(crossbeam::channel::TrySendError::Full(report)) =
            self.reports.try_send(report)
        {
            self.unsent.push_back(report);
        }
    }

    /// The protocol needs a record no more. Its memory is used again once no packet that refers
    /// to it is under way in a port.
    #[inline]
    pub(super) fn free(&mut self, buf: BufRef) {
        let journaled = self.journal.as_mut().is_none_or(|io| io.driver.may_reuse(buf));
        if journaled && self.net.may_reuse(buf) {
            self.arena.free(buf);
        }
    }
}

impl Volume {
    fn open(
        shard: ShardId,
        parts: &VolumeParts,
        machines: &MachineConfigs,
        index: usize,
    ) -> Result<Self, PollerError> {
        let mut volume = Self {
            block_bytes: parts.block_bytes,
            owner: parts.owner,
            left: false,
            align: 64,
            channel: None,
            write_cache: false,
            geometry_flush: false,
            unmap: false,
            numbered_by_mover: match machines {
                MachineConfigs::Primary { shard, .. } => {
                    PrimaryShard::numbers_by_mover(shard, index as u32)
                }
                MachineConfigs::Secondary { .. } => false,
            },
            timestamps: parts.timestamps,
            ready: true,
            excluded: false,
            counters: VolumeCounters { volume: parts.id, ..VolumeCounters::default() },
        };
        if let Some(name) = &parts.bdev {
            let spdk = |what: &str, source| PollerError::Spdk {
                shard,
                what: format!("{what} {name}"),
                source,
            };
            let bdev = Bdev::open(name, true).map_err(|e| spdk("opening", e))?;
            let geometry = bdev.geometry();
            volume.align = geometry.buffer_align.clamp(64, crate::mem::arena::ALIGN_MAX);
            volume.write_cache = geometry.write_cache;
            volume.geometry_flush = geometry.flush;
            volume.unmap = geometry.unmap;
            volume.channel = Some(bdev.channel().map_err(|e| spdk("a channel of", e))?);
        }
        Ok(volume)
    }
}

fn end(thread: Thread) {
    // The control thread polls the app thread meanwhile.
    if let Err(error) = thread.exit(&mut std::thread::yield_now) {
        tracing::error!(%error, "an SPDK thread did not end");
    }
}
