//! What must hold in a [`Site`] after every event, and at its end.

use super::script::COORDINATOR;
use super::site::{Checked, Event, Site};
use crate::proto::command::Token;
use crate::proto::message::Message;
use crate::proto::sabotage::Sabotage;
use crate::proto::secondary::Recovered;
use crate::proto::types::{Extent, GroupId, SetId, ShardId, VolumeId};
use crate::wire::update::UpdateInfo;
use std::format;
use std::vec::Vec;

impl Site {
    /// Invariant 8: what is confirmed survives a crash of the whole site.
    pub(super) fn check_confirmed(&self, group: GroupId, set: SetId) -> Checked {
        for (shard, node) in &self.nodes {
            let applied =
                node.machine.shard().status().any(|s| s.group == group && s.applied >= set);
            let durable = node.journal[..node.durable].iter().any(|(_, entry)| {
                matches!(entry, Recovered::Manifest { message: Message::Manifest { group: g, set: s, .. } }
                    if *g == group && *s == set)
            });
            if !applied && !durable {
                return Err(format!("{group} {set} confirmed, {shard} could lose it"));
            }
        }
        Ok(())
    }

    /// Invariant 3: overlapping updates are never in flight together.
    pub(super) fn check_write(
        &self,
        at: ShardId,
        volume: VolumeId,
        extent: Extent,
        new: Token,
    ) -> Checked {
        for event in &self.pool {
            if let Event::Write { at: other, info, token, .. } = event
                && (*other, info.volume) == (at, volume)
                && info.extent.overlaps(extent)
                && *token != new
                && self.sabotage == Sabotage::None
            {
                return Err(format!("{volume} {extent:?} written while {:?} is", info.extent));
            }
        }
        Ok(())
    }

    /// Invariants 6 and 7, at every instant.
    pub(super) fn check(&mut self) -> Checked {
        for group in self.history.groups.clone() {
            let rows: Vec<_> = self
                .nodes
                .values()
                .map(|node| node.machine.shard().status().find(|s| s.group == group).unwrap())
                .collect();
            let applied = rows.iter().map(|row| row.applied).min().unwrap();
            for row in &rows {
                // T3: all of a set before any of the next.
                if row.applying.is_some_and(|set| set > applied.next())
                    || row.applied > applied.next()
                {
                    return Err(format!("{group} out of lockstep: {rows:?}"));
                }
            }
            let node = &self.nodes[&COORDINATOR];
            let status = node.machine.coordinator().unwrap().status();
            let status = status.into_iter().find(|s| s.group == group).unwrap();
            // Whatever is begun is committed, and its commit survives.
            let committed = node.journal[..node.durable]
                .iter()
                .filter_map(|(_, entry)| match entry {
                    Recovered::Commit { group: g, set, .. } if *g == group => Some(*set),
                    _ => None,
                })
                .max()
                .unwrap_or_default();
            let begun = rows.iter().filter_map(|row| row.applying).max().unwrap_or_default();
            if begun > committed || status.committed > committed {
                return Err(format!("{group} {begun} begun, {committed} committed: {status:?}"));
            }
            if status.at_boundary {
                self.boundaries_seen += 1;
                self.check_image(group, status.applied)?;
            }
        }
        Ok(())
    }

    /// T4: the media are exactly at the boundary, whatever their caches have.
    pub(super) fn check_image(&self, group: GroupId, set: SetId) -> Checked {
        for (volume, want) in &self.history.images[&(group, set)] {
            let node = &self.nodes[&self.history.owners[volume].1];
            if &node.medium[volume] != want {
                let have = &node.medium[volume];
                return Err(format!("{volume} is not at {group} {set}: {have:?}, not {want:?}"));
            }
            if node.cached.iter().any(|info| info.volume == *volume) {
                return Err(format!("{volume} has unflushed writes at the boundary {set}"));
            }
        }
        Ok(())
    }

    /// Invariant 10, and the last consistent point: everybody at the site says that the group is
    /// broken, and the volumes are at the last set that was whole.
    fn check_broken_end(&self, group: GroupId) -> Checked {
        let status = self.nodes[&COORDINATOR].machine.coordinator().unwrap().status();
        let status = status.into_iter().find(|s| s.group == group).unwrap();
        let mut movers = self.nodes.keys().map(|shard| shard.mover);
        let told = |mover| self.told.iter().any(|(at, g)| (at.mover, *g) == (mover, group));
        if let Some(silent) = movers.find(|mover| !told(*mover)) {
            return Err(format!("{silent} does not say that {group} is broken"));
        }
        let confirmed = self.confirmed.get(&group).copied().unwrap_or_default();
        if !status.at_boundary || status.applied != status.committed || confirmed > status.applied {
            return Err(format!("{group} {confirmed} confirmed, not all is applied: {status:?}"));
        }
        self.check_image(group, status.applied)
    }

    pub(super) fn check_end(&mut self) -> Checked {
        let last = self.history.last;
        for group in self.history.groups.clone() {
            if self.broken.contains(&group) {
                self.check_broken_end(group)?;
                continue;
            }
            let status = self.nodes[&COORDINATOR].machine.coordinator().unwrap().status();
            let status = status.into_iter().find(|s| s.group == group).unwrap();
            if status.applied != last || !status.at_boundary || status.paused {
                let shards: Vec<_> = self
                    .nodes
                    .values()
                    .flat_map(|node| node.machine.shard().status().filter(|s| s.group == group))
                    .collect();
                return Err(format!("not all is applied: {status:?}, {shards:?}"));
            }
            if status.applied_cut_time_ns != last.0 * 1000 {
                return Err(format!("cut time of {last}: {status:?}"));
            }
            if self.confirmed.get(&group) != Some(&last) || self.applied.get(&group) != Some(&last)
            {
                return Err(format!("the primary does not know that {group} {last} is applied"));
            }
            self.check_image(group, last)?;
        }
        let broken = |info: &UpdateInfo| self.broken.contains(&info.group);
        for (shard, node) in &self.nodes {
            // What is kept for a partner goes with the next set.
            if let Some(info) = node
                .arena
                .values()
                .filter(|info| !broken(info))
                .find(|info| info.set != last || self.history.owners[&info.volume].1 == *shard)
            {
                return Err(format!("{shard} still holds {info:?}"));
            }
        }
        Ok(())
    }
}
