//! `setline-sim` as a program: exit codes, reports, replays, and that it finds what is broken.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

// Every test links SPDK and DPDK with the shims that the library brings.
use setline as _;

use serde_json::Value;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_setline-sim");

fn sim(args: &str) -> Output {
    Command::new(PROGRAM).args(args.split_whitespace()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(args: &str) -> (i32, Value) {
    let output = sim(&format!("{args} --output json"));
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_same_seeds_give_the_same_histories_and_others_give_others() {
    let run = |seed: u64| json(&format!("--seed {seed} --seeds 3 --updates 40"));
    let ((code, one), (_, again), (_, other)) = (run(7), run(7), run(8));
    assert_eq!(code, 0, "{one}");
    assert_eq!(one["trace_hash"], again["trace_hash"]);
    assert_eq!(one["coverage"], again["coverage"]);
    assert_ne!(one["trace_hash"], other["trace_hash"]);
}

#[test]
fn two_threads_report_what_one_reports() {
    let run = |jobs: u64| json(&format!("--seed 1 --seeds 6 --updates 40 --jobs {jobs}")).1;
    assert_eq!(run(1)["trace_hash"], run(2)["trace_hash"]);
}

#[test]
fn a_clean_report_has_everything_that_the_manual_names() {
    let (code, report) = json("--seed 1 --seeds 5 --updates 40");
    assert_eq!(code, 0);
    assert_eq!((&report["first_seed"], &report["seeds"]), (&1.into(), &5.into()));
    assert_eq!(report["violations"], Value::Array(Vec::new()));
    for key in ["seconds", "seeds_per_minute"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(report["trace_hash"].as_str().unwrap().len(), 16);
    assert!(report["coverage"]["packets"].as_u64().unwrap() > 100);
}

#[test]
fn a_knob_fixes_what_it_names() {
    let (_, report) =
        json("--seed 1 --seeds 20 --updates 30 --calm-movers --calm-disks --calm-network");
    for fault in ["kills", "power_losses", "partitions", "stalls", "packets_lost"] {
        assert_eq!(report["coverage"][fault], 0, "{fault}");
    }
    assert_eq!(report["coverage"]["updates"].as_u64().unwrap(), 20 * 30);
}

#[test]
fn one_clean_seed_shows_the_end_of_its_trace_on_request() {
    let output = sim("--seed 3 --updates 40 --tail 25");
    assert_eq!(output.status.code(), Some(0));
    let text = text(&output);
    assert_eq!(text.lines().filter(|line| line.contains(" us  ")).count(), 25, "{text}");
    assert!(text.contains("no violation"), "{text}");
}

#[test]
fn wrong_arguments_are_a_usage_error() {
    for args in
        ["--seeds many", "--broken nonsense", "--primary 0", "--journal-percent 0", "--what"]
    {
        let output = sim(args);
        assert_eq!(output.status.code(), Some(2), "{args}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args}");
    }
}

#[test]
fn the_list_of_variants_is_that_of_the_manual() {
    let list = text(&sim("--broken list"));
    let manual = include_str!("../docs/simulator.md");
    assert!(list.lines().count() >= 15, "{list}");
    for variant in list.lines() {
        assert!(manual.contains(&format!("| `{variant}` |")), "{variant} is not in the manual");
    }
}

/// In a build that can carry data nothing can be broken on purpose.
#[cfg(not(feature = "datapath"))]
mod broken {
    use super::*;

    #[test]
    fn a_failure_is_shown_with_its_trace_and_a_line_that_replays_it() {
        let first = sim("--seed 1 --seeds 200 --broken ack-before-mirror --tail 10");
        assert_eq!(first.status.code(), Some(1));
        let shown = text(&first);
        let line = |start: &str| {
            let found = shown.lines().find_map(|line| line.strip_prefix(start));
            found.unwrap_or_else(|| panic!("no line begins with {start:?}: {shown}")).to_owned()
        };
        let replay = line("replay: setline-sim ");
        let again = sim(&format!("{replay} --tail 10"));
        assert_eq!(again.status.code(), Some(1));
        let history = |text: &str| {
            let lines = text.lines().filter(|line| line.contains(" us  "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(history(&shown).len(), 10);
        assert_eq!(history(&shown), history(&text(&again)));
        assert_eq!(
            line("seed "),
            text(&again).lines().find_map(|l| l.strip_prefix("seed ")).unwrap()
        );
    }

    #[test]
    fn a_failure_in_json_has_seed_invariant_text_replay_and_tail() {
        let (code, report) = json("--seed 1 --seeds 200 --broken free-before-confirm --tail 7");
        assert_eq!(code, 1);
        let violation = &report["violations"][0];
        assert_eq!(violation["invariant"], 8, "{violation}");
        assert_eq!(violation["tail"].as_array().unwrap().len(), 7);
        assert!(!violation["text"].as_str().unwrap().is_empty());
        let seed = violation["seed"].as_u64().unwrap();
        let replay = format!("setline-sim --seed {seed} --broken free-before-confirm");
        assert_eq!(violation["replay"], replay.as_str());
        assert_eq!(report["broken"], "free-before-confirm");
    }

    #[test]
    fn it_stops_after_as_many_failures_as_asked_for() {
        let run = |failures: u64| {
            let args = "--seed 1 --seeds 200 --broken ack-before-mirror --tail 1";
            json(&format!("{args} --failures {failures}")).1["violations"].as_array().unwrap().len()
        };
        assert_eq!((run(1), run(3)), (1, 3));
    }

    #[test]
    fn every_broken_variant_is_found_within_400_seeds() {
        let list = text(&sim("--broken list"));
        for variant in list.lines().filter(|variant| *variant != "none") {
            // Those of a take-over show only where primary movers fail, some in small sites only; those of
            // a hand-over only where volumes move.
            let small = "--fail true --primary 3 --copies 2 --forward-percent 0";
            let found = ["--fail false", "--fail true", small, "--move true"].iter().any(|knobs| {
                let args = format!("--seed 1 --seeds 400 --broken {variant} {knobs} --tail 1");
                sim(&args).status.code() == Some(1)
            });
            assert!(found, "{variant} goes unseen");
        }
    }
}
