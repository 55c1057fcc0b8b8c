//! What the API asks of the control thread: at once where the board knows, later where pollers
//! have to do something first.

use crossbeam::channel::{Receiver, bounded};

use super::driver::{Call, Driver};
use super::model::{ApiError, ErrorCode, EventLevel, Request, Response, Wish};
use crate::config::{PERIOD_MS_MAX, PERIOD_MS_MIN, Role};
use crate::proto::command::SetState;
use crate::proto::types::{GroupId, Nanos, SetId, VolumeId};
use crate::runtime::messages::{LedgerAnswer, ToPoller};

/// How long closing a set may take until the caller is told so; it still will be closed.
const CLOSE_NS_MAX: u64 = 20_000_000_000;
/// How long apply may take to come to a boundary until the caller is told so; it still will.
const PAUSE_NS_MAX: u64 = 30_000_000_000;
/// How long the cluster store may take to note what an operator wants until the caller is told so.
const WISH_NS_MAX: u64 = 10_000_000_000;
/// How long pollers may take to list their ledgers.
const LEDGER_NS_MAX: u64 = 2_000_000_000;

/// A call that pollers have to do something for.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A set is being closed.
    Close {
        call: Call,
        group: GroupId,
        answer: Receiver<Option<SetId>>,
        set: Option<SetId>,
        until: Nanos,
    },
    /// Apply is coming to a boundary, or going on.
    Apply { call: Call, group: GroupId, paused: bool, until: Nanos },
    /// What an operator wants is being noted.
    Wish { call: Call, wish: Wish, until: Nanos },
    /// Ledgers are being listed.
    Ledger {
        call: Call,
        volume: String,
        limit: usize,
        answers: Receiver<LedgerAnswer>,
        taken: Vec<LedgerAnswer>,
        missing: usize,
        until: Nanos,
    },
}

impl Request {
    /// Whether it asks for nothing to be done.
    pub(super) fn only_reads(&self) -> bool {
        !matches!(
            self,
            Self::GroupSetPeriod { .. }
                | Self::ApplyPause { .. }
                | Self::ApplyResume { .. }
                | Self::SetClose { .. }
                | Self::Wish { .. }
                | Self::Ledger { .. }
                | Self::Shutdown { .. }
        )
    }
}

impl Driver {
    /// Answers `call`, or remembers it until it can be answered.
    pub(super) fn answer(&mut self, now: Nanos, call: Call) {
        let answer = match &call.request {
            Request::GroupSetPeriod { group, period_ms } => {
                let (group, period_ms) = (group.clone(), *period_ms);
                self.set_period(now, &group, period_ms)
            }
            Request::ApplyPause { group } => {
                let group = group.clone();
                return self.pause(now, call, &group, true);
            }
            Request::ApplyResume { group } => {
                let group = group.clone();
                return self.pause(now, call, &group, false);
            }
            Request::SetClose { group } => {
                let group = group.clone();
                return self.close(now, call, &group);
            }
            Request::Wish { wish, dry_run } => {
                let (wish, dry_run) = (wish.clone(), *dry_run);
                return self.wish(now, call, wish, dry_run);
            }
            Request::Ledger { volume, limit } => {
                let (volume, limit) = (volume.clone(), *limit);
                return self.list_ledger(now, call, volume, limit);
            }
            Request::Shutdown { drain } => {
                let drain = *drain;
                self.begin_stop(now, drain, "asked for through the API");
                Ok(Response::Done)
            }
            request => self.read(now, request),
        };
        reply(call, answer);
    }

    fn read(&self, now: Nanos, request: &Request) -> Result<Response, ApiError> {
        let faults = self.fault_texts();
        let view = self.view(now, &faults);
        Ok(match request {
            Request::Status => Response::Status(view.status()),
            Request::GroupList => Response::Groups(view.groups()),
            Request::GroupShow { group } => Response::Group(view.group(view.find(group)?)),
            Request::VolumeList => Response::Volumes(view.volumes()),
            Request::VolumeMap | Request::CoreMap => Response::Map(view.map()),
            Request::CoreList => Response::Cores(view.cores()),
            Request::Assignment => Response::Assignment(self.assignment(now)),
            Request::MoverList => Response::Movers(view.movers()),
            Request::SetList { group, limit } => {
                Response::Sets(view.sets(view.find(group)?, *limit))
            }
            Request::SetShow { group, set } => Response::Set(view.set(view.find(group)?, *set)?),
            Request::Events { since, limit } => Response::Events(self.events.since(*since, *limit)),
            Request::Metrics => Response::Metrics(view.metrics()),
            other => {
                let message = format!("{other:?} is not a question");
                return Err(ApiError::new(ErrorCode::Internal, message, ""));
            }
        })
    }

