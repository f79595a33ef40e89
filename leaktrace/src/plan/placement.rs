//! Where in a function a probe stands: on an instruction that the kernel emulates.
//!
//! The kernel emulates `push`, `nop`, `jmp`, `jcc` and `call rel32` under a uprobe and
//! single-steps everything else out of line, which costs two to thirty times more. A probe one
//! byte off an instruction boundary kills the target. So the function is decoded from its entry,
//! whole, and a place is given only when
//! * decoding from the entry reaches it, straight down the path every call takes;
//! * the kernel emulates its instruction;
//! * the registers to be read still hold what they held at the entry;
//! * it runs exactly once per call: not in Go's stack check, which runs again after `morestack`,
//!   and not in a loop;
//! * it is known where the caller's return address is ([`FrameState`]).
//!
//! Pure: code bytes in, a [`Placement`] out. Kernel facts: `branch_setup_xol_ops` and
//! `push_setup_xol_ops` in arch/x86/kernel/uprobes.c, Linux 5.8 to 6.18 (before 5.8 `push` is
//! single-stepped). Later kernels emulate more, multi-byte nops for one; these are not used.

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register,
};

pub use super::frame_state::FrameState;
use super::frame_state::{Stack, writes_rbp};

/// Longest function that is decoded, in bytes. The longest of the Go runtime are a few thousand.
const MAX_CODE: usize = 1 << 20;

/// What the kernel does with the instruction under the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `push r64`, emulated.
    Push,
    /// One-byte `nop`, emulated.
    Nop,
    /// `jmp rel`, emulated.
    Jump,
    /// `jcc rel`, emulated.
    Conditional,
    /// `call rel32`, emulated.
    Call,
    /// Executed out of line under the trap flag: two to thirty times the cost of the others.
    SingleStep,
    /// Not an instruction: the kernel puts its own address in the place of the return address.
    Return,
}

/// A place for a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's entry.
    pub offset: u64,
    /// The instruction, for people: mnemonic and operand.
    pub instruction: String,
    /// How the kernel executes it.
    pub class: Class,
    /// Where the return address is at this instruction.
    pub frame: FrameState,
}

/// No emulated instruction of the function will do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NoPlacement {
    /// Why.
    pub reason: Reason,
    /// The first instruction after the stack check, where the registers hold too and which runs
    /// once per call, but which is single-stepped. Absent when that cannot be vouched for either.
    pub single_step: Option<Placement>,
}

/// Why a function has no place for a cheap probe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No bytes, or more than a function can have.
    #[error("function of {0} bytes is not decoded")]
    Size(usize),
    /// The decoder does not know the bytes.
    #[error("no instruction can be decoded at +{0:#x}")]
    Invalid(u64),
    /// The bytes end within an instruction.
    #[error("the code ends within the instruction at +{0:#x}")]
    Truncated(u64),
    /// Code that jumps between the boundaries which decoding from the entry finds.
    #[error("a branch at +{0:#x} goes into the middle of an instruction")]
    Overlap(u64),
    /// A loop runs through the beginning of the function.
    #[error("the branch at +{0:#x} makes every place before the arguments change run again")]
    Loop(u64),
    /// A jump table could lead back to the only instructions that would do.
    #[error("the indirect jump at +{0:#x} may run the place again")]
    IndirectJump(u64),
    /// `keep` registers are overwritten, or the common path ends, before such an instruction.
    #[error("no instruction which the kernel emulates comes before +{0:#x}, {1}")]
    None(u64, &'static str),
}

/// Finds the first place in `code`, the whole function whose first byte is at address `entry`,
/// at which every register of `keep` (any width stands for the full register) is as on entry.
pub fn place(code: &[u8], entry: u64, keep: &[Register]) -> Result<Placement, NoPlacement> {
    search(code, entry, keep, Stack::frame)
}

/// The same in native code, where the return address may lie anywhere that is known.
pub fn place_in_native(
    code: &[u8],
    entry: u64,
    keep: &[Register],
) -> Result<Placement, NoPlacement> {
    search(code, entry, keep, Stack::native_frame)
}

/// The entry of a native function, which every call passes and where all is as the caller left it: for
/// want of a better place. It is single-stepped.
pub fn at_entry(code: &[u8], entry: u64) -> Placement {
    let instruction = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).decode();
    Placement {
        offset: 0,
        instruction: format!("{:?}", instruction.mnemonic()).to_lowercase(),
        class: Class::SingleStep,
        frame: FrameState::CallerReturnAtSp,
    }
}

