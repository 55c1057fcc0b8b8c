//! Whole labs: movers as processes, SPDK and DPDK, an NVMe client of its own, kills, checks.
//!
//! Needs root, hugepages and the programs of this package; a lab that does not pass keeps its
//! directory and its report names it.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;

use std::process::Command;

use serde_json::Value;

use lab_support::one_lab;

/// Runs a lab and returns its report, which must say that all is well.
fn passes(arguments: &str) -> Value {
    let _alone = one_lab();
    let output = Command::new(env!("CARGO_BIN_EXE_setline"))
        .args(["--output", "json", "lab", "run"])
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("no report ({error}): {stdout}\n{stderr}"));
    assert!(output.status.success(), "{}\n{stderr}", report["problems"]);
    assert_eq!(report["passed"], true);
    assert_eq!(report["lost_acked_writes"], 0);
    assert_eq!(report["cut_violations"], 0);
    assert_eq!(report["secondary_equals_primary"], true);
    assert_eq!(report["host_errors"], 0);
    assert!(report["acked_writes"].as_u64() > Some(0));
    assert!(report["directory"].is_null(), "a lab that passed leaves nothing");
    report
}

#[test]
fn sets_are_formed_carried_and_applied_over_memif() {
    let report = passes("--seconds 5 --check-every 1s");
    assert!(report["sets_formed"].as_u64() >= Some(20), "{}", report["sets_formed"]);
    assert!(report["sets_applied"].as_u64() >= Some(20), "{}", report["sets_applied"]);
    assert!(report["checks"].as_array().unwrap().len() >= 3);
    assert!(report["bytes_replicated"].as_u64() > Some(0));
    assert!(report["boundary_hold_us"]["p99"].as_f64() > Some(0.0));
}

#[test]
fn a_set_every_10_ms_over_tcp_with_512_byte_blocks() {
    passes("--seconds 4 --period 10ms --transport tcp --block-bytes 512 --primary 2 --secondary 1");
}

#[test]
fn volumes_at_a_storage_server_that_fences_its_namespaces() {
    let report = passes("--seconds 5 --base array --check-every 1s --kill s1@2s");
    assert!(report["sets_applied"].as_u64() >= Some(10), "{}", report["sets_applied"]);
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
}

#[test]
fn both_sites_agree_in_an_etcd_of_their_own() {
    let shape = "--store etcd --base array --primary 2 --secondary 1";
    let report = passes(&format!("--seconds 4 {shape} --stop-store primary@2s:1s"));
    assert_eq!(report["stalls"]["stop-store"]["faults"], 1, "{}", report["stalls"]);
    assert_eq!(report["pauses"][0]["movers"][0], "etcd-here");
}

/// Others take over what they had, hosts go by other paths, and they join again (F5, P2, G13).
#[test]
fn primary_movers_killed_one_after_the_other_and_the_coordinator_first() {
    let shape = "--store etcd --base array --silence 1s --rate 2000";
    let report =
        passes(&format!("--seconds 6 {shape} --kill p1@1s --kill-random 3 --kill-of primary"));
    assert_eq!(report["stalls"]["kill-primary"]["faults"], 4, "{}", report["stalls"]);
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
    // A mover that is killed again before the client has its path again loses none.
    let kills = report["kills"].as_array().unwrap().iter();
    let killed: std::collections::BTreeSet<String> =
        kills.map(|kill| kill["movers"][0].to_string()).collect();
    let paths = &report["paths"];
    assert!(paths["lost"].as_u64() >= Some(killed.len() as u64), "{paths}, killed {killed:?}");
}

/// The others exclude it; when it wakes up it ends, is started again, and joins. Its path is given up when a
/// Keep Alive is not answered, and it is connected again; no host sees an error.
#[test]
fn a_primary_mover_that_stands_still_for_a_while() {
    let shape = "--store etcd --base array --transport tcp --rate 2000 --silence 1s";
    let report = passes(&format!("--seconds 4 {shape} --pause p2@1s:5s"));
    assert!(report["exclusions"].as_u64() >= Some(1), "{}", report["exclusions"]);
    let paths = &report["paths"];
    assert!(paths["lost"].as_u64() > Some(0), "{paths}");
    assert!(paths["connected_again"].as_u64() > Some(0), "{paths}");
    assert_eq!(report["pauses"][0]["kind"], "pause");
    assert!(report["pauses"][0]["longest_stall_ms"].as_f64() > Some(0.0));
}

