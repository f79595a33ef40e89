//! Builds leaktrace and the programs it is tried on.
//!
//! The programs are in `target/targets`, or where `LEAKTRACE_TARGETS` points, by these names:
//!
//! | name | what |
//! |---|---|
//! | `reload-GO`, `pipeline-GO`, `objects-GO`, `churn-GO`, `retain-GO` | built with that release of Go, as in `reload-1.27.3`; the heap sampler is linked in and on |
//! | `…-MODE` | `reload` in another build mode: those of [`MODES`]; of the others only `…-stripped` |
//! | `mixed-GO-MODE` | half C, half Go, in the modes of [`C_MODES`] |
//! | `blocked-GO-nopprof`, `blocked-GO-stripped` | a goroutine for each way of waiting; no sampler in either |
//! | `…-nopprof` | `reload`, `pipeline` and `churn` without the sampler: `runtime.MemProfileRate` is 0 |
//! | `vm`, `rates` | `tests/targets/c/vm.c` and `rates.c` |
//! | `allocs`, `allocs-static`, `allocs-musl`, `allocs-musl-dynamic` | `tests/targets/native/allocs.c` with glibc, with glibc inside, with musl inside, with musl as a library |
//! | `sizes`, `pairs`, `turnover`, `surge`, `forks`, `hoard`, `steady`, `cache` | `tests/targets/native/sizes.c`, and so on |
//! | `operators`, `libhidden.so` | `tests/targets/native/operators.cpp`, and `hidden.c`: an allocator whose returns cannot be found |
//! | `rusty` | `tests/targets/rust/rusty`, with jemalloc inside |
//! | `stacks`, `libplugin.so` | `tests/targets/cpp`: optimized, without frame pointers, stripped; their debug information is in `debug/` |
//! | `kept`, `kept-sanitized` | `tests/targets/native/kept.c`: blocks that are lost or kept in each way; with LeakSanitizer |
//! | `stacks-rust` | `tests/targets/rust/stacks.rs`: the same of a Rust program, not stripped |
//!
//! `GO` is 1.27.3 and 1.19.8 for the tests, 1.27.3 for the demo, and every release of `go.rs` after
//! `cargo xtask build --full` and `test --full`. leaktrace itself is where `LEAKTRACE_BIN` says, else
//! `target/x86_64-unknown-linux-gnu/release/leaktrace`. `cargo xtask test` sets both variables.

use std::{fs, path::Path, process::Command, time::SystemTime};

use anyhow::{Context as _, Result};

use crate::{go, run, setup::Scope, workspace};

/// How a Go program is built and linked.
#[derive(Clone, Copy)]
struct Mode {
    /// As in the binary's name and in `LEAKTRACE_GO_MODES`; nothing for the plain one.
    name: &'static str,
    /// Arguments of `go build`.
    arguments: &'static [&'static str],
    /// With C code, by cgo, compiled so.
    cgo: Option<&'static str>,
}

/// As cgo itself has it.
const CFLAGS: &str = "-g -O2";

const PLAIN: Mode = Mode {
    name: "",
    arguments: &[],
    cgo: None,
};
const STRIPPED: Mode = Mode {
    name: "stripped",
    arguments: &["-ldflags=-s -w"],
    cgo: None,
};
const MODES: [Mode; 5] = [
    PLAIN,
    STRIPPED,
    Mode {
        name: "pie",
        arguments: &["-buildmode=pie"],
        cgo: None,
    },
    CGO,
    STATIC,
];
const CGO: Mode = Mode {
    name: "cgo",
    arguments: &[],
    cgo: Some(CFLAGS),
};
/// Without cgo a Go program is static anyway; this one has libc inside.
const STATIC: Mode = Mode {
    name: "static",
    arguments: &["-ldflags=-linkmode=external -extldflags=-static"],
    cgo: Some(CFLAGS),
};
/// How C code can be built, for what its stacks look like then.
const C_MODES: [Mode; 5] = [
    CGO,
    STATIC,
    Mode {
        name: "pie",
        arguments: &["-buildmode=pie"],
        cgo: Some(CFLAGS),
    },
    Mode {
        name: "framepointers",
        arguments: &[],
        cgo: Some("-g -O2 -fno-omit-frame-pointer"),
    },
    // Neither frame pointers nor call frame information.
    Mode {
        name: "bare",
        arguments: &[],
        cgo: Some("-g -O2 -fno-asynchronous-unwind-tables"),
    },
];

/// A sample program, a folder of `tests/targets/go`.
struct Program {
    name: &'static str,
    modes: &'static [Mode],
    /// The modes in which it is also built without the heap sampler.
    without_sampler: &'static [Mode],
}

