//! `cargo xtask bench`: what being recorded costs a program that does nothing but allocate.
//!
//! One process of the churn program is measured in turn alone and under `leaktrace record`, again and
//! again: what else the machine does falls on both alike. The figures are ratios within one turn,
//! against the mean of what is before and after it. It is built with the runtime's heap sampler and
//! without, where leaktrace samples for itself; and beside it stands what a uprobe on every allocation
//! would cost. Other cases are what leaktrace takes for itself, what reading a large capture takes, what `why`
//! takes for a large heap and costs the program meanwhile, and a native allocator, beside other tools.

mod footprint;
mod native;
mod peers;
mod report;
mod why;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};

use crate::{
    go,
    run::{self, as_root},
    service::Service,
    setup::{self, Scope},
    targets, workspace,
};

/// Time for a tracer to settle after it has attached, and for the program after it has gone.
const SETTLE: Duration = Duration::from_secs(1);

/// How long leaktrace may take to attach, and to write its file when it has done.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a per-allocation tracer has to probe. From Go 1.27 on compiled code calls variants made for one
/// size class, `mallocgcSmallScanNoHeaderSC4` and the like, which do not come by here.
const ALLOCATOR: &str = "runtime.mallocgc";

/// A way to run the churn program.
struct Case {
    name: &'static str,
    /// Suffix of the binary's name.
    variant: &'static str,
    arguments: &'static [&'static str],
    /// Whether a uprobe on every allocation is measured, too.
    is_compared: bool,
}

/// Steps of other work that leave ten to twenty million objects a second on two processors.
const SLOWER: [&str; 2] = ["-spin", "32"];

const CASES: [Case; 4] = [
    Case {
        name: "sampler on, flat out",
        variant: "",
        arguments: &[],
        is_compared: true,
    },
    Case {
        name: "sampler on, with other work",
        variant: "",
        arguments: &SLOWER,
        is_compared: false,
    },
    Case {
        name: "sampler off, flat out",
        variant: "-nopprof",
        arguments: &[],
        is_compared: false,
    },
    Case {
        name: "sampler off, with other work",
        variant: "-nopprof",
        arguments: &SLOWER,
        is_compared: false,
    },
];

/// What a case has shown.
struct Ratios {
    /// Objects a second, alone.
    alone: Vec<f64>,
    recorded: Vec<f64>,
    probed: Vec<f64>,
}

/// Measures `pairs` times, `seconds` each, and prints the table. `workers` goroutines allocate; one a
/// processor if that is not said, which leaves leaktrace no processor of its own. Cases without `only` in
/// their name are left out.
///
/// # Errors
///
/// When setting up or building fails, a tracer cannot attach, or the program ends.
pub(crate) fn run(pairs: u32, seconds: u64, workers: Option<u32>, only: &str) -> Result<()> {
    setup::run(Scope::Demo)?;
    crate::release::build()?;
    targets::build(Scope::Demo)?;

    if report::NAME.contains(only) {
        report::measure(pairs)?;
    }
    if footprint::NAME.contains(only) {
        footprint::measure(pairs, Duration::from_secs(seconds))?;
    }
    if native::NAME.contains(only) {
        native::measure(pairs, Duration::from_secs(seconds))?;
    }
    if why::NAME.contains(only) {
        why::measure(pairs, Duration::from_secs(seconds), workers)?;
    }
    let mut cases = CASES
        .iter()
        .filter(|case| case.name.contains(only))
        .peekable();
    if cases.peek().is_none() {
        return Ok(());
    }
    println!("case                          turn   objects/s, M: alone  leaktrace   alone   ratio");
    let mut lines = Vec::new();
    for case in cases {
        let mut ratios = measure(case, pairs, Duration::from_secs(seconds), workers)?;
        lines.push(format!(
            "  {:<30} {:>5.1} {:>26}",
            case.name,
            ratios.alone.iter().sum::<f64>() / ratios.alone.len().max(1) as f64 / 1e6,
            spread(&mut ratios.recorded, 3)
        ));
        if case.is_compared {
            let probed = spread(&mut ratios.probed, 4);
            lines.push(format!(
                "    {:<34} {probed:>26}",
                "a uprobe on every allocation"
            ));
        }
    }
    println!(
        "\nthroughput under `leaktrace record` against the same program alone, median (lowest to \
         highest) of {pairs} turns:\n  {:<30} {:>5} {:>26}",
        "case", "M/s", "ratio"
    );
    for line in lines {
        println!("{line}");
    }
    println!(
        "These are ratios on a machine that does other things too: trust the median, not one turn."
    );
    Ok(())
}

