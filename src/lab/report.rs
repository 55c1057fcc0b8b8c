//! What a lab found, for people and for programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LabError;
use super::faults::Kind;
use super::options::RunOptions;
use super::stalls::{self, Stalls};
use super::unreplicated::Unreplicated;
use super::verdict::{CheckResult, Equality};
use super::watch::Sample;
use super::writer::{Outcome, Paths};
use crate::cli::{Printer, bytes, duration_ns};
use crate::control::model::Summary;

/// Samples in the report at most.
const SAMPLES_MAX: usize = 240;

/// A lab's result. Field names are those of the JSON report; they stay.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether nothing was lost, violated, unequal or in error.
    pub passed: bool,
    /// Why not, for people.
    pub problems: Vec<String>,
    /// Writes acknowledged to the client.
    pub acked_writes: u64,
    /// Acknowledged writes that the secondary does not have at the end.
    pub lost_acked_writes: u64,
    /// Checks of the secondary's images, the last among them, that found no consistent cut.
    pub cut_violations: u64,
    /// Whether both sites are equal at the end.
    pub secondary_equals_primary: bool,
    /// How that was found.
    pub equality: Equality,
    /// Sets closed.
    pub sets_formed: u64,
    /// Sets applied.
    pub sets_applied: u64,
    /// Age of the last set that the secondary could fail over to, sampled every 100 ms, the time
    /// during which secondary movers were down among it.
    pub recovery_point_ms: Spread,
    /// How long acknowledgements were held at boundaries.
    pub boundary_hold_us: Spread,
    /// From the client's issue to its acknowledgement.
    pub write_latency_us: Spread,
    /// Errors that the client received.
    pub host_errors: u64,
    /// Payload sent to the secondary.
    pub bytes_replicated: u64,
    /// Bytes acknowledged.
    pub acked_bytes: u64,
    /// Acknowledged writes per second.
    pub writes_per_s: f64,
    /// How long was written.
    pub seconds: f64,
    /// Writes without an answer at the end.
    pub unfinished_writes: u64,
    /// Reads that returned less than had been acknowledged, or damage.
    pub wrong_reads: u64,
    /// The options, defaults filled in.
    pub parameters: RunOptions,
    /// What all random choices came from.
    pub seed: u64,
    /// Movers that were killed.
    pub kills: Vec<FaultResult>,
    /// Movers and stores that were stopped for a while.
    pub pauses: Vec<FaultResult>,
    /// Drains, moves and joins.
    pub moves: Vec<FaultResult>,
    /// Movers that were cut off the others, both ways or one way.
    pub cuts: Vec<FaultResult>,
    /// How long hosts stood still after each kind of fault.
    pub stalls: BTreeMap<Kind, Stalls>,
    /// How often a mover ended because the others had excluded it, and was started again.
    pub exclusions: u64,
    /// What was found of the volumes that are not replicated; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreplicated: Option<Unreplicated>,
    /// Paths that the client lost, and commands that it sent again without an error.
    pub paths: Paths,
    /// Every check of the secondary's images.
    pub checks: Vec<CheckResult>,
    /// The recovery point over time.
    pub samples: Vec<Sample>,
    /// What the configuration promises less than one may think.
    pub warnings: Vec<String>,
    /// The lab's directory, if it was kept.
    pub directory: Option<PathBuf>,
}

/// A distribution.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// From a summary, its values divided by `unit`.
    #[must_use]
    pub fn of(summary: &Summary, unit: f64) -> Self {
        let scaled = |value: u64| value as f64 / unit;
        Self { p50: scaled(summary.p50), p99: scaled(summary.p99), max: scaled(summary.max) }
    }
}

/// What was done to the lab, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FaultResult {
    /// What.
    pub kind: Kind,
    /// When, from the start of writing.
    pub at_ms: u64,
    /// To whom.
    pub movers: Vec<String>,
    /// From then until the lab had got over it.
    pub ready_after_ms: u64,
    /// The longest time that a write took that was under way then, or issued within 5 s.
    pub longest_stall_ms: f64,
}

