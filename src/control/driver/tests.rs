use super::*;
use crate::control::model::{ApplyState, GroupStatus, SetInfo, Status};
use crate::control::store::{Former, StoreIdentity};
use crate::proto::boundary::CoordinatorView;
use crate::proto::command::{Report, SetState};
use crate::proto::message::BrokenReason;
use crate::proto::primary::{GroupView, PrimaryCounters};
use crate::proto::types::SetId;
use crate::runtime::messages::{
    LinkView, PrimarySnapshot, RemoteCounters, SecondaryCoordinatorView, SecondaryGroupView,
};
use crate::runtime::plan::Start;
use hdrhistogram::Histogram;

mod excluded;
mod lost;
mod membership;
mod stopping;
mod unreplicated;

const G: GroupId = GroupId(1);
const UNIX_NS: u64 = 1_800_000_000_000_000_000;
const MS: u64 = 1_000_000;

fn mover(me: &str, copies: u8) -> Mover {
    let all = [("p1", 1, "primary"), ("p2", 2, "primary"), ("s1", 101, "secondary")];
    let (name, id, role) = all.into_iter().find(|(name, ..)| *name == me).unwrap();
    let mut text = format!(
        "[mover]\nname = \"{name}\"\nid = {id}\nsite = \"{role}\"\nrole = \"{role}\"\ncores = \
         [0]\ndrain_ms_max = 1000\n[[port]]\nname = \"data\"\nkind = \"af_packet\"\ninterface = \
         \"eth0\"\nip = \"10.0.0.{id}/24\"\n"
    );
    if role == "secondary" {
        text.push_str("[journal]\nkind = \"malloc\"\nsize_mib = 64\n");
    }
    for (name, id, role) in all.into_iter().filter(|(name, ..)| *name != me) {
        text.push_str(&format!(
            "[[peer]]\nid = {id}\nname = \"{name}\"\nsite = \"{role}\"\nrole = \"{role}\"\nport = \
             \"data\"\nip = \"10.0.0.{id}\"\n"
        ));
    }
    text.push_str(&format!(
        "[[group]]\nname = \"bank\"\nid = 1\nnqn = \"nqn.2026-11.io.setline:bank\"\nperiod_ms = \
         100\ncopies = {copies}\n"
    ));
    for id in 1..=2 {
        text.push_str(&format!(
            "[[group.volume]]\nname = \"v{id}\"\nid = {id}\nnsid = {id}\nsize_mib = 16\nbase = {{ \
             kind = \"malloc\" }}\ntarget = {{ base = {{ kind = \"malloc\" }} }}\n"
        ));
    }
    Mover::parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}")).mover
}

/// A mover with one poller that the test plays.
struct Bench {
    driver: Driver,
    control: Control,
    requests: Receiver<ToPoller>,
    reports: Sender<FromPoller>,
    shard: ShardId,
    /// What the poller answers to snapshots.
    snapshot: PollerSnapshot,
    /// What it was asked for, beside snapshots.
    asked: Vec<String>,
    now: Nanos,
    store: std::path::PathBuf,
    identity: StoreIdentity,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new(mover: Mover) -> Self {
        let start = Start { unix_offset_ns: UNIX_NS, ..Start::default() };
        Self::with(mover, start, |mover| Part::start(mover, 1, 1, Duration::ZERO).unwrap())
    }

