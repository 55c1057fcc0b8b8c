//! Setline: n cooperating movers keep a second site at a consistent point in
//! time of the first. `ARCHITECTURE.md` is the map of this crate.

extern crate alloc;

pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod journal;
pub mod lab;
pub mod mem;
pub mod proto;
pub mod ring;
pub mod runtime;
pub mod sim;
pub mod wire;

#[cfg(feature = "datapath")]
pub mod dpdk;
#[cfg(feature = "datapath")]
pub mod spdk;
