//! The commands of a fence, one by one, at a target that keeps registrants as the specification says.

use super::steps::{Asker, Next, Steps};
use super::*;
use crate::spdk::error::NvmeStatus;
use crate::spdk::reservation::{Existing, Registrant};

const V: VolumeId = VolumeId(1);
const TYPE: Kind = Kind::WriteExclusiveRegistrantsOnly;

/// A namespace with its registrants.
#[derive(Default)]
struct Target {
    kind: Option<Kind>,
    registrants: Vec<Registrant>,
}

impl Target {
    /// With `movers` registered, in these lives; the first one holds the reservation.
    fn with(movers: &[(u16, u64)]) -> Self {
        let registrant = |(at, (mover, life)): (usize, &(u16, u64))| Registrant {
            key: key_of(MoverId(*mover), *life),
            host: [*mover as u8; 16],
            holder: at == 0,
        };
        let registrants: Vec<Registrant> = movers.iter().enumerate().map(registrant).collect();
        Self { kind: (!registrants.is_empty()).then_some(TYPE), registrants }
    }

    fn keys(&self) -> Vec<ReservationKey> {
        self.registrants.iter().map(|registrant| registrant.key).collect()
    }

    fn remove(&mut self, key: ReservationKey) {
        self.registrants.retain(|registrant| registrant.key != key);
    }

    /// Carries `request` out for the host of mover `mover`.
    fn does(&mut self, mover: u16, request: Request) -> Result<Answer, ReservationError> {
        let host = [mover as u8; 16];
        let known = |key| self.registrants.iter().any(|r| r.key == key && r.host == host);
        match request {
            Request::Report => {
                let (kind, registrants) = (self.kind, self.registrants.clone());
                let report = Report { generation: 0, kind, persistent: true, registrants };
                return Ok(Answer::Report(report));
            }
            Request::Register { key, existing, .. } => {
                let holder = match existing {
                    Existing::None if self.registrants.iter().any(|r| r.host == host) => {
                        return Err(ReservationError::Conflict);
                    }
                    Existing::None => false,
                    Existing::Replace(old) if !known(old) => {
                        return Err(ReservationError::Conflict);
                    }
                    Existing::Replace(old) => {
                        let holds = self.registrants.iter().any(|r| r.key == old && r.holder);
                        self.remove(old);
                        holds
                    }
                };
                self.registrants.push(Registrant { key, host, holder });
            }
            Request::Unregister { key } => self.remove(key),
            Request::Acquire { key, .. } if !known(key) || self.kind.is_some() => {
                return Err(ReservationError::Conflict);
            }
            Request::Acquire { kind, .. } => self.kind = Some(kind),
            Request::Preempt { key, victim, .. } => {
                if !known(key) || !self.keys().contains(&victim) {
                    return Err(ReservationError::Conflict);
                }
                self.remove(victim);
            }
        }
        Ok(Answer::Done)
    }
}

/// Mover 1, in its 5th life.
fn steps(joined: bool, victims: Option<Victims>) -> Steps {
    let (key, host) = (key_of(MoverId(1), 5), [1; 16]);
    Steps::new(Asker { volume: V, key, host, wanted: TYPE, persist: true }, joined, victims)
}

/// All but movers 1 and 3, in their 5th lives.
fn others() -> Option<Victims> {
    Some(Victims::AllBut(BTreeMap::from([(MoverId(1), 5), (MoverId(3), 5)])))
}

/// Runs to the end; `between` changes the target before each command. How many commands it took.
fn run(
    steps: &mut Steps,
    target: &mut Target,
    mut between: impl FnMut(&mut Target, Request),
) -> (Result<(), FenceError>, usize) {
    let (mut request, mut count) = (Request::Report, 0);
    loop {
        between(target, request);
        count += 1;
        match steps.answered(target.does(1, request)) {
            Ok(Next::Send(next)) => request = next,
            Ok(Next::Done(_)) => return (Ok(()), count),
            Err(error) => return (Err(error), count),
        }
    }
}

fn nothing(_: &mut Target, _: Request) {}

#[test]
fn a_base_of_a_dead_mover_is_taken_over_with_four_commands() {
    let mut target = Target::with(&[(2, 7), (3, 5)]);
    let mut fence = steps(false, others());
    let (done, commands) = run(&mut fence, &mut target, nothing);
    assert!(done.is_ok() && fence.joined());
    assert_eq!(commands, 4, "a report, a registration, a preemption, a report");
    assert_eq!(fence.removed(), [key_of(MoverId(2), 7)]);
    assert_eq!(target.keys(), [key_of(MoverId(3), 5), key_of(MoverId(1), 5)]);
}

