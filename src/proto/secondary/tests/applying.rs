//! `Apply`: order, flush, applied mark, failures (invariants 3 and 7), memory (room).

use super::*;
use crate::proto::command::{PayloadAt, Report, Token};
use crate::proto::types::NvmeStatus;

fn apply(machine: &mut Secondary, set: u64) {
    tell(machine, Message::Apply { group: GROUP, set: SetId(set) });
}

fn writes(commands: &[Command]) -> Vec<(u64, Token)> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::Write { extent, token, .. } => Some((extent.lba, *token)),
            _ => None,
        })
        .collect()
}

fn flush(commands: &[Command]) -> Token {
    match commands {
        [.., Command::Flush { volume: VOLUME, token }] => *token,
        other => panic!("no flush at the end: {other:?}"),
    }
}

/// Writes done one after the other; returns the flush.
fn write_all(machine: &mut Secondary) -> Token {
    loop {
        let commands = drain(machine);
        let writes = writes(&commands);
        if writes.is_empty() {
            return flush(&commands);
        }
        for (_, token) in writes {
            machine.handle_written(NOW, token, NvmeStatus::SUCCESS);
        }
    }
}

#[test]
fn applied_is_said_after_writes_flush_and_a_durable_mark() {
    let (mut machine, _) = stored(&[&[update(1, 1, 0, 8), update(1, 2, 8, 8)]]);
    apply(&mut machine, 1);
    let commands = drain(&mut machine);
    assert_eq!(kinds(&commands), ["write", "write"]);
    for (_, token) in writes(&commands) {
        machine.handle_written(NOW, token, NvmeStatus::SUCCESS);
    }
    let commands = drain(&mut machine);
    assert_eq!(kinds(&commands), ["free", "free", "flush"]);
    machine.handle_written(NOW, flush(&commands), NvmeStatus::SUCCESS);
    let commands = drain(&mut machine);
    assert_eq!(kinds(&commands), ["journal applied", "journal flush"]);
    let (Command::Journal { token: mark, .. }, Command::JournalFlush { token }) =
        (&commands[0], &commands[1])
    else {
        panic!()
    };
    machine.handle_journaled(NOW, *mark, JournalPos(50));
    assert_eq!(drain(&mut machine), []);
    machine.handle_journal_durable(NOW, *token);
    let commands = drain(&mut machine);
    assert_eq!(kinds(&commands), ["applied", "retire"]);
    assert_eq!(commands[1], Command::JournalRetire { before: JournalPos(50) });
    assert_eq!(machine.shard().status().next().unwrap().applied, SetId(1));
    while machine.next_timeout() <= NOW {
        machine.handle_timeout(NOW);
    }
    assert_eq!(machine.shard().retained_updates(), 0);
}

#[test]
fn an_empty_set_is_applied_without_touching_a_volume() {
    let (mut machine, mut at) = stored(&[&[]]);
    apply(&mut machine, 1);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["applied", "retire"]);
}

#[test]
fn overlapping_updates_are_never_in_flight_together() {
    let (mut machine, _) = stored(&[&[update(1, 1, 0, 8), update(1, 2, 4, 8)]]);
    apply(&mut machine, 1);
    let first = writes(&drain(&mut machine));
    assert_eq!(first.iter().map(|w| w.0).collect::<Vec<_>>(), [0]);
    machine.handle_written(NOW, first[0].1, NvmeStatus::SUCCESS);
    assert_eq!(writes(&drain(&mut machine)).iter().map(|w| w.0).collect::<Vec<_>>(), [4]);
}

#[test]
fn an_update_that_waits_under_a_later_one_is_not_written() {
    let updates: Vec<UpdateInfo> = (1..=50).map(|seq| update(1, seq, 0, 8)).collect();
    let (mut machine, mut at) = stored(&[&updates]);
    apply(&mut machine, 1);
    let token = write_all(&mut machine);
    machine.handle_written(NOW, token, NvmeStatus::SUCCESS);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["applied", "retire"]);
    let counters = machine.counters();
    assert_eq!((counters.writes, counters.superseded), (2, 48));
}

#[test]
fn no_more_writes_are_in_flight_than_the_depth() {
    let updates: Vec<UpdateInfo> = (1..=9).map(|seq| update(1, seq, seq * 10, 8)).collect();
    let (mut machine, _) = stored(&[&updates]);
    apply(&mut machine, 1);
    let first = writes(&drain(&mut machine));
    assert_eq!(first.len(), 4);
    machine.handle_written(NOW, first[2].1, NvmeStatus::SUCCESS);
    assert_eq!(kinds(&drain(&mut machine)), ["free", "write"]);
}

