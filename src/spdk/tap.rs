//! The tap: a block device module that shows volumes to hosts and decides
//! nothing. Each command becomes a [`HostIo`] in the queue of the thread it
//! arrived on; whoever polls that thread numbers, mirrors, writes and completes.
//!
//! Not here: compare-and-write and the splitting of large commands (the block
//! device layer makes them of compares, reads and writes), and aborts of single
//! commands: an update that has a number must resolve. The block device layer
//! locks the range of a compare-and-write in this process only, so a tap of a
//! volume that another mover writes refuses it.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Once;

use super::env::IoBuf;
use super::error::{Error, NvmeStatus, check, cstring};
use super::op::{Op, Pump};
use super::queue::{Arrival, push_arrival};
use super::sys;

/// A piece of a host's buffer.
pub type IoVec = sys::iovec;

/// What a host command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    /// Data to the host.
    Read,
    /// Data from the host.
    Write,
    /// Data from the host is compared with the medium. (The block device layer
    /// could make it of a read, but reports a difference as a device error.)
    Compare,
    /// Zeroes.
    WriteZeroes,
    /// Deallocation.
    Unmap,
    /// Completed writes become durable.
    Flush,
}

/// A host command that waits for its one completion. Dropping it completes it
/// with an internal error, so no command is ever forgotten.
///
/// It stays on the OS thread it arrived on and is completed there.
#[derive(Debug)]
pub struct HostIo {
    raw: NonNull<sys::spdk_bdev_io>,
    _not_send: PhantomData<*mut ()>,
}

impl HostIo {
    #[inline]
    fn params(&self) -> &sys::spdk_bdev_io_block_params {
        // SAFETY: the request is ours until it is completed.
        let io = unsafe { self.raw.as_ref() };
        // SAFETY: every kind in `IoKind` uses this member of the union.
        unsafe { &io.u.bdev }
    }

    /// What the command does.
    #[inline]
    pub fn kind(&self) -> IoKind {
        // SAFETY: the request is ours until it is completed.
        let io = unsafe { self.raw.as_ref() };
        match u32::from(io.type_) {
            sys::SPDK_BDEV_IO_TYPE_READ => IoKind::Read,
            sys::SPDK_BDEV_IO_TYPE_WRITE => IoKind::Write,
            sys::SPDK_BDEV_IO_TYPE_COMPARE => IoKind::Compare,
            sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES => IoKind::WriteZeroes,
            sys::SPDK_BDEV_IO_TYPE_UNMAP => IoKind::Unmap,
            // `submit_request` lets no other type through.
            _ => IoKind::Flush,
        }
    }

    /// First block.
    #[inline]
    pub fn offset_blocks(&self) -> u64 {
        self.params().offset_blocks
    }

    /// Number of blocks (not zero-based).
    #[inline]
    pub fn blocks(&self) -> u64 {
        self.params().num_blocks
    }

    /// The host wants the data durable before the completion (FUA, bit 30 of
    /// command dword 12 of an NVMe write).
    #[inline]
    pub fn force_unit_access(&self) -> bool {
        // SAFETY: `raw` covers the whole union.
        let dword = unsafe { self.params().nvme_cdw12.raw };
        self.kind() == IoKind::Write && dword & sys::SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS != 0
    }

    /// The host's buffer, as pieces; empty for commands without data. The host
    /// may change the bytes at any time: copy, then checksum the copy.
    #[inline]
    pub fn iovs(&self) -> &[IoVec] {
        let (iovs, count) = self.raw_iovs();
        if iovs.is_null() || count <= 0 {
            return &[];
        }
        // SAFETY: `count` initialised elements that live as long as the request.
        unsafe { std::slice::from_raw_parts(iovs, count as usize) }
    }

    /// Copies the host's data into `dst`, from its start; returns the bytes
    /// copied: the smaller of both lengths.
    pub fn gather(&self, dst: IoBuf) -> usize {
        self.copy(dst, |host, local, len| {
            // SAFETY: `copy` passes ranges that are mapped and `len` bytes long;
            // host buffers and `IoBuf`s do not overlap.
            unsafe { local.copy_from_nonoverlapping(host, len) };
        })
    }

    /// Copies `src` into the host's buffer, from its start; returns the bytes
    /// copied.
    pub fn scatter(&self, src: IoBuf) -> usize {
        self.copy(src, |host, local, len| {
            // SAFETY: as in `gather`, the other way.
            unsafe { host.copy_from_nonoverlapping(local, len) };
        })
    }

