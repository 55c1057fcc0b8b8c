//! Mirror copies that are descriptions, and what is read back when their source fails (G12).

use super::takeover::{V, copy_info, member_with, record, survey};
use super::*;
use crate::proto::primary::ReadBack;
use crate::proto::primary::takeover::TAG_FENCE;
use crate::proto::types::{ForwardId, MoverId};

const P3: ShardId = ShardId::new(3, 0);
/// The checksum of what the descriptions of these tests say.
const OWN: u32 = 77;

fn described() -> GroupConfig {
    GroupConfig { described: true, ..config(P1, P2, 2).groups[0] }
}

/// P2 of three movers, which has descriptions of numbers 1 and on from P1, in these sets, all of the same
/// range, and takes their volume over; what it wants read back.
fn taken_over(sets: &[u64], forward: ForwardId) -> (PrimaryShard, Vec<Token>) {
    let mut shard = member_with(described());
    for (seq, set) in (1..).zip(sets) {
        let info = UpdateInfo {
            payload_crc: OWN,
            extent: Extent { lba: 8, blocks: 1 },
            described: true,
            forward,
            origin: if forward == ForwardId(0) { MoverId(1) } else { MoverId(3) },
            ..copy_info(seq, *set)
        };
        let verdict = shard.handle_record(P1, RecordRole::Description, &info, BufRef(seq));
        assert_eq!(verdict, RecordVerdict::Kept);
    }
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    survey(&mut shard, 0, 0, 0);
    let batch = commands(&mut shard);
    assert_eq!(reads(&batch), [], "not before the base is fenced");
    for token in sent(&batch, RecordRole::Description) {
        shard.handle_delivered(token);
    }
    shard.handle_written(Nanos(0), Token(u64::from(TAG_FENCE) << 32), NvmeStatus::SUCCESS);
    let reads = reads(&commands(&mut shard));
    assert_eq!(reads.len(), sets.len());
    (shard, reads)
}

fn reads(commands: &[Command]) -> Vec<Token> {
    let reads = commands.iter().filter_map(|command| match command {
        Command::ReadBack { token, .. } => Some(*token),
        _ => None,
    });
    reads.collect()
}

fn has_restored(commands: &[Command]) -> bool {
    commands.contains(&Command::Report(Report::Restored { volume: V }))
}

