//! Keeps excluded movers from writing base volumes (G13, invariant 4).
//!
//! A base that several movers reach is an NVMe namespace with reservations. Each mover that opens
//! it registers a key and joins the reservation: only registrants can write. Whoever takes a volume
//! over shuts the former owner out first ([`Fence::preempt`]): its registration is removed and its
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
//! Used on the app thread; nothing here is on the path of an update. What is not fenced says why
//! ([`Fencing`]), and its volume stays bound to the one mover that writes it.

use std::collections::BTreeMap;

use crate::control::model::{Fencing, FencingState};
use crate::proto::types::{MoverId, VolumeId};
use crate::spdk::error::Error;
use crate::spdk::op::Pump;
use crate::spdk::reservation::{
    Abilities, Existing, Kind, Report, ReservationError, ReservationKey, Reservations,
};

/// First 16 bits of every key of this program, "SL": others' keys are told from ours.
const KEY_MARK: u64 = 0x534c;
/// How often joining and preempting begin anew when another mover changed something meanwhile.
const TRIES: usize = 8;

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim<'a> {
    /// Whatever this mover has registered, in whichever life.
    Mover(MoverId),
    /// This key alone.
    Key(ReservationKey),
    /// Every mover but these, in these lives.
    AllBut(&'a BTreeMap<MoverId, u64>),
}

impl Victim<'_> {
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
    Reserved { at: Reservations, kind: Kind, persistent: bool, known: Report },
    None { reason: String },
}

/// The fences of a mover. Belongs to the app thread, like the channels it holds.
#[derive(Debug)]
pub struct Fence {
    key: ReservationKey,
    host: [u8; 16],
    guards: BTreeMap<VolumeId, Guard>,
}

