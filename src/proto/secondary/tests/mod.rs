//! Handlers one by one, and the site as a whole under faults.

mod applying;
mod committing;
mod faults;
mod peers;
mod receiving;
mod recovering;
mod rules;
mod script;
mod site;
mod storing;

use super::{Receipt, Secondary, ShardConfig, VolumeConfig};
use crate::proto::command::{Command, JournalEntry, JournalPos, RecordRole};
use crate::proto::message::{FactsPart, Message, VolumeFacts};
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{
    BufRef, Epoch, Extent, GroupId, MapVersion, MoverId, Nanos, Seq, SetId, ShardId, UpdateKind,
    VolumeId,
};
use crate::wire::update::{UpdateInfo, digest_of};
use proptest::prelude::*;
use site::Site;
use std::string::String;
use std::vec;
use std::vec::Vec;

const GROUP: GroupId = GroupId(1);
const VOLUME: VolumeId = VolumeId(7);
const ME: ShardId = ShardId::new(11, 0);
const COORDINATOR: ShardId = ShardId::new(10, 0);
const PARTNER: ShardId = ShardId::new(12, 0);
const PRIMARY: ShardId = ShardId::new(1, 0);
const EPOCH: Epoch = Epoch(3);
const NOW: Nanos = Nanos(1_000);

/// A shard with one volume of 100 blocks, running.
fn shard(partner: Option<ShardId>) -> Secondary {
    let mut machine = Secondary::new(config(partner), None);
    machine.recovered(NOW);
    drain(&mut machine);
    machine
}

fn config(partner: Option<ShardId>) -> ShardConfig {
    ShardConfig {
        me: ME,
        epoch: EPOCH,
        coordinator: COORDINATOR,
        partner,
        primaries: vec![PRIMARY],
        groups: vec![GROUP],
        volumes: vec![VolumeConfig { id: VOLUME, group: GROUP, block_bytes: 512, blocks: 100 }],
        apply_depth: 4,
        sabotage: Sabotage::None,
    }
}

fn update(set: u64, seq: u64, lba: u64, blocks: u32) -> UpdateInfo {
    UpdateInfo {
        kind: UpdateKind::Write,
        fua: false,
        payload_crc: seq as u32 * 77,
        payload_len: blocks * 512,
        volume: VOLUME,
        group: GROUP,
        origin: MoverId(1),
        owner: PRIMARY,
        epoch: EPOCH,
        map_version: MapVersion(1),
        set: SetId(set),
        seq: Seq(seq),
        extent: Extent { lba, blocks },
        block_bytes: 512,
        list_seq: 0,
        time_ns: 0,
        time_error_ns: 0,
        forward: crate::proto::types::ForwardId(0),
        described: false,
        not_before: SetId(0),
    }
}

fn facts(updates: &[UpdateInfo], voids: &[u64]) -> VolumeFacts {
    let live = || updates.iter().filter(|info| !voids.contains(&info.seq.0));
    VolumeFacts {
        volume: VOLUME,
        first: updates[0].seq,
        last: updates[updates.len() - 1].seq,
        bytes: live().map(|info| u64::from(info.payload_len)).sum(),
        digest: live().fold(0, |sum, info| sum.wrapping_add(digest_of(info))),
        voids: voids.iter().copied().map(Seq).collect(),
    }
}

fn manifest(set: u64, facts: Vec<VolumeFacts>) -> Message {
    let facts = FactsPart { part: 0, parts: 1, facts };
    Message::Manifest { group: GROUP, set: SetId(set), cut_time_ns: set * 10, facts }
}

fn take(machine: &mut Secondary, info: &UpdateInfo) -> Receipt {
    machine.handle_record(NOW, PRIMARY, RecordRole::Transfer, info, BufRef(info.seq.0))
}

fn tell(machine: &mut Secondary, message: Message) {
    machine.handle_message(NOW, COORDINATOR, EPOCH, message);
}

fn drain(machine: &mut Secondary) -> Vec<Command> {
    core::iter::from_fn(|| machine.poll_command()).collect()
}

/// Journals whatever the commands ask for, at positions from `at`, flushes included; returns the
/// other commands.
fn journal(machine: &mut Secondary, at: &mut u64) -> Vec<Command> {
    let mut others = Vec::new();
    loop {
        let commands = drain(machine);
        if commands.is_empty() {
            return others;
        }
        for command in commands {
            match command {
                Command::Journal { token, .. } => {
                    *at += 1;
                    machine.handle_journaled(NOW, token, JournalPos(*at));
                }
                Command::JournalFlush { token } => machine.handle_journal_durable(NOW, token),
                other => others.push(other),
            }
        }
    }
}

