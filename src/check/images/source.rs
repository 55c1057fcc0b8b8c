//! What an image is read from.

use super::super::target::{Completion, Op, Request, Status, Target};
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

/// One volume's image: bytes that can be read at any offset, and perhaps holes.
pub trait Source {
    /// For messages.
    fn name(&self) -> String;
    /// Length in bytes.
    fn bytes(&self) -> u64;
    /// The first range at or behind `from` that may hold something other than zeros,
    /// or `None` if only zeros follow. A source that knows no holes returns all the rest.
    fn next_data(&mut self, from: u64) -> io::Result<Option<Range<u64>>>;
    /// Fills `buffer` from `offset`.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A file or block device. Holes of sparse files are not read.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    name: String,
    bytes: u64,
}

impl FileSource {
    /// Opens `path` for reading.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::io::Seek;
        let mut file = File::open(path)?;
        // A block device has no length in its metadata, but it has an end.
        let bytes = file.seek(io::SeekFrom::End(0))?;
        Ok(Self { file, name: path.display().to_string(), bytes })
    }
}

impl Source for FileSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn next_data(&mut self, from: u64) -> io::Result<Option<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        if from >= self.bytes {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // Not every file system and no device knows holes.
            Err(Errno::INVAL) => return Ok(Some(from..self.bytes)),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        Ok((start < self.bytes).then(|| start..end.min(self.bytes)))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

/// An image in memory.
#[derive(Debug)]
pub struct MemorySource<B>(pub B);

impl<B: AsRef<[u8]>> Source for MemorySource<B> {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn bytes(&self) -> u64 {
        self.0.as_ref().len() as u64
    }

    fn next_data(&mut self, from: u64) -> io::Result<Option<Range<u64>>> {
        let bytes = self.bytes();
        Ok((from < bytes).then_some(from..bytes))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        let range = start..start + buffer.len();
        let bytes = self.0.as_ref().get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// A volume of a [`Target`], read through it. The sources of one target take turns.
pub struct TargetSource {
    target: Rc<RefCell<Box<dyn Target>>>,
    volume: u16,
    ended: Vec<Completion>,
}

impl TargetSource {
    /// All volumes of a target, in its order. The target has slots, each with room for
    /// at least a block; so many reads are in flight at once.
    pub fn all(target: Box<dyn Target>) -> Vec<Self> {
        let volumes = target.geometry().volume_blocks.len() as u16;
        let target = Rc::new(RefCell::new(target));
        let source = |volume| Self { target: Rc::clone(&target), volume, ended: Vec::new() };
        (0..volumes).map(source).collect()
    }
}

impl Source for TargetSource {
    fn name(&self) -> String {
        format!("volume {}", self.volume)
    }

    fn bytes(&self) -> u64 {
        let target = self.target.borrow();
        let geometry = target.geometry();
        geometry.volume_blocks[usize::from(self.volume)] * u64::from(geometry.block_bytes)
    }

    fn next_data(&mut self, from: u64) -> io::Result<Option<Range<u64>>> {
        let bytes = self.bytes();
        Ok((from < bytes).then_some(from..bytes))
    }

    /// Reads whole blocks only.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut target = self.target.borrow_mut();
        let block_bytes = target.geometry().block_bytes as usize;
        let longest = target.geometry().transfer_blocks_max as usize * block_bytes;
        let longest = longest.min(target.buffer(0).len() / block_bytes * block_bytes);
        if !offset.is_multiple_of(block_bytes as u64) || !buffer.len().is_multiple_of(block_bytes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut free: Vec<u32> = (0..target.slots()).collect();
        // Per slot in flight, the part of the buffer that it reads.
        let mut parts: Vec<Option<Range<usize>>> = vec![None; free.len()];
        let mut next = 0;
        let mut failed = None;
        while next < buffer.len() || free.len() < parts.len() {
            while let Some(&slot) = free.last().filter(|_| next < buffer.len()) {
                let end = buffer.len().min(next + longest);
                let first = (offset + next as u64) / block_bytes as u64;
                let blocks = ((end - next) / block_bytes) as u32;
                let request = Request { op: Op::Read, volume: self.volume, first, blocks };
                if target.submit(slot, request).is_err() {
                    break;
                }
                free.pop();
                parts[slot as usize] = Some(next..end);
                next = end;
            }
            target.poll(&mut self.ended);
            if self.ended.is_empty() {
                std::thread::yield_now();
            }
            for Completion { slot, status } in self.ended.drain(..) {
                free.push(slot);
                let Some(part) = parts[slot as usize].take() else { continue };
                if status != Status::Ok {
                    failed = Some(status);
                    next = buffer.len();
                } else {
                    let length = part.len();
                    buffer[part].copy_from_slice(&target.buffer(slot)[..length]);
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(status) => Err(io::Error::other(status.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_targets_volume_reads_as_its_file() {
        use super::super::super::target::{FileTarget, FileTargetOptions};
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|index: u32| (index / 512) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let options = FileTargetOptions {
            block_bytes: 512,
            transfer_blocks_max: 24,
            threads: 3,
            direct: false,
        };
        let mut target = FileTarget::open(&[file.path().to_owned()], &options).unwrap();
        target.make_slots(4, 10_000).unwrap();
        let mut source = TargetSource::all(Box::new(target)).pop().unwrap();
        let mut buffer = vec![0; bytes.len() - 1024];
        source.read_at(512, &mut buffer).unwrap();
        assert_eq!(buffer, bytes[512..bytes.len() - 512]);
        assert_eq!(source.next_data(5).unwrap(), Some(5..1 << 20));
        assert!(source.read_at(1 << 20, &mut [0; 512]).is_err());
        source.read_at(0, &mut buffer[..512]).unwrap();
    }

    #[test]
    fn holes_of_a_sparse_file_are_skipped() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        file.as_file().write_all_at(&[1; 4096], 512 << 20).unwrap();
        let mut source = FileSource::open(file.path()).unwrap();
        assert_eq!(source.bytes(), 1 << 30);
        let range = source.next_data(0).unwrap().unwrap();
        assert!(range.contains(&(512 << 20)));
        assert!(range.end - range.start < 64 << 20, "the file system keeps holes: {range:?}");
        assert_eq!(source.next_data(1 << 30).unwrap(), None);
        let mut buffer = [0; 8];
        source.read_at(512 << 20, &mut buffer).unwrap();
        assert_eq!(buffer, [1; 8]);
    }
}
