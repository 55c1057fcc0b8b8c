//! SPDK's libraries below the NVMe-oF target: block devices, sockets, buffer
//! pools, acceleration, keys. Started and ended on the app thread, driven by the
//! caller's polling.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::error::{Error, check};
use super::op::{Op, Pump, done_plain};
use super::{sys, tap};

/// Sizes of SPDK's pools. The defaults take about 65 MiB of hugepages.
#[derive(Debug, Clone)]
pub struct Config {
    /// Block I/O requests of the whole process: the bound on everything that is
    /// under way at taps and bases.
    pub bdev_ios: u32,
    /// Buffers of 8 KiB, for hosts that come over TCP and for bounce buffers.
    pub small_buffers: u64,
    /// Buffers of 132 KiB, for the same.
    pub large_buffers: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bdev_ios: 8191, small_buffers: 2048, large_buffers: 256 }
    }
}

/// SPDK's subsystems, running. Ended by [`Subsystems::stop`].
#[derive(Debug)]
pub struct Subsystems {
    _not_send: PhantomData<*mut ()>,
}

impl Subsystems {
    /// Starts all subsystems. The current SPDK thread must be the app thread.
    ///
    /// # Errors
    /// [`Error::Errno`] when a subsystem fails, mostly for want of hugepages.
    pub fn start(config: &Config, pump: Pump<'_>) -> Result<Self, Error> {
        set_pools(config)?;
        // io_uring sockets would take precedence; plain ones need no ring memory.
        // SPDK keeps the name's content, not the pointer.
        // SAFETY: a NUL-terminated string.
        let rc = unsafe { sys::spdk_sock_set_default_impl(c"posix".as_ptr()) };
        check("spdk_sock_set_default_impl", rc)?;
        tap::register_module();
        let op = Op::<i32>::new();
        // SAFETY: on the app thread; the callback gets the operation's context.
        unsafe { sys::spdk_subsystem_init(Some(on_init), op.context()) };
        check("spdk_subsystem_init", op.wait("start of SPDK's subsystems", pump)?)?;
        // SAFETY: plain state of the RPC library, used by `configure`.
        unsafe { sys::spdk_rpc_set_state(sys::SPDK_RPC_RUNTIME) };
        Ok(Self { _not_send: PhantomData })
    }

    /// Runs SPDK configuration methods, each a name and a JSON object of
    /// parameters as SPDK documents them for its JSON-RPC.
    ///
    /// # Errors
    /// [`Error::Errno`] when one fails; SPDK's log has the reason.
    pub fn configure(&self, method: &str, params: &str, pump: Pump<'_>) -> Result<(), Error> {
        let json = format!(
            r#"{{"subsystems":[{{"subsystem":"bdev","config":[{{"method":"{method}","params":{params}}}]}}]}}"#
        );
        let op = Op::<i32>::new();
        // SAFETY: the text is copied; the callback gets the operation's context.
        unsafe {
            sys::spdk_subsystem_load_config(
                json.as_ptr().cast_mut().cast(),
                json.len() as isize,
                Some(on_init),
                op.context(),
                true,
            );
        }
        check("configuration of an SPDK block device", op.wait("configuration of SPDK", pump)?)
    }

    /// Ends all subsystems: remaining block devices are removed. Channels and
    /// descriptors must have been released.
    ///
    /// # Errors
    /// [`Error::Timeout`] when something still holds a device.
    pub fn stop(self, pump: Pump<'_>) -> Result<(), Error> {
        let op = Op::<()>::new();
        // SAFETY: on the app thread, after a successful start.
        unsafe { sys::spdk_subsystem_fini(Some(done_plain), op.context()) };
        op.wait("end of SPDK's subsystems", pump)
    }
}

unsafe extern "C" fn on_init(rc: i32, ctx: *mut c_void) {
    // SAFETY: `ctx` is the context of an `Op<i32>`.
    unsafe { Op::finish(ctx, rc) }
}

fn set_pools(config: &Config) -> Result<(), Error> {
    let mut iobuf = sys::spdk_iobuf_opts::default();
    // SAFETY: a valid struct and its size.
    unsafe { sys::spdk_iobuf_get_opts(&mut iobuf, size_of::<sys::spdk_iobuf_opts>()) };
    iobuf.small_pool_count = config.small_buffers;
    iobuf.large_pool_count = config.large_buffers;
    // SAFETY: filled by SPDK above; the subsystems are not up yet.
    check("spdk_iobuf_set_opts", unsafe { sys::spdk_iobuf_set_opts(&iobuf) })?;

    let mut bdev = sys::spdk_bdev_opts::default();
    // SAFETY: a valid struct and its size.
    unsafe { sys::spdk_bdev_get_opts(&mut bdev, size_of::<sys::spdk_bdev_opts>()) };
    bdev.bdev_io_pool_size = config.bdev_ios;
    // Nothing may examine, let alone claim, a volume's base by itself.
    bdev.bdev_auto_examine = false;
    // SAFETY: as for the buffers.
    check("spdk_bdev_set_opts", unsafe { sys::spdk_bdev_set_opts(&mut bdev) })
}
