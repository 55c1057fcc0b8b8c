//! What a mover must still know after it was stopped or killed, in one small file (P4).
//!
//! - *Identity*: a store belongs to one mover. Another mover's store is refused, because numbers
//!   that belong to others would be used again.
//! - *Incarnation*: counts starts, so that peers tell a restarted mover from a slow one.
//! - *Number reservations*: a number of a volume is used only below a mark that is on disk
//!   already (invariant 3). Marks are raised in steps so large that the control thread never has
//!   to hurry and an update never waits for the store; after an unclean stop numbering goes on at
//!   the mark. After a clean stop the exact numbers are known.
//! - *How it ended*: [`Store::begin_serving`] is durable before the first poller starts, and only
//!   [`Store::mark_clean`] takes it back. Between them a mover may hold updates in memory that no
//!   other place has, so an end in between means that its groups must be resynchronised.
//! - *What must be resynchronised*, since when and why. It stays until a resynchronisation ends,
//!   however often the mover is restarted (invariant 10).
//!
//! Nothing here is on the path of an update. Owned by the control thread; every call that changes
//! something returns after it is on disk. Where the movers of a site agree is another store:
//! [`super::cluster`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::proto::message::BrokenReason;
use crate::proto::types::{GroupId, Seq, SetId, VolumeId};
use crate::wire::packet::Incarnation;

/// Version of the tables below.
const FORMAT: &str = "1";
/// How far ahead numbers are reserved: a day at ten million updates per second, so that a control
/// thread that is late never matters, while 2^64 still allows sixteen million unclean stops.
pub const RESERVE_STEP: u64 = 1 << 40;

/// `format`, `site`, `mover`, `id`.
const IDENTITY: TableDefinition<'_, &str, &str> = TableDefinition::new("identity");
/// `incarnation`, `session`, `serving` (0 or 1), `started_ms`, `stopped_ms` (Unix time).
const LIFE: TableDefinition<'_, &str, u64> = TableDefinition::new("life");
/// Volume → first number that was certainly never used.
const NUMBERS: TableDefinition<'_, u32, u64> = TableDefinition::new("numbers");
/// Group → (first set to form, last confirmed set).
const SETS: TableDefinition<'_, u16, (u64, u64)> = TableDefinition::new("sets");
/// Group → (since when in Unix milliseconds, reason, more for people).
const RESYNC: TableDefinition<'_, u16, (u64, u8, &str)> = TableDefinition::new("resync");

/// Whose store it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreIdentity {
    /// Name of the site.
    pub site: String,
    /// Name of the mover.
    pub mover: String,
    /// Its number.
    pub id: u16,
}

impl std::fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mover {:?} (id {}) of site {:?}", self.mover, self.id, self.site)
    }
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory cannot be made.
    #[error("cannot make the directory {} of the store: {error}; make it, or set mover.store", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Another process has it open.
    #[error("store {} is in use by another process: is this mover running already?", .path.display())]
    InUse {
        /// The store.
        path: PathBuf,
    },
    /// It belongs to another mover.
    #[error("store {} belongs to {found}, not to {wanted}; set mover.store to this mover's own file", .path.display())]
    Foreign {
        /// The store.
        path: PathBuf,
        /// Whose it is.
        found: Box<StoreIdentity>,
        /// Who asked.
        wanted: Box<StoreIdentity>,
    },
    /// A later version wrote it.
    #[error("store {} has format {found:?}, this version reads {FORMAT:?}; use the version that wrote it", .path.display())]
    Format {
        /// The store.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Reading or writing failed.
    #[error("store {}: {error}", .path.display())]
    Database {
        /// The store.
        path: PathBuf,
        /// What the database says.
        error: Box<redb::Error>,
    },
}

/// How the mover's former life ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Former {
    /// There was none.
    None,
    /// With nothing unconfirmed, at this Unix time in milliseconds.
    Clean {
        /// When.
        stopped_ms: u64,
    },
    /// Before it served: nothing can have been lost.
    NeverServed,
    /// Otherwise; it had started at this Unix time in milliseconds.
    Unclean {
        /// When it had started.
        started_ms: u64,
    },
}