#[test]
fn only_the_description_travels_to_the_mirror_and_the_secondary_gets_what_the_base_has() {
    let mut config = config(P1, P2, 2);
    config.groups[0] = described();
    let mut shard = met(&config);
    shard.handle_message(
        Nanos(0),
        S1,
        E,
        Message::Resume { group: G, stored: SetId(0), applied: SetId(0), not_before: SetId(0) },
    );
    let info = write(&mut shard, 1, 0);
    assert!(info.described);
    let batch = commands(&mut shard);
    assert_eq!(sent(&batch, RecordRole::Mirror), []);
    shard.handle_delivered(sent(&batch, RecordRole::Description)[0]);
    let batch = commands(&mut shard);
    assert_eq!(sent(&batch, RecordRole::Transfer), [], "the base may never get it");
    shard.handle_written(Nanos(0), base_writes(&batch)[0], NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert_eq!(completed(&batch), [(1, true)]);
    assert_eq!(sent(&batch, RecordRole::Transfer).len(), 1);
}

#[test]
fn what_the_base_has_is_the_updates_own_if_the_checksum_says_so() {
    let (mut shard, reads) = taken_over(&[1, 1], ForwardId(0));
    assert_eq!(shard.handle_read_back(reads[0], BufRef(101), OWN), ReadBack::Own);
    assert!(!has_restored(&commands(&mut shard)), "one is not read yet");
    assert_eq!(shard.handle_read_back(reads[1], BufRef(102), OWN), ReadBack::Own);
    let batch = commands(&mut shard);
    assert!(has_restored(&batch) && restores(&batch).is_empty(), "{batch:?}");
    assert_eq!((shard.counters().read_back, shard.counters().overtaken), (2, 0));
}

#[test]
fn an_update_that_was_overwritten_in_a_later_set_is_not_presented_before_that() {
    let (mut shard, reads) = taken_over(&[1, 2], ForwardId(0));
    let first = shard.handle_read_back(reads[0], BufRef(101), 5);
    assert_eq!(first, ReadBack::Overtaken { not_before: SetId(2) });
    let needed = Message::CloseNow { group: G, set: SetId(2), needed: true };
    let needed = Command::Send { to: P2, message: needed };
    assert!(!commands(&mut shard).contains(&needed), "not before all is read");
    assert_eq!(shard.handle_read_back(reads[1], BufRef(102), OWN), ReadBack::Own);
    let batch = commands(&mut shard);
    let (group, set, until) = (G, SetId(1), SetId(2));
    let _ = Command::Report(Report::Merged { group, set, until });
    assert!(batch.contains(&needed), "{batch:?}");
}

#[test]
fn within_its_set_an_update_may_hold_what_a_later_one_wrote() {
    let (mut shard, reads) = taken_over(&[1, 1], ForwardId(0));
    let first = shard.handle_read_back(reads[0], BufRef(101), 5);
    assert_eq!(first, ReadBack::Overtaken { not_before: SetId(0) });
}

#[test]
fn a_source_that_waits_is_told_to_try_again_unless_the_base_has_its_update() {
    for (crc, status) in [(OWN, NvmeStatus::SUCCESS), (5, NvmeStatus::ANA_TRANSITION)] {
        let (mut shard, reads) = taken_over(&[1], ForwardId(9));
        shard.handle_read_back(reads[0], BufRef(101), crc);
        let batch = commands(&mut shard);
        let message = Message::Forwarded { forward: ForwardId(9), status };
        assert!(batch.contains(&Command::Send { to: P3, message }), "{batch:?}");
        assert_eq!(sent(&batch, RecordRole::Numbered), [], "it must not be restored by the next");
    }
}

#[test]
fn a_base_that_does_not_read_is_asked_again_and_the_volume_stays_closed() {
    let (mut shard, reads) = taken_over(&[1], ForwardId(0));
    shard.handle_read_failed(Nanos(5), reads[0], NvmeStatus::INTERNAL);
    let status = NvmeStatus::INTERNAL;
    let refused = Command::Report(Report::RestoreFailed { volume: V, status });
    assert_eq!(commands(&mut shard), [refused]);
    let mut at = Nanos(5);
    for pause in [1, 2, 4].map(|times| times * crate::proto::limits::APPLY_RETRY_NS_MIN) {
        assert_eq!(shard.next_timeout(), at.after(pause));
        at = at.after(pause);
        shard.handle_timeout(at);
        assert_eq!(self::reads(&commands(&mut shard)), reads);
        shard.handle_read_failed(at, reads[0], NvmeStatus::INTERNAL);
        commands(&mut shard);
    }
    at = shard.next_timeout();
    shard.handle_timeout(at);
    let again = self::reads(&commands(&mut shard));
    shard.handle_read_back(again[0], BufRef(101), OWN);
    assert!(has_restored(&commands(&mut shard)));
}

#[test]
fn who_took_an_update_has_all_of_it_and_that_goes_before_a_description() {
    let mut shard = member_with(described());
    let info = UpdateInfo { described: true, ..copy_info(1, 1) };
    shard.handle_record(P1, RecordRole::Description, &info, BufRef(1));
    shard.enter(Nanos(1), &record(2, &[(P2, 1), (P3, 1)], P2));
    let verdict = shard.handle_record(P3, RecordRole::Resend, &info, BufRef(2));
    assert_eq!(verdict, RecordVerdict::Kept);
    survey(&mut shard, 1, 0, 0);
    let batch = commands(&mut shard);
    assert_eq!(freed(&batch), [1], "the description");
    shard.handle_written(Nanos(0), Token(u64::from(TAG_FENCE) << 32), NvmeStatus::SUCCESS);
    let batch = commands(&mut shard);
    assert_eq!((reads(&batch).len(), restores(&batch).len()), (0, 1));
}
