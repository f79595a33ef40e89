//! Programs that do the same work all the time, alone and under each tool in turn: what the tool takes, and what the
//! program takes meanwhile.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{NAME, file, record};
use crate::{
    bench::{SETTLE, Tracer, peers::Peers, spread},
    go,
    run::{self, find},
    service::Service,
    targets, workspace,
};

/// How often an endpoint is asked for a profile.
const FETCHED_EVERY: Duration = Duration::from_secs(5);

/// What a process, or some together, have used.
#[derive(Clone, Copy, Default)]
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

    fn by_all(pids: &[u32]) -> Result<Self> {
        pids.iter().try_fold(Self::default(), |sum, &pid| {
            let used = Self::by(pid)?;
            Ok(Self {
                cpu: sum.cpu + used.cpu,
                peak_kib: sum.peak_kib + used.peak_kib,
            })
        })
    }

    /// Runs a command to its end.
    fn by_command(command: &mut Command) -> Result<Self> {
        let line = run::line(command);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start `{line}`"))?;
        let mut status = 0;
        // SAFETY: zeros are a valid value of it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid, and the child is ours and not waited for by anybody else.
        let ended = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) };
        ensure!(ended > 0 && status == 0, "`{line}` failed");
        let time = |of: libc::timeval| Duration::new(of.tv_sec as u64, of.tv_usec as u32 * 1000);
        Ok(Self {
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            peak_kib: usage.ru_maxrss as f64,
        })
    }
}

/// A process and all that it has started, and these have, and are there.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(&pid) = all.get(at) {
        at += 1;
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|n| n.parse::<u32>().ok()),
            );
        }
    }
    all
}

/// What a way to look at a program has cost in each turn.
struct Way {
    name: &'static str,
    /// Of one processor, in percent: the tool's own processes, and the program.
    tool: Vec<f64>,
    program: Vec<f64>,
    peak_mib: Vec<f64>,
    kib_a_minute: Vec<f64>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            tool: Vec::new(),
            program: Vec::new(),
            peak_mib: Vec::new(),
            kib_a_minute: Vec::new(),
        }
    }

    fn add(&mut self, tool: Used, program: Duration, kept: u64, took: Duration) {
        let share = |of: Duration| of.as_secs_f64() / took.as_secs_f64() * 100.0;
        self.tool.push(share(tool.cpu));
        self.program.push(share(program));
        self.peak_mib.push(tool.peak_kib / 1024.0);
        self.kib_a_minute
            .push(kept as f64 / 1024.0 / took.as_secs_f64() * 60.0);
    }

    /// A tool of these processes is at work on the program meanwhile, and writes that file, if any.
    fn watch(
        &mut self,
        tool: &[u32],
        program: u32,
        window: Duration,
        file: Option<&Path>,
    ) -> Result<()> {
        let size = || file.map_or(Ok(0), |file| file.metadata().map(|file| file.len()));
        let (tool_before, before, size_before) =
            (Used::by_all(tool)?, Used::by(program)?.cpu, size()?);
        let begun = Instant::now();
        thread::sleep(window);
        let mut used = Used::by_all(tool)?;
        let program = Used::by(program)?.cpu - before;
        used.cpu -= tool_before.cpu;
        self.add(used, program, size()? - size_before, begun.elapsed());
        Ok(())
    }

    /// Attaches such a tool, and detaches it.
    fn attach(
        &mut self,
        command: &mut Command,
        service: &Service,
        window: Duration,
        file: Option<&Path>,
    ) -> Result<()> {
        let mut tracer = Tracer::start(command)?;
        tracer.wait_until_attached()?;
        thread::sleep(SETTLE);
        self.watch(&tree(tracer.child.id()), service.pid(), window, file)?;
        tracer.stop()?;
        thread::sleep(SETTLE);
        Ok(())
    }
}

fn print(of: &str, turns: u32, ways: &mut [Way]) {
    println!(
        "\n{NAME}: {of}; median (lowest to highest) of {turns} turns\n  {:<28} {:>24} {:>24} {:>24} {:>26}",
        "",
        "the tool, % of a CPU",
        "the program, % of one",
        "peak memory, MiB",
        "kept, KiB a minute"
    );
    for way in ways {
        println!(
            "  {:<28} {:>24} {:>24} {:>24} {:>26}",
            way.name,
            spread(&mut way.tool, 2),
            spread(&mut way.program, 2),
            spread(&mut way.peak_mib, 1),
            spread(&mut way.kib_a_minute, 0)
        );
    }
}

