//! What was typed, and what is needed.

mod process;
mod values;
mod why;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use leaktrace::{export, loader::MapSizes, plan::Families, record, report, verdict};

pub(crate) use process::Process;
use values::{duration, entries, interval, percent, ring_bytes, sample, size};
pub(crate) use why::{Why, WhyFormat};

/// Attach to a running process and name the allocations it never frees.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 usage; 3 leaks found with --fail-on-leak; 4 target gone before \
attach; 5 not permitted; 6 not supported here (kernel, target)";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Attach to a process, record until -d, its exit or Ctrl-C, then print the top sites.
    #[command(visible_alias = "attach")]
    Record(Record),
    /// Show what a capture file says.
    Report(Report),
    /// Write what a capture file says in the form of another tool.
    Export(Export),
    /// Compare two captures: what grew, what is new, what is gone.
    Diff(Diff),
    /// Watch a process in the terminal: its sites, goroutines, memory and what watching costs.
    Top(Top),
    /// Goroutines of a Go process, or of a capture: what they wait for, where, and who made them.
    Goroutines(Goroutines),
    /// Say what keeps objects of a Go process alive: the path from a variable or a goroutine to them.
    Why(Why),
    /// Say what the host has, and what record would do to a process; attaches nothing.
    Check(Check),
    /// Write manual pages and completions for bash, zsh and fish.
    #[command(hide = true)]
    Generate(Generate),
}

#[derive(clap::Args)]
#[command(group = process::is_needed())]
pub(crate) struct Record {
    #[command(flatten)]
    process: Process,
    /// Capture file; it must not exist [default: leaktrace-COMM-PID-UTC.leaktrace]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How long to record [default: until the target exits or Ctrl-C].
    #[arg(short, long, value_parser = duration)]
    duration: Option<Duration>,
    /// Length of an interval: the resolution of the series and of ages.
    #[arg(long, default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Families of probes: auto, or some of vm,go,malloc,goroutine.
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    probe: Vec<Family>,
    /// Bytes for each sample of what leaktrace samples itself: blocks of native allocators, and a Go
    /// heap whose runtime does not; `all` takes every block [default: 512KiB, and every block of a
    /// process that allocates slowly].
    #[arg(long, value_name = "SIZE", value_parser = sample)]
    sample: Option<record::Sample>,
    /// Most that probes may cost, in percent of a processor, or of the processor time that the process uses if
    /// that is more. Native allocators that would cost more are traced in short windows, and probes that come
    /// to cost more are taken away [default: 3, and no bound for native allocators with --sample].
    #[arg(long, value_name = "PCT", value_parser = percent)]
    max_overhead: Option<f64>,
    /// Trace what was asked for by --probe or --sample whatever it costs the process.
    #[arg(long, conflicts_with = "max_overhead")]
    force: bool,
    /// Follow the processes that it makes, too: their native allocators, until they become other programs.
    #[arg(long, conflicts_with = "max_overhead")]
    follow_forks: bool,
    /// Switch a Go heap sampler on that is off, and off again at the end. This writes one variable
    /// of the process, runtime.MemProfileRate; nothing else ever writes to it.
    #[arg(long)]
    go_enable_heap_profile: bool,
    /// Look at the end for what keeps the objects of leaks of a Go heap alive, as `why` does, and which blocks of
    /// native allocators nothing points to any more; the process is not stopped.
    #[arg(long)]
    retention: bool,
    /// Memory that looking for it may take.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size, requires = "retention")]
    max_memory: u64,
    /// Objects followed at one time; each takes about 100 bytes of kernel memory.
    #[arg(long, value_name = "N", default_value_t = MapSizes::default().live_objects, value_parser = entries())]
    live_objects: u32,
    /// Distinct stacks kept; each takes about 1.1 KiB of kernel memory.
    #[arg(long, value_name = "N", default_value_t = MapSizes::default().stacks, value_parser = entries())]
    stacks: u32,
    /// Kernel buffer for address-space changes, a power of two of at least 4KiB.
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = ring_bytes)]
    ring_buffer: u32,
    /// Write the kernel side's log of losses to stderr (for diagnosis).
    #[arg(long)]
    kernel_log: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    /// vm, go and malloc, as far as the target has them.
    Auto,
    /// mmap, munmap, mremap and brk.
    Vm,
    /// The Go runtime's heap sampler and its collections, and a census of goroutines.
    Go,
    /// Native allocators: malloc, operator new, and their like.
    Malloc,
    /// Goroutines as they are made and end (0.5 µs each); not part of auto.
    Goroutine,
}

