//! The sending half of a channel: which packet goes next, which are lost, what is delivered.
//!
//! A packet keeps its number when it is sent again. Loss is told by time, as in RACK (RFC 8985):
//! a packet is lost when one that was sent later has been acknowledged and a round trip plus a
//! margin for reordering has passed. When nothing is acknowledged, a timeout sends the oldest
//! packet again, whose acknowledgement then tells about the others; so a peer that only slept
//! gets one packet twice, not a window full.

use super::bits::BitRing;
use super::config::LinkConfig;
use super::rtt::Rtt;
use crate::proto::types::Nanos;
use crate::wire::packet::{Channel, PacketKind};
use alloc::boxed::Box;
use alloc::vec;

/// A message or record, from queueing to delivery.
#[derive(Clone, Copy)]
pub(super) struct Item {
    /// Position in the message store, or the record's `BufRef`.
    pub(super) source: u64,
    /// The caller's token; 0 for messages.
    pub(super) token: u64,
    pub(super) kind: PacketKind,
    pub(super) len: u32,
    pub(super) fragments: u16,
    /// Fragments not acknowledged yet.
    left: u16,
    /// Number of the first fragment, once that was sent.
    first: u64,
}

const NO_ITEM: Item =
    Item { source: 0, token: 0, kind: PacketKind::Bare, len: 0, fragments: 0, left: 0, first: 0 };

#[derive(Clone, Copy, Default)]
struct Sent {
    at: Nanos,
    /// Index of the item, modulo the ring.
    item: u32,
    times: u32,
}

/// One packet to be sent.
pub(super) struct Next {
    pub(super) number: u64,
    pub(super) item: Item,
    pub(super) fragment: u16,
    pub(super) offset: u32,
    pub(super) len: u16,
}

/// What the sending half counts.
#[derive(Clone, Copy, Default)]
pub(super) struct SendCounters {
    pub(super) retransmitted: u64,
    pub(super) spurious: u64,
    pub(super) timeouts: u64,
    pub(super) delivered: u64,
}

/// An acknowledgement of packets that were never sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeverSent;

pub(super) struct Sender {
    window: u64,
    payload_max: u32,
    reorder_ns: u64,
    /// Multiplies a quarter of the round trip; grows when packets thought lost were only late.
    reorder_factor: u64,
    sent: Box<[Sent]>,
    acked: BitRing,
    lost: BitRing,
    lost_count: u32,
    /// The oldest number not acknowledged.
    oldest: u64,
    /// The next number to be given out.
    next: u64,
    /// The peer's limit: numbers before it may be sent.
    limit: u64,
    /// One past the newest number acknowledged.
    acked_end: u64,
    /// Of all packets acknowledged, the one sent last.
    newest_sent: (Nanos, u64),
    /// Items in the ring: `first_item..open_item` have all their numbers, `open_item` has those of
    /// its fragments before `open_fragment`, the rest up to `end_item` none.
    items: Box<[Item]>,
    first_item: u64,
    open_item: u64,
    end_item: u64,
    open_fragment: u16,
    /// Delivered items whose tokens the caller has not taken: (token, source).
    done: Box<[(u64, u64)]>,
    done_first: u64,
    done_end: u64,
    with_tokens: bool,
    rtt: Rtt,
    backoff: u32,
    /// How many of the oldest packets the next timeout sends again.
    again: u32,
    timed_out_at: Nanos,
    timeout_at: Nanos,
    loss_at: Nanos,
    /// The peer should be asked what it has and how much more it takes.
    pub(super) ask: bool,
    pub(super) counters: SendCounters,
}

impl Sender {
    pub(super) fn new(config: &LinkConfig, channel: Channel) -> Self {
        let (window, items, with_tokens) = match channel {
            Channel::Control => (config.control_window, config.messages_max, false),
            Channel::Data => (config.data_window, config.records_max, true),
        };
        let tokens = if with_tokens { items as usize } else { 0 };
        Self {
            window: u64::from(window),
            payload_max: u32::from(config.payload_bytes_max),
            reorder_ns: config.reorder_ns,
            reorder_factor: 1,
            sent: vec![Sent::default(); window as usize].into_boxed_slice(),
            acked: BitRing::new(window),
            lost: BitRing::new(window),
            lost_count: 0,
            oldest: 0,
            next: 0,
            limit: 1,
            acked_end: 0,
            newest_sent: (Nanos(0), 0),
            items: vec![NO_ITEM; items as usize].into_boxed_slice(),
            first_item: 0,
            open_item: 0,
            end_item: 0,
            open_fragment: 0,
            done: vec![(0, 0); tokens].into_boxed_slice(),
            done_first: 0,
            done_end: 0,
            with_tokens,
            rtt: Rtt::new(config),
            backoff: 0,
            again: 1,
            timed_out_at: Nanos(0),
            timeout_at: Nanos::NEVER,
            loss_at: Nanos::NEVER,
            ask: false,
            counters: SendCounters::default(),
        }
    }

