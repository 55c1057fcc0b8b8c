//! `setline config check`.

use std::path::PathBuf;

use serde::Serialize;

use super::{CliError, Printer};
use crate::config::{ConfigError, Fault, Loaded, Mover, Severity, cluster, machine};

#[derive(Serialize)]
struct FaultOut<'a> {
    severity: &'static str,
    file: &'a str,
    line: Option<u32>,
    column: Option<u32>,
    key: &'a str,
    found: &'a str,
    allowed: &'a str,
}

impl<'a> From<&'a Fault> for FaultOut<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self {
            severity: match fault.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            file: &fault.file,
            line: fault.position.map(|(line, _)| line),
            column: fault.position.map(|(_, column)| column),
            key: &fault.key,
            found: &fault.found,
            allowed: &fault.allowed,
        }
    }
}

/// Reads `files`, prints every fault, and fails if one forbids their use.
pub(super) fn check(out: &mut Printer, files: &[PathBuf], here: bool) -> Result<(), CliError> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut sound: Vec<Loaded> = Vec::new();
    for file in files {
        match Mover::load(file) {
            Ok(loaded) => {
                faults.extend(loaded.warnings.iter().cloned());
                sound.push(loaded);
            }
            Err(ConfigError::Faults(found)) => faults.extend(found),
            Err(error @ ConfigError::Read { .. }) => {
                return Err(CliError::Config(error.to_string()));
            }
        }
    }
    faults.extend(cluster::cross_check(&sound));
    if here {
        faults.extend(sound.iter().flat_map(|file| machine::check(&file.mover, &file.source)));
    }
    let errors = faults.iter().filter(|fault| fault.severity == Severity::Error).count();
    if out.is_json() {
        out.json(&faults.iter().map(FaultOut::from).collect::<Vec<_>>())?;
    } else {
        for fault in &faults {
            out.line(&fault.to_string())?;
        }
        for file in &sound {
            let me = &file.mover;
            let volumes: usize = me.groups.iter().map(|group| group.volumes.len()).sum();
            out.line(&format!(
                "{}: mover {} of site {}, {} pollers, {} peers, {} groups, {volumes} volumes, \
                 {} MiB of hugepages; paths of hosts and movers: {}",
                file.source.file,
                me.mover.name,
                me.mover.site,
                me.mover.cores.len(),
                me.peers.len(),
                me.groups.len(),
                me.mover.hugepage_mib,
                me.traffic(),
            ))?;
        }
    }
    match errors {
        0 => Ok(()),
        1 => Err(CliError::Config("1 fault".to_owned())),
        n => Err(CliError::Config(format!("{n} faults"))),
    }
}
