//! Every kind of base that a volume may stand on, read and written through the
//! same channel: memory, files through aio and io_uring, and namespaces of an
//! independent NVMe-oF target (SPDK's own, another process) over TCP and
//! vfio-user.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "spdk_support/devices.rs"]
mod devices;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use devices::{Devices, Killed};
use setline::spdk::address::Address;
use setline::spdk::base::{Base, HostIdentity};
use setline::spdk::bdev::{Bdev, Channel};
use setline::spdk::env::{DmaBuf, IoBuf};
use setline::spdk::{NvmeStatus, Submit};

const NQN: &str = "nqn.2026-11.io.example:peer";
const BYTES: u64 = 16 << 20;

#[test]
fn every_kind_of_base_reads_back_what_was_written() {
    tracing_subscriber::fmt().with_test_writer().init();
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tcp = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
    let vfio_user = Address::VfioUser(dir.path().join("peer"));
    let mut peer = Peer::start(dir.path(), port);

    let devices = Devices::start("bases");
    let subsystems = &devices.subsystems;
    let pump = &mut || devices.poll();

    let file = dir.path().join("file");
    std::fs::File::create(&file).unwrap().set_len(BYTES).unwrap();
    let missing = dir.path().join("missing");
    let bases = [
        ("memory", Base::Malloc { blocks: BYTES / 512, block_bytes: 512 }),
        ("aio", Base::Aio { path: &file, block_bytes: 4096 }),
        ("uring", Base::Uring { path: &file, block_bytes: 512 }),
    ];
    let absent = Base::Aio { path: &missing, block_bytes: 512 };
    assert!(subsystems.create_base("absent", &absent, pump).is_err());
    assert!(Bdev::open("absent", true).is_err());
    let memory = DmaBuf::new(1 << 20, 4096).unwrap().leak();
    for (name, base) in &bases {
        subsystems.create_base(name, base, pump).unwrap();
        exercise(name, &devices, memory);
        subsystems.delete_base(name, base, pump).unwrap();
        assert!(Bdev::open(name, false).is_err(), "{name} is gone");
    }
    let host = HostIdentity { nqn: HOST_NQN.into(), id: [7; 16] };
    for (name, address) in [("tcp", &tcp), ("vfio", &vfio_user)] {
        peer.wait_for(address);
        let names = subsystems.attach_nvme(name, address, Some(NQN), Some(&host), pump).unwrap();
        assert_eq!(names, [format!("{name}n1")]);
        exercise(&names[0], &devices, memory);
        subsystems.detach_nvme(name, pump).unwrap();
    }
    devices.end();
}

const HOST_NQN: &str = "nqn.2026-11.io.example:mover-p1";

fn exercise(name: &str, devices: &Devices, memory: IoBuf) {
    let bdev = Bdev::open(name, true).unwrap();
    let geometry = bdev.geometry();
    assert_eq!(geometry.blocks * u64::from(geometry.block_bytes), BYTES, "{name}");
    let channel = bdev.channel().unwrap();
    let io = |submit: &dyn Fn(&Channel, u64) -> Result<(), Submit>| {
        submit(&channel, 42).unwrap_or_else(|e| panic!("{name}: {e}"));
        let done = devices.done();
        assert_eq!(done.ctx, 42);
        done.status
    };
    let block = geometry.block_bytes as usize;
    for bytes in [block, 64 << 10, 256 << 10] {
        let (out, back) = (memory.slice(0, bytes), memory.slice(512 << 10, bytes));
        let data: Vec<u8> = (0..bytes).map(|i| (i * 13 + i / 251 + bytes) as u8).collect();
        out.copy_in(0, &data);
        assert_eq!(io(&|ch, ctx| ch.write(out, 32, ctx)), NvmeStatus::SUCCESS, "{name}");
        if geometry.flush {
            assert_eq!(io(&|ch, ctx| ch.flush(ctx)), NvmeStatus::SUCCESS, "{name}");
        }
        assert_eq!(io(&|ch, ctx| ch.read(back, 32, ctx)), NvmeStatus::SUCCESS, "{name}");
        let mut found = vec![0; bytes];
        back.copy_out(0, &mut found);
        assert!(found == data, "{name}: {bytes} bytes differ");
    }
    assert_eq!(io(&|ch, ctx| ch.write_zeroes(32, 2, ctx)), NvmeStatus::SUCCESS, "{name}");
    let back = memory.slice(0, 4 * block);
    assert_eq!(io(&|ch, ctx| ch.read(back, 31, ctx)), NvmeStatus::SUCCESS, "{name}");
    let mut found = vec![1; 2 * block];
    back.copy_out(block, &mut found);
    assert!(found.iter().all(|&b| b == 0), "{name}: zeroes");
    let beyond = channel.read(back, geometry.blocks - 1, 42);
    assert_eq!(beyond, Err(Submit::Refused(22)), "{name}: beyond the end");
    assert!(!bdev.is_removed());
}

/// SPDK's own target in a process of its own.
struct Peer {
    process: Killed,
}

impl Peer {
    fn start(dir: &Path, port: u16) -> Self {
        let sockets = dir.join("peer");
        std::fs::create_dir(&sockets).unwrap();
        let call = |method: &str, params: serde_json::Value| serde_json::json!({ "method": method, "params": params });
        let listener = |kind: &str, address: serde_json::Value| {
            let mut address = address;
            address["trtype"] = kind.into();
            call(
                "nvmf_subsystem_add_listener",
                serde_json::json!({ "nqn": NQN, "listen_address": address }),
            )
        };
        let config = serde_json::json!({ "subsystems": [
            { "subsystem": "bdev", "config": [
                call("bdev_malloc_create", serde_json::json!({
                    "name": "m0", "num_blocks": BYTES / 512, "block_size": 512 })),
            ]},
            { "subsystem": "nvmf", "config": [
                call("nvmf_create_transport", serde_json::json!({ "trtype": "TCP" })),
                call("nvmf_create_transport", serde_json::json!({ "trtype": "VFIOUSER" })),
                call("nvmf_create_subsystem", serde_json::json!({
                    "nqn": NQN, "allow_any_host": true, "serial_number": "PEER" })),
                call("nvmf_subsystem_add_ns", serde_json::json!({
                    "nqn": NQN, "namespace": { "bdev_name": "m0" } })),
                listener("TCP", serde_json::json!({
                    "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() })),
                listener("VFIOUSER", serde_json::json!({ "traddr": sockets, "trsvcid": "0" })),
            ]},
        ]});
        let file = dir.join("peer.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(format!("{}/nvmf_tgt", env!("SETLINE_SPDK_BIN")));
        command.args(["-m", "0x2", "-s", "512", "--no-pci", "--disable-cpumask-locks"]);
        command.arg("-c").arg(&file).arg("-r").arg(dir.join("peer.sock"));
        Self {
            process: Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()),
        }
    }

    /// Waits until it listens.
    fn wait_for(&mut self, address: &Address) {
        let start = Instant::now();
        let listens = || match address {
            Address::Tcp(socket) => std::net::TcpStream::connect(socket).is_ok(),
            Address::VfioUser(dir) => dir.join("cntrl").exists(),
            Address::Pcie(_) => true,
        };
        while !listens() {
            assert!(self.process.0.try_wait().unwrap().is_none(), "the peer ended");
            assert!(start.elapsed() < Duration::from_secs(30), "the peer does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
