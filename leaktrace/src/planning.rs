//! From a process to the plan for it: the one that `record` attaches and `check` prints.

use crate::{
    capture::schema,
    go::GoVariable,
    plan::{Facts, Families, GoFacts, Plan},
    target::{GoTarget, Target},
};

/// Makes the plan. Of the target's memory only `runtime.MemProfileRate` is read.
pub fn make_plan(target: &Target, families: Families) -> Plan {
    let go = target.go.as_ref().map(|go| {
        go.as_ref()
            .map(|go| GoFacts {
                binary: &go.binary,
                bias: go.bias,
                sample_rate: sample_rate(target, go),
            })
            .map_err(Clone::clone)
    });
    Plan::new(&Facts { go }, families)
}

/// The part of a plan that is the same for every process.
pub fn plan_without_target(families: Families) -> Plan {
    Plan::new(&Facts { go: None }, families)
}

fn sample_rate(target: &Target, go: &GoTarget) -> Result<u64, String> {
    let found = go.binary.variable(GoVariable::MemProfileRate)?;
    target
        .memory
        .read_u64(found.address.wrapping_add(go.bias))
        .map_err(|error| error.to_string())
}

/// The probes of a plan, as a capture's header has them.
pub fn probes(target: &Target, plan: &Plan) -> Vec<schema::Probe> {
    let tracepoints = plan.tracepoints.iter().map(|tracepoint| schema::Probe {
        name: format!("{}:{}", tracepoint.category, tracepoint.name),
        reason: tracepoint.purpose.to_owned(),
        ..schema::Probe::default()
    });
    let uprobes = plan.uprobes.iter().map(|probe| schema::Probe {
        name: probe.function.to_owned(),
        module: target.exe.clone(),
        file_offset: probe.file_offset,
        reason: probe.reason.clone(),
    });
    tracepoints.chain(uprobes).collect()
}
