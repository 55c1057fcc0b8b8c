//! Where the ends of a memif meet: servers' sockets and clients' connections.

use super::error::DpdkError;
use super::gate::Ended;
use crate::proto::types::Nanos;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a memif client looks for a server to connect to.
const SERVER_AGAIN_NS: u64 = 50_000_000;

/// How long a server waits for another process to leave its socket. One that was killed gives its
/// memory back first, which takes a while when that is gigabytes.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// How often it looks.
const LEAVE_LOOK: Duration = Duration::from_millis(50);

/// A memif client connects when it is started, and only then. It is started again when its
/// connection has ended, and not before: neither a link that is down nor time that has passed
/// says so. While the driver's thread takes a connection apart the device must be left alone, and
/// a handshake that is slow gets no faster by beginning anew.
pub(super) struct Client {
    server: PathBuf,
    ended: Ended,
    /// The count of ended connections before the present one.
    ended_before: u32,
    /// When to look for the server again.
    try_at: Nanos,
}

impl Client {
    /// The client of the server at `server` that `device` is; none when there is no such device.
    /// Called before the port is started.
    pub(super) fn new(server: &Path, device: &CStr) -> Option<Self> {
        let ended = Ended::of(device)?;
        let ended_before = ended.count();
        Some(Self { server: server.to_owned(), ended, ended_before, try_at: Nanos(0) })
    }

    /// Whether to stop and start the device now, so that it connects: it has no connection, nor
    /// the beginning of one, and there is a server. `running` says whether it is started.
    pub(super) fn is_due(&mut self, now: Nanos, running: bool) -> bool {
        if now < self.try_at || running && self.ended.count() == self.ended_before {
            return false;
        }
        self.try_at = now.after(SERVER_AGAIN_NS);
        is_listening(&self.server)
    }

    /// The device is stopped, and about to be started.
    pub(super) fn starts(&mut self) {
        self.ended_before = self.ended.count();
    }
}

/// Server devices of this process, by socket: several interfaces may share one.
static SERVED: Mutex<BTreeMap<PathBuf, u32>> = Mutex::new(BTreeMap::new());

/// A server's claim to its socket, for as long as its device exists.
pub(super) struct Served {
    socket: PathBuf,
}

impl Served {
    /// Sees to it that the driver can bind to `socket`: waits, [`LEAVE_MAX`] at most, while
    /// another process listens there, and removes what one that was killed left behind. Called by
    /// the control thread before the device of `port` is made: the driver's error would not say
    /// that it was the socket, and what it failed to make cannot be made again.
    ///
    /// # Errors
    /// [`DpdkError::SocketTaken`] when the other process stays.
    pub(super) fn claim(port: &str, socket: &Path) -> Result<Self, DpdkError> {
        let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let count = served.entry(socket.to_owned()).or_insert(0);
        if *count == 0 {
            wait_until_left(port, socket)?;
        }
        *count += 1;
        Ok(Self { socket: socket.to_owned() })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = served.get_mut(&self.socket) {
            *count -= 1;
        }
    }
}

fn wait_until_left(port: &str, socket: &Path) -> Result<(), DpdkError> {
    let begun = Instant::now();
    let mut told = false;
    while is_listening(socket) {
        if begun.elapsed() >= LEAVE_MAX {
            let (port, socket) = (port.to_owned(), socket.display().to_string());
            return Err(DpdkError::SocketTaken { port, socket, waited_s: LEAVE_MAX.as_secs() });
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                port,
                socket = %socket.display(),
                "another process listens at the memif socket; waiting for it to end, {} s at most",
                LEAVE_MAX.as_secs()
            );
        }
        std::thread::sleep(LEAVE_LOOK);
    }
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(socket = %socket.display(), %error, "a stale memif socket");
    }
    Ok(())
}

/// Whether somebody listens at the socket. memif's are of another type than the one that is tried
/// here: the kernel says so when there is a listener, and refuses when there is none.
fn is_listening(socket: &Path) -> bool {
    !matches!(
        UnixStream::connect(socket).map_err(|e| e.kind()),
        Err(ErrorKind::ConnectionRefused | ErrorKind::NotFound)
    )
}
