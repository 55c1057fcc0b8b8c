use std::collections::BTreeMap;
use std::fmt::Write;

use super::*;
use crate::config::Loaded;

/// The movers of a pair of sites: number, and how many pollers each has.
fn primaries() -> Vec<(u16, u8)> {
    vec![(1, 2), (2, 2), (3, 2)]
}

fn secondaries() -> Vec<(u16, u8)> {
    vec![(101, 2), (102, 1)]
}

/// One mover's file for the sites given.
fn file(me: u16, primaries: &[(u16, u8)], secondaries: &[(u16, u8)], group: &str) -> Mover {
    let all: Vec<(u16, u8, &str)> = primaries
        .iter()
        .map(|(id, pollers)| (*id, *pollers, "primary"))
        .chain(secondaries.iter().map(|(id, pollers)| (*id, *pollers, "secondary")))
        .collect();
    let (_, pollers, role) = all.iter().find(|(id, ..)| *id == me).copied().unwrap();
    let mut text = String::new();
    let cores: Vec<String> = (0..pollers).map(|core| core.to_string()).collect();
    writeln!(
        text,
        "[mover]\nname = \"m{me}\"\nid = {me}\nsite = \"{role}-site\"\nrole = \"{role}\"\ncores = \
         [{}]\narena_mib = 128\n",
        cores.join(", ")
    )
    .unwrap();
    if role == "secondary" {
        text.push_str("[journal]\nkind = \"malloc\"\nsize_mib = 64\n");
    }
    for poller in 0..pollers {
        writeln!(
            text,
            "[[port]]\nname = \"data{poller}\"\nkind = \"af_packet\"\ninterface = \
             \"v{me}x{poller}\"\nip = \"10.0.{me}.{}/8\"\npoller = {poller}\n",
            poller + 1
        )
        .unwrap();
    }
    for (id, there, role) in all.iter().filter(|(id, ..)| *id != me) {
        writeln!(
            text,
            "[[peer]]\nid = {id}\nname = \"m{id}\"\nsite = \"{role}-site\"\nrole = \
             \"{role}\"\npollers = {there}\n"
        )
        .unwrap();
        for here in 0..pollers {
            for other in 0..*there {
                writeln!(
                    text,
                    "[[peer.path]]\npoller = {here}\npeer_poller = {other}\nport = \
                     \"data{here}\"\nip = \"10.0.{id}.{}\"\n",
                    other + 1
                )
                .unwrap();
            }
        }
    }
    text.push_str(group);
    let loaded: Loaded = Mover::parse("test.toml", &text).unwrap_or_else(|e| panic!("{e}"));
    loaded.mover
}

fn group(volumes: u32, extra: &str) -> String {
    let mut text = format!(
        "[[group]]\nname = \"bank\"\nid = 1\nnqn = \"nqn.2026-11.io.setline:bank\"\n{extra}\n"
    );
    for id in 1..=volumes {
        writeln!(
            text,
            "[[group.volume]]\nname = \"v{id}\"\nid = {id}\nnsid = {id}\nsize_mib = 16\nbase = {{ \
             kind = \"malloc\" }}\ntarget = {{ base = {{ kind = \"malloc\" }} }}\n"
        )
        .unwrap();
    }
    text
}

/// The plans of all movers, by number.
fn plans(
    primaries: &[(u16, u8)],
    secondaries: &[(u16, u8)],
    group: &str,
) -> BTreeMap<u16, (Mover, Plan)> {
    primaries
        .iter()
        .chain(secondaries)
        .map(|(id, _)| {
            let mover = file(*id, primaries, secondaries, group);
            let plan = Plan::new(&mover, &Start::default()).unwrap();
            (*id, (mover, plan))
        })
        .collect()
}

fn pollers(plans: &BTreeMap<u16, (Mover, Plan)>) -> impl Iterator<Item = &PollerPlan> {
    plans.values().flat_map(|(_, plan)| &plan.pollers)
}

fn shard_config(poller: &PollerPlan) -> Option<&PrimaryConfig> {
    match &poller.machines {
        Machines::Primary { shard, .. } => Some(shard),
        Machines::Secondary(_) => None,
    }
}

