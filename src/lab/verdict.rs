//! Judging images: one point in time or not, nothing lost, equal at the end.
//!
//! What is judged is what lies in the secondary's files, by `check`, which knows nothing of
//! setline. Images of a running lab are copied first, while apply is paused at a boundary.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::LabError;
use super::plan::Plan;
use crate::check::compare;
use crate::check::images::{
    self, CommandRef, Fault, FaultKind, FileSource, Floor, Images, ScanOptions, Source, Verdict,
};
use crate::check::log::Log;

/// What a check of images found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckResult {
    /// When, from the start of writing.
    pub at_ms: u64,
    /// Why: `periodic`, `after-kill` or `final`.
    pub why: &'static str,
    /// The last set applied to the images; 0 where that is not known.
    pub set: u64,
    /// Whether they are a consistent cut.
    pub consistent: bool,
    /// Faults, by kind.
    pub faults: u64,
    /// Commands to be seen on the images.
    pub commands: u64,
    /// What the first faults are, for people.
    pub examples: Vec<String>,
}

/// Copies the secondary's images into `to`, holes left out. Apply must be paused.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_images(plan: &Plan, to: &Path) -> Result<Vec<PathBuf>, LabError> {
    let failed = |path: &Path, error| LabError::io(&path.display().to_string(), error);
    std::fs::create_dir_all(to).map_err(|error| failed(to, error))?;
    let mut copies = Vec::new();
    for volume in &plan.volumes {
        let copy = to.join(format!("{}.img", volume.name));
        copy_sparse(&volume.secondary, &copy).map_err(|error| failed(&copy, error))?;
        copies.push(copy);
    }
    Ok(copies)
}

/// Copies the parts of a file that hold data.
fn copy_sparse(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut source = FileSource::open(from)?;
    let target = std::fs::File::create(to)?;
    target.set_len(source.bytes())?;
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while let Some(range) = source.next_data(offset)? {
        offset = range.start;
        while offset < range.end {
            let length = (range.end - offset).min(buffer.len() as u64) as usize;
            source.read_at(offset, &mut buffer[..length])?;
            target.write_all_at(&buffer[..length], offset)?;
            offset += length as u64;
        }
    }
    Ok(())
}

/// Judges images, which stand in the order of namespace ids.
///
/// # Errors
/// An image cannot be read.
pub fn judge(
    files: &[PathBuf],
    log: Option<&Log>,
    floor: Option<&Floor>,
) -> Result<Verdict, LabError> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for file in files {
        let what = file.display().to_string();
        let source = FileSource::open(file).map_err(|error| LabError::io(&what, error))?;
        sources.push(Box::new(source));
    }
    let options = log.map(ScanOptions::of_log).unwrap_or_default();
    let images = Images::scan(sources, &options)
        .map_err(|error| LabError::Check { what: "images".to_owned(), said: error.to_string() })?;
    Ok(images::check(&images, log, floor))
}

/// Sums a verdict up.
#[must_use]
pub fn sum_up(verdict: &Verdict, at_ms: u64, why: &'static str, set: u64) -> CheckResult {
    let examples = verdict.faults.examples.iter().take(3);
    CheckResult {
        at_ms,
        why,
        set,
        consistent: verdict.consistent,
        faults: verdict.faults.total(),
        commands: verdict.cut.commands,
        examples: examples.map(describe).collect(),
    }
}

/// A fault for people: where, and in the checker's own words what.
fn describe(fault: &Fault) -> String {
    let command = |c: &CommandRef| format!("write {} of writer {}", c.sequence, c.writer);
    let what = match &fault.kind {
        FaultKind::Missing { command: missing, holds, required_by } => {
            let by =
                required_by.as_ref().map(|by| format!(", although {} depends on it", command(by)));
            let by = by.unwrap_or_default();
            format!("{} is missing (the block holds number {holds}){by}", command(missing))
        }
        FaultKind::Torn { command: torn, holds } => {
            format!("{} is torn (the block holds number {holds})", command(torn))
        }
        other => serde_json::to_string(other).unwrap_or_else(|_| other.name().to_owned()),
    };
    format!("volume {}, block {}: {what}", fault.volume + 1, fault.address)
}

/// How the two sites compare at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Equality {
    /// Whether they are equal.
    pub equal: bool,
    /// `bytes` where both sites' files were compared; `log` where the primary's volumes are in
    /// memory and the secondary was held against the client's log: every block is then the newest
    /// that was acknowledged, and nothing was unacknowledged.
    pub by: &'static str,
    /// Blocks that differ.
    pub differing_blocks: u64,
}

/// Compares both sites byte for byte; `None` when the primary has no files.
///
/// # Errors
/// A file cannot be read.
pub fn compare_sites(plan: &Plan, block_bytes: u32) -> Result<Option<Equality>, LabError> {
    let mut result = Equality { equal: true, by: "bytes", differing_blocks: 0 };
    let open = |path: &Path| {
        FileSource::open(path).map_err(|error| LabError::io(&path.display().to_string(), error))
    };
    for volume in &plan.volumes {
        let Some(primary) = &volume.primary else { return Ok(None) };
        let (mut a, mut b) = (open(primary)?, open(&volume.secondary)?);
        let pair = compare::compare(&mut a, &mut b, block_bytes).map_err(|error| {
            LabError::Check { what: volume.name.clone(), said: error.to_string() }
        })?;
        result.equal &= pair.equal;
        result.differing_blocks += pair.differing_blocks;
    }
    Ok(Some(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_has_the_same_bytes_and_keeps_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        let file = std::fs::File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 5000], 10 << 20).unwrap();
        file.write_all_at(&[9; 3 << 20], 60 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let (a, b) = (std::fs::metadata(&from).unwrap(), std::fs::metadata(&to).unwrap());
        assert!(b.blocks() <= a.blocks() + 64, "{} of {} blocks", b.blocks(), a.blocks());
    }
}
