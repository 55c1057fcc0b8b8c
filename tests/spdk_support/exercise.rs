//! What hosts may send to a volume, each with its defined outcome.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use setline::spdk::NvmeStatus;
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::spdk::nvme::{Controller, Flags, Namespace, QueuePair};
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;

/// A host with one queue, and what it sent.
pub(crate) struct Host<'a> {
    qpair: QueuePair,
    queues: &'a LocalQueues,
    memory: IoBuf,
    transfer_bytes: usize,
    /// Shared with the hosts beside it: they have one thread's queues.
    done: Rc<RefCell<HashMap<u64, NvmeStatus>>>,
    next: Rc<Cell<u64>>,
}

impl<'a> Host<'a> {
    /// A host of `controller`, whose largest transfer is `transfer_bytes`.
    pub(crate) fn new(
        controller: &Controller,
        queues: &'a LocalQueues,
        transfer_bytes: usize,
    ) -> Self {
        let qpair = controller.queue_pair(64).unwrap();
        let memory = DmaBuf::new(4 * transfer_bytes, 4096).unwrap().leak();
        Self { qpair, queues, memory, transfer_bytes, done: Rc::default(), next: Rc::default() }
    }

    /// Another host, of another controller, on this thread.
    pub(crate) fn beside(&self, controller: &Controller) -> Self {
        let host = Self::new(controller, self.queues, self.transfer_bytes);
        Self { done: Rc::clone(&self.done), next: Rc::clone(&self.next), ..host }
    }

    fn ctx(&mut self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    pub(crate) fn wait(&mut self, ctx: u64) -> NvmeStatus {
        let start = Instant::now();
        loop {
            self.qpair.poll(0).unwrap();
            while let Some(done) = self.queues.pop_done() {
                let before = self.done.borrow_mut().insert(done.ctx, done.status);
                assert_eq!(before, None, "completed once");
            }
            if let Some(status) = self.done.borrow_mut().remove(&ctx) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "command {ctx} hangs");
        }
    }

    pub(crate) fn write(
        &mut self,
        ns: &Namespace,
        lba: u64,
        data: &[u8],
        flags: Flags,
    ) -> NvmeStatus {
        let ctx = self.begin_write(ns, lba, data, flags);
        self.wait(ctx)
    }

    /// Sends a write; [`Self::wait`] for it before the next one, which uses the same memory.
    pub(crate) fn begin_write(
        &mut self,
        ns: &Namespace,
        lba: u64,
        data: &[u8],
        flags: Flags,
    ) -> u64 {
        let buf = self.memory.slice(0, data.len());
        buf.copy_in(0, data);
        let ctx = self.ctx();
        self.qpair.write(ns, buf, lba, flags, ctx).unwrap();
        ctx
    }

    pub(crate) fn flush(&mut self, ns: &Namespace) -> NvmeStatus {
        let ctx = self.ctx();
        self.qpair.flush(ns, ctx).unwrap();
        self.wait(ctx)
    }

    pub(crate) fn read(&mut self, ns: &Namespace, lba: u64, bytes: usize) -> Vec<u8> {
        let buf = self.memory.slice(self.transfer_bytes, bytes);
        let ctx = self.ctx();
        self.qpair.read(ns, buf, lba, ctx).unwrap();
        assert_eq!(self.wait(ctx), NvmeStatus::SUCCESS);
        let mut data = vec![0; bytes];
        buf.copy_out(0, &mut data);
        data
    }

    pub(crate) fn zeroes(&mut self, ns: &Namespace, lba: u64, blocks: u32) {
        let ctx = self.ctx();
        self.qpair.write_zeroes(ns, lba, blocks, ctx).unwrap();
        assert_eq!(self.wait(ctx), NvmeStatus::SUCCESS);
    }

    /// Sends everything that a host may send to `ns`, and checks each outcome.
    pub(crate) fn exercise(mut self, ns: &Namespace) {
        self.reads_back_what_it_wrote(ns);
        self.zeroes_and_deallocates(ns);
        self.compares(ns);
        self.refusals(ns);
    }

    fn reads_back_what_it_wrote(&mut self, ns: &Namespace) {
        let block = ns.block_bytes as usize;
        for (seed, bytes) in [block, 3 * block, self.transfer_bytes].into_iter().enumerate() {
            let data = pattern(seed as u8 + 1, bytes);
            let flags = if seed == 1 { Flags::FUA } else { Flags::NONE };
            let lba = 8 + 1024 * seed as u64;
            assert_eq!(self.write(ns, lba, &data, flags), NvmeStatus::SUCCESS);
            assert!(self.read(ns, lba, bytes) == data, "{bytes} bytes at {lba}");
        }
        // Buffers of hosts need not be aligned to blocks, only to dwords.
        let odd = self.memory.slice(4 + 256, 2 * block);
        odd.copy_in(0, &pattern(77, 2 * block));
        let ctx = self.ctx();
        self.qpair.write(ns, odd, 40, Flags::NONE, ctx).unwrap();
        assert_eq!(self.wait(ctx), NvmeStatus::SUCCESS);
        assert!(self.read(ns, 40, 2 * block) == pattern(77, 2 * block), "unaligned buffer");
        assert_eq!(self.flush(ns), NvmeStatus::SUCCESS);
        // The last block is writable, the one after it is not.
        let data = pattern(9, block);
        assert_eq!(self.write(ns, ns.blocks - 1, &data, Flags::NONE), NvmeStatus::SUCCESS);
        let beyond = self.write(ns, ns.blocks, &data, Flags::NONE);
        assert_eq!(beyond, NvmeStatus::LBA_OUT_OF_RANGE);
    }