/// A C program that calls malloc and free 10,000 times a second.
///
/// # Errors
///
/// When a tool cannot be had or attached, or the program ends.
pub(super) fn native(turns: u32, window: Duration) -> Result<()> {
    let peers = Peers::find()?;
    targets::build_native_program("steady")?;
    let program = workspace::targets().join("steady");
    let mut ways = [
        "alone",
        "leaktrace",
        "leaktrace, --sample all",
        "memleak",
        "bpftrace",
        "heaptrack, started with it",
    ]
    .map(Way::new);
    let file = file("steady.leaktrace")?;
    for _ in 0..turns {
        let [alone, default, all, memleak, bpftrace, heaptrack] = &mut ways;
        let service = Service::start(&program, &[])?;
        thread::sleep(SETTLE);
        alone.watch(&[], service.pid(), window, None)?;
        for (way, options) in [
            (default, &["-q"][..]),
            (all, &["-q", "--probe", "malloc", "--sample", "all"]),
        ] {
            fs::remove_file(&file).ok();
            let mut command = record(&service, &file);
            way.attach(command.args(options), &service, window, Some(&file))?;
        }
        memleak.attach(&mut peers.memleak(service.pid()), &service, window, None)?;
        bpftrace.attach(&mut peers.bpftrace(service.pid())?, &service, window, None)?;
        drop(service);
        under_heaptrack(heaptrack, &program, window)?;
    }
    let of = format!(
        "10,000 calls of malloc and free a second, from 512 places; {}",
        peers.versions
    );
    print(&of, turns, &mut ways);
    Ok(())
}

fn under_heaptrack(way: &mut Way, program: &Path, window: Duration) -> Result<()> {
    let heaptrack = find("heaptrack").context("there is no heaptrack")?;
    let file = file("steady.heaptrack")?;
    let [output, path] = [&file, program].map(|path| path.to_string_lossy().into_owned());
    let service = Service::start(&heaptrack, &["--output", &output, &path])?;
    thread::sleep(SETTLE);
    let is_program = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|executable| executable == program)
    };
    let (ours, tool): (Vec<_>, _) = tree(service.pid()).into_iter().partition(is_program);
    let pid = ours.first().context("heaptrack has not started it")?;
    // It is compressed, and its name says by what.
    let written = ["gz", "zst"].map(|how| file.with_extension(format!("heaptrack.{how}")));
    let written = written.iter().find(|file| file.is_file());
    way.watch(&tool, *pid, window, written.map(AsRef::as_ref))
}

/// A Go service that makes 128 MB of garbage a second, replaces what it has cached and leaks 8 MB a second.
///
/// # Errors
///
/// When the service cannot be built or ends, or a tool fails.
pub(super) fn go(turns: u32, window: Duration) -> Result<()> {
    let program = workspace::targets().join(format!("reload-{}", go::NEWEST.number));
    let pprof = pprof()?;
    let mut ways = ["alone", "leaktrace", "go tool pprof, each 5 s"].map(Way::new);
    let file = file("service.leaktrace")?;
    for _ in 0..turns {
        let [alone, leaktrace, fetched] = &mut ways;
        // From its beginning each time: what lives grows.
        let start = || {
            let service = Service::start(&program, &["-http", "127.0.0.1:0"])?;
            thread::sleep(SETTLE);
            anyhow::Ok(service)
        };
        let service = start()?;
        // As long as it takes to attach.
        thread::sleep(SETTLE);
        alone.watch(&[], service.pid(), window, None)?;
        drop(service);
        let service = start()?;
        fs::remove_file(&file).ok();
        let mut command = record(&service, &file);
        leaktrace.attach(command.arg("-q"), &service, window, Some(&file))?;
        drop(service);
        let mut service = start()?;
        thread::sleep(SETTLE);
        fetch(fetched, &pprof, &mut service, window)?;
    }
    print("a Go service", turns, &mut ways);
    Ok(())
}

/// What `go tool pprof` runs, which a release of Go has as its source only.
fn pprof() -> Result<PathBuf> {
    let binary = file("pprof")?;
    run::run(go::NEWEST.build()?.arg("-o").arg(&binary).arg("cmd/pprof"))?;
    Ok(binary)
}

/// Asks the service's endpoint for profiles of the heap, as one does who wants to see what grows.
fn fetch(way: &mut Way, pprof: &Path, service: &mut Service, window: Duration) -> Result<()> {
    let told: Value = serde_json::from_str(&service.ask()?).context("the service's answer")?;
    let address = told["http"].as_str().context("it serves no profiles")?;
    let url = format!("http://{address}/debug/pprof/heap");
    let file = file("service.pb.gz")?;
    let (begun, before) = (Instant::now(), Used::by(service.pid())?.cpu);
    let (mut used, mut kept) = (Used::default(), 0);
    while begun.elapsed() < window {
        let next = Instant::now() + FETCHED_EVERY;
        let mut command = Command::new(pprof);
        let one = Used::by_command(command.args(["-proto", "-output"]).args([&file]).arg(&url))?;
        used.cpu += one.cpu;
        used.peak_kib = used.peak_kib.max(one.peak_kib);
        kept += file.metadata()?.len();
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let program = Used::by(service.pid())?.cpu - before;
    way.add(used, program, kept, begun.elapsed());
    Ok(())
}