/// The sets of one group as the last clean stop left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetMark {
    /// The first set to form.
    pub next: SetId,
    /// The last set known to be confirmed.
    pub confirmed: SetId,
}

/// Why and since when a group must be resynchronised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResyncMark {
    /// Since when, Unix time in milliseconds.
    pub since_ms: u64,
    /// Why.
    pub reason: BrokenReason,
    /// More for people; may be empty.
    pub detail: String,
}

impl ResyncMark {
    /// Whether this mark stands against `other`. The first reason is the one that people must
    /// know; only a doubtful range is the lesser evil beside a group that forms no sets at all.
    #[must_use]
    pub fn outweighs(&self, other: &Self) -> bool {
        let lesser = |mark: &Self| mark.reason == BrokenReason::BaseWriteFailed;
        !lesser(self) || lesser(other)
    }
}

/// What the store knew when it was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boot {
    /// Number of this start, from 1.
    pub incarnation: u64,
    /// What the links call this life, 1 to 48 bits: made of the time, and larger than in any life
    /// before also when the clock was set back.
    pub session: u64,
    /// How the last one ended.
    pub former: Former,
    /// The next number of each volume that has any.
    pub next_seqs: BTreeMap<VolumeId, Seq>,
    /// The groups' sets; exact only after a clean stop.
    pub sets: BTreeMap<GroupId, SetMark>,
    /// The groups that must be resynchronised.
    pub resync: BTreeMap<GroupId, ResyncMark>,
}

