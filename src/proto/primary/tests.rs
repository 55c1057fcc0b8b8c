//! The primary shard and the boundary engine, played by hand: what they answer, and when.

use super::*;
use crate::proto::boundary::{Boundary, BoundaryConfig, BoundaryGroup};
use crate::proto::command::{Command, HostTag, RecordRole, Report, Token};
use crate::proto::message::{BrokenReason, FactsPart, Message};
use crate::proto::sabotage::Sabotage;
use crate::proto::time::TimeStamp;
use crate::proto::types::{
    BufRef, Epoch, Extent, GroupId, MapVersion, Nanos, NvmeStatus, Seq, SetId, ShardId, UpdateKind,
    VolumeId,
};
use crate::wire::update::{UpdateInfo, digest_of};

mod breaking;
mod described;
mod forwarding;
mod handoff;
mod takeover;

const P1: ShardId = ShardId::new(1, 0);
const P2: ShardId = ShardId::new(2, 0);
const S1: ShardId = ShardId::new(11, 0);
const G: GroupId = GroupId(1);
const E: Epoch = Epoch(1);

fn shard(me: ShardId, other: ShardId, copies: u8) -> PrimaryShard {
    PrimaryShard::new(&config(me, other, copies))
}

fn config(me: ShardId, other: ShardId, copies: u8) -> PrimaryConfig {
    PrimaryConfig {
        me,
        coordinator: P1,
        epoch: E,
        map_version: MapVersion(1),
        mirrors: vec![MirrorPeer { shard: other, grant_bytes: 1 << 20, is_target: true }],
        groups: vec![GroupConfig {
            id: G,
            copies,
            policy: MirrorPolicy::Load,
            numbering: Numbering::Volume,
            described: false,
        }],
        volumes: vec![VolumeConfig {
            id: VolumeId(u32::from(me.mover.0)),
            owner: me,
            group: G,
            block_bytes: 4096,
            has_base: true,
            target: Some(S1),
            next_seq: Seq(1),
        }],
        retained_max: 64,
        mirrored_max: 64,
        forwards_max: 4,
        in_flight_max: 16,
        record_align: 1,
        unclean: false,
        sabotage: Sabotage::None,
    }
}

fn commands(shard: &mut PrimaryShard) -> Vec<Command> {
    std::iter::from_fn(|| shard.poll_command()).collect()
}

/// A shard that has met all its peers, with set 1 open and released.
fn met(config: &PrimaryConfig) -> PrimaryShard {
    let mut shard = PrimaryShard::new(config);
    for MirrorPeer { shard: peer, .. } in &config.mirrors {
        shard.handle_peer_up(*peer);
        shard.handle_message(Nanos(0), *peer, E, Message::Budget { bytes: 40_000 });
    }
    prepare(&mut shard, 1);
    release(&mut shard, 1);
    commands(&mut shard);
    shard
}

/// A shard with set 1 open and released, its mirror up with a budget.
fn started(copies: u8) -> PrimaryShard {
    met(&config(P1, P2, copies))
}

fn prepare(shard: &mut PrimaryShard, set: u64) {
    let message = Message::Prepare { group: G, set: SetId(set), map_version: MapVersion(1) };
    shard.handle_message(Nanos(0), P1, E, message);
}

fn release(shard: &mut PrimaryShard, set: u64) {
    shard.handle_message(Nanos(0), P1, E, Message::Release { group: G, set: SetId(set) });
}

fn confirm(shard: &mut PrimaryShard, set: u64) {
    shard.handle_message(Nanos(0), P1, E, Message::Confirmed { group: G, set: SetId(set) });
}

fn write(shard: &mut PrimaryShard, tag: u64, lba: u64) -> UpdateInfo {
    let admitted = shard.admit(0, 4352).expect("there is room");
    shard.host_update(admitted, &update(tag, lba))
}

