//! Who the target is: its process, executable, address space and memory.
//!
//! Contract: this module and `inventory` are the only ones that look at `/proc/PID` and at the
//! target's memory. They only read; [`SamplerSwitch`], which the user must ask for by name, is the
//! one exception. Everything is taken through handles that stay with the
//! process found first (a pidfd, its `/proc` directory, its own inodes), so that a reused PID or a
//! replaced file is never mistaken for the target.

mod cgroup;
mod image;
mod mapping;
pub mod maps;
mod memory;
mod ns_pid;
mod proc_file;
mod sampler_switch;
pub(crate) mod smaps;
mod usage;
mod writable;

use std::{
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use procfs::{
    ProcError, ProcResult,
    process::{Process, Status},
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{
    capture::schema,
    go::{GoBinary, GoVariable, elf::Elf},
};

pub use self::{
    cgroup::Cgroup,
    image::open_image,
    mapping::{Backing, Mapping},
    maps::{AddressMap, Module},
    memory::{Memory, MemoryError, Ranges},
    ns_pid::{NsPidError, find_ns_pid},
    sampler_switch::{PutBack, RATE as SAMPLER_RATE, SamplerSwitch, SwitchError},
    smaps::{Resident, SmapsError},
    usage::MemoryUse,
    writable::{Area, AreaKind, Present},
};

/// Why a process cannot be a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such process, or it ended while we looked.
    #[error("process {pid} is gone (check the PID with `ps -p {pid}`)")]
    Gone {
        /// The PID asked for.
        pid: i32,
    },
    /// It has ended and waits for its parent.
    #[error("process {pid} is a zombie: it has already ended and has no memory left to trace")]
    Zombie {
        /// The PID asked for.
        pid: i32,
    },
    /// A thread of the kernel.
    #[error("process {pid} is a kernel thread: it has no memory of its own to trace")]
    KernelThread {
        /// The PID asked for.
        pid: i32,
    },
    /// leaktrace was asked to trace itself.
    #[error("process {pid} is leaktrace itself: give the PID of another process")]
    Ourselves {
        /// The PID asked for.
        pid: i32,
    },
    /// A thread id instead of a process id.
    #[error("{pid} is a thread of process {tgid}: use `-p {tgid}`")]
    Thread {
        /// The id asked for.
        pid: i32,
        /// The process it belongs to.
        tgid: i32,
    },
    /// Not allowed to look at the process.
    #[error(
        "not permitted to look at process {pid}: run leaktrace as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
    )]
    NotPermitted {
        /// The PID asked for.
        pid: i32,
    },
    /// The process is of a kind that leaktrace cannot trace.
    #[error("process {pid} cannot be traced: {reason}")]
    Unsupported {
        /// The PID asked for.
        pid: i32,
        /// Why.
        reason: String,
    },
    /// Anything else.
    #[error("failed to look at process {pid}")]
    Other {
        /// The PID asked for.
        pid: i32,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// A process that can be traced.
pub struct Target {
    /// Process id, in leaktrace's own pid namespace.
    pub pid: i32,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// Path of the executable, as the target sees it.
    pub exe: String,
    /// Its control group, and its container if it is in one.
    pub cgroup: Cgroup,
    /// Its PIDs in the pid namespaces that it is in inside leaktrace's own, the innermost last.
    pub ns_pids: Vec<i32>,
    /// Start of the process in clock ticks since boot: tells a reused PID.
    pub start_ticks: u64,
    /// Lowest address the program break can have.
    pub start_brk: Option<u64>,
    /// How the executable was linked.
    pub linked: Linked,
    /// The Go executable; `None` for a native program. The error says why a Go executable could
    /// not be read as one.
    pub go: Option<Result<GoTarget, String>>,
    /// Its memory, to read.
    pub memory: Memory,
    process: Process,
    pidfd: OwnedFd,
}

/// How an executable was linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linked {
    /// There is no symbol table.
    pub stripped: bool,
    /// It is position-independent.
    pub pie: bool,
    /// No dynamic linker loads it.
    pub is_static: bool,
}