impl Record {
    /// What contradicts itself.
    pub(crate) fn conflict(&self) -> Option<clap::Error> {
        let asks = self.go_enable_heap_profile && !families(&self.probe).go;
        asks.then(|| {
            Args::command().error(
                clap::error::ErrorKind::ArgumentConflict,
                "--go-enable-heap-profile needs the probes of `go`, which --probe leaves out",
            )
        })
    }

    pub(crate) fn options(&self) -> Result<record::Options> {
        Ok(record::Options {
            pid: self.process.need()?,
            duration: self.duration,
            interval: self.interval,
            families: families(&self.probe),
            sample: self.sample,
            max_overhead: self.max_overhead,
            go_enable_heap_profile: self.go_enable_heap_profile,
            sizes: MapSizes {
                live_objects: self.live_objects,
                stacks: self.stacks,
                ring_bytes: self.ring_buffer,
                processes: if self.follow_forks {
                    MapSizes::PROCESSES
                } else {
                    0
                },
                ..MapSizes::default()
            },
            kernel_log: self.kernel_log,
            force: self.force,
            retention: self.retention.then_some(self.max_memory),
        })
    }
}

#[derive(clap::Args)]
#[command(group = process::is_needed())]
pub(crate) struct Top {
    #[command(flatten)]
    process: Process,
    /// Length of an interval: how often the screen changes.
    #[arg(long, default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Families of probes: auto, or some of vm,go,malloc,goroutine.
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    probe: Vec<Family>,
    /// Bytes for each sample of what leaktrace samples itself, or `all`; as of `record`.
    #[arg(long, value_name = "SIZE", value_parser = sample)]
    sample: Option<record::Sample>,
    /// Most that probes may cost, in percent; as of `record`.
    #[arg(long, value_name = "PCT", value_parser = percent)]
    max_overhead: Option<f64>,
    /// Trace what was asked for whatever it costs the process; as of `record`.
    #[arg(long, conflicts_with = "max_overhead")]
    force: bool,
}

impl Top {
    pub(crate) fn options(&self) -> Result<record::Options> {
        Ok(record::Options {
            pid: self.process.need()?,
            duration: None,
            interval: self.interval,
            families: families(&self.probe),
            sample: self.sample,
            max_overhead: self.max_overhead,
            go_enable_heap_profile: false,
            sizes: MapSizes::default(),
            kernel_log: false,
            force: self.force,
            retention: None,
        })
    }
}

/// What is asked for with `--probe`.
fn families(probe: &[Family]) -> Families {
    let has = |family| probe.contains(&family) || probe.contains(&Family::Auto);
    Families {
        vm: has(Family::Vm),
        go: has(Family::Go),
        malloc: has(Family::Malloc),
        goroutine: probe.contains(&Family::Goroutine),
    }
}

#[derive(clap::Args)]
pub(crate) struct Report {
    /// Capture file.
    pub(crate) file: PathBuf,
    /// Form of the result.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    /// How many sites to show.
    #[arg(short = 'n', long = "sites", default_value = "20", value_name = "N")]
    pub(crate) sites: usize,
    /// Every frame of a stack, not only the program's own.
    #[arg(short = 'v', long)]
    pub(crate) all_frames: bool,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Exit with 3 if any site, or any group of goroutines, is a leak.
    #[arg(long)]
    pub(crate) fail_on_leak: bool,
}

/// Which sites, and how they are looked at.
#[derive(clap::Args)]
pub(crate) struct Selection {
    /// Age from which a surviving object counts as kept for long.
    #[arg(long, default_value = "30s", value_parser = duration)]
    older: Duration,
    /// Only sites of these kinds.
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<Kind>,
    /// Only sites with one of these verdicts.
    #[arg(long, value_enum, value_delimiter = ',')]
    verdict: Vec<Verdict>,
    /// Look up frames again, with debug information from this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) debug_dir: Vec<PathBuf>,
}

