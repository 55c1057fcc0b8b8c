//! What the control thread says of volumes that are not replicated (G11).

use super::*;
use crate::config::{Disk, Nguid, Unreplicated, Uuid};
use crate::control::model::{ErrorCode, Wish};

/// A mover of a group with an unreplicated volume that only p1 offers.
fn bench() -> Bench {
    let mut mover = mover("p1", 2);
    let uuid = Uuid::derive("nqn", "scratch");
    mover.groups[0].unreplicated.push(Unreplicated {
        name: "scratch".to_owned(),
        nsid: 77,
        nguid: Nguid::from(uuid),
        block_bytes: Some(4096),
        size_mib: Some(8),
        mover: Some("p1".to_owned()),
        base: Disk::Malloc,
        uuid,
    });
    Bench::new(mover)
}

#[test]
fn it_is_listed_as_such_and_is_in_no_map() {
    let bench = bench();
    let group = bench.driver.mover.groups[0].name.clone();
    let view = bench.driver.view(bench.now, &[]);
    let volumes = view.volumes();
    let shown = volumes.iter().find(|volume| volume.name == "scratch").unwrap();
    assert!(!shown.replicated && shown.fencing.is_none());
    assert_eq!((shown.id, shown.nsid, shown.size_mib), (0, 77, 8));
    assert_eq!(shown.mover, "p1");
    assert!(volumes.iter().filter(|volume| volume.name != "scratch").all(|v| v.replicated));
    assert!(view.map().entries.iter().all(|entry| entry.volume != "scratch"));
    assert_eq!(view.groups()[0].unreplicated, ["scratch"]);
    let metrics = view.metrics();
    let of = metrics.iter().filter(|metric| metric.labels.iter().any(|(_, v)| v == "scratch"));
    let of: Vec<_> = of.map(|metric| (metric.name.as_str(), metric.value)).collect();
    assert_eq!(of, [("volume_replicated", 0.0)], "{group}");
}

#[test]
fn what_concerns_replication_is_refused_of_it_with_the_reason() {
    let bench = bench();
    let view = bench.driver.view(bench.now, &[]);
    let error = view.find_volume("scratch").unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("is not replicated: no mover is responsible"), "{error}");
    for mover in [Some("p2".to_owned()), None] {
        let wish = Wish::Place { volume: "scratch".to_owned(), mover };
        assert_eq!(bench.driver.refuse(&wish).unwrap_err(), error);
    }
}

#[test]
fn a_mover_that_alone_offers_one_is_not_drained() {
    let bench = bench();
    let error = bench.driver.keeps_unreplicated("p1").unwrap();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("/scratch, which is not replicated"), "{error}");
    assert_eq!(bench.driver.keeps_unreplicated("p2"), None);
}
