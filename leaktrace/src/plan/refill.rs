//! Where our own sampling of the Go heap stands: behind the refill of a span, and where a large object
//! has got its own.
//!
//! Neither is the beginning of a function, so these places are found by what the code does, decoded
//! from the function's entry, and refused if it does anything else:
//! * `(*mcache).nextFree` calls `refill`, then `nextFreeIndex` with the fresh span, and reloads the span
//!   into a register; at the first emulated instruction behind that (a `jmp` in Go 1.19 to 1.27) the
//!   free slot's index is still in RAX and the span in that register (runtime/malloc.go).
//! * `(*mcache).allocLarge` ends with a call of `(*spanSet).push`, whose second argument, in RBX, is the
//!   object's span (runtime/mcache.go, Go 1.19 to 1.27). The call itself is emulated.
//!
//! In both the frame is set up, so that the stack can be walked by frame pointers.

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, OpKind, Register};

use super::{
    frame_state::frame_at,
    placement::{Class, FrameState, Function, Placement, Reason, emulated, writes},
};

/// A place behind a refill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AfterRefill {
    /// Where it is. The free slot's index is in RAX there.
    pub place: Placement,
    /// The register that holds the span.
    pub span: Register,
}

/// The code is not what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfamiliar {
    /// The function cannot be decoded.
    #[error(transparent)]
    Code(#[from] Reason),
    /// It decodes and does something else.
    #[error("{0}")]
    Other(&'static str),
}

/// Finds the place in `code`, the whole of `(*mcache).nextFree` at address `entry`, given the addresses
/// of `(*mcache).refill` and `(*mspan).nextFreeIndex`.
///
/// # Errors
///
/// The code is not what is known of it.
pub fn after_refill(
    code: &[u8],
    entry: u64,
    refill: u64,
    next_free_index: u64,
) -> Result<AfterRefill, Unfamiliar> {
    let function = Function::decode(code, entry)?;
    let refilled = only_call(&function, refill)?;
    let asked = (refilled + 1..function.instructions.len())
        .find(|&at| function.instructions[at].flow_control() != FlowControl::Next)
        .filter(|&at| calls(&function.instructions[at], next_free_index))
        .ok_or(Unfamiliar::Other(
            "`refill` is not followed by a call of `nextFreeIndex`",
        ))?;
    let slot = (refilled + 1..asked)
        .rev()
        .take_while(|&at| !changes(&function.instructions[at], Register::RAX))
        .find_map(|at| stores_rax(&function.instructions[at]))
        .ok_or(Unfamiliar::Other(
            "the span is not kept on the stack before `nextFreeIndex`",
        ))?;

    let mut span = None;
    for (index, instruction) in function.instructions.iter().enumerate().skip(asked + 1) {
        if let (Some(class), Some(span)) =
            (emulated(instruction, function.bytes(instruction)), span)
        {
            let place = place(&function, index, class)?;
            let entered = |&(_, target): &(u64, u64)| {
                let from = function.offset(&function.instructions[refilled]);
                from < target && target <= place.offset
            };
            if function.branches.iter().any(entered) {
                return Err(Unfamiliar::Other("the place is reached without a refill"));
            }
            return Ok(AfterRefill { place, span });
        }
        if instruction.flow_control() != FlowControl::Next
            || changes(instruction, Register::RAX)
            || span.is_some_and(|span| changes(instruction, span))
        {
            break;
        }
        span = span.or_else(|| reloads(instruction, slot));
    }
    Err(Unfamiliar::Other(
        "no emulated instruction with slot and span in registers behind `nextFreeIndex`",
    ))
}

/// Finds the place in `code`, the whole of `(*mcache).allocLarge` at address `entry`, given the address
/// of `(*spanSet).push`. The span is in RBX there.
///
/// # Errors
///
/// The code is not what is known of it.
pub fn large(code: &[u8], entry: u64, push: u64) -> Result<Placement, Unfamiliar> {
    let function = Function::decode(code, entry)?;
    let index = only_call(&function, push)?;
    let instruction = &function.instructions[index];
    match emulated(instruction, function.bytes(instruction)) {
        Some(class) => place(&function, index, class),
        None => Err(Unfamiliar::Other("the call of `push` is not emulated")),
    }
}

fn place(function: &Function<'_>, index: usize, class: Class) -> Result<Placement, Unfamiliar> {
    let instruction = &function.instructions[index];
    match frame_at(function, index) {
        Some(frame @ FrameState::SetUp) => Ok(Placement {
            offset: function.offset(instruction),
            instruction: function.text(instruction),
            class,
            frame,
        }),
        _ => Err(Unfamiliar::Other("the frame is not set up at the place")),
    }
}

/// Index of the one call of the function at `address`.
fn only_call(function: &Function<'_>, address: u64) -> Result<usize, Unfamiliar> {
    let mut found = (0..function.instructions.len())
        .filter(|&index| calls(&function.instructions[index], address));
    match (found.next(), found.next()) {
        (Some(index), None) => Ok(index),
        _ => Err(Unfamiliar::Other(
            "the function it is known to call is not called exactly once",
        )),
    }
}

fn calls(instruction: &Instruction, address: u64) -> bool {
    instruction.flow_control() == FlowControl::Call
        && instruction.op0_kind() == OpKind::NearBranch64
        && instruction.near_branch_target() == address
}

fn changes(instruction: &Instruction, register: Register) -> bool {
    let mut info = InstructionInfoFactory::new();
    let used = info.info(instruction).used_registers();
    used.iter()
        .any(|used| writes(used.access()) && used.register().full_register() == register)
}

/// The displacement from RSP at which RAX is stored.
fn stores_rax(instruction: &Instruction) -> Option<u64> {
    let stores = instruction.code() == Code::Mov_rm64_r64
        && instruction.op1_register() == Register::RAX
        && is_stack_slot(instruction);
    stores.then(|| instruction.memory_displacement64())
}

/// The register into which the word at that displacement from RSP is loaded, if the kernel side can
/// read it.
fn reloads(instruction: &Instruction, slot: u64) -> Option<Register> {
    let loads = instruction.code() == Code::Mov_r64_rm64
        && is_stack_slot(instruction)
        && instruction.memory_displacement64() == slot;
    let register = instruction.op0_register();
    (loads && offset_in_pt_regs(register).is_some()).then_some(register)
}

fn is_stack_slot(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory)
        && instruction.memory_base() == Register::RSP
        && instruction.memory_index() == Register::None
}

