//! Keeps excluded movers from writing base volumes (G13, invariant 4).
//!
//! A base that several movers reach is an NVMe namespace with reservations. Each mover that writes
//! it registers a key and joins the reservation: only registrants can write. Whoever takes a volume
//! over shuts the former owner out first ([`Fence::begin`]): its registration is removed and its
//! commands that are under way come to an end, before the new owner writes the first block.
//!
//! **Type.** The reservation is "write exclusive, registrants only": one registrant holds it, all may
//! write. It ends when its holder unregisters, and would then let in a mover that was excluded and
//! sleeps. So a holder that stops while others are registered leaves its key behind: whoever takes
//! its volumes over preempts that key and holds the reservation from then on, without a moment in
//! between. "Write exclusive, all registrants" would need no holder, but SPDK's target (26.01) cannot
//! load such a reservation again once the host that acquired it has left; it is joined where it
//! stands, and taken where the namespace has no other.
//!
//! **Key.** Made of the mover's number and the incarnation of its store, so that a life has a key of
//! its own: what is found under an older key is from a former life. Hosts are told apart by host
//! identifier, the same in every life of a mover; two lives cannot be at the same time, because the
//! store is open in one process only.
//!
//! **Nobody waits for a storage server.** Fences of several volumes go on side by side, as [`Fence::poll`]
//! is called; each tells its outcome by itself. What must be known of a base beforehand is asked when it
//! is opened, so that a take-over needs four commands. A command that is not answered in time is told of
//! and given up ([`Fencing::Hangs`]), and the whole fence is tried again by whoever asked for it.
//!
//! **A preemption that failed** may have removed the victim and not have waited for its commands. The next
//! attempt does not find the victim any more and could not wait either; so it waits [`SETTLE_NS`] for
//! the storage server to end what it had begun.
//!
//! Used on the app thread; nothing here is on the path of an update. What is not fenced says why
//! ([`model::Fencing`]), and its volume stays bound to the one mover that writes it.

mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::control::model::{self, FencingState};
use crate::proto::types::{MoverId, Nanos, VolumeId};
use crate::spdk::error::Error;
use crate::spdk::op::{Pump, poll_until};
use crate::spdk::reservation::{
    Abilities, Answer, Kind, Report, Request, ReservationError, ReservationKey, Reservations, Sent,
};
use steps::{Asker, Next, Steps};

/// How long a reservation command may take before it is told of and given up, in nanoseconds: it mostly
/// takes a millisecond, and a preemption as long as the victim's last writes.
const COMMAND_NS_MAX: u64 = 2_000_000_000;
/// How long a storage server is given to end what a victim had under way, when a preemption failed, in
/// nanoseconds.
const SETTLE_NS: u64 = 2_000_000_000;
/// First 16 bits of every key of this program, "SL": others' keys are told from ours.
const KEY_MARK: u64 = 0x534c;

/// The key of mover `mover` in its life `incarnation`.
#[must_use]
pub fn key_of(mover: MoverId, incarnation: u64) -> ReservationKey {
    ReservationKey(KEY_MARK << 48 | u64::from(mover.0) << 32 | incarnation & 0xffff_ffff)
}

/// Whose key it is; none for keys that are not of this program.
#[must_use]
pub fn mover_of(key: ReservationKey) -> Option<MoverId> {
    (key.0 >> 48 == KEY_MARK).then_some(MoverId((key.0 >> 32) as u16))
}

/// Which life of its mover registered `key`, by the lowest 32 bits of the life's number; meaningless for
/// keys that are not of this program.
#[must_use]
pub fn life_of(key: ReservationKey) -> u64 {
    key.0 & 0xffff_ffff
}

/// Who is to be shut out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Victims {
    /// Whatever this mover has registered, in whichever life.
    Mover(MoverId),
    /// This key alone.
    Key(ReservationKey),
    /// Every mover but these, in these lives.
    AllBut(BTreeMap<MoverId, u64>),
}

