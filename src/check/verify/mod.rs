//! Data verification through an initiator: every kind of command in mixed sizes, each
//! read compared with what must be there.
//!
//! Unlike the dependent writer's, these data prove nothing about points in time; this
//! is about the path itself: that what is written is what is read, that zeros,
//! deallocated ranges and compares behave, at any alignment and length. Commands in
//! flight never overlap, so for every read there is one right answer (for
//! deallocated blocks, a few). At the end everything is read back.

mod model;

pub use model::{Content, Place};

use super::blockmap::BlockMap;
use super::target::{Completion, Geometry, Op, Request, Status, Target};
use super::workload::{Draws, SizeClass};
use super::writer::Latency;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// Examples of mismatches and of unexpected statuses that are kept.
const EXAMPLES_MAX: usize = 16;
/// Ranges of one deallocate at most.
const RANGES_MAX: u64 = 8;

/// How to verify.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Seeds every choice.
    pub seed: u64,
    /// Commands in flight.
    pub queue_depth: u32,
    /// Mix of lengths.
    pub sizes: Vec<SizeClass>,
    /// Blocks of each volume, from 0, that are used.
    pub span_blocks: u64,
    /// Stop after so many commands; 0 for no limit.
    pub commands_max: u64,
    /// Kinds of commands and their weights.
    pub mix: Vec<(Action, u16)>,
    /// Longest compare-and-write in blocks: the controller's atomic compare and write
    /// unit (ACWU), which is at least one.
    pub compare_and_write_blocks_max: u32,
    /// The volumes promise that deallocated blocks read as zeros.
    pub deallocated_reads_zeros: bool,
    /// The volumes hold zeros at the start.
    pub starts_with_zeros: bool,
}

impl VerifyOptions {
    /// Bytes that each slot's buffer must have.
    pub fn slot_bytes(&self, geometry: &Geometry) -> usize {
        let longest = self.sizes.iter().map(|size| usize::from(size.blocks)).max().unwrap_or(1);
        (2 * longest * geometry.block_bytes as usize).max(RANGES_MAX as usize * 16)
    }
}

/// What a command is meant to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Action {
    Read,
    Write,
    WriteFua,
    WriteZeroes,
    Deallocate,
    Flush,
    /// With what is there: succeeds.
    CompareEqual,
    /// With one bit changed: fails as a compare failure.
    CompareUnequal,
    /// Fused, with what is there: succeeds and writes.
    CompareAndWriteEqual,
    /// Fused, with one bit changed: fails as a compare failure and writes nothing.
    CompareAndWriteUnequal,
}

impl Action {
    /// All of them, with usual weights.
    pub const MIX: [(Self, u16); 10] = [
        (Self::Read, 30),
        (Self::Write, 40),
        (Self::WriteFua, 5),
        (Self::WriteZeroes, 6),
        (Self::Deallocate, 6),
        (Self::Flush, 1),
        (Self::CompareEqual, 5),
        (Self::CompareUnequal, 3),
        (Self::CompareAndWriteEqual, 3),
        (Self::CompareAndWriteUnequal, 1),
    ];

    /// The command that it takes.
    pub fn op(self) -> Op {
        match self {
            Self::Read => Op::Read,
            Self::Write => Op::Write,
            Self::WriteFua => Op::WriteFua,
            Self::WriteZeroes => Op::WriteZeroes,
            Self::Deallocate => Op::Deallocate,
            Self::Flush => Op::Flush,
            Self::CompareEqual | Self::CompareUnequal => Op::Compare,
            Self::CompareAndWriteEqual | Self::CompareAndWriteUnequal => Op::CompareAndWrite,
        }
    }

    fn must_miscompare(self) -> bool {
        matches!(self, Self::CompareUnequal | Self::CompareAndWriteUnequal)
    }

    fn needs_definite_content(self) -> bool {
        matches!(self.op(), Op::Compare | Op::CompareAndWrite)
    }
}

