//! What each command shows.

use std::collections::BTreeSet;

use comfy_table::Cell;
use serde::Serialize;

use super::CliError;
use super::output::{Printer, maybe, number, set_cell, text, verdict};
use super::reach::Reach;
use super::show::{complaints, merge_sets, stamps, warnings};
use super::units::{ago, bytes, clock, duration_ns, now_unix_ms, percent};
use crate::config::Role;
use crate::control::client::Client;
use crate::control::model::*;

/// A value with the mover that said it.
#[derive(Serialize)]
struct SeenBy<'a, T> {
    seen_by: &'a str,
    #[serde(flatten)]
    value: &'a T,
}

/// Prints what several movers said, as one array in which each element names its mover.
fn json_seen<T: Serialize>(out: &mut Printer, views: &[(String, Vec<T>)]) -> Result<(), CliError> {
    let all: Vec<_> = views
        .iter()
        .flat_map(|(seen_by, values)| values.iter().map(move |value| SeenBy { seen_by, value }))
        .collect();
    Ok(out.json(&all)?)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Secondary => "secondary",
    }
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub(super) fn status(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let mut statuses = Vec::new();
    let mut silent = Vec::new();
    for (_, answer) in reach.each(Client::status) {
        match answer {
            Ok(status) => statuses.push(status),
            Err(error) => silent.push(error),
        }
    }
    if statuses.is_empty()
        && let Some(error) = silent.pop()
    {
        return Err(error.into());
    }
    let mut complaints = complaints(&statuses);
    complaints.extend(silent.iter().map(ToString::to_string));
    if out.is_json() {
        out.json(&statuses)?;
    } else {
        out.table("", MOVER_HEAD, statuses.iter().map(mover_row).collect())?;
        let stores = statuses.iter().map(store_row).collect();
        out.table("", STORE_HEAD, stores)?;
        out.table("", GROUP_HEAD, statuses.iter().flat_map(group_rows).collect())?;
        if let Some(line) = unreplicated(&statuses) {
            out.line(&line)?;
        }
        for warning in warnings(&statuses) {
            out.line(&format!("warning: {warning}"))?;
        }
        for complaint in &complaints {
            out.line(&format!("degraded: {complaint}"))?;
        }
    }
    match complaints.len() {
        0 => Ok(()),
        1 => Err(CliError::Degraded("1 thing is not as it should be".to_owned())),
        n => Err(CliError::Degraded(format!("{n} things are not as they should be"))),
    }
}

/// The volumes that are not replicated, in a line.
fn unreplicated(statuses: &[Status]) -> Option<String> {
    let groups = statuses.iter().flat_map(|status| &status.groups);
    let names: BTreeSet<String> = groups
        .flat_map(|group| group.unreplicated.iter().map(|name| format!("{}/{name}", group.name)))
        .collect();
    let names: Vec<String> = names.into_iter().collect();
    (!names.is_empty()).then(|| format!("not replicated: {}", names.join(", ")))
}

const MOVER_HEAD: &[&str] =
    &["mover", "site", "role", "ready", "up", "epoch", "map", "coordinator", "paths of hosts"];

fn mover_row(status: &Status) -> Vec<Cell> {
    vec![
        text(&status.mover),
        text(&status.site),
        text(role(status.role)),
        verdict(yes_no(status.ready), status.ready),
        number(duration_ns(status.uptime_ms.saturating_mul(1_000_000))),
        number(status.epoch),
        number(status.map_version),
        maybe(status.coordinator.as_ref(), String::clone),
        text(status.traffic.to_string()),
    ]
}

const STORE_HEAD: &[&str] =
    &["mover", "cluster store", "answers", "leader", "lease left", "alive", "record", "excluded"];

fn store_row(status: &Status) -> Vec<Cell> {
    let cluster = &status.cluster;
    let since = cluster.unavailable_since_unix_ms.map(|since| ago(since, now_unix_ms()));
    let answers = match &since {
        Some(since) if !cluster.available => format!("no, since {since}"),
        _ => yes_no(cluster.available).to_owned(),
    };
    let record = cluster.record.as_ref();
    vec![
        text(&status.mover),
        text(&cluster.store),
        verdict(answers, cluster.available),
        maybe(cluster.leader.as_ref(), String::clone),
        maybe(cluster.lease_remaining_ms, |ms| duration_ns(ms.saturating_mul(1_000_000))),
        text(cluster.alive.join(", ")),
        maybe(record, |record| format!("epoch {}, map {}", record.epoch, record.map_version)),
        maybe(record, |record| {
            let names: Vec<&str> = record.excluded.iter().map(|e| e.mover.as_str()).collect();
            if names.is_empty() { "-".to_owned() } else { names.join(", ") }
        }),
    ]
}

