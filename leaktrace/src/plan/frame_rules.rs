//! How to leave the frames between a system call and code with frame pointers.
//!
//! libc is built without frame pointers, and its `mmap`, `mremap` and `brk` are where the kernel is
//! entered: a walk by frame pointers alone starts too far out and loses the caller. The call frame
//! information (`.eh_frame`) says, for every instruction, where the return address is. This module
//! reads it for the few instructions that matter: those after a system call that changes the
//! address space, and the return addresses of the calls that lead there within the same file (as
//! `malloc` → `_int_malloc` → `sysmalloc` → `sbrk` → `brk`). Where native allocators are probed it is the
//! callers of these as well, such as `strdup`, `operator new` and theirs. In a Go executable, whose C code is
//! little and leads out into libc, it is the return addresses of all calls.
//!
//! Pure: the bytes of an ELF file in, rules by file offset out. A rule for an address that is never
//! met does no harm, so places are found by their bytes. Whatever the file says, the work is a few
//! looks at its code, and memory grows with its functions and rules only.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, CommonInformationEntry, EhFrame, EndianSlice, LittleEndian,
    RegisterRule, UnwindContext, UnwindSection as _, X86_64,
};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use leaktrace_common::FrameRule;
use object::{
    Object as _, ObjectSection as _, ObjectSegment as _, SectionKind, read::elf::ElfFile64,
};

use super::native::{self, Entries};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// System calls that change the address space: mmap, munmap, mremap, brk
/// (arch/x86/entry/syscalls/syscall_64.tbl).
const CALLS: [u32; 4] = [9, 11, 25, 12];
/// How far before the `syscall` instruction its number is loaded, at most, in bytes.
const NUMBER_REACH: usize = 64;
/// Levels of callers: sbrk, sysmalloc, _int_malloc, malloc.
const LEVELS: usize = 4;
/// Most rules of one file.
const MAX_RULES: usize = 1 << 14;
/// Files with more code than this are not searched.
const MAX_CODE: usize = 64 << 20;
/// Nor are those with more call frame information.
const MAX_EH_FRAME: usize = 16 << 20;
/// Most bytes of call frame information that are interpreted, again and again included: a few
/// hundred a rule are usual.
const MAX_INTERPRETED: usize = 64 << 20;
/// Damaged entries that are read through before the rest is let be.
const MAX_DAMAGED: usize = 64;

/// Why a file gives no rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRules {
    /// Not an ELF file, or a damaged one.
    #[error("failed to read the ELF file: {0}")]
    Elf(String),
    /// No `.eh_frame`: built without it, or Go.
    #[error("no call frame information")]
    NoFrames,
    /// Larger than is searched.
    #[error("too large to be searched for system calls")]
    TooLarge,
}

/// What a file says about leaving its frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameRules {
    /// By file offset of the instruction (or return address) they are for.
    pub rules: BTreeMap<u64, FrameRule>,
    /// Places that were found and not looked at, since a bound was reached.
    pub left_out: u64,
}

/// Which instructions get a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those after system calls, and the callers of those.
    SystemCalls,
    /// Besides, the callers of native allocators.
    Allocators,
    /// Besides, those after every call.
    AllCalls,
}

/// The rules of an ELF file.
///
/// # Errors
///
/// See [`NoRules`]. Damaged call frame information gives fewer rules.
pub fn frame_rules(image: &[u8], reach: Reach) -> Result<FrameRules, NoRules> {
    let elf = ElfFile64::<object::LittleEndian>::parse(image)
        .map_err(|error| NoRules::Elf(error.to_string()))?;
    let frames = Frames::new(&elf).ok_or(NoRules::NoFrames)?;
    let code: Vec<Code<'_>> = elf
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .filter_map(|section| {
            let bytes = section.data().ok()?;
            let address = section.address();
            Some(Code { address, bytes })
        })
        .collect();
    if code.iter().map(|code| code.bytes.len()).sum::<usize>() > MAX_CODE
        || frames.section.len() > MAX_EH_FRAME
    {
        return Err(NoRules::TooLarge);
    }
    let entries = system_calls(&code);
    let allocators = match reach {
        Reach::SystemCalls => HashSet::new(),
        Reach::Allocators | Reach::AllCalls => allocators(&code, native::entries(image)),
    };
    if entries.is_empty() && allocators.is_empty() && reach != Reach::AllCalls {
        return Ok(FrameRules::default());
    }
    let functions = frames.functions();
    let mut places = places(&code, &functions, &entries, allocators);
    if reach == Reach::AllCalls {
        places.add_calls(&code, &functions);
    }
    let mut found = FrameRules {
        rules: BTreeMap::new(),
        left_out: places.left_out,
    };
    let mut context = UnwindContext::new();
    let mut budget = MAX_INTERPRETED;
    for &place in &places.list {
        if budget == 0 {
            found.left_out += 1;
        } else if let Some(rule) = frames.rule(&mut context, &functions, place, &mut budget)
            && let Some(offset) = file_offset(&elf, place.address)
        {
            found.rules.insert(offset, rule);
        }
    }
    Ok(found)
}

