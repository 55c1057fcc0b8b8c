//! Handing volumes over at a boundary (F3, F6), played by hand at both ends.

use super::*;
use crate::proto::membership::{Plan, SiteRecord};
use crate::proto::message::Kept;
use crate::proto::types::MoverId;

const P3: ShardId = ShardId::new(3, 0);
const V: VolumeId = VolumeId(1);
const MAP: MapVersion = MapVersion(2);

/// Epoch 1 of P1, P2 and P3 with a plan for the volume, which is P1's, to move to P2.
fn record() -> SiteRecord {
    SiteRecord {
        epoch: E,
        map_version: MapVersion(1),
        members: vec![MoverId(1), MoverId(2), MoverId(3)],
        since: vec![E; 3],
        coordinator: P1,
        owners: vec![(V, P1)],
        moved: Vec::new(),
        spells: Vec::new(),
        lost: Vec::new(),
        plan: Some(Plan { version: MAP, moves: vec![(V, P2)] }),
    }
}

/// One of the three with set 1 open and released, which knows the plan.
fn one_of_three(me: ShardId) -> PrimaryShard {
    let peers: Vec<ShardId> = [P1, P2, P3].into_iter().filter(|peer| *peer != me).collect();
    let mut config = config(P1, P2, 2);
    config.me = me;
    config.mirrors =
        peers.iter().map(|shard| MirrorPeer { shard: *shard, ..config.mirrors[0] }).collect();
    let mut shard = met(&config);
    shard.planned(&record());
    let planned = (P1, Message::Planned { map_version: MAP });
    let mut wanted = commands(&mut shard);
    let opens = wanted.iter().find_map(|command| match command {
        Command::Fence { token, .. } => Some(*token),
        _ => None,
    });
    assert_eq!(opens.is_some(), me == P2, "only the new owner has to be able to write the base");
    if let Some(token) = opens {
        assert!(!messages(&wanted).contains(&planned), "it cannot yet");
        shard.handle_written(Nanos(0), token, NvmeStatus::SUCCESS);
        wanted = commands(&mut shard);
    }
    assert!(messages(&wanted).contains(&planned));
    shard
}

fn messages(commands: &[Command]) -> Vec<(ShardId, Message)> {
    let sent = |command: &Command| match command {
        Command::Send { to, message } => Some((*to, message.clone())),
        _ => None,
    };
    commands.iter().filter_map(sent).collect()
}

fn switch(shard: &mut PrimaryShard, set: u64) -> Vec<Command> {
    let message = Message::Prepare { group: G, set: SetId(set), map_version: MAP };
    shard.handle_message(Nanos(0), P1, E, message);
    commands(shard)
}

fn handed(commands: &[Command]) -> Option<Message> {
    let all = messages(commands).into_iter();
    all.map(|(_, message)| message).find(|message| matches!(message, Message::HandOff { .. }))
}

fn settled(commands: &[Command]) -> bool {
    messages(commands).contains(&(P1, Message::Settled { group: G, map_version: MAP }))
}

#[test]
fn a_volume_is_handed_over_once_all_that_was_numbered_is_on_the_base() {
    let mut from = one_of_three(P1);
    let info = write(&mut from, 7, 100);
    assert_eq!((info.seq, info.map_version), (Seq(1), MapVersion(1)));
    let mirrored = sent(&commands(&mut from), RecordRole::Mirror);
    let at_switch = switch(&mut from, 2);
    assert!(handed(&at_switch).is_none(), "its base write has not even begun");
    assert!(settled(&at_switch), "nothing comes here");
    from.handle_delivered(mirrored[0]);
    let to_base = base_writes(&commands(&mut from));
    from.handle_written(Nanos(0), to_base[0], NvmeStatus::SUCCESS);
    let done = commands(&mut from);
    let lasts = vec![(SetId(1), Seq(1))];
    let expected = Message::HandOff {
        group: G,
        map_version: MAP,
        volume: V,
        next: Seq(2),
        lost_from: Seq(0),
        confirmed: Seq(0),
        lasts,
    };
    assert_eq!(handed(&done), Some(expected));
    assert_eq!(completed(&done), [(7, true)]);
    // What comes afterwards is the new owner's, and so are forwarded updates that come too late.
    write(&mut from, 8, 200);
    let forwarded = messages_to(&commands(&mut from), RecordRole::Forward);
    assert_eq!(forwarded, [P2]);
    let late = UpdateInfo { forward: crate::proto::types::ForwardId(9), seq: Seq(0), ..info };
    let verdict = from.handle_record(P3, RecordRole::Forward, &late, BufRef(50));
    assert_eq!(verdict, RecordVerdict::NotNeeded);
    let told = messages(&commands(&mut from));
    assert!(
        told.iter().any(|(to, message)| *to == P3
            && matches!(message, Message::NotResponsible { owner, .. } if *owner == P2)),
        "{told:?}"
    );
}

