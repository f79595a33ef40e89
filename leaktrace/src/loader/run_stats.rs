//! What the kernel side costs, by the kernel's own count.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
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
/// readings of the clock a run.
pub struct RunCounter {
    /// By name, each in all its copies.
    programs: BTreeMap<String, Vec<OwnedFd>>,
    _enabled: OwnedFd,
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
            _enabled: enabled,
        };
        counter.include(self)?;
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

/// One reading of what the kernel has counted.
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

    /// What has been counted so far.
    pub fn read(&self) -> Counted {
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