impl Fence {
    /// For this life of the mover. `host` is the identifier that its controllers were attached with.
    #[must_use]
    pub fn new(mover: MoverId, incarnation: u64, host: [u8; 16]) -> Self {
        Self { key: key_of(mover, incarnation), host, guards: BTreeMap::new() }
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

    /// Whether this mover has joined the base of `volume`, or the base cannot be fenced.
    #[must_use]
    pub fn knows(&self, volume: VolumeId) -> bool {
        self.guards.contains_key(&volume)
    }

    /// Registers at the base of `volume`, namespace `nsid` behind the block device `bdev`, and takes
    /// or joins its reservation. Of an earlier registration of this mover's the key is replaced.
    /// A base without reservations is noted as such. Before the first write.
    ///
    /// # Errors
    /// [`FenceError`]; nothing may be written then.
    pub fn join(
        &mut self,
        volume: VolumeId,
        bdev: &str,
        nsid: u32,
        pump: Pump<'_>,
    ) -> Result<(), FenceError> {
        let spdk = |source: Error| FenceError::Command { volume, source: source.into() };
        let failed = |source| FenceError::Command { volume, source };
        let Some(at) = Reservations::open(bdev, nsid).map_err(spdk)? else {
            self.bind(volume, "the base is no NVMe namespace");
            return Ok(());
        };
        let Some(abilities) = at.abilities(&mut *pump).map_err(failed)? else {
            self.bind(volume, "the base's controller has no reservations");
            return Ok(());
        };
        let Some(wanted) = wanted(abilities) else {
            self.bind(volume, "the base has no reservation under which only registrants write");
            return Ok(());
        };
        for _ in 0..TRIES {
            let report = at.report(&mut *pump).map_err(failed)?;
            if let Some(kind) = report.kind.filter(|kind| !kind.fences_writes()) {
                return Err(FenceError::Foreign { volume, kind, registered: names(&report) });
            }
            let mine = report.registrants.iter().find(|r| r.host == self.host).map(|r| r.key);
            let existing = match mine {
                Some(old) => Existing::Replace(old),
                None => Existing::None,
            };
            match at.register(self.key, existing, abilities.persist, &mut *pump) {
                Ok(()) => {}
                Err(ReservationError::Conflict) => continue,
                Err(other) => return Err(failed(other)),
            }
            match at.acquire(self.key, report.kind.unwrap_or(wanted), &mut *pump) {
                // Conflict: another mover's reservation stands, or it came first.
                Ok(()) | Err(ReservationError::Conflict) => {}
                Err(other) => return Err(failed(other)),
            }
            let known = at.report(&mut *pump).map_err(failed)?;
            if let Some(kind) = known.kind.filter(|kind| kind.fences_writes())
                && has(&known, self.key)
            {
                let persistent = known.persistent;
                self.guards.insert(volume, Guard::Reserved { at, kind, persistent, known });
                return Ok(());
            }
        }
        Err(FenceError::Unsteady { volume })
    }

    /// Shuts `victim` out of the base of `volume`, which this mover has joined: when it returns,
    /// nothing that the victim sent or will send changes the base. Before the first write of a mover
    /// that takes the volume over. Returns the keys removed: none when the victim was not registered
    /// (any more), which is just as good.
    ///
    /// # Errors
    /// [`FenceError`]; nothing may be written then. [`FenceError::Excluded`]: another mover was faster
    /// and this one is shut out itself.
    pub fn preempt(
        &mut self,
        volume: VolumeId,
        victim: Victim<'_>,
        pump: Pump<'_>,
    ) -> Result<Vec<ReservationKey>, FenceError> {
        let failed = |source| FenceError::Command { volume, source };
        let me = self.key;
        let (at, joined, known) = match self.guards.get_mut(&volume) {
            Some(Guard::Reserved { at, kind, known, .. }) => (at, *kind, known),
            Some(Guard::None { reason }) => {
                return Err(FenceError::NotFenced { volume, reason: reason.clone() });
            }
            None => {
                let reason = "it has not been opened here".to_owned();
                return Err(FenceError::NotFenced { volume, reason });
            }
        };
        let mut removed = Vec::new();
        for _ in 0..TRIES {
            *known = at.report(&mut *pump).map_err(failed)?;
            if !has(known, me) {
                return Err(FenceError::Excluded { volume });
            }
            let Some(kind) = known.kind else {
                // Its holder left: without a reservation nobody is shut out.
                let acquired = at.acquire(me, joined, &mut *pump);
                acquired.or_else(unless_conflict).map_err(failed)?;
                continue;
            };
            if !kind.fences_writes() {
                return Err(FenceError::Foreign { volume, kind, registered: names(known) });
            }
            let keys = known.registrants.iter().map(|registrant| registrant.key);
            let Some(key) = keys.into_iter().find(|key| *key != me && victim.is(*key)) else {
                return Ok(removed);
            };
            match at.preempt(me, key, kind, true, &mut *pump) {
                Ok(()) => removed.push(key),
                // Somebody else removed it, or us: the next report tells.
                Err(ReservationError::Conflict) => {}
                Err(other) => return Err(failed(other)),
            }
        }
        Err(FenceError::Unsteady { volume })
    }

    /// How each volume's base is kept from others, as far as this mover knows.
    #[must_use]
    pub fn fencing(&self) -> BTreeMap<VolumeId, Fencing> {
        let one = |guard: &Guard| match guard {
            Guard::None { reason } => {
                Fencing { state: FencingState::Bound, reason: reason.clone(), key: None }
            }
            Guard::Reserved { kind, persistent, known, .. } => {
                let lasting = match persistent {
                    true => "kept over a loss of the target's power",
                    false => "lost with the target's power",
                };
                let others: Vec<String> = known
                    .registrants
                    .iter()
                    .filter(|registrant| registrant.host != self.host)
                    .map(|registrant| name(registrant.key))
                    .collect();
                let mut reason = format!("{kind}; {lasting}");
                if !others.is_empty() {
                    reason = format!("{reason}; also registered: {}", others.join(", "));
                }
                Fencing { state: FencingState::Fenced, reason, key: Some(self.key.to_string()) }
            }
        };
        self.guards.iter().map(|(volume, guard)| (*volume, one(guard))).collect()
    }

    /// Takes this mover's key from every base: nothing of it is under way any more. The last one to
    /// leave takes the reservation along. A holder that is not the last leaves its key behind, for
    /// its successor to preempt. What does not work is logged; the key then stays until the mover's
    /// next life replaces it.
    pub fn leave(self, pump: Pump<'_>) {
        let (me, host) = (self.key, self.host);
        for (volume, guard) in self.guards {
            let Guard::Reserved { at, .. } = guard else { continue };
            let left = at.report(&mut *pump).and_then(|report| {
                let others = report.registrants.iter().any(|r| r.host != host);
                let holds = report.registrants.iter().any(|r| r.host == host && r.holder);
                match report.kind {
                    Some(Kind::WriteExclusiveRegistrantsOnly) if holds && others => {
                        tracing::info!(%volume, key = %me, "the key stays for the successor");
                        Ok(())
                    }
                    // Shut out before: nothing to take.
                    _ if !has(&report, me) => Ok(()),
                    _ => at.unregister(me, &mut *pump),
                }
            });
            if let Err(error) = left {
                tracing::warn!(%volume, %error, key = %me, "the key stays at the base");
            }
        }
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

fn unless_conflict(error: ReservationError) -> Result<(), ReservationError> {
    match error {
        ReservationError::Conflict => Ok(()),
        other => Err(other),
    }
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
