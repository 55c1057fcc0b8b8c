//! The responsible mover is killed while a host writes by another one: everything the host sent is
//! answered, nothing acknowledged is lost. One test: EAL starts once per process.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

#[path = "lab_support/begun.rs"]
mod begun;
#[path = "spdk_support/devices.rs"]
mod devices;

use std::time::{Duration, Instant};

use begun::{Begun, address};
use devices::env;
use setline::spdk::NvmeStatus;
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::spdk::nvme::{Controller, Flags, Namespace, QueuePair};
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;

/// Ends a wait for something that takes a few seconds.
const LATE: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
/// Writes under way, each to a block of its own; the last one is begun after the loss.
const WRITERS: usize = 16;
const LAST: usize = WRITERS - 1;
/// Context of reads.
const READ: u64 = 1000;
/// Asymmetric Access Transition.
const TRANSITION: NvmeStatus = NvmeStatus { sct: 3, sc: 3 };
/// Asymmetric Access Inaccessible.
const INACCESSIBLE: NvmeStatus = NvmeStatus { sct: 3, sc: 2 };

/// A block and its only writer: the number that it wrote last, and the last that was acknowledged.
#[derive(Clone, Copy, Default)]
struct Block {
    sent: u64,
    acknowledged: u64,
    under_way: bool,
}

/// A host that reaches a volume by one mover.
struct Host<'a> {
    queue: QueuePair,
    namespace: Namespace,
    queues: &'a LocalQueues,
    memory: IoBuf,
    blocks: [Block; WRITERS],
    refused: u64,
    /// How the last read ended.
    read: Option<NvmeStatus>,
}

impl Host<'_> {
    fn write(&mut self, writer: usize) {
        let block = &mut self.blocks[writer];
        block.sent += 1;
        block.under_way = true;
        let memory = self.memory.slice(writer * BLOCK, BLOCK);
        memory.copy_in(0, &block.sent.to_le_bytes());
        self.queue
            .write(&self.namespace, memory, writer as u64, Flags::NONE, writer as u64)
            .unwrap();
    }

    fn write_where_idle(&mut self) {
        for writer in 0..LAST {
            if !self.blocks[writer].under_way {
                self.write(writer);
            }
        }
    }

    fn poll(&mut self) {
        self.queue.poll(0).unwrap();
        while let Some(done) = self.queues.pop_done() {
            if done.ctx == READ {
                self.read = Some(done.status);
                continue;
            }
            let block = &mut self.blocks[done.ctx as usize];
            assert!(block.under_way, "a command ends once");
            block.under_way = false;
            match done.status {
                NvmeStatus::SUCCESS => block.acknowledged = block.sent,
                TRANSITION | INACCESSIBLE => self.refused += 1,
                other => panic!("{other}"),
            }
        }
    }

    fn until(&mut self, what: &str, mut reached: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !reached(self) {
            self.poll();
            assert!(start.elapsed() < LATE, "{what}: never");
        }
    }

    /// Waits until the host has heard that its path is in `state`.
    fn hears(&mut self, controller: &Controller, state: AnaState) {
        self.until("a path's state", |host| {
            controller.poll_admin().unwrap();
            host.namespace.path_state() == state
        });
    }

    fn begin_read(&mut self, writer: usize) {
        self.read = None;
        let memory = self.memory.slice((WRITERS + writer) * BLOCK, BLOCK);
        self.queue.read(&self.namespace, memory, writer as u64, READ).unwrap();
    }

    fn read(&mut self, writer: usize) -> Result<u64, NvmeStatus> {
        self.begin_read(writer);
        self.until("a read", |host| host.read.is_some());
        match self.read {
            Some(NvmeStatus::SUCCESS) => {
                let mut number = [0; 8];
                self.memory.slice((WRITERS + writer) * BLOCK, BLOCK).copy_out(0, &mut number);
                Ok(u64::from_le_bytes(number))
            }
            status => Err(status.unwrap()),
        }
    }
}

#[test]
fn what_a_host_sent_by_another_mover_is_answered_when_the_responsible_one_is_killed() {
    let mut lab = Begun::new("--primary 2 --secondary 1 --volumes 2");
    let (p1, p2) = (lab.config("p1"), lab.config("p2"));
    assert_eq!(p1.groups[0].volumes[0].mover, "p1");

    let env = env("loss", 64);
    let queues = LocalQueues::install(1023).unwrap();
    let controller = Controller::connect(&address(&p2), Some(&p2.groups[0].nqn), None).unwrap();
    let namespace = controller.namespace(1).unwrap();
    assert_eq!(namespace.path_state(), AnaState::NonOptimized);
    let mut host = Host {
        queue: controller.queue_pair(64).unwrap(),
        namespace,
        queues: &queues,
        memory: DmaBuf::new(2 * WRITERS * BLOCK, BLOCK).unwrap().leak(),
        blocks: [Block::default(); WRITERS],
        refused: 0,
        read: None,
    };

    host.until("500 writes", |host| {
        host.write_where_idle();
        host.blocks.iter().map(|block| block.acknowledged).sum::<u64>() >= 500
    });
    host.write_where_idle();
    host.begin_read(0);
    lab.cluster.kill("p1");
    host.until("the end of a read", |host| host.read.is_some());
    // The mover may have answered that one before it went.
    let start = Instant::now();
    while host.read(0).is_ok() {
        assert!(start.elapsed() < LATE, "a read succeeds whose base nobody reads");
    }
    host.hears(&controller, AnaState::Inaccessible);
    assert_eq!(host.read(0), Err(INACCESSIBLE));
    host.write(LAST);
    host.until("the end of a new write", |host| !host.blocks[LAST].under_way);
    assert_eq!(host.blocks[LAST].acknowledged, 0);

    lab.start_again("p1");
    let idle = |host: &mut Host<'_>| host.blocks.iter().all(|block| !block.under_way);
    host.until("the end of all writes", idle);
    host.hears(&controller, AnaState::NonOptimized);
    for writer in 0..WRITERS {
        let Block { sent, acknowledged, .. } = host.blocks[writer];
        let found = host.read(writer).unwrap();
        assert!((acknowledged..=sent).contains(&found), "block {writer}: {found}");
    }
    assert_eq!(host.read(LAST), Ok(0), "what was refused before it left took no effect");
    let refused = host.refused;
    host.write_where_idle();
    host.until("the end of all writes", idle);
    assert_eq!(host.refused, refused, "hosts are served again");
    for writer in 0..LAST {
        assert_eq!(host.read(writer), Ok(host.blocks[writer].sent));
    }
    drop(host);
    drop(controller);
    drop(queues);
    drop(env);
}
