//! What the control thread makes of the site's record, and when it proposes the next one.

use super::*;
use crate::control::cluster::script::{Script, alive, configured, happens, part};
use crate::control::cluster::{Event, Revision, SiteRecord};
use crate::control::model::Wish;
use crate::proto::command::Token;
use crate::proto::types::Epoch;

/// The record that p1 begins with, in its fourth life; it is the first life of its store here.
fn first() -> SiteRecord {
    let mut record = configured();
    record.members.remove(&MoverId(3));
    for (id, member) in &mut record.members {
        member.incarnation = Some(u64::from(id.0));
    }
    record
}

struct Site {
    bench: Bench,
    script: Script,
    revision: u64,
}

impl Site {
    fn new() -> Self {
        Self::of(mover("p1", 2))
    }

    fn of(mover: Mover) -> Self {
        let script = Script::default();
        let record = first();
        let there = Event::Record(Revision(1), Some(record.clone()));
        let lives = alive(&[(1, 1, Some(1)), (2, 2, Some(1))]);
        happens(&script, [there, Event::Alive(lives), Event::Available]);
        let start =
            Start { unix_offset_ns: UNIX_NS, record: Some(record.agreed()), ..Start::default() };
        let mut bench = Bench::with(mover, start, |_| part(&script, None));
        bench.run_ms(5);
        assert!(bench.asked.is_empty(), "pollers enter their first epoch by themselves");
        Self { bench, script, revision: 1 }
    }

    fn recorded(&mut self, record: SiteRecord) {
        self.revision += 1;
        happens(&self.script, [Event::Record(Revision(self.revision), Some(record))]);
    }

    fn proposed(&self) -> Vec<SiteRecord> {
        self.script.asked.lock().unwrap().iter().map(|swap| swap.record.clone()).collect()
    }

    /// What status says of a volume's base.
    fn shown(&self, volume: VolumeId) -> (FencingState, String) {
        let fencing = &self.bench.driver.fencing[&volume];
        (fencing.state, fencing.reason.clone())
    }

    fn has_told(&self, kind: &str) -> bool {
        self.bench.driver.events.since(0, 1000).iter().any(|event| event.kind == kind)
    }
}

#[test]
fn a_silent_member_is_proposed_for_exclusion_and_what_is_agreed_is_entered() {
    let mut site = Site::new();
    let both = [VolumeId(1), VolumeId(2)].map(|id| (id, PathState::NonOptimized));
    let told = site.bench.driver.take_paths();
    assert_eq!(told, [(VolumeId(1), PathState::Optimized), both[1]]);
    assert!(site.proposed().is_empty());
    let (shard, peer) = (site.bench.shard, ShardId::new(2, 0));
    let silent = FromPoller::Peer { shard, peer, state: PeerState::Silent };
    site.bench.reports.send(silent).unwrap();
    site.bench.run_ms(3);
    let proposed = site.proposed();
    assert_eq!(proposed.len(), 1);
    assert_eq!(proposed[0].excluded[&MoverId(2)].reason, "it is not heard");
    assert!(site.bench.asked.is_empty(), "only what is agreed is entered");
    site.recorded(proposed[0].clone());
    site.bench.run_ms(3);
    assert_eq!(site.bench.asked, ["enter 2"]);
    assert_eq!(site.bench.driver.take_paths(), [(VolumeId(2), PathState::Optimized)]);
    assert!(site.has_told("excluded") && site.has_told("assignment"));
    let epoch = Epoch(2);
    site.bench.reports.send(FromPoller::Whole { shard, epoch }).unwrap();
    site.bench.run_ms(2);
    assert_eq!(*site.script.whole.lock().unwrap(), [epoch]);
}

/// It says so under its key, which is gone the next moment with its lease.
#[test]
fn a_member_that_was_stopped_in_order_is_excluded_without_waiting_until_it_is_silent() {
    let mut site = Site::new();
    let mut lives = alive(&[(1, 1, Some(1)), (2, 2, Some(1))]);
    lives.get_mut(&MoverId(2)).unwrap().leaving = true;
    happens(&site.script, [Event::Alive(lives), Event::Alive(alive(&[(1, 1, Some(1))]))]);
    site.bench.run_ms(3);
    let proposed = site.proposed();
    assert_eq!(proposed.len(), 1);
    assert_eq!(proposed[0].excluded[&MoverId(2)].reason, "it was stopped");
    // Its next life is another.
    let mut site = Site::new();
    let mut lives = alive(&[(1, 1, Some(1)), (2, 1, None)]);
    lives.get_mut(&MoverId(2)).unwrap().leaving = true;
    happens(&site.script, [Event::Alive(lives)]);
    site.bench.run_ms(3);
    assert!(site.proposed().is_empty());
}

