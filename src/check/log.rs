//! The writer's log: every issue and every acknowledgement, in the order in which
//! the one writing process saw them.
//!
//! An issue is appended before the command is submitted and an acknowledgement
//! after it was received. So when A's acknowledgement stands before B's issue, A
//! had been acknowledged before B existed; no clock is involved. The file is only
//! appended to, and each record carries its own number and checksum: a file cut
//! short by a crash of the writer loses its last events and nothing else, and what
//! is lost there only makes the check weaker, never wrong.
//!
//! ```text
//! header, 128 bytes                       record, 40 bytes
//!   0  magic        "SETLLOG1"              0  kind       u8  1 issue, 2 acknowledgement,
//!   8  checksum     u32 of the rest                           3 error, 4 observation, 5 end
//!  12  format       u16 1                   1  (zero)     u8
//!  14  (zero)       u16                     2  writer     u16
//!  16  run      16 × u8                     4  volume     u16 (issue)
//!  32  start time   u64                     6  detail     u16 blocks (issue), status (error),
//!  40  (zero)   24 × u8                                       reading writer (observation)
//!  64  parameters  64 B                     8  sequence   u64
//!                                          16  first      u64 first block (issue)
//!                                          24  time       u64 nanoseconds since 1970
//!                                          32  event      u32 low bits of the record's number
//!                                          36  checksum   u32 of the 36 bytes before
//! ```

use super::block::{RunId, WorkloadBytes};
use super::known::Known;
use super::workload::{Extent, Workload, WorkloadError};
use std::io::{self, Read, Write};
use std::path::Path;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"SETLLOG1";
const FORMAT: u16 = 1;
const RECORD_BYTES: usize = size_of::<Record>();

const _: () = assert!(size_of::<Header>() == 128);
const _: () = assert!(RECORD_BYTES == 40);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    checksum: U32,
    format: U16,
    zero_14: U16,
    run: [u8; 16],
    start_unix_ns: U64,
    zero_40: [u8; 24],
    workload: WorkloadBytes,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    kind: u8,
    zero_1: u8,
    writer: U16,
    volume: U16,
    detail: U16,
    sequence: U64,
    first: U64,
    unix_ns: U64,
    event: U32,
    checksum: U32,
}

/// What happened to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is about to be submitted for the first time.
    Issue(Extent),
    /// Its success was received.
    Acknowledge,
    /// An error was received; it may be submitted again.
    Error {
        /// NVMe status type in the upper byte and code in the lower, or `0xffff` for
        /// an error that is none of NVMe's.
        status: u16,
    },
    /// A read of another writer returned it before its acknowledgement was received.
    Observe {
        /// The writer that read.
        by: u16,
    },
    /// The run ended in order; the writer and sequence of this record mean nothing.
    End,
}

/// Appends to a log.
#[derive(Debug)]
pub struct LogWriter<W> {
    out: W,
    event: u64,
}

impl<W: Write> LogWriter<W> {
    /// Starts the log of a run.
    pub fn create(
        mut out: W,
        run: RunId,
        workload: &Workload,
        start_unix_ns: u64,
    ) -> io::Result<Self> {
        let mut header = Header {
            magic: MAGIC,
            checksum: U32::ZERO,
            format: FORMAT.into(),
            zero_14: U16::ZERO,
            run: run.0,
            start_unix_ns: start_unix_ns.into(),
            zero_40: [0; 24],
            workload: WorkloadBytes::pack(workload),
        };
        header.checksum.set(super::crc32c(&header.as_bytes()[12..]));
        out.write_all(header.as_bytes())?;
        Ok(Self { out, event: 0 })
    }

    /// The number of the last event; the first one is number 1.
    pub fn last_event(&self) -> u64 {
        self.event
    }

