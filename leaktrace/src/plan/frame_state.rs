//! Where the return address is, instruction by instruction down from a function's entry.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpKind, Register, UsedRegister};

use super::placement::{Function, is_frame_setup, writes};

/// Where the caller's return address is when the probe fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// At `[rsp]`; `rbp` is still the caller's.
    CallerReturnAtSp,
    /// At `[rsp + 8]`: `push rbp` is done, `rbp` is still the caller's.
    PushedRbp,
    /// Farther above `rsp`, by so many bytes; `rbp` is still the caller's.
    CallerReturnAbove(u64),
    /// At `[rbp + 8]`, as a frame-pointer walk expects it.
    SetUp,
}

/// What is known of the stack on the way down from the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    /// `rbp` is the caller's, the return address is `depth` bytes above `rsp`; `saved` tells
    /// that the caller's `rbp` has been stored right below the return address.
    Caller {
        depth: u64,
        saved: bool,
    },
    SetUp,
    Unknown,
}

impl Default for Stack {
    fn default() -> Self {
        Stack::Caller {
            depth: 0,
            saved: false,
        }
    }
}

impl Stack {
    pub(super) const PUSHED: Stack = Stack::Caller {
        depth: 8,
        saved: true,
    };

    pub(super) fn frame(self) -> Option<FrameState> {
        match self {
            Stack::Caller { depth: 0, .. } => Some(FrameState::CallerReturnAtSp),
            Stack::PUSHED => Some(FrameState::PushedRbp),
            Stack::SetUp => Some(FrameState::SetUp),
            _ => None,
        }
    }

    /// The same wherever the return address is known to be.
    pub(super) fn native_frame(self) -> Option<FrameState> {
        match self {
            Stack::Caller { depth, .. } => {
                Some(self.frame().unwrap_or(FrameState::CallerReturnAbove(depth)))
            }
            other => other.frame(),
        }
    }

    pub(super) fn step(&mut self, instruction: &Instruction, writes_rbp: bool) {
        *self = match *self {
            Stack::Caller { depth, saved } => caller_step(depth, saved, instruction, writes_rbp),
            Stack::SetUp if !writes_rbp => Stack::SetUp,
            _ => Stack::Unknown,
        };
    }
}

/// Go ≥ 1.21 and C: `push rbp; mov rbp, rsp`. Go ≤ 1.20: `sub rsp, N; mov [rsp+N-8], rbp;
/// lea rbp, [rsp+N-8]`.
fn caller_step(depth: u64, saved: bool, instruction: &Instruction, writes_rbp: bool) -> Stack {
    let at_saved = |instruction: &Instruction| {
        instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64().checked_add(8) == Some(depth)
    };
    match instruction.code() {
        Code::Push_r64 => {
            let saves = depth == 0 && instruction.op0_register() == Register::RBP;
            Stack::Caller {
                depth: depth.saturating_add(8),
                saved: saved || saves,
            }
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
            if instruction.op0_kind() == OpKind::Register
                && instruction.op0_register() == Register::RSP =>
        {
            match u64::try_from(instruction.immediate(1) as i64) {
                Ok(size) => Stack::Caller {
                    depth: depth.saturating_add(size),
                    saved,
                },
                Err(_) => Stack::Unknown,
            }
        }
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if instruction.op0_kind() == OpKind::Register
                && instruction.op0_register() == Register::RBP =>
        {
            let from_rsp = instruction.op1_kind() == OpKind::Register
                && instruction.op1_register() == Register::RSP;
            if from_rsp && saved && depth == 8 {
                Stack::SetUp
            } else {
                Stack::Unknown
            }
        }
        Code::Lea_r64_m if instruction.op0_register() == Register::RBP => {
            if saved && at_saved(instruction) {
                Stack::SetUp
            } else {
                Stack::Unknown
            }
        }
        Code::Mov_rm64_r64 if instruction.op0_kind() == OpKind::Memory => {
            let saves = instruction.op1_register() == Register::RBP && at_saved(instruction);
            Stack::Caller {
                depth,
                saved: saved || saves,
            }
        }
        _ if writes_rbp || instruction.is_stack_instruction() || is_frame_setup(instruction) => {
            Stack::Unknown
        }
        _ => Stack::Caller { depth, saved },
    }
}

/// Whether an instruction that uses these registers changes the frame pointer.
pub(super) fn writes_rbp(used: &[UsedRegister]) -> bool {
    used.iter()
        .any(|used| writes(used.access()) && used.register().full_register() == Register::RBP)
}

/// The state of the frame before an instruction, if all before it runs straight down.
pub(super) fn frame_at(function: &Function<'_>, index: usize) -> Option<FrameState> {
    let mut info = InstructionInfoFactory::new();
    let mut stack = Stack::default();
    for instruction in function.instructions.iter().take(index) {
        let used = info.info(instruction).used_registers();
        stack.step(instruction, writes_rbp(used));
    }
    stack.frame()
}
