//! Symbols as a capture keeps them: strings and frames once each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Frame, PcKind};
use crate::capture::schema;

/// A string table entry longer than this is cut when written and refused when read, bytes.
const MAX_STRING: usize = 16 << 10;
/// More logical frames at one address are not read.
const MAX_FRAMES: usize = 1 << 10;

/// Why the symbols of a capture cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SymbolsError {
    /// A frame names a string that is not there.
    #[error("symbols are damaged: frame {0} refers to a string that does not exist")]
    String(usize),
    /// An address names a frame that is not there, or none, or too many.
    #[error("symbols are damaged: the frames of address {0:#x} do not exist")]
    Frame(u64),
    /// No compiler makes such names.
    #[error("symbols are damaged: string {0} is {1} bytes long")]
    TooLong(usize, usize),
}

/// (logical, exact) of the schema.
pub(super) fn flags(kind: PcKind) -> (bool, bool) {
    (kind == PcKind::Logical, kind == PcKind::Instruction)
}

/// Symbols in the making: what is named is added, and kept once.
#[derive(Debug)]
pub struct SymbolsBuilder {
    symbols: schema::Symbols,
    strings: HashMap<String, u32>,
    frames: HashMap<Frame, u32>,
}

impl Default for SymbolsBuilder {
    fn default() -> Self {
        let mut symbols = schema::Symbols::default();
        symbols.strings.push(String::new());
        Self {
            symbols,
            strings: HashMap::new(),
            frames: HashMap::new(),
        }
    }
}

impl SymbolsBuilder {
    /// Adds addresses and the frames at each. The caller takes care that each is added once.
    pub fn add(&mut self, addresses: &[(u64, PcKind)], frames: Vec<Vec<Frame>>) {
        for ((address, kind), frames) in addresses.iter().zip(frames) {
            let (logical, exact) = flags(*kind);
            let frames = frames.into_iter().map(|frame| self.frame(frame)).collect();
            self.symbols.addresses.push(schema::Address {
                address: *address,
                logical,
                exact,
                frames,
            });
        }
    }

    /// As a capture keeps them.
    pub fn symbols(&self) -> &schema::Symbols {
        &self.symbols
    }

    pub(super) fn into_symbols(self) -> schema::Symbols {
        self.symbols
    }

    fn string(&mut self, text: Option<&str>) -> u32 {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return 0;
        };
        let text = &text[..text.floor_char_boundary(MAX_STRING)];
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.symbols.strings.len() as u32;
        self.symbols.strings.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn frame(&mut self, frame: Frame) -> u32 {
        if let Some(index) = self.frames.get(&frame) {
            return *index;
        }
        let written = schema::Frame {
            function: self.string(frame.function.as_deref()),
            file: self.string(frame.file.as_deref()),
            line: frame.line.unwrap_or_default(),
            module: self.string(Some(&frame.module)),
            build_id: self.string(frame.build_id.as_deref()),
            offset: frame.offset,
            inlined: frame.inlined,
            reason: self.string(frame.reason.as_deref()),
        };
        let index = self.symbols.frames.len() as u32;
        self.symbols.frames.push(written);
        self.frames.insert(frame, index);
        index
    }
}

/// The symbols of a capture, to look up in.
#[derive(Debug, Default)]
pub struct SymbolTable {
    symbols: schema::Symbols,
    by_address: HashMap<(u64, bool, bool), usize>,
}

impl SymbolTable {
    /// Checks every index, so that [`SymbolTable::lookup`] cannot fail on a damaged capture.
    pub fn from_schema(symbols: schema::Symbols) -> Result<Self, SymbolsError> {
        for (index, string) in symbols.strings.iter().enumerate() {
            if string.len() > MAX_STRING {
                return Err(SymbolsError::TooLong(index, string.len()));
            }
        }
        // Index 0 is "absent" and need not exist.
        let exists = |index: &u32| *index == 0 || (*index as usize) < symbols.strings.len();
        for (index, frame) in symbols.frames.iter().enumerate() {
            let strings = [
                frame.function,
                frame.file,
                frame.module,
                frame.build_id,
                frame.reason,
            ];
            if !strings.iter().all(exists) {
                return Err(SymbolsError::String(index));
            }
        }
        let mut by_address = HashMap::new();
        for (index, address) in symbols.addresses.iter().enumerate() {
            let frames = &address.frames;
            let known = frames
                .iter()
                .all(|frame| (*frame as usize) < symbols.frames.len());
            if !known || frames.is_empty() || frames.len() > MAX_FRAMES {
                return Err(SymbolsError::Frame(address.address));
            }
            match by_address.entry((address.address, address.logical, address.exact)) {
                Entry::Vacant(entry) => drop(entry.insert(index)),
                Entry::Occupied(_) => {}
            }
        }
        Ok(SymbolTable {
            symbols,
            by_address,
        })
    }

    /// The frames at an address, innermost first. `None`: the capture has no symbols for it.
    pub fn lookup(&self, address: u64, logical: bool, exact: bool) -> Option<Vec<Frame>> {
        let index = *self.by_address.get(&(address, logical, exact))?;
        let frames = self.symbols.addresses.get(index)?.frames.iter();
        frames
            .map(|frame| self.symbols.frames.get(*frame as usize))
            .map(|frame| {
                let frame = frame?;
                Some(Frame {
                    function: self.string(frame.function),
                    file: self.string(frame.file),
                    line: Some(frame.line).filter(|line| *line != 0),
                    module: self.string(frame.module).unwrap_or_default(),
                    build_id: self.string(frame.build_id),
                    offset: frame.offset,
                    inlined: frame.inlined,
                    reason: self.string(frame.reason),
                })
            })
            .collect()
    }

    fn string(&self, index: u32) -> Option<String> {
        let index = usize::try_from(index).ok().filter(|index| *index != 0)?;
        self.symbols.strings.get(index).cloned()
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether the capture has no symbols.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}
