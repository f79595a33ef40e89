//! What goes wrong around a recording: the target is not harmed, nothing stays behind, and what an interval has
//! closed is there.

use std::{
    env, fs,
    fs::File,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use leaktrace_tests::{
    Hoard, Leaktrace, Service, assert_nothing_left, leaktrace_binary, report, run,
};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

fn has_limit(report: &Value, text: &str) -> bool {
    report["limits"].to_string().contains(text)
}

/// What was counted while leaktrace stood still is there, and the time without points is said.
#[test]
fn the_recorder_is_stopped() {
    let mut hoard = Hoard::start();
    let run = Leaktrace::record(hoard.pid(), [""; 0]);
    hoard.go();
    hoard.wait_for(500);
    run.signal(Signal::SIGSTOP);
    sleep(Duration::from_secs(3));
    run.signal(Signal::SIGCONT);
    hoard.wait_for(500);
    hoard.signal(Signal::SIGSTOP);
    let report = hoard.ended(run);
    assert!(has_limit(&report, "did not run between"), "{report:#}");
    assert_eq!(report["losses"].get("ring_buffer_full"), None);
    assert_nothing_left();
}

/// A target that stands still can be attached to, and stands still meanwhile: that is not taken for leaktrace doing so.
#[test]
fn the_target_is_stopped() {
    let mut is_told = (0..3).map(|_| {
        let mut hoard = Hoard::start();
        hoard.signal(Signal::SIGSTOP);
        let run = Leaktrace::record(hoard.pid(), [""; 0]);
        hoard.go();
        hoard.signal(Signal::SIGCONT);
        hoard.wait_for(300);
        hoard.signal(Signal::SIGSTOP);
        sleep(Duration::from_secs(1));
        hoard.signal(Signal::SIGCONT);
        hoard.wait_for(300);
        hoard.signal(Signal::SIGSTOP);
        has_limit(&hoard.ended(run), "did not run")
    });
    // The whole machine may stand still for a moment, but not each time.
    assert!(is_told.any(|is_told| !is_told));
    assert_nothing_left();
}

/// A debugger is there before; it single-steps over the probes, lets go and comes back.
#[test]
fn the_target_is_debugged() {
    let mut hoard = Hoard::start();
    let pid = Pid::from_raw(hoard.pid());
    ptrace::seize(pid, ptrace::Options::empty()).unwrap();
    let run = Leaktrace::record(hoard.pid(), [""; 0]);
    hoard.go();
    hoard.wait_for(50);
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    let before = hoard.blocks();
    let mut steps = 0;
    // Several blocks, each instruction by itself.
    while hoard.blocks() < before + 5 {
        ptrace::step(pid, None).unwrap();
        waitpid(pid, None).unwrap();
        steps += 1;
    }
    assert!(steps > 500, "{steps} steps");
    ptrace::detach(pid, None).unwrap();
    hoard.wait_for(50);
    ptrace::attach(pid).unwrap();
    waitpid(pid, None).unwrap();
    hoard.ended(run);
    ptrace::detach(pid, None).unwrap();
    hoard.wait_for(10);
    assert_nothing_left();
}

/// Two recordings of one process: each sees all of it.
#[test]
fn attached_twice() {
    let mut hoard = Hoard::start();
    let first = Leaktrace::record(hoard.pid(), [""; 0]);
    let second = Leaktrace::record(hoard.pid(), [""; 0]);
    hoard.go();
    hoard.wait_for(300);
    hoard.signal(Signal::SIGSTOP);
    hoard.ended(first);
    // The probes of the second are still there.
    hoard.signal(Signal::SIGCONT);
    hoard.wait_for(300);
    hoard.signal(Signal::SIGSTOP);
    hoard.ended(second);
    assert_nothing_left();
}

/// How many intervals a capture has that is still being written; none if it has not begun.
fn intervals_so_far(file: &Path) -> u64 {
    let output = run([
        "report".as_ref(),
        file.as_os_str(),
        "--format".as_ref(),
        "json".as_ref(),
    ]);
    match output.status.code() {
        Some(0) => {
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            report["window"]["intervals"].as_u64().unwrap()
        }
        _ => 0,
    }
}

/// `kill -9` at moments that nobody has chosen, from the start of leaktrace on: 12 of them, 100 with
/// `cargo xtask test --full`.
#[test]
fn killed_at_random_moments() {
    let rounds = if env::var_os("LEAKTRACE_FULL").is_some() {
        100
    } else {
        12
    };
    let mut random = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {random}");
    let mut pairs = Service::start("pairs", [""; 0]);
    // That it is ready, and its first figure.
    pairs.line();
    pairs.line();
    let mut reload = Service::start("reload-1.27.3", [""; 0]);
    reload.wait_for("leaked_bytes", 1.0);
    let (mut attached, mut intervals, mut known) = (0, 0, 0);
    for round in 0..rounds {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let moment = Duration::from_micros((random >> 33) % 2_400_000);
        let target = [&pairs, &reload][round % 2].pid();
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("capture.leaktrace");
        let mut leaktrace = Command::new(leaktrace_binary())
            .args(["record", "--interval", "50ms", "-p", &target.to_string()])
            .arg("-o")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(moment);
        let before = intervals_so_far(&file);
        leaktrace.kill().unwrap();
        leaktrace.wait().unwrap();
        let mut said = String::new();
        let mut stderr = leaktrace.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        // The target lives on and does its work.
        assert!(pairs.is_running() && reload.is_running(), "{moment:?}");
        reload.ask(&format!("{round}"));
        pairs.truth("objects_per_s");
        pairs.line();
        if said.contains("attached to") {
            attached += 1;
            let report = report(&file);
            assert_eq!(report["window"]["end"], "lost", "{moment:?}: {report:#}");
            let closed = report["window"]["intervals"].as_u64().unwrap();
            assert!(closed > 0, "{moment:?}: {report:#}");
            // None is lost of those that were in the file a moment before.
            assert!(closed >= before, "{moment:?}: {closed} of {before}");
            intervals += closed;
            known += before;
        } else if file.exists() {
            // At most a part of the beginning: a capture, or an error that says that it is none.
            let output = run(["report".as_ref(), file.as_os_str()]);
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1)), "{moment:?}: {output:?}");
        }
        assert_nothing_left();
    }
    println!(
        "{rounds} killed, {attached} of them attached, with {intervals} intervals, of which {known} were seen before"
    );
    assert!(attached > 0, "none of {rounds} was attached");
}

