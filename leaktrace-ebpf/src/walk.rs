//! The walk itself: each frame is left by its rule if it has one, else by its frame pointer.
//!
//! Our own walk, not `bpf_get_stack`: that one starts at the frame pointer and so loses the caller
//! of a function that has not set up a frame, and it does not say why it ended. The innermost
//! functions of a system call are such (libc's `mmap`, `mremap`, `sbrk`), and so is the C code of a
//! Go program: user space tells how to leave them (`FRAME_RULES`). Where it could not (Go's
//! `Syscall6`, JIT code), the word at the top of the stack is taken for the return address if a
//! `call` stands before the place it points to.
//!
//! A frame pointer below the stack pointer belongs to another stack: frames between have not set
//! it, and the walk ends there rather than leave them out. Only where user space says that the
//! function has changed stacks, as Go's `asmcgocall` does, is it followed.

use aya_ebpf::helpers::bpf_probe_read_user;
use leaktrace_common::{
    FrameRule, MAX_FRAMES, STACK_BROKEN, STACK_LEAF_CALLER, STACK_TRUNCATED, STACK_UNREADABLE,
    StackId, StackRecord,
};

use crate::{maps::FRAME_RULES, thread};

/// Where a walk stands.
struct Walk {
    ip: u64,
    sp: u64,
    bp: u64,
    hash: u64,
    len: usize,
    flags: u32,
}

/// Fills `record` from the registers of the innermost frame; gives the hash of what it found.
#[inline(always)]
pub fn walk(record: &mut StackRecord, ip: u64, sp: u64, bp: u64) -> StackId {
    record.frames[0] = ip;
    let mut walk = Walk {
        ip,
        sp,
        bp,
        hash: mix(0, ip),
        len: 1,
        flags: 0,
    };
    if rule(ip).is_none() {
        let leaf = read(sp as *const u64).unwrap_or(0);
        let (_, first) = read(bp as *const (u64, u64)).unwrap_or((0, 0));
        if leaf != first && follows_call(leaf) {
            record.frames[1] = leaf;
            walk.hash = mix(walk.hash, leaf);
            walk.len = 2;
            walk.flags = STACK_LEAF_CALLER;
            (walk.ip, walk.sp) = (leaf, sp.wrapping_add(8));
        }
    }
    outward(record, walk)
}

/// Fills `record` for a function that has just returned to `ret`, with the registers that its caller
/// has now.
#[inline(always)]
pub fn walk_from_caller(
    record: &mut StackRecord,
    function: u64,
    ret: u64,
    sp: u64,
    bp: u64,
) -> StackId {
    record.frames[0] = function;
    record.frames[1] = ret;
    let walk = Walk {
        ip: ret,
        sp,
        bp,
        hash: mix(mix(0, function), ret),
        len: 2,
        flags: 0,
    };
    outward(record, walk)
}

#[inline(always)]
fn outward(record: &mut StackRecord, walk: Walk) -> StackId {
    let Walk {
        mut ip,
        mut sp,
        mut bp,
        mut hash,
        mut len,
        flags,
    } = walk;
    let mut flags = flags | STACK_TRUNCATED;
    for _ in 0..MAX_FRAMES {
        if len >= MAX_FRAMES {
            break;
        }
        let rule = rule(ip);
        let place;
        let ret = if let Some(rule) = rule.filter(|rule| rule.cfa != 0) {
            sp = sp.wrapping_add_signed(i64::from(rule.cfa));
            if rule.saved_bp != 0 {
                let saved = sp.wrapping_add_signed(i64::from(rule.saved_bp));
                bp = read(saved as *const u64).unwrap_or(0);
            }
            place = sp.wrapping_sub(8);
            read(place as *const u64)
        } else if bp == 0 {
            place = 0;
            Some(0)
        } else if bp < sp && rule.is_none() {
            flags = flags & !STACK_TRUNCATED | STACK_BROKEN;
            break;
        } else if let Some((next, ret)) = read(bp as *const (u64, u64)) {
            place = bp.wrapping_add(8);
            (sp, bp) = (bp.wrapping_add(16), next);
            Some(ret)
        } else {
            place = 0;
            None
        };
        let Some(ret) = ret.map(|ret| thread::returns_to(ret, place)) else {
            flags = flags & !STACK_TRUNCATED | STACK_UNREADABLE;
            break;
        };
        if ret == 0 {
            flags &= !STACK_TRUNCATED;
            break;
        }
        record.frames[len & (MAX_FRAMES - 1)] = ret;
        hash = mix(hash, ret);
        len += 1;
        ip = ret;
    }
    record.len = len as u32;
    record.flags = flags;
    StackId(mix(hash, len as u64 | (flags as u64) << 32) | 1)
}

/// How to leave the frame at `ip`, if user space knows.
#[inline(always)]
fn rule(ip: u64) -> Option<FrameRule> {
    // SAFETY: user space fills the map before the attach; nobody writes it afterwards.
    unsafe { FRAME_RULES.get(ip) }.copied()
}

/// Whether the instruction that ends at `address` may be a `call`: `e8 rel32` or `ff /2`.
#[inline(always)]
fn follows_call(address: u64) -> bool {
    let Some(b) = read(address.wrapping_sub(7) as *const [u8; 7]) else {
        return false;
    };
    let indirect = |at: usize| b[at] == 0xff && b[at + 1] & 0x38 == 0x10;
    b[2] == 0xe8 || indirect(5) || indirect(4) || indirect(1) || indirect(0)
}

#[inline(always)]
fn read<T>(address: *const T) -> Option<T> {
    // SAFETY: the helper copies from the target's memory and fails rather than faults.
    unsafe { bpf_probe_read_user(address) }.ok()
}

/// One step of a 64-bit hash (multiply and fold; the constant is 2^64 / golden ratio).
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}
