//! What hosts may send to a volume, each with its defined outcome, through the
//! initiator wrapper in a process of its own. The test starts itself again as
//! that process: EAL starts once per process.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
#![cfg(feature = "datapath")]

mod spdk_support;

use std::path::PathBuf;
use std::process::Command;

use setline::spdk::address::Address;
use setline::spdk::nvme::Controller;
use setline::spdk::queue::LocalQueues;
use spdk_support::exercise::Host;
use spdk_support::{NQN, Site, TRANSFER_BYTES};

/// Set in the process that is the host: the target's address.
const ROLE: &str = "SETLINE_TEST_HOST_OF";

#[test]
fn every_command_a_host_may_send_has_its_outcome() {
    if let Ok(address) = std::env::var(ROLE) {
        return host(&address);
    }
    tracing_subscriber::fmt().with_test_writer().init();
    let dir = tempfile::tempdir().unwrap();
    let site = Site::start(dir.path());
    let Address::VfioUser(vfio_user) = &site.vfio_user else { unreachable!() };
    let Address::Tcp(tcp) = &site.tcp else { unreachable!() };
    for address in [format!("{}", vfio_user.display()), tcp.to_string()] {
        let mut host = Command::new(std::env::current_exe().unwrap());
        host.args(["--exact", "every_command_a_host_may_send_has_its_outcome", "--nocapture"]);
        host.env(ROLE, &address);
        let output = site.run(host);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "over {address}: {text}");
    }
    site.stop();
}

/// The host's side.
fn host(address: &str) {
    let address = match address.parse() {
        Ok(socket) => Address::Tcp(socket),
        Err(_) => Address::VfioUser(PathBuf::from(address)),
    };
    let env = spdk_support::env("host", 64);
    let queues = LocalQueues::install(256).unwrap();
    let controller = Controller::connect(&address, Some(NQN), None).unwrap();
    let identity = controller.identity();
    assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("SLTEST", "setline"));
    assert!((0x101..=0x1ff).contains(&identity.cntlid), "controller id {:#x}", identity.cntlid);
    assert_eq!(identity.max_transfer_bytes as usize, TRANSFER_BYTES);
    let namespaces = controller.namespaces();
    let blocks: Vec<u32> = namespaces.iter().map(|ns| ns.block_bytes).collect();
    assert_eq!(blocks, [4096, 512]);
    for ns in &namespaces {
        assert_eq!(ns.nguid, Some([ns.nsid as u8; 16]));
        assert_eq!(ns.uuid, Some([ns.nsid as u8; 16]));
        assert_eq!(ns.ana_group, ns.nsid);
        Host::new(&controller, &queues, TRANSFER_BYTES).exercise(ns);
    }
    controller.poll_admin().unwrap();
    drop(namespaces);
    drop(controller);
    drop(queues);
    drop(env);
}
