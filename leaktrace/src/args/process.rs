//! Which process is meant.

use anyhow::{Context as _, Result};
use clap::ArgGroup;
use leaktrace::target::{NsPidError, find_ns_pid};

/// A process, by one of its PIDs, or none; see [`is_needed`].
#[derive(clap::Args)]
#[group(id = "process", multiple = false)]
pub(crate) struct Process {
    /// Process to look at or to attach to, by its PID on the host.
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// The same by its PID inside a container: in its own pid namespace, or one around that.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    ns_pid: Option<i32>,
}

/// For commands that cannot do without a process.
pub(crate) fn is_needed() -> ArgGroup {
    ArgGroup::new("needed")
        .args(["pid", "ns_pid"])
        .required(true)
}

impl Process {
    /// Its PID on the host, for commands that cannot do without a process.
    ///
    /// # Errors
    ///
    /// As of [`Process::find`].
    pub(crate) fn need(&self) -> Result<i32> {
        self.find()?
            .context("failed to find a process: give one with -p")
    }

    /// Its PID on the host; `None`: no process is given.
    ///
    /// # Errors
    ///
    /// The PID inside a container names none, or several.
    pub(crate) fn find(&self) -> Result<Option<i32>, NsPidError> {
        match self.ns_pid {
            Some(ns_pid) => find_ns_pid(ns_pid).map(Some),
            None => Ok(self.pid),
        }
    }
}
