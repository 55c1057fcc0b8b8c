//! Deliberate faults in the protocol, to prove that the simulator sees them.
//!
//! Each variant breaks one rule at one place of one state machine; the place asks
//! [`Sabotage::is`]. A test finds a failing seed for every variant and none for
//! [`Sabotage::None`] (`docs/simulator.md`).
//!
//! The hooks exist only in builds that cannot carry data: unit tests, and builds without the
//! `datapath` feature (simulator, command line). In a build with the data path `is` is the
//! constant `false`, so the branch is gone and no configuration can bring it back.

/// Which rule a state machine breaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// The host is acknowledged before the mirrors hold the update (invariant 1 b).
    AckBeforeMirror,
    /// The base is written before the mirrors hold the update (invariant 2).
    BaseBeforeMirror,
    /// A shard takes its own switch to a set as that set's release (invariant 5).
    ReleaseBeforeAllSwitched,
    /// The coordinator releases a set as soon as the first shard has switched (invariant 5).
    ReleaseOnFirstPrepared,
    /// A number whose base write failed is given out again (invariant 3).
    ReuseNumber,
    /// Voids are missing from the facts (invariant 3, 6).
    DropVoid,
    /// Overlapping updates are in flight to the base together (invariant 3).
    OverlapAtBase,
    /// A shard calls a set stored while numbers of it are missing (invariant 6).
    StoredBeforeComplete,
    /// A shard calls a set stored before its journal is durable (invariant 7).
    StoredBeforeDurable,
    /// The secondary coordinator confirms a set before its commit is durable (invariant 7).
    ConfirmBeforeDurable,
    /// A shard applies a set of which it has not all, before it is committed (invariant 7).
    ApplyBeforeComplete,
    /// A shard is told to apply a set while another still applies the one before (invariant 7).
    ApplyOutOfLockstep,
    /// A shard reports a set applied without flushing the volumes (invariant 7).
    AppliedBeforeFlush,
    /// Copies are freed when the manifest is sent, not when it is confirmed (invariant 8).
    FreeBeforeConfirm,
    /// Messages of another epoch are obeyed (invariant 9).
    IgnoreEpoch,
    /// A forwarded update goes to the base before its taker knows the number (invariant 2).
    NumberUnheard,
    /// Volumes are taken over before all members have said what they hold (invariant 3, F5).
    RecoverUnheard,
    /// A volume that was taken over is opened without bringing its base up to date (invariant 2).
    TakeOverWithoutRestore,
    /// A volume is taken over without fencing its base first (invariant 4).
    TakeOverUnfenced,
    /// Older versions of a block are written to the base after newer ones at a take-over (invariant 2).
    RestoreOld,
    /// Who takes a volume over goes on after the last number that a member holds, also if some have heard
    /// of later ones (invariant 3).
    ForgetHeard,
    /// A number whose base write failed has its fate though others who hold it do not know (invariant 3).
    VoidUntold,
    /// A volume is handed over while updates of it are under way to the base (invariants 3, 4).
    HandOffUndrained,
    /// A shard goes on numbering a volume that has moved at the boundary (invariant 4).
    KeepMoved,
    /// An excluded mover takes a base's refusal for success, and acknowledges (invariant 1, G13).
    AckExcluded,
    /// A shard numbers what others forward to it by an old map (invariant 3, G4).
    AcceptStaleMap,
    /// Only some pollers enter a new epoch (invariant 9).
    EnteredBySome,
    /// A set with payloads of later updates is presented as any other (invariant 5, G12).
    PresentOvertaken,
    /// A source is told that its update took effect, though the base has something else (invariant 1, G12).
    AnswerOvertaken,
    /// Time stamps follow a clock that is put back (invariant 11).
    ClockBack,
    /// The time that an answer of the common timer was on its way does not count (invariant 11).
    RoundTripIgnored,
    /// What was known of a former coordinator's timer is believed further on (invariant 11).
    TrustOldTimer,
}

impl Sabotage {
    /// Whether this build has the hooks.
    pub const COMPILED_IN: bool = cfg!(any(test, not(feature = "datapath")));

