//! `setline-check block` and `setline-check log`: looking at single things.

use super::super::block::{BlockHeader, RunId, is_zero};
use super::super::known::Known;
use super::super::log::Log;
use super::super::workload::{Extent, Workload};
use super::table;
use super::{Exit, Failure, Output};
use serde::Serialize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Arguments of `block`.
#[derive(Debug, clap::Args)]
pub(super) struct BlockArgs {
    /// File or block device
    image: PathBuf,
    /// Address of the block
    address: u64,
    /// Size of a block
    #[arg(long, value_name = "SIZE", value_parser = super::args::bytes, default_value = "512")]
    block_size: u64,
}

/// Arguments of `log`.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// The log
    log: PathBuf,
}

#[derive(Debug, Serialize)]
struct Block {
    run: RunId,
    writer: u16,
    sequence: u64,
    #[serde(flatten)]
    extent: Extent,
    address: u64,
    version: u64,
    issue_event: u64,
    issue_unix_ns: u64,
    known_prefix: Vec<u64>,
    known_window: Vec<u32>,
    workload: Workload,
}

/// Prints what a block holds.
pub(super) fn block(args: &BlockArgs, output: Output) -> Result<Exit, Failure> {
    let failed = |error| Failure::input(format!("{}: {error}", args.image.display()));
    let mut bytes = vec![0; args.block_size.min(1 << 20) as usize];
    std::fs::File::open(&args.image)
        .and_then(|file| file.read_exact_at(&mut bytes, args.address * args.block_size))
        .map_err(failed)?;
    if is_zero(&bytes) {
        output.print(&serde_json::json!({ "zeros": true }), |_| "zeros".to_owned())?;
        return Ok(Exit::Ok);
    }
    let header = BlockHeader::parse(&bytes).map_err(|fault| Failure::input(fault.to_string()))?;
    let workload = header.workload().unpack();
    let known: Vec<Known> = (0..usize::from(workload.writers)).map(|w| header.known(w)).collect();
    let block = Block {
        run: header.run(),
        writer: header.writer(),
        sequence: header.sequence(),
        extent: header.extent(),
        address: header.address(),
        version: header.version(),
        issue_event: header.issue_event(),
        issue_unix_ns: header.issue_unix_ns(),
        known_prefix: known.iter().map(|known| known.prefix()).collect(),
        known_window: known.iter().map(|known| known.window()).collect(),
        workload,
    };
    output.print(&block, |block| {
        table::facts(&[
            ("run", block.run.to_string()),
            ("command", format!("{} of writer {}", block.sequence, block.writer)),
            (
                "covers",
                format!(
                    "volume {}, {} blocks from {}; this is {}",
                    block.extent.volume, block.extent.blocks, block.extent.first, block.address
                ),
            ),
            ("version", block.version.to_string()),
            ("issued", format!("event {}, {} ns", block.issue_event, block.issue_unix_ns)),
            ("known then", format!("{known:?}")),
        ])
    })?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct Summary {
    run: RunId,
    workload: Workload,
    events: u64,
    complete: bool,
    tail_bytes: u64,
    start_unix_ns: u64,
    last_unix_ns: u64,
    issued_writes: u64,
    acked_writes: u64,
    errors: u64,
    observed_before_ack: u64,
}

/// Prints what a log has.
pub(super) fn log(args: &LogArgs, output: Output) -> Result<Exit, Failure> {
    let log = Log::open(&args.log)
        .map_err(|error| Failure::input(format!("{}: {error}", args.log.display())))?;
    let commands = || log.commands.iter().flatten();
    let summary = Summary {
        run: log.run,
        workload: log.workload.clone(),
        events: log.events,
        complete: log.complete,
        tail_bytes: log.tail_bytes,
        start_unix_ns: log.start_unix_ns,
        last_unix_ns: log.last_unix_ns,
        issued_writes: commands().count() as u64,
        acked_writes: log.acknowledged.iter().map(|known| known.count()).sum(),
        errors: commands().map(|facts| u64::from(facts.errors)).sum(),
        observed_before_ack: commands().filter(|facts| facts.known_event < facts.ack_event).count()
            as u64,
    };
    output.print(&summary, |log| {
        let length = table::duration(log.last_unix_ns.saturating_sub(log.start_unix_ns));
        let end = match (log.complete, log.tail_bytes) {
            (true, _) => "ended in order".to_owned(),
            (false, 0) => "not ended: still written, or its writer was killed".to_owned(),
            (false, bytes) => format!("not ended, {bytes} bytes of a torn tail"),
        };
        table::facts(&[
            ("run", log.run.to_string()),
            ("length", format!("{length}, {} events", table::count(log.events))),
            ("end", end),
            ("issued", table::count(log.issued_writes)),
            ("acknowledged", table::count(log.acked_writes)),
            ("errors", table::count(log.errors)),
            ("observed before ack", table::count(log.observed_before_ack)),
        ])
    })?;
    Ok(Exit::Ok)
}
