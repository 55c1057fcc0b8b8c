//! NVMe reservations of a namespace: who may write it (invariant 4).
//!
//! SPDK's block device layer has no call for them, so they go as NVMe commands through its
//! pass-through, on a channel of the thread that opened this. Control path only. A command is sent and
//! asked for later ([`Reservations::begin`], [`Reservations::poll`]), or waited for with the caller's
//! pump ([`Reservations::run`]).
//!
//! A registrant is a *host*: the target tells hosts apart by their 128-bit host identifier
//! ([`super::base::HostIdentity`]), never by connection. The key is a password that a host gives
//! itself, and the name by which another host shuts it out.
//!
//! Layouts are from the NVM Express Base Specification 2.0, sections "Reservation Register",
//! "Reservation Report" and "Reservation Acquire"; what they mean is in its section "Reservations".

use std::ffi::c_void;
use std::fmt;
use std::ptr::null_mut;

use super::bdev::{Bdev, Channel, take_status};
use super::env::DmaBuf;
use super::error::{Error, NvmeStatus, Submit, submitted};
use super::op::{Op, Pump, poll_until};
use super::sys;

/// Identify pages have this size.
const IDENTIFY_BYTES: usize = 4096;
/// Registrants that a report has room for at first: few sites have more movers.
const REGISTRANTS_FEW: usize = 63;
/// The most registrants that are asked for: four times what SPDK's own target allows.
const REGISTRANTS_MAX: usize = 1023;
/// The extended report: its header, and each registrant after it.
const REPORT_ENTRY_BYTES: usize = 64;

/// Key of a registrant: what the host chose. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservationKey(pub u64);

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a reservation allows (figure "Reservation Type Encoding"). The other types of the
/// specification are [`Kind::Other`]: this program never asks for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Registrants may write, everybody may read. One registrant is the holder; when that one
    /// unregisters, the reservation ends.
    WriteExclusiveRegistrantsOnly,
    /// The same, and every registrant is a holder: it ends when the last one unregisters.
    WriteExclusiveAllRegistrants,
    /// Another type, by its number.
    Other(u8),
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::WriteExclusiveRegistrantsOnly => 3,
            Self::WriteExclusiveAllRegistrants => 5,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Option<Self> {
        match number {
            0 => None,
            3 => Some(Self::WriteExclusiveRegistrantsOnly),
            5 => Some(Self::WriteExclusiveAllRegistrants),
            other => Some(Self::Other(other)),
        }
    }

    /// Whether only registrants may write under it, and all of them.
    #[must_use]
    pub fn fences_writes(self) -> bool {
        !matches!(self, Self::Other(_))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteExclusiveRegistrantsOnly => f.write_str("write exclusive, registrants only"),
            Self::WriteExclusiveAllRegistrants => f.write_str("write exclusive, all registrants"),
            Self::Other(number) => write!(f, "type {number}"),
        }
    }
}

/// What a namespace can do (Identify Controller, ONCS; Identify Namespace, RESCAP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// Registrations and the reservation can survive a loss of power of the target.
    pub persist: bool,
    /// [`Kind::WriteExclusiveRegistrantsOnly`] is supported.
    pub registrants_only: bool,
    /// [`Kind::WriteExclusiveAllRegistrants`] is supported.
    pub all_registrants: bool,
}

/// A registrant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registrant {
    /// Its key.
    pub key: ReservationKey,
    /// Its host identifier.
    pub host: [u8; 16],
    /// It holds the reservation.
    pub holder: bool,
}

/// Who is registered, and what is reserved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Counts every change but those that preempt nobody.
    pub generation: u32,
    /// The reservation, if there is one.
    pub kind: Option<Kind>,
    /// It survives a loss of power of the target.
    pub persistent: bool,
    /// The registrants; a host with several controllers stands here several times.
    pub registrants: Vec<Registrant>,
}

/// What becomes of an existing registration of this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// There is none.
    None,
    /// It has this key, which is replaced.
    Replace(ReservationKey),
}

/// Why a reservation command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReservationError {
    /// Reservation Conflict: this host is not registered, its key is not the one it gave, or
    /// somebody else's reservation stands against it.
    #[error("reservation conflict: this host is not registered with that key, or another holds it")]
    Conflict,
    /// The target does not take the command or a field of it.
    #[error("the target does not support this reservation command ({0})")]
    Unsupported(NvmeStatus),
    /// It failed otherwise.
    #[error("reservation command: {0}")]
    Failed(NvmeStatus),
    /// It could not be sent, or was not answered.
    #[error(transparent)]
    Spdk(#[from] Error),
}

