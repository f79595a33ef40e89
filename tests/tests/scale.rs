//! Targets that are large, or busy for a long time.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use leaktrace_tests::{
    Finished, Hoard, Leaktrace, Service, assert_nothing_left, blocks_of, run, told,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Every block is followed.
const ALL: [&str; 5] = ["--probe", "malloc", "--sample", "all", "--force"];

/// A program of so many threads, and a recording of it.
fn record(threads: &str) -> (Service, Leaktrace) {
    let mut service = Service::start("allocs", ["--threads", threads]);
    service.line();
    let run = Leaktrace::record(service.pid(), ALL);
    (service, run)
}

fn end(run: Leaktrace, service: &mut Service) -> (Finished, Value) {
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(service.is_running(), "the program did not survive");
    let report = finished.report();
    assert_nothing_left();
    (finished, report)
}

/// Each block is counted, and no loss.
fn assert_exact(finished: &Finished, report: &Value, service: &Service) {
    let expected = told(service.newest());
    let counted = blocks_of(&finished.file, |name| expected.contains_key(name));
    assert_eq!(counted, expected);
    let mut losses = report["losses"].as_object().unwrap().clone();
    // The C library gives up what it had kept for threads before.
    losses.remove("free_of_unseen");
    assert!(losses.is_empty(), "{losses:?}");
}

#[test]
fn a_thousand_threads() {
    let (mut service, run) = record("1000");
    service.ask("run 200");
    let (finished, report) = end(run, &mut service);
    assert_exact(&finished, &report, &service);
}

/// What the others have allocated is missing, and it is said so.
#[test]
fn more_threads_than_there_is_room_for() {
    let (mut service, run) = record("5000");
    service.ask("run 20");
    let (finished, report) = end(run, &mut service);
    let lost = report["losses"]["threads_full"].as_u64().unwrap_or(0);
    assert!(lost > 0, "{:#}", report["losses"]);
    let expected = told(service.newest());
    let counted = blocks_of(&finished.file, |name| expected.contains_key(name));
    assert_ne!(counted, expected);
    let output = run_report(&finished);
    assert!(output.contains("threads_full"), "{output}");
}

fn run_report(finished: &Finished) -> String {
    let output = run(["report".as_ref(), finished.file.as_os_str()]);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn ten_thousand_mappings() {
    let mut hoard = Hoard::with_mappings(10_000);
    let maps = fs::read_to_string(format!("/proc/{}/maps", hoard.pid())).unwrap();
    assert!(maps.lines().count() > 10_000);
    let run = Leaktrace::record(hoard.pid(), [""; 0]);
    hoard.go();
    hoard.wait_for(200);
    hoard.signal(Signal::SIGSTOP);
    let (_, report) = end(run, &mut hoard.service);
    hoard.assert_all_seen(&report);
    assert_eq!(report["losses"], json!({}));
}

/// Resident memory of a process, in KiB.
fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().nth(1));
    words.unwrap().parse().unwrap()
}

/// Half a minute, or twenty minutes with `--full`, in which every call is seen: leaktrace does not grow, and in the
/// end nothing is missing.
#[test]
fn soak() {
    let time = match env::var_os("LEAKTRACE_FULL") {
        Some(_) => Duration::from_secs(20 * 60),
        None => Duration::from_secs(30),
    };
    let (mut service, run) = record("4");
    let begun = Instant::now();
    let mut resident = Vec::new();
    while begun.elapsed() < time {
        service.ask("turn 50000");
        resident.push(resident_kib(run.pid()));
    }
    let (finished, report) = end(run, &mut service);
    assert_exact(&finished, &report, &service);
    // A third of the time is for what it fills once.
    let early = resident[resident.len() / 3];
    let late = *resident.last().unwrap();
    println!(
        "{} runs; resident {early} KiB, then {late} KiB",
        resident.len()
    );
    assert!(late < early + 1024, "{resident:?}");
}
