//! Links over real DPDK ports: two ring ports in one process, memif between two processes,
//! AF_PACKET and AF_XDP over a veth pair between two network namespaces. Records of all lengths
//! go both ways and are compared byte by byte.
//!
//! EAL starts once per process, so every end runs in a child: this very program, with its part in
//! the environment.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and talk")]

#[path = "dpdk_support/mod.rs"]
mod support;

use setline::dpdk::{Kind, MemifRole, NextHop, Port, QueueCounters};
use setline::spdk::env::{Env, EnvConfig};
use setline::wire::frame::Mac;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{End, network, spec};

const PART: &str = "SETLINE_TEST_PART";
const RECORDS: usize = 3000;
/// A child says that its port is open, and that records arrive.
const OPEN: &str = "open";
const MET: &str = "met";

/// Runs this program's test `child` in a part; in a network namespace when one is named.
fn spawn(part: &str, namespace: Option<&str>) -> Child {
    let me = std::env::current_exe().unwrap();
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(me);
            command
        }
        None => Command::new(me),
    };
    command.args(["child", "--exact", "--nocapture"]).env(PART, part);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for children; fails with their output when one fails.
fn join(children: Vec<Child>) {
    let outputs: Vec<_> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    for output in &outputs {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{}\n{}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

fn env(core: usize) -> Env {
    let config = EnvConfig {
        name: "ports".into(),
        core,
        hugepage_mib: 128,
        no_pci: true,
        ..EnvConfig::default()
    };
    Env::init(&config).expect("hugepages are reserved (scripts/setup)")
}

/// What a child does: nothing unless it was given a part.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let words: Vec<&str> = part.split(' ').collect();
    match words[..] {
        ["rings"] => both_ends_of_a_ring(),
        ["memif", role, socket, mtu, records, incarnation] => one_end_of_a_memif(
            role,
            socket,
            mtu.parse().unwrap(),
            records.parse().unwrap(),
            incarnation.parse().unwrap(),
        ),
        ["interface", kind, name, side] => one_end_of_a_veth(kind, name, side.parse().unwrap()),
        _ => panic!("unknown part {part:?}"),
    }
}

fn both_ends_of_a_ring() {
    let _env = env(0);
    for (round, mtu) in [9000, 1500].into_iter().enumerate() {
        let kind = Kind::Ring(format!("r{round}"));
        let mut ports: Vec<Port> = [1, 2]
            .map(|side| Port::open(&spec(kind.clone(), mtu), &network(side, None)).unwrap())
            .into_iter()
            .collect();
        assert!(Port::open(&spec(kind, mtu), &network(1, None)).is_err(), "two ends there are");
        let mut ends: Vec<End> = ports
            .iter_mut()
            .zip([1, 2])
            .map(|(port, side)| End::new(port.queue(0, 0).unwrap(), side, RECORDS, 1))
            .collect();
        assert!(ports[0].queue(0, 0).is_none(), "a queue has one owner");
        let end = Instant::now() + Duration::from_secs(60);
        while !ends.iter().all(End::is_done) {
            assert!(Instant::now() < end, "{ends:?}");
            ends.iter_mut().for_each(End::turn);
        }
        for end in &ends {
            assert_eq!(end.unreleased(), 0, "every record has been released");
            let c = end.queue_counters();
            assert_eq!((c.malformed, c.truncated, c.corrupt, c.scattered), (0, 0, 0, 0));
        }
        let arp = |of: fn(&QueueCounters) -> u64| -> u64 {
            ends.iter().map(|end| of(&end.queue_counters())).sum()
        };
        assert!(arp(|c| c.arp_asked) > 0 && arp(|c| c.arp_answered) > 0);
    }
}

fn run(mut port: Port, side: u8, records: usize, incarnation: u64) {
    let queue = port.queue(0, 0).unwrap();
    let mut end = End::new(queue, side, records, incarnation);
    println!("{OPEN}");
    let mut met = false;
    let deadline = Instant::now() + Duration::from_secs(100);
    while !end.is_done() {
        assert!(Instant::now() < deadline, "{end:?}");
        port.maintain(end.now());
        end.turn();
        if !met && end.has_received() {
            met = true;
            println!("{MET}");
        }
        std::thread::yield_now();
    }
    // The peer may still wait for an acknowledgement.
    let linger = Instant::now() + Duration::from_millis(500);
    while Instant::now() < linger {
        end.turn();
        std::thread::yield_now();
    }
    assert_eq!(end.unreleased(), 0, "every record has been released");
    let c = end.queue_counters();
    assert_eq!((c.malformed, c.truncated, c.corrupt, c.scattered), (0, 0, 0, 0), "{end:?}");
    println!("{end:?}");
}

fn one_end_of_a_memif(role: &str, socket: &str, mtu: u16, records: usize, incarnation: u64) {
    let (role, side) = match role {
        "server" => (MemifRole::Server, 1),
        _ => (MemifRole::Client, 2),
    };
    let _env = env(usize::from(side) - 1);
    let kind = Kind::Memif { socket: socket.into(), role, id: 0 };
    let port = Port::open(&spec(kind, mtu), &network(side, None)).unwrap();
    run(port, side, records, incarnation);
}

fn one_end_of_a_veth(kind: &str, interface: &str, side: u8) {
    let _env = env(usize::from(side) - 1);
    let kind = match kind {
        "af_packet" => Kind::AfPacket(interface.into()),
        _ => Kind::AfXdp { interface: interface.into(), steer: None },
    };
    let port = Port::open(&spec(kind, 1500), &network(side, None)).unwrap();
    run(port, side, RECORDS / 3, 1);
}

#[test]
fn records_pass_between_ring_ports_in_one_process() {
    join(vec![spawn("rings", None)]);
}

#[test]
fn records_pass_between_processes_over_memif() {
    let dir = tempfile::tempdir().unwrap();
    for mtu in [1500, 9000] {
        let socket = dir.path().join(format!("memif{mtu}"));
        let part = |role: &str| format!("memif {role} {} {mtu} {RECORDS} 1", socket.display());
        // The client comes first, and waits.
        let client = spawn(&part("client"), None);
        std::thread::sleep(Duration::from_millis(500));
        join(vec![spawn(&part("server"), None), client]);
    }
}

fn spawn_memif(socket: &Path, role: &str, records: usize, incarnation: u64) -> Child {
    spawn(&format!("memif {role} {} 9000 {records} {incarnation}", socket.display()), None)
}

/// Kills a child some time after it has said a word.
fn kill(mut child: Child, word: &str, later: Duration) {
    // Kept open: it may say more.
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let said = out.by_ref().lines().any(|line| line.unwrap().ends_with(word));
    assert!(said, "{word:?} was not said: {:?}", child.wait_with_output());
    std::thread::sleep(later);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "it ended before it was killed");
}