/// The reservations of one namespace, seen from one thread.
#[derive(Debug)]
pub struct Reservations {
    // Before the device: a channel is let go of first.
    channel: Channel,
    nsid: u32,
}

/// A command about reservations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Who is registered, and what is reserved.
    Report,
    /// Registers this host. With `persist` registrations and reservation survive a loss of power of
    /// the target; without, nothing is changed in that. A conflict: this host is registered with
    /// another key than `existing`.
    Register {
        /// What it is to be registered with.
        key: ReservationKey,
        /// What becomes of an existing registration.
        existing: Existing,
        /// Outlive a loss of power.
        persist: bool,
    },
    /// Unregisters this host. The last one to go, or the only holder, takes the reservation along. A
    /// conflict: it is not registered with that key.
    Unregister {
        /// What it is registered with.
        key: ReservationKey,
    },
    /// Reserves the namespace. A conflict: this host is not registered with `key`, or the namespace is
    /// reserved otherwise.
    Acquire {
        /// What this host is registered with.
        key: ReservationKey,
        /// What is wanted.
        kind: Kind,
    },
    /// Unregisters every host with key `victim`; if one of them held the reservation, this host holds
    /// it from then on. It completes only when no command of theirs that was under way can have an
    /// effect any more (preempt and abort). A conflict: this host is not registered with `key`, or
    /// nobody is with `victim`.
    Preempt {
        /// What this host is registered with.
        key: ReservationKey,
        /// Who is to go.
        victim: ReservationKey,
        /// The type of the reservation.
        kind: Kind,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report => f.write_str("reservation report"),
            Self::Register { key, .. } => write!(f, "registration of {key}"),
            Self::Unregister { key } => write!(f, "unregistration of {key}"),
            Self::Acquire { .. } => f.write_str("reservation"),
            Self::Preempt { victim, .. } => write!(f, "preemption of {victim}"),
        }
    }
}

/// What a command has brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done.
    Done,
    /// The answer to [`Request::Report`].
    Report(Report),
}

/// A command under way. Dropped before it was answered, its memory is never used again: the device may
/// still reach it.
#[derive(Debug)]
pub struct Sent {
    op: Op<NvmeStatus>,
    memory: Option<DmaBuf>,
    request: Request,
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            memory.leak();
        }
    }
}

/// One command as it goes to the controller.
struct Command {
    opcode: u32,
    cdw10: u32,
    cdw11: u32,
}

impl Reservations {
    /// Opens namespace `nsid`, which the block device `bdev` is. `None` when that is no NVMe
    /// namespace. The calling SPDK thread keeps it.
    ///
    /// # Errors
    /// The device is not there.
    pub fn open(bdev: &str, nsid: u32) -> Result<Option<Self>, Error> {
        let device = Bdev::open(bdev, true)?;
        if !device.passes_nvme() {
            return Ok(None);
        }
        Ok(Some(Self { channel: device.channel()?, nsid }))
    }

