//! The header of every packet between two pollers: 64 bytes, then at most one message, one
//! record, or one fragment of either.
//!
//! Every packet names both ends and both ends' incarnations, and acknowledges what its sender has
//! received on the same channel. What the fields mean for delivery is `proto::link`'s business.
//! `docs/wire-format.md` draws the bytes.

use crate::proto::command::RecordRole;
use crate::proto::limits::{MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::proto::types::{Epoch, MoverId, ShardId};
use crate::wire::checksum::crc32c;
use crate::wire::update::UPDATE_HEADER_BYTES;
use core::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a packet header.
pub const PACKET_HEADER_BYTES: usize = 64;
/// First bytes of every packet: "SL".
pub const PACKET_MAGIC: u16 = u16::from_le_bytes(*b"SL");
/// The layout's version.
pub const PACKET_VERSION: u8 = 1;

/// The sender belongs to the secondary site.
const FLAG_SECONDARY: u8 = 1;
/// The sender wants an acknowledgement even if nothing new arrived.
const FLAG_ASK: u8 = 2;
/// `payload_crc` holds the checksum of the payload. Absent only from whole records: their own
/// header and payload checksums cover every byte.
const FLAG_PAYLOAD_CRC: u8 = 4;
/// The sender has heard nothing of the receiver for as long as makes that one silent.
const FLAG_UNHEARD: u8 = 8;
const FLAGS_KNOWN: u8 = FLAG_SECONDARY | FLAG_ASK | FLAG_PAYLOAD_CRC | FLAG_UNHEARD;

const KIND_BARE: u8 = 0;
const KIND_MESSAGE: u8 = 1;
const KIND_RECORD: u8 = 0x10;

/// One life of a poller's memory: whoever restarts comes back with a larger one. 48 bits on the
/// wire; 0 means "not known" there and is never anyone's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(u64);

impl Incarnation {
    /// Stands for an incarnation that the sender does not know yet.
    pub const UNKNOWN: Self = Self(0);
    /// The largest value.
    pub const MAX: Self = Self((1 << 48) - 1);

    /// The incarnation with this number; none when it is 0 or does not fit 48 bits.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        if value == 0 || value > Self::MAX.0 { None } else { Some(Self(value)) }
    }

    /// The incarnation of a process that started at `ns` nanoseconds since the Unix epoch, in
    /// steps of 65.536 µs: no process restarts faster. A machine whose clock may step back has to
    /// remember its last one and take the larger.
    #[must_use]
    pub const fn from_unix_ns(ns: u64) -> Self {
        let value = ns >> 16;
        if value == 0 { Self(1) } else { Self(value) }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{:x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which site a packet's sender belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Site {
    /// Where hosts write.
    Primary,
    /// Where sets are applied.
    Secondary,
}

/// The two independently numbered streams of packets between two pollers, so that records that
/// wait for room never hold up the messages that make room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Channel {
    /// Control messages, encoded by `wire::message`.
    Control = 0,
    /// Update records, `wire::update` headers with their payload.
    Data = 1,
}

/// What follows the header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PacketKind {
    /// Nothing that is numbered. The payload, if any, continues the bitmap of
    /// [`PacketInfo::selective`], in little-endian words of 64 bits.
    Bare,
    /// A control message or a fragment of one.
    Message,
    /// An update record or a fragment of one.
    Record(RecordRole),
}

/// The fixed layout, little-endian. Build it with [`PacketHeader::seal`], read it with
/// [`PacketHeader::check`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct PacketHeader {
    magic: U16,
    version: u8,
    flags: u8,
    header_crc: U32,
    src_mover: U16,
    dst_mover: U16,
    src_poller: u8,
    dst_poller: u8,
    kind: u8,
    channel: u8,
    epoch: U32,
    number: U32,
    /// 48 bits of the sender's incarnation, then 16 bits of credit.
    sender_credit: U64,
    /// 48 bits of the receiver's incarnation, then 16 bits of fragment index.
    receiver_fragment: U64,
    selective: U64,
    acked: U32,
    total_len: U32,
    payload_len: U16,
    fragments: U16,
    payload_crc: U32,
}