    fn copy(&self, buf: IoBuf, piece: impl Fn(*mut u8, *mut u8, usize)) -> usize {
        let mut copied = 0;
        for iov in self.iovs() {
            let len = iov.iov_len.min(buf.len() - copied);
            let local = buf.slice(copied, len);
            piece(iov.iov_base.cast(), local.as_ptr().as_ptr(), len);
            copied += len;
        }
        copied
    }

    /// The CRC-32C of the data, when the transport has checked one already.
    pub fn precomputed_crc32c(&self) -> Option<u32> {
        let params = self.params();
        params.has_crc32c.then_some(params.crc32c)
    }

    #[inline]
    pub(super) fn raw_iovs(&self) -> (*mut IoVec, c_int) {
        let params = self.params();
        (params.iovs, params.iovcnt)
    }

    /// Completes the command.
    #[inline]
    pub fn complete(self, status: NvmeStatus) {
        let raw = self.into_raw();
        if status.is_ok() {
            // SAFETY: ours, and completed once: `self` is gone.
            unsafe { sys::spdk_bdev_io_complete(raw.as_ptr(), sys::SPDK_BDEV_IO_STATUS_SUCCESS) };
        } else {
            complete_error(raw, status);
        }
    }

    /// Gives the command back to SPDK, which submits it again when another one
    /// of this channel completes, or after a short time.
    pub fn retry_later(self) {
        let raw = self.into_raw();
        // SAFETY: as in `complete`.
        unsafe { sys::spdk_bdev_io_complete(raw.as_ptr(), sys::SPDK_BDEV_IO_STATUS_NOMEM) };
    }

    #[inline]
    pub(super) fn into_raw(self) -> NonNull<sys::spdk_bdev_io> {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }

    /// # Safety
    /// `raw` is a request that was submitted to the tap, or came from
    /// `into_raw`; it is not completed and nobody else holds it.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<sys::spdk_bdev_io>) -> Self {
        Self { raw, _not_send: PhantomData }
    }
}

impl Drop for HostIo {
    fn drop(&mut self) {
        complete_error(self.raw, NvmeStatus::INTERNAL_DEVICE_ERROR);
    }
}

fn complete_error(raw: NonNull<sys::spdk_bdev_io>, status: NvmeStatus) {
    let (sct, sc) = (i32::from(status.sct), i32::from(status.sc));
    // SAFETY: the caller owns the request and gives it up.
    unsafe { sys::spdk_bdev_io_complete_nvme_status(raw.as_ptr(), 0, sct, sc) };
}

/// What a volume looks like to hosts.
#[derive(Debug, Clone)]
pub struct TapConfig {
    /// Name of the block device, unique in the process.
    pub name: String,
    /// The index that arrivals carry.
    pub index: u32,
    /// Identity; the same after every restart.
    pub uuid: [u8; 16],
    /// Bytes per block, 512 or 4096.
    pub block_bytes: u32,
    /// Blocks.
    pub blocks: u64,
    /// Tell hosts that completed writes need a flush to be durable.
    pub write_cache: bool,
    /// Let the block device layer carry out compare-and-write; otherwise it is
    /// refused with a status that has multipath hosts take another path.
    pub compare_and_write: bool,
    /// Longest read or write handed on, in blocks; longer ones are split.
    pub max_transfer_blocks: u32,
    /// Longest write-zeroes and deallocation handed on, in blocks.
    pub max_zeroes_blocks: u32,
}

/// One volume's block device. Memory behind it belongs to SPDK's registration
/// and is freed when that ends: by [`TapVolume::remove`] or with the subsystems.
#[derive(Debug)]
pub struct TapVolume {
    name: String,
    node: NonNull<Node>,
}

struct Node {
    bdev: sys::spdk_bdev,
    index: u32,
    compare_and_write: bool,
    /// Pointed at by `bdev`.
    name: CString,
}

/// Per SPDK thread and volume; SPDK allocates it.
#[repr(C)]
struct ChannelCtx {
    index: u32,
}

