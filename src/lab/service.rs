//! Programs of others that a lab needs beside its movers: started before them, stopped after them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::LabError;
use super::array::{self, Array};
use super::cluster::Cluster;
use super::etcd::{self, Etcd};
use super::interrupt::Interrupt;
use super::process::{Process, Start};
use super::site::SiteService;

/// How long one may take to become ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long one may take to stop.
const STOP_MAX: Duration = Duration::from_secs(20);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A program to be started.
#[derive(Debug, Clone)]
pub struct PlannedService {
    /// What messages call it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The namespace it will run in.
    pub namespace: Option<String>,
    /// Where its log will lie.
    pub log: PathBuf,
}

/// What a service is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A storage server, on this core.
    Array(Array, u16),
    /// The cluster store of one site.
    Etcd(Etcd),
}

impl PlannedService {
    /// A file to be written before it starts, if it needs one.
    #[must_use]
    pub fn file(&self) -> Option<(&Path, String)> {
        match &self.kind {
            Kind::Array(array, _) => Some((&array.file, array.config().to_string())),
            Kind::Etcd(_) => None,
        }
    }

    /// Hugepage memory that it takes, MiB.
    #[must_use]
    pub fn hugepage_mib(&self) -> u64 {
        match &self.kind {
            Kind::Array(..) => array::HUGEPAGE_MIB,
            Kind::Etcd(_) => 0,
        }
    }

    fn program(&self) -> Result<PathBuf, LabError> {
        match &self.kind {
            Kind::Array(..) => array::program(),
            Kind::Etcd(_) => etcd::program(),
        }
    }

    fn arguments(&self) -> Vec<String> {
        match &self.kind {
            Kind::Array(array, core) => array.arguments(*core),
            Kind::Etcd(etcd) => etcd.arguments(),
        }
    }

    fn is_ready(&self) -> bool {
        match &self.kind {
            Kind::Array(array, _) => array.is_ready(),
            // In a namespace it cannot be asked from here; movers wait for it anyhow.
            Kind::Etcd(etcd) => self.namespace.is_some() || etcd.is_ready(),
        }
    }
}

impl Cluster {
    /// Starts what does not run yet, and waits until all of it is ready.
    ///
    /// # Errors
    /// One that ends, or is not ready in time.
    pub fn start_services(&mut self, interrupt: &Interrupt) -> Result<(), LabError> {
        for service in self.plan.services.clone() {
            if self.processes.contains_key(&service.name) {
                continue;
            }
            interrupt.check()?;
            let process = Process::start(&Start {
                name: &service.name,
                program: &service.program()?,
                arguments: &service.arguments(),
                namespace: service.namespace.as_deref(),
                log: &service.log,
                stdout: None,
            })?;
            let record = SiteService { name: service.name.clone(), process: process.id() };
            self.site.services.retain(|known| known.name != service.name);
            self.site.services.push(record);
            self.processes.insert(service.name.clone(), process);
            self.site.write()?;
            let until = Instant::now() + READY_MAX;
            while !service.is_ready() {
                self.check_running()?;
                if Instant::now() >= until {
                    return Err(LabError::NotReady {
                        names: service.name,
                        limit: READY_MAX,
                        logs: self.site.directory.join("log"),
                    });
                }
                interrupt.sleep(LOOK_EVERY)?;
            }
        }
        Ok(())
    }

    /// Stops all of it; the movers have ended. How others' programs say that they were stopped (etcd
    /// by the signal itself) is not judged.
    ///
    /// # Errors
    /// One that had to be killed.
    pub(super) fn stop_services(&mut self) -> Result<(), LabError> {
        let names = self.plan.services.iter().map(|service| service.name.clone());
        let ending = names.filter_map(|name| self.processes.remove(&name)).collect::<Vec<_>>();
        ending.into_iter().try_for_each(|mut process| {
            process.signal(rustix::process::Signal::TERM);
            match process.wait(STOP_MAX) {
                Some(_) => Ok(()),
                None => process.has_stopped(Duration::ZERO),
            }
        })
    }
}