const GROUP_HEAD: &[&str] = &[
    "group",
    "seen by",
    "state",
    "protected",
    "open",
    "transfer",
    "received",
    "applied",
    "recovery point",
    "backlog",
    "hold p99",
    "time stamps",
];

fn group_rows(status: &Status) -> Vec<Vec<Cell>> {
    status.groups.iter().map(|group| group_row(&status.mover, status.role, group)).collect()
}

fn group_row(seen_by: &str, seen_as: Role, group: &GroupStatus) -> Vec<Cell> {
    let well = group.state == GroupState::Consistent && group.needs_resync.is_none();
    let state = match (group.needs_resync.is_some(), group.apply) {
        (true, _) => format!("{}, needs resync", group.state.name()),
        (_, ApplyState::Paused { .. }) => format!("{}, apply paused", group.state.name()),
        (_, ApplyState::Pausing) => format!("{}, apply pausing", group.state.name()),
        _ => group.state.name().to_owned(),
    };
    let protected = match seen_as {
        Role::Primary => verdict(yes_no(group.protected), group.protected),
        Role::Secondary => text("-"),
    };
    vec![
        text(&group.name),
        text(seen_by),
        verdict(state, well),
        protected,
        set_cell(group.sets.open),
        set_cell(group.sets.transfer),
        set_cell(group.sets.received),
        set_cell(group.sets.applied),
        maybe(group.recovery_point_ms, |ms| duration_ns((ms * 1e6) as u64)),
        number(format!("{} in {} sets", bytes(group.backlog_bytes), group.backlog_sets)),
        match group.boundary_hold_ns.count {
            0 => text("-"),
            _ => number(duration_ns(group.boundary_hold_ns.p99)),
        },
        maybe(group.timestamps, stamps),
    ]
}

pub(super) fn groups(out: &mut Printer, reach: &Reach, name: Option<&str>) -> Result<(), CliError> {
    let ask = |client: &Client| match name {
        Some(name) => client.group(name).map(|group| vec![group]),
        None => client.groups(),
    };
    let views = reach.all(ask)?;
    if out.is_json() {
        return json_seen(out, &views);
    }
    for (seen_by, groups) in &views {
        for group in groups {
            group_card(out, seen_by, group)?;
        }
    }
    Ok(())
}

/// Everything about one group, as one mover sees it.
fn group_card(out: &mut Printer, seen_by: &str, group: &GroupStatus) -> Result<(), CliError> {
    let now = now_unix_ms();
    let well = group.state == GroupState::Consistent;
    let mut rows = vec![
        vec![text("state"), verdict(group.state.name(), well)],
        vec![text("since"), text(ago(group.since_unix_ms, now))],
    ];
    let mut row = |what: &str, cell: Cell| rows.push(vec![text(what), cell]);
    if !group.reason.is_empty() {
        row("reason", text(&group.reason));
    }
    if let Some(resync) = &group.needs_resync {
        let said = format!("{} ({})", resync.reason, ago(resync.since_unix_ms, now));
        row("needs resync", verdict(said, false));
    }
    row("protected", verdict(yes_no(group.protected), group.protected));
    row("copies", text(group.copies));
    row("period", text(duration_ns(group.period_ms.saturating_mul(1_000_000))));
    row("time stamps", maybe(group.timestamps, stamps));
    row(
        "apply",
        text(match group.apply {
            ApplyState::Running => "running".to_owned(),
            ApplyState::Pausing => "pausing".to_owned(),
            ApplyState::Paused { set } => format!("paused after set {set} {}", colour_name(set)),
            ApplyState::NotHere => "at the secondary site".to_owned(),
        }),
    );
    row("open set", set_cell(group.sets.open));
    row("closing", set_cell(group.sets.closing));
    row("in transfer", set_cell(group.sets.transfer));
    row("received", set_cell(group.sets.received));
    row("applied", set_cell(group.sets.applied));
    row(
        "consistency point",
        maybe(group.consistency_point, |point| {
            format!("set {} of {} UTC", point.set, clock(point.time_unix_ms))
        }),
    );
    row("recovery point", maybe(group.recovery_point_ms, |ms| duration_ns((ms * 1e6) as u64)));
    row("backlog", text(format!("{} in {} sets", bytes(group.backlog_bytes), group.backlog_sets)));
    if !group.unreplicated.is_empty() {
        row("not replicated", text(group.unreplicated.join(", ")));
    }
    let totals = &group.totals;
    row(
        "acknowledged",
        text(format!("{} updates, {}", totals.acked_writes, bytes(totals.acked_bytes))),
    );
    row("host errors", verdict(totals.host_errors, totals.host_errors == 0));
    row("replicated", text(bytes(totals.bytes_replicated)));
    row("sets", text(format!("{} formed, {} applied", totals.sets_formed, totals.sets_applied)));
    row("boundary hold", text(summary(&group.boundary_hold_ns, 1)));
    row("write latency", text(summary(&group.write_latency_ns, 1)));
    row("recovery points", text(summary(&group.recovery_point_us, 1000)));
    let title =
        format!("group {} (id {}, {}) as {seen_by} sees it", group.name, group.id, group.nqn);
    Ok(out.table(&title, &[], rows)?)
}

