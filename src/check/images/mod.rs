//! The reader: are these volume images one point in time, and which?
//!
//! [`Images::scan`] reads the images once and keeps eight bytes per block that was
//! ever written. [`check`] decides from that, the writer's [`Log`](super::log::Log)
//! if there is one, and a [`Floor`] if something must be there. It does not write,
//! repair or guess.

mod decide;
mod floor;
mod scan;
mod source;
mod verdict;

pub use decide::check;
pub use floor::{Floor, FloorError};
pub use scan::{Images, Initial, ScanError, ScanOptions, VolumeImage};
pub use source::{FileSource, MemorySource, Source, TargetSource};
pub use verdict::{
    CommandRef, Cut, Fault, FaultKind, Faults, Lost, Moment, Verdict, VolumeVerdict,
};
