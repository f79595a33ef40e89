//! A Rust program with jemalloc inside: every way of allocating from a function of its own, and the truth
//! about it, as `allocs.c` has it.
//!
//!   rusty THREADS
//!
//! The line "run N" on stdin lets each thread do N rounds; it is answered, when that is done, by a line of
//! JSON. At first nothing is allocated.

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc},
    env, hint,
    io::{Read as _, Write as _, stdin, stdout},
    mem::ManuallyDrop,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NAMES: [&str; 6] = [
    "by_vec",
    "by_zeroed",
    "by_grown",
    "by_aligned",
    "by_aligned_zeroed",
    "by_moved",
];
const VEC: usize = 0;
const ZEROED: usize = 1;
const GROWN: usize = 2;
const ALIGNED: usize = 3;
const ALIGNED_ZEROED: usize = 4;
const MOVED: usize = 5;

/// Blocks allocated and their bytes, blocks freed and their bytes.
static COUNTS: [[AtomicU64; 4]; NAMES.len()] = [const { [const { AtomicU64::new(0) }; 4] }; 6];

struct Block {
    site: usize,
    at: *mut u8,
    layout: Layout,
}

/// As large as a cache line or more, as for AVX-512 or a page.
const ALIGNMENT: usize = 4096;

fn bytes(size: usize) -> Layout {
    Layout::array::<u8>(size).unwrap()
}

fn aligned(size: usize) -> Layout {
    Layout::from_size_align(size, ALIGNMENT).unwrap()
}

fn born(site: usize, at: *mut u8, layout: Layout) -> Block {
    assert!(!at.is_null());
    // SAFETY: the block is ours and has a byte at least.
    unsafe { hint::black_box(at).write_volatile(1) };
    COUNTS[site][0].fetch_add(1, Relaxed);
    COUNTS[site][1].fetch_add(layout.size() as u64, Relaxed);
    Block { site, at, layout }
}

fn died(block: &Block) {
    COUNTS[block.site][2].fetch_add(1, Relaxed);
    COUNTS[block.site][3].fetch_add(block.layout.size() as u64, Relaxed);
}

fn of_vec(site: usize, vec: Vec<u8>) -> Block {
    let mut vec = ManuallyDrop::new(vec);
    born(site, vec.as_mut_ptr(), bytes(vec.capacity()))
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_vec(size: usize) -> Block {
    of_vec(VEC, Vec::with_capacity(size))
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_zeroed(size: usize) -> Block {
    of_vec(ZEROED, vec![0; size])
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_grown(old: Block, size: usize) -> Block {
    // SAFETY: it was taken out of such a vector.
    let mut vec = unsafe { Vec::from_raw_parts(old.at, 0, old.layout.size()) };
    vec.reserve_exact(size);
    died(&old);
    of_vec(GROWN, vec)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_aligned(size: usize) -> Block {
    // SAFETY: the layout is not empty.
    let at = unsafe { alloc(aligned(size)) };
    born(ALIGNED, at, aligned(size))
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_aligned_zeroed(size: usize) -> Block {
    // SAFETY: the layout is not empty.
    let at = unsafe { alloc_zeroed(aligned(size)) };
    born(ALIGNED_ZEROED, at, aligned(size))
}

#[unsafe(no_mangle)]
#[inline(never)]
fn by_moved(old: Block, size: usize) -> Block {
    // SAFETY: the block is ours and has this layout.
    let at = unsafe { realloc(old.at, old.layout, size) };
    died(&old);
    born(MOVED, at, aligned(size))
}

fn give_back(block: Block) {
    died(&block);
    // SAFETY: the block is ours and has this layout.
    unsafe { dealloc(block.at, block.layout) };
}

fn work(rounds: usize) {
    let mut ring = [const { None }; 64];
    for round in 0..rounds {
        let size = 16 + round * 7 % 1000;
        let block = match round % 6 {
            0 => by_vec(size),
            1 => by_zeroed(size),
            2 => by_grown(by_vec(size), 3 * size),
            3 => by_aligned(size),
            4 => by_aligned_zeroed(size),
            _ => by_moved(by_aligned(size), 9 * size),
        };
        if let Some(old) = ring[round % 64].replace(block) {
            give_back(old);
        }
    }
    ring.into_iter().flatten().for_each(give_back);
}

fn run(threads: usize, rounds: usize) {
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(rounds));
        }
    });
}

fn tell(asked: &str) {
    let mut out = stdout().lock();
    write!(out, "{{\"asked\":\"{asked}\"").unwrap();
    for (name, counts) in NAMES.iter().zip(&COUNTS) {
        let [a, b, c, d] = counts.each_ref().map(|count| count.load(Relaxed));
        write!(out, ",\"{name}\":[{a},{b},{c},{d}]").unwrap();
    }
    writeln!(out, "}}").unwrap();
}

fn main() {
    let threads = env::args().nth(1).map_or(1, |text| text.parse().unwrap());
    // What the standard library keeps for a thread: let it have that now.
    run(threads, 0);
    tell("");
    let mut line = [0; 64];
    let mut len = 0;
    while stdin().read(&mut line[len..=len]).unwrap() == 1 {
        if line[len] != b'\n' {
            len = (len + 1).min(line.len() - 1);
            continue;
        }
        let asked = str::from_utf8(&line[..len]).unwrap();
        if let Some(rounds) = asked.strip_prefix("run ") {
            run(threads, rounds.parse().unwrap());
        }
        tell(asked);
        len = 0;
    }
}
