//! Follows the processes that the target makes, and those that they make (`--follow-forks`).
//!
//! A new process has the probes' breakpoints in its copy of the code but no probes: they are attached to it as
//! soon as the kernel side has told of it. What it allocates until then is not seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::OwnedFd,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::io::unix::AsyncFd;

use super::{limit, monotonic_ns};
use crate::{
    capture::schema::Limit,
    drain::{Drain, Kernel, ProcessChange},
    loader::{Closing, LoadError, Loaded, OpenSet, ProbeSet},
    plan::{Tracepoint, Uprobe},
    report::human,
    target::Target,
};

/// Of so many processes the user is told one by one.
const MOST_TOLD: u64 = 16;

/// The processes that are followed besides the target.
pub(super) struct Forks {
    probes: ProbeSet,
    events: AsyncFd<OwnedFd>,
    followed: BTreeMap<i32, Process>,
    /// How many were.
    all: u64,
    /// How many are left at the end of the recording, once that is known.
    left: Option<usize>,
    /// How many became another program, and how many ended before they had probes.
    exec: u64,
    short_lived: u64,
    /// Longest time from when one was made until it had probes.
    unseen_ns: u64,
    errors: BTreeSet<String>,
}

struct Process {
    number: u64,
    pidfd: OwnedFd,
    probes: OpenSet,
}

impl Forks {
    /// Follows what the target makes from now on, in native allocators by `probes`.
    ///
    /// # Errors
    ///
    /// The kernel cannot attach probes together, or tells of no new processes.
    pub(super) fn follow(
        probes: &[Uprobe],
        processes: u32,
        loaded: &mut Loaded,
        kernel: &mut Kernel,
        target: &Target,
    ) -> Result<Self, LoadError> {
        let Some(mut set) = loaded.probe_set() else {
            return Err(LoadError::other(
                "follow forks",
                "there are no probes for it",
            ));
        };
        // Whether the kernel can do that shows only when it does.
        set.add(probes, loaded, target)
            .and_then(|()| set.open(target))
            .map_err(|error| error.without_probe_sets("--follow-forks needs Linux 6.6"))?
            .close()
            .wait();
        kernel.follow_forks(processes)?;
        loaded.attach_tracepoint(&Tracepoint {
            program: "new_task",
            category: "task",
            name: "task_newtask",
            purpose: "a process is made",
        })?;
        let events = kernel.process_events().and_then(|fd| {
            // SAFETY: the descriptor is owned by what is registered.
            unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
        });
        Ok(Self {
            probes: set,
            events: events.map_err(|error| LoadError::other("wait for new processes", error))?,
            followed: BTreeMap::new(),
            all: 0,
            left: None,
            exec: 0,
            short_lived: 0,
            unseen_ns: 0,
            errors: BTreeSet::new(),
        })
    }

    /// Waits until there is something to do.
    pub(super) async fn wait(&self) {
        match self.events.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // It is looked at now and then anyway.
            Err(_) => std::future::pending().await,
        }
    }

    /// Attaches probes to new processes, and takes the blocks of those that are gone out of the live set. Gives
    /// what to tell people.
    ///
    /// # Errors
    ///
    /// A map cannot be read or written.
    pub(super) fn act(&mut self, drain: &mut Drain) -> Result<Vec<String>, LoadError> {
        let mut told = Vec::new();
        for change in drain.take_process_changes() {
            match change {
                ProcessChange::Made { pid, number, at } => match self.attach(pid) {
                    Ok((pidfd, probes)) => {
                        self.unseen_ns = self.unseen_ns.max(monotonic_ns() - at.0);
                        self.all += 1;
                        match self.all {
                            ..=MOST_TOLD => told.push(format!("follows process {pid} too")),
                            n if n == MOST_TOLD + 1 => {
                                told.push("follows more, without a word of each".to_owned());
                            }
                            _ => {}
                        }
                        let process = Process {
                            number,
                            pidfd,
                            probes,
                        };
                        self.followed.insert(pid, process);
                    }
                    Err(error) => {
                        match fs::exists(format!("/proc/{pid}")) {
                            Ok(true) => _ = self.errors.insert(error),
                            _ => self.short_lived += 1,
                        }
                        drain.process_ended(pid, number)?;
                    }
                },
                ProcessChange::Exec { pid } => {
                    self.exec += 1;
                    self.end(pid, drain)?;
                }
            }
        }
        for pid in self.gone() {
            self.end(pid, drain)?;
        }
        Ok(told)
    }

    /// Those that have ended.
    fn gone(&self) -> Vec<i32> {
        let processes = self.followed.values();
        let mut fds: Vec<_> = processes
            .map(|process| PollFd::new(&process.pidfd, PollFlags::IN))
            .collect();
        // On an error none is known to be gone; it is looked at again soon.
        let _ = poll(&mut fds, Some(&Timespec::default()));
        let ended = self.followed.keys().zip(&fds);
        ended
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(&pid, _)| pid)
            .collect()
    }

    /// Takes the probes away from all of them, at once: the kernel lets each wait a while.
    pub(super) fn stop(&mut self) {
        self.left = Some(self.followed.len());
        let mut closing = Closing::default();
        for process in std::mem::take(&mut self.followed).into_values() {
            closing.add(process.probes);
        }
        closing.wait();
    }

    fn attach(&self, pid: i32) -> Result<(OwnedFd, OpenSet), String> {
        let raw = Pid::from_raw(pid).ok_or("it has no id")?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|error| error.to_string())?;
        let probes = self.probes.open_in(pid);
        probes
            .map(|probes| (pidfd, probes))
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))
    }

    fn end(&mut self, pid: i32, drain: &mut Drain) -> Result<(), LoadError> {
        match self.followed.remove(&pid) {
            Some(process) => {
                // Its memory is gone: the kernel has nothing to wait for but itself.
                process.probes.close();
                drain.process_ended(pid, process.number)
            }
            None => Ok(()),
        }
    }

    /// What there is to know of them.
    pub(super) fn limits(&self) -> Vec<Limit> {
        if self.all == 0 && self.errors.is_empty() && self.short_lived == 0 && self.exec == 0 {
            return Vec::new();
        }
        let ms = self.unseen_ns.div_ceil(1_000_000);
        let mut parts = vec![format!(
            "{} followed, {} of them to the end; what each allocated in its first {ms} ms, or less, was not \
             seen",
            human::count(self.all, "fork"),
            self.left.unwrap_or(self.followed.len())
        )];
        if self.exec > 0 {
            parts.push(format!(
                "{} became another program and was not followed further",
                self.exec
            ));
        }
        if self.short_lived > 0 {
            parts.push(format!("{} ended before that", self.short_lived));
        }
        let errors = self
            .errors
            .iter()
            .map(|error| format!("one could not be followed: {error}"));
        parts.extend(errors);
        vec![limit(
            "the beginnings of the processes that it made",
            &parts.join("; "),
        )]
    }
}
