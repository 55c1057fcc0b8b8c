//! The command line `setline-check`.

mod args;
mod compare;
mod drive;
mod images;
mod show;
mod table;
mod target;
mod verify;
mod write;

use clap::{Parser, Subcommand, ValueEnum};
use std::io::Write as _;
use std::process::ExitCode;

/// How the program ends; `docs/check.md` has the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well: consistent, equal, verified, or all writes acknowledged.
    Ok = 0,
    /// The answer is no: inconsistent, different, read back wrong.
    No = 1,
    /// Wrong usage (also clap's own).
    Usage = 2,
    /// An input is not what it must be: image, log, floor, sizes.
    Input = 3,
    /// A target cannot be reached.
    Unreachable = 4,
    /// Done, but not in full health: host errors, unfinished writes, halted writers.
    Degraded = 6,
    /// Not finished in the time allowed.
    Timeout = 7,
    /// Consistent, but what the floor demands is missing.
    Lost = 8,
}

/// What went wrong before there was an answer.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(super) fn input(message: impl ToString) -> Self {
        Self { exit: Exit::Input, message: message.to_string() }
    }

    pub(super) fn usage(message: impl ToString) -> Self {
        Self { exit: Exit::Usage, message: message.to_string() }
    }

    #[cfg_attr(not(feature = "datapath"), expect(dead_code, reason = "files are always there"))]
    pub(super) fn unreachable(message: impl ToString) -> Self {
        Self { exit: Exit::Unreachable, message: message.to_string() }
    }
}

/// Proves that a copy of volumes is one point in time, on any replication product.
#[derive(Debug, Parser)]
#[command(name = "setline-check", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How to print the result on standard output
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write dependent writes over many volumes and log issues and acknowledgements
    Write(write::Args),
    /// Write, read back and compare with every kind of command
    Verify(verify::Args),
    /// Decide whether images of volumes are one point in time, and which
    Images(images::Args),
    /// Compare images volume by volume
    Compare(compare::Args),
    /// Print what a block of an image holds
    Block(show::BlockArgs),
    /// Print the events of a log
    Log(show::LogArgs),
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

impl Output {
    /// Prints `value` as JSON, or what `table` makes of it.
    fn print<T: serde::Serialize>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(value).map_err(Failure::input)?,
            Self::Table => table(value),
        };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|e| Failure::input(format!("standard output: {e}"))),
        }
    }
}

/// The program: parses the arguments of the process, runs, returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::level_filters::LevelFilter::WARN.into())
                .from_env_lossy(),
        )
        .init();
    let result = match cli.command {
        Command::Write(args) => write::run(&args, cli.output),
        Command::Verify(args) => verify::run(&args, cli.output),
        Command::Images(args) => images::run(&args, cli.output),
        Command::Compare(args) => compare::run(&args, cli.output),
        Command::Block(args) => show::block(&args, cli.output),
        Command::Log(args) => show::log(&args, cli.output),
    };
    let exit = result.unwrap_or_else(|failure| {
        // Nothing is left to do if standard error is gone, too.
        let _ = writeln!(std::io::stderr(), "setline-check: {}", failure.message);
        failure.exit
    });
    ExitCode::from(exit as u8)
}
