//! The verifier of `setline-check` accepts volumes that behave and sees each way in
//! which they may not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use setline::check::target::{Completion, Full, Geometry, NoMemory, Op, Request, Status, Target};
use setline::check::verify::{Action, Verifier, VerifyOptions, VerifyReport};
use setline::check::workload::SizeClass;

const BLOCK: usize = 512;
const BLOCKS: u64 = 256;

/// What a volume does wrong, now and then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Nothing,
    LosesAWrite,
    ShiftsAWriteByABlock,
    LosesTheLastBlockOfAWrite,
    SendsAWriteToTheOtherVolume,
    IgnoresWriteZeroes,
    ZeroesABlockTooMuch,
    IgnoresTheSecondDeallocateRange,
    DeallocatesABlockTooMuch,
    LiesOnCompare,
    WritesAfterAMiscompare,
    ReadsNothing,
    FailsAWrite,
    FailsACompareWithoutCause,
}

struct Volumes {
    geometry: Geometry,
    buffers: Vec<Vec<u8>>,
    data: Vec<Vec<u8>>,
    ended: Vec<Completion>,
    wrong: Wrong,
    commands: u64,
    ones: bool,
}

impl Volumes {
    fn new(wrong: Wrong) -> Self {
        Self {
            geometry: Geometry {
                block_bytes: BLOCK as u32,
                volume_blocks: vec![BLOCKS; 2],
                transfer_blocks_max: 64,
            },
            buffers: Vec::new(),
            data: vec![vec![0; BLOCKS as usize * BLOCK]; 2],
            ended: Vec::new(),
            wrong,
            commands: 0,
            ones: false,
        }
    }

    fn run(&mut self, slot: u32, request: Request) -> Status {
        let bit = self.commands.is_multiple_of(97);
        let wrong = if bit { self.wrong } else { Wrong::Nothing };
        let (blocks, buffer) = (request.blocks as usize, &mut self.buffers[slot as usize]);
        let mut at = request.first as usize * BLOCK;
        let bytes = blocks * BLOCK;
        let mut volume = usize::from(request.volume);
        match request.op {
            Op::Read => {
                if wrong != Wrong::ReadsNothing {
                    buffer[..bytes].copy_from_slice(&self.data[volume][at..at + bytes]);
                }
            }
            Op::Write | Op::WriteFua => {
                let mut length = bytes;
                match wrong {
                    Wrong::FailsAWrite => return Status::Nvme { sct: 2, sc: 0x80, dnr: true },
                    Wrong::LosesAWrite => length = 0,
                    Wrong::LosesTheLastBlockOfAWrite => length -= BLOCK,
                    Wrong::ShiftsAWriteByABlock if at > 0 => at -= BLOCK,
                    Wrong::SendsAWriteToTheOtherVolume => volume = 1 - volume,
                    _ => {}
                }
                self.data[volume][at..at + length].copy_from_slice(&buffer[..length]);
            }
            Op::WriteZeroes => {
                if wrong != Wrong::IgnoresWriteZeroes {
                    let more = usize::from(wrong == Wrong::ZeroesABlockTooMuch) * BLOCK;
                    let end = (at + bytes + more).min(self.data[volume].len());
                    self.data[volume][at..end].fill(0);
                }
            }
            Op::Deallocate => {
                for (number, range) in buffer[..blocks * 16].chunks(16).enumerate() {
                    let word = |at: usize| {
                        u32::from_le_bytes(range[at..at + 4].try_into().unwrap()) as usize
                    };
                    if number == 1 && wrong == Wrong::IgnoresTheSecondDeallocateRange {
                        continue;
                    }
                    let more = usize::from(wrong == Wrong::DeallocatesABlockTooMuch);
                    let end = (word(8) + word(4) + more).min(BLOCKS as usize);
                    let value = if self.ones { 0xff } else { 0 };
                    self.data[volume][word(8) * BLOCK..end * BLOCK].fill(value);
                }
            }
            Op::Compare | Op::CompareAndWrite => {
                let equal = self.data[volume][at..at + bytes] == buffer[..bytes];
                if wrong == Wrong::FailsACompareWithoutCause
                    || (!equal && wrong != Wrong::LiesOnCompare)
                {
                    if request.op == Op::CompareAndWrite
                        && self.wrong == Wrong::WritesAfterAMiscompare
                    {
                        self.data[volume][at..at + bytes]
                            .copy_from_slice(&buffer[bytes..2 * bytes]);
                    }
                    return Status::COMPARE_FAILURE;
                }
                if request.op == Op::CompareAndWrite {
                    self.data[volume][at..at + bytes].copy_from_slice(&buffer[bytes..2 * bytes]);
                }
            }
            Op::Flush => {}
        }
        Status::Ok
    }
}

