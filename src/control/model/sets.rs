//! Consistent sets and what is in them.

use serde::{Deserialize, Serialize};

/// The newest set in each state; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MarksInfo {
    /// Takes updates.
    pub open: u64,
    /// Newest that is closed but has no manifest yet.
    pub closing: u64,
    /// Newest with a manifest that is not confirmed.
    pub transfer: u64,
    /// Newest that the secondary has stored (secondary) or confirmed (primary).
    pub received: u64,
    /// Newest that is wholly applied.
    pub applied: u64,
}

/// How far a set is (F7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetState {
    /// Takes updates.
    Forming,
    /// Takes no more; its updates are being made safe.
    Closing,
    /// Has its manifest; the secondary does not have all of it.
    InTransfer,
    /// Durable at the secondary.
    Received,
    /// Being written to the secondary volumes.
    Applying,
    /// Wholly on the secondary volumes.
    Applied,
}

impl SetState {
    /// The name on the wire and on the screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forming => "forming",
            Self::Closing => "closing",
            Self::InTransfer => "in-transfer",
            Self::Received => "received",
            Self::Applying => "applying",
            Self::Applied => "applied",
        }
    }
}

/// A consistent set, as one mover knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetInfo {
    /// Its group.
    pub group: String,
    /// Its number.
    pub id: u64,
    /// The colour name shown beside the number; see [`colour_name`].
    pub colour: String,
    /// How far it is.
    pub state: SetState,
    /// Updates in it, over all volumes where the manifest is known, else at this mover.
    pub updates: u64,
    /// Their payload, bytes.
    pub bytes: u64,
    /// When it was opened.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub opened_unix_ms: Option<u64>,
    /// When it was closed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed_unix_ms: Option<u64>,
    /// When the secondary confirmed it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub confirmed_unix_ms: Option<u64>,
    /// When it was applied.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub applied_unix_ms: Option<u64>,
    /// How long acknowledgements were held at its end, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hold_ns: Option<u64>,
    /// The manifest, once it is known; empty in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifest: Vec<ManifestVolume>,
}

/// One volume's part of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestVolume {
    /// Volume.
    pub volume: String,
    /// First sequence number; 0 when it has no update in the set.
    pub first_seq: u64,
    /// Last sequence number; 0 when it has no update in the set.
    pub last_seq: u64,
    /// Numbers in that range whose update vanished unacknowledged.
    pub voids: Vec<u64>,
    /// Updates.
    pub updates: u64,
    /// Payload, bytes.
    pub bytes: u64,
    /// Digest over the updates' checksums, hexadecimal.
    pub digest: String,
}

/// One retained update (G5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Source volume, as `GROUP/VOLUME`.
    pub volume: String,
    /// Target volume, as `MOVER:DISK`.
    pub target: String,
    /// Sequence number.
    pub seq: u64,
    /// Set.
    pub set: u64,
    /// `write`, `write-zeroes` or `deallocate`.
    pub kind: String,
    /// First block.
    pub lba: u64,
    /// Blocks.
    pub blocks: u32,
    /// Where it came from: `host`, or the mover that took it.
    pub from: String,
    /// Movers that hold a copy, this one not among them.
    pub mirrored_to: Vec<String>,
    /// How far it is: `mirroring`, `held`, `base`, `done`, or at another mover `mirror`.
    pub state: String,
}

/// Colours that can be told apart by name and by eye.
const COLOURS: [&str; 16] = [
    "red", "orange", "amber", "lime", "green", "teal", "cyan", "azure", "blue", "indigo", "violet",
    "magenta", "rose", "brown", "grey", "white",
];

/// The colour name of set `id`: the same everywhere, so that people can say "the teal one".
#[must_use]
pub fn colour_name(id: u64) -> &'static str {
    COLOURS[(id % COLOURS.len() as u64) as usize]
}
