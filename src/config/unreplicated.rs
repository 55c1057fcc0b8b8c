//! Volumes that are not replicated (G11): hosts see them beside a group's volume pairs.

use serde::Serialize;

use super::identity::{Nguid, Uuid};
use super::types::Disk;

/// `[[group.unreplicated]]`: a volume that hosts see in the group's subsystem and that passes through
/// untouched. It has no number, no target, is in no set, and no mover is responsible for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreplicated {
    /// Name, unique among all volumes of the group.
    pub name: String,
    /// NVMe namespace id, unique among all volumes of the group.
    pub nsid: u32,
    /// Namespace UUID; derived from names when the file has none.
    pub uuid: Uuid,
    /// Namespace NGUID; the UUID's bytes when the file has none.
    pub nguid: Nguid,
    /// Block size in bytes, of a base that has none of its own (a file, memory).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// Size in MiB, of memory; hosts see any other base in its own size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Name of the only primary mover that offers it; all do where there is none, which is possible
    /// where all reach the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mover: Option<String>,
    /// Where its data lies. Never [`Disk::None`].
    pub base: Disk,
}

impl Unreplicated {
    /// Whether the primary mover called `mover` offers it to hosts.
    #[must_use]
    pub fn is_offered_by(&self, mover: &str) -> bool {
        self.mover.as_deref().is_none_or(|only| only == mover)
    }
}
