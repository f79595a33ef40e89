//! How to leave the frames at which a stack goes from C to Go and from Go to C.
//!
//! - Go calls C: `runtime.asmcgocall` changes from the goroutine's stack to that of the thread and
//!   calls. It leaves the frame pointer alone, and C code keeps it for its caller: when `asmcgocall`
//!   is reached, the frame pointer is a Go frame's, on the goroutine's stack (runtime/asm_amd64.s,
//!   Go 1.19 to 1.27; up to 1.20 it has no frame of its own, so that its caller is left out).
//! - C calls Go: `crosscall2` saves C's registers and calls `runtime.cgocallback`, which changes to
//!   the goroutine's stack with its own frame pointer in place. What `crosscall2` leaves in the frame
//!   pointer is no frame from Go 1.21 on: its own code says where C's is (runtime/cgo/asm_amd64.s,
//!   abi_amd64.h).

#![forbid(unsafe_code)]

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};
use leaktrace_common::RULE_CHANGED_STACKS;

use super::frame_rule::FrameRule;
use crate::go::GoBinary;

const CHANGED_STACKS: FrameRule = FrameRule::of_kind(RULE_CHANGED_STACKS);

/// The rules of a Go executable's own crossings, by link-time address; none in one without cgo.
pub fn crossings(binary: &GoBinary) -> Vec<(u64, FrameRule)> {
    let mut rules = Vec::new();
    if !binary.cgo() {
        return rules;
    }
    // The assembly, and the wrapper by which Go code calls it: that has a frame, and the rule changes
    // nothing.
    for function in binary.functions("runtime.asmcgocall") {
        let calls = calls(binary.code(&function).unwrap_or_default(), function.entry);
        rules.extend(calls.map(|(address, _)| (address, CHANGED_STACKS)));
    }
    for function in binary.functions("crosscall2") {
        let code = binary.code(&function).unwrap_or_default();
        rules.extend(calls(code, function.entry).take(1));
    }
    rules
}

/// The return addresses of the calls in a function's code, each with the rule that the instructions before it
/// make: right for straight code.
fn calls(code: &[u8], entry: u64) -> impl Iterator<Item = (u64, FrameRule)> {
    let mut rule = FrameRule::sp(8, 0);
    let decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
    decoder.into_iter().filter_map(move |instruction| {
        let flow = instruction.flow_control();
        if matches!(flow, FlowControl::Call | FlowControl::IndirectCall) {
            return Some((instruction.next_ip(), rule));
        }
        let saves_bp = |register| register == Register::RBP && rule.saved_bp == 0;
        match instruction.code() {
            Code::Push_r64 => {
                rule.cfa += 8;
                if saves_bp(instruction.op0_register()) {
                    rule.saved_bp = (-rule.cfa) as i16;
                }
            }
            Code::Pushfq => rule.cfa += 8,
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
                if instruction.op0_register() == Register::RSP =>
            {
                rule.cfa = rule.cfa.wrapping_add(instruction.immediate(1) as i32);
            }
            Code::Mov_rm64_r64
                if instruction.memory_base() == Register::RSP
                    && saves_bp(instruction.op1_register()) =>
            {
                rule.saved_bp =
                    (instruction.memory_displacement64() as i32).wrapping_sub(rule.cfa) as i16;
            }
            _ => {}
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sub $0x30,%rsp; mov %rbp,0x28(%rsp); lea 0x28(%rsp),%rbp; mov %rbx,(%rsp); sub $0x18,%rsp;
    /// call`: crosscall2 of Go 1.19.
    const CROSSCALL2: [u8; 27] = [
        0x48, 0x83, 0xec, 0x30, 0x48, 0x89, 0x6c, 0x24, 0x28, 0x48, 0x8d, 0x6c, 0x24, 0x28, 0x48,
        0x89, 0x1c, 0x24, 0x48, 0x83, 0xec, 0x18, 0xe8, 0, 0, 0, 0,
    ];

    #[test]
    fn crosscall2_is_left_as_its_code_says() {
        let rule = FrameRule::sp(0x50, -16);
        let found: Vec<_> = calls(&CROSSCALL2, 0x1000).collect();
        assert_eq!(found, [(0x1000 + 27, rule)]);

        // From Go 1.21 on the assembler sets up a frame before: push %rbp; mov %rsp,%rbp.
        let code = [&[0x55, 0x48, 0x89, 0xe5], &CROSSCALL2[..]].concat();
        let rule = FrameRule::sp(0x58, -16);
        let found: Vec<_> = calls(&code, 0x1000).collect();
        assert_eq!(found, [(0x1000 + 31, rule)]);
    }
}
