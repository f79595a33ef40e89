//! Running commands, and saying what failed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

/// Runs a command to its end, with its output on the terminal.
///
/// # Errors
///
/// When it cannot be started or fails; the message is the command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to start `{}`", line(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", line(command));
    Ok(())
}

/// Runs a command that downloads something, as [`run`] does: three times at most, for a network may be away for a
/// moment.
///
/// # Errors
///
/// When it cannot be started, or fails each time.
pub(crate) fn fetch(command: &mut Command) -> Result<()> {
    for pause_s in [5, 30] {
        let Err(error) = run(command) else {
            return Ok(());
        };
        eprintln!("{error:#}; tries again in {pause_s} s");
        thread::sleep(Duration::from_secs(pause_s));
    }
    run(command)
}

/// Runs a command to its end and returns what it wrote to stdout.
///
/// # Errors
///
/// When it cannot be started or fails; the message has the command line and its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("failed to start `{}`", line(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}\n{}",
        line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no text", line(command)))
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A command that runs as root: itself for root, through sudo for others.
pub(crate) fn as_root(program: impl AsRef<Path>) -> Command {
    if is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("sudo");
    command.arg(program.as_ref());
    command
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap_or_default();
    uids.split_whitespace().nth(1) == Some("0")
}

/// A program from PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
