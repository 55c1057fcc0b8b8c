//! The writer: several logical writers issue dependent writes over many volumes.
//!
//! Each logical writer keeps up to `queue_depth` commands in flight and issues the
//! next when one is acknowledged, so that most writes depend on writes before, on
//! other volumes and of other writers. Every block tells what its command depends
//! on. Optionally writers also read one another's newest blocks: a read can return
//! a write that is not acknowledged yet, and whatever its reader writes from then
//! on depends on that write, too.
//!
//! The engine is polled: [`Writer::turn`] is given a target and the time and does
//! what can be done. It has no thread, clock or file of its own (the log goes to
//! any [`io::Write`]).

mod lane;
mod report;

pub use report::{Latency, Report};

use super::block::{BlockHeader, CommandStamp, RunId, WorkloadBytes, is_zero};
use super::blockmap::BlockMap;
use super::images::Floor;
use super::known::{Known, WINDOW};
use super::log::{Event, LogWriter};
use super::target::{Completion, Op, Request, Status, Target};
use super::workload::{Draws, Extent, PERMILLE, WRITERS_MAX, Workload, WorkloadError};
use lane::{Lane, Read, Write};
use report::Counters;
use std::io;

/// How far behind the wanted rate the writer may catch up at once.
const CATCH_UP_NS: u64 = 100_000_000;

/// How to write.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Identity of the run.
    pub run: RunId,
    /// Where to write.
    pub workload: Workload,
    /// Commands in flight per logical writer, 1 to [`WINDOW`].
    pub queue_depth: u16,
    /// Writes per second over all writers; 0 for as many as possible.
    pub rate_per_s: u64,
    /// Of 1000 writes, so many are followed by a read of another writer's newest block.
    pub reads_permille: u16,
    /// Tries beyond the first before a command that met errors is given up, and its
    /// writer with it.
    pub retries_max: u32,
    /// Pause before each of them.
    pub retry_pause_ns: u64,
}

/// What is wrong with options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The workload cannot be had.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// No or too much depth.
    #[error("queue depth {0}: 1 to {WINDOW} is allowed")]
    QueueDepth(u16),
    /// The target has another block size, or too few or too short volumes, or takes
    /// only shorter commands.
    #[error("the target's {0} does not fit the workload")]
    Geometry(&'static str),
    /// More than all.
    #[error("{0} of 1000 writes with a read")]
    Reads(u16),
}

impl WriterOptions {
    /// Slots that the target must have.
    pub fn slots(&self) -> u32 {
        u32::from(self.workload.writers) * (u32::from(self.queue_depth) + 1)
    }

    /// Bytes that each slot's buffer must have.
    pub fn slot_bytes(&self) -> usize {
        usize::from(self.workload.blocks_max()) * self.workload.block_bytes as usize
    }

    /// Checks the options by themselves and against a target.
    pub fn validate(&self, target: &dyn Target) -> Result<(), OptionsError> {
        self.workload.validate()?;
        if !(1..=WINDOW).contains(&u64::from(self.queue_depth)) {
            return Err(OptionsError::QueueDepth(self.queue_depth));
        }
        if self.reads_permille > PERMILLE {
            return Err(OptionsError::Reads(self.reads_permille));
        }
        let (geometry, workload) = (target.geometry(), &self.workload);
        if geometry.block_bytes != workload.block_bytes {
            return Err(OptionsError::Geometry("block size"));
        }
        if geometry.volume_blocks.len() < usize::from(workload.volumes) {
            return Err(OptionsError::Geometry("number of volumes"));
        }
        if geometry.volume_blocks.iter().any(|&blocks| blocks < workload.span_blocks) {
            return Err(OptionsError::Geometry("shortest volume"));
        }
        if geometry.transfer_blocks_max < u32::from(workload.blocks_max()) {
            return Err(OptionsError::Geometry("longest command"));
        }
        if target.slots() < self.slots() {
            return Err(OptionsError::Geometry("number of slots"));
        }
        Ok(())
    }
}

