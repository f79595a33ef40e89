//! The guest's only file system: busybox, leaktrace, the tests, and what they start.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tests::{LISTS, TARGETS};
use crate::{run, workspace};

/// Makes it in `folder` and gives its path.
///
/// # Errors
///
/// When a part of it is missing.
pub(super) fn make(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in [
        "bin", "proc", "sys", "dev", "tmp", "usr", "tests", "targets",
    ] {
        fs::create_dir_all(root.join(name))?;
    }
    // The tests know `env` there.
    symlink("/bin", root.join("usr/bin"))?;
    let init = workspace::root().join("tests/vm/init");
    copy(&init, &root.join("init"))?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;

    let tool = |name: &str| {
        let elsewhere = PathBuf::from("/usr/sbin").join(name);
        run::find(name).unwrap_or(elsewhere)
    };
    add(&tool("busybox"), &root, "bin/busybox")?;
    add(&tool("bpftool"), &root, "bin/bpftool")?;
    add(&workspace::leaktrace(), &root, "bin/leaktrace")?;
    for name in TARGETS {
        add(
            &workspace::targets().join(name),
            &root,
            &format!("targets/{name}"),
        )?;
    }
    for (name, program) in test_programs()? {
        let path = format!("tests/{name}");
        add(&program, &root, &path)?;
        // Ten times smaller without debug information.
        run::run(Command::new("strip").arg(root.join(path)))?;
    }
    for list in LISTS {
        fs::write(root.join("tests").join(list.name), list.text())?;
    }
    pack(&root, &folder.join("initramfs"))
}

/// The programs of the lists, built as `cargo xtask test` builds them.
fn test_programs() -> Result<Vec<(&'static str, PathBuf)>> {
    let mut names: Vec<_> = LISTS.iter().flat_map(|list| list.programs).collect();
    names.sort_by_key(|program| program.name);
    names.dedup_by_key(|program| program.name);
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .current_dir(workspace::root())
        .args(["test", "--package", "leaktrace-tests", "--no-run"])
        .args(["--message-format=json-render-diagnostics"]);
    for program in &names {
        cargo.args(["--test", program.name]);
    }
    let told = run::output(&mut cargo)?;
    let messages: Vec<Value> = told.lines().flat_map(serde_json::from_str).collect();
    let find = |name: &'static str| {
        let mut of = messages.iter().filter(|of| of["target"]["name"] == name);
        let path = of.find_map(|message| message["executable"].as_str());
        let path = path.with_context(|| format!("there is no test program `{name}`"))?;
        Ok((name, PathBuf::from(path)))
    };
    names.iter().map(|program| find(program.name)).collect()
}

/// Copies a program, and the libraries that it is linked with to where it looks for them.
fn add(program: &Path, root: &Path, to: &str) -> Result<()> {
    copy(program, &root.join(to))?;
    // It fails for what is linked statically.
    let told = Command::new("ldd").arg(program).output();
    let told = told.context("failed to start `ldd`")?;
    let told = String::from_utf8_lossy(&told.stdout);
    for library in told.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        copy(Path::new(library), &to)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("failed to copy `{}`", from.display()))?;
    Ok(())
}

fn pack(root: &Path, file: &Path) -> Result<PathBuf> {
    let list = run::output(Command::new("find").arg(".").current_dir(root))?;
    let names = file.with_extension("list");
    fs::write(&names, list)?;
    let status = Command::new("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .current_dir(root)
        .stdin(fs::File::open(&names)?)
        .stdout(Stdio::from(fs::File::create(file)?))
        .status()
        .context("failed to start `cpio`")?;
    ensure!(status.success(), "`cpio` failed: {status}");
    Ok(file.to_path_buf())
}
