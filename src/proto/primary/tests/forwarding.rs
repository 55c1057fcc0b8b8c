//! Updates that one shard takes for another's volume (G3, G4), played by hand at both ends.

use super::*;
use crate::proto::types::ForwardId;

const P3: ShardId = ShardId::new(3, 0);

/// A shard of three, with a volume of its own at index 0 and one of each peer behind it, set 1
/// open and released.
fn one_of_three(me: ShardId, copies: u8) -> PrimaryShard {
    let peers: Vec<ShardId> = [P1, P2, P3].into_iter().filter(|peer| *peer != me).collect();
    let mut config = config(me, peers[0], copies);
    config.mirrors =
        peers.iter().map(|shard| MirrorPeer { shard: *shard, ..config.mirrors[0] }).collect();
    let own = config.volumes[0];
    config.volumes.extend(peers.iter().map(|peer| VolumeConfig {
        id: VolumeId(u32::from(peer.mover.0)),
        owner: *peer,
        ..own
    }));
    met(&config)
}

/// P2 takes a write for volume 1, which is P1's.
fn taken(taker: &mut PrimaryShard, tag: u64) -> (UpdateInfo, Token) {
    let volume = taker.volume_index(VolumeId(1)).unwrap();
    let admitted = taker.admit(volume, 4352).unwrap();
    let info = taker.host_update(admitted, &HostUpdate { volume, ..update(tag, 8 * tag) });
    let sent = sent(&commands(taker), RecordRole::Forward);
    (info, sent[0])
}

fn arrives(owner: &mut PrimaryShard, from: ShardId, info: &UpdateInfo, buf: u64) -> UpdateInfo {
    let verdict = owner.handle_record(from, RecordRole::Forward, info, BufRef(buf));
    assert_eq!(verdict, RecordVerdict::Kept);
    let (numbered, info) = owner.number_arrived(4352, || 0).unwrap();
    assert_eq!(numbered, BufRef(buf));
    info
}

fn told(commands: &[Command]) -> Vec<Message> {
    let told = |c: &Command| match c {
        Command::Send { message: message @ Message::Forwarded { .. }, .. }
        | Command::Send { message: message @ Message::NotResponsible { .. }, .. } => {
            Some(message.clone())
        }
        _ => None,
    };
    commands.iter().filter_map(told).collect()
}

#[test]
fn the_base_waits_until_the_taker_knows_the_number_and_the_taker_is_answered_last() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (forwarded, delivery) = taken(&mut taker, 5);
    assert_eq!((forwarded.seq, forwarded.origin, forwarded.owner), (Seq(0), P2.mover, P1));
    let numbered = arrives(&mut owner, P2, &forwarded, 50);
    for info in [&forwarded, &numbered] {
        assert_eq!((info.time_ns, info.time_error_ns), (1_005, 7), "the taker's (G8)");
    }
    taker.handle_delivered(delivery);
    assert_eq!((numbered.seq, numbered.set, numbered.origin), (Seq(1), SetId(1), P2.mover));
    assert_eq!(numbered.forward, forwarded.forward);
    let batch = commands(&mut owner);
    assert!(sent(&batch, RecordRole::Mirror).is_empty(), "the taker's copy is the second one");
    assert!(base_writes(&batch).is_empty(), "invariant 2");
    let verdict = taker.handle_record(P1, RecordRole::Numbered, &numbered, BufRef(51));
    assert_eq!(verdict, RecordVerdict::Numbered { buf: BufRef(5) });
    let again = taker.handle_record(P1, RecordRole::Numbered, &numbered, BufRef(52));
    assert_eq!(again, RecordVerdict::NotNeeded);
    owner.handle_delivered(sent(&batch, RecordRole::Numbered)[0]);
    let batch = commands(&mut owner);
    owner.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::SUCCESS);
    let batch = commands(&mut owner);
    assert!(completed(&batch).is_empty(), "the source is not here");
    let answer = Message::Forwarded { forward: forwarded.forward, status: NvmeStatus::SUCCESS };
    assert_eq!(told(&batch), std::slice::from_ref(&answer));
    assert!(completed(&commands(&mut taker)).is_empty());
    taker.handle_message(Nanos(1), P1, E, answer);
    assert_eq!(completed(&commands(&mut taker)), [(5, true)]);
    // The copy stays until the set is confirmed (invariant 8), and is a mirror copy to people.
    assert_eq!(
        taker.mirrored().map(|copy| (copy.info.seq, copy.from)).collect::<Vec<_>>(),
        [(Seq(1), P1)]
    );
    assert_eq!(owner.ledger(None, 9)[0].taken_by, Some(P2));
    confirm(&mut taker, 1);
    assert_eq!(freed(&commands(&mut taker)), [5]);
    assert!(taker.is_drained());
}