#[test]
fn a_former_life_is_replaced_and_a_reservation_taken_where_there_is_none() {
    let mut target = Target::with(&[(1, 4)]);
    assert!(run(&mut steps(false, None), &mut target, nothing).0.is_ok());
    assert_eq!(target.keys(), [key_of(MoverId(1), 5)]);
    let mut free = Target::default();
    assert!(run(&mut steps(false, None), &mut free, nothing).0.is_ok());
    assert_eq!((free.kind, free.keys().len()), (Some(TYPE), 1));
    // Again: nothing is to be done.
    assert_eq!(run(&mut steps(true, None), &mut free, nothing).1, 1);
}

#[test]
fn a_former_life_of_a_member_and_leftovers_are_shut_out_too_and_strangers_are_left_alone() {
    let mut target = Target::with(&[(3, 4), (2, 1), (1, 5)]);
    let stranger = Registrant { key: ReservationKey(77), host: [9; 16], holder: false };
    target.registrants.push(stranger);
    let mut fence = steps(true, others());
    assert!(run(&mut fence, &mut target, nothing).0.is_ok());
    assert_eq!(fence.removed().len(), 2);
    assert_eq!(target.keys(), [key_of(MoverId(1), 5), ReservationKey(77)]);
}

#[test]
fn who_was_shut_out_never_registers_again_in_the_same_life() {
    let mut target = Target::with(&[(3, 5)]);
    let (done, commands) = run(&mut steps(true, others()), &mut target, nothing);
    assert!(matches!(done, Err(FenceError::Excluded { volume: V })) && commands == 1);
    // Also when it happens between its registration and its next look.
    let mut target = Target::with(&[(2, 7), (3, 5)]);
    let (done, _) = run(&mut steps(false, others()), &mut target, |target, request| {
        if matches!(request, Request::Preempt { .. }) {
            target.remove(key_of(MoverId(1), 5));
        }
    });
    assert!(matches!(done, Err(FenceError::Excluded { .. })));
    assert_eq!(target.keys().len(), 2);
}

#[test]
fn what_others_do_meanwhile_is_looked_at_again() {
    // A third mover removes the victim first; the victim of before comes with the next life of a mover.
    let mut target = Target::with(&[(2, 7), (3, 5)]);
    let mut once = true;
    let (done, _) = run(&mut steps(false, others()), &mut target, |target, request| {
        if matches!(request, Request::Preempt { .. }) && std::mem::take(&mut once) {
            *target = Target::with(&[(3, 5), (1, 5), (4, 1)]);
        }
    });
    assert!(done.is_ok());
    assert_eq!(target.keys(), [key_of(MoverId(3), 5), key_of(MoverId(1), 5)]);
    // Changed each time: given up, not gone on with for ever.
    let mut life = 10;
    let mut target = Target::with(&[(2, 7)]);
    let (done, commands) = run(&mut steps(false, others()), &mut target, |target, request| {
        if request == Request::Report {
            life += 1;
            *target = Target::with(&[(2, life), (1, 5)]);
        }
    });
    assert!(matches!(done, Err(FenceError::Unsteady { .. })), "after {commands}");
}

#[test]
fn a_reservation_of_somebody_else_is_not_broken_into() {
    let mut target = Target { kind: Some(Kind::Other(1)), ..Target::with(&[(2, 7)]) };
    let (done, commands) = run(&mut steps(false, others()), &mut target, nothing);
    assert!(matches!(done, Err(FenceError::Foreign { .. })) && commands == 1);
}

#[test]
fn a_preemption_that_failed_leaves_it_open_what_the_victim_has_under_way() {
    let failed = || Err(ReservationError::Failed(NvmeStatus::ABORTED_SQ_DELETION));
    let mut target = Target::with(&[(2, 7), (3, 5)]);
    let mut fence = steps(true, others());
    target.registrants.push(Registrant {
        key: key_of(MoverId(1), 5),
        host: [1; 16],
        holder: false,
    });
    assert!(matches!(
        fence.answered(target.does(1, Request::Report)),
        Ok(Next::Send(Request::Preempt { .. }))
    ));
    assert!(!fence.unsure());
    assert!(matches!(fence.answered(failed()), Err(FenceError::Command { .. })));
    assert!(fence.unsure());
    let mut fence = steps(true, others());
    assert!(fence.answered(failed()).is_err() && !fence.unsure(), "a report changes nothing");
}
