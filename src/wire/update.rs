//! The header of an update record: the same 128 bytes in the arena, on the wire and in the journal.
//!
//! The payload follows it on the wire. `docs/wire-format.md` draws the bytes.

use crate::proto::types::{
    Epoch, Extent, ForwardId, GroupId, MapVersion, MoverId, Seq, SetId, ShardId, UpdateKind,
    VolumeId,
};
use crate::wire::checksum::crc32c;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an update header.
pub const UPDATE_HEADER_BYTES: usize = 128;
/// First bytes of every update header: "SLUP".
pub const UPDATE_MAGIC: u32 = u32::from_le_bytes(*b"SLUP");
/// The layout's version.
pub const UPDATE_VERSION: u8 = 2;
/// The oldest version that is read: what came since is zero there.
pub const UPDATE_VERSION_MIN: u8 = 1;
/// Flag: the host asked for force unit access.
pub const FLAG_FUA: u16 = 1;
/// Flag: its mirror copies are descriptions, headers alone (G12).
pub const FLAG_DESCRIBED: u16 = 2;

/// The fixed layout, little-endian. Build it with [`UpdateHeader::seal`], read it with
/// [`UpdateHeader::check`].
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct UpdateHeader {
    magic: U32,
    version: u8,
    kind: u8,
    flags: U16,
    header_crc: U32,
    payload_crc: U32,
    volume: U32,
    group: U16,
    origin: U16,
    owner_mover: U16,
    owner_poller: u8,
    reserved0: u8,
    epoch: U32,
    map_version: U32,
    payload_len: U32,
    set: U64,
    seq: U64,
    lba: U64,
    blocks: U32,
    block_bytes: U32,
    list_seq: U64,
    time_ns: U64,
    time_error_ns: U32,
    reserved1: U32,
    forward: U64,
    not_before: U64,
    reserved2: [u8; 16],
}

const _: () = assert!(size_of::<UpdateHeader>() == UPDATE_HEADER_BYTES);

/// What an update header says, as values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpdateInfo {
    /// What the update does.
    pub kind: UpdateKind,
    /// The host asked that the data be on the medium at completion.
    pub fua: bool,
    /// CRC-32C of the payload; 0 when there is none.
    pub payload_crc: u32,
    /// Payload bytes; 0 for kinds without payload.
    pub payload_len: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's group.
    pub group: GroupId,
    /// The mover that took the update from its source (G3).
    pub origin: MoverId,
    /// The shard that numbered it.
    pub owner: ShardId,
    /// The epoch in which it was numbered (invariant 9).
    pub epoch: Epoch,
    /// The map version in which it was numbered (G4).
    pub map_version: MapVersion,
    /// Its set.
    pub set: SetId,
    /// Its number within the volume.
    pub seq: Seq,
    /// Its range.
    pub extent: Extent,
    /// The volume's block size in bytes.
    pub block_bytes: u32,
    /// Its number in the mover's one list over all volumes; 0 when the group numbers per volume (G7).
    pub list_seq: u64,
    /// Time stamp, nanoseconds since the Unix epoch; 0 when none (G8).
    pub time_ns: u64,
    /// Bound on the time stamp's error in nanoseconds.
    pub time_error_ns: u32,
    /// What the mover that took it calls it, when that is not the responsible one (G3).
    pub forward: ForwardId,
    /// Its mirror copies are descriptions (G12): the payload that the secondary gets may be read back from
    /// the base. The set's digest then leaves the payload's checksum out.
    pub described: bool,
    /// The payload was read back from the base, and may be that of later updates, none of them in a set after
    /// this one: the update's own set is consistent only together with all sets up to here. 0 when
    /// the payload is the update's own.
    pub not_before: SetId,
}

/// Why an update header was refused. All are counted by the receiver, none is acted upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpdateHeaderError {
    /// Fewer bytes than a header has.
    #[error("{found} bytes, an update header has {UPDATE_HEADER_BYTES}")]
    Short {
        /// Bytes found.
        found: usize,
    },
    /// Not an update header.
    #[error("magic {found:#010x} is not an update header's")]
    Magic {
        /// What stood there.
        found: u32,
    },
    /// A version this build does not know.
    #[error(
        "update header version {found}, this build reads {UPDATE_VERSION_MIN} to {UPDATE_VERSION}"
    )]
    Version {
        /// What stood there.
        found: u8,
    },
    /// The header's checksum does not match.
    #[error("header checksum {found:#010x}, computed {computed:#010x}")]
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

