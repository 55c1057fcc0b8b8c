//! Joining a base's reservation and shutting others out of it, command by command.
//!
//! [`Steps`] says which command to send next, given the answer to the one before; it sends nothing
//! itself and does not wait. Each answer is a moment's truth: other movers change the same reservation,
//! so what was changed is looked at again before it counts.

use super::{FenceError, Victims};
use crate::proto::types::VolumeId;
use crate::spdk::reservation::{
    Answer, Existing, Kind, Registrant, Report, Request, ReservationError, ReservationKey,
};

/// How often it is looked anew when another mover changed something meanwhile.
const LOOKS: u32 = 16;

/// Who asks, and what it can ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) volume: VolumeId,
    pub(super) key: ReservationKey,
    pub(super) host: [u8; 16],
    /// The type of reservation to take where there is none.
    pub(super) wanted: Kind,
    /// What is registered is to outlive the target's power.
    pub(super) persist: bool,
}

/// What is to be done next.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Send this and give its answer to [`Steps::answered`].
    Send(Request),
    /// This mover has joined, and the victims are out. That is how it stands now.
    Done(Report),
}

/// The way of one mover into a base's reservation, and of its victims out of it. Begins with
/// [`Request::Report`].
#[derive(Debug)]
pub(super) struct Steps {
    asker: Asker,
    victims: Option<Victims>,
    /// This mover's key was registered, so if it is not there any more, others have shut it out.
    joined: bool,
    asked: Request,
    looks: u32,
    report: Report,
    /// `report` was brought up to date by what this mover did, not by the target.
    guessed: bool,
    removed: Vec<ReservationKey>,
    /// A preemption was sent, and it is not known what came of it.
    unsure: bool,
}

impl Steps {
    pub(super) fn new(asker: Asker, joined: bool, victims: Option<Victims>) -> Self {
        Self {
            asker,
            victims,
            joined,
            asked: Request::Report,
            looks: 0,
            report: Report {
                generation: 0,
                kind: None,
                persistent: false,
                registrants: Vec::new(),
            },
            guessed: false,
            removed: Vec::new(),
            unsure: false,
        }
    }

    /// Whether this mover's key is registered, as far as was heard.
    pub(super) fn joined(&self) -> bool {
        self.joined
    }

    /// The keys that were removed.
    pub(super) fn removed(&self) -> &[ReservationKey] {
        &self.removed
    }

    /// A preemption was not answered, or with an error: its victim may be out, with commands of it still
    /// under way.
    pub(super) fn unsure(&self) -> bool {
        self.unsure
    }

    /// The answer to what was asked last.
    pub(super) fn answered(
        &mut self,
        answer: Result<Answer, ReservationError>,
    ) -> Result<Next, FenceError> {
        let volume = self.asker.volume;
        match (self.asked, answer) {
            (_, Ok(Answer::Report(report))) => {
                self.report = report;
                self.guessed = false;
            }
            (Request::Register { existing, .. }, Ok(Answer::Done)) => {
                self.joined = true;
                self.guessed = true;
                if let Existing::Replace(old) = existing {
                    self.report.registrants.retain(|registrant| registrant.key != old);
                }
                let (key, host) = (self.asker.key, self.asker.host);
                self.report.registrants.push(Registrant { key, host, holder: false });
            }
            (Request::Preempt { victim, .. }, Ok(Answer::Done)) => {
                self.removed.push(victim);
                self.guessed = true;
                self.report.registrants.retain(|registrant| registrant.key != victim);
            }
            // Who holds it now is the target's to say. A conflict: another mover was faster.
            (_, Ok(Answer::Done) | Err(ReservationError::Conflict)) => return self.look(),
            (asked, Err(source)) => {
                self.unsure |= matches!(asked, Request::Preempt { .. });
                return Err(FenceError::Command { volume, source });
            }
        }
        self.decide()
    }

    fn look(&mut self) -> Result<Next, FenceError> {
        self.looks += 1;
        if self.looks > LOOKS {
            return Err(FenceError::Unsteady { volume: self.asker.volume });
        }
        Ok(self.ask(Request::Report))
    }

    fn ask(&mut self, request: Request) -> Next {
        self.asked = request;
        Next::Send(request)
    }

    fn decide(&mut self) -> Result<Next, FenceError> {
        let Asker { volume, key, host, wanted, persist } = self.asker;
        if let Some(kind) = self.report.kind.filter(|kind| !kind.fences_writes()) {
            let registered = super::names(&self.report);
            return Err(FenceError::Foreign { volume, kind, registered });
        }
        if !super::has(&self.report, key) {
            if self.joined {
                return Err(FenceError::Excluded { volume });
            }
            let former = self.report.registrants.iter().find(|r| r.host == host);
            let existing = former.map_or(Existing::None, |former| Existing::Replace(former.key));
            return Ok(self.ask(Request::Register { key, existing, persist }));
        }
        self.joined = true;
        let Some(kind) = self.report.kind else {
            // Nobody holds it, or its holder left: nobody is shut out then.
            return Ok(self.ask(Request::Acquire { key, kind: wanted }));
        };
        let others = self.report.registrants.iter().map(|r| r.key).filter(|other| *other != key);
        let victim = self.victims.as_ref().and_then(|who| others.into_iter().find(|k| who.is(*k)));
        if let Some(victim) = victim {
            return Ok(self.ask(Request::Preempt { key, victim, kind }));
        }
        if self.guessed {
            return self.look();
        }
        Ok(Next::Done(self.report.clone()))
    }
}
