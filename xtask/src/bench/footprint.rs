//! What leaktrace takes for itself, and makes a program take, beside other tools at the same work; and how long it takes
//! to attach to a large stripped Go program, and to name what it has seen of it.

mod large;
mod steady;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{run::as_root, service::Service, workspace};

/// What a case has in its name.
pub(super) const NAME: &str = "footprint";

/// Measures `turns` times, and prints the tables.
///
/// # Errors
///
/// When a tool cannot be had or attached, or a program ends.
pub(super) fn measure(turns: u32, window: Duration) -> Result<()> {
    steady::native(turns, window)?;
    steady::go(turns, window)?;
    large::measure(turns)
}

/// Where a capture goes, or what another tool keeps.
fn file(name: &str) -> Result<PathBuf> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    Ok(folder.join(name))
}

/// leaktrace, which has them recorded until it is interrupted.
fn record(service: &Service, file: &Path) -> Command {
    let mut command = as_root(workspace::leaktrace());
    let pid = service.pid().to_string();
    command
        .args(["record", "-p", &pid, "-d", "1h", "-o"])
        .arg(file)
        .stdout(Stdio::null());
    command
}
