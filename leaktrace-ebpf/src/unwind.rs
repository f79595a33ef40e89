//! How to leave a frame: by the row of the unwind tables that holds for its instruction.
//!
//! User space makes the tables from the call frame information of every mapped file
//! (`plan::frame_table`); what has none has no rows, and is left by the frame pointer.

use aya_ebpf::helpers::bpf_probe_read_user;
use leaktrace_common::{
    RULE_AT_BP, RULE_BP, RULE_CHANGED_STACKS, RULE_END, RULE_SIGNAL, RULE_SP, RULE_UNKNOWN,
    STACK_BROKEN, STACK_NO_RULE, STACK_UNREADABLE, UNWIND_CHUNK, UNWIND_PAGE, UnwindRow,
};

use crate::{
    maps::{UNWIND_PAGES, UNWIND_ROWS},
    stack_copy::StackCopy,
};

const PAGE: u64 = UNWIND_PAGE as u64;
const CHUNK: usize = UNWIND_CHUNK as usize;
/// Halvings of as many rows as a page can have until one is left.
const HALVINGS: u32 = UNWIND_PAGE.ilog2();

/// The registers that a walk needs, as of the frame that it has reached.
pub struct Registers {
    pub sp: u64,
    pub bp: u64,
}

/// The row for an instruction, if its page has any: the last one that begins at or before it.
#[inline(always)]
pub fn row(address: u64) -> Option<UnwindRow> {
    // SAFETY: the value is two integers; user space may replace it meanwhile by one that is as right.
    let page = unsafe { UNWIND_PAGES.get(address / PAGE) }?;
    let chunk = UNWIND_ROWS.get(page.first / CHUNK as u32)?;
    let within = address % PAGE;
    let mut first = u64::from(page.first);
    let mut rows = u64::from(page.rows);
    for _ in 0..HALVINGS {
        let half = rows / 2;
        let middle = chunk[(first + half) as usize % CHUNK];
        let begins_later = within.wrapping_sub(u64::from(middle.at) % PAGE);
        first += half & !sign(begins_later);
        rows -= half;
    }
    Some(chunk[first as usize % CHUNK])
}

/// All ones for a negative number, else zero. Not a comparison, for the verifier's sake: at a branch in a
/// loop within a loop it would follow both ways.
#[inline(always)]
fn sign(number: u64) -> u64 {
    let mut sign = number as i64;
    // SAFETY: changes nothing but the register that it is given.
    unsafe { core::arch::asm!("{0} s>>= 63", inout(reg) sign) };
    sign as u64
}

/// Leaves a frame by the row of its instruction: `registers` become those of its caller. Gives the return
/// address, zero at the end of the stack; the error is a `STACK_…` flag.
#[inline(always)]
pub fn leave(
    registers: &mut Registers,
    row: Option<UnwindRow>,
    stack: &mut StackCopy,
) -> Result<u64, u32> {
    let row = row.unwrap_or_default();
    let Registers { sp, bp } = *registers;
    let offset = i64::from(row.cfa);
    let saved = i64::from(row.saved_bp);
    let (cfa, saved_at) = match (u32::from(row.at) / UNWIND_PAGE) as u8 {
        RULE_SP => (sp.wrapping_add_signed(offset), saved),
        RULE_BP => (bp.wrapping_add_signed(offset), saved),
        RULE_AT_BP => {
            registers.bp = word(bp)?;
            (word(bp.wrapping_add_signed(offset))?, 0)
        }
        RULE_SIGNAL => return leave_signal_handler(registers),
        RULE_END => return Ok(0),
        RULE_UNKNOWN => return Err(STACK_NO_RULE),
        kind => return leave_by_frame_pointer(registers, kind == RULE_CHANGED_STACKS, stack),
    };
    // A stack grows downwards: its callers are above.
    if cfa <= sp {
        return Err(STACK_BROKEN);
    }
    registers.sp = cfa;
    // The usual case, by one reading: the frame pointer was pushed before everything else.
    if saved_at == -16 {
        let words = stack.pair(cfa.wrapping_sub(16));
        let (saved, ret) = words.ok_or(STACK_UNREADABLE)?;
        registers.bp = saved;
        return Ok(ret);
    }
    if saved_at != 0 {
        registers.bp = word(cfa.wrapping_add_signed(saved_at))?;
    }
    stack.word(cfa.wrapping_sub(8)).ok_or(STACK_UNREADABLE)
}

/// By the frame pointer: the return address is above the caller's, to which it points.
#[inline(always)]
fn leave_by_frame_pointer(
    registers: &mut Registers,
    is_other_stack: bool,
    stack: &mut StackCopy,
) -> Result<u64, u32> {
    let Registers { sp, bp } = *registers;
    // Zero ends the chain, of frame pointers as of return addresses; or the function keeps none, and the
    // register has whatever it is used for. Which of both, the function's name tells.
    if bp == 0 || bp < sp && !is_other_stack {
        return Err(STACK_BROKEN);
    }
    let (next, ret) = stack.pair(bp).ok_or(STACK_UNREADABLE)?;
    (registers.sp, registers.bp) = (bp.wrapping_add(16), next);
    match ret {
        0 => Err(STACK_BROKEN),
        ret => Ok(ret),
    }
}

/// To where a signal came: the stack pointer is at the kernel's `struct ucontext`, which has RBP at 120,
/// RSP at 160 and RIP at 168 (arch/x86/include/uapi/asm/sigcontext.h). The address that is given is one
/// past the interrupted instruction, as a return address is past its call.
#[inline(always)]
fn leave_signal_handler(registers: &mut Registers) -> Result<u64, u32> {
    let saved = registers.sp.wrapping_add(120) as *const [u64; 7];
    let saved = read(saved).ok_or(STACK_UNREADABLE)?;
    (registers.bp, registers.sp) = (saved[0], saved[5]);
    Ok(saved[6].wrapping_add(1))
}

#[inline(always)]
fn word(address: u64) -> Result<u64, u32> {
    read(address as *const u64).ok_or(STACK_UNREADABLE)
}

#[inline(always)]
pub fn read<T>(address: *const T) -> Option<T> {
    // SAFETY: the helper copies from the target's memory and fails rather than faults.
    unsafe { bpf_probe_read_user(address) }.ok()
}
