//! How keys go together: what no single key can tell.
//!
//! Every check first asks whether the keys it looks at are sound, so that one fault is reported
//! once, where it is.

mod groups;
mod network;

use std::collections::BTreeMap;

use super::limits::*;
use super::reader::Doc;
use super::timestamps::Timestamps;
use super::types::{ClusterStoreKind, Listener, Mover, Role};

/// Judges a completed configuration.
pub(super) fn check(doc: &Doc, mover: &Mover) {
    cores(doc, mover);
    memory(doc, mover);
    links(doc, mover);
    members(doc, mover);
    listeners(doc, mover);
    journal(doc, mover);
    cluster(doc, mover);
    clock(doc, mover);
    network::check(doc, mover);
    super::traffic::check(doc, mover);
    groups::check(doc, mover);
    founders(doc, mover);
}

/// A site begins with its founders: there are some, and a mover can join later only where movers agree.
fn founders(doc: &Doc, mover: &Mover) {
    let key = |name: &str| match mover.peers.iter().position(|peer| peer.name == name) {
        Some(at) => format!("peer[{at}].founder"),
        None => "mover.founder".to_owned(),
    };
    for role in [Role::Primary, Role::Secondary] {
        let members = mover.members_of(role);
        let founders = mover.founders_of(role).len();
        let Some(late) = members.iter().find(|member| !member.founder) else { continue };
        let key = key(late.name);
        if !doc.sound(&[&key, "mover.role", "peer"]) {
            continue;
        }
        if role == Role::Secondary {
            doc.error(&key, "false at the secondary site", "true: its movers are fixed");
        } else if founders == 0 {
            doc.error(&key, "false at every mover of the site", "at least one founder");
        } else if mover.mover.role == role && mover.cluster.store == ClusterStoreKind::Embedded {
            let allowed = "true, or cluster.store = \"etcd\": movers join where they agree";
            doc.error(&key, "false with cluster.store = \"embedded\"", allowed);
        }
    }
}

/// Reports every key whose value stands at an earlier key too.
fn unique<T: Ord>(doc: &Doc, what: &str, values: impl IntoIterator<Item = (String, T, String)>) {
    let mut first: BTreeMap<T, String> = BTreeMap::new();
    for (key, value, shown) in values {
        if !doc.sound(&[&key]) {
            continue;
        }
        if let Some(earlier) = first.get(&value) {
            let found = format!("{shown}, which is {earlier} already");
            doc.error(&key, found, format!("{what} once only"));
        } else {
            first.insert(value, key);
        }
    }
}

fn clock(doc: &Doc, mover: &Mover) {
    let used = mover.groups.iter().any(|group| group.timestamps == Timestamps::Clock);
    let sound = doc.sound(&["mover.clock_error_us", "group"]) && !doc.any_below("group");
    if mover.mover.clock_error_us.is_some() && !used && sound {
        let found = "a bound of the clock's error, and no group that is stamped by the clock";
        doc.error("mover.clock_error_us", found, "none, or timestamps = \"clock\" in a group");
    }
}

fn cluster(doc: &Doc, mover: &Mover) {
    let cluster = &mover.cluster;
    let etcd = cluster.store == ClusterStoreKind::Etcd;
    if doc.sound(&["cluster.endpoints", "cluster.store"]) && etcd == cluster.endpoints.is_empty() {
        let (found, allowed) = match etcd {
            true => ("nothing", "at least one address of an etcd server, with store = \"etcd\""),
            false => ("addresses of etcd", "none, unless store = \"etcd\""),
        };
        doc.error("cluster.endpoints", found, allowed);
    }
    if doc.sound(&["cluster.lease_ms"]) && !cluster.lease_ms.is_multiple_of(1000) {
        let found = cluster.lease_ms.to_string();
        doc.error("cluster.lease_ms", found, "a multiple of 1000: etcd counts seconds");
    }
    if let Some(spare) = &cluster.spare
        && doc.sound(&["cluster.spare", "cluster.store"])
    {
        let key = "cluster.spare";
        let primaries = mover.members_of(Role::Primary);
        let others = mover.founders_of(Role::Primary);
        if !primaries.iter().any(|member| member.name == *spare) {
            let names: Vec<&str> = primaries.iter().map(|member| member.name).collect();
            let allowed = format!("a mover of the primary site: {}", names.join(", "));
            doc.error(key, format!("{spare:?}"), allowed);
        } else if !others.iter().any(|member| member.name != *spare) {
            doc.error(key, format!("{spare:?}"), "another founder beside it: it is the only one");
        } else if !etcd {
            doc.error(key, format!("{spare:?}"), "none, unless store = \"etcd\": nothing moves");
        }
    }
    // A keep-alive that is late must leave time for another.
    let limit = cluster.lease_ms / 3;
    if doc.sound(&["cluster.lease_ms", "cluster.request_ms_max"]) && cluster.request_ms_max > limit
    {
        let allowed = format!("at most {limit}, a third of lease_ms");
        doc.error("cluster.request_ms_max", cluster.request_ms_max.to_string(), allowed);
    }
}

