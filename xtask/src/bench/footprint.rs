//! What leaktrace takes for itself: beside memleak, at a steady rate of calls; and how long it takes to attach to a
//! large stripped Go program, and to name what it has seen of it.

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

use super::{SETTLE, Tracer, peers::Peers, spread};
use crate::{
    go,
    run::{self, as_root},
    service::Service,
    targets, workspace,
};

/// What a case has in its name.
pub(super) const NAME: &str = "footprint";

/// Packages of the large program, functions of each, and statements of each function: 99 MB, stripped.
const PACKAGES: usize = 14;
const FUNCTIONS: usize = 1000;
const STATEMENTS: usize = 40;
/// Packages whose functions are called, and what they have allocated is kept.
const CALLED: usize = 5;

/// Measures `turns` times, and prints the tables.
///
/// # Errors
///
/// When a tool cannot be had or attached, or a program ends.
pub(super) fn measure(turns: u32, window: Duration) -> Result<()> {
    at_a_steady_rate(turns, window)?;
    of_a_large_program(turns)
}

/// What a process has used.
struct Used {
    /// Of processor time.
    cpu: Duration,
    /// The most that was resident, in KiB.
    peak_kib: f64,
}

impl Used {
    fn by(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("failed to read `{path}`"))
        };
        // Behind the name: the state is the third field, user and system time are the 14th and 15th (proc(5)).
        let stat = read("stat")?;
        let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse().unwrap_or(0)).sum::<u64>();
        // SAFETY: no preconditions.
        let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
        let status = read("status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        Ok(Self {
            cpu: Duration::from_secs_f64(ticks as f64 / a_second as f64),
            peak_kib: peak.context("a status without VmHWM")?,
        })
    }
}

/// What a tool has used in each turn.
#[derive(Default)]
struct Tool {
    /// Of one processor, in percent.
    cpu: Vec<f64>,
    peak_mib: Vec<f64>,
    kib_a_minute: Vec<f64>,
}

impl Tool {
    /// Has it attached for a while; its file, if it has one, is measured, too.
    fn turn(&mut self, command: &mut Command, window: Duration, file: Option<&Path>) -> Result<()> {
        let mut tracer = Tracer::start(command)?;
        tracer.wait_until_attached()?;
        thread::sleep(SETTLE);
        let pid = tracer.child.id();
        let size = || file.map_or(Ok(0), |file| file.metadata().map(|file| file.len()));
        let (before, size_before, begun) = (Used::by(pid)?, size()?, Instant::now());
        thread::sleep(window);
        let (after, size_after, took) = (Used::by(pid)?, size()?, begun.elapsed().as_secs_f64());
        tracer.stop()?;
        self.cpu
            .push((after.cpu - before.cpu).as_secs_f64() / took * 100.0);
        self.peak_mib.push(after.peak_kib / 1024.0);
        self.kib_a_minute
            .push((size_after - size_before) as f64 / 1024.0 / took * 60.0);
        Ok(())
    }
}

fn at_a_steady_rate(turns: u32, window: Duration) -> Result<()> {
    let peers = Peers::find()?;
    targets::build_native_program("steady")?;
    let program = workspace::targets().join("steady");
    let (mut ours, mut memleak) = (Tool::default(), Tool::default());
    let file = capture()?;
    for _ in 0..turns {
        let service = Service::start(&program, &[])?;
        fs::remove_file(&file).ok();
        let every_block = ["--sample", "all", "-q"];
        ours.turn(
            record(&service, &file).args(every_block),
            window,
            Some(&file),
        )?;
        thread::sleep(SETTLE);
        memleak.turn(&mut peers.memleak(service.pid()), window, None)?;
    }
    println!(
        "\n{NAME}: 10,000 calls of malloc and free a second, from 512 places; median (lowest to highest) of {turns} turns; \
         {}\n  {:<26} {:>24} {:>24} {:>26}",
        peers.versions, "", "processor, %", "peak memory, MiB", "capture, KiB a minute"
    );
    for (name, tool) in [
        ("leaktrace, every block", &mut ours),
        ("memleak, every block", &mut memleak),
    ] {
        println!(
            "  {name:<26} {:>24} {:>24} {:>26}",
            spread(&mut tool.cpu, 2),
            spread(&mut tool.peak_mib, 1),
            spread(&mut tool.kib_a_minute, 0)
        );
    }
    Ok(())
}

fn of_a_large_program(turns: u32) -> Result<()> {
    let program = large_program()?;
    let size = program.metadata()?.len();
    let (mut attach, mut name, mut frames) = (Vec::new(), Vec::new(), 0);
    let file = capture()?;
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

fn capture() -> Result<PathBuf> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    Ok(folder.join("footprint.leaktrace"))
}

fn record(service: &Service, file: &Path) -> Command {
    let mut command = as_root(workspace::leaktrace());
    let pid = service.pid().to_string();
    command
        .args(["record", "-p", &pid, "-d", "1h", "-o"])
        .arg(file)
        .stdout(Stdio::null());
    command
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
    let mut build = Command::new(go::NEWEST.command()?);
    build
        .current_dir(&folder)
        .args(["build", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(&binary)
        .arg(".")
        .env("GOTOOLCHAIN", "local")
        .env("GO111MODULE", "on")
        .env("GOFLAGS", "")
        .env("GOCACHE", workspace::target().join("go-cache"))
        .env("CGO_ENABLED", "0");
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
