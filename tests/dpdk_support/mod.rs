//! One end of a link over a port: sends records, checks what it gets, and says when both sides
//! have everything.

use setline::dpdk::{
    Destination, Kind, Network, NextHop, OwnedFrame, PortSpec, Queue, QueueCounters, Region, Ticket,
};
use setline::proto::command::{RecordRole, Token};
use setline::proto::link::{Body, Event, Link, LinkConfig, Refusal, Transmit, Verdict};
use setline::proto::types::{BufRef, Nanos, ShardId};
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::wire::checksum::crc32c;
use setline::wire::packet::{Incarnation, PacketHeader, PacketInfo};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Instant;

const SLOT: usize = 256 << 10;
const SLOTS: usize = 32;
const HEADER: usize = 128;
/// Longer than what a small buffer holds.
const DONE: &[u8] = &[b'd'; 6000];

pub(crate) fn ip(side: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, side)
}

pub(crate) fn spec(kind: Kind, mtu_bytes: u16) -> PortSpec {
    PortSpec { name: format!("{kind:?}"), kind, queues: 1, mtu_bytes, mac: None }
}

pub(crate) fn network(side: u8, peer: Option<NextHop>) -> Network {
    Network {
        ip: ip(side),
        prefix_len: 24,
        gateway: None,
        vlan: None,
        udp_port: 7800,
        peers: vec![peer.unwrap_or(NextHop { ip: ip(3 - side), mac: None })],
    }
}

/// The length of record `id` of a side: mostly a block or two, sometimes little, sometimes much.
fn len_of(side: u8, id: usize) -> usize {
    let x = (id * 2_654_435_761 + usize::from(side) * 97) >> 7;
    let payload = match x % 16 {
        0 => 0,
        1..=3 => 512,
        4 => x % 5000,
        5 => 100_000 + x % 28_000,
        6 => 16_384,
        _ => 4096,
    };
    HEADER + payload
}

fn byte_of(side: u8, id: usize, at: usize) -> u8 {
    (id * 131 + at * 7 + usize::from(side) + (at >> 8)) as u8
}

fn contents(side: u8, id: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len_of(side, id)).map(|at| byte_of(side, id, at)).collect();
    bytes[..8].copy_from_slice(&(id as u64).to_le_bytes());
    bytes
}

pub(crate) struct End {
    side: u8,
    start: Instant,
    link: Link,
    queue: Queue,
    to: Destination,
    memory: IoBuf,
    region: Region,
    free: Vec<usize>,
    /// Slots whose record is delivered, but perhaps still referred to by the device.
    releasing: VecDeque<(usize, Ticket)>,
    records: usize,
    next: usize,
    delivered: usize,
    got: BTreeSet<usize>,
    partial: BTreeMap<u64, Vec<u8>>,
    next_partial: u64,
    done_sent: bool,
    peer_done: bool,
    out: Transmit,
}

