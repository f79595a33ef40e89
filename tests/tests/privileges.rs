//! What leaktrace needs to be allowed, by itself, as another user than root; and what it keeps of it while it goes on.
//! docs/security.md has the same by phase.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown},
    path::Path,
    process::{Command, Output, Stdio},
    thread::sleep,
    time::Duration,
};

use leaktrace::loss::{GOROUTINES_UNSTABLE, is_expected};
use leaktrace_tests::{
    Leaktrace, Service, Terminal, assert_nothing_left, blocks_of, leaktrace_binary, live_bytes,
    told,
};
use nix::{
    fcntl::OFlag,
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;
use tempfile::TempDir;

const NOBODY: u32 = 65534;

/// All that a recording needs.
const NEEDED: [&str; 3] = ["sys_admin", "sys_ptrace", "dac_read_search"];

/// Numbers of capabilities (uapi/linux/capability.h).
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const BPF: u64 = 1 << 39;
const CHECKPOINT_RESTORE: u64 = 1 << 40;

/// A folder that nobody owns, and leaktrace in it.
fn folder() -> TempDir {
    let folder = TempDir::with_prefix_in("leaktrace", "/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::copy(leaktrace_binary(), folder.path().join("leaktrace")).unwrap();
    folder
}

/// leaktrace as nobody with these capabilities and no others.
fn leaktrace_with(folder: &TempDir, capabilities: &[&str]) -> Command {
    let added: String = capabilities
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")])
        .arg("--clear-groups")
        .arg(format!("--inh-caps=-all{added}"))
        .arg(format!("--ambient-caps=-all{added}"))
        .arg(folder.path().join("leaktrace"))
        .current_dir(folder.path());
    command
}

/// What the threads of a process may do: the permitted, effective, inheritable and ambient capabilities of each.
/// `None`: it has ended.
fn sets(pid: i32) -> Option<BTreeSet<[u64; 4]>> {
    let mut all = BTreeSet::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().last())
                .unwrap()
        };
        if field("State:") == "(zombie)" {
            continue;
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        let set = |name| u64::from_str_radix(field(name), 16).unwrap();
        all.insert(["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"].map(set));
    }
    (!all.is_empty()).then_some(all)
}

fn only(set: u64) -> BTreeSet<[u64; 4]> {
    BTreeSet::from([[set, set, 0, 0]])
}

/// Ends a recording and follows what its threads may do until it has ended: it must come to `names` and stay there.
fn end_by_names(
    recording: Leaktrace,
    during: u64,
    names: u64,
) -> (leaktrace_tests::Finished, Value) {
    let pid = recording.pid();
    assert_eq!(sets(pid), Some(only(during)), "while it records");
    recording.signal(Signal::SIGINT);
    let mut seen = Vec::new();
    while let Some(now) = sets(pid) {
        if seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(seen.last(), Some(&only(names)), "{seen:?}");
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let report = finished.report();
    let mut losses = report["losses"].as_object().unwrap().clone();
    losses.retain(|cause, _| !is_expected(cause));
    // A goroutine that runs may have moved each time it was read, whoever reads.
    losses.remove(GOROUTINES_UNSTABLE);
    assert!(losses.is_empty(), "{losses:?}");
    (finished, report)
}

fn is_private(file: &Path) {
    let mode = fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_native_program_is_recorded_by_nobody() {
    let folder = folder();
    let mut service = Service::start("allocs", ["--threads", "2"]);
    service.line();
    let command = leaktrace_with(&folder, &NEEDED);
    let file = folder.path().join("native.leaktrace");
    let arguments = ["--probe", "malloc", "--sample", "all"];
    let recording = Leaktrace::record_by(command, &file, service.pid(), arguments);
    service.ask("run 2000");
    // Libraries may come that have allocators.
    let during = SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH;
    let (finished, _) = end_by_names(recording, during, DAC_READ_SEARCH);
    let expected = told(service.newest());
    let counted = blocks_of(&finished.file, |name| expected.contains_key(name));
    assert_eq!(counted, expected);
    is_private(&file);
    assert!(service.is_running());
    assert_nothing_left();
}

#[test]
fn go_programs_are_recorded_by_nobody() {
    for name in ["reload-1.27.3-stripped", "reload-1.27.3-nopprof"] {
        let folder = folder();
        // So little garbage that there are seconds between its collections: each is seen to its end.
        let options = [
            "-leak-limit-bytes=1073741824",
            "-garbage-bytes-per-s=8388608",
        ];
        let mut service = Service::start(name, options);
        service.wait_for("leaked_bytes", 1.0);
        let command = leaktrace_with(&folder, &NEEDED);
        let file = folder.path().join("go.leaktrace");
        let recording = Leaktrace::record_by(command, &file, service.pid(), [""; 0]);
        let before = service.truth("leaked_bytes");
        service.wait_for("leaked_bytes", before + f64::from(64 << 20));
        // Without CAP_BPF, CAP_SYS_ADMIN stands for it.
        let during = SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH;
        let (_, report) = end_by_names(recording, during, DAC_READ_SEARCH);
        let live = live_bytes(&report, "go_heap", "main.");
        assert!(live > 32 << 20, "{name}: {live}");
        is_private(&file);
        assert!(service.is_running());
    }
    assert_nothing_left();
}

/// Root gives up most at once, and of a Go program that samples all but what reading takes.
#[test]
fn root_gives_up_what_is_not_needed() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    let recording = Leaktrace::record(service.pid(), [""; 0]);
    let status = fs::read_to_string(format!("/proc/{}/status", recording.pid())).unwrap();
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    let during = BPF | CHECKPOINT_RESTORE | SYS_PTRACE | DAC_READ_SEARCH;
    end_by_names(recording, during, DAC_READ_SEARCH);

    let mut service = Service::start("allocs", [""; 0]);
    service.line();
    let recording = Leaktrace::record(service.pid(), [""; 0]);
    end_by_names(recording, during | SYS_ADMIN, DAC_READ_SEARCH);
    assert_nothing_left();
}

/// In `top` names are looked up while probes are there: by a thread that has what that takes and nothing else.
#[test]
fn the_threads_of_top_have_what_each_needs() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    let pid = service.pid().to_string();
    let mut top = Terminal::start((32, 120), ["top", "-p", &pid, "--interval", "500ms"]);
    top.wait_for("sites", |text| text.contains("reload.go:"));
    let records = BPF | CHECKPOINT_RESTORE | SYS_PTRACE | DAC_READ_SEARCH;
    let names = DAC_READ_SEARCH | DAC_OVERRIDE;
    let expected = [0, names, records].into_iter().flat_map(only).collect();
    assert_eq!(sets(top.pid()), Some(expected));
    top.press("q");
    assert!(top.ended().success());
    assert_nothing_left();
}