/// What a report is made from.
#[derive(Debug)]
pub struct Findings {
    /// The options.
    pub options: RunOptions,
    /// What random choices came from.
    pub seed: u64,
    /// What the client reported.
    pub outcome: Outcome,
    /// Acknowledged writes that are missing at the secondary at the end.
    pub lost: u64,
    /// How the sites compare.
    pub equality: Equality,
    /// All checks.
    pub checks: Vec<CheckResult>,
    /// All that was done to the lab.
    pub faults: Vec<FaultResult>,
    /// Movers that were excluded and started again.
    pub exclusions: u64,
    /// What was found of the volumes that are not replicated.
    pub unreplicated: Option<Unreplicated>,
    /// Sets closed.
    pub sets_formed: u64,
    /// Sets applied.
    pub sets_applied: u64,
    /// Payload sent.
    pub bytes_replicated: u64,
    /// Hold at boundaries, nanoseconds.
    pub boundary_hold_ns: Summary,
    /// Recovery points, microseconds.
    pub recovery_point_us: Summary,
    /// The recovery point over time.
    pub samples: Vec<Sample>,
    /// Warnings of the movers.
    pub warnings: Vec<String>,
    /// Processes that did not end well, and other trouble.
    pub trouble: Vec<String>,
}

impl Report {
    /// Judges the findings.
    #[must_use]
    pub fn new(findings: Findings) -> Self {
        let Findings { outcome, equality, checks, .. } = &findings;
        let mut problems = findings.trouble.clone();
        let mut problem = |bad: bool, what: String| {
            if bad {
                problems.push(what);
            }
        };
        let violations = checks.iter().filter(|check| !check.consistent).count() as u64;
        problem(outcome.acked_writes == 0, "no write was acknowledged".to_owned());
        problem(findings.lost > 0, format!("{} acknowledged writes are lost", findings.lost));
        problem(
            violations > 0,
            format!("{violations} of {} images are no consistent cut", checks.len()),
        );
        let differing = equality.differing_blocks;
        problem(!equality.equal, format!("the sites differ at the end, by {differing} blocks"));
        problem(outcome.host_errors > 0, format!("the client met {} errors", outcome.host_errors));
        let unfinished = outcome.unfinished_writes;
        problem(unfinished > 0, format!("{unfinished} writes were never answered"));
        let wrong_reads = outcome.stale_reads + outcome.corrupt_reads;
        problem(wrong_reads > 0, format!("{wrong_reads} reads returned old or damaged data"));
        if let Some(unreplicated) = &findings.unreplicated {
            let wrong = unreplicated.mismatches;
            problem(wrong > 0, format!("{wrong} blocks of unreplicated volumes are wrong"));
            let finished = unreplicated.verified || wrong > 0;
            problem(!finished, "commands to unreplicated volumes ended wrong".to_owned());
        }
        Self {
            passed: problems.is_empty(),
            problems,
            acked_writes: outcome.acked_writes,
            lost_acked_writes: findings.lost,
            cut_violations: violations,
            secondary_equals_primary: equality.equal,
            equality: findings.equality.clone(),
            sets_formed: findings.sets_formed,
            sets_applied: findings.sets_applied,
            recovery_point_ms: Spread::of(&findings.recovery_point_us, 1e3),
            boundary_hold_us: Spread::of(&findings.boundary_hold_ns, 1e3),
            write_latency_us: Spread {
                p50: outcome.write_latency_ns.p50 as f64 / 1e3,
                p99: outcome.write_latency_ns.p99 as f64 / 1e3,
                max: outcome.write_latency_ns.max as f64 / 1e3,
            },
            host_errors: outcome.host_errors,
            paths: outcome.paths,
            bytes_replicated: findings.bytes_replicated,
            acked_bytes: outcome.bytes,
            writes_per_s: outcome.writes_per_s,
            seconds: outcome.seconds,
            unfinished_writes: outcome.unfinished_writes,
            wrong_reads,
            seed: findings.seed,
            samples: thin(&findings.samples, SAMPLES_MAX),
            parameters: findings.options,
            stalls: stalls::by_kind(&findings.faults),
            kills: of_kind(&findings.faults, &[Kind::KillPrimary, Kind::KillSecondary]),
            pauses: of_kind(&findings.faults, &[Kind::Pause, Kind::StopStore]),
            moves: of_kind(&findings.faults, &[Kind::Drain, Kind::Move, Kind::Join]),
            cuts: of_kind(&findings.faults, &[Kind::Partition, Kind::Mute, Kind::Deafen]),
            exclusions: findings.exclusions,
            unreplicated: findings.unreplicated,
            checks: findings.checks,
            warnings: findings.warnings,
            directory: None,
        }
    }

