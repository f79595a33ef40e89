//! What a tracer could leave behind in the kernel and on its target.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Names of our programs and maps, of which the kernel keeps fifteen bytes.
const PROGRAMS: [&str; 20] = [
    "enter_call",
    "exit_call",
    "exec",
    "new_task",
    "oom_victim",
    "go_sample",
    "go_free",
    "go_gc",
    "go_large",
    "go_refill",
    "go_created",
    "go_exited",
    "malloc_enter",
    "malloc_call",
    "malloc_fill",
    "malloc_returned",
    "malloc_return",
    "malloc_free",
    "malloc_throw",
    "thread_exit",
];
const MAPS: [&str; 23] = [
    "STACKS",
    "UNWIND_PAGES",
    "UNWIND_ROWS",
    "LIVE",
    "LIVE_STATE",
    "COUNTERS",
    "PROCESSES",
    "PROCESS_NUMBERS",
    "LOSSES",
    "EVENTS",
    "ENDING",
    "GC_CYCLES",
    "SAMPLES",
    "GO_SAMPLING",
    "GO_HITS",
    "ALLOCATOR_CALLS",
    "THREADS",
    "NEW_THREAD",
    "MALLOC_RATE",
    "MALLOC_WINDOW",
    "MALLOC_CALLS",
    "BLOCKS",
    "NO_PRIVATE_STACK",
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
        if is_one_of(&PROGRAMS, name) {
            programs.insert(program["id"].as_u64());
            left.insert(format!("program {name}"));
        }
    }
    for map in objects("map") {
        let name = map["name"].as_str().unwrap_or_default();
        if is_one_of(&MAPS, name) {
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
    let listed = serde_json::from_slice(&output.stdout);
    match listed {
        Ok(Value::Array(listed)) if output.status.success() => listed,
        _ => panic!("`bpftool {kind} show` does not tell what there is: {output:?}"),
    }
}

/// Whether a name that the kernel tells is one of these.
fn is_one_of(names: &[&str], told: &str) -> bool {
    let kept = |name: &&str| &name[..name.len().min(15)] == told;
    names.iter().any(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in the kernel side's sources, each of which follows one of these.
    fn declared(before: &[&str]) -> BTreeSet<String> {
        let folder = crate::root().join("leaktrace-ebpf/src");
        let files = fs::read_dir(folder).unwrap().flatten();
        let sources = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        let mut names = BTreeSet::new();
        for source in sources {
            let found = before
                .iter()
                .flat_map(|before| source.split(before).skip(1));
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            names.extend(
                found.filter_map(|rest| rest.split(|c| !is_name(c)).next().map(str::to_owned)),
            );
        }
        names
    }

    #[test]
    fn every_program_and_map_is_looked_for() {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let maps = declared(&["#[map]\npub static ", "#[map]\nstatic "]);
        assert_eq!(maps, all(&MAPS));
        let programs = [
            "#[uprobe]\nfn ",
            "#[uretprobe]\nfn ",
            "#[tracepoint]\nfn ",
            "\nextern \"C\" fn ",
        ];
        assert_eq!(declared(&programs), all(&PROGRAMS));
    }
}
