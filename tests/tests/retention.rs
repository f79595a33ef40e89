//! `record --retention`: the capture says what keeps the objects of leaks, so that a report made elsewhere
//! does.
//!
//! `LEAKTRACE_GO_VERSIONS`, a list with commas, says for which releases; without it the two that
//! `cargo xtask test` builds.

use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use leaktrace_tests::{
    Finished, Leaktrace, Service, assert_nothing_left, go_versions, leaktrace_binary, run, sample,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Long enough for a verdict, by the service's clock.
const WINDOW_S: f64 = 14.0;

/// Bytes a sample, eight times as many as by default: of a hundred or two a leak seems to slow down in one recording in a
/// hundred (docs/verdict.md).
const SAMPLE: &str = "65536";

/// Starts a service whose own heap sampler takes so many, and a recording that does.
fn start(name: &str, arguments: &[&str], options: &[&str]) -> (Service, Leaktrace, f64) {
    let variable = format!("GODEBUG=memprofilerate={SAMPLE}");
    let program = sample(name);
    let command = [&[&*variable, program.to_str().unwrap()], arguments].concat();
    let mut service = Service::start_at(Path::new("/usr/bin/env"), command);
    service.wait_for("leaked_bytes", 1.0);
    let options = [&["--retention", "--sample", SAMPLE], options].concat();
    let run = Leaktrace::record(service.pid(), options);
    let attached_s = service.truth("t_s");
    (service, run, attached_s)
}

/// Records services that leak, all at once, until leaks can be told, and looks for what keeps them. Nothing is
/// leaked after that.
fn recorded(names: impl IntoIterator<Item = String>) -> Vec<(String, Service, Finished)> {
    let args = [
        "-leak-bytes-per-s=8388608",
        "-leak-limit-bytes=0",
        "-garbage-bytes-per-s=50331648",
    ];
    let start = |name: String| {
        let started = start(&name, &args, &[]);
        (name, started)
    };
    let mut started: Vec<_> = names.into_iter().map(start).collect();
    for (_, (service, _, attached_s)) in &mut started {
        service.wait_for("t_s", *attached_s + WINDOW_S);
    }
    let ended = started.into_iter().map(|(name, (mut service, run, _))| {
        service.ask("pause");
        run.signal(Signal::SIGINT);
        let finished = run.wait();
        assert_eq!(finished.code, Some(0), "{name}: {}", finished.stderr);
        assert!(service.is_running(), "{name} did not survive");
        (name, service, finished)
    });
    ended.collect()
}

/// The holder of most of what the first site leaks, which must be nearly all of it.
fn holder(name: &str, report: &Value, site: &str) -> Value {
    let first = &report["sites"][0];
    assert_eq!(first["verdict"], "leak", "{name}: {first:#}");
    assert!(
        first["stack"].to_string().contains(site),
        "{name}: {first:#}"
    );
    let found = &first["retention"];
    let bytes = |of: &Value| of["bytes"].as_f64().unwrap();
    let holder = found["holders"][0].clone();
    assert!(
        bytes(&holder["amount"]) > 0.9 * bytes(&found["total"]),
        "{name}: {found:#}"
    );
    // The same objects as the report counts, by the same samples.
    let live = first["live_bytes"].as_f64().unwrap();
    let ratio = bytes(&found["total"]) / live;
    assert!((0.95..1.05).contains(&ratio), "{name}: {ratio} {found:#}");
    holder
}

#[test]
fn the_report_of_the_second_story_ends_at_those_who_wait() {
    let names = |version: String| {
        ["", "-stripped", "-nopprof"].map(|mode| format!("reload-{version}{mode}"))
    };
    for (name, mut service, finished) in recorded(go_versions().into_iter().flat_map(names)) {
        // What was found is in the file: the process need not be there any more.
        service.end();
        let holder = holder(&name, &finished.report(), "main.(*rowCache).Store");
        let group = &holder["goroutines"];
        assert_eq!(group["wait_reason"], "chan receive", "{name}: {holder:#}");
        let at = &group["blocked_at"]["function"];
        assert_eq!(at, "main.(*reloader).frequencyControl", "{name}");
        assert_eq!(group["channel"]["senders"], 0, "{name}: {holder:#}");
        assert_eq!(group["channel"]["closed"], false, "{name}");
        let hops = holder["paths"][0]["hops"].as_array().unwrap();
        assert_eq!(
            hops.last().unwrap()["name"],
            "main.Row",
            "{name}: {hops:#?}"
        );
    }
    assert_nothing_left();
}

#[test]
fn that_of_the_first_one_ends_at_those_who_send() {
    let names = go_versions();
    let names = names
        .into_iter()
        .map(|version| format!("pipeline-{version}"));
    for (name, _service, finished) in recorded(names) {
        let holder = holder(&name, &finished.report(), "main.(*search).filter");
        let group = &holder["goroutines"];
        assert_eq!(group["wait_reason"], "chan send", "{name}: {holder:#}");
        assert_eq!(group["channel"]["receivers"], 0, "{name}: {holder:#}");

        let file = finished.file.to_str().unwrap();
        let text = run(["report", file]);
        let text = String::from_utf8(text.stdout).unwrap();
        let (_, kept) = text.split_once("kept alive by").expect("the text tells it");
        assert!(kept.contains("in chan send"), "{name}: {text}");
        assert!(kept.contains("pipeline.go:"), "{name}: {text}");
        let page = finished.folder.path().join("page.html");
        let output = run(["export", file, "--to", "html", "-o", page.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0));
        let page = fs::read_to_string(page).unwrap();
        assert!(page.contains("kept alive by"), "{name}: the page tells it");
    }
    assert_nothing_left();
}

/// What cannot be told is said, and the capture is whole.
#[test]
fn what_is_not_found_is_said() {
    let says = |finished: &Finished, words: &str| {
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let report = finished.report();
        assert_eq!(
            report["window"]["intervals"].as_u64().map(|n| n > 1),
            Some(true)
        );
        let limits = report["limits"].to_string();
        assert!(
            limits.contains("what keeps leaked objects alive"),
            "{limits}"
        );
        assert!(limits.contains(words), "{limits}");
    };
    let mut quiet = Service::start("reload-1.27.3", ["-leak-bytes-per-s=0"]);
    quiet.line();
    let finished = Leaktrace::record(quiet.pid(), ["-d", "2s", "--retention"]).wait();
    says(&finished, "was judged a leak");

    let args = ["-leak-bytes-per-s=8388608", "-leak-limit-bytes=0"];
    let (mut service, run, attached_s) = start("reload-1.27.3", &args, &["--max-memory", "1MiB"]);
    service.wait_for("t_s", attached_s + WINDOW_S);
    service.end();
    says(&run.wait(), "is gone");
}

/// With such pauses a list of a million nodes takes many seconds. Ctrl-C ends the search, not the answer.
#[test]
fn a_search_that_is_stopped_tells_what_it_has() {
    let mut service = Service::start("objects-1.27.3", [""; 0]);
    service.line();
    service.say("1000000");
    service.line();
    let child = std::process::Command::new(leaktrace_binary())
        .args(["why", "-p", &service.pid().to_string(), "--format", "json"])
        .args(["--max-overhead", "0.1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it has begun to read; the search takes many times as long.
    thread::sleep(Duration::from_secs(1));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let why: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(why["pass"]["stopped"], true, "{why:#}");
    assert_eq!(why["pass"]["passes"], 1);
    assert!(service.is_running(), "the target did not survive");
}