fn update(tag: u64, lba: u64) -> HostUpdate {
    HostUpdate {
        tag: HostTag(tag),
        volume: 0,
        kind: UpdateKind::Write,
        extent: Extent { lba, blocks: 1 },
        fua: false,
        payload_len: 4096,
        payload_crc: 0x1234 + tag as u32,
        buf: BufRef(tag),
        record_bytes: 4352,
        list_seq: 0,
        time: TimeStamp { time_ns: 1_000 + tag, error_ns: 7 },
    }
}

fn sent(commands: &[Command], wanted: RecordRole) -> Vec<Token> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::SendRecord { role, token, .. } if *role == wanted => Some(*token),
            _ => None,
        })
        .collect()
}

fn base_writes(commands: &[Command]) -> Vec<Token> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::Write { token, .. } => Some(*token),
            _ => None,
        })
        .collect()
}

fn restores(commands: &[Command]) -> Vec<Token> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::Restore { token, .. } => Some(*token),
            _ => None,
        })
        .collect()
}

fn completed(commands: &[Command]) -> Vec<(u64, bool)> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::CompleteHost { tag, status } => Some((tag.0, status.is_ok())),
            _ => None,
        })
        .collect()
}

fn freed(commands: &[Command]) -> Vec<u64> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::Free { buf } => Some(buf.0),
            _ => None,
        })
        .collect()
}

fn closed(commands: &[Command]) -> Vec<(SetId, FactsPart)> {
    commands
        .iter()
        .filter_map(|c| match c {
            Command::Send { message: Message::Closed { set, facts, .. }, .. } => {
                Some((*set, facts.clone()))
            }
            _ => None,
        })
        .collect()
}

/// Takes the update from the mirror to the base and to the host.
fn finish_all(shard: &mut PrimaryShard) -> Vec<Command> {
    let mut all = Vec::new();
    loop {
        let batch = commands(shard);
        if batch.is_empty() {
            return all;
        }
        for token in sent(&batch, RecordRole::Mirror) {
            shard.handle_delivered(token);
        }
        for token in base_writes(&batch).into_iter().chain(restores(&batch)) {
            shard.handle_written(Nanos(0), token, NvmeStatus::SUCCESS);
        }
        all.extend(batch);
    }
}

#[test]
fn nothing_is_numbered_before_the_first_boundary() {
    let mut shard = shard(P1, P2, 2);
    assert_eq!(shard.admit(0, 4352).err(), Some(Full::NotStarted));
    shard.handle_peer_up(P2);
    prepare(&mut shard, 1);
    assert_eq!(shard.admit(0, 4352).err(), Some(Full::Mirrors), "no budget yet");
    shard.handle_message(Nanos(0), P2, E, Message::Budget { bytes: 4352 });
    assert!(shard.admit(0, 4352).is_ok());
}

#[test]
fn base_is_written_only_after_the_mirror_and_the_host_told_only_after_the_base() {
    let mut shard = started(2);
    let info = write(&mut shard, 7, 100);
    assert_eq!((info.seq, info.set), (Seq(1), SetId(1)));
    let first = commands(&mut shard);
    assert!(base_writes(&first).is_empty(), "invariant 2");
    shard.handle_delivered(sent(&first, RecordRole::Mirror)[0]);
    let second = commands(&mut shard);
    assert!(completed(&second).is_empty(), "invariant 1 c");
    shard.handle_written(Nanos(0), base_writes(&second)[0], NvmeStatus::SUCCESS);
    assert_eq!(completed(&commands(&mut shard)), [(7, true)]);
}

#[test]
fn one_copy_goes_straight_to_the_base() {
    let mut shard = started(1);
    write(&mut shard, 7, 100);
    let batch = commands(&mut shard);
    assert!(sent(&batch, RecordRole::Mirror).is_empty());
    assert_eq!(base_writes(&batch).len(), 1);
}

