//! The recovery point over time, as text and as SVG.

use std::path::Path;

use plotters::prelude::*;

use super::LabError;
use super::watch::Sample;
use crate::cli::duration_ns;

/// Size of the text plot, in characters.
const COLUMNS: usize = 72;
const ROWS: usize = 8;
/// Width of its scale.
const SCALE: usize = 9;

/// A plot of blocks, one column per stretch of time, the highest value of each; `x` marks kills.
#[must_use]
pub fn text(samples: &[Sample], kills_ms: &[u64]) -> String {
    let (Some(last), Some(max)) = (samples.last(), samples.iter().map(point).reduce(f64::max))
    else {
        return "  (nothing was sampled)".to_owned();
    };
    let (end_ms, max) = (last.at_ms.max(1), max.max(f64::MIN_POSITIVE));
    let column = |at_ms: u64| (at_ms * COLUMNS as u64 / (end_ms + 1)) as usize;
    let mut heights = vec![None::<f64>; COLUMNS];
    for sample in samples {
        let height = &mut heights[column(sample.at_ms).min(COLUMNS - 1)];
        *height = Some(height.map_or(point(sample), |known| known.max(point(sample))));
    }
    // A column without a sample shows its neighbour: sampling is no gap in the data.
    let mut lines = Vec::new();
    for row in (0..ROWS).rev() {
        let label = match row {
            r if r == ROWS - 1 => duration_ns((max * 1e6) as u64),
            0 => "0".to_owned(),
            _ => String::new(),
        };
        let mut known = 0.0;
        let cells: String = heights
            .iter()
            .map(|height| {
                known = height.unwrap_or(known);
                eighths(known / max * ROWS as f64 - row as f64)
            })
            .collect();
        lines.push(format!("{label:>SCALE$} ┤{cells}"));
    }
    let mut axis = vec!['─'; COLUMNS];
    for kill in kills_ms.iter().filter(|kill| **kill <= end_ms) {
        axis[column(*kill).min(COLUMNS - 1)] = 'x';
    }
    lines.push(format!("{:>SCALE$} └{}", "", axis.into_iter().collect::<String>()));
    let end = duration_ns(end_ms * 1_000_000);
    let kills = if kills_ms.is_empty() { "" } else { "   x: kill -9" };
    let legend = format!("{}{end:>width$}", kills, width = COLUMNS - kills.len());
    lines.push(format!("{:>SCALE$}  {legend}", ""));
    lines.join("\n")
}

fn point(sample: &Sample) -> f64 {
    sample.recovery_point_ms
}

/// The part of one character cell that is filled.
fn eighths(part: f64) -> char {
    const CELLS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    CELLS[(part * 8.0).round().clamp(0.0, 8.0) as usize]
}

/// Writes an SVG plot to `file`.
///
/// # Errors
/// The file cannot be written.
pub fn svg(samples: &[Sample], kills_ms: &[u64], file: &Path) -> Result<(), LabError> {
    let what = file.display().to_string();
    let mut drawn = String::new();
    draw(samples, kills_ms, &mut drawn)
        .map_err(|error| LabError::Check { what: what.clone(), said: error.to_string() })?;
    std::fs::write(file, drawn).map_err(|error| LabError::io(&what, error))
}

fn draw(
    samples: &[Sample],
    kills_ms: &[u64],
    to: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let end_s = samples.last().map_or(1.0, |sample| sample.at_ms as f64 / 1e3).max(0.001);
    let max_ms = samples.iter().map(point).fold(1.0, f64::max) * 1.05;
    let area = SVGBackend::with_string(to, (900, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Recovery point over time", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end_s, 0.0..max_ms)?;
    chart.configure_mesh().x_desc("seconds").y_desc("ms").draw()?;
    for kill in kills_ms {
        let at = *kill as f64 / 1e3;
        chart.draw_series(LineSeries::new([(at, 0.0), (at, max_ms)], RED.mix(0.4)))?;
    }
    let points = samples.iter().map(|sample| (sample.at_ms as f64 / 1e3, point(sample)));
    chart.draw_series(LineSeries::new(points, &BLUE))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn the_highest_value_fills_its_column_and_kills_are_marked() {
        let samples: Vec<Sample> =
            (0..100).map(|at| sample(at * 100, if at == 50 { 400.0 } else { 100.0 })).collect();
        let plot = text(&samples, &[5000]);
        let lines: Vec<&str> = plot.lines().collect();
        assert_eq!(lines.len(), ROWS + 2);
        assert!(lines[0].trim_start().starts_with("400 ms"), "{plot}");
        assert_eq!(lines[0].matches('█').count(), 1, "{plot}");
        assert_eq!(lines[ROWS - 1].matches('█').count(), COLUMNS, "{plot}");
        assert_eq!(lines[ROWS].matches('x').count(), 1, "{plot}");
        let peak = lines[0].chars().position(|c| c == '█');
        let kill = lines[ROWS].chars().position(|c| c == 'x');
        assert_eq!(peak, kill, "{plot}");
    }

    #[test]
    fn an_empty_plot_says_so() {
        assert!(text(&[], &[]).contains("nothing"));
        let mut drawn = String::new();
        draw(&[], &[], &mut drawn).unwrap();
        draw(&[sample(5, 3.0)], &[1], &mut drawn).unwrap();
        assert!(drawn.contains("<svg"));
    }
}
