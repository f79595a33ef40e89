//! `cargo xtask services`: leaktrace on services nobody here wrote, as Debian ships them (stripped, Go
//! 1.19), each under load.
//!
//! The packages are downloaded and unpacked into the cache folder, not installed: nothing is started by
//! their scripts. Each service runs on loopback with a data folder of its own, is recorded while it
//! answers requests, and is ended.

mod daemon;
mod load;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    run::{self, as_root},
    setup::{self, Scope},
    targets, workspace,
};
use daemon::{Daemon, SERVICES, Service};
use load::Answers;

/// What a report counts of everything older than the attach, and nothing is missing for it.
const OF_THE_ATTACH: [&str; 2] = ["free_of_unseen", "unmap_of_preexisting"];
/// Counts goroutines that ran on whenever they were read: under load there may be one now and then.
const TORN: &str = "goroutines_unstable";
/// At most one in so many goroutines that the censuses read.
const TORN_IN: u64 = 1000;
/// Of a hundred frames, so many at least have a name.
const NAMED: f64 = 99.0;
/// How long the kernel may take to free what a tracer has closed.
const GRACE: Duration = Duration::from_secs(20);

/// Tries the services of those names, or all, each for so many seconds, and prints a table.
///
/// # Errors
///
/// When setting up fails, or a service or what leaktrace says of it is not as it should be.
pub(crate) fn run(names: &[String], seconds: u64) -> Result<()> {
    for name in names {
        let is_known = SERVICES.iter().any(|service| service.name == name);
        ensure!(is_known, "there is no service `{name}`");
    }
    let chosen =
        |service: &&Service| names.is_empty() || names.iter().any(|name| name == service.name);
    setup::run(Scope::Demo)?;
    targets::build_leaktrace()?;

    let mut lines = Vec::new();
    let (mut ok, mut all) = (0, 0);
    for service in SERVICES.iter().filter(chosen) {
        eprintln!("services: {}", service.name);
        all += 1;
        let outcome = attempt(service, Duration::from_secs(seconds));
        let line = match &outcome {
            Ok(line) => line.clone(),
            Err(error) => format!("FAILED: {error:#}"),
        };
        ok += usize::from(outcome.is_ok());
        lines.push(format!("{:<12} {line}", service.name));
    }
    println!(
        "\nservice      version      answers failed  sites  frames   named  goroutines  resident  verdicts"
    );
    for line in &lines {
        println!("{line}");
    }
    println!("\nservices: {ok} of {all} ok");
    ensure!(ok == all, "{} of {all} services failed", all - ok);
    Ok(())
}

/// One service from start to end; gives its line of the table.
fn attempt(service: &Service, window: Duration) -> Result<String> {
    let before = programs()?;
    let mut daemon = Daemon::start(service)?;
    let pid = daemon.pid().to_string();
    let file = daemon.folder().join("service.leaktrace");
    let checked = run::output(as_root(workspace::leaktrace()).args([
        "goroutines",
        "-p",
        &pid,
        "--format",
        "json",
    ]))?;
    let census: Value = serde_json::from_str(&checked).context("a census is JSON")?;
    let goroutines = census["total"].as_u64().unwrap_or_default();
    ensure!(goroutines > 0, "no goroutine was found");
    ensure!(
        census["unreadable"] == 0,
        "{} goroutines could not be read",
        census["unreadable"]
    );

    let planned = run::output(
        as_root(workspace::leaktrace()).args(["check", "-p", &pid, "--format", "json"]),
    )?;
    is_right(&serde_json::from_str(&planned).context("a plan is JSON")?)?;

    let load = daemon.load();
    let duration = format!("{}s", window.as_secs());
    let mut record = as_root(workspace::leaktrace());
    record
        .args(["record", "-q", "-p", &pid, "-d", &duration, "-o"])
        .arg(&file);
    let recorded = run::run(&mut record);
    let answers = load.stop();
    recorded?;
    ensure!(
        daemon.is_running()?,
        "it has not survived: {}",
        daemon.said()
    );
    let Answers {
        good,
        failed,
        error,
    } = answers;
    ensure!(
        failed == 0 && good > window.as_secs(),
        "it answered {good} requests and failed {failed}: {}",
        error.unwrap_or_default()
    );

    let report = report(&file)?;
    let (frames, named) = names(&report);
    let share = 100.0 * named as f64 / frames.max(1) as f64;
    ensure!(frames > 0, "the report has no frame");
    ensure!(
        share >= NAMED,
        "{named} of {frames} frames are named, {share:.2} %; one that is not: {}",
        nameless(&report)
    );
    let goroutines_read = &report["goroutines"];
    let read = goroutines_read["censuses"].as_u64().unwrap_or_default()
        * goroutines_read["total"].as_u64().unwrap_or_default();
    for (cause, count) in report["losses"].as_object().into_iter().flatten() {
        let is_torn = cause == TORN && count.as_u64().is_some_and(|torn| torn * TORN_IN <= read);
        ensure!(
            is_torn || OF_THE_ATTACH.contains(&cause.as_str()),
            "lost: {count} {cause}, of {read} goroutines read"
        );
    }
    ensure!(
        report["window"]["end"] == "duration",
        "the window ended early: {}",
        report["window"]
    );
    drop(daemon);
    nothing_left(&before)?;

    let verdicts: Vec<_> = ["leak", "growing", "unknown", "steady"]
        .iter()
        .map(|verdict| format!("{} {verdict}", report["summary"][verdict]))
        .collect();
    Ok(format!(
        "{:<12} {good:>7} {failed:>6} {:>6} {frames:>7} {share:>6.2}% {goroutines:>11} {:>5} MiB  {}",
        report["target"]["go"]["version"].as_str().unwrap_or("?"),
        report["sites"].as_array().map_or(0, Vec::len),
        report["memory"]["rss_bytes"].as_u64().unwrap_or_default() >> 20,
        verdicts.join(", ")
    ))
}

