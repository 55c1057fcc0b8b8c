//! What a history is made of: sizes, loads and faults, drawn from the seed and overridden by
//! knobs.
//!
//! Every fault is on or off per seed ("swarm" testing): a history with few kinds of faults goes
//! deeper into each than one with all of them, and many histories cover the combinations.
//! Times are short and volumes tiny on purpose, so that collisions, boundaries and crashes fall
//! together often.

use super::network::NetworkFaults;
use super::prng::Rng;
use crate::config::Timestamps;
use crate::journal::{BLOCK_BYTES, Config, ENTRY_BYTES, Shape};
use crate::proto::sabotage::Sabotage;
use crate::wire::update::UPDATE_HEADER_BYTES;

/// The block values of a record. A block holds its value over and over; one that does not is
/// torn, and shows a value that no update has.
pub(super) fn block_values(record: &[u8], block_bytes: u32) -> Vec<u64> {
    let words = |block: &[u8]| -> Vec<u64> {
        block.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_le_bytes)).collect()
    };
    let payload = record.get(UPDATE_HEADER_BYTES..).unwrap_or_default();
    payload
        .chunks_exact(block_bytes as usize)
        .map(|block| {
            let words = words(block);
            if words.iter().all(|w| *w == words[0]) { words[0] } else { u64::MAX }
        })
        .collect()
}

/// Most blocks of one update; a block's index within its update fits a byte.
pub const UPDATE_BLOCKS_MAX: u32 = 8;

/// Microseconds as nanoseconds.
pub(super) const US: u64 = 1000;
/// Milliseconds as nanoseconds.
pub(super) const MS: u64 = 1_000_000;

/// How often disks fail, per million commands.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFaults {
    /// Base writes; the host is told and the number is void.
    pub base_ppm: u32,
    /// Target writes and flushes; tried again for ever.
    pub target_ppm: u32,
    /// A journal's writes and flushes; nothing is stored there until its mover is started again.
    pub journal_ppm: u32,
}

/// The mean times between faults that happen to movers, nanoseconds; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct MoverFaults {
    /// A secondary mover is killed; its disks keep what was written.
    pub kill_ns: u64,
    /// A secondary mover loses power.
    pub power_ns: u64,
    /// All secondary movers lose power together.
    pub site_ns: u64,
    /// A direction or a pair is cut off.
    pub partition_ns: u64,
    /// A poller stands still.
    pub stall_ns: u64,
    /// A message of an old epoch arrives.
    pub stale_ns: u64,
    /// A primary mover fails, or is taken for failed.
    pub fail_ns: u64,
    /// The cluster store answers nobody for a while.
    pub outage_ns: u64,
    /// Moves of volumes are planned.
    pub move_ns: u64,
    /// Volumes that move then, per million.
    pub move_ppm: u32,
}

/// What an operator does, as mean times between, nanoseconds; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operator {
    /// Close the open set on demand.
    pub close_ns: u64,
    /// Change the period.
    pub period_ns: u64,
    /// Pause apply for a while.
    pub pause_ns: u64,
}

