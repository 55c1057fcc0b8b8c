//! `setline lab run`: start, write, kill, check, stop, compare, report.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::cluster::Cluster;
use super::faults::{self, Fault, Names};
use super::inject::Done;
use super::interrupt::Interrupt;
use super::options::RunOptions;
use super::report::{FaultResult, Findings, Report};
use super::stalls;
use super::unreplicated::{Unreplicated, Verifier};
use super::verdict::{self, CheckResult, Equality};
use super::watch::{self, Watch};
use super::writer::{self, Outcome, Writer};
use super::{LabError, machine};
use crate::check::images::Floor;
use crate::check::log::Log;
use crate::cli::{Printer, duration_ns};
use crate::config::Role;
use crate::control::model::{ApplyState, Summary};

/// How often the loop turns.
const TURN: Duration = Duration::from_millis(20);
/// How long apply may take to stop at a boundary.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long the last set may take to arrive.
const APPLY_MAX: Duration = Duration::from_secs(180);

/// Runs a lab and prints its report. Whether it passed.
///
/// # Errors
/// What kept the lab from running to its end. Whatever happens, nothing is left running, and the
/// directory stays only when there is something to find in it.
pub fn run(options: &RunOptions, out: &mut Printer) -> Result<bool, LabError> {
    let options = &options.clone().settle()?;
    let interrupt = Interrupt::take()?;
    let seed = options.seed.unwrap_or_else(|| machine::seed() >> 16);
    let mut cluster = Cluster::make(&options.shape, true)?;
    let result = drive(&mut cluster, options, seed, &interrupt);
    let mut report = match result {
        Ok(report) => report,
        // Nothing in it tells anything.
        Err(error @ (LabError::Interrupted | LabError::Fault(_))) => {
            cluster.remove_directory();
            return Err(error);
        }
        Err(error) => {
            tracing::debug!(directory = %cluster.site().directory.display(), "kept");
            return Err(error.kept(&cluster.site().directory));
        }
    };
    if report.passed && !options.keep {
        cluster.remove_directory();
    } else {
        report.directory = Some(cluster.site().directory.clone());
    }
    drop(cluster);
    report.print(out).map_err(LabError::Output)?;
    if let Some(file) = &options.plot {
        report.plot(file)?;
    }
    Ok(report.passed)
}

/// A progress line on standard error; nothing when that is no terminal.
pub(super) fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} [{elapsed}]") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn drive(
    cluster: &mut Cluster,
    options: &RunOptions,
    seed: u64,
    interrupt: &Interrupt,
) -> Result<Report, LabError> {
    let (primary, secondary) = (cluster.names(Role::Primary), cluster.names(Role::Secondary));
    let names = Names { primary, joining: cluster.absent(), secondary };
    let faults = faults::plan(options, seed, &names)?;
    let bar = bar();
    cluster.start_all(interrupt, &bar)?;
    let statuses: Result<Vec<_>, _> =
        cluster.all_names().iter().map(|name| cluster.status(name)).collect();
    let warnings = crate::cli::warnings(&statuses?);
    let mut writer = Writer::start(cluster, options, seed)?;
    let verifier = Verifier::start(cluster, seed)?;
    begin(&mut writer, interrupt, &bar)?;
    let mut run = Run {
        cluster,
        options,
        interrupt,
        bar: &bar,
        watch: Watch::start(Instant::now()),
        verifier,
        faults: faults.into(),
        done: Vec::new(),
        checks: Vec::new(),
    };
    run.write(&mut writer)?;
    bar.set_message("waiting for the last acknowledgements");
    let outcome = writer.finish()?;
    bar.set_message("reading unreplicated volumes back");
    let unreplicated = run.verifier.as_mut().map(Verifier::finish).transpose()?;
    run.settle()?;
    bar.set_message("comparing");
    let findings = run.conclude(&writer, outcome, unreplicated, seed, warnings)?;
    bar.finish_and_clear();
    Ok(Report::new(findings))
}

fn begin(writer: &mut Writer, interrupt: &Interrupt, bar: &ProgressBar) -> Result<(), LabError> {
    bar.set_message("waiting for the client's first write");
    let until = Instant::now() + writer::BEGIN_MAX;
    while writer.progress().is_none_or(|progress| progress.acked_writes == 0) {
        writer.check()?;
        if Instant::now() >= until {
            let what = "the client's first write".to_owned();
            return Err(LabError::Late { what, limit: writer::BEGIN_MAX });
        }
        interrupt.sleep(TURN)?;
    }
    Ok(())
}

