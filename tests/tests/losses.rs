//! With small maps, what does not fit is counted exactly, by cause, and the report says so.

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, run};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nothing, one, half, all but one, and eight times what fits.
fn amounts(capacity: u64) -> [u64; 5] {
    [0, 1, capacity / 2, capacity - 1, 8 * capacity]
}

fn lost(report: &Value, cause: &str) -> u64 {
    report["losses"][cause].as_u64().unwrap_or(0)
}

/// The report's words about a loss must be there for people too.
fn assert_told(file: &std::path::Path, cause: &str) {
    let output = run(["report".as_ref(), file.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(cause), "no word of {cause} in:\n{text}");
}

/// Live bytes of all sites of a kind, and those of sites without a stack.
fn live(report: &Value, kind: &str) -> (u64, u64) {
    let sites = report["sites"].as_array().unwrap();
    let of_kind = sites.iter().filter(|site| site["kind"] == kind);
    of_kind.fold((0, 0), |(all, nameless), site| {
        let bytes = site["live_bytes"].as_u64().unwrap();
        let has_stack = !site["stack"].as_array().unwrap().is_empty();
        (all + bytes, nameless + if has_stack { 0 } else { bytes })
    })
}

#[test]
fn stack_map() {
    const CAPACITY: u64 = 64;
    for stacks in amounts(CAPACITY) {
        let mut service = Service::start("vm", ["stacks".to_owned(), stacks.to_string()]);
        service.line();
        let run = Leaktrace::record(service.pid(), ["--stacks", &CAPACITY.to_string()]);
        service.say("go");
        service.line();
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        let report = finished.report();
        let expected = stacks.saturating_sub(CAPACITY);
        assert_eq!(lost(&report, "stack_map_full"), expected, "{stacks} stacks");
        // The memory is counted all the same, under a site without a stack.
        assert_eq!(live(&report, "mmap"), (stacks * 4096, expected * 4096));
        if expected > 0 {
            assert_told(&finished.file, "stack_map_full");
        }
    }
    assert_nothing_left();
}

#[test]
fn ring_buffer() {
    const BYTES: u64 = 4096;
    // A record takes 64 bytes and a header of eight; one byte always stays free.
    const CAPACITY: u64 = (BYTES - 1) / 72;
    for records in amounts(CAPACITY) {
        let mut service = Service::start("vm", ["flood".to_owned(), records.to_string()]);
        service.line();
        let run = Leaktrace::record(service.pid(), ["--ring-buffer", "4KiB"]);
        // Nobody empties the ring buffer meanwhile.
        run.signal(Signal::SIGSTOP);
        service.say("go");
        service.line();
        run.signal(Signal::SIGCONT);
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        let report = finished.report();
        let expected = records.saturating_sub(CAPACITY);
        assert_eq!(
            lost(&report, "ring_buffer_full"),
            expected,
            "{records} records"
        );
        assert_eq!(live(&report, "mmap").0, (records - expected) * 4096);
        if expected > 0 {
            assert_told(&finished.file, "ring_buffer_full");
        }
    }
    assert_nothing_left();
}

#[test]
fn live_object_map() {
    const CAPACITY: u64 = 512;
    for objects in amounts(CAPACITY) {
        let mut service = Service::start("objects-1.27.3", [""; 0]);
        service.line();
        let options = ["--force", "--live-objects", &CAPACITY.to_string()];
        let run = Leaktrace::record(service.pid(), options);
        service.say(&objects.to_string());
        let said: Value = serde_json::from_str(&service.line()).unwrap();
        // The runtime itself allocated nothing else.
        assert_eq!(said["mallocs"], objects, "{said}");
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        let report = finished.report();
        let expected = objects.saturating_sub(CAPACITY);
        assert_eq!(
            lost(&report, "live_object_map_full"),
            expected,
            "{objects} objects"
        );
        // The runtime's own profile has them all: bytes are not lost, only ages.
        let site = report["sites"]
            .as_array()
            .unwrap()
            .iter()
            .find(|site| site["stack"].to_string().contains("main.allocate"));
        let live = site.map_or(0, |site| site["live_bytes"].as_u64().unwrap());
        assert_eq!(live, objects * 64);
        if expected > 0 {
            assert_told(&finished.file, "live_object_map_full");
        }
    }
    assert_nothing_left();
}

/// The bytes of mappings are counted from their events, so that only the probes' counts are missing.
#[test]
fn site_map() {
    const CAPACITY: u64 = 8192;
    let stacks = CAPACITY + 1000;
    let mut service = Service::start("vm", ["stacks".to_owned(), stacks.to_string()]);
    service.line();
    let recording = Leaktrace::record(service.pid(), ["--probe", "vm", "--stacks", "16384"]);
    service.say("go");
    service.line();
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    let file = finished.file.to_str().unwrap();
    let output = run(["report", file, "--format", "json", "-n", "20000"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(lost(&report, "site_map_full"), 1000);
    assert_eq!(live(&report, "mmap"), (stacks * 4096, 0));
    assert_told(&finished.file, "site_map_full");
    assert_nothing_left();
}
