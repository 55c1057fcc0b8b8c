//! One pass over the payload: copy it to its record and compute its CRC-32C.
//!
//! A write from a host arrives as a list of buffers in host memory. It must be
//! kept (in the arena) and checksummed (for the wire and the journal). Touching
//! it once instead of twice, and writing the copy with *streaming* stores that do
//! not displace the cache, is most of what a tap costs; so this module has a
//! hand-written kernel per instruction set, chosen once, when a [`Copier`] is
//! made:
//!
//! | level | checksum | stores |
//! |---|---|---|
//! | [`Level::Avx512`] | VPCLMULQDQ folding, four 64-byte accumulators | 64 bytes |
//! | [`Level::Avx2`] | three interleaved `crc32q` chains joined by PCLMULQDQ | 32 bytes |
//! | [`Level::Portable`] | tables | whatever `memcpy` does |
//!
//! What it costs, as throughput over that of a plain `memcpy` without a checksum in
//! the same run (`cargo run --release --no-default-features --example copy_crc`; a
//! two-core Zen 4 virtual machine with other work on it, medians of seven rounds,
//! AVX-512 level, huge pages):
//!
//! | into a ring of | 4 KiB cached | 4 KiB streaming | 128 KiB cached | 128 KiB streaming |
//! |---|---|---|---|---|
//! | 1 MiB | 0.89 | 0.56 | 1.03 | 0.69 |
//! | 16 MiB | 1.23 | 1.79 | 1.08 | 1.00 |
//! | 64 MiB | 1.26 | 1.55 | 0.95 | 1.46 |
//! | 256 MiB | 1.30 | 1.64 | 1.00 | 1.32 |
//!
//! So cached stores serve a ring that stays in the second-level cache, streaming ones
//! every larger one. The reader of the copy then fetches it from memory: with a
//! write to a memory-backed volume from the ring right behind, both kinds are about
//! 0.1 apart, either way, from 16 MiB on for 4 KiB blocks.
//!
//! # Ordering
//!
//! Streaming stores are weakly ordered: another core may see a later plain
//! store before them. Whoever hands records to another core or device calls
//! [`publish_fence`] once per batch, after filling and before the hand-over. The
//! thread that filled a record reads it correctly without a fence.
//!
//! # Not done here
//!
//! No allocation, no length or ownership bookkeeping (see [`super::arena`]), no
//! prefetching of the destination.

use super::crc;

/// Bytes of a cache line: the unit the kernels work in and the alignment of a
/// destination.
pub const LINE: usize = 64;

/// A piece of scattered memory, laid out as C's `struct iovec`, so that a list
/// from SPDK can be used in place.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoVec {
    /// First byte; may be dangling when `len` is 0.
    pub base: *const u8,
    /// Length in bytes.
    pub len: usize,
}

impl From<&[u8]> for IoVec {
    fn from(bytes: &[u8]) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len() }
    }
}

/// The instruction sets that kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No instruction beyond the baseline of the build.
    Portable,
    /// AVX2, SSE 4.2 and PCLMULQDQ.
    Avx2,
    /// AVX-512 F/VL, VPCLMULQDQ, SSE 4.2.
    Avx512,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this processor can run the level.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            match self {
                Self::Portable => true,
                Self::Avx2 => has!("avx2") && has!("sse4.2") && has!("pclmulqdq"),
                Self::Avx512 => {
                    has!("avx512f")
                        && has!("avx512vl")
                        && has!("vpclmulqdq")
                        && has!("pclmulqdq")
                        && has!("sse4.2")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }
}

/// How the destination is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Past the cache. For memory that is not read again soon, or that is larger
    /// than the cache; needs [`publish_fence`] before another core may look.
    Streaming,
    /// Through the cache. For destinations that are read back at once.
    Cached,
}

/// The copy routines of one instruction-set level.
///
/// Cheap to copy; each poller keeps its own, so that the choice is made once.
#[derive(Clone, Copy, Debug)]
pub struct Copier {
    level: Level,
    kernels: Kernels,
}

