//! What leaktrace needs of the host: the user, the namespace, the kernel.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{self, BpfHelper},
};

use super::{
    LoadError,
    links::{are_links_known, are_sessions_known},
    tracefs,
};
use crate::{plan::Tracepoint, privileges};

/// Something that leaktrace needs, and what was found of it.
#[derive(Debug)]
pub struct Feature {
    /// What is needed.
    pub name: String,
    /// What was found; the error is the refusal that a recording would give.
    pub found: Result<String, LoadError>,
}

/// Checks what every run needs of the kernel and of the user.
///
/// # Errors
///
/// [`LoadError::NotPermitted`], [`LoadError::NotOnHost`] or [`LoadError::Unsupported`].
pub fn check_host() -> Result<(), LoadError> {
    user()?;
    pid_namespace()?;
    btf(SYSFS.as_ref())?;
    uprobes(SYSFS.as_ref())?;
    thread_registers()?;
    Ok(())
}

/// Looks at everything that is needed, these tracepoints included, whatever is missing. Nothing of
/// the host is changed: maps and programs that are tried are gone at once, and tracefs, where it is
/// not mounted, is mounted for this process alone.
pub fn features(tracepoints: &[Tracepoint]) -> Vec<Feature> {
    let feature = |name: &str, found| Feature {
        name: name.to_owned(),
        found,
    };
    let map = |what, map_type| supported(what, sys::is_map_supported(map_type).ok());
    let program = |what, of| supported(what, sys::is_program_supported(of).ok());
    let mut features = vec![
        feature("capabilities", user()),
        feature("the host's pid namespace", pid_namespace()),
        feature("type information (BTF)", btf(SYSFS.as_ref())),
        feature("uprobes", uprobes(SYSFS.as_ref())),
        feature(
            "BPF programs for uprobes",
            program("BPF programs for uprobes", ProgramType::KProbe),
        ),
        feature(
            "BPF programs for tracepoints",
            program("BPF programs for tracepoints", ProgramType::TracePoint),
        ),
        feature("BPF helper for a thread's registers", thread_registers()),
        feature(
            "BPF ring buffer",
            map("the BPF ring buffer (Linux 5.8)", MapType::RingBuf),
        ),
        feature(
            "BPF hash maps per CPU",
            map("BPF hash maps per CPU", MapType::PerCpuHash),
        ),
        feature("links of many uprobes", user().map(|_| links())),
        feature("sessions of uprobes", user().map(|_| sessions())),
    ];
    let tracefs = tracefs::ensure_tracefs();
    let mounted = tracefs::place();
    let tracefs = tracefs.map(|()| mounted.unwrap_or("none").to_owned());
    // Others may neither see where it is mounted nor mount it.
    let tracefs = tracefs.or_else(|error| user().and(Err(error)));
    features.push(feature("tracefs", tracefs));
    features.extend(tracepoints.iter().map(|tracepoint| {
        let (category, name) = (tracepoint.category, tracepoint.name);
        let there = mounted.is_some_and(|place| {
            Path::new(place)
                .join("events")
                .join(category)
                .join(name)
                .join("id")
                .exists()
        });
        Feature {
            name: format!("tracepoint {category}:{name}"),
            found: supported("this tracepoint", mounted.map(|_| there)),
        }
    }));
    features
}

/// Without them there is less, and no refusal.
fn links() -> String {
    let without =
        "no: probes are attached one by one, and --max-overhead and --follow-forks are refused";
    let found = if are_links_known() { "yes" } else { without };
    found.to_owned()
}

/// Without them tracing costs more.
fn sessions() -> String {
    let without = "no: the return of every call of an allocator meets a probe";
    let found = if are_sessions_known() { "yes" } else { without };
    found.to_owned()
}

const SYSFS: &str = "/sys";

fn supported(what: &str, answer: Option<bool>) -> Result<String, LoadError> {
    match answer {
        Some(true) => Ok("yes".to_owned()),
        // The kernel does not say to those who may not use BPF.
        None => user().and_then(|_| Err(lacks(what))),
        Some(false) => Err(lacks(what)),
    }
}

fn lacks(what: &str) -> LoadError {
    LoadError::Unsupported {
        what: what.to_owned(),
        remedy: "use Linux 5.15 or later, built with CONFIG_BPF_SYSCALL=y, \
                 CONFIG_BPF_EVENTS=y and CONFIG_FTRACE_SYSCALLS=y"
            .to_owned(),
    }
}

fn user() -> Result<String, LoadError> {
    match privileges::missing() {
        None => Ok("yes".to_owned()),
        Some(missing) => Err(LoadError::NotPermitted { missing }),
    }
}

/// The kernel side tells the target by its PID in the initial namespace, which is the PID given
/// only if leaktrace runs there too.
fn pid_namespace() -> Result<String, LoadError> {
    /// `PROC_PID_INIT_INO` of include/uapi/linux/nsfs.h and, before it, include/linux/proc_ns.h.
    const INITIAL: u64 = 0xefff_fffc;
    match fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != INITIAL => Err(LoadError::NotOnHost),
        _ => Ok("yes".to_owned()),
    }
}

fn btf(sysfs: &Path) -> Result<String, LoadError> {
    in_sysfs(
        sysfs,
        "kernel/btf/vmlinux",
        "type information (BTF, /sys/kernel/btf/vmlinux)",
        "use one built with CONFIG_DEBUG_INFO_BTF=y",
    )
}

fn uprobes(sysfs: &Path) -> Result<String, LoadError> {
    in_sysfs(
        sysfs,
        "bus/event_source/devices/uprobe/type",
        "uprobes",
        "use one built with CONFIG_UPROBE_EVENTS=y",
    )
}

/// What the kernel side begins a stack with: the newest of the helpers that it calls.
fn thread_registers() -> Result<String, LoadError> {
    let helper = BpfHelper::BPF_FUNC_task_pt_regs;
    let is_there = sys::is_helper_supported(ProgramType::KProbe, helper);
    let what = "the BPF helper `bpf_task_pt_regs` (Linux 5.15)";
    supported(what, is_there.ok())
}

fn in_sysfs(sysfs: &Path, path: &str, what: &str, remedy: &str) -> Result<String, LoadError> {
    let path = sysfs.join(path);
    if path.exists() {
        return Ok(path.display().to_string());
    }
    Err(LoadError::Unsupported {
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_btf_or_uprobes_is_refused() {
        let sysfs = tempfile::TempDir::new().unwrap();
        let make = |path: &str| {
            let path = sysfs.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let refusal = |found: Result<String, LoadError>| found.unwrap_err().to_string();
        assert!(refusal(btf(sysfs.path())).contains("BTF"));
        assert!(refusal(uprobes(sysfs.path())).contains("uprobes"));
        make("kernel/btf/vmlinux");
        make("bus/event_source/devices/uprobe/type");
        assert!(btf(sysfs.path()).is_ok() && uprobes(sysfs.path()).is_ok());
    }
}
