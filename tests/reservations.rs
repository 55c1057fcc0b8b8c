//! Fencing at an independent target (SPDK's own, with reservations kept in files): movers as
//! processes of their own register, one is shut out, one is killed and comes back, the target is
//! killed and comes back (G13, invariant 4).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "spdk_support/devices.rs"]
mod devices;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use devices::{Devices, Killed};
use setline::control::model::FencingState;
use setline::lab::array::{self, Array, Subsystem};
use setline::proto::types::{MoverId, VolumeId};
use setline::runtime::fence::{Fence, FenceError, Victims, key_of, mover_of};
use setline::spdk::address::Address;
use setline::spdk::base::HostIdentity;
use setline::spdk::bdev::{Bdev, Channel};
use setline::spdk::env::DmaBuf;
use setline::spdk::reservation::{Answer, Kind, Request, ReservationKey, Reservations};
use setline::spdk::{NvmeStatus, Submit};

const NQN: &str = "nqn.2026-11.io.setline:array-test";
const BLOCK: usize = 4096;
const VOLUME: VolumeId = VolumeId(1);
/// What a mover of this test is told, by its environment.
const ROLE: &str = "SETLINE_TEST_MOVER";
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_key_names_its_mover_and_its_life() {
    let key = key_of(MoverId(7), 3);
    assert_eq!(mover_of(key), Some(MoverId(7)));
    assert_ne!(key, key_of(MoverId(7), 4));
    assert_ne!(key, key_of(MoverId(8), 3));
    assert_eq!(mover_of(ReservationKey(0x0123_4567_89ab_cdef)), None);
}

#[test]
fn who_is_shut_out_writes_nothing_and_comes_back_only_with_a_new_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let mut target = Target::start(&server);
    let (mut p1, mut p2) = (Mover::start(&server, 1, 5), Mover::start(&server, 2, 9));

    // Nobody has joined: everybody may write, and a mover that has not joined shuts nobody out.
    assert_eq!(p1.say("write 8 1"), "ok");
    assert!(p1.say("preempt 2").contains("has not been opened"));
    assert_eq!(p1.say("join"), "fenced");
    assert_eq!(p2.say("write 8 2"), "0/83", "not registered");
    assert_eq!(p2.say("join"), "fenced");
    assert_eq!((p1.say("write 8 3"), p2.say("write 9 4")), ("ok".into(), "ok".into()));
    let both = report(3, &[(1, 5), (2, 9)]);
    assert_eq!(p1.say("report"), both);
    assert_eq!(p2.say("join"), "fenced", "to join twice does no harm");
    assert_eq!(p1.say("report"), both);

    // p2 takes over.
    assert_eq!(p2.say("preempt 1"), key_of(MoverId(1), 5).to_string());
    assert_eq!(p2.say("preempt 1"), "nobody", "it is out already");
    assert_eq!(p1.say("write 8 5"), "0/83");
    assert_eq!(p1.say("zeroes 8"), "0/83");
    assert_eq!(p1.say("read 8"), "3", "nothing of it reached the medium; reads are allowed");
    assert!(p1.say("preempt 2").contains("was excluded"), "who is out shuts nobody out");
    assert_eq!(p2.say("write 8 6"), "ok");
    assert_eq!(p2.say("report"), report(3, &[(2, 9)]));

    // A killed mover's next life: the former key is worth nothing.
    p1.kill();
    let mut p1 = Mover::start(&server, 1, 6);
    assert_eq!(p1.say("write 8 7"), "0/83", "not before it has joined");
    assert_eq!(p1.say("join"), "fenced");
    assert!(p1.say(&format!("acquire {}", key_of(MoverId(1), 5).0)).contains("conflict"));
    assert_eq!(p1.say("write 8 8"), "ok");

    // All die, the target too: what it kept still stands.
    p1.kill();
    p2.kill();
    target.kill();
    let _target = Target::start(&server);
    let mut p3 = Mover::start(&server, 3, 1);
    assert_eq!(p3.say("report"), report(3, &[(1, 6), (2, 9)]));
    assert_eq!(p3.say("write 8 9"), "0/83");
    assert_eq!(p3.say("read 8"), "8");

    // The next life replaces its own key and shuts out the other's leftover.
    let mut p1 = Mover::start(&server, 1, 7);
    assert_eq!(p1.say("join"), "fenced");
    assert_eq!(p3.say("report"), report(3, &[(1, 7), (2, 9)]));
    assert_eq!(p1.say(&format!("preempt-key {}", key_of(MoverId(2), 8).0)), "nobody");
    let left = key_of(MoverId(2), 9);
    assert_eq!(p1.say(&format!("preempt-key {}", left.0)), left.to_string());
    assert_eq!(p1.say("write 8 10"), "ok");

    // The holder leaves its key to its successor; others, and the last one, take theirs along.
    assert_eq!(p3.say("join"), "fenced");
    assert_eq!(p1.say("leave"), "ok");
    assert_eq!(p3.say("report"), report(3, &[(1, 7), (3, 1)]), "not open for a moment");
    assert_eq!(p3.say("preempt 1"), key_of(MoverId(1), 7).to_string());
    assert_eq!(p1.say("write 8 11"), "0/83", "it left");
    assert_eq!(p1.say("join"), "fenced");
    assert_eq!(p1.say("leave"), "ok");
    assert_eq!(p3.say("report"), report(3, &[(3, 1)]));
    assert_eq!(p3.say("leave"), "ok");
    assert_eq!(p3.say("report"), "none; persistent;");
    assert_eq!(p1.say("write 8 12"), "ok", "open to everybody again");

    // Somebody else's reservation is not broken into.
    assert_eq!(p1.say("seize"), "ok");
    assert!(p3.say("join").contains("reserved by others"), "exclusive to another");
    assert_eq!(p3.say("report"), format!("1; persistent; {}", ReservationKey(77)));
    p1.end();
    p3.end();
}

