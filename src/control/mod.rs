//! The control side of a mover: what it tells operators, and what they may ask of it.
//!
//! [`model`] has the words of the API, [`api`] serves them over HTTP on a Unix socket (and TCP,
//! if configured), [`client`] is the other end. [`driver`] answers: it is the control thread's work,
//! fed by the pollers' reports ([`board`], [`history`], [`events`]), which [`judge`] turns into the
//! groups' states and [`status`] and `metrics` into answers. [`store`] keeps what must survive the
//! process, [`boot`] says what a start makes of it, [`stop`] how a mover ends. [`cluster`] is where the movers
//! of a site agree, [`admission`] how one comes to be a member. The data path knows nothing of this.

pub mod admission;
pub mod api;
pub mod board;
pub mod boot;
pub mod client;
pub mod cluster;
pub mod driver;
pub mod events;
pub mod history;
pub mod judge;
mod metrics;
pub mod model;
mod requests;
pub mod status;
pub mod stop;
pub mod store;
pub mod timing;
pub mod unreplicated;

#[cfg(test)]
mod tests;
