//! Opening and closing ports: devices, queues, buffers.

use super::error::{DpdkError, check, text};
use super::gate::{Gate, wait_for_pollers};
use super::interrupt::on_interrupt_thread;
use super::kind::{Kind, LONG_PACKETS, MemifRole, SMALL_BYTES, frame_bytes};
use super::memif::{Client, Served};
use super::neighbours::{Neighbours, NextHop};
use super::pool::Pool;
use super::queue::Queue;
use super::rings::{close_ring, create_ring};
use super::steer;
use super::sys;
use crate::proto::types::Nanos;
use crate::wire::frame::{Mac, Station};
use std::ffi::{CStr, CString};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// What a port is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Its name in messages.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Queue pairs: one per poller that uses the port.
    pub queues: u16,
    /// Largest IPv4 packet, in bytes.
    pub mtu_bytes: u16,
    /// Its Ethernet address, where not the device's own.
    pub mac: Option<Mac>,
}

/// The port's place in the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Network {
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
    /// Bits of the address that all of its subnet share.
    pub prefix_len: u8,
    /// Router to peers outside the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// 802.1Q tag of all frames.
    pub vlan: Option<u16>,
    /// Poller i of every mover listens at UDP port `udp_port + i`.
    pub udp_port: u16,
    /// The peers reached through the port, with their Ethernet addresses where configured.
    pub peers: Vec<NextHop>,
}

/// An open port. The control thread opens it and hands its queues to pollers; it closes when it
/// and all of its queues are dropped.
pub struct Port {
    shared: Arc<Shared>,
    given: Vec<bool>,
    client: Option<Client>,
}

/// How long clients that have just connected to a server that closes have to be answered.
const LAST_CLIENTS: Duration = Duration::from_millis(20);

/// What the queues of a port share; none of it is written after opening.
pub(super) struct Shared {
    pub(super) id: u16,
    pub(super) mtu: u16,
    pub(super) station: Station,
    pub(super) neighbours: Arc<Neighbours>,
    /// Whether the driver takes frames in several pieces.
    pub(super) chains: bool,
    /// Whether queues may be used.
    pub(super) running: AtomicBool,
    is_memif: bool,
    network: Network,
    name: String,
    device: Device,
    receive: Pool,
    headers: Option<Pool>,
    long: Option<Pool>,
    references: Pool,
}

/// What has to be undone when the port is closed.
enum Device {
    /// Nothing: the bus owns it.
    Bus,
    /// The virtual device of this name.
    Virtual(CString),
    /// Such a device that its peers may connect to, and disconnect from, while it is undone.
    Memif {
        name: CString,
        /// The socket that it made, as server.
        server: Option<Served>,
    },
    /// One end of this ring.
    Ring(String),
}

/// Distinguishes devices and pools of one process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

impl Port {
    /// Opens the port and starts it. Called by the control thread, after `spdk::env::Env::init`.
    ///
    /// # Errors
    /// See [`DpdkError`]; whatever was made before the failure has been undone.
    pub fn open(spec: &PortSpec, network: &Network) -> Result<Self, DpdkError> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        if let Kind::AfXdp { interface, steer: Some(file) } = &spec.kind {
            steer::prepare(&spec.name, interface, file, network.ip)?;
        }
        let (id, device) = create(spec, serial)?;
        let client = match (&spec.kind, &device) {
            (Kind::Memif { socket, .. }, Device::Memif { name, server: None }) => {
                Client::new(socket, name)
            }
            _ => None,
        };
        match start(spec, network, serial, id, device) {
            Ok(shared) => {
                tracing::info!(
                    port = spec.name,
                    mac = %shared.station.mac,
                    ip = %network.ip,
                    mtu = spec.mtu_bytes,
                    chains = shared.chains,
                    "port open"
                );
                let given = vec![false; usize::from(spec.queues)];
                Ok(Self { shared: Arc::new(shared), given, client })
            }
            Err((error, device)) => {
                close(id, device);
                Err(error)
            }
        }
    }

    /// Queue pair `index`, for the poller `poller` of this mover. None when it was taken before
    /// or there is none.
    pub fn queue(&mut self, index: u16, poller: u8) -> Option<Queue> {
        let given = self.given.get_mut(usize::from(index))?;
        if std::mem::replace(given, true) {
            return None;
        }
        let gate = if self.shared.is_memif { Gate::new()? } else { Gate::OPEN };
        Some(Queue::new(Arc::clone(&self.shared), index, poller, gate))
    }

    /// Connects a memif client whose server was not there, or went away. Called by the control
    /// thread every few milliseconds; does nothing for other ports, and while there is a
    /// connection or the beginning of one.
    pub fn maintain(&mut self, now: Nanos) {
        let Some(client) = &mut self.client else { return };
        let running = self.shared.running.load(Ordering::SeqCst);
        if client.is_due(now, running) {
            self.shared.stop();
            client.starts();
            self.shared.start();
        }
    }

    /// Whether the link is up. Memif: whether the peer is connected.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.shared.link_is_up()
    }

    /// The port's Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.shared.station.mac
    }
}