/// A distribution in words; `ns` is the length of its unit.
fn summary(summary: &Summary, ns: u64) -> String {
    if summary.count == 0 {
        return "-".to_owned();
    }
    let shown = |value: u64| duration_ns(value.saturating_mul(ns));
    format!(
        "p50 {}, p99 {}, max {} ({})",
        shown(summary.p50),
        shown(summary.p99),
        shown(summary.max),
        summary.count
    )
}

/// What a command that changed a group shows.
pub(super) fn changed(out: &mut Printer, group: &GroupStatus) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(out.json(group)?);
    }
    let apply = match group.apply {
        ApplyState::Paused { set } => format!("apply paused after set {set} {}", colour_name(set)),
        ApplyState::Pausing => "apply pausing".to_owned(),
        ApplyState::Running => "apply running".to_owned(),
        ApplyState::NotHere => format!("open set {}", group.sets.open),
    };
    let period = duration_ns(group.period_ms.saturating_mul(1_000_000));
    Ok(out.line(&format!("group {}: {apply}, period {period}", group.name))?)
}

pub(super) fn volumes(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let volumes = merged(reach.all(Client::volumes)?);
    if out.is_json() {
        return Ok(out.json(&volumes)?);
    }
    let state = |fencing: &Option<Fencing>| {
        text(fencing.as_ref().map_or_else(|| "-".to_owned(), |known| known.state.to_string()))
    };
    let head = [
        "volume",
        "id",
        "nsid",
        "size",
        "block",
        "base",
        "base is",
        "target",
        "target is",
        "last number",
        "uuid",
    ];
    let rows = volumes.iter().map(|volume| {
        if !volume.replicated {
            return unreplicated_row(volume);
        }
        vec![
            text(format!("{}/{}", volume.group, volume.name)),
            number(volume.id),
            number(volume.nsid),
            number(bytes(volume.size_mib << 20)),
            number(volume.block_bytes),
            text(format!("{}.{}: {}", volume.mover, volume.poller, volume.base)),
            state(&volume.fencing),
            text(format!(
                "{}.{}: {}",
                volume.target_mover, volume.target_poller, volume.target_base
            )),
            state(&volume.target_fencing),
            number(volume.last_seq),
            text(&volume.uuid),
        ]
    });
    Ok(out.table("", &head, rows.collect())?)
}

fn unreplicated_row(volume: &VolumeInfo) -> Vec<Cell> {
    let mover = if volume.mover.is_empty() { "all" } else { volume.mover.as_str() };
    let known = volume.block_bytes > 0;
    vec![
        text(format!("{}/{}", volume.group, volume.name)),
        text("-"),
        number(volume.nsid),
        maybe(known.then_some(volume.size_mib), |mib| bytes(mib << 20)),
        maybe(known.then_some(volume.block_bytes), |block| block.to_string()),
        text(format!("{mover}: {}", volume.base)),
        text("unreplicated"),
        text("-"),
        text("-"),
        text("-"),
        text(&volume.uuid),
    ]
}

/// The first mover's view, with what movers know that have bases open: how they are fenced, the sizes of
/// those that are not replicated.
fn merged(views: Vec<(String, Vec<VolumeInfo>)>) -> Vec<VolumeInfo> {
    let mut views = views.into_iter().map(|(_, volumes)| volumes);
    let mut merged = views.next().unwrap_or_default();
    for volume in views.flatten() {
        let known = merged.iter_mut().find(|known| known.uuid == volume.uuid);
        if let Some(known) = known {
            if known.size_mib == 0 {
                (known.size_mib, known.block_bytes) = (volume.size_mib, volume.block_bytes);
            }
            known.fencing = known.fencing.take().or(volume.fencing);
            known.target_fencing = known.target_fencing.take().or(volume.target_fencing);
        }
    }
    merged
}