impl TapVolume {
    /// Creates the block device. On the app thread, after the subsystems started.
    ///
    /// # Errors
    /// [`Error::Errno`] with EEXIST when the name is taken.
    pub fn create(config: &TapConfig) -> Result<Self, Error> {
        let name = cstring("volume name", &config.name)?;
        let mut node = Box::new(Node {
            bdev: sys::spdk_bdev::default(),
            index: config.index,
            compare_and_write: config.compare_and_write,
            name,
        });
        let bdev = &mut node.bdev;
        bdev.product_name = PRODUCT.as_ptr().cast_mut();
        bdev.write_cache = c_int::from(config.write_cache);
        bdev.blocklen = config.block_bytes;
        bdev.phys_blocklen = config.block_bytes;
        bdev.blockcnt = config.blocks;
        bdev.acwu = 1;
        bdev.max_rw_size = config.max_transfer_blocks;
        bdev.max_write_zeroes = config.max_zeroes_blocks;
        bdev.max_unmap = config.max_zeroes_blocks;
        bdev.max_unmap_segments = 1;
        bdev.reset_io_drain_timeout = RESET_DRAIN_SECONDS;
        // SAFETY: sixteen bytes, all of which the union covers.
        bdev.uuid = unsafe { std::mem::transmute::<[u8; 16], sys::spdk_uuid>(config.uuid) };
        bdev.fn_table = &FUNCTIONS.0;
        bdev.module = MODULE.0.get();
        let node = NonNull::from(Box::leak(node));
        let raw = node.as_ptr();
        // SAFETY: `raw` is a live box; a field's address is taken.
        let bdev = unsafe { &raw mut (*raw).bdev };
        // SAFETY: just created, not shared yet.
        let made = unsafe { &mut *raw };
        made.bdev.ctxt = raw.cast();
        made.bdev.name = made.name.as_ptr().cast_mut();
        // SAFETY: the node lives until `on_device_gone`.
        unsafe {
            sys::spdk_io_device_register(
                raw.cast(),
                Some(channel_create),
                Some(channel_destroy),
                size_of::<ChannelCtx>() as u32,
                made.bdev.name,
            );
        }
        // SAFETY: a filled device structure that lives until `destruct`.
        let rc = unsafe { sys::spdk_bdev_register(bdev) };
        if rc != 0 {
            // SAFETY: registered above, without channels; frees the node.
            unsafe { sys::spdk_io_device_unregister(raw.cast(), Some(on_device_gone)) };
        }
        check("spdk_bdev_register", rc)?;
        Ok(Self { name: config.name.clone(), node })
    }

    /// Name of the block device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes the block device; users (a namespace) must have let it go.
    /// On the app thread.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it is still in use.
    pub fn remove(self, pump: Pump<'_>) -> Result<(), Error> {
        let op = Op::<i32>::new();
        let raw = self.node.as_ptr();
        // SAFETY: registered and not removed: `self` is given up.
        let bdev = unsafe { &raw mut (*raw).bdev };
        // SAFETY: as above; the callback gets the operation's context.
        unsafe { sys::spdk_bdev_unregister(bdev, Some(on_unregistered), op.context()) };
        check("spdk_bdev_unregister", op.wait("removal of a volume's tap", pump)?)
    }
}

const PRODUCT: &CStr = c"setline volume";

/// A reset waits this long for commands under way, then counts as done: they
/// resolve by the protocol, never by being cut off.
const RESET_DRAIN_SECONDS: u16 = 15;

struct Module(UnsafeCell<sys::spdk_bdev_module>);
// SAFETY: SPDK changes it on the app thread only; Rust only takes its address.
unsafe impl Sync for Module {}

static MODULE: Module = Module(UnsafeCell::new(sys::spdk_bdev_module {
    name: c"setline".as_ptr(),
    module_init: Some(module_init),
    // SAFETY: all other members are pointers, options, flags and list heads, for
    // which zero means "none".
    ..unsafe { std::mem::zeroed() }
}));

struct Functions(sys::spdk_bdev_fn_table);
// SAFETY: never written.
unsafe impl Sync for Functions {}

static FUNCTIONS: Functions = Functions(sys::spdk_bdev_fn_table {
    destruct: Some(destruct),
    submit_request: Some(submit_request),
    io_type_supported: Some(io_type_supported),
    get_io_channel: Some(get_io_channel),
    // SAFETY: all members are optional functions; zero means "none".
    ..unsafe { std::mem::zeroed() }
});

/// Makes the module known to SPDK; before its subsystems start. Idempotent.
pub(super) fn register_module() {
    static REGISTERED: Once = Once::new();
    // SAFETY: a static structure, added once.
    REGISTERED.call_once(|| unsafe { sys::spdk_bdev_module_list_add(MODULE.0.get()) });
}

unsafe extern "C" fn module_init() -> c_int {
    0
}

unsafe extern "C" fn destruct(ctx: *mut c_void) -> c_int {
    // SAFETY: `ctx` is the node, registered as a device under its own address.
    unsafe { sys::spdk_io_device_unregister(ctx, Some(on_device_gone)) };
    0
}

unsafe extern "C" fn on_device_gone(node: *mut c_void) {
    // SAFETY: the node that `create` leaked; its last channel is gone.
    drop(unsafe { Box::from_raw(node.cast::<Node>()) });
}

unsafe extern "C" fn on_unregistered(ctx: *mut c_void, rc: c_int) {
    // SAFETY: the context of an `Op<i32>`.
    unsafe { Op::finish(ctx, rc) }
}

