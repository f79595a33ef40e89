//! Finds what can compile for BPF, and builds the kernel side with it.
//!
//! Shared by xtask and by `leaktrace/build.rs`, which includes this file by path: `std` and `anyhow`
//! only. [`Toolchain::find`] looks, in this order, for
//!
//! 1. a distribution's compiler with a ready-made `core` for BPF (Debian: `rustc-web` and
//!    `libstd-rust-web-dev-bpf`), so that nothing of `core` is compiled here;
//! 2. the active compiler with `rust-src`, which builds `core` from source;
//! 3. rustup's nightly with `rust-src`, the same
//!
//! and takes the first whose LLVM is not newer than that of the linker, bpf-linker: a linker cannot
//! read what a newer LLVM wrote. `RUSTC_BOOTSTRAP=1` is what lets a stable compiler take the unstable
//! parts that BPF needs.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

/// The target triple of the kernel side.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The command that installs whatever [`Toolchain::find`] misses.
pub(crate) const MEND: &str = "cargo xtask setup";

/// Where Debian and its derivatives put their compiler.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// BPF's instruction set v2, because Linux 5.10 refuses the atomics of v3; types for maps and programs.
const FLAGS: [&str; 6] = [
    "-C",
    "target-cpu=v2",
    "-C",
    "debuginfo=2",
    "-C",
    "link-arg=--btf",
];

/// A compiler and a linker that together make BPF objects.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// What was chosen, in words.
    pub(crate) description: String,
    /// The compiler that runs.
    pub(crate) rustc: PathBuf,
    /// The linker.
    pub(crate) linker: PathBuf,
    /// Whether `core` has to be compiled from `rust-src`.
    pub(crate) build_core: bool,
}

impl Toolchain {
    /// Takes the first toolchain of the list above that is complete on this machine.
    ///
    /// # Errors
    ///
    /// When there is no compiler or no linker; the message names [`MEND`].
    pub(crate) fn find() -> Result<Self> {
        let Some(linker) = Self::find_linker() else {
            bail!("no `bpf-linker` in PATH or in cargo's bin directory; run `{MEND}`");
        };
        let llvm = linker_llvm(&linker);
        let Some((description, rustc, build_core)) = Self::find_compiler(llvm) else {
            let than = llvm.map_or(String::new(), |llvm| {
                format!(" and an LLVM not newer than {llvm}, the linker's")
            });
            bail!(
                "no compiler for `{TARGET}`: neither {SYSTEM_RUSTC} with a BPF `core`, nor the active \
                 toolchain or nightly with rust-src{than}; run `{MEND}`"
            );
        };
        Ok(Self {
            description,
            rustc,
            linker,
            build_core,
        })
    }

    /// The first usable compiler: what it is, where, and whether `core` has to be compiled. One with
    /// an LLVM newer than `newest_llvm` is not usable; `None`: any is.
    pub(crate) fn find_compiler(newest_llvm: Option<u32>) -> Option<(String, PathBuf, bool)> {
        let is_readable = |rustc: &Path| match (newest_llvm, compiler_llvm(rustc)) {
            (Some(newest), Some(llvm)) => llvm <= newest,
            _ => true,
        };
        let system = PathBuf::from(SYSTEM_RUSTC);
        if let Some(sysroot) = sysroot(Command::new(&system))
            && has_core(&sysroot)
            && is_readable(&system)
        {
            let description = format!("{SYSTEM_RUSTC} ({}) with its BPF core", version(&system));
            return Some((description, system, false));
        }
        let mut nightly = Command::new("rustup");
        nightly.args(["run", "nightly", "rustc"]);
        let with_source = [
            ("the active toolchain", Command::new("rustc")),
            ("rustup's nightly", nightly),
        ];
        with_source.into_iter().find_map(|(name, rustc)| {
            let sysroot = sysroot(rustc)?;
            let rustc = sysroot.join("bin/rustc");
            let is_usable = has_source(&sysroot) && is_readable(&rustc);
            is_usable.then(|| {
                let description = format!("{name} ({}) with rust-src", version(&rustc));
                (description, rustc, true)
            })
        })
    }

