//! The reader of `setline-check` sees every fault that it is meant to see: each one
//! is planted into images that are accepted without it. With and without the log.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
mod check_support;

use check_support::{Contents, History, options};
use setline::check::images::{FaultKind, Floor, Verdict};
use setline::check::workload::Draws;

fn history() -> History {
    let history = History::run(options(11), 3000, true, |ram| ram.full_permille = 20);
    assert_eq!(history.report.host_errors, 0);
    assert!(history.report.observed_before_ack > 10, "{}", history.report.observed_before_ack);
    history
}

/// A replication of `history` in sets: commands of set i, in the order of issue.
fn sets(history: &History, count: u64) -> Vec<Vec<(u16, u64)>> {
    let mut draws = Draws::new(5, 5, 5);
    let mut before: Vec<(u16, u64)> = Vec::new();
    let mut sets = Vec::new();
    for number in 1..=count {
        let event = history.log.events * number / count;
        let mut cut = history.cut(event, || draws.below(2) == 0);
        // What a set has taken no later one gives back.
        cut.extend(before.iter().filter(|c| !cut.contains(c)).copied().collect::<Vec<_>>());
        cut.sort_by_key(|&command| history.issued(command));
        sets.push(cut.iter().filter(|c| !before.contains(c)).copied().collect());
        before = cut;
    }
    sets
}

fn accepted(history: &History, contents: &Contents) -> Verdict {
    let (with, without) = history.judge(&history.render(contents), None);
    assert!(with.consistent, "{:?}", with.faults);
    assert!(without.consistent, "{:?}", without.faults);
    with
}

fn refused(history: &History, contents: &Contents, kind: &str) -> Verdict {
    let (with, without) = history.judge(&history.render(contents), None);
    assert!(!with.consistent && with.faults.count(kind) > 0, "{:?}", with.faults);
    assert!(!without.consistent && without.faults.count(kind) > 0, "{:?}", without.faults);
    assert_eq!(with.faults.counts, without.faults.counts, "the log adds no faults here");
    with
}

/// Sets 0 to 9, and contents after the first five of them.
fn halfway(history: &History) -> (Vec<Vec<(u16, u64)>>, Contents) {
    let sets = sets(history, 10);
    let contents = history.apply(&sets[..5].concat());
    (sets, contents)
}

#[test]
fn every_boundary_of_a_faithful_replication_is_accepted() {
    let history = history();
    let mut contents = Contents::new(history.workload());
    let mut beyond = u64::MAX;
    for set in sets(&history, 10) {
        for command in set {
            contents.apply(&history, command);
        }
        let verdict = accepted(&history, &contents);
        let cut = verdict.cut;
        assert!(cut.acked_beyond.unwrap() < beyond, "each set brings the cut closer");
        beyond = cut.acked_beyond.unwrap();
        assert_eq!(cut.commands + beyond, history.report.issued_writes);
    }
    assert_eq!(beyond, 0);
    assert_eq!(history.render(&contents), history.final_volumes);
}

#[test]
fn the_primary_itself_is_accepted_and_its_age_is_nothing() {
    let history = history();
    let floor = Floor::end_of(&history.log);
    let (with, without) = history.judge(&history.final_volumes, Some(&floor));
    assert!(with.consistent && without.consistent);
    assert_eq!(with.floor_met, Some(true));
    assert_eq!((with.cut.acked_beyond, with.cut.age_ns), (Some(0), Some(0)));
    assert_eq!((without.cut.acked_beyond, without.cut.age_ns), (None, None));
    assert_eq!(with.cut.commands, history.report.acked_writes);
}

#[test]
fn images_never_written_are_the_oldest_cut() {
    let history = history();
    let floor = Floor::end_of(&history.log);
    let contents = Contents::new(history.workload());
    let (with, without) = history.judge(&history.render(&contents), Some(&floor));
    assert!(with.consistent && without.consistent);
    let acked = history.report.acked_writes;
    assert_eq!((with.cut.acked_beyond, with.floor_met), (Some(acked), Some(false)));
    assert_eq!(with.lost.commands, acked);
    assert_eq!(without.run, None);
}

#[test]
fn a_set_swapped_with_the_next_is_caught() {
    let history = history();
    let (sets, mut contents) = halfway(&history);
    // In between: set 6 is there, set 5 is not.
    for &command in &sets[6] {
        contents.apply(&history, command);
    }
    refused(&history, &contents, "missing");
    // Afterwards: both are there, blocks of both hold what set 5 wrote.
    for &command in &sets[5] {
        contents.apply(&history, command);
    }
    refused(&history, &contents, "missing");
}