impl Shared {
    /// Where frames to `ip` go first: itself, or the router. None when there is no way.
    pub(super) fn next_hop(&self, ip: Ipv4Addr) -> Option<Ipv4Addr> {
        next_hop(&self.network, ip)
    }

    pub(super) fn link_is_up(&self) -> bool {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: the port exists and `link` is a valid destination.
        let rc = unsafe { sys::rte_eth_link_get_nowait(self.id, &mut link) };
        // SAFETY: all members of the union are plain integers.
        let word = unsafe { link.__bindgen_anon_1.val64 };
        // struct rte_eth_link: 32 bits of speed, then duplex, autoneg, status.
        rc == 0 && word >> 34 & 1 != 0
    }

    /// Stops the port, with no poller inside.
    fn stop(&self) {
        if self.running.swap(false, Ordering::SeqCst) {
            wait_for_pollers();
            // SAFETY: no poller uses a queue.
            unsafe { sys::rte_eth_dev_stop(self.id) };
        }
    }

    fn start(&self) {
        // SAFETY: the port is configured and stopped.
        let started = unsafe { sys::rte_eth_dev_start(self.id) } == 0;
        self.running.store(started, Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn header_pool(&self) -> &Pool {
        self.headers.as_ref().unwrap_or(&self.receive)
    }

    /// Buffers for what is copied and is too long for one of [`Self::header_pool`]; none where those hold
    /// whole frames.
    #[inline]
    pub(super) const fn long_pool(&self) -> Option<&Pool> {
        self.long.as_ref()
    }

    #[inline]
    pub(super) const fn reference_pool(&self) -> &Pool {
        &self.references
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        tracing::info!(port = self.name, "port closed");
        close(self.id, std::mem::replace(&mut self.device, Device::Bus));
    }
}

fn next_hop(network: &Network, ip: Ipv4Addr) -> Option<Ipv4Addr> {
    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix_len)).unwrap_or(0);
    let here = u32::from(network.ip) & mask == u32::from(ip) & mask;
    if here { Some(ip) } else { network.gateway }
}

/// The table of next hops: peers of the subnet, and the router where one is outside.
fn next_hops(network: &Network) -> Vec<NextHop> {
    let hop = |peer: &NextHop| match next_hop(network, peer.ip)? {
        ip if ip == peer.ip => Some(*peer),
        router => Some(NextHop { ip: router, mac: peer.mac }),
    };
    network.peers.iter().filter_map(hop).collect()
}

/// Makes the device known to DPDK: its port number, and how to undo it.
fn create(spec: &PortSpec, serial: u32) -> Result<(u16, Device), DpdkError> {
    let port = spec.name.as_str();
    if let Kind::Ring(ring) = &spec.kind {
        let id = create_ring(spec, ring, serial)?;
        return Ok((id, Device::Ring(ring.clone())));
    }
    let (name, device) = match (&spec.kind, spec.kind.device(spec.mtu_bytes, spec.queues)) {
        (Kind::Pci(address), _) => (text(port, address)?, Device::Bus),
        (kind, Some((driver, mut arguments))) => {
            if let (Kind::Memif { .. }, Some(mac)) = (kind, spec.mac) {
                arguments += &format!(",mac={mac}");
            }
            let name = text(port, &format!("{driver}{serial}"))?;
            let arguments = text(port, &arguments)?;
            let server = match kind {
                Kind::Memif { socket, role: MemifRole::Server, .. } => {
                    Some(Served::claim(port, socket)?)
                }
                _ => None,
            };
            // SAFETY: both strings are NUL-terminated and copied by DPDK.
            let rc = unsafe { sys::rte_vdev_init(name.as_ptr(), arguments.as_ptr()) };
            check("rte_vdev_init", port, rc)?;
            let device = match kind {
                Kind::Memif { .. } => Device::Memif { name: name.clone(), server },
                _ => Device::Virtual(name.clone()),
            };
            (name, device)
        }
        (_, None) => (CString::default(), Device::Bus),
    };
    let mut id = 0;
    // SAFETY: a NUL-terminated string and a valid destination.
    let rc = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut id) };
    if rc != 0 {
        if let Device::Virtual(name) | Device::Memif { name, .. } = &device {
            // SAFETY: created above, used by nobody.
            unsafe { sys::rte_vdev_uninit(name.as_ptr()) };
        }
        let device = name.to_string_lossy().into_owned();
        return Err(DpdkError::NoDevice { port: port.to_owned(), device });
    }
    Ok((id, device))
}