    fn with(mut mover: Mover, start: Start, part: impl FnOnce(&Mover) -> Part) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        mover.mover.store.clone_from(&path);
        let me = &mover.mover;
        let identity = StoreIdentity { site: me.site.clone(), mover: me.name.clone(), id: me.id };
        let (mut store, boot) = Store::open(&path, &identity, 1).unwrap();
        store.begin_serving(&[], 1).unwrap();
        let cluster = part(&mover);
        let plan = Arc::new(Plan::new(&mover, &start).unwrap());
        let shard = plan.pollers[0].shard;
        let links: Vec<LinkView> = plan.pollers[0].links.iter().map(|link| up(link.peer)).collect();
        let role = me.role;
        let (to, requests) = bounded(64);
        let (reports, from) = bounded(64);
        let (driver, control) = Driver::new(Setup {
            mover: Arc::new(mover),
            warnings: Vec::new(),
            plan,
            start,
            store,
            boot,
            pollers: vec![to],
            reports: from,
            fencing: BTreeMap::new(),
            unreplicated: BTreeMap::new(),
            cluster,
            times: Sources::default(),
        });
        let mut bench = Self {
            driver,
            control,
            requests,
            reports,
            shard,
            snapshot: snapshot(shard, role, links),
            asked: Vec::new(),
            now: Nanos(1),
            store: path,
            identity,
            _directory: directory,
        };
        bench.reports.send(FromPoller::Started { shard }).unwrap();
        bench.driver.set_serving();
        bench.run_ms(1);
        bench
    }

    /// Turns every millisecond for `ms`; the poller answers in between.
    fn run_ms(&mut self, ms: u64) -> Step {
        let mut step = Step::Run;
        for _ in 0..ms {
            self.now = self.now.after(MS);
            step = self.driver.turn(self.now);
            self.poll();
        }
        step
    }

    fn poll(&mut self) {
        while let Ok(request) = self.requests.try_recv() {
            match request {
                ToPoller::Snapshot { reply } => {
                    self.snapshot.at = self.now;
                    let _ = reply.send(Box::new(self.snapshot.clone()));
                }
                ToPoller::CloseNow { reply, .. } => {
                    self.asked.push("close".to_owned());
                    let _ = reply.send(Some(SetId(5)));
                }
                ToPoller::Stop => {
                    self.asked.push("stop".to_owned());
                    let last = Some(Box::new(self.snapshot.clone()));
                    let shard = self.shard;
                    self.reports.send(FromPoller::Stopped { shard, last }).unwrap();
                }
                ToPoller::SetPeriod { period_ns, .. } => {
                    self.asked.push(format!("period {period_ns}"));
                }
                ToPoller::PauseApply { paused, .. } => self.asked.push(format!("pause {paused}")),
                ToPoller::Quiesce { quiesced } => self.asked.push(format!("quiesce {quiesced}")),
                ToPoller::Refuse => self.asked.push("refuse".to_owned()),
                ToPoller::Enter { record, .. } => {
                    self.asked.push(format!("enter {}", record.epoch.0));
                }
                ToPoller::Planned { record } => {
                    let version = record.plan.as_ref().map(|plan| plan.version.0);
                    self.asked.push(format!("planned {version:?}"));
                }
                ToPoller::Fenced { token } => self.asked.push(format!("fenced {}", token.0)),
                ToPoller::Ledger { .. } => self.asked.push("ledger".to_owned()),
            }
        }
    }

    fn report(&mut self, report: Report) {
        let (shard, at) = (self.shard, self.now);
        self.reports.send(FromPoller::Report { shard, at, report }).unwrap();
    }

    /// Asks from another thread, as the API does, while the driver turns. Time passes only when the answer
    /// takes some: not while the thread is about to start.
    fn ask(&mut self, request: Request) -> Result<Response, ApiError> {
        let control = self.control.clone();
        let thread = std::thread::spawn(move || control.call(request));
        for turn in 0..20_000 {
            if thread.is_finished() {
                break;
            }
            if turn < 1000 {
                self.driver.turn(self.now);
                self.poll();
            } else {
                self.run_ms(1);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        thread.join().unwrap()
    }

    fn status(&mut self) -> Status {
        match self.ask(Request::Status) {
            Ok(Response::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    fn group(&mut self) -> GroupStatus {
        self.status().groups.remove(0)
    }

    fn coordinator(&mut self) -> &mut CoordinatorView {
        &mut self.snapshot.coordinator.as_mut().unwrap()[0]
    }

    /// One set after the other, each confirmed and applied at once, for `sets` periods of 100 ms.
    fn advance(&mut self, sets: u64) {
        for _ in 0..sets {
            let open = self.coordinator().open;
            let next = open.next();
            let cut_time_ns = UNIX_NS + self.now.0;
            self.report(Report::SetOpened { group: G, set: next });
            self.report(Report::Held { group: G, set: next, held_ns: 20_000 });
            let (set, group) = (open, G);
            let facts = Vec::new();
            let formed =
                Report::SetFormed { group, set, cut_time_ns, updates: 3, bytes: 300, facts };
            if open > SetId(0) {
                self.report(formed);
                self.report(Report::SetState { group, set, state: SetState::Received });
                self.report(Report::SetState { group, set, state: SetState::Applied });
                self.coordinator().confirmed = open;
                self.coordinator().applied = open;
            }
            self.coordinator().open = next;
            self.run_ms(100);
        }
    }

    fn clean_after(self) -> (Former, Boot) {
        drop(self.driver);
        let (_, boot) = Store::open(&self.store, &self.identity, 99).unwrap();
        (boot.former, boot)
    }
}

fn up(peer: ShardId) -> LinkView {
    LinkView {
        peer,
        state: PeerState::Up,
        sent: 1,
        retransmitted: 0,
        received: 1,
        refused: 0,
        duplicates: 0,
        rtt_ns: 10_000,
    }
}

fn snapshot(shard: ShardId, role: Role, links: Vec<LinkView>) -> PollerSnapshot {
    let histogram = || Histogram::new(2).unwrap();
    let group = GroupView { id: G, open: SetId(0), confirmed: SetId(0), broken: None };
    let primary = PrimarySnapshot {
        counters: PrimaryCounters::default(),
        retained: (0, 0),
        groups: vec![group],
        next_seqs: vec![(VolumeId(1), Seq(1))],
        retained_bytes: vec![(VolumeId(1), 0)],
    };
    let coordinator = CoordinatorView {
        id: G,
        period_ns: 100 * MS,
        open: SetId(0),
        preparing_since: None,
        waiting_for: Vec::new(),
        confirmed: SetId(0),
        applied: SetId(0),
        sets: Vec::new(),
        broken: None,
        boundaries: 0,
        delayed: 0,
    };
    let secondary = SecondaryCoordinatorView {
        id: G,
        committed: SetId(7),
        committed_cut_time_ns: UNIX_NS,
        applied: SetId(7),
        applied_cut_time_ns: UNIX_NS,
        paused: false,
        at_boundary: false,
    };
    let is_primary = role == Role::Primary;
    PollerSnapshot {
        shard,
        at: Nanos(0),
        busy_cycles: 0,
        idle_cycles: 0,
        turns: 0,
        volumes: Vec::new(),
        waiting: 0,
        waited: 0,
        remote: RemoteCounters::default(),
        arena_bytes: (0, 1 << 20),
        primary: is_primary.then_some(primary),
        coordinator: (shard == ShardId::new(1, 0)).then(|| vec![coordinator]),
        secondary: None,
        secondary_coordinator: (!is_primary).then(|| vec![secondary]),
        journal: None,
        refused_packets: 0,
        links,
        write_latency_ns: histogram(),
        hold_ns: histogram(),
    }
}

#[test]
fn sets_that_advance_are_healthy_and_show_both_points() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(5);
    let status = bench.status();
    assert!(status.ready && status.degraded.is_empty(), "{:?}", status.degraded);
    let group = &status.groups[0];
    assert_eq!(group.state, GroupState::Consistent);
    assert!(group.protected && group.needs_resync.is_none());
    assert_eq!((group.sets.open, group.sets.received, group.sets.applied), (5, 4, 4));
    assert_eq!(group.consistency_point.unwrap().set, 4);
    // The last cut was about one period ago.
    assert!(group.recovery_point_ms.unwrap() < 150.0, "{:?}", group.recovery_point_ms);
    assert_eq!(group.totals.bytes_replicated, 1200);
    assert_eq!(group.boundary_hold_ns.count, 5);
    assert!((19_900..20_100).contains(&group.boundary_hold_ns.p50));
    assert_eq!((group.totals.sets_formed, group.totals.sets_applied), (4, 4));
}

#[test]
fn sets_that_stand_still_are_not_healthy_though_nobody_reports_a_fault() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(3);
    assert_eq!(bench.group().state, GroupState::Consistent);
    bench.run_ms(2500);
    let status = bench.status();
    assert_eq!(status.groups[0].state, GroupState::Buffering);
    assert!(status.groups[0].reason.contains("set 3 has been open for"), "{:?}", status.groups);
    assert!(!status.degraded.is_empty());
}

#[test]
fn a_secondary_that_does_not_confirm_is_told_by_the_oldest_set_it_owes() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(3);
    for id in 4..40 {
        bench.report(Report::SetOpened { group: G, set: SetId(id) });
        bench.coordinator().open = SetId(id);
        bench.run_ms(100);
    }
    let group = bench.group();
    assert_eq!(group.state, GroupState::Buffering);
    assert!(group.reason.contains("set 3 was cut"), "{}", group.reason);
    assert!(group.recovery_point_ms.unwrap() > 3000.0);
}

#[test]
fn a_secondary_mover_that_does_not_coordinate_tells_that_nothing_more_comes() {
    let mut bench = Bench::new(mover("s1", 2));
    // As if another mover coordinated.
    bench.snapshot.secondary_coordinator = None;
    bench.run_ms(1000);
    bench.driver.board.groups[0].secondary = None;
    let stored = |bench: &mut Bench, set| {
        let (stored, applied) = (SetId(set), SetId(set));
        let view =
            SecondaryGroupView { id: G, stored, applied, backlog_updates: 0, backlog_bytes: 0 };
        bench.snapshot.secondary = Some(vec![view]);
        bench.run_ms(1000);
    };
    let verdict =
        |bench: &Bench| bench.driver.evidence(bench.now).group(&bench.driver.board.groups[0]);
    for set in 7..10 {
        stored(&mut bench, set);
        assert!(verdict(&bench).healthy, "set {set}: {}", verdict(&bench).reason);
    }
    // Sets came every second, so two or three without one are no reason to worry yet.
    bench.run_ms(1500);
    assert!(verdict(&bench).healthy, "{}", verdict(&bench).reason);
    bench.run_ms(1500);
    let still = verdict(&bench);
    assert_eq!((still.state, still.healthy), (GroupState::Buffering, false));
    assert!(still.reason.contains("no further set was stored here"), "{}", still.reason);
    stored(&mut bench, 10);
    assert!(verdict(&bench).healthy, "{}", verdict(&bench).reason);
}

#[test]
fn a_silent_mirror_leaves_the_group_unprotected() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(3);
    assert!(bench.group().protected);
    let link = bench.snapshot.links.iter_mut().find(|link| link.peer.mover.0 == 2).unwrap();
    link.state = PeerState::Silent;
    bench.advance(3);
    let status = bench.status();
    assert!(!status.groups[0].protected);
    assert!(status.degraded.iter().any(|text| text.contains("p2")), "{:?}", status.degraded);
    let Ok(Response::Events(events)) = bench.ask(Request::Events { since: 0, limit: 100 }) else {
        panic!()
    };
    assert!(events.iter().any(|e| e.kind == "peer" && e.message.contains("p2 is not heard")));
}

