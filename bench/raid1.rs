//! What a user could use instead: SPDK's raid1 of a local device and one behind SPDK's own target,
//! both of memory, in processes of their own on the same two cores.
//!
//! The target spins when it is idle, so it is stopped (SIGSTOP) while other cases run.

use super::case::{Case, Load, Round};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2026-11.io.setline:bench-raid1";

/// The target process, once it was needed.
#[derive(Default)]
pub(crate) struct Raid1 {
    target: Option<Target>,
}

struct Target {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Raid1 {
    /// One round: the load generator starts anew each time, attaches, and measures `length`.
    pub(crate) fn rounds(
        &mut self,
        case: Case,
        loads: &[Load],
        length: Duration,
        cores: [usize; 2],
    ) -> Result<Vec<Round>, String> {
        if self.target.is_none() {
            self.target = Some(Target::start(cores[1])?);
        }
        let Some(target) = &self.target else { return Err("the target did not start".into()) };
        target.signal(rustix::process::Signal::CONT)?;
        let rounds =
            loads.iter().map(|load| target.measure(case, *load, length, cores[0])).collect();
        target.signal(rustix::process::Signal::STOP)?;
        rounds
    }

    /// Ends the target and removes what it left.
    pub(crate) fn stop(&mut self) {
        self.target = None;
    }
}

impl Target {
    fn start(core: usize) -> Result<Self, String> {
        let directory =
            std::env::temp_dir().join(format!("setline-bench-raid1-{}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
        fs::create_dir_all(directory.join("vfio-user")).map_err(failed)?;
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(failed)?
            .port();
        let config = directory.join("target.json");
        fs::write(&config, target_config(&directory, port)).map_err(failed)?;
        let child = spdk("nvmf_tgt", core, &directory, "target")?
            .arg("-c")
            .arg(&config)
            .spawn()
            .map_err(failed)?;
        let mut target = Self { child, directory, port };
        target.wait_ready()?;
        Ok(target)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("nvmf_tgt ended: {status}; {}", self.log("target")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("nvmf_tgt does not listen; {}", self.log("target")))
    }

    fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.directory.join(format!("{name}.log")));
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<(), String> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).map_err(|e| format!("nvmf_tgt: {e}"))
    }

    fn measure(
        &self,
        case: Case,
        load: Load,
        length: Duration,
        core: usize,
    ) -> Result<Round, String> {
        let config = self.directory.join("load.json");
        fs::write(&config, load_config(case, &self.directory, self.port))
            .map_err(|e| e.to_string())?;
        // The generator knows whole seconds only.
        let seconds = length.as_secs().max(1);
        let status = spdk("bdevperf", core, &self.directory, "load")?
            .args(["-l", "-T", "raid"])
            .args(["-q", &load.queue_depth.to_string()])
            .args(["-o", &load.block_bytes.to_string()])
            .args(["-w", if load.random { "randwrite" } else { "write" }])
            .args(["-t", &seconds.to_string()])
            .arg("-c")
            .arg(&config)
            .status()
            .map_err(|e| e.to_string())?;
        let text = fs::read_to_string(self.directory.join("load.log")).unwrap_or_default();
        if !status.success() {
            return Err(format!("bdevperf: {status}; {}", self.log("load")));
        }
        parse(&text).ok_or_else(|| format!("bdevperf's output; {}", self.log("load")))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One of SPDK's own programs, on one core, with its output in `name.log`.
fn spdk(program: &str, core: usize, directory: &Path, name: &str) -> Result<Command, String> {
    let path = Path::new(env!("SETLINE_SPDK_BIN")).join(program);
    if !path.exists() {
        return Err(format!("{} is not there; run ./scripts/setup", path.display()));
    }
    let log = File::create(directory.join(format!("{name}.log"))).map_err(|e| e.to_string())?;
    let errors = log.try_clone().map_err(|e| e.to_string())?;
    let mut command = Command::new(path);
    command
        .args(["--disable-cpumask-locks", "-u", "-g", "-s", "512", "-m"])
        .arg(format!("[{core}]"))
        .arg("-r")
        .arg(directory.join(format!("{name}.sock")))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    Ok(command)
}

fn target_config(directory: &Path, port: u16) -> String {
    let listener = |kind: &str, address: &str, service: &str| {
        serde_json::json!({ "method": "nvmf_subsystem_add_listener", "params": { "nqn": NQN,
            "listen_address": { "trtype": kind, "adrfam": "IPv4", "traddr": address,
                "trsvcid": service } } })
    };
    let vfio_user = directory.join("vfio-user");
    serde_json::json!({ "subsystems": [
        { "subsystem": "bdev", "config": [
            { "method": "bdev_malloc_create",
              "params": { "name": "remote", "num_blocks": 65536, "block_size": 4096 } } ] },
        { "subsystem": "nvmf", "config": [
            { "method": "nvmf_create_transport", "params": { "trtype": "TCP" } },
            { "method": "nvmf_create_transport", "params": { "trtype": "VFIOUSER" } },
            { "method": "nvmf_create_subsystem",
              "params": { "nqn": NQN, "allow_any_host": true, "serial_number": "BENCH" } },
            { "method": "nvmf_subsystem_add_ns",
              "params": { "nqn": NQN, "namespace": { "nsid": 1, "bdev_name": "remote" } } },
            listener("TCP", "127.0.0.1", &port.to_string()),
            listener("VFIOUSER", &vfio_user.display().to_string(), "0"),
        ] } ] })
    .to_string()
}

fn load_config(case: Case, directory: &Path, port: u16) -> String {
    let vfio_user = directory.join("vfio-user").display().to_string();
    let (kind, address, service) = if case == Case::Raid1Tcp {
        ("TCP", "127.0.0.1".to_string(), port.to_string())
    } else {
        ("VFIOUSER", vfio_user, "0".to_string())
    };
    serde_json::json!({ "subsystems": [ { "subsystem": "bdev", "config": [
        { "method": "bdev_malloc_create",
          "params": { "name": "local", "num_blocks": 65536, "block_size": 4096 } },
        { "method": "bdev_nvme_attach_controller",
          "params": { "name": "remote", "trtype": kind, "adrfam": "IPv4", "traddr": address,
              "trsvcid": service, "subnqn": NQN } },
        { "method": "bdev_raid_create",
          "params": { "name": "raid", "raid_level": "raid1", "superblock": false,
              "base_bdevs": ["local", "remoten1"] } },
    ] } ] })
    .to_string()
}

/// Reads the totals and the latency summary that bdevperf prints.
fn parse(text: &str) -> Option<Round> {
    let total = text.lines().find(|line| line.trim_start().starts_with("Total"))?;
    let iops = total.split_once(':')?.1.split_whitespace().next()?.parse().ok()?;
    let percentile = |wanted: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(wanted))?;
        let us = line.split_once(':')?.1.trim().trim_end_matches("us");
        us.parse::<f64>().ok().map(|us| us * 1000.0)
    };
    let at = |wanted| percentile(wanted).unwrap_or(f64::NAN);
    Some(Round {
        iops,
        latency_ns: [at("50.00000%"), at("99.00000%"), at("99.90000%")],
        cycles_per_update: None,
        hold_ns: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_and_percentiles_are_read() {
        let text = " 50.00000% :   65.480us\n 99.00000% : 7600.5us\n 99.90000% : 8000.0us\n \
                    Total                       :             103745.29     405.26   0.00\n";
        let round = parse(text).unwrap();
        assert_eq!(round.iops, 103_745.29);
        assert_eq!(round.latency_ns, [65_480.0, 7_600_500.0, 8_000_000.0]);
    }
}
