//! CRC-32C (Castagnoli, iSCSI polynomial; RFC 3720 appendix B.4) of short byte strings.
//!
//! Uses the CPU's instruction where the build allows it and a table otherwise; needs no `std`.
//! Long payloads are checksummed while they are copied, in the neighbouring modules.

/// The CRC-32C of `bytes`.
#[must_use]
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse4.2"))]
    // SAFETY: the instruction is there: the build requires SSE 4.2 (the cfg above).
    return unsafe { instruction(bytes) };
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse4.2")))]
    table(bytes)
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse4.2"))]
#[target_feature(enable = "sse4.2")]
#[inline]
fn instruction(bytes: &[u8]) -> u32 {
    use core::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, tail) = bytes.as_chunks::<8>();
    let mut crc = u64::from(u32::MAX);
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    let mut crc = crc as u32;
    for byte in tail {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

#[cfg(any(test, not(all(target_arch = "x86_64", target_feature = "sse4.2"))))]
fn table(bytes: &[u8]) -> u32 {
    static TABLE: crc::Crc<u32, crc::Table<16>> =
        crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);
    TABLE.checksum(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_3720_vectors_hold() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn instruction_and_table_agree_at_every_length() {
        let bytes: Vec<u8> = (0..300_u32).map(|i| (i * 7 + 3) as u8).collect();
        for len in 0..bytes.len() {
            assert_eq!(crc32c(&bytes[..len]), table(&bytes[..len]), "length {len}");
        }
    }
}