    /// The number of the group called `name`, if this mover coordinates the site with `role`.
    fn coordinated(&self, now: Nanos, name: &str, role: Role) -> Result<GroupId, ApiError> {
        let faults = self.fault_texts();
        let view = self.view(now, &faults);
        let id = view.find(name)?.id;
        if self.board.role == role && self.coordinates() {
            return Ok(id);
        }
        let site = if role == Role::Primary { "primary" } else { "secondary" };
        let who = view.coordinator(role).unwrap_or_else(|| "no mover".to_owned());
        Err(ApiError::new(
            ErrorCode::NotCoordinator,
            format!("only the coordinator of the {site} site can do this: mover {who}"),
            format!("ask {who}"),
        ))
    }

    fn set_period(&mut self, now: Nanos, name: &str, period_ms: u64) -> Result<Response, ApiError> {
        let id = self.coordinated(now, name, Role::Primary)?;
        if !(PERIOD_MS_MIN..=PERIOD_MS_MAX).contains(&period_ms) {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("a period of {period_ms} ms"),
                format!("choose {PERIOD_MS_MIN} to {PERIOD_MS_MAX} ms"),
            ));
        }
        let period_ns = period_ms * 1_000_000;
        self.send(0, ToPoller::SetPeriod { group: id, period_ns });
        if let Some(group) = self.board.group_mut(id) {
            group.period_ns = period_ns;
        }
        let message = format!("the period is {period_ms} ms from the open set on");
        self.event(now, EventLevel::Info, "period", Some(name), message);
        let faults = self.fault_texts();
        let view = self.view(now, &faults);
        view.find(name).map(|group| Response::Group(view.group(group)))
    }

    fn pause(&mut self, now: Nanos, call: Call, name: &str, paused: bool) {
        let group = match self.coordinated(now, name, Role::Secondary) {
            Ok(group) => group,
            Err(error) => return reply(call, Err(error)),
        };
        self.send(0, ToPoller::PauseApply { group, paused });
        if let Some(board) = self.board.group_mut(group) {
            board.pause_asked = paused;
            // Whatever was known before the request says nothing about its effect.
            board.secondary = None;
        }
        let until = now.after(PAUSE_NS_MAX);
        self.waiting.push(Waiting::Apply { call, group, paused, until });
        // A round that is under way may have passed the poller before the request did.
        self.restart_round(now);
    }

    fn close(&mut self, now: Nanos, call: Call, name: &str) {
        let group = match self.coordinated(now, name, Role::Primary) {
            Ok(group) => group,
            Err(error) => return reply(call, Err(error)),
        };
        let (to, answer) = bounded(1);
        self.send(0, ToPoller::CloseNow { group, reply: to });
        let until = now.after(CLOSE_NS_MAX);
        self.waiting.push(Waiting::Close { call, group, answer, set: None, until });
    }

    fn wish(&mut self, now: Nanos, call: Call, wish: Wish, dry_run: bool) {
        if let Err(error) = self.refuse(&wish) {
            return reply(call, Err(error));
        }
        if dry_run {
            return reply(call, self.try_out(now, &wish).map(Response::Assignment));
        }
        self.waiting.push(Waiting::Wish { call, wish, until: now.after(WISH_NS_MAX) });
    }

    fn list_ledger(&mut self, now: Nanos, call: Call, volume: String, limit: usize) {
        let id = {
            let faults = self.fault_texts();
            match self.view(now, &faults).find_volume(&volume) {
                Ok((_, volume)) => VolumeId(volume.id),
                Err(error) => return reply(call, Err(error)),
            }
        };
        let missing = self.board.pollers.len();
        let (to, answers) = bounded(missing.max(1));
        let ask = || ToPoller::Ledger { volume: Some(id), max: limit, reply: to.clone() };
        self.send_all(ask);
        let (taken, until) = (Vec::new(), now.after(LEDGER_NS_MAX));
        self.waiting.push(Waiting::Ledger { call, volume, limit, answers, taken, missing, until });
    }

    /// Looks at what is waited for.
    pub(super) fn turn_waiting(&mut self, now: Nanos) {
        for waiting in std::mem::take(&mut self.waiting) {
            if let Some(still) = self.look(now, waiting) {
                self.waiting.push(still);
            }
        }
    }

    fn look(&mut self, now: Nanos, waiting: Waiting) -> Option<Waiting> {
        match waiting {
            Waiting::Close { call, group, answer, set: None, until } => {
                match answer.try_recv() {
                    Ok(Some(set)) => {
                        let set = Some(set);
                        return Some(Waiting::Close { call, group, answer, set, until });
                    }
                    Ok(None) => {
                        let message = "the group has no open set";
                        let advice = "group show says why";
                        reply(call, Err(ApiError::new(ErrorCode::Degraded, message, advice)));
                    }
                    Err(_) if now < until => {
                        return Some(Waiting::Close { call, group, answer, set: None, until });
                    }
                    Err(_) => reply(call, Err(late("the set was not closed"))),
                }
                None
            }
            Waiting::Close { call, group, answer, set: Some(set), until } => {
                let board = self.board.groups.iter().find(|board| board.id == group)?;
                let record = board.history.get(set);
                if record.is_some_and(|record| record.state >= SetState::InTransfer) {
                    let faults = self.fault_texts();
                    let view = self.view(now, &faults);
                    reply(call, view.set(board, set.0).map(Response::Set));
                    None
                } else if now < until {
                    Some(Waiting::Close { call, group, answer, set: Some(set), until })
                } else {
                    reply(call, Err(late("the set takes no more updates but is not formed yet")));
                    None
                }
            }
            Waiting::Apply { call, group, paused, until } => {
                let board = self.board.groups.iter().find(|board| board.id == group)?;
                let reached = board
                    .secondary
                    .as_ref()
                    .is_some_and(|view| view.paused == paused && (!paused || view.at_boundary));
                if reached {
                    let faults = self.fault_texts();
                    let view = self.view(now, &faults);
                    reply(call, Ok(Response::Group(view.group(board))));
                    None
                } else if now < until {
                    Some(Waiting::Apply { call, group, paused, until })
                } else {
                    reply(call, Err(late("apply has not come to a boundary yet")));
                    None
                }
            }
            Waiting::Wish { call, wish, until } => {
                if self.is_granted(&wish) {
                    reply(call, Ok(Response::Assignment(self.assignment(now))));
                    return None;
                }
                if now >= until {
                    reply(call, Err(late("the cluster store has not noted it")));
                    return None;
                }
                self.grant(now, &wish);
                Some(Waiting::Wish { call, wish, until })
            }
            Waiting::Ledger { call, volume, limit, answers, mut taken, mut missing, until } => {
                while let Ok(answer) = answers.try_recv() {
                    missing -= 1;
                    taken.push(answer);
                }
                if missing > 0 && now < until {
                    return Some(Waiting::Ledger {
                        call,
                        volume,
                        limit,
                        answers,
                        taken,
                        missing,
                        until,
                    });
                }
                if missing > 0 {
                    reply(call, Err(late("not every poller has answered")));
                    return None;
                }
                let faults = self.fault_texts();
                let view = self.view(now, &faults);
                let entries = view
                    .find_volume(&volume)
                    .map(|(group, volume)| view.ledger(group, volume, &taken, limit));
                reply(call, entries.map(Response::Ledger));
                None
            }
        }
    }
}

fn late(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Timeout, message, "it may still happen; look again later")
}

/// A caller that has gone is no fault.
fn reply(call: Call, answer: Result<Response, ApiError>) {
    let _ = call.reply.try_send(answer);
}
