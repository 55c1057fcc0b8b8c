//! Numbers as people read and write them.

use std::time::Duration;

/// Bytes with a binary unit, such as `1.5 MiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{} {}", three_digits(value), UNITS[unit]),
    }
}

/// A time span with a fitting unit, such as `12.3 µs`.
#[must_use]
pub fn duration_ns(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{} µs", three_digits(value / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", three_digits(value / 1e6)),
        1_000_000_000..120_000_000_000 => format!("{} s", three_digits(value / 1e9)),
        120_000_000_000..7_200_000_000_000 => format!("{} min", three_digits(value / 60e9)),
        7_200_000_000_000..172_800_000_000_000 => format!("{} h", three_digits(value / 3600e9)),
        _ => format!("{} d", three_digits(value / 86_400e9)),
    }
}

/// A share as `12.3 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{share:.1} %")
}

/// How long ago a time of day was, at time of day `now_unix_ms`.
#[must_use]
pub fn ago(unix_ms: u64, now_unix_ms: u64) -> String {
    let ms = now_unix_ms.saturating_sub(unix_ms);
    format!("{} ago", duration_ns(ms.saturating_mul(1_000_000)))
}

/// Now, in milliseconds since the Unix epoch.
pub(super) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// The time of day, UTC, such as `12:34:56.789`.
pub(super) fn clock(unix_ms: u64) -> String {
    let ms = unix_ms % 86_400_000;
    let (h, m, s, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    format!("{h:02}:{m:02}:{s:02}.{ms:03}")
}

fn three_digits(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Reads a time span: a number with `us`, `ms`, `s`, `min`, `h` or `d`.
///
/// # Errors
/// Says what is allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let allowed = || format!("{text:?}; allowed: a number with us, ms, s, min, h or d, like 100ms");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(allowed)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| allowed())?;
    let seconds = match unit.trim() {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(allowed()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| allowed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_with_three_digits_and_a_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(100 << 20), "100 MiB");
        assert_eq!(duration_ns(999), "999 ns");
        assert_eq!(duration_ns(12_340), "12.3 µs");
        assert_eq!(duration_ns(1_500_000), "1.50 ms");
        assert_eq!(duration_ns(90_000_000_000), "90.0 s");
        assert_eq!(duration_ns(3_600_000_000_000), "60.0 min");
        assert_eq!(ago(1_000, 3_500), "2.50 s ago");
        assert_eq!(clock(45_296_789), "12:34:56.789");
    }

    #[test]
    fn spans_need_a_unit() {
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in ["", "5", "ms", "5 parsecs", "-1s", "1e3s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
