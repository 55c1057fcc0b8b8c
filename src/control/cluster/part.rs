//! A mover's part in its site's store: it says that it is alive, stands for the lead, and as leader
//! publishes the first record. What else is done with the record is not decided here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::embedded::{EmbeddedError, EmbeddedStore};
use super::{Alive, ClusterError, ClusterStore, Event, Known, Lease, Me, Member, SiteRecord, Swap};
use crate::config::{self, ClusterStoreKind, Mover, Role};
use crate::control::model::{ClusterInfo, ClusterRecord, EventLevel, ExcludedInfo};
use crate::proto::types::{MoverId, VolumeId};
use crate::runtime::plan::{FIRST_EPOCH, FIRST_MAP};

/// How often a file that is in use is tried again.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Why a mover cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The file.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// The thread that speaks to etcd.
    #[error("the cluster store's thread: {0}")]
    Thread(std::io::Error),
    /// Another build is needed.
    #[error("this program was built without etcd; build it with the feature \"etcd\"")]
    NoEtcd,
}

/// Something that people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// How much it matters.
    pub level: EventLevel,
    /// Its stable name.
    pub kind: &'static str,
    /// What happened.
    pub message: String,
}

/// A mover's part.
#[derive(Debug)]
pub struct Part {
    me: Me,
    store: Box<dyn ClusterStore>,
    known: Known,
    configured: SiteRecord,
    endpoints: Vec<String>,
    /// Since when the store does not answer, Unix milliseconds; from the start on.
    unavailable_since_ms: Option<u64>,
    /// The change that is under way.
    publishing: Option<u64>,
    tickets: u64,
}

/// What the configuration says of the site of `mover`.
#[must_use]
pub fn configured(mover: &Mover) -> SiteRecord {
    let members = mover.members_of(mover.mover.role);
    let id = |name: &str| members.iter().find(|m| m.name == name).map(|m| MoverId(m.id));
    let volumes = mover.groups.iter().flat_map(|group| &group.volumes);
    let owners = volumes.filter_map(|volume| {
        let owner = match mover.mover.role {
            Role::Primary => &volume.mover,
            Role::Secondary => &volume.target.mover,
        };
        Some((VolumeId(volume.id), id(owner)?))
    });
    SiteRecord {
        epoch: FIRST_EPOCH,
        map_version: FIRST_MAP.0,
        owners: owners.collect(),
        members: members
            .iter()
            .map(|m| (MoverId(m.id), Member { name: m.name.to_owned(), incarnation: None }))
            .collect(),
        excluded: BTreeMap::new(),
    }
}

impl Part {
    /// Begins to take part, in the life `incarnation` of `mover`. With etcd this waits for nothing;
    /// a file that a killed predecessor still has open is waited for, `limit` at most.
    ///
    /// # Errors
    /// [`PartError`].
    pub fn start(
        mover: &Mover,
        incarnation: u64,
        unix_ms: u64,
        limit: Duration,
    ) -> Result<Self, PartError> {
        let me = Me {
            site: mover.mover.site.clone(),
            mover: MoverId(mover.mover.id),
            alive: Alive { name: mover.mover.name.clone(), incarnation },
        };
        let configured = configured(mover);
        let store: Box<dyn ClusterStore> = match mover.cluster.store {
            ClusterStoreKind::Embedded => {
                let path = mover.mover.store.with_extension("cluster.redb");
                Box::new(open(&path, &me, &configured, limit)?)
            }
            ClusterStoreKind::Etcd => etcd(&mover.cluster, &me)?,
        };
        Ok(Self::with(store, me, configured, mover.cluster.endpoints.clone(), unix_ms))
    }

    fn with(
        mut store: Box<dyn ClusterStore>,
        me: Me,
        configured: SiteRecord,
        endpoints: Vec<String>,
        unix_ms: u64,
    ) -> Self {
        store.campaign(true);
        let unavailable_since_ms = Some(unix_ms);
        Self {
            me,
            store,
            known: Known::default(),
            configured,
            endpoints,
            unavailable_since_ms,
            publishing: None,
            tickets: 0,
        }
    }

