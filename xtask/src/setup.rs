//! `cargo xtask setup`: installs what is missing, and nothing else.
//!
//! Each step is first asked whether there is anything to do, so that a second run does nothing and says
//! so at once. A step that has work to do says what, why and about how long; one that fails names its
//! command. Debian and its derivatives get everything; elsewhere the compiler comes from rustup, and
//! what else is missing is named.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf, go, python,
    run::{self, as_root, find},
};

/// Whom to set up for. Each needs what those before it need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Building leaktrace, and the newest Go for the sample service.
    Demo,
    /// The oldest Go too, a C compiler, the lints of the kernel side, and readers of exports.
    Test,
    /// Every Go version that is known to work.
    Full,
}

impl Scope {
    /// The Go releases that are needed, newest first.
    pub(crate) fn go_versions(self) -> Vec<go::Version> {
        match self {
            Self::Demo => vec![go::NEWEST],
            Self::Test => vec![go::NEWEST, go::OLDEST],
            Self::Full => [&[go::NEWEST], &go::OTHERS[..], &[go::OLDEST]].concat(),
        }
    }
}

/// The release of bpf-linker that is known to work, and the LLVM it is built with here: not older than
/// that of the compiler.
const LINKER: &str = "0.13.0";
const LLVM: u32 = 22;

/// Debian's compiler for BPF, its linter, and the LLVM that bpf-linker is built with.
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const CLIPPY_PACKAGE: &str = "rust-web-clippy";
const LLVM_PACKAGE: &str = "llvm-22-dev";

/// Allocators that the tests trace, each with a file by which it is known to be there.
const ALLOCATORS: [(&str, &str); 4] = [
    ("libjemalloc2", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
    (
        "libtcmalloc-minimal4",
        "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    ),
    (
        "libmimalloc2.0",
        "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    ),
    ("musl-tools", "/usr/bin/musl-gcc"),
];

/// Does what `scope` needs.
///
/// # Errors
///
/// When a step fails; the message names it and its command.
pub(crate) fn run(scope: Scope) -> Result<()> {
    install_packages(scope).context("failed to set up: the distribution's packages")?;
    install_compiler().context("failed to set up: the compiler for BPF")?;
    install_linker().context("failed to set up: bpf-linker")?;
    for version in scope.go_versions() {
        if !version.is_installed()? {
            let number = version.number;
            say(&format!(
                "Go {number}, which builds sample services: 60 to 80 MB from PyPI, about 30 s"
            ));
            version
                .install()
                .with_context(|| format!("failed to set up: Go {number}"))?;
        }
    }
    if scope >= Scope::Test && !python::is_installed()? {
        say("Python packages, which read exports: 90 MB from PyPI, about 30 s");
        python::install().context("failed to set up: Python packages")?;
    }
    let toolchain = bpf::Toolchain::find()?;
    eprintln!(
        "setup: all there; the kernel side is compiled by {}",
        toolchain.description
    );
    Ok(())
}

fn say(what: &str) {
    eprintln!("setup: {what}");
}

/// One run of apt for everything that is missing and that it has.
fn install_packages(scope: Scope) -> Result<()> {
    let mut packages = Vec::new();
    let mut need = |is_there: bool, package: &'static str, why: &str| {
        if !is_there {
            say(&format!("{package} is missing: {why}"));
            packages.push(package);
        }
    };
    if find_compiler().is_none() && has_candidates(&COMPILER_PACKAGES) {
        for package in COMPILER_PACKAGES {
            need(false, package, "it compiles the kernel side");
        }
    }
    if bpf::Toolchain::find_linker().is_none() {
        need(
            llvm_prefix().is_some(),
            LLVM_PACKAGE,
            "bpf-linker is built with it",
        );
        need(find("g++").is_some(), "g++", "bpf-linker is built with it");
    }
    need(
        find("cc").is_some(),
        "gcc",
        "it links the Rust programs and builds the C target",
    );
    let wheels = scope
        .go_versions()
        .into_iter()
        .filter(|version| version.package().is_none());
    let needs_go = wheels
        .map(go::Version::is_installed)
        .any(|there| !there.unwrap_or(true));
    let needs_python = scope >= Scope::Test && !python::is_installed().unwrap_or(true);
    if needs_go || needs_python {
        let why = "it downloads Go, and packages that read exports";
        need(has_pip(), "python3-pip", why);
    }
    if scope >= Scope::Test {
        for version in scope.go_versions() {
            if let Some(package) = version.package() {
                need(
                    version.is_installed()?,
                    package,
                    "it builds sample services",
                );
            }
        }
        // Whichever compiler is chosen, its linter has to be its twin.
        let is_system = find_compiler().is_none_or(|(_, rustc, _)| rustc.starts_with("/usr/bin"));
        let has_clippy = Path::new("/usr/bin/cargo-clippy").is_file();
        if is_system && !has_clippy && has_candidates(&[CLIPPY_PACKAGE]) {
            need(false, CLIPPY_PACKAGE, "it lints the kernel side");
        }
        for (package, file) in ALLOCATORS {
            need(
                Path::new(file).exists(),
                package,
                "an allocator that the tests trace",
            );
        }
        need(find("g++").is_some(), "g++", "it builds the C++ target");
        need(
            find("make").is_some(),
            "make",
            "it builds the jemalloc of the Rust target",
        );
        need(
            Path::new("/var/lib/dpkg/info/libc6-dbg:amd64.list").exists(),
            "libc6-dbg",
            "the tests look for names of libc's own functions",
        );
        need(
            find("debuginfod-find").is_some(),
            "debuginfod",
            "the tests fetch debug information with it",
        );
        let has_bpftool = find("bpftool").is_some() || Path::new("/usr/sbin/bpftool").is_file();
        for (program, package, why) in [
            ("dwz", "dwz", "it moves debug information to a common file"),
            ("strace", "strace", "the tests let writes fail with it"),
            ("mandoc", "mandoc", "it checks the manual pages"),
            ("man", "man-db", "it shows the manual pages"),
            ("zsh", "zsh", "it reads its completion"),
            ("fish", "fish", "it reads its completion"),
            (
                "qemu-system-x86_64",
                "qemu-system-x86",
                "the tests boot other kernels in it",
            ),
            ("cpio", "cpio", "it packs what these kernels begin with"),
        ] {
            need(find(program).is_some(), package, why);
        }
        need(
            Path::new("/var/lib/dpkg/info/busybox-static.list").exists(),
            "busybox-static",
            "all that the tests need in these kernels besides",
        );
        need(
            has_bpftool,
            "bpftool",
            "the tests look for probes left behind",
        );
        need(
            find("chromium").is_some(),
            "chromium",
            "the tests look at the page of `leaktrace export --to html`",
        );
    }
    if packages.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "there is no `apt-get`: install what corresponds to {} by hand",
            packages.join(", ")
        );
    }

    say("apt-get installs them: up to 600 MB, about three minutes");
    update_lists()?;
    let mut install = as_root("env");
    install.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-qq",
        "install",
        // Another may be at it: a new machine updates itself.
        "-oDPkg::Lock::Timeout=600",
    ]);
    run::fetch(
        install
            .args(["--yes", "--no-install-recommends"])
            .args(&packages),
    )
}

