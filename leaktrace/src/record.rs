//! `leaktrace record`: attach, drain each interval, close the file, all of it undone on every way
//! out.

mod file;
mod header;
mod heap_profile;
mod rules;
mod stop;

use std::{
    collections::HashSet,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    address_space::AddressSpace,
    capture::{CaptureWriter, schema},
    drain::{Drain, Goroutines, Kernel, Purpose},
    inventory::{MemoryReader, goroutines},
    loader::{KernelLog, LoadError, Loaded, MapSizes, check_host, ensure_tracefs},
    output,
    plan::{Families, Plan},
    planning,
    sampling::{self, OwnSampling},
    symbolize::{self, PcKind},
    target::{AddressMap, Target, maps::Modules},
};

use self::{
    heap_profile::HeapProfile,
    stop::{Ends, StopSignals},
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
    /// The capture file; it must not exist yet. `None`: a name made from the target and the time.
    pub file: Option<PathBuf>,
    /// How long; `None`: until a signal or the target's end.
    pub duration: Option<Duration>,
    /// Length of an interval.
    pub interval: Duration,
    /// Which probes.
    pub families: Families,
    /// Bytes for each sample of our own sampling of a Go heap.
    pub sample_bytes: u64,
    /// Switch a Go heap sampler on that is off: the one thing that writes to the target.
    pub go_enable_heap_profile: bool,
    /// Sizes of the kernel's maps.
    pub sizes: MapSizes,
    /// Write the kernel side's diagnostic log to stderr.
    pub kernel_log: bool,
}

/// What came of it.
pub struct Recorded {
    /// The capture file.
    pub file: PathBuf,
    /// How the window ended.
    pub end: schema::End,
}

/// Told what happens, for people.
pub trait Progress {
    /// Probes are live.
    fn attached(&mut self, target: &Target, plan: &Plan, file: &Path);
    /// Something worth knowing.
    fn note(&mut self, text: &str);
    /// The window is closed, symbols are being looked up.
    fn symbolizing(&mut self);
}

/// Records until the window ends, then symbolizes and closes the file.
///
/// # Errors
///
/// The target or the kernel cannot be traced, or the file cannot be written. Whatever intervals
/// were written stay readable.
pub fn record(options: &Options, progress: &mut dyn Progress) -> Result<Recorded> {
    check_host()?;
    ensure_tracefs()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    runtime.block_on(run(options, progress))
}

async fn run(options: &Options, progress: &mut dyn Progress) -> Result<Recorded> {
    // Before anything is attached, so that no signal can end the process half-way.
    let signals = StopSignals::catch()?;

    let target = Target::open(options.pid)?;
    // SAFETY: `target` owns the pidfd and outlives the registration.
    let exit = unsafe { AsyncFd::register_with_interest(target.pidfd(), Interest::READABLE) }
        .map_err(io::Error::from)
        .context("failed to watch the target's pidfd")?;
    let mut ends = Ends { signals, exit };
    let mut heap_profile = HeapProfile::look(&target, options.go_enable_heap_profile)?;
    let plan = planning::make_plan(&target, options.families, heap_profile.planned_rate());
    heap_profile.suits(&plan)?;
    let path = match &options.file {
        Some(path) => path.clone(),
        None => file::default_file(&target),
    };
    let mut loaded = Loaded::load(target.pid, &plan, options.sizes, options.kernel_log)?;
    let mut kernel_log = options
        .kernel_log
        .then(|| loaded.kernel_log())
        .transpose()?;
    let mut writer = CaptureWriter::new(output::create(&path)?)
        .with_context(|| format!("failed to write `{}`", path.display()))?;

    let attached = attach(
        options,
        &target,
        &plan,
        &mut heap_profile,
        &mut loaded,
        &mut writer,
    );
    let watched = match attached {
        Ok(mut session) => {
            progress.attached(&target, &plan, &path);
            if let Some(note) = heap_profile.note() {
                progress.note(&note);
            }
            let end = watch(
                options,
                &plan,
                &mut session,
                &mut loaded,
                &mut writer,
                &mut kernel_log,
                &mut ends,
            );
            end.await.map(|end| (session, end))
        }
        Err(error) => {
            // Nothing was recorded: leave no file that says otherwise.
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
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
        progress.note(&left);
        session.limits.push(limit("the end of the sampling", &left));
        end
    });
    progress.symbolizing();
    session.close(writer, end, sampler_end)?;
    Ok(Recorded { file: path, end })
}

