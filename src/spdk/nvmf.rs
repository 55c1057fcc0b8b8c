//! The NVMe-oF target inside the process: transports, poll groups on the
//! pollers' threads, subsystems with namespaces and listeners.
//!
//! Everything but poll groups is created, changed and removed on the app
//! thread. A poll group lives on the SPDK thread that created it and takes its
//! share of the hosts' connections. Order of the end: stop and destroy
//! subsystems, stop listening, destroy poll groups, destroy the target.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::ptr::{NonNull, null};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::address::Address;
use super::error::{Error, check, cstring};
use super::op::{Op, Pump, done_status};
use super::sys;

/// Kinds of transport that hosts come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportKind {
    /// NVMe/TCP.
    Tcp,
    /// vfio-user: processes and virtual machines on this machine.
    VfioUser,
}

/// Options of a transport; zero takes SPDK's default.
#[derive(Debug, Clone, Default)]
pub struct TransportConfig {
    /// Commands a queue holds.
    pub queue_depth: u16,
    /// Largest transfer in bytes; hosts learn it as MDTS.
    pub max_io_bytes: u32,
    /// Write data that may come inside the command (TCP), in bytes.
    pub in_capsule_bytes: u32,
    /// Buffers of the pool that this transport may use (TCP).
    pub shared_buffers: u32,
    /// Buffers that each poll group keeps for itself (TCP).
    pub buffer_cache: u32,
}

/// An NVMe-oF target.
#[derive(Debug)]
pub struct Target {
    raw: NonNull<sys::spdk_nvmf_tgt>,
    groups: Arc<AtomicUsize>,
    _not_send: PhantomData<*mut ()>,
}

impl Target {
    /// Creates a target with room for `max_subsystems`.
    ///
    /// # Errors
    /// [`Error::Null`] when the name is taken or memory does not suffice.
    pub fn create(name: &str, max_subsystems: u32) -> Result<Self, Error> {
        let mut opts = sys::spdk_nvmf_target_opts {
            size: size_of::<sys::spdk_nvmf_target_opts>(),
            max_subsystems,
            ..Default::default()
        };
        let name = cstring("target name", name)?;
        let room = opts.name.len() - 1;
        for (to, from) in opts.name.iter_mut().zip(name.as_bytes().iter().take(room)) {
            *to = from.cast_signed();
        }
        // SAFETY: a filled structure, copied.
        let raw = unsafe { sys::spdk_nvmf_tgt_create(&mut opts) };
        let raw = NonNull::new(raw).ok_or(Error::Null { call: "spdk_nvmf_tgt_create" })?;
        Ok(Self { raw, groups: Arc::default(), _not_send: PhantomData })
    }

    /// Adds a transport; once per kind, before listening on it.
    ///
    /// # Errors
    /// [`Error::Errno`], [`Error::Null`] when buffers or hugepages do not suffice.
    pub fn add_transport(
        &self,
        kind: TransportKind,
        config: &TransportConfig,
        pump: Pump<'_>,
    ) -> Result<(), Error> {
        let name = match kind {
            TransportKind::Tcp => c"TCP",
            TransportKind::VfioUser => c"VFIOUSER",
        };
        let opts = sys::setline_transport_opts {
            max_queue_depth: config.queue_depth,
            max_io_size: config.max_io_bytes,
            in_capsule_data_size: config.in_capsule_bytes,
            num_shared_buffers: config.shared_buffers,
            buf_cache_size: config.buffer_cache,
            ..Default::default()
        };
        let op = Op::<*mut sys::spdk_nvmf_transport>::new();
        let ctx = op.context();
        // SAFETY: valid pointers; the callback gets the operation's context.
        let rc = unsafe {
            sys::setline_nvmf_transport_create(name.as_ptr(), &opts, Some(on_transport), ctx)
        };
        if rc != 0 {
            // SAFETY: the call failed, so the callback does not come.
            unsafe { Op::<*mut sys::spdk_nvmf_transport>::disown(ctx) };
            check("spdk_nvmf_transport_create_async", rc)?;
        }
        let transport = op.wait("creation of an NVMe-oF transport", &mut *pump)?;
        if transport.is_null() {
            return Err(Error::Null { call: "spdk_nvmf_transport_create_async" });
        }
        let op = Op::<i32>::new();
        // SAFETY: both alive; the target owns the transport from here on.
        unsafe {
            sys::spdk_nvmf_tgt_add_transport(
                self.raw.as_ptr(),
                transport,
                Some(done_status),
                op.context(),
            );
        }
        check("spdk_nvmf_tgt_add_transport", op.wait("adding an NVMe-oF transport", pump)?)
    }

