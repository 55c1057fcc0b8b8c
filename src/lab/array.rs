//! A storage server for labs and tests: SPDK's stock NVMe-oF target, an independent process whose
//! namespaces all movers of a site reach over TCP, with reservations that survive its restart.
//!
//! It runs in interrupt mode, so that it takes no core while nothing is asked of it. Namespaces are
//! files, which can be compared with what they should hold.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::LabError;
use crate::config::Uuid;

/// Hugepage memory that it takes, MiB.
pub const HUGEPAGE_MIB: u64 = 128;
/// Names its program where this one was built without SPDK.
pub const PROGRAM_VARIABLE: &str = "SETLINE_NVMF_TGT";

/// A storage server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its subsystems.
    pub subsystems: Vec<Subsystem>,
    /// Where its configuration will lie; what is kept of reservations lies beside it.
    pub file: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
}

/// A subsystem of a storage server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsystem {
    /// Its name.
    pub nqn: String,
    /// Its namespaces, numbered from 1: each a file that exists, and its block size in bytes.
    pub namespaces: Vec<(PathBuf, u32)>,
}

impl Array {
    /// The target's configuration.
    #[must_use]
    pub fn config(&self) -> Value {
        let call = |method: &str, params: Value| json!({ "method": method, "params": params });
        let mut bdevs = Vec::new();
        let mut nvmf = vec![call(
            "nvmf_create_transport",
            json!({ "trtype": "TCP", "num_shared_buffers": 256, "buf_cache_size": 16 }),
        )];
        let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        for (at, subsystem) in self.subsystems.iter().enumerate() {
            let nqn = &subsystem.nqn;
            nvmf.push(call(
                "nvmf_create_subsystem",
                json!({ "nqn": nqn, "allow_any_host": true, "serial_number": format!("ARRAY{at}") }),
            ));
            for (index, (file, block_bytes)) in subsystem.namespaces.iter().enumerate() {
                let (nsid, name) = (index + 1, format!("array{at}n{}", index + 1));
                // Kept reservations name the namespace by this.
                let uuid = Uuid::derive(nqn, &nsid.to_string()).to_string();
                bdevs.push(call(
                    "bdev_aio_create",
                    json!({ "name": name, "filename": file, "block_size": block_bytes, "uuid": uuid }),
                ));
                let kept = self.file.with_file_name(format!("{name}.reservations"));
                nvmf.push(call(
                    "nvmf_subsystem_add_ns",
                    json!({ "nqn": nqn, "namespace": {
                        "bdev_name": name, "nsid": nsid, "uuid": uuid, "ptpl_file": kept } }),
                ));
            }
            nvmf.push(call(
                "nvmf_subsystem_add_listener",
                json!({ "nqn": nqn, "listen_address": {
                    "trtype": "TCP", "adrfam": family, "traddr": self.address.ip().to_string(),
                    "trsvcid": self.address.port().to_string() } }),
            ));
        }
        json!({ "subsystems": [
            { "subsystem": "bdev", "config": bdevs },
            { "subsystem": "nvmf", "config": nvmf },
        ]})
    }

    /// Whether everything is offered: its control socket says so (JSON-RPC 2.0).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.listening().is_some_and(|count| count == self.subsystems.len())
    }

    /// How many of its subsystems listen.
    fn listening(&self) -> Option<usize> {
        let mut socket = UnixStream::connect(&self.socket).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "nvmf_get_subsystems" });
        socket.write_all(call.to_string().as_bytes()).ok()?;
        // It answers with one document and keeps the connection.
        let mut documents = serde_json::Deserializer::from_reader(socket).into_iter::<Value>();
        let answer = documents.next()?.ok()?;
        let known = answer["result"].as_array()?.iter().filter(|found| {
            let ours = self.subsystems.iter().any(|ours| found["nqn"] == ours.nqn.as_str());
            ours && found["listen_addresses"].as_array().is_some_and(|all| !all.is_empty())
        });
        Some(known.count())
    }

    /// The target's arguments, on core `core`.
    #[must_use]
    pub fn arguments(&self, core: u16) -> Vec<String> {
        let mask = format!("[{core}]");
        let memory = HUGEPAGE_MIB.to_string();
        let named = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> =
            ["--interrupt-mode", "--no-pci", "--disable-cpumask-locks", "-m", &mask, "-s", &memory]
                .map(str::to_owned)
                .to_vec();
        arguments.extend([
            "-c".to_owned(),
            named(&self.file),
            "-r".to_owned(),
            named(&self.socket),
        ]);
        arguments
    }
}

/// The target's program.
///
/// # Errors
/// [`LabError::NoProgram`].
pub fn program() -> Result<PathBuf, LabError> {
    let name = "nvmf_tgt".to_owned();
    let built = option_env!("SETLINE_SPDK_BIN").map(|directory| Path::new(directory).join(&name));
    let path = std::env::var_os(PROGRAM_VARIABLE).map(PathBuf::from).or(built);
    let looked = path.unwrap_or_else(|| PathBuf::from(format!("${PROGRAM_VARIABLE}")));
    if looked.is_file() { Ok(looked) } else { Err(LabError::NoProgram { name, looked }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_keeps_its_identity_and_its_reservations_over_a_restart() {
        let subsystem = |nqn: &str| Subsystem {
            nqn: nqn.to_owned(),
            namespaces: vec![("/lab/a.img".into(), 4096), ("/lab/b.img".into(), 512)],
        };
        let array = Array {
            address: "127.0.0.1:4420".parse().unwrap(),
            subsystems: vec![
                subsystem("nqn.2026-11.io.setline:x"),
                subsystem("nqn.2026-11.io.setline:y"),
            ],
            file: "/lab/array/array.json".into(),
            socket: "/lab/array/array.sock".into(),
        };
        assert_eq!(array.config(), array.config());
        let text = array.config().to_string();
        for kept in ["array0n1", "array0n2", "array1n1", "array1n2"] {
            assert!(text.contains(&format!("/lab/array/{kept}.reservations")), "{text}");
        }
        let uuids: std::collections::BTreeSet<&str> = text
            .match_indices("\"uuid\":\"")
            .map(|(at, key)| &text[at + key.len()..][..36])
            .collect();
        assert_eq!(uuids.len(), 4, "each has its own, the same for device and namespace");
    }
}
