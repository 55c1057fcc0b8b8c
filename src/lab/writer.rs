//! The independent client: `setline-check write`, a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::options::{self, RunOptions};
use super::process::{Process, Start};
use super::{LabError, machine};
use crate::config::{Listener, Role};

/// How long the client may take to connect and begin.
pub const BEGIN_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end: what is in flight must be acknowledged first.
const END_MAX: Duration = Duration::from_secs(90);

/// The running client.
#[derive(Debug)]
pub struct Writer {
    process: Process,
    log: PathBuf,
    status: PathBuf,
    report: PathBuf,
}

/// What its status file says, as far as the lab reads it.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Progress {
    /// Writes acknowledged.
    pub acked_writes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Errors that it received.
    pub host_errors: u64,
}

/// What it reports at its end, as far as the lab reads it.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Duration of the run.
    pub seconds: f64,
    /// Writes acknowledged.
    pub acked_writes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Acknowledged writes per second.
    pub writes_per_s: f64,
    /// From issue to acknowledgement.
    pub write_latency_ns: LatencyNs,
    /// Errors that it received.
    pub host_errors: u64,
    /// What it did about failures of paths.
    #[serde(default)]
    pub paths: Paths,
    /// Commands without success at the end.
    pub unfinished_writes: u64,
    /// Reads that returned less than had been acknowledged before.
    #[serde(default)]
    pub stale_reads: u64,
    /// Reads that returned a damaged block.
    #[serde(default)]
    pub corrupt_reads: u64,
}

/// What the client did about failures of paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// Paths that were lost.
    pub lost: u64,
    /// Paths that were connected again.
    pub connected_again: u64,
    /// Commands that were sent again.
    pub retries: u64,
}

/// A distribution of the client's.
#[derive(Debug, Clone, Copy, Deserialize)]
#[allow(missing_docs)]
pub struct LatencyNs {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// Transport ids, as SPDK writes them, of every primary mover.
#[must_use]
pub fn transport_ids(cluster: &Cluster) -> Vec<String> {
    let movers = cluster.plan().movers.iter();
    let primary = movers.filter(|mover| mover.config.mover.role == Role::Primary);
    primary
        .filter_map(|mover| {
            let group = mover.config.groups.first()?;
            let id = match mover.config.listeners.first()? {
                Listener::VfioUser { directory } => {
                    let directory = group.vfio_user_directory(directory);
                    format!("trtype:VFIOUSER traddr:{}", directory.display())
                }
                Listener::Tcp { address, port } => {
                    format!("trtype:TCP adrfam:IPv4 traddr:{address} trsvcid:{port}")
                }
            };
            Some(format!("{id} subnqn:{}", group.nqn))
        })
        .collect()
}

/// The client's arguments.
fn arguments(
    options: &RunOptions,
    seed: u64,
    ids: &[String],
    nsids: &[u32],
    log: &Path,
    status: &Path,
) -> Vec<String> {
    let mut arguments = vec!["--output".to_owned(), "json".to_owned(), "write".to_owned()];
    for id in ids {
        arguments.extend(["--trid".to_owned(), id.clone()]);
    }
    let nsids: Vec<String> = nsids.iter().map(u32::to_string).collect();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--volumes", nsids.join(","));
    // The lab says when it ends.
    add("--seconds", "0".to_owned());
    add("--grace", "60".to_owned());
    // Movers shut a silent one out long before.
    add("--keep-alive", "2".to_owned());
    add("--idle", "sleep".to_owned());
    add("--progress", "none".to_owned());
    add("--writers", options.writers.to_string());
    add("--queue-depth", options.queue_depth.to_string());
    add("--rate", options.rate.to_string());
    add("--read-percent", "5".to_owned());
    let paths = match options.paths {
        options::Paths::Best => "best",
        options::Paths::Any => "spread",
        options::Paths::Detour => "detour",
    };
    add("--paths", paths.to_owned());
    add("--seed", seed.to_string());
    add("--log", log.display().to_string());
    add("--status", status.display().to_string());
    arguments
}

impl Writer {
    /// Starts the client against every primary mover.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn start(cluster: &Cluster, options: &RunOptions, seed: u64) -> Result<Self, LabError> {
        let directory = &cluster.site().directory;
        let log = directory.join("writer.log");
        let status = directory.join("writer.status.json");
        let report = directory.join("writer.report.json");
        let nsids: Vec<u32> = cluster.plan().volumes.iter().map(|volume| volume.nsid).collect();
        let ids = transport_ids(cluster);
        let program = machine::program("setline-check")?;
        let process = Process::start(&Start {
            name: "setline-check",
            program: &program,
            arguments: &arguments(options, seed, &ids, &nsids, &log, &status),
            // Where the movers' host legs lead.
            namespace: cluster.plan().veth.as_ref().map(|veth| veth.hub.as_str()),
            log: &directory.join("log").join("setline-check.log"),
            stdout: Some(&report),
        })?;
        Ok(Self { process, log, status, report })
    }

    /// How far it is; nothing until it has begun.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        serde_json::from_slice(&std::fs::read(&self.status).ok()?).ok()
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`LabError::Ended`].
    pub fn check(&mut self) -> Result<(), LabError> {
        self.process.check()
    }

    /// The log of issues and acknowledgements.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Has it end: nothing more is issued, what is in flight is waited for.
    ///
    /// # Errors
    /// It does not end in time, or its report cannot be read.
    pub fn finish(&mut self) -> Result<Outcome, LabError> {
        self.process.signal(rustix::process::Signal::TERM);
        let late =
            || LabError::Late { what: "acknowledging the last writes".to_owned(), limit: END_MAX };
        // Its exit code says no more than its report.
        self.process.wait(END_MAX).ok_or_else(late)?;
        let what = self.report.display().to_string();
        let bytes = std::fs::read(&self.report).map_err(|error| LabError::io(&what, error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let log = std::fs::read_to_string(
                self.report.with_file_name("log").join("setline-check.log"),
            );
            let said = format!("{error}; {}", log.unwrap_or_default().trim());
            LabError::Check { what, said }
        })
    }
}
