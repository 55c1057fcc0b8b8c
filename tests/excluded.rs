//! A whole mover that is shut out of a base while hosts write: it voids nothing, says so, sends the
//! hosts to another path, and comes back only by being started anew (G13, invariant 4).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

#[path = "lab_support/begun.rs"]
mod begun;
#[path = "spdk_support/devices.rs"]
mod devices;

use std::time::{Duration, Instant};

use begun::{Begun, address};
use devices::Devices;
use setline::config::{Disk, Mover};
use setline::control::model::{Fencing, FencingState};
use setline::lab::cluster::Cluster;
use setline::proto::types::{MoverId, VolumeId};
use setline::runtime::fence::{Fence, Victims, key_of};
use setline::spdk::NvmeStatus;
use setline::spdk::address::Address;
use setline::spdk::base::HostIdentity;
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::spdk::nvme::{Controller, Flags, Namespace, QueuePair};
use setline::spdk::nvmf::AnaState;
use setline::spdk::queue::LocalQueues;

/// Ends a wait for something that takes a second or two.
const LATE: Duration = Duration::from_secs(60);
/// A mover that the lab does not have: the successor.
const SUCCESSOR: MoverId = MoverId(9);
const PATH_INACCESSIBLE: NvmeStatus = NvmeStatus { sct: 3, sc: 2 };

/// A volume as a host sees it through one mover.
struct Host {
    // Dropped in this order.
    queue: QueuePair,
    namespace: Namespace,
    controller: Controller,
}

impl Host {
    fn connect(mover: &Mover, nsid: u32) -> Self {
        let group = &mover.groups[0];
        let controller = Controller::connect(&address(mover), Some(&group.nqn), None).unwrap();
        let namespace = controller.namespace(nsid).unwrap();
        Self { queue: controller.queue_pair(8).unwrap(), namespace, controller }
    }

    /// Waits until the host has heard that its path is in `state`.
    fn hears(&self, state: AnaState) {
        let start = Instant::now();
        while self.namespace.path_state() != state {
            self.controller.poll_admin().unwrap();
            assert!(start.elapsed() < LATE, "the path is {:?}", self.namespace.path_state());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn done(&self, queues: &LocalQueues) -> NvmeStatus {
        let start = Instant::now();
        loop {
            self.queue.poll(0).unwrap();
            if let Some(done) = queues.pop_done() {
                return done.status;
            }
            assert!(start.elapsed() < LATE, "a command is never answered");
        }
    }

    fn write(&self, queues: &LocalQueues, data: IoBuf) -> NvmeStatus {
        self.queue.write(&self.namespace, data, 8, Flags::NONE, 1).unwrap();
        self.done(queues)
    }

    fn flush(&self, queues: &LocalQueues) -> NvmeStatus {
        self.queue.flush(&self.namespace, 1).unwrap();
        self.done(queues)
    }
}

fn fencing(cluster: &Cluster, mover: &str, id: u32) -> Fencing {
    let volumes = cluster.client(mover).unwrap().volumes().unwrap();
    volumes.into_iter().find(|volume| volume.id == id).unwrap().fencing.unwrap()
}

#[test]
fn a_mover_that_was_shut_out_says_so_and_sends_hosts_elsewhere() {
    let mut lab = Begun::new("--base array --primary 2 --secondary 1 --volumes 2");
    let (p1, p2) = (lab.config("p1"), lab.config("p2"));
    let volumes = &p1.groups[0].volumes;
    assert_eq!((volumes[0].mover.as_str(), volumes[1].mover.as_str()), ("p1", "p2"));
    let Disk::NvmeTcp { address, port, nqn, nsid } = &volumes[0].base else { panic!("remote") };

    let devices = Devices::start("successor");
    let (queues, subsystems) = (&devices.queues, &devices.subsystems);
    let pump = &mut || devices.poll();
    let data = DmaBuf::new(4096, 4096).unwrap().leak();
    let (at_p1, at_p2) = (Host::connect(&p1, 1), Host::connect(&p2, 2));
    assert_eq!(at_p1.write(queues, data), NvmeStatus::SUCCESS);
    assert_eq!(at_p2.write(queues, data), NvmeStatus::SUCCESS);
    assert_eq!(at_p1.flush(queues), NvmeStatus::SUCCESS);
    let before = fencing(&lab.cluster, "p1", 1);
    assert_eq!(before.state, FencingState::Fenced, "{}", before.reason);
    assert_eq!(before.key, Some(key_of(MoverId(1), 1).to_string()));
    assert_eq!(fencing(&lab.cluster, "p2", 2).state, FencingState::Fenced);
    at_p1.hears(AnaState::Optimized);

    // The successor takes over at the base.
    let host = HostIdentity { nqn: "nqn.2026-11.io.setline:mover:p9".into(), id: [9; 16] };
    let array = Address::Tcp((*address, *port).into());
    let bdevs = subsystems.attach_nvme("array", &array, Some(nqn), Some(&host), pump).unwrap();
    let bdev = bdevs.iter().find(|name| name.ends_with(&format!("n{nsid}"))).unwrap();
    let mut fence = Fence::new(SUCCESSOR, 1, host.id);
    fence.open(VolumeId(1), bdev, *nsid, pump).unwrap();
    fence.join(&[VolumeId(1)], pump).unwrap();
    assert_eq!(at_p1.write(queues, data), NvmeStatus::SUCCESS, "joining shuts nobody out");
    let removed = fence.preempt(VolumeId(1), Victims::Mover(MoverId(1)), pump).unwrap();
    assert_eq!(removed, [key_of(MoverId(1), 1)]);

    // What p1 has in its hand is refused by the base; to the host that is this path's end.
    assert_eq!(at_p1.write(queues, data), PATH_INACCESSIBLE);
    assert_eq!(at_p1.write(queues, data), PATH_INACCESSIBLE, "and so is everything after it");
    assert_eq!(at_p1.flush(queues), PATH_INACCESSIBLE);
    assert_eq!(at_p2.write(queues, data), NvmeStatus::SUCCESS, "another volume is untouched");
    let start = Instant::now();
    while fencing(&lab.cluster, "p1", 1).state != FencingState::Excluded {
        assert!(start.elapsed() < LATE, "p1 does not say that it was excluded");
        std::thread::sleep(Duration::from_millis(20));
    }
    at_p1.hears(AnaState::Inaccessible);
    at_p2.hears(AnaState::Optimized);
    let status = lab.cluster.status("p1").unwrap();
    let degraded = status.degraded.join("; ");
    assert!(degraded.contains("another mover excluded this one"), "{degraded}");
    assert!(status.groups[0].needs_resync.is_none(), "nothing is void: it is no medium's error");

    // Its next life may come in again.
    drop((at_p1, at_p2));
    lab.cluster.kill("p1");
    lab.start_again("p1");
    let now = fencing(&lab.cluster, "p1", 1);
    assert_eq!(now.state, FencingState::Fenced);
    assert_eq!(now.key, Some(key_of(MoverId(1), 2).to_string()));
    assert!(now.reason.contains("also registered: 0x534c0009"), "{}", now.reason);

    fence.leave(pump);
    devices.end();
}
