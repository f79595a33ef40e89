//! What an object file says about its functions: names, extents, code, and where its jumps lead.

use std::collections::{BTreeMap, HashMap, HashSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::{
    LittleEndian, Object as _, ObjectSegment as _, ObjectSymbol as _, ObjectSymbolTable as _,
    RelocationTarget, SymbolFlags, SymbolKind, read::elf::ElfFile64,
};

use super::functions::{self, Function};
use crate::go::FoundBy;

/// Longest function that is looked at, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// An object file, parsed.
pub(super) struct Image<'a> {
    elf: ElfFile64<'a, LittleEndian>,
    /// Names that the dynamic linker stores in the global offset table, by address.
    imports: BTreeMap<u64, &'a str>,
}

/// A function of an object file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// What it is.
    pub(super) function: Function,
    /// Link-time address.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) size: u64,
    /// By which table.
    pub(super) found_by: FoundBy,
}

/// How code of an object file gets to allocators.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Link-time addresses of functions of its own.
    pub functions: HashSet<u64>,
    /// Link-time addresses at which the dynamic linker stores those of others.
    pub slots: HashSet<u64>,
}

impl<'a> Image<'a> {
    /// Parses an ELF file; the error says why it cannot be.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let elf = ElfFile64::<LittleEndian>::parse(bytes).map_err(|error| error.to_string())?;
        let choosers: HashMap<u64, &str> = elf
            .dynamic_symbols()
            .chain(elf.symbols())
            .filter(is_chooser)
            .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?)))
            .collect();
        let mut imports = BTreeMap::new();
        for (address, relocation) in elf.dynamic_relocations().into_iter().flatten() {
            let name = match relocation.target() {
                RelocationTarget::Symbol(index) => elf
                    .dynamic_symbol_table()
                    .and_then(|table| table.symbol_by_index(index).ok()?.name().ok()),
                // A function of its own of which it takes the best for the processor (IRELATIVE): named by
                // what chooses.
                _ => u64::try_from(relocation.addend())
                    .ok()
                    .and_then(|chooser| choosers.get(&chooser).copied()),
            };
            imports.extend(name.map(|name| (address, name)));
        }
        Ok(Self { elf, imports })
    }

    /// The functions of allocators that the file defines, each address once.
    pub(super) fn functions(&self) -> Vec<Found> {
        let mut starts = Vec::new();
        let mut found = BTreeMap::<u64, Found>::new();
        let dynamic = self
            .elf
            .dynamic_symbols()
            .map(|symbol| (symbol, FoundBy::Dynsym));
        let all = self.elf.symbols().map(|symbol| (symbol, FoundBy::Symtab));
        for (symbol, found_by) in dynamic.chain(all) {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() || symbol.address() == 0 {
                continue;
            }
            starts.push(symbol.address());
            let Some(function) = symbol.name().ok().and_then(functions::named) else {
                continue;
            };
            let new = Found {
                function,
                address: symbol.address(),
                size: symbol.size(),
                found_by,
            };
            let known = found.entry(new.address).or_insert(new);
            if functions::rank(&function) < functions::rank(&known.function) {
                *known = new;
            }
        }
        starts.sort_unstable();
        let mut found: Vec<_> = found.into_values().collect();
        for each in &mut found {
            if each.size == 0 {
                // Written in assembly: it ends where the next one begins.
                let next = starts.partition_point(|start| *start <= each.address);
                let next = starts.get(next).copied().unwrap_or(each.address);
                each.size = (next - each.address).min(MAX_SIZE);
            }
        }
        found
    }

    /// Where the file's own allocator functions begin, and the slots of the global offset table that hold
    /// the addresses of others.
    pub(super) fn entries(&self) -> Entries {
        let slots = self.imports.iter();
        let slots = slots.filter(|(_, name)| functions::named(name).is_some());
        Entries {
            functions: self.functions().iter().map(|found| found.address).collect(),
            slots: slots.map(|(slot, _)| *slot).collect(),
        }
    }

    /// Whether its `malloc` is glibc's: that has a name of the library's own besides.
    pub(super) fn is_glibc(&self) -> bool {
        let symbols = || self.elf.dynamic_symbols().chain(self.elf.symbols());
        let address = |name| {
            let mut symbols = symbols().filter(|symbol| !symbol.is_undefined());
            let symbol = symbols.find(|symbol| symbol.name() == Ok(name));
            symbol.map(|symbol| symbol.address())
        };
        let own = address("__libc_malloc");
        own.is_some() && own == address("malloc")
    }

    /// Address and size of the function of that name which the file itself defines for all. Another file may
    /// define it, too, and have it called in its place; of an allocator's own functions none does.
    pub(super) fn defined(&self, name: &str) -> Option<(u64, u64)> {
        let mut symbols = self.elf.dynamic_symbols();
        let symbol = symbols.find(|symbol| {
            let is_function = symbol.kind() == SymbolKind::Text && !symbol.is_undefined();
            is_function && symbol.size() > 0 && symbol.name() == Ok(name)
        });
        symbol.map(|symbol| (symbol.address(), symbol.size()))
    }

    /// The bytes of `[address, address + size)`, all of them within one segment's file bytes.
    pub(super) fn code(&self, address: u64, size: u64) -> Option<&'a [u8]> {
        self.elf.segments().find_map(|segment| {
            let within = usize::try_from(address.checked_sub(segment.address())?).ok()?;
            let end = within.checked_add(usize::try_from(size).ok()?)?;
            segment.data().ok()?.get(within..end)
        })
    }

    /// Offset in the file of a link-time address.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        self.elf.segments().find_map(|segment| {
            let (start, size) = segment.file_range();
            let within = address.checked_sub(segment.address())?;
            (within < size).then(|| start + within)
        })
    }

    /// The name of the imported function to which a call or jump leads: by its entry in the procedure
    /// linkage table, or through the global offset table.
    pub(super) fn import(&self, instruction: &Instruction) -> Option<&'a str> {
        if let Some(slot) = slot(instruction) {
            return self.imports.get(&slot).copied();
        }
        // An entry of the table: `jmp *slot(%rip)`, behind `endbr64` perhaps.
        const ENTRY: u64 = 16;
        let target = near(instruction)?;
        let mut stub =
            Decoder::with_ip(64, self.code(target, ENTRY)?, target, DecoderOptions::NONE);
        let jump = stub
            .iter()
            .take(2)
            .find_map(|instruction| slot(&instruction));
        self.imports.get(&jump?).copied()
    }
}

/// Whether a symbol is of the type `STT_GNU_IFUNC`.
fn is_chooser<'a>(symbol: &impl object::ObjectSymbol<'a>) -> bool {
    let SymbolFlags::Elf { st_info, .. } = symbol.flags() else {
        return false;
    };
    st_info & 0xf == object::elf::STT_GNU_IFUNC && !symbol.is_undefined()
}

/// Where a direct call or jump leads.
pub(super) fn near(instruction: &Instruction) -> Option<u64> {
    let is_near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
    is_near.then(|| instruction.near_branch_target())
}

/// The memory from which an indirect call or jump takes its target, if that is a fixed address.
fn slot(instruction: &Instruction) -> Option<u64> {
    let indirect = matches!(
        instruction.flow_control(),
        FlowControl::IndirectCall | FlowControl::IndirectBranch
    );
    let fixed = indirect
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_base() == Register::RIP;
    fixed.then(|| instruction.ip_rel_memory_address())
}
