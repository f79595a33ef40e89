//! Placement in hand-assembled functions and in the runtimes of real Go binaries.

use std::process::Command;

use iced_x86::Register::{self, RAX, RBX, RCX};

use super::*;
use crate::go::testing::{self, Mode, PPROF_PROGRAM};

const ENTRY: u64 = 0x40_1000;

fn placed(code: &[u8], keep: &[Register]) -> Placement {
    place(code, ENTRY, keep).unwrap()
}

fn refused(code: &[u8], keep: &[Register]) -> NoPlacement {
    place(code, ENTRY, keep).unwrap_err()
}

/// `cmp rsp, [r14+0x10]; jbe tail; push rbp; mov rbp, rsp; BODY; ret; tail: call; jmp entry`
fn go_function(body: &[u8]) -> Vec<u8> {
    let tail = 10 + body.len() as i64 + 2;
    let mut code = vec![
        0x49,
        0x3b,
        0x66,
        0x10,
        0x76,
        u8::try_from(tail - 6).unwrap(),
    ];
    code.extend([0x55, 0x48, 0x89, 0xe5]);
    code.extend(body);
    code.extend([0x5d, 0xc3]);
    code.extend([0xe8, 0, 1, 0, 0]);
    code.extend([0xeb, u8::try_from(256 - (tail + 7)).unwrap()]);
    code
}

#[test]
fn the_push_after_the_stack_check_is_the_place() {
    let place = placed(&go_function(&[0x90]), &[RAX, RBX]);
    assert_eq!(place.offset, 6);
    assert_eq!(place.instruction, "push rbp");
    assert_eq!(
        (place.class, place.frame),
        (Class::Push, FrameState::CallerReturnAtSp)
    );
}

#[test]
fn entry_push_of_native_code() {
    // push r12; mov rbx, rdi; ret
    let place = placed(&[0x41, 0x54, 0x48, 0x89, 0xfb, 0xc3], &[Register::RDI]);
    assert_eq!((place.offset, place.instruction.as_str()), (0, "push r12"));
    assert_eq!(place.frame, FrameState::CallerReturnAtSp);
}

#[test]
fn frame_state_follows_the_prologue() {
    // push rbp is not emulated under a REX.W prefix: 48 55
    let place = placed(&[0x48, 0x55, 0x90, 0xc3], &[]);
    assert_eq!((place.offset, place.frame), (2, FrameState::PushedRbp));
    let place = placed(&[0x48, 0x55, 0x48, 0x89, 0xe5, 0x90, 0xc3], &[]);
    assert_eq!((place.offset, place.frame), (5, FrameState::SetUp));
    // sub rsp, 0x28; mov [rsp+0x20], rbp; lea rbp, [rsp+0x20]; nop
    let old = [
        0x48, 0x83, 0xec, 0x28, 0x48, 0x89, 0x6c, 0x24, 0x20, 0x48, 0x8d, 0x6c, 0x24, 0x20, 0x90,
        0xc3,
    ];
    let place = placed(&old, &[RAX]);
    assert_eq!(
        (place.offset, place.class, place.frame),
        (14, Class::Nop, FrameState::SetUp)
    );
}

#[test]
fn a_frame_without_a_known_return_address_is_no_place() {
    // sub rsp, 0x28; nop; ret
    let refused = refused(&[0x48, 0x83, 0xec, 0x28, 0x90, 0xc3], &[]);
    assert!(matches!(refused.reason, Reason::None(..)), "{refused}");
    assert_eq!(refused.single_step.unwrap().class, Class::SingleStep);
    // lea rbp, [rsp+0x18] where rbp was stored elsewhere: not the frame chain
    let wrong = [
        0x48, 0x83, 0xec, 0x28, 0x48, 0x89, 0x6c, 0x24, 0x20, 0x48, 0x8d, 0x6c, 0x24, 0x18, 0x90,
        0xc3,
    ];
    assert!(place(&wrong, ENTRY, &[]).is_err());
}

#[test]
fn an_overwritten_argument_ends_the_search() {
    // mov eax, 1 (writes RAX); push rbp; ret
    let code = [0xb8, 1, 0, 0, 0, 0x55, 0xc3];
    assert_eq!(placed(&code, &[RBX]).offset, 5);
    let refused = refused(&code, &[RAX]);
    assert_eq!(
        refused.reason,
        Reason::None(5, "where an argument register is overwritten")
    );
    let fallback = refused.single_step.unwrap();
    assert_eq!((fallback.offset, fallback.class), (0, Class::SingleStep));
    // `xchg` and a partial write count as well
    assert!(place(&[0x48, 0x87, 0xd8, 0x55, 0xc3], ENTRY, &[RBX]).is_err());
    assert!(place(&[0xb0, 1, 0x55, 0xc3], ENTRY, &[RAX]).is_err());
}