/// A block that was not what it must be.
#[derive(Clone, Debug, Serialize)]
pub struct Mismatch {
    /// Index of the volume.
    pub volume: u16,
    /// Block address.
    pub address: u64,
    /// What was expected.
    pub expected: Content,
    /// The first bytes found, hexadecimal.
    pub found: String,
    /// Whether in the read-back at the end.
    pub at_end: bool,
}

/// A completion that was not what it must be.
#[derive(Clone, Debug, Serialize)]
pub struct Unexpected {
    /// What was sent.
    pub action: Action,
    /// Index of the volume.
    pub volume: u16,
    /// First block.
    pub first: u64,
    /// Length in blocks.
    pub blocks: u32,
    /// How it ended.
    pub status: String,
}

/// What was verified.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Every command ended as it must and every block read was right.
    pub ok: bool,
    /// Seed, to run the same again.
    pub seed: u64,
    /// Commands that ended, by kind.
    pub commands: BTreeMap<Action, u64>,
    /// Kinds that the volumes do not take.
    pub not_supported: Vec<Action>,
    /// Compare-and-writes that a path refused as not for it: they changed nothing.
    pub refused: u64,
    /// Blocks read and compared.
    pub blocks_compared: u64,
    /// Bytes written and read.
    pub bytes: u64,
    /// Blocks that were not what they must be.
    pub mismatches: u64,
    /// The first of them.
    pub mismatch_examples: Vec<Mismatch>,
    /// Completions that were not what they must be.
    pub unexpected: u64,
    /// The first of them.
    pub unexpected_examples: Vec<Unexpected>,
    /// Of all commands, nanoseconds.
    pub latency_ns: Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    volume: u16,
    first: u64,
    blocks: u32,
}

impl Range {
    fn overlaps(&self, other: &Self) -> bool {
        self.volume == other.volume
            && self.first < other.first + u64::from(other.blocks)
            && other.first < self.first + u64::from(self.blocks)
    }

    fn addresses(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.blocks)
    }
}

#[derive(Debug)]
struct Flight {
    action: Action,
    ranges: Vec<Range>,
    tag: u32,
    request: Request,
    since_ns: u64,
    submitted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Mixed,
    Draining,
    /// Reading everything back; the next block of the current volume.
    ReadBack {
        volume: u16,
        address: u64,
    },
    Done,
}

/// The engine; polled like the writer.
#[derive(Debug)]
pub struct Verifier {
    options: VerifyOptions,
    geometry: Geometry,
    blocks: Vec<BlockMap<Content>>,
    flights: Vec<Option<Flight>>,
    /// A command that waits for one in flight that it overlaps.
    waiting: Option<Flight>,
    draws: Draws,
    next_tag: u32,
    started: u64,
    phase: Phase,
    report: VerifyReport,
    latency: Histogram<u64>,
    scratch: Vec<u8>,
    ended: Vec<Completion>,
}

impl Verifier {
    /// Starts on `target`, which has been given slots. Kinds of commands that it does not
    /// take are left out, and named in the report.
    pub fn start(mut options: VerifyOptions, target: &dyn Target) -> Self {
        let geometry = target.geometry().clone();
        let (taken, refused): (Vec<_>, Vec<_>) =
            options.mix.iter().partition(|(action, _)| target.supports(action.op()));
        options.mix = taken;
        let report = VerifyReport {
            seed: options.seed,
            not_supported: refused.into_iter().map(|(action, _)| action).collect(),
            ..VerifyReport::default()
        };
        Self {
            blocks: vec![BlockMap::default(); geometry.volume_blocks.len()],
            flights: (0..options.queue_depth).map(|_| None).collect(),
            waiting: None,
            draws: Draws::new(options.seed, 1, 1),
            next_tag: 1,
            started: 0,
            phase: Phase::Mixed,
            report,
            latency: Histogram::new_with_bounds(1, 600_000_000_000, 3)
                .expect("constant bounds that the histogram allows"),
            scratch: vec![0; geometry.block_bytes as usize],
            ended: Vec::new(),
            geometry,
            options,
        }
    }

