//! Which volumes should move to which mover (F3, F4, F6): policy only, computed by whoever runs the
//! boundaries, carried out by [`crate::proto::primary`] at the next one.
//!
//! What an operator wants comes first: volumes leave movers that are drained, and go where they are
//! pinned. Then the policy shares the rest.

use super::types::{MoverId, VolumeId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Moves made at once for balance; more follow when these are carried out.
const MOVES_MAX: usize = 64;

/// How volumes are shared among the members.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// By load, and only when members differ by much (the default).
    #[default]
    Load,
    /// In turn, by number.
    RoundRobin,
    /// Each stays where it is, but for what an operator places and drains.
    Pinned,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Load, Self::RoundRobin, Self::Pinned];

    /// Its name for people and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::RoundRobin => "round-robin",
            Self::Pinned => "pinned",
        }
    }

    /// The policy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// What is known when moves are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// Who is responsible, ascending by volume.
    pub owners: &'a [(VolumeId, MoverId)],
    /// The members, ascending.
    pub members: &'a [MoverId],
    /// Members that are to be responsible for nothing.
    pub draining: &'a BTreeSet<MoverId>,
    /// Volumes that an operator has placed.
    pub pinned: &'a BTreeMap<VolumeId, MoverId>,
    /// How the rest is shared.
    pub policy: Policy,
    /// By how much of the mean a move must bring the most and the least loaded member nearer, in
    /// percent; what brings less is not made.
    pub hysteresis_percent: u64,
}

