//! Between pollers: real links over the simulated network, rings within a mover.
//!
//! A poller's turn ends with [`Cluster::transmit`], which sends what its links have to send, as
//! bytes: packets are sealed here and checked at the other end.

use super::arena::{Record, Room, blank_info};
use super::cluster::{Cluster, EPOCH, Event};
use super::coverage::Busy;
use super::node::{Poller, Unsent};
use super::observer::{SECONDARY, Verdict, Violation, ensure};
use crate::mem::crc32c::crc32c;
use crate::proto::command::{RecordRole, Token, bytes_to_send};
use crate::proto::link::{Body, Event as LinkEvent, SendError, Store, Transmit, Verdict as Heard};
use crate::proto::message::Message;
use crate::proto::primary::RecordVerdict;
use crate::proto::types::{BufRef, ShardId};
use crate::wire::message as wire;
use crate::wire::packet::{PACKET_HEADER_BYTES, PacketHeader};
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader, UpdateInfo};
use zerocopy::IntoBytes;

/// Delay of a ring within a mover, nanoseconds.
const RING_NS: u64 = 300;

impl Cluster {
    /// Sends a message: through the link, or through the ring to a poller of the same mover.
    pub(super) fn send_message(&mut self, from: usize, to: usize, message: &Message) {
        let mut bytes = Vec::new();
        let epoch = self.pollers[from].node.as_ref().map_or(EPOCH, |node| node.epoch());
        wire::encode(epoch, message, &mut bytes);
        if self.pollers[from].id.mover == self.pollers[to].id.mover {
            let life = self.pollers[to].life;
            let after = self.net_rng.delay(RING_NS);
            self.queue.after(after, Event::Ring { from, to, life, bytes });
            return;
        }
        self.push(from, to, Unsent::Message(bytes));
    }

    /// Sends a record through the link.
    pub(super) fn send_record(
        &mut self,
        from: usize,
        to: usize,
        role: RecordRole,
        buf: BufRef,
        token: Token,
    ) -> Verdict {
        let known = self.pollers[from].arena.get(buf).is_some();
        let id = self.pollers[from].id;
        ensure!(
            0,
            known,
            "{id} sends {buf} to shard {to} as {role:?}, {token:?}, and has freed it"
        );
        self.push(from, to, Unsent::Record(role, buf, token));
        Ok(())
    }

    fn push(&mut self, from: usize, to: usize, item: Unsent) {
        let node = &mut self.pollers[from];
        // Without a link nobody is there; the machine is told when somebody is.
        let Some(port) = node.port_of[to] else { return };
        let port = &mut node.ports[port];
        port.unsent.push_back(item);
        port.touched = true;
    }

    /// A message arrives through a ring.
    pub(super) fn ring(&mut self, from: usize, to: usize, life: u32, bytes: &[u8]) -> Verdict {
        if self.pollers[to].life != life {
            return Ok(());
        }
        self.message_arrives(from, to, bytes)?;
        self.settle(to)
    }

    fn message_arrives(&mut self, from: usize, to: usize, bytes: &[u8]) -> Verdict {
        let now = self.queue.now();
        let Ok((epoch, message)) = wire::decode(bytes) else {
            ensure!(0, false, "a message does not read back: {bytes:?}");
            return Ok(());
        };
        let (source, me) = (self.pollers[from].id, self.pollers[to].id);
        if let Message::Survey { volumes, .. } | Message::Marks { volumes } = &message
            && self.pollers[to].node.as_ref().is_some_and(|node| node.epoch() == epoch)
        {
            for held in volumes {
                self.observer.told(me.mover.0, held.volume.0 as usize, held.heard);
            }
        }
        let kind = u64::from(bytes.first().copied().unwrap_or(0));
        self.trace.note(now, b'M', [from as u64, to as u64, kind], |out| {
            write!(out, "{source} → {me} {message:?}")
        });
        let here = self.here(to);
        let busy = self.busy(to);
        if self.is_down(to) {
            return Ok(());
        }
        busy.into_iter().for_each(|busy| self.coverage.message(&message, busy));
        self.timed(to, |cluster| {
            if let Some(machines) = &mut cluster.pollers[to].node {
                machines.handle_message(here, source, epoch, message);
            }
        });
        Ok(())
    }

