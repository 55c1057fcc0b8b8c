//! A sparse array over block addresses: dense pages, allocated when touched.
//!
//! Volumes are large and mostly untouched, runs of touched blocks are dense; a
//! hash map would cost several times the memory and time.

const PAGE: u64 = 4096;

/// Values of the blocks of one volume; untouched ones have the default value.
#[derive(Clone, Debug)]
pub struct BlockMap<T> {
    pages: Vec<Option<Box<[T]>>>,
}

impl<T> Default for BlockMap<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T: Copy + Default> BlockMap<T> {
    /// The value at `address`.
    pub fn get(&self, address: u64) -> T {
        match self.pages.get((address / PAGE) as usize) {
            Some(Some(page)) => page[(address % PAGE) as usize],
            _ => T::default(),
        }
    }

    /// The value at `address`, to change. Allocates its page.
    pub fn get_mut(&mut self, address: u64) -> &mut T {
        let page = (address / PAGE) as usize;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| vec![T::default(); PAGE as usize].into());
        &mut page[(address % PAGE) as usize]
    }

    /// Every block of every allocated page, with its address, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, T)> {
        self.pages.iter().enumerate().flat_map(|(number, page)| {
            let base = number as u64 * PAGE;
            page.iter().flat_map(move |page| {
                page.iter().enumerate().map(move |(offset, value)| (base + offset as u64, *value))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_blocks_read_as_default_and_cost_nothing() {
        let mut map = BlockMap::<u64>::default();
        *map.get_mut(5 * PAGE + 3) = 9;
        assert_eq!((map.get(5 * PAGE + 3), map.get(0), map.get(u64::MAX)), (9, 0, 0));
        assert_eq!(map.pages.iter().flatten().count(), 1);
        assert_eq!(
            map.iter().filter(|(_, value)| *value != 0).collect::<Vec<_>>(),
            [(5 * PAGE + 3, 9)]
        );
    }
}
