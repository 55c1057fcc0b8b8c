//! What joins the movers of a lab: their ports, and how each reaches the others.

use std::net::Ipv4Addr;

use super::{Builder, Who};
use crate::config::{Cidr, MemifRole, Peer, PeerPath, Port, PortKind};
use crate::lab::options::{Traffic, VethDriver};

impl Builder<'_> {
    /// One memif for each pair of pollers at two movers, each a subnet of its own.
    pub(super) fn memif(&self, all: &[Who], at: usize) -> (Vec<Port>, Vec<Peer>) {
        let pollers = self.shape.pollers;
        let (mut ports, mut peers) = (Vec::new(), Vec::new());
        for (other, peer) in all.iter().enumerate() {
            if other == at {
                continue;
            }
            let (low, high) = (at.min(other), at.max(other));
            let socket = format!("{}-{}.sock", all[low].name, all[high].name);
            let mut paths = Vec::new();
            for (mine, theirs) in pairs(pollers) {
                // The two ends must number their pair alike.
                let (a, b) = if at == low { (mine, theirs) } else { (theirs, mine) };
                let memif_id = u32::from(a) * u32::from(pollers) + u32::from(b);
                let link = pair_index(low, high) * usize::from(pollers).pow(2) + memif_id as usize;
                let subnet = u32::from(Ipv4Addr::new(10, 77, 0, 0)) + 4 * link as u32;
                let (here, there) = if at == low { (1, 2) } else { (2, 1) };
                let name = match pollers {
                    1 => format!("to-{}", peer.name),
                    _ => format!("to-{}-{mine}-{theirs}", peer.name),
                };
                ports.push(Port {
                    name: name.clone(),
                    kind: PortKind::Memif {
                        socket: self.directory.join("net").join(&socket),
                        memif_role: match at == low {
                            true => MemifRole::Server,
                            false => MemifRole::Client,
                        },
                        memif_id,
                    },
                    ip: Cidr { ip: Ipv4Addr::from(subnet + here), prefix: 30 },
                    gateway: None,
                    mtu_bytes: 9000,
                    poller: Some(mine),
                    vlan: None,
                    mac: None,
                    shared: false,
                });
                paths.push(PeerPath {
                    poller: Some(mine),
                    peer_poller: Some(theirs),
                    port: name,
                    ip: Ipv4Addr::from(subnet + there),
                    mac: None,
                });
            }
            peers.push(self.peer(peer, paths));
        }
        (ports, peers)
    }

    /// One interface per poller, all in one subnet.
    pub(super) fn bridged(&self, all: &[Who], at: usize) -> (Vec<Port>, Vec<Peer>) {
        let pollers = self.shape.pollers;
        let ip = |mover: usize, poller: u8| Ipv4Addr::new(10, 77, poller, mover as u8 + 1);
        let ports = (0..pollers).map(|poller| {
            let interface = format!("net{poller}");
            Port {
                name: interface.clone(),
                kind: match self.shape.veth_driver {
                    VethDriver::AfXdp => PortKind::AfXdp { interface },
                    VethDriver::AfPacket => PortKind::AfPacket { interface },
                },
                ip: Cidr { ip: ip(at, poller), prefix: 16 },
                gateway: None,
                mtu_bytes: 1500,
                poller: Some(poller),
                vlan: None,
                mac: None,
                shared: poller == 0 && self.shape.traffic == Traffic::Shared,
            }
        });
        let others = all.iter().enumerate().filter(|(other, _)| *other != at);
        let peers = others.map(|(other, peer)| {
            let paths = pairs(pollers).map(|(mine, theirs)| PeerPath {
                poller: Some(mine),
                peer_poller: Some(theirs),
                port: format!("net{mine}"),
                ip: ip(other, theirs),
                mac: None,
            });
            self.peer(peer, paths.collect())
        });
        (ports.collect(), peers.collect())
    }

    fn peer(&self, who: &Who, paths: Vec<PeerPath>) -> Peer {
        Peer {
            id: who.id,
            name: who.name.clone(),
            site: who.site(),
            role: who.role,
            pollers: self.shape.pollers,
            founder: who.founder,
            paths,
        }
    }
}

fn pairs(pollers: u8) -> impl Iterator<Item = (u8, u8)> {
    (0..pollers).flat_map(move |a| (0..pollers).map(move |b| (a, b)))
}

/// Numbers the pairs (0,1) (0,2) (1,2) (0,3) ... without gaps.
pub(super) fn pair_index(low: usize, high: usize) -> usize {
    high * (high - 1) / 2 + low
}
