//! Builds leaktrace and the programs it is tried on.
//!
//! The programs are in `target/targets`, or where `LEAKTRACE_TARGETS` points, by these names:
//!
//! | name | what |
//! |---|---|
//! | `reload-GO`, `pipeline-GO`, `objects-GO`, `churn-GO` | built with that release of Go, as in `reload-1.27.3`; the heap sampler is linked in and on |
//! | `…-stripped` | the same without symbols and DWARF (`-s -w`) |
//! | `…-nopprof` | `reload`, `pipeline` and `churn` without the sampler: `runtime.MemProfileRate` is 0 |
//! | `vm` | `tests/targets/c/vm.c` |
//!
//! `GO` is 1.27.3 and 1.19.8 for the tests, 1.27.3 for the demo, and every release of `go.rs` after
//! `cargo xtask build --full`. leaktrace itself is where `LEAKTRACE_BIN` says, else
//! `target/release/leaktrace`. `cargo xtask test` sets both variables.

use std::{fs, path::Path, process::Command, time::SystemTime};

use anyhow::{Context as _, Result};

use crate::{go, run, setup::Scope, workspace};

/// How a Go program is linked.
struct Variant {
    suffix: &'static str,
    arguments: &'static [&'static str],
}

const PLAIN: Variant = Variant {
    suffix: "",
    arguments: &["-tags=pprof"],
};
const STRIPPED: Variant = Variant {
    suffix: "-stripped",
    arguments: &["-tags=pprof", "-ldflags=-s -w"],
};
const NO_PPROF: Variant = Variant {
    suffix: "-nopprof",
    arguments: &[],
};

/// The Go programs, each a folder of `tests/targets/go`, and the variants there are of each.
const PROGRAMS: [(&str, &[Variant]); 4] = [
    ("reload", &[PLAIN, STRIPPED, NO_PPROF]),
    ("pipeline", &[PLAIN, STRIPPED, NO_PPROF]),
    ("objects", &[PLAIN, STRIPPED]),
    ("churn", &[PLAIN, STRIPPED, NO_PPROF]),
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
        for (program, variants) in PROGRAMS {
            for variant in variants {
                build_go(version, program, variant, &out)?;
            }
        }
    }
    if scope >= Scope::Test {
        build_c("vm", &out)
    } else {
        Ok(())
    }
}

/// Builds leaktrace in release mode.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build_leaktrace() -> Result<()> {
    let mut cargo = Command::new(workspace::cargo());
    run::run(cargo.current_dir(workspace::root()).args([
        "build",
        "--release",
        "--package",
        "leaktrace",
    ]))
}

fn build_go(version: go::Version, program: &str, variant: &Variant, out: &Path) -> Result<()> {
    let sources = workspace::root().join("tests/targets/go").join(program);
    let binary = out.join(format!("{program}-{}{}", version.number, variant.suffix));
    if is_newer(&binary, &sources)? {
        return Ok(());
    }
    let mut go = Command::new(version.command()?);
    go.current_dir(&sources)
        .args(["build", "-buildvcs=false"])
        .args(variant.arguments)
        .arg("-o")
        .arg(&binary)
        .arg(".")
        // This very release, no modules (there are none), nothing from the user's environment.
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "off")
        .env("GOCACHE", workspace::target().join("go-cache"))
        .env("GOPATH", workspace::target().join("go-path"))
        .env("CGO_ENABLED", "0");
    for name in [
        "GOROOT",
        "GOFLAGS",
        "GOOS",
        "GOARCH",
        "GOEXPERIMENT",
        "GODEBUG",
    ] {
        go.env_remove(name);
    }
    eprintln!("build: {}", binary.display());
    run::run(&mut go)
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