/// Everything that one history is made of.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Movers at the primary site.
    pub primaries: u16,
    /// Movers at the secondary site.
    pub secondaries: u16,
    /// Pollers of each mover.
    pub pollers: u8,
    /// Volumes.
    pub volumes: u32,
    /// Blocks of each volume.
    pub blocks: u32,
    /// Bytes of a block, a multiple of 8; with large ones records travel in fragments.
    pub block_bytes: u32,
    /// Copies of an update.
    pub copies: u8,
    /// Mirrors are chosen by load, not fixed.
    pub mirror_by_load: bool,
    /// Time between boundaries, nanoseconds.
    pub period_ns: u64,
    /// Hosts.
    pub hosts: u32,
    /// Commands that a host keeps under way.
    pub queue_depth: u32,
    /// Mean pause of a host before its next command, nanoseconds.
    pub think_ns: u64,
    /// Updates that hosts issue in all.
    pub updates: u32,
    /// Reads per million commands.
    pub read_ppm: u32,
    /// Write zeroes and deallocate per million updates.
    pub zero_ppm: u32,
    /// Updates with forced unit access, per million.
    pub fua_ppm: u32,
    /// Updates that hosts send to any mover instead of the responsible one, per million (G3).
    pub forward_ppm: u32,
    /// Updates that a shard forwards at once.
    pub forwards_max: u32,
    /// Blocks of each volume that most updates go to.
    pub hot_blocks: u32,
    /// Bytes of a poller's arena for records of its own.
    pub own_bytes: u64,
    /// Bytes that a mirror target grants to each source.
    pub grant_bytes: u64,
    /// Records under way to one receiver at once.
    pub in_flight: u32,
    /// Writes to target volumes under way at once.
    pub apply_depth: u32,
    /// Mean time of a disk write, nanoseconds.
    pub write_ns: u64,
    /// Mean time of a flush, nanoseconds.
    pub flush_ns: u64,
    /// Pace of heartbeats and of attempts to reach a peer, nanoseconds.
    pub heartbeat_ns: u64,
    /// The network.
    pub network: NetworkFaults,
    /// Disk faults.
    pub disks: DiskFaults,
    /// Mover faults.
    pub movers: MoverFaults,
    /// What the operator does.
    pub operator: Operator,
    /// Mean time that a crashed mover stays away, nanoseconds.
    pub down_ns: u64,
    /// More primary movers may fail at once than there are spare copies.
    pub beyond: bool,
    /// Primary movers come and go: epochs change.
    pub epochs: bool,
    /// Mean time until members learn of a new epoch, nanoseconds.
    pub learn_ns: u64,
    /// Failures of primary movers in which the mover lives on for a while, per million.
    pub suspect_ppm: u32,
    /// Mean time that a write of a failed mover stays on its way to a base, nanoseconds.
    pub late_ns: u64,
    /// Size of each secondary journal, in percent of the least that the sizing rule allows.
    pub journal_percent: u32,
    /// Units of a journal under way at once.
    pub journal_units: usize,
    /// Stage blocks of a journal beyond the least.
    pub stage_blocks: usize,
    /// Where time stamps come from.
    pub timestamps: Timestamps,
    /// Mirror copies are descriptions (G12).
    pub described: bool,
    /// Answers of devices after which a poller's turn goes on and more comes in, per million.
    pub lazy_ppm: u32,
    /// The rule that the protocol breaks on purpose.
    pub sabotage: Sabotage,
}

/// What the command line fixes; the seed decides the rest.
#[derive(Clone, Debug, Default)]
pub struct Knobs {
    /// See [`Profile::primaries`].
    pub primaries: Option<u16>,
    /// See [`Profile::secondaries`].
    pub secondaries: Option<u16>,
    /// See [`Profile::pollers`].
    pub pollers: Option<u8>,
    /// See [`Profile::volumes`].
    pub volumes: Option<u32>,
    /// See [`Profile::copies`].
    pub copies: Option<u8>,
    /// See [`Profile::updates`].
    pub updates: Option<u32>,
    /// See [`Profile::period_ns`].
    pub period_ns: Option<u64>,
    /// See [`Profile::journal_percent`].
    pub journal_percent: Option<u32>,
    /// See [`Profile::forward_ppm`].
    pub forward_ppm: Option<u32>,
    /// Whether primary movers fail.
    pub fail: Option<bool>,
    /// Whether more primary movers may fail at once than there are spare copies.
    pub beyond: Option<bool>,
    /// Whether volumes move between living primary movers.
    pub moves: Option<bool>,
    /// See [`Profile::timestamps`].
    pub timestamps: Option<Timestamps>,
    /// See [`Profile::described`].
    pub described: Option<bool>,
    /// No network faults.
    pub calm_network: bool,
    /// No disk faults.
    pub calm_disks: bool,
    /// No crashes, stalls, partitions or old messages.
    pub calm_movers: bool,
    /// See [`Profile::sabotage`].
    pub sabotage: Sabotage,
}

