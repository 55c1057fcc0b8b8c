//! The simulator can see: every broken variant of the protocol is found, the unbroken one is clean.

use super::campaign::{Campaign, Findings};
use super::profile::Knobs;
use crate::config::Timestamps;
use crate::proto::sabotage::Sabotage;

fn campaign(first: u64, seeds: u64, sabotage: Sabotage) -> Findings {
    run(first, seeds, Knobs { sabotage, ..Knobs::default() })
}

/// Histories in which primary movers fail, are excluded and come back.
fn failing(first: u64, seeds: u64, sabotage: Sabotage) -> Findings {
    run(first, seeds, Knobs { sabotage, fail: Some(true), ..Knobs::default() })
}

/// Histories in which volumes move between primary movers, of which some fail.
fn moving(first: u64, seeds: u64, sabotage: Sabotage) -> Findings {
    let (fail, moves) = (Some(true), Some(true));
    run(first, seeds, Knobs { sabotage, fail, moves, ..Knobs::default() })
}

fn run(first: u64, seeds: u64, knobs: Knobs) -> Findings {
    Campaign { first, seeds, time: None, jobs: 1, failures_max: 8, knobs }.run(|_| {})
}

/// The invariant that the first failing seed of a variant breaks. Seeds that do not come to rest do
/// not count: a broken rule may also get the history stuck.
fn broken(sabotage: Sabotage) -> u8 {
    broken_in(campaign, sabotage)
}

fn broken_in(campaign: impl Fn(u64, u64, Sabotage) -> Findings, sabotage: Sabotage) -> u8 {
    for first in (1..400).step_by(8) {
        let findings = campaign(first, 8, sabotage);
        let mut broken = findings.failures.iter().filter_map(|outcome| outcome.violation.as_ref());
        if let Some(violation) = broken.find(|violation| violation.invariant != 0) {
            return violation.invariant;
        }
    }
    panic!("{sabotage:?} goes unseen")
}

#[test]
fn acknowledging_before_the_mirrors_hold_the_update_is_seen() {
    assert_eq!(broken(Sabotage::AckBeforeMirror), 1);
}

#[test]
fn writing_the_base_before_the_mirrors_hold_the_update_is_seen() {
    assert_eq!(broken(Sabotage::BaseBeforeMirror), 2);
}

#[test]
fn releasing_a_set_before_all_have_switched_is_seen() {
    assert_eq!(broken(Sabotage::ReleaseBeforeAllSwitched), 5);
    assert_eq!(broken(Sabotage::ReleaseOnFirstPrepared), 5);
}

#[test]
fn giving_out_a_number_again_is_seen() {
    assert_eq!(broken(Sabotage::ReuseNumber), 3);
}

#[test]
fn dropping_a_void_is_seen() {
    assert_eq!(broken(Sabotage::DropVoid), 3);
}

#[test]
fn overlapping_updates_at_the_base_together_are_seen() {
    assert_eq!(broken(Sabotage::OverlapAtBase), 3);
}

#[test]
fn calling_a_set_stored_too_early_is_seen() {
    assert_eq!(broken(Sabotage::StoredBeforeComplete), 7);
    assert_eq!(broken(Sabotage::StoredBeforeDurable), 7);
}

#[test]
fn confirming_before_the_commit_is_durable_is_seen() {
    assert_eq!(broken(Sabotage::ConfirmBeforeDurable), 7);
}

#[test]
fn applying_before_the_set_is_complete_is_seen() {
    assert_eq!(broken(Sabotage::ApplyBeforeComplete), 7);
}

#[test]
fn applying_out_of_lockstep_is_seen() {
    assert_eq!(broken(Sabotage::ApplyOutOfLockstep), 7);
}

#[test]
fn calling_a_set_applied_before_the_flush_is_seen() {
    assert_eq!(broken(Sabotage::AppliedBeforeFlush), 7);
}

#[test]
fn freeing_copies_before_the_secondary_confirmed_is_seen() {
    assert_eq!(broken(Sabotage::FreeBeforeConfirm), 8);
}

#[test]
fn obeying_messages_of_an_old_epoch_is_seen() {
    // The harm shows wherever the message happens to strike.
    broken(Sabotage::IgnoreEpoch);
}

#[test]
fn the_unbroken_protocol_is_clean_on_the_same_seeds_and_meets_every_fault() {
    let findings = campaign(1, 400, Sabotage::None);
    let failed: Vec<_> = findings.failures.iter().map(|o| (o.seed, o.violation.clone())).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // A full journal is what must hardly ever be: it is scarce before.
    let fails = failing(1, 150, Sabotage::None);
    let failed: Vec<_> = fails.failures.iter().map(|o| (o.seed, o.violation.clone())).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let moves = moving(1, 150, Sabotage::None);
    let failed: Vec<_> = moves.failures.iter().map(|o| (o.seed, o.violation.clone())).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // A number that is lost while a later one is not takes a mover that falls between two copies.
    let rare = ["journal_full", "lost_numbers"];
    let counts = [findings, fails, moves].map(|findings| findings.stats.list());
    for (at, (name, _)) in counts[0].iter().enumerate().filter(|(_, (n, _))| !rare.contains(n)) {
        let had = counts.iter().any(|list| list[at].1 > 0);
        assert!(had, "no history had any {name}");
    }
}