/// What the writer has to remember of a block.
#[derive(Clone, Copy, Default)]
struct BlockState {
    /// How often it was issued.
    version: u32,
    /// The version that any read must return at least: acknowledged, or returned before.
    visible: u32,
}

/// The engine. Owned by one thread.
#[derive(Debug)]
pub struct Writer<W> {
    options: WriterOptions,
    workload: WorkloadBytes,
    log: LogWriter<W>,
    lanes: Vec<Lane>,
    /// Per volume.
    blocks: Vec<BlockMap<BlockState>>,
    acked: [Known; WRITERS_MAX as usize],
    known: [Known; WRITERS_MAX as usize],
    counters: Counters,
    /// When the next issue is due, at a limited rate.
    due_ns: u64,
    draws: Draws,
    ended: Vec<Completion>,
    stopping: bool,
}

impl std::fmt::Debug for BlockState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}≥{}", self.version, self.visible)
    }
}

impl<W: io::Write> Writer<W> {
    /// Starts a run: its log begins in `log`. `options` are
    /// [valid](WriterOptions::validate) for the target that turns will be given.
    pub fn start(options: WriterOptions, log: W, now_ns: u64) -> io::Result<Self> {
        let workload = &options.workload;
        Ok(Self {
            log: LogWriter::create(log, options.run, workload, now_ns)?,
            workload: WorkloadBytes::pack(workload),
            lanes: (0..workload.writers)
                .map(|writer| Lane::new(writer, options.queue_depth, workload))
                .collect(),
            blocks: vec![BlockMap::default(); usize::from(workload.volumes)],
            acked: [Known::NONE; WRITERS_MAX as usize],
            known: [Known::NONE; WRITERS_MAX as usize],
            counters: Counters::new(now_ns),
            due_ns: now_ns,
            draws: Draws::new(workload.seed, u64::MAX, 0),
            ended: Vec::new(),
            stopping: false,
            options,
        })
    }

    /// Takes what ended, retries what is due and issues what may be issued. Returns
    /// whether anything happened. `now_ns` never goes back. Errors are the log's.
    pub fn turn(&mut self, target: &mut dyn Target, now_ns: u64) -> io::Result<bool> {
        let mut ended = std::mem::take(&mut self.ended);
        target.poll(&mut ended);
        self.counters.paths = target.path_counts();
        let mut happened = !ended.is_empty();
        for completion in ended.drain(..) {
            self.take(target, completion, now_ns)?;
        }
        self.ended = ended;
        for lane in 0..self.lanes.len() {
            happened |= self.submit_due(target, lane, now_ns);
        }
        if !self.stopping {
            happened |= self.issue_all(target, now_ns)?;
        }
        Ok(happened)
    }