/// Where `struct pt_regs` (x86, uapi/asm/ptrace.h) keeps a register that a function may overwrite, in
/// bytes.
pub fn offset_in_pt_regs(register: Register) -> Option<u32> {
    Some(match register {
        Register::RBX => 40,
        Register::R11 => 48,
        Register::R10 => 56,
        Register::R9 => 64,
        Register::R8 => 72,
        Register::RCX => 88,
        Register::RDX => 96,
        Register::RSI => 104,
        Register::RDI => 112,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go::{GoBinary, testing};

    /// In every toolchain that is there, both places are found, and the span where the disassembly of
    /// that release shows it.
    #[test]
    fn places_are_found_in_every_release() {
        for toolchain in testing::toolchains() {
            let path = testing::build(&toolchain, testing::Mode::Plain, testing::PPROF_PROGRAM);
            let data = std::fs::read(path).unwrap();
            let binary = GoBinary::parse(data.into()).unwrap().unwrap();
            let entry = |name: &str| binary.function(name).unwrap().entry;
            let code = |name: &str| binary.code(&binary.function(name).unwrap()).unwrap();

            let name = "runtime.(*mcache).nextFree";
            let (refill, index) = (
                entry("runtime.(*mcache).refill"),
                entry("runtime.(*mspan).nextFreeIndex"),
            );
            let found = after_refill(code(name), entry(name), refill, index).unwrap();
            assert_eq!(found.place.class, Class::Jump, "{found:?}");
            let minor = binary.version().minor;
            let span = if minor < 27 {
                Register::RCX
            } else {
                Register::RBX
            };
            assert_eq!(found.span, span, "Go 1.{minor}");
            // Another function's address: nothing is found.
            assert!(after_refill(code(name), entry(name), refill + 1, index).is_err());

            let name = "runtime.(*mcache).allocLarge";
            let found = large(code(name), entry(name), entry("runtime.(*spanSet).push")).unwrap();
            assert_eq!((found.class, found.frame), (Class::Call, FrameState::SetUp));
        }
    }
}
