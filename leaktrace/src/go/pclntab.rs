//! pclntab, the table with which the Go runtime names code addresses. Always in the binary,
//! whatever was stripped.
//!
//! Format: runtime/symtab.go (`pcHeader`, `functab`, `pcvalue`), runtime/runtime2.go (`_func`),
//! runtime/symtabinl.go (`inlinedCall`; runtime/symtab.go in Go 1.19), Go 1.19 to 1.27.

use bytes::Bytes;

use super::elf::{Elf, c_string, u32_at, u64_at};

/// `0xfffffff0`: Go 1.18 and 1.19; `0xfffffff1`: Go 1.20 and later. Then two zero bytes, the
/// instruction quantum (1 on amd64) and the size of a pointer.
const HEADER_118: u64 = 0x0801_0000_ffff_fff0;
const HEADER_120: u64 = 0x0801_0000_ffff_fff1;
/// internal/abi/symtab.go: `PCDATA_StackMapIndex`, `PCDATA_InlTreeIndex`, `FUNCDATA_InlTree`.
const PCDATA_STACK_MAP_INDEX: u32 = 1;
const PCDATA_INL_TREE_INDEX: u32 = 2;
const FUNCDATA_INL_TREE: u32 = 3;
/// Deepest inlining that is followed. The compiler's budget allows far less.
const MAX_INLINED: usize = 128;

/// pclntab's parts.
#[derive(Clone, Debug)]
pub(super) struct Pclntab {
    /// Link-time address of the header.
    pub(super) address: u64,
    data: Bytes,
    /// Whether `_func` has `startLine` and the inline tree is that of Go ≥ 1.20.
    go120: bool,
    function_count: usize,
    /// Of the header; zero in Go ≥ 1.26 and, before relocation, in some PIE files.
    pub(super) text_start: u64,
    funcnametab: usize,
    cutab: usize,
    filetab: usize,
    pctab: usize,
    functab: usize,
}

/// One function: offsets into the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct FuncInfo {
    /// Entry and end relative to the text start.
    pub(super) entry: u32,
    pub(super) end: u32,
    /// Offset of its `_func` in the table's bytes.
    at: usize,
}

#[cfg(test)]
impl FuncInfo {
    pub(super) fn table_offset(&self) -> usize {
        self.at
    }
}

/// File and line of an instruction.
pub(super) type FileLine = (Option<String>, Option<u32>);

impl Pclntab {
    pub(super) fn find(elf: &Elf) -> Option<Pclntab> {
        let by_name = [".gopclntab", ".data.rel.ro.gopclntab"]
            .iter()
            .find_map(|name| {
                let section = elf.section(name)?;
                Pclntab::parse(elf.section_bytes(section)?, section.address)
            });
        by_name.or_else(|| Pclntab::scan(elf))
    }

    /// The header is aligned to eight bytes at least.
    fn scan(elf: &Elf) -> Option<Pclntab> {
        elf.segments.iter().find_map(|segment| {
            let bytes = elf.read_to_segment_end(segment.address)?;
            let words = bytes.chunks_exact(8).enumerate();
            let mut found =
                words.filter(|(_, word)| matches!(u64_at(word, 0), Some(HEADER_118 | HEADER_120)));
            found.find_map(|(index, _)| {
                let start = 8 * index;
                Pclntab::parse(
                    bytes.slice(start..),
                    segment.address.checked_add(start as u64)?,
                )
            })
        })
    }

    fn parse(data: Bytes, address: u64) -> Option<Pclntab> {
        let go120 = match u64_at(&data, 0)? {
            HEADER_118 => false,
            HEADER_120 => true,
            _ => return None,
        };
        let word = |index: usize| usize::try_from(u64_at(&data, 8 * index)?).ok();
        let table = Pclntab {
            address,
            go120,
            function_count: word(1)?,
            text_start: u64_at(&data, 24)?,
            funcnametab: word(4)?,
            cutab: word(5)?,
            filetab: word(6)?,
            pctab: word(7)?,
            functab: word(8)?,
            data,
        };
        let sized = table
            .function_count
            .checked_mul(8)?
            .checked_add(4)?
            .checked_add(table.functab)?;
        let ordered = 72 <= table.funcnametab
            && table.funcnametab <= table.cutab
            && table.cutab <= table.filetab
            && table.filetab <= table.pctab
            && table.pctab <= table.functab
            && sized <= table.data.len();
        ordered.then_some(table)
    }