const _: () = assert!(size_of::<PacketHeader>() == PACKET_HEADER_BYTES);

/// What a packet header says, as values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketInfo {
    /// What follows.
    pub kind: PacketKind,
    /// The stream that `number`, `acked`, `selective` and `credit` belong to.
    pub channel: Channel,
    /// The sender's site.
    pub site: Site,
    /// The sender wants an acknowledgement now.
    pub ask: bool,
    /// The sender has heard nothing of the receiver for its silence limit.
    pub unheard: bool,
    /// The poller that sent it.
    pub src: ShardId,
    /// The poller that it is for.
    pub dst: ShardId,
    /// The membership epoch of the sender's site, at the time of sending (invariant 9).
    pub epoch: Epoch,
    /// The sender's incarnation.
    pub sender: Incarnation,
    /// The incarnation of the receiver that the packet is for; unknown only in bare packets.
    pub receiver: Incarnation,
    /// The packet's number, modulo 2³²; 0 in bare packets. A retransmission has the same.
    pub number: u32,
    /// The fragment's index within its message or record, from 0.
    pub fragment: u16,
    /// How many fragments the message or record has; 0 in bare packets. All but the last have the
    /// same length.
    pub fragments: u16,
    /// Bytes of the whole message or record; 0 in bare packets.
    pub total_len: u32,
    /// Every number before this one has been received, modulo 2³².
    pub acked: u32,
    /// Bit i: number `acked + 1 + i` has been received too.
    pub selective: u64,
    /// Numbers before `acked + credit` may be sent.
    pub credit: u16,
    /// Bytes that follow the header.
    pub payload_len: u16,
    /// CRC-32C of the payload, except of whole records, which carry their own.
    pub payload_crc: Option<u32>,
}

impl PacketInfo {
    /// Where in the message or record the payload belongs, in bytes. Holds for checked headers.
    #[must_use]
    #[inline]
    pub fn payload_offset(&self) -> u32 {
        if self.fragment + 1 >= self.fragments {
            self.total_len - u32::from(self.payload_len)
        } else {
            u32::from(self.fragment) * u32::from(self.payload_len)
        }
    }
}

/// Why a packet header was refused. All are counted by the receiver, none is acted upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than a header has, or than the header announces.
    #[error("{found} bytes where {want} are needed")]
    Short {
        /// Bytes found.
        found: usize,
        /// Bytes needed.
        want: usize,
    },
    /// Not a packet of setline's.
    #[error("magic {found:#06x} is not a packet's")]
    Magic {
        /// What stood there.
        found: u16,
    },
    /// A version this build does not know.
    #[error("packet version {found}, this build reads {PACKET_VERSION}")]
    Version {
        /// What stood there.
        found: u8,
    },
    /// The header's checksum does not match.
    #[error("packet header checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// The checksum in the header.
        found: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A field is outside its range although the checksum matches.
    #[error("field {field} is out of range: {found}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What stood there.
        found: u64,
    },
}

impl PacketHeader {
    /// Whether bytes that begin with a packet header are, unverified, a control message: for
    /// deciding what to look at first.
    #[inline]
    #[must_use]
    pub fn looks_like_message(bytes: &[u8]) -> bool {
        bytes.get(core::mem::offset_of!(Self, kind)) == Some(&KIND_MESSAGE)
    }

