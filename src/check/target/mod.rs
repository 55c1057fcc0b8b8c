//! What the writer and the verifier drive: volumes behind numbered slots.
//!
//! A slot is a buffer and at most one command in flight on it, so that a command and
//! its completion are told by a number. Everything happens on the caller's thread
//! by [`Target::poll`]; implementations may have threads of their own.

mod file;
#[cfg(feature = "datapath")]
mod nvme;
mod trid;

pub use file::{FileTarget, FileTargetError, FileTargetOptions};
#[cfg(feature = "datapath")]
pub use nvme::{NvmeTarget, NvmeTargetError, NvmeTargetOptions, PathPolicy};
pub use trid::{Transport, Trid, TridError};

use serde::Serialize;
use std::fmt;

/// Shape of the volumes behind a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// Logical block size, the same on all volumes.
    pub block_bytes: u32,
    /// Length of each volume in blocks.
    pub volume_blocks: Vec<u64>,
    /// The longest command in blocks.
    pub transfer_blocks_max: u32,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Volume to buffer.
    Read,
    /// Buffer to volume.
    Write,
    /// The same, acknowledged when non-volatile.
    WriteFua,
    /// Fails with [`Status::COMPARE_FAILURE`] if volume and buffer differ.
    Compare,
    /// Compare with the first half of the buffer and, if equal, write the second, as
    /// one fused command; `blocks` is the length of a half.
    CompareAndWrite,
    /// Zeros, without a buffer.
    WriteZeroes,
    /// Deallocates the ranges in the buffer: NVMe's dataset management ranges of 16
    /// bytes (attributes u32, length in blocks u32, first block u64, little endian);
    /// `blocks` is how many, `first` means nothing.
    Deallocate,
    /// Everything acknowledged becomes non-volatile; `first` and `blocks` mean nothing.
    Flush,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Index of the volume.
    pub volume: u16,
    /// First block.
    pub first: u64,
    /// Length in blocks (not zero-based).
    pub blocks: u32,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Success.
    Ok,
    /// An NVMe status (NVM Express base specification, "Status Field").
    Nvme {
        /// Status code type.
        sct: u8,
        /// Status code.
        sc: u8,
        /// Do not retry.
        dnr: bool,
    },
    /// An error number of the operating system.
    Os(i32),
}

impl Status {
    /// Media and data integrity errors, compare failure.
    pub const COMPARE_FAILURE: Self = Self::Nvme { sct: 2, sc: 0x85, dnr: true };
    /// Path related, internal path error: no way to the volume.
    pub const NO_PATH: Self = Self::Nvme { sct: 3, sc: 0, dnr: false };
    /// Generic, invalid command opcode.
    pub const INVALID_OPCODE: Self = Self::Nvme { sct: 0, sc: 0x01, dnr: true };

    /// Whether this is a miscompare, whatever its retry bit.
    pub fn is_compare_failure(self) -> bool {
        matches!(self, Self::Nvme { sct: 2, sc: 0x85, .. })
    }

    /// Whether trying again makes sense.
    pub fn may_retry(self) -> bool {
        !matches!(self, Self::Nvme { dnr: true, .. })
    }

    /// Whether another path may serve what this one did not (status code type 3).
    pub fn is_path_related(self) -> bool {
        matches!(self, Self::Nvme { sct: 3, .. })
    }

    /// As it stands in a log: type and code, or `0xffff` for what is none of NVMe's.
    pub fn code(self) -> u16 {
        match self {
            Self::Ok => 0,
            Self::Nvme { sct, sc, .. } => u16::from(sct) << 8 | u16::from(sc),
            Self::Os(_) => 0xffff,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("success"),
            Self::Nvme { sct, sc, dnr } => {
                write!(f, "sct {sct:x}h sc {sc:02x}h{}", if *dnr { " dnr" } else { "" })
            }
            Self::Os(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// A command that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its slot, free again.
    pub slot: u32,
    /// How it ended.
    pub status: Status,
}

/// What a target with several paths did about failures, so that its user saw none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathCounts {
    /// Paths that were lost.
    pub lost: u64,
    /// Paths that were connected again.
    pub connected_again: u64,
    /// Commands that were sent again, by another path or by the same.
    pub retries: u64,
}

/// The target takes no command just now; poll, then submit again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// There is no memory (of the kind that the target needs) for the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for {count} buffers of {bytes} bytes")]
pub struct NoMemory {
    /// Buffers asked for.
    pub count: u32,
    /// Length of each.
    pub bytes: usize,
}

/// Volumes that commands can be sent to.
pub trait Target {
    /// Shape of the volumes.
    fn geometry(&self) -> &Geometry;

    /// Makes `count` slots with buffers of `bytes` each, of zeros. Called once, before the
    /// first command.
    fn make_slots(&mut self, count: u32, bytes: usize) -> Result<(), NoMemory>;

    /// How many slots there are; each has a buffer.
    fn slots(&self) -> u32;

    /// Buffer of a slot that is not in flight.
    ///
    /// # Panics
    /// When the slot is in flight or does not exist.
    fn buffer(&mut self, slot: u32) -> &mut [u8];

    /// Sends a command. What is wrong with it, or with the way to the volume, is told by
    /// its completion.
    ///
    /// # Panics
    /// When the slot is in flight or does not exist.
    fn submit(&mut self, slot: u32, request: Request) -> Result<(), Full>;

    /// Appends all that ended since the last call. Does not block.
    fn poll(&mut self, ended: &mut Vec<Completion>);

    /// Whether the volumes take this command.
    fn supports(&self, op: Op) -> bool;

    /// What was done about failures of paths so far; nothing where there is one way only.
    fn path_counts(&self) -> PathCounts {
        PathCounts::default()
    }
}