#[test]
fn a_call_is_a_place_and_nothing_beyond_it() {
    let place = placed(&[0x48, 0x85, 0xc0, 0xe8, 0, 1, 0, 0, 0x55, 0xc3], &[RAX]);
    assert_eq!((place.offset, place.class), (3, Class::Call));
    // an indirect call is single-stepped and clobbers the registers
    let refused = refused(&[0xff, 0xd0, 0x55, 0xc3], &[]);
    assert_eq!(
        refused.reason,
        Reason::None(0, "where the path every call takes ends")
    );
}

#[test]
fn jumps_and_conditions_are_places() {
    let place = placed(&[0x48, 0x85, 0xc0, 0xeb, 1, 0x90, 0xc3], &[]);
    assert_eq!(
        (place.offset, place.class, place.instruction.as_str()),
        (3, Class::Jump, "jmp +0x6")
    );
    let place = placed(&[0x48, 0x85, 0xc0, 0x0f, 0x84, 1, 0, 0, 0, 0x90, 0xc3], &[]);
    assert_eq!(
        (place.offset, place.class, place.instruction.as_str()),
        (3, Class::Conditional, "je +0xa")
    );
}

#[test]
fn prefixed_instructions_are_not_emulated_everywhere() {
    // 66 90, f3 90 (pause), 41 90 (xchg r8, rax), 0f 1f 00, then ret
    for code in [
        &[0x66, 0x90, 0xc3][..],
        &[0xf3, 0x90, 0xc3],
        &[0x41, 0x90, 0xc3],
        &[0x0f, 0x1f, 0x00, 0xc3],
    ] {
        assert!(place(code, ENTRY, &[]).is_err(), "{code:x?}");
    }
}

#[test]
fn a_loop_over_the_place_is_refused() {
    // test; L: push rbp; pop rbp; jne L; ret
    let refused = refused(&[0x48, 0x85, 0xc0, 0x55, 0x5d, 0x75, 0xfc, 0xc3], &[]);
    assert_eq!(refused.reason, Reason::Loop(5));
    assert_eq!(refused.single_step.unwrap().offset, 0);
    // the whole function is a loop: nothing runs once
    let all = place(&[0x55, 0x5d, 0x75, 0xfc, 0xc3], ENTRY, &[]).unwrap_err();
    assert_eq!((all.reason, all.single_step), (Reason::Loop(2), None));
}

#[test]
fn a_branch_into_the_prologue_is_refused() {
    // the body jumps back to `mov rbp, rsp`, beyond the push: the push still runs once
    let body = [0x75, 0xfb];
    assert_eq!(placed(&go_function(&body), &[]).offset, 6);
    // the body jumps to the entry as well
    let refused = refused(&go_function(&[0x75, 0xf4]), &[]);
    assert_eq!(refused.reason, Reason::Loop(10));
}

#[test]
fn an_indirect_jump_forbids_places_in_the_body() {
    // push rbp under REX.W; mov rbp, rsp; nop; jmp [rcx+rdx*8]
    let refused = refused(&[0x48, 0x55, 0x48, 0x89, 0xe5, 0x90, 0xff, 0x24, 0xd1], &[]);
    assert_eq!(refused.reason, Reason::IndirectJump(6));
    // but a push before the frame is set up cannot be reached by it
    assert_eq!(
        placed(&[0x55, 0x48, 0x89, 0xe5, 0xff, 0x24, 0xd1], &[]).offset,
        0
    );
}

#[test]
fn code_that_does_not_decode_is_refused() {
    assert_eq!(refused(&[], &[]).reason, Reason::Size(0));
    assert_eq!(
        refused(&[0x55, 0x48, 0x89], &[]).reason,
        Reason::Truncated(1)
    );
    assert_eq!(refused(&[0x55, 0x06, 0xc3], &[]).reason, Reason::Invalid(1));
    // a branch into the middle of `mov eax, imm32`
    assert_eq!(
        refused(&[0x55, 0xb8, 0, 0, 0, 0, 0x75, 0xfa, 0xc3], &[]).reason,
        Reason::Overlap(6)
    );
    assert!(place(&[0xc3; 4], u64::MAX - 1, &[]).is_err());
}

proptest::proptest! {
    /// Whatever the bytes: no panic, and a place is on a boundary that decoding reaches.
    #[test]
    fn any_bytes(code: Vec<u8>, push in 0usize..8) {
        let mut code = code;
        code.insert(push.min(code.len()), 0x55);
        if let Ok(found) = place(&code, ENTRY, &[RAX]) {
            let mut decoder = Decoder::new(64, &code, DecoderOptions::NONE);
            while (decoder.position() as u64) < found.offset {
                let _ = decoder.decode();
            }
            proptest::prop_assert_eq!(decoder.position() as u64, found.offset);
        }
    }
}

