//! Two links, virtual time, and a network that misbehaves on request.

use crate::proto::command::{RecordRole, Token};
use crate::proto::link::{Body, Event, Link, LinkConfig, PeerEpoch, SendError, Transmit, Verdict};
use crate::proto::types::{BufRef, Epoch, Nanos, ShardId};
use crate::wire::checksum::crc32c;
use crate::wire::packet::{Incarnation, PACKET_HEADER_BYTES, PacketHeader};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use zerocopy::IntoBytes;

/// xorshift64*: enough for tests, the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }
    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the network does, in percent and nanoseconds.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Faults {
    pub(super) lose: u64,
    pub(super) duplicate: u64,
    pub(super) corrupt: u64,
    pub(super) delay_max: u64,
    pub(super) cut: bool,
    /// What goes to this end is lost.
    pub(super) deaf: Option<usize>,
    /// The receiver has no room for a record, in percent of attempts.
    pub(super) no_room: u64,
    /// The receiver has room for so many incomplete records; 0 for any number.
    pub(super) partial_max: usize,
}

/// One message or record: who sent it in which session, and which of the sender's it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Tag {
    pub(super) from: usize,
    pub(super) sender: u64,
    pub(super) receiver: u64,
    pub(super) id: u64,
}

impl Tag {
    /// `len` bytes that say this tag and nothing else.
    fn bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (i, b) in bytes.iter_mut().enumerate() {
            *b = (self.id as usize * 31 + i * 7 + len) as u8;
        }
        let words = [self.sender, self.receiver, self.id, self.from as u64];
        for (at, value) in words.into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
    fn of(bytes: &[u8]) -> Self {
        let at = |i: usize| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().unwrap());
        let tag = Self { sender: at(0), receiver: at(1), id: at(2), from: at(3) as usize };
        assert_eq!(bytes, tag.bytes(bytes.len()), "bytes of {tag:?} were changed");
        tag
    }
}

pub(super) struct Node {
    pub(super) link: Link,
    pub(super) me: u64,
    pub(super) peer: u64,
    next_id: u64,
    next_buf: u64,
    /// Records queued and referred to by the link.
    outgoing: BTreeMap<u64, Vec<u8>>,
    /// Records being put together.
    partial: BTreeMap<u64, Vec<u8>>,
    /// All messages and whole records that this incarnation received.
    pub(super) got: BTreeSet<Tag>,
    /// Tags queued in the present session and neither delivered nor dropped.
    pub(super) waiting: BTreeSet<Tag>,
    /// Tags that the link gave up at the end of a session.
    dropped: BTreeSet<u64>,
    pub(super) events: Vec<Event>,
}

pub(super) struct Pair {
    pub(super) now: Nanos,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) nodes: [Node; 2],
    pub(super) config: LinkConfig,
    net: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    sequence: u64,
    /// Whoever received what, over all incarnations: what a delivered token is checked against.
    stored: BTreeSet<Tag>,
    pub(super) packets: u64,
}

const SHARDS: [ShardId; 2] = [ShardId::new(1, 0), ShardId::new(2, 3)];

fn node(config: &LinkConfig, side: usize, me: u64, now: Nanos) -> Node {
    let mut link = Link::new(
        config.clone(),
        SHARDS[side],
        SHARDS[1 - side],
        Incarnation::new(me).unwrap(),
        now,
    );
    link.set_epoch(Epoch(1), PeerEpoch::Exactly(Epoch(1)));
    Node {
        link,
        me,
        peer: 0,
        next_id: 0,
        next_buf: 1,
        outgoing: BTreeMap::new(),
        partial: BTreeMap::new(),
        got: BTreeSet::new(),
        waiting: BTreeSet::new(),
        dropped: BTreeSet::new(),
        events: Vec::new(),
    }
}

impl Pair {
    pub(super) fn new(config: LinkConfig, seed: u64) -> Self {
        let now = Nanos(1_000_000);
        Self {
            now,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults: Faults { delay_max: 10_000, ..Faults::default() },
            nodes: [node(&config, 0, 1, now), node(&config, 1, 1, now)],
            config,
            net: BTreeMap::new(),
            sequence: 0,
            stored: BTreeSet::new(),
            packets: 0,
        }
    }

    /// Small windows and short times, so that every limit is met.
    pub(super) fn small() -> LinkConfig {
        LinkConfig {
            payload_bytes_max: 256,
            data_window: 64,
            control_window: 64,
            records_max: 128,
            messages_max: 64,
            message_store_bytes: 128 * 1024,
            assemblies_max: 4,
            rto_initial_ns: 1_000_000,
            rto_min_ns: 200_000,
            rto_max_ns: 10_000_000,
            reorder_ns: 5_000,
            heartbeat_ns: 1_000_000,
            silent_ns: 20_000_000,
            ..LinkConfig::default()
        }
    }

