//! `setline-bench scale`: what an update costs the mover that numbers it, with more movers beside it
//! and more volumes (F3, G10, P6).
//!
//! The first mover has a core of its own and numbers every update; all others share the second core,
//! and each holds its part of the copies. So what is measured is the first mover's cycles per
//! update, by its own account; how many updates per second go through is a matter of the shared core, and is
//! shown beside. All volumes lie on one base device, so that memory costs the same for all counts.

use super::case::{Load, Round};
use super::host::Host;
use super::stats::Spread;
use super::{Output, bar, two_cores};
use plotters::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(clap::Parser, Debug)]
pub(super) struct Options {
    /// Movers, each count once.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 3, 5],
        value_parser = clap::value_parser!(u64).range(2..=8))]
    movers: Vec<u64>,
    /// Volumes, each count once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000],
        value_parser = clap::value_parser!(u64).range(1..=2000))]
    volumes: Vec<u64>,
    /// Rounds of each combination.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Milliseconds that each is measured in each round.
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// Core of the mover that numbers, and core of the others.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1], num_args = 2)]
    cores: Vec<usize>,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also draws the results into this SVG file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
struct Row {
    movers: u64,
    volumes: u64,
    cycles_per_update: Spread,
    /// To the first combination in the same round.
    ratio: Spread,
    iops: Spread,
}

pub(super) fn execute(options: &Options) -> Result<(), String> {
    let cores = two_cores(&options.cores)?;
    let mut shapes: Vec<(u64, u64)> = Vec::new();
    for movers in &options.movers {
        shapes.extend(options.volumes.iter().map(|volumes| (*movers, *volumes)));
    }
    let mut seen = std::collections::BTreeSet::new();
    shapes.retain(|shape| seen.insert(*shape));
    let length = Duration::from_millis(options.milliseconds);
    let load = Load { queue_depth: 64, block_bytes: 4096, random: true };
    let progress = bar(options.rounds, shapes.len());
    let mut host = Host::start(cores)?;
    let mut results: Vec<Vec<Round>> = vec![Vec::new(); shapes.len()];
    for _ in 0..options.rounds {
        for (at, (movers, volumes)) in shapes.iter().enumerate() {
            let round = host.many(*movers as usize, *volumes as usize, load, length);
            let round =
                round.map_err(|error| format!("{movers} movers, {volumes} volumes: {error}"))?;
            results[at].push(round);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    host.stop()?;
    let rows = rows(&shapes, &results);
    match options.output {
        Output::Json => print_json(&rows)?,
        Output::Table => print_table(&rows),
    }
    options.plot.as_ref().map_or(Ok(()), |path| plot(&rows, path))
}

fn rows(shapes: &[(u64, u64)], results: &[Vec<Round>]) -> Vec<Row> {
    let cycles = |round: &Round| round.cycles_per_update.unwrap_or(f64::NAN);
    let Some(first) = results.first() else { return Vec::new() };
    let rows = shapes.iter().zip(results).filter_map(|((movers, volumes), rounds)| {
        let ratios = rounds.iter().zip(first).map(|(round, first)| cycles(round) / cycles(first));
        Some(Row {
            movers: *movers,
            volumes: *volumes,
            cycles_per_update: Spread::of(rounds.iter().map(cycles))?,
            ratio: Spread::of(ratios)?,
            iops: Spread::of(rounds.iter().map(|round| round.iops))?,
        })
    });
    rows.collect()
}

#[expect(clippy::print_stdout, reason = "the program's result")]
fn print_json(rows: &[Row]) -> Result<(), String> {
    let text = serde_json::to_string_pretty(rows).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the program's result")]
fn print_table(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let header =
        ["movers", "volumes", "cycles", "min..max", "ratio", "min..max", "kIOPS", "min..max"];
    table.set_header(header);
    for row in rows {
        let whole = |value: f64| format!("{value:.0}");
        let thousands = |value: f64| format!("{:.0}", value / 1000.0);
        table.add_row([
            row.movers.to_string(),
            row.volumes.to_string(),
            whole(row.cycles_per_update.median),
            format!("{}..{}", whole(row.cycles_per_update.min), whole(row.cycles_per_update.max)),
            format!("{:.2}", row.ratio.median),
            format!("{:.2}..{:.2}", row.ratio.min, row.ratio.max),
            thousands(row.iops.median),
            format!("{}..{}", thousands(row.iops.min), thousands(row.iops.max)),
        ]);
    }
    for column in 0..header.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    println!("{table}");
}

/// Cycles per update over the number of volumes, a line per number of movers.
fn plot(rows: &[Row], path: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let root = SVGBackend::new(path, (720, 420)).into_drawing_area();
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let most = rows.iter().map(|row| row.volumes).max().unwrap_or(1).max(2) as f64;
    let top = rows.iter().map(|row| row.cycles_per_update.max).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption("4 KiB random write, depth 64: cycles per update", ("sans-serif", 18))
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d((0.8..most * 1.2).log_scale(), 0.0..top)
        .map_err(|e| failed(&e))?;
    chart.configure_mesh().x_desc("volumes").y_desc("cycles").draw().map_err(|e| failed(&e))?;
    let mut counts: Vec<u64> = rows.iter().map(|row| row.movers).collect();
    counts.sort_unstable();
    counts.dedup();
    for (at, movers) in counts.into_iter().enumerate() {
        let colour = Palette99::pick(at).stroke_width(2);
        let of: Vec<&Row> = rows.iter().filter(|row| row.movers == movers).collect();
        let points = of.iter().map(|row| (row.volumes as f64, row.cycles_per_update.median));
        chart
            .draw_series(LineSeries::new(points, colour))
            .map_err(|e| failed(&e))?
            .label(format!("{movers} movers"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        for row in of {
            let (x, spread) = (row.volumes as f64, row.cycles_per_update);
            let line = PathElement::new([(x, spread.min), (x, spread.max)], colour);
            chart.draw_series([line]).map_err(|e| failed(&e))?;
        }
    }
    chart.configure_series_labels().border_style(BLACK).draw().map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_combination_of_the_same_round() {
        let round = |cycles| Round {
            iops: 1.0,
            latency_ns: [0.0; 3],
            cycles_per_update: Some(cycles),
            hold_ns: None,
        };
        let results = vec![vec![round(100.0), round(200.0)], vec![round(150.0), round(300.0)]];
        let rows = rows(&[(2, 1), (3, 1)], &results);
        assert_eq!((rows[1].movers, rows[1].ratio.min, rows[1].ratio.max), (3, 1.5, 1.5));
    }
}
