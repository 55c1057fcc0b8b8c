//! The address of an NVMe controller as SPDK's programs write it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// How a controller is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// NVMe/TCP.
    Tcp(SocketAddr),
    /// vfio-user: the directory that holds the socket.
    VfioUser(PathBuf),
    /// A PCI address.
    Pcie(String),
}

/// An SPDK transport id: `trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trid {
    /// Where the controller is.
    pub transport: Transport,
    /// The subsystem; PCI controllers need none.
    pub subnqn: Option<String>,
}

/// What is wrong with a transport id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TridError {
    /// Not `key:value`.
    #[error("'{0}' is not of the form key:value")]
    Form(String),
    /// A key that is not known.
    #[error("unknown key '{0}': trtype, adrfam, traddr, trsvcid and subnqn are known")]
    Key(String),
    /// A needed key is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A transport that is not known.
    #[error("trtype '{0}': TCP, VFIOUSER and PCIe are known")]
    Transport(String),
    /// An address that is none.
    #[error("'{0}' is no address and port")]
    Address(String),
}

impl FromStr for Trid {
    type Err = TridError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let [mut trtype, mut traddr, mut trsvcid, mut subnqn] = [None, None, None, None];
        for pair in text.split_whitespace() {
            let (key, value) =
                pair.split_once([':', '=']).ok_or_else(|| TridError::Form(pair.to_owned()))?;
            match key.to_ascii_lowercase().as_str() {
                "trtype" => trtype = Some(value),
                "traddr" => traddr = Some(value),
                "trsvcid" => trsvcid = Some(value),
                "subnqn" => subnqn = Some(value),
                // The address itself says which family it is of.
                "adrfam" => {}
                _ => return Err(TridError::Key(key.to_owned())),
            }
        }
        let trtype = trtype.ok_or(TridError::Missing("trtype"))?;
        let traddr = traddr.ok_or(TridError::Missing("traddr"))?;
        let transport = match trtype.to_ascii_lowercase().as_str() {
            "tcp" => {
                let port = trsvcid.ok_or(TridError::Missing("trsvcid"))?;
                let bad = || TridError::Address(format!("{traddr} {port}"));
                let address = traddr.parse().map_err(|_| bad())?;
                Transport::Tcp(SocketAddr::new(address, port.parse().map_err(|_| bad())?))
            }
            "vfiouser" => Transport::VfioUser(traddr.into()),
            "pcie" => Transport::Pcie(traddr.to_owned()),
            _ => return Err(TridError::Transport(trtype.to_owned())),
        };
        if subnqn.is_none() && matches!(transport, Transport::Tcp(_)) {
            return Err(TridError::Missing("subnqn"));
        }
        Ok(Self { transport, subnqn: subnqn.map(str::to_owned) })
    }
}

impl fmt::Display for Trid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Tcp(address) => write!(f, "NVMe/TCP {address}"),
            Transport::VfioUser(dir) => write!(f, "vfio-user {}", dir.display()),
            Transport::Pcie(address) => write!(f, "PCI {address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_transports_are_understood() {
        let tcp: Trid =
            "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.2026-11.io.x:a"
                .parse()
                .unwrap();
        assert_eq!(tcp.transport, Transport::Tcp("127.0.0.1:4420".parse().unwrap()));
        assert_eq!(tcp.subnqn.as_deref(), Some("nqn.2026-11.io.x:a"));
        let v6: Trid = "trtype=tcp traddr=::1 trsvcid=1 subnqn=n".parse().unwrap();
        assert_eq!(v6.transport, Transport::Tcp("[::1]:1".parse().unwrap()));
        let vfio: Trid = "trtype:VFIOUSER traddr:/run/a".parse().unwrap();
        assert_eq!(vfio.transport, Transport::VfioUser("/run/a".into()));
        let pci: Trid = "trtype:PCIe traddr:0000:3b:00.0".parse().unwrap();
        assert_eq!(pci.transport, Transport::Pcie("0000:3b:00.0".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Trid>().unwrap_err();
        assert_eq!(error("traddr:x"), TridError::Missing("trtype"));
        assert_eq!(error("trtype:RDMA traddr:x"), TridError::Transport("RDMA".to_owned()));
        assert_eq!(error("trtype:TCP traddr:127.0.0.1"), TridError::Missing("trsvcid"));
        assert_eq!(error("nonsense"), TridError::Form("nonsense".to_owned()));
        assert_eq!(error("trtyp:TCP"), TridError::Key("trtyp".to_owned()));
    }
}
