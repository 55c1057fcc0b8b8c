//! What the control thread knows: everything that the pollers reported, put together.
//!
//! Filled from reports as they come and from snapshots a few times per second; read by `judge` for
//! the groups' states and by `status` for the answers. It decides nothing and sends nothing.
//! Owned by the control thread.

use std::collections::{BTreeMap, VecDeque};

use hdrhistogram::Histogram;

use super::history::History;
use super::store::ResyncMark;
use crate::config::{Mover, Role};
use crate::proto::boundary::CoordinatorView;
use crate::proto::command::{Report, SetState};
use crate::proto::types::{GroupId, MoverId, Nanos, SetId, ShardId};
use crate::runtime::messages::{
    PeerState, PollerSnapshot, SecondaryCoordinatorView, SecondaryGroupView,
};

/// Rates are taken over at least this time.
const RATE_NS: u64 = 1_000_000_000;

/// One poller.
#[derive(Debug)]
pub struct PollerBoard {
    /// Its shard.
    pub shard: ShardId,
    /// Its core.
    pub core: u16,
    /// It reported that it runs.
    pub started: bool,
    /// It reported that it ended.
    pub stopped: bool,
    /// The newest snapshot.
    pub snapshot: Option<Box<PollerSnapshot>>,
    /// What rates are computed from: time, busy cycles, idle cycles, updates.
    samples: VecDeque<(Nanos, u64, u64, u64)>,
}

/// Load over the last second or a little more.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Load {
    /// Share of cycles with work, percent.
    pub busy_percent: f64,
    /// Updates per second.
    pub updates_per_second: f64,
    /// Busy cycles per update; 0 without updates.
    pub cycles_per_update: f64,
}

/// A link from one of this mover's pollers.
#[derive(Clone, Copy, Debug)]
pub struct LinkBoard {
    /// How it stands.
    pub state: PeerState,
    /// Since when.
    pub since: Nanos,
}

/// A set number that only grows, and its pace.
#[derive(Clone, Copy, Default, Debug)]
pub struct Advance {
    /// The set; 0 before the first.
    pub set: SetId,
    /// Since when it is that one.
    pub since: Nanos,
    /// How long it was the one before, nanoseconds; 0 when there was none.
    pub took_ns: u64,
}

impl Advance {
    fn to(&mut self, set: SetId, at: Nanos) {
        if set > self.set {
            let first = self.set == SetId(0);
            let took_ns = if first { 0 } else { at.since(self.since) };
            *self = Self { set, since: at, took_ns };
        }
    }
}

/// One group.
#[derive(Debug)]
pub struct GroupBoard {
    /// Its number.
    pub id: GroupId,
    /// Its index in the configuration.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its recent sets.
    pub history: History,
    /// The boundary engine's view, where it runs here.
    pub coordinator: Option<CoordinatorView>,
    /// The secondary coordinator's view, where it runs here.
    pub secondary: Option<SecondaryCoordinatorView>,
    /// What the secondary shards of this mover say, one per shard.
    pub secondary_shards: BTreeMap<ShardId, SecondaryGroupView>,
    /// The last set that all of them have stored; how it came about.
    pub shards_stored: Advance,
    /// The period in force, as far as this mover knows; nanoseconds.
    pub period_ns: u64,
    /// The open set; 0 before the first.
    pub open: SetId,
    /// Since when it is that one.
    pub open_since: Nanos,
    /// The last set that the secondary could fail over to, as far as this mover knows.
    pub confirmed: SetId,
    /// Since when it is that one.
    pub confirmed_since: Nanos,
    /// When that set was cut, Unix nanoseconds.
    pub confirmed_cut_ns: Option<u64>,
    /// The last set on the secondary volumes, as far as this mover knows.
    pub applied: SetId,
    /// When that set was cut, Unix nanoseconds.
    pub applied_cut_ns: Option<u64>,
    /// It must be resynchronised.
    pub resync: Option<ResyncMark>,
    /// The last failure to apply, until apply goes on.
    pub apply_failure: Option<String>,
    /// Apply was asked to stop and has not been asked to go on.
    pub pause_asked: bool,
    /// Sets formed since start (coordinator), payload bytes of those confirmed, sets confirmed
    /// (primary) or applied (secondary).
    pub formed: u64,
    /// See `formed`.
    pub replicated_bytes: u64,
    /// See `formed`.
    pub done: u64,
    /// Holds of acknowledgements, nanoseconds.
    pub hold_ns: Histogram<u64>,
    /// Recovery point, microseconds.
    pub recovery_us: Histogram<u64>,
}

