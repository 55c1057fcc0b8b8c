//! What a start makes of what the store knew: where numbers and sets go on, and what was lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::store::{Boot, Former, ResyncMark, Store, StoreError, StoreIdentity};
use crate::config::{Mover, Role};
use crate::proto::membership::SiteRecord;
use crate::proto::message::BrokenReason;
use crate::proto::types::{GroupId, MoverId, Seq, SetId, VolumeId};
use crate::runtime::plan::{Start, Topology};

/// How often a store that is in use is tried again.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// Opens the store as [`Store::open`] does, waiting at most `limit` while another process has it
/// open: a mover that was killed gives its memory back before its files, and with gigabytes of it
/// a supervisor is faster.
///
/// # Errors
/// As [`Store::open`]; [`StoreError::InUse`] when the other process stays.
pub fn open_store(
    path: &Path,
    identity: &StoreIdentity,
    now_ms: u64,
    limit: Duration,
) -> Result<(Store, Boot), StoreError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match Store::open(path, identity, now_ms) {
            Err(StoreError::InUse { path }) if begun.elapsed() < limit => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        store = %path.display(),
                        "another process has the store open; waiting for it to end, {} s at most",
                        limit.as_secs()
                    );
                }
                std::thread::sleep(TRY_EVERY);
            }
            result => return result,
        }
    }
}

/// How a mover comes to take part in its site.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// What the site has agreed on; none where the configuration says it.
    pub record: Option<SiteRecord>,
    /// The site went on without this mover: it joins with an empty memory.
    pub joins: bool,
}

