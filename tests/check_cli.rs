//! `setline-check` as a program, on files.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

// Every test links SPDK and DPDK with the shims that the library brings.
use setline as _;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_setline-check");

struct Volumes {
    dir: tempfile::TempDir,
}

impl Volumes {
    /// Four sparse volumes of 4 MiB.
    fn new() -> Self {
        let volumes = Self { dir: tempfile::tempdir().unwrap() };
        for path in volumes.images() {
            std::fs::File::create(path).unwrap().set_len(4 << 20).unwrap();
        }
        volumes
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn images(&self) -> [PathBuf; 4] {
        [0, 1, 2, 3].map(|index| self.path(&format!("volume-{index}")))
    }

    fn write(&self, more: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["write", "--output", "json", "--seed", "5", "--writers", "4"]);
        command.args(["--idle", "sleep", "--read-percent", "10"]);
        command.arg("--log").arg(self.path("log")).arg("--status").arg(self.path("status"));
        for image in self.images() {
            command.arg("--file").arg(image);
        }
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn copy(&self, index: usize) -> PathBuf {
        let copy = self.path(&format!("copy-{index}"));
        std::fs::copy(&self.images()[index], &copy).unwrap();
        copy
    }

    /// Waits until the status file has at least so many acknowledged writes.
    fn wait_for_acked(&self, writes: u64) -> u64 {
        let since = Instant::now();
        loop {
            let status: Option<Value> = std::fs::read(self.path("status"))
                .ok()
                .map(|bytes| serde_json::from_slice(&bytes).unwrap());
            let acked = status.and_then(|status| status["acked_writes"].as_u64()).unwrap_or(0);
            if acked >= writes {
                return acked;
            }
            assert!(since.elapsed() < Duration::from_secs(120), "{acked} of {writes} writes");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn check(args: &[&str], images: &[PathBuf]) -> (i32, Value) {
    let output = Command::new(PROGRAM)
        .args(["images", "--output", "json"])
        .args(args)
        .args(images)
        .output()
        .unwrap();
    let verdict = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), verdict)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_run_to_its_end_is_consistent_complete_and_of_age_zero() {
    let volumes = Volumes::new();
    let output = volumes.write(&["--seconds", "1", "--rate", "2000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert!(report["acked_writes"].as_u64().unwrap() > 100);
    assert_eq!((&report["host_errors"], &report["stale_reads"]), (&0.into(), &0.into()));
    assert_eq!(report["issued_writes"], report["acked_writes"]);
    assert!(report["write_latency_ns"]["p99"].as_u64().unwrap() > 0);

    let log = volumes.path("log");
    let (exit, verdict) = check(&["--log", text(&log), "--now"], &volumes.images());
    assert_eq!((exit, &verdict["consistent"]), (0, &true.into()), "{verdict}");
    assert_eq!(
        (&verdict["cut"]["acked_beyond"], &verdict["cut"]["age_ns"]),
        (&0.into(), &0.into())
    );
    assert_eq!(verdict["cut"]["commands"], report["acked_writes"]);
    let status = volumes.path("status");
    let (exit, verdict) = check(&["--floor", text(&status)], &volumes.images());
    assert_eq!((exit, &verdict["floor_met"]), (0, &true.into()), "{verdict}");

    // The same with a volume of before: consistent no more.
    let mut images = volumes.images();
    images[1] = volumes.path("empty");
    std::fs::File::create(&images[1]).unwrap().set_len(4 << 20).unwrap();
    let (exit, verdict) = check(&[], &images);
    assert_eq!((exit, &verdict["consistent"]), (1, &false.into()));
    // All volumes of before: consistent, but everything is lost.
    let empty = [images[1].clone(), images[1].clone(), images[1].clone(), images[1].clone()];
    let (exit, verdict) = check(&["--log", text(&log), "--now"], &empty);
    assert_eq!((exit, &verdict["lost"]["commands"]), (8, &report["acked_writes"]));
    // And without a log there is nothing to judge.
    assert_eq!(check(&[], &empty).0, 3);
}

#[test]
fn a_copy_taken_volume_by_volume_while_writes_go_on_is_refused() {
    let volumes = Volumes::new();
    let writer = volumes.write(&["--seconds", "0"]).spawn().unwrap();
    let first = volumes.wait_for_acked(1000);
    let mut copies = vec![volumes.copy(0)];
    volumes.wait_for_acked(first + 2000);
    copies.extend([1, 2, 3].map(|index| volumes.copy(index)));
    let pid = rustix::process::Pid::from_child(&writer);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = writer.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "SIGTERM ends a run in order: {output:?}");
    assert_eq!(json(&output)["unfinished_writes"], 0);
    let (exit, verdict) = check(&["--log", text(&volumes.path("log"))], &copies);
    assert_eq!((exit, &verdict["consistent"]), (1, &false.into()), "{verdict}");
    assert!(verdict["volumes"][0]["faults"].as_u64().unwrap() > 0);
    assert_eq!(check(&[], &copies).0, 1);
    // What the writer wrote itself is fine, and differs from the copies.
    assert_eq!(check(&["--log", text(&volumes.path("log")), "--now"], &volumes.images()).0, 0);
    let compare = Command::new(PROGRAM)
        .args(["compare", "--output", "json"])
        .args([&volumes.images()[0], &copies[0], &copies[1], &copies[1]])
        .output()
        .unwrap();
    assert_eq!(compare.status.code(), Some(1));
    let pairs = &json(&compare)["pairs"];
    assert_eq!((&pairs[0]["equal"], &pairs[1]["equal"]), (&false.into(), &true.into()));
    assert!(pairs[0]["first_difference"]["a"]["sequence"].as_u64().unwrap() > 0);
}

#[test]
fn a_killed_writer_leaves_a_log_that_still_proves() {
    let volumes = Volumes::new();
    let mut writer = volumes.write(&["--seconds", "0"]).spawn().unwrap();
    volumes.wait_for_acked(1000);
    writer.kill().unwrap();
    writer.wait().unwrap();
    // The status file was never half written, and what it says is in the images.
    let (log, status) = (volumes.path("log"), volumes.path("status"));
    let args = ["--log", text(&log), "--floor", text(&status)];
    let (exit, verdict) = check(&args, &volumes.images());
    // Files written by a killed process may hold a torn command in flight, nothing else.
    let counts = verdict["faults"]["counts"].as_object().unwrap();
    assert!(counts.keys().all(|kind| kind == "torn" || kind == "corrupt"), "{verdict}");
    assert_eq!(verdict["floor_met"], true, "exit {exit}, {verdict}");
    let shown = Command::new(PROGRAM).arg("log").arg(&log).args(["--output", "json"]).output();
    let shown = json(&shown.unwrap());
    assert_eq!(shown["complete"], false);
    assert!(shown["acked_writes"].as_u64().unwrap() >= 1000);
}

#[test]
fn verification_over_files_finds_them_good() {
    let volumes = Volumes::new();
    let mut command = Command::new(PROGRAM);
    command.args(["verify", "--output", "json", "--commands", "3000", "--seconds", "0"]);
    command.args(["--idle", "sleep", "--initial-zeros", "--deallocated-zeros", "--span", "1m"]);
    for image in volumes.images() {
        command.arg("--file").arg(image);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = json(&output);
    assert_eq!((&report["ok"], &report["mismatches"]), (&true.into(), &0.into()));
    assert!(report["commands"]["deallocate"].as_u64().unwrap() > 0);
    assert_eq!(report["not_supported"][0], "compare_and_write_equal");
}

#[test]
fn wrong_usage_and_wrong_inputs_have_exit_codes_of_their_own() {
    let run = |args: &[&str]| Command::new(PROGRAM).args(args).output().unwrap().status.code();
    assert_eq!(run(&["images"]), Some(2));
    assert_eq!(run(&["write", "--seconds", "1"]), Some(2));
    assert_eq!(run(&["compare", "/dev/null"]), Some(2));
    assert_eq!(run(&["images", "/nowhere/image"]), Some(3));
    assert_eq!(run(&["images", "--log", "/dev/null", "/dev/null"]), Some(3));
    assert_eq!(run(&["write", "--file", "/nowhere/volume"]), Some(3));
}

#[test]
fn a_block_can_be_looked_at() {
    let volumes = Volumes::new();
    let output = volumes.write(&["--seconds", "0.2", "--rate", "2000"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let image = &volumes.images()[0];
    let bytes = std::fs::read(image).unwrap();
    let written = bytes.chunks(512).position(|block| block[0] != 0).unwrap();
    let shown = Command::new(PROGRAM)
        .args(["block", "--output", "json", text(image), &written.to_string()])
        .output()
        .unwrap();
    let shown = json(&shown);
    assert_eq!((&shown["address"], &shown["run"]), (&written.into(), &json(&output)["run"]));
}
