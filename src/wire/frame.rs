//! What goes around a packet: Ethernet (optionally tagged, IEEE 802.1Q), IPv4 (RFC 791), UDP
//! (RFC 768), and the ARP (RFC 826) that finds Ethernet addresses.
//!
//! A frame is parsed from its first bytes only; what of it belongs to this poller is decided here,
//! and everything else is named so that it can be counted. IPv4 options and fragments are not
//! used between movers and are refused. The UDP checksum is sent as 0 (RFC 768: none) and not
//! verified: packets and records have stronger ones.

use core::fmt;
use core::net::Ipv4Addr;

/// Bytes of an Ethernet header with a tag, an IPv4 header and a UDP header: the most that goes in
/// front of a packet.
pub const FRAME_HEADER_BYTES_MAX: usize = ETHERNET_BYTES + TAG_BYTES + IPV4_BYTES + UDP_BYTES;
/// Bytes of an IPv4 and a UDP header: what the MTU holds beside the packet.
pub const IP_UDP_BYTES: usize = IPV4_BYTES + UDP_BYTES;
/// Bytes of an ARP frame with a tag.
pub const ARP_FRAME_BYTES_MAX: usize = ETHERNET_BYTES + TAG_BYTES + ARP_BYTES;

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const ARP_BYTES: usize = 28;

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_TAG: [u8; 2] = [0x81, 0x00];
const PROTOCOL_UDP: u8 = 17;
const HOPS_MAX: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names one station.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One queue's own place in the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Station {
    /// The port's Ethernet address.
    pub mac: Mac,
    /// The port's IPv4 address.
    pub ip: Ipv4Addr,
    /// The 802.1Q tag of all frames, if they have one.
    pub vlan: Option<u16>,
    /// Poller i of every mover listens at UDP port `udp_port + i`.
    pub udp_port: u16,
}

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// A datagram for one of this mover's pollers.
    Datagram {
        /// Who sent it.
        from: Ipv4Addr,
        /// UDP destination port less the station's.
        poller: u8,
        /// Where the UDP payload begins in the frame.
        offset: usize,
        /// Its length.
        len: usize,
    },
    /// An ARP request or answer for IPv4 over Ethernet.
    Arp(Arp),
    /// For somebody else, or of a kind that movers have no use for.
    Foreign,
}

/// An ARP packet, IPv4 over Ethernet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arp {
    /// It asks; else it answers.
    pub asks: bool,
    /// Who sent it.
    pub sender_mac: Mac,
    /// Its IPv4 address.
    pub sender_ip: Ipv4Addr,
    /// Whose Ethernet address is asked for, or who is answered.
    pub target_ip: Ipv4Addr,
}

/// Why a frame for this station was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// It ends before its headers do, or before its payload does.
    #[error("the frame is cut short")]
    Truncated,
    /// A header contradicts itself.
    #[error("header field {field} is wrong")]
    Malformed {
        /// The field.
        field: &'static str,
    },
}

/// What follows the headers of a frame that a sender of this project made; unverified, for
/// deciding which frames to look at first.
#[inline]
#[must_use]
pub fn peek(bytes: &[u8]) -> &[u8] {
    let tagged = bytes.get(12..14) == Some(&TYPE_TAG);
    bytes.get(FRAME_HEADER_BYTES_MAX - if tagged { 0 } else { TAG_BYTES }..).unwrap_or_default()
}

/// Reads the headers of a frame of `frame_len` bytes, of which `bytes` are the first: the whole,
/// or at least all headers.
///
/// # Errors
/// When the frame is for this station and breaks a rule.
#[inline]
pub fn parse(bytes: &[u8], frame_len: usize, me: &Station) -> Result<Frame, FrameError> {
    let Some((ethernet, mut rest)) = bytes.split_first_chunk::<ETHERNET_BYTES>() else {
        return Err(FrameError::Truncated);
    };
    let mut offset = ETHERNET_BYTES;
    let mut kind = [ethernet[12], ethernet[13]];
    if let Some(vlan) = me.vlan {
        let Some((tag, inner)) = rest.split_first_chunk::<TAG_BYTES>() else {
            return Err(FrameError::Truncated);
        };
        if kind != TYPE_TAG || u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff != vlan {
            return Ok(Frame::Foreign);
        }
        kind = [tag[2], tag[3]];
        rest = inner;
        offset += TAG_BYTES;
    }
    let to_me = ethernet[..6] == me.mac.0;
    match kind {
        TYPE_IPV4 if to_me => parse_ipv4(rest, offset, frame_len, me),
        TYPE_ARP if to_me || ethernet[..6] == Mac::BROADCAST.0 => parse_arp(rest),
        _ => Ok(Frame::Foreign),
    }
}