    /// The header that says `info`, with its checksum.
    #[must_use]
    #[inline]
    pub fn seal(info: &PacketInfo) -> Self {
        let mut flags = 0;
        if info.site == Site::Secondary {
            flags |= FLAG_SECONDARY;
        }
        if info.ask {
            flags |= FLAG_ASK;
        }
        if info.payload_crc.is_some() {
            flags |= FLAG_PAYLOAD_CRC;
        }
        if info.unheard {
            flags |= FLAG_UNHEARD;
        }
        let mut header = Self {
            magic: U16::new(PACKET_MAGIC),
            version: PACKET_VERSION,
            flags,
            header_crc: U32::ZERO,
            src_mover: U16::new(info.src.mover.0),
            dst_mover: U16::new(info.dst.mover.0),
            src_poller: info.src.poller,
            dst_poller: info.dst.poller,
            kind: match info.kind {
                PacketKind::Bare => KIND_BARE,
                PacketKind::Message => KIND_MESSAGE,
                PacketKind::Record(role) => KIND_RECORD | role as u8,
            },
            channel: info.channel as u8,
            epoch: U32::new(info.epoch.0),
            number: U32::new(info.number),
            sender_credit: U64::new(info.sender.0 | u64::from(info.credit) << 48),
            receiver_fragment: U64::new(info.receiver.0 | u64::from(info.fragment) << 48),
            selective: U64::new(info.selective),
            acked: U32::new(info.acked),
            total_len: U32::new(info.total_len),
            payload_len: U16::new(info.payload_len),
            fragments: U16::new(info.fragments),
            payload_crc: U32::new(info.payload_crc.unwrap_or(0)),
        };
        header.header_crc = U32::new(crc32c(header.as_bytes()));
        header
    }

    /// Reads and verifies the header at the start of `packet`, which holds at least the header
    /// and the payload that it announces (Ethernet may have padded it). The payload's checksum is
    /// not verified here: whoever copies the payload does that.
    ///
    /// # Errors
    /// Says which rule the bytes break; nothing of a refused packet may be used.
    #[inline]
    pub fn check(packet: &[u8]) -> Result<PacketInfo, PacketError> {
        Self::check_scattered(packet, packet.len())
    }

    /// The same for a packet of `packet_len` bytes of which only the first, at least the header,
    /// are at hand.
    ///
    /// # Errors
    /// As [`PacketHeader::check`].
    #[inline]
    pub fn check_scattered(first: &[u8], packet_len: usize) -> Result<PacketInfo, PacketError> {
        let Ok((header, _)) = Self::read_from_prefix(first) else {
            return Err(PacketError::Short { found: first.len(), want: PACKET_HEADER_BYTES });
        };
        if header.magic.get() != PACKET_MAGIC {
            return Err(PacketError::Magic { found: header.magic.get() });
        }
        if header.version != PACKET_VERSION {
            return Err(PacketError::Version { found: header.version });
        }
        let found = header.header_crc.get();
        let mut zeroed = header;
        zeroed.header_crc = U32::ZERO;
        let computed = crc32c(zeroed.as_bytes());
        if found != computed {
            return Err(PacketError::Checksum { found, computed });
        }
        let info = header.values()?;
        let want = PACKET_HEADER_BYTES + usize::from(info.payload_len);
        if packet_len < want {
            return Err(PacketError::Short { found: packet_len, want });
        }
        Ok(info)
    }

    #[inline]
    fn values(&self) -> Result<PacketInfo, PacketError> {
        let field = |field, found| Err(PacketError::Field { field, found });
        if self.flags & !FLAGS_KNOWN != 0 {
            return field("flags", u64::from(self.flags));
        }
        let kind = match self.kind {
            KIND_BARE => PacketKind::Bare,
            KIND_MESSAGE => PacketKind::Message,
            other => match RecordRole::from_wire(other ^ KIND_RECORD) {
                Some(role) => PacketKind::Record(role),
                None => return field("kind", u64::from(other)),
            },
        };
        let channel = match (self.channel, kind) {
            (0, PacketKind::Bare | PacketKind::Message) => Channel::Control,
            (1, PacketKind::Bare | PacketKind::Record(_)) => Channel::Data,
            _ => return field("channel", u64::from(self.channel)),
        };
        let crc_there = self.flags & FLAG_PAYLOAD_CRC != 0;
        if !crc_there && self.payload_crc.get() != 0 {
            return field("payload_crc", u64::from(self.payload_crc.get()));
        }
        let (sender, credit) = split48(self.sender_credit.get());
        let (receiver, fragment) = split48(self.receiver_fragment.get());
        if sender == 0 {
            return field("sender", 0);
        }
        let info = PacketInfo {
            kind,
            channel,
            site: if self.flags & FLAG_SECONDARY == 0 { Site::Primary } else { Site::Secondary },
            ask: self.flags & FLAG_ASK != 0,
            unheard: self.flags & FLAG_UNHEARD != 0,
            src: ShardId { mover: MoverId(self.src_mover.get()), poller: self.src_poller },
            dst: ShardId { mover: MoverId(self.dst_mover.get()), poller: self.dst_poller },
            epoch: Epoch(self.epoch.get()),
            sender: Incarnation(sender),
            receiver: Incarnation(receiver),
            number: self.number.get(),
            fragment,
            fragments: self.fragments.get(),
            total_len: self.total_len.get(),
            acked: self.acked.get(),
            selective: self.selective.get(),
            credit,
            payload_len: self.payload_len.get(),
            payload_crc: crc_there.then(|| self.payload_crc.get()),
        };
        info.check_lengths()?;
        Ok(info)
    }
}

