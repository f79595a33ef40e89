//! A runtime's types from the debug information of a Go program.
//!
//! Go's linker puts every type into a compile unit named `runtime`, with the constants and the
//! functions of that package (cmd/link/internal/ld/dwarf.go; Go 1.19 to 1.27, DWARF 4 and 5), so
//! only the units of that name are read; of all others the first entry. Names are inline
//! (`DW_FORM_string`): no string section is needed.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo, DebugInfoOffset,
    DebuggingInformationEntry, DwAt, DwTag, EndianSlice, EntriesCursor, LittleEndian, UnitHeader,
    constants as dw,
};

use super::runtime_types::{
    Argument, CONSTANTS, FLOAT_REGISTERS, FUNCTIONS, Field, INTEGER_REGISTERS, RuntimeTypes,
    STRUCTS, Struct,
};

pub(super) type Slice<'a> = EndianSlice<'a, LittleEndian>;
pub(super) type Die<'a> = DebuggingInformationEntry<Slice<'a>>;

/// The unit that is read.
const PACKAGE: &[u8] = b"runtime";
/// Types deeper than this within each other, and structs with more words, are not followed.
const MAX_DEPTH: usize = 16;
const MAX_WORDS: usize = 64;
/// Units whose first entries are looked at, and entries that are read in all, at most.
const MAX_UNITS: usize = 1 << 16;
const MAX_ENTRIES: usize = 1 << 22;

/// Reads the runtime's types from `.debug_info` and `.debug_abbrev`, uncompressed. What is not
/// there is left out; the error says what is wrong with the sections.
pub(crate) fn read(info: &[u8], abbreviations: &[u8]) -> Result<RuntimeTypes, String> {
    Reader::new(info, abbreviations)
        .and_then(|mut reader| reader.read())
        .map_err(|error| format!("failed to read the debug information: {error}"))
}

struct Reader<'a> {
    abbreviations: DebugAbbrev<Slice<'a>>,
    parsed: HashMap<DebugAbbrevOffset, Abbreviations>,
    /// In the order of their offsets.
    units: Vec<UnitHeader<Slice<'a>>>,
    entries: usize,
}

/// A struct or function under construction.
enum Open {
    Struct(String, u32, Vec<(String, u32, DebugInfoOffset)>),
    Function(String, Vec<(String, DebugInfoOffset)>),
}

impl<'a> Reader<'a> {
    fn new(info: &'a [u8], abbreviations: &'a [u8]) -> gimli::Result<Self> {
        let info = DebugInfo::new(info, LittleEndian);
        let mut units = Vec::new();
        let mut headers = info.units();
        while let Some(unit) = headers.next()? {
            if units.len() == MAX_UNITS {
                break;
            }
            units.push(unit);
        }
        Ok(Self {
            abbreviations: DebugAbbrev::new(abbreviations, LittleEndian),
            parsed: HashMap::new(),
            units,
            entries: 0,
        })
    }

    fn read(&mut self) -> gimli::Result<RuntimeTypes> {
        let mut open = Vec::new();
        let mut types = RuntimeTypes::default();
        for unit in self.units.clone() {
            self.read_unit(&unit, &mut open, &mut types.constants)?;
        }
        // Members and arguments refer to types of later units.
        for open in open {
            match open {
                Open::Struct(name, size, members) => {
                    let mut fields = BTreeMap::new();
                    for (field, offset, of) in members {
                        let size = self.size(of, 0)?;
                        fields.insert(field, Field { offset, size });
                    }
                    types.structs.entry(name).or_insert(Struct { size, fields });
                }
                Open::Function(name, arguments) => {
                    let arguments = self.assign(arguments)?;
                    types.functions.entry(name).or_insert(arguments);
                }
            }
        }
        Ok(types)
    }

    fn read_unit(
        &mut self,
        unit: &UnitHeader<Slice<'a>>,
        open: &mut Vec<Open>,
        constants: &mut BTreeMap<String, i64>,
    ) -> gimli::Result<()> {
        let before = self.entries;
        let abbreviations = self.abbreviations_of(unit)?;
        let mut entries: EntriesCursor<'_, Slice<'a>> = unit.entries(abbreviations);
        let named = entries.next_dfs()?.and_then(name);
        if named != Some(PACKAGE) {
            return Ok(());
        }
        let mut count = 0;
        // Whether the children of the entry before belong to the last of `open`.
        let mut is_open = false;
        while let Some(entry) = entries.next_dfs()? {
            count += 1;
            if before + count > MAX_ENTRIES {
                break;
            }
            match entry.depth() {
                1 => is_open = begin(entry, open, constants),
                2 if is_open => {
                    if let Some(open) = open.last_mut() {
                        add(unit, entry, open);
                    }
                }
                _ => {}
            }
        }
        self.entries = before + count;
        Ok(())
    }

