//! From a process to the plan for it: the one that `record` attaches and `check` prints.

use crate::{
    capture::schema,
    loader::{are_sessions_known, leaves_programs_out, uretprobes_bear_seccomp},
    plan::{
        Facts, Families, GoFacts, Plan,
        native::{NativeFacts, NativeObject},
    },
    target::{AddressMap, Target, maps::Modules, open_image},
};

/// Makes the plan. Of the target's memory only `runtime.MemProfileRate` is read; `planned_rate`
/// stands for the one that will be written there, if any. `modules` keeps open the files in which
/// probes are to stand.
pub fn make_plan(
    target: &Target,
    families: Families,
    planned_rate: Option<u64>,
    modules: &mut Modules,
) -> Plan {
    let go = target.go.as_ref().map(|go| {
        go.as_ref()
            .map(|go| GoFacts {
                binary: &go.binary,
                bias: go.bias,
                sample_rate: planned_rate.map_or_else(|| target.sample_rate(go), Ok),
            })
            .map_err(Clone::clone)
    });
    let native = families.malloc.then(|| native(target, modules));
    let native = native.filter(|native| !native.objects.is_empty());
    let mut plan = Plan::new(&Facts { go, native }, families);
    if families.vm && leaves_programs_out() {
        plan.limit(
            "vm",
            "some system calls may be missing, and not all of these are counted: this kernel preempts its own \
             code, and leaves out programs of tracepoints where that happens; Linux counts them since 6.7",
        );
    }
    plan
}

/// The target's native code: all of its files, or none where a Go program has no C code.
pub fn native(target: &Target, modules: &mut Modules) -> NativeFacts {
    let is_pure_go = matches!(&target.go, Some(Ok(go)) if !go.binary.cgo());
    let mut objects: Vec<(usize, NativeObject)> = Vec::new();
    let map = target.address_map().ok().filter(|_| !is_pure_go);
    for mapping in map.iter().flat_map(AddressMap::executable) {
        let Some(map) = &map else { break };
        let index = modules.intern(map, mapping);
        let (start, end) = mapping.address;
        let place = (start, end, mapping.offset);
        if let Some((_, object)) = objects.iter_mut().find(|(known, _)| *known == index) {
            object.mappings.push(place);
            continue;
        }
        let Some(module) = modules.get(index) else {
            continue;
        };
        let Some(open_path) = module.open_path() else {
            continue;
        };
        let Ok(image) = open_image(&open_path) else {
            continue;
        };
        let object = NativeObject {
            path: module.path.clone(),
            open_path,
            image,
            mappings: vec![place],
        };
        objects.push((index, object));
    }
    NativeFacts {
        objects: objects.into_iter().map(|(_, object)| object).collect(),
        uretprobes: target
            .allows_uretprobes()
            .and_then(|()| uretprobes_bear_seccomp()),
        sessions: are_sessions_known(),
    }
}

/// The part of a plan that is the same for every process.
pub fn plan_without_target(families: Families) -> Plan {
    Plan::new(
        &Facts {
            go: None,
            native: None,
        },
        families,
    )
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
        module: match &probe.file {
            Some(file) => file.path.clone(),
            None => target.exe.clone(),
        },
        file_offset: probe.file_offset,
        reason: probe.reason.clone(),
    });
    tracepoints.chain(uprobes).collect()
}