    /// What a poller is busy with, unless it is down.
    pub(super) fn busy(&mut self, node: usize) -> Option<Busy> {
        let machines = self.pollers[node].node.as_mut()?;
        if let Some(shard) = machines.primary() {
            return Some(Busy::Primary(shard.stage()));
        }
        let shard = machines.secondary()?.shard();
        Some(Busy::Secondary(shard.status().any(|group| group.applying.is_some())))
    }

    /// A packet arrives.
    pub(super) fn packet(&mut self, from: usize, to: usize, bytes: &[u8]) -> Verdict {
        if self.is_down(to) {
            return Ok(());
        }
        let now = self.queue.now();
        let Ok(info) = PacketHeader::check(bytes) else {
            self.stats.packets_refused += 1;
            return Ok(());
        };
        let payload = &bytes[PACKET_HEADER_BYTES..][..usize::from(info.payload_len)];
        let Some(port) = self.pollers[to].port_of[from] else { return Ok(()) };
        self.pollers[to].ports[port].touched = true;
        loop {
            match self.pollers[to].ports[port].link.handle_packet(now, &info, payload) {
                Heard::NewSession => {
                    self.link_events(to, port)?;
                    continue;
                }
                Heard::Message(message) => {
                    let message = message.to_vec();
                    self.message_arrives(from, to, &message)?;
                }
                Heard::Store(store) => self.store(from, to, port, &store, payload)?,
                Heard::Refused(_) => self.stats.packets_refused += 1,
                Heard::Nothing | Heard::Duplicate => {}
            }
            break;
        }
        self.settle(to)
    }

    /// Takes the events of a link, and the records that its peer has stored.
    pub(super) fn link_events(&mut self, node: usize, port: usize) -> Verdict {
        let (now, here) = (self.queue.now(), self.here(node));
        loop {
            let port = &mut self.pollers[node].ports[port];
            let peer = port.peer;
            if let Some(done) = port.link.poll_delivered() {
                self.trace.note(now, b'S', [node as u64, peer as u64, done.token.0], |out| {
                    write!(out, "shard {peer} has stored {:?} of shard {node}", done.token)
                });
                if let Some(machines) = &mut self.pollers[node].node {
                    machines.handle_delivered(here, done.token);
                }
                continue;
            }
            let Some(event) = port.link.poll_event() else { break };
            self.trace.note(now, b'L', [node as u64, peer as u64], |out| {
                write!(out, "shard {node}, link to shard {peer}: {event:?}")
            });
            match event {
                LinkEvent::Reset => port.unsent.clear(),
                LinkEvent::Abandoned { buf } => {
                    self.pollers[node].arena.remove(buf);
                }
                LinkEvent::Up { .. } => {
                    port.unsent.clear();
                    let peer = self.pollers[peer].id;
                    if let Some(machines) = &mut self.pollers[node].node {
                        machines.handle_peer_up(here, peer);
                    }
                }
                LinkEvent::Closed => port.unsent.clear(),
                LinkEvent::Dropped { .. } | LinkEvent::Silent | LinkEvent::Heard => {}
            }
        }
        Ok(())
    }

