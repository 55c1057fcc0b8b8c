//! DPDK, wrapped: ports and packet memory.
//!
//! `sys` holds the generated bindings; safe wrappers are beside it.

#![allow(unsafe_code)]

/// Generated bindings of the items in `ffi/allow/dpdk.txt`. Static inline
/// functions of DPDK are called through wrappers that bindgen makes.
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
    include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));
}