/// Records intervals until the window ends.
async fn watch(
    options: &Options,
    plan: &Plan,
    session: &mut Session<'_>,
    loaded: &mut Loaded,
    writer: &mut CaptureWriter<File>,
    kernel_log: &mut Option<KernelLog>,
    ends: &mut Ends<'_>,
) -> Result<schema::End> {
    let target = session.target;
    let mut own = OwnSampling::start(target, plan, options.sample_bytes, &mut session.drain)?;
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
            _ = ticks.tick() => session.interval(writer, false)?,
            _ = event_ticks.tick() => {
                session.drain.take_events();
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
    session.memory.whole_next();
    session.interval(writer, true)?;
    Ok(end)
}

/// What is attached, and what has been seen of it.
struct Session<'a> {
    target: &'a Target,
    drain: Drain,
    memory: MemoryReader<'a>,
    goroutines: Option<Goroutines<'a>>,
    modules: Modules,
    schema_modules: Vec<schema::Module>,
    mappings: Vec<schema::Mapping>,
    addresses: HashSet<(u64, PcKind)>,
    limits: Vec<schema::Limit>,
    start: Instant,
    intervals: u32,
    t_ns: u64,
}

fn attach<'a>(
    options: &Options,
    target: &'a Target,
    plan: &Plan,
    heap_profile: &mut HeapProfile,
    loaded: &mut Loaded,
    writer: &mut CaptureWriter<File>,
) -> Result<Session<'a>> {
    let mut modules = Modules::default();
    let mut limits = Vec::new();
    if options.families.vm {
        let (rules, mut left_out) = rules::frame_rules(target, &mut modules, &mut limits)?;
        left_out += loaded.set_frame_rules(rules)?;
        if left_out > 0 {
            limits.push(schema::Limit {
                what: "callers of some system calls in code without frame pointers".to_owned(),
                reason: format!("{left_out} frame rules were over the bound"),
            });
        }
    }
    let kernel = Kernel::take(loaded, options.sizes)?;
    loaded.attach(plan, target)?;
    // Now that no sample can be missed.
    heap_profile.turn_on()?;
    let start = Instant::now();
    let clocks = (unix_ns(), monotonic_ns());
    // After the probes are live, so that nothing falls between: events of mappings that are
    // already in this picture change it to the same again.
    let map = target.address_map()?;
    let go_heap = sampling::go_heap(target, plan, options.sample_bytes, options.sizes);
    writer
        .header(&header::header(options, target, plan, heap_profile, clocks))
        .context("failed to write the capture's header")?;
    let goroutines = match &target.go {
        Some(Ok(go)) if options.families.go || options.families.goroutine => {
            // Why not is in the plan.
            let reader = goroutines::Goroutines::new(target.memory, go).ok();
            reader.map(|reader| Goroutines::new(reader, clocks.1, options.interval))
        }
        _ => None,
    };
    let mut session = Session {
        target,
        drain: Drain::new(kernel, address_space(target, &map), go_heap),
        memory: MemoryReader::new(target),
        goroutines,
        modules,
        schema_modules: Vec::new(),
        mappings: Vec::new(),
        addresses: HashSet::new(),
        limits,
        start,
        intervals: 0,
        t_ns: 0,
    };
    session.interval(writer, false)?;
    Ok(session)
}