fn cores(doc: &Doc, mover: &Mover) {
    let me = &mover.mover;
    let key = |index: usize| format!("mover.cores[{index}]");
    if doc.sound(&["mover.cores"]) && me.cores.is_empty() {
        doc.error("mover.cores", "an empty array", "at least one core: each runs one poller");
    }
    if me.cores.len() > POLLERS_MAX {
        let found = format!("{} cores", me.cores.len());
        doc.error("mover.cores", found, format!("at most {POLLERS_MAX}"));
    }
    let cores = me.cores.iter().enumerate().map(|(at, core)| (key(at), *core, core.to_string()));
    unique(doc, "a core", cores);
    if me.control_core.is_some_and(|core| me.cores.contains(&core)) {
        doc.warn(
            "mover.control_core",
            "the control thread shares a poller's core",
            "it will delay that poller; name another core, or leave the key out",
        );
    }
}

fn memory(doc: &Doc, mover: &Mover) {
    let me = &mover.mover;
    let elsewhere = mover.peers.iter().filter(|peer| peer.role == me.role);
    let shards: usize = elsewhere.map(|peer| usize::from(peer.pollers)).sum();
    let remote = if me.role == Role::Primary && shards > 0 { ARENA_MIB_REMOTE } else { 0 };
    let needed = arena_mib_needed(mover.groups.len(), shards).saturating_add(remote);
    if doc.sound(&["mover.arena_mib"]) && me.arena_mib < needed {
        doc.error(
            "mover.arena_mib",
            me.arena_mib.to_string(),
            format!(
                "at least {needed} for {} groups and {shards} pollers elsewhere at the site",
                mover.groups.len()
            ),
        );
    }
    let needed = hugepage_mib_needed(me.cores.len(), me.arena_mib);
    let keys = ["mover.hugepage_mib", "mover.arena_mib", "mover.cores"];
    if doc.sound(&keys) && me.hugepage_mib < needed {
        doc.error(
            "mover.hugepage_mib",
            me.hugepage_mib.to_string(),
            format!(
                "at least {needed}: {} pollers of {} MiB arena and {HUGEPAGE_MIB_PER_POLLER} MiB \
                 buffers, and {HUGEPAGE_MIB_BASE} MiB for the process",
                me.cores.len(),
                me.arena_mib
            ),
        );
    }
}

fn links(doc: &Doc, mover: &Mover) {
    let link = &mover.link;
    let rto_us_max = u64::from(link.rto_ms_max) * 1000;
    if doc.sound(&["link.rto_us_min", "link.rto_ms_max"]) && u64::from(link.rto_us_min) > rto_us_max
    {
        let allowed = format!("at most {rto_us_max}, which is rto_ms_max");
        doc.error("link.rto_us_min", link.rto_us_min.to_string(), allowed);
    }
    let least = link.heartbeat_ms.saturating_mul(2);
    let sound = doc.sound(&["link.silence_ms_max", "link.heartbeat_ms"]);
    if sound && link.silence_ms_max < least {
        let allowed = format!("at least {least}, twice heartbeat_ms");
        doc.error("link.silence_ms_max", link.silence_ms_max.to_string(), allowed);
    }
    let socket = mover.api.socket.as_os_str().len();
    if doc.sound(&["api.socket", "mover.run_dir", "mover.name"]) && socket > SOCKET_PATH_BYTES_MAX {
        let found = format!("a run_dir that makes the API socket's path {socket} bytes");
        doc.error("mover.run_dir", found, format!("at most {SOCKET_PATH_BYTES_MAX} bytes"));
    }
    if mover.api.listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        doc.warn(
            "api.listen",
            "the API has no access control on TCP",
            "whoever reaches this address can close sets and stop the mover; prefer a loopback \
             address behind a tunnel",
        );
    }
}

