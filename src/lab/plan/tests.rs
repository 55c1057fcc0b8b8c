use super::ports::pair_index;
use super::*;
use crate::config;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    shape: Shape,
}

fn shape(arguments: &str) -> Shape {
    Cli::parse_from(std::iter::once("lab").chain(arguments.split_whitespace())).shape
}

fn machine() -> Machine {
    Machine {
        cores: vec![0, 1],
        tcp_ports: (5000..5016).collect(),
        lab_ports: (6000..6005).collect(),
        tag: "0badf0".into(),
    }
}

fn planned(arguments: &str) -> Plan {
    let directory = Path::new("/dev/shm/setline-lab-0badf0");
    plan(&shape(arguments), directory, &machine()).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads every configuration back and holds them against each other.
fn check(plan: &Plan) {
    let files: Vec<Loaded> = plan
        .movers
        .iter()
        .map(|mover| {
            let text = mover.config.render().unwrap();
            let file = mover.file.display().to_string();
            Mover::parse(&file, &text).unwrap_or_else(|error| panic!("{error}"))
        })
        .collect();
    assert_eq!(cluster::cross_check(&files), []);
}

#[test]
fn every_shape_makes_configurations_that_agree() {
    for arguments in [
        "",
        "--primary 1 --secondary 1 --volumes 1",
        "--primary 2 --secondary 3 --pollers 2 --arena-mib 128",
        "--network veth",
        "--network veth --veth-driver af-packet --transport tcp --pollers 2 --arena-mib 128",
        "--base array --store etcd",
        "--unreplicated 3",
        "--unreplicated 2 --base array --block-bytes 512",
        "--unreplicated 1 --base malloc",
        "--traffic shared",
        "--traffic shared --veth-driver af-packet --pollers 2 --arena-mib 128",
        "--network veth --store etcd",
        "--base array --network veth --block-bytes 512",
        "--transport tcp --base malloc --block-bytes 512 --engine uring --idle spin",
        "--primary 16 --secondary 16 --arena-mib 512 --volumes 64 --copies 16",
    ] {
        check(&planned(arguments));
    }
}

#[test]
fn volumes_go_round_the_movers_of_both_sites() {
    let plan = planned("--volumes 5");
    let places: Vec<_> = plan.movers[0].config.groups[0]
        .volumes
        .iter()
        .map(|volume| (volume.mover.as_str(), volume.target.mover.as_str()))
        .collect();
    assert_eq!(places, [("p1", "s1"), ("p2", "s2"), ("p3", "s1"), ("p1", "s2"), ("p2", "s1")]);
}

#[test]
fn one_primary_mover_means_one_copy() {
    let plan = planned("--primary 1");
    assert_eq!(plan.movers[0].config.groups[0].copies, 1);
    let error = super::plan(&shape("--primary 1 --copies 2"), Path::new("/dev/shm/x"), &machine());
    assert!(matches!(error, Err(PlanError::Copies { copies: 2, primary: 1 })));
}

#[test]
fn what_is_out_of_bounds_is_refused_with_the_configurations_own_words() {
    let error = plan(&shape("--period 5ms"), Path::new("/dev/shm/x"), &machine()).unwrap_err();
    assert!(error.to_string().contains("group[0].period_ms: found 5; allowed"), "{error}");
    let error = plan(&shape("--pollers 4"), Path::new("/dev/shm/x"), &machine()).unwrap_err();
    assert_eq!(error.to_string(), "--pollers 4: this machine lets the lab use 2 cores");
}

#[test]
fn files_have_the_volumes_size_and_malloc_has_none_at_the_primary() {
    let file = planned("--volumes 2 --volume-mib 16");
    let images = file.files.iter().filter(|(_, bytes)| *bytes == 16 << 20);
    assert_eq!(images.count(), 4);
    let malloc = planned("--volumes 2 --volume-mib 16 --base malloc");
    assert!(malloc.volumes.iter().all(|volume| volume.primary.is_none()));
}

#[test]
fn unreplicated_volumes_come_after_the_pairs_and_have_no_target() {
    let plan = planned("--volumes 2 --unreplicated 4");
    let group = &plan.movers[0].config.groups[0];
    assert_eq!(group.volumes.len(), 2);
    let places: Vec<_> =
        group.unreplicated.iter().map(|volume| (volume.nsid, volume.mover.as_deref())).collect();
    assert_eq!(places, [(3, Some("p1")), (4, Some("p2")), (5, Some("p3")), (6, Some("p1"))]);
    let reached = planned("--volumes 2 --unreplicated 1 --base array");
    assert_eq!(reached.movers[0].config.groups[0].unreplicated[0].mover, None, "all reach it");
    assert_eq!(reached.files.iter().filter(|(_, bytes)| *bytes == 64 << 20).count(), 5);
}

#[test]
fn hosts_and_movers_share_an_interface_only_where_the_kernel_has_it() {
    let plan = planned("--traffic shared");
    assert!(plan.veth.is_some_and(|veth| veth.shared));
    let traffic = |at: usize| plan.movers[at].config.traffic();
    assert_eq!(traffic(0), config::Traffic::Shared(vec!["net0".into()]));
    assert_eq!(traffic(3), config::Traffic::NoHosts);
    assert_eq!(planned("--network veth").movers[0].config.traffic(), config::Traffic::Separate);
    for arguments in ["--traffic shared --network memif", "--traffic shared --transport vfio-user"]
    {
        let error = super::plan(&shape(arguments), Path::new("/dev/shm/x"), &machine());
        assert!(matches!(error, Err(PlanError::Traffic)), "{arguments}");
    }
}

#[test]
fn namespaces_carry_the_labs_tag_and_fit_the_kernels_names() {
    let plan = planned("--network veth --pollers 2 --arena-mib 128");
    let veth = plan.veth.unwrap();
    assert_eq!(veth.hub, "sl0badf0-hub");
    assert_eq!(veth.legs[3].namespace, "sl0badf0-s1");
    assert_eq!(plan.movers[3].namespace.as_deref(), Some("sl0badf0-s1"));
    assert_eq!(veth.legs[3].interfaces, ["net0", "net1"]);
}

#[test]
fn pairs_are_numbered_without_gaps() {
    let mut seen: Vec<usize> =
        (1..6).flat_map(|high| (0..high).map(move |low| pair_index(low, high))).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..15).collect::<Vec<_>>());
}