    /// Prints the report.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn print(&self, out: &mut Printer) -> std::io::Result<()> {
        if out.is_json() {
            return out.json(self);
        }
        let kills: Vec<u64> = self.kills.iter().map(|kill| kill.at_ms).collect();
        out.line("\nrecovery point over time")?;
        out.line(&super::plot::text(&self.samples, &kills))?;
        out.facts("", self.rows())?;
        for check in self.checks.iter().filter(|check| !check.consistent) {
            let at = duration_ns(check.at_ms * 1_000_000);
            out.line(&format!("no consistent cut at {at} ({}), set {}:", check.why, check.set))?;
            for example in &check.examples {
                out.line(&format!("  {example}"))?;
            }
        }
        for warning in &self.warnings {
            out.line(&format!("warning: {warning}"))?;
        }
        for problem in &self.problems {
            out.line(&format!("FAILED: {problem}"))?;
        }
        if let Some(directory) = &self.directory {
            out.line(&format!("kept: {}", directory.display()))?;
        }
        if self.passed {
            out.line("passed: nothing lost, every image a consistent cut, both sites equal")?;
        }
        Ok(())
    }

    /// The rows of the table: what, how much, and whether that is as it must be.
    fn rows(&self) -> Vec<(String, String, Option<bool>)> {
        let us = |value: f64| duration_ns((value * 1e3) as u64);
        let spread = |spread: &Spread, unit: f64| {
            let shown = |value: f64| us(value * unit);
            let (p50, p99, max) = (shown(spread.p50), shown(spread.p99), shown(spread.max));
            format!("p50 {p50}   p99 {p99}   max {max}")
        };
        let row = |what: &str, value: String| (what.to_owned(), value, None);
        let must = |what: &str, value: String, well| (what.to_owned(), value, Some(well));
        let shape = &self.parameters.shape;
        let period = duration_ns(shape.period.as_nanos() as u64);
        let equal = match (self.equality.equal, self.equality.by) {
            (true, "bytes") => "yes, byte for byte".to_owned(),
            (true, _) => "yes, block for block by the client's log".to_owned(),
            (false, _) => format!("NO, {} blocks differ", self.equality.differing_blocks),
        };
        let good = self.checks.len() as u64 - self.cut_violations;
        let mut rows = vec![
            row(
                "lab",
                format!(
                    "{} + {} movers, {} volumes, a set every {period}, seed {}",
                    shape.primary, shape.secondary, shape.volumes, self.seed
                ),
            ),
            row(
                "acknowledged writes",
                format!(
                    "{} ({}) in {:.1} s, {:.0}/s",
                    self.acked_writes,
                    bytes(self.acked_bytes),
                    self.seconds,
                    self.writes_per_s
                ),
            ),
            must("lost", self.lost_acked_writes.to_string(), self.lost_acked_writes == 0),
            must(
                "consistent cuts",
                format!("{good} of {} images checked", self.checks.len()),
                self.cut_violations == 0,
            ),
            must("secondary equals primary", equal, self.secondary_equals_primary),
            must("host errors", self.host_errors.to_string(), self.host_errors == 0),
            row("sets", format!("{} formed, {} applied", self.sets_formed, self.sets_applied)),
            row("replicated", bytes(self.bytes_replicated)),
            row("recovery point", spread(&self.recovery_point_ms, 1e3)),
            row("hold at boundaries", spread(&self.boundary_hold_us, 1.0)),
            row("write latency", spread(&self.write_latency_us, 1.0)),
        ];
        if let Some(unreplicated) = &self.unreplicated {
            let Unreplicated { volumes, blocks_compared, .. } = unreplicated;
            let value = format!("{volumes} volumes, {blocks_compared} blocks read and compared");
            rows.push(must("unreplicated", value, unreplicated.verified));
        }
        let Paths { lost, connected_again, retries } = self.paths;
        if lost + retries > 0 {
            let value = format!(
                "{lost} lost, {connected_again} connected again, {retries} commands sent again"
            );
            rows.push(row("paths", value));
        }
        for (kind, stalls) in &self.stalls {
            let again = duration_ns(stalls.ready_after_ms_max * 1_000_000);
            let longest = spread(&stalls.longest_stall_ms, 1e3);
            let value = format!(
                "{}×, whole again after {again} at most\nlongest write: {longest}",
                stalls.faults
            );
            rows.push(row(kind.name(), value));
        }
        if self.exclusions > 0 {
            rows.push(row("excluded, started again", self.exclusions.to_string()));
        }
        rows
    }

    /// Writes a plot of the recovery point over time.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn plot(&self, file: &Path) -> Result<(), LabError> {
        let kills: Vec<u64> = self.kills.iter().map(|kill| kill.at_ms).collect();
        super::plot::svg(&self.samples, &kills, file)
    }
}

/// The faults of some kinds.
fn of_kind(faults: &[FaultResult], kinds: &[Kind]) -> Vec<FaultResult> {
    faults.iter().filter(|fault| kinds.contains(&fault.kind)).cloned().collect()
}

