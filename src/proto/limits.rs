//! Every limit of the protocol in one place. "Full" is a value that callers handle.

/// Movers over both sites.
pub const MOVERS_MAX: usize = 256;
/// Pollers of one mover.
pub const POLLERS_MAX: usize = 64;
/// Volumes of one group.
pub const VOLUMES_MAX: usize = 65_536;
/// Facts in one message; with 64 KiB messages each fact may take 64 bytes and four voids 32 more.
pub const FACTS_PER_PART: usize = 512;
/// Bytes of one control message, encoded.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Updates that one primary shard retains at once: numbered and not yet confirmed.
pub const RETAINED_UPDATES_MAX: usize = 1 << 18;
/// Sets of one group between open and confirmed; the next boundary waits at this many (F7).
pub const OPEN_SETS_MAX: usize = 64;
/// So many more where the secondary can commit none before the open one is closed (G12).
pub const OPEN_SETS_SPARE: usize = 48;
/// Bytes of one host command's payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Copies of an update, the responsible mover's included.
pub const COPIES_MAX: usize = 8;
/// How far beyond the last stored set a record or manifest may be: a primary has at most
/// [`OPEN_SETS_MAX`] sets that it does not know to be confirmed, and messages overtake one another.
pub const SETS_AHEAD_MAX: u64 = 2 * OPEN_SETS_MAX as u64;
/// Pause before a failed write to a secondary volume, or of a recovered update to its base, is tried again,
/// at first and at most.
pub const APPLY_RETRY_NS_MIN: u64 = 10_000_000;
/// See [`APPLY_RETRY_NS_MIN`].
pub const APPLY_RETRY_NS_MAX: u64 = 1_000_000_000;
/// Entries that a secondary shard drops or evicts in one turn.
pub const HOUSEKEEPING_BATCH: usize = 512;

const _: () = assert!(FACTS_PER_PART * 96 + 64 <= MESSAGE_BYTES_MAX);
const _: () = assert!(COPIES_MAX <= MOVERS_MAX);