unsafe extern "C" fn get_io_channel(ctx: *mut c_void) -> *mut sys::spdk_io_channel {
    // SAFETY: `ctx` is the node, registered as a device under its own address.
    unsafe { sys::spdk_get_io_channel(ctx) }
}

unsafe extern "C" fn channel_create(node: *mut c_void, ctx: *mut c_void) -> c_int {
    // SAFETY: the device is a node, alive while channels are.
    let index = unsafe { node.cast::<Node>().as_ref() }.map_or(u32::MAX, |node| node.index);
    // SAFETY: SPDK allocated this many bytes for the context.
    unsafe { ctx.cast::<ChannelCtx>().write(ChannelCtx { index }) };
    0
}

unsafe extern "C" fn channel_destroy(_node: *mut c_void, _ctx: *mut c_void) {}

unsafe extern "C" fn io_type_supported(ctx: *mut c_void, kind: sys::spdk_bdev_io_type) -> bool {
    if kind == sys::SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE {
        // What is "supported" comes here as one request, to be refused.
        // SAFETY: `ctx` is the node, alive while its device is.
        return unsafe { ctx.cast::<Node>().as_ref() }.is_some_and(|node| !node.compare_and_write);
    }
    matches!(
        kind,
        sys::SPDK_BDEV_IO_TYPE_READ
            | sys::SPDK_BDEV_IO_TYPE_WRITE
            | sys::SPDK_BDEV_IO_TYPE_COMPARE
            | sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES
            | sys::SPDK_BDEV_IO_TYPE_UNMAP
            | sys::SPDK_BDEV_IO_TYPE_FLUSH
            | sys::SPDK_BDEV_IO_TYPE_RESET
    )
}

unsafe extern "C" fn submit_request(ch: *mut sys::spdk_io_channel, io: *mut sys::spdk_bdev_io) {
    let Some(raw) = NonNull::new(io) else { return };
    // SAFETY: SPDK hands over a request that nobody else touches.
    let request = unsafe { raw.as_ref() };
    // SAFETY: block commands use this member of the union.
    let params = unsafe { &request.u.bdev };
    match u32::from(request.type_) {
        sys::SPDK_BDEV_IO_TYPE_RESET => {
            // Commands under way were waited for by the block device layer, or
            // resolve on their own; a base is never reset by a host.
            // SAFETY: ours, completed once.
            unsafe { sys::spdk_bdev_io_complete(io, sys::SPDK_BDEV_IO_STATUS_SUCCESS) };
        }
        sys::SPDK_BDEV_IO_TYPE_COMPARE_AND_WRITE => {
            // Not "internal path error": drivers would send the second half again, alone.
            complete_error(raw, NvmeStatus::PATH_INACCESSIBLE);
        }
        sys::SPDK_BDEV_IO_TYPE_READ => {
            // SAFETY: `iovcnt` elements belong to the request.
            let first = unsafe { params.iovs.as_ref() };
            if params.iovcnt > 0 && first.is_some_and(|iov| !iov.iov_base.is_null()) {
                arrive(ch, raw);
            } else {
                let bytes = params.num_blocks * u64::from(block_bytes(request));
                // SAFETY: the request is ours; `got_buffer` continues with it.
                unsafe { sys::spdk_bdev_io_get_buf(io, Some(got_buffer), bytes) };
            }
        }
        _ => arrive(ch, raw),
    }
}

/// Bytes per block of the device a request is for.
fn block_bytes(request: &sys::spdk_bdev_io) -> u32 {
    // SAFETY: a request's device outlives it.
    unsafe { request.bdev.as_ref() }.map_or(0, |bdev| bdev.blocklen)
}

unsafe extern "C" fn got_buffer(
    ch: *mut sys::spdk_io_channel,
    io: *mut sys::spdk_bdev_io,
    success: bool,
) {
    let Some(raw) = NonNull::new(io) else { return };
    if success {
        arrive(ch, raw);
    } else {
        complete_error(raw, NvmeStatus::INTERNAL_DEVICE_ERROR);
    }
}

#[inline]
fn arrive(ch: *mut sys::spdk_io_channel, raw: NonNull<sys::spdk_bdev_io>) {
    // SAFETY: a channel of this module, whose context `channel_create` filled.
    let ctx = unsafe { sys::spdk_io_channel_get_ctx(ch) };
    // SAFETY: as above.
    let volume = unsafe { ctx.cast::<ChannelCtx>().as_ref() }.map_or(u32::MAX, |ctx| ctx.index);
    // SAFETY: the request is ours from here on.
    let io = unsafe { HostIo::from_raw(raw) };
    if let Err(refused) = push_arrival(Arrival { volume, io }) {
        refused.io.retry_later();
    }
}
