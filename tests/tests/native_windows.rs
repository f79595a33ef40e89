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

/// How many blocks the loop has leaked, and when, in nanoseconds.
fn leaked(service: &mut Service) -> (u64, u64) {
    service.say("");
    let truth: Value = serde_json::from_str(&service.line()).expect("the truth is JSON");
    let number = |field: &str| truth[field].as_u64().unwrap();
    (number("leaked"), number("ns"))
}

/// So many survivors are enough for a verdict, but that of even leaks one in forty seems to slow down by chance
/// (docs/verdict.md), and on a machine that gets busy meanwhile one does: then another recording tells.
const ENOUGH: f64 = 32.0;

/// What one recording shows of the leak.
struct Seen {
    verdict: String,
    /// Blocks that outlived their windows: on a machine that has no time for the loop a minute has few of them.
    survived: f64,
    /// Bytes that it really leaked, and what the report says: no less and no more.
    truth: f64,
    interval: [f64; 2],
}

#[test]
fn a_rare_leak_is_found_in_a_loop_at_full_speed() {
    let mut service = Service::start("turnover", [""; 0]);
    assert!(service.line().starts_with("ready "));
    let mut recordings: Vec<Seen> = Vec::new();
    let mut seconds = 60.0;
    loop {
        let seen = record(&mut service, seconds);
        let (verdict, survived) = (seen.verdict.clone(), seen.survived);
        recordings.push(seen);
        if verdict == "leak" {
            break;
        }
        // Never that there is none.
        assert!(["growing", "unknown"].contains(&&*verdict), "{verdict}");
        let enough = recordings.iter().filter(|seen| seen.survived >= ENOUGH);
        assert!(enough.count() < 2 && recordings.len() < 4, "{verdict}");
        seconds = (60.0 * 40.0 / survived.max(1.0)).clamp(60.0, 180.0);
    }
    drop(service);
    let sum = |of: fn(&Seen) -> f64| recordings.iter().map(of).sum::<f64>();
    let (truth, low) = (sum(|seen| seen.truth), sum(|seen| seen.interval[0]));
    let high = sum(|seen| seen.interval[1]);
    assert!(
        (low..=high).contains(&truth),
        "{truth} not in {low}..{high}"
    );
    assert_nothing_left();
}

/// Records the loop in windows.
fn record(service: &mut Service, seconds: f64) -> Seen {
    let duration = format!("{seconds:.0}s");
    let options = ["--probe", "malloc", "--max-overhead", "3", "-d", &duration];
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
    println!("{leak:#}");
    // In its chunks' size, of the time that was recorded: it goes on while the recording ends.
    let leaked_a_ns = (after.0 - before.0) as f64 / (after.1 - before.1) as f64;
    let window_ns = report["window"]["duration_s"].as_f64().unwrap() * 1e9;
    Seen {
        verdict: leak["verdict"].as_str().unwrap().to_owned(),
        survived: leak["estimate"]["windows"]["survived"].as_f64().unwrap(),
        truth: leaked_a_ns * window_ns * 4096.0,
        interval: [0, 1].map(|end| leak["growth_interval"][end].as_f64().unwrap()),
    }
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