/// The least journal for primary arenas of so many bytes in all. Twice what their records take in
/// it, and a reserve for manifests and marks, all that in the half that is left when it is scarce.
fn journal_bytes_least(arena_bytes: u64, block_bytes: u64) -> u64 {
    // A header entry, and the payload in steps of 64 bytes.
    let shares = [0, block_bytes].map(|payload| {
        let record = UPDATE_HEADER_BYTES as u64 + payload;
        let entry = (ENTRY_BYTES + UPDATE_HEADER_BYTES) as u64 + payload.next_multiple_of(64);
        (arena_bytes * entry).div_ceil(record)
    });
    let records = shares[0].max(shares[1]);
    2 * (2 * records + JOURNAL_RESERVE_BLOCKS * BLOCK_BYTES as u64)
}

/// Blocks of a journal for manifests, marks and the rounding of units.
const JOURNAL_RESERVE_BLOCKS: u64 = 400;

impl Profile {
    /// The journal of a secondary shard, and the bytes of its stage.
    #[must_use]
    pub fn journal(&self) -> (Config, usize) {
        let shape = Shape::SMALL;
        let primaries = u64::from(self.primaries) * u64::from(self.pollers);
        let least = journal_bytes_least(primaries * self.own_bytes, self.block_bytes.into());
        let device_bytes = least * u64::from(self.journal_percent) / 100;
        let device_bytes = device_bytes.max(Config::device_bytes_min(shape));
        let config = Config { device_bytes, shape, units_in_flight: self.journal_units };
        (config, Config::stage_bytes_min(shape) + self.stage_blocks * BLOCK_BYTES)
    }

