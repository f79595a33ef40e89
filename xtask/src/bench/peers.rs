//! Other tools that follow a native allocator, to stand beside leaktrace.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    debian::{self, Archive},
    run::{self, as_root, find},
    workspace,
};

/// The release of Debian that has memleak of libbpf-tools, and what that needs of it: an older one has it
/// not, and a C library that is too old for it.
const RELEASE: &str = "trixie";
const PACKAGES: [&str; 5] = ["libbpf-tools", "libc6", "libelf1t64", "zlib1g", "libzstd1"];

/// The tools, and how to call them.
pub(super) struct Peers {
    /// memleak of libbpf-tools: the program and the arguments before its own.
    memleak: Vec<PathBuf>,
    /// What they call themselves, for people.
    pub(super) versions: String,
}

impl Peers {
    /// Finds them, and fetches from Debian those that are missing.
    ///
    /// # Errors
    ///
    /// When one cannot be had.
    pub(super) fn find() -> Result<Self> {
        if find("heaptrack").is_none() {
            eprintln!("bench: heaptrack is missing: apt-get installs it");
            run::run(as_root("apt-get").args(["-qq", "install", "--yes", "heaptrack"]))?;
        }
        let (memleak, version) = match find("memleak-libbpf") {
            Some(path) => (vec![path], "of this machine".to_owned()),
            None => fetched()?,
        };
        let heaptrack = run::output(Command::new("heaptrack").arg("--version"))?;
        let versions = format!("memleak of libbpf-tools {version}; {}", heaptrack.trim());
        Ok(Self { memleak, versions })
    }

    /// memleak, attached to process `pid` until it is interrupted. It counts each block, keeps stacks
    /// and prints nothing before its end.
    pub(super) fn memleak(&self, pid: u32) -> Command {
        let mut command = as_root(&self.memleak[0]);
        command
            .args(&self.memleak[1..])
            .args(["-p", &pid.to_string(), "3600", "1"])
            .stdout(Stdio::null());
        command
    }
}

/// memleak unpacked in the cache folder, with the libraries that it was built for.
fn fetched() -> Result<(Vec<PathBuf>, String)> {
    let folder = workspace::cache()?.join(format!("libbpf-tools-{RELEASE}"));
    let version = folder.join("version");
    if !version.exists() {
        eprintln!(
            "bench: memleak of libbpf-tools is missing: 20 MB of Debian {RELEASE}, not installed"
        );
        fetch(&folder).context("failed to fetch libbpf-tools")?;
    }
    let libraries = folder.join("usr/lib/x86_64-linux-gnu");
    let command = vec![
        libraries.join("ld-linux-x86-64.so.2"),
        "--library-path".into(),
        libraries,
        folder.join("usr/sbin/memleak-libbpf"),
    ];
    Ok((command, fs::read_to_string(version)?))
}

/// Unpacks the packages of that release.
fn fetch(folder: &Path) -> Result<()> {
    let apt = folder.join("apt");
    let archive = Archive::at(&apt)?;
    archive.update(&[("debian", RELEASE)])?;
    archive.download(&PACKAGES, &apt)?;
    let mut version = None;
    for package in debian::packages_in(&apt)? {
        debian::unpack(&package, folder)?;
        let mut ask = Command::new("dpkg-deb");
        let told = run::output(
            ask.args(["--show", "--showformat=${Package} ${Version}"])
                .arg(&package),
        )?;
        version = version.or(told.strip_prefix("libbpf-tools ").map(str::to_owned));
    }
    ensure!(
        folder.join("usr/sbin/memleak-libbpf").exists(),
        "there is no memleak in it"
    );
    // Last, so that it says that all is there.
    fs::write(folder.join("version"), version.unwrap_or_default())?;
    fs::remove_dir_all(&apt).context("failed to remove what was downloaded")
}
