//! A mover's part in its site's store: it says that it is alive, stands for the lead, and where the
//! membership is fixed publishes the record as leader. Changes of it are in [`super::propose`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use super::embedded::{EmbeddedError, EmbeddedStore};
use super::{Alive, ClusterError, ClusterStore, Event, Known, Lease, Me, Member, SiteRecord, Swap};
use crate::config::{self, ClusterStoreKind, Mover, Role};
use crate::control::model::{ClusterInfo, ClusterRecord, EventLevel, ExcludedInfo};
use crate::proto::types::{GroupId, MoverId, ShardId, VolumeId};
use crate::runtime::plan::{FIRST_EPOCH, FIRST_MAP, Topology, fixed_because};

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
    pub(super) me: Me,
    pub(super) store: Box<dyn ClusterStore>,
    pub(super) known: Known,
    pub(super) configured: SiteRecord,
    /// Groups, and how many copies each should have of an update.
    pub(super) copies: Vec<(GroupId, u8)>,
    /// The mover that takes everything over (F5).
    pub(super) spare: Option<MoverId>,
    endpoints: Vec<String>,
    /// Since when the store does not answer, Unix milliseconds; from the start on.
    unavailable_since_ms: Option<u64>,
    /// The change that is under way, and what it is in words.
    pub(super) changing: Option<(u64, String)>,
    tickets: u64,
    /// The latest read of the record that is wanted, and the latest that the store was asked for.
    reads: (u64, u64),
    /// Why the membership never changes; none where it follows the record.
    fixed: Option<String>,
    /// What each life said last of the epoch in which it is whole: also of those that fell since.
    pub(super) whole: BTreeMap<(MoverId, u64), u32>,
    /// Lives that said that they are over: also those whose lease has ended since.
    pub(super) left: BTreeSet<(MoverId, u64)>,
}

/// What the configuration says of the site of `mover`.
#[must_use]
pub fn configured(mover: &Mover) -> SiteRecord {
    let (role, topology) = (mover.mover.role, Topology::new(mover));
    let volumes = mover.groups.iter().flat_map(|group| &group.volumes);
    let owners = volumes.filter_map(|volume| {
        let owner = match role {
            Role::Primary => topology.owner_of(volume),
            Role::Secondary => topology.target_of(volume),
        };
        Some((VolumeId(volume.id), owner?))
    });
    let me = ShardId { mover: MoverId(mover.mover.id), poller: 0 };
    let member =
        |name: &str| Member { name: name.to_owned(), incarnation: None, since: FIRST_EPOCH.0 };
    let coordinator = match role {
        Role::Primary => topology.primary_coordinator,
        Role::Secondary => topology.secondary_coordinator.unwrap_or(me),
    };
    let members = mover.founders_of(role).iter().map(|m| (MoverId(m.id), member(m.name))).collect();
    SiteRecord::first(FIRST_EPOCH, FIRST_MAP.0, coordinator, members, owners.collect())
}

