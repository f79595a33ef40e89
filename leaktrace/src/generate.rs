//! `leaktrace generate`: manual pages and completions, made from what the command line takes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use jiff::{Timestamp, tz::TimeZone};

use crate::args::Args;

/// Writes `man/leaktrace*.1`, and `completions/` for bash, zsh and fish under the names by which each
/// shell finds them, below `folder`.
pub(crate) fn generate(folder: &Path) -> Result<()> {
    let man = made(&folder.join("man"))?;
    // A page of its own for each command, and none for `help`.
    let mut leaktrace = Args::command().disable_help_subcommand(true);
    leaktrace.build();
    let date = date();
    let commands = leaktrace.get_subcommands();
    let commands = commands.filter(|command| !command.is_hide_set());
    for command in commands.chain([&leaktrace]) {
        write_page(command, &date, &man)?;
    }

    let completions = made(&folder.join("completions"))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Args::command(), "leaktrace", &completions)
            .with_context(|| format!("failed to write the completion for {shell}"))?;
    }
    Ok(())
}

fn write_page(command: &Command, date: &str, folder: &Path) -> Result<()> {
    let page = Man::new(command.clone())
        .date(date)
        .source(concat!("leaktrace ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)
        .with_context(|| format!("failed to make the manual page `{}`", path.display()))?;
    // clap_mangen puts an empty line between two line breaks, of which readers keep only the line.
    let text = String::from_utf8_lossy(&text).replace("\n.br\n\n.br\n", "\n.sp\n");
    fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
}

/// Today, or the day that a reproducible build asks for, <https://reproducible-builds.org/specs/source-date-epoch>.
fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok();
    let epoch = epoch.and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok());
    let day = epoch.unwrap_or_else(Timestamp::now).to_zoned(TimeZone::UTC);
    day.strftime("%Y-%m-%d").to_string()
}

fn made(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    Ok(folder.to_owned())
}
