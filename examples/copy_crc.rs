//! How fast payload gets into a ring of records, with and without a checksum.
//!
//! `cargo run --release --no-default-features --example copy_crc`
//!
//! Blocks are taken from a small set of source buffers, as from a queue of host
//! commands, and go to the next place in a ring; stores are fenced once per
//! batch. All variants run in every round; medians and the range of rounds are
//! printed in GB/s, so that ratios hold on a noisy machine.
//!
//! The second table also writes each block to a large memory-backed volume half
//! a queue later, reading it from the ring; the third reads it from the source
//! instead. They tell what bypassing the cache costs the reader that follows.
#![allow(unsafe_code, clippy::print_stdout)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use setline::mem::copy::publish_fence;
use setline::mem::{Copier, IoVec, Level, Store};

const MIB: usize = 1 << 20;
const ROUNDS: usize = 7;
const BYTES_PER_ROUND: usize = 384 * MIB;
const VOLUME_BYTES: usize = 256 * MIB;

struct Region {
    base: *mut u8,
    layout: Layout,
}

impl Region {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, 2 * MIB).expect("a power of two alignment");
        // SAFETY: the size is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        assert!(!base.is_null(), "no memory");
        // Huge pages, as the arena has; without them the measurement is one of TLB misses.
        // SAFETY: the region was just allocated.
        unsafe { rustix::mm::madvise(base.cast(), len, rustix::mm::Advice::LinuxHugepage) }
            .expect("transparent huge pages");
        // SAFETY: as above. Touch every page before measuring.
        unsafe { base.write_bytes(1, len) };
        Self { base, layout }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`.
        unsafe { dealloc(self.base, self.layout) };
    }
}

#[derive(Clone, Copy)]
enum Way {
    Memcpy,
    Fused(Copier, Store),
}

impl Way {
    fn all() -> Vec<(String, Self)> {
        let mut ways = vec![("memcpy".to_owned(), Self::Memcpy)];
        for level in [Level::Avx2, Level::Avx512] {
            if let Some(copier) = Copier::with_level(level) {
                for store in [Store::Cached, Store::Streaming] {
                    ways.push((format!("{level:?} {store:?} +crc"), Self::Fused(copier, store)));
                }
            }
        }
        ways
    }

    fn run(self, dst: *mut u8, src: &[u8]) -> u32 {
        match self {
            Self::Memcpy => {
                // SAFETY: the caller passes places inside its own regions.
                unsafe { dst.copy_from_nonoverlapping(src.as_ptr(), src.len()) };
                0
            }
            Self::Fused(copier, store) => {
                // SAFETY: as above; places are aligned to their block.
                unsafe { copier.copy_crc32c(dst, &[IoVec::from(src)], store) }
            }
        }
    }
}

/// Where the later write to the volume reads from.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    None,
    FromRing,
    FromSource,
}

struct Setup {
    ways: Vec<(String, Way)>,
    ring: Region,
    volume: Region,
}

impl Setup {
    /// Moves `blocks` blocks one way.
    fn round(
        &self,
        way: Way,
        source: &[u8],
        block: usize,
        blocks: usize,
        ring_len: usize,
        base: Base,
    ) {
        let depth = source.len() / block;
        let (batch, delay) = (depth.div_ceil(2), depth / 2);
        let place = |i: usize| self.ring.base.wrapping_add(i * block % ring_len);
        let mut sum = 0;
        for i in 0..blocks {
            sum ^= way.run(place(i), &source[i % depth * block..][..block]);
            if i % batch == batch - 1 {
                publish_fence();
            }
            if base == Base::None || i < delay {
                continue;
            }
            let done = i - delay;
            let from = match base {
                Base::FromRing => place(done).cast_const(),
                _ => source[done % depth * block..].as_ptr(),
            };
            // A stride that visits the volume out of order, as random writes do.
            let home = done * 7919 * block % VOLUME_BYTES;
            // SAFETY: both places are a block inside their regions.
            unsafe { self.volume.base.wrapping_add(home).copy_from_nonoverlapping(from, block) };
        }
        black_box(sum);
    }
}

fn measure(setup: &Setup, block: usize, ring_len: usize, base: Base) {
    let depth = if block > 64 * 1024 { 4 } else { 64 };
    let source: Vec<u8> = (0..block * depth).map(|i| (i * 31) as u8).collect();
    let ways = &setup.ways;
    let blocks = BYTES_PER_ROUND / block;
    let mut rates = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for ((_, way), rates) in ways.iter().zip(&mut rates) {
            let started = cpu_seconds();
            setup.round(*way, &source, block, blocks, ring_len, base);
            rates.push((blocks * block) as f64 / (cpu_seconds() - started) / 1e9);
        }
    }
    let memcpy = median(&mut rates[0]);
    for ((name, _), rates) in ways.iter().zip(&mut rates) {
        let mid = median(rates);
        println!(
            "{:>7} {:>7} {name:<24} {mid:7.2} ({:6.2}..{:6.2}) {:5.2} x memcpy",
            block / 1024,
            ring_len / MIB,
            rates[0],
            rates[rates.len() - 1],
            mid / memcpy,
        );
    }
}

/// Processor time of this thread, so that neighbours on the machine matter less.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let setup =
        Setup { ways: Way::all(), ring: Region::new(256 * MIB), volume: Region::new(VOLUME_BYTES) };
    for base in [Base::None, Base::FromRing, Base::FromSource] {
        println!(
            "{}",
            match base {
                Base::None => "into a ring\n    KiB    MiB way                         GB/s",
                Base::FromRing => "into a ring, then from the ring to a volume",
                Base::FromSource => "into a ring, then from the source to a volume",
            }
        );
        for block in [4096, 128 * 1024] {
            for ring_mib in [1, 16, 64, 256] {
                measure(&setup, block, ring_mib * MIB, base);
            }
        }
    }
}
