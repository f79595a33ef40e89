//! Everything that reads what an attacker may choose, each by a function that takes any bytes: for fuzz
//! targets (`fuzz/`) and, over the same functions, for property tests.
//!
//! Each function returns whatever it is given. A panic, more memory than it may take, a character in its
//! output that a terminal obeys, or a name in a page that is more than text is a bug. docs/hostile-input.md
//! says what is bounded by what. Not part of the program.

mod ceiling;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, io::Write as _, os::fd::AsRawFd as _, path::PathBuf};

use bytes::Bytes;
use gimli::DebugInfoOffset;
use procfs::{FromRead as _, process::Status};

use crate::{
    capture::{Capture, FORMAT_VERSION, Limits, MAGIC},
    export::{self, Value},
    go::{DebugTypes, GoBinary, GoVariable, PcKind, dwarf, layout::Span},
    inventory::{Buckets, Watch, goroutines::Goroutines, heap},
    plan::{GoSampler, cgo, frame_table, native},
    report::{self, ReportOptions, text::TextOptions},
    symbolize::{self, Mapping, Module, Symbolizer},
    target::{GoTarget, Memory, smaps},
};

const MIB: isize = 1 << 20;

/// A capture file, and every form in which it can be shown.
pub fn capture(bytes: &[u8]) {
    let limits = Limits {
        memory_bytes: 8 << 20,
        ..Limits::default()
    };
    ceiling::within(512 * MIB, || {
        if let Ok(capture) = Capture::read_within(bytes, limits) {
            show(&capture);
        }
    });
}

/// The same with what only a forger has: blocks whose checksums are right. `bytes` are messages, each after its
/// type (one byte) and length (two bytes, little endian).
pub fn messages(bytes: &[u8]) {
    capture(&forged(bytes));
}

/// A capture of these messages, and each one's length at most what is left.
fn forged(mut messages: &[u8]) -> Vec<u8> {
    let mut file = [&MAGIC[..], &FORMAT_VERSION.to_le_bytes()].concat();
    while let Some((&[kind, low, high], rest)) = messages.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        let payload = zstd::bulk::compress(message, 1).unwrap_or_default();
        let kind = u32::from(kind).to_le_bytes();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&kind), &payload);
        file.extend((payload.len() as u32).to_le_bytes());
        file.extend(kind);
        file.extend(checksum.to_le_bytes());
        file.extend(payload);
        messages = rest;
    }
    file
}

/// Every form of report and export.
fn show(capture: &Capture) {
    let symbols = capture.symbols.as_ref();
    let detailed = report::build_detailed(capture, symbols, &ReportOptions::default());
    let report = &detailed.report;
    for width in [20, 100] {
        let options = TextOptions {
            width,
            all_frames: width > 50,
            shorten: width < 50,
            ..TextOptions::default()
        };
        plain(|out| report::text::write(report, options, out));
        let diff = report::diff::diff(report, report);
        plain(|out| report::text::write_diff(&diff, options, out));
        plain(|out| report::json::write(&diff, out));
    }
    plain(|out| report::json::write(report, out));
    if let Some(goroutines) = &report.goroutines {
        plain(|out| report::goroutines::write_text(goroutines, 20, out));
    }
    plain(|out| export::folded::write(report, Value::InuseSpace, out));
    plain(|out| export::speedscope::write(report, Value::Growth, out));
    plain(|out| export::flamegraph::write(report, Value::AllocSpace, out));
    let page = plain(|out| export::html::write(report, out));
    // Two of its own: the data and the program.
    for tag in ["<script", "</script"] {
        assert_eq!(page.matches(tag).count(), 2, "a name is a script");
    }
    let mut binary = Vec::new();
    let _ = export::pprof::write(&detailed, capture, Value::InuseObjects, &mut binary);
    let metadata = export::parquet::metadata(report);
    for table in export::parquet::tables(&detailed) {
        let _ = table.write(&metadata, &mut binary);
    }
}

/// What `write` writes, in which nothing but a line feed is obeyed by a terminal.
fn plain(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    let _ = write(&mut text);
    let text = String::from_utf8(text).expect("text is UTF-8");
    let obeyed = |c: &char| *c != '\n' && report::text::is_obeyed(*c);
    assert_eq!(text.chars().find(obeyed), None, "a terminal obeys this");
    text
}

/// A file that a process has mapped: Go or not, its allocators, its call frame information.
pub fn image(bytes: &[u8]) {
    ceiling::within(256 * MIB, || {
        go_binary(bytes);
        native::entries(bytes);
        frame_table::functions(bytes);
        let _ = frame_table::FrameTable::new(bytes, &[], 1 << 16);
        let object = native::NativeObject {
            path: "/image".to_owned(),
            open_path: PathBuf::from("/image"),
            image: bytes.to_vec().into(),
            mappings: vec![(0x7f00_0000_0000, 0x7f00_1000_0000, 0)],
        };
        let ways = [
            (Ok(()), true),
            (Ok(()), false),
            (Err("none".to_owned()), false),
        ];
        for (uretprobes, sessions) in ways {
            let objects = vec![object.clone()];
            native::probes(&native::NativeFacts {
                objects,
                uretprobes,
                sessions,
            });
        }
    });
}

