//! Crash images: at random moments of a random history the power goes, and the disk
//! keeps a prefix or any other selection of the unflushed 4 KiB blocks.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Record(usize),
    Manifest(usize),
    Mark,
    Flush,
    Seal,
    Complete(usize),
    Retire(usize),
    Checkpoint,
    /// Look at what crashes now would leave; go on with one of them.
    Crash {
        seed: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![Just(0), Just(512), Just(4096), Just(12_800), Just(512), 1usize..9000];
    prop_oneof![
        8 => len.prop_map(Op::Record),
        2 => (0usize..9000).prop_map(Op::Manifest),
        2 => Just(Op::Mark),
        3 => Just(Op::Flush),
        4 => Just(Op::Seal),
        8 => any::<usize>().prop_map(Op::Complete),
        3 => any::<usize>().prop_map(Op::Retire),
        1 => Just(Op::Checkpoint),
        2 => any::<u64>().prop_map(|seed| Op::Crash { seed }),
    ]
}

/// What must be there after a crash.
#[derive(Default)]
struct Oracle {
    /// All entries appended and not retired long ago, in order.
    entries: Vec<(JournalPos, Owned)>,
    /// Entries from this position on must still be there.
    retired: JournalPos,
    set: u64,
}

impl Oracle {
    /// Checks what was found: a gapless run of what was appended, from before the
    /// retired position up to at least what was durable.
    fn check(&self, found: &[(JournalPos, Owned)], durable: JournalPos) {
        let start = match found.first() {
            Some((first, _)) => self.entries.partition_point(|(position, _)| position < first),
            None => self.entries.partition_point(|(position, _)| *position < self.retired),
        };
        let first_needed = self.entries.partition_point(|(position, _)| *position < self.retired);
        let end = start + found.len();
        assert!(start <= first_needed, "entry {start} is the first, {first_needed} is needed");
        assert_eq!(found, &self.entries[start..end]);
        let durable = self.entries.partition_point(|(position, _)| *position < durable);
        assert!(end >= durable, "{end} entries are there, {durable} were durable");
    }
}

/// A small generator for selections of blocks (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Selections of the unflushed blocks that keep few, half, and most.
fn selections(disk: &Disk, seed: u64, count: usize) -> impl Iterator<Item = Disk> {
    let mut random = Random(seed | 1);
    (0..count).map(move |round| {
        let odds = [1, 4, 7][round % 3];
        disk.crash(|_| random.next() % 8 < odds)
    })
}

/// Every prefix of the unflushed blocks, and selections.
fn images(disk: &Disk, seed: u64) -> Vec<Disk> {
    let prefixes = (0..=disk.unflushed()).map(|kept| disk.crash(|index| index < kept));
    prefixes.chain(selections(disk, seed, 18)).collect()
}

fn run(ops: Vec<Op>, extra_blocks: u64) {
    let config = config(extra_blocks);
    let mut rig = Rig::format(config);
    let mut oracle = Oracle::default();
    for (number, op) in ops.into_iter().enumerate() {
        let entry = match op {
            Op::Record(len) => Some(Owned::record(number as u64, oracle.set, len)),
            Op::Manifest(len) => {
                Some(Owned::Manifest { set: oracle.set, bytes: vec![number as u8; len] })
            }
            Op::Mark => {
                oracle.set += 1;
                Some(Owned::Commit { set: oracle.set, cut_time_ns: number as u64 })
            }
            Op::Flush => {
                rig.journal.flush();
                None
            }
            Op::Seal => {
                rig.journal.seal();
                None
            }
            Op::Complete(pick) => {
                rig.complete(pick);
                None
            }
            Op::Retire(pick) => {
                if let Some((position, _)) = oracle.entries.get(pick % oracle.entries.len().max(1))
                {
                    oracle.retired = oracle.retired.max(*position);
                    rig.journal.retire(*position);
                }
                None
            }
            Op::Checkpoint => {
                rig.journal.checkpoint();
                None
            }
            Op::Crash { seed } => {
                let durable = rig.journal.durable_before();
                let mut images = images(&rig.disk, seed);
                for image in &images {
                    let (_, found) =
                        Rig::open(config, image.clone()).expect("every image can be opened");
                    oracle.check(&found, durable);
                }
                // Only the process died, and the power goes while the journal is opened.
                let again = Recovery::open(config, OWNER, stage()).unwrap();
                let watch = |disk: &Disk| {
                    for image in selections(disk, seed ^ 0x5555, 3) {
                        let (_, found) = Rig::open(config, image).expect("while being opened");
                        oracle.check(&found, durable);
                    }
                };
                Rig::recover_watched(again, rig.disk.process_crash(), watch)
                    .expect("nothing was lost");
                // History goes on from one of them; what it lost never happened.
                let chosen = images.swap_remove(seed as usize % images.len());
                let (reopened, found) = Rig::open(config, chosen).expect("as before");
                rig = reopened;
                let end = rig.journal.appended_before();
                oracle.entries.retain(|(position, _)| *position < end);
                oracle.retired = oracle.retired.min(end);
                assert_eq!(rig.journal.durable_before(), end, "what was found is durable");
                drop(found);
                None
            }
        };
        if let Some(entry) = entry
            && let Ok(position) = rig.append(&entry)
        {
            assert!(oracle.entries.last().is_none_or(|(last, _)| *last < position));
            oracle.entries.push((position, entry));
        }
        rig.poll();
    }
    rig.settle();
    let durable = rig.journal.durable_before();
    let (_, found) = Rig::open(config, rig.disk).expect("a settled journal opens");
    oracle.check(&found, durable);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_crash_leaves_all_that_was_durable_and_nothing_invalid(
        ops in vec(op(), 1..150),
        extra_blocks in 0u64..12,
    ) {
        run(ops, extra_blocks);
    }
}
