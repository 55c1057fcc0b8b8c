//! How a mover ends: so that nothing is lost where possible, and said loudly where not.
//!
//! At the primary site: take no more host updates, have the open sets closed, wait until the
//! secondary has confirmed everything this mover numbered; then let hosts go, end the pollers, and
//! only if their last word is that nothing is retained, mark the store clean. The wait is bounded
//! by `mover.drain_ms_max` and ends at once on a second signal; then the end is unclean and the
//! next start says that a resynchronisation is needed.
//!
//! The coordinator has more to see to. Sets end only while it runs, so it stays as long as other
//! movers that are being stopped too still have sets closed; and the number of the next set must be
//! exact, or sets formed after a full restart would be taken for ones that the secondary has
//! already. So it stops starting boundaries and waits until everything before the open set is
//! confirmed.
//!
//! At the secondary site: a mover goes on as long as primary movers drain, since they cannot
//! without it, `mover.drain_ms_max` at most. Primary movers say when they are stopped; one that is
//! stopped at the same moment is given a little time to say so. Then apply is brought to a boundary
//! if that does not take long; whatever is not applied is in the journal.

use std::collections::{BTreeMap, BTreeSet};

use crossbeam::channel::bounded;

use super::driver::{Driver, Step};
use super::model::EventLevel;
use super::store::SetMark;
use crate::config::Role;
use crate::proto::types::{GroupId, MoverId, Nanos, Seq, SetId, VolumeId};
use crate::runtime::messages::{PeerState, ToPoller};

/// How often sets are closed while draining.
const CLOSE_EVERY_NS: u64 = 20_000_000;
/// How long no other mover may have had a set closed before the coordinator leaves them alone.
const QUIET_NS: u64 = 500_000_000;
/// How long a secondary mover goes on for primary movers that have not said that they are stopped.
const TOGETHER_NS: u64 = 2_000_000_000;
/// How long a primary mover waits for the word of one that is being stopped at the same moment.
const WORD_NS: u64 = 200_000_000;
/// How long a secondary mover waits for a boundary.
const BOUNDARY_NS_MAX: u64 = 5_000_000_000;
/// How long pollers may take to end.
const POLLERS_NS_MAX: u64 = 15_000_000_000;
/// How long the other pollers may take once one has failed.
const FAILED_NS_MAX: u64 = 3_000_000_000;
/// A period that never ends: no boundary but those that are asked for.
const NO_PERIOD_NS: u64 = u64::MAX / 4;

/// How the mover ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing that only this mover knew is lost.
    Clean,
    /// Something may be; the next start says so too.
    Unclean {
        /// What and why.
        reason: String,
    },
    /// The other movers of the site went on without this one: they have what it had, and what it would
    /// still do is in nobody's interest.
    Excluded {
        /// When and why.
        reason: String,
        /// An operator asked for it.
        asked: bool,
    },
    /// A poller could not go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How far stopping is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stopping {
    /// Not at all.
    No,
    /// A secondary mover that goes on until the primary movers are drained.
    Serving { together: Nanos, until: Nanos },
    /// Waiting for what is retained to be confirmed, or for a boundary.
    Draining { until: Nanos, next_close_at: Nanos, frozen: bool, open: Vec<SetId>, quiet: Nanos },
    /// The caller is to let hosts go.
    ClosingHosts,
    /// Pollers were told to end.
    EndingPollers { until: Nanos },
    /// It is over.
    Ended(Outcome),
}

impl Driver {
    /// Begins to stop. With `drain` unset, nothing is waited for. A second call without `drain`
    /// ends a wait that is under way.
    pub fn begin_stop(&mut self, now: Nanos, drain: bool, why: &str) {
        match (&self.stopping, drain) {
            (Stopping::No, _) => {}
            (Stopping::Serving { .. } | Stopping::Draining { .. }, false) => {
                let message = "stopping without waiting any longer";
                self.event(now, EventLevel::Warning, "stopping", None, message);
                self.quiesce(now);
                self.close_hosts();
                return;
            }
            _ => return,
        }
        let until = now.after(self.drain_ns_max());
        let serving = drain && self.serves_on(now, now.after(TOGETHER_NS), until);
        let message = match (drain, serving) {
            (true, true) => format!(
                "stopping ({why}) once primary movers that are stopped at the same time are drained"
            ),
            (true, false) => format!("stopping ({why}): hosts wait, and what is here is made safe"),
            (false, _) => format!("stopping ({why}) without waiting"),
        };
        self.event(now, EventLevel::Info, "stopping", None, message);
        if serving {
            self.stopping = Stopping::Serving { together: now.after(TOGETHER_NS), until };
            return;
        }
        self.quiesce(now);
        match drain {
            true => self.drain(now),
            false => self.close_hosts(),
        }
    }

    fn drain_ns_max(&self) -> u64 {
        u64::from(self.mover.mover.drain_ms_max) * 1_000_000
    }

