//! The variable by which glibc's `malloc` finds the cache of its thread.
//!
//! It is a variable of the thread (`tcache` in malloc/malloc.c) without a name in a stripped library. But of those that
//! `malloc` loads it is the one that points to an array: it is loaded into a register, and memory is read that lies as
//! far from there as another register says. The kernel side checks what comes of it before it relies on it.

use std::collections::{HashMap, HashSet};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::image::near;
use crate::plan::placement::Function;

/// Where the offset of a variable from the thread pointer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By the dynamic linker, at that link-time address.
    Slot(u64),
    /// By the code itself. It is negative.
    Offset(i64),
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The offset of a variable of the thread.
    Offset(Place),
    /// What such a variable holds.
    Variable(Place),
}

/// Registers of which something is known, by the widest name.
type Known = HashMap<Register, Value>;

/// Finds it in the code of `malloc`.
pub(super) fn variable(function: &Function<'_>) -> Option<Place> {
    let mut info = InstructionInfoFactory::new();
    let index: HashMap<u64, usize> = (function.instructions.iter().enumerate())
        .map(|(index, instruction)| (instruction.ip(), index))
        .collect();
    let mut seen = HashSet::new();
    // Each instruction is looked at once, as it is come to first.
    let mut ways = vec![(0, Known::new())];
    while let Some((mut at, mut known)) = ways.pop() {
        while seen.insert(at) {
            let Some(instruction) = function.instructions.get(at) else {
                break;
            };
            if let Some(Value::Variable(place)) = indexed(instruction, &known) {
                return Some(place);
            }
            step(instruction, &mut info, &mut known);
            let target = near(instruction).and_then(|target| index.get(&target).copied());
            at = match (instruction.flow_control(), target) {
                (FlowControl::ConditionalBranch, target) => {
                    ways.extend(target.map(|target| (target, known.clone())));
                    at + 1
                }
                (FlowControl::UnconditionalBranch, Some(target)) => target,
                (FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall, _) => at + 1,
                _ => break,
            };
        }
    }
    None
}

/// What is known of the register to which the instruction's memory operand adds another one.
fn indexed(instruction: &Instruction, known: &Known) -> Option<Value> {
    let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let is_indexed = has_memory
        && instruction.memory_index() != Register::None
        && instruction.segment_prefix() == Register::None;
    let base = instruction.memory_base().full_register();
    known.get(&base).copied().filter(|_| is_indexed)
}

/// Registers after the instruction.
fn step(instruction: &Instruction, info: &mut InstructionInfoFactory, known: &mut Known) {
    let loaded = load(instruction, known);
    let calls = matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    );
    if calls {
        // The called function may change the others.
        use Register::{R12, R13, R14, R15, RBP, RBX};
        known.retain(|register, _| [RBX, RBP, R12, R13, R14, R15].contains(register));
    }
    for used in info.info(instruction).used_registers() {
        if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
            known.remove(&used.register().full_register());
        }
    }
    if let Some(value) = loaded {
        known.insert(instruction.op0_register().full_register(), value);
    }
}

/// What a move loads into its register.
fn load(instruction: &Instruction, known: &Known) -> Option<Value> {
    use iced_x86::Code::{Mov_r64_imm64, Mov_r64_rm64, Mov_rm64_imm32};
    let is_register = instruction.op0_kind() == OpKind::Register;
    match instruction.code() {
        Mov_r64_imm64 | Mov_rm64_imm32 if is_register => {
            let offset = instruction.immediate(1) as i64;
            (offset < 0).then_some(Value::Offset(Place::Offset(offset)))
        }
        Mov_r64_rm64 if instruction.op1_kind() == OpKind::Memory => {
            let base = instruction.memory_base();
            let has_index = instruction.memory_index() != Register::None;
            if instruction.segment_prefix() == Register::FS && !has_index {
                let offset = instruction.memory_displacement64() as i64;
                return match (base, known.get(&base)) {
                    (Register::None, _) if offset < 0 => {
                        Some(Value::Variable(Place::Offset(offset)))
                    }
                    (_, Some(Value::Offset(place))) if offset == 0 => Some(Value::Variable(*place)),
                    _ => None,
                };
            }
            (base == Register::RIP && instruction.segment_prefix() == Register::None)
                .then(|| Value::Offset(Place::Slot(instruction.ip_rel_memory_address())))
        }
        Mov_r64_rm64 if instruction.op1_kind() == OpKind::Register => {
            known.get(&instruction.op1_register()).copied()
        }
        _ => None,
    }
}
