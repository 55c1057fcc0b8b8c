//! From the manifest to `Stored` (invariants 6 and 7), voids (invariant 3), mismatches
//! (invariant 10).

use super::*;
use crate::proto::command::Report;
use crate::proto::message::BrokenReason;
use crate::proto::secondary::{CoordinatorConfig, Refusal};

#[test]
fn a_set_is_stored_when_all_of_it_is_here_mirrored_and_its_manifest_durable() {
    let mut machine = shard(Some(PARTNER));
    let updates = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    assert_eq!(take(&mut machine, &updates[1]), Receipt::Accepted);
    tell(&mut machine, manifest(1, vec![facts(&updates, &[])]));
    assert_eq!(take(&mut machine, &updates[0]), Receipt::Accepted);
    let (mut journaled, mut sent) = (Vec::new(), Vec::new());
    for command in drain(&mut machine) {
        match command {
            Command::Journal { token, .. } => journaled.push(token),
            Command::SendRecord { token, .. } => sent.push(token),
            other => panic!("{other:?}"),
        }
    }
    machine.handle_journaled(NOW, journaled[0], JournalPos(1));
    machine.handle_journaled(NOW, journaled[1], JournalPos(2));
    machine.handle_delivered(NOW, sent[0]);
    assert_eq!(drain(&mut machine), [], "one is not mirrored");
    machine.handle_delivered(NOW, sent[1]);
    let commands = drain(&mut machine);
    let [Command::Journal { entry, token: entry_token }, Command::JournalFlush { token }] =
        &commands[..]
    else {
        panic!("{commands:?}")
    };
    assert_eq!(*entry, JournalEntry::Manifest { message: manifest(1, vec![facts(&updates, &[])]) });
    machine.handle_journaled(NOW, *entry_token, JournalPos(3));
    assert_eq!(drain(&mut machine), [], "the manifest is not durable");
    machine.handle_journal_durable(NOW, *token);
    let message = Message::Stored { group: GROUP, set: SetId(1), not_before: SetId(0) };
    assert_eq!(drain(&mut machine), [Command::Send { to: COORDINATOR, message }]);
}

#[test]
fn an_empty_set_is_stored_too() {
    let (machine, _) = stored(&[&[]]);
    assert_eq!(machine.shard().status().next().unwrap().stored, SetId(1));
}

#[test]
fn sets_are_stored_in_order_and_reported_once() {
    let (mut machine, mut at) = (shard(None), 0);
    let (one, two) = ([update(1, 1, 0, 8)], [update(2, 2, 0, 8)]);
    assert_eq!(take(&mut machine, &two[0]), Receipt::Accepted);
    tell(&mut machine, manifest(2, vec![facts(&two, &[])]));
    assert_eq!(journal(&mut machine, &mut at), [], "the set before is not complete");
    tell(&mut machine, manifest(1, vec![facts(&one, &[])]));
    assert_eq!(take(&mut machine, &one[0]), Receipt::Accepted);
    let message = Message::Stored { group: GROUP, set: SetId(2), not_before: SetId(0) };
    assert_eq!(journal(&mut machine, &mut at), [Command::Send { to: COORDINATOR, message }]);
}

#[test]
fn a_manifest_in_parts_counts_when_all_parts_are_here() {
    let (mut machine, mut at) = (shard(None), 0);
    let one = [update(1, 1, 0, 8)];
    let part = |part, facts| Message::Manifest {
        group: GROUP,
        set: SetId(1),
        cut_time_ns: 10,
        facts: FactsPart { part, parts: 2, facts },
    };
    assert_eq!(take(&mut machine, &one[0]), Receipt::Accepted);
    tell(&mut machine, part(1, vec![facts(&one, &[])]));
    tell(&mut machine, part(1, vec![facts(&one, &[])]));
    assert_eq!(journal(&mut machine, &mut at), []);
    tell(&mut machine, part(0, vec![]));
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"]);
}

#[test]
fn a_scarce_journal_of_which_nothing_is_needed_is_given_back() {
    let (mut machine, mut at) = (shard(None), 100);
    machine.handle_journal_room(NOW, Some(JournalPos(90)));
    let commands = journal(&mut machine, &mut at);
    assert_eq!(commands[1..], [Command::JournalRetire { before: JournalPos(101) }]);
}

