//! Volumes that are not replicated pass through untouched, beside volumes that are (G11).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;
mod spdk_support;
#[path = "lab_support/standing.rs"]
mod standing;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab_support::one_lab;
use serde_json::Value;
use setline::lab::faults::Random;
use setline::spdk::NvmeStatus;
use setline::spdk::nvme::{Controller, Flags, Namespace};
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;
use spdk_support::exercise::{Host, pattern};
use standing::{Lab, ROLE, address, host_process};

const BLOCK: usize = 4096;
/// Namespace ids in labs of one volume pair.
const REPLICATED: u32 = 1;
const UNREPLICATED: u32 = 2;
/// What is written to both kinds of volume at this block, of one block each.
const LBA: u64 = 100;
const SEED_REPLICATED: u8 = 101;
const SEED_UNREPLICATED: u8 = 202;

/// A block of bytes that are nowhere else.
fn block(seed: u8) -> Vec<u8> {
    let mut draws = Random(u64::from(seed));
    (0..BLOCK / 8).flat_map(|_| draws.draw().to_le_bytes()).collect()
}

fn write(host: &mut Host<'_>, ns: &Namespace, lba: u64, data: &[u8]) {
    assert_eq!(host.write(ns, lba, data, Flags::NONE), NvmeStatus::SUCCESS);
}

/// A host of the movers that offer the unreplicated volume: `paths` of `controllers`.
fn host(role: &str) {
    let (nqn, rest) = role.split_once('\n').unwrap();
    let (paths, ids) = rest.split_once('\n').unwrap();
    let env = spdk_support::env("plain", 64);
    let queues = LocalQueues::install(256).unwrap();
    let connect = |id: &str| Controller::connect(&address(id), Some(nqn), None).unwrap();
    let controllers: Vec<Controller> = ids.lines().map(connect).collect();
    let transfer = controllers[0].identity().max_transfer_bytes as usize;
    let first = Host::new(&controllers[0], &queues, transfer);
    let rest: Vec<Host<'_>> = controllers[1..].iter().map(|c| first.beside(c)).collect();
    let mut hosts: Vec<Host<'_>> = std::iter::once(first).chain(rest).collect();

    // The pair: every mover offers it, and one path is the best.
    let pair: Vec<Namespace> =
        controllers.iter().map(|c| c.namespace(REPLICATED).unwrap()).collect();
    let best = pair.iter().position(|ns| ns.path_state() == AnaState::Optimized).unwrap();
    write(&mut hosts[best], &pair[best], LBA, &block(SEED_REPLICATED));

    // The other: whoever offers it offers the best path, and whoever does not shows no such namespace.
    let found: Vec<(usize, Namespace)> = controllers
        .iter()
        .enumerate()
        .filter_map(|(at, c)| Some((at, c.namespace(UNREPLICATED)?)))
        .collect();
    let offered: Vec<String> = found.iter().map(|(at, _)| at.to_string()).collect();
    assert_eq!(offered.join(","), paths, "who offers it");
    let (_, one) = &found[0];
    assert_eq!(one.block_bytes as usize, BLOCK);
    for (at, ns) in &found {
        assert_eq!(ns.path_state(), AnaState::Optimized, "mover {at}");
        assert_eq!((ns.nguid, ns.uuid, ns.blocks), (one.nguid, one.uuid, one.blocks));
        assert_eq!(ns.ana_group, UNREPLICATED);
    }
    // What one path writes every path reads.
    let mut model = vec![0; 64 * BLOCK];
    for round in 0..64_usize {
        let (at, ns) = &found[round % found.len()];
        let (lba, blocks) = (round * 5 % 47, 1 + round * 3 % 17);
        let data = pattern(round as u8, blocks * BLOCK);
        write(&mut hosts[*at], ns, lba as u64, &data);
        model[lba * BLOCK..][..data.len()].copy_from_slice(&data);
        let (at, ns) = &found[(round + 1) % found.len()];
        assert!(hosts[*at].read(ns, 0, 16 * BLOCK) == model[..16 * BLOCK], "round {round}");
    }
    let (at, ns) = &found[0];
    write(&mut hosts[*at], ns, LBA, &block(SEED_UNREPLICATED));
    write(&mut hosts[*at], ns, ns.blocks - 1, &block(1));
    let beyond = hosts[*at].write(ns, ns.blocks, &block(1), Flags::NONE);
    assert_eq!(beyond, NvmeStatus::LBA_OUT_OF_RANGE);
    hosts[*at].zeroes(ns, LBA + 1, 2);
    assert_eq!(hosts[*at].flush(ns), NvmeStatus::SUCCESS);
    for (at, ns) in &found {
        assert!(hosts[*at].read(ns, LBA, BLOCK) == block(SEED_UNREPLICATED));
        assert!(hosts[*at].read(ns, LBA + 1, 2 * BLOCK).iter().all(|byte| *byte == 0));
    }
    drop((found, pair, hosts));
    drop(controllers);
    drop(queues);
    drop(env);
}

