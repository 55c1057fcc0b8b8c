//! The observer's checks of time stamps (G8, invariant 11): they are in the order in which a mover takes
//! updates, their bounds hold the truth, and so tell no lie about what was before what.

use super::observer::{Observer, Verdict, WriteId, ensure};
use super::times::Taken;
use crate::proto::time::{ERROR_UNKNOWN, TimeStamp};
use crate::proto::types::ShardId;

/// What was last stamped at a mover.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct LastStamp {
    life: u32,
    poller: u8,
    time_ns: u64,
}

impl Observer {
    /// A shard took an update in a life of its mover and stamped it.
    ///
    /// # Errors
    /// Invariant 11.
    pub(super) fn stamped(
        &mut self,
        id: WriteId,
        shard: ShardId,
        life: u32,
        taken: Taken,
    ) -> Verdict {
        let Taken { stamp, truth_ns } = taken;
        let TimeStamp { time_ns, error_ns } = stamp;
        let last = &mut self.last_stamps[usize::from(shard.mover.0)];
        if last.life == life {
            // Pollers may take two updates at the very same moment.
            let least = last.time_ns + u64::from(last.poller == shard.poller);
            ensure!(
                11,
                time_ns >= least || time_ns == 0,
                "write {id} is stamped {time_ns} at {shard}, {} after what the mover took before",
                last.time_ns as i64 - time_ns as i64
            );
        }
        if time_ns != 0 {
            *last = LastStamp { life, poller: shard.poller, time_ns };
        }
        let write = &mut self.writes[id as usize];
        write.time = stamp;
        let Some(truth_ns) = truth_ns else { return Ok(()) };
        if time_ns == 0 || error_ns == ERROR_UNKNOWN {
            return Ok(());
        }
        if self.lost.is_some() {
            // One that was excluded, and whose group has no sets any more, may go by an old timer.
            return Ok(());
        }
        let off = time_ns.abs_diff(truth_ns);
        ensure!(
            11,
            off <= u64::from(error_ns),
            "write {id} is stamped {time_ns} ± {error_ns} at {shard}, the truth is {off} away"
        );
        ensure!(
            11,
            time_ns + u64::from(error_ns) >= write.told_ns,
            "write {id} is stamped {time_ns} ± {error_ns}, it was issued after one was acknowledged \
             that was not taken before {}",
            write.told_ns
        );
        Ok(())
    }

    /// A host was told that an update succeeded: what it issues from now on is later.
    pub(super) fn told_time(&mut self, id: WriteId) {
        let TimeStamp { time_ns, error_ns } = self.writes[id as usize].time;
        if time_ns != 0 && error_ns != ERROR_UNKNOWN {
            self.told_ns = self.told_ns.max(time_ns - u64::from(error_ns));
        }
    }
}
