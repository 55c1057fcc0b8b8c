//! The store of a site that needs no agreement: one mover, or a membership that never changes.
//!
//! A file of the mover's own, beside its store. It always answers, its lease never ends, and the
//! leader is the site's lowest-numbered mover by configuration. With several movers it only shows
//! what the configuration says: nobody could change it for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};

use super::{
    ClusterError, ClusterStore, Event, Leader, Lease, Me, RecordError, Revision, SiteRecord, Swap,
};
use crate::config::ClusterStoreKind;
use crate::proto::types::{Epoch, MoverId};

/// `record` → (version, document).
const RECORD: TableDefinition<'_, &str, (u64, &str)> = TableDefinition::new("cluster");
const KEY: &str = "record";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Reading or writing failed.
    #[error("cluster store {path}: {error}")]
    Database {
        /// The file.
        path: String,
        /// What the database says.
        error: Box<redb::Error>,
    },
    /// Another process has it open.
    #[error("cluster store {path} is in use by another process: is this mover running already?")]
    InUse {
        /// The file.
        path: String,
    },
    /// What it holds is no record.
    #[error("cluster store {path}: {error}")]
    Record {
        /// The file.
        path: String,
        /// Why.
        error: RecordError,
    },
}

/// The file, open.
pub struct EmbeddedStore {
    db: Database,
    path: String,
    revision: Revision,
    /// Several movers have files of their own.
    fixed: bool,
    events: VecDeque<Event>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens or makes the file at `path` for `me`. `configured` is what the configuration says of
    /// the site: with several movers, that is the record.
    ///
    /// # Errors
    /// [`EmbeddedError`].
    pub fn open(path: &Path, me: &Me, configured: &SiteRecord) -> Result<Self, EmbeddedError> {
        let named = path.display().to_string();
        let failed = |error: redb::Error| EmbeddedError::Database {
            path: named.clone(),
            error: Box::new(error),
        };
        let db = Database::builder().set_cache_size(1 << 20).create(path);
        let db = db.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                EmbeddedError::InUse { path: named.clone() }
            }
            other => failed(other.into()),
        })?;
        let found = read(&db).map_err(failed)?;
        let (revision, mut record) = match found {
            None => (Revision(0), None),
            Some((revision, text)) => {
                let record = SiteRecord::from_json(text.as_bytes());
                let record =
                    record.map_err(|error| EmbeddedError::Record { path: named.clone(), error })?;
                (Revision(revision), Some(record))
            }
        };
        let fixed = configured.members.len() > 1;
        let mut store = Self { db, path: named.clone(), revision, fixed, events: VecDeque::new() };
        if fixed && record.as_ref() != Some(configured) {
            store
                .write(configured)
                .map_err(|error| EmbeddedError::Database { path: named, error: Box::new(error) })?;
            record = Some(configured.clone());
        }
        let lowest = configured.members.keys().next().copied().unwrap_or(me.mover);
        let leader = (lowest, configured.members.get(&lowest).and_then(|m| m.incarnation));
        store.events.extend([
            Event::Record(store.revision, record),
            Event::Alive(BTreeMap::from([(me.mover, me.alive.clone())])),
            Event::Leader(Some(leader_of(leader, me))),
            Event::Available,
        ]);
        Ok(store)
    }

    fn write(&mut self, record: &SiteRecord) -> Result<(), redb::Error> {
        let next = Revision(self.revision.0 + 1);
        let txn = self.db.begin_write()?;
        txn.open_table(RECORD)?.insert(KEY, (next.0, record.to_json().as_str()))?;
        txn.commit()?;
        self.revision = next;
        Ok(())
    }
}

fn leader_of((mover, incarnation): (MoverId, Option<u64>), me: &Me) -> Leader {
    let mine = mover == me.mover;
    let incarnation = if mine { me.alive.incarnation } else { incarnation.unwrap_or(0) };
    Leader { mover, incarnation, term: 1 }
}

fn read(db: &Database) -> Result<Option<(u64, String)>, redb::Error> {
    let txn = db.begin_read()?;
    let table = match txn.open_table(RECORD) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(table.get(KEY)?.map(|row| {
        let (revision, text) = row.value();
        (revision, text.to_owned())
    }))
}

