//! Which blocks of a native allocator something still points to: what LeakSanitizer asks at the end of a
//! program, asked of one that runs on.
//!
//! Everything that can be written is gone through word by word, but for the blocks themselves and the dead part of
//! stacks; blocks that are pointed to are gone through in turn. A pointer may be moved meanwhile from what is
//! still to be read to what has been read, so what nothing points to is looked for a second time.
//!
//! Conservative: a word that looks like an address in a block counts as one. Registers are not read, for that would
//! stop the threads.

use std::{collections::HashMap, time::Instant};

use super::heap::Watch;
use crate::target::{Area, AreaKind, Memory, Present};

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;
/// Blocks that are gone through in one read.
const BATCH: usize = 4096;
/// Pages of a chunk of the index, each of 4 KiB.
const CHUNK_PAGES: usize = 512;
const PAGE: u64 = 4096;
/// Roots kept; what is found beyond has no place.
const MAX_ROOTS: usize = 1 << 20;
/// What is needed beside the tables.
const OVERHEAD: u64 = 16 << 20;
/// No block.
const NONE: u32 = u32::MAX;

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Its address.
    pub address: u64,
    /// Its size in bytes, as it was asked for.
    pub size: u64,
    /// The number of its site.
    pub site: u32,
    /// When it was allocated, `CLOCK_MONOTONIC`, nanoseconds.
    pub born: u64,
}

impl Block {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.size.max(1))
    }
}

/// What refers to a block, directly or through others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This word outside of all blocks.
    Held(Root),
    /// Nothing.
    Lost,
    /// Blocks only that are lost themselves.
    LostBehind,
}

/// A word outside of all blocks that refers to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// What it lies in.
    pub kind: AreaKind,
    /// Its address.
    pub address: u64,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Looked {
    /// Bytes read.
    pub scanned_bytes: u64,
    /// Bytes that could not be, or were swapped out.
    pub unread_bytes: u64,
    /// Passes made.
    pub passes: u64,
    /// It was told to end before everything was looked at: nothing is known to be lost then.
    pub is_cut: bool,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// Blocks by their addresses.
struct Index {
    blocks: Vec<Block>,
    /// By chunk of two megabytes: for each page the first block with a byte in it.
    pages: HashMap<u64, Box<[u32; CHUNK_PAGES]>>,
}

/// Bytes of memory that looking at so many blocks takes at most, spread as they are.
pub fn needed(blocks: &[Block]) -> u64 {
    let mut chunks = 0;
    let mut last = None;
    for block in blocks {
        let (first, end) = (chunk(block.address).0, chunk(block.end() - 1).0);
        chunks += end - first + u64::from(last != Some(first));
        last = Some(end);
    }
    let each = size_of::<Block>() + size_of::<u32>() * 3;
    blocks.len() as u64 * each as u64 + chunks * (CHUNK_PAGES as u64 * 4 + 32) + OVERHEAD
}

/// Finds out what refers to each of these blocks, which are in the order of their addresses. `areas` are
/// what can be written, what says most first.
pub fn find(
    memory: Memory,
    present: &Present,
    areas: &[Area],
    blocks: Vec<Block>,
    watch: &Watch,
) -> (Vec<(Block, Fate)>, Looked) {
    let started = Instant::now();
    let index = Index::new(blocks);
    let mut looked = Looked::default();
    let all = areas.iter().map(|area| area.end - area.start).sum();
    watch.expect(all);
    let mut found = Pass::new(&index, memory, watch);
    found.run(present, areas, &mut looked);
    if !looked.is_cut && found.holders.contains(&NONE) {
        let mut again = Pass::new(&index, memory, watch);
        again.run(present, areas, &mut looked);
        for (first, second) in found.holders.iter_mut().zip(again.holders) {
            if *first == NONE && second != NONE {
                let root = again.roots.get(second as usize).copied();
                *first = found.roots.len() as u32;
                found.roots.extend(root);
            }
        }
    }
    let behind = found.behind_lost();
    let fates = found.holders.iter().zip(behind).map(|(holder, behind)| {
        match (found.roots.get(*holder as usize), behind) {
            (Some(root), _) => Fate::Held(*root),
            (None, true) => Fate::LostBehind,
            (None, false) => Fate::Lost,
        }
    });
    let fates: Vec<Fate> = fates.collect();
    looked.took_ms = started.elapsed().as_secs_f64() * 1000.0;
    (index.blocks.into_iter().zip(fates).collect(), looked)
}

fn chunk(address: u64) -> (u64, usize) {
    let page = address / PAGE;
    let of_chunk = CHUNK_PAGES as u64;
    (page / of_chunk, (page % of_chunk) as usize)
}

impl Index {
    fn new(blocks: Vec<Block>) -> Self {
        let mut pages: HashMap<u64, Box<[u32; CHUNK_PAGES]>> = HashMap::new();
        for (number, block) in blocks.iter().enumerate() {
            for page in block.address / PAGE..=(block.end() - 1) / PAGE {
                let (chunk, page) = chunk(page * PAGE);
                let of_chunk = pages
                    .entry(chunk)
                    .or_insert_with(|| Box::new([NONE; CHUNK_PAGES]));
                if of_chunk[page] == NONE {
                    of_chunk[page] = number as u32;
                }
            }
        }
        Self { blocks, pages }
    }

    /// The number of the block with this byte.
    fn block_at(&self, address: u64) -> Option<u32> {
        let (chunk, page) = chunk(address);
        let first = self.pages.get(&chunk)?[page];
        let from = self.blocks.get(first as usize..)?;
        let near = from.iter().take_while(|block| block.address <= address);
        let place = near.enumerate().find(|(_, block)| address < block.end())?.0;
        Some(first + place as u32)
    }
}

/// One time through the memory.
struct Pass<'a> {
    index: &'a Index,
    memory: Memory,
    watch: &'a Watch,
    /// By block: the number of the root that leads to it, or [`NONE`].
    holders: Vec<u32>,
    roots: Vec<Root>,
    /// Blocks whose contents are still to be looked at.
    queue: Vec<u32>,
    /// Lowest and highest address in a block.
    bounds: (u64, u64),
}