#[test]
fn one_volume_a_set_behind_is_caught_and_named() {
    let history = history();
    let (sets, behind) = halfway(&history);
    let mut contents = history.apply(&sets[..6].concat());
    contents.0[2] = behind.0[2].clone();
    let verdict = refused(&history, &contents, "missing");
    let faults: Vec<u64> = verdict.volumes.iter().map(|volume| volume.faults).collect();
    assert!(faults[2] > 0 && faults[0] + faults[1] + faults[3] == 0, "{faults:?}");
    // Its first missing effect lies before what others show, theirs do not.
    let newest = verdict.cut.newest_issue.unwrap();
    for (index, volume) in verdict.volumes.iter().enumerate() {
        assert_eq!(volume.first_missing.unwrap() < newest, index == 2);
    }
}

#[test]
fn one_volume_a_set_ahead_is_caught() {
    let history = history();
    let (sets, mut contents) = halfway(&history);
    contents.0[1] = history.apply(&sets[..6].concat()).0[1].clone();
    let verdict = refused(&history, &contents, "missing");
    assert_eq!(verdict.volumes[1].faults, 0, "the volume ahead lacks nothing");
}

/// A block of a command of the cut's first half that overwrote another, so that both the
/// command and what it overwrote are known to be needed.
fn overwritten(history: &History, contents: &Contents) -> (usize, usize, (u16, u64), (u16, u64)) {
    let commands = history.commands();
    for (volume, blocks) in contents.0.iter().enumerate() {
        for (address, command) in blocks.iter().enumerate() {
            let Some(command) = *command else { continue };
            let old = commands.iter().rev().find(|&&(writer, sequence)| {
                let extent = history.extent((writer, sequence));
                writer == command.0
                    && sequence < command.1
                    && usize::from(extent.volume) == volume
                    && extent.addresses().contains(&(address as u64))
            });
            if let Some(&old) = old
                && history.known(command) < history.log.events / 4
            {
                return (volume, address, command, old);
            }
        }
    }
    panic!("no such block");
}

#[test]
fn one_stale_block_is_caught() {
    let history = history();
    let (_, mut contents) = halfway(&history);
    let (volume, address, command, old) = overwritten(&history, &contents);
    contents.0[volume][address] = Some(old);
    let kind = if history.extent(command).blocks > 1 { "torn" } else { "missing" };
    let verdict = refused(&history, &contents, kind);
    assert_eq!(verdict.faults.total(), 1);
    assert_eq!(verdict.faults.examples[0].address, address as u64);
    contents.0[volume][address] = None;
    refused(&history, &contents, kind);
}

#[test]
fn an_update_applied_twice_out_of_order_is_caught() {
    let history = history();
    let (_, mut contents) = halfway(&history);
    let (_, _, command, old) = overwritten(&history, &contents);
    contents.apply(&history, old);
    let verdict = refused(
        &history,
        &contents,
        match history.extent(command) {
            extent if extent.addresses().all(|a| history.extent(old).addresses().contains(&a)) => {
                "missing"
            }
            _ => "torn",
        },
    );
    assert!(verdict.faults.total() >= 1);
}

#[test]
fn a_torn_command_is_caught_even_if_nothing_else_depends_on_it() {
    let history = history();
    let sets = sets(&history, 10);
    let cut = sets[..5].concat();
    // In flight at the boundary, so the cut may have it or not, but not a part of it.
    let newest = cut.iter().map(|&c| history.issued(c)).max().unwrap();
    let torn = history
        .commands()
        .into_iter()
        .find(|&c| history.known(c) > newest && history.extent(c).blocks > 1 && !cut.contains(&c))
        .unwrap();
    let mut contents = history.apply(&cut);
    let extent = history.extent(torn);
    let last = extent.addresses().last().unwrap() as usize;
    let before = contents.0[usize::from(extent.volume)][last];
    contents.apply(&history, torn);
    accepted(&history, &contents);
    contents.0[usize::from(extent.volume)][last] = before;
    let verdict = refused(&history, &contents, "torn");
    let Some(FaultKind::Torn { command, .. }) =
        verdict.faults.examples.iter().map(|f| f.kind.clone()).find(|k| k.name() == "torn")
    else {
        panic!("{:?}", verdict.faults);
    };
    assert_eq!((command.writer, command.sequence), torn);
}

