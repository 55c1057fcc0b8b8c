//! The decision. `docs/check.md` has the definition and the proof; in short:
//!
//! A cut is a set of commands which, with a command B, has every command A that was
//! known to have taken effect before B was issued. Issues and knowledge lie on one
//! axis (the log), so the smallest cut that has everything to be seen is that and
//! everything known before the newest issue to be seen. The images are a cut if and
//! only if none of its commands is missing from any of its blocks.

use super::super::known::Known;
use super::super::log::{CommandFacts, Log};
use super::floor::Floor;
use super::scan::{Images, UNKNOWN};
use super::verdict::{CommandRef, Cut, Fault, FaultKind, Lost, Moment, Verdict, VolumeVerdict};

/// Decides whether `images` are a consistent cut of their run, and which.
///
/// With a `log`, what was acknowledged comes from it as well as from the blocks, and
/// the cut's distance from the end of the log is told. With a `floor`, commands of
/// it that the images lack are told; they do not make images inconsistent.
///
/// A log or floor of another run than the images' is a fault, and then is not used.
pub fn check(images: &Images, log: Option<&Log>, floor: Option<&Floor>) -> Verdict {
    let mut decision = Decision {
        images,
        faults: images.faults.clone(),
        volumes: images
            .volumes
            .iter()
            .map(|image| VolumeVerdict {
                name: image.name.clone(),
                bytes: image.bytes,
                written_blocks: image.written_blocks,
                newest_issue: image.newest_issue,
                first_missing: None,
                faults: image.faults,
            })
            .collect(),
        cut: Cut::default(),
        lost: Lost::default(),
    };
    let run = images.run.as_ref().map(|(run, _)| *run);
    let (log_run, floor_run) = (log.map(|log| log.run), floor.map(|floor| floor.run));
    for other in [log_run, floor_run].into_iter().flatten() {
        if run.is_some_and(|run| run != other) {
            let kind = FaultKind::LogOfOtherRun { run: other };
            decision.faults.add(Fault { volume: 0, address: 0, kind });
        }
    }
    let log = log.filter(|_| log_run == run);
    let usable_floor = floor.filter(|_| floor_run == run);
    decision.cut.newest_issue = images.newest.map(|(moment, _)| moment);
    decision.cut.newest = images.newest.map(|(_, command)| command);
    if let Some((_, workload)) = &images.run {
        for writer in 0..workload.writers {
            decision.of_writer(writer, log, usable_floor);
        }
    }
    let mut cut = decision.cut;
    if let Some(log) = log {
        cut.acked_beyond.get_or_insert(0);
        cut.age_ns = Some(
            cut.first_missing_ack.map_or(0, |first| log.last_unix_ns.saturating_sub(first.unix_ns)),
        );
    }
    Verdict {
        consistent: decision.faults.total() == 0,
        // A floor of another run is not met.
        floor_met: floor.map(|_| usable_floor.is_some() && decision.lost.commands == 0),
        run: run.or(log_run),
        with_log: log.is_some(),
        cut,
        volumes: decision.volumes,
        faults: decision.faults,
        lost: decision.lost,
    }
}

struct Decision<'a> {
    images: &'a Images,
    faults: super::verdict::Faults,
    volumes: Vec<VolumeVerdict>,
    cut: Cut,
    lost: Lost,
}

impl Decision<'_> {
    fn of_writer(&mut self, writer: u16, log: Option<&Log>, floor: Option<&Floor>) {
        let index = usize::from(writer);
        let known = self.images.known[index];
        let floor = floor.map_or(Known::NONE, |floor| floor.of(writer));
        let facts: &[CommandFacts] = log.map_or(&[], |log| &log.commands[index]);
        let last = known
            .highest()
            .max(self.images.highest[index])
            .max(floor.highest())
            .max(facts.len() as u64);
        let newest_event = self.images.newest.map_or(0, |(moment, _)| moment.event);
        for sequence in 1..=last {
            let facts = facts.get(sequence as usize - 1);
            let seen = self.look_for(writer, sequence);
            let Some(older) = seen.older else {
                self.cut.commands += 1;
                continue;
            };
            if let Some(facts) = facts {
                self.note_missing(&seen.command, facts);
            }
            if floor.contains(sequence) {
                self.lost.add(seen.command);
            }
            // What a failed command leaves on the medium is anyone's guess, block by block,
            // even if a read has returned some of it.
            let failed = facts.is_some_and(|facts| facts.errors > 0 && !facts.acknowledged());
            if failed {
                continue;
            }
            let required = known.contains(sequence)
                || facts.is_some_and(|facts| facts.known_event < newest_event);
            let command = seen.command;
            let kind = if seen.partly {
                FaultKind::Torn { command, holds: older.holds }
            } else if required {
                let required_by = self.cut.newest;
                FaultKind::Missing { command, holds: older.holds, required_by }
            } else {
                continue;
            };
            let volume = command.extent.volume;
            if let Some(volume) = self.volumes.get_mut(usize::from(volume)) {
                volume.faults += 1;
            }
            self.faults.add(Fault { volume, address: older.address, kind });
        }
    }

    /// What is to be seen of a command.
    fn look_for(&self, writer: u16, sequence: u64) -> Seen {
        // The caller has a run, or it would not have a command.
        let extent = match &self.images.run {
            Some((_, workload)) => workload.extent(writer, sequence),
            None => unreachable!("a command without a run"),
        };
        let mut seen =
            Seen { command: CommandRef { writer, sequence, extent }, partly: false, older: None };
        // An absent volume is one fault of its own, not one per command.
        let Some(image) = self.images.volumes.get(usize::from(extent.volume)) else {
            return seen;
        };
        for address in extent.addresses() {
            let holds = image.content.get(address);
            debug_assert!(holds != UNKNOWN || holds > sequence);
            if holds < sequence {
                seen.older.get_or_insert(Older { address, holds });
            }
            seen.partly |= holds == sequence;
        }
        seen
    }

    /// Notes a logged command that is not in the cut.
    fn note_missing(&mut self, command: &CommandRef, facts: &CommandFacts) {
        let earlier = |first: &mut Option<Moment>, event, unix_ns| {
            if first.is_none_or(|first| event < first.event) {
                *first = Some(Moment { event, unix_ns });
            }
        };
        if facts.known_event != u64::MAX
            && let Some(volume) = self.volumes.get_mut(usize::from(command.extent.volume))
        {
            earlier(&mut volume.first_missing, facts.known_event, facts.known_unix_ns);
        }
        if facts.acknowledged() {
            *self.cut.acked_beyond.get_or_insert(0) += 1;
            earlier(&mut self.cut.first_missing_ack, facts.ack_event, facts.ack_unix_ns);
        }
    }
}

struct Seen {
    command: CommandRef,
    /// A block of it holds this very command.
    partly: bool,
    /// A block of it that holds something older, if any.
    older: Option<Older>,
}

struct Older {
    address: u64,
    holds: u64,
}