/// A lab under way.
pub(super) struct Run<'a> {
    pub(super) cluster: &'a mut Cluster,
    options: &'a RunOptions,
    interrupt: &'a Interrupt,
    bar: &'a ProgressBar,
    pub(super) watch: Watch,
    verifier: Option<Verifier>,
    faults: VecDeque<Fault>,
    done: Vec<Done>,
    checks: Vec<CheckResult>,
}

impl Run<'_> {
    /// Lets the client write for as long as was asked for, killing and checking meanwhile; longer if
    /// faults are left, since each waits until the lab has got over it.
    fn write(&mut self, writer: &mut Writer) -> Result<(), LabError> {
        let length = Duration::from_secs_f64(self.options.seconds);
        let every = self.options.check_every;
        let mut next_sample = Duration::ZERO;
        let mut next_check = every;
        let mut over = Duration::ZERO;
        loop {
            let now = self.watch.elapsed(Instant::now());
            if now >= length && self.faults.is_empty() {
                return Ok(());
            }
            self.cluster.check_running()?;
            writer.check()?;
            self.verifier.as_mut().map_or(Ok(()), Verifier::check)?;
            if now >= next_sample {
                self.sample(writer);
                next_sample = now + watch::EVERY;
            }
            let is_due = |fault: &Fault| fault.at <= now && fault.after <= now.saturating_sub(over);
            if self.faults.front().is_some_and(is_due)
                && let Some(fault) = self.faults.pop_front()
            {
                let done = self.inject(&fault, writer)?;
                self.done.push(done);
                over = self.watch.elapsed(Instant::now());
                self.check("after-kill", writer)?;
                next_check = self.watch.elapsed(Instant::now()) + every;
            } else if !every.is_zero() && now >= next_check {
                self.check("periodic", writer)?;
                next_check = self.watch.elapsed(Instant::now()) + every;
            }
            self.interrupt.sleep(TURN)?;
        }
    }

    fn sample(&mut self, writer: &Writer) {
        let progress = writer.progress().unwrap_or_default();
        self.watch.sample(self.cluster, &progress);
        let (lag, set) =
            self.watch.last().map_or((0.0, 0), |last| (last.recovery_point_ms, last.applied_set));
        self.bar.set_message(format!(
            "{} writes acknowledged, {} sets applied, {} behind, {} images checked, {} faults",
            progress.acked_writes,
            set,
            duration_ns((lag * 1e6) as u64),
            self.checks.len(),
            self.done.len()
        ));
    }

    /// Passes time, sampling.
    pub(super) fn pause(&mut self, span: Duration, writer: &Writer) -> Result<(), LabError> {
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.interrupt.sleep(watch::EVERY.min(span))?;
            self.sample(writer);
        }
        Ok(())
    }

    /// Has apply stop at a boundary, copies the secondary's images, lets apply go on, and judges
    /// the copy. No kill happens in between: the images must stand still.
    fn check(&mut self, why: &'static str, writer: &Writer) -> Result<(), LabError> {
        let group = self.cluster.site().group.clone();
        let at_ms = self.watch.elapsed(Instant::now()).as_millis() as u64;
        let set = self.pause_apply(&group)?;
        let to = self.cluster.site().directory.join("check");
        let copied = verdict::copy_images(self.cluster.plan(), &to);
        self.cluster.coordinator(Role::Secondary, |client| client.resume_apply(&group))?;
        self.sample(writer);
        let verdict = verdict::judge(&copied?, None, None)?;
        let result = verdict::sum_up(&verdict, at_ms, why, set);
        if result.consistent {
            let _ = std::fs::remove_dir_all(&to);
        } else {
            // Kept for whoever wants to know why.
            let kept: PathBuf = to.with_file_name(format!("check-failed-{}", self.checks.len()));
            let _ = std::fs::rename(&to, kept);
        }
        self.checks.push(result);
        Ok(())
    }

    /// Has apply stop. The set it stopped after.
    fn pause_apply(&mut self, group: &str) -> Result<u64, LabError> {
        let until = Instant::now() + PAUSE_MAX;
        let mut status =
            self.cluster.coordinator(Role::Secondary, |client| client.pause_apply(group))?;
        loop {
            if let ApplyState::Paused { set } = status.apply {
                return Ok(set);
            }
            if Instant::now() >= until {
                return Err(LabError::Late { what: "pausing apply".to_owned(), limit: PAUSE_MAX });
            }
            self.interrupt.sleep(TURN)?;
            // Asking again is harmless, and the coordinator is who knows.
            status =
                self.cluster.coordinator(Role::Secondary, |client| client.pause_apply(group))?;
        }
    }

    /// Closes the set with the last writes in it and waits until it is applied.
    fn settle(&mut self) -> Result<(), LabError> {
        let group = self.cluster.site().group.clone();
        let closed = self.cluster.coordinator(Role::Primary, |client| client.close_set(&group))?;
        let until = Instant::now() + APPLY_MAX;
        loop {
            self.cluster.check_running()?;
            let behind = self.applied();
            if behind >= closed.id {
                return Ok(());
            }
            self.bar.set_message(format!("waiting for set {}, {behind} applied", closed.id));
            if Instant::now() >= until {
                let what = format!("applying set {}", closed.id);
                return Err(LabError::Late { what, limit: APPLY_MAX });
            }
            self.interrupt.sleep(watch::EVERY)?;
        }
    }

    /// The set that every secondary mover has applied; 0 while one of them does not answer.
    fn applied(&self) -> u64 {
        let mut least = u64::MAX;
        for name in self.cluster.names(Role::Secondary) {
            let applied = self
                .cluster
                .status(&name)
                .ok()
                .and_then(|status| status.groups.iter().map(|group| group.sets.applied).min());
            least = least.min(applied.unwrap_or(0));
        }
        least
    }

    /// Collects totals, stops everything, compares both sites and judges the final images.
    fn conclude(
        mut self,
        writer: &Writer,
        outcome: Outcome,
        unreplicated: Option<Unreplicated>,
        seed: u64,
        warnings: Vec<String>,
    ) -> Result<Findings, LabError> {
        let totals = Totals::ask(self.cluster)?;
        let at_ms = self.watch.elapsed(Instant::now()).as_millis() as u64;
        let trouble: Vec<String> =
            self.cluster.stop_all().err().iter().map(ToString::to_string).collect();
        let log = Log::open(writer.log()).map_err(|error| LabError::Check {
            what: writer.log().display().to_string(),
            said: error.to_string(),
        })?;
        let floor = Floor::end_of(&log);
        let plan = self.cluster.plan();
        let images: Vec<PathBuf> = plan.volumes.iter().map(|v| v.secondary.clone()).collect();
        let verdict = verdict::judge(&images, Some(&log), Some(&floor))?;
        self.checks.push(verdict::sum_up(&verdict, at_ms, "final", totals.applied));
        let by_log = || Equality {
            equal: verdict.consistent
                && verdict.floor_met == Some(true)
                && outcome.unfinished_writes == 0,
            by: "log",
            differing_blocks: verdict.faults.total(),
        };
        let block_bytes = self.options.shape.block_bytes;
        let at_unix_ns: Vec<u64> = self.done.iter().map(|done| done.at_unix_ns).collect();
        let longest = stalls::longest_by_fault(&log, &at_unix_ns).into_iter();
        let faults = self.done.into_iter().zip(longest).map(|(done, longest)| FaultResult {
            longest_stall_ms: longest.as_secs_f64() * 1e3,
            ..done.result
        });
        let faults = faults.collect();
        let equality = verdict::compare_sites(plan, block_bytes)?.unwrap_or_else(by_log);
        Ok(Findings {
            options: self.options.clone(),
            seed,
            lost: verdict.lost.commands,
            equality,
            checks: self.checks,
            faults,
            exclusions: self.cluster.exclusions(),
            sets_formed: totals.formed,
            sets_applied: totals.applied,
            bytes_replicated: totals.bytes_replicated,
            boundary_hold_ns: totals.hold_ns,
            recovery_point_us: Summary::from(self.watch.recovery_points_us()),
            samples: self.watch.samples().to_vec(),
            unreplicated,
            warnings,
            trouble,
            outcome,
        })
    }
}

