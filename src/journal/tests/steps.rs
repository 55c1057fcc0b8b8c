//! Named situations.

use super::*;

fn payload_lens() -> Vec<usize> {
    vec![0, 512, 100, 4096, 0, 0, 4608, 512, 512, 8192, 3584, 0, 4096, 512, 32768]
}

#[test]
fn entries_of_all_kinds_are_found_again_at_their_positions() {
    let mut rig = Rig::format(config(0));
    let mut appended = Vec::new();
    let mut entries: Vec<Owned> = payload_lens()
        .into_iter()
        .enumerate()
        .map(|(number, len)| Owned::record(number as u64, 1, len))
        .collect();
    entries.push(Owned::Manifest { set: 1, bytes: vec![9; 5000] });
    entries.push(Owned::Commit { set: 1, cut_time_ns: 77 });
    entries.push(Owned::Applied { set: 1 });
    for entry in entries {
        let position = loop {
            match rig.append(&entry) {
                Ok(position) => break position,
                Err(AppendError::Busy) => rig.complete(0),
                Err(error) => panic!("{error}"),
            }
        };
        appended.push((position, entry));
    }
    assert!(appended.is_sorted_by(|(a, _), (b, _)| a < b), "positions ascend");
    rig.settle();
    for (position, entry) in &appended {
        if let Owned::Record { payload, .. } = entry
            && !payload.is_empty()
        {
            assert_eq!(rig.read_back(*position, payload.len()).as_ref(), Some(payload));
        }
    }
    let (rig, found) = Rig::open(config(0), rig.disk).ok().unwrap();
    assert_eq!(found, appended);
    let marks =
        GroupMarks { group: GROUP, applied: SetId(1), committed: SetId(1), cut_time_ns: 77 };
    assert_eq!(rig.journal.groups(), [marks]);
}

#[test]
fn a_payload_of_a_block_or_more_is_written_from_the_arena_at_a_block_of_its_own() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::record(1, 1, 512)).unwrap();
    let position = rig.append(&Owned::record(2, 1, 4096)).unwrap();
    assert_eq!(position.0 % BLOCK_BYTES as u64, 0);
    rig.journal.seal();
    let Some(Io::Write { id, .. }) = rig.journal.poll_io() else { panic!("no write") };
    let by_reference = |piece: &Piece| matches!(piece, Piece::Payload { len: 4096, .. });
    assert_eq!(rig.journal.pieces(id).iter().filter(|piece| by_reference(piece)).count(), 1);
}

#[test]
fn nothing_is_durable_before_a_flush_that_followed_all_writes() {
    let mut rig = Rig::format(config(0));
    let first = rig.append(&Owned::record(1, 1, 4096)).unwrap();
    let target = rig.journal.flush();
    rig.poll();
    let second = rig.append(&Owned::record(2, 1, 4096)).unwrap();
    let later = rig.journal.flush();
    rig.poll();
    let writes: Vec<Io> = rig.on_the_way.clone();
    assert!(writes.iter().all(|io| matches!(io, Io::Write { .. })) && writes.len() == 2);
    rig.complete(1);
    assert_eq!(rig.journal.written_before(), JournalPos(0), "the first write is missing");
    assert_eq!(rig.on_the_way.len(), 1, "no flush can help yet");
    rig.complete(0);
    assert!(matches!(rig.on_the_way[..], [Io::Flush { .. }]));
    assert!(rig.journal.durable_before() <= first);
    rig.complete(0);
    assert!(rig.journal.durable_before() >= later && later > target && later > second);
    assert!(rig.on_the_way.is_empty(), "one flush served both requests");
}

