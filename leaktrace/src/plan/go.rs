//! The part of the plan that concerns Go's heap sampler.

use super::{
    GoFacts, GoRefill, GoSampler, GoStats, Plan, Read, Uprobe, placement, placement::Placement,
    refill,
};
use crate::go::{
    Function, GoVariable,
    layout::{
        FREE_SPECIAL, GC_MARK_TERMINATION, Layout, Probed, SET_PROFILE_BUCKET, UnknownLayout,
    },
};

const HEAP: &str = "Go heap allocations";

/// A function to probe: program, function, purpose.
pub(super) type Hook = (&'static str, Probed, &'static str);

const HOOKS: [Hook; 3] = [
    ("go_sample", SET_PROFILE_BUCKET, "birth of a sampled object"),
    ("go_free", FREE_SPECIAL, "death of a sampled object"),
    COLLECTION,
];

/// Reads no argument and no memory, so that it needs no layout.
const COLLECTION: Hook = (
    "go_gc",
    GC_MARK_TERMINATION,
    "end of a collection's marking",
);

/// One way of seeing the heap: what is attached and read for it.
struct Part<How> {
    how: How,
    uprobes: Vec<Uprobe>,
    reads: Vec<Read>,
}

pub(super) fn plan(go: &GoFacts<'_>, plan: &mut Plan) {
    let added = match go.sample_rate {
        Ok(0) => refill(go)
            .map(|part| {
                let layout = part.how.layout.clone();
                plan.refill = Some(part.how);
                plan.limit(
                    "Go heap from before the attach",
                    format!(
                        "{}; leaktrace samples for itself, beginning with the attach",
                        off(go)
                    ),
                );
                (layout, part.uprobes, part.reads)
            })
            .map_err(|reason| format!("{}, and {reason}", off(go))),
        Ok(rate) => sampler(go, rate).map(|part| {
            let layout = part.how.layout.clone();
            plan.go = Some(part.how);
            (layout, part.uprobes, part.reads)
        }),
        Err(ref reason) => Err(reason.clone()),
    };
    match added {
        Ok((layout, uprobes, reads)) => {
            plan.uprobes.extend(uprobes);
            plan.reads.extend(reads);
            let differences = layout.differences.join("`, `");
            if !differences.is_empty() {
                plan.limit(
                    "what is known of this Go release",
                    format!(
                        "the executable's debug information differs in `{differences}`; it is \
                         believed"
                    ),
                );
            }
        }
        Err(reason) => {
            plan.limit(HEAP, reason);
            plan.uprobes.extend(hook(go, &COLLECTION, true));
        }
    }
}

/// Why the runtime's sampler is off: the linker switches it off in a program from which the function
/// that reads the profile cannot be reached (cmd/link/internal/ld/lib.go, `disableMemoryProfiling`).
fn off(go: &GoFacts<'_>) -> String {
    let readers = ["runtime.MemProfile", "runtime.memProfileInternal"];
    let is_linked = readers
        .iter()
        .any(|name| go.binary.function(name).is_some());
    format!(
        "the Go heap sampler is off in this process (runtime.MemProfileRate is 0: {})",
        match is_linked {
            true => "the program has set it so",
            false => "nothing in the binary refers to runtime.MemProfile",
        }
    )
}

/// The runtime's own sampler.
fn sampler(go: &GoFacts<'_>, sample_rate: u64) -> Result<Part<GoSampler>, String> {
    let layout = layout(go)?;
    for (_, probed, _) in &HOOKS {
        let checked = layout.check_arguments(probed);
        checked.map_err(|error| error.to_string())?;
    }
    let buckets = read(go, GoVariable::MBuckets, "the heap profile")?;
    let rate = read(go, GoVariable::MemProfileRate, "bytes between two samples")?;
    let uprobes: Result<Vec<_>, _> = HOOKS.iter().map(|each| hook(go, each, true)).collect();
    Ok(Part {
        how: GoSampler {
            buckets: buckets.address,
            rate: rate.address,
            sample_rate,
            layout: layout.clone(),
            bias: go.bias,
        },
        uprobes: typed(uprobes?, layout),
        reads: vec![buckets, rate],
    })
}

/// What is read at each interval besides the heap: the goroutines, and the runtime's own statistics.
pub(super) fn inventory(go: &GoFacts<'_>, plan: &mut Plan) {
    let goroutines = || -> Result<[Read; 2], String> {
        layout(go)?;
        Ok([
            read(go, GoVariable::AllGs, "the goroutines")?,
            read(go, GoVariable::WaitReasonStrings, "why they wait, in words")?,
        ])
    };
    match goroutines() {
        Ok(reads) => plan.reads.extend(reads),
        Err(reason) => plan.limit("goroutines", reason),
    }
    let is_read = plan
        .reads
        .iter()
        .any(|read| read.variable == GoVariable::MemStats);
    if !is_read && layout(go).is_ok() {
        let statistics = read(go, GoVariable::MemStats, "what memory is used for");
        plan.reads.extend(statistics);
    }
}

fn layout<'a>(go: &GoFacts<'a>) -> Result<&'a Layout, String> {
    go.binary.layout().map_err(|error| error.to_string())
}

fn read(go: &GoFacts<'_>, variable: GoVariable, purpose: &'static str) -> Result<Read, String> {
    let found = go.binary.variable(variable)?;
    Ok(Read {
        variable,
        address: found.address.wrapping_add(go.bias),
        found_by: found.found_by,
        purpose,
    })
}

/// The same probes, with what they know the runtime's types by.
fn typed(mut uprobes: Vec<Uprobe>, layout: &Layout) -> Vec<Uprobe> {
    let reading = uprobes
        .iter_mut()
        .filter(|probe| probe.program != COLLECTION.0);
    for uprobe in reading {
        uprobe.reason += &format!("; types by {}", layout.source);
    }
    uprobes
}