pub(super) fn map(out: &mut Printer, map: &VolumeMap) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(out.json(map)?);
    }
    let title = format!("map version {}, epoch {}", map.version, map.epoch);
    let head = ["volume", "responsible", "poller", "mirrors", "target", "poller"];
    let rows = map.entries.iter().map(|entry| {
        vec![
            text(format!("{}/{}", entry.group, entry.volume)),
            text(&entry.mover),
            number(entry.poller),
            text(entry.mirrors.join(", ")),
            text(&entry.target_mover),
            number(entry.target_poller),
        ]
    });
    Ok(out.table(&title, &head, rows.collect())?)
}

pub(super) fn cores(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let views = reach.all(Client::cores)?;
    if out.is_json() {
        return json_seen(out, &views);
    }
    let head =
        ["mover", "poller", "core", "busy", "updates/s", "cycles/update", "arena", "volumes"];
    let rows = views.iter().flat_map(|(mover, cores)| {
        cores.iter().map(move |core| {
            let arena = format!("{} of {}", bytes(core.arena_used_bytes), bytes(core.arena_bytes));
            vec![
                text(mover),
                number(core.poller),
                number(core.core),
                number(percent(core.busy_percent)),
                number(format!("{:.0}", core.updates_per_second)),
                number(format!("{:.0}", core.cycles_per_update)),
                number(arena),
                text(core.volumes.join(", ")),
            ]
        })
    });
    Ok(out.table("", &head, rows.collect())?)
}

pub(super) fn core_map(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let views = reach.all(Client::core_map)?;
    if out.is_json() {
        let views: Vec<_> =
            views.iter().map(|(seen_by, value)| SeenBy { seen_by, value }).collect();
        return Ok(out.json(&views)?);
    }
    let head = ["mover", "core", "poller", "volume"];
    let mut rows = Vec::new();
    for (mover, map) in &views {
        // A mover knows the cores of its own pollers only.
        for entry in map.entries.iter().filter(|entry| entry.core.is_some()) {
            rows.push(vec![
                text(mover),
                maybe(entry.core, |core| core.to_string()),
                number(entry.poller),
                text(format!("{}/{}", entry.group, entry.volume)),
            ]);
        }
    }
    Ok(out.table("", &head, rows)?)
}

pub(super) fn movers(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let views = reach.all(Client::movers)?;
    if out.is_json() {
        return json_seen(out, &views);
    }
    let head = [
        "seen by",
        "mover",
        "id",
        "site",
        "role",
        "pollers",
        "reachable",
        "silent for",
        "round trip",
        "sent again",
        "paths of hosts",
    ];
    let rows = views.iter().flat_map(|(seen_by, movers)| {
        movers.iter().map(move |mover| {
            let name = match (mover.this, mover.coordinator) {
                (true, true) => format!("{} (this, coordinator)", mover.name),
                (true, false) => format!("{} (this)", mover.name),
                (false, true) => format!("{} (coordinator)", mover.name),
                (false, false) => mover.name.clone(),
            };
            vec![
                text(seen_by),
                text(name),
                number(mover.id),
                text(&mover.site),
                text(role(mover.role)),
                number(mover.pollers),
                verdict(yes_no(mover.reachable), mover.reachable),
                maybe(mover.silence_ms, |ms| duration_ns(ms.saturating_mul(1_000_000))),
                maybe(mover.round_trip_us, |us| duration_ns(us.saturating_mul(1000))),
                number(mover.retransmissions),
                maybe(mover.traffic.as_ref(), ToString::to_string),
            ]
        })
    });
    Ok(out.table("", &head, rows.collect())?)
}