    /// What the namespace can do; `None` when it has no reservations.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn abilities(&self, pump: Pump<'_>) -> Result<Option<Abilities>, ReservationError> {
        let controller = self.identify(1, 0, &mut *pump)?;
        // ONCS, bytes 521:520, bit 5: reservations.
        let oncs = u16::from_le_bytes([controller[520], controller[521]]);
        let namespace = self.identify(0, self.nsid, pump)?;
        // RESCAP, byte 31.
        let rescap = namespace[31];
        let abilities = Abilities {
            persist: rescap & 1 << 0 != 0,
            registrants_only: rescap & 1 << 3 != 0,
            all_registrants: rescap & 1 << 5 != 0,
        };
        Ok((oncs & 1 << 5 != 0).then_some(abilities))
    }

    /// Sends a command; to be asked for its answer with [`Self::poll`]. `None`: there is no room now.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn begin(&self, request: Request) -> Result<Option<Sent>, ReservationError> {
        self.begin_with_room(request, REGISTRANTS_FEW)
    }

    fn begin_with_room(
        &self,
        request: Request,
        room: usize,
    ) -> Result<Option<Sent>, ReservationError> {
        let (command, data) = encode(request);
        let length = if data.is_empty() { (room + 1) * REPORT_ENTRY_BYTES } else { data.len() };
        let mut memory = DmaBuf::new(length, 4096)?;
        memory[..data.len()].copy_from_slice(&data);
        let mut command = command;
        if request == Request::Report {
            // NUMD, zero-based.
            command.cdw10 = (length / 4 - 1) as u32;
        }
        // The namespace is filled in by SPDK.
        match self.submit(&command, &memory, sys::spdk_bdev_nvme_io_passthru, 0) {
            Ok(op) => Ok(Some(Sent { op, memory: Some(memory), request })),
            Err(Submit::Busy) => Ok(None),
            Err(Submit::Refused(errno)) => {
                Err(Error::Errno { call: "NVMe pass-through", errno }.into())
            }
        }
    }

    /// What a command that was sent here has brought, once it has. Then it is over.
    pub fn poll(&self, sent: &mut Sent) -> Option<Result<Answer, ReservationError>> {
        let status = sent.op.take()?;
        let memory = sent.memory.take()?;
        if let Err(error) = judged(status) {
            return Some(Err(error));
        }
        if sent.request != Request::Report {
            return Some(Ok(Answer::Done));
        }
        let (report, registered) = parse_report(&memory);
        let room = memory.len() / REPORT_ENTRY_BYTES - 1;
        if registered <= room || room >= REGISTRANTS_MAX {
            return Some(Ok(Answer::Report(report)));
        }
        match self.begin_with_room(sent.request, REGISTRANTS_MAX) {
            Ok(Some(again)) => {
                *sent = again;
                None
            }
            Ok(None) => Some(Err(ReservationError::Failed(NvmeStatus::NAMESPACE_NOT_READY))),
            Err(error) => Some(Err(error)),
        }
    }

    /// Asks the controller to give up a command under way; it is answered all the same, if the controller
    /// answers anything. What it was to do may have been done.
    pub fn abort(&self, sent: &Sent) {
        let (desc, channel) = self.channel.raw_parts();
        // SAFETY: an open descriptor and a channel of this thread. The context only names the command
        // among those of the channel; it is not followed, and may have completed. The callback needs
        // no context.
        let rc = unsafe {
            sys::spdk_bdev_abort(desc, channel, sent.op.name(), Some(on_aborted), null_mut())
        };
        if rc != 0 {
            tracing::debug!(command = %sent.request, rc, "cannot be aborted");
        }
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn run(&self, request: Request, pump: Pump<'_>) -> Result<Answer, ReservationError> {
        let mut sent = None;
        let mut answer = None;
        poll_until("a reservation command", pump, || {
            answer = match &mut sent {
                Some(sent) => self.poll(sent),
                None => match self.begin(request) {
                    Ok(begun) => {
                        sent = begun;
                        None
                    }
                    Err(error) => Some(Err(error)),
                },
            };
            answer.is_some()
        })?;
        answer.unwrap_or(Err(Error::Misuse("no answer").into()))
    }

    fn identify(&self, cns: u32, nsid: u32, pump: Pump<'_>) -> Result<DmaBuf, ReservationError> {
        let page = DmaBuf::new(IDENTIFY_BYTES, 4096)?;
        let command = Command { opcode: sys::SPDK_NVME_OPC_IDENTIFY, cdw10: cns, cdw11: 0 };
        let mut result = Err(Submit::Busy);
        poll_until("Identify", &mut *pump, || {
            result = self.submit(&command, &page, sys::spdk_bdev_nvme_admin_passthru, nsid);
            !matches!(result, Err(Submit::Busy))
        })?;
        let op = match result {
            Ok(op) => op,
            Err(Submit::Busy) => return Err(Error::Misuse("not submitted").into()),
            Err(Submit::Refused(errno)) => {
                return Err(Error::Errno { call: "NVMe pass-through", errno }.into());
            }
        };
        match op.wait("Identify", pump) {
            Ok(status) => judged(status).map(|()| page),
            Err(late) => {
                // The device may still reach the memory.
                page.leak();
                Err(late.into())
            }
        }
    }

    /// Sends one command. Whoever keeps the operation keeps `memory` until it is finished.
    fn submit(
        &self,
        command: &Command,
        memory: &DmaBuf,
        submit: PassThrough,
        nsid: u32,
    ) -> Result<Op<NvmeStatus>, Submit> {
        let mut cmd = sys::spdk_nvme_cmd::default();
        cmd.set_opc(command.opcode as u16);
        cmd.nsid = nsid;
        cmd.__bindgen_anon_1.cdw10 = command.cdw10;
        cmd.__bindgen_anon_2.cdw11 = command.cdw11;
        let op = Op::<NvmeStatus>::new();
        let (desc, channel) = self.channel.raw_parts();
        let data = memory.io_buf();
        let ctx = op.context();
        // SAFETY: an open descriptor and a channel of this thread; the command is copied; the memory
        // stays until the completion, or for ever, by this function's contract.
        let result = submitted(unsafe {
            submit(
                desc,
                channel,
                &cmd,
                data.as_ptr().as_ptr().cast(),
                data.len(),
                Some(on_passed),
                ctx,
            )
        });
        if result.is_err() {
            // SAFETY: not submitted, so the callback does not come.
            unsafe { Op::<NvmeStatus>::disown(ctx) };
        }
        result.map(|()| op)
    }
}

