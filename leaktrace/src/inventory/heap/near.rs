//! Memory that is read little by little, since what comes next is known only when the one before has been read: the
//! objects of a list, and the bitmaps that say what in them is a pointer. What was allocated one after the other lies side
//! by side as a rule, so a page that is asked for again is read whole.

use crate::target::Memory;

/// Pages kept.
const PAGES: usize = 256;

/// Pages of so many bytes, as they were when they were read.
#[derive(Default)]
pub(super) struct Near<const SIZE: usize> {
    pages: Vec<Page>,
    /// What is not of a page that is kept.
    alone: Vec<u8>,
}

/// A page that was asked for.
#[derive(Clone, Default)]
struct Page {
    /// Its address; zero for none.
    address: u64,
    /// Its bytes, once it was asked for twice; none where they are to be read anew.
    bytes: Vec<u8>,
}

impl<const SIZE: usize> Near<SIZE> {
    /// The `len` bytes at an address; `None`: they cannot be read.
    pub(super) fn read(&mut self, memory: &Memory, address: u64, len: usize) -> Option<&[u8]> {
        self.pages.resize(PAGES, Page::default());
        let size = SIZE as u64;
        let (of, within) = (address / size * size, (address % size) as usize);
        let page = &mut self.pages[(address / size) as usize % PAGES];
        if within + len <= SIZE {
            let was_asked_for = page.address == of;
            if !was_asked_for {
                page.address = of;
                page.bytes.clear();
            } else if page.bytes.is_empty() {
                page.bytes.resize(SIZE, 0);
                if memory.read(of, &mut page.bytes).is_err() {
                    page.bytes.clear();
                }
            }
            if !page.bytes.is_empty() {
                return page.bytes.get(within..within + len);
            }
        }
        self.alone.resize(len, 0);
        memory.read(address, &mut self.alone).ok()?;
        Some(&self.alone)
    }

    /// From here on all are read anew.
    pub(super) fn forget(&mut self) {
        for page in &mut self.pages {
            page.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_page_is_read_whole_the_second_time() {
        const SIZE: usize = 512;
        let words: Vec<AtomicU64> = (0..3 * SIZE / 8).map(|_| AtomicU64::new(0)).collect();
        let at = (words.as_ptr() as u64).next_multiple_of(SIZE as u64);
        let first = (at - words.as_ptr() as u64) as usize / 8;
        let memory = Memory::new(std::process::id() as i32);
        let mut near = Near::<SIZE>::default();
        let read = |near: &mut Near<SIZE>, address| {
            let bytes = near.read(&memory, address, 8)?;
            bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
        };
        let write = |index: usize, value| words[first + index].store(value, Relaxed);
        write(0, 1);
        assert_eq!(read(&mut near, at), Some(1));
        write(0, 2);
        assert_eq!(read(&mut near, at), Some(2));
        // Of the moment when the page was read.
        write(0, 3);
        assert_eq!(read(&mut near, at), Some(2));
        near.forget();
        assert_eq!(read(&mut near, at), Some(3));
        // Over the end of a page.
        write(SIZE / 8, 4);
        let both = near.read(&memory, at + SIZE as u64 - 8, 16).unwrap();
        assert_eq!(both[8..], 4_u64.to_le_bytes());
        assert_eq!(near.read(&memory, 8, 8), None);
        assert_eq!(near.read(&memory, 16, 8), None);
    }
}