/// At most `max` samples: of each stretch the one with the oldest recovery point, so that no peak
/// disappears.
fn thin(samples: &[Sample], max: usize) -> Vec<Sample> {
    let stretch = samples.len().div_ceil(max.max(1)).max(1);
    let worst = |chunk: &[Sample]| {
        chunk.iter().copied().max_by(|a, b| a.recovery_point_ms.total_cmp(&b.recovery_point_ms))
    };
    samples.chunks(stretch).filter_map(worst).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lab::writer::LatencyNs;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunOptions,
    }

    pub(in crate::lab) fn sample(at_ms: u64, recovery_point_ms: f64) -> Sample {
        Sample { at_ms, acked_writes: at_ms * 10, recovery_point_ms, applied_set: at_ms / 100 }
    }

    fn findings() -> Findings {
        Findings {
            options: Cli::parse_from(["lab"]).run,
            seed: 7,
            outcome: Outcome {
                seconds: 10.0,
                acked_writes: 1000,
                bytes: 4_096_000,
                writes_per_s: 100.0,
                write_latency_ns: LatencyNs { p50: 1000, p99: 2500, max: 9000 },
                host_errors: 0,
                unfinished_writes: 0,
                stale_reads: 0,
                corrupt_reads: 0,
                paths: Paths { lost: 1, connected_again: 1, retries: 9 },
            },
            lost: 0,
            equality: Equality { equal: true, by: "bytes", differing_blocks: 0 },
            checks: vec![],
            faults: vec![],
            exclusions: 0,
            unreplicated: None,
            sets_formed: 100,
            sets_applied: 100,
            bytes_replicated: 5_000_000,
            boundary_hold_ns: Summary {
                p50: 20_000,
                p99: 90_000,
                max: 100_500,
                ..Summary::default()
            },
            recovery_point_us: Summary { p50: 120_000, ..Summary::default() },
            samples: vec![sample(100, 120.0), sample(200, 90.0)],
            warnings: vec![],
            trouble: vec![],
        }
    }

    #[test]
    fn all_that_must_hold_decides_the_verdict() {
        assert!(Report::new(findings()).passed);
        let violated = CheckResult {
            at_ms: 1,
            why: "periodic",
            set: 3,
            consistent: false,
            faults: 2,
            commands: 9,
            examples: vec![],
        };
        type Spoil = fn(&mut Findings);
        let spoil: [(&str, Spoil); 7] = [
            ("1 acknowledged writes are lost", |f| f.lost = 1),
            ("differ at the end, by 4 blocks", |f| {
                f.equality = Equality { equal: false, by: "bytes", differing_blocks: 4 };
            }),
            ("the client met 2 errors", |f| f.outcome.host_errors = 2),
            ("3 writes were never answered", |f| f.outcome.unfinished_writes = 3),
            ("1 reads returned old or damaged data", |f| f.outcome.stale_reads = 1),
            ("no write was acknowledged", |f| f.outcome.acked_writes = 0),
            ("s1 was killed", |f| f.trouble.push("s1 was killed".to_owned())),
        ];
        for (expected, spoil) in spoil {
            let mut findings = findings();
            spoil(&mut findings);
            let report = Report::new(findings);
            assert!(!report.passed && report.problems[0].contains(expected), "{expected}");
        }
        let report = Report::new(Findings { checks: vec![violated], ..findings() });
        assert_eq!((report.passed, report.cut_violations), (false, 1));
    }

    #[test]
    fn the_json_report_has_the_promised_fields() {
        let json = serde_json::to_value(Report::new(findings())).unwrap();
        for field in [
            "acked_writes",
            "lost_acked_writes",
            "cut_violations",
            "secondary_equals_primary",
            "sets_formed",
            "sets_applied",
            "host_errors",
            "bytes_replicated",
            "kills",
            "pauses",
            "stalls",
            "exclusions",
            "paths",
            "checks",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for (field, p50) in
            [("recovery_point_ms", 120.0), ("boundary_hold_us", 20.0), ("write_latency_us", 1.0)]
        {
            assert_eq!(json[field]["p50"], p50, "{field}");
            assert!(json[field]["p99"].is_number() && json[field]["max"].is_number());
        }
        assert_eq!(json["parameters"]["period_ms"], 100);
        assert_eq!(json["parameters"]["primary"], 3);
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let samples: Vec<Sample> =
            (0..1000).map(|at| sample(at, if at == 567 { 99.0 } else { 1.0 })).collect();
        let thinned = thin(&samples, 100);
        assert!(thinned.len() <= 100);
        assert!(thinned.iter().any(|sample| sample.at_ms == 567));
    }
}
