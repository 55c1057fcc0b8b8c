//! The data path at work: pinned pollers that drive the protocol over SPDK and DPDK.

pub mod clock;
pub mod idle;
pub mod inflight;
pub mod messages;
pub mod plan;
pub mod stamps;
pub mod timekeeper;

#[cfg(feature = "datapath")]
mod contexts;
#[cfg(feature = "datapath")]
mod effects;
#[cfg(feature = "datapath")]
mod epoch;
#[cfg(feature = "datapath")]
mod excluded;
#[cfg(feature = "datapath")]
pub mod fence;
#[cfg(feature = "datapath")]
mod host;
#[cfg(feature = "datapath")]
pub mod hosts;
#[cfg(feature = "datapath")]
mod journal_io;
#[cfg(feature = "datapath")]
pub mod launch;
#[cfg(feature = "datapath")]
mod net;
#[cfg(feature = "datapath")]
pub mod network;
#[cfg(feature = "datapath")]
pub mod parts;
#[cfg(feature = "datapath")]
pub mod poller;
#[cfg(feature = "datapath")]
mod readback;
#[cfg(feature = "datapath")]
mod recall;
#[cfg(feature = "datapath")]
mod records;
#[cfg(feature = "datapath")]
mod remote;
#[cfg(feature = "datapath")]
pub mod siblings;
#[cfg(feature = "datapath")]
mod snapshot;
#[cfg(feature = "datapath")]
mod stats;
#[cfg(feature = "datapath")]
pub mod volumes;