const PROGRAMS: [Program; 7] = [
    Program {
        name: "reload",
        modes: &MODES,
        without_sampler: &MODES,
    },
    Program {
        name: "pipeline",
        modes: &[PLAIN, STRIPPED],
        without_sampler: &[PLAIN],
    },
    Program {
        name: "objects",
        modes: &[PLAIN, STRIPPED],
        without_sampler: &[],
    },
    Program {
        name: "churn",
        modes: &[PLAIN, STRIPPED],
        without_sampler: &[PLAIN],
    },
    Program {
        name: "mixed",
        modes: &C_MODES,
        without_sampler: &[],
    },
    Program {
        name: "retain",
        modes: &[PLAIN, STRIPPED],
        without_sampler: &[],
    },
    Program {
        name: "blocked",
        modes: &[STRIPPED],
        without_sampler: &[PLAIN],
    },
];

/// Builds the sample programs that `scope` needs and that are older than their sources.
///
/// # Errors
///
/// When a compiler fails.
pub(crate) fn build(scope: Scope) -> Result<()> {
    let out = workspace::targets();
    fs::create_dir_all(&out).with_context(|| format!("failed to create `{}`", out.display()))?;
    for version in scope.go_versions() {
        for program in &PROGRAMS {
            // The demo and the bench take the plain ones.
            let is_needed = |mode: &&Mode| scope >= Scope::Test || mode.name.is_empty();
            for mode in program.modes.iter().filter(is_needed) {
                build_go(version, program.name, mode, true, &out)?;
            }
            for mode in program.without_sampler.iter().filter(is_needed) {
                build_go(version, program.name, mode, false, &out)?;
            }
        }
    }
    if scope >= Scope::Test {
        build_c("vm", &out)?;
        build_c("rates", &out)?;
        build_rust("rusty", &out)?;
        NATIVE
            .iter()
            .try_for_each(|native| build_native(native, &out))?;
        build_cpp("stacks.cpp", "stacks", &["-pthread"], &out)?;
        build_cpp("plugin.cpp", "libplugin.so", &["-fPIC", "-shared"], &out)?;
        build_rust_file("stacks", "stacks-rust", &out)?;
    }
    Ok(())
}

fn build_go(
    version: go::Version,
    program: &str,
    mode: &Mode,
    has_sampler: bool,
    out: &Path,
) -> Result<()> {
    let sources = workspace::root().join("tests/targets/go").join(program);
    let mut name = format!("{program}-{}", version.number);
    for part in [mode.name, if has_sampler { "" } else { "nopprof" }] {
        if !part.is_empty() {
            name = format!("{name}-{part}");
        }
    }
    let binary = out.join(name);
    if is_newer(&binary, &sources)? {
        return Ok(());
    }
    let mut tags = Vec::from_iter(has_sampler.then_some("pprof"));
    if mode.cgo.is_some() {
        // The resolver and the user database in Go: those of libc cannot be linked statically.
        tags.extend(["netgo", "osusergo"]);
    }
    let mut go = version.build()?;
    go.current_dir(&sources)
        .arg("-buildvcs=false")
        .arg(format!("-tags={}", tags.join(",")))
        .args(mode.arguments)
        .arg("-o")
        .arg(&binary)
        .arg(".")
        // There are no modules.
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", if mode.cgo.is_some() { "1" } else { "0" })
        .env("CGO_CFLAGS", mode.cgo.unwrap_or_default());
    eprintln!("build: {}", binary.display());
    run::run(&mut go)
}

/// A program that calls native allocators, a file of `tests/targets/native`.
struct Native {
    name: &'static str,
    source: &'static str,
    compiler: &'static str,
    arguments: &'static [&'static str],
}

/// The kernel's headers, which musl has not, after its own.
const LATE_HEADERS: [&str; 2] = [
    "-idirafter/usr/include",
    "-idirafter/usr/include/x86_64-linux-gnu",
];

const NATIVE: [Native; 16] = [
    Native {
        name: "allocs",
        source: "allocs.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "allocs-static",
        source: "allocs.c",
        compiler: "gcc",
        arguments: &["-static"],
    },
    Native {
        name: "allocs-musl",
        source: "allocs.c",
        compiler: "musl-gcc",
        arguments: &["-static", LATE_HEADERS[0], LATE_HEADERS[1]],
    },
    Native {
        name: "allocs-musl-dynamic",
        source: "allocs.c",
        compiler: "musl-gcc",
        arguments: &LATE_HEADERS,
    },
    Native {
        name: "sizes",
        source: "sizes.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "pairs",
        source: "pairs.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "cache",
        source: "cache.c",
        compiler: "gcc",
        arguments: &["-fno-builtin"],
    },
    Native {
        name: "forks",
        source: "forks.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "turnover",
        source: "turnover.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "surge",
        source: "surge.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "kept",
        source: "kept.c",
        compiler: "gcc",
        arguments: &[],
    },
    // The same for LeakSanitizer, which tells at the end what it has found.
    Native {
        name: "kept-sanitized",
        source: "kept.c",
        compiler: "gcc",
        arguments: &["-fsanitize=leak", "-DSANITIZED"],
    },
    Native {
        name: "hoard",
        source: "hoard.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "steady",
        source: "steady.c",
        compiler: "gcc",
        arguments: &[],
    },
    Native {
        name: "operators",
        source: "operators.cpp",
        compiler: "g++",
        arguments: &["-std=c++17"],
    },
    Native {
        name: "libhidden.so",
        source: "hidden.c",
        compiler: "gcc",
        arguments: &["-shared", "-fPIC", "-O2", "-foptimize-sibling-calls"],
    },
];

