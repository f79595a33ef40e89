//! A program in namespaces of its own, with a root of its own: what a container is to the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::Service;

/// Where its files are overlaid, and its program is run from there. PIDs are used up first, so that the program's
/// is one that no other container has.
const SCRIPT: &str = r#"
set -e
cd "$1"; before=$2; libraries=$3; shift 3
mount -t overlay overlay -o "lowerdir=$PWD/lower,upperdir=$PWD/upper,workdir=$PWD/work" merged
cd merged
pivot_root . old
while [ "$before" -gt 0 ]; do (:); before=$((before - 1)); done
export LD_LIBRARY_PATH="$libraries"
"$@"
"#;

/// The files of a container: the lower layer of an overlay.
pub struct Root {
    folder: TempDir,
    libraries: PathBuf,
    pids: u32,
}

/// A running program in pid, mount, user and network namespaces of its own. All of it ends when this is dropped, or
/// with this process: the mounts are those of its namespace.
pub struct Container {
    /// The program, by its streams; its process id is that of who made the namespaces.
    pub service: Service,
    pid: i32,
    _root: Root,
}

impl Root {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// It cannot be made.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        for name in ["lower", "lower/old", "upper", "work", "merged"] {
            fs::create_dir(folder.path().join(name)).expect("a folder in it");
        }
        Self {
            folder,
            libraries: PathBuf::from("/lib"),
            pids: 0,
        }
    }

    /// Has a copy of a file of the host at `inside`.
    ///
    /// # Panics
    ///
    /// It cannot be copied.
    pub fn with(self, file: &Path, inside: &Path) -> Self {
        let to = self.place(inside);
        fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("a folder");
        fs::copy(file, &to).unwrap_or_else(|error| panic!("`{}`: {error}", file.display()));
        self
    }

    /// Has the libraries that `program` needs, and its dynamic linker, those in `folder`.
    ///
    /// # Panics
    ///
    /// They cannot be found.
    pub fn with_libraries_of(mut self, program: &Path, folder: &Path) -> Self {
        let listed = Command::new("ldd").arg(program).output().expect("ldd runs");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for line in listed.lines() {
            let found = line.split_whitespace().find(|word| word.starts_with('/'));
            let Some(found) = found.map(Path::new) else {
                continue;
            };
            // The linker goes by its whole path.
            let name = found.file_name().expect("a file has a name");
            let is_linker = !line.contains("=>") || name.as_encoded_bytes().starts_with(b"ld-");
            let inside = match is_linker {
                true => found.to_owned(),
                false => folder.join(name),
            };
            self = self.with(found, &inside);
        }
        // glibc loads it when a thread ends.
        let unwinder = Path::new("/lib/x86_64-linux-gnu/libgcc_s.so.1");
        self = self.with(unwinder, &folder.join("libgcc_s.so.1"));
        self.libraries = folder.to_owned();
        self
    }

    /// Has used up so many PIDs before the program runs.
    pub fn with_pids(mut self, pids: u32) -> Self {
        self.pids = pids;
        self
    }

    /// Runs the program at `inside` and waits for the first line that it prints.
    ///
    /// # Panics
    ///
    /// It cannot be run.
    pub fn run(self, inside: &Path, arguments: &[&str]) -> (Container, String) {
        let unshare = [
            "--pid",
            "--mount",
            "--net",
            "--user",
            "--map-root-user",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ];
        let mut command: Vec<_> = unshare.iter().map(|word| Path::new(word).into()).collect();
        command.push(self.folder.path().to_owned());
        command.push(self.pids.to_string().into());
        command.push(self.libraries.clone());
        command.push(inside.to_owned());
        command.extend(arguments.iter().map(PathBuf::from));
        let mut service = Service::start_at(Path::new("/usr/bin/unshare"), command);
        let line = service.line();
        let pid = innermost(service.pid());
        let container = Container {
            service,
            pid,
            _root: self,
        };
        (container, line)
    }

    fn place(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").expect("an absolute path");
        self.folder.path().join("lower").join(inside)
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

impl Container {
    /// Its process id on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its process id inside.
    ///
    /// # Panics
    ///
    /// It is gone.
    pub fn ns_pid(&self) -> i32 {
        *ns_pids(self.pid).last().expect("a PID inside")
    }

    /// A file of its, as the host can reach it.
    ///
    /// # Panics
    ///
    /// The path is not absolute.
    pub fn file(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").expect("an absolute path");
        Path::new("/proc")
            .join(self.pid.to_string())
            .join("root")
            .join(inside)
    }
}

/// The process ids of a process: on the host, and in each pid namespace that it is in, the innermost last.
///
/// # Panics
///
/// It is gone.
pub fn ns_pids(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids = pids.expect("the kernel tells them").split_whitespace();
    pids.map(|pid| pid.parse().expect("a PID")).collect()
}

/// The child of the child, and so on, that has none itself.
///
/// # Panics
///
/// The kernel does not tell of children.
pub fn innermost(pid: i32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("the kernel tells of children");
    match children.split_whitespace().next() {
        Some(child) => innermost(child.parse().expect("a PID")),
        None => pid,
    }
}