    fn zeroes_and_deallocates(&mut self, ns: &Namespace) {
        let block = ns.block_bytes as usize;
        let data = pattern(5, 16 * block);
        assert_eq!(self.write(ns, 4096, &data, Flags::NONE), NvmeStatus::SUCCESS);
        let ctx = self.ctx();
        self.qpair.write_zeroes(ns, 4098, 4, ctx).unwrap();
        assert_eq!(self.wait(ctx), NvmeStatus::SUCCESS);
        let mut expected = data;
        expected[2 * block..6 * block].fill(0);
        assert!(self.read(ns, 4096, 16 * block) == expected, "zeroes in the middle");
        let ctx = self.ctx();
        self.qpair.deallocate(ns, &[(4096, 1), (4104, 2), (4110, 1)], ctx).unwrap();
        assert_eq!(self.wait(ctx), NvmeStatus::SUCCESS);
        let after = self.read(ns, 4096, 16 * block);
        assert!(after[9 * block + block..14 * block] == expected[10 * block..14 * block]);
    }

    fn compares(&mut self, ns: &Namespace) {
        let block = ns.block_bytes as usize;
        let (old, new) = (pattern(1, block), pattern(2, block));
        assert_eq!(self.write(ns, 100, &old, Flags::NONE), NvmeStatus::SUCCESS);
        assert_eq!(self.compare(ns, &old), NvmeStatus::SUCCESS);
        assert_eq!(self.compare(ns, &new), NvmeStatus::COMPARE_FAILURE);
        if ns.path_state() == AnaState::NonOptimized {
            // Locks of ranges do not reach from mover to mover.
            let (_, second) = self.compare_and_write(ns, &old, &new);
            assert_eq!(second, NvmeStatus::PATH_INACCESSIBLE);
            assert!(
                self.read(ns, 100, block) == old,
                "a refused compare-and-write changes nothing"
            );
            return;
        }
        // Compare-and-write: only where the comparison holds.
        let (first, second) = self.compare_and_write(ns, &new, &new);
        assert_eq!(first, NvmeStatus::COMPARE_FAILURE);
        assert!(!second.is_ok());
        assert!(self.read(ns, 100, block) == old);
        let (first, second) = self.compare_and_write(ns, &old, &new);
        assert_eq!((first, second), (NvmeStatus::SUCCESS, NvmeStatus::SUCCESS));
        assert!(self.read(ns, 100, block) == new);
    }

    fn compare(&mut self, ns: &Namespace, with: &[u8]) -> NvmeStatus {
        let buf = self.memory.slice(0, with.len());
        buf.copy_in(0, with);
        let ctx = self.ctx();
        self.qpair.compare(ns, buf, 100, Flags::NONE, ctx).unwrap();
        self.wait(ctx)
    }

    fn compare_and_write(
        &mut self,
        ns: &Namespace,
        expected: &[u8],
        data: &[u8],
    ) -> (NvmeStatus, NvmeStatus) {
        let (a, b) = (self.memory.slice(0, expected.len()), self.memory.slice(8192, data.len()));
        a.copy_in(0, expected);
        b.copy_in(0, data);
        let (first, second) = (self.ctx(), self.ctx());
        self.qpair.compare(ns, a, 100, Flags::FUSE_FIRST, first).unwrap();
        self.qpair.write(ns, b, 100, Flags::FUSE_SECOND, second).unwrap();
        (self.wait(first), self.wait(second))
    }

    fn refusals(&mut self, ns: &Namespace) {
        // Opcode 0x7f is vendor specific and unknown here; 4 is write uncorrectable.
        for opcode in [0x7f, 0x04] {
            let ctx = self.ctx();
            self.qpair.raw_command(opcode, ns.nsid, [0; 6], ctx).unwrap();
            assert_eq!(self.wait(ctx), NvmeStatus::INVALID_OPCODE, "opcode {opcode:#x}");
        }
        let ctx = self.ctx();
        self.qpair.raw_command(0, 77, [0; 6], ctx).unwrap();
        assert!(!self.wait(ctx).is_ok(), "flush of a namespace that is not there");
    }
}

pub(crate) fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| seed.wrapping_mul(31).wrapping_add((i * 7 + i / 256) as u8)).collect()
}