/// One kernel per way to store. All take whole lines.
///
/// To call one: `run.src` is valid for reads of `run.lines` lines; if it stores,
/// `run.dst` is aligned to a line and valid for writes of as many, and the two do
/// not overlap; the processor supports the level it was made for.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    /// Only the checksum.
    scan: unsafe fn(Lines) -> u32,
    cached: unsafe fn(Lines) -> u32,
    streaming: unsafe fn(Lines) -> u32,
}

impl Kernels {
    fn of(level: Level) -> Self {
        #[cfg(target_arch = "x86_64")]
        match level {
            Level::Avx512 => Self {
                scan: x86::avx512::<NO_STORE>,
                cached: x86::avx512::<CACHED>,
                streaming: x86::avx512::<STREAMING>,
            },
            Level::Avx2 => Self {
                scan: x86::avx2::<NO_STORE>,
                cached: x86::avx2::<CACHED>,
                streaming: x86::avx2::<STREAMING>,
            },
            Level::Portable => Self::PORTABLE,
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = level;
            Self::PORTABLE
        }
    }

    const PORTABLE: Self = Self {
        scan: portable::<NO_STORE>,
        cached: portable::<CACHED>,
        streaming: portable::<STREAMING>,
    };

    #[inline]
    fn storing(self, store: Store) -> unsafe fn(Lines) -> u32 {
        match store {
            Store::Cached => self.cached,
            Store::Streaming => self.streaming,
        }
    }
}

impl Default for Copier {
    fn default() -> Self {
        Self::detect()
    }
}

impl Copier {
    /// The best level of this processor.
    pub fn detect() -> Self {
        let best = Level::ALL.into_iter().rev().find(|level| level.is_supported());
        Self::of(best.unwrap_or(Level::Portable))
    }

    /// A particular level, or `None` where the processor lacks it. For tests and
    /// measurements.
    pub fn with_level(level: Level) -> Option<Self> {
        level.is_supported().then(|| Self::of(level))
    }

    fn of(level: Level) -> Self {
        Self { level, kernels: Kernels::of(level) }
    }

    /// The level in use.
    pub fn level(self) -> Level {
        self.level
    }

    /// The CRC-32C of `bytes`.
    pub fn crc32c(self, bytes: &[u8]) -> u32 {
        self.crc32c_append(0, bytes)
    }

    /// The CRC-32C of a message that starts with bytes whose CRC-32C is `crc` and
    /// goes on with `bytes`. `crc` is 0 for an empty start.
    pub fn crc32c_append(self, crc: u32, bytes: &[u8]) -> u32 {
        let lines = bytes.len() / LINE;
        let (whole, tail) = bytes.split_at(lines * LINE);
        let run = Lines { state: !crc, src: whole.as_ptr(), dst: NOWHERE, lines };
        // SAFETY: the source is `lines` lines long; nothing is stored.
        let state = unsafe { (self.kernels.scan)(run) };
        !self.update_bytes(state, tail)
    }

    /// Copies the concatenation of `iovs` to `dst` and returns its CRC-32C.
    ///
    /// The last line is filled up with zeros, which the checksum does not cover.
    ///
    /// # Safety
    ///
    /// * `dst` is aligned to [`LINE`] and valid for writes of the sum of the
    ///   lengths, rounded up to [`LINE`]; nobody else accesses it meanwhile.
    /// * Every element of `iovs` is valid for reads of its length and overlaps
    ///   neither `dst` nor anything written meanwhile by this program. (A host
    ///   that changes its buffer under a write gets one of the versions per byte,
    ///   and possibly a checksum that does not fit: volatile memory of another
    ///   process is read here as by any DMA engine.)
    #[inline]
    pub unsafe fn copy_crc32c(self, dst: *mut u8, iovs: &[IoVec], store: Store) -> u32 {
        debug_assert_eq!(dst.addr() % LINE, 0, "destination not aligned to a line");
        let kernel = self.kernels.storing(store);
        let mut gather = Gather { copier: self, kernel, dst, state: !0, stage: Stage::new() };
        for iov in iovs {
            // SAFETY: the caller's promise for this element and for `dst`, which
            // `gather` advances by what it has taken.
            unsafe { gather.push(*iov) };
        }
        // SAFETY: as above; what is staged is at most one line.
        unsafe { gather.finish() }
    }

