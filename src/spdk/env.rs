//! The environment: one EAL per process for SPDK and DPDK, hugepage memory,
//! and the registration of threads that DPDK did not start.
//!
//! Hugepages are taken as anonymous memory files (`--in-memory`): nothing is
//! left in hugetlbfs when a process is killed, and processes cannot collide by
//! name. All segments of a size share few files, as memif and vfio-user need to
//! pass them to peers.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{Error, check, cstring};
pub use super::log::LogLevel;
use super::sys;
use crate::dpdk::sys as dpdk_sys;

// SAFETY: `_exit(2)` takes any number and has no other argument; POSIX gives it this signature.
unsafe extern "C" {
    safe fn _exit(status: c_int) -> !;
}

/// Ends the process at once, without exit handlers and destructors of libraries: those take down what
/// threads of SPDK and DPDK that still run are using. From any thread; what was written to a `File` or to
/// standard error is written, standard output is to be flushed before.
pub fn end_process(code: i32) -> ! {
    _exit(code)
}

/// What `Env::init` needs.
#[derive(Debug, Clone, Default)]
pub struct EnvConfig {
    /// Process name, shown in EAL's messages.
    pub name: String,
    /// The core of the calling thread (EAL's main lcore); it is pinned there.
    pub core: usize,
    /// Hugepage memory taken at start, in MiB; 0 takes pages as they are needed.
    pub hugepage_mib: u32,
    /// EAL's file prefix; `None` makes one from the process id.
    pub file_prefix: Option<String>,
    /// No PCI scan: no NICs, no NVMe controllers on the bus.
    pub no_pci: bool,
    /// The only PCI devices that may be used (`0000:3b:00.0`); empty allows all.
    pub pci_allowed: Vec<String>,
    /// Virtual devices as EAL arguments (`net_memif0,role=server,...`).
    pub vdevs: Vec<String>,
    /// Messages that SPDK threads may have in flight between them; 0 for 16383.
    pub messages: usize,
    /// How much SPDK logs.
    pub log_level: LogLevel,
}

static INITIALISED: AtomicBool = AtomicBool::new(false);

/// The environment of this process. It is made once, by the control thread;
/// that thread drops it after every other user of SPDK and DPDK has ended.
#[derive(Debug)]
pub struct Env {
    _not_send: PhantomData<*mut ()>,
}

impl Env {
    /// Starts EAL and SPDK's environment and thread library. Pins the calling
    /// thread to `config.core`; threads spawned later inherit that and pin
    /// themselves elsewhere.
    ///
    /// # Errors
    /// [`Error::Misuse`] the second time in a process (EAL cannot restart);
    /// [`Error::Errno`] when EAL refuses: too few hugepages, an unknown virtual
    /// device, a core that does not exist. EAL's own message is on stderr.
    pub fn init(config: &EnvConfig) -> Result<Self, Error> {
        if INITIALISED.swap(true, Ordering::SeqCst) {
            return Err(Error::Misuse("the SPDK environment was initialised before"));
        }
        super::log::open(config.log_level);
        let name = cstring("process name", &config.name)?;
        let core = cstring("core", &format!("[{}]", config.core))?;
        let context = cstring("EAL arguments", &eal_arguments(config))?;
        let mut allowed = pci_addresses(&config.pci_allowed)?;

        let mut opts =
            sys::spdk_env_opts { opts_size: size_of::<sys::spdk_env_opts>(), ..Default::default() };
        // SAFETY: `opts` is a valid struct whose size is set.
        unsafe { sys::spdk_env_opts_init(&mut opts) };
        opts.name = name.as_ptr();
        opts.core_mask = core.as_ptr();
        opts.shm_id = -1;
        opts.mem_size = if config.hugepage_mib == 0 { -1 } else { config.hugepage_mib as c_int };
        opts.no_pci = config.no_pci;
        opts.hugepage_single_segments = true;
        opts.env_context = context.as_ptr().cast_mut().cast();
        if !allowed.is_empty() {
            opts.num_pci_addr = allowed.len();
            opts.pci_allowed = allowed.as_mut_ptr();
        }
        // SAFETY: every pointer in `opts` outlives the call, which copies them.
        check("spdk_env_init", unsafe { sys::spdk_env_init(&opts) })?;
        let messages = if config.messages == 0 { 16383 } else { config.messages };
        // SAFETY: the environment is up; no thread callbacks are given.
        let rc = unsafe { sys::spdk_thread_lib_init_ext(None, None, 0, messages) };
        check("spdk_thread_lib_init_ext", rc)?;
        Ok(Self { _not_send: PhantomData })
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: by the type's contract no SPDK thread is left.
        unsafe { sys::spdk_thread_lib_fini() };
        // SAFETY: the thread that initialised EAL ends it.
        unsafe { sys::spdk_env_fini() };
        // EAL leaves an empty directory, by the name that SPDK gives it.
        let directory = format!("/var/run/dpdk/spdk_pid{}", std::process::id());
        let _ = std::fs::remove_dir(directory);
    }
}

fn eal_arguments(config: &EnvConfig) -> String {
    let mut args = String::from("--in-memory");
    if let Some(prefix) = &config.file_prefix {
        args += &format!(" --file-prefix={prefix}");
    }
    for vdev in &config.vdevs {
        args += &format!(" --vdev={vdev}");
    }
    args
}