    /// Queues a message of `len` bytes; false when there is no room or no session.
    pub(super) fn send_message(&mut self, side: usize, len: usize) -> bool {
        let node = &mut self.nodes[side];
        let tag = Tag { from: side, sender: node.me, receiver: node.peer, id: node.next_id };
        match node.link.send_message(&tag.bytes(len.max(32))) {
            Ok(()) => {
                node.next_id += 1;
                node.waiting.insert(tag);
                true
            }
            Err(SendError::Full | SendError::Down) => false,
        }
    }

    /// The same with a record.
    pub(super) fn send_record(&mut self, side: usize, len: usize) -> bool {
        let node = &mut self.nodes[side];
        let tag = Tag { from: side, sender: node.me, receiver: node.peer, id: node.next_id };
        let bytes = tag.bytes(len.max(128));
        let buf = BufRef(node.next_buf);
        let token = Token(tag.id);
        match node.link.send_record(RecordRole::Mirror, buf, bytes.len() as u32, token) {
            Ok(()) => {
                node.next_id += 1;
                node.next_buf += 1;
                node.outgoing.insert(buf.0, bytes);
                node.waiting.insert(tag);
                true
            }
            Err(SendError::Full | SendError::Down) => false,
        }
    }

    /// The process of `side` loses its memory and comes back.
    pub(super) fn restart(&mut self, side: usize) {
        let me = self.nodes[side].me + 1;
        self.nodes[side] = node(&self.config, side, me, self.now);
    }

    /// Takes one node's turn: timers, events, deliveries, packets out.
    fn turn(&mut self, side: usize) {
        self.nodes[side].link.handle_timeout(self.now);
        self.take_events(side);
        let node = &mut self.nodes[side];
        while let Some(done) = node.link.poll_delivered() {
            let tag = Tag { from: side, sender: node.me, receiver: node.peer, id: done.token.0 };
            assert!(self.stored.contains(&tag), "{tag:?} delivered but not stored");
            assert!(node.outgoing.remove(&done.buf.0).is_some());
            assert!(node.waiting.remove(&tag));
        }
        let mut out = Transmit::default();
        let mut numbered = true;
        loop {
            let node = &mut self.nodes[side];
            numbered = numbered && node.link.poll_transmit(self.now, &mut out);
            if !numbered && !node.link.poll_bare(self.now, &mut out) {
                break;
            }
            let body = match out.body {
                Body::Record { buf, offset, len } => {
                    let record = &node.outgoing[&buf.0];
                    &record[offset as usize..offset as usize + usize::from(len)]
                }
                Body::None | Body::Message { .. } | Body::Bitmap => {
                    node.link.inline_bytes(&out.body)
                }
            };
            if out.wants_payload_crc() {
                out.packet.payload_crc = Some(crc32c(body));
            }
            let mut bytes = PacketHeader::seal(&out.packet).as_bytes().to_vec();
            bytes.extend_from_slice(body);
            assert!(bytes.len() <= 64 + usize::from(self.config.payload_bytes_max));
            self.post(1 - side, bytes);
        }
        self.nodes[side].link.check();
    }

