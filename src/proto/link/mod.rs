//! The link between two pollers: messages and records delivered once, in any order, over a
//! network that loses, duplicates, reorders and delays.
//!
//! Sans-IO, like the rest of `proto`: packets go in and come out as values, time is passed in.
//! One [`Link`] per pair of pollers, owned by the local one. It has two channels, numbered,
//! acknowledged and limited on their own: control messages, which it copies, and update records,
//! which it only refers to by [`BufRef`].
//!
//! **What is guaranteed.** A record whose token comes out of [`Link::poll_delivered`] has been
//! stored by the peer: its acknowledgement is the mirror acknowledgement of the protocol
//! (design rule "a mirror ack is the transport's own ack"). Within a session every message and
//! record is handed to the receiver once at most, and once exactly if packets get through at all.
//! A session ends when either end loses its memory; whatever is undelivered then is dropped, with
//! [`Event::Reset`], and nothing of it is delivered later.
//!
//! **Sessions.** Every packet names the incarnation of both ends. One of a former incarnation of
//! the sender is refused; one of a newer begins a session. One for another incarnation of the
//! receiver is refused, and answered, so that the peer learns the present one. Only bare packets
//! may leave the receiver's incarnation open, so nothing numbered can cross from one session into
//! another.
//!
//! **A turn of the caller:**
//! 1. every received packet through [`Link::handle_packet`]; store records, then
//!    [`Link::record_stored`] or [`Link::record_refused`]; on [`Verdict::NewSession`] first
//!    [`Link::poll_event`] until none, then the same packet again;
//! 2. [`Link::handle_timeout`], [`Link::poll_event`] and [`Link::poll_delivered`] until none;
//! 3. [`Link::send_message`], [`Link::send_record`];
//! 4. [`Link::poll_transmit`] until false, then [`Link::poll_bare`] until false: one
//!    acknowledgement per channel and turn, and none where packets of the turn carried it.
//!
//! Nothing is allocated after [`Link::new`], except for control messages longer than a packet.
//! There is no pacing and no congestion window: the network between movers is provisioned, and
//! windows and credits bound what is under way.

mod bits;
mod config;
mod counters;
mod message_store;
mod outcome;
mod receive;
mod rtt;
mod send;
mod transmit;

#[cfg(test)]
mod tests;

pub use config::LinkConfig;
pub use counters::LinkCounters;
pub use outcome::{Delivered, Event, PeerEpoch, Refusal, SendError, Store, Verdict};
pub use transmit::{Body, Transmit};

use crate::proto::command::{RecordRole, Token};
use crate::proto::limits::{MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::proto::types::{BufRef, Epoch, Nanos, ShardId};
use crate::wire::checksum::crc32c;
use crate::wire::packet::{Channel, Incarnation, PacketInfo, PacketKind};
use crate::wire::update::UPDATE_HEADER_BYTES;
use alloc::vec::Vec;
use message_store::MessageStore;
use receive::{Class, Place, Receiver};
use send::{NeverSent, Sender};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No contact yet.
    Alone,
    /// A session begins; the caller has not taken its events yet.
    Beginning {
        /// There was one before, and `Reset` has not been told.
        reset: bool,
    },
    /// The session ends; the caller has not taken its events yet.
    Ending {
        /// `Reset` has not been told.
        reset: bool,
    },
    /// Packets with numbers may come and go.
    Open,
}

/// One end of a link. See the module's documentation for the order of calls.
pub struct Link {
    config: LinkConfig,
    local: ShardId,
    peer: ShardId,
    me: Incarnation,
    known: Incarnation,
    epoch: Epoch,
    peer_epoch: PeerEpoch,
    phase: Phase,
    control_out: Sender,
    control_in: Receiver,
    data_out: Sender,
    data_in: Receiver,
    store: MessageStore,
    /// The bitmap of the bare packet made last.
    bitmap: Vec<u8>,
    /// A bare packet should go out: a greeting or a heartbeat.
    greet: bool,
    silent: bool,
    /// Since when every packet of the peer says that it does not hear this end.
    unheard_since: Option<Nanos>,
    /// That lasts: a path that is broken one way is broken.
    unheard: bool,
    silence_told: bool,
    last_sent: Nanos,
    last_heard: Nanos,
    /// No timer ends before this time.
    deadline: Nanos,
    counters: LinkCounters,
}

