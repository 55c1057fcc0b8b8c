//! A primary in memory that completes commands in any order, histories written to
//! it, and images of any cut of them.
#![allow(dead_code, unreachable_pub, reason = "each test binary includes this and uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use setline::check::block::RunId;
use setline::check::images::{Floor, Images, MemorySource, ScanOptions, Source, Verdict, check};
use setline::check::log::Log;
use setline::check::target::{Completion, Full, Geometry, NoMemory, Op, Request, Status, Target};
use setline::check::workload::{Draws, Extent, SizeClass, Workload};
use setline::check::writer::{Report, Writer, WriterOptions};
use std::collections::BTreeMap;

/// Volumes in memory. A command takes effect at some poll and completes at a later one.
pub struct Ram {
    geometry: Geometry,
    buffers: Vec<Vec<u8>>,
    pub volumes: Vec<Vec<u8>>,
    flying: Vec<Flying>,
    draws: Draws,
    /// Polls a command may take.
    pub slowness: u64,
    /// Of 1000 commands, how many end with an error, half of them after taking effect.
    pub error_permille: u64,
    /// Of 1000 submissions, how many find no room.
    pub full_permille: u64,
    /// Reads return what was there this many writes ago (a broken primary), if set.
    pub stale_reads: bool,
    before: Vec<Vec<u8>>,
    /// All write data, by the command's extent, in the order of submission.
    pub submitted: Vec<(Extent, Vec<u8>)>,
}

struct Flying {
    slot: u32,
    request: Request,
    data: Vec<u8>,
    effect_in: u64,
    end_in: u64,
    status: Status,
    applied: bool,
}

impl Ram {
    pub fn new(seed: u64, options: &WriterOptions) -> Self {
        let workload = &options.workload;
        let bytes = (workload.span_blocks * u64::from(workload.block_bytes)) as usize;
        let volumes = vec![vec![0; bytes]; workload.volumes.into()];
        Self {
            geometry: Geometry {
                block_bytes: workload.block_bytes,
                volume_blocks: vec![workload.span_blocks; workload.volumes.into()],
                transfer_blocks_max: workload.blocks_max().into(),
            },
            buffers: vec![vec![0; options.slot_bytes()]; options.slots() as usize],
            before: volumes.clone(),
            volumes,
            flying: Vec::new(),
            draws: Draws::new(seed, 0xfeed, 1),
            slowness: 4,
            error_permille: 0,
            full_permille: 0,
            stale_reads: false,
            submitted: Vec::new(),
        }
    }
}

impl Target for Ram {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn make_slots(&mut self, count: u32, bytes: usize) -> Result<(), NoMemory> {
        self.buffers = vec![vec![0; bytes]; count as usize];
        Ok(())
    }

    fn slots(&self) -> u32 {
        self.buffers.len() as u32
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        assert!(self.flying.iter().all(|flying| flying.slot != slot), "slot in flight");
        &mut self.buffers[slot as usize]
    }

    fn submit(&mut self, slot: u32, request: Request) -> Result<(), Full> {
        assert!(self.flying.iter().all(|flying| flying.slot != slot), "slot in flight");
        if self.draws.below(1000) < self.full_permille {
            return Err(Full);
        }
        let bytes = request.blocks as usize * self.geometry.block_bytes as usize;
        let data = self.buffers[slot as usize][..bytes].to_vec();
        if request.op == Op::Write {
            let extent = Extent {
                volume: request.volume,
                first: request.first,
                blocks: request.blocks as u16,
            };
            self.submitted.push((extent, data.clone()));
        }
        let effect_in = self.draws.below(self.slowness);
        let failed = self.draws.below(1000) < self.error_permille;
        self.flying.push(Flying {
            slot,
            request,
            data,
            effect_in,
            end_in: effect_in + self.draws.below(self.slowness),
            status: match failed {
                true => Status::Nvme { sct: 0, sc: 6, dnr: false },
                false => Status::Ok,
            },
            applied: failed && self.draws.below(2) == 0,
        });
        Ok(())
    }

    fn poll(&mut self, ended: &mut Vec<Completion>) {
        let block_bytes = self.geometry.block_bytes as usize;
        for flying in &mut self.flying {
            if flying.effect_in > 0 {
                flying.effect_in -= 1;
            } else if !flying.applied {
                flying.applied = true;
                let at = flying.request.first as usize * block_bytes;
                let range = at..at + flying.data.len();
                let volume = usize::from(flying.request.volume);
                match flying.request.op {
                    Op::Write => {
                        let now = self.volumes[volume][range.clone()].to_vec();
                        self.before[volume][range.clone()].copy_from_slice(&now);
                        self.volumes[volume][range].copy_from_slice(&flying.data);
                    }
                    Op::Read => {
                        let source = if self.stale_reads { &self.before } else { &self.volumes };
                        flying.data.copy_from_slice(&source[volume][range]);
                    }
                    op => panic!("{op:?}"),
                }
            }
            if flying.applied && flying.end_in > 0 {
                flying.end_in -= 1;
            }
        }
        let mut index = 0;
        while index < self.flying.len() {
            if self.flying[index].applied && self.flying[index].end_in == 0 {
                let flying = self.flying.remove(index);
                if flying.request.op == Op::Read {
                    self.buffers[flying.slot as usize][..flying.data.len()]
                        .copy_from_slice(&flying.data);
                }
                ended.push(Completion { slot: flying.slot, status: flying.status });
            } else {
                index += 1;
            }
        }
    }

    fn supports(&self, op: Op) -> bool {
        matches!(op, Op::Write | Op::Read)
    }
}

