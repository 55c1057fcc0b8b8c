//! Plain files and kernel block devices as a target.
//!
//! Some threads do blocking I/O; a slot's buffer travels to one of them and back
//! with its command, so nothing is shared. It is not meant to be fast: it lets
//! anything with a block device node be checked, NVMe or not.
//!
//! NVMe promises that a block is read whole or not at all beside a write of it (NVM Command Set
//! Specification 1.0, section 2.1.4, AWUN); a kernel's page cache does not. So a read waits for the
//! writes to its volume that are under way here, and keeps off others meanwhile.

use super::{Completion, Full, Geometry, NoMemory, Op, Request, Status, Target};
use crossbeam::channel::{Receiver, Sender, unbounded};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// Direct I/O wants buffers aligned to the device's block size; no larger one is in use.
const ALIGNMENT: usize = 4096;

/// How to open files as volumes.
#[derive(Clone, Debug)]
pub struct FileTargetOptions {
    /// Block size to assume.
    pub block_bytes: u32,
    /// Longest command, in blocks.
    pub transfer_blocks_max: u32,
    /// Threads that do the I/O; so many commands can be in flight at once.
    pub threads: u32,
    /// Bypass the page cache.
    pub direct: bool,
}

/// Why files cannot be volumes.
#[derive(Debug, thiserror::Error)]
pub enum FileTargetError {
    /// A file cannot be opened for writing, or its length not be found.
    #[error("{}: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Files as volumes. See the module for what it is not.
#[derive(Debug)]
pub struct FileTarget {
    geometry: Geometry,
    buffers: Vec<Option<Buffer>>,
    jobs: Option<Sender<Job>>,
    ended: Receiver<(Buffer, Completion)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// A file, and what keeps reads of it apart from writes: changes share the lock, reads do not.
#[derive(Debug)]
struct Volume {
    file: File,
    order: RwLock<()>,
}

#[derive(Debug)]
struct Job {
    slot: u32,
    request: Request,
    buffer: Buffer,
}

impl FileTarget {
    /// Opens `paths` as volumes, in that order.
    pub fn open(paths: &[PathBuf], options: &FileTargetOptions) -> Result<Self, FileTargetError> {
        use std::io::Seek;
        let mut files = Vec::new();
        let mut volume_blocks = Vec::new();
        for path in paths {
            let failed = |error| FileTargetError::Open { path: path.clone(), error };
            let flags = if options.direct { OFlags::DIRECT.bits() } else { 0 };
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags as i32)
                .open(path)
                .map_err(failed)?;
            let bytes = file.seek(io::SeekFrom::End(0)).map_err(failed)?;
            volume_blocks.push(bytes / u64::from(options.block_bytes));
            files.push(Volume { file, order: RwLock::new(()) });
        }
        let files: Arc<[Volume]> = files.into();
        let (jobs, queue) = unbounded::<Job>();
        let (done, ended) = unbounded();
        let mut threads = Vec::new();
        for _ in 0..options.threads.max(1) {
            let (files, queue, done) = (files.clone(), queue.clone(), done.clone());
            let block_bytes = options.block_bytes;
            let work = move || {
                for mut job in queue {
                    let status = execute(&files, block_bytes, job.request, job.buffer.bytes_mut());
                    let completion = Completion { slot: job.slot, status };
                    if done.send((job.buffer, completion)).is_err() {
                        return;
                    }
                }
            };
            let builder = std::thread::Builder::new().name("check-io".to_owned());
            threads.push(builder.spawn(work).map_err(FileTargetError::Thread)?);
        }
        Ok(Self {
            geometry: Geometry {
                block_bytes: options.block_bytes,
                volume_blocks,
                transfer_blocks_max: options.transfer_blocks_max,
            },
            buffers: Vec::new(),
            jobs: Some(jobs),
            ended,
            threads,
        })
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        // Without a sender the queue ends, and with it the threads.
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Target for FileTarget {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn make_slots(&mut self, count: u32, bytes: usize) -> Result<(), NoMemory> {
        self.buffers = (0..count).map(|_| Some(Buffer::new(bytes))).collect();
        Ok(())
    }

    fn slots(&self) -> u32 {
        self.buffers.len() as u32
    }

    fn buffer(&mut self, slot: u32) -> &mut [u8] {
        self.buffers[slot as usize].as_mut().expect("the slot is in flight").bytes_mut()
    }

    fn submit(&mut self, slot: u32, request: Request) -> Result<(), Full> {
        let buffer = self.buffers[slot as usize].take().expect("the slot is in flight");
        let jobs = self.jobs.as_ref().expect("taken by drop only");
        jobs.send(Job { slot, request, buffer }).expect("threads live as long as the target");
        Ok(())
    }

    fn poll(&mut self, ended: &mut Vec<Completion>) {
        for (buffer, completion) in self.ended.try_iter() {
            self.buffers[completion.slot as usize] = Some(buffer);
            ended.push(completion);
        }
    }

    fn supports(&self, op: Op) -> bool {
        // Two system calls cannot be one atomic command.
        op != Op::CompareAndWrite
    }
}

fn execute(files: &[Volume], block_bytes: u32, request: Request, buffer: &mut [u8]) -> Status {
    let size = u64::from(block_bytes);
    let (offset, bytes) = (request.first * size, u64::from(request.blocks) * size);
    let Some(Volume { file, order }) = files.get(usize::from(request.volume)) else {
        return Status::Nvme { sct: 0, sc: 0x0b, dnr: true };
    };
    // It guards no data, so a thread that panicked with it has spoilt nothing.
    let (_changes, _reads);
    match request.op {
        Op::Read | Op::Compare => _reads = order.write().unwrap_or_else(PoisonError::into_inner),
        Op::Flush => {}
        _ => _changes = order.read().unwrap_or_else(PoisonError::into_inner),
    }
    let result = match request.op {
        Op::Read => file.read_exact_at(&mut buffer[..bytes as usize], offset),
        Op::Write => file.write_all_at(&buffer[..bytes as usize], offset),
        Op::WriteFua => {
            file.write_all_at(&buffer[..bytes as usize], offset).and_then(|()| file.sync_data())
        }
        Op::Compare => {
            let mut found = Buffer::new(bytes as usize);
            match file.read_exact_at(found.bytes_mut(), offset) {
                Ok(()) if *found.bytes_mut() != buffer[..bytes as usize] => {
                    return Status::COMPARE_FAILURE;
                }
                result => result,
            }
        }
        Op::WriteZeroes => write_zeroes(file, offset, bytes),
        Op::Deallocate => {
            buffer[..request.blocks as usize * 16].chunks_exact(16).try_for_each(|range| {
                let (_, blocks, first) = parse_range(range);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(file, flags, first * size, u64::from(blocks) * size)?)
            })
        }
        Op::Flush => file.sync_data(),
        Op::CompareAndWrite => return Status::INVALID_OPCODE,
    };
    match result {
        Ok(()) => Status::Ok,
        Err(error) => Status::Os(error.raw_os_error().unwrap_or(0)),
    }
}

fn write_zeroes(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            file.write_all_at(Buffer::new(bytes as usize).bytes_mut(), offset)
        }
        result => Ok(result?),
    }
}

/// Attributes, length and first block of a dataset management range.
fn parse_range(range: &[u8]) -> (u32, u32, u64) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| range[at + byte]));
    (word(0), word(4), u64::from(word(8)) | u64::from(word(12)) << 32)
}

/// Bytes that start at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, length }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}
