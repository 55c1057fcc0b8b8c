//! How long a secondary mover that is being stopped goes on for primary movers that drain.

use super::*;

/// Milliseconds until a secondary mover that is being stopped brings apply to a boundary; it goes on
/// as if nothing were until then.
fn serves_on_for(bench: &mut Bench, ms_max: u64) -> u64 {
    (0..ms_max)
        .find(|_| {
            bench.run_ms(1);
            !bench.asked.is_empty()
        })
        .unwrap_or(ms_max)
}

#[test]
fn a_secondary_mover_that_is_stopped_goes_on_while_primary_movers_drain() {
    let (p1, p2) = (ShardId::new(1, 0), ShardId::new(2, 0));
    let mut bench = Bench::new(mover("s1", 2));
    bench.run_ms(300);
    bench.driver.begin_stop(bench.now, true, "test");
    bench.run_ms(100);
    for peer in [p1, p2] {
        bench.report(Report::PeerStopping { peer, drained: false });
    }
    assert_eq!(serves_on_for(&mut bench, 300), 300);
    bench.report(Report::PeerStopping { peer: p2, drained: true });
    assert_eq!(serves_on_for(&mut bench, 300), 300, "one still drains");
    bench.report(Report::PeerStopping { peer: p1, drained: true });
    serves_on_for(&mut bench, 10);
    assert_eq!(bench.asked, ["quiesce true", "pause true"]);
}

#[test]
fn a_secondary_mover_that_is_stopped_alone_goes_on_for_a_limited_time_only() {
    // The limit for draining is a second there.
    let mut bench = Bench::new(mover("s1", 2));
    bench.run_ms(300);
    bench.driver.begin_stop(bench.now, true, "test");
    assert!((990..1010).contains(&serves_on_for(&mut bench, 3000)));
    // Nobody is there to be waited for; and a second request ends the wait.
    let mut bench = Bench::new(mover("s1", 2));
    bench.run_ms(300);
    for link in &mut bench.snapshot.links {
        link.state = PeerState::Silent;
    }
    bench.run_ms(500);
    bench.driver.begin_stop(bench.now, true, "test");
    assert!(serves_on_for(&mut bench, 3000) < 10);
    let mut bench = Bench::new(mover("s1", 2));
    bench.run_ms(300);
    bench.driver.begin_stop(bench.now, true, "test");
    bench.run_ms(100);
    bench.driver.begin_stop(bench.now, false, "again");
    assert_eq!(bench.run_ms(1), Step::CloseHosts);
}

#[test]
fn a_primary_mover_that_is_stopped_goes_on_for_the_one_that_runs_the_boundaries() {
    let p1 = ShardId::new(1, 0);
    let ends = |bench: &mut Bench, ms_max: u64| {
        (0..ms_max).find(|_| bench.run_ms(1) == Step::CloseHosts).unwrap_or(ms_max)
    };
    let stopped = |said: &[bool]| {
        let mut bench = Bench::new(mover("p2", 2));
        bench.run_ms(300);
        bench.driver.begin_stop(bench.now, true, "test");
        for drained in said {
            bench.report(Report::PeerStopping { peer: p1, drained: *drained });
        }
        bench
    };
    let alone = ends(&mut stopped(&[]), 900);
    assert!((190..300).contains(&alone), "it waits for a word: {alone}");
    let mut together = stopped(&[false]);
    assert_eq!(ends(&mut together, 900), 900, "p1 needs its part in sets");
    together.report(Report::PeerStopping { peer: p1, drained: true });
    assert!(ends(&mut together, 900) < 100);
    assert!(ends(&mut stopped(&[false, true]), 900) < 200);
}
