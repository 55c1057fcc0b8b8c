//! Bytes of records between packets and the arena.

use crate::mem::arena::Arena;
use crate::proto::command::bytes_to_send;
use crate::proto::link::Store;
use crate::proto::types::BufRef;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader, UpdateInfo};

/// What came in behind a packet header, in one piece or two.
pub(super) type Payload<'a> = (&'a [u8], &'a [u8]);

/// The bytes `offset..offset + len` of a record: what lies in its header, and in its payload.
#[inline]
pub(super) fn pieces(arena: &Arena, buf: BufRef, offset: u32, len: u16) -> (&[u8], &[u8]) {
    let (from, to) = (offset as usize, offset as usize + usize::from(len));
    let header = arena.header(buf);
    let head = &header[from.min(UPDATE_HEADER_BYTES)..to.min(UPDATE_HEADER_BYTES)];
    let payload = match to.checked_sub(UPDATE_HEADER_BYTES) {
        Some(to) if to > 0 => &arena.payload(buf)[from.saturating_sub(UPDATE_HEADER_BYTES)..to],
        _ => &[],
    };
    (head, payload)
}

/// The checksum of a fragment that may begin in the header and end in the payload.
pub(super) fn crc_of(arena: &Arena, header: &[u8], payload: &[u8]) -> u32 {
    let copier = arena.copier();
    copier.crc32c_append(copier.crc32c(header), payload)
}

/// What became of bytes that were copied in.
pub(super) enum Copied {
    /// They are not what they claim to be.
    Unsound,
    /// More of the record is to come.
    Part,
    /// The record is whole and verified.
    Whole(UpdateInfo),
}

/// Copies a packet's payload to its place in a record and verifies it.
#[inline]
pub(super) fn copy_in(
    arena: &mut Arena,
    buf: BufRef,
    store: &Store,
    payload: Payload<'_>,
) -> Copied {
    if store.payload_crc.is_none() {
        return whole_record(arena, buf, store, payload);
    }
    let (mut at, mut crc) = (store.offset as usize, 0);
    for piece in [payload.0, payload.1] {
        let split = UPDATE_HEADER_BYTES.saturating_sub(at).min(piece.len());
        let (head, rest) = piece.split_at(split);
        arena.header_mut(buf)[at.min(UPDATE_HEADER_BYTES)..][..split].copy_from_slice(head);
        at += split;
        arena.payload_mut(buf)[at.saturating_sub(UPDATE_HEADER_BYTES)..][..rest.len()]
            .copy_from_slice(rest);
        at += rest.len();
        crc = arena.copier().crc32c_append(crc, piece);
    }
    if Some(crc) != store.payload_crc {
        return Copied::Unsound;
    }
    if !store.completes {
        return Copied::Part;
    }
    let Some(info) = header_of(arena, buf, store) else { return Copied::Unsound };
    if store.role.is_header_alone() {
        return Copied::Whole(info);
    }
    let payload = &arena.payload(buf)[..info.payload_len as usize];
    if arena.copier().crc32c(payload) == info.payload_crc {
        Copied::Whole(info)
    } else {
        Copied::Unsound
    }
}

/// A record in one packet: one pass copies the payload and computes its checksum.
#[inline]
fn whole_record(arena: &mut Arena, buf: BufRef, store: &Store, payload: Payload<'_>) -> Copied {
    let (first, second) = payload;
    let Some((header, first)) = first.split_first_chunk::<UPDATE_HEADER_BYTES>() else {
        return Copied::Unsound;
    };
    arena.header_mut(buf).copy_from_slice(header);
    let Some(info) = header_of(arena, buf, store) else { return Copied::Unsound };
    if first.len() + second.len() + UPDATE_HEADER_BYTES != store.total_len as usize {
        return Copied::Unsound;
    }
    if info.payload_len > 0
        && !store.role.is_header_alone()
        && arena.fill_from_two(buf, first, second) != info.payload_crc
    {
        return Copied::Unsound;
    }
    Copied::Whole(info)
}

#[inline]
fn header_of(arena: &Arena, buf: BufRef, store: &Store) -> Option<UpdateInfo> {
    let info = UpdateHeader::check(arena.header(buf)).ok()?;
    let len = UPDATE_HEADER_BYTES as u32 + info.payload_len;
    (bytes_to_send(store.role, len) == store.total_len).then_some(info)
}