fn secondary_plan(poller: &PollerPlan) -> Option<&SecondaryPlan> {
    match &poller.machines {
        Machines::Secondary(plan) => Some(plan),
        Machines::Primary { .. } => None,
    }
}

#[test]
fn every_volume_has_one_responsible_shard_and_one_target_shard_over_all_plans() {
    let plans = plans(&primaries(), &secondaries(), &group(7, ""));
    for id in (1..=7).map(VolumeId) {
        let owners: Vec<ShardId> = pollers(&plans)
            .filter_map(shard_config)
            .filter(|shard| shard.volumes.iter().any(|v| v.id == id && v.owner == shard.me))
            .map(|shard| shard.me)
            .collect();
        let targets: Vec<&SecondaryPlan> = pollers(&plans)
            .filter_map(secondary_plan)
            .filter(|plan| plan.volumes.iter().any(|v| v.id == id))
            .collect();
        assert_eq!((owners.len(), targets.len()), (1, 1), "{id}");
        // Both ends of the pair name each other.
        let owner = pollers(&plans).filter_map(shard_config).find(|s| s.me == owners[0]).unwrap();
        let volume = owner.volumes.iter().find(|v| v.id == id).unwrap();
        assert_eq!(volume.target, Some(targets[0].me));
        assert!(targets[0].sources.contains(&owners[0]));
    }
    // Seven volumes over six pollers: none has more than two.
    for poller in pollers(&plans).filter(|poller| shard_config(poller).is_some()) {
        assert!((1..=2).contains(&poller.volumes.len()), "{:?}", poller.shard);
    }
}

#[test]
fn every_mover_of_the_primary_site_takes_updates_for_every_volume() {
    for movers in [primaries(), vec![(1, 1), (2, 3)], vec![(1, 2), (2, 1), (3, 5)], vec![(1, 2)]] {
        let plans = plans(&movers, &secondaries(), &group(9, "copies = 1"));
        for (id, (mover, plan)) in plans.iter().filter(|(id, _)| **id < 100) {
            let mut taken = Vec::new();
            for poller in &plan.pollers {
                let shard = shard_config(poller).unwrap();
                let all = poller.volumes.iter().chain(&poller.foreign);
                let ids: Vec<u32> = all.map(|(g, v)| mover.groups[*g].volumes[*v].id).collect();
                let config: Vec<u32> = shard.volumes.iter().map(|volume| volume.id.0).collect();
                assert_eq!(ids, config, "own ones first, in the order of the machine's");
                for (at, volume) in shard.volumes.iter().enumerate() {
                    assert_eq!(volume.owner == shard.me, at < poller.volumes.len());
                    let known = shard.mirrors.iter().any(|peer| peer.shard == volume.owner);
                    assert!(known || volume.owner == shard.me, "it is a mirror peer");
                }
                taken.extend(ids);
            }
            taken.sort_unstable();
            assert_eq!(taken, (1..=9).collect::<Vec<u32>>(), "mover {id} takes each volume once");
        }
    }
}

#[test]
fn a_taker_is_where_the_responsible_shard_may_keep_its_copies() {
    let plans = plans(&[(1, 2), (2, 1), (3, 5)], &secondaries(), &group(9, ""));
    let shards: BTreeMap<ShardId, &PrimaryConfig> =
        pollers(&plans).filter_map(shard_config).map(|shard| (shard.me, shard)).collect();
    for (me, shard) in &shards {
        for volume in shard.volumes.iter().filter(|volume| volume.owner != *me) {
            let taker = shards[&volume.owner].mirrors.iter().find(|peer| peer.shard == *me);
            assert!(taker.is_some_and(|peer| peer.is_target), "{me} takes for {}", volume.owner);
        }
    }
}

