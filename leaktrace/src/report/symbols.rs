//! From code addresses to frames, by the capture's own symbols.

use std::collections::{BTreeMap, HashMap};

use super::schema::Frame;
use crate::capture::Capture;
use crate::capture::schema::{self, Site};

/// Frames shown of one stack; a hostile file may claim any number.
const MAX_STACK: usize = 1024;
/// Characters kept of a name.
const MAX_NAME: usize = 4096;

/// Looks up frames. Without symbols (a capture that was not closed) frames have their module and
/// offset, from the mappings, and the reason.
#[derive(Debug)]
pub struct SymbolTable<'a> {
    symbols: Option<&'a schema::Symbols>,
    addresses: HashMap<(u64, bool, bool), &'a [u32]>,
    mappings: BTreeMap<u64, &'a schema::Mapping>,
    modules: HashMap<u32, &'a schema::Module>,
}

/// A frame by reference: what two frames have in common that a reader would call the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FrameKey {
    /// Indexes of function and file, and the line.
    Named(u32, u32, u32),
    /// A code address without a name.
    Address(u64),
}

/// A frame's address and, when it has symbols, its index in them.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameRef {
    address: u64,
    frame: Option<u32>,
}

impl<'a> SymbolTable<'a> {
    /// `symbols` are normally the capture's own.
    pub fn new(capture: &'a Capture, symbols: Option<&'a schema::Symbols>) -> Self {
        let addresses = symbols.map_or(&[][..], |symbols| &symbols.addresses);
        let intervals = &capture.intervals;
        Self {
            symbols,
            addresses: addresses
                .iter()
                .map(|a| ((a.address, a.logical, a.exact), a.frames.as_slice()))
                .collect(),
            mappings: intervals
                .iter()
                .flat_map(|i| &i.mappings)
                .map(|m| (m.start, m))
                .collect(),
            modules: intervals
                .iter()
                .flat_map(|i| &i.modules)
                .map(|m| (m.id, m))
                .collect(),
        }
    }

    /// The frames of a site, innermost first; inlined calls are frames of their own.
    pub(super) fn stack(&self, site: &Site) -> Vec<FrameRef> {
        let frames_at = |(index, &address): (usize, &u64)| {
            self.frames_at(address, site.logical, index == 0 && !site.logical)
        };
        site.pcs
            .iter()
            .enumerate()
            .flat_map(frames_at)
            .take(MAX_STACK)
            .collect()
    }

    /// The frames at return addresses, innermost first.
    pub(super) fn at_returns(&self, pcs: &[u64]) -> Vec<FrameRef> {
        let frames = pcs.iter().flat_map(|&pc| self.frames_at(pc, false, false));
        frames.take(MAX_STACK).collect()
    }

    fn frames_at(
        &self,
        address: u64,
        logical: bool,
        exact: bool,
    ) -> impl Iterator<Item = FrameRef> + use<'a> {
        let frames = self.addresses.get(&(address, logical, exact)).copied();
        let frames = frames.filter(|frames| !frames.is_empty());
        let named = frames.unwrap_or_default().iter();
        named
            .map(move |&frame| FrameRef {
                address,
                frame: Some(frame),
            })
            .chain(frames.is_none().then_some(FrameRef {
                address,
                frame: None,
            }))
    }

    pub(super) fn key(&self, frame: FrameRef) -> FrameKey {
        match self.record(frame) {
            Some(record) if record.function != 0 => {
                FrameKey::Named(record.function, record.file, record.line)
            }
            _ => FrameKey::Address(frame.address),
        }
    }

    /// The function's name; none when there is no symbol.
    pub(super) fn function(&self, frame: FrameRef) -> Option<&'a str> {
        self.string(self.record(frame)?.function)
    }

    /// The frame as the report has it.
    pub(super) fn frame(&self, frame: FrameRef) -> Frame {
        let address = frame.address;
        let Some(record) = self.record(frame) else {
            return self.unnamed(address);
        };
        let text = |index| {
            self.string(index)
                .map(|text| text.chars().take(MAX_NAME).collect())
        };
        Frame {
            function: text(record.function),
            file: text(record.file),
            line: Some(record.line).filter(|&line| line != 0),
            module: text(record.module),
            build_id: text(record.build_id),
            offset: Some(record.offset).filter(|_| record.module != 0),
            address,
            inlined: record.inlined,
            reason: text(record.reason),
        }
    }

    fn unnamed(&self, address: u64) -> Frame {
        let reason = if self.symbols.is_some() {
            "the capture has no symbol for this address"
        } else {
            "the capture has no symbols: it was not closed"
        };
        let mapping = self
            .mappings
            .range(..=address)
            .next_back()
            .map(|(_, &mapping)| mapping);
        let mapping = mapping.filter(|mapping| address < mapping.end);
        let module = mapping.and_then(|mapping| self.modules.get(&mapping.module));
        let known = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Frame {
            module: module.and_then(|module| known(&module.path)),
            build_id: module.and_then(|module| known(&module.build_id)),
            offset: mapping.map(|m| (address - m.start).saturating_add(m.file_offset)),
            address,
            reason: Some(reason.into()),
            ..Frame::default()
        }
    }

    fn record(&self, frame: FrameRef) -> Option<&'a schema::Frame> {
        self.symbols?
            .frames
            .get(usize::try_from(frame.frame?).ok()?)
    }

    /// Index 0 stands for nothing.
    fn string(&self, index: u32) -> Option<&'a str> {
        let text = self.symbols?.strings.get(usize::try_from(index).ok()?)?;
        (index != 0).then_some(text.as_str())
    }
}