fn search(
    code: &[u8],
    entry: u64,
    keep: &[Register],
    frame: impl Fn(Stack) -> Option<FrameState>,
) -> Result<Placement, NoPlacement> {
    let no_way = |reason| NoPlacement {
        reason,
        single_step: None,
    };
    let function = Function::decode(code, entry).map_err(no_way)?;
    let mut info = InstructionInfoFactory::new();
    let mut stack = Stack::default();
    let mut fallback = None;
    let mut refused = None;
    let mut end = (code.len() as u64, "the end of the function");

    for (index, instruction) in function.instructions.iter().enumerate() {
        let offset = function.offset(instruction);
        let in_stack_check = index < function.stack_check;
        if !in_stack_check {
            match (function.runs_once(index, stack), frame(stack)) {
                (Err(reason), _) => {
                    refused = Some(reason);
                    break;
                }
                (Ok(()), Some(frame)) => {
                    let class = emulated(instruction, function.bytes(instruction));
                    let at = |class| Placement {
                        offset,
                        instruction: function.text(instruction),
                        class,
                        frame,
                    };
                    if let Some(class) = class {
                        return Ok(at(class));
                    }
                    if index == function.stack_check {
                        fallback = Some(at(Class::SingleStep));
                    }
                }
                (Ok(()), None) => {}
            }
            if instruction.flow_control() != FlowControl::Next {
                end = (offset, "where the path every call takes ends");
                break;
            }
        }
        let used = info.info(instruction).used_registers();
        if used.iter().any(|used| {
            writes(used.access())
                && keep
                    .iter()
                    .any(|k| k.full_register() == used.register().full_register())
        }) {
            end = (
                function.next_offset(instruction),
                "where an argument register is overwritten",
            );
            break;
        }
        stack.step(instruction, writes_rbp(used));
    }
    let reason = refused.unwrap_or(Reason::None(end.0, end.1));
    Err(NoPlacement {
        reason,
        single_step: fallback,
    })
}

pub(super) fn writes(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}

/// The class of an instruction that every kernel since 5.8 emulates. Any prefix disqualifies it,
/// except REX.B on `push`.
pub(super) fn emulated(instruction: &Instruction, bytes: &[u8]) -> Option<Class> {
    match (bytes, instruction.code()) {
        ([0x50..=0x57] | [0x41, 0x50..=0x57], Code::Push_r64) => Some(Class::Push),
        ([0x90], Code::Nopd) => Some(Class::Nop),
        ([0xeb, _] | [0xe9, _, _, _, _], _) => Some(Class::Jump),
        ([0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, ..], _) => Some(Class::Conditional),
        ([0xe8, _, _, _, _], _) => Some(Class::Call),
        _ => None,
    }
}

/// A function decoded from end to end.
pub(super) struct Function<'a> {
    code: &'a [u8],
    entry: u64,
    pub(super) instructions: Vec<Instruction>,
    /// Number of instructions, from the entry, that run again after `morestack`.
    stack_check: usize,
    /// Branches within the function as (offset of the branch, offset of its target), without the
    /// jump from `morestack` back to the entry.
    pub(super) branches: Vec<(u64, u64)>,
    indirect_jump: Option<u64>,
}

impl<'a> Function<'a> {
    pub(super) fn decode(code: &'a [u8], entry: u64) -> Result<Self, Reason> {
        let wraps = entry.checked_add(code.len() as u64).is_none();
        if code.is_empty() || code.len() > MAX_CODE || wraps {
            return Err(Reason::Size(code.len()));
        }
        let mut decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
        let mut instructions = Vec::new();
        while decoder.can_decode() {
            let offset = decoder.position() as u64;
            let instruction = decoder.decode();
            match decoder.last_error() {
                DecoderError::None => instructions.push(instruction),
                DecoderError::NoMoreBytes => return Err(Reason::Truncated(offset)),
                _ => return Err(Reason::Invalid(offset)),
            }
        }
        let mut function = Function {
            code,
            entry,
            instructions,
            stack_check: 0,
            branches: Vec::new(),
            indirect_jump: None,
        };
        let return_to_entry = function.find_stack_check();
        for instruction in &function.instructions {
            let offset = function.offset(instruction);
            if instruction.flow_control() == FlowControl::IndirectBranch {
                function.indirect_jump.get_or_insert(offset);
            }
            let Some(target) = function.target(instruction) else {
                continue;
            };
            if function.index_of(target).is_none() {
                return Err(Reason::Overlap(offset));
            }
            if Some(offset) != return_to_entry {
                function.branches.push((offset, target));
            }
        }
        Ok(function)
    }

    pub(super) fn offset(&self, instruction: &Instruction) -> u64 {
        instruction.ip() - self.entry
    }