#[test]
fn a_corrupt_a_foreign_a_misplaced_and_an_older_runs_block_are_told_apart() {
    let history = history();
    let (_, contents) = halfway(&history);
    let sound = history.render(&contents);
    let written = contents.0[0].iter().position(Option::is_some).unwrap();
    let other = contents.0[0].iter().rposition(Option::is_some).unwrap();
    let plant = |change: &dyn Fn(&mut Vec<Vec<u8>>), kind: &str| {
        let mut volumes = sound.clone();
        change(&mut volumes);
        let (with, without) = history.judge(&volumes, None);
        assert_eq!((with.faults.count(kind), without.faults.count(kind)), (1, 1), "{kind}");
        assert!(!with.consistent && !without.consistent);
    };
    let at = written * 512;
    plant(&|volumes| volumes[0][at + 300] ^= 4, "corrupt");
    plant(&|volumes| volumes[0][at..at + 512].fill(0x55), "foreign");
    plant(&|volumes| volumes[0].copy_within(other * 512..other * 512 + 512, at), "misplaced");
    let mut older = options(11);
    older.run.0[0] = 9;
    let older = History::run(older, 300, true, |_| ());
    let written = older.final_volumes[0].chunks(512).position(|b| b.iter().any(|&b| b != 0));
    let at = written.unwrap() * 512;
    let block = &older.final_volumes[0][at..at + 512];
    plant(&|volumes| volumes[0][at..at + 512].copy_from_slice(block), "other_run");
}

#[test]
fn volumes_given_in_the_wrong_order_are_caught() {
    let history = history();
    let (_, contents) = halfway(&history);
    let mut volumes = history.render(&contents);
    volumes.swap(0, 3);
    let (with, without) = history.judge(&volumes, None);
    assert!(with.faults.count("misplaced") > 10 && without.faults.count("misplaced") > 10);
}

#[test]
fn an_absent_and_a_short_volume_are_caught() {
    let history = history();
    let (_, contents) = halfway(&history);
    let mut volumes = history.render(&contents);
    volumes.pop();
    let (with, _) = history.judge(&volumes, None);
    assert_eq!((with.consistent, with.faults.count("volume_absent")), (false, 1));
    volumes.push(vec![0; 512 * 100]);
    let (with, _) = history.judge(&volumes, None);
    assert_eq!((with.consistent, with.faults.count("volume_short")), (false, 1));
}

#[test]
fn a_consistent_cut_older_than_the_floor_has_lost_what_was_acknowledged() {
    let history = history();
    let (sets, contents) = halfway(&history);
    let newest = sets[..5].concat().iter().map(|&c| history.issued(c)).max().unwrap();
    let boundary = history
        .commands()
        .iter()
        .map(|&(w, s)| history.log.command(w, s).unwrap())
        .filter(|facts| facts.ack_event <= newest)
        .map(|facts| facts.ack_unix_ns)
        .max()
        .unwrap();
    let volumes = history.render(&contents);
    // Acknowledgements of one turn share a time, so take a floor clearly before.
    let met = Floor::at(&history.log, boundary - 100);
    let (with, _) = history.judge(&volumes, Some(&met));
    assert_eq!((with.consistent, with.floor_met, with.lost.commands), (true, Some(true), 0));
    let late = Floor::at(&history.log, boundary + 500);
    let (with, _) = history.judge(&volumes, Some(&late));
    assert!(with.consistent && with.floor_met == Some(false) && with.lost.commands > 0);
    let lost = with.lost.examples[0];
    assert!(late.of(lost.writer).contains(lost.sequence));
}

#[test]
fn a_write_that_was_read_before_its_acknowledgement_must_not_be_missing_from_what_followed() {
    let history = history();
    let commands = history.commands();
    // A command observed by a read, and the first that was issued after that read and
    // before the acknowledgement: only the read orders the two.
    let (observed, follower) = commands
        .iter()
        .filter_map(|&observed| {
            let facts = history.log.command(observed.0, observed.1).unwrap();
            let follower = commands.iter().find(|&&c| {
                history.issued(c) > facts.known_event && history.issued(c) < facts.ack_event
            })?;
            Some((observed, *follower))
        })
        .next()
        .expect("a history with reads has one");
    let mut cut = history.cut(history.issued(follower), || false);
    cut.push(follower);
    accepted(&history, &history.apply(&cut));
    cut.retain(|&command| command != observed);
    refused(&history, &history.apply(&cut), "missing");
}

#[test]
fn a_log_of_another_run_does_not_pass_for_evidence() {
    let history = history();
    let mut other = options(11);
    other.run.0[0] = 1;
    let other = History::run(other, 100, true, |_| ());
    let sources = history
        .final_volumes
        .iter()
        .map(|bytes| {
            Box::new(setline::check::images::MemorySource(bytes))
                as Box<dyn setline::check::images::Source + '_>
        })
        .collect();
    let images = setline::check::images::Images::scan(sources, &Default::default()).unwrap();
    let floor = Floor::end_of(&other.log);
    let verdict = setline::check::images::check(&images, Some(&other.log), Some(&floor));
    assert_eq!(
        (verdict.consistent, verdict.with_log, verdict.floor_met),
        (false, false, Some(false))
    );
}
