//! A small NVMe initiator: what a host does, for the checker's writer, the
//! benchmark and tests. It speaks to any controller SPDK's driver reaches, and
//! runs in a process of its own, without SPDK's subsystems.
//!
//! One thread submits and polls. Completions appear in the thread's
//! [`super::queue::LocalQueues`].

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;

use super::env::IoBuf;
use super::error::{Error, NvmeStatus, Submit, check, submitted};
use super::nvmf::AnaState;
use super::queue::{Done, push_done};
use super::sys;

mod connect;

pub use connect::Connecting;

/// How long an admin command may take: connecting, making and deleting queue pairs. Half of SPDK's
/// own limit, because whoever waits is blocked.
const ADMIN_TIMEOUT_MS: u32 = 15_000;

/// A connected controller.
#[derive(Debug, Clone)]
pub struct Controller {
    inner: Rc<Inner>,
}

#[derive(Debug)]
struct Inner {
    raw: NonNull<sys::spdk_nvme_ctrlr>,
    /// The connection to a vfio-user target, to see it hang up; closed after SPDK's own.
    socket: Option<OwnedFd>,
}

/// What a controller says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Controller id within its subsystem.
    pub cntlid: u16,
    /// Serial number, without padding.
    pub serial: String,
    /// Model number, without padding.
    pub model: String,
    /// Largest transfer in bytes.
    pub max_transfer_bytes: u32,
    /// Compare is supported.
    pub compare: bool,
    /// Dataset management, and so deallocate, is supported.
    pub deallocate: bool,
    /// Write zeroes is supported.
    pub write_zeroes: bool,
    /// Compare-and-write is supported as a fused pair.
    pub compare_and_write: bool,
    /// There is a volatile write cache.
    pub write_cache: bool,
}

/// A namespace of a controller.
#[derive(Debug, Clone)]
pub struct Namespace {
    raw: NonNull<sys::spdk_nvme_ns>,
    /// Namespace id.
    pub nsid: u32,
    /// Bytes per block.
    pub block_bytes: u32,
    /// Blocks.
    pub blocks: u64,
    /// Globally unique identifier, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// UUID, if it has one.
    pub uuid: Option<[u8; 16]>,
    /// Group of namespaces whose path state changes together.
    pub ana_group: u32,
    _controller: Controller,
}

impl Namespace {
    /// How good the way to it through its controller is now: asked when it was connected, and again
    /// with every event ([`Controller::poll_admin`]). Optimized where controllers do not say.
    pub fn path_state(&self) -> AnaState {
        // SAFETY: the namespace lives as long as its controller, which `self` holds.
        match unsafe { sys::spdk_nvme_ns_get_ana_state(self.raw.as_ptr()) } {
            // 0 is no state: the controller does not report any.
            0 | sys::SPDK_NVME_ANA_OPTIMIZED_STATE => AnaState::Optimized,
            sys::SPDK_NVME_ANA_NON_OPTIMIZED_STATE => AnaState::NonOptimized,
            _ => AnaState::Inaccessible,
        }
    }
}

impl Controller {
    fn raw(&self) -> *mut sys::spdk_nvme_ctrlr {
        self.inner.raw.as_ptr()
    }

    /// What the controller says about itself.
    pub fn identity(&self) -> Identity {
        let mut info = sys::setline_ctrlr_info::default();
        // SAFETY: connected; a valid destination.
        unsafe { sys::setline_nvme_ctrlr_info(self.raw(), &mut info) };
        Identity {
            cntlid: info.cntlid,
            serial: text(&info.serial),
            model: text(&info.model),
            // SAFETY: connected.
            max_transfer_bytes: unsafe { sys::spdk_nvme_ctrlr_get_max_xfer_size(self.raw()) },
            // Optional NVM command support (NVM Express Base Specification, "Identify
            // Controller", ONCS).
            compare: info.oncs & 1 << 0 != 0,
            deallocate: info.oncs & 1 << 2 != 0,
            write_zeroes: info.oncs & 1 << 3 != 0,
            compare_and_write: info.fuses & 1 != 0,
            write_cache: info.vwc_present != 0,
        }
    }

