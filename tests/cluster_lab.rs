//! Movers at a real etcd: they register, one leads and publishes, they say when etcd is gone, and
//! another one leads when the leader is killed (P4).
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

#[path = "lab_support/begun.rs"]
mod begun;

use std::time::{Duration, Instant};

use begun::Begun;
use setline::control::model::{ClusterInfo, Status};
use setline::lab::cluster::Cluster;

/// Ends a wait for what takes a lease or two.
const LATE: Duration = Duration::from_secs(60);

fn until(cluster: &Cluster, mover: &str, what: &str, done: impl Fn(&Status) -> bool) -> Status {
    let start = Instant::now();
    loop {
        let status = cluster.status(mover).unwrap();
        if done(&status) {
            return status;
        }
        assert!(start.elapsed() < LATE, "{mover}: {what}: {status:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn settled(info: &ClusterInfo, alive: &[&str]) -> bool {
    info.available
        && info.alive == alive
        && info.leader.is_some()
        && info.record.as_ref().is_some_and(|record| record.members == alive)
        && info.lease_remaining_ms > Some(0)
}

#[test]
fn the_movers_of_each_site_agree_in_its_etcd() {
    let mut lab = Begun::new("--store etcd --primary 2 --secondary 1");
    let here = ["p1", "p2"];
    let seen = here.map(|mover| {
        until(&lab.cluster, mover, "the site has agreed", |s| settled(&s.cluster, &here)).cluster
    });
    assert_eq!(seen[0].leader, seen[1].leader);
    assert_eq!(seen[0].record, seen[1].record);
    let record = seen[0].record.clone().unwrap();
    assert_eq!((record.epoch, record.map_version), (1, 1));
    assert_eq!(seen.iter().filter(|info| info.leads).count(), 1);
    assert!(seen.iter().all(|info| info.store == "etcd" && info.endpoints.len() == 1));
    let there = until(&lab.cluster, "s1", "its site, too", |s| settled(&s.cluster, &["s1"]));
    assert_ne!(there.cluster.endpoints, seen[0].endpoints, "each site has its own");

    // etcd dies: that is said, and all else goes on.
    lab.cluster.kill("etcd-here");
    for mover in here {
        let status = until(&lab.cluster, mover, "it says so", |s| !s.cluster.available);
        assert!(status.cluster.unavailable_since_unix_ms.is_some());
        assert!(status.degraded.iter().any(|text| text.contains("cluster store has not answered")));
        until(&lab.cluster, mover, "its lease ends", |s| s.cluster.lease_remaining_ms == Some(0));
        assert!(!lab.cluster.status(mover).unwrap().cluster.leads);
    }
    lab.wait_consistent();
    lab.start_services();
    for mover in here {
        let status =
            until(&lab.cluster, mover, "it is found again", |s| settled(&s.cluster, &here)).cluster;
        assert!(status.unavailable_since_unix_ms.is_none());
        assert_eq!(status.record.as_ref(), Some(&record), "nothing is published anew");
    }

    // The leader dies: the other one leads.
    let leader = until(&lab.cluster, "p1", "somebody leads", |s| {
        s.cluster.leader.is_some() && settled(&s.cluster, &here)
    });
    let leader = leader.cluster.leader.unwrap();
    let other = if leader == "p1" { "p2" } else { "p1" };
    lab.cluster.kill(&leader);
    let status = until(&lab.cluster, other, "the other one leads", |s| s.cluster.leads);
    assert_eq!(status.cluster.leader.as_deref(), Some(other));
    until(&lab.cluster, other, "the dead one is not alive", |s| s.cluster.alive == [other]);
}
