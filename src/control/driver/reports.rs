//! What the pollers report: onto the board, and as events for people.

use super::{Driver, PathState};
use crate::config::Role;
use crate::control::board::PollerBoard;
use crate::control::judge::broken_words;
use crate::control::model::{EventLevel, Fencing, FencingState};
use crate::control::store::ResyncMark;
use crate::proto::command::Report;
use crate::proto::message::BrokenReason;
use crate::proto::types::{GroupId, Nanos, ShardId, VolumeId};
use crate::runtime::messages::{FromPoller, PeerState};

/// Reports taken in one turn.
const REPORTS_PER_TURN: usize = 4096;

impl Driver {
    /// Takes what the pollers have reported since the last turn.
    pub(super) fn take_reports(&mut self, now: Nanos) {
        for _ in 0..REPORTS_PER_TURN {
            let Ok(message) = self.reports.try_recv() else { break };
            match message {
                FromPoller::Started { shard } => {
                    if let Some(poller) = self.poller_mut(shard) {
                        poller.started = true;
                    }
                }
                FromPoller::Report { at, report, .. } => self.take_report(at, report),
                FromPoller::Peer { shard, peer, state } => {
                    if state == PeerState::Up && self.board.role == Role::Primary {
                        // It is not being stopped, or says so again.
                        self.board.stopping.remove(&peer.mover);
                    }
                    self.board.link(shard, peer, state, now);
                    self.tell_movers(now);
                }
                FromPoller::Whole { shard, epoch } => self.whole(shard, epoch),
                FromPoller::Fence { shard, volume, token } => {
                    self.fence_wanted(now, shard, volume, token);
                }
                FromPoller::Excluded { volume, at } => self.excluded(at, volume),
                FromPoller::Lost { shard, peer, lost } => self.lost(now, shard, peer, lost),
                FromPoller::Failed { shard, reason } => {
                    let reason = format!("poller {shard} has ended: {reason}");
                    if let Some(poller) = self.poller_mut(shard) {
                        poller.stopped = true;
                    }
                    self.failed(now, reason);
                }
                FromPoller::Stopped { shard, last } => {
                    if let Some(last) = last {
                        self.board.snapshot(last);
                    }
                    if let Some(poller) = self.poller_mut(shard) {
                        poller.stopped = true;
                    }
                }
            }
        }
    }

    fn poller_mut(&mut self, shard: ShardId) -> Option<&mut PollerBoard> {
        self.board.pollers.iter_mut().find(|poller| poller.shard == shard)
    }

    fn take_report(&mut self, at: Nanos, report: Report) {
        self.board.report(at, &report);
        match report {
            Report::Void { volume, seq, extent, status } => {
                let (group, name) = self.volume_name(volume);
                let detail = format!(
                    "volume {name}, blocks {} to {}",
                    extent.lba,
                    extent.end().saturating_sub(1)
                );
                let message = format!(
                    "the base of {name} refused update {} with status {:#x}/{:#x}; blocks {} to {} \
                     must be copied afresh",
                    seq.0,
                    status.sct,
                    status.sc,
                    extent.lba,
                    extent.end().saturating_sub(1)
                );
                let group_name = self.group_name(group);
                let kind = "base-write-failed";
                self.event(at, EventLevel::Error, kind, group_name.as_deref(), message);
                if let Some(group) = group {
                    self.require_resync(at, group, BrokenReason::BaseWriteFailed, detail);
                }
            }
            Report::Broken { group, reason } => {
                let name = self.group_name(Some(group));
                let known = self.board.group_mut(group).is_some_and(|group| group.resync.is_some());
                if !known {
                    let message = format!("no sets can be formed: {}", broken_words(reason));
                    self.event(at, EventLevel::Error, "needs-resync", name.as_deref(), message);
                }
                self.require_resync(at, group, reason, String::new());
            }
            Report::ApplyFailed { volume, set, status } => {
                let (group, name) = self.volume_name(volume);
                let message = format!(
                    "set {} cannot be applied to {name}: status {:#x}/{:#x}; it is tried again",
                    set.0, status.sct, status.sc
                );
                if let Some(group) = group.and_then(|group| self.board.group_mut(group)) {
                    group.apply_failure = Some(message.clone());
                }
                let group = self.group_name(group);
                let kind = "apply-failed";
                self.event(at, EventLevel::Warning, kind, group.as_deref(), message);
            }
            Report::ApplyPaused { group, at: set, paused } => {
                if let Some(group) = self.board.group_mut(group) {
                    group.pause_asked = paused;
                }
                let name = self.group_name(Some(group));
                let message = match paused {
                    true => format!("apply stands at the boundary after set {}", set.0),
                    false => format!("apply goes on after set {}", set.0),
                };
                self.event(at, EventLevel::Info, "apply", name.as_deref(), message);
            }
            Report::TakenOver { volume, updates, voids, .. } => {
                let (group, name) = self.volume_name(volume);
                let group = self.group_name(group);
                let message = format!(
                    "volume {name} is taken over: {updates} updates recovered, {voids} numbers void"
                );
                self.event(at, EventLevel::Warning, "take-over", group.as_deref(), message);
            }
            Report::Restored { volume } => {
                let (group, name) = self.volume_name(volume);
                let group = self.group_name(group);
                let message = format!("volume {name} is up to date here and takes updates");
                self.event(at, EventLevel::Info, "take-over", group.as_deref(), message);
            }
            Report::RestoreFailed { volume, status } => {
                let (group, name) = self.volume_name(volume);
                let group = self.group_name(group);
                let message = format!(
                    "volume {name} was taken over and cannot be brought up to date: its base says \
                     {:#x}/{:#x}; it is tried again, and hosts wait",
                    status.sct, status.sc
                );
                self.event(at, EventLevel::Error, "take-over", group.as_deref(), message);
            }
            Report::Merged { group, set, until } => {
                let name = self.group_name(Some(group));
                let message = format!(
                    "data of updates in set {} were overwritten before they were read back: sets from it \
                     to {} at most are one point in time",
                    set.0, until.0
                );
                self.event(at, EventLevel::Warning, "merged", name.as_deref(), message);
            }
            Report::Moved { volume, from, .. } => {
                if from.mover.0 == self.mover.mover.id {
                    self.paths.push((volume, PathState::NonOptimized));
                }
            }
            Report::HandedOver { volume, from, .. } => {
                self.paths.push((volume, PathState::Optimized));
                let (group, name) = self.volume_name(volume);
                let group = self.group_name(group);
                let message = format!("{name} has come here from {}", self.mover_name(from.mover));
                self.event(at, EventLevel::Info, "assignment", group.as_deref(), message);
            }
            Report::MapInForce { epoch, group, map_version } => {
                self.map_in_force(epoch, group, map_version);
            }
            Report::SetFormed { facts, .. } => self.note_load(&facts),
            Report::SetOpened { .. } | Report::Held { .. } | Report::SetState { .. } => {}
            Report::PeerUp { peer } => {
                self.board.stopping.remove(&peer.mover);
            }
            Report::PeerStopping { peer, drained } => {
                self.board.stopping.insert(peer.mover, drained);
            }
        }
    }

