//! The cases that run in this process: its SPDK, and the rounds.

use super::case::{Case, Load, Round};
use super::cluster::{Cluster, Memory};
use setline::runtime::clock::Clock;
use setline::spdk::base::Base;
use setline::spdk::env::{EalThread, Env, EnvConfig, tsc_hz, tsc_now};
use setline::spdk::load::{LoadConfig, LoadHandle};
use setline::spdk::subsystem::{Config, Subsystems};
use setline::spdk::tap::{TapConfig, TapVolume};
use setline::spdk::thread::{Thread, ThreadHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The base device: larger than any cache.
const BASE: &str = "bench-base";
const TAP: &str = "bench-volume";
const BLOCK_BYTES: u32 = 4096;
const BLOCKS: u64 = (256 << 20) / BLOCK_BYTES as u64;
/// Before a round is measured.
const WARM_UP: Duration = Duration::from_millis(60);

/// SPDK in this process, and what outlives a case. Fields are dropped in order.
pub(crate) struct Host {
    tap: Option<TapVolume>,
    subsystems: Option<Subsystems>,
    app: Option<Thread>,
    clock: Clock,
    memory: Memory,
    cores: [usize; 2],
    seed: u64,
    _env: Env,
}

impl Host {
    pub(crate) fn start(cores: [usize; 2]) -> Result<Self, String> {
        let config = EnvConfig {
            name: "setline-bench".into(),
            core: cores[1],
            no_pci: true,
            ..EnvConfig::default()
        };
        let env = Env::init(&config).map_err(|e| e.to_string())?;
        let app = Thread::create("app").map_err(|e| e.to_string())?;
        let mut pump = || {
            app.poll(tsc_now());
        };
        let subsystems =
            Subsystems::start(&Config::default(), &mut pump).map_err(|e| e.to_string())?;
        let base = Base::Malloc { blocks: BLOCKS, block_bytes: BLOCK_BYTES };
        subsystems.create_base(BASE, &base, &mut pump).map_err(|e| e.to_string())?;
        let tap = TapVolume::create(&TapConfig {
            name: TAP.into(),
            index: 0,
            uuid: [7; 16],
            block_bytes: BLOCK_BYTES,
            blocks: BLOCKS,
            write_cache: false,
            compare_and_write: true,
            max_transfer_blocks: 32,
            max_zeroes_blocks: 1 << 16,
        })
        .map_err(|e| e.to_string())?;
        Ok(Self {
            tap: Some(tap),
            subsystems: Some(subsystems),
            app: Some(app),
            clock: Clock::with_hz(tsc_hz()),
            memory: Memory::new()?,
            cores,
            seed: 1,
            _env: env,
        })
    }

    fn pump(app: &Option<Thread>) -> impl FnMut() + '_ {
        move || {
            if let Some(app) = app {
                app.poll(tsc_now());
            }
        }
    }

    /// Measures `case` under each of `loads` for `length` each.
    pub(crate) fn rounds(
        &mut self,
        case: Case,
        loads: &[Load],
        length: Duration,
    ) -> Result<Vec<Round>, String> {
        if case == Case::Plain {
            return self.plain(loads, length);
        }
        let mut cluster = Cluster::start(case, self.cores, BASE, self.clock, &mut self.memory)?;
        let mut pump = Self::pump(&self.app);
        let mut rounds = Vec::new();
        let result = cluster.wait_ready(&mut pump).and_then(|()| {
            for load in loads {
                self.seed += 1;
                let config = config(TAP, *load, self.seed);
                let mut before = None;
                let thread = cluster.thread().clone();
                let mut measured = measure(&thread, config, length, &mut pump, |pump| {
                    cluster.holds(pump)?;
                    before = Some(cluster.snapshot(pump)?);
                    Ok(())
                })?;
                measured.hold_ns = cluster.holds(&mut pump)?;
                let after = cluster.snapshot(&mut pump)?;
                if let Some(before) = before {
                    let updates = |s: &setline::runtime::messages::PollerSnapshot| {
                        s.primary.as_ref().map_or(0, |p| p.counters.updates + p.counters.forwarded)
                    };
                    let count = updates(&after) - updates(&before);
                    let busy = after.busy_cycles - before.busy_cycles;
                    measured.cycles_per_update = Some(busy as f64 / count.max(1) as f64);
                }
                rounds.push(measured);
            }
            Ok(())
        });
        cluster.stop(&mut pump);
        result.map(|()| rounds)
    }

    /// The base itself, from an SPDK thread that does nothing else.
    fn plain(&mut self, loads: &[Load], length: Duration) -> Result<Vec<Round>, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, receive) = crossbeam::channel::bounded::<Result<ThreadHandle, String>>(1);
        let (of_thread, core) = (Arc::clone(&stop), self.cores[0]);
        let join = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: core });
            let started = EalThread::register()
                .and_then(|eal| Thread::create("plain").map(|thread| (eal, thread)));
            match started {
                Ok((_eal, thread)) => {
                    let _ = send.send(Ok(thread.handle()));
                    while !of_thread.load(Ordering::Relaxed) {
                        thread.poll(tsc_now());
                    }
                    if let Err(error) = thread.exit(&mut std::thread::yield_now) {
                        eprintln!("setline-bench: {error}");
                    }
                }
                Err(error) => {
                    let _ = send.send(Err(error.to_string()));
                }
            }
        });
        let thread = receive.recv().map_err(|e| e.to_string())??;
        let mut pump = Self::pump(&self.app);
        let mut rounds = Vec::new();
        let mut result = Ok(());
        for load in loads {
            self.seed += 1;
            let config = config(BASE, *load, self.seed);
            match measure(&thread, config, length, &mut pump, |_| Ok(())) {
                Ok(mut round) => {
                    round.cycles_per_update = Some(tsc_hz() as f64 / round.iops);
                    rounds.push(round);
                }
                Err(error) => result = Err(error),
            }
        }
        stop.store(true, Ordering::Relaxed);
        while !join.is_finished() {
            pump();
            std::thread::sleep(Duration::from_micros(100));
        }
        let _ = join.join();
        result.map(|()| rounds)
    }

    /// Ends SPDK.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        {
            let mut pump = Self::pump(&self.app);
            if let Some(tap) = self.tap.take() {
                tap.remove(&mut pump).map_err(|e| e.to_string())?;
            }
            if let Some(subsystems) = self.subsystems.take() {
                subsystems.stop(&mut pump).map_err(|e| e.to_string())?;
            }
        }
        match self.app.take() {
            Some(app) => app.exit(&mut || {}).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}