    #[inline]
    fn slot(&self, number: u64) -> usize {
        (number & (self.window - 1)) as usize
    }

    #[inline]
    fn item_slot(&self, item: u64) -> usize {
        (item & (self.items.len() as u64 - 1)) as usize
    }

    /// Items that may still be queued. An item that is delivered out of order counts twice while
    /// its token waits: so neither ring can overflow.
    #[inline]
    pub(super) fn rtt_ns(&self) -> u64 {
        self.rtt.smoothed()
    }

    pub(super) fn room(&self) -> u32 {
        let used = (self.end_item - self.first_item) + (self.done_end - self.done_first);
        (self.items.len() as u64).saturating_sub(used) as u32
    }

    /// Items queued and not delivered.
    #[inline]
    pub(super) fn queued(&self) -> u32 {
        (self.end_item - self.first_item) as u32
    }

    /// Queues an item; false when there is no room.
    #[inline]
    pub(super) fn push(&mut self, source: u64, token: u64, kind: PacketKind, len: u32) -> bool {
        if self.room() == 0 {
            return false;
        }
        let fragments =
            if len <= self.payload_max { 1 } else { len.div_ceil(self.payload_max) as u16 };
        let slot = self.item_slot(self.end_item);
        self.items[slot] = Item { source, token, kind, len, fragments, left: fragments, first: 0 };
        self.end_item += 1;
        true
    }

    /// The packet to send now, if any.
    #[inline]
    pub(super) fn poll(&mut self, now: Nanos) -> Option<Next> {
        if self.lost_count > 0 {
            return self.poll_lost(now);
        }
        if self.open_item == self.end_item {
            return None;
        }
        let opened = self.items[self.item_slot(self.open_item)].fragments;
        // The receiver keeps room for a record that it has a part of. All of it must fit the
        // window, or the part would wait for the oldest packet, and that perhaps for the room.
        let whole = if self.open_fragment == 0 && self.oldest < self.next {
            u64::from(opened).min(self.window)
        } else {
            1
        };
        if self.next >= self.limit || self.next + whole > self.oldest + self.window {
            if self.timeout_at == Nanos::NEVER {
                self.timeout_at = now.after(self.rtt.timeout(self.backoff));
            }
            return None;
        }
        let number = self.next;
        let item_slot = self.item_slot(self.open_item);
        let item = &mut self.items[item_slot];
        let fragment = self.open_fragment;
        if fragment == 0 {
            item.first = number;
        }
        let item = *item;
        let slot = self.slot(number);
        self.sent[slot] = Sent { at: now, item: item_slot as u32, times: 1 };
        self.next += 1;
        if fragment + 1 == item.fragments {
            self.open_item += 1;
            self.open_fragment = 0;
        } else {
            self.open_fragment += 1;
        }
        if self.timeout_at == Nanos::NEVER {
            self.timeout_at = now.after(self.rtt.timeout(self.backoff));
        }
        Some(self.packet(number, item))
    }

    #[cold]
    fn poll_lost(&mut self, now: Nanos) -> Option<Next> {
        let number = self.lost.next_set(self.oldest, self.next)?;
        self.lost.clear(number);
        self.lost_count -= 1;
        self.counters.retransmitted += 1;
        let slot = self.slot(number);
        let sent = &mut self.sent[slot];
        sent.at = now;
        sent.times = sent.times.saturating_add(1);
        let item = self.items[sent.item as usize];
        self.timeout_at = now.after(self.rtt.timeout(self.backoff));
        Some(self.packet(number, item))
    }

    #[inline]
    fn packet(&self, number: u64, item: Item) -> Next {
        let fragment = (number - item.first) as u16;
        let offset = u32::from(fragment) * self.payload_max;
        let len = (item.len - offset).min(self.payload_max) as u16;
        Next { number, item, fragment, offset, len }
    }

