//! What leaktrace would do to a process, and what it finds of the host.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{LimitReport, human, text::escape};

/// The answer of `leaktrace check`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Version of this schema.
    pub schema: u32,
    /// Release of the kernel.
    pub kernel: String,
    /// What a recording needs, and what was found.
    pub features: Vec<FeatureReport>,
    /// The process; absent without `-p`.
    pub target: Option<CheckedTarget>,
    /// What `record` would attach, in its order.
    pub probes: Vec<ProbeReport>,
    /// Variables that `record` would read from the process's memory.
    pub reads: Vec<ReadReport>,
    /// What cannot be seen, and why.
    pub limits: Vec<LimitReport>,
}

/// Something that a recording needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FeatureReport {
    /// What is needed.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// What was found, or what is wrong and what to do.
    pub found: String,
}

/// Facts of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckedTarget {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// Executable, as the process sees it.
    pub exe: String,
    /// Go version, `go` if it cannot be read, or `native`.
    pub runtime: String,
    /// No symbol table.
    pub stripped: bool,
    /// Position-independent.
    pub pie: bool,
    /// No dynamic linker.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Threads now.
    pub threads: u64,
    /// `disabled`, `strict`, `filter` or `unknown`.
    pub seccomp: String,
    /// A debugger is attached.
    pub traced: bool,
    /// Absent for native programs and for Go programs that cannot be read.
    pub go: Option<CheckedGo>,
}

/// Facts of a Go program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckedGo {
    /// As in the binary.
    pub version: String,
    /// C code is linked in.
    pub cgo: bool,
    /// Where the runtime's types are known from; absent when they are not.
    pub layouts: Option<String>,
    /// Inlined calls can be told.
    pub inlining: bool,
    /// The heap sampler is on; absent when `runtime.MemProfileRate` cannot be read.
    pub heap_profiling: Option<bool>,
    /// Bytes between two samples.
    pub sample_rate: Option<u64>,
}

/// A probe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// `tracepoint` or `uprobe`.
    pub kind: String,
    /// `CATEGORY:NAME` of a tracepoint, or the function.
    pub name: String,
    /// What it is for.
    pub reason: String,
    /// Of a uprobe.
    pub at: Option<PlaceReport>,
}

/// Where a uprobe stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// The file, if it is not the executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Offset in the file.
    pub file_offset: u64,
    /// Address in the process.
    pub address: u64,
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// The instruction.
    pub instruction: String,
    /// What a hit costs.
    pub cost: String,
    /// It is attached for a share of the time only.
    pub in_windows: bool,
    /// How the function was found.
    pub found_by: String,
}

/// A variable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadReport {
    /// Its name.
    pub name: String,
    /// Address in the process.
    pub address: u64,
    /// How it was found.
    pub found_by: String,
    /// What it is for.
    pub reason: String,
}

/// Writes a check for people.
pub fn write_text<W: Write>(check: &Check, mut out: W) -> io::Result<()> {
    let missing = check.features.iter().filter(|feature| !feature.ok).count();
    let verdict = match missing {
        0 => "has all that leaktrace needs".to_owned(),
        1 => "lacks one thing that leaktrace needs".to_owned(),
        more => format!("lacks {more} things that leaktrace needs"),
    };
    writeln!(out, "Linux {} {verdict}", escape(&check.kernel))?;
    for feature in &check.features {
        let mark = if feature.ok { "ok     " } else { "MISSING" };
        writeln!(out, "  {mark} {}: {}", feature.name, escape(&feature.found))?;
    }
    let Some(target) = &check.target else {
        return Ok(());
    };
    write_target(target, &mut out)?;

    writeln!(
        out,
        "\n`leaktrace record` would attach {} probes",
        check.probes.len()
    )?;
    for probe in &check.probes {
        let name = escape(&probe.name);
        match &probe.at {
            None => writeln!(out, "  {} {name}: {}", probe.kind, probe.reason)?,
            Some(at) => writeln!(
                out,
                "  {} {name}+{:#x} `{}`, file offset {:#x}{}: {}\n    {}{}; found by {}",
                probe.kind,
                at.offset,
                at.instruction,
                at.file_offset,
                match &at.module {
                    Some(module) => format!(" of {}", escape(module)),
                    None => String::new(),
                },
                probe.reason,
                at.cost,
                match at.in_windows {
                    true => ", attached for a share of the time only",
                    false => "",
                },
                at.found_by
            )?,
        }
    }
    writeln!(out, "\nand read {} variables", check.reads.len())?;
    for read in &check.reads {
        writeln!(
            out,
            "  {} at {:#x}: {}; found by {}",
            read.name, read.address, read.reason, read.found_by
        )?;
    }
    if check.limits.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nNot seen")?;
    for limit in &check.limits {
        writeln!(out, "  {}: {}", escape(&limit.what), escape(&limit.reason))?;
    }
    Ok(())
}

fn write_target(target: &CheckedTarget, out: &mut impl Write) -> io::Result<()> {
    let yes = |is, yes, no| if is { yes } else { no };
    writeln!(
        out,
        "\nProcess {} ({}): {}\n  {}, {}, {}, {}",
        target.pid,
        escape(&target.comm),
        escape(&target.exe),
        escape(&target.runtime),
        yes(target.stripped, "stripped", "with symbols"),
        yes(target.pie, "position-independent", "at fixed addresses"),
        yes(target.is_static, "static", "dynamically linked"),
    )?;
    if let Some(go) = &target.go {
        let layouts = match &go.layouts {
            Some(from) => format!("the runtime's types by {from}"),
            None => "the runtime's types are not known".to_owned(),
        };
        let sampler = match (go.heap_profiling, go.sample_rate) {
            (Some(true), Some(rate)) => {
                format!(
                    "heap sampler on, one sample in {}",
                    human::bytes(rate as f64)
                )
            }
            (Some(false), _) => "heap sampler off".to_owned(),
            _ => "heap sampler unknown".to_owned(),
        };
        let cgo = yes(go.cgo, "cgo", "no cgo");
        let inlining = yes(go.inlining, "", ", inlined calls are not told");
        writeln!(out, "  {cgo}, {layouts}, {sampler}{inlining}")?;
    }
    let traced = yes(target.traced, ", a debugger is attached", "");
    writeln!(
        out,
        "  {} threads, seccomp {}{traced}",
        target.threads, target.seccomp
    )
}