#[test]
fn one_copy_is_never_called_protected() {
    let mut bench = Bench::new(mover("p1", 1));
    bench.advance(3);
    let status = bench.status();
    assert!(!status.groups[0].protected);
    assert!(status.degraded.iter().any(|text| text.contains("not protected")));
}

#[test]
fn a_broken_group_says_what_when_and_why_and_still_does_after_a_restart() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(3);
    bench.report(Report::Broken { group: G, reason: BrokenReason::DigestMismatch });
    bench.run_ms(100);
    let group = bench.group();
    assert_eq!(group.state, GroupState::Tracking);
    let needed = group.needs_resync.unwrap();
    assert!(needed.reason.contains("manifest"), "{}", needed.reason);
    assert!(!group.protected);
    let (_, boot) = bench.clean_after();
    assert_eq!(boot.resync[&G].reason, BrokenReason::DigestMismatch);
}

#[test]
fn a_poller_that_does_not_answer_is_a_fault() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(2);
    for _ in 0..3000 {
        bench.now = bench.now.after(MS);
        bench.driver.turn(bench.now);
    }
    let faults = bench.driver.evidence(bench.now).degraded();
    assert!(faults.iter().any(|text| text.contains("has not answered for")), "{faults:?}");
}

#[test]
fn closing_answers_with_the_set_once_it_is_formed() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(5);
    let (set, group) = (SetId(5), G);
    let facts = Vec::new();
    let cut_time_ns = UNIX_NS + bench.now.0;
    bench.report(Report::SetFormed { group, set, cut_time_ns, updates: 9, bytes: 90, facts });
    let Ok(Response::Set(SetInfo { id, updates, .. })) =
        bench.ask(Request::SetClose { group: "bank".to_owned() })
    else {
        panic!()
    };
    assert_eq!((id, updates), (5, 9));
    assert_eq!(bench.asked, ["close"]);
}

