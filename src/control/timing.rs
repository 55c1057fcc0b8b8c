//! What people are told of time stamps (G8): the bound of their error at this moment, and whether
//! somebody keeps the time right.

use super::model::{EventLevel, TimestampInfo};
use crate::config::{Mover, Role, Timestamps};
use crate::proto::time::ERROR_UNKNOWN;
use crate::proto::types::Nanos;
use crate::runtime::stamps::Sources;
use crate::runtime::timekeeper::ClockState;

/// What the control thread knows of the time.
#[derive(Debug)]
pub struct Timing {
    sources: Sources,
    /// Updates are taken here.
    stamps: bool,
    /// The groups that are stamped by the system clock, and by the common timer.
    by_clock: Vec<String>,
    by_common: Vec<String>,
    clock: Option<ClockState>,
    /// The common timer is known.
    common: bool,
}

impl Timing {
    /// What there is to know at a mover with these sources.
    #[must_use]
    pub fn new(mover: &Mover, sources: Sources) -> Self {
        let by = |source| {
            let groups = mover.groups.iter().filter(|group| group.timestamps == source);
            groups.map(|group| group.name.clone()).collect()
        };
        Self {
            sources,
            stamps: mover.mover.role == Role::Primary,
            by_clock: by(Timestamps::Clock),
            by_common: by(Timestamps::Common),
            clock: None,
            common: false,
        }
    }

    /// The event, when the common timer is known, or not, and was not, or was, at the last turn.
    pub fn turn(&mut self) -> Option<(EventLevel, String)> {
        if self.by_common.is_empty() || !self.stamps {
            return None;
        }
        let known = self.common_known();
        if known == std::mem::replace(&mut self.common, known) {
            return None;
        }
        Some(match known {
            true => (EventLevel::Info, "the common timer is known here".to_owned()),
            false => (EventLevel::Warning, self.common_fault()),
        })
    }

    fn common_known(&self) -> bool {
        self.sources.line(Timestamps::Common).is_some_and(|line| line.is_bounded())
    }

    fn common_fault(&self) -> String {
        let groups = self.by_common.join(", ");
        format!(
            "the common timer is not known here: the error of time stamps is not known either (group \
             {groups}); the coordinator answers when all primary movers have asked it"
        )
    }

    /// The system clock's state is another one than before; the event.
    pub fn clock_is(&mut self, state: ClockState) -> (EventLevel, String) {
        self.clock = Some(state);
        let (level, message) = match state {
            ClockState { synchronised: Some(true), .. } => {
                (EventLevel::Info, "the system clock is synchronised".to_owned())
            }
            ClockState { configured: true, .. } => (
                EventLevel::Warning,
                "the kernel does not call the system clock synchronised; time stamps have the \
                 configured bound, mover.clock_error_us"
                    .to_owned(),
            ),
            _ => (EventLevel::Warning, self.fault().unwrap_or_default()),
        };
        (level, message)
    }

