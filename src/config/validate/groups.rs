//! Groups and their volumes.

use super::unique;
use crate::config::limits::*;
use crate::config::mirror::Mirror;
use crate::config::reader::Doc;
use crate::config::types::{ClusterStoreKind, Disk, Group, MirrorPolicy, Mover, Role};
use crate::config::unreplicated::Unreplicated;

pub(super) fn check(doc: &Doc, mover: &Mover) {
    let groups = || mover.groups.iter().enumerate();
    let key = |at: usize, field: &str| format!("group[{at}].{field}");
    if mover.groups.is_empty() && doc.sound(&["group"]) {
        doc.error("group", "nothing", "at least one [[group]]");
    }
    if mover.groups.len() > GROUPS_MAX {
        let found = format!("{} groups", mover.groups.len());
        doc.error("group", found, format!("at most {GROUPS_MAX}"));
    }
    unique(
        doc,
        "a group's name",
        groups().map(|(at, g)| (key(at, "name"), &g.name, quoted(&g.name))),
    );
    unique(
        doc,
        "a group's number",
        groups().map(|(at, g)| (key(at, "id"), g.id, g.id.to_string())),
    );
    unique(doc, "an NQN", groups().map(|(at, g)| (key(at, "nqn"), &g.nqn, quoted(&g.nqn))));
    for (at, group) in groups() {
        copies(doc, mover, at, group);
        partners(doc, mover, at, group);
        mirror(doc, mover, at, group);
        volumes(doc, mover, at, group);
    }
    identifiers(doc, mover);
    disks(doc, mover);
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn names_of(mover: &Mover, role: Role) -> String {
    let members = mover.members_of(role);
    let names: Vec<String> = members.iter().map(|member| quoted(member.name)).collect();
    if names.is_empty() { "(there is none)".to_owned() } else { names.join(", ") }
}

fn copies(doc: &Doc, mover: &Mover, at: usize, group: &Group) {
    let primaries = mover.founders_of(Role::Primary).len();
    let secondaries = mover.members_of(Role::Secondary).len();
    let key = format!("group[{at}].copies");
    let key_secondary = format!("group[{at}].copies_secondary");
    let found = |copies: u8| format!("{copies} copies");
    if primaries == 0 || secondaries == 0 {
        if doc.sound(&["peer", "mover.role"]) && !doc.any_below("peer") {
            let found = format!("{primaries} primary and {secondaries} secondary movers");
            doc.error(&format!("group[{at}]"), found, "at least one of each");
        }
        return;
    }
    if doc.sound(&[&key]) && usize::from(group.copies) > primaries {
        let allowed = format!("at most {primaries}, the movers that found the primary site");
        doc.error(&key, found(group.copies), allowed);
    } else if group.copies == 1 {
        let why = if primaries == 1 { "one mover holds one copy" } else { "copies = 1" };
        doc.warn(
            &key,
            format!("{why}: group {:?} is NOT PROTECTED", group.name),
            "when that mover fails, acknowledged updates it has not sent are lost; use 2 copies \
             and at least 2 primary movers",
        );
    }
    if doc.sound(&[&key_secondary]) && usize::from(group.copies_secondary) > secondaries {
        let allowed = format!("at most {secondaries}, the movers of the secondary site");
        doc.error(&key_secondary, found(group.copies_secondary), allowed);
    } else if group.copies_secondary == 1 {
        doc.warn(
            &key_secondary,
            format!("one secondary mover holds one copy of what group {:?} sends", group.name),
            "what it received is safe only in its own journal",
        );
    }
}

fn partners(doc: &Doc, mover: &Mover, at: usize, group: &Group) {
    let key = format!("group[{at}].partners");
    if group.mirror_policy == MirrorPolicy::Load {
        if !group.partners.is_empty() && doc.sound(&[&format!("group[{at}].mirror_policy")]) {
            let found = "partners without mirror_policy = \"partner\"";
            doc.error(&key, found, "no partners, or that policy");
        }
        return;
    }
    for (name, partner) in &group.partners {
        let key = format!("{key}.{name}");
        let primary = |name: &str| mover.member(name).is_some_and(|m| m.role == Role::Primary);
        if name == partner && group.copies > 1 {
            doc.error(&key, "itself", "another mover of the primary site");
        } else if !primary(name) || !primary(partner) {
            let found = format!("{partner:?} as partner of {name:?}");
            let allowed = format!("movers of the primary site: {}", names_of(mover, Role::Primary));
            doc.error(&key, found, allowed);
        }
    }
}

/// Mirroring metadata alone needs a second place for the data: a base that whoever takes a volume over can
/// read (G12).
fn mirror(doc: &Doc, mover: &Mover, at: usize, group: &Group) {
    let key = format!("group[{at}].mirror");
    if group.mirror == Mirror::Data || !doc.sound(&[&key]) {
        return;
    }
    let found = "metadata";
    if group.copies < 2 {
        doc.error(
            &key,
            quoted(found),
            "\"data\", or copies of at least 2: there is nothing to mirror",
        );
        return;
    }
    if mover.cluster.store == ClusterStoreKind::Embedded && doc.sound(&["cluster.store"]) {
        let allowed = "\"data\", or cluster.store = \"etcd\": otherwise no mover takes a volume over \
                       and reads its data";
        doc.error(&key, quoted(found), allowed);
        return;
    }
    for (index, volume) in group.volumes.iter().enumerate() {
        let base = format!("group[{at}].volume[{index}].base");
        let is_read_by_all = volume.base.shared() && volume.base.nsid().is_some();
        if !is_read_by_all && !doc.any_below(&base) {
            let found = format!("{} with mirror = {:?} in its group", quoted(&volume.name), found);
            let allowed = "an NVMe namespace that all primary movers reach: data are read from there \
                           when a mover fails; or mirror = \"data\"";
            doc.error(&base, found, allowed);
        }
    }
    doc.warn(
        &key,
        format!("group {:?} mirrors metadata: its points in time are weaker", group.name),
        "when a mover fails, what only it had is read from the primary volumes, and sets of which data \
         were overwritten by then are merged with the later ones",
    );
}

fn volumes(doc: &Doc, mover: &Mover, at: usize, group: &Group) {
    let key = |index: usize, field: &str| format!("group[{at}].volume[{index}].{field}");
    let plain_key = |index: usize, field: &str| unreplicated_key(at, index, field);
    let all = || group.volumes.iter().enumerate();
    let plain = || group.unreplicated.iter().enumerate();
    if group.volumes.is_empty() && doc.sound(&[&format!("group[{at}].volume")]) {
        doc.error(&format!("group[{at}].volume"), "nothing", "at least one [[group.volume]]");
    }
    let count = group.volumes.len() + group.unreplicated.len();
    if count > VOLUMES_PER_GROUP_MAX {
        let found = format!("{count} volumes");
        doc.error(
            &format!("group[{at}].volume"),
            found,
            format!("at most {VOLUMES_PER_GROUP_MAX}"),
        );
    }
    unique(
        doc,
        "a volume's name within its group",
        all()
            .map(|(i, v)| (key(i, "name"), &v.name, quoted(&v.name)))
            .chain(plain().map(|(i, v)| (plain_key(i, "name"), &v.name, quoted(&v.name)))),
    );
    unique(
        doc,
        "a namespace id within its group",
        all()
            .map(|(i, v)| (key(i, "nsid"), v.nsid, v.nsid.to_string()))
            .chain(plain().map(|(i, v)| (plain_key(i, "nsid"), v.nsid, v.nsid.to_string()))),
    );
    for (index, volume) in all() {
        let ends = [
            ("mover", "poller", &volume.mover, volume.poller, Role::Primary),
            (
                "target.mover",
                "target.poller",
                &volume.target.mover,
                volume.target.poller,
                Role::Secondary,
            ),
        ];
        for (name_field, poller_field, name, poller, role) in ends {
            let (name_key, poller_key) = (key(index, name_field), key(index, poller_field));
            if name.is_empty() || !doc.sound(&[&name_key]) {
                continue;
            }
            let Some(member) = mover.member(name).filter(|member| member.role == role) else {
                let site = if role == Role::Primary { "primary" } else { "secondary" };
                let allowed = format!("a mover of the {site} site: {}", names_of(mover, role));
                doc.error(&name_key, quoted(name), allowed);
                continue;
            };
            if !member.founder {
                let found = format!("{name:?}, which is no founder");
                let allowed =
                    "a mover that is there when the site begins; volumes move to others later";
                doc.error(&name_key, found, allowed);
            }
            if poller >= member.pollers
                && doc.sound(&[&poller_key, "mover.cores"])
                && member.pollers > 0
            {
                let allowed = format!("a poller of {name:?}: 0 to {}", member.pollers - 1);
                doc.error(&poller_key, poller.to_string(), allowed);
            }
        }
        let base = key(index, "target.base.kind");
        if volume.target.base == Disk::None && doc.sound(&[&base]) {
            let found = "a target without a disk";
            doc.error(&base, found, "any other kind: the copy must lie somewhere");
        }
    }
    for (index, volume) in plain() {
        unreplicated(doc, mover, volume, &|field| plain_key(index, field));
    }
    let pairs = group.volumes.iter();
    let pairs = pairs.filter(|v| v.base.is_volatile() || v.target.base.is_volatile());
    let others = group.unreplicated.iter().filter(|volume| volume.base.is_volatile());
    let volatile: Vec<&str> =
        pairs.map(|v| v.name.as_str()).chain(others.map(|v| v.name.as_str())).collect();
    if !volatile.is_empty() {
        doc.warn(
            &format!("group[{at}].volume"),
            format!("volumes in memory: {}", volatile.join(", ")),
            "their data is lost with the process that serves them",
        );
    }
}

fn unreplicated_key(group: usize, index: usize, field: &str) -> String {
    format!("group[{group}].unreplicated[{index}].{field}")
}

/// A volume that is not replicated is somewhere, and offered by movers that reach it (G11).
fn unreplicated(doc: &Doc, mover: &Mover, volume: &Unreplicated, key: &dyn Fn(&str) -> String) {
    let base = key("base.kind");
    if !doc.sound(&[&base, &key("base")]) {
        return;
    }
    if volume.base == Disk::None {
        doc.error(&base, "an unreplicated volume without a disk", "any other kind");
        return;
    }
    let at = key("mover");
    let movers = || names_of(mover, Role::Primary);
    match &volume.mover {
        None if !volume.base.shared() && doc.sound(&[&at]) => {
            let found = "nothing, and a base that one mover reaches";
            doc.error(&at, found, format!("the primary mover that has it: {}", movers()));
        }
        Some(name) if mover.member(name).is_none_or(|member| member.role != Role::Primary) => {
            doc.error(&at, quoted(name), format!("a mover of the primary site: {}", movers()));
        }
        _ => {}
    }
}

/// What must be unique over all groups.
fn identifiers(doc: &Doc, mover: &Mover) {
    let plain = || {
        mover.groups.iter().enumerate().flat_map(|(at, group)| {
            let volumes = group.unreplicated.iter().enumerate();
            volumes.map(move |(index, volume)| (at, index, volume))
        })
    };
    let all = || {
        mover.groups.iter().enumerate().flat_map(|(at, group)| {
            let volumes = group.volumes.iter().enumerate();
            volumes.map(move |(index, volume)| (format!("group[{at}].volume[{index}]"), volume))
        })
    };
    unique(
        doc,
        "a volume's number, over all groups,",
        all().map(|(key, volume)| (format!("{key}.id"), volume.id, volume.id.to_string())),
    );
    // A derived identifier repeats only where a name does, which is a fault already.
    unique(
        doc,
        "a UUID",
        all()
            .map(|(key, volume)| (format!("{key}.uuid"), volume.uuid, volume.uuid.to_string()))
            .chain(plain().map(|(at, index, v)| {
                (unreplicated_key(at, index, "uuid"), v.uuid, v.uuid.to_string())
            }))
            .filter(|(key, ..)| doc.has(key)),
    );
    unique(
        doc,
        "an NGUID",
        all()
            .map(|(key, volume)| (format!("{key}.nguid"), volume.nguid, volume.nguid.to_string()))
            .chain(plain().map(|(at, index, v)| {
                (unreplicated_key(at, index, "nguid"), v.nguid, v.nguid.to_string())
            }))
            .filter(|(key, ..)| doc.has(key)),
    );
}

/// Two things on one disk overwrite each other.
fn disks(doc: &Doc, mover: &Mover) {
    let mut places = Vec::new();
    let mut add = |key: String, owner: &str, disk: &Disk| {
        if let Some((field, place)) = place(owner, disk) {
            places.push((format!("{key}.{field}"), place.clone(), place));
        }
    };
    if let Some(journal) = &mover.journal {
        add("journal".to_owned(), &mover.mover.name, &journal.disk);
    }
    for (at, group) in mover.groups.iter().enumerate() {
        for (index, volume) in group.volumes.iter().enumerate() {
            let key = format!("group[{at}].volume[{index}]");
            add(format!("{key}.base"), &volume.mover, &volume.base);
            add(format!("{key}.target.base"), &volume.target.mover, &volume.target.base);
        }
        for (index, volume) in group.unreplicated.iter().enumerate() {
            let movers = mover.members_of(Role::Primary).into_iter().map(|member| member.name);
            let mut movers = movers.filter(|name| volume.is_offered_by(name));
            let key = unreplicated_key(at, index, "base");
            // A remote namespace is one place, whoever uses it; a local path is one at each mover.
            let owners = match volume.base {
                Disk::NvmeTcp { .. } => movers.next().into_iter().collect(),
                _ => movers.collect::<Vec<_>>(),
            };
            for owner in owners {
                add(key.clone(), owner, &volume.base);
            }
        }
    }
    unique(doc, "a disk", places);
}

/// Where a disk lies, told apart over all machines: what is local to a machine is told apart by
/// the mover that uses it.
fn place(owner: &str, disk: &Disk) -> Option<(&'static str, String)> {
    match disk {
        Disk::NvmePci { address, nsid, .. } => {
            Some(("address", format!("namespace {nsid} of {address} at {owner:?}")))
        }
        Disk::NvmeTcp { address, port, nqn, nsid } => {
            Some(("nqn", format!("namespace {nsid} of {nqn} at {address}:{port}")))
        }
        Disk::VfioUser { directory, nqn, nsid, .. } => {
            let directory = directory.display();
            Some(("directory", format!("namespace {nsid} of {nqn} in {directory} at {owner:?}")))
        }
        Disk::File { path, .. } => Some(("path", format!("{} at {owner:?}", path.display()))),
        Disk::Malloc | Disk::None => None,
    }
}