    /// The active namespaces, by id.
    pub fn namespaces(&self) -> Vec<Namespace> {
        let mut found = Vec::new();
        // SAFETY: connected; so below.
        let mut nsid = unsafe { sys::spdk_nvme_ctrlr_get_first_active_ns(self.raw()) };
        while nsid != 0 {
            found.extend(self.namespace(nsid));
            // SAFETY: see above.
            nsid = unsafe { sys::spdk_nvme_ctrlr_get_next_active_ns(self.raw(), nsid) };
        }
        found
    }

    /// The namespace `nsid`, if it is active.
    pub fn namespace(&self, nsid: u32) -> Option<Namespace> {
        // SAFETY: connected.
        let active = unsafe { sys::spdk_nvme_ctrlr_is_active_ns(self.raw(), nsid) };
        if !active {
            return None;
        }
        // SAFETY: connected.
        let raw = NonNull::new(unsafe { sys::spdk_nvme_ctrlr_get_ns(self.raw(), nsid) })?;
        let ns = raw.as_ptr();
        Some(Namespace {
            raw,
            nsid,
            // SAFETY: the namespace lives as long as its controller; so below.
            block_bytes: unsafe { sys::spdk_nvme_ns_get_sector_size(ns) },
            // SAFETY: see above.
            blocks: unsafe { sys::spdk_nvme_ns_get_num_sectors(ns) },
            // SAFETY: see above.
            nguid: identifier(unsafe { sys::spdk_nvme_ns_get_nguid(ns) }.cast()),
            // SAFETY: see above.
            uuid: identifier(unsafe { sys::spdk_nvme_ns_get_uuid(ns) }.cast()),
            // SAFETY: see above.
            ana_group: unsafe { sys::spdk_nvme_ns_get_ana_group_id(ns) },
            _controller: self.clone(),
        })
    }

    /// Serves the admin queue: keep-alive, events. A few times per second.
    ///
    /// # Errors
    /// [`Error::Errno`] when the controller is gone.
    pub fn poll_admin(&self) -> Result<(), Error> {
        // SAFETY: connected.
        let rc = unsafe { sys::spdk_nvme_ctrlr_process_admin_completions(self.raw()) };
        check("spdk_nvme_ctrlr_process_admin_completions", rc.min(0))
    }

    /// Gives the controller up: nothing is sent to it any more, so that dropping its queue pairs
    /// and itself does not wait for answers. Commands under way end as aborted when their queue
    /// pair is dropped.
    pub fn give_up(&self) {
        // SAFETY: connected.
        unsafe { sys::spdk_nvme_ctrlr_fail(self.raw()) };
    }

    /// A queue pair for up to `depth` commands.
    ///
    /// # Errors
    /// [`Error::Null`] when the controller gives no more.
    pub fn queue_pair(&self, depth: u32) -> Result<QueuePair, Error> {
        let mut opts = sys::spdk_nvme_io_qpair_opts::default();
        let size = size_of::<sys::spdk_nvme_io_qpair_opts>();
        // SAFETY: connected; a valid structure and its size.
        unsafe { sys::spdk_nvme_ctrlr_get_default_io_qpair_opts(self.raw(), &mut opts, size) };
        opts.io_queue_size = opts.io_queue_size.max(depth + 1);
        opts.io_queue_requests = opts.io_queue_requests.max(2 * depth);
        // SAFETY: connected; the structure is copied.
        let raw = unsafe { sys::spdk_nvme_ctrlr_alloc_io_qpair(self.raw(), &opts, size) };
        let raw =
            NonNull::new(raw).ok_or(Error::Null { call: "spdk_nvme_ctrlr_alloc_io_qpair" })?;
        Ok(QueuePair { raw, _controller: self.clone(), _not_send: PhantomData })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the last holder; queue pairs and namespaces hold an `Rc`.
        unsafe { sys::spdk_nvme_detach(self.raw.as_ptr()) };
    }
}

