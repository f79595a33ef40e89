//! Real Go binaries for the tests: small programs built with the toolchains of `cargo xtask setup`.
//!
//! A test without toolchains says so and passes, unless `LEAKTRACE_REQUIRE_TARGETS=1`: then it
//! fails. Binaries are kept in the temporary directory, keyed by source, version and mode.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use object::{Object, ObjectSection, ObjectSymbol};

/// A Go toolchain.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The minor version: 19 for Go 1.19.8.
    pub(crate) minor: u32,
    pub(crate) go: PathBuf,
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Plain,
    Stripped,
    Pie,
    StrippedPie,
    /// With `import "C"`, linked by the C compiler.
    Cgo,
    StrippedCgo,
    /// With `import "C"`, linked by the C compiler with a static libc.
    Static,
    StrippedStatic,
    /// With `import "C"`, position-independent, linked by the C compiler.
    CgoPie,
    StrippedCgoPie,
}

impl Mode {
    /// Those that can be built here.
    pub(crate) fn all() -> Vec<Mode> {
        let pure = [Mode::Plain, Mode::Stripped, Mode::Pie, Mode::StrippedPie];
        let cgo = [
            Mode::Cgo,
            Mode::StrippedCgo,
            Mode::Static,
            Mode::StrippedStatic,
            Mode::CgoPie,
            Mode::StrippedCgoPie,
        ];
        pure.into_iter()
            .chain(cgo.into_iter().filter(|_| has_c_compiler()))
            .collect()
    }

    pub(crate) fn cgo(self) -> bool {
        let shared = [
            Mode::Cgo,
            Mode::StrippedCgo,
            Mode::CgoPie,
            Mode::StrippedCgoPie,
        ];
        shared.contains(&self) || self.is_static()
    }

    pub(crate) fn is_static(self) -> bool {
        matches!(self, Mode::Static | Mode::StrippedStatic)
    }

    pub(crate) fn stripped(self) -> bool {
        matches!(
            self,
            Mode::Stripped
                | Mode::StrippedPie
                | Mode::StrippedCgo
                | Mode::StrippedStatic
                | Mode::StrippedCgoPie
        )
    }

    pub(crate) fn pie(self) -> bool {
        matches!(
            self,
            Mode::Pie | Mode::StrippedPie | Mode::CgoPie | Mode::StrippedCgoPie
        )
    }
}

/// The toolchains to test with: the oldest and the newest of this machine, all of them with
/// `LEAKTRACE_GO_VERSIONS=all`; none is a skip (see the module).
pub(crate) fn toolchains() -> Vec<Toolchain> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|cache| cache.join("leaktrace/go"));
    let mut found: Vec<Toolchain> = cache
        .and_then(|cache| std::fs::read_dir(cache).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("go/bin/go"))
        .chain([PathBuf::from("/usr/lib/go-1.19/bin/go")])
        .filter_map(|go| {
            let output = go_command(&go).args(["env", "GOVERSION"]).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            let minor = text
                .trim()
                .strip_prefix("go1.")?
                .split('.')
                .next()?
                .parse()
                .ok()?;
            Some(Toolchain { minor, go })
        })
        .collect();
    found.sort_by_key(|toolchain| toolchain.minor);
    if found.is_empty() {
        let missing = "no Go toolchain found: `cargo xtask setup` installs them";
        assert!(
            std::env::var_os("LEAKTRACE_REQUIRE_TARGETS").is_none(),
            "{missing}"
        );
        eprintln!("skipped: {missing}");
    }
    let all = std::env::var_os("LEAKTRACE_GO_VERSIONS").is_some_and(|which| which == "all");
    if !all && found.len() > 2 {
        found.drain(1..found.len() - 1);
    }
    found
}

/// Whether cgo programs can be built; without a C compiler it is a skip (see the module).
pub(crate) fn has_c_compiler() -> bool {
    let found = Command::new("gcc").arg("--version").output().is_ok();
    if !found {
        let missing = "no C compiler found: cgo programs need `gcc`";
        assert!(
            std::env::var_os("LEAKTRACE_REQUIRE_TARGETS").is_none(),
            "{missing}"
        );
        eprintln!("skipped: {missing}");
    }
    found
}

fn go_command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.envs([
        ("GOTOOLCHAIN", "local"),
        ("GO111MODULE", "off"),
        ("GOFLAGS", ""),
    ]);
    if std::env::var_os("GOCACHE").is_none() {
        command.env("GOCACHE", std::env::temp_dir().join("leaktrace-gocache"));
    }
    command
}

static BUILDING: Mutex<()> = Mutex::new(());

/// Builds `source`, the one file of a main package.
pub(crate) fn build(toolchain: &Toolchain, mode: Mode, source: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (source, mode, &toolchain.go).hash(&mut hasher);
    let dir = std::env::temp_dir().join("leaktrace-go-fixtures");
    let name = format!("go1.{}-{mode:?}-{:016x}", toolchain.minor, hasher.finish());
    let binary = dir.join(&name);
    let _one_at_a_time = BUILDING.lock();
    if binary.exists() {
        return binary;
    }
    std::fs::create_dir_all(&dir).unwrap();
    let work = tempfile::tempdir_in(&dir).unwrap();
    let cgo = mode.cgo();
    let text = if cgo {
        source.replacen("\nimport", "\nimport \"C\"\nimport", 1)
    } else {
        source.into()
    };
    std::fs::write(work.path().join("main.go"), text).unwrap();
    let mut command = go_command(&toolchain.go);
    command
        .current_dir(work.path())
        .env("CGO_ENABLED", if cgo { "1" } else { "0" });
    command.args(["build", "-trimpath", "-o", "built"]);
    let mut linker = Vec::new();
    if mode.stripped() {
        linker.extend(["-s", "-w"]);
    }
    if cgo {
        linker.push("-linkmode=external");
    }
    if mode.is_static() {
        linker.push("-extldflags=-static");
    }
    command.args(["-ldflags", &linker.join(" ")]);
    if mode.pie() {
        command.arg("-buildmode=pie");
    }
    let output = command.arg("main.go").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Another test process may build the same: the rename is atomic and either result will do.
    std::fs::rename(work.path().join("built"), &binary).unwrap();
    binary
}

/// Address and code of a function, by the ELF symbol table: an oracle of its own.
pub(crate) fn symbol_code(binary: &Path, name: &str) -> Option<(u64, Vec<u8>)> {
    let data = std::fs::read(binary).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let code = section.data_range(symbol.address(), symbol.size()).ok()??;
    Some((symbol.address(), code.to_vec()))
}

/// Name, address and code of every function, by the ELF symbol table.
pub(crate) fn functions(binary: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let data = std::fs::read(binary).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let functions = file.symbols().filter(|symbol| symbol.size() > 0);
    let functions = functions.filter_map(|symbol| {
        let code = text.data_range(symbol.address(), symbol.size()).ok()??;
        Some((
            symbol.name().ok()?.to_owned(),
            symbol.address(),
            code.to_vec(),
        ))
    });
    functions.collect()
}

/// A program with everything of the runtime that leaktrace looks for.
pub(crate) const PPROF_PROGRAM: &str = r#"package main

import (
	"os"
	"runtime/pprof"
)

func main() {
	done := make(chan bool)
	go func() { done <- true }()
	<-done
	pprof.Lookup("heap").WriteTo(os.Stdout, 1)
}
"#;
