//! The receiving half of a channel: what is new, what is a duplicate, what is acknowledged, and
//! which fragments belong together.

use super::bits::BitRing;
use super::config::LinkConfig;
use super::send::expand;
use crate::proto::types::BufRef;
use crate::wire::packet::{Channel, PacketInfo};
use alloc::vec::Vec;

/// What a packet's number says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// Not received before.
    New(u64),
    Duplicate,
    /// Ahead of what the receiver keeps track of.
    Ahead,
}

/// A fragmented message or record of which something is missing.
struct Assembly {
    /// Number of the first fragment; `NONE` while unused.
    first: u64,
    total_len: u32,
    fragments: u16,
    left: u16,
    /// The record, on the data channel.
    buf: BufRef,
    /// The message, on the control channel. Keeps its capacity from one use to the next.
    bytes: Vec<u8>,
}

const NONE: u64 = u64::MAX;

/// Where a fragment belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Its message or record has an assembly, of which this fragment may be the last missing.
    Known { assembly: u16, completes: bool },
    /// It is the first of its message or record to arrive.
    First,
    /// It is, and all assemblies are in use.
    Full,
    /// It contradicts those that came before.
    Wrong,
}

pub(super) struct Receiver {
    window: u64,
    /// Every number before this one has been received.
    next: u64,
    seen: BitRing,
    /// One past the newest number received.
    seen_end: u64,
    /// Packets beyond `next` that the peer may send.
    credit: u16,
    /// An acknowledgement should go out.
    pub(super) ack_due: bool,
    assemblies: Vec<Assembly>,
    in_use: u16,
    /// The assembly used last: fragments mostly come in a row.
    recent: u16,
}

impl Receiver {
    pub(super) fn new(config: &LinkConfig, channel: Channel) -> Self {
        let window = match channel {
            Channel::Control => config.control_window,
            Channel::Data => config.data_window,
        };
        let unused = || Assembly {
            first: NONE,
            total_len: 0,
            fragments: 0,
            left: 0,
            buf: BufRef(0),
            bytes: Vec::new(),
        };
        Self {
            window: u64::from(window),
            next: 0,
            seen: BitRing::new(window),
            seen_end: 0,
            credit: window as u16,
            ack_due: false,
            assemblies: (0..config.assemblies_max).map(|_| unused()).collect(),
            in_use: 0,
            recent: 0,
        }
    }

    #[inline]
    pub(super) fn classify(&self, number: u32) -> Class {
        let number = expand(number, self.next);
        if number < self.next {
            Class::Duplicate
        } else if number >= self.next + self.window {
            Class::Ahead
        } else if self.seen.get(number) {
            Class::Duplicate
        } else {
            Class::New(number)
        }
    }

    /// The packet counts as received from now on.
    #[inline]
    pub(super) fn accept(&mut self, number: u64) {
        self.ack_due = true;
        self.seen_end = self.seen_end.max(number + 1);
        if number == self.next && self.seen_end == number + 1 {
            // In order, nothing waiting: the usual case needs no bitmap.
            self.next = number + 1;
            return;
        }
        self.seen.set(number);
        self.next += self.seen.take_run(self.next);
    }

    /// Finds the place of a fragment. `number` is new.
    #[inline]
    pub(super) fn place(&mut self, info: &PacketInfo, number: u64) -> Place {
        let Some(first) = number.checked_sub(u64::from(info.fragment)) else {
            return Place::Wrong;
        };
        let recent = self.recent;
        let found = if self.assemblies[usize::from(recent)].first == first {
            Some(recent)
        } else if self.in_use == 0 {
            None
        } else {
            self.find(first)
        };
        let Some(assembly) = found else {
            let full = usize::from(self.in_use) == self.assemblies.len();
            return if full { Place::Full } else { Place::First };
        };
        self.recent = assembly;
        let a = &self.assemblies[usize::from(assembly)];
        if a.total_len != info.total_len || a.fragments != info.fragments {
            return Place::Wrong;
        }
        Place::Known { assembly, completes: a.left == 1 }
    }

    fn find(&self, first: u64) -> Option<u16> {
        self.assemblies.iter().position(|a| a.first == first).map(|at| at as u16)
    }

