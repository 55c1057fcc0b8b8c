//! The control thread's work: takes reports, answers the API, keeps the store, ends the mover.
//!
//! One [`Driver`] per mover, owned by the control thread, which calls [`Driver::turn`] about every
//! millisecond between turns of SPDK's app thread. A turn never waits: what takes time (a set to
//! be closed, apply to come to a boundary, pollers to answer) is remembered and looked at again.
//! Requests come from the API's threads through [`Control`].
//!
//! It is not on the data path: when it stops turning, updates go on, numbers last for a day
//! (`store`), and peers keep hearing from the pollers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::board::Board;
use super::cluster::part::Part;
use super::events::Events;
use super::judge::{Evidence, Verdict, broken_words};
use super::model::{
    ApiError, ControlPlane, ErrorCode, EventLevel, Fencing, FencingState, GroupState, Request,
    Response,
};
use super::requests::Waiting;
use super::status::{Standing, View};
use super::stop::{Outcome, Stopping};
use super::store::{Boot, SetMark, Store, StoreError};
use super::timing::Timing;
use super::unreplicated::BaseSize;
use crate::config::{Mover, Role, Uuid};
use crate::proto::types::{GroupId, MoverId, Nanos, Seq, ShardId, VolumeId};
use crate::runtime::messages::{FromPoller, PeerState, PollerSnapshot, ToPoller};
use crate::runtime::plan::{Plan, Start};
use crate::runtime::stamps::Sources;
use crate::runtime::timekeeper::ClockState;
use assignment::Balance;
use membership::Site;

/// How often snapshots are taken when nobody asks.
const SNAPSHOT_EVERY_NS: u64 = 200_000_000;
/// How often while something is waited for.
const SNAPSHOT_SOON_NS: u64 = 5_000_000;
/// A snapshot that old is fresh enough for an answer.
const FRESH_NS: u64 = 20_000_000;
/// Pollers that have not answered for so long are not waited for.
const ROUND_NS_MAX: u64 = 1_000_000_000;
/// How often the recovery point is sampled.
const SAMPLE_EVERY_NS: u64 = 10_000_000;
/// How often the groups are judged.
const JUDGE_EVERY_NS: u64 = 50_000_000;
/// How often the store notes how far the groups are.
const NOTE_EVERY_NS: u64 = 10_000_000_000;
/// Calls that may wait for the control thread.
const CALLS_MAX: usize = 64;
/// How long a caller waits for an answer; longer than every limit in `requests`.
const CALL_MAX: Duration = Duration::from_secs(45);

/// What the driver is made from.
#[derive(Debug)]
pub struct Setup {
    /// The configuration.
    pub mover: Arc<Mover>,
    /// What it promises less than one may think.
    pub warnings: Vec<String>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// The open store.
    pub store: Store,
    /// What it knew.
    pub boot: Boot,
    /// What the plan was made from.
    pub start: Start,
    /// The ways to the pollers, in order.
    pub pollers: Vec<Sender<ToPoller>>,
    /// What they report.
    pub reports: Receiver<FromPoller>,
    /// How the open bases are kept from other movers.
    pub fencing: BTreeMap<VolumeId, Fencing>,
    /// The sizes of open bases of volumes that are not replicated (G11).
    pub unreplicated: BTreeMap<Uuid, BaseSize>,
    /// The mover's part in its site's store.
    pub cluster: Part,
    /// The mover's sources of time (G8).
    pub times: Sources,
}

/// What the control thread is to do after a turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Go on.
    Run,
    /// Let hosts go (stop the NVMe-oF target), then call [`Driver::hosts_closed`].
    CloseHosts,
    /// All pollers have ended; this is how.
    Ended(Outcome),
}

/// How good this mover's path to a volume is, to hosts (asymmetric namespace access).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathState {
    /// The best: this mover is responsible for the volume.
    Optimized,
    /// Works, with a detour through the responsible mover.
    NonOptimized,
    /// Not any more: hosts take another path.
    Inaccessible,
}

/// A request on its way to the control thread.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) request: Request,
    pub(super) reply: Sender<Result<Response, ApiError>>,
}

/// The API's way to the control thread.
#[derive(Clone, Debug)]
pub struct Control {
    calls: Sender<Call>,
}

