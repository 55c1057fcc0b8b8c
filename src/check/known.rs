//! What is known of one writer's commands: a prefix, and a window beyond it.
//!
//! Commands of a writer are numbered 1, 2, 3 … and complete in any order. A bare
//! maximum would claim too much, a bare prefix too little; a prefix with a
//! 24-command window is exact, because a writer never runs further ahead than
//! the window ([`Known::reaches`]).

use std::fmt;

/// How many commands beyond the first unknown one can be told apart.
pub const WINDOW: u64 = 24;

/// A set of sequence numbers of one writer: all up to [`Known::prefix`], and some
/// of the [`WINDOW`] numbers from `prefix + 2` on. `prefix + 1` is never in it.
///
/// Packed into 64 bits as it stands in a block: bits 24 and up are the prefix, bit
/// `j` of the lower 24 says that `prefix + 2 + j` is in the set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Known(u64);

impl Known {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// All numbers up to and including `prefix`.
    pub const fn up_to(prefix: u64) -> Self {
        assert!(prefix < 1 << 40, "a run has less than 2^40 commands per writer");
        Self(prefix << WINDOW)
    }

    /// From a prefix (below 2^40, as that is all a block can hold) and a window.
    pub const fn from_parts(prefix: u64, window: u32) -> Self {
        Self((prefix << WINDOW) | (window as u64 & ((1 << WINDOW) - 1)))
    }

    /// From the 64 bits found in a block; any value is a valid set.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64 bits that go into a block.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The highest number up to which every number is in the set.
    pub const fn prefix(self) -> u64 {
        self.0 >> WINDOW
    }

    /// The 24 bits beyond the prefix.
    pub const fn window(self) -> u32 {
        (self.0 & ((1 << WINDOW) - 1)) as u32
    }

    /// The highest number in the set; 0 when it is empty.
    pub const fn highest(self) -> u64 {
        match self.window() {
            0 => self.prefix(),
            w => self.prefix() + 2 + (31 - w.leading_zeros()) as u64,
        }
    }

    /// How many numbers are in the set.
    pub const fn count(self) -> u64 {
        self.prefix() + self.window().count_ones() as u64
    }

    /// Whether `sequence` is in the set.
    pub const fn contains(self, sequence: u64) -> bool {
        let prefix = self.prefix();
        if sequence <= prefix {
            return true;
        }
        let distance = sequence - prefix;
        distance >= 2 && distance < 2 + WINDOW && (self.0 >> (distance - 2)) & 1 == 1
    }

    /// Whether `sequence` could be inserted: a writer issues a command only if so.
    pub const fn reaches(self, sequence: u64) -> bool {
        sequence <= self.prefix() + 1 + WINDOW
    }

    /// Adds `sequence`. Returns whether it is new.
    ///
    /// # Panics
    /// When `sequence` is out of [reach](Self::reaches): the writer's own rule was broken.
    pub fn insert(&mut self, sequence: u64) -> bool {
        assert!(self.reaches(sequence), "sequence {sequence} beyond the window of {self:?}");
        if self.contains(sequence) {
            return false;
        }
        let (mut prefix, mut window) = (self.prefix(), u64::from(self.window()));
        if sequence == prefix + 1 {
            // Each shift moves the window along by the one number the prefix grew.
            loop {
                prefix += 1;
                let next_is_known = window & 1 == 1;
                window >>= 1;
                if !next_is_known {
                    break;
                }
            }
        } else {
            window |= 1 << (sequence - prefix - 2);
        }
        self.0 = Self::up_to(prefix).0 | window;
        true
    }

    /// Everything that is in either set. Sets of one honest writer are nested, so
    /// this is the later one; of two that are not, numbers out of reach of the
    /// longer prefix are left out.
    pub fn union(self, other: Self) -> Self {
        let (mut longer, shorter) =
            if self.prefix() >= other.prefix() { (self, other) } else { (other, self) };
        let base = shorter.prefix() + 2;
        for sequence in (0..WINDOW).map(|bit| base + bit) {
            if shorter.contains(sequence) && longer.reaches(sequence) {
                longer.insert(sequence);
            }
        }
        longer
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "..={}", self.prefix())?;
        for bit in (0..WINDOW).filter(|bit| self.window() >> bit & 1 == 1) {
            write!(f, ",{}", self.prefix() + 2 + bit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn completions_in_any_order_within_reach_are_told_apart(picks in prop::collection::vec(0u64..25, 0..200)) {
            let mut known = Known::NONE;
            let mut oracle = BTreeSet::new();
            for pick in picks {
                let sequence = known.prefix() + 1 + pick;
                prop_assert_eq!(known.insert(sequence), oracle.insert(sequence));
                prop_assert_eq!(known.count(), oracle.len() as u64);
                prop_assert_eq!(known.highest(), *oracle.last().unwrap());
                for probe in 1..known.prefix() + 40 {
                    prop_assert_eq!(known.contains(probe), oracle.contains(&probe));
                }
                prop_assert_eq!(Known::from_bits(known.bits()), known);
            }
        }

        #[test]
        fn union_of_nested_sets_is_the_later_one(picks in prop::collection::vec(0u64..25, 1..60), at in 0usize..60) {
            let (mut known, mut earlier) = (Known::NONE, Known::NONE);
            for (index, pick) in picks.into_iter().enumerate() {
                known.insert(known.prefix() + 1 + pick);
                if index <= at {
                    earlier = known;
                }
            }
            prop_assert_eq!(earlier.union(known), known);
            prop_assert_eq!(known.union(earlier), known);
        }
    }
}
