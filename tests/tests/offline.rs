//! A capture reads anywhere: another folder, the target's binary gone.

use std::fs;

use leaktrace_tests::{Leaktrace, Service, run, sample};
use tempfile::TempDir;

#[test]
fn the_report_needs_nothing_but_the_file() {
    let folder = TempDir::new().unwrap();
    let binary = folder.path().join("reload");
    fs::copy(sample("reload-1.27.3-stripped"), &binary).unwrap();
    let mut service = Service::start_at(&binary, ["-leak-bytes-per-s=33554432"]);
    service.wait_for("leaked_bytes", 1.0);
    let finished = Leaktrace::record(service.pid(), ["-d", "6s"]).wait();
    service.end();
    let file = finished.file.to_str().unwrap();
    let here = run(["report", file]);
    assert!(here.status.success());

    let elsewhere = TempDir::new().unwrap();
    let moved = elsewhere.path().join("another/tree");
    fs::create_dir_all(&moved).unwrap();
    let moved = moved.join("name.leaktrace");
    fs::copy(file, &moved).unwrap();
    drop((folder, finished));
    let there = run(["report", moved.to_str().unwrap()]);
    assert!(there.status.success());
    assert_eq!(
        String::from_utf8_lossy(&here.stdout),
        String::from_utf8_lossy(&there.stdout)
    );

    let report = leaktrace_tests::report(&moved);
    for site in report["sites"].as_array().unwrap() {
        for frame in site["stack"].as_array().unwrap() {
            assert!(frame["function"].is_string(), "unnamed: {site:#}");
        }
    }
}
