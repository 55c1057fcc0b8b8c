//! SPDK and DPDK in one process, end to end: environment, block devices, the
//! tap, the NVMe-oF target, and SPDK's own programs as hosts. Needs hugepages
//! (`scripts/setup`). One test: EAL starts once per process.
#![cfg(feature = "datapath")]

mod spdk_support;

use std::net::SocketAddr;
use std::time::Duration;

use setline::spdk::address::Address;
use setline::spdk::base::Base;
use setline::spdk::env::{Env, EnvConfig, tsc_hz, tsc_now};
use setline::spdk::nvmf::{
    AnaState, NamespaceConfig, SubsystemConfig, Target, TransportConfig, TransportKind,
};
use setline::spdk::subsystem::{Config, Subsystems};
use setline::spdk::sys;
use setline::spdk::tap::{TapConfig, TapVolume};
use setline::spdk::thread::Thread;
use spdk_support::{Poller, TRANSFER_BYTES, run, spdk_program};

const NQN: &str = "nqn.2026-11.io.example:bringup";
const BLOCKS: u64 = (64 << 20) / 4096;

#[test]
fn independent_hosts_reach_tap_volumes_over_vfio_user_and_tcp() {
    assert_eq!((sys::SPDK_VERSION_MAJOR, sys::SPDK_VERSION_MINOR), (26, 1));
    tracing_subscriber::fmt().with_test_writer().init();
    let dir = tempfile::tempdir().unwrap();
    let env = Env::init(&EnvConfig {
        name: "bringup".into(),
        hugepage_mib: 512,
        no_pci: true,
        ..EnvConfig::default()
    })
    .expect("hugepages are reserved (scripts/setup)");
    assert!(tsc_hz() > 1_000_000);

    let app = Thread::create("app").unwrap();
    let mut poll_app = || {
        app.poll(tsc_now());
    };
    let pump = &mut poll_app;
    let subsystems = Subsystems::start(&Config::default(), pump).unwrap();
    let file = dir.path().join("base1");
    std::fs::File::create(&file).unwrap().set_len(BLOCKS * 4096).unwrap();
    let memory = Base::Malloc { blocks: BLOCKS, block_bytes: 4096 };
    let aio = Base::Aio { path: &file, block_bytes: 4096 };
    subsystems.create_base("base0", &memory, pump).unwrap();
    subsystems.create_base("base1", &aio, pump).unwrap();
    assert!(subsystems.create_base("base0", &memory, pump).is_err(), "the name is taken");

    let volumes: Vec<TapVolume> = (0..2_u32)
        .map(|index| {
            TapVolume::create(&TapConfig {
                name: format!("vol{index}"),
                index,
                uuid: [index as u8 + 1; 16],
                block_bytes: 4096,
                blocks: BLOCKS,
                write_cache: true,
                max_transfer_blocks: (TRANSFER_BYTES / 4096) as u32,
                max_zeroes_blocks: 1 << 16,
            })
            .unwrap()
        })
        .collect();

    let target = Target::create("bringup", 4).unwrap();
    let transport = TransportConfig {
        max_io_bytes: TRANSFER_BYTES as u32,
        shared_buffers: 128,
        buffer_cache: 16,
        ..TransportConfig::default()
    };
    target.add_transport(TransportKind::Tcp, &transport, pump).unwrap();
    let vfio_user = TransportConfig { max_io_bytes: TRANSFER_BYTES as u32, ..Default::default() };
    target.add_transport(TransportKind::VfioUser, &vfio_user, pump).unwrap();
    let poller = Poller::start(target.groups(), &["base0", "base1"]);

    let subsystem = target
        .subsystem(&SubsystemConfig {
            nqn: NQN.into(),
            serial: "SLBRINGUP".into(),
            model: "setline".into(),
            max_namespaces: 8,
            cntlids: 1..=0x0fff,
            ana_reporting: true,
        })
        .unwrap();
    subsystem.allow_any_host(true).unwrap();
    for (index, volume) in volumes.iter().enumerate() {
        let nsid = index as u32 + 1;
        subsystem
            .add_namespace(&NamespaceConfig {
                bdev: volume.name().into(),
                nsid,
                nguid: [nsid as u8; 16],
                uuid: [nsid as u8; 16],
                ana_group: nsid,
            })
            .unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tcp = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
    let vfio = Address::VfioUser(dir.path().join("vfio"));
    for address in [&tcp, &vfio] {
        target.listen(address).unwrap();
        subsystem.add_listener(address, AnaState::Optimized, pump).unwrap();
    }
    subsystem.start(pump).unwrap();
    subsystem.set_ana_state(&tcp, 1, AnaState::NonOptimized, pump).unwrap();

    for address in [&vfio, &tcp] {
        let id = address.transport_id(Some(NQN));
        let mut identify = spdk_program("spdk_nvme_identify");
        identify.args(["-r", &id, "-g", "-s", "64"]);
        let output = run(identify, pump);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "identify over {id}: {output:?}");
        assert!(text.contains("SLBRINGUP"), "serial number in {text}");
        assert!(text.contains("01010101-0101-0101-0101-010101010101"), "UUID in {text}");

        let mut perf = spdk_program("spdk_nvme_perf");
        perf.args(["-r", &id, "-q", "16", "-o", "4096", "-w", "randrw", "-M", "50", "-t", "1"]);
        perf.args(["-c", "0x2", "-g", "-s", "128"]);
        let output = run(perf, pump);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "perf over {id}: {output:?}");
        let total = text.lines().find(|l| l.trim_start().starts_with("Total")).unwrap_or_default();
        println!("{id}: {total}");
        let iops: f64 = total
            .split(':')
            .next_back()
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0.0);
        assert!(iops > 100.0, "I/O went through: {text}");
    }

    let start = std::time::Instant::now();
    subsystem.stop(pump).unwrap();
    subsystem.destroy(pump).unwrap();
    for address in [&tcp, &vfio] {
        target.stop_listen(address).unwrap();
    }
    poller.stop(pump);
    target.destroy(pump).unwrap();
    for volume in volumes {
        volume.remove(pump).unwrap();
    }
    subsystems.delete_base("base0", &memory, pump).unwrap();
    subsystems.delete_base("base1", &aio, pump).unwrap();
    subsystems.stop(pump).unwrap();
    app.exit(&mut || {}).unwrap();
    drop(env);
    assert!(start.elapsed() < Duration::from_secs(4), "nothing was forced to exit");
}
