//! A pipeline whose goroutines block for ever, recorded: the group must be called a leak, with its
//! growth and what it holds, in the report and in what is left after a `kill -9`.

use leaktrace_tests::{Leaktrace, Service, report, run};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Goroutines that leak in a second: each holds 4 KiB.
const RATE: f64 = 1024.0;

fn leaking(variant: &str) -> Service {
    let args = ["-leak-bytes-per-s=4194304", "-leak-limit-bytes=0"];
    let mut service = Service::start(&format!("pipeline-{variant}"), args);
    service.wait_for("leaked_objects", 1.0);
    service
}

fn leak(goroutines: &Value) -> &Value {
    let group = &goroutines["groups"][0];
    assert_eq!(group["verdict"], "leak", "{goroutines:#}");
    assert_eq!(group["wait_reason"], "chan send");
    assert_eq!(group["blocked_at"]["function"], "main.(*search).filter");
    assert_eq!(group["created_by"]["function"], "main.(*pipeline).leak");
    assert_eq!(group["channel"]["closed"], false);
    group
}

fn is_a_leak(variant: &str) -> (Value, Service) {
    let mut service = leaking(variant);
    let recording = Leaktrace::record(service.pid(), [""; 0]);
    let attached_s = service.truth("t_s");
    service.wait_for("t_s", attached_s + 15.0);
    // Nothing leaks while the recording ends.
    service.ask("pause");
    let truth = service.truth("leaked_objects");
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(service.is_running(), "the target did not survive");
    let report = finished.report();
    let goroutines = &report["goroutines"];
    assert_eq!(goroutines["summary"]["leak"], 1, "{goroutines:#}");
    let group = leak(goroutines);
    let growth = group["growth_per_s"].as_f64().unwrap();
    assert!((growth / RATE - 1.0).abs() < 0.2, "{growth}/s");
    assert_eq!(group["count"].as_f64(), Some(truth));
    assert_eq!(group["left"], 0);
    let (oldest, median) = (&group["oldest_wait_s"], &group["median_wait_s"]);
    assert!(oldest.as_f64().unwrap() >= 13.0, "{oldest}");
    assert!((4.0..12.0).contains(&median.as_f64().unwrap()), "{median}");

    // The same from the file alone, as text, and as an exit code.
    let file = finished.file.to_str().unwrap();
    let output = run(["goroutines", file]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = " senders, no receiver, unbuffered, never closed";
    assert!(text.contains(words) && text.contains("LEAK"), "{text}");
    let fails = |args: &[&str]| {
        let args = [&["report", file, "--fail-on-leak"], args].concat();
        run(args).status.code()
    };
    assert_eq!(fails(&[]), Some(3));
    assert_eq!(fails(&["--verdict", "steady"]), Some(0));
    (report, service)
}

/// Each holds its slice of 4 KiB: of those that came in the window the stacks must show it.
fn pins_what_it_holds(report: &Value) {
    let group = &report["goroutines"]["groups"][0];
    let pinned = group["pinned_bytes"].as_f64().unwrap();
    let truth = group["growth"].as_f64().unwrap() * 4096.0;
    assert!(
        (0.6..1.7).contains(&(pinned / truth)),
        "{pinned} of {truth}"
    );
}

#[test]
fn go_1_27() {
    let (report, _service) = is_a_leak("1.27.3");
    pins_what_it_holds(&report);
}

#[test]
fn go_1_19_stripped() {
    is_a_leak("1.19.8-stripped");
}

/// Nor is the runtime's sampler needed for what the stacks point to: leaktrace samples for itself.
#[test]
fn without_profiler() {
    let (report, _service) = is_a_leak("1.27.3-nopprof");
    pins_what_it_holds(&report);
}

/// What was written before a `kill -9` is shown.
#[test]
fn killed() {
    let mut service = leaking("1.27.3");
    let recording = Leaktrace::record(service.pid(), [""; 0]);
    recording.wait_until_written(13.0);
    recording.signal(Signal::SIGKILL);
    let finished = recording.wait();
    assert!(service.is_running(), "the target did not survive");
    let report = report(&finished.file);
    assert_eq!(report["window"]["end"], "lost");
    leak(&report["goroutines"]);
}

#[test]
fn a_capture_without_goroutines_says_so() {
    let service = Service::sleeper();
    let finished = Leaktrace::record(service.pid(), ["-d", "1s"]).wait();
    let output = run(["goroutines", finished.file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("no goroutines"), "{stderr}");
    assert_eq!(run(["goroutines"]).status.code(), Some(2));
}
