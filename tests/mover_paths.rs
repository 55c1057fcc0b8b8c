//! Several paths to each volume: every mover of the primary site offers all of them, says which of its
//! paths are the best, and carries out what comes by the others through the responsible mover.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;
mod spdk_support;
#[path = "lab_support/standing.rs"]
mod standing;

use std::collections::BTreeSet;
use std::process::Command;

use lab_support::one_lab;
use setline::spdk::NvmeStatus;
use setline::spdk::nvme::{Controller, Flags, Namespace};
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;
use spdk_support::exercise::{Host, pattern};
use standing::{Lab, ROLE, address, host_process};

/// Blocks at the start of each volume that the test writes.
const BLOCKS: u64 = 64;

/// Connects to every mover that `role` names: subsystem, then transport ids, a line each.
fn connect(role: &str) -> Vec<Controller> {
    let (nqn, ids) = role.split_once('\n').unwrap();
    ids.lines().map(|id| Controller::connect(&address(id), Some(nqn), None).unwrap()).collect()
}

fn role_of(lab: &Lab) -> String {
    format!("{}\n{}", lab.nqn, lab.ids.join("\n"))
}

/// A volume's namespaces, one per controller; all say the same of it, and one is the best path.
fn paths_of(controllers: &[Controller], nsid: u32) -> Vec<Namespace> {
    let paths: Vec<Namespace> = controllers.iter().map(|c| c.namespace(nsid).unwrap()).collect();
    let first = &paths[0];
    assert!(first.nguid.is_some() && first.uuid.is_some());
    for path in &paths {
        assert_eq!((path.nguid, path.uuid), (first.nguid, first.uuid));
        assert_eq!((path.blocks, path.block_bytes), (first.blocks, first.block_bytes));
        assert_eq!(path.ana_group, nsid, "a volume is an ANA group of its own");
    }
    let states: Vec<AnaState> = paths.iter().map(Namespace::path_state).collect();
    let best = states.iter().filter(|state| **state == AnaState::Optimized).count();
    let others = states.iter().filter(|state| **state == AnaState::NonOptimized).count();
    assert_eq!((best, others), (1, paths.len() - 1), "{states:?}");
    paths
}