#[test]
fn a_later_overlapping_update_waits_for_the_earlier_at_the_base() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    write(&mut shard, 2, 100);
    let batch = commands(&mut shard);
    let mirrored = sent(&batch, RecordRole::Mirror);
    shard.handle_delivered(mirrored[1]);
    assert!(base_writes(&commands(&mut shard)).is_empty(), "the earlier one is not safe yet");
    shard.handle_delivered(mirrored[0]);
    let batch = commands(&mut shard);
    assert_eq!(base_writes(&batch).len(), 1);
    shard.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert_eq!((completed(&batch), base_writes(&batch).len()), (vec![(1, true)], 1));
    assert_eq!(shard.counters().overlaps, 1);
}

#[test]
fn updates_of_the_next_set_are_mirrored_but_held_until_its_release() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    prepare(&mut shard, 2);
    assert_eq!(write(&mut shard, 2, 200).set, SetId(2));
    let batch = commands(&mut shard);
    let mirrored = sent(&batch, RecordRole::Mirror);
    assert_eq!(mirrored.len(), 2, "mirroring is not held");
    for token in mirrored {
        shard.handle_delivered(token);
    }
    let batch = commands(&mut shard);
    assert_eq!(base_writes(&batch).len(), 1, "only set 1's");
    release(&mut shard, 2);
    assert_eq!(base_writes(&commands(&mut shard)).len(), 1);
}

