//! The client of a lab's unreplicated volumes: `setline-check verify`, a process of its own, which
//! writes and reads them beside the client of the volume pairs and reads all of them back at its end.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::process::{Process, Start};
use super::{LabError, machine, writer};

/// How long it may take to end: it reads everything back first.
const END_MAX: Duration = Duration::from_secs(90);

/// The running client.
#[derive(Debug)]
pub struct Verifier {
    process: Process,
    report: PathBuf,
    volumes: usize,
}

/// What it reports at its end, as far as the lab reads it.
#[derive(Debug, Clone, Deserialize)]
struct Said {
    ok: bool,
    blocks_compared: u64,
    mismatches: u64,
    unexpected: u64,
}

/// What was found of volumes that are not replicated (G11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unreplicated {
    /// How many there are.
    pub volumes: usize,
    /// Whether every command ended as it must, and every block was read as it was written.
    pub verified: bool,
    /// Blocks read and compared.
    pub blocks_compared: u64,
    /// Blocks that were not what was written.
    pub mismatches: u64,
    /// Commands that did not end as they must.
    pub unexpected: u64,
}

impl Verifier {
    /// Starts the client against every primary mover; `None` in a lab without such volumes.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn start(cluster: &Cluster, seed: u64) -> Result<Option<Self>, LabError> {
        let plan = cluster.plan();
        if plan.unreplicated.is_empty() {
            return Ok(None);
        }
        let nsids: Vec<String> = plan.unreplicated.iter().map(|v| v.nsid.to_string()).collect();
        let mut arguments: Vec<String> = [
            "--output",
            "json",
            "verify",
            "--seconds",
            "0",
            "--idle",
            "sleep",
            "--queue-depth",
            "4",
        ]
        .map(str::to_owned)
        .to_vec();
        for id in writer::transport_ids(cluster) {
            arguments.extend(["--trid".to_owned(), id]);
        }
        let mut add =
            |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        add("--volumes", &nsids.join(","));
        // What a base cannot do by itself (compare, say) ends as the base has it end.
        add("--without", "compare");
        // Every path is as good as the others: all of them are used.
        add("--paths", "spread");
        add("--keep-alive", "2");
        add("--progress", "none");
        add("--seed", &seed.to_string());
        let directory = &cluster.site().directory;
        let report = directory.join("verifier.report.json");
        let process = Process::start(&Start {
            name: "setline-check verify",
            program: &machine::program("setline-check")?,
            arguments: &arguments,
            namespace: plan.veth.as_ref().map(|veth| veth.hub.as_str()),
            log: &directory.join("log").join("setline-check-verify.log"),
            stdout: Some(&report),
        })?;
        Ok(Some(Self { process, report, volumes: plan.unreplicated.len() }))
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`LabError::Ended`].
    pub fn check(&mut self) -> Result<(), LabError> {
        self.process.check()
    }

    /// Has it end: it reads everything back, and says what it found.
    ///
    /// # Errors
    /// It does not end in time, or its report cannot be read.
    pub fn finish(&mut self) -> Result<Unreplicated, LabError> {
        self.process.signal(rustix::process::Signal::TERM);
        let what = "reading unreplicated volumes back".to_owned();
        self.process.wait(END_MAX).ok_or(LabError::Late { what, limit: END_MAX })?;
        let what = self.report.display().to_string();
        let bytes = std::fs::read(&self.report).map_err(|error| LabError::io(&what, error))?;
        let said: Said = serde_json::from_slice(&bytes)
            .map_err(|error| LabError::Check { what, said: error.to_string() })?;
        Ok(Unreplicated {
            volumes: self.volumes,
            verified: said.ok,
            blocks_compared: said.blocks_compared,
            mismatches: said.mismatches,
            unexpected: said.unexpected,
        })
    }
}
