//! Which blocks of a native allocator something still points to: what LeakSanitizer asks at the end of a
//! program, asked of one that runs on.
//!
//! Everything that can be written is gone through word by word, but for the blocks themselves and the dead part of
//! stacks; blocks that are pointed to are gone through in turn. A pointer may be moved meanwhile from what is
//! still to be read to what has been read, so what nothing points to is looked for a second time.
//!
//! Conservative: a word that looks like an address in a block counts as one. Registers are those of when a thread
//! last entered the kernel: it is not stopped for it.

use std::{collections::HashMap, io, iter, ops::Range, time::Instant};

use super::Watch;
use crate::target::{Area, AreaKind, Memory, Present};

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;
/// Blocks that are gone through in one read.
const BATCH: usize = 4096;
/// Pages of a chunk of the index, each of 4 KiB.
const CHUNK_PAGES: usize = 512;
const PAGE: u64 = 4096;
/// Roots kept; what is found beyond is told as the last of them.
const MAX_ROOTS: usize = 1 << 20;
/// What is needed beside the tables: buffers, and the roots of two passes.
const OVERHEAD: u64 = 64 << 20;
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
    /// This, outside of all blocks.
    Held(Root),
    /// Nothing.
    Lost,
    /// Blocks only that are lost themselves.
    LostBehind,
}

/// What refers to a block from outside of all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// The word at this address, in such memory.
    Word(AreaKind, u64),
    /// A register of a thread.
    Register,
}

/// What the threads have in their registers; the error says why that is not known.
pub type Registers<'a> = &'a dyn Fn() -> io::Result<Vec<u64>>;

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The blocks, in the order of their addresses.
    pub blocks: Vec<Block>,
    /// What refers to each of them.
    fates: Vec<Fate>,
    /// What was looked at.
    pub looked: Looked,
    /// Why registers were not.
    pub no_registers: Option<String>,
}

impl Found {
    /// What refers to a block; `None`: it was not looked for.
    pub fn fate(&self, block: &Block) -> Option<Fate> {
        let place = self.blocks.binary_search(block).ok()?;
        self.fates.get(place).copied()
    }
}

/// What was looked at, by the last pass.
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
    /// From the first byte in a block to behind the last: most words are no address of one.
    bounds: Range<u64>,
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
    // What holds it, by two passes; the queue; whether it is behind a lost one.
    let each = size_of::<Block>() + size_of::<Fate>() + 3 * size_of::<u32>() + 1;
    blocks.len() as u64 * each as u64 + chunks * (CHUNK_PAGES as u64 * 4 + 32) + OVERHEAD
}

/// Finds out what refers to each of these blocks, which are in the order of their addresses. `areas` are
/// what can be written, what says most first; `registers` come last.
pub fn find(
    memory: Memory,
    present: &Present,
    areas: &[Area],
    registers: Registers<'_>,
    blocks: Vec<Block>,
    watch: &Watch,
) -> Found {
    let started = Instant::now();
    let index = Index::new(blocks);
    let mut pass = Pass::new(&index, memory, watch);
    pass.run(present, areas, registers);
    if !pass.looked.is_cut && pass.holders.contains(&NONE) {
        let mut again = Pass::new(&index, memory, watch);
        again.run(present, areas, registers);
        pass.complete(again);
    }
    let behind = pass.behind_lost();
    let fates = pass.holders.iter().zip(behind).map(|(holder, behind)| {
        match (pass.roots.get(*holder as usize), behind) {
            (Some(root), _) => Fate::Held(*root),
            (None, true) => Fate::LostBehind,
            (None, false) => Fate::Lost,
        }
    });
    Found {
        fates: fates.collect(),
        looked: Looked {
            took_ms: started.elapsed().as_secs_f64() * 1000.0,
            ..pass.looked
        },
        no_registers: pass.no_registers,
        blocks: index.blocks,
    }
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
        let first = blocks.first().map_or(0, |block| block.address);
        let behind = blocks.iter().map(Block::end).max().unwrap_or(0);
        Self {
            blocks,
            pages,
            bounds: first..behind,
        }
    }

    /// The number of the block with this byte.
    fn block_at(&self, address: u64) -> Option<u32> {
        if !self.bounds.contains(&address) {
            return None;
        }
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
    looked: Looked,
    no_registers: Option<String>,
}

impl<'a> Pass<'a> {
    fn new(index: &'a Index, memory: Memory, watch: &'a Watch) -> Self {
        Self {
            index,
            memory,
            watch,
            holders: vec![NONE; index.blocks.len()],
            roots: Vec::new(),
            queue: Vec::new(),
            looked: Looked {
                passes: 1,
                ..Looked::default()
            },
            no_registers: None,
        }
    }