impl ControlPlane for Control {
    fn call(&self, request: Request) -> Result<Response, ApiError> {
        let (reply, answer) = bounded(1);
        let gone = |what: &str| ApiError::new(ErrorCode::Unavailable, what, "try again later");
        self.calls
            .try_send(Call { request, reply })
            .map_err(|_| gone("the mover is stopping, or its control thread is overloaded"))?;
        match answer.recv_timeout(CALL_MAX) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(gone("the mover is stopping")),
            Err(RecvTimeoutError::Timeout) => {
                let message = "the control thread did not answer";
                Err(ApiError::new(ErrorCode::Timeout, message, "see the mover's log"))
            }
        }
    }
}

/// A round of snapshots under way.
#[derive(Debug)]
struct Round {
    asked_at: Nanos,
    answers: Receiver<Box<PollerSnapshot>>,
    missing: usize,
}

/// The control thread's state.
#[derive(Debug)]
pub struct Driver {
    pub(super) mover: Arc<Mover>,
    pub(super) plan: Arc<Plan>,
    pub(super) board: Board,
    pub(super) events: Events,
    pub(super) store: Store,
    pub(super) stopping: Stopping,
    pub(super) waiting: Vec<Waiting>,
    /// Why a poller could not go on.
    pub(super) failure: Option<String>,
    /// Rounds finished of those that were asked for after hosts were quiesced.
    pub(super) rounds_quiesced: u32,
    pub(super) quiesced_at: Option<Nanos>,
    warnings: Vec<String>,
    /// Faults of the mover itself, by what they concern.
    faults: BTreeMap<&'static str, String>,
    standings: Vec<Standing>,
    movers: BTreeMap<MoverId, PeerState>,
    serving: bool,
    pub(super) fencing: BTreeMap<VolumeId, Fencing>,
    unreplicated: BTreeMap<Uuid, BaseSize>,
    /// What hosts are to be told of paths.
    pub(super) paths: Vec<(VolumeId, PathState)>,
    pub(super) cluster: Part,
    timing: Timing,
    pub(super) site: Site,
    pub(super) balance: Balance,
    to_pollers: Vec<Sender<ToPoller>>,
    outbox: VecDeque<(usize, ToPoller)>,
    reports: Receiver<FromPoller>,
    calls: Receiver<Call>,
    /// Calls that wait for fresh snapshots.
    fresh: Vec<Call>,
    round: Option<Round>,
    round_done_at: Nanos,
    next_round_at: Nanos,
    next_sample_at: Nanos,
    next_judge_at: Nanos,
    next_note_at: Nanos,
}

impl Driver {
    /// A driver for pollers that are about to start, and the API's way to it.
    #[must_use]
    pub fn new(setup: Setup) -> (Self, Control) {
        let pollers: Vec<(ShardId, u16)> =
            setup.plan.pollers.iter().map(|poller| (poller.shard, poller.core)).collect();
        let links = setup
            .plan
            .pollers
            .iter()
            .flat_map(|poller| poller.links.iter().map(move |link| (poller.shard, link.peer)));
        let unix_offset_ns = setup.start.unix_offset_ns;
        let mut board = Board::new(&setup.mover, &pollers, links, unix_offset_ns);
        for group in &mut board.groups {
            group.resync = setup.boot.resync.get(&group.id).cloned();
            if let Some(mark) = setup.boot.sets.get(&group.id) {
                group.resume(mark.confirmed);
            }
        }
        let standing = Standing {
            verdict: Verdict {
                state: GroupState::InitialCopy,
                reason: "starting".to_owned(),
                healthy: false,
            },
            since_ms: unix_offset_ns / 1_000_000,
        };
        let record = setup.start.record(&setup.mover, &setup.plan.topology);
        let (calls_in, calls) = bounded(CALLS_MAX);
        let timing = Timing::new(&setup.mover, setup.times);
        let mut driver = Self {
            timing,
            standings: vec![standing; board.groups.len()],
            board,
            mover: setup.mover,
            plan: setup.plan,
            events: Events::default(),
            store: setup.store,
            stopping: Stopping::No,
            waiting: Vec::new(),
            failure: None,
            paths: Vec::new(),
            rounds_quiesced: 0,
            quiesced_at: None,
            warnings: setup.warnings,
            faults: BTreeMap::new(),
            movers: BTreeMap::new(),
            serving: false,
            fencing: setup.fencing,
            unreplicated: setup.unreplicated,
            cluster: setup.cluster,
            site: Site::new(record, setup.boot.incarnation, setup.start, pollers.len()),
            balance: Balance::default(),
            to_pollers: setup.pollers,
            outbox: VecDeque::new(),
            reports: setup.reports,
            calls,
            fresh: Vec::new(),
            round: None,
            round_done_at: Nanos(0),
            next_round_at: Nanos(0),
            next_sample_at: Nanos(0),
            next_judge_at: Nanos(0),
            next_note_at: Nanos(NOTE_EVERY_NS),
        };
        driver.tell_boot(&setup.boot);
        (driver, Control { calls: calls_in })
    }

