//! What the kernel side costs, by the kernel's own count.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};

use super::{Attached, LoadError, Loaded};
use crate::overhead::{Cost, Family};

/// Runs of our programs since they were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How often one ran.
    pub count: u64,
    /// The time they took, all processors together.
    pub time: Duration,
    /// How often, at most, the kernel left one out, since it takes BPF to be busy on that processor already.
    /// Tracepoints only: a program of the same kind, or a system call on a map, was preempted there
    /// (kernel/trace/bpf_trace.c of Linux 6.18, `trace_call_bpf`), or on Linux 7.2 and later the same program.
    pub skipped: u64,
}

/// Has the kernel count, as long as it lives. It counts for every BPF program of the host then, at two
/// readings of the clock a run. Where ours run so often that this shows, it does so for one of eight readings
/// only, and what came in the others is taken to have come as often, and to have taken as long.
pub struct RunCounter {
    /// By name, each in all its copies.
    programs: BTreeMap<String, Vec<OwnedFd>>,
    /// While the kernel counts.
    enabled: Option<OwnedFd>,
    /// Readings for which it has not.
    left_out: u32,
    sum: Sum,
    at: Instant,
}

/// Runs a second from which on not all are counted: counting takes a twentieth of a microsecond, and so half a percent
/// of a processor.
const OFTEN: f64 = 100_000.0;
/// In seconds: what a shorter time has seen is not taken for what will come.
const LONG_ENOUGH: f64 = 0.1;
/// How many readings come to one of those that were counted then.
const TURNS: u32 = 8;

/// What was counted, and what would have been.
#[derive(Debug, Default)]
struct Sum {
    all: Counted,
    /// What the kernel had counted at the last reading.
    kernel: Counted,
    /// What it counted between two, last, and in how many seconds.
    last: (Counted, f64),
}

impl Loaded {
    /// Begins to count the runs of the programs that are loaded.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn count_runs(&self) -> Result<RunCounter, LoadError> {
        let enabled = enable_stats(Stats::RunTime)
            .map_err(|error| LoadError::other("have the kernel count runs of programs", error))?;
        let mut counter = RunCounter {
            programs: BTreeMap::new(),
            enabled: Some(enabled),
            left_out: 0,
            sum: Sum::default(),
            at: Instant::now(),
        };
        counter.include(self)?;
        // From here on: what ran before was another's to count.
        counter.sum.kernel = counter.counted();
        Ok(counter)
    }

    /// The programs that are loaded, by name, each in all its copies.
    fn running(&self) -> BTreeMap<&str, Vec<BorrowedFd<'_>>> {
        let mut programs = BTreeMap::new();
        for (name, program) in self.ebpf.programs() {
            // The others are not loaded so, or not at all.
            if let Ok(fd) = program.fd() {
                programs.insert(name, vec![fd.as_fd()]);
            }
        }
        for (name, attached) in &self.attached {
            let all = match attached {
                Attached::Tracepoints(copies) => copies.programs.iter().map(AsFd::as_fd).collect(),
                Attached::Together(link) => vec![link.loaded.as_fd()],
                Attached::Alone { .. } => continue,
            };
            programs.insert(name, all);
        }
        let in_windows = self.in_windows.iter();
        programs.extend(in_windows.map(|(name, program)| (*name, vec![program.as_fd()])));
        programs
    }
}

/// One reading of what the kernel has counted, and of what it would have.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// The runs of all programs.
    pub runs: Runs,
    /// What the probes of each family have cost, as far as it is attached for good.
    pub costs: BTreeMap<Family, Cost>,
}

impl RunCounter {
    /// Counts programs, too, that have been loaded since. What was taken away meanwhile stays counted.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub fn include(&mut self, loaded: &Loaded) -> Result<(), LoadError> {
        for (name, copies) in loaded.running() {
            if !self.programs.contains_key(name) {
                let copies = copies.iter().map(BorrowedFd::try_clone_to_owned);
                let copies = copies.collect::<io::Result<_>>();
                let copies = copies.map_err(|error| LoadError::other("keep a program", error))?;
                self.programs.insert(name.to_owned(), copies);
            }
        }
        Ok(())
    }

    /// What has come so far: counted, or estimated from what was.
    pub fn read(&mut self) -> Counted {
        let kernel = self.counted();
        let now = Instant::now();
        let seconds = (now - self.at).as_secs_f64();
        self.at = now;
        let is_often = self.sum.add(kernel, seconds, self.enabled.is_some());
        if is_often && self.left_out + 1 < TURNS {
            self.enabled = None;
            self.left_out += 1;
        } else {
            self.count_next();
        }
        self.sum.all.clone()
    }

    /// Has the next reading counted: it will not be like the last ones. If that is refused it is tried again then.
    pub fn count_next(&mut self) {
        if self.enabled.is_none() {
            self.enabled = enable_stats(Stats::RunTime).ok();
        }
        self.left_out = 0;
    }

    /// What the kernel has counted so far.
    fn counted(&self) -> Counted {
        let mut counted = Counted::default();
        for (name, copies) in &self.programs {
            let runs = of_copies(copies.iter().map(runs_of));
            counted.runs.count += runs.count;
            counted.runs.time += runs.time;
            counted.runs.skipped += runs.skipped;
            if let Some((family, before)) = Family::of(name) {
                let cost = counted.costs.entry(family).or_default();
                cost.hits += runs.count;
                cost.time +=
                    runs.time + Duration::from_nanos(before.as_nanos() as u64 * runs.count);
            }
        }
        counted
    }
}

