//! A few hundred cases of what the fuzz targets try by the million, on every run of the tests.

use std::{fs, sync::OnceLock};

use proptest::prelude::*;

use super::*;
use crate::go::testing::{self, Mode, PPROF_PROGRAM};

const CAPTURE: &[u8] = include_bytes!("../../tests/captures/reload.leaktrace");

/// A Go program; none on a machine without a toolchain.
fn program() -> Option<&'static GoBinary> {
    static PROGRAM: OnceLock<Option<GoBinary>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| {
            let toolchain = testing::toolchains().pop()?;
            let path = testing::build(&toolchain, Mode::Plain, PPROF_PROGRAM);
            GoBinary::parse(fs::read(path).ok()?.into()).ok()?
        })
        .as_ref()
}

/// The messages of a capture, as [`messages`] takes them.
fn unforged(file: &[u8]) -> Vec<u8> {
    let mut messages = Vec::new();
    let mut blocks = &file[12..];
    while let Some((frame, rest)) = blocks.split_first_chunk::<12>() {
        let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        let message = zstd::stream::decode_all(&rest[..length]).unwrap();
        messages.push(frame[4]);
        messages.extend((message.len() as u16).to_le_bytes());
        messages.extend(message);
        blocks = &rest[length..];
    }
    messages
}

/// Bytes at places: what is done to a file.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let byte = prop_oneof![Just(0_u8), Just(0xff), Just(0x80), any::<u8>()];
    prop::collection::vec((any::<prop::sample::Index>(), byte), 1..12)
}

fn damaged(file: &[u8], damage: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut file = file.to_vec();
    for (at, byte) in damage {
        let at = at.index(file.len());
        file[at] = *byte;
    }
    file
}

/// What a forger forges is read at all.
#[test]
fn a_forged_capture_is_a_capture() {
    let whole = Capture::read(CAPTURE).unwrap();
    let again = Capture::read(forged(&unforged(CAPTURE)).as_slice()).unwrap();
    assert!(whole == again);
}

/// What fuzzing begins with, and what it has found.
#[test]
fn the_corpora() {
    let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    let each = |target: &str, act: &dyn Fn(&[u8])| {
        let entries = fs::read_dir(format!("{corpora}/{target}")).unwrap();
        let inputs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{target}");
        for input in inputs {
            act(&fs::read(input).unwrap());
        }
    };
    each("capture", &capture);
    each("messages", &messages);
    each("image", &image);
    each("symbols", &symbols);
    each("debug_info", &debug_info);
    each("name", &name);
    each("proc_file", &proc_file);
    if let Some(program) = program() {
        each("go_program", &|bytes| patched(&program.image(), bytes));
        each("memory", &|bytes| memory(program, bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn captures(damage in damage(), cut in any::<prop::sample::Index>()) {
        let file = damaged(CAPTURE, &damage);
        capture(&file);
        capture(&file[..cut.index(file.len())]);
    }

    #[test]
    fn forged_captures(damage in damage()) {
        messages(&damaged(&unforged(CAPTURE), &damage));
    }

    #[test]
    fn go_programs(patches in prop::collection::vec(any::<u8>(), 6..64)) {
        if let Some(program) = program() {
            patched(&program.image(), &patches);
        }
    }

    #[test]
    fn memory_of_go_programs(words in prop::collection::vec(
        prop_oneof![0..64_u64, 0x100..0x1_0000_u64, any::<u64>()], 8..600,
    )) {
        if let Some(program) = program() {
            let words: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            memory(program, &words);
        }
    }

    #[test]
    fn texts(bytes in prop::collection::vec(any::<u8>(), 0..400), damage in damage()) {
        for read in [image, debug_info, symbols, name, proc_file, messages] {
            read(&bytes);
        }
        let status = fs::read("/proc/self/status").unwrap();
        proc_file(&damaged(&status, &damage));
        proc_file(&damaged(&fs::read("/proc/self/smaps").unwrap(), &damage));
        name(&damaged(b"_ZNSt6vectorIiSaIiEE9push_backERKi", &damage));
    }
}