    /// Takes what happened; never waits. What people are to know.
    pub fn turn(&mut self, unix_ms: u64) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(event) = self.store.next_event() {
            let before = (self.known.unavailable.is_some(), self.known.leader.clone());
            self.known.note(&event);
            told.extend(self.tell(&event, before, unix_ms));
        }
        self.publish();
        told
    }

    fn tell(
        &mut self,
        event: &Event,
        (was_away, leader): (bool, Option<super::Leader>),
        unix_ms: u64,
    ) -> Option<Told> {
        let told = |level, kind, message| Some(Told { level, kind, message });
        match event {
            Event::Available => {
                let since = self.unavailable_since_ms.take();
                let seconds = unix_ms.saturating_sub(since.unwrap_or(unix_ms)) / 1000;
                let message = format!("the cluster store answers again, after {seconds} s");
                if was_away { told(EventLevel::Info, "cluster-store", message) } else { None }
            }
            Event::Unavailable(why) => {
                self.unavailable_since_ms.get_or_insert(unix_ms);
                let message = format!("the cluster store does not answer: {why}");
                told(EventLevel::Warning, "cluster-store", message)
            }
            Event::BadRecord(_, why) => told(EventLevel::Error, "cluster-record", why.to_string()),
            Event::LeaseLost => {
                let message = "this mover's lease at the cluster store ran out".to_owned();
                told(EventLevel::Warning, "cluster-lease", message)
            }
            Event::Leader(now) if *now != leader => {
                let message = match now {
                    Some(leader) => format!("{} leads the site", self.name(leader.mover)),
                    None => "nobody leads the site".to_owned(),
                };
                told(EventLevel::Info, "cluster-leader", message)
            }
            Event::Swapped(ticket, result) if self.publishing == Some(*ticket) => {
                self.publishing = None;
                match result {
                    Ok(_) => {
                        let epoch = self.configured.epoch.0;
                        let message = format!("published the site's record of epoch {epoch}");
                        told(EventLevel::Info, "cluster-record", message)
                    }
                    // It is tried again as long as there is none.
                    Err(error) => {
                        tracing::info!(%error, "the first record was not published");
                        None
                    }
                }
            }
            Event::Record(..) | Event::Alive(_) | Event::Leader(_) | Event::Swapped(..) => None,
        }
    }

    /// As leader: the first record, when there is none.
    fn publish(&mut self) {
        let there = self.known.record.is_some() || self.known.bad.is_some();
        let away = !self.known.heard || self.known.unavailable.is_some();
        if there || away || self.publishing.is_some() || !self.leads() {
            return;
        }
        let mut record = self.configured.clone();
        for (id, member) in &mut record.members {
            member.incarnation = self.known.alive.get(id).map(|alive| alive.incarnation);
        }
        self.tickets += 1;
        let (ticket, expected) = (self.tickets, self.known.revision);
        match self.store.swap(Swap { ticket, expected, record, as_leader: true }) {
            Ok(()) => self.publishing = Some(ticket),
            Err(ClusterError::Busy) => {}
            Err(error) => tracing::warn!(%error, "the first record cannot be published"),
        }
    }

    /// Whether this mover leads its site now.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.known.leads(&self.me, self.store.lease(), Instant::now())
    }

    /// What is known of the store.
    #[must_use]
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// The store, for changes of the record.
    pub fn store(&mut self) -> &mut dyn ClusterStore {
        &mut *self.store
    }

    /// What is not as it should be.
    #[must_use]
    pub fn fault(&self, unix_ms: u64) -> Option<String> {
        if let Some(why) = &self.known.unavailable {
            let since = self.unavailable_since_ms.unwrap_or(unix_ms);
            let seconds = unix_ms.saturating_sub(since) / 1000;
            return Some(format!("the cluster store has not answered for {seconds} s: {why}"));
        }
        self.known.bad.as_ref().map(ToString::to_string)
    }

    /// For status.
    #[must_use]
    pub fn info(&self) -> ClusterInfo {
        let known = &self.known;
        let record = known.record.as_ref().map(|record| ClusterRecord {
            revision: known.revision.0,
            epoch: record.epoch.0,
            map_version: record.map_version,
            members: record.members.values().map(|member| member.name.clone()).collect(),
            excluded: record
                .excluded
                .iter()
                .map(|(id, exclusion)| ExcludedInfo {
                    mover: self.name(*id),
                    since_unix_ms: exclusion.since_unix_ms,
                    reason: exclusion.reason.clone(),
                })
                .collect(),
        });
        let bad = known.bad.as_ref().map(ToString::to_string);
        ClusterInfo {
            store: match self.store.kind() {
                ClusterStoreKind::Embedded => "embedded",
                ClusterStoreKind::Etcd => "etcd",
            }
            .to_owned(),
            endpoints: self.endpoints.clone(),
            available: known.heard && known.unavailable.is_none(),
            unavailable_since_unix_ms: self.unavailable_since_ms,
            reason: known.unavailable.clone().or(bad),
            leader: known.leader.as_ref().map(|leader| self.name(leader.mover)),
            leads: self.leads(),
            lease_remaining_ms: match self.store.lease() {
                Lease::Endless => None,
                Lease::None => Some(0),
                Lease::Until(end) => {
                    Some(end.saturating_duration_since(Instant::now()).as_millis() as u64)
                }
            },
            alive: known.alive.values().map(|alive| alive.name.clone()).collect(),
            record,
        }
    }

    /// The mover has ended in order: it is not to be waited for. To drop a part instead lets the
    /// lease run out.
    pub fn leave(self) {
        self.store.leave();
    }

    fn name(&self, id: MoverId) -> String {
        let configured = self.configured.members.get(&id).map(|member| member.name.clone());
        configured.unwrap_or_else(|| id.to_string())
    }
}

