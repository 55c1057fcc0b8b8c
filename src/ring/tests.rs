use std::collections::VecDeque;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Push,
    PushBatch(usize),
    Pop,
    Drain { max: usize, take: usize },
    Room(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Push),
        (0usize..20).prop_map(Op::PushBatch),
        Just(Op::Pop),
        (0usize..20, 0usize..20).prop_map(|(max, take)| Op::Drain { max, take }),
        (0usize..20).prop_map(Op::Room),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_operations_agrees_with_a_deque(
        capacity in 1usize..20,
        start in prop_oneof![Just(0usize), any::<usize>(), usize::MAX - 8..=usize::MAX],
        ops in vec(op(), 0..200),
    ) {
        let (mut producer, mut consumer) = ring::<Arc<u32>>(capacity);
        // Positions wrap; start near the end to see it.
        producer.shared.head.0.store(start, Ordering::Relaxed);
        producer.shared.tail.0.store(start, Ordering::Relaxed);
        (producer.tail, producer.head_seen) = (start, start);
        (consumer.head, consumer.tail_seen) = (start, start);
        let capacity = producer.capacity();
        let mut oracle: VecDeque<Arc<u32>> = VecDeque::new();
        let mut values = (0..).map(Arc::new);
        for op in ops {
            match op {
                Op::Push => {
                    let value = values.next().unwrap();
                    let pushed = producer.push(Arc::clone(&value));
                    prop_assert_eq!(pushed.is_ok(), oracle.len() < capacity);
                    if pushed.is_ok() {
                        oracle.push_back(value);
                    }
                }
                Op::PushBatch(count) => {
                    let batch: Vec<_> = values.by_ref().take(count).collect();
                    let pushed = producer.push_batch(batch.iter().cloned());
                    prop_assert_eq!(pushed, count.min(capacity - oracle.len()));
                    oracle.extend(batch.into_iter().take(pushed));
                }
                Op::Pop => prop_assert_eq!(consumer.pop(), oracle.pop_front()),
                Op::Drain { max, take } => {
                    let mut drain = consumer.drain(max);
                    // A stale view of the tail may show fewer than there are, never none.
                    prop_assert!(drain.len() <= max.min(oracle.len()));
                    prop_assert!(drain.len() > 0 || max == 0 || oracle.is_empty());
                    for value in drain.by_ref().take(take) {
                        prop_assert_eq!(Some(value), oracle.pop_front());
                    }
                }
                Op::Room(wanted) => {
                    let room = producer.room(wanted);
                    prop_assert!(room <= capacity - oracle.len());
                    prop_assert!(room >= wanted.min(capacity - oracle.len()));
                }
            }
            producer.invariants();
            consumer.invariants();
        }
        // What is still inside is dropped exactly once, with the ring.
        let left: Vec<_> = oracle.into_iter().collect();
        drop((producer, consumer));
        prop_assert!(left.iter().all(|value| Arc::strong_count(value) == 1));
    }
}

#[test]
fn messages_cross_threads_in_order_and_complete() {
    const MESSAGES: u64 = 200_000;
    let (mut producer, mut consumer) = ring::<Box<u64>>(64);
    let sender = std::thread::spawn(move || {
        let mut next = 0;
        while next < MESSAGES {
            let batch = (next..MESSAGES.min(next + 7)).map(Box::new);
            let pushed = producer.push_batch(batch);
            next += pushed as u64;
            if pushed == 0 {
                std::thread::yield_now();
            }
        }
    });
    let mut expected = 0;
    while expected < MESSAGES {
        let before = expected;
        for value in consumer.drain(16) {
            assert_eq!(*value, expected);
            expected += 1;
        }
        if expected == before {
            std::thread::yield_now();
        }
    }
    sender.join().unwrap();
    assert!(consumer.is_closed());
    assert_eq!(consumer.pop(), None);
}

#[test]
fn each_end_learns_that_the_other_is_gone_and_what_was_sent_is_still_there() {
    let (mut producer, mut consumer) = ring(4);
    producer.push(1).unwrap();
    drop(producer);
    assert!(consumer.is_closed());
    assert_eq!((consumer.pop(), consumer.pop()), (Some(1), None));

    let (producer, consumer) = ring::<u8>(4);
    assert!(!producer.is_closed());
    drop(consumer);
    assert!(producer.is_closed());
}

#[test]
fn a_batch_whose_source_panics_keeps_what_was_put() {
    let (mut producer, mut consumer) = ring(8);
    let mut left = 3;
    let source = std::iter::from_fn(|| {
        assert!(left > 0, "the source breaks");
        left -= 1;
        Some(left)
    });
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        producer.push_batch(source);
    }));
    assert!(result.is_err());
    producer.invariants();
    assert_eq!(consumer.drain(8).collect::<Vec<_>>(), [2, 1, 0]);
}
