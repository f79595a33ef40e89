//! The attach: every probe is live, or none is.

use anyhow::Result;
use tokio::time::Instant;

use super::{
    Code, Options, Recorder, Sample, Session, Unwind,
    clocks::{Suspended, monotonic_ns, unix_ns},
    forks::Forks,
    header,
    heap_profile::HeapProfile,
    late_objects::LateObjects,
    limit,
    malloc::{self, Begun},
    overhead::{self, Overhead},
};
use crate::{
    address_space::AddressSpace,
    drain::{Drain, Goroutines, Kernel},
    inventory::{MemoryReader, goroutines},
    loader::{Loaded, UnwindMaps},
    overhead::Family,
    plan::{Plan, Uprobe},
    sampling,
    target::{AddressMap, Target, maps::Modules},
};

/// Attaches the plan, and has the state at the attach recorded.
///
/// # Errors
///
/// A probe cannot be attached, or the recorder has refused.
pub(super) fn attach<'a>(
    options: &Options,
    target: &'a Target,
    plan: &Plan,
    heap_profile: &mut HeapProfile,
    loaded: &mut Loaded,
    (mut unwind, mut modules): (Unwind, Modules),
    recorder: &mut dyn Recorder,
) -> Result<Session<'a>> {
    let mut limits = Vec::new();
    let mut unwind_maps = UnwindMaps::take(loaded, unwind.sizes())?;
    unwind.update(&mut unwind_maps, &target.address_map()?, &mut modules)?;
    let mut kernel = Kernel::take(loaded, options.sizes)?;
    loaded.attach_tracepoints(plan)?;
    let (native, others): (Vec<_>, Vec<_>) =
        plan.uprobes.iter().cloned().partition(Uprobe::is_native);
    loaded.attach_uprobes(&others, target)?;
    if options.families.goroutine && !options.force {
        let remedy = "leave `goroutine` out of --probe, the census of goroutines needs no probe";
        overhead::refuse_flood(Family::Goroutine, remedy, loaded, target)?;
    }
    let forks = match options.sizes.processes {
        0 => None,
        _ if !plan.malloc => {
            limits.push(limit(
                "the processes that it makes",
                "only their native allocators could be followed, and none was found",
            ));
            None
        }
        processes => Some(Forks::follow(
            &native,
            processes,
            loaded,
            &mut kernel,
            target,
        )?),
    };
    let malloc = match plan.malloc {
        true => Some(malloc::begin(
            options,
            target,
            &native,
            loaded,
            &mut kernel,
        )?),
        false => None,
    };
    let (malloc, windows) = match malloc {
        Some(Begun { sampling, windows }) => (Some(sampling), windows),
        None => (None, None),
    };
    // Otherwise nothing will be called lost.
    let may_be_lost = plan.malloc && windows.is_none() && forks.is_none();
    if options.retention.is_some() && may_be_lost {
        kernel.registers = Some(loaded.thread_registers(target.pid));
    }
    // Now that no sample can be missed.
    heap_profile.turn_on()?;
    let start = Instant::now();
    let clocks = (unix_ns(), monotonic_ns());
    // After the probes are live, so that nothing falls between: events of mappings that are
    // already in this picture change it to the same again.
    let map = target.address_map()?;
    let sample = Sample::of_go_heap(options.sample);
    let go_heap = sampling::go_heap(target, plan, sample, options.sizes);
    let header = header::header(options, target, plan, heap_profile, malloc, clocks);
    recorder.header(header)?;
    let goroutines = match &target.go {
        Some(Ok(go)) if options.families.go || options.families.goroutine => {
            // Why not is in the plan.
            let reader = goroutines::Goroutines::new(target.memory, go).ok();
            reader.map(|reader| Goroutines::new(reader, clocks.1, options.interval))
        }
        _ => None,
    };
    let overhead = match Overhead::start(options, target, loaded) {
        Ok(overhead) => Some(overhead),
        Err(error) => {
            limits.push(limit("what the probes cost", &error.to_string()));
            None
        }
    };
    let mut drain = Drain::new(kernel, address_space(target, &map), go_heap, plan.malloc);
    if windows.is_some() {
        let sizes = options.sizes;
        // One known in user space takes a quarter of the room of one in the kernel.
        drain.in_windows(sizes.live_objects as usize * 4, sizes.sites as usize);
    }
    let mut session = Session {
        target,
        drain,
        windows,
        forks,
        memory: MemoryReader::new(target),
        goroutines,
        late_objects: plan
            .watches_objects
            .then(|| LateObjects::new(target, &mut modules)),
        code: Code::new(modules),
        unwind: (unwind, unwind_maps),
        overhead,
        detaching: Vec::new(),
        limits,
        retention: None,
        suspended: Suspended::now(),
        start,
        intervals: 0,
        t_ns: 0,
    };
    session.interval(recorder, false)?;
    Ok(session)
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