/// Measures one case in turns.
fn measure(case: &Case, pairs: u32, window: Duration, workers: Option<u32>) -> Result<Ratios> {
    let program = workspace::targets().join(format!("churn-{}{}", go::NEWEST.number, case.variant));
    let workers = workers.map(|workers| workers.to_string());
    let mut arguments = vec!["-interval", "250ms"];
    arguments.extend(case.arguments);
    arguments.extend(
        workers
            .iter()
            .flat_map(|workers| ["-workers", workers.as_str()]),
    );
    let probes = match case.is_compared {
        true => allocators(&program)?,
        false => Vec::new(),
    };
    let service = Service::start(&program, &arguments)?;
    thread::sleep(SETTLE);
    let mut ratios = Ratios {
        alone: Vec::new(),
        recorded: Vec::new(),
        probed: Vec::new(),
    };
    for turn in 1..=pairs {
        let before = throughput(&service, window)?;
        let under_record = under_leaktrace(&service, window, &[])?;
        thread::sleep(SETTLE);
        let after = throughput(&service, window)?;
        let record = under_record / f64::midpoint(before, after);
        println!(
            "{:<30} {turn:>3} {:>20.2} {:>10.2} {:>7.2} {record:>7.3}",
            case.name,
            before / 1e6,
            under_record / 1e6,
            after / 1e6,
        );
        ratios.alone.extend([before, after]);
        ratios.recorded.push(record);
        if case.is_compared {
            let under_probe = under_uprobes(&service, &program, &probes, window)?;
            ratios.probed.push(under_probe / after);
            thread::sleep(SETTLE);
        }
    }
    Ok(ratios)
}

/// Objects a second, mean over the window.
fn throughput(service: &Service, window: Duration) -> Result<f64> {
    rates(service, window).map(|[all, _]| all)
}

/// Objects a second, and for each second of the program's own processor time; means over the window.
fn rates(service: &Service, window: Duration) -> Result<[f64; 2]> {
    let lines = service.listen(window)?;
    let rates: Vec<_> = lines.iter().filter_map(|(_, line)| rate(line)).collect();
    // The first line covers time from before the window.
    let rates = rates.get(1..).unwrap_or_default();
    ensure!(
        !rates.is_empty(),
        "the sample program said nothing for {window:?}"
    );
    Ok(means(rates))
}

/// The mean of each of both figures.
fn means(rates: &[[f64; 2]]) -> [f64; 2] {
    let mean = |index: usize| {
        let sum: f64 = rates.iter().map(|rate| rate[index]).sum();
        sum / rates.len() as f64
    };
    [mean(0), mean(1)]
}

/// The figures in one line of a sample program; the native one counts by its processor time only.
fn rate(line: &str) -> Option<[f64; 2]> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let figure = |name: &str| line[name].as_f64();
    let all = figure("objects_per_s")?;
    Some([all, figure("objects_per_cpu_s").unwrap_or(all)])
}

/// Throughput while leaktrace records with these options.
fn under_leaktrace(service: &Service, window: Duration, options: &[&str]) -> Result<f64> {
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    let file = folder.join("churn.leaktrace");
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("failed to remove `{}`", file.display()))?;
    }
    // Longer than the window by what attaching may take: the window is stopped by a signal.
    let mut command = as_root(workspace::leaktrace());
    command
        .args([
            "record",
            "-q",
            "-p",
            &service.pid().to_string(),
            "-d",
            "10m",
            "-o",
        ])
        .arg(&file)
        .args(options);
    let mut record = Tracer::start(&mut command)?;
    record.wait_until_attached()?;
    thread::sleep(SETTLE);
    let rate = throughput(service, window)?;
    record.stop()?;
    Ok(rate)
}

/// Throughput while every allocation traps.
fn under_uprobes(
    service: &Service,
    program: &Path,
    probes: &[u64],
    window: Duration,
) -> Result<f64> {
    let define = |offset: &u64| {
        format!(
            "echo 'p:leaktrace_bench/at_{offset:x} {}:{offset:#x}' >> uprobe_events",
            program.display()
        )
    };
    let remove = |offset: &u64| format!("echo -:leaktrace_bench/at_{offset:x} >> uprobe_events");
    // A mount namespace of its own, so that a machine without tracefs mounted stays that way. The probes
    // go when stdin closes, also when this process dies.
    let script = format!(
        "set -e
         [ -e /sys/kernel/tracing/uprobe_events ] || mount -t tracefs tracefs /sys/kernel/tracing
         cd /sys/kernel/tracing
         trap 'echo 0 > events/leaktrace_bench/enable; {}' EXIT
         {}
         echo 1 > events/leaktrace_bench/enable
         echo attached
         cat > /dev/null",
        probes.iter().map(remove).collect::<Vec<_>>().join("; "),
        probes.iter().map(define).collect::<Vec<_>>().join("\n"),
    );
    let mut command = as_root("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("failed to start `unshare`")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let rate = if line.trim() == "attached" {
        thread::sleep(SETTLE);
        throughput(service, window)
    } else {
        Err(anyhow!("failed to put uprobes on `{ALLOCATOR}`"))
    };
    drop(child.stdin.take());
    let status = child.wait().context("failed to wait for `unshare`")?;
    ensure!(
        status.success() || rate.is_err(),
        "failed to take the uprobes off `{ALLOCATOR}`"
    );
    rate
}

