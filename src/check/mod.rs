//! `setline-check`: a proof, usable on any replication product, that a set of
//! volume images is one point in time.
//!
//! A [`writer`] issues writes over many volumes. Each block that it writes says
//! who wrote it, as which command, and which commands were already known to have
//! taken effect when this one was issued ([`block`], [`known`]). Where each
//! command writes follows from the run's parameters alone ([`workload`]). So the
//! [`images`] themselves, found anywhere and at any time, say whether they are a
//! cut that a crash of the primary could have left; the writer's [`log`] adds
//! what was acknowledged and when. `docs/check.md` has the definition of a
//! consistent cut, the proof that the decision is exact, and the byte layouts.
//!
//! [`verify`] is data verification through an initiator (every kind of command,
//! mixed sizes, read back and compared), [`compare`] is equality of images.
//!
//! Nothing here knows setline: what is used from outside of this module is the
//! CRC-32C and, behind [`target`], the NVMe initiator.

pub mod block;
pub mod blockmap;
pub mod cli;
pub mod compare;
pub mod images;
pub mod known;
pub mod log;
pub mod target;
pub mod verify;
pub mod workload;
pub mod writer;

use crate::wire::checksum::crc32c;