impl Sum {
    /// The kernel has come to `kernel` in the last `seconds`, for which it has counted or not. Gives whether the
    /// programs run often.
    fn add(&mut self, kernel: Counted, seconds: f64, has_counted: bool) -> bool {
        // These are always counted.
        self.all.runs.skipped += kernel.runs.skipped.saturating_sub(self.kernel.runs.skipped);
        if has_counted {
            self.last = (kernel.since(&self.kernel), seconds);
        }
        let (last, of_seconds) = &self.last;
        let share = match has_counted {
            true => 1.0,
            false => seconds / of_seconds,
        };
        self.all.runs.count += (last.runs.count as f64 * share) as u64;
        self.all.runs.time += last.runs.time.mul_f64(share);
        for (family, cost) in &last.costs {
            let all = self.all.costs.entry(*family).or_default();
            all.hits += (cost.hits as f64 * share) as u64;
            all.time += cost.time.mul_f64(share);
        }
        self.kernel = kernel;
        *of_seconds >= LONG_ENOUGH && last.runs.count as f64 > OFTEN * of_seconds
    }
}

impl Counted {
    fn since(&self, before: &Self) -> Self {
        let costs = self.costs.iter().map(|(family, cost)| {
            let before = before.costs.get(family).copied().unwrap_or_default();
            (*family, cost.since(before))
        });
        Self {
            runs: Runs {
                count: self.runs.count.saturating_sub(before.runs.count),
                time: self.runs.time.saturating_sub(before.runs.time),
                skipped: self.runs.skipped.saturating_sub(before.runs.skipped),
            },
            costs: costs.collect(),
        }
    }
}

/// The runs of a program that is there in copies: each call is seen by all but those that were left out of it.
fn of_copies(copies: impl Iterator<Item = Runs>) -> Runs {
    let together = |all: Runs, one: Runs| Runs {
        count: all.count.max(one.count),
        time: all.time + one.time,
        skipped: all.skipped.min(one.skipped),
    };
    copies.reduce(together).unwrap_or_default()
}

fn runs_of(program: &OwnedFd) -> Runs {
    // kernel/bpf/syscall.c, bpf_prog_show_fdinfo.
    let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
    parse(&fs::read_to_string(path).unwrap_or_default())
}

fn parse(fdinfo: &str) -> Runs {
    let field = |name: &str| {
        let value = fdinfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    };
    Runs {
        count: field("run_cnt"),
        time: Duration::from_nanos(field("run_time_ns")),
        skipped: field("recursion_misses"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn malloc(count: u64) -> Counted {
        let time = Duration::from_nanos(300 * count);
        let runs = Runs {
            count,
            time,
            skipped: count / 1000,
        };
        let costs = BTreeMap::from([(Family::Malloc, Cost { hits: count, time })]);
        Counted { runs, costs }
    }

    #[test]
    fn what_was_not_counted_is_taken_to_be_as_much() {
        let mut sum = Sum::default();
        assert!(!sum.add(malloc(90_000), 1.0, true));
        assert!(sum.add(malloc(690_000), 2.0, true));
        // The kernel does not count any more, but what it leaves out.
        let mut still = malloc(690_000);
        still.runs.skipped += 5;
        assert!(sum.add(still.clone(), 0.5, false));
        assert_eq!(sum.all.runs.count, 840_000);
        assert_eq!(sum.all.runs.skipped, 695);
        assert_eq!(sum.all.costs[&Family::Malloc].hits, 840_000);
        let time = sum.all.costs[&Family::Malloc].time;
        assert!(time.abs_diff(Duration::from_millis(252)) < Duration::from_micros(1));
        // It does again, and there is less.
        still.runs.count += 50_000;
        assert!(!sum.add(still, 1.0, true));
        assert_eq!(sum.all.runs.count, 890_000);
    }

    #[test]
    fn the_kernels_count_is_read() {
        let fdinfo = "pos:\t0\nflags:\t02000002\nprog_type:\t2\nprog_id:\t71\nrun_time_ns:\t52000\n\
                      run_cnt:\t104\nrecursion_misses:\t3\nverified_insns:\t9\n";
        let time = Duration::from_micros(52);
        let runs = Runs {
            count: 104,
            time,
            skipped: 3,
        };
        assert_eq!(parse(fdinfo), runs);
        assert_eq!(parse(""), Runs::default());
    }
}
