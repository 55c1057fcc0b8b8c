//! The ring of `src/ring` under loom: all interleavings, and all values that the
//! memory model lets a load see. See Cargo.toml for how to run.

#[path = "../../../src/ring/mod.rs"]
pub mod ring;

#[cfg(test)]
mod tests {
    use super::ring::ring;
    use loom::thread;

    #[test]
    fn single_messages_arrive_once_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring::<Box<u32>>(2);
            let sender = thread::spawn(move || {
                let mut sent = 0;
                for value in 0..4 {
                    if producer.push(Box::new(value)).is_err() {
                        break;
                    }
                    sent += 1;
                }
                producer.invariants();
                sent
            });
            let mut received = 0;
            for _ in 0..2 {
                if let Some(value) = consumer.pop() {
                    assert_eq!(*value, received);
                    received += 1;
                }
                consumer.invariants();
            }
            let sent = sender.join().unwrap();
            while let Some(value) = consumer.pop() {
                assert_eq!(*value, received);
                received += 1;
            }
            assert_eq!(received, sent);
        });
    }

    #[test]
    fn batches_wrap_and_slots_are_reused_safely() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring::<Box<u32>>(2);
            let sender = thread::spawn(move || {
                let mut sent = producer.push_batch((0..2).map(Box::new)) as u32;
                sent += producer.push_batch((sent..4).map(Box::new)) as u32;
                sent
            });
            let mut received = 0;
            for value in consumer.drain(2) {
                assert_eq!(*value, received);
                received += 1;
            }
            let sent = sender.join().unwrap();
            for _ in 0..2 {
                for value in consumer.drain(4) {
                    assert_eq!(*value, received);
                    received += 1;
                }
            }
            assert_eq!(received, sent);
        });
    }

    #[test]
    fn what_is_left_inside_is_dropped_by_whoever_goes_last() {
        loom::model(|| {
            let (mut producer, consumer) = ring::<loom::sync::Arc<u32>>(2);
            let value = loom::sync::Arc::new(1);
            let sent = loom::sync::Arc::clone(&value);
            let sender = thread::spawn(move || {
                assert!(producer.push(sent).is_ok());
            });
            drop(consumer);
            sender.join().unwrap();
            assert_eq!(loom::sync::Arc::strong_count(&value), 1);
        });
    }
}