impl Victims {
    fn is(&self, key: ReservationKey) -> bool {
        match self {
            Self::Mover(mover) => mover_of(key) == Some(*mover),
            Self::Key(wanted) => key == *wanted,
            Self::AllBut(lives) => mover_of(key).is_some_and(|mover| {
                lives.get(&mover).is_none_or(|life| life & 0xffff_ffff != life_of(key))
            }),
        }
    }
}

/// Why a base could not be fenced, or a mover not be shut out.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// A reservation command failed.
    #[error("fencing of {volume}: {source}")]
    Command {
        /// The volume.
        volume: VolumeId,
        /// What went wrong.
        source: ReservationError,
    },
    /// Somebody else reserved the base in a way that shuts movers out, or may let others in.
    #[error(
        "the base of {volume} is reserved by others ({kind}; registered: {registered}); who holds it \
         must release it, or an operator clears it (docs/operations.md, \"Fencing\")"
    )]
    Foreign {
        /// The volume.
        volume: VolumeId,
        /// How.
        kind: Kind,
        /// Who is registered.
        registered: String,
    },
    /// This mover itself has been shut out.
    #[error("this mover was excluded from the base of {volume}: its key is not registered there")]
    Excluded {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume's base cannot be fenced, so nobody can be shut out.
    #[error("the base of {volume} is not fenced: {reason}")]
    NotFenced {
        /// The volume.
        volume: VolumeId,
        /// Why.
        reason: String,
    },
    /// Other movers kept changing it.
    #[error("the reservation of {volume}'s base kept changing")]
    Unsteady {
        /// The volume.
        volume: VolumeId,
    },
}

/// What keeps others from one volume's base.
#[derive(Debug)]
enum Guard {
    Base(Base),
    None { reason: String },
}

/// A base that can be fenced.
#[derive(Debug)]
struct Base {
    at: Reservations,
    wanted: Kind,
    persist: bool,
    /// This mover's key was registered: if it is missing, others have removed it.
    joined: bool,
    /// What the target said when this mover had joined last; none before.
    known: Option<Report>,
    /// A preemption failed, and what the victim had under way was not waited for since.
    unsure: bool,
}

/// A fence under way.
#[derive(Debug)]
struct Job {
    volume: VolumeId,
    steps: Steps,
    stage: Stage,
    told_joined: bool,
}

#[derive(Debug)]
enum Stage {
    ToSend(Request),
    Sent {
        sent: Sent,
        request: Request,
        since: Nanos,
        /// It was told of and given up.
        hangs: bool,
    },
    /// It is as it should be, and it is waited for what the victim had under way.
    Settling {
        until: Nanos,
        report: Report,
    },
}

/// What a fence under way has come to.
#[derive(Debug)]
pub enum Fencing {
    /// This mover's key is registered from now on; victims may be in still. It goes on.
    Joined,
    /// This mover has joined, and nothing that the victims sent or will send changes the base. The keys
    /// removed: none when no victim was registered (any more), which is just as good.
    Done(Vec<ReservationKey>),
    /// Nothing may be written. [`FenceError::Excluded`]: another mover was faster and this one is shut
    /// out itself.
    Failed(FenceError),
    /// A command is not answered; in words. It goes on.
    Hangs(String),
}

/// The fences of a mover. Belongs to the app thread, like the channels it holds.
#[derive(Debug)]
pub struct Fence {
    key: ReservationKey,
    host: [u8; 16],
    guards: BTreeMap<VolumeId, Guard>,
    jobs: Vec<Job>,
    /// Of fences that ended before they began.
    ended: Vec<(VolumeId, Fencing)>,
}

impl Fence {
    /// For this life of the mover. `host` is the identifier that its controllers were attached with.
    #[must_use]
    pub fn new(mover: MoverId, incarnation: u64, host: [u8; 16]) -> Self {
        let key = key_of(mover, incarnation);
        Self { key, host, guards: BTreeMap::new(), jobs: Vec::new(), ended: Vec::new() }
    }