#[test]
fn a_mover_that_others_excluded_ends_at_once() {
    let mut site = Site::new();
    let mut record = first();
    record.epoch = Epoch(2);
    let next = record.agreed();
    let change = crate::proto::membership::Change {
        failed: &[MoverId(1)],
        joined: &[],
        whole: true,
        spare: None,
        copies: &[],
    };
    let next = next.next(&change, |_| 1, |_| 1).unwrap();
    site.recorded(record.followed_by(&next, &BTreeMap::new(), 5, "it is not heard"));
    let Step::Ended(Outcome::Excluded { reason, asked: false }) = site.bench.run_ms(3) else {
        panic!()
    };
    assert_eq!(reason, "the others excluded it in epoch 3: it is not heard");
    assert!(site.bench.asked.is_empty(), "nothing more is said to pollers or hosts");
}

#[test]
fn a_volume_whose_base_cannot_be_fenced_stays_closed_and_is_tried_again() {
    let mut site = Site::new();
    site.bench.driver.take_paths();
    let shard = site.bench.shard;
    let (volume, token) = (VolumeId(2), Token(7));
    site.bench.reports.send(FromPoller::Fence { shard, volume, token }).unwrap();
    site.bench.run_ms(2);
    let now = site.bench.now;
    let (asked, lives) = site.bench.driver.next_fence(now).unwrap();
    assert_eq!((asked, lives), (volume, BTreeMap::from([(MoverId(1), 1), (MoverId(2), 2)])));
    assert_eq!(site.shown(volume).0, FencingState::Waiting);
    site.bench.driver.fenced(now, volume, Err("no answer".to_owned()), None);
    assert!(site.bench.driver.next_fence(now).is_none(), "not at once");
    // Another epoch begins meanwhile: the volume is taken over still.
    let next = SiteRecord { epoch: Epoch(2), ..first() };
    site.recorded(next);
    assert_eq!(site.bench.driver.take_paths(), [(volume, PathState::Inaccessible)]);
    assert!(site.bench.driver.fault_texts()[0].contains("no answer"));
    assert!(site.shown(volume).1.contains("no answer"));
    site.bench.run_ms(500);
    assert_eq!(std::mem::take(&mut site.bench.asked), ["enter 2"]);
    let now = site.bench.now;
    assert!(site.bench.driver.next_fence(now).is_some());
    site.bench.driver.fenced(now, volume, Ok(1), None);
    site.bench.run_ms(2);
    assert_eq!(site.bench.asked, ["fenced 7"]);
    assert_eq!(site.bench.driver.take_paths(), [(volume, PathState::Optimized)]);
    assert!(site.bench.driver.fault_texts().is_empty());
    assert!(!site.bench.driver.fencing.contains_key(&volume));
}

#[test]
fn volumes_are_fenced_side_by_side_and_one_that_hangs_holds_up_no_other() {
    let mut site = Site::new();
    let shard = site.bench.shard;
    let volumes = [VolumeId(1), VolumeId(2)];
    for (volume, token) in volumes.into_iter().zip([Token(5), Token(6)]) {
        site.bench.reports.send(FromPoller::Fence { shard, volume, token }).unwrap();
    }
    site.bench.run_ms(2);
    let now = site.bench.now;
    let mut begun = || site.bench.driver.next_fence(now).map(|(volume, _)| volume);
    assert_eq!([begun(), begun(), begun()], [Some(volumes[0]), Some(volumes[1]), None]);
    site.bench.driver.fence_hangs(now, volumes[0], "no answer for 2 s".to_owned());
    site.bench.driver.fenced(now, volumes[1], Ok(1), None);
    site.bench.run_ms(2);
    assert_eq!(std::mem::take(&mut site.bench.asked), ["fenced 6"]);
    assert!(site.has_told("take-over"));
    assert!(site.bench.driver.fault_texts()[0].contains("no answer for 2 s"));
    assert_eq!(site.shown(volumes[0]), (FencingState::Waiting, "no answer for 2 s".to_owned()));
    site.bench.driver.fenced(now, volumes[0], Ok(0), None);
    site.bench.run_ms(2);
    assert_eq!(site.bench.asked, ["fenced 5"]);
    assert!(site.bench.driver.fault_texts().is_empty() && !site.bench.driver.is_fencing());
}

