//! A bit per packet number within a window, read and written up to 64 at a time.

use alloc::boxed::Box;
use alloc::vec;

/// Bits of the numbers of a window: a number's bit is found modulo the window's size. Whoever
/// moves the window on clears the bits that it leaves behind ([`BitRing::take_run`]).
pub(super) struct BitRing {
    words: Box<[u64]>,
    mask: u64,
}

impl BitRing {
    /// All clear; `bits` is a power of two, at least 64.
    pub(super) fn new(bits: u32) -> Self {
        debug_assert!(bits.is_power_of_two() && bits >= 64);
        let words = (bits / 64) as usize;
        Self { words: vec![0; words].into_boxed_slice(), mask: words as u64 - 1 }
    }

    #[inline]
    fn word(&self, number: u64) -> usize {
        ((number >> 6) & self.mask) as usize
    }

    #[inline]
    pub(super) fn get(&self, number: u64) -> bool {
        self.words[self.word(number)] >> (number & 63) & 1 != 0
    }

    #[inline]
    pub(super) fn set(&mut self, number: u64) {
        let word = self.word(number);
        self.words[word] |= 1 << (number & 63);
    }

    #[inline]
    pub(super) fn clear(&mut self, number: u64) {
        let word = self.word(number);
        self.words[word] &= !(1 << (number & 63));
    }

    /// The bits of `from` (lowest) to `from + 63`. What lies beyond the window reads as the
    /// number that shares its place.
    #[inline]
    pub(super) fn read(&self, from: u64) -> u64 {
        let shift = (from & 63) as u32;
        let low = self.words[self.word(from)] >> shift;
        // Two shifts, because a shift by 64 is not defined.
        let high = (self.words[self.word(from + 64)] << 1) << (63 - shift);
        low | high
    }

    /// Sets the bits of `from + i` for every bit i of `bits`.
    #[inline]
    pub(super) fn set_many(&mut self, from: u64, bits: u64) {
        let shift = (from & 63) as u32;
        let word = self.word(from);
        self.words[word] |= bits << shift;
        let word = self.word(from + 64);
        self.words[word] |= (bits >> 1) >> (63 - shift);
    }

    /// Clears the unbroken run of set bits that starts at `from` and says how long it was.
    #[inline]
    pub(super) fn take_run(&mut self, from: u64) -> u64 {
        let mut at = from;
        loop {
            let shift = at & 63;
            let word = self.word(at);
            let run = u64::from((self.words[word] >> shift).trailing_ones());
            if run == 0 {
                return at - from;
            }
            let ones = u64::MAX >> (64 - run);
            self.words[word] &= !(ones << shift);
            at += run;
            if at & 63 != 0 {
                return at - from;
            }
        }
    }

    /// The first number at or after `from` and before `end` whose bit is set.
    #[inline]
    pub(super) fn next_set(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let rest = self.words[self.word(at)] >> (at & 63);
            if rest != 0 {
                let found = at + u64::from(rest.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at | 63) + 1;
        }
        None
    }

    /// Clears everything.
    pub(super) fn reset(&mut self) {
        self.words.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_ring_agrees_with_a_set_of_numbers(
            start in 0_u64..1000,
            size in prop_oneof![Just(64_u32), Just(128), Just(512)],
            steps in proptest::collection::vec((0_u8..4, any::<u16>(), any::<u64>()), 1..200),
        ) {
            let mut ring = BitRing::new(size);
            let mut oracle = BTreeSet::new();
            let mut base = start;
            for (what, at, bits) in steps {
                let number = base + u64::from(at) % u64::from(size);
                match what {
                    0 => {
                        ring.set(number);
                        oracle.insert(number);
                    }
                    1 => {
                        ring.clear(number);
                        oracle.remove(&number);
                    }
                    2 => {
                        let room = base + u64::from(size) - number;
                        let bits = if room < 64 { bits & ((1 << room) - 1) } else { bits };
                        ring.set_many(number, bits);
                        oracle.extend((0..64).filter(|i| bits >> i & 1 != 0).map(|i| number + i));
                    }
                    _ => {
                        let run = ring.take_run(base);
                        for _ in 0..run {
                            prop_assert!(oracle.remove(&base));
                            base += 1;
                        }
                        prop_assert!(!oracle.contains(&base));
                    }
                }
                prop_assert_eq!(
                    ring.next_set(base, base + u64::from(size)),
                    oracle.first().copied()
                );
                let window = base..base + u64::from(size) - 63;
                for from in window.step_by(13) {
                    let want = (0..64).filter(|i| oracle.contains(&(from + i)));
                    prop_assert_eq!(ring.read(from), want.fold(0, |bits, i| bits | 1 << i));
                }
                prop_assert_eq!(ring.get(number), oracle.contains(&number));
            }
        }
    }
}
