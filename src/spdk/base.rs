//! Making the block devices that volumes and journals stand on: NVMe by PCI
//! address, TCP or vfio-user, files through Linux aio or io_uring, memory.
//!
//! NVMe is attached through SPDK's public functions; what has none goes through
//! SPDK's configuration methods. All on the app thread.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use serde_json::json;

use super::address::Address;
use super::error::{Error, check, cstring};
use super::op::{Op, Pump};
use super::subsystem::Subsystems;
use super::sys;

/// What a base device is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base<'a> {
    /// Hugepage memory; gone with the process.
    Malloc {
        /// Blocks.
        blocks: u64,
        /// Bytes per block.
        block_bytes: u32,
    },
    /// An existing file or kernel block device through Linux aio.
    Aio {
        /// Its path.
        path: &'a Path,
        /// Bytes per block.
        block_bytes: u32,
    },
    /// The same through io_uring.
    Uring {
        /// Its path.
        path: &'a Path,
        /// Bytes per block.
        block_bytes: u32,
    },
}

/// Who this initiator is to a target. A target's reservations know hosts by `id` alone, so each
/// mover has its own, the same after every restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its NQN, which access lists name.
    pub nqn: String,
    /// Its 128-bit host identifier, not 0.
    pub id: [u8; 16],
}

impl Subsystems {
    /// Makes the block device `name`.
    ///
    /// # Errors
    /// [`Error::Errno`]: the name is taken, the file cannot be opened (SPDK's
    /// log has the reason), hugepages do not suffice.
    pub fn create_base(&self, name: &str, base: &Base<'_>, pump: Pump<'_>) -> Result<(), Error> {
        let (method, params) = match base {
            Base::Malloc { blocks, block_bytes } => (
                "bdev_malloc_create",
                json!({ "name": name, "num_blocks": blocks, "block_size": block_bytes }),
            ),
            Base::Aio { path, block_bytes } => (
                "bdev_aio_create",
                json!({ "name": name, "filename": path, "block_size": block_bytes }),
            ),
            Base::Uring { path, block_bytes } => (
                "bdev_uring_create",
                json!({ "name": name, "filename": path, "block_size": block_bytes }),
            ),
        };
        self.configure(method, &params.to_string(), pump)
    }

    /// Removes a device made by [`Subsystems::create_base`].
    ///
    /// # Errors
    /// [`Error::Errno`] when there is none of that name and kind.
    pub fn delete_base(&self, name: &str, base: &Base<'_>, pump: Pump<'_>) -> Result<(), Error> {
        let method = match base {
            Base::Malloc { .. } => "bdev_malloc_delete",
            Base::Aio { .. } => "bdev_aio_delete",
            Base::Uring { .. } => "bdev_uring_delete",
        };
        self.configure(method, &json!({ "name": name }).to_string(), pump)
    }

    /// Attaches an NVMe controller as `name`; each of its namespaces becomes a
    /// block device, whose names (`<name>n1` ...) are returned. `nqn` selects the
    /// subsystem of a target, `host` is who we say we are.
    ///
    /// # Errors
    /// [`Error::Errno`]: nothing answers there, or it refuses us.
    pub fn attach_nvme(
        &self,
        name: &str,
        address: &Address,
        nqn: Option<&str>,
        host: Option<&HostIdentity>,
        pump: Pump<'_>,
    ) -> Result<Vec<String>, Error> {
        const CALL: &str = "spdk_bdev_nvme_create";
        let name = cstring("controller name", name)?;
        let mut id = address.raw(nqn)?;
        let mut driver = sys::spdk_nvme_ctrlr_opts::default();
        let size = size_of::<sys::spdk_nvme_ctrlr_opts>();
        // SAFETY: a valid structure and its size.
        unsafe { sys::spdk_nvme_ctrlr_get_default_ctrlr_opts(&mut driver, size) };
        if let Some(HostIdentity { nqn, id }) = host {
            let host = cstring("host NQN", nqn)?;
            // The 64-bit form is for PCIe controllers that have no other.
            driver.extended_host_id = *id;
            driver.host_id.copy_from_slice(&id[..8]);
            let room = driver.hostnqn.len() - 1;
            driver.hostnqn.fill(0);
            for (to, from) in driver.hostnqn.iter_mut().zip(host.as_bytes().iter().take(room)) {
                *to = from.cast_signed();
            }
        }
        let mut options = sys::spdk_bdev_nvme_ctrlr_opts::default();
        // SAFETY: a valid structure.
        unsafe { sys::spdk_bdev_nvme_get_default_ctrlr_opts(&mut options) };
        let mut names: Vec<*const c_char> = vec![std::ptr::null(); NAMESPACES_MAX];
        let op = Op::<(usize, c_int)>::new();
        let ctx = op.context();
        // SAFETY: `names` outlives the wait below, the rest is copied.
        let rc = unsafe {
            sys::spdk_bdev_nvme_create(
                &mut id,
                name.as_ptr(),
                names.as_mut_ptr(),
                NAMESPACES_MAX as u32,
                Some(on_attached),
                ctx,
                &mut driver,
                &mut options,
            )
        };
        if rc != 0 {
            // SAFETY: refused, so the callback does not come.
            unsafe { Op::<(usize, c_int)>::disown(ctx) };
            check(CALL, rc)?;
        }
        let outcome = op.wait("attaching an NVMe controller", pump);
        let (count, status) = match outcome {
            Ok(outcome) => outcome,
            Err(late) => {
                // SPDK may still write names when it completes: they must stay.
                std::mem::forget(names);
                return Err(late);
            }
        };
        check(CALL, status)?;
        Ok(names.into_iter().take(count).filter_map(owned).collect())
    }

    /// Detaches a controller and removes its block devices.
    ///
    /// # Errors
    /// [`Error::Errno`] when there is none of that name.
    pub fn detach_nvme(&self, name: &str, pump: Pump<'_>) -> Result<(), Error> {
        // The public function wants a path id, whose structure is not public.
        let params = json!({ "name": name }).to_string();
        self.configure("bdev_nvme_detach_controller", &params, pump)
    }
}

/// Namespaces of one controller that get a block device.
const NAMESPACES_MAX: usize = 256;

fn owned(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SPDK's own name of an existing device.
    Some(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

unsafe extern "C" fn on_attached(ctx: *mut c_void, count: usize, rc: c_int) {
    // SAFETY: the context of an operation of this type.
    unsafe { Op::finish(ctx, (count, rc)) }
}
