//! `setline-check` as a program against SPDK's own NVMe target, over TCP and
//! vfio-user. Needs hugepages (`scripts/setup`).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

// Every test links SPDK and DPDK with the shims that the library brings.
use setline as _;

use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_setline-check");
const NQN: &str = "nqn.2026-11.io.example:check";
const VOLUME_BYTES: u64 = 16 << 20;

/// SPDK's target with three volumes on files, which outlive it.
struct Target {
    dir: Rc<tempfile::TempDir>,
    /// Tells the target from another one that offers the same volumes.
    number: u16,
    port: u16,
    process: Child,
}

impl Target {
    fn start() -> Self {
        // Files on a file system that knows direct I/O, as the target's bdev wants it.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for index in 0..3 {
            let file = std::fs::File::create(dir.path().join(format!("volume{index}"))).unwrap();
            file.set_len(VOLUME_BYTES).unwrap();
        }
        Self::of(Rc::new(dir), 0)
    }

    /// Another target that offers the same volumes as the same subsystem.
    fn second(&self) -> Self {
        Self::of(Rc::clone(&self.dir), 1)
    }

    fn of(dir: Rc<tempfile::TempDir>, number: u16) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        std::fs::create_dir(dir.path().join(format!("vfu{number}"))).unwrap();
        let process = Self::spawn(dir.path(), number, port);
        let target = Self { dir, number, port, process };
        target.wait();
        target
    }

    fn spawn(dir: &Path, number: u16, port: u16) -> Child {
        let method = |method: &str, params: Value| json!({"method": method, "params": params});
        let mut bdev = Vec::new();
        let mut nvmf = vec![
            method("nvmf_create_transport", json!({"trtype": "TCP"})),
            method("nvmf_create_transport", json!({"trtype": "VFIOUSER"})),
            method(
                "nvmf_create_subsystem",
                json!({"nqn": NQN, "allow_any_host": true, "serial_number": "CHECK",
                    "min_cntlid": 1 + 1000 * number, "max_cntlid": 1000 + 1000 * number}),
            ),
        ];
        for index in 0..3 {
            let name = format!("volume{index}");
            let file = dir.join(&name);
            bdev.push(method(
                "bdev_aio_create",
                json!({"name": name, "filename": file, "block_size": 512}),
            ));
            nvmf.push(method(
                "nvmf_subsystem_add_ns",
                json!({"nqn": NQN, "namespace": {"nsid": index + 1, "bdev_name": name,
                    "nguid": format!("{:032X}", index + 1),
                    "uuid": format!("00000000-0000-0000-0000-{:012}", index + 1)}}),
            ));
        }
        let tcp = json!({"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1",
            "trsvcid": port.to_string()});
        let sockets = dir.join(format!("vfu{number}"));
        let vfio = json!({"trtype": "VFIOUSER", "traddr": sockets, "trsvcid": "0"});
        for address in [tcp, vfio] {
            let params = json!({"nqn": NQN, "listen_address": address});
            nvmf.push(method("nvmf_subsystem_add_listener", params));
        }
        let config = json!({"subsystems": [
            {"subsystem": "bdev", "config": bdev},
            {"subsystem": "nvmf", "config": nvmf},
        ]});
        let path = dir.join(format!("target{number}.json"));
        std::fs::write(&path, config.to_string()).unwrap();
        // What a killed target left would be in the way of the next.
        let _ = std::fs::remove_file(sockets.join("cntrl"));
        Command::new(concat!(env!("SETLINE_SPDK_BIN"), "/nvmf_tgt"))
            .args(["-m", "0x1", "--no-pci", "--disable-cpumask-locks", "-s", "256"])
            .arg("-r")
            .arg(dir.join(format!("rpc{number}.sock")))
            .arg("-c")
            .arg(path)
            .stdout(std::fs::File::create(dir.join(format!("target{number}.log"))).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = self.path(&format!("target{}.log", self.number));
            let log = || std::fs::read_to_string(&log).unwrap();
            assert!(since.elapsed() < Duration::from_secs(60), "{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = Self::spawn(self.dir.path(), self.number, self.port);
        self.wait();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tcp(&self) -> String {
        let port = self.port;
        format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{NQN}")
    }

    fn vfio_user(&self) -> String {
        let sockets = self.path(&format!("vfu{}", self.number));
        format!("trtype:VFIOUSER traddr:{} subnqn:{NQN}", sockets.display())
    }

    fn check(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.dir.path()).args(args).args(["--output", "json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Waits until the status file has at least so many acknowledged writes.
    fn wait_for_acked(&self, writes: u64) -> u64 {
        let acked = |status: &Value| status["acked_writes"].as_u64().unwrap_or(0);
        acked(&self.wait_for("acknowledgements", |status| acked(status) >= writes))
    }

    fn wait_for(&self, what: &str, reached: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let status = std::fs::read(self.path("status"))
                .map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
            if reached(&status) {
                return status;
            }
            assert!(since.elapsed() < Duration::from_secs(90), "{what}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn images(&self, args: &[&str]) -> (Option<i32>, Value) {
        let mut command = self.check(&["images"]);
        let files = ["volume0", "volume1", "volume2"];
        let output = command.args(args).args(files).output().unwrap();
        (output.status.code(), parse(&output))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        setline::lab::machine::remove_runtime_directory(self.process.id());
    }
}

fn parse(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn writes_over_two_transports_make_a_consistent_set_of_images() {
    let target = Target::start();
    let (tcp, vfio_user) = (target.tcp(), target.vfio_user());
    let write = ["write", "--trid", &tcp, "--trid", &vfio_user, "--seconds", "2"];
    let more = ["--log", "log", "--status", "status", "--read-percent", "10"];
    let output = target.check(&write).args(more).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = parse(&output);
    assert!(report["acked_writes"].as_u64().unwrap() > 50, "{report}");
    assert_eq!(report["workload"]["volumes"], 3);

    let (exit, verdict) = target.images(&["--log", "log", "--now"]);
    assert_eq!((exit, &verdict["consistent"]), (Some(0), &true.into()), "{verdict}");
    assert_eq!(verdict["cut"]["acked_beyond"], 0);
    // The same through the initiator, and in another order of volumes.
    let through = |volumes: &str| {
        let args = ["images", "--trid", &vfio_user, "--volumes", volumes, "--floor", "status"];
        let output = target.check(&args).output().unwrap();
        (output.status.code(), parse(&output))
    };
    let (exit, verdict) = through("1,2,3");
    assert_eq!((exit, &verdict["floor_met"]), (Some(0), &true.into()), "{verdict}");
    let (exit, verdict) = through("2,1,3");
    assert_eq!((exit, &verdict["consistent"]), (Some(1), &false.into()));
    assert!(verdict["faults"]["counts"]["misplaced"].as_u64().unwrap() > 0);
}

#[test]
fn every_kind_of_command_is_verified_over_both_transports() {
    let target = Target::start();
    for trid in [target.tcp(), target.vfio_user()] {
        let args = ["verify", "--trid", &trid, "--commands", "2000", "--seconds", "60"];
        // SPDK's own target ends a plain compare that fails as an internal error.
        let more = ["--span", "4m", "--without", "compare"];
        let output = target.check(&args).args(more).output().unwrap();
        let report = parse(&output);
        assert_eq!((output.status.code(), &report["ok"]), (Some(0), &true.into()), "{report}");
        for action in ["write_zeroes", "compare_and_write_equal", "compare_and_write_unequal"] {
            assert!(report["commands"][action].as_u64().unwrap() > 0, "{action}: {report}");
        }
    }
}

#[test]
fn a_target_that_is_killed_and_comes_back_loses_nothing_acknowledged() {
    survive_a_restart(Target::start(), Target::tcp);
}

#[test]
fn over_vfio_user_a_killed_target_shows_by_its_socket_and_nothing_is_lost() {
    survive_a_restart(Target::start(), Target::vfio_user);
}

/// A host with one path keeps its commands until that is back: no command fails.
fn survive_a_restart(mut target: Target, trid: fn(&Target) -> String) {
    let trid = trid(&target);
    let args = ["write", "--trid", &trid, "--seconds", "0", "--log", "log", "--status", "status"];
    let mut command = target.check(&args);
    command.args(["--retries", "0", "--idle", "sleep", "--grace", "60"]);
    // Neither decides here: the lost connection does, and the target is back long before.
    command.args(["--command-timeout", "600", "--no-path-timeout", "600"]);
    let writer = command.spawn().unwrap();
    target.wait_for_acked(50);
    target.kill();
    target.wait_for("a lost path", |status| status["paths"]["lost"] == 1);
    let before = target.wait_for_acked(0);
    target.start_again();
    target.wait_for_acked(before + 100);
    let pid = rustix::process::Pid::from_child(&writer);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = writer.wait_with_output().unwrap();
    let report = parse(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    let paths = &report["paths"];
    assert_eq!((&paths["lost"], &paths["connected_again"]), (&1.into(), &1.into()), "{report}");
    assert!(paths["retries"].as_u64().unwrap() > 0, "what was under way was sent again: {report}");
    let (exit, verdict) = target.images(&["--log", "log", "--now"]);
    assert_eq!((exit, &verdict["floor_met"]), (Some(0), &true.into()), "{verdict}");
}

/// Two targets offer the same volumes; each is killed while the other one lives.
#[test]
fn a_host_goes_on_by_the_other_path_when_a_target_is_killed() {
    let first = Target::start();
    let second = first.second();
    let mut targets = [first, second];
    let trids = [targets[0].vfio_user(), targets[1].tcp()];
    let args = ["write", "--seconds", "0", "--log", "log", "--status", "status"];
    let mut command = targets[0].check(&args);
    command.args(["--trid", &trids[0], "--trid", &trids[1], "--paths", "spread"]);
    command.args(["--retries", "0", "--idle", "sleep", "--read-percent", "5"]);
    let writer = command.spawn().unwrap();
    targets[0].wait_for_acked(100);
    for (round, killed) in (1..).zip([0, 1, 0, 1]) {
        targets[killed].kill();
        let lost = |status: &Value| status["paths"]["lost"] == round;
        let acked = targets[0].wait_for("a lost path", lost)["acked_writes"].as_u64().unwrap();
        targets[0].wait_for_acked(acked + 100);
        targets[killed].start_again();
        let back = |status: &Value| status["paths"]["connected_again"] == round;
        let acked = targets[0].wait_for("a path is back", back)["acked_writes"].as_u64().unwrap();
        targets[0].wait_for_acked(acked + 100);
    }
    let pid = rustix::process::Pid::from_child(&writer);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = writer.wait_with_output().unwrap();
    let report = parse(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(report["paths"]["retries"].as_u64().unwrap() > 0, "{report}");
    let (exit, verdict) = targets[0].images(&["--log", "log", "--now"]);
    assert_eq!((exit, &verdict["floor_met"]), (Some(0), &true.into()), "{verdict}");
}

#[test]
fn a_command_that_no_path_takes_in_time_ends_with_an_error() {
    let mut target = Target::start();
    let trid = target.tcp();
    let args = ["write", "--trid", &trid, "--seconds", "0", "--status", "status"];
    let mut command = target.check(&args);
    command.args(["--retries", "0", "--idle", "sleep", "--no-path-timeout", "1"]);
    let writer = command.spawn().unwrap();
    target.wait_for_acked(50);
    target.kill();
    // Every logical writer gives up at its first error, and then the run ends by itself.
    let output = writer.wait_with_output().unwrap();
    let report = parse(&output);
    assert_eq!(output.status.code(), Some(6), "{report}");
    assert!(report["host_errors"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["writers_halted"], report["workload"]["writers"]);
}

#[test]
fn a_controller_that_does_not_answer_is_reported_as_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let trid = format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{NQN}");
    let output = Command::new(PROGRAM).args(["write", "--trid", &trid]).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}