#[test]
fn a_link_planned_at_one_end_is_planned_at_the_other() {
    for (one, two) in [
        (primaries(), secondaries()),
        (vec![(1, 1)], vec![(101, 1)]),
        (vec![(1, 3), (2, 1), (7, 2)], vec![(50, 2), (51, 3)]),
    ] {
        let plans = plans(&one, &two, &group(5, "copies = 1"));
        let linked = |from: ShardId, to: ShardId| {
            let poller = pollers(&plans).find(|p| p.shard == from).unwrap();
            poller.links.iter().any(|link| link.peer == to)
        };
        for poller in pollers(&plans) {
            for link in &poller.links {
                assert!(linked(link.peer, poller.shard), "{} and {}", poller.shard, link.peer);
                assert_ne!(link.peer.mover, poller.shard.mover);
            }
        }
    }
}

#[test]
fn whoever_is_spoken_to_has_a_link_or_is_a_sibling() {
    let plans = plans(&primaries(), &secondaries(), &group(7, ""));
    let engine = pollers(&plans).find_map(|poller| match &poller.machines {
        Machines::Primary { boundary, .. } => boundary.as_ref(),
        Machines::Secondary(_) => None,
    });
    let leader = engine.expect("one shard runs the boundaries").me;
    for poller in pollers(&plans) {
        let mut needed = Vec::new();
        match &poller.machines {
            Machines::Primary { shard, boundary } => {
                needed.push(shard.coordinator);
                needed.extend(shard.mirrors.iter().map(|peer| peer.shard));
                needed.extend(shard.volumes.iter().filter_map(|v| v.target));
                if let Some(boundary) = boundary {
                    needed.extend(&boundary.shards);
                    needed.extend(boundary.secondary);
                    needed.extend(boundary.backup);
                }
            }
            Machines::Secondary(plan) => {
                needed.push(plan.coordinator);
                needed.extend(plan.partner);
                needed.extend(&plan.sources);
                if let Some(coordination) = &plan.coordination {
                    needed.extend(&coordination.shards);
                    needed.push(leader);
                }
            }
        }
        for to in needed {
            let reached = to == poller.shard
                || poller.siblings.contains(&to)
                || poller.links.iter().any(|link| link.peer == to);
            assert!(reached, "{} speaks to {to}", poller.shard);
        }
    }
}

#[test]
fn mirror_peers_grant_each_other_and_one_shard_of_each_mover_may_keep_copies() {
    for primaries in [primaries(), vec![(1, 1), (2, 3)], vec![(1, 2), (2, 1), (3, 5)]] {
        let plans = plans(&primaries, &secondaries(), &group(4, ""));
        let shards: BTreeMap<ShardId, &PrimaryConfig> =
            pollers(&plans).filter_map(shard_config).map(|shard| (shard.me, shard)).collect();
        for (me, shard) in &shards {
            let mut movers_with_copies = BTreeSet::new();
            for peer in &shard.mirrors {
                let back = shards[&peer.shard].mirrors.iter().find(|p| p.shard == *me);
                let back = back.expect("the peer knows this shard too");
                assert!(back.grant_bytes > 0, "{me} may forward to {}", peer.shard);
                if peer.is_target {
                    // Two copies at one mover would be one copy when it fails.
                    assert!(movers_with_copies.insert(peer.shard.mover), "{me}");
                }
            }
            assert_eq!(movers_with_copies.len(), primaries.len() - 1, "{me}");
        }
        for poller in pollers(&plans) {
            let Some(shard) = shard_config(poller) else { continue };
            let granted: u64 = shard.mirrors.iter().map(|peer| peer.grant_bytes).sum();
            assert!(granted <= poller.arena.mirror_bytes);
        }
    }
}

