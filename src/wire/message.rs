//! The bytes of control messages: an 8-byte envelope and a body, little-endian.
//!
//! The link's packet header carries their checksum. Decoding accepts exactly what encoding
//! produces: a short, long or out-of-range message is refused with the reason.

use crate::proto::limits::{FACTS_PER_PART, MESSAGE_BYTES_MAX, SETS_AHEAD_MAX};
use crate::proto::message::{AskKind, BrokenReason, FactsPart, Held, Kept, Message, VolumeFacts};
use crate::proto::types::{
    AskId, Epoch, Extent, ForwardId, GroupId, MapVersion, NvmeStatus, Seq, SetId, ShardId, VolumeId,
};
use alloc::vec::Vec;

/// The envelope's version.
pub const MESSAGE_VERSION: u8 = 1;
/// Bytes of the envelope.
pub const ENVELOPE_BYTES: usize = 8;

/// Why a message was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageError {
    /// It ends before its last field.
    #[error("message of kind {kind} ends early, after {len} bytes")]
    Short {
        /// The kind byte; 0 when even that is missing.
        kind: u8,
        /// The message's length.
        len: usize,
    },
    /// Bytes follow its last field.
    #[error("message of kind {kind} has {extra} bytes too many")]
    Long {
        /// The kind byte.
        kind: u8,
        /// Bytes left over.
        extra: usize,
    },
    /// A kind this build does not know.
    #[error("message kind {found} is unknown")]
    Kind {
        /// What stood there.
        found: u8,
    },
    /// A version this build does not know.
    #[error("message version {found}, this build reads {MESSAGE_VERSION}")]
    Version {
        /// What stood there.
        found: u8,
    },
    /// A field is outside its range.
    #[error("field {field} of message kind {kind} is out of range: {found}")]
    Field {
        /// The kind byte.
        kind: u8,
        /// The field's name.
        field: &'static str,
        /// What stood there.
        found: u64,
    },
}

const BUDGET: u8 = 1;
const PREPARE: u8 = 2;
const PREPARED: u8 = 3;
const RELEASE: u8 = 4;
const CLOSED: u8 = 5;
const MANIFEST: u8 = 6;
const CONFIRMED: u8 = 7;
const CLOSE_NOW: u8 = 9;
const STORED: u8 = 10;
const APPLY: u8 = 11;
const APPLIED: u8 = 12;
const RESUME: u8 = 13;
const BROKEN: u8 = 14;
const PAUSE_APPLY: u8 = 15;
const JOURNAL_ROOM: u8 = 16;
const FORWARDED: u8 = 17;
const NOT_RESPONSIBLE: u8 = 18;
const STOPPING: u8 = 19;
const LEAD: u8 = 20;
const SURVEY: u8 = 21;
const MARKS: u8 = 22;
const GREET: u8 = 23;
const PLANNED: u8 = 24;
const HAND_OFF: u8 = 25;
const SETTLED: u8 = 26;
const TIME_ASK: u8 = 27;
const TIME_ANSWER: u8 = 28;
const ASK: u8 = 40;
const ANSWERED: u8 = 41;

/// Appends the encoded message to `out`, which the caller clears.
pub fn encode(epoch: Epoch, message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0, MESSAGE_VERSION, 0, 0]);
    out.extend_from_slice(&epoch.0.to_le_bytes());
    let kind = body(message, out);
    out[start] = kind;
    debug_assert!(out.len() - start <= MESSAGE_BYTES_MAX);
}

