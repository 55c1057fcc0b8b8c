//! The protocol and the wire formats, built without `std`: no clock, thread, socket or hash map of
//! the operating system can have leaked into them.
#![no_std]
#![allow(unreachable_pub, dead_code, missing_docs)]

extern crate alloc;

#[path = "../../../src/mem/crc32c.rs"]
pub mod crc32c;
#[path = "../../../src/proto/mod.rs"]
pub mod proto;
#[path = "../../../src/wire/mod.rs"]
pub mod wire;

/// The part of `mem` that the wire formats need.
pub mod mem {
    pub use super::crc32c;
}
