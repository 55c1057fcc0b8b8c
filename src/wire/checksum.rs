//! CRC-32C (Castagnoli, iSCSI polynomial; RFC 3720 appendix B.4) of headers and small messages.
//!
//! Payload checksums of the data path are computed while copying (`crate::mem`),
//! with the same polynomial and the same result.

pub use crate::mem::crc32c::crc32c;
