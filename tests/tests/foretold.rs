//! The block that glibc's `malloc` will give is told where the call begins: most returns need no probe then. Where it
//! was told wrongly that is noticed.

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left};
use nix::sys::signal::Signal;
use serde_json::Value;

fn record(service: &Service) -> Leaktrace {
    let arguments = ["--probe", "malloc", "--sample", "all", "--force"];
    Leaktrace::record(service.pid(), arguments)
}

/// The report, once the recording has been ended.
fn end(recording: Leaktrace) -> Value {
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.report()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn few_returns_meet_a_probe() {
    let mut service = Service::start("steady", ["wait"]);
    service.line();
    let recording = record(&service);
    service.say("");
    // One line a second.
    (0..4).for_each(|_| drop(service.line()));
    let report = end(recording);
    assert_eq!(report["losses"], serde_json::json!({}));
    let sites = report["sites"].as_array().unwrap();
    let allocs: f64 = sites
        .iter()
        .map(|site| number(&site["alloc_objects"]))
        .sum();
    assert!(allocs > 10_000.0, "{allocs}");
    let hits = number(&report["overhead"]["families"][0]["hits"]);
    // As many frees, but for one in a hundred. The returns would come to a third.
    assert!((1.9..2.1).contains(&(hits / allocs)), "{hits} of {allocs}");
    assert_nothing_left();
}

#[test]
fn a_block_that_is_not_the_one_foretold_is_noticed() {
    const HONEST: u64 = 5000;
    const FALSE: u64 = 20_000;
    let mut service = Service::start("cache", [""; 0]);
    service.line();
    let recording = record(&service);
    service.ask(&format!("honest {HONEST}"));
    service.ask(&format!("false {FALSE}"));
    let report = end(recording);
    assert!(service.is_running());
    let losses = &report["losses"];
    // Once: then nothing is foretold any more. Until then a block that lives was taken for another one.
    assert_eq!(losses["block_mistaken"], 1, "{losses}");
    let unseen = losses["free_of_unseen"].as_u64().unwrap_or(0);
    assert!(unseen <= 256, "{losses}");
    let site = &report["sites"][0];
    assert_eq!(site["kind"], "malloc");
    assert!(site["stack"].to_string().contains("turn"), "{site:#}");
    assert_ne!(site["verdict"], "leak", "{site:#}");
    // Each is counted, whatever its address is taken to be.
    assert_eq!(site["alloc_objects"], HONEST + FALSE, "{site:#}");
    let live = number(&site["live_objects"]);
    assert!(live <= 2.0, "{site:#}");
    assert_nothing_left();
}
