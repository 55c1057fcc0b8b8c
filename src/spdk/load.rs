//! A load on block devices: so many writes or reads always under way, from an SPDK thread.
//!
//! The benchmark's own host. It runs wherever the thread given is polled, also on a mover's
//! poller, and submits the next command from the completion of the last, so that it costs the same
//! in every case that is compared. Sequences of addresses come from a seed.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

use super::bdev::{Bdev, Channel};
use super::env::{DmaBuf, tsc_now};
use super::error::Error;
use super::sys;
use super::thread::ThreadHandle;

/// What to do.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The block devices, at least one, of one size: each command goes to the next.
    pub bdevs: Vec<String>,
    /// Commands under way, on all of them together.
    pub queue_depth: u32,
    /// Bytes of each.
    pub io_bytes: u32,
    /// Addresses at random, or one after another.
    pub random: bool,
    /// Seed of the addresses.
    pub seed: u64,
}

/// What a load has done.
#[derive(Debug)]
pub struct LoadHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ios: AtomicU64,
    errors: AtomicU64,
    stop: AtomicBool,
    /// Commands under way, plus one until it has started.
    outstanding: AtomicU32,
    /// The latencies in cycles, once it has ended.
    latency: Mutex<Option<Histogram<u64>>>,
    failed: Mutex<Option<Error>>,
}

/// Lives on the SPDK thread; freed by the last completion.
struct Load {
    config: LoadConfig,
    channels: Vec<Channel>,
    /// The channel of the next command.
    turn: usize,
    blocks: u64,
    io_blocks: u64,
    next: u64,
    random: u64,
    latency: Histogram<u64>,
    slots: Vec<Slot>,
    shared: Arc<Shared>,
}

struct Slot {
    load: *mut Load,
    memory: DmaBuf,
    started: u64,
}

impl LoadHandle {
    /// Starts a load on the SPDK thread behind `thread`.
    ///
    /// # Errors
    /// When the thread has ended. What fails later is in [`Self::finish`].
    pub fn start(thread: &ThreadHandle, config: LoadConfig) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            ios: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            outstanding: AtomicU32::new(1),
            latency: Mutex::new(None),
            failed: Mutex::new(None),
        });
        let of_thread = Arc::clone(&shared);
        thread.send(move || begin(config, of_thread))?;
        Ok(Self { shared })
    }

    /// Commands completed, and of these with an error.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.ios.load(Ordering::Relaxed), self.shared.errors.load(Ordering::Relaxed))
    }

    /// Asks it to end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Whether it has ended: nothing is under way any more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.shared.outstanding.load(Ordering::Acquire) == 0
    }

    /// The latencies in TSC cycles, of a load that has ended.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn finish(self) -> Result<Histogram<u64>, Error> {
        if let Some(error) =
            self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            return Err(error);
        }
        let latency = self.shared.latency.lock().unwrap_or_else(PoisonError::into_inner).take();
        latency.ok_or(Error::Misuse("the load has not ended"))
    }
}

fn begin(config: LoadConfig, shared: Arc<Shared>) {
    let started = Load::open(config, Arc::clone(&shared));
    match started {
        Ok(load) => {
            let load = Box::into_raw(load);
            // SAFETY: just made; completions come on this thread, later.
            let depth = unsafe { &*load }.slots.len();
            shared.outstanding.fetch_add(depth as u32, Ordering::Relaxed);
            for index in 0..depth {
                // SAFETY: as above; no reference to the load is held over the call.
                unsafe { submit(load, index) };
            }
            // SAFETY: the start's own count is still held, so the load is there.
            unsafe { leave(load) };
        }
        Err(error) => {
            *shared.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            shared.outstanding.store(0, Ordering::Release);
        }
    }
}

