//! The format of a block written by `setline-check write`, format 1.
//!
//! All integers are little endian. `docs/check.md` has the same as a picture.
//!
//! ```text
//!   0  magic            "SETLCHK1"
//!   8  checksum     u32 CRC-32C of everything behind it, to the end of the block
//!  12  format       u16 1
//!  14  (zero)       u16
//!  16  run      16 × u8 identity of the run
//!  32  writer       u16 ┐ a command is (writer, sequence)
//!  34  volume       u16 │
//!  36  index        u16 │ this block's place in the command …
//!  38  blocks       u16 │ … of so many blocks …
//!  40  sequence     u64 ┘
//!  48  address      u64   … that stands here on the volume
//!  56  first        u64   the command's first block
//!  64  version      u64 how often this block was written in this run, this time included
//!  72  issue event  u64 position of the issue in the writer's log
//!  80  issue time   u64 nanoseconds since 1970
//!  88  (zero)       u64
//!  96  parameters  64 B the run's workload
//! 160  known   32 × u64 per writer, what was known when this command was issued
//! 416  fill             words of SplitMix64 seeded from run, address, writer and sequence
//! ```

use super::known::Known;
use super::workload::{Draws, Extent, SIZES_MAX, SizeClass, WRITERS_MAX, Workload};
use std::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of every block.
pub const MAGIC: [u8; 8] = *b"SETLCHK1";
/// The only format there is.
pub const FORMAT: u16 = 1;
/// Bytes before the fill.
pub const HEADER_BYTES: usize = size_of::<BlockHeader>();
/// First byte that the checksum covers.
const CHECKSUM_FROM: usize = 12;

const _: () = assert!(size_of::<WorkloadBytes>() == 64);
const _: () = assert!(HEADER_BYTES == 416);

/// Identity of a run: random, so that blocks of an earlier one are told apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub [u8; 16]);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunId({self})")
    }
}

impl std::str::FromStr for RunId {
    type Err = std::num::ParseIntError;
    /// From up to 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(|value| Self(value.to_be_bytes()))
    }
}

impl serde::Serialize for RunId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for RunId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A [`Workload`] as it stands in blocks and logs.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct WorkloadBytes {
    seed: U64,
    span_blocks: U64,
    block_bytes: U32,
    stripe_blocks: U32,
    writers: U16,
    volumes: U16,
    hot_permille: U16,
    hot_stripes: U16,
    sizes: [[U16; 2]; SIZES_MAX],
}

impl WorkloadBytes {
    /// Packs a workload; sizes beyond the allowed number are not in a
    /// [valid](Workload::validate) one.
    pub fn pack(workload: &Workload) -> Self {
        let mut sizes = [[U16::ZERO; 2]; SIZES_MAX];
        for (packed, size) in sizes.iter_mut().zip(&workload.sizes) {
            *packed = [size.blocks.into(), size.weight.into()];
        }
        Self {
            seed: workload.seed.into(),
            span_blocks: workload.span_blocks.into(),
            block_bytes: workload.block_bytes.into(),
            stripe_blocks: workload.stripe_blocks.into(),
            writers: workload.writers.into(),
            volumes: workload.volumes.into(),
            hot_permille: workload.hot_permille.into(),
            hot_stripes: workload.hot_stripes.into(),
            sizes,
        }
    }

    /// The workload, not yet [validated](Workload::validate).
    pub fn unpack(&self) -> Workload {
        let sizes = self
            .sizes
            .iter()
            .map(|[blocks, weight]| SizeClass { blocks: blocks.get(), weight: weight.get() })
            .filter(|size| size.weight > 0)
            .collect();
        Workload {
            seed: self.seed.get(),
            block_bytes: self.block_bytes.get(),
            volumes: self.volumes.get(),
            writers: self.writers.get(),
            span_blocks: self.span_blocks.get(),
            stripe_blocks: self.stripe_blocks.get(),
            hot_permille: self.hot_permille.get(),
            hot_stripes: self.hot_stripes.get(),
            sizes,
        }
    }
}

/// The fixed part of a block, as a checked view or a value.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    magic: [u8; 8],
    checksum: U32,
    format: U16,
    zero_14: U16,
    run: [u8; 16],
    writer: U16,
    volume: U16,
    index: U16,
    blocks: U16,
    sequence: U64,
    address: U64,
    first: U64,
    version: U64,
    issue_event: U64,
    issue_unix_ns: U64,
    zero_88: U64,
    workload: WorkloadBytes,
    known: [U64; WRITERS_MAX as usize],
}

/// Why a block that is not all zero is none of a run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BlockFault {
    /// The magic is missing: not written by this program.
    #[error("not a block of setline-check")]
    Foreign,
    /// The magic is there, the checksum is not right.
    #[error("checksum {found:08x}, content has {computed:08x}")]
    Checksum {
        /// As it stands in the block.
        found: u32,
        /// Of what stands in the block.
        computed: u32,
    },
    /// A sound block of another format.
    #[error("format {format}, only {FORMAT} is known")]
    Format {
        /// The format found.
        format: u16,
    },
    /// The checksum is right, but the fill does not follow from the header.
    #[error("fill differs from what the header demands, first at byte {byte}")]
    Fill {
        /// Offset of the first wrong word.
        byte: u32,
    },
}

