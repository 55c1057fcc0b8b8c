//! The kernels for x86-64. Each runs over whole 64-byte lines: loads may be
//! unaligned, stores are aligned to the line.

#![allow(clippy::multiple_unsafe_ops_per_block)] // a kernel is loads and stores under one promise

use std::arch::x86_64::*;

use super::crc::{LANE_LINES_MAX, LINE_SHIFT, fold_by};
use super::{CACHED, LINE, Lines, NO_STORE, STREAMING};

/// Advances a CRC state over bytes, eight at a time.
#[target_feature(enable = "sse4.2")]
pub(super) fn crc_bytes(state: u32, bytes: &[u8]) -> u32 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut state = u64::from(state);
    for word in words {
        state = _mm_crc32_u64(state, u64::from_le_bytes(*word));
    }
    tail.iter().fold(state as u32, |state, byte| _mm_crc32_u8(state, *byte))
}

/// # Safety
///
/// `src` is readable and, with a store, `dst` aligned and writable for a line.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn move_512<const STORE: u8>(src: *const u8, dst: *mut u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let line = _mm512_loadu_si512(src.cast());
        match STORE {
            STREAMING => _mm512_stream_si512(dst.cast(), line),
            CACHED => _mm512_store_si512(dst.cast(), line),
            _ => {}
        }
        line
    }
}

/// Moves each 128-bit lane of `acc` on by the distance of `by` and adds `line`.
#[inline]
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn fold_512(acc: __m512i, by: __m512i, line: __m512i) -> __m512i {
    let low = _mm512_clmulepi64_epi128::<0x00>(acc, by);
    let high = _mm512_clmulepi64_epi128::<0x11>(acc, by);
    _mm512_ternarylogic_epi64::<0x96>(low, high, line) // a ^ b ^ c
}

/// The same distance for all four 128-bit lanes.
const fn all_lanes(bits: usize) -> [i64; 8] {
    let [low, high] = fold_by(bits);
    [low, high, low, high, low, high, low, high]
}

/// Lanes 0, 1 and 2 move onto lane 3, which itself drops out.
const fn onto_last_lane() -> [i64; 8] {
    let ([l0, h0], [l1, h1], [l2, h2]) = (fold_by(384), fold_by(256), fold_by(128));
    [l0, h0, l1, h1, l2, h2, 0, 0]
}

/// A vector of constants. (Plain loads: closures and helpers without the target
/// feature would not be inlined into a kernel.)
#[inline]
#[target_feature(enable = "avx512f")]
fn vector(constants: &'static [i64; 8]) -> __m512i {
    // SAFETY: 64 readable bytes.
    unsafe { _mm512_loadu_si512(constants.as_ptr().cast()) }
}

/// Folding by carry-less multiplication, four lines at a time.
///
/// ```text
///   line  0 1 2 3 | 4 5 6 7 | ...        acc_i = fold(acc_i, 4 lines) ^ line
///         a b c d | a b c d |            at the end a, b, c onto d,
///                                        then the four 128-bit lanes of d onto the last,
///                                        then two crc32q reduce 128 bits to 32
/// ```
///
/// # Safety
///
/// As for `Kernels`, and the processor has the features named here.
#[target_feature(enable = "avx512f,avx512vl,vpclmulqdq,pclmulqdq,sse4.2")]
pub(super) unsafe fn avx512<const STORE: u8>(run: Lines) -> u32 {
    static BY_4_LINES: [i64; 8] = all_lanes(4 * 512);
    static BY_3_LINES: [i64; 8] = all_lanes(3 * 512);
    static BY_2_LINES: [i64; 8] = all_lanes(2 * 512);
    static BY_LINE: [i64; 8] = all_lanes(512);
    static ONTO_LAST_LANE: [i64; 8] = onto_last_lane();

    let Lines { state, mut src, mut dst, lines } = run;
    if lines == 0 {
        return state;
    }
    let by_line = vector(&BY_LINE);
    let state = _mm512_zextsi128_si512(_mm_cvtsi32_si128(state as i32));
    let mut left;
    let mut acc;
    // SAFETY: `left` counts the lines behind `src` and `dst`; no step goes past 0.
    unsafe {
        if lines >= 4 {
            let by = vector(&BY_4_LINES);
            let mut a = _mm512_xor_si512(move_512::<STORE>(src, dst), state);
            let mut b = move_512::<STORE>(src.add(LINE), dst.wrapping_add(LINE));
            let mut c = move_512::<STORE>(src.add(2 * LINE), dst.wrapping_add(2 * LINE));
            let mut d = move_512::<STORE>(src.add(3 * LINE), dst.wrapping_add(3 * LINE));
            left = lines - 4;
            src = src.add(4 * LINE);
            dst = dst.wrapping_add(4 * LINE);
            while left >= 4 {
                a = fold_512(a, by, move_512::<STORE>(src, dst));
                b = fold_512(b, by, move_512::<STORE>(src.add(LINE), dst.wrapping_add(LINE)));
                c = fold_512(
                    c,
                    by,
                    move_512::<STORE>(src.add(2 * LINE), dst.wrapping_add(2 * LINE)),
                );
                d = fold_512(
                    d,
                    by,
                    move_512::<STORE>(src.add(3 * LINE), dst.wrapping_add(3 * LINE)),
                );
                left -= 4;
                src = src.add(4 * LINE);
                dst = dst.wrapping_add(4 * LINE);
            }
            // The products do not wait for one another, only the sums do.
            let cd = fold_512(c, by_line, d);
            let b_on_d = fold_512(b, vector(&BY_2_LINES), cd);
            acc = fold_512(a, vector(&BY_3_LINES), b_on_d);
        } else {
            acc = _mm512_xor_si512(move_512::<STORE>(src, dst), state);
            left = lines - 1;
            src = src.add(LINE);
            dst = dst.wrapping_add(LINE);
        }
        while left > 0 {
            acc = fold_512(acc, by_line, move_512::<STORE>(src, dst));
            left -= 1;
            src = src.add(LINE);
            dst = dst.wrapping_add(LINE);
        }
    }
    let last_lane = _mm512_maskz_mov_epi64(0b1100_0000, acc);
    let moved = fold_512(acc, vector(&ONTO_LAST_LANE), last_lane);
    let pair =
        _mm256_xor_si256(_mm512_castsi512_si256(moved), _mm512_extracti64x4_epi64::<1>(moved));
    let last = _mm_xor_si128(_mm256_castsi256_si128(pair), _mm256_extracti128_si256::<1>(pair));
    let state = _mm_crc32_u64(0, _mm_cvtsi128_si64(last) as u64);
    _mm_crc32_u64(state, _mm_extract_epi64::<1>(last) as u64) as u32
}

