//! A set at the coordinator: what its shards have said of it.

use crate::proto::command::SetState;
use crate::proto::message::{FactsAssembly, FactsPart, VolumeFacts};
use crate::proto::types::SetId;
use alloc::vec::Vec;

/// A set from its opening to its application.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) id: SetId,
    pub(super) cut_time_ns: u64,
    /// By index of the shard; taken once all parts are there.
    pub(super) closed: Vec<Option<FactsAssembly>>,
    pub(super) waiting: usize,
    pub(super) facts: Vec<VolumeFacts>,
    pub(super) state: SetState,
}

impl Set {
    pub(super) fn new(id: SetId, shards: usize) -> Self {
        Self {
            id,
            cut_time_ns: 0,
            closed: (0..shards).map(|_| Some(FactsAssembly::default())).collect(),
            waiting: shards,
            facts: Vec::new(),
            state: SetState::Forming,
        }
    }

    pub(super) fn add(&mut self, shard: usize, part: FactsPart) {
        let Some(assembly) = self.closed[shard].as_mut() else { return };
        if assembly.add(part)
            && let Some(assembly) = self.closed[shard].take()
        {
            self.facts.extend(assembly.into_facts());
            self.waiting -= 1;
        }
    }

    /// The shard has nothing in this set.
    pub(super) fn without(&mut self, shard: usize) {
        if self.closed[shard].take().is_some() {
            self.waiting -= 1;
        }
    }
}
