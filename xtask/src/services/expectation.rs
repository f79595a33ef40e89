//! What leaktrace is expected to say of a service.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{go, names::Names};
use crate::{
    run::{self, as_root},
    workspace,
};

/// What a report counts of everything older than the attach, and nothing is missing for it.
pub(super) const OF_THE_ATTACH: [&str; 2] = ["free_of_unseen", "unmap_of_preexisting"];

/// Of a hundred frames in C code that has symbols, so many at least have a name.
const NAMED: f64 = 98.0;

/// What is expected in a trial.
#[derive(Clone, Copy)]
pub(super) enum Expectation {
    /// A Go service: every frame and every goroutine is read. Whether it grows is not known.
    Go,
    /// A service in C that does the same again and again: there is no leak.
    Steady,
    /// A service in C for which more and more is kept by one of these functions.
    Growth(&'static [&'static str]),
}

impl Expectation {
    /// What `leaktrace check` and the like say before it is recorded.
    pub(super) fn before(self, pid: &str) -> Result<()> {
        let plan = json(&["check", "-p", pid])?;
        match self {
            Self::Go => {
                go::census_is_right(&json(&["goroutines", "-p", pid])?)?;
                go::plan_is_right(&plan)
            }
            Self::Steady | Self::Growth(_) => plan_is_right(&plan),
        }
    }

    /// What the report says; for the table, what else is to be told, each with a `; ` before it.
    pub(super) fn after(self, report: &Value, names: &Names) -> Result<String> {
        if let Self::Go = self {
            return go::report_is_right(report, names);
        }
        names.are_at_least(0.0, NAMED)?;
        let mut note = String::new();
        for (cause, count) in losses(report) {
            ensure!(OF_THE_ATTACH.contains(&cause), "lost: {count} {cause}");
            note += &format!("; {count} {cause}");
        }
        let sites = || report["sites"].as_array().into_iter().flatten();
        if let Some(broken) = sites().find(|site| site["stack_incomplete"].is_string()) {
            let reason = &broken["stack_incomplete"];
            let functions: Vec<_> = functions(broken).collect();
            bail!("a stack ends early: {functions:?}, {reason}");
        }
        let leaks: Vec<_> = sites().filter(|site| site["verdict"] == "leak").collect();
        let Self::Growth(keepers) = self else {
            let stacks: Vec<Vec<_>> = leaks.iter().map(|site| functions(site).collect()).collect();
            ensure!(leaks.is_empty(), "called a leak: {stacks:?}");
            return Ok(note);
        };
        let first = &report["sites"][0];
        let keeper = functions(first).find(|name| keepers.contains(name));
        let function = keeper.with_context(|| {
            let functions: Vec<_> = functions(first).collect();
            format!("{keepers:?} are not what grows, but {functions:?}")
        })?;
        let grown = first["growth_bytes"].as_f64().unwrap_or_default();
        Ok(format!(
            "; {}: {:.1} MiB in {function}{note}",
            first["verdict"].as_str().unwrap_or_default(),
            grown / f64::from(1 << 20)
        ))
    }
}

/// Blocks are followed, and so is what the kernel maps.
fn plan_is_right(plan: &Value) -> Result<()> {
    let probes = plan["probes"].to_string();
    for name in ["malloc", "free", "sys_enter_mmap"] {
        ensure!(probes.contains(name), "no probe on `{name}`: {probes}");
    }
    Ok(())
}

/// The functions of a site's stack that have a name, innermost first.
fn functions(site: &Value) -> impl Iterator<Item = &str> {
    let frames = site["stack"].as_array().into_iter().flatten();
    frames.filter_map(|frame| frame["function"].as_str())
}

/// Causes of loss, with their counts.
pub(super) fn losses(report: &Value) -> impl Iterator<Item = (&str, u64)> {
    let losses = report["losses"].as_object().into_iter().flatten();
    losses.map(|(cause, count)| (cause.as_str(), count.as_u64().unwrap_or(u64::MAX)))
}

/// What leaktrace prints as JSON.
pub(super) fn json(arguments: &[&str]) -> Result<Value> {
    let mut command = as_root(workspace::leaktrace());
    let text = run::output(command.args(arguments).args(["--format", "json"]))?;
    serde_json::from_str(&text).context("it is JSON")
}
