//! Which frames of a stack are the program's own, and which a reader can do without.
//!
//! A stack begins with the allocator and the library calls that needed memory, and ends where the thread
//! begins. What the reader changes lies between. The rules go by names and files; what they do not know
//! counts as the program's own, so that nothing of it is hidden.

use super::schema::Frame;
use super::stack::is_thread_start;

/// A stack in three parts, innermost first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Folded<'a> {
    /// The allocator, the runtime, and library calls in which memory was asked for.
    pub inner: &'a [Frame],
    /// From the first to the last frame of the program's own. The whole stack where none is.
    pub own: &'a [Frame],
    /// What called the program: servers' loops and the beginning of the thread.
    pub outer: &'a [Frame],
}

/// Folds a stack, innermost frame first.
pub fn fold(stack: &[Frame]) -> Folded<'_> {
    let first = stack.iter().position(is_own);
    let last = stack.iter().rposition(is_own);
    let (inner, own, outer) = match first.zip(last) {
        Some((first, last)) => (&stack[..first], &stack[first..=last], &stack[last + 1..]),
        None => (&stack[..0], stack, &stack[..0]),
    };
    Folded { inner, own, outer }
}

/// Whether a frame is the program's own code: not a language's runtime or standard library, an
/// allocator, or the place where a thread begins.
pub fn is_own(frame: &Frame) -> bool {
    let Some(function) = &frame.function else {
        return !frame.module.as_deref().is_some_and(is_system_library);
    };
    let file = frame.file.as_deref().unwrap_or_default();
    !(is_thread_start(function)
        || frame.module.as_deref().is_some_and(is_system_library)
        || is_go_library(function, file)
        || is_rust_library(function)
        || is_native_library(function))
}

/// The C and C++ libraries, the dynamic linker, and allocators that come as a library.
fn is_system_library(module: &str) -> bool {
    const NAMES: [&str; 14] = [
        "libc",
        "libm",
        "libpthread",
        "libdl",
        "librt",
        "libstdc++",
        "libgcc_s",
        "libc++",
        "libc++abi",
        "ld-linux-x86-64",
        "ld-musl-x86_64",
        "libjemalloc",
        "libtcmalloc",
        "libmimalloc",
    ];
    let file = module.rsplit('/').next().unwrap_or_default();
    // `libc.so.6`, `libc-2.36.so`, `ld-musl-x86_64.so.1`
    let name = file.split(".so").next().unwrap_or_default();
    let name = name.trim_end_matches(|last: char| last.is_ascii_digit() || last == '.');
    NAMES.contains(&name.trim_end_matches('-')) || module.starts_with("[vdso]")
}

/// Go's standard library and runtime: by the first element of the package path, and the file where it is
/// known, for a program may have a package `log/rotate` of its own.
fn is_go_library(function: &str, file: &str) -> bool {
    // The folders of GOROOT/src in Go 1.19 to 1.27.
    const PACKAGES: [&str; 51] = [
        "archive",
        "bufio",
        "bytes",
        "cmp",
        "compress",
        "container",
        "context",
        "crypto",
        "database",
        "debug",
        "embed",
        "encoding",
        "errors",
        "expvar",
        "flag",
        "fmt",
        "go",
        "hash",
        "html",
        "image",
        "index",
        "internal",
        "io",
        "iter",
        "log",
        "maps",
        "math",
        "mime",
        "net",
        "os",
        "path",
        "plugin",
        "reflect",
        "regexp",
        "runtime",
        "slices",
        "sort",
        "strconv",
        "strings",
        "structs",
        "sync",
        "syscall",
        "testing",
        "text",
        "time",
        "unicode",
        "unique",
        "unsafe",
        "vendor",
        "weak",
        "type:",
    ];
    let Some(package) = go_package(function) else {
        return false;
    };
    let first = package.split('/').next().unwrap_or_default();
    // In GOROOT, or as `-trimpath` has it.
    let in_place = || match file.rsplit_once('/').map(|(folder, _)| folder) {
        Some(folder) if file.ends_with(".go") => {
            folder == package || folder.ends_with(&format!("/src/{package}"))
        }
        _ => true,
    };
    PACKAGES.contains(&first) && in_place()
}

/// The package path of a Go function: `net/http` of `net/http.(*conn).serve`. None for a name that has
/// no dot, or is not Go's.
fn go_package(function: &str) -> Option<&str> {
    if function.contains("::") || function.starts_with("type:") {
        return Some("type:").filter(|_| function.starts_with("type:"));
    }
    // Type arguments have paths of their own.
    let name = function.split('[').next().unwrap_or_default();
    let after_folders = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name[after_folders..].find('.')?;
    Some(&name[..after_folders + dot])
}