pub fn options(seed: u64) -> WriterOptions {
    WriterOptions {
        run: RunId(u128::from(seed).to_be_bytes()),
        workload: Workload {
            seed,
            block_bytes: 512,
            volumes: 4,
            writers: 4,
            span_blocks: 1024,
            stripe_blocks: 16,
            hot_permille: 500,
            hot_stripes: 1,
            sizes: vec![
                SizeClass { blocks: 1, weight: 4 },
                SizeClass { blocks: 8, weight: 3 },
                SizeClass { blocks: 13, weight: 1 },
            ],
        },
        queue_depth: 4,
        rate_per_s: 0,
        reads_permille: 100,
        retries_max: 3,
        retry_pause_ns: 5,
    }
}

/// What a writer did, with all that it wrote.
pub struct History {
    pub log: Log,
    pub report: Report,
    /// Data of each command.
    pub data: BTreeMap<(u16, u64), Vec<u8>>,
    pub final_volumes: Vec<Vec<u8>>,
}

impl History {
    /// Runs a writer until it has issued at least `writes`; `drain` waits for what is in flight.
    pub fn run(options: WriterOptions, writes: u64, drain: bool, tune: impl Fn(&mut Ram)) -> Self {
        let mut ram = Ram::new(options.workload.seed, &options);
        tune(&mut ram);
        options.validate(&ram).unwrap();
        let mut writer = Writer::start(options.clone(), Vec::new(), 1000).unwrap();
        let mut now = 1000;
        while writer.report(now).issued_writes < writes && !writer.is_halted() {
            now += 10;
            writer.turn(&mut ram, now).unwrap();
        }
        writer.stop();
        while drain && writer.in_flight() > 0 {
            now += 10;
            writer.turn(&mut ram, now).unwrap();
        }
        let (bytes, report) = writer.finish(now).unwrap();
        let log = Log::read(&bytes[..]).unwrap();
        assert!(log.complete);
        let mut data = BTreeMap::new();
        for (_, bytes) in &ram.submitted {
            let header = setline::check::block::BlockHeader::parse(&bytes[..512]).unwrap();
            data.insert((header.writer(), header.sequence()), bytes.clone());
        }
        Self { log, report, data, final_volumes: ram.volumes }
    }

    pub fn workload(&self) -> &Workload {
        &self.log.workload
    }

    /// All commands as (writer, sequence), in the order of issue.
    pub fn commands(&self) -> Vec<(u16, u64)> {
        let mut commands: Vec<_> = (0..)
            .zip(&self.log.commands)
            .flat_map(|(writer, list)| {
                (1..).zip(list).map(move |(s, f)| (f.issue_event, writer, s))
            })
            .collect();
        commands.sort_unstable();
        commands.into_iter().map(|(_, writer, sequence)| (writer, sequence)).collect()
    }

    pub fn extent(&self, (writer, sequence): (u16, u64)) -> Extent {
        self.workload().extent(writer, sequence)
    }

    pub fn issued(&self, (writer, sequence): (u16, u64)) -> u64 {
        self.log.command(writer, sequence).unwrap().issue_event
    }

    pub fn known(&self, (writer, sequence): (u16, u64)) -> u64 {
        self.log.command(writer, sequence).unwrap().known_event
    }

    /// A closed set of commands: those known before `event`, and those in flight then
    /// for which `pick` says so.
    pub fn cut(&self, event: u64, mut pick: impl FnMut() -> bool) -> Vec<(u16, u64)> {
        self.commands()
            .into_iter()
            .filter(|&c| self.known(c) < event || (self.issued(c) < event && pick()))
            .collect()
    }

    /// Contents after applying `commands` in that order.
    pub fn apply(&self, commands: &[(u16, u64)]) -> Contents {
        let mut contents = Contents::new(self.workload());
        for &command in commands {
            contents.apply(self, command);
        }
        contents
    }

    /// Bytes of volumes with these contents.
    pub fn render(&self, contents: &Contents) -> Vec<Vec<u8>> {
        let size = self.workload().block_bytes as usize;
        let mut volumes = vec![];
        for volume in &contents.0 {
            let mut bytes = vec![0; volume.len() * size];
            for (address, command) in volume.iter().enumerate() {
                let Some(command) = command else { continue };
                let at = (address - self.extent(*command).first as usize) * size;
                bytes[address * size..][..size].copy_from_slice(&self.data[command][at..at + size]);
            }
            volumes.push(bytes);
        }
        volumes
    }

    /// The verdict with the log, and the one without; the floor only with the first.
    pub fn judge(&self, volumes: &[Vec<u8>], floor: Option<&Floor>) -> (Verdict, Verdict) {
        let scan = |options: &ScanOptions| {
            let sources = volumes
                .iter()
                .map(|bytes| Box::new(MemorySource(bytes)) as Box<dyn Source + '_>)
                .collect();
            Images::scan(sources, options).unwrap()
        };
        let with = check(&scan(&ScanOptions::of_log(&self.log)), Some(&self.log), floor);
        let without = check(&scan(&ScanOptions::default()), None, None);
        (with, without)
    }
}

/// Per volume and block, the command whose data it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contents(pub Vec<Vec<Option<(u16, u64)>>>);

impl Contents {
    pub fn new(workload: &Workload) -> Self {
        Self(vec![vec![None; workload.span_blocks as usize]; workload.volumes.into()])
    }

    pub fn apply(&mut self, history: &History, command: (u16, u64)) {
        let extent = history.extent(command);
        for address in extent.addresses() {
            self.0[usize::from(extent.volume)][address as usize] = Some(command);
        }
    }
}
