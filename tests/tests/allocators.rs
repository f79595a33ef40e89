//! Native allocators: what the probes count at every function is what the program counts itself, to the
//! block and the byte, with one thread and with eight, whatever the allocator.

use std::{ffi::OsString, path::Path};

use leaktrace::capture::schema::Kind;
use leaktrace_tests::{
    Finished, Leaktrace, Service, assert_nothing_left, blocks_of, run, sample, told,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Starts `program` with `arguments`, with an allocator loaded before all other libraries if there is one.
fn start(program: &str, allocator: Option<&str>, arguments: &[&str]) -> Service {
    let program = sample(program);
    let mut command = Vec::<OsString>::new();
    if let Some(allocator) = allocator {
        let path = Path::new(LIBRARIES).join(allocator);
        assert!(
            path.exists(),
            "`{}`: run `cargo xtask setup --test`",
            path.display()
        );
        command.push(format!("LD_PRELOAD={}", path.display()).into());
    }
    command.push(program.into());
    command.extend(arguments.iter().map(OsString::from));
    let mut service = Service::start_at(Path::new("/usr/bin/env"), command);
    // It has become the program, and is ready.
    service.line();
    service
}

fn record(service: &Service, arguments: &[&str]) -> Leaktrace {
    let arguments = [&["--probe", "malloc", "--sample", "all"], arguments].concat();
    Leaktrace::record(service.pid(), arguments)
}

fn end(recording: Leaktrace, service: &mut Service) -> (Finished, Value) {
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(service.is_running(), "the program did not survive");
    let report = finished.report();
    (finished, report)
}

/// Everything is counted, and nothing else.
fn is_exact(name: &str, finished: &Finished, report: &Value, service: &Service) {
    let expected = told(service.newest());
    let counted = blocks_of(&finished.file, |name| expected.contains_key(name));
    assert_eq!(counted, expected, "{name}");
    assert_eq!(report["losses"], serde_json::json!({}), "{name}");
}

fn runs_exactly(program: &str, allocator: Option<&str>, threads: &str) {
    let name = format!("{program} with {allocator:?}, {threads} threads");
    let mut service = start(program, allocator, &["--threads", threads]);
    let recording = record(&service, &[]);
    service.ask("run 20000");
    let (finished, report) = end(recording, &mut service);
    is_exact(&name, &finished, &report, &service);
}

#[test]
fn every_call_of_every_allocator_is_counted() {
    let allocators = [
        None,
        Some("libjemalloc.so.2"),
        Some("libtcmalloc_minimal.so.4"),
        Some("libmimalloc.so.2"),
    ];
    for allocator in allocators {
        for threads in ["1", "8"] {
            runs_exactly("allocs", allocator, threads);
        }
    }
    for program in ["allocs-static", "allocs-musl"] {
        runs_exactly(program, None, "8");
    }
    assert_nothing_left();
}

#[test]
fn jemalloc_in_a_rust_program() {
    for threads in ["1", "8"] {
        let name = format!("rusty, {threads} threads");
        let mut service = start("rusty", None, &[threads]);
        let recording = record(&service, &[]);
        service.ask("run 6000");
        let (finished, report) = end(recording, &mut service);
        is_exact(&name, &finished, &report, &service);
    }
    assert_nothing_left();
}

#[test]
fn operators_of_cpp_and_their_exceptions() {
    // mimalloc of Debian ends the program where it would have to throw.
    let allocators: [(_, &[&str]); 4] = [
        (None, &[]),
        (Some("libjemalloc.so.2"), &[]),
        (Some("libtcmalloc_minimal.so.4"), &[]),
        (Some("libmimalloc.so.2"), &["--never-refused"]),
    ];
    for (allocator, arguments) in allocators {
        for threads in ["1", "8"] {
            let name = format!("{allocator:?}, {threads} threads");
            let arguments = [arguments, &["--threads", threads]].concat();
            let mut service = start("operators", allocator, &arguments);
            let recording = record(&service, &[]);
            service.ask("run 2000");
            let (finished, report) = end(recording, &mut service);
            is_exact(&name, &finished, &report, &service);
        }
    }
    assert_nothing_left();
}

#[test]
fn a_sandbox_is_not_harmed_and_all_is_counted() {
    let mut service = start("allocs", None, &["--seccomp", "--threads", "2"]);
    let checked = run(["check", "-p", &service.pid().to_string()]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("seccomp"), "{checked}");
    assert!(
        !checked.contains("the kernel changes the return address"),
        "{checked}"
    );
    let recording = record(&service, &[]);
    service.ask("run 2000");
    let (finished, report) = end(recording, &mut service);
    is_exact("seccomp", &finished, &report, &service);
    assert_nothing_left();
}

/// What cannot be seen without a uretprobe is said, with the reason; all else is counted.
#[test]
fn what_a_sandbox_hides_is_said() {
    let library = sample("libhidden.so");
    let library = library.to_str().expect("a path in UTF-8");
    let mut service = start("allocs", Some(library), &["--seccomp"]);
    let recording = record(&service, &[]);
    service.ask("run 2000");
    let (finished, report) = end(recording, &mut service);

    let limits = report["limits"].as_array().expect("there are limits");
    let hidden: Vec<_> = limits
        .iter()
        .filter(|limit| limit["what"] == format!("`mi_malloc` of `{library}`"))
        .map(|limit| limit["reason"].as_str().unwrap_or_default())
        .collect();
    let [reason] = hidden[..] else {
        panic!("{limits:#?}")
    };
    assert!(
        reason.contains("no uretprobe") && reason.contains("under seccomp"),
        "{reason}"
    );
    let mut expected = told(service.newest());
    let [lost, _, frees, _] = expected.remove("by_mi_malloc").expect("it was called");
    assert!(lost > 0);
    let counted = blocks_of(&finished.file, |name| {
        expected.contains_key(name) || name == "by_mi_malloc"
    });
    assert_eq!(counted, expected);
    assert_eq!(
        report["losses"],
        serde_json::json!({ "free_of_unseen": frees })
    );
    assert_nothing_left();
}

#[test]
fn a_library_loaded_later_is_probed() {
    let library = format!("{LIBRARIES}/libmimalloc.so.2");
    let mut service = start("allocs", None, &["--load", &library]);
    let recording = record(&service, &["--interval", "100ms"]);
    // All that calls the C library has been called, also by what loads, and is in the file.
    service.ask("run 320");
    service.ask("load");
    recording.wait_until_more_is_written(3);
    let before = malloc_sites(&recording);
    // Its probes are live when the capture has blocks of a function that only calls it.
    let mut rounds = 0;
    while malloc_sites(&recording) == before {
        rounds += 1;
        assert!(rounds < 2000, "its allocations were never seen");
        service.ask("run 320");
    }
    let (finished, report) = end(recording, &mut service);
    let counted = blocks_of(&finished.file, |name| name.starts_with("by_"));
    assert!(counted.contains_key("by_mi_malloc"), "{counted:#?}");
    let limits = report["limits"].to_string();
    assert!(
        limits.contains("libmimalloc") && limits.contains("mapped during"),
        "{limits}"
    );
    assert_nothing_left();
}

/// Sites that allocate.
fn malloc_sites(recording: &Leaktrace) -> usize {
    let intervals = recording.written();
    let sites = intervals.iter().flat_map(|interval| &interval.sites);
    sites.filter(|site| site.kind() == Kind::Malloc).count()
}

#[test]
fn calls_that_are_left_do_not_pair_wrongly() {
    let mut service = start("allocs", None, &[]);
    let recording = record(&service, &[]);
    service.ask("leave");
    service.ask("fork");
    service.ask("run 2000");
    let (finished, report) = end(recording, &mut service);
    let expected = told(service.newest());
    // The child's allocations are not the target's.
    let is_counted = |name: &str| name == "fork_child" || expected.contains_key(name);
    let counted = blocks_of(&finished.file, is_counted);
    assert_eq!(counted, expected);
    // Ten by longjmp, one with its thread.
    assert_eq!(
        report["losses"]["call_abandoned"], 11,
        "{}",
        report["losses"]
    );
    assert_eq!(report["losses"]["free_of_unseen"], Value::Null);
    assert_nothing_left();
}