/// Rust's standard library, and the glue that the compiler makes.
fn is_rust_library(function: &str) -> bool {
    const CRATES: [&str; 5] = ["std::", "core::", "alloc::", "hashbrown::", "__rust"];
    // `<alloc::vec::Vec<T> as core::iter::FromIterator<T>>::from_iter`
    let name = function.trim_start_matches(['<', '&']);
    CRATES.iter().any(|path| name.starts_with(path))
}

/// C's and C++'s ways of asking for memory, wherever they are linked in, and the C part of Go's runtime.
fn is_native_library(function: &str) -> bool {
    const NAMES: [&str; 18] = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "memalign",
        "aligned_alloc",
        "posix_memalign",
        "valloc",
        "strdup",
        "strndup",
        "mmap",
        "mmap64",
        "mremap",
        "brk",
        "sbrk",
        "sysmalloc",
        "free",
        "syscall",
    ];
    const PREFIXES: [&str; 13] = [
        "__libc_",
        "__GI_",
        "__mmap",
        "__sbrk",
        "__brk",
        "_int_",
        "operator new",
        "std::",
        "__gnu_cxx::",
        "je_",
        "tc_",
        "x_cgo_",
        "crosscall",
    ];
    NAMES.contains(&function) || PREFIXES.iter().any(|prefix| function.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, module: &str) -> Frame {
        let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Frame {
            function: known(function),
            file: known(file),
            module: known(module),
            ..Frame::default()
        }
    }

    #[test]
    fn the_program_is_told_from_the_libraries() {
        let go = "/srv/reload";
        for (function, file, module) in [
            ("main.loadTable", "/srv/src/reload/main.go", go),
            ("example.com/app/log.Rotate", "/home/a/log/rotate.go", go),
            // A package named as one of the standard library's.
            ("log/rotate.(*File).Write", "/home/a/log/rotate/file.go", go),
            ("github.com/a/b.Map[...]", "", go),
            ("load_table", "/srv/main.c", "/srv/app"),
            ("app::table::load", "/srv/src/table.rs", "/srv/app"),
            ("", "", "/srv/app"),
            ("mallocate", "", "/srv/app"),
        ] {
            assert!(is_own(&frame(function, file, module)), "{function}");
        }
        for (function, file, module) in [
            ("runtime.mallocgc", "/go/src/runtime/malloc.go", go),
            (
                "net/http.(*conn).serve",
                "/usr/lib/go-1.19/src/net/http/server.go",
                go,
            ),
            ("net/http.(*conn).serve", "net/http/server.go", go),
            ("internal/sync.newEntryNode[...]", "", go),
            ("runtime.goexit", "", go),
            ("type:.eq.main.row", "<autogenerated>", go),
            ("std::rt::lang_start", "", "/srv/app"),
            (
                "<alloc::vec::Vec<T> as core::iter::FromIterator<T>>::from_iter",
                "",
                "/srv/app",
            ),
            ("operator new(unsigned long)", "", "/srv/app"),
            ("malloc", "", "/srv/static"),
            ("x_cgo_mmap", "", go),
            ("whatever", "", "/lib/x86_64-linux-gnu/libc.so.6"),
            ("whatever", "", "/lib/x86_64-linux-gnu/libc-2.31.so"),
            ("", "", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30"),
        ] {
            assert!(
                !is_own(&frame(function, file, module)),
                "{function} {module}"
            );
        }
    }

    #[test]
    fn a_stack_folds_around_the_programs_own() {
        let stack = |functions: &[&str]| -> Vec<_> {
            functions.iter().map(|name| frame(name, "", "")).collect()
        };
        let lengths = |functions: &[&str]| {
            let stack = stack(functions);
            let folded = fold(&stack);
            (folded.inner.len(), folded.own.len(), folded.outer.len())
        };
        let callback = [
            "runtime.makeslice",
            "bytes.growSlice",
            "main.less",
            "sort.Slice",
            "main.handle",
            "net/http.(*conn).serve",
            "runtime.goexit",
        ];
        assert_eq!(lengths(&callback), (2, 3, 2));
        assert_eq!(
            lengths(&["runtime.sysMap", "runtime.(*mheap).grow"]),
            (0, 2, 0)
        );
        assert_eq!(lengths(&[]), (0, 0, 0));
    }
}
