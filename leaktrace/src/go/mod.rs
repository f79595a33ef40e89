//! What leaktrace knows of Go binaries and the Go runtime: pure, bytes in and tables out.
//!
//! [`GoBinary`] answers from the file alone, stripped or not: the version, where functions and a
//! few variables of the runtime are, and which function, file, line and inlined calls a code
//! address belongs to. [`layout`] holds what differs between releases in the memory of a running
//! program.
//!
//! All addresses are link-time addresses: those in the ELF headers. Every answer may be absent;
//! a lying file costs bounded time and gives no answer, never a panic. Nothing is copied: the file
//! may be a mapping of a hundred megabytes. Facts borrowed from Go are listed in
//! docs/go-runtime.md.

#![forbid(unsafe_code)]

pub(crate) mod elf;
pub(crate) mod version;
mod pclntab;
mod moduledata;
mod variable;
mod sampler_flag;
mod memstats;
mod data;
mod stack_map;
mod runtime_types;
mod table;
mod debug_types;
pub(crate) mod dwarf;
mod locations;
pub mod layout;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;

pub use data::{DataSymbols, Place};
pub use debug_types::{DebugTypes, Pointee, TypeId};
pub use memstats::{GoMemory, MemStatsLayout};
pub use stack_map::{FrameMap, Slots};
pub use variable::{GoVariable, Located};
pub use version::GoVersion;

use elf::Elf;
use layout::{Layout, UnknownLayout};
use moduledata::ModuleData;
use pclntab::Pclntab;
use runtime_types::RuntimeTypes;

/// Debug information larger than this is not read, in bytes, uncompressed.
const MAX_DEBUG_INFO: u64 = 1 << 28;

/// Why a file cannot be read as a Go binary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoError {
    /// Not an ELF file, or a damaged one.
    #[error("failed to read the ELF file: {0}")]
    Elf(&'static str),
    /// `e_machine` of another architecture.
    #[error("machine {0} is not supported, only x86-64 (62) is")]
    Machine(u16),
    /// Build info without a version.
    #[error("failed to read the Go version from build info")]
    Version,
    /// No pclntab of Go ≥ 1.18.
    #[error("failed to find pclntab of `{0}`")]
    NoPclntab(String),
    /// Neither moduledata nor pclntab's header tells where the text begins.
    #[error("failed to find moduledata of `{0}`")]
    NoModuleData(String),
}

/// What a pc stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PcKind {
    /// The instruction at the pc.
    Instruction,
    /// A return address: the call before it is meant.
    Return,
    /// One logical frame, as `runtime.Callers` and profile buckets have it: a return address for
    /// an innermost frame, a position + 1 in the function for each frame it was inlined into.
    /// Gives one frame; the frames around it have pcs of their own (runtime/symtab.go,
    /// `(*Frames).Next`, Go 1.19 to 1.27).
    Logical,
}

/// Where an address was learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// `.symtab`.
    Symtab,
    /// pclntab; the binary is stripped.
    Pclntab,
    /// The operands of two functions that use it and agree; the binary is stripped.
    Code,
    /// What it holds; the binary is stripped.
    Content,
    /// `.dynsym`, the names that the dynamic linker knows.
    Dynsym,
}

impl FoundBy {
    /// In words, as `check` prints it.
    pub fn name(self) -> &'static str {
        match self {
            FoundBy::Symtab => "symtab",
            FoundBy::Pclntab => "pclntab",
            FoundBy::Code => "code operands",
            FoundBy::Content => "content",
            FoundBy::Dynsym => "dynsym",
        }
    }
}

/// A function of the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Link-time address of the first instruction.
    pub entry: u64,
    /// One past the last byte; padding may be included.
    pub end: u64,
    /// How it was found.
    pub found_by: FoundBy,
}

/// A logical frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFrame {
    /// As `go tool pprof` prints it, type arguments as `[...]`.
    pub function: Option<String>,
    /// Path as the compiler recorded it.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<u32>,
    /// Whether the call was inlined into the next frame.
    pub inlined: bool,
}

/// A Go program for linux/amd64, Go 1.18 or later.
#[derive(Debug)]
pub struct GoBinary {
    elf: Elf,
    version: GoVersion,
    go_build_id: Option<String>,
    gnu_build_id: Option<String>,
    stripped: bool,
    pclntab: Pclntab,
    module: ModuleData,
    found: Mutex<HashMap<String, Option<Function>>>,
    layout: OnceLock<Result<Layout, UnknownLayout>>,
}