    /// Takes what ended and starts what can be started. Returns whether anything happened.
    pub fn turn(&mut self, target: &mut dyn Target, now_ns: u64) -> bool {
        let mut ended = std::mem::take(&mut self.ended);
        target.poll(&mut ended);
        let mut happened = !ended.is_empty();
        for completion in ended.drain(..) {
            self.take(target, completion, now_ns);
        }
        self.ended = ended;
        let mut more = true;
        for slot in 0..self.flights.len() {
            if let Some(flight) = self.flights[slot].as_mut() {
                if !flight.submitted {
                    flight.submitted = target.submit(slot as u32, flight.request).is_ok();
                    happened |= flight.submitted;
                }
            } else if more {
                match self.next(now_ns) {
                    Some(flight) => self.begin(target, slot, flight),
                    // Commands further on may still have to be submitted.
                    None => more = false,
                }
                happened |= more;
            }
        }
        let idle = self.flights.iter().all(Option::is_none);
        self.phase = match self.phase {
            Phase::Draining if idle => Phase::ReadBack { volume: 0, address: 0 },
            Phase::ReadBack { volume, .. } if idle && usize::from(volume) == self.blocks.len() => {
                Phase::Done
            }
            phase => phase,
        };
        happened
    }

    /// Starts no more commands; what is in flight ends, then everything is read back.
    pub fn stop(&mut self) {
        if self.phase == Phase::Mixed {
            self.waiting = None;
            self.phase = Phase::Draining;
        }
    }

    /// Whether everything has been read back.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// What was verified so far; `ok` only once [done](Self::is_done).
    pub fn report(&self) -> VerifyReport {
        VerifyReport {
            ok: self.is_done() && self.report.mismatches == 0 && self.report.unexpected == 0,
            latency_ns: Latency::of(&self.latency),
            ..self.report.clone()
        }
    }

    fn content(&self, volume: u16, address: u64) -> Content {
        match self.blocks[usize::from(volume)].get(address) {
            Content::Initial if self.options.starts_with_zeros => Content::Zeros,
            content => content,
        }
    }

    fn place(&self, volume: u16, address: u64) -> Place {
        Place { seed: self.options.seed, volume, address }
    }

    /// The next command, unless it has to wait.
    fn next(&mut self, now_ns: u64) -> Option<Flight> {
        let mut flight = match self.phase {
            Phase::Mixed => {
                if self.options.commands_max > 0 && self.started >= self.options.commands_max {
                    self.stop();
                    return None;
                }
                self.waiting.take().or_else(|| self.draw(now_ns))?
            }
            Phase::ReadBack { volume, address } => return self.read_back(volume, address, now_ns),
            Phase::Draining | Phase::Done => return None,
        };
        let busy = self.flights.iter().flatten().any(|other| {
            flight.ranges.iter().any(|range| other.ranges.iter().any(|o| o.overlaps(range)))
        });
        if busy {
            self.waiting = Some(flight);
            return None;
        }
        self.started += 1;
        // Only now, with nothing on these blocks in flight, is it known what they hold.
        let definite = |range: &Range| {
            range.addresses().all(|address| self.content(range.volume, address).is_definite())
        };
        if flight.action.needs_definite_content() && !flight.ranges.iter().all(definite) {
            flight.action = Action::Write;
            flight.request.op = Op::Write;
        }
        Some(flight)
    }

