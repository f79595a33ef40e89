//! Addresses to frames, or to a named reason why not.
//!
//! A miss is a value, never an error and never silence: a [`Frame`] without a function says why in
//! `reason`. Go code is named by its own tables ([`crate::go`]), so that stripped programs are
//! named too; all other code by blazesym from DWARF and ELF symbols.
//!
//! Files are reached through the function given to [`Symbolizer::new`]; each module is opened once
//! per batch and dropped again. A file whose build id differs from the module's is refused.

mod contained;
mod file;
mod debug_dir;
mod debuginfod;
pub(crate) mod demangle;
mod native;
mod module;
mod table;
mod unpacked;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::capture::{Capture, schema};
pub use crate::go::PcKind;
pub use debuginfod::Debuginfod;
pub use table::{SymbolTable, SymbolsBuilder, SymbolsError};

/// A file, or other origin, of executable memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// As `/proc/PID/maps` has it, e.g. `/usr/bin/app` or `[vdso]`.
    pub path: String,
    /// GNU build id in hex, or Go build id.
    pub build_id: Option<String>,
}

impl From<&schema::Module> for Module {
    fn from(module: &schema::Module) -> Self {
        Self {
            path: module.path.clone(),
            build_id: Some(module.build_id.clone()).filter(|id| !id.is_empty()),
        }
    }
}

/// A piece of executable memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the module's file of what is at `start`.
    pub file_offset: u64,
    /// Index of the module.
    pub module: usize,
}

/// A frame of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Frame {
    /// Demangled name.
    pub function: Option<String>,
    /// Source file as the compiler recorded it.
    pub file: Option<String>,
    /// Line in `file`, from 1.
    pub line: Option<u32>,
    /// Path of the module, empty when the address is in no mapping.
    pub module: String,
    /// Build id of the module.
    pub build_id: Option<String>,
    /// Offset of the address in the module's file; the address itself when it is in no mapping.
    pub offset: u64,
    /// Whether the call was inlined into the next frame.
    pub inlined: bool,
    /// Why there is no function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Bytes of the frames of one batch, at most: a file can have names of any length, and as many as it likes
/// inlined into each other at one address. A hundred thousand usual frames take a tenth of it.
const MAX_NAMES: usize = 256 << 20;

/// Bytes that a frame takes.
fn bytes_of(frame: &Frame) -> usize {
    let texts = [&frame.function, &frame.file, &frame.build_id, &frame.reason];
    let texts = texts.into_iter().flatten().map(String::len);
    size_of::<Frame>() + frame.module.len() + texts.sum::<usize>()
}

/// Gives a path under which a module's file can be opened now, e.g. in `/proc/PID/map_files`.
type Open<'a> = dyn Fn(&Module) -> Option<PathBuf> + 'a;

/// Turns addresses of one process into frames.
pub struct Symbolizer<'a> {
    modules: Vec<Module>,
    mappings: Vec<Mapping>,
    open: Box<Open<'a>>,
    debug_dirs: Vec<PathBuf>,
    debuginfod: Option<Debuginfod>,
    follows_links: bool,
}

impl<'a> Symbolizer<'a> {
    /// A symbolizer for the memory described by `mappings`; where two overlap the later counts.
    /// `open` tells under which path a module's file can be opened; `None`: not at all.
    pub fn new(
        modules: Vec<Module>,
        mappings: Vec<Mapping>,
        open: impl Fn(&Module) -> Option<PathBuf> + 'a,
    ) -> Self {
        let open = Box::new(open);
        Symbolizer {
            modules,
            mappings,
            open,
            debug_dirs: Vec::new(),
            debuginfod: None,
            follows_links: false,
        }
    }

