//! Taking volumes over, played by hand at a member that holds copies (F5).

use super::*;
use crate::proto::membership::SiteRecord;
use crate::proto::message::Held;
use crate::proto::primary::takeover::TAG_FENCE;
use crate::proto::types::{ForwardId, MoverId};

const P3: ShardId = ShardId::new(3, 0);
pub(super) const V: VolumeId = VolumeId(1);

/// Epoch `epoch`, in which `members` take part since the epochs beside them, and the last named is
/// responsible for the volume.
pub(super) fn record(epoch: u32, members: &[(ShardId, u32)], owner: ShardId) -> SiteRecord {
    SiteRecord {
        epoch: Epoch(epoch),
        map_version: MapVersion(epoch),
        members: members.iter().map(|(shard, _)| shard.mover).collect(),
        since: members.iter().map(|(_, since)| Epoch(*since)).collect(),
        coordinator: members[0].0,
        owners: vec![(V, owner)],
        moved: vec![V],
        spells: Vec::new(),
        lost: Vec::new(),
        plan: None,
    }
}

/// P2 of three movers; P1 is responsible for the volume, and set 1 is open.
fn member() -> PrimaryShard {
    member_with(config(P1, P3, 2).groups[0])
}

/// The same with a group that is configured so.
pub(super) fn member_with(group: GroupConfig) -> PrimaryShard {
    let mut config = config(P1, P3, 2);
    config.groups[0] = group;
    config.me = P2;
    config.mirrors.push(MirrorPeer { shard: P1, grant_bytes: 1 << 20, is_target: true });
    met(&config)
}

/// A copy of number `seq` arrives from P1.
fn copy(shard: &mut PrimaryShard, seq: u64, set: u64) -> RecordVerdict {
    shard.handle_record(P1, RecordRole::Mirror, &copy_info(seq, set), BufRef(seq))
}

/// What P1 says of number `seq`.
pub(super) fn copy_info(seq: u64, set: u64) -> UpdateInfo {
    UpdateInfo {
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
        described: false,
        not_before: SetId(0),
    }
}

/// P1 fails, and P2 takes over; P3 has nothing. What it finds: updates, voids, next number.
fn take_over(shard: &mut PrimaryShard) -> (u32, u32, Seq) {
    take_over_hearing(shard, 0)
}

/// The same where P3 has heard of numbers up to `heard`.
fn take_over_hearing(shard: &mut PrimaryShard, heard: u64) -> (u32, u32, Seq) {
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    survey(shard, 0, 0, heard);
    let wanted = commands(shard);
    for token in sent(&wanted, RecordRole::Mirror) {
        shard.handle_delivered(token);
    }
    taken_over(&wanted).expect("all members have spoken")
}

/// P3 says in epoch 2 that it sends so many copies, knows sets up to `confirmed` to be confirmed, and has
/// heard of numbers up to `heard`.
pub(super) fn survey(shard: &mut PrimaryShard, copies: u32, confirmed: u64, heard: u64) {
    let held = Held { volume: V, copies, confirmed: Seq(0), heard: Seq(heard), kept: None };
    let (confirmed, open) = (SetId(confirmed), SetId(confirmed + 1));
    let (part, parts, volumes) = (0, 1, vec![held]);
    let survey = Message::Survey { group: G, confirmed, open, part, parts, volumes };
    shard.handle_message(Nanos(2), P3, Epoch(2), survey);
}

/// The updates, voids and next number of a take-over.
fn taken_over(commands: &[Command]) -> Option<(u32, u32, Seq)> {
    commands.iter().find_map(|command| match command {
        Command::Report(Report::TakenOver { updates, voids, next, .. }) => {
            Some((*updates, *voids, *next))
        }
        _ => None,
    })
}

/// All that [`take_over`] wants done is: the volume is open again, and set `set` too.
fn open_again(shard: &mut PrimaryShard, set: u64) {
    shard.handle_message(Nanos(3), P3, Epoch(2), Message::Budget { bytes: 40_000 });
    for message in [
        Message::Prepare { group: G, set: SetId(set), map_version: MapVersion(2) },
        Message::Release { group: G, set: SetId(set) },
    ] {
        shard.handle_message(Nanos(3), P2, Epoch(2), message);
    }
    shard.handle_written(Nanos(0), Token(u64::from(TAG_FENCE) << 32), NvmeStatus::SUCCESS);
    finish_all(shard);
}

#[test]
fn a_lost_number_between_others_is_void() {
    let mut shard = member();
    assert_eq!(copy(&mut shard, 1, 1), RecordVerdict::Kept);
    assert_eq!(copy(&mut shard, 3, 1), RecordVerdict::Kept);
    assert_eq!(take_over(&mut shard), (2, 1, Seq(4)));
}

