//! What can go wrong with ports, all of it when they are opened.

use super::sys;
use std::ffi::{CStr, CString, c_int};

/// Why a port could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DpdkError {
    /// DPDK refused a call.
    #[error("{call} of port {port:?}: {text} (errno {errno})")]
    Call {
        /// The function.
        call: &'static str,
        /// The port's name.
        port: String,
        /// A positive error number.
        errno: i32,
        /// What it means.
        text: String,
    },
    /// DPDK has no device of that name: it is not bound to a user-space driver, or not allowed.
    #[error("port {port:?}: there is no device {device:?}")]
    NoDevice {
        /// The port's name.
        port: String,
        /// The device's.
        device: String,
    },
    /// The device has too few queues for the pollers.
    #[error("port {port:?}: {wanted} queues are needed, the device has {available}")]
    Queues {
        /// The port's name.
        port: String,
        /// Pollers.
        wanted: u16,
        /// Queues.
        available: u16,
    },
    /// The device cannot carry packets of that size.
    #[error("port {port:?}: an MTU of {wanted} bytes is wanted, the device carries {available}")]
    Mtu {
        /// The port's name.
        port: String,
        /// As configured.
        wanted: u16,
        /// What the device says.
        available: u16,
    },
    /// Hugepage memory does not suffice.
    #[error("port {port:?}: no memory for {packets} packet buffers of {bytes} bytes")]
    Memory {
        /// The port's name.
        port: String,
        /// How many.
        packets: u32,
        /// Of what size.
        bytes: u16,
    },
    /// Another process is the server of that memif, and stays.
    #[error(
        "port {port:?}: another process still listens at {socket:?} after {waited_s} s; is this \
         mover running already, or one whose configuration names the same socket?"
    )]
    SocketTaken {
        /// The port's name.
        port: String,
        /// The socket.
        socket: String,
        /// How long it was waited for, seconds.
        waited_s: u64,
    },
    /// Somebody else's program decides at that interface who gets its frames.
    #[error(
        "port {port:?}: another program (XDP) is at interface {interface:?}; take it off with: ip \
         link set dev {interface} xdp off"
    )]
    Taken {
        /// The port's name.
        port: String,
        /// The interface's.
        interface: String,
    },
    /// Two ends of this ring are open already.
    #[error("port {port:?}: both ends of ring {ring:?} are taken")]
    RingTaken {
        /// The port's name.
        port: String,
        /// The ring's.
        ring: String,
    },
    /// A name or path has a NUL in it.
    #[error("port {port:?}: {text:?} cannot be passed to DPDK")]
    Text {
        /// The port's name.
        port: String,
        /// The offending text.
        text: String,
    },
}

/// `value` for C, which must not have a NUL in it.
pub(super) fn text(port: &str, value: &str) -> Result<CString, DpdkError> {
    CString::new(value)
        .map_err(|_| DpdkError::Text { port: port.to_owned(), text: value.to_owned() })
}

/// The result of a DPDK call that returns a negative error number on failure.
pub(super) fn check(call: &'static str, port: &str, rc: c_int) -> Result<c_int, DpdkError> {
    if rc >= 0 { Ok(rc) } else { Err(failed(call, port, -rc)) }
}

/// The error of a DPDK call that failed with the positive error number `errno`.
pub(super) fn failed(call: &'static str, port: &str, errno: c_int) -> DpdkError {
    // SAFETY: returns a string of DPDK's, valid until the thread's next call.
    let text = unsafe { sys::rte_strerror(errno) };
    // SAFETY: never null, NUL-terminated, copied at once.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    DpdkError::Call { call, port: port.to_owned(), errno, text }
}

/// The calling thread's last DPDK error number.
pub(super) fn last_errno() -> c_int {
    // SAFETY: reads a variable of the calling thread.
    unsafe { sys::setline_rte_errno() }
}