/// Where in its file the first instructions of the allocator and of its variants are, each once.
fn allocators(program: &Path) -> Result<Vec<u64>> {
    let bytes =
        fs::read(program).with_context(|| format!("failed to read `{}`", program.display()))?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("failed to read `{}` as ELF", program.display()))?;
    let mut offsets = Vec::new();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.name().is_ok_and(is_allocator))
    {
        let address = symbol.address();
        let offset = file.segments().find_map(|segment| {
            let within = address.checked_sub(segment.address())?;
            let (offset, size) = segment.file_range();
            (within < size).then(|| offset + within)
        });
        offsets.push(offset.with_context(|| format!("{address:#x} is in no segment"))?);
    }
    offsets.sort_unstable();
    offsets.dedup();
    ensure!(
        !offsets.is_empty(),
        "`{}` has no `{ALLOCATOR}`",
        program.display()
    );
    Ok(offsets)
}

/// The allocator itself, or a variant that compiled code calls in its place: `…SC` and a number.
fn is_allocator(name: &str) -> bool {
    let Some(variant) = name.strip_prefix(ALLOCATOR) else {
        return false;
    };
    let class = variant.trim_end_matches(|last: char| last.is_ascii_digit());
    variant.is_empty() || class.ends_with("SC") && class != variant
}

/// A tool that is attached.
struct Tracer {
    child: Child,
}

impl Tracer {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("failed to start `{}`", run::line(command)))?;
        Ok(Self { child })
    }

    /// Waits until it holds kernel objects that attach, and no more come.
    fn wait_until_attached(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut last = 0;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                bail!("`leaktrace record` ended before it had attached: {status}");
            }
            let now = self.attachments()?;
            if now > 0 && now == last {
                return Ok(());
            }
            last = now;
            thread::sleep(Duration::from_millis(500));
        }
        bail!("`leaktrace record` did not attach within {PATIENCE:?}")
    }

    /// Links and perf events among its open files; those of its child when it runs under sudo.
    fn attachments(&self) -> Result<usize> {
        let pid = self.child.id();
        let script = format!(
            "for p in {pid} $(cat /proc/{pid}/task/{pid}/children); do ls -l /proc/$p/fd; done 2>/dev/null || true"
        );
        let files = run::output(as_root("sh").args(["-c", &script]))?;
        let is_attachment = |line: &&str| {
            line.contains("[perf_event]") || line.contains("bpf_link") || line.contains("bpf-link")
        };
        Ok(files.lines().filter(is_attachment).count())
    }

    /// Asks it to finish and waits until it has.
    fn stop(mut self) -> Result<()> {
        run::run(as_root("kill").args(["-INT", &self.child.id().to_string()]))?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "`leaktrace record` failed: {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("`leaktrace record` did not end within {PATIENCE:?} of SIGINT")
    }
}

impl Drop for Tracer {
    /// Only on the way out of an error: otherwise it has ended.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = run::run(as_root("kill").args(["-INT", &self.child.id().to_string()]));
            let _ = self.child.wait();
        }
    }
}

/// `0.991 (0.985 to 1.002)`
fn spread(ratios: &mut [f64], digits: usize) -> String {
    ratios.sort_unstable_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    let median = match ratios {
        [] => return "not measured".into(),
        _ if ratios.len() % 2 == 1 => ratios[middle],
        _ => f64::midpoint(ratios[middle - 1], ratios[middle]),
    };
    let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{median:.digits$} ({lowest:.digits$} to {highest:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::{is_allocator, rate, spread};

    #[test]
    fn spread_is_median_and_range() {
        assert_eq!(spread(&mut [0.98, 1.02, 0.99], 3), "0.990 (0.980 to 1.020)");
        assert_eq!(spread(&mut [1.0, 0.5], 2), "0.75 (0.50 to 1.00)");
        assert_eq!(spread(&mut [], 2), "not measured");
    }

    #[test]
    fn rate_is_read_from_a_line_of_churn() {
        assert_eq!(
            rate(r#"{"t_s":1.000,"objects_per_cpu_s":21380066,"objects_per_s":42760132}"#),
            Some([42_760_132.0, 21_380_066.0])
        );
        assert_eq!(rate(r#"{"ready":true,"pid":7444}"#), None);
    }

    #[test]
    fn variants_are_told_from_what_the_allocator_calls() {
        assert!(is_allocator("runtime.mallocgc"));
        assert!(is_allocator("runtime.mallocgcSmallScanNoHeaderSC4"));
        assert!(!is_allocator("runtime.mallocgcSmallScanNoHeader"));
        assert!(!is_allocator(
            "runtime.mallocgcSmallScanNoHeaderSC4SlowPath"
        ));
        assert!(!is_allocator("main.mallocgc"));
    }
}