/// What a command is stamped with; the same in all of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandStamp {
    /// The run.
    pub run: RunId,
    /// Its parameters.
    pub workload: WorkloadBytes,
    /// Who issued it.
    pub writer: u16,
    /// Its number, from 1, among the writer's.
    pub sequence: u64,
    /// What it covers.
    pub extent: Extent,
    /// Position of its issue in the log.
    pub issue_event: u64,
    /// When it was issued.
    pub issue_unix_ns: u64,
    /// What was known at its issue, per writer.
    pub known: [Known; WRITERS_MAX as usize],
}

impl CommandStamp {
    /// Writes the blocks of the command into `buffer`, which is as long as they are.
    /// `version` gives the version of the block at an address.
    pub fn write(&self, buffer: &mut [u8], mut version: impl FnMut(u64) -> u64) {
        let mut header = BlockHeader {
            magic: MAGIC,
            checksum: U32::ZERO,
            format: FORMAT.into(),
            zero_14: U16::ZERO,
            run: self.run.0,
            writer: self.writer.into(),
            volume: self.extent.volume.into(),
            index: U16::ZERO,
            blocks: self.extent.blocks.into(),
            sequence: self.sequence.into(),
            address: U64::ZERO,
            first: self.extent.first.into(),
            version: U64::ZERO,
            issue_event: self.issue_event.into(),
            issue_unix_ns: self.issue_unix_ns.into(),
            zero_88: U64::ZERO,
            workload: self.workload,
            known: self.known.map(|known| known.bits().into()),
        };
        let block_bytes = self.workload.block_bytes.get() as usize;
        assert_eq!(buffer.len(), block_bytes * usize::from(self.extent.blocks));
        for (address, block) in self.extent.addresses().zip(buffer.chunks_exact_mut(block_bytes)) {
            header.index.set((address - self.extent.first) as u16);
            header.address.set(address);
            header.version.set(version(address));
            block[..HEADER_BYTES].copy_from_slice(header.as_bytes());
            let mut words = header.fill();
            for word in block[HEADER_BYTES..].chunks_exact_mut(8) {
                word.copy_from_slice(&words.next_u64().to_le_bytes());
            }
            let checksum = super::crc32c(&block[CHECKSUM_FROM..]);
            block[8..CHECKSUM_FROM].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

impl BlockHeader {
    /// The header of `block`, all of whose bytes are verified: magic, checksum, format and fill.
    pub fn parse(block: &[u8]) -> Result<&Self, BlockFault> {
        let Ok((header, fill)) = Self::ref_from_prefix(block) else {
            return Err(BlockFault::Foreign);
        };
        if header.magic != MAGIC {
            return Err(BlockFault::Foreign);
        }
        let (found, computed) = (header.checksum.get(), super::crc32c(&block[CHECKSUM_FROM..]));
        if found != computed {
            return Err(BlockFault::Checksum { found, computed });
        }
        if header.format.get() != FORMAT {
            return Err(BlockFault::Format { format: header.format.get() });
        }
        let mut words = header.fill();
        for (number, word) in fill.chunks(8).enumerate() {
            if words.next_u64().to_le_bytes() != word {
                let byte = (HEADER_BYTES + number * 8) as u32;
                return Err(BlockFault::Fill { byte });
            }
        }
        Ok(header)
    }

    /// The header of what may be a block, with nothing but the magic verified.
    pub fn glance(block: &[u8]) -> Option<&Self> {
        let (header, _) = Self::ref_from_prefix(block).ok()?;
        (header.magic == MAGIC).then_some(header)
    }

    /// The stamp of the command that this block is of.
    pub fn stamp(&self) -> CommandStamp {
        CommandStamp {
            run: self.run(),
            workload: self.workload,
            writer: self.writer(),
            sequence: self.sequence(),
            extent: self.extent(),
            issue_event: self.issue_event(),
            issue_unix_ns: self.issue_unix_ns(),
            known: std::array::from_fn(|writer| self.known(writer)),
        }
    }

    /// The run that wrote it.
    pub fn run(&self) -> RunId {
        RunId(self.run)
    }

    /// The parameters of that run.
    pub fn workload(&self) -> &WorkloadBytes {
        &self.workload
    }

    /// The writer that wrote it.
    pub fn writer(&self) -> u16 {
        self.writer.get()
    }

    /// The number of its command among the writer's.
    pub fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    /// What its command covers.
    pub fn extent(&self) -> Extent {
        Extent { volume: self.volume.get(), first: self.first.get(), blocks: self.blocks.get() }
    }

    /// Its place on the volume.
    pub fn address(&self) -> u64 {
        self.address.get()
    }

    /// Its place within its command.
    pub fn index(&self) -> u16 {
        self.index.get()
    }

    /// How often its place had been written in this run, this time included.
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// Position of its command's issue in the log.
    pub fn issue_event(&self) -> u64 {
        self.issue_event.get()
    }

    /// When its command was issued.
    pub fn issue_unix_ns(&self) -> u64 {
        self.issue_unix_ns.get()
    }

    /// What was known of `writer` when its command was issued.
    pub fn known(&self, writer: usize) -> Known {
        Known::from_bits(self.known[writer].get())
    }

    fn fill(&self) -> Draws {
        let run = u128::from_be_bytes(self.run);
        Draws::new(
            (run >> 64) as u64 ^ run as u64,
            self.address.get() ^ u64::from(self.volume.get()) << 48,
            self.sequence.get() ^ u64::from(self.writer.get()) << 48,
        )
    }
}

/// Whether every byte is zero, as in a block that was never written.
pub fn is_zero(block: &[u8]) -> bool {
    // Without an early exit inside a chunk the compiler uses wide registers.
    block.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> CommandStamp {
        let workload = Workload {
            seed: 0x0102_0304_0506_0708,
            block_bytes: 512,
            volumes: 4,
            writers: 2,
            span_blocks: 4096,
            stripe_blocks: 32,
            hot_permille: 500,
            hot_stripes: 3,
            sizes: vec![SizeClass { blocks: 1, weight: 9 }, SizeClass { blocks: 8, weight: 1 }],
        };
        let mut known = [Known::NONE; WRITERS_MAX as usize];
        known[0] = Known::up_to(41);
        known[0].insert(43);
        known[1] = Known::up_to(9);
        CommandStamp {
            run: RunId(*b"0123456789abcdef"),
            workload: WorkloadBytes::pack(&workload),
            writer: 1,
            sequence: 12,
            extent: Extent { volume: 3, first: 100, blocks: 3 },
            issue_event: 77,
            issue_unix_ns: 1_700_000_000_000_000_000,
            known,
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let stamp = stamp();
        let mut buffer = vec![0xee; 3 * 512];
        stamp.write(&mut buffer, |address| address - 90);
        for (index, block) in buffer.chunks(512).enumerate() {
            let header = BlockHeader::parse(block).unwrap();
            assert_eq!(header.stamp(), stamp);
            assert_eq!(usize::from(header.index()), index);
            assert_eq!(
                (header.address(), header.version()),
                (100 + index as u64, 10 + index as u64)
            );
            assert_eq!(WorkloadBytes::pack(&header.workload().unpack()), stamp.workload);
        }
    }

    #[test]
    fn the_layout_is_pinned_by_golden_bytes() {
        let mut buffer = vec![0; 3 * 512];
        stamp().write(&mut buffer, |_| 5);
        let block = &buffer[512..1024];
        let hex = |range: std::ops::Range<usize>| {
            block[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(0..8), "5345544c43484b31");
        assert_eq!(hex(12..32), "0100000030313233343536373839616263646566");
        assert_eq!(hex(32..48), "01000300010003000c00000000000000");
        assert_eq!(hex(48..72), "650000000000000064000000000000000500000000000000");
        assert_eq!(hex(72..96), "4d0000000000000000002a36fe9c97170000000000000000");
        assert_eq!(
            hex(96..128),
            "08070605040302010010000000000000000200002000000002000400f4010300"
        );
        assert_eq!(
            hex(128..160),
            "0100090008000100000000000000000000000000000000000000000000000000"
        );
        assert_eq!(hex(160..184), "010000290000000000000009000000000000000000000000");
        assert_eq!(super::super::crc32c(&block[12..]).to_le_bytes(), block[8..12]);
        assert_eq!(super::super::crc32c(block), GOLDEN_CRC, "fill or checksum changed");
    }

    const GOLDEN_CRC: u32 = 0x6bcaae25;

    #[test]
    fn any_flipped_bit_is_seen() {
        let mut buffer = vec![0; 3 * 512];
        stamp().write(&mut buffer, |_| 1);
        for bit in (0..512 * 8).step_by(7) {
            let mut block = buffer[..512].to_vec();
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(BlockHeader::parse(&block).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_forged_fill_with_a_right_checksum_is_seen() {
        let mut buffer = vec![0; 3 * 512];
        stamp().write(&mut buffer, |_| 1);
        let block = &mut buffer[..512];
        block[500] ^= 1;
        let checksum = super::super::crc32c(&block[12..]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(BlockHeader::parse(block).unwrap_err(), BlockFault::Fill { byte: 496 });
    }

    #[test]
    fn zero_is_told_from_almost_zero() {
        let mut block = vec![0; 4096];
        assert!(is_zero(&block));
        block[4095] = 1;
        assert!(!is_zero(&block));
    }
}
