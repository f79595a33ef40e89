//! Loads the kernel object, attaches the plan, and undoes all of it.
//!
//! Contract: whatever way leaktrace ends, nothing stays behind. Programs, maps and links are
//! held by file descriptors of this process and nothing is pinned, so the kernel removes them
//! with it, after `kill -9` too. With `drain` this is the only module that knows aya.

mod batch;
mod code;
mod copies;
mod host;
mod links;
mod log;
mod probe_set;
mod registers;
mod run_stats;
mod sizes;
mod thread_pointer;
mod tracefs;
mod unwind;
mod uretprobe;

use std::{
    fs,
    num::NonZeroU32,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::HashMap,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeLink, UProbeScope},
    },
};
use leaktrace_common::AllocatorCall;

use crate::{
    go::layout::{Span, Special},
    plan::{Plan, Tracepoint, Uprobe},
    target::Target,
};

pub use self::{
    batch::for_each_entry,
    code::check_code,
    copies::leaves_programs_out,
    host::{Feature, check_host, features},
    links::are_sessions_known,
    log::KernelLog,
    probe_set::{Closing, OpenSet, ProbeSet},
    registers::ThreadRegisters,
    run_stats::{Counted, RunCounter, Runs},
    sizes::MapSizes,
    tracefs::ensure_tracefs,
    unwind::UnwindMaps,
    uretprobe::uretprobes_bear_seccomp,
};
use self::{
    copies::Copies,
    probe_set::{Link, Programs},
};

/// The kernel side, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/leaktrace.bpf.o"));

