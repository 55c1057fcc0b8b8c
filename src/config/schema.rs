//! The keys of the file, their rules and defaults.
//!
//! Only what one key may hold is judged here; how keys go together is `validate`'s.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use toml::de::DeTable;

use super::address::{Cidr, Mac};
use super::identity::{Nguid, Uuid, derive_serial};
use super::limits::*;
use super::mirror::Mirror;
use super::reader::{Doc, Section};
use super::rules::{self, *};
use super::timestamps::Timestamps;
use super::types::*;
use super::unreplicated::Unreplicated;

/// Reads the whole document. Values that a later step derives are left empty: `hugepage_mib` 0,
/// a volume's and target's `mover` "" (with `poller` [`POLLER_OPEN`]).
pub(super) fn read(doc: &Doc, table: &DeTable<'_>) -> Mover {
    let mut root = Section::root(doc, table);
    let mover = identity(root.must_table("mover"));
    let api = api(root.table("api"), &mover);
    let cluster = cluster(root.table("cluster"));
    let link = link(root.table("link"));
    let journal = journal(root.table("journal"));
    let ports = root.tables("port").into_iter().map(port).collect();
    let peers = root.tables("peer").into_iter().map(peer).collect();
    let listeners = root.tables("listener").into_iter().filter_map(listener).collect();
    let groups = root.tables("group").into_iter().map(group).collect();
    root.finish();
    Mover { mover, api, cluster, link, journal, ports, peers, listeners, groups }
}

/// Stands for a poller that the file leaves open.
pub(super) const POLLER_OPEN: u8 = u8::MAX;
const _: () = assert!(POLLERS_MAX < POLLER_OPEN as usize);

fn poller_index<T: TryFrom<i64> + 'static>() -> Rule<T> {
    int(0..=POLLERS_MAX as i64 - 1)
}

fn identity(mut s: Section<'_>) -> Identity {
    let name = s.must("name", String::new(), name());
    let run_dir = s.or("run_dir", PathBuf::from(format!("/run/setline/{name}")), path());
    let store = s.or("store", PathBuf::from(format!("/var/lib/setline/{name}.redb")), path());
    if s.is_present() && !s.has("cores") {
        s.doc().error(&s.path_of("cores"), "nothing", "an array of core numbers");
    }
    let identity = Identity {
        id: s.must("id", 0, int(1..=i64::from(u16::MAX))),
        site: s.must("site", String::new(), rules::name()),
        role: s.must("role", Role::Primary, role()),
        founder: s.or("founder", true, boolean()),
        cores: s.list("cores", int(0..=CORE_MAX)).unwrap_or_default(),
        control_core: s.may("control_core", int(0..=CORE_MAX)),
        arena_mib: s.or("arena_mib", 256, int(i64::from(ARENA_MIB_MIN)..=i64::from(ARENA_MIB_MAX))),
        arena_mirror_percent: s.or("arena_mirror_percent", 50, int(10..=90)),
        idle: s.or(
            "idle",
            Idle::Spin,
            one_of(&[("spin", Idle::Spin), ("yield", Idle::Yield), ("sleep", Idle::Sleep)]),
        ),
        idle_rounds: s.or("idle_rounds", 200, int(1..=1_000_000)),
        sleep_us: s.or("sleep_us", 50, int(1..=10_000)),
        drain_ms_max: s.or("drain_ms_max", 30_000, int(0..=86_400_000)),
        clock_error_us: s.may("clock_error_us", int(1..=i64::from(CLOCK_ERROR_US_MAX))),
        hugepage_mib: s.or("hugepage_mib", 0, int(64..=1 << 24)),
        log: s.or(
            "log",
            LogLevel::Info,
            one_of(&[
                ("error", LogLevel::Error),
                ("warn", LogLevel::Warn),
                ("info", LogLevel::Info),
                ("debug", LogLevel::Debug),
                ("trace", LogLevel::Trace),
            ]),
        ),
        log_format: s.or(
            "log_format",
            LogFormat::Text,
            one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        ),
        name,
        run_dir,
        store,
    };
    s.finish();
    identity
}

fn api(mut s: Section<'_>, mover: &Identity) -> Api {
    let api = Api {
        socket: s.or("socket", mover.run_dir.join("api.sock"), socket_path()),
        listen: s.may("listen", parsed("ADDRESS:PORT, like \"127.0.0.1:7480\"")),
    };
    s.finish();
    api
}

