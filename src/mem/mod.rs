//! Memory of the data path: checksums, copies, arena.
#![allow(unsafe_code)]

pub mod crc32c;
