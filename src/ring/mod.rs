//! Lock-free rings between pollers, and between a poller and the control thread.
//!
//! One producer, one consumer, a fixed number of slots. Each side keeps its own
//! position and a copy of the other's, and looks at the shared one only when the
//! copy says "full" or "empty"; so in the common case a message costs one store
//! that the other core will read, and a batch costs that once. "Full" is a value
//! that comes back to the caller.
//!
//! docs/adr/0005-ring.md has the comparison with crossbeam's queue. What is not passed on but looked
//! at is a [`latch`].
//!
//! # Not done here
//!
//! No blocking, no waking: both ends poll. No multiple producers: whoever talks to
//! n pollers has n rings.
#![allow(unsafe_code)]

pub mod latch;
mod sync;
#[cfg(all(test, not(setline_loom)))]
mod tests;

use std::mem::MaybeUninit;
use sync::{Arc, AtomicUsize, Ordering, UnsafeCell};

/// Keeps the two positions on cache lines of their own: 128 bytes, because
/// processors fetch lines in pairs.
#[repr(align(128))]
struct Padded<T>(T);

struct Shared<T> {
    /// Position of the next message to be taken; written by the consumer.
    head: Padded<AtomicUsize>,
    /// Position of the next message to be put; written by the producer.
    tail: Padded<AtomicUsize>,
    /// Cleared by either end when it goes.
    open: Padded<sync::AtomicBool>,
    /// Slot of position p: `p % slots.len()`, a power of two. Positions wrap at the
    /// word size, which that power divides.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is accessed by one end at a time: by the producer while its
// position is in [tail, head + capacity), by the consumer while in [head, tail),
// and a position passes from one to the other by a release store and an acquire
// load. Values move between threads, hence `T: Send`.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above; the ring owns the values in it.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, position: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // The mask keeps the index in bounds, and lets the compiler see it.
        &self.slots[position & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let mut head = self.head.0.load(Ordering::Relaxed);
        while head != tail {
            self.slot(head).with_mut(|slot| {
                // SAFETY: positions in [head, tail) hold values, and both ends are gone.
                unsafe { slot.cast::<T>().drop_in_place() };
            });
            head = head.wrapping_add(1);
        }
    }
}

/// The putting end of a ring. Owned by one thread.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    /// The consumer's position when last looked at; the real one is never behind it.
    head_seen: usize,
}

/// The taking end of a ring. Owned by one thread.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    /// The producer's position when last looked at; the real one is never behind it.
    tail_seen: usize,
}

/// A ring for at least `capacity` messages: rounded up to a power of two, at least
/// one. The only allocation is here.
///
/// # Panics
///
/// When the capacity has no power of two above it.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1).checked_next_power_of_two().expect("capacity of a ring");
    let shared = Arc::new(Shared {
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
        open: Padded(sync::AtomicBool::new(true)),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    let producer = Producer { shared: Arc::clone(&shared), tail: 0, head_seen: 0 };
    (producer, Consumer { shared, head: 0, tail_seen: 0 })
}

impl<T> Producer<T> {
    /// How many messages the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many messages can surely be pushed now, looking at the consumer's
    /// position only when fewer than `wanted` are known to fit.
    #[inline]
    pub fn room(&mut self, wanted: usize) -> usize {
        let known = self.capacity() - self.tail.wrapping_sub(self.head_seen);
        if known >= wanted {
            return known;
        }
        self.head_seen = self.shared.head.0.load(Ordering::Acquire);
        self.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    /// Puts one message.
    ///
    /// # Errors
    ///
    /// Gives it back when the ring is full.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(value);
        }
        self.write(value);
        self.publish();
        Ok(())
    }

    /// Puts messages until the ring is full or `values` ends, and returns how many.
    /// The consumer sees them all at once. A message is taken from `values` only
    /// when there is room for it.
    #[inline]
    pub fn push_batch(&mut self, mut values: impl Iterator<Item = T>) -> usize {
        // One look at the consumer's position per batch is enough, when it is needed.
        let room = self.room(values.size_hint().0.max(1));
        let mut batch = Batch { producer: self, count: 0 };
        while batch.count < room {
            let Some(value) = values.next() else { break };
            batch.producer.write(value);
            batch.count += 1;
        }
        batch.count
    }

    /// Whether the consumer is gone, so that nothing will be taken any more.
    pub fn is_closed(&self) -> bool {
        !self.shared.open.0.load(Ordering::Acquire)
    }

    /// Checks what must hold of the positions. For tests.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn invariants(&self) {
        let head = self.shared.head.0.load(Ordering::Acquire);
        assert_eq!(self.tail, self.shared.tail.0.load(Ordering::Relaxed), "published");
        assert!(self.tail.wrapping_sub(head) <= self.capacity(), "more than fits");
        assert!(
            self.tail.wrapping_sub(self.head_seen) >= self.tail.wrapping_sub(head),
            "the copy of the head is ahead of it"
        );
    }

    /// Fills the next slot. There is room, and the caller publishes.
    #[inline]
    fn write(&mut self, value: T) {
        self.shared.slot(self.tail).with_mut(|slot| {
            // SAFETY: the position is not before the head seen plus the capacity, so
            // the slot is the producer's and holds no value.
            unsafe { slot.cast::<T>().write(value) };
        });
        self.tail = self.tail.wrapping_add(1);
    }

    #[inline]
    fn publish(&mut self) {
        self.shared.tail.0.store(self.tail, Ordering::Release);
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.open.0.store(false, Ordering::Release);
    }
}

