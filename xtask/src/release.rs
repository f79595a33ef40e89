//! Builds leaktrace as it is shipped, which is also what is tested: one file without libraries, stripped, and
//! without the names of the folders it was built in, but for those in the debug information of the kernel side.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{run, workspace};

/// Builds leaktrace in release mode.
///
/// # Errors
///
/// When cargo or git fails.
pub(crate) fn build() -> Result<()> {
    let (root, target) = (workspace::root(), workspace::target());
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let home = home.context("failed to find cargo's folder: `HOME` is not set")?;
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
    let mut date = Command::new("git");
    let date = run::output(date.current_dir(&root).args(["log", "-1", "--format=%ct"]))?;
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(&root)
        .args(["build", "--release", "--locked", "--package", "leaktrace"])
        .args(["--target", workspace::TRIPLE])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS_x86_64_unknown_linux_gnu", c_flags)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("SOURCE_DATE_EPOCH", date.trim());
    run::run(&mut cargo)
}