#[test]
fn what_only_the_coordinator_can_do_is_refused_elsewhere_with_its_name() {
    let mut bench = Bench::new(mover("p2", 2));
    let error = bench.ask(Request::SetClose { group: "bank".to_owned() }).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotCoordinator);
    assert!(error.message.contains("p1"), "{error}");
    let error = bench.ask(Request::ApplyPause { group: "bank".to_owned() }).unwrap_err();
    assert!(error.message.contains("s1"), "{error}");
    let error = bench.ask(Request::GroupShow { group: "bnak".to_owned() }).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[test]
fn a_new_period_holds_at_once_and_one_out_of_range_is_refused() {
    let mut bench = Bench::new(mover("p1", 2));
    let mut ask =
        |period_ms| bench.ask(Request::GroupSetPeriod { group: "bank".to_owned(), period_ms });
    let Ok(Response::Group(group)) = ask(10) else { panic!() };
    assert_eq!(group.period_ms, 10);
    assert_eq!(ask(1).unwrap_err().code, ErrorCode::BadRequest);
    assert_eq!(bench.asked, ["period 10000000"]);
}

#[test]
fn pausing_is_answered_only_when_apply_stands_at_a_boundary() {
    let mut bench = Bench::new(mover("s1", 2));
    let control = bench.control.clone();
    let thread =
        std::thread::spawn(move || control.call(Request::ApplyPause { group: "bank".to_owned() }));
    for _ in 0..2000 {
        bench.run_ms(1);
        std::thread::sleep(Duration::from_micros(50));
        if !bench.asked.is_empty() {
            break;
        }
    }
    assert_eq!(bench.asked, ["pause true"]);
    bench.snapshot.secondary_coordinator.as_mut().unwrap()[0].paused = true;
    bench.run_ms(100);
    assert!(!thread.is_finished());
    bench.snapshot.secondary_coordinator.as_mut().unwrap()[0].at_boundary = true;
    bench.run_ms(100);
    let Ok(Response::Group(group)) = thread.join().unwrap() else { panic!() };
    assert_eq!(group.apply, ApplyState::Paused { set: 7 });
}

