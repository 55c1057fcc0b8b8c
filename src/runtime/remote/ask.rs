//! The asking side: a host's command waits here for what the responsible shard answers.

use super::super::host::HostCommand;
use super::super::messages::FromPoller;
use super::super::poller::Poller;
use super::Pool;
use crate::proto::message::{AskKind, Message};
use crate::proto::types::{AskId, BufRef, NvmeStatus, ShardId};
use crate::spdk::NvmeStatus as SpdkStatus;
use crate::spdk::tap::IoKind;
use crate::wire::update::UpdateInfo;

/// Between looks for peers that are lost, in nanoseconds.
const LOOK_NS: u64 = 50_000_000;
/// Low bits of an [`AskId`]: the slot. A poller asks for less at once.
const SLOT_BITS: u32 = 16;

/// A command whose answer is awaited.
#[derive(Debug)]
struct Ask {
    id: AskId,
    /// Index of the peer.
    to: usize,
    class: usize,
    command: HostCommand,
}

/// The asks under way, by slot.
#[derive(Debug)]
pub(super) struct Asks {
    slots: Vec<Option<Ask>>,
    free: Vec<u32>,
    /// Asks ever made.
    count: u64,
}

impl Asks {
    /// For about `expected` at once; more are taken, at the price of an allocation.
    pub(super) fn new(expected: usize) -> Self {
        Self { slots: Vec::with_capacity(expected), free: Vec::with_capacity(expected), count: 0 }
    }

    fn insert(&mut self, to: usize, class: usize, command: HostCommand) -> AskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.count += 1;
        let id = AskId(self.count << SLOT_BITS | u64::from(slot));
        self.slots[slot as usize] = Some(Ask { id, to, class, command });
        id
    }

    /// Takes an ask out. None when nobody waits for it any more.
    fn remove(&mut self, id: AskId, to: usize) -> Option<Ask> {
        let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as usize;
        let ask = self.slots.get_mut(slot)?.take_if(|ask| ask.id == id && ask.to == to)?;
        self.free.push(slot as u32);
        Some(ask)
    }

    fn of(&self, to: usize) -> impl Iterator<Item = &Ask> {
        self.slots.iter().flatten().filter(move |ask| ask.to == to)
    }
}

impl Poller {
    /// Has `owner`, which is responsible for the command's volume, carry out what needs the base.
    pub(in crate::runtime) fn ask(&mut self, owner: ShardId, command: HostCommand) {
        let Some(peer) = self.remote.index_of(owner) else {
            debug_assert!(false, "a responsible shard is a peer: {owner}");
            return self.complete(command, NvmeStatus::INTERNAL);
        };
        if self.refusing {
            self.complete(command, SpdkStatus::ABORTED_SQ_DELETION.into());
        } else if self.net.is_lost(owner, self.now) {
            self.remote.counters.given_up += 1;
            self.complete(command, NvmeStatus::ANA_TRANSITION);
        } else if !self.remote.peers[peer].waiting.is_empty() {
            self.wait_to_ask(peer, command);
        } else if let Err(command) = self.try_ask(peer, command) {
            self.wait_to_ask(peer, command);
        }
    }

    fn wait_to_ask(&mut self, peer: usize, command: HostCommand) {
        self.remote.peers[peer].waiting.push_back(command);
        self.remote.idle_work += 1;
    }

    /// Asks, unless as much is asked of the peer as may be.
    fn try_ask(&mut self, peer: usize, command: HostCommand) -> Result<(), HostCommand> {
        let Some(class) = Pool::class_of(self.data_bytes(&command)) else {
            self.complete(command, SpdkStatus::INVALID_FIELD.into());
            return Ok(());
        };
        let remote = &mut self.remote;
        let place = &mut remote.peers[peer];
        if place.asked[class] >= remote.incoming.share(class) {
            return Err(command);
        }
        place.asked[class] += 1;
        remote.counters.asked += 1;
        let id = remote.asks.insert(peer, class, command);
        self.say_ask(id, peer);
        Ok(())
    }

    /// Bytes that the answer of a command carries.
    fn data_bytes(&self, command: &HostCommand) -> usize {
        match command.kind {
            IoKind::Read | IoKind::Compare => {
                let block = self.volumes[command.volume as usize].block_bytes as usize;
                command.extent.blocks as usize * block
            }
            _ => 0,
        }
    }

    fn say_ask(&mut self, id: AskId, peer: usize) {
        let slot = (id.0 & ((1 << SLOT_BITS) - 1)) as usize;
        let Some(Some(ask)) = self.remote.asks.slots.get(slot) else { return };
        let kind = match ask.command.kind {
            IoKind::Flush => AskKind::Flush,
            _ => AskKind::Read,
        };
        let volume = self.volumes[ask.command.volume as usize].counters.volume;
        let message = Message::Ask { ask: id, kind, volume, extent: ask.command.extent };
        self.net.send_message(self.remote.peers[peer].shard, &message);
    }

