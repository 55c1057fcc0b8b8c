//! The poller of a test target: passes host commands to the bases, with the one
//! copy of write data that a mover makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use setline::spdk::bdev::{Bdev, Channel};
use setline::spdk::env::{DmaBuf, EalThread, IoBuf, tsc_now};
use setline::spdk::nvmf::GroupFactory;
use setline::spdk::queue::LocalQueues;
use setline::spdk::tap::{HostIo, IoKind};
use setline::spdk::thread::Thread;
use setline::spdk::{NvmeStatus, Submit};

use super::TRANSFER_BYTES;

/// A poller on a thread of its own.
pub(super) struct Poller {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Poller {
    /// Starts it with one base per volume index; returns when it polls.
    pub(super) fn start(groups: GroupFactory, bases: &'static [&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _eal = EalThread::register().unwrap();
            let thread = Thread::create("poller").unwrap();
            let queues = LocalQueues::install(8191).unwrap();
            let group = groups.create().unwrap();
            let mut pass =
                Pass::new(bases.iter().map(|b| Bdev::open(b, true).unwrap().channel().unwrap()));
            ready.send(()).unwrap();
            let mut idle = 0_u32;
            while !flag.load(Ordering::Relaxed) {
                let busy = thread.poll(tsc_now()) | pass.turn(&queues);
                idle = if busy { 0 } else { idle + 1 };
                if idle > 200 {
                    std::thread::yield_now();
                }
            }
            let mut pump = || {
                thread.poll(tsc_now());
                pass.turn(&queues);
            };
            group.destroy(&mut pump).unwrap();
            drop(pass);
            drop(queues);
            thread.exit(&mut || {}).unwrap();
        });
        is_ready.recv().unwrap();
        Self { stop, thread }
    }

    /// Ends it; `pump` keeps the app thread going meanwhile.
    pub(super) fn stop(self, pump: &mut dyn FnMut()) {
        self.stop.store(true, Ordering::SeqCst);
        while !self.thread.is_finished() {
            pump();
        }
        self.thread.join().unwrap();
    }
}

/// Passes commands through, with the one copy of writes that a mover makes.
struct Pass {
    bases: Vec<Channel>,
    slots: Vec<Option<HostIo>>,
    free: Vec<usize>,
    memory: IoBuf,
}

const SLOTS: usize = 256;

impl Pass {
    fn new(bases: impl Iterator<Item = Channel>) -> Self {
        Self {
            bases: bases.collect(),
            slots: (0..SLOTS).map(|_| None).collect(),
            free: (0..SLOTS).collect(),
            memory: DmaBuf::new(SLOTS * TRANSFER_BYTES, 4096).unwrap().leak(),
        }
    }

    fn turn(&mut self, queues: &LocalQueues) -> bool {
        let mut busy = false;
        while let Some(arrival) = queues.pop_arrival() {
            busy = true;
            self.submit(arrival.volume as usize, arrival.io);
        }
        while let Some(done) = queues.pop_done() {
            busy = true;
            let slot = done.ctx as usize;
            self.slots[slot].take().expect("one completion per slot").complete(done.status);
            self.free.push(slot);
        }
        busy
    }

    fn submit(&mut self, volume: usize, io: HostIo) {
        let base = &self.bases[volume];
        let Some(slot) = self.free.pop() else { return io.retry_later() };
        let (offset, blocks, ctx) = (io.offset_blocks(), io.blocks(), slot as u64);
        let submitted = match io.kind() {
            IoKind::Write => {
                let bytes = blocks as usize * base.geometry().block_bytes as usize;
                let copy = self.memory.slice(slot * TRANSFER_BYTES, bytes);
                assert_eq!(io.gather(copy), bytes);
                base.write(copy, offset, ctx)
            }
            IoKind::WriteZeroes => base.write_zeroes(offset, blocks, ctx),
            IoKind::Unmap if base.geometry().unmap => base.unmap(offset, blocks, ctx),
            IoKind::Unmap => base.write_zeroes(offset, blocks, ctx),
            IoKind::Read => base.read_foreign(io.foreign_iovs(), offset, blocks, ctx),
            IoKind::Compare => base.compare_foreign(io.foreign_iovs(), offset, blocks, ctx),
            IoKind::Flush => base.flush(ctx),
        };
        match submitted {
            Ok(()) => self.slots[slot] = Some(io),
            Err(why) => {
                self.free.push(slot);
                refuse(io, why);
            }
        }
    }
}

fn refuse(io: HostIo, why: Submit) {
    match why {
        Submit::Busy => io.retry_later(),
        Submit::Refused(_) => io.complete(NvmeStatus::INTERNAL_DEVICE_ERROR),
    }
}