fn body(message: &Message, out: &mut Vec<u8>) -> u8 {
    let group_set = |out: &mut Vec<u8>, group: GroupId, set: SetId| {
        out.extend_from_slice(&group.0.to_le_bytes());
        out.extend_from_slice(&set.0.to_le_bytes());
    };
    match message {
        Message::Budget { bytes } => {
            out.extend_from_slice(&bytes.to_le_bytes());
            BUDGET
        }
        Message::Prepare { group, set, map_version } => {
            group_set(out, *group, *set);
            out.extend_from_slice(&map_version.0.to_le_bytes());
            PREPARE
        }
        Message::Prepared { group, set } => {
            group_set(out, *group, *set);
            PREPARED
        }
        Message::Release { group, set } => {
            group_set(out, *group, *set);
            RELEASE
        }
        Message::Closed { group, set, facts } => {
            group_set(out, *group, *set);
            encode_facts(facts, out);
            CLOSED
        }
        Message::Manifest { group, set, cut_time_ns, facts } => {
            group_set(out, *group, *set);
            out.extend_from_slice(&cut_time_ns.to_le_bytes());
            encode_facts(facts, out);
            MANIFEST
        }
        Message::Confirmed { group, set } => {
            group_set(out, *group, *set);
            CONFIRMED
        }
        Message::CloseNow { group, set, needed } => {
            group_set(out, *group, *set);
            out.push(u8::from(*needed));
            CLOSE_NOW
        }
        Message::Stored { group, set, not_before } => {
            group_set(out, *group, *set);
            out.extend_from_slice(&not_before.0.to_le_bytes());
            STORED
        }
        Message::Apply { group, set } => {
            group_set(out, *group, *set);
            APPLY
        }
        Message::Applied { group, set } => {
            group_set(out, *group, *set);
            APPLIED
        }
        Message::Resume { group, stored, applied, not_before } => {
            group_set(out, *group, *stored);
            out.extend_from_slice(&applied.0.to_le_bytes());
            out.extend_from_slice(&not_before.0.to_le_bytes());
            RESUME
        }
        Message::Broken { group, reason } => {
            out.extend_from_slice(&group.0.to_le_bytes());
            out.push(*reason as u8);
            BROKEN
        }
        Message::PauseApply { group, paused } => {
            out.extend_from_slice(&group.0.to_le_bytes());
            out.push(u8::from(*paused));
            PAUSE_APPLY
        }
        Message::JournalRoom { scarce } => {
            out.push(u8::from(*scarce));
            JOURNAL_ROOM
        }
        Message::Forwarded { forward, status } => {
            out.extend_from_slice(&forward.0.to_le_bytes());
            out.extend_from_slice(&[status.sct, status.sc]);
            FORWARDED
        }
        Message::NotResponsible { forward, owner, map_version } => {
            out.extend_from_slice(&forward.0.to_le_bytes());
            out.extend_from_slice(&owner.mover.0.to_le_bytes());
            out.extend_from_slice(&[owner.poller, 0]);
            out.extend_from_slice(&map_version.0.to_le_bytes());
            NOT_RESPONSIBLE
        }
        Message::Stopping { drained } => {
            out.push(u8::from(*drained));
            STOPPING
        }
        Message::Ask { ask, kind, volume, extent } => {
            out.extend_from_slice(&ask.0.to_le_bytes());
            out.extend_from_slice(&volume.0.to_le_bytes());
            out.extend_from_slice(&extent.lba.to_le_bytes());
            out.extend_from_slice(&extent.blocks.to_le_bytes());
            out.push(*kind as u8);
            ASK
        }
        Message::Answered { ask, status } => {
            out.extend_from_slice(&ask.0.to_le_bytes());
            out.extend_from_slice(&[status.sct, status.sc]);
            ANSWERED
        }
        Message::Lead => LEAD,
        Message::Survey { group, confirmed, open, part, parts, volumes } => {
            group_set(out, *group, *confirmed);
            out.extend_from_slice(&open.0.to_le_bytes());
            out.extend_from_slice(&part.to_le_bytes());
            out.extend_from_slice(&parts.to_le_bytes());
            encode_held(volumes, out);
            SURVEY
        }
        Message::Marks { volumes } => {
            encode_held(volumes, out);
            MARKS
        }
        Message::Greet { group, confirmed, open, map_version } => {
            group_set(out, *group, *confirmed);
            out.extend_from_slice(&open.0.to_le_bytes());
            out.extend_from_slice(&map_version.0.to_le_bytes());
            GREET
        }
        Message::Planned { map_version } => {
            out.extend_from_slice(&map_version.0.to_le_bytes());
            PLANNED
        }
        Message::HandOff { group, map_version, volume, next, lost_from, confirmed, lasts } => {
            out.extend_from_slice(&group.0.to_le_bytes());
            out.extend_from_slice(&map_version.0.to_le_bytes());
            out.extend_from_slice(&volume.0.to_le_bytes());
            out.extend_from_slice(&next.0.to_le_bytes());
            out.extend_from_slice(&lost_from.0.to_le_bytes());
            out.extend_from_slice(&confirmed.0.to_le_bytes());
            out.extend_from_slice(&(lasts.len() as u16).to_le_bytes());
            for (set, last) in lasts {
                out.extend_from_slice(&set.0.to_le_bytes());
                out.extend_from_slice(&last.0.to_le_bytes());
            }
            HAND_OFF
        }
        Message::Settled { group, map_version } => {
            out.extend_from_slice(&group.0.to_le_bytes());
            out.extend_from_slice(&map_version.0.to_le_bytes());
            SETTLED
        }
        Message::TimeAsk { asked, latest_ns } => {
            out.extend_from_slice(&asked.to_le_bytes());
            out.extend_from_slice(&latest_ns.to_le_bytes());
            TIME_ASK
        }
        Message::TimeAnswer { asked, time_ns, firm } => {
            out.extend_from_slice(&asked.to_le_bytes());
            out.extend_from_slice(&time_ns.to_le_bytes());
            out.push(u8::from(*firm));
            TIME_ANSWER
        }
    }
}

