//! A new epoch at a poller (invariant 9): links, volumes and hosts' commands follow the record that the
//! site has agreed on; the protocol does the rest ([`crate::proto::node::Node::enter`]).
//!
//! All pollers of a mover are told the same record by the control thread, each enters it at a turn of
//! its own. Links between members outlast the epoch, with what is under way on them. A link to a mover
//! that left is closed, and what hosts had asked of it is asked of whoever is responsible now.
//!
//! A volume that is being taken over answers nothing until its base is up to date: reads and flushes
//! wait here for that, updates in the volume's queue.

use std::sync::Arc;

use super::host::HostCommand;
use super::messages::FromPoller;
use super::poller::Poller;
use crate::proto::boundary::BoundaryConfig;
use crate::proto::command::Token;
use crate::proto::membership::SiteRecord;
use crate::proto::types::{Epoch, Nanos, NvmeStatus, ShardId, VolumeId};

/// Between looks whether the shard is whole, in nanoseconds: a look goes through all retained updates.
const LOOK_NS: u64 = 2_000_000;

/// Where the poller stands in the present epoch.
#[derive(Debug, Default)]
pub(super) struct Entered {
    /// The epoch of which the control thread was told that the shard is whole.
    whole: Epoch,
    look_at: Nanos,
    /// Commands of hosts for volumes that are being taken over.
    unready: Vec<HostCommand>,
}

impl Poller {
    /// Enters the epoch of `record`; `engine` is for the boundary engine, if it runs here then.
    pub(super) fn enter(&mut self, record: &Arc<SiteRecord>, engine: &BoundaryConfig) {
        if record.epoch <= self.epoch || self.node.primary().is_none() {
            return;
        }
        let before = std::mem::replace(&mut self.epoch, record.epoch);
        self.enter_links(record, before);
        let mut again = std::mem::take(&mut self.entered.unready);
        again.extend(self.asks_gone(|peer| record.left_since(peer.mover, before)));
        self.node.enter(self.now, record, engine);
        if let Some(shard) = self.node.primary() {
            for (index, volume) in (0..).zip(&mut self.volumes) {
                // While it moves, that is where it is as far as this shard has carried the move out.
                volume.owner = Some(shard.owner_of(index)).filter(|owner| *owner != self.me);
                // What comes here is not ready until the protocol says it.
                volume.ready = volume.owner.is_some() || shard.is_ready(index);
                volume.left = false;
            }
        }
        for command in again {
            self.serve(command);
        }
        self.ask_unready();
        tracing::info!(shard = %self.me, epoch = %self.epoch, "entered");
    }

    /// The record of the present epoch has other moves to carry out than before.
    pub(super) fn planned(&mut self, record: &SiteRecord) {
        self.node.planned(record);
    }

    /// A volume has a new owner from the present boundary on (F3).
    pub(super) fn volume_moved(&mut self, volume: VolumeId, from: ShardId, to: ShardId) {
        let Some(index) = self.volume_index(volume) else { return };
        let volume = &mut self.volumes[index];
        volume.owner = Some(to).filter(|to| *to != self.me);
        volume.ready = volume.owner.is_some();
        volume.left = from == self.me;
    }

    /// A command for a volume that is being taken over here waits.
    pub(super) fn wait_until_ready(&mut self, command: HostCommand) {
        self.entered.unready.push(command);
    }

    /// The base of a volume that was taken over is up to date, or a volume that moved has arrived.
    pub(super) fn volume_ready(&mut self, volume: VolumeId) {
        let Some(index) = self.volume_index(volume) else { return };
        self.volumes[index].ready = true;
        for command in std::mem::take(&mut self.entered.unready) {
            self.serve(command);
        }
        self.ask_unready();
    }

    /// Commands of hosts that wait for a volume to be up to date, taken out.
    pub(super) fn take_unready(&mut self) -> Vec<HostCommand> {
        std::mem::take(&mut self.entered.unready)
    }

    /// The protocol wants everybody outside the epoch kept from a base: the control thread's work.
    #[cold]
    pub(super) fn fence(&mut self, volume: VolumeId, token: Token) {
        self.tell(FromPoller::Fence { shard: self.me, volume, token });
    }

    /// Nobody but members can change the base of the volume that `token` stands for.
    pub(super) fn fenced(&mut self, token: Token) {
        self.node.handle_written(self.now, token, NvmeStatus::SUCCESS);
    }

    /// Tells the control thread once per epoch that the shard is whole. Called now and then.
    pub(super) fn look_whole(&mut self) {
        if self.entered.whole == self.epoch || self.now < self.entered.look_at {
            return;
        }
        self.entered.look_at = self.now.after(LOOK_NS);
        if self.node.is_whole() {
            self.entered.whole = self.epoch;
            let (shard, epoch) = (self.me, self.epoch);
            self.tell(FromPoller::Whole { shard, epoch });
        }
    }
}