/// A Go program, with some bytes of it replaced: in `patches`, four bytes for the place, one for the number
/// of bytes, and the bytes.
pub fn patched(program: &[u8], mut patches: &[u8]) {
    let mut bytes = program.to_vec();
    while let Some((&[a, b, c, d, length], rest)) = patches.split_first_chunk() {
        let (new, rest) = rest.split_at(usize::from(length).min(rest.len()));
        let place = u32::from_le_bytes([a, b, c, d]) as usize % bytes.len().max(1);
        for (old, new) in bytes[place..].iter_mut().zip(new) {
            *old = *new;
        }
        patches = rest;
    }
    ceiling::within(256 * MIB, || go_binary(&bytes));
}

/// All that is asked of a Go program.
fn go_binary(bytes: &[u8]) {
    let Ok(Some(binary)) = GoBinary::parse(bytes.to_vec().into()) else {
        return;
    };
    let _ = (binary.layout().is_ok(), binary.wait_reasons());
    let _ = (binary.cgo(), binary.sampler_linked_off());
    for variable in VARIABLES {
        let _ = binary.variable(variable);
    }
    let symbols = binary.data_symbols();
    cgo::crossings(&binary);
    for name in ["runtime.mallocgc", "main.main", "runtime.gopark"] {
        for function in binary.functions(name) {
            let _ = binary.code(&function);
            for pc in (function.entry..function.end).step_by(7).take(64) {
                for kind in [PcKind::Instruction, PcKind::Return, PcKind::Logical] {
                    binary.frames(pc, kind);
                }
                let _ = (binary.frame_map(pc), binary.frame_size(pc));
                symbols.place(pc);
            }
        }
    }
}

const VARIABLES: [GoVariable; 4] = [
    GoVariable::AllGs,
    GoVariable::MHeap,
    GoVariable::MBuckets,
    GoVariable::MemProfileRate,
];

