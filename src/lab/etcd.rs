//! An etcd of one server for labs and tests: a process of its own, on ports of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::LabError;

/// An etcd server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Its name.
    pub name: String,
    /// Where it answers clients.
    pub clients: SocketAddr,
    /// Where other servers would reach it.
    pub peers: SocketAddr,
    /// Where its data lie.
    pub directory: PathBuf,
}

impl Etcd {
    /// As a client names it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.clients)
    }

    /// The server's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let (clients, peers) = (self.endpoint(), format!("http://{}", self.peers));
        [
            ("--name", self.name.clone()),
            ("--data-dir", self.directory.display().to_string()),
            ("--listen-client-urls", clients.clone()),
            ("--advertise-client-urls", clients),
            ("--listen-peer-urls", peers.clone()),
            ("--initial-advertise-peer-urls", peers.clone()),
            ("--initial-cluster", format!("{}={peers}", self.name)),
            ("--logger", "zap".to_owned()),
            ("--log-level", "warn".to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }

    /// Whether it serves clients.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.health().is_some_and(|text| text.contains("\"health\":\"true\""))
    }

    fn health(&self) -> Option<String> {
        let limit = Duration::from_secs(1);
        let mut socket = TcpStream::connect_timeout(&self.clients, limit).ok()?;
        socket.set_read_timeout(Some(limit)).ok()?;
        socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

/// The server's program.
///
/// # Errors
/// [`LabError::NoProgram`].
pub fn program() -> Result<PathBuf, LabError> {
    let name = "etcd".to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(&name));
    places.find(|path| path.is_file()).ok_or(LabError::NoProgram { name, looked: "$PATH".into() })
}