    /// Sends what the links of a poller have to send.
    pub(super) fn transmit(&mut self, node: usize) -> Verdict {
        let now = self.queue.now();
        let mut out = Transmit::default();
        for port in 0..self.pollers[node].ports.len() {
            if !std::mem::take(&mut self.pollers[node].ports[port].touched) {
                continue;
            }
            self.fill_link(node, port);
            loop {
                let port = &mut self.pollers[node].ports[port];
                if !port.link.poll_transmit(now, &mut out) && !port.link.poll_bare(now, &mut out) {
                    break;
                }
                let mut bytes = vec![0; PACKET_HEADER_BYTES];
                bytes.extend_from_slice(port.link.inline_bytes(&out.body));
                let peer = port.peer;
                if let Body::Record { buf, offset, len } = out.body {
                    let Some(record) = self.pollers[node].arena.get(buf) else {
                        ensure!(0, false, "shard {node} sends a record that it has freed");
                        break;
                    };
                    bytes.extend_from_slice(&record.bytes[offset as usize..][..usize::from(len)]);
                    if out.wants_payload_crc() {
                        out.packet.payload_crc = Some(crc32c(&bytes[PACKET_HEADER_BYTES..]));
                    }
                }
                let header = PacketHeader::seal(&out.packet);
                bytes[..PACKET_HEADER_BYTES].copy_from_slice(header.as_bytes());
                self.cast(node, peer, bytes);
            }
        }
        Ok(())
    }

    /// Moves what waits into a link.
    fn fill_link(&mut self, node: usize, port: usize) {
        let Poller { ports, arena, .. } = &mut self.pollers[node];
        let port = &mut ports[port];
        while let Some(item) = port.unsent.front() {
            let sent = match item {
                Unsent::Message(bytes) => port.link.send_message(bytes),
                Unsent::Record(role, buf, token) => {
                    let len = arena.get(*buf).map_or(0, |record| record.bytes.len());
                    port.link.send_record(*role, *buf, bytes_to_send(*role, len as u32), *token)
                }
            };
            match sent {
                Err(SendError::Full) => break,
                // Nothing is kept for a peer that is not there: it is told when it comes up.
                Ok(()) | Err(SendError::Down) => port.unsent.pop_front(),
            };
        }
    }

    /// Gives a packet to the network.
    fn cast(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let (source, sink) = (self.pollers[from].id.mover, self.pollers[to].id.mover);
        let [first, second] = self.network.fate(source, sink, bytes.len(), &mut self.stats);
        if let Some(second) = second {
            let mut bytes = bytes.clone();
            flip(&mut bytes, second.flip_bit);
            self.queue.after(second.after_ns, Event::Packet { from, to, bytes });
        }
        if let Some(first) = first {
            let mut bytes = bytes;
            flip(&mut bytes, first.flip_bit);
            self.queue.after(first.after_ns, Event::Packet { from, to, bytes });
        }
    }

    /// Stores a record or a part of one, and hands it to the machines when it is whole.
    fn store(
        &mut self,
        from: usize,
        to: usize,
        port: usize,
        store: &Store,
        payload: &[u8],
    ) -> Verdict {
        let here = self.here(to);
        let room = match store.role {
            RecordRole::Transfer => Room::Own,
            RecordRole::Mirror
            | RecordRole::SecondaryMirror
            | RecordRole::Forward
            | RecordRole::Resend
            | RecordRole::Numbered
            | RecordRole::Voided
            | RecordRole::ResendVoid
            | RecordRole::Description
            | RecordRole::ResendDescription
            | RecordRole::Answer => Room::Mirror,
        };
        let node = &mut self.pollers[to];
        if store.payload_crc.is_some_and(|crc| crc != crc32c(payload)) {
            node.ports[port].link.record_refused(store, true);
            return Ok(());
        }
        let total = store.total_len as usize;
        let crowded = node.journal.as_ref().is_some_and(|io| io.driver.is_full());
        let buf = match store.buf {
            Some(buf) => buf,
            None if crowded => {
                self.stats.records_refused += 1;
                node.ports[port].link.record_refused(store, false);
                return Ok(());
            }
            None if !node.arena.has_room(room, total) => {
                self.stats.records_refused += 1;
                node.ports[port].link.record_refused(store, false);
                if let Some(machines) = &mut node.node {
                    machines.handle_pressure(here);
                }
                return Ok(());
            }
            None => node.arena.insert(Record { bytes: vec![0; total], info: blank_info(), room }),
        };
        let place = store.offset as usize..store.offset as usize + payload.len();
        let Some(record) = node.arena.get_mut(buf) else {
            ensure!(0, false, "the link gives back a record that it does not have");
            return Ok(());
        };
        record.bytes[place].copy_from_slice(payload);
        if !store.completes {
            node.ports[port].link.record_stored(store, buf);
            return Ok(());
        }
        let whole = UpdateHeader::check(&record.bytes).ok().filter(|info| {
            let payload = &record.bytes[UPDATE_HEADER_BYTES..];
            let bytes = bytes_to_send(store.role, record_bytes(info)) as usize;
            bytes == record.bytes.len()
                && (payload.is_empty() || info.payload_crc == crc32c(payload))
        });
        let Some(info) = whole else {
            ensure!(0, store.buf.is_none(), "fragments with good checksums make a bad record");
            node.arena.remove(buf);
            node.ports[port].link.record_refused(store, true);
            return Ok(());
        };
        record.info = info;
        if self.record_arrives(from, to, store.role, buf)? {
            self.pollers[to].ports[port].link.record_stored(store, buf);
        } else {
            self.stats.records_refused += 1;
            if store.buf.is_none() {
                self.pollers[to].arena.remove(buf);
            }
            self.pollers[to].ports[port].link.record_refused(store, false);
        }
        Ok(())
    }