/// A Go executable in a process.
pub struct GoTarget {
    /// The executable.
    pub binary: GoBinary,
    /// What to add to a link-time address to get the address in the process.
    pub bias: u64,
}

impl GoTarget {
    /// Address in the process of a variable of the runtime. The error is the reason why it is not
    /// known.
    pub fn address(&self, variable: GoVariable) -> Result<u64, String> {
        let found = self.binary.variable(variable)?;
        Ok(found.address.wrapping_add(self.bias))
    }
}

/// Go's heap sampler in a process.
pub enum HeapSampler {
    /// It takes one sample in so many bytes.
    On(u64),
    /// It can be switched on: it is off, or on only because an earlier switch was not put back.
    Off(SamplerSwitch),
}

impl Target {
    /// Looks at process `pid`.
    ///
    /// # Errors
    ///
    /// Every reason why it cannot be traced, see [`TargetError`].
    pub fn open(pid: i32) -> Result<Self, TargetError> {
        if u32::try_from(pid) == Ok(std::process::id()) {
            return Err(TargetError::Ourselves { pid });
        }
        let gone = || TargetError::Gone { pid };
        let process = Process::new(pid).map_err(|e| refusal(pid, e))?;
        let stat = process.stat().map_err(|e| refusal(pid, e))?;
        let status: Status = proc_file::read(&process, "status").map_err(|e| refusal(pid, e))?;
        if status.tgid != pid {
            let tgid = status.tgid;
            return Err(TargetError::Thread { pid, tgid });
        }
        let pidfd = Pid::from_raw(pid).ok_or_else(gone).and_then(|raw| {
            pidfd_open(raw, PidfdFlags::NONBLOCK)
                .or_else(|_| pidfd_open(raw, PidfdFlags::empty()))
                .map_err(|e| refusal(pid, ProcError::Io(e.into(), None)))
        })?;
        const PF_KTHREAD: u32 = 0x0020_0000;
        if stat.flags & PF_KTHREAD != 0 {
            return Err(TargetError::KernelThread { pid });
        }
        if matches!(stat.state, 'Z' | 'X') {
            return Err(TargetError::Zombie { pid });
        }
        let exe = process.exe().map_err(|e| refusal(pid, e))?;
        let image = open_image(&PathBuf::from(format!("/proc/{pid}/exe")))
            .map_err(|e| refusal(pid, ProcError::Io(e, None)))?;
        let mut target = Self {
            pid,
            comm: stat.comm,
            exe: exe.to_string_lossy().into_owned(),
            cgroup: Cgroup::of(&process),
            ns_pids: ns_pid::inside(&status).to_vec(),
            start_ticks: stat.starttime,
            start_brk: stat.start_brk.filter(|&address| address != 0),
            linked: Linked::of(&image),
            go: None,
            memory: Memory::new(pid),
            process,
            pidfd,
        };
        let map = target.address_map()?;
        target.go = target.find_go(image, &map)?;
        // The handles belong to the process that had this PID a moment ago: still the same one?
        if target
            .process
            .stat()
            .map_err(|e| refusal(pid, e))?
            .starttime
            != target.start_ticks
        {
            return Err(gone());
        }
        Ok(target)
    }

    /// The target's mappings now.
    ///
    /// # Errors
    ///
    /// The target is gone, or not permitted.
    pub fn address_map(&self) -> Result<AddressMap, TargetError> {
        AddressMap::read(&self.process).map_err(|e| refusal(self.pid, e))
    }

    /// What it is doing, from `/proc/PID/status`.
    ///
    /// # Errors
    ///
    /// The target is gone, or not permitted.
    pub fn state(&self) -> Result<State, TargetError> {
        let status = self.status().map_err(|e| refusal(self.pid, e))?;
        Ok(State {
            threads: status.threads,
            seccomp: match status.seccomp {
                Some(0) => "disabled",
                Some(1) => "strict",
                Some(2) => "filter",
                _ => "unknown",
            },
            is_traced: status.tracerpid != 0,
        })
    }

