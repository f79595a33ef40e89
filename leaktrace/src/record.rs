//! A recording: attach, drain each interval, detach, all of it undone on every way out.
//!
//! [`run()`] drives it and hands what comes of it to a [`Recorder`], block by block. [`record()`] is
//! `leaktrace record`, whose recorder writes a file.

mod attach;
mod clocks;
mod code;
mod ends;
mod file;
mod forks;
mod header;
mod heap_profile;
mod late_objects;
mod malloc;
mod overhead;
mod recorder;
mod references;
mod retention;
mod unwind;

use std::{future::Future, io, pin::pin, thread::JoinHandle, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    capture::schema,
    drain::{Drain, Goroutines, Purpose},
    inventory::{MemoryReader, goroutines::LiveSample},
    loader::{
        KernelLog, LoadError, Loaded, MapSizes, ProbeSet, UnwindMaps, check_host, ensure_tracefs,
    },
    overhead::Family,
    plan::{Families, Plan, Uprobe},
    planning,
    privileges::{self, Phase},
    sampling::OwnSampling,
    stop_signals::StopSignals,
    target::{Target, maps::Modules},
    windows::MallocWindows,
};

use self::{
    clocks::Suspended, ends::Ends, forks::Forks, forks::new_processes, heap_profile::HeapProfile,
    late_objects::LateObjects, overhead::Overhead, unwind::Unwind,
};
pub(crate) use self::{clocks::monotonic_ns, file::default_file};
pub use self::{
    code::Code,
    file::{Progress, Recorded, State, record},
    malloc::Sample,
    recorder::{Ending, Now, Recorder},
};

/// How often the ring buffer is emptied at least.
const EVENT_TICK: Duration = Duration::from_millis(100);

/// The same where leaktrace samples a Go heap itself: how often it looks whether a collection has told
/// which objects live. Not at the collection's end: waking up then would take a processor from the
/// target while all of it waits.
const LOOK_TICK: Duration = Duration::from_millis(20);

/// What to record.
pub struct Options {
    /// The target.
    pub pid: i32,
    /// How long; `None`: until a signal or the target's end.
    pub duration: Option<Duration>,
    /// Length of an interval.
    pub interval: Duration,
    /// Which probes.
    pub families: Families,
    /// How densely leaktrace samples what it samples itself; `None`: it chooses.
    pub sample: Option<Sample>,
    /// Most that probes may cost, in percent of the processor time that the target uses, or of one processor;
    /// `None`: the default, and no bound for native allocators where `sample` is given.
    pub max_overhead: Option<f64>,
    /// Switch a Go heap sampler on that is off: the one thing that writes to the target.
    pub go_enable_heap_profile: bool,
    /// Sizes of the kernel's maps.
    pub sizes: MapSizes,
    /// Write the kernel side's diagnostic log to stderr.
    pub kernel_log: bool,
    /// Trace what was asked for whatever it costs the target.
    pub force: bool,
    /// Look at the end for what keeps the objects of leaks, in so many bytes of memory at most.
    pub retention: Option<u64>,
}

/// Records until the window ends; `stop` ends it as a signal does.
///
/// # Errors
///
/// The target or the kernel cannot be traced, or the recorder has refused.
pub fn run(
    options: &Options,
    recorder: &mut dyn Recorder,
    stop: impl Future<Output = ()>,
) -> Result<Ending> {
    privileges::keep(Phase::Attach);
    check_host()?;
    ensure_tracefs()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    runtime.block_on(run_window(options, recorder, stop))
}

