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
        for name in ["heaptrack", "bpftrace"] {
            if find(name).is_none() {
                eprintln!("bench: {name} is missing: apt-get installs it");
                run::run(as_root("apt-get").args(["-qq", "install", "--yes", name]))?;
            }
        }
        let (memleak, version) = match find("memleak-libbpf") {
            Some(path) => (vec![path], "of this machine".to_owned()),
            None => fetched()?,
        };
        let heaptrack = run::output(Command::new("heaptrack").arg("--version"))?;
        let bpftrace = run::output(Command::new("bpftrace").arg("--version"))?;
        let versions = format!(
            "memleak of libbpf-tools {version}; {}; {}",
            heaptrack.trim(),
            bpftrace.trim()
        );
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

    /// bpftrace with a script that keeps the size and the stack of each block that lives, of a program that is linked
    /// with glibc.
    ///
    /// # Errors
    ///
    /// The process is gone, or not linked with glibc.
    pub(super) fn bpftrace(&self, pid: u32) -> Result<Command> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let libc = maps.lines().find(|line| line.ends_with("/libc.so.6"));
        let libc = libc.and_then(|line| line.split_whitespace().last());
        let libc = libc.context("the program has no `libc.so.6`")?;
        // Its `-p` alone does not keep other processes out.
        let script = format!(
            "uprobe:{libc}:malloc /pid == {pid}/ {{ @size[tid] = arg0; }}
             uretprobe:{libc}:malloc /@size[tid]/ {{
                 @stack[retval] = ustack; @bytes[retval] = @size[tid]; delete(@size[tid]);
             }}
             uprobe:{libc}:free /pid == {pid}/ {{ delete(@stack[arg0]); delete(@bytes[arg0]); }}
             END {{ clear(@stack); clear(@bytes); clear(@size); }}"
        );
        let mut command = as_root("bpftrace");
        command
            .args(["-p", &pid.to_string(), "-e", &script])
            .stdout(Stdio::null());
        Ok(command)
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