/// Our own sampling, where the runtime does none.
fn refill(go: &GoFacts<'_>) -> Result<Part<GoRefill>, String> {
    const NEXT_FREE: &str = "runtime.(*mcache).nextFree";
    const ALLOC_LARGE: &str = "runtime.(*mcache).allocLarge";
    let layout = layout(go)?;
    let next_free = Code::of(go, NEXT_FREE)?;
    let found = refill::after_refill(
        next_free.bytes,
        next_free.entry,
        Code::of(go, "runtime.(*mcache).refill")?.entry,
        Code::of(go, "runtime.(*mspan).nextFreeIndex")?.entry,
    )
    .map_err(|error| format!("`{NEXT_FREE}` is not what is known of it: {error}"))?;
    let alloc_large = Code::of(go, ALLOC_LARGE)?;
    let push = Code::of(go, "runtime.(*spanSet).push")?.entry;
    let large = refill::large(alloc_large.bytes, alloc_large.entry, push)
        .map_err(|error| format!("`{ALLOC_LARGE}` is not what is known of it: {error}"))?;

    let uprobes = vec![
        hook(go, &COLLECTION, true)?,
        alloc_large.uprobe(go, "go_large", &large, "an object of more than 32 KiB")?,
        Uprobe {
            in_windows: true,
            ..next_free.uprobe(
                go,
                "go_refill",
                &found.place,
                "an allocation got a fresh span",
            )?
        },
    ];
    let heap = read(go, GoVariable::MHeap, "spans, and how far they are swept")?;
    let memstats = read(
        go,
        GoVariable::MemStats,
        "counts of allocations by size class",
    )?;
    Ok(Part {
        how: GoRefill {
            sweepgen: heap.address + layout.heap.sweepgen,
            stats: stats(layout, memstats.address).map_err(|e| e.to_string())?,
            layout: layout.clone(),
            span_register: refill::offset_in_pt_regs(found.span)
                .ok_or_else(|| format!("the span is in {:?} there", found.span))?,
        },
        uprobes: typed(uprobes, layout),
        reads: vec![heap, memstats],
    })
}

/// Where the runtime counts allocations, `memstats` being its statistics.
fn stats(layout: &Layout, memstats: u64) -> Result<GoStats, UnknownLayout> {
    const HEAP_STATS: &str = "runtime.consistentHeapStats";
    const SHARD: &str = "runtime.heapStatsDelta";
    let shard_size = layout.size_of(SHARD)?;
    Ok(GoStats {
        address: memstats
            + layout.offset("runtime.mstats", "heapStats")?
            + layout.offset(HEAP_STATS, "stats")?,
        shards: layout.field_size(HEAP_STATS, "stats")? / shard_size.max(1),
        shard_size,
        small_allocs: layout.offset(SHARD, "smallAllocCount")?,
        classes: layout.field_size(SHARD, "smallAllocCount")? / 8,
    })
}

/// A probe where the arguments of a function are still in place. `single_step` says whether an
/// instruction will do that is not emulated: up to 16 µs a hit, for what fires seldom.
pub(super) fn hook(go: &GoFacts<'_>, hook: &Hook, single_step: bool) -> Result<Uprobe, String> {
    let (program, Probed { name, .. }, purpose) = *hook;
    let code = Code::of(go, name)?;
    let place = placement::place(code.bytes, code.entry, &hook.1.registers()).or_else(|error| {
        let reason = format!("no place for a probe in `{name}`: {error}");
        error.single_step.filter(|_| single_step).ok_or(reason)
    })?;
    code.uprobe(go, program, &place, purpose)
}

/// A function of the executable.
struct Code<'a> {
    name: &'static str,
    function: Function,
    /// Link-time address.
    entry: u64,
    bytes: &'a [u8],
}

impl<'a> Code<'a> {
    fn of(go: &GoFacts<'a>, name: &'static str) -> Result<Self, String> {
        let function = go
            .binary
            .function(name)
            .ok_or_else(|| format!("`{name}` is not in the executable's function table"))?;
        let bytes = go
            .binary
            .code(&function)
            .ok_or_else(|| format!("the code of `{name}` is not in the executable"))?;
        Ok(Self {
            name,
            function,
            entry: function.entry,
            bytes,
        })
    }

    fn uprobe(
        &self,
        go: &GoFacts<'_>,
        program: &'static str,
        place: &Placement,
        purpose: &'static str,
    ) -> Result<Uprobe, String> {
        // Longest instruction of x86.
        const MAX_INSTRUCTION: usize = 15;
        let name = self.name;
        let file_offset = go
            .binary
            .link_address_to_file_offset(self.entry)
            .ok_or_else(|| format!("`{name}` lies outside the executable's segments"))?;
        let compared = self
            .bytes
            .len()
            .min(place.offset as usize + MAX_INSTRUCTION);
        Ok(Uprobe {
            program,
            function: name,
            file: None,
            file_offset: file_offset + place.offset,
            address: (self.entry + place.offset).wrapping_add(go.bias),
            offset: place.offset,
            instruction: place.instruction.clone(),
            class: place.class,
            found_by: self.function.found_by,
            purpose,
            code: self.bytes[..compared].to_vec(),
            code_address: self.entry.wrapping_add(go.bias),
            reason: format!(
                "{purpose}; at +{:#x} `{}`, {}; found by {}",
                place.offset,
                place.instruction,
                place.class.cost(),
                self.function.found_by.name()
            ),
            calls: Vec::new(),
            in_windows: false,
        })
    }
}
