//! One poller's receive and transmit queue of a port.

use super::external::{Counts, External, Ticket};
use super::frame::{Received, split};
use super::gate::Gate;
use super::kind::{BURST, SMALL_BYTES};
use super::mbuf;
use super::neighbours::{Known, Neighbours};
use super::pool::Pool;
use super::port::Shared;
use super::sys;
use crate::proto::types::Nanos;
use crate::wire::frame::{
    self, ARP_FRAME_BYTES_MAX, Arp, FRAME_HEADER_BYTES_MAX, Frame, FrameError, FrameHeader,
    IP_UDP_BYTES, Mac, Station,
};
use crate::wire::packet::{PACKET_HEADER_BYTES, PacketError, PacketHeader, PacketInfo};
use std::net::Ipv4Addr;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Frames that may wait for the device.
const WAITING_MAX: usize = 256;
/// Buffers kept at hand.
const AT_HAND: usize = 32;
/// References to records that may be outstanding; more than any device holds.
const COUNTS: usize = 4096;
/// Shorter records are copied: that costs less than a second buffer.
const COPY_BYTES_MAX: usize = 192;
/// Turns without the device taking anything after which the link is looked at.
const STUCK_TURNS: u32 = 64;

/// A poller of a peer, as frames to it are addressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Destination(u16);

/// Why a packet was not taken for sending. It has been counted; the link sends it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PushError {
    /// Frames wait for the device; ask [`Queue::room`] before filling in packets.
    #[error("the transmit queue is full")]
    Full,
    /// The Ethernet address of the next hop is not known yet; it has been asked for.
    #[error("the next hop has not answered ARP yet")]
    Unresolved,
    /// The packet does not fit the MTU.
    #[error("the packet exceeds the MTU")]
    Oversize,
}

/// What a queue counts, in frames unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueCounters {
    /// Frames that the device handed over.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the device took.
    pub sent: u64,
    /// Bytes of frames queued.
    pub sent_bytes: u64,
    /// For other stations, or of other protocols.
    pub foreign: u64,
    /// Cut short, in frame or packet.
    pub truncated: u64,
    /// With headers that contradict themselves.
    pub malformed: u64,
    /// Whose packet header fails its checksum.
    pub corrupt: u64,
    /// In more pieces than any driver in use makes.
    pub scattered: u64,
    /// ARP requests sent.
    pub arp_asked: u64,
    /// ARP requests answered.
    pub arp_answered: u64,
    /// Packets for a next hop whose address is not known.
    pub unresolved: u64,
    /// Packets too long for the MTU.
    pub oversize: u64,
    /// Packets that found no room or no buffer.
    pub full: u64,
    /// Frames given up because the link is down.
    pub link_down: u64,
}

struct Target {
    row: usize,
    /// What `header` was made with.
    known: Known,
    header: FrameHeader,
}

/// Buffers taken from a pool in advance.
struct AtHand {
    buffers: [*mut sys::rte_mbuf; AT_HAND],
    len: usize,
}

impl AtHand {
    const EMPTY: Self = Self { buffers: [null_mut(); AT_HAND], len: 0 };

    #[inline]
    fn take(&mut self, pool: &Pool) -> Option<*mut sys::rte_mbuf> {
        if self.len == 0 {
            if !pool.take(&mut self.buffers) {
                return None;
            }
            self.len = AT_HAND;
        }
        self.len -= 1;
        Some(self.buffers[self.len])
    }

    fn give_back(&mut self) {
        mbuf::free(&mut self.buffers[..self.len]);
        self.len = 0;
    }
}

