//! `setline lab`: both sites on one machine, for a first look, for tests and for proofs.
//!
//! A lab is made of the real parts only: `setlined` processes with real SPDK and DPDK, an
//! independent NVMe client (`setline-check write`), files for volumes and journals. It is
//! [`plan`]ned as values first, then made ([`cluster`]), watched ([`run`]) and judged
//! ([`verdict`]), and whatever happens it is removed again: processes by pid and start time,
//! hugepage files, sockets, namespaces, directory.

pub mod array;
pub mod cluster;
pub mod etcd;
pub mod faults;
mod inject;
pub mod interrupt;
pub mod machine;
pub mod netns;
pub mod options;
pub mod plan;
pub mod plot;
pub mod process;
pub mod report;
pub mod run;
pub mod service;
pub mod site;
pub mod stalls;
pub mod standing;
pub mod unreplicated;
pub mod verdict;
pub mod watch;
pub mod writer;

use std::path::PathBuf;
use std::time::Duration;

use crate::control::client::ClientError;
use crate::control::model::ExitCode;

/// Why a lab failed. A lab that ran and whose answer is no is not an error: see
/// [`report::Report::passed`].
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The options make no lab.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// The kills, or other faults, cannot be.
    #[error(transparent)]
    Fault(#[from] faults::FaultError),
    /// There is no such lab, or its record cannot be used.
    #[error(transparent)]
    Site(#[from] site::SiteError),
    /// The directory holds something already.
    #[error("{}: not empty; name a directory that is empty or does not exist", .directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// Not enough room.
    #[error(
        "the lab needs {needed} in files that take O_DIRECT; {looked}; use --dir, or smaller --volume-mib, --volumes or --journal-mib"
    )]
    NoRoom {
        /// What it needs.
        needed: String,
        /// Where was looked.
        looked: String,
    },
    /// Not enough hugepages.
    #[error(
        "the lab needs {needed_mib} MiB of hugepages, {free_mib} MiB are free; reserve more with: echo {pages} > /proc/sys/vm/nr_hugepages; or use fewer movers, or a smaller --arena-mib"
    )]
    Hugepages {
        /// What it needs.
        needed_mib: u64,
        /// What is free.
        free_mib: u64,
        /// Pages to reserve in all.
        pages: u64,
    },
    /// A program is missing.
    #[error("{name} is not there ({}); build it with: cargo build --release", .looked.display())]
    NoProgram {
        /// The program.
        name: String,
        /// Where it should be.
        looked: PathBuf,
    },
    /// A namespace or interface cannot be made.
    #[error("{command}: {said}; --network veth needs root and iproute2")]
    Network {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// The system refused something.
    #[error("{what}: {error}")]
    Io {
        /// What was touched.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Output cannot be written.
    #[error("output: {0}")]
    Output(std::io::Error),
    /// A process ended that should run, or ended badly.
    #[error("{name} ended with {how}; its log {} ends with:\n{tail}", .log.display())]
    Ended {
        /// The process.
        name: String,
        /// How it ended.
        how: String,
        /// Its log.
        log: PathBuf,
        /// The log's end.
        tail: String,
    },
    /// A process did not stop and was killed.
    #[error("{name} did not stop within {} s and was killed; see {}", .limit.as_secs(), .log.display())]
    NotStopped {
        /// The process.
        name: String,
        /// How long was waited.
        limit: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// Movers did not become ready.
    #[error("not ready after {} s: {names}; see {}", .limit.as_secs(), .logs.display())]
    NotReady {
        /// The movers.
        names: String,
        /// How long was waited.
        limit: Duration,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {} s", .limit.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// A mover did not do something.
    #[error("{mover}: {error}")]
    Call {
        /// The mover.
        mover: String,
        /// What went wrong.
        error: Box<ClientError>,
    },
    /// The client's results cannot be read, or images cannot be checked.
    #[error("{what}: {said}")]
    Check {
        /// What was read.
        what: String,
        /// What is wrong.
        said: String,
    },
    /// The lab's own process still runs.
    #[error("this lab is run by process {pid}; interrupt that")]
    Kept {
        /// The process.
        pid: u32,
    },
    /// Something failed, and there is something to look at.
    #[error("{error}\nkept: {}", .directory.display())]
    InLab {
        /// What failed.
        error: Box<LabError>,
        /// The lab's directory.
        directory: PathBuf,
    },
    /// The lab was asked to end.
    #[error("interrupted; everything was stopped and removed")]
    Interrupted,
    /// More than one thing.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<LabError>),
}

impl LabError {
    fn io(what: &str, error: std::io::Error) -> Self {
        Self::Io { what: what.to_owned(), error }
    }

    fn call(mover: &str, error: ClientError) -> Self {
        Self::Call { mover: mover.to_owned(), error: Box::new(error) }
    }

    /// Adds where to look.
    fn kept(self, directory: &std::path::Path) -> Self {
        Self::InLab { error: Box::new(self), directory: directory.to_owned() }
    }

    /// The exit code it becomes.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Plan(plan::PlanError::Config(_)) => ExitCode::Config,
            Self::Plan(_) | Self::Fault(_) | Self::Site(_) => ExitCode::Usage,
            Self::NotEmpty { .. } | Self::Kept { .. } => ExitCode::Refused,
            Self::InLab { error, .. } => error.exit_code(),
            Self::NotReady { .. } | Self::Late { .. } => ExitCode::Timeout,
            Self::Call { error, .. } => error.exit_code(),
            _ => ExitCode::Failure,
        }
    }
}
