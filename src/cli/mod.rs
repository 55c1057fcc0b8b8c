//! The command line `setline`: what an operator sees of a cluster of movers.
//!
//! Every command works on this machine (a Unix socket) and remotely (TCP, best through a tunnel),
//! prints a table for people or JSON for programs, and ends with a documented exit code
//! ([`ExitCode`]). With several movers as targets, commands that look show what each of them
//! sees, and commands that change something find the coordinator themselves.

mod args;
mod assignment;
mod config;
mod epoch;
mod output;
mod reach;
mod show;
mod units;
mod views;

pub use args::{Arguments, Command};
pub use output::{Format, Printer};
pub(crate) use show::warnings;
pub use units::{ago, bytes, duration_ns, parse_duration, percent};

use std::io::Write;
use std::time::Duration;

use clap::Parser;

use crate::config::Role;
use crate::control::client::ClientError;
use crate::control::model::{AssignmentInfo, ExitCode, Wish};
use crate::lab::options::LabCommand;
use crate::lab::{self, LabError};
use args::*;
use reach::Reach;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A mover did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The configuration holds faults; they have been printed.
    #[error("{0}")]
    Config(String),
    /// A lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A lab ran, and its answer is no; why has been printed.
    #[error("the lab failed")]
    Lost,
    /// Shown, but not all is well; what is wrong has been printed.
    #[error("{0}")]
    Degraded(String),
    /// Output cannot be written.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    fn is_broken_pipe(&self) -> bool {
        let (Self::Output(error) | Self::Lab(LabError::Output(error))) = self else { return false };
        error.kind() == std::io::ErrorKind::BrokenPipe
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::Client(error) => error.exit_code(),
            Self::Config(_) => ExitCode::Config,
            Self::Lab(error) => error.exit_code(),
            Self::Lost => ExitCode::Failure,
            Self::Degraded(_) => ExitCode::Degraded,
            Self::Output(_) => ExitCode::Failure,
        }
    }
}

/// Runs the program with the process's own arguments.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Help and version come this way, too.
            return if error.use_stderr() { ExitCode::Usage } else { ExitCode::Success };
        }
    };
    match run_to(&mut Printer::stdout(arguments.output), &arguments) {
        Ok(()) => ExitCode::Success,
        // Whoever reads our output has read enough.
        Err(error) if error.is_broken_pipe() => ExitCode::Success,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "setline: {error}");
            error.exit_code()
        }
    }
}

fn run_to(out: &mut Printer, arguments: &Arguments) -> Result<(), CliError> {
    if let Command::Config(ConfigCommand::Check { files, here }) = &arguments.command {
        return config::check(out, files, *here);
    }
    if let Command::Lab(command) = &arguments.command {
        let passed = match command {
            LabCommand::Run(options) => lab::run::run(options, out)?,
            LabCommand::Up(options) => lab::standing::up(options, out).map(|()| true)?,
            LabCommand::Down(options) => lab::standing::down(options, out).map(|()| true)?,
        };
        return if passed { Ok(()) } else { Err(CliError::Lost) };
    }
    let reach = Reach::new(arguments)?;
    match &arguments.command {
        Command::Config(_) | Command::Lab(_) => Ok(()),
        Command::Status => views::status(out, &reach),
        Command::Group(command) => match command {
            GroupCommand::Show { group } => views::groups(out, &reach, group.as_deref()),
            GroupCommand::SetPeriod { period, group } => {
                let group = reach.group(group.as_deref())?;
                let period_ms = period.as_millis() as u64;
                views::changed(
                    out,
                    &reach.change(Role::Primary, |c| c.set_period(&group, period_ms))?,
                )
            }
            GroupCommand::PauseApply { group } => {
                let group = reach.group(group.as_deref())?;
                views::changed(out, &reach.change(Role::Secondary, |c| c.pause_apply(&group))?)
            }
            GroupCommand::ResumeApply { group } => {
                let group = reach.group(group.as_deref())?;
                views::changed(out, &reach.change(Role::Secondary, |c| c.resume_apply(&group))?)
            }
        },
        Command::Volume(VolumeCommand::List) => views::volumes(out, &reach),
        Command::Volume(VolumeCommand::Map { volume: None, .. }) => {
            views::map(out, &reach.first(|c| c.volume_map())?)
        }
        Command::Volume(VolumeCommand::Map { volume: Some(volume), mover, dry_run, .. }) => {
            let wish = Wish::Place { volume: volume.clone(), mover: mover.clone() };
            wished(out, &reach, &wish, *dry_run)
        }
        Command::Assignment(AssignmentCommand::Show) => {
            assignment::show(out, &assignment::ask(&reach)?)
        }
        Command::Assignment(AssignmentCommand::Plan) => {
            assignment::plan(out, &assignment::ask(&reach)?)
        }
        Command::Assignment(AssignmentCommand::Policy { policy, dry_run }) => {
            wished(out, &reach, &Wish::Policy { policy: policy.clone() }, *dry_run)
        }
        Command::Mover(MoverCommand::Drain { mover, cancel, dry_run }) => {
            let wish = Wish::Drain { mover: mover.clone(), on: !cancel };
            leaving(out, &reach, mover, &wish, *dry_run)
        }
        Command::Mover(MoverCommand::Remove { mover, dry_run }) => {
            leaving(out, &reach, mover, &Wish::Remove { mover: mover.clone() }, *dry_run)
        }
        Command::Epoch(EpochCommand::Show) => epoch::show(out, &reach),
        Command::Core(CoreCommand::List) => views::cores(out, &reach),
        Command::Core(CoreCommand::Map) => views::core_map(out, &reach),
        Command::Mover(MoverCommand::List) => views::movers(out, &reach),
        Command::Mover(MoverCommand::Stop { drain }) => {
            for (client, answer) in reach.each(|client| client.shutdown(*drain)) {
                answer?;
                out.line(&format!("{}: stopping", client.target()))?;
            }
            Ok(())
        }
        Command::Set(command) => match command {
            SetCommand::List { group, limit } => {
                let group = reach.group(group.as_deref())?;
                views::sets(out, &reach, &group, *limit)
            }
            SetCommand::Show { set, group } => {
                let group = reach.group(group.as_deref())?;
                views::set(out, &reach, &group, *set)
            }
            SetCommand::Close { group } => {
                let group = reach.group(group.as_deref())?;
                views::closed(out, &reach.change(Role::Primary, |c| c.close_set(&group))?)
            }
        },
        Command::Ledger { volume, limit } => views::ledger(out, &reach, volume, *limit),
        Command::Events { follow, since } => events(out, &reach, *follow, *since),
        Command::Metrics => views::metrics(out, &reach),
    }
}