/// A file system of its own, gone when this is dropped.
struct Mounted(TempDir);

impl Mounted {
    fn new(arguments: &[&str]) -> Self {
        let mounted = Self(TempDir::new().unwrap());
        let status = Command::new("mount")
            .args(arguments)
            .arg(mounted.0.path())
            .status()
            .unwrap();
        assert!(status.success(), "mount {arguments:?}");
        mounted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.path("filler")).unwrap();
        while file.write_all(&[1; 512]).is_ok() {}
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// leaktrace fails with a reason, and what it had written is a capture up to there.
fn fails_and_leaves_a_capture(run: Leaktrace, file: &Path, says: &str) {
    let finished = run.wait();
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains(says), "{}", finished.stderr);
    let report = report(file);
    assert_eq!(report["window"]["end"], "lost", "{:#}", report["window"]);
    assert!(report["window"]["intervals"].as_u64().unwrap() > 5);
    assert_nothing_left();
}

#[test]
fn the_disk_is_full() {
    let disk = Mounted::new(&["-t", "tmpfs", "-o", "size=256k", "tmpfs"]);
    let mut hoard = Hoard::start();
    let file = disk.path("capture");
    let run = Leaktrace::record_to(&file, hoard.pid(), ["--interval", "20ms"]);
    hoard.go();
    hoard.wait_for(200);
    disk.fill();
    fails_and_leaves_a_capture(run, &file, "No space left on device");
    hoard.wait_for(10);
}

/// The folder cannot be written to: nothing is attached.
#[test]
fn the_disk_is_read_only() {
    let disk = Mounted::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"]);
    let mut hoard = Hoard::start();
    let pid = hoard.pid().to_string();
    let file = disk.path("capture");
    let output = run(["record", "-p", &pid, "-o", file.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("Read-only file system"), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    hoard.go();
    hoard.wait_for(10);
    assert_nothing_left();
}

/// The disk takes what is written into its cache, and fails when that is to become durable.
#[test]
fn the_disk_fails() {
    let backing = Mounted::new(&["-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
    let image = backing.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal"])
        .arg(&image)
        .status()
        .unwrap();
    assert!(made.success(), "mkfs.ext4");
    let disk = Mounted::new(&["-o", "loop", image.to_str().unwrap()]);
    let mut hoard = Hoard::start();
    let file = disk.path("capture");
    let run = Leaktrace::record_to(&file, hoard.pid(), ["--interval", "20ms"]);
    hoard.go();
    hoard.wait_for(200);
    backing.fill();
    run.signal(Signal::SIGINT);
    let finished = run.wait();
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let says = "failed to close the capture";
    assert!(finished.stderr.contains(says), "{}", finished.stderr);
    hoard.wait_for(10);
    assert_nothing_left();
}

/// A write fails as on broken hardware: `strace` answers the thirtieth and each after it in the kernel's place.
#[test]
fn the_disk_is_broken() {
    let mut hoard = Hoard::start();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("capture");
    let mut broken = Command::new("strace");
    broken
        .args(["--follow-forks", "--quiet=all", "--output=/dev/null", "-P"])
        .arg(&file)
        .args(["-e", "inject=write:error=EIO:when=30+"])
        .arg(leaktrace_binary());
    let run = Leaktrace::record_by(broken, &file, hoard.pid(), ["--interval", "20ms"]);
    hoard.go();
    fails_and_leaves_a_capture(run, &file, "Input/output error");
    hoard.wait_for(10);
}

/// The target ends after leaktrace has found it and before it has attached, and another process gets its PID.
#[test]
fn the_pid_is_reused() {
    let hoard = Hoard::start();
    let pid = hoard.pid();
    let folder = TempDir::new().unwrap();
    let mut leaktrace = Command::new(leaktrace_binary())
        .args(["record", "-d", "1s", "-p", &pid.to_string(), "-o"])
        .arg(folder.path().join("capture"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ours = Pid::from_raw(leaktrace.id() as i32);
    while !holds_a_pidfd(ours) {}
    kill(ours, Signal::SIGSTOP).unwrap();
    drop(hoard);
    let mut other = with_pid(pid);
    kill(ours, Signal::SIGCONT).unwrap();
    let status = leaktrace.wait().unwrap();
    let mut said = String::new();
    let mut stderr = leaktrace.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(other.try_wait().unwrap().is_none(), "the other one died");
    other.kill().unwrap();
    other.wait().unwrap();
    assert_nothing_left();
}

fn holds_a_pidfd(pid: Pid) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    files.flatten().any(|file| {
        fs::read_link(file.path()).is_ok_and(|link| link.to_string_lossy().contains("pidfd"))
    })
}

/// A process that sleeps and has this PID.
fn with_pid(pid: i32) -> std::process::Child {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // The next one that is free after it, unless somebody else is quicker.
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        if child.id() as i32 == pid {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("no process got the PID {pid}");
}
