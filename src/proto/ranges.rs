//! Orders operations on overlapping ranges of a volume: the later waits for every earlier one.
//!
//! Base writes at the primary and set apply at the secondary both need it (invariant 3: updates
//! whose ranges overlap are never in flight together, so the order of numbers is the order on the
//! medium). [`RangeOrder`] serves all volumes of one shard; the owner is that shard's poller.
//!
//! Extents are kept by size class. Within a class each lies in one bucket, that of the cell its
//! first block falls in; a cell is as long as the longest extent of the class, so whatever overlaps
//! an extent starts in the cells it touches or in the one before. Nothing records who waits for
//! whom: an extent counts the earlier ones it overlaps, and an extent that is waited for looks for
//! its waiters again when it is finished. So there is no memory per pair, and two extents that do
//! not meet cost a few loads.
//!
//! It does not order operations that do not overlap, and it does not merge or split extents.

use super::types::{Extent, VolumeId};
use alloc::vec;
use alloc::vec::Vec;

/// Whether an operation may start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Admission {
    /// Nothing earlier overlaps: start now.
    Ready,
    /// Something earlier overlaps: [`RangeOrder::finish`] of the last such says when to start.
    Waits,
}

/// log2 of the longest extent, in blocks, of each size class; also the length of its cells.
const CLASS_BITS: [u32; 5] = [5, 9, 13, 17, 32];
/// Neighbouring cells, in groups of 2^this, have neighbouring buckets: one cache line serves both
/// cells that an admission looks at.
const NEIGHBOUR_BITS: u32 = 4;
/// No slot.
const NIL: u32 = u32::MAX;

/// The extents in flight and waiting, of all volumes of a shard.
///
/// A slot is an index that the caller chooses, dense from 0, and that names at most one admitted
/// extent at a time. Memory grows to the highest slot ever used and never per operation.
/// Admission and finish take constant time while few extents overlap; `n` extents that all wait
/// for one block cost `n` steps each.
#[derive(Clone, Debug)]
pub struct RangeOrder {
    slots: Vec<Slot>,
    /// First slot of each bucket.
    heads: Vec<u32>,
    /// Admitted extents of each class.
    counts: [u32; CLASS_BITS.len()],
    /// Given to admissions in turn; tells earlier from later.
    stamp: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    lba: u64,
    /// 0: the slot is free.
    blocks: u32,
    volume: VolumeId,
    stamp: u64,
    next: u32,
    previous: u32,
    /// Earlier overlapping extents that are not finished.
    ahead: u32,
    class: u8,
    /// A later extent counted this one.
    awaited: bool,
}

impl Slot {
    const FREE: Self = Self {
        lba: 0,
        blocks: 0,
        volume: VolumeId(0),
        stamp: 0,
        next: NIL,
        previous: NIL,
        ahead: 0,
        class: 0,
        awaited: false,
    };
    fn extent(&self) -> Extent {
        Extent { lba: self.lba, blocks: self.blocks }
    }
}

fn class_of(blocks: u32) -> usize {
    CLASS_BITS.iter().position(|bits| u64::from(blocks) <= 1 << bits).unwrap_or(0)
}

impl RangeOrder {
    /// Room for slots below `slots` without another allocation.
    #[must_use]
    pub fn with_capacity(slots: usize) -> Self {
        // Sparse, so that a look into a bucket rarely finds another's extent.
        let buckets = slots.saturating_mul(8).next_power_of_two().clamp(256, 1 << 16);
        Self {
            slots: vec![Slot::FREE; slots],
            heads: vec![NIL; buckets],
            counts: [0; CLASS_BITS.len()],
            stamp: 0,
        }
    }

