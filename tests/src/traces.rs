//! What a tracer could leave behind in the kernel and on its target.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Names of our programs, as far as the kernel keeps them (15 bytes).
const PROGRAMS: [&str; 15] = [
    "enter_call",
    "exit_call",
    "exec",
    "oom_victim",
    "go_sample",
    "go_free",
    "go_gc",
    "go_created",
    "go_exited",
    "malloc_enter",
    "malloc_call",
    "malloc_returned",
    "malloc_return",
    "malloc_free",
    "thread_exit",
];
const MAPS: [&str; 12] = [
    "STACKS",
    "LIVE",
    "COUNTERS",
    "LOSSES",
    "EVENTS",
    "ENDING",
    "GC_CYCLES",
    "ALLOCATOR_CALLS",
    "THREADS",
    "NEW_THREAD",
    "MALLOC_RATE",
    "MALLOC_CALLS",
];

/// Fails unless the kernel holds no program, map or link of ours, and no process called
/// `leaktrace` runs. The kernel frees programs and breakpoints after a grace period, so this waits
/// a moment for that.
///
/// # Panics
///
/// Something stays.
pub fn assert_nothing_left() {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "left behind: {left:?}");
        sleep(Duration::from_millis(100));
    }
}

fn left() -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    let mut programs = BTreeSet::new();
    for program in objects("prog") {
        let name = program["name"].as_str().unwrap_or_default();
        if PROGRAMS.contains(&name) {
            programs.insert(program["id"].as_u64());
            left.insert(format!("program {name}"));
        }
    }
    for map in objects("map") {
        let name = map["name"].as_str().unwrap_or_default();
        if MAPS.contains(&name) {
            left.insert(format!("map {name}"));
        }
    }
    for link in objects("link") {
        if programs.contains(&link["prog_id"].as_u64()) {
            left.insert(format!("link {}", link["id"]));
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if comm.trim_end() == "leaktrace" && !stat.contains(") Z ") {
            left.insert(format!("process {}", entry.file_name().display()));
        }
    }
    left
}

fn objects(kind: &str) -> Vec<Value> {
    let output = Command::new("bpftool")
        .args(["--json", kind, "show"])
        .output()
        .expect("bpftool is installed by `cargo xtask setup`");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    listed.as_array().cloned().unwrap_or_default()
}
