//! A lab's own record of itself: `lab.json` in its directory.
//!
//! It tells `setline --lab DIR`, `setline lab down` and a lab that cleans up after itself what
//! belongs to the lab: sockets, processes, network namespaces. A process is named by its pid and
//! its start time, so that a pid that was given to another process since is never signalled.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Role;

/// The record's file name.
const FILE: &str = "lab.json";

/// What belongs to a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The directory it lives in, absolute.
    pub directory: PathBuf,
    /// The only group's name.
    pub group: String,
    /// Its NQN.
    pub nqn: String,
    /// The process that runs the lab; absent for a lab that was left running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<ProcessId>,
    /// Primary movers first, each site in the order of numbers.
    pub movers: Vec<SiteMover>,
    /// Programs of others that run for it.
    #[serde(default)]
    pub services: Vec<SiteService>,
    /// Network namespaces made for it.
    pub namespaces: Vec<String>,
}

/// A program of others that runs for a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteService {
    /// Its name.
    pub name: String,
    /// Its process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// A mover of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteMover {
    /// Its name.
    pub name: String,
    /// What its site does.
    pub role: Role,
    /// Its configuration.
    pub config: PathBuf,
    /// Its API.
    pub socket: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Prefix of its files in hugetlbfs.
    pub file_prefix: String,
    /// Its network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
}

/// A process, told from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: u32,
    /// Its start, in clock ticks since boot (field 22 of /proc/PID/stat, proc(5)).
    pub start_ticks: u64,
}

/// Why a lab's record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// There is none.
    #[error("{}: no lab is there (no {FILE})", .directory.display())]
    Absent {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// It cannot be read or written.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is not such a record.
    #[error("{}: not a lab's record: {error}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
}

impl Site {
    /// The lab in `directory`.
    ///
    /// # Errors
    /// [`SiteError`].
    pub fn read(directory: &Path) -> Result<Self, SiteError> {
        let path = directory.join(FILE);
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SiteError::Absent { directory: directory.to_owned() },
            _ => SiteError::File { path: path.clone(), error },
        })?;
        serde_json::from_slice(&bytes).map_err(|error| SiteError::Format { path, error })
    }

    /// Writes the record, at once or not at all.
    ///
    /// # Errors
    /// [`SiteError::File`].
    pub fn write(&self) -> Result<(), SiteError> {
        let path = self.directory.join(FILE);
        let fresh = self.directory.join("lab.json.new");
        let failed = |error| SiteError::File { path: path.clone(), error };
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| SiteError::Format { path: path.clone(), error })?;
        std::fs::write(&fresh, bytes).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)
    }

    /// The mover called `name`.
    #[must_use]
    pub fn mover(&self, name: &str) -> Option<&SiteMover> {
        self.movers.iter().find(|mover| mover.name == name)
    }

    /// The movers of one site.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &SiteMover> {
        self.movers.iter().filter(move |mover| mover.role == role)
    }
}

impl ProcessId {
    /// The process that has `pid` now; `None` when there is none, or when it has ended and only
    /// waits to be collected.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_ticks) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_ticks })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends `signal` if the process still runs. Whether it was sent.
    pub fn signal(self, signal: rustix::process::Signal) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return false };
        self.is_alive() && rustix::process::kill_process(pid, signal).is_ok()
    }
}

/// State and start time out of /proc/PID/stat. The name before them may hold anything, so they
/// are looked for behind its closing parenthesis.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3; the start time is field 22.
    Some((state, fields.nth(22 - 3 - 1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let before = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        assert!(!before.is_alive());
        assert!(!before.signal(rustix::process::Signal::KILL), "it was not sent");
    }

    #[test]
    fn names_with_parentheses_and_blanks_are_read_past() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(stat), Some(('S', 4711)));
    }

    #[test]
    fn a_record_survives_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let site = Site {
            directory: directory.path().to_owned(),
            group: "lab".into(),
            nqn: "nqn.2026-11.io.setline:lab".into(),
            keeper: None,
            movers: vec![SiteMover {
                name: "p1".into(),
                role: Role::Primary,
                config: "/a.toml".into(),
                socket: "/a.sock".into(),
                log: "/a.log".into(),
                file_prefix: "setline-x".into(),
                namespace: None,
                process: ProcessId::of(std::process::id()),
            }],
            services: vec![SiteService { name: "array".into(), process: None }],
            namespaces: vec!["slx-p1".into()],
        };
        site.write().unwrap();
        assert_eq!(Site::read(directory.path()).unwrap(), site);
        let elsewhere = directory.path().join("none");
        assert!(matches!(Site::read(&elsewhere), Err(SiteError::Absent { .. })));
    }
}
