//! A program that does nothing but allocate is traced in windows: its rare leak is found, what turns over
//! beside it is not accused, and a program that allocates slowly is traced in full.

use leaktrace_tests::{Finished, Leaktrace, Service, assert_nothing_left, run};
use serde_json::Value;

fn report(finished: &Finished) -> Value {
    let file = finished.file.to_str().unwrap();
    let output = run(["report", file, "--format", "json", "-n", "1000"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

/// The site in whose innermost function it is.
fn site<'a>(report: &'a Value, function: &str) -> Option<&'a Value> {
    let mut sites = report["sites"].as_array().unwrap().iter();
    sites.find(|site| site["stack"][0]["function"] == function)
}

fn leaked(service: &mut Service) -> u64 {
    service.say("");
    let truth: Value = serde_json::from_str(&service.line()).expect("the truth is JSON");
    truth["leaked"].as_u64().unwrap()
}

/// Of even leaks one in forty seems to slow down by chance (docs/verdict.md), and on a machine that gets busy
/// meanwhile one does: then a second recording tells.
#[test]
fn a_rare_leak_is_found_in_a_loop_at_full_speed() {
    let mut service = Service::start("turnover", [""; 0]);
    assert!(service.line().starts_with("ready "));
    if record_a_minute(&mut service) == "growing" {
        assert_eq!(record_a_minute(&mut service), "leak");
    }
    drop(service);
    assert_nothing_left();
}

/// Records the loop in windows, and gives the verdict on its leak: never that there is none.
fn record_a_minute(service: &mut Service) -> String {
    let options = ["--probe", "malloc", "--max-overhead", "3", "-d", "60s"];
    let recording = Leaktrace::record(service.pid(), options);
    let before = leaked(service);
    let finished = recording.wait();
    let after = leaked(service);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = report(&finished);

    // Calls that the end of a window cuts off are not lost: nothing was asked of them.
    assert!(
        report["losses"]["call_abandoned"].is_null(),
        "{}",
        report["losses"]
    );
    let malloc = &report["malloc"];
    assert_eq!(malloc["method"], "windows", "{malloc}");
    let windows = malloc["windows"][0].as_u64().unwrap();
    assert!(windows > 50, "{malloc}");
    for function in ["turns", "young", "middle", "middle_too", "old"] {
        let Some(site) = site(&report, function) else {
            continue;
        };
        assert_ne!(site["verdict"], "leak", "{site:#}");
        // The loop has one block at a time: no more than one can outlive each window.
        if function == "turns" {
            let survived = site["estimate"]["windows"]["survived"].as_u64().unwrap();
            assert!(survived <= windows, "{site:#}");
        }
    }
    let leak = site(&report, "leaks").expect("the leak is seen");
    assert_eq!(leak["estimate"]["method"], "windows");
    // What it really leaked, in its chunks' size.
    let grown = ((after - before) * 4096) as f64;
    let end = |n: usize| leak["growth_interval"][n].as_f64().unwrap();
    assert!(end(0) <= grown && grown <= end(1), "{grown}: {leak:#}");
    let verdict = leak["verdict"].as_str().unwrap();
    assert!(["leak", "growing"].contains(&verdict), "{leak:#}");
    verdict.to_owned()
}

#[test]
fn a_program_that_allocates_slowly_is_traced_in_full() {
    let mut service = Service::start("allocs", [""; 0]);
    service.line();
    let recording = Leaktrace::record(service.pid(), ["--probe", "malloc"]);
    service.say("run 200");
    service.line();
    recording.signal(nix::sys::signal::Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = report(&finished);
    assert_eq!(report["malloc"]["method"], "count", "{}", report["malloc"]);
    assert_eq!(report["malloc"]["max_overhead_percent"], 3.0);
    let kept = site(&report, "kept").expect("what is kept is seen");
    assert_eq!(kept["estimate"]["method"], "count", "{kept:#}");
}
