//! The mover's ports and the links that run over them, from the configuration.
//!
//! A port is opened once, on the control thread; pollers get its queues. A port that belongs to one
//! poller has one queue pair, one that all use has one for each. What goes over a link is decided
//! elsewhere (`plan`); how, by `proto::link`.

use super::parts::LinkParts;
use super::plan::{FIRST_EPOCH, IN_FLIGHT_MAX, Plan, PollerPlan};
use crate::config::{self, Mover, PortKind, Role};
use crate::dpdk::{
    Destination, DpdkError, Kind, MemifRole, Network as Place, NextHop, Port, PortSpec, Queue,
};
use crate::proto::link::{LinkConfig, PeerEpoch};
use crate::proto::types::{Epoch, MoverId, Nanos};
use crate::wire::frame::Mac;
use crate::wire::packet::{PACKET_HEADER_BYTES, Site};

/// Bytes of IPv4 and UDP headers in front of a packet (RFC 791 without options, RFC 768).
const IP_UDP_BYTES: u16 = 28;

/// Why the network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A port did not open.
    #[error(transparent)]
    Port(#[from] DpdkError),
    /// The settings of a link contradict each other.
    #[error("[link], with port {port:?} of mtu_bytes = {mtu_bytes}: {fault}")]
    Link {
        /// The port.
        port: String,
        /// Its MTU.
        mtu_bytes: u16,
        /// What does not hold.
        fault: &'static str,
    },
}

/// The open ports, in the configuration's order.
pub struct Network {
    ports: Vec<OpenPort>,
    /// Queues that were looked through already, by poller: see [`Network::unreached`].
    probe: Option<Probe>,
}

/// Queues before pollers have them.
struct Probe {
    queues: Vec<Vec<Option<Box<Queue>>>>,
    targets: Vec<ProbeTarget>,
}

/// A mover of the same site, as a poller here reaches one of its pollers.
struct ProbeTarget {
    mover: MoverId,
    poller: usize,
    port: usize,
    to: Destination,
}

struct OpenPort {
    port: Port,
    /// The poller that owns it; none when all have a queue.
    owner: Option<u8>,
}

impl Network {
    /// Opens all ports. On the control thread, once EAL is up.
    ///
    /// # Errors
    /// [`NetworkError::Port`]; ports opened before are closed again.
    pub fn open(mover: &Mover, plan: &Plan) -> Result<Self, NetworkError> {
        let ports = mover.ports.iter().map(|port| {
            let queues = if port.poller.is_some() { 1 } else { plan.pollers.len() as u16 };
            let spec = PortSpec {
                name: port.name.clone(),
                kind: kind(mover, port),
                queues,
                mtu_bytes: port.mtu_bytes,
                mac: port.mac.map(|mac| Mac(mac.0)),
            };
            let opened = Port::open(&spec, &place(mover, port))?;
            Ok(OpenPort { port: opened, owner: port.poller })
        });
        Ok(Self { ports: ports.collect::<Result<_, NetworkError>>()?, probe: None })
    }

    /// Connects ports whose other end was not there or went away. On the control thread, every few
    /// milliseconds.
    pub fn maintain(&mut self, now: Nanos) {
        for open in &mut self.ports {
            open.port.maintain(now);
        }
    }

    /// Those of `members` that no poller of this mover reaches: their next hops have not answered ARP. To
    /// be called again and again before the pollers run, and before others count on this mover; on the
    /// control thread.
    pub fn unreached(
        &mut self,
        mover: &Mover,
        plan: &Plan,
        members: &[MoverId],
        now: Nanos,
    ) -> Vec<MoverId> {
        self.maintain(now);
        let mut probe = self.probe.take().unwrap_or_else(|| self.begin_probe(mover, plan));
        for queue in probe.queues.iter_mut().flatten().flatten() {
            // What peers send meanwhile is theirs to send again.
            queue.receive(now, |_| ());
            queue.refresh(now);
            queue.flush();
        }
        let reached = |member: MoverId| {
            probe.targets.iter().filter(|target| target.mover == member).any(|target| {
                let queue = probe.queues[target.poller][target.port].as_ref();
                queue.is_some_and(|queue| queue.knows(target.to))
            })
        };
        let unreached = members.iter().copied().filter(|member| !reached(*member)).collect();
        self.probe = Some(probe);
        unreached
    }

