//! What a service is, and one at work.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    expectation::Expectation,
    load::{self, Clients, Load, Program, Requests},
    package,
};
use crate::{run, workspace};

/// How long a service may take to answer its first request, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection that is longer than this stays.
const A_SHORT_ONE: Duration = Duration::from_millis(500);
/// Who runs a service that will not be root's, or does not need to: nobody, who may still go to where the
/// packages are unpacked.
const AS_NOBODY: [&str; 7] = [
    "setpriv",
    "--reuid=nobody",
    "--regid=nogroup",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
    // So that access(2), too, knows of it.
    "--securebits=+no_setuid_fixup",
];

/// A service of the distribution. In its texts `$DIR` is its folder, `$PKG` where its packages are unpacked,
/// `$PORT` where it answers, `$OTHER` a second port.
pub(super) struct Service {
    /// What it is called here.
    pub(super) name: &'static str,
    pub(super) packages: &'static [&'static str],
    /// Its program, in its packages.
    pub(super) program: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// Files that it needs in its folder.
    pub(super) files: &'static [(&'static str, &'static str)],
    /// Whether it and what goes before it are run by nobody if this chore is run by root.
    pub(super) as_nobody: bool,
    /// What is run before it, if anything.
    pub(super) before: &'static [&'static str],
    /// By what it is seen to be ready.
    pub(super) ready: Ready,
    /// Which of its processes is recorded.
    pub(super) recorded: Recorded,
    /// Each from a fresh start.
    pub(super) trials: &'static [Trial],
}

/// Nothing is special.
pub(super) const PLAIN: Service = Service {
    name: "",
    packages: &[],
    program: "",
    arguments: &[],
    environment: &[],
    files: &[],
    as_nobody: false,
    before: &[],
    ready: Ready::Program(&[]),
    recorded: Recorded::Itself,
    trials: &[],
};

/// How one sees that a service is ready.
#[derive(Clone, Copy)]
pub(super) enum Ready {
    /// It answers.
    Requests(Requests),
    /// A program succeeds, which also fills it.
    Program(&'static [&'static str]),
}

/// A process of a service.
#[derive(Clone, Copy)]
pub(super) enum Recorded {
    Itself,
    /// A child of it that says so in its command line, once there is load.
    Child(&'static str),
}

/// What is done with a service while it is recorded.
pub(super) struct Trial {
    /// What the trials of one service are told apart by.
    pub(super) name: &'static str,
    pub(super) work: Work,
    pub(super) expected: Expectation,
}

/// Load on a service.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// The requests by which it was seen to be ready.
    Ready,
    Requests(Requests),
    /// A program that goes on for hours. It says how many answers it gets in a second, behind `rate`.
    Program {
        arguments: &'static [&'static str],
        rate: &'static str,
    },
}

/// A running service. It ends when this is dropped.
pub(super) struct Daemon<'a> {
    home: Home<'a>,
    child: Child,
}

/// Where it lives, and what its texts are filled with.
struct Home<'a> {
    service: &'a Service,
    folder: PathBuf,
    package: PathBuf,
    address: SocketAddr,
    other: SocketAddr,
}

impl<'a> Home<'a> {
    /// In an empty folder.
    fn new(service: &'a Service) -> Result<Self> {
        let home = Self {
            service,
            folder: workspace::target().join("services").join(service.name),
            package: package::unpack(service.packages)?,
            address: free_address()?,
            other: free_address()?,
        };
        let folder = &home.folder;
        if folder.exists() {
            run::run(run::as_root("rm").arg("-rf").arg(folder))?;
        }
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        for (name, text) in service.files {
            fs::write(folder.join(name), home.filled(text))?;
        }
        if home.is_nobodys() {
            run::run(Command::new("chown").arg("nobody").arg(folder))?;
        }
        Ok(home)
    }

    fn is_nobodys(&self) -> bool {
        self.service.as_nobody && run::is_root()
    }

    fn filled(&self, text: &str) -> String {
        text.replace("$DIR", &self.folder.to_string_lossy())
            .replace("$PKG", &self.package.to_string_lossy())
            .replace("$PORT", &self.address.port().to_string())
            .replace("$OTHER", &self.other.port().to_string())
    }

