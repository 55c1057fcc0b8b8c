//! Reading images: every block is verified, and what matters of it is kept.

use super::super::block::{self, BlockHeader, RunId};
use super::super::blockmap::BlockMap;
use super::super::known::Known;
use super::super::log::Log;
use super::super::workload::{WRITERS_MAX, Workload, WorkloadError};
use super::source::Source;
use super::verdict::{CommandRef, Fault, FaultKind, Faults, Moment};
use std::io;

/// Bytes read at a time; a multiple of every block size.
const CHUNK_BYTES: u64 = 1 << 20;

/// Content of a block that is not known: neither old nor new enough can be said.
pub(super) const UNKNOWN: u64 = u64::MAX;

/// What a volume may hold where the run never wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Initial {
    /// Zeros; all else is a fault.
    #[default]
    Zeros,
    /// Anything but a damaged block of setline-check: the volumes were used before.
    Any,
}

/// How to scan.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// The run whose blocks count, and its parameters if known. By default the run
    /// of the newest sound block.
    pub run: Option<(RunId, Option<Workload>)>,
    /// What unwritten blocks may hold.
    pub initial: Initial,
}

impl ScanOptions {
    /// Scans for the run of a log.
    pub fn of_log(log: &Log) -> Self {
        Self { run: Some((log.run, Some(log.workload.clone()))), initial: Initial::Zeros }
    }
}

/// Why images cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// An image cannot be read.
    #[error("{name}, at byte {offset}: {error}")]
    Read {
        /// The image.
        name: String,
        /// Where.
        offset: u64,
        /// What happened.
        error: io::Error,
    },
    /// The parameters of the run make no sense.
    #[error("parameters of run {run}: {error}")]
    Workload {
        /// The run.
        run: RunId,
        /// What is wrong with them.
        error: WorkloadError,
    },
    /// The run that was asked for is not on the images, so its parameters are unknown.
    #[error("no block of run {run} found, and no log that has its parameters")]
    RunNotFound {
        /// The run.
        run: RunId,
    },
}

/// A set of images, read.
#[derive(Clone, Debug)]
pub struct Images {
    /// The run and its parameters; `None` if there is no block of any.
    pub run: Option<(RunId, Workload)>,
    /// The volumes in the order given.
    pub volumes: Vec<VolumeImage>,
    /// What the images contain by themselves, whatever the cut.
    pub faults: Faults,
    /// What the commands to be seen knew, per writer, all together.
    pub known: [Known; WRITERS_MAX as usize],
    /// The highest sequence number to be seen, per writer.
    pub highest: [u64; WRITERS_MAX as usize],
    /// The newest command to be seen.
    pub newest: Option<(Moment, CommandRef)>,
}

/// One image, read.
#[derive(Clone, Debug)]
pub struct VolumeImage {
    /// For messages.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Blocks that hold something of the run.
    pub written_blocks: u64,
    /// Issue of the newest command to be seen on it.
    pub newest_issue: Option<Moment>,
    /// Per block the sequence number of what it holds. The writer needs no place:
    /// a block has one owner. 0 is initial content.
    pub(super) content: BlockMap<u64>,
    /// Faults found by the scan.
    pub(super) faults: u64,
}

impl Images {
    /// Reads `sources`, which are the volumes of the run in the run's order.
    pub fn scan(
        mut sources: Vec<Box<dyn Source + '_>>,
        options: &ScanOptions,
    ) -> Result<Self, ScanError> {
        let run = match &options.run {
            Some((run, Some(workload))) => Some((*run, workload.clone())),
            Some((run, None)) => {
                let wanted = detect(&mut sources, Some(*run))?;
                Some(wanted.ok_or(ScanError::RunNotFound { run: *run })?)
            }
            None => detect(&mut sources, None)?,
        };
        if let Some((run, workload)) = &run {
            workload.validate().map_err(|error| ScanError::Workload { run: *run, error })?;
        }
        let mut images = Self {
            run,
            volumes: Vec::new(),
            faults: Faults::default(),
            known: [Known::NONE; WRITERS_MAX as usize],
            highest: [0; WRITERS_MAX as usize],
            newest: None,
        };
        for source in &mut sources {
            images.volumes.push(VolumeImage {
                name: source.name(),
                bytes: source.bytes(),
                written_blocks: 0,
                newest_issue: None,
                content: BlockMap::default(),
                faults: 0,
            });
            let volume = (images.volumes.len() - 1) as u16;
            let block_bytes = images.run.as_ref().map_or(512, |(_, w)| w.block_bytes);
            for_each_block(source.as_mut(), block_bytes, |address, block| {
                images.take(volume, address, block, options.initial);
                Ok(())
            })?;
        }
        images.check_shape();
        Ok(images)
    }

    /// Notes that fewer or shorter images were given than the run has.
    fn check_shape(&mut self) {
        let Some((_, workload)) = self.run.clone() else { return };
        for volume in 0..workload.volumes {
            let needed = workload.span_blocks * u64::from(workload.block_bytes);
            match self.volumes.get(usize::from(volume)).map(|image| image.bytes) {
                None => {
                    self.faults.add(Fault { volume, address: 0, kind: FaultKind::VolumeAbsent })
                }
                Some(bytes) if bytes < needed => {
                    let address = bytes / u64::from(workload.block_bytes);
                    self.fault(volume, address, FaultKind::VolumeShort);
                }
                Some(_) => {}
            }
        }
    }