/// Why the probes could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Capabilities are missing.
    #[error(
        "not permitted: leaktrace lacks {missing}; run it as root, or give it that (docs/security.md)"
    )]
    NotPermitted {
        /// Their names.
        missing: String,
    },
    /// leaktrace runs in a container.
    #[error(
        "leaktrace runs in a pid namespace of its own, where PIDs are not the kernel's: run it on \
         the host, or in a container with the host's pid namespace (`--pid=host`)"
    )]
    NotOnHost,
    /// The kernel lacks something.
    #[error("this kernel lacks {what}: {remedy}")]
    Unsupported {
        /// What it lacks.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The target went away meanwhile.
    #[error("process {pid} ended while leaktrace was attaching to it")]
    Gone {
        /// The target.
        pid: i32,
    },
    /// The mapped code is not the file's.
    #[error(
        "the code of `{function}` in memory differs from the executable file: another tool has \
         changed it, and a probe there could kill the process"
    )]
    CodeDiffers {
        /// The function.
        function: &'static str,
    },
    /// The file that the process runs is another one than is found by its name.
    #[error(
        "the probe in `{function}` does not reach process {pid}: its file was changed in an overlay file system since \
         it was mapped, if only by chmod or touch; start the process anew, or leave its family out of --probe"
    )]
    Elsewhere {
        /// The target.
        pid: i32,
        /// The function.
        function: &'static str,
    },
    /// A probe that was asked for would be hit too often.
    #[error(
        "{what} would meet probes some {rate} times a second, which would slow the process down many times: \
         {remedy}, or force it with --force"
    )]
    TooOften {
        /// What is traced.
        what: &'static str,
        /// How often, about.
        rate: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Anything else.
    #[error("failed to {what}")]
    Other {
        /// What was tried.
        what: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LoadError {
    /// Failed to do `what`.
    pub(crate) fn other(
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Other {
            what: what.to_owned(),
            source: source.into(),
        }
    }

    /// The same for what cannot do without a [`ProbeSet`]: it is the kernel that has none, most likely.
    pub(crate) fn without_probe_sets(self, remedy: &str) -> Self {
        match self {
            Self::Other { .. } => Self::Unsupported {
                what: format!(
                    "probes that come and go together ({:#})",
                    anyhow::Error::new(self)
                ),
                remedy: remedy.to_owned(),
            },
            error => error,
        }
    }
}

/// The kernel side, loaded and attached. Dropping it detaches everything.
pub struct Loaded {
    /// What is attached for good, with the name of its program.
    attached: Vec<(&'static str, Attached)>,
    /// Programs and maps.
    pub(crate) ebpf: Ebpf,
    /// For probes that are attached together; none where the kernel cannot do that.
    programs: Option<Programs>,
    /// Those of probes that are attached now and then.
    in_windows: Vec<(&'static str, Arc<OwnedFd>)>,
    /// How often the program of a system call is attached.
    system_call_copies: u32,
}

impl Loaded {
    /// Loads the object for the process `tgid`, with maps of these sizes. Attaches nothing.
    /// `kernel_log` keeps the kernel side's diagnostic log in, see [`Loaded::kernel_log`], and the
    /// verifier's in the error of a program that it refuses.
    ///
    /// # Errors
    ///
    /// The kernel refuses the object.
    pub fn load(
        tgid: i32,
        plan: &Plan,
        sizes: MapSizes,
        kernel_log: bool,
    ) -> Result<Self, LoadError> {
        let log_level: u8 = if kernel_log { u8::MAX } else { 0 };
        let tgid = tgid as u32;
        let layout = plan.go.as_ref().map(|go| &go.layout);
        let special =
            |field: fn(&Special) -> u64| layout.map_or(0, |layout| field(&layout.special) as u32);
        let kind_offset = special(|special| special.kind);
        let kind_profile = special(|special| u64::from(special.kind_profile));
        let bucket_offset = special(|special| special.bucket);
        let size_offset = layout.map_or(0, |layout| layout.bucket.size as u32);
        let refill = plan.refill.as_ref();
        let span =
            |field: fn(&Span) -> u64| refill.map_or(0, |refill| field(&refill.layout.span) as u32);
        let (span_start, span_nelems) = (span(|s| s.start_addr), span(|s| s.nelems));
        let (span_allocs, span_elemsize) = (span(|s| s.alloc_count), span(|s| s.elemsize));
        let span_class = span(|s| s.spanclass);
        let span_register = refill.map_or(0, |refill| refill.span_register);
        let sweepgen = refill.map_or(0, |refill| refill.sweepgen);
        let gopc = plan.gopc.unwrap_or(0) as u32;
        let system_call_copies = copies::of_system_calls();
        let thread_pointer = (plan.malloc && are_sessions_known()).then(thread_pointer::offset);
        let thread_pointer = thread_pointer.flatten().unwrap_or(0);
        let btf = Btf::from_sys_fs().ok();
        let ebpf = EbpfLoader::new()
            .btf(btf.as_ref())
            .verifier_log_level(match kernel_log {
                true => VerifierLogLevel::default(),
                false => VerifierLogLevel::DISABLE,
            })
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global("THREAD_POINTER", &thread_pointer, true)
            .override_global("TARGET_TGID", &tgid, true)
            .override_global("SYSTEM_CALL_COPIES", &system_call_copies, true)
            .override_global("FOLLOWS_FORKS", &u32::from(sizes.processes > 0), true)
            .override_global("LIVE_CAPACITY", &sizes.live_objects, true)
            .override_global("GO_SPECIAL_KIND", &kind_offset, true)
            .override_global("GO_KIND_PROFILE", &kind_profile, true)
            .override_global("GO_SPECIAL_BUCKET", &bucket_offset, true)
            .override_global("GO_BUCKET_SIZE", &size_offset, true)
            .override_global("GO_SPAN_START", &span_start, true)
            .override_global("GO_SPAN_NELEMS", &span_nelems, true)
            .override_global("GO_SPAN_ALLOC_COUNT", &span_allocs, true)
            .override_global("GO_SPAN_ELEMSIZE", &span_elemsize, true)
            .override_global("GO_SPAN_CLASS", &span_class, true)
            .override_global("GO_SPAN_REGISTER", &span_register, true)
            .override_global("GO_SWEEPGEN", &sweepgen, true)
            .override_global("GO_G_GOPC", &gopc, true)
            .map_max_entries("LIVE", sizes.live_objects)
            .map_max_entries("PROCESSES", sizes.processes.max(1))
            .map_max_entries("PROCESS_NUMBERS", sizes.processes.max(1))
            .map_max_entries("STACKS", sizes.stacks)
            .map_max_entries("COUNTERS", sizes.sites)
            .map_max_entries("EVENTS", sizes.ring_bytes)
            .map_max_entries("UNWIND_ROWS", sizes.unwind_chunks)
            .map_max_entries("UNWIND_PAGES", sizes.unwind_pages)
            .map_max_entries("ALLOCATOR_CALLS", sizes.allocator_calls)
            .map_max_entries(
                "BLOCKS",
                if plan.malloc {
                    sizes.block_ring_bytes
                } else {
                    4096
                },
            )
            .map_max_entries(
                "THREADS",
                if plan.follows_threads {
                    sizes.threads
                } else {
                    1
                },
            )
            .map_max_entries(
                "SAMPLES",
                if refill.is_some() {
                    sizes.sample_ring_bytes
                } else {
                    4096
                },
            )
            .load(OBJECT)
            .map_err(|source| LoadError::other("load the BPF object", source))?;
        let programs = Programs::find(&ebpf)?;
        Ok(Self {
            attached: Vec::new(),
            ebpf,
            programs,
            in_windows: Vec::new(),
            system_call_copies,
        })
    }

    /// The kernel side's diagnostic log, to be written to stderr.
    ///
    /// # Errors
    ///
    /// The object has no log.
    pub fn kernel_log(&mut self) -> Result<KernelLog, LoadError> {
        KernelLog::take(&mut self.ebpf)
    }

    /// The programs of probes that are attached together.
    ///
    /// # Errors
    ///
    /// The kernel cannot do that.
    fn programs(&mut self) -> Result<&mut Programs, LoadError> {
        self.programs.as_mut().ok_or_else(|| {
            LoadError::other("attach probes together", "the kernel has no links for that")
        })
    }

    /// Attaches the plan's tracepoints, in their order.
    ///
    /// # Errors
    ///
    /// The first that could not be attached; those before it are gone when `self` is.
    pub fn attach_tracepoints(&mut self, plan: &Plan) -> Result<(), LoadError> {
        let mut groups = plan.tracepoints.chunk_by(|a, b| a.program == b.program);
        groups.try_for_each(|group| self.attach_to_tracepoints(group))
    }

    /// Attaches the program of these tracepoints, which is one.
    ///
    /// # Errors
    ///
    /// The first that could not be attached.
    pub fn attach_to_tracepoints(&mut self, tracepoints: &[Tracepoint]) -> Result<(), LoadError> {
        let Some(first) = tracepoints.first() else {
            return Ok(());
        };
        let count = match first.category {
            "syscalls" => self.system_call_copies,
            _ => 1,
        };
        let program = self.program(first.program)?;
        let attached = Attached::Tracepoints(Copies::attach(program, tracepoints, count)?);
        self.attached.push((first.program, attached));
        Ok(())
    }

    /// Attaches those of these probes that stay, in their order, as far as they are not of one program.
    ///
    /// # Errors
    ///
    /// The first probe that could not be attached.
    pub fn attach_uprobes(&mut self, probes: &[Uprobe], target: &Target) -> Result<(), LoadError> {
        let (later, now): (Vec<_>, Vec<_>) =
            probes.iter().cloned().partition(|probe| probe.in_windows);
        for probe in later {
            match &mut self.programs {
                Some(programs) => {
                    let program = programs.load(probe.program)?;
                    self.in_windows.push((probe.program, program));
                }
                None => self.load_alone(&probe).map(drop)?,
            }
        }
        let attached = self.attach_now(&now, target)?;
        self.attached.extend(attached);
        Ok(())
    }

    fn attach_now(
        &mut self,
        probes: &[Uprobe],
        target: &Target,
    ) -> Result<Vec<(&'static str, Attached)>, LoadError> {
        if self.programs.is_none() {
            let one_by_one = probes.iter();
            let attached = one_by_one.map(|probe| self.attach_uprobe(probe, target));
            return attached.collect();
        }
        let mut set = ProbeSet::default();
        set.add(probes, self, target)?;
        let links = set.open_now(target)?.into_links().into_iter();
        Ok(links
            .map(|link| (link.program, Attached::Together(link)))
            .collect())
    }

    /// Detaches the probes of these programs, on a thread of its own: the kernel takes up to a tenth of a
    /// second for each.
    pub fn detach(&mut self, is_one: impl Fn(&str) -> bool) -> JoinHandle<()> {
        let gone: Vec<_> = self
            .attached
            .extract_if(.., |(program, _)| is_one(program))
            .collect();
        thread::spawn(move || drop(gone))
    }

    /// Attaches a probe for a window. It is detached when the result is dropped, which takes a tenth of
    /// a second; the target runs on meanwhile.
    ///
    /// # Errors
    ///
    /// It cannot be attached.
    pub fn open_window(&mut self, probe: &Uprobe, target: &Target) -> Result<Window, LoadError> {
        self.attach_now(std::slice::from_ref(probe), target)
            .map(Window)
    }

    fn attach_uprobe(
        &mut self,
        probe: &Uprobe,
        target: &Target,
    ) -> Result<(&'static str, Attached), LoadError> {
        check_code(probe, target, |address| self.stands_at(address))?;
        self.set_calls(probe)?;
        let pid = target.pid;
        let executable = PathBuf::from(format!("/proc/{pid}/exe"));
        let file = probe
            .file
            .as_ref()
            .map_or(&executable, |file| &file.open_path);
        let scope = NonZeroU32::new(pid as u32).ok_or(LoadError::Gone { pid })?;
        let program = self.load_alone(probe)?;
        let link = program
            .attach(probe.file_offset, file, UProbeScope::OneProcess(scope))
            .and_then(|link| program.take_link(link))
            .map_err(|error| match fs::exists(&executable) {
                Ok(true) => program_error(probe.function, error),
                _ => LoadError::Gone { pid },
            })?;
        code::check_reached(probe, target)?;
        let attached = Attached::Alone {
            address: probe.address,
            _link: link,
        };
        Ok((probe.program, attached))
    }

    /// The program of a probe, for a perf event of its own.
    fn load_alone(&mut self, probe: &Uprobe) -> Result<&mut UProbe, LoadError> {
        let program: &mut UProbe = self.program(probe.program)?;
        match program.load() {
            // It serves several probes.
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(error) => Err(program_error(probe.function, error)),
        }
    }

    /// Whether one of its probes that stay is at this address.
    fn stands_at(&self, place: u64) -> bool {
        self.attached.iter().any(|(_, attached)| match attached {
            Attached::Tracepoints(_) => false,
            Attached::Together(link) => link.addresses.contains(&place),
            Attached::Alone { address, .. } => *address == place,
        })
    }

    /// Tells the kernel side what a call means at whose beginning the probe stands.
    fn set_calls(&mut self, probe: &Uprobe) -> Result<(), LoadError> {
        if probe.calls.is_empty() {
            return Ok(());
        }
        let map = self
            .ebpf
            .map_mut("ALLOCATOR_CALLS")
            .ok_or_else(|| LoadError::other("find a map in the BPF object", "ALLOCATOR_CALLS"))?;
        let mut map = HashMap::<_, u64, AllocatorCall>::try_from(map)
            .map_err(|error| LoadError::other("use a map", error))?;
        for (address, call) in &probe.calls {
            map.insert(address, call, 0)
                .map_err(|error| LoadError::other("write what is probed", error))?;
        }
        Ok(())
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, LoadError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
    {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| LoadError::other("find a program in the BPF object", name.to_owned()))?;
        program.try_into().map_err(|e| program_error(name, e))
    }
}

/// A link, which lasts as long as it is held.
enum Attached {
    Tracepoints(Copies),
    Together(Link),
    Alone { address: u64, _link: UProbeLink },
}

/// A probe that is attached for a while.
pub struct Window(Vec<(&'static str, Attached)>);

impl Window {
    /// Detaches the probe on a thread of its own: the kernel takes a tenth of a second for it.
    pub fn close(self) -> JoinHandle<()> {
        let Self(attached) = self;
        thread::spawn(move || drop(attached))
    }
}

fn program_error(probe: &str, error: ProgramError) -> LoadError {
    LoadError::other(&format!("attach `{probe}`"), error)
}
