//! Equality of images, volume by volume.

use super::block::{BlockHeader, RunId};
use super::images::{ScanError, Source};
use serde::Serialize;

/// Bytes read at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// How two images of one volume compare.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The first image.
    pub a: String,
    /// The second.
    pub b: String,
    /// Length of the first in bytes.
    pub a_bytes: u64,
    /// Length of the second.
    pub b_bytes: u64,
    /// Same length, same bytes.
    pub equal: bool,
    /// Blocks that differ, within the shorter length.
    pub differing_blocks: u64,
    /// The first of them.
    pub first_difference: Option<Difference>,
    /// Bytes that were read of each to compare; holes in both need not be.
    pub read_bytes: u64,
}

/// A block that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its address, in blocks of the size compared by.
    pub address: u64,
    /// Offset in the image of the first byte that differs.
    pub byte: u64,
    /// What the first image has there, if `setline-check write` wrote it.
    pub a: Option<Holds>,
    /// What the second has there.
    pub b: Option<Holds>,
}

/// A block of `setline-check write`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holds {
    /// Its run.
    pub run: RunId,
    /// Its writer.
    pub writer: u16,
    /// Number of its command among the writer's.
    pub sequence: u64,
    /// How often it had been written.
    pub version: u64,
}

/// Compares two images by blocks of `block_bytes`.
pub fn compare(
    a: &mut dyn Source,
    b: &mut dyn Source,
    block_bytes: u32,
) -> Result<Pair, ScanError> {
    let (a_bytes, b_bytes) = (a.bytes(), b.bytes());
    let mut pair = Pair {
        a: a.name(),
        b: b.name(),
        a_bytes,
        b_bytes,
        equal: a_bytes == b_bytes,
        differing_blocks: 0,
        first_difference: None,
        read_bytes: 0,
    };
    let common = a_bytes.min(b_bytes);
    let size = block_bytes as usize;
    let mut buffers = [vec![0; CHUNK_BYTES as usize], vec![0; CHUNK_BYTES as usize]];
    let mut offset = 0;
    while offset < common {
        let next = [next_data(a, offset)?, next_data(b, offset)?];
        let Some(start) = next.into_iter().flatten().min().filter(|&start| start < common) else {
            break;
        };
        offset = offset.max(start / u64::from(block_bytes) * u64::from(block_bytes));
        let length = CHUNK_BYTES.min(common - offset) as usize;
        let [chunk_a, chunk_b] = &mut buffers;
        let (chunk_a, chunk_b) = (&mut chunk_a[..length], &mut chunk_b[..length]);
        read(a, offset, chunk_a)?;
        read(b, offset, chunk_b)?;
        pair.read_bytes += length as u64;
        if chunk_a != chunk_b {
            for (index, (block_a, block_b)) in
                chunk_a.chunks(size).zip(chunk_b.chunks(size)).enumerate()
            {
                let Some(byte) = block_a.iter().zip(block_b).position(|(a, b)| a != b) else {
                    continue;
                };
                pair.differing_blocks += 1;
                let at = offset + (index * size) as u64;
                pair.first_difference.get_or_insert_with(|| Difference {
                    address: at / u64::from(block_bytes),
                    byte: at + byte as u64,
                    a: holds(block_a),
                    b: holds(block_b),
                });
            }
        }
        offset += length as u64;
    }
    pair.equal &= pair.differing_blocks == 0;
    Ok(pair)
}

fn next_data(source: &mut dyn Source, offset: u64) -> Result<Option<u64>, ScanError> {
    match source.next_data(offset) {
        Ok(range) => Ok(range.map(|range| range.start)),
        Err(error) => Err(ScanError::Read { name: source.name(), offset, error }),
    }
}

fn read(source: &mut dyn Source, offset: u64, buffer: &mut [u8]) -> Result<(), ScanError> {
    let result = source.read_at(offset, buffer);
    result.map_err(|error| ScanError::Read { name: source.name(), offset, error })
}

fn holds(block: &[u8]) -> Option<Holds> {
    let header = BlockHeader::parse(block).ok()?;
    Some(Holds {
        run: header.run(),
        writer: header.writer(),
        sequence: header.sequence(),
        version: header.version(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::images::{FileSource, MemorySource};
    use super::*;
    use std::os::unix::fs::FileExt;

    fn of(a: &[u8], b: &[u8]) -> Pair {
        compare(&mut MemorySource(a), &mut MemorySource(b), 512).unwrap()
    }

    #[test]
    fn every_differing_block_is_counted_and_the_first_byte_named() {
        let a = vec![7; 3 << 20];
        assert!(of(&a, &a).equal);
        let mut b = a.clone();
        b[(2 << 20) + 700] = 0;
        b[(2 << 20) + 701] = 0;
        b[(3 << 20) - 1] = 0;
        let pair = of(&a, &b);
        assert_eq!((pair.equal, pair.differing_blocks), (false, 2));
        let first = pair.first_difference.unwrap();
        assert_eq!((first.address, first.byte), (4097, (2 << 20) + 700));
    }

    #[test]
    fn images_of_other_lengths_are_not_equal_even_if_one_starts_the_other() {
        let pair = of(&[7; 1024], &[7; 1536]);
        assert_eq!((pair.equal, pair.differing_blocks), (false, 0));
    }

    #[test]
    fn a_hole_equals_zeros_and_holes_in_both_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        for path in &paths {
            std::fs::File::create(path).unwrap().set_len(1 << 30).unwrap();
        }
        let write = |path: &std::path::Path, bytes: &[u8], at: u64| {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(bytes, at).unwrap();
        };
        write(&paths[0], &[0; 8192], 100 << 20);
        let open = |path: &std::path::Path| FileSource::open(path).unwrap();
        let pair = compare(&mut open(&paths[0]), &mut open(&paths[1]), 512).unwrap();
        assert!(pair.equal && pair.read_bytes <= 2 << 20, "{pair:?}");
        write(&paths[1], &[1], (900 << 20) + 5);
        let pair = compare(&mut open(&paths[0]), &mut open(&paths[1]), 512).unwrap();
        assert_eq!(pair.first_difference.unwrap().byte, (900 << 20) + 5);
    }
}