    /// Everything that is not as it should be.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let unknown = self.stamps && !self.by_common.is_empty() && !self.common_known();
        self.fault().into_iter().chain(unknown.then(|| self.common_fault())).collect()
    }

    /// What is wrong with the system clock.
    fn fault(&self) -> Option<String> {
        let state = self.clock.filter(|state| !state.is_bounded() && self.stamps)?;
        let what = match state.synchronised {
            Some(_) => "the system clock is not synchronised",
            None => "the kernel cannot say whether the system clock is synchronised",
        };
        let groups = self.by_clock.join(", ");
        Some(format!(
            "{what}: the error of time stamps is not known (group {groups}); have chronyd, ntpd or \
             ptp4l keep the clock, or state its bound as mover.clock_error_us"
        ))
    }

    /// The time stamps of a group with this source, now.
    #[must_use]
    pub fn of(&self, source: Timestamps, now: Nanos) -> Option<TimestampInfo> {
        if source == Timestamps::None || !self.stamps {
            return None;
        }
        let line = self.sources.line(source);
        let error_ns = line.map(|line| line.stamp(now).error_ns);
        Some(TimestampInfo {
            source,
            error_ns: error_ns.filter(|error| *error != ERROR_UNKNOWN),
            synchronised: match source {
                Timestamps::Common => line.is_some_and(|line| line.is_bounded()),
                _ => self.clock.is_some_and(|clock| clock.synchronised == Some(true)),
            },
            configured: source == Timestamps::Clock
                && self.clock.is_some_and(|clock| clock.configured),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sabotage::Sabotage;
    use crate::proto::time::{Bounds, Course};

    const DAY: u64 = 1_795_000_000_000_000_000;

    fn mover(role: Role, timestamps: Timestamps) -> Mover {
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let file = if role == Role::Primary { "p1.toml" } else { "s1.toml" };
        let mut mover = Mover::load(&root.join("examples/lab").join(file)).unwrap().mover;
        mover.groups[0].timestamps = timestamps;
        mover
    }

    #[test]
    fn the_bound_and_its_lack_are_said() {
        let mut sources = Sources::default();
        let mut setter = sources.add_clock();
        let mut timing = Timing::new(&mover(Role::Primary, Timestamps::Clock), sources);
        let mut course = Course::new(1, Sabotage::None);
        course.follow(Nanos(0), DAY, Some(Bounds::around(DAY, 2_000)));
        setter.set(course.line().unwrap().encode());
        let state = ClockState { synchronised: Some(true), configured: false };
        assert_eq!(timing.clock_is(state).0, EventLevel::Info);
        let info = timing.of(Timestamps::Clock, Nanos(0)).unwrap();
        assert_eq!((info.error_ns, info.synchronised), (Some(2_000), true));
        assert_eq!(timing.faults(), Vec::<String>::new());
        assert_eq!(timing.of(Timestamps::None, Nanos(0)), None);

        course.follow(Nanos(1), DAY + 1, None);
        setter.set(course.line().unwrap().encode());
        let state = ClockState { synchronised: Some(false), configured: false };
        let (level, message) = timing.clock_is(state);
        assert_eq!(level, EventLevel::Warning);
        assert!(message.contains("not synchronised") && message.contains("bank"), "{message}");
        assert_eq!(timing.faults(), [message]);
        let info = timing.of(Timestamps::Clock, Nanos(1)).unwrap();
        assert_eq!((info.error_ns, info.synchronised), (None, false));

        // A bound that somebody stated is one.
        let state = ClockState { synchronised: Some(false), configured: true };
        assert_eq!(timing.clock_is(state).0, EventLevel::Warning);
        assert_eq!(timing.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_common_timer_that_is_not_known_is_said_and_when_it_is() {
        let mut sources = Sources::default();
        let mut setter = sources.add_common();
        let mut timing = Timing::new(&mover(Role::Primary, Timestamps::Common), sources);
        assert!(timing.faults()[0].contains("the common timer is not known"));
        assert_eq!(timing.turn(), None, "nothing has changed since the start");
        let mut course = Course::new(1, Sabotage::None);
        course.narrow(Nanos(0), Bounds::around(DAY, 30_000));
        setter.set(course.line().unwrap().encode());
        assert_eq!(timing.turn().unwrap().0, EventLevel::Info);
        assert_eq!((timing.turn(), timing.faults()), (None, Vec::new()));
        let info = timing.of(Timestamps::Common, Nanos(0)).unwrap();
        assert_eq!((info.error_ns, info.synchronised), (Some(30_000), true));
        course.doubt();
        setter.set(course.line().unwrap().encode());
        assert_eq!(timing.turn().unwrap().0, EventLevel::Warning);
        let info = timing.of(Timestamps::Common, Nanos(0)).unwrap();
        assert_eq!((info.error_ns, info.synchronised), (None, false));
    }

    #[test]
    fn a_secondary_mover_gives_out_no_stamps() {
        let mut sources = Sources::default();
        let _setter = sources.add_clock();
        let mut timing = Timing::new(&mover(Role::Secondary, Timestamps::Clock), sources);
        timing.clock_is(ClockState { synchronised: Some(false), configured: false });
        assert_eq!(timing.faults(), Vec::<String>::new());
        assert_eq!(timing.of(Timestamps::Clock, Nanos(0)), None);
    }
}
