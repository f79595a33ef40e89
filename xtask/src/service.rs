//! A sample program at work: started, listened to, ended.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a program may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running sample program. It ends when this is dropped: its stdin closes, and if that does not do it,
/// it is killed.
pub(crate) struct Service {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Service {
    /// Starts a program and waits for its first line, which says that it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start or ends before that.
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start `{}`", program.display()))?;
        let stdout = child.stdout.take().context("the program has no stdout")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        let service = Self { child, lines };
        let ready = service.wait_for("ready");
        ready.with_context(|| format!("failed to start `{}`", program.display()))?;
        Ok(service)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks for the truth as of now; the answer is one line of JSON.
    ///
    /// # Errors
    ///
    /// When the program is gone or does not answer.
    pub(crate) fn ask(&mut self) -> Result<String> {
        let stdin = self
            .child
            .stdin
            .as_mut()
            .context("the program has no stdin")?;
        stdin
            .write_all(b"now\n")
            .context("the sample program is gone")?;
        self.wait_for("\"asked\":\"now\"")
    }

    /// What it writes from now on for so long, with the time of each line.
    ///
    /// # Errors
    ///
    /// When the program ends meanwhile.
    pub(crate) fn listen(&self, duration: Duration) -> Result<Vec<(Instant, String)>> {
        while self.lines.try_recv().is_ok() {}
        let end = Instant::now() + duration;
        let mut heard = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => heard.push(line),
                Err(RecvTimeoutError::Timeout) => return Ok(heard),
                Err(RecvTimeoutError::Disconnected) => bail!("the sample program has ended"),
            }
        }
    }

    fn wait_for(&self, mark: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (_, line) = self
                .lines
                .recv_timeout(left)
                .context("the sample program does not answer")?;
            if line.contains(mark) {
                return Ok(line);
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        // It may have ended just now, and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
