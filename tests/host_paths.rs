//! Hosts and movers by interfaces of their own, or by one that the kernel and the mover share: a matter of
//! configuration (G9).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod lab_support;
#[allow(dead_code, reason = "hosts are programs here")]
#[path = "lab_support/standing.rs"]
mod standing;

use std::process::Command;

use lab_support::one_lab;
use serde_json::Value;
use standing::Lab;

/// What a program prints in a network namespace; it must succeed.
fn within(namespace: &str, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Bytes that the kernel's side has seen of an interface, in and out.
fn bytes(namespace: &str, interface: &str) -> u64 {
    let text = within(namespace, "ip", &["-s", "-j", "link", "show", interface]);
    let link: Value = serde_json::from_str(&text).unwrap();
    let count = |way: &str| link[0]["stats64"][way]["bytes"].as_u64().unwrap();
    count("rx") + count("tx")
}

/// A lab with hosts at work, and the names of its namespaces: the hub's and p1's.
fn with_hosts(name: &str, shape: &str, look: impl FnOnce(&Lab, &str, &dyn Fn())) {
    let _alone = one_lab();
    let arguments = "--primary 2 --secondary 1 --volumes 2 --network veth --transport tcp";
    let lab = Lab::up(name, &format!("{arguments} {shape}"));
    let record = std::fs::read(lab.directory.join("lab.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let names: Vec<&str> = record["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let at = |end: &str| *names.iter().find(|name| name.ends_with(end)).unwrap();
    let write = || {
        let mut verify = vec!["verify", "--seconds", "1", "--idle", "sleep"];
        verify.extend(lab.ids.iter().flat_map(|id| ["--trid", id]));
        within(at("-hub"), env!("CARGO_BIN_EXE_setline-check"), &verify);
    };
    look(&lab, at("-p1"), &write);
    lab.ends_with_equal_sites();
}

/// What status and `mover list` of p1 say of the paths of hosts.
fn said(lab: &Lab) -> Value {
    let of = |all: Value, field: &str| {
        let is_p1 = |one: &&Value| one[field] == "p1" && one["traffic"] != Value::Null;
        all.as_array().unwrap().iter().find(is_p1).unwrap()["traffic"].clone()
    };
    let said = of(lab.ask(&["status"]), "mover");
    assert_eq!(of(lab.ask(&["mover", "list"]), "name"), said);
    said
}

#[test]
fn hosts_come_by_an_interface_of_their_own() {
    with_hosts("separate", "", |lab, p1, write| {
        assert_eq!(said(lab), "separate");
        let before = (bytes(p1, "host0"), bytes(p1, "net0"));
        write();
        assert!(bytes(p1, "host0") - before.0 > 1 << 20, "hosts' data");
        assert!(bytes(p1, "net0") - before.1 > 1 << 20, "copies and sets");
        let addresses = within(p1, "ip", &["-br", "-4", "addr", "show", "net0"]);
        assert!(!addresses.contains("10.78."), "no host comes by net0: {addresses}");
    });
}

fn by_one_interface(name: &str, driver: &str, leaves_the_rest: bool) {
    with_hosts(name, &format!("--traffic shared --veth-driver {driver}"), |lab, p1, write| {
        assert_eq!(said(lab), serde_json::json!({ "shared": ["net0"] }));
        let links = within(p1, "ip", &["-br", "link"]);
        let links: Vec<&str> = links.lines().filter(|line| !line.starts_with("lo ")).collect();
        assert_eq!(links.len(), 1, "{links:?}");
        let before = bytes(p1, "net0");
        write();
        assert!(bytes(p1, "net0") - before > 2 << 20, "hosts' data, copies and sets");
        // 10.77.0.1 is what p1 is to other movers; its program in the kernel is named after it.
        let shown = within(p1, "ip", &["-d", "link", "show", "net0"]);
        assert_eq!(shown.contains("name sl_0a4d0001"), leaves_the_rest, "{shown}");
    });
}

#[test]
fn hosts_and_mover_share_an_interface_with_af_xdp() {
    by_one_interface("shared-xdp", "af-xdp", true);
}

#[test]
fn hosts_and_mover_share_an_interface_with_af_packet() {
    by_one_interface("shared-packet", "af-packet", false);
}
