//! What several movers say of one thing, brought together.

use std::collections::BTreeMap;

use super::units::duration_ns;
use crate::control::model::{SetInfo, Status, TimestampInfo};

/// Merges what several movers know of the same sets: the farthest state, the fullest counts, the
/// earliest time of each step. Newest first.
pub(super) fn merge_sets(views: Vec<Vec<SetInfo>>) -> Vec<SetInfo> {
    let mut merged: BTreeMap<u64, SetInfo> = BTreeMap::new();
    for set in views.into_iter().flatten() {
        let Some(known) = merged.get_mut(&set.id) else {
            merged.insert(set.id, set);
            continue;
        };
        known.state = known.state.max(set.state);
        // A mover without the manifest counts its own updates only.
        if set.updates > known.updates {
            (known.updates, known.bytes) = (set.updates, set.bytes);
        }
        let times = [
            (&mut known.opened_unix_ms, set.opened_unix_ms),
            (&mut known.closed_unix_ms, set.closed_unix_ms),
            (&mut known.confirmed_unix_ms, set.confirmed_unix_ms),
            (&mut known.applied_unix_ms, set.applied_unix_ms),
            (&mut known.hold_ns, set.hold_ns),
        ];
        for (known, seen) in times {
            *known = match (*known, seen) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        if known.manifest.is_empty() {
            known.manifest = set.manifest;
        }
    }
    merged.into_values().rev().collect()
}

/// Everything that is not as it should be, as `MOVER: what`.
pub(super) fn complaints(statuses: &[Status]) -> Vec<String> {
    let mut complaints = Vec::new();
    for status in statuses {
        let said = |what: &str| format!("{}: {what}", status.mover);
        if !status.ready {
            complaints.push(said("not ready"));
        }
        complaints.extend(status.degraded.iter().map(|what| said(what)));
        for group in &status.groups {
            if let Some(resync) = &group.needs_resync {
                let what =
                    format!("group {} must be resynchronised: {}", group.name, resync.reason);
                complaints.push(said(&what));
            }
        }
    }
    complaints.dedup();
    complaints
}

/// What the movers' configurations promise less than one may think. What stands in every mover's
/// file is said once: it differs by the file's name and position, which stand in front.
pub(crate) fn warnings(statuses: &[Status]) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for warning in statuses.iter().flat_map(|status| &status.warnings) {
        let what = warning.split_once("warning: ").map_or(warning.as_str(), |(_, what)| what);
        if !said.iter().any(|known| known == what) {
            said.push(what.to_owned());
        }
    }
    said
}

/// Time stamps in words: where they come from, and how good they are.
pub(super) fn stamps(info: TimestampInfo) -> String {
    let source = info.source.name();
    let bound = match info.error_ns {
        Some(ns) => format!("± {}", duration_ns(u64::from(ns))),
        None => "error not known".to_owned(),
    };
    match (info.synchronised, info.configured) {
        (true, _) => format!("{source} {bound}"),
        (false, true) => format!("{source} {bound} as configured, not synchronised"),
        (false, false) => format!("{source}, {bound}, not synchronised"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::SetState;

    fn set(id: u64, state: SetState, updates: u64) -> SetInfo {
        SetInfo {
            group: "g".into(),
            id,
            colour: String::new(),
            state,
            updates,
            bytes: updates * 4096,
            opened_unix_ms: Some(10 - updates),
            closed_unix_ms: None,
            confirmed_unix_ms: None,
            applied_unix_ms: None,
            hold_ns: None,
            manifest: vec![],
        }
    }

    #[test]
    fn a_set_is_as_far_as_the_farthest_mover_knows() {
        let merged = merge_sets(vec![
            vec![set(2, SetState::Forming, 1), set(1, SetState::InTransfer, 5)],
            vec![set(1, SetState::Applied, 3)],
        ]);
        assert_eq!(merged.len(), 2);
        assert_eq!((merged[0].id, merged[1].id), (2, 1), "newest first");
        assert_eq!(merged[1].state, SetState::Applied);
        assert_eq!(merged[1].updates, 5);
        assert_eq!(merged[1].opened_unix_ms, Some(5));
    }
}
