//! Frame tables of real files against gimli's own evaluation, and of damaged copies of them.

use std::{fs, path::PathBuf, process::Command};

use gimli::{
    CfaRule, Encoding, EvaluationResult, Format, Location, Register, RegisterRule,
    UnwindExpression, Value, X86_64,
};
use leaktrace_common::{
    RULE_AT_BP, RULE_BP, RULE_END, RULE_FRAME_POINTER, RULE_SIGNAL, RULE_SP, RULE_UNKNOWN,
};

use super::*;

const ROOM: usize = 1 << 22;

fn libc() -> Vec<u8> {
    fs::read("/lib/x86_64-linux-gnu/libc.so.6").expect("glibc of a Debian-like machine")
}

fn table(image: &[u8]) -> FrameTable {
    FrameTable::new(image, &[], ROOM).expect("a file with call frame information")
}

/// Registers before and after a frame is left; memory is what [`memory`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    sp: u64,
    bp: u64,
    ip: u64,
}

/// What is stored at an address: something that depends on it.
fn memory(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// What the kernel side makes of a rule (`leaktrace-ebpf/src/unwind.rs`); `None` at the end of the stack.
fn leave(rule: FrameRule, before: Registers) -> Option<Registers> {
    let offset = i64::from(rule.cfa);
    let cfa = match rule.kind {
        RULE_SP => before.sp.wrapping_add_signed(offset),
        RULE_BP => before.bp.wrapping_add_signed(offset),
        RULE_AT_BP => memory(before.bp.wrapping_add_signed(offset)),
        RULE_SIGNAL => {
            return Some(Registers {
                sp: memory(before.sp + 160),
                bp: memory(before.sp + 120),
                ip: memory(before.sp + 168),
            });
        }
        RULE_END => return None,
        kind => panic!("rule {kind} is none of call frame information"),
    };
    let bp = match (rule.kind, rule.saved_bp) {
        (RULE_AT_BP, _) => memory(before.bp),
        (_, 0) => before.bp,
        (_, saved) => memory(cfa.wrapping_add_signed(saved.into())),
    };
    let ip = memory(cfa.wrapping_sub(8));
    Some(Registers { sp: cfa, bp, ip })
}

/// What the call frame information itself says, by gimli's interpreter.
struct Reference<'a> {
    frames: &'a Frames<'a>,
    row: &'a gimli::UnwindTableRow<usize>,
}

impl Reference<'_> {
    fn leave(&self, before: Registers) -> Option<Registers> {
        let value = |register: Register| match register {
            X86_64::RSP => before.sp,
            X86_64::RBP => before.bp,
            X86_64::RA => before.ip,
            other => panic!("{other:?} is not known"),
        };
        let cfa = match self.row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                value(*register).wrapping_add_signed(*offset)
            }
            CfaRule::Expression(expression) => self.evaluate(expression, None, value),
        };
        let caller = |register, same| match self.row.register(register) {
            None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => same,
            Some(RegisterRule::Offset(offset)) => Some(memory(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::Expression(at)) => {
                Some(memory(self.evaluate(&at, Some(cfa), value)))
            }
            other => panic!("{other:?}"),
        };
        Some(Registers {
            sp: caller(X86_64::RSP, Some(cfa))?,
            bp: caller(X86_64::RBP, Some(before.bp))?,
            ip: caller(X86_64::RA, None)?,
        })
    }

    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        cfa: Option<u64>,
        register: impl Fn(Register) -> u64,
    ) -> u64 {
        const ENCODING: Encoding = Encoding {
            address_size: 8,
            format: Format::Dwarf32,
            version: 5,
        };
        let expression = expression.get(&self.frames.eh_frame).unwrap();
        let mut evaluation = expression.evaluation(ENCODING);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        let mut state = evaluation.evaluate().unwrap();
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register: name, .. } => {
                    evaluation.resume_with_register(Value::Generic(register(name)))
                }
                EvaluationResult::RequiresMemory { address, .. } => {
                    evaluation.resume_with_memory(Value::Generic(memory(address)))
                }
                other => panic!("{other:?}"),
            }
            .unwrap();
        }
        match evaluation.result()[0].location {
            Location::Address { address } => address,
            ref other => panic!("{other:?}"),
        }
    }
}

