//! One path: a controller that is connected, lost, or being connected again.
//!
//! A path is lost when its connection is: TCP says so, and over vfio-user the socket hangs up when the
//! target's process has ended. It is lost, too, when a Keep Alive is not answered in time (TCP) or a command
//! takes longer than its timeout. Then the queue pair goes, and what was under way on it ends as aborted: a
//! target that has ended does nothing any more, and what a stopped one holds arrived before the connection
//! was closed. Whether that may still take effect later is the target's business (a mover that was silent
//! for so long has been shut out of its bases by then).
//!
//! Keep Alive is not used over vfio-user: a target that lives may still write into the memory of commands
//! that it took, so their path must not be given up because it is slow.

use super::super::trid::{Transport, Trid};
use super::{NvmeTargetError, NvmeTargetOptions};
use crate::spdk::address::Address;
use crate::spdk::nvme::{Connecting, Controller, Namespace, QueuePair};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pause between attempts to connect a lost path again.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// Deepest queue pair asked for: what SPDK's own target allows by default.
const QUEUE_DEPTH_MAX: u32 = 127;
/// Shallowest one that is tried.
const QUEUE_DEPTH_MIN: u32 = 8;

/// A path and what is done about it.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) trid: Trid,
    /// `None` while the path is lost.
    pub(super) link: Option<Link>,
    connecting: Option<Connecting>,
    connect_at: Instant,
    /// A Keep Alive that was sent, and when.
    asked: Option<(Arc<AtomicBool>, Instant)>,
    ask_at: Instant,
}

/// A connected controller.
#[derive(Debug)]
pub(super) struct Link {
    // The queue pair goes before its controller.
    pub(super) qpair: Option<QueuePair>,
    /// By volume; `None` where this controller does not offer it.
    pub(super) namespaces: Vec<Option<Namespace>>,
    pub(super) controller: Controller,
}

impl Path {
    pub(super) fn new(trid: Trid, link: Link) -> Self {
        let now = Instant::now();
        Self { trid, link: Some(link), connecting: None, connect_at: now, asked: None, ask_at: now }
    }

    /// One that could not be connected yet.
    pub(super) fn absent(trid: Trid) -> Self {
        let now = Instant::now();
        let connect_at = now + RECONNECT_INTERVAL;
        Self { trid, link: None, connecting: None, connect_at, asked: None, ask_at: now }
    }

    /// Takes completions off the queue pair. Whether the connection still stands.
    pub(super) fn poll(&self) -> bool {
        let qpair = self.link.as_ref().and_then(|link| link.qpair.as_ref());
        qpair.is_none_or(|qpair| qpair.poll(0).is_ok())
    }

