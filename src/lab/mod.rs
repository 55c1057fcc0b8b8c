//! `setline lab`: both sites on one machine, for a first look, for tests and for proofs.
//!
//! A lab is made of the real parts only: `setlined` processes with real SPDK and DPDK, an
//! independent NVMe client (`setline-check write`), files for volumes and journals. It is
//! [`plan`]ned as values first, then made, watched and judged, and whatever happens it is removed
//! again: processes by pid and start time, hugepage files, sockets, namespaces, directory.

pub mod faults;
pub mod options;
pub mod plan;
pub mod site;
