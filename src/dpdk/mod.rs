//! DPDK, wrapped: ports and packet memory.
//!
//! A [`Port`] is a network device with its queues; the control thread opens and closes it. A
//! [`Queue`] is one poller's pair of receive and transmit queue: it turns frames into checked
//! packets and packets into frames, answers and asks ARP, and never blocks. Payload of records is
//! not copied to be sent: a frame refers to the arena's memory, and [`Queue::completed`] says when
//! the device is done with it.
//!
//! What packets mean is `proto::link`'s business; `wire::frame` has the bytes around them.
//! `sys` holds the generated bindings; nothing outside this module and `spdk` uses them.

#![allow(unsafe_code)]

mod error;
mod external;
mod frame;
mod gate;
mod interrupt;
mod kind;
mod mbuf;
mod memif;
mod neighbours;
mod pool;
mod port;
mod queue;
mod rings;
mod steer;

pub use error::DpdkError;
pub use external::{External, Region, Ticket};
pub use frame::{OwnedFrame, Received};
pub use kind::{Kind, MemifRole};
pub use neighbours::NextHop;
pub use port::{Network, Port, PortSpec};
pub use queue::{Destination, PushError, Queue, QueueCounters};

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