    /// Why the path is lost, if it is: looks at the connection, takes events, asks for a sign of life.
    pub(super) fn why_lost(&mut self, keep_alive: Duration, now: Instant) -> Option<&'static str> {
        let link = self.link.as_ref()?;
        if link.controller.is_hung_up() {
            return Some("its target has ended");
        }
        if link.controller.poll_admin().is_err() {
            return Some("its connection is gone");
        }
        if !matches!(self.trid.transport, Transport::Tcp(_)) {
            return None;
        }
        match &self.asked {
            Some((answered, _)) if answered.load(Ordering::Relaxed) => self.asked = None,
            Some((_, at)) if now.saturating_duration_since(*at) > keep_alive => {
                return Some("its target does not answer");
            }
            Some(_) => {}
            None if now >= self.ask_at => match link.controller.keep_alive() {
                Ok(answered) => {
                    self.asked = Some((answered, now));
                    self.ask_at = now + keep_alive / 2;
                }
                Err(_) => return Some("it takes no command"),
            },
            None => {}
        }
        None
    }

    /// Lets the connection go. What is under way on it ends as aborted, before this returns.
    pub(super) fn lose(&mut self, why: &str, now: Instant) {
        tracing::warn!(path = %self.trid, why, "path lost");
        if let Some(link) = self.link.take() {
            // Otherwise the queue pair would be deleted by a command that nobody answers.
            link.controller.give_up();
        }
        self.asked = None;
        self.ask_at = now;
        self.connect_at = now + RECONNECT_INTERVAL;
    }

    /// Connects a lost path again, step by step. Whether it is back.
    pub(super) fn reconnect(
        &mut self,
        options: &NvmeTargetOptions,
        nsids: &[u32],
        depth: u32,
        now: Instant,
    ) -> bool {
        if self.link.is_some() {
            return false;
        }
        let Some(connecting) = self.connecting.take_if(|connecting| connecting.is_finished())
        else {
            if self.connecting.is_none() && now >= self.connect_at {
                let nqn = self.trid.subnqn.as_deref();
                let hostnqn = options.hostnqn.as_deref();
                self.connecting = Connecting::begin(&address(&self.trid), nqn, hostnqn).ok();
                self.connect_at = now + RECONNECT_INTERVAL;
            }
            return false;
        };
        let linked = connecting
            .finish()
            .map_err(|error| NvmeTargetError::Connect { path: self.trid.to_string(), error })
            .and_then(|controller| {
                let mut link = Link::of(controller, nsids);
                link.open_queue(&self.trid, depth)?;
                Ok(link)
            });
        match linked {
            Ok(link) => {
                tracing::warn!(path = %self.trid, "path is back");
                self.link = Some(link);
                self.ask_at = now;
            }
            Err(error) => {
                tracing::debug!(path = %self.trid, %error, "path still lost");
                self.connect_at = now + RECONNECT_INTERVAL;
            }
        }
        self.link.is_some()
    }
}

impl Link {
    /// Connects; with no `nsids` yet, takes all active ones.
    pub(super) fn connect(
        trid: &Trid,
        hostnqn: Option<&str>,
        nsids: &mut Vec<u32>,
    ) -> Result<Self, NvmeTargetError> {
        let path = || trid.to_string();
        let controller = Controller::connect(&address(trid), trid.subnqn.as_deref(), hostnqn)
            .map_err(|error| NvmeTargetError::Connect { path: path(), error })?;
        if nsids.is_empty() {
            *nsids = controller.namespaces().iter().map(|namespace| namespace.nsid).collect();
        }
        if nsids.is_empty() {
            return Err(NvmeTargetError::Empty { path: path() });
        }
        Ok(Self::of(controller, nsids))
    }

    fn of(controller: Controller, nsids: &[u32]) -> Self {
        let namespaces = nsids.iter().map(|&nsid| controller.namespace(nsid)).collect();
        Self { qpair: None, namespaces, controller }
    }

    /// What a command to `volume` needs; `None` where this path cannot take it.
    pub(super) fn usable(&self, volume: usize) -> Option<(&QueuePair, &Namespace)> {
        Some((self.qpair.as_ref()?, self.namespaces[volume].as_ref()?))
    }

    /// Makes the queue pair, as deep as the controller allows up to `depth`; what does
    /// not fit waits in SPDK's queue.
    pub(super) fn open_queue(&mut self, trid: &Trid, depth: u32) -> Result<(), NvmeTargetError> {
        let mut depth = depth.min(QUEUE_DEPTH_MAX);
        loop {
            match self.controller.queue_pair(depth) {
                Ok(qpair) => {
                    self.qpair = Some(qpair);
                    return Ok(());
                }
                Err(_) if depth > QUEUE_DEPTH_MIN => depth /= 2,
                Err(error) => {
                    return Err(NvmeTargetError::Connect { path: trid.to_string(), error });
                }
            }
        }
    }
}

fn address(trid: &Trid) -> Address {
    match &trid.transport {
        Transport::Tcp(address) => Address::Tcp(*address),
        Transport::VfioUser(dir) => Address::VfioUser(dir.clone()),
        Transport::Pcie(address) => Address::Pcie(address.clone()),
    }
}
