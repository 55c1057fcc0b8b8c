//! Doing to a lab what was planned, and waiting until it has got over it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use super::LabError;
use super::faults::{Fault, Kind};
use super::netns::{self, Way};
use super::plan::VethPlan;
use super::report::FaultResult;
use super::run::Run;
use super::watch;
use super::writer::Writer;
use crate::config::Role;
use crate::control::model::Wish;

/// How long a lab may take to get over something.
const WHOLE_MAX: Duration = Duration::from_secs(180);

/// A fault that is over, and when it was by the clock that the client's log has.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) result: FaultResult,
    pub(super) at_unix_ns: u64,
}

impl Run<'_> {
    /// Does it, undoes it after its time, and waits until the lab is whole again.
    pub(super) fn inject(&mut self, fault: &Fault, writer: &Writer) -> Result<Done, LabError> {
        let at = Instant::now();
        let at_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = self.watch.elapsed(at).as_millis() as u64;
        match fault.kind {
            Kind::KillPrimary | Kind::KillSecondary => {
                for name in &fault.who {
                    self.cluster.kill(name);
                }
                self.pause(fault.length, writer)?;
                for name in &fault.who {
                    self.cluster.start(name)?;
                }
            }
            Kind::Drain => {
                for name in &fault.who {
                    self.ask(&Wish::Drain { mover: name.clone(), on: true })?;
                    self.has_left(name, writer)?;
                }
                self.pause(fault.length, writer)?;
                for name in &fault.who {
                    self.cluster.start(name)?;
                }
            }
            Kind::Move => {
                for name in &fault.who {
                    self.move_to(name)?;
                }
            }
            Kind::Join => {
                for name in &fault.who {
                    self.cluster.start(name)?;
                }
            }
            Kind::Partition | Kind::Mute | Kind::Deafen => {
                self.cut(fault)?;
                let passed = self.pause(fault.length, writer);
                self.mend(fault)?;
                passed?;
            }
            Kind::Pause | Kind::StopStore => {
                self.signal(&fault.who, Signal::STOP);
                let passed = self.pause(fault.length, writer);
                // In any case: a stopped process would not end when it is asked to.
                self.signal(&fault.who, Signal::CONT);
                passed?;
            }
        }
        let since = Instant::now();
        while !self.is_over(fault) {
            self.cluster.check_running()?;
            if since.elapsed() > WHOLE_MAX {
                return Err(LabError::NotReady {
                    names: format!("the lab after {}: {}", fault.kind.name(), fault.who.join(", ")),
                    limit: WHOLE_MAX,
                    logs: self.cluster.site().directory.join("log"),
                });
            }
            self.pause(watch::EVERY, writer)?;
        }
        let result = FaultResult {
            kind: fault.kind,
            at_ms,
            movers: fault.who.clone(),
            ready_after_ms: at.elapsed().as_millis() as u64,
            longest_stall_ms: 0.0,
        };
        Ok(Done { result, at_unix_ns: at_unix.as_nanos() as u64 })
    }

    /// Asks the primary site for something.
    fn ask(&self, wish: &Wish) -> Result<(), LabError> {
        let wished = self.cluster.coordinator(Role::Primary, |client| client.wish(wish, false));
        wished.map(|_| ())
    }

    /// Waits until a mover that is drained has left and ended.
    fn has_left(&mut self, name: &str, writer: &Writer) -> Result<(), LabError> {
        let since = Instant::now();
        while !self.cluster.has_left(name)? {
            if since.elapsed() > WHOLE_MAX {
                return Err(LabError::NotReady {
                    names: format!("{name}, which is to leave"),
                    limit: WHOLE_MAX,
                    logs: self.cluster.site().directory.join("log"),
                });
            }
            self.pause(watch::EVERY, writer)?;
        }
        Ok(())
    }

    /// Moves a volume that another mover has to the mover `name`, if any has one.
    fn move_to(&self, name: &str) -> Result<(), LabError> {
        let map = self.cluster.coordinator(Role::Primary, |client| client.volume_map())?;
        let elsewhere = map.entries.iter().find(|entry| entry.mover != name);
        let Some(entry) = elsewhere else { return Ok(()) };
        let volume = format!("{}/{}", entry.group, entry.volume);
        self.ask(&Wish::Place { volume, mover: Some(name.to_owned()) })
    }

    fn cut(&self, fault: &Fault) -> Result<(), LabError> {
        self.legs(fault).try_for_each(|(veth, at)| netns::cut(veth, at, way(fault.kind)))
    }

    fn mend(&self, fault: &Fault) -> Result<(), LabError> {
        self.legs(fault).try_for_each(|(veth, at)| netns::mend(veth, at, way(fault.kind)))
    }

    /// The legs of the movers that a fault is about.
    fn legs<'a>(&'a self, fault: &'a Fault) -> impl Iterator<Item = (&'a VethPlan, usize)> + 'a {
        let plan = self.cluster.plan();
        plan.veth.iter().flat_map(move |veth| {
            let movers = plan.movers.iter().enumerate();
            let hit = movers.filter(|(_, m)| fault.who.contains(&m.config.mover.name));
            hit.map(move |(at, _)| (veth, at))
        })
    }

    fn signal(&mut self, names: &[String], signal: Signal) {
        for name in names {
            self.cluster.signal(name, signal);
        }
    }

    fn is_over(&self, fault: &Fault) -> bool {
        match fault.kind {
            Kind::KillSecondary => fault.who.iter().all(|name| self.cluster.is_ready(name)),
            Kind::KillPrimary | Kind::Pause => self.cluster.is_whole(),
            Kind::Partition | Kind::Mute | Kind::Deafen => self.cluster.is_whole(),
            Kind::Drain | Kind::Join => self.cluster.is_whole() && self.cluster.has_settled(true),
            Kind::Move => self.cluster.is_whole() && self.cluster.has_settled(false),
            Kind::StopStore => self.cluster.has_stores(),
        }
    }
}

const fn way(kind: Kind) -> Way {
    match kind {
        Kind::Mute => Way::From,
        Kind::Deafen => Way::To,
        _ => Way::Both,
    }
}