#[inline]
fn parse_ipv4(
    bytes: &[u8],
    offset: usize,
    frame_len: usize,
    me: &Station,
) -> Result<Frame, FrameError> {
    let Some((ip, rest)) = bytes.split_first_chunk::<IPV4_BYTES>() else {
        return Err(FrameError::Truncated);
    };
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    if ip[16..20] != me.ip.octets() || ip[9] != PROTOCOL_UDP {
        return Ok(Frame::Foreign);
    }
    if ip[0] != 0x45 {
        return Err(FrameError::Malformed { field: "version and header length" });
    }
    if fold(sum_of(ip)) != u16::MAX {
        return Err(FrameError::Malformed { field: "header checksum" });
    }
    if word(6) & 0x3fff != 0 {
        return Err(FrameError::Malformed { field: "fragment offset" });
    }
    let total = usize::from(word(2));
    if total < IPV4_BYTES + UDP_BYTES {
        return Err(FrameError::Malformed { field: "total length" });
    }
    if offset + total > frame_len {
        return Err(FrameError::Truncated);
    }
    let Some((udp, _)) = rest.split_first_chunk::<UDP_BYTES>() else {
        return Err(FrameError::Truncated);
    };
    let poller = u16::from_be_bytes([udp[2], udp[3]]).wrapping_sub(me.udp_port);
    let Ok(poller) = u8::try_from(poller) else {
        return Ok(Frame::Foreign);
    };
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    if len < UDP_BYTES || len > total - IPV4_BYTES {
        return Err(FrameError::Malformed { field: "UDP length" });
    }
    let from = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    Ok(Frame::Datagram {
        from,
        poller,
        offset: offset + IPV4_BYTES + UDP_BYTES,
        len: len - UDP_BYTES,
    })
}

fn parse_arp(bytes: &[u8]) -> Result<Frame, FrameError> {
    let Some((arp, _)) = bytes.split_first_chunk::<ARP_BYTES>() else {
        return Err(FrameError::Truncated);
    };
    // Ethernet, IPv4, their address lengths.
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return Ok(Frame::Foreign);
    }
    let asks = match arp[6..8] {
        [0, 1] => true,
        [0, 2] => false,
        _ => return Ok(Frame::Foreign),
    };
    let [mut sender_mac, mut ip, mut target] = [[0; 6], [0; 6], [0; 6]];
    sender_mac.copy_from_slice(&arp[8..14]);
    ip[..4].copy_from_slice(&arp[14..18]);
    target[..4].copy_from_slice(&arp[24..28]);
    let sender_mac = Mac(sender_mac);
    if !sender_mac.is_unicast() {
        return Err(FrameError::Malformed { field: "ARP sender" });
    }
    let address = |b: [u8; 6]| Ipv4Addr::new(b[0], b[1], b[2], b[3]);
    Ok(Frame::Arp(Arp { asks, sender_mac, sender_ip: address(ip), target_ip: address(target) }))
}