#[test]
fn a_failed_write_is_reported_and_tried_again_after_a_pause() {
    let (mut machine, _) = stored(&[&[update(1, 1, 0, 8)]]);
    apply(&mut machine, 1);
    let (_, token) = writes(&drain(&mut machine))[0];
    let status = NvmeStatus::WRITE_FAULT;
    machine.handle_written(NOW, token, status);
    let report = Report::ApplyFailed { volume: VOLUME, set: SetId(1), status };
    assert_eq!(drain(&mut machine), [Command::Report(report)]);
    let due = machine.next_timeout();
    assert!(due > NOW && due < Nanos::NEVER);
    machine.handle_timeout(Nanos(due.0 - 1));
    assert_eq!(drain(&mut machine), []);
    machine.handle_timeout(due);
    let again = writes(&drain(&mut machine));
    assert_eq!(again.len(), 1);
    machine.handle_written(due, token, NvmeStatus::SUCCESS);
    assert_eq!(drain(&mut machine), [], "the first attempt's result says nothing any more");
    machine.handle_written(due, again[0].1, NvmeStatus::SUCCESS);
    assert_eq!(kinds(&drain(&mut machine)), ["free", "flush"]);
}

#[test]
fn a_failed_flush_has_the_whole_set_written_again() {
    let (mut machine, mut at) = stored(&[&[update(1, 1, 0, 8), update(1, 2, 8, 8)]]);
    apply(&mut machine, 1);
    let token = write_all(&mut machine);
    machine.handle_written(NOW, token, NvmeStatus::INTERNAL);
    assert_eq!(kinds(&drain(&mut machine)), ["report"]);
    let due = machine.next_timeout();
    machine.handle_timeout(due);
    let commands = drain(&mut machine);
    assert_eq!(writes(&commands).len(), 2);
    assert!(commands.iter().all(|command| matches!(
        command,
        Command::Write { payload: PayloadAt::Journal(JournalPos(1 | 2)), .. }
    )));
    for (_, token) in writes(&commands) {
        machine.handle_written(due, token, NvmeStatus::SUCCESS);
    }
    let token = flush(&drain(&mut machine));
    machine.handle_written(due, token, NvmeStatus::SUCCESS);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["applied", "retire"]);
}

#[test]
fn a_set_out_of_turn_or_not_stored_is_not_applied() {
    let (mut machine, _) = stored(&[&[update(1, 1, 0, 8)], &[update(2, 2, 0, 8)]]);
    for set in [2, 3] {
        apply(&mut machine, set);
        assert_eq!(drain(&mut machine), []);
    }
    assert_eq!(machine.counters().refused_messages, 2);
}

#[test]
fn a_set_that_is_applied_already_is_answered_with_how_far_it_is() {
    let (mut machine, mut at) = stored(&[&[]]);
    apply(&mut machine, 1);
    journal(&mut machine, &mut at);
    apply(&mut machine, 1);
    let message = Message::Applied { group: GROUP, set: SetId(1) };
    assert_eq!(drain(&mut machine), [Command::Send { to: COORDINATOR, message }]);
}

#[test]
fn under_pressure_what_the_journal_has_durably_is_freed_and_applied_from_there() {
    let (mut machine, mut at) = stored(&[&[update(1, 1, 0, 8)]]);
    assert_eq!(take(&mut machine, &update(2, 2, 0, 8)), Receipt::Accepted);
    machine.handle_pressure(NOW);
    let first = drain(&mut machine);
    assert_eq!(kinds(&first), ["journal record", "free"], "no flush while that helps");
    assert_eq!(first[1], Command::Free { buf: BufRef(1) });
    machine.handle_pressure(NOW);
    let second = drain(&mut machine);
    assert_eq!(kinds(&second), ["journal flush"]);
    machine.handle_pressure(NOW);
    assert_eq!(drain(&mut machine), [], "a flush is under way");
    let (Command::Journal { token: record, .. }, Command::JournalFlush { token }) =
        (&first[0], &second[0])
    else {
        panic!()
    };
    machine.handle_journaled(NOW, *record, JournalPos(77));
    machine.handle_journal_durable(NOW, *token);
    assert_eq!(drain(&mut machine), [Command::Free { buf: BufRef(2) }]);
    apply(&mut machine, 1);
    let commands = journal(&mut machine, &mut at);
    assert!(matches!(
        commands[..],
        [Command::Write { payload: PayloadAt::Journal(JournalPos(1)), .. }]
    ));
}

#[test]
fn what_is_kept_for_a_partner_goes_when_its_set_is_applied_everywhere() {
    let (mut machine, mut at) = (shard(Some(PARTNER)), 0);
    let info = UpdateInfo { volume: VolumeId(99), ..update(1, 1, 0, 8) };
    let role = RecordRole::SecondaryMirror;
    assert_eq!(machine.handle_record(NOW, PARTNER, role, &info, BufRef(5)), Receipt::Accepted);
    for set in [1, 2] {
        tell(&mut machine, manifest(set, vec![]));
        assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"]);
    }
    apply(&mut machine, 1);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["applied", "retire"]);
    apply(&mut machine, 2);
    machine.handle_timeout(machine.next_timeout());
    let commands = journal(&mut machine, &mut at);
    assert_eq!(kinds(&commands), ["free", "applied", "retire"]);
    assert_eq!(machine.handle_record(NOW, PARTNER, role, &info, BufRef(6)), Receipt::Duplicate);
}
