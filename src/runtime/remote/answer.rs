//! The answering side: what another mover's poller asks is done at the base, as if a host of this
//! mover had asked.

use super::super::contexts::IoContext;
use super::super::excluded::PATH_INACCESSIBLE;
use super::super::host::READ_OF_WRITE_ONLY_LEG;
use super::super::poller::Poller;
use super::Pool;
use crate::proto::command::{RecordRole, Token};
use crate::proto::message::{AskKind, Message};
use crate::proto::types::{
    AskId, BufRef, Extent, ForwardId, GroupId, MapVersion, NvmeStatus, Seq, SetId, ShardId,
    UpdateKind, VolumeId,
};
use crate::spdk::NvmeStatus as SpdkStatus;
use crate::spdk::env::IoBuf;
use crate::spdk::error::Submit;
use crate::wire::update::{UPDATE_HEADER_BYTES, UpdateHeader, UpdateInfo};
use zerocopy::IntoBytes;

/// What a peer asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) ask: AskId,
    pub(super) kind: AskKind,
    pub(super) volume: VolumeId,
    pub(super) extent: Extent,
}

/// How far an answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// At the base.
    Working,
    /// Its data travel.
    Sending,
    /// At the base still, but whoever asked has lost its memory.
    Unwanted,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    wanted: Wanted,
    /// Index of the peer.
    to: usize,
    /// Index of the volume.
    volume: u32,
    class: usize,
    buf: Option<BufRef>,
    phase: Phase,
}

/// The answers under way, by slot.
#[derive(Debug)]
pub(super) struct Answers {
    slots: Vec<Option<Answer>>,
    free: Vec<u32>,
}

impl Answers {
    /// For about `expected` at once; more are taken, at the price of an allocation.
    pub(super) fn new(expected: usize) -> Self {
        Self { slots: Vec::with_capacity(expected), free: Vec::with_capacity(expected) }
    }

    fn insert(&mut self, answer: Answer) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(answer);
        slot
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Answer> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn remove(&mut self, slot: u32) -> Option<Answer> {
        let answer = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        Some(answer)
    }
}

/// What became of an attempt to begin.
enum Begun {
    /// It is under way.
    Yes,
    /// No memory or request object is free: it waits.
    Later,
    /// It ends at once, with this status.
    Ended(NvmeStatus),
}

impl Poller {
    /// A peer asks for something.
    pub(super) fn asked(&mut self, from: ShardId, wanted: Wanted) {
        let Some(peer) = self.remote.index_of(from) else { return };
        let index = self.volume_index(wanted.volume);
        if index.is_some_and(|index| !self.volumes[index].ready) {
            self.remote.unready.push((peer, wanted));
            return;
        }
        if !self.remote.peers[peer].wanted.is_empty() || !self.begin(peer, wanted) {
            self.remote.peers[peer].wanted.push_back(wanted);
            self.remote.idle_work += 1;
        }
    }

    /// Takes again what waited for a volume to be taken over.
    pub(in crate::runtime) fn ask_unready(&mut self) {
        for (peer, wanted) in std::mem::take(&mut self.remote.unready) {
            self.asked(self.remote.peers[peer].shard, wanted);
        }
    }

    /// Begins with what waited, as far as there is room now.
    pub(super) fn answer_waiting(&mut self) -> u64 {
        let mut done = 0;
        for peer in 0..self.remote.peers.len() {
            while let Some(wanted) = self.remote.peers[peer].wanted.front().copied() {
                if !self.begin(peer, wanted) {
                    break;
                }
                self.remote.peers[peer].wanted.pop_front();
                self.remote.idle_work -= 1;
                done += 1;
            }
        }
        done
    }

    /// False when it must wait.
    fn begin(&mut self, peer: usize, wanted: Wanted) -> bool {
        match self.try_begin(peer, wanted) {
            Begun::Yes => true,
            Begun::Later => false,
            Begun::Ended(status) => {
                self.say_answered(peer, wanted.ask, status);
                true
            }
        }
    }

    fn try_begin(&mut self, peer: usize, wanted: Wanted) -> Begun {
        let own = |index: &usize| {
            let volume = &self.volumes[*index];
            volume.owner.is_none() || volume.left
        };
        let Some(index) = self.volume_index(wanted.volume).filter(own).filter(|_| !self.refusing)
        else {
            return Begun::Ended(NvmeStatus::ANA_TRANSITION);
        };
        let volume = &mut self.volumes[index];
        if volume.excluded {
            return Begun::Ended(PATH_INACCESSIBLE);
        }
        let bytes = match wanted.kind {
            AskKind::Read => wanted.extent.blocks as usize * volume.block_bytes as usize,
            AskKind::Flush => 0,
        };
        let (true, Some(class)) =
            (wanted.kind == AskKind::Flush || bytes > 0, Pool::class_of(bytes))
        else {
            return Begun::Ended(SpdkStatus::INVALID_FIELD.into());
        };
        let Some(channel) = &volume.channel else {
            return Begun::Ended(match wanted.kind {
                AskKind::Read => READ_OF_WRITE_ONLY_LEG,
                AskKind::Flush => NvmeStatus::SUCCESS,
            });
        };
        let remote = &mut self.remote;
        if remote.peers[peer].serving[class] >= remote.outgoing.share(class) {
            return Begun::Later;
        }
        let buf = match wanted.kind {
            AskKind::Flush if !volume.geometry_flush => return Begun::Ended(NvmeStatus::SUCCESS),
            AskKind::Flush => None,
            AskKind::Read => match remote.outgoing.take(bytes) {
                Some(buf) => Some(buf),
                None => return Begun::Later,
            },
        };
        let phase = Phase::Working;
        let answer = Answer { wanted, to: peer, volume: index as u32, class, buf, phase };
        let slot = remote.answers.insert(answer);
        let context = self.contexts.insert(IoContext::Answer(slot));
        let submitted = match buf {
            Some(buf) => {
                let memory = IoBuf::of_payload(&self.arena, buf, bytes);
                channel.read(memory, wanted.extent.lba, context)
            }
            None => channel.flush(context),
        };
        if let Err(why) = submitted {
            self.contexts.remove(context);
            remote.answers.remove(slot);
            if let Some(buf) = buf {
                remote.outgoing.give_back(buf, self.arena.payload(buf).len());
            }
            return match why {
                Submit::Busy => Begun::Later,
                Submit::Refused(_) => Begun::Ended(NvmeStatus::INTERNAL),
            };
        }
        remote.peers[peer].serving[class] += 1;
        remote.counters.answered += 1;
        volume.counters.reads += u64::from(wanted.kind == AskKind::Read);
        volume.counters.bytes_read += bytes as u64;
        Begun::Yes
    }

