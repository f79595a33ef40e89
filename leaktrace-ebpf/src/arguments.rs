//! Arguments of the function that begins now.

use aya_ebpf::bindings::pt_regs;

/// The arguments as the System V ABI passes them, and zeros: [`NO_ARGUMENT`](leaktrace_common::NO_ARGUMENT) is one of these.
#[inline(always)]
pub fn arguments(regs: &pt_regs) -> [u64; 8] {
    [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, 0, 0, 0]
}

#[inline(always)]
pub fn argument(arguments: &[u64; 8], n: u8) -> u64 {
    arguments[usize::from(n & 7)]
}
