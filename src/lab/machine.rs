//! What this machine offers to a lab: cores, ports, room, hugepages, programs.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::LabError;
use super::options::Shape;
use super::plan::{self, Machine, Plan};
use super::service::PlannedService;
use crate::cli::bytes;

/// Ports that a lab's services may need.
const LAB_PORTS: u16 = 5;
/// Hugepage memory that the NVMe client takes, MiB.
const CLIENT_HUGEPAGE_MIB: u64 = 256;
/// Where hugepages show as files.
pub const HUGETLBFS: &str = "/dev/hugepages";
/// DPDK's run-time directory, below which each process has one named by its file prefix.
pub const DPDK_RUN: &str = "/var/run/dpdk";

/// Looks at this machine.
///
/// # Errors
/// No free TCP port.
pub fn look(shape: &Shape) -> Result<Machine, LabError> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let mut cores: Vec<u16> = cores.iter().filter_map(|core| core.id.try_into().ok()).collect();
    if cores.is_empty() {
        cores.push(0);
    }
    // All held open until the last is known, so that they differ.
    let listeners: Result<Vec<TcpListener>, _> = (0..shape.primaries() + LAB_PORTS)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    let listeners = listeners.map_err(|error| LabError::io("a TCP port", error))?;
    let mut tcp_ports: Vec<u16> =
        listeners.iter().filter_map(|l| l.local_addr().ok()).map(|a| a.port()).collect();
    let tag = format!("{:06x}", seed() & 0xff_ffff);
    let lab_ports = tcp_ports.split_off(usize::from(shape.primaries()));
    Ok(Machine { cores, tcp_ports, lab_ports, tag })
}

/// Something different every time.
#[must_use]
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds this from the system's randomness.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// The directory for a lab that names none: in memory if there is room, else among the temporary
/// files. Files in it must be writable past the page cache.
///
/// # Errors
/// [`LabError::NoRoom`] names what is free where.
pub fn choose_directory(shape: &Shape, tag: &str) -> Result<PathBuf, LabError> {
    let needed = plan::bytes_needed(shape);
    let mut looked = Vec::new();
    for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
        let free = free_bytes(&parent);
        let direct = takes_direct_io(&parent);
        if free >= needed && direct {
            return Ok(parent.join(format!("setline-lab-{tag}")));
        }
        let direct = if direct { "" } else { ", no O_DIRECT" };
        looked.push(format!("{}: {} free{direct}", parent.display(), bytes(free)));
    }
    Err(LabError::NoRoom { needed: bytes(needed), looked: looked.join("; ") })
}

fn free_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether files in `directory` can be opened with O_DIRECT.
fn takes_direct_io(directory: &Path) -> bool {
    let probe = directory.join(format!(".setline-probe-{:016x}", seed()));
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let opened = OpenOptions::new().write(true).create_new(true).custom_flags(direct).open(&probe);
    let _ = std::fs::remove_file(&probe);
    opened.is_ok()
}

/// Whether the hugepages suffice for all movers and the client.
///
/// # Errors
/// [`LabError::Hugepages`] with what to do.
pub fn check_hugepages(plan: &Plan, with_client: bool) -> Result<(), LabError> {
    let movers: u64 =
        plan.movers.iter().map(|mover| u64::from(mover.config.mover.hugepage_mib)).sum();
    let services: u64 = plan.services.iter().map(PlannedService::hugepage_mib).sum();
    let needed_mib = movers + services + if with_client { CLIENT_HUGEPAGE_MIB } else { 0 };
    let read = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let text = std::fs::read_to_string(path).ok();
        text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let free_mib = 2 * read("free_hugepages");
    if free_mib >= needed_mib {
        return Ok(());
    }
    let pages = read("nr_hugepages") + (needed_mib - free_mib).div_ceil(2);
    Err(LabError::Hugepages { needed_mib, free_mib, pages })
}

/// A program of this project: beside the one that runs, or where `cargo build` puts it.
///
/// # Errors
/// [`LabError::NoProgram`].
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    let mine = std::env::current_exe().map_err(|error| LabError::io("this program", error))?;
    let directory = mine.parent().unwrap_or(Path::new("."));
    let beside = directory.join(name);
    // Tests run from target/PROFILE/deps.
    let above = directory.parent().unwrap_or(directory).join(name);
    [beside.clone(), above]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or(LabError::NoProgram { name: name.to_owned(), looked: beside })
}

/// Removes what a process leaves when it ends: the directory that EAL makes for it; and of SPDK's
/// stock target, when it was killed, the memory for its traces.
pub fn remove_runtime_directory(pid: u32) {
    let _ = std::fs::remove_file(format!("/dev/shm/nvmf_trace.pid{pid}"));
    let _ = std::fs::remove_dir_all(Path::new(DPDK_RUN).join(format!("spdk_pid{pid}")));
}

/// Removes what a mover that was killed left outside of the lab's directory.
pub fn remove_leftovers(file_prefix: &str) {
    if let Ok(entries) = std::fs::read_dir(HUGETLBFS) {
        for entry in entries.flatten() {
            // EAL names its files PREFIXmap_N.
            let ours =
                entry.file_name().to_string_lossy().starts_with(&format!("{file_prefix}map"));
            if ours {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    let _ = std::fs::remove_dir_all(Path::new(DPDK_RUN).join(file_prefix));
}
