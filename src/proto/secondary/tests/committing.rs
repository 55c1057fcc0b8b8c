//! The coordinator: commit, confirm, lockstep, pause, restart (invariants 7 and 8, T3, T6).

use super::*;
use crate::proto::command::{Report, SetState, Token};
use crate::proto::message::BrokenReason;
use crate::proto::node::{Machines, Node};
use crate::proto::secondary::{CoordinatorConfig, Recovered, SecondaryCoordinator};

const A: ShardId = COORDINATOR;
const B: ShardId = ShardId::new(11, 0);

fn new() -> SecondaryCoordinator {
    SecondaryCoordinator::new(CoordinatorConfig {
        me: A,
        shards: vec![A, B],
        groups: vec![GROUP],
        volumes: vec![(VOLUME, A), (VolumeId(8), B)],
        sabotage: Sabotage::None,
    })
}

fn commands(c: &mut SecondaryCoordinator) -> Vec<Command> {
    core::iter::from_fn(|| c.poll_command()).collect()
}

fn send(to: ShardId, message: Message) -> Command {
    Command::Send { to, message }
}

fn state(set: u64, state: SetState) -> Command {
    Command::Report(Report::SetState { group: GROUP, set: SetId(set), state })
}

fn resume(c: &mut SecondaryCoordinator, from: ShardId, stored: u64, applied: u64) {
    let (stored, applied) = (SetId(stored), SetId(applied));
    c.handle_message(
        NOW,
        from,
        Message::Resume { group: GROUP, stored, applied, not_before: SetId(0) },
    );
}

fn stored(c: &mut SecondaryCoordinator, from: ShardId, set: u64) {
    c.handle_message(
        NOW,
        from,
        Message::Stored { group: GROUP, set: SetId(set), not_before: SetId(0) },
    );
}

fn applied(c: &mut SecondaryCoordinator, from: ShardId, set: u64) {
    c.handle_message(NOW, from, Message::Applied { group: GROUP, set: SetId(set) });
}

fn apply(set: u64) -> Message {
    Message::Apply { group: GROUP, set: SetId(set) }
}

fn confirmed(set: u64) -> Command {
    send(PRIMARY, Message::Confirmed { group: GROUP, set: SetId(set) })
}

/// Journals what is asked for; returns the flush.
fn journaled(c: &mut SecondaryCoordinator, commands: &[Command]) -> Token {
    let mut flush = None;
    for command in commands {
        match command {
            Command::Journal { token, .. } => c.handle_journaled(NOW, *token, JournalPos(token.0)),
            Command::JournalFlush { token } => flush = Some(*token),
            _ => {}
        }
    }
    flush.unwrap()
}

/// Both shards have spoken, and set 1 is committed.
fn committed() -> SecondaryCoordinator {
    let mut c = new();
    resume(&mut c, A, 0, 0);
    resume(&mut c, B, 0, 0);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![]));
    stored(&mut c, A, 1);
    stored(&mut c, B, 1);
    let list = commands(&mut c);
    let flush = journaled(&mut c, &list);
    c.handle_journal_durable(NOW, flush);
    c
}

#[test]
fn each_shard_gets_its_own_facts_and_an_empty_manifest_when_it_has_none() {
    let mut c = new();
    resume(&mut c, A, 0, 0);
    resume(&mut c, B, 0, 0);
    let fact = facts(&[update(1, 1, 0, 8)], &[]);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![fact.clone()]));
    let list = commands(&mut c);
    assert!(matches!(
        list[0],
        Command::Report(Report::SetFormed { set: SetId(1), updates: 1, .. })
    ));
    assert_eq!(list[1..], [send(A, manifest(1, vec![fact])), send(B, manifest(1, vec![]))]);
}

#[test]
fn a_set_is_confirmed_when_all_shards_stored_it_and_the_commit_is_durable() {
    let mut c = new();
    resume(&mut c, A, 0, 0);
    resume(&mut c, B, 0, 0);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![]));
    commands(&mut c);
    stored(&mut c, A, 1);
    assert_eq!(commands(&mut c), []);
    stored(&mut c, B, 1);
    let list = commands(&mut c);
    assert_eq!(kinds(&list), ["journal commit", "journal flush"]);
    let flush = journaled(&mut c, &list);
    assert_eq!(commands(&mut c), []);
    c.handle_journal_durable(NOW, flush);
    let expected = [
        state(1, SetState::Received),
        confirmed(1),
        state(1, SetState::Applying),
        send(A, apply(1)),
        send(B, apply(1)),
    ];
    assert_eq!(commands(&mut c)[..5], expected);
}

