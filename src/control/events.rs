//! The events of one mover: what happened, when, in words, numbered.
//!
//! A ring: old events go, numbers stay. Things that a peer or a device can make happen at any
//! rate are limited per kind and group, and what was left out is said with the next one. Every
//! event is a log line too. Owned by the control thread.

use std::collections::{BTreeMap, VecDeque};

use super::model::{Event, EventLevel};

/// Events that are retained.
const RETAINED: usize = 4096;
/// Events of one kind and group per [`WINDOW_MS`].
const PER_WINDOW: u32 = 10;
/// The window of the limit, milliseconds.
const WINDOW_MS: u64 = 10_000;

#[derive(Debug, Default)]
struct Rate {
    window_ms: u64,
    count: u32,
    left_out: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Events {
    ring: VecDeque<Event>,
    last: u64,
    rates: BTreeMap<(&'static str, Option<String>), Rate>,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: VecDeque::with_capacity(256), last: 0, rates: BTreeMap::new() }
    }
}

impl Events {
    /// Adds an event of `now_ms` (Unix time in milliseconds), unless too many of its kind and
    /// group came lately.
    pub fn add(
        &mut self,
        now_ms: u64,
        level: EventLevel,
        kind: &'static str,
        group: Option<&str>,
        message: impl Into<String>,
    ) {
        let mut message = message.into();
        let rate = self.rates.entry((kind, group.map(str::to_owned))).or_default();
        if now_ms.saturating_sub(rate.window_ms) >= WINDOW_MS {
            *rate = Rate { window_ms: now_ms, count: 0, left_out: rate.left_out };
        }
        rate.count += 1;
        if rate.count > PER_WINDOW {
            rate.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut rate.left_out);
        if left_out > 0 {
            message.push_str(&format!(" ({left_out} more like it were left out before)"));
        }
        let text = message.as_str();
        match level {
            EventLevel::Info => tracing::info!(kind, group, "{text}"),
            EventLevel::Warning => tracing::warn!(kind, group, "{text}"),
            EventLevel::Error => tracing::error!(kind, group, "{text}"),
        }
        self.last += 1;
        if self.ring.len() == RETAINED {
            self.ring.pop_front();
        }
        self.ring.push_back(Event {
            id: self.last,
            time_unix_ms: now_ms,
            level,
            kind: kind.to_owned(),
            group: group.map(str::to_owned),
            message,
        });
    }

    /// Up to `limit` retained events with numbers above `since`, oldest first.
    #[must_use]
    pub fn since(&self, since: u64, limit: usize) -> Vec<Event> {
        self.ring.iter().filter(|event| event.id > since).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_on_when_old_events_have_gone() {
        let mut events = Events::default();
        for second in 0..RETAINED as u64 + 5 {
            events.add(second * WINDOW_MS, EventLevel::Info, "test", None, "x");
        }
        let first = events.since(0, 1);
        assert_eq!(first[0].id, 6);
        assert_eq!(events.since(RETAINED as u64 + 3, 100).len(), 2);
    }

    #[test]
    fn a_flood_of_one_kind_is_cut_and_said() {
        let mut events = Events::default();
        for _ in 0..100 {
            events.add(WINDOW_MS, EventLevel::Warning, "apply-failed", Some("bank"), "failed");
        }
        events.add(WINDOW_MS, EventLevel::Warning, "apply-failed", Some("other"), "failed");
        assert_eq!(events.since(0, 1000).len(), PER_WINDOW as usize + 1);
        events.add(3 * WINDOW_MS, EventLevel::Warning, "apply-failed", Some("bank"), "failed");
        let last = events.since(0, 1000).pop().unwrap();
        assert!(last.message.contains("90 more"), "{}", last.message);
    }
}
