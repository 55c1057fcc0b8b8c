//! `setlined`: one mover.
//!
//! Reads its configuration file, runs until it is told to stop (SIGTERM, SIGINT, or through the
//! API), and ends with an exit code that says how. A first signal lets it make safe what it has; a
//! second one ends that.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use setline::config::{Loaded, LogFormat, LogLevel, Mover, Severity, machine};
use setline::control::model::ExitCode;
use setline::control::stop::Outcome;
use setline::runtime::launch;
use tracing_subscriber::EnvFilter;

/// One mover of a setline site.
#[derive(Debug, Parser)]
#[command(name = "setlined", version, about)]
struct Options {
    /// Configuration file (TOML); `setline config check FILE` judges it.
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    let loaded = match Mover::load(&options.config) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::Config.into();
        }
    };
    open_log(&loaded.mover);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if !machine_fits(&loaded) {
        return ExitCode::Config.into();
    }
    let code = match launch::run(loaded, tell_ready) {
        Ok(Outcome::Clean) => ExitCode::Success,
        Ok(Outcome::Unclean { reason }) => {
            tracing::error!(
                "STOPPED UNCLEAN: {reason}. The next start will say that a resynchronisation is \
                 needed; the secondary keeps its last consistent point"
            );
            ExitCode::Degraded
        }
        Ok(Outcome::Excluded { reason, asked: true }) => {
            tracing::info!("the mover has left its site: {reason}");
            ExitCode::Success
        }
        Ok(Outcome::Excluded { reason, .. }) => {
            tracing::error!(
                "EXCLUDED: {reason}. Nothing is lost; started again, it joins the others"
            );
            ExitCode::Excluded
        }
        Ok(Outcome::Failed { reason }) => {
            tracing::error!("FAILED: {reason}");
            ExitCode::Failure
        }
        Err(error) => {
            tracing::error!("cannot start: {error}");
            ExitCode::Failure
        }
    };
    let _ = std::io::stdout().flush();
    // Not by returning: after a failure SPDK's threads may still run, and nothing may be taken
    // down under them.
    setline::spdk::env::end_process(i32::from(code as u8));
}

/// One line for people and scripts that wait for it.
#[allow(clippy::print_stdout, reason = "the one line that is the daemon's output")]
fn tell_ready(mover: &Mover) {
    let me = &mover.mover;
    println!(
        "setlined: mover {} (id {}) of site {} is ready; API at {}",
        me.name,
        me.id,
        me.site,
        mover.api.socket.display()
    );
}

/// Whether the machine has what the configuration asks for; says what it lacks.
fn machine_fits(loaded: &Loaded) -> bool {
    let faults = machine::check(&loaded.mover, &loaded.source);
    for fault in &faults {
        match fault.severity {
            Severity::Error => tracing::error!("{fault}"),
            Severity::Warning => tracing::warn!("{fault}"),
        }
    }
    !faults.iter().any(|fault| fault.severity == Severity::Error)
}

/// Log lines go to standard error. `RUST_LOG` adds to the configured level.
fn open_log(mover: &Mover) {
    let level = match mover.mover.log {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match mover.mover.log_format {
        LogFormat::Text => log.with_target(false).with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