    /// Whether a secondary mover has to go on: primary movers are heard that need their sets
    /// confirmed before they end, or, up to `together`, that may still say so.
    fn serves_on(&self, now: Nanos, together: Nanos, until: Nanos) -> bool {
        if self.board.role == Role::Primary || now >= until {
            return false;
        }
        let links = self.board.links.iter().filter(|(_, link)| link.state == PeerState::Up);
        let heard: BTreeSet<MoverId> = links.map(|((_, peer), _)| peer.mover).collect();
        heard.iter().filter(|mover| self.plan.topology.role_of(**mover) == Some(Role::Primary)).any(
            |mover| match self.board.stopping.get(mover) {
                Some(drained) => !drained,
                None => now < together,
            },
        )
    }

    /// Begins to wait until this mover is drained.
    fn drain(&mut self, now: Nanos) {
        let limit_ns = self.drain_ns_max();
        let limit_ns = match self.board.role {
            Role::Primary => limit_ns,
            Role::Secondary => limit_ns.min(BOUNDARY_NS_MAX),
        };
        if self.board.role == Role::Secondary && self.coordinates() {
            for group in self.group_ids() {
                self.send(0, ToPoller::PauseApply { group, paused: true });
                if let Some(board) = self.board.group_mut(group) {
                    board.secondary = None;
                }
            }
        }
        self.stopping = Stopping::Draining {
            until: now.after(limit_ns),
            next_close_at: now,
            frozen: false,
            open: Vec::new(),
            quiet: now,
        };
    }