/// `setline` with these arguments.
fn setline(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_setline"));
    command.arg("--lab").arg(&lab.directory).args(arguments).output().unwrap()
}

/// What operators are told.
fn is_told_apart(lab: &Lab, mover: &str) {
    let volumes = lab.ask(&["volume", "list"]);
    let volume = |name: &str| {
        volumes.as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap().clone()
    };
    assert_eq!(volume("v1")["replicated"], true);
    let plain = volume("u1");
    assert_eq!((&plain["replicated"], &plain["mover"]), (&Value::from(false), &Value::from(mover)));
    assert_eq!((&plain["size_mib"], &plain["fencing"]), (&Value::from(64), &Value::Null));
    let map = lab.ask(&["volume", "map"]).to_string();
    assert!(map.contains("v1") && !map.contains("u1"), "{map}");
    for arguments in [
        &["volume", "map", "lab/u1", "--mover", "p2"][..],
        &["volume", "map", "u1", "--anywhere"],
        &["ledger", "lab/u1"],
    ] {
        let refused = setline(lab, arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("volume lab/u1 is not replicated"), "{arguments:?}: {said}");
    }
    let shown = setline(lab, &["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains("not replicated: lab/u1"), "{shown}");
    assert_eq!(lab.ask(&["group", "show"])[0]["unreplicated"], serde_json::json!(["u1"]));
    let metrics = lab.ask(&["metrics"]);
    let of = |volume: &str| {
        let labels = serde_json::json!([["group", "lab"], ["volume", volume]]);
        let all = metrics.as_array().unwrap().iter().filter(move |m| m["labels"] == labels);
        all.map(|m| (m["name"].as_str().unwrap(), m["value"].as_f64().unwrap())).collect::<Vec<_>>()
    };
    assert!(of("v1").contains(&("volume_replicated", 1.0)));
    assert!(of("u1").iter().all(|metric| *metric == ("volume_replicated", 0.0)), "{:?}", of("u1"));
    let sets = lab.ask(&["set", "list"]);
    let full = sets.as_array().unwrap().iter().find(|set| set["updates"].as_u64() > Some(0));
    let manifest = lab.ask(&["set", "show", &full.unwrap()["id"].to_string()])["manifest"].clone();
    let names: Vec<&str> =
        manifest.as_array().unwrap().iter().map(|v| v["volume"].as_str().unwrap()).collect();
    assert_eq!(names, ["v1"], "a set holds nothing of it");
}

/// Whether `file` has `data` anywhere.
fn holds(file: &Path, data: &[u8]) -> bool {
    let mut bytes = Vec::new();
    File::open(file).unwrap().read_to_end(&mut bytes).unwrap();
    // Journals put headers between blocks: a part that is unmistakable is looked for.
    bytes.windows(512).any(|window| window == &data[1024..1536])
}

/// The secondary's files: images and journals.
fn of_the_secondary(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.directory.join("img")).unwrap();
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("secondary-") || name.ends_with(".journal")
    });
    files.collect()
}

fn passes_through(test: &str, shape: &str, mover: &str, paths: &str) {
    if let Ok(role) = std::env::var(ROLE) {
        return host(&role);
    }
    let _alone = one_lab();
    let lab = Lab::up(
        test,
        &format!("--primary 2 --secondary 1 --volumes 1 --unreplicated 1 --journal-mib 64 {shape}"),
    );
    host_process(test, &format!("{}\n{paths}\n{}", lab.nqn, lab.ids.join("\n")));
    is_told_apart(&lab, mover);
    lab.ends_with_equal_sites();
    let (replicated, plain) = (block(SEED_REPLICATED), block(SEED_UNREPLICATED));
    let files = of_the_secondary(&lab);
    assert!(files.iter().any(|file| holds(file, &replicated)), "what is replicated is there");
    for file in files {
        assert!(!holds(&file, &plain), "{} holds an unreplicated block", file.display());
    }
    let base = std::fs::read(lab.directory.join("img/unreplicated-u1.img")).unwrap();
    assert!(base[LBA as usize * BLOCK..][..BLOCK] == plain, "byte for byte at its place");
    let array = lab.directory.join("array");
    if array.is_dir() {
        // What the storage server keeps of reservations, by namespace: the pair's only.
        let kept = |name: &str| array.join(format!("array0n{name}.reservations")).exists();
        assert!(kept("1"), "the pair's base is reserved");
        assert!(!kept("2"), "no mover registers at an unreplicated base");
    }
}

#[test]
fn a_base_that_all_reach_is_the_best_path_at_every_mover() {
    passes_through(
        "a_base_that_all_reach_is_the_best_path_at_every_mover",
        "--base array --transport tcp",
        "",
        "0,1",
    );
}

#[test]
fn a_base_of_one_mover_is_offered_there_alone() {
    passes_through("a_base_of_one_mover_is_offered_there_alone", "--base file", "p1", "0");
}
