//! One simulated poller: its state machines, its links, its arena, and what waits for room.

use super::arena::Arena;
use super::journal_io::JournalIo;
use super::observer::WriteId;
use crate::proto::command::{RecordRole, Token};
use crate::proto::link::Link;
use crate::proto::node::{Machines, Node};
use crate::proto::types::{BufRef, Nanos, ShardId};
use std::collections::VecDeque;

/// What a link had no room for.
#[derive(Debug)]
pub(super) enum Unsent {
    /// An encoded message.
    Message(Vec<u8>),
    /// A record.
    Record(RecordRole, BufRef, Token),
}

/// A link and what waits for room in it.
pub(super) struct Port {
    /// The link.
    pub(super) link: Link,
    /// Index of the poller at its other end.
    pub(super) peer: usize,
    /// What waits, oldest first; gone when the peer has a new memory.
    pub(super) unsent: VecDeque<Unsent>,
    /// Something happened to it in this turn.
    pub(super) touched: bool,
}

/// A poller.
pub(super) struct Poller {
    /// Its address.
    pub(super) id: ShardId,
    /// Its machines; none while its mover is down.
    pub(super) node: Option<Box<Node>>,
    /// Its arena.
    pub(super) arena: Arena,
    /// Its links to pollers of other movers.
    pub(super) ports: Vec<Port>,
    /// The place in `ports` of the link to each poller.
    pub(super) port_of: Vec<Option<usize>>,
    /// Host updates that wait for room, oldest first.
    pub(super) waiting: VecDeque<WriteId>,
    /// Its journal, at the secondary site; none while its mover is down.
    pub(super) journal: Option<Box<JournalIo>>,
    /// Counts its lives; what was started in an earlier life is void.
    pub(super) life: u32,
    /// The last record of the site that it knows, by its index.
    pub(super) record: usize,
    /// Nothing runs here until then.
    pub(super) stalled_until: Nanos,
    /// When its next wake-up is scheduled.
    pub(super) wake_at: Nanos,
}

impl Poller {
    /// A poller of a mover that is down.
    pub(super) fn new(id: ShardId, arena: Arena, pollers: usize) -> Self {
        Self {
            id,
            node: None,
            arena,
            ports: Vec::new(),
            port_of: vec![None; pollers],
            waiting: VecDeque::new(),
            journal: None,
            life: 0,
            record: 0,
            stalled_until: Nanos(0),
            wake_at: Nanos::NEVER,
        }
    }

    /// When its machines want to be woken, by its mover's clock, and when its links do.
    pub(super) fn next_timeouts(&self) -> (Nanos, Nanos) {
        let Some(node) = &self.node else { return (Nanos::NEVER, Nanos::NEVER) };
        let links = self.ports.iter().map(|port| port.link.next_timeout());
        (node.next_timeout(), links.fold(Nanos::NEVER, Nanos::min))
    }

    /// Wakes its machines, by whose mover's clock it is `here`, and its links.
    pub(super) fn handle_timeout(&mut self, now: Nanos, here: Nanos) {
        for port in &mut self.ports {
            if port.link.next_timeout() <= now {
                port.link.handle_timeout(now);
                port.touched = true;
            }
        }
        if let Some(node) = &mut self.node
            && node.next_timeout() <= here
        {
            node.handle_timeout(here);
        }
    }

    /// Its memory is gone.
    pub(super) fn crash(&mut self, empty: Arena) {
        self.node = None;
        self.life += 1;
        self.arena = empty;
        self.ports.clear();
        self.port_of.fill(None);
        self.wake_at = Nanos::NEVER;
        self.journal = None;
    }

    /// Updates that its machines retain.
    pub(super) fn retained(&self) -> usize {
        match self.node.as_ref().map(|node| &node.machines) {
            Some(Machines::Primary { shard, .. }) => {
                let (own, mirrored) = shard.retained();
                own as usize + mirrored as usize
            }
            Some(Machines::Secondary(secondary)) => secondary.shard().retained_updates(),
            None => 0,
        }
    }
}