#[test]
fn a_full_journal_refuses_records_before_marks_and_goes_on_after_retiring() {
    let mut rig = Rig::format(config(0));
    let mut last = JournalPos(0);
    let mut number = 0;
    loop {
        match rig.append(&Owned::record(number, 1, 4096)) {
            Ok(position) => last = position,
            Err(AppendError::Busy) => {
                rig.complete(0);
                continue;
            }
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                break;
            }
        }
        number += 1;
    }
    rig.settle();
    rig.append(&Owned::Applied { set: 1 }).expect("marks still fit");
    rig.settle();
    rig.journal.retire(last);
    rig.poll();
    assert_eq!(rig.append(&Owned::record(number, 2, 4096)), Err(AppendError::Full));
    rig.settle();
    rig.append(&Owned::record(number, 2, 4096)).expect("room after a durable superblock");
}

#[test]
fn the_log_turns_round_many_times() {
    let mut rig = Rig::format(config(5));
    let mut kept: Vec<(JournalPos, Owned)> = Vec::new();
    for number in 0..600_u64 {
        let len = [4096, 512, 0, 8192, 1024, 20_000][number as usize % 6];
        let entry = Owned::record(number, number / 10, len);
        let position = loop {
            match rig.append(&entry) {
                Ok(position) => break position,
                Err(AppendError::Busy) => rig.complete(0),
                Err(AppendError::Full) => {
                    rig.settle();
                    let (half, _) = kept[kept.len() / 2];
                    kept.drain(..kept.len() / 2);
                    rig.journal.retire(half);
                    rig.settle();
                }
                Err(error) => panic!("{error}"),
            }
        };
        kept.push((position, entry));
    }
    rig.settle();
    let (capacity, _) = rig.journal.capacity_bytes();
    assert!(rig.journal.appended_before().0 > 10 * capacity, "it did turn");
    let (_, found) = Rig::open(config(5), rig.disk).ok().unwrap();
    assert!(found.len() >= kept.len());
    assert_eq!(found[found.len() - kept.len()..], kept);
}

#[test]
fn the_largest_payload_fits_and_a_larger_one_is_refused() {
    let mut rig = Rig::format(config(0));
    let max = SHAPE.payload_bytes_max();
    rig.append(&Owned::record(1, 1, max)).unwrap();
    let len = max + 512;
    assert_eq!(rig.append(&Owned::record(2, 1, len)), Err(AppendError::TooLarge { len, max }));
    let manifest = Owned::Manifest { set: 1, bytes: vec![1; max] };
    rig.append(&manifest).unwrap();
    rig.settle();
    let (_, found) = Rig::open(config(0), rig.disk).ok().unwrap();
    assert_eq!(found.last().map(|(_, entry)| entry), Some(&manifest));
}

#[test]
fn a_failed_write_fails_the_journal_and_nothing_becomes_durable() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::record(1, 1, 4096)).unwrap();
    rig.journal.flush();
    rig.poll();
    let Some(Io::Write { id, .. }) = rig.on_the_way.pop() else { panic!("no write") };
    rig.journal.complete(id, false);
    assert!(rig.journal.failed());
    assert_eq!(rig.journal.durable_before(), JournalPos(0));
    assert_eq!(rig.append(&Owned::Applied { set: 1 }), Err(AppendError::Failed));
    assert_eq!(rig.journal.poll_io(), None);
}

#[test]
fn a_whole_unit_behind_a_torn_one_does_not_come_back_when_the_gap_is_filled() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::record(1, 1, 4096)).unwrap();
    rig.settle();
    for number in 2..4 {
        rig.append(&Owned::record(number, 1, 4096)).unwrap();
        rig.journal.seal();
        rig.poll();
    }
    // The first block of unit 2 is lost, unit 3 is whole.
    let crashed = rig.disk.crash(|index| index > 0);
    let (mut rig, found) = Rig::open(config(0), crashed).ok().unwrap();
    assert_eq!(found.len(), 1);
    rig.append(&Owned::record(10, 1, 4096)).unwrap();
    rig.settle();
    let (mut rig, found) = Rig::open(config(0), rig.disk).ok().unwrap();
    assert_eq!(found.len(), 2, "the stale unit 3 continues at the right place and is refused");
    // Nor when it is the very first behind the tail.
    let end = rig.journal.appended_before();
    rig.journal.retire(end);
    rig.journal.checkpoint();
    rig.settle();
    let (_, found) = Rig::open(config(0), rig.disk).ok().unwrap();
    assert_eq!(found, []);
}

