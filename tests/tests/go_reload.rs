//! The second story: a Go service that reloads a table into a fresh `sync.Map` at every sub-task
//! and keeps each copy. The leaking call chain must come first, with its size, and what does not
//! leak beside it must not be accused.

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left};
use serde_json::Value;

const ARGS: [&str; 2] = ["-leak-bytes-per-s=33554432", "-leak-limit-bytes=0"];

/// The leaking line's function, as the reports name it.
const LEAK: &str = "main.(*rowCache).Store";

fn names_the_leak(variant: &str) {
    let mut service = Service::start(&format!("reload-{variant}"), ARGS);
    service.wait_for("leaked_bytes", 1.0);
    let run = Leaktrace::record(service.pid(), ["-d", "20s"]);
    let finished = run.wait();
    let truth = service.truth("leaked_bytes");
    assert!(service.is_running(), "the target did not survive");
    let report = finished.report();
    let first = &report["sites"][0];
    assert_eq!(first["rank"], 1, "{first:#}");
    assert_eq!(first["verdict"], "leak", "{first:#}");
    let frame = user_frame(first);
    assert_eq!(frame["function"], LEAK, "{first:#}");
    assert!(
        frame["file"].as_str().unwrap().ends_with("reload.go"),
        "{frame}"
    );
    let line = frame["line"].as_u64().unwrap() as usize;
    let source = include_str!("../targets/go/reload/reload.go");
    let text = source.lines().nth(line - 1).unwrap();
    assert!(text.contains("c.m.Store(r.ID, r)"), "line {line}: {text}");

    let live = first["live_bytes"].as_f64().unwrap();
    assert!(truth > 64e6, "the service leaked only {truth} bytes");
    assert!(
        (live / truth - 1.0).abs() < 0.15,
        "live {live} against {truth}"
    );
    for site in sites(&report).filter(|site| site["verdict"] == "leak") {
        let stack = site["stack"].to_string();
        assert!(
            stack.contains(LEAK) || stack.contains("main.(*reloader)"),
            "accused: {site:#}"
        );
    }
    assert_eq!(
        report["target"]["go"]["stripped"],
        variant.contains("stripped")
    );
    assert_nothing_left();
}

fn sites(report: &Value) -> impl Iterator<Item = &Value> {
    report["sites"].as_array().unwrap().iter()
}

/// The innermost frame of the service's own code.
fn user_frame(site: &Value) -> &Value {
    site["stack"]
        .as_array()
        .unwrap()
        .iter()
        .find(|frame| {
            frame["function"]
                .as_str()
                .unwrap_or("")
                .starts_with("main.")
        })
        .unwrap_or_else(|| panic!("no frame of the service in {site:#}"))
}

#[test]
fn go_1_27() {
    names_the_leak("1.27.3");
}

#[test]
fn go_1_27_stripped() {
    names_the_leak("1.27.3-stripped");
}

#[test]
fn go_1_19() {
    names_the_leak("1.19.8");
}

#[test]
fn go_1_19_stripped() {
    names_the_leak("1.19.8-stripped");
}

/// Attached to only after 100 MB have leaked, a short look already shows them.
#[test]
fn what_leaked_before_the_attach_is_shown() {
    let limit = 400 << 20;
    let mut service = Service::start(
        "reload-1.27.3",
        [
            "-leak-bytes-per-s=104857600".to_owned(),
            format!("-leak-limit-bytes={limit}"),
        ],
    );
    service.wait_for("leaked_bytes", f64::from(limit) * 0.99);
    let finished = Leaktrace::record(service.pid(), ["-d", "5s"]).wait();
    let truth = service.truth("leaked_bytes");
    let report = finished.report();
    let site = sites(&report)
        .find(|site| site["stack"].to_string().contains(LEAK) && site["kind"] == "go_heap")
        .expect("the leaking site is in the report");
    let preexisting = site["preexisting_bytes"].as_f64().unwrap();
    assert!(
        preexisting >= truth * 0.85,
        "preexisting {preexisting} of {truth}"
    );
    assert_ne!(
        site["verdict"], "leak",
        "it does not grow any more: {site:#}"
    );
}