    /// This mover's key.
    #[must_use]
    pub fn key(&self) -> ReservationKey {
        self.key
    }

    /// Notes that `volume` cannot be fenced.
    pub fn bind(&mut self, volume: VolumeId, reason: &str) {
        self.guards.insert(volume, Guard::None { reason: reason.to_owned() });
    }

    /// Opens the base of `volume`, namespace `nsid` behind the block device `bdev`, and asks what it
    /// can do. A base without reservations is noted as such. Nothing is changed there.
    ///
    /// # Errors
    /// [`FenceError::Command`].
    pub fn open(
        &mut self,
        volume: VolumeId,
        bdev: &str,
        nsid: u32,
        pump: Pump<'_>,
    ) -> Result<(), FenceError> {
        let spdk = |source: Error| FenceError::Command { volume, source: source.into() };
        let Some(at) = Reservations::open(bdev, nsid).map_err(spdk)? else {
            self.bind(volume, "the base is no NVMe namespace");
            return Ok(());
        };
        let abilities = at.abilities(pump);
        let Some(abilities) = abilities.map_err(|source| FenceError::Command { volume, source })?
        else {
            self.bind(volume, "the base's controller has no reservations");
            return Ok(());
        };
        let Some(wanted) = wanted(abilities) else {
            self.bind(volume, "the base has no reservation under which only registrants write");
            return Ok(());
        };
        let persist = abilities.persist;
        let base = Base { at, wanted, persist, joined: false, known: None, unsure: false };
        self.guards.insert(volume, Guard::Base(base));
        Ok(())
    }

    /// Begins to register at the base of `volume`, which was opened, to take or join its reservation, and
    /// to shut `victims` out. Of an earlier registration of this mover's the key is replaced. What
    /// comes of it is told by [`Self::poll`]; one fence per volume at a time. Before the first write of
    /// a mover that takes the volume over.
    pub fn begin(&mut self, volume: VolumeId, victims: Option<Victims>) {
        let base = match self.guards.get(&volume) {
            Some(Guard::Base(base)) => base,
            Some(Guard::None { reason }) => {
                let reason = reason.clone();
                let failed = Fencing::Failed(FenceError::NotFenced { volume, reason });
                return self.ended.push((volume, failed));
            }
            None => {
                let reason = "it has not been opened here".to_owned();
                let failed = Fencing::Failed(FenceError::NotFenced { volume, reason });
                return self.ended.push((volume, failed));
            }
        };
        let asker = Asker {
            volume,
            key: self.key,
            host: self.host,
            wanted: base.wanted,
            persist: base.persist,
        };
        let steps = Steps::new(asker, base.joined, victims);
        self.jobs.push(Job {
            volume,
            steps,
            stage: Stage::ToSend(Request::Report),
            told_joined: false,
        });
    }