async fn run_window(
    options: &Options,
    recorder: &mut dyn Recorder,
    stop: impl Future<Output = ()>,
) -> Result<Ending> {
    // Before anything is attached, so that no signal can end the process half-way.
    let signals = StopSignals::catch()?;

    let target = Target::open(options.pid)?;
    // SAFETY: `target` owns the pidfd and outlives the registration.
    let exit = unsafe { AsyncFd::register_with_interest(target.pidfd(), Interest::READABLE) }
        .map_err(io::Error::from)
        .context("failed to watch the target's pidfd")?;
    let stop = pin!(stop);
    let mut ends = Ends {
        signals,
        exit,
        stop,
    };
    let mut heap_profile = HeapProfile::look(&target, options.go_enable_heap_profile)?;
    let mut modules = Modules::default();
    let plan = planning::make_plan(
        &target,
        options.families,
        heap_profile.planned_rate(),
        &mut modules,
    );
    heap_profile.suits(&plan)?;
    let unwind = Unwind::prepare(&target, &target.address_map()?, &mut modules, options.sizes);
    let mut loaded = Loaded::load(target.pid, &plan, unwind.sizes(), options.kernel_log)?;
    let mut kernel_log = options
        .kernel_log
        .then(|| loaded.kernel_log())
        .transpose()?;
    recorder.open(&target)?;

    let attached = attach::attach(
        options,
        &target,
        &plan,
        &mut heap_profile,
        &mut loaded,
        (unwind, modules),
        recorder,
    );
    let watched = match attached {
        Ok(mut session) => {
            let attaches_later = plan.watches_objects
                || plan.uprobes.iter().any(|probe| probe.in_windows)
                || options.sizes.processes > 0;
            privileges::keep(match attaches_later {
                true => Phase::Probe,
                false => Phase::Read,
            });
            recorder.attached(&target, &plan);
            if let Some(note) = heap_profile.note() {
                recorder.note(&note);
            }
            let end = watch(
                options,
                &plan,
                &mut session,
                &mut loaded,
                recorder,
                &mut kernel_log,
                &mut ends,
            );
            end.await.map(|end| (session, end))
        }
        Err(error) => Err(error),
    };
    // Probes and sampler off first, whatever happened: the target owes us nothing while we look up
    // symbols.
    let put_back = heap_profile.put_back();
    drop(loaded);
    let (mut session, end) = match (watched, &put_back) {
        (Ok(watched), _) => watched,
        (Err(error), Ok(_)) => return Err(error),
        (Err(error), Err((_, left))) => return Err(error.context(left.clone())),
    };
    let sampler_end = put_back.unwrap_or_else(|(end, left)| {
        recorder.note(&left);
        session.limits.push(limit("the end of the sampling", &left));
        end
    });
    recorder.detached();
    let own_samples = match (options.retention, &plan.refill) {
        (Some(_), Some(_)) => session.drain.live_samples()?,
        _ => Vec::new(),
    };
    Ok(session.end(end, sampler_end, own_samples))
}