impl Selection {
    pub(crate) fn options(&self) -> report::ReportOptions {
        report::ReportOptions {
            older: self.older,
            kinds: self.kind.iter().map(|kind| (*kind).into()).collect(),
            verdicts: self.verdict.iter().map(|v| (*v).into()).collect(),
            ..report::ReportOptions::default()
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Export {
    /// Capture file.
    pub(crate) file: PathBuf,
    /// Form of the result.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) to: Form,
    /// File, or directory for parquet, to make; it must not exist [default: standard output].
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: Option<PathBuf>,
    /// Figure of each site, for the forms that show one.
    #[arg(long, value_enum, default_value = "inuse_space")]
    pub(crate) value: Value,
    #[command(flatten)]
    pub(crate) selection: Selection,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// The profile of `go tool pprof`, gzipped; every value is in it.
    Pprof,
    /// Folded stacks, one a line.
    Folded,
    /// A flame graph as SVG.
    Flamegraph,
    /// speedscope's file format, every value as a profile.
    Speedscope,
    /// A page to look at, in one file: any browser, no network.
    Html,
    /// The report in full, as `report --format json` has it.
    Json,
    /// Tables: OUT is a directory, with a Parquet file for each.
    Parquet,
}

impl Export {
    /// What contradicts itself.
    pub(crate) fn conflict(&self) -> Option<clap::Error> {
        let has_nowhere = self.to == Form::Parquet && self.output.is_none();
        has_nowhere.then(|| {
            Args::command().error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "--to parquet makes several files: give it a directory with -o",
            )
        })
    }
}

impl Form {
    /// Whether a terminal cannot show it.
    pub(crate) fn is_binary(self) -> bool {
        matches!(self, Self::Pprof | Self::Parquet)
    }

    /// Whether it adds sites up, so that none may be counted twice.
    pub(crate) fn adds_up(self) -> bool {
        match self {
            Self::Pprof | Self::Folded | Self::Flamegraph | Self::Speedscope => true,
            Self::Html | Self::Json | Self::Parquet => false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Value {
    /// Bytes not known to be dead at the end.
    InuseSpace,
    /// The same in objects.
    InuseObjects,
    /// Bytes allocated since the attach.
    AllocSpace,
    /// The same in objects.
    AllocObjects,
    /// Bytes at the end less those at the attach.
    Growth,
}

impl From<Value> for export::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::InuseSpace => Self::InuseSpace,
            Value::InuseObjects => Self::InuseObjects,
            Value::AllocSpace => Self::AllocSpace,
            Value::AllocObjects => Self::AllocObjects,
            Value::Growth => Self::Growth,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Diff {
    /// Capture file to compare with.
    pub(crate) base: PathBuf,
    /// Capture file to compare.
    pub(crate) file: PathBuf,
    /// Form of the result.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    /// How many of the sites that changed to show, as text.
    #[arg(short = 'n', long = "sites", default_value = "20", value_name = "N")]
    pub(crate) sites: usize,
    /// Every frame of a stack, not only the program's own.
    #[arg(short = 'v', long)]
    pub(crate) all_frames: bool,
}

#[derive(clap::Args)]
pub(crate) struct Goroutines {
    #[command(flatten)]
    pub(crate) process: Process,
    /// Capture file, to see how they developed; without one a process is looked at, once.
    #[arg(required_unless_present = "process", conflicts_with = "process")]
    pub(crate) file: Option<PathBuf>,
    /// Form of the result.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
    /// How many groups to show.
    #[arg(short = 'n', long = "groups", default_value = "20", value_name = "N")]
    pub(crate) groups: usize,
}

#[derive(clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) process: Process,
    /// Form of the result.
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(clap::Args)]
pub(crate) struct Generate {
    /// Folder in which `man` and `completions` are made.
    pub(crate) folder: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    GoHeap,
    Malloc,
    Mmap,
    Brk,
}

impl From<Kind> for report::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::GoHeap => Self::GoHeap,
            Kind::Malloc => Self::Malloc,
            Kind::Mmap => Self::Mmap,
            Kind::Brk => Self::Brk,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Leak,
    Growing,
    Steady,
    Unknown,
}

impl From<Verdict> for verdict::Verdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Leak => Self::Leak,
            Verdict::Growing => Self::Growing,
            Verdict::Steady => Self::Steady,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::{values::size, *};

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert!(duration("0s").is_err() && duration("10").is_err() && duration("-1s").is_err());
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("2MiB"), Ok(2 << 20));
        assert_eq!(size("64"), Ok(64));
        assert!(size("2MB").is_err() && size("17179869184GiB").is_err());
        assert!(ring_bytes("5KiB").is_err() && ring_bytes("1KiB").is_err());
    }
}