/// Volumes move to other movers, and a mover is drained, leaves, and comes back; in between one is killed.
/// No host sees an error, and in the end the members share the volumes.
#[test]
fn volumes_move_and_a_mover_is_drained_while_hosts_write() {
    let shape = "--store etcd --base array --silence 1s --rate 2000 --seed 5";
    let faults = "--move-random 3 --drain p1@2s --kill p2@4s";
    let report = passes(&format!("--seconds 7 {shape} {faults}"));
    assert_eq!(report["stalls"]["move"]["faults"], 3, "{}", report["stalls"]);
    assert_eq!(report["stalls"]["drain"]["faults"], 1, "{}", report["stalls"]);
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
    assert_eq!(report["exclusions"], 0, "a drained mover ends in order");
}

#[test]
fn one_mover_is_killed_another_one_joins_and_a_third_is_drained() {
    // A store to agree in and bases that all reach are what such a lab has by itself.
    let faults = "--kill p2@1s --join p4@3s --drain p1@5s";
    let report = passes(&format!("--seconds 7 --silence 1s --rate 1000 {faults}"));
    for kind in ["kill-primary", "join", "drain"] {
        assert_eq!(report["stalls"][kind]["faults"], 1, "{}", report["stalls"]);
    }
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
}

/// Other movers have the descriptions of updates alone: what the killed ones had is read back from the storage
/// server (G12).
#[test]
fn movers_are_killed_where_only_metadata_are_mirrored() {
    let shape = "--mirror metadata --silence 1s --rate 2000";
    let report =
        passes(&format!("--seconds 6 {shape} --kill p2@1s --kill-random 2 --kill-of primary"));
    assert_eq!(report["stalls"]["kill-primary"]["faults"], 3, "{}", report["stalls"]);
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("mirrors metadata"), "{warnings}");
}

#[test]
fn a_spare_takes_over_what_a_killed_mover_had() {
    let report = passes("--seconds 5 --silence 1s --rate 500 --spare p3 --kill p1@1s");
    assert_eq!(report["stalls"]["kill-primary"]["faults"], 1, "{}", report["stalls"]);
    assert_eq!(report["equality"]["by"], "bytes", "{}", report["equality"]);
}

#[test]
fn a_mover_that_is_cut_off_both_ways_and_one_way() {
    let faults = "--partition p1@1s:3s --mute p2@2s:3s --deafen p3@3s:3s";
    let report = passes(&format!("--seconds 4 --silence 1s --rate 300 {faults}"));
    for kind in ["partition", "mute", "deafen"] {
        assert_eq!(report["stalls"][kind]["faults"], 1, "{}", report["stalls"]);
    }
    // Each was excluded, ended, and joined again once it reached the others.
    assert!(report["exclusions"].as_u64() >= Some(3), "{report}");
}

#[test]
fn random_events_in_a_row() {
    let report = passes("--seconds 1 --events 8 --silence 2s --rate 500 --seed 12");
    let stalls = report["stalls"].as_object().unwrap();
    let events: u64 = stalls.values().filter_map(|kind| kind["faults"].as_u64()).sum();
    assert_eq!(events, 8, "{stalls:?}");
}

#[test]
fn movers_with_two_pollers_each_replicate_over_the_links_of_every_pair() {
    let report = passes("--seconds 5 --pollers 2 --check-every 1s");
    assert!(report["sets_applied"].as_u64() >= Some(10), "{}", report["sets_applied"]);
}

#[test]
fn every_mover_takes_writes_for_every_volume() {
    let report = passes("--seconds 6 --paths any --check-every 1s");
    assert!(report["sets_applied"].as_u64() >= Some(10), "{}", report["sets_applied"]);
    let spread = passes("--seconds 4 --paths detour --pollers 2 --primary 2 --secondary 1");
    assert!(spread["sets_applied"].as_u64() >= Some(5), "{}", spread["sets_applied"]);
}