/// The functions of an ELF file as its call frame information has them: sizes in bytes by link-time
/// address. None where it has no such information.
pub fn functions(image: &[u8]) -> BTreeMap<u64, u64> {
    let functions = ElfFile64::<object::LittleEndian>::parse(image)
        .ok()
        .and_then(|elf| Frames::new(&elf).map(|frames| frames.functions()));
    let functions = functions.unwrap_or_default().into_iter();
    functions
        .map(|(start, (end, _))| (start, end - start))
        .collect()
}

fn file_offset(elf: &ElfFile64<'_, object::LittleEndian>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (start, _) = segment.file_range();
        let within = address.checked_sub(segment.address())?;
        if within < segment.size() {
            start.checked_add(within)
        } else {
            None
        }
    })
}

/// A stretch of code.
struct Code<'a> {
    address: u64,
    bytes: &'a [u8],
}

/// An instruction for which a rule is wanted.
#[derive(Clone, Copy)]
struct Place {
    address: u64,
    /// It is a return address: the call before it counts.
    is_return: bool,
}

/// A function as call frame information has it: its end, and where its entry is.
type Functions = BTreeMap<u64, (u64, gimli::EhFrameOffset)>;

fn function_at(functions: &Functions, address: u64) -> Option<(u64, gimli::EhFrameOffset)> {
    let (start, (end, entry)) = functions.range(..=address).next_back()?;
    (address < *end).then_some((*start, *entry))
}

/// The places for which rules are wanted, the innermost first.
#[derive(Default)]
struct Places {
    list: Vec<Place>,
    known: HashSet<u64>,
    left_out: u64,
}

impl Places {
    /// Whether `address` is a new place, inside a function, for which there is room.
    fn add(&mut self, functions: &Functions, address: u64, is_return: bool) -> Option<u64> {
        let (function, _) = function_at(functions, address.wrapping_sub(1))?;
        if self.known.contains(&address) {
            return None;
        }
        if self.list.len() == MAX_RULES {
            self.left_out += 1;
            return None;
        }
        self.known.insert(address);
        self.list.push(Place { address, is_return });
        Some(function)
    }

