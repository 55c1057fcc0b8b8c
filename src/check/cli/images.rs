//! `setline-check images`.

use super::super::block::RunId;
use super::super::images::{
    self, FaultKind, FileSource, Floor, Images, Initial, ScanOptions, Source, TargetSource, Verdict,
};
use super::super::log::Log;
use super::table;
use super::target::NvmeArgs;
use super::{Exit, Failure, Output};
use std::path::PathBuf;

/// Reads in flight through an initiator.
const READS: u32 = 8;
/// Longest of them.
const READ_BYTES: usize = 128 << 10;

/// Arguments of `images`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Log of the run; without it the images are judged by what they say themselves
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Status file of the run: what it says is acknowledged must be in the images
    #[arg(long, value_name = "FILE", conflicts_with_all = ["now", "at"])]
    floor: Option<PathBuf>,
    /// Everything that the log has as acknowledged must be in the images
    #[arg(long, requires = "log", conflicts_with = "at")]
    now: bool,
    /// Everything acknowledged up to this time must be in the images
    #[arg(long, value_name = "UNIX_NS", requires = "log")]
    at: Option<u64>,
    /// Judge the blocks of this run [default: the log's, or that of the newest block]
    #[arg(long, value_name = "HEX", conflicts_with = "log")]
    run: Option<RunId>,
    /// What blocks may hold where the run never wrote
    #[arg(long, value_enum, default_value_t = InitialArg::Zeros)]
    initial: InitialArg,
    #[command(flatten)]
    nvme: NvmeArgs,
    /// Images of all volumes of the run: files or block devices, in the run's order
    #[arg(required_unless_present = "trid", conflicts_with = "trid")]
    images: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum InitialArg {
    /// Zeros; all else is a fault
    Zeros,
    /// Anything: the volumes were in use before the run
    Any,
}

/// Reads the images and says what they are.
pub(super) fn run(args: &Args, output: Output) -> Result<Exit, Failure> {
    let log = match &args.log {
        Some(path) => Some(
            Log::open(path)
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?,
        ),
        None => None,
    };
    let floor = match (&args.floor, &log) {
        (Some(path), _) => Some(
            Floor::open(path)
                .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?,
        ),
        (None, Some(log)) if args.now => Some(Floor::end_of(log)),
        (None, Some(log)) => args.at.map(|unix_ns| Floor::at(log, unix_ns)),
        (None, None) => None,
    };
    let mut options = match &log {
        Some(log) => ScanOptions::of_log(log),
        None => ScanOptions { run: args.run.map(|run| (run, None)), ..ScanOptions::default() },
    };
    options.initial = match args.initial {
        InitialArg::Zeros => Initial::Zeros,
        InitialArg::Any => Initial::Any,
    };
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for path in &args.images {
        let source = FileSource::open(path)
            .map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        sources.push(Box::new(source));
    }
    if args.nvme.is_given() {
        let mut target = args.nvme.connect()?;
        target.make_slots(READS, READ_BYTES).map_err(Failure::input)?;
        let volumes = TargetSource::all(target).into_iter();
        sources.extend(volumes.map(|source| Box::new(source) as Box<dyn Source>));
    }
    let images = Images::scan(sources, &options).map_err(Failure::input)?;
    if images.run.is_none() {
        return Err(Failure::input(
            "no block of any run on these images: give the run's log to judge empty images",
        ));
    }
    let verdict = images::check(&images, log.as_ref(), floor.as_ref());
    output.print(&verdict, |verdict| text(verdict, log.as_ref()))?;
    Ok(match verdict {
        Verdict { consistent: false, .. } => Exit::No,
        Verdict { floor_met: Some(false), .. } => Exit::Lost,
        _ => Exit::Ok,
    })
}

