//! Pools of packet buffers.

use super::error::{DpdkError, text};
use super::sys;
use std::ptr::NonNull;

/// Bytes in front of the data of every buffer, for drivers.
pub(super) const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;

/// A pool of packet buffers. Any thread may take from it and give back to it.
pub(super) struct Pool {
    pool: NonNull<sys::rte_mempool>,
    packets: u32,
}

// SAFETY: made with DPDK's default operations, which any number of threads may use at once.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// A pool of `packets` buffers, each with room for `bytes` behind its headroom (0: only for
    /// referring to memory elsewhere). Pollers keep up to `cache` of them at hand.
    pub(super) fn new(
        port: &str,
        name: &str,
        packets: u32,
        cache: u32,
        bytes: u16,
    ) -> Result<Self, DpdkError> {
        let c_name = text(port, name)?;
        let room = if bytes == 0 { 0 } else { bytes + HEADROOM };
        let any_node = -1;
        // SAFETY: the name is a NUL-terminated string, which DPDK copies.
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create(c_name.as_ptr(), packets, cache, 0, room, any_node)
        };
        let pool = NonNull::new(pool).ok_or_else(|| DpdkError::Memory {
            port: port.to_owned(),
            packets,
            bytes: room,
        })?;
        Ok(Self { pool, packets })
    }

    #[inline]
    pub(super) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }

    /// Fills `out` with buffers: all of it, or none.
    #[inline]
    pub(super) fn take(&self, out: &mut [*mut sys::rte_mbuf]) -> bool {
        // SAFETY: `out` has room for as many pointers as are asked for.
        let rc = unsafe {
            sys::rte_pktmbuf_alloc_bulk(self.as_ptr(), out.as_mut_ptr(), out.len() as u32)
        };
        rc == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pool is alive.
        let back = unsafe { sys::rte_mempool_avail_count(self.as_ptr()) };
        if back == self.packets {
            // SAFETY: every buffer is back, and this was the only owner.
            unsafe { sys::rte_mempool_free(self.as_ptr()) };
        } else {
            // A peer of a ring port may hold buffers until it looks again: they must stay valid.
            tracing::debug!(missing = self.packets - back, "packet pool outlives its port");
        }
    }
}
