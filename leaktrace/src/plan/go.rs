//! The part of the plan that concerns Go's heap sampler.

use super::{GoFacts, GoSampler, Plan, Uprobe, placement};
use crate::go::{
    GoVariable,
    layout::{FREE_SPECIAL, GC_MARK_TERMINATION, Probed, SET_PROFILE_BUCKET},
};

const HEAP: &str = "Go heap allocations";

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
            return plan.limit(
                HEAP,
                "the Go heap sampler is off in this process (runtime.MemProfileRate is 0: \
                 nothing in the binary refers to runtime.MemProfile); only the memory that the \
                 runtime takes from the kernel is traced",
            );
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

fn hooks(go: &GoFacts<'_>) -> Result<Vec<Uprobe>, String> {
    HOOKS.iter().map(|hook| uprobe(go, hook)).collect()
}

fn uprobe(go: &GoFacts<'_>, hook: &Hook) -> Result<Uprobe, String> {
    let (program, Probed { name, .. }, purpose) = *hook;
    let function = go
        .binary
        .function(name)
        .ok_or_else(|| format!("`{name}` is not in the executable's function table"))?;
    let code = go
        .binary
        .code(&function)
        .ok_or_else(|| format!("the code of `{name}` is not in the executable"))?;
    // A single-stepped place is dear, but these hooks fire once in `MemProfileRate` bytes.
    let place = placement::place(code, function.entry, &hook.1.registers()).or_else(|error| {
        let reason = format!("no place for a probe in `{name}`: {error}");
        error.single_step.ok_or(reason)
    })?;
    let file_offset = go
        .binary
        .link_address_to_file_offset(function.entry)
        .ok_or_else(|| format!("`{name}` lies outside the executable's segments"))?;
    // Longest instruction of x86.
    const MAX_INSTRUCTION: usize = 15;
    let compared = code.len().min(place.offset as usize + MAX_INSTRUCTION);
    Ok(Uprobe {
        program,
        function: name,
        file_offset: file_offset + place.offset,
        address: (function.entry + place.offset).wrapping_add(go.bias),
        code: code[..compared].to_vec(),
        code_address: function.entry.wrapping_add(go.bias),
        reason: format!(
            "{purpose}; at +{:#x} `{}`, {}",
            place.offset,
            place.instruction,
            match place.class {
                placement::Class::SingleStep => "single-stepped, up to 16 µs a hit",
                _ => "emulated by the kernel, about 0.5 µs a hit",
            }
        ),
    })
}
