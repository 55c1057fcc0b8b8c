//! Memory of the data path: the arena that holds update records, the copy that
//! fills it, and checksums.
//!
//! * [`copy`] moves payload from a host's scattered buffers to the arena and
//!   computes its CRC-32C on the way, with stores that bypass the cache.
//! * [`arena`] hands out record space from one hugepage region per poller.
//! * [`crc32c`] is the checksum of headers and small messages, without `std`.
//! * [`tsc`] reads the processor's counter, [`discipline`] what the kernel knows of the time.
//!
//! Everything here belongs to one poller at a time and never allocates after
//! construction. It does not obtain hugepages (that is SPDK's environment, see
//! `spdk`), and it does not know what a record means (that is `wire`).
#![allow(unsafe_code)]

pub mod arena;
pub mod copy;
mod crc;
pub mod crc32c;
pub mod discipline;
pub mod tsc;

pub use arena::{Arena, LogId, LogLimits};
pub use copy::{Copier, IoVec, Level, Store};
