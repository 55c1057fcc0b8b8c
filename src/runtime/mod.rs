//! The data path at work: pinned pollers that drive the protocol over SPDK and DPDK.

pub mod messages;