    fn run(&mut self, present: &Present, areas: &[Area], registers: Registers<'_>) {
        self.watch
            .begin(areas.iter().map(|area| area.end - area.start).sum());
        let mut buffer = vec![0; PIECE as usize];
        for area in areas {
            for (from, to, is_there) in present.ranges(area.start, area.end) {
                if !is_there {
                    self.looked.unread_bytes += to - from;
                    continue;
                }
                for at in (from..to).step_by(PIECE as usize) {
                    if self.watch.is_stopped() {
                        self.looked.is_cut = true;
                        return;
                    }
                    let bytes = &mut buffer[..PIECE.min(to - at) as usize];
                    match self.memory.read(at, bytes) {
                        Ok(()) => {
                            self.looked.scanned_bytes += bytes.len() as u64;
                            self.outside(area.kind, at, bytes);
                        }
                        Err(_) => self.looked.unread_bytes += bytes.len() as u64,
                    }
                    self.watch.add(bytes.len() as u64);
                }
            }
            // What one kind of memory leads to is told as its, before the next is looked at.
            self.follow();
        }
        match registers() {
            Ok(words) => words
                .iter()
                .for_each(|word| self.refers(*word, Root::Register)),
            Err(error) => self.no_registers = Some(error.to_string()),
        }
        self.follow();
    }

    /// A word of `root` may be the address of a block.
    fn refers(&mut self, word: u64, root: Root) {
        if let Some(block) = self.index.block_at(word)
            && self.holders[block as usize] == NONE
        {
            if self.roots.len() < MAX_ROOTS {
                self.roots.push(root);
            }
            self.holders[block as usize] = (self.roots.len() - 1) as u32;
            self.queue.push(block);
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
            if !is_inside {
                self.refers(word, Root::Word(kind, address));
            }
        }
    }

    /// Looks at the contents of blocks that are held, until there is none left.
    fn follow(&mut self) {
        while !self.queue.is_empty() && !self.watch.is_stopped() {
            let from = self.queue.len().saturating_sub(BATCH);
            let batch = self.queue.split_off(from);
            let (references, read) = self.references(&batch);
            self.looked.scanned_bytes += read.scanned_bytes;
            self.looked.unread_bytes += read.unread_bytes;
            for (holder, block) in references {
                if self.holders[block as usize] == NONE {
                    self.holders[block as usize] = self.holders[holder as usize];
                    self.queue.push(block);
                }
            }
        }
        self.looked.is_cut |= !self.queue.is_empty();
    }

    /// The references from these blocks to others, and what was read for it.
    fn references(&self, batch: &[u32]) -> (Vec<(u32, u32)>, Looked) {
        let pieces = |number: &u32| {
            let block = self.index.blocks[*number as usize];
            let offsets = (0..block.size).step_by(PIECE as usize);
            let number = *number;
            offsets.map(move |offset| {
                let len = PIECE.min(block.size - offset) as usize;
                (number, (block.address + offset, len))
            })
        };
        let mut pieces = batch.iter().flat_map(pieces).peekable();
        let (mut found, mut looked) = (Vec::new(), Looked::default());
        while pieces.peek().is_some() {
            let mut bytes = 0;
            let part: Vec<_> = iter::from_fn(|| {
                let piece = pieces.next_if(|_| bytes < 4 * PIECE)?;
                bytes += piece.1.1 as u64;
                Some(piece)
            })
            .collect();
            let ranges: Vec<_> = part.iter().map(|(_, range)| *range).collect();
            let read = self.memory.read_each(&ranges);
            for (place, (number, (at, len))) in part.into_iter().enumerate() {
                let Some(bytes) = read.get(place) else {
                    looked.unread_bytes += len as u64;
                    continue;
                };
                looked.scanned_bytes += len as u64;
                let to = words(at, bytes).filter_map(|(_, word)| self.index.block_at(word));
                found.extend(to.filter(|to| *to != number).map(|to| (number, to)));
            }
        }
        (found, looked)
    }

    /// Takes in what a second pass leads to, of the blocks to which this one does not.
    fn complete(&mut self, again: Self) {
        for (holder, other) in self.holders.iter_mut().zip(again.holders) {
            if *holder == NONE
                && let Some(root) = again.roots.get(other as usize)
            {
                *holder = self.roots.len() as u32;
                self.roots.push(*root);
            }
        }
        self.looked = Looked {
            passes: 2,
            ..again.looked
        };
        self.no_registers = again.no_registers;
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
            for (_, block) in self.references(batch).0 {
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
