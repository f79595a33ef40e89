//! Which block a call of glibc's `malloc` will give, told where it begins: a probe at its return is dear.
//!
//! Each thread has a cache of free blocks, a list for each size, and `malloc` gives the first of its list if there is
//! one (glibc 2.26 and later, malloc/malloc.c: `tcache_perthread_struct`, `tcache_get`, `csize2tidx`). Nobody but the
//! thread touches that, and the thread is about to call: what is first in the list now is what it will get. A list
//! that is empty foretells nothing, and the return is waited for as of any other function.
//!
//! A thread's blocks are foretold once as many as [`PROOF`] would have been rightly, and one in [`CHECKED`] is
//! compared with what the call returns ever after. The first that is wrong was the last.

use aya_ebpf::{
    Global,
    bindings::pt_regs,
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
};
use leaktrace_common::{ALLOCATOR_CHUNKS, AllocatorCall};

use crate::{
    allocation::place_of_return,
    loss::{self, Loss},
    thread::{Thread, read},
};

/// Where the kernel keeps a task's thread pointer (`thread.fsbase` of `struct task_struct`), in bytes; zero: not
/// known. User space sets it before it loads the object.
#[unsafe(no_mangle)]
static THREAD_POINTER: Global<u32> = Global::new(0);

/// How many blocks must come as they would have been foretold.
const PROOF: u64 = 64;
/// How many later ones come to one that is checked.
const CHECKED: u64 = 256;
/// Instead of a number of those that came so: one did not.
const WRONG: u64 = u64::MAX;

/// Lists of a cache.
const LISTS: u64 = 64;

/// What is known of the cache of a thread.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Cache {
    /// Where the thread's variable lies that points to it; zero: not known yet.
    variable: u64,
    /// How far its lists lie from its beginning; zero: not known yet.
    lists: u64,
    /// How many blocks came as foretold, or [`WRONG`].
    proofs: u64,
}

impl Thread {
    /// Whether `malloc`, which begins, will give a block that is known: then it is the thread's `block`. If it is
    /// to be waited for, the thread's `foretold` is what is expected, or zero.
    #[inline(always)]
    pub fn foretell(&mut self, regs: &pt_regs, call: &AllocatorCall) -> bool {
        self.foretold = 0;
        if call.cache == 0 || self.cache.proofs == WRONG {
            return false;
        }
        let size = regs.rdi;
        let block = self.cache.first(call.cache, size).unwrap_or(0);
        if block == 0 {
            return false;
        }
        self.foretold = block;
        if self.cache.proofs < PROOF || self.cache.proofs.is_multiple_of(CHECKED) {
            return false;
        }
        self.cache.proofs += 1;
        self.block = block;
        self.size = size;
        self.function = call.function;
        self.has_chunks = u64::from(call.action & ALLOCATOR_CHUNKS);
        self.place = place_of_return(regs, call);
        self.ret = 0;
        self.bp = regs.rbp;
        true
    }

    /// A call has given that block, or null.
    #[inline(always)]
    pub fn check_foretold(&mut self, block: u64) {
        if self.foretold == 0 {
            return;
        }
        if self.foretold == block {
            self.cache.proofs += 1;
        } else {
            if self.cache.proofs >= PROOF {
                loss::count(Loss::BlockMistaken);
            }
            self.cache.proofs = WRONG;
        }
        self.foretold = 0;
    }
}

impl Cache {
    /// The first block in the list for that size.
    #[inline(always)]
    fn first(&mut self, place: i64, size: u64) -> Option<u64> {
        // `csize2tidx` of the size of the chunk, which is that of the block and of a word, in steps of 16 from 32.
        let list = size.saturating_sub(9) / 16;
        if list >= LISTS {
            return None;
        }
        if self.variable == 0 {
            self.variable = variable(place)?;
        }
        let cache = read(self.variable).ok().filter(|cache| *cache != 0)?;
        if self.lists == 0 {
            self.lists = lists(cache)?;
        }
        read(cache.wrapping_add(self.lists + 8 * list)).ok()
    }
}

/// Where the current thread's variable lies, of which a call says how it is found.
#[inline(always)]
fn variable(place: i64) -> Option<u64> {
    let offset = match place {
        ..0 => place as u64,
        _ => read(place as u64).ok()?,
    };
    let at = match THREAD_POINTER.load() {
        0 => return None,
        at => u64::from(at),
    };
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    // SAFETY: the helper copies from kernel memory and fails rather than faults.
    let pointer = unsafe { bpf_probe_read_kernel(task.wrapping_add(at) as *const u64) };
    Some(pointer.ok()?.wrapping_add(offset))
}

/// How far the lists lie from the beginning of a cache, by the size of its own chunk: behind 64 counts of one byte
/// until glibc 2.29, of two until 2.41. Others are not known.
#[inline(always)]
fn lists(cache: u64) -> Option<u64> {
    const FLAGS: u64 = 7;
    match read(cache.wrapping_sub(8)).ok()? & !FLAGS {
        0x250 => Some(64),
        0x290 => Some(128),
        _ => None,
    }
}