    /// A program in its environment, in its folder.
    fn command(&self, words: &[&str]) -> Command {
        let prefix: &[&str] = if self.is_nobodys() { &AS_NOBODY } else { &[] };
        let mut words = prefix.iter().chain(words).map(|word| self.filled(word));
        let mut command = Command::new(words.next().unwrap_or_default());
        let environment = self.service.environment.iter();
        command
            .args(words)
            .envs(environment.map(|(name, value)| (name, self.filled(value))))
            .env("HOME", &self.folder)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(&self.folder);
        command
    }
}

impl<'a> Daemon<'a> {
    /// Starts it in a folder of its own, which is emptied first, and waits until it is ready.
    pub(super) fn start(service: &'a Service) -> Result<Self> {
        let home = Home::new(service)?;
        if !service.before.is_empty() {
            run::output(&mut home.command(service.before))?;
        }
        let program = ["$PKG/", service.program].concat();
        let mut words = vec![program.as_str()];
        words.extend(service.arguments);
        let output = File::create(home.folder.join("output"))?;
        let mut command = home.command(&words);
        command.stdout(output.try_clone()?).stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("failed to start `{}`", run::line(&command)))?;
        let mut daemon = Self { home, child };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = match self.home.service.ready {
                Ready::Requests(requests) => load::once(self.home.address, requests, 0).map(drop),
                Ready::Program(words) => run::output(&mut self.home.command(words)).map(drop),
            };
            match answer {
                Ok(()) => return Ok(()),
                Err(_) if !self.is_running()? => bail!("it ended at once: {}", self.said()),
                Err(error) if Instant::now() > end => {
                    return Err(error.context(format!("it does not answer: {}", self.said())));
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The process that is to be recorded, once it is there to stay: a client's first connection may be a
    /// short one.
    pub(super) fn recorded(&self) -> Result<u32> {
        let Recorded::Child(text) = self.home.service.recorded else {
            return Ok(self.child.id());
        };
        let find = || -> Result<Option<u32>> {
            let mut children = children(self.child.id())?.into_iter();
            let found = children.find(|(_, command)| command.contains(text));
            Ok(found.map(|(pid, _)| pid))
        };
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let found = find()?;
            thread::sleep(A_SHORT_ONE);
            if let (Some(pid), true) = (found, found == find()?) {
                return Ok(pid);
            }
        }
        bail!("no child of it is called `{text}`")
    }

    /// What is its own on disk.
    pub(super) fn folder(&self) -> &Path {
        &self.home.folder
    }

    /// Where its packages have debug information, if they have.
    pub(super) fn debug_dir(&self) -> PathBuf {
        self.home.package.join("usr/lib/debug")
    }

    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The end of what it has written.
    pub(super) fn said(&self) -> String {
        let text = fs::read_to_string(self.home.folder.join("output")).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Begins to ask it.
    pub(super) fn load(&self, work: Work) -> Result<Load> {
        let requests = match (work, self.home.service.ready) {
            (Work::Requests(requests), _) | (Work::Ready, Ready::Requests(requests)) => requests,
            (Work::Ready, Ready::Program(_)) => bail!("there is nothing to ask it"),
            (Work::Program { arguments, rate }, _) => {
                let output = self.home.folder.join("load");
                let program = Program::start(self.home.command(arguments), output, rate)?;
                return Ok(Load::Program(program));
            }
        };
        Ok(Load::Clients(Clients::start(self.home.address, requests)))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = run::run(Command::new("kill").arg(self.child.id().to_string()));
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        // It may have ended just now, and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The children of a process, each with its command line.
fn children(parent: u32) -> Result<Vec<(u32, String)>> {
    let parent = format!("PPid:\t{parent}\n");
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // It may be gone by now.
        let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if read("status").contains(&parent) {
            children.push((pid, read("cmdline")));
        }
    }
    Ok(children)
}

/// An address on loopback that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to find a port")?;
    Ok(listener.local_addr()?)
}