/// Configures and starts the port. On failure the device comes back, to be undone.
fn start(
    spec: &PortSpec,
    network: &Network,
    serial: u32,
    id: u16,
    device: Device,
) -> Result<Shared, (DpdkError, Device)> {
    let made = || -> Result<_, DpdkError> {
        let port = spec.name.as_str();
        let chains = configure(spec, id)?;
        let buffers = spec.kind.buffers(spec.mtu_bytes);
        let queues = u32::from(spec.queues);
        let pool = |what: &str, packets: u32, bytes: u16| {
            Pool::new(port, &format!("setline{serial}{what}"), packets * queues, 64, bytes)
        };
        let receive = pool("r", buffers.receive_packets, buffers.receive_bytes)?;
        let headers = if buffers.own_headers {
            Some(pool("h", buffers.header_packets, SMALL_BYTES)?)
        } else {
            None
        };
        let small = buffers.own_headers || buffers.receive_bytes <= SMALL_BYTES;
        let long =
            if small { Some(pool("l", LONG_PACKETS, frame_bytes(spec.mtu_bytes))?) } else { None };
        // As many as a device may hold, and as wait for it.
        let references = pool("x", u32::from(buffers.descriptors) + 1024, 0)?;
        set_up_queues(spec, id, buffers.descriptors, &receive)?;
        // SAFETY: configured above.
        let started = check("rte_eth_dev_start", port, unsafe { sys::rte_eth_dev_start(id) });
        let running = match started {
            Ok(_) => true,
            // The server is not there yet; `Port::maintain` tries again.
            Err(_) if matches!(spec.kind, Kind::Memif { .. }) => false,
            Err(error) => return Err(error),
        };
        let mac = address(spec, id, network.ip)?;
        Ok((chains, running, receive, (headers, long), references, mac))
    };
    let (chains, running, receive, (headers, long), references, mac) = match made() {
        Ok(made) => made,
        Err(error) => return Err((error, device)),
    };
    let station = Station { mac, ip: network.ip, vlan: network.vlan, udp_port: network.udp_port };
    Ok(Shared {
        id,
        mtu: spec.mtu_bytes,
        station,
        neighbours: Arc::new(Neighbours::new(&next_hops(network))),
        chains,
        running: AtomicBool::new(running),
        is_memif: matches!(spec.kind, Kind::Memif { .. }),
        network: network.clone(),
        name: spec.name.clone(),
        device,
        receive,
        headers,
        long,
        references,
    })
}

/// Whether the driver takes frames in several pieces.
fn configure(spec: &PortSpec, id: u16) -> Result<bool, DpdkError> {
    let port = spec.name.as_str();
    let mut info = sys::rte_eth_dev_info::default();
    // SAFETY: the port exists and `info` is a valid destination.
    check("rte_eth_dev_info_get", port, unsafe { sys::rte_eth_dev_info_get(id, &mut info) })?;
    let available = info.max_rx_queues.min(info.max_tx_queues);
    if available < spec.queues {
        let (port, wanted) = (port.to_owned(), spec.queues);
        return Err(DpdkError::Queues { port, wanted, available });
    }
    let mut conf = sys::rte_eth_conf::default();
    if !spec.kind.ignores_mtu() {
        if info.max_mtu != 0 && spec.mtu_bytes > info.max_mtu {
            let (port, wanted) = (port.to_owned(), spec.mtu_bytes);
            return Err(DpdkError::Mtu { port, wanted, available: info.max_mtu });
        }
        conf.rxmode.mtu = u32::from(spec.mtu_bytes);
    }
    if spec.queues > 1 && matches!(spec.kind, Kind::Pci(_)) {
        conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = sys::SETLINE_RSS_UDP4 & info.flow_type_rss_offloads;
    }
    let chains = info.tx_offload_capa & sys::SETLINE_TX_MULTI_SEGS != 0;
    if chains {
        conf.txmode.offloads |= sys::SETLINE_TX_MULTI_SEGS;
    }
    // SAFETY: the port exists and is stopped; the configuration is copied.
    let rc = unsafe { sys::rte_eth_dev_configure(id, spec.queues, spec.queues, &conf) };
    check("rte_eth_dev_configure", port, rc)?;
    Ok(chains)
}