/// What the movers count, all together.
#[derive(Default)]
struct Totals {
    formed: u64,
    applied: u64,
    bytes_replicated: u64,
    hold_ns: Summary,
}

impl Totals {
    fn ask(cluster: &Cluster) -> Result<Self, LabError> {
        let mut totals = Self::default();
        for role in [Role::Primary, Role::Secondary] {
            for name in cluster.names(role) {
                let groups = cluster.client(&name)?.groups();
                for group in groups.map_err(|error| LabError::call(&name, error))? {
                    // Sets are numbered from 1, without gaps, and a restart of a secondary mover
                    // forgets its counters: the newest number applied says more.
                    totals.applied = totals.applied.max(group.sets.applied);
                    if role == Role::Secondary {
                        continue;
                    }
                    // A coordinator that was started again forgets, too; what is confirmed was formed.
                    let formed = group.totals.sets_formed.max(group.sets.received);
                    totals.formed = totals.formed.max(formed);
                    totals.bytes_replicated += group.totals.bytes_replicated;
                    let hold = &group.boundary_hold_ns;
                    if hold.p99 >= totals.hold_ns.p99 {
                        totals.hold_ns = Summary { max: hold.max.max(totals.hold_ns.max), ..*hold };
                    }
                }
            }
        }
        Ok(totals)
    }
}
