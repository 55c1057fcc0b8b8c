//! Choosing the volumes to drive: NVMe namespaces through the initiator, or files.

use super::super::target::{FileTarget, FileTargetOptions, Target};
use super::Failure;
use std::path::PathBuf;

/// Where the volumes are.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Volumes")]
pub(super) struct TargetArgs {
    /// NVMe controller to reach volumes through, as SPDK writes it, for example
    /// 'trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn…' or
    /// 'trtype:VFIOUSER traddr:/run/dir subnqn:nqn…'; several are paths to the same volumes
    #[arg(long, value_name = "TRID", conflicts_with = "file")]
    pub(super) trid: Vec<String>,
    /// Namespaces to use, in this order; all active ones by default
    #[arg(long, value_name = "NSID", value_delimiter = ',', requires = "trid")]
    pub(super) volumes: Vec<u32>,
    /// How commands are spread over several paths
    #[arg(long, value_enum, default_value_t = Paths::Spread)]
    pub(super) paths: Paths,
    /// Host NQN to connect with
    #[arg(long, value_name = "NQN", requires = "trid")]
    pub(super) hostnqn: Option<String>,
    /// File or block device to use as a volume, in the order given
    #[arg(long, value_name = "PATH")]
    pub(super) file: Vec<PathBuf>,
    /// Block size of files
    #[arg(long, value_name = "SIZE", value_parser = super::args::bytes, default_value = "512")]
    pub(super) file_block_size: u64,
    /// Bypass the page cache of files
    #[arg(long)]
    pub(super) direct: bool,
    /// Threads for files' I/O: so many commands are in flight at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) file_threads: u32,
}

/// How commands are spread over several paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Paths {
    /// Each slot has its own path, so every path carries commands to every volume
    Spread,
    /// The first path, and the next one when it fails
    First,
}

impl TargetArgs {
    /// Opens or connects; slots are not made yet.
    pub(super) fn open(&self) -> Result<Box<dyn Target>, Failure> {
        if !self.trid.is_empty() {
            return self.connect();
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

    fn connect(&self) -> Result<Box<dyn Target>, Failure> {
        Err(Failure::usage(
            "built without the data path (--no-default-features): only --file volumes here",
        ))
    }
}