/// Where there is no distribution's compiler: rustup's nightly with the sources of `core`.
fn install_compiler() -> Result<()> {
    if find_compiler().is_some() {
        return Ok(());
    }
    say(
        "no compiler for BPF from the distribution: rustup's nightly with rust-src, about a minute",
    );
    run::fetch(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile=minimal",
        "--component=rust-src",
        "--component=clippy",
    ]))
}

/// The compiler that fits the linker that is there, or else the one that will be built here.
fn find_compiler() -> Option<(String, PathBuf, bool)> {
    let newest_llvm = match bpf::Toolchain::find_linker() {
        Some(linker) => bpf::linker_llvm(&linker),
        None => Some(LLVM),
    };
    bpf::Toolchain::find_compiler(newest_llvm)
}

fn install_linker() -> Result<()> {
    if bpf::Toolchain::find_linker().is_some() {
        return Ok(());
    }
    say(&format!(
        "bpf-linker {LINKER}, which makes the BPF object: compiled here, about a minute"
    ));
    let prefix = llvm_prefix().with_context(|| format!("there is no LLVM {LLVM} with headers"))?;
    run::run(
        Command::new("cargo")
            .args([
                "install",
                "--locked",
                "--force",
                "bpf-linker",
                "--version",
                LINKER,
            ])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{LLVM}"),
            ])
            // Not into this workspace, and not with what cargo told xtask.
            .current_dir("/")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .env("LLVM_PREFIX", prefix),
    )
}

/// The folder of the LLVM that bpf-linker is built with.
fn llvm_prefix() -> Option<String> {
    let prefix = env::var("LLVM_PREFIX").unwrap_or_else(|_| format!("/usr/lib/llvm-{LLVM}"));
    Path::new(&prefix)
        .join("include/llvm-c/Core.h")
        .is_file()
        .then_some(prefix)
}

fn has_pip() -> bool {
    let version = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output();
    version.is_ok_and(|output| output.status.success())
}

/// Fetches apt's lists of packages, once a run. Those of a new machine may be there and be older than the
/// packages that are asked for.
fn update_lists() -> Result<()> {
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if !IS_DONE.load(Relaxed) {
        run::fetch(as_root("apt-get").args(["-qq", "update"]))?;
        IS_DONE.store(true, Relaxed);
    }
    Ok(())
}

/// Whether apt can install these packages, by lists that are fetched for it. Where they can't be, those
/// that are there are asked.
fn has_candidates(packages: &[&str]) -> bool {
    if find("apt-get").is_none() {
        return false;
    }
    if let Err(error) = update_lists() {
        say(&format!(
            "the lists of packages stay as they are: {error:#}"
        ));
    }
    packages.iter().all(|package| {
        run::output(Command::new("apt-cache").args(["policy", package]))
            .is_ok_and(|text| text.contains("Candidate: ") && !text.contains("Candidate: (none)"))
    })
}