/// The command of `request`, and what it sends; nothing where it receives.
fn encode(request: Request) -> (Command, Vec<u8>) {
    // RACQA 2:0, IEKEY 3, RTYPE 15:8.
    let acquire = |action: u32, kind: Kind| Command {
        opcode: sys::SPDK_NVME_OPC_RESERVATION_ACQUIRE,
        cdw10: action | u32::from(kind.number()) << 8,
        cdw11: 0,
    };
    let register = sys::SPDK_NVME_OPC_RESERVATION_REGISTER;
    match request {
        Request::Report => {
            // EDS, the form with 128-bit host identifiers, is what a fabric has.
            let opcode = sys::SPDK_NVME_OPC_RESERVATION_REPORT;
            (Command { opcode, cdw10: 0, cdw11: 1 }, Vec::new())
        }
        Request::Register { key, existing, persist } => {
            let (action, current) = match existing {
                Existing::None => (sys::SPDK_NVME_RESERVE_REGISTER_KEY, 0),
                Existing::Replace(old) => (sys::SPDK_NVME_RESERVE_REPLACE_KEY, old.0),
            };
            // RREGA 2:0, IEKEY 3, CPTPL 31:30.
            let cptpl = if persist {
                sys::SPDK_NVME_RESERVE_PTPL_PERSIST_POWER_LOSS
            } else {
                sys::SPDK_NVME_RESERVE_PTPL_NO_CHANGES
            };
            let cdw10 = action | cptpl << 30;
            (Command { opcode: register, cdw10, cdw11: 0 }, keys(current, key.0))
        }
        Request::Unregister { key } => {
            let cdw10 = sys::SPDK_NVME_RESERVE_UNREGISTER_KEY;
            (Command { opcode: register, cdw10, cdw11: 0 }, keys(key.0, 0))
        }
        Request::Acquire { key, kind } => {
            (acquire(sys::SPDK_NVME_RESERVE_ACQUIRE, kind), keys(key.0, 0))
        }
        Request::Preempt { key, victim, kind } => {
            (acquire(sys::SPDK_NVME_RESERVE_PREEMPT_ABORT, kind), keys(key.0, victim.0))
        }
    }
}

type PassThrough = unsafe extern "C" fn(
    *mut sys::spdk_bdev_desc,
    *mut sys::spdk_io_channel,
    *const sys::spdk_nvme_cmd,
    *mut c_void,
    usize,
    sys::spdk_bdev_io_completion_cb,
    *mut c_void,
) -> i32;

unsafe extern "C" fn on_passed(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    let status = take_status(io, success);
    // SAFETY: the context of an operation of this type.
    unsafe { Op::finish(ctx, status) }
}

fn judged(status: NvmeStatus) -> Result<(), ReservationError> {
    match status {
        NvmeStatus::SUCCESS => Ok(()),
        NvmeStatus::RESERVATION_CONFLICT => Err(ReservationError::Conflict),
        NvmeStatus::INVALID_FIELD | NvmeStatus::INVALID_OPCODE => {
            Err(ReservationError::Unsupported(status))
        }
        other => Err(ReservationError::Failed(other)),
    }
}

unsafe extern "C" fn on_aborted(io: *mut sys::spdk_bdev_io, success: bool, _: *mut c_void) {
    // Whether it helped shows at the command itself.
    let _ = take_status(io, success);
}

fn keys(current: u64, other: u64) -> Vec<u8> {
    [current.to_le_bytes(), other.to_le_bytes()].concat()
}

/// The extended report (figures "Reservation Status Extended Data Structure" and "Registered
/// Controller Extended Data Structure"), and how many registrants it says there are.
fn parse_report(page: &[u8]) -> (Report, usize) {
    fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&bytes[at..at + N]);
        out
    }
    let registered = usize::from(u16::from_le_bytes(array(page, 5)));
    let entries = page[REPORT_ENTRY_BYTES..].chunks_exact(REPORT_ENTRY_BYTES).take(registered);
    let report = Report {
        generation: u32::from_le_bytes(array(page, 0)),
        kind: Kind::of(page[4]),
        persistent: page[9] != 0,
        registrants: entries
            .map(|entry| Registrant {
                holder: entry[2] & 1 != 0,
                key: ReservationKey(u64::from_le_bytes(array(entry, 8))),
                host: array(entry, 16),
            })
            .collect(),
    };
    (report, registered)
}