/// Writes the ARP frame that asks for `target` (`to` none) or answers it. Its length.
pub fn write_arp(
    out: &mut [u8; ARP_FRAME_BYTES_MAX],
    me: &Station,
    target: Ipv4Addr,
    to: Option<Mac>,
) -> usize {
    let start = write_ethernet(out, me, to.unwrap_or(Mac::BROADCAST), TYPE_ARP);
    let arp = &mut out[start..start + ARP_BYTES];
    arp[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    arp[6..8].copy_from_slice(&[0, if to.is_some() { 2 } else { 1 }]);
    arp[8..14].copy_from_slice(&me.mac.0);
    arp[14..18].copy_from_slice(&me.ip.octets());
    arp[18..24].copy_from_slice(&to.unwrap_or_default().0);
    arp[24..28].copy_from_slice(&target.octets());
    start + ARP_BYTES
}

fn write_ethernet(out: &mut [u8], me: &Station, to: Mac, kind: [u8; 2]) -> usize {
    out[..6].copy_from_slice(&to.0);
    out[6..12].copy_from_slice(&me.mac.0);
    let Some(vlan) = me.vlan else {
        out[12..14].copy_from_slice(&kind);
        return ETHERNET_BYTES;
    };
    out[12..14].copy_from_slice(&TYPE_TAG);
    out[14..16].copy_from_slice(&vlan.to_be_bytes());
    out[16..18].copy_from_slice(&kind);
    ETHERNET_BYTES + TAG_BYTES
}

/// The headers of all frames to one poller of one peer; only lengths and the checksum vary.
#[derive(Clone, Debug)]
pub struct FrameHeader {
    bytes: [u8; FRAME_HEADER_BYTES_MAX],
    len: usize,
    /// Sum of the IPv4 header with a length of 0.
    sum: u32,
}

impl FrameHeader {
    /// Headers of frames from `me` to poller `poller` at `ip`, by way of the station `to`.
    /// `poller_here` becomes visible in the source port: switches and NICs spread by it.
    #[must_use]
    pub fn new(me: &Station, to: Mac, ip: Ipv4Addr, poller: u8, poller_here: u8) -> Self {
        let mut bytes = [0; FRAME_HEADER_BYTES_MAX];
        let start = write_ethernet(&mut bytes, me, to, TYPE_IPV4);
        let header = &mut bytes[start..start + IPV4_BYTES];
        header[0] = 0x45;
        header[6] = DONT_FRAGMENT;
        header[8] = HOPS_MAX;
        header[9] = PROTOCOL_UDP;
        header[12..16].copy_from_slice(&me.ip.octets());
        header[16..20].copy_from_slice(&ip.octets());
        let sum = sum_of(header);
        let udp = start + IPV4_BYTES;
        let port = |poller: u8| me.udp_port.wrapping_add(u16::from(poller)).to_be_bytes();
        bytes[udp..udp + 2].copy_from_slice(&port(poller_here));
        bytes[udp + 2..udp + 4].copy_from_slice(&port(poller));
        Self { bytes, len: udp + UDP_BYTES, sum }
    }

    /// Changes the next station.
    pub fn set_mac(&mut self, to: Mac) {
        self.bytes[..6].copy_from_slice(&to.0);
    }

    /// Bytes of the headers.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never: there are always headers.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the headers in front of `payload_len` bytes of UDP payload to the start of `out`,
    /// which has [`FRAME_HEADER_BYTES_MAX`] bytes at least.
    #[inline]
    pub fn write(&self, out: &mut [u8], payload_len: u16) {
        let out = &mut out[..FRAME_HEADER_BYTES_MAX];
        out.copy_from_slice(&self.bytes);
        let udp = self.len - UDP_BYTES;
        let ip = udp - IPV4_BYTES;
        let total = payload_len + (IPV4_BYTES + UDP_BYTES) as u16;
        out[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
        let checksum = !fold(self.sum + u32::from(total));
        out[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
        let length = payload_len + UDP_BYTES as u16;
        out[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    }
}

/// The sum of 16-bit words of the internet checksum (RFC 1071), not folded.
#[inline]
fn sum_of(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

#[inline]
const fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Station = Station {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ip: Ipv4Addr::new(10, 1, 0, 1),
        vlan: None,
        udp_port: 7800,
    };
    const B: Station =
        Station { mac: Mac([2, 0, 0, 0, 0, 2]), ip: Ipv4Addr::new(10, 1, 0, 2), ..A };

    fn datagram(from: &Station, to: &Station, payload: &[u8]) -> Vec<u8> {
        let header = FrameHeader::new(from, to.mac, to.ip, 3, 1);
        let mut frame = vec![0; FRAME_HEADER_BYTES_MAX];
        header.write(&mut frame, payload.len() as u16);
        frame.truncate(header.len());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn golden_bytes_of_a_frame_header() {
        let frame = datagram(&A, &B, b"payload");
        assert_eq!(&frame[..14], b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\x00");
        assert_eq!(&frame[14..24], b"\x45\0\0\x23\0\0\x40\0\x40\x11");
        assert_eq!(&frame[26..34], &[10, 1, 0, 1, 10, 1, 0, 2]);
        assert_eq!(&frame[34..42], b"\x1e\x79\x1e\x7b\0\x0f\0\0");
        // As computed by another implementation of RFC 1071 for this header.
        assert_eq!(&frame[24..26], &0x26c6_u16.to_be_bytes());
    }

    #[test]
    fn what_is_written_is_read_with_and_without_a_tag() {
        for vlan in [None, Some(1234)] {
            let (a, b) = (Station { vlan, ..A }, Station { vlan, ..B });
            let frame = datagram(&a, &b, b"payload");
            let offset = frame.len() - 7;
            let want = Frame::Datagram { from: a.ip, poller: 3, offset, len: 7 };
            assert_eq!(parse(&frame, frame.len(), &b), Ok(want));
            assert_eq!(parse(&frame, frame.len(), &a), Ok(Frame::Foreign));
        }
    }

    #[test]
    fn padding_of_short_frames_is_not_payload() {
        let mut frame = datagram(&A, &B, b"x");
        frame.resize(60, 0);
        assert!(matches!(parse(&frame, 60, &B), Ok(Frame::Datagram { len: 1, .. })));
    }

    #[test]
    fn frames_for_other_addresses_ports_and_tags_are_foreign() {
        let good = datagram(&A, &B, b"x");
        let read = |me: Station| parse(&good, good.len(), &me);
        assert_eq!(read(Station { ip: Ipv4Addr::new(10, 1, 0, 9), ..B }), Ok(Frame::Foreign));
        assert_eq!(read(Station { mac: Mac([2, 0, 0, 0, 0, 9]), ..B }), Ok(Frame::Foreign));
        assert_eq!(read(Station { udp_port: 9000, ..B }), Ok(Frame::Foreign));
        assert_eq!(read(Station { vlan: Some(5), ..B }), Ok(Frame::Foreign));
    }

    #[test]
    fn every_flipped_bit_of_the_ip_header_is_noticed() {
        let good = datagram(&A, &B, b"payload");
        for bit in 14 * 8..34 * 8 {
            let mut frame = good.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            let read = parse(&frame, frame.len(), &B);
            assert!(!matches!(read, Ok(Frame::Datagram { .. })), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let frame = datagram(&A, &B, b"payload");
        for len in 0..frame.len() {
            assert_eq!(parse(&frame[..len], len, &B), Err(FrameError::Truncated), "{len} bytes");
        }
    }

    #[test]
    fn arp_is_asked_and_answered() {
        for vlan in [None, Some(7)] {
            let (a, b) = (Station { vlan, ..A }, Station { vlan, ..B });
            let mut bytes = [0; ARP_FRAME_BYTES_MAX];
            let len = write_arp(&mut bytes, &a, b.ip, None);
            let want = Arp { asks: true, sender_mac: a.mac, sender_ip: a.ip, target_ip: b.ip };
            assert_eq!(parse(&bytes[..len], len, &b), Ok(Frame::Arp(want)));
            let len = write_arp(&mut bytes, &b, a.ip, Some(a.mac));
            let want = Arp { asks: false, sender_mac: b.mac, sender_ip: b.ip, target_ip: a.ip };
            assert_eq!(parse(&bytes[..len], len, &a), Ok(Frame::Arp(want)));
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            more in 0_usize..100,
        ) {
            let _ = parse(&bytes, bytes.len() + more, &B);
        }

        #[test]
        fn a_datagram_never_reaches_beyond_its_frame(
            flips in proptest::collection::vec((14_usize..42, any::<u8>()), 0..4),
        ) {
            let mut frame = datagram(&A, &B, &[7; 100]);
            for (at, value) in flips {
                frame[at] = value;
            }
            // With a right checksum, whatever the fields say.
            frame[24..26].fill(0);
            let sum = !fold(sum_of(&frame[14..34]));
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            if let Ok(Frame::Datagram { offset, len, .. }) = parse(&frame, frame.len(), &B) {
                prop_assert!(offset + len <= frame.len());
            }
        }
    }
}
