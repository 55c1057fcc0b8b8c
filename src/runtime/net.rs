//! The poller's links over its ports: packets in and out.
//!
//! Records go out from where they lie in the arena; what comes in is copied once, from the packet
//! into the arena, with its checksum verified in the same pass.

use super::messages::{LinkView, PeerState};
use super::parts::LinkParts;
use super::poller::Poller;
use super::records::{Copied, Payload, copy_in, crc_of, pieces};
use super::siblings::SiblingMessage;
use crate::dpdk::{Destination, OwnedFrame, Queue, Region, Ticket};
use crate::mem::arena::Arena;
use crate::mem::copy::publish_fence;
use crate::proto::command::{RecordRole, Token};
use crate::proto::limits::POLLERS_MAX;
use crate::proto::link::{Body, Event, Link, PeerEpoch, Store, Transmit, Verdict};
use crate::proto::membership::SiteRecord;
use crate::proto::message::Message;
use crate::proto::primary::RecordVerdict;
use crate::proto::types::{BufRef, Epoch, Nanos, ShardId};
use crate::wire::message::{decode, encode};
use crate::wire::packet::{Incarnation, PacketHeader, PacketInfo};
use crate::wire::update::UPDATE_HEADER_BYTES;
use std::collections::VecDeque;

use super::messages::FromPoller;

/// No link.
const NONE: u16 = u16::MAX;

/// One link and how it is reached.
struct Peer {
    link: Link,
    queue: usize,
    destination: Destination,
    /// Control messages that the link had no room for, in order.
    outbox: VecDeque<Vec<u8>>,
    /// Records that the link had no room for, in order. The protocol's limits keep it empty.
    records: VecDeque<(RecordRole, BufRef, u32, Token)>,
    state: PeerState,
    /// When `state` began.
    since: Nanos,
}

/// The links and ports. Owned by one poller.
pub(super) struct Net {
    epoch: Epoch,
    /// Taken out while packets of it are handed in.
    queues: Vec<Option<Box<Queue>>>,
    /// The arena, as frames refer to it.
    region: Region,
    peers: Vec<Peer>,
    /// (mover, poller) → index in `peers`.
    table: Vec<u16>,
    transmit: Transmit,
    encoded: Vec<u8>,
    /// Packets that belonged to no link, and messages that could not be read.
    foreign: u64,
    malformed: u64,
    /// Records freed by the protocol while a frame that refers to them may be in a queue, in
    /// order, each with `tickets` of all queues at that moment.
    pending: VecDeque<BufRef>,
    tickets: VecDeque<Ticket>,
    /// When addresses of neighbours are refreshed next.
    refresh_at: Nanos,
}

/// Between refreshes of neighbours' addresses.
const REFRESH_NS: u64 = 1_000_000_000;
/// A shard that is silent for so long is lost to hosts that wait for it here. Far above the time that
/// a mover may be held up, far below the 30 s after which hosts give up by themselves.
const LOST_NS: u64 = 3_000_000_000;

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("links", &self.peers.len()).finish_non_exhaustive()
    }
}

impl Net {
    /// # Errors
    /// The peer that no way leads to.
    pub(super) fn new(
        me: ShardId,
        epoch: Epoch,
        incarnation: Incarnation,
        mut queues: Vec<Option<Box<Queue>>>,
        region: Region,
        links: Vec<LinkParts>,
        now: Nanos,
    ) -> Result<Self, ShardId> {
        let mut table = Vec::new();
        let mut peers = Vec::with_capacity(links.len());
        for parts in links {
            let place = place(parts.peer);
            if table.len() <= place {
                table.resize(place + 1, NONE);
            }
            table[place] = peers.len() as u16;
            let mut link = Link::new(parts.config, me, parts.peer, incarnation, now);
            link.set_epoch(epoch, parts.peer_epoch);
            let destination = queues
                .get_mut(parts.port)
                .and_then(|queue| queue.as_mut())
                .and_then(|queue| queue.destination(parts.address, parts.peer.poller))
                .ok_or(parts.peer)?;
            peers.push(Peer {
                link,
                queue: parts.port,
                destination,
                outbox: VecDeque::new(),
                records: VecDeque::new(),
                state: PeerState::Unknown,
                since: now,
            });
        }
        Ok(Self {
            epoch,
            queues,
            region,
            peers,
            table,
            transmit: Transmit::default(),
            encoded: Vec::with_capacity(4096),
            foreign: 0,
            malformed: 0,
            pending: VecDeque::with_capacity(256),
            tickets: VecDeque::with_capacity(256),
            refresh_at: now,
        })
    }

