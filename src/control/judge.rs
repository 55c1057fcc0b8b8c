//! How a group is, from what this mover knows of it; and everything that is not as it should be.
//!
//! The rule behind all of it (invariant 10): health is shown only while there is proof of it. Sets
//! that do not advance, a peer that is not heard, a poller that does not answer are faults even
//! when nobody reported one.

use super::board::{Board, GroupBoard};
use super::history::History;
use super::model::GroupState;
use crate::config::{Mover, Role};
use crate::journal::Room;
use crate::proto::command::SetState;
use crate::proto::membership::SiteRecord;
use crate::proto::message::BrokenReason;
use crate::proto::types::{MoverId, Nanos, SetId, ShardId};
use crate::runtime::messages::PeerState;
use crate::runtime::plan::Topology;

/// Sets may stand still for three periods, and never less than this, before it is said.
const STILL_NS_MIN: u64 = 2_000_000_000;
/// How long movers that start together may take to meet.
const MEET_NS: u64 = 10_000_000_000;
/// How long the secondary may take to apply a set before it is said.
const APPLY_NS_MIN: u64 = 5_000_000_000;

/// A group's state, with the reason in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The state.
    pub state: GroupState,
    /// Why, for people.
    pub reason: String,
    /// Whether it is as it should be.
    pub healthy: bool,
}

/// What a judgement is made from.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The configuration.
    pub mover: &'a Mover,
    /// Who is where.
    pub topology: &'a Topology,
    /// What the primary site has agreed on.
    pub site: &'a SiteRecord,
    /// What is known.
    pub board: &'a Board,
    /// Now.
    pub now: Nanos,
}

/// The words for a reason that a group cannot form sets.
#[must_use]
pub fn broken_words(reason: BrokenReason) -> &'static str {
    match reason {
        BrokenReason::MoverRestarted => {
            "a primary mover lost its memory with updates that the secondary had not confirmed"
        }
        BrokenReason::BaseWriteFailed => {
            "a base write failed, so what the medium holds there is unknown"
        }
        BrokenReason::DigestMismatch => {
            "what the secondary received of a set does not match the set's manifest"
        }
        BrokenReason::MoversLost => {
            "more primary movers failed at once than the group has spare copies; what only they \
             held is lost"
        }
    }
}

