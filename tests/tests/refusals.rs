//! What cannot be done is refused with one clear line and a documented exit code.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    process::{Command, Output, Stdio},
};

use leaktrace_tests::{Service, assert_nothing_left, leaktrace_binary, run};
use tempfile::TempDir;

fn refused(output: &Output, code: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(
        stderr.trim_end().lines().count(),
        1,
        "not one line: {stderr}"
    );
    assert!(stderr.contains(says), "`{says}` is not in: {stderr}");
    assert!(output.stdout.is_empty());
}

fn record(pid: impl ToString, more: &[&str]) -> Output {
    let pid = pid.to_string();
    run(["record", "-d", "1s", "-p", &pid].iter().chain(more))
}

#[test]
fn no_such_process() {
    // Above the highest pid_max.
    refused(&record(4_194_305, &[]), 4, "is gone");
}

#[test]
fn kernel_thread() {
    // kthreadd.
    refused(&record(2, &[]), 6, "kernel thread");
}

#[test]
fn zombie() {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains(") Z ") {}
    refused(&record(child.id(), &[]), 4, "zombie");
    child.wait().unwrap();
}

/// The shell passes its own PID on by exec.
#[test]
fn ourselves() {
    let output = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" record -d 1s -p $$"])
        .arg(leaktrace_binary())
        .output()
        .unwrap();
    refused(&output, 2, "leaktrace itself");
}

/// In a container the PID is not the one that the kernel side would see.
#[test]
fn in_a_pid_namespace_of_our_own() {
    let output = Command::new("unshare")
        .args(["--fork", "--pid", "--mount-proc"])
        .arg(leaktrace_binary())
        .args(["record", "-d", "1s", "-p", "1"])
        .output()
        .unwrap();
    refused(&output, 6, "on the host");
}

/// Here a recording begins; on a kernel that is too old, which `cargo xtask vm` boots, it is refused with what
/// that kernel lacks, and `leaktrace check` says the same.
#[test]
fn kernels_before_5_15() {
    let service = Service::sleeper();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("f");
    let recorded = record(service.pid(), &["-q", "-o", file.to_str().unwrap()]);
    let checked = run(["check"]);
    let listed = String::from_utf8_lossy(&checked.stdout);
    let lacks = "this kernel lacks the BPF helper `bpf_task_pt_regs` (Linux 5.15)";
    if kernel() < [5, 15] {
        refused(&recorded, 6, lacks);
        assert_eq!(checked.status.code(), Some(6), "{listed}");
        assert!(listed.contains(lacks), "{listed}");
    } else {
        let stderr = String::from_utf8_lossy(&recorded.stderr);
        assert_eq!(recorded.status.code(), Some(0), "{stderr}");
        assert_eq!(checked.status.code(), Some(0), "{listed}");
        assert!(!listed.contains("MISSING"), "{listed}");
    }
    assert_eq!(file.exists(), recorded.status.success());
    assert_nothing_left();
}

/// Its version and patch level.
fn kernel() -> [u32; 2] {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

#[test]
fn thread_of_a_process() {
    let mut service = Service::start("reload-1.27.3", [""; 0]);
    service.wait_for("leaked_bytes", 1.0);
    let thread = fs::read_dir(format!("/proc/{}/task", service.pid()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|thread| *thread != service.pid().to_string())
        .unwrap();
    refused(&record(thread, &[]), 2, &format!("-p {}", service.pid()));
}

/// Processes that end while leaktrace attaches: each time it attaches and records to the end, or
/// says that the process is gone.
#[test]
fn exits_while_we_attach() {
    for delay_ms in (0..120).step_by(6) {
        let mut child = Command::new("/bin/sleep")
            .arg(format!("0.{delay_ms:03}"))
            .spawn()
            .unwrap();
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("f");
        let output = record(child.id(), &["-q", "-o", file.to_str().unwrap()]);
        child.wait().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => assert!(file.exists(), "{stderr}"),
            Some(4) => assert!(!file.exists(), "a file without a recording: {stderr}"),
            code => panic!("{delay_ms} ms: exit code {code:?}: {stderr}"),
        }
        assert!(stderr.trim_end().lines().count() <= 1, "{stderr}");
    }
    assert_nothing_left();
}

#[test]
fn not_root() {
    let service = Service::sleeper();
    // The binary itself must be reachable for the other user.
    let folder = TempDir::with_prefix_in("leaktrace", "/tmp").unwrap();
    let binary = folder.path().join("leaktrace");
    fs::copy(leaktrace_binary(), &binary).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    const NOBODY: u32 = 65534;
    let output = Command::new(&binary)
        .args(["record", "-d", "1s", "-p", &service.pid().to_string()])
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    refused(&output, 5, "root");
}

#[test]
fn files_that_cannot_be_made() {
    let service = Service::sleeper();
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("old"), "precious").unwrap();
    symlink(path("old"), path("link")).unwrap();
    symlink(path("nowhere"), path("dangling")).unwrap();
    for (name, says) in [
        ("old", "exists already"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("no/such/folder", "does not exist"),
    ] {
        refused(&record(service.pid(), &["-o", &path(name)]), 1, says);
    }
    assert_eq!(fs::read_to_string(path("old")).unwrap(), "precious");
    assert!(!fs::exists(path("nowhere")).unwrap());
    assert_nothing_left();
}

#[test]
fn captures_that_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("f");
    let path = path.to_str().unwrap();
    refused(&run(["report", path]), 1, "failed to open");
    fs::write(path, "no capture at all, but long enough to have a header").unwrap();
    refused(&run(["report", path]), 1, "failed to read");
    fs::write(path, "").unwrap();
    refused(&run(["report", path]), 1, "failed to read");
}