#[test]
fn a_drained_mover_stops_clean_with_its_exact_numbers() {
    let mut bench = Bench::new(mover("p2", 2));
    let primary = bench.snapshot.primary.as_mut().unwrap();
    primary.retained = (3, 0);
    primary.next_seqs = vec![(VolumeId(1), Seq(42))];
    bench.driver.begin_stop(bench.now, true, "test");
    assert_eq!(bench.run_ms(200), Step::Run);
    assert_eq!(bench.asked, ["quiesce true"]);
    bench.snapshot.primary.as_mut().unwrap().retained = (0, 0);
    assert_eq!(bench.run_ms(200), Step::CloseHosts);
    bench.driver.hosts_closed(bench.now);
    assert_eq!(bench.run_ms(5), Step::Ended(Outcome::Clean));
    let (former, boot) = bench.clean_after();
    assert!(matches!(former, Former::Clean { .. }));
    assert_eq!(boot.next_seqs[&VolumeId(1)], Seq(42));
}

#[test]
fn what_is_not_confirmed_in_time_makes_the_stop_unclean() {
    let mut bench = Bench::new(mover("p2", 2));
    bench.snapshot.primary.as_mut().unwrap().retained = (3, 0);
    bench.driver.begin_stop(bench.now, true, "test");
    assert_eq!(bench.run_ms(1100), Step::CloseHosts);
    bench.driver.hosts_closed(bench.now);
    let Step::Ended(Outcome::Unclean { reason }) = bench.run_ms(5) else { panic!() };
    assert!(reason.contains("3 updates"), "{reason}");
    assert!(matches!(bench.clean_after().0, Former::Unclean { .. }));
}