    fn tell_boot(&mut self, boot: &Boot) {
        let name = self.mover.mover.name.clone();
        let message = format!("mover {name} starts, for the {}. time", boot.incarnation);
        self.event(Nanos(0), EventLevel::Info, "started", None, message);
        let resync: Vec<(String, String)> = self
            .board
            .groups
            .iter()
            .filter_map(|group| {
                let mark = group.resync.as_ref()?;
                let words = format!("{}; {}", broken_words(mark.reason), mark.detail);
                Some((group.name.clone(), words))
            })
            .collect();
        for (group, words) in resync {
            let message = format!("the group must be resynchronised: {words}");
            self.event(Nanos(0), EventLevel::Error, "needs-resync", Some(&group), message);
        }
    }

    /// Devices are open and hosts can connect (primary), or sets can be received (secondary).
    pub fn set_serving(&mut self) {
        self.serving = true;
        if self.cluster.fixed().is_none() {
            let volumes: Vec<VolumeId> =
                self.site.record.owners.iter().map(|(id, _)| *id).collect();
            self.tell_owners(&volumes);
        }
    }

    /// The system clock's state is another one than before (G8).
    pub fn clock_is(&mut self, at: Nanos, state: ClockState) {
        let (level, message) = self.timing.clock_is(state);
        self.event(at, level, "clock", None, message);
    }

    /// Paths whose state is another one since the last call: hosts are to be told.
    pub fn take_paths(&mut self) -> Vec<(VolumeId, PathState)> {
        std::mem::take(&mut self.paths)
    }

    /// One turn at `now`; never waits. Call again within a few milliseconds.
    pub fn turn(&mut self, now: Nanos) -> Step {
        // Nothing may touch the store once it says how the mover ended.
        if let Stopping::Ended(outcome) = &self.stopping {
            return Step::Ended(outcome.clone());
        }
        self.flush_outbox();
        self.take_cluster(now);
        self.take_reports(now);
        self.turn_membership(now);
        self.turn_assignment(now);
        if let Stopping::Ended(outcome) = &self.stopping {
            return Step::Ended(outcome.clone());
        }
        self.take_round(now);
        self.take_calls(now);
        self.turn_waiting(now);
        if now >= self.next_sample_at {
            self.next_sample_at = now.after(SAMPLE_EVERY_NS);
            self.board.sample_recovery(now);
        }
        if now >= self.next_judge_at {
            self.next_judge_at = now.after(JUDGE_EVERY_NS);
            if let Some((level, message)) = self.timing.turn() {
                self.event(now, level, "clock", None, message);
            }
            self.judge(now);
        }
        if now >= self.next_note_at {
            self.next_note_at = now.after(NOTE_EVERY_NS);
            let sets = self.set_marks();
            let noted = self.store.note_sets(&sets);
            self.stored(now, noted);
        }
        self.turn_stop(now)
    }

    /// Takes what happened at the cluster store.
    fn take_cluster(&mut self, now: Nanos) {
        let unix_ms = self.board.unix_ms(now);
        for told in self.cluster.turn(unix_ms) {
            self.event(now, told.level, told.kind, None, told.message);
        }
        match self.cluster.fault(unix_ms) {
            Some(fault) => self.faults.insert("cluster", fault),
            None => self.faults.remove("cluster"),
        };
    }

    /// The mover ends: its part in the site's store, to be left when nothing of it is under way.
    #[must_use]
    pub fn into_cluster(self) -> Part {
        self.cluster
    }

    /// What answers are made from, now.
    #[must_use]
    pub(super) fn view<'a>(&'a self, now: Nanos, faults: &'a [String]) -> View<'a> {
        View {
            evidence: self.evidence(now),
            plan: &self.plan,
            site: &self.site.record,
            standings: &self.standings,
            warnings: &self.warnings,
            faults,
            fencing: &self.fencing,
            unreplicated: &self.unreplicated,
            cluster: &self.cluster,
            timing: &self.timing,
            serving: self.serving,
        }
    }