/// Its own registration is no right to write: it may have been excluded before it registered.
#[test]
fn a_fenced_volume_is_written_only_when_the_record_was_read_after_the_fence() {
    let mut site = Site::new();
    let shard = site.bench.shard;
    let (volume, token) = (VolumeId(2), Token(7));
    site.bench.reports.send(FromPoller::Fence { shard, volume, token }).unwrap();
    site.bench.run_ms(2);
    site.script.deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    let now = site.bench.now;
    site.bench.driver.next_fence(now).unwrap();
    site.bench.driver.fence_joined(volume);
    site.bench.driver.fenced(now, volume, Ok(0), None);
    site.bench.run_ms(50);
    assert!(site.bench.asked.is_empty(), "the store does not answer");
    assert_eq!(site.shown(volume).0, FencingState::Waiting);
    // The record that is read shows that another life is to be shut out, too.
    let mut next = SiteRecord { epoch: Epoch(2), ..first() };
    next.members.remove(&MoverId(2));
    site.recorded(next);
    site.script.deaf.store(false, std::sync::atomic::Ordering::Relaxed);
    site.bench.run_ms(3);
    assert_eq!(std::mem::take(&mut site.bench.asked), ["enter 2"]);
    let now = site.bench.now;
    let (_, lives) = site.bench.driver.next_fence(now).expect("once more");
    assert_eq!(lives, BTreeMap::from([(MoverId(1), 1)]));
    site.bench.driver.fenced(now, volume, Ok(1), None);
    site.bench.run_ms(3);
    assert_eq!(site.bench.asked, ["fenced 7"]);
}

/// What was asked for last is done.
fn agreed(site: &mut Site) -> SiteRecord {
    let asked = site.script.asked.lock().unwrap().last().cloned().unwrap();
    site.recorded(asked.record.clone());
    happens(&site.script, [Event::Swapped(asked.ticket, Ok(Revision(site.revision)))]);
    site.bench.run_ms(150);
    asked.record
}

#[test]
fn a_drained_member_is_left_by_its_volumes_and_then_leaves() {
    let mut site = Site::new();
    let mut record = first();
    record.draining.insert(MoverId(2));
    site.recorded(record);
    site.bench.run_ms(150);
    let to = ShardId::new(1, 0);
    let plan = site.proposed().last().and_then(|record| record.plan.clone()).unwrap();
    assert_eq!(plan.moves, [(VolumeId(2), to)]);
    agreed(&mut site);
    let version = plan.version;
    assert_eq!(site.bench.asked, [format!("planned {:?}", Some(version.0))]);
    assert_eq!(site.proposed().len(), 1, "it is not carried out");
    for group in site.bench.driver.board.groups.iter().map(|group| group.id).collect::<Vec<_>>() {
        for epoch in [Epoch(0), Epoch(1)] {
            assert_eq!(site.proposed().len(), 1, "not in this epoch");
            site.bench.report(Report::MapInForce { epoch, group, map_version: version });
            site.bench.run_ms(150);
        }
    }
    let noted = agreed(&mut site);
    assert_eq!((noted.owners[&VolumeId(2)], noted.plan), (to, None));
    assert_eq!(site.bench.asked.last().map(String::as_str), Some("planned None"));
    let left = site.proposed().last().cloned().unwrap();
    assert_eq!(left.excluded[&MoverId(2)].reason, "it was drained");
    assert!(left.members.keys().eq([&MoverId(1)]) && left.draining.is_empty());
    agreed(&mut site);
    let mut drain = |mover: &str| {
        let wish = Wish::Drain { mover: mover.to_owned(), on: true };
        site.bench.ask(Request::Wish { wish, dry_run: false })
    };
    let again = drain("p2");
    assert!(matches!(again, Ok(Response::Assignment(_))), "whose answer was lost: {again:?}");
    let unknown = drain("p9").expect_err("there is no such mover");
    assert_eq!(unknown.code, ErrorCode::NotFound);
}

#[test]
fn a_spare_has_nothing_while_the_others_are_there() {
    let mut mover = mover("p1", 2);
    mover.cluster.spare = Some("p2".to_owned());
    let mut site = Site::of(mover);
    site.bench.run_ms(200);
    let plan = site.proposed().first().and_then(|record| record.plan.clone()).expect("moves");
    assert_eq!(plan.moves, [(VolumeId(2), ShardId::new(1, 0))]);
    assert!(site.proposed()[0].draining.is_empty(), "it stays a member");
}

#[test]
fn who_was_drained_ends_in_order() {
    let mut site = Site::new();
    let mut record = first();
    record.epoch = Epoch(2);
    record.members.remove(&MoverId(1));
    record.coordinator = ShardId::new(2, 0);
    record.owners.values_mut().for_each(|owner| *owner = ShardId::new(2, 0));
    let why = crate::control::cluster::Exclusion {
        incarnation: Some(1),
        epoch: 2,
        since_unix_ms: 0,
        reason: "it was drained".into(),
    };
    record.excluded.insert(MoverId(1), why);
    site.recorded(record);
    let step = site.bench.run_ms(3);
    assert!(matches!(step, Step::Ended(Outcome::Excluded { asked: true, .. })), "{step:?}");
}
