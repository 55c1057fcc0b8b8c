//! The system clock as the kernel keeps it: the time, and how far off it may be.
//!
//! `adjtimex(2)` with nothing to adjust. The kernel is told how good the time is by whoever
//! disciplines its clock (chronyd, ntpd, ptp4l with phc2sys), and adds 500 ppm for the time since.
//! Without such a service, or once the bound is 16 s, it calls the clock unsynchronised.

/// What the kernel says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemClock {
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: u64,
    /// The bound of its error, nanoseconds; of no meaning when it is not synchronised.
    pub error_ns: u64,
    /// Somebody disciplines it.
    pub synchronised: bool,
}

/// Asks the kernel. None where it cannot say (other systems than Linux, or a sandbox that forbids it).
#[cfg(target_os = "linux")]
#[must_use]
pub fn read() -> Option<SystemClock> {
    // SAFETY: `timex` is integers only, for which zero is a value; `modes` 0 asks and changes nothing.
    let mut timex: libc::timex = unsafe { core::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` that lives during the call, which is all that is required.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return None;
    }
    // The field counts nanoseconds or microseconds, depending on who set the clock last.
    let unit_ns = if timex.status & libc::STA_NANO != 0 { 1 } else { 1_000 };
    let (seconds, part) = (timex.time.tv_sec as u64, timex.time.tv_usec as u64);
    Some(SystemClock {
        unix_ns: seconds * 1_000_000_000 + part * unit_ns,
        error_ns: timex.maxerror as u64 * 1_000,
        synchronised: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
    })
}

/// Asks the kernel. None where it cannot say (other systems than Linux, or a sandbox that forbids it).
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn read() -> Option<SystemClock> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn the_kernel_s_time_is_the_system_s() {
        let unix_ns =
            || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        // The clock may be put back between two looks, but not each time.
        let agrees = (0..10).any(|_| {
            let before = unix_ns();
            let read = read().expect("reading takes no privilege");
            // Microseconds are cut off.
            (before - 1_000..=unix_ns()).contains(&read.unix_ns)
        });
        assert!(agrees);
    }
}