/// The mover that takes everything over which another of the site of `mover` had.
#[must_use]
pub fn spare(mover: &Mover) -> Option<MoverId> {
    let name = mover.cluster.spare.as_deref()?;
    let members = mover.members_of(mover.mover.role);
    members.iter().find(|member| member.name == name).map(|member| MoverId(member.id))
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
            alive: Alive {
                name: mover.mover.name.clone(),
                incarnation,
                whole: None,
                leaving: false,
            },
        };
        let configured = configured(mover);
        let store: Box<dyn ClusterStore> = match mover.cluster.store {
            ClusterStoreKind::Embedded => {
                let path = mover.mover.store.with_extension("cluster.redb");
                Box::new(open(&path, &me, &configured, limit)?)
            }
            ClusterStoreKind::Etcd => etcd(&mover.cluster, &me)?,
        };
        let fixed = fixed_because(mover);
        let mut part =
            Self::with(store, me, configured, mover.cluster.endpoints.clone(), fixed, unix_ms);
        let copies = mover.groups.iter().map(|group| (GroupId(group.id), group.copies));
        part.copies = copies.collect();
        part.spare = spare(mover);
        Ok(part)
    }

    pub(super) fn with(
        mut store: Box<dyn ClusterStore>,
        me: Me,
        configured: SiteRecord,
        endpoints: Vec<String>,
        fixed: Option<String>,
        unix_ms: u64,
    ) -> Self {
        store.campaign(true);
        let unavailable_since_ms = Some(unix_ms);
        Self {
            me,
            store,
            known: Known::default(),
            configured,
            copies: Vec::new(),
            spare: None,
            endpoints,
            unavailable_since_ms,
            changing: None,
            tickets: 0,
            reads: (0, 0),
            fixed,
            whole: BTreeMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// Takes what happened; never waits. What people are to know.
    pub fn turn(&mut self, unix_ms: u64) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some(event) = self.store.next_event() {
            let before = (self.known.unavailable.is_some(), self.known.leader.clone());
            self.known.note(&event);
            if let Event::Alive(alive) = &event {
                let whole =
                    alive.iter().filter_map(|(id, a)| Some(((*id, a.incarnation), a.whole?)));
                self.whole.extend(whole);
                let left = alive.iter().filter(|(_, alive)| alive.leaving);
                self.left.extend(left.map(|(id, alive)| (*id, alive.incarnation)));
            }
            told.extend(self.tell(&event, before, unix_ms));
        }
        if self.fixed.is_some() {
            self.publish();
        }
        if self.reads.0 > self.reads.1 && self.store.read(self.reads.0).is_ok() {
            self.reads.1 = self.reads.0;
        }
        told
    }

    /// Wants the record as it is now or later. When [`Known::read`] is at least the number returned, the
    /// record that is known is.
    pub fn read_anew(&mut self) -> u64 {
        // One that is wanted and not asked for yet will do.
        if self.reads.0 == self.reads.1 {
            self.reads.0 += 1;
        }
        self.reads.0
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
            Event::Swapped(ticket, result)
                if self.changing.as_ref().is_some_and(|(under_way, _)| under_way == ticket) =>
            {
                let (_, what) = self.changing.take()?;
                match result {
                    Ok(_) => told(EventLevel::Info, "cluster-record", what),
                    // As long as it is wanted, it is tried again.
                    Err(error) => {
                        tracing::info!(%error, "not done: {what}");
                        None
                    }
                }
            }
            Event::Record(..)
            | Event::Alive(_)
            | Event::Leader(_)
            | Event::Swapped(..)
            | Event::Read(_) => None,
        }
    }

    /// As leader: the first record, when there is none.
    fn publish(&mut self) {
        let there = self.known.record.is_some() || self.known.bad.is_some();
        let away = !self.known.heard || self.known.unavailable.is_some();
        if there || away || self.changing.is_some() || !self.leads() {
            return;
        }
        let mut record = self.configured.clone();
        for (id, member) in &mut record.members {
            member.incarnation = self.known.alive.get(id).map(|alive| alive.incarnation);
        }
        let what = format!("published the site's record of epoch {}", record.epoch.0);
        self.change(record, true, what);
    }

    /// Asks the store for `record` instead of the present one; `what` says what that does.
    pub(super) fn change(&mut self, record: SiteRecord, as_leader: bool, what: String) {
        self.tickets += 1;
        let (ticket, expected) = (self.tickets, self.known.revision);
        match self.store.swap(Swap { ticket, expected, record, as_leader }) {
            Ok(()) => self.changing = Some((ticket, what)),
            Err(ClusterError::Busy) => {}
            Err(error) => tracing::warn!(%error, "cannot be done: {what}"),
        }
    }

    /// Why the membership never changes; none where it follows the record.
    #[must_use]
    pub fn fixed(&self) -> Option<&str> {
        self.fixed.as_deref()
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
            since: record.members.values().map(|member| member.since).collect(),
            failures: record.agreed().failures(),
            lost: record.lost.iter().map(|group| group.0).collect(),
            excluded: record
                .excluded
                .iter()
                .map(|(id, exclusion)| ExcludedInfo {
                    mover: self.name(*id),
                    epoch: exclusion.epoch,
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
            fixed: self.fixed.clone(),
            whole: self.is_whole(),
            record,
        }
    }

    /// The mover's pollers have ended in order: the others need not wait to find out. To be followed by
    /// [`Self::leave`].
    pub fn tell_leaving(&mut self) {
        self.store.tell_leaving();
    }

    /// The mover has ended in order: it is not to be waited for. To drop a part instead lets the
    /// lease run out.
    pub fn leave(self) {
        self.store.leave();
    }

    pub(super) fn name(&self, id: MoverId) -> String {
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
    use crate::control::cluster::Revision;
    use crate::control::cluster::script::{Script, alive, happens, leader, part};

    #[test]
    fn the_leader_publishes_the_first_record_with_the_lives_that_it_knows() {
        let script = Script::default();
        let mut part = part(&script, Some("for the test"));
        let there = Event::Alive(alive(&[(1, 4, None)]));
        happens(&script, [Event::Record(Revision(0), None), there, Event::Available]);
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
        assert_eq!(lives, [Some(4), None, None]);
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
        let mut part = part(&script, Some("for the test"));
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
        let mut part = part(&script, Some("for the test"));
        let why = crate::control::cluster::RecordError::Format { found: "9".into() };
        happens(&script, [Event::BadRecord(Revision(3), why), leader(1, 4), Event::Available]);
        let told = part.turn(1_000);
        assert_eq!((told[0].level, told[0].kind), (EventLevel::Error, "cluster-record"));
        assert!(script.asked.lock().unwrap().is_empty());
        assert!(part.fault(1_000).unwrap().contains("format 9"));
    }
}
