//! Connecting to a controller, also behind the back of the thread that polls, and noticing that it is
//! gone.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{SocketAddrAny, SocketAddrUnix};

use super::super::address::Address;
use super::super::error::{Error, check, cstring};
use super::super::sys;
use super::{ADMIN_TIMEOUT_MS, Controller, Inner};

/// Keep Alive (NVM Express Base Specification, "Opcodes for Admin Commands").
const KEEP_ALIVE: u16 = 0x18;
/// The socket of a vfio-user controller in its directory.
const SOCKET: &str = "cntrl";

/// A controller that a thread of its own connects to: connecting waits for what the other end does, and
/// whoever polls other controllers must not.
#[derive(Debug)]
pub struct Connecting {
    thread: Option<JoinHandle<Result<Connected, Error>>>,
}

/// What a thread that connects hands over.
#[derive(Debug)]
struct Connected {
    raw: NonNull<sys::spdk_nvme_ctrlr>,
    socket: Option<OwnedFd>,
}

// SAFETY: nothing of a controller belongs to the thread that connected it (its queue pairs would, and there
// are none yet besides the admin queue, which SPDK guards by the controller's lock). It is moved once, by
// the end of the thread that made it, which orders all it did before what the receiver does.
unsafe impl Send for Connected {}

impl Connecting {
    /// Begins to connect as [`Controller::connect`] does. The environment must outlive this value.
    ///
    /// # Errors
    /// [`Error::Misuse`]: the system gives no thread.
    pub fn begin(
        address: &Address,
        nqn: Option<&str>,
        host_nqn: Option<&str>,
    ) -> Result<Self, Error> {
        let address = address.clone();
        let (nqn, host_nqn) = (nqn.map(str::to_owned), host_nqn.map(str::to_owned));
        let connect = move || connect(&address, nqn.as_deref(), host_nqn.as_deref());
        let thread = std::thread::Builder::new().name("connect".to_owned()).spawn(connect);
        let thread = thread.map_err(|_| Error::Misuse("no thread to connect with"))?;
        Ok(Self { thread: Some(thread) })
    }

    /// Whether [`Self::finish`] will not block.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What came of it; waits for that.
    ///
    /// # Errors
    /// As [`Controller::connect`].
    pub fn finish(mut self) -> Result<Controller, Error> {
        let ended = self.thread.take().and_then(|thread| thread.join().ok());
        let result = ended.unwrap_or(Err(Error::Misuse("the thread that connects is gone")));
        result.map(Connected::into_controller)
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        // The environment may end next, and what was connected must have been let go before.
        if let Some(thread) = self.thread.take()
            && let Ok(Ok(connected)) = thread.join()
        {
            drop(connected.into_controller());
        }
    }
}

impl Connected {
    fn into_controller(self) -> Controller {
        Controller { inner: Rc::new(Inner { raw: self.raw, socket: self.socket }) }
    }
}

fn connect(
    address: &Address,
    nqn: Option<&str>,
    host_nqn: Option<&str>,
) -> Result<Connected, Error> {
    let id = address.raw(nqn)?;
    let mut opts = sys::spdk_nvme_ctrlr_opts::default();
    let size = size_of::<sys::spdk_nvme_ctrlr_opts>();
    // SAFETY: a valid structure and its size.
    unsafe { sys::spdk_nvme_ctrlr_get_default_ctrlr_opts(&mut opts, size) };
    opts.admin_timeout_ms = ADMIN_TIMEOUT_MS;
    // The end of the connection tells a target as much, and one that is dead answers no notification: it
    // would be waited for, 10 s long.
    opts.no_shn_notification = !matches!(address, Address::Pcie(_));
    if let Some(host) = host_nqn {
        let host = cstring("host NQN", host)?;
        let room = opts.hostnqn.len() - 1;
        opts.hostnqn.fill(0);
        for (to, from) in opts.hostnqn.iter_mut().zip(host.as_bytes().iter().take(room)) {
            *to = from.cast_signed();
        }
    }
    // SAFETY: valid structures, copied. SPDK's list of controllers has a lock.
    let raw = unsafe { sys::spdk_nvme_connect(&id, &opts, size) };
    let raw = NonNull::new(raw).ok_or(Error::Null { call: "spdk_nvme_connect" })?;
    let socket = match address {
        Address::VfioUser(directory) => socket_to(&directory.join(SOCKET)),
        Address::Tcp(_) | Address::Pcie(_) => None,
    };
    Ok(Connected { raw, socket })
}

