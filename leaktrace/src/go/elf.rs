//! The little of ELF that Go binaries need: segments, sections, symbols, words with their
//! relocations. Nothing is copied; every offset of the file is checked before it is followed.

use std::io::Read as _;

use bytes::Bytes;
use flate2::read::ZlibDecoder;

use super::GoError;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SHF_WRITE: u64 = 0x1;
const SHF_ALLOC: u64 = 0x2;
const SHF_COMPRESSED: u64 = 0x800;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const R_X86_64_RELATIVE: u64 = 8;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
/// A name that does not end within this many bytes is no name.
const MAX_NAME: usize = 1 << 16;

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) file_offset: u64,
    pub(super) file_size: u64,
    memory_size: u64,
    pub(super) writable: bool,
    executable: bool,
}

/// A section that has bytes in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    pub(super) address: u64,
    offset: u64,
    size: u64,
    link: u32,
}

/// An entry of `.symtab`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol<'a> {
    pub(super) name: &'a [u8],
    pub(super) address: u64,
    pub(super) size: u64,
}

/// A parsed ELF file.
#[derive(Clone, Debug)]
pub(crate) struct Elf {
    data: Bytes,
    pub(super) segments: Vec<Segment>,
    sections: Vec<Section>,
    names: Option<Section>,
    /// Address and size in bytes of the `R_X86_64_RELATIVE` and other relocations.
    relocations: Option<(u64, u64)>,
    pub(crate) pie: bool,
    /// Whether a dynamic linker loads it.
    pub(crate) has_interpreter: bool,
}

impl Elf {
    pub(crate) fn parse(data: Bytes) -> Result<Self, GoError> {
        let malformed = |what| GoError::Elf(what);
        if data.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(malformed("no 64-bit little-endian ELF header"));
        }
        let header = || malformed("the ELF header is truncated");
        let kind = u16_at(&data, 16).ok_or_else(header)?;
        let machine = u16_at(&data, 18).ok_or_else(header)?;
        if machine != EM_X86_64 {
            return Err(GoError::Machine(machine));
        }
        let segment_table = u64_at(&data, 32).ok_or_else(header)?;
        let section_table = u64_at(&data, 40).ok_or_else(header)?;
        let segment_count = u16_at(&data, 56).ok_or_else(header)?;
        let section_count = u16_at(&data, 60).ok_or_else(header)?;
        let names_index = u16_at(&data, 62).ok_or_else(header)?;