fn pci_addresses(texts: &[String]) -> Result<Vec<sys::spdk_pci_addr>, Error> {
    texts
        .iter()
        .map(|text| {
            let text = cstring("PCI address", text)?;
            let mut addr = sys::spdk_pci_addr::default();
            // SAFETY: a valid destination and a NUL-terminated string.
            let rc = unsafe { sys::spdk_pci_addr_parse(&mut addr, text.as_ptr()) };
            check("spdk_pci_addr_parse", rc).map(|()| addr)
        })
        .collect()
}

/// The constant time stamp counter, in ticks.
#[inline]
pub fn tsc_now() -> u64 {
    // SAFETY: RDTSC has no preconditions.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks of [`tsc_now`] per second; 0 before [`Env::init`].
pub fn tsc_hz() -> u64 {
    // SAFETY: reads a variable that EAL set.
    unsafe { sys::spdk_get_ticks_hz() }
}

/// Makes a thread that DPDK did not start known to it for as long as this
/// lives, so that memory pools give it a cache of its own.
#[derive(Debug)]
pub struct EalThread {
    _not_send: PhantomData<*mut ()>,
}

impl EalThread {
    /// Registers the calling thread.
    ///
    /// # Errors
    /// [`Error::Misuse`] when EAL has no lcore id left (128 by default) or is
    /// not up.
    pub fn register() -> Result<Self, Error> {
        // SAFETY: may be called by any thread that is not an EAL thread.
        let rc = unsafe { dpdk_sys::rte_thread_register() };
        if rc != 0 {
            return Err(Error::Misuse("DPDK has no lcore id left for this thread"));
        }
        Ok(Self { _not_send: PhantomData })
    }
}

impl Drop for EalThread {
    fn drop(&mut self) {
        // SAFETY: this thread registered itself.
        unsafe { dpdk_sys::rte_thread_unregister() };
    }
}

/// Hugepage memory, zeroed, fit for DMA and for passing to a peer process.
/// Owned; freed when dropped, by any thread.
#[derive(Debug)]
pub struct DmaBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner; spdk_free may be called by any thread.
unsafe impl Send for DmaBuf {}
// SAFETY: shared access is `&[u8]` only.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// Allocates `len` bytes at a multiple of `align` (a power of two).
    ///
    /// # Errors
    /// [`Error::Null`] when hugepages do not suffice.
    pub fn new(len: usize, align: usize) -> Result<Self, Error> {
        // SAFETY: no preconditions; NUMA node -1 is "any".
        let ptr = unsafe {
            sys::spdk_zmalloc(len, align, std::ptr::null_mut(), -1, sys::SPDK_MALLOC_DMA)
        };
        let ptr = NonNull::new(ptr.cast()).ok_or(Error::Null { call: "spdk_zmalloc" })?;
        Ok(Self { ptr, len })
    }

    /// The memory, for an I/O. Whoever starts one keeps the buffer until it completed.
    pub fn io_buf(&self) -> IoBuf {
        IoBuf { ptr: self.ptr, len: self.len }
    }

    /// Gives the memory to the process for good: it may then be the source and
    /// target of I/O without anybody having to keep it alive.
    pub fn leak(self) -> IoBuf {
        let buf = IoBuf { ptr: self.ptr, len: self.len };
        std::mem::forget(self);
        buf
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: from spdk_zmalloc, freed once.
        unsafe { sys::spdk_free(self.ptr.as_ptr().cast()) };
    }
}

impl std::ops::Deref for DmaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for DmaBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for DmaBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl std::ops::DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

/// A range of memory that stays mapped until the environment ends, used as the
/// source or target of I/O. While an I/O is under way a device may read or
/// write it at any time, so Rust reaches it by copies only.
///
/// Whoever hands one to an I/O decides when the range is reused: not before
/// the completion was seen.
#[derive(Debug, Clone, Copy)]
pub struct IoBuf {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; all access is by raw copies.
unsafe impl Send for IoBuf {}
// SAFETY: as above.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// A range of memory that somebody else allocated.
    ///
    /// # Safety
    /// The memory is from SPDK's or DPDK's allocator (or registered with it)
    /// and stays mapped until the environment ends.
    pub unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// The sub-range of `len` bytes at `offset`; panics when it does not fit.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "sub-range exceeds the buffer");
        // SAFETY: within the range, by the assertion.
        let ptr = unsafe { self.ptr.add(offset) };
        Self { ptr, len }
    }

    /// Copies `src` to `offset`; panics when it does not fit.
    pub fn copy_in(&self, offset: usize, src: &[u8]) {
        let dst = self.slice(offset, src.len());
        // SAFETY: `dst` is mapped and as long as `src`; Rust memory and DMA
        // memory that is not borrowed cannot overlap.
        unsafe { dst.ptr.as_ptr().copy_from_nonoverlapping(src.as_ptr(), src.len()) };
    }

    /// Copies from `offset` into `dst`; panics when it does not fit.
    pub fn copy_out(&self, offset: usize, dst: &mut [u8]) {
        let src = self.slice(offset, dst.len());
        // SAFETY: as `copy_in`, the other way.
        unsafe { src.ptr.as_ptr().copy_to_nonoverlapping(dst.as_mut_ptr(), dst.len()) };
    }
}