    fn index_of(&self, shard: ShardId) -> Option<usize> {
        self.table.get(place(shard)).filter(|index| **index != NONE).map(|i| usize::from(*i))
    }

    /// Whether the link to `shard` is up: it may be silent since.
    pub(super) fn is_up(&self, shard: ShardId) -> bool {
        self.index_of(shard).is_some_and(|index| self.peers[index].link.is_up())
    }

    /// Whether nothing has come from `shard` for so long that nobody should wait for it.
    pub(super) fn is_lost(&self, shard: ShardId, now: Nanos) -> bool {
        self.index_of(shard).is_none_or(|index| {
            let peer = &self.peers[index];
            peer.state != PeerState::Up && now.since(peer.since) > LOST_NS
        })
    }

    /// Sends a control message; waits in an outbox when the link is full. What is for a peer that
    /// is down is dropped: the machines say it again when it is up.
    pub(super) fn send_message(&mut self, to: ShardId, message: &Message) {
        let Some(index) = self.index_of(to) else {
            debug_assert!(false, "there is a link to every shard that is talked to: {to}");
            return;
        };
        self.encoded.clear();
        encode(self.epoch, message, &mut self.encoded);
        let peer = &mut self.peers[index];
        if !peer.link.is_up() {
            return;
        }
        if !peer.outbox.is_empty() || peer.link.send_message(&self.encoded).is_err() {
            peer.outbox.push_back(self.encoded.clone());
        }
    }

    /// Sends a record from the arena.
    #[inline]
    pub(super) fn send_record(
        &mut self,
        to: ShardId,
        role: RecordRole,
        buf: BufRef,
        len: u32,
        token: Token,
    ) {
        let Some(index) = self.index_of(to) else {
            debug_assert!(false, "there is a link to every shard that gets records: {to}");
            return;
        };
        let peer = &mut self.peers[index];
        if !peer.link.is_up() {
            return;
        }
        if !peer.records.is_empty() || peer.link.send_record(role, buf, len, token).is_err() {
            peer.records.push_back((role, buf, len, token));
        }
    }

    /// Whether no frame in a queue can refer to any record. If one can, `buf` is handed out by
    /// [`Self::reusable`] once it cannot any more.
    #[inline]
    pub(super) fn may_reuse(&mut self, buf: BufRef) -> bool {
        let quiet = self.pending.is_empty()
            && self.queues.iter_mut().flatten().all(|q| q.completed() >= q.issued());
        if !quiet {
            self.pending.push_back(buf);
            self.tickets.extend(self.queues.iter().flatten().map(|queue| queue.issued()));
        }
        quiet
    }

    /// Records that [`Self::may_reuse`] kept back and that no frame refers to any more.
    fn reusable(&mut self, mut free: impl FnMut(BufRef)) {
        let count = self.queues.iter().flatten().count();
        while let Some(buf) = self.pending.front().copied() {
            let mut queues = self.queues.iter_mut().flatten().zip(&self.tickets);
            if !queues.all(|(queue, ticket)| queue.completed() >= *ticket) {
                return;
            }
            free(buf);
            self.pending.pop_front();
            self.tickets.drain(..count);
        }
    }

