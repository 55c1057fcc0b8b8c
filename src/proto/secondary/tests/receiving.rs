//! `handle_record`: what is taken in, what is refused, what follows.

use super::*;
use crate::proto::secondary::Refusal;

#[test]
fn an_own_record_goes_to_the_journal_and_to_the_partner() {
    let mut machine = shard(Some(PARTNER));
    assert_eq!(take(&mut machine, &update(1, 1, 0, 8)), Receipt::Accepted);
    let commands = drain(&mut machine);
    assert!(matches!(
        commands[..],
        [
            Command::Journal {
                entry: JournalEntry::Record { buf: BufRef(1), role: RecordRole::Transfer },
                ..
            },
            Command::SendRecord {
                to: PARTNER,
                role: RecordRole::SecondaryMirror,
                buf: BufRef(1),
                ..
            },
        ]
    ));
    assert_eq!(machine.counters().records, 1);
}

#[test]
fn a_record_kept_for_a_partner_goes_to_the_journal_alone() {
    let mut machine = shard(Some(PARTNER));
    let info = UpdateInfo { volume: VolumeId(99), ..update(1, 1, 0, 8) };
    let role = RecordRole::SecondaryMirror;
    assert_eq!(machine.handle_record(NOW, PARTNER, role, &info, BufRef(5)), Receipt::Accepted);
    assert_eq!(kinds(&drain(&mut machine)), ["journal record"]);
    assert_eq!(machine.handle_record(NOW, PARTNER, role, &info, BufRef(6)), Receipt::Duplicate);
    assert_eq!(drain(&mut machine), []);
}

#[test]
fn a_number_that_came_before_is_a_duplicate() {
    let mut machine = shard(None);
    assert_eq!(take(&mut machine, &update(1, 1, 0, 8)), Receipt::Accepted);
    drain(&mut machine);
    assert_eq!(take(&mut machine, &update(1, 1, 0, 8)), Receipt::Duplicate);
    assert_eq!(drain(&mut machine), []);
    assert_eq!(machine.counters().duplicate_records, 1);
}

#[test]
fn a_record_of_a_stored_set_is_a_duplicate() {
    let (mut machine, _) = stored(&[&[update(1, 1, 0, 8)]]);
    assert_eq!(take(&mut machine, &update(1, 1, 0, 8)), Receipt::Duplicate);
}

#[test]
fn records_that_do_not_fit_are_refused_with_the_reason() {
    let mut machine = shard(None);
    let good = update(1, 1, 0, 8);
    let refused = |machine: &mut Secondary, info: UpdateInfo, why| {
        assert_eq!(take(machine, &info), Receipt::Refused(why), "{info:?}");
        assert_eq!(drain(machine), []);
    };
    refused(&mut machine, UpdateInfo { volume: VolumeId(8), ..good }, Refusal::UnknownVolume);
    refused(&mut machine, UpdateInfo { group: GroupId(2), ..good }, Refusal::UnknownVolume);
    refused(&mut machine, UpdateInfo { block_bytes: 4096, ..good }, Refusal::Range);
    refused(&mut machine, UpdateInfo { seq: Seq(0), ..good }, Refusal::Range);
    let beyond = Extent { lba: 99, blocks: 2 };
    refused(&mut machine, UpdateInfo { extent: beyond, ..good }, Refusal::Range);
    refused(&mut machine, UpdateInfo { set: SetId(1000), ..good }, Refusal::TooFarAhead);
    assert_eq!(take(&mut machine, &good), Receipt::Accepted);
    drain(&mut machine);
    refused(&mut machine, UpdateInfo { seq: Seq(1 << 40), ..good }, Refusal::TooFarAhead);
    refused(&mut machine, UpdateInfo { set: SetId(2), ..good }, Refusal::Conflict);
    let role = RecordRole::Mirror;
    let receipt = machine.handle_record(NOW, PRIMARY, role, &good, BufRef(9));
    assert_eq!(receipt, Receipt::Refused(Refusal::Role));
    assert_eq!(machine.counters().refused_records, 9);
}

#[test]
fn a_message_of_another_epoch_is_refused_and_counted() {
    let mut machine = shard(None);
    machine.handle_message(NOW, COORDINATOR, Epoch(2), manifest(1, vec![]));
    assert_eq!(drain(&mut machine), []);
    assert_eq!(machine.counters().refused_epoch, 1);
}

#[test]
fn a_manifest_from_anyone_but_the_coordinator_is_refused() {
    let mut machine = shard(None);
    machine.handle_message(NOW, PRIMARY, EPOCH, manifest(1, vec![]));
    assert_eq!(drain(&mut machine), []);
    assert_eq!(machine.counters().refused_messages, 1);
}