/// Records intervals until the window ends.
async fn watch(
    options: &Options,
    plan: &Plan,
    session: &mut Session<'_>,
    loaded: &mut Loaded,
    recorder: &mut dyn Recorder,
    kernel_log: &mut Option<KernelLog>,
    ends: &mut Ends<'_>,
) -> Result<schema::End> {
    let target = session.target;
    let mut own = OwnSampling::start(
        target,
        plan,
        Sample::of_go_heap(options.sample),
        &mut session.drain,
    )?;
    let mut windows = MallocWindows::start(
        target,
        session.windows.take(),
        malloc::budget(options).unwrap_or_default(),
        &mut session.drain,
    )?;
    let start = session.start;
    let mut ticks = interval_at(start + options.interval, options.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let tick = match plan.refill {
        Some(_) => LOOK_TICK,
        None => EVENT_TICK,
    };
    let mut event_ticks = interval_at(start + tick, tick.min(options.interval));
    event_ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let deadline = options.duration.map(|duration| start + duration);
    let end = loop {
        tokio::select! {
            biased;
            () = ends.signals.recv() => break schema::End::Signal,
            () = &mut ends.stop => break schema::End::Signal,
            _ = ends.exit.readable() => break schema::End::TargetExit,
            () = sleep_until(deadline.unwrap_or(start)), if deadline.is_some() => {
                break schema::End::Duration;
            }
            () = sleep_until(own.at()), if own.is_on() => {
                match own.act(loaded, &mut session.drain) {
                    Ok(()) => {}
                    Err(LoadError::Gone { .. }) => break schema::End::TargetExit,
                    Err(error) => {
                        let reason = format!("{:#}", anyhow::Error::new(error));
                        session.limits.push(limit("Go heap allocations after a while", &reason));
                        own.give_up();
                    }
                }
            }
            () = sleep_until(windows.at()), if windows.is_on() => {
                match windows.act(&mut session.drain) {
                    Ok(()) => {}
                    Err(LoadError::Gone { .. }) => break schema::End::TargetExit,
                    Err(error) => {
                        let reason = format!("{:#}", anyhow::Error::new(error));
                        session.limits.push(limit("native allocations after a while", &reason));
                        windows.stop(&mut session.drain)?;
                    }
                }
            }
            () = new_processes(session.forks.as_ref()) => session.take_events(recorder)?,
            _ = ticks.tick(), if !windows.is_open() => {
                session.interval(recorder, false)?;
                session.keep_to_budget(loaded, &mut windows, recorder)?;
                match session.look_for_objects(loaded, &mut windows) {
                    Err(LoadError::Gone { .. }) => break schema::End::TargetExit,
                    looked => looked?,
                }
            }
            _ = event_ticks.tick(), if !windows.is_open() => {
                session.take_events(recorder)?;
                if session.drain.code_was_mapped() {
                    session.update_unwind()?;
                }
                if session.drain.wants_look() {
                    session.drain.look_at_objects();
                }
                if let Some(log) = kernel_log {
                    log.flush();
                }
            }
        }
        if session.drain.target_called_exec() {
            session.limits.push(limit(
                "the target after its execve",
                "it became another program; the window ends there",
            ));
            break schema::End::TargetExit;
        }
    };
    own.stop();
    let in_windows = windows.is_on();
    windows.stop(&mut session.drain)?;
    session.memory.whole_next();
    session.interval(recorder, true)?;
    if let Some(max_memory) = options.retention {
        let look = session.look_for_references(max_memory, in_windows, &mut ends.signals, recorder);
        look.await;
    }
    session.forks.iter_mut().for_each(Forks::stop);
    for detaching in session.detaching.drain(..) {
        // It can only have panicked, which it has said itself.
        let _ = detaching.join();
    }
    let is_oom = end == schema::End::TargetExit && session.drain.kernel().is_oom_victim()?;
    Ok(if is_oom { schema::End::TargetOom } else { end })
}

/// What is attached, and what has been seen of it.
struct Session<'a> {
    target: &'a Target,
    drain: Drain,
    windows: Option<ProbeSet>,
    forks: Option<Forks>,
    memory: MemoryReader<'a>,
    goroutines: Option<Goroutines<'a>>,
    late_objects: Option<LateObjects>,
    code: Code,
    unwind: (Unwind, UnwindMaps),
    overhead: Option<Overhead<'a>>,
    detaching: Vec<JoinHandle<()>>,
    limits: Vec<schema::Limit>,
    retention: Option<schema::Retention>,
    suspended: Suspended,
    start: Instant,
    intervals: u32,
    t_ns: u64,
}

