//! The data path at work: pinned pollers that drive the protocol over SPDK and DPDK.

pub mod clock;
pub mod idle;
pub mod inflight;
pub mod messages;
pub mod plan;
