//! The program's own types and variables, from its debug information: what a pointer in a variable or a field
//! points to (DWARF 4 and 5 as Go 1.19 to 1.27 write it, with names in place and without split units).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use gimli::{DebugInfoOffset, Dwarf, EndianSlice, LittleEndian, SectionId, Unit, constants as dw};

use super::{
    dwarf::{Die, Slice, name, reference, unsigned},
    locations::{address_of, location_at, offset_in},
};

/// Entries read, and types and functions kept, at most.
const MAX_ENTRIES: usize = 1 << 25;
const MAX_KEPT: usize = 1 << 21;
/// Entries of one function that are looked at.
const MAX_LOCALS: usize = 1 << 14;
/// Fields within fields that are followed.
const MAX_DEPTH: usize = 16;
/// What pointers of this type point to is in its name.
const ATOMIC: &str = "sync/atomic.Pointer[";

/// A type: where its entry is.
pub type TypeId = DebugInfoOffset;

/// Sections of debug information, by their names without `.debug_`.
#[derive(Default)]
struct Sections(HashMap<&'static str, Bytes>);

/// Types, variables and functions of a program.
#[derive(Default)]
pub struct DebugTypes {
    sections: Sections,
    types: HashMap<TypeId, Type>,
    /// By name as a type descriptor has it, with the last part of the package's path; `None`: several have it.
    by_name: HashMap<String, Option<TypeId>>,
    /// By link-time address: name and type.
    variables: BTreeMap<u64, (String, TypeId)>,
    /// First and last byte behind, the unit, the entry; by address.
    functions: Vec<(u64, u64, DebugInfoOffset, DebugInfoOffset)>,
}

#[derive(Debug)]
struct Type {
    name: String,
    size: Option<u64>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    /// Offset, name and type of each field.
    Struct(Vec<(u64, String, TypeId)>),
    Pointer(Option<TypeId>),
    Array(TypeId, u64),
    Alias(TypeId),
    Other,
}

/// What a word of a variable or an object points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointee {
    /// The way to the word, as in `.m.root`; empty if it is the whole.
    pub field: String,
    /// The type that it points to.
    pub of: TypeId,
}

impl Sections {
    fn dwarf(&self) -> Dwarf<Slice<'_>> {
        let section = |id: SectionId| {
            let name = id.name().trim_start_matches(".debug_");
            let bytes = self.0.get(name).map_or(&[][..], |bytes| bytes);
            EndianSlice::new(bytes, LittleEndian)
        };
        Dwarf::load(|id| Ok::<_, gimli::Error>(section(id))).unwrap_or_default()
    }
}

impl DebugTypes {
    /// Reads them from sections by their names, as in `info` for `.debug_info`, uncompressed. `None`: there are none,
    /// or they cannot be read.
    pub(crate) fn read(section: impl Fn(&str) -> Option<Bytes>) -> Option<Self> {
        // Of the table of lines gimli reads the header of each unit.
        const NAMES: [&str; 8] = [
            "info", "abbrev", "addr", "line", "loc", "loclists", "ranges", "rnglists",
        ];
        let sections = NAMES
            .iter()
            .filter_map(|name| Some((*name, section(name)?)));
        let sections = Sections(sections.collect());
        let mut types = Self::default();
        types.index(&sections.dwarf()).ok()?;
        types.sections = sections;
        (!types.types.is_empty()).then_some(types)
    }

