//! The part of the plan that counts goroutines as they are made and end.

use super::{GoFacts, Plan, go::hook};
use crate::go::layout::{GDESTROY, GOEXIT0, NEWPROC1};

/// What is missing without it.
pub(super) const COUNTS: &str = "counts of goroutines made and ended";

/// Only places that the kernel emulates: a program may start millions of goroutines a second, and a
/// single-stepped hit takes up to 16 µs.
pub(super) fn plan(go: &GoFacts<'_>, plan: &mut Plan) {
    let ended = match go.binary.function(GDESTROY.name) {
        Some(_) => GDESTROY,
        None => GOEXIT0,
    };
    let probes = [
        ("go_created", NEWPROC1, "a goroutine is made"),
        ("go_exited", ended, "a goroutine ends"),
    ];
    let layout = go.binary.layout().map_err(|error| error.to_string());
    let checked = layout.and_then(|layout| {
        let known = probes
            .iter()
            .try_for_each(|(_, function, _)| layout.check_arguments(function));
        known.map(|()| layout).map_err(|error| error.to_string())
    });
    let probes = probes.iter().map(|each| hook(go, each, false));
    match checked.and_then(|layout| Ok((layout, probes.collect::<Result<Vec<_>, _>>()?))) {
        Ok((layout, probes)) => {
            plan.gopc = Some(layout.g.gopc);
            plan.uprobes.extend(probes);
        }
        Err(reason) => plan.limit(COUNTS, reason),
    }
}
