//! Volumes that are not replicated (G11).

use super::*;

/// The lab's example with an unreplicated volume of these keys at its end.
fn beside(keys: &str) -> String {
    format!("{}\n[[group.unreplicated]]\n{keys}\n", lab())
}

const FILE: &str = "name = \"scratch\"\nnsid = 3\nmover = \"p2\"\nbase = { kind = \"file\", \
                    path = \"/dev/shm/setline/scratch.img\" }";

#[test]
fn an_unreplicated_volume_needs_no_target_and_no_number() {
    let mover = parse(&beside(FILE)).unwrap_or_else(|error| panic!("{error}")).mover;
    let group = &mover.groups[0];
    assert_eq!(group.volumes.len(), 2, "it is no volume pair");
    let volume = &group.unreplicated[0];
    assert_eq!((volume.name.as_str(), volume.nsid), ("scratch", 3));
    assert_eq!(volume.uuid, Uuid::derive(&group.nqn, "scratch"));
    assert_eq!((volume.block_bytes, volume.size_mib), (Some(4096), None));
    assert_eq!(mover.unreplicated_here().count(), 0, "only p2 has the file");
    assert!(volume.is_offered_by("p2") && !volume.is_offered_by("p1"));
    let again = Mover::parse("rendered", &mover.render().unwrap()).unwrap().mover;
    assert_eq!(again, mover);
}

#[test]
fn a_base_that_all_reach_is_offered_by_all() {
    let remote = "name = \"scratch\"\nnsid = 3\nbase = { kind = \"nvme-tcp\", address = \
                  \"10.0.0.9\", nqn = \"nqn.2026-11.io.setline:a\" }";
    let mover = parse(&beside(remote)).unwrap_or_else(|error| panic!("{error}")).mover;
    assert_eq!(mover.unreplicated_here().count(), 1);
    let volume = &mover.groups[0].unreplicated[0];
    assert!(volume.is_offered_by("p1") && volume.is_offered_by("p2"));
    assert_eq!((volume.block_bytes, volume.size_mib), (None, None), "it has its own");
    let only = format!("{remote}\nmover = \"p2\"");
    assert_eq!(parse(&beside(&only)).unwrap().mover.unreplicated_here().count(), 0);
}

#[test]
fn what_makes_no_sense_of_an_unreplicated_volume_is_refused() {
    let with = |from: &str, to: &str| {
        assert!(FILE.contains(from), "{from}");
        beside(&FILE.replacen(from, to, 1))
    };
    let kind = "kind = \"file\", path = \"/dev/shm/setline/scratch.img\"";
    for (text, expected) in [
        (
            with("mover = \"p2\"\n", ""),
            "group[0].unreplicated[0].mover: found nothing, and a base that one mover reaches; \
             allowed: the primary mover that has it: \"p1\", \"p2\"",
        ),
        (
            with("mover = \"p2\"", "mover = \"s1\""),
            "unreplicated[0].mover: found \"s1\"; allowed: a mover of the primary site: \"p1\", \"p2\"",
        ),
        (
            with("nsid = 3", "nsid = 2"),
            "unreplicated[0].nsid: found 2, which is group[0].volume[1].nsid already",
        ),
        (
            with("\"scratch\"", "\"ledger\""),
            "unreplicated[0].name: found \"ledger\", which is group[0].volume[0].name already",
        ),
        (
            with(kind, "kind = \"none\""),
            "unreplicated[0].base.kind: found an unreplicated volume without a disk",
        ),
        (
            with("nsid = 3", "nsid = 3\nsize_mib = 64"),
            "unreplicated[0].size_mib: found an unknown key",
        ),
        (with("nsid = 3", "nsid = 3\ntarget = {}"), "unreplicated[0].target: found an unknown key"),
        (with(kind, "kind = \"malloc\""), "unreplicated[0].size_mib: found nothing"),
        (with("scratch.img", "primary-index.img"), "a disk once only"),
    ] {
        let said = faults(&text);
        assert!(said.contains(expected), "{expected:?} not in:\n{said}");
    }
    let memory = with(kind, "kind = \"malloc\"").replace("nsid = 3", "nsid = 3\nsize_mib = 8");
    assert!(faults(&memory).contains("volumes in memory: scratch"), "{}", faults(&memory));
    let block = "nsid = 3\nblock_bytes = 512";
    let remote = with(kind, "kind = \"nvme-pci\", address = \"0000:5e:00.0\"");
    let said = faults(&remote.replace("nsid = 3", block));
    assert!(said.contains("block_bytes: found an unknown key"), "{said}");
}

#[test]
fn movers_must_agree_on_what_is_not_replicated() {
    let mut files = examples("lab");
    let two = beside(FILE).replace("scratch.img", "other.img");
    files[0] = Mover::parse("one.toml", &beside(FILE)).unwrap();
    let mut second = files[1].mover.clone();
    second.groups = Mover::parse("p1.toml", &two).unwrap().mover.groups;
    files[1] = Mover::parse("two.toml", &second.render().unwrap()).unwrap();
    let said: Vec<String> =
        cluster::cross_check(&files[..2]).iter().map(Fault::to_string).collect();
    let said = said.join("\n");
    assert!(said.contains("group[0].unreplicated[0]: found an unreplicated volume"), "{said}");
}