    /// How many extents are admitted and not finished.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.iter().map(|count| *count as usize).sum()
    }

    /// Whether no extent is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `slot` is admitted and still waits for an earlier one.
    #[must_use]
    pub fn waits(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|s| s.blocks != 0 && s.ahead != 0)
    }

    /// Puts `extent` of `volume` after everything admitted before.
    ///
    /// # Panics
    /// When `slot` is admitted already or the extent is empty: both are errors of the caller.
    #[inline]
    pub fn admit(&mut self, slot: u32, volume: VolumeId, extent: Extent) -> Admission {
        assert!(extent.blocks != 0, "an extent is never empty");
        if self.slots.len() <= slot as usize {
            self.slots.resize(slot as usize + 1, Slot::FREE);
        }
        assert!(self.slots[slot as usize].blocks == 0, "slot {slot} is in use");
        let mut ahead = 0;
        self.visit_overlapping(volume, extent, |_, earlier| {
            earlier.awaited = true;
            ahead += 1;
        });
        let class = class_of(extent.blocks);
        let bucket = self.bucket(class, volume, extent.lba >> CLASS_BITS[class]);
        let next = self.heads[bucket];
        self.heads[bucket] = slot;
        if next != NIL {
            self.slots[next as usize].previous = slot;
        }
        self.counts[class] += 1;
        self.stamp += 1;
        self.slots[slot as usize] = Slot {
            lba: extent.lba,
            blocks: extent.blocks,
            volume,
            stamp: self.stamp,
            next,
            previous: NIL,
            ahead,
            class: class as u8,
            awaited: false,
        };
        if ahead == 0 { Admission::Ready } else { Admission::Waits }
    }

    /// Takes `slot` out, finished or given up while it waited, and names each slot that may start
    /// now. Those named do not overlap one another, so their order says nothing.
    ///
    /// # Panics
    /// When `slot` is not admitted: an error of the caller.
    #[inline]
    pub fn finish(&mut self, slot: u32, mut ready: impl FnMut(u32)) {
        let done = self.slots[slot as usize];
        assert!(done.blocks != 0, "slot {slot} is not in use");
        let class = usize::from(done.class);
        if done.next != NIL {
            self.slots[done.next as usize].previous = done.previous;
        }
        if done.previous != NIL {
            self.slots[done.previous as usize].next = done.next;
        } else {
            let bucket = self.bucket(class, done.volume, done.lba >> CLASS_BITS[class]);
            self.heads[bucket] = done.next;
        }
        self.slots[slot as usize].blocks = 0;
        self.counts[class] -= 1;
        if done.awaited {
            self.visit_overlapping(done.volume, done.extent(), |index, later| {
                if later.stamp > done.stamp {
                    later.ahead -= 1;
                    if later.ahead == 0 {
                        ready(index);
                    }
                }
            });
        }
    }

    /// Names each slot that still waits, came before `slot` and lies wholly within its extent.
    /// Where only the outcome counts (apply of a set, invariant 7) such an operation need not be
    /// carried out: the caller gives it up with [`RangeOrder::finish`].
    ///
    /// # Panics
    /// When `slot` is not admitted: an error of the caller.
    pub fn superseded_by(&mut self, slot: u32, mut found: impl FnMut(u32)) {
        let cover = self.slots[slot as usize];
        assert!(cover.blocks != 0, "slot {slot} is not in use");
        self.visit_overlapping(cover.volume, cover.extent(), |index, other| {
            let within = other.lba >= cover.lba && other.extent().end() <= cover.extent().end();
            if within && other.stamp < cover.stamp && other.ahead != 0 {
                found(index);
            }
        });
    }

    #[inline]
    fn bucket(&self, class: usize, volume: VolumeId, cell: u64) -> usize {
        let far = (cell >> NEIGHBOUR_BITS) ^ (u64::from(volume.0) << 35) ^ ((class as u64) << 60);
        let far = far.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let near = cell & ((1 << NEIGHBOUR_BITS) - 1);
        (((far << NEIGHBOUR_BITS) | near) & (self.heads.len() as u64 - 1)) as usize
    }

    /// Calls `found` once for each admitted extent that overlaps.
    #[inline]
    fn visit_overlapping(
        &mut self,
        volume: VolumeId,
        extent: Extent,
        mut found: impl FnMut(u32, &mut Slot),
    ) {
        for (class, bits) in CLASS_BITS.into_iter().enumerate() {
            if self.counts[class] == 0 {
                continue;
            }
            let first = (extent.lba >> bits).saturating_sub(1);
            let last = (extent.end() - 1) >> bits;
            if last - first < self.heads.len() as u64 {
                for cell in first..=last {
                    let mut index = self.heads[self.bucket(class, volume, cell)];
                    while let Some(slot) = self.slots.get_mut(index as usize) {
                        // Other cells share the bucket, among them perhaps others of this walk.
                        if usize::from(slot.class) == class
                            && slot.lba >> bits == cell
                            && slot.volume == volume
                            && slot.extent().overlaps(extent)
                        {
                            found(index, slot);
                        }
                        index = slot.next;
                    }
                }
            } else {
                // Longer than the table: every bucket once is less.
                for bucket in 0..self.heads.len() {
                    let mut index = self.heads[bucket];
                    while let Some(slot) = self.slots.get_mut(index as usize) {
                        if usize::from(slot.class) == class
                            && slot.volume == volume
                            && slot.extent().overlaps(extent)
                        {
                            found(index, slot);
                        }
                        index = slot.next;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The obvious way: a list of all extents in order of admission.
    #[derive(Default)]
    struct Oracle {
        list: Vec<(u32, VolumeId, Extent)>,
    }

    impl Oracle {
        fn ready(&self) -> Vec<u32> {
            let free = |at: usize| {
                let (_, volume, extent) = self.list[at];
                !self.list[..at].iter().any(|e| e.1 == volume && e.2.overlaps(extent))
            };
            let mut ready: Vec<u32> =
                (0..self.list.len()).filter(|at| free(*at)).map(|at| self.list[at].0).collect();
            ready.sort_unstable();
            ready
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit(u32, u64, u32),
        Finish(usize),
        GiveUp(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let blocks = prop_oneof![
            6 => 1..=4_u32,
            2 => 1..=64_u32,
            1 => 400..=1200_u32,
            1 => prop_oneof![Just(8192_u32), Just(8193), Just(200_000), Just(u32::MAX)],
        ];
        let lba = prop_oneof![
            4 => 0..200_u64,
            2 => 0..5_000_u64,
            1 => 0..2_000_000_u64,
            1 => u64::MAX - 10_000_000_000..u64::MAX - 5_000_000_000,
        ];
        prop_oneof![
            5 => (0..3_u32, lba, blocks).prop_map(|(v, l, b)| Step::Admit(v, l, b)),
            4 => any::<usize>().prop_map(Step::Finish),
            1 => any::<usize>().prop_map(Step::GiveUp),
        ]
    }

    proptest! {
        #[test]
        fn the_ready_ones_are_those_with_nothing_earlier_overlapping(
            steps in proptest::collection::vec(step(), 1..300)
        ) {
            let mut order = RangeOrder::with_capacity(4);
            let mut oracle = Oracle::default();
            let mut started: Vec<u32> = Vec::new();
            let mut unused: Vec<u32> = (0..300).rev().collect();
            for step in steps {
                match step {
                    Step::Admit(volume, lba, blocks) => {
                        let slot = unused.pop().unwrap();
                        let (volume, extent) = (VolumeId(volume), Extent { lba, blocks });
                        if order.admit(slot, volume, extent) == Admission::Ready {
                            started.push(slot);
                        }
                        oracle.list.push((slot, volume, extent));
                    }
                    Step::Finish(which) if !started.is_empty() => {
                        let slot = started.swap_remove(which % started.len());
                        order.finish(slot, |slot| started.push(slot));
                        oracle.list.retain(|e| e.0 != slot);
                        unused.push(slot);
                    }
                    Step::GiveUp(which) if !oracle.list.is_empty() => {
                        let slot = oracle.list.remove(which % oracle.list.len()).0;
                        started.retain(|s| *s != slot);
                        order.finish(slot, |slot| started.push(slot));
                        unused.push(slot);
                    }
                    Step::Finish(_) | Step::GiveUp(_) => {}
                }
                started.sort_unstable();
                prop_assert_eq!(&started, &oracle.ready());
                prop_assert_eq!(order.len(), oracle.list.len());
                for (slot, ..) in &oracle.list {
                    prop_assert_eq!(order.waits(*slot), !started.contains(slot));
                }
            }
        }
    }

    #[test]
    fn a_chain_on_one_block_runs_in_order_of_admission() {
        let mut order = RangeOrder::with_capacity(8);
        let extent = Extent { lba: 9, blocks: 1 };
        assert_eq!(order.admit(0, VolumeId(1), extent), Admission::Ready);
        for slot in 1..8 {
            assert_eq!(order.admit(slot, VolumeId(1), extent), Admission::Waits);
        }
        for slot in 0..7 {
            let mut ready = Vec::new();
            order.finish(slot, |slot| ready.push(slot));
            assert_eq!(ready, [slot + 1]);
        }
        order.finish(7, |_| panic!("nothing is left"));
        assert!(order.is_empty());
    }

    #[test]
    fn equal_ranges_of_different_volumes_do_not_meet() {
        let mut order = RangeOrder::with_capacity(2);
        let extent = Extent { lba: 0, blocks: u32::MAX };
        assert_eq!(order.admit(0, VolumeId(1), extent), Admission::Ready);
        assert_eq!(order.admit(1, VolumeId(2), extent), Admission::Ready);
    }

    #[test]
    fn only_a_waiting_extent_wholly_under_a_later_one_is_superseded() {
        let mut order = RangeOrder::with_capacity(8);
        let extent = |lba, blocks| Extent { lba, blocks };
        assert_eq!(order.admit(0, VolumeId(1), extent(0, 4)), Admission::Ready);
        for (slot, lba, blocks) in [(1, 0, 4), (2, 2, 4), (3, 1, 2), (4, 0, 4)] {
            assert_eq!(order.admit(slot, VolumeId(1), extent(lba, blocks)), Admission::Waits);
        }
        let mut found = Vec::new();
        order.superseded_by(4, |slot| found.push(slot));
        found.sort_unstable();
        assert_eq!(found, [1, 3], "0 is in flight, 2 reaches further");
    }
}