#[test]
fn sets_with_payloads_of_later_updates_are_committed_and_applied_as_one() {
    let mut c = committed();
    commands(&mut c);
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: true });
    for set in [2, 3] {
        c.handle_message(NOW, PRIMARY, manifest(set, vec![]));
        stored(&mut c, A, set);
    }
    let not_before = SetId(4);
    let both = Message::Stored { group: GROUP, set: SetId(3), not_before };
    c.handle_message(NOW, B, both);
    applied(&mut c, A, 1);
    applied(&mut c, B, 1);
    assert!(!kinds(&commands(&mut c)).contains(&"journal commit"), "set 4 is not there");
    c.handle_message(NOW, PRIMARY, manifest(4, vec![]));
    stored(&mut c, A, 4);
    stored(&mut c, B, 4);
    let list = commands(&mut c);
    let commits = list.iter().filter_map(|command| match command {
        Command::Journal { entry: JournalEntry::Commit { set, cut_time_ns, .. }, .. } => {
            Some((*set, *cut_time_ns))
        }
        _ => None,
    });
    assert_eq!(commits.collect::<Vec<_>>(), [(SetId(4), 40)]);
    let flush = journaled(&mut c, &list);
    c.handle_journal_durable(NOW, flush);
    assert!(commands(&mut c).contains(&confirmed(4)));
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: false });
    assert!(commands(&mut c).contains(&send(B, apply(2))));
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: true });
    for set in [2, 3] {
        applied(&mut c, A, set);
        applied(&mut c, B, set);
        let list = commands(&mut c);
        assert!(list.contains(&send(B, apply(set + 1))), "{set} is no boundary: {list:?}");
        assert_eq!(c.status().next().unwrap().applied, SetId(1));
    }
    applied(&mut c, A, 4);
    applied(&mut c, B, 4);
    let list = commands(&mut c);
    let at_4 = Report::ApplyPaused { group: GROUP, at: SetId(4), paused: true };
    assert!(list.contains(&Command::Report(at_4)), "{list:?}");
    assert!(list.contains(&state(2, SetState::Applied)), "with the set that it is a part of");
    assert_eq!(c.status().next().unwrap().applied, SetId(4));
}

#[test]
fn while_a_journal_is_scarce_only_the_set_that_is_applied_next_is_committed() {
    let mut c = committed();
    commands(&mut c);
    c.handle_message(NOW, B, Message::JournalRoom { scarce: true });
    for set in [2, 3] {
        c.handle_message(NOW, PRIMARY, manifest(set, vec![]));
        stored(&mut c, A, set);
        stored(&mut c, B, set);
    }
    let set_2_commits = |list: &[Command]| {
        list.iter().any(|command| {
            let Command::Journal { entry, .. } = command else { return false };
            matches!(entry, JournalEntry::Commit { set: SetId(2), .. })
        })
    };
    assert!(!set_2_commits(&commands(&mut c)), "set 1 is not applied");
    applied(&mut c, A, 1);
    applied(&mut c, B, 1);
    let list = commands(&mut c);
    assert!(set_2_commits(&list));
    assert_eq!(kinds(&list).iter().filter(|kind| **kind == "journal commit").count(), 1);
    c.handle_message(NOW, B, Message::JournalRoom { scarce: false });
    assert_eq!(kinds(&commands(&mut c)), ["journal commit", "journal flush"]);
}

#[test]
fn the_next_set_is_applied_only_when_all_have_applied_the_one_before() {
    let mut c = committed();
    c.handle_message(NOW, PRIMARY, manifest(2, vec![]));
    stored(&mut c, A, 2);
    stored(&mut c, B, 2);
    let list = commands(&mut c);
    let flush = journaled(&mut c, &list);
    c.handle_journal_durable(NOW, flush);
    assert_eq!(commands(&mut c)[..2], [state(2, SetState::Received), confirmed(2)]);
    applied(&mut c, A, 1);
    assert_eq!(commands(&mut c), []);
    assert!(!c.status().next().unwrap().at_boundary);
    applied(&mut c, B, 1);
    let expected = [
        state(1, SetState::Applied),
        send(PRIMARY, Message::Applied { group: GROUP, set: SetId(1) }),
        state(2, SetState::Applying),
        send(A, apply(2)),
        send(B, apply(2)),
    ];
    assert_eq!(commands(&mut c), expected);
    let status = c.status().next().unwrap();
    assert_eq!((status.committed, status.committed_cut_time_ns), (SetId(2), 20));
    assert_eq!((status.applied, status.applied_cut_time_ns), (SetId(1), 10));
}