    /// bpf-linker from PATH, else from where `cargo install` puts it.
    pub(crate) fn find_linker() -> Option<PathBuf> {
        let installed = cargo_home().map(|home| home.join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(installed)
            .map(|directory| directory.join("bpf-linker"))
            .find(|candidate| is_working(candidate))
    }

    /// Makes `cargo` (cargo itself, or cargo-clippy) run in `manifest_dir` and build for BPF, with none
    /// of the outer cargo's variables in its way. `target_dir` must not be one that a running cargo
    /// holds locked.
    pub(crate) fn command(
        &self,
        cargo: &OsStr,
        subcommand: &str,
        manifest_dir: &Path,
        target_dir: &Path,
    ) -> Command {
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os().filter(|(name, _)| is_in_the_way(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let mut flags = FLAGS.map(str::to_owned).to_vec();
        flags.extend(remaps(manifest_dir));
        command
            .current_dir(manifest_dir)
            .arg(subcommand)
            .args(["--release", "--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_WRAPPER", manifest_dir.join("rustc.sh"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        if self.build_core {
            command.args(["-Z", "build-std=core"]);
        }
        command
    }
}

/// Where cargo keeps what it has fetched and installed.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// Flags by which the compiler writes other names for the folders that differ from machine to machine: cargo's
/// own, and the workspace's, of which `member` is one folder.
fn remaps(member: &Path) -> Vec<String> {
    let workspace = fs::canonicalize(member.join("..")).ok();
    let places = [(cargo_home(), "/cargo"), (workspace, "/leaktrace")];
    let remap = |(place, name): (Option<PathBuf>, _)| {
        place.map(|place| format!("--remap-path-prefix={}={name}", place.display()))
    };
    places.into_iter().filter_map(remap).collect()
}

/// A linker whose LLVM has been removed is as good as none.
fn is_working(linker: &Path) -> bool {
    Command::new(linker)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The LLVM that a linker is dynamically linked with, by its major version; a linker that contains
/// its own does not say which it is.
pub(crate) fn linker_llvm(linker: &Path) -> Option<u32> {
    const LIBRARY: &[u8] = b"libLLVM.so.";
    let bytes = fs::read(linker).ok()?;
    let at = bytes
        .windows(LIBRARY.len())
        .position(|window| window == LIBRARY)?;
    leading_number(std::str::from_utf8(bytes.get(at + LIBRARY.len()..)?.get(..2)?).ok()?)
}

/// The major version of a compiler's LLVM.
fn compiler_llvm(rustc: &Path) -> Option<u32> {
    let output = Command::new(rustc).arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "));
    leading_number(line?)
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Where a compiler keeps its libraries; none if there is no such compiler.
fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    (output.status.success() && sysroot.is_dir()).then_some(sysroot)
}

/// Whether the compiler came with a `core` for BPF.
fn has_core(sysroot: &Path) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let Ok(entries) = fs::read_dir(libraries) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

/// Whether rustup's `rust-src` is there.
fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

/// `rustc 1.96.0`, or what can be said of it.
fn version(rustc: &Path) -> String {
    let output = Command::new(rustc).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(name), Some(number)) => format!("{name} {number}"),
        _ => "unknown version".into(),
    }
}

/// Whether a variable of the outer cargo or compiler would change what the inner one does. What
/// says where packages come from, and the job server, stays.
fn is_in_the_way(name: &str) -> bool {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_MAKEFLAGS",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    let ours = ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTDOC", "CLIPPY_"];
    ours.iter().any(|prefix| name.starts_with(prefix))
        && !KEPT.iter().any(|prefix| name.starts_with(prefix))
}
