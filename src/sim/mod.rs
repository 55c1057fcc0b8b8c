//! The deterministic simulator: the protocol's own code under a simulated cluster, with faults,
//! and an observer that knows everything.
//!
//! One seed is one history ([`cluster::run`]): sizes, loads and faults are drawn from it
//! ([`profile`]), virtual time jumps from event to event ([`queue`]), every choice comes from one
//! generator ([`prng`]). After every event the observer checks the invariants of
//! `docs/protocol.md` ([`observer`], [`observe_secondary`]); at the end the faults stop, and
//! everything must come to rest: all applied, both sites equal, no memory held.
//! `docs/simulator.md` says what is modelled and what is not.
//!
//! It does not simulate SPDK, DPDK, the pollers' loops or the control thread.

pub mod arena;
mod build;
pub mod byte_disk;
pub mod campaign;
pub mod cluster;
pub mod cost;
pub mod coverage;
pub mod disk;
mod exec;
mod exec_secondary;
mod faults;
mod hosts;
pub mod journal;
mod journal_io;
mod membership;
mod moves;
mod net;
pub mod network;
mod node;
mod observe_losses;
mod observe_members;
pub mod observe_secondary;
mod observe_times;
pub mod observer;
pub mod prng;
pub mod profile;
pub mod queue;
mod recall;
pub mod stats;
#[cfg(test)]
mod tests;
mod times;
pub mod trace;