/// The open store.
pub struct Store {
    path: PathBuf,
    db: Database,
    marks: BTreeMap<VolumeId, u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the store at `path` for `identity` and counts a new incarnation.
    /// `now_ms` is Unix time in milliseconds.
    ///
    /// # Errors
    /// Every [`StoreError`]; the store is unchanged then.
    pub fn open(
        path: &Path,
        identity: &StoreIdentity,
        now_ms: u64,
    ) -> Result<(Self, Boot), StoreError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|error| StoreError::Directory { path: directory.to_path_buf(), error })?;
        }
        // A few rows: the default cache of a gigabyte would only hide a mistake.
        let db =
            Database::builder().set_cache_size(1 << 20).create(path).map_err(
                |error| match error {
                    redb::DatabaseError::DatabaseAlreadyOpen => {
                        StoreError::InUse { path: path.to_path_buf() }
                    }
                    other => database(path, other),
                },
            )?;
        let mut store = Self { path: path.to_path_buf(), db, marks: BTreeMap::new() };
        store.claim(identity)?;
        let boot = store.begin(now_ms).map_err(|error| database(&store.path, error))?;
        store.marks = boot.next_seqs.iter().map(|(volume, seq)| (*volume, seq.0)).collect();
        Ok((store, boot))
    }

    /// Writes the identity into a new store; refuses a store with another.
    fn claim(&self, wanted: &StoreIdentity) -> Result<(), StoreError> {
        let found = self.identity().map_err(|error| database(&self.path, error))?;
        let Some((format, found)) = found else {
            return self.claim_new(wanted).map_err(|error| database(&self.path, error));
        };
        let path = self.path.clone();
        if format != FORMAT {
            return Err(StoreError::Format { path, found: format });
        }
        if found != *wanted {
            let (found, wanted) = (Box::new(found), Box::new(wanted.clone()));
            return Err(StoreError::Foreign { path, found, wanted });
        }
        Ok(())
    }

    fn identity(&self) -> Result<Option<(String, StoreIdentity)>, redb::Error> {
        let txn = self.db.begin_read()?;
        let table = match txn.open_table(IDENTITY) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = |key: &str| -> Result<String, redb::Error> {
            Ok(table.get(key)?.map(|value| value.value().to_owned()).unwrap_or_default())
        };
        let id = text("id")?.parse().unwrap_or(0);
        let identity = StoreIdentity { site: text("site")?, mover: text("mover")?, id };
        Ok(Some((text("format")?, identity)))
    }

    fn claim_new(&self, identity: &StoreIdentity) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut table = txn.open_table(IDENTITY)?;
            table.insert("format", FORMAT)?;
            table.insert("site", identity.site.as_str())?;
            table.insert("mover", identity.mover.as_str())?;
            table.insert("id", identity.id.to_string().as_str())?;
        }
        txn.commit()?;
        Ok(())
    }

    fn begin(&self, now_ms: u64) -> Result<Boot, redb::Error> {
        let txn = self.db.begin_write()?;
        let boot = {
            let mut life = txn.open_table(LIFE)?;
            let read = |life: &redb::Table<'_, &str, u64>, key: &str| {
                life.get(key).map(|value| value.map(|v| v.value()))
            };
            let incarnation = read(&life, "incarnation")?.unwrap_or(0) + 1;
            let serving = read(&life, "serving")?.unwrap_or(0) != 0;
            let former = match (incarnation, serving) {
                (1, _) => Former::None,
                (_, true) => {
                    Former::Unclean { started_ms: read(&life, "started_ms")?.unwrap_or(0) }
                }
                (_, false) => match read(&life, "stopped_ms")? {
                    Some(stopped_ms) => Former::Clean { stopped_ms },
                    None => Former::NeverServed,
                },
            };
            life.insert("incarnation", incarnation)?;
            let of_clock = Incarnation::from_unix_ns(now_ms.saturating_mul(1_000_000)).get();
            let session = of_clock.max(read(&life, "session")?.unwrap_or(0) + 1);
            life.insert("session", session)?;
            // Until it serves, the start of the life that may have lost something counts.
            if !serving {
                life.insert("started_ms", now_ms)?;
            }
            let mut next_seqs = BTreeMap::new();
            for row in txn.open_table(NUMBERS)?.iter()? {
                let (volume, mark) = row?;
                next_seqs.insert(VolumeId(volume.value()), Seq(mark.value()));
            }
            let mut sets = BTreeMap::new();
            for row in txn.open_table(SETS)?.iter()? {
                let (group, mark) = row?;
                let (next, confirmed) = mark.value();
                let mark = SetMark { next: SetId(next), confirmed: SetId(confirmed) };
                sets.insert(GroupId(group.value()), mark);
            }
            let mut resync = BTreeMap::new();
            for row in txn.open_table(RESYNC)?.iter()? {
                let (group, mark) = row?;
                let (since_ms, reason, detail) = mark.value();
                let reason =
                    BrokenReason::from_wire(reason).unwrap_or(BrokenReason::MoverRestarted);
                let mark = ResyncMark { since_ms, reason, detail: detail.to_owned() };
                resync.insert(GroupId(group.value()), mark);
            }
            Boot { incarnation, session, former, next_seqs, sets, resync }
        };
        txn.commit()?;
        Ok(boot)
    }

    /// From here on the mover may hold what no other place has. Durable before it returns; so are
    /// first reservations for `volumes`.
    ///
    /// # Errors
    /// [`StoreError::Database`]; the mover must not serve then.
    pub fn begin_serving(
        &mut self,
        volumes: &[(VolumeId, Seq)],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let marks = self.raised(volumes);
        self.write(|txn| {
            let mut life = txn.open_table(LIFE)?;
            life.insert("serving", 1)?;
            life.insert("started_ms", now_ms)?;
            insert_numbers(txn, &marks)
        })?;
        self.marks.extend(marks);
        Ok(())
    }

    /// Raises the marks of `volumes` (each with its next number) where half of a reservation is
    /// used up. Cheap when there is nothing to do, which is nearly always.
    ///
    /// # Errors
    /// [`StoreError::Database`]; the marks on disk still hold for half a step, so try again later
    /// and say so meanwhile.
    pub fn reserve(&mut self, volumes: &[(VolumeId, Seq)]) -> Result<(), StoreError> {
        let marks = self.raised(volumes);
        if marks.is_empty() {
            return Ok(());
        }
        self.write(|txn| insert_numbers(txn, &marks))?;
        self.marks.extend(marks);
        Ok(())
    }

    fn raised(&self, volumes: &[(VolumeId, Seq)]) -> BTreeMap<VolumeId, u64> {
        let mark = |volume: &VolumeId| self.marks.get(volume).copied().unwrap_or(0);
        volumes
            .iter()
            .filter(|(volume, next)| mark(volume) < next.0 + RESERVE_STEP / 2)
            .map(|(volume, next)| (*volume, next.0 + RESERVE_STEP))
            .collect()
    }

    /// Notes how far a group has come, for status after a restart.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn note_sets(&mut self, sets: &BTreeMap<GroupId, SetMark>) -> Result<(), StoreError> {
        self.write(|txn| insert_sets(txn, sets))
    }

    /// The mover ends with nothing that only it knows: these are its exact numbers and sets.
    ///
    /// # Errors
    /// [`StoreError::Database`]; the stop counts as unclean then.
    pub fn mark_clean(
        &mut self,
        next_seqs: &BTreeMap<VolumeId, Seq>,
        sets: &BTreeMap<GroupId, SetMark>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let exact: BTreeMap<VolumeId, u64> = next_seqs.iter().map(|(v, seq)| (*v, seq.0)).collect();
        self.write(|txn| {
            let mut life = txn.open_table(LIFE)?;
            life.insert("serving", 0)?;
            life.insert("stopped_ms", now_ms)?;
            insert_numbers(txn, &exact)?;
            insert_sets(txn, sets)
        })?;
        self.marks.extend(exact);
        Ok(())
    }

    /// Notes that `group` must be resynchronised, unless a mark that is there already outweighs
    /// this one.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn require_resync(&mut self, group: GroupId, mark: &ResyncMark) -> Result<(), StoreError> {
        self.write(|txn| {
            let mut table = txn.open_table(RESYNC)?;
            let known = table.get(group.0)?.map(|row| resync_mark(row.value()));
            if known.is_none_or(|known| !known.outweighs(mark)) {
                let row = (mark.since_ms, mark.reason as u8, mark.detail.as_str());
                table.insert(group.0, row)?;
            }
            Ok(())
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let run = || -> Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            change(&txn)?;
            txn.commit()?;
            Ok(())
        };
        run().map_err(|error| database(&self.path, error))
    }
}

