//! SPDK, wrapped: the environment, threads, block devices, the NVMe-oF target
//! and a small NVMe initiator.
//!
//! Why: SPDK's rules (which thread may call what, who frees, what a callback
//! may do) become types here, so the rest of setline is safe code. A handle
//! bound to an SPDK thread is `!Send`. Completion callbacks carry a slot index
//! and a function, never a heap box per I/O, and never unwind into C.
//!
//! It does not run reactors: whoever owns a thread polls it (`thread`).

#![allow(unsafe_code)]

pub mod address;
pub mod base;
pub mod bdev;
pub mod env;
pub mod error;
pub mod load;
pub(crate) mod log;
pub mod nvme;
pub mod nvmf;
pub mod op;
pub mod payload;
pub mod queue;
pub mod reservation;
pub mod subsystem;
pub mod tap;
pub mod thread;

pub use error::{Error, NvmeStatus, Submit};

/// Generated bindings of the items in `ffi/allow/spdk.txt`.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
pub mod sys {
    include!(concat!(env!("OUT_DIR"), "/spdk.rs"));
}