impl PacketInfo {
    #[inline]
    fn check_lengths(&self) -> Result<(), PacketError> {
        let field = |field, found| Err(PacketError::Field { field, found });
        let len = u32::from(self.payload_len);
        let (least, most) = match self.kind {
            PacketKind::Bare => {
                if self.number != 0 || self.fragments != 0 || self.fragment != 0 {
                    return field("number", u64::from(self.number));
                }
                if self.total_len != 0 || !len.is_multiple_of(8) {
                    return field("payload_len", u64::from(len));
                }
                if (len != 0) != self.payload_crc.is_some() {
                    return field("payload_crc", u64::from(len));
                }
                return Ok(());
            }
            PacketKind::Message => (1, MESSAGE_BYTES_MAX),
            PacketKind::Record(_) => (UPDATE_HEADER_BYTES, UPDATE_HEADER_BYTES + PAYLOAD_BYTES_MAX),
        };
        if self.receiver == Incarnation::UNKNOWN {
            return field("receiver", 0);
        }
        if (self.total_len as usize) < least || self.total_len as usize > most {
            return field("total_len", u64::from(self.total_len));
        }
        if self.fragment >= self.fragments {
            return field("fragment", u64::from(self.fragment));
        }
        let whole = self.fragments == 1;
        let fits = if whole {
            len == self.total_len
        } else if self.fragment + 1 == self.fragments {
            len > 0 && len < self.total_len
        } else {
            len > 0 && u64::from(len) * (u64::from(self.fragment) + 1) < u64::from(self.total_len)
        };
        if !fits {
            return field("payload_len", u64::from(len));
        }
        if self.payload_crc.is_none() && !(whole && matches!(self.kind, PacketKind::Record(_))) {
            return field("payload_crc", 0);
        }
        Ok(())
    }
}

