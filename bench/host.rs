//! The cases that run in this process: its SPDK, and the rounds.

use super::case::{Case, Load, Round};
use super::cluster::{Cluster, Memory, Setup, Volume};
use setline::runtime::clock::Clock;
use setline::spdk::base::Base;
use setline::spdk::env::{EalThread, Env, EnvConfig, tsc_hz, tsc_now};
use setline::spdk::load::{LoadConfig, LoadHandle};
use setline::spdk::subsystem::{Config, Subsystems};
use setline::spdk::tap::{TapConfig, TapVolume};
use setline::spdk::thread::{Thread, ThreadHandle};
use std::collections::BTreeMap;
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
    taps: Vec<TapVolume>,
    /// Sets of volumes over the one base device, by their count.
    many: BTreeMap<usize, Vec<Volume>>,
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
        let tap = tap(TAP, 0, BLOCKS)?;
        Ok(Self {
            taps: vec![tap],
            many: BTreeMap::new(),
            subsystems: Some(subsystems),
            app: Some(app),
            clock: Clock::with_hz(tsc_hz()),
            memory: Memory::new(),
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
        let movers = if case == Case::Tap { 1 } else { 2 };
        let volumes = [Volume { tap: 0, base: BASE.into() }];
        self.with_cluster(case, movers, &volumes, &[TAP.to_owned()], loads, length)
    }

    /// Measures so many movers with so many volumes under `load`, as the case `mirror-ring` does.
    pub(crate) fn many(
        &mut self,
        movers: usize,
        count: usize,
        load: Load,
        length: Duration,
    ) -> Result<Round, String> {
        let volumes = self.volumes(count)?;
        let names: Vec<String> = (0..count).map(|index| name_of(TAP, count, index)).collect();
        let rounds =
            self.with_cluster(Case::MirrorRing, movers, &volumes, &names, &[load], length)?;
        rounds.into_iter().next().ok_or_else(|| "nothing was measured".into())
    }

    /// So many volumes over the one base device: a device in memory of each one's own has a poller of its own in
    /// SPDK, which an NVMe namespace has not, and memory would cost another thing for each count.
    fn volumes(&mut self, count: usize) -> Result<Vec<Volume>, String> {
        if let Some(volumes) = self.many.get(&count) {
            return Ok(volumes.clone());
        }
        let mut volumes = Vec::with_capacity(count);
        for index in 0..count {
            let place = self.taps.len() as u32;
            self.taps.push(tap(&name_of(TAP, count, index), place, BLOCKS)?);
            volumes.push(Volume { tap: place, base: BASE.into() });
        }
        self.many.insert(count, volumes.clone());
        Ok(volumes)
    }

    fn with_cluster(
        &mut self,
        case: Case,
        movers: usize,
        volumes: &[Volume],
        names: &[String],
        loads: &[Load],
        length: Duration,
    ) -> Result<Vec<Round>, String> {
        let setup = Setup { case, movers, cores: self.cores, volumes };
        let mut cluster = Cluster::start(setup, self.clock, &mut self.memory)?;
        let mut pump = Self::pump(&self.app);
        let mut rounds = Vec::new();
        let result = cluster.wait_ready(&mut pump).and_then(|()| {
            for load in loads {
                self.seed += 1;
                let config = config(names, *load, self.seed);
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
            let config = config(&[BASE.to_owned()], *load, self.seed);
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
            for tap in self.taps.drain(..) {
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

fn name_of(what: &str, count: usize, index: usize) -> String {
    format!("{what}-{count}-{index}")
}

fn tap(name: &str, index: u32, blocks: u64) -> Result<TapVolume, String> {
    let mut uuid = [7; 16];
    uuid[..4].copy_from_slice(&index.to_le_bytes());
    let config = TapConfig {
        name: name.into(),
        index,
        uuid,
        block_bytes: BLOCK_BYTES,
        blocks,
        write_cache: false,
        compare_and_write: true,
        max_transfer_blocks: 32,
        max_zeroes_blocks: 1 << 16,
    };
    TapVolume::create(&config).map_err(|e| e.to_string())
}

fn config(bdevs: &[String], load: Load, seed: u64) -> LoadConfig {
    LoadConfig {
        bdevs: bdevs.to_vec(),
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