#[test]
fn taking_over_before_all_members_have_spoken_is_seen() {
    broken_in(failing, Sabotage::RecoverUnheard);
}

#[test]
fn giving_out_a_number_that_a_living_mover_has_heard_of_is_seen() {
    // Copies that are refused for want of room, or go to a mover that fails, too: only small sites are apt.
    let apt = |first, seeds, sabotage| {
        let (primaries, copies, forward_ppm) = (Some(3), Some(2), Some(0));
        let fail = Some(true);
        run(
            first,
            seeds,
            Knobs { primaries, copies, forward_ppm, fail, sabotage, ..Knobs::default() },
        )
    };
    assert_eq!(broken_in(apt, Sabotage::ForgetHeard), 3);
}

#[test]
fn ending_a_void_number_before_all_who_hold_it_know_is_seen() {
    broken_in(failing, Sabotage::VoidUntold);
}

#[test]
fn handing_a_volume_over_before_its_updates_are_on_the_base_is_seen() {
    broken_in(moving, Sabotage::HandOffUndrained);
}

#[test]
fn numbering_a_volume_that_has_moved_is_seen() {
    assert_eq!(broken_in(moving, Sabotage::KeepMoved), 3);
}

#[test]
fn an_acknowledgement_of_an_excluded_mover_is_seen() {
    assert_eq!(broken_in(failing, Sabotage::AckExcluded), 1);
}

#[test]
fn numbering_by_an_old_map_is_seen() {
    assert_eq!(broken_in(moving, Sabotage::AcceptStaleMap), 3);
}

#[test]
fn an_epoch_that_only_some_enter_is_seen() {
    // Those that stay behind hear nobody, so that it shows by what never ends, too.
    let findings = failing(1, 16, Sabotage::EnteredBySome);
    assert!(!findings.failures.is_empty());
}

/// A campaign in which mirror copies are descriptions, and primary movers fail.
fn describing(first: u64, seeds: u64, sabotage: Sabotage) -> Findings {
    let (fail, described) = (Some(true), Some(true));
    run(first, seeds, Knobs { sabotage, fail, described, ..Knobs::default() })
}

#[test]
fn presenting_a_set_with_data_of_later_ones_is_seen() {
    assert_eq!(broken_in(describing, Sabotage::PresentOvertaken), 6);
}

#[test]
fn acknowledging_what_the_base_has_not_is_seen() {
    assert_eq!(broken_in(describing, Sabotage::AnswerOvertaken), 1);
}

#[test]
fn time_stamps_that_follow_a_clock_back_are_seen() {
    assert_eq!(broken(Sabotage::ClockBack), 11);
}

#[test]
fn stamping_by_the_common_timer_with_bounds_that_do_not_hold_is_seen() {
    assert_eq!(broken(Sabotage::RoundTripIgnored), 11);
    assert_eq!(broken_in(failing, Sabotage::TrustOldTimer), 11);
}

#[test]
fn time_stamps_by_the_clock_change_nothing_else() {
    let hash = |timestamps| {
        let knobs = Knobs { timestamps: Some(timestamps), ..Knobs::default() };
        run(1, 20, knobs).hash
    };
    assert_eq!(hash(Timestamps::None), hash(Timestamps::Clock));
}

#[test]
fn opening_a_volume_before_its_base_is_up_to_date_is_seen() {
    assert_eq!(broken_in(failing, Sabotage::TakeOverWithoutRestore), 2);
}

#[test]
fn writing_an_older_version_of_a_block_at_a_take_over_is_seen() {
    assert_eq!(broken_in(failing, Sabotage::RestoreOld), 2);
}

#[test]
fn taking_over_without_a_fence_is_seen() {
    broken_in(failing, Sabotage::TakeOverUnfenced);
}

#[test]
fn histories_that_once_filled_a_journal_for_good_come_to_rest() {
    // Found while scarcity, retirement and flushes under pressure were mended. Some had journals of
    // this size filled by restarts before the first set, some by flushes of one record each, some
    // with memory that waited for a partner.
    for seed in [26, 39, 40, 112, 117, 136, 168, 237, 404, 716, 1832] {
        let knobs = Knobs {
            journal_percent: Some(100),
            fail: Some(false),
            timestamps: Some(Timestamps::None),
            ..Knobs::default()
        };
        let outcome = super::cluster::run(seed, &knobs, 0);
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}