impl End {
    pub(crate) fn new(mut queue: Queue, side: u8, records: usize, incarnation: u64) -> Self {
        let memory = DmaBuf::new(SLOT * SLOTS, 2 << 20).unwrap().leak();
        let config = LinkConfig {
            payload_bytes_max: queue.payload_bytes_max(),
            records_max: 64,
            data_window: 256,
            ..LinkConfig::default()
        };
        let shard = |side: u8| ShardId::new(u16::from(side), 0);
        let link = Link::new(
            config,
            shard(side),
            shard(3 - side),
            Incarnation::new(incarnation).unwrap(),
            Nanos(1),
        );
        let to = queue.destination(ip(3 - side), 0).unwrap();
        assert!(queue.destination(Ipv4Addr::new(192, 0, 2, 1), 0).is_none());
        Self {
            side,
            start: Instant::now(),
            link,
            queue,
            to,
            memory,
            region: Region::new(memory),
            free: (0..SLOTS).collect(),
            releasing: VecDeque::new(),
            records,
            next: 0,
            delivered: 0,
            got: BTreeSet::new(),
            partial: BTreeMap::new(),
            next_partial: 0,
            done_sent: false,
            peer_done: false,
            out: Transmit::default(),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.peer_done && self.done_sent && self.link.queued() == (0, 0)
    }

    pub(crate) fn has_received(&self) -> bool {
        !self.got.is_empty()
    }

    /// Records whose memory is not free again.
    pub(crate) fn unreleased(&self) -> usize {
        SLOTS - self.free.len()
    }

    pub(crate) fn queue_counters(&self) -> QueueCounters {
        self.queue.counters()
    }

    pub(crate) fn now(&self) -> Nanos {
        Nanos(1 + self.start.elapsed().as_nanos() as u64)
    }

    /// With a peer whose memory is new everything begins anew.
    fn take_events(&mut self) {
        while let Some(event) = self.link.poll_event() {
            match event {
                Event::Reset => {
                    self.next = 0;
                    self.delivered = 0;
                    self.got.clear();
                    self.done_sent = false;
                    self.peer_done = false;
                }
                Event::Dropped { buf, .. } => {
                    self.releasing.push_back((buf.0 as usize, self.queue.issued()));
                }
                Event::Abandoned { buf } => {
                    self.partial.remove(&buf.0).unwrap();
                }
                Event::Up { .. } | Event::Closed | Event::Silent | Event::Heard => {}
            }
        }
    }

    pub(crate) fn turn(&mut self) {
        let now = self.now();
        let mut kept: Vec<OwnedFrame> = Vec::new();
        self.queue.receive(now, |packet| {
            assert_eq!(packet.info().dst.poller, 0);
            kept.extend(packet.keep());
        });
        for frame in kept {
            self.take(now, &frame);
        }
        self.link.handle_timeout(now);
        self.take_events();
        while let Some(done) = self.link.poll_delivered() {
            self.delivered += 1;
            self.releasing.push_back((done.buf.0 as usize, self.queue.issued()));
        }
        while let Some((slot, ticket)) = self.releasing.front()
            && *ticket <= self.queue.completed()
        {
            self.free.push(*slot);
            self.releasing.pop_front();
        }
        self.send_records();
        self.transmit(now);
        self.queue.flush();
    }

    fn send_records(&mut self) {
        while self.next < self.records && self.link.is_up() && self.link.records_room() > 0 {
            let Some(slot) = self.free.pop() else { break };
            let bytes = contents(self.side, self.next);
            self.memory.copy_in(slot * SLOT, &bytes);
            let (buf, len) = (BufRef(slot as u64), bytes.len() as u32);
            let token = Token(self.next as u64);
            self.link.send_record(RecordRole::Mirror, buf, len, token).unwrap();
            self.next += 1;
        }
        let all = self.got.len() == self.records && self.delivered == self.records;
        if all && !self.done_sent {
            self.link.send_message(DONE).unwrap();
            self.done_sent = true;
        }
    }

    fn transmit(&mut self, now: Nanos) {
        let mut numbered = true;
        while self.queue.room() > 0 {
            numbered = numbered && self.link.poll_transmit(now, &mut self.out);
            if !numbered && !self.link.poll_bare(now, &mut self.out) {
                break;
            }
            let (mut inline, mut external) = (Vec::new(), None);
            if let Body::Record { buf, offset, len } = self.out.body {
                let start = buf.0 as usize * SLOT + offset as usize;
                let mut bytes = vec![0; usize::from(len)];
                self.memory.copy_out(start, &mut bytes);
                if self.out.wants_payload_crc() {
                    self.out.packet.payload_crc = Some(crc32c(&bytes));
                }
                // The header is copied, as the arena keeps it elsewhere; the payload is not.
                let head = HEADER.saturating_sub(offset as usize).min(bytes.len());
                inline = bytes[..head].to_vec();
                if head < bytes.len() {
                    let rest = self.memory.slice(start + head, bytes.len() - head);
                    external =
                        Some(self.region.external(rest.as_ptr().as_ptr(), rest.len() as u16));
                }
            } else {
                inline.extend_from_slice(self.link.inline_bytes(&self.out.body));
            }
            let header = PacketHeader::seal(&self.out.packet);
            let _ = self.queue.push(now, self.to, &header, &inline, external);
        }
    }

    fn take(&mut self, now: Nanos, frame: &OwnedFrame) {
        let (head, tail) = frame.payload();
        let payload = [head, tail].concat();
        assert_eq!(payload.len(), usize::from(frame.info().payload_len));
        self.take_packet(now, frame.info(), &payload);
    }

    fn take_packet(&mut self, now: Nanos, info: &PacketInfo, payload: &[u8]) {
        match self.link.handle_packet(now, info, payload) {
            Verdict::NewSession => {
                self.take_events();
                self.take_packet(now, info, payload);
            }
            Verdict::Message(message) => {
                assert_eq!(message, DONE);
                self.peer_done = true;
            }
            Verdict::Store(store) => {
                if let Some(crc) = store.payload_crc {
                    assert_eq!(crc, crc32c(payload));
                }
                let buf = store.buf.unwrap_or_else(|| {
                    self.next_partial += 1;
                    let bytes = vec![0; store.total_len as usize];
                    self.partial.insert(self.next_partial, bytes);
                    BufRef(self.next_partial)
                });
                let record = self.partial.get_mut(&buf.0).unwrap();
                let offset = store.offset as usize;
                record[offset..offset + payload.len()].copy_from_slice(payload);
                self.link.record_stored(&store, buf);
                if store.completes {
                    let record = self.partial.remove(&buf.0).unwrap();
                    let id = u64::from_le_bytes(record[..8].try_into().unwrap()) as usize;
                    assert!(record == contents(3 - self.side, id), "record {id} was changed");
                    assert!(self.got.insert(id), "record {id} came twice");
                }
            }
            Verdict::Nothing | Verdict::Duplicate => {}
            // What waited in a queue while the peer, or this end, restarted.
            Verdict::Refused(Refusal::ReceiverOther | Refusal::SenderOld) => {}
            Verdict::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "side {}: {} sent, {} delivered, {} received, done {} {}\n{:?}\n{:?}",
            self.side,
            self.next,
            self.delivered,
            self.got.len(),
            self.done_sent,
            self.peer_done,
            self.link.counters(),
            self.queue.counters()
        )
    }
}
