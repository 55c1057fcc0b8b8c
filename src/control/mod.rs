//! The control side of a mover: what it tells operators, and what they may ask of it.
//!
//! [`model`] has the words of the API. The data path knows nothing of this: whoever
//! implements [`model::ControlPlane`] answers from the control thread.

pub mod model;