/// When victims die: as they meet the survivor, and when it is in the middle of copying and the
/// driver's thread takes the memory away.
const DEATHS: [(&str, u64); 6] = [(MET, 100), (OPEN, 0), (MET, 37), (OPEN, 1), (OPEN, 4), (MET, 0)];

fn survives(survivor: &str, victim: &str) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("memif");
    let stays = spawn_memif(&socket, survivor, RECORDS, 1);
    for ((word, later), life) in DEATHS.into_iter().zip(1..) {
        kill(spawn_memif(&socket, victim, usize::MAX, life), word, Duration::from_millis(later));
    }
    join(vec![spawn_memif(&socket, victim, RECORDS, 99), stays]);
}

#[test]
fn a_memif_client_survives_the_death_of_its_server_and_meets_the_next() {
    survives("client", "server");
}

#[test]
fn a_memif_server_survives_the_death_of_its_client_and_meets_the_next() {
    survives("server", "client");
}

#[test]
fn the_ends_of_a_memif_meet_again_whichever_dies() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("memif");
    let endless = |role, life| spawn_memif(&socket, role, usize::MAX, life);
    let (mut server, mut client) = (endless("server", 1), endless("client", 1));
    for life in 2..=3 {
        kill(server, MET, Duration::ZERO);
        server = endless("server", life);
        kill(client, MET, Duration::ZERO);
        client = endless("client", life);
    }
    // The server may not have met that client.
    kill(client, MET, Duration::ZERO);
    kill(server, OPEN, Duration::ZERO);
    join(vec![
        spawn_memif(&socket, "client", RECORDS, 99),
        spawn_memif(&socket, "server", RECORDS, 99),
    ]);
}

#[test]
fn a_memif_server_survives_clients_that_are_gone_before_they_are_greeted() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memif");
    let address = SocketAddrUnix::new(&path).unwrap();
    let mut server = spawn_memif(&path, "server", RECORDS, 1);
    let mut connected = 0;
    while connected < 500 {
        assert_eq!(server.try_wait().unwrap(), None, "after {connected} clients");
        let client = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        match connect(&client, &address) {
            Ok(()) => connected += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    join(vec![spawn_memif(&path, "client", RECORDS, 1), server]);
}

#[test]
fn a_memif_server_waits_until_its_predecessor_has_left_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memif");
    // Stands for a process that was killed and has not ended yet.
    let predecessor = UnixListener::bind(&path).unwrap();
    predecessor.set_nonblocking(true).unwrap();
    let mut server = spawn_memif(&path, "server", RECORDS, 1);
    let mut looked = 0;
    while looked < 2 {
        assert_eq!(server.try_wait().unwrap(), None, "it gave up after {looked} looks");
        match predecessor.accept() {
            Ok(_) => looked += 1,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    drop(predecessor);
    join(vec![spawn_memif(&path, "client", RECORDS, 1), server]);
}

/// Two network namespaces joined by a veth pair; gone when dropped.
struct Namespaces {
    names: [String; 2],
}

impl Namespaces {
    fn new(tag: &str) -> Self {
        let names = ["a", "b"].map(|end| format!("sl{tag}{end}{}", std::process::id()));
        let this = Self { names };
        let [a, b] = &this.names;
        for name in [a, b] {
            ip(&["netns", "add", name]);
        }
        ip(&["-n", a, "link", "add", "veth0", "type", "veth", "peer", "veth0", "netns", b]);
        for name in [a, b] {
            ip(&["-n", name, "link", "set", "veth0", "up"]);
        }
        this
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).status().unwrap();
    assert!(done.success(), "ip {args:?}: network namespaces need root");
}

fn over_veth(kind: &str) {
    let namespaces = Namespaces::new(&kind[3..5]);
    let children = namespaces
        .names
        .iter()
        .zip(1..)
        .map(|(name, side)| spawn(&format!("interface {kind} veth0 {side}"), Some(name)))
        .collect();
    join(children);
}

#[test]
fn records_pass_between_namespaces_over_af_packet() {
    over_veth("af_packet");
}

#[test]
fn records_pass_between_namespaces_over_af_xdp() {
    over_veth("af_xdp");
}

#[test]
fn an_address_given_in_the_configuration_needs_no_arp() {
    let hop = NextHop { ip: support::ip(2), mac: Some(Mac([2, 0, 10, 9, 0, 2])) };
    let network = network(1, Some(hop));
    assert_eq!(network.peers, [hop]);
}