    /// Adds the return address of every call in `functions`, by decoding them.
    fn add_calls(&mut self, code: &[Code<'_>], functions: &Functions) {
        for (&start, &(end, _)) in functions {
            let bytes = code.iter().find_map(|code| {
                let from = usize::try_from(start.checked_sub(code.address)?).ok()?;
                let len = usize::try_from(end - start).ok()?;
                code.bytes.get(from..from.checked_add(len)?)
            });
            let Some(bytes) = bytes else {
                continue;
            };
            let decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            let calls = decoder.into_iter().filter(|instruction| {
                let flow = instruction.flow_control();
                flow == FlowControl::Call || flow == FlowControl::IndirectCall
            });
            for call in calls {
                self.add(functions, call.next_ip(), true);
            }
        }
    }
}

/// The instructions after the system calls that change the address space.
fn system_calls(code: &[Code<'_>]) -> Vec<u64> {
    let loads = CALLS.map(|number| {
        let [a, b, c, d] = number.to_le_bytes();
        [0xb8, a, b, c, d]
    });
    let mut found = Vec::new();
    for code in code {
        for (at, window) in code.bytes.windows(2).enumerate() {
            if window == [0x0f, 0x05]
                && code.bytes[at.saturating_sub(NUMBER_REACH)..at]
                    .windows(5)
                    .any(|load| loads.iter().any(|wanted| wanted == load))
            {
                found.push(code.address.wrapping_add(at as u64 + 2));
            }
        }
    }
    found
}

/// The targets of calls to allocators: their functions, the slots through which they are called, and the
/// entries of the procedure linkage table (`jmp *slot(%rip)`, behind `endbr64` perhaps) that use these.
fn allocators(code: &[Code<'_>], entries: Entries) -> HashSet<u64> {
    const ENTRY: u64 = 16;
    let Entries { functions, slots } = entries;
    let mut found = functions;
    for_each_slot(code, 0x25, |slot, next| {
        if slots.contains(&slot) {
            let jump = next.wrapping_sub(6);
            found.extend([jump, jump - jump % ENTRY]);
        }
    });
    found.extend(slots);
    found
}

/// The instructions after system calls, and the return addresses of the calls that lead there or to
/// one of `targets`.
fn places(
    code: &[Code<'_>],
    functions: &Functions,
    entries: &[u64],
    targets: HashSet<u64>,
) -> Places {
    let mut places = Places::default();
    let mut reached = targets;
    let inner = entries.iter();
    reached.extend(inner.filter_map(|&address| places.add(functions, address, false)));
    for _ in 0..LEVELS {
        if reached.is_empty() || places.left_out > 0 {
            break;
        }
        let mut callers = HashSet::new();
        let mut add = |target, address| {
            if reached.contains(&target) {
                callers.extend(places.add(functions, address, true));
            }
        };
        for_each_call(code, &mut add);
        for_each_slot(code, 0x15, &mut add);
        reached = callers;
    }
    places
}

/// Gives the target and the return address of every direct call in `code`.
fn for_each_call(code: &[Code<'_>], mut each: impl FnMut(u64, u64)) {
    for code in code {
        for (at, window) in code.bytes.windows(5).enumerate() {
            if let [0xe8, a, b, c, d] = *window {
                let next = code.address.wrapping_add(at as u64 + 5);
                let displacement = i32::from_le_bytes([a, b, c, d]);
                each(next.wrapping_add_signed(displacement.into()), next);
            }
        }
    }
}

/// Gives the slot and the next address of every `ff /r disp32` in `code` whose ModRM byte is this: 0x15,
/// `call *slot(%rip)`, or 0x25, `jmp *slot(%rip)`.
fn for_each_slot(code: &[Code<'_>], modrm: u8, mut each: impl FnMut(u64, u64)) {
    for code in code {
        for (at, window) in code.bytes.windows(6).enumerate() {
            if let [0xff, form, a, b, c, d] = *window
                && form == modrm
            {
                let next = code.address.wrapping_add(at as u64 + 6);
                let displacement = i32::from_le_bytes([a, b, c, d]);
                each(next.wrapping_add_signed(displacement.into()), next);
            }
        }
    }
}

/// What functions have in common, read once, damaged or not.
#[derive(Default)]
struct Cies<'a> {
    known: HashMap<gimli::EhFrameOffset, gimli::Result<CommonInformationEntry<Slice<'a>>>>,
    damaged: usize,
}

/// The call frame information of a file.
struct Frames<'a> {
    section: &'a [u8],
    eh_frame: EhFrame<Slice<'a>>,
    bases: BaseAddresses,
}

impl<'a> Frames<'a> {
    fn new(elf: &ElfFile64<'a, object::LittleEndian>) -> Option<Self> {
        let section = elf.section_by_name(".eh_frame")?;
        let address = |name| {
            elf.section_by_name(name)
                .map_or(0, |section| section.address())
        };
        let bytes = section.data().ok().filter(|bytes| !bytes.is_empty())?;
        let mut eh_frame = EhFrame::new(bytes, LittleEndian);
        eh_frame.set_address_size(8);
        Some(Self {
            section: bytes,
            eh_frame,
            bases: BaseAddresses::default()
                .set_eh_frame(section.address())
                .set_eh_frame_hdr(address(".eh_frame_hdr"))
                .set_text(address(".text"))
                .set_got(address(".got")),
        })
    }

    fn functions(&self) -> Functions {
        let mut functions = BTreeMap::new();
        let mut cies = Cies::default();
        let mut entries = self.eh_frame.entries(&self.bases);
        while cies.damaged <= MAX_DAMAGED
            && let Ok(Some(entry)) = entries.next()
        {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let fde = partial.parse(|_, bases, offset| self.cie(&mut cies, bases, offset));
            if let Ok(fde) = fde {
                let start = fde.initial_address();
                let end = start.saturating_add(fde.len());
                functions.insert(start, (end, fde.offset().into()));
            }
        }
        functions
    }

    fn cie(
        &self,
        cies: &mut Cies<'a>,
        bases: &BaseAddresses,
        offset: gimli::EhFrameOffset,
    ) -> gimli::Result<CommonInformationEntry<Slice<'a>>> {
        cies.known
            .entry(offset)
            .or_insert_with(|| {
                let cie = self.eh_frame.cie_from_offset(bases, offset);
                cies.damaged += usize::from(cie.is_err());
                cie
            })
            .clone()
    }

    /// The rule at `place`; none where the frame is set up (CFA from the frame pointer), or where
    /// the information is of another form.
    fn rule(
        &self,
        context: &mut UnwindContext<usize>,
        functions: &Functions,
        place: Place,
        budget: &mut usize,
    ) -> Option<FrameRule> {
        let address = place.address.wrapping_sub(u64::from(place.is_return));
        let (_, entry) = function_at(functions, address)?;
        let fde = self
            .eh_frame
            .fde_from_offset(&self.bases, entry, EhFrame::cie_from_offset)
            .ok()?;
        *budget = budget.saturating_sub(fde.entry_len() + fde.cie().entry_len());
        let row = fde
            .unwind_info_for_address(&self.eh_frame, &self.bases, context, address)
            .ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = *row.cfa() else {
            return None;
        };
        if register != X86_64::RSP || row.register(X86_64::RA) != Some(RegisterRule::Offset(-8)) {
            return None;
        }
        let saved_bp = match row.register(X86_64::RBP) {
            Some(RegisterRule::Offset(offset)) => i32::try_from(offset).ok()?,
            None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => 0,
            Some(_) => return None,
        };
        Some(FrameRule {
            cfa: i32::try_from(offset).ok()?,
            saved_bp,
        })
    }
}

#[cfg(test)]
#[path = "frame_rules_tests.rs"]
mod tests;
