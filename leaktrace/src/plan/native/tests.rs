use std::{fs, path::Path};

use object::{Endianness, Object as _, ObjectSymbol as _, RelocationFlags, read::elf::ElfFile64};

use super::*;
use crate::go::FoundBy;

/// A library of this machine, mapped as a loader would; `None` where there is none of that name.
fn library(path: &str) -> Option<NativeObject> {
    let image = Bytes::from(fs::read(path).ok()?);
    let size = image.len() as u64;
    Some(NativeObject {
        path: path.to_owned(),
        open_path: path.into(),
        image,
        mappings: vec![(0x7f00_0000_0000, 0x7f00_0000_0000 + size, 0)],
    })
}

fn plan_for(
    path: &str,
    uretprobes: Result<(), String>,
    sessions: bool,
) -> (Vec<Uprobe>, Vec<Limit>) {
    let objects = Vec::from_iter(library(path));
    assert!(!objects.is_empty(), "`{path}` is part of every Debian");
    probes(&NativeFacts {
        objects,
        uretprobes,
        sessions,
    })
}

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

fn of<'a>(
    probes: &'a [Uprobe],
    program: &'a str,
    function: &'a str,
) -> impl Iterator<Item = &'a Uprobe> {
    let is_it = move |probe: &&Uprobe| probe.program == program && probe.function == function;
    probes.iter().filter(is_it)
}

#[test]
fn the_c_library_is_probed_where_it_is_cheap() {
    let (probes, limits) = plan_for(LIBC, Ok(()), false);
    assert_eq!(limits, []);
    // What is freed comes first, or a block could be born before its death can be seen.
    assert_eq!(probes[0].program, "malloc_free");
    for function in [
        "malloc",
        "calloc",
        "realloc",
        "memalign",
        "posix_memalign",
        "valloc",
        "pvalloc",
    ] {
        let enter: Vec<_> = of(&probes, "malloc_enter", function).collect();
        assert_eq!(enter.len(), 1, "`{function}`");
        let probe = enter[0];
        assert_ne!(probe.class, Class::SingleStep, "{probe:?}");
        assert_eq!(probe.found_by, FoundBy::Dynsym);
        assert_eq!(probe.calls.len(), 1);
        assert_eq!(probe.calls[0].0, probe.address);
        assert_eq!(probe.calls[0].1.function + probe.offset, probe.address);
        assert_eq!(of(&probes, "malloc_returned", function).count(), 1);
    }
    let free: Vec<_> = of(&probes, "malloc_free", "free").collect();
    assert_eq!(free.len(), 1);
    assert_ne!(free[0].class, Class::SingleStep, "{:?}", free[0]);
    // What glibc gives back when a thread ends was freed before.
    let again = free[0].calls.iter();
    let again = again.filter(|(_, call)| call.action == ALLOCATOR_FREE_AGAIN);
    assert!(again.count() > 0);
    // Names for the same function are probed once.
    assert_eq!(of(&probes, "malloc_enter", "aligned_alloc").count(), 0);
    assert_eq!(of(&probes, "malloc_free", "cfree").count(), 0);
}

#[test]
fn without_uretprobes_every_ret_is_probed() {
    let (probes, limits) = plan_for(LIBC, Err("there is a filter".to_owned()), true);
    assert_eq!(limits, []);
    // `calloc` may leave it to `memset` to return the block.
    assert!(of(&probes, "malloc_fill", "calloc").count() > 0);
    assert!(of(&probes, "malloc_return", "calloc").count() > 0);
    assert_eq!(of(&probes, "malloc_returned", "malloc").count(), 0);
    let returns: Vec<_> = of(&probes, "malloc_return", "malloc").collect();
    assert!(!returns.is_empty());
    // Functions may share a `ret`: it is probed once.
    let places: HashSet<_> = probes.iter().map(|p| (p.program, p.address)).collect();
    assert_eq!(places.len(), probes.len());
    for probe in returns {
        assert_eq!(
            (probe.instruction.as_str(), probe.class),
            ("ret", Class::SingleStep)
        );
        assert_eq!(probe.code[probe.offset as usize], 0xc3, "{probe:?}");
    }
}

/// `operator new` of libstdc++ calls `malloc`, which is probed where it is.
#[test]
fn what_only_hands_on_is_left_out() {
    let path = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";
    if Path::new(path).exists() {
        let (probes, limits) = plan_for(path, Ok(()), false);
        let names: Vec<_> = probes.iter().map(|probe| probe.function).collect();
        assert!(
            !names.contains(&"_Znwm") && !names.contains(&"_ZdlPv"),
            "{names:?}"
        );
        assert_eq!(limits, []);
    }
}

#[test]
fn what_is_no_object_file_has_no_probes() {
    let object = NativeObject {
        path: "junk".to_owned(),
        open_path: "junk".into(),
        image: Bytes::from_static(b"\x7fELF and no more"),
        mappings: vec![(0x1000, 0x2000, 0)],
    };
    let (probes, limits) = probes(&NativeFacts {
        objects: vec![object],
        uretprobes: Ok(()),
        sessions: true,
    });
    assert_eq!((probes.len(), limits.len()), (0, 0));
}

#[test]
fn one_probe_sees_both_ends_of_a_call_where_it_may_leave_the_second_out() {
    let (probes, limits) = plan_for(LIBC, Ok(()), true);
    assert_eq!(limits, []);
    for function in ["malloc", "calloc", "realloc"] {
        let calls: Vec<_> = of(&probes, "malloc_call", function).collect();
        assert_eq!(calls.len(), 1, "`{function}`");
        let [(address, call)] = calls[0].calls[..] else {
            panic!("{:?}", calls[0]);
        };
        assert_eq!(address, calls[0].address);
        assert_eq!(call.action & ALLOCATOR_URETPROBE, ALLOCATOR_URETPROBE);
        assert_eq!(of(&probes, "malloc_enter", function).count(), 0);
        assert_eq!(of(&probes, "malloc_returned", function).count(), 0);
        // Of no other function is it known which block it will give.
        assert_eq!(call.cache != 0, function == "malloc", "{call:?}");
    }
    // It is found in a slot which the dynamic linker fills with how far a variable lies from the thread pointer.
    let malloc = of(&probes, "malloc_call", "malloc").next().unwrap();
    let image = fs::read(LIBC).unwrap();
    let elf = ElfFile64::<Endianness>::parse(&*image).unwrap();
    let mut symbols = elf.dynamic_symbols();
    let symbol = symbols.find(|symbol| symbol.name() == Ok("malloc"));
    let moved = malloc.calls[0].1.function - symbol.unwrap().address();
    let mut relocations = elf.dynamic_relocations().unwrap();
    let slot = relocations.find(|(slot, _)| slot + moved == malloc.calls[0].1.cache as u64);
    let flags = slot.expect("a slot").1.flags();
    let r_type = object::elf::R_X86_64_TPOFF64;
    assert_eq!(flags, RelocationFlags::Elf { r_type });
}
