//! Where the movers of a site agree: who is a member, who is responsible, who leads (P4).
//!
//! A [`ClusterStore`] keeps one record per site ([`SiteRecord`]), changed by compare-and-swap; a key
//! per mover that lasts as long as the mover's lease; and the leader's key. Two kinds: [`embedded`],
//! a file, and [`etcd`]. Consensus is etcd's work, never ours.
//!
//! The control thread never waits for it: it asks with calls that return at once and takes events.
//! What it may rely on is said with the time until which it holds: a lease counts from the moment its
//! keep-alive was *sent*, so it ends here before it ends in the store. (Both clocks must run equally
//! fast, and this machine's must go on while it is suspended, which Linux' monotonic clock does not
//! do: a suspended mover is kept from writing by fencing alone.)

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::config::ClusterStoreKind;
use crate::proto::types::{Epoch, MoverId};

pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod part;
pub mod propose;
pub mod record;
#[cfg(test)]
pub(in crate::control) mod script;

pub use record::{Exclusion, Member, RecordError, SiteRecord};

/// A version of the record in the store; 0: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A mover that says that it is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// Its name.
    pub name: String,
    /// Its life: the count of its starts.
    pub incarnation: u64,
    /// The latest epoch in which it has heard every member, is up to date with its volumes, and has all
    /// the copies that it should have elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<u32>,
    /// It has ended in order and leaves: nothing of it is under way any more, and nobody need wait to
    /// find out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

/// Who leads a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The mover.
    pub mover: MoverId,
    /// Its life.
    pub incarnation: u64,
    /// Number of its leadership; a later leader's is larger.
    pub term: u64,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// The site.
    pub site: String,
    /// The mover.
    pub mover: MoverId,
    /// What others see while it is alive.
    pub alive: Alive,
}

/// How long a mover may take it that the store counts it as alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// It has none.
    None,
    /// Until then, and not a moment longer unless it is renewed before.
    Until(Instant),
    /// For ever: nobody else could decide otherwise.
    Endless,
}

impl Lease {
    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(self, now: Instant) -> bool {
        match self {
            Self::None => false,
            Self::Until(end) => now < end,
            Self::Endless => true,
        }
    }
}

/// Why a change was not made, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The record is another by now; it comes as an event.
    #[error("the site's record was changed by another mover meanwhile")]
    Conflict,
    /// The store does not answer. Nothing was changed.
    #[error("the cluster store does not answer: {0}")]
    Unavailable(String),
    /// The store did not answer to the change itself: it may have been made. The record that is
    /// read when the store answers again tells.
    #[error("whether the change was made is not known: {0}")]
    Unknown(String),
    /// This mover does not lead, or its lease ran out.
    #[error("this mover does not lead the site")]
    NotLeader,
    /// The membership of this site never changes.
    #[error("the site's membership is fixed: with several movers only etcd can change it")]
    Fixed,
    /// Too many requests are under way.
    #[error("too many requests to the cluster store are under way")]
    Busy,
}

/// A change of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Comes back with the outcome.
    pub ticket: u64,
    /// Only if the record is still this one.
    pub expected: Revision,
    /// What it becomes.
    pub record: SiteRecord,
    /// Only if this mover still leads.
    pub as_leader: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The store answers, and all that is known of it is as of now.
    Available,
    /// It does not answer; it is tried again all the time.
    Unavailable(String),
    /// The record was read or has changed; none: there is none yet.
    Record(Revision, Option<SiteRecord>),
    /// There is one that cannot be understood.
    BadRecord(Revision, RecordError),
    /// The movers that are alive.
    Alive(BTreeMap<MoverId, Alive>),
    /// The leader.
    Leader(Option<Leader>),
    /// This mover's lease ran out, by its own clock or by the store's word. It tries to get a new
    /// one. What depended on the old one is over.
    LeaseLost,
    /// What became of a [`Swap`].
    Swapped(u64, Result<Revision, ClusterError>),
    /// The record told last is at least as new as when this was asked for ([`ClusterStore::read`]).
    Read(u64),
}

/// A site's store. Used by the control thread; no call waits for the network.
pub trait ClusterStore: Send + std::fmt::Debug {
    /// What kind it is.
    fn kind(&self) -> ClusterStoreKind;
    /// The next thing that happened.
    fn next_event(&mut self) -> Option<Event>;
    /// Asks for a change; [`Event::Swapped`] tells what became of it.
    ///
    /// # Errors
    /// [`ClusterError::Busy`], [`ClusterError::Fixed`]; then no event comes.
    fn swap(&mut self, swap: Swap) -> Result<(), ClusterError>;
    /// Whether this mover wants to lead. Who wants to and leads goes on as long as its lease; who
    /// does not want to any more resigns.
    fn campaign(&mut self, wanted: bool);
    /// Tells the others, as long as the lease lasts, that this mover is whole in `epoch`
    /// ([`Alive::whole`]).
    fn tell_whole(&mut self, epoch: Epoch);
    /// Tells the others that this life is over ([`Alive::leaving`]).
    fn tell_leaving(&mut self);
    /// Asks for the record as it is now or later: [`Event::Read`] comes when it has been told. Numbers
    /// grow, and one that comes answers all smaller ones. While the store does not answer, nothing
    /// comes.
    ///
    /// # Errors
    /// [`ClusterError::Busy`]; then no event comes.
    fn read(&mut self, number: u64) -> Result<(), ClusterError>;
    /// How long this mover counts as alive, without asking anybody.
    fn lease(&self) -> Lease;
    /// Leaves in order: resigns and gives the lease back. Waits at most about as long as one request
    /// may take. To drop a store instead is what a crash does: the lease runs out.
    fn leave(self: Box<Self>);
}

/// What is known of a store, from its events.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Why it does not answer; none while it does.
    pub unavailable: Option<String>,
    /// It has answered at least once.
    pub heard: bool,
    /// The record's version.
    pub revision: Revision,
    /// The record.
    pub record: Option<SiteRecord>,
    /// Why the record that is there cannot be used.
    pub bad: Option<RecordError>,
    /// The movers that are alive.
    pub alive: BTreeMap<MoverId, Alive>,
    /// The leader.
    pub leader: Option<Leader>,
    /// The latest [`ClusterStore::read`] that was answered.
    pub read: u64,
}

impl Known {
    /// Notes what happened.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Available => {
                self.unavailable = None;
                self.heard = true;
            }
            Event::Unavailable(why) => self.unavailable = Some(why.clone()),
            Event::Record(revision, record) => {
                self.revision = *revision;
                self.record.clone_from(record);
                self.bad = None;
            }
            Event::BadRecord(revision, why) => {
                self.revision = *revision;
                self.record = None;
                self.bad = Some(why.clone());
            }
            Event::Alive(alive) => self.alive.clone_from(alive),
            Event::Leader(leader) => self.leader.clone_from(leader),
            Event::Read(number) => self.read = self.read.max(*number),
            Event::LeaseLost | Event::Swapped(..) => {}
        }
    }

    /// Whether the life `me` leads at `now`, with `lease`.
    #[must_use]
    pub fn leads(&self, me: &Me, lease: Lease, now: Instant) -> bool {
        let mine = |leader: &Leader| {
            leader.mover == me.mover && leader.incarnation == me.alive.incarnation
        };
        lease.holds(now) && self.leader.as_ref().is_some_and(mine)
    }
}