impl Assignment<'_> {
    /// The moves that should be made, ascending by volume; `load` is a volume's, in any unit, at least 1.
    /// Nothing, when no member may be responsible for anything.
    #[must_use]
    pub fn moves(&self, load: impl Fn(VolumeId) -> u64) -> Vec<(VolumeId, MoverId)> {
        let able: Vec<MoverId> =
            self.members.iter().copied().filter(|m| !self.draining.contains(m)).collect();
        if able.is_empty() {
            return Vec::new();
        }
        let load = |volume| load(volume).max(1);
        let mut now: BTreeMap<VolumeId, MoverId> = self.owners.iter().copied().collect();
        let mut loads: BTreeMap<MoverId, u64> = able.iter().map(|mover| (*mover, 0)).collect();
        let place = |volume: VolumeId| {
            self.pinned.get(&volume).copied().filter(|mover| able.contains(mover))
        };
        for (volume, owner) in &mut now {
            *owner = place(*volume).unwrap_or(*owner);
            if let Some(sum) = loads.get_mut(owner) {
                *sum += load(*volume);
            }
        }
        // The heaviest first, so that the lighter ones level out what is left.
        let mut homeless: Vec<VolumeId> =
            now.iter().filter(|(_, owner)| !able.contains(owner)).map(|(v, _)| *v).collect();
        homeless.sort_by_key(|volume| (core::cmp::Reverse(load(*volume)), *volume));
        for volume in homeless {
            if let Some((mover, sum)) = loads.iter_mut().min_by_key(|(mover, sum)| (**sum, **mover))
            {
                *sum += load(volume);
                now.insert(volume, *mover);
            }
        }
        match self.policy {
            Policy::Pinned => {}
            Policy::RoundRobin => {
                let free = now.iter_mut().filter(|(volume, _)| place(**volume).is_none());
                for (at, (_, owner)) in free.enumerate() {
                    *owner = able[at % able.len()];
                }
            }
            Policy::Load => {
                self.balance(&mut now, &mut loads, load, |volume| place(volume).is_some())
            }
        }
        let before = |volume: &VolumeId| self.owners.iter().find(|(v, _)| v == volume).map(|o| o.1);
        now.into_iter().filter(|(volume, owner)| before(volume) != Some(*owner)).collect()
    }

    /// Moves volumes from the most to the least loaded member as long as that brings them nearer.
    fn balance(
        &self,
        now: &mut BTreeMap<VolumeId, MoverId>,
        loads: &mut BTreeMap<MoverId, u64>,
        load: impl Fn(VolumeId) -> u64,
        is_pinned: impl Fn(VolumeId) -> bool,
    ) {
        let mean = loads.values().sum::<u64>() / loads.len() as u64;
        for _ in 0..MOVES_MAX {
            let most = loads.iter().max_by_key(|(mover, sum)| (**sum, core::cmp::Reverse(**mover)));
            let least = loads.iter().min_by_key(|(mover, sum)| (**sum, **mover));
            let (Some((from, most)), Some((to, least))) = (most, least) else { return };
            let (from, to, gap) = (*from, *to, most - least);
            // What comes nearest to half the gap; not when the two would about change places.
            let of_most = now.iter().filter(|(v, owner)| **owner == from && !is_pinned(**v));
            let candidates = of_most.map(|(v, _)| (*v, load(*v)));
            let best = candidates.min_by_key(|(volume, load)| ((2 * load).abs_diff(gap), *volume));
            let Some((volume, load)) = best else { return };
            let gain = gap.saturating_sub((2 * load).abs_diff(gap));
            if gain == 0 || gain * 100 < mean * self.hysteresis_percent {
                return;
            }
            now.insert(volume, to);
            *loads.entry(from).or_default() -= load;
            *loads.entry(to).or_default() += load;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const A: MoverId = MoverId(1);
    const B: MoverId = MoverId(2);
    const C: MoverId = MoverId(3);

    fn owners(list: &[MoverId]) -> Vec<(VolumeId, MoverId)> {
        (1..).zip(list).map(|(volume, owner)| (VolumeId(volume), *owner)).collect()
    }

    fn moves(
        owners: &[(VolumeId, MoverId)],
        policy: Policy,
        draining: &[MoverId],
        pinned: &[(u32, MoverId)],
        load: impl Fn(VolumeId) -> u64,
    ) -> Vec<(u32, MoverId)> {
        let assignment = Assignment {
            owners,
            members: &[A, B, C],
            draining: &draining.iter().copied().collect(),
            pinned: &pinned.iter().map(|(v, m)| (VolumeId(*v), *m)).collect(),
            policy,
            hysteresis_percent: 25,
        };
        assignment.moves(load).into_iter().map(|(v, m)| (v.0, m)).collect()
    }

    #[test]
    fn a_mover_that_joined_gets_its_share_and_then_nothing_moves() {
        let before = owners(&[A, A, A, B, B, B]);
        let made = moves(&before, Policy::Load, &[], &[], |_| 1);
        assert_eq!(made, [(1, C), (4, C)]);
        let after = owners(&[C, A, A, C, B, B]);
        assert_eq!(moves(&after, Policy::Load, &[], &[], |_| 1), []);
    }

    #[test]
    fn load_counts_and_a_small_difference_moves_nothing() {
        let before = owners(&[A, A, B, C]);
        let heavy = |volume: VolumeId| [0, 60, 60, 10, 10][volume.0 as usize];
        assert_eq!(moves(&before, Policy::Load, &[], &[], heavy), [(1, B), (3, C)]);
        let even = |volume: VolumeId| [0, 50, 50, 92, 108][volume.0 as usize];
        assert_eq!(moves(&before, Policy::Load, &[], &[], even), []);
        let alike = |volume: VolumeId| [0, 99, 101, 98, 100][volume.0 as usize];
        assert_eq!(moves(&before, Policy::Load, &[], &[], alike), [], "they would change places");
        let one = owners(&[A]);
        assert_eq!(
            moves(&one, Policy::Load, &[], &[], |_| 1000),
            [],
            "it would only change places"
        );
    }

    #[test]
    fn drained_movers_are_left_and_pins_are_kept() {
        let before = owners(&[A, A, B, C]);
        assert_eq!(moves(&before, Policy::Pinned, &[A], &[], |_| 1), [(1, B), (2, C)]);
        let placed = [(1, C), (4, A)];
        assert_eq!(moves(&before, Policy::Pinned, &[], &placed, |_| 1), [(1, C), (4, A)]);
        assert_eq!(moves(&before, Policy::Pinned, &[A], &[(1, A)], |_| 1), [(1, B), (2, C)]);
        assert_eq!(moves(&before, Policy::Load, &[A, B, C], &[], |_| 1), [], "nowhere to go");
        assert_eq!(moves(&before, Policy::RoundRobin, &[], &[(1, C)], |_| 1), [(1, C)]);
        let turned = owners(&[B, A, B, C]);
        assert_eq!(
            moves(&turned, Policy::RoundRobin, &[C], &[], |_| 1),
            [(1, A), (2, B), (3, A), (4, B)]
        );
    }

    proptest! {
        #[test]
        fn moves_settle(
            list in proptest::collection::vec((0..3_usize, 1..1000_u64), 1..40),
            drained in 0..3_usize,
        ) {
            let all = [A, B, C];
            let mut now = owners(&list.iter().map(|(at, _)| all[*at]).collect::<Vec<_>>());
            let load = |volume: VolumeId| list[volume.0 as usize - 1].1;
            let draining = if drained == 0 { vec![] } else { vec![all[drained]] };
            for round in 0.. {
                let made = moves(&now, Policy::Load, &draining, &[], load);
                if made.is_empty() {
                    break;
                }
                prop_assert!(round < 4, "{made:?} again");
                for (volume, to) in made {
                    now[volume as usize - 1].1 = to;
                }
            }
            prop_assert!(now.iter().all(|(_, owner)| !draining.contains(owner)));
        }
    }
}