    /// The same from the modules and mappings of a capture.
    pub fn from_capture<'c>(
        modules: impl IntoIterator<Item = &'c schema::Module>,
        mappings: impl IntoIterator<Item = &'c schema::Mapping>,
        open: impl Fn(&Module) -> Option<PathBuf> + 'a,
    ) -> Self {
        let mut index = BTreeMap::new();
        let mut named = Vec::new();
        for module in modules {
            index.insert(module.id, named.len());
            named.push(Module::from(module));
        }
        let mappings = mappings.into_iter().filter_map(|mapping| {
            let module = *index.get(&mapping.module)?;
            let schema::Mapping {
                start,
                end,
                file_offset,
                ..
            } = *mapping;
            Some(Mapping {
                start,
                end,
                file_offset,
                module,
            })
        });
        let mappings = mappings.collect();
        Symbolizer::new(named, mappings, open)
    }

    /// Directories with files of debug information, searched before the modules themselves:
    /// `DIR/.build-id/ab/cdef.debug`, then by the module's path and name.
    pub fn with_debug_dirs(mut self, directories: impl IntoIterator<Item = PathBuf>) -> Self {
        self.debug_dirs.extend(directories);
        self
    }

    /// Servers to ask for debug information that is not on this machine.
    pub fn with_debuginfod(mut self, debuginfod: Option<Debuginfod>) -> Self {
        self.debuginfod = debuginfod;
        self
    }

    /// Has the files of debug information that modules name themselves looked for, beside them, too: where the modules
    /// are this machine's, and not files of a process, which may name what it likes.
    pub fn following_links(mut self) -> Self {
        self.follows_links = true;
        self
    }

    /// The frames at one address, innermost first; never empty.
    pub fn frames(&self, address: u64, kind: PcKind) -> Vec<Frame> {
        self.symbolize(&[(address, kind)]).pop().unwrap_or_default()
    }

    /// The frames at each address, innermost first; never empty. One batch opens each module once.
    pub fn symbolize(&self, addresses: &[(u64, PcKind)]) -> Vec<Vec<Frame>> {
        let mut frames = vec![Vec::new(); addresses.len()];
        let mut by_module: BTreeMap<usize, Vec<(usize, module::Place)>> = BTreeMap::new();
        for (index, (address, kind)) in addresses.iter().enumerate() {
            match self.place(*address, *kind) {
                Some((module, place)) => by_module.entry(module).or_default().push((index, place)),
                None => {
                    frames[index].push(Frame {
                        offset: *address,
                        reason: Some("no mapping of executable memory at this address".to_owned()),
                        ..Frame::default()
                    });
                }
            }
        }
        let mut room = MAX_NAMES;
        for (index, places) in by_module {
            let Some(module) = self.modules.get(index) else {
                continue;
            };
            let symbols = module::ModuleSymbols::open(
                module,
                &*self.open,
                &self.debug_dirs,
                self.debuginfod.as_ref(),
                self.follows_links,
            );
            for (index, place) in places {
                let named = symbols.frames(module, &place);
                let taken = named.iter().map(bytes_of).sum();
                match room.checked_sub(taken) {
                    Some(left) => {
                        (room, frames[index]) = (left, named);
                    }
                    None => frames[index].push(Frame {
                        module: module.path.clone(),
                        build_id: module.build_id.clone(),
                        offset: place.offset,
                        reason: Some(format!(
                            "the names of all addresses take more than {} MiB",
                            MAX_NAMES >> 20
                        )),
                        ..Frame::default()
                    }),
                }
            }
        }
        frames
    }

    /// Symbols of the addresses as a capture keeps them.
    pub fn symbols(&self, addresses: &[(u64, PcKind)]) -> schema::Symbols {
        let mut addresses = addresses.to_vec();
        addresses.sort_unstable_by_key(|(address, kind)| (*address, table::flags(*kind)));
        addresses.dedup();
        let mut symbols = SymbolsBuilder::default();
        symbols.add(&addresses, self.symbolize(&addresses));
        symbols.into_symbols()
    }

    fn place(&self, address: u64, kind: PcKind) -> Option<(usize, module::Place)> {
        // A call may be the last instruction of a mapping: then its return address is outside.
        let instruction = match kind {
            PcKind::Instruction => address,
            PcKind::Return | PcKind::Logical => address.checked_sub(1)?,
        };
        let mapping = self.mappings.iter().rfind(|mapping| {
            mapping.start <= instruction
                && instruction < mapping.end
                && mapping.module < self.modules.len()
        })?;
        let place = module::Place {
            offset: mapping.file_offset.checked_add(address - mapping.start)?,
            mapping_offset: mapping.file_offset,
            kind,
        };
        Some((mapping.module, place))
    }
}

/// The code addresses of a site, and what each stands for.
pub fn addresses_of(site: &schema::Site) -> impl Iterator<Item = (u64, PcKind)> + '_ {
    site.pcs.iter().enumerate().map(|(depth, pc)| {
        let kind = match depth {
            _ if site.logical => PcKind::Logical,
            0 => PcKind::Instruction,
            _ => PcKind::Return,
        };
        (*pc, kind)
    })
}

/// The code addresses that an interval names for the first time, and what each stands for.
pub fn addresses_in(interval: &schema::Interval) -> impl Iterator<Item = (u64, PcKind)> + '_ {
    let groups = interval.goroutine_groups.iter();
    let of_groups = groups
        .flat_map(|group| group.pcs.iter().copied().chain([group.created_by]))
        .filter(|pc| *pc != 0)
        .map(|pc| (pc, PcKind::Return));
    let sites = interval.sites.iter().flat_map(addresses_of);
    sites.chain(of_groups)
}

/// Symbols of a capture made anew from the files of this machine, where their build ids are those
/// of the capture, and from directories of debug information.
pub fn offline(
    capture: &Capture,
    debug_dirs: impl IntoIterator<Item = PathBuf>,
) -> schema::Symbols {
    let intervals = &capture.intervals;
    let addresses: HashSet<_> = intervals.iter().flat_map(addresses_in).collect();
    let addresses: Vec<_> = addresses.into_iter().collect();
    Symbolizer::from_capture(
        intervals.iter().flat_map(|interval| &interval.modules),
        intervals.iter().flat_map(|interval| &interval.mappings),
        |module| Some(PathBuf::from(&module.path)),
    )
    .with_debug_dirs(debug_dirs)
    .with_debuginfod(Debuginfod::from_env())
    .following_links()
    .symbols(&addresses)
}

#[cfg(test)]
mod tests;