/// Compares the table with the interpreter for every row of every function; gives how many were compared,
/// and how many rows are of an unknown form.
fn compare(image: &[u8]) -> (u64, u64) {
    let table = table(image);
    let elf = Elf::parse(image).unwrap();
    let code = Code::of(&elf);
    let frames = Frames::new(&elf).unwrap();
    let (mut compared, mut unknown) = (0, 0);
    let mut context = UnwindContext::new();
    let mut entries = frames.eh_frame.entries(&frames.bases);
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        let Some((start, _)) = code.find(fde.initial_address()) else {
            continue;
        };
        let mut rows = fde
            .rows(&frames.eh_frame, &frames.bases, &mut context)
            .unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let ips = [row.start_address(), row.end_address() - 1];
            let reference = Reference {
                frames: &frames,
                row,
            };
            for ip in ips.into_iter().filter(|ip| row.contains(*ip)) {
                let offset = start + (ip - fde.initial_address()) as u32;
                let rule = table
                    .rule(offset)
                    .expect("code with information has a rule");
                assert_ne!(rule.kind, RULE_FRAME_POINTER, "{ip:#x}");
                if rule.kind == RULE_UNKNOWN {
                    unknown += 1;
                    continue;
                }
                let before = Registers {
                    sp: 0x7ffd_0000_1000,
                    bp: 0x7ffd_0000_2000,
                    ip,
                };
                assert_eq!(
                    leave(rule, before),
                    reference.leave(before),
                    "{ip:#x} {rule:?}"
                );
                compared += 1;
            }
        }
    }
    (compared, unknown)
}

#[test]
fn every_rule_is_what_the_interpreter_finds() {
    // libc has procedure linkage, a signal frame, realigned stacks and the ends of stacks; the others are
    // large.
    let own = std::env::current_exe().unwrap();
    for path in [
        PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
        own,
        compiler(),
    ] {
        let (compared, unknown) = compare(&fs::read(&path).unwrap());
        assert!(compared > 20_000, "{}: {compared}", path.display());
        // Assembly that keeps the stack pointer in some other register.
        assert!(
            unknown * 1000 < compared,
            "{}: {unknown} of {compared}",
            path.display()
        );
    }
}

/// The library that is the Rust compiler: 150 MB, a million rows.
fn compiler() -> PathBuf {
    let sysroot = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    let libraries = PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim()).join("lib");
    let mut libraries = fs::read_dir(libraries)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| path.to_str().unwrap().contains("/librustc_driver-");
    libraries.find(is_it).expect("the compiler's own library")
}

#[test]
fn what_libc_has_is_there() {
    let image = libc();
    let table = table(&image);
    let kinds: Vec<u16> = table.rows.iter().map(|row| row.at >> 12).collect();
    for kind in [RULE_SP, RULE_BP, RULE_SIGNAL, RULE_END, RULE_UNKNOWN] {
        assert!(kinds.contains(&u16::from(kind)), "{kind}");
    }
}

#[test]
fn pages_stand_for_themselves() {
    let table = table(&libc());
    let mut next = 0;
    for page in &table.pages {
        assert_eq!(page.first, next);
        assert!((1..=UNWIND_PAGE).contains(&page.rows));
        next += page.rows;
        let rows = &table.rows[page.first as usize..next as usize];
        let offsets: Vec<u16> = rows.iter().map(|row| row.at & 0xfff).collect();
        assert_eq!(offsets[0], 0, "{page:?}");
        assert!(offsets.is_sorted_by(|a, b| a < b), "{page:?}");
    }
    assert_eq!(next as usize, table.rows.len());
    assert!(table.pages.is_sorted_by(|a, b| a.number < b.number));
}

/// What the instructions from the entry to a place did to the stack, for straight code:
/// pushes and `sub $…,%rsp`. An independent reading, by the instructions and not by the CFI.
fn by_decoding(code: &[u8]) -> FrameRule {
    use iced_x86::{Code, Decoder, DecoderOptions, Register};
    let mut rule = FrameRule::sp(8, 0);
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).iter() {
        match instruction.code() {
            Code::Push_r64 => {
                rule.cfa += 8;
                if instruction.op0_register() == Register::RBP {
                    rule.saved_bp = -rule.cfa as i16;
                }
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
                if instruction.op0_register() == Register::RSP =>
            {
                rule.cfa += instruction.immediate(1) as i32;
            }
            _ => {}
        }
    }
    rule
}

