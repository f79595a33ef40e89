//! How to leave the frames between a system call and code with frame pointers.
//!
//! libc is built without frame pointers, and its `mmap`, `mremap` and `brk` are where the kernel is
//! entered: a walk by frame pointers alone starts too far out and loses the caller. The call frame
//! information (`.eh_frame`) says, for every instruction, where the return address is. This module
//! reads it for the few instructions that matter: those after a system call that changes the
//! address space, and the return addresses of the calls that lead there within the same file (as
//! `malloc` → `_int_malloc` → `sysmalloc` → `sbrk` → `brk`).
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
use leaktrace_common::FrameRule;
use object::{
    Object as _, ObjectSection as _, ObjectSegment as _, SectionKind, read::elf::ElfFile64,
};

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

/// The rules of an ELF file.
///
/// # Errors
///
/// See [`NoRules`]. Damaged call frame information gives fewer rules.
pub fn frame_rules(image: &[u8]) -> Result<FrameRules, NoRules> {
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
    if entries.is_empty() {
        return Ok(FrameRules::default());
    }
    let functions = frames.functions();
    let places = places(&code, &functions, &entries);
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

/// The instructions after system calls, and the return addresses of the calls that lead there.
fn places(code: &[Code<'_>], functions: &Functions, entries: &[u64]) -> Places {
    let mut places = Places::default();
    let mut reached: HashSet<u64> = entries
        .iter()
        .filter_map(|&address| places.add(functions, address, false))
        .collect();
    for _ in 0..LEVELS {
        if reached.is_empty() || places.left_out > 0 {
            break;
        }
        let mut callers = HashSet::new();
        for_each_call(code, |target, address| {
            if reached.contains(&target) {
                callers.extend(places.add(functions, address, true));
            }
        });
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
mod tests {
    use std::fs;

    use super::*;

    fn libc() -> Vec<u8> {
        fs::read("/lib/x86_64-linux-gnu/libc.so.6").expect("glibc of a Debian-like machine")
    }

    /// The rule that is in force after each instruction `wanted` in the function `name`, with
    /// the bytes of the function before it.
    fn rules_in(image: &[u8], name: &str) -> Vec<(u64, FrameRule, Vec<u8>)> {
        use object::ObjectSymbol as _;
        let elf = ElfFile64::<object::LittleEndian>::parse(image).unwrap();
        let symbol = elf
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok(name))
            .unwrap();
        // libc's text has the same address and file offset.
        let start = symbol.address();
        let rules = frame_rules(image).unwrap().rules;
        rules
            .range(start..start + symbol.size())
            .map(|(&at, &rule)| {
                let before = image[start as usize..at as usize].to_vec();
                (at - start, rule, before)
            })
            .collect()
    }

    /// What the instructions from the entry to a place did to the stack, for straight code:
    /// pushes and `sub $…,%rsp`. An independent reading, by the instructions and not by the CFI.
    fn by_decoding(code: &[u8]) -> FrameRule {
        use iced_x86::{Code, Decoder, DecoderOptions, Register};
        let mut rule = FrameRule {
            cfa: 8,
            saved_bp: 0,
        };
        for instruction in Decoder::new(64, code, DecoderOptions::NONE).iter() {
            match instruction.code() {
                Code::Push_r64 => {
                    rule.cfa += 8;
                    if instruction.op0_register() == Register::RBP {
                        rule.saved_bp = -rule.cfa;
                    }
                }
                Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
                    if instruction.op0_register() == Register::RSP =>
                {
                    rule.cfa += instruction.immediate(1) as i32;
                }
                // The end of a way out: what follows is entered from before it, by a jump.
                Code::Pop_r64 => {
                    rule.cfa -= 8;
                    if instruction.op0_register() == Register::RBP {
                        rule.saved_bp = 0;
                    }
                }
                _ => {}
            }
        }
        rule
    }

    #[test]
    fn libc_wrappers_are_left_as_their_instructions_say() {
        let image = libc();
        for name in ["mmap", "munmap", "mremap", "brk"] {
            let rules = rules_in(&image, name);
            assert!(!rules.is_empty(), "{name} has no rule");
            let (at, rule, before) = &rules[0];
            assert!(before.ends_with(&[0x0f, 0x05]), "{name}+{at:#x}");
            assert_eq!(*rule, by_decoding(before), "{name}+{at:#x}");
        }
        // A leaf keeps its return address at the top; a variadic function makes room first.
        let cfa = |name| rules_in(&image, name)[0].1.cfa;
        assert_eq!((cfa("munmap"), cfa("brk")), (8, 8));
        assert!(cfa("mremap") > 8);
        // brk's caller has rbp for itself: it must be found again.
        let (at, rule, before) = &rules_in(&image, "sbrk")[0];
        assert_eq!(*rule, by_decoding(before), "sbrk+{at:#x}");
        assert!(rule.saved_bp < -8, "{rule:?}");
        // malloc → … → sbrk.
        assert!(!rules_in(&image, "malloc").is_empty());
    }

    #[test]
    fn every_rule_keeps_the_stack_aligned() {
        let rules = frame_rules(&libc()).unwrap();
        assert_eq!(rules.left_out, 0);
        for (at, rule) in rules.rules {
            assert!(rule.cfa >= 8 && rule.cfa % 8 == 0, "{at:#x} {rule:?}");
            assert!(
                rule.saved_bp <= 0 && rule.saved_bp >= -rule.cfa,
                "{at:#x} {rule:?}"
            );
        }
    }

    #[test]
    fn damaged_files_are_no_danger() {
        let image = libc();
        for len in (0..image.len()).step_by(image.len() / 40) {
            let _ = frame_rules(&image[..len]);
        }
        let elf = ElfFile64::<object::LittleEndian>::parse(image.as_slice()).unwrap();
        let section = elf.section_by_name(".eh_frame").unwrap();
        let (start, size) = section.file_range().unwrap();
        for at in (start..start + size).step_by(size as usize / 40) {
            let mut image = image.clone();
            image[at as usize..at as usize + 16].fill(0xff);
            let _ = frame_rules(&image);
        }
        for no_elf in [&b""[..], b"no ELF"] {
            assert!(matches!(frame_rules(no_elf), Err(NoRules::Elf(_))));
        }
    }

    /// Rewrites the addresses in the section headers: nothing may overflow.
    #[test]
    fn sections_at_the_end_of_the_address_space_are_no_danger() {
        let image = libc();
        let u64_at = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let headers = u64_at(0x28) as usize; // e_shoff
        let count = u16::from_le_bytes([image[0x3c], image[0x3d]]); // e_shnum
        let segments = u64_at(0x20) as usize; // e_phoff
        for address in [u64::MAX, u64::MAX - 0x10_0000, 1 << 63] {
            let mut lying = image.clone();
            for header in (0..usize::from(count)).map(|i| headers + i * 64) {
                lying[header + 16..header + 24].copy_from_slice(&address.to_le_bytes()); // sh_addr
            }
            let _ = frame_rules(&lying);
            // And segments that lie at the end of the file's own offsets.
            let mut lying = image.clone();
            for header in (0..usize::from(image[0x38])).map(|i| segments + i * 56) {
                lying[header + 8..header + 16].copy_from_slice(&address.to_le_bytes()); // p_offset
            }
            let _ = frame_rules(&lying);
        }
    }

    /// Code that is nothing but calls to one function: no more than the bound, the rest counted.
    #[test]
    fn more_calls_than_are_kept_are_counted() {
        let mut bytes = vec![0xb8, 9, 0, 0, 0, 0x0f, 0x05, 0xc3];
        let calls = MAX_RULES + 100;
        for _ in 0..calls {
            let displacement = -(bytes.len() as i32 + 5);
            bytes.push(0xe8);
            bytes.extend(displacement.to_le_bytes());
        }
        let end = bytes.len() as u64;
        let code = [Code {
            address: 0,
            bytes: &bytes,
        }];
        let functions = BTreeMap::from([(0, (8, 0usize.into())), (8, (end, 0usize.into()))]);
        let places = places(&code, &functions, &system_calls(&code));
        assert_eq!(places.list.len(), MAX_RULES);
        assert_eq!(places.left_out, 101, "the system call itself took one");
        assert!(!places.list[0].is_return && places.list[0].address == 7);
    }
}
