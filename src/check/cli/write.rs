//! `setline-check write`.

use super::super::block::RunId;
use super::super::images::Floor;
use super::super::target::PathCounts;
use super::super::workload::Workload;
use super::super::writer::{Latency, Report, Writer, WriterOptions};
use super::args::{self, SizeWeight};
use super::drive::{Drive, DriveArgs, random};
use super::table;
use super::target::TargetArgs;
use super::{Exit, Failure, Output};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Longest span by default: larger ones are seldom written twice in a short run.
const SPAN_BYTES: u64 = 1 << 30;

/// Arguments of `write`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    drive: DriveArgs,
    /// Log of issues and acknowledgements, for 'images --log'; replaced if there
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// What is acknowledged, renewed every --status-interval-ms, for 'images --floor'
    #[arg(long, value_name = "FILE")]
    status: Option<PathBuf>,
    /// How often the status and the log reach their files
    #[arg(long, value_name = "MS", default_value_t = 50)]
    status_interval_ms: u64,
    /// Logical writers, each with blocks of its own
    #[arg(long, default_value_t = 8)]
    writers: u16,
    /// Commands in flight per logical writer
    #[arg(long, default_value_t = 8)]
    queue_depth: u16,
    /// Writes per second in all; 0 for as many as possible
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Mix of command sizes, for example 512:2,4k:6,64k:1
    #[arg(long, value_name = "SIZE[:WEIGHT]", value_delimiter = ',', value_parser = args::size_weight)]
    block_sizes: Vec<SizeWeight>,
    /// Bytes of each volume, from its start, that are written [default: the shortest
    /// volume, 1g at most]
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    span: Option<u64>,
    /// Of 100 writes, how many go to the hot stripes
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    hot_percent: u16,
    /// Stripes of each writer on each volume that are hot
    #[arg(long, value_name = "N", default_value_t = 2)]
    hot_stripes: u16,
    /// After so many of 100 writes, read a block that another writer wrote lately: what
    /// was read orders later writes, too
    #[arg(long, value_name = "PERCENT", default_value_t = 0)]
    read_percent: u16,
    /// Tries after a failed one, before a logical writer gives up
    #[arg(long, value_name = "N", default_value_t = 50)]
    retries: u32,
    /// Pause before each of them
    #[arg(long, value_name = "MS", default_value_t = 100)]
    retry_pause_ms: u64,
    /// Makes choices repeatable [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Identity of the run, hexadecimal [default: random]
    #[arg(long, value_name = "HEX")]
    run_id: Option<RunId>,
}

/// The status file: a floor, and how the run is doing.
#[derive(Debug, Serialize)]
struct StatusFile<'a> {
    #[serde(flatten)]
    floor: Floor,
    state: &'a str,
    issued_writes: u64,
    acked_writes: u64,
    bytes: u64,
    /// From issue to acknowledgement.
    write_latency_ns: Latency,
    paths: PathCounts,
    host_errors: u64,
    in_flight: usize,
}

#[derive(Debug, Serialize)]
struct Final<'a> {
    #[serde(flatten)]
    report: &'a Report,
    log: Option<&'a Path>,
    drained: bool,
}

/// Runs the writer until its time is over or a signal comes.
pub(super) fn run(args: &Args, output: Output) -> Result<Exit, Failure> {
    let mut target = args.target.open()?;
    let options = args.options(target.geometry())?;
    target.make_slots(options.slots(), options.slot_bytes()).map_err(Failure::input)?;
    options.validate(target.as_ref()).map_err(Failure::usage)?;
    let log: Box<dyn Write> = match &args.log {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
            Box::new(BufWriter::with_capacity(1 << 18, file))
        }
        None => Box::new(io::sink()),
    };
    let log_failed = |error| Failure::input(format!("log: {error}"));
    let mut drive = Drive::start(&args.drive)?;
    let mut writer = Writer::start(options, log, drive.now_ns()).map_err(log_failed)?;
    let mut publisher = Publisher::new(args);
    publisher.publish(&mut writer, drive.now_ns(), "running")?;
    let mut last = (0, 0);
    let drained = loop {
        let now_ns = drive.now_ns();
        let happened = writer.turn(target.as_mut(), now_ns).map_err(log_failed)?;
        let stopping = drive.is_stopping(now_ns) || writer.is_halted();
        if stopping {
            writer.stop();
            if writer.in_flight() == 0 {
                break true;
            }
            if drive.is_overdue(now_ns) {
                break false;
            }
        }
        if publisher.is_due(now_ns) {
            publisher.publish(
                &mut writer,
                now_ns,
                if stopping { "stopping" } else { "running" },
            )?;
        }
        drive.progress(now_ns, || {
            let report = writer.report(now_ns);
            let line = progress_line(&report, &mut last);
            (line, report)
        });
        drive.idle(happened);
    };
    drive.finish();
    publisher.publish(&mut writer, drive.now_ns(), "finished")?;
    let (_, report) = writer.finish(drive.now_ns()).map_err(log_failed)?;
    let log = args.log.as_deref();
    output.print(&Final { report: &report, log, drained }, text)?;
    Ok(if report.stale_reads + report.corrupt_reads > 0 {
        Exit::No
    } else if !drained {
        Exit::Timeout
    } else if report.host_errors + report.unfinished_writes + report.writers_halted > 0 {
        Exit::Degraded
    } else {
        Exit::Ok
    })
}

