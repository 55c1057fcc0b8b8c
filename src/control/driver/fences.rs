//! Volumes that are taken over here wait until nobody else can write their bases (invariant 4, G13).
//!
//! A poller asks; the control thread has the base fenced ([`Driver::next_fence`], [`Driver::fenced`]), and
//! answers the poller. Volumes do not wait for one another, and the control thread for none of them.
//!
//! **The record is read anew between registration and answer.** A mover that was excluded while it slept, before it
//! had registered at a base, was not shut out there: there was nothing to remove. So it must not take
//! its own registration for a right to write. A record that was read after the registration and
//! still has this life as a member settles it: whoever excludes it later finds its key.

use std::collections::BTreeMap;

use super::{Driver, PathState};
use crate::control::model::{EventLevel, Fencing, FencingState};
use crate::proto::command::Token;
use crate::proto::types::{MoverId, Nanos, ShardId, VolumeId};
use crate::runtime::messages::ToPoller;

/// Between two attempts to fence a base that could not be fenced, in nanoseconds.
const AGAIN_NS: u64 = 500_000_000;

/// A base that is to be fenced before a volume is written.
#[derive(Debug)]
pub(super) struct ToFence {
    shard: ShardId,
    volume: VolumeId,
    token: Token,
    since: Nanos,
    stage: Stage,
    /// Why it did not work the last time.
    failed: Option<String>,
    /// What does not answer.
    hangs: Option<String>,
}

#[derive(Debug)]
enum Stage {
    /// To be begun at this time.
    Due(Nanos),
    /// Everybody but these lives is being shut out. The record is asked for as soon as this mover has
    /// registered.
    UnderWay { lives: BTreeMap<MoverId, u64>, read: Option<u64> },
    /// They are out; it is waited for the record as it is after that.
    Confirming { lives: BTreeMap<MoverId, u64>, read: u64, fencing: Option<Fencing> },
}

impl Driver {
    /// A poller takes a volume over and wants its base fenced. That holds until it is done, also when
    /// further epochs begin meanwhile: it is asked for once.
    pub(super) fn fence_wanted(
        &mut self,
        now: Nanos,
        shard: ShardId,
        volume: VolumeId,
        token: Token,
    ) {
        let stage = Stage::Due(now);
        let fence = ToFence { shard, volume, token, since: now, stage, failed: None, hangs: None };
        self.site.fences.push(fence);
        self.show_waiting(volume);
    }

    /// Whether a volume waits for its fence: the next turn is to come soon.
    #[must_use]
    pub fn is_fencing(&self) -> bool {
        !self.site.fences.is_empty()
    }

    /// The next volume whose base is to be fenced, with the lives that may go on using it, those of the
    /// latest epoch; to be answered with [`Self::fenced`]. Each volume once at a time.
    pub fn next_fence(&mut self, now: Nanos) -> Option<(VolumeId, BTreeMap<MoverId, u64>)> {
        let under_way = |fence: &ToFence| matches!(fence.stage, Stage::UnderWay { .. });
        let fences = &self.site.fences;
        let due = fences.iter().position(|fence| {
            let mut same = fences.iter().filter(|other| other.volume == fence.volume);
            matches!(fence.stage, Stage::Due(at) if at <= now) && !same.any(under_way)
        })?;
        let lives = self.site.lives.clone();
        let fence = &mut self.site.fences[due];
        fence.stage = Stage::UnderWay { lives: lives.clone(), read: None };
        Some((fence.volume, lives))
    }

    /// This mover has registered at the base of `volume`: the record as it is from now on counts.
    pub fn fence_joined(&mut self, volume: VolumeId) {
        let mut fences = self.site.fences.iter_mut().filter(|fence| fence.volume == volume);
        let read = fences.find_map(|fence| match &mut fence.stage {
            Stage::UnderWay { read, .. } => Some(read),
            _ => None,
        });
        if let Some(read) = read {
            read.get_or_insert_with(|| self.cluster.read_anew());
        }
    }

