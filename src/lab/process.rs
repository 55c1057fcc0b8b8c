//! Processes of a lab: started, signalled, waited for, never left behind.

use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::LabError;
use super::site::ProcessId;

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running child. Dropping it kills it: a lab that fails leaves nothing running.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    released: bool,
}

/// How to start a process.
#[derive(Debug)]
pub struct Start<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// The network namespace it runs in.
    pub namespace: Option<&'a str>,
    /// Where its standard error goes, and its standard output if that has no place of its own;
    /// appended to, for a mover that is started again.
    pub log: &'a Path,
    /// Where its standard output goes.
    pub stdout: Option<&'a Path>,
}

impl Process {
    /// Starts it in a process group of its own: an interrupt from the terminal is for the lab,
    /// which ends its processes in order.
    ///
    /// # Errors
    /// The program or its log cannot be opened.
    pub fn start(start: &Start<'_>) -> Result<Self, LabError> {
        let failed = |error| LabError::io(start.name, error);
        let log = OpenOptions::new().create(true).append(true).open(start.log).map_err(failed)?;
        let stdout = match start.stdout {
            Some(path) => std::fs::File::create(path).map_err(failed)?,
            None => log.try_clone().map_err(failed)?,
        };
        let mut command = match start.namespace {
            None => Command::new(start.program),
            // `ip netns exec` becomes the program: same pid.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(start.program);
                command
            }
        };
        let child = command
            .args(start.arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let name = start.name.to_owned();
        Ok(Self { name, child, log: start.log.to_owned(), released: false })
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pid and start time; `None` once it has ended.
    #[must_use]
    pub fn id(&self) -> Option<ProcessId> {
        ProcessId::of(self.child.id())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`LabError::Ended`] with the end of its log.
    pub fn check(&mut self) -> Result<(), LabError> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(self.ended_error(status)),
        }
    }

    fn ended_error(&self, status: ExitStatus) -> LabError {
        LabError::Ended {
            name: self.name.clone(),
            how: describe(status),
            log: self.log.clone(),
            tail: tail(&self.log),
        }
    }

    /// Sends a signal. It may have ended already.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(id) = self.id()
        {
            id.signal(signal);
        }
    }

    /// Kills it (-9) and collects it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Asks it to stop (SIGTERM), waits, and judges how it ended. One that does not end in time
    /// is killed.
    ///
    /// # Errors
    /// [`LabError::Ended`] if it failed, [`LabError::NotStopped`] if it had to be killed.
    pub fn stop(&mut self, limit: Duration) -> Result<(), LabError> {
        self.signal(Signal::TERM);
        self.has_stopped(limit)
    }

    /// As [`Self::stop`], for one that was asked already: asking a mover twice has it end at once,
    /// whatever it still holds.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn has_stopped(&mut self, limit: Duration) -> Result<(), LabError> {
        match self.wait(limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended_error(status)),
            None => {
                self.kill();
                let (name, log) = (self.name.clone(), self.log.clone());
                Err(LabError::NotStopped { name, limit, log })
            }
        }
    }

    /// Leaves it running when this value goes: for `lab up`.
    pub fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if self.ended().is_none() {
            self.kill();
        }
        super::machine::remove_runtime_directory(self.child.id());
    }
}

/// How a process ended, in words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(15);
    lines[from..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// Asks processes that are nobody's children to stop, waits, kills the rest. Whether all stopped
/// by themselves.
pub fn stop_all(ids: &[ProcessId], limit: Duration) -> bool {
    for id in ids {
        id.signal(Signal::TERM);
    }
    let until = Instant::now() + limit;
    while ids.iter().any(|id| id.is_alive()) {
        if Instant::now() >= until {
            for id in ids {
                id.signal(Signal::KILL);
            }
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Process::start(&Start {
            name: "sh",
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            namespace: None,
            log,
            stdout: None,
        })
        .unwrap()
    }

    #[test]
    fn a_process_that_ends_by_itself_is_reported_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = shell("echo no such port; exit 3", &directory.path().join("log"));
        process.wait(Duration::from_secs(30)).unwrap();
        let error = process.check().unwrap_err().to_string();
        assert!(error.contains("exit code 3") && error.contains("| no such port"), "{error}");
    }

    #[test]
    fn a_process_that_does_not_stop_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        // The shell says so once its trap is set.
        let mut process = shell("trap '' TERM; echo set; while :; do sleep 0.01; done", &log);
        while std::fs::read_to_string(&log).unwrap_or_default().is_empty() {
            std::thread::sleep(LOOK_EVERY);
        }
        let error = process.stop(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, LabError::NotStopped { .. }));
        assert!(process.id().is_none());
    }

    #[test]
    fn a_dropped_process_is_gone_and_a_released_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let process = shell("sleep 600", &log);
        let id = process.id().unwrap();
        drop(process);
        assert!(!id.is_alive());
        let process = shell("sleep 600", &log);
        let id = process.id().unwrap();
        process.release();
        assert!(id.is_alive());
        assert!(stop_all(&[id], Duration::from_secs(30)));
    }
}
