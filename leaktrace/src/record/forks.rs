//! Follows the processes that the target makes, and those that they make (`--follow-forks`).
//!
//! A new process has the probes' breakpoints in its copy of the code but no probes: they are attached to it as
//! soon as the kernel side has told of it. What it allocates until then is not seen.

use std::{collections::BTreeMap, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit},
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
    /// Why others could not be followed, and how many.
    errors: BTreeMap<String, u64>,
}

struct Process {
    number: u64,
    pidfd: OwnedFd,
    probes: OpenSet,
}

/// Returns when there are new processes to follow.
pub(super) async fn new_processes(forks: Option<&Forks>) {
    match forks {
        Some(forks) => forks.wait().await,
        None => std::future::pending().await,
    }
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
        let mut set = ProbeSet::default();
        // Whether the kernel can do that shows only when it does.
        set.add(probes, loaded, target)
            .and_then(|()| {
                kernel.while_looking(|_| set.open(target).map(|open| open.close().wait()))
            })
            .map_err(|error| error.without_probe_sets("--follow-forks needs Linux 6.10"))?;
        allow_more_files(processes);
        kernel.follow_forks(processes)?;
        loaded.attach_to_tracepoints(&[Tracepoint {
            program: "new_task",
            category: "task",
            name: "task_newtask",
            purpose: "a process is made",
        }])?;
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
            errors: BTreeMap::new(),
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
        let (mut told, mut ended) = (Vec::new(), Vec::new());
        for change in drain.take_process_changes() {
            match change {
                ProcessChange::Made { pid, number, at } => {
                    // One that had the same id has ended.
                    ended.extend(self.end(pid));
                    let pidfd = match pidfd(pid) {
                        Ok(pidfd) => pidfd,
                        Err(error) => {
                            self.missed(error);
                            drain.process_not_followed(pid, number)?;
                            continue;
                        }
                    };
                    match self.probes.open_in(pid) {
                        Ok(probes) => {
                            self.unseen_ns = self.unseen_ns.max(monotonic_ns() - at.0);
                            told.extend(self.tell(pid));
                            let process = Process {
                                number,
                                pidfd,
                                probes,
                            };
                            self.followed.insert(pid, process);
                        }
                        // Some of the probes may have been there.
                        Err(error) => {
                            self.missed(error);
                            ended.push((pid, number));
                        }
                    }
                }
                ProcessChange::Exec { pid } => {
                    self.exec += 1;
                    ended.extend(self.end(pid));
                }
            }
        }
        for pid in self.gone() {
            ended.extend(self.end(pid));
        }
        drain.processes_ended(&ended)?;
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

    /// One cannot be followed.
    fn missed(&mut self, error: LoadError) {
        match error {
            LoadError::Gone { .. } => self.short_lived += 1,
            error => {
                let error = format!("{:#}", anyhow::Error::new(error));
                *self.errors.entry(error).or_default() += 1;
            }
        }
    }

    /// One more is followed.
    fn tell(&mut self, pid: i32) -> Option<String> {
        self.all += 1;
        match self.all {
            ..=MOST_TOLD => Some(format!("follows process {pid} too")),
            n if n == MOST_TOLD + 1 => Some("follows more, without a word of each".to_owned()),
            _ => None,
        }
    }

    /// The memory of a process is gone: the kernel has nothing to wait for but itself. Gives its id and number, if
    /// it was followed.
    fn end(&mut self, pid: i32) -> Option<(i32, u64)> {
        let process = self.followed.remove(&pid)?;
        process.probes.close();
        Some((pid, process.number))
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
        let errors = self.errors.iter();
        let errors = errors.map(|(error, n)| format!("{n} could not be followed: {error}"));
        parts.extend(errors);
        vec![limit(
            "the beginnings of the processes that it made",
            &parts.join("; "),
        )]
    }
}

fn pidfd(pid: i32) -> Result<OwnedFd, LoadError> {
    let raw = Pid::from_raw(pid).ok_or(LoadError::Gone { pid })?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|error| match error {
        Errno::SRCH => LoadError::Gone { pid },
        error => LoadError::other("watch a process", error),
    })
}

/// Each process takes several file descriptors, and the usual limit is 1,024: leaktrace's own is raised.
fn allow_more_files(processes: u32) {
    /// For the watch on a process and its probes, by program and file.
    const EACH: u64 = 16;
    let limit = getrlimit(Resource::Nofile);
    let Some(now) = limit.current else {
        return;
    };
    let wanted = now + EACH * u64::from(processes);
    let raised = |maximum| Rlimit {
        current: maximum,
        maximum,
    };
    // If both are refused fewer processes can be followed, which is told then.
    if setrlimit(
        Resource::Nofile,
        raised(limit.maximum.map(|maximum| maximum.max(wanted))),
    )
    .is_err()
    {
        let _ = setrlimit(Resource::Nofile, raised(limit.maximum));
    }
}