#[test]
fn secondary_movers_killed_while_hosts_take_any_path() {
    let report = passes("--seconds 8 --paths any --kill s1@2s --kill all-secondary@4s");
    assert_eq!(report["kills"].as_array().unwrap().len(), 2);
}

#[test]
fn secondary_movers_killed_singly_and_together_end_at_set_boundaries() {
    let report = passes("--seconds 10 --kill s1@2s --kill s2@4s --kill all-secondary@6s");
    assert_eq!(report["kills"].as_array().unwrap().len(), 3);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().filter(|check| check["why"] == "after-kill").count() >= 3);
}

#[test]
fn namespaces_and_veth_instead_of_shared_memory() {
    passes("--seconds 4 --network veth --primary 2 --secondary 1");
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout);
    assert!(!left.lines().any(|line| line.starts_with("sl") && line.contains('-')), "{left}");
}

/// Hosts' NVMe/TCP and what movers say to each other go by one interface of each mover, which the kernel
/// and the mover's port share (G9).
#[test]
fn hosts_and_movers_share_one_interface() {
    for driver in ["af-xdp", "af-packet"] {
        let shape = format!("--traffic shared --veth-driver {driver} --primary 2 --secondary 1");
        passes(&format!("--seconds 4 {shape}"));
    }
    // A program that a killed mover leaves at the interface does not keep it from starting again.
    let report = passes("--seconds 4 --traffic shared --kill p2@1s --silence 1s --rate 500");
    assert_eq!(report["stalls"]["kill-primary"]["faults"], 1, "{}", report["stalls"]);
}

/// Volumes beside those that are replicated, written and read back through every path (G11).
#[test]
fn unreplicated_volumes_are_read_back_while_others_are_replicated() {
    let local = passes("--seconds 4 --unreplicated 3");
    let remote = passes("--seconds 5 --unreplicated 2 --kill p2@1s --silence 1s --rate 1000");
    for (report, volumes) in [(local, 3), (remote, 2)] {
        let found = &report["unreplicated"];
        assert_eq!((&found["volumes"], &found["verified"]), (&volumes.into(), &true.into()));
        assert!(found["blocks_compared"].as_u64() > Some(0), "{found}");
    }
}

#[test]
fn one_primary_mover_works_and_the_report_warns() {
    let report = passes("--seconds 3 --primary 1 --secondary 1 --volumes 2");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("one mover holds one copy"), "{warnings}");
}

#[test]
fn volumes_in_memory_are_held_against_the_clients_log() {
    let report = passes("--seconds 3 --base malloc");
    assert_eq!(report["equality"]["by"], "log");
}

#[test]
fn an_interrupted_lab_leaves_nothing_behind() {
    let _alone = one_lab();
    let directory =
        std::env::temp_dir().join(format!("setline-interrupted-{}", std::process::id()));
    let mut lab = Command::new(env!("CARGO_BIN_EXE_setline"))
        .args(["lab", "run", "--seconds", "60", "--dir"])
        .arg(&directory)
        .spawn()
        .unwrap();
    // Its movers are under way once its record names their processes.
    let record = directory.join("lab.json");
    let pids = loop {
        assert!(lab.try_wait().unwrap().is_none(), "the lab ended by itself");
        let text = std::fs::read_to_string(&record).unwrap_or_default();
        let pids: Vec<u64> = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|record| record["movers"].as_array().cloned())
            .unwrap_or_default()
            .iter()
            .filter_map(|mover| mover["process"]["pid"].as_u64())
            .collect();
        if pids.len() == 5 {
            break pids;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let id = lab.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert!(!lab.wait().unwrap().success());
    assert!(!directory.exists());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} still runs");
    }
}

/// Takes a standing lab down when its test fails.
struct Down(std::path::PathBuf);

impl Drop for Down {
    fn drop(&mut self) {
        if self.0.exists() {
            let mut down = Command::new(env!("CARGO_BIN_EXE_setline"));
            let _ = down.args(["lab", "down", "--dir"]).arg(&self.0).status();
        }
    }
}

