//! The membership of the primary site, as this mover's control thread acts upon it (F5, P2, P4).
//!
//! Only the record in the cluster's store counts: what it says is entered by the pollers, told to
//! hosts, and shown. What this mover sees of the others (links that are silent, lives that ended) only
//! makes it propose the next record; the store decides between movers that propose different ones.
//!
//! When the store does not answer, nothing changes: the data path and set formation go on in the
//! present epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::assignment::{DRAINED, REMOVED};
use super::fences::ToFence;
use super::{Driver, PathState};
use crate::control::cluster::propose::NEVER_MET;
use crate::control::cluster::{Revision, SiteRecord as StoredRecord};
use crate::control::model::EventLevel;
use crate::control::stop::{Outcome, Stopping};
use crate::proto::membership::SiteRecord;
use crate::proto::types::{Epoch, MoverId, Nanos, ShardId, VolumeId};
use crate::runtime::messages::{PeerState, ToPoller};
use crate::runtime::plan::{self, Start};

/// How much longer than the one before it each further member waits before it proposes, in
/// nanoseconds: the first one mostly does it alone.
const RANK_NS: u64 = 50_000_000;

/// How much longer than a member that was heard one may be silent that has just joined, in nanoseconds.
const MEET_NS: u64 = 10_000_000_000;
/// Why a member whose links are silent is to be excluded.
const SILENT: &str = "it is not heard";

/// What this mover knows of its site's membership.
#[derive(Debug)]
pub(in crate::control) struct Site {
    /// What was agreed last; where the membership is fixed, what the configuration says.
    pub(in crate::control) record: SiteRecord,
    /// This life of this mover.
    life: u64,
    /// The lives that are members.
    pub(super) lives: BTreeMap<MoverId, u64>,
    /// The version of the record in the store that was acted upon.
    revision: Revision,
    start: Start,
    /// By poller: the latest epoch in which it is whole.
    whole: Vec<Epoch>,
    told_whole: Epoch,
    /// When the present epoch began here; none before the first turn.
    entered_at: Option<Nanos>,
    /// Since when any member is to be excluded.
    failing_since: Option<Nanos>,
    pub(super) fences: Vec<ToFence>,
}

impl Site {
    pub(super) fn new(record: SiteRecord, life: u64, start: Start, pollers: usize) -> Self {
        Self {
            record,
            life,
            lives: BTreeMap::new(),
            revision: Revision(0),
            start,
            whole: vec![Epoch(0); pollers],
            told_whole: Epoch(0),
            entered_at: None,
            failing_since: None,
            fences: Vec::new(),
        }
    }
}

impl Driver {
    /// Acts upon the record, and proposes the next one if that is needed.
    pub(super) fn turn_membership(&mut self, now: Nanos) {
        if self.cluster.fixed().is_some() {
            return;
        }
        self.site.entered_at.get_or_insert(now);
        let revision = self.cluster.known().revision;
        if revision != self.site.revision
            && let Some(record) = self.cluster.record().cloned()
        {
            self.site.revision = revision;
            self.recorded(now, &record);
        }
        if self.site.revision == revision {
            self.release_fenced(now);
        }
        let quiet = self.stopping == Stopping::No && self.failure.is_none();
        if quiet && self.site.revision == revision {
            self.look_for_failures(now);
        }
    }

    /// The site has agreed on `stored`.
    fn recorded(&mut self, now: Nanos, stored: &StoredRecord) {
        let me = MoverId(self.mover.mover.id);
        if stored.life(me) != Some(self.site.life) {
            let reason = match stored.excluded.get(&me) {
                Some(why) => {
                    format!("the others excluded it in epoch {}: {}", why.epoch, why.reason)
                }
                None => "it is no member of its site any more".to_owned(),
            };
            let why = stored.excluded.get(&me).map(|why| why.reason.as_str());
            let asked = why.is_some_and(|why| [DRAINED, REMOVED].contains(&why));
            return self.excluded_from_site(now, reason, asked);
        }
        let next = stored.agreed();
        let lives = stored.members.iter();
        self.site.lives = lives.filter_map(|(id, m)| Some((*id, m.incarnation?))).collect();
        if next.epoch == self.site.record.epoch && next != self.site.record {
            self.tell_plan(now, &next);
            self.site.record = next;
            let record = Arc::new(self.site.record.clone());
            self.send_all(|| ToPoller::Planned { record: Arc::clone(&record) });
        }
        if stored.epoch <= self.site.record.epoch {
            return;
        }
        let next = stored.agreed();
        self.tell_change(now, stored, &next);
        let engine = plan::engine(&self.mover, &self.plan.topology, &self.site.start, &next);
        let before = std::mem::replace(&mut self.site.record, next);
        let record = Arc::new(self.site.record.clone());
        self.send_all(|| ToPoller::Enter {
            record: Arc::clone(&record),
            engine: Box::new(engine.clone()),
        });
        self.site.failing_since = None;
        self.site.entered_at = Some(now);
        let moved = record.owners.iter().filter(|(id, owner)| before.owner(*id) != Some(*owner));
        let moved: Vec<VolumeId> = moved.map(|(id, _)| *id).collect();
        self.tell_owners(&moved);
    }