    fn evidence(&self, now: Nanos) -> Evidence<'_> {
        let (mover, topology) = (&self.mover, &self.plan.topology);
        Evidence { mover, topology, site: &self.site.record, board: &self.board, now }
    }

    pub(super) fn fault_texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.faults.values().cloned().collect();
        for (volume, fencing) in &self.fencing {
            if fencing.state == FencingState::Excluded {
                let (_, name) = self.volume_name(*volume);
                texts.push(format!("volume {name}: {}", fencing.reason));
            }
        }
        texts.extend(self.timing.faults());
        texts.extend(self.fence_faults());
        texts
    }

    pub(super) fn event(
        &mut self,
        at: Nanos,
        level: EventLevel,
        kind: &'static str,
        group: Option<&str>,
        message: impl Into<String>,
    ) {
        self.events.add(self.board.unix_ms(at), level, kind, group, message);
    }

    /// Sends to one poller, keeping what its queue has no room for.
    pub(super) fn send(&mut self, poller: usize, message: ToPoller) {
        self.outbox.push_back((poller, message));
        self.flush_outbox();
    }

    pub(super) fn send_all(&mut self, mut message: impl FnMut() -> ToPoller) {
        for poller in 0..self.to_pollers.len() {
            self.outbox.push_back((poller, message()));
        }
        self.flush_outbox();
    }

    fn flush_outbox(&mut self) {
        for _ in 0..self.outbox.len() {
            let Some((poller, message)) = self.outbox.pop_front() else { break };
            match self.to_pollers[poller].try_send(message) {
                Ok(()) | Err(crossbeam::channel::TrySendError::Disconnected(_)) => {}
                Err(crossbeam::channel::TrySendError::Full(message)) => {
                    // Order matters only within one poller, and its queue stays full meanwhile.
                    self.outbox.push_back((poller, message));
                }
            }
        }
    }

    pub(super) fn group_name(&self, id: Option<GroupId>) -> Option<String> {
        let groups = &self.board.groups;
        id.and_then(|id| groups.iter().find(|group| group.id == id)).map(|g| g.name.clone())
    }

    /// Keeps or clears the fault of a store that cannot be written.
    pub(super) fn stored(&mut self, at: Nanos, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                self.faults.remove("store");
            }
            Err(error) => {
                let text = error.to_string();
                self.event(at, EventLevel::Error, "store", None, text.clone());
                self.faults.insert("store", text);
            }
        }
    }

    /// Begins a round of snapshots unless one is under way.
    pub(super) fn begin_round(&mut self, now: Nanos) {
        if self.round.is_some() {
            return;
        }
        let (reply, answers) = bounded(self.to_pollers.len().max(1));
        let live: Vec<usize> = (0..self.to_pollers.len())
            .filter(|index| !self.board.pollers[*index].stopped)
            .collect();
        self.round = Some(Round { asked_at: now, answers, missing: live.len() });
        for poller in live {
            self.send(poller, ToPoller::Snapshot { reply: reply.clone() });
        }
    }

    /// Begins a round anew: answers of one that is under way may be older than what was just sent.
    pub(super) fn restart_round(&mut self, now: Nanos) {
        self.round = None;
        self.begin_round(now);
    }

    fn take_round(&mut self, now: Nanos) {
        if self.round.is_none() {
            let soon = self.is_waiting() || self.is_stopping();
            let due = match soon {
                true => self.next_round_at.min(self.round_done_at.after(SNAPSHOT_SOON_NS)),
                false => self.next_round_at,
            };
            if now >= due {
                self.begin_round(now);
            }
        }
        let Some(round) = &mut self.round else { return };
        let mut news = Vec::new();
        while let Ok(snapshot) = round.answers.try_recv() {
            round.missing -= 1;
            news.push(snapshot);
        }
        let asked_at = round.asked_at;
        let done = round.missing == 0 || now.since(asked_at) > ROUND_NS_MAX;
        for snapshot in news {
            self.board.snapshot(snapshot);
        }
        if !done {
            return;
        }
        self.round = None;
        self.round_done_at = now;
        self.next_round_at = asked_at.after(SNAPSHOT_EVERY_NS);
        if self.quiesced_at.is_some_and(|quiesced| asked_at >= quiesced) {
            self.rounds_quiesced += 1;
        }
        self.reserve(now);
        self.tell_movers(now);
        self.judge(now);
        for call in std::mem::take(&mut self.fresh) {
            self.answer(now, call);
        }
    }

    /// Raises the numbers' marks long before they are reached (invariant 3).
    fn reserve(&mut self, now: Nanos) {
        let snapshots = self.board.pollers.iter().filter_map(|p| p.snapshot.as_ref());
        let next: Vec<(VolumeId, Seq)> = snapshots
            .filter_map(|snapshot| snapshot.primary.as_ref())
            .flat_map(|primary| primary.next_seqs.iter().copied())
            .collect();
        let reserved = self.store.reserve(&next);
        if reserved.is_err() || self.faults.contains_key("store") {
            self.stored(now, reserved);
        }
    }

    /// How far each group is, for the store.
    pub(super) fn set_marks(&self) -> BTreeMap<GroupId, SetMark> {
        let mark = |group: &super::board::GroupBoard| SetMark {
            next: group.open.max(group.confirmed.next()),
            confirmed: group.confirmed,
        };
        self.board.groups.iter().map(|group| (group.id, mark(group))).collect()
    }

    /// Events when a mover as a whole is met, falls silent, or is heard again.
    fn tell_movers(&mut self, at: Nanos) {
        let mut states: BTreeMap<MoverId, PeerState> = BTreeMap::new();
        for ((_, peer), link) in &self.board.links {
            let state = states.entry(peer.mover).or_insert(PeerState::Up);
            *state = match (*state, link.state) {
                (PeerState::Silent, _) | (_, PeerState::Silent) => PeerState::Silent,
                (PeerState::Unknown, _) | (_, PeerState::Unknown) => PeerState::Unknown,
                _ => PeerState::Up,
            };
        }
        for (mover, state) in states {
            let former = self.movers.insert(mover, state).unwrap_or(PeerState::Unknown);
            let name = self.plan.topology.name(mover).unwrap_or("?").to_owned();
            let (level, message) = match (former, state) {
                (PeerState::Unknown, PeerState::Up) => {
                    (EventLevel::Info, format!("mover {name} is met"))
                }
                (PeerState::Silent, PeerState::Up) => {
                    (EventLevel::Info, format!("mover {name} is heard again"))
                }
                (PeerState::Up | PeerState::Unknown, PeerState::Silent) => {
                    (EventLevel::Warning, format!("mover {name} is not heard"))
                }
                _ => continue,
            };
            self.event(at, level, "peer", None, message);
        }
    }

    fn judge(&mut self, now: Nanos) {
        let verdicts: Vec<Verdict> = {
            let evidence = self.evidence(now);
            self.board.groups.iter().map(|group| evidence.group(group)).collect()
        };
        for (index, verdict) in verdicts.into_iter().enumerate() {
            let former = &self.standings[index];
            let changed =
                former.verdict.state != verdict.state || former.verdict.healthy != verdict.healthy;
            let since_ms = match changed {
                true => self.board.unix_ms(now),
                false => former.since_ms,
            };
            if changed {
                let level = match (verdict.healthy, verdict.state) {
                    (true, _) => EventLevel::Info,
                    (false, GroupState::Tracking) => EventLevel::Error,
                    (false, _) => EventLevel::Warning,
                };
                let message = format!(
                    "{} -> {}: {}",
                    former.verdict.state.name(),
                    verdict.state.name(),
                    verdict.reason
                );
                let name = self.board.groups[index].name.clone();
                self.event(now, level, "group-state", Some(&name), message);
            }
            self.standings[index] = Standing { verdict, since_ms };
        }
    }

    fn take_calls(&mut self, now: Nanos) {
        while let Ok(call) = self.calls.try_recv() {
            let at_once = matches!(
                call.request,
                Request::VolumeMap | Request::CoreMap | Request::Events { .. }
            );
            if at_once || !call.request.only_reads() || now.since(self.round_done_at) <= FRESH_NS {
                self.answer(now, call);
            } else {
                self.fresh.push(call);
                self.begin_round(now);
            }
        }
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether this mover's poller 0 coordinates its site.
    pub(super) fn coordinates(&self) -> bool {
        let shard = match self.board.role {
            Role::Primary => Some(self.site.record.coordinator),
            Role::Secondary => self.plan.topology.secondary_coordinator,
        };
        shard.is_some_and(|shard| shard.mover == MoverId(self.mover.mover.id))
    }
}

mod assignment;
mod fences;
mod membership;
mod reports;
#[cfg(test)]
mod tests;
