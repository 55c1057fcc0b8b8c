//! `setline lab up` and `setline lab down`: a lab that stays.

use std::time::Duration;

use super::cluster::{self, Cluster};
use super::interrupt::Interrupt;
use super::options::{DownOptions, UpOptions};
use super::site::{ProcessId, Site};
use super::{LabError, process, run, writer};
use crate::cli::Printer;
use crate::config::Role;

/// How long all movers together may take to stop.
const STOP_MAX: Duration = Duration::from_secs(60);

/// What `lab up` prints as JSON: all one needs to connect.
#[derive(serde::Serialize)]
struct Standing<'a> {
    directory: &'a std::path::Path,
    nqn: &'a str,
    transport_ids: &'a [String],
    movers: &'a [super::site::SiteMover],
}

/// Starts a lab, leaves it running, and prints how to connect.
///
/// # Errors
/// What keeps it from standing; nothing is left running then.
pub fn up(options: &UpOptions, out: &mut Printer) -> Result<(), LabError> {
    let interrupt = Interrupt::take()?;
    let mut cluster = Cluster::make(&options.shape, true)?;
    let bar = run::bar();
    cluster.start_all(&interrupt, &bar)?;
    bar.set_message("waiting for a first set to reach the secondary");
    cluster.wait_consistent(&interrupt)?;
    bar.finish_and_clear();
    let ids = writer::transport_ids(&cluster);
    let files: Vec<_> =
        cluster.plan().volumes.iter().map(|volume| volume.secondary.clone()).collect();
    let site = cluster.release()?;
    let printed = if out.is_json() {
        out.json(&Standing {
            directory: &site.directory,
            nqn: &site.nqn,
            transport_ids: &ids,
            movers: &site.movers,
        })
    } else {
        explain(&site, &ids, &files, out)
    };
    printed.map_err(LabError::Output)
}

fn explain(
    site: &Site,
    ids: &[String],
    files: &[std::path::PathBuf],
    out: &mut Printer,
) -> std::io::Result<()> {
    let directory = site.directory.display();
    out.line(&format!("The lab runs in {directory}. Its subsystem is {}.", site.nqn))?;
    out.line("\nPrimary movers, as an NVMe host reaches them (SPDK's transport ids):")?;
    for (mover, id) in site.of(Role::Primary).zip(ids) {
        out.line(&format!("  {}  {id}", mover.name))?;
    }
    out.line("\nThe secondary's volumes:")?;
    for file in files {
        out.line(&format!("  {}", file.display()))?;
    }
    let Some(id) = ids.first() else { return Ok(()) };
    let tcp = id.contains("trtype:TCP");
    out.line("\nLoad, with SPDK's own tools (scripts/setup --print-env says where they are):")?;
    // Without -g SPDK's clients do not share memory with a vfio-user target.
    out.line(&format!("  spdk_nvme_perf -g -s 128 -q 32 -o 4096 -w randwrite -t 10 -r '{id}'"))?;
    out.line(&format!("  spdk_nvme_identify -g -s 128 -r '{id}'"))?;
    if let (true, Some((address, port))) = (tcp, tcp_address(id)) {
        let nqn = &site.nqn;
        out.line("\nA Linux host (kernel module nvme-tcp) and fio on it:")?;
        out.line(&format!("  nvme connect -t tcp -a {address} -s {port} -n {nqn}"))?;
        out.line(
            "  fio --name=lab --filename=/dev/nvme0n1 --direct=1 --rw=randwrite --bs=4k \
             --iodepth=32 --ioengine=io_uring --runtime=10 --time_based --verify=crc32c",
        )?;
        if let Some(hub) = site.namespaces.first() {
            out.line(&format!("Run clients in the hub's namespace: ip netns exec {hub} ..."))?;
        }
    }
    out.line("\nLook, direct, and end it:")?;
    out.line(&format!("  setline --lab {directory} status"))?;
    out.line(&format!("  setline --lab {directory} set list"))?;
    out.line(&format!("  setline --lab {directory} events --follow"))?;
    out.line(&format!("  setline lab down --dir {directory}"))
}

fn tcp_address(id: &str) -> Option<(&str, &str)> {
    let field = |name: &str| id.split(' ').find_map(|part| part.strip_prefix(name));
    Some((field("traddr:")?, field("trsvcid:")?))
}

/// Stops a lab that was left running (or whose keeper died), and removes it.
///
/// # Errors
/// There is no lab; a keeper that still runs; movers that had to be killed.
pub fn down(options: &DownOptions, out: &mut Printer) -> Result<(), LabError> {
    let site = Site::read(&options.dir)?;
    if let Some(keeper) = site.keeper.filter(|keeper| keeper.is_alive()) {
        return Err(LabError::Kept { pid: keeper.pid });
    }
    let mut well = true;
    for role in [Role::Primary, Role::Secondary] {
        let ids: Vec<ProcessId> = site.of(role).filter_map(|mover| mover.process).collect();
        well &= process::stop_all(&ids, STOP_MAX);
    }
    let ids: Vec<ProcessId> = site.services.iter().filter_map(|service| service.process).collect();
    well &= process::stop_all(&ids, STOP_MAX);
    cluster::clear(&site);
    let said = if options.keep || !well {
        format!("stopped; kept {}", site.directory.display())
    } else {
        std::fs::remove_dir_all(&site.directory)
            .map_err(|error| LabError::io(&site.directory.display().to_string(), error))?;
        format!("stopped and removed {}", site.directory.display())
    };
    out.line(&said).map_err(LabError::Output)?;
    if well {
        return Ok(());
    }
    let log = site.directory.join("log");
    Err(LabError::NotStopped { name: "a mover".to_owned(), limit: STOP_MAX, log })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_id_names_address_and_port() {
        let id = "trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:4420 subnqn:nqn.x";
        assert_eq!(tcp_address(id), Some(("127.0.0.1", "4420")));
        assert_eq!(tcp_address("trtype:VFIOUSER traddr:/d subnqn:nqn.x"), None);
    }
}
