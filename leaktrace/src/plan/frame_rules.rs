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
//! met does no harm, so places are found by their bytes.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// The rules of an ELF file by file offset of the instruction (or return address) they are for.
///
/// # Errors
///
/// See [`NoRules`]. Damaged call frame information gives fewer rules.
pub fn frame_rules(image: &[u8]) -> Result<BTreeMap<u64, FrameRule>, NoRules> {
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
    let functions = frames.functions();
    let addresses = places(&code, &functions);
    let mut context = UnwindContext::new();
    let offset = |address: u64| {
        elf.segments().find_map(|segment| {
            let (start, _) = segment.file_range();
            let within = address.checked_sub(segment.address())?;
            (within < segment.size()).then(|| start + within)
        })
    };
    Ok(addresses
        .into_iter()
        .filter_map(|place| {
            let rule = frames.rule(&mut context, &functions, place)?;
            Some((offset(place.address)?, rule))
        })
        .take(MAX_RULES)
        .collect())
}

/// A stretch of code.
struct Code<'a> {
    address: u64,
    bytes: &'a [u8],
}

/// An instruction for which a rule is wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// The instructions after system calls, and the return addresses of the calls that lead there.
fn places(code: &[Code<'_>], functions: &Functions) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    let mut reached = BTreeSet::new();
    for code in code {
        for (at, _) in code
            .bytes
            .windows(2)
            .enumerate()
            .filter(|(_, w)| *w == [0x0f, 0x05])
        {
            let before = &code.bytes[at.saturating_sub(NUMBER_REACH)..at];
            let is_wanted = CALLS.iter().any(|number| {
                let mut load = [0xb8, 0, 0, 0, 0];
                load[1..].copy_from_slice(&number.to_le_bytes());
                before.windows(5).any(|window| window == load)
            });
            let address = code.address + at as u64 + 2;
            if is_wanted && let Some((start, _)) = function_at(functions, address - 1) {
                places.insert(Place {
                    address,
                    is_return: false,
                });
                reached.insert(start);
            }
        }
    }
    let calls = calls(code);
    for _ in 0..LEVELS {
        let mut callers = BTreeSet::new();
        for target in &reached {
            for &address in calls.get(target).into_iter().flatten() {
                if let Some((start, _)) = function_at(functions, address - 1)
                    && places.insert(Place {
                        address,
                        is_return: true,
                    })
                {
                    callers.insert(start);
                }
            }
        }
        if places.len() > MAX_RULES {
            break;
        }
        reached = callers;
    }
    places
}

/// Return addresses of the direct calls in `code`, by target.
fn calls(code: &[Code<'_>]) -> HashMap<u64, Vec<u64>> {
    let mut calls: HashMap<u64, Vec<u64>> = HashMap::new();
    for code in code {
        for (at, window) in code.bytes.windows(5).enumerate() {
            if let [0xe8, displacement @ ..] = window
                && let Ok(displacement) = displacement.try_into()
            {
                let next = code.address + at as u64 + 5;
                let target = next.wrapping_add_signed(i32::from_le_bytes(displacement).into());
                calls.entry(target).or_default().push(next);
            }
        }
    }
    calls
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
        let mut cies = HashMap::new();
        let mut entries = self.eh_frame.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
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
        known: &mut HashMap<gimli::EhFrameOffset, CommonInformationEntry<Slice<'a>>>,
        bases: &BaseAddresses,
        offset: gimli::EhFrameOffset,
    ) -> gimli::Result<CommonInformationEntry<Slice<'a>>> {
        if let Some(cie) = known.get(&offset) {
            return Ok(cie.clone());
        }
        let cie = self.eh_frame.cie_from_offset(bases, offset)?;
        known.insert(offset, cie.clone());
        Ok(cie)
    }

    /// The rule at `place`; none where the frame is set up (CFA from the frame pointer), or where
    /// the information is of another form.
    fn rule(
        &self,
        context: &mut UnwindContext<usize>,
        functions: &Functions,
        place: Place,
    ) -> Option<FrameRule> {
        let address = place.address - u64::from(place.is_return);
        let (_, entry) = function_at(functions, address)?;
        let fde = self
            .eh_frame
            .fde_from_offset(&self.bases, entry, EhFrame::cie_from_offset)
            .ok()?;
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

    /// Rules at the places inside the function `name`, by offset from its start.
    fn rules_in(image: &[u8], name: &str) -> Vec<(u64, FrameRule)> {
        use object::ObjectSymbol as _;
        let elf = ElfFile64::<object::LittleEndian>::parse(image).unwrap();
        let symbol = elf
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok(name))
            .unwrap();
        // libc's text has the same address and file offset.
        let range = symbol.address()..symbol.address() + symbol.size();
        let rules = frame_rules(image).unwrap();
        rules
            .range(range)
            .map(|(at, rule)| (at - symbol.address(), *rule))
            .collect()
    }

    #[test]
    fn libc_wrappers_can_be_left() {
        let image = libc();
        // A leaf: the return address is at the top of the stack.
        for name in ["munmap", "brk"] {
            let rules = rules_in(&image, name);
            assert!(
                rules.iter().any(|(_, rule)| *rule
                    == FrameRule {
                        cfa: 8,
                        saved_bp: 0
                    }),
                "{name}: {rules:?}"
            );
        }
        // Variadic: it makes room on the stack first.
        let mremap = rules_in(&image, "mremap");
        assert!(
            mremap
                .iter()
                .any(|(_, rule)| rule.cfa > 8 && rule.cfa % 8 == 0),
            "{mremap:?}"
        );
        // Its caller of brk must not be lost.
        assert!(!rules_in(&image, "sbrk").is_empty());
        assert!(!rules_in(&image, "malloc").is_empty());
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
}