    pub(super) fn funcnametab_address(&self) -> u64 {
        self.address.wrapping_add(self.funcnametab as u64)
    }

    pub(super) fn pctab_address(&self) -> u64 {
        self.address.wrapping_add(self.pctab as u64)
    }

    /// Entry of the first function and end of the last, relative to the text start.
    pub(super) fn bounds(&self) -> Option<(u32, u32)> {
        let at = |index: usize| u32_at(&self.data, self.functab + 8 * index);
        Some((at(0)?, at(self.function_count)?))
    }

    fn entry(&self, index: usize) -> u32 {
        u32_at(&self.data, self.functab + 8 * index).unwrap_or(u32::MAX)
    }

    fn function(&self, index: usize) -> Option<FuncInfo> {
        let offset = u32_at(&self.data, self.functab + 8 * index + 4)? as usize;
        Some(FuncInfo {
            entry: self.entry(index),
            end: self.entry(index + 1),
            at: self.functab.checked_add(offset)?,
        })
    }

    /// The function that `offset` from the text start is in.
    pub(super) fn function_at(&self, offset: u32) -> Option<FuncInfo> {
        let (mut low, mut high) = (0, self.function_count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let function = self.function(low.checked_sub(1)?)?;
        (function.entry <= offset && offset < function.end).then_some(function)
    }

    /// The functions in the order of their addresses.
    pub(super) fn functions(&self) -> impl Iterator<Item = FuncInfo> {
        (0..self.function_count).filter_map(|index| self.function(index))
    }

    pub(super) fn name(&self, function: &FuncInfo) -> Option<&[u8]> {
        self.name_at(u32_at(&self.data, function.at + 4)?)
    }

    fn name_at(&self, offset: u32) -> Option<&[u8]> {
        let names = self.data.get(self.funcnametab..self.cutab)?;
        c_string(names, offset as usize)
    }

    /// File and line of the instruction at `offset` from the text start.
    pub(super) fn file_line(&self, function: &FuncInfo, offset: u32) -> FileLine {
        let table = |field: usize| u32_at(&self.data, function.at + field);
        let line = table(24).and_then(|at| self.pc_value(at, function, offset));
        let file = table(20)
            .and_then(|at| self.pc_value(at, function, offset))
            .and_then(|file| {
                let unit = table(32)?.checked_add(u32::try_from(file).ok()?)?;
                let at = self
                    .cutab
                    .checked_add(4 * unit as usize)
                    .filter(|at| *at < self.filetab)?;
                let files = self.data.get(self.filetab..self.pctab)?;
                c_string(files, u32_at(&self.data, at)? as usize)
            });
        (
            file.map(|file| String::from_utf8_lossy(file).into_owned()),
            line.and_then(|line| u32::try_from(line).ok())
                .filter(|line| *line > 0),
        )
    }

    /// Bytes of the frame at `offset` from the text start, between the stack pointer and the return
    /// address (runtime/symtab.go, `funcspdelta`).
    pub(super) fn frame_size(&self, function: &FuncInfo, offset: u32) -> Option<u32> {
        let table = u32_at(&self.data, function.at + 16)?;
        u32::try_from(self.pc_value(table, function, offset)?).ok()
    }

    /// The value at `offset` of the pc-value table that begins at `table` in pctab: pairs of
    /// varints, a zigzag delta of the value and a delta of the pc, ended by a zero value delta.
    fn pc_value(&self, table: u32, function: &FuncInfo, offset: u32) -> Option<i32> {
        if table == 0 {
            return None;
        }
        let mut bytes = self
            .data
            .get(self.pctab..self.functab)?
            .get(table as usize..)?;
        let mut pc = function.entry;
        let mut value = -1i32;
        let mut first = true;
        while pc < function.end {
            let delta = varint(&mut bytes)?;
            if delta == 0 && !first {
                return None;
            }
            first = false;
            let magnitude = (delta >> 1) as i32;
            value = value.wrapping_add(if delta & 1 != 0 {
                !magnitude
            } else {
                magnitude
            });
            pc = pc.checked_add(varint(&mut bytes)?)?;
            if offset < pc {
                return Some(value);
            }
        }
        None
    }

    /// The logical frames at `offset`, innermost first: name (`None` when the table is damaged)
    /// and the offset whose file and line are that frame's. The last is the function itself.
    /// `gofunc`: what function data is relative to; without it inlined calls stay hidden.
    pub(super) fn logical_frames(
        &self,
        elf: &Elf,
        gofunc: Option<u64>,
        function: &FuncInfo,
        mut offset: u32,
    ) -> Vec<(Option<&[u8]>, u32)> {
        let mut frames = Vec::new();
        let tree = gofunc.and_then(|gofunc| self.inline_tree(gofunc, function));
        while let Some((address, table)) = tree {
            let Some(index) = self.pc_value(table, function, offset) else {
                break;
            };
            let Ok(index) = u64::try_from(index) else {
                break;
            };
            let Some(call) = self.inlined_call(elf, address, index) else {
                break;
            };
            frames.push((self.name_at(call.name), offset));
            let Some(parent) = function.entry.checked_add(call.parent) else {
                break;
            };
            if frames.len() == MAX_INLINED {
                break;
            }
            offset = parent;
        }
        frames.push((self.name(function), offset));
        frames
    }

    /// Address of the function's inline tree and its index table in pctab.
    fn inline_tree(&self, gofunc: u64, function: &FuncInfo) -> Option<(u64, u32)> {
        let index = self.pc_data(function, PCDATA_INL_TREE_INDEX)?;
        Some((self.func_data(gofunc, function, FUNCDATA_INL_TREE)?, index))
    }

    /// The function's pc-value table of this number.
    fn pc_data(&self, function: &FuncInfo, number: u32) -> Option<u32> {
        let (pcdata, count) = self.pc_data_tables(function)?;
        (number < count).then_some(())?;
        u32_at(&self.data, pcdata + 4 * number as usize)
    }

    /// Address of the function's data of this number.
    pub(super) fn func_data(&self, gofunc: u64, function: &FuncInfo, number: u32) -> Option<u64> {
        let (pcdata, pcdata_count) = self.pc_data_tables(function)?;
        let count = *self.data.get(pcdata - 1)?;
        (number < u32::from(count)).then_some(())?;
        let funcdata = pcdata.checked_add(4 * pcdata_count as usize)?;
        let offset = u32_at(&self.data, funcdata + 4 * number as usize)?;
        gofunc
            .checked_add(offset.into())
            .filter(|_| offset != u32::MAX)
    }

    fn pc_data_tables(&self, function: &FuncInfo) -> Option<(usize, u32)> {
        let pcdata = function.at.checked_add(if self.go120 { 44 } else { 40 })?;
        Some((pcdata, u32_at(&self.data, function.at + 28)?))
    }

    /// Which of the function's stack maps counts at `offset` from the text start; -1: none is said.
    pub(super) fn stack_map_index(&self, function: &FuncInfo, offset: u32) -> i32 {
        self.pc_data(function, PCDATA_STACK_MAP_INDEX)
            .and_then(|table| self.pc_value(table, function, offset))
            .unwrap_or(-1)
    }

    /// Bytes of the function's arguments on the stack; negative: it varies.
    pub(super) fn argument_bytes(&self, function: &FuncInfo) -> Option<i32> {
        Some(u32_at(&self.data, function.at + 8)? as i32)
    }

    fn inlined_call(&self, elf: &Elf, tree: u64, index: u64) -> Option<InlinedCall> {
        // Go ≥ 1.20: funcID u8, pad, nameOff, parentPc, startLine.
        // Go 1.19: parent i16, funcID u8, pad, file, line, func, parentPc.
        let (size, name, parent) = if self.go120 { (16, 4, 8) } else { (20, 12, 16) };
        let entry = elf.read(tree.checked_add(index * size)?, size)?;
        Some(InlinedCall {
            name: u32_at(entry, name)?,
            parent: u32_at(entry, parent)?,
        })
    }
}

/// An entry of an inline tree.
struct InlinedCall {
    name: u32,
    /// Offset from the function's entry of an instruction whose position is the call site.
    parent: u32,
}

fn varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
