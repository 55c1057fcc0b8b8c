//! The recent sets of one group, as this mover came to know them (F7).
//!
//! A ring by set number. Different movers know different things of a set: the coordinator of the
//! primary site when it was cut and what is in it, a secondary mover when it was stored and
//! applied, any primary mover when it was opened. A field that this mover cannot know stays empty.
//! Times are Unix nanoseconds. Owned by the control thread.

use std::collections::VecDeque;

use crate::proto::command::SetState;
use crate::proto::message::VolumeFacts;
use crate::proto::types::SetId;

/// Sets that are retained per group.
pub const RETAINED: usize = 1024;

/// One set.
#[derive(Clone, PartialEq, Debug)]
pub struct SetRecord {
    /// Its number.
    pub id: SetId,
    /// How far it is, as far as this mover knows.
    pub state: SetState,
    /// Updates in it, voids excluded.
    pub updates: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// When it was opened.
    pub opened_ns: Option<u64>,
    /// When it was cut, by the coordinator's clock; or by this mover's when the next one opened.
    pub cut_ns: Option<u64>,
    /// Whether `cut_ns` is the coordinator's.
    pub cut_is_exact: bool,
    /// When the secondary had all of it.
    pub confirmed_ns: Option<u64>,
    /// When it was on the secondary volumes.
    pub applied_ns: Option<u64>,
    /// The longest hold of acknowledgements at its end here, nanoseconds.
    pub hold_ns: Option<u64>,
    /// What is in it, by volume; empty where this mover does not know.
    pub facts: Vec<VolumeFacts>,
}

/// The sets of one group, ascending.
#[derive(Debug, Default)]
pub struct History {
    sets: VecDeque<SetRecord>,
}

impl History {
    /// The set `id`, made when it is new; none when it is older than everything retained.
    pub fn entry(&mut self, id: SetId) -> Option<&mut SetRecord> {
        let at = match self.sets.binary_search_by_key(&id, |set| set.id) {
            Ok(at) => at,
            Err(0) if self.sets.len() == RETAINED => return None,
            Err(at) => {
                self.sets.insert(at, SetRecord::new(id));
                if self.sets.len() > RETAINED {
                    self.sets.pop_front();
                    at - 1
                } else {
                    at
                }
            }
        };
        self.sets.get_mut(at)
    }

    /// The set `id`, if it is retained.
    #[must_use]
    pub fn get(&self, id: SetId) -> Option<&SetRecord> {
        let at = self.sets.binary_search_by_key(&id, |set| set.id).ok()?;
        self.sets.get(at)
    }

    /// The newest `limit` sets, newest first.
    pub fn newest(&self, limit: usize) -> impl Iterator<Item = &SetRecord> {
        self.sets.iter().rev().take(limit)
    }

    /// A set was opened at `now_ns`: the one before was cut, as seen from here.
    pub fn opened(&mut self, id: SetId, now_ns: u64) {
        if let Some(before) = self.sets.iter_mut().rev().find(|set| set.id < id) {
            if before.cut_ns.is_none() && before.id.next() == id {
                before.cut_ns = Some(now_ns);
            }
            before.state = before.state.max(SetState::Closing);
        }
        if let Some(set) = self.entry(id) {
            set.opened_ns.get_or_insert(now_ns);
        }
    }

    /// The coordinator's word on a set: when it was cut and what it holds.
    pub fn formed(
        &mut self,
        id: SetId,
        cut_ns: u64,
        updates: u64,
        bytes: u64,
        facts: &[VolumeFacts],
    ) {
        if let Some(set) = self.entry(id) {
            set.facts = facts.to_vec();
            set.cut_ns = Some(cut_ns);
            set.cut_is_exact = true;
            set.updates = updates;
            set.bytes = bytes;
            set.state = set.state.max(SetState::InTransfer);
        }
    }

    /// Everything up to `id` reached at least `state` at `now_ns`. Returns the sets that are newly
    /// confirmed or applied by that, ascending.
    pub fn reached(&mut self, id: SetId, state: SetState, now_ns: u64) -> Vec<SetId> {
        // The set itself may never have been heard of: a mover that joins late.
        if self.entry(id).is_none() {
            return Vec::new();
        }
        let mut news = Vec::new();
        for set in self.sets.iter_mut().filter(|set| set.id <= id) {
            let new = set.state < state;
            set.state = set.state.max(state);
            if state >= SetState::Received {
                set.confirmed_ns.get_or_insert(now_ns);
            }
            if state == SetState::Applied {
                set.applied_ns.get_or_insert(now_ns);
            }
            if new {
                news.push(set.id);
            }
        }
        news
    }