/// The process dies with a unit in the disk's cache, and the power goes while the
/// journal is opened: the new superblock is kept, the unit is not.
#[test]
fn a_superblock_never_counts_on_units_that_only_the_cache_has() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::record(1, 1, 4096)).unwrap();
    rig.journal.flush();
    rig.poll();
    let opening = Recovery::open(config(0), OWNER, stage()).unwrap();
    let mut crashes = 0;
    let watch = |disk: &Disk| {
        for kept in 0..disk.unflushed() {
            let image = disk.crash(|index| index == kept);
            assert!(Rig::open(config(0), image).is_ok(), "only write {kept} was kept");
            crashes += 1;
        }
    };
    let (_, found) = Rig::recover_watched(opening, rig.disk.process_crash(), watch).unwrap();
    assert!(found.len() == 1 && crashes > 0);
}

#[test]
fn losing_what_was_durable_is_an_error_and_not_a_shorter_log() {
    let mut rig = Rig::format(config(0));
    let position = rig.append(&Owned::record(1, 1, 4096)).unwrap();
    rig.settle();
    rig.journal.checkpoint();
    rig.settle();
    let block = position.0 as usize / BLOCK_BYTES + 2;
    rig.disk.spoil(block);
    let error = Rig::open(config(0), rig.disk).err().unwrap();
    assert_eq!(error, OpenError::Lost { end: 0, floor: 2 });
}

#[test]
fn a_device_that_is_not_this_journal_is_refused_with_the_reason() {
    let disk = Disk::new(config(0).device_bytes);
    assert_eq!(Rig::open(config(0), disk).err().unwrap(), OpenError::Blank);

    let rig = Rig::format(config(0));
    let mut spoiled = rig.disk.clone();
    spoiled.spoil(0);
    assert!(Rig::open(config(0), spoiled.clone()).is_ok(), "one superblock is enough");
    let mut spoiled = rig.disk.clone();
    spoiled.spoil(0);
    spoiled.spoil(1);
    let error = Rig::open(config(0), spoiled).err().unwrap();
    assert_eq!(error, OpenError::Superblocks { version: 2 });

    let other = Recovery::open(config(0), ShardId::new(7, 4), stage()).unwrap();
    let error = Rig::recover(other, rig.disk.clone()).err().unwrap();
    assert_eq!(error, OpenError::Owner { found: OWNER });

    let mut grown = Disk::new(config(9).device_bytes);
    grown.write(IoId(0), 0, &rig.disk.read(0, 2 * BLOCK_BYTES));
    let error = Rig::open(config(9), grown).err().unwrap();
    assert!(matches!(error, OpenError::Geometry { .. }));
}

#[test]
fn impossible_configurations_name_what_is_wrong() {
    let small = Config { device_bytes: 1 << 16, ..config(0) };
    assert!(matches!(
        Recovery::open(small, OWNER, stage()).err(),
        Some(OpenError::Config(ConfigError::Device { found: 65_536, .. }))
    ));
    assert!(matches!(
        Recovery::open(config(0), OWNER, vec![0; 4096]).err(),
        Some(OpenError::Config(ConfigError::Stage { found: 4096, .. }))
    ));
}

#[test]
fn marks_survive_although_their_entries_are_retired() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::Commit { set: 4, cut_time_ns: 44 }).unwrap();
    rig.append(&Owned::Applied { set: 4 }).unwrap();
    rig.settle();
    rig.journal.retire(rig.journal.appended_before());
    rig.journal.checkpoint();
    rig.settle();
    let (rig, found) = Rig::open(config(0), rig.disk).ok().unwrap();
    assert_eq!(found, []);
    let marks =
        GroupMarks { group: GROUP, applied: SetId(4), committed: SetId(4), cut_time_ns: 44 };
    assert_eq!(rig.journal.groups(), [marks]);
}