impl GoBinary {
    /// Reads the headers. `None`: an ELF file that is not Go.
    pub fn parse(elf: Bytes) -> Result<Option<GoBinary>, GoError> {
        let elf = Elf::parse(elf)?;
        let Some(text) = version::read(&elf) else {
            return Ok(None);
        };
        let version = text
            .as_deref()
            .and_then(GoVersion::parse)
            .ok_or(GoError::Version)?;
        let pclntab =
            Pclntab::find(&elf).ok_or_else(|| GoError::NoPclntab(version.text.clone()))?;
        let module = module_data(&elf, &pclntab, &version)
            .or_else(|| {
                let text = Some(pclntab.text_start).filter(|start| *start != 0)?;
                Some(ModuleData {
                    address: None,
                    text,
                    gofunc: None,
                })
            })
            .ok_or_else(|| GoError::NoModuleData(version.text.clone()))?;
        let (go_build_id, gnu_build_id) = version::build_ids(&elf);
        Ok(Some(GoBinary {
            stripped: !elf.has_symbols(),
            elf,
            version,
            go_build_id,
            gnu_build_id,
            pclntab,
            module,
            found: Mutex::default(),
            layout: OnceLock::new(),
        }))
    }

    /// The same file, read once more.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn again(&self) -> Result<Option<GoBinary>, GoError> {
        GoBinary::parse(self.image())
    }

    /// The file.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn image(&self) -> Bytes {
        self.elf.image()
    }

    /// The release that built it.
    pub fn version(&self) -> &GoVersion {
        &self.version
    }

    /// The Go build id: four parts with slashes between.
    pub fn go_build_id(&self) -> Option<&str> {
        self.go_build_id.as_deref()
    }

    /// The GNU build id in hex. Go ≥ 1.24 and C linkers write one.
    pub fn gnu_build_id(&self) -> Option<&str> {
        self.gnu_build_id.as_deref()
    }

    /// Whether there is no symbol table (`-ldflags=-s`, `strip`).
    pub fn stripped(&self) -> bool {
        self.stripped
    }

    /// Whether it is position-independent: addresses in memory differ by a bias.
    pub fn pie(&self) -> bool {
        self.elf.pie
    }

    /// Whether C code is linked in through cgo.
    pub fn cgo(&self) -> bool {
        self.function("crosscall2").is_some()
    }

    /// Whether inlined calls can be told: moduledata was found and its layout in this release is
    /// known.
    pub fn knows_inlining(&self) -> bool {
        self.module.gofunc.is_some()
    }

    /// The first function of that name, by the symbol table or, where it has none, by pclntab.
    pub fn function(&self, name: &str) -> Option<Function> {
        let mut found = self.found.lock().ok()?;
        if let Some(function) = found.get(name) {
            return *function;
        }
        let function = self.find_function(name);
        if found.len() < 256 {
            found.insert(name.to_owned(), function);
        }
        function
    }

    fn find_function(&self, name: &str) -> Option<Function> {
        let symbol = self
            .elf
            .symbols()
            .find(|symbol| symbol.name == name.as_bytes());
        if let Some(symbol) = symbol.filter(|symbol| symbol.size > 0) {
            let end = symbol.address.checked_add(symbol.size)?;
            return Some(Function {
                entry: symbol.address,
                end,
                found_by: FoundBy::Symtab,
            });
        }
        self.functions(name).first().copied()
    }

    /// All functions of that name in pclntab, which does not tell an assembly function from the
    /// wrapper with which Go code calls it.
    pub fn functions(&self, name: &str) -> Vec<Function> {
        let named = self
            .pclntab
            .functions()
            .filter(|function| self.pclntab.name(function) == Some(name.as_bytes()));
        let function = |function: pclntab::FuncInfo| {
            Some(Function {
                entry: self.module.text.checked_add(u64::from(function.entry))?,
                end: self.module.text.checked_add(u64::from(function.end))?,
                found_by: FoundBy::Pclntab,
            })
        };
        named.filter_map(function).collect()
    }

    fn text_offset(&self, address: u64) -> Option<u32> {
        u32::try_from(address.checked_sub(self.module.text)?).ok()
    }

    /// Name of the physical function that the address is in.
    pub fn function_name_at(&self, address: u64) -> Option<String> {
        let function = self.pclntab.function_at(self.text_offset(address)?)?;
        Some(printed_name(self.pclntab.name(&function)?))
    }

    /// The logical frames at a pc, innermost first; empty when no Go function is there.
    pub fn frames(&self, pc: u64, kind: PcKind) -> Vec<GoFrame> {
        self.try_frames(pc, kind).unwrap_or_default()
    }

    fn try_frames(&self, pc: u64, kind: PcKind) -> Option<Vec<GoFrame>> {
        let offset = self.text_offset(pc)?;
        let (function, offset) = match kind {
            PcKind::Instruction => (self.pclntab.function_at(offset)?, offset),
            PcKind::Return => {
                // A call may be the last instruction: its return address is in the next function.
                let call = offset.checked_sub(1)?;
                (self.pclntab.function_at(call)?, call)
            }
            PcKind::Logical => {
                let function = self.pclntab.function_at(offset)?;
                let call = if offset > function.entry {
                    offset - 1
                } else {
                    offset
                };
                (function, call)
            }
        };
        let gofunc = self.module.gofunc;
        let logical = self
            .pclntab
            .logical_frames(&self.elf, gofunc, &function, offset);
        let depth = logical.len();
        let frames = logical
            .into_iter()
            .enumerate()
            .map(|(index, (name, offset))| {
                let (file, line) = self.pclntab.file_line(&function, offset);
                let inlined = index + 1 < depth;
                GoFrame {
                    function: name.map(printed_name),
                    file,
                    line,
                    inlined,
                }
            });
        Some(match kind {
            PcKind::Logical => frames.take(1).collect(),
            PcKind::Instruction | PcKind::Return => frames.collect(),
        })
    }

    /// Bytes between the stack pointer and the return address when the instruction at `pc` is the
    /// next, by the binary's own table.
    pub fn frame_size(&self, pc: u64) -> Option<u64> {
        let offset = self.text_offset(pc)?;
        let function = self.pclntab.function_at(offset)?;
        Some(self.pclntab.frame_size(&function, offset)?.into())
    }

    /// Where a frame has pointers whose call returns to `pc`. `None`: no Go function is there, or its
    /// data are not known.
    pub fn frame_map(&self, pc: u64) -> Option<FrameMap> {
        let call = self.text_offset(pc)?.checked_sub(1)?;
        let function = self.pclntab.function_at(call)?;
        stack_map::frame_map(
            &self.elf,
            &self.pclntab,
            self.module.gofunc?,
            &function,
            call,
        )
    }

    /// Whether a function begins at `pc`.
    pub fn is_entry(&self, pc: u64) -> bool {
        let function = |offset| Some((offset, self.pclntab.function_at(offset)?));
        self.text_offset(pc)
            .and_then(function)
            .is_some_and(|(offset, function)| function.entry == offset)
    }

    /// Why a goroutine can be waiting, in the binary's own words, by `g.waitreason`. The error says
    /// why the table could not be found.
    pub fn wait_reasons(&self) -> Result<Vec<String>, String> {
        variable::wait_reasons(self)
    }

    /// What its runtime's structs look like in memory: by its own debug information, else by the
    /// table of measured releases.
    pub fn layout(&self) -> Result<&Layout, UnknownLayout> {
        let made = self.layout.get_or_init(|| {
            let own = runtime_types(&self.elf);
            Layout::of(&self.version, own)
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Where a variable of the runtime is. The error is the reason why it is not known.
    pub fn variable(&self, variable: GoVariable) -> Result<Located, String> {
        variable::locate(self, variable)
    }

    /// Link-time address of `runtime.firstmoduledata`, if it was found.
    pub fn module_data(&self) -> Option<u64> {
        self.module.address
    }

    /// Its variables and sections, to name addresses of data.
    pub fn data_symbols(&self) -> DataSymbols {
        DataSymbols::of(&self.elf)
    }

    /// Whether the linker has switched the heap sampler off, because nothing in the program refers
    /// to the heap profile. The error is the reason why it is not known.
    pub fn sampler_linked_off(&self) -> Result<bool, String> {
        sampler_flag::is_linked_off(self)
    }

    /// The program's types and variables by its debug information. `None`: it has none that can be read. It takes
    /// about as long as reading the file does.
    pub fn debug_types(&self) -> Option<DebugTypes> {
        DebugTypes::read(|name| self.elf.debug_section(name, MAX_DEBUG_INFO))
    }

    /// Offset in the file of what is loaded at a link-time address.
    pub fn link_address_to_file_offset(&self, address: u64) -> Option<u64> {
        self.elf.file_offset(address)
    }

    /// Link-time address at which a file offset is loaded.
    pub fn file_offset_to_link_address(&self, offset: u64) -> Option<u64> {
        self.elf.address_of(offset)
    }

    /// The bytes of `[function.entry, function.end)`.
    pub fn code(&self, function: &Function) -> Option<&[u8]> {
        self.elf
            .read(function.entry, function.end.checked_sub(function.entry)?)
    }
}

/// The module, by the layout of the release or, of one that is not known, of its debug information.
fn module_data(elf: &Elf, pclntab: &Pclntab, version: &GoVersion) -> Option<ModuleData> {
    let (measured, is_known) = table::moduledata(version);
    let own = (!is_known)
        .then(|| runtime_types(elf)?.structs.remove("runtime.moduledata"))
        .flatten();
    let knows_all = is_known || own.is_some();
    moduledata::find(elf, pclntab, own.as_ref().unwrap_or(&measured), knows_all)
}

/// The runtime's types by the binary's debug information. `None`: it has none that can be read.
fn runtime_types(elf: &Elf) -> Option<RuntimeTypes> {
    let section = |name| elf.debug_section(name, MAX_DEBUG_INFO);
    let (info, abbreviations) = (section("info")?, section("abbrev")?);
    let types = dwarf::read(&info, &abbreviations).ok()?;
    // Debug information without the runtime's: a C program's, or another tool's.
    (!types.structs.is_empty()).then_some(types)
}

/// Type arguments are printed as `[...]` (runtime/symtab.go, `funcNameForPrint`, Go ≥ 1.21; Go
/// ≤ 1.20 has them so in the table). A method value's wrapper keeps its `-fm`.
fn printed_name(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    match (name.find('['), name.rfind(']')) {
        (Some(open), Some(close)) if open < close => {
            format!("{}[...]{}", &name[..open], &name[close + 1..])
        }
        _ => name.into_owned(),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