impl Load {
    fn open(config: LoadConfig, shared: Arc<Shared>) -> Result<Box<Self>, Error> {
        let mut channels = Vec::with_capacity(config.bdevs.len());
        let (mut blocks, mut io_blocks) = (u64::MAX, 1);
        for name in &config.bdevs {
            let bdev = Bdev::open(name, true)?;
            let geometry = bdev.geometry();
            channels.push(bdev.channel()?);
            io_blocks = u64::from(config.io_bytes / geometry.block_bytes).max(1);
            blocks = blocks.min(geometry.blocks / io_blocks);
        }
        if channels.is_empty() || blocks == 0 {
            return Err(Error::Misuse("a load needs a device of at least one command's size"));
        }
        let latency = Histogram::new_with_bounds(1, 1 << 40, 3)
            .map_err(|_| Error::Misuse("bounds of a histogram"))?;
        let mut load = Box::new(Self {
            blocks,
            io_blocks,
            turn: 0,
            next: config.seed,
            random: config.seed | 1,
            latency,
            slots: Vec::with_capacity(config.queue_depth as usize),
            channels,
            shared,
            config,
        });
        let this: *mut Self = &raw mut *load;
        for index in 0..load.config.queue_depth {
            let mut memory = DmaBuf::new(load.config.io_bytes as usize, 4096)?;
            memory.fill(index as u8);
            load.slots.push(Slot { load: this, memory, started: 0 });
        }
        Ok(load)
    }

    fn next_offset(&mut self) -> u64 {
        let index = if self.config.random {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random
        } else {
            self.next += 1;
            self.next
        };
        index % self.blocks * self.io_blocks
    }
}

/// Submits the next command of a slot.
///
/// # Safety
/// `load` is alive and this is its thread; the slot is not under way.
unsafe fn submit(load: *mut Load, index: usize) {
    // SAFETY: by the contract; nothing else refers to it now.
    let this = unsafe { &mut *load };
    let offset = this.next_offset();
    let blocks = this.io_blocks;
    let slot = &mut this.slots[index];
    slot.started = tsc_now();
    let context: *mut Slot = slot;
    let memory = slot.memory.io_buf();
    let turn = this.turn;
    this.turn = if turn + 1 == this.channels.len() { 0 } else { turn + 1 };
    let channel = &this.channels[turn];
    let rc = channel.write_raw(memory, offset, blocks, on_done, context.cast());
    if rc != 0 {
        this.shared.errors.fetch_add(1, Ordering::Relaxed);
        this.shared.stop.store(true, Ordering::Relaxed);
        // SAFETY: this slot's count is still held.
        unsafe { leave(load) };
    }
}

/// Gives one count back; the last one ends the load.
///
/// # Safety
/// `load` is alive, and the caller holds a count of it.
unsafe fn leave(load: *mut Load) {
    // SAFETY: by the contract.
    let shared = Arc::clone(unsafe { &(*load).shared });
    if shared.outstanding.load(Ordering::Relaxed) > 1 {
        shared.outstanding.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    // SAFETY: the last count: no completion will come, nobody else knows it.
    let load = unsafe { Box::from_raw(load) };
    let Load { latency, channels, slots, .. } = *load;
    drop(channels);
    drop(slots);
    *shared.latency.lock().unwrap_or_else(PoisonError::into_inner) = Some(latency);
    shared.outstanding.store(0, Ordering::Release);
}

unsafe extern "C" fn on_done(io: *mut sys::spdk_bdev_io, success: bool, ctx: *mut c_void) {
    // SAFETY: a completed request, not used any more.
    unsafe { sys::spdk_bdev_free_io(io) };
    let Some(slot) = NonNull::new(ctx.cast::<Slot>()) else { return };
    // SAFETY: the slot's load lives while one of its commands is under way.
    let Slot { load, started, .. } = *unsafe { slot.as_ref() };
    // SAFETY: as above; completions come one at a time, on its thread.
    let this = unsafe { &mut *load };
    this.latency.saturating_record(tsc_now().wrapping_sub(started));
    this.shared.ios.fetch_add(1, Ordering::Relaxed);
    if !success {
        this.shared.errors.fetch_add(1, Ordering::Relaxed);
    }
    if this.shared.stop.load(Ordering::Relaxed) {
        // SAFETY: this command's count is held.
        unsafe { leave(load) };
    } else {
        // SAFETY: the slot is one of the load's.
        let index = unsafe { slot.as_ptr().offset_from(this.slots.as_ptr()) };
        // SAFETY: its command is done.
        unsafe { submit(load, index as usize) };
    }
}
