//! What the reader says.

use super::super::block::{BlockFault, RunId};
use super::super::workload::Extent;
use serde::Serialize;
use std::collections::BTreeMap;

/// How many examples of each kind of fault are kept.
const EXAMPLES_MAX: usize = 8;

/// The answer of [`check`](super::check).
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The images are a cut that a crash of the primary could have left, and every
    /// block on them is sound.
    pub consistent: bool,
    /// No command of the floor is missing; `None` when no floor was given.
    pub floor_met: Option<bool>,
    /// The run; `None` if no block of any run was found and no log given.
    pub run: Option<RunId>,
    /// Whether the log took part.
    pub with_log: bool,
    /// The cut, as far as it can be said.
    pub cut: Cut,
    /// Per volume, in the order of the images.
    pub volumes: Vec<VolumeVerdict>,
    /// What speaks against consistency: counts of all, examples of some.
    pub faults: Faults,
    /// What of the floor is missing.
    pub lost: Lost,
}

/// A point on the run's axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Moment {
    /// Number of an event of the log.
    pub event: u64,
    /// Nanoseconds since 1970, by the writer's clock.
    pub unix_ns: u64,
}

/// Where the cut lies and what is beyond it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cut {
    /// Commands of which something is to be seen or that were overwritten whole.
    pub commands: u64,
    /// The newest command to be seen was issued here; all that was known before is
    /// in the cut if it is one.
    pub newest_issue: Option<Moment>,
    /// The newest command to be seen.
    pub newest: Option<CommandRef>,
    /// The first acknowledgement that the cut does not contain (needs the log); `None`
    /// if it contains all.
    pub first_missing_ack: Option<Moment>,
    /// How many acknowledged commands it does not contain (needs the log).
    pub acked_beyond: Option<u64>,
    /// From the first missing acknowledgement to the end of the log: how much
    /// acknowledged time the images are behind. 0 if nothing is missing.
    pub age_ns: Option<u64>,
}

/// One volume's part.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeVerdict {
    /// Its image.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Blocks that hold something of the run.
    pub written_blocks: u64,
    /// The newest command to be seen on this volume was issued here.
    pub newest_issue: Option<Moment>,
    /// The first known effect that it does not show (needs the log). A volume on
    /// which this lies before another's `newest_issue` is behind it.
    pub first_missing: Option<Moment>,
    /// Faults on this volume.
    pub faults: u64,
}

/// Names a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CommandRef {
    /// Its writer.
    pub writer: u16,
    /// Its number among the writer's.
    pub sequence: u64,
    /// What it covers.
    #[serde(flatten)]
    pub extent: Extent,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// Index of the volume.
    pub volume: u16,
    /// Block address.
    pub address: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: FaultKind,
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum FaultKind {
    /// The command must be in any cut that has `required_by`, but this block of it
    /// still holds what was there before.
    Missing {
        /// The command.
        command: CommandRef,
        /// What this block holds instead: a number of the same writer, 0 if initial.
        holds: u64,
        /// A command to be seen, issued when the missing one was known.
        required_by: Option<CommandRef>,
    },
    /// A part of the command is to be seen, and this block of it is older.
    Torn {
        /// The command.
        command: CommandRef,
        /// What this block holds instead: a number of the same writer, 0 if initial.
        holds: u64,
    },
    /// The block is damaged, or something that no run wrote.
    Unsound {
        /// How.
        block: BlockFault,
    },
    /// The block is sound, of this run, and does not belong here.
    Misplaced {
        /// The volume it was written to.
        volume_written: u16,
        /// The address it was written to.
        address_written: u64,
    },
    /// The block is sound, of this run, and says what its run's parameters deny.
    Impossible {
        /// Writer in the block.
        writer: u16,
        /// Sequence number in the block.
        sequence: u64,
    },
    /// The block is sound and of another run.
    OtherRun {
        /// That run.
        run: RunId,
    },
    /// The log is that of another run (volume and address mean nothing here).
    LogOfOtherRun {
        /// That run.
        run: RunId,
    },
    /// There are fewer images than the run has volumes (address means nothing here).
    VolumeAbsent,
    /// The image is too short for the run's span (address is its length in blocks).
    VolumeShort,
}

impl FaultKind {
    /// Its name in counts, the same as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Torn { .. } => "torn",
            Self::Unsound { block: BlockFault::Foreign } => "foreign",
            Self::Unsound { .. } => "corrupt",
            Self::Misplaced { .. } => "misplaced",
            Self::Impossible { .. } => "impossible",
            Self::OtherRun { .. } => "other_run",
            Self::LogOfOtherRun { .. } => "log_of_other_run",
            Self::VolumeAbsent => "volume_absent",
            Self::VolumeShort => "volume_short",
        }
    }
}

/// Faults, counted by kind, with examples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Faults {
    /// How many of each kind. Missing and torn commands count once, whatever their length.
    pub counts: BTreeMap<&'static str, u64>,
    /// The first few of each kind.
    pub examples: Vec<Fault>,
}

impl Faults {
    /// Counts a fault.
    pub fn add(&mut self, fault: Fault) {
        let count = self.counts.entry(fault.kind.name()).or_default();
        *count += 1;
        if *count <= EXAMPLES_MAX as u64 {
            self.examples.push(fault);
        }
    }

    /// How many there are of `kind`, by its name.
    pub fn count(&self, kind: &str) -> u64 {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// How many there are in all.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// What the floor demands and the images do not have.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Lost {
    /// How many commands.
    pub commands: u64,
    /// The first few.
    pub examples: Vec<CommandRef>,
}

impl Lost {
    /// Counts a command.
    pub fn add(&mut self, command: CommandRef) {
        self.commands += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(command);
        }
    }
}
