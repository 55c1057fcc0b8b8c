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

/// A volume of a [`Target`], read through it. Several share the target, whose slot 0
/// they use in turn; it has at least one slot with room for a block.
pub struct TargetSource {
    target: Rc<RefCell<Box<dyn Target>>>,
    volume: u16,
    ended: Vec<Completion>,
}

impl TargetSource {
    /// All volumes of a target, in its order.
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
        let mut first = offset / block_bytes as u64;
        for part in buffer.chunks_mut(longest) {
            let blocks = (part.len() / block_bytes) as u32;
            let request = Request { op: Op::Read, volume: self.volume, first, blocks };
            while target.submit(0, request).is_err() {
                target.poll(&mut self.ended);
            }
            while self.ended.is_empty() {
                target.poll(&mut self.ended);
            }
            for completion in self.ended.drain(..) {
                if completion.status != Status::Ok {
                    return Err(io::Error::other(completion.status.to_string()));
                }
            }
            part.copy_from_slice(&target.buffer(0)[..part.len()]);
            first += u64::from(blocks);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
