//! `setline-sim`: runs simulated histories and reports what they broke. `docs/simulator.md`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::OwoColorize;
use serde_json::json;
use setline::config::Timestamps;
use setline::proto::sabotage::Sabotage;
use setline::sim::campaign::{Campaign, Findings};
use setline::sim::cluster::{Outcome, run};
use setline::sim::cost::{Cost, boundary_cost};
use setline::sim::coverage::{Coverage, STAGES};
use setline::sim::profile::Knobs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Runs the protocol in a simulated cluster with faults, and checks every invariant after every
/// event.
///
/// One seed is one history: the same seed, knobs and version give the same one. Exit codes: 0 no
/// violation, 1 a violation was found (its seed and how to replay it are printed), 2 usage.
#[derive(Parser, Debug)]
#[command(version)]
struct Options {
    /// The first seed; a fresh one when left out
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How many seeds, counting up [default: 1 with --seed, otherwise 1000; unbounded with --minutes]
    #[arg(long, value_name = "M")]
    seeds: Option<u64>,
    /// Begin no new seed after so many minutes
    #[arg(long, value_name = "T")]
    minutes: Option<f64>,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Stop after so many failed seeds
    #[arg(long, default_value_t = 1, value_name = "N")]
    failures: usize,
    /// Lines of the trace to show of a failed seed; with a single seed, also of a clean one
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Show how often each input met each state of a shard
    #[arg(long)]
    coverage: bool,
    /// Show what a boundary costs the coordinator with 2 to 64 movers, instead of running seeds
    #[arg(long, conflicts_with_all = ["seed", "seeds", "minutes", "broken"])]
    boundary_cost: bool,
    /// With --boundary-cost: also draw it into this SVG file
    #[arg(long, value_name = "FILE", requires = "boundary_cost")]
    plot: Option<PathBuf>,
    /// Break a rule of the protocol on purpose; "list" names them
    #[arg(long, value_name = "VARIANT", value_parser = broken)]
    broken: Option<Broken>,
    /// How to report
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
    /// Primary movers instead of what the seed draws
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Knobs")]
    primary: Option<u16>,
    /// Secondary movers
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=3), help_heading = "Knobs")]
    secondary: Option<u16>,
    /// Pollers of each mover
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2), help_heading = "Knobs")]
    pollers: Option<u8>,
    /// Volumes
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Knobs")]
    volumes: Option<u32>,
    /// Copies of each update; never more than primary movers
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=5), help_heading = "Knobs")]
    copies: Option<u8>,
    /// Updates that hosts issue
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Knobs")]
    updates: Option<u32>,
    /// Microseconds between set boundaries
    #[arg(long, value_parser = clap::value_parser!(u64).range(50..), help_heading = "Knobs")]
    period_us: Option<u64>,
    /// Size of the set journals, in percent of the least that the sizing rule allows
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Knobs")]
    journal_percent: Option<u32>,
    /// Updates that go to any mover instead of the responsible one, in percent
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100), help_heading = "Knobs")]
    forward_percent: Option<u32>,
    /// Whether primary movers fail and come back
    #[arg(long, value_name = "YES", help_heading = "Knobs")]
    fail: Option<bool>,
    /// Whether more of them may fail at once than there are spare copies
    #[arg(long, value_name = "YES", help_heading = "Knobs")]
    beyond: Option<bool>,
    /// Whether mirror copies are descriptions, headers alone
    #[arg(long, value_name = "YES", help_heading = "Knobs")]
    metadata: Option<bool>,
    /// Whether volumes move between living primary movers
    #[arg(long = "move", value_name = "YES", help_heading = "Knobs")]
    moves: Option<bool>,
    /// Where the time stamps of updates come from
    #[arg(long, value_name = "SOURCE", help_heading = "Knobs")]
    timestamps: Option<Timestamps>,
    /// No loss, duplication, damage or stragglers
    #[arg(long, help_heading = "Knobs")]
    calm_network: bool,
    /// No disk errors
    #[arg(long, help_heading = "Knobs")]
    calm_disks: bool,
    /// No crashes, partitions, stalls or messages of old epochs
    #[arg(long, help_heading = "Knobs")]
    calm_movers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Broken {
    List,
    Variant(Sabotage),
}