pub(super) fn sets(
    out: &mut Printer,
    reach: &Reach,
    group: &str,
    limit: usize,
) -> Result<(), CliError> {
    let views = reach.all(|client| client.sets(group, limit))?;
    let mut sets = merge_sets(views.into_iter().map(|(_, sets)| sets).collect());
    sets.truncate(limit);
    if out.is_json() {
        return Ok(out.json(&sets)?);
    }
    let head = ["set", "state", "updates", "bytes", "closed", "confirmed", "applied", "hold"];
    let rows = sets.iter().map(|set| {
        let after = |time: Option<u64>| match (set.closed_unix_ms, time) {
            (Some(closed), Some(time)) => {
                text(format!("+{}", duration_ns(time.saturating_sub(closed) * 1_000_000)))
            }
            (None, Some(time)) => text(clock(time)),
            _ => text("-"),
        };
        vec![
            set_cell(set.id),
            text(set.state.name()),
            number(set.updates),
            number(bytes(set.bytes)),
            maybe(set.closed_unix_ms, clock),
            after(set.confirmed_unix_ms),
            after(set.applied_unix_ms),
            maybe(set.hold_ns, duration_ns),
        ]
    });
    Ok(out.table("", &head, rows.collect())?)
}

pub(super) fn set(out: &mut Printer, reach: &Reach, group: &str, id: u64) -> Result<(), CliError> {
    let views = reach.all(|client| client.set(group, id))?;
    let merged = merge_sets(views.into_iter().map(|(_, set)| vec![set]).collect());
    let Some(set) = merged.first() else { return Ok(()) };
    if out.is_json() {
        return Ok(out.json(set)?);
    }
    let title = format!(
        "set {} {} of group {}: {}, {} updates, {}",
        set.id,
        set.colour,
        set.group,
        set.state.name(),
        set.updates,
        bytes(set.bytes)
    );
    let head = ["volume", "first", "last", "void", "updates", "bytes", "digest"];
    let rows = set.manifest.iter().map(|volume| {
        vec![
            text(&volume.volume),
            number(volume.first_seq),
            number(volume.last_seq),
            number(volume.voids.len()),
            number(volume.updates),
            number(bytes(volume.bytes)),
            text(&volume.digest),
        ]
    });
    Ok(out.table(&title, &head, rows.collect())?)
}

pub(super) fn closed(out: &mut Printer, set: &SetInfo) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(out.json(set)?);
    }
    Ok(out.line(&format!(
        "group {}: set {} {} closed with {} updates, {}",
        set.group,
        set.id,
        set.colour,
        set.updates,
        bytes(set.bytes)
    ))?)
}

pub(super) fn ledger(
    out: &mut Printer,
    reach: &Reach,
    volume: &str,
    limit: usize,
) -> Result<(), CliError> {
    let views = reach.all(|client| client.ledger(volume, limit))?;
    if out.is_json() {
        return json_seen(out, &views);
    }
    let head =
        ["held by", "number", "set", "kind", "blocks", "state", "from", "mirrored to", "target"];
    let rows = views.iter().flat_map(|(mover, entries)| {
        entries.iter().map(move |entry| {
            vec![
                text(mover),
                number(entry.seq),
                set_cell(entry.set),
                text(&entry.kind),
                text(format!("{}+{}", entry.lba, entry.blocks)),
                text(&entry.state),
                text(&entry.from),
                text(entry.mirrored_to.join(", ")),
                text(&entry.target),
            ]
        })
    });
    Ok(out.table("", &head, rows.collect())?)
}

pub(super) fn events(
    out: &mut Printer,
    events: &[(String, Event)],
    follow: bool,
) -> Result<(), CliError> {
    if out.is_json() {
        let seen = events.iter().map(|(seen_by, value)| SeenBy { seen_by, value });
        if follow {
            // One document per line: it never ends.
            for event in seen {
                out.json_line(&event)?;
            }
            return Ok(());
        }
        return Ok(out.json(&seen.collect::<Vec<_>>())?);
    }
    for (mover, event) in events {
        let level = match event.level {
            EventLevel::Info => "info   ",
            EventLevel::Warning => "WARNING",
            EventLevel::Error => "ERROR  ",
        };
        let group = event.group.as_ref().map(|group| format!(" {group}:")).unwrap_or_default();
        let time = clock(event.time_unix_ms);
        out.line(&format!("{time} {mover:8} {level} {}{group} {}", event.kind, event.message))?;
    }
    Ok(())
}

pub(super) fn metrics(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let views = reach.all(Client::metrics)?;
    if out.is_json() {
        return json_seen(out, &views);
    }
    let rows = views.iter().flat_map(|(mover, metrics)| {
        metrics.iter().map(move |metric| {
            let labels: Vec<String> =
                metric.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
            vec![text(mover), text(&metric.name), text(labels.join(" ")), number(metric.value)]
        })
    });
    Ok(out.table("", &["mover", "metric", "labels", "value"], rows.collect())?)
}
