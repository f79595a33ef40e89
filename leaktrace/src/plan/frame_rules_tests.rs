//! Frame rules of the system's own libc, and of damaged copies of it.

use std::fs;

use super::*;

fn libc() -> Vec<u8> {
    fs::read("/lib/x86_64-linux-gnu/libc.so.6").expect("glibc of a Debian-like machine")
}

/// The rule that is in force after each instruction `wanted` in the function `name`, with
/// the bytes of the function before it.
fn rules_in(image: &[u8], name: &str) -> Vec<(u64, FrameRule, Vec<u8>)> {
    use object::ObjectSymbol as _;
    let elf = ElfFile64::<object::LittleEndian>::parse(image).unwrap();
    let symbol = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok(name))
        .unwrap();
    // libc's text has the same address and file offset.
    let start = symbol.address();
    let rules = frame_rules(image, Reach::SystemCalls).unwrap().rules;
    rules
        .range(start..start + symbol.size())
        .map(|(&at, &rule)| {
            let before = image[start as usize..at as usize].to_vec();
            (at - start, rule, before)
        })
        .collect()
}

/// What the instructions from the entry to a place did to the stack, for straight code:
/// pushes and `sub $…,%rsp`. An independent reading, by the instructions and not by the CFI.
fn by_decoding(code: &[u8]) -> FrameRule {
    use iced_x86::{Code, Decoder, DecoderOptions, Register};
    let mut rule = FrameRule {
        cfa: 8,
        saved_bp: 0,
    };
    for instruction in Decoder::new(64, code, DecoderOptions::NONE).iter() {
        match instruction.code() {
            Code::Push_r64 => {
                rule.cfa += 8;
                if instruction.op0_register() == Register::RBP {
                    rule.saved_bp = -rule.cfa;
                }
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32
                if instruction.op0_register() == Register::RSP =>
            {
                rule.cfa += instruction.immediate(1) as i32;
            }
            // The end of a way out: what follows is entered from before it, by a jump.
            Code::Pop_r64 => {
                rule.cfa -= 8;
                if instruction.op0_register() == Register::RBP {
                    rule.saved_bp = 0;
                }
            }
            _ => {}
        }
    }
    rule
}

#[test]
fn libc_wrappers_are_left_as_their_instructions_say() {
    let image = libc();
    for name in ["mmap", "munmap", "mremap", "brk"] {
        let rules = rules_in(&image, name);
        assert!(!rules.is_empty(), "{name} has no rule");
        let (at, rule, before) = &rules[0];
        assert!(before.ends_with(&[0x0f, 0x05]), "{name}+{at:#x}");
        assert_eq!(*rule, by_decoding(before), "{name}+{at:#x}");
    }
    // A leaf keeps its return address at the top; a variadic function makes room first.
    let cfa = |name| rules_in(&image, name)[0].1.cfa;
    assert_eq!((cfa("munmap"), cfa("brk")), (8, 8));
    assert!(cfa("mremap") > 8);
    // brk's caller has rbp for itself: it must be found again.
    let (at, rule, before) = &rules_in(&image, "sbrk")[0];
    assert_eq!(*rule, by_decoding(before), "sbrk+{at:#x}");
    assert!(rule.saved_bp < -8, "{rule:?}");
    // malloc → … → sbrk.
    assert!(!rules_in(&image, "malloc").is_empty());
}

#[test]
fn every_rule_keeps_the_stack_aligned() {
    let rules = frame_rules(&libc(), Reach::SystemCalls).unwrap();
    assert_eq!(rules.left_out, 0);
    for (at, rule) in rules.rules {
        assert!(rule.cfa >= 8 && rule.cfa % 8 == 0, "{at:#x} {rule:?}");
        assert!(
            rule.saved_bp <= 0 && rule.saved_bp >= -rule.cfa,
            "{at:#x} {rule:?}"
        );
    }
}

#[test]
fn all_calls_have_a_rule_where_that_is_wanted() {
    let image = libc();
    let few = frame_rules(&image, Reach::SystemCalls).unwrap().rules;
    let many = frame_rules(&image, Reach::AllCalls).unwrap();
    for (at, rule) in &few {
        assert_eq!(many.rules.get(at), Some(rule), "{at:#x}");
    }
    assert!(many.rules.len() > few.len(), "{}", many.rules.len());
    assert!(many.rules.len() <= MAX_RULES);
}

#[test]
fn damaged_files_are_no_danger() {
    let image = libc();
    for len in (0..image.len()).step_by(image.len() / 40) {
        let _ = frame_rules(&image[..len], Reach::AllCalls);
    }
    let elf = ElfFile64::<object::LittleEndian>::parse(image.as_slice()).unwrap();
    let section = elf.section_by_name(".eh_frame").unwrap();
    let (start, size) = section.file_range().unwrap();
    for at in (start..start + size).step_by(size as usize / 40) {
        let mut image = image.clone();
        image[at as usize..at as usize + 16].fill(0xff);
        let _ = frame_rules(&image, Reach::SystemCalls);
    }
    for no_elf in [&b""[..], b"no ELF"] {
        assert!(matches!(
            frame_rules(no_elf, Reach::SystemCalls),
            Err(NoRules::Elf(_))
        ));
    }
}

/// Rewrites the addresses in the section headers: nothing may overflow.
#[test]
fn sections_at_the_end_of_the_address_space_are_no_danger() {
    let image = libc();
    let u64_at = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let headers = u64_at(0x28) as usize; // e_shoff
    let count = u16::from_le_bytes([image[0x3c], image[0x3d]]); // e_shnum
    let segments = u64_at(0x20) as usize; // e_phoff
    for address in [u64::MAX, u64::MAX - 0x10_0000, 1 << 63] {
        let mut lying = image.clone();
        for header in (0..usize::from(count)).map(|i| headers + i * 64) {
            lying[header + 16..header + 24].copy_from_slice(&address.to_le_bytes()); // sh_addr
        }
        let _ = frame_rules(&lying, Reach::AllCalls);
        // And segments that lie at the end of the file's own offsets.
        let mut lying = image.clone();
        for header in (0..usize::from(image[0x38])).map(|i| segments + i * 56) {
            lying[header + 8..header + 16].copy_from_slice(&address.to_le_bytes()); // p_offset
        }
        let _ = frame_rules(&lying, Reach::AllCalls);
    }
}

/// Code that is nothing but calls to one function: no more than the bound, the rest counted.
#[test]
fn more_calls_than_are_kept_are_counted() {
    let mut bytes = vec![0xb8, 9, 0, 0, 0, 0x0f, 0x05, 0xc3];
    let calls = MAX_RULES + 100;
    for _ in 0..calls {
        let displacement = -(bytes.len() as i32 + 5);
        bytes.push(0xe8);
        bytes.extend(displacement.to_le_bytes());
    }
    let end = bytes.len() as u64;
    let code = [Code {
        address: 0,
        bytes: &bytes,
    }];
    let functions = BTreeMap::from([(0, (8, 0usize.into())), (8, (end, 0usize.into()))]);
    let places = places(&code, &functions, &system_calls(&code), HashSet::new());
    assert_eq!(places.list.len(), MAX_RULES);
    assert_eq!(places.left_out, 101, "the system call itself took one");
    assert!(!places.list[0].is_return && places.list[0].address == 7);
}
