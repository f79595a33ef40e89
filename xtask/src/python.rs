//! Python packages that read exports in the tests, kept outside the repository.

use std::{fs, path::PathBuf, process, process::Command};

use anyhow::{Context as _, Result};

use crate::{run, workspace};

/// The packages and the releases that are known to work.
const PACKAGES: [&str; 3] = ["duckdb==2.0.1", "jsonschema==4.26.0", "pyarrow==26.0.1"];

/// The file in their folder that says which they are.
const LIST: &str = "packages.txt";

/// Where they are, for `sys.path`.
///
/// # Errors
///
/// When there is no cache folder.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("python"))
}

/// Whether they are there, and these.
///
/// # Errors
///
/// When there is no cache folder.
pub(crate) fn is_installed() -> Result<bool> {
    let list = fs::read_to_string(folder()?.join(LIST));
    Ok(list.is_ok_and(|list| list == PACKAGES.join("\n")))
}

/// Downloads them and what they need. The folder appears complete or not at all.
///
/// # Errors
///
/// When pip fails or the disk is full.
pub(crate) fn install() -> Result<()> {
    let folder = folder()?;
    let unfinished = folder.with_file_name(format!(".python.{}", process::id()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:"])
        .args(["--root-user-action=ignore", "--disable-pip-version-check"])
        .arg("--target")
        .arg(&unfinished)
        .args(PACKAGES);
    let result = run::fetch(&mut pip).and_then(|()| {
        fs::write(unfinished.join(LIST), PACKAGES.join("\n"))?;
        // Others, of an earlier release of this file.
        let _ = fs::remove_dir_all(&folder);
        match fs::rename(&unfinished, &folder) {
            Err(_) if is_installed()? => Ok(()),
            renamed => renamed.with_context(|| format!("failed to create `{}`", folder.display())),
        }
    });
    // Gone already when all went well.
    let _ = fs::remove_dir_all(&unfinished);
    result
}
