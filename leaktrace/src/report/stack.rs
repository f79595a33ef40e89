//! Which frames belong to the allocator and not to the program.

/// Go: whether a frame at the innermost end is the runtime's way of allocating, and not a place
/// where memory is asked for.
///
/// Since Go 1.26 the sampler's stacks begin with them, before that they do not (runtime/mprof.go,
/// `mProf_Malloc`); a compiler may also call another variant for the same line. pprof leaves out
/// all innermost frames of package runtime; what the runtime allocates for itself (`runtime.malg`)
/// keeps its name here.
pub(super) fn is_go_allocator(function: &str) -> bool {
    const NAMES: [&str; 11] = [
        "runtime.(*mcache).nextFree",
        "runtime.(*mcache).allocLarge",
        "runtime.profilealloc",
        "runtime.mProf_Malloc",
        "runtime.newobject",
        "runtime.newarray",
        "runtime.growslice",
        "runtime.growsliceNoAlias",
        "runtime.slicebytetostring",
        "runtime.intstring",
        "runtime.stringtoslicebyte",
    ];
    const PREFIXES: [&str; 16] = [
        "runtime.mallocgc",
        "runtime.makeslice",
        "runtime.makemap",
        "runtime.makechan",
        "runtime.mapassign",
        "runtime.mapclone",
        "runtime.hashGrow",
        "runtime.(*hmap)",
        "runtime.raw", // rawstring, rawbyteslice, rawruneslice, …
        "runtime.concat",
        "runtime.convT",
        "runtime.stringtoslicerune",
        "runtime.slicerunetostring",
        "runtime.newobject", // and its size-specialised variants
        "runtime.moveSlice",
        "internal/runtime/maps.",
    ];
    const PUBLIC: [&str; 2] = ["reflect.unsafe_New", "reflect.unsafe_NewArray"];
    NAMES.contains(&function)
        || PUBLIC.contains(&function)
        || PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

/// Whether a mapping with these functions on its stack, innermost first, was made by the Go runtime
/// for itself: its heap's arenas and its own structures. Under cgo the runtime maps through C
/// (runtime/cgo_mmap.go), so that the innermost names are libc's.
pub(super) fn is_go_runtime_mapping<'a>(functions: impl Iterator<Item = &'a str>) -> bool {
    let mut functions = functions.peekable();
    functions
        .peek()
        .is_some_and(|innermost| innermost.starts_with("runtime."))
        || functions.any(|name| matches!(name, "runtime.mmap" | "runtime.sysMmap" | "x_cgo_mmap"))
}

/// Whether a thread, or one of Go's own stacks, begins with this function.
pub(super) fn is_thread_start(function: &str) -> bool {
    const NAMES: [&str; 4] = ["_start", "__libc_start_call_main", "start_thread", "clone3"];
    const PREFIXES: [&str; 7] = [
        "__libc_start_main",
        "__clone",
        "runtime.goexit",
        "runtime.mstart",
        "runtime.systemstack",
        "runtime.mcall",
        "runtime.rt0_go",
    ];
    NAMES.contains(&function) || PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

/// How many innermost frames of a mapping of the Go runtime's own tell what it is for: up to the
/// first function that is not a layer of the runtime's operating-system interface (runtime/mem.go,
/// mem_linux.go), as `runtime.(*mheap).grow`.
pub(super) fn go_runtime_purpose<'a>(functions: impl Iterator<Item = Option<&'a str>>) -> usize {
    let is_layer = |function: &str| {
        !function.starts_with("runtime.")
            || function.starts_with("runtime.sys")
            || function.starts_with("runtime.mmap")
            || function.starts_with("runtime.callCgo")
            || function.starts_with("runtime.systemstack")
            || function.starts_with("runtime.persistentalloc")
            || function.contains("asmcgocall")
    };
    functions
        .take_while(|function| function.is_none_or(is_layer))
        .count()
        + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocators_are_told_from_programs() {
        for function in [
            "runtime.mallocgc",
            "runtime.mallocgcSmallScanNoHeaderSC3",
            "runtime.newobject",
            "runtime.makeslice64",
            "runtime.rawbyteslice",
            "runtime.convTstring",
            "runtime.mapassign_faststr",
            "internal/runtime/maps.(*table).grow",
        ] {
            assert!(is_go_allocator(function), "{function}");
        }
        for function in [
            "main.newobject",
            "runtime.malg",
            "runtime.newproc1",
            "maps.Clone",
            "",
        ] {
            assert!(!is_go_allocator(function), "{function}");
        }
        let mapping = |functions: &[&str]| is_go_runtime_mapping(functions.iter().copied());
        assert!(mapping(&[
            "runtime.sysMmap",
            "runtime.mmap",
            "runtime.sysReserve"
        ]));
        assert!(mapping(&[
            "__GI___mmap64",
            "x_cgo_mmap",
            "runtime.mmap.func1",
            "runtime.mmap"
        ]));
        assert!(!mapping(&[
            "internal/runtime/syscall.Syscall6",
            "syscall.mmap",
            "main.main"
        ]));
        assert!(!mapping(&[
            "__GI___mmap64",
            "_cgo_f00_Cfunc_map",
            "runtime.asmcgocall.abi0"
        ]));
        assert!(!mapping(&[]));
        assert!(
            is_thread_start("__libc_start_call_main") && is_thread_start("runtime.goexit.abi0")
        );
        for function in ["main", "start_service", "_start_pool", "start_threads"] {
            assert!(!is_thread_start(function), "{function}");
        }

        let stack = [
            "runtime.sysMmap",
            "runtime.mmap",
            "runtime.sysMapOS",
            "runtime.sysMap",
            "runtime.(*mheap).grow",
            "runtime.(*mheap).allocSpan",
            "main.main",
        ];
        assert_eq!(go_runtime_purpose(stack.into_iter().map(Some)), 5);
        let cgo = [
            "mmap64",
            "x_cgo_mmap",
            "runtime.callCgoMmap",
            "runtime.mmap.func1",
            "runtime.systemstack.abi0",
            "runtime.mmap",
            "runtime.sysReserve",
            "runtime.(*mheap).sysAlloc",
        ];
        assert_eq!(go_runtime_purpose(cgo.into_iter().map(Some)), 8);
    }
}