/// # Safety
///
/// As for [`move_512`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn move_256<const STORE: u8>(src: *const u8, dst: *mut u8) {
    // SAFETY: the caller's promise; 32 bytes in are inside the line.
    unsafe {
        if STORE == NO_STORE {
            return;
        }
        let low = _mm256_loadu_si256(src.cast());
        let high = _mm256_loadu_si256(src.add(32).cast());
        if STORE == STREAMING {
            _mm256_stream_si256(dst.cast(), low);
            _mm256_stream_si256(dst.add(32).cast(), high);
        } else {
            _mm256_store_si256(dst.cast(), low);
            _mm256_store_si256(dst.add(32).cast(), high);
        }
    }
}

/// The 64-bit word number `word` behind `src`.
///
/// # Safety
///
/// The word is readable.
#[inline(always)]
unsafe fn word_at(src: *const u8, word: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { src.cast::<u64>().add(word).read_unaligned() }
}

/// Three chains of `crc32q` over three neighbouring lanes, because one chain
/// waits three cycles for each step. Joined by [`LINE_SHIFT`].
///
/// # Safety
///
/// As for `Kernels`, and the processor has the features named here.
#[target_feature(enable = "avx2,pclmulqdq,sse4.2")]
pub(super) unsafe fn avx2<const STORE: u8>(run: Lines) -> u32 {
    let Lines { state, mut src, mut dst, lines: mut left } = run;
    let mut state = u64::from(state);
    // SAFETY: `left` counts the lines behind `src` and `dst`; three lanes of
    // `left / 3` lines or one line are never more.
    unsafe {
        while left >= 3 {
            let lane_lines = (left / 3).min(LANE_LINES_MAX);
            let lane = lane_lines * LINE;
            let (mut second, mut third) = (0, 0);
            for at in (0..lane).step_by(LINE) {
                let (from, to) = (src.add(at), dst.wrapping_add(at));
                move_256::<STORE>(from, to);
                move_256::<STORE>(from.add(lane), to.wrapping_add(lane));
                move_256::<STORE>(from.add(2 * lane), to.wrapping_add(2 * lane));
                let (from_2, from_3) = (from.add(lane), from.add(2 * lane));
                for word in 0..LINE / 8 {
                    state = _mm_crc32_u64(state, word_at(from, word));
                    second = _mm_crc32_u64(second, word_at(from_2, word));
                    third = _mm_crc32_u64(third, word_at(from_3, word));
                }
            }
            let first = shift(state, LINE_SHIFT[2 * lane_lines]);
            let second = shift(second, LINE_SHIFT[lane_lines]);
            state = third ^ _mm_crc32_u64(0, first ^ second);
            left -= 3 * lane_lines;
            src = src.add(3 * lane);
            dst = dst.wrapping_add(3 * lane);
        }
        while left > 0 {
            move_256::<STORE>(src, dst);
            for word in 0..LINE / 8 {
                state = _mm_crc32_u64(state, word_at(src, word));
            }
            left -= 1;
            src = src.add(LINE);
            dst = dst.wrapping_add(LINE);
        }
    }
    state as u32
}

/// The carry-less product of a CRC state and a factor of [`LINE_SHIFT`], to be
/// reduced by `crc32q`.
#[inline]
#[target_feature(enable = "sse2,pclmulqdq")]
fn shift(state: u64, by: u32) -> u64 {
    let product =
        _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(state as i64), _mm_cvtsi32_si128(by as i32));
    _mm_cvtsi128_si64(product) as u64
}