    /// Takes an assembly for the message or record of which this is the first fragment to come.
    /// [`Place::First`] says that there is one.
    fn begin(&mut self, info: &PacketInfo, number: u64, buf: BufRef) -> Option<u16> {
        let at = self.find(NONE)?;
        self.in_use += 1;
        self.recent = at;
        let a = &mut self.assemblies[usize::from(at)];
        a.first = number - u64::from(info.fragment);
        a.total_len = info.total_len;
        a.fragments = info.fragments;
        a.left = info.fragments;
        a.buf = buf;
        Some(at)
    }

    /// One more fragment is there; when it was the last, the assembly is free again.
    fn filled(&mut self, assembly: u16) {
        let a = &mut self.assemblies[usize::from(assembly)];
        a.left -= 1;
        if a.left == 0 {
            a.first = NONE;
            self.in_use -= 1;
        }
    }

    /// The record that an assembly is put together in.
    #[inline]
    pub(super) fn buf(&self, assembly: u16) -> BufRef {
        self.assemblies[usize::from(assembly)].buf
    }

    /// A fragment of a record has been stored in `buf`.
    pub(super) fn record_fragment(
        &mut self,
        info: &PacketInfo,
        number: u64,
        place: Place,
        buf: BufRef,
    ) {
        let assembly = match place {
            Place::Known { assembly, .. } => Some(assembly),
            Place::First => self.begin(info, number, buf),
            Place::Full | Place::Wrong => None,
        };
        if let Some(assembly) = assembly {
            self.filled(assembly);
            self.accept(number);
        }
    }

    /// Copies a fragment of a message to its place. The message, when it is whole.
    pub(super) fn message_fragment(
        &mut self,
        info: &PacketInfo,
        number: u64,
        place: Place,
        payload: &[u8],
    ) -> Option<&[u8]> {
        let assembly = match place {
            Place::Known { assembly, .. } => assembly,
            Place::First => {
                let assembly = self.begin(info, number, BufRef(0))?;
                let bytes = &mut self.assemblies[usize::from(assembly)].bytes;
                bytes.clear();
                bytes.resize(info.total_len as usize, 0);
                assembly
            }
            Place::Full | Place::Wrong => return None,
        };
        let offset = info.payload_offset() as usize;
        let bytes = &mut self.assemblies[usize::from(assembly)].bytes;
        bytes[offset..offset + payload.len()].copy_from_slice(payload);
        self.filled(assembly);
        self.accept(number);
        let a = &self.assemblies[usize::from(assembly)];
        (a.first == NONE).then_some(&a.bytes)
    }

    /// Sets how many packets beyond those received in a row the peer may send. An increase that
    /// matters is told at once.
    pub(super) fn set_credit(&mut self, packets: u32) {
        let credit = u64::from(packets).min(self.window) as u16;
        if credit > self.credit && self.credit < (self.window / 4) as u16 {
            self.ack_due = true;
        }
        self.credit = credit;
    }

    /// Cumulative acknowledgement, bitmap behind it, credit.
    #[inline]
    pub(super) fn ack(&self) -> (u32, u64, u16) {
        let selective = if self.seen_end > self.next { self.seen.read(self.next + 1) } else { 0 };
        (self.next as u32, selective, self.credit)
    }

    /// Whether the bitmap in the header does not reach the newest number received.
    #[inline]
    pub(super) fn needs_more(&self) -> bool {
        self.seen_end > self.next + 65
    }

    /// Appends the words of the bitmap that do not fit the header to `out`.
    pub(super) fn more(&self, out: &mut Vec<u8>) {
        let mut at = self.next + 65;
        while at < self.seen_end {
            let there = self.seen_end - at;
            let mask = if there < 64 { (1 << there) - 1 } else { u64::MAX };
            out.extend_from_slice(&(self.seen.read(at) & mask).to_le_bytes());
            at += 64;
        }
    }

    /// Takes back a record that will not be completed: the session is over.
    pub(super) fn poll_abandoned(&mut self) -> Option<BufRef> {
        let a = self.assemblies.iter_mut().find(|a| a.first != NONE)?;
        a.first = NONE;
        self.in_use -= 1;
        Some(a.buf)
    }

    /// Begins anew with number 0. Incomplete records must have been taken back.
    pub(super) fn reset(&mut self) {
        debug_assert!(self.in_use == 0);
        self.next = 0;
        self.seen.reset();
        self.seen_end = 0;
        self.ack_due = false;
    }

    /// What must hold between any two calls.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.seen_end <= self.next + self.window);
        assert!(!self.seen.get(self.next));
        let used = self.assemblies.iter().filter(|a| a.first != NONE).count();
        assert_eq!(used, usize::from(self.in_use));
    }
}
