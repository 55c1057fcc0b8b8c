//! The primary site's part of a poller: numbers host updates, mirrors them, orders base writes,
//! forms its part of the sets, and sends them to the secondary (G1, G2, F1, T1).
//!
//! Calling order, on the poller that owns the shard:
//! 1. [`PrimaryShard::admit`] before a host update is copied; [`Full`] is back-pressure: keep the
//!    command and try again after progress.
//! 2. Append payload and header room to the arena, then [`PrimaryShard::host_update`]; write the
//!    header it returns before carrying out any command.
//! 3. `handle_*` for everything that comes back, [`PrimaryShard::poll_command`] until none is left.
//!
//! It does not decide boundaries ([`crate::proto::boundary`]) nor move bytes.

mod config;
mod epoch;
mod forward;
mod handoff;
mod mirror_store;
mod number;
mod peers;
mod read_back;
mod restart;
mod restore;
mod room;
mod sets;
mod shard;
mod slab;
mod switch;
mod take;
mod takeover;
#[cfg(test)]
mod tests;
mod transfer;
mod view;
mod void;

pub use config::{GroupConfig, MirrorPeer, MirrorPolicy, Numbering, PrimaryConfig, VolumeConfig};
pub use mirror_store::Mirrored;
pub use number::HostUpdate;
pub use read_back::ReadBack;
pub use room::{Admitted, Full};
pub use shard::{PrimaryShard, RecordVerdict};
pub use take::Arrived;
pub use view::{GroupView, LedgerView, PrimaryCounters, Stage};
