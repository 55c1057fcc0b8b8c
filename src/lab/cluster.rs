//! A lab that is made: its files and processes, and their removal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::interrupt::Interrupt;
use super::options::Shape;
use super::plan::{self, Plan};
use super::process::{Process, Start};
use super::service::PlannedService;
use super::site::{ProcessId, Site, SiteMover};
use super::{LabError, machine, netns};
use crate::config::Role;
use crate::control::client::{Client, ClientError, Target};
use crate::control::model::{ErrorCode, ExitCode, GroupState, Status};

/// How long movers may take to become ready: opening devices, meeting peers.
const READY_MAX: Duration = Duration::from_secs(120);
/// How long a mover may take to stop.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How long an API call may take.
const CALL_MAX: Duration = Duration::from_secs(15);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// With this code a mover ends that the others have excluded, to be started again.
const EXCLUDED: i32 = ExitCode::Excluded as i32;

/// A lab's files, namespaces and processes. Dropping it ends the processes and removes namespaces
/// and hugepage files; the directory stays unless [`Cluster::remove_directory`] was called.
#[derive(Debug)]
pub struct Cluster {
    pub(super) plan: Plan,
    pub(super) site: Site,
    setlined: PathBuf,
    pub(super) processes: BTreeMap<String, Process>,
    /// Movers that are to join later, and were not started yet.
    absent: BTreeSet<String>,
    /// How often a mover ended because it was excluded, and was started again.
    exclusions: u64,
    released: bool,
    directory_goes: bool,
}

