//! Where each command of a run writes: a pure function of the run's parameters.
//!
//! The parameters stand in every block and in the log, so a reader that has
//! nothing but images can say which blocks command 4711 of writer 3 covered, even
//! if nothing of that command is left to see. That is what makes a decision
//! without a log exact.
//!
//! Every volume is divided into stripes, dealt out to the writers in turn. A
//! command stays within a stripe of its own writer, and a writer does not issue a
//! command while another of its own overlaps it; so the order of the versions of
//! a block is the order of its owner's sequence numbers, on any medium.

use serde::{Deserialize, Serialize};

/// Writers per run: the vector of all of them has to fit into a 512-byte block.
pub const WRITERS_MAX: u16 = 32;
/// Size classes in a mix.
pub const SIZES_MAX: usize = 8;
/// Hot choices are drawn out of this many.
pub const PERMILLE: u16 = 1000;

/// One size in the mix of command sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeClass {
    /// Length of the command in blocks.
    pub blocks: u16,
    /// How often, relative to the other weights of the mix.
    pub weight: u16,
}

/// Everything that decides where the commands of a run write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Seeds every draw.
    pub seed: u64,
    /// The volumes' logical block size.
    pub block_bytes: u32,
    /// How many volumes; a volume's index is its place in the order given.
    pub volumes: u16,
    /// How many logical writers; at most [`WRITERS_MAX`].
    pub writers: u16,
    /// Blocks of each volume, counted from 0, that the run may touch.
    pub span_blocks: u64,
    /// Length of a stripe in blocks; no command is longer.
    pub stripe_blocks: u32,
    /// Of 1000 commands this many go to the hot stripes.
    pub hot_permille: u16,
    /// The first stripes of each writer on each volume that are hot.
    pub hot_stripes: u16,
    /// The mix of command sizes; at most [`SIZES_MAX`].
    pub sizes: Vec<SizeClass>,
}

/// What is wrong with a set of parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// Not a block size that a block of this format fits in.
    #[error("block size {0}: a power of two from 512 to 65536 is allowed")]
    BlockBytes(u32),
    /// Too few or too many writers.
    #[error("{0} writers: 1 to {WRITERS_MAX} are allowed")]
    Writers(u16),
    /// No volume.
    #[error("no volume")]
    NoVolume,
    /// An empty mix, one with too many classes, or one without weight.
    #[error("mix of sizes: 1 to {SIZES_MAX} sizes with a weight above 0 are allowed")]
    Mix,
    /// A command longer than a stripe, or of no length.
    #[error("size of {blocks} blocks: 1 to {stripe_blocks} (the stripe) are allowed")]
    Size {
        /// The size refused.
        blocks: u16,
        /// The longest allowed.
        stripe_blocks: u32,
    },
    /// A writer would get no stripe.
    #[error(
        "{span_blocks} blocks per volume: {writers} writers with stripes of {stripe_blocks} blocks need at least {needed}"
    )]
    Span {
        /// Blocks offered.
        span_blocks: u64,
        /// Writers that share them.
        writers: u16,
        /// Stripe length.
        stripe_blocks: u32,
        /// Blocks needed.
        needed: u64,
    },
    /// Hot parameters out of range.
    #[error("hot range: {permille} of 1000 commands on {stripes} of {available} stripes")]
    Hot {
        /// Per mille asked for.
        permille: u16,
        /// Hot stripes asked for.
        stripes: u16,
        /// Stripes that a writer has on a volume.
        available: u64,
    },
}

/// The blocks that one command covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Extent {
    /// Index of the volume.
    pub volume: u16,
    /// First block.
    pub first: u64,
    /// Length in blocks.
    pub blocks: u16,
}

impl Extent {
    /// Whether a block is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.volume == other.volume
            && self.first < other.first + u64::from(other.blocks)
            && other.first < self.first + u64::from(self.blocks)
    }

    /// The addresses of its blocks.
    pub fn addresses(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.blocks)
    }
}

impl Workload {
    /// Checks that the parameters describe a run that can be had.
    pub fn validate(&self) -> Result<(), WorkloadError> {
        if !self.block_bytes.is_power_of_two() || !(512..=65536).contains(&self.block_bytes) {
            return Err(WorkloadError::BlockBytes(self.block_bytes));
        }
        if self.writers == 0 || self.writers > WRITERS_MAX {
            return Err(WorkloadError::Writers(self.writers));
        }
        if self.volumes == 0 {
            return Err(WorkloadError::NoVolume);
        }
        if self.sizes.is_empty()
            || self.sizes.len() > SIZES_MAX
            || self.sizes.iter().any(|size| size.weight == 0)
        {
            return Err(WorkloadError::Mix);
        }
        let stripe_blocks = self.stripe_blocks;
        if let Some(size) =
            self.sizes.iter().find(|s| s.blocks == 0 || u32::from(s.blocks) > stripe_blocks)
        {
            return Err(WorkloadError::Size { blocks: size.blocks, stripe_blocks });
        }
        let available = self.stripes_per_writer();
        if available == 0 {
            return Err(WorkloadError::Span {
                span_blocks: self.span_blocks,
                writers: self.writers,
                stripe_blocks,
                needed: u64::from(self.writers) * u64::from(stripe_blocks),
            });
        }
        let hot_needed = u64::from(self.hot_permille > 0);
        if self.hot_permille > PERMILLE
            || !(hot_needed..=available).contains(&u64::from(self.hot_stripes))
        {
            return Err(WorkloadError::Hot {
                permille: self.hot_permille,
                stripes: self.hot_stripes,
                available,
            });
        }
        Ok(())
    }

