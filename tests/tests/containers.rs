//! Targets in pid, mount, user and network namespaces of their own, with a root of their own: probes and names are
//! those of the target's own files, whatever the host has by their names and whatever becomes of them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use leaktrace_tests::{
    Container, Finished, Leaktrace, MemoryCgroup, Root, Service, assert_nothing_left, blocks_of,
    innermost, ns_pids, run, sample, told,
};
use nix::{sys::signal::Signal, sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

const ALL: [&str; 4] = ["--probe", "malloc", "--sample", "all"];

/// Records a program while it allocates; `meanwhile` is done before its names are looked up.
fn recorded(
    container: &mut Container,
    process: [&str; 2],
    meanwhile: impl FnOnce(&Container),
) -> Finished {
    let recording = Leaktrace::record_process(process, ALL);
    container.service.ask("run 2000");
    meanwhile(container);
    recording.signal(Signal::SIGINT);
    let finished = recording.wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(
        container.service.is_running(),
        "the program did not survive"
    );
    finished
}

/// Every block is counted at the function that the program says has allocated it, and nothing is lost.
fn is_exact(what: &str, container: &Container, finished: &Finished) -> Value {
    let expected = told(container.service.newest());
    assert!(expected.len() > 5, "{what}: {expected:?}");
    let counted = blocks_of(&finished.file, |name| expected.contains_key(name));
    assert_eq!(counted, expected, "{what}");
    let report = finished.report();
    assert_eq!(report["losses"], serde_json::json!({}), "{what}");
    report
}

fn by_pid(container: &Container) -> [String; 2] {
    ["-p".to_owned(), container.pid().to_string()]
}

fn run_allocs(root: Root, program: &Path) -> Container {
    let (container, _) = root.run(program, &["--threads", "2"]);
    container
}

/// The host has, by the names of the container's files, another program and a pipe in which whoever opens it is
/// stuck.
#[test]
fn files_of_the_host_by_the_same_names_are_not_read() {
    for (program, linker) in [
        ("allocs-musl", None),
        ("allocs-musl-dynamic", Some("/lib/ld-musl-x86_64.so.1")),
        ("allocs", None),
    ] {
        let host = TempDir::new().unwrap();
        let inside = host.path().join("app");
        let mut root = Root::new().with(&sample(program), &inside);
        fs::copy(sample("kept"), &inside).unwrap();
        mkfifo(&host.path().join("libc.so.6"), Mode::S_IRWXU).unwrap();
        root = match linker {
            Some(linker) => root.with(Path::new(linker), Path::new(linker)),
            None => root.with_libraries_of(&sample(program), host.path()),
        };
        let mut container = run_allocs(root, &inside);
        let [option, pid] = by_pid(&container);
        let finished = recorded(&mut container, [&option, &pid], |_| {});
        let report = is_exact(program, &container, &finished);
        let target = &report["target"];
        assert_eq!(target["pid"], container.pid());
        assert_eq!(target["exe"], inside.to_str().unwrap());
        assert_eq!(target["container_id"], Value::Null, "{target:#}");
    }
    assert_nothing_left();
}

#[test]
fn the_report_names_the_container() {
    let id = format!("{:016x}", std::process::id()).repeat(4);
    let group = MemoryCgroup::of_container(&format!("docker-{id}.scope"));
    let program = Path::new("/app");
    let mut container = run_allocs(Root::new().with(&sample("allocs-musl"), program), program);
    group.take(container.pid());
    let [option, pid] = by_pid(&container);
    let finished = recorded(&mut container, [&option, &pid], |_| {});
    let report = is_exact("allocs-musl", &container, &finished);
    let target = &report["target"];
    assert_eq!(target["container_id"], id, "{target:#}");
    let cgroup = target["cgroup"].as_str().unwrap();
    assert!(cgroup.ends_with(&format!("/docker-{id}.scope")), "{cgroup}");
    let text = run(["report".as_ref(), finished.file.as_os_str()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains(&id), "{text}");
    drop(container);
}

/// What becomes of its files in the overlay, before the attach or while it records.
#[test]
fn files_that_are_deleted_or_replaced_are_those_that_run() {
    let (program, folder) = (Path::new("/srv/app"), Path::new("/srv"));
    let library = folder.join("libc.so.6");
    let delete = |container: &Container| {
        for path in [program, &library] {
            fs::remove_file(container.file(path)).unwrap();
        }
    };
    let replace = |container: &Container| {
        for path in [program, &library] {
            let new = container.file(&path.with_extension("new"));
            fs::copy(sample("kept"), &new).unwrap();
            fs::rename(new, container.file(path)).unwrap();
        }
    };
    let start = || {
        let root = Root::new().with(&sample("allocs"), program);
        run_allocs(root.with_libraries_of(&sample("allocs"), folder), program)
    };
    let changes: [&dyn Fn(&Container); 2] = [&delete, &replace];
    for (name, change) in ["deleted", "replaced"].into_iter().zip(changes) {
        let mut container = start();
        change(&container);
        let [option, pid] = by_pid(&container);
        let finished = recorded(&mut container, [&option, &pid], |_| {});
        is_exact(&format!("{name} before"), &container, &finished);

        let mut container = start();
        let [option, pid] = by_pid(&container);
        let finished = recorded(&mut container, [&option, &pid], change);
        is_exact(&format!("{name} meanwhile"), &container, &finished);
    }
    assert_nothing_left();
}

/// An overlay copies a file that is changed in any way, and the kernel puts probes into the copy.
#[test]
fn a_file_that_was_copied_since_is_told() {
    let (program, folder) = (Path::new("/srv/app"), Path::new("/srv"));
    let root = Root::new().with(&sample("allocs"), program);
    let mut container = run_allocs(root.with_libraries_of(&sample("allocs"), folder), program);
    let library = container.file(&folder.join("libc.so.6"));
    let mode = fs::metadata(&library).unwrap().permissions().mode();
    fs::set_permissions(&library, fs::Permissions::from_mode(mode ^ 0o200)).unwrap();
    let pid = container.pid().to_string();
    let record = run(["record", "-d", "1s", "--sample", "all", "-p", &pid]);
    let said = refused(&record, 6);
    assert!(said.contains("changed in an overlay"), "{said}");
    container.service.ask("run 10");
    assert_nothing_left();
}

fn refused(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

#[test]
fn a_process_by_its_pid_inside() {
    let program = Path::new("/app");
    let start = || {
        let root = Root::new()
            .with(&sample("allocs-musl"), program)
            .with_pids(700);
        run_allocs(root, program)
    };
    let mut container = start();
    let inside = container.ns_pid().to_string();
    assert!(container.ns_pid() > 700);
    let finished = recorded(&mut container, ["--ns-pid", &inside], |_| {});
    let report = is_exact("by its PID inside", &container, &finished);
    assert_eq!(report["target"]["pid"], container.pid());
    assert_eq!(report["target"]["ns_pids"], json!([container.ns_pid()]));
    let checked = run(["check", "--ns-pid", &inside, "--format", "json"]);
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["target"]["pid"], container.pid());

    // Another container has that PID, too.
    let other = start();
    assert_eq!(other.ns_pid(), container.ns_pid());
    for command in ["record", "check", "goroutines", "why", "top"] {
        let said = refused(&run([command, "--ns-pid", &inside]), 2);
        for pid in [container.pid(), other.pid()] {
            assert!(said.contains(&format!("{pid} (app, cgroup /")), "{said}");
        }
        assert!(said.contains("with -p"), "{said}");
    }
    drop(other);
    // A PID of the host is none inside.
    let own = container.pid().to_string();
    for pid in ["4194304", &own] {
        let said = refused(&run(["record", "--ns-pid", pid]), 4);
        assert!(said.contains(&format!("-p {pid}")), "{said}");
    }
    assert_nothing_left();
}

/// A container in a container, each of which knows the process by another PID.
#[test]
fn a_process_by_its_pids_in_both_namespaces() {
    let inner = "n=1200; while [ $n -gt 0 ]; do (:); n=$((n - 1)); done; \
                 exec unshare --pid --fork --kill-child \"$0\"";
    let program = sample("allocs");
    let arguments = ["--pid", "--fork", "--kill-child", "sh", "-c", inner];
    let arguments = arguments.iter().map(Path::new).chain([program.as_path()]);
    let mut service = Service::start_at(Path::new("/usr/bin/unshare"), arguments);
    service.line();
    let pid = innermost(service.pid());
    let pids = ns_pids(pid);
    let [_, between, 1] = pids[..] else {
        panic!("{pids:?}");
    };
    let checked = run([
        "check",
        "--ns-pid",
        &between.to_string(),
        "--format",
        "json",
    ]);
    let stderr = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{stderr}");
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["target"]["pid"], pid);
}

/// The commands that read a Go program's memory.
#[test]
fn a_go_program_by_its_pid_inside() {
    let program = Path::new("/app");
    let root = Root::new()
        .with(&sample("retain-1.27.3-stripped"), program)
        .with_pids(900);
    let (container, _) = root.run(program, &[]);
    let inside = container.ns_pid().to_string();
    let goroutines = run(["goroutines", "--ns-pid", &inside, "--format", "json"]);
    let goroutines: Value = serde_json::from_slice(&goroutines.stdout).unwrap();
    let of_main = goroutines["groups"].to_string().contains("main.");
    assert!(of_main, "{goroutines:#}");
    let why = run(["why", "--ns-pid", &inside, "--heap", "--format", "json"]);
    let stderr = String::from_utf8_lossy(&why.stderr);
    assert!(why.status.success(), "{stderr}");
    let why: Value = serde_json::from_slice(&why.stdout).unwrap();
    assert_eq!(why["target"]["pid"], container.pid(), "{why:#}");
}
