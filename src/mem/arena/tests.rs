use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const ALL: LogLimits = LogLimits { reserved_bytes: 0, limit_bytes: u64::MAX };

fn arena(segments: usize) -> Arena {
    Arena::heap(segments * SEGMENT_BYTES, 4).unwrap()
}

#[test]
fn a_payload_has_the_alignment_asked_for_and_packs_without_padding() {
    let mut arena = arena(1);
    let log = arena.open_log(ALL).unwrap();
    let mut last: Option<usize> = None;
    for _ in 0..100 {
        let buf = arena.append(log, 4096, 4096).unwrap();
        let at = arena.payload_ptr(buf).addr();
        assert_eq!(at % 4096, 0);
        assert!(last.is_none_or(|before| before + 4096 == at));
        assert_eq!(arena.header_ptr(buf).addr() % HEADER_BYTES, 0);
        last = Some(at);
    }
}

#[test]
fn a_segment_holds_496_records_of_4_kib() {
    let mut arena = arena(1);
    let log = arena.open_log(ALL).unwrap();
    let count = std::iter::from_fn(|| arena.append(log, 4096, 4096)).count();
    assert_eq!(count, SEGMENT_BYTES / record_bytes(4096));
    assert_eq!(arena.usage(log).refused, 1);
}

#[test]
fn the_largest_record_fits_and_is_filled_from_scattered_pieces() {
    let mut arena = arena(1);
    let log = arena.open_log(ALL).unwrap();
    let buf = arena.append(log, PAYLOAD_BYTES_MAX, 4096).unwrap();
    let bytes: Vec<u8> = (0..PAYLOAD_BYTES_MAX).map(|i| (i / 7) as u8).collect();
    let (first, second) = bytes.split_at(12_345);
    // SAFETY: the slices live until the end of the call.
    let crc = unsafe { arena.fill(buf, &[first.into(), second.into()]) };
    assert_eq!(arena.payload(buf), bytes);
    assert_eq!(crc, arena.copier().crc32c(&bytes));
}

#[test]
fn records_without_payload_take_a_header_only() {
    let mut arena = arena(1);
    let log = arena.open_log(ALL).unwrap();
    let count = std::iter::from_fn(|| arena.append(log, 0, 4096)).count();
    assert_eq!(count, SEGMENT_BYTES / HEADER_BYTES);
}

#[test]
fn an_emptied_current_segment_is_used_from_its_start_again() {
    let mut arena = arena(2);
    let log = arena.open_log(ALL).unwrap();
    let first = arena.append(log, 4096, 512).unwrap();
    arena.free(first);
    assert_eq!(arena.append(log, 4096, 512), Some(first));
    arena.invariants();
}

#[test]
fn the_segment_freed_last_is_handed_out_first() {
    let mut arena = arena(8);
    let log = arena.open_log(ALL).unwrap();
    let bufs: Vec<BufRef> =
        std::iter::from_fn(|| arena.append(log, PAYLOAD_BYTES_MAX, 64)).collect();
    assert_eq!(bufs.len(), 8);
    arena.free(bufs[2]);
    arena.free(bufs[5]);
    let again = arena.append(log, PAYLOAD_BYTES_MAX, 64).unwrap();
    assert_eq!(again, bufs[5]);
}

#[test]
fn a_reservation_is_kept_free_for_its_log_and_a_limit_holds() {
    let mut arena = arena(4);
    let kept = arena.open_log(LogLimits::exactly(4 * MIB)).unwrap();
    let other = arena.open_log(ALL).unwrap();
    let big = PAYLOAD_BYTES_MAX;
    assert!(arena.append(other, big, 64).is_some());
    assert!(arena.append(other, big, 64).is_some());
    assert_eq!(arena.append(other, big, 64), None, "the other two are promised");
    assert!(arena.append(kept, big, 64).is_some());
    assert!(arena.append(kept, big, 64).is_some());
    assert_eq!(arena.append(kept, big, 64), None, "limit");
    arena.invariants();
}

#[test]
fn more_than_there_is_cannot_be_reserved() {
    let mut arena = arena(4);
    let log = arena.open_log(LogLimits::exactly(6 * MIB)).unwrap();
    assert_eq!(
        arena.open_log(LogLimits::exactly(4 * MIB)),
        Err(ArenaError::Reservation { wanted: 2, available: 1 })
    );
    arena.set_limits(log, LogLimits::exactly(4 * MIB)).unwrap();
    assert!(arena.open_log(LogLimits::exactly(4 * MIB)).is_ok());
    let none = LogLimits { reserved_bytes: 0, limit_bytes: 0 };
    assert_eq!(arena.open_log(none), Err(ArenaError::Limit { limit: 0, reserved: 0 }));
    arena.invariants();
}

