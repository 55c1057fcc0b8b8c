//! Where the time stamps of updates come from.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the time stamps of updates come from (G8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timestamps {
    /// There are none.
    None,
    /// The mover's system clock, with the bound of its error.
    Clock,
    /// A timer that all primary movers have in common, at the coordinator.
    Common,
}

impl Timestamps {
    /// All sources.
    pub const ALL: [Self; 3] = [Self::None, Self::Clock, Self::Common];

    /// Its name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Clock => "clock",
            Self::Common => "common",
        }
    }
}

impl FromStr for Timestamps {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let mut all = Self::ALL.into_iter();
        all.find(|source| source.name() == name).ok_or_else(|| format!("one of {}", known()))
    }
}