    /// Listens on `address`; a vfio-user directory is made, stale sockets in it
    /// are removed.
    ///
    /// # Errors
    /// [`Error::Errno`]: the address is in use, or the transport was not added.
    pub fn listen(&self, address: &Address) -> Result<(), Error> {
        if let Address::VfioUser(dir) = address {
            std::fs::create_dir_all(dir).map_err(|e| Error::Errno {
                call: "creating the vfio-user directory",
                errno: e.raw_os_error().unwrap_or(0),
            })?;
            for name in ["cntrl", "bar0"] {
                let _ = std::fs::remove_file(dir.join(name));
            }
        }
        let id = address.raw(None)?;
        let mut opts = sys::spdk_nvmf_listen_opts::default();
        let size = size_of::<sys::spdk_nvmf_listen_opts>();
        // SAFETY: a valid structure and its size.
        unsafe { sys::spdk_nvmf_listen_opts_init(&mut opts, size) };
        // SAFETY: the target is alive; the structures are copied.
        let rc = unsafe { sys::spdk_nvmf_tgt_listen_ext(self.raw.as_ptr(), &id, &mut opts) };
        check("spdk_nvmf_tgt_listen_ext", rc)
    }

    /// Stops listening.
    ///
    /// # Errors
    /// [`Error::Errno`] when the target does not listen there.
    pub fn stop_listen(&self, address: &Address) -> Result<(), Error> {
        let id = address.raw(None)?;
        // SAFETY: the target is alive; the structure is only read.
        let rc = unsafe { sys::spdk_nvmf_tgt_stop_listen(self.raw.as_ptr(), &id) };
        check("spdk_nvmf_tgt_stop_listen", rc)
    }

    /// What pollers make their poll groups from.
    pub fn groups(&self) -> GroupFactory {
        GroupFactory { target: self.raw, groups: Arc::clone(&self.groups) }
    }

    /// Creates a subsystem; inactive until [`Subsystem::start`].
    ///
    /// # Errors
    /// [`Error::Null`] when the NQN is malformed or taken; [`Error::Errno`] when
    /// a member of `config` is refused.
    pub fn subsystem(&self, config: &SubsystemConfig) -> Result<Subsystem, Error> {
        let nqn = cstring("NQN", &config.nqn)?;
        let serial = cstring("serial number", &config.serial)?;
        let model = cstring("model number", &config.model)?;
        // SAFETY: the target is alive; strings are copied.
        let raw = unsafe {
            sys::spdk_nvmf_subsystem_create(
                self.raw.as_ptr(),
                nqn.as_ptr(),
                sys::SPDK_NVMF_SUBTYPE_NVME,
                config.max_namespaces,
            )
        };
        let raw = NonNull::new(raw).ok_or(Error::Null { call: "spdk_nvmf_subsystem_create" })?;
        let subsystem = Subsystem { raw, _not_send: PhantomData };
        let raw = raw.as_ptr();
        let (low, high) = (*config.cntlids.start(), *config.cntlids.end());
        // SAFETY: the subsystem was just created and is inactive; so below.
        check("serial number", unsafe { sys::spdk_nvmf_subsystem_set_sn(raw, serial.as_ptr()) })?;
        // SAFETY: see above.
        check("model number", unsafe { sys::spdk_nvmf_subsystem_set_mn(raw, model.as_ptr()) })?;
        // SAFETY: see above.
        let rc = unsafe { sys::spdk_nvmf_subsystem_set_cntlid_range(raw, low, high) };
        check("spdk_nvmf_subsystem_set_cntlid_range", rc)?;
        // SAFETY: see above.
        let rc = unsafe { sys::spdk_nvmf_subsystem_set_ana_reporting(raw, config.ana_reporting) };
        check("spdk_nvmf_subsystem_set_ana_reporting", rc)?;
        Ok(subsystem)
    }