#[test]
fn a_number_that_any_member_has_heard_of_is_not_given_out_again() {
    let mut shard = member();
    assert_eq!(copy(&mut shard, 1, 1), RecordVerdict::Kept);
    assert_eq!(take_over_hearing(&mut shard, 3), (1, 2, Seq(4)));
    let marks = |shard: &PrimaryShard| shard.own_marks(|_| true).map(|held| held.heard).last();
    assert_eq!(marks(&shard), Some(Seq(3)), "whoever takes over next does not either");
    let mut full = member();
    for seq in 1..=64 {
        assert_eq!(copy(&mut full, seq, 1), RecordVerdict::Kept);
    }
    assert_eq!(copy(&mut full, 66, 1), RecordVerdict::Full, "and is heard of all the same");
    assert_eq!(take_over(&mut full), (64, 2, Seq(67)));
}

#[test]
fn the_last_numbers_that_nobody_holds_are_void_in_the_set_of_the_next_one() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    assert_eq!(take_over_hearing(&mut shard, 3), (1, 2, Seq(4)));
    open_again(&mut shard, 2);
    let info = write(&mut shard, 7, 100);
    assert_eq!((info.seq, info.set), (Seq(4), SetId(2)));
    finish_all(&mut shard);
    let prepare = Message::Prepare { group: G, set: SetId(3), map_version: MapVersion(2) };
    shard.handle_message(Nanos(4), P2, Epoch(2), prepare);
    let facts: Vec<_> = closed(&commands(&mut shard)).into_iter().map(|(_, part)| part).collect();
    let spans: Vec<_> = facts.iter().flat_map(|part| &part.facts).collect();
    assert_eq!(spans.iter().map(|f| (f.first, f.last)).collect::<Vec<_>>(), [(Seq(2), Seq(4))]);
    assert_eq!(spans[0].voids, [Seq(2), Seq(3)]);
    // Whoever has a copy of it, and takes over when this shard fails too, counts them there as well.
    let mut next = member();
    copy(&mut next, 1, 1);
    copy(&mut next, 4, 2);
    assert_eq!(take_over(&mut next), (2, 2, Seq(5)));
    let sets = next.groups[0].sets.iter().flat_map(|set| set.facts());
    assert_eq!(sets.map(|f| f.voids).collect::<Vec<_>>(), [vec![], vec![Seq(2), Seq(3)]]);
}

#[test]
fn copies_that_were_promised_in_an_epoch_before_do_not_count_for_those_of_this_one() {
    let mut shard = member();
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    let from_p3 = |shard: &mut PrimaryShard, seq, set| {
        let mut info = copy_info(seq, set);
        info.epoch = E;
        shard.handle_record(P3, RecordRole::Resend, &info, BufRef(100 + seq))
    };
    // P3 knows set 1 to be confirmed and promises #2; #1 is on its way since the epoch before.
    survey(&mut shard, 1, 1, 2);
    from_p3(&mut shard, 1, 1);
    assert_eq!(taken_over(&commands(&mut shard)), None, "not all is here");
    from_p3(&mut shard, 2, 2);
    assert_eq!(taken_over(&commands(&mut shard)), Some((1, 0, Seq(3))));
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
    let resume = Message::Greet { group: G, confirmed, open, map_version: MapVersion(6) };
    assert!(said.contains(&Command::Send { to: P2, message: resume }), "{said:?}");
    assert_eq!(closed(&said).iter().map(|(set, _)| *set).collect::<Vec<_>>(), [SetId(17)]);
}

#[test]
fn a_forwarded_record_that_travels_to_the_new_owner_is_freed_when_it_has_arrived() {
    let mut shard = member();
    let forwarded = write(&mut shard, 7, 100);
    let token = sent(&commands(&mut shard), RecordRole::Forward)[0];
    shard.handle_delivered(token);
    let info = UpdateInfo { seq: Seq(1), set: SetId(1), ..forwarded };
    let verdict = shard.handle_record(P1, RecordRole::Numbered, &info, BufRef(900));
    assert_eq!(verdict, RecordVerdict::Numbered { buf: BufRef(7) });
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P3));
    let resent = sent(&commands(&mut shard), RecordRole::Resend);
    let confirmed = Message::Confirmed { group: G, set: SetId(1) };
    shard.handle_message(Nanos(2), P3, Epoch(2), confirmed);
    let batch = commands(&mut shard);
    assert_eq!((completed(&batch), freed(&batch)), (vec![(7, true)], vec![]), "it still travels");
    shard.handle_delivered(resent[0]);
    assert_eq!(freed(&commands(&mut shard)), [7]);
}

