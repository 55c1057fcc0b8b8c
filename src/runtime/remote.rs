//! Reads, comparisons and flushes of hosts at a mover that is not responsible for the volume (G3).
//!
//! The responsible mover alone has the base, and only the base may answer a read (invariant 2). So
//! the poller that a command came to asks the responsible one over their link, which works on it like
//! on a command of its own hosts, and sends the data back as a record. Writes do not come this way:
//! they are forwarded by the protocol.
//!
//! - A [comparison](ask) is a read whose data the asker compares with the host's.
//! - Nothing of it is state of the protocol: an ask that is lost with a peer's memory is asked again,
//!   and one whose answer nobody waits for any more is dropped.
//! - Memory is set aside at launch, in each direction, and shared out evenly among the peers, so that
//!   one that is dead or slow takes nothing from the others. What finds no room waits, in order, at the
//!   asker; the host's queue depth bounds it.
//! - A peer that is silent for long is *lost*: what was asked of it ends with a status that has hosts
//!   take another path.

mod answer;
mod ask;
mod pool;

use std::collections::VecDeque;

use super::host::HostCommand;
use super::messages::RemoteCounters;
use super::plan::REMOTE_POOL_BYTES;
use super::poller::Poller;
use crate::mem::arena::{Arena, ArenaError, LogLimits, SEGMENT_BYTES};
use crate::proto::message::Message;
use crate::proto::types::{BufRef, Nanos, ShardId};

use answer::{Answers, Wanted};
use ask::Asks;
use pool::Pool;

/// Commands that are asked of others, and answered, at once: as many as there is memory for, and a
/// few flushes.
const EXPECTED: usize = 320;

/// What is under way with one shard of another mover of this site.
#[derive(Debug)]
struct Peer {
    shard: ShardId,
    /// Hosts were told that they cannot reach its volumes by this way.
    lost: bool,
    /// Asked of it and not answered, by class of memory.
    asked: [u32; 2],
    /// Commands that wait until less is asked of it.
    waiting: VecDeque<HostCommand>,
    /// Asked by it and under way here, by class of memory.
    serving: [u32; 2],
    /// Asked by it and not begun.
    wanted: VecDeque<Wanted>,
}

/// A poller's part of reads that pass between movers.
#[derive(Debug)]
pub(super) struct Remote {
    peers: Vec<Peer>,
    asks: Asks,
    answers: Answers,
    /// For data that arrive.
    incoming: Pool,
    /// For data that leave.
    outgoing: Pool,
    pub(super) counters: RemoteCounters,
    /// Commands that wait at all peers, and asks that wait here.
    idle_work: usize,
    /// When peers that are lost are looked for next.
    look_at: Nanos,
    /// Asks for volumes that are being taken over here, with the index of the peer.
    unready: Vec<(usize, Wanted)>,
}

impl Remote {
    /// For exchange with `peers`, in two logs of `arena`, which has room for them.
    pub(super) fn new(
        arena: &mut Arena,
        peers: Vec<ShardId>,
        now: Nanos,
    ) -> Result<Self, ArenaError> {
        let limits = match peers.len() {
            0 => LogLimits { reserved_bytes: 0, limit_bytes: SEGMENT_BYTES as u64 },
            _ => LogLimits::exactly(REMOTE_POOL_BYTES),
        };
        let peer = |shard| Peer {
            shard,
            lost: false,
            asked: [0; 2],
            waiting: VecDeque::with_capacity(64),
            serving: [0; 2],
            wanted: VecDeque::with_capacity(64),
        };
        let count = peers.len();
        Ok(Self {
            incoming: Pool::new(arena, limits, count)?,
            outgoing: Pool::new(arena, limits, count)?,
            peers: peers.into_iter().map(peer).collect(),
            asks: Asks::new(EXPECTED),
            answers: Answers::new(EXPECTED),
            counters: RemoteCounters::default(),
            idle_work: 0,
            look_at: now,
            unready: Vec::new(),
        })
    }

    fn index_of(&self, shard: ShardId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.shard == shard)
    }
}

impl Poller {
    /// Gives memory of a record back to where it came from. No frame refers to it any more.
    #[inline]
    pub(super) fn release(arena: &mut Arena, remote: &mut Remote, buf: BufRef) {
        let log = arena.log_of(buf);
        if remote.outgoing.owns(log) {
            remote.outgoing.give_back(buf, arena.payload(buf).len());
        } else if remote.incoming.owns(log) {
            remote.incoming.give_back(buf, arena.payload(buf).len());
        } else {
            arena.free(buf);
        }
    }

    /// Memory for data that arrive, `payload_bytes` of them.
    pub(super) fn room_for_answer(&mut self, payload_bytes: usize) -> Option<BufRef> {
        self.remote.incoming.take(payload_bytes)
    }

    /// Whether a message is one of this exchange; then it is taken.
    #[inline]
    pub(super) fn remote_said(&mut self, from: ShardId, message: &Message) -> bool {
        match *message {
            Message::Ask { ask, kind, volume, extent } => {
                self.asked(from, Wanted { ask, kind, volume, extent });
            }
            Message::Answered { ask, status } => self.answered(from, ask, status),
            _ => return false,
        }
        true
    }

    /// The link to `peer` is up with a new memory at the other end.
    pub(super) fn remote_up(&mut self, peer: ShardId) {
        self.drop_answers(peer);
        self.ask_again(peer);
    }

    /// Goes on with what waits. Returns how much that was.
    #[inline]
    pub(super) fn remote_turn(&mut self) -> u64 {
        if self.remote.idle_work == 0 && self.now < self.remote.look_at {
            return 0;
        }
        self.answer_waiting() + self.ask_waiting() + self.give_up_lost()
    }
}
