use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const REFERENCE: ::crc::Crc<u32> = ::crc::Crc::<u32>::new(&::crc::CRC_32_ISCSI);

fn copiers() -> impl Iterator<Item = Copier> {
    Level::ALL.into_iter().filter_map(Copier::with_level)
}

/// Bytes that differ between neighbours and between lines.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// A destination with guard lines on both sides.
struct Guarded {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u8; LINE]);

impl Guarded {
    const GUARD: u8 = 0xA5;

    fn new(len: usize) -> Self {
        Self { lines: vec![Line([Self::GUARD; LINE]); len.div_ceil(LINE) + 2] }
    }

    fn dst(&mut self) -> *mut u8 {
        self.lines[1..].as_mut_ptr().cast()
    }

    /// The bytes between the guards, after checking these.
    fn checked(&self) -> Vec<u8> {
        let (first, rest) = self.lines.split_first().unwrap();
        let (last, inner) = rest.split_last().unwrap();
        assert_eq!((first.0, last.0), ([Self::GUARD; LINE], [Self::GUARD; LINE]));
        inner.iter().flat_map(|line| line.0).collect()
    }
}

fn check(copier: Copier, store: Store, parts: &[&[u8]]) {
    let whole = parts.concat();
    let iovs: Vec<IoVec> = parts.iter().map(|part| IoVec::from(*part)).collect();
    let mut dst = Guarded::new(whole.len());
    // SAFETY: `Guarded` has room for the whole rounded up to a line.
    let crc = unsafe { copier.copy_crc32c(dst.dst(), &iovs, store) };
    publish_fence();
    assert_eq!(crc, REFERENCE.checksum(&whole), "{copier:?} {store:?} {}", whole.len());
    let copied = dst.checked();
    assert_eq!(copied[..whole.len()], whole);
    assert!(copied[whole.len()..].iter().all(|byte| *byte == 0), "padding is zero");
}

#[test]
fn every_length_up_to_a_few_lines_is_copied_and_summed() {
    let bytes = pattern(20 * LINE, 1);
    for copier in copiers() {
        for len in 0..bytes.len() {
            check(copier, Store::Streaming, &[&bytes[..len]]);
            assert_eq!(copier.crc32c(&bytes[..len]), REFERENCE.checksum(&bytes[..len]));
        }
    }
}

#[test]
fn lengths_beyond_one_block_of_the_interleaved_kernel_are_summed() {
    let bytes = pattern(3 * 64 * 3 * LINE + 5 * LINE + 7, 2);
    for copier in copiers() {
        for cut in [0, 1, LINE, 63 * LINE, 192 * LINE] {
            check(copier, Store::Cached, &[&bytes[cut..]]);
        }
    }
}

#[test]
fn a_checksum_can_be_continued() {
    let bytes = pattern(1000, 3);
    for copier in copiers() {
        let first = copier.crc32c(&bytes[..333]);
        assert_eq!(copier.crc32c_append(first, &bytes[333..]), REFERENCE.checksum(&bytes));
    }
}

#[test]
fn the_check_value_of_the_standard_is_met() {
    for copier in copiers() {
        assert_eq!(copier.crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(copier.crc32c(&[0; 32]), 0x8A91_36AA, "RFC 3720 B.4, 32 bytes of zeros");
    }
}

proptest! {
    #[test]
    fn any_split_at_any_alignment_gives_the_same_bytes_and_sum(
        pieces in vec((0usize..3000, 0usize..64), 0..12),
        streaming: bool,
        seed: u64,
    ) {
        // Each piece is cut out of its own buffer at its own misalignment.
        let buffers: Vec<(Vec<u8>, usize)> = pieces
            .iter()
            .map(|(len, skew)| (pattern(len + skew, seed ^ *len as u64), *skew))
            .collect();
        let parts: Vec<&[u8]> = buffers.iter().map(|(bytes, skew)| &bytes[*skew..]).collect();
        let store = if streaming { Store::Streaming } else { Store::Cached };
        for copier in copiers() {
            check(copier, store, &parts);
        }
    }
}
