//! SPDK's block devices in the process of a test, and programs of others beside it.
#![allow(dead_code, reason = "each test uses its part")]

use std::process::Child;
use std::time::{Duration, Instant};

use setline::spdk::env::{Env, EnvConfig, tsc_now};
use setline::spdk::queue::{Done, LocalQueues};
use setline::spdk::subsystem::{Config, Subsystems};
use setline::spdk::thread::Thread;

/// Ends a wait for one command.
const LATE: Duration = Duration::from_secs(60);

/// SPDK's and DPDK's environment of this process, with so much memory in hugepages. Once a process.
pub(crate) fn env(name: &str, hugepage_mib: u32) -> Env {
    Env::init(&EnvConfig { name: name.into(), hugepage_mib, no_pci: true, ..EnvConfig::default() })
        .expect("hugepages are reserved (scripts/setup)")
}

/// What a thread needs to use block devices. Ended with [`Self::end`], after all that was opened.
pub(crate) struct Devices {
    pub(crate) app: Thread,
    pub(crate) queues: LocalQueues,
    pub(crate) subsystems: Subsystems,
    env: Env,
}

impl Devices {
    pub(crate) fn start(name: &str) -> Self {
        let env = env(name, 256);
        let app = Thread::create("app").unwrap();
        let queues = LocalQueues::install(8191).unwrap();
        let subsystems = Subsystems::start(&Config::default(), &mut || {
            app.poll(tsc_now());
        })
        .unwrap();
        Self { app, queues, subsystems, env }
    }

    /// Polls the thread once: what calls that wait must be given.
    pub(crate) fn poll(&self) {
        self.app.poll(tsc_now());
    }

    /// Waits for the next completion.
    pub(crate) fn done(&self) -> Done {
        let start = Instant::now();
        loop {
            self.poll();
            if let Some(done) = self.queues.pop_done() {
                return done;
            }
            assert!(start.elapsed() < LATE, "a command is never answered");
        }
    }

    pub(crate) fn end(self) {
        let Self { app, queues, subsystems, env } = self;
        subsystems
            .stop(&mut || {
                app.poll(tsc_now());
            })
            .unwrap();
        drop(queues);
        app.exit(&mut || {}).unwrap();
        drop(env);
    }
}

/// A program that a test started; killed when it goes.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
        setline::lab::machine::remove_runtime_directory(self.0.id());
    }
}
