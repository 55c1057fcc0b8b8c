//! Where things lie on the device, and the choices fixed when it is formatted.

use super::JournalPos;
use super::format::{BLOCK_BYTES, ENTRY_BYTES, UNIT_HEADER_BYTES};
use crate::wire::update::UPDATE_HEADER_BYTES;

/// Blocks before the log: the two superblocks.
pub(super) const SUPERBLOCKS: u64 = 2;

/// How large units are. Written into the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Blocks at the start of each unit for its header and its entries' headers, 1
    /// to 64. Four hold 102 records.
    pub meta_blocks: u16,
    /// Most payload blocks of a unit, 1 to 4096; also bounds one entry's payload.
    pub payload_blocks_max: u32,
}

impl Shape {
    /// For production: payloads up to the largest host command.
    pub const LARGE: Self = Self { meta_blocks: 4, payload_blocks_max: 256 };
    /// For simulated clusters, where memory is dear and payloads are small.
    pub const SMALL: Self = Self { meta_blocks: 1, payload_blocks_max: 8 };

    /// Largest payload of an entry in bytes.
    pub const fn payload_bytes_max(self) -> usize {
        self.payload_blocks_max as usize * BLOCK_BYTES
    }

    pub(super) const fn meta_bytes(self) -> usize {
        self.meta_blocks as usize * BLOCK_BYTES
    }

    /// Largest unit in blocks.
    pub(super) const fn unit_blocks_max(self) -> u64 {
        self.meta_blocks as u64 + self.payload_blocks_max as u64
    }

    fn is_valid(self) -> bool {
        (1..=64).contains(&self.meta_blocks) && (1..=4096).contains(&self.payload_blocks_max)
    }
}

const _: () = assert!(
    Shape::LARGE.payload_bytes_max() == crate::proto::limits::PAYLOAD_BYTES_MAX,
    "every host command's payload fits an entry"
);
const _: () = assert!(
    UNIT_HEADER_BYTES + ENTRY_BYTES + UPDATE_HEADER_BYTES <= BLOCK_BYTES,
    "one meta block holds a record"
);

/// A journal's device and how to use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Size of the device in bytes; what is beyond whole blocks is not used.
    pub device_bytes: u64,
    /// How large units are. When an existing journal is opened, its own shape must
    /// be this one.
    pub shape: Shape,
    /// Most units that are being filled or written at once, 2 to 1024.
    pub units_in_flight: usize,
}

/// Why a journal cannot be made as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The device has no room for a few units.
    #[error("journal device has {found} bytes, at least {least} are needed")]
    Device {
        /// Its size in bytes.
        found: u64,
        /// What is needed, in bytes.
        least: u64,
    },
    /// The shape is out of range.
    #[error("journal shape {0:?} is out of range")]
    Shape(Shape),
    /// The stage memory holds too few units.
    #[error("journal stage memory has {found} bytes, at least {least} are needed")]
    Stage {
        /// Its size in bytes.
        found: usize,
        /// What is needed, in bytes.
        least: usize,
    },
    /// The number of units in flight is out of range.
    #[error("{found} journal units in flight, 2 to 1024 are possible")]
    InFlight {
        /// What was asked for.
        found: usize,
    },
}

impl Config {
    /// The smallest device in bytes: eight of the largest units.
    pub const fn device_bytes_min(shape: Shape) -> u64 {
        (SUPERBLOCKS + 8 * shape.unit_blocks_max()) * BLOCK_BYTES as u64
    }

    /// The smallest stage memory in bytes; more lets more units be in flight whose
    /// payloads are copied (those below a block).
    pub const fn stage_bytes_min(shape: Shape) -> usize {
        (super::stage::RESERVED_BLOCKS + 2 * shape.unit_blocks_max() as usize) * BLOCK_BYTES
    }

    pub(super) fn check(&self, stage_bytes: usize) -> Result<Geometry, ConfigError> {
        let shape = self.shape;
        if !shape.is_valid() {
            return Err(ConfigError::Shape(shape));
        }
        let least = Self::device_bytes_min(shape);
        if self.device_bytes < least {
            return Err(ConfigError::Device { found: self.device_bytes, least });
        }
        let least = Self::stage_bytes_min(shape);
        if stage_bytes < least {
            return Err(ConfigError::Stage { found: stage_bytes, least });
        }
        if !(2..=1024).contains(&self.units_in_flight) {
            return Err(ConfigError::InFlight { found: self.units_in_flight });
        }
        let device_blocks = self.device_bytes / BLOCK_BYTES as u64;
        Ok(Geometry { shape, ring_blocks: device_blocks - SUPERBLOCKS })
    }
}

/// Maps logical positions, which only grow, to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Geometry {
    pub(super) shape: Shape,
    /// Blocks of the log.
    pub(super) ring_blocks: u64,
}

impl Geometry {
    pub(super) fn device_blocks(self) -> u64 {
        self.ring_blocks + SUPERBLOCKS
    }

    /// Where a logical block lies, in bytes from the start of the device.
    pub(super) fn offset_of(self, block: u64) -> u64 {
        (SUPERBLOCKS + block % self.ring_blocks) * BLOCK_BYTES as u64
    }

    /// Blocks from a logical block to where the log turns round.
    pub(super) fn contiguous(self, block: u64) -> u64 {
        self.ring_blocks - block % self.ring_blocks
    }

    /// Blocks that records may not take, so that manifests and marks, which lead to
    /// room being made, can still be appended.
    pub(super) fn reserve_blocks(self) -> u64 {
        2 * self.shape.unit_blocks_max()
    }
}

/// Where to read an entry's payload on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located {
    /// Bytes from the start of the device, a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
    /// How much to read, a multiple of [`BLOCK_BYTES`].
    pub len: usize,
    /// Where in what was read the payload starts.
    pub skip: usize,
}

/// The first position of a logical block.
pub(super) const fn position_of(block: u64) -> JournalPos {
    JournalPos(block * BLOCK_BYTES as u64)
}
