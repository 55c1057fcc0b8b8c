//! The command line's grammar.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use super::output::Format;
use super::units::parse_duration;
use crate::control::client::Target;
use crate::lab::options::LabCommand;

/// Looks at and directs movers of setline.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 unreachable, 5 refused for safety,
/// 6 degraded, 7 not done in time.
#[derive(Debug, Parser)]
#[command(name = "setline", version, max_term_width = 100)]
pub struct Arguments {
    /// A mover's API: the path of its socket, or HOST:PORT. Several may be named.
    #[arg(
        long,
        global = true,
        env = "SETLINE_API",
        value_delimiter = ',',
        value_name = "PATH|HOST:PORT",
        value_parser = |text: &str| text.parse::<Target>().map_err(|error| error.to_string())
    )]
    pub target: Vec<Target>,
    /// All movers of the lab in this directory.
    #[arg(long, global = true, value_name = "DIR")]
    pub lab: Option<PathBuf>,
    /// Longest time a mover may take to answer.
    #[arg(long, global = true, default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Tables for people, or JSON for programs.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Both sites on this machine, for a first look, for tests and for proofs.
    #[command(subcommand)]
    Lab(LabCommand),
    /// How movers and groups are. Exit code 6 when not all is well.
    Status,
    /// Groups: volumes that are cut together.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Volume pairs.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Who belongs to a site, and since when.
    #[command(subcommand)]
    Epoch(EpochCommand),
    /// Pollers and their cores.
    #[command(subcommand)]
    Core(CoreCommand),
    /// Movers of both sites.
    #[command(subcommand)]
    Mover(MoverCommand),
    /// Who is responsible for which volume, and how that is decided.
    #[command(subcommand)]
    Assignment(AssignmentCommand),
    /// Consistent sets.
    #[command(subcommand)]
    Set(SetCommand),
    /// What is retained of a volume's updates: number, set, copies, origin.
    Ledger {
        /// GROUP/VOLUME, or the volume's name where that is unique.
        volume: String,
        /// Newest entries to show.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// What happened.
    Events {
        /// Goes on, until interrupted.
        #[arg(long)]
        follow: bool,
        /// Only events with a higher number.
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        since: u64,
    },
    /// All counters.
    Metrics,
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `setline group`.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// State, sets and recovery point.
    Show {
        /// The group; all when left out.
        group: Option<String>,
    },
    /// Changes the formation period from the next set on.
    SetPeriod {
        /// From 10ms to 30d.
        #[arg(value_parser = parse_duration)]
        period: Duration,
        /// The group; may be left out when there is one only.
        group: Option<String>,
    },
    /// Stops applying sets at a boundary, at all secondary movers; receiving goes on.
    PauseApply {
        /// The group; may be left out when there is one only.
        group: Option<String>,
    },
    /// Goes on applying sets.
    ResumeApply {
        /// The group; may be left out when there is one only.
        group: Option<String>,
    },
}

/// `setline volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// All volumes with their identifiers and disks.
    List,
    /// Which mover is responsible for which volume; with --mover or --anywhere changes it.
    Map {
        /// The volume to place: GROUP/VOLUME, or its name where that is unique.
        #[arg(requires = "place")]
        volume: Option<String>,
        /// Moves the volume there at the next boundary; it stays there until it is placed elsewhere.
        #[arg(long, group = "place", requires = "volume")]
        mover: Option<String>,
        /// The volume is shared among the movers like others again.
        #[arg(long, group = "place", requires = "volume")]
        anywhere: bool,
        /// Only says what would follow.
        #[arg(long, requires = "place")]
        dry_run: bool,
    },
}

/// `setline assignment`.
#[derive(Debug, Subcommand)]
pub enum AssignmentCommand {
    /// Who has what, what an operator wants, and what moves.
    Show,
    /// The moves that are under way, and those that would be planned now.
    Plan,
    /// Changes how volumes are shared that are not placed.
    Policy {
        /// load: by load, when movers differ by much; round-robin: in turn; pinned: nothing moves.
        policy: String,
        /// Only says what would follow.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `setline epoch`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum EpochCommand {
    /// What each site has agreed on, how far its movers are, and who was excluded.
    Show,
}

/// `setline core`.
#[derive(Debug, Subcommand)]
pub enum CoreCommand {
    /// Load of each poller.
    List,
    /// Which core serves which volume.
    Map,
}

/// `setline mover`.
#[derive(Debug, Subcommand)]
pub enum MoverCommand {
    /// All movers, as the targets see them.
    List,
    /// Moves everything away from a mover without a stall for hosts; then it leaves and ends.
    Drain {
        /// Its name.
        mover: String,
        /// Ends a drain that is under way: the mover is given volumes again.
        #[arg(long)]
        cancel: bool,
        /// Only says what would follow.
        #[arg(long)]
        dry_run: bool,
    },
    /// Excludes a mover at once, as if it had failed: others take over what it has.
    Remove {
        /// Its name.
        mover: String,
        /// Only says whether anything would be lost.
        #[arg(long)]
        dry_run: bool,
    },
    /// Stops the targets.
    Stop {
        /// First waits until what the mover holds is safe elsewhere.
        #[arg(long)]
        drain: bool,
    },
}

/// `setline set`.
#[derive(Debug, Subcommand)]
pub enum SetCommand {
    /// Sets in existence, newest first.
    List {
        /// The group; may be left out when there is one only.
        group: Option<String>,
        /// Newest sets to show.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// One set with its manifest.
    Show {
        /// Its number.
        set: u64,
        /// The group; may be left out when there is one only.
        group: Option<String>,
    },
    /// Closes the open set now.
    Close {
        /// The group; may be left out when there is one only.
        group: Option<String>,
    },
}

/// `setline config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Reads files and reports every fault; several files are also held against each other.
    Check {
        /// Movers' files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Also checks whether this machine has what they ask for.
        #[arg(long)]
        here: bool,
    },
}