    /// Takes what a packet of the peer says about this channel: everything before `acked` has
    /// been received, and of `acked + 1 + i` every set bit i of `selective`, then of `more`, words
    /// of 64 bits. Numbers before `acked + credit` may be sent.
    #[inline]
    pub(super) fn handle_ack(
        &mut self,
        now: Nanos,
        acked: u32,
        selective: u64,
        credit: u16,
        more: &[[u8; 8]],
    ) -> Result<(), NeverSent> {
        let acked = expand(acked, self.oldest);
        if acked > self.next {
            return Err(NeverSent);
        }
        let was = self.oldest;
        let mut fresh = Fresh::default();
        if acked > self.oldest {
            let mut at = self.oldest;
            while at < acked {
                let bits = if acked - at < 64 { (1 << (acked - at)) - 1 } else { u64::MAX };
                self.mark(now, at, bits, &mut fresh);
                at += 64;
            }
        }
        if selective != 0 {
            self.mark(now, acked + 1, selective, &mut fresh);
        }
        for (word, bits) in (1..).zip(more) {
            self.mark(now, acked + 1 + 64 * word, u64::from_le_bytes(*bits), &mut fresh);
        }
        self.oldest += self.acked.take_run(self.oldest);
        if acked >= was {
            self.take_credit(now, acked, credit);
        }
        if let Some(sample) = fresh.sample {
            self.rtt.sample(sample);
        }
        if fresh.any {
            self.backoff = 0;
            self.again = 1;
            self.release_items();
            self.timeout_at = if self.oldest < self.next || self.open_item < self.end_item {
                now.after(self.rtt.timeout(0))
            } else {
                Nanos::NEVER
            };
        }
        if self.oldest < self.acked_end {
            self.find_losses(now);
        } else {
            self.loss_at = Nanos::NEVER;
        }
        Ok(())
    }

    #[inline]
    fn take_credit(&mut self, now: Nanos, acked: u64, credit: u16) {
        let limit = acked + u64::from(credit);
        // Opened again: what was sent beyond the former limit has been refused, so begin with the
        // oldest at once instead of at the next timeout.
        if self.limit <= self.oldest && limit > self.oldest && self.oldest < self.next {
            self.backoff = 0;
            self.mark_lost(self.oldest);
            self.timeout_at = now.after(self.rtt.timeout(0));
        }
        self.limit = limit;
    }

    /// Marks the packets `from + i` acknowledged for each bit i, where they were not yet.
    #[inline]
    fn mark(&mut self, now: Nanos, from: u64, bits: u64, fresh: &mut Fresh) {
        let (from, bits) = if from < self.oldest {
            let skip = self.oldest - from;
            if skip >= 64 {
                return;
            }
            (self.oldest, bits >> skip)
        } else {
            (from, bits)
        };
        if from >= self.next {
            return;
        }
        let there = self.next - from;
        let bits = if there < 64 { bits & ((1 << there) - 1) } else { bits };
        let mut bits = bits & !self.acked.read(from);
        if bits == 0 {
            return;
        }
        self.acked.set_many(from, bits);
        fresh.any = true;
        self.acked_end = self.acked_end.max(from + 64 - u64::from(bits.leading_zeros()));
        while bits != 0 {
            let number = from + u64::from(bits.trailing_zeros());
            bits &= bits - 1;
            self.acknowledged(now, number, fresh);
        }
    }

    #[inline]
    fn acknowledged(&mut self, now: Nanos, number: u64, fresh: &mut Fresh) {
        let sent = self.sent[self.slot(number)];
        let took = now.since(sent.at);
        if sent.times == 1 {
            fresh.sample = Some(took);
            self.newest_sent = self.newest_sent.max((sent.at, number));
        } else if took < self.rtt.least() {
            // Faster than the network: this answers an earlier copy.
            self.counters.spurious += 1;
            self.reorder_factor = (self.reorder_factor + 1).min(4);
        } else {
            self.newest_sent = self.newest_sent.max((sent.at, number));
        }
        if self.lost_count > 0 && self.lost.get(number) {
            self.lost.clear(number);
            self.lost_count -= 1;
            self.reorder_factor = (self.reorder_factor + 1).min(4);
        }
        let item = &mut self.items[sent.item as usize];
        item.left -= 1;
        if item.left == 0 && self.with_tokens {
            let slot = (self.done_end & (self.done.len() as u64 - 1)) as usize;
            self.done[slot] = (item.token, item.source);
            self.done_end += 1;
            self.counters.delivered += 1;
        }
    }

    #[inline]
    fn release_items(&mut self) {
        while self.first_item < self.open_item
            && self.items[self.item_slot(self.first_item)].left == 0
        {
            self.first_item += 1;
        }
    }

    /// The position in the message store before which nothing is needed any more; none when
    /// nothing at all is.
    #[inline]
    pub(super) fn oldest_source(&self) -> Option<u64> {
        (self.first_item < self.end_item)
            .then(|| self.items[self.item_slot(self.first_item)].source)
    }

    /// The next delivered item: (token, source).
    #[inline]
    pub(super) fn poll_done(&mut self) -> Option<(u64, u64)> {
        if self.done_first == self.done_end {
            return None;
        }
        let slot = (self.done_first & (self.done.len() as u64 - 1)) as usize;
        self.done_first += 1;
        Some(self.done[slot])
    }

