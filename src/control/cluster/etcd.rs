//! The store of a site of several movers: etcd.
//!
//! A thread of its own speaks to etcd ([`worker`]); the control thread asks it through a bounded
//! queue, and takes events from another. It keeps the lease alive whatever the control thread does,
//! until that one takes no events any more: then it stops, as a mover that does not listen is not
//! to count as alive for ever.
//!
//! Keys, below `/setline/SITE/`:
//!
//! | key | value | lasts |
//! | --- | --- | --- |
//! | `record` | the site's record ([`super::record`]) | for ever |
//! | `members/ID` | `{"name", "incarnation", "whole", "leaving"}` | as long as the mover's lease |
//! | `leader` | `{"mover", "incarnation"}` | as long as the leader's lease |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use tokio::sync::mpsc;

use super::{ClusterError, ClusterStore, Event, Lease, Me, Swap};
use crate::config::{Cluster, ClusterStoreKind};
use crate::proto::types::Epoch;

mod site;
mod worker;

/// Requests that may wait for the thread.
const REQUESTS_MAX: usize = 64;
/// Events that may wait for the control thread, which takes them every millisecond.
const EVENTS_MAX: usize = 1024;

/// What the control thread asks for.
#[derive(Debug)]
enum Request {
    Swap(Swap),
    Campaign(bool),
    Whole(Epoch),
    Leaving,
    Read(u64),
    Leave,
}

/// Until when the lease holds, shared without a lock: nanoseconds after `base`, 0 for none.
#[derive(Debug)]
struct LeaseClock {
    base: Instant,
    until_ns: AtomicU64,
}

impl LeaseClock {
    fn set(&self, until: Option<Instant>) {
        let ns = until.map_or(0, |until| until.duration_since(self.base).as_nanos() as u64);
        self.until_ns.store(ns, Ordering::Release);
    }

    fn get(&self) -> Option<Instant> {
        match self.until_ns.load(Ordering::Acquire) {
            0 => None,
            ns => Some(self.base + Duration::from_nanos(ns)),
        }
    }
}

/// The control thread's end.
#[derive(Debug)]
pub struct EtcdStore {
    requests: mpsc::Sender<Request>,
    events: Receiver<Event>,
    lease: Arc<LeaseClock>,
    thread: Option<JoinHandle<()>>,
    /// Ends when the thread has left.
    left: Receiver<()>,
    leave_max: Duration,
}

impl EtcdStore {
    /// Starts the thread. It takes part from then on: whether etcd answers is told by events.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(config: &Cluster, me: Me) -> std::io::Result<Self> {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let (told, events) = bounded(EVENTS_MAX);
        let (leaving, left) = bounded::<()>(0);
        let lease = Arc::new(LeaseClock { base: Instant::now(), until_ns: AtomicU64::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = worker::Worker::new(config, me, asked, told, Arc::clone(&lease));
        let thread = std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            runtime.block_on(worker.run());
            drop(leaving);
        })?;
        let leave_max = Duration::from_millis(2 * u64::from(config.request_ms_max));
        Ok(Self { requests, events, lease, thread: Some(thread), left, leave_max })
    }
}

impl ClusterStore for EtcdStore {
    fn kind(&self) -> ClusterStoreKind {
        ClusterStoreKind::Etcd
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn swap(&mut self, swap: Swap) -> Result<(), ClusterError> {
        self.requests.try_send(Request::Swap(swap)).map_err(|_| ClusterError::Busy)
    }

    fn campaign(&mut self, wanted: bool) {
        if self.requests.try_send(Request::Campaign(wanted)).is_err() {
            tracing::warn!(wanted, "too many requests to the cluster store are under way");
        }
    }

    fn tell_whole(&mut self, epoch: Epoch) {
        if self.requests.try_send(Request::Whole(epoch)).is_err() {
            // Others count this mover as not whole: they are only more careful.
            tracing::warn!(%epoch, "too many requests to the cluster store are under way");
        }
    }

    fn tell_leaving(&mut self) {
        if self.requests.try_send(Request::Leaving).is_err() {
            // Others notice that it is silent.
            tracing::warn!("too many requests to the cluster store are under way");
        }
    }

    fn read(&mut self, number: u64) -> Result<(), ClusterError> {
        self.requests.try_send(Request::Read(number)).map_err(|_| ClusterError::Busy)
    }

    fn lease(&self) -> Lease {
        self.lease.get().map_or(Lease::None, Lease::Until)
    }

    fn leave(mut self: Box<Self>) {
        if self.requests.try_send(Request::Leave).is_err() {
            tracing::warn!("the lease is left to run out");
            return;
        }
        // Nothing is ever sent: the end of the channel is the end of the thread's work.
        let _ = self.left.recv_timeout(self.leave_max);
        if self.left.is_empty() && self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}
