//! The cluster store at a real etcd: two movers that change the record at once, a leader that dies,
//! a server that stops for a while, a lease that ends here before it ends there (P4).
//!
//! Each test has a server of its own. Nothing is judged by how long it took; limits only end a wait.
#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use setline::config::{Cluster, ClusterStoreKind};
use setline::control::cluster::etcd::EtcdStore;
use setline::control::cluster::{
    Alive, ClusterError, ClusterStore, Event, Known, Lease, Me, Member, Revision, SiteRecord, Swap,
};
use setline::lab::etcd::{self, Etcd};
use setline::proto::types::{Epoch, MoverId, ShardId, VolumeId};

/// Ends a wait for what takes a lease or two.
const LATE: Duration = Duration::from_secs(60);
/// Tells the process that is a mover: endpoint, number, life.
const ROLE: &str = "SETLINE_TEST_CLUSTER";

/// A server; killed when it goes.
struct Server {
    etcd: Etcd,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let held = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [clients, peers] = held.map(|listener| listener.local_addr().unwrap());
        let etcd =
            Etcd { name: "test".into(), clients, peers, directory: directory.path().join("data") };
        let process = run(&etcd, directory.path());
        Self { etcd, process, _directory: directory }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = run(&self.etcd, self._directory.path());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(etcd: &Etcd, directory: &Path) -> Child {
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let mut process = Command::new(etcd::program().unwrap())
        .args(etcd.arguments())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !etcd.is_ready() {
        assert!(process.try_wait().unwrap().is_none(), "etcd ended");
        assert!(start.elapsed() < LATE, "etcd does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

/// A mover at the store, with all that it was told.
struct Mover {
    me: Me,
    store: Box<EtcdStore>,
    known: Known,
    events: Vec<Event>,
}

fn me(id: u16, incarnation: u64) -> Me {
    let alive = Alive { name: format!("p{id}"), incarnation, whole: None, leaving: false };
    Me { site: "here".into(), mover: MoverId(id), alive }
}

impl Mover {
    fn start(endpoint: &str, id: u16, incarnation: u64) -> Self {
        let config = Cluster {
            store: ClusterStoreKind::Etcd,
            endpoints: vec![endpoint.to_owned()],
            lease_ms: 3_000,
            request_ms_max: 800,
            spare: None,
        };
        let me = me(id, incarnation);
        let store = Box::new(EtcdStore::start(&config, me.clone()).unwrap());
        Self { me, store, known: Known::default(), events: Vec::new() }
    }

    fn take(&mut self) {
        while let Some(event) = self.store.next_event() {
            self.known.note(&event);
            self.events.push(event);
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        loop {
            self.take();
            if done(self) {
                return;
            }
            assert!(start.elapsed() < LATE, "{what}: {:?}\n{:?}", self.known, self.events);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn leads(&self) -> bool {
        self.known.leads(&self.me, self.store.lease(), Instant::now())
    }

    fn alive(&self, id: u16) -> Option<u64> {
        self.known.alive.get(&MoverId(id)).map(|alive| alive.incarnation)
    }

    fn swap(&mut self, ticket: u64, expected: Revision, epoch: u32, as_leader: bool) {
        let record = record(epoch);
        self.store.swap(Swap { ticket, expected, record, as_leader }).unwrap();
    }

    fn outcome(&mut self, ticket: u64) -> Result<Revision, ClusterError> {
        let found = |mover: &Self| {
            mover.events.iter().find_map(|event| match event {
                Event::Swapped(done, result) if *done == ticket => Some(result.clone()),
                _ => None,
            })
        };
        self.until("a change has an outcome", |mover| found(mover).is_some());
        found(self).unwrap()
    }
}

fn record(epoch: u32) -> SiteRecord {
    let member =
        |id| (MoverId(id), Member { name: format!("p{id}"), incarnation: Some(1), since: 1 });
    let (shard, members) = (ShardId::new(1, 0), (1..=2).map(member).collect());
    let owners = BTreeMap::from([(VolumeId(1), shard)]);
    SiteRecord::first(Epoch(epoch), epoch, shard, members, owners)
}

/// What is read is told with, or before, the answer; so are changes that another mover made just before.
#[test]
fn a_record_that_is_read_anew_is_as_new_as_the_question() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let (mut p1, mut p2) = (Mover::start(&endpoint, 1, 1), Mover::start(&endpoint, 2, 1));
    p1.until("p1 has heard", |m| m.known.heard);
    p2.until("p2 has heard", |m| m.known.heard);
    p2.store.read(1).unwrap();
    p2.until("there is no record yet", |m| m.known.read == 1);
    let mut revision = Revision(0);
    for round in 2..20 {
        p1.swap(round, revision, round as u32, false);
        revision = p1.outcome(round).unwrap();
        // The change is made; p2 need not have been told of it.
        p2.store.read(round).unwrap();
        p2.until("the read is answered", |m| m.known.read == round);
        assert_eq!(p2.known.revision, revision);
    }
    // A mover that leaves says so under its key.
    p1.store.tell_leaving();
    p2.until("p1 leaves", |m| m.known.alive.get(&MoverId(1)).is_some_and(|p1| p1.leaving));
    p1.store.leave();
    p2.until("it is gone", |m| m.alive(1).is_none());
}

#[test]
fn of_two_changes_of_one_record_one_is_made_and_both_movers_learn_which() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let (mut p1, mut p2) = (Mover::start(&endpoint, 1, 1), Mover::start(&endpoint, 2, 1));
    for mover in [&mut p1, &mut p2] {
        mover.until("both are alive", |m| m.alive(1).is_some() && m.alive(2).is_some());
        assert!(mover.known.heard && mover.known.unavailable.is_none());
        assert_eq!((mover.known.revision, &mover.known.record), (Revision(0), &None));
    }
    // Each at once, from what both know.
    p1.swap(1, Revision(0), 1, false);
    p2.swap(1, Revision(0), 2, false);
    let outcomes = [p1.outcome(1), p2.outcome(1)];
    let made: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(made.len(), 1, "{outcomes:?}");
    assert!(outcomes.contains(&Err(ClusterError::Conflict)), "{outcomes:?}");
    let (revision, epoch) = (*made[0], if outcomes[0].is_ok() { 1 } else { 2 });
    for mover in [&mut p1, &mut p2] {
        mover.until("the record is known", |m| m.known.revision == revision);
        assert_eq!(mover.known.record, Some(record(epoch)));
    }
    // From the version that is there, it goes on.
    p2.swap(2, revision, 3, false);
    let next = p2.outcome(2).unwrap();
    assert!(next > revision);
    p1.until("the change is seen", |m| m.known.record == Some(record(3)));
    assert_eq!(p1.known.revision, next);
    p1.swap(3, revision, 4, false);
    assert_eq!(p1.outcome(3), Err(ClusterError::Conflict));
}

#[test]
fn a_record_of_another_version_is_told_and_not_used() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = etcd_client::Client::connect([&endpoint], None).await.unwrap();
        let known = record(1).to_json();
        let text = known.replace("\"format\":4", "\"format\":9");
        assert_ne!(text, known);
        client.put("/setline/here/record", text, None).await.unwrap();
    });
    let mut p1 = Mover::start(&endpoint, 1, 1);
    p1.until("it is told", |m| m.known.bad.is_some());
    assert!(p1.known.bad.as_ref().unwrap().to_string().contains("format 9"));
    assert!(p1.known.record.is_none() && p1.known.revision > Revision(0));
}

#[test]
fn another_mover_leads_when_the_leader_is_killed_and_not_before_its_lease_ended() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let mut leader = Process::start(&endpoint, 1, 1);
    leader.line("leads");
    let mut p2 = Mover::start(&endpoint, 2, 1);
    p2.store.campaign(true);
    p2.until("the leader is known", |m| m.known.leader.is_some());
    let first = p2.known.leader.clone().unwrap();
    assert_eq!((first.mover, first.incarnation), (MoverId(1), 1));
    p2.swap(1, Revision(0), 1, true);
    assert_eq!(p2.outcome(1), Err(ClusterError::NotLeader));
    assert!(!p2.leads());

    // When the leader's lease ends by its own clock; it is killed before it can renew that again.
    let until = leader.line("until");
    leader.kill();
    p2.until("the leader's lease ended", Mover::leads);
    assert!(monotonic_ns() > until, "not before the leader itself knew");
    let second = p2.known.leader.clone().unwrap();
    assert_eq!(second.mover, MoverId(2));
    assert!(second.term > first.term);
    p2.until("its key is gone, too", |m| m.alive(1).is_none());
    p2.swap(2, Revision(0), 1, true);
    p2.outcome(2).unwrap();

    // Who resigns, and who leaves in order, is followed at once; the next life is another leader.
    let mut p1 = Mover::start(&endpoint, 1, 2);
    p1.store.campaign(true);
    p1.until("p2 leads", |m| m.known.leader == Some(second.clone()));
    p2.store.campaign(false);
    p1.until("p1 leads", Mover::leads);
    p2.until("p2 knows", |m| !m.leads());
    p2.store.campaign(true);
    p1.store.leave();
    p2.until("p2 leads again", Mover::leads);
    p2.until("p1's key went with it", |m| m.alive(1).is_none());
}

#[test]
fn a_server_that_dies_for_a_while_is_told_of_and_found_again() {
    let mut server = Server::start();
    let endpoint = server.etcd.endpoint();
    let mut p1 = Mover::start(&endpoint, 1, 1);
    p1.store.campaign(true);
    p1.until("p1 leads", Mover::leads);
    p1.swap(1, Revision(0), 1, true);
    let revision = p1.outcome(1).unwrap();
    p1.until("the record is known", |m| m.known.record == Some(record(1)));

    server.kill();
    p1.until("it is told", |m| m.known.unavailable.is_some());
    p1.swap(2, revision, 2, false);
    let refused = p1.outcome(2);
    assert!(matches!(refused, Err(ClusterError::Unavailable(_))), "{refused:?}");
    p1.store.read(7).unwrap();
    p1.until("the lease ends by this mover's own clock", |m| m.store.lease() == Lease::None);
    p1.until("that is told", |m| m.events.contains(&Event::LeaseLost));
    assert!(!p1.leads(), "the key may still be there; the lease is not");
    assert!(p1.known.leader.is_some());
    assert_eq!(p1.known.read, 0, "nobody could read");

    let before = p1.events.len();
    server.start_again();
    p1.until("it answers", |m| m.known.unavailable.is_none());
    assert!(p1.events[before..].contains(&Event::Available));
    p1.until("a new lease", |m| m.store.lease().holds(Instant::now()));
    p1.until("p1 leads again", Mover::leads);
    assert_eq!((&p1.known.record, p1.known.read), (&Some(record(1)), 7));
    p1.swap(3, revision, 3, true);
    p1.outcome(3).unwrap();
}

#[test]
fn a_server_that_only_hangs_is_told_of_and_a_lease_that_did_not_end_goes_on() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let mut p1 = Mover::start(&endpoint, 1, 1);
    p1.store.campaign(true);
    p1.until("p1 leads", Mover::leads);
    let leader = p1.known.leader.clone();
    server.signal(Signal::STOP);
    p1.until("it is told", |m| m.known.unavailable.is_some());
    server.signal(Signal::CONT);
    p1.until("it answers", |m| m.known.unavailable.is_none());
    p1.until("p1 leads", Mover::leads);
    if !p1.events.contains(&Event::LeaseLost) {
        assert_eq!(p1.known.leader, leader, "the same leadership");
    }
}