    /// RFC 8985, section 6.2, step 5.
    fn find_losses(&mut self, now: Nanos) {
        let round_trip = self.rtt.smoothed();
        let margin = (round_trip / 4 * self.reorder_factor).max(self.reorder_ns);
        let patience = round_trip.saturating_add(margin);
        self.loss_at = Nanos::NEVER;
        let mut at = self.oldest;
        while at < self.acked_end {
            let there = self.acked_end - at;
            let mask = if there < 64 { (1 << there) - 1 } else { u64::MAX };
            let mut holes = mask & !self.acked.read(at) & !self.lost.read(at);
            while holes != 0 {
                let number = at + u64::from(holes.trailing_zeros());
                holes &= holes - 1;
                let sent = self.sent[self.slot(number)];
                if (sent.at, number) > self.newest_sent {
                    continue;
                }
                let due = sent.at.after(patience);
                if due <= now {
                    self.mark_lost(number);
                } else {
                    self.loss_at = self.loss_at.min(due);
                }
            }
            at += 64;
        }
    }

    fn mark_lost(&mut self, number: u64) {
        if !self.lost.get(number) {
            self.lost.set(number);
            self.lost_count += 1;
        }
    }

    /// When `handle_timeout` has something to do.
    #[inline]
    pub(super) fn deadline(&self) -> Nanos {
        self.timeout_at.min(self.loss_at)
    }

    /// `heard` is when the peer was heard last.
    pub(super) fn handle_timeout(&mut self, now: Nanos, heard: Nanos) {
        if self.loss_at <= now {
            self.find_losses(now);
        }
        if self.timeout_at > now {
            return;
        }
        if self.oldest < self.next {
            self.counters.timeouts += 1;
            // A peer that is there and takes the oldest packet not, time after time, may have no
            // room for it, and may make room when records that it has begun become whole. So more
            // and more are sent again; to a peer that is not there, only the oldest.
            self.again = if heard > self.timed_out_at && self.backoff > 0 {
                (self.again * 2).min(self.window as u32)
            } else {
                1
            };
            self.timed_out_at = now;
            self.mark_oldest_lost(self.again);
        } else if self.open_item < self.end_item {
            self.ask = true;
        } else {
            self.timeout_at = Nanos::NEVER;
            return;
        }
        self.backoff = (self.backoff + 1).min(20);
        self.timeout_at = now.after(self.rtt.timeout(self.backoff));
    }

    fn mark_oldest_lost(&mut self, most: u32) {
        let mut left = most;
        for number in self.oldest..self.next {
            if left == 0 {
                break;
            }
            if !self.acked.get(number) {
                self.mark_lost(number);
                left -= 1;
            }
        }
    }

    /// Takes back an undelivered item of a session that is over: (token, source).
    pub(super) fn poll_dropped(&mut self) -> Option<(u64, u64)> {
        while self.first_item < self.end_item {
            let item = self.items[self.item_slot(self.first_item)];
            self.first_item += 1;
            if item.left > 0 {
                return Some((item.token, item.source));
            }
        }
        None
    }

    /// Begins anew with number 0. All items must have been taken back.
    pub(super) fn reset(&mut self) {
        debug_assert!(self.first_item == self.end_item);
        self.acked.reset();
        self.lost.reset();
        self.lost_count = 0;
        self.oldest = 0;
        self.next = 0;
        // One packet may go before the peer has said how many it takes.
        self.limit = 1;
        self.acked_end = 0;
        self.newest_sent = (Nanos(0), 0);
        self.first_item = 0;
        self.open_item = 0;
        self.end_item = 0;
        self.open_fragment = 0;
        self.backoff = 0;
        self.again = 1;
        self.timeout_at = Nanos::NEVER;
        self.loss_at = Nanos::NEVER;
        self.ask = false;
    }

    /// What must hold between any two calls.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.oldest <= self.next && self.next <= self.oldest + self.window);
        assert!(self.first_item <= self.open_item && self.open_item <= self.end_item);
        let lost = (self.oldest..self.next).filter(|n| self.lost.get(*n)).count();
        assert_eq!(lost as u32, self.lost_count);
        assert!(self.oldest == self.next || !self.acked.get(self.oldest));
        assert!((self.oldest..self.next).all(|n| !(self.lost.get(n) && self.acked.get(n))));
        // Whatever is on its way or waits has a timer.
        assert!(self.oldest == self.next || self.timeout_at < Nanos::NEVER);
    }
}

#[derive(Default)]
struct Fresh {
    any: bool,
    sample: Option<u64>,
}

/// The 64-bit number nearest to `near` whose lower half is `low`.
#[inline]
pub(super) fn expand(low: u32, near: u64) -> u64 {
    let ahead = low.wrapping_sub(near as u32) as i32;
    near.saturating_add_signed(i64::from(ahead))
}
