//! Fills in what a file leaves open and what depends on more than one key.
//!
//! Every mover does this from its own file and must arrive at the same answer, so it depends on
//! nothing but the groups' definition and the members' numbers, roles and pollers.

use std::collections::BTreeMap;

use super::limits::hugepage_mib_needed;
use super::reader::Doc;
use super::schema::POLLER_OPEN;
use super::types::{MirrorPolicy, Mover, PortKind, Role};

/// Fills `mover` in. Keys that hold a fault are left as they are.
pub(super) fn complete(doc: &Doc, mover: &mut Mover) {
    if mover.mover.hugepage_mib == 0 && doc.sound(&["mover.hugepage_mib"]) {
        let needed = hugepage_mib_needed(mover.mover.cores.len(), mover.mover.arena_mib);
        mover.mover.hugepage_mib = needed;
    }
    for port in &mut mover.ports {
        // Only a NIC can steer by UDP port to a queue of each poller.
        if port.poller.is_none() && !matches!(port.kind, PortKind::Pci { .. }) {
            port.poller = Some(0);
        }
    }
    let mut spread = [Spread::new(mover, Role::Primary), Spread::new(mover, Role::Secondary)];
    let [primary, secondary] = &mut spread;
    for group in &mut mover.groups {
        if group.copies_secondary == 0 {
            let most = secondary.movers.len().max(1) as u8;
            group.copies_secondary = group.copies.min(most);
        }
        if group.mirror_policy == MirrorPolicy::Partner {
            for (at, (name, _)) in primary.movers.iter().enumerate() {
                let (next, _) = &primary.movers[(at + 1) % primary.movers.len()];
                group.partners.entry(name.clone()).or_insert_with(|| next.clone());
            }
        }
        for volume in &mut group.volumes {
            primary.place(&mut volume.mover, &mut volume.poller);
            secondary.place(&mut volume.target.mover, &mut volume.target.poller);
        }
    }
}

/// Spreads volumes over the founders of one site: in file order, one mover after the other by
/// number, and at each mover one poller after the other.
struct Spread {
    movers: Vec<(String, u8)>,
    next: usize,
    placed: BTreeMap<String, usize>,
}

impl Spread {
    fn new(mover: &Mover, role: Role) -> Self {
        let spare = mover.cluster.spare.as_deref();
        let mut members = mover.founders_of(role);
        members.retain(|member| Some(member.name) != spare);
        let movers = members.iter().map(|m| (m.name.to_owned(), m.pollers.max(1))).collect();
        Self { movers, next: 0, placed: BTreeMap::new() }
    }

    fn place(&mut self, mover: &mut String, poller: &mut u8) {
        if self.movers.is_empty() {
            return;
        }
        if mover.is_empty() {
            mover.clone_from(&self.movers[self.next % self.movers.len()].0);
            self.next += 1;
        }
        let placed = self.placed.entry(mover.clone()).or_default();
        let pollers = self.movers.iter().find(|(name, _)| name == mover).map_or(1, |(_, n)| *n);
        if *poller == POLLER_OPEN {
            *poller = (*placed % usize::from(pollers)) as u8;
        }
        *placed += 1;
    }
}