    /// Destroys the target and its transports.
    ///
    /// # Errors
    /// [`Error::Misuse`] while poll groups exist (the target then stays);
    /// [`Error::Timeout`].
    pub fn destroy(self, pump: Pump<'_>) -> Result<(), Error> {
        if self.groups.load(Ordering::SeqCst) != 0 {
            return Err(Error::Misuse("poll groups must be destroyed before their target"));
        }
        let op = Op::<i32>::new();
        // SAFETY: alive, without poll groups; `self` is given up.
        unsafe { sys::spdk_nvmf_tgt_destroy(self.raw.as_ptr(), Some(done_status), op.context()) };
        check("spdk_nvmf_tgt_destroy", op.wait("end of the NVMe-oF target", pump)?)
    }
}

unsafe extern "C" fn on_transport(ctx: *mut c_void, transport: *mut sys::spdk_nvmf_transport) {
    // SAFETY: the context of an operation of this type.
    unsafe { Op::finish(ctx, transport) }
}

/// Makes a poll group on whichever thread uses it.
#[derive(Debug, Clone)]
pub struct GroupFactory {
    target: NonNull<sys::spdk_nvmf_tgt>,
    groups: Arc<AtomicUsize>,
}

// SAFETY: poll groups are made by any SPDK thread; the count keeps the target
// alive while one exists, and pollers start before the target is destroyed.
unsafe impl Send for GroupFactory {}

impl GroupFactory {
    /// Creates the current SPDK thread's poll group. Its work is done by the
    /// thread's ordinary polling.
    ///
    /// # Errors
    /// [`Error::Null`] when memory does not suffice.
    pub fn create(&self) -> Result<PollGroup, Error> {
        self.groups.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the target is alive (see `Send`); an SPDK thread is current.
        let raw = unsafe { sys::spdk_nvmf_poll_group_create(self.target.as_ptr()) };
        let Some(raw) = NonNull::new(raw) else {
            self.groups.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::Null { call: "spdk_nvmf_poll_group_create" });
        };
        Ok(PollGroup { raw, groups: Arc::clone(&self.groups), _not_send: PhantomData })
    }
}

/// One thread's share of the connections.
#[derive(Debug)]
pub struct PollGroup {
    raw: NonNull<sys::spdk_nvmf_poll_group>,
    groups: Arc<AtomicUsize>,
    _not_send: PhantomData<*mut ()>,
}

impl PollGroup {
    /// Disconnects the hosts of this group and destroys it. `pump` polls this
    /// thread; the app thread must be polled meanwhile by its owner.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Errno`].
    pub fn destroy(self, pump: Pump<'_>) -> Result<(), Error> {
        let op = Op::<i32>::new();
        let ctx = op.context();
        // SAFETY: created by this thread, destroyed once.
        unsafe { sys::spdk_nvmf_poll_group_destroy(self.raw.as_ptr(), Some(done_status), ctx) };
        let status = op.wait("end of an NVMe-oF poll group", pump)?;
        self.groups.fetch_sub(1, Ordering::SeqCst);
        check("spdk_nvmf_poll_group_destroy", status)
    }
}

