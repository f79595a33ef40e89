//! `leaktrace check`: what a recording needs and finds, and the plan that it would follow. Attaches
//! nothing and changes nothing.

use anyhow::Result;

use crate::{
    loader::{self, LoadError},
    plan::{Families, Plan},
    planning,
    privileges::{self, Phase},
    report::{
        LimitReport, SCHEMA,
        check::{
            Check, CheckedGo, CheckedTarget, FeatureReport, PlaceReport, ProbeReport, ReadReport,
        },
    },
    target::{GoTarget, Target, maps::Modules},
};

/// What `check` found, and the first refusal that a recording would give.
pub struct Checked {
    /// To be shown.
    pub check: Check,
    /// Why a recording would not begin.
    pub refusal: Option<LoadError>,
}

/// Looks at the host and, if there is one, at process `pid`.
///
/// # Errors
///
/// The process cannot be a target.
pub fn check(pid: Option<i32>) -> Result<Checked> {
    privileges::keep(Phase::Attach);
    let families = Families {
        vm: true,
        go: true,
        malloc: true,
        goroutine: false,
    };
    let target = pid.map(Target::open).transpose()?;
    let mut modules = Modules::default();
    let plan = match &target {
        Some(target) => planning::make_plan(target, families, None, &mut modules),
        None => planning::plan_without_target(families),
    };
    let mut refusal = None;
    let features = loader::features(&plan.tracepoints).into_iter();
    let features = features.map(|feature| {
        let (ok, found) = match feature.found {
            Ok(found) => (true, found),
            Err(error) => {
                let text = error.to_string();
                refusal.get_or_insert(error);
                (false, text)
            }
        };
        FeatureReport {
            name: feature.name,
            ok,
            found,
        }
    });
    let mut check = Check {
        schema: SCHEMA,
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        features: features.collect(),
        ..Check::default()
    };
    if let Some(target) = &target {
        check.target = Some(facts(target, &plan)?);
        describe(&plan, &mut check);
        let mut probes = plan.uprobes.iter();
        let differs = probes.find_map(|probe| loader::check_code(probe, target, |_| false).err());
        refusal = refusal.or(differs);
    }
    Ok(Checked { check, refusal })
}

fn facts(target: &Target, plan: &Plan) -> Result<CheckedTarget> {
    let state = target.state()?;
    let described = target.describe(0);
    Ok(CheckedTarget {
        pid: described.pid,
        comm: described.comm,
        exe: described.exe,
        runtime: described.runtime,
        stripped: target.linked.stripped,
        pie: target.linked.pie,
        is_static: target.linked.is_static,
        threads: state.threads,
        seccomp: state.seccomp.to_owned(),
        traced: state.is_traced,
        go: match &target.go {
            Some(Ok(go)) => Some(go_facts(go, plan.sample_rate)),
            _ => None,
        },
    })
}

fn go_facts(go: &GoTarget, rate: Option<u64>) -> CheckedGo {
    let layout = go.binary.layout().ok();
    CheckedGo {
        version: go.binary.version().text.clone(),
        cgo: go.binary.cgo(),
        layouts: layout.map(|layout| layout.source.to_string()),
        inlining: go.binary.knows_inlining(),
        heap_profiling: rate.map(|rate| rate > 0),
        sample_rate: rate,
    }
}

fn describe(plan: &Plan, check: &mut Check) {
    let tracepoints = plan.tracepoints.iter().map(|tracepoint| ProbeReport {
        kind: "tracepoint".to_owned(),
        name: format!("{}:{}", tracepoint.category, tracepoint.name),
        reason: tracepoint.purpose.to_owned(),
        at: None,
    });
    let uprobes = plan.uprobes.iter().map(|probe| ProbeReport {
        kind: "uprobe".to_owned(),
        name: probe.function.to_owned(),
        reason: probe.purpose.to_owned(),
        at: Some(PlaceReport {
            module: probe.file.as_ref().map(|file| file.path.clone()),
            file_offset: probe.file_offset,
            address: probe.address,
            offset: probe.offset,
            instruction: probe.instruction.clone(),
            cost: probe.class.cost().to_owned(),
            in_windows: probe.in_windows,
            found_by: probe.found_by.name().to_owned(),
        }),
    });
    check.probes = tracepoints.chain(uprobes).collect();
    let reads = plan.reads.iter().map(|read| ReadReport {
        name: read.variable.symbol().to_owned(),
        address: read.address,
        found_by: read.found_by.name().to_owned(),
        reason: read.purpose.to_owned(),
    });
    check.reads = reads.collect();
    let limits = plan.limits.iter().map(|limit| LimitReport {
        what: limit.what.clone(),
        reason: limit.reason.clone(),
    });
    check.limits = limits.collect();
}
