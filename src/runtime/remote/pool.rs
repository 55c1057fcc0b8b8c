//! Records of two sizes, taken from the arena at launch, for data that pass between movers.
//!
//! Not a log: what a dead peer keeps for ever would pin a whole segment of that.

use super::super::plan::HOST_PAYLOAD_BYTES_MAX;
use crate::mem::arena::{ALIGN_MAX, Arena, ArenaError, LogId, LogLimits};
use crate::proto::types::BufRef;

/// Payload bytes of a small record.
const SMALL_BYTES: usize = 8 << 10;
/// Records of each size; together they fit
/// [`crate::runtime::plan::REMOTE_POOL_BYTES`].
const COUNTS: [usize; 2] = [240, 15];
const BYTES: [usize; 2] = [SMALL_BYTES, HOST_PAYLOAD_BYTES_MAX];

/// The records of one direction. Owned by one poller.
#[derive(Debug)]
pub(in crate::runtime) struct Pool {
    log: LogId,
    free: [Vec<BufRef>; 2],
    /// What one peer may have of each size at once.
    share: [u32; 2],
}

impl Pool {
    /// Takes the records from a log of its own; `peers` share them.
    pub(super) fn new(
        arena: &mut Arena,
        limits: LogLimits,
        peers: usize,
    ) -> Result<Self, ArenaError> {
        let log = arena.open_log(limits)?;
        let mut free = [Vec::new(), Vec::new()];
        if peers > 0 {
            for (class, records) in free.iter_mut().enumerate() {
                let append = |_| arena.append(log, BYTES[class], ALIGN_MAX);
                records.extend((0..COUNTS[class]).map_while(append));
            }
        }
        let share = |class: usize| (COUNTS[class] / peers.max(1)).max(1) as u32;
        Ok(Self { log, free, share: [share(0), share(1)] })
    }

    /// The size that serves `payload_bytes`; none when no record holds so many.
    pub(super) fn class_of(payload_bytes: usize) -> Option<usize> {
        BYTES.iter().position(|bytes| payload_bytes <= *bytes)
    }

    pub(super) fn share(&self, class: usize) -> u32 {
        self.share[class]
    }

    /// A record for `payload_bytes`; none while others have them all.
    pub(in crate::runtime) fn take(&mut self, payload_bytes: usize) -> Option<BufRef> {
        self.free[Self::class_of(payload_bytes)?].pop()
    }

    pub(super) fn owns(&self, log: LogId) -> bool {
        self.log == log
    }

    /// Takes back a record that `arena` has room for `payload_bytes` in.
    pub(super) fn give_back(&mut self, buf: BufRef, payload_bytes: usize) {
        let class = usize::from(payload_bytes > SMALL_BYTES);
        self.free[class].push(buf);
        debug_assert!(self.free[class].len() <= COUNTS[class], "a record is given back once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::arena::SEGMENT_BYTES;

    const LIMITS: LogLimits = LogLimits::exactly(crate::runtime::plan::REMOTE_POOL_BYTES);

    #[test]
    fn all_records_fit_their_segments_and_come_back() {
        let mut arena = Arena::heap(4 * SEGMENT_BYTES, 2).unwrap();
        let mut pool = Pool::new(&mut arena, LIMITS, 2).unwrap();
        assert_eq!(arena.usage(pool.log).held_bytes, 2 * SEGMENT_BYTES as u64);
        assert_eq!((pool.share(0), pool.share(1)), (120, 7));
        for (class, bytes) in [(0, 4096), (1, HOST_PAYLOAD_BYTES_MAX)] {
            assert_eq!(Pool::class_of(bytes), Some(class));
            let taken: Vec<BufRef> = std::iter::from_fn(|| pool.take(bytes)).collect();
            assert_eq!(taken.len(), COUNTS[class]);
            taken.into_iter().for_each(|buf| pool.give_back(buf, arena.payload(buf).len()));
            assert_eq!(pool.free[class].len(), COUNTS[class]);
        }
        assert_eq!(Pool::class_of(HOST_PAYLOAD_BYTES_MAX + 1), None);
    }
}
