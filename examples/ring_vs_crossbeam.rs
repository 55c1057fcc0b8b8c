//! The ring against crossbeam's bounded queue, in one run.
//!
//! `cargo run --release --no-default-features --example ring_vs_crossbeam`
//!
//! Three measurements, each with both in every round: messages of 8 and 64 bytes
//! streamed from one core to another, one at a time and in batches of 32; a
//! message sent there and back; and a push and a pop on one core, which is what
//! an idle ring costs a poller. Medians and the range of rounds, in nanoseconds.
#![allow(clippy::print_stdout)]

use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use setline::ring::{Consumer, Producer, ring};

const ROUNDS: usize = 9;
const CAPACITY: usize = 1024;

/// A message of eight words.
type Wide = [u64; 8];

trait Message: Copy + Send + 'static {
    fn of(value: u64) -> Self;
    fn value(self) -> u64;
}

impl Message for u64 {
    fn of(value: u64) -> Self {
        value
    }
    fn value(self) -> u64 {
        self
    }
}

impl Message for Wide {
    fn of(value: u64) -> Self {
        [value; 8]
    }
    fn value(self) -> u64 {
        self[7]
    }
}

trait Sender<T>: Send + 'static {
    /// Puts messages `from..to` as far as there is room; returns how many.
    fn send(&mut self, from: u64, to: u64) -> u64;
}

trait Receiver<T> {
    /// Takes up to `max` messages; returns their sum and number.
    fn receive(&mut self, max: usize) -> (u64, u64);
}

impl<T: Message> Sender<T> for Producer<T> {
    fn send(&mut self, from: u64, to: u64) -> u64 {
        if to - from == 1 {
            return u64::from(self.push(T::of(from)).is_ok());
        }
        self.push_batch((from..to).map(T::of)) as u64
    }
}

impl<T: Message> Receiver<T> for Consumer<T> {
    fn receive(&mut self, max: usize) -> (u64, u64) {
        if max == 1 {
            return self.pop().map_or((0, 0), |message| (message.value(), 1));
        }
        self.drain(max).fold((0, 0), |(sum, count), message| (sum + message.value(), count + 1))
    }
}

impl<T: Message> Sender<T> for Arc<ArrayQueue<T>> {
    fn send(&mut self, from: u64, to: u64) -> u64 {
        (from..to).take_while(|value| self.push(T::of(*value)).is_ok()).count() as u64
    }
}

impl<T: Message> Receiver<T> for Arc<ArrayQueue<T>> {
    fn receive(&mut self, max: usize) -> (u64, u64) {
        let (mut sum, mut count) = (0, 0);
        while count < max as u64 {
            let Some(message) = self.pop() else { break };
            sum += message.value();
            count += 1;
        }
        (sum, count)
    }
}

fn crossbeam<T: Message>() -> (Arc<ArrayQueue<T>>, Arc<ArrayQueue<T>>) {
    let queue = Arc::new(ArrayQueue::new(CAPACITY));
    (Arc::clone(&queue), queue)
}

/// Nanoseconds per message from one core to another.
fn stream<T: Message>((mut tx, mut rx): (impl Sender<T>, impl Receiver<T>), batch: u64) -> f64 {
    const MESSAGES: u64 = 2_000_000;
    let sender = std::thread::spawn(move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        let mut next = 0;
        while next < MESSAGES {
            let sent = tx.send(next, MESSAGES.min(next + batch));
            next += sent;
            if sent == 0 {
                spin_loop();
            }
        }
    });
    let started = Instant::now();
    let (mut sum, mut count) = (0u64, 0);
    while count < MESSAGES {
        let (part, got) = rx.receive(batch as usize);
        sum += part;
        count += got;
        if got == 0 {
            spin_loop();
        }
    }
    let ns = started.elapsed().as_nanos() as f64 / MESSAGES as f64;
    sender.join().expect("the sender does not panic");
    assert_eq!(sum, MESSAGES * (MESSAGES - 1) / 2, "every message once");
    ns
}

/// Nanoseconds for a message there and back.
fn round_trip(
    (mut tx, mut rx): (impl Sender<u64>, impl Receiver<u64>),
    (mut back_tx, mut back_rx): (impl Sender<u64>, impl Receiver<u64> + Send + 'static),
) -> f64 {
    const TRIPS: u64 = 100_000;
    let echo = std::thread::spawn(move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
        let mut count = 0;
        while count < TRIPS {
            let (_, got) = back_rx.receive(1);
            if got == 1 {
                tx.send(count, count + 1);
                count += 1;
            } else {
                spin_loop();
            }
        }
    });
    let started = Instant::now();
    for trip in 0..TRIPS {
        back_tx.send(trip, trip + 1);
        while rx.receive(1).1 == 0 {
            spin_loop();
        }
    }
    let ns = started.elapsed().as_nanos() as f64 / TRIPS as f64;
    echo.join().expect("the echo does not panic");
    ns
}

/// Nanoseconds for a push and a pop on one core.
fn alone((mut tx, mut rx): (impl Sender<u64>, impl Receiver<u64>)) -> f64 {
    const TURNS: u64 = 5_000_000;
    let started = Instant::now();
    for turn in 0..TURNS {
        black_box(tx.send(turn, turn + 1));
        black_box(rx.receive(1));
    }
    started.elapsed().as_nanos() as f64 / TURNS as f64
}

fn compare(name: &str, ours: impl Fn() -> f64, theirs: impl Fn() -> f64) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours());
        b.push(theirs());
    }
    for rounds in [&mut a, &mut b] {
        rounds.sort_by(f64::total_cmp);
    }
    let (mid, last) = (ROUNDS / 2, ROUNDS - 1);
    println!(
        "{name:<28} ring {:7.1} ({:.1}..{:.1})   crossbeam {:7.1} ({:.1}..{:.1})   ratio {:.2}",
        a[mid],
        a[0],
        a[last],
        b[mid],
        b[0],
        b[last],
        b[mid] / a[mid]
    );
}

fn main() {
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    println!("nanoseconds per message, round trip or push and pop; ratio = crossbeam / ring");
    for batch in [1, 32] {
        compare(
            &format!("stream u64, batch {batch}"),
            || stream(ring::<u64>(CAPACITY), batch),
            || stream(crossbeam::<u64>(), batch),
        );
        compare(
            &format!("stream 64 bytes, batch {batch}"),
            || stream(ring::<Wide>(CAPACITY), batch),
            || stream(crossbeam::<Wide>(), batch),
        );
    }
    compare(
        "round trip",
        || round_trip(ring(CAPACITY), ring(CAPACITY)),
        || round_trip(crossbeam(), crossbeam()),
    );
    compare("push and pop, one core", || alone(ring(CAPACITY)), || alone(crossbeam()));
}
