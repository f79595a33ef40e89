//! A terminal: the command runs in it as it does under a user's hands.

mod picture;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read as _, Write as _},
    num::NonZeroU16,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::Signal,
        termios::{Termios, tcgetattr},
    },
    unistd::Pid,
};
use pty_process::{
    Size,
    blocking::{Command, Pty, open},
};
use tempfile::TempDir;

/// How long anything may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// `leaktrace` in a pseudo-terminal of its own. It is ended when this is dropped.
pub struct Terminal {
    child: Ended,
    pty: Pty,
    // Holds the terminal open, so that what it is set to can be read after the command has ended.
    terminal: OwnedFd,
    before: Termios,
    screen: Arc<Watched>,
    folder: TempDir,
}

struct Watched {
    is_closed: AtomicBool,
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, vt100::Parser> {
        self.parser.lock().expect("the reader does not panic")
    }
}

impl Terminal {
    /// Starts `leaktrace` with these arguments in a terminal of so many rows and columns, in an empty
    /// folder.
    ///
    /// # Panics
    ///
    /// There is no terminal to be had, or it does not start.
    pub fn start<A: AsRef<OsStr>>(
        (rows, columns): (u16, u16),
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let (pty, pts) = open().expect("a pseudo-terminal");
        pty.resize(Size::new(rows, columns)).expect("its size");
        let terminal = pts.as_fd().try_clone_to_owned().expect("a descriptor");
        let before = tcgetattr(&terminal).expect("a terminal's settings");
        let folder = TempDir::new().expect("a temporary folder");
        let child = Command::new(super::leaktrace_binary())
            .args(args)
            .current_dir(folder.path())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .spawn(pts)
            .expect("leaktrace starts");
        let screen = Arc::new(Watched {
            is_closed: AtomicBool::new(false),
            parser: Mutex::new(vt100::Parser::new(size(rows), size(columns), 0)),
            changed: Condvar::new(),
        });
        let output = pty.as_fd().try_clone_to_owned().expect("a descriptor");
        let watched = Arc::clone(&screen);
        thread::spawn(move || read(File::from(output), &watched));
        Self {
            child: Ended(child),
            pty,
            terminal,
            before,
            screen,
            folder,
        }
    }

    /// Waits until the screen shows what is wanted; gives its text.
    ///
    /// # Panics
    ///
    /// It does not for a minute.
    pub fn wait_for(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        self.wait_until(what, |screen| is_there(&screen.contents()))
    }

    /// Whether the screen comes to show what is wanted within some seconds.
    pub fn comes_to_show(&self, is_there: impl Fn(&str) -> bool) -> bool {
        let is_there = |screen: &vt100::Screen| is_there(&screen.contents());
        self.watch(Duration::from_secs(10), is_there).is_ok()
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) -> String {
        self.watch(PATIENCE, is_so)
            .unwrap_or_else(|text| panic!("no {what}:\n{text}"))
    }

    /// The text of the screen once it is so, or in the end.
    fn watch(
        &self,
        patience: Duration,
        is_so: impl Fn(&vt100::Screen) -> bool,
    ) -> Result<String, String> {
        let end = Instant::now() + patience;
        let mut parser = self.screen.lock();
        loop {
            let text = parser.screen().contents();
            if is_so(parser.screen()) {
                return Ok(text);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(text);
            }
            let waited = self.screen.changed.wait_timeout(parser, left);
            parser = waited.expect("the reader does not panic").0;
        }
    }

    /// Types.
    ///
    /// # Panics
    ///
    /// The terminal is gone.
    pub fn press(&mut self, keys: &str) {
        self.pty
            .write_all(keys.as_bytes())
            .expect("the terminal takes keys");
    }

    /// Changes its size, as dragging a window's corner does. What is waited for after it was drawn after it: the
    /// screen is cleared.
    ///
    /// # Panics
    ///
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let mut parser = self.screen.lock();
        parser.set_size(size(rows), size(columns));
        parser.process(b"\x1b[2J\x1b[H");
        drop(parser);
        self.pty
            .resize(Size::new(rows, columns))
            .expect("the terminal has a size");
    }

    /// `leaktrace`'s process id.
    pub fn pid(&self) -> i32 {
        self.child.0.id() as i32
    }

    /// Sends `leaktrace` a signal.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.pid()), signal).expect("leaktrace runs");
    }

    /// Waits until `leaktrace` has ended, and holds that the terminal is as it was.
    ///
    /// # Panics
    ///
    /// It does not end within a minute, or the terminal is not as it was.
    pub fn ended(&mut self) -> ExitStatus {
        let status = wait(&mut self.child.0);
        let after = tcgetattr(&self.terminal).expect("a terminal's settings");
        assert_eq!(
            after, self.before,
            "the terminal's settings were not restored"
        );
        self.wait_until("main screen with its cursor", |screen| {
            !screen.alternate_screen() && !screen.hide_cursor()
        });
        status
    }

    /// Closes the terminal, as closing a window does, and waits until `leaktrace` has ended. It must have
    /// something to draw until then.
    ///
    /// # Panics
    ///
    /// It does not end within a minute.
    pub fn close(self) -> ExitStatus {
        let Self {
            mut child,
            pty,
            screen,
            ..
        } = self;
        screen.is_closed.store(true, Ordering::Relaxed);
        drop(pty);
        wait(&mut child.0)
    }

    /// Where it runs.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Leaves the screen as `target/screenshots/NAME.txt` and `.svg`.
    ///
    /// # Panics
    ///
    /// They cannot be written.
    pub fn shoot(&self, name: &str) {
        let parser = self.screen.lock();
        let text = parser.screen().contents();
        fs::write(super::screenshot(&format!("{name}.txt")), text).expect("a screenshot");
        let picture = picture::svg(parser.screen());
        fs::write(super::screenshot(&format!("{name}.svg")), picture).expect("a screenshot");
    }
}

/// A process that is ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().expect("our own child") {
            Some(status) => return status,
            None => assert!(Instant::now() < end, "leaktrace does not end"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn size(cells: u16) -> NonZeroU16 {
    NonZeroU16::new(cells).expect("a terminal has cells")
}

fn read(mut output: File, watched: &Watched) {
    let mut bytes = [0; 4096];
    // It fails once nobody holds the terminal open any more.
    while let Ok(count @ 1..) = output.read(&mut bytes) {
        watched.lock().process(&bytes[..count]);
        watched.changed.notify_all();
        if watched.is_closed.load(Ordering::Relaxed) {
            return;
        }
    }
}
