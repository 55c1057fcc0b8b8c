//! Whether hosts and movers have paths of their own, or one in common (G9).
//!
//! Movers speak to each other by DPDK ports. Hosts come by shared memory (vfio-user), or by NVMe/TCP
//! through the kernel; so the two can meet on an interface only where the kernel still has it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::reader::Doc;
use super::types::{Listener, Mover, Port, PortKind};

/// By what hosts come to a mover.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// No host comes to it: it has no listener.
    #[default]
    NoHosts,
    /// By paths that carry nothing between movers.
    Separate,
    /// By paths of which some are the interfaces of these ports: they carry what movers say to each other
    /// as well.
    Shared(Vec<String>),
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHosts => f.write_str("no hosts"),
            Self::Separate => f.write_str("separate"),
            Self::Shared(ports) => write!(f, "shared: {}", ports.join(", ")),
        }
    }
}

impl Mover {
    /// By what hosts come to this mover.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let is_tcp = |listener: &Listener| matches!(listener, Listener::Tcp { .. });
        let shared: Vec<String> =
            self.ports.iter().filter(|port| port.shared).map(|port| port.name.clone()).collect();
        if self.listeners.is_empty() {
            Traffic::NoHosts
        } else if shared.is_empty() || !self.listeners.iter().any(is_tcp) {
            Traffic::Separate
        } else {
            Traffic::Shared(shared)
        }
    }
}

/// The Linux interface that the kernel still has while the port uses it.
fn interface(port: &Port) -> Option<&str> {
    match &port.kind {
        PortKind::AfXdp { interface } | PortKind::AfPacket { interface } => Some(interface),
        PortKind::Pci { .. } | PortKind::Memif { .. } | PortKind::Ring { .. } => None,
    }
}

/// Judges what ports say of hosts against the listeners.
pub(super) fn check(doc: &Doc, mover: &Mover) {
    let tcp = || {
        mover.listeners.iter().enumerate().filter_map(|(at, listener)| match listener {
            Listener::Tcp { address, .. } => Some((format!("listener[{at}].address"), *address)),
            Listener::VfioUser { .. } => None,
        })
    };
    for (at, port) in mover.ports.iter().enumerate() {
        let key = |field: &str| format!("port[{at}].{field}");
        if !doc.sound(&[&key("kind"), &key("shared"), &key("ip"), "listener"]) {
            continue;
        }
        let name = &port.name;
        if port.shared && interface(port).is_none() {
            let found = match port.kind {
                PortKind::Pci { .. } => {
                    format!("true, and port {name:?} takes its NIC from the kernel")
                }
                _ => format!("true, and no host can come by port {name:?}"),
            };
            let allowed = "false, or kind = \"af_xdp\" or \"af_packet\": hosts' NVMe/TCP goes \
                           through the kernel";
            doc.error(&key("shared"), found, allowed);
            continue;
        }
        for (listener, address) in tcp() {
            let IpAddr::V4(ip) = address else { continue };
            if !doc.sound(&[&listener]) || ip.is_unspecified() || ip.is_loopback() {
                continue;
            }
            if ip == port.ip.ip {
                let found = format!("{ip}, which is port {name:?}'s own");
                doc.error(
                    &listener,
                    found,
                    "an address that the kernel has: mover and kernel have one each",
                );
            } else if port.ip.contains(ip) && !port.shared {
                let found = format!("{ip}, in the subnet of port {name:?}");
                let allowed = match (&port.kind, interface(port)) {
                    (_, Some(interface)) => format!(
                        "if hosts come by {interface}, too, say shared = true at that port: \
                         otherwise it may take their frames away"
                    ),
                    (PortKind::Pci { .. }, _) => "the kernel does not have that NIC: hosts need \
                                                  another way to this address"
                        .to_owned(),
                    _ => "hosts need a way of their own to this address".to_owned(),
                };
                doc.warn(&listener, found, allowed);
            }
        }
    }
}
