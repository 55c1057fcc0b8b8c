//! What movers of a lab need beside one another: a storage server, an etcd for each site.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::{Builder, HUB_HOST_IP, NVME_TCP_PORT, PlannedUnreplicated, PlannedVolume, site_name};
use crate::config::{Cluster, ClusterStoreKind, Disk, Role};
use crate::lab::array::{Array, Subsystem};
use crate::lab::etcd::Etcd;
use crate::lab::options::{Base, Network, Store};
use crate::lab::service::{Kind, PlannedService};

/// Where the first site's etcd listens in a namespace of its own; the other's is 100 further on.
const ETCD_PORTS: u16 = 2379;
const SITES: [Role; 2] = [Role::Primary, Role::Secondary];

impl Builder<'_> {
    /// Where the storage server of `--base array` listens: in the hub's namespace, if there are any.
    fn array_address(&self) -> SocketAddr {
        self.address(0, NVME_TCP_PORT)
    }

    pub(super) fn remote(&self, site: Role, index: usize) -> Disk {
        let address = self.array_address();
        Disk::NvmeTcp {
            address: address.ip(),
            port: address.port(),
            nqn: array_nqn(site).to_owned(),
            nsid: index as u32 + 1,
        }
    }

    pub(super) fn services(
        &self,
        volumes: &[PlannedVolume],
        unreplicated: &[PlannedUnreplicated],
    ) -> Vec<PlannedService> {
        let mut services = Vec::new();
        if self.shape.store() == Store::Etcd {
            services.extend(SITES.map(|site| self.service(Kind::Etcd(self.etcd(site)))));
        }
        if self.shape.base() == Base::Array {
            services.push(self.service(self.array(volumes, unreplicated)));
        }
        services
    }

    fn service(&self, kind: Kind) -> PlannedService {
        let name = match &kind {
            Kind::Array(..) => "array".to_owned(),
            Kind::Etcd(etcd) => etcd.name.clone(),
        };
        PlannedService {
            namespace: (self.shape.network() == Network::Veth).then(|| self.hub()),
            log: self.directory.join("log").join(format!("{name}.log")),
            name,
            kind,
        }
    }

    /// Address of a service: a port of the loopback address, or one of the hub's namespace.
    fn address(&self, index: usize, in_hub: u16) -> SocketAddr {
        match self.shape.network() {
            Network::Memif => (Ipv4Addr::LOCALHOST, self.machine.lab_ports[index]).into(),
            Network::Veth => (HUB_HOST_IP, in_hub).into(),
        }
    }

    fn etcd(&self, site: Role) -> Etcd {
        let at = SITES.iter().position(|known| *known == site).unwrap_or(0);
        let ports = ETCD_PORTS + 100 * at as u16;
        let name = format!("etcd-{}", site_name(site));
        Etcd {
            clients: self.address(1 + 2 * at, ports),
            peers: self.address(2 + 2 * at, ports + 1),
            directory: self.directory.join(&name),
            name,
        }
    }

    pub(super) fn cluster(&self, site: Role) -> Cluster {
        match self.shape.store() {
            Store::Embedded => Cluster::default(),
            Store::Etcd => Cluster {
                store: ClusterStoreKind::Etcd,
                endpoints: vec![self.etcd(site).endpoint()],
                spare: self.shape.spare.clone().filter(|_| site == Role::Primary),
                ..Cluster::default()
            },
        }
    }

    fn array(&self, volumes: &[PlannedVolume], unreplicated: &[PlannedUnreplicated]) -> Kind {
        let directory = self.directory.join("array");
        let subsystem = |site, file: &dyn Fn(&PlannedVolume) -> PathBuf| Subsystem {
            nqn: array_nqn(site).to_owned(),
            namespaces: volumes.iter().map(|v| (file(v), self.shape.block_bytes)).collect(),
        };
        let mut here = subsystem(Role::Primary, &|v| self.image("primary", &v.name));
        let others = unreplicated.iter().filter_map(|volume| volume.file.clone());
        here.namespaces.extend(others.map(|file| (file, self.shape.block_bytes)));
        let array = Array {
            address: self.array_address(),
            subsystems: vec![here, subsystem(Role::Secondary, &|v| v.secondary.clone())],
            file: directory.join("array.json"),
            socket: directory.join("array.sock"),
        };
        let core = self.machine.cores.last().copied().unwrap_or(0);
        Kind::Array(array, core)
    }
}

/// The storage server's subsystem for one site.
fn array_nqn(site: Role) -> &'static str {
    match site {
        Role::Primary => "nqn.2026-11.io.setline:array-here",
        Role::Secondary => "nqn.2026-11.io.setline:array-there",
    }
}