impl Link {
    /// A link that has not met its peer. `me` must be larger than in any former life of `local`.
    ///
    /// # Panics
    /// When `config` contradicts itself ([`LinkConfig::fault`] says how): a programmer's error.
    #[must_use]
    pub fn new(
        config: LinkConfig,
        local: ShardId,
        peer: ShardId,
        me: Incarnation,
        now: Nanos,
    ) -> Self {
        assert_eq!(config.fault(), None, "the link's configuration");
        assert_ne!(me, Incarnation::UNKNOWN, "an incarnation is not 0");
        let bitmap = config.data_window.max(config.control_window) as usize / 8;
        Self {
            local,
            peer,
            me,
            known: Incarnation::UNKNOWN,
            epoch: Epoch(0),
            peer_epoch: PeerEpoch::AtLeast(Epoch(0)),
            phase: Phase::Alone,
            control_out: Sender::new(&config, Channel::Control),
            control_in: Receiver::new(&config, Channel::Control),
            data_out: Sender::new(&config, Channel::Data),
            data_in: Receiver::new(&config, Channel::Data),
            store: MessageStore::new(config.message_store_bytes),
            bitmap: Vec::with_capacity(bitmap),
            greet: true,
            silent: false,
            unheard_since: None,
            unheard: false,
            silence_told: false,
            last_sent: now,
            last_heard: now,
            deadline: now.after(config.heartbeat_ns),
            counters: LinkCounters::default(),
            config,
        }
    }

    /// The peer's poller.
    #[must_use]
    pub const fn peer(&self) -> ShardId {
        self.peer
    }

