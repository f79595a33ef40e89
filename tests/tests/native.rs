//! A leaking service in C: which line, how much, and nothing else accused.

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, run};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A table.
const TABLE_BYTES: u64 = 256 * 1024 - 56;

#[test]
fn the_leaking_line_of_a_native_service_is_named() {
    let mut service = Service::start("rates", ["8"]);
    service.truth("leaked");
    let recording = Leaktrace::record(service.pid(), [""; 0]);
    let before = service.truth("leaked");
    service.wait_for("leaked", before + 8.0 * 30.0);
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    // The window is half a minute: what is 5 s old is old.
    let file = finished.file.to_str().unwrap();
    let output = run(["report", file, "--format", "json", "--older", "5s"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");

    let sites = report["sites"].as_array().unwrap();
    let named = |site: &Value, name: &str| {
        let mut frames = site["stack"].as_array().unwrap().iter();
        frames.any(|frame| frame["function"] == name)
    };
    let first = &sites[0];
    assert_eq!(first["verdict"], "leak", "{first:#}");
    assert_eq!(first["kind"], "malloc");
    assert!(named(first, "expire_session"), "{first:#}");
    let source = include_str!("../targets/c/rates.c");
    let frames = first["stack"].as_array().unwrap();
    let line = frames.iter().find_map(|frame| {
        let is_it = frame["function"] == "expire_session";
        is_it.then(|| frame["line"].as_u64().unwrap() as usize)
    });
    let text = source.lines().nth(line.unwrap() - 1).unwrap();
    assert!(text.contains("the leak"), "{text}");
    let objects = first["live_objects"].as_u64().unwrap();
    assert_eq!(first["live_bytes"], objects * TABLE_BYTES);
    // The truth is printed once in eight sessions.
    assert!((8 * 29..8 * 33).contains(&objects), "{objects}");
    for site in &sites[1..] {
        // Through malloc, whose return address a uretprobe has changed.
        if site["kind"] == "mmap" && named(site, "expire_session") {
            assert!(named(site, "load_table"), "{site:#}");
        }
        assert_ne!(site["verdict"], "leak", "{site:#}");
        // What malloc maps for them is not judged.
        if site["kind"] == "malloc" && named(site, "close_session") {
            assert_eq!(site["verdict"], "steady", "{site:#}");
        }
    }
    assert_nothing_left();
}