    fn say_answered(&mut self, peer: usize, ask: AskId, status: NvmeStatus) {
        let to = self.remote.peers[peer].shard;
        self.net.send_message(to, &Message::Answered { ask, status });
    }

    /// The base has done what was asked of the volume whose index is returned.
    pub(in crate::runtime) fn answer_done(
        &mut self,
        slot: u32,
        status: NvmeStatus,
    ) -> Option<usize> {
        let Some(answer) = self.remote.answers.get_mut(slot) else {
            debug_assert!(false, "an answer is kept until the base has done it");
            return None;
        };
        let volume = answer.volume as usize;
        let to = self.remote.peers[answer.to].shard;
        let wanted = answer.phase == Phase::Working && self.net.is_up(to);
        match answer.buf {
            Some(buf) if wanted && status.is_ok() => {
                answer.phase = Phase::Sending;
                let answer = *answer;
                self.send_answer(slot, &answer, buf);
            }
            _ => {
                if wanted {
                    let (peer, ask) = (answer.to, answer.wanted.ask);
                    self.say_answered(peer, ask, status);
                }
                self.end_answer(slot);
            }
        }
        Some(volume)
    }

    /// Sends the data, behind a header that says what they are.
    fn send_answer(&mut self, slot: u32, answer: &Answer, buf: BufRef) {
        let Wanted { ask, extent, volume, .. } = answer.wanted;
        let block_bytes = self.volumes[answer.volume as usize].block_bytes;
        let payload_len = extent.blocks * block_bytes;
        let payload = &self.arena.payload(buf)[..payload_len as usize];
        let payload_crc = self.arena.copier().crc32c(payload);
        let info = UpdateInfo {
            kind: UpdateKind::Write,
            fua: false,
            payload_crc,
            payload_len,
            volume,
            group: GroupId(0),
            origin: self.me.mover,
            owner: self.me,
            epoch: self.epoch,
            map_version: MapVersion(0),
            set: SetId(0),
            seq: Seq(0),
            extent,
            block_bytes,
            list_seq: 0,
            time_ns: 0,
            time_error_ns: 0,
            forward: ForwardId(ask.0),
            described: false,
            not_before: SetId(0),
        };
        let header = UpdateHeader::seal(&info);
        self.arena.header_mut(buf).copy_from_slice(header.as_bytes());
        let to = self.remote.peers[answer.to].shard;
        let len = UPDATE_HEADER_BYTES as u32 + payload_len;
        self.net.send_record(to, RecordRole::Answer, buf, len, Token(u64::from(slot)));
    }

    /// Whether a delivered record is an answer; then it is over.
    #[inline]
    pub(in crate::runtime) fn answer_delivered(&mut self, token: Token, buf: BufRef) -> bool {
        if !self.remote.outgoing.owns(self.arena.log_of(buf)) {
            return false;
        }
        self.end_answer(token.0 as u32);
        true
    }

    /// What is under way for a peer that lost its memory is wanted no more, nor is what waits.
    pub(in crate::runtime) fn drop_answers(&mut self, peer: ShardId) {
        let Some(index) = self.remote.index_of(peer) else { return };
        let wanted = &mut self.remote.peers[index].wanted;
        self.remote.idle_work -= wanted.len();
        wanted.clear();
        self.remote.unready.retain(|(of, _)| *of != index);
        for slot in 0..self.remote.answers.slots.len() as u32 {
            match self.remote.answers.get_mut(slot) {
                Some(answer) if answer.to == index && answer.phase == Phase::Working => {
                    answer.phase = Phase::Unwanted;
                }
                Some(answer) if answer.to == index && answer.phase == Phase::Sending => {
                    self.end_answer(slot);
                }
                _ => {}
            }
        }
    }

    fn end_answer(&mut self, slot: u32) {
        let Some(answer) = self.remote.answers.remove(slot) else { return };
        self.remote.peers[answer.to].serving[answer.class] -= 1;
        if let Some(buf) = answer.buf
            && self.net.may_reuse(buf)
        {
            self.remote.outgoing.give_back(buf, self.arena.payload(buf).len());
        }
    }
}