impl ClusterStore for EmbeddedStore {
    fn kind(&self) -> ClusterStoreKind {
        ClusterStoreKind::Embedded
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn swap(&mut self, swap: Swap) -> Result<(), ClusterError> {
        if self.fixed {
            return Err(ClusterError::Fixed);
        }
        let result = if swap.expected != self.revision {
            Err(ClusterError::Conflict)
        } else {
            // The write is durable or not made: a transaction.
            self.write(&swap.record).map_err(|error| ClusterError::Unavailable(error.to_string()))
        };
        if result.is_ok() {
            self.events.push_back(Event::Record(self.revision, Some(swap.record)));
        }
        self.events.push_back(Event::Swapped(swap.ticket, result.map(|()| self.revision)));
        Ok(())
    }

    fn tell_whole(&mut self, _epoch: Epoch) {}

    fn tell_leaving(&mut self) {}

    fn campaign(&mut self, _wanted: bool) {}

    fn read(&mut self, number: u64) -> Result<(), ClusterError> {
        self.events.push_back(Event::Read(number));
        Ok(())
    }

    fn lease(&self) -> Lease {
        Lease::Endless
    }

    fn leave(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::super::{Alive, Known, Member};
    use super::*;
    use crate::proto::types::{ShardId, VolumeId};
    use std::time::Instant;

    fn me(incarnation: u64) -> Me {
        let alive = Alive { name: "p1".into(), incarnation, whole: None, leaving: false };
        Me { site: "here".into(), mover: MoverId(1), alive }
    }

    fn record(movers: u16, epoch: u32) -> SiteRecord {
        let member =
            |id| (MoverId(id), Member { name: format!("p{id}"), incarnation: None, since: 1 });
        let (shard, members) = (ShardId::new(1, 0), (1..=movers).map(member).collect());
        let owners = BTreeMap::from([(VolumeId(1), shard)]);
        SiteRecord::first(Epoch(epoch), 1, shard, members, owners)
    }

    fn known(store: &mut EmbeddedStore) -> Known {
        let mut known = Known::default();
        while let Some(event) = store.next_event() {
            known.note(&event);
        }
        known
    }

    #[test]
    fn a_site_of_one_mover_changes_its_record_by_compare_and_swap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.redb");
        let mut store = EmbeddedStore::open(&path, &me(1), &record(1, 1)).unwrap();
        let seen = known(&mut store);
        assert!(seen.heard && seen.record.is_none() && seen.revision == Revision(0));
        assert!(seen.leads(&me(1), store.lease(), Instant::now()));
        assert!(!seen.leads(&me(2), store.lease(), Instant::now()), "another life");

        let swap = |ticket, expected, epoch| Swap {
            ticket,
            expected: Revision(expected),
            record: record(1, epoch),
            as_leader: true,
        };
        store.swap(swap(7, 0, 1)).unwrap();
        assert_eq!(store.next_event(), Some(Event::Record(Revision(1), Some(record(1, 1)))));
        assert_eq!(store.next_event(), Some(Event::Swapped(7, Ok(Revision(1)))));
        store.swap(swap(8, 0, 2)).unwrap();
        assert_eq!(store.next_event(), Some(Event::Swapped(8, Err(ClusterError::Conflict))));
        store.swap(swap(9, 1, 2)).unwrap();
        drop(store);
        let mut store = EmbeddedStore::open(&path, &me(2), &record(1, 1)).unwrap();
        assert_eq!(known(&mut store).record, Some(record(1, 2)), "it lasts");
    }

    #[test]
    fn a_site_of_several_movers_has_the_membership_of_its_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.redb");
        let mut store = EmbeddedStore::open(&path, &me(1), &record(2, 1)).unwrap();
        assert_eq!(known(&mut store).record, Some(record(2, 1)));
        let swap = Swap { ticket: 1, expected: Revision(1), record: record(2, 2), as_leader: true };
        assert_eq!(store.swap(swap), Err(ClusterError::Fixed));
        drop(store);
        let mut store = EmbeddedStore::open(&path, &me(2), &record(3, 1)).unwrap();
        assert_eq!(known(&mut store).record, Some(record(3, 1)), "as configured now");
    }
}
