//! Virtual time: events in order of their instant, ties in order of scheduling.

use crate::proto::types::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

struct Entry<E> {
    at: Nanos,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Pending events and the clock, which is the instant of the last one taken.
pub struct EventQueue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: Nanos,
    order: u64,
}

impl<E> EventQueue<E> {
    /// An empty queue; the clock starts at `now`.
    #[must_use]
    pub fn new(now: Nanos) -> Self {
        Self { heap: BinaryHeap::new(), now, order: 0 }
    }

    /// The instant of the event taken last.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Schedules `event`; an instant that has passed counts as now.
    pub fn at(&mut self, at: Nanos, event: E) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), order: self.order, event }));
    }

    /// Schedules `event` in `ns` nanoseconds.
    pub fn after(&mut self, ns: u64, event: E) {
        self.at(self.now.after(ns), event);
    }

    /// Takes the next event and moves the clock to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }

    /// Pending events.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_instant_then_by_order_of_scheduling() {
        let mut queue = EventQueue::new(Nanos(0));
        queue.at(Nanos(5), 'c');
        queue.at(Nanos(1), 'a');
        queue.at(Nanos(1), 'b');
        assert_eq!((queue.pop(), queue.now()), (Some('a'), Nanos(1)));
        queue.at(Nanos(0), 'd');
        assert_eq!(queue.pop(), Some('b'));
        assert_eq!((queue.pop(), queue.now()), (Some('d'), Nanos(1)), "the past counts as now");
        assert_eq!((queue.pop(), queue.now()), (Some('c'), Nanos(5)));
        assert!(queue.pop().is_none() && queue.is_empty());
    }
}
