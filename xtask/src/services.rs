//! `cargo xtask services`: leaktrace on services nobody here wrote, as Debian ships them, each under load.
//!
//! The packages are downloaded and unpacked into the cache folder, not installed: nothing is started by
//! their scripts. Each service runs on loopback with a data folder of its own, is recorded while it
//! answers requests, and is ended. What a service is, is data ([`Service`]): `go.rs` and `native.rs` list
//! them, each with its trials.

mod daemon;
mod expectation;
mod go;
mod load;
mod names;
mod native;
mod package;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    run::{self, as_root},
    setup::{self, Scope},
    workspace,
};
use daemon::{Daemon, Service, Trial};
use load::Answers;
use names::Names;

/// Where a system keeps debug information.
const SYSTEM_DEBUG_DIR: &str = "/usr/lib/debug";
/// How long the kernel may take to free what a tracer has closed.
const GRACE: Duration = Duration::from_secs(20);

/// Tries the services of those names, or all, each for so many seconds a trial, and prints a table.
///
/// # Errors
///
/// When setting up fails, or a service or what leaktrace says of it is not as it should be.
pub(crate) fn run(names: &[String], seconds: u64) -> Result<()> {
    let services = || go::SERVICES.iter().chain(&native::SERVICES);
    for name in names {
        let is_known = services().any(|service| service.name == name);
        ensure!(is_known, "there is no service `{name}`");
    }
    let chosen =
        |service: &&Service| names.is_empty() || names.iter().any(|name| name == service.name);
    setup::run(Scope::Demo)?;
    crate::release::build()?;

    let mut lines = Vec::new();
    let mut ok = 0;
    for service in services().filter(chosen) {
        for trial in service.trials {
            let name = [service.name, trial.name].join(" ");
            eprintln!("services: {name}");
            let outcome = attempt(service, trial, Duration::from_secs(seconds));
            ok += usize::from(outcome.is_ok());
            let line = outcome.unwrap_or_else(|error| format!("FAILED: {error:#}"));
            lines.push(format!("{name:<17} {line}"));
        }
    }
    println!(
        "\nservice           answers failed  sites  frames   named  with symbols  resident  verdicts"
    );
    for line in &lines {
        println!("{line}");
    }
    let all = lines.len();
    println!("\nservices: {ok} of {all} ok");
    ensure!(ok == all, "{} of {all} trials failed", all - ok);
    Ok(())
}

/// One trial of a service from start to end; gives its line of the table.
fn attempt(service: &Service, trial: &Trial, window: Duration) -> Result<String> {
    let before = programs()?;
    let mut daemon = Daemon::start(service)?;
    let load = daemon.load(trial.work)?;
    let process = daemon.recorded()?;
    let pid = process.to_string();
    trial.expected.before(&pid)?;

    let file = daemon.folder().join("service.leaktrace");
    let duration = format!("{}s", window.as_secs());
    let mut record = as_root(workspace::leaktrace());
    record
        .args(["record", "-q", "-p", &pid, "-d", &duration, "-o"])
        .arg(&file);
    let recorded = run::run(&mut record);
    let survives = daemon.is_running()? && daemon.recorded()? == process;
    let Answers {
        good,
        failed,
        error,
    } = load.stop();
    recorded?;
    ensure!(survives, "it has not survived: {}", daemon.said());
    ensure!(
        failed == 0 && good > window.as_secs(),
        "it answered {good} requests and failed {failed}: {}",
        error.unwrap_or_default()
    );

    let debug_dir = daemon.debug_dir();
    let (file, given) = (file.to_string_lossy(), debug_dir.to_string_lossy());
    let report = expectation::json(&["report", &file, "-n", "100000", "--debug-dir", &given])?;
    ensure!(
        report["window"]["end"] == "duration",
        "the window ended early: {}",
        report["window"]
    );
    drop(daemon);
    nothing_left(&before)?;
    let names = Names::of(&report, &[debug_dir, PathBuf::from(SYSTEM_DEBUG_DIR)]);
    let note = trial.expected.after(&report, &names)?;

    let verdicts: Vec<_> = ["leak", "growing", "unknown", "steady"]
        .iter()
        .map(|verdict| format!("{} {verdict}", report["summary"][verdict]))
        .collect();
    Ok(format!(
        "{good:>7} {failed:>6} {:>6} {:>7} {:>6.2}%       {:>6.2}% {:>5} MiB  {}{note}",
        report["sites"].as_array().map_or(0, Vec::len),
        names.frames,
        names.share(),
        names.share_with_symbols(),
        report["memory"]["rss_bytes"].as_u64().unwrap_or_default() >> 20,
        verdicts.join(", ")
    ))
}

/// The kernel's BPF programs, by id.
fn programs() -> Result<BTreeSet<u64>> {
    let text = run::output(as_root("bpftool").args(["--json", "prog", "show"]))?;
    let listed: Value = serde_json::from_str(&text).context("bpftool writes JSON")?;
    let ids = listed.as_array().into_iter().flatten();
    Ok(ids.filter_map(|program| program["id"].as_u64()).collect())
}

fn nothing_left(before: &BTreeSet<u64>) -> Result<()> {
    let end = Instant::now() + GRACE;
    loop {
        let left: Vec<_> = programs()?.difference(before).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("BPF programs are left behind: {left:?}");
        }
        thread::sleep(Duration::from_millis(200));
    }
}