    /// Stripes that each writer owns on each volume.
    pub fn stripes_per_writer(&self) -> u64 {
        self.span_blocks / (u64::from(self.stripe_blocks.max(1)) * u64::from(self.writers.max(1)))
    }

    /// The longest command of the mix, in blocks.
    pub fn blocks_max(&self) -> u16 {
        self.sizes.iter().map(|size| size.blocks).max().unwrap_or(0)
    }

    /// What command `sequence` (from 1) of `writer` covers. `self` must be
    /// [valid](Self::validate).
    pub fn extent(&self, writer: u16, sequence: u64) -> Extent {
        let mut draws = Draws::new(self.seed, u64::from(writer), sequence);
        let volume = draws.below(u64::from(self.volumes)) as u16;
        let weights: u64 = self.sizes.iter().map(|size| u64::from(size.weight)).sum();
        let mut pick = draws.below(weights);
        let mut blocks = 1;
        for size in &self.sizes {
            blocks = size.blocks;
            match pick.checked_sub(u64::from(size.weight)) {
                Some(rest) => pick = rest,
                None => break,
            }
        }
        let hot = draws.below(u64::from(PERMILLE)) < u64::from(self.hot_permille);
        let stripes = if hot { u64::from(self.hot_stripes) } else { self.stripes_per_writer() };
        let stripe = draws.below(stripes) * u64::from(self.writers) + u64::from(writer);
        let room = u64::from(self.stripe_blocks) - u64::from(blocks) + 1;
        let first = stripe * u64::from(self.stripe_blocks) + draws.below(room);
        Extent { volume, first, blocks }
    }
}

/// A stream of draws that follows from its seed: SplitMix64, whose finaliser is a
/// bijection of good avalanche and which needs no state beyond a counter.
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// The stream of one command, or of any other pair of numbers.
    pub fn new(seed: u64, lane: u64, number: u64) -> Self {
        Self(mix(mix(mix(seed) ^ lane) ^ number))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next number below `bound`, by multiplication (its bias is below 2^-32
    /// for the bounds used here). 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 7,
            block_bytes: 512,
            volumes: 3,
            writers: 5,
            span_blocks: 1000,
            stripe_blocks: 16,
            hot_permille: 300,
            hot_stripes: 2,
            sizes: vec![SizeClass { blocks: 1, weight: 3 }, SizeClass { blocks: 11, weight: 1 }],
        }
    }

    #[test]
    fn writers_never_share_a_block_and_stay_within_the_span() {
        let workload = workload();
        workload.validate().unwrap();
        let mut owner = std::collections::BTreeMap::new();
        let mut long = 0;
        for writer in 0..workload.writers {
            for sequence in 1..2000 {
                let extent = workload.extent(writer, sequence);
                assert!(extent.volume < workload.volumes);
                long += u32::from(extent.blocks == 11);
                for address in extent.addresses() {
                    assert!(address < workload.span_blocks);
                    assert_eq!(*owner.entry((extent.volume, address)).or_insert(writer), writer);
                }
            }
        }
        assert!((2000..3000).contains(&long), "a quarter of 10000 commands is long: {long}");
    }

    #[test]
    fn the_place_of_a_command_is_pinned_across_versions() {
        // Images outlive programs: a change here must come with a new block format.
        let workload = workload();
        let places = (1..5).map(|sequence| {
            let extent = workload.extent(2, sequence);
            (extent.volume, extent.first, extent.blocks)
        });
        assert_eq!(
            places.collect::<Vec<_>>(),
            [(1, 37, 1), (0, 437, 11), (2, 272, 11), (2, 677, 11)]
        );
    }

    #[test]
    fn impossible_parameters_are_refused_with_the_reason() {
        let refused = |change: fn(&mut Workload)| {
            let mut workload = workload();
            change(&mut workload);
            workload.validate().unwrap_err()
        };
        assert_eq!(refused(|w| w.block_bytes = 520), WorkloadError::BlockBytes(520));
        assert_eq!(refused(|w| w.writers = 33), WorkloadError::Writers(33));
        assert_eq!(refused(|w| w.volumes = 0), WorkloadError::NoVolume);
        assert_eq!(refused(|w| w.sizes.clear()), WorkloadError::Mix);
        assert_eq!(
            refused(|w| w.stripe_blocks = 8),
            WorkloadError::Size { blocks: 11, stripe_blocks: 8 }
        );
        assert!(matches!(refused(|w| w.span_blocks = 79), WorkloadError::Span { needed: 80, .. }));
        assert!(matches!(
            refused(|w| w.hot_stripes = 13),
            WorkloadError::Hot { available: 12, .. }
        ));
    }
}