    fn draw(&mut self, now_ns: u64) -> Option<Flight> {
        let total: u64 = self.options.mix.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut pick = self.draws.below(total);
        let (action, _) = *self.options.mix.iter().find(|(_, weight)| {
            let found = pick < u64::from(*weight);
            pick = pick.saturating_sub(u64::from(*weight));
            found
        })?;
        let count = match action {
            Action::Deallocate => 1 + self.draws.below(RANGES_MAX),
            Action::Flush => 0,
            _ => 1,
        };
        let volume = self.draws.below(self.blocks.len() as u64) as u16;
        let mut ranges: Vec<Range> = Vec::new();
        for _ in 0..count {
            let size = self.draws.below(self.options.sizes.len() as u64) as usize;
            let longest = match action.op() {
                Op::CompareAndWrite => self.options.compare_and_write_blocks_max.into(),
                _ => self.options.span_blocks,
            };
            let blocks = u64::from(self.options.sizes[size].blocks).min(longest);
            let first = self.draws.below(self.options.span_blocks - blocks + 1);
            let range = Range { volume, first, blocks: blocks as u32 };
            // Ranges of one deallocate may not touch the same block twice.
            if ranges.iter().all(|other| !other.overlaps(&range)) {
                ranges.push(range);
            }
        }
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1);
        let first = ranges.first().map_or(0, |range| range.first);
        let blocks = match action {
            Action::Deallocate => ranges.len() as u32,
            _ => ranges.first().map_or(0, |range| range.blocks),
        };
        let request = Request { op: action.op(), volume, first, blocks };
        Some(Flight { action, ranges, tag, request, since_ns: now_ns, submitted: false })
    }

    fn read_back(&mut self, volume: u16, address: u64, now_ns: u64) -> Option<Flight> {
        if usize::from(volume) == self.blocks.len() {
            return None;
        }
        let longest = self.options.sizes.iter().map(|size| u64::from(size.blocks)).max()?;
        let blocks = longest.min(self.options.span_blocks - address);
        let end = address + blocks;
        self.phase = match end < self.options.span_blocks {
            true => Phase::ReadBack { volume, address: end },
            false => Phase::ReadBack { volume: volume + 1, address: 0 },
        };
        let range = Range { volume, first: address, blocks: blocks as u32 };
        let request = Request { op: Op::Read, volume, first: address, blocks: blocks as u32 };
        Some(Flight {
            action: Action::Read,
            ranges: vec![range],
            tag: 0,
            request,
            since_ns: now_ns,
            submitted: false,
        })
    }

    /// Fills the buffer and submits.
    fn begin(&mut self, target: &mut dyn Target, slot: usize, mut flight: Flight) {
        let size = self.geometry.block_bytes as usize;
        let buffer = target.buffer(slot as u32);
        match flight.action {
            Action::Write | Action::WriteFua => self.fill_tag(&flight, buffer),
            Action::CompareEqual | Action::CompareUnequal => self.fill_content(&flight, buffer),
            Action::CompareAndWriteEqual | Action::CompareAndWriteUnequal => {
                let (compared, written) =
                    buffer.split_at_mut(flight.request.blocks as usize * size);
                self.fill_content(&flight, compared);
                self.fill_tag(&flight, written);
            }
            Action::Deallocate => {
                for (range, bytes) in flight.ranges.iter().zip(buffer.chunks_exact_mut(16)) {
                    bytes[..4].fill(0);
                    bytes[4..8].copy_from_slice(&range.blocks.to_le_bytes());
                    bytes[8..].copy_from_slice(&range.first.to_le_bytes());
                }
            }
            // A read that brings nothing must not find the right data left over.
            Action::Read => buffer[..flight.request.blocks as usize * size].fill(0xa5),
            Action::WriteZeroes | Action::Flush => {}
        }
        if flight.action.must_miscompare() {
            let bits = u64::from(flight.request.blocks) * size as u64 * 8;
            let bit = self.draws.below(bits) as usize;
            buffer[bit / 8] ^= 1 << (bit % 8);
        }
        flight.submitted = target.submit(slot as u32, flight.request).is_ok();
        self.flights[slot] = Some(flight);
    }

    fn fill_tag(&self, flight: &Flight, buffer: &mut [u8]) {
        let size = self.geometry.block_bytes as usize;
        for range in &flight.ranges {
            for (address, block) in range.addresses().zip(buffer.chunks_exact_mut(size)) {
                self.place(range.volume, address).fill(flight.tag, block);
            }
        }
    }

    fn fill_content(&self, flight: &Flight, buffer: &mut [u8]) {
        let size = self.geometry.block_bytes as usize;
        for range in &flight.ranges {
            for (address, block) in range.addresses().zip(buffer.chunks_exact_mut(size)) {
                let content = self.content(range.volume, address);
                self.place(range.volume, address).fill_with(content, block);
            }
        }
    }

    fn take(&mut self, target: &mut dyn Target, completion: Completion, now_ns: u64) {
        let flight = self.flights[completion.slot as usize].take();
        let flight = flight.expect("a completion for a slot without a command");
        let elapsed = now_ns.saturating_sub(flight.since_ns).max(1);
        self.latency.saturating_record(elapsed);
        *self.report.commands.entry(flight.action).or_default() += 1;
        let status = completion.status;
        let refused = flight.action.op() == Op::CompareAndWrite && status.is_path_related();
        self.report.refused += u64::from(refused);
        let as_it_must = match flight.action.must_miscompare() {
            _ if refused => true,
            true => status.is_compare_failure(),
            false => status == Status::Ok,
        };
        if !as_it_must {
            self.report.unexpected += 1;
            if self.report.unexpected_examples.len() < EXAMPLES_MAX {
                self.report.unexpected_examples.push(Unexpected {
                    action: flight.action,
                    volume: flight.request.volume,
                    first: flight.request.first,
                    blocks: flight.request.blocks,
                    status: status.to_string(),
                });
            }
        }
        if flight.action == Action::Read {
            if as_it_must {
                self.compare(&flight, target.buffer(completion.slot));
            }
            return;
        }
        if flight.action.op() == Op::Write || flight.action.op() == Op::WriteFua {
            let blocks = u64::from(flight.request.blocks);
            self.report.bytes += blocks * u64::from(self.geometry.block_bytes);
        }
        let zeros = self.options.deallocated_reads_zeros;
        for range in &flight.ranges {
            for address in range.addresses() {
                let before = self.content(range.volume, address);
                let after = match flight.action {
                    // A compare changes nothing, however it ends.
                    Action::CompareEqual | Action::CompareUnequal => before,
                    _ if refused => before,
                    _ if !as_it_must => Content::Unknown,
                    Action::Write | Action::WriteFua | Action::CompareAndWriteEqual => {
                        Content::Data(flight.tag)
                    }
                    Action::WriteZeroes => Content::Zeros,
                    Action::Deallocate => before.deallocated(zeros),
                    Action::CompareAndWriteUnequal | Action::Flush | Action::Read => before,
                };
                *self.blocks[usize::from(range.volume)].get_mut(address) = after;
            }
        }
    }

    fn compare(&mut self, flight: &Flight, buffer: &[u8]) {
        let size = self.geometry.block_bytes as usize;
        let mut scratch = std::mem::take(&mut self.scratch);
        for range in &flight.ranges {
            for (address, found) in range.addresses().zip(buffer.chunks_exact(size)) {
                let expected = self.content(range.volume, address);
                let place = self.place(range.volume, address);
                match place.judge(expected, found, &mut scratch) {
                    Some(now) if now == expected => {}
                    Some(now) => *self.blocks[usize::from(range.volume)].get_mut(address) = now,
                    None => self.mismatch(range.volume, address, expected, found),
                }
                self.report.blocks_compared += u64::from(!expected.is_open());
                self.report.bytes += size as u64;
            }
        }
        self.scratch = scratch;
    }

    fn mismatch(&mut self, volume: u16, address: u64, expected: Content, found: &[u8]) {
        self.report.mismatches += 1;
        if self.report.mismatch_examples.len() < EXAMPLES_MAX {
            self.report.mismatch_examples.push(Mismatch {
                volume,
                address,
                expected,
                found: found[..32].iter().map(|byte| format!("{byte:02x}")).collect(),
                at_end: matches!(self.phase, Phase::ReadBack { .. }),
            });
        }
    }
}