    /// Issues nothing more. Further turns wait for commands in flight, and retry them.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// How many commands wait for their completion or their retry.
    pub fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.writes.len() + usize::from(lane.read.is_some())).sum()
    }

    /// Whether every logical writer has given up.
    pub fn is_halted(&self) -> bool {
        self.lanes.iter().all(|lane| lane.halted.is_some())
    }

    /// What is acknowledged at this moment.
    pub fn floor(&self, now_ns: u64) -> Floor {
        Floor::new(self.options.run, now_ns, &self.acked[..self.lanes.len()])
    }

    /// The options of the run.
    pub fn options(&self) -> &WriterOptions {
        &self.options
    }

    /// Hands the log's buffered events to the system.
    pub fn flush_log(&mut self) -> io::Result<()> {
        self.log.flush()
    }

    /// What happened so far.
    pub fn report(&self, now_ns: u64) -> Report {
        let halted = self.lanes.iter().filter(|lane| lane.halted.is_some()).count();
        let unfinished = self.lanes.iter().map(|lane| lane.writes.len()).sum();
        self.counters.report(&self.options, self.floor(now_ns), halted, unfinished)
    }

    /// Ends the log. Returns what it was written to, and the final report.
    pub fn finish(mut self, now_ns: u64) -> io::Result<(W, Report)> {
        self.log.append(0, 0, Event::End, now_ns)?;
        self.log.flush()?;
        let report = self.report(now_ns);
        Ok((self.log.into_inner(), report))
    }

    fn take(
        &mut self,
        target: &mut dyn Target,
        completion: Completion,
        now_ns: u64,
    ) -> io::Result<()> {
        let depth = u32::from(self.options.queue_depth) + 1;
        let lane = (completion.slot / depth) as usize;
        let write = self.lanes[lane].writes.iter().position(|w| w.slot == completion.slot);
        match (write, completion.status) {
            (None, status) => return self.take_read(target, lane, status, now_ns),
            (Some(index), Status::Ok) => self.acknowledge(lane, index, now_ns)?,
            (Some(index), status) => self.fail(lane, index, status, now_ns)?,
        }
        Ok(())
    }

    fn acknowledge(&mut self, lane: usize, index: usize, now_ns: u64) -> io::Result<()> {
        let write = self.lanes[lane].finish_write(index);
        self.log.append(lane as u16, write.sequence, Event::Acknowledge, now_ns)?;
        self.acked[lane].insert(write.sequence);
        self.known[lane].insert(write.sequence);
        let blocks = &mut self.blocks[usize::from(write.extent.volume)];
        for address in write.extent.addresses() {
            // Nothing else of this block was in flight, so its version is this command's.
            let block = blocks.get_mut(address);
            block.visible = block.version;
        }
        let bytes = u64::from(write.extent.blocks) * u64::from(self.options.workload.block_bytes);
        self.counters.acked(bytes, write.issue_ns, now_ns);
        Ok(())
    }

    fn fail(&mut self, lane: usize, index: usize, status: Status, now_ns: u64) -> io::Result<()> {
        let write = &mut self.lanes[lane].writes[index];
        let event = Event::Error { status: status.code() };
        self.log.append(lane as u16, write.sequence, event, now_ns)?;
        self.counters.error(status);
        write.tries += 1;
        if write.tries <= self.options.retries_max && status.may_retry() {
            write.submit_at_ns = Some(now_ns + self.options.retry_pause_ns);
        } else {
            // Whether it took effect is unknown for ever, so nothing of this writer may follow.
            let write = self.lanes[lane].finish_write(index);
            self.lanes[lane].halted.get_or_insert((write.sequence, status));
        }
        Ok(())
    }

    fn take_read(
        &mut self,
        target: &mut dyn Target,
        lane: usize,
        status: Status,
        now_ns: u64,
    ) -> io::Result<()> {
        let Some(read) = self.lanes[lane].read.take() else {
            unreachable!("a completion for a slot without a command");
        };
        if status != Status::Ok {
            self.counters.error(status);
            return Ok(());
        }
        self.counters.reads += 1;
        let slot = self.lanes[lane].read_slot();
        let block = &target.buffer(slot)[..self.options.workload.block_bytes as usize];
        let header = match BlockHeader::parse(block) {
            Ok(header) if header.run() == self.options.run => header,
            // Content of before the run is fine as long as nothing need be visible.
            Ok(_) if read.visible == 0 => return Ok(()),
            Err(_) if read.visible == 0 && is_zero(block) => return Ok(()),
            Err(_) if !is_zero(block) => {
                self.counters.corrupt_reads += 1;
                return Ok(());
            }
            _ => {
                self.counters.stale_reads += 1;
                return Ok(());
            }
        };
        let (writer, sequence) = (usize::from(header.writer()), header.sequence());
        let version = header.version() as u32;
        let issued = self.lanes.get(writer).is_some_and(|l| (1..l.next).contains(&sequence));
        if !issued || (header.extent().volume, header.address()) != (read.volume, read.address) {
            self.counters.corrupt_reads += 1;
            return Ok(());
        }
        if version < read.visible {
            self.counters.stale_reads += 1;
            return Ok(());
        }
        let block = self.blocks[usize::from(read.volume)].get_mut(read.address);
        block.visible = block.visible.max(version);
        if !self.known[writer].contains(sequence) {
            let event = Event::Observe { by: lane as u16 };
            self.log.append(writer as u16, sequence, event, now_ns)?;
            self.known[writer].insert(sequence);
            self.counters.observed += 1;
        }
        Ok(())
    }

    /// Submits what the target had no room for, or what is due for a retry.
    fn submit_due(&mut self, target: &mut dyn Target, lane: usize, now_ns: u64) -> bool {
        let mut happened = false;
        for write in &mut self.lanes[lane].writes {
            if write.submit_at_ns.is_some_and(|at_ns| at_ns <= now_ns) {
                if target.submit(write.slot, write.request()).is_err() {
                    break;
                }
                write.submit_at_ns = None;
                happened = true;
            }
        }
        happened
    }

    fn issue_all(&mut self, target: &mut dyn Target, now_ns: u64) -> io::Result<bool> {
        let interval_ns = match self.options.rate_per_s {
            0 => 0,
            rate => 1_000_000_000 / rate.min(1_000_000_000),
        };
        self.due_ns = self.due_ns.max(now_ns.saturating_sub(CATCH_UP_NS));
        let mut happened = false;
        loop {
            let mut issued = false;
            for lane in 0..self.lanes.len() {
                if interval_ns > 0 && self.due_ns > now_ns {
                    return Ok(happened);
                }
                if self.lanes[lane].may_issue(self.acked[lane]) {
                    self.issue(target, lane, now_ns)?;
                    self.due_ns += interval_ns;
                    issued = true;
                }
            }
            if !issued {
                return Ok(happened);
            }
            happened = true;
        }
    }

    fn issue(&mut self, target: &mut dyn Target, lane: usize, now_ns: u64) -> io::Result<()> {
        let writer = lane as u16;
        let (sequence, extent, slot) = self.lanes[lane].begin_write(&self.options.workload);
        let issue_event = self.log.append(writer, sequence, Event::Issue(extent), now_ns)?;
        let stamp = CommandStamp {
            run: self.options.run,
            workload: self.workload,
            writer,
            sequence,
            extent,
            issue_event,
            issue_unix_ns: now_ns,
            known: self.known,
        };
        let blocks = &mut self.blocks[usize::from(extent.volume)];
        let bytes = usize::from(extent.blocks) * self.options.workload.block_bytes as usize;
        stamp.write(&mut target.buffer(slot)[..bytes], |address| {
            let block = blocks.get_mut(address);
            block.version += 1;
            block.version.into()
        });
        self.counters.issued += 1;
        let mut write =
            Write { slot, sequence, extent, issue_ns: now_ns, tries: 0, submit_at_ns: None };
        if target.submit(slot, write.request()).is_err() {
            write.submit_at_ns = Some(now_ns);
        }
        self.lanes[lane].writes.push(write);
        self.maybe_read(target, lane);
        Ok(())
    }

    /// Now and then reads a block of a command that another writer issued lately.
    fn maybe_read(&mut self, target: &mut dyn Target, lane: usize) {
        if self.options.reads_permille == 0
            || self.lanes[lane].read.is_some()
            || self.draws.below(PERMILLE.into()) >= self.options.reads_permille.into()
        {
            return;
        }
        let writers = self.lanes.len() as u64;
        let other = (lane as u64 + 1 + self.draws.below(writers.max(2) - 1)) % writers;
        let issued = self.lanes[other as usize].next - 1;
        let back = self.draws.below(u64::from(self.options.queue_depth) + 1);
        let Some(sequence) = issued.checked_sub(back).filter(|&sequence| sequence > 0) else {
            return;
        };
        let extent: Extent = self.options.workload.extent(other as u16, sequence);
        let address = extent.first + self.draws.below(extent.blocks.into());
        let visible = self.blocks[usize::from(extent.volume)].get(address).visible;
        let request = Request { op: Op::Read, volume: extent.volume, first: address, blocks: 1 };
        // A read that finds no room is not worth a second try.
        if target.submit(self.lanes[lane].read_slot(), request).is_ok() {
            self.lanes[lane].read = Some(Read { volume: extent.volume, address, visible });
        }
    }
}
