//! One logical writer: its commands in flight and the next one to come.

use super::super::known::Known;
use super::super::target::{Op, Request, Status};
use super::super::workload::{Extent, Workload};

/// State of one logical writer.
#[derive(Debug)]
pub(super) struct Lane {
    writer: u16,
    depth: u16,
    /// Number of the next command.
    pub(super) next: u64,
    /// What it will cover.
    next_extent: Extent,
    /// Commands whose success was not received yet, in the order of issue.
    pub(super) writes: Vec<Write>,
    free: Vec<u32>,
    pub(super) read: Option<Read>,
    /// The command that was given up, and why: nothing more is issued.
    pub(super) halted: Option<(u64, Status)>,
}

/// A write in flight, or waiting to be submitted (again).
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) slot: u32,
    pub(super) sequence: u64,
    pub(super) extent: Extent,
    pub(super) issue_ns: u64,
    /// Errors it met.
    pub(super) tries: u32,
    /// Not submitted; to be so at this time.
    pub(super) submit_at_ns: Option<u64>,
}

impl Write {
    pub(super) fn request(&self) -> Request {
        Request {
            op: Op::Write,
            volume: self.extent.volume,
            first: self.extent.first,
            blocks: self.extent.blocks.into(),
        }
    }
}

/// A read in flight, of one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) volume: u16,
    pub(super) address: u64,
    /// The version it must return at least.
    pub(super) visible: u32,
}

impl Lane {
    pub(super) fn new(writer: u16, depth: u16, workload: &Workload) -> Self {
        let first_slot = u32::from(writer) * (u32::from(depth) + 1);
        Self {
            writer,
            depth,
            next: 1,
            next_extent: workload.extent(writer, 1),
            writes: Vec::with_capacity(depth.into()),
            free: (first_slot..first_slot + u32::from(depth)).rev().collect(),
            read: None,
            halted: None,
        }
    }

    /// The slot for reads, behind those for writes.
    pub(super) fn read_slot(&self) -> u32 {
        u32::from(self.writer) * (u32::from(self.depth) + 1) + u32::from(self.depth)
    }

    /// Whether the next command may be issued: there is a slot, the window of what is
    /// `acked` reaches it, and nothing in flight overlaps it (else the order of the
    /// block's versions would be the medium's choice).
    pub(super) fn may_issue(&self, acked: Known) -> bool {
        self.halted.is_none()
            && !self.free.is_empty()
            && acked.reaches(self.next)
            && self.writes.iter().all(|write| !write.extent.overlaps(&self.next_extent))
    }

    /// Takes number, extent and slot of the next command.
    pub(super) fn begin_write(&mut self, workload: &Workload) -> (u64, Extent, u32) {
        let slot = self.free.pop().expect("asked may_issue before");
        let begun = (self.next, self.next_extent, slot);
        self.next += 1;
        self.next_extent = workload.extent(self.writer, self.next);
        begun
    }

    /// Takes a command out of flight and frees its slot.
    pub(super) fn finish_write(&mut self, index: usize) -> Write {
        let write = self.writes.remove(index);
        self.free.push(write.slot);
        write
    }
}
