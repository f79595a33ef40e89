//! The frame table of an ELF file: for each instruction, how to leave the frame of code that stands there.
//!
//! Code without frame pointers can be walked by its call frame information only. An interpreter of that
//! is nothing for the kernel side, so it is interpreted here, once for each function, and kept as rows of
//! eight bytes: from one instruction to the next row the same [`FrameRule`] holds. The rows are grouped
//! by page of the file, since a file is mapped by pages: with the first row of each page at its start, the
//! kernel side finds a row by a look at the page and a binary search within it, wherever the file is
//! mapped.
//!
//! Pure: the bytes of an ELF file in, a table by file offset out. The work is in proportion to the call
//! frame information, whatever it says, and so is the memory.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use gimli::{
    BaseAddresses, CieOrFde, CommonInformationEntry, EhFrame, EhFrameOffset, LittleEndian,
    UnwindContext, UnwindSection as _,
};
use leaktrace_common::{UNWIND_PAGE, UnwindRow};
use object::{
    Object as _, ObjectSection as _, ObjectSegment as _, SegmentFlags, elf::PF_X,
    read::elf::ElfFile64,
};

use super::frame_rule::{FrameRule, Slice};

type Elf<'a> = ElfFile64<'a, object::LittleEndian>;

/// Files with more call frame information than this have no table.
const MAX_EH_FRAME: usize = 256 << 20;
/// Most bytes of call frame information that are interpreted, again and again included: what functions
/// have in common is read for each of them, a few bytes usually.
const MAX_INTERPRETED: usize = 1 << 30;
/// Most changes of the rule that are gathered for each row there is room for: those of neighbours are often the
/// same, and become one.
const MAX_CHANGES: usize = 2;
/// Damaged entries that are read through before the rest is let be.
const MAX_DAMAGED: usize = 64;
/// Between functions less than this is padding, in which nothing is executed.
const PADDING: u32 = 16;

/// Why a file has no frame table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFrameTable {
    /// Not an ELF file, or a damaged one.
    #[error("failed to read the ELF file: {0}")]
    Elf(String),
    /// No `.eh_frame`: built without it, or Go.
    #[error("no call frame information")]
    NoFrames,
    /// More than is read, or more rows than there is room for.
    #[error("its call frame information is more than there is room for")]
    TooLarge,
}

/// A page of a file whose code has rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Number of the page in the file: offset divided by [`UNWIND_PAGE`].
    pub number: u32,
    /// Its first row, which is that of its first byte.
    pub first: u32,
    /// Its rows, at least one.
    pub rows: u32,
}

/// What a file says about leaving its frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameTable {
    /// All rows, in the order of the file.
    pub rows: Vec<UnwindRow>,
    /// The pages they belong to, in order; those that are not here have no rule.
    pub pages: Vec<Page>,
}

impl FrameTable {
    /// The table of an ELF file, of at most `room` rows. `rules` are for single return addresses, by
    /// link-time address, and come before what the file says.
    ///
    /// # Errors
    ///
    /// See [`NoFrameTable`]. Damaged call frame information gives fewer rules.
    pub fn new(
        image: &[u8],
        rules: &[(u64, FrameRule)],
        room: usize,
    ) -> Result<Self, NoFrameTable> {
        let elf = Elf::parse(image).map_err(|error| NoFrameTable::Elf(error.to_string()))?;
        let code = Code::of(&elf);
        let mut changes = match Frames::new(&elf) {
            Some(frames) if frames.len > MAX_EH_FRAME => {
                return Err(NoFrameTable::TooLarge);
            }
            Some(frames) => frames.changes(&code, room)?,
            None if rules.is_empty() => return Err(NoFrameTable::NoFrames),
            None => Vec::new(),
        };
        for (address, rule) in rules {
            if let Some(offset) = code.find(address.wrapping_sub(1)).map(|(offset, _)| offset) {
                overlay(&mut changes, offset, *rule);
            }
        }
        changes.dedup_by_key(|change| change.rule);
        Self::from_changes(&changes, room).ok_or(NoFrameTable::TooLarge)
    }

    /// The rule for the instruction at a file offset, if its page has any: what the kernel side finds.
    pub fn rule(&self, offset: u32) -> Option<FrameRule> {
        let number = offset / UNWIND_PAGE;
        let page = self.pages.binary_search_by_key(&number, |page| page.number);
        let page = self.pages.get(page.ok()?)?;
        let rows = &self.rows[page.first as usize..][..page.rows as usize];
        let within = (offset % UNWIND_PAGE) as u16;
        let after = rows.partition_point(|row| row.at & (UNWIND_PAGE as u16 - 1) <= within);
        rows.get(after.checked_sub(1)?).map(|row| FrameRule {
            kind: (row.at / UNWIND_PAGE as u16) as u8,
            cfa: row.cfa,
            saved_bp: row.saved_bp,
        })
    }