#[test]
fn a_pause_takes_effect_at_the_boundary_and_receiving_goes_on() {
    let mut c = committed();
    commands(&mut c);
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: true });
    assert_eq!(commands(&mut c), [], "set 1 is being applied");
    applied(&mut c, A, 1);
    applied(&mut c, B, 1);
    let paused =
        |paused| Command::Report(Report::ApplyPaused { group: GROUP, at: SetId(1), paused });
    assert_eq!(commands(&mut c).last(), Some(&paused(true)));
    assert!(c.status().next().unwrap().at_boundary);
    c.handle_message(NOW, PRIMARY, manifest(2, vec![]));
    stored(&mut c, A, 2);
    stored(&mut c, B, 2);
    let list = commands(&mut c);
    let flush = journaled(&mut c, &list);
    c.handle_journal_durable(NOW, flush);
    let list = commands(&mut c);
    assert!(list.contains(&confirmed(2)) && !kinds(&list).contains(&"apply"));
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: false });
    let expected =
        [paused(false), state(2, SetState::Applying), send(A, apply(2)), send(B, apply(2))];
    assert_eq!(commands(&mut c), expected);
}

#[test]
fn only_the_poller_itself_may_pause() {
    let mut c = committed();
    c.handle_message(NOW, PRIMARY, Message::PauseApply { group: GROUP, paused: true });
    assert!(!c.status().next().unwrap().paused);
    assert_eq!(c.refused_messages(), 1);
}

#[test]
fn after_a_restart_the_set_in_doubt_is_finished_even_when_paused() {
    let mut c = new();
    for set in [1, 2, 3] {
        c.recover_commit(JournalPos(set), GROUP, SetId(set), set * 10, Epoch(0));
    }
    c.recovered(NOW);
    c.handle_message(NOW, A, Message::PauseApply { group: GROUP, paused: true });
    resume(&mut c, A, 3, 1);
    assert_eq!(commands(&mut c), [], "nothing is known of the other shard");
    assert_eq!(c.status().next().unwrap().missing_shards, 1);
    resume(&mut c, B, 3, 2);
    let expected = [state(2, SetState::Applying), send(A, apply(2)), send(B, apply(2))];
    assert_eq!(commands(&mut c), expected);
    assert!(!c.status().next().unwrap().at_boundary);
    applied(&mut c, A, 2);
    let list = commands(&mut c);
    let paused = |c: &Command| matches!(c, Command::Report(Report::ApplyPaused { .. }));
    assert!(list.iter().any(paused));
    let status = c.status().next().unwrap();
    assert!(status.at_boundary && status.applied == SetId(2));
    assert_eq!((status.applied_cut_time_ns, status.committed_cut_time_ns), (20, 30));
}

#[test]
fn a_shard_that_comes_back_gets_what_it_lacks() {
    let mut c = committed();
    c.handle_message(NOW, PRIMARY, manifest(2, vec![]));
    commands(&mut c);
    resume(&mut c, B, 1, 0);
    assert_eq!(commands(&mut c), [send(B, manifest(2, vec![])), send(B, apply(1))]);
}

#[test]
fn a_late_resume_does_not_undo_what_the_shard_has_said_since() {
    let mut c = new();
    resume(&mut c, A, 0, 0);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![]));
    stored(&mut c, A, 1);
    stored(&mut c, B, 1);
    commands(&mut c);
    resume(&mut c, B, 0, 0);
    assert_eq!(kinds(&commands(&mut c)), ["journal commit", "journal flush"]);
}

#[test]
fn the_primary_coordinator_hears_again_what_is_confirmed() {
    let mut c = committed();
    applied(&mut c, A, 1);
    applied(&mut c, B, 1);
    commands(&mut c);
    c.handle_message(NOW, PRIMARY, Message::Lead);
    let done = send(PRIMARY, Message::Applied { group: GROUP, set: SetId(1) });
    assert_eq!(commands(&mut c), [confirmed(1), done]);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![]));
    assert_eq!(commands(&mut c), [confirmed(1)]);
}