/// A queue pair. Made by [`super::Port::queue`], then owned by one poller; the port stays open as
/// long as one of its queues lives.
pub struct Queue {
    index: u16,
    poller: u8,
    station: Station,
    neighbours: Arc<Neighbours>,
    targets: Vec<Target>,
    received: [*mut sys::rte_mbuf; BURST],
    /// So many frames at the start of `received` are for the next call: messages went before them.
    held: usize,
    /// Frames `waiting[sent_to..filled_to]` are to be sent.
    waiting: [*mut sys::rte_mbuf; WAITING_MAX],
    sent_to: usize,
    filled_to: usize,
    stuck: u32,
    headers: AtHand,
    long: AtHand,
    references: AtHand,
    counts: Counts,
    counters: QueueCounters,
    gate: Gate,
    // Last: frames go back to its pools when the fields above are dropped.
    port: Arc<Shared>,
}

// SAFETY: the buffers it points to are its own; drivers let any one thread use a queue at a time.
unsafe impl Send for Queue {}

impl Queue {
    pub(super) fn new(port: Arc<Shared>, index: u16, poller: u8, gate: Gate) -> Self {
        Self {
            index,
            poller,
            station: port.station,
            neighbours: Arc::clone(&port.neighbours),
            targets: Vec::new(),
            received: [null_mut(); BURST],
            held: 0,
            waiting: [null_mut(); WAITING_MAX],
            sent_to: 0,
            filled_to: 0,
            stuck: 0,
            headers: AtHand::EMPTY,
            long: AtHand::EMPTY,
            references: AtHand::EMPTY,
            counts: Counts::new(COUNTS),
            counters: QueueCounters::default(),
            gate,
            port,
        }
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> QueueCounters {
        self.counters
    }

    /// The address of poller `poller` of the peer at `ip`. None when `ip` is not one of the peers
    /// that the port was opened with. Allocates: ask at launch.
    pub fn destination(&mut self, ip: Ipv4Addr, poller: u8) -> Option<Destination> {
        let row = self.neighbours.find(self.port.next_hop(ip)?)?;
        let header = FrameHeader::new(&self.station, Mac::BROADCAST, ip, poller, self.poller);
        self.targets.push(Target { row, known: Known::NOTHING, header });
        Some(Destination((self.targets.len() - 1) as u16))
    }

    /// Whether the Ethernet address of a destination's next hop is known.
    #[must_use]
    pub fn knows(&self, to: Destination) -> bool {
        self.neighbours.known(self.targets[usize::from(to.0)].row) != Known::NOTHING
    }

    /// Bytes that fit behind the packet header: what a link's `payload_bytes_max` may be.
    #[must_use]
    pub fn payload_bytes_max(&self) -> u16 {
        self.port.mtu - (IP_UDP_BYTES + PACKET_HEADER_BYTES) as u16
    }

    /// Takes one burst from the device and hands every packet for this mover to `each`, also
    /// those for sibling pollers (`info().dst.poller`), which `each` keeps and passes on. Answers
    /// ARP. Says how many frames there were: with [`Queue::BURST`] there may be more.
    ///
    /// Control messages overtake records: of a burst that has some, only these are handed out,
    /// and the rest by the next call, so that they can be answered in between. Links deliver in
    /// any order anyway.
    pub fn receive(&mut self, now: Nanos, mut each: impl FnMut(&mut Received<'_>)) -> usize {
        let held = core::mem::take(&mut self.held);
        let count = if held > 0 { held } else { self.burst() };
        if count == 0 {
            return 0;
        }
        if held == 0 && self.received[..count].iter().any(|frame| is_message(*frame)) {
            for at in 0..count {
                if is_message(self.received[at]) {
                    self.take_in(now, at, &mut each);
                    mbuf::free(&mut self.received[at..=at]);
                } else {
                    self.received.swap(self.held, at);
                    self.held += 1;
                }
            }
            return count;
        }
        for at in 0..count {
            self.take_in(now, at, &mut each);
        }
        mbuf::free(&mut self.received[..count]);
        count
    }

    /// Fills `received` from the device.
    #[inline]
    fn burst(&mut self) -> usize {
        if !self.gate.enter(&self.port.running) {
            return 0;
        }
        // SAFETY: the port is started, the queue is this poller's, and the array has that size.
        let count = unsafe {
            sys::rte_eth_rx_burst(
                self.port.id,
                self.index,
                self.received.as_mut_ptr(),
                BURST as u16,
            )
        };
        self.gate.leave();
        let count = usize::from(count);
        for frame in &self.received[..count] {
            mbuf::prefetch_fields(*frame);
        }
        self.counters.received += count as u64;
        count
    }

    /// Hands the packet in the frame at `at` of `received` to `each`, if it is one for this mover.
    #[inline]
    fn take_in(&mut self, now: Nanos, at: usize, each: &mut impl FnMut(&mut Received<'_>)) {
        let Some(frame) = NonNull::new(self.received[at]) else { return };
        // SAFETY: a frame that the device handed over; it is given back after this.
        let Some((first, second, len)) = (unsafe { mbuf::pieces(frame) }) else {
            self.counters.scattered += 1;
            return;
        };
        self.counters.received_bytes += len as u64;
        if let Some((info, offset)) = self.examine(now, first, len) {
            let (head, tail) = split(first, second, offset, usize::from(info.payload_len));
            let frame = &mut self.received[at];
            each(&mut Received { info, frame, head, tail, offset });
        }
    }

    /// Frames that one call of [`Queue::receive`] takes at most.
    pub const BURST: usize = BURST;

    /// The packet header in a frame of `len` bytes that begins with `first`, and where its
    /// payload begins. None when the frame has been dealt with.
    #[inline]
    fn examine(&mut self, now: Nanos, first: &[u8], len: usize) -> Option<(PacketInfo, usize)> {
        let (offset, datagram_len) = match frame::parse(first, len, &self.station) {
            Ok(Frame::Datagram { offset, len, .. }) => (offset, len),
            Ok(Frame::Arp(arp)) => {
                self.handle_arp(now, &arp);
                return None;
            }
            Ok(Frame::Foreign) => {
                self.counters.foreign += 1;
                return None;
            }
            Err(FrameError::Truncated) => {
                self.counters.truncated += 1;
                return None;
            }
            Err(FrameError::Malformed { .. }) => {
                self.counters.malformed += 1;
                return None;
            }
        };
        let packet = first.get(offset..).unwrap_or_default();
        match PacketHeader::check_scattered(packet, datagram_len) {
            Ok(info) => Some((info, offset + PACKET_HEADER_BYTES)),
            Err(error) => {
                *match error {
                    PacketError::Short { .. } => &mut self.counters.truncated,
                    PacketError::Checksum { .. } => &mut self.counters.corrupt,
                    PacketError::Magic { .. }
                    | PacketError::Version { .. }
                    | PacketError::Field { .. } => &mut self.counters.malformed,
                } += 1;
                None
            }
        }
    }

    #[cold]
    fn handle_arp(&mut self, now: Nanos, arp: &Arp) {
        self.neighbours.learn(arp.sender_ip, arp.sender_mac, now.0);
        if arp.asks && arp.target_ip == self.station.ip {
            self.counters.arp_answered += 1;
            self.send_arp(arp.sender_ip, Some(arp.sender_mac));
        }
    }

    fn send_arp(&mut self, target: Ipv4Addr, to: Option<Mac>) {
        let mut bytes = [0; ARP_FRAME_BYTES_MAX];
        let len = frame::write_arp(&mut bytes, &self.station, target, to);
        if self.room() == 0 {
            self.counters.full += 1;
            return;
        }
        let Some(head) = self.headers.take(self.port.header_pool()) else {
            self.counters.full += 1;
            return;
        };
        // SAFETY: taken from the pool just now.
        let room = unsafe { mbuf::room(head) };
        room[..len].copy_from_slice(&bytes[..len]);
        // SAFETY: as above; the room is longer.
        unsafe { mbuf::finish(head, len) };
        self.queue(head, len);
    }

    /// Frames that may be pushed before the device has to take some.
    #[inline]
    #[must_use]
    pub const fn room(&self) -> usize {
        WAITING_MAX - (self.filled_to - self.sent_to)
    }

    /// Queues a packet: header, then `inline` (copied), then `external` (referred to where the
    /// driver can do that). Sent by [`Queue::flush`], or before when a burst is full.
    ///
    /// # Errors
    /// See [`PushError`]; nothing has been queued then.
    #[inline]
    pub fn push(
        &mut self,
        now: Nanos,
        to: Destination,
        header: &PacketHeader,
        inline: &[u8],
        external: Option<External>,
    ) -> Result<(), PushError> {
        let external_len = external.map_or(0, |e| usize::from(e.len));
        let payload = PACKET_HEADER_BYTES + inline.len() + external_len;
        if payload + IP_UDP_BYTES > usize::from(self.port.mtu) {
            self.counters.oversize += 1;
            return Err(PushError::Oversize);
        }
        self.resolve(now, to)?;
        if self.filled_to == WAITING_MAX {
            self.make_room();
        }
        if self.filled_to == WAITING_MAX {
            self.counters.full += 1;
            return Err(PushError::Full);
        }
        let copied = external.filter(|e| !self.port.chains || e.len() <= COPY_BYTES_MAX);
        let referred = external.filter(|_| copied.is_none());
        let here = inline.len() + copied.as_ref().map_or(0, External::len);
        let fits = FRAME_HEADER_BYTES_MAX + PACKET_HEADER_BYTES + here <= usize::from(SMALL_BYTES);
        let head = match self.port.long_pool() {
            Some(pool) if !fits => self.long.take(pool),
            _ => self.headers.take(self.port.header_pool()),
        };
        let Some(head) = head else {
            self.counters.full += 1;
            return Err(PushError::Full);
        };
        let template = &self.targets[usize::from(to.0)].header;
        let mut len = template.len();
        // SAFETY: taken from the pool just now.
        let room = unsafe { mbuf::room(head) };
        template.write(&mut room[..FRAME_HEADER_BYTES_MAX], payload as u16);
        for bytes in [header.as_bytes(), inline] {
            room[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        }
        if let Some(external) = copied {
            let out = &mut room[len..len + external.len()];
            // SAFETY: the region's memory is mapped, and the room is another buffer.
            unsafe { external.ptr.as_ptr().copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
            len += external.len();
        }
        // SAFETY: as for `room`; the slices above would have panicked beyond it.
        unsafe { mbuf::finish(head, len) };
        if let Some(external) = referred {
            self.refer(head, external)?;
        }
        let frame_len = template_len(&self.targets, to) + payload;
        self.queue(head, frame_len);
        if self.filled_to - self.sent_to >= BURST && self.filled_to.is_multiple_of(BURST) {
            self.flush();
        }
        Ok(())
    }

    #[inline]
    fn refer(&mut self, head: *mut sys::rte_mbuf, external: External) -> Result<(), PushError> {
        let tail = self.references.take(self.port.reference_pool());
        let count = tail.and_then(|tail| Some((tail, self.counts.issue()?)));
        let Some((tail, count)) = count else {
            mbuf::free(&mut [head, tail.unwrap_or(null_mut())]);
            self.counters.full += 1;
            return Err(PushError::Full);
        };
        // SAFETY: both buffers were taken from pools just now, `head` is finished, and the count
        // was issued for this frame.
        unsafe { mbuf::append_external(head, tail, external, count) };
        Ok(())
    }

    #[inline]
    fn queue(&mut self, frame: *mut sys::rte_mbuf, len: usize) {
        if self.filled_to == WAITING_MAX {
            self.make_room();
        }
        self.waiting[self.filled_to] = frame;
        self.filled_to += 1;
        self.counters.sent_bytes += len as u64;
    }

    #[cold]
    fn make_room(&mut self) {
        self.flush();
        self.waiting.copy_within(self.sent_to..self.filled_to, 0);
        self.filled_to -= self.sent_to;
        self.sent_to = 0;
    }

    #[inline]
    fn resolve(&mut self, now: Nanos, to: Destination) -> Result<(), PushError> {
        let target = &mut self.targets[usize::from(to.0)];
        let known = self.neighbours.known(target.row);
        if known != target.known
            && let Some(mac) = known.mac()
        {
            target.header.set_mac(mac);
            target.known = known;
        }
        if target.known == Known::NOTHING {
            self.counters.unresolved += 1;
            self.ask(now, to);
            return Err(PushError::Unresolved);
        }
        Ok(())
    }

    #[cold]
    fn ask(&mut self, now: Nanos, to: Destination) {
        let row = self.targets[usize::from(to.0)].row;
        if self.neighbours.should_ask(row, now.0) {
            self.counters.arp_asked += 1;
            self.send_arp(self.neighbours.ip(row), None);
        }
    }

    /// Asks again for addresses that are old. Call now and then, every second or so.
    pub fn refresh(&mut self, now: Nanos) {
        for at in 0..self.targets.len() {
            self.ask(now, Destination(at as u16));
        }
    }

    /// Gives the device what waits, as far as it takes it. Says how many frames it took.
    #[inline]
    pub fn flush(&mut self) -> usize {
        let mut total = 0;
        while self.sent_to < self.filled_to {
            let frames = &mut self.waiting[self.sent_to..self.filled_to];
            let count = frames.len().min(BURST);
            if !self.gate.enter(&self.port.running) {
                break;
            }
            // SAFETY: the port is started, the queue is this poller's; the frames are its own
            // and go over to the device as far as it takes them.
            let taken = unsafe {
                sys::rte_eth_tx_burst(self.port.id, self.index, frames.as_mut_ptr(), count as u16)
            };
            self.gate.leave();
            let taken = usize::from(taken);
            self.sent_to += taken;
            total += taken;
            if taken < count {
                break;
            }
        }
        self.counters.sent += total as u64;
        if self.sent_to == self.filled_to {
            self.sent_to = 0;
            self.filled_to = 0;
            self.stuck = 0;
        } else if total == 0 {
            self.stuck += 1;
            if self.stuck.is_multiple_of(STUCK_TURNS) && !self.port.link_is_up() {
                self.give_up();
            }
        } else {
            self.stuck = 0;
        }
        total
    }

    /// Frees what waits: by the time the link is back it would be of no use.
    #[cold]
    fn give_up(&mut self) {
        self.counters.link_down += (self.filled_to - self.sent_to) as u64;
        mbuf::free(&mut self.waiting[self.sent_to..self.filled_to]);
        self.sent_to = 0;
        self.filled_to = 0;
    }

    /// This moment: records referred to so far are released when [`Queue::completed`] reaches it.
    #[inline]
    #[must_use]
    pub fn issued(&self) -> Ticket {
        self.counts.issued()
    }

    /// The moment up to which all references have been released: a record whose last reference
    /// was handed over before it may change.
    #[inline]
    #[must_use]
    pub fn completed(&mut self) -> Ticket {
        self.counts.completed()
    }
}

#[inline]
fn template_len(targets: &[Target], to: Destination) -> usize {
    targets[usize::from(to.0)].header.len()
}

/// Whether a received frame looks like a control message. A hint: the frame is examined later.
#[inline]
fn is_message(frame: *mut sys::rte_mbuf) -> bool {
    NonNull::new(frame).is_some_and(|mbuf| {
        // SAFETY: a frame that the device handed over and nobody has given back.
        let first = unsafe { mbuf::pieces(mbuf) }.map_or(&[][..], |(first, ..)| first);
        PacketHeader::looks_like_message(frame::peek(first))
    })
}

impl Drop for Queue {
    fn drop(&mut self) {
        mbuf::free(&mut self.received[..self.held]);
        self.give_up();
        self.headers.give_back();
        self.long.give_back();
        self.references.give_back();
    }
}