    fn next_offset(&self, instruction: &Instruction) -> u64 {
        self.offset(instruction) + instruction.len() as u64
    }

    pub(super) fn bytes(&self, instruction: &Instruction) -> &'a [u8] {
        let start = self.offset(instruction) as usize;
        self.code
            .get(start..start + instruction.len())
            .unwrap_or_default()
    }

    fn index_of(&self, offset: u64) -> Option<usize> {
        self.instructions
            .binary_search_by_key(&offset, |instruction| instruction.ip() - self.entry)
            .ok()
    }

    /// Offset to which a direct branch or call within the function goes.
    fn target(&self, instruction: &Instruction) -> Option<u64> {
        let near = matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        let calls = instruction.flow_control() == FlowControl::Call;
        let target = instruction.near_branch_target().checked_sub(self.entry)?;
        (near && !calls && target < self.code.len() as u64).then_some(target)
    }

    /// Go's stack check (cmd/internal/obj/x86/obj6.go, `stacksplit`): `rsp`, or a register below
    /// it, is compared with `g.stackguard0` or `g.stackguard1` before the frame is set up; the
    /// branch goes to a tail which spills the argument registers, calls `runtime.morestack`,
    /// reloads them and jumps to the entry. Frames of 4 KiB and more have a second branch to the
    /// same tail. Sets `stack_check`; gives the offset of the jump to the entry.
    fn find_stack_check(&mut self) -> Option<u64> {
        let mut back = None;
        let mut compared = false;
        for (index, instruction) in self.instructions.iter().enumerate().take(8) {
            match instruction.flow_control() {
                FlowControl::Next if !is_frame_setup(instruction) => {}
                FlowControl::ConditionalBranch => {
                    let jump = self
                        .target(instruction)
                        .and_then(|at| self.morestack_tail(at));
                    if jump.is_none() || (back.is_some() && jump != back) {
                        break;
                    }
                    back = jump;
                    if compared {
                        self.stack_check = index + 1;
                        return back;
                    }
                }
                _ => break,
            }
            compared = compares_stackguard(instruction);
        }
        None
    }

    /// The offset of the jump to the entry with which the tail at `offset` ends.
    fn morestack_tail(&self, offset: u64) -> Option<u64> {
        let mut calls = 0;
        for instruction in self
            .instructions
            .get(self.index_of(offset)?..)?
            .iter()
            .take(64)
        {
            match instruction.flow_control() {
                FlowControl::Next => {}
                FlowControl::Call => calls += 1,
                FlowControl::UnconditionalBranch => {
                    let to_entry = self.target(instruction) == Some(0);
                    return (calls == 1 && to_entry).then(|| self.offset(instruction));
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether the instruction runs at most once per call. Control must pass an address in
    /// (entry, place] to get there again. An indirect jump comes after the frame is set up and
    /// cannot lead back to before that: the stack would not be balanced.
    fn runs_once(&self, index: usize, stack: Stack) -> Result<(), Reason> {
        let place = self.instructions.get(index).map_or(0, |at| self.offset(at));
        if let Some((at, _)) = self.branches.iter().find(|(_, target)| *target <= place) {
            return Err(Reason::Loop(*at));
        }
        match self.indirect_jump {
            Some(at) if stack != Stack::default() && stack != Stack::PUSHED => {
                Err(Reason::IndirectJump(at))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn text(&self, instruction: &Instruction) -> String {
        let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
        match instruction.op0_kind() {
            OpKind::Register if instruction.mnemonic() == Mnemonic::Push => {
                format!("{mnemonic} {:?}", instruction.op0_register()).to_lowercase()
            }
            OpKind::NearBranch64 => match self.target(instruction) {
                Some(offset) => format!("{mnemonic} +{offset:#x}"),
                None => format!("{mnemonic} {:#x}", instruction.near_branch_target()),
            },
            _ => mnemonic,
        }
    }
}

/// `cmp reg, [g+0x10]` or `cmp reg, [g+0x18]`: `stackguard0` and `stackguard1` in runtime.g
/// (runtime/runtime2.go, Go 1.19 to 1.27).
fn compares_stackguard(instruction: &Instruction) -> bool {
    instruction.code() == Code::Cmp_r64_rm64
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_index() == Register::None
        && matches!(instruction.memory_displacement64(), 0x10 | 0x18)
}

/// `push`, or a write to `rsp`: the stack check is over.
pub(super) fn is_frame_setup(instruction: &Instruction) -> bool {
    instruction.is_stack_instruction()
        || (instruction.op0_kind() == OpKind::Register
            && instruction.op0_register() == Register::RSP
            && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test))
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
