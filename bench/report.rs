//! Results as table, JSON and plot.

use super::case::{Case, Load, Round};
use super::stats::Spread;
use plotters::prelude::*;
use serde::Serialize;
use std::path::Path;

/// One line of the results.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    case: Case,
    queue_depth: u32,
    block_bytes: u32,
    random: bool,
    iops: Spread,
    /// The median of the ratios to `plain` of the same round and load.
    ratio_to_plain: f64,
    ratio_spread: Spread,
    latency_ns: Latency,
    #[serde(skip_serializing_if = "Option::is_none")]
    cycles_per_update: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boundary_hold_ns: Option<Hold>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    p999: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Hold {
    p50: f64,
    p99: f64,
    max: f64,
}

/// One row per case and load; rounds are matched in order, so a ratio is within one round.
pub(crate) fn rows(cases: &[Case], loads: &[Load], results: &[(Case, Load, Round)]) -> Vec<Row> {
    let of = |case: Case, load: Load| {
        results.iter().filter(move |r| r.0 == case && r.1 == load).map(|r| &r.2)
    };
    let mut rows = Vec::new();
    for load in loads {
        for case in cases {
            let median = |value: &dyn Fn(&Round) -> Option<f64>| {
                Spread::of(of(*case, *load).filter_map(value)).map(|s| s.median)
            };
            let ratios = of(*case, *load).zip(of(Case::Plain, *load)).map(|(c, p)| c.iops / p.iops);
            let (Some(iops), Some(ratio_spread)) =
                (Spread::of(of(*case, *load).map(|r| r.iops)), Spread::of(ratios))
            else {
                continue;
            };
            let latency = |index: usize| {
                median(&|round: &Round| Some(round.latency_ns[index])).unwrap_or(f64::NAN)
            };
            let hold = |index: usize| median(&|round: &Round| Some(round.hold_ns?[index]));
            rows.push(Row {
                case: *case,
                queue_depth: load.queue_depth,
                block_bytes: load.block_bytes,
                random: load.random,
                iops,
                ratio_to_plain: ratio_spread.median,
                ratio_spread,
                latency_ns: Latency { p50: latency(0), p99: latency(1), p999: latency(2) },
                cycles_per_update: median(&|round: &Round| round.cycles_per_update),
                boundary_hold_ns: match (hold(0), hold(1), hold(2)) {
                    (Some(p50), Some(p99), Some(max)) => Some(Hold { p50, p99, max }),
                    _ => None,
                },
            });
        }
    }
    rows
}

#[expect(clippy::print_stdout, reason = "the program's result")]
pub(crate) fn print_json(rows: &[Row]) -> Result<(), String> {
    let text = serde_json::to_string_pretty(rows).map_err(|e| e.to_string())?;
    println!("{text}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the program's result")]
pub(crate) fn print_table(rows: &[Row]) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "depth",
        "bytes",
        "kIOPS",
        "min..max",
        "ratio",
        "min..max",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "cycles",
        "hold p99 µs",
    ]);
    for row in rows {
        let us = |ns: f64| format!("{:.1}", ns / 1000.0);
        let thousands = |value: f64| format!("{:.0}", value / 1000.0);
        table.add_row([
            row.case.name().to_string(),
            row.queue_depth.to_string(),
            row.block_bytes.to_string(),
            thousands(row.iops.median),
            format!("{}..{}", thousands(row.iops.min), thousands(row.iops.max)),
            format!("{:.2}", row.ratio_to_plain),
            format!("{:.2}..{:.2}", row.ratio_spread.min, row.ratio_spread.max),
            us(row.latency_ns.p50),
            us(row.latency_ns.p99),
            us(row.latency_ns.p999),
            row.cycles_per_update.map_or_else(String::new, |c| format!("{c:.0}")),
            row.boundary_hold_ns.map_or_else(String::new, |hold| us(hold.p99)),
        ]);
    }
    println!("{table}");
}

/// A bar per case: its throughput at 4 KiB and the deepest queue, as a ratio to `plain`.
pub(crate) fn plot(rows: &[Row], path: &Path) -> Result<(), String> {
    let Some(depth) = rows.iter().map(|row| row.queue_depth).max() else { return Ok(()) };
    let bars: Vec<&Row> = rows.iter().filter(|row| row.queue_depth == depth).collect();
    let root = SVGBackend::new(path, (120 * bars.len() as u32 + 120, 420)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let top = bars.iter().map(|row| row.ratio_spread.max).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .caption(format!("4 KiB random write, depth {depth}: ratio to plain"), ("sans-serif", 18))
        .x_label_area_size(30)
        .y_label_area_size(48)
        .build_cartesian_2d(-0.5..bars.len() as f64 - 0.5, 0.0..top)
        .map_err(|e| failed(&e))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(bars.len())
        .x_label_formatter(&|x| {
            bars.get(x.round() as usize).map_or_else(String::new, |row| row.case.name().into())
        })
        .draw()
        .map_err(|e| failed(&e))?;
    for (index, row) in bars.iter().enumerate() {
        let at = index as f64;
        let bar = Rectangle::new([(at - 0.3, 0.0), (at + 0.3, row.ratio_to_plain)], BLUE.filled());
        let spread = [(at, row.ratio_spread.min), (at, row.ratio_spread.max)];
        chart.draw_series([bar]).map_err(|e| failed(&e))?;
        let line = PathElement::new(spread.to_vec(), BLACK.stroke_width(2));
        chart.draw_series([line]).map_err(|e| failed(&e))?;
    }
    root.present().map_err(|e| failed(&e))
}