impl<'a> Pass<'a> {
    fn new(index: &'a Index, memory: Memory, watch: &'a Watch) -> Self {
        let first = index.blocks.first().map_or(u64::MAX, |block| block.address);
        let last = index.blocks.iter().map(Block::end).max().unwrap_or(0);
        Self {
            index,
            memory,
            watch,
            holders: vec![NONE; index.blocks.len()],
            roots: Vec::new(),
            queue: Vec::new(),
            bounds: (first, last),
        }
    }

    fn run(&mut self, present: &Present, areas: &[Area], looked: &mut Looked) {
        looked.passes += 1;
        let mut buffer = vec![0; PIECE as usize];
        for area in areas {
            for (from, to, is_there) in present.ranges(area.start, area.end) {
                if !is_there {
                    looked.unread_bytes += to - from;
                    continue;
                }
                for at in (from..to).step_by(PIECE as usize) {
                    if self.watch.is_stopped() {
                        looked.is_cut = true;
                        return;
                    }
                    let bytes = &mut buffer[..PIECE.min(to - at) as usize];
                    match self.memory.read(at, bytes) {
                        Ok(()) => {
                            looked.scanned_bytes += bytes.len() as u64;
                            self.outside(area.kind, at, bytes);
                        }
                        Err(_) => looked.unread_bytes += bytes.len() as u64,
                    }
                    self.watch.add(bytes.len() as u64);
                }
            }
            // What one kind of memory leads to is told as its, before the next is looked at.
            self.follow(looked);
        }
    }

    /// Looks at the words that lie in no block.
    fn outside(&mut self, kind: AreaKind, start: u64, bytes: &[u8]) {
        let blocks = &self.index.blocks;
        let mut next = blocks.partition_point(|block| block.end() <= start);
        for (address, word) in words(start, bytes) {
            while blocks.get(next).is_some_and(|block| block.end() <= address) {
                next += 1;
            }
            let is_inside = blocks
                .get(next)
                .is_some_and(|block| block.address <= address);
            if is_inside || word < self.bounds.0 || word >= self.bounds.1 {
                continue;
            }
            if let Some(block) = self.index.block_at(word)
                && self.holders[block as usize] == NONE
            {
                let root = self.roots.len().min(MAX_ROOTS) as u32;
                self.roots.push(Root { kind, address });
                self.roots.truncate(MAX_ROOTS + 1);
                self.holders[block as usize] = root;
                self.queue.push(block);
            }
        }
    }

    /// Looks at the contents of blocks that are held, until there is none left.
    fn follow(&mut self, looked: &mut Looked) {
        while !self.queue.is_empty() && !self.watch.is_stopped() {
            let from = self.queue.len().saturating_sub(BATCH);
            let batch = self.queue.split_off(from);
            for number in self.each_reference(&batch, looked) {
                let (holder, block) = number;
                if self.holders[block as usize] == NONE {
                    self.holders[block as usize] = self.holders[holder as usize];
                    self.queue.push(block);
                }
            }
        }
        looked.is_cut |= !self.queue.is_empty();
    }

    /// The references from these blocks to others.
    fn each_reference(&self, batch: &[u32], looked: &mut Looked) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        let mut ranges: Vec<(u32, u64, usize)> = Vec::new();
        let mut bytes = 0;
        let mut read = |ranges: &mut Vec<(u32, u64, usize)>| {
            let asked: Vec<_> = ranges.iter().map(|(_, at, len)| (*at, *len)).collect();
            let read = self.memory.read_each(&asked);
            for (place, (number, at, len)) in ranges.drain(..).enumerate() {
                let Some(bytes) = read.get(place) else {
                    looked.unread_bytes += len as u64;
                    continue;
                };
                looked.scanned_bytes += len as u64;
                for (_, word) in words(at, bytes) {
                    if word >= self.bounds.0
                        && word < self.bounds.1
                        && let Some(block) = self.index.block_at(word)
                        && block != number
                    {
                        found.push((number, block));
                    }
                }
            }
        };
        for number in batch {
            let block = self.index.blocks[*number as usize];
            for offset in (0..block.size).step_by(PIECE as usize) {
                let len = PIECE.min(block.size - offset) as usize;
                ranges.push((*number, block.address + offset, len));
                bytes += len as u64;
                if bytes >= 4 * PIECE {
                    read(&mut ranges);
                    bytes = 0;
                }
            }
        }
        read(&mut ranges);
        found
    }

    /// For each block whether a lost one refers to it.
    fn behind_lost(&self) -> Vec<bool> {
        let mut behind = vec![false; self.holders.len()];
        let lost = self.holders.iter().enumerate();
        let lost: Vec<u32> = lost
            .filter(|(_, holder)| **holder == NONE)
            .map(|(number, _)| number as u32)
            .collect();
        for batch in lost.chunks(BATCH) {
            for (_, block) in self.each_reference(batch, &mut Looked::default()) {
                behind[block as usize] = true;
            }
        }
        behind
    }
}

/// The aligned words in `bytes`, which begin at `start`, with their addresses.
fn words(start: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let skipped = (start.next_multiple_of(8) - start).min(bytes.len() as u64);
    let aligned = bytes[skipped as usize..].chunks_exact(8);
    aligned.enumerate().map(move |(place, word)| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        (start + skipped + 8 * place as u64, word)
    })
}
