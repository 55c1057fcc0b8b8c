//! Room for another update: whether it can be numbered now, and asking for early boundaries when
//! memory runs short (F7).
//!
//! What is retained is released when its set is confirmed. So when room lacks, the open set is
//! closed early, if a good part of what is retained is in it. Nothing is refused to a host.

use super::config::MirrorPolicy;
use super::peers::{Mirror, choose};
use super::shard::PrimaryShard;
use super::slab::{ELSEWHERE, HERE};
use crate::proto::command::Command;
use crate::proto::message::Message;

/// There is no room for another update now. Back-pressure, not an error: try again after progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// The group has no open set yet: not all movers of the site are up.
    NotStarted,
    /// As many updates are retained as there may be.
    Retained,
    /// Not enough mirror targets, or not the responsible shard, have room.
    Mirrors,
    /// As many updates are forwarded as there may be.
    Forwards,
    /// The volume is being taken over from a mover that failed, or nobody is responsible.
    TakeOver,
}

/// The right to number one update, given by [`PrimaryShard::admit`] and good until the next input.
#[derive(Debug)]
#[must_use]
pub struct Admitted {
    pub(super) mirrors: u64,
}

impl PrimaryShard {
    /// Whether an update of `record_bytes` for the volume at index `volume` can be numbered now.
    ///
    /// # Errors
    /// [`Full`] says what is short.
    #[inline]
    pub fn admit(&self, volume: u32, record_bytes: u32) -> Result<Admitted, Full> {
        match self.volumes[volume as usize].owner {
            HERE => self.admit_own(volume, record_bytes, None),
            ELSEWHERE => Err(Full::TakeOver),
            owner => self.admit_forward(owner, record_bytes).map(|()| Admitted { mirrors: 0 }),
        }
    }

    /// The same for a volume of this shard; `origin` is the index of the mirror peer that took the
    /// update, which holds a copy already.
    #[inline]
    pub(super) fn admit_own(
        &self,
        volume: u32,
        record_bytes: u32,
        origin: Option<u8>,
    ) -> Result<Admitted, Full> {
        let group = &self.groups[self.volumes[volume as usize].group];
        if !self.volumes[volume as usize].ready {
            return Err(Full::TakeOver);
        }
        if self.slab.is_full() {
            return Err(Full::Retained);
        }
        if group.broken.is_some() {
            return Ok(Admitted { mirrors: 0 });
        }
        if group.sets.open().is_none() || group.joins {
            return Err(Full::NotStarted);
        }
        let first = match group.policy {
            MirrorPolicy::Load => None,
            MirrorPolicy::Partner(index) => Some(index),
        };
        let (taker, wanted) = match origin {
            None => (0, group.wanted_mirrors),
            Some(origin) => (1 << origin, group.wanted_mirrors.saturating_sub(1)),
        };
        choose(&self.mirrors, wanted, taker, first, record_bytes, self.in_flight_max)
            .map(|mirrors| Admitted { mirrors: mirrors | taker })
            .ok_or(Full::Mirrors)
    }

    /// An update was not admitted: asks for the open sets to be closed early, if it is room for
    /// copies that lacks and not only a credit of a link.
    pub fn handle_refused(&mut self) {
        if self.slab.used() > self.slab.max() / 2 || self.mirrors.iter().any(Mirror::is_crowded) {
            self.handle_pressure();
        }
    }

    /// The caller's arena runs short: asks for the open sets to be closed early.
    pub fn handle_pressure(&mut self) {
        for group in 0..self.groups.len() {
            self.ask_for_early_close(group);
        }
    }

    #[cold]
    pub(super) fn ask_for_early_close(&mut self, group: usize) {
        let group = &mut self.groups[group];
        if group.broken.is_none()
            && group.sets.is_open_set_worth_closing()
            && let Some(open) = group.sets.open_mut()
            && !open.close_asked
            && open.released
        {
            open.close_asked = true;
            let message = Message::CloseNow { group: group.id, set: open.id, needed: false };
            self.commands.push_back(Command::Send { to: self.coordinator, message });
        }
    }
}