/// Builds one of them, by its name.
///
/// # Errors
///
/// When there is none, or the compiler fails.
pub(crate) fn build_native_program(name: &str) -> Result<()> {
    let native = NATIVE.iter().find(|native| native.name == name);
    let native = native.with_context(|| format!("there is no `{name}`"))?;
    build_native(native, &workspace::targets())
}

fn build_native(native: &Native, out: &Path) -> Result<()> {
    let folder = workspace::root().join("tests/targets/native");
    let binary = out.join(native.name);
    if is_newer(&binary, &folder)? {
        return Ok(());
    }
    eprintln!("build: {}", binary.display());
    run::run(
        Command::new(native.compiler)
            .args([
                "-O1",
                "-g",
                "-fno-omit-frame-pointer",
                // Each call is made, and from the function that it is in.
                "-fno-optimize-sibling-calls",
                "-fno-builtin",
                "-Wall",
                "-Wextra",
                "-pthread",
                "-o",
            ])
            .arg(&binary)
            .arg(folder.join(native.source))
            .args(native.arguments),
    )
}

/// A Rust program outside this workspace, with dependencies of its own.
fn build_rust(program: &str, out: &Path) -> Result<()> {
    let folder = workspace::root().join("tests/targets/rust").join(program);
    let binary = out.join(program);
    if is_newer(&binary, &folder)? && is_newer(&binary, &folder.join("src"))? {
        return Ok(());
    }
    eprintln!("build: {}", binary.display());
    let target = workspace::target().join("rust-targets");
    run::run(
        Command::new(workspace::cargo())
            .current_dir(&folder)
            .args(["build", "--release", "--locked"])
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", "-Cforce-frame-pointers=yes"),
    )?;
    let built = target.join("release").join(program);
    // By another name first: the old one may be running.
    let new = binary.with_extension("new");
    fs::copy(&built, &new)
        .and_then(|_| fs::rename(&new, &binary))
        .with_context(|| format!("failed to copy `{}`", built.display()))
}

fn build_c(program: &str, out: &Path) -> Result<()> {
    let folder = workspace::root().join("tests/targets/c");
    let binary = out.join(program);
    if is_newer(&binary, &folder)? {
        return Ok(());
    }
    eprintln!("build: {}", binary.display());
    run::run(
        Command::new("gcc")
            .args([
                "-O1",
                "-g",
                "-fno-omit-frame-pointer",
                "-Wall",
                "-Wextra",
                "-pthread",
                "-o",
            ])
            .arg(&binary)
            .arg(folder.join(program).with_extension("c")),
    )
}

/// As a distribution builds: without frame pointers, the debug information in a file of its own.
fn build_cpp(source: &str, name: &str, arguments: &[&str], out: &Path) -> Result<()> {
    let folder = workspace::root().join("tests/targets/cpp");
    let (binary, debug) = (out.join(name), out.join("debug"));
    if is_newer(&binary, &folder)? {
        return Ok(());
    }
    eprintln!("build: {}", binary.display());
    fs::create_dir_all(&debug)
        .with_context(|| format!("failed to create `{}`", debug.display()))?;
    let debug = debug.join(name).with_added_extension("debug");
    let options = [
        "-std=c++17",
        "-O2",
        "-g",
        "-fomit-frame-pointer",
        "-Wall",
        "-Wextra",
    ];
    let mut compile = Command::new("g++");
    compile
        .args(options)
        .args(["-Wl,--build-id", "-o"])
        .arg(&binary);
    run::run(compile.arg(folder.join(source)).args(arguments))?;
    let mut split = Command::new("objcopy");
    run::run(split.arg("--only-keep-debug").arg(&binary).arg(&debug))?;
    run::run(Command::new("strip").arg(&binary))
}

/// A Rust program of one file, without frame pointers.
fn build_rust_file(source: &str, name: &str, out: &Path) -> Result<()> {
    let folder = workspace::root().join("tests/targets/rust");
    let binary = out.join(name);
    if is_newer(&binary, &folder)? {
        return Ok(());
    }
    eprintln!("build: {}", binary.display());
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition=2024", "-O", "-g", "-Cforce-frame-pointers=no"])
        .args(["-Csymbol-mangling-version=v0", "-o"])
        .arg(&binary)
        .arg(folder.join(source).with_extension("rs"));
    run::run(&mut rustc)
}

/// Whether a binary is newer than every source, and than the rules it is built by (this program).
fn is_newer(binary: &Path, sources: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(binary).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    let mut newest = modified(&std::env::current_exe()?)?;
    for entry in
        fs::read_dir(sources).with_context(|| format!("failed to read `{}`", sources.display()))?
    {
        newest = newest.max(modified(&entry?.path())?);
    }
    Ok(built > newest)
}

fn modified(path: &Path) -> Result<SystemTime> {
    let metadata = fs::metadata(path).and_then(|metadata| metadata.modified());
    metadata.with_context(|| format!("failed to read `{}`", path.display()))
}