#[test]
fn a_restart_does_not_forget_the_primary_epoch_and_tells_no_mover_that_was_excluded() {
    let excluded = ShardId::new(2, 0);
    let coordinator = CoordinatorConfig {
        me: COORDINATOR,
        shards: vec![COORDINATOR],
        groups: vec![GROUP],
        volumes: vec![(VOLUME, COORDINATOR)],
        sabotage: Sabotage::None,
    };
    let shard = ShardConfig { me: COORDINATOR, ..config(None) };
    let mut machines = Secondary::new(shard, Some(coordinator));
    let (group, set, primary_epoch) = (GROUP, SetId(1), Epoch(9));
    let commit = Recovered::Commit { group, set, cut_time_ns: 1, primary_epoch };
    machines.recover(JournalPos(1), commit);
    machines.recovered(NOW);
    let others = vec![PRIMARY.mover, excluded.mover];
    let machines = Machines::Secondary(machines);
    let mut node = Node::new(COORDINATOR, EPOCH, others, machines, NOW);
    let mut said = |from, epoch, message| {
        node.handle_peer_up(NOW, from);
        node.handle_message(NOW, from, Epoch(epoch), message);
        let all = core::iter::from_fn(|| node.poll_command(NOW));
        all.filter(|command| matches!(command, Command::Send { .. })).collect::<Vec<_>>()
    };
    let resume = |to| {
        send(
            to,
            Message::Resume { group, stored: SetId(0), applied: SetId(0), not_before: SetId(0) },
        )
    };
    assert_eq!(said(excluded, 8, Message::Lead), [], "nobody else spoke in this life");
    let reason = BrokenReason::MoverRestarted;
    assert_eq!(said(excluded, 8, Message::Broken { group, reason }), []);
    assert_eq!(said(PRIMARY, 9, Message::Lead), [resume(PRIMARY), confirmed(1)]);
    assert_eq!(node.refused_of_other_site(), 2);
}

#[test]
fn a_manifest_with_a_volume_that_nobody_writes_breaks_the_group() {
    let mut c = new();
    let fact = VolumeFacts { volume: VolumeId(55), ..facts(&[update(1, 1, 0, 8)], &[]) };
    c.handle_message(NOW, PRIMARY, manifest(1, vec![fact]));
    let broken = Message::Broken { group: GROUP, reason: BrokenReason::DigestMismatch };
    let report = Report::Broken { group: GROUP, reason: BrokenReason::DigestMismatch };
    let told = [send(PRIMARY, broken.clone()), send(B, broken)];
    assert_eq!(commands(&mut c), [vec![Command::Report(report)], told.to_vec()].concat());
    assert_eq!(c.status().next().unwrap().broken, Some(BrokenReason::DigestMismatch));
}

#[test]
fn a_group_that_the_primary_breaks_is_called_so_by_all_shards_and_its_whole_sets_are_applied() {
    let mut c = new();
    resume(&mut c, A, 0, 0);
    resume(&mut c, B, 0, 0);
    c.handle_message(NOW, PRIMARY, manifest(1, vec![]));
    stored(&mut c, A, 1);
    commands(&mut c);
    let reason = BrokenReason::MoverRestarted;
    let broken = Message::Broken { group: GROUP, reason };
    c.handle_message(NOW, PRIMARY, broken.clone());
    let report = Command::Report(Report::Broken { group: GROUP, reason });
    assert_eq!(commands(&mut c), [report, send(B, broken.clone())]);
    c.handle_message(NOW, PRIMARY, broken.clone());
    assert_eq!(commands(&mut c), [], "it is known");
    c.handle_peer_up(NOW, B);
    assert_eq!(commands(&mut c), [send(B, broken.clone())]);
    c.handle_message(NOW, PRIMARY, Message::Lead);
    assert_eq!(commands(&mut c), [send(PRIMARY, broken.clone())]);
    stored(&mut c, B, 1);
    assert_eq!(kinds(&commands(&mut c)), ["journal commit", "journal flush"]);
}

#[test]
fn an_idle_groups_commit_does_not_hold_the_journal_for_ever() {
    let busy = GroupId(2);
    let mut c = SecondaryCoordinator::new(CoordinatorConfig {
        groups: vec![GROUP, busy],
        shards: vec![A],
        volumes: vec![(VOLUME, A)],
        ..CoordinatorConfig {
            me: A,
            shards: vec![],
            groups: vec![],
            volumes: vec![],
            sabotage: Sabotage::None,
        }
    });
    let mut position = 0;
    let mut retired = JournalPos(0);
    for (group, sets) in [(GROUP, 1), (busy, 600)] {
        let zero = SetId(0);
        c.handle_message(
            NOW,
            A,
            Message::Resume { group, stored: zero, applied: zero, not_before: zero },
        );
        for set in (1..=sets).map(SetId) {
            let facts = FactsPart { part: 0, parts: 1, facts: vec![] };
            c.handle_message(NOW, PRIMARY, Message::Manifest { group, set, cut_time_ns: 1, facts });
            c.handle_message(NOW, A, Message::Stored { group, set, not_before: SetId(0) });
            c.handle_message(NOW, A, Message::Applied { group, set });
            while let Some(command) = c.poll_command() {
                match command {
                    Command::Journal { token, .. } => {
                        position += 1;
                        c.handle_journaled(NOW, token, JournalPos(position));
                    }
                    Command::JournalFlush { token } => c.handle_journal_durable(NOW, token),
                    Command::JournalRetire { before } => retired = before,
                    _ => {}
                }
            }
        }
    }
    assert!(retired > JournalPos(500), "{retired:?} of {position}");
}