/// Function, registers to keep, first minor version that has it.
const PROBED: [(&str, &[Register], u32); 7] = [
    ("runtime.setprofilebucket", &[RAX, RBX], 19),
    ("runtime.freeSpecial", &[RAX, RBX, RCX], 19),
    ("runtime.gcMarkTermination", &[], 19),
    ("runtime.profilealloc", &[RAX, RBX, RCX], 19),
    ("runtime.mProf_Malloc", &[RAX, RBX, RCX], 19),
    ("runtime.newproc1", &[RAX, RBX], 19),
    ("runtime.gdestroy", &[RAX], 22),
];

#[test]
fn real_runtimes_have_cheap_places() {
    for toolchain in testing::toolchains() {
        for mode in [Mode::Plain, Mode::Pie] {
            let binary = testing::build(&toolchain, mode, PPROF_PROGRAM);
            for (name, keep, since) in PROBED {
                let code = testing::symbol_code(&binary, name);
                assert_eq!(
                    code.is_some(),
                    toolchain.minor >= since,
                    "{name} 1.{}",
                    toolchain.minor
                );
                let Some((entry, code)) = code else { continue };
                let result = place(&code, entry, keep);
                eprintln!("go1.{} {mode:?} {name}: {result:x?}", toolchain.minor);
                if toolchain.minor <= 20 && name == "runtime.mProf_Malloc" {
                    // Its first emulated instruction is the call of duffzero, with rbp bent for it.
                    let fallback = result.unwrap_err().single_step.unwrap();
                    assert_eq!(fallback.frame, FrameState::CallerReturnAtSp);
                    continue;
                }
                let found = result.unwrap();
                if toolchain.minor >= 21 {
                    assert_eq!(found.instruction, "push rbp");
                    assert_eq!(found.frame, FrameState::CallerReturnAtSp);
                } else {
                    assert!(
                        matches!(found.class, Class::Nop | Class::Conditional),
                        "{found:?}"
                    );
                    assert_eq!(found.frame, FrameState::SetUp);
                }
                assert!(
                    objdump_boundary(&binary, name, entry + found.offset),
                    "{name} {found:?}"
                );
            }
        }
    }
}

/// Whether another disassembler has an instruction at the address.
fn objdump_boundary(binary: &std::path::Path, name: &str, address: u64) -> bool {
    let output = Command::new("objdump")
        .arg("-d")
        .arg(format!("--disassemble={name}"))
        .arg(binary)
        .output();
    match output {
        Ok(output) => {
            let line = format!("{address:x}:\t");
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .any(|l| l.trim_start().starts_with(&line))
        }
        Err(_) => true,
    }
}

/// Every function of a program: what is placed is an instruction of objdump's, and the search
/// gives up on none of them for want of decoding.
#[test]
fn every_function_is_decoded_to_the_same_boundaries() {
    let toolchains = testing::toolchains();
    for toolchain in toolchains.first().into_iter().chain(toolchains.last()) {
        let binary = testing::build(toolchain, Mode::Plain, PPROF_PROGRAM);
        let Ok(output) = Command::new("objdump")
            .args(["-d", "--no-show-raw-insn"])
            .arg(&binary)
            .output()
        else {
            eprintln!("skipped: objdump is not installed");
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut boundaries = std::collections::HashMap::new();
        for line in text.lines() {
            let Some((address, text)) = line.split_once(":\t") else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address.trim(), 16) else {
                continue;
            };
            boundaries.insert(
                address,
                text.split(' ').next().unwrap_or_default().to_owned(),
            );
        }
        let mut counts = std::collections::BTreeMap::new();
        for (name, entry, code) in testing::functions(&binary) {
            let found = match place(&code, entry, &[RAX, RBX]) {
                Ok(found) => Some(found),
                Err(error) => {
                    let undecoded = matches!(
                        error.reason,
                        Reason::Invalid(_) | Reason::Truncated(_) | Reason::Overlap(_)
                    );
                    assert!(!undecoded, "{name}: {error}");
                    error.single_step
                }
            };
            *counts
                .entry(found.as_ref().map(|found| format!("{:?}", found.class)))
                .or_insert(0) += 1;
            let Some(found) = found else { continue };
            let theirs = &boundaries[&(entry + found.offset)];
            let ours = found.instruction.split(' ').next().unwrap();
            if found.class != Class::SingleStep && found.class != Class::Conditional {
                assert_eq!(ours, theirs, "{name} {found:?}");
            }
        }
        eprintln!("go1.{}: {counts:?}", toolchain.minor);
    }
}