    /// A set's own state, not that of those before it (closing, applying).
    pub fn state(&mut self, id: SetId, state: SetState) {
        if let Some(set) = self.entry(id) {
            set.state = set.state.max(state);
        }
    }

    /// The newest set in exactly `state`.
    #[must_use]
    pub fn newest_in(&self, state: SetState) -> Option<SetId> {
        self.sets.iter().rev().find(|set| set.state == state).map(|set| set.id)
    }

    /// The newest set that is at least in `state`.
    #[must_use]
    pub fn newest_at_least(&self, state: SetState) -> Option<&SetRecord> {
        self.sets.iter().rev().find(|set| set.state >= state)
    }

    /// How many sets are past forming and below `state`.
    #[must_use]
    pub fn pending(&self, state: SetState) -> u64 {
        let pending = |set: &&SetRecord| set.state > SetState::Forming && set.state < state;
        self.sets.iter().filter(pending).count() as u64
    }

    /// The oldest set that was cut and is below `state`, with the time of its cut.
    #[must_use]
    pub fn oldest_pending(&self, state: SetState) -> Option<(SetId, u64)> {
        let pending = |set: &&SetRecord| set.state > SetState::Forming && set.state < state;
        self.sets.iter().find(pending).and_then(|set| Some((set.id, set.cut_ns?)))
    }
}

impl SetRecord {
    fn new(id: SetId) -> Self {
        Self {
            id,
            state: SetState::Forming,
            updates: 0,
            bytes: 0,
            opened_ns: None,
            cut_ns: None,
            cut_is_exact: false,
            confirmed_ns: None,
            applied_ns: None,
            hold_ns: None,
            facts: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_goes_through_its_life_in_order() {
        let mut history = History::default();
        history.opened(SetId(1), 100);
        history.opened(SetId(2), 200);
        assert_eq!(history.get(SetId(1)).unwrap().cut_ns, Some(200));
        history.formed(SetId(1), 199, 5, 500, &[]);
        let set = history.get(SetId(1)).unwrap();
        assert_eq!((set.cut_ns, set.updates, set.state), (Some(199), 5, SetState::InTransfer));
        assert_eq!(history.reached(SetId(1), SetState::Received, 300), [SetId(1)]);
        assert!(history.reached(SetId(1), SetState::Received, 310).is_empty());
        history.state(SetId(1), SetState::Applying);
        assert_eq!(history.reached(SetId(1), SetState::Applied, 400), [SetId(1)]);
        let set = history.get(SetId(1)).unwrap();
        assert_eq!((set.confirmed_ns, set.applied_ns), (Some(300), Some(400)));
        assert_eq!(history.newest_in(SetState::Forming), Some(SetId(2)));
    }

    #[test]
    fn a_late_word_does_not_turn_a_set_back() {
        let mut history = History::default();
        history.reached(SetId(3), SetState::Applied, 10);
        history.state(SetId(3), SetState::Closing);
        history.formed(SetId(3), 5, 1, 1, &[]);
        assert_eq!(history.get(SetId(3)).unwrap().state, SetState::Applied);
    }

    #[test]
    fn the_ring_keeps_the_newest_sets() {
        let mut history = History::default();
        for id in 1..=RETAINED as u64 + 10 {
            history.opened(SetId(id), id);
        }
        assert!(history.get(SetId(10)).is_none());
        assert!(history.entry(SetId(10)).is_none());
        assert_eq!(history.newest(RETAINED + 10).count(), RETAINED);
        assert_eq!(history.newest(1).next().unwrap().id, SetId(RETAINED as u64 + 10));
    }

    #[test]
    fn what_the_secondary_owes_is_the_oldest_that_was_cut_and_not_confirmed() {
        let mut history = History::default();
        for id in 1..=4 {
            history.opened(SetId(id), id * 100);
        }
        history.reached(SetId(1), SetState::Received, 500);
        assert_eq!(history.oldest_pending(SetState::Received), Some((SetId(2), 300)));
        assert_eq!(history.pending(SetState::Received), 2);
    }
}