    /// The links, for status.
    pub(super) fn views(&self) -> Vec<LinkView> {
        self.peers
            .iter()
            .map(|peer| {
                let counters = peer.link.counters();
                LinkView {
                    peer: peer.link.peer(),
                    state: peer.state,
                    sent: counters.packets_sent,
                    retransmitted: counters.retransmitted,
                    received: counters.packets_received,
                    refused: counters.misrouted
                        + counters.epoch_old
                        + counters.epoch_new
                        + counters.sender_old
                        + counters.receiver_other
                        + counters.malformed
                        + counters.corrupt
                        + counters.out_of_window,
                    duplicates: counters.duplicates,
                    rtt_ns: peer.link.rtt_ns(),
                }
            })
            .collect()
    }

    /// Packets that belonged to no link or that a queue refused, and messages that could not be
    /// read.
    pub(super) fn refused(&self) -> u64 {
        let queues = self.queues.iter().flatten().map(|queue| {
            let counters = queue.counters();
            counters.foreign + counters.truncated + counters.malformed + counters.corrupt
        });
        self.foreign + self.malformed + queues.sum::<u64>()
    }
}

fn place(shard: ShardId) -> usize {
    usize::from(shard.mover.0) * POLLERS_MAX + usize::from(shard.poller)
}

impl Poller {
    /// Takes in what the queues have, and what the links make of it.
    #[inline]
    pub(super) fn receive(&mut self) -> u64 {
        let mut work = 0;
        for index in 0..self.net.queues.len() {
            let Some(mut queue) = self.net.queues[index].take() else { continue };
            work += queue.receive(self.now, |received| {
                let info = *received.info();
                if info.dst.poller == self.me.poller || info.dst.mover != self.me.mover {
                    self.packet(&info, received.payload());
                } else if let Some(frame) = received.keep() {
                    self.siblings.send(info.dst.poller, SiblingMessage::Frame(frame));
                }
            }) as u64;
            self.net.queues[index] = Some(queue);
        }
        for index in 0..self.net.peers.len() {
            self.net.peers[index].link.handle_timeout(self.now);
            self.link_events(index);
            while let Some(delivered) = self.net.peers[index].link.poll_delivered() {
                if !self.answer_delivered(delivered.token, delivered.buf) {
                    self.node.handle_delivered(self.now, delivered.token);
                }
                work += 1;
            }
        }
        work
    }

    /// A frame that a sibling's queue received for this poller.
    pub(super) fn sibling_frame(&mut self, frame: &OwnedFrame) {
        let info = *frame.info();
        self.packet(&info, frame.payload());
    }

    #[inline]
    fn packet(&mut self, info: &PacketInfo, payload: Payload<'_>) {
        let Some(peer) = self.net.index_of(info.src) else {
            self.net.foreign += 1;
            return;
        };
        // Twice at most: a packet that begins a session is taken again after its events.
        for _ in 0..2 {
            let net = &mut self.net;
            match net.peers[peer].link.handle_packet(self.now, info, payload.0) {
                Verdict::NewSession => {
                    self.link_events(peer);
                    continue;
                }
                Verdict::Message(bytes) => match decode(bytes) {
                    Ok((epoch, message)) => {
                        if !self.remote_said(info.src, &message) {
                            self.node.handle_message(self.now, info.src, epoch, message);
                        }
                    }
                    Err(error) => {
                        net.malformed += 1;
                        tracing::debug!(%error, from = %info.src, "a control message was refused");
                    }
                },
                Verdict::Store(store) => self.store(peer, store, payload),
                Verdict::Nothing | Verdict::Duplicate | Verdict::Refused(_) => {}
            }
            return;
        }
    }

