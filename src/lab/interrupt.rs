//! SIGINT and SIGTERM as a flag: the lab then ends in order instead of leaving things behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::LabError;

/// How often a sleep looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether the lab was asked to end.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over from now on. They only set the flag, the second as well as the
    /// first: ending in order takes seconds, and half an ending is what must not happen.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn take() -> Result<Self, LabError> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .map_err(|error| LabError::io("signal handler", error))?;
        }
        Ok(Self(flag))
    }

    /// Fails once the lab was asked to end.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn check(&self) -> Result<(), LabError> {
        if self.0.load(Ordering::Relaxed) { Err(LabError::Interrupted) } else { Ok(()) }
    }

    /// Sleeps for `span`, less if the lab is asked to end.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn sleep(&self, span: Duration) -> Result<(), LabError> {
        let until = Instant::now() + span;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}