    /// Whether functions of the target may be given a uretprobe. On x86-64 a kernel since 6.11 makes the
    /// thread call a system call of its own, `uretprobe`, when such a function returns (kernel commit
    /// ff474a78cef5), and a seccomp filter from before that kills the process for it.
    ///
    /// # Errors
    ///
    /// Why not, in words.
    pub fn allows_uretprobes(&self) -> Result<(), String> {
        let tasks = self.process.tasks().map_err(|error| error.to_string())?;
        for task in tasks.flatten() {
            let path = format!("task/{}/status", task.tid);
            match proc_file::read::<Status>(&self.process, path) {
                Ok(status) if status.seccomp.unwrap_or(0) != 0 => {
                    return Err(format!(
                        "thread {} is under seccomp, which may kill it for the kernel's own system call",
                        status.pid
                    ));
                }
                // A thread that has ended meanwhile returns from nothing.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether a debugger is attached.
    pub fn is_traced(&self) -> bool {
        self.status().is_ok_and(|status| status.tracerpid != 0)
    }

    fn status(&self) -> ProcResult<Status> {
        proc_file::read(&self.process, "status")
    }

    /// A file descriptor that becomes readable when the target exits.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// It as a Go program.
    ///
    /// # Errors
    ///
    /// [`TargetError::Unsupported`]: it is none, or one whose layout is not known.
    pub fn go_program(&self) -> Result<&GoTarget, TargetError> {
        let reason = match &self.go {
            Some(Ok(go)) => return Ok(go),
            Some(Err(reason)) => reason.clone(),
            None => "it is not a Go program".to_owned(),
        };
        Err(TargetError::Unsupported {
            pid: self.pid,
            reason,
        })
    }

    /// Stack pointers of the first `most` threads that are not running at this moment: what the
    /// kernel keeps of their system call, read without stopping them.
    pub fn stack_pointers(&self, most: usize) -> Vec<u64> {
        let pointer = |tid: i32| {
            let mut line = String::new();
            let mut file = self
                .process
                .open_relative(format!("task/{tid}/syscall"))
                .ok()?;
            file.read_to_string(&mut line).ok()?;
            // NUMBER and six ARGUMENTS, or -1; then the stack pointer and the instruction pointer.
            let pointer = line.split_whitespace().rev().nth(1)?.strip_prefix("0x")?;
            u64::from_str_radix(pointer, 16).ok()
        };
        let tasks = self.process.tasks().into_iter().flatten().flatten();
        tasks
            .take(most)
            .filter_map(|task| pointer(task.tid))
            .collect()
    }

    /// The target as a capture's header has it. `sample_rate` is `runtime.MemProfileRate`.
    pub fn describe(&self, sample_rate: u64) -> schema::Target {
        let go = self.go.as_ref().and_then(|go| go.as_ref().ok());
        schema::Target {
            pid: self.pid as u32,
            comm: self.comm.clone(),
            exe: self.exe.clone(),
            runtime: match &self.go {
                Some(Ok(go)) => go.binary.version().text.clone(),
                Some(Err(_)) => "go".to_owned(),
                None => "native".to_owned(),
            },
            go: go.map(|go| schema::GoInfo {
                version: go.binary.version().text.clone(),
                stripped: go.binary.stripped(),
                pie: go.binary.pie(),
                heap_profiling: sample_rate > 0,
                sample_rate,
                sampler_switch: None,
            }),
            start_ticks: self.start_ticks,
            cgroup: self.cgroup.path.clone().unwrap_or_default(),
            container_id: self.cgroup.container_id.clone().unwrap_or_default(),
            ns_pids: self.ns_pids.iter().map(|&pid| pid as u32).collect(),
        }
    }

    /// `runtime.MemProfileRate` now, in bytes. In a program that has just been started it is zero until
    /// the runtime's variables are initialized; where the linker has not switched the sampler off, a zero
    /// is looked at again for a moment.
    ///
    /// # Errors
    ///
    /// Why it could not be found or read.
    pub fn sample_rate(&self, go: &GoTarget) -> Result<u64, String> {
        const MOMENT: Duration = Duration::from_millis(200);
        const PAUSE: Duration = Duration::from_millis(5);
        let address = go.address(GoVariable::MemProfileRate)?;
        let started = Instant::now();
        loop {
            let rate = self.memory.read_u64(address);
            let rate = rate.map_err(|error| error.to_string())?;
            let may_change = rate == 0 && started.elapsed() < MOMENT;
            if !may_change || go.binary.sampler_linked_off() != Ok(false) {
                return Ok(rate);
            }
            thread::sleep(PAUSE);
        }
    }

    /// The heap sampler, with a switch for it if it is off. A rate of [`SAMPLER_RATE`] in a binary
    /// whose linker has switched the sampler off can only come from an earlier switch, whose
    /// leaktrace was killed.
    ///
    /// # Errors
    ///
    /// The target has no such sampler, or another leaktrace holds its switch.
    pub fn heap_sampler(&self) -> Result<HeapSampler, SwitchError> {
        let pid = self.pid;
        let unsupported = |reason| SwitchError::Unsupported { pid, reason };
        let go = match &self.go {
            None => return Err(unsupported("it is not a Go program".to_owned())),
            Some(Err(reason)) => return Err(unsupported(reason.clone())),
            Some(Ok(go)) => go,
        };
        let address = go
            .address(GoVariable::MemProfileRate)
            .map_err(unsupported)?;
        let switch = |found| SamplerSwitch::open(&self.process, address, found, 0);
        let rate = self.sample_rate(go).map_err(unsupported)?;
        let is_left_on = || rate == SAMPLER_RATE && go.binary.sampler_linked_off() == Ok(true);
        match rate {
            0 => switch(0).map(HeapSampler::Off),
            rate if is_left_on() => switch(rate).map(HeapSampler::Off),
            rate => Ok(HeapSampler::On(rate)),
        }
    }

    fn find_go(
        &self,
        image: Bytes,
        map: &AddressMap,
    ) -> Result<Option<Result<GoTarget, String>>, TargetError> {
        const ELFCLASS64: u8 = 2;
        const EM_X86_64: [u8; 2] = 62_u16.to_le_bytes();
        if image.get(4) != Some(&ELFCLASS64) || image.get(18..20) != Some(&EM_X86_64) {
            return Err(TargetError::Unsupported {
                pid: self.pid,
                reason: "only 64-bit x86 executables are supported".to_owned(),
            });
        }
        Ok(match GoBinary::parse(image) {
            Ok(None) => None,
            Ok(Some(binary)) => Some(
                map.load_bias(&binary)
                    .map(|bias| GoTarget { binary, bias })
                    .ok_or_else(|| "the executable is not mapped".to_owned()),
            ),
            Err(error) => Some(Err(error.to_string())),
        })
    }
}

impl Linked {
    fn of(image: &Bytes) -> Self {
        Elf::parse(image.clone()).map_or_else(
            |_| Self::default(),
            |elf| Self {
                stripped: !elf.has_symbols(),
                pie: elf.pie,
                is_static: !elf.has_interpreter,
            },
        )
    }
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Its threads.
    pub threads: u64,
    /// `disabled`, `strict`, `filter`, or `unknown` where the kernel does not say.
    pub seccomp: &'static str,
    /// A debugger is attached.
    pub is_traced: bool,
}

fn refusal(pid: i32, error: ProcError) -> TargetError {
    match error {
        ProcError::NotFound(_) => TargetError::Gone { pid },
        ProcError::PermissionDenied(_) => TargetError::NotPermitted { pid },
        ProcError::Io(error, _) => match error.raw_os_error() {
            Some(code) if code == nix::libc::ESRCH || code == nix::libc::ENOENT => {
                TargetError::Gone { pid }
            }
            Some(code) if code == nix::libc::EPERM || code == nix::libc::EACCES => {
                TargetError::NotPermitted { pid }
            }
            _ => TargetError::Other { pid, source: error },
        },
        other => TargetError::Other {
            pid,
            source: io::Error::other(other.to_string()),
        },
    }
}
