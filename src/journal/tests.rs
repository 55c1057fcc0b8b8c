//! The journal over a simulated disk, held against a list of what was appended.

use std::collections::BTreeMap;

use super::*;
use crate::proto::types::{BufRef, ShardId};

mod crash;
mod disk;
mod driver;
mod golden;
mod steps;

use disk::Disk;

const SHAPE: Shape = Shape::SMALL;
const OWNER: ShardId = ShardId::new(7, 3);
const IDENTITY: Identity = Identity { journal: *b"0123456789abcdef", owner: OWNER };

fn config(extra_blocks: u64) -> Config {
    Config {
        device_bytes: Config::device_bytes_min(SHAPE) + extra_blocks * BLOCK_BYTES as u64,
        shape: SHAPE,
        units_in_flight: 4,
    }
}

fn stage() -> Vec<u8> {
    // Whatever was in the memory before must not matter.
    vec![0xEE; Config::stage_bytes_min(SHAPE) + 8 * BLOCK_BYTES]
}

/// An entry that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Record { role: RecordRole, set: u64, header: [u8; 128], payload: Vec<u8> },
    Manifest { set: u64, bytes: Vec<u8> },
    Commit { set: u64, cut_time_ns: u64 },
    Applied { set: u64 },
}

const GROUP: GroupId = GroupId(5);
const PRIMARY_EPOCH: Epoch = Epoch(0x1234_5678);

impl Owned {
    fn record(number: u64, set: u64, len: usize) -> Self {
        let mut header = [0; 128];
        header[..8].copy_from_slice(&number.to_le_bytes());
        let payload = (0..len).map(|i| (number as usize * 31 + i / 64) as u8).collect();
        Self::Record { role: RecordRole::Transfer, set, header, payload }
    }

    fn entry(&self) -> Entry<'_> {
        match self {
            Self::Record { role, set, header, payload } => Entry::Record {
                role: *role,
                group: GROUP,
                set: SetId(*set),
                header,
                payload_crc: crate::mem::crc32c::crc32c(payload),
                payload,
            },
            Self::Manifest { set, bytes } => {
                Entry::Manifest { group: GROUP, set: SetId(*set), bytes }
            }
            Self::Commit { set, cut_time_ns } => {
                let (set, primary_epoch) = (SetId(*set), PRIMARY_EPOCH);
                Entry::Commit { group: GROUP, set, cut_time_ns: *cut_time_ns, primary_epoch }
            }
            Self::Applied { set } => Entry::Applied { group: GROUP, set: SetId(*set) },
        }
    }

    fn of(entry: &Entry<'_>) -> Self {
        match *entry {
            Entry::Record { role, set, header, payload, .. } => {
                Self::Record { role, set: set.0, header: *header, payload: payload.to_vec() }
            }
            Entry::Manifest { set, bytes, .. } => {
                Self::Manifest { set: set.0, bytes: bytes.to_vec() }
            }
            Entry::Commit { set, cut_time_ns, primary_epoch, .. } => {
                assert_eq!(primary_epoch, PRIMARY_EPOCH);
                Self::Commit { set: set.0, cut_time_ns }
            }
            Entry::Applied { set, .. } => Self::Applied { set: set.0 },
        }
    }
}

/// Payloads that the journal writes by reference.
#[derive(Default)]
struct Bufs {
    next: u64,
    payloads: BTreeMap<BufRef, Vec<u8>>,
}

impl Bufs {
    fn keep(&mut self, payload: &[u8]) -> BufRef {
        self.next += 1;
        self.payloads.insert(BufRef(self.next), payload.to_vec());
        BufRef(self.next)
    }

    fn gather(&self, stage: &[u8], pieces: &[Piece]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            match *piece {
                Piece::Stage { at, len } => bytes.extend_from_slice(&stage[at..][..len]),
                Piece::Payload { buf, len } => bytes.extend_from_slice(&self.payloads[&buf][..len]),
            }
        }
        bytes
    }
}

/// Entries as recovery yields them.
type Found = Vec<(JournalPos, Owned)>;

/// A journal, its disk, and its operations on the way.
struct Rig {
    journal: Journal<Vec<u8>>,
    disk: Disk,
    bufs: Bufs,
    on_the_way: Vec<Io>,
}

