//! Whether this machine has what a configuration asks for.
//!
//! Kept apart from reading the file, so that a file can be checked anywhere.

use std::path::{Path, PathBuf};

use super::fault::{Fault, Source};
use super::types::{Disk, Mover, PortKind, Role};

/// Checks `mover` against the machine this runs on: cores, hugepages, interfaces, devices, files
/// and directories. `source` gives the faults their positions.
#[must_use]
pub fn check(mover: &Mover, source: &Source) -> Vec<Fault> {
    let system = System { root: PathBuf::from("/") };
    system.check(mover, source)
}

/// The machine, as its file systems show it.
struct System {
    root: PathBuf,
}

impl System {
    fn check(&self, mover: &Mover, source: &Source) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.cores(mover, source, &mut faults);
        self.hugepages(mover, source, &mut faults);
        self.ports(mover, source, &mut faults);
        self.disks(mover, source, &mut faults);
        let me = &mover.mover;
        let store = me.store.parent().unwrap_or(Path::new("/"));
        for (key, directory) in [("mover.run_dir", me.run_dir.as_path()), ("mover.store", store)] {
            // The daemon makes the last directory itself.
            let parent = directory.parent().unwrap_or(Path::new("/"));
            if !self.exists(directory) && !self.exists(parent) {
                let found = format!("{}, which does not exist", directory.display());
                faults.push(source.error(key, found, "a directory in an existing one".to_owned()));
            }
        }
        faults
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    fn cores(&self, mover: &Mover, source: &Source, faults: &mut Vec<Fault>) {
        let Ok(text) = std::fs::read_to_string(self.path("/sys/devices/system/cpu/online")) else {
            return;
        };
        let online = ranges(text.trim());
        let has = |core: u16| online.iter().any(|(low, high)| (*low..=*high).contains(&core));
        let cores = mover.mover.cores.iter().enumerate();
        let all = cores
            .map(|(at, core)| (format!("mover.cores[{at}]"), *core))
            .chain(mover.mover.control_core.map(|core| ("mover.control_core".to_owned(), core)));
        for (key, core) in all.filter(|(_, core)| !has(*core)) {
            let allowed = format!("a core of this machine: {}", text.trim());
            faults.push(source.error(&key, core.to_string(), allowed));
        }
    }

    fn hugepages(&self, mover: &Mover, source: &Source, faults: &mut Vec<Fault>) {
        let Some(free) = self.hugepages_free_mib() else { return };
        let needed = u64::from(mover.mover.hugepage_mib);
        if free < needed {
            faults.push(source.error(
                "mover.hugepage_mib",
                format!("{needed} MiB, while {free} MiB of hugepages are free"),
                format!(
                    "what is free; reserve more with: echo N > /proc/sys/vm/nr_hugepages (N at \
                     least {} more than now)",
                    (needed - free).div_ceil(2)
                ),
            ));
        }
    }

    /// Free hugepages of 2 MiB.
    fn hugepages_free_mib(&self) -> Option<u64> {
        let path = self.path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let pages: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
        Some(pages * 2)
    }

    fn ports(&self, mover: &Mover, source: &Source, faults: &mut Vec<Fault>) {
        for (at, port) in mover.ports.iter().enumerate() {
            let mut need = |field: &str, found: &str, path: PathBuf, allowed: &str| {
                if !self.exists(&path) {
                    let key = format!("port[{at}].{field}");
                    let found = format!("{found:?}, which this machine does not have");
                    faults.push(source.error(&key, found, allowed.to_owned()));
                }
            };
            match &port.kind {
                PortKind::Pci { pci_address } => {
                    let path = Path::new("/sys/bus/pci/devices").join(pci_address);
                    need("pci_address", pci_address, path, "a device that lspci -D shows");
                }
                PortKind::AfXdp { interface } | PortKind::AfPacket { interface } => {
                    let path = Path::new("/sys/class/net").join(interface);
                    need("interface", interface, path, "an interface that ip link shows");
                }
                PortKind::Memif { socket, .. } => {
                    let path = socket.parent().unwrap_or(Path::new("/")).to_path_buf();
                    let found = socket.display().to_string();
                    need("socket", &found, path, "a socket in an existing directory");
                }
                PortKind::Ring { .. } => {}
            }
        }
    }

    fn disks(&self, mover: &Mover, source: &Source, faults: &mut Vec<Fault>) {
        let mut check = |key: String, disk: &Disk, size_mib: u64| match disk {
            Disk::File { path, .. } => {
                let key = format!("{key}.path");
                let shown = path.display();
                let needed = size_mib << 20;
                match std::fs::metadata(self.path(path)) {
                    Err(error) => {
                        let allowed = format!(
                            "an existing file of {size_mib} MiB; make one with: truncate -s \
                             {size_mib}M {shown}"
                        );
                        faults.push(source.error(&key, format!("{shown}: {error}"), allowed));
                    }
                    Ok(file) if file.is_file() && file.len() < needed => {
                        let found = format!("{shown} of {} bytes", file.len());
                        faults.push(source.error(&key, found, format!("at least {needed} bytes")));
                    }
                    Ok(_) => {}
                }
            }
            Disk::NvmePci { address, .. }
                if !self.exists(Path::new("/sys/bus/pci/devices").join(address)) =>
            {
                let found = format!("{address:?}, which this machine does not have");
                let allowed = "a device that lspci -D shows".to_owned();
                faults.push(source.error(&format!("{key}.address"), found, allowed));
            }
            _ => {}
        };
        if let Some(journal) = &mover.journal {
            check("journal".to_owned(), &journal.disk, journal.size_mib);
        }
        for (at, group) in mover.groups.iter().enumerate() {
            for (index, volume) in group.volumes.iter().enumerate() {
                let key = format!("group[{at}].volume[{index}]");
                if volume.mover == mover.mover.name {
                    check(format!("{key}.base"), &volume.base, volume.size_mib);
                }
                if volume.target.mover == mover.mover.name {
                    check(format!("{key}.target.base"), &volume.target.base, volume.size_mib);
                }
            }
            for (index, volume) in group.unreplicated.iter().enumerate() {
                let here = mover.mover.role == Role::Primary;
                if here && volume.is_offered_by(&mover.mover.name) {
                    let key = format!("group[{at}].unreplicated[{index}].base");
                    check(key, &volume.base, volume.size_mib.unwrap_or(0));
                }
            }
        }
    }
}

/// Reads the kernel's list format, such as `0-3,8`.
fn ranges(text: &str) -> Vec<(u16, u16)> {
    text.split(',')
        .filter_map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some((low.parse().ok()?, high.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_of_the_kernel_are_read() {
        assert_eq!(ranges("0-3,8,10-11"), [(0, 3), (8, 8), (10, 11)]);
        assert_eq!(ranges(""), []);
    }
}
