//! Which path a command takes, and whether it takes another one after it failed.

use super::super::{Op, Status};
use crate::spdk::nvmf::AnaState;

/// Which of several paths a command takes; another one when that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathPolicy {
    /// The one that its target calls the best for the volume now (ANA), like a multipath host; slots
    /// are spread over equal ones.
    Best,
    /// Each slot has its own, whatever their targets say.
    Spread,
    /// The one before the best: that of a mover which is not responsible for the volume.
    Detour,
    /// The first.
    First,
}

impl PathPolicy {
    /// Out of the paths that are connected and have the volume, in the order in which a slot would
    /// take them. None that its target calls inaccessible: it would only refuse.
    pub(super) fn choose(self, in_turn: impl Iterator<Item = (usize, AnaState)>) -> Option<usize> {
        let mut working = in_turn.filter(|(_, state)| *state != AnaState::Inaccessible);
        let found = match self {
            Self::Spread | Self::First => working.next(),
            Self::Best => working.min_by_key(|(_, state)| *state),
            Self::Detour => working.min_by_key(|(_, state)| *state != AnaState::NonOptimized),
        };
        found.map(|(path, _)| path)
    }
}

/// Whether a command that ended so may be sent again by another path without asking who sent it: the path
/// was the reason, and doing the command twice is the same as doing it once. That is not so of
/// compare-and-write: its second run would compare with what the first one wrote.
pub(super) fn may_go_elsewhere(op: Op, status: Status) -> bool {
    // Command Abort Requested, or aborted due to SQ deletion: what SPDK calls it when a queue pair goes.
    let aborted = matches!(status, Status::Nvme { sct: 0, sc: 0x07 | 0x08, .. });
    op != Op::CompareAndWrite && (status.is_path_related() || aborted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use AnaState::{Inaccessible, NonOptimized, Optimized};

    const PATHS: [(usize, AnaState); 4] =
        [(3, NonOptimized), (0, Inaccessible), (1, Optimized), (2, Optimized)];

    #[test]
    fn each_policy_takes_its_path_and_none_an_inaccessible_one() {
        let choose =
            |policy: PathPolicy, paths: &[(usize, AnaState)]| policy.choose(paths.iter().copied());
        assert_eq!(choose(PathPolicy::Best, &PATHS), Some(1), "the first of equal ones");
        assert_eq!(choose(PathPolicy::Detour, &PATHS), Some(3));
        assert_eq!(choose(PathPolicy::Spread, &PATHS), Some(3));
        assert_eq!(choose(PathPolicy::Spread, &PATHS[1..]), Some(1));
        assert_eq!(choose(PathPolicy::Detour, &PATHS[1..]), Some(1), "better than none");
        assert_eq!(choose(PathPolicy::Best, &PATHS[1..2]), None);
    }

    #[test]
    fn only_what_a_path_is_the_reason_for_goes_elsewhere_and_no_compare_and_write() {
        let status = |sct, sc| Status::Nvme { sct, sc, dnr: false };
        for elsewhere in [Status::NO_PATH, status(3, 2), status(3, 3), status(0, 7), status(0, 8)] {
            assert!(may_go_elsewhere(Op::Write, elsewhere));
            assert!(!may_go_elsewhere(Op::CompareAndWrite, elsewhere));
        }
        for final_one in [Status::Ok, status(0, 6), Status::COMPARE_FAILURE, Status::Os(22)] {
            assert!(!may_go_elsewhere(Op::Write, final_one));
        }
    }
}
