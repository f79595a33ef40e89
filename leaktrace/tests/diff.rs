//! Reports made for the purpose, compared.

use leaktrace::report::diff::{Change, Diff, Relation, diff};
use leaktrace::report::text::{TextOptions, write_diff};
use leaktrace::report::{
    EstimateReport, Frame, Kind, MemoryReport, Method, Report, SCHEMA, SiteReport, Summary,
    SurvivalReport, TargetReport, WindowReport,
};
use leaktrace::verdict::Verdict;

const MIB: u64 = 1 << 20;
const RATE: u64 = 512 << 10;
const SECONDS: u64 = 60;

/// A report of a minute of one build, begun `start_s` after another.
fn report(start_s: u64, sites: Vec<SiteReport>) -> Report {
    Report {
        schema: SCHEMA,
        target: TargetReport {
            pid: 4242,
            comm: "reload".into(),
            exe: "/srv/reload".into(),
            build_id: Some("c0ffee".into()),
            start_ticks: 1234,
            boot_unix_s: 1_790_000_000,
            cgroup: None,
            container_id: None,
            ns_pids: Vec::new(),
            runtime: "go1.27.3".into(),
            go: None,
        },
        malloc: None,
        overhead: None,
        window: WindowReport {
            start_unix_ns: (1_790_001_000 + start_s) * 1_000_000_000,
            duration_s: SECONDS as f64,
            end: "duration".into(),
            end_text: "the time asked for was over".into(),
            intervals: SECONDS + 1,
            gc_cycles: Some(30),
        },
        summary: Summary::default(),
        sites,
        goroutines: None,
        retention: Vec::new(),
        memory: MemoryReport::default(),
        losses: Default::default(),
        limits: Vec::new(),
        notes: Vec::new(),
    }
}

fn frame(function: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.into()),
        file: Some("/srv/src/main.go".into()),
        line: Some(line),
        address: u64::from(line),
        ..Frame::default()
    }
}

/// A site that has `from` bytes at the attach and `to` at the end, by samples, each as wide as theirs are.
fn site(function: &str, line: u32, from: u64, to: u64) -> SiteReport {
    let reach = |bytes: u64| (1.96 * ((bytes * RATE) as f64).sqrt()) as u64;
    let change = to.abs_diff(from);
    let growth = to as i64 - from as i64;
    let at = |t: u64| (from as f64 + growth as f64 * t as f64 / SECONDS as f64) as u64;
    SiteReport {
        rank: 0,
        kind: Kind::GoHeap,
        mapped_by_runtime: false,
        mapped_by_allocator: false,
        verdict: if to > from {
            Verdict::Leak
        } else {
            Verdict::Steady
        },
        evidence: Vec::new(),
        live_bytes: to,
        live_objects: to / 64,
        object_bytes: Some(64),
        proven_bytes: None,
        proven_objects: None,
        growth_bytes_per_s: growth as f64 / SECONDS as f64,
        growth_bytes: growth,
        growth_interval: [growth - reach(change) as i64, growth + reach(change) as i64],
        alloc_bytes: change,
        alloc_objects: change / 64,
        freed_bytes: 0,
        preexisting_bytes: from,
        attach_bytes: from,
        oldest_s: SECONDS as f64,
        gc_cycles_survived: Some(28),
        survival: SurvivalReport::default(),
        estimate: EstimateReport {
            method: Method::Samples,
            windows: None,
            sampled: true,
            rate_bytes: RATE,
            samples: to / RATE,
            low_bytes: to.saturating_sub(reach(to)),
            high_bytes: to + reach(to),
        },
        series: (0..=SECONDS).map(|t| (t as f64, at(t))).collect(),
        stack: vec![
            frame(function, line),
            frame("main.main", 20),
            frame("runtime.main", 283),
        ],
        allocator_frames: Vec::new(),
        stack_truncated: false,
        stack_incomplete: None,
        retention: None,
        capture_sites: Vec::new(),
    }
}

/// The change of the site whose innermost function this is.
fn change(diff: &Diff, function: &str) -> Change {
    let of = |site: &&leaktrace::report::diff::SiteDiff| {
        site.stack[0].function.as_deref() == Some(function)
    };
    diff.sites.iter().find(of).expect(function).change
}

fn instance(mut report: Report) -> Report {
    report.target.pid += 1;
    report
}

