//! What must be in the images at least: the writer's status file, or the log.

use super::super::block::RunId;
use super::super::known::Known;
use super::super::log::Log;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Commands acknowledged at a moment; images that lack one of them have lost it.
///
/// As JSON it is what `setline-check write --status FILE` keeps up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// The run.
    pub run: RunId,
    /// The moment, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Per writer: all its commands up to this number …
    pub acked_prefix: Vec<u64>,
    /// … and those that bits of this number name: bit j means prefix + 2 + j.
    pub acked_window: Vec<u32>,
}

/// Why a floor cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// The file cannot be read.
    #[error("cannot read the floor: {0}")]
    Io(#[from] std::io::Error),
    /// It is no status file.
    #[error("not a status file of setline-check: {0}")]
    Json(#[from] serde_json::Error),
}

impl Floor {
    /// From sets per writer.
    pub fn new(run: RunId, unix_ns: u64, acked: &[Known]) -> Self {
        Self {
            run,
            unix_ns,
            acked_prefix: acked.iter().map(|known| known.prefix()).collect(),
            acked_window: acked.iter().map(|known| known.window()).collect(),
        }
    }

    /// Everything that the log has as acknowledged.
    pub fn end_of(log: &Log) -> Self {
        Self::new(log.run, log.last_unix_ns, &log.acknowledged)
    }

    /// What the log has as acknowledged up to `unix_ns`.
    pub fn at(log: &Log, unix_ns: u64) -> Self {
        Self::new(log.run, unix_ns, &log.acknowledged_at(unix_ns))
    }

    /// Reads a status file.
    pub fn open(path: &Path) -> Result<Self, FloorError> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// The commands of `writer`.
    pub fn of(&self, writer: u16) -> Known {
        let prefix = self.acked_prefix.get(usize::from(writer)).copied().unwrap_or(0);
        let window = self.acked_window.get(usize::from(writer)).copied().unwrap_or(0);
        Known::from_parts(prefix, window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_survives_its_file() {
        let mut known = Known::up_to(7);
        known.insert(11);
        let floor = Floor::new(RunId([9; 16]), 5, &[known, Known::NONE]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&floor).unwrap()).unwrap();
        let read = Floor::open(file.path()).unwrap();
        assert_eq!((read.of(0), read.of(1), read.of(2)), (known, Known::NONE, Known::NONE));
        assert_eq!(read, floor);
    }
}