fn cluster(mut s: Section<'_>) -> Cluster {
    let usual = Cluster::default();
    let cluster = Cluster {
        store: s.or(
            "store",
            usual.store,
            one_of(&[("embedded", ClusterStoreKind::Embedded), ("etcd", ClusterStoreKind::Etcd)]),
        ),
        endpoints: s.list("endpoints", endpoint()).unwrap_or_default(),
        lease_ms: s.or("lease_ms", usual.lease_ms, int(2_000..=60_000)),
        request_ms_max: s.or("request_ms_max", usual.request_ms_max, int(50..=10_000)),
        spare: s.may("spare", name()),
    };
    s.finish();
    cluster
}

fn link(mut s: Section<'_>) -> Link {
    let link = Link {
        udp_port: s.or("udp_port", 4821, int(1024..=65535 - POLLERS_MAX as i64)),
        rto_us_min: s.or("rto_us_min", 5_000, int(10..=10_000_000)),
        rto_ms_max: s.or("rto_ms_max", 1_000, int(1..=60_000)),
        window_packets: s.or("window_packets", 1024, int(16..=32_768)),
        ack_delay_us: s.or("ack_delay_us", 20, int(0..=100_000)),
        heartbeat_ms: s.or("heartbeat_ms", 100, int(1..=60_000)),
        silence_ms_max: s.or("silence_ms_max", 2_000, int(2..=600_000)),
    };
    s.finish();
    link
}

fn journal(mut s: Section<'_>) -> Option<Journal> {
    if !s.is_present() {
        return None;
    }
    let size_mib = s.must("size_mib", 0, int(16..=1 << 30));
    let disk = disk(&mut s, JOURNAL_KINDS);
    s.finish();
    Some(Journal { disk, size_mib })
}

#[derive(Clone, Copy)]
enum DiskKind {
    NvmePci,
    NvmeTcp,
    VfioUser,
    File,
    Malloc,
    None,
}

const DISK_KINDS: &[(&str, DiskKind)] = &[
    ("nvme-pci", DiskKind::NvmePci),
    ("nvme-tcp", DiskKind::NvmeTcp),
    ("vfio-user", DiskKind::VfioUser),
    ("file", DiskKind::File),
    ("malloc", DiskKind::Malloc),
    ("none", DiskKind::None),
];
// A journal is somewhere; the rest is as for volumes.
const JOURNAL_KINDS: &[(&str, DiskKind)] = {
    let (journal, _none) = DISK_KINDS.split_at(DISK_KINDS.len() - 1);
    journal
};

fn nsid(s: &mut Section<'_>) -> u32 {
    s.or("nsid", 1, int(1..=0xffff_fffe))
}

/// Whether other movers reach the disk; of a remote one that is known, of these it is not.
fn shared(s: &mut Section<'_>) -> bool {
    s.or("shared", false, boolean())
}