impl Controller {
    /// Connects to the controller at `address` (of subsystem `nqn`, for targets)
    /// as host `host_nqn`.
    ///
    /// # Errors
    /// [`Error::Null`]: nothing answers, or it refuses this host.
    pub fn connect(
        address: &Address,
        nqn: Option<&str>,
        host_nqn: Option<&str>,
    ) -> Result<Self, Error> {
        connect(address, nqn, host_nqn).map(Connected::into_controller)
    }

    /// Whether the other end of a vfio-user connection was closed, as it is when its process has ended, all
    /// threads of it. Queues in shared memory do not tell: they take commands as before, and answer none.
    /// Over other transports polling tells, and this never does.
    pub fn is_hung_up(&self) -> bool {
        self.inner.socket.as_ref().is_some_and(is_hung_up)
    }

    /// Asks the controller whether it still answers. The flag is set by [`Self::poll_admin`] once it has,
    /// or once the controller was let go.
    ///
    /// # Errors
    /// [`Error::Errno`]: it takes no command now.
    pub fn keep_alive(&self) -> Result<Arc<AtomicBool>, Error> {
        unsafe extern "C" fn answered(flag: *mut c_void, _: *const sys::spdk_nvme_cpl) {
            // SAFETY: from `into_raw` below, and SPDK calls this once per command that it took.
            let flag = unsafe { Arc::from_raw(flag.cast::<AtomicBool>().cast_const()) };
            flag.store(true, Ordering::Relaxed);
        }
        let mut cmd = sys::spdk_nvme_cmd::default();
        cmd.set_opc(KEEP_ALIVE);
        let flag = Arc::new(AtomicBool::new(false));
        let context = Arc::into_raw(Arc::clone(&flag));
        // SAFETY: connected; the command is copied and has no data; the context is the callback's.
        let rc = unsafe {
            sys::spdk_nvme_ctrlr_cmd_admin_raw(
                self.raw(),
                &mut cmd,
                null_mut(),
                0,
                Some(answered),
                context.cast_mut().cast(),
            )
        };
        if rc != 0 {
            // SAFETY: from `into_raw` above, and no callback will come.
            drop(unsafe { Arc::from_raw(context) });
        }
        check("Keep Alive", rc)?;
        Ok(flag)
    }
}

/// A second descriptor of this process's connection to the socket at `path`. SPDK keeps its own to itself;
/// the system tells which ones there are, and where they lead. `None` where it cannot be found.
fn socket_to(path: &Path) -> Option<OwnedFd> {
    let wanted: SocketAddrAny = SocketAddrUnix::new(path).ok()?.into();
    let numbers = std::fs::read_dir("/proc/self/fd").ok()?.flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut leading = numbers.filter_map(|number| {
        // SAFETY: only asked and duplicated, while this call lasts. If its owner closes it meanwhile, the
        // calls fail, or see another file, which either leads to `path`, too, or is passed over.
        let open = unsafe { BorrowedFd::borrow_raw(number) };
        let peer = rustix::net::getpeername(open).ok().flatten()?;
        if peer == wanted { rustix::io::fcntl_dupfd_cloexec(open, 0).ok() } else { None }
    });
    // An earlier life of the target may still be waiting to be let go.
    leading.find(|socket| !is_hung_up(socket))
}

fn is_hung_up(socket: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    rustix::event::poll(&mut polled, Some(&at_once)).is_ok() && polled[0].revents().intersects(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_connection_is_found_by_where_it_leads_and_hangs_up_with_its_other_end() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let [at_one, at_other] = [&one, &other].map(|path| UnixListener::bind(path).unwrap());
        assert!(socket_to(&one).is_none(), "nobody has connected");
        let [_ours, _other] = [&one, &other].map(|path| UnixStream::connect(path).unwrap());
        let found = socket_to(&one).unwrap();
        let [(server, _), (other_server, _)] =
            [&at_one, &at_other].map(|listener| listener.accept().unwrap());
        drop(other_server);
        assert!(!is_hung_up(&found), "another connection ended");
        drop(server);
        assert!(is_hung_up(&found));
        assert!(socket_to(&one).is_none(), "only a dead one leads there");
    }
}
