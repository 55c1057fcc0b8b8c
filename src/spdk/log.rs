//! SPDK's log lines as `tracing` events of target `spdk`, without floods: a storage server that is away
//! makes SPDK say the same dozen lines with every attempt to connect.
//!
//! Each place in SPDK's source may say a few lines; then it is quiet for a while, twice as long each time
//! it goes on, and its next line tells how many were kept back. Other places are not affected.

use std::ffi::{CStr, c_char, c_int};
use std::sync::{Mutex, PoisonError};

use super::env::{tsc_hz, tsc_now};
use super::sys;

/// How much SPDK says; its lines appear as `tracing` events of target `spdk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what may need attention.
    #[default]
    Warn,
    /// And state changes.
    Notice,
    /// And details.
    Info,
}

/// Lines of one place that pass before it is quiet.
const LINES: u32 = 4;
/// The shortest and the longest time that a place is quiet, in seconds.
const QUIET_SECONDS: (u64, u64) = (10, 640);
/// Places that are remembered: more than SPDK has that speak in earnest. Beyond, the one that was quiet for
/// longest is forgotten.
const PLACES: usize = 128;

/// What one place in SPDK's source has said.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Where: the file's name in memory, and the line.
    at: (usize, c_int),
    /// When its present time began, and how long that lasts, in seconds.
    since: u64,
    lasts: u64,
    /// Lines that passed in it, and that did not.
    passed: u32,
    kept_back: u64,
}

/// Which lines pass.
#[derive(Debug)]
struct Limit {
    places: Vec<Place>,
}

impl Limit {
    const fn new() -> Self {
        Self { places: Vec::new() }
    }

    /// Whether a line from `at` passes at second `now`; then also how many did not since the last one that
    /// did.
    fn pass(&mut self, at: (usize, c_int), now: u64) -> Option<u64> {
        let known = self.places.iter().position(|place| place.at == at);
        let index = known.unwrap_or_else(|| {
            let place = Place { at, since: now, lasts: QUIET_SECONDS.0, passed: 0, kept_back: 0 };
            if self.places.len() < PLACES {
                self.places.push(place);
                return self.places.len() - 1;
            }
            let oldest = (0..PLACES).min_by_key(|index| self.places[*index].since).unwrap_or(0);
            self.places[oldest] = place;
            oldest
        });
        let place = &mut self.places[index];
        let mut kept_back = 0;
        if now.saturating_sub(place.since) >= place.lasts {
            // Still at it: for longer. Quiet by itself meanwhile: as at first.
            kept_back = std::mem::take(&mut place.kept_back);
            let again = kept_back > 0 && now.saturating_sub(place.since) < 2 * place.lasts;
            place.lasts = if again { 2 * place.lasts } else { 0 };
            place.lasts = place.lasts.clamp(QUIET_SECONDS.0, QUIET_SECONDS.1);
            place.since = now;
            place.passed = 0;
        }
        if place.passed >= LINES {
            place.kept_back += 1;
            return None;
        }
        place.passed += 1;
        Some(kept_back)
    }
}

/// Hands SPDK's log to `tracing` from now on.
pub(super) fn open(level: LogLevel) {
    let level = match level {
        LogLevel::Error => sys::SPDK_LOG_ERROR,
        LogLevel::Warn => sys::SPDK_LOG_WARN,
        LogLevel::Notice => sys::SPDK_LOG_NOTICE,
        LogLevel::Info => sys::SPDK_LOG_INFO,
    };
    // SAFETY: the sink is a static function that upholds the shim's contract.
    unsafe { sys::setline_log_open(Some(log_line), level) };
}

unsafe extern "C" fn log_line(level: c_int, file: *const c_char, line: c_int, text: *const c_char) {
    static LIMIT: Mutex<Limit> = Mutex::new(Limit::new());
    let second = tsc_now().checked_div(tsc_hz()).unwrap_or(0);
    // Nobody keeps it for longer than a look through the places; it cannot be left in disorder.
    let mut limit = LIMIT.lock().unwrap_or_else(PoisonError::into_inner);
    let passed = limit.pass((file as usize, line), second);
    drop(limit);
    let Some(kept_back) = passed else { return };
    // SAFETY: the shim passes NUL-terminated strings that live during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let file = if file.is_null() {
        std::borrow::Cow::Borrowed("")
    } else {
        // SAFETY: as above.
        unsafe { CStr::from_ptr(file) }.to_string_lossy()
    };
    if kept_back > 0 {
        tracing::warn!(target: "spdk", %file, line, kept_back, "lines like the next one");
    }
    match level {
        sys::SPDK_LOG_ERROR => tracing::error!(target: "spdk", %file, line, "{text}"),
        sys::SPDK_LOG_WARN => tracing::warn!(target: "spdk", %file, line, "{text}"),
        sys::SPDK_LOG_NOTICE => tracing::info!(target: "spdk", %file, line, "{text}"),
        _ => tracing::debug!(target: "spdk", %file, line, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_goes_on_and_on_is_quiet_for_longer_and_longer() {
        let mut limit = Limit::new();
        // Ten lines a second for an hour.
        let (mut passed, mut kept_back) = (0, 0);
        for tenth in 0..36_000 {
            if let Some(before) = limit.pass((1, 2), tenth / 10) {
                passed += 1;
                kept_back += before;
            }
        }
        assert!((20..=60).contains(&passed), "{passed}");
        assert!(kept_back > 20_000 && kept_back + passed <= 36_000);
    }

    #[test]
    fn other_places_are_heard_and_a_quiet_one_begins_anew() {
        let mut limit = Limit::new();
        let burst = |limit: &mut Limit, at, now| {
            (0..100).filter(|_| limit.pass(at, now).is_some()).count() as u32
        };
        assert_eq!(burst(&mut limit, (1, 2), 0), LINES);
        assert_eq!(burst(&mut limit, (1, 3), 0), LINES, "another line of the same file");
        assert_eq!(burst(&mut limit, (1, 2), 9), 0);
        assert_eq!(limit.pass((1, 2), 10), Some(196));
        assert_eq!(burst(&mut limit, (1, 2), 10), LINES - 1);
        assert_eq!(burst(&mut limit, (1, 2), 29), 0, "20 s now");
        assert_eq!(limit.pass((1, 2), 100), Some(197), "after a pause");
        assert_eq!(limit.places[0].lasts, QUIET_SECONDS.0);
        for line in 0..1000 {
            assert_eq!(limit.pass((2, line), 200), Some(0));
        }
        assert_eq!(limit.places.len(), PLACES);
    }
}
