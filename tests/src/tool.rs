//! The `leaktrace` command, as a user runs it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use leaktrace::capture::{Capture, schema::Interval};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;
use tempfile::TempDir;

/// A running `leaktrace record`.
pub struct Leaktrace {
    child: Child,
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
    folder: TempDir,
}

/// A `leaktrace record` that has ended.
pub struct Finished {
    /// The capture file.
    pub file: PathBuf,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The rest of what it said.
    pub stderr: String,
    /// Holds the file.
    pub folder: TempDir,
}

impl Leaktrace {
    /// Starts to record process `pid` and waits until the probes are live.
    ///
    /// # Panics
    ///
    /// It does not attach.
    pub fn record<A: AsRef<OsStr>>(pid: i32, args: impl IntoIterator<Item = A>) -> Self {
        Self::record_process(["-p", &pid.to_string()], args)
    }

    /// The same of a process that is given in another way.
    ///
    /// # Panics
    ///
    /// It does not attach.
    pub fn record_process<A: AsRef<OsStr>>(
        process: [&str; 2],
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::start(Command::new(super::leaktrace_binary()), None, process, args)
    }

    /// The same by a command of one's own that runs it, into this file.
    ///
    /// # Panics
    ///
    /// It does not attach.
    pub fn record_by<A: AsRef<OsStr>>(
        command: Command,
        file: &Path,
        pid: i32,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self::start(command, Some(file), ["-p", &pid.to_string()], args)
    }

    /// The same into this file.
    ///
    /// # Panics
    ///
    /// It does not attach.
    pub fn record_to<A: AsRef<OsStr>>(
        file: &Path,
        pid: i32,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let command = Command::new(super::leaktrace_binary());
        Self::start(command, Some(file), ["-p", &pid.to_string()], args)
    }

    /// The same where no file can grow beyond `bytes`: as on a disk that becomes full.
    ///
    /// # Panics
    ///
    /// It does not attach.
    pub fn record_with_full_disk<A: AsRef<OsStr>>(
        pid: i32,
        bytes: u64,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut limited = Command::new("prlimit");
        limited
            .arg(format!("--fsize={bytes}"))
            .arg(super::leaktrace_binary());
        Self::start(limited, None, ["-p", &pid.to_string()], args)
    }

    fn start<A: AsRef<OsStr>>(
        mut command: Command,
        file: Option<&Path>,
        process: [&str; 2],
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let own = || folder.path().join("capture.leaktrace");
        let file = file.map_or_else(own, Path::to_path_buf);
        let mut child = command
            .arg("record")
            .args(process)
            .arg("-o")
            .arg(&file)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("leaktrace starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut said = String::new();
        while !said.contains("attached to") {
            let read = stderr.read_line(&mut said).expect("stderr is text");
            assert!(read > 0, "leaktrace did not attach: {said}");
        }
        Self {
            child,
            stderr,
            file,
            folder,
        }
    }

    /// Waits until it has said that.
    ///
    /// # Panics
    ///
    /// It ends before.
    pub fn wait_until_it_says(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = self.stderr.read_line(&mut line).expect("stderr is text");
            assert!(read > 0, "leaktrace did not say `{text}`");
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Where it writes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The intervals that are in its capture so far.
    ///
    /// # Panics
    ///
    /// What is there is no capture.
    pub fn written(&self) -> Vec<Interval> {
        let read = |_| {
            let file = File::open(&self.file).expect("the capture is there");
            Capture::read(BufReader::new(file)).ok()
        };
        // The last block may be under way.
        let capture = (0..1000).find_map(read);
        capture.expect("a capture").intervals
    }

    /// Waits until so many seconds of the recording are in its capture, between its first interval's end and its last
    /// one's; gives how many are.
    ///
    /// # Panics
    ///
    /// They are not within a minute more.
    pub fn wait_until_written(&self, seconds: f64) -> f64 {
        let there = |written: &[Interval]| {
            let ends = written.first().zip(written.last());
            ends.map_or(0.0, |(first, last)| (last.t_ns - first.t_ns) as f64 / 1e9)
        };
        let patience = Duration::from_secs_f64(seconds + 60.0);
        there(&self.wait_for_intervals(patience, |written| there(written) >= seconds))
    }

    /// Waits until so many more intervals are in its capture.
    ///
    /// # Panics
    ///
    /// They are not within a minute.
    pub fn wait_until_more_is_written(&self, intervals: usize) {
        let wanted = self.written().len() + intervals;
        self.wait_for_intervals(Duration::from_secs(60), |written| written.len() >= wanted);
    }

    fn wait_for_intervals(
        &self,
        patience: Duration,
        is_enough: impl Fn(&[Interval]) -> bool,
    ) -> Vec<Interval> {
        let end = Instant::now() + patience;
        loop {
            let written = self.written();
            if is_enough(&written) {
                return written;
            }
            assert!(Instant::now() < end, "only {} are written", written.len());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid()), signal).expect("leaktrace runs");
    }

    /// Waits until it ends.
    ///
    /// # Panics
    ///
    /// It cannot be waited for.
    pub fn wait(mut self) -> Finished {
        let mut stderr = String::new();
        self.stderr
            .read_to_string(&mut stderr)
            .expect("stderr is text");
        let status = self.child.wait().expect("our own child");
        Finished {
            file: self.file,
            code: status.code(),
            stderr,
            folder: self.folder,
        }
    }
}

impl Finished {
    /// The report on the capture, as JSON.
    pub fn report(&self) -> Value {
        report(&self.file)
    }
}

/// Runs `leaktrace` to its end.
///
/// # Panics
///
/// It cannot be started.
pub fn run<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    Command::new(super::leaktrace_binary())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("leaktrace starts")
}

/// The report on a capture file, as JSON.
///
/// # Panics
///
/// The file cannot be reported on.
pub fn report(file: &Path) -> Value {
    let output = run([
        OsStr::new("report"),
        file.as_os_str(),
        OsStr::new("--format"),
        OsStr::new("json"),
        OsStr::new("-n"),
        OsStr::new("1000"),
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("the report is JSON")
}