fn set_up_queues(spec: &PortSpec, id: u16, descriptors: u16, pool: &Pool) -> Result<(), DpdkError> {
    let port = spec.name.as_str();
    let [mut receive, mut send] = [descriptors; 2];
    // SAFETY: the port is configured and both numbers are valid destinations.
    let rc = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut receive, &mut send) };
    check("rte_eth_dev_adjust_nb_rx_tx_desc", port, rc)?;
    let any_node = u32::MAX;
    for queue in 0..spec.queues {
        // SAFETY: the port is configured for that queue; the pool outlives the port.
        let rc = unsafe {
            sys::rte_eth_rx_queue_setup(
                id,
                queue,
                receive,
                any_node,
                std::ptr::null(),
                pool.as_ptr(),
            )
        };
        check("rte_eth_rx_queue_setup", port, rc)?;
        // SAFETY: as above.
        let rc =
            unsafe { sys::rte_eth_tx_queue_setup(id, queue, send, any_node, std::ptr::null()) };
        check("rte_eth_tx_queue_setup", port, rc)?;
    }
    Ok(())
}

/// The port's Ethernet address: configured, the device's own, or, for devices without one, a
/// locally administered one made of the IPv4 address.
fn address(spec: &PortSpec, id: u16, ip: Ipv4Addr) -> Result<Mac, DpdkError> {
    let port = spec.name.as_str();
    if let Some(Mac(bytes)) = spec.mac
        && !spec.kind.ignores_mtu()
    {
        let mut wanted = sys::rte_ether_addr { addr_bytes: bytes };
        // SAFETY: the port exists; the address is copied.
        let rc = unsafe { sys::rte_eth_dev_default_mac_addr_set(id, &mut wanted) };
        check("rte_eth_dev_default_mac_addr_set", port, rc)?;
    }
    if let (Some(mac), Kind::Memif { .. } | Kind::Ring(_)) = (spec.mac, &spec.kind) {
        return Ok(mac);
    }
    let mut own = sys::rte_ether_addr::default();
    // SAFETY: the port exists and `own` is a valid destination.
    check("rte_eth_macaddr_get", port, unsafe { sys::rte_eth_macaddr_get(id, &mut own) })?;
    if own.addr_bytes == [0; 6] {
        let [a, b, c, d] = ip.octets();
        return Ok(Mac([2, 0, a, b, c, d]));
    }
    Ok(Mac(own.addr_bytes))
}

/// Stops and closes the port and undoes its device. Failures are logged: nothing can be done.
fn close(id: u16, device: Device) {
    match device {
        Device::Bus => stop_and_close(id),
        Device::Virtual(name) => close_virtual(id, &name),
        Device::Memif { name, server: None } => {
            on_interrupt_thread(Duration::ZERO, move || close_virtual(id, &name));
        }
        Device::Memif { name, server: Some(served) } => {
            // From here on nobody connects; the driver removes whatever is there. Who has connected
            // before is answered in that time.
            let _ = std::fs::remove_file(served.socket());
            let _ = std::fs::File::create_new(served.socket());
            on_interrupt_thread(LAST_CLIENTS, move || close_virtual(id, &name));
        }
        Device::Ring(name) => {
            stop_and_close(id);
            close_ring(&name);
        }
    }
}

fn close_virtual(id: u16, name: &CStr) {
    stop_and_close(id);
    // SAFETY: created when the port was opened; its port is closed.
    unsafe { sys::rte_vdev_uninit(name.as_ptr()) };
}

fn stop_and_close(id: u16) {
    // SAFETY: no queue of the port is left.
    let rc = unsafe { sys::rte_eth_dev_stop(id) };
    if rc != 0 {
        tracing::debug!(id, rc, "rte_eth_dev_stop");
    }
    // SAFETY: stopped above.
    let rc = unsafe { sys::rte_eth_dev_close(id) };
    if rc != 0 {
        tracing::warn!(id, rc, "rte_eth_dev_close");
    }
}
