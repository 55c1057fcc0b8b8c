//! `handle_peer_up`: what a peer that has lost its memory gets.

use super::*;

fn deliveries(commands: &[Command]) -> Vec<crate::proto::command::Token> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::SendRecord { token, .. } => Some(*token),
            _ => None,
        })
        .collect()
}

#[test]
fn coordinator_and_primaries_hear_how_far_the_shard_is() {
    let (mut machine, _) = stored(&[&[]]);
    for peer in [COORDINATOR, PRIMARY] {
        machine.handle_peer_up(NOW, peer);
        let message = Message::Resume {
            group: GROUP,
            stored: SetId(1),
            applied: SetId(0),
            not_before: SetId(0),
        };
        let commands = drain(&mut machine);
        assert_eq!(commands[1], Command::Send { to: peer, message });
        let room = Message::JournalRoom { scarce: false };
        let room = (peer == COORDINATOR).then_some(Command::Send { to: peer, message: room });
        assert_eq!(commands.get(2), room.as_ref());
    }
    machine.handle_peer_up(NOW, ShardId::new(77, 0));
    assert_eq!(kinds(&drain(&mut machine)), ["report"]);
}

#[test]
fn a_partner_that_restarted_gets_everything_again_and_old_deliveries_do_not_count() {
    let (mut machine, mut at) = (shard(Some(PARTNER)), 0);
    let updates = [update(1, 1, 0, 8), update(1, 2, 8, 8)];
    for info in &updates {
        assert_eq!(take(&mut machine, info), Receipt::Accepted);
    }
    let old = deliveries(&journal(&mut machine, &mut at));
    machine.handle_delivered(NOW, old[0]);
    machine.handle_peer_up(NOW, PARTNER);
    let new = deliveries(&journal(&mut machine, &mut at));
    assert_eq!(new.len(), 2);
    tell(&mut machine, manifest(1, vec![facts(&updates, &[])]));
    machine.handle_delivered(NOW, old[1]);
    machine.handle_delivered(NOW, new[0]);
    assert_eq!(journal(&mut machine, &mut at), []);
    machine.handle_delivered(NOW, new[1]);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"]);
}

#[test]
fn a_set_that_was_complete_but_not_in_the_journal_waits_for_the_partner_again() {
    let (mut machine, mut at) = (shard(Some(PARTNER)), 0);
    let two = [update(2, 1, 0, 8)];
    assert_eq!(take(&mut machine, &two[0]), Receipt::Accepted);
    tell(&mut machine, manifest(2, vec![facts(&two, &[])]));
    let old = deliveries(&journal(&mut machine, &mut at));
    machine.handle_delivered(NOW, old[0]);
    machine.handle_peer_up(NOW, PARTNER);
    tell(&mut machine, manifest(1, vec![]));
    let commands = journal(&mut machine, &mut at);
    let message = Message::Stored { group: GROUP, set: SetId(1), not_before: SetId(0) };
    assert_eq!(commands.last(), Some(&Command::Send { to: COORDINATOR, message }));
    let new = deliveries(&commands);
    machine.handle_delivered(NOW, new[0]);
    let message = Message::Stored { group: GROUP, set: SetId(2), not_before: SetId(0) };
    assert_eq!(journal(&mut machine, &mut at), [Command::Send { to: COORDINATOR, message }]);
}

#[test]
fn a_buffer_on_its_way_to_the_partner_is_not_freed() {
    let (mut machine, mut at) = (shard(Some(PARTNER)), 0);
    let updates = [update(1, 1, 0, 8)];
    assert_eq!(take(&mut machine, &updates[0]), Receipt::Accepted);
    let sent = deliveries(&journal(&mut machine, &mut at));
    tell(&mut machine, manifest(1, vec![facts(&updates, &[1])]));
    machine.handle_pressure(NOW);
    assert_eq!(kinds(&journal(&mut machine, &mut at)), ["stored"], "void, so not waited for");
    machine.handle_delivered(NOW, sent[0]);
    assert_eq!(journal(&mut machine, &mut at), [Command::Free { buf: BufRef(1) }]);
}
