//! What tests that run labs share.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Labs share hugepages and cores: one after the other within a test program. Programs run one
/// after the other anyway.
static ONE_LAB: Mutex<()> = Mutex::new(());

/// Waits until no other lab of this program runs.
pub(crate) fn one_lab() -> MutexGuard<'static, ()> {
    ONE_LAB.lock().unwrap_or_else(PoisonError::into_inner)
}
