//! The control group of a process, and the container that it names.

use procfs::process::Process;

/// Where a process is accounted for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Path below the root of leaktrace's own control groups; `None` where it cannot be read.
    pub path: Option<String>,
    /// Id of the container, as its runtime gives it: 64 hexadecimal digits.
    pub container_id: Option<String>,
}

impl Cgroup {
    /// That of a process: version 2's where it is in one, else that by which version 1 counts memory.
    pub(super) fn of(process: &Process) -> Self {
        let groups = process.cgroups().map(|groups| groups.0).unwrap_or_default();
        let lines = groups
            .iter()
            .map(|group| (group.controllers.as_slice(), group.pathname.as_str()));
        let container_id = lines.clone().find_map(|(_, path)| container_id(path));
        Self {
            path: choose(lines).map(str::to_owned),
            container_id: container_id.map(str::to_owned),
        }
    }
}

/// Of the lines of `/proc/PID/cgroup`, the one to tell people.
fn choose<'a>(lines: impl Iterator<Item = (&'a [String], &'a str)> + Clone) -> Option<&'a str> {
    let is_unified = |controllers: &[String]| controllers.iter().all(String::is_empty);
    let counts_memory = |controllers: &[String]| controllers.iter().any(|name| name == "memory");
    let unified = lines.clone().find(|(names, _)| is_unified(names));
    let memory = lines.clone().find(|(names, _)| counts_memory(names));
    // With both versions mounted, that of version 2 may be the root while version 1 has the limits.
    let chosen = match (unified, memory) {
        (Some((_, "/")), Some(memory)) => Some(memory),
        (unified, memory) => unified.or(memory),
    };
    chosen.map(|(_, path)| path)
}

/// The innermost container that the path of a control group names: `docker/ID` and `docker-ID.scope` by
/// Docker with its two drivers, `cri-containerd-ID.scope`, `crio-ID.scope`, `podUID/ID` and
/// `NAME.slice:cri-containerd:ID` by Kubernetes, `libpod-ID.scope` by Podman. What watches over a container
/// (`libpod-conmon-ID.scope`) is not in it.
fn container_id(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let (before, id) = match part.rfind(['-', ':']) {
            Some(at) => (&part[..at], &part[at + 1..]),
            None => ("", part),
        };
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_id = id.len() == 64 && id.bytes().all(is_digit);
        (is_id && !before.ends_with("conmon")).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e1d2c5b6a79880123456789abcdef3f4e1d2c5b6a79880123456789abcdef";

    #[test]
    fn every_runtime_is_known_by_its_paths() {
        for path in [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/system.slice/docker-ID.scope/init.scope",
            "/kubepods/burstable/pod0a1b2c3d-0000-1111-2222-333344445555/ID",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b_2c3d.slice/cri-containerd-ID.scope",
            "/kubepods.slice/kubepods-pod0a1b.slice/crio-ID.scope",
            "/system.slice/containerd.service/kubepods-besteffort-pod0a1b.slice:cri-containerd:ID",
            "/machine.slice/libpod-ID.scope",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "/../docker-ID.scope",
        ] {
            let path = path.replace("ID", ID);
            assert_eq!(container_id(&path), Some(ID), "{path}");
        }
    }

    #[test]
    fn the_innermost_container_counts() {
        let outer = ID.replace('3', "4");
        let path = format!("/docker/{outer}/docker/{ID}");
        assert_eq!(container_id(&path), Some(ID));
    }

    #[test]
    fn other_groups_name_no_container() {
        let (short, long, capital) = (&ID[1..], format!("{ID}0"), ID.to_uppercase());
        for path in [
            "/".to_owned(),
            String::new(),
            "/system.slice/nginx.service".to_owned(),
            format!("/machine.slice/libpod-conmon-{ID}.scope"),
            format!("/system.slice/crio-conmon-{ID}.scope"),
            format!("/docker/{short}"),
            format!("/docker/{long}"),
            format!("/docker/{capital}"),
            "/é-\u{1b}[31m".to_owned(),
        ] {
            assert_eq!(container_id(&path), None, "{path}");
        }
    }

    #[test]
    fn version_1_tells_where_version_2_has_the_root_only() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let (unified, cpu, memory) = (names(&[""]), names(&["cpu", "cpuacct"]), names(&["memory"]));
        fn chosen<'a>(lines: &'a [(&Vec<String>, &'a str)]) -> Option<&'a str> {
            let lines = lines.iter();
            choose(lines.map(|&(names, path)| (names.as_slice(), path)))
        }
        assert_eq!(
            chosen(&[(&cpu, "/a"), (&memory, "/b"), (&unified, "/")]),
            Some("/b")
        );
        assert_eq!(chosen(&[(&memory, "/b"), (&unified, "/c")]), Some("/c"));
        assert_eq!(chosen(&[(&unified, "/")]), Some("/"));
        assert_eq!(chosen(&[(&cpu, "/a")]), None);
    }
}
