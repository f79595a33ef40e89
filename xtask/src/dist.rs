//! `cargo xtask dist`: what is shipped.
//!
//! | in `target/dist` | what it is |
//! |---|---|
//! | `leaktrace` | the static file that the tests run |
//! | `man`, `completions` | its manual pages, and completions of bash, zsh and fish |
//! | `leaktrace.cdx.json` | the bill of materials (CycloneDX 1.5): every crate in the file, the kernel side's too |
//! | `LICENSE-*` | the licences |
//! | `SHA256SUMS` | of all of these, for `sha256sum -c` |
//!
//! The same commit and the same compilers give the same bytes, wherever the folder is: `--twice` shows it.

mod materials;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _};
use sha2::{Digest as _, Sha256};

use crate::{
    bpf, release,
    run::{self},
    setup::{self, Scope},
    workspace,
};

/// Sets up, builds and puts it together.
///
/// # Errors
///
/// When a step fails.
pub(crate) fn run() -> Result<()> {
    setup::run(Scope::Demo)?;
    release::build()?;
    make()
}

/// [`run()`], and all of it once more from a clone in another folder, with a cargo target of its own: the sums must be
/// the same.
///
/// # Errors
///
/// When a step fails, when something is not committed, or when a file is another one.
pub(crate) fn twice() -> Result<()> {
    run()?;
    let root = workspace::root();
    let changed = run::output(
        Command::new("git")
            .current_dir(&root)
            .args(["status", "--porcelain"]),
    )?;
    ensure!(
        changed.is_empty(),
        "commit first: only what is committed is built again"
    );

    let again = workspace::target().join("again");
    if again.exists() {
        fs::remove_dir_all(&again)?;
    }
    let clone = again.join("clone");
    let mut git = Command::new("git");
    run::run(git.args(["clone", "--quiet"]).arg(&root).arg(&clone))?;
    let target = again.join("target");
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(&clone)
        .args(["xtask", "dist"])
        .env("CARGO_TARGET_DIR", &target);
    run::run(&mut cargo)?;

    let sums = |target: &Path| {
        let file = target.join("dist/SHA256SUMS");
        fs::read_to_string(&file).with_context(|| format!("failed to read `{}`", file.display()))
    };
    let (first, second) = (sums(&workspace::target())?, sums(&target)?);
    let lines = first
        .lines()
        .filter(|line| !second.lines().any(|other| other == *line));
    let other: Vec<_> = lines
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    ensure!(
        first == second,
        "built again in another folder, these are others: {}",
        other.join(", ")
    );
    fs::remove_dir_all(&again)?;
    eprintln!(
        "dist: built again in another folder, all {} files are the same",
        first.lines().count()
    );
    Ok(())
}

/// The same with what is built.
///
/// # Errors
///
/// When what is built is not fit to be shipped, or a file cannot be written.
pub(crate) fn make() -> Result<()> {
    let binary = workspace::leaktrace();
    let bytes = read(&binary)?;
    needs_nothing(&bytes).with_context(|| format!("`{}` cannot be shipped", binary.display()))?;

    let folder = workspace::target().join("dist");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    fs::copy(&binary, folder.join("leaktrace"))?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(workspace::root().join(name), folder.join(name))?;
    }
    let gpl = workspace::root().join("leaktrace-ebpf/LICENSE-GPL2");
    fs::copy(gpl, folder.join("LICENSE-GPL2"))?;
    let date = date_of_commit("%ct")?;
    let mut generate = Command::new(&binary);
    generate.arg("generate").arg(&folder);
    run::run(generate.env("SOURCE_DATE_EPOCH", date))?;
    let materials = materials::list(&sum(&bytes))?;
    fs::write(folder.join("leaktrace.cdx.json"), materials)?;

    let mut files = files_below(&folder)?;
    files.sort();
    let mut sums = String::new();
    for file in &files {
        let name = file.strip_prefix(&folder)?.display();
        writeln!(sums, "{}  {name}", sum(&read(file)?))?;
    }
    fs::write(folder.join("SHA256SUMS"), sums)?;
    eprintln!(
        "dist: `{}`: {} files and their sums; leaktrace has {:.1} MB",
        folder.display(),
        files.len(),
        bytes.len() as f64 / 1e6
    );
    Ok(())
}

/// When what is built was committed, in a form of git's.
fn date_of_commit(form: &str) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root())
        .args(["log", "-1", &format!("--format={form}")]);
    Ok(run::output(&mut git)?.trim().to_owned())
}

/// No library and no loader of the host, and no name of a folder that it was built in.
fn needs_nothing(bytes: &[u8]) -> Result<()> {
    let file = object::File::parse(bytes)?;
    let loader = file
        .sections()
        .find(|section| section.name() == Ok(".interp"));
    ensure!(loader.is_none(), "it is linked dynamically");
    let places = [
        Some(workspace::root()),
        Some(workspace::target()),
        bpf::cargo_home(),
    ];
    for place in places.into_iter().flatten() {
        let name = place.display().to_string();
        let mut windows = bytes.windows(name.len());
        let is_named = windows.any(|window| window == name.as_bytes());
        ensure!(!is_named, "`{name}` is in it");
    }
    Ok(())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
