//! The benchmark harness: `setline-bench run` and `scale`. `bench/README.md` describes the method.

mod case;
mod cluster;
mod host;
mod raid1;
mod report;
mod scale;
mod stats;

use case::{Case, Load, Round};
use clap::{Parser, Subcommand, ValueEnum};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Compares ways for a write to go, on the same two cores in one run.
#[derive(Parser, Debug)]
#[command(name = "setline-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs cases in interleaved rounds and reports medians with their spread.
    Run(Run),
    /// What an update costs with more movers and more volumes.
    Scale(scale::Options),
}

#[derive(Parser, Debug)]
struct Run {
    /// Only these cases; `plain` is always there, since ratios are to it.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Short rounds, and depths 64 and 1 at 4 KiB only: under 45 seconds.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case.
    #[arg(long)]
    rounds: Option<u32>,
    /// Milliseconds that each load is measured in each round.
    #[arg(long)]
    milliseconds: Option<u64>,
    /// Core of the primary's poller and core of the mirror's.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1], num_args = 2)]
    cores: Vec<usize>,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also draws the results into this SVG file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => execute(&run),
        Command::Scale(options) => scale::execute(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("setline-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn two_cores(cores: &[usize]) -> Result<[usize; 2], String> {
    match *cores {
        [one, two] if one != two => Ok([one, two]),
        _ => Err("--cores takes two different cores, as in --cores 0,1".into()),
    }
}

fn bar(rounds: u32, cases: usize) -> indicatif::ProgressBar {
    if std::io::stderr().is_terminal() {
        indicatif::ProgressBar::new(u64::from(rounds) * cases as u64)
    } else {
        indicatif::ProgressBar::hidden()
    }
}

fn execute(run: &Run) -> Result<(), String> {
    let cores = two_cores(&run.cores)?;
    let cases: Vec<Case> = match &run.cases[..] {
        [] => Case::DEFAULT.to_vec(),
        // In the order of reports.
        wanted => Case::value_variants()
            .iter()
            .copied()
            .filter(|case| *case == Case::Plain || wanted.contains(case))
            .collect(),
    };
    let loads: &[Load] = if run.quick { &Load::ALL[..2] } else { &Load::ALL };
    let rounds = run.rounds.unwrap_or(if run.quick { 3 } else { 7 });
    let length =
        Duration::from_millis(run.milliseconds.unwrap_or(if run.quick { 300 } else { 1000 }));
    let progress = bar(rounds, cases.len());
    let mut host = host::Host::start(cores)?;
    let mut raid1 = raid1::Raid1::default();
    let mut results: Vec<(Case, Load, Round)> = Vec::new();
    for _ in 0..rounds {
        for case in &cases {
            progress.set_message(case.name());
            let measured = match case {
                Case::Raid1Tcp | Case::Raid1VfioUser => raid1.rounds(*case, loads, length, cores),
                _ => host.rounds(*case, loads, length),
            };
            let measured = measured.map_err(|error| format!("{}: {error}", case.name()))?;
            results.extend(loads.iter().zip(measured).map(|(load, round)| (*case, *load, round)));
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    raid1.stop();
    host.stop()?;
    let rows = report::rows(&cases, loads, &results);
    match run.output {
        Output::Json => report::print_json(&rows)?,
        Output::Table => report::print_table(&rows),
    }
    match &run.plot {
        Some(path) => report::plot(&rows, path),
        None => Ok(()),
    }
}
