//! A cluster store for tests: it is told what to say, and notes what it is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::part::Part;
use super::{
    Alive, ClusterError, ClusterStore, Event, Leader, Lease, Me, Member, SiteRecord, Swap,
};
use crate::config::ClusterStoreKind;
use crate::proto::types::{Epoch, MoverId, ShardId, VolumeId};

#[derive(Debug, Default, Clone)]
pub(in crate::control) struct Script {
    pub(in crate::control) events: Arc<Mutex<VecDeque<Event>>>,
    pub(in crate::control) asked: Arc<Mutex<Vec<Swap>>>,
    pub(in crate::control) whole: Arc<Mutex<Vec<Epoch>>>,
    /// Reads are not answered.
    pub(in crate::control) deaf: Arc<AtomicBool>,
}

impl ClusterStore for Script {
    fn kind(&self) -> ClusterStoreKind {
        ClusterStoreKind::Etcd
    }
    fn next_event(&mut self) -> Option<Event> {
        self.events.lock().unwrap().pop_front()
    }
    fn swap(&mut self, swap: Swap) -> Result<(), ClusterError> {
        self.asked.lock().unwrap().push(swap);
        Ok(())
    }
    fn campaign(&mut self, _wanted: bool) {}
    fn tell_whole(&mut self, epoch: Epoch) {
        self.whole.lock().unwrap().push(epoch);
    }
    fn tell_leaving(&mut self) {}
    fn read(&mut self, number: u64) -> Result<(), ClusterError> {
        if self.deaf.load(Ordering::Relaxed) {
            return Err(ClusterError::Busy);
        }
        self.events.lock().unwrap().push_back(Event::Read(number));
        Ok(())
    }
    fn lease(&self) -> Lease {
        Lease::Until(Instant::now() + Duration::from_secs(60))
    }
    fn leave(self: Box<Self>) {}
}

/// The site of p1 to p3, of which p1 coordinates and has volume 1, p2 volume 2.
pub(in crate::control) fn configured() -> SiteRecord {
    let member = |id| (MoverId(id), Member { name: format!("p{id}"), incarnation: None, since: 1 });
    let owners = [(1, 1), (2, 2)].map(|(volume, mover)| (VolumeId(volume), ShardId::new(mover, 0)));
    let members = (1..=3).map(member).collect();
    SiteRecord::first(Epoch(1), 1, ShardId::new(1, 0), members, BTreeMap::from(owners))
}

/// The part of p1 in its fourth life.
pub(in crate::control) fn part(script: &Script, fixed: Option<&str>) -> Part {
    let alive = Alive { name: "p1".into(), incarnation: 4, whole: None, leaving: false };
    let me = Me { site: "here".into(), mover: MoverId(1), alive };
    let (endpoints, fixed) = (vec!["http://e:1".into()], fixed.map(str::to_owned));
    Part::with(Box::new(script.clone()), me, configured(), endpoints, fixed, 1_000)
}

/// Movers that are alive: number, life, and the epoch in which it is whole.
pub(in crate::control) fn alive(movers: &[(u16, u64, Option<u32>)]) -> BTreeMap<MoverId, Alive> {
    let one = |(id, incarnation, whole): &(u16, u64, Option<u32>)| {
        let (name, incarnation, whole) = (format!("p{id}"), *incarnation, *whole);
        (MoverId(*id), Alive { name, incarnation, whole, leaving: false })
    };
    movers.iter().map(one).collect()
}

pub(in crate::control) fn leader(mover: u16, incarnation: u64) -> Event {
    Event::Leader(Some(Leader { mover: MoverId(mover), incarnation, term: 5 }))
}

pub(in crate::control) fn happens(script: &Script, events: impl IntoIterator<Item = Event>) {
    script.events.lock().unwrap().extend(events);
}