        let mut elf = Elf {
            data,
            segments: Vec::new(),
            sections: Vec::new(),
            names: None,
            relocations: None,
            pie: kind == ET_DYN,
            has_interpreter: false,
        };
        let mut dynamic = None;
        for index in 0..u64::from(segment_count) {
            let entry = elf
                .file(segment_table.saturating_add(index * 56), 56)
                .ok_or_else(|| malformed("the program headers are truncated"))?;
            let word = |at| u64_at(entry, at).unwrap_or_default();
            match u32_at(entry, 0) {
                Some(PT_LOAD) => elf.segments.push(Segment {
                    address: word(16),
                    file_offset: word(8),
                    file_size: word(32),
                    memory_size: word(40),
                    writable: u32_at(entry, 4).unwrap_or_default() & 2 != 0,
                    executable: u32_at(entry, 4).unwrap_or_default() & 1 != 0,
                }),
                Some(PT_INTERP) => elf.has_interpreter = true,
                Some(PT_DYNAMIC) => dynamic = Some((word(16), word(32))),
                _ => {}
            }
        }
        // The sections may be stripped or lie: what they lack is found by other means.
        for index in 0..u64::from(section_count) {
            let Some(entry) = elf.file(section_table.saturating_add(index * 64), 64) else {
                break;
            };
            let word = |at| u64_at(entry, at).unwrap_or_default();
            let half = |at| u32_at(entry, at).unwrap_or_default();
            elf.sections.push(Section {
                name: half(0),
                kind: half(4),
                flags: word(8),
                address: word(16),
                offset: word(24),
                size: word(32),
                link: half(40),
            });
        }
        elf.names = elf.sections.get(usize::from(names_index)).copied();
        elf.relocations = dynamic.and_then(|(address, size)| elf.relocation_table(address, size));
        Ok(elf)
    }

    /// The whole file.
    #[cfg(any(test, fuzzing))]
    pub(super) fn image(&self) -> Bytes {
        self.data.clone()
    }

    fn relocation_table(&self, address: u64, size: u64) -> Option<(u64, u64)> {
        let entries = self.read(address, size.min(1 << 16))?;
        let value = |tag| {
            let entry = entries
                .chunks_exact(16)
                .find(|entry| u64_at(entry, 0) == Some(tag))?;
            u64_at(entry, 8)
        };
        Some((value(DT_RELA)?, value(DT_RELASZ)?))
    }

    fn file(&self, offset: u64, size: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.data
            .get(start..start.checked_add(usize::try_from(size).ok()?)?)
    }

    /// The bytes of a section.
    pub(super) fn section_bytes(&self, section: &Section) -> Option<Bytes> {
        if section.kind == SHT_NOBITS {
            return None;
        }
        let bytes = self.file(section.offset, section.size)?;
        Some(self.data.slice_ref(bytes))
    }

    /// A section of debug information, `name` without `.debug_`, uncompressed. `None`: it is not
    /// there, or is damaged, or is longer than `limit` bytes.
    pub(super) fn debug_section(&self, name: &str, limit: u64) -> Option<Bytes> {
        let plain = self.section(&format!(".debug_{name}"));
        if let Some(section) = plain {
            let bytes = self.section_bytes(section)?;
            if section.flags & SHF_COMPRESSED == 0 {
                return (bytes.len() as u64 <= limit).then_some(bytes);
            }
            let size = u64_at(&bytes, 8).filter(|size| *size <= limit)?;
            let packed = bytes.get(24..)?;
            return match u32_at(&bytes, 0)? {
                ELFCOMPRESS_ZLIB => inflate(packed, size),
                ELFCOMPRESS_ZSTD => zstd::bulk::decompress(packed, size as usize)
                    .ok()
                    .map(Bytes::from),
                _ => None,
            };
        }
        // The form before there was a flag for it: `ZLIB`, the size, big-endian.
        let bytes = self.section_bytes(self.section(&format!(".zdebug_{name}"))?)?;
        let size = bytes.strip_prefix(b"ZLIB")?.first_chunk()?;
        let size = Some(u64::from_be_bytes(*size)).filter(|size| *size <= limit)?;
        inflate(bytes.get(12..)?, size)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        let names = self.names?;
        self.sections.iter().find(|section| {
            let at = names.offset.checked_add(u64::from(section.name));
            let found = at.and_then(|at| self.file(at, name.len() as u64 + 1));
            found.is_some_and(|found| found.strip_suffix(b"\0") == Some(name.as_bytes()))
        })
    }

    /// Sections that a program can write: address, size and name.
    pub(super) fn data_sections(&self) -> Vec<(u64, u64, String)> {
        let name = |section: &Section| {
            let names = self.names?;
            let from = names.offset.checked_add(section.name.into())?;
            let left = names.size.checked_sub(section.name.into())?;
            let bytes = self.file(from, left.min(MAX_NAME as u64))?;
            let name = c_string(bytes, 0)?;
            Some(String::from_utf8_lossy(name).into_owned())
        };
        let written = self
            .sections
            .iter()
            .filter(|section| section.flags & (SHF_WRITE | SHF_ALLOC) == SHF_WRITE | SHF_ALLOC);
        written
            .filter_map(|section| Some((section.address, section.size, name(section)?)))
            .collect()
    }

    /// The segment with file bytes for `address`.
    fn segment_at(&self, address: u64) -> Option<&Segment> {
        self.segments.iter().find(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|offset| offset < segment.file_size)
        })
    }

    /// Whether the address is in memory that the program can write, with or without file bytes.
    pub(super) fn is_data(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| {
            let offset = address.checked_sub(segment.address);
            segment.writable && offset.is_some_and(|offset| offset < segment.memory_size)
        })
    }

    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segment_at(address)?;
        segment.file_offset.checked_add(address - segment.address)
    }

    pub(crate) fn address_of(&self, file_offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| {
            file_offset
                .checked_sub(segment.file_offset)
                .is_some_and(|at| at < segment.file_size)
        })?;
        segment
            .address
            .checked_add(file_offset - segment.file_offset)
    }

    /// Like [`Elf::address_of`] for a file of debug information, whose segments have no bytes:
    /// `offset` bytes into a mapping that began with the first page of the code segment. There
    /// must be one code segment only.
    pub(crate) fn address_in_code(&self, offset: u64) -> Option<u64> {
        let mut code = self.segments.iter().filter(|segment| segment.executable);
        let segment = code.next().filter(|_| code.next().is_none())?;
        let address = (segment.address & !0xfff).checked_add(offset)?;
        let inside = address.checked_sub(segment.address)? < segment.memory_size;
        inside.then_some(address)
    }

    /// `size` bytes at a link-time address, all of them within one segment.
    pub(super) fn read(&self, address: u64, size: u64) -> Option<&[u8]> {
        let segment = self.segment_at(address)?;
        let offset = address - segment.address;
        if offset.checked_add(size)? > segment.file_size {
            return None;
        }
        self.file(segment.file_offset.checked_add(offset)?, size)
    }

    /// Everything of a segment from `address` on.
    pub(super) fn read_to_segment_end(&self, address: u64) -> Option<Bytes> {
        let segment = self.segment_at(address)?;
        let bytes = self.read(address, segment.file_size - (address - segment.address))?;
        Some(self.data.slice_ref(bytes))
    }

    /// Relocations as (address, addend or 0 when not relative), in the order of the file.
    fn relocations(&self) -> impl Iterator<Item = (u64, u64)> {
        let table = self
            .relocations
            .and_then(|(address, size)| self.read(address, size));
        table
            .unwrap_or_default()
            .chunks_exact(24)
            .filter_map(|entry| {
                let relative = u64_at(entry, 8)? & 0xffff_ffff == R_X86_64_RELATIVE;
                relative.then_some((u64_at(entry, 0)?, u64_at(entry, 16)?))
            })
    }

    /// Addresses of the pointers to `target` in data: by relocation in a position-independent
    /// file, by a scan of the writable segments otherwise.
    pub(super) fn pointers_to(&self, target: u64) -> Vec<u64> {
        const ENOUGH: usize = 64;
        let relocated = self.relocations().filter(|(_, addend)| *addend == target);
        let mut found: Vec<u64> = relocated.map(|(address, _)| address).take(ENOUGH).collect();
        if found.is_empty() {
            let wanted = target.to_le_bytes();
            for segment in self.segments.iter().filter(|segment| segment.writable) {
                let Some(bytes) = self.read(segment.address, segment.file_size) else {
                    continue;
                };
                let skip = segment.address.wrapping_neg() % 8;
                let words = bytes
                    .get(skip as usize..)
                    .unwrap_or_default()
                    .chunks_exact(8);
                found.extend(
                    (segment.address.saturating_add(skip)..)
                        .step_by(8)
                        .zip(words)
                        .filter(|(_, word)| **word == wanted)
                        .map(|(address, _)| address)
                        .take(ENOUGH),
                );
            }
        }
        found
    }

    /// The words of `[address, address + 8 * count)` as they are in memory at link-time addresses.
    pub(super) fn words(&self, address: u64, count: usize) -> Option<Vec<u64>> {
        let size = 8 * count as u64;
        let bytes = self.read(address, size)?;
        let mut words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64_at(word, 0).unwrap_or_default())
            .collect();
        for (at, addend) in self.relocations() {
            let Some(offset) = at.checked_sub(address) else {
                continue;
            };
            if offset < size && offset % 8 == 0 {
                words[(offset / 8) as usize] = addend;
            }
        }
        Some(words)
    }

    /// Whether there is DWARF, compressed or not.
    pub(crate) fn has_debug_info(&self) -> bool {
        [".debug_info", ".zdebug_info"]
            .iter()
            .any(|name| self.section(name).is_some())
    }

    /// Whether debug information of other files belongs to it, which it names itself, or its sections are not told
    /// in the usual way, so that others may find such names where this does not.
    pub(crate) fn leads_elsewhere(&self) -> bool {
        const LINKS: [&str; 3] = [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"];
        self.names.is_none() || LINKS.iter().any(|name| self.section(name).is_some())
    }

    /// Whether there is a symbol table.
    pub(crate) fn has_symbols(&self) -> bool {
        self.symbols().next().is_some()
    }

    /// The defined symbols of `.symtab`.
    pub(super) fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        let table = self
            .sections
            .iter()
            .find(|section| section.kind == SHT_SYMTAB);
        let bytes = table
            .and_then(|table| self.file(table.offset, table.size))
            .unwrap_or_default();
        let strings = table
            .and_then(|table| self.sections.get(table.link as usize))
            .and_then(|strings| self.file(strings.offset, strings.size))
            .unwrap_or_default();
        bytes.chunks_exact(24).filter_map(move |entry| {
            let symbol = Symbol {
                name: c_string(strings, u32_at(entry, 0)? as usize)?,
                address: u64_at(entry, 8)?,
                size: u64_at(entry, 16)?,
            };
            let defined = u16_at(entry, 6)? != 0;
            (defined && !symbol.name.is_empty()).then_some(symbol)
        })
    }

    /// The description of a note in the section.
    pub(super) fn note(&self, section: &str, owner: &[u8], kind: u32) -> Option<Bytes> {
        let bytes = self.section_bytes(self.section(section)?)?;
        let mut rest = &bytes[..];
        while let (Some(name_size), Some(size)) = (u32_at(rest, 0), u32_at(rest, 4)) {
            let aligned = |size: u32| (size as usize).checked_next_multiple_of(4);
            let start = aligned(name_size)?.checked_add(12)?;
            let end = start.checked_add(size as usize)?;
            let name = rest.get(12..12usize.checked_add(name_size as usize)?)?;
            if name == owner && u32_at(rest, 8) == Some(kind) {
                return Some(bytes.slice_ref(rest.get(start..end)?));
            }
            rest = rest.get(start.checked_add(aligned(size)?)?..)?;
        }
        None
    }
}

/// A zlib stream of `size` bytes.
fn inflate(packed: &[u8], size: u64) -> Option<Bytes> {
    // What is claimed is not taken at once: a small file can claim much.
    let mut bytes = Vec::with_capacity((size as usize).min(packed.len().saturating_mul(8)));
    let mut stream = ZlibDecoder::new(packed).take(size);
    stream.read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == size).then(|| bytes.into())
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The bytes from `at` to the next zero byte.
pub(super) fn c_string(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let rest = &rest[..rest.len().min(MAX_NAME)];
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(&rest[..end])
}