impl UpdateHeader {
    /// The header that says `info`, with its checksum.
    #[must_use]
    #[inline]
    pub fn seal(info: &UpdateInfo) -> Self {
        let mut header = Self {
            magic: U32::new(UPDATE_MAGIC),
            version: UPDATE_VERSION,
            kind: info.kind as u8,
            flags: U16::new(
                if info.fua { FLAG_FUA } else { 0 }
                    | if info.described { FLAG_DESCRIBED } else { 0 },
            ),
            header_crc: U32::ZERO,
            payload_crc: U32::new(info.payload_crc),
            volume: U32::new(info.volume.0),
            group: U16::new(info.group.0),
            origin: U16::new(info.origin.0),
            owner_mover: U16::new(info.owner.mover.0),
            owner_poller: info.owner.poller,
            reserved0: 0,
            epoch: U32::new(info.epoch.0),
            map_version: U32::new(info.map_version.0),
            payload_len: U32::new(info.payload_len),
            set: U64::new(info.set.0),
            seq: U64::new(info.seq.0),
            lba: U64::new(info.extent.lba),
            blocks: U32::new(info.extent.blocks),
            block_bytes: U32::new(info.block_bytes),
            list_seq: U64::new(info.list_seq),
            time_ns: U64::new(info.time_ns),
            time_error_ns: U32::new(info.time_error_ns),
            reserved1: U32::ZERO,
            forward: U64::new(info.forward.0),
            not_before: U64::new(info.not_before.0),
            reserved2: [0; 16],
        };
        header.header_crc = U32::new(crc32c(header.as_bytes()));
        header
    }

    /// The payload bytes that a header says it has. Not verified: for records of one's own.
    #[must_use]
    #[inline]
    pub fn payload_len(bytes: &[u8; UPDATE_HEADER_BYTES]) -> u32 {
        Self::ref_from_bytes(bytes).map_or(0, |header| header.payload_len.get())
    }

    /// Reads and verifies a header.
    ///
    /// # Errors
    /// Says which rule the bytes break; nothing of a refused header may be used.
    #[inline]
    pub fn check(bytes: &[u8]) -> Result<UpdateInfo, UpdateHeaderError> {
        let Ok((header, _)) = Self::read_from_prefix(bytes) else {
            return Err(UpdateHeaderError::Short { found: bytes.len() });
        };
        if header.magic.get() != UPDATE_MAGIC {
            return Err(UpdateHeaderError::Magic { found: header.magic.get() });
        }
        if !(UPDATE_VERSION_MIN..=UPDATE_VERSION).contains(&header.version) {
            return Err(UpdateHeaderError::Version { found: header.version });
        }
        let found = header.header_crc.get();
        let mut zeroed = header;
        zeroed.header_crc = U32::ZERO;
        let computed = crc32c(zeroed.as_bytes());
        if found != computed {
            return Err(UpdateHeaderError::Checksum { found, computed });
        }
        let field = |field, found| Err(UpdateHeaderError::Field { field, found });
        let Some(kind) = UpdateKind::from_wire(header.kind) else {
            return field("kind", u64::from(header.kind));
        };
        let extent = Extent { lba: header.lba.get(), blocks: header.blocks.get() };
        if extent.blocks == 0 || extent.lba.checked_add(u64::from(extent.blocks)).is_none() {
            return field("blocks", u64::from(extent.blocks));
        }
        let block_bytes = header.block_bytes.get();
        let payload_len = header.payload_len.get();
        let want = match kind {
            UpdateKind::Write => u64::from(block_bytes) * u64::from(extent.blocks),
            UpdateKind::WriteZeroes | UpdateKind::Deallocate => 0,
        };
        if u64::from(payload_len) != want {
            return field("payload_len", u64::from(payload_len));
        }
        Ok(UpdateInfo {
            kind,
            fua: header.flags.get() & FLAG_FUA != 0,
            payload_crc: header.payload_crc.get(),
            payload_len,
            volume: VolumeId(header.volume.get()),
            group: GroupId(header.group.get()),
            origin: MoverId(header.origin.get()),
            owner: ShardId {
                mover: MoverId(header.owner_mover.get()),
                poller: header.owner_poller,
            },
            epoch: Epoch(header.epoch.get()),
            map_version: MapVersion(header.map_version.get()),
            set: SetId(header.set.get()),
            seq: Seq(header.seq.get()),
            extent,
            block_bytes,
            list_seq: header.list_seq.get(),
            time_ns: header.time_ns.get(),
            time_error_ns: header.time_error_ns.get(),
            forward: ForwardId(header.forward.get()),
            described: header.flags.get() & FLAG_DESCRIBED != 0,
            not_before: SetId(header.not_before.get()),
        })
    }
}

