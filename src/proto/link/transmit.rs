//! What a link hands out for sending.

use super::send::Next;
use super::{Link, Phase};
use crate::proto::types::{BufRef, Epoch, Nanos, ShardId};
use crate::wire::checksum::crc32c;
use crate::wire::packet::{Channel, Incarnation, PacketInfo, PacketKind, Site};

/// What goes behind a packet's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Nothing.
    None,
    /// Bytes of a control message: [`Link::inline_bytes`] has them.
    Message {
        /// Their place in the link's store.
        at: u64,
        /// How many.
        len: u16,
    },
    /// The rest of an acknowledgement's bitmap: [`Link::inline_bytes`] has it.
    Bitmap,
    /// Bytes of a record of the caller's.
    Record {
        /// The record.
        buf: BufRef,
        /// The first byte.
        offset: u32,
        /// How many.
        len: u16,
    },
}

/// A packet to be sent. The caller keeps one and has it filled again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// What the header has to say, for `PacketHeader::seal`; complete, except for the checksum of
    /// a record's fragment: see [`Transmit::wants_payload_crc`].
    pub packet: PacketInfo,
    /// What follows the header.
    pub body: Body,
}

impl Default for Transmit {
    fn default() -> Self {
        Self {
            packet: PacketInfo {
                kind: PacketKind::Bare,
                channel: Channel::Control,
                site: Site::Primary,
                ask: false,
                unheard: false,
                src: ShardId::default(),
                dst: ShardId::default(),
                epoch: Epoch(0),
                sender: Incarnation::UNKNOWN,
                receiver: Incarnation::UNKNOWN,
                number: 0,
                fragment: 0,
                fragments: 0,
                total_len: 0,
                acked: 0,
                selective: 0,
                credit: 0,
                payload_len: 0,
                payload_crc: None,
            },
            body: Body::None,
        }
    }
}

impl Transmit {
    /// Whether the caller has to put the CRC-32C of the payload into `packet.payload_crc`: of
    /// fragments of records, whose bytes the link never sees.
    #[must_use]
    #[inline]
    pub const fn wants_payload_crc(&self) -> bool {
        matches!(self.body, Body::Record { .. }) && self.packet.fragments > 1
    }
}

impl Link {
    /// Fills in the next packet with a number, new or lost; false when there is none to send now.
    #[inline]
    pub fn poll_transmit(&mut self, now: Nanos, out: &mut Transmit) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        if let Some(next) = self.control_out.poll(now) {
            let deadline = self.control_out.deadline();
            self.fill(now, Channel::Control, out);
            self.fill_item(&next, deadline, out);
            let (at, len) = (next.item.source + u64::from(next.offset), next.len);
            out.body = Body::Message { at, len };
            out.packet.payload_crc = Some(crc32c(self.store.get(at, usize::from(len))));
            return true;
        }
        let Some(next) = self.data_out.poll(now) else {
            self.deadline = self.deadline.min(self.data_out.deadline());
            self.deadline = self.deadline.min(self.control_out.deadline());
            return false;
        };
        let deadline = self.data_out.deadline();
        self.fill(now, Channel::Data, out);
        self.fill_item(&next, deadline, out);
        out.body =
            Body::Record { buf: BufRef(next.item.source), offset: next.offset, len: next.len };
        true
    }

    /// Fills in the next packet without a number: an acknowledgement that no packet of this turn
    /// carried, a greeting, a heartbeat. False when none is due.
    #[inline]
    pub fn poll_bare(&mut self, now: Nanos, out: &mut Transmit) -> bool {
        match self.phase {
            Phase::Beginning { .. } | Phase::Ending { .. } => return false,
            Phase::Alone if !self.greet => return false,
            Phase::Alone | Phase::Open => {}
        }
        let channel = if self.data_in.ack_due || self.data_out.ask {
            Channel::Data
        } else if self.control_in.ack_due || self.control_out.ask || self.greet {
            Channel::Control
        } else {
            return false;
        };
        self.fill(now, channel, out);
        out.packet.kind = PacketKind::Bare;
        out.packet.number = 0;
        out.packet.fragment = 0;
        out.packet.fragments = 0;
        out.packet.total_len = 0;
        self.counters.bare_sent += 1;
        let (sender, receiver) = match channel {
            Channel::Control => (&mut self.control_out, &mut self.control_in),
            Channel::Data => (&mut self.data_out, &mut self.data_in),
        };
        out.packet.ask = sender.ask;
        sender.ask = false;
        receiver.ack_due = false;
        if receiver.needs_more() {
            self.bitmap.clear();
            receiver.more(&mut self.bitmap);
            out.body = Body::Bitmap;
            out.packet.payload_len = self.bitmap.len() as u16;
            out.packet.payload_crc = Some(crc32c(&self.bitmap));
        } else {
            out.body = Body::None;
            out.packet.payload_len = 0;
            out.packet.payload_crc = None;
        }
        true
    }

    /// The bytes of a body that the link keeps; valid until its next call. Empty for the others.
    #[must_use]
    #[inline]
    pub fn inline_bytes(&self, body: &Body) -> &[u8] {
        match *body {
            Body::Message { at, len } => self.store.get(at, usize::from(len)),
            Body::Bitmap => &self.bitmap,
            Body::None | Body::Record { .. } => &[],
        }
    }

    /// What all packets of a channel say.
    #[inline]
    fn fill(&mut self, now: Nanos, channel: Channel, out: &mut Transmit) {
        self.counters.packets_sent += 1;
        self.last_sent = now;
        self.greet = false;
        let receiver = match channel {
            Channel::Control => &mut self.control_in,
            Channel::Data => &mut self.data_in,
        };
        let (acked, selective, credit) = receiver.ack();
        if receiver.ack_due {
            // What does not fit this header goes out at the end of the turn.
            receiver.ack_due = receiver.needs_more();
        }
        let packet = &mut out.packet;
        packet.channel = channel;
        packet.site = self.config.site;
        packet.unheard = self.silent;
        packet.src = self.local;
        packet.dst = self.peer;
        packet.epoch = self.epoch;
        packet.sender = self.me;
        packet.receiver = self.known;
        packet.acked = acked;
        packet.selective = selective;
        packet.credit = credit;
    }

    #[inline]
    fn fill_item(&mut self, next: &Next, deadline: Nanos, out: &mut Transmit) {
        self.deadline = self.deadline.min(deadline);
        self.counters.bytes_sent += u64::from(next.len);
        let packet = &mut out.packet;
        packet.kind = next.item.kind;
        packet.ask = false;
        packet.number = next.number as u32;
        packet.fragment = next.fragment;
        packet.fragments = next.item.fragments;
        packet.total_len = next.item.len;
        packet.payload_len = next.len;
        packet.payload_crc = None;
    }
}