    /// `None`: more than `room` rows.
    fn from_changes(changes: &[Change], room: usize) -> Option<Self> {
        let mut table = Self::default();
        for (index, change) in changes.iter().enumerate() {
            table.push(change.offset, change.rule);
            let end = changes.get(index + 1).map_or(0, |next| next.offset);
            for page in change.offset / UNWIND_PAGE + 1..end.div_ceil(UNWIND_PAGE) {
                if table.rows.len() > room {
                    return None;
                }
                table.push(page * UNWIND_PAGE, change.rule);
            }
        }
        (table.rows.len() <= room).then_some(table)
    }

    /// Adds a row; the first of a page is preceded by the rule in force at the page's start.
    fn push(&mut self, offset: u32, rule: FrameRule) {
        let (number, within) = (offset / UNWIND_PAGE, offset % UNWIND_PAGE);
        if self.pages.last().is_none_or(|page| page.number != number) {
            if rule == FrameRule::FRAME_POINTER {
                return;
            }
            self.pages.push(Page {
                number,
                first: self.rows.len() as u32,
                rows: 0,
            });
            if within > 0 {
                self.push(number * UNWIND_PAGE, FrameRule::FRAME_POINTER);
            }
        }
        if let Some(page) = self.pages.last_mut() {
            page.rows += 1;
        }
        self.rows.push(UnwindRow {
            cfa: rule.cfa,
            saved_bp: rule.saved_bp,
            at: (u32::from(rule.kind) * UNWIND_PAGE + within) as u16,
        });
    }
}

/// The functions of an ELF file as its call frame information has them: sizes in bytes by link-time
/// address. None where it has no such information.
pub fn functions(image: &[u8]) -> BTreeMap<u64, u64> {
    let frames = Elf::parse(image).ok().and_then(|elf| Frames::new(&elf));
    frames.map_or_else(BTreeMap::new, |frames| frames.extents())
}

/// From a file offset on another rule holds.
#[derive(Clone, Copy)]
struct Change {
    offset: u32,
    rule: FrameRule,
}

/// Lets a rule hold for the one byte at `offset`.
fn overlay(changes: &mut Vec<Change>, offset: u32, rule: FrameRule) {
    let before = changes.partition_point(|change| change.offset < offset);
    let after = changes.partition_point(|change| change.offset <= offset);
    let was = match after.checked_sub(1) {
        Some(index) => changes[index].rule,
        None => FrameRule::FRAME_POINTER,
    };
    let next = changes.get(after).map(|change| change.offset);
    let back = Change {
        offset: offset + 1,
        rule: was,
    };
    let back = (next != Some(back.offset)).then_some(back);
    let new = [Change { offset, rule }].into_iter().chain(back);
    changes.splice(before..after, new);
}

/// The executable segments of a file.
struct Code {
    /// First address, size in the file, file offset.
    segments: Vec<(u64, u64, u32)>,
}

impl Code {
    fn of(elf: &Elf<'_>) -> Self {
        let segments = elf.segments().filter_map(|segment| {
            let SegmentFlags::Elf { p_flags } = segment.flags() else {
                return None;
            };
            let (offset, size) = segment.file_range();
            let offset = u32::try_from(offset).ok()?;
            let size = size.min(u64::from(u32::MAX - offset));
            (p_flags & PF_X != 0).then_some((segment.address(), size, offset))
        });
        Self {
            segments: segments.collect(),
        }
    }

    /// File offset of what is at an address, and how many bytes of code follow.
    fn find(&self, address: u64) -> Option<(u32, u32)> {
        self.segments.iter().find_map(|(start, size, offset)| {
            let within = address.checked_sub(*start)?;
            let rest = size.checked_sub(within).filter(|rest| *rest > 0)?;
            Some((offset + within as u32, rest as u32))
        })
    }
}

/// What functions have in common, read once, damaged or not.
type Cies<'a> = HashMap<EhFrameOffset, gimli::Result<CommonInformationEntry<Slice<'a>>>>;

/// The code of a function, and its part of a list of changes.
struct Function {
    start: u32,
    end: u32,
    changes: std::ops::Range<usize>,
}