fn messages_to(commands: &[Command], wanted: RecordRole) -> Vec<ShardId> {
    let to = |command: &Command| match command {
        Command::SendRecord { to, role, .. } if *role == wanted => Some(*to),
        _ => None,
    };
    commands.iter().filter_map(to).collect()
}

/// P1 says that the volume goes on with number 5; sets 1 and 2, which end with 3 and 4, are not confirmed.
fn hand_off(to: &mut PrimaryShard) -> Vec<Command> {
    let message = Message::HandOff {
        group: G,
        map_version: MAP,
        volume: V,
        next: Seq(5),
        lost_from: Seq(0),
        confirmed: Seq(2),
        lasts: vec![(SetId(1), Seq(3)), (SetId(2), Seq(4))],
    };
    to.handle_message(Nanos(0), P1, E, message);
    commands(to)
}

#[test]
fn the_new_owner_numbers_nothing_before_the_word_of_the_former_one() {
    for early in [false, true] {
        let mut to = one_of_three(P2);
        if early {
            assert!(!settled(&hand_off(&mut to)), "it has not switched");
            assert!(settled(&switch(&mut to, 2)));
        } else {
            assert!(!settled(&switch(&mut to, 2)));
            assert_eq!(to.admit(0, 4352).err(), Some(Full::TakeOver));
            assert!(to.moving().eq([(V, true, 0)]));
            assert!(settled(&hand_off(&mut to)));
        }
        assert!(to.moving().next().is_none() && to.is_ready(0));
        let info = write(&mut to, 7, 100);
        assert_eq!((info.seq, info.set, info.map_version), (Seq(5), SetId(2), MAP));
        commands(&mut to);
        assert!(hand_off(&mut to).is_empty(), "said twice");
        assert_eq!(write(&mut to, 8, 101).seq, Seq(6));
        confirm(&mut to, 1);
        assert_eq!(to.volumes[0].confirmed, Seq(3), "what the former owner gave is known, too");
    }
}

#[test]
fn updates_for_a_volume_on_its_way_wait_at_the_new_owner_and_hold_up_no_others() {
    let mut third = one_of_three(P3);
    switch(&mut third, 2);
    let info = write(&mut third, 7, 100);
    assert_eq!(messages_to(&commands(&mut third), RecordRole::Forward), [P2]);
    let mut to = one_of_three(P2);
    let verdict = to.handle_record(P3, RecordRole::Forward, &info, BufRef(90));
    assert_eq!(verdict, RecordVerdict::Kept, "P3 has switched before this one");
    assert!(to.next_arrived().is_none());
    switch(&mut to, 2);
    assert!(to.next_arrived().is_none());
    hand_off(&mut to);
    let (buf, numbered) = to.number_arrived(4352, || 0).unwrap();
    assert_eq!((buf, numbered.seq, numbered.origin), (BufRef(90), Seq(5), P3.mover));
    assert_eq!((numbered.time_ns, numbered.time_error_ns), (1_007, 7), "as P3 took it");
}

#[test]
fn a_former_owner_that_has_not_handed_over_keeps_the_volume_when_the_new_one_fails() {
    let mut from = one_of_three(P1);
    write(&mut from, 7, 100);
    commands(&mut from);
    switch(&mut from, 2);
    let next = SiteRecord {
        epoch: Epoch(2),
        map_version: MapVersion(3),
        members: vec![MoverId(1), MoverId(3)],
        since: vec![E; 2],
        moved: vec![V],
        spells: Vec::new(),
        lost: Vec::new(),
        plan: None,
        ..record()
    };
    from.enter(Nanos(1), &next);
    assert!(from.is_ready(0), "nobody else can have numbered anything");
    assert_eq!(write(&mut from, 8, 101).seq, Seq(2));
    // Once it has, it asks the others what the new owner gave out.
    let mut handed_over = one_of_three(P1);
    assert!(handed(&switch(&mut handed_over, 2)).is_some());
    handed_over.enter(Nanos(1), &next);
    assert!(!handed_over.is_ready(0));
    assert!(handed_over.not_ready().eq([(V, true)]));
}

