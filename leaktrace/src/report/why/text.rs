//! What keeps objects alive, as text.

use std::io::{self, Write};

use super::{Amount, Holder, HopReport, NamedBy, Pass, PathReport, RootKind, Why, WhySite};
use crate::report::{Frame, human, text::escape};

/// Writes it.
///
/// # Errors
///
/// `out` fails.
pub fn write_text<W: Write>(why: &Why, mut out: W) -> io::Result<()> {
    for line in lines(why) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn lines(why: &Why) -> Vec<String> {
    let target = &why.target;
    let pass = &why.pass;
    let mut lines = vec![
        format!(
            "{} (pid {}), {}",
            escape(&target.comm),
            target.pid,
            escape(&target.runtime)
        ),
        format!(
            "{} of heap, {} looked at in {}; {}",
            human::bytes(pass.heap_bytes as f64),
            human::bytes(pass.scanned_bytes as f64),
            human::seconds(pass.took_ms / 1000.0),
            way(pass)
        ),
    ];
    if pass.stopped {
        lines.push(
            "stopped before everything was looked at: what has no path here may have one"
                .to_owned(),
        );
    }
    for site in &why.sites {
        lines.push(String::new());
        lines.extend(site_lines(site));
    }
    let left = why.sites_total.saturating_sub(why.sites.len() as u64);
    if left > 0 && why.sites.iter().any(|site| site.rank > 0) {
        lines.push(String::new());
        lines.push(format!("and {} not shown", human::count(left, "site")));
    }
    if !why.limits.is_empty() {
        lines.push(String::new());
        lines.push("not looked at:".to_owned());
    }
    for limit in &why.limits {
        lines.push(format!(
            "  {}: {}",
            escape(&limit.what),
            escape(&limit.reason)
        ));
    }
    lines
}

/// Which way was taken, and how much was found on it.
fn way(pass: &Pass) -> String {
    let objects = human::count(pass.reached_objects, "object");
    match pass.backward_scans {
        None => format!("roots lead to {objects} with pointers"),
        Some(scans) => format!(
            "back from what is kept, within the memory allowed, by {} and {objects} that may lead to it",
            human::count(scans, "scan")
        ),
    }
}

fn site_lines(site: &WhySite) -> Vec<String> {
    let head = match site.address {
        Some(address) => format!(
            "the object at {address:#x}, {}",
            human::bytes(site.total.bytes)
        ),
        None if site.rank == 0 => format!("the whole heap: {}", amount(&site.total)),
        None => format!("{}. {}", site.rank, amount(&site.total)),
    };
    let mut lines = vec![head];
    if let Some(frame) = own_frame(&site.stack) {
        lines.push(format!("   allocated by {}", line(frame)));
    }
    lines.extend(kept_by(site));
    lines
}

/// What stands above the lines of [`kept_by`].
pub const KEPT_BY: &str = "kept alive by, as one look at the end found it:";

/// What keeps a site's objects, in lines that begin with three spaces.
pub fn kept_by(site: &WhySite) -> Vec<String> {
    let mut lines = Vec::new();
    for holder in &site.holders {
        lines.extend(holder_lines(holder, site));
    }
    if site.holders_left_out > 0 {
        let left = human::count(site.holders_left_out, "other root");
        lines.push(format!("   and {left}"));
    }
    let rest = [
        (
            &site.unreached,
            "no path: to be collected, or held by what was not looked at",
        ),
        (
            &site.moved,
            "the path that was found did not hold when it was read again",
        ),
        (&site.gone, "died meanwhile"),
        (
            &site.unchecked,
            "not followed to the end or not checked: too much on the way, or the search was stopped",
        ),
        (
            &site.lost,
            "lost: nothing that was looked at points to them",
        ),
        (&site.lost_behind, "lost: only lost ones point to them"),
    ];
    for (rest, what) in rest {
        if rest.samples > 0 {
            lines.push(format!("   {}: {what}", amount(rest)));
        }
    }
    lines
}

fn holder_lines(holder: &Holder, site: &WhySite) -> Vec<String> {
    let share = match site.total.bytes {
        total if total > 0.0 => format!(" ({:.0} %)", 100.0 * holder.amount.bytes / total),
        _ => String::new(),
    };
    let mut lines = vec![
        format!("   {}{share} ←", amount(&holder.amount)),
        format!("     {}", root(holder)),
    ];
    if let Some(group) = &holder.goroutines {
        if let Some(frame) = &group.blocked_at {
            lines.push(format!("       at {}", line(frame)));
        }
        if let Some(frame) = &group.created_by {
            lines.push(format!("       created by {}", line(frame)));
        }
        if let Some(channel) = &group.channel {
            let nobody = if holder.forgotten {
                "; only goroutines that wait so lead to it"
            } else {
                ""
            };
            lines.push(format!("       channel: {}{nobody}", channel.in_words()));
        }
    }
    for path in &holder.paths {
        lines.push(format!("     {}", path_line(path)));
    }
    if holder.paths_left_out > 0 {
        let left = human::count(holder.paths_left_out, "other path");
        lines.push(format!("     and {left}"));
    }
    if let Some(hop) = &holder.bottleneck {
        lines.push(format!(
            "     all of it through {} at {:#x}",
            hop_name(hop),
            hop.address
        ));
    }
    lines
}

pub(super) fn root(holder: &Holder) -> String {
    let offset = match holder.offset {
        Some(offset) if offset > 0 => format!("+{offset:#x}"),
        _ => String::new(),
    };
    let of = holder.module.as_ref();
    let of = of.map_or(String::new(), |module| format!(" of {}", escape(module)));
    match holder.kind {
        RootKind::Variable => match (&holder.symbol, &holder.section) {
            (Some(symbol), _) => format!("variable {}{offset}{of}", escape(symbol)),
            (None, Some(section)) => format!("a variable at {}{offset}{of}", escape(section)),
            (None, None) => format!("a variable at {:#x}{of}", holder.offset.unwrap_or(0)),
        },
        RootKind::Goroutines => match &holder.goroutines {
            Some(group) => {
                let doing = match &group.wait_reason {
                    Some(reason) => format!("in {}", escape(reason)),
                    None => escape(&group.state),
                };
                let all = human::count(group.count, "goroutine");
                match holder.holding {
                    holding if holding == group.count => format!("{all} {doing}"),
                    // More of them may hold something: not each object is a sample.
                    holding => {
                        let holding = human::thousands(holding);
                        format!("{all} {doing} (by samples, at least {holding} of them)")
                    }
                }
            }
            None => human::count(holder.holding, "goroutine"),
        },
        RootKind::Finalizer => "finalizers that wait for their objects to die".to_owned(),
        RootKind::FinalizerQueue => "the queue of finalizers that are to be run".to_owned(),
        RootKind::Stack => "stacks of threads".to_owned(),
        RootKind::Registers => "registers of threads".to_owned(),
        RootKind::Memory => {
            "memory in no block that is followed: from before the attach, freed, not \
                             sampled, or mapped"
                .to_owned()
        }
    }
}

fn path_line(path: &PathReport) -> String {
    let hops: Vec<String> = path.hops.iter().map(hop_name).collect();
    let doubt = if path.checked {
        ""
    } else {
        " (words taken for addresses)"
    };
    format!("→ {}: {}{doubt}", hops.join(" → "), amount(&path.amount))
}

pub(super) fn hop_name(hop: &HopReport) -> String {
    let times = match hop.times {
        (0 | 1, 0 | 1) => String::new(),
        (least, most) if least == most => format!(" × {most}"),
        (least, most) => format!(" × {least} to {most}"),
    };
    let name = escape(&hop.name);
    let closure = match hop.named_by {
        NamedBy::Closure => "closure ",
        _ => "",
    };
    let by = match &hop.allocated_by {
        Some(function) => format!(" from {}", escape(function)),
        None => String::new(),
    };
    let via = match &hop.via {
        Some(via) => format!("{}: ", escape(via)),
        None => String::new(),
    };
    format!("{via}{closure}{name}{by}{times}")
}

pub(super) fn amount(amount: &Amount) -> String {
    let objects = amount.objects.round() as u64;
    // Samples that stand for themselves only are all there is.
    let samples = match amount.samples {
        all if all == objects => String::new(),
        samples => format!(", {}", human::count(samples, "sample")),
    };
    format!(
        "{} ({}{samples})",
        human::count(objects, "object"),
        human::bytes(amount.bytes)
    )
}

/// The innermost frame outside the runtime.
pub(super) fn own_frame(stack: &[Frame]) -> Option<&Frame> {
    let is_own = |frame: &&Frame| {
        let name = frame.function.as_deref();
        name.is_none_or(|name| !name.starts_with("runtime."))
    };
    stack.iter().find(is_own).or_else(|| stack.first())
}

fn line(frame: &Frame) -> String {
    let name = match &frame.function {
        Some(function) => escape(function),
        None => format!("{:#x}", frame.address),
    };
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{name} {}:{line}", escape(file)),
        _ => name,
    }
}
