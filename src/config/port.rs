//! A mover's network ports.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Serialize;

use super::address::{Cidr, Mac};

/// `[[port]]`: a DPDK port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Port {
    /// Name, unique within the mover.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: PortKind,
    /// Its IPv4 address and the length of its subnet's prefix.
    pub ip: Cidr,
    /// Router to peers outside the subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Largest IPv4 packet, bytes.
    pub mtu_bytes: u16,
    /// The poller that owns its only queue pair; one queue pair on every poller when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poller: Option<u8>,
    /// IEEE 802.1Q tag of all frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Its MAC address, where the kind leaves that open; the driver's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Whether its interface stays the kernel's, too, so that hosts' NVMe/TCP may come by it (G9).
    #[serde(skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind")]
pub enum PortKind {
    /// A NIC that DPDK drives.
    #[serde(rename = "pci")]
    Pci {
        /// `DDDD:BB:DD.F`.
        pci_address: String,
    },
    /// Shared memory to one other process on this machine.
    #[serde(rename = "memif")]
    Memif {
        /// Unix socket through which the two ends meet.
        socket: PathBuf,
        /// Which end it is.
        memif_role: MemifRole,
        /// Interface number on that socket; the same at both ends.
        memif_id: u32,
    },
    /// A Linux interface through AF_XDP.
    #[serde(rename = "af_xdp")]
    AfXdp {
        /// Interface name.
        interface: String,
    },
    /// A Linux interface through AF_PACKET.
    #[serde(rename = "af_packet")]
    AfPacket {
        /// Interface name.
        interface: String,
    },
    /// DPDK rings within one process: tests and benchmarks.
    #[serde(rename = "ring")]
    Ring {
        /// The name both ends share.
        ring: String,
    },
}

/// Which end of a memif a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemifRole {
    /// Creates the socket.
    Server,
    /// Connects to it, and provides the memory.
    Client,
}

/// For serde, which asks by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !*value
}