#[test]
fn a_hand_over_is_said_again_when_the_link_comes_up() {
    let mut from = one_of_three(P1);
    let word = handed(&switch(&mut from, 2)).unwrap();
    from.handle_peer_up(P2);
    assert_eq!(handed(&commands(&mut from)), Some(word));
    from.planned(&record().carried_out().unwrap());
    from.handle_peer_up(P2);
    assert_eq!(
        handed(&commands(&mut from)),
        None,
        "all shards have said that they have everything"
    );
}

/// The moves are over, and the volume is to move on to `to`; the shard switches to set 3 by that.
fn move_on(shard: &mut PrimaryShard, to: ShardId) -> Vec<Command> {
    let done = record().carried_out().unwrap();
    shard.planned(&done);
    let next = done.planned(&[(V, to)]).unwrap();
    shard.planned(&next);
    let map_version = next.plan.map_or(MAP, |plan| plan.version);
    let message = Message::Prepare { group: G, set: SetId(3), map_version };
    shard.handle_message(Nanos(0), P1, E, message);
    commands(shard)
}

#[test]
fn of_a_volume_that_comes_back_all_that_is_kept_is_told() {
    let mut from = one_of_three(P1);
    write(&mut from, 7, 100);
    let mirrored = sent(&commands(&mut from), RecordRole::Mirror);
    switch(&mut from, 2);
    from.handle_delivered(mirrored[0]);
    let to_base = base_writes(&commands(&mut from));
    from.handle_written(Nanos(0), to_base[0], NvmeStatus::SUCCESS);
    assert!(handed(&commands(&mut from)).is_some());
    let kept = [Kept { set: SetId(1), first: Seq(1), last: Seq(1) }];
    assert_eq!(from.kept_to_tell(0), kept);
    move_on(&mut from, P1);
    assert!(from.is_responsible(0) && !from.is_ready(0), "P2 has not handed it over");
    assert_eq!(from.kept_to_tell(0), kept, "what it gives out next is not known");
}

#[test]
fn a_former_owner_still_learns_what_is_confirmed() {
    let mut to = one_of_three(P2);
    switch(&mut to, 2);
    hand_off(&mut to);
    assert!(handed(&move_on(&mut to, P3)).is_some());
    confirm(&mut to, 1);
    assert_eq!(to.volumes[0].confirmed, Seq(3), "P3 may fail before it has heard that");
}

#[test]
fn a_rejected_update_goes_to_who_is_responsible_when_its_record_has_arrived() {
    let mut taker = one_of_three(P2);
    let info = write(&mut taker, 7, 100);
    let travels = sent(&commands(&mut taker), RecordRole::Forward);
    switch(&mut taker, 2);
    hand_off(&mut taker);
    let rejected = Message::NotResponsible { forward: info.forward, owner: P2, map_version: MAP };
    taker.handle_message(Nanos(0), P1, E, rejected);
    move_on(&mut taker, P3);
    taker.handle_delivered(travels[0]);
    assert!(taker.next_arrived().is_none());
    assert_eq!(messages_to(&commands(&mut taker), RecordRole::Forward), [P3]);
}

#[test]
fn an_owner_that_has_not_switched_yet_does_not_give_the_volume_away_on_a_rejection() {
    let mut to = one_of_three(P2);
    let info = write(&mut to, 7, 100);
    let travels = sent(&commands(&mut to), RecordRole::Forward);
    switch(&mut to, 2);
    hand_off(&mut to);
    // P1 has switched to the next map already, by which the volume is P3's.
    let map_version = MapVersion(3);
    let rejected = Message::NotResponsible { forward: info.forward, owner: P3, map_version };
    to.handle_message(Nanos(0), P1, E, rejected);
    to.handle_delivered(travels[0]);
    assert!(to.is_responsible(0));
    let (_, numbered) = to.number_arrived(4352, || 0).unwrap();
    assert_eq!((numbered.seq, numbered.owner), (Seq(5), P2));
}