    /// Whether [`Self::begin_stop`] was called.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping != Stopping::No
    }

    /// A poller could not go on: the mover must end. Hosts are not let go in order, since that
    /// needs all pollers; their connections break.
    pub(super) fn failed(&mut self, now: Nanos, reason: String) {
        self.event(now, EventLevel::Error, "failed", None, reason.clone());
        self.failure.get_or_insert(reason);
        if !matches!(self.stopping, Stopping::EndingPollers { .. } | Stopping::Ended(_)) {
            self.send_all(|| ToPoller::Stop);
            self.stopping = Stopping::EndingPollers { until: now.after(FAILED_NS_MAX) };
        }
    }

    /// Has the pollers refuse their hosts, so that the target can be stopped.
    fn close_hosts(&mut self) {
        self.send_all(|| ToPoller::Refuse);
        self.stopping = Stopping::ClosingHosts;
    }

    /// The NVMe-oF target is stopped: no host command comes any more.
    pub fn hosts_closed(&mut self, now: Nanos) {
        if self.stopping == Stopping::ClosingHosts {
            self.send_all(|| ToPoller::Stop);
            self.stopping = Stopping::EndingPollers { until: now.after(POLLERS_NS_MAX) };
        }
    }

    fn quiesce(&mut self, now: Nanos) {
        self.send_all(|| ToPoller::Quiesce { quiesced: true });
        self.quiesced_at = Some(now);
        self.rounds_quiesced = 0;
        self.restart_round(now);
    }

    fn group_ids(&self) -> Vec<GroupId> {
        self.board.groups.iter().map(|group| group.id).collect()
    }

    /// Carries stopping on.
    pub(super) fn turn_stop(&mut self, now: Nanos) -> Step {
        match &self.stopping {
            Stopping::No => Step::Run,
            Stopping::Serving { together, until } => {
                if !self.serves_on(now, *together, *until) {
                    self.quiesce(now);
                    self.drain(now);
                }
                Step::Run
            }
            Stopping::Draining { until, .. } => {
                let late = now >= *until;
                if late && self.board.role == Role::Primary {
                    let message = format!(
                        "not everything was made safe within mover.drain_ms_max = {} ms: {}",
                        self.mover.mover.drain_ms_max,
                        self.unsafe_words()
                    );
                    self.event(now, EventLevel::Error, "stopping", None, message);
                }
                if late || self.is_drained(now) {
                    self.close_hosts();
                    return Step::CloseHosts;
                }
                Step::Run
            }
            Stopping::ClosingHosts => Step::CloseHosts,
            Stopping::EndingPollers { until } => {
                let over = now >= *until;
                if !over && !self.board.pollers.iter().all(|poller| poller.stopped) {
                    return Step::Run;
                }
                let outcome = self.conclude(now);
                self.stopping = Stopping::Ended(outcome.clone());
                Step::Ended(outcome)
            }
            Stopping::Ended(outcome) => Step::Ended(outcome.clone()),
        }
    }

    /// Updates of this mover that the secondary has not confirmed.
    fn retained(&self) -> u64 {
        let snapshots = self.board.pollers.iter().filter_map(|poller| poller.snapshot.as_ref());
        let primaries = snapshots.filter_map(|snapshot| snapshot.primary.as_ref());
        primaries.map(|primary| u64::from(primary.retained.0)).sum()
    }

    fn unsafe_words(&self) -> String {
        match (self.retained(), self.exact_sets()) {
            (0, Ok(_)) => "nothing".to_owned(),
            (0, Err(reason)) => reason,
            (count, _) => {
                format!("{count} updates of this mover are not confirmed by the secondary")
            }
        }
    }

    /// Whether everything is safe elsewhere; does what brings that about.
    fn is_drained(&mut self, now: Nanos) -> bool {
        if self.rounds_quiesced == 0 {
            return false;
        }
        if self.board.role == Role::Secondary {
            let coordinates = self.coordinates();
            let standing = |group: &super::board::GroupBoard| {
                group.secondary.as_ref().is_some_and(|view| view.paused && view.at_boundary)
            };
            return !coordinates || self.board.groups.iter().all(standing);
        }
        let empty = self.retained() == 0;
        if !self.coordinates() {
            return empty && !self.is_needed(now);
        }
        let opens: Vec<SetId> = self.board.groups.iter().map(|group| group.open).collect();
        let Stopping::Draining { next_close_at, frozen, open, quiet, .. } = &mut self.stopping
        else {
            return false;
        };
        if *open != opens {
            *open = opens;
            *quiet = now;
        }
        let (quiet, was_frozen) = (*quiet, *frozen);
        let close = !empty && now >= *next_close_at;
        if close {
            *next_close_at = now.after(CLOSE_EVERY_NS);
        }
        *frozen = empty;
        if close {
            for group in self.group_ids() {
                let (reply, _) = bounded(1);
                self.send(0, ToPoller::CloseNow { group, reply });
            }
        }
        if empty && !was_frozen {
            for group in self.group_ids() {
                self.send(0, ToPoller::SetPeriod { group, period_ns: NO_PERIOD_NS });
            }
            return false;
        }
        let others_up = self.board.links.iter().any(|((_, peer), link)| {
            self.plan.topology.role_of(peer.mover) == Some(Role::Primary)
                && link.state == PeerState::Up
        });
        empty && self.exact_sets().is_ok() && (!others_up || now.since(quiet) >= QUIET_NS)
    }

    /// Whether the mover that runs the boundaries is being stopped, too, and not drained: no set of its own
    /// is closed without this one's part in it. Where the membership is fixed nobody goes on without this
    /// mover, so it waits a moment for the other's word.
    fn is_needed(&self, now: Nanos) -> bool {
        let coordinator = self.site.record.coordinator.mover;
        let mut links = self.board.links.iter();
        let heard =
            links.any(|((_, peer), link)| peer.mover == coordinator && link.state == PeerState::Up);
        let since = self.quiesced_at.map_or(0, |quiesced| now.since(quiesced));
        heard
            && match self.board.stopping.get(&coordinator) {
                Some(drained) => !drained,
                None => self.cluster.fixed().is_some() && since < WORD_NS,
            }
    }

    /// The next set of each group, if it is certain: at the coordinator only when nothing before
    /// the open set is unconfirmed.
    fn exact_sets(&self) -> Result<BTreeMap<GroupId, SetMark>, String> {
        let mut marks = self.set_marks();
        if self.board.role == Role::Secondary || !self.coordinates() {
            return Ok(marks);
        }
        for group in &self.board.groups {
            let Some(view) = &group.coordinator else { continue };
            let mark = SetMark { next: view.open, confirmed: view.confirmed };
            if view.broken.is_some() || view.open == SetId(0) {
                continue;
            }
            if view.preparing_since.is_some() || view.confirmed != view.open.prev() {
                return Err(format!(
                    "group {}: sets {} to {} are not confirmed by the secondary",
                    group.name,
                    view.confirmed.next().0,
                    view.open.prev().0
                ));
            }
            marks.insert(group.id, mark);
        }
        Ok(marks)
    }

    /// Judges the pollers' last words, and marks the store clean if they allow it.
    fn conclude(&mut self, now: Nanos) -> Outcome {
        if let Some(reason) = self.failure.clone() {
            return Outcome::Failed { reason };
        }
        let stuck = self.board.pollers.iter().find(|poller| !poller.stopped);
        if let Some(poller) = stuck {
            let reason = format!("poller {} did not end", poller.shard);
            return Outcome::Unclean { reason };
        }
        let sets = match (self.retained(), self.exact_sets()) {
            (0, Ok(sets)) => sets,
            _ => return Outcome::Unclean { reason: self.unsafe_words() },
        };
        let snapshots = self.board.pollers.iter().filter_map(|poller| poller.snapshot.as_ref());
        let next_seqs: BTreeMap<VolumeId, Seq> = snapshots
            .filter_map(|snapshot| snapshot.primary.as_ref())
            .flat_map(|primary| primary.next_seqs.iter().copied())
            .collect();
        let now_ms = self.board.unix_ms(now);
        match self.store.mark_clean(&next_seqs, &sets, now_ms) {
            Ok(()) => {
                self.event(now, EventLevel::Info, "stopped", None, "nothing is left to be done");
                Outcome::Clean
            }
            Err(error) => Outcome::Unclean { reason: error.to_string() },
        }
    }
}
