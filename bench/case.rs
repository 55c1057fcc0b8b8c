//! What is compared, and under which load.

use serde::Serialize;

/// One way for a write to go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Straight to the base block device.
    Plain,
    /// Through the tap and the whole protocol, with one copy.
    Tap,
    /// Two copies, the mirror reached over a ring in memory.
    MirrorRing,
    /// Two copies, the mirror reached over memif.
    MirrorMemif,
    /// As `mirror-ring`, with a set each second.
    #[value(name = "sets-1s")]
    #[serde(rename = "sets-1s")]
    Sets1s,
    /// As `mirror-ring`, with a set each 100 ms.
    #[value(name = "sets-100ms")]
    #[serde(rename = "sets-100ms")]
    Sets100ms,
    /// As `mirror-ring`, with a set each 10 ms.
    #[value(name = "sets-10ms")]
    #[serde(rename = "sets-10ms")]
    Sets10ms,
    /// As `mirror-ring`, but taken by the mover that is not responsible for the volume.
    ForwardRing,
    /// SPDK's raid1 of a local device and one behind its own target, over NVMe/TCP.
    Raid1Tcp,
    /// The same over vfio-user.
    Raid1VfioUser,
}

impl Case {
    /// The cases that are run unless others are asked for, in the order of reports.
    pub(crate) const DEFAULT: [Self; 9] = [
        Self::Plain,
        Self::Tap,
        Self::MirrorRing,
        Self::MirrorMemif,
        Self::Sets1s,
        Self::Sets100ms,
        Self::Sets10ms,
        Self::Raid1Tcp,
        Self::Raid1VfioUser,
    ];

    /// Its name on the command line and in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tap => "tap",
            Self::MirrorRing => "mirror-ring",
            Self::MirrorMemif => "mirror-memif",
            Self::Sets1s => "sets-1s",
            Self::Sets100ms => "sets-100ms",
            Self::Sets10ms => "sets-10ms",
            Self::ForwardRing => "forward-ring",
            Self::Raid1Tcp => "raid1-tcp",
            Self::Raid1VfioUser => "raid1-vfio-user",
        }
    }

    /// Index of the mover that is responsible for the volume; hosts write at mover 0.
    pub(crate) fn owner(self) -> usize {
        usize::from(self == Self::ForwardRing)
    }

    /// Nanoseconds between set boundaries, of cases that have them. Short enough that the memory
    /// of an unconfirmed set stays small, where the period is not what is measured.
    pub(crate) fn period_ns(self) -> u64 {
        match self {
            Self::Sets1s => 1_000_000_000,
            Self::Sets10ms => 10_000_000,
            _ => 100_000_000,
        }
    }
}

/// A load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Load {
    /// Commands under way.
    pub(crate) queue_depth: u32,
    /// Bytes of each.
    pub(crate) block_bytes: u32,
    /// At random, or one after another.
    pub(crate) random: bool,
}

impl Load {
    /// 4 KiB at random at depth 64 and 1, 128 KiB one after another.
    pub(crate) const ALL: [Self; 3] = [
        Self { queue_depth: 64, block_bytes: 4096, random: true },
        Self { queue_depth: 1, block_bytes: 4096, random: true },
        Self { queue_depth: 16, block_bytes: 128 << 10, random: false },
    ];
}

/// What one round of one case under one load gave.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) iops: f64,
    /// p50, p99, p999 in nanoseconds.
    pub(crate) latency_ns: [f64; 3],
    /// Busy TSC cycles of the primary's poller per update; none where nobody accounts for them.
    pub(crate) cycles_per_update: Option<f64>,
    /// p50, p99, longest hold of acknowledgements at a boundary, in nanoseconds.
    pub(crate) hold_ns: Option<[f64; 3]>,
}
