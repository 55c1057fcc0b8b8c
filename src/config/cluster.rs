//! Whether the files of several movers agree.
//!
//! Membership is fixed at start, so what one file says of a mover must be what that mover's own
//! file says, and the groups must be the same everywhere.

use std::collections::BTreeMap;

use super::Loaded;
use super::fault::Fault;
use super::types::{MemifRole, Peer, PortKind};

/// Compares every file with every other; faults stand in the file that differs.
#[must_use]
pub fn cross_check(files: &[Loaded]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut by_name: BTreeMap<&str, &Loaded> = BTreeMap::new();
    for file in files {
        let name = file.mover.mover.name.as_str();
        if let Some(first) = by_name.insert(name, file) {
            let found = format!("{name:?}, which is the mover of {} already", first.source.file);
            faults.push(file.source.error("mover.name", found, "one file per mover".to_owned()));
        }
    }
    let Some(first) = files.first() else { return faults };
    for file in &files[1..] {
        same_definitions(first, file, &mut faults);
    }
    for file in files {
        for (at, peer) in file.mover.peers.iter().enumerate() {
            if let Some(other) = by_name.get(peer.name.as_str()) {
                same_member(file, at, peer, other, &mut faults);
            }
        }
        for other in by_name.values() {
            let (me, name) = (&file.mover, other.mover.mover.name.as_str());
            if me.mover.name != name && !me.peers.iter().any(|peer| peer.name == name) {
                let found = format!("no [[peer]] {name:?}, which {} is for", other.source.file);
                faults.push(file.source.error("peer", found, "every other mover".to_owned()));
            }
        }
    }
    faults
}

/// What must be the same in all files, or in all of a site.
fn same_definitions(first: &Loaded, file: &Loaded, faults: &mut Vec<Fault>) {
    let mut differs = |key: &str, what: &str| {
        let found = format!("{what} that differs from {}", first.source.file);
        faults.push(file.source.error(key, found, "the same in every mover's file".to_owned()));
    };
    let (a, b) = (&first.mover, &file.mover);
    if a.link != b.link {
        differs("link", "a [link]");
    }
    if a.mover.role == b.mover.role && a.cluster != b.cluster {
        differs("cluster", "a [cluster]");
    }
    if a.groups.len() != b.groups.len() {
        return differs("group", "a number of groups");
    }
    for (at, (x, y)) in a.groups.iter().zip(&b.groups).enumerate() {
        if x == y {
            continue;
        }
        let volume = x.volumes.iter().zip(&y.volumes).position(|(x, y)| x != y);
        let other = x.unreplicated.iter().zip(&y.unreplicated).position(|(x, y)| x != y);
        match (volume, other) {
            (Some(index), _) => differs(&format!("group[{at}].volume[{index}]"), "a volume"),
            (None, Some(index)) => {
                differs(&format!("group[{at}].unreplicated[{index}]"), "an unreplicated volume");
            }
            (None, None) => differs(&format!("group[{at}]"), "a group"),
        }
    }
}

/// What `file` says of a peer must be what the peer's own file says.
fn same_member(file: &Loaded, at: usize, peer: &Peer, other: &Loaded, faults: &mut Vec<Fault>) {
    let me = &other.mover.mover;
    let mut differs = |field: &str, found: String, allowed: String| {
        let key = format!("peer[{at}].{field}");
        let allowed = format!("{allowed}, as in {}", other.source.file);
        faults.push(file.source.error(&key, found, allowed));
    };
    if peer.id != me.id {
        differs("id", peer.id.to_string(), me.id.to_string());
    }
    if peer.site != me.site {
        differs("site", format!("{:?}", peer.site), format!("{:?}", me.site));
    }
    if peer.role != me.role {
        differs("role", "another role".to_owned(), "the role".to_owned());
    }
    if peer.founder != me.founder {
        differs("founder", peer.founder.to_string(), me.founder.to_string());
    }
    if usize::from(peer.pollers) != me.cores.len() {
        differs("pollers", peer.pollers.to_string(), me.cores.len().to_string());
    }
    for path in &peer.paths {
        let there = other.mover.ports.iter().find(|port| port.ip.ip == path.ip);
        let Some(there) = there else {
            let allowed = format!("the address of a port of {:?}", peer.name);
            differs("ip", path.ip.to_string(), allowed);
            continue;
        };
        let Some(here) = file.mover.port(&path.port) else { continue };
        if here.mtu_bytes != there.mtu_bytes {
            let found = format!("a path with an MTU of {} bytes here", here.mtu_bytes);
            differs("port", found, format!("{} bytes", there.mtu_bytes));
        }
        if here.vlan != there.vlan {
            differs("port", "a path with another VLAN".to_owned(), "one VLAN".to_owned());
        }
        if !ends_meet(&here.kind, &there.kind) {
            let allowed = "two ends that meet: one socket, one memif_id, a server and a client";
            differs("port", format!("port {:?}", path.port), allowed.to_owned());
        }
    }
}

/// Whether two ports can be the ends of one path.
fn ends_meet(here: &PortKind, there: &PortKind) -> bool {
    match (here, there) {
        (
            PortKind::Memif { socket: a, memif_role: x, memif_id: i },
            PortKind::Memif { socket: b, memif_role: y, memif_id: j },
        ) => a == b && i == j && matches!(x, MemifRole::Server) != matches!(y, MemifRole::Server),
        (PortKind::Memif { .. }, _) | (_, PortKind::Memif { .. }) => false,
        _ => true,
    }
}