    /// Appends an event and returns its number.
    pub fn append(
        &mut self,
        writer: u16,
        sequence: u64,
        event: Event,
        unix_ns: u64,
    ) -> io::Result<u64> {
        let (kind, volume, detail, first) = match event {
            Event::Issue(extent) => (1, extent.volume, extent.blocks, extent.first),
            Event::Acknowledge => (2, 0, 0, 0),
            Event::Error { status } => (3, 0, status, 0),
            Event::Observe { by } => (4, 0, by, 0),
            Event::End => (5, 0, 0, 0),
        };
        let number = self.event + 1;
        let mut record = Record {
            kind,
            zero_1: 0,
            writer: writer.into(),
            volume: volume.into(),
            detail: detail.into(),
            sequence: sequence.into(),
            first: first.into(),
            unix_ns: unix_ns.into(),
            event: (number as u32).into(),
            checksum: U32::ZERO,
        };
        record.checksum.set(super::crc32c(&record.as_bytes()[..36]));
        self.out.write_all(record.as_bytes())?;
        self.event = number;
        Ok(number)
    }

    /// Hands buffered events to the system, so that a killed process loses none of them.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// What the log is written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// What the log says of one command. Event numbers that did not happen are `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandFacts {
    /// When its issue was logged.
    pub issue_event: u64,
    /// The same by the clock.
    pub issue_unix_ns: u64,
    /// From this event on it was known that it took effect: its acknowledgement, or
    /// an earlier read that returned it.
    pub known_event: u64,
    /// When that was, by the clock.
    pub known_unix_ns: u64,
    /// When it was acknowledged.
    pub ack_event: u64,
    /// The same by the clock; 0 if it never was.
    pub ack_unix_ns: u64,
    /// How many errors it met.
    pub errors: u32,
}

impl CommandFacts {
    /// Whether success was received.
    pub fn acknowledged(&self) -> bool {
        self.ack_event != u64::MAX
    }
}

