//! Wire formats: fixed layouts, checked views, golden bytes.
//!
//! What is here says how bytes look, not when they are sent. `docs/wire-format.md` draws them.

pub mod checksum;
pub mod frame;
pub mod message;
pub mod packet;
pub mod update;
