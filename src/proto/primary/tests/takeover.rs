//! Taking volumes over, played by hand at a member that holds copies (F5).

use super::*;
use crate::proto::membership::SiteRecord;
use crate::proto::message::Held;
use crate::proto::types::{ForwardId, MoverId};

const P3: ShardId = ShardId::new(3, 0);
const V: VolumeId = VolumeId(1);

/// Epoch `epoch`, in which `members` take part since the epochs beside them, and the last named is
/// responsible for the volume.
fn record(epoch: u32, members: &[(ShardId, u32)], owner: ShardId) -> SiteRecord {
    SiteRecord {
        epoch: Epoch(epoch),
        map_version: MapVersion(epoch),
        members: members.iter().map(|(shard, _)| shard.mover).collect(),
        since: members.iter().map(|(_, since)| Epoch(*since)).collect(),
        coordinator: members[0].0,
        owners: vec![(V, owner)],
        moved: vec![V],
        failures: 1,
    }
}

/// P2 of three movers; P1 is responsible for the volume, and set 1 is open.
fn member() -> PrimaryShard {
    let mut config = config(P1, P3, 2);
    config.me = P2;
    config.mirrors.push(MirrorPeer { shard: P1, grant_bytes: 1 << 20, is_target: true });
    let mut shard = PrimaryShard::new(&config);
    for peer in [P1, P3] {
        shard.handle_peer_up(peer);
        shard.handle_message(Nanos(0), peer, E, Message::Budget { bytes: 40_000 });
    }
    prepare(&mut shard, 1);
    release(&mut shard, 1);
    commands(&mut shard);
    shard
}

/// A copy of number `seq` arrives from P1.
fn copy(shard: &mut PrimaryShard, seq: u64, set: u64) -> RecordVerdict {
    let info = UpdateInfo {
        kind: UpdateKind::Write,
        fua: false,
        payload_crc: 0,
        payload_len: 4096,
        volume: V,
        group: G,
        origin: MoverId(1),
        owner: P1,
        epoch: E,
        map_version: MapVersion(1),
        set: SetId(set),
        seq: Seq(seq),
        extent: Extent { lba: seq, blocks: 1 },
        block_bytes: 4096,
        list_seq: 0,
        time_ns: 0,
        time_error_ns: 0,
        forward: ForwardId(0),
    };
    shard.handle_record(P1, RecordRole::Mirror, &info, BufRef(seq))
}

/// P1 fails, and P2 takes over; P3 has nothing. What it finds: updates, voids, next number.
fn take_over(shard: &mut PrimaryShard) -> (u32, u32, Seq) {
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    let held = Held { volume: V, copies: 0, confirmed: Seq(0) };
    let (confirmed, open) = (SetId(0), SetId(1));
    let (part, parts, volumes) = (0, 1, vec![held]);
    let survey = Message::Survey { group: G, confirmed, open, part, parts, volumes };
    shard.handle_message(Nanos(2), P3, Epoch(2), survey);
    let found = commands(shard).into_iter().find_map(|command| match command {
        Command::Report(Report::TakenOver { updates, voids, next, .. }) => {
            Some((updates, voids, next))
        }
        _ => None,
    });
    found.expect("all members have spoken")
}

#[test]
fn a_lost_number_between_others_is_void_and_lost_ones_after_the_last_are_given_out_again() {
    let mut shard = member();
    assert_eq!(copy(&mut shard, 1, 1), RecordVerdict::Kept);
    assert_eq!(copy(&mut shard, 3, 1), RecordVerdict::Kept);
    assert_eq!(take_over(&mut shard), (2, 1, Seq(4)));
}

#[test]
fn a_copy_that_is_not_needed_still_tells_that_its_number_is_confirmed() {
    let mut shard = member();
    prepare(&mut shard, 2);
    confirm(&mut shard, 1);
    assert_eq!(copy(&mut shard, 1, 1), RecordVerdict::NotNeeded);
    assert_eq!(copy(&mut shard, 2, 2), RecordVerdict::Kept);
    assert_eq!(take_over(&mut shard), (1, 0, Seq(3)), "#1 is no void");
}

#[test]
fn a_copy_goes_to_the_next_responsible_shard_when_the_one_that_it_travels_to_was_restarted() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    let resent = |shard: &mut PrimaryShard| {
        let to = commands(shard).into_iter().filter_map(|command| match command {
            Command::SendRecord { to, role: RecordRole::Resend, .. } => Some(to),
            _ => None,
        });
        to.collect::<Vec<_>>()
    };
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P3));
    assert_eq!(resent(&mut shard), [P3]);
    // P1 came back, then P3 failed and came back: this shard hears of all that at once.
    shard.enter(Nanos(2), &record(5, &[(P1, 3), (P2, 1), (P3, 5)], P1));
    assert_eq!(resent(&mut shard), [], "neither link is up");
    shard.handle_peer_up(P3);
    assert_eq!(resent(&mut shard), []);
    shard.handle_peer_up(P1);
    assert_eq!(resent(&mut shard), [P1]);
}

#[test]
fn a_member_without_an_open_set_says_which_one_others_had_open() {
    let mut config = config(P1, P3, 2);
    config.me = P2;
    config.epoch = Epoch(4);
    let mut shard = PrimaryShard::new(&config);
    shard.enter(Nanos(0), &record(5, &[(P2, 5), (P3, 1)], P3));
    let (confirmed, open) = (SetId(16), SetId(18));
    let (part, parts, volumes) = (0, 1, Vec::new());
    let survey = Message::Survey { group: G, confirmed, open, part, parts, volumes };
    shard.handle_message(Nanos(1), P3, Epoch(5), survey);
    commands(&mut shard);
    shard.enter(Nanos(2), &record(6, &[(P2, 5)], P2));
    let said = commands(&mut shard);
    let resume = Message::Resume { group: G, stored: confirmed, applied: open };
    assert!(said.contains(&Command::Send { to: P2, message: resume }), "{said:?}");
    assert_eq!(closed(&said).iter().map(|(set, _)| *set).collect::<Vec<_>>(), [SetId(17)]);
}

#[test]
fn a_void_from_a_former_life_of_its_sender_is_refused() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    let void = Message::Void { group: G, volume: V, set: SetId(1), seq: Seq(1) };
    shard.enter(Nanos(1), &record(3, &[(P1, 3), (P2, 1), (P3, 1)], P3));
    shard.handle_message(Nanos(2), P1, E, void.clone());
    assert!(shard.mirrored().all(|copy| !copy.void));
    shard.handle_message(Nanos(2), P3, E, void);
    assert!(shard.mirrored().all(|copy| copy.void), "links between members outlast an epoch");
}
