//! A program that is half C and half Go: what either allocates is in one report, each site with a
//! stack that goes from the C function through the runtime to the Go function that called it, or
//! that says where and why it ends.

use std::ffi::OsStr;

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, go_versions, run};
use nix::sys::signal::Signal;
use serde_json::Value;

/// How the C code is built.
const MODES: [&str; 5] = ["cgo", "static", "pie", "framepointers", "bare"];

/// By the service's own clock: a verdict takes ten seconds, three of which nothing is old.
const WINDOW_S: f64 = 15.0;

/// Functions that must be on a stack in this order, the innermost first.
const LARGE: [&str; 5] = [
    "leak_large",
    "runtime.asmcgocall",
    "main._Cfunc_leak_large",
    "main.callNative",
    "main.main",
];
const SMALL: [&str; 5] = [
    "leak_small",
    "runtime.asmcgocall",
    "main._Cfunc_leak_small",
    "main.callNative",
    "main.main",
];
/// From a thread of C's into Go and into C again.
const MAPPING: [&str; 9] = [
    "leak_mapping",
    "runtime.asmcgocall",
    "main._Cfunc_leak_mapping",
    "main.onTick",
    "runtime.cgocallbackg",
    "runtime.cgocallback",
    "crosscall2",
    "onTick",
    "clock_thread",
];

#[test]
fn go_and_c_are_in_one_report() {
    for version in go_versions() {
        let mut cells: Vec<_> = MODES
            .iter()
            .map(|mode| {
                let mut service = Service::start(&format!("mixed-{version}-{mode}"), [""; 0]);
                service.truth("t_s");
                let run = Leaktrace::record(service.pid(), [""; 0]);
                service.ask("resume");
                let started_s = service.truth("t_s");
                (mode, service, run, started_s)
            })
            .collect();
        for (_, service, _, started_s) in &mut cells {
            service.wait_for("t_s", *started_s + WINDOW_S);
        }
        for (mode, mut service, recording, _) in cells {
            let name = format!("{version}-{mode}");
            service.ask("pause");
            recording.signal(Signal::SIGINT);
            let finished = recording.wait();
            assert_eq!(finished.code, Some(0), "{name}: {}", finished.stderr);
            assert!(service.is_running(), "{name} did not survive");
            let report = report(finished.file.as_os_str());
            is_right(&name, &mut service, &report, *mode == "bare");
        }
    }
    assert_nothing_left();
}

fn is_right(name: &str, service: &mut Service, report: &Value, is_bare: bool) {
    for (kind, functions, field) in [
        ("malloc", &LARGE[..], "large_bytes"),
        ("malloc", &SMALL, "small_bytes"),
        ("mmap", &MAPPING, "mapping_bytes"),
    ] {
        let sites = report["sites"].as_array().unwrap();
        let site = sites.iter().find(|site| {
            site["kind"] == kind && names(site).iter().any(|name| name == functions[0])
        });
        let site = site.unwrap_or_else(|| panic!("{name}: no {kind} site of `{}`", functions[0]));
        assert_eq!(site["verdict"], "leak", "{name}: {site:#}");
        let (live, truth) = (site["live_bytes"].as_f64().unwrap(), service.truth(field));
        assert_eq!(live, truth, "{name}: {site:#}");
        has_stack(name, site, functions, is_bare);
    }
    // What `malloc` maps for them is not a leak of its own.
    let sites = report["sites"].as_array().unwrap().iter();
    for site in sites.filter(|site| site["kind"] == "mmap" && site["verdict"] == "leak") {
        let names = names(site);
        assert!(
            !names.iter().any(|name| name == "malloc"),
            "{name}: {names:#?}"
        );
    }
    let heap = report["sites"].as_array().unwrap().iter().find(|site| {
        site["kind"] == "go_heap" && names(site).iter().any(|name| name == "main.keepInGo")
    });
    let heap = heap.unwrap_or_else(|| panic!("{name}: no go_heap site of `main.keepInGo`"));
    assert_eq!(heap["verdict"], "leak", "{name}: {heap:#}");
}

fn has_stack(name: &str, site: &Value, functions: &[&str], is_bare: bool) {
    let found = names(site);
    if is_bare {
        assert_eq!(found.last().map(String::as_str), Some(functions[0]));
        let reason = site["stack_incomplete"].as_str().unwrap_or_default();
        assert!(reason.contains("frame pointer"), "{name}: {site:#}");
        return;
    }
    let mut rest = found.iter();
    for function in functions {
        let is_it = |found: &String| found.trim_end_matches(".abi0") == *function;
        assert!(rest.any(is_it), "{name}: `{function}` in {found:#?}");
    }
    assert_eq!(site["stack_incomplete"], Value::Null, "{name}: {site:#}");
}

fn names(site: &Value) -> Vec<String> {
    let frames = site["stack"].as_array().unwrap().iter();
    frames
        .map(|frame| frame["function"].as_str().unwrap_or("?").to_owned())
        .collect()
}

/// The report with mappings old at three seconds.
fn report(file: &OsStr) -> Value {
    let options = ["--format", "json", "-n", "1000", "--older", "3s"].map(OsStr::new);
    let output = run([&[OsStr::new("report"), file], &options[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}