fn text(verdict: &Verdict, log: Option<&Log>) -> String {
    let cut = &verdict.cut;
    let origin = log
        .map(|log| log.start_unix_ns)
        .or(cut.newest_issue.map(|newest| newest.unix_ns))
        .unwrap_or(0);
    let when = |moment: Option<images::Moment>| {
        moment.map_or("–".to_owned(), |moment| table::relative(moment.unix_ns, origin))
    };
    let relative_to = if log.is_some() { "start of the run" } else { "newest write" };
    let mut rows = table::table(
        &[
            "volume",
            "image",
            "size",
            "blocks of the run",
            "newest write",
            "first missing",
            "faults",
        ],
        &[0, 2, 3, 4, 5, 6],
    );
    for (index, volume) in verdict.volumes.iter().enumerate() {
        rows.add_row([
            index.to_string(),
            volume.name.clone(),
            table::bytes(volume.bytes),
            table::count(volume.written_blocks),
            when(volume.newest_issue),
            when(volume.first_missing),
            table::count(volume.faults),
        ]);
    }
    let mut facts = vec![
        (
            "verdict",
            match (verdict.consistent, verdict.floor_met) {
                (false, _) => "INCONSISTENT: no crash of the primary leaves these images",
                (true, Some(false)) => {
                    "consistent, but ACKNOWLEDGED WRITES OF THE FLOOR ARE MISSING"
                }
                (true, Some(true)) => "consistent, and all of the floor is there",
                (true, None) => "consistent: one point in time",
            }
            .to_owned(),
        ),
        ("run", verdict.run.map_or("–".to_owned(), |run| run.to_string())),
        ("judged by", if verdict.with_log { "log and images" } else { "images alone" }.to_owned()),
        ("commands in the cut", table::count(cut.commands)),
    ];
    if let (Some(beyond), Some(age_ns)) = (cut.acked_beyond, cut.age_ns) {
        let beyond = table::count(beyond);
        let age = table::duration(age_ns);
        facts.push(("behind the log's end", format!("{beyond} acknowledged writes, {age}")));
    }
    if verdict.floor_met.is_some() {
        facts.push(("missing of the floor", table::count(verdict.lost.commands)));
    }
    for (name, count) in &verdict.faults.counts {
        facts.push(("faults", format!("{} × {name}", table::count(*count))));
    }
    let mut text = format!("{rows}\n(times relative to the {relative_to})\n\n");
    text.push_str(&table::facts(&facts));
    for fault in &verdict.faults.examples {
        text.push_str(&format!(
            "  volume {} block {}: {}\n",
            fault.volume,
            fault.address,
            describe(&fault.kind)
        ));
    }
    text
}

fn describe(kind: &FaultKind) -> String {
    let holding = |holds: u64| match holds {
        0 => "what was there before the run".to_owned(),
        holds => format!("the same writer's command {holds}"),
    };
    match kind {
        FaultKind::Missing { command, holds, required_by } => format!(
            "writer {} command {} ({} blocks at {}) is missing, here is {}{}",
            command.writer,
            command.sequence,
            command.extent.blocks,
            command.extent.first,
            holding(*holds),
            required_by.map_or(String::new(), |by| format!(
                "; but volume {} block {} has writer {} command {}, issued later",
                by.extent.volume, by.extent.first, by.writer, by.sequence
            ))
        ),
        FaultKind::Torn { command, holds } => format!(
            "writer {} command {} ({} blocks at {}) is there in part, here is {}",
            command.writer,
            command.sequence,
            command.extent.blocks,
            command.extent.first,
            holding(*holds)
        ),
        FaultKind::Unsound { block } => block.to_string(),
        FaultKind::Misplaced { volume_written, address_written } => {
            format!("belongs to volume {volume_written} block {address_written}")
        }
        FaultKind::Impossible { writer, sequence } => {
            format!("claims to be of writer {writer} command {sequence}, which cannot be here")
        }
        FaultKind::OtherRun { run } => format!("of another run, {run}"),
        FaultKind::LogOfOtherRun { run } => format!("the log or floor is of another run, {run}"),
        FaultKind::VolumeAbsent => "no image of this volume was given".to_owned(),
        FaultKind::VolumeShort => "the image ends here, before the run's span does".to_owned(),
    }
}
