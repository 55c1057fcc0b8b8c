//! Who is responsible for what, and what an operator can want of that (F3, F6).

use serde::{Deserialize, Serialize};

/// Who has what, what moves, and what would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentInfo {
    /// The membership epoch.
    pub epoch: u32,
    /// Version of the map.
    pub map_version: u32,
    /// Why nothing ever moves; none where it does.
    pub fixed: Option<String>,
    /// How volumes are shared: `load`, `round-robin` or `pinned`.
    pub policy: String,
    /// Whether every member is up to date and everything is held as often as it should be: only then
    /// volumes are moved.
    pub whole: bool,
    /// The members.
    pub members: Vec<MemberLoad>,
    /// Volumes that an operator has placed.
    pub pinned: Vec<PinInfo>,
    /// Moves under way.
    pub under_way: Vec<Move>,
    /// Since when, milliseconds.
    pub under_way_ms: Option<u64>,
    /// Moves that would be planned now, or after those under way. Known to the mover that runs the
    /// boundaries.
    pub wanted: Vec<Move>,
}

/// A member and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberLoad {
    /// Its name.
    pub mover: String,
    /// Whether it is being drained.
    pub draining: bool,
    /// Volumes that it is responsible for.
    pub volumes: usize,
    /// Bytes of their updates, and 4096 for each, the older the less (half in 5 s). Known to the mover
    /// that runs the boundaries; 0 elsewhere.
    pub load: u64,
}

/// A placed volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinInfo {
    /// The volume, as `GROUP/VOLUME`.
    pub volume: String,
    /// Where it stays.
    pub mover: String,
}

/// A move of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The volume, as `GROUP/VOLUME`.
    pub volume: String,
    /// Who is responsible now.
    pub from: String,
    /// Who will be.
    pub to: String,
}

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Wish {
    /// A mover is to be responsible for nothing, and then to leave; or not any more.
    Drain {
        /// Its name.
        mover: String,
        /// Whether it is to.
        on: bool,
    },
    /// A mover is to leave at once, as if it had failed.
    Remove {
        /// Its name.
        mover: String,
    },
    /// A volume is to be at a mover and to stay there; or to be shared like others.
    Place {
        /// As `GROUP/VOLUME`, or its name where that is unique.
        volume: String,
        /// Where.
        mover: Option<String>,
    },
    /// How the volumes that are not placed are shared.
    Policy {
        /// `load`, `round-robin` or `pinned`.
        policy: String,
    },
}
