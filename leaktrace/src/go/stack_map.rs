//! Where the frames of a goroutine's stack have pointers, by the compiler's own maps.
//!
//! Source: runtime/stkframe.go (`getStackMap`; runtime/stack.go before Go 1.21), `stackmap` of
//! runtime/symtab.go and `stackObjectRecord` of runtime/stack.go, linux/amd64, Go 1.19 to 1.27.

use super::elf::{Elf, u32_at, u64_at};
use super::pclntab::{FuncInfo, Pclntab};

/// internal/abi/symtab.go.
const FUNCDATA_ARGS_POINTER_MAPS: u32 = 0;
const FUNCDATA_LOCALS_POINTER_MAPS: u32 = 1;
const FUNCDATA_STACK_OBJECTS: u32 = 2;
/// More words or objects in a frame than this are not believed.
const MAX_WORDS: u32 = 1 << 24;
const MAX_OBJECTS: u64 = 1 << 16;

/// Which words of a part of a frame are pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// How many words it has.
    pub words: u64,
    bits: Vec<u8>,
}

impl Slots {
    /// Whether this word is a pointer.
    pub fn is_pointer(&self, word: u64) -> bool {
        let byte = self.bits.get(word as usize / 8);
        word < self.words && byte.is_some_and(|byte| byte >> (word % 8) & 1 == 1)
    }
}

/// A frame at a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameMap {
    /// Bytes between the stack pointer and the return address.
    pub size: u64,
    /// Local variables; the last word ends where the saved frame pointer begins.
    pub locals: Slots,
    /// Arguments; the first word is behind the return address.
    pub arguments: Slots,
    /// Variables whose address is taken: where each begins, from the end of the locals or, if not
    /// negative, from the beginning of the arguments, and how many bytes of it have pointers. Whether
    /// one is in use is not said here.
    pub objects: Vec<(i32, u32)>,
}

/// The frame of a function at a call at `offset` from the text start.
pub(super) fn frame_map(
    elf: &Elf,
    table: &Pclntab,
    gofunc: u64,
    function: &FuncInfo,
    offset: u32,
) -> Option<FrameMap> {
    let size = u64::from(table.frame_size(function, offset)?);
    // At the entry, or where nothing is said, the first map counts.
    let index = u32::try_from(table.stack_map_index(function, offset)).unwrap_or(0);
    let data = |number| table.func_data(gofunc, function, number);
    let mut map = FrameMap {
        size,
        ..FrameMap::default()
    };
    // Less is the saved frame pointer alone.
    if size > 8 {
        map.locals = slots(elf, data(FUNCDATA_LOCALS_POINTER_MAPS)?, index)?;
    }
    if table.argument_bytes(function)? > 0 {
        map.arguments = slots(elf, data(FUNCDATA_ARGS_POINTER_MAPS)?, index)?;
    }
    if let Some(objects) = data(FUNCDATA_STACK_OBJECTS) {
        map.objects = stack_objects(elf, objects)?;
    }
    Some(map)
}

/// Map `index` of a `stackmap`: the number of maps and of words, then the bits of each.
fn slots(elf: &Elf, address: u64, index: u32) -> Option<Slots> {
    let head = elf.read(address, 8)?;
    let (maps, words) = (u32_at(head, 0)?, u32_at(head, 4)?);
    if words == 0 {
        return Some(Slots::default());
    }
    if index >= maps || words > MAX_WORDS {
        return None;
    }
    let bytes = u64::from(words.div_ceil(8));
    let at = address
        .checked_add(8)?
        .checked_add(bytes * u64::from(index))?;
    Some(Slots {
        words: words.into(),
        bits: elf.read(at, bytes)?.to_vec(),
    })
}

/// The number, then `off`, `size`, `_ptrdata` and `gcdataoff` of each, four bytes each.
fn stack_objects(elf: &Elf, address: u64) -> Option<Vec<(i32, u32)>> {
    let count = u64_at(elf.read(address, 8)?, 0).filter(|count| *count <= MAX_OBJECTS)?;
    let records = elf.read(address.checked_add(8)?, 16 * count)?;
    let record = |bytes: &[u8]| {
        // Negative until Go 1.22: a program in place of a mask.
        let with_pointers = (u32_at(bytes, 8)? as i32).unsigned_abs();
        Some((
            u32_at(bytes, 0)? as i32,
            with_pointers.min(u32_at(bytes, 4)?),
        ))
    };
    records.chunks_exact(16).map(record).collect()
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;
    use crate::go::{
        GoBinary,
        testing::{self, Mode},
    };

    /// `keep` has one pointer over its first call and none over its second.
    const PROGRAM: &str = r#"package main

import "runtime"

//go:noinline
func block() { runtime.Gosched() }

//go:noinline
func keep(p *[64]int, n int) int {
	block()
	n += p[0]
	block()
	return n
}

//go:noinline
func outer() int {
	var taken struct{ p *int; n [8]int }
	take(&taken)
	block()
	return *taken.p
}

//go:noinline
func take(t *struct{ p *int; n [8]int }) { t.p = new(int) }

func main() { println(keep(new([64]int), 1), outer()) }
"#;

    fn return_addresses(binary: &GoBinary, caller: &str, callee: &str) -> Vec<u64> {
        let callee = binary.function(callee).unwrap().entry;
        let caller = binary.function(caller).unwrap();
        let code = binary.code(&caller).unwrap();
        let decoder = Decoder::with_ip(64, code, caller.entry, DecoderOptions::NONE);
        let calls = decoder.into_iter().filter(|instruction| {
            instruction.is_call_near() && instruction.near_branch_target() == callee
        });
        calls.map(|call| call.next_ip()).collect()
    }

    fn pointers(slots: &Slots) -> usize {
        (0..slots.words)
            .filter(|word| slots.is_pointer(*word))
            .count()
    }

    #[test]
    fn pointers_of_frames_are_those_that_are_still_needed() {
        for toolchain in testing::toolchains() {
            for mode in Mode::all() {
                let path = testing::build(&toolchain, mode, PROGRAM);
                let bytes = std::fs::read(path).unwrap();
                let binary = GoBinary::parse(bytes.into()).unwrap().unwrap();
                let maps = |caller: &str| -> Vec<FrameMap> {
                    let calls = return_addresses(&binary, caller, "main.block").into_iter();
                    calls.map(|pc| binary.frame_map(pc).unwrap()).collect()
                };
                let found: Vec<_> = maps("main.keep")
                    .iter()
                    .map(|map| pointers(&map.locals) + pointers(&map.arguments))
                    .collect();
                assert_eq!(found, [1, 0], "{toolchain:?} {mode:?}");
                let outer = maps("main.outer");
                let [(offset, bytes)] = outer[0].objects[..] else {
                    panic!("{toolchain:?} {mode:?} {outer:?}");
                };
                assert!(offset < 0 && bytes == 8, "{offset} {bytes}");
            }
        }
    }
}