    fn begin_probe(&mut self, mover: &Mover, plan: &Plan) -> Probe {
        let pollers = plan.pollers.iter();
        let mut queues: Vec<_> = pollers.map(|poller| self.queues(poller.shard.poller)).collect();
        let mut targets = Vec::new();
        for (poller, queues) in queues.iter_mut().enumerate() {
            for link in plan.pollers[poller].links.iter().filter(|link| link.same_site) {
                let ip = mover.peers[link.mover].paths[link.path].ip;
                let queue = queues[link.port].as_mut();
                let to = queue.and_then(|queue| queue.destination(ip, link.peer.poller));
                let target =
                    |to| ProbeTarget { mover: link.peer.mover, poller, port: link.port, to };
                targets.extend(to.map(target));
            }
        }
        Probe { queues, targets }
    }

    /// The queues of one poller, by index of the port. To be asked for once per poller.
    pub fn queues(&mut self, poller: u8) -> Vec<Option<Box<Queue>>> {
        if let Some(probe) = &mut self.probe {
            return std::mem::take(&mut probe.queues[usize::from(poller)]);
        }
        let queue = |open: &mut OpenPort| match open.owner {
            None => open.port.queue(u16::from(poller), poller),
            Some(owner) if owner == poller => open.port.queue(0, poller),
            Some(_) => None,
        };
        self.ports.iter_mut().map(|open| queue(open).map(Box::new)).collect()
    }

    /// The links of one poller, as of the epoch that its site is in.
    ///
    /// # Errors
    /// [`NetworkError::Link`].
    pub fn links(
        &self,
        mover: &Mover,
        poller: &PollerPlan,
        epoch: Epoch,
    ) -> Result<Vec<LinkParts>, NetworkError> {
        let links = poller.links.iter().map(|link| {
            let port = &mover.ports[link.port];
            let config = link_config(mover, port);
            if let Some(fault) = config.fault() {
                let (port, mtu_bytes) = (port.name.clone(), port.mtu_bytes);
                return Err(NetworkError::Link { port, mtu_bytes, fault });
            }
            Ok(LinkParts {
                peer: link.peer,
                config,
                peer_epoch: match link.same_site {
                    true => PeerEpoch::Exactly(epoch),
                    false => PeerEpoch::AtLeast(FIRST_EPOCH),
                },
                port: link.port,
                address: mover.peers[link.mover].paths[link.path].ip,
            })
        });
        links.collect()
    }
}

fn link_config(mover: &Mover, port: &config::Port) -> LinkConfig {
    let link = &mover.link;
    let rto_min_ns = u64::from(link.rto_us_min) * 1_000;
    let rto_max_ns = u64::from(link.rto_ms_max) * 1_000_000;
    let defaults = LinkConfig::default();
    LinkConfig {
        site: match mover.mover.role {
            Role::Primary => Site::Primary,
            Role::Secondary => Site::Secondary,
        },
        payload_bytes_max: port.mtu_bytes - IP_UDP_BYTES - PACKET_HEADER_BYTES as u16,
        data_window: u32::from(link.window_packets).next_power_of_two().clamp(64, 32_768),
        records_max: IN_FLIGHT_MAX,
        rto_initial_ns: defaults.rto_initial_ns.max(rto_min_ns).min(rto_max_ns),
        rto_min_ns,
        rto_max_ns,
        heartbeat_ns: u64::from(link.heartbeat_ms) * 1_000_000,
        silent_ns: u64::from(link.silence_ms_max) * 1_000_000,
        ..defaults
    }
}

fn kind(mover: &Mover, port: &config::Port) -> Kind {
    match &port.kind {
        PortKind::Pci { pci_address } => Kind::Pci(pci_address.clone()),
        PortKind::Memif { socket, memif_role, memif_id } => Kind::Memif {
            socket: socket.clone(),
            role: match memif_role {
                config::MemifRole::Server => MemifRole::Server,
                config::MemifRole::Client => MemifRole::Client,
            },
            id: *memif_id,
        },
        PortKind::AfXdp { interface } => {
            let file = format!("{}.bpf.o", port.name);
            let steer = port.shared.then(|| mover.mover.run_dir.join(file));
            Kind::AfXdp { interface: interface.clone(), steer }
        }
        PortKind::AfPacket { interface } => Kind::AfPacket(interface.clone()),
        PortKind::Ring { ring } => Kind::Ring(ring.clone()),
    }
}

/// A port's place in the network: its address, and the peers that it leads to.
fn place(mover: &Mover, port: &config::Port) -> Place {
    let mut peers: Vec<NextHop> = Vec::new();
    let paths = mover.peers.iter().flat_map(|peer| &peer.paths);
    for path in paths.filter(|path| path.port == port.name) {
        if !peers.iter().any(|known| known.ip == path.ip) {
            peers.push(NextHop { ip: path.ip, mac: path.mac.map(|mac| Mac(mac.0)) });
        }
    }
    Place {
        ip: port.ip.ip,
        prefix_len: port.ip.prefix,
        gateway: port.gateway,
        vlan: port.vlan,
        udp_port: mover.link.udp_port,
        peers,
    }
}