    /// Whether there is a session and its beginning has been taken.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the peer has been silent for `silent_ns`, or says that this end has for it.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.silent || self.unheard
    }

    /// The smoothed round trip of records, in nanoseconds; 0 before one was measured.
    #[must_use]
    pub fn rtt_ns(&self) -> u64 {
        self.data_out.rtt_ns()
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> LinkCounters {
        let [control, data] = [self.control_out.counters, self.data_out.counters];
        LinkCounters {
            retransmitted: control.retransmitted + data.retransmitted,
            spurious: control.spurious + data.spurious,
            timeouts: control.timeouts + data.timeouts,
            records_delivered: data.delivered,
            ..self.counters
        }
    }

    /// Sets the epoch named in packets from now on, and those accepted from the peer.
    pub const fn set_epoch(&mut self, own: Epoch, peer: PeerEpoch) {
        self.epoch = own;
        self.peer_epoch = peer;
    }

    /// Names `own` in packets from now on; the peer's site has epochs of its own.
    pub const fn enter_epoch(&mut self, own: Epoch) {
        self.epoch = own;
    }

    /// Ends the session: what the peer sends in its present incarnation is refused from now on.
    /// Events follow as when a session begins, up to [`Event::Closed`].
    pub fn close(&mut self) {
        self.phase = match self.phase {
            Phase::Alone => Phase::Alone,
            Phase::Beginning { reset: false } => Phase::Ending { reset: false },
            Phase::Ending { reset } => Phase::Ending { reset },
            Phase::Open | Phase::Beginning { reset: true } => Phase::Ending { reset: true },
        };
    }

    /// Limits how many data packets the peer may have under way: as many as the caller can store.
    /// At most the window, which holds at the start.
    pub fn set_credit(&mut self, packets: u32) {
        self.data_in.set_credit(packets);
    }

    /// Queues a control message, which is copied.
    ///
    /// # Errors
    /// See [`SendError`].
    ///
    /// # Panics
    /// When the message is empty or longer than [`MESSAGE_BYTES_MAX`]: a programmer's error.
    pub fn send_message(&mut self, message: &[u8]) -> Result<(), SendError> {
        assert!(!message.is_empty() && message.len() <= MESSAGE_BYTES_MAX, "a message's length");
        if self.phase != Phase::Open {
            return Err(SendError::Down);
        }
        if self.control_out.room() == 0 {
            return Err(SendError::Full);
        }
        let at = self.store.push(message).ok_or(SendError::Full)?;
        self.control_out.push(at, 0, PacketKind::Message, message.len() as u32);
        Ok(())
    }

    /// Queues a record of `len` bytes, header and payload. The record must stay as it is until it
    /// comes back from [`Link::poll_delivered`] or with [`Event::Dropped`].
    ///
    /// # Errors
    /// See [`SendError`].
    #[inline]
    pub fn send_record(
        &mut self,
        role: RecordRole,
        buf: BufRef,
        len: u32,
        token: Token,
    ) -> Result<(), SendError> {
        debug_assert!(len as usize >= UPDATE_HEADER_BYTES);
        debug_assert!(len as usize <= UPDATE_HEADER_BYTES + PAYLOAD_BYTES_MAX);
        if self.phase != Phase::Open {
            return Err(SendError::Down);
        }
        if self.data_out.push(buf.0, token.0, PacketKind::Record(role), len) {
            Ok(())
        } else {
            Err(SendError::Full)
        }
    }

    /// Records that may still be queued.
    #[must_use]
    #[inline]
    pub fn records_room(&self) -> u32 {
        self.data_out.room()
    }

    /// Records and messages queued and not yet delivered.
    #[must_use]
    pub fn queued(&self) -> (u32, u32) {
        (self.data_out.queued(), self.control_out.queued())
    }

    /// The next record that the peer has stored.
    #[inline]
    pub fn poll_delivered(&mut self) -> Option<Delivered> {
        let (token, buf) = self.data_out.poll_done()?;
        Some(Delivered { token: Token(token), buf: BufRef(buf) })
    }

    /// The next event.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        match self.phase {
            Phase::Beginning { reset } => return Some(self.begin_session(reset)),
            Phase::Ending { reset } => return Some(self.end_session(reset)),
            Phase::Open | Phase::Alone => {}
        }
        if self.silence_told != self.is_silent() {
            self.silence_told = self.is_silent();
            return Some(if self.silence_told { Event::Silent } else { Event::Heard });
        }
        None
    }

    /// Takes apart what the former session left, one event per call, then opens the new one.
    #[cold]
    fn begin_session(&mut self, reset: bool) -> Event {
        if reset {
            self.phase = Phase::Beginning { reset: false };
            return Event::Reset;
        }
        if let Some(event) = self.take_apart() {
            return event;
        }
        self.counters.sessions += 1;
        self.phase = Phase::Open;
        // Tells the peer that its incarnation is known here, and how much it may send.
        self.greet = true;
        (self.silent, self.unheard, self.unheard_since) = (false, false, None);
        self.silence_told = false;
        Event::Up { peer: self.known }
    }

    /// As [`Self::begin_session`], but no session follows.
    #[cold]
    fn end_session(&mut self, reset: bool) -> Event {
        if reset {
            self.phase = Phase::Ending { reset: false };
            return Event::Reset;
        }
        if let Some(event) = self.take_apart() {
            return event;
        }
        self.phase = Phase::Alone;
        (self.silent, self.unheard, self.unheard_since) = (false, false, None);
        self.silence_told = false;
        Event::Closed
    }

    /// What the former session left, one event per call; then nothing is left of it.
    fn take_apart(&mut self) -> Option<Event> {
        // What was acknowledged, but not taken yet, was stored by a memory that is gone.
        if let Some((token, buf)) =
            self.data_out.poll_done().or_else(|| self.data_out.poll_dropped())
        {
            return Some(Event::Dropped { token: Token(token), buf: BufRef(buf) });
        }
        if let Some(buf) = self.data_in.poll_abandoned() {
            return Some(Event::Abandoned { buf });
        }
        while self.control_out.poll_dropped().is_some() {}
        while self.control_in.poll_abandoned().is_some() {}
        self.control_out.reset();
        self.control_in.reset();
        self.data_out.reset();
        self.data_in.reset();
        self.store.clear();
        None
    }

    /// Takes a packet in. `payload` is what follows the header, exactly as long as it says; of
    /// records it is not read.
    #[inline]
    pub fn handle_packet<'a>(
        &'a mut self,
        now: Nanos,
        info: &PacketInfo,
        payload: &'a [u8],
    ) -> Verdict<'a> {
        self.counters.packets_received += 1;
        if let Err(verdict) = self.check_session(now, info) {
            return verdict;
        }
        self.last_heard = now;
        self.silent = false;
        if info.unheard || self.unheard_since.is_some() {
            self.note_unheard(now, info.unheard);
        }
        if let Err(refusal) = self.take_acknowledgement(now, info, payload) {
            return self.refuse(refusal);
        }
        match info.kind {
            PacketKind::Bare => Verdict::Nothing,
            PacketKind::Message => self.take_message(info, payload),
            PacketKind::Record(role) => self.take_record(info, role),
        }
    }

    /// The peer says that it does not hear this end, or does again. One that was not heard for a while, as
    /// its process stood still, finds packets that say so in its queue: what counts is that they keep
    /// coming although this end speaks.
    #[cold]
    fn note_unheard(&mut self, now: Nanos, unheard: bool) {
        self.unheard_since = unheard.then(|| self.unheard_since.unwrap_or(now));
        let lasts = |since: Nanos| now.since(since) >= self.config.silent_ns / 2;
        self.unheard = self.unheard_since.is_some_and(lasts);
    }

    #[inline]
    fn check_session(&mut self, now: Nanos, info: &PacketInfo) -> Result<(), Verdict<'static>> {
        if info.src != self.peer || info.dst != self.local {
            return Err(self.refuse(Refusal::Misrouted));
        }
        let (least, most) = match self.peer_epoch {
            PeerEpoch::Exactly(epoch) => (epoch, epoch),
            PeerEpoch::AtLeast(epoch) => (epoch, Epoch(u32::MAX)),
        };
        if info.epoch < least {
            return Err(self.refuse(Refusal::EpochOld));
        }
        if info.epoch > most {
            return Err(self.refuse(Refusal::EpochNew));
        }
        if info.sender < self.known {
            return Err(self.refuse(Refusal::SenderOld));
        }
        if let PeerEpoch::AtLeast(epoch) = &mut self.peer_epoch {
            *epoch = info.epoch;
        }
        if info.sender > self.known {
            self.known = info.sender;
            self.phase = match self.phase {
                Phase::Alone => Phase::Beginning { reset: false },
                Phase::Open => Phase::Beginning { reset: true },
                beginning @ Phase::Beginning { .. } => beginning,
                Phase::Ending { reset } => Phase::Beginning { reset },
            };
            self.last_heard = now;
        } else if matches!(self.phase, Phase::Alone | Phase::Ending { .. }) {
            // The session with this incarnation was ended here.
            return Err(self.refuse(Refusal::SenderOld));
        }
        if self.phase != Phase::Open {
            return Err(Verdict::NewSession);
        }
        if info.receiver != self.me {
            self.greet = true;
            return Err(if info.receiver == Incarnation::UNKNOWN {
                Verdict::Nothing
            } else {
                self.refuse(Refusal::ReceiverOther)
            });
        }
        Ok(())
    }

    #[inline]
    fn take_acknowledgement(
        &mut self,
        now: Nanos,
        info: &PacketInfo,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let more: &[[u8; 8]] = if info.kind == PacketKind::Bare && info.payload_len > 0 {
            if Some(crc32c(payload)) != info.payload_crc {
                return Err(Refusal::Corrupt);
            }
            payload.as_chunks().0
        } else {
            &[]
        };
        let (out, back) = match info.channel {
            Channel::Control => (&mut self.control_out, &mut self.control_in),
            Channel::Data => (&mut self.data_out, &mut self.data_in),
        };
        out.handle_ack(now, info.acked, info.selective, info.credit, more)
            .map_err(|NeverSent| Refusal::Malformed)?;
        if info.ask {
            back.ack_due = true;
        }
        self.deadline = self.deadline.min(out.deadline());
        if info.channel == Channel::Control {
            match self.control_out.oldest_source() {
                Some(at) => self.store.release(at),
                None => self.store.clear(),
            }
        }
        Ok(())
    }

    fn take_message<'a>(&'a mut self, info: &PacketInfo, payload: &'a [u8]) -> Verdict<'a> {
        let number = match self.control_in.classify(info.number) {
            Class::New(number) => number,
            Class::Duplicate => return self.duplicate(Channel::Control),
            Class::Ahead => return self.refuse(Refusal::OutOfWindow),
        };
        if payload.len() != usize::from(info.payload_len) {
            return self.refuse(Refusal::Malformed);
        }
        if Some(crc32c(payload)) != info.payload_crc {
            return self.refuse(Refusal::Corrupt);
        }
        if info.fragments == 1 {
            self.counters.bytes_received += payload.len() as u64;
            self.control_in.accept(number);
            return Verdict::Message(payload);
        }
        let place = self.control_in.place(info, number);
        match place {
            Place::Full => return self.refuse(Refusal::AssembliesFull),
            Place::Wrong => return self.refuse(Refusal::Malformed),
            Place::Known { .. } | Place::First => {}
        }
        self.counters.bytes_received += payload.len() as u64;
        match self.control_in.message_fragment(info, number, place, payload) {
            Some(message) => Verdict::Message(message),
            None => Verdict::Nothing,
        }
    }

    #[inline]
    fn take_record(&mut self, info: &PacketInfo, role: RecordRole) -> Verdict<'static> {
        let number = match self.data_in.classify(info.number) {
            Class::New(number) => number,
            Class::Duplicate => return self.duplicate(Channel::Data),
            Class::Ahead => return self.refuse(Refusal::OutOfWindow),
        };
        let (place, buf, completes) = if info.fragments == 1 {
            (Place::First, None, true)
        } else {
            match self.data_in.place(info, number) {
                place @ Place::Known { assembly, completes } => {
                    (place, Some(self.data_in.buf(assembly)), completes)
                }
                Place::First => (Place::First, None, false),
                Place::Full => return self.refuse(Refusal::AssembliesFull),
                Place::Wrong => return self.refuse(Refusal::Malformed),
            }
        };
        Verdict::Store(Store {
            role,
            total_len: info.total_len,
            offset: info.payload_offset(),
            len: info.payload_len,
            buf,
            completes,
            payload_crc: info.payload_crc,
            number,
            place,
            info: *info,
        })
    }

    /// The payload is stored in `buf`: it will be acknowledged. With `store.completes` the record
    /// is the caller's; otherwise the link keeps `buf` for the fragments to come.
    ///
    /// A whole record that the caller does not want (a duplicate of an earlier session, say) is
    /// reported stored too, and freed.
    #[inline]
    pub fn record_stored(&mut self, store: &Store, buf: BufRef) {
        self.counters.bytes_received += u64::from(store.len);
        if store.info.fragments == 1 {
            self.data_in.accept(store.number);
        } else {
            self.data_in.record_fragment(&store.info, store.number, store.place, buf);
        }
    }

    /// The payload could not be stored, or does not match its checksum (`corrupt`): the packet
    /// counts as not received, and the peer will send it again. A record that earlier fragments
    /// were stored in stays with the link. When room is short, lower [`Link::set_credit`] too.
    pub fn record_refused(&mut self, store: &Store, corrupt: bool) {
        debug_assert!(store.len > 0);
        if corrupt {
            self.counters.corrupt += 1;
        } else {
            self.counters.not_stored += 1;
        }
        // The peer learns the present credit.
        self.data_in.ack_due = true;
    }

    #[cold]
    fn duplicate(&mut self, channel: Channel) -> Verdict<'static> {
        self.counters.duplicates += 1;
        match channel {
            Channel::Control => self.control_in.ack_due = true,
            Channel::Data => self.data_in.ack_due = true,
        }
        Verdict::Duplicate
    }

    #[cold]
    fn refuse(&mut self, refusal: Refusal) -> Verdict<'static> {
        let c = &mut self.counters;
        *match refusal {
            Refusal::Misrouted => &mut c.misrouted,
            Refusal::EpochOld => &mut c.epoch_old,
            Refusal::EpochNew => &mut c.epoch_new,
            Refusal::SenderOld => &mut c.sender_old,
            Refusal::ReceiverOther => &mut c.receiver_other,
            Refusal::Malformed => &mut c.malformed,
            Refusal::Corrupt => &mut c.corrupt,
            Refusal::OutOfWindow => &mut c.out_of_window,
            Refusal::AssembliesFull => &mut c.not_stored,
        } += 1;
        Verdict::Refused(refusal)
    }

    /// The earliest time at which [`Link::handle_timeout`] may have something to do. It may come
    /// early, never late.
    #[must_use]
    #[inline]
    pub const fn next_timeout(&self) -> Nanos {
        self.deadline
    }

    /// Lets timers end: retransmission, heartbeat, silence. Cheap when it is too early.
    #[inline]
    pub fn handle_timeout(&mut self, now: Nanos) {
        if now >= self.deadline {
            self.run_timers(now);
        }
    }

    #[cold]
    fn run_timers(&mut self, now: Nanos) {
        let heartbeat = self.config.heartbeat_ns;
        if self.phase == Phase::Open {
            self.control_out.handle_timeout(now, self.last_heard);
            self.data_out.handle_timeout(now, self.last_heard);
            self.silent |= now.since(self.last_heard) >= self.config.silent_ns;
        }
        if now.since(self.last_sent) >= heartbeat {
            self.greet = true;
        }
        let beat = if self.greet { now.after(heartbeat) } else { self.last_sent.after(heartbeat) };
        let silence =
            if self.silent { Nanos::NEVER } else { self.last_heard.after(self.config.silent_ns) };
        let sending = self.control_out.deadline().min(self.data_out.deadline());
        self.deadline = beat.min(sending);
        if self.phase == Phase::Open {
            self.deadline = self.deadline.min(silence);
        }
    }
}
