//! What the verifier expects a block to read as, and the data it writes.

use super::super::block::is_zero;
use super::super::workload::Draws;
use serde::Serialize;

/// What a block must read as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "content", content = "tag", rename_all = "snake_case")]
pub enum Content {
    /// Never touched.
    #[default]
    Initial,
    /// Nothing is known: a command on it failed, or it was not known at the start.
    Unknown,
    /// The pattern of this tag.
    Data(u32),
    /// Zeros.
    Zeros,
    /// `ff` in every byte: one of the two things a deallocated block may read as.
    Ones,
    /// Deallocated, with this before: zeros, ones or the data as before, but the same
    /// every time (NVM command set specification, "Deallocated or unwritten logical blocks").
    DeallocatedData(u32),
    /// The same, with zeros or ones before.
    Deallocated,
}

impl Content {
    /// What it is after deallocation, on volumes that then may or must read as zeros.
    pub fn deallocated(self, reads_zeros: bool) -> Self {
        match self {
            _ if reads_zeros => Self::Zeros,
            Self::Data(tag) | Self::DeallocatedData(tag) => Self::DeallocatedData(tag),
            Self::Zeros | Self::Ones | Self::Deallocated => Self::Deallocated,
            Self::Initial | Self::Unknown => Self::Unknown,
        }
    }

    /// Whether a read may return anything.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Initial | Self::Unknown)
    }

    /// Whether a read has exactly one right answer.
    pub fn is_definite(self) -> bool {
        matches!(self, Self::Data(_) | Self::Zeros | Self::Ones)
    }
}

/// Identity of a block, from which its data follows.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Seed of the run.
    pub seed: u64,
    /// Index of the volume.
    pub volume: u16,
    /// Block address.
    pub address: u64,
}

impl Place {
    /// Fills `block` with the pattern of `tag` at this place. No two places or tags
    /// have the same, and none is all zeros or ones.
    pub fn fill(self, tag: u32, block: &mut [u8]) {
        let lane = self.address ^ u64::from(self.volume) << 48;
        let mut draws = Draws::new(self.seed, lane, u64::from(tag));
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&draws.next_u64().to_le_bytes());
        }
        // Readable in a dump, whatever the pattern: where and which.
        block[..8].copy_from_slice(&self.address.to_le_bytes());
        block[8..12].copy_from_slice(&tag.to_le_bytes());
        block[12..14].copy_from_slice(&self.volume.to_le_bytes());
        block[14..16].copy_from_slice(b"SV");
    }

    /// Fills `block` with what `content`, which is definite, reads as.
    pub fn fill_with(self, content: Content, block: &mut [u8]) {
        match content {
            Content::Data(tag) => self.fill(tag, block),
            Content::Ones => block.fill(0xff),
            _ => block.fill(0),
        }
    }

    /// Whether `found` is what `expected` allows; if so, what is known from now on.
    /// `scratch` is as long as a block.
    pub fn judge(self, expected: Content, found: &[u8], scratch: &mut [u8]) -> Option<Content> {
        let mut is_pattern = |tag| {
            self.fill(tag, scratch);
            found == &*scratch
        };
        let ones = || found.iter().all(|&byte| byte == 0xff);
        match expected {
            Content::Initial | Content::Unknown => Some(expected),
            Content::Data(tag) => is_pattern(tag).then_some(expected),
            Content::Zeros => is_zero(found).then_some(expected),
            Content::Ones => ones().then_some(expected),
            Content::Deallocated | Content::DeallocatedData(_) if is_zero(found) => {
                Some(Content::Zeros)
            }
            Content::Deallocated | Content::DeallocatedData(_) if ones() => Some(Content::Ones),
            Content::Deallocated => None,
            Content::DeallocatedData(tag) => is_pattern(tag).then_some(Content::Data(tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = Place { seed: 1, volume: 2, address: 3 };

    fn judge(expected: Content, found: &[u8]) -> Option<Content> {
        HERE.judge(expected, found, &mut [0; 512])
    }

    #[test]
    fn a_deallocated_block_may_read_in_three_ways_but_then_stays() {
        let mut data = [0; 512];
        HERE.fill(9, &mut data);
        let expected = Content::Data(9).deallocated(false);
        assert_eq!(judge(expected, &[0; 512]), Some(Content::Zeros));
        assert_eq!(judge(expected, &[0xff; 512]), Some(Content::Ones));
        assert_eq!(judge(expected, &data), Some(Content::Data(9)));
        assert_eq!(judge(Content::Data(8).deallocated(false), &data), None);
        assert_eq!(judge(Content::Zeros.deallocated(false), &data), None);
        assert_eq!(judge(Content::Zeros, &data), None);
        let strict = Content::Data(9).deallocated(true);
        assert_eq!(judge(strict, &data), None, "where zeros are promised, nothing else will do");
    }

    #[test]
    fn another_place_or_tag_has_other_data() {
        let of = |place: Place, tag| {
            let mut block = vec![0; 512];
            place.fill(tag, &mut block);
            block
        };
        assert!(judge(Content::Data(4), &of(HERE, 4)).is_some());
        assert!(judge(Content::Data(4), &of(HERE, 5)).is_none());
        assert!(judge(Content::Data(4), &of(Place { address: 4, ..HERE }, 4)).is_none());
        assert!(judge(Content::Data(4), &of(Place { volume: 1, ..HERE }, 4)).is_none());
    }
}
