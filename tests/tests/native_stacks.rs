//! Stacks of optimized native code without frame pointers are whole: through every form of frame, through
//! libraries, signals and exceptions, out to `main` or to the start of the thread.

use std::{collections::BTreeSet, fs, path::Path};

use leaktrace_tests::{Finished, Leaktrace, Service, assert_nothing_left, root, run, sample};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Where a stack may end: the start of the process or of a thread.
const ENDS: [&str; 4] = ["_start", "main", "clone3", "start_thread"];

/// Records what `program` does after a line on its stdin, and gives the truth that it prints.
fn record(program: &str) -> (Finished, Value) {
    record_with(program, &[], &["--probe", "vm"])
}

fn record_with(program: &str, arguments: &[&str], options: &[&str]) -> (Finished, Value) {
    let mut service = Service::start(program, arguments);
    assert!(service.line().starts_with("ready "));
    let run = Leaktrace::record(service.pid(), options);
    service.say("go");
    let truth = serde_json::from_str(&service.line()).expect("the truth is JSON");
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(service.is_running(), "{program} did not survive");
    (finished, truth)
}

/// The report with names from the files of debug information that were split off.
fn report(file: &Path) -> Value {
    let debug = sample("debug");
    let file = file.to_str().unwrap();
    let debug = debug.to_str().unwrap();
    let options = ["--format", "json", "-n", "10000", "--debug-dir", debug];
    let output = run([&["report", file], &options[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn sites(report: &Value) -> &Vec<Value> {
    report["sites"].as_array().unwrap()
}

fn names(site: &Value) -> Vec<&str> {
    let frames = site["stack"].as_array().unwrap().iter();
    frames
        .map(|frame| frame["function"].as_str().unwrap_or("?"))
        .collect()
}

/// Whether all `functions` are in `names`, in this order.
fn has(names: &[&str], functions: &[&str]) -> bool {
    let mut names = names.iter();
    let is_it = |name: &str, function: &str| name.contains(function);
    functions
        .iter()
        .all(|function| names.any(|name| is_it(name, function)))
}

fn assert_whole(report: &Value) {
    assert_eq!(report["losses"], serde_json::json!({}));
    for site in sites(report) {
        assert_eq!(site["stack_incomplete"], Value::Null, "{site:#}");
        assert_ne!(site["stack_truncated"], true, "{site:#}");
        let names = names(site);
        let end = names.last().unwrap();
        assert!(ENDS.contains(end), "ends in `{end}`: {names:#?}");
    }
}

fn assert_shapes(report: &Value, truth: &Value) {
    let shapes = truth["shapes"].as_array().unwrap();
    assert!(!shapes.is_empty());
    for shape in shapes {
        let functions = shape["functions"].as_array().unwrap().iter();
        let functions: Vec<&str> = functions.map(|name| name.as_str().unwrap()).collect();
        let mut of_shape = sites(report).iter().filter(|site| {
            // From the first of them on, so that a shape is not taken for one that it is a part of.
            let names = names(site);
            let is_own = |name: &str| {
                let maps = name.contains("map_page") && functions[0] != "map_page";
                !maps && !name.contains("mmap")
            };
            let own = names.iter().find(|name| is_own(name));
            own.is_some_and(|name| name.contains(functions[0])) && has(&names, &functions)
        });
        assert!(
            of_shape.any(|site| site["live_bytes"] == 4096),
            "no site of {shape:#} in {:#?}",
            sites(report).iter().map(names).collect::<Vec<_>>()
        );
    }
}

#[test]
fn every_shape_of_frame_is_left() {
    for program in ["stacks", "stacks-rust"] {
        let (finished, truth) = record(program);
        let report = report(&finished.file);
        assert_whole(&report);
        assert_shapes(&report, &truth);
    }
    assert_nothing_left();
}

/// The line in `stacks.cpp` that ends so.
fn line_of(marker: &str) -> u64 {
    let source = fs::read_to_string(root().join("tests/targets/cpp/stacks.cpp")).unwrap();
    let mut lines = source.lines();
    1 + lines.position(|line| line.ends_with(marker)).unwrap() as u64
}

/// Stripped, without frame pointers, by `operator new` and behind two inlined calls: it is the first site,
/// while as much as ten times is allocated and freed beside it.
#[test]
fn a_leak_behind_operator_new_is_rank_1_offline() {
    let (finished, _) = record_with("stacks", &["leak", "2000"], &["--sample", "all"]);
    let report = report(&finished.file);
    assert_whole(&report);
    let site = &sites(&report)[0];
    assert_eq!(site["kind"], "malloc", "{site:#}");
    assert_eq!(site["live_bytes"], 2000 * 4000, "{site:#}");
    let asked = site["allocator_frames"].to_string();
    assert!(asked.contains("operator new"), "{site:#}");
    let frames = site["stack"].as_array().unwrap().iter().take(3);
    let frames: Vec<_> = frames
        .map(|frame| (frame["line"].as_u64().unwrap(), frame["inlined"] == true))
        .collect();
    let expected = [
        (line_of("// the record"), true),
        (line_of("// the call of new_record"), true),
        (line_of("// the call of remember"), false),
    ];
    assert_eq!(frames, expected, "{site:#}");
    assert_nothing_left();
}

/// Stripped, the debug information in a directory that is named: the line of the leak behind two inlined
/// calls, as if it had not been stripped.
#[test]
fn the_line_behind_inlined_calls_is_named_offline() {
    let (finished, _) = record("stacks");
    let report = report(&finished.file);
    let site = sites(&report)
        .iter()
        .find(|site| names(site).contains(&"Cache::fill(int)"))
        .expect("a site in `Cache::fill`");
    let frames = site["stack"].as_array().unwrap();
    let frames: Vec<_> = frames
        .iter()
        .skip_while(|frame| frame["function"] != "map_page")
        .skip(1)
        .map(|frame| (frame["line"].as_u64().unwrap(), frame["inlined"] == true))
        .take(3)
        .collect();
    let expected = [
        (line_of("// the leak"), true),
        (line_of("// the call of make_page"), true),
        (line_of("// the call of make_numbers"), false),
    ];
    assert_eq!(frames, expected, "{site:#}");

    // Without it the names are not known, and the report says why.
    let plain = finished.report();
    let unnamed = sites(&plain)
        .iter()
        .flat_map(|site| site["stack"].as_array().unwrap());
    let reasons: BTreeSet<_> = unnamed
        .filter_map(|frame| frame["reason"].as_str())
        .collect();
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("stacks` is stripped")),
        "{reasons:?}"
    );
    assert_nothing_left();
}

/// A library that is opened during the recording: its frames are left by its call frame information as soon
/// as it was seen.
#[test]
fn a_library_that_is_opened_later() {
    let mut service = Service::start("stacks", [""; 0]);
    service.line();
    let recording = Leaktrace::record(service.pid(), ["--interval", "100ms", "--probe", "vm"]);
    service.say("go");
    service.line();
    let functions = [
        "plugin_inner",
        "plugin_run",
        "call_plugin",
        "main",
        "_start",
    ];
    let is_whole = |report: &Value| {
        sites(report)
            .iter()
            .any(|site| has(&names(site), &functions))
    };
    // What is in the file already can be read at any time.
    let mut calls = 0;
    while !is_whole(&report(recording.file())) {
        assert!(calls < 200, "no call into the library has a whole stack");
        service.say("plugin");
        assert_eq!(service.line(), "called");
        calls += 1;
    }
    recording.signal(Signal::SIGINT);
    let report = report(&recording.wait().file);
    assert!(is_whole(&report), "{report:#}");
    // A stack that ends in the library says so: no thread begins there.
    for site in sites(&report) {
        let outermost = names(site).pop().unwrap_or_default();
        let is_cut = outermost.starts_with("plugin_");
        assert!(!is_cut || site["stack_incomplete"].is_string(), "{site:#}");
    }
    assert_nothing_left();
}

/// Thousands of deep stacks: all are there, or counted by cause.
#[test]
fn five_thousand_deep_stacks() {
    const STACKS: u64 = 5000;
    // Up to 128 frames are kept: the calls, `mmap` below them, and `main` and what called it above.
    for (calls, is_deeper) in [(120, false), (140, true)] {
        let arguments = ["paths".to_owned(), STACKS.to_string(), calls.to_string()];
        let mut service = Service::start("stacks", arguments);
        service.line();
        let recording = Leaktrace::record(service.pid(), ["--probe", "vm"]);
        service.say("go");
        service.line();
        recording.signal(Signal::SIGINT);
        let finished = recording.wait();
        let report = report(&finished.file);
        let truncated = report["losses"]["stack_truncated"].as_u64().unwrap_or(0);
        let of_paths = sites(&report).iter().filter(|site| {
            site["live_bytes"] == 4096 && site["stack"].as_array().unwrap().len() > 100
        });
        if is_deeper {
            assert_eq!(truncated, STACKS);
            assert!(of_paths.clone().all(|site| site["stack_truncated"] == true));
        } else {
            assert_eq!(report["losses"], serde_json::json!({}));
            assert_whole(&report);
        }
        assert_eq!(of_paths.count() as u64, STACKS, "{calls} calls deep");
    }
    assert_nothing_left();
}
