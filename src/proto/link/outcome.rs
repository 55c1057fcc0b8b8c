//! What a link says to its caller: events, verdicts about packets, reasons.

use super::receive::Place;
#[cfg(doc)]
use super::{Link, LinkConfig};
use crate::proto::command::{RecordRole, Token};
use crate::proto::types::{BufRef, Epoch};
use crate::wire::packet::{Incarnation, PacketInfo};

/// Why something was not taken for sending. Nothing of it has been kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// The queue is full; try again when something has been delivered.
    #[error("the link's queue is full")]
    Full,
    /// There is no session, or its beginning has not been taken from [`Link::poll_event`] yet.
    /// [`Event::Up`] will ask for whatever the peer needs.
    #[error("the peer is not reachable")]
    Down,
}

/// What a link reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The peer lost its memory: whatever was queued for it, and not yet delivered, is dropped.
    Reset,
    /// After `Reset`: this record was dropped; the link refers to it no more. Its token comes out
    /// of [`Link::poll_delivered`] no more.
    Dropped {
        /// The token it was sent with.
        token: Token,
        /// The record.
        buf: BufRef,
    },
    /// After `Reset`: this record of the peer's will not be completed; the link refers to it no
    /// more.
    Abandoned {
        /// The record given to [`Link::record_stored`].
        buf: BufRef,
    },
    /// A session began: first contact, or the peer came back with new memory. Sending is possible
    /// from now on.
    Up {
        /// The peer's incarnation.
        peer: Incarnation,
    },
    /// The session was ended by [`Link::close`], and everything that belonged to it has been given
    /// back.
    ///
    /// [`Link::close`]: super::Link::close
    Closed,
    /// Nothing came from the peer for `silent_ns`.
    Silent,
    /// The peer is heard again.
    Heard,
}

/// Which epochs a peer may be in (invariant 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerEpoch {
    /// This one only: the peer is of the same site.
    Exactly(Epoch),
    /// This one or a later: the peer is of the other site. The latest seen becomes the least.
    AtLeast(Epoch),
}

/// Why a packet was refused; it has been counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is between other pollers.
    Misrouted,
    /// It is of a former epoch.
    EpochOld,
    /// It is of an epoch that this end has not entered.
    EpochNew,
    /// It is of a former incarnation of the peer.
    SenderOld,
    /// It is for another incarnation of this end.
    ReceiverOther,
    /// It contradicts itself or the session.
    Malformed,
    /// Its payload does not match its checksum.
    Corrupt,
    /// Its number lies ahead of the window.
    OutOfWindow,
    /// Too many fragmented messages or records are incomplete.
    AssembliesFull,
}

/// What to do about a received packet.
#[derive(PartialEq, Eq, Debug)]
pub enum Verdict<'a> {
    /// Nothing; it carried acknowledgements, or a part of a message.
    Nothing,
    /// A control message, once.
    Message(&'a [u8]),
    /// Store the payload, then call [`Link::record_stored`] or [`Link::record_refused`], before
    /// any other packet of this link.
    Store(Store),
    /// It was received before. It will be acknowledged again.
    Duplicate,
    /// A session begins. Nothing of the packet was used: take all events, then hand it in again.
    NewSession,
    /// It was refused.
    Refused(Refusal),
}

/// A record, or a fragment of one, that the caller has to store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "the packet counts as received only after record_stored"]
pub struct Store {
    /// Why the record travels.
    pub role: RecordRole,
    /// Bytes of the whole record, header and payload.
    pub total_len: u32,
    /// Where in the record the payload belongs.
    pub offset: u32,
    /// Bytes of the payload.
    pub len: u16,
    /// The record that earlier fragments were stored in. None: reserve `total_len` bytes.
    pub buf: Option<BufRef>,
    /// With this payload the record is whole.
    pub completes: bool,
    /// CRC-32C that the payload must have. None for whole records: verify their own checksums.
    pub payload_crc: Option<u32>,
    pub(super) number: u64,
    pub(super) place: Place,
    pub(super) info: PacketInfo,
}

/// A record that the peer has stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered {
    /// The token it was sent with.
    pub token: Token,
    /// The record; the link refers to it no more.
    pub buf: BufRef,
}
