//! SPDK and DPDK in one process, end to end: environment, block devices, the
//! tap, the NVMe-oF target, and SPDK's own programs as hosts. Needs hugepages
//! (`scripts/setup`). One test: EAL starts once per process.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
#![cfg(feature = "datapath")]

mod spdk_support;

use std::time::{Duration, Instant};

use setline::spdk::base::Base;
use setline::spdk::env::tsc_hz;
use setline::spdk::nvmf::AnaState;
use setline::spdk::sys;
use spdk_support::{NQN, Site, spdk_program};

#[test]
fn independent_hosts_reach_tap_volumes_over_vfio_user_and_tcp() {
    assert_eq!((sys::SPDK_VERSION_MAJOR, sys::SPDK_VERSION_MINOR), (26, 1));
    tracing_subscriber::fmt().with_test_writer().init();
    let dir = tempfile::tempdir().unwrap();
    let site = Site::start(dir.path());
    assert!(tsc_hz() > 1_000_000);
    let taken = Base::Malloc { blocks: 8, block_bytes: 4096 };
    assert!(site.subsystems.create_base("base0", &taken, &mut || site.poll()).is_err());
    let started = Instant::now();
    site.subsystem
        .change_ana_states(
            std::slice::from_ref(&site.tcp),
            &[(1, AnaState::NonOptimized)],
            &mut || site.poll(),
        )
        .unwrap();
    println!("change of a path's state: {:?}", started.elapsed());

    for address in [&site.vfio_user, &site.tcp] {
        let id = address.transport_id(Some(NQN));
        let mut identify = spdk_program("spdk_nvme_identify");
        identify.args(["-r", &id, "-g", "-s", "64"]);
        let started = Instant::now();
        let output = site.run(identify);
        println!("identify: {:?}", started.elapsed());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "identify over {id}: {output:?}");
        assert!(text.contains("SLTEST"), "serial number in {text}");
        assert!(text.contains("01010101-0101-0101-0101-010101010101"), "UUID in {text}");

        let mut perf = spdk_program("spdk_nvme_perf");
        perf.args(["-r", &id, "-q", "16", "-o", "4096", "-w", "randrw", "-M", "50", "-t", "1"]);
        perf.args(["-c", "0x2", "-g", "-s", "128"]);
        let started = Instant::now();
        let output = site.run(perf);
        println!("perf: {:?}", started.elapsed());
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

    let started = Instant::now();
    site.stop();
    println!("stop: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(4), "nothing was forced to exit");
}