impl Evidence<'_> {
    /// The state of `group`.
    #[must_use]
    pub fn group(&self, group: &GroupBoard) -> Verdict {
        if let Some(broken) = self.broken(group) {
            return sick(GroupState::Tracking, broken);
        }
        match self.board.role {
            Role::Primary => self.at_primary(group),
            Role::Secondary => self.at_secondary(group),
        }
    }

    /// Why the group cannot form sets, if it cannot.
    fn broken(&self, group: &GroupBoard) -> Option<String> {
        let seen = self.board.pollers.iter().find_map(|poller| {
            let snapshot = poller.snapshot.as_ref()?;
            let shards = snapshot.primary.iter().flat_map(|primary| &primary.groups);
            shards.filter(|view| view.id == group.id).find_map(|view| view.broken)
        });
        let seen = seen.or_else(|| group.coordinator.as_ref().and_then(|view| view.broken));
        let noted = group.resync.as_ref().map(|mark| mark.reason);
        // A failed base write makes a range doubtful; sets go on.
        let reason = seen.or(noted.filter(|r| *r != BrokenReason::BaseWriteFailed))?;
        Some(format!(
            "{}; no sets are formed until it is resynchronised, and the secondary stays at its last \
             consistent point",
            broken_words(reason)
        ))
    }

    fn at_primary(&self, group: &GroupBoard) -> Verdict {
        let limit = still_ns(group);
        if group.open == SetId(0) {
            let reason = match self.waited_for(group) {
                Some(names) => format!("no set has been opened yet; {names} has not greeted"),
                None => "no set has been opened yet; the coordinator waits for all movers of the \
                         primary site"
                    .to_owned(),
            };
            return sick(GroupState::InitialCopy, reason);
        }
        let secondary = self.unheard(Role::Secondary);
        let owed = group.history.oldest_pending(SetState::Received);
        let owed = owed.filter(|(set, _)| *set > group.confirmed);
        let age = |since_ns: u64| self.board.unix_ns(self.now).saturating_sub(since_ns);
        let overdue = owed.filter(|(_, cut)| age(*cut) > limit);
        if !secondary.is_empty() {
            let reason = format!("{} is not heard; updates are kept here", secondary.join(", "));
            return sick(GroupState::Buffering, reason);
        }
        if let Some((set, cut)) = overdue {
            let reason = format!(
                "set {} was cut {} ago and the secondary has not confirmed it",
                set.0,
                span(age(cut))
            );
            return sick(GroupState::Buffering, reason);
        }
        let still = self.now.since(group.open_since);
        if still > limit {
            let waits = self.waited_for(group);
            let waits = waits.map(|names| format!("; {names} has not switched"));
            let reason = format!(
                "set {} has been open for {}, with a period of {}{}",
                group.open.0,
                span(still),
                span(group.period_ns),
                waits.unwrap_or_default()
            );
            return sick(GroupState::Buffering, reason);
        }
        if group.confirmed == SetId(0) {
            let reason = "the secondary has not confirmed a first set yet".to_owned();
            return sick(GroupState::InitialCopy, reason);
        }
        well("sets are formed and confirmed")
    }

    /// Why nothing more can be stored here, if so.
    fn journal_trouble(&self) -> Option<String> {
        self.board.pollers.iter().find_map(|poller| {
            let journal = poller.snapshot.as_ref()?.journal?;
            if journal.failed {
                return Some(format!(
                    "the set journal of poller {} failed to write: nothing is stored any more; see \
                     to its device and start the mover again",
                    poller.shard.poller
                ));
            }
            Room::is_full(journal.capacity_bytes, journal.used_bytes).then(|| {
                format!(
                    "the set journal of poller {} is full ({} of {} MiB): one set is larger than it \
                     was made for; make journal.size_mib at least 2.5 times the arenas of all \
                     primary movers",
                    poller.shard.poller,
                    journal.used_bytes >> 20,
                    journal.capacity_bytes >> 20
                )
            })
        })
    }

    fn at_secondary(&self, group: &GroupBoard) -> Verdict {
        if let Some(reason) = self.journal_trouble() {
            return sick(GroupState::Buffering, reason);
        }
        // A primary mover that is gone may have been excluded there, which is not known here: sets that
        // go on being formed and committed are the proof that nothing of it is missing.
        let primary = self.unheard(Role::Primary);
        let missing = format!("{} is not heard; what it holds is not here", primary.join(", "));
        if !primary.is_empty() && (self.all_unheard(&primary) || group.stored() == SetId(0)) {
            let state = match group.stored() {
                SetId(0) => GroupState::InitialCopy,
                _ => GroupState::Buffering,
            };
            return sick(state, missing);
        }
        if group.stored() == SetId(0) {
            return sick(GroupState::InitialCopy, "no set has been received yet".to_owned());
        }
        // Only the coordinator hears of every commit. Others see their own shards' sets, and every
        // shard stores every set.
        let (what, since) = match group.secondary {
            Some(_) => ("committed", group.confirmed_since),
            None => ("stored here", group.shards_stored.since),
        };
        let still = self.now.since(since);
        if still > still_ns(group) {
            let mut reason = format!("no further set was {what} for {}", span(still));
            if !primary.is_empty() {
                reason = format!("{reason}; {missing}");
            }
            return sick(GroupState::Buffering, reason);
        }
        if let Some(failure) = &group.apply_failure {
            return sick(GroupState::Consistent, format!("applying is held up: {failure}"));
        }
        let paused = group.pause_asked || group.secondary.as_ref().is_some_and(|view| view.paused);
        if paused {
            return well("sets are received; applying is paused on request");
        }
        let unapplied = group.history.oldest_pending(SetState::Applied);
        let limit = still_ns(group).max(APPLY_NS_MIN);
        let age = |cut: u64| self.board.unix_ns(self.now).saturating_sub(cut);
        if let Some((set, cut)) = unapplied.filter(|(set, _)| *set > group.applied)
            && age(cut) > limit
        {
            let reason =
                format!("set {} was cut {} ago and is not applied yet", set.0, span(age(cut)));
            return sick(GroupState::Consistent, reason);
        }
        well("sets are received and applied")
    }

    /// Whether a mover takes part in its site, as far as this one knows.
    #[must_use]
    pub fn takes_part(&self, mover: MoverId) -> bool {
        let own_site = self.topology.role_of(mover) == Some(self.board.role);
        let elected = self.board.role == Role::Primary && own_site;
        !elected || self.site.members.contains(&mover)
    }

    /// Whether no primary mover is heard, `unheard` being those that are not and should be.
    fn all_unheard(&self, unheard: &[String]) -> bool {
        let is_primary = |mover| self.topology.role_of(mover) == Some(Role::Primary);
        let mut primary = self.board.links.iter().filter(|((_, peer), _)| is_primary(peer.mover));
        !unheard.is_empty() && primary.all(|(_, link)| link.state != PeerState::Up)
    }

    /// Whether a mover that was never heard is missed. One that is no founder of the other site may join
    /// that one day.
    #[must_use]
    pub fn is_expected(&self, mover: MoverId) -> bool {
        let own_site = self.topology.role_of(mover) == Some(self.board.role);
        own_site || self.topology.is_founder(mover)
    }

    /// Movers of a site of which no link, or not every link, is up. Movers that start together
    /// get some time to meet.
    #[must_use]
    pub fn unheard(&self, role: Role) -> Vec<String> {
        let mut movers: Vec<MoverId> = self
            .board
            .links
            .iter()
            .filter(|((_, peer), _)| self.topology.role_of(peer.mover) == Some(role))
            .filter(|((_, peer), _)| self.takes_part(peer.mover))
            .filter(|((_, peer), link)| match link.state {
                PeerState::Up => false,
                PeerState::Silent => true,
                PeerState::Unknown => self.is_expected(peer.mover),
            })
            .map(|((_, peer), _)| peer.mover)
            .collect();
        movers.sort();
        movers.dedup();
        movers.iter().map(|id| self.name(*id)).collect()
    }

    /// Whether every update acknowledged here has a second holder as long as no more than one
    /// mover fails: enough copies are asked for, and those who may hold them are all heard.
    #[must_use]
    pub fn protected(&self, group: &GroupBoard) -> bool {
        let copies = self.mover.groups[group.index].copies;
        copies >= 2 && self.broken(group).is_none() && self.unheard(Role::Primary).is_empty()
    }

    /// Everything that is not as it should be, as sentences.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for poller in &self.board.pollers {
            if !poller.started {
                faults.push(format!("poller {} has not started", poller.shard));
            } else if let Some(snapshot) = &poller.snapshot
                && self.now.since(snapshot.at) > STILL_NS_MIN
                && !poller.stopped
            {
                let silence = span(self.now.since(snapshot.at));
                faults.push(format!("poller {} has not answered for {silence}", poller.shard));
            }
        }
        for role in [Role::Primary, Role::Secondary] {
            for name in self.unheard(role) {
                let starting = self.now.0 < MEET_NS;
                let word = if starting { "has not been met yet" } else { "is not heard" };
                faults.push(format!("mover {name} {word}"));
            }
        }
        for group in &self.board.groups {
            let name = &group.name;
            let verdict = self.group(group);
            if !verdict.healthy {
                faults.push(format!("group {name}: {}", verdict.reason));
            }
            if self.board.role == Role::Primary && self.mover.groups[group.index].copies < 2 {
                faults.push(format!("group {name} is not protected: one mover holds one copy"));
            }
            if let Some(mark) = &group.resync
                && mark.reason == BrokenReason::BaseWriteFailed
            {
                faults.push(format!(
                    "group {name} must be resynchronised: {} ({})",
                    broken_words(mark.reason),
                    mark.detail
                ));
            }
        }
        faults
    }

    fn waited_for(&self, group: &GroupBoard) -> Option<String> {
        let view = group.coordinator.as_ref()?;
        let names: Vec<String> = view.waiting_for.iter().map(|shard| self.shard(*shard)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    fn shard(&self, shard: ShardId) -> String {
        format!("poller {} of {}", shard.poller, self.name(shard.mover))
    }

    fn name(&self, id: MoverId) -> String {
        self.topology.name(id).map_or_else(|| id.to_string(), str::to_owned)
    }
}

impl GroupBoard {
    /// The newest set that this secondary mover is known to hold in full.
    #[must_use]
    pub fn stored(&self) -> SetId {
        self.confirmed.max(self.stored_by_shards())
    }
}

/// How long sets may stand still: three periods, where the period may have been changed at the
/// coordinator without this mover knowing, so that the longest recent interval counts too.
fn still_ns(group: &GroupBoard) -> u64 {
    let period = match group.coordinator {
        Some(_) => group.period_ns,
        None => {
            let seen_ns = longest_interval_ns(&group.history).max(group.shards_stored.took_ns);
            group.period_ns.max(seen_ns)
        }
    };
    period.saturating_mul(3).max(STILL_NS_MIN)
}

/// The longest time between two cuts among the last few sets.
fn longest_interval_ns(history: &History) -> u64 {
    let cuts: Vec<u64> = history.newest(8).filter_map(|set| set.cut_ns).collect();
    cuts.windows(2).map(|pair| pair[0].saturating_sub(pair[1])).max().unwrap_or(0)
}

fn sick(state: GroupState, reason: String) -> Verdict {
    Verdict { state, reason, healthy: false }
}

fn well(reason: &str) -> Verdict {
    Verdict { state: GroupState::Consistent, reason: reason.to_owned(), healthy: true }
}

/// A length of time for people.
#[must_use]
pub fn span(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        1_000_000_000..120_000_000_000 => format!("{:.1} s", ns as f64 / 1e9),
        120_000_000_000..7_200_000_000_000 => format!("{} min", ns / 60_000_000_000),
        _ => format!("{} h", ns / 3_600_000_000_000),
    }
}
