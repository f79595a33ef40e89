//! What a process can write to: where pointers can be.

use std::{fs::File, os::unix::fs::FileExt as _};

use super::{Backing, Mapping, Target, TargetError};

/// Bytes below the stack pointer that a function may use without moving it (System V ABI, x86-64).
const RED_ZONE: u64 = 128;
/// Threads whose stack pointers are looked at; stacks of further ones count as a whole.
const MAX_THREADS: usize = 4096;
const PAGE: u64 = 4096;
/// Pages that are asked for at a time.
const PAGES: u64 = 1 << 16;
/// Entry of /proc/PID/pagemap: the page is in memory; it is swapped out (Documentation/admin-guide/mm/pagemap.rst).
const IS_PRESENT: u64 = 1 << 63;
const IS_SWAPPED: u64 = 1 << 62;

/// A range of memory that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its first byte.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
    /// What it is.
    pub kind: AreaKind,
}

/// What memory is; what says most of a reference first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AreaKind {
    /// Variables of the executable or of a library.
    Data,
    /// The live part of a thread's stack, with what the thread has of its own.
    Stack,
    /// The heap, or another mapping.
    Memory,
}

/// Which pages are in memory. The others hold nothing, or are swapped out.
pub struct Present(File);

impl Target {
    /// All memory that can be written, in the order of kinds. What lies below the stack pointer of a thread that
    /// waits is dead and left out.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn writable(&self) -> Result<Vec<Area>, TargetError> {
        let map = self.address_map()?;
        let mut stack_pointers = self.stack_pointers(MAX_THREADS);
        stack_pointers.sort_unstable();
        let mut areas = areas(map.mappings(), &stack_pointers);
        areas.sort_by_key(|area| (area.kind, area.start));
        Ok(areas)
    }

    /// Which of its pages are in memory.
    ///
    /// # Errors
    ///
    /// The process has ended.
    pub fn present(&self) -> Result<Present, TargetError> {
        let file = self.process.open_relative("pagemap");
        let file = file.map_err(|_| TargetError::Gone { pid: self.pid })?;
        Ok(Present(file))
    }
}

fn areas(mappings: &[Mapping], stack_pointers: &[u64]) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    // Where a file's data ended; what follows it without a file is its zeroed data.
    let mut data_end = 0;
    for mapping in mappings {
        let (start, end) = mapping.address;
        if !mapping.is_writable() || !mapping.is_readable() {
            continue;
        }
        let is_data = match mapping.backing() {
            Backing::File(_) => mapping.is_private(),
            Backing::Anonymous => start == data_end,
            _ => false,
        };
        let first = stack_pointers.partition_point(|pointer| *pointer < start);
        let stack = stack_pointers.get(first).filter(|pointer| **pointer < end);
        areas.push(match stack {
            Some(pointer) => Area {
                start: pointer.saturating_sub(RED_ZONE).max(start) & !7,
                end,
                kind: AreaKind::Stack,
            },
            None if is_data => Area {
                start,
                end,
                kind: AreaKind::Data,
            },
            None => Area {
                start,
                end,
                kind: AreaKind::Memory,
            },
        });
        if is_data {
            data_end = end;
        }
    }
    areas
}

impl Present {
    /// The pieces of a range that are in memory (true) or swapped out (false). Where that cannot be read, all
    /// of it is taken as in memory.
    pub fn ranges(&self, start: u64, end: u64) -> Vec<(u64, u64, bool)> {
        let mut ranges: Vec<(u64, u64, bool)> = Vec::new();
        let mut add = |from: u64, to: u64, is_there| match ranges.last_mut() {
            Some((_, last, same)) if *last == from && *same == is_there => *last = to,
            _ => ranges.push((from, to, is_there)),
        };
        let first = start / PAGE;
        let behind = end.div_ceil(PAGE);
        let mut buffer = Vec::new();
        for chunk in (first..behind).step_by(PAGES as usize) {
            let pages = PAGES.min(behind - chunk);
            buffer.resize(8 * pages as usize, 0);
            let is_known = self.0.read_exact_at(&mut buffer, 8 * chunk).is_ok();
            for (page, entry) in (chunk..).zip(buffer.chunks_exact(8)) {
                let entry = entry.try_into().map_or(0, u64::from_le_bytes);
                let from = (page * PAGE).max(start);
                let to = ((page + 1) * PAGE).min(end);
                if !is_known || entry & IS_PRESENT != 0 {
                    add(from, to, true);
                } else if entry & IS_SWAPPED != 0 {
                    add(from, to, false);
                }
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_data_belongs_to_its_file_and_dead_stack_to_nobody() {
        // The kernel ends a line without a name with a space.
        let text = [
            "55d000000000-55d000001000 r--p 00000000 08:01 7 /usr/bin/app",
            "55d000001000-55d000002000 rw-p 00001000 08:01 7 /usr/bin/app",
            "55d000002000-55d000004000 rw-p 00000000 00:00 0 ",
            "55d000100000-55d000200000 rw-p 00000000 00:00 0 [heap]",
            "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 ",
            "7f0000900000-7f0000a00000 rw-s 00000000 00:01 9 /dev/shm/pool",
        ];
        let text = text.join("\n");
        let maps = Mapping::parse_all(text.as_bytes()).unwrap();
        let found = areas(&maps, &[0x7f00_0070_0001]);
        let area = |start, end, kind| Area { start, end, kind };
        assert_eq!(
            found,
            [
                area(0x55d0_0000_1000, 0x55d0_0000_2000, AreaKind::Data),
                area(0x55d0_0000_2000, 0x55d0_0000_4000, AreaKind::Data),
                area(0x55d0_0010_0000, 0x55d0_0020_0000, AreaKind::Memory),
                area(0x7f00_006f_ff80, 0x7f00_0080_0000, AreaKind::Stack),
                area(0x7f00_0090_0000, 0x7f00_00a0_0000, AreaKind::Memory),
            ]
        );
    }
}
