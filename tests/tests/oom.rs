//! The kernel kills for want of memory: the capture is closed with the state at death.

use std::{
    fs::File, io::BufReader, os::unix::process::ExitStatusExt as _, path::Path, process::Command,
};

use leaktrace::capture::Capture;
use leaktrace_tests::{
    Finished, Hoard, Leaktrace, MemoryCgroup, Service, assert_nothing_left, live_bytes,
    off_by_chance, run,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What a process may have.
const LIMIT: u64 = 160 * MIB;

/// The report in words.
fn text(file: &Path) -> String {
    let output = run(["report".as_ref(), file.as_os_str()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What holds of every capture that ends so.
fn closed_by_the_kernel(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    let window = &report["window"];
    assert_eq!(window["end"], "target-oom", "{window:#}");
    let text = text(&finished.file);
    assert!(text.contains("target-oom"), "{text}");
    // Of the last interval there was nothing to read, but of the one before it.
    let memory = &report["memory"];
    let file = BufReader::new(File::open(&finished.file).unwrap());
    let intervals = Capture::read(file).unwrap().intervals;
    let before_last = intervals[intervals.len() - 2].t_ns as f64 / 1e9;
    let read = memory["end_s"].as_f64().unwrap();
    let until = window["duration_s"].as_f64().unwrap();
    assert!(
        (before_last - 0.001..=until).contains(&read),
        "{before_last} {window:#}{memory:#}"
    );
    assert!(
        text.contains("as last read before the process was gone"),
        "{text}"
    );
    // Never what the kernel had left of it while it was being killed.
    let rss = memory["rss_bytes"].as_u64().unwrap();
    assert!((LIMIT / 2..LIMIT + 16 * MIB).contains(&rss), "{rss}");
    assert_nothing_left();
    report
}

/// Each block that was there when it was killed is in the report.
#[test]
fn a_native_program() {
    let mut hoard = Hoard::start();
    let group = MemoryCgroup::new(LIMIT);
    group.take(hoard.pid());
    let run = Leaktrace::record(hoard.pid(), ["--interval", "500ms"]);
    hoard.go();
    let finished = run.wait();
    let report = closed_by_the_kernel(&finished);
    hoard.assert_all_seen(&report);
}

/// Go's own profile is gone with the process: since the last interval the probes alone have counted.
#[test]
fn a_go_service() {
    let args = ["-leak-bytes-per-s=33554432", "-leak-limit-bytes=0"];
    let group = MemoryCgroup::new(LIMIT);
    let mut service = Service::start("reload-1.27.3", args);
    group.take(service.pid());
    service.wait_for("leaked_bytes", 1.0);
    // It has seconds to live.
    service.ask("pause");
    let run = Leaktrace::record(service.pid(), ["--interval", "500ms"]);
    service.say("resume");
    let finished = run.wait();
    let report = closed_by_the_kernel(&finished);
    // It tells once a second, and one sample stands for 512 KiB.
    let leaked = service.truth("leaked_bytes");
    let live = live_bytes(&report, "go_heap", "main.(*reloader).leak") as f64;
    let most = leaked + 34e6;
    let low = (1.0 - off_by_chance(leaked)) * leaked;
    let high = (1.0 + off_by_chance(most)) * most;
    assert!(
        (low..high).contains(&live),
        "{live} bytes live, {leaked} leaked a moment before"
    );
}

/// Who is killed is another process of the same control group.
#[test]
fn a_neighbour() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    let group = MemoryCgroup::new(LIMIT);
    let run = Leaktrace::record(service.pid(), [""; 0]);
    group.take(service.pid());
    let eater = "echo $$ > \"$0\"; echo 1000 > /proc/self/oom_score_adj; exec tail /dev/zero";
    let mut eater = Command::new("sh")
        .args(["-c", eater])
        .arg(group.processes())
        .spawn()
        .unwrap();
    assert_eq!(eater.wait().unwrap().signal(), Some(9));
    assert!(service.is_running());
    service.end();
    let finished = run.wait();
    let report = finished.report();
    assert_eq!(report["window"]["end"], "target-exit", "{report:#}");
    assert_nothing_left();
}
