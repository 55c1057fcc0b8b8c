//! What hosts are told of paths when a responsible mover is not heard, and is heard again.

use super::*;
use crate::control::model::EventLevel;

#[test]
fn paths_to_a_lost_movers_volumes_are_inaccessible_until_it_is_heard() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.run_ms(10);
    let (shard, p2) = (bench.shard, ShardId::new(2, 0));
    for (lost, state) in [(true, PathState::Inaccessible), (false, PathState::NonOptimized)] {
        bench.reports.send(FromPoller::Lost { shard, peer: p2, lost }).unwrap();
        bench.run_ms(2);
        assert_eq!(bench.driver.take_paths(), [(VolumeId(2), state)], "not those of p1");
    }
    let events = bench.driver.events.since(0, 1000);
    let told: Vec<EventLevel> =
        events.iter().filter(|event| event.kind == "path").map(|event| event.level).collect();
    assert_eq!(told, [EventLevel::Warning, EventLevel::Info]);
    // A shard that nothing here leads to is no news for hosts.
    let peer = ShardId::new(9, 0);
    bench.reports.send(FromPoller::Lost { shard, peer, lost: true }).unwrap();
    bench.run_ms(2);
    assert!(bench.driver.take_paths().is_empty());
}