fn open(
    path: &Path,
    me: &Me,
    configured: &SiteRecord,
    limit: Duration,
) -> Result<EmbeddedStore, EmbeddedError> {
    let begun = Instant::now();
    loop {
        match EmbeddedStore::open(path, me, configured) {
            Err(EmbeddedError::InUse { .. }) if begun.elapsed() < limit => {
                std::thread::sleep(TRY_EVERY);
            }
            result => return result,
        }
    }
}

#[cfg(feature = "etcd")]
fn etcd(config: &config::Cluster, me: &Me) -> Result<Box<dyn ClusterStore>, PartError> {
    let store = super::etcd::EtcdStore::start(config, me.clone()).map_err(PartError::Thread)?;
    Ok(Box::new(store))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_config: &config::Cluster, _me: &Me) -> Result<Box<dyn ClusterStore>, PartError> {
    Err(PartError::NoEtcd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::cluster::{Leader, Revision};
    use crate::proto::types::Epoch;
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// A store that is told what to say, and notes what it is asked.
    #[derive(Debug, Default, Clone)]
    struct Script {
        events: Arc<Mutex<VecDeque<Event>>>,
        asked: Arc<Mutex<Vec<Swap>>>,
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
        fn lease(&self) -> Lease {
            Lease::Until(Instant::now() + Duration::from_secs(60))
        }
        fn leave(self: Box<Self>) {}
    }

    fn part(script: &Script) -> Part {
        let member = |id| (MoverId(id), Member { name: format!("p{id}"), incarnation: None });
        let configured = SiteRecord {
            epoch: Epoch(1),
            members: (1..=2).map(member).collect(),
            map_version: 1,
            owners: BTreeMap::new(),
            excluded: BTreeMap::new(),
        };
        let alive = Alive { name: "p1".into(), incarnation: 4 };
        let me = Me { site: "here".into(), mover: MoverId(1), alive };
        Part::with(Box::new(script.clone()), me, configured, vec!["http://e:1".into()], 1_000)
    }

    fn leader(mover: u16, incarnation: u64) -> Event {
        Event::Leader(Some(Leader { mover: MoverId(mover), incarnation, term: 5 }))
    }

    fn happens(script: &Script, events: impl IntoIterator<Item = Event>) {
        script.events.lock().unwrap().extend(events);
    }

    #[test]
    fn the_leader_publishes_the_first_record_with_the_lives_that_it_knows() {
        let script = Script::default();
        let mut part = part(&script);
        let alive = BTreeMap::from([(MoverId(1), Alive { name: "p1".into(), incarnation: 4 })]);
        happens(&script, [Event::Record(Revision(0), None), Event::Alive(alive), Event::Available]);
        part.turn(1_000);
        assert!(script.asked.lock().unwrap().is_empty(), "nobody leads yet");
        happens(&script, [leader(1, 3)]);
        part.turn(1_000);
        assert!(script.asked.lock().unwrap().is_empty(), "that was a former life");
        happens(&script, [leader(1, 4)]);
        assert_eq!(part.turn(1_000)[0].message, "p1 leads the site");
        part.turn(1_000);
        let asked = script.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "once");
        assert!(asked[0].as_leader && asked[0].expected == Revision(0));
        let lives: Vec<_> = asked[0].record.members.values().map(|m| m.incarnation).collect();
        assert_eq!(lives, [Some(4), None]);
        // Refused: again, as long as there is none.
        happens(&script, [Event::Swapped(1, Err(ClusterError::NotLeader))]);
        part.turn(1_000);
        assert_eq!(script.asked.lock().unwrap().len(), 2);
        let record = asked[0].record.clone();
        let done = Event::Swapped(2, Ok(Revision(9)));
        happens(&script, [Event::Record(Revision(9), Some(record)), done]);
        assert_eq!(part.turn(1_000)[0].message, "published the site's record of epoch 1");
        part.turn(1_000);
        assert_eq!(script.asked.lock().unwrap().len(), 2);
        let info = part.info();
        assert_eq!(info.record.map(|r| (r.revision, r.epoch)), Some((9, 1)));
        assert_eq!((info.leader.as_deref(), info.leads), (Some("p1"), true));
        assert!(info.lease_remaining_ms > Some(0) && info.available);
    }

    #[test]
    fn a_store_that_does_not_answer_is_told_once_and_since_when() {
        let script = Script::default();
        let mut part = part(&script);
        assert!(!part.info().available && part.fault(5_000).is_none(), "not known yet");
        happens(&script, [Event::Available]);
        assert!(part.turn(2_000).is_empty());
        assert!(part.info().available && part.info().unavailable_since_unix_ms.is_none());
        happens(&script, [Event::Unavailable("gone".into())]);
        assert_eq!(part.turn(7_000)[0].kind, "cluster-store");
        assert_eq!(part.info().unavailable_since_unix_ms, Some(7_000));
        let fault = part.fault(19_000).unwrap();
        assert_eq!(fault, "the cluster store has not answered for 12 s: gone");
        happens(&script, [Event::Available]);
        assert!(part.turn(20_000)[0].message.contains("after 13 s"));
        assert!(part.fault(20_000).is_none());
    }

    #[test]
    fn a_record_that_is_not_understood_is_not_written_over() {
        let script = Script::default();
        let mut part = part(&script);
        let why = crate::control::cluster::RecordError::Format { found: "2".into() };
        happens(&script, [Event::BadRecord(Revision(3), why), leader(1, 4), Event::Available]);
        let told = part.turn(1_000);
        assert_eq!((told[0].level, told[0].kind), (EventLevel::Error, "cluster-record"));
        assert!(script.asked.lock().unwrap().is_empty());
        assert!(part.fault(1_000).unwrap().contains("format 2"));
    }
}
