//! A base refuses this mover because of another one's reservation: it was excluded (G13).
//!
//! The other mover has taken the volume over, with everything that was numbered. So nothing is
//! decided about the volume here any more: an update whose base write was refused is neither done nor
//! void, and its number is the other's to judge. Hosts get a path status, upon which those with
//! several paths go to the other mover. The state machine is not told, so nothing that depends on
//! the refused write goes on; the mover says what happened and waits to be restarted.

use super::host::HostCommand;
use super::messages::FromPoller;
use super::poller::Poller;
use crate::proto::types::NvmeStatus;
use crate::spdk::tap::IoKind;

/// Generic status, "Reservation Conflict" (NVM Express Base Specification 2.0, figure "Generic
/// Command Status Values").
const RESERVATION_CONFLICT: NvmeStatus = NvmeStatus { sct: 0, sc: 0x83 };
/// Path related status, "Asymmetric Access Inaccessible": the host takes another path.
pub(super) const PATH_INACCESSIBLE: NvmeStatus = NvmeStatus { sct: 3, sc: 0x02 };

/// Whether a base said that this mover may not write it.
#[inline]
pub(super) fn says_excluded(status: NvmeStatus) -> bool {
    status == RESERVATION_CONFLICT
}

impl Poller {
    /// Gives up the volume with this index: its hosts are sent to another path, and the control
    /// thread is told, once.
    #[cold]
    pub(super) fn exclude(&mut self, index: usize) {
        let volume = &mut self.volumes[index];
        if std::mem::replace(&mut volume.excluded, true) {
            return;
        }
        let id = volume.counters.volume;
        self.tell(FromPoller::Excluded { volume: id, at: self.now });
        while let Some(command) = self.hosts.next_waiting(index as u32) {
            self.complete(command, PATH_INACCESSIBLE);
        }
        for _ in 0..self.busy.len() {
            match self.busy.pop_front() {
                Some(command) if command.volume as usize == index => {
                    self.complete(command, PATH_INACCESSIBLE);
                }
                Some(command) => self.busy.push_back(command),
                None => break,
            }
        }
        // Reads under way end by themselves: the base writes to the hosts' memory.
        let update = |command: &HostCommand| {
            command.volume as usize == index
                && matches!(command.kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Unmap)
        };
        for command in self.hosts.abandon(update) {
            self.complete(command, PATH_INACCESSIBLE);
        }
    }
}