fn config(bdev: &str, load: Load, seed: u64) -> LoadConfig {
    LoadConfig {
        bdev: bdev.into(),
        queue_depth: load.queue_depth,
        io_bytes: load.block_bytes,
        random: load.random,
        seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// Runs a load for the warm-up and `length`; `begin` is called when the measured part begins.
fn measure(
    thread: &ThreadHandle,
    config: LoadConfig,
    length: Duration,
    pump: &mut dyn FnMut(),
    mut begin: impl FnMut(&mut dyn FnMut()) -> Result<(), String>,
) -> Result<Round, String> {
    let load = LoadHandle::start(thread, config).map_err(|e| e.to_string())?;
    rest(WARM_UP, pump);
    begin(pump)?;
    let (start, (before, _)) = (Instant::now(), load.counts());
    rest(length, pump);
    let (took, (after, errors)) = (start.elapsed(), load.counts());
    load.stop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !load.is_finished() {
        rest(Duration::from_millis(1), pump);
        if Instant::now() > deadline {
            return Err("the load did not end: a write got stuck".into());
        }
    }
    let latency = load.finish().map_err(|e| e.to_string())?;
    if errors > 0 {
        return Err(format!("{errors} writes failed"));
    }
    let per_ns = tsc_hz() as f64 / 1e9;
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / per_ns;
    Ok(Round {
        iops: (after - before) as f64 / took.as_secs_f64(),
        latency_ns: [at(0.5), at(0.99), at(0.999)],
        cycles_per_update: None,
        hold_ns: None,
    })
}

/// Sleeps, polling the app thread now and then.
fn rest(length: Duration, pump: &mut dyn FnMut()) {
    let end = Instant::now() + length;
    loop {
        pump();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}