impl Cluster {
    /// Makes everything a lab of `shape` needs, and starts nothing.
    ///
    /// # Errors
    /// What cannot be had; nothing is left behind then.
    pub fn make(shape: &Shape, with_client: bool) -> Result<Self, LabError> {
        let setlined = machine::program("setlined")?;
        let machine = machine::look(shape)?;
        let directory = match &shape.dir {
            Some(directory) => std::path::absolute(directory)
                .map_err(|error| LabError::io(&directory.display().to_string(), error))?,
            None => machine::choose_directory(shape, &machine.tag)?,
        };
        let fresh = !directory.exists();
        if !fresh && fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(LabError::NotEmpty { directory });
        }
        let plan = plan::plan(shape, &directory, &machine)?;
        machine::check_hugepages(&plan, with_client)?;
        let site = Site {
            directory,
            group: plan::GROUP.to_owned(),
            nqn: plan::NQN.to_owned(),
            keeper: ProcessId::of(std::process::id()),
            movers: plan
                .movers
                .iter()
                .map(|mover| SiteMover {
                    name: mover.config.mover.name.clone(),
                    role: mover.config.mover.role,
                    config: mover.file.clone(),
                    socket: mover.config.api.socket.clone(),
                    log: mover.log.clone(),
                    file_prefix: mover.config.file_prefix(),
                    namespace: mover.namespace.clone(),
                    process: None,
                })
                .collect(),
            services: Vec::new(),
            namespaces: plan.veth.as_ref().map(netns::names).unwrap_or_default(),
        };
        let late = plan.movers.iter().filter(|mover| !mover.config.mover.founder);
        let absent = late.map(|mover| mover.config.mover.name.clone()).collect();
        let mut cluster = Self {
            plan,
            site,
            setlined,
            absent,
            processes: BTreeMap::new(),
            exclusions: 0,
            released: false,
            // Until it is whole there is nothing in it to look at.
            directory_goes: fresh,
        };
        cluster.make_files()?;
        if let Some(veth) = &cluster.plan.veth {
            netns::make(veth)?;
        }
        cluster.directory_goes = false;
        Ok(cluster)
    }

    fn make_files(&self) -> Result<(), LabError> {
        let named = |path: &Path| path.display().to_string();
        for directory in &self.plan.directories {
            fs::create_dir_all(directory).map_err(|e| LabError::io(&named(directory), e))?;
        }
        for (path, bytes) in &self.plan.files {
            let made = File::create(path).and_then(|file| file.set_len(*bytes));
            made.map_err(|error| LabError::io(&named(path), error))?;
        }
        for mover in &self.plan.movers {
            let text = mover.config.render().map_err(plan::PlanError::from)?;
            fs::write(&mover.file, text).map_err(|e| LabError::io(&named(&mover.file), e))?;
        }
        for (path, text) in self.plan.services.iter().filter_map(PlannedService::file) {
            fs::write(path, text).map_err(|e| LabError::io(&named(path), e))?;
        }
        Ok(self.site.write()?)
    }

    /// What it was made from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What belongs to it.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Names of the movers of one site, without those that are still to join.
    #[must_use]
    pub fn names(&self, role: Role) -> Vec<String> {
        let all = self.site.of(role).map(|mover| mover.name.clone());
        all.filter(|name| !self.absent.contains(name)).collect()
    }

    /// Names of the movers of both sites, without those that are still to join.
    #[must_use]
    pub fn all_names(&self) -> Vec<String> {
        [self.names(Role::Primary), self.names(Role::Secondary)].concat()
    }

    /// Names of the movers that are still to join.
    #[must_use]
    pub fn absent(&self) -> Vec<String> {
        self.absent.iter().cloned().collect()
    }

    /// Starts what movers need, then every mover, and waits until all are ready.
    ///
    /// # Errors
    /// A mover that ends, or is not ready in time.
    pub fn start_all(&mut self, interrupt: &Interrupt, bar: &ProgressBar) -> Result<(), LabError> {
        self.start_services(interrupt)?;
        let names = self.all_names();
        for name in &names {
            interrupt.check()?;
            self.start(name)?;
        }
        self.wait_ready(&names, interrupt, bar)
    }

    /// Starts one mover.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(&mut self, name: &str) -> Result<(), LabError> {
        let Some(mover) = self.site.movers.iter_mut().find(|mover| mover.name == name) else {
            return Ok(());
        };
        let process = Process::start(&Start {
            name,
            program: &self.setlined,
            arguments: &["--config".to_owned(), mover.config.display().to_string()],
            namespace: mover.namespace.as_deref(),
            log: &mover.log,
            stdout: None,
        })?;
        mover.process = process.id();
        self.absent.remove(name);
        self.processes.insert(name.to_owned(), process);
        Ok(self.site.write()?)
    }

    /// Waits until the movers are ready.
    ///
    /// # Errors
    /// A mover that ends, or is not ready in time.
    pub fn wait_ready(
        &mut self,
        names: &[String],
        interrupt: &Interrupt,
        bar: &ProgressBar,
    ) -> Result<(), LabError> {
        let until = Instant::now() + READY_MAX;
        bar.set_length(names.len() as u64);
        loop {
            let waiting: Vec<String> =
                names.iter().filter(|name| !self.is_ready(name)).cloned().collect();
            bar.set_position((names.len() - waiting.len()) as u64);
            bar.set_message(format!("waiting for {}", waiting.join(", ")));
            if waiting.is_empty() {
                return Ok(());
            }
            self.check_running()?;
            if Instant::now() >= until {
                return Err(LabError::NotReady {
                    names: waiting.join(", "),
                    limit: READY_MAX,
                    logs: self.site.directory.join("log"),
                });
            }
            interrupt.sleep(LOOK_EVERY)?;
        }
    }

    /// Waits until every mover sees its groups consistent: all have met, and a first set has gone
    /// the whole way.
    ///
    /// # Errors
    /// A mover that ends, or groups that are not consistent in time.
    pub fn wait_consistent(&mut self, interrupt: &Interrupt) -> Result<(), LabError> {
        let until = Instant::now() + READY_MAX;
        let names = self.all_names();
        let is_consistent = |status: Status| {
            status.groups.iter().all(|group| group.state == GroupState::Consistent)
        };
        while !names.iter().all(|name| self.status(name).is_ok_and(is_consistent)) {
            self.check_running()?;
            if Instant::now() >= until {
                let what = "a first set's way to the secondary".to_owned();
                return Err(LabError::Late { what, limit: READY_MAX });
            }
            interrupt.sleep(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// Whether a mover answers and is ready.
    #[must_use]
    pub fn is_ready(&self, name: &str) -> bool {
        self.status(name).is_ok_and(|status| status.ready)
    }

    /// Whether the primary site is whole: its movers are all ready, and all of them see all of them as
    /// members and sets on their way.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let names = self.names(Role::Primary);
        names.iter().all(|name| {
            self.status(name).is_ok_and(|status| {
                let record = status.cluster.record.as_ref();
                let has_all =
                    record.is_some_and(|record| names.iter().all(|n| record.members.contains(n)));
                let consistent =
                    status.groups.iter().all(|group| group.state == GroupState::Consistent);
                status.ready && has_all && consistent && status.cluster.whole
            })
        })
    }

    /// Whether every mover hears its site's store.
    #[must_use]
    pub fn has_stores(&self) -> bool {
        let names = self.all_names();
        names.iter().all(|name| self.status(name).is_ok_and(|status| status.cluster.available))
    }

    /// Fails if a mover has ended that should run. One that ended because the others excluded it is
    /// started again.
    ///
    /// # Errors
    /// [`LabError::Ended`], or a program that cannot be started.
    pub fn check_running(&mut self) -> Result<(), LabError> {
        for name in self.all_names() {
            let ended = self.processes.get_mut(&name).and_then(Process::ended);
            if ended.and_then(|status| status.code()) == Some(EXCLUDED) {
                self.exclusions += 1;
                self.processes.remove(&name);
                self.start(&name)?;
            }
        }
        self.processes.values_mut().try_for_each(Process::check)
    }

    /// Whether a mover that is drained has ended. It is not missed then.
    ///
    /// # Errors
    /// It ended in another way.
    pub fn has_left(&mut self, name: &str) -> Result<bool, LabError> {
        let Some(process) = self.processes.get_mut(name) else { return Ok(true) };
        match process.ended() {
            Some(status) if status.success() => {
                self.processes.remove(name);
                Ok(true)
            }
            _ => process.check().map(|()| false),
        }
    }

    /// Whether no volume moves, and, if `balanced`, none has to.
    #[must_use]
    pub fn has_settled(&self, balanced: bool) -> bool {
        let names = self.names(Role::Primary);
        names.iter().all(|name| {
            let info = self.client(name).ok().and_then(|client| client.assignment().ok());
            info.is_some_and(|info| {
                info.under_way.is_empty() && (!balanced || info.wanted.is_empty())
            })
        })
    }

    /// How often a mover ended because the others had excluded it, and was started again.
    #[must_use]
    pub fn exclusions(&self) -> u64 {
        self.exclusions
    }

    /// Sends a signal to a mover or a service.
    pub fn signal(&mut self, name: &str, signal: rustix::process::Signal) {
        if let Some(process) = self.processes.get_mut(name) {
            process.signal(signal);
        }
    }

    /// Kills a mover (-9). It counts as one that should not run.
    pub fn kill(&mut self, name: &str) {
        if let Some(mut process) = self.processes.remove(name) {
            process.kill();
        }
    }

    /// A client of a mover.
    ///
    /// # Errors
    /// The system gives no event queue.
    pub fn client(&self, name: &str) -> Result<Client, LabError> {
        let socket = self.site.mover(name).map(|mover| mover.socket.clone()).unwrap_or_default();
        Client::new(Target::Unix(socket), CALL_MAX).map_err(|error| LabError::io("client", error))
    }

    /// What a mover says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, name: &str) -> Result<Status, LabError> {
        self.client(name)?.status().map_err(|error| LabError::call(name, error))
    }

    /// Has the coordinator of a site do something, whichever mover that is.
    ///
    /// # Errors
    /// What the coordinator said, or that none was found.
    pub fn coordinator<T>(
        &self,
        role: Role,
        ask: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, LabError> {
        let mut failed = None;
        for name in self.names(role) {
            match ask(&self.client(&name)?) {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Api(error)) if error.code == ErrorCode::NotCoordinator => {
                    failed = failed.or(Some(LabError::call(&name, ClientError::Api(error))));
                }
                Err(error @ ClientError::Unreachable { .. }) => {
                    failed = Some(LabError::call(&name, error));
                }
                Err(error) => return Err(LabError::call(&name, error)),
            }
        }
        Err(failed.unwrap_or(LabError::Interrupted))
    }

    /// Stops every mover in order, primary movers first: they hand over what they hold. Then what
    /// they needed.
    ///
    /// # Errors
    /// All that did not end well.
    pub fn stop_all(&mut self) -> Result<(), LabError> {
        let primary = self.stop_together(&[Role::Primary]);
        let secondary = self.stop_together(&[Role::Secondary]);
        let services = self.stop_services();
        let mut bad: Vec<LabError> =
            [primary, secondary, services].into_iter().filter_map(Result::err).collect();
        match bad.len() {
            0 => Ok(()),
            1 => Err(bad.remove(0)),
            _ => Err(LabError::Several(bad)),
        }
    }

    /// Stops every mover of the sites at the same moment, those of the first site first.
    ///
    /// # Errors
    /// All that did not end well.
    pub fn stop_together(&mut self, roles: &[Role]) -> Result<(), LabError> {
        let names: Vec<String> = roles.iter().flat_map(|role| self.names(*role)).collect();
        let mut ending: Vec<Process> =
            names.iter().filter_map(|name| self.processes.remove(name)).collect();
        // All at once, then one by one: none waits for another's end.
        for process in &mut ending {
            process.signal(rustix::process::Signal::TERM);
        }
        let mut bad: Vec<LabError> =
            ending.iter_mut().filter_map(|process| process.has_stopped(STOP_MAX).err()).collect();
        match bad.len() {
            0 => Ok(()),
            1 => Err(bad.remove(0)),
            _ => Err(LabError::Several(bad)),
        }
    }

    /// Leaves everything running and records it: for `lab up`.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn release(mut self) -> Result<Site, LabError> {
        self.site.keeper = None;
        self.site.write()?;
        for process in std::mem::take(&mut self.processes).into_values() {
            process.release();
        }
        self.released = true;
        Ok(self.site.clone())
    }

    /// Lets the directory go, too, when this value goes.
    pub fn remove_directory(&mut self) {
        self.directory_goes = true;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        self.processes.clear();
        clear(&self.site);
        if self.directory_goes {
            let _ = fs::remove_dir_all(&self.site.directory);
        }
    }
}

/// Removes what a lab without processes left outside of its directory.
pub fn clear(site: &Site) {
    netns::remove(&site.namespaces);
    for mover in &site.movers {
        machine::remove_leftovers(&mover.file_prefix);
    }
}