/// A log in memory.
#[derive(Clone, Debug)]
pub struct Log {
    /// The run.
    pub run: RunId,
    /// Its parameters.
    pub workload: Workload,
    /// When it started.
    pub start_unix_ns: u64,
    /// Per writer, its commands; number 1 is the first.
    pub commands: Vec<Vec<CommandFacts>>,
    /// Per writer, all that was acknowledged.
    pub acknowledged: Vec<Known>,
    /// Events read.
    pub events: u64,
    /// Time of the last one.
    pub last_unix_ns: u64,
    /// Whether the last event is the end of the run.
    pub complete: bool,
    /// Bytes at the end that are no whole, sound record: a writer that was killed, or
    /// that is still writing, leaves some.
    pub tail_bytes: u64,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read.
    #[error("cannot read the log: {0}")]
    Io(#[from] io::Error),
    /// The start of the file is not that of a log.
    #[error("not a log of setline-check (or its header is damaged)")]
    Header,
    /// The header has another format.
    #[error("log format {0}, only {FORMAT} is known")]
    Format(u16),
    /// Sound records follow an unsound one: damage, not the tail of a crash.
    #[error("log is damaged at event {event}")]
    Damaged {
        /// Number of the first unsound record.
        event: u64,
    },
    /// A record that the writer cannot have written there.
    #[error("event {event} of writer {writer}, command {sequence}, cannot be: {what}")]
    Impossible {
        /// Number of the record.
        event: u64,
        /// Writer in it.
        writer: u16,
        /// Sequence number in it.
        sequence: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The parameters of the run make no sense.
    #[error("parameters of the run: {0}")]
    Workload(#[from] WorkloadError),
}

impl Log {
    /// Reads the log at `path`, which may still be written to.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Self::read(io::BufReader::with_capacity(1 << 20, std::fs::File::open(path)?))
    }

    /// Reads a log to its end.
    pub fn read(mut input: impl Read) -> Result<Self, LogError> {
        let mut header = [0; size_of::<Header>()];
        if read_up_to(&mut input, &mut header)? < header.len() {
            return Err(LogError::Header);
        }
        let header: Header = zerocopy::transmute!(header);
        if header.magic != MAGIC || header.checksum.get() != super::crc32c(&header.as_bytes()[12..])
        {
            return Err(LogError::Header);
        }
        if header.format.get() != FORMAT {
            return Err(LogError::Format(header.format.get()));
        }
        let workload = header.workload.unpack();
        workload.validate()?;
        let mut log = Self {
            run: RunId(header.run),
            commands: vec![Vec::new(); usize::from(workload.writers)],
            acknowledged: vec![Known::NONE; usize::from(workload.writers)],
            workload,
            start_unix_ns: header.start_unix_ns.get(),
            events: 0,
            last_unix_ns: header.start_unix_ns.get(),
            complete: false,
            tail_bytes: 0,
        };
        loop {
            let mut bytes = [0; RECORD_BYTES];
            let got = read_up_to(&mut input, &mut bytes)?;
            let record = Record::ref_from_bytes(&bytes)
                .ok()
                .filter(|record| got == RECORD_BYTES && record.is_sound(log.events + 1));
            match record {
                Some(_) if log.tail_bytes > 0 => {
                    return Err(LogError::Damaged { event: log.events + 1 });
                }
                Some(record) => log.take(record)?,
                None => log.tail_bytes += got as u64,
            }
            if got < RECORD_BYTES {
                return Ok(log);
            }
            // Behind a bad record others may stand, with numbers that count it.
            if log.tail_bytes > 0 && sound_record_of_any_number(&bytes, log.events + 1) {
                return Err(LogError::Damaged { event: log.events + 1 });
            }
        }
    }

    /// What is known of command `sequence` of `writer`, if its issue was logged.
    pub fn command(&self, writer: u16, sequence: u64) -> Option<&CommandFacts> {
        let index = usize::try_from(sequence.checked_sub(1)?).ok()?;
        self.commands.get(usize::from(writer))?.get(index)
    }

    /// Per writer, the commands acknowledged up to and including `unix_ns`.
    pub fn acknowledged_at(&self, unix_ns: u64) -> Vec<Known> {
        let of_writer = |commands: &Vec<CommandFacts>| {
            let mut order: Vec<(u64, u64)> = (1..)
                .zip(commands)
                .filter(|(_, facts)| facts.acknowledged() && facts.ack_unix_ns <= unix_ns)
                .map(|(sequence, facts)| (facts.ack_event, sequence))
                .collect();
            order.sort_unstable();
            let mut known = Known::NONE;
            for (_, sequence) in order {
                known.insert(sequence);
            }
            known
        };
        self.commands.iter().map(of_writer).collect()
    }

    fn take(&mut self, record: &Record) -> Result<(), LogError> {
        let event = self.events + 1;
        let (writer, sequence) = (record.writer.get(), record.sequence.get());
        let unix_ns = record.unix_ns.get();
        let impossible = |what| LogError::Impossible { event, writer, sequence, what };
        self.events = event;
        self.last_unix_ns = self.last_unix_ns.max(unix_ns);
        if self.complete {
            return Err(impossible("the run had ended"));
        }
        if record.kind == 5 {
            self.complete = true;
            return Ok(());
        }
        let Some(commands) = self.commands.get_mut(usize::from(writer)) else {
            return Err(impossible("no such writer"));
        };
        if record.kind == 1 {
            let extent = Extent {
                volume: record.volume.get(),
                first: record.first.get(),
                blocks: record.detail.get(),
            };
            if sequence != commands.len() as u64 + 1 {
                return Err(impossible("a writer numbers its commands without gaps"));
            }
            if extent != self.workload.extent(writer, sequence) {
                return Err(impossible("the run's parameters put this command elsewhere"));
            }
            commands.push(CommandFacts {
                issue_event: event,
                issue_unix_ns: unix_ns,
                known_event: u64::MAX,
                known_unix_ns: 0,
                ack_event: u64::MAX,
                ack_unix_ns: 0,
                errors: 0,
            });
            return Ok(());
        }
        let facts = sequence
            .checked_sub(1)
            .and_then(|index| commands.get_mut(usize::try_from(index).ok()?))
            .ok_or_else(|| impossible("the command was not issued"))?;
        if facts.acknowledged() && record.kind != 4 {
            return Err(impossible("the command had been acknowledged"));
        }
        match record.kind {
            2 => {
                let acknowledged = &mut self.acknowledged[usize::from(writer)];
                if !acknowledged.reaches(sequence) {
                    return Err(impossible("a writer does not run so far ahead"));
                }
                acknowledged.insert(sequence);
                facts.ack_event = event;
                facts.ack_unix_ns = unix_ns;
            }
            3 => facts.errors += 1,
            4 => {}
            _ => return Err(impossible("unknown kind of event")),
        }
        if record.kind != 3 && facts.known_event == u64::MAX {
            facts.known_event = event;
            facts.known_unix_ns = unix_ns;
        }
        Ok(())
    }
}

impl Record {
    fn is_sound(&self, event: u64) -> bool {
        self.event.get() == event as u32
            && self.checksum.get() == super::crc32c(&self.as_bytes()[..36])
    }
}

fn sound_record_of_any_number(bytes: &[u8; RECORD_BYTES], beyond: u64) -> bool {
    Record::ref_from_bytes(bytes).is_ok_and(|record| {
        let number = u64::from(record.event.get());
        record.kind != 0 && number > u64::from(beyond as u32) && record.is_sound(number)
    })
}

/// Fills `buffer` as far as the input goes and returns how far that is.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::super::workload::SizeClass;
    use super::*;

    fn workload() -> Workload {
        Workload {
            seed: 1,
            block_bytes: 512,
            volumes: 1,
            writers: 2,
            span_blocks: 64,
            stripe_blocks: 8,
            hot_permille: 0,
            hot_stripes: 0,
            sizes: vec![SizeClass { blocks: 2, weight: 1 }],
        }
    }

    fn sample() -> Vec<u8> {
        let workload = workload();
        let mut log = LogWriter::create(Vec::new(), RunId([3; 16]), &workload, 100).unwrap();
        log.append(1, 1, Event::Issue(workload.extent(1, 1)), 101).unwrap();
        log.append(0, 1, Event::Issue(workload.extent(0, 1)), 102).unwrap();
        log.append(0, 1, Event::Error { status: 0x0006 }, 103).unwrap();
        log.append(1, 1, Event::Observe { by: 0 }, 104).unwrap();
        log.append(1, 1, Event::Acknowledge, 105).unwrap();
        assert_eq!(log.append(0, 0, Event::End, 106).unwrap(), 6);
        log.into_inner()
    }

    #[test]
    fn what_is_logged_is_what_is_read() {
        let log = Log::read(&sample()[..]).unwrap();
        assert_eq!((log.run, &log.workload), (RunId([3; 16]), &workload()));
        assert_eq!((log.events, log.last_unix_ns, log.complete, log.tail_bytes), (6, 106, true, 0));
        let seen = log.command(1, 1).unwrap();
        assert_eq!((seen.issue_event, seen.known_event, seen.ack_event), (1, 4, 5));
        let failed = log.command(0, 1).unwrap();
        assert_eq!(
            (failed.errors, failed.acknowledged(), failed.known_event),
            (1, false, u64::MAX)
        );
        assert_eq!((log.command(0, 2), log.command(0, 0), log.command(2, 1)), (None, None, None));
        assert_eq!(log.acknowledged_at(104), [Known::NONE, Known::NONE]);
        assert_eq!(log.acknowledged_at(105), [Known::NONE, Known::up_to(1)]);
    }

    #[test]
    fn a_log_cut_anywhere_keeps_every_whole_event_before_the_cut() {
        let bytes = sample();
        for length in 128..bytes.len() {
            let log = Log::read(&bytes[..length]).unwrap();
            assert_eq!(log.events as usize, (length - 128) / 40);
            assert_eq!(log.tail_bytes as usize, (length - 128) % 40);
            assert!(!log.complete);
        }
        assert!(matches!(Log::read(&bytes[..127]), Err(LogError::Header)));
    }

    #[test]
    fn damage_in_the_middle_is_not_taken_for_a_torn_tail() {
        let mut bytes = sample();
        bytes[128 + 40 + 9] ^= 1;
        assert!(matches!(Log::read(&bytes[..]), Err(LogError::Damaged { event: 2 })));
        let mut bytes = sample();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        let log = Log::read(&bytes[..]).unwrap();
        assert_eq!((log.events, log.tail_bytes), (5, 40));
    }

    #[test]
    fn an_issue_that_the_parameters_put_elsewhere_is_refused() {
        let workload = workload();
        let mut log = LogWriter::create(Vec::new(), RunId([3; 16]), &workload, 100).unwrap();
        log.append(0, 1, Event::Issue(workload.extent(1, 1)), 101).unwrap();
        let bytes = log.into_inner();
        assert!(matches!(Log::read(&bytes[..]), Err(LogError::Impossible { event: 1, .. })));
    }
}
