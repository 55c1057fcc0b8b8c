//! What a primary shard knows of those it sends records to: mirror targets and secondary shards.
//!
//! A mirror target grants its sources a budget, so that an update is numbered only when its copy
//! will find room: an open set can then always be closed, however little memory there is.
//!
//! A shard that also forwards updates there (G3) keeps half of the budget for those; all of it where
//! it may keep no copies. An update that was forwarded and has no number yet waits for room at a third
//! shard; if it took of what mirror copies need, shards could wait for one another in a circle.

use crate::proto::command::Token;
use crate::proto::types::{Epoch, GroupId, ShardId};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// A shard that may hold copies for this one.
#[derive(Debug)]
pub(super) struct Mirror {
    pub shard: ShardId,
    /// What this shard grants the other one in return, in bytes.
    pub grant_bytes: u64,
    /// What the other one granted in all, in bytes; 0 until it said so.
    pub granted_bytes: u64,
    /// Whether it may hold copies for this shard.
    pub is_target: bool,
    /// What of that is for copies.
    pub budget_bytes: u64,
    /// Bytes of copies it holds or that travel there.
    pub used_bytes: u64,
    /// What of that is for updates of its own volumes that are taken here.
    pub forward_budget_bytes: u64,
    /// Bytes of these, from their forwarding until their sets are confirmed.
    pub forwarded_bytes: u64,
    /// Records that travel there.
    pub in_flight: u32,
    /// Updates to send again because it restarted and lost its copies.
    pub backlog: VecDeque<Token>,
    pub up: bool,
    /// Its mover belongs to the epoch.
    pub member: bool,
    /// And has done so since this epoch: its memory knows nothing of what is older.
    pub since: Epoch,
    /// All of what it had to say when it entered the epoch has come.
    pub surveyed: bool,
    /// By group: the parts of it that came.
    pub surveys: BTreeMap<GroupId, Vec<bool>>,
}

impl Mirror {
    /// Its mover does not belong to the epoch any more.
    pub(super) fn leave(&mut self) {
        self.up = false;
        self.member = false;
        self.in_flight = 0;
        self.used_bytes = 0;
        self.granted_bytes = 0;
        self.budget_bytes = 0;
        self.forward_budget_bytes = 0;
        self.backlog.clear();
    }

    /// Shares what it granted between copies and updates that are forwarded to it, if there are any.
    pub(super) fn share_budget(&mut self, forwards: bool) {
        let bytes = self.granted_bytes;
        self.forward_budget_bytes = match (self.is_target, forwards) {
            (false, _) => bytes,
            (true, true) => bytes / 2,
            (true, false) => 0,
        };
        self.budget_bytes = bytes - self.forward_budget_bytes;
    }

    /// Whether more than half of a budget is used.
    #[inline]
    pub(super) fn is_crowded(&self) -> bool {
        self.used_bytes > self.budget_bytes / 2
            || self.forwarded_bytes > self.forward_budget_bytes / 2
    }

    /// Whether an update of `record_bytes` can be forwarded to it now.
    pub(super) fn takes_forward(&self, record_bytes: u32, in_flight_max: u32) -> bool {
        self.up
            && self.in_flight < in_flight_max
            && self.forwarded_bytes + u64::from(record_bytes) <= self.forward_budget_bytes
    }

    #[inline]
    pub(super) fn takes(&self, record_bytes: u32, in_flight_max: u32) -> bool {
        self.up
            && self.in_flight < in_flight_max
            && self.used_bytes + u64::from(record_bytes) <= self.budget_bytes
    }
}

