//! Every bound that a configuration is held to, in one place, with the relations between them.

/// Pollers of one mover; the poller's index travels as one byte and indexes fixed tables.
pub const POLLERS_MAX: usize = 32;
/// Movers over both sites.
pub const MOVERS_MAX: usize = 64;
/// Groups of one mover.
pub const GROUPS_MAX: usize = 64;
/// Volumes of one group: one NVMe namespace each.
pub const VOLUMES_PER_GROUP_MAX: usize = 1024;
/// Highest core number, the kernel's own bound (`CONFIG_NR_CPUS`).
pub const CORE_MAX: i64 = 8191;

/// Bytes of one arena segment, in MiB: one hugepage.
pub const SEGMENT_MIB: u32 = 2;
/// Segments of a poller's arena that are there for whatever comes: bursts, and the sets of one
/// that just took over.
pub const ARENA_SEGMENTS_SPARE: u32 = 8;
/// What a poller of a primary site with several movers sets aside of its arena for data that are read
/// for hosts at movers that are not responsible for the volume, in MiB.
pub const ARENA_MIB_REMOTE: u32 = 4 * SEGMENT_MIB;
/// Smallest arena a poller may have, in MiB.
pub const ARENA_MIB_MIN: u32 = SEGMENT_MIB * ARENA_SEGMENTS_SPARE;
/// Largest arena a poller may have, in MiB: the arena's handles address 1 TiB.
pub const ARENA_MIB_MAX: u32 = 1 << 20;
/// Hugepage memory of a mover beside its arenas, in MiB: EAL and SPDK's environment (16), NVMe-oF
/// target with request pools (48), bdev and iobuf pools (32), packet pools of the ports (32).
pub const HUGEPAGE_MIB_BASE: u32 = 16 + 48 + 32 + 32;
/// Hugepage memory of a poller beside its arena, in MiB: receive buffers and rings.
pub const HUGEPAGE_MIB_PER_POLLER: u32 = 16;

/// Shortest formation period (F2), milliseconds.
pub const PERIOD_MS_MIN: u64 = 10;
/// Longest formation period (F2), milliseconds: 30 days.
pub const PERIOD_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// Largest bound of a clock's error, microseconds: beyond, a time stamp's bound does not hold it and
/// stands for "not known".
pub const CLOCK_ERROR_US_MAX: u32 = 4_000_000;

/// Smallest MTU: what every IPv4 host must take in (RFC 791).
pub const MTU_BYTES_MIN: u16 = 576;
/// Largest MTU: what data-centre NICs commonly carry.
pub const MTU_BYTES_MAX: u16 = 9216;

/// Longest path of a Unix socket, without the closing NUL (`sun_path` of sockaddr_un).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest NQN in bytes (NVM Express Base Specification 2.0, section 4.5).
pub const NQN_BYTES_MAX: usize = 223;
/// Bytes of an NVMe serial number (Identify Controller, SN).
pub const SERIAL_BYTES_MAX: usize = 20;

/// Segments that the arena of a poller needs at least: what is spare, and for every group one
/// open segment for hosts' updates and one per poller elsewhere whose mirrors it may hold.
#[must_use]
pub fn arena_mib_needed(groups: usize, shards_elsewhere: usize) -> u32 {
    let open = groups.saturating_mul(1 + shards_elsewhere) as u32;
    SEGMENT_MIB.saturating_mul(ARENA_SEGMENTS_SPARE.saturating_add(open))
}

/// Hugepage memory a mover needs, in MiB, for `pollers` arenas of `arena_mib` each.
#[must_use]
pub fn hugepage_mib_needed(pollers: usize, arena_mib: u32) -> u32 {
    (pollers as u32)
        .saturating_mul(arena_mib.saturating_add(HUGEPAGE_MIB_PER_POLLER))
        .saturating_add(HUGEPAGE_MIB_BASE)
}

const _: () = assert!(PERIOD_MS_MIN < PERIOD_MS_MAX);
const _: () = assert!(ARENA_MIB_MIN < ARENA_MIB_MAX);
const _: () = assert!(POLLERS_MAX <= u8::MAX as usize + 1);
const _: () = assert!(MOVERS_MAX <= u16::MAX as usize);