impl Session<'_> {
    /// Takes what the kernel side tells of, and sees to the processes that the target has made.
    fn take_events(&mut self, recorder: &mut dyn Recorder) -> Result<(), LoadError> {
        self.drain.take_events();
        if let Some(forks) = &mut self.forks {
            let told = forks.act(&mut self.drain)?;
            told.iter().for_each(|text| recorder.note(text));
        }
        Ok(())
    }

    fn interval(&mut self, recorder: &mut dyn Recorder, is_last: bool) -> Result<()> {
        // Blocks of processes that have ended are not in it.
        self.take_events(recorder)?;
        self.t_ns = self.start.elapsed().as_nanos() as u64;
        let mut interval = self.drain.interval(self.t_ns)?;
        interval.memory = self.memory.read();
        // Of a process that is being killed the kernel takes the memory before it is gone.
        if self.drain.kernel().is_oom_victim()? {
            interval.memory = None;
        }
        if let Some(goroutines) = &mut self.goroutines {
            let purpose = match is_last {
                true => Purpose::Last(self.drain.live_samples()?),
                false => Purpose::Interval,
            };
            // While probes go, one after the other, what they count does not add up.
            let overhead = self.overhead.as_ref();
            if overhead.is_none_or(|overhead| overhead.has(Family::Goroutine)) {
                goroutines.creations(&mut interval, self.drain.creations()?);
            }
            goroutines.interval(&mut interval, monotonic_ns(), &purpose);
        }
        if let Some(overhead) = &mut self.overhead {
            let (costs, lost) = overhead.read();
            interval.probe_costs = costs;
            interval.losses.extend(lost);
        }
        if self.code.take(&mut interval, self.target) {
            self.update_unwind()?;
        }
        self.intervals += 1;
        let now = Now {
            limits: &self.limits(),
            code: &self.code,
            events: self.drain.events(),
            runs: self.overhead.as_ref().map(Overhead::runs),
        };
        recorder.interval(interval, &now)
    }

    /// Takes the probes away that cost most, if all together cost more than they may.
    fn keep_to_budget(
        &mut self,
        loaded: &mut Loaded,
        windows: &mut MallocWindows<'_>,
        recorder: &mut dyn Recorder,
    ) -> Result<()> {
        let Some(overhead) = &mut self.overhead else {
            return Ok(());
        };
        let Some(gone) = overhead.look() else {
            windows.may_cost(overhead.left());
            return Ok(());
        };
        let limit = overhead.limit(&gone, self.t_ns);
        recorder.note(&format!(
            "no longer traced: {}: {}",
            limit.what, limit.reason
        ));
        self.limits.push(limit);
        if gone.family == Family::Malloc {
            self.drain.kernel().stop_malloc()?;
            self.late_objects = None;
            self.forks.iter_mut().for_each(Forks::stop);
        }
        self.drain.end(overhead::kinds(gone.family));
        self.interval(recorder, false)?;
        let is_gone = |program: &str| Family::of(program).is_some_and(|of| of.0 == gone.family);
        self.detaching.push(loaded.detach(is_gone));
        Ok(())
    }

    /// What is mapped from now on is walked by its call frame information, too.
    fn update_unwind(&mut self) -> Result<()> {
        let (unwind, maps) = &mut self.unwind;
        if let Ok(map) = self.target.address_map() {
            unwind.update(maps, &map, self.code.modules())?;
        }
        Ok(())
    }

    /// Attaches probes in native code that has been mapped meanwhile.
    fn look_for_objects(
        &mut self,
        loaded: &mut Loaded,
        windows: &mut MallocWindows<'_>,
    ) -> Result<(), LoadError> {
        if let Some(objects) = &mut self.late_objects {
            let overhead = &mut self.overhead;
            let attach = |probes: &[Uprobe]| {
                match windows.is_on() {
                    true => windows.add(probes, loaded)?,
                    false => loaded.attach_uprobes(probes, self.target)?,
                }
                overhead.iter_mut().try_for_each(|its| its.include(loaded))
            };
            let unseen = objects.look(self.target, self.code.modules(), attach)?;
            self.limits.extend(unseen);
        }
        Ok(())
    }

    fn limits(&self) -> Vec<schema::Limit> {
        let goroutines = self.goroutines.as_ref().and_then(Goroutines::limit);
        let own = self.limits.iter().cloned();
        own.chain(goroutines)
            .chain(malloc::limit(self.drain.coarsened()))
            .chain(self.forks.iter().flat_map(Forks::limits))
            .chain(self.unwind.0.limits())
            .chain(self.memory.limits().iter().cloned())
            .chain(self.suspended.limit(&Suspended::now()))
            .collect()
    }

    fn end(
        self,
        end: schema::End,
        sampler_end: schema::SamplerEnd,
        own_samples: Vec<LiveSample>,
    ) -> Ending {
        let mut losses = self.drain.losses();
        if let Some(goroutines) = &self.goroutines {
            losses.extend(goroutines.losses());
        }
        losses.extend(self.overhead.as_ref().and_then(Overhead::loss));
        let close = schema::Close {
            end: end.into(),
            t_ns: self.t_ns,
            intervals: self.intervals,
            events: self.drain.events(),
            losses,
            limits: self.limits(),
            sampler_end: sampler_end.into(),
        };
        Ending {
            code: self.code,
            close,
            retention: self.retention,
            own_samples,
        }
    }
}

fn limit(what: &str, reason: &str) -> schema::Limit {
    schema::Limit {
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}
