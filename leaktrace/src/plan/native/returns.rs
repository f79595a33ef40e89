//! The `ret` instructions of a function, where a uretprobe must not be.
//!
//! A function may also jump to `memset` and leave it to that to return the block, as `calloc` of glibc
//! does; then the jump has such a place. The function is decoded whole; so are those to which it jumps instead of returning, since they
//! return for it. A function that cannot be followed like that has no such places.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::image::{Image, near};
use crate::plan::placement::{self, Class, Function};

/// Most functions to which one may jump on.
const MAX_PARTS: usize = 32;

/// Longest function that is looked at for [`frees_again`], in bytes.
const MAX_AGAIN: u64 = 4096;

/// A `ret` instruction, or a jump that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Return {
    /// Link-time address of the function (or part of one) that it is in: decoding begins there.
    pub(super) part: u64,
    /// Length of that in bytes.
    pub(super) size: u64,
    /// Its own address.
    pub(super) address: u64,
    /// As people write it.
    pub(super) instruction: &'static str,
    /// How the kernel executes it.
    pub(super) class: Class,
    /// The kernel side's program for it.
    pub(super) program: &'static str,
}

impl Return {
    fn at(instruction: &Instruction, part: u64, size: u64) -> Self {
        Self {
            part,
            size,
            address: instruction.ip(),
            instruction: "ret",
            class: Class::SingleStep,
            program: "malloc_return",
        }
    }
}

/// Finds every `ret` by which a call of the function at `entry` of `size` bytes may end. `extents` has
/// the functions of the file, by address, with their sizes.
///
/// # Errors
///
/// Why they cannot be told.
pub(super) fn returns(
    image: &Image<'_>,
    entry: u64,
    size: u64,
    extents: &BTreeMap<u64, u64>,
) -> Result<Vec<Return>, String> {
    let mut found = Vec::new();
    let mut parts = vec![(entry, size)];
    let mut seen = BTreeSet::from([entry]);
    while let Some((part, size)) = parts.pop() {
        let code = image
            .code(part, size)
            .ok_or_else(|| format!("the code at {part:#x} is not in the file"))?;
        let function = Function::decode(code, part).map_err(|error| error.to_string())?;
        for instruction in &function.instructions {
            match instruction.flow_control() {
                FlowControl::Return => found.push(Return::at(instruction, part, size)),
                FlowControl::UnconditionalBranch if image.import(instruction) == Some("memset") => {
                    found.push(Return {
                        instruction: "jmp memset",
                        class: placement::emulated(instruction, function.bytes(instruction))
                            .unwrap_or(Class::SingleStep),
                        program: "malloc_fill",
                        ..Return::at(instruction, part, size)
                    });
                }
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    let Some(target) = leaves(instruction, part, size) else {
                        continue;
                    };
                    let next = match image.import(instruction) {
                        Some(name) => image.defined(name).ok_or_else(|| {
                            format!("it goes on in `{name}`, which is in another file")
                        })?,
                        None => part_at(target, extents).ok_or_else(|| {
                            format!("it jumps to {target:#x}, which is in no function")
                        })?,
                    };
                    let (start, size) = next;
                    if seen.insert(start) {
                        parts.push((start, size));
                    }
                }
                FlowControl::IndirectBranch if !is_switch(&function, instruction) => {
                    let offset = instruction.ip() - part;
                    return Err(format!("it may end by the indirect jump at +{offset:#x}"));
                }
                _ => {}
            }
        }
        if seen.len() > MAX_PARTS {
            return Err(format!("it goes on in more than {MAX_PARTS} functions"));
        }
    }
    match found.is_empty() {
        true => Err("it has no `ret` instruction".to_owned()),
        false => Ok(found),
    }
}

/// The return addresses of the calls of `free` by which glibc (2.32 and later), when a thread ends, gives
/// back what that has kept of blocks that were freed before: `tcache_thread_shutdown`. It has no name in a
/// stripped library, but nothing else that calls this very function undoes the masking of the list's
/// pointers (`shr $12`) and reads thread-local variables.
pub(super) fn frees_again(image: &Image<'_>, free: u64, extents: &BTreeMap<u64, u64>) -> Vec<u64> {
    let mut found = Vec::new();
    for (&start, &size) in extents.iter().filter(|(_, size)| **size < MAX_AGAIN) {
        let Some(code) = image.code(start, size) else {
            continue;
        };
        let mut near_calls = code.windows(5).enumerate().filter_map(|(at, window)| {
            let [0xe8, a, b, c, d] = *window else {
                return None;
            };
            let next = start.wrapping_add(at as u64 + 5);
            Some(next.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into()))
        });
        if !near_calls.any(|target| target == free) {
            continue;
        }
        let Ok(function) = Function::decode(code, start) else {
            continue;
        };
        let all = &function.instructions;
        let unmasks = |i: &Instruction| {
            i.mnemonic() == Mnemonic::Shr
                && i.op1_kind() == OpKind::Immediate8
                && i.immediate8() == 12
        };
        let is_local = |i: &Instruction| i.segment_prefix() == Register::FS;
        if all.iter().any(unmasks) && all.iter().any(is_local) {
            let calls = all
                .iter()
                .filter(|i| i.flow_control() == FlowControl::Call && near(i) == Some(free));
            found.extend(calls.map(Instruction::next_ip));
        }
    }
    found
}

/// The address outside `[part, part + size)` to which a branch leads.
fn leaves(instruction: &Instruction, part: u64, size: u64) -> Option<u64> {
    near(instruction).filter(|target| !(part..part + size).contains(target))
}

/// The function, or the part of one, in which an address lies.
fn part_at(address: u64, extents: &BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    let (&start, &size) = extents.range(..=address).next_back()?;
    (address - start < size).then_some((start, size))
}

/// Whether an indirect jump is a switch's: it goes to a register to which an entry of the table has just
/// been added (`add`, or `movslq` before it), or takes its target from a table.
fn is_switch(function: &Function<'_>, jump: &Instruction) -> bool {
    if jump.op0_kind() == OpKind::Memory {
        return jump.memory_index() != Register::None;
    }
    let at = function
        .instructions
        .partition_point(|other| other.ip() < jump.ip());
    let before = function.instructions[..at].iter().rev().take(3);
    before
        .filter(|other| other.op_count() > 0 && other.op0_register() == jump.op0_register())
        .any(|other| other.mnemonic() == Mnemonic::Add)
}