#[test]
fn a_lab_that_stands_answers_and_is_taken_down() {
    let _alone = one_lab();
    let directory = std::env::temp_dir().join(format!("setline-standing-{}", std::process::id()));
    let dir = directory.to_str().unwrap();
    let setline = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_setline")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let _down = Down(directory.clone());
    let shape = ["--primary", "2", "--secondary", "1", "--store", "etcd", "--base", "array"];
    let up = setline(&[&["lab", "up", "--dir", dir], &shape[..]].concat());
    assert!(up.contains("trtype:VFIOUSER"), "{up}");
    let status: Value =
        serde_json::from_str(&setline(&["--lab", dir, "--output", "json", "status"])).unwrap();
    assert_eq!(status.as_array().unwrap().len(), 3);
    let closed = setline(&["--lab", dir, "set", "close"]);
    assert!(closed.contains("closed with 0 updates"), "{closed}");
    let map = setline(&["--lab", dir, "volume", "map"]);
    assert!(map.contains("lab/v1"), "{map}");
    // What would follow is shown, and nothing is done.
    let json = |arguments: &[&str]| -> Value {
        let all = [&["--lab", dir, "--output", "json"], arguments].concat();
        serde_json::from_str(&setline(&all)).unwrap()
    };
    for leaves in
        [&["mover", "drain", "p1", "--dry-run"][..], &["mover", "remove", "p1", "--dry-run"]]
    {
        let would = json(leaves);
        let moves = would["wanted"].as_array().unwrap();
        assert_eq!(moves.len(), 2, "{would}");
        assert!(moves.iter().all(|m| m["from"] == "p1" && m["to"] == "p2"), "{would}");
    }
    let placed = json(&["volume", "map", "lab/v2", "--mover", "p1", "--dry-run"]);
    let moves = placed["wanted"].as_array().unwrap();
    assert!(moves.iter().any(|m| m["volume"] == "lab/v2" && m["to"] == "p1"), "{placed}");
    let sites = json(&["epoch", "show"]);
    assert_eq!(sites[0]["record"]["members"], serde_json::json!(["p1", "p2"]), "{sites}");
    assert_eq!(sites[0]["record"]["since"], serde_json::json!([1, 1]), "{sites}");
    assert_eq!(sites[0]["movers"][1]["epoch"], 1, "{sites}");
    let now = json(&["assignment", "show"]);
    assert!(now["members"].as_array().unwrap().iter().all(|m| m["draining"] == false), "{now}");
    assert!(now["pinned"].as_array().unwrap().is_empty(), "{now}");
    setline(&["lab", "down", "--dir", dir]);
    assert!(!directory.exists());
}

#[test]
fn movers_that_share_a_timer_say_how_good_their_stamps_are() {
    let _alone = one_lab();
    let directory = std::env::temp_dir().join(format!("setline-timer-{}", std::process::id()));
    let dir = directory.to_str().unwrap();
    let setline = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_setline")).args(arguments).output().unwrap()
    };
    let _down = Down(directory.clone());
    let up = ["lab", "up", "--primary", "2", "--secondary", "1", "--timestamps", "common"];
    let up = setline(&[&up[..], &["--dir", dir]].concat());
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    // They may be ready some milliseconds before they have asked one another.
    let known = (0..300).any(|_| {
        let status = setline(&["--lab", dir, "--output", "json", "status"]).stdout;
        let movers: Value = serde_json::from_slice(&status).unwrap_or_default();
        let stamps = |at: usize| &movers[at]["groups"][0]["timestamps"];
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(stamps(2).is_null(), "the secondary stamps nothing");
        (0..2).all(|at| {
            stamps(at)["source"] == "common"
                && stamps(at)["synchronised"] == true
                // Less than a second, on whatever machine.
                && stamps(at)["error_ns"].as_u64().is_some_and(|ns| ns < 1_000_000_000)
        })
    });
    assert!(known, "the common timer is not known");
    let down = setline(&["lab", "down", "--dir", dir]);
    assert!(down.status.success() && !directory.exists());
}