#[test]
fn the_budget_fits_while_sets_are_freed_in_order() {
    let limits = LogLimits::exactly(16 * MIB);
    let budget = limits.budget_bytes(128 << 10);
    let mut arena = arena(8);
    let log = arena.open_log(limits).unwrap();
    let mut live: VecDeque<(u32, BufRef, usize)> = VecDeque::new();
    let (mut bytes, mut set) = (0, 0_u32);
    for i in 0_usize..20_000 {
        let len = [4096, 131_072, 512, 65_536, 0][i % 5];
        while bytes + record_bytes(len) as u64 > budget {
            // The oldest set is confirmed: all of it, newest record first.
            let oldest = live.front().map(|(set, ..)| *set);
            let end = live.iter().take_while(|(set, ..)| Some(*set) == oldest).count();
            for (_, buf, len) in live.drain(..end).rev() {
                arena.free(buf);
                bytes -= record_bytes(len) as u64;
            }
        }
        let buf = arena.append(log, len, 512).expect("within the budget");
        live.push_back((set, buf, len));
        bytes += record_bytes(len) as u64;
        set += u32::from(i % 13 == 0);
    }
    arena.invariants();
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "freed twice")]
fn a_record_freed_twice_is_caught() {
    let mut arena = arena(1);
    let log = arena.open_log(ALL).unwrap();
    let _other = arena.append(log, 64, 64).unwrap();
    let buf = arena.append(log, 64, 64).unwrap();
    arena.free(buf);
    arena.free(buf);
}

#[test]
#[should_panic(expected = "not of this arena")]
fn a_made_up_reference_reaches_no_memory() {
    let arena = arena(1);
    let beyond = Place { segment: 0, payload: 32_000, slot: 0, len: 16_384 };
    arena.payload(beyond.pack());
}

#[test]
fn a_region_must_be_aligned_and_have_a_segment() {
    assert_eq!(Arena::heap(1000, 1).err(), Some(ArenaError::Size { len: 0 }));
    let base = NonNull::new(std::ptr::without_provenance_mut(4096)).unwrap();
    // SAFETY: refused before the region is touched.
    let refused = unsafe { Arena::from_raw(base, SEGMENT_BYTES, 1) };
    assert_eq!(refused.err(), Some(ArenaError::Misaligned { address: 4096 }));
}

#[derive(Clone, Debug)]
enum Op {
    Append { log: usize, len: usize, align: usize },
    Free { pick: usize },
    Limits { log: usize, reserved: u64, limit: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![Just(0), 1usize..5000, Just(4096), Just(131_072), 0..PAYLOAD_BYTES_MAX];
    prop_oneof![
        6 => (0usize..3, len, 6u32..=12)
            .prop_map(|(log, len, shift)| Op::Append { log, len, align: 1 << shift }),
        5 => any::<usize>().prop_map(|pick| Op::Free { pick }),
        1 => (0usize..3, 0u64..4, 1u64..8).prop_map(|(log, reserved, limit)| Op::Limits {
            log,
            reserved: reserved * 2 * MIB,
            limit: limit * 2 * MIB,
        }),
    ]
}

/// What the oracle knows of a live record.
struct Live {
    log: usize,
    len: usize,
    stamp: u64,
    crc: u32,
}

fn contents(stamp: u64, len: usize) -> Vec<u8> {
    stamp.to_le_bytes().into_iter().cycle().take(len).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle is a map from references to contents: no record may lose a byte
    /// to another, and what is refused must be at a limit.
    #[test]
    fn records_keep_their_bytes_and_counters_add_up(ops in vec(op(), 1..300)) {
        const SEGMENTS: u64 = 6;
        let mut arena = arena(SEGMENTS as usize);
        let logs = [(); 3].map(|()| arena.open_log(ALL).unwrap());
        let mut live: BTreeMap<BufRef, Live> = BTreeMap::new();
        let mut limits = [u64::MAX; 3];
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Append { log, len, align } => {
                    let before = arena.usage(logs[log]).held_bytes;
                    match arena.append(logs[log], len, align) {
                        Some(buf) => {
                            let stamp = step as u64;
                            prop_assert_eq!(arena.payload_ptr(buf).addr() % align.min(if len == 0 { 1 } else { align }), 0);
                            let crc = arena.fill_from(buf, &contents(stamp, len));
                            *arena.header_mut(buf) = [stamp as u8; HEADER_BYTES];
                            let old = live.insert(buf, Live { log, len, stamp, crc });
                            prop_assert!(old.is_none(), "live reference given again");
                        }
                        None => {
                            let (_, free) = arena.capacity_bytes();
                            let promised = u64::from(arena.owed) * SEGMENT_BYTES as u64;
                            prop_assert!(before >= limits[log] || free <= promised);
                        }
                    }
                }
                Op::Free { pick } => {
                    if let Some(buf) = live.keys().nth(pick % live.len().max(1)).copied() {
                        let Live { len, stamp, crc, .. } = live.remove(&buf).unwrap();
                        let bytes = contents(stamp, len);
                        prop_assert_eq!(&arena.payload(buf)[..len], &bytes);
                        prop_assert_eq!(arena.copier().crc32c(&bytes), crc);
                        prop_assert_eq!(arena.header(buf), &[stamp as u8; HEADER_BYTES]);
                        arena.free(buf);
                    }
                }
                Op::Limits { log, reserved, limit } => {
                    let asked = LogLimits { reserved_bytes: reserved, limit_bytes: limit };
                    if arena.set_limits(logs[log], asked).is_ok() {
                        limits[log] = limit;
                    }
                }
            }
            arena.invariants();
            for (index, log) in logs.iter().enumerate() {
                let mine = live.values().filter(|record| record.log == index);
                let bytes: usize = mine.map(|record| record_bytes(record.len)).sum();
                prop_assert_eq!(arena.usage(*log).live_bytes, bytes as u64);
            }
        }
    }
}
