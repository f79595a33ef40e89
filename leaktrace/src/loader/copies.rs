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

/// Whether this kernel leaves out programs of tracepoints without counting them: before Linux 6.7, where it preempts
/// its own code. A program does not run while another thread on its processor was preempted in a system call on a map,
/// such as those by which leaktrace reads (kernel/trace/bpf_trace.c of Linux 6.1, `trace_call_bpf`).
pub fn leaves_programs_out() -> bool {
    let uname = rustix::system::uname();
    is_uncounted(
        &uname.release().to_string_lossy(),
        &uname.version().to_string_lossy(),
    )
}

/// By release and version of the kernel: `6.1.0-56-rt-amd64`, `#1 SMP PREEMPT_RT Debian 6.1.180-1 (2026-08-30)`.
fn is_uncounted(release: &str, version: &str) -> bool {
    let numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    // PREEMPT_DYNAMIC leaves it to the command line, and is seldom told to.
    let mut words = version.split_whitespace();
    numbers.take(2).lt([6, 7]) && words.any(|word| ["PREEMPT", "PREEMPT_RT"].contains(&word))
}

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

#[cfg(test)]
mod tests {
    use super::is_uncounted;

    #[test]
    fn kernels_that_do_not_count_what_they_leave_out() {
        let rt = "#1 SMP PREEMPT_RT Debian 6.1.180-1 (2026-08-30)";
        assert!(is_uncounted("6.1.0-56-rt-amd64", rt));
        assert!(is_uncounted("5.15.0", "#1 SMP PREEMPT Debian"));
        assert!(!is_uncounted("6.12.118+deb13-rt-amd64", rt));
        assert!(!is_uncounted("6.7.0", rt) && !is_uncounted("7.1.13", rt));
        for version in ["#1 SMP PREEMPT_DYNAMIC Debian", "#1 SMP Debian"] {
            assert!(!is_uncounted("6.1.0-56-amd64", version), "{version}");
        }
    }
}
