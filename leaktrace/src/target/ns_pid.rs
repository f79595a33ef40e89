//! A process by its PID inside a container: in a pid namespace that it is in and leaktrace is not.

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
/// in; if none has, of the one that has it in another, from which containers in a container are seen.
///
/// # Errors
///
/// There is none, or there are several.
pub fn find_ns_pid(pid: i32) -> Result<i32, NsPidError> {
    let processes = all_processes().map_err(NsPidError::NoList)?;
    // By whether it is in the innermost. One that ends meanwhile is not it.
    let mut found: [BTreeMap<i32, String>; 2] = Default::default();
    for process in processes.flatten() {
        let Ok(status) = proc_file::read::<Status>(&process, "status") else {
            continue;
        };
        if let Some(innermost) = level(inside(&status), pid) {
            found[usize::from(innermost)].insert(process.pid(), described(&process));
        }
    }
    let [between, innermost] = found;
    let found = if innermost.is_empty() {
        between
    } else {
        innermost
    };
    match found.len() {
        1 => Ok(*found.keys().next().unwrap_or(&pid)),
        0 => Err(NsPidError::Gone { pid }),
        _ => Err(NsPidError::Several { pid, found }),
    }
}

/// The PIDs of a process in the pid namespaces that it is in inside leaktrace's own, the innermost last.
pub(super) fn inside(status: &Status) -> &[i32] {
    let all = status.nspid.as_deref().unwrap_or_default();
    all.get(1..).unwrap_or_default()
}

/// Whether a process with these PIDs inside has that one in the innermost namespace; `None`: in no one.
fn level(inside: &[i32], pid: i32) -> Option<bool> {
    let (innermost, between) = inside.split_last()?;
    let is_innermost = *innermost == pid;
    (is_innermost || between.contains(&pid)).then_some(is_innermost)
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
    fn the_innermost_namespace_comes_first() {
        assert_eq!(level(&[1], 1), Some(true));
        assert_eq!(level(&[12, 1], 1), Some(true));
        assert_eq!(level(&[12, 1], 12), Some(false));
        assert_eq!(level(&[12, 1], 4711), None);
        assert_eq!(level(&[1, 1], 1), Some(true));
        assert_eq!(level(&[], 1), None);
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