    /// Advances a CRC state over fewer bytes than a line.
    #[inline]
    fn update_bytes(self, state: u32, bytes: &[u8]) -> u32 {
        #[cfg(target_arch = "x86_64")]
        if self.level != Level::Portable {
            // SAFETY: both other levels include SSE 4.2.
            return unsafe { x86::crc_bytes(state, bytes) };
        }
        crc::update_portable(state, bytes)
    }
}

/// Orders streaming stores before every later store of this thread.
///
/// Once per batch, between the last fill and whatever makes the records visible
/// to another core or a device (a ring's tail, a doorbell).
#[inline]
pub fn publish_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `sfence` is part of SSE, which x86-64 always has.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
}

const NO_STORE: u8 = 0;
const CACHED: u8 = 1;
const STREAMING: u8 = 2;
const NOWHERE: *mut u8 = std::ptr::dangling_mut();

/// What a kernel works on.
#[derive(Clone, Copy)]
struct Lines {
    /// CRC state before the first line.
    state: u32,
    src: *const u8,
    dst: *mut u8,
    /// Number of 64-byte lines.
    lines: usize,
}

/// A line put together from buffers that end inside it.
#[repr(align(64))]
struct Stage {
    line: [u8; LINE],
    len: usize,
}

impl Stage {
    fn new() -> Self {
        Self { line: [0; LINE], len: 0 }
    }
}

/// The walk over a list of buffers: whole lines go through the kernel, ragged
/// ends through the stage.
struct Gather {
    copier: Copier,
    kernel: unsafe fn(Lines) -> u32,
    dst: *mut u8,
    state: u32,
    stage: Stage,
}

impl Gather {
    /// # Safety
    ///
    /// As for [`Copier::copy_crc32c`], for this element.
    #[inline]
    unsafe fn push(&mut self, iov: IoVec) {
        let IoVec { mut base, mut len } = iov;
        while len > 0 {
            let taken = if self.stage.len == 0 && len >= LINE {
                // SAFETY: `len` bytes are readable at `base`.
                unsafe { self.run(base, len / LINE) };
                len / LINE * LINE
            } else {
                let n = len.min(LINE - self.stage.len);
                // SAFETY: `n <= len`, so the bytes are readable.
                let part = unsafe { std::slice::from_raw_parts(base, n) };
                self.stage.line[self.stage.len..][..n].copy_from_slice(part);
                self.stage.len += n;
                if self.stage.len == LINE {
                    self.stage.len = 0;
                    let line = self.stage.line.as_ptr();
                    // SAFETY: the stage is one line.
                    unsafe { self.run(line, 1) };
                }
                n
            };
            // SAFETY: `taken <= len`, inside the element or one past it.
            base = unsafe { base.add(taken) };
            len -= taken;
        }
    }

    /// # Safety
    ///
    /// `src` is readable for `lines` lines, `self.dst` writable for as many.
    #[inline]
    unsafe fn run(&mut self, src: *const u8, lines: usize) {
        let run = Lines { state: self.state, src, dst: self.dst, lines };
        // SAFETY: the caller's promise; `dst` starts aligned and moves by lines.
        self.state = unsafe { (self.kernel)(run) };
        // SAFETY: stays within the destination or one past it.
        self.dst = unsafe { self.dst.add(lines * LINE) };
    }

    /// # Safety
    ///
    /// `self.dst` is writable for one line if anything is staged.
    #[inline]
    unsafe fn finish(mut self) -> u32 {
        let len = self.stage.len;
        if len > 0 {
            self.stage.line[len..].fill(0);
            let state = self.copier.update_bytes(self.state, &self.stage.line[..len]);
            let line = self.stage.line.as_ptr();
            // SAFETY: the stage is one line. The state it leaves covers the
            // padding too and is replaced.
            unsafe { self.run(line, 1) };
            self.state = state;
        }
        !self.state
    }
}

/// # Safety
///
/// As for [`Kernels`].
unsafe fn portable<const STORE: u8>(run: Lines) -> u32 {
    let len = run.lines * LINE;
    if STORE != NO_STORE {
        // SAFETY: readable, writable and disjoint by the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(run.src, run.dst, len) };
    }
    // SAFETY: readable by the caller's promise.
    let src = unsafe { std::slice::from_raw_parts(run.src, len) };
    crc::update_portable(run.state, src)
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;