    fn index(&mut self, dwarf: &Dwarf<Slice<'_>>) -> gimli::Result<()> {
        let mut headers = dwarf.units();
        let mut left = MAX_ENTRIES;
        while let Some(header) = headers.next()? {
            let unit = dwarf.unit(header)?;
            let mut entries = unit.entries();
            // The type whose children come.
            let mut open = None;
            while let Some(entry) = entries.next_dfs()? {
                left -= 1;
                if left == 0 || self.types.len() + self.functions.len() > MAX_KEPT {
                    return Ok(());
                }
                match entry.depth() {
                    1 => open = self.take(dwarf, &unit, entry)?,
                    2 => self.add(&unit, entry, open),
                    _ => {}
                }
            }
        }
        self.functions.sort_unstable();
        for (id, of) in &self.types {
            let same = self.by_name.entry(short_name(&of.name).to_owned());
            let same = same.or_insert(Some(*id));
            let Some(other) = same.and_then(|other| self.types.get(&other)) else {
                continue;
            };
            match (&of.shape, &other.shape) {
                // One of another package.
                _ if other.name != of.name => *same = None,
                // What an alias stands for has its name.
                (_, Shape::Alias(_)) => *same = Some(*id),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes in an entry of the first level; gives its place if it is a type.
    fn take<'a>(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        unit: &Unit<Slice<'a>>,
        entry: &Die<'a>,
    ) -> gimli::Result<Option<TypeId>> {
        let Some(at) = entry.offset().to_debug_info_offset(&unit.header) else {
            return Ok(None);
        };
        let of = reference(&unit.header, entry);
        let shape = match entry.tag() {
            dw::DW_TAG_structure_type => Shape::Struct(Vec::new()),
            dw::DW_TAG_pointer_type => Shape::Pointer(of),
            dw::DW_TAG_typedef => of.map_or(Shape::Other, Shape::Alias),
            dw::DW_TAG_array_type => of.map_or(Shape::Other, |of| Shape::Array(of, 0)),
            dw::DW_TAG_base_type | dw::DW_TAG_subroutine_type | dw::DW_TAG_unspecified_type => {
                Shape::Other
            }
            dw::DW_TAG_variable => {
                if let (Some(name), Some(of)) = (text(entry), of)
                    && let Some(address) = address_of(dwarf, unit, entry)?
                {
                    self.variables.insert(address, (name, of));
                }
                return Ok(None);
            }
            dw::DW_TAG_subprogram => {
                let mut ranges = dwarf.die_ranges(unit, entry)?;
                while let Some(range) = ranges.next()?
                    && self.functions.len() < MAX_KEPT
                {
                    let header = DebugInfoOffset(unit.header.offset().0);
                    self.functions.push((range.begin, range.end, header, at));
                }
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let size = unsigned(entry, dw::DW_AT_byte_size);
        let name = text(entry).unwrap_or_default();
        self.types.insert(at, Type { name, size, shape });
        Ok(Some(at))
    }

    /// Takes in a field, or how long an array is.
    fn add(&mut self, unit: &Unit<Slice<'_>>, entry: &Die<'_>, open: Option<TypeId>) {
        let Some(of) = open.and_then(|id| self.types.get_mut(&id)) else {
            return;
        };
        match (&mut of.shape, entry.tag()) {
            (Shape::Struct(fields), dw::DW_TAG_member) => {
                if let (Some(offset), Some(of)) = (
                    unsigned(entry, dw::DW_AT_data_member_location),
                    reference(&unit.header, entry),
                ) {
                    fields.push((offset, text(entry).unwrap_or_default(), of));
                }
            }
            (Shape::Array(_, count), dw::DW_TAG_subrange_type) => {
                let upper = unsigned(entry, dw::DW_AT_upper_bound);
                let upper = upper.and_then(|upper: u64| upper.checked_add(1));
                *count = unsigned(entry, dw::DW_AT_count).or(upper).unwrap_or(0);
            }
            _ => {}
        }
    }

    /// The name of a type, as in `main.Row`.
    pub fn name(&self, of: TypeId) -> Option<&str> {
        let name = self.types.get(&of)?.name.as_str();
        (!name.is_empty()).then_some(name)
    }

    /// Bytes of a value of a type.
    pub fn size(&self, of: TypeId) -> Option<u64> {
        self.size_within(of, 0)
    }

    fn size_within(&self, of: TypeId, depth: usize) -> Option<u64> {
        let found = self.types.get(&of)?;
        match &found.shape {
            _ if found.size.is_some() => found.size,
            Shape::Pointer(_) => Some(8),
            Shape::Alias(of) if depth < MAX_DEPTH => self.size_within(*of, depth + 1),
            Shape::Array(of, count) if depth < MAX_DEPTH => {
                self.size_within(*of, depth + 1)?.checked_mul(*count)
            }
            _ => None,
        }
    }

    /// The type of a name, as its descriptor in the program has it.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        *self.by_name.get(name)?
    }

    /// The variable of the program at a link-time address: its type, and how far into it that is.
    pub fn variable(&self, address: u64) -> Option<(TypeId, u64)> {
        let (start, (_, of)) = self.variables.range(..=address).next_back()?;
        let offset = address - start;
        (offset < self.size(*of)?).then_some((*of, offset))
    }

    /// The variable that a function has so many bytes from its canonical frame address when it stands at `pc`, a
    /// link-time address: its name, its type, and how far into it that is.
    pub fn local(&self, pc: u64, from_cfa: i64) -> Option<(String, TypeId, u64)> {
        let after = self.functions.partition_point(|(low, ..)| *low <= pc);
        let (_, high, unit, at) = *self.functions.get(after.checked_sub(1)?)?;
        if pc >= high {
            return None;
        }
        self.search(unit, at, pc, from_cfa).ok().flatten()
    }

    fn search(
        &self,
        unit: DebugInfoOffset,
        at: DebugInfoOffset,
        pc: u64,
        from_cfa: i64,
    ) -> gimli::Result<Option<(String, TypeId, u64)>> {
        let dwarf = self.sections.dwarf();
        let unit = dwarf.unit(dwarf.debug_info.header_from_offset(unit)?)?;
        let Some(at) = at.to_unit_offset(&unit.header) else {
            return Ok(None);
        };
        let mut entries = unit.entries_at_offset(at)?;
        let mut top = None;
        for _ in 0..MAX_LOCALS {
            let Some(entry) = entries.next_dfs()? else {
                break;
            };
            let depth = entry.depth();
            if top.is_some_and(|top| depth <= top) {
                break;
            }
            top.get_or_insert(depth);
            if !matches!(
                entry.tag(),
                dw::DW_TAG_variable | dw::DW_TAG_formal_parameter
            ) {
                continue;
            }
            let (Some(name), Some(of)) = (text(entry), reference(&unit.header, entry)) else {
                continue;
            };
            let Some(location) = location_at(&dwarf, &unit, entry, pc)? else {
                continue;
            };
            let size = self.size(of).unwrap_or(8);
            if let Some(offset) = offset_in(location, unit.encoding(), size, from_cfa)? {
                return Ok(Some((name, of, offset)));
            }
        }
        Ok(None)
    }

    /// What the word at an offset of a value points to; `None`: it is no pointer, or one to anything.
    pub fn pointee(&self, of: TypeId, offset: u64) -> Option<Pointee> {
        let (mut of, mut offset) = (of, offset);
        let mut field = String::new();
        // What an atomic pointer points to.
        let mut atomic = None;
        for _ in 0..MAX_DEPTH {
            let found = self.types.get(&of)?;
            match &found.shape {
                Shape::Alias(to) => of = *to,
                Shape::Pointer(to) => {
                    let of = to.or(atomic)?;
                    return (offset == 0).then_some(Pointee { field, of });
                }
                Shape::Struct(fields) => {
                    let name = found.name.strip_prefix(ATOMIC);
                    let name = name.and_then(|name| name.strip_suffix(']'));
                    atomic = name
                        .and_then(|name| self.named(short_name(name)))
                        .or(atomic);
                    let is_in = |(from, _, of): &&(u64, String, TypeId)| {
                        let size = self.size(*of).unwrap_or(0);
                        (*from..from.saturating_add(size)).contains(&offset)
                    };
                    let (from, name, to) = fields.iter().find(is_in)?;
                    // The field of an atomic pointer says nothing more.
                    if atomic.is_none() {
                        field.push('.');
                        field.push_str(name);
                    }
                    (of, offset) = (*to, offset - from);
                }
                Shape::Array(to, _) => {
                    field.push_str("[]");
                    (of, offset) = (*to, offset.checked_rem(self.size(*to)?)?);
                }
                Shape::Other => return None,
            }
        }
        None
    }
}

/// Without the path of its package, as type descriptors have names; one with type arguments stays as it is.
fn short_name(name: &str) -> &str {
    match name.rfind('/') {
        Some(at) if !name.contains('[') => &name[at + 1..],
        _ => name,
    }
}

fn text(entry: &Die<'_>) -> Option<String> {
    name(entry).map(|name| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use crate::go::{
        GoBinary,
        testing::{self, Mode},
    };

    const PROGRAM: &str = r#"package main

import (
	"sync/atomic"
	"unsafe"
)

type row struct {
	id   int
	next *row
}

type table struct {
	name  string
	rows  []*row
	first atomic.Pointer[row]
	pair  [2]struct{ left, right *row }
	any   unsafe.Pointer
}

var global table

var wait = make(chan int)

//go:noinline
func hold(number int, kept *table) {
	<-wait
	kept.name = string(rune(number))
}

func main() {
	global.rows = append(global.rows, &row{})
	go hold(1, &table{})
	wait <- 1
}
"#;

    #[test]
    fn what_a_pointer_points_to_is_known() {
        for toolchain in testing::toolchains() {
            let path = testing::build(&toolchain, Mode::Plain, PROGRAM);
            let bytes = std::fs::read(path).unwrap();
            let binary = GoBinary::parse(bytes.into()).unwrap().unwrap();
            let types = binary.debug_types().unwrap();
            let global = binary.data_symbols().address("main.global").unwrap();
            let (table, offset) = types.variable(global + 16).unwrap();
            assert_eq!((types.name(table), offset), (Some("main.table"), 16));
            let named = types.named("main.table").unwrap();
            for of in [table, named] {
                assert_eq!(types.size(of), Some(16 + 24 + 8 + 32 + 8));
            }
            let points = |offset| {
                let pointee = types.pointee(table, offset)?;
                Some((pointee.field, types.name(pointee.of).unwrap().to_owned()))
            };
            let to = |field: &str, of: &str| Some((field.to_owned(), of.to_owned()));
            assert_eq!(points(0), to(".name.str", "uint8"));
            assert_eq!(points(8), None);
            assert_eq!(points(16), to(".rows.array", "*main.row"));
            assert_eq!(points(40), to(".first", "main.row"));
            assert_eq!(points(48 + 24), to(".pair[].right", "main.row"));
            assert_eq!(points(80), None);
            // Its second argument is written to the place that the caller has for it.
            let hold = binary.function("main.hold").unwrap();
            let found = (hold.entry..hold.end).find_map(|pc| types.local(pc, 8));
            let (name, of, offset) = found.unwrap();
            assert_eq!((name.as_str(), offset), ("kept", 0));
            assert_eq!(
                types.name(types.pointee(of, 0).unwrap().of),
                Some("main.table")
            );
            assert_eq!(types.local(hold.entry, 1 << 20), None);
        }
    }
}