#[test]
fn who_takes_over_asks_all_holders_whether_a_number_is_void() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    // P1's base refused #1, and it had told P3 before it fell.
    survey(&mut shard, 1, 0, 1);
    let verdict = shard.handle_record(P3, RecordRole::ResendVoid, &copy_info(1, 1), BufRef(101));
    assert_eq!(verdict, RecordVerdict::NotNeeded, "the update is here");
    let batch = commands(&mut shard);
    assert_eq!(taken_over(&batch), Some((1, 0, Seq(2))));
    shard.handle_written(Nanos(0), Token(u64::from(TAG_FENCE) << 32), NvmeStatus::SUCCESS);
    let told = sent(&batch, RecordRole::Voided);
    assert!(
        !commands(&mut shard).iter().any(|c| matches!(c, Command::Report(Report::Restored { .. })))
    );
    shard.handle_delivered(told[0]);
    let batch = commands(&mut shard);
    assert_eq!(restores(&batch), [], "it is not brought to the base");
    assert!(batch.iter().any(|c| matches!(c, Command::Report(Report::Restored { .. }))));
    assert_eq!(shard.groups[0].sets.iter().next().expect("set 1").facts()[0].voids, [Seq(1)]);
}

#[test]
fn a_holder_says_of_a_void_number_that_it_is_when_another_takes_over() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    let void = |shard: &mut PrimaryShard, seq| {
        shard.handle_record(P1, RecordRole::Voided, &copy_info(seq, 1), BufRef(100 + seq))
    };
    assert_eq!(void(&mut shard, 1), RecordVerdict::NotNeeded, "its copy is marked");
    assert_eq!(void(&mut shard, 2), RecordVerdict::Kept, "the header is all that it needs");
    assert!(shard.mirrored().all(|copy| copy.void));
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P3));
    assert_eq!(sent(&commands(&mut shard), RecordRole::ResendVoid).len(), 2);
}

#[test]
fn what_a_base_refuses_of_a_recovered_update_is_written_again_and_the_volume_stays_closed() {
    let mut shard = member();
    copy(&mut shard, 1, 1);
    copy(&mut shard, 2, 1);
    assert_eq!(take_over(&mut shard), (2, 0, Seq(3)));
    let fence = Token(u64::from(TAG_FENCE) << 32);
    shard.handle_written(Nanos(0), fence, NvmeStatus::SUCCESS);
    let first = restores(&commands(&mut shard));
    shard.handle_written(Nanos(5), first[0], NvmeStatus::WRITE_FAULT);
    shard.handle_written(Nanos(5), first[1], NvmeStatus::SUCCESS);
    let refused = Report::RestoreFailed { volume: V, status: NvmeStatus::WRITE_FAULT };
    assert_eq!(commands(&mut shard), [Command::Report(refused)]);
    let at = shard.next_timeout();
    assert_eq!(at, Nanos(5 + crate::proto::limits::APPLY_RETRY_NS_MIN));
    shard.handle_timeout(at);
    let again = restores(&commands(&mut shard));
    assert_eq!((again.clone(), shard.next_timeout()), (vec![first[0]], Nanos::NEVER));
    shard.handle_written(at, again[0], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert!(batch.contains(&Command::Report(Report::Restored { volume: V })), "{batch:?}");
    assert_eq!(shard.counters().voids, 0, "it may have been acknowledged");
}

#[test]
fn no_set_is_closed_before_all_that_is_taken_over_is_in_it() {
    let mut config = config(P1, P3, 2);
    config.me = P2;
    config.mirrors.push(MirrorPeer { shard: P1, grant_bytes: 1 << 20, is_target: true });
    config.groups[0].policy = MirrorPolicy::Partner(1);
    config.volumes.push(VolumeConfig { id: VolumeId(2), owner: P2, ..config.volumes[0] });
    let mut shard = met(&config);
    copy(&mut shard, 1, 1);
    let admitted = shard.admit(1, 4352).expect("there is room");
    shard.host_update(admitted, &HostUpdate { volume: 1, ..update(7, 100) });
    let copies = sent(&commands(&mut shard), RecordRole::Mirror);
    shard.handle_delivered(copies[0]);
    let writes = base_writes(&commands(&mut shard));
    shard.handle_written(Nanos(0), writes[0], NvmeStatus::WRITE_FAULT);
    prepare(&mut shard, 2);
    // P1 does not hear of the void any more, which has its fate by that: set 1 would be closed.
    shard.enter(Nanos(1), &record(2, &[(P2, 1)], P2));
    let batch = commands(&mut shard);
    assert_eq!((completed(&batch), closed(&batch)), (vec![(7, false)], vec![]));
    shard.handle_written(Nanos(2), Token(u64::from(TAG_FENCE) << 32), NvmeStatus::SUCCESS);
    let (set, part) = closed(&finish_all(&mut shard)).remove(0);
    let facts: Vec<_> = part.facts.iter().map(|f| (f.volume, f.last, f.voids.len())).collect();
    assert_eq!((set, facts), (SetId(1), vec![(V, Seq(1), 0), (VolumeId(2), Seq(1), 1)]));
}