#[test]
fn a_closed_set_reports_its_facts_once_every_update_has_its_fate() {
    let mut shard = started(2);
    let first = write(&mut shard, 1, 100);
    let second = write(&mut shard, 2, 200);
    prepare(&mut shard, 2);
    let batch = commands(&mut shard);
    assert!(closed(&batch).is_empty());
    for token in sent(&batch, RecordRole::Mirror) {
        shard.handle_delivered(token);
    }
    let batch = commands(&mut shard);
    let writes = base_writes(&batch);
    shard.handle_written(Nanos(0), writes[0], NvmeStatus::SUCCESS);
    assert!(closed(&commands(&mut shard)).is_empty());
    shard.handle_written(Nanos(0), writes[1], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    let (set, part) = &closed(&batch)[0];
    assert_eq!((*set, part.facts.len()), (SetId(1), 1));
    let facts = &part.facts[0];
    assert_eq!((facts.first, facts.last, facts.bytes), (Seq(1), Seq(2), 8192));
    assert_eq!(facts.digest, digest_of(&first).wrapping_add(digest_of(&second)));
}

#[test]
fn an_empty_set_closes_at_once() {
    let mut shard = started(2);
    prepare(&mut shard, 2);
    let batch = commands(&mut shard);
    assert_eq!(closed(&batch), [(SetId(1), FactsPart { part: 0, parts: 1, facts: vec![] })]);
}

#[test]
fn a_failed_base_write_is_void_told_to_host_mirrors_and_manifest() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    let kept = write(&mut shard, 2, 200);
    prepare(&mut shard, 2);
    for token in sent(&commands(&mut shard), RecordRole::Mirror) {
        shard.handle_delivered(token);
    }
    let writes = base_writes(&commands(&mut shard));
    shard.handle_written(Nanos(0), writes[0], NvmeStatus::WRITE_FAULT);
    shard.handle_written(Nanos(0), writes[1], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert_eq!((completed(&batch), closed(&batch)), (vec![(2, true)], vec![]), "P2 does not know");
    shard.handle_delivered(sent(&batch, RecordRole::Voided)[0]);
    let batch = commands(&mut shard);
    assert_eq!(completed(&batch), [(1, false)]);
    let facts = &closed(&batch)[0].1.facts[0];
    assert_eq!(facts.voids, [Seq(1)]);
    assert_eq!((facts.count(), facts.bytes, facts.digest), (1, 4096, digest_of(&kept)));
}

#[test]
fn records_are_freed_only_after_confirmation_and_delivery_to_the_secondary() {
    let mut shard = started(2);
    shard.handle_peer_up(S1);
    let resume =
        Message::Resume { group: G, stored: SetId(0), applied: SetId(0), not_before: SetId(0) };
    shard.handle_message(Nanos(0), S1, E, resume);
    write(&mut shard, 1, 100);
    prepare(&mut shard, 2);
    let batch = finish_all(&mut shard);
    let transfer = sent(&batch, RecordRole::Transfer);
    assert_eq!(transfer.len(), 1);
    assert!(freed(&batch).is_empty(), "invariant 8");
    confirm(&mut shard, 1);
    assert!(freed(&commands(&mut shard)).is_empty(), "the link still refers to it");
    shard.handle_delivered(transfer[0]);
    assert_eq!(freed(&commands(&mut shard)), [1]);
    assert!(shard.is_drained());
}

#[test]
fn copies_for_others_are_kept_until_their_set_is_confirmed() {
    let mut source = started(2);
    let mut holder = shard(P2, P1, 2);
    let info = write(&mut source, 1, 100);
    assert_eq!(
        holder.handle_record(P1, RecordRole::Mirror, &info, BufRef(50)),
        RecordVerdict::Kept
    );
    assert_eq!(holder.mirrored().count(), 1);
    let stale = UpdateInfo { epoch: Epoch(2), ..info };
    assert_eq!(
        holder.handle_record(P1, RecordRole::Mirror, &stale, BufRef(51)),
        RecordVerdict::StaleEpoch
    );
    confirm(&mut holder, 1);
    assert_eq!(freed(&commands(&mut holder)), [50]);
    assert_eq!(
        holder.handle_record(P1, RecordRole::Mirror, &info, BufRef(52)),
        RecordVerdict::NotNeeded
    );
}

#[test]
fn a_spent_mirror_budget_is_back_pressure_and_asks_for_an_early_boundary() {
    let mut shard = started(2);
    let mut tag = 0;
    while let Ok(admitted) = shard.admit(0, 4352) {
        shard.host_update(admitted, &update(tag, tag * 10));
        tag += 1;
    }
    assert_eq!(tag, 40_000 / 4352);
    let batch = commands(&mut shard);
    let asked = Command::Send {
        to: P1,
        message: Message::CloseNow { group: G, set: SetId(1), needed: false },
    };
    assert_eq!(batch.iter().filter(|c| **c == asked).count(), 1);
    for token in sent(&batch, RecordRole::Mirror) {
        shard.handle_delivered(token);
    }
    finish_all(&mut shard);
    prepare(&mut shard, 2);
    confirm(&mut shard, 1);
    assert!(shard.admit(0, 4352).is_ok(), "the confirmed set gave its budget back");
}

#[test]
fn a_restarted_mirror_gets_every_retained_copy_again() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    write(&mut shard, 2, 200);
    let batch = commands(&mut shard);
    shard.handle_delivered(sent(&batch, RecordRole::Mirror)[0]);
    commands(&mut shard);
    shard.handle_peer_up(P2);
    let again = sent(&commands(&mut shard), RecordRole::Mirror);
    assert_eq!(again.len(), 2);
    shard.handle_delivered(again[0]);
    assert!(base_writes(&commands(&mut shard)).is_empty(), "the first went to the base before");
    shard.handle_delivered(again[1]);
    assert_eq!(base_writes(&commands(&mut shard)).len(), 1);
}

#[test]
fn transfer_resumes_after_what_the_secondary_has_stored() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    prepare(&mut shard, 2);
    release(&mut shard, 2);
    write(&mut shard, 2, 200);
    let batch = finish_all(&mut shard);
    assert!(sent(&batch, RecordRole::Transfer).is_empty(), "the secondary has not spoken yet");
    shard.handle_peer_up(S1);
    let resume =
        Message::Resume { group: G, stored: SetId(1), applied: SetId(1), not_before: SetId(0) };
    shard.handle_message(Nanos(0), S1, E, resume.clone());
    assert_eq!(sent(&commands(&mut shard), RecordRole::Transfer).len(), 1);
    shard.handle_peer_up(S1);
    let nothing =
        Message::Resume { group: G, stored: SetId(0), applied: SetId(0), not_before: SetId(0) };
    shard.handle_message(Nanos(0), S1, E, nothing);
    assert_eq!(sent(&commands(&mut shard), RecordRole::Transfer).len(), 2);
}