/// What a subsystem is. Movers that form one subsystem for a multipath host
/// share all of it but the controller ids, which must be disjoint.
#[derive(Debug, Clone)]
pub struct SubsystemConfig {
    /// NVMe qualified name (`nqn.2026-11.io.example:name`).
    pub nqn: String,
    /// Serial number, up to 20 characters.
    pub serial: String,
    /// Model number, up to 40 characters.
    pub model: String,
    /// Largest namespace id.
    pub max_namespaces: u32,
    /// Controller ids this target may give out, within 1 to 0xffef.
    pub cntlids: RangeInclusive<u16>,
    /// Tell hosts about paths (asymmetric namespace access).
    pub ana_reporting: bool,
}

/// A namespace of a subsystem.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// Block device behind it.
    pub bdev: String,
    /// Namespace id, from 1.
    pub nsid: u32,
    /// Identity; the same on every path and after every restart.
    pub nguid: [u8; 16],
    /// The same as a UUID.
    pub uuid: [u8; 16],
    /// Group of namespaces whose path state changes together, from 1.
    pub ana_group: u32,
}

/// How good a path is (NVM Express Base Specification, "ANA states"), the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnaState {
    /// The best path.
    Optimized,
    /// Works, with a detour.
    NonOptimized,
    /// Refuses commands; hosts use another path. To a host also everything else that is not good.
    Inaccessible,
}

impl AnaState {
    fn raw(self) -> sys::spdk_nvme_ana_state {
        match self {
            Self::Optimized => sys::SPDK_NVME_ANA_OPTIMIZED_STATE,
            Self::NonOptimized => sys::SPDK_NVME_ANA_NON_OPTIMIZED_STATE,
            Self::Inaccessible => sys::SPDK_NVME_ANA_INACCESSIBLE_STATE,
        }
    }
}

/// A subsystem of a [`Target`]. Its members are changed before
/// [`Subsystem::start`] or between [`Subsystem::pause`] and
/// [`Subsystem::resume`].
#[derive(Debug)]
pub struct Subsystem {
    raw: NonNull<sys::spdk_nvmf_subsystem>,
    _not_send: PhantomData<*mut ()>,
}

type StateChange = unsafe extern "C" fn(
    *mut sys::spdk_nvmf_subsystem,
    sys::spdk_nvmf_subsystem_state_change_done,
    *mut c_void,
) -> c_int;

impl Subsystem {
    /// Adds a namespace.
    ///
    /// # Errors
    /// [`Error::Null`]: the device does not exist or is claimed, or the id is
    /// taken or too large.
    pub fn add_namespace(&self, config: &NamespaceConfig) -> Result<(), Error> {
        let bdev = cstring("device name", &config.bdev)?;
        let mut opts = sys::spdk_nvmf_ns_opts::default();
        let size = size_of::<sys::spdk_nvmf_ns_opts>();
        // SAFETY: a valid structure and its size.
        unsafe { sys::spdk_nvmf_ns_opts_get_defaults(&mut opts, size) };
        opts.nsid = config.nsid;
        opts.nguid = config.nguid;
        // SAFETY: sixteen bytes, all of which the union covers.
        opts.uuid = unsafe { std::mem::transmute::<[u8; 16], sys::spdk_uuid>(config.uuid) };
        opts.anagrpid = config.ana_group;
        let raw = self.raw.as_ptr();
        // SAFETY: alive and not active; structures and strings are copied.
        let nsid =
            unsafe { sys::spdk_nvmf_subsystem_add_ns_ext(raw, bdev.as_ptr(), &opts, size, null()) };
        if nsid == 0 {
            return Err(Error::Null { call: "spdk_nvmf_subsystem_add_ns_ext" });
        }
        Ok(())
    }

    /// Removes a namespace.
    ///
    /// # Errors
    /// [`Error::Errno`] when there is none, or the subsystem is active.
    pub fn remove_namespace(&self, nsid: u32) -> Result<(), Error> {
        // SAFETY: alive.
        let rc = unsafe { sys::spdk_nvmf_subsystem_remove_ns(self.raw.as_ptr(), nsid) };
        check("spdk_nvmf_subsystem_remove_ns", rc)
    }

