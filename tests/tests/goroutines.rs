//! The first story: a log pipeline with tens of thousands of goroutines blocked for ever on one
//! channel send. One look must name the line, the creator and the state of the channel.

use std::thread::sleep;
use std::time::Duration;

use leaktrace_tests::{Service, run};
use serde_json::Value;

const LEAKED: u64 = 79_399;

fn names_the_blocked_send(variant: &str) {
    let limit = LEAKED * 4096;
    let mut service = Service::start(
        &format!("pipeline-{variant}"),
        [
            "-leak-bytes-per-s=262144000".to_owned(),
            format!("-leak-limit-bytes={limit}"),
        ],
    );
    service.wait_for("leaked_objects", LEAKED as f64);
    // The last of them are still on their way to the channel, and on a busy machine the service
    // starts some more before it notices that it has reached its limit.
    sleep(Duration::from_secs(2));
    let leaked = service.truth("leaked_objects") as u64;
    assert!(leaked >= LEAKED);
    let output = run([
        "goroutines",
        "-p",
        &service.pid().to_string(),
        "--format",
        "json",
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(service.is_running(), "the target did not survive");
    let census: Value = serde_json::from_slice(&output.stdout).unwrap();
    let total = census["total"].as_u64().unwrap();
    let truth = service.truth("goroutines") as u64;
    // The runtime's own goroutines are not in the program's count.
    assert!(
        (truth..truth + 40).contains(&total),
        "{total}, truth {truth}"
    );
    assert_eq!(census["unreadable"], 0);

    let group = &census["groups"][0];
    assert_eq!(group["count"], leaked, "{group:#}");
    assert_eq!(group["state"], "waiting");
    assert_eq!(group["wait_reason"], "chan send");
    let at = &group["blocked_at"];
    assert_eq!(at["function"], "main.(*search).filter", "{at}");
    let source = include_str!("../targets/go/pipeline/pipeline.go");
    let line = at["line"].as_u64().unwrap() as usize;
    let text = source.lines().nth(line - 1).unwrap();
    assert!(
        text.contains("s.matches <- matching"),
        "line {line}: {text}"
    );
    assert_eq!(group["created_by"]["function"], "main.(*pipeline).leak");
    let channel = &group["channel"];
    assert_eq!(channel["senders"], leaked, "{channel}");
    assert_eq!(channel["distinct"], 1);
    for (field, expected) in [("receivers", 0), ("capacity", 0), ("queued", 0)] {
        assert_eq!(channel[field], expected, "{channel}");
    }
    assert_eq!(channel["closed"], false);
    assert_eq!(channel["receiver_in_select"], false);

    let output = run(["goroutines", "-p", &service.pid().to_string(), "-n", "1"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = " senders, no receiver, unbuffered, never closed";
    assert!(text.contains(words), "{text}");
}

#[test]
fn go_1_27() {
    names_the_blocked_send("1.27.3");
}

#[test]
fn go_1_27_stripped() {
    names_the_blocked_send("1.27.3-stripped");
}

/// The heap sampler is not needed for this.
#[test]
fn go_1_27_without_profiler() {
    names_the_blocked_send("1.27.3-nopprof");
}

#[test]
fn go_1_19_stripped() {
    names_the_blocked_send("1.19.8-stripped");
}

#[test]
fn other_programs_are_refused() {
    let service = Service::sleeper();
    let output = run(["goroutines", "-p", &service.pid().to_string()]);
    assert_eq!(output.status.code(), Some(6));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("not a Go program"), "{stderr}");
}
