//! The driver by itself: order, room, memory, scarcity, failure.

use super::*;
use crate::proto::command::{JournalEntry, Token};
use crate::proto::types::{Epoch, Extent, MapVersion, MoverId, Seq, ShardId, UpdateKind, VolumeId};
use crate::wire::update::{UpdateHeader, UpdateInfo};
use zerocopy::IntoBytes;

const UNIT_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;

/// Records by handle.
#[derive(Default)]
struct Memory(BTreeMap<BufRef, ([u8; UPDATE_HEADER_BYTES], Vec<u8>)>);

impl Records for Memory {
    fn record(&self, buf: BufRef) -> Option<(&[u8; UPDATE_HEADER_BYTES], &[u8])> {
        self.0.get(&buf).map(|(header, payload)| (header, &payload[..]))
    }
}

/// A driver, its records, and its operations on the way.
struct Desk {
    driver: Driver<Vec<u8>, u32>,
    memory: Memory,
    on_the_way: Vec<Io>,
    tokens: u64,
    /// Tokens and places, as told.
    placed: Vec<(u64, JournalPos)>,
    /// Why the oldest entry waits.
    refused: Option<AppendError>,
}

impl Desk {
    fn new(extra_blocks: u64) -> Self {
        let setting = Setting { epoch: Epoch(3), unit_bytes_min: UNIT_BYTES_MIN };
        Self {
            driver: Driver::new(Rig::format(config(extra_blocks)).journal, setting),
            memory: Memory::default(),
            on_the_way: Vec::new(),
            tokens: 0,
            placed: Vec::new(),
            refused: None,
        }
    }

    fn keep(&mut self, payload_len: usize) -> BufRef {
        // Zeroes behind the payload, as an arena may have them.
        let mut payload = vec![7; payload_len];
        let info = UpdateInfo {
            kind: UpdateKind::Write,
            fua: false,
            payload_crc: crate::mem::crc32c::crc32c(&payload),
            payload_len: payload_len as u32,
            volume: VolumeId(1),
            group: GROUP,
            origin: MoverId(1),
            owner: ShardId::new(1, 0),
            epoch: Epoch(3),
            map_version: MapVersion(1),
            set: SetId(1),
            seq: Seq(1),
            extent: Extent { lba: 0, blocks: (payload_len / 512) as u32 },
            block_bytes: 512,
            list_seq: 0,
            time_ns: 0,
            time_error_ns: 0,
            forward: crate::proto::types::ForwardId(0),
            described: false,
            not_before: SetId(0),
        };
        payload.resize(payload_len.next_multiple_of(64), 0);
        let mut header = [0; UPDATE_HEADER_BYTES];
        header.copy_from_slice(UpdateHeader::seal(&info).as_bytes());
        let buf = BufRef(self.memory.0.len() as u64 + 1);
        self.memory.0.insert(buf, (header, payload));
        buf
    }

    fn append_buf(&mut self, buf: BufRef) -> u64 {
        self.append(JournalEntry::Record { buf, role: RecordRole::Transfer })
    }

    fn append_mark(&mut self) -> u64 {
        self.append(JournalEntry::Applied { group: GROUP, set: SetId(1) })
    }

    fn append(&mut self, entry: JournalEntry) -> u64 {
        self.tokens += 1;
        self.driver.append(entry, Token(self.tokens), &self.memory);
        self.drain();
        self.tokens
    }

    fn flush(&mut self) -> u64 {
        self.tokens += 1;
        self.driver.flush(Token(self.tokens));
        self.drain();
        self.tokens
    }

