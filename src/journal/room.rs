//! When a journal counts as scarce: the rule that keeps it from filling up with what cannot be
//! applied yet.
//!
//! Room is made by applying sets, and applying takes room itself. Up to half of the log is a buffer
//! for sets that wait to be applied. Beyond, the journal is *scarce*: only the set that is applied
//! next is committed, and what is not committed the primary keeps. The other half must therefore
//! hold what the primary site's arenas hold. Of it, an eighth of the log is for manifests and marks
//! alone.

use super::JournalPos;

/// Scarce above this part of the log, in eighths.
const SCARCE_EIGHTHS: u64 = 4;
/// And until it is below this part.
const AMPLE_EIGHTHS: u64 = 3;
/// Records find no room above this part.
const FULL_EIGHTHS: u64 = 7;
/// Marks should not lie farther back than this part of the log while it is scarce.
const BEHIND_EIGHTHS: u64 = 2;

/// How the journal's room was last seen. Owned by whoever owns the journal.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Room {
    scarce: bool,
    /// The position last told.
    before: JournalPos,
}

impl Room {
    /// Looks at a log of `capacity` bytes of which `used` are taken or spoken for, and which ends at
    /// `end`. Returns what is to be told to the state machine
    /// (`proto::secondary::Secondary::handle_journal_room`), if that has changed.
    #[inline]
    pub fn look(
        &mut self,
        capacity: u64,
        used: u64,
        end: JournalPos,
    ) -> Option<Option<JournalPos>> {
        let eighth = capacity / 8;
        let limit = if self.scarce { AMPLE_EIGHTHS } else { SCARCE_EIGHTHS };
        let scarce = used > limit * eighth;
        if !scarce {
            return std::mem::take(&mut self.scarce).then_some(None);
        }
        let before = JournalPos(end.0.saturating_sub(BEHIND_EIGHTHS * eighth));
        let news = !self.scarce || before.0 - self.before.0.min(before.0) >= eighth;
        self.scarce = true;
        if news {
            self.before = before;
        }
        news.then_some(Some(before))
    }

    /// Whether it was scarce when last looked at.
    pub fn is_scarce(&self) -> bool {
        self.scarce
    }

    /// Whether no record may be taken in at all: what is left is for manifests and marks. That
    /// happens only when one set is larger than the journal was made for.
    pub fn is_full(capacity: u64, used: u64) -> bool {
        used > FULL_EIGHTHS * (capacity / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scarce_and_ample_are_told_once_and_apart() {
        let mut room = Room::default();
        let at = |used: u64| JournalPos(10_000 + used);
        assert_eq!(room.look(800, 400, at(400)), None);
        assert_eq!(room.look(800, 401, at(401)), Some(Some(JournalPos(10_201))));
        assert_eq!(room.look(800, 450, at(450)), None, "known");
        assert_eq!(room.look(800, 350, at(450)), None, "not yet ample");
        assert_eq!(room.look(800, 300, at(460)), Some(None));
        assert_eq!(room.look(800, 300, at(460)), None, "known");
        assert!(!room.is_scarce());
    }

    #[test]
    fn while_it_is_scarce_the_marks_are_asked_for_again_as_the_end_moves_on() {
        let mut room = Room::default();
        assert_eq!(room.look(800, 500, JournalPos(1000)), Some(Some(JournalPos(800))));
        assert_eq!(room.look(800, 500, JournalPos(1099)), None);
        assert_eq!(room.look(800, 500, JournalPos(1100)), Some(Some(JournalPos(900))));
    }

    #[test]
    fn the_last_eighth_is_not_for_records() {
        assert!(!Room::is_full(800, 700));
        assert!(Room::is_full(800, 701));
    }
}