#[test]
fn more_copies_than_two_are_mirrored_to_others_than_the_taker() {
    let (mut owner, mut taker) = (one_of_three(P1, 3), one_of_three(P2, 3));
    let (forwarded, _) = taken(&mut taker, 1);
    arrives(&mut owner, P2, &forwarded, 50);
    let mirrored: Vec<(ShardId, RecordRole)> = commands(&mut owner)
        .into_iter()
        .filter_map(|c| match c {
            Command::SendRecord { to, role, .. } => Some((to, role)),
            _ => None,
        })
        .collect();
    assert_eq!(mirrored, [(P2, RecordRole::Numbered), (P3, RecordRole::Mirror)]);
}

#[test]
fn a_forwarded_record_waits_without_a_number_while_there_is_no_room() {
    let mut owner = one_of_three(P1, 3);
    owner.handle_message(Nanos(0), P3, E, Message::Budget { bytes: 100 });
    let mut taker = one_of_three(P2, 3);
    let (forwarded, _) = taken(&mut taker, 1);
    owner.handle_record(P2, RecordRole::Forward, &forwarded, BufRef(50));
    assert!(owner.number_arrived(4352, || 0).is_none());
    assert!(owner.next_arrived().is_some());
    owner.handle_message(Nanos(0), P3, E, Message::Budget { bytes: 40_000 });
    assert!(owner.number_arrived(4352, || 0).is_some());
    assert!(owner.next_arrived().is_none());
}

#[test]
fn a_taker_whose_window_is_full_is_told_to_wait() {
    let mut taker = one_of_three(P2, 2);
    let volume = taker.volume_index(VolumeId(1)).unwrap();
    for tag in 1..=4 {
        taken(&mut taker, tag);
    }
    assert_eq!(taker.admit(volume, 4352).unwrap_err(), Full::Forwards);
    taker.handle_message(Nanos(0), P3, E, Message::Budget { bytes: 100 });
    let other = taker.volume_index(VolumeId(3)).unwrap();
    assert!(matches!(taker.admit(other, 4352), Err(Full::Forwards | Full::Mirrors)));
    assert!(taker.admit(0, 4352).is_ok(), "its own volumes are not held up");
}

#[test]
fn forwards_that_wait_take_nothing_of_what_copies_need() {
    let mut shard = one_of_three(P1, 3);
    let other = shard.volume_index(VolumeId(3)).unwrap();
    let mut tag = 1;
    while let Ok(admitted) = shard.admit(other, 4352) {
        shard.host_update(admitted, &HostUpdate { volume: other, ..update(tag, 8 * tag) });
        tag += 1;
    }
    assert_eq!(tag, 5);
    assert!(shard.admit(0, 4352).is_ok(), "or shards could wait for one another in a circle");
}

