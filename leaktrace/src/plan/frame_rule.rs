//! How to leave one frame, and what call frame information says of it in that form.
//!
//! Call frame information (DWARF 5, section 6.4; `.eh_frame` in the Linux Standard Base) can say anything
//! that an expression can compute. Compilers say few things, and those are what a walk in the kernel can
//! follow: the frame's end (the canonical frame address, CFA: the caller's stack pointer) lies some bytes
//! from the stack pointer or from the frame pointer, or is stored there; the return address is right
//! below it; the caller's frame pointer is in its register or stored some bytes below. What is of another
//! form becomes [`RULE_UNKNOWN`], at which a walk stops and says so: entries of procedure linkage tables and
//! assembly that keeps the stack pointer elsewhere, neither of which calls what is traced, but for the
//! dynamic linker's lazy binding (`_dl_runtime_resolve`).

#![forbid(unsafe_code)]

use gimli::{
    CfaRule, EhFrame, Encoding, EndianSlice, Format, LittleEndian, Operation, RegisterRule,
    UnwindExpression, UnwindTableRow, X86_64,
};
use leaktrace_common::{
    RULE_AT_BP, RULE_BP, RULE_END, RULE_FRAME_POINTER, RULE_SIGNAL, RULE_SP, RULE_UNKNOWN,
};

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// How to leave a frame of x86-64 code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRule {
    /// One of leaktrace-common's `RULE_…` constants.
    pub kind: u8,
    /// Bytes from the register to the CFA, or to where it is stored, as `kind` says.
    pub cfa: i32,
    /// Bytes from the CFA to where the caller's frame pointer is saved; zero: it is still in its register.
    pub saved_bp: i16,
}

impl FrameRule {
    /// Nothing is known: by the frame pointer.
    pub const FRAME_POINTER: Self = Self::of_kind(RULE_FRAME_POINTER);

    /// A rule that needs no numbers.
    pub const fn of_kind(kind: u8) -> Self {
        Self {
            kind,
            cfa: 0,
            saved_bp: 0,
        }
    }

    /// The CFA is `cfa` bytes above the stack pointer.
    pub const fn sp(cfa: i32, saved_bp: i16) -> Self {
        Self {
            kind: RULE_SP,
            cfa,
            saved_bp,
        }
    }

    /// What a row of call frame information says. `is_signal`: its function is one that a signal handler
    /// returns to.
    pub(super) fn from_row(
        section: &EhFrame<Slice<'_>>,
        row: &UnwindTableRow<usize>,
        is_signal: bool,
    ) -> Self {
        let unknown = Self::of_kind(RULE_UNKNOWN);
        match row.register(X86_64::RA) {
            Some(RegisterRule::Undefined) => return Self::of_kind(RULE_END),
            Some(RegisterRule::Offset(-8)) => {}
            Some(RegisterRule::Expression(at)) if is_signal => {
                return if is_signal_frame(section, row, &at) {
                    Self::of_kind(RULE_SIGNAL)
                } else {
                    unknown
                };
            }
            _ => return unknown,
        }
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => match *register {
                X86_64::RSP => Some((RULE_SP, *offset)),
                X86_64::RBP => Some((RULE_BP, *offset)),
                _ => None,
            },
            CfaRule::Expression(expression) => stored_cfa(section, expression),
        };
        let is_stored = matches!(cfa, Some((RULE_AT_BP, _)));
        let saved_bp = match row.register(X86_64::RBP) {
            Some(RegisterRule::Offset(offset)) if !is_stored => Some(offset),
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) if !is_stored => Some(0),
            // Where the stack is realigned: the frame pointer points to the caller's.
            Some(RegisterRule::Expression(at)) if is_stored => {
                let place = register_offset(section, &at);
                (place == Some((X86_64::RBP, 0))).then_some(0)
            }
            _ => None,
        };
        let (Some((kind, cfa)), Some(saved_bp)) = (cfa, saved_bp) else {
            return unknown;
        };
        match (i32::try_from(cfa), i16::try_from(saved_bp)) {
            (Ok(cfa), Ok(saved_bp)) => Self {
                kind,
                cfa,
                saved_bp,
            },
            _ => unknown,
        }
    }
}

/// x86-64, as `.eh_frame` has it.
const ENCODING: Encoding = Encoding {
    address_size: 8,
    format: Format::Dwarf32,
    version: 5,
};

/// The first operations of an expression, at most as many as any that is known here has.
fn operations<'a>(
    section: &EhFrame<Slice<'a>>,
    expression: &UnwindExpression<usize>,
) -> Option<Vec<Operation<Slice<'a>>>> {
    const LONGEST: usize = 2;
    let mut iterator = expression.get(section).ok()?.operations(ENCODING);
    let mut operations = Vec::new();
    while let Some(operation) = iterator.next().ok()? {
        if operations.len() == LONGEST {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

/// Where the CFA is stored, from the frame pointer: what gcc says of a function that realigns its stack.
fn stored_cfa(
    section: &EhFrame<Slice<'_>>,
    expression: &UnwindExpression<usize>,
) -> Option<(u8, i64)> {
    match *operations(section, expression)?.as_slice() {
        [
            Operation::RegisterOffset {
                register: X86_64::RBP,
                offset,
                ..
            },
            Operation::Deref { size: 8, .. },
        ] => Some((RULE_AT_BP, offset)),
        _ => None,
    }
}

fn register_offset(
    section: &EhFrame<Slice<'_>>,
    expression: &UnwindExpression<usize>,
) -> Option<(gimli::Register, i64)> {
    match *operations(section, expression)?.as_slice() {
        [
            Operation::RegisterOffset {
                register, offset, ..
            },
        ] => Some((register, offset)),
        _ => None,
    }
}

/// Whether a frame is the kernel's `struct rt_sigframe` with its registers where they always are: the
/// stack pointer is at `ucontext`, whose `uc_mcontext` begins at 40 (arch/x86/include/uapi/asm/ucontext.h,
/// sigcontext.h).
fn is_signal_frame(
    section: &EhFrame<Slice<'_>>,
    row: &UnwindTableRow<usize>,
    return_address: &UnwindExpression<usize>,
) -> bool {
    let at = |expression: &UnwindExpression<usize>, offset| {
        register_offset(section, expression) == Some((X86_64::RSP, offset))
    };
    let bp = match row.register(X86_64::RBP) {
        Some(RegisterRule::Expression(expression)) => at(&expression, 120),
        _ => false,
    };
    bp && at(return_address, 168)
}