#[test]
fn what_is_new_grew_and_is_gone_between_two_instances() {
    let base = report(
        0,
        vec![
            site("main.fixed", 10, 0, 60 * MIB),
            site("main.slow", 20, 0, 30 * MIB),
            site("main.cache", 30, 20 * MIB, 20 * MIB),
            site("main.rare", 40, 0, MIB),
        ],
    );
    let file = instance(report(
        600,
        vec![
            site("main.added", 50, 0, 60 * MIB),
            site("main.slow", 20, 0, 300 * MIB),
            // As much as chance may do.
            site("main.cache", 30, 23 * MIB, 23 * MIB),
            site("main.noise", 60, 0, MIB),
        ],
    ));
    let result = diff(&base, &file);
    assert_eq!(result.relation, Relation::TwoInstances);
    assert!(result.notes.is_empty(), "{:?}", result.notes);
    assert_eq!(change(&result, "main.added"), Change::New);
    assert_eq!(change(&result, "main.slow"), Change::Grew);
    assert_eq!(change(&result, "main.fixed"), Change::Gone);
    assert_eq!(change(&result, "main.cache"), Change::Same);
    // Two samples more or less are no news, even where the other side has none.
    assert_eq!(change(&result, "main.noise"), Change::Same);
    assert_eq!(change(&result, "main.rare"), Change::Same);
    assert_eq!((result.summary.new, result.summary.same), (1, 3));

    let again = diff(&base, &instance(base.clone()));
    assert_eq!(again.summary.same, 4, "nothing differs from itself");

    let mut out = Vec::new();
    write_diff(&result, TextOptions::default(), &mut out).unwrap();
    insta::assert_snapshot!(String::from_utf8(out).unwrap());
    let json = serde_json::to_string(&result).unwrap();
    assert_eq!(serde_json::from_str::<Diff>(&json).unwrap(), result);
}

/// A line that moved is the same site between builds, and another within one.
#[test]
fn builds_are_matched_by_function() {
    let base = report(0, vec![site("main.load", 10, 0, 60 * MIB)]);
    let moved = vec![site("main.load", 17, 0, 600 * MIB)];
    let one_build = diff(&base, &instance(report(0, moved.clone())));
    assert_eq!((one_build.summary.new, one_build.summary.gone), (1, 1));

    let mut file = instance(report(0, moved));
    file.target.build_id = Some("decaf".into());
    for frame in file.sites.iter_mut().flat_map(|site| &mut site.stack) {
        frame.file = Some("/home/other/main.go".into());
    }
    let result = diff(&base, &file);
    assert_eq!(result.relation, Relation::TwoBuilds);
    assert_eq!(change(&result, "main.load"), Change::Grew);
    assert_eq!(result.sites[0].base_line, Some(10));

    // Another Go: its library has other frames in between.
    file.target.runtime = "go1.24.11".into();
    let mut store = frame("sync.(*Map).Store", 50);
    store.file = Some("/go/src/sync/hashtriemap.go".into());
    file.sites[0].stack.insert(1, store);
    let result = diff(&base, &file);
    assert_eq!(change(&result, "main.load"), Change::Grew);
    assert!(
        result.notes[0].contains("other runtimes"),
        "{:?}",
        result.notes
    );
}

#[test]
fn what_happened_between_two_captures_of_one_process_is_told() {
    let base = report(0, vec![site("main.load", 10, 0, 60 * MIB)]);
    let file = report(120, vec![site("main.load", 10, 120 * MIB, 180 * MIB)]);
    let result = diff(&base, &file);
    assert_eq!(
        (result.relation, result.between_s),
        (Relation::OneProcess, Some(60.0))
    );
    let site = &result.sites[0];
    assert_eq!(site.change, Change::Grew);
    assert!(
        site.why.contains("holds more") && !site.why.contains("grows"),
        "{}",
        site.why
    );
    let between = site.between.unwrap();
    assert_eq!(between.value, 60.0 * MIB as f64);
    assert!(
        between.low > 0.0 && between.high < 120.0 * MIB as f64,
        "{between:?}"
    );

    // The other way round it is a process that overlaps itself.
    let turned = diff(&file, &base);
    assert!(turned.sites[0].between.is_none());
    assert!(
        turned.notes[0].contains("wrong order"),
        "{:?}",
        turned.notes
    );
}

#[test]
fn what_was_not_recorded_is_not_compared() {
    let mut mapping = site("main.map", 10, 0, 60 * MIB);
    mapping.kind = Kind::Mmap;
    let base = report(0, vec![site("main.load", 10, 0, 60 * MIB)]);
    let file = instance(report(0, vec![site("main.load", 10, 0, 60 * MIB), mapping]));
    let result = diff(&base, &file);
    assert_eq!(change(&result, "main.map"), Change::NotCompared);
    assert_eq!(result.summary.not_compared, 1);
    assert!(
        result.notes[0].contains("nothing of mmap"),
        "{:?}",
        result.notes
    );
}
