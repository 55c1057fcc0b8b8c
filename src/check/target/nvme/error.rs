//! Why namespaces cannot be reached.

use super::PATHS_MAX;
use crate::spdk::error::Error;

/// Why namespaces cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum NvmeTargetError {
    /// SPDK's environment does not start.
    #[error("SPDK: {0} (are hugepages reserved? see scripts/setup)")]
    Environment(Error),
    /// A controller cannot be connected to.
    #[error("{path}: {error}")]
    Connect {
        /// The controller.
        path: String,
        /// What happened.
        error: Error,
    },
    /// No controller has a namespace.
    #[error("namespace {nsid} is on no path: {paths}")]
    NoNamespace {
        /// The controllers.
        paths: String,
        /// The namespace.
        nsid: u32,
    },
    /// More paths than can be told apart.
    #[error("{0} paths; {PATHS_MAX} at most")]
    TooMany(usize),
    /// No active namespace at all.
    #[error("{path} has no namespace")]
    Empty {
        /// The controller.
        path: String,
    },
    /// Two paths have different namespaces under one id.
    #[error(
        "namespace {nsid} of {path} is not that of the first path (identifiers or size differ)"
    )]
    Different {
        /// The controller.
        path: String,
        /// The namespace.
        nsid: u32,
    },
    /// The volumes' block sizes are not one.
    #[error("namespace {nsid} has blocks of {found} bytes, the first has {wanted}")]
    BlockSize {
        /// The namespace.
        nsid: u32,
        /// Its block size.
        found: u32,
        /// The first one's.
        wanted: u32,
    },
}
