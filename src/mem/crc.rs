//! Arithmetic of CRC-32C (Castagnoli, RFC 3720 appendix B.4) in the reflected
//! representation that the x86 `crc32` instruction uses, and the constants the
//! kernels of [`super::copy`] fold with.
//!
//! A *state* here is the register of the CRC without the final inversion; a
//! message's checksum is `!update(!0, message)`.
//!
//! All constants are computed at compile time from the polynomial, so that a
//! reader needs to trust the derivation and not a table of magic numbers.

/// The polynomial 0x1EDC6F41, bit-reflected: bit 31 is the coefficient of x^0.
const POLY: u32 = 0x82F6_3B78;

const REFERENCE: crc::Crc<u32, crc::Table<16>> =
    crc::Crc::<u32, crc::Table<16>>::new(&crc::CRC_32_ISCSI);

/// Multiplies a polynomial by x^`bits`, modulo the CRC polynomial.
const fn times_x_pow(mut poly: u32, bits: usize) -> u32 {
    let mut i = 0;
    while i < bits {
        poly = if poly & 1 == 1 { (poly >> 1) ^ POLY } else { poly >> 1 };
        i += 1;
    }
    poly
}

/// x^`bits` modulo the CRC polynomial, reflected (x^0 is bit 31).
const fn x_pow(bits: usize) -> u32 {
    times_x_pow(1 << 31, bits)
}

/// The pair of constants that moves a 128-bit residue `bits` further from the
/// end of the message.
///
/// The low quadword carries the higher powers, so a block is `lo·x^64 + hi` and
/// must become `lo·x^(bits+64) + hi·x^bits`. A carry-less product of reflected
/// operands comes out one bit low (a factor x), and a constant held as
/// `reflect32(k) << 1` in a 64-bit register stands for `k·x^31`: together x^32,
/// which the exponents below leave out.
pub(super) const fn fold_by(bits: usize) -> [i64; 2] {
    [(x_pow(bits + 32) as i64) << 1, (x_pow(bits - 32) as i64) << 1]
}

/// Longest lane, in 64-byte lines, of the interleaved `crc32q` kernel. Odd: three
/// streams of stores at the same place of their pages hinder one another.
pub(super) const LANE_LINES_MAX: usize = 61;

/// `LINE_SHIFT[n]` is the factor that, through a carry-less product and one
/// `crc32q`, appends `n` lines of zeros to a CRC state: x^(512·n − 33). The
/// product of two reflected 32-bit values contributes x, the instruction x^32.
/// Entry 0 is not used.
pub(super) static LINE_SHIFT: [u32; 2 * LANE_LINES_MAX + 1] = {
    let mut table = [0; 2 * LANE_LINES_MAX + 1];
    table[1] = x_pow(512 - 33);
    let mut n = 2;
    while n < table.len() {
        table[n] = times_x_pow(table[n - 1], 512);
        n += 1;
    }
    table
};

/// Advances `state` over `bytes` with tables; for processors without the
/// instruction, and the oracle of the others.
pub(super) fn update_portable(state: u32, bytes: &[u8]) -> u32 {
    // The crate takes the initial value unreflected and inverts at the end.
    let mut digest = REFERENCE.digest_with_initial(state.reverse_bits());
    digest.update(bytes);
    !digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_state_composes_and_gives_the_check_value() {
        let state = update_portable(update_portable(!0, b"1234"), b"56789");
        assert_eq!(!state, 0xE306_9283, "the check value of CRC-32C");
    }

    #[test]
    fn appending_zeros_is_a_multiplication() {
        let state = update_portable(!0, b"setline");
        assert_eq!(update_portable(state, &[0; 64]), times_x_pow(state, 512));
    }
}
