//! Block devices as a user: open, channel, asynchronous I/O.
//!
//! A completion is an entry in the polling thread's [`super::queue`], with the
//! context that the submitter gave. Reads of hosts are forwarded whole: the
//! base's completion completes the host.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::rc::Rc;

use super::env::IoBuf;
use super::error::{Error, NvmeStatus, Submit, check, cstring, submitted};
use super::queue::{Done, push_done};
use super::sys;

/// What a device can do and how large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes per logical block.
    pub block_bytes: u32,
    /// Logical blocks.
    pub blocks: u64,
    /// Alignment of buffers below which the device copies, in bytes.
    pub buffer_align: usize,
    /// Completed writes may be lost with power until a flush.
    pub write_cache: bool,
    /// Zeroes are written without sending them.
    pub write_zeroes: bool,
    /// Deallocation is understood.
    pub unmap: bool,
    /// Flush is understood.
    pub flush: bool,
}

/// An open block device. Opened, used for channels, and dropped on one thread.
#[derive(Debug, Clone)]
pub struct Bdev {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    desc: NonNull<sys::spdk_bdev_desc>,
    /// Heap cell that the event callback points at; freed after the close.
    removed: NonNull<Cell<bool>>,
    geometry: Geometry,
}

impl Bdev {
    /// Opens the device `name`, for writing too if `write`. Each poller opens
    /// its own.
    ///
    /// # Errors
    /// [`Error::Errno`] with ENODEV (no such device) or EPERM (claimed).
    pub fn open(name: &str, write: bool) -> Result<Self, Error> {
        let name = cstring("device name", name)?;
        let removed = NonNull::from(Box::leak(Box::new(Cell::new(false))));
        let mut desc = std::ptr::null_mut();
        // SAFETY: valid pointers; `removed` outlives the descriptor.
        let rc = unsafe {
            sys::spdk_bdev_open_ext(
                name.as_ptr(),
                write,
                Some(on_event),
                removed.as_ptr().cast(),
                &mut desc,
            )
        };
        let Some(desc) = NonNull::new(desc).filter(|_| rc == 0) else {
            // SAFETY: not open, so the callback will not come.
            drop(unsafe { Box::from_raw(removed.as_ptr()) });
            check("spdk_bdev_open_ext", rc)?;
            return Err(Error::Null { call: "spdk_bdev_open_ext" });
        };
        let geometry = geometry(desc);
        Ok(Self { inner: Rc::new(Inner { desc, removed, geometry }) })
    }

    /// The device's size and abilities.
    pub fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    /// Whether the device went away under us. Its I/O fails; release channels
    /// and drop this.
    pub fn is_removed(&self) -> bool {
        // SAFETY: freed only when `inner` is dropped.
        unsafe { self.inner.removed.as_ref() }.get()
    }

    /// Whether it takes NVMe commands as they are: it is an NVMe namespace.
    pub fn passes_nvme(&self) -> bool {
        // SAFETY: the descriptor is open, so it has a device.
        let bdev = unsafe { sys::spdk_bdev_desc_get_bdev(self.inner.desc.as_ptr()) };
        [sys::SPDK_BDEV_IO_TYPE_NVME_ADMIN, sys::SPDK_BDEV_IO_TYPE_NVME_IO]
            .into_iter()
            // SAFETY: the device stays while the descriptor is open.
            .all(|kind| unsafe { sys::spdk_bdev_io_type_supported(bdev, kind) })
    }

    /// A channel for I/O by the current SPDK thread.
    ///
    /// # Errors
    /// [`Error::Null`] when the device cannot make one.
    pub fn channel(&self) -> Result<Channel, Error> {
        // SAFETY: the descriptor is open; an SPDK thread is current.
        let raw = unsafe { sys::spdk_bdev_get_io_channel(self.inner.desc.as_ptr()) };
        let raw = NonNull::new(raw).ok_or(Error::Null { call: "spdk_bdev_get_io_channel" })?;
        Ok(Channel { raw, bdev: self.clone(), _not_send: PhantomData })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: opened by this thread; every channel holds an `Rc` of this.
        unsafe { sys::spdk_bdev_close(self.desc.as_ptr()) };
        // SAFETY: after the close no event comes.
        drop(unsafe { Box::from_raw(self.removed.as_ptr()) });
    }
}