    /// Lets every host in, or only those of [`Subsystem::allow_host`].
    ///
    /// # Errors
    /// [`Error::Errno`].
    pub fn allow_any_host(&self, allow: bool) -> Result<(), Error> {
        // SAFETY: alive.
        let rc = unsafe { sys::spdk_nvmf_subsystem_set_allow_any_host(self.raw.as_ptr(), allow) };
        check("spdk_nvmf_subsystem_set_allow_any_host", rc)
    }

    /// Lets the host with this NQN in.
    ///
    /// # Errors
    /// [`Error::Errno`] when it is malformed.
    pub fn allow_host(&self, nqn: &str) -> Result<(), Error> {
        let nqn = cstring("host NQN", nqn)?;
        // SAFETY: alive; the string is copied.
        let rc =
            unsafe { sys::spdk_nvmf_subsystem_add_host(self.raw.as_ptr(), nqn.as_ptr(), null()) };
        check("spdk_nvmf_subsystem_add_host", rc)
    }

    /// Offers the subsystem at an address the target listens on; `state` is the
    /// path's state for all ANA groups.
    ///
    /// # Errors
    /// [`Error::Errno`].
    pub fn add_listener(
        &self,
        address: &Address,
        state: AnaState,
        pump: Pump<'_>,
    ) -> Result<(), Error> {
        let id = address.raw(None)?;
        let mut opts = sys::spdk_nvmf_listener_opts::default();
        let size = size_of::<sys::spdk_nvmf_listener_opts>();
        // SAFETY: a valid structure and its size.
        unsafe { sys::spdk_nvmf_subsystem_listener_opts_init(&mut opts, size) };
        opts.ana_state = state.raw();
        let op = Op::<i32>::new();
        // SAFETY: alive; structures are copied; the operation's context.
        unsafe {
            sys::spdk_nvmf_subsystem_add_listener_ext(
                self.raw.as_ptr(),
                &id,
                Some(done_status),
                op.context(),
                &mut opts,
            );
        }
        check("spdk_nvmf_subsystem_add_listener_ext", op.wait("adding a listener", pump)?)
    }

    /// Takes the subsystem off an address.
    ///
    /// # Errors
    /// [`Error::Errno`] when it is not offered there.
    pub fn remove_listener(&self, address: &Address) -> Result<(), Error> {
        let id = address.raw(None)?;
        // SAFETY: alive; the structure is only read.
        let rc = unsafe { sys::spdk_nvmf_subsystem_remove_listener(self.raw.as_ptr(), &id) };
        check("spdk_nvmf_subsystem_remove_listener", rc)
    }

    /// Changes the states of ANA groups' paths through each of `addresses`;
    /// hosts are told by an asynchronous event. Pauses the subsystem's
    /// administration around it, I/O goes on.
    ///
    /// # Errors
    /// [`Error::Errno`], [`Error::Timeout`]; what came before the one that
    /// failed has changed.
    pub fn change_ana_states(
        &self,
        addresses: &[Address],
        groups: &[(u32, AnaState)],
        pump: Pump<'_>,
    ) -> Result<(), Error> {
        self.pause(0, &mut *pump)?;
        let mut all = addresses.iter().flat_map(|address| groups.iter().map(move |g| (address, g)));
        let changed = all.try_for_each(|(address, (group, state))| {
            self.set_ana_state(address, *group, *state, &mut *pump)
        });
        self.resume(pump)?;
        changed
    }