/// Publishes what was written also when the source of values panics.
struct Batch<'a, T> {
    producer: &'a mut Producer<T>,
    count: usize,
}

impl<T> Drop for Batch<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.count > 0 {
            self.producer.publish();
        }
    }
}

impl<T> Consumer<T> {
    /// How many messages the ring holds at most.
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many messages can surely be taken now, looking at the producer's
    /// position only when none is known.
    #[inline]
    pub fn ready(&mut self) -> usize {
        if self.tail_seen == self.head {
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
        }
        self.tail_seen.wrapping_sub(self.head)
    }

    /// Takes the oldest message.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.ready() == 0 {
            return None;
        }
        let value = self.read();
        self.release();
        Some(value)
    }

    /// Takes up to `max` messages that are there now. Their slots are free again
    /// for the producer when the iterator is dropped; what it did not yield stays.
    #[inline]
    pub fn drain(&mut self, max: usize) -> Drain<'_, T> {
        let left = self.ready().min(max);
        Drain { consumer: self, left }
    }

    /// Whether the producer is gone. Messages may still be in the ring: look for
    /// them after this said so.
    pub fn is_closed(&self) -> bool {
        !self.shared.open.0.load(Ordering::Acquire)
    }

    /// Checks what must hold of the positions. For tests.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn invariants(&self) {
        let tail = self.shared.tail.0.load(Ordering::Acquire);
        assert_eq!(self.head, self.shared.head.0.load(Ordering::Relaxed), "released");
        assert!(tail.wrapping_sub(self.head) <= self.capacity(), "more than fits");
        assert!(
            self.tail_seen.wrapping_sub(self.head) <= tail.wrapping_sub(self.head),
            "the copy of the tail is ahead of it"
        );
    }

    /// Empties the oldest slot. There is one, and the caller releases it.
    #[inline]
    fn read(&mut self) -> T {
        let value = self.shared.slot(self.head).with(|slot| {
            // SAFETY: the position is in [head, tail seen), so the slot holds a value,
            // which is taken once: the head moves past it here.
            unsafe { slot.cast::<T>().read() }
        });
        self.head = self.head.wrapping_add(1);
        value
    }

    #[inline]
    fn release(&mut self) {
        self.shared.head.0.store(self.head, Ordering::Release);
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.open.0.store(false, Ordering::Release);
    }
}

/// Messages being taken, oldest first. See [`Consumer::drain`].
pub struct Drain<'a, T> {
    consumer: &'a mut Consumer<T>,
    left: usize,
}

impl<T> Iterator for Drain<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        Some(self.consumer.read())
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for Drain<'_, T> {}

impl<T> Drop for Drain<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.consumer.release();
    }
}
