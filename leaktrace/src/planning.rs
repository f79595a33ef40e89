//! From a process to the plan for it: the one that `record` attaches and `check` prints.

use crate::{
    capture::schema,
    plan::{Facts, Families, GoFacts, Plan},
    target::Target,
};

/// Makes the plan. Of the target's memory only `runtime.MemProfileRate` is read; `planned_rate`
/// stands for the one that will be written there, if any.
pub fn make_plan(target: &Target, families: Families, planned_rate: Option<u64>) -> Plan {
    let go = target.go.as_ref().map(|go| {
        go.as_ref()
            .map(|go| GoFacts {
                binary: &go.binary,
                bias: go.bias,
                sample_rate: planned_rate.map_or_else(|| target.sample_rate(go), Ok),
            })
            .map_err(Clone::clone)
    });
    Plan::new(&Facts { go }, families)
}

/// The part of a plan that is the same for every process.
pub fn plan_without_target(families: Families) -> Plan {
    Plan::new(&Facts { go: None }, families)
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