/// A padded string of the identify page.
fn text(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().map(|c| c.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).trim_end_matches(['\0', ' ']).to_owned()
}

fn identifier(raw: *const [u8; 16]) -> Option<[u8; 16]> {
    // SAFETY: null, or sixteen bytes that live as long as the namespace.
    unsafe { raw.as_ref() }.copied().filter(|id| *id != [0; 16])
}

/// Command flags of a write or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Durable before the completion (FUA).
    pub const FUA: Self = Self(sys::SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS);
    /// First half of a compare-and-write.
    pub const FUSE_FIRST: Self = Self(sys::SPDK_NVME_CMD_FUSE_FIRST);
    /// Second half of a compare-and-write.
    pub const FUSE_SECOND: Self = Self(sys::SPDK_NVME_CMD_FUSE_SECOND);
}

/// A queue pair. Commands take an [`IoBuf`] that is not reused before their
/// completion was seen, and a context that comes back in [`Done`].
#[derive(Debug)]
pub struct QueuePair {
    raw: NonNull<sys::spdk_nvme_qpair>,
    _controller: Controller,
    _not_send: PhantomData<*mut ()>,
}

impl QueuePair {
    /// Takes completions off the queue, up to `max` (0: all), into the thread's
    /// queues. Returns how many.
    ///
    /// # Errors
    /// [`Error::Errno`] when the connection is lost.
    #[inline]
    pub fn poll(&self, max: u32) -> Result<u32, Error> {
        // SAFETY: alive; so for all commands below.
        let rc = unsafe { sys::spdk_nvme_qpair_process_completions(self.raw.as_ptr(), max) };
        if rc < 0 {
            return Err(Error::Errno { call: "NVMe completions", errno: rc.abs() });
        }
        Ok(rc.cast_unsigned())
    }

    /// Reads at block `lba`.
    ///
    /// # Errors
    /// [`Submit`]; so for the other commands.
    pub fn read(&self, ns: &Namespace, buf: IoBuf, lba: u64, ctx: u64) -> Result<(), Submit> {
        let (raw, blocks, data) = ns.transfer(buf);
        let qpair = self.raw.as_ptr();
        let ctx = ctx as *mut c_void;
        // SAFETY: see `poll`; the memory stays mapped (`IoBuf`).
        submitted(unsafe {
            sys::spdk_nvme_ns_cmd_read(raw, qpair, data, lba, blocks, Some(on_done), ctx, 0)
        })
    }

