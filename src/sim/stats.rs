//! What a run did and which faults it went through: without coverage, a clean result says little.

/// Counts of one run; added up over runs.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    /// Events taken from the queue.
    pub events: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
    /// Host updates issued.
    pub updates: u64,
    /// Host updates completed with success.
    pub acknowledged: u64,
    /// Host reads.
    pub reads: u64,
    /// Updates that had to wait for room (back-pressure).
    pub back_pressure: u64,
    /// Updates taken by a mover that is not responsible for their volume.
    pub forwarded: u64,
    /// Sets that the secondary committed.
    pub sets_committed: u64,
    /// Sets that the secondary applied.
    pub sets_applied: u64,
    /// Sets that were formed with nothing in them.
    pub sets_empty: u64,
    /// Failover instants at which the consistent cut was checked.
    pub cuts_checked: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets lost.
    pub packets_lost: u64,
    /// Packets that a partition swallowed.
    pub packets_cut: u64,
    /// Packets that arrived twice.
    pub packets_doubled: u64,
    /// Packets that arrived damaged.
    pub packets_damaged: u64,
    /// Packets held up for long.
    pub packets_straggled: u64,
    /// Packets that the receiver refused: damaged, of an old epoch or an old life.
    pub packets_refused: u64,
    /// Records that found no room and were sent again.
    pub records_refused: u64,
    /// Records that a secondary shard did not want.
    pub records_unwanted: u64,
    /// Partitions, counted per direction.
    pub partitions: u64,
    /// Pollers that stood still for a while.
    pub stalls: u64,
    /// Messages of an old epoch that were slipped in.
    pub stale_messages: u64,
    /// Secondary movers killed while their disks kept what was written.
    pub kills: u64,
    /// Primary movers that failed.
    pub fails: u64,
    /// Of these, such as the copies do not bear.
    pub beyond: u64,
    /// Of these, those that lived on for a while.
    pub suspects: u64,
    /// Of these, those that stood still, as a stopped process does.
    pub long_pauses: u64,
    /// Times that the cluster store answered nobody for a while.
    pub outages: u64,
    /// Times that moves of volumes were planned.
    pub plans: u64,
    /// Volumes handed over between living movers.
    pub hand_overs: u64,
    /// Epochs entered, by shard.
    pub epochs: u64,
    /// Volumes taken over from failed movers.
    pub take_overs: u64,
    /// Updates recovered by those who took volumes over.
    pub recovered_updates: u64,
    /// Payloads of recovered updates that were read back from bases (G12).
    pub read_back: u64,
    /// Of these, those that were not the updates' own.
    pub overtaken: u64,
    /// Numbers found void at a take-over.
    pub lost_numbers: u64,
    /// Writes of failed movers that reached a base late, or were kept from it.
    pub late_writes: u64,
    /// Host updates whose mover failed before it answered.
    pub abandoned: u64,
    /// Secondary movers that lost power.
    pub power_losses: u64,
    /// Moments at which all secondary movers went down together.
    pub site_losses: u64,
    /// Records that a restarted secondary shard found in its journal.
    pub recovered_records: u64,
    /// Volume blocks that went back to an older version at a power loss.
    pub blocks_lost: u64,
    /// Journal bytes or entries cut off at a power loss.
    pub journal_cuts: u64,
    /// Times a journal became scarce.
    pub journal_scarce: u64,
    /// Appends that found a journal full.
    pub journal_full: u64,
    /// Appends that found a journal with as much in flight as it can have.
    pub journal_busy: u64,
    /// Base writes that failed.
    pub base_errors: u64,
    /// Target writes and flushes that failed.
    pub target_errors: u64,
    /// Journal writes and flushes that failed.
    pub journal_errors: u64,
    /// Payloads that apply read back from the journal.
    pub journal_reads: u64,
    /// Sets closed on demand.
    pub closes: u64,
    /// Changes of the period.
    pub period_changes: u64,
    /// Pauses of apply.
    pub pauses: u64,
    /// Updates that got a time stamp.
    pub stamped: u64,
    /// Of these, those whose error nobody knows.
    pub stamped_unknown: u64,
    /// Times that the common timer began at a mover.
    pub timers: u64,
}

macro_rules! each {
    ($($field:ident),* $(,)?) => {
        impl Stats {
            /// Adds the counts of another run.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }
            /// All counts with their names.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),*]
            }
        }
    };
}

each!(
    events,
    virtual_ns,
    updates,
    acknowledged,
    reads,
    back_pressure,
    forwarded,
    sets_committed,
    sets_applied,
    sets_empty,
    cuts_checked,
    packets,
    packets_lost,
    packets_cut,
    packets_doubled,
    packets_damaged,
    packets_straggled,
    packets_refused,
    records_refused,
    records_unwanted,
    partitions,
    stalls,
    stale_messages,
    fails,
    beyond,
    suspects,
    long_pauses,
    outages,
    plans,
    hand_overs,
    epochs,
    take_overs,
    recovered_updates,
    read_back,
    overtaken,
    lost_numbers,
    late_writes,
    abandoned,
    kills,
    power_losses,
    site_losses,
    recovered_records,
    blocks_lost,
    journal_cuts,
    journal_scarce,
    journal_full,
    journal_busy,
    base_errors,
    target_errors,
    journal_errors,
    journal_reads,
    closes,
    period_changes,
    pauses,
    stamped,
    stamped_unknown,
    timers,
);