#[test]
fn messages_of_another_epoch_are_refused_and_counted() {
    let mut shard = started(2);
    let message = Message::Prepare { group: G, set: SetId(2), map_version: MapVersion(1) };
    shard.handle_message(Nanos(0), P1, Epoch(0), message);
    assert!(commands(&mut shard).is_empty());
    assert_eq!(shard.counters().stale_epoch, 1);
}

#[test]
fn a_broken_group_serves_its_host_and_retains_nothing() {
    let mut shard = started(2);
    write(&mut shard, 1, 100);
    commands(&mut shard);
    let broken = Message::Broken { group: G, reason: BrokenReason::MoverRestarted };
    shard.handle_message(Nanos(0), P1, E, broken);
    let batch = commands(&mut shard);
    let writes = base_writes(&batch);
    assert_eq!(writes.len(), 1);
    shard.handle_written(Nanos(0), writes[0], NvmeStatus::SUCCESS);
    assert_eq!(completed(&commands(&mut shard)), [(1, true)]);
    write(&mut shard, 2, 200);
    let batch = commands(&mut shard);
    shard.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert_eq!((completed(&batch), freed(&batch)), (vec![(2, true)], vec![2]));
}

fn engine() -> Boundary {
    Boundary::new(&BoundaryConfig {
        me: P1,
        shards: vec![P1, P2],
        secondary: Some(S1),
        backup: None,
        epoch: E,
        unix_offset_ns: 1_000_000,
        groups: vec![BoundaryGroup { id: G, period_ns: 100, first_set: SetId(1) }],
        sabotage: Sabotage::None,
    })
}

fn orders(engine: &mut Boundary) -> Vec<(ShardId, Message)> {
    std::iter::from_fn(|| engine.poll_command())
        .filter_map(|c| match c {
            Command::Send { to, message } => Some((to, message)),
            _ => None,
        })
        .collect()
}

fn greet(engine: &mut Boundary, from: ShardId, open: u64) {
    let map_version = MapVersion(1);
    let message = Message::Greet { group: G, confirmed: SetId(0), open: SetId(open), map_version };
    engine.handle_message(Nanos(5), from, E, message);
}

fn prepared(engine: &mut Boundary, from: ShardId, set: u64) {
    let message = Message::Prepared { group: G, set: SetId(set) };
    engine.handle_message(Nanos(6), from, E, message);
}

fn close(engine: &mut Boundary, from: ShardId, set: u64) {
    let facts = FactsPart { part: 0, parts: 1, facts: vec![] };
    engine.handle_message(Nanos(7), from, E, Message::Closed { group: G, set: SetId(set), facts });
}

#[test]
fn a_set_is_released_only_when_all_have_switched() {
    let mut engine = engine();
    greet(&mut engine, P1, 0);
    assert!(orders(&mut engine).is_empty(), "one mover is missing");
    greet(&mut engine, P2, 0);
    let prepare = Message::Prepare { group: G, set: SetId(1), map_version: MapVersion(1) };
    assert_eq!(orders(&mut engine), [(P2, prepare.clone())], "the engine's own shard is last");
    prepared(&mut engine, P2, 1);
    assert_eq!(orders(&mut engine), [(P1, prepare)], "and nothing is released: invariant 5");
    prepared(&mut engine, P1, 1);
    let release = Message::Release { group: G, set: SetId(1) };
    assert_eq!(orders(&mut engine), [(P1, release.clone()), (P2, release)]);
    assert_eq!(engine.next_timeout(), Nanos(105));
}

/// An engine with set 2 open after one boundary.
fn running() -> Boundary {
    let mut engine = engine();
    for set in 1..=2 {
        if set == 1 {
            greet(&mut engine, P1, 0);
            greet(&mut engine, P2, 0);
        } else {
            engine.handle_timeout(Nanos(105));
        }
        prepared(&mut engine, P1, set);
        prepared(&mut engine, P2, set);
    }
    orders(&mut engine);
    engine
}

