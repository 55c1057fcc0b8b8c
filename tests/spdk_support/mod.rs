//! A whole target in one process, for tests: app thread here, one poller on a
//! thread of its own that passes each volume through to its base.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "test code")]

pub(crate) mod devices;
pub(crate) mod exercise;
mod poller;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use setline::spdk::address::Address;
use setline::spdk::base::Base;
use setline::spdk::env::{Env, tsc_now};
use setline::spdk::nvmf::{
    AnaState, NamespaceConfig, Subsystem, SubsystemConfig, Target, TransportConfig, TransportKind,
};
use setline::spdk::subsystem::{Config, Subsystems};
use setline::spdk::tap::{TapConfig, TapVolume};
use setline::spdk::thread::Thread;

pub(crate) use devices::env;
use poller::Poller;

/// Largest transfer of the test targets.
pub(crate) const TRANSFER_BYTES: usize = 128 << 10;

/// Size of each volume.
pub(crate) const VOLUME_BYTES: u64 = 64 << 20;

/// The subsystem's name.
pub(crate) const NQN: &str = "nqn.2026-11.io.example:test";

/// One of SPDK's own programs.
pub(crate) fn spdk_program(name: &str) -> Command {
    Command::new(format!("{}/{name}", env!("SETLINE_SPDK_BIN")))
}

/// A target with two volumes: namespace 1 of 4096-byte blocks on memory,
/// namespace 2 of 512-byte blocks on a file.
pub(crate) struct Site {
    pub(crate) tcp: Address,
    pub(crate) vfio_user: Address,
    pub(crate) subsystem: Subsystem,
    pub(crate) subsystems: Subsystems,
    app: Thread,
    target: Target,
    volumes: Vec<TapVolume>,
    poller: Poller,
    env: Env,
}

const BLOCK_BYTES: [u32; 2] = [4096, 512];

impl Site {
    /// Starts it; files and sockets go to `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let env = env("test", 512);
        let app = Thread::create("app").unwrap();
        let pump = &mut || {
            app.poll(tsc_now());
        };
        let subsystems = Subsystems::start(&Config::default(), pump).unwrap();
        let file = dir.join("base1");
        std::fs::File::create(&file).unwrap().set_len(VOLUME_BYTES).unwrap();
        let memory = Base::Malloc {
            blocks: VOLUME_BYTES / u64::from(BLOCK_BYTES[0]),
            block_bytes: BLOCK_BYTES[0],
        };
        subsystems.create_base("base0", &memory, pump).unwrap();
        let file = Base::Aio { path: &file, block_bytes: BLOCK_BYTES[1] };
        subsystems.create_base("base1", &file, pump).unwrap();
        let volumes: Vec<TapVolume> = (0..2_u32).map(|index| volume(index).unwrap()).collect();

        let target = Target::create("test", 4).unwrap();
        let transport = TransportConfig {
            max_io_bytes: TRANSFER_BYTES as u32,
            shared_buffers: 128,
            buffer_cache: 16,
            ..TransportConfig::default()
        };
        target.add_transport(TransportKind::Tcp, &transport, pump).unwrap();
        let transport =
            TransportConfig { max_io_bytes: TRANSFER_BYTES as u32, ..Default::default() };
        target.add_transport(TransportKind::VfioUser, &transport, pump).unwrap();
        let poller = Poller::start(target.groups(), &["base0", "base1"]);

        let subsystem = target
            .subsystem(&SubsystemConfig {
                nqn: NQN.into(),
                serial: "SLTEST".into(),
                model: "setline".into(),
                max_namespaces: 8,
                cntlids: 0x101..=0x1ff,
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
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tcp = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        let vfio_user = Address::VfioUser(dir.join("vfio"));
        for address in [&tcp, &vfio_user] {
            target.listen(address).unwrap();
            subsystem.add_listener(address, AnaState::Optimized, pump).unwrap();
        }
        subsystem.start(pump).unwrap();
        Self { tcp, vfio_user, subsystem, subsystems, app, target, volumes, poller, env }
    }

    /// Polls the app thread.
    pub(crate) fn poll(&self) {
        self.app.poll(tsc_now());
    }

    /// Runs a program to its end while this process keeps going.
    pub(crate) fn run(&self, mut command: Command) -> Output {
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let runner = std::thread::spawn(move || {
            let output = command.output();
            flag.store(true, Ordering::SeqCst);
            output
        });
        while !done.load(Ordering::SeqCst) {
            self.poll();
            std::thread::sleep(Duration::from_micros(200));
        }
        runner.join().unwrap().expect("the program runs")
    }

    /// Takes everything down in order.
    pub(crate) fn stop(self) {
        let pump = &mut || {
            self.app.poll(tsc_now());
        };
        self.subsystem.stop(pump).unwrap();
        self.subsystem.destroy(pump).unwrap();
        self.target.stop_listen(&self.tcp).unwrap();
        self.target.stop_listen(&self.vfio_user).unwrap();
        self.poller.stop(pump);
        self.target.destroy(pump).unwrap();
        for volume in self.volumes {
            volume.remove(pump).unwrap();
        }
        // The bases go with the subsystems.
        self.subsystems.stop(pump).unwrap();
        self.app.exit(&mut || {}).unwrap();
        drop(self.env);
    }
}

fn volume(index: u32) -> Result<TapVolume, setline::spdk::Error> {
    let block_bytes = BLOCK_BYTES[index as usize];
    TapVolume::create(&TapConfig {
        name: format!("vol{index}"),
        index,
        uuid: [index as u8 + 1; 16],
        block_bytes,
        blocks: VOLUME_BYTES / u64::from(block_bytes),
        write_cache: true,
        compare_and_write: true,
        max_transfer_blocks: TRANSFER_BYTES as u32 / block_bytes,
        max_zeroes_blocks: 1 << 16,
    })
}