impl Session<'_> {
    fn interval(&mut self, writer: &mut CaptureWriter<File>, is_last: bool) -> Result<()> {
        self.t_ns = self.start.elapsed().as_nanos() as u64;
        let mut interval = self.drain.interval(self.t_ns)?;
        interval.memory = self.memory.read();
        if let Some(goroutines) = &mut self.goroutines {
            let purpose = match is_last {
                true => Purpose::Last(self.drain.live_samples()?),
                false => Purpose::Interval,
            };
            goroutines.creations(&mut interval, self.drain.creations()?);
            goroutines.interval(&mut interval, monotonic_ns(), &purpose);
        }
        self.addresses.extend(symbolize::addresses_in(&interval));
        if self.intervals == 0 || self.in_unknown_code(&interval) {
            self.find_mappings(&mut interval);
        }
        writer
            .interval(&interval)
            .context("failed to write an interval to the capture")?;
        self.intervals += 1;
        Ok(())
    }

    fn in_unknown_code(&self, interval: &schema::Interval) -> bool {
        let known = |(pc, _): (u64, PcKind)| {
            let mut mappings = self.mappings.iter();
            mappings.any(|m| (m.start..m.end).contains(&pc))
        };
        !symbolize::addresses_in(interval).all(known)
    }

    fn find_mappings(&mut self, interval: &mut schema::Interval) {
        let Ok(map) = self.target.address_map() else {
            return;
        };
        for mapping in map.executable() {
            let (start, end) = mapping.address;
            if self
                .mappings
                .iter()
                .any(|m| (m.start, m.end) == (start, end))
            {
                continue;
            }
            let index = self.modules.intern(&map, mapping);
            let id = index as u32 + 1;
            let is_new = self.schema_modules.iter().all(|module| module.id != id);
            if is_new && let Some(module) = self.modules.get(index) {
                let module = schema::Module {
                    id,
                    path: module.path.clone(),
                    build_id: module.build_id.clone().unwrap_or_default(),
                };
                self.schema_modules.push(module.clone());
                interval.modules.push(module);
            }
            let mapping = schema::Mapping {
                start,
                end,
                file_offset: mapping.offset,
                module: id,
            };
            self.mappings.push(mapping);
            interval.mappings.push(mapping);
        }
    }

    /// Names every address seen, from the files that were mapped (kept open since), and closes
    /// the capture.
    fn close(
        mut self,
        mut writer: CaptureWriter<File>,
        end: schema::End,
        sampler_end: schema::SamplerEnd,
    ) -> Result<()> {
        let open = |wanted: &symbolize::Module| {
            self.modules
                .open_path(&wanted.path, wanted.build_id.as_deref())
        };
        let addresses: Vec<_> = self.addresses.iter().copied().collect();
        let symbols =
            symbolize::Symbolizer::from_capture(&self.schema_modules, &self.mappings, open)
                .symbols(&addresses);
        writer
            .symbols(&symbols)
            .context("failed to write the symbols to the capture")?;
        let mut losses = self.drain.losses();
        if let Some(goroutines) = &self.goroutines {
            losses.extend(goroutines.losses());
            self.limits.extend(goroutines.limit());
        }
        let close = schema::Close {
            end: end.into(),
            t_ns: self.t_ns,
            intervals: self.intervals,
            events: self.drain.events(),
            losses,
            limits: self
                .limits
                .into_iter()
                .chain(self.memory.into_limits())
                .collect(),
            sampler_end: sampler_end.into(),
        };
        let file = writer
            .close(&close)
            .context("failed to close the capture")?;
        file.sync_all().context("failed to close the capture")
    }
}

fn limit(what: &str, reason: &str) -> schema::Limit {
    schema::Limit {
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}

/// The address space at the attach.
fn address_space(target: &Target, map: &AddressMap) -> AddressSpace {
    let mut space = AddressSpace::new(rustix::param::page_size() as u64);
    let mut program_break = target.start_brk;
    for (start, end, heap) in map.ranges() {
        space.preexisting(start, end, heap);
        if heap {
            program_break = Some(program_break.map_or(end, |at| at.max(end)));
        }
    }
    if let Some(address) = program_break {
        space.program_break(address);
    }
    space
}

fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// `CLOCK_MONOTONIC`, the kernel side's clock.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