    /// Another mover shut this one out of a volume's base: it has taken the volume over.
    fn excluded(&mut self, at: Nanos, volume: VolumeId) {
        let (group, name) = self.volume_name(volume);
        let reason = "another mover excluded this one from its base: nothing is written there from \
                      here any more, and hosts are sent to another path; restart this mover";
        let key = self.fencing.get(&volume).and_then(|fencing| fencing.key.clone());
        let state = FencingState::Excluded;
        let fencing = Fencing { state, reason: reason.to_owned(), key, since_unix_ms: None };
        self.fencing.insert(volume, fencing);
        let group = self.group_name(group);
        let message = format!("volume {name}: {reason}");
        self.event(at, EventLevel::Error, "excluded", group.as_deref(), message);
        self.paths.push((volume, PathState::Inaccessible));
    }

    /// Whether hosts reach the volumes of `peer` through `shard`, the poller here that takes their
    /// updates.
    fn lost(&mut self, at: Nanos, shard: ShardId, peer: ShardId, lost: bool) {
        let Some(poller) = self.plan.pollers.iter().find(|poller| poller.shard == shard) else {
            return;
        };
        let volumes = poller.volumes.iter().chain(&poller.foreign);
        let volumes = volumes.map(|(g, v)| &self.mover.groups[*g].volumes[*v]);
        let record = &self.site.record;
        let of_peer = volumes.filter(|v| record.owner(VolumeId(v.id)) == Some(peer));
        let state = if lost { PathState::Inaccessible } else { PathState::NonOptimized };
        let before = self.paths.len();
        self.paths.extend(of_peer.map(|volume| (VolumeId(volume.id), state)));
        let (count, name) = (self.paths.len() - before, self.plan.topology.name(peer.mover));
        if count == 0 {
            return;
        }
        let name = name.map_or_else(|| peer.mover.to_string(), str::to_owned);
        let (level, message) = match lost {
            true => (
                EventLevel::Warning,
                format!(
                    "hosts do not reach {count} volumes of {name} by this mover: it is not heard"
                ),
            ),
            false => (
                EventLevel::Info,
                format!("hosts reach {count} volumes of {name} by this mover again"),
            ),
        };
        self.event(at, level, "path", None, message);
    }

    pub(super) fn volume_name(&self, id: VolumeId) -> (Option<GroupId>, String) {
        let named = self.mover.groups.iter().find_map(|group| {
            let volume = group.volumes.iter().find(|volume| volume.id == id.0)?;
            Some((GroupId(group.id), format!("{}/{}", group.name, volume.name)))
        });
        named.map_or_else(|| (None, id.to_string()), |(group, name)| (Some(group), name))
    }

    /// Notes that a group must be resynchronised, on the board and in the store, unless something
    /// graver is noted already.
    fn require_resync(&mut self, at: Nanos, id: GroupId, reason: BrokenReason, detail: String) {
        let since_ms = self.board.unix_ms(at);
        let mark = ResyncMark { since_ms, reason, detail };
        let Some(group) = self.board.group_mut(id) else { return };
        if group.resync.as_ref().is_some_and(|known| known.outweighs(&mark)) {
            return;
        }
        group.resync = Some(mark.clone());
        let noted = self.store.require_resync(id, &mark);
        self.stored(at, noted);
    }
}
