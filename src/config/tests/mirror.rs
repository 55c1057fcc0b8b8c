//! What mirror copies hold (G12).

use super::*;
use crate::config::Mirror;

const FILES: [&str; 2] = [
    "base = { kind = \"file\", path = \"/dev/shm/setline/primary-ledger.img\" }",
    "base = { kind = \"file\", path = \"/dev/shm/setline/primary-index.img\" }",
];
const REMOTE: &str =
    "base = { kind = \"nvme-tcp\", address = \"10.0.0.9\", nqn = \"nqn.2026-11.io.setline:a\" }";
const ETCD: &str =
    "[cluster]\nstore = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n\n[[group]]";

/// The lab's example with metadata mirrored, volumes that all reach, and a store to agree in.
fn metadata() -> String {
    let text = with("copies = 2 ", "mirror = \"metadata\"\ncopies = 2 ");
    let text = text.replacen("[[group]]", ETCD, 1);
    let remote = |nsid| REMOTE.replace(" }", &format!(", nsid = {nsid} }}"));
    let mut nsids = 1..;
    FILES.iter().fold(text, |text, file| {
        assert!(text.contains(file), "{file}");
        text.replacen(file, &remote(nsids.next().unwrap()), 1)
    })
}

#[test]
fn mirroring_metadata_is_taken_and_what_is_weaker_about_it_is_said() {
    let loaded = parse(&metadata()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.mover.groups[0].mirror, Mirror::Metadata);
    let warned = |fault: &Fault| fault.to_string().contains("its points in time are weaker");
    assert!(loaded.warnings.iter().any(warned), "{:?}", loaded.warnings);
    let again = Mover::parse("rendered", &loaded.mover.render().unwrap()).unwrap().mover;
    assert_eq!(again, loaded.mover);
    assert_eq!(parse(&lab()).unwrap().mover.groups[0].mirror, Mirror::Data, "by default");
}

#[test]
fn metadata_without_a_second_place_for_the_data_are_refused() {
    let text = metadata();
    let store = ETCD.strip_suffix("[[group]]").unwrap();
    for (text, expected) in [
        (
            text.replace("copies = 2 ", "copies = 1 "),
            "found \"metadata\"; allowed: \"data\", or copies",
        ),
        (text.replace(store, ""), "allowed: \"data\", or cluster.store = \"etcd\""),
        (
            text.replacen(&REMOTE.replace(" }", ", nsid = 2 }"), FILES[1], 1),
            "an NVMe namespace that all primary movers reach",
        ),
        (text.replace("\"metadata\"", "\"none\""), "allowed: \"data\" or \"metadata\""),
    ] {
        let said = faults(&text);
        assert!(said.contains(expected), "{said}");
    }
}