    fn post(&mut self, to: usize, mut bytes: Vec<u8>) {
        self.packets += 1;
        if self.faults.cut || self.faults.deaf == Some(to) || self.random.chance(self.faults.lose) {
            return;
        }
        // Whole records have checksums of their own, which are not this module's.
        let header_only = bytes.len() > 192;
        if self.random.chance(self.faults.corrupt) && header_only {
            let at = self.random.below(64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        let copies = 1 + u64::from(self.random.chance(self.faults.duplicate));
        for _ in 0..copies {
            let at = self.now.0 + 1_000 + self.random.below(self.faults.delay_max + 1);
            self.sequence += 1;
            self.net.insert((at, self.sequence), (to, bytes.clone()));
        }
    }

    fn take_events(&mut self, side: usize) {
        let node = &mut self.nodes[side];
        while let Some(event) = node.link.poll_event() {
            match event {
                Event::Reset => {
                    // Records come back one by one below; messages are simply gone.
                    let records: BTreeSet<Tag> =
                        node.outgoing.values().map(|bytes| Tag::of(bytes)).collect();
                    node.dropped.extend(node.waiting.difference(&records).map(|tag| tag.id));
                    node.waiting = records;
                }
                Event::Dropped { token, buf } => {
                    let bytes = node.outgoing.remove(&buf.0).unwrap();
                    let tag = Tag::of(&bytes);
                    assert_eq!(tag.id, token.0);
                    assert!(node.waiting.remove(&tag));
                    node.dropped.insert(tag.id);
                }
                Event::Abandoned { buf } => assert!(node.partial.remove(&buf.0).is_some()),
                Event::Closed => panic!("nobody closes these links"),
                Event::Up { peer } => {
                    assert!(peer.get() > node.peer);
                    assert!(node.waiting.is_empty() && node.outgoing.is_empty());
                    assert!(node.partial.is_empty());
                    node.peer = peer.get();
                }
                Event::Silent | Event::Heard => {}
            }
            node.events.push(event);
        }
    }

    fn receive(&mut self, side: usize, bytes: &[u8]) {
        let Ok(info) = PacketHeader::check(bytes) else { return };
        let payload = &bytes[PACKET_HEADER_BYTES..];
        let node = &mut self.nodes[side];
        let tag = match node.link.handle_packet(self.now, &info, payload) {
            Verdict::NewSession => {
                self.take_events(side);
                return self.receive(side, bytes);
            }
            Verdict::Message(message) => Tag::of(message),
            Verdict::Store(store) => {
                let most = self.faults.partial_max;
                let taken = most > 0 && store.buf.is_none() && node.partial.len() >= most;
                if taken || self.random.chance(self.faults.no_room) {
                    node.link.record_refused(&store, false);
                    return;
                }
                if store.payload_crc.is_some_and(|crc| crc != crc32c(payload)) {
                    node.link.record_refused(&store, true);
                    return;
                }
                let buf = store.buf.unwrap_or_else(|| {
                    node.next_buf += 1;
                    node.partial.insert(node.next_buf, vec![0; store.total_len as usize]);
                    BufRef(node.next_buf)
                });
                let record = node.partial.get_mut(&buf.0).unwrap();
                let offset = store.offset as usize;
                record[offset..offset + payload.len()].copy_from_slice(payload);
                node.link.record_stored(&store, buf);
                if !store.completes {
                    return;
                }
                Tag::of(&node.partial.remove(&buf.0).unwrap())
            }
            Verdict::Nothing | Verdict::Duplicate | Verdict::Refused(_) => return,
        };
        assert_eq!((tag.sender, tag.receiver), (node.peer, node.me), "of another session");
        assert!(node.got.insert(tag), "{tag:?} received twice");
        assert!(self.stored.insert(tag));
    }

    /// Gives both nodes a turn, then goes to whatever comes next. False when that is later than
    /// `until`.
    pub(super) fn step(&mut self, until: Nanos) -> bool {
        self.turn(0);
        self.turn(1);
        let timers = self.nodes.iter().map(|n| n.link.next_timeout()).min().unwrap();
        let arrival = self.net.keys().next().map_or(Nanos::NEVER, |(at, _)| Nanos(*at));
        let next = timers.min(arrival).max(self.now);
        if next > until {
            self.now = until;
            return false;
        }
        self.now = next;
        while let Some(entry) = self.net.first_entry() {
            if entry.key().0 > self.now.0 {
                break;
            }
            let (to, bytes) = entry.remove();
            self.receive(to, &bytes);
            self.nodes[to].link.check();
        }
        true
    }

    /// Lets `ns` nanoseconds pass in which `side` does nothing: packets for it wait.
    pub(super) fn sleep(&mut self, side: usize, ns: u64) {
        let wake = self.now.after(ns);
        while self.now < wake {
            self.turn(1 - side);
            let next = self.nodes[1 - side].link.next_timeout();
            self.now = next.max(self.now).min(wake);
        }
        let late: Vec<_> = self.net.extract_if(.., |(at, _), _| *at < wake.0).collect();
        for ((_, sequence), packet) in late {
            self.net.insert((wake.0, sequence), packet);
        }
    }

    /// Lets `ns` nanoseconds pass.
    pub(super) fn run(&mut self, ns: u64) {
        let until = self.now.after(ns);
        while self.step(until) {}
        self.turn(0);
        self.turn(1);
    }

    /// Lets time pass until both are in one session.
    pub(super) fn connect(&mut self) {
        for _ in 0..10_000 {
            let [a, b] = &self.nodes;
            let met = a.peer == b.me && b.peer == a.me;
            if met && a.link.is_up() && b.link.is_up() {
                return;
            }
            self.run(100_000);
        }
        panic!("the two did not meet");
    }

    /// Lets time pass until nothing waits; panics when that takes more than `ns`.
    pub(super) fn settle(&mut self, ns: u64) {
        let end = self.now.after(ns);
        while self.nodes.iter().any(|n| n.link.queued() != (0, 0)) {
            assert!(
                self.now < end,
                "undelivered after {ns} ns: {:?}",
                self.nodes.each_ref().map(|n| (n.link.queued(), n.link.counters()))
            );
            self.run(50_000);
        }
        self.turn(0);
        self.turn(1);
    }

    /// Whether everything that this life of `from` sent was received, except what its link
    /// reported dropped.
    pub(super) fn all_arrived(&self, from: usize) -> bool {
        let node = &self.nodes[from];
        let arrived: BTreeSet<u64> = self
            .stored
            .iter()
            .filter(|t| t.sender == node.me && t.from == from)
            .map(|t| t.id)
            .collect();
        (0..node.next_id).all(|id| arrived.contains(&id) || node.dropped.contains(&id))
    }
}
