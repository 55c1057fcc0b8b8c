//! Which states the protocol was in when something came: what random histories never meet needs a
//! scenario of its own.
//!
//! A cell is one input (a message, a record, or a mover's failure) and what the shard that took it was
//! busy with. Not every cell can be met: a cell with nothing in it is a question, not a verdict.

use crate::proto::command::RecordRole;
use crate::proto::message::Message;
use crate::proto::primary::Stage;

/// Inputs, in the order of the table's rows.
pub const INPUTS: [&str; 43] = [
    "Budget",
    "Prepare",
    "Prepared",
    "Release",
    "Closed",
    "Manifest",
    "Confirmed",
    "CloseNow",
    "Stored",
    "Apply",
    "Applied",
    "Resume",
    "Broken",
    "PauseApply",
    "JournalRoom",
    "Forwarded",
    "NotResponsible",
    "Stopping",
    "Ask",
    "Answered",
    "Lead",
    "Survey",
    "Marks",
    "Greet",
    "Planned",
    "HandOff",
    "Settled",
    "TimeAsk",
    "TimeAnswer",
    "record Mirror",
    "record Transfer",
    "record SecondaryMirror",
    "record Forward",
    "record Numbered",
    "record Answer",
    "record Resend",
    "record Voided",
    "record ResendVoid",
    "record Description",
    "record ResendDescription",
    "epoch begins",
    "plan changes",
    "mover fails",
];

/// What a shard was busy with, in the order of the table's columns: a primary one, and a secondary one.
pub const STAGES: [&str; 10] = [
    "open",
    "holding",
    "joining",
    "leaving",
    "arriving",
    "restoring",
    "gathering",
    "lost",
    "applying",
    "storing",
];

/// What takes inputs, beside messages and records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Act {
    /// An epoch begins.
    Epoch,
    /// Planned moves come or go.
    Plan,
    /// Its mover fails.
    Fail,
}

/// How often each input met each stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    cells: [[u64; STAGES.len()]; INPUTS.len()],
}

impl Default for Coverage {
    fn default() -> Self {
        Self { cells: [[0; STAGES.len()]; INPUTS.len()] }
    }
}

/// The stage of a shard: none for one that is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Busy {
    /// At the primary site.
    Primary(Stage),
    /// At the secondary site; whether it applies.
    Secondary(bool),
}

impl Busy {
    const fn column(self) -> usize {
        match self {
            Self::Primary(Stage::Open) => 0,
            Self::Primary(Stage::Holding) => 1,
            Self::Primary(Stage::Joining) => 2,
            Self::Primary(Stage::Leaving) => 3,
            Self::Primary(Stage::Arriving) => 4,
            Self::Primary(Stage::Restoring) => 5,
            Self::Primary(Stage::Gathering) => 6,
            Self::Primary(Stage::Lost) => 7,
            Self::Secondary(true) => 8,
            Self::Secondary(false) => 9,
        }
    }
}

const fn row_of(message: &Message) -> usize {
    match message {
        Message::Budget { .. } => 0,
        Message::Prepare { .. } => 1,
        Message::Prepared { .. } => 2,
        Message::Release { .. } => 3,
        Message::Closed { .. } => 4,
        Message::Manifest { .. } => 5,
        Message::Confirmed { .. } => 6,
        Message::CloseNow { .. } => 7,
        Message::Stored { .. } => 8,
        Message::Apply { .. } => 9,
        Message::Applied { .. } => 10,
        Message::Resume { .. } => 11,
        Message::Broken { .. } => 12,
        Message::PauseApply { .. } => 13,
        Message::JournalRoom { .. } => 14,
        Message::Forwarded { .. } => 15,
        Message::NotResponsible { .. } => 16,
        Message::Stopping { .. } => 17,
        Message::Ask { .. } => 18,
        Message::Answered { .. } => 19,
        Message::Lead => 20,
        Message::Survey { .. } => 21,
        Message::Marks { .. } => 22,
        Message::Greet { .. } => 23,
        Message::Planned { .. } => 24,
        Message::HandOff { .. } => 25,
        Message::Settled { .. } => 26,
        Message::TimeAsk { .. } => 27,
        Message::TimeAnswer { .. } => 28,
    }
}

impl Coverage {
    pub(super) fn message(&mut self, message: &Message, busy: Busy) {
        self.cells[row_of(message)][busy.column()] += 1;
    }

    pub(super) fn record(&mut self, role: RecordRole, busy: Busy) {
        self.cells[28 + role as usize][busy.column()] += 1;
    }

    pub(super) fn act(&mut self, act: Act, busy: Busy) {
        self.cells[40 + act as usize][busy.column()] += 1;
    }

    /// Adds what other histories met.
    pub fn add(&mut self, other: &Self) {
        let pairs = self.cells.iter_mut().flatten().zip(other.cells.iter().flatten());
        pairs.for_each(|(mine, theirs)| *mine += theirs);
    }

    /// The rows: an input, and how often it met each of [`STAGES`].
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, &[u64; STAGES.len()])> {
        INPUTS.into_iter().zip(&self.cells)
    }

    /// Cells that were met, and inputs that no shard ever took.
    #[must_use]
    pub fn summary(&self) -> (usize, Vec<&'static str>) {
        let met = self.cells.iter().flatten().filter(|count| **count > 0).count();
        let never = self.rows().filter(|(_, row)| row.iter().all(|count| *count == 0));
        (met, never.map(|(name, _)| name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_acts_have_rows_of_their_own() {
        let mut coverage = Coverage::default();
        let open = Busy::Primary(Stage::Open);
        coverage.record(RecordRole::Mirror, open);
        coverage.record(RecordRole::ResendVoid, open);
        coverage.act(Act::Epoch, open);
        coverage.act(Act::Fail, Busy::Secondary(false));
        let met: Vec<_> =
            coverage.rows().filter(|(_, row)| row.iter().any(|n| *n > 0)).map(|(n, _)| n).collect();
        assert_eq!(met, ["record Mirror", "record ResendVoid", "epoch begins", "mover fails"]);
        assert_eq!(coverage.summary().0, 4);
    }
}
