//! Brings a mover up, keeps its control thread going, and takes it down again.
//!
//! Order of the start: store, SPDK's environment and subsystems, block devices, the NVMe-oF target,
//! ports; then the mover is admitted to its site ([`Admission`]), which may take long and from when on
//! others count on it; then pollers, the API, and last the listeners, so that a host that can connect
//! finds everything there. The end is the reverse; `control::stop` decides when. When something could not
//! be started or a poller is stuck, nothing is taken down in order: the process ends, and what that
//! means is in the store.
//!
//! All of it runs on the calling thread, the control thread, which is EAL's main lcore and polls
//! SPDK's app thread. It knows nothing of the protocol.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::clock::{Clock, Measuring};
use super::fence::Fencing;
use super::hosts::{Hosts, HostsError};
use super::idle::IdlePolicy;
use super::messages::{FromPoller, ToPoller};
use super::network::{Network, NetworkError};
use super::parts::{ArenaParts, MachineConfigs, PollerParts};
use super::plan::{self, FIRST_EPOCH, Machines, Plan, PlanError, PollerPlan, SecondaryPlan, Start};
use super::poller::{Poller, PollerError, RunningPoller};
use super::siblings::SiblingEnds;
use super::stamps::{LineSetter, Sources};
use super::timekeeper::Timekeeper;
use super::volumes::{VolumeError, Volumes};
use crate::config::{Disk, Idle, Loaded, LogLevel, Mover, Numbering, PortKind, Role};
use crate::control::admission::Admission;
use crate::control::api::{ServeError, Server};
use crate::control::boot;
use crate::control::cluster::part::{Part, PartError};
use crate::control::driver::{Driver, PathState, Setup, Step};
use crate::control::stop::Outcome;
use crate::control::store::{StoreError, StoreIdentity};
use crate::mem::arena::{LogLimits, SEGMENT_BYTES};
use crate::mem::discipline;
use crate::proto::membership::SiteRecord;
use crate::proto::sabotage::Sabotage;
use crate::proto::secondary::{CoordinatorConfig, ShardConfig, VolumeConfig};
use crate::proto::timer::TimerConfig;
use crate::proto::types::{MoverId, Nanos, VolumeId};
use crate::spdk::env::{DmaBuf, Env, EnvConfig, tsc_now};
use crate::spdk::error::Error;
use crate::spdk::nvmf::AnaState;
use crate::spdk::subsystem::{Config as Pools, Subsystems};
use crate::spdk::thread::Thread;
use crate::wire::packet::Incarnation;

/// How long the control thread sleeps between turns: long against a turn, short against what
/// people and hosts' administration notice.
const CONTROL_SLEEP: Duration = Duration::from_micros(500);
/// The same while bases are being fenced: hosts wait for it.
const FENCING_SLEEP: Duration = Duration::from_micros(20);
/// How long a start waits for the mover's former process to end.
const FORMER_ENDS_MAX: Duration = Duration::from_secs(10);
/// Requests that may wait for a poller.
const REQUESTS_MAX: usize = 256;
/// Reports that may wait for the control thread; pollers keep what does not fit.
const REPORTS_MAX: usize = 4096;
/// Writes to secondary volumes under way at once, per poller.
const APPLY_DEPTH: u32 = 128;