/// A capture is another's data: what reads it has been given up before it is opened, here a pipe that nobody writes to.
#[test]
fn commands_on_files_keep_what_files_take() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let pipe = pipe.to_str().unwrap();
    let read = DAC_READ_SEARCH;
    for (arguments, kept) in [
        (vec!["report", pipe], read),
        (vec!["goroutines", pipe], read),
        (vec!["diff", pipe, pipe], read),
        (vec!["export", pipe, "--to", "folded"], read | DAC_OVERRIDE),
    ] {
        let mut command = Command::new(leaktrace_binary())
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It can be opened as soon as the command has come to it.
        let writer = loop {
            let opened = OpenOptions::new()
                .write(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(pipe);
            let ended = command.try_wait().unwrap();
            match (opened, ended) {
                (Ok(writer), _) => break writer,
                (Err(_), Some(ended)) => panic!("{arguments:?}: {ended}"),
                (Err(_), None) => sleep(Duration::from_millis(1)),
            }
        };
        assert_eq!(sets(command.id() as i32), Some(only(kept)), "{arguments:?}");
        drop(writer);
        assert_eq!(command.wait().unwrap().code(), Some(1), "{arguments:?}");
    }
}

fn refused(output: &Output, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    assert!(stderr.contains(says), "`{says}` is not in: {stderr}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = folder();
    let service = Service::sleeper();
    let pid = service.pid().to_string();
    for missing in NEEDED {
        let others: Vec<_> = NEEDED.into_iter().filter(|name| *name != missing).collect();
        let record = |output: &str| {
            leaktrace_with(&folder, &others)
                .args(["record", "-d", "1s", "-o", output, "-p", &pid])
                .stdin(Stdio::null())
                .output()
                .unwrap()
        };
        let name = format!("lacks CAP_{};", missing.to_uppercase());
        refused(&record("missing.leaktrace"), &name);
        assert!(!folder.path().join("missing.leaktrace").exists());
    }
    // To look takes less than to attach, to write more.
    let mut go = Service::start("reload-1.27.3-nopprof", [""; 0]);
    go.wait_for("leaked_bytes", 1.0);
    let pid = go.pid().to_string();
    let switch = leaktrace_with(&folder, &NEEDED)
        .args(["record", "-d", "1s", "-p", &pid, "--go-enable-heap-profile"])
        .output()
        .unwrap();
    refused(&switch, "CAP_DAC_OVERRIDE");
    let look = |capabilities: &[&str]| {
        let mut command = leaktrace_with(&folder, capabilities);
        command.args(["goroutines", "-p", &pid]).output().unwrap()
    };
    let looked = look(&["sys_ptrace", "dac_read_search"]);
    let said = String::from_utf8_lossy(&looked.stdout);
    assert!(
        said.contains("main."),
        "{}",
        String::from_utf8_lossy(&looked.stderr)
    );
    refused(&look(&[]), "CAP_SYS_PTRACE");
    assert_nothing_left();
}
