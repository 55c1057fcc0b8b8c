//! Where an NVMe controller is reached: as configuration, as SPDK's text form,
//! and as SPDK's structure.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::error::{Error, check, cstring};
use super::sys;

/// The address of an NVMe controller or target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// NVMe/TCP.
    Tcp(SocketAddr),
    /// vfio-user: the directory that holds the socket `cntrl`.
    VfioUser(PathBuf),
    /// A controller on the PCI bus, `0000:3b:00.0`.
    Pcie(String),
}

impl Address {
    /// SPDK's text form (`trtype:TCP adrfam:IPv4 traddr:... trsvcid:...`), as its
    /// programs take it with `-r`; with `subnqn` when one is given.
    pub fn transport_id(&self, nqn: Option<&str>) -> String {
        let mut text = match self {
            Self::Tcp(addr) => {
                let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
                let (ip, port) = (addr.ip(), addr.port());
                format!("trtype:TCP adrfam:{family} traddr:{ip} trsvcid:{port}")
            }
            Self::VfioUser(dir) => format!("trtype:VFIOUSER traddr:{}", dir.display()),
            Self::Pcie(bdf) => format!("trtype:PCIe traddr:{bdf}"),
        };
        if let Some(nqn) = nqn {
            text += &format!(" subnqn:{nqn}");
        }
        text
    }

    pub(super) fn raw(&self, nqn: Option<&str>) -> Result<sys::spdk_nvme_transport_id, Error> {
        parse_transport_id(&self.transport_id(nqn))
    }
}

/// Parses SPDK's text form.
pub(super) fn parse_transport_id(text: &str) -> Result<sys::spdk_nvme_transport_id, Error> {
    let text = cstring("transport id", text)?;
    let mut id = sys::spdk_nvme_transport_id::default();
    // SAFETY: a zeroed destination and a NUL-terminated string.
    let rc = unsafe { sys::spdk_nvme_transport_id_parse(&mut id, text.as_ptr()) };
    check("spdk_nvme_transport_id_parse", rc)?;
    Ok(id)
}