#[test]
fn a_set_has_its_manifest_when_all_shards_closed_it_and_is_dropped_when_confirmed() {
    let mut engine = running();
    close(&mut engine, P1, 1);
    assert!(orders(&mut engine).is_empty());
    close(&mut engine, P2, 1);
    let sent = orders(&mut engine);
    assert!(matches!(
        sent[..],
        [(S1, Message::Manifest { set: SetId(1), cut_time_ns: 1_000_105, .. })]
    ));
    engine.handle_message(Nanos(9), S1, E, Message::Confirmed { group: G, set: SetId(1) });
    let confirmed = Message::Confirmed { group: G, set: SetId(1) };
    assert_eq!(orders(&mut engine), [(P1, confirmed.clone()), (P2, confirmed)]);
}

#[test]
fn a_confirmation_of_a_set_that_is_not_formed_frees_nothing() {
    let mut engine = running();
    engine.handle_message(Nanos(9), S1, E, Message::Confirmed { group: G, set: SetId(1) });
    assert!(orders(&mut engine).is_empty());
}

#[test]
fn an_unconfirmed_manifest_is_sent_again_to_a_restarted_secondary() {
    let mut engine = running();
    close(&mut engine, P1, 1);
    close(&mut engine, P2, 1);
    orders(&mut engine);
    engine.handle_peer_up(S1);
    assert!(matches!(
        orders(&mut engine)[..],
        [(S1, Message::Lead), (S1, Message::Manifest { set: SetId(1), .. })]
    ));
}

#[test]
fn a_new_coordinator_finishes_the_boundary_that_was_left_half_done() {
    let mut engine = engine();
    close(&mut engine, P1, 3);
    greet(&mut engine, P1, 4);
    greet(&mut engine, P2, 3);
    let sent = orders(&mut engine);
    let all_prepare =
        |m: &(ShardId, Message)| matches!(m.1, Message::Prepare { set: SetId(4), .. });
    assert_eq!(sent.iter().filter(|m| all_prepare(m)).count(), 1);
    prepared(&mut engine, P2, 4);
    assert_eq!(orders(&mut engine).iter().filter(|m| all_prepare(m)).count(), 1);
    prepared(&mut engine, P1, 4);
    orders(&mut engine);
    close(&mut engine, P2, 3);
    assert_eq!(orders(&mut engine), [], "sets are formed in their order");
    for set in [1, 2] {
        close(&mut engine, P1, set);
        close(&mut engine, P2, set);
    }
    let sent = orders(&mut engine);
    assert!(
        sent.iter().any(|m| matches!(m.1, Message::Manifest { set: SetId(3), .. })),
        "set 3 is formed: {sent:?}"
    );
}

#[test]
fn a_period_can_change_and_a_set_be_closed_on_demand() {
    let mut engine = running();
    assert!(engine.set_period(Nanos(110), G, 1_000_000));
    assert_eq!(engine.next_timeout(), Nanos(1_000_105));
    assert_eq!(engine.close_now(Nanos(120), G), Some(SetId(2)));
    assert_eq!(engine.close_now(Nanos(120), G), Some(SetId(2)), "it is closing already");
    assert_eq!(orders(&mut engine).len(), 1);
    assert!(!engine.set_period(Nanos(0), GroupId(9), 1));
}

#[test]
fn the_hold_is_reported_with_its_length() {
    let mut shard = started(2);
    let message = Message::Prepare { group: G, set: SetId(2), map_version: MapVersion(1) };
    shard.handle_message(Nanos(1000), P1, E, message);
    let message = Message::Release { group: G, set: SetId(2) };
    shard.handle_message(Nanos(1700), P1, E, message);
    let held = Command::Report(Report::Held { group: G, set: SetId(2), held_ns: 700 });
    assert!(commands(&mut shard).contains(&held));
}