    /// A base was fenced, with how many others removed, or why not: then it is tried again, and the volume
    /// stays closed. `fencing` is how the base is kept from others now.
    pub fn fenced(
        &mut self,
        now: Nanos,
        volume: VolumeId,
        done: Result<usize, String>,
        fencing: Option<Fencing>,
    ) {
        let (group, name) = self.volume_name(volume);
        let mut fences = self.site.fences.iter_mut();
        let Some((fence, lives, read)) = fences.find_map(|fence| match &mut fence.stage {
            Stage::UnderWay { lives, read } if fence.volume == volume => {
                let (lives, read) = (std::mem::take(lives), *read);
                Some((fence, lives, read))
            }
            _ => None,
        }) else {
            return;
        };
        fence.hangs = None;
        match done {
            Ok(removed) => {
                let us = now.since(fence.since) / 1000;
                tracing::info!(volume = %name, removed, us, "the base is fenced");
                let read = read.unwrap_or_else(|| self.cluster.read_anew());
                fence.stage = Stage::Confirming { lives, read, fencing };
            }
            Err(error) => {
                fence.stage = Stage::Due(now.after(AGAIN_NS));
                if fence.failed.as_ref() != Some(&error) {
                    fence.failed = Some(error.clone());
                    let message = format!("{name} stays closed: {error}; it is tried again");
                    let group = self.group_name(group);
                    let level = EventLevel::Error;
                    self.event(now, level, "take-over", group.as_deref(), message);
                    self.paths.push((volume, PathState::Inaccessible));
                }
                self.show_waiting(volume);
            }
        }
    }

    /// Fencing of a base does not get on; `what` says why. It goes on, and [`Self::fenced`] comes still.
    pub fn fence_hangs(&mut self, now: Nanos, volume: VolumeId, what: String) {
        let (group, name) = self.volume_name(volume);
        let group = self.group_name(group);
        let message = format!("{name} stays closed: {what}");
        self.event(now, EventLevel::Warning, "take-over", group.as_deref(), message);
        let of_volume = self.site.fences.iter_mut().filter(|fence| fence.volume == volume);
        of_volume.for_each(|fence| fence.hangs = Some(what.clone()));
        self.show_waiting(volume);
    }

    /// Lets pollers write whose bases are fenced, now that what is known of the site is as it was after
    /// that. This life is a member; otherwise it would have ended.
    pub(super) fn release_fenced(&mut self, now: Nanos) {
        let read = self.cluster.known().read;
        let mut at = 0;
        while at < self.site.fences.len() {
            let left = match &self.site.fences[at].stage {
                Stage::Confirming { lives, read: wanted, .. } if *wanted <= read => {
                    let stays =
                        |(id, life): (&MoverId, &u64)| self.site.lives.get(id) == Some(life);
                    !lives.iter().all(stays)
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            if left {
                // Another epoch has begun meanwhile, and somebody else is to be shut out, too.
                self.site.fences[at].stage = Stage::Due(now);
                at += 1;
                continue;
            }
            let fence = self.site.fences.remove(at);
            let Stage::Confirming { fencing, .. } = fence.stage else { continue };
            match fencing {
                Some(fencing) => self.fencing.insert(fence.volume, fencing),
                None => self.fencing.remove(&fence.volume),
            };
            let token = fence.token;
            self.send(usize::from(fence.shard.poller), ToPoller::Fenced { token });
            if fence.failed.is_some() {
                self.paths.push((fence.volume, PathState::Optimized));
            }
        }
    }

    /// Status says of `volume` since when it waits for its fence, and for what.
    fn show_waiting(&mut self, volume: VolumeId) {
        let Some(fence) = self.site.fences.iter().find(|fence| fence.volume == volume) else {
            return;
        };
        let why = fence.hangs.as_ref().or(fence.failed.as_ref());
        let reason = why.cloned().unwrap_or_else(|| "others are being shut out".to_owned());
        let key = self.fencing.get(&volume).and_then(|fencing| fencing.key.clone());
        let since_unix_ms = Some(self.board.unix_ms(fence.since));
        let fencing = Fencing { state: FencingState::Waiting, reason, key, since_unix_ms };
        self.fencing.insert(volume, fencing);
    }

    /// What keeps volumes closed that are taken over here, beyond what it mostly takes.
    pub(super) fn fence_faults(&self) -> impl Iterator<Item = String> {
        self.site.fences.iter().filter_map(|fence| {
            let why = fence.hangs.as_ref().or(fence.failed.as_ref())?;
            let (_, name) = self.volume_name(fence.volume);
            Some(format!("{name} stays closed: {why}; it is tried again"))
        })
    }
}