/// The contribution of one update to its set's digest: a sum of these over a volume's updates
/// of a set, wrapping, is the volume's digest in the manifest (invariant 6). A sum, so that it
/// does not depend on the order of arrival and a void can be subtracted. Of an update whose payload may be
/// read back the payload's checksum is no part of it (G12).
#[must_use]
#[inline]
pub const fn digest_of(info: &UpdateInfo) -> u64 {
    let payload_crc = if info.described { 0 } else { info.payload_crc };
    let mut x = info.seq.0 ^ ((payload_crc as u64) << 32) ^ ((info.kind as u64) << 24);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= info.extent.lba.rotate_left(17) ^ ((info.extent.blocks as u64) << 40);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> UpdateInfo {
        UpdateInfo {
            kind: UpdateKind::Write,
            fua: true,
            payload_crc: 0xdead_beef,
            payload_len: 8192,
            volume: VolumeId(7),
            group: GroupId(3),
            origin: MoverId(2),
            owner: ShardId::new(1, 4),
            epoch: Epoch(5),
            map_version: MapVersion(6),
            set: SetId(0x0102_0304_0506),
            seq: Seq(0x1112_1314),
            extent: Extent { lba: 0x2122, blocks: 2 },
            block_bytes: 4096,
            list_seq: 9,
            time_ns: 10,
            time_error_ns: 11,
            forward: ForwardId(12),
            described: true,
            not_before: SetId(0x0102_0304_0509),
        }
    }

    #[test]
    fn a_sealed_header_reads_back_as_it_was() {
        assert_eq!(UpdateHeader::check(UpdateHeader::seal(&sample()).as_bytes()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let good = UpdateHeader::seal(&sample());
        for bit in 0..UPDATE_HEADER_BYTES * 8 {
            let mut bytes = [0; UPDATE_HEADER_BYTES];
            bytes.copy_from_slice(good.as_bytes());
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(UpdateHeader::check(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_payload_length_that_does_not_fit_the_extent_is_refused() {
        let wrong = UpdateInfo { payload_len: 4096, ..sample() };
        assert_eq!(
            UpdateHeader::check(UpdateHeader::seal(&wrong).as_bytes()),
            Err(UpdateHeaderError::Field { field: "payload_len", found: 4096 })
        );
    }

    #[test]
    fn golden_bytes_of_an_update_header() {
        let header = UpdateHeader::seal(&sample());
        let bytes = header.as_bytes();
        assert_eq!(&bytes[..8], b"SLUP\x02\x01\x03\x00");
        assert_eq!(bytes[8..12], crc_of_zeroed(bytes).to_le_bytes());
        assert_eq!(&bytes[12..24], b"\xef\xbe\xad\xde\x07\0\0\0\x03\0\x02\0");
        assert_eq!(&bytes[24..40], b"\x01\0\x04\0\x05\0\0\0\x06\0\0\0\0\x20\0\0");
        assert_eq!(&bytes[40..56], b"\x06\x05\x04\x03\x02\x01\0\0\x14\x13\x12\x11\0\0\0\0");
        assert_eq!(&bytes[56..72], b"\x22\x21\0\0\0\0\0\0\x02\0\0\0\0\x10\0\0");
        assert_eq!(&bytes[72..88], b"\x09\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0");
        assert_eq!(&bytes[88..104], b"\x0b\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0");
        assert_eq!(&bytes[104..112], b"\x09\x05\x04\x03\x02\x01\0\0");
        assert!(bytes[112..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_header_of_version_1_is_read() {
        let mut header = UpdateHeader::seal(&sample());
        (header.version, header.not_before) = (1, U64::ZERO);
        header.flags = U16::new(FLAG_FUA);
        header.header_crc = U32::ZERO;
        header.header_crc = U32::new(crc32c(header.as_bytes()));
        let info = UpdateInfo { described: false, not_before: SetId(0), ..sample() };
        assert_eq!(UpdateHeader::check(header.as_bytes()), Ok(info));
    }

    #[test]
    fn a_payload_that_was_read_back_changes_no_digest() {
        let (exact, later) = (sample(), UpdateInfo { payload_crc: 1, ..sample() });
        assert_eq!(digest_of(&exact), digest_of(&later));
        let own = |payload_crc| UpdateInfo { payload_crc, described: false, ..sample() };
        assert_ne!(digest_of(&own(1)), digest_of(&own(2)));
    }

    fn crc_of_zeroed(bytes: &[u8]) -> u32 {
        let mut copy = bytes.to_vec();
        copy[8..12].fill(0);
        crc32c(&copy)
    }
}