    fn fault(&mut self, volume: u16, address: u64, kind: FaultKind) {
        self.faults.add(Fault { volume, address, kind });
        self.volumes[usize::from(volume)].faults += 1;
    }

    fn take(&mut self, volume: u16, address: u64, block: &[u8], initial: Initial) {
        if block::is_zero(block) {
            return;
        }
        let header = match BlockHeader::parse(block) {
            Ok(header) => header,
            Err(block::BlockFault::Foreign) if initial == Initial::Any => return,
            Err(fault) => {
                *self.volumes[usize::from(volume)].content.get_mut(address) = UNKNOWN;
                return self.fault(volume, address, FaultKind::Unsound { block: fault });
            }
        };
        let Some((run, workload)) = &self.run else {
            // Without a run there was no sound block of any when it was looked for.
            return self.fault(volume, address, FaultKind::OtherRun { run: header.run() });
        };
        if header.run() != *run {
            if initial == Initial::Zeros {
                let run = header.run();
                self.fault(volume, address, FaultKind::OtherRun { run });
            }
            return;
        }
        let (writer, sequence, extent) = (header.writer(), header.sequence(), header.extent());
        let offset = header.address().checked_sub(extent.first);
        if header.workload() != &block::WorkloadBytes::pack(workload)
            || writer >= workload.writers
            || sequence == 0
            || extent != workload.extent(writer, sequence)
            || offset != Some(u64::from(header.index()))
            || header.index() >= extent.blocks
        {
            *self.volumes[usize::from(volume)].content.get_mut(address) = UNKNOWN;
            return self.fault(volume, address, FaultKind::Impossible { writer, sequence });
        }
        if (extent.volume, header.address()) != (volume, address) {
            *self.volumes[usize::from(volume)].content.get_mut(address) = UNKNOWN;
            let (volume_written, address_written) = (extent.volume, header.address());
            let kind = FaultKind::Misplaced { volume_written, address_written };
            return self.fault(volume, address, kind);
        }
        let issue = Moment { event: header.issue_event(), unix_ns: header.issue_unix_ns() };
        for (writer, known) in self.known.iter_mut().enumerate() {
            *known = known.union(header.known(writer));
        }
        let highest = &mut self.highest[usize::from(writer)];
        *highest = sequence.max(*highest);
        if self.newest.is_none_or(|(newest, _)| newest < issue) {
            self.newest = Some((issue, CommandRef { writer, sequence, extent }));
        }
        let image = &mut self.volumes[usize::from(volume)];
        image.newest_issue = image.newest_issue.max(Some(issue));
        image.written_blocks += 1;
        *image.content.get_mut(address) = sequence;
    }
}

/// Finds the run of the newest sound block, or of the one that is `wanted`.
fn detect(
    sources: &mut [Box<dyn Source + '_>],
    wanted: Option<RunId>,
) -> Result<Option<(RunId, Workload)>, ScanError> {
    let mut newest: Option<(u64, RunId, block::WorkloadBytes)> = None;
    for source in sources {
        for_each_chunk(source.as_mut(), 512, |_, chunk| {
            for at in (0..chunk.len()).step_by(512) {
                let Some(header) = BlockHeader::glance(&chunk[at..]) else { continue };
                let run = header.run();
                if wanted.is_some_and(|wanted| wanted != run)
                    || newest.is_some_and(|(time, seen, _)| {
                        seen == run || time >= header.issue_unix_ns()
                    })
                {
                    continue;
                }
                let bytes = header.workload().unpack().block_bytes as usize;
                let whole = chunk.get(at..at + bytes);
                if whole.is_some_and(|whole| BlockHeader::parse(whole).is_ok()) {
                    newest = Some((header.issue_unix_ns(), run, *header.workload()));
                }
            }
            Ok(())
        })?;
    }
    Ok(newest.map(|(_, run, workload)| (run, workload.unpack())))
}

/// Calls `each` with all blocks that may not be zero.
fn for_each_block(
    source: &mut dyn Source,
    block_bytes: u32,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let size = u64::from(block_bytes);
    for_each_chunk(source, size, |offset, chunk| {
        for (index, block) in chunk.chunks(block_bytes as usize).enumerate() {
            each(offset / size + index as u64, block)?;
        }
        Ok(())
    })
}

/// Calls `each` with the offset and bytes of chunks that cover all data of `source`,
/// starting at multiples of `align` bytes.
fn for_each_chunk(
    source: &mut dyn Source,
    align: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let total = source.bytes();
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut offset = 0;
    loop {
        let name = source.name();
        let failed = |error| ScanError::Read { name: name.clone(), offset, error };
        let Some(data) = source.next_data(offset).map_err(failed)? else { return Ok(()) };
        // Holes need not end at a block's edge.
        offset = offset.max(data.start / align * align);
        let end = data.end.next_multiple_of(align).min(total);
        while offset < end {
            // Chunks end at their own multiples, so that no block straddles two.
            let length = (CHUNK_BYTES - offset % CHUNK_BYTES).min(end - offset);
            let chunk = &mut buffer[..length as usize];
            let name = source.name();
            source.read_at(offset, chunk).map_err(|error| ScanError::Read {
                name,
                offset,
                error,
            })?;
            each(offset, chunk)?;
            offset += length;
        }
    }
}