/// Everything.
#[derive(Debug)]
pub struct Board {
    /// What this mover's site does.
    pub role: Role,
    /// Unix nanoseconds at time 0 of the monotonic clock.
    pub unix_offset_ns: u64,
    /// The pollers, in order.
    pub pollers: Vec<PollerBoard>,
    /// The groups, in the configuration's order.
    pub groups: Vec<GroupBoard>,
    /// Links by local shard and peer.
    pub links: BTreeMap<(ShardId, ShardId), LinkBoard>,
    /// Primary movers that are being stopped, as they told this mover; true once they need nothing from it
    /// any more.
    pub stopping: BTreeMap<MoverId, bool>,
    /// Host write latency, nanoseconds.
    pub write_latency_ns: Histogram<u64>,
}

/// A histogram of times, in whatever unit, that tells values apart up to a day of nanoseconds, with
/// three digits. Longer ones count as a day.
fn histogram() -> Histogram<u64> {
    const DAY_NS: u64 = 86_400_000_000_000;
    Histogram::new_with_bounds(1, DAY_NS, 3).expect("the bounds fit each other")
}

impl Board {
    /// A board that knows the configuration only. `links` are all that the plan has.
    #[must_use]
    pub fn new(
        mover: &Mover,
        pollers: &[(ShardId, u16)],
        links: impl Iterator<Item = (ShardId, ShardId)>,
        unix_offset_ns: u64,
    ) -> Self {
        let link = LinkBoard { state: PeerState::Unknown, since: Nanos(0) };
        Self {
            role: mover.mover.role,
            unix_offset_ns,
            pollers: pollers.iter().map(|(shard, core)| PollerBoard::new(*shard, *core)).collect(),
            groups: mover
                .groups
                .iter()
                .enumerate()
                .map(|(index, group)| GroupBoard::new(index, group))
                .collect(),
            links: links.map(|pair| (pair, link)).collect(),
            stopping: BTreeMap::new(),
            write_latency_ns: histogram(),
        }
    }

    /// Unix time in nanoseconds at monotonic `at`.
    #[must_use]
    pub fn unix_ns(&self, at: Nanos) -> u64 {
        self.unix_offset_ns.saturating_add(at.0)
    }

    /// Unix time in milliseconds at monotonic `at`.
    #[must_use]
    pub fn unix_ms(&self, at: Nanos) -> u64 {
        self.unix_ns(at) / 1_000_000
    }

    /// The group with number `id`.
    pub fn group_mut(&mut self, id: GroupId) -> Option<&mut GroupBoard> {
        self.groups.iter_mut().find(|group| group.id == id)
    }

    /// Takes in what a report says of sets. What it says to people is the caller's.
    pub fn report(&mut self, at: Nanos, report: &Report) {
        let unix_ns = self.unix_ns(at);
        let role = self.role;
        let group = match report {
            Report::SetOpened { group, .. }
            | Report::Held { group, .. }
            | Report::SetState { group, .. }
            | Report::SetFormed { group, .. } => *group,
            _ => return,
        };
        let Some(group) = self.group_mut(group) else { return };
        match report {
            Report::SetOpened { set, .. } => {
                group.history.opened(*set, unix_ns);
                group.opened(*set, at);
            }
            Report::Held { set, held_ns, .. } => {
                group.hold_ns.saturating_record(*held_ns);
                if *set > SetId(1)
                    && let Some(ended) = group.history.entry(set.prev())
                {
                    ended.hold_ns = Some(ended.hold_ns.unwrap_or(0).max(*held_ns));
                }
            }
            Report::SetFormed { set, cut_time_ns, updates, bytes, facts, .. } => {
                group.history.formed(*set, *cut_time_ns, *updates, *bytes, facts);
                group.formed += u64::from(role == Role::Primary);
            }
            Report::SetState { set, state, .. } => match state {
                SetState::Received => group.confirmed(*set, at, unix_ns, role),
                SetState::Applied => group.applied(*set, unix_ns, role),
                SetState::Forming => {
                    group.history.state(*set, SetState::Forming);
                }
                other => group.history.state(*set, *other),
            },
            _ => {}
        }
    }