#[test]
fn a_shard_that_is_not_responsible_rejects_and_the_taker_goes_to_the_one_that_is() {
    let (mut wrong, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (mut forwarded, delivery) = taken(&mut taker, 4);
    // By P1's map the volume is P3's.
    forwarded.volume = VolumeId(3);
    let verdict = wrong.handle_record(P2, RecordRole::Forward, &forwarded, BufRef(50));
    assert_eq!(verdict, RecordVerdict::NotNeeded);
    let rejection = Message::NotResponsible {
        forward: forwarded.forward,
        owner: P3,
        map_version: MapVersion(1),
    };
    assert_eq!(told(&commands(&mut wrong)), std::slice::from_ref(&rejection));
    assert_eq!(wrong.counters().misdirected, 1);
    taker.handle_message(Nanos(1), P1, E, rejection);
    assert!(sent(&commands(&mut taker), RecordRole::Forward).is_empty(), "the record travels");
    taker.handle_delivered(delivery);
    let batch = commands(&mut taker);
    let again = |c: &Command| {
        matches!(c, Command::SendRecord { to: P3, role: RecordRole::Forward, buf: BufRef(4), .. })
    };
    assert!(batch.iter().any(again), "{batch:?}");
    assert_eq!(taker.owner_of(taker.volume_index(VolumeId(1)).unwrap()), P3);
    assert_eq!(taker.counters().rejected, 1);
}

#[test]
fn a_forwarded_update_with_another_block_size_or_group_is_refused() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (forwarded, _) = taken(&mut taker, 4);
    let wrong = [
        UpdateInfo { block_bytes: 512, ..forwarded },
        UpdateInfo { group: GroupId(9), ..forwarded },
    ];
    for info in wrong {
        let verdict = owner.handle_record(P2, RecordRole::Forward, &info, BufRef(50));
        assert_eq!(verdict, RecordVerdict::NotNeeded);
    }
    assert!(owner.next_arrived().is_none());
    assert_eq!(owner.counters().unexpected, 2);
    let refusal = Message::Forwarded { forward: forwarded.forward, status: NvmeStatus::INTERNAL };
    assert_eq!(told(&commands(&mut owner)), [refusal.clone(), refusal], "nobody waits for ever");
}

#[test]
fn a_rejection_that_names_nobody_else_has_the_source_try_again() {
    let mut taker = one_of_three(P2, 2);
    let (forwarded, delivery) = taken(&mut taker, 4);
    let rejection = Message::NotResponsible {
        forward: forwarded.forward,
        owner: P1,
        map_version: MapVersion(1),
    };
    taker.handle_message(Nanos(1), P1, E, rejection);
    let batch = commands(&mut taker);
    let retry = Command::CompleteHost { tag: HostTag(4), status: NvmeStatus::ANA_TRANSITION };
    assert!(batch.contains(&retry) && freed(&batch).is_empty(), "its record still travels");
    taker.handle_delivered(delivery);
    assert_eq!(freed(&commands(&mut taker)), [4]);
}

#[test]
fn a_failed_base_write_is_void_at_the_taker_too_and_its_source_has_the_status() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (forwarded, delivery) = taken(&mut taker, 5);
    let numbered = arrives(&mut owner, P2, &forwarded, 50);
    for info in [&forwarded, &numbered] {
        assert_eq!((info.time_ns, info.time_error_ns), (1_005, 7), "the taker's (G8)");
    }
    taker.handle_delivered(delivery);
    taker.handle_record(P1, RecordRole::Numbered, &numbered, BufRef(51));
    let batch = commands(&mut owner);
    owner.handle_delivered(sent(&batch, RecordRole::Numbered)[0]);
    let batch = commands(&mut owner);
    owner.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::WRITE_FAULT);
    let word = sent(&commands(&mut owner), RecordRole::Voided)[0];
    taker.handle_record(P1, RecordRole::Voided, &numbered, BufRef(52));
    assert!(taker.mirrored().next().unwrap().void);
    owner.handle_delivered(word);
    for command in commands(&mut owner) {
        if let Command::Send { to: P2, message } = command {
            taker.handle_message(Nanos(1), P1, E, message);
        }
    }
    assert_eq!(completed(&commands(&mut taker)), [(5, false)]);
}