/// Why a mover could not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the configuration asks for cannot be done.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The mover's directory cannot be made.
    #[error("mover.run_dir {directory}: {error}")]
    RunDir {
        /// The directory.
        directory: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Signals cannot be taken.
    #[error("signals: {0}")]
    Signals(std::io::Error),
    /// SPDK's environment or subsystems.
    #[error("{what}: {source}; {advice}")]
    Spdk {
        /// What was tried.
        what: &'static str,
        /// What SPDK said.
        source: Error,
        /// What to do.
        advice: String,
    },
    /// The site's store.
    #[error(transparent)]
    Cluster(#[from] PartError),
    /// A block device.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The NVMe-oF target.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// A port or the links.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A poller.
    #[error(transparent)]
    Poller(#[from] PollerError),
    /// The API.
    #[error("API: {0}")]
    Api(#[from] ServeError),
}

/// Everything that has to be taken down in order.
struct Machine {
    /// Ended only when everything that uses it has ended: a failed start leaves that undone.
    env: ManuallyDrop<Env>,
    app: Thread,
    subsystems: Subsystems,
    volumes: Volumes,
    hosts: Option<Hosts>,
    network: Network,
    pollers: Vec<RunningPoller>,
}

/// Runs the mover that `loaded` configures until it is stopped, by a signal or through the API.
/// `ready` is called once hosts can connect or sets can be received.
///
/// # Errors
/// [`LaunchError`] when it could not start. The caller must then end the process without using
/// SPDK or DPDK again.
pub fn run(loaded: Loaded, ready: impl FnOnce(&Mover)) -> Result<Outcome, LaunchError> {
    let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
    let mover = Arc::new(loaded.mover);
    let me = &mover.mover;
    std::fs::create_dir_all(&me.run_dir).map_err(|error| LaunchError::RunDir {
        directory: me.run_dir.display().to_string(),
        error,
    })?;
    let mut signals = {
        use signal_hook::consts::{SIGINT, SIGTERM};
        signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(LaunchError::Signals)?
    };
    let identity = StoreIdentity { site: me.site.clone(), mover: me.name.clone(), id: me.id };
    let (mut store, mut boot) = boot::open_store(&me.store, &identity, unix_ms(), FORMER_ENDS_MAX)?;

    let measuring = Measuring::begin();
    let env = ManuallyDrop::new(environment(&mover)?);
    let clock = measuring.end();
    let offset_ns = clock.unix_offset_ns();
    // Who is responsible for what does not matter to what is opened.
    let mut plan = Plan::new(&mover, &Start::default())?;
    let app = Thread::create("control").map_err(|source| spdk("SPDK's app thread", source, ""))?;
    let pump = &mut || {
        app.poll(tsc_now());
    };
    let pools = Pools::default();
    let subsystems = Subsystems::start(&pools, pump).map_err(|source| {
        spdk("SPDK's subsystems", source, "raise mover.hugepage_mib, or reserve more hugepages")
    })?;
    let mut volumes = Volumes::open(&mover, &plan, &subsystems, boot.incarnation, pump)?;
    let hosts = match me.role {
        Role::Primary => Some(Hosts::new(&mover, pump)?),
        Role::Secondary => None,
    };
    let mut network = Network::open(&mover, &plan)?;

    let cluster = Part::start(&mover, boot.incarnation, unix_ms(), FORMER_ENDS_MAX)?;
    let stopped = &mut || signals.pending().next().is_some();
    let unreached =
        &mut |members: &[MoverId]| network.unreached(&mover, &plan, members, clock.now());
    let admission = Admission::new(&mover, cluster);
    let Some((cluster, entry)) = admission.wait(pump, unreached, stopped) else {
        // Nothing was begun that would have to be ended.
        return Ok(Outcome::Clean);
    };
    let start = boot::resolve(&mover, &mut boot, &mut store, entry, unix_ms(), offset_ns)?;
    plan = Plan::new(&mover, &start)?;
    let plan = Arc::new(plan);
    let record = start.record(&mover, &plan.topology);
    let at_primary = me.role == Role::Primary;
    let mine = |id| !at_primary || record.owner(id).is_some_and(|owner| owner.mover.0 == me.id);
    volumes.join(mine, pump).map_err(VolumeError::from)?;

    // From here on this mover may hold what no other place has.
    let numbered: Vec<_> = plan
        .pollers
        .iter()
        .filter_map(|poller| match &poller.machines {
            Machines::Primary { shard, .. } => Some(shard),
            Machines::Secondary(_) => None,
        })
        .flat_map(|shard| shard.volumes.iter().filter(|volume| volume.owner == shard.me))
        .map(|volume| (volume.id, volume.next_seq))
        .collect();
    store.begin_serving(&numbered, unix_ms())?;

    let mut times = Sources::default();
    let mut timekeeper = Timekeeper::new(&mover, &mut times, &clock, discipline::read);
    let common = plan.pollers.iter().find_map(|poller| {
        let timer = plan::timer(&mover, poller.shard, &start, &record)?;
        Some((timer, times.add_common()))
    });
    let (reports, from_pollers) = bounded(REPORTS_MAX);
    let session = Incarnation::new(boot.session).unwrap_or(Incarnation::MAX);
    let mut line = Assembly {
        mover: &mover,
        plan: &plan,
        volumes: &volumes,
        hosts: hosts.as_ref(),
        network: &mut network,
        record: &record,
        start: &start,
        clock,
        session,
        ios_max: pools.bdev_ios as usize,
        list: list_of_numbers(&mover),
        times: times.clone(),
        common,
        reports,
    };
    let mut to_pollers = Vec::new();
    let mut pollers = Vec::new();
    for (poller, siblings) in plan.pollers.iter().zip(SiblingEnds::mesh(plan.pollers.len() as u8)) {
        let (to, requests) = bounded(REQUESTS_MAX);
        let running = Poller::spawn(line.parts(poller, siblings, requests)?)?;
        tracing::info!(poller = %poller.shard, core = poller.core, "poller runs");
        to_pollers.push(to);
        pollers.push(running);
    }
    drop(line);
    let (mut driver, control) = Driver::new(Setup {
        mover: Arc::clone(&mover),
        warnings,
        plan,
        start: start.clone(),
        store,
        boot,
        pollers: to_pollers,
        reports: from_pollers,
        fencing: volumes.fencing(),
        unreplicated: volumes.unreplicated_sizes(),
        cluster,
        times,
    });
    let server = Server::start(&mover.api, Arc::new(control))?;
    let mut machine = Machine { env, app, subsystems, volumes, hosts, network, pollers };
    machine.let_hosts_in(&mover)?;
    driver.set_serving();
    ready(&mover);
    let outcome = machine.control(&clock, timekeeper.as_mut(), &mut driver, &mut signals);
    server.stop();
    let mut cluster = driver.into_cluster();
    if outcome == Outcome::Clean {
        cluster.tell_leaving();
    }
    if machine.end(&outcome) {
        cluster.leave();
    }
    Ok(outcome)
}

impl Machine {
    fn let_hosts_in(&mut self, mover: &Mover) -> Result<(), LaunchError> {
        let app = &self.app;
        let pump = &mut || {
            app.poll(tsc_now());
        };
        if let Some(hosts) = &mut self.hosts {
            hosts.open(mover, &self.volumes, pump)?;
        }
        Ok(())
    }

    /// The control thread's loop, until the pollers have ended.
    fn control(
        &mut self,
        clock: &Clock,
        mut timekeeper: Option<&mut Timekeeper>,
        driver: &mut Driver,
        signals: &mut signal_hook::iterator::Signals,
    ) -> Outcome {
        loop {
            self.app.poll(tsc_now());
            self.network.maintain(clock.now());
            for signal in signals.pending() {
                let drain = !driver.is_stopping();
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                driver.begin_stop(clock.now(), drain, name);
            }
            if let Some(state) = timekeeper.as_mut().and_then(|keeper| keeper.turn(clock)) {
                driver.clock_is(clock.now(), state);
            }
            let step = driver.turn(clock.now());
            self.fence(clock.now(), driver);
            self.tell_hosts(&driver.take_paths());
            match step {
                Step::Run => {}
                Step::CloseHosts => {
                    let app = &self.app;
                    if let Some(hosts) = &mut self.hosts {
                        hosts.close(&mut || {
                            app.poll(tsc_now());
                        });
                    }
                    driver.hosts_closed(clock.now());
                }
                Step::Ended(outcome) => return outcome,
            }
            let soon = self.volumes.is_fencing() || driver.is_fencing();
            std::thread::sleep(if soon { FENCING_SLEEP } else { CONTROL_SLEEP });
        }
    }

    /// Keeps movers that left from bases of volumes that are taken over here.
    fn fence(&mut self, now: Nanos, driver: &mut Driver) {
        while let Some((volume, members)) = driver.next_fence(now) {
            if !self.volumes.take_over(volume, &members) {
                driver.fenced(now, volume, Ok(0), None);
            }
        }
        for (volume, fencing) in self.volumes.fences(now) {
            let done = match fencing {
                Fencing::Joined => {
                    driver.fence_joined(volume);
                    continue;
                }
                Fencing::Hangs(what) => {
                    driver.fence_hangs(now, volume, what);
                    continue;
                }
                Fencing::Done(removed) => Ok(removed.len()),
                Fencing::Failed(error) => Err(error.to_string()),
            };
            driver.fenced(now, volume, done, self.volumes.fencing().remove(&volume));
        }
    }

    /// Tells hosts of paths that are better or worse now.
    fn tell_hosts(&self, paths: &[(VolumeId, PathState)]) {
        let Some(hosts) = self.hosts.as_ref().filter(|_| !paths.is_empty()) else { return };
        let states: Vec<(VolumeId, AnaState)> = paths
            .iter()
            .map(|(volume, state)| {
                let state = match state {
                    PathState::Optimized => AnaState::Optimized,
                    PathState::NonOptimized => AnaState::NonOptimized,
                    PathState::Inaccessible => AnaState::Inaccessible,
                };
                (*volume, state)
            })
            .collect();
        let pump = &mut || {
            self.app.poll(tsc_now());
        };
        if let Err(error) = hosts.set_states(&states, pump) {
            tracing::error!(%error, "hosts do not know of all paths");
        }
    }

    /// Takes everything down. With a poller that did not end that cannot be done in order; whether it
    /// was.
    fn end(self, outcome: &Outcome) -> bool {
        let stuck = self.pollers.iter().any(|poller| !poller.is_finished());
        if stuck || matches!(outcome, Outcome::Failed { .. } | Outcome::Excluded { .. }) {
            tracing::warn!("the process ends without taking its devices down");
            std::mem::forget(self);
            return false;
        }
        let Self { env, app, subsystems, volumes, hosts, network, pollers } = self;
        pollers.into_iter().for_each(RunningPoller::join);
        let pump = &mut || {
            app.poll(tsc_now());
        };
        if let Some(hosts) = hosts {
            hosts.end(pump);
        }
        volumes.close(pump);
        if let Err(error) = subsystems.stop(pump) {
            tracing::warn!(%error, "SPDK's subsystems did not end");
        }
        drop(network);
        if let Err(error) = app.exit(&mut || {}) {
            tracing::warn!(%error, "SPDK's app thread did not end");
        }
        drop(ManuallyDrop::into_inner(env));
        true
    }
}

/// Puts the parts of pollers together.
struct Assembly<'a> {
    mover: &'a Mover,
    plan: &'a Plan,
    volumes: &'a Volumes,
    hosts: Option<&'a Hosts>,
    network: &'a mut Network,
    record: &'a SiteRecord,
    start: &'a Start,
    clock: Clock,
    session: Incarnation,
    ios_max: usize,
    list: Option<Arc<AtomicU64>>,
    times: Sources,
    common: Option<(TimerConfig, LineSetter)>,
    reports: Sender<FromPoller>,
}

impl Assembly<'_> {
    fn parts(
        &mut self,
        poller: &PollerPlan,
        siblings: SiblingEnds,
        requests: Receiver<ToPoller>,
    ) -> Result<PollerParts, LaunchError> {
        let me = &self.mover.mover;
        Ok(PollerParts {
            shard: poller.shard,
            epoch: self.record.epoch,
            enters: self.start.record.as_ref().map(|record| {
                let engine = plan::engine(self.mover, &self.plan.topology, self.start, record);
                (record.clone(), engine)
            }),
            other_site: other_site(self.mover),
            core: Some(usize::from(poller.core)),
            idle: match me.idle {
                Idle::Spin => IdlePolicy::Spin,
                Idle::Yield => IdlePolicy::Yield { rounds: me.idle_rounds },
                Idle::Sleep => IdlePolicy::Sleep {
                    rounds: me.idle_rounds,
                    sleep: Duration::from_micros(u64::from(me.sleep_us)),
                },
            },
            clock: self.clock,
            machines: machines(&poller.machines),
            arena: arena(poller)?,
            volumes: self.volumes.parts(self.mover, self.record, poller),
            taps: self.volumes.tap_owners(self.mover, self.plan, poller),
            queues: self.network.queues(poller.shard.poller),
            links: self.network.links(self.mover, poller, self.record.epoch)?,
            remote: match &poller.machines {
                Machines::Primary { shard, .. } => shard.mirrors.iter().map(|m| m.shard).collect(),
                Machines::Secondary(_) => Vec::new(),
            },
            incarnation: self.session,
            hosts: self.hosts.map(Hosts::groups),
            list: self.list.clone(),
            times: self.times.clone(),
            timer: self.common.take_if(|(timer, _)| timer.me == poller.shard),
            siblings,
            journal: self.volumes.journal_parts(self.mover, self.plan, poller),
            requests,
            reports: self.reports.clone(),
            ios_max: self.ios_max,
        })
    }
}

/// Starts SPDK's environment. The calling thread is pinned by that; without `mover.control_core`
/// it goes back to where it may run.
fn environment(mover: &Mover) -> Result<Env, LaunchError> {
    let me = &mover.mover;
    let allowed = rustix::thread::sched_getaffinity(None);
    let first = allowed.as_ref().ok().and_then(|set| (0..1024).find(|core| set.is_set(*core)));
    let mut devices: Vec<String> = mover
        .ports
        .iter()
        .filter_map(|port| match &port.kind {
            PortKind::Pci { pci_address } => Some(pci_address.clone()),
            _ => None,
        })
        .collect();
    let disks = mover.groups.iter().flat_map(|group| &group.volumes).flat_map(|volume| {
        let base = (volume.mover == me.name).then_some(&volume.base);
        let target = (volume.target.mover == me.name).then_some(&volume.target.base);
        base.into_iter().chain(target)
    });
    let disks = disks.chain(mover.journal.iter().map(|journal| &journal.disk));
    devices.extend(disks.filter_map(|disk| match disk {
        Disk::NvmePci { address, .. } => Some(address.clone()),
        _ => None,
    }));
    devices.sort();
    devices.dedup();
    let config = EnvConfig {
        name: format!("setlined-{}", me.name),
        core: me.control_core.map_or(first.unwrap_or(0), usize::from),
        hugepage_mib: me.hugepage_mib,
        no_pci: !mover.uses_pci(),
        pci_allowed: devices,
        log_level: match me.log {
            LogLevel::Error => crate::spdk::env::LogLevel::Error,
            LogLevel::Warn | LogLevel::Info => crate::spdk::env::LogLevel::Warn,
            LogLevel::Debug => crate::spdk::env::LogLevel::Notice,
            LogLevel::Trace => crate::spdk::env::LogLevel::Info,
        },
        ..EnvConfig::default()
    };
    let env = Env::init(&config).map_err(|source| {
        let advice = format!(
            "this mover needs {} MiB of hugepages (mover.hugepage_mib); `setline config check \
             --here` says what the machine lacks",
            me.hugepage_mib
        );
        spdk("SPDK's environment", source, &advice)
    })?;
    if let (None, Ok(allowed)) = (me.control_core, allowed)
        && let Err(error) = rustix::thread::sched_setaffinity(None, &allowed)
    {
        tracing::warn!(%error, "the control thread stays on one core");
    }
    Ok(env)
}

fn spdk(what: &'static str, source: Error, advice: &str) -> LaunchError {
    let advice = match advice {
        "" => "see the lines of SPDK's log before this one".to_owned(),
        advice => advice.to_owned(),
    };
    LaunchError::Spdk { what, source, advice }
}

fn other_site(mover: &Mover) -> Vec<MoverId> {
    let peers = mover.peers.iter().filter(|peer| peer.role != mover.mover.role);
    peers.map(|peer| MoverId(peer.id)).collect()
}

/// The one list of numbers over all volumes of the mover, where a group wants it (G7). It begins
/// with the time, so that numbers of an earlier life are not used again.
fn list_of_numbers(mover: &Mover) -> Option<Arc<AtomicU64>> {
    let wanted = mover.groups.iter().any(|group| group.numbering == Numbering::Mover);
    wanted.then(|| Arc::new(AtomicU64::new(unix_ms() * 1_000_000)))
}

fn machines(planned: &Machines) -> MachineConfigs {
    match planned {
        Machines::Primary { shard, boundary } => {
            MachineConfigs::Primary { shard: shard.clone(), boundary: boundary.clone() }
        }
        Machines::Secondary(plan) => MachineConfigs::Secondary {
            shard: secondary_shard(plan),
            coordinator: plan.coordination.as_ref().map(|coordination| CoordinatorConfig {
                me: plan.me,
                shards: coordination.shards.clone(),
                groups: plan.groups.clone(),
                volumes: coordination.owners.clone(),
                sabotage: Sabotage::None,
            }),
        },
    }
}

fn secondary_shard(plan: &SecondaryPlan) -> ShardConfig {
    let volumes = plan.volumes.iter().map(|volume| VolumeConfig {
        id: VolumeId(volume.id.0),
        group: volume.group,
        block_bytes: volume.block_bytes,
        blocks: volume.blocks,
    });
    ShardConfig {
        me: plan.me,
        epoch: FIRST_EPOCH,
        coordinator: plan.coordinator,
        partner: plan.partner,
        primaries: plan.sources.clone(),
        groups: plan.groups.clone(),
        volumes: volumes.collect(),
        apply_depth: APPLY_DEPTH,
        sabotage: Sabotage::None,
    }
}

/// The arena's memory and how it is divided. A log may hold at least a segment, also where it is
/// not needed.
fn arena(poller: &PollerPlan) -> Result<ArenaParts, LaunchError> {
    let budget = &poller.arena;
    let memory = DmaBuf::new(budget.bytes as usize, SEGMENT_BYTES).map_err(|source| {
        spdk("the update arena", source, "lower mover.arena_mib, or raise mover.hugepage_mib")
    })?;
    let mirror = LogLimits {
        reserved_bytes: budget.mirror_bytes,
        limit_bytes: budget.mirror_bytes.max(SEGMENT_BYTES as u64),
    };
    let own = LogLimits::exactly(budget.bytes - budget.mirror_bytes - budget.remote_bytes);
    Ok(ArenaParts { memory: memory.leak(), own, mirror })
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_millis() as u64
}