    /// Whether any fence is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || !self.ended.is_empty()
    }

    /// Goes on with all fences, and says what has come of them. Never waits; to be called again within a
    /// millisecond while [`Self::is_busy`]. The app thread is polled in between.
    pub fn poll(&mut self, now: Nanos) -> Vec<(VolumeId, Fencing)> {
        let mut news = std::mem::take(&mut self.ended);
        let guards = &mut self.guards;
        self.jobs.retain_mut(|job| {
            let Some(Guard::Base(base)) = guards.get_mut(&job.volume) else { return false };
            match job.poll(base, now) {
                None => true,
                Some(fencing) => {
                    let goes_on = matches!(fencing, Fencing::Joined | Fencing::Hangs(_));
                    news.push((job.volume, fencing));
                    goes_on
                }
            }
        });
        news
    }

    /// Registers at the bases of `volumes`, which were opened, and takes or joins their reservations, as
    /// far as they can be fenced; waits for that. Before the first write.
    ///
    /// # Errors
    /// [`FenceError`]; nothing may be written then.
    pub fn join(&mut self, volumes: &[VolumeId], pump: Pump<'_>) -> Result<(), FenceError> {
        let fenced = |volume: &&VolumeId| matches!(self.guards.get(volume), Some(Guard::Base(_)));
        let volumes: Vec<VolumeId> = volumes.iter().filter(fenced).copied().collect();
        volumes.into_iter().for_each(|volume| self.begin(volume, None));
        self.finish(pump).map(drop)
    }

    /// Shuts `victims` out of the base of `volume`, as [`Self::begin`] does, and waits for that. Returns the
    /// keys removed.
    ///
    /// # Errors
    /// [`FenceError`]; nothing may be written then.
    pub fn preempt(
        &mut self,
        volume: VolumeId,
        victims: Victims,
        pump: Pump<'_>,
    ) -> Result<Vec<ReservationKey>, FenceError> {
        self.begin(volume, Some(victims));
        self.finish(pump)
    }

    /// Waits for all fences under way; the first failure counts.
    fn finish(&mut self, pump: Pump<'_>) -> Result<Vec<ReservationKey>, FenceError> {
        let begun = Instant::now();
        let (mut removed, mut failed) = (Vec::new(), None);
        let waited = poll_until("fencing", pump, || {
            for (volume, fencing) in self.poll(Nanos(begun.elapsed().as_nanos() as u64)) {
                match fencing {
                    Fencing::Done(keys) => removed.extend(keys),
                    Fencing::Failed(error) => failed = failed.take().or(Some(error)),
                    Fencing::Joined => {}
                    Fencing::Hangs(what) => tracing::warn!(%volume, "{what}"),
                }
            }
            !self.is_busy()
        });
        let late = self.jobs.drain(..).next().map(|job| job.volume);
        match (failed, waited, late) {
            (Some(error), ..) => Err(error),
            (None, Err(late), Some(volume)) => {
                Err(FenceError::Command { volume, source: late.into() })
            }
            _ => Ok(removed),
        }
    }

    /// How each volume's base is kept from others, as far as this mover knows.
    #[must_use]
    pub fn fencing(&self) -> BTreeMap<VolumeId, model::Fencing> {
        let one = |guard: &Guard| {
            Some(match guard {
                Guard::None { reason } => model::Fencing {
                    state: FencingState::Bound,
                    reason: reason.clone(),
                    key: None,
                    since_unix_ms: None,
                },
                Guard::Base(Base { known: None, .. }) => return None,
                Guard::Base(Base { known: Some(known), .. }) => {
                    let lasting = match known.persistent {
                        true => "kept over a loss of the target's power",
                        false => "lost with the target's power",
                    };
                    let others: Vec<String> = known
                        .registrants
                        .iter()
                        .filter(|registrant| registrant.host != self.host)
                        .map(|registrant| name(registrant.key))
                        .collect();
                    let kind =
                        known.kind.map_or_else(|| "none".to_owned(), |kind| kind.to_string());
                    let mut reason = format!("{kind}; {lasting}");
                    if !others.is_empty() {
                        reason = format!("{reason}; also registered: {}", others.join(", "));
                    }
                    model::Fencing {
                        state: FencingState::Fenced,
                        reason,
                        key: Some(self.key.to_string()),
                        since_unix_ms: None,
                    }
                }
            })
        };
        let all = self.guards.iter();
        all.filter_map(|(volume, guard)| Some((*volume, one(guard)?))).collect()
    }

    /// Takes this mover's key from every base: nothing of it is under way any more. The last one to
    /// leave takes the reservation along. A holder that is not the last leaves its key behind, for
    /// its successor to preempt. What does not work is logged; the key then stays until the mover's
    /// next life replaces it.
    pub fn leave(self, pump: Pump<'_>) {
        let (me, host) = (self.key, self.host);
        for (volume, guard) in self.guards {
            let Guard::Base(Base { at, joined: true, .. }) = guard else { continue };
            let report = match at.run(Request::Report, &mut *pump) {
                Ok(Answer::Report(report)) => report,
                Ok(Answer::Done) => continue,
                Err(error) => {
                    tracing::warn!(%volume, %error, key = %me, "the key stays at the base");
                    continue;
                }
            };
            let others = report.registrants.iter().any(|r| r.host != host);
            let holds = report.registrants.iter().any(|r| r.host == host && r.holder);
            match report.kind {
                Some(Kind::WriteExclusiveRegistrantsOnly) if holds && others => {
                    tracing::info!(%volume, key = %me, "the key stays for the successor");
                }
                // Shut out before: nothing to take.
                _ if !has(&report, me) => {}
                _ => {
                    if let Err(error) = at.run(Request::Unregister { key: me }, &mut *pump) {
                        tracing::warn!(%volume, %error, key = %me, "the key stays at the base");
                    }
                }
            }
        }
    }
}

