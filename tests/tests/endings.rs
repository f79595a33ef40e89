//! However a window ends, the file is closed with the reason, and nothing stays behind.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, report};
use nix::sys::signal::Signal;

fn service() -> Service {
    let mut service = Service::start("reload-1.27.3", ["-leak-bytes-per-s=8388608"]);
    service.wait_for("leaked_bytes", 1.0);
    service
}

#[test]
fn duration() {
    let mut service = service();
    let finished = Leaktrace::record(service.pid(), ["-d", "3s"]).wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    assert_eq!(report["window"]["end"], "duration");
    let duration = report["window"]["duration_s"].as_f64().unwrap();
    // A machine that stands still stretches it, which is told.
    let stood_still = report["limits"]
        .to_string()
        .contains("leaktrace did not run");
    let most = if stood_still { f64::INFINITY } else { 4.5 };
    assert!((3.0..most).contains(&duration), "{duration}");
    assert!(service.is_running());
    assert_nothing_left();
}

#[test]
fn signals() {
    let mut service = service();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let run = Leaktrace::record(service.pid(), [""; 0]);
        sleep(Duration::from_secs(2));
        run.signal(signal);
        let finished = run.wait();
        assert_eq!(finished.code, Some(0), "{signal}: {}", finished.stderr);
        assert_eq!(finished.report()["window"]["end"], "signal", "{signal}");
        assert!(service.is_running());
        assert_nothing_left();
    }
}

#[test]
fn target_exit() {
    let mut service = service();
    let run = Leaktrace::record(service.pid(), [""; 0]);
    // Enough for more than `unknown`.
    run.wait_until_written(5.0);
    service.end();
    let ended = Instant::now();
    let finished = run.wait();
    assert!(
        ended.elapsed() < Duration::from_secs(10),
        "leaktrace noticed only after {:?}",
        ended.elapsed()
    );
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    assert_eq!(report["window"]["end"], "target-exit");
    let first = &report["sites"][0];
    assert!(
        first["stack"]
            .to_string()
            .contains("main.(*rowCache).Store"),
        "{first:#}"
    );
    assert_nothing_left();
}

/// `kill -9` of leaktrace leaves a file that reads up to the last interval and says so.
#[test]
fn killed() {
    let mut service = service();
    let started = Instant::now();
    let run = Leaktrace::record(service.pid(), ["--interval", "500ms"]);
    let written = run.wait_until_written(2.5);
    run.signal(Signal::SIGKILL);
    let most = started.elapsed().as_secs_f64();
    let finished = run.wait();
    assert_eq!(finished.code, None);
    assert!(service.is_running(), "the target did not survive");
    let report = report(&finished.file);
    assert_eq!(report["window"]["end"], "lost", "{:#}", report["window"]);
    let duration = report["window"]["duration_s"].as_f64().unwrap();
    // No interval is lost. The report has milliseconds.
    let least = written - 0.001;
    assert!(
        (least..most).contains(&duration),
        "{least}, {duration}, {most}"
    );
    assert!(!report["sites"].as_array().unwrap().is_empty());
    assert_nothing_left();
}

/// The target runs at its own speed again once leaktrace is gone.
#[test]
fn speed_returns() {
    let mut churn = Service::start("churn-1.27.3", [""; 0]);
    let before = speed(&mut churn);
    let run = Leaktrace::record(churn.pid(), [""; 0]);
    sleep(Duration::from_secs(1));
    run.signal(Signal::SIGKILL);
    run.wait();
    assert_nothing_left();
    // Other work on the machine moves this, for some seconds by much; a probe left behind does for good.
    let mut after = 0.0_f64;
    for _ in 0..12 {
        after = after.max(speed(&mut churn));
        if after > before * 0.6 {
            return;
        }
    }
    panic!("{after} against {before} objects/s");
}

/// Median of five seconds, in objects a second of a processor.
fn speed(churn: &mut Service) -> f64 {
    let mut rates = Vec::new();
    while rates.len() < 5 {
        let line: serde_json::Value = serde_json::from_str(&churn.line()).unwrap();
        rates.extend(line["objects_per_cpu_s"].as_f64());
    }
    rates.sort_by(f64::total_cmp);
    rates[2]
}
