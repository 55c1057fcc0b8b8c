//! Ports and the ways to peers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::unique;
use crate::config::reader::Doc;
use crate::config::types::{Mover, Peer, PeerPath, Port, PortKind};

pub(super) fn check(doc: &Doc, mover: &Mover) {
    for (at, peer) in mover.peers.iter().enumerate() {
        for (path, key) in peer.paths.iter().zip(path_keys(doc, at, peer)) {
            check_path(doc, mover, peer, path, &key);
        }
        coverage(doc, mover, at, peer);
    }
    addresses(doc, mover);
    point_to_point(doc, mover);
    // Last: whether a port is of use depends on sound paths.
    ports(doc, mover);
}

/// The key prefix of each path of peer `at`.
fn path_keys(doc: &Doc, at: usize, peer: &Peer) -> Vec<String> {
    let listed = doc.has(&format!("peer[{at}].path[0]"));
    let key = |index: usize| match listed {
        true => format!("peer[{at}].path[{index}]"),
        false => format!("peer[{at}]"),
    };
    (0..peer.paths.len()).map(key).collect()
}

fn ports(doc: &Doc, mover: &Mover) {
    let all = || mover.ports.iter().enumerate();
    let key = |at: usize, field: &str| format!("port[{at}].{field}");
    unique(
        doc,
        "a port's name",
        all().map(|(at, port)| (key(at, "name"), &port.name, format!("{:?}", port.name))),
    );
    unique(
        doc,
        "an address",
        all().map(|(at, port)| (key(at, "ip"), port.ip.ip, port.ip.ip.to_string())),
    );
    unique(
        doc,
        "a device",
        all().map(|(at, port)| {
            let (field, device) = device(port);
            (key(at, field), device.clone(), device)
        }),
    );
    for (at, port) in all() {
        let pollers = mover.mover.cores.len();
        if let Some(poller) = port.poller {
            let key = key(at, "poller");
            if usize::from(poller) >= pollers && doc.sound(&[&key, "mover.cores"]) {
                doc.error(&key, poller.to_string(), below("a poller of this mover", pollers));
            }
        }
        if let Some(gateway) = port.gateway
            && doc.sound(&[&key(at, "gateway"), &key(at, "ip")])
            && (!port.ip.contains(gateway) || gateway == port.ip.ip)
        {
            let allowed = format!("another address in {}", port.ip);
            doc.error(&key(at, "gateway"), gateway.to_string(), allowed);
        }
        let ip = port.ip.ip;
        if doc.sound(&[&key(at, "ip")]) && !is_host_address(ip) {
            doc.error(&key(at, "ip"), ip.to_string(), "an address of one host");
        }
        let used = mover.peers.iter().flat_map(|peer| &peer.paths);
        if !used.into_iter().any(|path| path.port == port.name) && !doc.any_below("peer") {
            let found = format!("port {:?} leads to no peer", port.name);
            doc.warn(&format!("port[{at}]"), found, "name it in a [[peer]], or take it out");
        }
    }
}

fn is_host_address(ip: Ipv4Addr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
}

/// What a port takes for itself, and the key that names it.
fn device(port: &Port) -> (&'static str, String) {
    match &port.kind {
        PortKind::Pci { pci_address } => ("pci_address", pci_address.clone()),
        PortKind::Memif { socket, memif_id, .. } => {
            ("socket", format!("{} with memif_id {memif_id}", socket.display()))
        }
        PortKind::AfXdp { interface } | PortKind::AfPacket { interface } => {
            ("interface", interface.clone())
        }
        // Both ends of a ring may be one process's.
        PortKind::Ring { ring } => ("name", format!("{ring} of {}", port.name)),
    }
}

fn below(what: &str, count: usize) -> String {
    match count {
        0 => format!("{what}, which has none"),
        n => format!("{what}: 0 to {}", n - 1),
    }
}

