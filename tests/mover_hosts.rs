//! What hosts meet at real movers: every command they may send, SPDK's own clients, mixed sizes
//! with verification, and the second site equal afterwards.
//!
//! A lab is left standing for each test; the initiator runs in a process of its own, as EAL starts
//! once per process: the test starts itself again as that process.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;
mod spdk_support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lab_support::one_lab;
use serde_json::Value;
use setline::spdk::address::Address;
use setline::spdk::nvme::Controller;
use setline::spdk::queue::LocalQueues;
use spdk_support::exercise::Host;
use spdk_support::spdk_program;

/// Set in the process that is the host: the target's address, and its subsystem.
const ROLE: &str = "SETLINE_TEST_MOVER";

/// A standing lab, taken down when it goes.
struct Lab {
    directory: PathBuf,
    nqn: String,
    ids: Vec<String>,
}

impl Lab {
    fn up(name: &str, arguments: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("setline-{name}-{}", std::process::id()));
        let output = Command::new(env!("CARGO_BIN_EXE_setline"))
            .args(["--output", "json", "lab", "up", "--dir"])
            .arg(&directory)
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let up: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids = up["transport_ids"].as_array().unwrap();
        Self {
            directory,
            nqn: up["nqn"].as_str().unwrap().to_owned(),
            ids: ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect(),
        }
    }

    fn ask(&self, arguments: &[&str]) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_setline"))
            .arg("--lab")
            .arg(&self.directory)
            .args(["--output", "json"])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Closes the open set, waits until the second site has applied it, and takes the lab down;
    /// then the images of both sites are equal.
    fn ends_with_equal_sites(self) {
        let closed = self.ask(&["set", "close"])["id"].as_u64().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let applied = |groups: &Value| {
            let groups =
                groups.as_array().unwrap().iter().filter(|group| group["apply"] != "not-here");
            groups.map(|group| group["sets"]["applied"].as_u64().unwrap()).min().unwrap()
        };
        while applied(&self.ask(&["group", "show"])) < closed {
            assert!(Instant::now() < until, "set {closed} is not applied");
            std::thread::sleep(Duration::from_millis(50));
        }
        let down = Command::new(env!("CARGO_BIN_EXE_setline"))
            .args(["lab", "down", "--keep", "--dir"])
            .arg(&self.directory)
            .output()
            .unwrap();
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        let images = images(&self.directory.join("img"));
        assert!(!images.is_empty());
        for (primary, secondary) in images {
            let (one, other) =
                (std::fs::read(&primary).unwrap(), std::fs::read(&secondary).unwrap());
            assert!(one == other, "{} and {}", primary.display(), secondary.display());
            assert!(one.iter().any(|byte| *byte != 0), "{} was written", primary.display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_setline"));
        let _ = down.args(["lab", "down", "--dir"]).arg(&self.directory).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Pairs of a volume's images at both sites.
fn images(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    let of = |site: &str| -> Vec<PathBuf> {
        let name = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(site))
        };
        files.iter().filter(name).cloned().collect()
    };
    let (primary, secondary) = (of("primary-"), of("secondary-"));
    assert_eq!(primary.len(), secondary.len());
    primary.into_iter().zip(secondary).collect()
}

fn host_process(test: &str, id: &str, nqn: &str) {
    let mut host = Command::new(std::env::current_exe().unwrap());
    host.args(["--exact", test, "--nocapture"]).env(ROLE, format!("{id}\n{nqn}"));
    let output = host.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as host of {id}: {text}");
}

/// A transport id of SPDK's as an address.
fn address(id: &str) -> Address {
    let field = |name: &str| id.split(' ').find_map(|part| part.strip_prefix(name)).unwrap();
    if id.contains("trtype:TCP") {
        let (ip, port) = (field("traddr:").parse().unwrap(), field("trsvcid:").parse().unwrap());
        return Address::Tcp(SocketAddr::new(ip, port));
    }
    Address::VfioUser(PathBuf::from(field("traddr:")))
}

/// The host's side: every command, on every volume.
fn host(role: &str) {
    let (id, nqn) = role.split_once('\n').unwrap();
    let env = spdk_support::env("host", 64);
    let queues = LocalQueues::install(256).unwrap();
    let controller = Controller::connect(&address(id), Some(nqn), None).unwrap();
    let identity = controller.identity();
    assert_eq!(identity.model, "setline");
    let namespaces = controller.namespaces();
    assert!(!namespaces.is_empty(), "a mover serves the volumes that it is responsible for");
    for ns in &namespaces {
        assert!(ns.nguid.is_some() && ns.uuid.is_some());
        let transfer = (identity.max_transfer_bytes as usize).min(1 << 20);
        Host::new(&controller, &queues, transfer).exercise(ns);
    }
    drop(namespaces);
    drop(controller);
    drop(queues);
    drop(env);
}

fn every_command(test: &str, arguments: &str) {
    if let Ok(role) = std::env::var(ROLE) {
        return host(&role);
    }
    let _alone = one_lab();
    let lab = Lab::up(test, &format!("--primary 2 --secondary 1 --volumes 2 {arguments}"));
    for id in &lab.ids {
        host_process(test, id, &lab.nqn);
    }
    lab.ends_with_equal_sites();
}

#[test]
fn every_command_has_its_outcome_at_a_mover_over_vfio_user() {
    every_command("every_command_has_its_outcome_at_a_mover_over_vfio_user", "--block-bytes 4096");
}

#[test]
fn every_command_has_its_outcome_at_a_mover_over_tcp_with_512_byte_blocks() {
    every_command(
        "every_command_has_its_outcome_at_a_mover_over_tcp_with_512_byte_blocks",
        "--transport tcp --block-bytes 512",
    );
}

fn succeeded(what: &str, output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{err}");
    out.into_owned()
}

/// SPDK's own programs, and our verifier, at one mover.
fn stock_clients(id: &str) {
    // Without -g SPDK's clients do not share memory with a vfio-user target.
    let identify = spdk_program("spdk_nvme_identify").args(["-g", "-s", "128", "-r", id]).output();
    let identify = succeeded("identify", &identify.unwrap());
    assert!(identify.contains("setline"), "{identify}");
    for workload in ["randwrite", "randrw"] {
        let perf = spdk_program("spdk_nvme_perf")
            .args(["-g", "-s", "128", "-q", "32", "-o", "4096", "-t", "1", "-M", "50"])
            .args(["-w", workload, "-r", id])
            .output();
        let perf = succeeded(workload, &perf.unwrap());
        assert!(perf.contains("Total"), "{perf}");
    }
    let verify = Command::new(env!("CARGO_BIN_EXE_setline-check"))
        .args(["verify", "--seconds", "2", "--trid", id])
        .output();
    succeeded("verify", &verify.unwrap());
}

#[test]
fn stock_clients_and_verified_mixed_sizes_work_against_a_lab() {
    let _alone = one_lab();
    for transport in ["vfio-user", "tcp"] {
        let shape = format!("--primary 2 --secondary 1 --volumes 2 --transport {transport}");
        let lab = Lab::up(&format!("stock-{transport}"), &shape);
        for id in &lab.ids {
            stock_clients(id);
        }
        lab.ends_with_equal_sites();
    }
}