    /// Takes in a poller's snapshot.
    pub fn snapshot(&mut self, snapshot: Box<PollerSnapshot>) {
        let at = snapshot.at;
        let unix_ns = self.unix_ns(at);
        let role = self.role;
        // Adding cannot fail: ours grows as needed.
        let _ = self.write_latency_ns.add(&snapshot.write_latency_ns);
        for link in &snapshot.links {
            self.link(snapshot.shard, link.peer, link.state, at);
        }
        for view in snapshot.primary.iter().flat_map(|primary| &primary.groups) {
            if let Some(group) = self.group_mut(view.id) {
                group.opened(view.open, at);
                group.confirmed(view.confirmed, at, unix_ns, role);
            }
        }
        for view in snapshot.coordinator.iter().flatten() {
            if let Some(group) = self.group_mut(view.id) {
                group.period_ns = view.period_ns;
                group.opened(view.open, at);
                group.confirmed(view.confirmed, at, unix_ns, role);
                group.applied(view.applied, unix_ns, role);
                group.coordinator = Some(view.clone());
            }
        }
        for view in snapshot.secondary.iter().flatten() {
            if let Some(group) = self.group_mut(view.id) {
                group.secondary_shards.insert(snapshot.shard, *view);
                group.shards_stored.to(group.stored_by_shards(), at);
                if group.secondary.is_none() {
                    // Away from the coordinator: what is applied here.
                    let applied = group.secondary_shards.values().map(|view| view.applied).min();
                    group.applied(applied.unwrap_or(SetId(0)), unix_ns, role);
                }
            }
        }
        for view in snapshot.secondary_coordinator.iter().flatten() {
            if let Some(group) = self.group_mut(view.id) {
                for (set, cut_ns) in [
                    (view.committed, view.committed_cut_time_ns),
                    (view.applied, view.applied_cut_time_ns),
                ] {
                    if cut_ns > 0
                        && let Some(set) = group.history.entry(set)
                    {
                        set.cut_ns = Some(cut_ns);
                        set.cut_is_exact = true;
                    }
                }
                group.confirmed(view.committed, at, unix_ns, role);
                group.applied(view.applied, unix_ns, role);
                group.secondary = Some(view.clone());
            }
        }
        if let Some(poller) = self.pollers.iter_mut().find(|p| p.shard == snapshot.shard) {
            poller.take(snapshot);
        }
    }

    /// A link's state; true when it changed.
    pub fn link(&mut self, from: ShardId, to: ShardId, state: PeerState, at: Nanos) -> bool {
        let link = self.links.entry((from, to)).or_insert(LinkBoard { state, since: at });
        let changed = link.state != state;
        if changed {
            *link = LinkBoard { state, since: at };
        }
        changed
    }

    /// Takes one sample of every group's recovery point.
    pub fn sample_recovery(&mut self, now: Nanos) {
        let unix_ns = self.unix_ns(now);
        for group in &mut self.groups {
            if let Some(age) = group.recovery_ns(unix_ns) {
                group.recovery_us.saturating_record(age / 1_000);
            }
        }
    }
}

impl PollerBoard {
    fn new(shard: ShardId, core: u16) -> Self {
        Self {
            shard,
            core,
            started: false,
            stopped: false,
            snapshot: None,
            samples: VecDeque::with_capacity(16),
        }
    }

    fn take(&mut self, snapshot: Box<PollerSnapshot>) {
        let updates = snapshot.primary.as_ref().map_or(0, |primary| primary.counters.updates);
        let sample = (snapshot.at, snapshot.busy_cycles, snapshot.idle_cycles, updates);
        self.samples.push_back(sample);
        // The oldest one kept is the last that is a whole interval old.
        while self.samples.get(1).is_some_and(|next| snapshot.at.since(next.0) >= RATE_NS) {
            self.samples.pop_front();
        }
        self.snapshot = Some(snapshot);
    }