    /// Sets the state of one ANA group's path through `address`, before
    /// [`Subsystem::start`].
    ///
    /// # Errors
    /// [`Error::Errno`], [`Error::Timeout`].
    pub fn set_ana_state(
        &self,
        address: &Address,
        ana_group: u32,
        state: AnaState,
        pump: Pump<'_>,
    ) -> Result<(), Error> {
        let id = address.raw(None)?;
        let op = Op::<i32>::new();
        // SAFETY: alive and not active; the structure is copied.
        unsafe {
            sys::spdk_nvmf_subsystem_set_ana_state(
                self.raw.as_ptr(),
                &id,
                state.raw(),
                ana_group,
                Some(done_status),
                op.context(),
            );
        }
        let status = op.wait("change of a path's state", pump)?;
        check("spdk_nvmf_subsystem_set_ana_state", status)
    }

    /// Lets hosts in.
    ///
    /// # Errors
    /// [`Error::Errno`], [`Error::Timeout`]; so for the other state changes.
    pub fn start(&self, pump: Pump<'_>) -> Result<(), Error> {
        self.change("spdk_nvmf_subsystem_start", sys::spdk_nvmf_subsystem_start, pump)
    }

    /// Disconnects hosts.
    pub fn stop(&self, pump: Pump<'_>) -> Result<(), Error> {
        self.change("spdk_nvmf_subsystem_stop", sys::spdk_nvmf_subsystem_stop, pump)
    }

    /// Holds administration, and the I/O of namespace `nsid` (0: of none,
    /// `u32::MAX`: of all).
    pub fn pause(&self, nsid: u32, pump: Pump<'_>) -> Result<(), Error> {
        const CALL: &str = "spdk_nvmf_subsystem_pause";
        let op = Op::<i32>::new();
        let ctx = op.context();
        let raw = self.raw.as_ptr();
        // SAFETY: alive; the operation's context.
        let rc = unsafe { sys::spdk_nvmf_subsystem_pause(raw, nsid, Some(on_state), ctx) };
        Self::finish(CALL, rc, op, ctx, pump)
    }

    /// Ends a pause.
    pub fn resume(&self, pump: Pump<'_>) -> Result<(), Error> {
        self.change("spdk_nvmf_subsystem_resume", sys::spdk_nvmf_subsystem_resume, pump)
    }

    /// Destroys the subsystem; it must be stopped.
    ///
    /// # Errors
    /// [`Error::Errno`] while it is active.
    pub fn destroy(self, pump: Pump<'_>) -> Result<(), Error> {
        const CALL: &str = "spdk_nvmf_subsystem_destroy";
        let op = Op::<()>::new();
        let ctx = op.context();
        let raw = self.raw.as_ptr();
        // SAFETY: alive, given up.
        let rc = unsafe { sys::spdk_nvmf_subsystem_destroy(raw, Some(super::op::done_plain), ctx) };
        if rc == -EINPROGRESS {
            return op.wait("end of an NVMe-oF subsystem", pump);
        }
        // SAFETY: done or refused at once: the callback does not come.
        unsafe { Op::<()>::disown(ctx) };
        check(CALL, rc)
    }

    fn change(&self, call: &'static str, f: StateChange, pump: Pump<'_>) -> Result<(), Error> {
        let op = Op::<i32>::new();
        let ctx = op.context();
        // SAFETY: `f` is one of SPDK's state changes; the subsystem is alive.
        let rc = unsafe { f(self.raw.as_ptr(), Some(on_state), ctx) };
        Self::finish(call, rc, op, ctx, pump)
    }

    fn finish(
        call: &'static str,
        rc: c_int,
        op: Op<i32>,
        ctx: *mut c_void,
        pump: Pump<'_>,
    ) -> Result<(), Error> {
        if rc != 0 {
            // SAFETY: refused, so the callback does not come.
            unsafe { Op::<i32>::disown(ctx) };
            return check(call, rc);
        }
        check(call, op.wait(call, pump)?)
    }
}

const EINPROGRESS: c_int = 115;

unsafe extern "C" fn on_state(_: *mut sys::spdk_nvmf_subsystem, ctx: *mut c_void, status: c_int) {
    // SAFETY: the context of an `Op<i32>`.
    unsafe { Op::finish(ctx, status) }
}