    fn tell_change(&mut self, now: Nanos, stored: &StoredRecord, next: &SiteRecord) {
        let (before, epoch) = (self.site.record.members.clone(), next.epoch.0);
        for left in before.iter().filter(|id| !next.members.contains(id)) {
            let reason = stored.excluded.get(left).map_or("", |why| why.reason.as_str());
            let message =
                format!("epoch {epoch}: {} is excluded: {reason}", self.mover_name(*left));
            self.event(now, EventLevel::Warning, "excluded", None, message);
        }
        for came in next.members.iter().filter(|id| !before.contains(id)) {
            let message = format!("epoch {epoch}: {} takes part", self.mover_name(*came));
            self.event(now, EventLevel::Info, "joined", None, message);
        }
        if next.coordinator != self.site.record.coordinator {
            let name = self.mover_name(next.coordinator.mover);
            let message = format!("epoch {epoch}: {name} runs the boundaries");
            self.event(now, EventLevel::Info, "coordinator", None, message);
        }
        let owner = |id: &VolumeId| self.site.record.owner(*id);
        let moved: Vec<(VolumeId, ShardId)> =
            next.owners.iter().filter(|(id, to)| owner(id) != Some(*to)).copied().collect();
        for (volume, to) in moved {
            let (group, name) = self.volume_name(volume);
            let group = self.group_name(group);
            let message =
                format!("epoch {epoch}: {} is responsible for {name}", self.mover_name(to.mover));
            self.event(now, EventLevel::Info, "assignment", group.as_deref(), message);
        }
    }

    /// Hosts are told of the paths through this mover to `volumes`.
    pub(super) fn tell_owners(&mut self, volumes: &[VolumeId]) {
        let me = MoverId(self.mover.mover.id);
        for volume in volumes {
            let state = match self.site.record.owner(*volume) {
                Some(owner) if owner.mover == me => PathState::Optimized,
                _ => PathState::NonOptimized,
            };
            self.paths.push((*volume, state));
        }
    }

    /// Others have taken over what this mover had. It ends at once, without a word to its hosts, which
    /// go to other paths; started again, it joins the site anew.
    fn excluded_from_site(&mut self, now: Nanos, reason: String, asked: bool) {
        let level = if asked { EventLevel::Info } else { EventLevel::Error };
        self.event(now, level, "excluded", None, reason.clone());
        self.stopping = Stopping::Ended(Outcome::Excluded { reason, asked });
    }

    /// A poller is whole in `epoch`; when all are, the other members are told.
    pub(super) fn whole(&mut self, shard: ShardId, epoch: Epoch) {
        if let Some(of_poller) = self.site.whole.get_mut(usize::from(shard.poller)) {
            *of_poller = epoch;
        }
        let all = self.site.whole.iter().copied().min().unwrap_or(Epoch(0));
        if all > self.site.told_whole && self.cluster.fixed().is_none() {
            self.site.told_whole = all;
            self.cluster.tell_whole(all);
        }
    }

    /// Members that do not take part any more, with the reason.
    fn failing(&self, now: Nanos) -> Vec<(MoverId, &'static str)> {
        let me = MoverId(self.mover.mover.id);
        // Since this epoch began: whoever joined with it.
        let joined_ns = now.since(self.site.entered_at.unwrap_or(now));
        let limit_ns = MEET_NS + u64::from(self.mover.link.silence_ms_max) * 1_000_000;
        let mut failing = Vec::new();
        for mover in self.site.record.members.iter().copied().filter(|mover| *mover != me) {
            let states = || {
                let links = self.board.links.iter().filter(|((_, peer), _)| peer.mover == mover);
                links.map(|(_, link)| link.state)
            };
            let reason = if self.cluster.has_ended(mover) {
                "it has started again"
            } else if self.cluster.has_left(mover) {
                "it was stopped"
            } else if states().any(|state| state == PeerState::Silent) {
                SILENT
            } else if !states().any(|state| state == PeerState::Up) && !self.cluster.is_alive(mover)
            {
                "it did not come up"
            } else if !states().any(|state| state == PeerState::Up) && joined_ns > limit_ns {
                NEVER_MET
            } else {
                continue;
            };
            failing.push((mover, reason));
        }
        failing
    }

    fn look_for_failures(&mut self, now: Nanos) {
        let failing = self.failing(now);
        if failing.is_empty() {
            self.site.failing_since = None;
            self.faults.remove("membership");
            return;
        }
        let since = *self.site.failing_since.get_or_insert(now);
        // One that is cut off from everybody sees one after the other fall silent: with all of them it
        // has to wait for their leases, with the first alone it would exclude a healthy one.
        let unheard = failing.iter().any(|(_, reason)| *reason == SILENT);
        let others = self.site.record.members.len() > failing.len() + 1;
        let settles =
            if unheard && others { 2 * u64::from(self.mover.link.heartbeat_ms) } else { 0 };
        let failed: Vec<MoverId> = failing.iter().map(|(mover, _)| *mover).collect();
        let me = MoverId(self.mover.mover.id);
        let others = self.site.record.members.iter();
        let rank = others.filter(|mover| !failed.contains(mover)).position(|mover| *mover == me);
        if now.since(since) < settles * 1_000_000 + rank.unwrap_or(0) as u64 * RANK_NS {
            return;
        }
        let wait = self.cluster.to_wait_for(&failed);
        if !wait.is_empty() {
            let names: Vec<String> = wait.iter().map(|mover| self.mover_name(*mover)).collect();
            let fault = format!(
                "{} failed, more than there are spare copies; it is waited until the cluster store \
                 does not count them as alive any more",
                names.join(", ")
            );
            self.faults.insert("membership", fault);
            return;
        }
        let unix_ms = self.board.unix_ms(now);
        let topology = &self.plan.topology;
        let pollers = |mover| topology.pollers_of(mover);
        self.cluster.exclude(&failed, failing[0].1, pollers, unix_ms);
    }

    pub(super) fn mover_name(&self, id: MoverId) -> String {
        self.plan.topology.name(id).map_or_else(|| id.to_string(), str::to_owned)
    }
}