    /// Every variant that breaks something.
    pub const ALL: [Self; 32] = [
        Self::AckBeforeMirror,
        Self::BaseBeforeMirror,
        Self::ReleaseBeforeAllSwitched,
        Self::ReleaseOnFirstPrepared,
        Self::ReuseNumber,
        Self::DropVoid,
        Self::OverlapAtBase,
        Self::StoredBeforeComplete,
        Self::StoredBeforeDurable,
        Self::ConfirmBeforeDurable,
        Self::ApplyBeforeComplete,
        Self::ApplyOutOfLockstep,
        Self::AppliedBeforeFlush,
        Self::FreeBeforeConfirm,
        Self::IgnoreEpoch,
        Self::NumberUnheard,
        Self::RecoverUnheard,
        Self::TakeOverWithoutRestore,
        Self::TakeOverUnfenced,
        Self::RestoreOld,
        Self::ForgetHeard,
        Self::VoidUntold,
        Self::HandOffUndrained,
        Self::KeepMoved,
        Self::AckExcluded,
        Self::AcceptStaleMap,
        Self::EnteredBySome,
        Self::PresentOvertaken,
        Self::AnswerOvertaken,
        Self::ClockBack,
        Self::RoundTripIgnored,
        Self::TrustOldTimer,
    ];

    /// Whether `variant` is to be broken: `config.sabotage.is(Sabotage::OverlapAtBase)`.
    /// Constant `false` in builds that carry data.
    #[must_use]
    #[inline(always)]
    pub const fn is(self, variant: Self) -> bool {
        Self::COMPILED_IN && self as u8 == variant as u8
    }

    /// The variant's name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AckBeforeMirror => "ack-before-mirror",
            Self::BaseBeforeMirror => "base-before-mirror",
            Self::ReleaseBeforeAllSwitched => "release-before-all-switched",
            Self::ReleaseOnFirstPrepared => "release-on-first-prepared",
            Self::ReuseNumber => "reuse-number",
            Self::DropVoid => "drop-void",
            Self::OverlapAtBase => "overlap-at-base",
            Self::StoredBeforeComplete => "stored-before-complete",
            Self::StoredBeforeDurable => "stored-before-durable",
            Self::ConfirmBeforeDurable => "confirm-before-durable",
            Self::ApplyBeforeComplete => "apply-before-complete",
            Self::ApplyOutOfLockstep => "apply-out-of-lockstep",
            Self::AppliedBeforeFlush => "applied-before-flush",
            Self::FreeBeforeConfirm => "free-before-confirm",
            Self::IgnoreEpoch => "ignore-epoch",
            Self::NumberUnheard => "number-unheard",
            Self::RecoverUnheard => "recover-unheard",
            Self::TakeOverWithoutRestore => "take-over-without-restore",
            Self::TakeOverUnfenced => "take-over-unfenced",
            Self::RestoreOld => "restore-old",
            Self::ForgetHeard => "forget-heard",
            Self::VoidUntold => "void-untold",
            Self::HandOffUndrained => "hand-off-undrained",
            Self::KeepMoved => "keep-moved",
            Self::AckExcluded => "ack-excluded",
            Self::AcceptStaleMap => "accept-stale-map",
            Self::EnteredBySome => "entered-by-some",
            Self::PresentOvertaken => "present-overtaken",
            Self::AnswerOvertaken => "answer-overtaken",
            Self::ClockBack => "clock-back",
            Self::RoundTripIgnored => "round-trip-ignored",
            Self::TrustOldTimer => "trust-old-timer",
        }
    }

    /// The variant with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name == Self::None.name() {
            return Some(Self::None);
        }
        Self::ALL.into_iter().find(|variant| variant.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_are_distinct() {
        for variant in Sabotage::ALL {
            assert_eq!(Sabotage::from_name(variant.name()), Some(variant));
        }
        assert_eq!(Sabotage::from_name("none"), Some(Sabotage::None));
        assert_eq!(Sabotage::from_name("all"), None);
    }

    #[test]
    fn nothing_is_broken_by_default() {
        assert!(Sabotage::ALL.iter().all(|variant| !Sabotage::default().is(*variant)));
    }
}
