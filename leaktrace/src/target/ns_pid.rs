//! A process by its PID inside a container: in the pid namespace that it is in itself.

use std::{collections::BTreeMap, fs};

use procfs::process::{Process, Status, all_processes};

use super::{Cgroup, proc_file};

/// Processes that an error lists, at most.
const MOST_LISTED: usize = 8;

/// Why a PID inside a namespace names no process.
#[derive(Debug, thiserror::Error)]
pub enum NsPidError {
    /// No pid namespace but the host's has that PID.
    #[error(
        "no process has PID {pid} in a pid namespace of its own: it is gone, or {pid} is a PID of the host, \
         which is given with `-p {pid}`"
    )]
    Gone {
        /// The PID asked for.
        pid: i32,
    },
    /// Several namespaces have it.
    #[error(
        "{} processes have PID {pid} in pid namespaces of their own: give one by its PID on the host, with \
         -p: {}", .found.len(), listed(.found)
    )]
    Several {
        /// The PID asked for.
        pid: i32,
        /// What has it, by the PID on the host.
        found: BTreeMap<i32, String>,
    },
    /// There is no list of processes.
    #[error("failed to list the processes in `/proc`")]
    NoList(#[source] procfs::ProcError),
}

/// The PID, in leaktrace's own pid namespace, of the process that has `pid` in the innermost of those that it is
/// in, which is another one.
///
/// # Errors
///
/// There is none, or there are several.
pub fn find_ns_pid(pid: i32) -> Result<i32, NsPidError> {
    let processes = all_processes().map_err(NsPidError::NoList)?;
    let found: BTreeMap<_, _> = processes
        // One that ends meanwhile is not it.
        .flatten()
        .filter(|process| {
            let status = proc_file::read::<Status>(process, "status");
            status.is_ok_and(|status| is_inside(status.nspid.as_deref().unwrap_or_default(), pid))
        })
        .map(|process| (process.pid(), described(&process)))
        .collect();
    match found.len() {
        1 => Ok(*found.keys().next().unwrap_or(&pid)),
        0 => Err(NsPidError::Gone { pid }),
        _ => Err(NsPidError::Several { pid, found }),
    }
}

/// Whether a process with these PIDs, from leaktrace's namespace inwards, has that one in another namespace.
fn is_inside(nspid: &[i32], pid: i32) -> bool {
    matches!(nspid, [_, .., innermost] if *innermost == pid)
}

/// Its name, and its container or else its control group.
fn described(process: &Process) -> String {
    let comm = fs::read(format!("/proc/{}/comm", process.pid())).unwrap_or_default();
    let comm = String::from_utf8_lossy(&comm);
    let cgroup = Cgroup::of(process);
    let place = match (cgroup.container_id, cgroup.path) {
        (Some(id), _) => format!("container {}", &id[..12]),
        (None, Some(path)) => format!("cgroup {path}"),
        (None, None) => "cgroup unknown".to_owned(),
    };
    // Both are of others' making.
    format!(
        "{}, {}",
        comm.trim_end().escape_debug(),
        place.escape_debug()
    )
}

fn listed(found: &BTreeMap<i32, String>) -> String {
    let first = found.iter().take(MOST_LISTED);
    let mut parts: Vec<_> = first.map(|(pid, text)| format!("{pid} ({text})")).collect();
    if let Some(more) = found.len().checked_sub(MOST_LISTED).filter(|&n| n > 0) {
        parts.push(format!("and {more} more"));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_innermost_of_other_namespaces_counts() {
        assert!(is_inside(&[4711, 1], 1));
        assert!(is_inside(&[4711, 12, 1], 1));
        assert!(!is_inside(&[4711, 12, 1], 12));
        assert!(!is_inside(&[1], 1));
        assert!(!is_inside(&[], 1));
    }

    #[test]
    fn an_error_is_one_line_of_bounded_length() {
        let found = |n: i32| {
            (1..=n)
                .map(|pid| (pid, format!("nginx, cgroup /{pid}")))
                .collect()
        };
        let error = NsPidError::Several {
            pid: 1,
            found: found(2),
        };
        assert_eq!(
            error.to_string(),
            "2 processes have PID 1 in pid namespaces of their own: give one by its PID on the host, with -p: \
             1 (nginx, cgroup /1); 2 (nginx, cgroup /2)"
        );
        let error = NsPidError::Several {
            pid: 1,
            found: found(1000),
        };
        assert!(
            error
                .to_string()
                .ends_with("8 (nginx, cgroup /8); and 992 more")
        );
    }
}