/// A shard without partner that has stored `sets`, one after the other, and what came out but for
/// the journal.
fn stored(sets: &[&[UpdateInfo]]) -> (Secondary, u64) {
    let (mut machine, mut at) = (shard(None), 0);
    for (index, updates) in sets.iter().enumerate() {
        for info in *updates {
            assert_eq!(take(&mut machine, info), Receipt::Accepted);
        }
        let list = if updates.is_empty() { vec![] } else { vec![facts(updates, &[])] };
        tell(&mut machine, manifest(index as u64 + 1, list));
        let set = SetId(index as u64 + 1);
        let said = Command::Send {
            to: COORDINATOR,
            message: Message::Stored { group: GROUP, set, not_before: SetId(0) },
        };
        assert_eq!(journal(&mut machine, &mut at), [said]);
    }
    (machine, at)
}

fn kinds(commands: &[Command]) -> Vec<&'static str> {
    commands
        .iter()
        .map(|command| match command {
            Command::Send { message: Message::Stored { .. }, .. } => "stored",
            Command::Send { message: Message::Applied { .. }, .. } => "applied",
            Command::Send { message: Message::Apply { .. }, .. } => "apply",
            Command::Send { message: Message::Confirmed { .. }, .. } => "confirmed",
            Command::Send { message: Message::Manifest { .. }, .. } => "manifest",
            Command::Send { message: Message::Resume { .. }, .. } => "resume",
            Command::Send { .. } => "send",
            Command::SendRecord { .. } => "send record",
            Command::Write { .. } => "write",
            Command::Restore { .. } | Command::Fence { .. } | Command::ReadBack { .. } => {
                "take-over"
            }
            Command::CompleteHost { .. } => "complete",
            Command::Free { .. } => "free",
            Command::Journal { entry: JournalEntry::Record { .. }, .. } => "journal record",
            Command::Journal { entry: JournalEntry::Manifest { .. }, .. } => "journal manifest",
            Command::Journal { entry: JournalEntry::Commit { .. }, .. } => "journal commit",
            Command::Journal { entry: JournalEntry::Applied { .. }, .. } => "journal applied",
            Command::JournalFlush { .. } => "journal flush",
            Command::JournalRetire { .. } => "retire",
            Command::Flush { .. } => "flush",
            Command::Report(_) => "report",
        })
        .collect()
}

fn history(seed: u64, sabotage: Sabotage) -> Result<(u64, u64), String> {
    let mut site = Site::new(seed, sabotage);
    site.run(600)?;
    Ok((site.boundaries_seen, site.crashes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]
    #[test]
    fn volumes_are_at_a_set_boundary_whatever_crashes_and_when(seed in any::<u64>()) {
        if let Err(why) = history(seed, Sabotage::None) {
            prop_assert!(false, "seed {seed}: {why}");
        }
    }
}

/// As [`history`], but the primary breaks a group at some moment. Whether a set of it, cut before,
/// was never whole.
fn broken_history(seed: u64) -> Result<bool, String> {
    let mut site = Site::new(seed, Sabotage::None);
    let (steps, breaks_at, group) = (seed % 600, seed % 251, GroupId(1 + (seed % 2) as u16));
    for step in 0..=steps {
        site.step()?;
        if step == breaks_at.min(steps) {
            site.break_group(group);
        }
    }
    site.heal()?;
    Ok(site.applied.get(&group) < site.cut.get(&group))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_whole_site_says_that_a_group_is_broken_whoever_crashes_and_when(seed in any::<u64>()) {
        if let Err(why) = broken_history(seed) {
            prop_assert!(false, "seed {seed}: {why}");
        }
    }
}

#[test]
fn a_break_does_leave_sets_that_are_not_whole() {
    let torn = (0..200).filter(|seed| broken_history(*seed).unwrap()).count();
    assert!((10..190).contains(&torn), "{torn} of 200");
}

#[test]
fn histories_do_crash_and_do_reach_boundaries() {
    let (mut boundaries, mut crashes) = (0, 0);
    for seed in 0..40 {
        let seen = history(seed, Sabotage::None).unwrap();
        boundaries += seen.0;
        crashes += seen.1;
    }
    assert!(boundaries > 1000 && crashes > 50, "{boundaries} boundaries, {crashes} crashes");
}

#[test]
fn every_broken_rule_of_the_secondary_is_seen() {
    for variant in [
        Sabotage::StoredBeforeComplete,
        Sabotage::StoredBeforeDurable,
        Sabotage::ConfirmBeforeDurable,
        Sabotage::ApplyBeforeComplete,
        Sabotage::ApplyOutOfLockstep,
        Sabotage::AppliedBeforeFlush,
    ] {
        assert!((0..200).any(|seed| history(seed, variant).is_err()), "{variant:?} went unseen");
    }
}