fn resync_mark((since_ms, reason, detail): (u64, u8, &str)) -> ResyncMark {
    let reason = BrokenReason::from_wire(reason).unwrap_or(BrokenReason::MoverRestarted);
    ResyncMark { since_ms, reason, detail: detail.to_owned() }
}

fn insert_numbers(
    txn: &redb::WriteTransaction,
    marks: &BTreeMap<VolumeId, u64>,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(NUMBERS)?;
    for (volume, mark) in marks {
        table.insert(volume.0, *mark)?;
    }
    Ok(())
}

fn insert_sets(
    txn: &redb::WriteTransaction,
    sets: &BTreeMap<GroupId, SetMark>,
) -> Result<(), redb::Error> {
    let mut table = txn.open_table(SETS)?;
    for (group, mark) in sets {
        table.insert(group.0, (mark.next.0, mark.confirmed.0))?;
    }
    Ok(())
}

fn database(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database { path: path.to_path_buf(), error: Box::new(error.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(7);
    const G: GroupId = GroupId(1);

    fn me() -> StoreIdentity {
        StoreIdentity { site: "here".to_owned(), mover: "p1".to_owned(), id: 1 }
    }

    fn path() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below/p1.redb");
        (directory, path)
    }

    #[test]
    fn a_new_store_counts_from_one_and_knows_no_former_life() {
        let (_keep, path) = path();
        let (_, boot) = Store::open(&path, &me(), 5).unwrap();
        assert_eq!(boot.incarnation, 1);
        assert_eq!(boot.former, Former::None);
        assert!(boot.next_seqs.is_empty() && boot.sets.is_empty() && boot.resync.is_empty());
    }

    #[test]
    fn a_session_is_larger_than_the_last_also_when_the_clock_was_set_back() {
        let (_keep, path) = path();
        let (_, first) = Store::open(&path, &me(), 1_800_000_000_000).unwrap();
        let (_, second) = Store::open(&path, &me(), 1_700_000_000_000).unwrap();
        assert!(second.session > first.session);
        assert!(Incarnation::new(second.session).is_some());
    }

    #[test]
    fn a_store_of_another_mover_is_refused_by_name() {
        let (_keep, path) = path();
        drop(Store::open(&path, &me(), 5).unwrap());
        let other = StoreIdentity { mover: "p2".to_owned(), id: 2, ..me() };
        let error = Store::open(&path, &other, 6).unwrap_err().to_string();
        assert!(error.contains("belongs to mover \"p1\" (id 1)"), "{error}");
        assert!(error.contains("mover.store"), "{error}");
    }

    #[test]
    fn a_store_in_use_is_refused() {
        let (_keep, path) = path();
        let _open = Store::open(&path, &me(), 5).unwrap();
        assert!(matches!(Store::open(&path, &me(), 6), Err(StoreError::InUse { .. })));
    }

    #[test]
    fn after_an_unclean_stop_no_number_that_may_have_been_used_is_used_again() {
        let (_keep, path) = path();
        let (mut store, _) = Store::open(&path, &me(), 5).unwrap();
        store.begin_serving(&[(V, Seq(1))], 10).unwrap();
        // Whatever was used, it was below the mark or the mark was raised before.
        let mut used = Seq(1);
        for _ in 0..5 {
            used = Seq(used.0 + RESERVE_STEP / 2);
            store.reserve(&[(V, used)]).unwrap();
        }
        drop(store);
        let (mut store, boot) = Store::open(&path, &me(), 20).unwrap();
        assert_eq!(boot.incarnation, 2);
        assert_eq!(boot.former, Former::Unclean { started_ms: 10 });
        assert!(boot.next_seqs[&V] > used);
        // It is still unclean when the next start ends before it serves.
        drop(store);
        (store, _) = Store::open(&path, &me(), 30).unwrap();
        drop(store);
        let (_, boot) = Store::open(&path, &me(), 40).unwrap();
        assert_eq!(boot.former, Former::Unclean { started_ms: 10 });
    }

    #[test]
    fn after_a_clean_stop_numbers_and_sets_are_exact() {
        let (_keep, path) = path();
        let (mut store, _) = Store::open(&path, &me(), 5).unwrap();
        store.begin_serving(&[(V, Seq(1))], 10).unwrap();
        let sets = BTreeMap::from([(G, SetMark { next: SetId(9), confirmed: SetId(8) })]);
        store.mark_clean(&BTreeMap::from([(V, Seq(42))]), &sets, 50).unwrap();
        drop(store);
        let (mut store, boot) = Store::open(&path, &me(), 60).unwrap();
        assert_eq!(boot.former, Former::Clean { stopped_ms: 50 });
        assert_eq!(boot.next_seqs[&V], Seq(42));
        assert_eq!(boot.sets, sets);
        store.begin_serving(&[(V, Seq(42))], 61).unwrap();
        drop(store);
        let (_, boot) = Store::open(&path, &me(), 70).unwrap();
        assert_eq!(boot.former, Former::Unclean { started_ms: 61 });
        assert_eq!(boot.next_seqs[&V], Seq(42 + RESERVE_STEP));
    }

    #[test]
    fn the_first_reason_for_a_resynchronisation_stays_unless_a_worse_one_comes() {
        let (_keep, path) = path();
        let (mut store, _) = Store::open(&path, &me(), 5).unwrap();
        let mark = |since_ms, reason| ResyncMark { since_ms, reason, detail: "why".to_owned() };
        let doubtful = mark(1, BrokenReason::BaseWriteFailed);
        let broken = mark(2, BrokenReason::DigestMismatch);
        store.require_resync(G, &doubtful).unwrap();
        store.require_resync(G, &broken).unwrap();
        store.require_resync(G, &mark(3, BrokenReason::MoverRestarted)).unwrap();
        store.require_resync(G, &mark(4, BrokenReason::BaseWriteFailed)).unwrap();
        store.mark_clean(&BTreeMap::new(), &BTreeMap::new(), 9).unwrap();
        drop(store);
        let (_, boot) = Store::open(&path, &me(), 20).unwrap();
        assert_eq!(boot.resync, BTreeMap::from([(G, broken)]));
    }
}