impl Args {
    fn options(&self, geometry: &super::super::target::Geometry) -> Result<WriterOptions, Failure> {
        let block_bytes = geometry.block_bytes;
        let sizes = args::mix(&self.block_sizes, block_bytes, geometry.transfer_blocks_max)
            .map_err(Failure::usage)?;
        let longest = sizes.iter().map(|size| u32::from(size.blocks)).max().unwrap_or(1);
        let shortest = geometry.volume_blocks.iter().copied().min().unwrap_or(0);
        let span = self.span.unwrap_or(SPAN_BYTES) / u64::from(block_bytes);
        let seed = match self.seed {
            Some(seed) => seed,
            None => random()?,
        };
        let run = match self.run_id {
            Some(run) => run,
            None => RunId((u128::from(random()?) << 64 | u128::from(random()?)).to_be_bytes()),
        };
        let hot_permille = self.hot_percent.saturating_mul(10);
        let mut workload = Workload {
            seed,
            block_bytes,
            volumes: geometry.volume_blocks.len() as u16,
            writers: self.writers,
            span_blocks: if self.span.is_some() { span } else { span.min(shortest) },
            stripe_blocks: longest.next_power_of_two(),
            hot_permille,
            hot_stripes: self.hot_stripes,
            sizes,
        };
        // Small volumes have few stripes; then fewer are hot.
        let available = workload.stripes_per_writer();
        workload.hot_stripes = u64::from(self.hot_stripes).min(available) as u16;
        Ok(WriterOptions {
            run,
            workload,
            queue_depth: self.queue_depth,
            rate_per_s: self.rate,
            reads_permille: self.read_percent.saturating_mul(10),
            retries_max: self.retries,
            retry_pause_ns: self.retry_pause_ms * 1_000_000,
        })
    }
}

/// Renews the status file, and lets the log reach its file before.
struct Publisher<'a> {
    path: Option<&'a Path>,
    interval_ns: u64,
    next_ns: u64,
}

impl<'a> Publisher<'a> {
    fn new(args: &'a Args) -> Self {
        let interval_ns = args.status_interval_ms.max(1) * 1_000_000;
        Self { path: args.status.as_deref(), interval_ns, next_ns: 0 }
    }

    fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    fn publish<W: Write>(
        &mut self,
        writer: &mut Writer<W>,
        now_ns: u64,
        state: &str,
    ) -> Result<(), Failure> {
        self.next_ns = now_ns + self.interval_ns;
        writer.flush_log().map_err(|error| Failure::input(format!("log: {error}")))?;
        let Some(path) = self.path else { return Ok(()) };
        let report = writer.report(now_ns);
        let status = StatusFile {
            floor: report.floor,
            state,
            issued_writes: report.issued_writes,
            acked_writes: report.acked_writes,
            bytes: report.bytes,
            write_latency_ns: report.write_latency_ns,
            paths: report.paths,
            host_errors: report.host_errors,
            in_flight: writer.in_flight(),
        };
        let mut text = serde_json::to_vec(&status).map_err(Failure::input)?;
        text.push(b'\n');
        // Readers see the old file or the new one, never a part.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(|error| Failure::input(format!("{}: {error}", path.display())))
    }
}

fn progress_line(report: &Report, last: &mut (u64, u64)) -> String {
    let (writes, bytes) = (report.acked_writes - last.0, report.bytes - last.1);
    *last = (report.acked_writes, report.bytes);
    format!(
        "{} writes, {}/s, {}/s, p99 {}, {} errors",
        table::count(report.acked_writes),
        table::count(writes),
        table::bytes(bytes),
        table::duration(report.write_latency_ns.p99),
        report.host_errors,
    )
}

fn text(result: &Final<'_>) -> String {
    let report = result.report;
    let latency = &report.write_latency_ns;
    let mut facts = vec![
        ("run", report.run.to_string()),
        (
            "wrote",
            format!(
                "{} writes, {}, in {:.1} s by {} writers over {} volumes",
                table::count(report.acked_writes),
                table::bytes(report.bytes),
                report.seconds,
                report.workload.writers,
                report.workload.volumes
            ),
        ),
        (
            "rate",
            format!(
                "{} writes/s, {}/s",
                table::count(report.writes_per_s as u64),
                table::bytes((report.bytes as f64 / report.seconds.max(1e-9)) as u64)
            ),
        ),
        (
            "latency",
            format!(
                "p50 {}, p99 {}, max {}",
                table::duration(latency.p50),
                table::duration(latency.p99),
                table::duration(latency.max)
            ),
        ),
        ("host errors", table::count(report.host_errors)),
    ];
    let paths = &report.paths;
    if paths.lost + paths.retries > 0 {
        facts.push((
            "paths",
            format!(
                "{} lost, {} connected again, {} commands sent again",
                table::count(paths.lost),
                table::count(paths.connected_again),
                table::count(paths.retries)
            ),
        ));
    }
    for (status, count) in &report.errors_by_status {
        facts.push(("", format!("{} × {status}", table::count(*count))));
    }
    if report.unfinished_writes + report.writers_halted > 0 {
        let (writes, writers) = (report.unfinished_writes, report.writers_halted);
        facts.push(("unfinished", format!("{writes} writes, {writers} writers gave up")));
    }
    if report.reads > 0 {
        facts.push((
            "reads",
            format!(
                "{}, of these {} before the acknowledgement, {} stale, {} corrupt",
                table::count(report.reads),
                table::count(report.observed_before_ack),
                report.stale_reads,
                report.corrupt_reads
            ),
        ));
    }
    if let Some(log) = result.log {
        facts.push(("log", log.display().to_string()));
    }
    table::facts(&facts)
}
