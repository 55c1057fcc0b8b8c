//! Packet buffers: the few fields of `rte_mbuf` that are read or written here, by name.
//!
//! bindgen turns the header's unions into nests of unions; this is a flat view of the same
//! memory, with its layout asserted against the generated one.

use super::external::External;
use super::sys;
use std::ptr::NonNull;

/// `struct rte_mbuf` up to the fields used here (`rte_mbuf_core.h`).
#[repr(C)]
pub(super) struct Fields {
    buf_addr: *mut u8,
    buf_iova: u64,
    data_off: u16,
    refcnt: u16,
    nb_segs: u16,
    port: u16,
    ol_flags: u64,
    packet_type: u32,
    pkt_len: u32,
    data_len: u16,
    vlan_tci: u16,
    hash: [u32; 2],
    vlan_tci_outer: u16,
    buf_len: u16,
    pool: *mut sys::rte_mempool,
    next: *mut sys::rte_mbuf,
    tx_offload: u64,
    shinfo: *mut sys::rte_mbuf_ext_shared_info,
}

const _: () = {
    use std::mem::offset_of;
    use sys::{
        rte_mbuf, rte_mbuf__bindgen_ty_1__bindgen_ty_1 as First,
        rte_mbuf__bindgen_ty_2__bindgen_ty_1 as Second,
    };
    let first = offset_of!(rte_mbuf, __bindgen_anon_1);
    let second = offset_of!(rte_mbuf, __bindgen_anon_2);
    assert!(offset_of!(Fields, buf_addr) == offset_of!(rte_mbuf, buf_addr));
    assert!(offset_of!(Fields, buf_iova) == offset_of!(rte_mbuf, buf_iova));
    assert!(offset_of!(Fields, data_off) == first + offset_of!(First, data_off));
    assert!(offset_of!(Fields, refcnt) == first + offset_of!(First, refcnt));
    assert!(offset_of!(Fields, nb_segs) == first + offset_of!(First, nb_segs));
    assert!(offset_of!(Fields, port) == first + offset_of!(First, port));
    assert!(offset_of!(Fields, ol_flags) == offset_of!(rte_mbuf, ol_flags));
    assert!(offset_of!(Fields, pkt_len) == second + offset_of!(Second, pkt_len));
    assert!(offset_of!(Fields, data_len) == second + offset_of!(Second, data_len));
    assert!(offset_of!(Fields, buf_len) == second + offset_of!(Second, buf_len));
    assert!(offset_of!(Fields, pool) == offset_of!(rte_mbuf, pool));
    assert!(offset_of!(Fields, next) == offset_of!(rte_mbuf, next));
    assert!(offset_of!(Fields, shinfo) == offset_of!(rte_mbuf, shinfo));
};

/// The fields of a buffer.
///
/// # Safety
/// `mbuf` is valid and nobody else uses it for the life of the result.
#[inline]
unsafe fn fields<'a>(mbuf: *mut sys::rte_mbuf) -> &'a mut Fields {
    // SAFETY: by the caller's promise; the layouts agree (asserted above).
    unsafe { &mut *mbuf.cast::<Fields>() }
}

/// The whole room of a fresh buffer behind its headroom. [`finish`] says how much of it counts.
///
/// # Safety
/// `mbuf` was just taken from a pool and is the caller's alone.
#[inline]
pub(super) unsafe fn room<'a>(mbuf: *mut sys::rte_mbuf) -> &'a mut [u8] {
    // SAFETY: by the caller's promise.
    let f = unsafe { fields(mbuf) };
    // SAFETY: the buffer has `buf_len` bytes from `buf_addr`, of which the headroom is the first.
    let start = unsafe { f.buf_addr.add(usize::from(f.data_off)) };
    let len = usize::from(f.buf_len - f.data_off);
    // SAFETY: as above; hugepage memory is always initialised.
    unsafe { std::slice::from_raw_parts_mut(start, len) }
}

/// Sets how many bytes of its room a fresh buffer sends.
///
/// # Safety
/// As [`room`]; `len` is at most its length.
#[inline]
pub(super) unsafe fn finish(mbuf: *mut sys::rte_mbuf, len: usize) {
    // SAFETY: by the caller's promise.
    let f = unsafe { fields(mbuf) };
    f.data_len = len as u16;
    f.pkt_len = len as u32;
}

/// Appends `external` to the frame in `head`, by way of the fresh buffer `tail`.
///
/// # Safety
/// Both buffers are the caller's alone and `head` is finished; `count` stands at one reference,
/// which the frame takes over.
#[inline]
pub(super) unsafe fn append_external(
    head: *mut sys::rte_mbuf,
    tail: *mut sys::rte_mbuf,
    external: External,
    count: *mut sys::rte_mbuf_ext_shared_info,
) {
    // What rte_pktmbuf_attach_extbuf and rte_pktmbuf_chain do.
    // SAFETY: by the caller's promise.
    let t = unsafe { fields(tail) };
    t.buf_addr = external.ptr.as_ptr();
    t.buf_iova = external.iova;
    t.buf_len = external.len;
    t.data_off = 0;
    t.data_len = external.len;
    t.pkt_len = u32::from(external.len);
    t.ol_flags |= sys::RTE_MBUF_F_EXTERNAL;
    t.shinfo = count;
    // SAFETY: by the caller's promise; another buffer than `tail`.
    let h = unsafe { fields(head) };
    h.next = tail;
    h.nb_segs = 2;
    h.pkt_len += u32::from(external.len);
}

/// A received frame: its bytes in one or two pieces, and its length. None when it is in more.
///
/// # Safety
/// `mbuf` is a received buffer of the caller's, and stays so for the life of the result.
#[inline]
pub(super) unsafe fn pieces<'a>(
    mbuf: NonNull<sys::rte_mbuf>,
) -> Option<(&'a [u8], &'a [u8], usize)> {
    // SAFETY: by the caller's promise.
    let f = unsafe { fields(mbuf.as_ptr()) };
    let (len, segments, next) = (f.pkt_len as usize, f.nb_segs, f.next);
    // SAFETY: the same buffer, as promised.
    let first = unsafe { data(mbuf.as_ptr()) };
    match segments {
        1 => Some((first, &[], len)),
        2 => {
            // SAFETY: a frame's second buffer belongs to whoever has the first.
            let second = unsafe { data(next) };
            Some((first, second, len))
        }
        _ => None,
    }
}

/// The data of one buffer.
///
/// # Safety
/// As [`pieces`].
#[inline]
unsafe fn data<'a>(mbuf: *mut sys::rte_mbuf) -> &'a [u8] {
    // SAFETY: by the caller's promise.
    let f = unsafe { fields(mbuf) };
    // SAFETY: the data lies within the buffer.
    let start = unsafe { f.buf_addr.add(usize::from(f.data_off)) };
    // SAFETY: as above. Memory that a sender in this process referred to does not change while
    // the frame lives (the contract of `Region`).
    unsafe { std::slice::from_raw_parts(start, usize::from(f.data_len)) }
}

/// Fetches a received buffer's fields into the cache.
#[inline]
pub(super) fn prefetch_fields(mbuf: *const sys::rte_mbuf) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; no access takes place.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(mbuf.cast());
    }
}

/// Gives frames back to their pools; null pointers are skipped.
#[inline]
pub(super) fn free(frames: &mut [*mut sys::rte_mbuf]) {
    // SAFETY: the caller hands over valid frames of its own, or null.
    unsafe { sys::rte_pktmbuf_free_bulk(frames.as_mut_ptr(), frames.len() as u32) };
}
