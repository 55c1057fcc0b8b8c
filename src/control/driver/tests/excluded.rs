//! What people are told when another mover has shut this one out of a base.

use super::*;
use crate::control::model::{EventLevel, VolumeInfo};

fn volume(bench: &mut Bench) -> VolumeInfo {
    match bench.ask(Request::VolumeList) {
        Ok(Response::Volumes(mut volumes)) => volumes.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_excluded_mover_is_degraded_and_says_which_volume_it_lost() {
    let mut bench = Bench::new(mover("p1", 2));
    bench.run_ms(300);
    bench.advance(5);
    let key = Some("0x534c000100000001".to_owned());
    let (state, reason) = (FencingState::Fenced, "why".into());
    let fenced = Fencing { state, reason, key: key.clone(), since_unix_ms: None };
    bench.driver.fencing.insert(VolumeId(1), fenced.clone());
    assert_eq!(volume(&mut bench).fencing, Some(fenced));
    assert!(bench.status().degraded.is_empty());

    let at = bench.now;
    bench.reports.send(FromPoller::Excluded { volume: VolumeId(1), at }).unwrap();
    bench.run_ms(2);
    let volume = volume(&mut bench);
    let fencing = volume.fencing.unwrap();
    assert_eq!((fencing.state, fencing.key), (FencingState::Excluded, key));
    assert_eq!(volume.target_fencing, None, "the other site's");
    let degraded = bench.status().degraded.join("; ");
    assert!(degraded.contains("another mover excluded this one"), "{degraded}");
    let events = bench.driver.events.since(0, 1000);
    let told = events.iter().find(|event| event.kind == "excluded").unwrap();
    assert_eq!((told.level, told.group.as_deref()), (EventLevel::Error, Some("bank")));
    assert_eq!(bench.driver.take_paths(), [(VolumeId(1), PathState::Inaccessible)]);
    assert!(bench.driver.take_paths().is_empty(), "hosts are told once");
    // It is no medium's error: nothing is void, nothing must be copied afresh for it.
    assert!(events.iter().all(|event| event.kind != "base-write-failed"));
    assert!(bench.status().groups[0].needs_resync.is_none());
}