impl Target for Volumes {
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
        &mut self.buffers[slot as usize]
    }

    fn submit(&mut self, slot: u32, request: Request) -> Result<(), Full> {
        self.commands += 1;
        if self.commands.is_multiple_of(11) {
            return Err(Full);
        }
        let status = self.run(slot, request);
        // Ends at the second poll after, in the reverse order.
        self.ended.insert(0, Completion { slot, status });
        Ok(())
    }

    fn poll(&mut self, ended: &mut Vec<Completion>) {
        let half = self.ended.len().div_ceil(2);
        ended.extend(self.ended.drain(..half));
    }

    fn supports(&self, _op: Op) -> bool {
        true
    }
}

fn verify(volumes: &mut Volumes, zeros: bool) -> VerifyReport {
    let options = VerifyOptions {
        seed: 7,
        queue_depth: 8,
        sizes: [1, 2, 7, 16].map(|blocks| SizeClass { blocks, weight: 1 }).to_vec(),
        span_blocks: BLOCKS,
        commands_max: 20_000,
        mix: Action::MIX.to_vec(),
        compare_and_write_blocks_max: 7,
        deallocated_reads_zeros: zeros,
        starts_with_zeros: true,
    };
    volumes.make_slots(8, options.slot_bytes(&volumes.geometry)).unwrap();
    let mut verifier = Verifier::start(options, volumes);
    for now in 0..1_000_000 {
        verifier.turn(volumes, now);
        if verifier.is_done() {
            return verifier.report();
        }
    }
    panic!("does not end: {:?}", verifier.report());
}

#[test]
fn volumes_that_behave_are_accepted_with_every_kind_of_command() {
    let report = verify(&mut Volumes::new(Wrong::Nothing), true);
    assert!(report.ok, "{report:?}");
    assert_eq!(report.commands.len(), Action::MIX.len());
    let mixed: u64 = report.commands.values().sum::<u64>() - 2 * BLOCKS / 16;
    assert_eq!(mixed, 20_000);
    assert!(report.blocks_compared > 10_000);
}

#[test]
fn deallocated_blocks_may_read_as_ones_unless_zeros_are_promised() {
    let ones = |promised| {
        let mut volumes = Volumes::new(Wrong::Nothing);
        volumes.ones = true;
        verify(&mut volumes, promised)
    };
    let report = ones(false);
    assert!(report.ok, "{report:?}");
    assert!(!ones(true).ok);
}

#[test]
fn each_way_to_misbehave_is_seen() {
    use Wrong::*;
    for wrong in [
        LosesAWrite,
        ShiftsAWriteByABlock,
        LosesTheLastBlockOfAWrite,
        SendsAWriteToTheOtherVolume,
        IgnoresWriteZeroes,
        ZeroesABlockTooMuch,
        IgnoresTheSecondDeallocateRange,
        DeallocatesABlockTooMuch,
        WritesAfterAMiscompare,
        ReadsNothing,
    ] {
        let report = verify(&mut Volumes::new(wrong), true);
        assert!(!report.ok && report.mismatches > 0, "{wrong:?}: {report:?}");
        assert!(!report.mismatch_examples.is_empty());
    }
    for wrong in [LiesOnCompare, FailsAWrite, FailsACompareWithoutCause] {
        let report = verify(&mut Volumes::new(wrong), true);
        assert!(!report.ok && report.unexpected > 0, "{wrong:?}: {report:?}");
    }
}
