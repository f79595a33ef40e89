//! Debian's own Python, stripped, as it is on every machine: growth is told from turnover, and named.

use std::path::Path;

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left, root, run};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Of a page.
const MOST_BYTES: u64 = 4100;
const LEAST_BYTES: u64 = 4000;

fn start(mode: &str) -> Service {
    let program = root().join("tests/targets/python/pages.py");
    let mut service = Service::start_at(
        Path::new("/usr/bin/python3"),
        [program.to_str().expect("a path in UTF-8"), mode],
    );
    service.line();
    service
}

/// Of a window of a quarter of a minute, what is three seconds old is old.
fn report(recording: Leaktrace) -> Value {
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let file = finished.file.to_str().expect("a path in UTF-8");
    let output = run(["report", file, "--format", "json", "--older", "3s"]);
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}

fn leaks(report: &Value) -> Vec<&Value> {
    let sites = report["sites"].as_array().expect("there are sites");
    sites
        .iter()
        .filter(|site| site["verdict"] == "leak")
        .collect()
}

#[test]
fn what_python_keeps_is_named_and_what_it_drops_is_no_leak() {
    let mut keeping = start("keep");
    let mut dropping = start("drop");
    let recordings = [&keeping, &dropping].map(|service| Leaktrace::record(service.pid(), [""; 0]));
    let kept = keeping.truth("kept");
    let seconds = keeping.truth("seconds");
    keeping.wait_for("seconds", seconds + 15.0);
    let kept = (keeping.truth("kept") - kept) as u64;
    let [grown, steady] = recordings.map(report);
    assert!(keeping.is_running() && dropping.is_running());

    for report in [&grown, &steady] {
        let losses = report["losses"].as_object().expect("there are losses");
        let of_the_attach =
            |cause: &String| cause == "free_of_unseen" || cause == "unmap_of_preexisting";
        assert!(losses.keys().all(of_the_attach), "{losses:#?}");
    }
    assert_eq!(leaks(&steady), Vec::<&Value>::new(), "{steady:#}");

    let leaks = leaks(&grown);
    let first = *leaks.first().expect("there is a leak");
    assert_eq!(first["kind"], "malloc", "{first:#}");
    assert_eq!(first["rank"], 1, "{first:#}");
    let frames = first["stack"].as_array().expect("a stack");
    let names: Vec<_> = frames
        .iter()
        .filter_map(|frame| frame["function"].as_str())
        .collect();
    // From the allocator through the interpreter to where a thread begins.
    for name in [
        "PyByteArray_Resize",
        "_PyEval_EvalFrameDefault",
        "Py_RunMain",
        "__libc_start_main",
    ] {
        assert!(
            names.iter().any(|function| function.starts_with(name)),
            "no `{name}` in {names:?}"
        );
    }
    // What was kept since it was attached, and while it was signalled.
    let objects = first["live_objects"].as_u64().expect("a number");
    assert!(
        (kept..kept + 500).contains(&objects),
        "{objects} of {kept} kept"
    );
    let bytes = first["live_bytes"].as_u64().expect("a number");
    assert!(
        (LEAST_BYTES * objects..=MOST_BYTES * objects).contains(&bytes),
        "{first:#}"
    );
    assert_nothing_left();
}