impl Job {
    /// What has come of it, if it is news; after [`Fencing::Done`] and [`Fencing::Failed`] it is over.
    fn poll(&mut self, base: &mut Base, now: Nanos) -> Option<Fencing> {
        loop {
            let answer = match &mut self.stage {
                Stage::ToSend(request) => match base.at.begin(*request) {
                    Ok(None) => return None,
                    Ok(Some(sent)) => {
                        let request = *request;
                        self.stage = Stage::Sent { sent, request, since: now, hangs: false };
                        return None;
                    }
                    Err(error) => Err(error),
                },
                Stage::Sent { sent, request, since, hangs } => {
                    let Some(answer) = base.at.poll(sent) else {
                        if *hangs || now.since(*since) < COMMAND_NS_MAX {
                            return None;
                        }
                        *hangs = true;
                        base.at.abort(sent);
                        let seconds = COMMAND_NS_MAX / 1_000_000_000;
                        let what = "the storage server does not answer";
                        return Some(Fencing::Hangs(format!("{what} ({request}) for {seconds} s")));
                    };
                    let us = now.since(*since) / 1000;
                    tracing::debug!(volume = %self.volume, %request, us, "answered");
                    answer
                }
                Stage::Settling { until, .. } if now < *until => return None,
                Stage::Settling { report, .. } => {
                    base.unsure = false;
                    base.known = Some(report.clone());
                    return Some(Fencing::Done(self.steps.removed().to_vec()));
                }
            };
            if let Some(fencing) = self.answered(base, now, answer) {
                return Some(fencing);
            }
        }
    }

    fn answered(
        &mut self,
        base: &mut Base,
        now: Nanos,
        answer: Result<Answer, ReservationError>,
    ) -> Option<Fencing> {
        let next = self.steps.answered(answer);
        base.unsure |= self.steps.unsure();
        base.joined |= self.steps.joined();
        match next {
            Ok(Next::Send(request)) => self.stage = Stage::ToSend(request),
            Ok(Next::Done(report)) => {
                let until = if base.unsure { now.after(SETTLE_NS) } else { now };
                self.stage = Stage::Settling { until, report };
            }
            Err(error) => return Some(Fencing::Failed(error)),
        }
        let news = self.steps.joined() && !self.told_joined;
        self.told_joined |= news;
        news.then_some(Fencing::Joined)
    }
}

fn wanted(abilities: Abilities) -> Option<Kind> {
    if abilities.registrants_only {
        Some(Kind::WriteExclusiveRegistrantsOnly)
    } else if abilities.all_registrants {
        Some(Kind::WriteExclusiveAllRegistrants)
    } else {
        None
    }
}

fn has(report: &Report, key: ReservationKey) -> bool {
    report.registrants.iter().any(|registrant| registrant.key == key)
}

fn name(key: ReservationKey) -> String {
    match mover_of(key) {
        Some(mover) => format!("{key} (mover {})", mover.0),
        None => format!("{key} (not of setline)"),
    }
}

fn names(report: &Report) -> String {
    let names: Vec<String> = report.registrants.iter().map(|r| name(r.key)).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}
