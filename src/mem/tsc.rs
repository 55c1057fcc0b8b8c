//! The processor's time stamp counter.

/// Its value. Not serialising: good for intervals of a hundred cycles and more.
#[inline]
#[must_use]
pub fn read() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC is part of every x86-64 processor and has no precondition.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Its value between what comes before and what comes after in the program: of two reads, on any
/// cores, of which one happens before the other, the later one is not less. Costs some ten nanoseconds.
#[inline]
#[must_use]
pub fn read_ordered() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::_mm_lfence;
        // Neither are loads before it put off, nor those after it done in advance (Intel SDM, RDTSC).
        // SAFETY: LFENCE is part of SSE2, which every x86-64 processor has.
        unsafe { _mm_lfence() };
        let value = read();
        // SAFETY: as above.
        unsafe { _mm_lfence() };
        value
    }
    #[cfg(not(target_arch = "x86_64"))]
    read()
}