#[test]
fn a_second_request_to_stop_ends_the_wait() {
    let mut bench = Bench::new(mover("p2", 2));
    bench.snapshot.primary.as_mut().unwrap().retained = (3, 0);
    bench.driver.begin_stop(bench.now, true, "test");
    bench.run_ms(10);
    bench.driver.begin_stop(bench.now, false, "again");
    assert_eq!(bench.run_ms(1), Step::CloseHosts);
}

#[test]
fn the_coordinator_stops_only_when_the_next_set_is_certain() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(5);
    bench.coordinator().confirmed = SetId(3);
    // The other mover has gone already.
    for link in &mut bench.snapshot.links {
        link.state = PeerState::Silent;
    }
    bench.driver.begin_stop(bench.now, true, "test");
    assert_eq!(bench.run_ms(300), Step::Run);
    assert!(bench.asked.iter().any(|asked| asked.starts_with("period")), "{:?}", bench.asked);
    bench.coordinator().confirmed = SetId(4);
    assert_eq!(bench.run_ms(50), Step::CloseHosts);
    bench.driver.hosts_closed(bench.now);
    assert_eq!(bench.run_ms(5), Step::Ended(Outcome::Clean));
    let (_, boot) = bench.clean_after();
    assert_eq!(boot.sets[&G], SetMark { next: SetId(5), confirmed: SetId(4) });
}

#[test]
fn a_failed_poller_ends_the_mover() {
    let mut bench = Bench::new(mover("p1", 2));
    let shard = bench.shard;
    let reason = "no memory".to_owned();
    bench.reports.send(FromPoller::Failed { shard, reason }).unwrap();
    let Step::Ended(Outcome::Failed { reason }) = bench.run_ms(5) else { panic!() };
    assert!(reason.contains("no memory"), "{reason}");
}

#[test]
fn a_base_write_that_fails_is_remembered_with_its_place() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.advance(2);
    bench.report(Report::Void {
        volume: VolumeId(2),
        seq: Seq(9),
        extent: crate::proto::types::Extent { lba: 16, blocks: 8 },
        status: crate::proto::types::NvmeStatus::WRITE_FAULT,
    });
    bench.advance(2);
    let group = bench.group();
    // Sets go on; what is doubtful is said.
    assert_eq!(group.state, GroupState::Consistent);
    assert!(group.needs_resync.unwrap().reason.contains("bank/v2, blocks 16 to 23"));
}
