//! A host with native multipath (SPDK's) over all movers: it takes the path that ANA calls the best, so
//! that nothing takes a detour, and another one when that mover is gone. One test: EAL starts once per
//! process.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

#[path = "lab_support/begun.rs"]
mod begun;
#[path = "spdk_support/devices.rs"]
mod devices;

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use begun::Begun;
use devices::Devices;
use serde_json::json;
use setline::config::{Listener, Mover};
use setline::lab::cluster::Cluster;
use setline::spdk::NvmeStatus;
use setline::spdk::bdev::{Bdev, Channel};
use setline::spdk::env::{DmaBuf, IoBuf, tsc_now};
use setline::spdk::queue::LocalQueues;
use setline::spdk::thread::Thread;

/// Ends a wait for something that takes a second or two.
const LATE: Duration = Duration::from_secs(60);
const BYTES: usize = 16 << 10;

/// Parameters of `bdev_nvme_attach_controller` that make `mover` a path of the controller "lab".
fn path(mover: &Mover) -> String {
    let group = &mover.groups[0];
    let address = match &mover.listeners[0] {
        Listener::VfioUser { directory } => {
            let directory = group.vfio_user_directory(directory);
            json!({ "trtype": "VFIOUSER", "traddr": directory })
        }
        Listener::Tcp { address, port } => json!({
            "trtype": "TCP", "adrfam": "IPv4",
            "traddr": address.to_string(), "trsvcid": port.to_string(),
        }),
    };
    let mut parameters = address;
    let own = json!({
        "name": "lab", "subnqn": group.nqn, "multipath": "multipath",
        // A path that is lost is connected again until it is back.
        "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
    });
    parameters.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    parameters.to_string()
}

/// A volume, through all its paths.
struct Volume<'a> {
    channel: Channel,
    queues: &'a LocalQueues,
    app: &'a Thread,
    memory: IoBuf,
    /// Names its commands.
    ctx: u64,
    /// What ended while another command was waited for; shared.
    ended: &'a RefCell<HashMap<u64, NvmeStatus>>,
}

impl Volume<'_> {
    fn done(&self) -> NvmeStatus {
        let start = Instant::now();
        loop {
            self.app.poll(tsc_now());
            while let Some(done) = self.queues.pop_done() {
                self.ended.borrow_mut().insert(done.ctx, done.status);
            }
            if let Some(status) = self.ended.borrow_mut().remove(&self.ctx) {
                return status;
            }
            assert!(start.elapsed() < LATE, "a command is never answered");
        }
    }

    fn write(&self, block: u64, data: &[u8]) -> NvmeStatus {
        self.memory.copy_in(0, data);
        self.channel.write(self.memory.slice(0, data.len()), block, self.ctx).unwrap();
        self.done()
    }

    fn begin_read(&self, block: u64) {
        self.channel.read(self.memory.slice(0, BYTES), block, self.ctx).unwrap();
    }

    fn end_read(&self) -> Vec<u8> {
        assert_eq!(self.done(), NvmeStatus::SUCCESS);
        let mut data = vec![0; BYTES];
        self.memory.copy_out(0, &mut data);
        data
    }

    fn read(&self, block: u64) -> Vec<u8> {
        self.begin_read(block);
        self.end_read()
    }
}

/// A counter of a mover, summed over its pollers.
fn counter(cluster: &Cluster, mover: &str, name: &str) -> f64 {
    let metrics = cluster.client(mover).unwrap().metrics().unwrap();
    metrics.iter().filter(|metric| metric.name.ends_with(name)).map(|metric| metric.value).sum()
}

#[test]
fn a_multipath_host_follows_ana_and_goes_elsewhere_when_a_mover_is_gone() {
    let mut lab = Begun::new("--primary 2 --secondary 1 --volumes 2 --transport tcp");
    let movers = ["p1", "p2"].map(|name| lab.config(name));
    let volumes = &movers[0].groups[0].volumes;
    assert_eq!((volumes[0].mover.as_str(), volumes[1].mover.as_str()), ("p1", "p2"));

    let devices = Devices::start("multipath");
    let (app, queues, subsystems) = (&devices.app, &devices.queues, &devices.subsystems);
    let pump = &mut || devices.poll();
    for mover in &movers {
        subsystems.configure("bdev_nvme_attach_controller", &path(mover), pump).unwrap();
    }
    let bdevs: Vec<Bdev> =
        (1..=2).map(|nsid| Bdev::open(&format!("labn{nsid}"), true).unwrap()).collect();
    let ended = RefCell::default();
    let volumes: Vec<Volume<'_>> = bdevs
        .iter()
        .zip(0..)
        .map(|(bdev, ctx)| Volume {
            channel: bdev.channel().unwrap(),
            queues,
            app,
            memory: DmaBuf::new(BYTES, 4096).unwrap().leak(),
            ctx,
            ended: &ended,
        })
        .collect();

    let data =
        |volume: usize, round: u64| vec![(volume as u64 * 100 + round % 90 + 1) as u8; BYTES];
    for round in 0..200 {
        for (index, volume) in volumes.iter().enumerate() {
            let block = round * 3 % 64;
            assert_eq!(volume.write(block, &data(index, round)), NvmeStatus::SUCCESS);
            assert!(volume.read(block) == data(index, round));
        }
    }
    for mover in ["p1", "p2"] {
        // What a mover says of itself is of some moments ago.
        let deadline = Instant::now() + Duration::from_secs(10);
        while counter(&lab.cluster, mover, "volume_writes_total") < 200.0 {
            assert!(Instant::now() < deadline, "{mover} took its share");
            std::thread::sleep(Duration::from_millis(50));
        }
        for detour in ["updates_forwarded_total", "asks_total"] {
            assert_eq!(counter(&lab.cluster, mover, detour), 0.0, "{mover} {detour}");
        }
    }

    // Without its best path the host takes the other one, which leads to the mover that is down: the
    // host keeps the command, as hosts with several paths do, until one of them works.
    let before = volumes[0].read(0);
    lab.cluster.kill("p1");
    volumes[0].begin_read(0);
    for _ in 0..10 {
        volumes[1].read(0);
    }
    lab.start_again("p1");
    assert!(volumes[0].end_read() == before);
    assert_eq!(volumes[0].write(0, &data(0, 7)), NvmeStatus::SUCCESS);
    assert!(volumes[0].read(0) == data(0, 7));

    drop(volumes);
    drop(bdevs);
    devices.end();
}
