//! Reading back from the base what was recovered as a description alone (G12).
//!
//! Where copies are descriptions, a mover that fails takes the payload of its updates with it, and the base
//! is the only other place that has it: every update that was acknowledged is there. Who takes a volume
//! over reads every described range once the base is fenced and before it writes anything itself
//! ([`super::restore`]); of updates that a living shard was handed on before, at once.
//!
//! What is read is the update's own payload if the checksum says so. If not, a later update has overwritten it,
//! or it never got to the base, wholly or at all. Both are carried to the secondary under the update's
//! number: behind the last of these the secondary has what the base has. But the update's set is not the
//! state at its cut any more, only together with all sets that anything in the base can be of: those up to
//! the last one of which anything was recovered, or where the volume has gone on, up to the one that is open
//! now. Its header says so ([`UpdateInfo::not_before`]), and the secondary commits and applies these sets as
//! one (`secondary::coordinator`).
//!
//! [`UpdateInfo::not_before`]: crate::wire::update::UpdateInfo::not_before

use super::shard::PrimaryShard;
use super::slab::{DONE, UNREAD};
use super::takeover::Standing;
use crate::proto::command::{Command, Report, Token};
use crate::proto::limits::{APPLY_RETRY_NS_MAX, APPLY_RETRY_NS_MIN};
use crate::proto::message::Message;
use crate::proto::sabotage::Sabotage;
use crate::proto::types::{BufRef, Nanos, NvmeStatus, SetId};

/// Token tag of a recovered update whose payload is read back.
pub(super) const TAG_READ: u8 = 0xf8;

/// What is to be done with a payload that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadBack {
    /// Nothing: the caller frees the record.
    NotNeeded,
    /// It is the update's own; the record is the protocol's.
    Own,
    /// It is not. Before it carries out any command the caller writes the payload's checksum and
    /// `not_before` into the record's header, which is the protocol's from now on.
    Overtaken {
        /// See [`crate::wire::update::UpdateInfo::not_before`].
        not_before: SetId,
    },
}

impl PrimaryShard {
    /// Asks for the payload of an update.
    pub(super) fn read_back(&mut self, slot: u32) {
        let update = self.slab.get(slot);
        let volume = self.volumes[update.volume as usize].config.id;
        let (extent, buf, token) = (update.extent, update.buf, self.slab.token(slot, TAG_READ));
        self.commands.push_back(Command::ReadBack { volume, extent, buf, token });
        self.counters.read_back += 1;
        self.reading += 1;
    }

    /// What [`Command::ReadBack`] asked for is in the record `buf`, behind the description's header; its checksum
    /// (CRC-32C) is `payload_crc`.
    pub fn handle_read_back(&mut self, token: Token, buf: BufRef, payload_crc: u32) -> ReadBack {
        self.reading -= 1;
        self.read_attempts = 0;
        let Some((slot, TAG_READ)) = self.slab.resolve(token) else { return ReadBack::NotNeeded };
        let update = self.slab.get_mut(slot);
        if !update.has(UNREAD) {
            return ReadBack::NotNeeded;
        }
        update.flags &= !UNREAD;
        // The description may travel to others; it goes with the update.
        let description = core::mem::replace(&mut update.buf, buf);
        self.descriptions.insert(slot, description);
        let update = self.slab.get_mut(slot);
        let own = update.payload_crc == payload_crc;
        update.payload_crc = payload_crc;
        let result = if own { ReadBack::Own } else { self.overtaken(slot) };
        let done = self.slab.get(slot).has(DONE);
        self.restore_has_read(slot, own);
        if done {
            self.queue_transfer(slot);
        }
        if self.reading == 0 {
            self.ask_to_close_merged();
        }
        result
    }

    /// What was read is not the update's own.
    fn overtaken(&mut self, slot: u32) -> ReadBack {
        self.counters.overtaken += 1;
        let (set, volume) = (self.slab.get(slot).set, self.slab.get(slot).volume as usize);
        let index = self.volumes[volume].group;
        let group = &mut self.groups[index];
        let until = match &self.volumes[volume].standing {
            Standing::Restoring(restore) => restore.until(),
            // No base write of a later set can have been issued: it would have been released.
            _ => group.last_opened(),
        };
        if until <= set || self.sabotage.is(Sabotage::PresentOvertaken) {
            return ReadBack::Overtaken { not_before: SetId(0) };
        }
        if until > group.merged_until {
            group.merged_until = until;
            let report = Report::Merged { group: group.id, set, until };
            self.commands.push_back(Command::Report(report));
        }
        ReadBack::Overtaken { not_before: until }
    }

    /// The base would not read: it is asked again in a while, each time later.
    pub fn handle_read_failed(&mut self, now: Nanos, token: Token, status: NvmeStatus) {
        self.reading -= 1;
        let Some((slot, TAG_READ)) = self.slab.resolve(token) else { return };
        if self.unreadable.is_empty() {
            let volume = self.volumes[self.slab.get(slot).volume as usize].config.id;
            let report = Report::RestoreFailed { volume, status };
            self.commands.push_back(Command::Report(report));
            let pause = APPLY_RETRY_NS_MIN << self.read_attempts.min(20);
            self.read_attempts += 1;
            self.retry_at = self.retry_at.min(now.after(pause.min(APPLY_RETRY_NS_MAX)));
        }
        self.unreadable.push(token);
    }

    /// Asks again for what bases would not read.
    pub(super) fn read_back_again(&mut self) {
        for token in core::mem::take(&mut self.unreadable) {
            if let Some((slot, TAG_READ)) = self.slab.resolve(token)
                && self.slab.get(slot).has(UNREAD)
            {
                self.read_back(slot);
            }
        }
    }

    /// Asks for the sets to be closed that the secondary needs to present anything of what was read back, also where
    /// no more sets should be open at once.
    pub(super) fn ask_to_close_merged(&mut self) {
        for group in &self.groups {
            if group.merged_until > group.confirmed && group.broken.is_none() {
                let message =
                    Message::CloseNow { group: group.id, set: group.merged_until, needed: true };
                self.commands.push_back(Command::Send { to: self.coordinator, message });
            }
        }
    }
}
