//! What of an update the other copies hold at the primary site (G2, G12).

use serde::Serialize;

/// What a mirror copy holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mirror {
    /// The whole update.
    #[default]
    Data,
    /// Its description: volume, range, number, checksum. When the mover that has the data fails, they are read
    /// from the volume, which may hold newer ones by then: the sets in between are merged.
    Metadata,
}

impl Mirror {
    /// The words of the configuration file.
    pub const NAMES: [(&str, Self); 2] = [("data", Self::Data), ("metadata", Self::Metadata)];
}
