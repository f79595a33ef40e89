//! How often a program is attached, so that the kernel leaves none of its runs out.
//!
//! Since Linux 7.2 the programs of system calls' tracepoints can be preempted (kernel/trace/trace_syscalls.c calls
//! `trace_call_bpf_faultable`), and a program does not run on a processor while another thread is in the middle of it
//! there: what that call did would be lost. Each copy of the program is one of its own to the kernel. The first that
//! is free does the work and the others see that it is done (`call.rs` of the kernel side), so that a call is lost
//! only if as many threads were preempted in their copies on one processor.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::programs::{TracePoint, trace_point::TracePointLink};

use super::{LoadError, program_error};
use crate::plan::Tracepoint;

/// Threads on one processor that may be in the middle of a program.
const PREEMPTED: u32 = 4;

/// How many copies the programs of system calls need on this kernel.
pub(super) fn of_system_calls() -> u32 {
    // It is global, so that the kernel's type information has its name.
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    match memchr::memmem::find(&types, b"\0trace_call_bpf_faultable\0") {
        Some(_) => PREEMPTED,
        None => 1,
    }
}

/// A program that is attached to tracepoints in so many copies.
pub(super) struct Copies {
    /// The programs, for the kernel's count of their runs.
    pub(super) programs: Vec<OwnedFd>,
    _links: Vec<TracePointLink>,
}

impl Copies {
    /// Loads a program so often, and attaches each copy to all of these tracepoints.
    ///
    /// # Errors
    ///
    /// The kernel refuses it.
    pub(super) fn attach(
        program: &mut TracePoint,
        tracepoints: &[Tracepoint],
        count: u32,
    ) -> Result<Self, LoadError> {
        let (mut programs, mut links) = (Vec::new(), Vec::new());
        for copy in 0..count {
            for tracepoint in tracepoints {
                let Tracepoint { category, name, .. } = tracepoint;
                let failed = |error| program_error(&format!("{category}:{name}"), error);
                if programs.len() == copy as usize {
                    if copy > 0 {
                        // The links keep the one that they are for.
                        program.unload().map_err(failed)?;
                    }
                    program.load().map_err(failed)?;
                    let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
                    programs.push(fd.map_err(|error| LoadError::other("keep a program", error))?);
                }
                let link = program.attach(category, name);
                let link = link.and_then(|link| program.take_link(link));
                links.push(link.map_err(failed)?);
            }
        }
        Ok(Self {
            programs,
            _links: links,
        })
    }
}
