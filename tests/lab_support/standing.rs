//! A lab that is left standing for a test, and hosts of it in processes of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use setline::spdk::address::Address;

/// Set in the process that is the host: what it is to know.
pub(crate) const ROLE: &str = "SETLINE_TEST_MOVER";

/// A standing lab, taken down when it goes.
pub(crate) struct Lab {
    pub(crate) directory: PathBuf,
    pub(crate) nqn: String,
    /// Transport ids of the primary movers.
    pub(crate) ids: Vec<String>,
}

impl Lab {
    pub(crate) fn up(name: &str, arguments: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("setline-{name}-{}", std::process::id()));
        let output = Command::new(env!("CARGO_BIN_EXE_setline"))
            .args(["--output", "json", "lab", "up", "--dir"])
            .arg(&directory)
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let up: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids = up["transport_ids"].as_array().unwrap();
        Self {
            directory,
            nqn: up["nqn"].as_str().unwrap().to_owned(),
            ids: ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect(),
        }
    }

    /// What `setline --output json ...` says.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_setline"))
            .arg("--lab")
            .arg(&self.directory)
            .args(["--output", "json"])
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Closes the open set, waits until the second site has applied it, and takes the lab down;
    /// then the images of both sites are equal. Its files stay until it is dropped.
    pub(crate) fn ends_with_equal_sites(&self) {
        let closed = self.ask(&["set", "close"])["id"].as_u64().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let applied = |groups: &Value| {
            let groups =
                groups.as_array().unwrap().iter().filter(|group| group["apply"] != "not-here");
            groups.map(|group| group["sets"]["applied"].as_u64().unwrap()).min().unwrap()
        };
        while applied(&self.ask(&["group", "show"])) < closed {
            assert!(Instant::now() < until, "set {closed} is not applied");
            std::thread::sleep(Duration::from_millis(50));
        }
        let down = Command::new(env!("CARGO_BIN_EXE_setline"))
            .args(["lab", "down", "--keep", "--dir"])
            .arg(&self.directory)
            .output()
            .unwrap();
        assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        let images = images(&self.directory.join("img"));
        assert!(!images.is_empty());
        for (primary, secondary) in images {
            let (one, other) =
                (std::fs::read(&primary).unwrap(), std::fs::read(&secondary).unwrap());
            assert!(one == other, "{} and {}", primary.display(), secondary.display());
            assert!(one.iter().any(|byte| *byte != 0), "{} was written", primary.display());
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_setline"));
        let _ = down.args(["lab", "down", "--dir"]).arg(&self.directory).output();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Pairs of a volume's images at both sites.
fn images(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    let of = |site: &str| -> Vec<PathBuf> {
        let name = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(site))
        };
        files.iter().filter(name).cloned().collect()
    };
    let (primary, secondary) = (of("primary-"), of("secondary-"));
    assert_eq!(primary.len(), secondary.len());
    primary.into_iter().zip(secondary).collect()
}

/// Runs the test again, in a process of its own as EAL starts once per process, which is told `role`.
pub(crate) fn host_process(test: &str, role: &str) {
    let mut host = Command::new(std::env::current_exe().unwrap());
    host.args(["--exact", test, "--nocapture"]).env(ROLE, role);
    let output = host.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as host of {role}: {text}");
}

/// A transport id of SPDK's as an address.
pub(crate) fn address(id: &str) -> Address {
    let field = |name: &str| id.split(' ').find_map(|part| part.strip_prefix(name)).unwrap();
    if id.contains("trtype:TCP") {
        let (ip, port) = (field("traddr:").parse().unwrap(), field("trsvcid:").parse().unwrap());
        return Address::Tcp(SocketAddr::new(ip, port));
    }
    Address::VfioUser(PathBuf::from(field("traddr:")))
}