fn encode_held(volumes: &[Held], out: &mut Vec<u8>) {
    out.extend_from_slice(&(volumes.len() as u16).to_le_bytes());
    for held in volumes {
        out.extend_from_slice(&held.volume.0.to_le_bytes());
        out.extend_from_slice(&held.copies.to_le_bytes());
        out.extend_from_slice(&held.confirmed.0.to_le_bytes());
        out.extend_from_slice(&held.heard.0.to_le_bytes());
        let (set, first, last) =
            held.kept.map_or((0, 0, 0), |kept| (kept.set.0, kept.first.0, kept.last.0));
        for field in [set, first, last] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
}

fn encode_facts(part: &FactsPart, out: &mut Vec<u8>) {
    out.extend_from_slice(&part.part.to_le_bytes());
    out.extend_from_slice(&part.parts.to_le_bytes());
    out.extend_from_slice(&(part.facts.len() as u16).to_le_bytes());
    for fact in &part.facts {
        out.extend_from_slice(&fact.volume.0.to_le_bytes());
        out.extend_from_slice(&fact.first.0.to_le_bytes());
        out.extend_from_slice(&fact.last.0.to_le_bytes());
        out.extend_from_slice(&fact.bytes.to_le_bytes());
        out.extend_from_slice(&fact.digest.to_le_bytes());
        out.extend_from_slice(&(fact.voids.len() as u16).to_le_bytes());
        for seq in &fact.voids {
            out.extend_from_slice(&seq.0.to_le_bytes());
        }
    }
}

/// Reads one message that fills `bytes`.
///
/// # Errors
/// Says which rule the bytes break.
pub fn decode(bytes: &[u8]) -> Result<(Epoch, Message), MessageError> {
    let mut r = Reader { kind: bytes.first().copied().unwrap_or(0), all: bytes.len(), rest: bytes };
    let kind = r.u8()?;
    let version = r.u8()?;
    if version != MESSAGE_VERSION {
        return Err(MessageError::Version { found: version });
    }
    let reserved = r.u16()?;
    if reserved != 0 {
        return Err(r.field("reserved", u64::from(reserved)));
    }
    let epoch = Epoch(r.u32()?);
    let message = match kind {
        BUDGET => Message::Budget { bytes: r.u64()? },
        PREPARE => {
            Message::Prepare { group: r.group()?, set: r.set()?, map_version: MapVersion(r.u32()?) }
        }
        PREPARED => Message::Prepared { group: r.group()?, set: r.set()? },
        RELEASE => Message::Release { group: r.group()?, set: r.set()? },
        CLOSED => Message::Closed { group: r.group()?, set: r.set()?, facts: r.facts()? },
        MANIFEST => Message::Manifest {
            group: r.group()?,
            set: r.set()?,
            cut_time_ns: r.u64()?,
            facts: r.facts()?,
        },
        CONFIRMED => Message::Confirmed { group: r.group()?, set: r.set()? },
        CLOSE_NOW => {
            Message::CloseNow { group: r.group()?, set: r.set()?, needed: r.flag("needed")? }
        }
        STORED => Message::Stored { group: r.group()?, set: r.set()?, not_before: r.set()? },
        APPLY => Message::Apply { group: r.group()?, set: r.set()? },
        APPLIED => Message::Applied { group: r.group()?, set: r.set()? },
        RESUME => Message::Resume {
            group: r.group()?,
            stored: r.set()?,
            applied: r.set()?,
            not_before: r.set()?,
        },
        BROKEN => {
            let group = r.group()?;
            let value = r.u8()?;
            let reason = BrokenReason::from_wire(value)
                .ok_or_else(|| r.field("reason", u64::from(value)))?;
            Message::Broken { group, reason }
        }
        PAUSE_APPLY => Message::PauseApply { group: r.group()?, paused: r.flag("paused")? },
        JOURNAL_ROOM => Message::JournalRoom { scarce: r.flag("scarce")? },
        FORWARDED => {
            let forward = ForwardId(r.u64()?);
            Message::Forwarded { forward, status: NvmeStatus { sct: r.u8()?, sc: r.u8()? } }
        }
        NOT_RESPONSIBLE => {
            let forward = ForwardId(r.u64()?);
            let owner = ShardId::new(r.u16()?, r.u8()?);
            match r.u8()? {
                0 => {}
                found => return Err(r.field("reserved", u64::from(found))),
            }
            let map_version = MapVersion(r.u32()?);
            Message::NotResponsible { forward, owner, map_version }
        }
        STOPPING => Message::Stopping { drained: r.flag("drained")? },
        ASK => {
            let (ask, volume) = (AskId(r.u64()?), VolumeId(r.u32()?));
            let extent = Extent { lba: r.u64()?, blocks: r.u32()? };
            let kind = r.u8()?;
            let kind =
                AskKind::from_wire(kind).ok_or_else(|| r.field("ask kind", u64::from(kind)))?;
            Message::Ask { ask, kind, volume, extent }
        }
        ANSWERED => {
            let ask = AskId(r.u64()?);
            Message::Answered { ask, status: NvmeStatus { sct: r.u8()?, sc: r.u8()? } }
        }
        LEAD => Message::Lead,
        SURVEY => {
            let (group, confirmed, open) = (r.group()?, r.set()?, r.set()?);
            let (part, parts) = (r.u16()?, r.u16()?);
            if part >= parts {
                return Err(r.field("part", u64::from(part)));
            }
            Message::Survey { group, confirmed, open, part, parts, volumes: r.held()? }
        }
        MARKS => Message::Marks { volumes: r.held()? },
        GREET => Message::Greet {
            group: r.group()?,
            confirmed: r.set()?,
            open: r.set()?,
            map_version: MapVersion(r.u32()?),
        },
        PLANNED => Message::Planned { map_version: MapVersion(r.u32()?) },
        HAND_OFF => Message::HandOff {
            group: r.group()?,
            map_version: MapVersion(r.u32()?),
            volume: VolumeId(r.u32()?),
            next: Seq(r.u64()?),
            lost_from: Seq(r.u64()?),
            confirmed: Seq(r.u64()?),
            lasts: r.lasts()?,
        },
        SETTLED => Message::Settled { group: r.group()?, map_version: MapVersion(r.u32()?) },
        TIME_ASK => Message::TimeAsk { asked: r.u64()?, latest_ns: r.u64()? },
        TIME_ANSWER => {
            Message::TimeAnswer { asked: r.u64()?, time_ns: r.u64()?, firm: r.flag("firm")? }
        }
        found => return Err(MessageError::Kind { found }),
    };
    if r.rest.is_empty() {
        Ok((epoch, message))
    } else {
        Err(MessageError::Long { kind, extra: r.rest.len() })
    }
}

struct Reader<'a> {
    kind: u8,
    all: usize,
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(MessageError::Short { kind: self.kind, len: self.all });
        };
        self.rest = rest;
        Ok(*head)
    }
    fn u8(&mut self) -> Result<u8, MessageError> {
        self.take::<1>().map(|b| b[0])
    }
    fn u16(&mut self) -> Result<u16, MessageError> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, MessageError> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, MessageError> {
        self.take().map(u64::from_le_bytes)
    }
    fn flag(&mut self, field: &'static str) -> Result<bool, MessageError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.field(field, u64::from(found))),
        }
    }
    fn group(&mut self) -> Result<GroupId, MessageError> {
        self.u16().map(GroupId)
    }
    fn set(&mut self) -> Result<SetId, MessageError> {
        self.u64().map(SetId)
    }
    fn field(&self, field: &'static str, found: u64) -> MessageError {
        MessageError::Field { kind: self.kind, field, found }
    }
    fn held(&mut self) -> Result<Vec<Held>, MessageError> {
        let count = self.u16()?;
        if usize::from(count) > FACTS_PER_PART {
            return Err(self.field("volumes", u64::from(count)));
        }
        let mut volumes = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            volumes.push(Held {
                volume: VolumeId(self.u32()?),
                copies: self.u32()?,
                confirmed: Seq(self.u64()?),
                heard: Seq(self.u64()?),
                kept: self.kept()?,
            });
        }
        Ok(volumes)
    }
    fn kept(&mut self) -> Result<Option<Kept>, MessageError> {
        let kept = Kept { set: self.set()?, first: Seq(self.u64()?), last: Seq(self.u64()?) };
        if kept.first > kept.last || (kept.first.0 == 0) != (kept.last.0 == 0) {
            return Err(self.field("kept", kept.last.0));
        }
        Ok((kept.last.0 != 0).then_some(kept))
    }
    fn lasts(&mut self) -> Result<Vec<(SetId, Seq)>, MessageError> {
        let count = self.u16()?;
        if u64::from(count) > SETS_AHEAD_MAX {
            return Err(self.field("lasts", u64::from(count)));
        }
        (0..count).map(|_| Ok((self.set()?, Seq(self.u64()?)))).collect()
    }
    fn facts(&mut self) -> Result<FactsPart, MessageError> {
        let part = self.u16()?;
        let parts = self.u16()?;
        if part >= parts {
            return Err(self.field("part", u64::from(part)));
        }
        let count = self.u16()?;
        if usize::from(count) > FACTS_PER_PART {
            return Err(self.field("facts", u64::from(count)));
        }
        let mut facts = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            facts.push(self.fact()?);
        }
        Ok(FactsPart { part, parts, facts })
    }
    fn fact(&mut self) -> Result<VolumeFacts, MessageError> {
        let volume = VolumeId(self.u32()?);
        let first = Seq(self.u64()?);
        let last = Seq(self.u64()?);
        if first.0 == 0 || last < first {
            return Err(self.field("last", last.0));
        }
        let bytes = self.u64()?;
        let digest = self.u64()?;
        let count = self.u16()?;
        let mut voids: Vec<Seq> = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let seq = Seq(self.u64()?);
            if seq < first || seq > last || voids.last().is_some_and(|before| *before >= seq) {
                return Err(self.field("void", seq.0));
            }
            voids.push(seq);
        }
        Ok(VolumeFacts { volume, first, last, bytes, digest, voids })
    }
}

#[cfg(test)]
mod tests;
