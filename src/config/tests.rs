use super::*;
use std::path::PathBuf;

mod mirror;
mod traffic;
mod unreplicated;

fn examples(directory: &str) -> Vec<Loaded> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(directory);
    let mut files: Vec<_> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| Mover::load(file).unwrap_or_else(|error| panic!("{error}"))).collect()
}

fn lab() -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join("examples/lab/p1.toml")).unwrap()
}

fn parse(text: &str) -> Result<Loaded, ConfigError> {
    Mover::parse("p1.toml", text)
}

/// The faults of `text`, one per line, as an operator sees them.
fn faults(text: &str) -> String {
    match parse(text) {
        Ok(loaded) => loaded.warnings.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n"),
        Err(error) => error.to_string(),
    }
}

/// The lab's example with one piece of text replaced, which must be there.
fn with(from: &str, to: &str) -> String {
    let text = lab();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

#[test]
fn examples_are_valid_and_agree_with_each_other() {
    for directory in ["lab", "bare-metal"] {
        let files = examples(directory);
        assert_eq!(files.len(), 3);
        assert_eq!(cluster::cross_check(&files), []);
    }
}

#[test]
fn what_is_rendered_reads_back_the_same() {
    for loaded in examples("lab").into_iter().chain(examples("bare-metal")) {
        let text = loaded.mover.render().unwrap();
        let again =
            Mover::parse("rendered", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(again.mover, loaded.mover);
    }
}

#[test]
fn defaults_are_filled_in() {
    let mover = parse(&lab()).unwrap().mover;
    assert_eq!(mover.mover.hugepage_mib, hugepage_mib_needed(1, 64));
    assert_eq!(mover.api.socket, PathBuf::from("/dev/shm/setline/p1/api.sock"));
    let group = &mover.groups[0];
    assert_eq!(group.copies_secondary, 1, "as many as there are movers");
    assert_eq!(group.timestamps, Timestamps::None);
    let places: Vec<_> = group.volumes.iter().map(|v| (&*v.mover, &*v.target.mover)).collect();
    assert_eq!(places, [("p1", "s1"), ("p2", "s1")], "volumes are spread evenly");
    assert_eq!(group.volumes[0].uuid, Uuid::derive(&group.nqn, "ledger"));
    assert_eq!(group.volumes[0].nguid.0, group.volumes[0].uuid.0);
}

#[test]
fn every_mover_spreads_open_volumes_alike() {
    let files = examples("bare-metal");
    let places = |loaded: &Loaded| {
        let volumes = loaded.mover.groups[0].volumes.iter();
        volumes.map(|v| (v.mover.clone(), v.poller, v.target.poller)).collect::<Vec<_>>()
    };
    assert!(files.iter().all(|file| places(file) == places(&files[0])));
    assert_eq!(places(&files[0])[1].2, 1, "the second volume goes to the target's next poller");
}

#[test]
fn all_faults_are_reported_at_once_with_their_places() {
    let text = r#"
[mover]
name = "p 1"
id = 70000
site = "here"
role = "first"
cores = [0, 0, 9999]
arena = 64
idle = "spin"

[[port]]
name = "a"
kind = "memif"
socket = "relative.sock"
memif_role = "server"
ip = "10.0.0.1"
mtu_bytes = 64

[[peer]]
id = 2
name = "p2"
site = "here"
role = "primary"
port = "b"
ip = "10.0.0.2"

[[group]]
name = "g"
id = 1
nqn = "bank"
period_ms = 5
colour = "red"

[[group.volume]]
name = "v"
id = 1
nsid = 1
block_bytes = 520
size_mib = 1.5
base = { kind = "file" }
target = { mover = "p2", base = { kind = "disk" } }
"#;
    assert_eq!(faults(text), include_str!("golden/faults.txt").trim_end());
}

#[test]
fn a_syntax_fault_says_where() {
    assert_eq!(
        faults("[mover]\nname = \nid = 1\n"),
        "p1.toml:2:8: error: found string values must be quoted, expected literal string; \
         allowed: a TOML 1.1 document"
    );
}

#[test]
fn a_misspelt_key_is_refused_and_the_right_one_named() {
    assert_eq!(
        faults(&with("arena_mib", "arena_mb")).lines().next().unwrap(),
        "p1.toml:11:1: error: mover.arena_mb: found an unknown key; allowed: `arena_mib` (if that \
         was meant), or one of arena_mib, arena_mirror_percent, clock_error_us, control_core, cores, drain_ms_max, \
         founder, hugepage_mib, id, idle, idle_rounds, log, log_format, name, role, run_dir, site, sleep_us, store"
    );
}

#[test]
fn one_copy_is_said_loudly() {
    let said = faults(&with("copies = 2 ", "copies = 1 "));
    assert!(
        said.contains("warning: group[0].copies: copies = 1: group \"bank\" is NOT PROTECTED"),
        "{said}"
    );
    // One primary mover cannot hold two copies.
    let second = lab();
    let start = second.find("[[port]]\nname = \"to-p2\"").unwrap();
    let end = second.find("[[port]]\nname = \"to-s1\"").unwrap();
    let one = format!("{}{}", &second[..start], &second[end..]);
    let said = faults(&one);
    assert!(said.contains("group[0].copies: found 2 copies; allowed: at most 1"), "{said}");
    let said = faults(&one.replace("copies = 2 ", "copies = 1 "));
    assert!(said.contains("one mover holds one copy: group \"bank\" is NOT PROTECTED"), "{said}");
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let cases = [
        (with("copies = 2 ", "copies = 3 "), "at most 2, the movers that found the primary site"),
        (
            with("nsid = 2", "nsid = 1"),
            "group[0].volume[1].nsid: found 1, which is group[0].volume[0].nsid already",
        ),
        (with("id = 2\nnsid", "id = 1\nnsid"), "a volume's number, over all groups, once only"),
        (
            with("name = \"index\"", "name = \"ledger\""),
            "a volume's name within its group once only",
        ),
        (with("ip = \"10.77.12.1/30\"", "ip = \"10.77.9.1/30\""), "peer[0].ip: found"),
        (with("port = \"to-p2\"", "port = \"to-s1\""), "a memif port leads to one peer"),
        (
            with("port = \"to-p2\"", "port = \"to-p9\""),
            "a port of this mover: \"to-p2\", \"to-s1\"",
        ),
        (with("role = \"secondary\"", "role = \"primary\""), "one primary and one secondary site"),
        (with("arena_mib = 64", "arena_mib = 16"), "at least 28 for 1 groups and 1 pollers"),
        (
            with("arena_mib = 64", "arena_mib = 64\nhugepage_mib = 100"),
            "mover.hugepage_mib: found 100",
        ),
        (
            with("arena_mib = 64", "arena_mib = 64\nclock_error_us = 500"),
            "mover.clock_error_us: found a bound of the clock's error, and no group that is stamped \
             by the clock; allowed: none, or timestamps = \"clock\" in a group",
        ),
        (
            with("copies = 2 ", "timestamps = \"ntp\"\ncopies = 2 "),
            "group[0].timestamps: found \"ntp\"; allowed: \"none\" or \"clock\" or \"common\"",
        ),
        (
            with("arena_mib = 64", "arena_mib = 64\nclock_error_us = 5000000"),
            "mover.clock_error_us: found 5000000; allowed: an integer from 1 to 4000000",
        ),
        (with("cores = [0]", "cores = []"), "at least one core"),
        (with("id = 2\nname", "id = 1\nname"), "peer[0].id: found 1, which is mover.id already"),
    ];
    for (text, expected) in cases {
        let said = faults(&text);
        assert!(said.contains(expected), "{expected:?} not in:\n{said}");
    }
}

#[test]
fn a_site_begins_with_its_founders() {
    let late = with("name = \"p2\"", "name = \"p2\"\nfounder = false");
    let said = faults(&late);
    assert!(said.contains("peer[0].founder: found false with cluster.store"), "{said}");
    let etcd =
        "[cluster]\nstore = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n\n[[listener]]";
    let late = late.replacen("[[listener]]", etcd, 1);
    assert!(faults(&late).contains("found 2 copies; allowed: at most 1"), "{}", faults(&late));
    let founded = late.replace("copies = 2 ", "copies = 1 ");
    let given = founded.replace("nsid = 1\n", "nsid = 1\nmover = \"p2\"\n");
    let said = faults(&given);
    assert!(said.contains("found \"p2\", which is no founder; allowed: a mover that"), "{said}");
    let mover = parse(&founded).unwrap().mover;
    let names =
        |members: Vec<Member<'_>>| members.iter().map(|m| m.name.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(mover.founders_of(Role::Primary)), ["p1"]);
    assert_eq!(names(mover.members_of(Role::Primary)), ["p1", "p2"]);
    let nobody = founded.replace("name = \"p1\"", "name = \"p1\"\nfounder = false");
    assert!(faults(&nobody).contains("at least one founder"), "{}", faults(&nobody));
    let there = founded.replace("name = \"s1\"", "name = \"s1\"\nfounder = false");
    assert!(faults(&there).contains("true: its movers are fixed"), "{}", faults(&there));
}

#[test]
fn sockets_that_the_kernel_would_refuse_are_refused_here() {
    let long = "x".repeat(100);
    let said = faults(&with(
        "directory = \"/dev/shm/setline/p1\"",
        &format!("directory = \"/dev/shm/{long}\""),
    ));
    assert!(said.contains("at most 107 bytes for DIRECTORY/GROUP/cntrl"), "{said}");
}

#[test]
fn two_disks_in_one_place_are_refused_only_at_one_mover() {
    let same = with("primary-index.img", "primary-ledger.img");
    assert!(!faults(&same).contains("a disk once only"), "volumes of two machines");
    let text = same.replacen("size_mib = 64\nbase", "size_mib = 64\nmover = \"p1\"\nbase", 2);
    assert!(faults(&text).contains("a disk once only"), "{}", faults(&text));
}

#[test]
fn files_that_disagree_are_told_apart() {
    let mut files = examples("lab");
    let text = std::fs::read_to_string(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/lab/p2.toml"),
    )
    .unwrap()
    .replace("period_ms = 100 ", "period_ms = 200 ")
    .replacen("mtu_bytes = 9000", "mtu_bytes = 1500", 1)
    .replace("name = \"p2\"\nid = 2", "name = \"p2\"\nid = 7");
    files[1] = Mover::parse("p2.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    let said: Vec<String> = cluster::cross_check(&files).iter().map(Fault::to_string).collect();
    let said = said.join("\n");
    for expected in [
        "p2.toml:58:1: error: group[0]: found a group that differs from",
        "peer[0].id: found 2; allowed: 7, as in p2.toml",
        "found a path with an MTU of 1500 bytes here; allowed: 9000 bytes",
    ] {
        assert!(said.contains(expected), "{expected:?} not in:\n{said}");
    }
}

#[test]
fn a_cluster_store_is_one_that_can_be_had() {
    let cluster = |keys: &str| format!("[cluster]\n{keys}\n{}", lab());
    assert_eq!(parse(&lab()).unwrap().mover.cluster, Cluster::default());
    let etcd = "store = \"etcd\"\nendpoints = [\"http://10.0.0.1:2379\", \"http://etcd-2:2379\"]";
    let loaded = parse(&cluster(etcd)).unwrap().mover.cluster;
    assert_eq!((loaded.store, loaded.endpoints.len()), (ClusterStoreKind::Etcd, 2));
    for (keys, found) in [
        ("store = \"etcd\"", "cluster.endpoints"),
        ("endpoints = [\"http://10.0.0.1:2379\"]", "none, unless store = \"etcd\""),
        ("store = \"etcd\"\nendpoints = [\"https://10.0.0.1:2379\"]", "https is not supported"),
        ("lease_ms = 2500", "etcd counts seconds"),
        ("request_ms_max = 1500", "a third of lease_ms"),
        ("spare = \"p9\"", "a mover of the primary site: p1"),
        ("spare = \"p1\"", "none, unless store = \"etcd\": nothing moves"),
    ] {
        let text = faults(&cluster(keys));
        assert!(text.contains(found), "{keys}: {text}");
    }
}

#[test]
fn which_disks_movers_share_is_known_or_said() {
    let shared = |base: &str| {
        let from = "base = { kind = \"file\", path = \"/dev/shm/setline/primary-ledger.img\" }";
        parse(&with(from, base)).unwrap().mover.groups[0].volumes[0].base.shared()
    };
    assert!(!shared("base = { kind = \"file\", path = \"/a.img\" }"));
    assert!(shared("base = { kind = \"file\", path = \"/a.img\", shared = true }"));
    let remote = "kind = \"nvme-tcp\", address = \"10.0.0.9\", nqn = \"nqn.2026-11.io.setline:a\"";
    assert!(shared(&format!("base = {{ {remote} }}")));
    assert!(
        faults(&with(
            "kind = \"file\", path = \"/dev/shm/setline/primary-ledger.img\"",
            &format!("{remote}, shared = false")
        ))
        .contains("shared")
    );
}