/// Debug information of a Go program: the length of the first section (two bytes, little endian), `.debug_info`, then
/// `.debug_abbrev`.
pub fn debug_info(bytes: &[u8]) {
    let Some((&[low, high], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
    let (info, abbreviations) = rest.split_at(length);
    ceiling::within(256 * MIB, || {
        let _ = dwarf::read(info, abbreviations);
        let types = DebugTypes::read(|name| match name {
            "info" => Some(Bytes::copy_from_slice(info)),
            "abbrev" => Some(Bytes::copy_from_slice(abbreviations)),
            _ => None,
        });
        if let Some(types) = types {
            for at in 0..info.len().min(1 << 12) {
                types.pointee(DebugInfoOffset(at), 8 * (at as u64 % 8));
                types.variable(at as u64);
                types.local(at as u64, at as i64 - 64);
            }
        }
    });
}

/// A file with symbols or debug information, asked for the names of some addresses.
pub fn symbols(bytes: &[u8]) {
    let file = rustix::fs::memfd_create("symbols", rustix::fs::MemfdFlags::CLOEXEC);
    let Ok(mut file) = file.map(std::fs::File::from) else {
        return;
    };
    if file.write_all(bytes).is_err() {
        return;
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let module = Module {
        path: path.to_string_lossy().into_owned(),
        build_id: None,
    };
    let mapping = Mapping {
        start: 0x1_0000,
        end: 0x1_0000 + bytes.len() as u64,
        file_offset: 0,
        module: 0,
    };
    let symbolizer = Symbolizer::new(vec![module], vec![mapping], |_| Some(path.clone()));
    let step = (bytes.len() / 32).max(1);
    let addresses = (mapping.start..mapping.end).step_by(step);
    let addresses: Vec<_> = addresses.map(|at| (at, PcKind::Instruction)).collect();
    ceiling::within(256 * MIB, || symbolizer.symbols(&addresses));
}

/// A name as linkers have it.
pub fn name(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    ceiling::within(64 * MIB, || {
        let shown = symbolize::demangle::demangled(&name);
        plain(|out| out.write_all(report::text::escape(&shown).as_bytes()));
    });
}

/// A file of `/proc/PID`.
pub fn proc_file(bytes: &[u8]) {
    ceiling::within(64 * MIB, || {
        let _ = smaps::parse(bytes, || Ok(()));
        let text = String::from_utf8_lossy(bytes);
        let _ = crate::target::Mapping::parse_all(bytes);
        let _ = Status::from_read(text.as_bytes());
    });
}

/// Memory of a running Go program: the heap profile, the goroutines, the heap and who holds what. It is memory of this
/// very process, as large as the program's variables, in which a number below 64 Ki is an address in
/// there. `words` come in turn: the variables that matter, then what they may lead to.
pub fn memory(program: &GoBinary, words: &[u8]) {
    let found = VARIABLES.map(|variable| program.variable(variable).map(|found| found.address));
    let Ok([all_gs, heap_at, buckets_at, rate]) = all(found) else {
        return;
    };
    const FREE: u64 = 1 << 16;
    let addresses = [all_gs, heap_at, buckets_at, rate];
    let first = addresses.iter().min().map_or(0, |first| first & !7);
    let last = addresses.iter().max().copied().unwrap_or(0);
    let place = |address: u64| (FREE + address - first) as usize / 8;
    // What is beside the last one, and behind that.
    let mut region = vec![0_u64; place(last) + 2 * FREE as usize / 8];
    let base = region.as_ptr() as u64;
    let spans = program.layout().map_or(0, |layout| layout.heap.allspans);
    let places = [all_gs, all_gs + 8, heap_at + spans, heap_at + spans + 8];
    let places = places.into_iter().chain([buckets_at]).map(place);
    let places = places.chain(0..FREE as usize / 8);
    for (place, word) in places.zip(words.chunks(8)) {
        let Some(to) = region.get_mut(place) else {
            continue;
        };
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        let word = u64::from_le_bytes(whole);
        // Low bits of a count, an address in here, or whatever it is.
        *to = match word {
            0x100..FREE => base + (word & !7),
            word => word,
        };
    }
    let Ok(Some(binary)) = program.again() else {
        return;
    };
    let go = GoTarget {
        binary,
        bias: (base + FREE).wrapping_sub(first),
    };
    let own = Memory::new(std::process::id() as i32);
    ceiling::within(1024 * MIB, || walk(own, &go));
    drop(region);
}

fn all<T: Copy + Default, E, const N: usize>(results: [Result<T, E>; N]) -> Result<[T; N], E> {
    let mut values = [T::default(); N];
    for (value, result) in values.iter_mut().zip(results) {
        *value = result?;
    }
    Ok(values)
}

/// What `record`, `goroutines` and `why` read.
fn walk(memory: Memory, go: &GoTarget) {
    let Ok(layout) = go.binary.layout().cloned() else {
        return;
    };
    if let (Ok(buckets), Ok(rate)) = (
        go.address(GoVariable::MBuckets),
        go.address(GoVariable::MemProfileRate),
    ) {
        let sampler = GoSampler {
            buckets,
            rate,
            sample_rate: 1,
            layout,
            bias: go.bias,
        };
        let _ = Buckets::new(memory, sampler).read();
    }
    let Ok(goroutines) = Goroutines::new(memory, go) else {
        return;
    };
    let Ok(census) = goroutines.census() else {
        return;
    };
    goroutines.busiest_channels(&census);
    goroutines.stacks(&census, 1 << 20, |_, _| {});
    let Ok(heap) = heap::Heap::read(memory, go) else {
        return;
    };
    heap::samples(&heap);
    let all: u64 = heap.bytes().0;
    if let Ok(roots) = heap::Roots::find(&heap, go, &goroutines, &census, |_| false)
        // More than is there is not gone through here, but by a test of its own.
        && all < 1 << 24
    {
        let (none, watch, memory) = (HashSet::new(), Watch::default(), 256 << 20);
        let types = heap::Types::find(&heap, go);
        let spans = heap.spans().iter();
        let each = spans.filter_map(|span| heap.object_at(span.start));
        let each: Vec<_> = each.collect();
        let of = (&roots, types.as_ref());
        let check = |holders: &dyn heap::Holders| {
            let asked = each.iter().copied();
            let mut paths = heap::Paths::check(holders, of, asked, memory, &watch);
            for object in &each {
                paths.fate(*object);
            }
            paths.not_there().count();
        };
        let asked = each.iter().copied();
        if let Some(marked) = heap::Mark::new(&heap, of, asked, &none, memory, &watch).run() {
            check(&marked);
        }
        let asked = each.iter().copied();
        if let Ok(back) = heap::Back::new((&heap, of.1), asked, &none, memory, &watch) {
            check(&back.run(&roots));
        }
    }
    if let Some(types) = heap::Types::find(&heap, go) {
        let spans = heap.spans().iter().take(64);
        for object in spans.filter_map(|span| heap.object_at(span.start)) {
            let first = heap.first_word(object).unwrap_or(0);
            let _ = (types.noted(object, first), types.of_interface(first));
            let _ = types.is_pointer(object, Span::PAGE_SIZE / 2 % heap.size(object), first);
        }
    }
}
