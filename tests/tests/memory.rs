//! The memory statement: its lines add up to what is resident, and those of a Go program are what
//! the program's own `runtime.ReadMemStats` says.

use std::collections::HashMap;

use leaktrace_tests::{Leaktrace, Service, assert_nothing_left};
use serde_json::Value;

const LIMIT: u64 = 48 << 20;

/// A field of the report's `memory`, and the field of the service's truth that it must equal.
const FIELDS: [(&str, &str); 5] = [
    ("heap_live_bytes", "heap_inuse"),
    ("heap_objects_bytes", "heap_alloc"),
    ("heap_released_bytes", "heap_released"),
    ("stacks_bytes", "stack_sys"),
    ("runtime_bytes", "runtime_sys"),
];

fn sum_of_parts(memory: &Value, field: &str) -> i64 {
    let parts = memory["parts"].as_array().unwrap();
    parts.iter().map(|part| part[field].as_i64().unwrap()).sum()
}

fn says_what_the_program_says(name: &str) {
    let args = [
        "-leak-bytes-per-s=50331648".to_owned(),
        format!("-leak-limit-bytes={LIMIT}"),
        "-cache-bytes-per-s=0".to_owned(),
        "-garbage-bytes-per-s=0".to_owned(),
    ];
    let mut service = Service::start(name, args);
    service.wait_for("leaked_bytes", LIMIT as f64 * 0.99);
    // It allocates nothing any more; what changes is what the scavenger gives back.
    let truth = |service: &mut Service| {
        service.line();
        let fields = [
            "heap_inuse",
            "heap_alloc",
            "heap_idle",
            "heap_released",
            "stack_sys",
            "runtime_sys",
        ];
        fields
            .map(|field| (field, service.truth(field)))
            .into_iter()
            .collect::<HashMap<_, _>>()
    };
    let before = truth(&mut service);
    let finished = Leaktrace::record(service.pid(), ["-d", "2s"]).wait();
    let after = truth(&mut service);
    let report = finished.report();
    let memory = &report["memory"];

    let within = |what: &str, found: f64, before: f64, after: f64| {
        let slack = 0.02 * before.max(after) + f64::from(512 << 10);
        let range = before.min(after) - slack..=before.max(after) + slack;
        assert!(
            range.contains(&found),
            "{what} {found} not in {range:?}: {memory:#}"
        );
    };
    for (field, of_truth) in FIELDS {
        let found = memory[field]
            .as_f64()
            .unwrap_or_else(|| panic!("{field}: {memory:#}"));
        within(field, found, before[of_truth], after[of_truth]);
    }
    let idle = |truth: &HashMap<_, f64>| truth["heap_idle"] - truth["heap_released"];
    let found = memory["heap_idle_bytes"].as_f64().unwrap();
    within("heap_idle_bytes", found, idle(&before), idle(&after));

    let rss = memory["rss_bytes"].as_i64().unwrap();
    assert_eq!(sum_of_parts(memory, "bytes"), rss, "{memory:#}");
    let at_attach = memory["rss_attach_bytes"].as_i64().unwrap();
    assert_eq!(
        sum_of_parts(memory, "attach_bytes"),
        at_attach,
        "{memory:#}"
    );
    let unexplained = memory["unexplained_bytes"].as_u64().unwrap();
    assert!(unexplained < 4 << 20, "{memory:#}");
    assert!(rss as u64 > LIMIT, "{memory:#}");
    assert_nothing_left();
}

#[test]
fn go_1_27() {
    says_what_the_program_says("reload-1.27.3");
}

#[test]
fn go_1_27_stripped() {
    says_what_the_program_says("reload-1.27.3-stripped");
}

#[test]
fn go_1_27_without_a_sampler() {
    says_what_the_program_says("reload-1.27.3-nopprof");
}

#[test]
fn go_1_19() {
    says_what_the_program_says("reload-1.19.8");
}

#[test]
fn go_1_19_stripped() {
    says_what_the_program_says("reload-1.19.8-stripped");
}

/// A native program has what the kernel tells.
#[test]
fn native() {
    let service = Service::start("vm", [""; 0]);
    let finished = Leaktrace::record(service.pid(), ["-d", "1s"]).wait();
    let report = finished.report();
    let memory = &report["memory"];
    let rss = memory["rss_bytes"].as_i64().unwrap();
    assert_eq!(sum_of_parts(memory, "bytes"), rss, "{memory:#}");
    let parts = memory["parts"].as_array().unwrap();
    let has = |name: &str| parts.iter().any(|part| part["part"] == name);
    assert!(
        has("files") && has("thread_stacks") && has("program_break"),
        "{memory:#}"
    );
    assert!(memory["heap_live_bytes"].is_null() && memory["unexplained_bytes"].is_null());
    assert_nothing_left();
}