/// Judges how the former life ended, notes in the store which groups must be resynchronised
/// because of it, and says where to go on. `boot` then has these groups too.
///
/// A primary mover that was killed may have held updates that no confirmed set contains, and it
/// cannot know whether it did: every group it is responsible for a volume of must be
/// resynchronised. So must every group when it is the coordinator that was killed, since only it
/// knows how far numbers of sets were used should all others have been stopped meanwhile. A mover that
/// joins a site which went on without it leaves nothing to be resynchronised: the others have taken
/// over what its former life had (F5).
///
/// # Errors
/// [`StoreError::Database`] when that cannot be noted; the mover must not start then.
pub fn resolve(
    mover: &Mover,
    boot: &mut Boot,
    store: &mut Store,
    entry: Entry,
    now_ms: u64,
    unix_offset_ns: u64,
) -> Result<Start, StoreError> {
    let former = boot.former;
    if let (Former::Unclean { started_ms }, Role::Primary, false) =
        (former, mover.mover.role, entry.joins)
    {
        let me = MoverId(mover.mover.id);
        let record = entry.record.clone().unwrap_or_else(|| Topology::new(mover).record(mover));
        let coordinates = record.coordinator.mover == me;
        for group in &mover.groups {
            let owner = |id: u32| record.owner(VolumeId(id)).map(|owner| owner.mover);
            let responsible = group.volumes.iter().any(|v| owner(v.id) == Some(me));
            if !responsible && !coordinates {
                continue;
            }
            let detail = format!(
                "mover {} did not stop cleanly after its start {} s ago",
                mover.mover.name,
                now_ms.saturating_sub(started_ms) / 1000
            );
            let reason = BrokenReason::MoverRestarted;
            let mark = ResyncMark { since_ms: now_ms, reason, detail };
            store.require_resync(GroupId(group.id), &mark)?;
            let known = boot.resync.entry(GroupId(group.id)).or_insert_with(|| mark.clone());
            if !known.outweighs(&mark) {
                *known = mark;
            }
        }
    }
    let mut known: BTreeMap<VolumeId, Seq> = boot.next_seqs.clone();
    if let Some(record) = &entry.record {
        // What the store has of volumes that are another mover's now is of a time before that one had
        // them: to believe it would make later numbers look confirmed.
        let me = MoverId(mover.mover.id);
        let is_mine = |id: &VolumeId| record.owner(*id).is_some_and(|owner| owner.mover == me);
        known.retain(|id, _| !entry.joins && is_mine(id));
    }
    let sets = boot.sets.iter().map(|(group, mark)| (*group, mark.next.max(SetId(1))));
    Ok(Start {
        next_seqs: known,
        first_sets: sets.collect(),
        // A failed base write leaves a range in doubt, not the sets.
        unclean: !entry.joins
            && boot.resync.values().any(|mark| mark.reason != BrokenReason::BaseWriteFailed),
        unix_offset_ns,
        record: entry.record,
        joins: entry.joins,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::types::ShardId;

    fn mover(me: u16) -> Mover {
        let peer = 3 - me;
        let text = format!(
            "[mover]\nname = \"p{me}\"\nid = {me}\nsite = \"here\"\nrole = \"primary\"\ncores = \
             [0]\n[[port]]\nname = \"data\"\nkind = \"af_packet\"\ninterface = \"eth0\"\nip = \
             \"10.0.0.{me}/24\"\n[[peer]]\nid = {peer}\nname = \"p{peer}\"\nsite = \
             \"here\"\nrole = \"primary\"\nport = \"data\"\nip = \
             \"10.0.0.{peer}\"\n[[peer]]\nid = 101\nname = \"s1\"\nsite = \"there\"\nrole = \
             \"secondary\"\nport = \"data\"\nip = \"10.0.0.101\"\n[[group]]\nname = \
             \"bank\"\nid = 1\nnqn = \"nqn.2026-11.io.setline:bank\"\n[[group.volume]]\nname = \
             \"v\"\nid = 1\nnsid = 1\nsize_mib = 16\nmover = \"p2\"\nbase = {{ kind = \
             \"malloc\" }}\ntarget = {{ base = {{ kind = \"malloc\" }} }}\n"
        );
        Mover::parse("test.toml", &text).unwrap_or_else(|error| panic!("{error}")).mover
    }

    /// Starts, serves, ends as told, and starts again.
    fn restart(mover: &Mover, clean: bool, entry: Entry) -> (Start, Boot) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let me = &mover.mover;
        let identity = StoreIdentity { site: me.site.clone(), mover: me.name.clone(), id: me.id };
        let (mut store, _) = Store::open(&path, &identity, 1000).unwrap();
        store.begin_serving(&[(VolumeId(1), Seq(1))], 1000).unwrap();
        if clean {
            let next = BTreeMap::from([(VolumeId(1), Seq(50))]);
            store.mark_clean(&next, &BTreeMap::new(), 3000).unwrap();
        }
        drop(store);
        let (mut store, mut boot) = Store::open(&path, &identity, 9000).unwrap();
        let start = resolve(mover, &mut boot, &mut store, entry, 9000, 0).unwrap();
        (start, boot)
    }

    #[test]
    fn a_start_waits_for_the_former_process_to_let_go_of_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let identity = StoreIdentity { site: "here".into(), mover: "p1".into(), id: 1 };
        let (former, _) = Store::open(&path, &identity, 1).unwrap();
        let refused = open_store(&path, &identity, 2, Duration::ZERO);
        assert!(matches!(refused, Err(StoreError::InUse { .. })), "it does not wait for ever");
        let ends = std::thread::spawn(move || {
            std::thread::sleep(2 * TRY_EVERY);
            drop(former);
        });
        open_store(&path, &identity, 3, Duration::from_secs(600)).unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn a_killed_responsible_mover_must_be_resynchronised_and_says_since_when() {
        let (start, boot) = restart(&mover(2), false, Entry::default());
        assert!(start.unclean);
        let mark = &boot.resync[&GroupId(1)];
        assert_eq!((mark.since_ms, mark.reason), (9000, BrokenReason::MoverRestarted));
        assert!(mark.detail.contains("p2") && mark.detail.contains("8 s"), "{}", mark.detail);
    }

    #[test]
    fn a_killed_coordinator_must_be_resynchronised_even_without_volumes() {
        assert!(restart(&mover(1), false, Entry::default()).0.unclean);
    }

    #[test]
    fn what_others_took_over_need_not_be_resynchronised() {
        let taken = |owner: u16| {
            let mut record = Topology::new(&mover(2)).record(&mover(2));
            record.owners[0].1 = ShardId::new(owner, 0);
            record
        };
        let joins = Entry { record: Some(taken(1)), joins: true };
        let (start, boot) = restart(&mover(2), false, joins);
        assert!(!start.unclean && boot.resync.is_empty());
        assert!(start.next_seqs.is_empty(), "it has no idea of the numbers any more");
        // All were killed, and the other one had the volume.
        let founds = Entry { record: Some(taken(1)), joins: false };
        let (start, _) = restart(&mover(2), false, founds);
        assert!(!start.unclean && start.next_seqs.is_empty());
        let founds = Entry { record: Some(taken(2)), joins: false };
        assert!(restart(&mover(2), false, founds).0.unclean);
    }

    #[test]
    fn a_clean_stop_goes_on_where_it_was() {
        let (start, boot) = restart(&mover(2), true, Entry::default());
        assert!(!start.unclean && boot.resync.is_empty());
        assert_eq!(start.next_seqs[&VolumeId(1)], Seq(50));
    }
}
