//! Errors of the SPDK wrappers and the status of one NVMe command.

use std::ffi::{CString, c_int};

use super::sys;

/// What an SPDK call that is not an I/O can fail with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The call returned a negative errno, or reported one through its callback.
    #[error("{call}: {}", strerror(*errno))]
    Errno {
        /// The SPDK function.
        call: &'static str,
        /// Positive errno.
        errno: i32,
    },
    /// The call returned a null pointer and no reason.
    #[error("{call} failed (out of memory or hugepages, or the name is taken or unknown)")]
    Null {
        /// The SPDK function.
        call: &'static str,
    },
    /// The operation did not complete in time; it may still complete later.
    #[error("{call} did not complete within {seconds} s")]
    Timeout {
        /// The operation.
        call: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// A string for C contains a NUL byte.
    #[error("{what} contains a NUL byte")]
    NulByte {
        /// Which argument.
        what: &'static str,
    },
    /// A call broke this module's rules (a second environment, a wrong order).
    #[error("{0}")]
    Misuse(&'static str),
}

/// Why an I/O was not submitted; its completion will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Submit {
    /// No request object is free now: poll, then submit again. Back-pressure,
    /// not a failure.
    #[error("no request object is free")]
    Busy,
    /// The device does not do this (errno EINVAL, ENOTSUP, EBADF, ENODEV ...).
    #[error("refused: {}", strerror(*.0))]
    Refused(i32),
}

/// The message of a positive errno.
fn strerror(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// Turns C's "0 or negative errno" into a result.
pub(super) fn check(call: &'static str, rc: c_int) -> Result<(), Error> {
    if rc == 0 { Ok(()) } else { Err(Error::Errno { call, errno: rc.abs() }) }
}

/// The same for I/O submission, where ENOMEM means "later".
pub(super) fn submitted(rc: c_int) -> Result<(), Submit> {
    match rc {
        0 => Ok(()),
        -12 | -11 => Err(Submit::Busy), // ENOMEM, EAGAIN
        rc => Err(Submit::Refused(rc.abs())),
    }
}

pub(super) fn cstring(what: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::NulByte { what })
}

/// The outcome of an NVMe command: status code type and status code of the
/// completion queue entry (NVM Express Base Specification, "Status Field").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NvmeStatus {
    /// Status code type: 0 generic, 1 command specific, 2 media, 3 path.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
}

impl NvmeStatus {
    /// Successful completion.
    pub const SUCCESS: Self = Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_SUCCESS);
    /// The device failed internally; a host may retry elsewhere.
    pub const INTERNAL_DEVICE_ERROR: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_INTERNAL_DEVICE_ERROR);
    /// The command or one of its fields is not supported.
    pub const INVALID_FIELD: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_INVALID_FIELD);
    /// The command is not supported.
    pub const INVALID_OPCODE: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_INVALID_OPCODE);
    /// The range exceeds the namespace.
    pub const LBA_OUT_OF_RANGE: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_LBA_OUT_OF_RANGE);
    /// The namespace is not ready; the host tries again.
    pub const NAMESPACE_NOT_READY: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_NAMESPACE_NOT_READY);
    /// The command was aborted because its queue went away.
    pub const ABORTED_SQ_DELETION: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_ABORTED_SQ_DELETION);
    /// Data written before cannot be read back.
    pub const UNRECOVERED_READ_ERROR: Self =
        Self::new(sys::SPDK_NVME_SCT_MEDIA_ERROR, sys::SPDK_NVME_SC_UNRECOVERED_READ_ERROR);
    /// The medium did not take the data.
    pub const WRITE_FAULT: Self =
        Self::new(sys::SPDK_NVME_SCT_MEDIA_ERROR, sys::SPDK_NVME_SC_WRITE_FAULTS);
    /// Reads are not allowed here (a write-only leg).
    pub const ACCESS_DENIED: Self =
        Self::new(sys::SPDK_NVME_SCT_MEDIA_ERROR, sys::SPDK_NVME_SC_ACCESS_DENIED);
    /// Compared data differ.
    pub const COMPARE_FAILURE: Self =
        Self::new(sys::SPDK_NVME_SCT_MEDIA_ERROR, sys::SPDK_NVME_SC_COMPARE_FAILURE);
    /// Somebody else's reservation stands against the command (generic, 83h).
    pub const RESERVATION_CONFLICT: Self =
        Self::new(sys::SPDK_NVME_SCT_GENERIC, sys::SPDK_NVME_SC_RESERVATION_CONFLICT);
    /// This path cannot serve the namespace now; multipath hosts take another.
    pub const PATH_INACCESSIBLE: Self =
        Self::new(sys::SPDK_NVME_SCT_PATH, sys::SPDK_NVME_SC_ASYMMETRIC_ACCESS_INACCESSIBLE);

    /// A status from the codes of the specification.
    pub const fn new(sct: u32, sc: u32) -> Self {
        Self { sct: sct as u8, sc: sc as u8 }
    }

    /// Whether the command succeeded.
    pub const fn is_ok(self) -> bool {
        self.sct == 0 && self.sc == 0
    }
}

impl From<crate::proto::types::NvmeStatus> for NvmeStatus {
    #[inline]
    fn from(status: crate::proto::types::NvmeStatus) -> Self {
        Self { sct: status.sct, sc: status.sc }
    }
}

impl From<NvmeStatus> for crate::proto::types::NvmeStatus {
    #[inline]
    fn from(status: NvmeStatus) -> Self {
        Self { sct: status.sct, sc: status.sc }
    }
}

impl std::fmt::Display for NvmeStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NVMe status {:x}/{:02x}", self.sct, self.sc)
    }
}