    /// Its load.
    #[must_use]
    pub fn load(&self) -> Load {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Load::default();
        };
        let took = last.0.since(first.0);
        if took == 0 {
            return Load::default();
        }
        let busy = last.1.saturating_sub(first.1) as f64;
        let idle = last.2.saturating_sub(first.2) as f64;
        let updates = last.3.saturating_sub(first.3) as f64;
        Load {
            busy_percent: if busy + idle > 0.0 { 100.0 * busy / (busy + idle) } else { 0.0 },
            updates_per_second: updates * 1e9 / took as f64,
            cycles_per_update: if updates > 0.0 { busy / updates } else { 0.0 },
        }
    }
}

impl GroupBoard {
    fn new(index: usize, group: &crate::config::Group) -> Self {
        Self {
            id: GroupId(group.id),
            index,
            name: group.name.clone(),
            history: History::default(),
            coordinator: None,
            secondary: None,
            secondary_shards: BTreeMap::new(),
            shards_stored: Advance::default(),
            period_ns: group.period_ms.saturating_mul(1_000_000),
            open: SetId(0),
            open_since: Nanos(0),
            confirmed: SetId(0),
            confirmed_since: Nanos(0),
            confirmed_cut_ns: None,
            applied: SetId(0),
            applied_cut_ns: None,
            resync: None,
            apply_failure: None,
            pause_asked: false,
            formed: 0,
            replicated_bytes: 0,
            done: 0,
            hold_ns: histogram(),
            recovery_us: histogram(),
        }
    }

    fn opened(&mut self, set: SetId, at: Nanos) {
        if set > self.open {
            self.open = set;
            self.open_since = at;
        }
    }

    fn confirmed(&mut self, set: SetId, at: Nanos, unix_ns: u64, role: Role) {
        if set < self.confirmed || set == SetId(0) {
            return;
        }
        if set == self.confirmed {
            // When it was cut may have become known since.
            self.confirmed_cut_ns = self.cut_of(set).or(self.confirmed_cut_ns);
            return;
        }
        // The worst moment of a recovery point is the one before it improves.
        if let Some(age) = self.recovery_ns(unix_ns) {
            self.recovery_us.saturating_record(age / 1_000);
        }
        self.confirmed = set;
        self.confirmed_since = at;
        let news = self.history.reached(set, SetState::Received, unix_ns);
        self.confirmed_cut_ns = self.cut_of(set).or(self.confirmed_cut_ns);
        if role == Role::Primary {
            self.count(&news);
        }
    }

    fn applied(&mut self, set: SetId, unix_ns: u64, role: Role) {
        if set < self.applied || set == SetId(0) {
            return;
        }
        if set == self.applied {
            self.applied_cut_ns = self.cut_of(set).or(self.applied_cut_ns);
            return;
        }
        self.applied = set;
        self.apply_failure = None;
        let news = self.history.reached(set, SetState::Applied, unix_ns);
        self.applied_cut_ns = self.cut_of(set).or(self.applied_cut_ns);
        if role == Role::Secondary {
            self.count(&news);
        }
    }

    /// The last set that all secondary shards of this mover have stored; 0 where there is none.
    #[must_use]
    pub fn stored_by_shards(&self) -> SetId {
        self.secondary_shards.values().map(|view| view.stored).min().unwrap_or(SetId(0))
    }

    /// What is known from before this start: not news.
    pub fn resume(&mut self, confirmed: SetId) {
        self.confirmed = confirmed;
    }

    fn cut_of(&self, set: SetId) -> Option<u64> {
        self.history.get(set).and_then(|set| set.cut_ns)
    }

    fn count(&mut self, sets: &[SetId]) {
        self.done += sets.len() as u64;
        let bytes = |set: &SetId| self.history.get(*set).map_or(0, |set| set.bytes);
        self.replicated_bytes += sets.iter().map(bytes).sum::<u64>();
    }

    /// Age of the last set that the secondary could fail over to, nanoseconds.
    #[must_use]
    pub fn recovery_ns(&self, unix_ns: u64) -> Option<u64> {
        self.confirmed_cut_ns.map(|cut| unix_ns.saturating_sub(cut))
    }
}