    fn abbreviations_of(&mut self, unit: &UnitHeader<Slice<'a>>) -> gimli::Result<&Abbreviations> {
        Ok(match self.parsed.entry(unit.debug_abbrev_offset()) {
            Entry::Occupied(parsed) => parsed.into_mut(),
            Entry::Vacant(place) => place.insert(unit.abbreviations(&self.abbreviations)?),
        })
    }

    /// Calls `with` for the entry at `offset` and, if it wants them, for its children.
    fn visit(
        &mut self,
        offset: DebugInfoOffset,
        mut with: impl FnMut(&UnitHeader<Slice<'a>>, &Die<'a>) -> bool,
    ) -> gimli::Result<()> {
        let missing = gimli::Error::OffsetOutOfBounds(offset.0 as u64);
        let after = self
            .units
            .partition_point(|unit| unit.offset().0 <= offset.0);
        let index = after.checked_sub(1).ok_or(missing)?;
        let unit = *self.units.get(index).ok_or(missing)?;
        let at = offset.to_unit_offset(&unit).ok_or(missing)?;
        let mut left = MAX_ENTRIES.saturating_sub(self.entries);
        let before = left;
        let abbreviations = self.abbreviations_of(&unit)?;
        let mut entries = unit.entries_at_offset(abbreviations, at)?;
        let mut top = None;
        while let Some(entry) = entries.next_dfs()? {
            left = left.checked_sub(1).ok_or(missing)?;
            let depth = entry.depth();
            let is_wanted = match top {
                None => {
                    top = Some(depth);
                    true
                }
                Some(top) if depth <= top => break,
                Some(top) => depth == top + 1,
            };
            if is_wanted && !with(&unit, entry) {
                break;
            }
        }
        self.entries += before - left;
        Ok(())
    }

    /// The bytes that a value of a type takes.
    fn size(&mut self, of: DebugInfoOffset, depth: usize) -> gimli::Result<u32> {
        let mut size = None;
        let mut next = None;
        let mut tag = dw::DW_TAG_null;
        self.visit(of, |unit, entry| {
            tag = entry.tag();
            size = unsigned(entry, dw::DW_AT_byte_size);
            next = reference(unit, entry);
            false
        })?;
        Ok(match (tag, size, next) {
            (dw::DW_TAG_typedef, _, Some(next)) if depth < MAX_DEPTH => {
                self.size(next, depth + 1)?
            }
            (dw::DW_TAG_pointer_type | dw::DW_TAG_subroutine_type, None, _) => 8,
            (_, size, _) => size.unwrap_or(0),
        })
    }

    /// The registers of arguments of these types, by the algorithm of cmd/compile/abi-internal.md.
    fn assign(
        &mut self,
        arguments: Vec<(String, DebugInfoOffset)>,
    ) -> gimli::Result<Vec<Argument>> {
        let (mut integers, mut floats) = (0, 0);
        let mut assigned = Vec::new();
        for (name, of) in arguments {
            let mut words = Vec::new();
            let fits = self.words(of, 0, &mut words)?;
            let (mut next_integer, mut next_float) = (integers, floats);
            let registers: Option<Vec<_>> = words
                .iter()
                .map(|word| {
                    let (registers, next) = match word {
                        Word::Integer => (&INTEGER_REGISTERS[..], &mut next_integer),
                        Word::Float => (&FLOAT_REGISTERS[..], &mut next_float),
                    };
                    *next += 1;
                    registers.get(*next - 1).copied()
                })
                .collect();
            let registers = registers.filter(|_| fits);
            if registers.is_some() {
                (integers, floats) = (next_integer, next_float);
            }
            assigned.push(Argument {
                name,
                registers: registers.unwrap_or_default(),
            });
        }
        Ok(assigned)
    }