    /// The host command of an ask that has its answer.
    fn asked_for(&mut self, from: ShardId, id: AskId) -> Option<HostCommand> {
        let peer = self.remote.index_of(from)?;
        let ask = self.remote.asks.remove(id, peer)?;
        self.remote.peers[peer].asked[ask.class] -= 1;
        Some(ask.command)
    }

    /// An ask was answered without data.
    pub(super) fn answered(&mut self, from: ShardId, id: AskId, status: NvmeStatus) {
        let Some(command) = self.asked_for(from, id) else { return };
        let short = status.is_ok() && command.kind != IoKind::Flush;
        self.complete(command, if short { NvmeStatus::INTERNAL } else { status });
    }

    /// Data arrived and are verified; the record goes back to its pool afterwards.
    pub(in crate::runtime) fn answer_arrived(
        &mut self,
        from: ShardId,
        info: &UpdateInfo,
        buf: BufRef,
    ) {
        let Some(command) = self.asked_for(from, AskId(info.forward.0)) else { return };
        let volume = &self.volumes[command.volume as usize];
        let fits = info.volume == volume.counters.volume
            && info.extent == command.extent
            && info.block_bytes == volume.block_bytes;
        let bytes = info.payload_len as usize;
        let status = match command.kind {
            IoKind::Read if fits && command.iovs.fill_from(&self.arena, buf, bytes) => {
                NvmeStatus::SUCCESS
            }
            IoKind::Compare if fits => match command.iovs.equal(&self.arena, buf, bytes) {
                true => NvmeStatus::SUCCESS,
                false => SpdkStatus::COMPARE_FAILURE.into(),
            },
            _ => NvmeStatus::INTERNAL,
        };
        self.complete(command, status);
    }

    /// Asks what waited, as far as there is room now.
    pub(super) fn ask_waiting(&mut self) -> u64 {
        let mut done = 0;
        for peer in 0..self.remote.peers.len() {
            while let Some(command) = self.remote.peers[peer].waiting.pop_front() {
                self.remote.idle_work -= 1;
                if let Err(command) = self.try_ask(peer, command) {
                    self.remote.peers[peer].waiting.push_front(command);
                    self.remote.idle_work += 1;
                    break;
                }
                done += 1;
            }
        }
        done
    }

    /// The peer has a new memory: what was asked of it is asked again.
    pub(super) fn ask_again(&mut self, peer: ShardId) {
        let Some(index) = self.remote.index_of(peer) else { return };
        let ids: Vec<AskId> = self.remote.asks.of(index).map(|ask| ask.id).collect();
        for id in ids {
            self.say_ask(id, index);
        }
    }

    /// Ends what was asked of peers that are lost.
    pub(super) fn give_up_lost(&mut self) -> u64 {
        if self.now < self.remote.look_at {
            return 0;
        }
        self.remote.look_at = self.now.after(LOOK_NS);
        let mut done = 0;
        for peer in 0..self.remote.peers.len() {
            let shard = self.remote.peers[peer].shard;
            let lost = self.net.is_lost(shard, self.now);
            if std::mem::replace(&mut self.remote.peers[peer].lost, lost) != lost {
                self.tell(FromPoller::Lost { shard: self.me, peer: shard, lost });
            }
            if lost {
                let ended = self.end_asks(peer, NvmeStatus::ANA_TRANSITION);
                let ended = ended + self.end_waiting_for(shard);
                self.remote.counters.given_up += ended;
                done += ended;
            }
        }
        done
    }

    /// Takes back what was asked of peers that `gone` names, or waits to be.
    pub(in crate::runtime) fn asks_gone(
        &mut self,
        gone: impl Fn(ShardId) -> bool,
    ) -> Vec<HostCommand> {
        let mut commands = Vec::new();
        for peer in 0..self.remote.peers.len() {
            let shard = self.remote.peers[peer].shard;
            if !gone(shard) {
                continue;
            }
            let ids: Vec<AskId> = self.remote.asks.of(peer).map(|ask| ask.id).collect();
            commands.extend(ids.into_iter().filter_map(|id| self.asked_for(shard, id)));
            let waiting = std::mem::take(&mut self.remote.peers[peer].waiting);
            self.remote.idle_work -= waiting.len();
            commands.extend(waiting);
        }
        commands
    }

    /// Ends everything that is asked or waits to be: the mover lets its hosts go.
    pub(in crate::runtime) fn end_all_asks(&mut self) {
        for peer in 0..self.remote.peers.len() {
            self.end_asks(peer, SpdkStatus::ABORTED_SQ_DELETION.into());
        }
    }

    #[cold]
    fn end_asks(&mut self, peer: usize, status: NvmeStatus) -> u64 {
        let mut done = 0;
        let ids: Vec<AskId> = self.remote.asks.of(peer).map(|ask| ask.id).collect();
        for id in ids {
            if let Some(command) = self.asked_for(self.remote.peers[peer].shard, id) {
                self.complete(command, status);
                done += 1;
            }
        }
        while let Some(command) = self.remote.peers[peer].waiting.pop_front() {
            self.remote.idle_work -= 1;
            self.complete(command, status);
            done += 1;
        }
        done
    }
}