#[test]
fn a_mover_that_was_asleep_knows_that_its_lease_ended_before_etcd_let_it_go() {
    let server = Server::start();
    let endpoint = server.etcd.endpoint();
    let mut sleeper = Process::start(&endpoint, 1, 1);
    sleeper.line("leads");
    let mut p2 = Mover::start(&endpoint, 2, 1);
    p2.store.campaign(true);
    p2.until("both are alive", |m| m.alive(1).is_some());
    sleeper.signal(Signal::STOP);
    p2.until("etcd let it go", |m| m.alive(1).is_none());
    let gone = monotonic_ns();
    p2.until("p2 leads", Mover::leads);
    sleeper.signal(Signal::CONT);
    // The last end of its lease that it counted with, before it slept.
    let until = sleeper.line("lost");
    assert!(until < gone, "its lease ended {} ms late", (until - gone) / 1_000_000);
    sleeper.line("follows");
    p2.take();
    assert!(p2.leads());
    p2.until("it is alive again, with a new lease", |m| m.alive(1).is_some());
}

/// This machine's monotonic clock: the same for all processes.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A mover as a process of its own: this program again. Killed when it goes.
struct Process {
    child: Child,
    from: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(endpoint: &str, id: u16, incarnation: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_mover_campaigns_and_says_how_it_goes", "--nocapture"])
            .env(ROLE, format!("{endpoint} {id} {incarnation}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        Self { child, from }
    }

    /// Waits for the line that begins with `word`, and returns its number.
    fn line(&mut self, word: &str) -> u64 {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the mover ended");
            if let Some((_, text)) = line.trim_end().split_once("=> ")
                && let Some(number) = text.strip_prefix(word)
            {
                return number.trim().parse().unwrap();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's part; as a test of its own it has nothing to do.
#[test]
fn one_mover_campaigns_and_says_how_it_goes() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let (id, life) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    let mut mover = Mover::start(words[0], id, life);
    mover.store.campaign(true);
    let (mut led, mut until) = (false, 0);
    loop {
        mover.take();
        if let Lease::Until(end) = mover.store.lease() {
            let left = end.saturating_duration_since(Instant::now()).as_nanos() as u64;
            // Of an end that has passed nothing is known any more by this way of telling it.
            until = if left > 0 { monotonic_ns() + left } else { until };
        }
        let leads = mover.leads();
        if leads && !led {
            println!("=> leads 0");
            println!("=> until {until}");
        }
        if led && !leads {
            println!("=> lost {until}");
            println!("=> follows 0");
        }
        led = leads;
        std::thread::sleep(Duration::from_millis(2));
    }
}