/// A plan for a stripped Go program with a heap sampler: the three probes of the sampler, where the
/// kernel emulates the instruction, its two variables, and nothing that cannot be seen.
fn is_right(plan: &Value) -> Result<()> {
    ensure!(
        plan["target"]["stripped"] == true,
        "not stripped: {}",
        plan["target"]
    );
    for function in ["setprofilebucket", "freeSpecial", "gcMarkTermination"] {
        let mut probes = plan["probes"].as_array().into_iter().flatten();
        let probe = probes.find(|probe| probe["name"] == format!("runtime.{function}"));
        let text = probe.map(Value::to_string).unwrap_or_default();
        ensure!(
            text.contains("emulated"),
            "no cheap probe on `{function}`: {text}"
        );
    }
    for variable in ["mbuckets", "MemProfileRate"] {
        let mut reads = plan["reads"].as_array().into_iter().flatten();
        let is_read = reads.any(|read| read["name"] == format!("runtime.{variable}"));
        ensure!(is_read, "`{variable}` is not read: {}", plan["reads"]);
    }
    let limits = plan["limits"].as_array().is_some_and(Vec::is_empty);
    ensure!(limits, "not seen: {}", plan["limits"]);
    Ok(())
}

fn report(file: &Path) -> Result<Value> {
    let mut command = as_root(workspace::leaktrace());
    let text = run::output(
        command
            .arg("report")
            .arg(file)
            .args(["--format", "json", "-n", "100000"]),
    )?;
    serde_json::from_str(&text).context("a report is JSON")
}

fn frames(report: &Value) -> impl Iterator<Item = &Value> {
    let sites = report["sites"].as_array().into_iter().flatten();
    sites.flat_map(|site| site["stack"].as_array().into_iter().flatten())
}

/// Frames, and those of them that have a name.
fn names(report: &Value) -> (usize, usize) {
    let named = frames(report).filter(|frame| frame["function"].is_string());
    (frames(report).count(), named.count())
}

fn nameless(report: &Value) -> String {
    let frame = frames(report).find(|frame| !frame["function"].is_string());
    frame.map(Value::to_string).unwrap_or_default()
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

/// Downloads and unpacks a package unless that is done; gives the folder that holds its files.
fn unpack(package: &str) -> Result<std::path::PathBuf> {
    let cache = workspace::cache()?.join("services");
    let folder = cache.join(package);
    if folder.is_dir() {
        return Ok(folder);
    }
    let unfinished = cache.join(format!(".{package}.{}", std::process::id()));
    fs::create_dir_all(&unfinished)
        .with_context(|| format!("failed to create `{}`", unfinished.display()))?;
    eprintln!("services: {package} from the distribution, 4 to 20 MB, unpacked into the cache");
    let result = (|| {
        run::run(
            Command::new("apt-get")
                .args(["-qq", "download", package])
                .current_dir(&unfinished),
        )?;
        let mut entries = fs::read_dir(&unfinished)?
            .flatten()
            .map(|entry| entry.path());
        let archive = entries
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("`apt-get download {package}` left no package"))?;
        run::run(
            Command::new("dpkg")
                .arg("-x")
                .arg(&archive)
                .arg(&unfinished),
        )?;
        fs::remove_file(&archive)?;
        fs::rename(&unfinished, &folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))
    })();
    // Gone already when all went well.
    let _ = fs::remove_dir_all(&unfinished);
    result.map(|()| folder)
}