#[test]
fn a_coordinator_without_commits_does_not_hold_the_journal() {
    let site = CoordinatorConfig {
        me: ME,
        shards: vec![ME, PARTNER],
        groups: vec![GROUP],
        volumes: vec![(VOLUME, ME)],
        sabotage: Sabotage::None,
    };
    let config = ShardConfig { coordinator: ME, ..config(None) };
    let (mut machine, mut at) = (Secondary::new(config, Some(site)), 100);
    machine.recovered(NOW);
    machine.handle_journal_room(NOW, Some(JournalPos(90)));
    let commands = journal(&mut machine, &mut at);
    assert!(commands.contains(&Command::JournalRetire { before: JournalPos(101) }), "{commands:?}");
}

#[test]
fn what_came_under_a_void_number_is_dropped_and_freed() {
    let (mut machine, mut at) = (shard(None), 0);
    let updates = [update(1, 1, 0, 8), update(1, 2, 8, 8), update(1, 3, 16, 8)];
    for info in &updates[..2] {
        assert_eq!(take(&mut machine, info), Receipt::Accepted);
    }
    assert_eq!(journal(&mut machine, &mut at), []);
    tell(&mut machine, manifest(1, vec![facts(&updates, &[2, 3])]));
    let commands = journal(&mut machine, &mut at);
    let message = Message::Stored { group: GROUP, set: SetId(1), not_before: SetId(0) };
    let stored = Command::Send { to: COORDINATOR, message };
    assert_eq!(commands, [stored, Command::Free { buf: BufRef(2) }]);
    assert_eq!(machine.counters().void_records, 1);
}

#[test]
fn what_comes_under_a_void_number_later_is_refused() {
    let (mut machine, mut at) = (shard(None), 0);
    let updates = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    tell(&mut machine, manifest(1, vec![facts(&updates, &[1])]));
    assert_eq!(take(&mut machine, &updates[0]), Receipt::Refused(Refusal::Void));
    assert_eq!(take(&mut machine, &updates[1]), Receipt::Accepted);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"]);
}

#[test]
fn facts_that_do_not_agree_break_the_group_aloud_and_the_set_is_never_stored() {
    let updates = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    let good = facts(&updates, &[]);
    let cases = [
        VolumeFacts { digest: good.digest + 1, ..good.clone() },
        VolumeFacts { bytes: good.bytes + 1, ..good.clone() },
        VolumeFacts { last: Seq(1), ..good.clone() },
        VolumeFacts { first: Seq(2), last: Seq(3), ..good.clone() },
        VolumeFacts { volume: VolumeId(8), ..good.clone() },
    ];
    for fact in cases {
        let (mut machine, mut at) = (shard(None), 0);
        for info in &updates {
            assert_eq!(take(&mut machine, info), Receipt::Accepted);
        }
        tell(&mut machine, manifest(1, vec![fact]));
        let (group, reason) = (GROUP, BrokenReason::DigestMismatch);
        let message = Message::Broken { group, reason };
        let report = Command::Report(Report::Broken { group, reason });
        let commands = journal(&mut machine, &mut at);
        assert_eq!(commands, [report, Command::Send { to: COORDINATOR, message }]);
        assert!(machine.shard().status().next().unwrap().broken);
    }
}

#[test]
fn an_update_of_a_volume_that_the_manifest_does_not_name_breaks_the_group() {
    for record_first in [true, false] {
        let (mut machine, mut at) = (shard(Some(PARTNER)), 0);
        if record_first {
            assert_eq!(take(&mut machine, &update(1, 1, 0, 8)), Receipt::Accepted);
            tell(&mut machine, manifest(1, vec![]));
            let commands = journal(&mut machine, &mut at);
            assert_eq!(kinds(&commands), ["send record", "report", "send"]);
        } else {
            // The set before is missing, so this one is not in the journal yet.
            tell(&mut machine, manifest(2, vec![]));
            assert_eq!(take(&mut machine, &update(2, 1, 0, 8)), Receipt::Accepted);
            let commands = journal(&mut machine, &mut at);
            assert_eq!(kinds(&commands), ["send record", "report", "send"]);
        }
    }
}

#[test]
fn a_gap_in_the_numbers_between_two_sets_breaks_the_group() {
    let (mut machine, mut at) = stored(&[&[update(1, 1, 0, 8)]]);
    let two = [update(2, 3, 0, 8)];
    assert_eq!(take(&mut machine, &two[0]), Receipt::Accepted);
    tell(&mut machine, manifest(2, vec![facts(&two, &[])]));
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["report", "send"]);
}

#[test]
fn a_manifest_of_a_stored_set_is_answered_and_changes_nothing() {
    let (mut machine, mut at) = stored(&[&[]]);
    tell(&mut machine, manifest(1, vec![]));
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"]);
}
