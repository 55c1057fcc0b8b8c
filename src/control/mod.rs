//! The control side of a mover: what it tells operators, and what they may ask of it.
//!
//! [`model`] has the words of the API, [`api`] serves them over HTTP on a Unix socket (and TCP,
//! if configured), [`client`] is the other end. [`store`] keeps what must survive the process. The
//! data path knows nothing of this: whoever implements [`model::ControlPlane`] answers from the
//! control thread.

pub mod api;
pub mod client;
pub mod model;
pub mod store;

#[cfg(test)]
mod tests;