#[test]
fn there_is_one_coordinator_per_site_and_all_agree_on_it() {
    let plans = plans(&primaries(), &secondaries(), &group(3, ""));
    let engines: Vec<&BoundaryConfig> = pollers(&plans)
        .filter_map(|poller| match &poller.machines {
            Machines::Primary { boundary, .. } => boundary.as_ref(),
            Machines::Secondary(_) => None,
        })
        .collect();
    assert_eq!(engines.len(), 1);
    assert_eq!(engines[0].me, ShardId::new(1, 0));
    assert_eq!(engines[0].secondary, Some(ShardId::new(101, 0)));
    assert_eq!(engines[0].backup, Some(ShardId::new(2, 0)));
    assert_eq!(engines[0].shards.len(), 6);
    for shard in pollers(&plans).filter_map(shard_config) {
        assert_eq!(shard.coordinator, engines[0].me);
    }
    let coordinations: Vec<&Coordination> = pollers(&plans)
        .filter_map(secondary_plan)
        .filter_map(|plan| plan.coordination.as_ref())
        .collect();
    assert_eq!(coordinations.len(), 1);
    assert_eq!(coordinations[0].shards.len(), 3);
    assert_eq!(coordinations[0].owners.len(), 3);
}

#[test]
fn secondary_shards_have_a_partner_at_another_mover() {
    let with_partners = plans(&primaries(), &secondaries(), &group(3, ""));
    for plan in pollers(&with_partners).filter_map(secondary_plan) {
        assert_ne!(plan.partner.unwrap().mover, plan.me.mover);
    }
    let one_copy = plans(&primaries(), &secondaries(), &group(3, "copies_secondary = 1"));
    assert!(pollers(&one_copy).filter_map(secondary_plan).all(|plan| plan.partner.is_none()));
}

#[test]
fn a_configured_partner_is_the_first_choice() {
    let text = group(
        3,
        "mirror_policy = \"partner\"\npartners = { m1 = \"m3\", m2 = \"m1\", m3 = \"m2\" }",
    );
    let plans = plans(&primaries(), &secondaries(), &text);
    for shard in pollers(&plans).filter_map(shard_config) {
        let MirrorPolicy::Partner(index) = shard.groups[0].policy else { panic!("{shard:?}") };
        let partner = shard.mirrors[usize::from(index)].shard;
        let expected = match shard.me.mover.0 {
            1 => 3,
            2 => 1,
            _ => 2,
        };
        assert_eq!(partner, ShardId::new(expected, shard.me.poller));
    }
}

#[test]
fn only_shards_that_number_updates_are_unclean_after_a_crash() {
    let mover = file(1, &primaries(), &secondaries(), &group(1, ""));
    let start = Start { unclean: true, ..Start::default() };
    let plan = Plan::new(&mover, &start).unwrap();
    let unclean: Vec<bool> =
        plan.pollers.iter().filter_map(shard_config).map(|s| s.unclean).collect();
    assert_eq!(unclean, [true, false]);
}

#[test]
fn numbering_goes_on_where_the_store_says() {
    let mover = file(1, &primaries(), &secondaries(), &group(1, ""));
    let start = Start {
        next_seqs: BTreeMap::from([(VolumeId(1), Seq(77))]),
        first_sets: BTreeMap::from([(GroupId(1), SetId(12))]),
        ..Start::default()
    };
    let plan = Plan::new(&mover, &start).unwrap();
    let Machines::Primary { shard, boundary } = &plan.pollers[0].machines else { panic!() };
    assert_eq!(shard.volumes[0].next_seq, Seq(77));
    assert_eq!(boundary.as_ref().unwrap().groups[0].first_set, SetId(12));
}

#[test]
fn what_cannot_be_kept_is_refused_with_what_would_do() {
    let three = [(101, 1), (102, 1), (103, 1)];
    let text = group(1, "copies_secondary = 3");
    let mover = file(1, &primaries(), &three, &text);
    let error = Plan::new(&mover, &Start::default()).unwrap_err();
    assert!(error.to_string().contains("at most 2"), "{error}");

    let mut mover = file(1, &primaries(), &secondaries(), &group(1, ""));
    mover.mover.arena_mib = 8;
    let error = Plan::new(&mover, &Start::default()).unwrap_err();
    let PlanError::Arena { needed_mib, .. } = error else { panic!("{error}") };
    mover.mover.arena_mib = needed_mib;
    assert!(Plan::new(&mover, &Start::default()).is_ok());
    mover.mover.arena_mib = needed_mib - 2;
    assert!(Plan::new(&mover, &Start::default()).is_err());
}