/// Has a member of the primary site note what is wanted, and shows what follows.
fn wished(out: &mut Printer, reach: &Reach, wish: &Wish, dry_run: bool) -> Result<(), CliError> {
    let info = wish_for(out, reach, wish, dry_run)?;
    assignment::plan(out, &info)
}

/// The same of a mover that is to leave, or to stay, and says when it has left already.
fn leaving(
    out: &mut Printer,
    reach: &Reach,
    mover: &str,
    wish: &Wish,
    dry_run: bool,
) -> Result<(), CliError> {
    let info = wish_for(out, reach, wish, dry_run)?;
    let member = info.fixed.is_some() || info.members.iter().any(|member| member.mover == mover);
    if !member && !out.is_json() {
        out.line(&format!("{mover} is no member of the site now"))?;
    }
    assignment::plan(out, &info)
}

fn wish_for(
    out: &mut Printer,
    reach: &Reach,
    wish: &Wish,
    dry_run: bool,
) -> Result<AssignmentInfo, CliError> {
    let info = reach.change(Role::Primary, |client| client.wish(wish, dry_run))?;
    if dry_run && !out.is_json() {
        out.line("dry run: nothing was changed; the command would be granted")?;
    }
    Ok(info)
}

/// How long one request for events waits; then the next is made.
const FOLLOW_WAIT: Duration = Duration::from_secs(2);

fn events(out: &mut Printer, reach: &Reach, follow: bool, since: u64) -> Result<(), CliError> {
    // Each mover counts its own events.
    let mut last = vec![since; reach.clients().len()];
    // With several movers to follow none may keep the others waiting.
    let wait = match (follow, last.len()) {
        (false, _) => Duration::ZERO,
        (true, 1) => FOLLOW_WAIT,
        (true, _) => Duration::from_millis(200),
    };
    let mut first = true;
    loop {
        let mut batch = Vec::new();
        for (at, client) in reach.clients().iter().enumerate() {
            let name = reach.name(at);
            match client.events(last[at], wait) {
                Ok(events) => {
                    // A mover that was restarted counts from 1 again.
                    last[at] = events.last().map_or(last[at], |event| event.id);
                    batch.extend(events.into_iter().map(|event| (name.clone(), event)));
                }
                Err(error) if follow && !first => {
                    tracing::debug!(%error, "no events");
                    std::thread::sleep(wait);
                }
                Err(error) => return Err(error.into()),
            }
        }
        first = false;
        batch.sort_by_key(|(_, event)| event.time_unix_ms);
        views::events(out, &batch, follow)?;
        if !follow {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
