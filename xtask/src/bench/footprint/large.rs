//! How long leaktrace takes to attach to a large stripped Go program, and to name what it has seen of it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{NAME, file, record};
use crate::{
    bench::{SETTLE, spread},
    go,
    run::{self, as_root},
    service::Service,
    workspace,
};

/// Packages of the large program, functions of each, and statements of each function: 99 MB, stripped.
const PACKAGES: usize = 14;
const FUNCTIONS: usize = 1000;
const STATEMENTS: usize = 40;
/// Packages whose functions are called, and what they have allocated is kept.
const CALLED: usize = 5;

/// Attaches to it, lets it allocate from all its lines, and detaches.
///
/// # Errors
///
/// When it cannot be built, or leaktrace fails.
pub(super) fn measure(turns: u32) -> Result<()> {
    let program = large_program()?;
    let size = program.metadata()?.len();
    let (mut attach, mut name, mut frames) = (Vec::new(), Vec::new(), 0);
    let file = file("large.leaktrace")?;
    for _ in 0..turns {
        let mut service = Service::start(&program, &[])?;
        fs::remove_file(&file).ok();
        let (mut child, took) = until_attached(&mut record(&service, &file))?;
        attach.push(took.as_secs_f64() * 1000.0);
        service.ask()?;
        // So that it is in an interval.
        thread::sleep(2 * SETTLE);
        let begun = Instant::now();
        run::run(as_root("kill").args(["-INT", &child.id().to_string()]))?;
        let status = child.wait().context("failed to wait for leaktrace")?;
        ensure!(status.success(), "`leaktrace record` failed: {status}");
        name.push(begun.elapsed().as_secs_f64());
        frames = distinct_frames(&file)?;
    }
    println!(
        "\n{NAME}: a stripped Go program of {} MB; median (lowest to highest) of {turns} turns\n  \
         {:<50} {:>26}\n  {:<50} {:>26}",
        size / 1_000_000,
        "from the start to live probes, ms",
        spread(&mut attach, 0),
        format!("from SIGINT to the end, {frames} frames named, s"),
        spread(&mut name, 2)
    );
    Ok(())
}

/// Starts it, and waits until it says that its probes are live.
fn until_attached(command: &mut Command) -> Result<(Child, Duration)> {
    let begun = Instant::now();
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", run::line(command)))?;
    let stderr = child.stderr.take().context("leaktrace has no stderr")?;
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let said = lines.find(|line| line.contains("attached to"));
    ensure!(said.is_some(), "`leaktrace record` did not attach");
    let took = begun.elapsed();
    thread::spawn(move || lines.for_each(drop));
    Ok((child, took))
}

/// Functions and lines that a report of all sites has, each once.
fn distinct_frames(file: &Path) -> Result<usize> {
    let mut report = Command::new(workspace::leaktrace());
    let text = run::output(
        report
            .args(["report", "--format", "json", "-n", "1000000"])
            .arg(file),
    )?;
    let report: Value = serde_json::from_str(&text).context("failed to read a report")?;
    let sites = report["sites"].as_array().into_iter().flatten();
    let frames = sites.flat_map(|site| site["stack"].as_array().into_iter().flatten());
    let named = frames.filter(|frame| frame["function"].is_string());
    let named = named.map(|frame| (frame["function"].to_string(), frame["line"].to_string()));
    Ok(named.collect::<BTreeSet<_>>().len())
}

/// The large program. It takes some minutes to build, once.
fn large_program() -> Result<PathBuf> {
    let folder = workspace::target().join("bench/broad");
    let binary = folder.join("broad");
    if binary.is_file() {
        return Ok(binary);
    }
    eprintln!(
        "bench: makes a Go program of {} functions: some minutes",
        PACKAGES * FUNCTIONS
    );
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("go.mod"), "module broad\n\ngo 1.21\n")?;
    let mut imports = String::new();
    let mut calls = String::new();
    for number in 0..PACKAGES {
        let package = folder.join(format!("p{number}"));
        fs::create_dir_all(&package)?;
        fs::write(package.join("p.go"), functions(number)?)?;
        writeln!(imports, "\t\"broad/p{number}\"")?;
        let keeps = if number < CALLED {
            "kept = append(kept, f(100))"
        } else {
            "n += len(f(1))"
        };
        writeln!(calls, "\t\tfor _, f := range p{number}.All {{ {keeps} }}")?;
    }
    fs::write(
        folder.join("main.go"),
        format!(
            "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"os\"\n\t\"runtime\"\n{imports})\n\n\
             var kept []string\n\nfunc main() {{\n\truntime.MemProfileRate = 1024\n\tn := 0\n\
             \tin := bufio.NewScanner(os.Stdin)\n\tfmt.Println(\"ready\")\n\tfor in.Scan() {{\n{calls}\
             \t\tfmt.Printf(\"{{\\\"asked\\\":\\\"now\\\",\\\"n\\\":%d}}\\n\", n)\n\t}}\n}}\n"
        ),
    )?;
    let mut build = go::NEWEST.build()?;
    build
        .current_dir(&folder)
        .args(["-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(&binary)
        .arg(".")
        .env("GO111MODULE", "on");
    run::run(&mut build)?;
    Ok(binary)
}

/// A package of functions that allocate, each from many lines.
fn functions(package: usize) -> Result<String> {
    let mut source =
        format!("package p{package}\n\nimport \"strconv\"\n\nvar All = [...]func(int) string{{");
    for number in 0..FUNCTIONS {
        write!(source, "f{number},")?;
    }
    source.push_str("}\n");
    for number in 0..FUNCTIONS {
        write!(
            source,
            "\n//go:noinline\nfunc f{number}(n int) string {{\n\ts := \"\"\n"
        )?;
        for statement in 0..STATEMENTS {
            let factor = number * STATEMENTS + statement;
            writeln!(
                source,
                "\ts += strconv.Itoa(n*{factor}) + s[:n%{}]",
                statement + 1
            )?;
        }
        source.push_str("\treturn s\n}\n");
    }
    Ok(source)
}