fn members(doc: &Doc, mover: &Mover) {
    let me = &mover.mover;
    let keys = |field: &str| {
        let own = std::iter::once(format!("mover.{field}"));
        own.chain((0..mover.peers.len()).map(|at| format!("peer[{at}].{field}")))
            .collect::<Vec<_>>()
    };
    let ids = std::iter::once(me.id).chain(mover.peers.iter().map(|peer| peer.id));
    let names = std::iter::once(&me.name).chain(mover.peers.iter().map(|peer| &peer.name));
    unique(
        doc,
        "each mover's number, over both sites,",
        keys("id").into_iter().zip(ids).map(|(key, id)| (key, id, id.to_string())),
    );
    unique(
        doc,
        "each mover's name, over both sites,",
        keys("name").into_iter().zip(names).map(|(key, name)| (key, name, format!("{name:?}"))),
    );
    if mover.peers.len() >= MOVERS_MAX {
        let found = format!("{} movers", mover.peers.len() + 1);
        doc.error("peer", found, format!("at most {MOVERS_MAX} over both sites"));
    }
    // One primary and one secondary site: what a mover's file says of a site holds for all in it.
    let mut sites: Vec<(&str, Role, String)> = vec![(&me.site, me.role, "mover".to_owned())];
    for (at, peer) in mover.peers.iter().enumerate() {
        let key = format!("peer[{at}]");
        let (role_key, site_key) = (format!("{key}.role"), format!("{key}.site"));
        if !doc.sound(&[&role_key, &site_key, "mover.role", "mover.site"]) {
            continue;
        }
        for (site, role, earlier) in &sites {
            if *site == peer.site && *role != peer.role {
                let found = format!("another role for site {site:?} than {earlier} has");
                doc.error(&role_key, found, "one role per site");
                break;
            }
            if *site != peer.site && *role == peer.role {
                let found =
                    format!("{:?}, while {earlier} of the same role has {site:?}", peer.site);
                doc.error(&site_key, found, "one primary and one secondary site");
                break;
            }
        }
        sites.push((&peer.site, peer.role, key));
    }
}

fn listeners(doc: &Doc, mover: &Mover) {
    let key = |at: usize| format!("listener[{at}]");
    unique(
        doc,
        "a listener",
        mover.listeners.iter().enumerate().map(|(at, listener)| match listener {
            Listener::VfioUser { directory } => {
                let shown = directory.display().to_string();
                (format!("{}.directory", key(at)), shown.clone(), shown)
            }
            Listener::Tcp { address, port } => {
                let shown = format!("{address}:{port}");
                (format!("{}.address", key(at)), shown.clone(), shown)
            }
        }),
    );
    for (at, listener) in mover.listeners.iter().enumerate() {
        let Listener::VfioUser { directory } = listener else { continue };
        for group in &mover.groups {
            let socket = group.vfio_user_directory(directory).join("cntrl");
            let bytes = socket.as_os_str().len();
            let key = format!("{}.directory", key(at));
            if bytes > SOCKET_PATH_BYTES_MAX && doc.sound(&[&key]) {
                let found = format!("{:?}: {bytes} bytes", socket.display().to_string());
                let allowed = format!(
                    "at most {SOCKET_PATH_BYTES_MAX} bytes for DIRECTORY/GROUP/cntrl: a shorter path"
                );
                doc.error(&key, found, allowed);
            }
        }
    }
    let hosts = mover.groups.iter().flat_map(|group| &group.volumes);
    let responsible = hosts.filter(|volume| volume.mover == mover.mover.name).count();
    let sound = doc.sound(&["mover.role", "mover.name", "listener"]);
    if sound && mover.listeners.is_empty() && mover.mover.role == Role::Primary && responsible > 0 {
        doc.warn(
            "mover",
            format!("no [[listener]], but {responsible} volumes"),
            "no host can reach them through this mover",
        );
    }
}

fn journal(doc: &Doc, mover: &Mover) {
    match (&mover.journal, mover.mover.role) {
        (None, Role::Secondary) if doc.sound(&["journal", "mover.role"]) => {
            doc.error("journal", "nothing", "[journal] at a mover of the secondary site");
        }
        (Some(_), Role::Primary) => doc.warn(
            "journal",
            "a journal at the primary site",
            "it is not used until the site becomes a secondary",
        ),
        (Some(journal), Role::Secondary) if journal.disk.is_volatile() => doc.warn(
            "journal.kind",
            "a journal in memory",
            "when all secondary movers stop at once, sets that were received but not applied are \
             lost and the group must be resynchronised",
        ),
        _ => {}
    }
}