/// The call frame information of a file.
struct Frames<'a> {
    eh_frame: EhFrame<Slice<'a>>,
    len: usize,
    bases: BaseAddresses,
}

impl<'a> Frames<'a> {
    fn new(elf: &Elf<'a>) -> Option<Self> {
        let section = elf.section_by_name(".eh_frame")?;
        let address = |name| {
            elf.section_by_name(name)
                .map_or(0, |section| section.address())
        };
        let bytes = section.data().ok().filter(|bytes| !bytes.is_empty())?;
        let mut eh_frame = EhFrame::new(bytes, LittleEndian);
        eh_frame.set_address_size(8);
        Some(Self {
            eh_frame,
            len: bytes.len(),
            bases: BaseAddresses::default()
                .set_eh_frame(section.address())
                .set_eh_frame_hdr(address(".eh_frame_hdr"))
                .set_text(address(".text"))
                .set_got(address(".got")),
        })
    }

    /// Sizes of the functions by link-time address.
    fn extents(&self) -> BTreeMap<u64, u64> {
        let mut extents = BTreeMap::new();
        let mut cies = Cies::default();
        let mut entries = self.eh_frame.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            if let Ok(fde) = partial.parse(|section, bases, offset| {
                let read = || section.cie_from_offset(bases, offset);
                cies.entry(offset).or_insert_with(read).clone()
            }) {
                extents.insert(fde.initial_address(), fde.len());
            }
        }
        extents
    }

    /// Every change of the rule, in the order of the file.
    fn changes(&self, code: &Code, room: usize) -> Result<Vec<Change>, NoFrameTable> {
        let (functions, changes) = self.functions(code, room)?;
        let mut ordered = Vec::with_capacity(changes.len());
        let mut end = 0;
        let by_frame_pointer = |offset| Change {
            offset,
            rule: FrameRule::FRAME_POINTER,
        };
        for function in functions {
            // In damaged files functions lie within each other: the later one counts.
            while ordered
                .pop_if(|last: &mut Change| last.offset >= function.start)
                .is_some()
            {}
            if function.start.saturating_sub(end) >= PADDING {
                ordered.push(by_frame_pointer(end));
            }
            ordered.extend_from_slice(&changes[function.changes]);
            end = function.end;
        }
        ordered.push(by_frame_pointer(end));
        Ok(ordered)
    }

    /// The functions in the order of their code, and the changes that each consists of.
    fn functions(
        &self,
        code: &Code,
        room: usize,
    ) -> Result<(Vec<Function>, Vec<Change>), NoFrameTable> {
        let (mut functions, mut changes) = (Vec::new(), Vec::new());
        let mut cies = Cies::default();
        let (mut damaged, mut interpreted) = (0, 0);
        let mut context = UnwindContext::new();
        let mut entries = self.eh_frame.entries(&self.bases);
        while damaged <= MAX_DAMAGED
            && let Ok(Some(entry)) = entries.next()
        {
            let CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let fde = partial.parse(|section, bases, offset| {
                let read = || section.cie_from_offset(bases, offset);
                cies.entry(offset).or_insert_with(read).clone()
            });
            let Ok(fde) = fde else {
                damaged += 1;
                continue;
            };
            let address = fde.initial_address();
            let Some((start, rest)) = code.find(address) else {
                continue;
            };
            let end = start + u64::from(rest).min(fde.len()) as u32;
            interpreted += fde.entry_len() + fde.cie().entry_len();
            if interpreted > MAX_INTERPRETED || changes.len() / MAX_CHANGES > room {
                return Err(NoFrameTable::TooLarge);
            }
            let first = changes.len();
            let Ok(mut rows) = fde.rows(&self.eh_frame, &self.bases, &mut context) else {
                damaged += 1;
                continue;
            };
            while let Ok(Some(row)) = rows.next_row() {
                if changes.len() / MAX_CHANGES > room {
                    return Err(NoFrameTable::TooLarge);
                }
                let offset = start.saturating_add((row.start_address() - address) as u32);
                let rule = FrameRule::from_row(&self.eh_frame, row, fde.is_signal_trampoline());
                if offset < end
                    && changes[first..]
                        .last()
                        .is_none_or(|last: &Change| last.rule != rule)
                {
                    changes.push(Change { offset, rule });
                }
            }
            functions.push(Function {
                start,
                end,
                changes: first..changes.len(),
            });
        }
        functions.sort_by_key(|function| function.start);
        Ok((functions, changes))
    }
}

#[cfg(test)]
#[path = "frame_table_tests.rs"]
mod tests;
