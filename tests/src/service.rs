//! A sample service that prints its own ground truth.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::watchdog;

/// A running sample service. It is ended when this is dropped.
pub struct Service {
    child: Child,
    lines: Receiver<String>,
    truth: Value,
}

impl Service {
    /// Starts the sample service `name`.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn start<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Self {
        Self::start_at(&super::sample(name), args)
    }

    /// Starts the program at `path`.
    ///
    /// # Panics
    ///
    /// It cannot be started.
    pub fn start_at<A: AsRef<OsStr>>(path: &Path, args: impl IntoIterator<Item = A>) -> Self {
        watchdog::note();
        let mut child = Command::new(path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start `{}`: {error}", path.display()));
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            truth: Value::Null,
        }
    }

    /// A native program that does nothing, once its libraries are loaded and it sleeps.
    ///
    /// # Panics
    ///
    /// It cannot be started, or does not get there within ten seconds.
    pub fn sleeper() -> Self {
        let service = Self::start_at(Path::new("/bin/sleep"), ["1000"]);
        let call = format!("/proc/{}/syscall", service.pid());
        let sleeps = format!("{} ", nix::libc::SYS_clock_nanosleep);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&sleeps)) {
            assert!(Instant::now() < deadline, "`sleep` does not sleep");
            thread::sleep(Duration::from_millis(1));
        }
        service
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The next line it prints.
    ///
    /// # Panics
    ///
    /// None comes within half a minute.
    pub fn line(&mut self) -> String {
        self.next_line(Duration::from_secs(30))
            .expect("the service printed nothing for 30 s, or has ended")
    }

    /// Sends it a line.
    ///
    /// # Panics
    ///
    /// It does not read any more.
    pub fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").expect("the service reads its stdin");
    }

    /// Sends it a line and waits for the truth with which it answers: as of after it has done so.
    ///
    /// # Panics
    ///
    /// It does not answer.
    pub fn ask(&mut self, line: &str) {
        self.say(line);
        self.truth = Value::Null;
        while self.truth["asked"] != line {
            let line = self.line();
            self.learn(&line);
        }
        watchdog::note();
    }

    /// A text in its newest truth; empty when it is not there.
    pub fn text(&self, field: &str) -> &str {
        self.truth[field].as_str().unwrap_or_default()
    }

    /// The newest truth it has printed, a field of it as a number.
    ///
    /// # Panics
    ///
    /// The field is not there.
    pub fn truth(&mut self, field: &str) -> f64 {
        while let Some(line) = self.next_line(Duration::ZERO) {
            self.learn(&line);
        }
        while self.truth.is_null() {
            let line = self.line();
            self.learn(&line);
        }
        self.truth[field]
            .as_f64()
            .unwrap_or_else(|| panic!("no `{field}` in {}", self.truth))
    }

    /// Waits until `field` of its truth is at least `value`.
    ///
    /// # Panics
    ///
    /// That takes more than two minutes.
    pub fn wait_for(&mut self, field: &str, value: f64) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.truth(field) < value {
            assert!(Instant::now() < end, "`{field}` never reached {value}");
            let line = self.line();
            self.learn(&line);
        }
    }

    /// The newest truth that it was asked for, whole.
    pub fn newest(&self) -> &Value {
        &self.truth
    }

    /// Whether it still runs.
    ///
    /// # Panics
    ///
    /// It cannot be asked.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Panics
    ///
    /// It cannot be waited for.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("our own child");
    }

    fn learn(&mut self, line: &str) {
        if let Ok(value) = serde_json::from_str::<Value>(line)
            && value.is_object()
        {
            self.truth = value;
        }
    }

    fn next_line(&self, timeout: Duration) -> Option<String> {
        self.lines.recv_timeout(timeout).ok()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        watchdog::note();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
