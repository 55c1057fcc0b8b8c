//! Commits of sets in the journal: appended in order, made durable, moved, retired.
//!
//! A set is committed when all shards have stored it. Its commit is needed until all have applied
//! the set after it; one that alone holds the oldest part of the journal is written anew.

use super::SecondaryCoordinator;
use crate::proto::command::{Command, JournalEntry, JournalPos, Report, SetState, Token};
use crate::proto::message::Message;
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{Epoch, GroupId, Nanos, SetId};
use alloc::vec::Vec;

/// Marks the coordinator's tokens among those of its poller.
const TOKEN_MARK: u64 = 1 << 63;
/// Of these, flushes.
const FLUSH_MARK: u64 = 1 << 62;
/// A commit that lies so many commits behind the newest is written anew, so that an idle group
/// does not hold the journal.
const COMMIT_AGE_MAX: u64 = 256;

/// Whether a token came from a coordinator.
pub(in crate::proto::secondary) const fn owns(token: Token) -> bool {
    token.0 & TOKEN_MARK != 0
}

/// A committed set of which something is still asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    pub(super) set: SetId,
    pub(super) cut_time_ns: u64,
    /// Its turn among commits; 0: from before the start.
    ordinal: u64,
    /// Where it is needed in the journal, once known.
    position: Option<JournalPos>,
    /// Being written anew nearer to the end: turn, position.
    moving: Option<(u64, Option<JournalPos>)>,
}

impl SecondaryCoordinator {
    /// Takes a commit from the journal, oldest first.
    pub fn recover_commit(
        &mut self,
        position: JournalPos,
        group: GroupId,
        set: SetId,
        cut_time_ns: u64,
        primary_epoch: Epoch,
    ) {
        self.primary_epoch = self.primary_epoch.max(primary_epoch);
        let Some(group) = self.groups.get_mut(&group) else { return };
        let position = Some(position);
        let commit = Commit { set, cut_time_ns, ordinal: 0, position, moving: None };
        // A commit may have been written anew.
        group.commits.retain(|commit| commit.set != set);
        group.commits.push_back(commit);
        group.committed = group.committed.max(set);
        group.appended = group.committed;
    }

    /// Commits what all shards have stored, in the order of sets.
    pub(super) fn commit(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(stored) = group.stored_everywhere() else { return };
        let before = group.appended;
        // Invariant of a scarce journal: see `secondary`.
        let scarce = self.scarce_shards.contains(&true);
        // Sets with payloads of later updates are no points in time: one commit covers them all (G12).
        let merged = group.not_before();
        let last = match group.applied_everywhere() {
            Some(applied) if scarce => stored.min(applied.next().max(merged)),
            _ => stored,
        };
        while group.appended < last {
            let set = group.appended.next().max(merged);
            let count = (set.0 - group.appended.0) as usize;
            let known = group.pending.iter().take(count).filter(|set| set.facts.is_some()).count();
            if set > last || known < count {
                break;
            }
            let cut_time_ns = group.pending[count - 1].cut_time_ns;
            self.ordinal += 1;
            let ordinal = self.ordinal;
            let primary_epoch = self.primary_epoch;
            let entry = JournalEntry::Commit { group: id, set, cut_time_ns, primary_epoch };
            let token = Token(TOKEN_MARK | ordinal);
            self.commands.push_back(Command::Journal { entry, token });
            let commit = Commit { set, cut_time_ns, ordinal, position: None, moving: None };
            group.commits.push_back(commit);
            group.pending.drain(..count);
            group.appended = set;
        }
        if group.appended == before {
            return;
        }
        self.flush();
        if self.config.sabotage.is(Sabotage::ConfirmBeforeDurable) {
            self.settle(id, u64::MAX);
        }
    }

    fn flush(&mut self) {
        let token = Token(TOKEN_MARK | FLUSH_MARK | self.ordinal);
        self.commands.push_back(Command::JournalFlush { token });
    }

    /// See [`crate::proto::secondary::Secondary::handle_journaled`].
    pub fn handle_journaled(&mut self, _now: Nanos, token: Token, position: JournalPos) {
        let ordinal = token.0 & !TOKEN_MARK;
        let commits = self.groups.values_mut().flat_map(|group| group.commits.iter_mut());
        for commit in commits {
            if commit.ordinal == ordinal {
                commit.position = Some(position);
            }
            if let Some((turn, moved)) = &mut commit.moving
                && *turn == ordinal
            {
                *moved = Some(position);
            }
        }
    }

    /// See [`crate::proto::secondary::Secondary::handle_journal_durable`].
    pub fn handle_journal_durable(&mut self, _now: Nanos, token: Token) {
        self.durable = self.durable.max(token.0 & !(TOKEN_MARK | FLUSH_MARK));
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.settle(id, self.durable);
        }
        self.retire();
    }

    /// See [`crate::proto::secondary::Secondary::handle_journal_room`].
    pub fn handle_journal_room(&mut self, scarce: Option<JournalPos>) {
        self.scarce = scarce;
        self.retire();
    }

    /// [`Self::commit`] for all groups.
    pub(super) fn commit_all(&mut self) {
        let ids: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in ids {
            self.commit(id);
        }
    }

    /// Commits up to turn `durable` are durable.
    fn settle(&mut self, id: GroupId, durable: u64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = group.committed;
        for commit in &group.commits {
            if commit.ordinal <= durable && commit.set > group.committed {
                let first = group.committed.next();
                group.committed = commit.set;
                let state = SetState::Received;
                for set in (first.0..=commit.set.0).map(SetId) {
                    let report = Report::SetState { group: id, set, state };
                    self.commands.push_back(Command::Report(report));
                }
            }
        }
        if group.committed > before {
            let message = Message::Confirmed { group: id, set: group.committed };
            self.tell_primary(message);
            self.apply(id);
        }
    }

    /// From where on the journal is needed for commits; none when there are none.
    pub(in crate::proto::secondary) fn needs(&self) -> Option<JournalPos> {
        let commits = self.groups.values().flat_map(|group| &group.commits);
        commits.filter_map(|commit| commit.position).min()
    }

    /// Says from where the journal is still needed, and moves commits that hold it.
    pub(super) fn retire(&mut self) {
        let mut floor: Option<JournalPos> = None;
        let mut moving = false;
        for group in self.groups.values_mut() {
            let alone = group.commits.len() == 1;
            let Some(front) = group.commits.front_mut() else { continue };
            if let Some((ordinal, Some(position))) = front.moving
                && ordinal <= self.durable
            {
                (front.ordinal, front.position, front.moving) = (ordinal, Some(position), None);
            }
            if let Some(position) = front.position {
                floor = Some(floor.map_or(position, |f| f.min(position)));
            }
            let in_the_way = front.position.is_some() && front.position < self.scarce;
            let old = in_the_way || self.ordinal - front.ordinal > COMMIT_AGE_MAX;
            if alone && old && front.moving.is_none() {
                self.ordinal += 1;
                front.moving = Some((self.ordinal, None));
                let (set, cut_time_ns) = (front.set, front.cut_time_ns);
                let primary_epoch = self.primary_epoch;
                let entry =
                    JournalEntry::Commit { group: group.id, set, cut_time_ns, primary_epoch };
                let token = Token(TOKEN_MARK | self.ordinal);
                self.commands.push_back(Command::Journal { entry, token });
                moving |= in_the_way;
            }
        }
        if moving {
            self.flush();
        }
        if let Some(before) = floor
            && before > self.retired
        {
            self.retired = before;
            self.commands.push_back(Command::JournalRetire { before });
        }
    }
}
