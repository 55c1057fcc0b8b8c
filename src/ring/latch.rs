//! A value that one thread sets now and then, and others read often and whole.
//!
//! Readers never wait for the setter: there are two copies, and the version says which one holds. A
//! reader looks at the version again when it is done, and begins anew if that has changed. So the
//! value it used was the latest one when it ended: no reader goes on with an older value after
//! another has used a newer. Reading writes nothing, so the lines stay in every core's cache.

use super::Padded;
use super::sync::{Arc, AtomicU64, Ordering, fence};

struct Cells<const N: usize> {
    /// How often the value was set; its lowest bit says which copy holds.
    version: AtomicU64,
    copies: [[AtomicU64; N]; 2],
}

/// The end that sets the value. There is one.
pub struct Setter<const N: usize>(Arc<Padded<Cells<N>>>);

/// An end that reads the value.
pub struct Getter<const N: usize>(Arc<Padded<Cells<N>>>);

/// A latch of `N` words without a value.
#[must_use]
pub fn latch<const N: usize>() -> (Setter<N>, Getter<N>) {
    let words = || core::array::from_fn(|_| AtomicU64::new(0));
    let cells = Cells { version: AtomicU64::new(0), copies: [words(), words()] };
    let cells = Arc::new(Padded(cells));
    (Setter(Arc::clone(&cells)), Getter(cells))
}

impl<const N: usize> Setter<N> {
    /// Sets the value.
    pub fn set(&mut self, value: [u64; N]) {
        let cells = &self.0.0;
        let version = cells.version.load(Ordering::Relaxed).wrapping_add(1);
        // A reader that sees any word of this copy change sees the version before, at least.
        fence(Ordering::Release);
        for (cell, word) in cells.copies[(version & 1) as usize].iter().zip(value) {
            cell.store(word, Ordering::Relaxed);
        }
        cells.version.store(version, Ordering::Release);
    }
}

impl<const N: usize> Getter<N> {
    /// What `with` makes of the value; none before the first. It runs again when the value was set
    /// meanwhile.
    #[inline]
    pub fn get<R>(&self, mut with: impl FnMut([u64; N]) -> R) -> Option<R> {
        let cells = &self.0.0;
        loop {
            let version = cells.version.load(Ordering::Acquire);
            if version == 0 {
                return None;
            }
            let copy = &cells.copies[(version & 1) as usize];
            let made = with(core::array::from_fn(|at| copy[at].load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            if cells.version.load(Ordering::Relaxed) == version {
                return Some(made);
            }
        }
    }
}

impl<const N: usize> Clone for Getter<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<const N: usize> core::fmt::Debug for Setter<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Setter").finish_non_exhaustive()
    }
}

impl<const N: usize> core::fmt::Debug for Getter<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Getter").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(setline_loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64 as Shared;

    #[test]
    fn before_the_first_value_there_is_none() {
        let (mut setter, getter) = latch::<2>();
        assert_eq!(getter.get(|value| value), None);
        setter.set([1, 2]);
        setter.set([3, 4]);
        assert_eq!(getter.clone().get(|value| value), Some([3, 4]));
    }

    #[test]
    fn values_are_whole_and_nobody_is_behind_another() {
        let (mut setter, getter) = latch::<3>();
        let newest_used = &Shared::new(0);
        setter.set([1, 1, 1]);
        std::thread::scope(|scope| {
            let readers = [(); 2].map(|()| {
                let getter = getter.clone();
                scope.spawn(move || {
                    for _ in 0..50_000 {
                        let before = newest_used.load(Ordering::SeqCst);
                        let [a, b, c] = getter.get(|value| value).unwrap_or([0; 3]);
                        assert_eq!((a, a), (b, c), "torn");
                        assert!(a >= before, "{a} was used after {before}");
                        newest_used.fetch_max(a, Ordering::SeqCst);
                    }
                })
            });
            let mut value = 1;
            while readers.iter().any(|reader| !reader.is_finished()) {
                value += 1;
                setter.set([value; 3]);
            }
        });
    }
}