fn check_path(doc: &Doc, mover: &Mover, peer: &Peer, path: &PeerPath, key: &str) {
    let at = |field: &str| format!("{key}.{field}");
    let ranges = [
        ("poller", path.poller, mover.mover.cores.len(), "a poller of this mover"),
        ("peer_poller", path.peer_poller, usize::from(peer.pollers), "a poller of the peer"),
    ];
    for (field, poller, pollers, what) in ranges {
        if let Some(poller) = poller.filter(|p| usize::from(*p) >= pollers)
            && doc.sound(&[&at(field)])
        {
            doc.error(&at(field), poller.to_string(), below(what, pollers));
        }
    }
    if !doc.sound(&[&at("port")]) {
        return;
    }
    let Some(index) = mover.ports.iter().position(|port| port.name == path.port) else {
        let names: Vec<_> = mover.ports.iter().map(|port| format!("{:?}", port.name)).collect();
        let allowed = match names.is_empty() {
            true => "the name of a [[port]]; there is none".to_owned(),
            false => format!("a port of this mover: {}", names.join(", ")),
        };
        return doc.error(&at("port"), format!("{:?}", path.port), allowed);
    };
    let port = &mover.ports[index];
    if !doc.sound(&[&at("ip"), &format!("port[{index}].ip")]) {
        return;
    }
    if !is_host_address(path.ip) || path.ip == port.ip.ip {
        let allowed = format!("the peer's address, not {}", port.ip.ip);
        doc.error(&at("ip"), path.ip.to_string(), allowed);
    } else if !port.ip.contains(path.ip) && port.gateway.is_none() {
        let allowed =
            format!("an address in {} of port {:?}, or a gateway at that port", port.ip, port.name);
        doc.error(&at("ip"), path.ip.to_string(), allowed);
    }
}

/// Every poller here must reach every poller there, through a port it can use.
fn coverage(doc: &Doc, mover: &Mover, at: usize, peer: &Peer) {
    let key = format!("peer[{at}]");
    if !doc.sound(&[&key, "mover.cores"]) || doc.any_below(&key) {
        return;
    }
    for poller in 0..mover.mover.cores.len() as u8 {
        for peer_poller in 0..peer.pollers {
            let pair = format!("poller {poller} here to poller {peer_poller} of {:?}", peer.name);
            let Some(path) = peer.path(poller, peer_poller) else {
                return doc.error(
                    &key,
                    format!("no path from {pair}"),
                    "a [[peer.path]] for each pair",
                );
            };
            let Some(port) = mover.port(&path.port) else { return };
            if let Some(owner) = port.poller.filter(|owner| *owner != poller) {
                let found =
                    format!("a path from {pair} by port {:?}, owned by poller {owner}", port.name);
                let allowed = "a port of that poller, by [[peer.path]] with poller and port";
                return doc.error(&key, found, allowed);
            }
        }
    }
}

/// An address belongs to one mover.
fn addresses(doc: &Doc, mover: &Mover) {
    let mut owner: BTreeMap<Ipv4Addr, (usize, String)> = BTreeMap::new();
    for (at, peer) in mover.peers.iter().enumerate() {
        for (path, key) in peer.paths.iter().zip(path_keys(doc, at, peer)) {
            let key = format!("{key}.ip");
            if !doc.sound(&[&key]) {
                continue;
            }
            match owner.get(&path.ip) {
                Some((other, earlier)) if *other != at => {
                    let found = format!("{}, which is {earlier} already", path.ip);
                    doc.error(&key, found, "addresses of this peer alone");
                }
                Some(_) => {}
                None => {
                    owner.insert(path.ip, (at, key));
                }
            }
        }
    }
}

/// A memif has one other end.
fn point_to_point(doc: &Doc, mover: &Mover) {
    for port in &mover.ports {
        if !matches!(port.kind, PortKind::Memif { .. }) {
            continue;
        }
        let mut first: Option<usize> = None;
        for (at, peer) in mover.peers.iter().enumerate() {
            for (path, key) in peer.paths.iter().zip(path_keys(doc, at, peer)) {
                if path.port != port.name || *first.get_or_insert(at) == at {
                    continue;
                }
                let found = format!("{:?}, which leads to another peer already", port.name);
                doc.error(&format!("{key}.port"), found, "a memif port leads to one peer");
            }
        }
    }
}