/// Picks `wanted` mirrors into a bit mask, none of them in `except`: those with the least load, or
/// from `first` on in order. None when fewer can take the record now. `wanted` is small, so the selection is a plain scan.
#[inline]
pub(super) fn choose(
    mirrors: &[Mirror],
    wanted: u32,
    except: u64,
    first: Option<u8>,
    record_bytes: u32,
    in_flight_max: u32,
) -> Option<u64> {
    let mut chosen = 0_u64;
    for _ in 0..wanted {
        let mut best: Option<(u64, usize)> = None;
        for step in 0..mirrors.len() {
            let index = (step + usize::from(first.unwrap_or(0))) % mirrors.len();
            let mirror = &mirrors[index];
            if (chosen | except) & 1 << index != 0 || !mirror.takes(record_bytes, in_flight_max) {
                continue;
            }
            if first.is_some() {
                best = Some((0, index));
                break;
            }
            if best.is_none_or(|(load, _)| mirror.used_bytes < load) {
                best = Some((mirror.used_bytes, index));
            }
        }
        chosen |= 1 << best?.1;
    }
    Some(chosen)
}

/// A secondary shard that receives some of this shard's volumes.
#[derive(Debug)]
pub(super) struct Target {
    pub shard: ShardId,
    /// Bit i: it said what it has of `groups[i]` since its link came up; before that nothing of
    /// the group is sent.
    pub resumed: u64,
    /// Records that travel there.
    pub in_flight: u32,
    /// Updates that wait to be sent, in order of becoming safe.
    pub backlog: VecDeque<Token>,
}

/// The index of `shard` among the targets, adding it if it is new.
pub(super) fn target_index(targets: &mut Vec<Target>, shard: ShardId, room: usize) -> u8 {
    let index = targets.iter().position(|t| t.shard == shard).unwrap_or_else(|| {
        targets.push(Target {
            shard,
            resumed: 0,
            in_flight: 0,
            backlog: VecDeque::with_capacity(room),
        });
        targets.len() - 1
    });
    index as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(used_bytes: u64, up: bool) -> Mirror {
        Mirror {
            shard: ShardId::new(1, 0),
            grant_bytes: 0,
            granted_bytes: 1000,
            is_target: true,
            budget_bytes: 1000,
            used_bytes,
            forward_budget_bytes: 0,
            forwarded_bytes: 0,
            in_flight: 0,
            backlog: VecDeque::new(),
            up,
            member: true,
            since: Epoch(0),
            surveyed: true,
            surveys: BTreeMap::new(),
        }
    }

    #[test]
    fn load_picks_the_least_loaded_that_are_up() {
        let mirrors = [mirror(500, true), mirror(100, true), mirror(0, false), mirror(300, true)];
        assert_eq!(choose(&mirrors, 1, 0, None, 10, 8), Some(0b0010));
        assert_eq!(choose(&mirrors, 2, 0, None, 10, 8), Some(0b1010));
        assert_eq!(choose(&mirrors, 4, 0, None, 10, 8), None);
        assert_eq!(choose(&mirrors, 0, 0, None, 10, 8), Some(0));
        assert_eq!(choose(&mirrors, 1, 0b0010, None, 10, 8), Some(0b1000), "not the forwarder");
    }

    #[test]
    fn a_grant_serves_copies_forwards_or_both() {
        for (is_target, forwards, copies, forwarded) in
            [(true, true, 500, 500), (true, false, 1000, 0), (false, true, 0, 1000)]
        {
            let mut peer = Mirror { is_target, ..mirror(0, true) };
            peer.share_budget(forwards);
            assert_eq!((peer.budget_bytes, peer.forward_budget_bytes), (copies, forwarded));
            assert_eq!(peer.takes(400, 8), is_target);
            assert_eq!(peer.takes_forward(400, 8), forwards);
        }
    }

    #[test]
    fn partner_goes_on_to_the_next_when_the_partner_cannot() {
        let mirrors = [mirror(0, true), mirror(995, true), mirror(500, true)];
        assert_eq!(choose(&mirrors, 1, 0, Some(1), 10, 8), Some(0b100));
        assert_eq!(choose(&mirrors, 1, 0, Some(1), 5, 8), Some(0b010));
    }
}