    fn drain(&mut self) {
        self.refused = loop {
            match self.driver.append_next(&self.memory) {
                Ok(Some(appended)) => self.placed.push((appended.token.0, appended.position)),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
    }

    fn poll(&mut self) {
        while let Some(io) = self.driver.poll_io() {
            self.on_the_way.push(io);
        }
    }

    /// Completes the oldest operation under way.
    fn complete(&mut self, ok: bool) {
        self.poll();
        if !self.on_the_way.is_empty() {
            let io = self.on_the_way.remove(0);
            self.driver.complete(io.id(), ok);
            self.poll();
        }
    }

    fn complete_all(&mut self) {
        self.poll();
        while !self.on_the_way.is_empty() {
            self.complete(true);
        }
    }

    /// Flushes that are done.
    fn durable(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.driver.poll_durable()).map(|flushed| flushed.token.0).collect()
    }

    fn reusable(&mut self) -> Vec<BufRef> {
        std::iter::from_fn(|| self.driver.poll_reusable()).collect()
    }

    fn tokens_placed(&self) -> Vec<u64> {
        self.placed.iter().map(|(token, _)| *token).collect()
    }
}

#[test]
fn entries_get_their_places_and_flushes_are_done_in_the_order_they_were_wanted() {
    let mut desk = Desk::new(0);
    let buf = desk.keep(512);
    let (record, first) = (desk.append_buf(buf), desk.flush());
    let (mark, second) = (desk.append_mark(), desk.flush());
    assert_eq!(desk.tokens_placed(), [record, mark]);
    assert!(desk.placed[0].1 < desk.placed[1].1);
    assert_eq!(desk.durable(), [0; 0], "nothing is on the device");
    desk.complete_all();
    assert_eq!(desk.durable(), [first, second]);
    assert_eq!(desk.durable(), [0; 0], "told once");
    assert!(desk.driver.is_idle());
}

#[test]
fn a_flush_covers_only_what_was_wanted_before_it() {
    let mut desk = Desk::new(0);
    desk.append_mark();
    let first = desk.flush();
    desk.poll();
    desk.append_mark();
    let second = desk.flush();
    for _ in 0..3 {
        // Both units, then the flush that followed the first of them.
        assert_eq!(desk.durable(), [0; 0]);
        desk.complete(true);
    }
    assert_eq!(desk.durable(), [first]);
    desk.complete_all();
    assert_eq!(desk.durable(), [second]);
}

#[test]
fn what_finds_the_journal_busy_waits_in_order_with_all_behind_it() {
    let mut desk = Desk::new(64);
    let buf = desk.keep(8 * BLOCK_BYTES);
    while desk.refused.is_none() {
        desk.append_buf(buf);
    }
    assert_eq!(desk.refused, Some(AppendError::Busy));
    let mark = desk.append_mark();
    let flush = desk.flush();
    assert!(!desk.tokens_placed().contains(&mark), "not past the record");
    while desk.refused.is_some() {
        desk.complete(true);
        desk.drain();
    }
    assert!(desk.tokens_placed().is_sorted() && desk.tokens_placed().ends_with(&[mark]));
    desk.complete_all();
    assert_eq!(desk.durable(), [flush]);
}

#[test]
fn what_finds_no_room_waits_until_room_is_made_and_counts_as_spoken_for() {
    let mut desk = Desk::new(400);
    let buf = desk.keep(4096);
    let waiting = loop {
        let record = desk.append_buf(buf);
        if desk.refused == Some(AppendError::Full) {
            break record;
        }
        let flush = desk.flush();
        desk.complete_all();
        assert_eq!(desk.durable(), [flush]);
    };
    assert!(desk.driver.is_full() && !desk.driver.failed());
    let (_, used) = desk.driver.capacity_bytes();
    let next = desk.append_buf(buf);
    let record = (ENTRY_BYTES + UPDATE_HEADER_BYTES + 4096) as u64;
    assert_eq!(desk.driver.capacity_bytes().1, used + record);
    let flush = desk.flush();
    assert_eq!(desk.durable(), [0; 0], "the flush is behind them");
    assert!(!desk.driver.is_idle());

    // All but the last can go; the room is there after a superblock that says so.
    desk.driver.retire(desk.placed.last().unwrap().1);
    desk.drain();
    assert_eq!(desk.refused, Some(AppendError::Full));
    desk.complete_all();
    desk.drain();
    assert_eq!(desk.refused, None);
    assert!(desk.tokens_placed().ends_with(&[waiting, next]));
    desk.complete_all();
    assert_eq!(desk.durable(), [flush]);
    assert!(!desk.driver.is_full() && desk.driver.is_idle());
}

#[test]
fn a_long_backlog_is_full_although_there_is_room() {
    let mut desk = Desk::new(1 << 10);
    for _ in 0..=256 {
        desk.driver.flush(Token(0));
    }
    assert!(desk.driver.is_full());
    desk.drain();
    assert!(!desk.driver.is_full());
}

#[test]
fn a_freed_record_is_handed_back_once_and_not_before_its_unit_is_written() {
    let mut desk = Desk::new(0);
    let (small, large, kept) = (desk.keep(512), desk.keep(4096), desk.keep(8192));
    for buf in [small, large, kept] {
        desk.append_buf(buf);
    }
    assert!(desk.driver.may_reuse(small), "it was copied");
    assert!(!desk.driver.may_reuse(large));
    assert!(!desk.driver.may_reuse(large), "freed is freed");
    desk.flush();
    desk.poll();
    assert_eq!(desk.reusable(), [], "the device reads it");
    desk.complete(true);
    assert_eq!(desk.reusable(), [large], "written, though not durable");
    assert_eq!(desk.reusable(), []);
    assert!(desk.driver.may_reuse(kept), "freed after it was written");
    desk.complete_all();
    assert_eq!(desk.reusable(), []);
}

#[test]
fn a_record_that_is_appended_twice_is_held_until_its_last_unit_is_written() {
    let mut desk = Desk::new(0);
    let buf = desk.keep(4096);
    desk.append_buf(buf);
    desk.flush();
    desk.append_buf(buf);
    desk.flush();
    assert!(!desk.driver.may_reuse(buf));
    desk.complete(true);
    assert_eq!(desk.reusable(), [], "the second unit is on its way");
    desk.complete_all();
    assert_eq!(desk.reusable(), [buf]);
}

#[test]
fn scarcity_is_told_when_it_begins_and_when_it_ends() {
    let mut desk = Desk::new(200);
    let buf = desk.keep(4096);
    assert_eq!(desk.driver.poll_room(), None);
    let scarce = loop {
        desk.append_buf(buf);
        desk.complete_all();
        desk.drain();
        if let Some(news) = desk.driver.poll_room() {
            break news;
        }
    };
    let (capacity, used) = desk.driver.capacity_bytes();
    assert!(used > capacity / 2 && !desk.driver.is_full());
    assert!(scarce.is_some_and(|before| before < desk.placed.last().unwrap().1));
    assert_eq!(desk.driver.poll_room(), None, "known");
    desk.flush();
    desk.complete_all();
    desk.driver.retire(desk.placed.last().unwrap().1);
    assert_eq!(desk.driver.poll_room(), None, "not before the room is there");
    desk.complete_all();
    assert_eq!(desk.driver.poll_room(), Some(None));
    assert_eq!(desk.driver.poll_room(), None);
}

#[test]
fn a_unit_goes_out_by_itself_when_it_is_large_enough_and_nothing_else_is_under_way() {
    let mut desk = Desk::new(64);
    let buf = desk.keep(4096);
    desk.append_buf(buf);
    desk.poll();
    assert!(desk.on_the_way.is_empty(), "a small unit waits for a flush");
    let large = desk.keep(4 * BLOCK_BYTES);
    desk.append_buf(large);
    desk.poll();
    assert!(matches!(desk.on_the_way[..], [Io::Write { .. }]));
    desk.append_buf(large);
    desk.poll();
    assert_eq!(desk.on_the_way.len(), 1, "the next one fills up meanwhile");
    desk.complete(true);
    assert_eq!(desk.on_the_way.len(), 1);
    let io_max = desk.driver.journal().io_max();
    assert!(desk.on_the_way.iter().all(|io| io.id().index() < io_max));
}

#[test]
fn after_a_device_error_nothing_is_appended_or_called_durable() {
    for failing in 0..2 {
        let mut desk = Desk::new(0);
        let buf = desk.keep(4096);
        desk.append_buf(buf);
        desk.flush();
        for _ in 0..failing {
            desk.complete(true);
        }
        assert!(!desk.driver.failed() && !desk.driver.is_full());
        desk.complete(false);
        assert!(desk.driver.failed() && desk.driver.is_full());
        let placed = desk.placed.len();
        desk.append_buf(buf);
        assert_eq!(desk.refused, Some(AppendError::Failed));
        desk.append_mark();
        assert_eq!(desk.refused, None, "said once");
        desk.flush();
        desk.complete_all();
        assert_eq!((desk.durable(), desk.placed.len()), (vec![], placed));
        assert!(desk.driver.is_idle(), "a stop has nothing to wait for");
        assert!(desk.driver.to_string().contains("failed"), "{}", desk.driver);
    }
}

#[test]
fn what_cannot_be_read_is_refused_for_good() {
    let mut desk = Desk::new(0);
    desk.append_buf(BufRef(99));
    assert_eq!(desk.refused, Some(AppendError::Unreadable));
    assert!(desk.driver.failed() && desk.driver.is_full());
    desk.append_mark();
    assert!(desk.placed.is_empty() && desk.driver.is_idle());
}

#[test]
fn reads_that_wait_come_out_in_order() {
    let mut desk = Desk::new(0);
    desk.driver.wait_to_read(JournalPos(5), 1);
    desk.driver.wait_to_read(JournalPos(3), 2);
    assert_eq!(desk.driver.waiting_reads(), 2);
    assert_eq!(desk.driver.next_waiting_read(), Some((JournalPos(5), 1)));
    assert_eq!(desk.driver.next_waiting_read(), Some((JournalPos(3), 2)));
    assert_eq!(desk.driver.next_waiting_read(), None);
}
