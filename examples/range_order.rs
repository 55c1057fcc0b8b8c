//! What ordering overlapping writes costs: nanoseconds per write admitted and finished, with so many
//! in flight. Not a claim but a number:
//! `cargo run --release --no-default-features --example range_order`.
#![allow(clippy::print_stdout, reason = "it prints what it measured")]

use setline::proto::ranges::{Admission, RangeOrder};
use setline::proto::types::{Extent, VolumeId};

fn main() {
    for in_flight in [64_u32, 128, 1024] {
        let mut order = RangeOrder::with_capacity(in_flight as usize);
        let mut x = 1_u64;
        let mut random = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            Extent { lba: x % (1 << 24), blocks: 1 }
        };
        let mut waiting = 0_u64;
        for slot in 0..in_flight {
            let _ = order.admit(slot, VolumeId(1), random());
        }
        let rounds = 10_000_000_u32;
        let start = std::time::Instant::now();
        for round in 0..rounds {
            let slot = round % in_flight;
            order.finish(slot, |_| {});
            waiting += u64::from(order.admit(slot, VolumeId(1), random()) == Admission::Waits);
        }
        let ns = start.elapsed().as_nanos() as f64 / f64::from(rounds);
        println!("{in_flight} in flight: {ns:.1} ns, {waiting} waited");
    }
}