/// Reads a disk's keys out of `s`, which may hold others too.
fn disk(s: &mut Section<'_>, kinds: &'static [(&'static str, DiskKind)]) -> Disk {
    match s.must("kind", DiskKind::None, one_of(kinds)) {
        DiskKind::NvmePci => Disk::NvmePci {
            address: s.must("address", String::new(), pci_address()),
            nsid: nsid(s),
            shared: shared(s),
        },
        DiskKind::NvmeTcp => Disk::NvmeTcp {
            address: s.must("address", Ipv4Addr::UNSPECIFIED.into(), ip()),
            port: s.or("port", 4420, int(1..=65535)),
            nqn: s.must("nqn", String::new(), nqn()),
            nsid: nsid(s),
        },
        DiskKind::VfioUser => Disk::VfioUser {
            directory: s.must("directory", PathBuf::new(), path()),
            nqn: s.must("nqn", String::new(), nqn()),
            nsid: nsid(s),
            shared: shared(s),
        },
        DiskKind::File => Disk::File {
            path: s.must("path", PathBuf::new(), path()),
            engine: s.or("engine", FileEngine::Aio, engine()),
            shared: shared(s),
        },
        DiskKind::Malloc => Disk::Malloc,
        DiskKind::None => Disk::None,
    }
}

#[derive(Clone, Copy)]
enum PortKindName {
    Pci,
    Memif,
    AfXdp,
    AfPacket,
    Ring,
    Unknown,
}

fn port(mut s: Section<'_>) -> Port {
    let kind = s.must(
        "kind",
        PortKindName::Unknown,
        one_of(&[
            ("pci", PortKindName::Pci),
            ("memif", PortKindName::Memif),
            ("af_xdp", PortKindName::AfXdp),
            ("af_packet", PortKindName::AfPacket),
            ("ring", PortKindName::Ring),
        ]),
    );
    let unknown = matches!(kind, PortKindName::Unknown);
    let kind = match kind {
        PortKindName::Pci => {
            PortKind::Pci { pci_address: s.must("pci_address", String::new(), pci_address()) }
        }
        PortKindName::Memif => PortKind::Memif {
            socket: s.must("socket", PathBuf::new(), socket_path()),
            memif_role: s.must("memif_role", MemifRole::Client, memif_role()),
            memif_id: s.or("memif_id", 0, int(0..=i64::from(u32::MAX))),
        },
        PortKindName::AfXdp => {
            PortKind::AfXdp { interface: s.must("interface", String::new(), interface()) }
        }
        PortKindName::AfPacket => {
            PortKind::AfPacket { interface: s.must("interface", String::new(), interface()) }
        }
        PortKindName::Ring | PortKindName::Unknown => {
            let ring = if unknown { None } else { Some(s.must("ring", String::new(), name())) };
            PortKind::Ring { ring: ring.unwrap_or_default() }
        }
    };
    let port = Port {
        name: s.must("name", String::new(), name()),
        kind,
        ip: s.must(
            "ip",
            Cidr { ip: Ipv4Addr::UNSPECIFIED, prefix: 0 },
            parsed("an IPv4 address with prefix length, like \"10.0.0.1/24\""),
        ),
        gateway: s.may("gateway", parsed("an IPv4 address")),
        mtu_bytes: s.or("mtu_bytes", 1500, int(MTU_BYTES_MIN.into()..=MTU_BYTES_MAX.into())),
        poller: s.may("poller", poller_index()),
        vlan: s.may("vlan", int(1..=4094)),
        mac: s.may("mac", mac()),
        shared: s.or("shared", false, boolean()),
    };
    // Which keys belong to the port depends on its kind, so without one none is unknown.
    if !unknown {
        s.finish();
    }
    port
}

fn mac() -> Rule<Mac> {
    parsed("a MAC address like \"02:00:00:00:00:01\"")
}

fn peer(mut s: Section<'_>) -> Peer {
    let id = s.must("id", 0, int(1..=i64::from(u16::MAX)));
    let name = s.must("name", String::new(), name());
    let site = s.must("site", String::new(), rules::name());
    let role = s.must("role", Role::Primary, role());
    let pollers = s.or("pollers", 1, int(1..=POLLERS_MAX as i64));
    let founder = s.or("founder", true, boolean());
    let mut paths = Vec::new();
    // One way for all pollers stands in the peer itself; several are [[peer.path]] tables.
    if s.has("path") {
        paths = s.tables("path").into_iter().map(peer_path).collect();
        for key in ["port", "ip", "mac"] {
            if s.has(key) {
                let found = "both this key and [[peer.path]]";
                s.doc().error(&s.path_of(key), found, "one or the other");
            }
        }
        let _ = (s.may("port", rules::name()), s.may("ip", ipv4()), s.may("mac", mac()));
    } else {
        let port = s.must("port", String::new(), rules::name());
        let ip = s.must("ip", Ipv4Addr::UNSPECIFIED, ipv4());
        let mac = s.may("mac", mac());
        let _ = s.tables("path");
        paths.push(PeerPath { poller: None, peer_poller: None, port, ip, mac });
    }
    s.finish();
    Peer { id, name, site, role, pollers, founder, paths }
}

fn ipv4() -> Rule<Ipv4Addr> {
    parsed("an IPv4 address")
}

fn peer_path(mut s: Section<'_>) -> PeerPath {
    let path = PeerPath {
        poller: s.may("poller", poller_index()),
        peer_poller: s.may("peer_poller", poller_index()),
        port: s.must("port", String::new(), name()),
        ip: s.must("ip", Ipv4Addr::UNSPECIFIED, ipv4()),
        mac: s.may("mac", mac()),
    };
    s.finish();
    path
}

fn listener(mut s: Section<'_>) -> Option<Listener> {
    #[derive(Clone, Copy)]
    enum Kind {
        VfioUser,
        Tcp,
    }
    let kind = one_of(&[("vfio-user", Some(Kind::VfioUser)), ("tcp", Some(Kind::Tcp))]);
    let listener = match s.must("kind", None, kind)? {
        Kind::VfioUser => {
            Listener::VfioUser { directory: s.must("directory", PathBuf::new(), path()) }
        }
        Kind::Tcp => Listener::Tcp {
            address: s.must("address", Ipv4Addr::UNSPECIFIED.into(), ip()),
            port: s.or("port", 4420, int(1..=65535)),
        },
    };
    s.finish();
    Some(listener)
}

fn group(mut s: Section<'_>) -> Group {
    let nqn = s.must("nqn", String::new(), nqn());
    let copies = s.or("copies", 2, int(1..=MOVERS_MAX as i64));
    let volumes = s.tables("volume").into_iter().map(|volume| self::volume(volume, &nqn)).collect();
    let unreplicated = s.tables("unreplicated").into_iter();
    let unreplicated = unreplicated.map(|volume| self::unreplicated(volume, &nqn)).collect();
    let group = Group {
        name: s.must("name", String::new(), name()),
        id: s.must("id", 0, int(1..=i64::from(u16::MAX))),
        serial: s.or("serial", derive_serial(&nqn), ascii(SERIAL_BYTES_MAX)),
        period_ms: s.or("period_ms", 1000, int(PERIOD_MS_MIN as i64..=PERIOD_MS_MAX as i64)),
        copies,
        copies_secondary: s.or("copies_secondary", 0, int(1..=MOVERS_MAX as i64)),
        numbering: s.or(
            "numbering",
            Numbering::Volume,
            one_of(&[("volume", Numbering::Volume), ("mover", Numbering::Mover)]),
        ),
        timestamps: s.or(
            "timestamps",
            Timestamps::None,
            one_of(&[
                ("none", Timestamps::None),
                ("clock", Timestamps::Clock),
                ("common", Timestamps::Common),
            ]),
        ),
        mirror: s.or("mirror", Mirror::Data, one_of(&Mirror::NAMES)),
        mirror_policy: s.or(
            "mirror_policy",
            MirrorPolicy::Load,
            one_of(&[("load", MirrorPolicy::Load), ("partner", MirrorPolicy::Partner)]),
        ),
        partners: s.named("partners", name()).into_iter().collect::<BTreeMap<_, _>>(),
        nqn,
        volumes,
        unreplicated,
    };
    s.finish();
    group
}

fn volume(mut s: Section<'_>, nqn: &str) -> Volume {
    let name = s.must("name", String::new(), name());
    let uuid = s.or(
        "uuid",
        Uuid::derive(nqn, &name),
        parsed("a UUID like \"6ba7b810-9dad-41d1-80b4-00c04fd430c8\""),
    );
    let volume = Volume {
        id: s.must("id", 0, int(1..=i64::from(u32::MAX))),
        nsid: s.must("nsid", 0, int(1..=0xffff_fffe)),
        block_bytes: s.or("block_bytes", 4096, int_of(&[512, 4096])),
        size_mib: s.must("size_mib", 0, int(1..=1 << 30)),
        nguid: s.or("nguid", Nguid::from(uuid), parsed("32 hexadecimal digits")),
        mover: s.or("mover", String::new(), rules::name()),
        poller: s.or("poller", POLLER_OPEN, poller_index()),
        base: one_disk(s.must_table("base")),
        target: target(s.must_table("target")),
        uuid,
        name,
    };
    s.finish();
    volume
}

fn unreplicated(mut s: Section<'_>, nqn: &str) -> Unreplicated {
    let name = s.must("name", String::new(), name());
    let uuid = s.or(
        "uuid",
        Uuid::derive(nqn, &name),
        parsed("a UUID like \"6ba7b810-9dad-41d1-80b4-00c04fd430c8\""),
    );
    let base = one_disk(s.must_table("base"));
    // An NVMe namespace has a block size and a size of its own, a file its size.
    let memory = matches!(base, Disk::Malloc);
    let bare = memory || matches!(base, Disk::File { .. });
    let volume = Unreplicated {
        nsid: s.must("nsid", 0, int(1..=0xffff_fffe)),
        nguid: s.or("nguid", Nguid::from(uuid), parsed("32 hexadecimal digits")),
        block_bytes: bare.then(|| s.or("block_bytes", 4096, int_of(&[512, 4096]))),
        size_mib: memory.then(|| s.must("size_mib", 0, int(1..=1 << 30))),
        mover: s.may("mover", rules::name()),
        base,
        uuid,
        name,
    };
    // Which keys belong to it depends on its base's kind, so without one none is unknown.
    if s.doc().sound(&[&s.path_of("base"), &s.path_of("base.kind")]) {
        s.finish();
    }
    volume
}

fn target(mut s: Section<'_>) -> Target {
    let target = Target {
        mover: s.or("mover", String::new(), name()),
        poller: s.or("poller", POLLER_OPEN, poller_index()),
        base: one_disk(s.must_table("base")),
    };
    s.finish();
    target
}

fn one_disk(mut s: Section<'_>) -> Disk {
    let disk = disk(&mut s, DISK_KINDS);
    // Which keys belong to it depends on its kind, so without one none is unknown.
    if s.doc().sound(&[&s.path_of("kind")]) {
        s.finish();
    }
    disk
}
