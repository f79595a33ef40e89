//! The second story: a Go service that reloads a table into a fresh `sync.Map` at every sub-task
//! and keeps each copy. That the leaking line comes first is in `go_matrix.rs`.

use leaktrace_tests::{Leaktrace, Service};

/// The leaking line's function, as the reports name it.
const LEAK: &str = "main.(*rowCache).Store";

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
    let sites = report["sites"].as_array().unwrap();
    let site = sites
        .iter()
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
