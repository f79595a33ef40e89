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

use leaktrace_common::{
    MAX_FRAMES, STACK_LEAF_CALLER, STACK_TRUNCATED, StackId, StackRecord, UnwindRow,
};

use crate::{
    stack_copy::StackCopy,
    thread,
    unwind::{Registers, leave, read, row},
};

/// Where a stack is put together. Stacks that follow one another have most of their frames in common, so
/// that the rows of the last one are kept.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    pub record: StackRecord,
    /// The row of each frame of `record`, or [`NO_ROW`].
    rows: [u64; MAX_FRAMES],
    /// The part of the stack that the walk has come to.
    pub copy: StackCopy,
    /// The last stack that is in the map of all stacks; nobody takes one out.
    pub kept: StackId,
}

/// Not known.
const NO_ROW: u64 = 0;

impl Walk {
    /// From the registers of the innermost frame; gives the hash of what it found.
    #[inline(always)]
    pub fn take_here(&mut self, ip: u64, sp: u64, bp: u64) -> StackId {
        self.set(0, ip);
        self.copy.forget();
        outward(self, 1, mix(0, ip), Registers { sp, bp })
    }

    /// For a function that has just returned to `ret`, with the registers that its caller has now; or that has
    /// just been called, with those that its caller will have.
    #[inline(always)]
    pub fn take_from_caller(&mut self, function: u64, ret: u64, sp: u64, bp: u64) -> StackId {
        self.set(0, function);
        self.set(1, ret);
        outward(self, 2, mix(mix(0, function), ret), Registers { sp, bp })
    }

    #[inline(always)]
    fn set(&mut self, frame: usize, address: u64) {
        let frame = frame & (MAX_FRAMES - 1);
        if self.record.frames[frame] != address {
            self.record.frames[frame] = address;
            self.rows[frame] = NO_ROW;
        }
    }

    /// How to leave a frame.
    #[inline(always)]
    fn row(&mut self, frame: usize, address: u64) -> Option<UnwindRow> {
        let known = &raw mut self.rows[frame & (MAX_FRAMES - 1)];
        // SAFETY: it points into `self`, and a row is as large as the word that holds it.
        unsafe {
            match known.read_volatile() {
                NO_ROW => {
                    let row = row(address)?;
                    known.cast::<UnwindRow>().write_volatile(row);
                    Some(row)
                }
                row => Some(core::mem::transmute::<u64, UnwindRow>(row)),
            }
        }
    }
}

/// Goes on from the last of the `len` frames that `record` has, whose registers these are.
///
/// What differs from one way through the loop to the next and is looked at again (flags, the address) goes
/// through `walk`: the verifier does not follow values there, and so the ways are one again at the end of
/// each turn. It follows 210,000 instructions so, and 390,000 with the same in registers.
#[inline(always)]
fn outward(walk: &mut Walk, len: usize, hash: u64, registers: Registers) -> StackId {
    let (mut len, mut hash, mut registers) = (len, hash, registers);
    let mut end = STACK_TRUNCATED;
    walk.record.flags = 0;
    for _ in 0..MAX_FRAMES {
        if len >= MAX_FRAMES {
            break;
        }
        let address = &raw const walk.record.frames[(len - 1) & (MAX_FRAMES - 1)];
        // SAFETY: it points into `walk`.
        let address = unsafe { address.read_volatile() };
        // The instruction whose frame is to be left: behind a call that is the call.
        let row = walk.row(len - 1, address.wrapping_sub(u64::from(len > 1)));
        let left = match leaf_caller(&registers, len == 1 && row.is_none()) {
            Some(caller) => {
                walk.record.flags |= STACK_LEAF_CALLER;
                registers.sp = registers.sp.wrapping_add(8);
                Ok(caller)
            }
            None => leave(&mut registers, row, &mut walk.copy),
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
        walk.set(len, ret);
        hash = mix(hash, ret);
        len += 1;
    }
    walk.record.len = len as u32;
    walk.record.flags |= end;
    StackId(mix(hash, len as u64 | (walk.record.flags as u64) << 32) | 1)
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