    /// Writes at block `lba`.
    pub fn write(
        &self,
        ns: &Namespace,
        buf: IoBuf,
        lba: u64,
        flags: Flags,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (raw, blocks, data) = ns.transfer(buf);
        let qpair = self.raw.as_ptr();
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_nvme_ns_cmd_write(raw, qpair, data, lba, blocks, Some(on_done), ctx, flags.0)
        })
    }

    /// Compares with what is at block `lba`.
    pub fn compare(
        &self,
        ns: &Namespace,
        buf: IoBuf,
        lba: u64,
        flags: Flags,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (raw, blocks, data) = ns.transfer(buf);
        let qpair = self.raw.as_ptr();
        let ctx = ctx as *mut c_void;
        // SAFETY: see `read`.
        submitted(unsafe {
            sys::spdk_nvme_ns_cmd_compare(
                raw,
                qpair,
                data,
                lba,
                blocks,
                Some(on_done),
                ctx,
                flags.0,
            )
        })
    }

    /// Writes zeroes to `blocks` blocks.
    pub fn write_zeroes(
        &self,
        ns: &Namespace,
        lba: u64,
        blocks: u32,
        ctx: u64,
    ) -> Result<(), Submit> {
        let (raw, qpair) = (ns.raw.as_ptr(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `poll`.
        submitted(unsafe {
            sys::spdk_nvme_ns_cmd_write_zeroes(raw, qpair, lba, blocks, Some(on_done), ctx, 0)
        })
    }

    /// Deallocates ranges, each a first block and a count; up to 256.
    pub fn deallocate(
        &self,
        ns: &Namespace,
        ranges: &[(u64, u32)],
        ctx: u64,
    ) -> Result<(), Submit> {
        let ranges: Vec<sys::spdk_nvme_dsm_range> = ranges
            .iter()
            .map(|&(starting_lba, length)| sys::spdk_nvme_dsm_range {
                length,
                starting_lba,
                ..Default::default()
            })
            .collect();
        let Ok(count) = u16::try_from(ranges.len()) else { return Err(Submit::Refused(EINVAL)) };
        // SAFETY: see `poll`; the ranges are copied.
        submitted(unsafe {
            sys::spdk_nvme_ns_cmd_dataset_management(
                ns.raw.as_ptr(),
                self.raw.as_ptr(),
                sys::SPDK_NVME_DSM_ATTR_DEALLOCATE,
                ranges.as_ptr(),
                count,
                Some(on_done),
                ctx as *mut c_void,
            )
        })
    }

    /// Makes completed writes durable.
    pub fn flush(&self, ns: &Namespace, ctx: u64) -> Result<(), Submit> {
        let (raw, qpair) = (ns.raw.as_ptr(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `poll`.
        submitted(unsafe { sys::spdk_nvme_ns_cmd_flush(raw, qpair, Some(on_done), ctx) })
    }

    /// Sends a command without data exactly as given: for tests of how a target
    /// treats what it does not know.
    pub fn raw_command(
        &self,
        opcode: u8,
        nsid: u32,
        cdw10: [u32; 6],
        ctx: u64,
    ) -> Result<(), Submit> {
        let mut cmd = sys::spdk_nvme_cmd::default();
        cmd.set_opc(u16::from(opcode));
        cmd.nsid = nsid;
        cmd.__bindgen_anon_1.cdw10 = cdw10[0];
        cmd.__bindgen_anon_2.cdw11 = cdw10[1];
        cmd.__bindgen_anon_3.cdw12 = cdw10[2];
        cmd.__bindgen_anon_4.cdw13 = cdw10[3];
        cmd.cdw14 = cdw10[4];
        cmd.cdw15 = cdw10[5];
        let (ctrlr, qpair) = (self._controller.raw(), self.raw.as_ptr());
        let ctx = ctx as *mut c_void;
        // SAFETY: see `poll`; the command is copied and has no data.
        submitted(unsafe {
            sys::spdk_nvme_ctrlr_cmd_io_raw(
                ctrlr,
                qpair,
                &mut cmd,
                null_mut(),
                0,
                Some(on_done),
                ctx,
            )
        })
    }
}

const EINVAL: c_int = 22;

impl Namespace {
    /// The arguments that every command with data has.
    fn transfer(&self, buf: IoBuf) -> (*mut sys::spdk_nvme_ns, u32, *mut c_void) {
        debug_assert!(buf.len().is_multiple_of(self.block_bytes as usize), "partial block");
        let blocks = buf.len() / self.block_bytes as usize;
        (self.raw.as_ptr(), blocks as u32, buf.as_ptr().as_ptr().cast())
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: made by this thread; commands under way complete as aborted.
        unsafe { sys::spdk_nvme_ctrlr_free_io_qpair(self.raw.as_ptr()) };
    }
}

unsafe extern "C" fn on_done(ctx: *mut c_void, cpl: *const sys::spdk_nvme_cpl) {
    // SAFETY: SPDK passes the completion, valid during the call.
    let status = unsafe { cpl.as_ref() }.map_or(NvmeStatus::INTERNAL_DEVICE_ERROR, |cpl| {
        // SAFETY: `status_raw` covers the whole union.
        let raw = unsafe { cpl.__bindgen_anon_1.status_raw };
        // Phase tag in bit 0, status code in 8:1, status code type in 11:9.
        NvmeStatus::new(u32::from(raw >> 9) & 7, u32::from(raw >> 1) & 0xff)
    });
    push_done(Done { ctx: ctx as u64, status });
}
