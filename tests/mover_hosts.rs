//! What hosts meet at real movers: every command they may send, SPDK's own clients, mixed sizes
//! with verification, and the second site equal afterwards.
//!
//! A lab is left standing for each test; the initiator runs in a process of its own, as EAL starts
//! once per process: the test starts itself again as that process.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;
mod spdk_support;
#[path = "lab_support/standing.rs"]
mod standing;

use std::process::{Command, Output};

use lab_support::one_lab;
use setline::spdk::nvme::Controller;
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;
use spdk_support::exercise::Host;
use spdk_support::spdk_program;
use standing::{Lab, ROLE, address, host_process};

/// The host's side: every command, on every volume.
fn host(role: &str) {
    let (id, nqn) = role.split_once('\n').unwrap();
    let env = spdk_support::env("host", 64);
    let queues = LocalQueues::install(256).unwrap();
    let controller = Controller::connect(&address(id), Some(nqn), None).unwrap();
    let identity = controller.identity();
    assert_eq!(identity.model, "setline");
    let namespaces = controller.namespaces();
    let best = namespaces.iter().filter(|ns| ns.path_state() == AnaState::Optimized).count();
    assert_eq!((namespaces.len(), best), (2, 1), "a mover serves all volumes, its own best");
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
        host_process(test, &format!("{id}\n{}", lab.nqn));
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