#[test]
fn libc_wrappers_are_left_as_their_instructions_say() {
    use object::ObjectSymbol as _;
    let image = libc();
    let table = table(&image);
    let elf = Elf::parse(image.as_slice()).unwrap();
    for name in ["mmap", "munmap", "mremap", "brk"] {
        let symbol = elf
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok(name));
        let symbol = symbol.unwrap();
        // libc's text has the same address and file offset.
        let start = symbol.address() as usize;
        let code = &image[start..start + symbol.size() as usize];
        let syscall = code.windows(2).position(|window| window == [0x0f, 0x05]);
        let after = syscall.unwrap() + 2;
        let rule = table.rule((start + after) as u32);
        assert_eq!(rule, Some(by_decoding(&code[..after])), "{name}");
    }
}

#[test]
fn single_rules_come_before_the_file() {
    let image = libc();
    let plain = table(&image);
    let rule = FrameRule::of_kind(leaktrace_common::RULE_CHANGED_STACKS);
    // libc's text has the same address and file offset.
    let first = plain.pages[1].number * UNWIND_PAGE;
    let rules: Vec<_> = [1, 0x80, 0x81, 0x1000]
        .map(|at| (u64::from(first + at), rule))
        .into();
    let table = FrameTable::new(&image, &rules, ROOM).unwrap();
    for offset in first - 16..first + 0x1010 {
        let is_single = rules
            .iter()
            .any(|(address, _)| *address == u64::from(offset) + 1);
        let expected = if is_single {
            Some(rule)
        } else {
            plain.rule(offset)
        };
        assert_eq!(table.rule(offset), expected, "{offset:#x}");
    }
}

#[test]
fn more_rows_than_there_is_room_for_are_refused() {
    let image = libc();
    let rows = table(&image).rows.len();
    assert!(FrameTable::new(&image, &[], rows).is_ok());
    for room in [0, 1, rows / 2, rows - 1] {
        let refused = FrameTable::new(&image, &[], room);
        assert_eq!(refused, Err(NoFrameTable::TooLarge), "{room}");
    }
}

#[test]
fn damaged_files_are_no_danger() {
    let image = libc();
    for len in (0..image.len()).step_by(image.len() / 40) {
        let _ = FrameTable::new(&image[..len], &[], ROOM);
    }
    let elf = Elf::parse(image.as_slice()).unwrap();
    let section = elf.section_by_name(".eh_frame").unwrap();
    let (start, size) = section.file_range().unwrap();
    for at in (start..start + size).step_by(size as usize / 40) {
        for byte in [0xff, 0x80, 0] {
            let mut image = image.clone();
            image[at as usize..at as usize + 16].fill(byte);
            let _ = FrameTable::new(&image, &[], ROOM);
        }
    }
    for no_elf in [&b""[..], b"no ELF"] {
        let refused = FrameTable::new(no_elf, &[], ROOM);
        assert!(matches!(refused, Err(NoFrameTable::Elf(_))));
    }
}

/// Rewrites the addresses in the section headers and in the segments: nothing may overflow.
#[test]
fn sections_at_the_end_of_the_address_space_are_no_danger() {
    let image = libc();
    let u64_at = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let headers = u64_at(0x28) as usize; // e_shoff
    let count = u16::from_le_bytes([image[0x3c], image[0x3d]]); // e_shnum
    let segments = u64_at(0x20) as usize; // e_phoff
    for address in [u64::MAX, u64::MAX - 0x10_0000, 1 << 63, u64::from(u32::MAX)] {
        let mut lying = image.clone();
        for header in (0..usize::from(count)).map(|i| headers + i * 64) {
            lying[header + 16..header + 24].copy_from_slice(&address.to_le_bytes()); // sh_addr
        }
        let _ = FrameTable::new(&lying, &[], ROOM);
        for field in [8, 16, 32] {
            // p_offset, p_vaddr, p_filesz
            let mut lying = image.clone();
            for header in (0..usize::from(image[0x38])).map(|i| segments + i * 56 + field) {
                lying[header..header + 8].copy_from_slice(&address.to_le_bytes());
            }
            let _ = FrameTable::new(&lying, &[(address, FrameRule::sp(8, 0))], ROOM);
        }
    }
}