    /// The profile of a seed.
    #[must_use]
    pub fn draw(rng: &mut Rng, knobs: &Knobs) -> Self {
        // Everything is drawn before a knob overrides it, so that turning one knob leaves the
        // rest of the history as it was.
        let mut on = |ppm: u32| rng.chance(ppm);
        let (lossy, dirty, twice, straggling) =
            (on(500_000), on(250_000), on(500_000), on(250_000));
        let (bad_base, bad_target) = (on(250_000), on(250_000));
        let (kills, powers, sites) = (on(400_000), on(400_000), on(300_000));
        let (partitions, stalls, stale) = (on(300_000), on(300_000), on(200_000));
        let (closes, periods, pauses) = (on(300_000), on(200_000), on(200_000));
        let when = |yes: bool, value: u64| if yes { value } else { 0 };
        let ppm = |yes: bool, value: u32| if yes { value } else { 0 };

        let drawn_primaries = rng.pick(&[1, 2, 2, 2, 3, 3, 4, 5, 7, 9]);
        let secondaries = rng.pick(&[1, 1, 2, 2, 3]);
        let pollers = rng.pick(&[1, 1, 1, 2]);
        let volumes = rng.pick(&[1, 2, 3, 4, 6, 8, 12, 20, 60, 200]);
        let drawn_copies = rng.pick(&[2, 2, 2, 1, 3, 4]);
        let period_ns = rng.pick(&[200 * US, 500 * US, MS, 2 * MS, 5 * MS]);
        let updates = rng.pick(&[60, 120, 200, 400]);
        let blocks = rng.pick(&[4, 8, 16, 32]);
        let primaries = knobs.primaries.unwrap_or(drawn_primaries);
        let copies = knobs.copies.unwrap_or(drawn_copies);
        let mut profile = Self {
            primaries,
            secondaries: knobs.secondaries.unwrap_or(secondaries),
            pollers: knobs.pollers.unwrap_or(pollers),
            volumes: knobs.volumes.unwrap_or(volumes),
            blocks,
            block_bytes: rng.pick(&[8, 8, 8, 64, 64, 512]),
            // More copies than movers cannot be had.
            copies: copies.min(primaries as u8).max(1),
            mirror_by_load: rng.chance(700_000),
            period_ns: knobs.period_ns.unwrap_or(period_ns),
            hosts: rng.between(1, 4) as u32,
            queue_depth: rng.pick(&[1, 1, 2, 4, 8]),
            think_ns: rng.pick(&[0, US, 20 * US, 100 * US]),
            updates: knobs.updates.unwrap_or(updates),
            read_ppm: rng.pick(&[0, 100_000, 400_000]),
            zero_ppm: rng.pick(&[0, 100_000, 300_000]),
            fua_ppm: rng.pick(&[0, 100_000]),
            forward_ppm: knobs.forward_ppm.unwrap_or(rng.pick(&[0, 100_000, 1_000_000])),
            forwards_max: rng.pick(&[2, 16, 256]),
            hot_blocks: rng.between(1, u64::from(blocks)) as u32,
            own_bytes: rng.pick(&[2 << 10, 8 << 10, 64 << 10]),
            grant_bytes: rng.pick(&[1 << 10, 4 << 10, 64 << 10]),
            in_flight: rng.pick(&[2, 8, 64]),
            apply_depth: rng.pick(&[1, 4, 32]),
            write_ns: rng.pick(&[5 * US, 20 * US, 80 * US]),
            flush_ns: rng.pick(&[10 * US, 100 * US, 400 * US]),
            heartbeat_ns: rng.pick(&[2 * MS, 5 * MS]),
            network: NetworkFaults {
                delay_ns: rng.pick(&[3 * US, 10 * US, 40 * US]),
                site_delay_ns: rng.pick(&[10 * US, 100 * US, 800 * US]),
                loss_ppm: ppm(lossy, rng.pick(&[1_000, 10_000, 100_000])),
                duplicate_ppm: ppm(twice, rng.pick(&[1_000, 10_000, 100_000])),
                corrupt_ppm: ppm(dirty, rng.pick(&[1_000, 10_000])),
                straggle_ppm: ppm(straggling, rng.pick(&[1_000, 10_000])),
            },
            disks: DiskFaults {
                base_ppm: ppm(bad_base, rng.pick(&[5_000, 30_000])),
                target_ppm: ppm(bad_target, rng.pick(&[5_000, 50_000])),
                journal_ppm: 0,
            },
            movers: MoverFaults {
                kill_ns: when(kills, rng.pick(&[2 * MS, 10 * MS])),
                power_ns: when(powers, rng.pick(&[2 * MS, 10 * MS])),
                site_ns: when(sites, rng.pick(&[4 * MS, 20 * MS])),
                partition_ns: when(partitions, rng.pick(&[2 * MS, 10 * MS])),
                stall_ns: when(stalls, rng.pick(&[MS, 5 * MS])),
                stale_ns: when(stale, rng.pick(&[300 * US, 2 * MS])),
                fail_ns: 0,
                outage_ns: 0,
                move_ns: 0,
                move_ppm: 0,
            },
            operator: Operator {
                close_ns: when(closes, rng.pick(&[500 * US, 5 * MS])),
                period_ns: when(periods, 5 * MS),
                pause_ns: when(pauses, rng.pick(&[3 * MS, 10 * MS])),
            },
            down_ns: rng.pick(&[100 * US, MS, 5 * MS]),
            beyond: false,
            epochs: false,
            learn_ns: 0,
            suspect_ppm: 0,
            late_ns: 0,
            journal_percent: {
                let drawn = rng.pick(&[100, 100, 110, 150, 1000]);
                knobs.journal_percent.unwrap_or(drawn)
            },
            journal_units: rng.pick(&[2, 4, 16]),
            stage_blocks: rng.pick(&[0, 8, 64]),
            timestamps: Timestamps::None,
            described: false,
            lazy_ppm: 0,
            sabotage: knobs.sabotage,
        };
        if rng.chance(200_000) {
            profile.disks.journal_ppm = rng.pick(&[500, 5_000]);
        }
        let fails = rng.chance(250_000);
        let fail_ns = rng.pick(&[3 * MS, 10 * MS, 30 * MS]);
        profile.learn_ns = rng.pick(&[10 * US, 200 * US, 2 * MS]);
        profile.suspect_ppm = rng.pick(&[0, 300_000, 1_000_000]);
        profile.late_ns = rng.pick(&[10 * US, MS, 10 * MS]);
        if knobs.fail.unwrap_or(fails) && profile.primaries > 1 && profile.copies > 1 {
            profile.epochs = true;
            profile.movers.fail_ns = fail_ns;
        }
        let move_ns = rng.pick(&[200 * US, MS, 5 * MS]);
        let move_ppm = rng.pick(&[100_000, 500_000, 1_000_000]);
        let moves = rng.chance(250_000);
        if knobs.moves.unwrap_or(moves) && profile.primaries > 1 {
            profile.epochs = true;
            profile.movers.move_ns = move_ns;
            profile.movers.move_ppm = move_ppm;
        }
        if profile.block_bytes > 64 {
            // Room for some records of the largest size.
            profile.own_bytes = profile.own_bytes.max(16 << 10);
            profile.grant_bytes = profile.grant_bytes.max(8 << 10);
        }
        // A largest record of the shard's own and one that it forwards: the least that is legal.
        let record = UPDATE_HEADER_BYTES as u64
            + u64::from(UPDATE_BLOCKS_MAX) * u64::from(profile.block_bytes);
        profile.grant_bytes = profile.grant_bytes.max(2 * record);
        if knobs.calm_network {
            let NetworkFaults { delay_ns, site_delay_ns, .. } = profile.network;
            profile.network = NetworkFaults { delay_ns, site_delay_ns, ..NetworkFaults::default() };
        }
        if knobs.calm_disks {
            profile.disks = DiskFaults::default();
        }
        if knobs.calm_movers {
            profile.movers = MoverFaults::default();
        }
        let timestamps =
            rng.pick(&[Timestamps::None, Timestamps::Clock, Timestamps::Clock, Timestamps::Common]);
        profile.timestamps = knobs.timestamps.unwrap_or(timestamps);
        let outages = rng.chance(300_000);
        if profile.movers.fail_ns > 0 || profile.movers.move_ns > 0 {
            profile.movers.outage_ns = when(outages, rng.pick(&[5 * MS, 20 * MS]));
        }
        let beyond = rng.chance(125_000);
        profile.beyond = knobs.beyond.unwrap_or(beyond) && profile.movers.fail_ns > 0;
        let described = rng.chance(250_000);
        profile.described = knobs.described.unwrap_or(described) && profile.copies > 1;
        profile.lazy_ppm = rng.pick(&[0, 100_000, 700_000]);
        profile
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_changes_only_what_it_names() {
        let draw = |knobs: &Knobs| Profile::draw(&mut Rng::new(5), knobs);
        let free = draw(&Knobs::default());
        let fixed = draw(&Knobs { volumes: Some(17), ..Knobs::default() });
        assert_eq!(fixed.volumes, 17);
        let reset = Profile { volumes: free.volumes, ..fixed };
        assert_eq!(format!("{reset:?}"), format!("{free:?}"));
    }

    #[test]
    fn no_profile_asks_for_more_copies_than_movers() {
        for seed in 0..500 {
            let profile = Profile::draw(&mut Rng::new(seed), &Knobs::default());
            assert!((1..=profile.primaries).contains(&u16::from(profile.copies)));
            assert!(profile.hot_blocks <= profile.blocks);
        }
    }
}