fn geometry(desc: NonNull<sys::spdk_bdev_desc>) -> Geometry {
    // SAFETY: the descriptor is open, so it has a device.
    let bdev = unsafe { sys::spdk_bdev_desc_get_bdev(desc.as_ptr()) };
    // SAFETY: the device stays while the descriptor is open; so below.
    let supports = |kind| unsafe { sys::spdk_bdev_io_type_supported(bdev, kind) };
    Geometry {
        // SAFETY: see above.
        block_bytes: unsafe { sys::spdk_bdev_get_block_size(bdev) },
        // SAFETY: see above.
        blocks: unsafe { sys::spdk_bdev_get_num_blocks(bdev) },
        // SAFETY: see above.
        buffer_align: unsafe { sys::spdk_bdev_get_buf_align(bdev) },
        // SAFETY: see above.
        write_cache: unsafe { sys::spdk_bdev_has_write_cache(bdev) },
        write_zeroes: supports(sys::SPDK_BDEV_IO_TYPE_WRITE_ZEROES),
        unmap: supports(sys::SPDK_BDEV_IO_TYPE_UNMAP),
        flush: supports(sys::SPDK_BDEV_IO_TYPE_FLUSH),
    }
}

unsafe extern "C" fn on_event(
    kind: sys::spdk_bdev_event_type,
    _bdev: *mut sys::spdk_bdev,
    ctx: *mut c_void,
) {
    if kind == sys::SPDK_BDEV_EVENT_REMOVE {
        // SAFETY: the cell given at opening, alive until after the close.
        unsafe { ctx.cast::<Cell<bool>>().as_ref() }.inspect(|removed| removed.set(true));
    }
}

/// A device's channel of one SPDK thread. I/O completes as [`Done`] in the
/// thread's queues.
///
/// Buffers: the caller does not reuse an [`IoBuf`]'s bytes before the
/// completion was seen.
#[derive(Debug)]
pub struct Channel {
    raw: NonNull<sys::spdk_io_channel>,
    bdev: Bdev,
    _not_send: PhantomData<*mut ()>,
}

impl Channel {
    /// The device's size and abilities.
    pub fn geometry(&self) -> Geometry {
        self.bdev.geometry()
    }

    /// Whether the device went away.
    pub fn is_removed(&self) -> bool {
        self.bdev.is_removed()
    }

    /// Descriptor and channel, for commands of [`super::reservation`].
    pub(super) fn raw_parts(&self) -> (*mut sys::spdk_bdev_desc, *mut sys::spdk_io_channel) {
        (self.desc(), self.raw.as_ptr())
    }

    fn desc(&self) -> *mut sys::spdk_bdev_desc {
        self.bdev.inner.desc.as_ptr()
    }

    /// Blocks of `buf`; its length is a multiple of the block size.
    fn blocks_of(&self, buf: IoBuf) -> u64 {
        let block = self.bdev.inner.geometry.block_bytes as usize;
        debug_assert!(buf.len().is_multiple_of(block), "partial block");
        (buf.len() / block) as u64
    }

    /// Reads `buf.len()` bytes at `offset_blocks`.
    ///
    /// # Errors
    /// [`Submit`]; then no completion comes. So for all I/O below.
    #[inline]
    pub fn read(&self, buf: IoBuf, offset_blocks: u64, ctx: u64) -> Result<(), Submit> {
        // SAFETY: open descriptor, this thread's channel, memory that stays
        // mapped (`IoBuf`'s contract); so for all I/O below.
        submitted(unsafe {
            sys::spdk_bdev_read_blocks(
                self.desc(),
                self.raw.as_ptr(),
                buf.as_ptr().as_ptr().cast(),
                offset_blocks,
                self.blocks_of(buf),
                Some(on_done),
                ctx as *mut c_void,
            )
        })
    }