/// What a report shows: the reservation's type, and the keys.
fn report(kind: u8, movers: &[(u16, u64)]) -> String {
    let keys: Vec<String> =
        movers.iter().map(|(m, life)| key_of(MoverId(*m), *life).to_string()).collect();
    format!("{kind}; persistent; {}", keys.join(" "))
}

fn server(dir: &Path) -> Array {
    let file = dir.join("volume.img");
    std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let array = Array {
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        subsystems: vec![Subsystem { nqn: NQN.into(), namespaces: vec![(file, BLOCK as u32)] }],
        file: dir.join("array.json"),
        socket: dir.join("array.sock"),
    };
    std::fs::write(&array.file, array.config().to_string()).unwrap();
    array
}

struct Target(Killed);

impl Target {
    fn start(server: &Array) -> Self {
        let mut command = Command::new(array::program().unwrap());
        command.args(server.arguments(0)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut target = Self(Killed(command.spawn().unwrap()));
        let start = Instant::now();
        while !server.is_ready() {
            assert!(target.0.0.try_wait().unwrap().is_none(), "the target ended");
            assert!(start.elapsed() < LIMIT, "the target does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        target
    }

    fn kill(&mut self) {
        self.0.kill();
    }
}

/// A mover of the test: this program again, doing what it is told.
struct Mover {
    process: Killed,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Mover {
    fn start(server: &Array, id: u16, life: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "one_mover_does_what_it_is_told", "--nocapture"]);
        command.env(ROLE, format!("{id} {life} {}", server.address));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Killed(command.spawn().unwrap());
        let to = process.0.stdin.take().unwrap();
        let from = BufReader::new(process.0.stdout.take().unwrap());
        let mut mover = Self { process, to, from };
        assert_eq!(mover.answer(), "ready");
        mover
    }

    fn say(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the mover ended");
            // The test harness of the child writes lines, too.
            if let Some((_, answer)) = line.trim_end().split_once("=> ") {
                return answer.to_owned();
            }
        }
    }

    fn kill(mut self) {
        self.process.kill();
    }

    /// Lets it end in order.
    fn end(self) {
        let Self { mut process, to, .. } = self;
        drop(to);
        assert!(process.0.wait().unwrap().success());
    }
}

/// The child's part; as a test of its own it has nothing to do.
#[test]
fn one_mover_does_what_it_is_told() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split(' ');
    let id: u16 = words.next().unwrap().parse().unwrap();
    let life: u64 = words.next().unwrap().parse().unwrap();
    let address = Address::Tcp(words.next().unwrap().parse().unwrap());