const fn split48(word: u64) -> (u64, u16) {
    (word & Incarnation::MAX.0, (word >> 48) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> PacketInfo {
        PacketInfo {
            kind: PacketKind::Record(RecordRole::Transfer),
            channel: Channel::Data,
            site: Site::Secondary,
            ask: true,
            unheard: true,
            src: ShardId::new(0x0102, 3),
            dst: ShardId::new(0x0405, 6),
            epoch: Epoch(7),
            sender: Incarnation(0x1112_1314_1516),
            receiver: Incarnation(0x2122_2324_2526),
            number: 0x3132_3334,
            fragment: 1,
            fragments: 3,
            total_len: 4224,
            acked: 0x4142_4344,
            selective: 0x5152_5354_5556_5758,
            credit: 0x6162,
            payload_len: 1408,
            payload_crc: Some(0x7172_7374),
        }
    }

    fn packet(info: &PacketInfo) -> Vec<u8> {
        let mut bytes = PacketHeader::seal(info).as_bytes().to_vec();
        bytes.resize(PACKET_HEADER_BYTES + usize::from(info.payload_len), 0);
        bytes
    }

    #[test]
    fn golden_bytes_of_a_packet_header() {
        let header = PacketHeader::seal(&sample());
        let bytes = header.as_bytes();
        assert_eq!(&bytes[..4], b"SL\x01\x0f");
        let mut zeroed = bytes.to_vec();
        zeroed[4..8].fill(0);
        assert_eq!(bytes[4..8], crc32c(&zeroed).to_le_bytes());
        assert_eq!(&bytes[8..16], b"\x02\x01\x05\x04\x03\x06\x12\x01");
        assert_eq!(&bytes[16..24], b"\x07\0\0\0\x34\x33\x32\x31");
        assert_eq!(&bytes[24..32], b"\x16\x15\x14\x13\x12\x11\x62\x61");
        assert_eq!(&bytes[32..40], b"\x26\x25\x24\x23\x22\x21\x01\x00");
        assert_eq!(&bytes[40..48], b"\x58\x57\x56\x55\x54\x53\x52\x51");
        assert_eq!(&bytes[48..56], b"\x44\x43\x42\x41\x80\x10\0\0");
        assert_eq!(&bytes[56..64], b"\x80\x05\x03\0\x74\x73\x72\x71");
    }

    #[test]
    fn a_sealed_header_reads_back_as_it_was() {
        assert_eq!(PacketHeader::check(&packet(&sample())), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_refused() {
        let good = packet(&sample());
        for bit in 0..PACKET_HEADER_BYTES * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(PacketHeader::check(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_refused_and_padding_is_not() {
        let mut bytes = packet(&sample());
        for len in 0..bytes.len() {
            assert!(matches!(PacketHeader::check(&bytes[..len]), Err(PacketError::Short { .. })));
        }
        bytes.extend_from_slice(&[0; 32]);
        assert!(PacketHeader::check(&bytes).is_ok());
    }

    #[test]
    fn fragments_that_do_not_fit_their_whole_are_refused() {
        let cases = [
            PacketInfo { fragment: 3, ..sample() },
            PacketInfo { fragments: 0, fragment: 0, ..sample() },
            PacketInfo { fragments: 1, fragment: 0, ..sample() },
            PacketInfo { payload_len: 0, ..sample() },
            PacketInfo { payload_len: 2112, ..sample() },
            PacketInfo { fragment: 2, payload_len: 4224, ..sample() },
            PacketInfo { payload_crc: None, ..sample() },
            PacketInfo { total_len: 64, ..sample() },
            PacketInfo { total_len: u32::MAX, ..sample() },
            PacketInfo { receiver: Incarnation::UNKNOWN, ..sample() },
            PacketInfo { sender: Incarnation::UNKNOWN, ..sample() },
            PacketInfo { channel: Channel::Control, ..sample() },
            PacketInfo { kind: PacketKind::Message, ..sample() },
            PacketInfo { kind: PacketKind::Bare, ..sample() },
        ];
        for info in cases {
            assert!(
                matches!(PacketHeader::check(&packet(&info)), Err(PacketError::Field { .. })),
                "{info:?}"
            );
        }
    }

    #[test]
    fn offsets_of_fragments_add_up() {
        let at = |fragment, payload_len| {
            PacketInfo { fragment, payload_len, total_len: 3000, ..sample() }.payload_offset()
        };
        assert_eq!([at(0, 1408), at(1, 1408), at(2, 184)], [0, 1408, 2816]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_never_pass(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(PacketHeader::check(&bytes).is_err());
        }

        #[test]
        fn random_fields_under_a_right_checksum_stay_within_the_whole(
            bytes in proptest::array::uniform32(any::<u16>()),
            bare in any::<bool>(),
        ) {
            let mut header = PacketHeader::read_from_bytes(bytes.as_bytes()).unwrap();
            header.magic = U16::new(PACKET_MAGIC);
            header.version = PACKET_VERSION;
            header.flags &= FLAGS_KNOWN;
            header.kind = if bare { KIND_BARE } else { KIND_RECORD | (1 + header.kind % 3) };
            header.channel = 1;
            header.total_len = U32::new(header.total_len.get() % 100_000);
            header.header_crc = U32::ZERO;
            header.header_crc = U32::new(crc32c(header.as_bytes()));
            let mut packet = header.as_bytes().to_vec();
            packet.resize(PACKET_HEADER_BYTES + 65_536, 0);
            if let Ok(info) = PacketHeader::check(&packet)
                && info.kind != PacketKind::Bare
            {
                prop_assert!(
                    info.payload_offset() + u32::from(info.payload_len) <= info.total_len
                );
            }
        }
    }
}
