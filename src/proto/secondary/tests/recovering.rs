//! `recover`: a shard from its journal (invariant 7, T4).

use super::*;
use crate::proto::command::PayloadAt;
use crate::proto::command::Report;
use crate::proto::secondary::Recovered;

fn record(info: UpdateInfo) -> Recovered {
    Recovered::Record { role: RecordRole::Transfer, info }
}

fn recovered(entries: Vec<Recovered>) -> (Secondary, Vec<Command>) {
    let mut machine = Secondary::new(config(None), None);
    for (index, entry) in entries.into_iter().enumerate() {
        machine.recover(JournalPos(index as u64 + 1), entry);
    }
    machine.recovered(NOW);
    let commands = drain(&mut machine);
    (machine, commands)
}

fn resume(stored: u64, applied: u64) -> Command {
    let (stored, applied) = (SetId(stored), SetId(applied));
    Command::Send {
        to: COORDINATOR,
        message: Message::Resume { group: GROUP, stored, applied, not_before: SetId(0) },
    }
}

fn ample() -> Command {
    Command::Send { to: COORDINATOR, message: Message::JournalRoom { scarce: false } }
}

fn list(updates: &[UpdateInfo], voids: &[u64]) -> Vec<VolumeFacts> {
    vec![facts(updates, voids)]
}

#[test]
fn stored_is_what_has_a_manifest_and_later_updates_are_kept() {
    let one = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    let (mut machine, commands) = recovered(vec![
        record(one[1]),
        record(update(2, 3, 0, 8)),
        record(one[0]),
        Recovered::Manifest { message: manifest(1, list(&one, &[])) },
    ]);
    assert_eq!(commands, [resume(1, 0), ample()]);
    assert_eq!(take(&mut machine, &one[0]), Receipt::Duplicate);
    assert_eq!(take(&mut machine, &update(2, 3, 0, 8)), Receipt::Duplicate);
    assert_eq!(take(&mut machine, &update(2, 4, 0, 8)), Receipt::Accepted);
}

#[test]
fn applied_sets_are_passed_over_and_the_rest_is_applied_from_the_journal() {
    let (one, two) = ([update(1, 1, 0, 8)], [update(2, 2, 0, 8)]);
    let (mut machine, commands) = recovered(vec![
        record(one[0]),
        Recovered::Manifest { message: manifest(1, list(&one, &[])) },
        record(two[0]),
        Recovered::Manifest { message: manifest(2, list(&two, &[])) },
        Recovered::Applied { group: GROUP, set: SetId(1) },
    ]);
    assert_eq!(commands, [resume(2, 1), ample()]);
    tell(&mut machine, Message::Apply { group: GROUP, set: SetId(2) });
    let commands = drain(&mut machine);
    let [Command::Write { payload: PayloadAt::Journal(JournalPos(3)), .. }] = commands[..] else {
        panic!("{commands:?}")
    };
}

#[test]
fn of_a_number_that_is_there_twice_the_later_one_counts() {
    let one = [update(1, 1, 0, 8)];
    let (mut machine, _) = recovered(vec![
        record(one[0]),
        record(one[0]),
        Recovered::Manifest { message: manifest(1, list(&one, &[])) },
    ]);
    tell(&mut machine, Message::Apply { group: GROUP, set: SetId(1) });
    let commands = drain(&mut machine);
    let [Command::Write { payload: PayloadAt::Journal(JournalPos(2)), .. }] = commands[..] else {
        panic!("{commands:?}")
    };
}

#[test]
fn what_lies_under_a_void_number_is_passed_over() {
    let one = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    let (machine, commands) = recovered(vec![
        record(one[0]),
        record(one[1]),
        Recovered::Manifest { message: manifest(1, list(&one, &[1])) },
    ]);
    assert_eq!(commands, [resume(1, 0), ample()]);
    assert_eq!(machine.shard().retained_updates(), 1);
}

#[test]
fn a_manifest_without_its_updates_breaks_the_group_aloud() {
    let one = [update(1, 1, 0, 8)];
    let (machine, commands) =
        recovered(vec![Recovered::Manifest { message: manifest(1, list(&one, &[])) }]);
    assert!(matches!(commands[0], Command::Report(Report::Broken { .. })));
    let status = machine.shard().status().next().unwrap();
    assert!(status.broken && status.stored == SetId(0));
}

#[test]
fn what_was_retired_is_not_missed() {
    // The journal begins in the middle of set 1, which is applied.
    let (one, two) = ([update(1, 1, 0, 8), update(1, 2, 8, 8)], [update(2, 3, 0, 8)]);
    let (_, commands) = recovered(vec![
        record(two[0]),
        record(one[1]),
        Recovered::Manifest { message: manifest(1, list(&one, &[])) },
        Recovered::Applied { group: GROUP, set: SetId(1) },
        Recovered::Manifest { message: manifest(2, list(&two, &[])) },
    ]);
    assert_eq!(commands, [resume(2, 1), ample()]);
}

#[test]
fn what_was_kept_for_a_partner_is_kept_until_its_set_is_applied_everywhere() {
    let kept = UpdateInfo { volume: VolumeId(99), ..update(1, 1, 0, 8) };
    let (mut machine, _) = recovered(vec![
        Recovered::Record { role: RecordRole::SecondaryMirror, info: kept },
        Recovered::Manifest { message: manifest(1, vec![]) },
        Recovered::Manifest { message: manifest(2, vec![]) },
        Recovered::Applied { group: GROUP, set: SetId(1) },
    ]);
    let role = RecordRole::SecondaryMirror;
    assert_eq!(machine.handle_record(NOW, PARTNER, role, &kept, BufRef(1)), Receipt::Duplicate);
    assert_eq!(machine.shard().retained_updates(), 1, "another shard may not have applied set 1");
    tell(&mut machine, Message::Apply { group: GROUP, set: SetId(2) });
    machine.handle_timeout(machine.next_timeout());
    assert_eq!(machine.shard().retained_updates(), 0);
}

#[test]
fn an_update_of_a_set_that_is_not_stored_comes_again_for_the_partner_and_is_not_journaled_twice() {
    let one = [update(1, 1, 0, 8)];
    let mut machine = Secondary::new(config(Some(PARTNER)), None);
    machine.recover(JournalPos(1), record(one[0]));
    machine.recovered(NOW);
    drain(&mut machine);
    assert_eq!(machine.shard().retained_updates(), 1);
    assert_eq!(take(&mut machine, &one[0]), Receipt::Accepted);
    let commands = drain(&mut machine);
    assert_eq!(kinds(&commands), ["send record"]);
    assert_eq!(take(&mut machine, &one[0]), Receipt::Duplicate);
    tell(&mut machine, manifest(1, list(&one[..1], &[])));
    assert_eq!(drain(&mut machine), [], "the partner does not have it yet");
    let Command::SendRecord { token, .. } = commands[0] else { panic!("{commands:?}") };
    machine.handle_delivered(NOW, token);
    assert_eq!(kinds(&drain(&mut machine)), ["journal manifest", "journal flush"]);
}

#[test]
fn without_a_partner_what_the_journal_has_need_not_come_again() {
    let one = [update(1, 1, 0, 8)];
    let (mut machine, _) = recovered(vec![record(one[0])]);
    assert_eq!(take(&mut machine, &one[0]), Receipt::Duplicate);
    tell(&mut machine, manifest(1, list(&one, &[])));
    assert_eq!(kinds(&drain(&mut machine)), ["journal manifest", "journal flush"]);
}