/// Each write is acknowledged before the next one, by another path, which overlaps it: every path
/// reads what was written last.
fn alternate_writes(hosts: &mut [Host<'_>], paths: &[Namespace]) {
    let block = paths[0].block_bytes as usize;
    let mut model = vec![0; BLOCKS as usize * block];
    for path in 0..paths.len() {
        let status = hosts[path].write(&paths[path], 0, &model, Flags::NONE);
        assert_eq!(status, NvmeStatus::SUCCESS);
    }
    for round in 0..120_usize {
        let path = round % paths.len();
        let (lba, blocks) = (round * 5 % 23, 1 + round * 7 % 31);
        let data = pattern(round as u8, blocks * block);
        let flags = if round % 11 == 0 { Flags::FUA } else { Flags::NONE };
        let status = hosts[path].write(&paths[path], lba as u64, &data, flags);
        assert_eq!(status, NvmeStatus::SUCCESS, "round {round}");
        model[lba * block..][..data.len()].copy_from_slice(&data);
        let other = (path + 1) % paths.len();
        let read = hosts[other].read(&paths[other], 0, model.len());
        assert!(read == model, "round {round} by path {path}, read by path {other}");
    }
    for (host, path) in hosts.iter_mut().zip(paths) {
        assert_eq!(host.flush(path), NvmeStatus::SUCCESS);
        assert!(host.read(path, 0, model.len()) == model);
    }
}

/// Overlapping writes by all paths at once: whatever their order, it is one order for all.
fn writes_at_once(hosts: &mut [Host<'_>], paths: &[Namespace]) {
    let (block, blocks) = (paths[0].block_bytes as usize, 8);
    for round in 0..120_u64 {
        let lba = |path: u64| 100 + round % 7 + 2 * path;
        let data =
            |path: usize| vec![(round as usize * paths.len() + path) as u8 | 1; blocks * block];
        let tags: Vec<u64> = (0..paths.len())
            .map(|path| {
                let (host, lba) = (&mut hosts[path], lba(path as u64));
                host.begin_write(&paths[path], lba, &data(path), Flags::NONE)
            })
            .collect();
        for (path, tag) in tags.into_iter().enumerate() {
            assert_eq!(hosts[path].wait(tag), NvmeStatus::SUCCESS);
        }
        let reads: Vec<Vec<u8>> =
            (0..paths.len()).map(|path| hosts[path].read(&paths[path], 100, 24 * block)).collect();
        assert!(reads.iter().all(|read| *read == reads[0]), "all paths read the same");
        // What all of them wrote is of one writer, whole.
        let last = lba(paths.len() as u64 - 1) as usize - 100;
        let shared = &reads[0][last * block..(lba(0) as usize - 100 + blocks) * block];
        assert!(shared.iter().all(|byte| *byte == shared[0]), "a write is whole");
    }
}

fn host(role: &str) {
    let env = spdk_support::env("paths", 64);
    let queues = LocalQueues::install(256).unwrap();
    let controllers = connect(role);
    let identities: Vec<_> = controllers.iter().map(Controller::identity).collect();
    let cntlids: BTreeSet<u16> = identities.iter().map(|identity| identity.cntlid).collect();
    assert_eq!(cntlids.len(), controllers.len(), "controllers of one subsystem");
    for identity in &identities {
        assert_eq!(
            (&identity.serial, &identity.model),
            (&identities[0].serial, &identities[0].model)
        );
    }
    let transfer = identities[0].max_transfer_bytes as usize;
    let first = Host::new(&controllers[0], &queues, transfer);
    let rest: Vec<Host<'_>> = controllers[1..].iter().map(|c| first.beside(c)).collect();
    let mut hosts: Vec<Host<'_>> = std::iter::once(first).chain(rest).collect();
    let nsids: Vec<u32> = controllers[0].namespaces().iter().map(|ns| ns.nsid).collect();
    let mut responsible = BTreeSet::new();
    for nsid in nsids {
        let paths = paths_of(&controllers, nsid);
        responsible.extend(paths.iter().position(|p| p.path_state() == AnaState::Optimized));
        alternate_writes(&mut hosts, &paths);
        writes_at_once(&mut hosts, &paths);
    }
    assert_eq!(responsible.len(), controllers.len(), "each mover is the best for some volume");
    drop(hosts);
    drop(controllers);
    drop(queues);
    drop(env);
}

fn all_paths_lead_to_one_volume(test: &str, shape: &str) {
    if let Ok(role) = std::env::var(ROLE) {
        return host(&role);
    }
    let _alone = one_lab();
    let lab = Lab::up(test, shape);
    host_process(test, &role_of(&lab));
    lab.ends_with_equal_sites();
}

#[test]
fn all_paths_lead_to_one_volume_over_vfio_user() {
    all_paths_lead_to_one_volume(
        "all_paths_lead_to_one_volume_over_vfio_user",
        "--primary 3 --secondary 1 --volumes 3",
    );
}

#[test]
fn all_paths_lead_to_one_volume_over_tcp_with_two_pollers() {
    all_paths_lead_to_one_volume(
        "all_paths_lead_to_one_volume_over_tcp_with_two_pollers",
        "--primary 2 --secondary 1 --volumes 4 --pollers 2 --transport tcp --block-bytes 512",
    );
}

#[test]
fn mixed_sizes_by_the_detour_read_back_as_written() {
    let _alone = one_lab();
    let lab = Lab::up("detour", "--primary 2 --secondary 1 --volumes 2");
    for paths in ["detour", "spread"] {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_setline-check"));
        verify.args(["verify", "--seconds", "3", "--paths", paths]);
        for id in &lab.ids {
            verify.args(["--trid", id]);
        }
        let output = verify.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
    }
    lab.ends_with_equal_sites();
}
