//! Names and numbers that every part of the protocol uses.
//!
//! All are plain values, `Copy`, ordered, and carry their unit in the type.
//! Sizes on the wire are those of the inner integer, little-endian.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(
    /// A mover, unique over both sites.
    MoverId(u16), "m"
);
id!(
    /// A replication group: the volumes that are cut together.
    GroupId(u16), "g"
);
id!(
    /// A volume pair, unique over all groups.
    VolumeId(u32), "v"
);
id!(
    /// The number of an update within its volume; the first is 1, 0 means none (invariant 3).
    Seq(u64), "#"
);
id!(
    /// The number of a consistent set within its group; the first is 1, 0 means none.
    SetId(u64), "set"
);
id!(
    /// The membership epoch of a site (invariant 9).
    Epoch(u32), "e"
);
id!(
    /// The version of the map volume → responsible mover.
    MapVersion(u32), "map"
);
id!(
    /// A record in the arena of the poller that holds it. Opaque to the protocol.
    BufRef(u64), "buf"
);

id!(
    /// An update at the mover that took it from its source and is not responsible for the volume,
    /// until the source is answered (G3). Unique within a life of that mover's poller; 0 means
    /// that the responsible mover took it itself.
    ForwardId(u64), "fwd"
);

id!(
    /// A read or flush that a host sent to a shard that is not responsible for the volume, while the
    /// responsible one carries it out (G3). Grows within a life of the asking poller.
    AskId(u64), "ask"
);

impl Seq {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl SetId {
    /// The set after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
    /// The set before this one; none before none.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// Monotonic time in nanoseconds since an arbitrary start, passed into every input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(pub u64);

impl Nanos {
    /// A time that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// This time plus `ns` nanoseconds, saturating.
    #[must_use]
    pub const fn after(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
    /// Nanoseconds from `earlier` to this time; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One poller of one mover: the owner of a shard, and the address that links run between.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardId {
    /// The mover.
    pub mover: MoverId,
    /// The poller's index within the mover, from 0.
    pub poller: u8,
}

impl ShardId {
    /// The shard of `poller` at mover number `mover`.
    #[must_use]
    pub const fn new(mover: u16, poller: u8) -> Self {
        Self { mover: MoverId(mover), poller }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.mover, self.poller)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an update does to its range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum UpdateKind {
    /// Replaces the blocks with the payload.
    Write = 1,
    /// Makes the blocks zero; no payload.
    WriteZeroes = 2,
    /// Deallocates the blocks; no payload.
    Deallocate = 3,
}

impl UpdateKind {
    /// The kind with this wire value.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Write),
            2 => Some(Self::WriteZeroes),
            3 => Some(Self::Deallocate),
            _ => None,
        }
    }
}

/// A range of blocks of one volume, in the volume's block size. Never empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// First block.
    pub lba: u64,
    /// Number of blocks, at least 1 (NVMe's zero-based nlb plus one).
    pub blocks: u32,
}

impl Extent {
    /// One past the last block.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.lba + self.blocks as u64
    }
    /// Whether the two share a block.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.lba < other.end() && other.lba < self.end()
    }
}

/// An NVMe completion status: status code type and status code (NVM Express Base
/// Specification 2.0, figure "Status Code Type Values").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NvmeStatus {
    /// Status code type.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
}

impl NvmeStatus {
    /// Generic command status, successful completion.
    pub const SUCCESS: Self = Self { sct: 0, sc: 0 };
    /// Generic command status, internal error.
    pub const INTERNAL: Self = Self { sct: 0, sc: 6 };
    /// Media and data integrity errors, write fault.
    pub const WRITE_FAULT: Self = Self { sct: 2, sc: 0x80 };

    /// Path related status, asymmetric access transition: the host tries again, on this path or
    /// another.
    pub const ANA_TRANSITION: Self = Self { sct: 3, sc: 3 };

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.sct == 0 && self.sc == 0
    }
}
