//! What befalls a [`Site`]: crashes, links that lose what they carry, and a primary that forms no
//! sets any more.

use super::script::{COORDINATOR, PRIMARY, SHARDS, apply_to};
use super::site::{Event, Site};
use crate::proto::message::{BrokenReason, Message};
use crate::proto::types::{Extent, GroupId, MoverId, SetId, ShardId, VolumeId};
use crate::wire::update::UpdateInfo;
use alloc::collections::BTreeSet;
use std::vec::Vec;

impl Site {
    /// The primary forms no sets of the group any more, forgets what it kept, and says so.
    pub(super) fn break_group(&mut self, group: GroupId) {
        self.broken.insert(group);
        self.say_broken(group);
    }

    fn say_broken(&mut self, group: GroupId) {
        let message = Message::Broken { group, reason: BrokenReason::MoverRestarted };
        self.pool.push(Event::Message { from: PRIMARY, to: COORDINATOR, message });
    }

    /// Each block of an unflushed write reaches the medium or not, in the order of writing.
    pub(super) fn lose_cached(&mut self, shard: ShardId, volume: Option<VolumeId>) {
        let mut cached = core::mem::take(&mut self.node(shard).cached);
        let mut kept = Vec::new();
        for info in cached.drain(..) {
            if volume.is_some_and(|volume| volume != info.volume) {
                kept.push(info);
                continue;
            }
            for block in info.extent.lba..info.extent.end() {
                if self.random.chance(50) {
                    let one = UpdateInfo { extent: Extent { lba: block, blocks: 1 }, ..info };
                    apply_to(&mut self.node(shard).medium, &one);
                }
            }
        }
        self.node(shard).cached = kept;
    }

    /// The movers lose their memory, what their journals had not flushed but for a prefix, and
    /// some of what their volumes had not flushed; then they start again.
    pub(super) fn crash(&mut self, movers: &[MoverId]) {
        self.crashes += 1;
        let dead: BTreeSet<ShardId> =
            SHARDS.into_iter().filter(|shard| movers.contains(&shard.mover)).collect();
        // Writes in flight reach the volumes or not.
        for event in core::mem::take(&mut self.pool) {
            match event {
                Event::Write { at, info, .. } if dead.contains(&at) => {
                    if self.random.chance(50) {
                        self.node(at).cached.push(info);
                    }
                }
                Event::Flush { at, .. } | Event::Delivered { at, .. } if dead.contains(&at) => {}
                Event::Message { from, to, .. } | Event::Record { from, to, .. }
                    if dead.contains(&from) || dead.contains(&to) => {}
                // Its delivery was reported to a life that is over, or never will be.
                event => self.pool.push(event),
            }
        }
        for shard in &dead {
            self.lose_cached(*shard, None);
            let now = self.now;
            let mut machine = self.machine(*shard);
            let extra = {
                let node = &self.nodes[shard];
                (node.journal.len() - node.durable) as u64
            };
            let extra = self.random.below(extra + 1) as usize;
            let node = self.node(*shard);
            node.journal.truncate(node.durable + extra);
            node.durable = node.journal.len();
            node.arena.clear();
            node.steps.clear();
            for (position, entry) in &node.journal {
                if *position >= node.retired {
                    machine.recover(*position, entry.clone());
                }
            }
            machine.recovered(now);
            node.machine = machine;
            self.told.retain(|(at, _)| at != shard);
        }
        for shard in &dead {
            for peer in SHARDS.into_iter().chain([PRIMARY]) {
                if peer.mover != shard.mover {
                    let both = !dead.contains(&peer);
                    self.peer_up(*shard, peer);
                    if both {
                        self.peer_up(peer, *shard);
                    }
                }
            }
        }
    }

    /// A link loses what it carries, without anybody dying.
    pub(super) fn reset_link(&mut self) {
        let a = SHARDS[self.random.below(3) as usize];
        let b =
            if self.random.chance(50) { PRIMARY } else { SHARDS[self.random.below(3) as usize] };
        if a.mover == b.mover {
            return;
        }
        self.pool.retain(|event| match event {
            Event::Message { from, to, .. } | Event::Record { from, to, .. } => {
                (*from, *to) != (a, b) && (*from, *to) != (b, a)
            }
            _ => true,
        });
        self.peer_up(a, b);
        self.peer_up(b, a);
    }

    fn peer_up(&mut self, at: ShardId, peer: ShardId) {
        let now = self.now;
        if at != PRIMARY {
            self.node(at).machine.handle_peer_up(now, peer);
        } else if peer == COORDINATOR {
            let message = Message::Lead;
            self.pool.push(Event::Message { from: PRIMARY, to: COORDINATOR, message });
            for group in self.history.groups.clone() {
                if self.broken.contains(&group) {
                    self.say_broken(group);
                    continue;
                }
                let cut = self.cut.get(&group).copied().unwrap_or_default();
                let confirmed = self.confirmed.get(&group).copied().unwrap_or_default();
                for set in confirmed.0 + 1..=cut.0 {
                    self.send_manifest(group, SetId(set));
                }
            }
        }
    }
}