    /// Stores a record or a fragment of one, verifies it, and hands whole ones to the protocol.
    #[inline]
    fn store(&mut self, peer: usize, store: Store, payload: Payload<'_>) {
        let crowded = self.journal.as_ref().is_some_and(|io| io.driver.is_full());
        let fresh = store.buf.is_none();
        let buf = match store.buf {
            Some(buf) => Some(buf),
            None if crowded => None,
            None => self.room_for(&store),
        };
        let Some(buf) = buf else {
            self.net.peers[peer].link.record_refused(&store, false);
            return;
        };
        let info = match copy_in(&mut self.arena, buf, &store, payload) {
            Copied::Unsound => None,
            Copied::Part => {
                self.net.peers[peer].link.record_stored(&store, buf);
                return;
            }
            Copied::Whole(info) => Some(info),
        };
        let Some(info) = info else {
            self.net.peers[peer].link.record_refused(&store, true);
            if fresh {
                Self::release(&mut self.arena, &mut self.remote, buf);
            }
            return;
        };
        let from = self.net.peers[peer].link.peer();
        if store.role == RecordRole::Answer {
            self.net.peers[peer].link.record_stored(&store, buf);
            self.answer_arrived(from, &info, buf);
            Self::release(&mut self.arena, &mut self.remote, buf);
            return;
        }
        match self.node.handle_record(self.now, from, store.role, &info, buf) {
            RecordVerdict::Kept => self.net.peers[peer].link.record_stored(&store, buf),
            RecordVerdict::NotNeeded | RecordVerdict::StaleEpoch => {
                self.net.peers[peer].link.record_stored(&store, buf);
                self.arena.free(buf);
            }
            RecordVerdict::Numbered { buf: numbered } => {
                let header = *self.arena.header(buf);
                self.arena.header_mut(numbered).copy_from_slice(&header);
                self.net.peers[peer].link.record_stored(&store, buf);
                self.arena.free(buf);
            }
            RecordVerdict::Full => {
                self.net.peers[peer].link.record_refused(&store, false);
                if fresh {
                    self.arena.free(buf);
                }
            }
        }
    }

    /// Room for a record that begins to arrive. Copies for others and transferred records have
    /// their own share of the arena.
    #[inline]
    fn room_for(&mut self, store: &Store) -> Option<BufRef> {
        let payload = (store.total_len as usize).checked_sub(UPDATE_HEADER_BYTES)?;
        let log = match store.role {
            RecordRole::Mirror
            | RecordRole::SecondaryMirror
            | RecordRole::Forward
            | RecordRole::Resend
            | RecordRole::Numbered
            | RecordRole::Voided
            | RecordRole::ResendVoid
            | RecordRole::Description
            | RecordRole::ResendDescription => self.mirror_log,
            RecordRole::Transfer => self.own_log,
            RecordRole::Answer => return self.room_for_answer(payload),
        };
        let buf = self.arena.append(log, payload, self.record_align);
        if buf.is_none() {
            self.arena_full = true;
        }
        buf
    }

    fn link_events(&mut self, index: usize) {
        while let Some(event) = self.net.peers[index].link.poll_event() {
            let peer = self.net.peers[index].link.peer();
            match event {
                Event::Reset => {
                    self.net.peers[index].outbox.clear();
                    self.net.peers[index].records.clear();
                }
                // The protocol is told by `Up` and counts its references anew.
                Event::Dropped { .. } => {}
                Event::Abandoned { buf } => Self::release(&mut self.arena, &mut self.remote, buf),
                Event::Up { .. } => {
                    self.node.handle_peer_up(self.now, peer);
                    self.remote_up(peer);
                    self.peer_state(index, PeerState::Up);
                    if self.quiesced {
                        self.say_stopping(peer, false);
                    }
                }
                Event::Closed => {
                    self.drop_answers(peer);
                    self.peer_state(index, PeerState::Unknown);
                }
                Event::Silent => self.peer_state(index, PeerState::Silent),
                Event::Heard => self.peer_state(index, PeerState::Up),
            }
        }
    }

