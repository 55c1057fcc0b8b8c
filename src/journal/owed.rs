//! Room that is taken already by what must still come: the marks of sets that are stored.

use super::{Entry, GROUPS_MAX};
use crate::proto::types::{GroupId, SetId};

/// Sets whose manifest is in the log and whose applied mark is not, by the entries seen. Each will
/// take a unit for its mark, and until that is written perhaps nothing can be retired: sets without
/// updates are small, and their marks take more room than they do.
#[derive(Clone, Debug)]
pub(super) struct Owed {
    groups: Vec<Stored>,
}

#[derive(Clone, Copy, Debug)]
struct Stored {
    group: GroupId,
    /// The newest one.
    last: SetId,
    /// How many are not applied.
    sets: u64,
}

impl Owed {
    pub(super) fn new() -> Self {
        Self { groups: Vec::with_capacity(GROUPS_MAX) }
    }

    /// Takes note of an entry; they come in the order of appending.
    pub(super) fn note(&mut self, entry: &Entry<'_>) {
        match *entry {
            Entry::Manifest { group, set, .. } => {
                let known = self.groups.iter_mut().find(|stored| stored.group == group);
                if let Some(stored) = known {
                    stored.sets += u64::from(set > stored.last);
                    stored.last = stored.last.max(set);
                } else if self.groups.len() < GROUPS_MAX {
                    self.groups.push(Stored { group, last: set, sets: 1 });
                }
            }
            Entry::Applied { group, set } => {
                if let Some(stored) = self.groups.iter_mut().find(|stored| stored.group == group) {
                    stored.sets = stored.sets.min(stored.last.0.saturating_sub(set.0));
                }
            }
            Entry::Record { .. } | Entry::Commit { .. } => {}
        }
    }

    /// How many marks will come.
    pub(super) fn marks(&self) -> u64 {
        self.groups.iter().map(|stored| stored.sets).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_owed_for_each_set_stored_and_not_applied() {
        let mut owed = Owed::new();
        let group = GroupId(3);
        let applied = |set| Entry::Applied { group, set: SetId(set) };
        for set in [1_000, 1_001, 1_001, 1_002] {
            owed.note(&Entry::Manifest { group, set: SetId(set), bytes: &[] });
        }
        assert_eq!(owed.marks(), 3, "however high the first set's number");
        owed.note(&applied(1_000));
        owed.note(&applied(1_000));
        assert_eq!(owed.marks(), 2, "a mark may be written anew");
        owed.note(&Entry::Manifest { group: GroupId(4), set: SetId(7), bytes: &[] });
        assert_eq!(owed.marks(), 3);
        owed.note(&applied(1_002));
        assert_eq!(owed.marks(), 1);
    }
}