impl Rig {
    fn format(config: Config) -> Self {
        let disk = Disk::new(config.device_bytes);
        let recovery = Recovery::format(config, IDENTITY, stage()).unwrap();
        let (rig, found) = Self::recover(recovery, disk).unwrap();
        assert!(found.is_empty());
        rig
    }

    /// Opens what is on the disk; also returns the entries found.
    fn open(config: Config, disk: Disk) -> Result<(Self, Found), OpenError> {
        Self::recover(Recovery::open(config, OWNER, stage()).unwrap(), disk)
    }

    fn recover(recovery: Recovery<Vec<u8>>, disk: Disk) -> Result<(Self, Found), OpenError> {
        Self::recover_watched(recovery, disk, |_| {})
    }

    /// As `recover`; `watch` sees the disk after each step.
    fn recover_watched(
        mut recovery: Recovery<Vec<u8>>,
        mut disk: Disk,
        mut watch: impl FnMut(&Disk),
    ) -> Result<(Self, Found), OpenError> {
        let mut found = Vec::new();
        loop {
            match recovery.poll()? {
                Step::Entries => {
                    while let Some((position, entry)) = recovery.next_entry() {
                        found.push((position, Owned::of(&entry)));
                    }
                }
                Step::Io(io) => {
                    let (Io::Read { id, .. } | Io::Write { id, .. } | Io::Flush { id }) = io;
                    match io {
                        Io::Read { offset, len, .. } => {
                            recovery.stage_mut()[..len].copy_from_slice(&disk.read(offset, len));
                        }
                        Io::Write { offset, len, .. } => {
                            let pieces = recovery.pieces(id);
                            let bytes = Bufs::default().gather(recovery.stage(), &pieces);
                            assert_eq!(bytes.len(), len);
                            disk.write(id, offset, &bytes);
                            watch(&disk);
                            disk.complete_write(id);
                        }
                        Io::Flush { .. } => {
                            disk.begin_flush();
                            disk.complete_flush();
                        }
                    }
                    watch(&disk);
                    recovery.complete(id, true)?;
                }
                Step::Done => break,
            }
        }
        let journal = recovery.into_journal();
        Ok((Self { journal, disk, bufs: Bufs::default(), on_the_way: Vec::new() }, found))
    }

    fn append(&mut self, entry: &Owned) -> Result<JournalPos, AppendError> {
        let entry = entry.entry();
        let buf = match entry {
            Entry::Record { payload, .. } => Some(self.bufs.keep(payload)),
            _ => None,
        };
        let position = self.journal.append(&entry, buf);
        self.poll();
        position
    }

    /// Takes operations from the journal. Writes reach the disk's cache at once, also
    /// before they are completed, as a device may have it.
    fn poll(&mut self) {
        while let Some(io) = self.journal.poll_io() {
            if let Io::Flush { .. } = io {
                self.disk.begin_flush();
            }
            if let Io::Write { id, offset, len } = io {
                let bytes = self.bufs.gather(self.journal.stage(), self.journal.pieces(id));
                assert_eq!(bytes.len(), len, "pieces add up");
                assert!(offset + len as u64 <= self.disk.bytes(), "inside the device");
                self.disk.write(id, offset, &bytes);
            }
            self.on_the_way.push(io);
        }
    }

    /// Completes one operation on the way.
    fn complete(&mut self, pick: usize) {
        if self.on_the_way.is_empty() {
            return;
        }
        match self.on_the_way.swap_remove(pick % self.on_the_way.len()) {
            Io::Flush { id } => {
                self.disk.complete_flush();
                self.journal.complete(id, true);
            }
            Io::Write { id, .. } | Io::Read { id, .. } => {
                self.disk.complete_write(id);
                self.journal.complete(id, true);
            }
        }
        self.poll();
    }

    /// Makes everything durable.
    fn settle(&mut self) {
        let target = self.journal.flush();
        self.poll();
        while !self.on_the_way.is_empty() {
            self.complete(0);
        }
        assert!(self.journal.durable_before() >= target);
        assert!(self.journal.is_idle());
    }

    /// Reads a payload back as the poller does.
    fn read_back(&self, position: JournalPos, len: usize) -> Option<Vec<u8>> {
        let Located { offset, len: read, skip } = self.journal.locate(position, len)?;
        Some(self.disk.read(offset, read)[skip..][..len].to_vec())
    }
}
