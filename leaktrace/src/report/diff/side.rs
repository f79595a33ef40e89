//! The two sides: what they have to do with each other, and what stands between them.

use super::schema::{Relation, Side};
use crate::report::human;
use crate::report::schema::{Kind, Report};

/// How far apart two readings of when the machine was started may be, in seconds: clocks are set.
const BOOT_S: u64 = 60;

/// Two reports.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) base: &'a Report,
    pub(super) file: &'a Report,
}

impl Pair<'_> {
    /// Seconds from the end of the base to the beginning of the file; negative where they overlap.
    pub(super) fn between_s(self) -> Option<f64> {
        let (base, file) = (&self.base.window, &self.file.window);
        let start_s = file.start_unix_ns as f64 - base.start_unix_ns as f64;
        let between = start_s / 1e9 - base.duration_s;
        between.is_finite().then_some(between)
    }

    /// Whether both are known to be of the same build.
    pub(super) fn is_one_build(self) -> bool {
        let id = |report: &Report| report.target.build_id.clone();
        id(self.base).is_some() && id(self.base) == id(self.file)
    }

    /// Whether a kind of memory was recorded on both sides: nothing of it at all means that it was not.
    pub(super) fn has(self, kind: Kind) -> bool {
        let has = |report: &Report| report.sites.iter().any(|site| site.kind == kind);
        has(self.base) && has(self.file)
    }
}

pub(super) fn of(report: &Report) -> Side {
    let target = &report.target;
    Side {
        pid: target.pid,
        comm: target.comm.clone(),
        exe: target.exe.clone(),
        build_id: target.build_id.clone(),
        runtime: target.runtime.clone(),
        start_unix_ns: report.window.start_unix_ns,
        duration_s: report.window.duration_s,
    }
}

pub(super) fn relation(pair: Pair) -> Relation {
    let (base, file) = (&pair.base.target, &pair.file.target);
    let is_one_boot = base.boot_unix_s.abs_diff(file.boot_unix_s) <= BOOT_S;
    let has_start = base.start_ticks > 0 && base.start_ticks == file.start_ticks;
    if base.pid == file.pid && has_start && is_one_boot {
        return Relation::OneProcess;
    }
    let name = |exe: &str| exe.rsplit('/').next().unwrap_or_default().to_owned();
    match (&base.build_id, &file.build_id) {
        _ if pair.is_one_build() => Relation::TwoInstances,
        _ if base.comm != file.comm && name(&base.exe) != name(&file.exe) => Relation::TwoPrograms,
        (Some(_), Some(_)) => Relation::TwoBuilds,
        _ if base.exe == file.exe && base.runtime == file.runtime => Relation::TwoInstances,
        _ => Relation::TwoBuilds,
    }
}

/// What a reader must know before believing a difference.
pub(super) fn notes(pair: Pair, relation: Relation) -> Vec<String> {
    let Pair { base, file } = pair;
    let mut notes = Vec::new();
    if relation == Relation::TwoPrograms {
        notes.push(format!(
            "two programs, `{}` and `{}`: only stacks of the same names are matched",
            base.target.exe, file.target.exe
        ));
    }
    if relation != Relation::OneProcess
        && (base.target.build_id.is_none() || file.target.build_id.is_none())
    {
        notes.push(
            "a build id is not known: whether both are one build is taken from their paths".into(),
        );
    }
    if base.target.runtime != file.target.runtime {
        notes.push(format!(
            "other runtimes, {} and {}: stacks are matched by the program's own frames",
            base.target.runtime, file.target.runtime
        ));
    }
    let sampler = |report: &Report| {
        let go = report.target.go.as_ref()?;
        Some((go.sampling.clone(), go.sample_rate))
    };
    if let Some(((base, base_rate), (file, file_rate))) = sampler(pair.base).zip(sampler(pair.file))
    {
        if base != file {
            notes.push(format!(
                "the heap was sampled by {base} and by {file}: estimates of either have errors of their own"
            ));
        } else if base_rate != file_rate {
            notes.push(format!(
                "other sample rates, one object in {} and in {}: the figures are scaled, their widths differ",
                human::bytes(base_rate as f64),
                human::bytes(file_rate as f64)
            ));
        }
    }
    for kind in [Kind::GoHeap, Kind::Malloc, Kind::Mmap, Kind::Brk] {
        let has = |report: &Report| report.sites.iter().any(|site| site.kind == kind);
        if has(base) != has(file) {
            let without = if has(base) { "the file" } else { "the base" };
            notes.push(format!("{without} has nothing of {kind}: not compared"));
        }
    }
    if base.goroutines.is_some() != file.goroutines.is_some() {
        notes.push("only one of the two has goroutines: not compared".into());
    }
    let (short, long) = match base.window.duration_s < file.window.duration_s {
        true => (base.window.duration_s, file.window.duration_s),
        false => (file.window.duration_s, base.window.duration_s),
    };
    if long > 10.0 * short {
        notes.push(format!(
            "one window is {} long, the other {}: the shorter one shows little",
            human::seconds(short),
            human::seconds(long)
        ));
    }
    if relation == Relation::OneProcess && pair.between_s().is_some_and(|between| between < 0.0) {
        notes.push(
            "the file begins before the base ends: they overlap, or stand in the wrong order"
                .into(),
        );
    }
    for (name, report) in [("base", base), ("file", file)] {
        if report.window.end == "lost" {
            notes.push(format!(
                "the {name} did not end in order: {}",
                report.window.end_text
            ));
        }
        let lost: u64 = report
            .losses
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count));
        if lost > 0 {
            notes.push(format!(
                "the {name} has losses: {}",
                human::count(lost, "record")
            ));
        }
        if report.window.gc_cycles == Some(0) {
            notes.push(format!(
                "no collection completed in the {name}: its live bytes may be garbage"
            ));
        }
    }
    notes
}