    /// The words of a type; `false` when it goes to the stack, as an array of several elements does.
    fn words(
        &mut self,
        of: DebugInfoOffset,
        depth: usize,
        words: &mut Vec<Word>,
    ) -> gimli::Result<bool> {
        if depth == MAX_DEPTH || words.len() > MAX_WORDS {
            return Ok(false);
        }
        let mut tag = dw::DW_TAG_null;
        let mut is_float = false;
        let mut size: Option<u32> = None;
        let mut parts = Vec::new();
        self.visit(of, |unit, entry| {
            if tag == dw::DW_TAG_null {
                tag = entry.tag();
                size = unsigned(entry, dw::DW_AT_byte_size);
                is_float = entry.attr_value(dw::DW_AT_encoding)
                    == Some(AttributeValue::Encoding(dw::DW_ATE_float));
                if tag != dw::DW_TAG_structure_type {
                    parts.extend(reference(unit, entry));
                }
                return tag == dw::DW_TAG_structure_type;
            }
            if entry.tag() == dw::DW_TAG_member {
                parts.extend(reference(unit, entry));
            }
            true
        })?;
        match tag {
            dw::DW_TAG_pointer_type | dw::DW_TAG_subroutine_type => words.push(Word::Integer),
            dw::DW_TAG_base_type if size.is_some_and(|size| size <= 8) => {
                words.push(if is_float { Word::Float } else { Word::Integer })
            }
            dw::DW_TAG_typedef | dw::DW_TAG_structure_type => {
                for part in parts {
                    if !self.words(part, depth + 1, words)? {
                        return Ok(false);
                    }
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// A part of an argument.
enum Word {
    Integer,
    Float,
}

/// Takes up an entry of the first level; says whether its children are wanted.
fn begin(entry: &Die<'_>, open: &mut Vec<Open>, constants: &mut BTreeMap<String, i64>) -> bool {
    let wanted = |tag: DwTag| match tag {
        dw::DW_TAG_structure_type => STRUCTS,
        dw::DW_TAG_subprogram => FUNCTIONS,
        dw::DW_TAG_constant => CONSTANTS,
        _ => &[],
    };
    let names = wanted(entry.tag());
    let found = name(entry).and_then(|name| names.iter().find(|wanted| wanted.as_bytes() == name));
    let Some(name) = found.map(|name| (*name).to_owned()) else {
        return false;
    };
    match entry.tag() {
        dw::DW_TAG_structure_type => {
            let size = unsigned(entry, dw::DW_AT_byte_size).unwrap_or(0);
            open.push(Open::Struct(name, size, Vec::new()));
            true
        }
        dw::DW_TAG_subprogram => {
            open.push(Open::Function(name, Vec::new()));
            true
        }
        _ => {
            let value = entry.attr_value(dw::DW_AT_const_value);
            if let Some(value) = value.and_then(|value| value.sdata_value()) {
                constants.insert(name, value);
            }
            false
        }
    }
}

/// Adds a member or an argument.
fn add(unit: &UnitHeader<Slice<'_>>, entry: &Die<'_>, open: &mut Open) {
    let Some(of) = reference(unit, entry) else {
        return;
    };
    let name = name(entry).map(|name| String::from_utf8_lossy(name).into_owned());
    match open {
        Open::Struct(_, _, members) if entry.tag() == dw::DW_TAG_member => {
            let offset = unsigned(entry, dw::DW_AT_data_member_location);
            if let (Some(name), Some(offset)) = (name.filter(|name| name != "_"), offset) {
                members.push((name, offset, of));
            }
        }
        Open::Function(_, arguments) if entry.tag() == dw::DW_TAG_formal_parameter => {
            // Results are parameters too.
            let is_result = entry.attr_value(dw::DW_AT_variable_parameter);
            if is_result != Some(AttributeValue::Flag(true)) {
                arguments.push((name.unwrap_or_else(|| "_".to_owned()), of));
            }
        }
        _ => {}
    }
}

pub(super) fn name<'a>(entry: &Die<'a>) -> Option<&'a [u8]> {
    match entry.attr_value(dw::DW_AT_name)? {
        AttributeValue::String(name) => Some(name.slice()),
        _ => None,
    }
}

pub(super) fn unsigned<T: TryFrom<u64>>(entry: &Die<'_>, attribute: DwAt) -> Option<T> {
    T::try_from(entry.attr_value(attribute)?.udata_value()?).ok()
}

/// The type of an entry.
pub(super) fn reference(unit: &UnitHeader<Slice<'_>>, entry: &Die<'_>) -> Option<DebugInfoOffset> {
    match entry.attr_value(dw::DW_AT_type)? {
        AttributeValue::DebugInfoRef(offset) => Some(offset),
        AttributeValue::UnitRef(offset) => offset.to_debug_info_offset(unit),
        _ => None,
    }
}