    /// Has all links name the epoch of `record` from now on, and ends those to movers of this site that
    /// have left since the epoch `before`, also if they have come back with another memory.
    pub(super) fn enter_links(&mut self, record: &SiteRecord, before: Epoch) {
        self.net.epoch = record.epoch;
        for index in 0..self.net.peers.len() {
            let link = &mut self.net.peers[index].link;
            let peer = link.peer();
            if self.node.is_of_other_site(peer) {
                link.enter_epoch(record.epoch);
                continue;
            }
            link.set_epoch(record.epoch, PeerEpoch::Exactly(record.epoch));
            if record.left_since(peer.mover, before) {
                link.close();
                self.link_events(index);
            }
        }
    }

    /// Tells all shards of both sites how far the end of this primary mover is.
    pub(super) fn say_stopping_to_all(&mut self, drained: bool) {
        for index in 0..self.net.peers.len() {
            let peer = self.net.peers[index].link.peer();
            self.say_stopping(peer, drained);
        }
    }

    fn say_stopping(&mut self, to: ShardId, drained: bool) {
        if self.node.primary().is_some() {
            self.net.send_message(to, &Message::Stopping { drained });
        }
    }

    fn peer_state(&mut self, index: usize, state: PeerState) {
        (self.net.peers[index].state, self.net.peers[index].since) = (state, self.now);
        let (shard, peer) = (self.me, self.net.peers[index].link.peer());
        self.tell(FromPoller::Peer { shard, peer, state });
    }

    /// Sends what the links want sent.
    #[inline]
    pub(super) fn transmit(&mut self) -> u64 {
        let mut sent = 0;
        let mut fenced = false;
        for index in 0..self.net.peers.len() {
            sent += self.net.transmit_peer(index, &self.arena, self.now, &mut fenced);
        }
        for queue in self.net.queues.iter_mut().flatten() {
            queue.flush();
        }
        if !self.net.pending.is_empty() {
            let (arena, remote) = (&mut self.arena, &mut self.remote);
            self.net.reusable(|buf| Self::release(arena, remote, buf));
        }
        if self.now >= self.net.refresh_at {
            self.net.refresh_at = self.now.after(REFRESH_NS);
            for queue in self.net.queues.iter_mut().flatten() {
                queue.refresh(self.now);
            }
        }
        sent
    }
}

impl Net {
    #[inline]
    fn transmit_peer(&mut self, index: usize, arena: &Arena, now: Nanos, fenced: &mut bool) -> u64 {
        let peer = &mut self.peers[index];
        while let Some(message) = peer.outbox.front() {
            if peer.link.send_message(message).is_err() {
                break;
            }
            peer.outbox.pop_front();
        }
        while let Some((role, buf, len, token)) = peer.records.front().copied() {
            if peer.link.send_record(role, buf, len, token).is_err() {
                break;
            }
            peer.records.pop_front();
        }
        let Some(queue) = &mut self.queues[peer.queue] else { return 0 };
        let mut sent = 0;
        while queue.room() > 0
            && (peer.link.poll_transmit(now, &mut self.transmit)
                || peer.link.poll_bare(now, &mut self.transmit))
        {
            let packet = &mut self.transmit;
            sent += 1;
            // What a queue does not take is lost like a frame on the way: it is sent again.
            let _ = match packet.body {
                Body::Record { buf, offset, len } => {
                    if !*fenced {
                        // Records were written past the cache.
                        publish_fence();
                        *fenced = true;
                    }
                    let (header, payload) = pieces(arena, buf, offset, len);
                    if packet.wants_payload_crc() {
                        packet.packet.payload_crc = Some(crc_of(arena, header, payload));
                    }
                    let external = (!payload.is_empty())
                        .then(|| self.region.external(payload.as_ptr(), payload.len() as u16));
                    let sealed = PacketHeader::seal(&packet.packet);
                    queue.push(now, peer.destination, &sealed, header, external)
                }
                body => {
                    let sealed = PacketHeader::seal(&packet.packet);
                    let inline = peer.link.inline_bytes(&body);
                    queue.push(now, peer.destination, &sealed, inline, None)
                }
            };
        }
        sent
    }
}
