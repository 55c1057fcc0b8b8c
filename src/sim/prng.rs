//! The source of every choice a simulated history makes: xoshiro256++ seeded by splitmix64.
//!
//! Our own forty lines rather than a crate: a history must replay from its seed for as long as
//! the protocol's code stands, whatever a dependency changes. Integers only, so that two
//! machines agree. Not for secrets.
//! The algorithms are Blackman and Vigna's (public domain, prng.di.unimi.it).

/// A deterministic generator.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

fn splitmix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *x;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The generator of `seed`; neighbouring seeds give unrelated sequences.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self { state: core::array::from_fn(|_| splitmix(&mut x)) }
    }

    /// An independent generator for one part of the simulation. A part that draws more or less
    /// then does not change what the others draw.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next())
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`; 0 when `bound` is 0. The bias, under 2⁻³² for small bounds, does
    /// not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `ppm` of a million cases.
    pub fn chance(&mut self, ppm: u32) -> bool {
        ppm != 0 && self.below(1_000_000) < u64::from(ppm)
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Mixes the order of `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// A waiting time with mean about `mean`: mostly near it, now and then several times as
    /// long, as queues in networks and devices show.
    pub fn delay(&mut self, mean: u64) -> u64 {
        let half = mean / 2;
        let base = half + self.below(half + 1);
        // A geometric tail: one in four doubles, again and again.
        let doublings = (self.next() | 1 << 12).trailing_zeros() / 2;
        base + (half >> 1) * u64::from(doublings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_sequence_and_another_seed_another() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..8).map(|_| rng.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn bounds_hold_and_every_value_occurs() {
        let mut rng = Rng::new(7);
        let mut seen = [0_u32; 5];
        for _ in 0..10_000 {
            seen[rng.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (1_700..2_300).contains(n)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).all(|_| (3..=4).contains(&rng.between(3, 4))));
    }

    #[test]
    fn chance_is_near_its_rate() {
        let mut rng = Rng::new(9);
        let hits = (0..100_000).filter(|_| rng.chance(100_000)).count();
        assert!((9_000..11_000).contains(&hits), "{hits}");
        assert!(!rng.chance(0));
    }

    #[test]
    fn delays_stay_near_their_mean_with_a_tail() {
        let mut rng = Rng::new(3);
        let list: Vec<u64> = (0..10_000).map(|_| rng.delay(1000)).collect();
        let mean = list.iter().sum::<u64>() / 10_000;
        assert!((700..1300).contains(&mean), "{mean}");
        assert!(list.iter().any(|d| *d > 2000));
    }
}