    /// Writes `buf` at `offset_blocks`.
    #[inline]
    pub fn write(&self, buf: IoBuf, offset_blocks: u64, ctx: u64) -> Result<(), Submit> {
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_bdev_write_blocks(
                self.desc(),
                self.raw.as_ptr(),
                buf.as_ptr().as_ptr().cast(),
                offset_blocks,
                self.blocks_of(buf),
                Some(on_done),
                ctx as *mut c_void,
            )
        })
    }

    /// Writes with a completion of the caller's, for [`super::load`]. 0, or a negative errno.
    pub(super) fn write_raw(
        &self,
        buf: IoBuf,
        offset: u64,
        blocks: u64,
        done: unsafe extern "C" fn(*mut sys::spdk_bdev_io, bool, *mut c_void),
        ctx: *mut c_void,
    ) -> i32 {
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        let memory = buf.as_ptr().as_ptr().cast();
        // SAFETY: see `read`; `done` frees the request.
        unsafe { sys::spdk_bdev_write_blocks(desc, ch, memory, offset, blocks, Some(done), ctx) }
    }

    /// Reads into a list of pieces. For [`super::payload`], whose types vouch for the pieces.
    pub(super) fn readv_raw(
        &self,
        iovs: *mut sys::iovec,
        count: i32,
        offset: u64,
        blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`; the pieces stay until the completion (the callers' types).
        submitted(unsafe {
            sys::spdk_bdev_readv_blocks(desc, ch, iovs, count, offset, blocks, Some(on_done), ctx)
        })
    }

    /// Compares with a list of pieces. For [`super::payload`], whose types vouch for the pieces.
    pub(super) fn comparev_raw(
        &self,
        iovs: *mut sys::iovec,
        count: i32,
        offset: u64,
        blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`; the pieces stay until the completion (the callers' types).
        submitted(unsafe {
            sys::spdk_bdev_comparev_blocks(
                desc,
                ch,
                iovs,
                count,
                offset,
                blocks,
                Some(on_compared),
                ctx,
            )
        })
    }

    /// Writes a list of pieces. For [`super::payload`], whose types vouch for the pieces.
    pub(super) fn writev_raw(
        &self,
        iovs: *mut sys::iovec,
        count: i32,
        offset: u64,
        blocks: u64,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`; the pieces stay until the completion (the callers' types).
        submitted(unsafe {
            sys::spdk_bdev_writev_blocks(desc, ch, iovs, count, offset, blocks, Some(on_done), ctx)
        })
    }

    /// Writes zeroes; SPDK sends them when the device cannot make them.
    pub fn write_zeroes(&self, offset: u64, blocks: u64, ctx: u64) -> Result<(), Submit> {
        let ctx = ctx as *mut c_void;
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_bdev_write_zeroes_blocks(desc, ch, offset, blocks, Some(on_done), ctx)
        })
    }

    /// Deallocates; what is read afterwards is the device's choice.
    pub fn unmap(&self, offset: u64, blocks: u64, ctx: u64) -> Result<(), Submit> {
        let ctx = ctx as *mut c_void;
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_bdev_unmap_blocks(desc, ch, offset, blocks, Some(on_done), ctx)
        })
    }

    /// Makes all completed writes durable.
    pub fn flush(&self, ctx: u64) -> Result<(), Submit> {
        let ctx = ctx as *mut c_void;
        let (desc, ch) = (self.desc(), self.raw.as_ptr());
        let blocks = self.bdev.inner.geometry.blocks;
        // SAFETY: see `read`.
        submitted(unsafe { sys::spdk_bdev_flush_blocks(desc, ch, 0, blocks, Some(on_done), ctx) })
    }

    /// Resets the device: what is under way is aborted.
    pub fn reset(&self, ctx: u64) -> Result<(), Submit> {
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_bdev_reset(self.desc(), self.raw.as_ptr(), Some(on_done), ctx)
        })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by this thread, released once.
        unsafe { sys::spdk_put_io_channel(self.raw.as_ptr()) };
    }
}

/// The status of a finished request, which is then given back to SPDK.
#[inline]
pub(super) fn take_status(io: *mut sys::spdk_bdev_io, success: bool) -> NvmeStatus {
    let status = if success {
        NvmeStatus::SUCCESS
    } else {
        let (mut cdw0, mut sct, mut sc) = (0, 0, 0);
        // SAFETY: `io` is a completed request; the destinations are valid.
        unsafe { sys::spdk_bdev_io_get_nvme_status(io, &mut cdw0, &mut sct, &mut sc) };
        NvmeStatus::new(sct as u32, sc as u32)
    };
    // SAFETY: completed, and used no more.
    unsafe { sys::spdk_bdev_free_io(io) };
    status
}

unsafe extern "C" fn on_done(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    push_done(Done { ctx: ctx as u64, status: take_status(io, success) });
}

unsafe extern "C" fn on_compared(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    if success {
        push_done(Done { ctx: ctx as u64, status: take_status(io, success) });
        return;
    }
    // A difference that SPDK found itself shows only in this form of status.
    let (mut cdw0, mut first, mut second) = (0, (0, 0), (0, 0));
    let (sct, sc) = (&mut first.0, &mut first.1);
    let (sct2, sc2) = (&mut second.0, &mut second.1);
    // SAFETY: `io` is a completed request; the destinations are valid.
    unsafe { sys::spdk_bdev_io_get_nvme_fused_status(io, &mut cdw0, sct, sc, sct2, sc2) };
    let (sct, sc) = if first == (0, 0) { second } else { first };
    // SAFETY: completed, and used no more.
    unsafe { sys::spdk_bdev_free_io(io) };
    push_done(Done { ctx: ctx as u64, status: NvmeStatus::new(sct as u32, sc as u32) });
}
