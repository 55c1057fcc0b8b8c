//! Choosing the volumes to drive: NVMe namespaces through the initiator, or files.

use super::super::target::{FileTarget, FileTargetOptions, Target, Trid};
use super::Failure;
use std::path::PathBuf;

/// Where the volumes are.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Volumes")]
pub(super) struct TargetArgs {
    #[command(flatten)]
    nvme: NvmeArgs,
    /// File or block device to use as a volume, in the order given
    #[arg(long, value_name = "PATH", conflicts_with = "trid")]
    file: Vec<PathBuf>,
    /// Block size of files
    #[arg(long, value_name = "SIZE", value_parser = super::args::bytes, default_value = "512")]
    file_block_size: u64,
    /// Bypass the page cache of files
    #[arg(long)]
    direct: bool,
    /// Threads for files' I/O: so many commands are in flight at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    file_threads: u32,
}

/// NVMe namespaces, through the initiator.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Volumes")]
pub(super) struct NvmeArgs {
    /// NVMe controller to reach volumes through, as SPDK writes it, for example
    /// 'trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn…' or
    /// 'trtype:VFIOUSER traddr:/run/dir subnqn:nqn…'; several are paths to the same volumes
    #[arg(long, value_name = "TRID")]
    trid: Vec<Trid>,
    /// Namespaces to use, in this order [default: all active ones]
    #[arg(long, value_name = "NSID", value_delimiter = ',', requires = "trid")]
    volumes: Vec<u32>,
    /// Which of several paths a command takes
    #[arg(long, value_enum, default_value_t = Paths::Best)]
    paths: Paths,
    /// Host NQN to connect with
    #[arg(long, value_name = "NQN", requires = "trid")]
    hostnqn: Option<String>,
    /// Give a path up when a command takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    command_timeout: u64,
    /// Give a path over TCP up when its target does not answer a Keep Alive for so long; longer than
    /// the target needs to shut a silent part of itself out
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    keep_alive: u64,
    /// Keep a command for so long while no path carries it out, before it ends with an error
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    no_path_timeout: u64,
    /// Core to pin the thread to [default: wherever the system puts it]
    #[arg(long, requires = "trid")]
    core: Option<usize>,
}

/// Which of several paths a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Paths {
    /// The one that the target calls the best for the volume (ANA), like a multipath host
    Best,
    /// Each slot has its own path, so every path carries commands to every volume
    Spread,
    /// One that works, but is not the best for the volume
    Detour,
    /// The first path, and the next one when it fails
    First,
}

impl TargetArgs {
    /// Opens or connects; slots are not made yet.
    pub(super) fn open(&self) -> Result<Box<dyn Target>, Failure> {
        if self.nvme.is_given() {
            return self.nvme.connect();
        }
        if self.file.is_empty() {
            return Err(Failure::usage("no volumes: give --trid or --file"));
        }
        let options = FileTargetOptions {
            block_bytes: self.file_block_size as u32,
            transfer_blocks_max: ((1 << 20) / self.file_block_size.max(1)) as u32,
            threads: self.file_threads,
            direct: self.direct,
        };
        Ok(Box::new(FileTarget::open(&self.file, &options).map_err(Failure::input)?))
    }
}

impl NvmeArgs {
    /// Whether there is a controller to connect to.
    pub(super) fn is_given(&self) -> bool {
        !self.trid.is_empty()
    }

    /// Connects; slots are not made yet.
    #[cfg(feature = "datapath")]
    pub(super) fn connect(&self) -> Result<Box<dyn Target>, Failure> {
        use super::super::target::{NvmeTarget, NvmeTargetError, NvmeTargetOptions, PathPolicy};
        let options = NvmeTargetOptions {
            paths: self.trid.clone(),
            nsids: self.volumes.clone(),
            hostnqn: self.hostnqn.clone(),
            policy: match self.paths {
                Paths::Best => PathPolicy::Best,
                Paths::Spread => PathPolicy::Spread,
                Paths::Detour => PathPolicy::Detour,
                Paths::First => PathPolicy::First,
            },
            command_timeout: std::time::Duration::from_secs(self.command_timeout),
            keep_alive: std::time::Duration::from_secs(self.keep_alive),
            no_path_timeout: std::time::Duration::from_secs(self.no_path_timeout),
            core: self.core,
        };
        match NvmeTarget::connect(options) {
            Ok(target) => Ok(Box::new(target)),
            Err(error @ NvmeTargetError::Connect { .. }) => Err(Failure::unreachable(error)),
            Err(error) => Err(Failure::input(error)),
        }
    }

    /// Refuses: this build has no initiator.
    #[cfg(not(feature = "datapath"))]
    pub(super) fn connect(&self) -> Result<Box<dyn Target>, Failure> {
        Err(Failure::usage(
            "built without the data path (--no-default-features): no --trid here, only files",
        ))
    }
}
