//! The walk itself: each frame is left by its rule if it has one, else by its frame pointer.
//!
//! Our own walk, not `bpf_get_stack`: that one knows frame pointers only, starts at the frame pointer and
//! so loses the caller of a function that has not set up a frame, and does not say why it ended. The
//! unwind tables tell how to leave the frames of whatever has call frame information (`unwind`). Where
//! the innermost frame has no rule (Go's `Syscall6`, JIT code), the word at the top of the stack is taken
//! for the return address if a `call` stands before the place it points to.
//!
//! A frame pointer below the stack pointer belongs to another stack: frames between have not set
//! it, and the walk ends there rather than leave them out. Only where user space says that the
//! function has changed stacks, as Go's `asmcgocall` does, is it followed.

use leaktrace_common::{MAX_FRAMES, STACK_LEAF_CALLER, STACK_TRUNCATED, StackId, StackRecord};

use crate::{
    thread,
    unwind::{Registers, leave, read, row},
};

/// Fills `record` from the registers of the innermost frame; gives the hash of what it found.
#[inline(always)]
pub fn walk(record: &mut StackRecord, ip: u64, sp: u64, bp: u64) -> StackId {
    record.frames[0] = ip;
    outward(record, 1, mix(0, ip), Registers { sp, bp })
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
    outward(record, 2, mix(mix(0, function), ret), Registers { sp, bp })
}

/// Goes on from the last of the `len` frames that `record` has, whose registers these are.
///
/// What differs from one way through the loop to the next and is looked at again (flags, the address) goes
/// through `record`: the verifier does not follow values there, and so the ways are one again at the end of
/// each turn. It follows 210,000 instructions so, and 390,000 with the same in registers.
#[inline(always)]
fn outward(record: &mut StackRecord, len: usize, hash: u64, registers: Registers) -> StackId {
    let (mut len, mut hash, mut registers) = (len, hash, registers);
    let mut end = STACK_TRUNCATED;
    record.flags = 0;
    for _ in 0..MAX_FRAMES {
        if len >= MAX_FRAMES {
            break;
        }
        let address = &raw const record.frames[(len - 1) & (MAX_FRAMES - 1)];
        // SAFETY: it points into `record`.
        let address = unsafe { address.read_volatile() };
        // The instruction whose frame is to be left: behind a call that is the call.
        let row = row(address.wrapping_sub(u64::from(len > 1)));
        let left = match leaf_caller(&registers, len == 1 && row.is_none()) {
            Some(caller) => {
                record.flags |= STACK_LEAF_CALLER;
                registers.sp = registers.sp.wrapping_add(8);
                Ok(caller)
            }
            None => leave(&mut registers, row),
        };
        let ret = match left {
            Ok(0) => {
                end = 0;
                break;
            }
            Ok(ret) => returns_to(ret, &mut registers),
            Err(flag) => {
                end = flag;
                break;
            }
        };
        record.frames[len & (MAX_FRAMES - 1)] = ret;
        hash = mix(hash, ret);
        len += 1;
    }
    record.len = len as u32;
    record.flags |= end;
    StackId(mix(hash, len as u64 | (record.flags as u64) << 32) | 1)
}

/// Where a function really returns to, whose frame `registers` have just left. While a uretprobe waits for
/// the return of an allocator's function, the kernel's trampoline stands in the return address's place, and
/// in those of the functions that this one has called; from there the walk goes on with the caller of the
/// outermost of them.
#[inline(always)]
fn returns_to(ret: u64, registers: &mut Registers) -> u64 {
    let call = thread::is_trampoline(ret).then(|| thread::call_around(registers.sp));
    let Some(call) = call.flatten() else {
        return ret;
    };
    let caller = call.sp.wrapping_add(8);
    if registers.sp != caller {
        (registers.sp, registers.bp) = (caller, call.bp);
    }
    call.ret
}

/// The caller of an innermost function that may have no frame: what is at the top of the stack, if it
/// looks like a return address and is not the one that the frame pointer leads to.
#[inline(always)]
fn leaf_caller(registers: &Registers, may_be_leaf: bool) -> Option<u64> {
    if !may_be_leaf {
        return None;
    }
    let caller = read(registers.sp as *const u64)?;
    let (_, next) = read(registers.bp as *const (u64, u64)).unwrap_or((0, 0));
    (caller != next && follows_call(caller)).then_some(caller)
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

/// One step of a 64-bit hash (multiply and fold; the constant is 2^64 / golden ratio).
#[inline(always)]
fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}
