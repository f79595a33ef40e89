//! `cargo xtask demo`: a real service leaks, leaktrace is attached to it and names the line.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    run::{self, as_root, line},
    service::Service,
    setup::{self, Scope},
    targets, workspace,
};

/// Sets up, builds, records the reload service for 15 seconds and prints the report.
///
/// # Errors
///
/// When a step fails.
pub(crate) fn run() -> Result<()> {
    setup::run(Scope::Demo)?;
    crate::release::build()?;
    targets::build(Scope::Demo)?;

    let folder = workspace::target().join("demo");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    let file = folder.join("reload.leaktrace");
    // A recording never replaces a file; that of the last demo has to go first.
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("failed to remove `{}`", file.display()))?;
    }

    let name = format!("reload-{}", crate::go::NEWEST.number);
    let mut service = Service::start(
        &workspace::targets().join(&name),
        &["-leak-limit-bytes", "1073741824"],
    )?;
    eprintln!(
        "demo: {name} is process {}; it leaks 8 MiB a second in `Store`, reload.go",
        service.pid()
    );

    let mut record = as_root(workspace::leaktrace());
    record
        .args([
            "record",
            "-q",
            "-d",
            "15s",
            "-p",
            &service.pid().to_string(),
            "-o",
        ])
        .arg(&file);
    eprintln!("demo: {}", line(&record));
    run::run(&mut record)?;
    eprintln!("demo: what the service says of itself: {}", service.ask()?);
    drop(service);

    if !run::is_root() {
        // The file is root's and nobody else's.
        run::run(as_root("chmod").arg("a+r").arg(&file))?;
    }
    let mut report = Command::new(workspace::leaktrace());
    report.args(["report", "-n", "5"]).arg(&file);
    eprintln!("demo: {}\n", line(&report));
    run::run(&mut report)
}
