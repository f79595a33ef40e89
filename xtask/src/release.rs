//! Builds leaktrace as it is shipped, which is also what is tested: one file without libraries, stripped, and
//! without the names of the folders it was built in.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{bpf, run, workspace};

/// Builds leaktrace in release mode.
///
/// # Errors
///
/// When cargo fails.
pub(crate) fn build() -> Result<()> {
    let (root, target) = (workspace::root(), workspace::target());
    let home = bpf::cargo_home().context("failed to find cargo's folder: `HOME` is not set")?;
    let places = [
        (&home, "/cargo"),
        (&target, "/target"),
        (&root, "/leaktrace"),
    ];
    let maps = places.map(|(place, name)| format!("-prefix-map={}={name}", place.display()));
    let remaps = maps
        .iter()
        .map(|map| map.replace("-prefix-map", "--remap-path-prefix"));
    let flags = ["-Ctarget-feature=+crt-static".to_owned()];
    let flags: Vec<_> = flags.into_iter().chain(remaps).collect();
    let c_flags = maps.map(|map| format!("-ffile{map}")).join(" ");
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(&root)
        .args(["build", "--release", "--locked", "--package", "leaktrace"])
        .args(["--target", workspace::TRIPLE])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS_x86_64_unknown_linux_gnu", c_flags)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    run::run(&mut cargo)
}
