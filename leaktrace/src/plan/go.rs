//! The part of the plan that concerns Go's heap sampler.

use super::{
    GoFacts, GoRefill, GoSampler, GoStats, Plan, Uprobe, placement, placement::Placement, refill,
};
use crate::go::{
    GoVariable,
    layout::{
        FREE_SPECIAL, GC_MARK_TERMINATION, Layout, Probed, SET_PROFILE_BUCKET, UnknownLayout,
    },
};

const HEAP: &str = "Go heap allocations";

const OFF: &str = "the Go heap sampler is off in this process (runtime.MemProfileRate is 0: nothing \
                   in the binary refers to runtime.MemProfile)";

/// A function to probe: program, function, purpose.
type Hook = (&'static str, Probed, &'static str);

const HOOKS: [Hook; 3] = [
    ("go_sample", SET_PROFILE_BUCKET, "birth of a sampled object"),
    ("go_free", FREE_SPECIAL, "death of a sampled object"),
    (
        "go_gc",
        GC_MARK_TERMINATION,
        "end of a collection's marking",
    ),
];

pub(super) fn plan(go: &GoFacts<'_>, plan: &mut Plan) {
    let rate = match go.sample_rate {
        Ok(0) => {
            return match refill(go) {
                Ok((refill, uprobes)) => {
                    plan.refill = Some(refill);
                    plan.uprobes = uprobes;
                    plan.limit(
                        "Go heap from before the attach",
                        format!("{OFF}; leaktrace samples for itself, beginning with the attach"),
                    );
                }
                Err(reason) => plan.limit(HEAP, format!("{OFF}, and {reason}")),
            };
        }
        Ok(rate) => rate,
        Err(ref reason) => return plan.limit(HEAP, reason.clone()),
    };
    match sampler(go, rate).and_then(|sampler| Ok((sampler, hooks(go)?))) {
        Ok((sampler, uprobes)) => {
            plan.go = Some(sampler);
            plan.uprobes = uprobes;
        }
        Err(reason) => plan.limit(HEAP, reason),
    }
}

fn sampler(go: &GoFacts<'_>, sample_rate: u64) -> Result<GoSampler, String> {
    let variable = |name| {
        go.binary
            .variable(name)
            .map(|found| found.address.wrapping_add(go.bias))
    };
    Ok(GoSampler {
        buckets: variable(GoVariable::MBuckets)?,
        rate: variable(GoVariable::MemProfileRate)?,
        sample_rate,
        layout: go
            .binary
            .layout()
            .map_err(|error| error.to_string())?
            .clone(),
        bias: go.bias,
    })
}

/// Our own sampling, where the runtime does none.
fn refill(go: &GoFacts<'_>) -> Result<(GoRefill, Vec<Uprobe>), String> {
    const NEXT_FREE: &str = "runtime.(*mcache).nextFree";
    const ALLOC_LARGE: &str = "runtime.(*mcache).allocLarge";
    let layout = go.binary.layout().map_err(|error| error.to_string())?;
    let variable = |name| {
        go.binary
            .variable(name)
            .map(|found| found.address.wrapping_add(go.bias))
    };

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

    let (gc, of_gc, purpose) = HOOKS[2];
    let uprobes = vec![
        hook(go, &(gc, of_gc, purpose))?,
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
    let refill = GoRefill {
        sweepgen: variable(GoVariable::MHeap)? + layout.heap.sweepgen,
        stats: stats(layout, variable(GoVariable::MemStats)?).map_err(|e| e.to_string())?,
        layout: layout.clone(),
        span_register: refill::offset_in_pt_regs(found.span)
            .ok_or_else(|| format!("the span is in {:?} there", found.span))?,
    };
    Ok((refill, uprobes))
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

fn hooks(go: &GoFacts<'_>) -> Result<Vec<Uprobe>, String> {
    HOOKS.iter().map(|each| hook(go, each)).collect()
}

/// A probe where the arguments of a function are still in place.
fn hook(go: &GoFacts<'_>, hook: &Hook) -> Result<Uprobe, String> {
    let (program, Probed { name, .. }, purpose) = *hook;
    let code = Code::of(go, name)?;
    // A single-stepped place is dear, but these hooks fire once in `MemProfileRate` bytes.
    let place = placement::place(code.bytes, code.entry, &hook.1.registers()).or_else(|error| {
        let reason = format!("no place for a probe in `{name}`: {error}");
        error.single_step.ok_or(reason)
    })?;
    code.uprobe(go, program, &place, purpose)
}

/// A function of the executable.
struct Code<'a> {
    name: &'static str,
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
            entry: function.entry,
            bytes,
        })
    }

    fn uprobe(
        &self,
        go: &GoFacts<'_>,
        program: &'static str,
        place: &Placement,
        purpose: &str,
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
            file_offset: file_offset + place.offset,
            address: (self.entry + place.offset).wrapping_add(go.bias),
            code: self.bytes[..compared].to_vec(),
            code_address: self.entry.wrapping_add(go.bias),
            reason: format!(
                "{purpose}; at +{:#x} `{}`, {}",
                place.offset,
                place.instruction,
                match place.class {
                    placement::Class::SingleStep => "single-stepped, up to 16 µs a hit",
                    _ => "emulated by the kernel, about 0.5 µs a hit",
                }
            ),
            in_windows: false,
        })
    }
}
