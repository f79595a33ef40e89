//! `cargo xtask man`: manual pages and completions, as a package would install them.

use std::process::Command;

use anyhow::Result;

use crate::{
    run,
    setup::{self, Scope},
    workspace,
};

/// Writes `target/man` and `target/completions`.
///
/// # Errors
///
/// When a step fails.
pub(crate) fn make() -> Result<()> {
    setup::run(Scope::Demo)?;
    crate::release::build()?;
    let folder = workspace::target();
    run::run(
        Command::new(workspace::leaktrace())
            .arg("generate")
            .arg(&folder),
    )?;
    eprintln!(
        "man: `{0}/man`, `{0}/completions`; read on with `man -l {0}/man/leaktrace.1`",
        folder.display()
    );
    Ok(())
}
