//! Recordings of the same service with a slow leak, a fast one and none, compared.

use std::ffi::OsStr;

use leaktrace_tests::{Finished, Leaktrace, Service, run};
use serde_json::Value;

/// The leaking line's function, as the reports name it.
const LEAK: &str = "main.(*rowCache).Store";

/// Twelve seconds of a service that leaks so many bytes a second.
fn recorded(rate: u64) -> (Service, Finished) {
    let arguments = [
        format!("-leak-bytes-per-s={rate}"),
        "-leak-limit-bytes=0".into(),
    ];
    let mut service = Service::start("reload-1.27.3", arguments);
    if rate > 0 {
        service.wait_for("leaked_bytes", rate as f64 / 2.0);
    }
    let finished = record(&service);
    (service, finished)
}

fn record(service: &Service) -> Finished {
    let finished = Leaktrace::record(service.pid(), ["-d", "12s"]).wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished
}

fn diff(base: &Finished, file: &Finished) -> Value {
    let arguments = ["diff", "--format", "json"].map(OsStr::new);
    let files = [base.file.as_os_str(), file.file.as_os_str()];
    let output = run(arguments.into_iter().chain(files));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What became of the leaking site, and the whole of what is said on it: of the sites of that line the
/// one of the rows. Of the map's small nodes a slow leak may show no sample.
fn leak(diff: &Value) -> (&str, &Value) {
    let live = |site: &Value, side: &str| site[side]["live"]["value"].as_f64().unwrap_or_default();
    let most = |site: &&Value| live(site, "base").max(live(site, "file"));
    let site = diff["sites"].as_array().expect("sites").iter();
    let site = site
        .filter(|site| site["kind"] == "go_heap" && site["stack"].to_string().contains(LEAK))
        .max_by(|a, b| most(a).total_cmp(&most(b)))
        .expect("the leaking site is on one of the two sides");
    (site["change"].as_str().unwrap_or_default(), site)
}

#[test]
fn a_leak_that_came_went_and_grew_is_told() {
    const FAST: u64 = 10 << 20;
    let (mut service, without) = recorded(0);
    service.end();
    let (mut service, slow) = recorded(FAST / 10);
    service.end();
    let (service, fast) = recorded(FAST);

    let appeared = diff(&without, &fast);
    assert_eq!(appeared["relation"], "two_instances");
    let (change, site) = leak(&appeared);
    assert_eq!(change, "new", "{site:#}");
    let disappeared = diff(&fast, &without);
    let (change, site) = leak(&disappeared);
    assert_eq!(change, "gone", "{site:#}");

    let compared = diff(&slow, &fast);
    let (change, site) = leak(&compared);
    assert_eq!(change, "grew", "{site:#}");
    let growth = &site["growth_difference_per_s"];
    let truth = (FAST - FAST / 10) as f64;
    let end = |end: &str| growth[end].as_f64().expect("a figure");
    let value = end("value");
    // The interval holds it in 95 of 100 cases, one of twice the width always.
    assert!(
        2.0 * (end("low") - value) <= truth - value && truth - value <= 2.0 * (end("high") - value),
        "{truth} in {growth}"
    );
    assert!(value > truth / 2.0, "{truth} in {growth}");

    // The same process again: it holds more, and what came in between is told.
    let again = record(&service);
    let compared = diff(&fast, &again);
    assert_eq!(compared["relation"], "one_process");
    let (change, site) = leak(&compared);
    assert_eq!(change, "grew", "{site:#}");
    assert!(site["between"]["value"].as_f64().is_some(), "{site:#}");
    let nothing = diff(&again, &again);
    assert_eq!(nothing["summary"]["grew"], 0, "{:#}", nothing["summary"]);
    assert_eq!(nothing["summary"]["new"], 0, "{:#}", nothing["summary"]);
}
