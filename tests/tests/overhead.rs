//! What being traced costs is counted, told, and kept within `--max-overhead`: probes that come to cost more are
//! taken away, those that would be met millions of times a second are refused.

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, leaktrace_binary};
use serde_json::Value;
use std::process::Command;

/// Records a program that allocates slowly at first and then as fast as it can.
fn surge(what: &str, arguments: &[&str]) -> Value {
    let mut service = Service::start("surge", [what]);
    assert!(service.line().starts_with("ready "));
    let recording = Leaktrace::record(service.pid(), [&["-d", "8s"], arguments].concat());
    service.say("");
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.report()
}

fn function<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut sites = report["sites"].as_array().unwrap().iter();
    let site = sites.find(|site| {
        let mut frames = site["stack"].as_array().unwrap().iter();
        frames.any(|frame| frame["function"] == name)
    });
    site.unwrap_or_else(|| panic!("no site in {name}: {report:#}"))
}

#[test]
fn probes_that_come_to_cost_too_much_are_taken_away() {
    for (what, gone, kind, turn) in [
        (
            "malloc",
            "calls of native allocators after",
            "malloc",
            "turn_block",
        ),
        (
            "mmap",
            "mmap, munmap, mremap and brk after",
            "mmap",
            "turn_mapping",
        ),
    ] {
        let report = surge(what, &["--max-overhead", "1"]);
        let mut limits = report["limits"].as_array().unwrap().iter();
        let is_it = |limit: &&Value| limit["what"].as_str().unwrap().starts_with(gone);
        let limit = limits.find(is_it).unwrap_or_else(|| panic!("{report:#}"));
        assert!(limit["reason"].as_str().unwrap().contains("--max-overhead"));

        // Its sites end there, and are not called steady for what nobody saw.
        let site = function(&report, turn);
        assert_eq!(site["kind"], kind);
        let last = site["series"].as_array().unwrap().last().unwrap();
        let duration = report["window"]["duration_s"].as_f64().unwrap();
        assert!(last[0].as_f64().unwrap() < duration - 1.0, "{site:#}");
        let told = site["evidence"].as_array().unwrap().iter();
        let told = told.filter(|text| text.as_str().unwrap().starts_with("followed for the first"));
        assert_eq!(told.count(), 1, "{site:#}");
        // What the allocator holds beyond them cannot be told any more.
        assert!(report["memory"]["allocators"].is_null());

        let overhead = &report["overhead"];
        assert_eq!(overhead["max_percent"], 1.0);
        let families = overhead["families"].as_array().unwrap();
        assert!(families[0]["hits"].as_u64().unwrap() > 1000, "{overhead}");
    }
    assert_nothing_left();
}

/// Who asks for more gets more.
#[test]
fn a_larger_budget_lasts() {
    let report = surge("mmap", &["--max-overhead", "50", "--probe", "vm"]);
    let limits = report["limits"].to_string();
    assert!(!limits.contains("--max-overhead"), "{limits}");
    let site = function(&report, "turn_mapping");
    let last = site["series"].as_array().unwrap().last().unwrap();
    assert_eq!(last[0], report["window"]["duration_s"]);
    assert_nothing_left();
}

#[test]
fn a_flood_is_refused_unless_it_is_forced() {
    let mut service = Service::start("pairs", [""; 0]);
    assert!(service.line().contains("ready"));
    let arguments = ["--probe", "malloc", "--sample", "all", "-d", "1s"];
    let output = Command::new(leaktrace_binary())
        .args(["record", "-p", &service.pid().to_string()])
        .args(arguments)
        .output()
        .expect("leaktrace can be run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("times a second") && stderr.contains("--force"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert_nothing_left();

    let forced = Leaktrace::record(service.pid(), [&arguments[..], &["--force"]].concat());
    let finished = forced.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.report()["overhead"]["max_percent"].is_null());
    drop(service);
    assert_nothing_left();
}
