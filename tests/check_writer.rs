//! What the writer of `setline-check` promises: its log, its blocks and its counts are true.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
mod check_support;

use check_support::{History, options};
use setline::check::images::Floor;

#[test]
fn errors_are_retried_and_nothing_acknowledged_is_lost_by_them() {
    let history = History::run(options(3), 3000, true, |ram| {
        ram.error_permille = 30;
        ram.full_permille = 100;
    });
    let report = &history.report;
    assert!(report.host_errors > 50, "{report:?}");
    assert_eq!(report.errors_by_status.values().sum::<u64>(), report.host_errors);
    assert_eq!((report.writers_halted, report.unfinished_writes), (0, 0));
    let floor = Floor::end_of(&history.log);
    let (with, without) = history.judge(&history.final_volumes, Some(&floor));
    assert!(with.consistent && without.consistent, "{:?}", with.faults);
    assert_eq!((with.floor_met, with.lost.commands), (Some(true), 0));
}

#[test]
fn a_writer_gives_up_after_too_many_errors_and_the_rest_goes_on() {
    let mut options = options(4);
    options.retries_max = 0;
    let history = History::run(options, 3000, true, |ram| ram.error_permille = 2);
    let report = &history.report;
    assert!((1..=4).contains(&report.writers_halted), "{report:?}");
    assert_eq!(report.acked_writes + report.writers_halted, report.issued_writes);
    let floor = Floor::end_of(&history.log);
    let (with, without) = history.judge(&history.final_volumes, Some(&floor));
    assert!(with.consistent && without.consistent, "{:?}", with.faults);
    assert_eq!(with.floor_met, Some(true));
}

#[test]
fn a_command_that_failed_for_good_may_be_there_in_part() {
    let mut options = options(4);
    options.retries_max = 0;
    options.workload.sizes.remove(0);
    let history = History::run(options, 3000, true, |ram| ram.error_permille = 2);
    let failed = history
        .commands()
        .into_iter()
        .find(|&(w, s)| history.log.command(w, s).unwrap().errors > 0)
        .unwrap();
    let mut contents =
        history.apply(&history.commands().into_iter().filter(|&c| c != failed).collect::<Vec<_>>());
    let extent = history.extent(failed);
    contents.0[usize::from(extent.volume)][extent.first as usize] = Some(failed);
    let (with, without) = history.judge(&history.render(&contents), None);
    assert!(with.consistent, "the log knows that it failed: {:?}", with.faults);
    assert_eq!(without.faults.count("torn"), 1, "the images alone cannot know");
}

#[test]
fn an_undrained_run_leaves_commands_that_may_be_there_or_not() {
    let history = History::run(options(5), 2000, false, |ram| ram.slowness = 9);
    assert!(history.report.unfinished_writes > 4);
    let (with, without) = history.judge(&history.final_volumes, Some(&Floor::end_of(&history.log)));
    assert!(with.consistent && without.consistent);
    assert_eq!(with.floor_met, Some(true));
    let all = history.render(&history.apply(&history.commands()));
    let (with, without) = history.judge(&all, None);
    assert!(with.consistent && without.consistent);
}

#[test]
fn a_primary_that_reads_back_old_data_is_caught_while_writing() {
    let history = History::run(options(6), 3000, true, |ram| ram.stale_reads = true);
    assert!(history.report.stale_reads > 0, "{:?}", history.report);
    let sound = History::run(options(6), 3000, true, |_| ());
    assert_eq!((sound.report.stale_reads, sound.report.corrupt_reads), (0, 0));
    assert!(sound.report.reads > 100);
}

#[test]
fn the_same_seed_writes_the_same_history() {
    let run = || History::run(options(8), 1000, true, |ram| ram.error_permille = 10);
    let (one, two) = (run(), run());
    assert_eq!(one.final_volumes, two.final_volumes);
    assert_eq!(one.log.commands, two.log.commands);
}

#[test]
fn the_rate_is_kept_and_not_made_up_for_after_a_stall() {
    use setline::check::writer::Writer;
    let mut options = options(9);
    options.rate_per_s = 1000;
    let mut ram = check_support::Ram::new(1, &options);
    let mut writer = Writer::start(options, Vec::new(), 0).unwrap();
    for step in 0..20_000u64 {
        writer.turn(&mut ram, step * 100_000).unwrap();
    }
    let issued = writer.report(0).issued_writes;
    assert!((1990..=2010).contains(&issued), "two seconds at 1000 per second: {issued}");
    for step in 0..1000u64 {
        writer.turn(&mut ram, 60_000_000_000 + step * 1000).unwrap();
    }
    let after = writer.report(0).issued_writes - issued;
    assert!(after <= 110, "a minute's stall is not followed by a minute's burst: {after}");
}