    let devices = Devices::start(&format!("mover{id}"));
    let subsystems = &devices.subsystems;
    let pump = &mut || devices.poll();
    let host =
        HostIdentity { nqn: format!("nqn.2026-11.io.setline:mover:p{id}"), id: [id as u8; 16] };
    let names = subsystems.attach_nvme("array", &address, Some(NQN), Some(&host), pump).unwrap();
    let name = names[0].as_str();
    let channel = Bdev::open(name, true).unwrap().channel().unwrap();
    let memory = DmaBuf::new(BLOCK, BLOCK).unwrap().leak();
    let mut fence = Fence::new(MoverId(id), life, host.id);
    let io = |submit: &dyn Fn(&Channel) -> Result<(), Submit>| {
        submit(&channel).unwrap();
        match devices.done().status {
            NvmeStatus::SUCCESS => "ok".to_owned(),
            other => format!("{:x}/{:02x}", other.sct, other.sc),
        }
    };
    println!("=> ready");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        let raw = || Reservations::open(name, 1).unwrap().unwrap();
        let answer = match words[0] {
            "join" => {
                match fence.open(VOLUME, name, 1, pump).and_then(|()| fence.join(&[VOLUME], pump)) {
                    Ok(()) => {
                        let fencing = &fence.fencing()[&VOLUME];
                        assert_eq!(fencing.state, FencingState::Fenced);
                        assert_eq!(fencing.key, Some(fence.key().to_string()));
                        assert!(fencing.reason.contains("kept over a loss"), "{}", fencing.reason);
                        "fenced".to_owned()
                    }
                    Err(error) => error.to_string(),
                }
            }
            "preempt" => {
                preempted(fence.preempt(VOLUME, Victims::Mover(MoverId(number(1) as u16)), pump))
            }
            "preempt-key" => {
                preempted(fence.preempt(VOLUME, Victims::Key(ReservationKey(number(1))), pump))
            }
            "leave" => {
                let next = Fence::new(MoverId(id), life, host.id);
                std::mem::replace(&mut fence, next).leave(pump);
                "ok".to_owned()
            }
            "acquire" => {
                let kind = Kind::WriteExclusiveRegistrantsOnly;
                let request = Request::Acquire { key: ReservationKey(number(1)), kind };
                let acquired = raw().run(request, pump);
                acquired.map_or_else(|error| error.to_string(), |_| "ok".to_owned())
            }
            // Plain "write exclusive", under a key that is nobody's.
            "seize" => {
                use setline::spdk::reservation::Existing;
                let (at, key) = (raw(), ReservationKey(77));
                let existing = Existing::None;
                at.run(Request::Register { key, existing, persist: false }, pump).unwrap();
                at.run(Request::Acquire { key, kind: Kind::Other(1) }, pump).unwrap();
                "ok".to_owned()
            }
            "report" => {
                let Answer::Report(report) = raw().run(Request::Report, pump).unwrap() else {
                    panic!("no report");
                };
                let kind = match report.kind {
                    None => "none".to_owned(),
                    Some(Kind::WriteExclusiveRegistrantsOnly) => "3".to_owned(),
                    Some(Kind::WriteExclusiveAllRegistrants) => "5".to_owned(),
                    Some(Kind::Other(kind)) => kind.to_string(),
                };
                let mut keys: Vec<String> =
                    report.registrants.iter().map(|r| r.key.to_string()).collect();
                keys.sort();
                let lasting = if report.persistent { "persistent" } else { "passing" };
                format!("{kind}; {lasting}; {}", keys.join(" ")).trim_end().to_owned()
            }
            "write" => {
                memory.copy_in(0, &[number(2) as u8; BLOCK]);
                io(&|channel| channel.write(memory, number(1), 1))
            }
            "zeroes" => io(&|channel| channel.write_zeroes(number(1), 1, 1)),
            "read" => {
                assert_eq!(io(&|channel| channel.read(memory, number(1), 1)), "ok");
                let mut block = [0; BLOCK];
                memory.copy_out(0, &mut block);
                assert!(block.iter().all(|byte| *byte == block[0]), "a torn block");
                block[0].to_string()
            }
            other => panic!("what is {other:?}?"),
        };
        println!("=> {answer}");
    }
    drop(fence);
    drop(channel);
    devices.end();
}

fn preempted(result: Result<Vec<ReservationKey>, FenceError>) -> String {
    match result {
        Ok(keys) if keys.is_empty() => "nobody".to_owned(),
        Ok(keys) => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Err(error) => error.to_string(),
    }
}
