//! `setline-check verify`.

use super::super::verify::{Action, Verifier, VerifyOptions, VerifyReport};
use super::args::{self, SizeWeight};
use super::drive::{Drive, DriveArgs, random};
use super::table;
use super::target::TargetArgs;
use super::{Exit, Failure, Output};

/// Longest span by default: it is read back whole at the end.
const SPAN_BYTES: u64 = 256 << 20;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    drive: DriveArgs,
    /// Commands in flight
    #[arg(long, default_value_t = 32)]
    queue_depth: u32,
    /// Mix of command sizes, for example 512:2,4k:6,64k:1
    #[arg(long, value_name = "SIZE[:WEIGHT]", value_delimiter = ',', value_parser = args::size_weight)]
    block_sizes: Vec<SizeWeight>,
    /// Bytes of each volume, from its start, that are used [default: the shortest volume,
    /// 256m at most]
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    span: Option<u64>,
    /// Stop after so many commands; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    commands: u64,
    /// Kinds of commands to leave out
    #[arg(long, value_enum, value_delimiter = ',')]
    without: Vec<Kind>,
    /// Longest compare-and-write in blocks: the controller's ACWU
    #[arg(long, value_name = "BLOCKS", default_value_t = 1)]
    compare_and_write_blocks: u32,
    /// The volumes promise that deallocated blocks read as zeros
    #[arg(long)]
    deallocated_zeros: bool,
    /// The volumes hold nothing but zeros at the start
    #[arg(long)]
    initial_zeros: bool,
    /// Makes choices repeatable [default: random]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Fua,
    WriteZeroes,
    Deallocate,
    Flush,
    Compare,
    CompareAndWrite,
}

impl Kind {
    fn of(action: Action) -> Option<Self> {
        match action {
            Action::Read | Action::Write => None,
            Action::WriteFua => Some(Self::Fua),
            Action::WriteZeroes => Some(Self::WriteZeroes),
            Action::Deallocate => Some(Self::Deallocate),
            Action::Flush => Some(Self::Flush),
            Action::CompareEqual | Action::CompareUnequal => Some(Self::Compare),
            Action::CompareAndWriteEqual | Action::CompareAndWriteUnequal => {
                Some(Self::CompareAndWrite)
            }
        }
    }
}

/// Runs the verifier until its time is over, a signal comes or the commands are done.
pub(super) fn run(args: &Args, output: Output) -> Result<Exit, Failure> {
    let mut target = args.target.open()?;
    let geometry = target.geometry().clone();
    let shortest = geometry.volume_blocks.iter().copied().min().unwrap_or(0);
    let asked = args.span.unwrap_or(SPAN_BYTES) / u64::from(geometry.block_bytes);
    let span_blocks = asked.min(shortest);
    if span_blocks == 0 || args.queue_depth == 0 {
        return Err(Failure::usage("nothing to do: --span and --queue-depth above 0 are needed"));
    }
    let options = VerifyOptions {
        seed: match args.seed {
            Some(seed) => seed,
            None => random()?,
        },
        queue_depth: args.queue_depth,
        sizes: args::mix(&args.block_sizes, geometry.block_bytes, geometry.transfer_blocks_max)
            .map_err(Failure::usage)?,
        span_blocks,
        commands_max: args.commands,
        mix: Action::MIX
            .into_iter()
            .filter(|(action, _)| {
                Kind::of(*action).is_none_or(|kind| !args.without.contains(&kind))
            })
            .collect(),
        compare_and_write_blocks_max: args.compare_and_write_blocks.max(1),
        deallocated_reads_zeros: args.deallocated_zeros,
        starts_with_zeros: args.initial_zeros,
    };
    let bytes = options.slot_bytes(&geometry);
    target.make_slots(args.queue_depth, bytes).map_err(Failure::input)?;
    let mut verifier = Verifier::start(options, target.as_ref());
    let mut drive = Drive::start(&args.drive)?;
    while !verifier.is_done() {
        let now_ns = drive.now_ns();
        let happened = verifier.turn(target.as_mut(), now_ns);
        if drive.is_stopping(now_ns) {
            verifier.stop();
            if drive.is_overdue(now_ns) {
                break;
            }
        }
        drive.progress(now_ns, || {
            let report = verifier.report();
            let commands: u64 = report.commands.values().sum();
            let line = format!(
                "{} commands, {} mismatches, {} unexpected completions",
                table::count(commands),
                report.mismatches,
                report.unexpected
            );
            (line, report)
        });
        drive.idle(happened);
    }
    drive.finish();
    let report = verifier.report();
    output.print(&report, text)?;
    Ok(if report.mismatches + report.unexpected > 0 {
        Exit::No
    } else if !verifier.is_done() {
        Exit::Timeout
    } else {
        Exit::Ok
    })
}

fn text(report: &VerifyReport) -> String {
    let mut rows = table::table(&["command", "count"], &[1]);
    for (action, count) in &report.commands {
        rows.add_row([format!("{action:?}"), table::count(*count)]);
    }
    for action in &report.not_supported {
        rows.add_row([format!("{action:?}"), "not supported".to_owned()]);
    }
    let answer = match report.ok {
        true => "every command ended as it must, every block read was right",
        false if report.mismatches + report.unexpected == 0 => "not finished",
        false => "WRONG",
    };
    let mut facts = vec![
        ("verified", answer.to_owned()),
        ("blocks compared", table::count(report.blocks_compared)),
        ("mismatches", table::count(report.mismatches)),
        ("unexpected completions", table::count(report.unexpected)),
        ("refused by a path", table::count(report.refused)),
        ("seed", report.seed.to_string()),
    ];
    for mismatch in &report.mismatch_examples {
        facts.push((
            "mismatch",
            format!(
                "volume {} block {}: expected {:?}, found {}{}",
                mismatch.volume,
                mismatch.address,
                mismatch.expected,
                mismatch.found,
                if mismatch.at_end { " (in the final read-back)" } else { "" }
            ),
        ));
    }
    for unexpected in &report.unexpected_examples {
        facts.push((
            "unexpected",
            format!(
                "{:?} of {} blocks at volume {} block {}: {}",
                unexpected.action,
                unexpected.blocks,
                unexpected.volume,
                unexpected.first,
                unexpected.status
            ),
        ));
    }
    format!("{rows}\n{}", table::facts(&facts))
}
