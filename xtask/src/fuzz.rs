//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, one after the other (docs/hostile-input.md).
//!
//! cargo-fuzz wants a nightly compiler; the stable one does as well once it is told so. There is no
//! sanitizer: what is fuzzed has no unsafe code, and the targets have an allocator with a ceiling.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    run::{find, line, run},
    workspace,
};

/// The longest input that is tried, in bytes.
const MAX_INPUT: u32 = 64 << 10;

/// Runs one target, or each, for so many seconds.
///
/// # Errors
///
/// When a target cannot be built, or has found something: the input is kept in `fuzz/artifacts`.
pub(crate) fn fuzz(target: Option<&str>, seconds: u64) -> Result<()> {
    let folder = workspace::root().join("fuzz");
    let targets = targets(&folder)?;
    if let Some(name) = target {
        let known = targets.join(", ");
        ensure!(
            targets.iter().any(|target| target == name),
            "failed to find fuzz target `{name}`: there are {known}"
        );
    }
    if find("cargo-fuzz").is_none() {
        run(Command::new(workspace::cargo()).args(["install", "--locked", "cargo-fuzz"]))?;
    }
    let program = program()?;
    let chosen = targets
        .iter()
        .filter(|name| target.is_none_or(|target| target == *name));
    let mut found = Vec::new();
    for name in chosen {
        let mut command = Command::new(workspace::cargo());
        command
            .args(["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"])
            .args([&folder, Path::new(name)])
            .arg("--")
            .args([
                format!("-max_total_time={seconds}"),
                format!("-max_len={MAX_INPUT}"),
                "-timeout=20".to_owned(),
                "-rss_limit_mb=2048".to_owned(),
                "-print_final_stats=1".to_owned(),
            ])
            .current_dir(&folder)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("LEAKTRACE_FUZZ_GO", &program);
        eprintln!("xtask: fuzzing `{name}` for {seconds} s");
        let status = command
            .status()
            .with_context(|| format!("failed to start `{}`", line(&command)))?;
        if !status.success() {
            found.push(name.as_str());
        }
    }
    ensure!(found.is_empty(), "{} found something", found.join(", "));
    Ok(())
}

/// The names of all targets.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = fs::read_dir(&sources)
        .with_context(|| format!("failed to read `{}`", sources.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

/// The smallest sample service in Go: a real program to damage. `LEAKTRACE_FUZZ_GO` names another.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("LEAKTRACE_FUZZ_GO") {
        return Ok(path.into());
    }
    let built = workspace::targets();
    let size = |path: &PathBuf| fs::metadata(path).map_or(u64::MAX, |file| file.len());
    let entries = fs::read_dir(&built).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("reload-") && path.is_file()
        })
        .min_by_key(size)
        .context("failed to find a sample service: `cargo xtask build` builds them")
}