#[test]
fn a_restarted_owner_gets_again_what_it_had_not_numbered() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (first, delivery) = taken(&mut taker, 5);
    let numbered = arrives(&mut owner, P2, &first, 50);
    taker.handle_delivered(delivery);
    taker.handle_record(P1, RecordRole::Numbered, &numbered, BufRef(51));
    let (_, _) = taken(&mut taker, 6);
    taker.handle_peer_up(P1);
    let batch = commands(&mut taker);
    let retry = Command::CompleteHost { tag: HostTag(5), status: NvmeStatus::ANA_TRANSITION };
    assert!(batch.contains(&retry), "nobody knows what became of it");
    assert_eq!(sent(&batch, RecordRole::Forward).len(), 1);
    assert_eq!(taker.mirrored().count(), 1, "its copy may be the only one");
}

#[test]
fn a_restarted_taker_is_not_answered_and_its_updates_without_number_are_dropped() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (first, _) = taken(&mut taker, 5);
    let (second, _) = taken(&mut taker, 6);
    arrives(&mut owner, P2, &first, 50);
    commands(&mut owner);
    owner.handle_record(P2, RecordRole::Forward, &second, BufRef(51));
    owner.handle_peer_up(P2);
    let batch = commands(&mut owner);
    assert_eq!(freed(&batch), [51]);
    let again = sent(&batch, RecordRole::Mirror);
    assert_eq!(again.len(), 1, "it lost its copy");
    owner.handle_delivered(again[0]);
    let batch = commands(&mut owner);
    owner.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::SUCCESS);
    assert!(told(&commands(&mut owner)).is_empty(), "its new life knows nothing of it");
}

#[test]
fn a_shard_that_is_being_stopped_refuses_what_has_no_number() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (forwarded, delivery) = taken(&mut taker, 5);
    owner.handle_record(P2, RecordRole::Forward, &forwarded, BufRef(50));
    taker.handle_delivered(delivery);
    owner.refuse_arrived(NvmeStatus::ANA_TRANSITION);
    let batch = commands(&mut owner);
    assert_eq!(freed(&batch), [50]);
    assert!(owner.next_arrived().is_none() && owner.is_drained());
    let answer =
        Message::Forwarded { forward: forwarded.forward, status: NvmeStatus::ANA_TRANSITION };
    assert_eq!(told(&batch), std::slice::from_ref(&answer));
    taker.handle_message(Nanos(1), P1, E, answer);
    let batch = commands(&mut taker);
    assert_eq!((completed(&batch), freed(&batch)), (vec![(5, false)], vec![5]));
    assert!(taker.is_drained());
    owner.refuse_arrived(NvmeStatus::ANA_TRANSITION);
    assert!(commands(&mut owner).is_empty(), "there was nothing to refuse");
}

#[test]
fn the_number_of_an_unknown_forward_is_refused() {
    let (mut owner, mut taker) = (one_of_three(P1, 2), one_of_three(P2, 2));
    let (forwarded, _) = taken(&mut taker, 5);
    let mut numbered = arrives(&mut owner, P2, &forwarded, 50);
    let from_another = taker.handle_record(P3, RecordRole::Numbered, &numbered, BufRef(51));
    assert_eq!(from_another, RecordVerdict::NotNeeded);
    numbered.forward = ForwardId(77 << 32);
    let unknown = taker.handle_record(P1, RecordRole::Numbered, &numbered, BufRef(51));
    assert_eq!(unknown, RecordVerdict::NotNeeded);
    let answer = Message::Forwarded { forward: ForwardId(77 << 32), status: NvmeStatus::SUCCESS };
    taker.handle_message(Nanos(1), P1, E, answer);
    assert_eq!(taker.counters().unexpected, 1);
    assert!(completed(&commands(&mut taker)).is_empty());
}
