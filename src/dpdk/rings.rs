//! Ring ports: two ends in one process, joined by a pair of DPDK's rings per queue.
//!
//! The rings live until both ends are closed. Opened and closed by the control thread.

use super::error::{DpdkError, failed, last_errno, text};
use super::kind::RING_DESCRIPTORS;
use super::port::PortSpec;
use super::{mbuf, sys};
use std::collections::BTreeMap;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

/// A pair of ring ports of this process: the rings of both directions, per queue.
struct RingPair {
    there: Vec<RingPtr>,
    back: Vec<RingPtr>,
    /// Ends opened so far, closed ones included: an end cannot be opened again alone, because it
    /// would receive what its predecessor was sent.
    opened: u8,
    open: u8,
}

#[derive(Clone, Copy)]
struct RingPtr(*mut sys::rte_ring);

// SAFETY: DPDK's rings are made to be used by two threads; the pointer is only passed on.
unsafe impl Send for RingPtr {}

static RINGS: Mutex<BTreeMap<String, RingPair>> = Mutex::new(BTreeMap::new());

/// Opens an end of `ring`, whose rings are made with the first: the port's number.
///
/// # Errors
/// Both ends were opened before, with other queues, or DPDK has no memory.
pub(super) fn create_ring(spec: &PortSpec, ring: &str, serial: u32) -> Result<u16, DpdkError> {
    let port = spec.name.as_str();
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if !rings.contains_key(ring) {
        let mut pair = RingPair { there: Vec::new(), back: Vec::new(), opened: 0, open: 0 };
        for queue in 0..spec.queues {
            for (way, list) in [("t", &mut pair.there), ("b", &mut pair.back)] {
                let name = text(port, &format!("setline{serial}{way}{queue}"))?;
                let flags = sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ;
                // SAFETY: a NUL-terminated string, copied; any NUMA node.
                let made = unsafe {
                    sys::rte_ring_create(name.as_ptr(), u32::from(RING_DESCRIPTORS), -1, flags)
                };
                if made.is_null() {
                    return Err(failed("rte_ring_create", port, last_errno()));
                }
                list.push(RingPtr(made));
            }
        }
        rings.insert(ring.to_owned(), pair);
    }
    let Some(pair) = rings.get_mut(ring) else { unreachable!("inserted above") };
    if pair.opened == 2 || pair.there.len() != usize::from(spec.queues) {
        return Err(DpdkError::RingTaken { port: port.to_owned(), ring: ring.to_owned() });
    }
    let pointers = |list: &[RingPtr]| list.iter().map(|r| r.0).collect::<Vec<_>>();
    let (mut receive, mut send) = (pointers(&pair.back), pointers(&pair.there));
    if pair.opened == 1 {
        std::mem::swap(&mut receive, &mut send);
    }
    let name = text(port, &format!("setline{serial}"))?;
    let count = u32::from(spec.queues);
    // SAFETY: arrays of `count` rings each, and a string, all copied.
    let id = unsafe {
        sys::rte_eth_from_rings(name.as_ptr(), receive.as_ptr(), count, send.as_ptr(), count, 0)
    };
    if id < 0 {
        return Err(failed("rte_eth_from_rings", port, last_errno()));
    }
    pair.opened += 1;
    pair.open += 1;
    Ok(id as u16)
}

/// Gives an end up; the port is closed. With the second the rings go.
pub(super) fn close_ring(name: &str) {
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pair) = rings.get_mut(name) else { return };
    pair.open -= 1;
    if pair.open > 0 {
        return;
    }
    if let Some(pair) = rings.remove(name) {
        for ring in pair.there.into_iter().chain(pair.back) {
            drain(ring);
            // SAFETY: both ends are closed.
            unsafe { sys::rte_ring_free(ring.0) };
        }
    }
}

fn drain(ring: RingPtr) {
    let mut frame = null_mut();
    // SAFETY: both ends are closed, so nobody else uses the ring; `frame` is a valid destination.
    while unsafe { sys::rte_ring_dequeue(ring.0, &mut frame) } == 0 {
        mbuf::free(&mut [frame.cast()]);
    }
}