    /// Hands a whole record to the machines. False when they have no room for it; otherwise it
    /// is kept or was freed.
    fn record_arrives(
        &mut self,
        from: usize,
        to: usize,
        role: RecordRole,
        buf: BufRef,
    ) -> Result<bool, Violation> {
        let (now, here) = (self.queue.now(), self.here(to));
        let source = self.pollers[from].id;
        let busy = self.busy(to);
        let node = &mut self.pollers[to];
        let me: ShardId = node.id;
        let Some(info) = node.arena.get(buf).map(|record| record.info) else { return Ok(false) };
        self.trace.note(now, b'R', [to as u64, info.volume.0.into(), info.seq.0], |out| {
            write!(out, "{source} → {me} {role:?} {} of {} in {}", info.seq, info.volume, info.set)
        });
        let Some(machines) = &mut node.node else { return Ok(false) };
        busy.into_iter().for_each(|busy| self.coverage.record(role, busy));
        let verdict = machines.handle_record(here, source, role, &info, buf);
        if verdict != RecordVerdict::StaleEpoch {
            let secondary = to >= self.primaries;
            self.observer.heard(if secondary { SECONDARY } else { me.mover.0 }, &info);
        }
        if matches!(role, RecordRole::Voided | RecordRole::ResendVoid)
            && matches!(verdict, RecordVerdict::Kept | RecordVerdict::NotNeeded)
        {
            self.observer.void_heard(me.mover.0, &info);
        }
        match verdict {
            RecordVerdict::Kept => {
                if to < self.primaries && role != RecordRole::Forward {
                    self.observer.stored(me.mover.0, &info)?;
                }
                Ok(true)
            }
            RecordVerdict::NotNeeded | RecordVerdict::StaleEpoch => {
                self.stats.records_unwanted += 1;
                self.trace.note(now, b'r', [to as u64], |out| write!(out, "{me} does not want it"));
                node.arena.remove(buf);
                Ok(true)
            }
            RecordVerdict::Full => Ok(false),
            RecordVerdict::Numbered { buf: numbered } => {
                node.arena.remove(buf);
                let record = node.arena.get_mut(numbered);
                ensure!(0, record.is_some(), "{me} freed what it forwarded");
                if let Some(record) = record {
                    record.number(&info);
                }
                self.observer.stored(me.mover.0, &info)?;
                Ok(true)
            }
        }
    }
}

/// Header and payload of the record that `info` describes.
fn record_bytes(info: &UpdateInfo) -> u32 {
    UPDATE_HEADER_BYTES as u32 + info.payload_len
}

fn flip(bytes: &mut [u8], bit: Option<u64>) {
    if let Some(bit) = bit {
        bytes[bit as usize / 8] ^= 1 << (bit % 8);
    }
}