fn broken(name: &str) -> Result<Broken, String> {
    if name == "list" {
        return Ok(Broken::List);
    }
    if !Sabotage::COMPILED_IN {
        return Err("this build carries data and has no hooks to break it; build with \
                    --no-default-features"
            .to_owned());
    }
    let known = || Sabotage::ALL.map(Sabotage::name).join(", ");
    Sabotage::from_name(name).map(Broken::Variant).ok_or_else(|| format!("one of {}", known()))
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.broken == Some(Broken::List) {
        for variant in Sabotage::ALL {
            println!("{}", variant.name());
        }
        return ExitCode::SUCCESS;
    }
    if options.boundary_cost {
        return match boundary_costs(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("setline-sim: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let campaign = campaign(&options);
    let bar = bar(&campaign);
    let findings = campaign.run(|done| bar.set_position(done));
    bar.finish_and_clear();
    let tail = options.tail.unwrap_or(60);
    let shown: Vec<Outcome> =
        findings.failures.iter().map(|failed| run(failed.seed, &campaign.knobs, tail)).collect();
    match options.output {
        Output::Json => print_json(&campaign, &findings, &shown),
        Output::Text => {
            print_text(&campaign, &findings, &shown);
            if options.coverage {
                print_coverage(&findings.coverage);
            }
            if campaign.seeds == 1
                && shown.is_empty()
                && let Some(tail) = options.tail
            {
                let outcome = run(campaign.first, &campaign.knobs, tail);
                print_history(&outcome);
            }
        }
    }
    if findings.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn campaign(options: &Options) -> Campaign {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs() << 20);
    let default = match (options.seed, options.minutes) {
        (_, Some(_)) => u64::MAX,
        (Some(_), None) => 1,
        (None, None) => 1000,
    };
    let sabotage = match options.broken {
        Some(Broken::Variant(variant)) => variant,
        Some(Broken::List) | None => Sabotage::None,
    };
    Campaign {
        first: options.seed.unwrap_or_else(fresh),
        seeds: options.seeds.unwrap_or(default),
        time: options.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0)),
        jobs: usize::from(options.jobs),
        failures_max: options.failures.max(1),
        knobs: Knobs {
            primaries: options.primary,
            secondaries: options.secondary,
            pollers: options.pollers,
            volumes: options.volumes,
            copies: options.copies,
            updates: options.updates,
            journal_percent: options.journal_percent,
            fail: options.fail,
            beyond: options.beyond,
            described: options.metadata,
            moves: options.moves,
            timestamps: options.timestamps,
            forward_ppm: options.forward_percent.map(|percent| percent * 10_000),
            period_ns: options.period_us.map(|us| us * 1000),
            calm_network: options.calm_network,
            calm_disks: options.calm_disks,
            calm_movers: options.calm_movers,
            sabotage,
        },
    }
}

/// What a boundary costs by the number of movers, each measured three times.
fn boundary_costs(options: &Options) -> Result<(), String> {
    let volumes = options.volumes.unwrap_or(100);
    let mut rows: Vec<(u16, Vec<Cost>)> = Vec::new();
    for movers in [2, 4, 8, 16, 32, 64] {
        let cost = |_| boundary_cost(movers, volumes).map_err(|violation| violation.to_string());
        rows.push((movers, (0..3).map(cost).collect::<Result<_, _>>()?));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["movers", "messages in", "messages out", "µs", "min..max", "hold µs"]);
    let mut lines = Vec::new();
    let mut objects = Vec::new();
    for (movers, costs) in &rows {
        let mut spent: Vec<f64> = costs.iter().map(|cost| cost.per_boundary().2).collect();
        spent.sort_by(f64::total_cmp);
        let (received, sent, _) = costs[0].per_boundary();
        let hold_us = costs[0].held_ns_max() as f64 / 1000.0;
        table.add_row([
            movers.to_string(),
            format!("{received:.1}"),
            format!("{sent:.1}"),
            format!("{:.1}", spent[1]),
            format!("{:.1}..{:.1}", spent[0], spent[2]),
            format!("{hold_us:.1}"),
        ]);
        lines.push((f64::from(*movers), [spent[0], spent[1], spent[2]]));
        objects.push(json!({
            "movers": movers, "volumes": volumes, "messages_in": received, "messages_out": sent,
            "spent_us": { "median": spent[1], "min": spent[0], "max": spent[2] },
            "hold_us": hold_us,
        }));
    }
    for column in 0..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    match options.output {
        Output::Json => println!("{}", serde_json::Value::Array(objects)),
        Output::Text => println!(
            "per boundary, at the coordinator's poller, with {volumes} volumes; the hold is that of the \
             messages' way alone, 5 µs each\n{table}"
        ),
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot_costs(&lines, path))
}

fn plot_costs(lines: &[(f64, [f64; 3])], path: &Path) -> Result<(), String> {
    use plotters::prelude::*;
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let top = lines.iter().map(|(_, spent)| spent[2]).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption("a boundary at the coordinator's poller", ("sans-serif", 18))
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..68.0, 0.0..top)
        .map_err(|e| failed(&e))?;
    chart.configure_mesh().x_desc("movers").y_desc("µs").draw().map_err(|e| failed(&e))?;
    let medians = lines.iter().map(|(movers, spent)| (*movers, spent[1]));
    chart.draw_series(LineSeries::new(medians, BLUE.stroke_width(2))).map_err(|e| failed(&e))?;
    for (movers, spent) in lines {
        let spread = vec![(*movers, spent[0]), (*movers, spent[2])];
        chart
            .draw_series([PathElement::new(spread, BLACK.stroke_width(2))])
            .map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}

fn bar(campaign: &Campaign) -> ProgressBar {
    if !std::io::stderr().is_terminal() || campaign.seeds < 32 {
        return ProgressBar::hidden();
    }
    let (bar, template) = if campaign.seeds == u64::MAX {
        (ProgressBar::new_spinner(), "{spinner} {pos} seeds, {per_sec}, {elapsed}")
    } else {
        (ProgressBar::new(campaign.seeds), "{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left")
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The command line that runs one seed of the campaign again.
fn replay(campaign: &Campaign, seed: u64) -> String {
    let knobs = &campaign.knobs;
    let mut line = format!("setline-sim --seed {seed}");
    let mut add = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            line.push_str(&format!(" --{name} {value}"));
        }
    };
    add("primary", knobs.primaries.map(u64::from));
    add("secondary", knobs.secondaries.map(u64::from));
    add("pollers", knobs.pollers.map(u64::from));
    add("volumes", knobs.volumes.map(u64::from));
    add("copies", knobs.copies.map(u64::from));
    add("updates", knobs.updates.map(u64::from));
    add("journal-percent", knobs.journal_percent.map(u64::from));
    add("forward-percent", knobs.forward_ppm.map(|ppm| u64::from(ppm / 10_000)));
    add("period-us", knobs.period_ns.map(|ns| ns / 1000));
    if let Some(beyond) = knobs.beyond {
        line.push_str(&format!(" --beyond {beyond}"));
    }
    if let Some(described) = knobs.described {
        line.push_str(&format!(" --metadata {described}"));
    }
    if let Some(fail) = knobs.fail {
        line.push_str(&format!(" --fail {fail}"));
    }
    if let Some(moves) = knobs.moves {
        line.push_str(&format!(" --move {moves}"));
    }
    if let Some(source) = knobs.timestamps {
        line.push_str(&format!(" --timestamps {}", source.name()));
    }
    let flags = [
        (knobs.calm_network, "calm-network"),
        (knobs.calm_disks, "calm-disks"),
        (knobs.calm_movers, "calm-movers"),
    ];
    for (_, name) in flags.iter().filter(|(on, _)| *on) {
        line.push_str(&format!(" --{name}"));
    }
    if knobs.sabotage != Sabotage::None {
        line.push_str(&format!(" --broken {}", knobs.sabotage.name()));
    }
    line
}

fn seeds_per_minute(findings: &Findings) -> f64 {
    findings.seeds as f64 * 60.0 / findings.elapsed.as_secs_f64().max(1e-9)
}

fn print_text(campaign: &Campaign, findings: &Findings, shown: &[Outcome]) {
    let colour = std::io::stdout().is_terminal();
    for outcome in shown {
        print_history(outcome);
        let text = outcome.violation.as_ref().map_or_else(String::new, ToString::to_string);
        let head = format!("seed {}: {text}", outcome.seed);
        println!("{}", if colour { head.red().bold().to_string() } else { head });
        println!("replay: {}\n", replay(campaign, outcome.seed));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut list = findings.stats.list();
    list.retain(|(name, _)| *name != "virtual_ns");
    let rows = list.len().div_ceil(3);
    for row in 0..rows {
        let cells = (row..list.len()).step_by(rows).flat_map(|i| {
            let (name, count) = list[i];
            [name.replace('_', " "), count.to_string()]
        });
        table.add_row(cells);
    }
    for column in [1, 3, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("{table}");
    println!(
        "{} seeds from {} in {:.1} s, {:.0} per minute; {:.1} s of virtual time; trace hash {:016x}",
        findings.seeds,
        campaign.first,
        findings.elapsed.as_secs_f64(),
        seeds_per_minute(findings),
        findings.stats.virtual_ns as f64 / 1e9,
        findings.hash,
    );
    let verdict = match findings.failures.len() {
        0 => "no violation".to_owned(),
        1 => "1 seed broke an invariant".to_owned(),
        n => format!("{n} seeds broke an invariant"),
    };
    println!("{}", if colour { verdict.bold().to_string() } else { verdict });
}

/// A row per input, a column per state of the shard that took it.
fn print_coverage(coverage: &Coverage) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["input"].into_iter().chain(STAGES));
    for (input, row) in coverage.rows() {
        let cells = row.iter().map(|count| match count {
            0 => "-".to_owned(),
            count => count.to_string(),
        });
        table.add_row([input.to_owned()].into_iter().chain(cells));
    }
    for column in 1..=STAGES.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    let (met, never) = coverage.summary();
    println!("\n{table}\n{met} pairs of an input and a state were met");
    if !never.is_empty() {
        println!("never met: {}", never.join(", "));
    }
}

fn print_history(outcome: &Outcome) {
    for line in &outcome.tail {
        println!("{line}");
    }
    println!("{:?}", outcome.profile);
}

fn print_json(campaign: &Campaign, findings: &Findings, shown: &[Outcome]) {
    let violations: Vec<_> = shown
        .iter()
        .map(|outcome| {
            json!({
                "seed": outcome.seed,
                "invariant": outcome.violation.as_ref().map(|v| v.invariant),
                "text": outcome.violation.as_ref().map(|v| v.text.clone()),
                "replay": replay(campaign, outcome.seed),
                "trace_hash": format!("{:016x}", outcome.hash),
                "tail": outcome.tail,
            })
        })
        .collect();
    let coverage: serde_json::Map<_, _> = findings
        .stats
        .list()
        .into_iter()
        .map(|(name, count)| (name.to_owned(), json!(count)))
        .collect();
    let met: serde_json::Map<_, _> = findings
        .coverage
        .rows()
        .map(|(input, row)| {
            let row: serde_json::Map<_, _> =
                STAGES.into_iter().zip(row).map(|(s, n)| (s.to_owned(), json!(n))).collect();
            (input.to_owned(), json!(row))
        })
        .collect();
    let report = json!({
        "first_seed": campaign.first,
        "seeds": findings.seeds,
        "violations": violations,
        "seconds": findings.elapsed.as_secs_f64(),
        "seeds_per_minute": seeds_per_minute(findings),
        "trace_hash": format!("{:016x}", findings.hash),
        "broken": campaign.knobs.sabotage.name(),
        "coverage": coverage,
        "met": met,
    });
    println!("{report:#}");
}
